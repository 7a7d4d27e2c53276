"""Where yosys puts the memories of a core: potentials, sums and weights in block RAM, as the plan says, and nothing large in registers."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Literal

import pytest
from amaranth.back import rtlil

import boards
from casc_hw import IntegerNet
from rtl_gen import tools
from rtl_gen.gates.core import Core
from rtl_gen.lower import Lanes, core_spec
from rtl_gen.resources import parts
from rtl_gen.verilog import leave_collisions_open

NET = IntegerNet.load(Path(__file__).resolve().parents[2] / "examples" / "mnist_cnn_avg.pt")
BUDGETS = {board.name: board.budget for board in boards.all_boards()}
LANES = [Lanes(4, 4), Lanes(4, 4), Lanes(2, 2, "dsp", serial=True), Lanes(2, 2)]
MAPPED = {"ulx3s-85f": ("synth_ecp5", "DP16KD"), "icebreaker": ("synth_ice40 -device u -dsp", "SB_RAM40_4K")}


@pytest.mark.slow
@pytest.mark.parametrize(("board", "code"), [("ulx3s-85f", "spike"), ("icebreaker", "count")])
def test_memories_go_where_the_plan_says(board: str, code: Literal["spike", "count"], tmp_path: Path) -> None:
    spec, budget = core_spec(NET, LANES, 2, code), BUDGETS[board]
    synth, block = MAPPED[board]
    (tmp_path / "top.il").write_text(leave_collisions_open(rtlil.convert(Core(spec), name="top", emit_src=False)))
    script = f"read_rtlil top.il\n{synth} -top top -run begin:map_ffram\ntee -q -o stat.txt stat\n"
    script += "tee -q -o left.txt select -list t:$mem_v2 r:WR_PORTS>0 %i\n"
    (tmp_path / "top.ys").write_text(script)
    subprocess.run([tools.find("yosys").path, "-q", "top.ys"], cwd=tmp_path, check=True, capture_output=True)
    stat = (tmp_path / "stat.txt").read_text()
    used = int((re.search(rf"^ +(\d+) +{block}$", stat, re.MULTILINE) or re.search(rf"^ +{block} +(\d+)$", stat, re.MULTILINE))[1])  # type: ignore[index]
    planned = [memory for part in parts(spec, budget).values() for memory in part.memories]
    # The host link's memories are planned for, and not in the core.
    core = sum(memory.blocks for memory in planned if memory.name not in ("pixels of two images", "answers", "requests"))
    assert used == pytest.approx(core, rel=0.15, abs=2)
    assert used > 20
    left = (tmp_path / "left.txt").read_text().split()  # what becomes registers
    registers = [memory for memory in planned if memory.place == "registers"]
    assert len(left) <= len(registers), left
    assert all(memory.rows * memory.bits <= 2048 for memory in registers)
