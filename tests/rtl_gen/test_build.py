"""Builds: a failure leaves what was there, a success says what it made, and the bitstream's PLL is the one chosen."""

from __future__ import annotations

import json
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from amaranth.hdl import Cat, Elaboratable, Module, Signal
from amaranth.lib.fifo import AsyncFIFO
from amaranth.lib.memory import Memory

import boards
from boards.clock import ecp5_pll
from casc_hw.errors import CascError
from rtl_gen import build as build_module
from rtl_gen import tools
from rtl_gen.build import build


class Core(Elaboratable):
    """Both domains, both crossings, a block RAM with contents, a multiplier, and an adder chain for routing to be slow at."""

    def __init__(self) -> None:
        self.rx, self.tx, self.leds = Signal(init=1), Signal(init=1), Signal(2)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.up = up = AsyncFIFO(width=8, depth=16, w_domain="io", r_domain="sync")
        m.submodules.down = down = AsyncFIFO(width=8, depth=16, w_domain="sync", r_domain="io")
        m.submodules.memory = memory = Memory(shape=16, depth=512, init=[77 * i & 0xFFFF for i in range(512)])
        read = memory.read_port()
        time, bits, sum_, product, factor = Signal(24), Signal(8), Signal(32), Signal(32), Signal(16)
        m.d.comb += [up.w_data.eq(bits), up.w_en.eq(time[:3] == 0), up.r_en.eq(1), down.r_en.eq(1), read.addr.eq(sum_[:9]), read.en.eq(1)]
        m.d.io += [time.eq(time + 1), bits.eq(Cat(self.rx, bits)), self.tx.eq(down.r_data.xor()), self.leds[0].eq(time[-1])]
        m.d.sync += [
            factor.eq(read.data),
            product.eq(factor * sum_[:16]),
            sum_.eq(sum_ + product + up.r_data),
            down.w_data.eq(sum_[16:]),
            down.w_en.eq(sum_[4]),
            self.leds[1].eq(sum_[-1]),
        ]
        return m


@pytest.fixture
def old_result(tmp_path: Path) -> Path:
    """A folder with an earlier result, beside what a killed build left."""
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "top.bit").write_text("the old one")
    (tmp_path / ".net.999999999.building").mkdir()
    return tmp_path / "net"


def fake_tool(folder: Path, script: str) -> tools.Tool:
    path = folder / "tool"
    path.write_text("#!/bin/sh\n" + script)
    path.chmod(0o755)
    return tools.Tool("tool", str(path), "1.0")


def test_a_failing_tool_leaves_the_old_result(old_result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tool = fake_tool(old_result.parent, "echo 'Info: so far so good'\necho 'ERROR: no such bel'\necho '1 error'\nexit 3\n")
    monkeypatch.setattr(tools, "find", lambda name: tool)
    with pytest.raises(CascError, match=r"yosys: ended with status 3 and said 'ERROR: no such bel'; see (.*)") as error:
        build(Core(), boards.get("icebreaker"), old_result)
    log = Path(str(error.value).rpartition("see ")[2])
    assert "so far so good" in log.read_text()
    assert log.parent == old_result.parent / "net-failed"
    assert [path.name for path in old_result.iterdir()] == ["top.bit"]
    assert not list(old_result.parent.glob(".net.*"))


def test_an_interrupt_leaves_the_old_result(old_result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tools, "find", lambda name: tools.Tool(name, name, "1.0"))
    monkeypatch.setattr(subprocess, "run", interrupted)
    with pytest.raises(KeyboardInterrupt):
        build(Core(), boards.get("icebreaker"), old_result)
    assert sorted(path.name for path in old_result.parent.iterdir()) == ["net"]
    assert (old_result / "top.bit").read_text() == "the old one"


def test_a_result_caught_between_two_renames_comes_back(old_result: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old_result.rename(old_result.with_name(".net.999999998.replaced"))
    monkeypatch.setattr(tools, "find", lambda name: fake_tool(old_result.parent, "exit 1\n"))
    with pytest.raises(CascError, match="status 1 and said 'nothing'"):
        build(Core(), boards.get("icebreaker"), old_result)
    assert (old_result / "top.bit").read_text() == "the old one"


def test_ecp5_dividers_are_replaced_in_the_pll_tile_only() -> None:
    before, after = ecp5_pll(25e6, 50e6), ecp5_pll(25e6, 104e6)
    parameters = {name: f"{value:032b}" for name, value in before.parameters}
    words = "".join(f"word: {name} {int(value) - name.endswith('DIV'):07b}\n" for name, value in before.parameters)
    config = f".device LFE5U-12F\n\n.tile X\nword: CLKI_DIV 0000000\n\n.tile PLL\n{words}enum: MODE EHXPLLL\n\n.tile Y\nenum: A 1\n\n"
    text = build_module._retuned_config(config, parameters, after)
    assert [line for line in text.splitlines() if line.startswith("word")][1:] == [
        f"word: {name} {int(value) - name.endswith('DIV'):07b}" for name, value in after.parameters
    ]
    assert text.split("\n\n")[:2] + text.split("\n\n")[3:] == config.split("\n\n")[:2] + config.split("\n\n")[3:]
    assert build_module._retuned_config(text, {name: f"{value:b}" for name, value in after.parameters}, before) == config
    with pytest.raises(ValueError, match="not in list"):
        build_module._retuned_config(config, {name: f"{value + 1:b}" for name, value in before.parameters}, after)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "suffix", "slowest", "dsp"), [("icebreaker", ".bin", 20, (1, 8)), ("ulx3s-12f", ".bit", 60, (1, 28))])
