"""Upsets: one bit of a running board's state flips; then the link's reset must bring it back, and nothing may hang."""

from __future__ import annotations

import random
import struct
from dataclasses import replace
from pathlib import Path

import torch

import boards
from boards.host import MALFORMED_INPUT, STEP_BOUND, Frame, decode, encode, split
from boards.top import link_spec
from casc_hw.data import EXAMPLES, load_images
from casc_hw.network import IntegerNet, to_wire
from casc_hw.reference import quantised_ann
from rtl_gen.cycles import worst_cycles
from rtl_gen.gates.core import Core
from rtl_gen.gates.frame import ANSWER, ERROR, Fault, Kind
from rtl_gen.gates.link import ANSWER_HEADER, HEADER, RESET_CYCLES, AnswerBook
from rtl_gen.plan import Options, make_plan
from sim.compiled import CompiledBoard, Part, Powered

IMAGES = 50
TRIES = 4
"""Times the reset is sent, as `boards.host.Host` does."""


class Upsets:
    """digits_mlp on an iCEBreaker: an image, and somewhere between its first bit and its answer's last a bit flips; RESET; another image.

    A bit of all registers and all memories that the gates write. Not of memories that none writes (weights, biases, thresholds), nor of the
    constant bytes of answers: nothing on the chip could restore them, only loading the bitstream again.
    """

    name = "upset"
    limited = False

    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        path, board = EXAMPLES / "digits_mlp.pt", boards.get("icebreaker")
        net = IntegerNet.load(path)
        images, _, _ = load_images(net, None, path)
        images = images[:IMAGES]
        plan = make_plan(net, board.budget, Options(), images=images)
        # As it is built, but for a faster wire and a watchdog of a few images, so that more upsets fit into a second.
        self.spec = replace(link_spec(plan, board.source_hz), baud=3_000_000, watchdog=8 * worst_cycles(plan.spec))
        self.answers = [[*logits] for logits in to_wire(quantised_ann(net, images).sums, net.shapes[net.readout.name]).tolist()]
        self.wires = [bytes(image) for image in to_wire(images.reshape(len(images), -1), net.shapes["image"]).tolist()]
        self.span = 10 * self.spec.uart.divisor * (len(self.wires[0]) + 4 * len(self.answers[0]))  # at least, in io cycles
        self.board = CompiledBoard(Core(plan.spec), self.spec, folder, 12, 24)
        with self.board.power_on() as powered:
            parts = [part for part in powered.parts() if not part.constant]
            powered.run(2 * RESET_CYCLES)
            begin = powered.cycles
            if self.image(powered, 1, 0) != "masked":
                raise RuntimeError("the board does not work to begin with")
            self.span = powered.cycles - begin
        book = AnswerBook(self.spec)
        first = book.starts[Kind.IMAGE] + HEADER
        kept = [*range(first, first + 9), *range(first + ANSWER_HEADER, book.ends[Kind.IMAGE] + 1)]
        self.places: list[list[tuple[Part, int]]] = [
            [(part, 0) for part in parts if part.rows == 1 for _ in range(part.width)],
            [(part, row) for part in parts if part.rows > 1 for row in (kept if part.name.endswith("link book") else range(part.rows))],
        ]

    def case(self, chance: random.Random) -> str:
        one, two = chance.randrange(len(self.wires)), chance.randrange(len(self.wires))
        part, row = chance.choice(self.places[chance.random() < 0.25])
        bit, when = chance.randrange(part.width), chance.randrange(self.span)
        where = f"{part.name}[{row}] bit {bit} in cycle {when}"
        with self.board.power_on() as board:
            board.run(2 * RESET_CYCLES)
            verdict = self.image(board, 1, one, (when, part, row, bit))
            for attempt in range(TRIES):
                sequence = 10 + attempt
                board.send(encode(Frame(Kind.RESET, sequence)))
                if any(frame.kind == Kind.RESET | ANSWER for frame in self.take(board, sequence)):
                    break
            else:
                raise RuntimeError(f"{where}: {TRIES} RESETs had no answer")
            if (after := self.image(board, 20, two)) != "masked":
                raise RuntimeError(f"{where}: {verdict}, then RESET, then {after}")
            return verdict

    def image(self, board: Powered, sequence: int, index: int, upset: tuple[int, Part, int, int] | None = None) -> str:
        """What the board says of an image, in words; "masked" is the right answer."""
        board.send(encode(Frame(Kind.IMAGE, sequence, self.wires[index])))
        before = b""
        if upset is not None:
            when, part, row, bit = upset
            before = board.run(when)
            board.flip(part, row, bit)
        for frame in self.take(board, sequence, before):
            if frame.kind == ERROR and len(frame.payload) == 2:
                code = frame.payload[0]
                return f"refused: {Fault(code).name}" if code in set(Fault) else "wrong code"
            if frame.kind != Kind.IMAGE | ANSWER or len(frame.payload) < ANSWER_HEADER:
                continue
            class_index, flags, _, _, count = struct.unpack_from("<HBHIH", frame.payload)
            if flags & (MALFORMED_INPUT | STEP_BOUND):
                return "flagged by the core"
            logits, right = list(struct.unpack_from(f"<{count}i", frame.payload, ANSWER_HEADER)), self.answers[index]
            return "masked" if logits == right and class_index == right.index(max(right)) else "wrong answer"
        return "no answer"

    def take(self, board: Powered, sequence: int, received: bytes = b"") -> list[Frame]:
        """The sound frames of that sequence that come until one has come, or the watchdog and the wire have had their time twice."""
        end = board.cycles + 2 * self.spec.watchdog + 2 * self.span
        while True:
            bodies, _ = split(received)
            frames = [frame for frame in map(decode, bodies) if frame is not None and frame.sequence == sequence]
            if frames or board.cycles >= end:
                return frames
            received += board.run(end - board.cycles, 1)
