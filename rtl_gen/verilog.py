"""Verilog of a design, through yosys."""

from __future__ import annotations

import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from amaranth.back import rtlil

from rtl_gen import tools

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


def to_verilog(component: Any, name: str, ports: Sequence[Any] | None = None) -> str:
    """Verilog of an Amaranth Elaboratable: module ``name`` with ``ports``, or with a component's own.

    No source locations, so equal designs are equal texts.
    """
    text = rtlil.convert(component, name=name, ports=ports, emit_src=False)
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "design.il").write_text(text)
        Path(folder, "design.ys").write_text(_SCRIPT)
        done = subprocess.run([tools.find("yosys").path, "-q", "design.ys"], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"yosys could not write Verilog: {done.stdout}{done.stderr}")
        return Path(folder, "design.v").read_text()
