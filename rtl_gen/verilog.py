"""Verilog of a design, through yosys."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amaranth.back import rtlil

from rtl_gen import tools

_MODULE = re.compile(r"^module .*?^end$", re.MULTILINE | re.DOTALL)
_WRITE = re.compile(r"""^  cell \$memwr_v2 .*?\\MEMID "\\\\(.*?)".*?connect \\CLK (.*?)\n""", re.MULTILINE | re.DOTALL)
_READ = re.compile(
    r"""^  cell \$memrd_v2 [^\n]*\n    parameter \\MEMID "\\\\(?P<memory>.*?)".*?connect \\CLK (?P<clock>.*?)\n  end$""",
    re.MULTILINE | re.DOTALL,
)
_SCRIPT = """read_rtlil design.il
proc
pmuxtree
memory_collect
attrmap -remove generator -remove top -remove src -remove amaranth.hierarchy -remove amaranth.decoding
attrmap -modattr -remove generator -remove top -remove src -remove amaranth.hierarchy
write_verilog -norename design.v
"""
# `proc` turns processes into multiplexers. Left as ``always @*`` they would never run in Icarus where they read only what is
# constant from the start.


def leave_collisions_open(rtlil_text: str) -> str:
    """RTLIL that leaves open what a memory gives where it is read and written at once: no part of ours looks at it.

    Amaranth asks for the old content, which block RAM of ECP5 and iCE40 does not give by itself: logic around it would have to.
    Simulations of the result give garbage there. Memories of two clocks stay as they are, and those called ``spram``, of one port.
    """

    def opened(module: re.Match[str]) -> str:
        clocks: dict[str, set[str]] = {}
        for memory, clock in _WRITE.findall(module[0]):
            clocks.setdefault(memory, set()).add(clock)

        def port(cell: re.Match[str]) -> str:
            alone = cell["memory"] != "spram" and clocks.get(cell["memory"]) == {cell["clock"]}
            return cell[0].replace(r"\COLLISION_X_MASK 1'0", r"\COLLISION_X_MASK 1'1") if alone else cell[0]

        return _READ.sub(port, module[0])

    return _MODULE.sub(opened, rtlil_text)


def to_verilog(component: Any, name: str, ports: Sequence[Any] | None = None, *, undefined_collisions: bool = False) -> str:
    """Verilog of an Amaranth Elaboratable: module ``name`` with ``ports``, or with a component's own.

    No source locations, so equal designs are equal texts. ``undefined_collisions``: see `leave_collisions_open`; synthesis from
    Verilog finds its block RAM better without.
    """
    text = rtlil.convert(component, name=name, ports=ports, emit_src=False)
    if undefined_collisions:
        text = leave_collisions_open(text)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "design.il").write_text(text)
        tools.run_yosys(_SCRIPT, Path(folder))
        return Path(folder, "design.v").read_text()