def test_a_bitstream_with_its_clock_chosen(tmp_path: Path, name: str, suffix: str, slowest: float, dsp: tuple[int, int]) -> None:
    board, steps = boards.get(name), []
    result = build(Core(), board, tmp_path / "a", name="net", progress=steps.append)
    assert result.bitstream == tmp_path / "a" / f"net{suffix}"
    assert result.bitstream.stat().st_size > 10_000
    assert slowest < result.sync_mhz <= result.fmax_mhz["sync"] < 1.07 * result.sync_mhz
    assert result.fmax_mhz["io"] > result.io_mhz == board.source_hz / 1e6
    assert result.utilisation["DSP"] == dsp
    budget = board.budget
    assert {kind: available for kind, (_, available) in result.utilisation.items() if kind != "SPRAM"} == {
        "LUT4": budget.lut4,
        "FF": budget.ff,
        "block RAM": budget.block_rams,
        "DSP": budget.dsps,
    }
    assert result.utilisation["block RAM"][0] >= 1
    assert result.utilisation["FF"][0] > 100
    assert len(steps) == len(result.seconds)
    assert all(log.exists() for log in result.logs.values())
    assert json.loads((tmp_path / "a" / "build.json").read_text()) == json.loads(json.dumps(result.as_json()))
    again = build(Core(), board, tmp_path / "b", name="net")
    assert (again.digest, again.bitstream_digest) == (result.digest, result.bitstream_digest)
    assert build(Core(), replace(board, limit_hz=30e6), tmp_path / "b").digest != result.digest


@pytest.mark.slow
def test_the_ecp5_bitstream_holds_the_chosen_pll(tmp_path: Path) -> None:
    """Read back from the .bit itself."""
    result = build(Core(), boards.get("ulx3s-12f"), tmp_path / "net")
    subprocess.run([tools.find("ecpunpack").path, "--input", "top.bit", "--textcfg", "back.config"], cwd=tmp_path / "net", check=True)
    back = (tmp_path / "net" / "back.config").read_text()
    pll = ecp5_pll(25e6, 1e6 * result.sync_mhz + 1)
    assert pll.hz == pytest.approx(1e6 * result.sync_mhz)
    words = dict(line.split()[1:3] for line in back.splitlines() if line.startswith("word: CLK"))  # all zeros are left out
    for parameter, value in pll.parameters:
        assert int(words.get(parameter, "0"), 2) == int(value) - parameter.endswith("DIV")


@pytest.mark.slow
def test_a_slower_clock_tree_is_respected(tmp_path: Path) -> None:
    board = replace(boards.get("icebreaker"), limit_hz=20e6)
    assert build(Core(), board, tmp_path / "net").sync_mhz == 19.875
