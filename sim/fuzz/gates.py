"""The board's end of the link, in gates: any bytes on its pin, and then a request that must be answered, and answered right."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from boards.host import RETRY, Frame, decode, encode, split, stuff
from rtl_gen.gates.frame import ANSWER, ERROR, Kind
from rtl_gen.gates.link import ANSWER_HEADER, LinkSpec
from sim.compiled import CompiledBoard, Powered
from sim.dummy_core import EARLY, HANG, LATE, LOGITS, SLOW, DummyCore, dummy_answer
from sim.fuzz.files import mutated

SPEC = LinkSpec(digest=bytes(range(100, 132)), levels=4, margin=3, input_shape=(1, 2, 3), input_max=255, outputs=(7, LOGITS), beat=4,
                clock_hz=4_000_000, watchdog=3000)  # fmt: skip
WORDS = 10 * SPEC.uart.divisor + 1
"""io cycles a byte on the wire."""
FIRST = 100
"""Sequence of the image's first try; noise has lower ones, so that no answer to it is taken for the image's."""


class Gates:
    """A link around `sim.dummy_core.DummyCore`. Every frame that comes back must be sound."""

    name = "gates"
    limited = False

    def __init__(self, folder: Path):
        self.board = CompiledBoard(DummyCore(SPEC), SPEC, folder, 4, 5)

    def case(self, chance: random.Random) -> str:
        with self.board.power_on() as board:
            board.run(chance.randrange(600))
            wire = b"".join(self.noise(chance) for _ in range(chance.randrange(1, 5)))
            board.send(wire)
            received = board.run(WORDS * len(wire) + chance.choice((0, 0, 500, 5000)))
            image = bytes(chance.randrange(LATE) for _ in range(SPEC.pixels))
            for attempt in range(4):
                sequence = FIRST + attempt
                board.send(encode(Frame(Kind.IMAGE, sequence, image)))
                answer, received = self.answer(board, sequence, received)
                if answer is None or (answer.kind == ERROR and answer.payload[0] in RETRY):
                    continue
                if answer.kind != Kind.IMAGE | ANSWER:
                    raise RuntimeError(f"{wire.hex()}, then {image.hex()}: {answer}")
                class_index, flags, sleep, cycles, count = struct.unpack_from("<HBHIH", answer.payload)
                words = [*struct.unpack_from(f"<{count}i", answer.payload, ANSWER_HEADER), class_index, sleep | flags << 24, cycles]
                if words != dummy_answer(image, SPEC.beat):
                    raise RuntimeError(f"{wire.hex()}, then {image.hex()}: {words}")
                return "accepted" if attempt == 0 else "accepted when sent again"
            raise RuntimeError(f"{wire.hex()}, then {image.hex()}: no answer")

    def answer(self, board: Powered, sequence: int, received: bytes) -> tuple[Frame | None, bytes]:
        """The answer of that sequence, or None after the time that queue, watchdog and wire may take; what is left of the wire."""
        end = board.cycles + 4 * SPEC.watchdog + 40 * 20 * WORDS
        while board.cycles < end:
            received += board.run(end - board.cycles, 1)
            bodies, received = split(received)
            for body in bodies:
                frame = decode(body)
                if frame is None:
                    raise RuntimeError(f"the board sent {body.hex()}, which is no frame")
                if frame.sequence == sequence and frame.kind in (ERROR, Kind.IMAGE | ANSWER):
                    return frame, received
        return None, received

    def noise(self, chance: random.Random) -> bytes:
        pixels = bytes([chance.choice((0, HANG, EARLY, SLOW, LATE, 9)), *(chance.randrange(256) for _ in range(SPEC.pixels - 1))])
        sound = encode(chance.choice([Frame(Kind.IMAGE, 3, pixels), Frame(Kind.HELLO, 4), Frame(Kind.RESET, 5)]))
        body = bytes([2, chance.randrange(5), chance.randrange(9), *chance.randbytes(chance.randrange(12))])
        return chance.choice(
            [
                chance.randbytes(chance.randrange(60)),
                bytes(chance.choice((0x7E, 0x7D, 0x5E, 0, 0xFF, 2)) for _ in range(chance.randrange(60))),
                mutated(chance, sound),
                sound[: chance.randrange(len(sound))],
                sound * chance.randrange(1, 4),
                stuff(body),
                b"\x7e\x01" * chance.randrange(40),
                encode(Frame(chance.randrange(256), chance.randrange(FIRST), chance.randbytes(chance.randrange(30)), chance.randrange(4))),
            ]
        )
