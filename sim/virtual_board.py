"""The virtual board: a board's whole top, UART pins and all, in Verilator behind a pseudo-terminal.

`boards.host.Host` talks to it as to a board; time on it runs as fast as the simulation goes, and stands still when it idles.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from amaranth.hdl import ClockDomain, Elaboratable, Module
from amaranth.lib import wiring

from boards.top import BoardTop
from casc_hw.errors import CascError
from rtl_gen.gates.core import weight_words
from rtl_gen.gates.link import LinkSpec
from rtl_gen.tools import verilator_environment
from rtl_gen.verilog import to_verilog
from sim.flash import FlashModel

HARNESS = Path(__file__).with_name("virtual_board.cpp")
LEDS = 8


class _Clocked(Elaboratable):
    """``top`` with its clocks as plain ports and, where it reads weights, a flash that holds ``weights``."""

    def __init__(self, top: BoardTop, weights: Sequence[int]):
        self.top, self.weights = top, weights
        self.io, self.sync = ClockDomain("io", reset_less=True), ClockDomain("sync", reset_less=True)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.domains += [self.io, self.sync]
        m.submodules.top = self.top
        if self.top.flash_spec is not None:
            m.submodules.flash = flash = FlashModel(self.top.flash_spec, self.weights)
            wiring.connect(m, self.top.flash, flash.pins)
        return m


def clocked(top: BoardTop, weights: Sequence[int]) -> tuple[Elaboratable, list[Any]]:
    """``top`` between ports: io_clk, clk, rx, tx, leds, busy; its flash holds ``weights``."""
    design = _Clocked(top, weights)
    return design, [design.io.clk, design.sync.clk, top.rx, top.tx, top.leds, top.busy]


def board_verilog(core: Any, spec: LinkSpec, weights: Sequence[int] | None = None) -> str:
    """`BoardTop` as Verilog, module ``top``: clk, io_clk, rx, tx, leds, busy; its flash holds ``weights``, or the core's own."""
    top = BoardTop(core, spec, LEDS)
    if weights is None and top.flash_spec is not None:
        weights = weight_words(core.spec)
    design, ports = clocked(top, weights or ())
    return to_verilog(design, "top", ports, undefined_collisions=True)


def build_virtual_board(
    core: Any, spec: LinkSpec, out_dir: str | os.PathLike[str], io_hz: int, sync_hz: int, weights: Sequence[int] | None = None
) -> Path:
    """Compile ``core`` behind its link and return the executable.

    ``io_hz``, ``sync_hz``: both clocks in Hz; only their ratio matters here. ``weights``: words in the flash, instead of the core's own.
    Raises CascError if a tool fails.
    """
    out = Path(out_dir).resolve()
    out.mkdir(parents=True, exist_ok=True)
    (out / "top.v").write_text(board_verilog(core, spec, weights))
    return compile_top(out, HARNESS, spec, io_hz, sync_hz)


def compile_top(out: Path, harness: Path, spec: LinkSpec, io_hz: float, sync_hz: float, *, define: str = "", fast: str = "-O2") -> Path:
    """Compile module ``top`` of ``top.v`` in the folder ``out`` with a harness in C++, ``fast`` where it matters; return the executable."""
    clocks = f"-DIO_HZ={int(io_hz)}ULL -DSYNC_HZ={int(sync_hz)}ULL -DDIVISOR={spec.uart.divisor}"
    command = [
        *("verilator", "--cc", "--exe", "--build", "-j", "2", "-O3", "--x-assign", "unique", "--x-initial", "fast", "--no-assert"),
        *("-Wno-fatal", "-Wno-lint", "--top-module", "top", "--Mdir", "obj", "-o", harness.stem),
        *("-CFLAGS", f"{clocks} {define}".strip()),
        *("-MAKEFLAGS", f"OPT_FAST={fast} OPT_SLOW=-O0 OPT_GLOBAL=-O0", "top.v", str(harness)),
    ]
    run = subprocess.run(command, cwd=out, env=verilator_environment(), capture_output=True, text=True, check=False)
    (out / "verilator.log").write_text(run.stdout + run.stderr)
    if run.returncode:
        raise CascError(f"virtual board: verilator failed with status {run.returncode}; see {out / 'verilator.log'}")
    return out / "obj" / harness.stem


@contextmanager
def running(executable: str | os.PathLike[str], link: str | os.PathLike[str] | None = None) -> Iterator[str]:
    """The path of the terminal, while the virtual board runs; ``link`` is made a symlink to it."""
    command = [os.fspath(executable), *(["--link", os.fspath(link)] if link else [])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr, text=True) as process:
        try:
            path = process.stdout.readline().strip() if process.stdout else ""
            if not path:
                raise CascError(f"virtual board: {executable} gave no terminal (status {process.wait(5)}); run it by hand to see why")
            yield path
        finally:
            process.terminate()
            try:
                process.wait(5)
            except subprocess.TimeoutExpired:
                process.kill()
