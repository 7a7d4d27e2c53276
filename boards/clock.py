"""Clocks: ``io`` is the board's oscillator, ``sync`` comes out of the PLL.

:func:`ecp5_pll` and :func:`ice40_pll` are the arithmetic, without a gate: a wish in, the best frequency not above it and the cell's
parameters out. :class:`Ecp5Clocks` and :class:`Ice40Clocks` are the gates. The frequency of ``sync`` is decided after routing, by
writing other parameters into the routed netlist (``rtl_gen.build``), so nothing in the design may depend on it.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import cache
from itertools import product
from math import ceil
from operator import itemgetter
from typing import Any

from amaranth.build.plat import Platform
from amaranth.hdl import ClockDomain, ClockSignal, Const, Elaboratable, Instance, Module, ResetSignal, Signal
from amaranth.lib import io
from amaranth.lib.cdc import ResetSynchronizer

from casc_hw.errors import CascError

POWER_ON_SECONDS = 15e-6
"""Reset after configuration. The block RAMs of an iCE40 read as zero for the first 3 us; five times that, as Amaranth does."""

Parameters = tuple[tuple[str, int | str], ...]


@dataclass(frozen=True)
class Pll:
    """One setting of a PLL: the frequency in, the frequency out (both in Hz), and the parameters of the cell that make it so."""

    source_hz: float
    hz: float
    parameters: Parameters


Settings = tuple[tuple[float, float, Parameters], ...]
"""Every legal setting as (output in Hz, rank, parameters), in that order; of equal outputs the last is the best."""


def _best(name: str, source_hz: float, wish_hz: float, settings: Settings) -> Pll:
    """The last setting not above the wish."""
    number = bisect_right(settings, wish_hz, key=itemgetter(0))
    if number == 0:
        raise CascError(
            f"clock: {wish_hz / 1e6:.3f} MHz is below {settings[0][0] / 1e6:.3f} MHz, the lowest the {name} PLL makes of this "
            f"board's oscillator; make the design faster, for example with fewer lanes or narrower weights"
        )
    hz, _, parameters = settings[number - 1]
    return Pll(source_hz, hz, parameters)


def ecp5_pll(source_hz: float, wish_hz: float) -> Pll:
    """The ECP5 PLL setting nearest to and not above ``wish_hz`` (Hz), fed with ``source_hz``.

    The feedback runs inside the PLL from CLKOP, and CLKOS, with its own divider, is the output. Where ``I``, ``F``, ``P`` and ``S``
    are CLKI_DIV, CLKFB_DIV, CLKOP_DIV and CLKOS_DIV::

        pfd = source / I          10..400 MHz
        vco = pfd * F * P        400..800 MHz        I, P, S in 1..128, F in 1..80
        out = vco / S          3.125..400 MHz        and so is CLKOP, vco / P

    Among equal outputs the fastest phase detector and then the fastest VCO is taken: both mean less jitter.
    Source: Lattice FPGA-DS-02012 (sysCLOCK PLL timing), FPGA-TN-02200. Raises :class:`CascError` for a wish below the range.
    """
    return _best("ECP5", source_hz, wish_hz, _ecp5_settings(source_hz))


@cache
def _ecp5_settings(source_hz: float) -> Settings:
    settings = []
    for i in range(1, int(source_hz // 10e6) + 1):
        for multiple in range(ceil(400e6 * i / source_hz), int(800e6 * i / source_hz) + 1):
            vco = source_hz * multiple / i
            dividers = [p for p in range(1, 129) if multiple % p == 0 and multiple // p <= 80 and 3.125e6 <= vco / p <= 400e6]
            for p in dividers[:1]:
                settings += [
                    (
                        vco / s,
                        vco / 1e6 - 1000 * i,
                        (
                            ("CLKI_DIV", i),
                            ("CLKFB_DIV", multiple // p),
                            ("CLKOP_DIV", p),
                            ("CLKOP_CPHASE", p - 1),
                            ("CLKOS_DIV", s),
                            ("CLKOS_CPHASE", s - 1),
                        ),
                    )
                    for s in range(1, 129)
                    if 3.125e6 <= vco / s <= 400e6
                ]
    return tuple(sorted(settings))


def ice40_pll(source_hz: float, wish_hz: float) -> Pll:
    """The iCE40 PLL setting nearest to and not above ``wish_hz`` (Hz), fed with ``source_hz`` from the PLL's own pad.

    With the feedback path SIMPLE, where ``R``, ``F`` and ``Q`` are DIVR, DIVF and DIVQ::

        pfd = source / (R + 1)       10..133 MHz
        vco = pfd * (F + 1)         533..1066 MHz
        out = vco / 2**Q             16..275 MHz     R in 0..15, F in 0..127, Q in 1..6

    and half of that with GENCLK_HALF, taken only where nothing else gives it. FILTER_RANGE follows the PFD as in ``icepll``.
    Source: Lattice FPGA-DS-02008 (sysCLOCK PLL timing), FPGA-TN-02052. Raises :class:`CascError` for a wish below the range.
    """
    return _best("iCE40", source_hz, wish_hz, _ice40_settings(source_hz))


@cache
def _ice40_settings(source_hz: float) -> Settings:
    settings: list[tuple[float, float, Parameters]] = []
    for r in range(min(16, int(source_hz // 10e6))):
        pfd = source_hz / (r + 1)
        filter_range = 1 + sum(pfd >= limit for limit in (17e6, 26e6, 44e6, 66e6, 101e6))
        for f, q in product(range(128), range(1, 7)):
            out = pfd * (f + 1) / 2**q
            if pfd <= 133e6 and 533e6 <= out * 2**q <= 1066e6 and 16e6 <= out <= 275e6:
                settings += [
                    (
                        out / half,
                        -100 * half - r,
                        (("DIVR", r), ("DIVF", f), ("DIVQ", q), ("FILTER_RANGE", filter_range), ("PLLOUT_SELECT_PORTB", select)),
                    )
                    for half, select in ((1, "GENCLK"), (2, "GENCLK_HALF"))
                    if half == 1 or out < 32e6
                ]
    return tuple(sorted(settings))


def _drive_domains(m: Module, source_hz: float, io_clk: Any, sync_clk: Any, locked: Any) -> None:
    """Clock and reset ``io`` and ``sync``: ``io`` leaves reset after the power-on time, ``sync`` then, once the PLL has locked."""
    m.domains.power_on = ClockDomain("power_on", reset_less=True, local=True)
    m.d.comb += [ClockSignal("io").eq(io_clk), ClockSignal("sync").eq(sync_clk), ClockSignal("power_on").eq(io_clk)]
    cycles = ceil(POWER_ON_SECONDS * source_hz)
    waited, ready = Signal(range(cycles)), Signal()
    with m.If(waited == cycles - 1):
        m.d.power_on += ready.eq(1)
    with m.Else():
        m.d.power_on += waited.eq(waited + 1)
    m.d.comb += ResetSignal("io").eq(~ready)
    m.submodules.sync_reset = ResetSynchronizer(~(ready & locked), domain="sync")


class Ecp5Clocks(Elaboratable):
    """Drives the domains ``io`` and ``sync``, which its parent defines, on an ECP5 board.

    The lock goes to a reset synchroniser and nowhere else. The charge-pump attributes are those of Project Trellis' ``ecppll``.
    """

    def __init__(self, pll: Pll):
        self.pll = pll

    def elaborate(self, platform: Platform) -> Module:
        m = Module()
        m.submodules.oscillator = oscillator = io.Buffer("i", platform.request(platform.default_clk, dir="-"))
        sync_clk, feedback, locked = Signal(), Signal(), Signal()
        m.submodules.pll = Instance(
            "EHXPLLL",
            **{f"p_{name}": value for name, value in self.pll.parameters},
            p_PLLRST_ENA="DISABLED",
            p_INTFB_WAKE="DISABLED",
            p_STDBY_ENABLE="DISABLED",
            p_DPHASE_SOURCE="DISABLED",
            p_OUTDIVIDER_MUXA="DIVA",
            p_OUTDIVIDER_MUXB="DIVB",
            p_OUTDIVIDER_MUXC="DIVC",
            p_OUTDIVIDER_MUXD="DIVD",
            p_CLKOP_ENABLE="ENABLED",
            p_CLKOP_FPHASE=0,
            p_CLKOS_ENABLE="ENABLED",
            p_CLKOS_FPHASE=0,
            p_FEEDBK_PATH="INT_OP",
            a_ICP_CURRENT="12",
            a_LPF_RESISTOR="8",
            a_MFG_ENABLE_FILTEROPAMP="1",
            a_MFG_GMCREF_SEL="2",
            i_CLKI=oscillator.i,
            i_CLKFB=feedback,
            o_CLKINTFB=feedback,
            o_CLKOS=sync_clk,
            o_LOCK=locked,
            i_RST=Const(0),
            i_STDBY=Const(0),
            i_PHASESEL0=Const(0),
            i_PHASESEL1=Const(0),
            i_PHASEDIR=Const(1),
            i_PHASESTEP=Const(1),
            i_PHASELOADREG=Const(1),
            i_PLLWAKESYNC=Const(0),
            i_ENCLKOP=Const(0),
            i_ENCLKOS=Const(0),
        )
        _drive_domains(m, self.pll.source_hz, oscillator.i, sync_clk, locked)
        return m


class Ice40Clocks(Elaboratable):
    """Drives the domains ``io`` and ``sync``, which its parent defines, on an iCE40 board whose oscillator sits on the PLL's own pad.

    That pad cannot be an ordinary input while the PLL runs, so the PLL's first output hands the oscillator through as ``io``.
    """

    def __init__(self, pll: Pll):
        self.pll = pll

    def elaborate(self, platform: Platform) -> Module:
        m = Module()
        io_clk, sync_clk, locked = Signal(), Signal(), Signal()
        m.submodules.pll = Instance(
            "SB_PLL40_2_PAD",
            **{
                f"p_{name}": Const(value, {"DIVR": 4, "DIVF": 7}.get(name, 3)) if isinstance(value, int) else value
                for name, value in self.pll.parameters
            },
            p_FEEDBACK_PATH="SIMPLE",
            i_PACKAGEPIN=platform.request(platform.default_clk, dir="-").io,
            i_RESETB=Const(1),
            i_BYPASS=Const(0),
            o_PLLOUTGLOBALA=io_clk,
            o_PLLOUTGLOBALB=sync_clk,
            o_LOCK=locked,
        )
        _drive_domains(m, self.pll.source_hz, io_clk, sync_clk, locked)
        return m
