"""Verilog of a design, through yosys."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amaranth.back import rtlil

from rtl_gen import tools

UNDEFINED_COLLISIONS = r"setparam -set COLLISION_X_MASK 1'1 t:$memrd_v2 r:MEMID=\spram r:MEMID=\banks %u *_cross/t:$memrd_v2 %u %d"
"""Leaves open what a memory gives where it is read and written at once: no part of ours looks at it.

Amaranth asks for the old content, which block RAM of ECP5 and iCE40 does not give by itself: logic around it would have to. Simulations
give garbage there. Left out are memories called ``spram``, of one port, FIFOs called ``*_cross``, of two clocks, and the link's ``banks``.
"""

_SCRIPT = """read_rtlil design.il
{collisions}
proc
pmuxtree
memory_collect
attrmap -remove generator -remove top -remove src -remove amaranth.hierarchy -remove amaranth.decoding
attrmap -modattr -remove generator -remove top -remove src -remove amaranth.hierarchy
write_verilog -norename design.v
"""
# `proc` turns processes into multiplexers. Left as ``always @*`` they would never run in Icarus where they read only what is
# constant from the start.


def to_verilog(component: Any, name: str, ports: Sequence[Any] | None = None, *, undefined_collisions: bool = False) -> str:
    """Verilog of an Amaranth Elaboratable: module ``name`` with ``ports``, or with a component's own.

    No source locations, so equal designs are equal texts. ``undefined_collisions``: see `UNDEFINED_COLLISIONS`; synthesis from
    Verilog finds its block RAM better without.
    """
    text = rtlil.convert(component, name=name, ports=ports, emit_src=False)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "design.il").write_text(text)
        Path(folder, "design.ys").write_text(_SCRIPT.format(collisions=UNDEFINED_COLLISIONS if undefined_collisions else ""))
        done = subprocess.run([tools.find("yosys").path, "-q", "design.ys"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"yosys could not write Verilog: {done.stdout}{done.stderr}")
        return Path(folder, "design.v").read_text()
