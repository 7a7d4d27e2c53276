"""A build's netlists give the reference's answers by the board's pins, and one that is broken is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import boards
from boards.platform import Board
from boards.top import BoardTop, link_spec
from casc_hw import CascError, IntegerNet
from casc_hw.data import load_images
from rtl_gen.build import build
from rtl_gen.gates.core import Core
from rtl_gen.plan import Plan, make_plan
from sim.netlist import NetlistResult, run_netlist

NET = Path(__file__).resolve().parents[2] / "examples" / "digits_mlp.pt"
BOARD = boards.get("icebreaker")
IMAGES = 2


@pytest.fixture(scope="module")
def net() -> IntegerNet:
    return IntegerNet.load(NET)


@pytest.fixture(scope="module")
def images(net: IntegerNet) -> torch.Tensor:
    return load_images(net, None, NET)[0]


@pytest.fixture(scope="module")
def plan(net: IntegerNet, images: torch.Tensor) -> Plan:
    return make_plan(net, BOARD.budget, images=images)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: the RTL is compiled once."""
    return tmp_path_factory.mktemp("netlist")


@pytest.fixture(scope="module")
def built(plan: Plan, work: Path) -> Path:
    """A build's folder."""
    top = BoardTop(Core(plan.spec), link_spec(plan, BOARD.source_hz), BOARD.leds)
    build(top, BOARD, work / "built", name="digits_mlp")
    return work / "built"


Run = Callable[..., NetlistResult]


@pytest.fixture
def run(net: IntegerNet, plan: Plan, images: torch.Tensor, work: Path) -> Run:
    def run(stage: str, built: Path = Path("none"), count: int = IMAGES, board: Board = BOARD) -> NetlistResult:
        return run_netlist(net, plan.spec, link_spec(plan, board.source_hz), board, images[:count], stage, work, built)

    return run


@pytest.fixture
def broken(built: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The build with its netlist after synthesis changed, and nothing else."""

    def change(how: Callable[[dict[str, Any]], None]) -> Path:
        shutil.copytree(built, tmp_path / "broken")
        file = tmp_path / "broken" / "top.json"
        design = json.loads(file.read_text())
        how(design["modules"]["top"])
        file.write_text(json.dumps(design))
        return file.parent

    return change


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["synth", "route", pytest.param("bitstream", marks=pytest.mark.skipif(
    not shutil.which("icebox_vlog"), reason="icebox_vlog is not installed"))])  # fmt: skip
def test_equal(stage: str, run: Run, built: Path) -> None:
    result = run(stage, built)
    assert (result.images, result.mismatches, result.messages) == (IMAGES, 0, [])
    assert result.compared == IMAGES * (10 + 3)  # sums; class, cycles, sleep steps
    assert result.folder == str(built)
    assert all(0 < cycles < 1000 for cycles in result.cycles)


@pytest.mark.slow
def test_equal_on_an_ecp5(net: IntegerNet, images: torch.Tensor, tmp_path: Path) -> None:
    board = boards.get("ulx3s-12f")
    plan = make_plan(net, board.budget, images=images)
    link = link_spec(plan, board.source_hz)
    result = run_netlist(net, plan.spec, link, board, images[:IMAGES], "synth", tmp_path / "work", tmp_path / "none")
    assert (result.compared, result.mismatches, result.messages) == (IMAGES * (10 + 3), 0, [])
    design = json.loads((tmp_path / "work" / "build" / "top.json").read_text())["modules"]["top"]
    assert {cell["type"] for cell in design["cells"].values()} >= {"LUT4", "CCU2C", "TRELLIS_FF", "DP16KD", "MULT18X18D", "EHXPLLL"}


@pytest.mark.slow
def test_a_wrong_sum_is_told(run: Run, broken: Any) -> None:
    """The lowest two bits of the read-out's factors, exchanged."""

    def exchange(top: dict[str, Any]) -> None:
        multipliers = [cell for cell in top["cells"].values() if cell["type"] == "SB_MAC16"]
        assert multipliers
        for multiplier in multipliers:
            wires = multiplier["connections"]["A"]
            wires[0], wires[1] = wires[1], wires[0]

    folder = broken(exchange)
    result = run("synth", folder)
    assert result.folder == str(folder)
    assert result.mismatches >= IMAGES
    assert result.messages[0].startswith("image 0, sums: got [")


@pytest.mark.slow
def test_what_cannot_be_understood_is_told(run: Run, broken: Any) -> None:
    """The transmitter's pin, inverted: whatever it says cannot be understood."""

    def invert(top: dict[str, Any]) -> None:
        bits = top["ports"]["uart_0__tx__io"]["bits"]
        (pin,) = [cell for cell in top["cells"].values() if cell["connections"].get("PACKAGE_PIN") == bits]
        wires = {"I0": pin["connections"]["D_OUT_0"], "O": [1 << 20]}
        lut = {"type": "SB_LUT4", "parameters": {"LUT_INIT": f"{0x5555:016b}"}, "port_directions": {"I0": "input", "O": "output"}}
        top["cells"]["inverter"] = lut | {"connections": wires}
        pin["connections"]["D_OUT_0"] = [1 << 20]

    result = run("synth", broken(invert))
    assert (result.compared, result.cycles) == (0, [])
    assert result.mismatches == IMAGES
    assert "from the netlist" in result.messages[0]


def test_refused(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(CascError, match="stage: 'gds' is not known"):
        run("gds")
    with pytest.raises(CascError, match="there are none"):
        run("synth", count=0)
    with pytest.raises(CascError, match="ulx3s-12f cannot be unpacked"):
        run("bitstream", board=boards.get("ulx3s-12f"))
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(CascError, match="icebox_vlog: not found on PATH"):
        run("bitstream")
