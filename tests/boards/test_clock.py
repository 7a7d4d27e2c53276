"""The PLLs' arithmetic against the data sheets' limits, the clock generators against their promises, and the table of boards."""

from __future__ import annotations

import pytest
from amaranth.hdl import Elaboratable, Module, Signal

import boards
from boards.clock import ecp5_pll, ice40_pll
from casc_hw.errors import CascError

WISHES = [mhz * 1e6 / 4 for mhz in range(4 * 5, 4 * 400 + 1)]


class Core(Elaboratable):
    """A register in each domain, and the three ports a core must have."""

    def __init__(self) -> None:
        self.rx, self.tx, self.leds = Signal(init=1), Signal(init=1), Signal(3)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.d.io += self.tx.eq(self.rx)
        m.d.sync += self.leds.eq(self.leds + 1)
        return m


@pytest.mark.parametrize("source", [12e6, 25e6, 50e6])
def test_ecp5_settings_keep_the_limits(source: float) -> None:
    before = 0.0
    for wish in WISHES:
        pll = ecp5_pll(source, wish)
        p = {name: int(value) for name, value in pll.parameters}
        detector = source / p["CLKI_DIV"]
        vco = detector * p["CLKFB_DIV"] * p["CLKOP_DIV"]
        assert 10e6 <= detector <= 400e6
        assert 400e6 <= vco <= 800e6
        assert 3.125e6 <= vco / p["CLKOP_DIV"] <= 400e6
        assert 3.125e6 <= pll.hz <= 400e6
        assert all(1 <= p[name] <= 128 for name in ("CLKI_DIV", "CLKOP_DIV", "CLKOS_DIV"))
        assert 1 <= p["CLKFB_DIV"] <= 80
        assert p["CLKOP_CPHASE"] == p["CLKOP_DIV"] - 1
        assert p["CLKOS_CPHASE"] == p["CLKOS_DIV"] - 1
        assert pll.hz == pytest.approx(vco / p["CLKOS_DIV"])
        assert before <= pll.hz <= wish
        before = pll.hz


@pytest.mark.parametrize("source", [12e6, 16e6, 48e6])
def test_ice40_settings_keep_the_limits(source: float) -> None:
    before = 0.0
    for wish in WISHES[4 * 4 :]:
        pll = ice40_pll(source, wish)
        p = dict(pll.parameters)
        half = {"GENCLK": 1, "GENCLK_HALF": 2}[str(p["PLLOUT_SELECT_PORTB"])]
        r, f, q, filter_range = (int(p[name]) for name in ("DIVR", "DIVF", "DIVQ", "FILTER_RANGE"))
        detector = source / (r + 1)
        vco = detector * (f + 1)
        assert 10e6 <= detector <= 133e6
        assert 533e6 <= vco <= 1066e6
        assert 16e6 <= vco / 2**q <= 275e6
        assert 0 <= r < 16
        assert 0 <= f < 128
        assert 1 <= q <= 6
        assert 1 <= filter_range <= 6
        assert pll.hz == pytest.approx(vco / 2**q / half)
        assert before <= pll.hz <= wish
        before = pll.hz


def test_icepll_agrees() -> None:
    """``icepll -i 12 -o 50`` says DIVF 66, DIVQ 4, FILTER_RANGE 1 for 50.25 MHz."""
    assert dict(ice40_pll(12e6, 50.3e6).parameters) == {
        "DIVR": 0,
        "DIVF": 66,
        "DIVQ": 4,
        "FILTER_RANGE": 1,
        "PLLOUT_SELECT_PORTB": "GENCLK",
    }


def test_the_steps_are_fine() -> None:
    """Between 20 and 200 MHz a wish is missed by at most a fiftieth on the ULX3S, a sixteenth on the iCEBreaker."""
    for wish in (mhz * 1e6 for mhz in range(20, 201)):
        assert ecp5_pll(25e6, wish).hz >= wish * (1 - 1 / 50)
        assert ice40_pll(12e6, wish).hz >= wish * (1 - 1 / 16)


@pytest.mark.parametrize("pll", [ecp5_pll, ice40_pll])
def test_a_wish_below_the_range_is_refused(pll: object) -> None:
    with pytest.raises(CascError, match=r"clock: 3\.000 MHz is below .*, the lowest"):
        pll(25e6, 3e6)  # type: ignore[operator]


def test_boards_by_name() -> None:
    names = [board.name for board in boards.all_boards()]
    assert names == ["icebreaker", "ulx3s-12f", "ulx3s-25f", "ulx3s-45f", "ulx3s-85f"]
    assert [boards.get(name).name for name in names] == names
    assert boards.get("ulx3s").budget.name == "LFE5U-85F"
    with pytest.raises(CascError, match="'arty' is not known; choose one of icebreaker, ulx3s, ulx3s-12f"):
        boards.get("arty")


@pytest.mark.parametrize("board", boards.all_boards(), ids=lambda board: board.name)
def test_a_core_reaches_the_pins(board: boards.Board) -> None:
    """The oscillator is where Amaranth says, and only the pins asked for are in the constraints, with the oscillator's frequency."""
    assert board.platform().default_clk_frequency == board.source_hz
    plan = board.platform().prepare(board.mount(Core()), "top", emit_src=False)
    constraints = plan.files["top.lpf" if board.family == "ecp5" else "top.pcf"]
    assert {"uart_0__rx__io", "uart_0__tx__io", "led_0__io"} <= set(constraints.replace('"', " ").split())
    assert "rts" not in constraints
    assert f"{board.source_hz if board.family == 'ecp5' else board.source_hz / 1e6}" in constraints


@pytest.mark.parametrize("board", boards.all_boards(), ids=lambda board: board.name)
def test_the_netlist_has_no_paths_of_this_computer(board: boards.Board) -> None:
    plan = board.platform().prepare(board.mount(Core()), "top", emit_src=False)
    assert "\\src" not in plan.files["top.il"]
    assert ".py" not in plan.files["top.il"]
