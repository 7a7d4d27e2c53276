"""A board: the device's budget, its pins, its clocks, and how its place-and-route is called."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from amaranth.build.plat import Platform
from amaranth.hdl import ClockDomain, Elaboratable, Module, Value
from amaranth.lib import io

from boards.clock import Ecp5Clocks, Ice40Clocks, Pll, ecp5_pll, ice40_pll
from rtl_gen.budget import Budget


class Core(Protocol):
    """What goes on a board: an Elaboratable with the clock domains ``io`` and ``sync`` given and these three ports.

    ``rx`` is the UART's input straight from the pin, not yet synchronised to ``io``; ``tx`` its output; ``leds`` any number of bits.
    A core that has a ``flash`` (`rtl_gen.gates.flash.PINS`) gets the board's SPI flash.
    """

    rx: Any
    tx: Any
    leds: Any


@dataclass(frozen=True)
class Pins:
    """Signals behind a board's buffers: ``rx`` (asynchronous), ``tx``, and one ``leds`` entry per LED, 1 = on."""

    rx: Value
    tx: Value
    leds: tuple[Value, ...]


@dataclass(frozen=True)
class Board:
    """One board with one device on it.

    ``source_hz`` is the oscillator, ``limit_hz`` the fastest the device's clock tree may run (data sheet), ``nextpnr`` the device's
    options for nextpnr.
    """

    name: str
    title: str
    family: Literal["ecp5", "ice40"]
    budget: Budget
    amaranth_platform: Callable[[], Platform]
    source_hz: float
    limit_hz: float
    leds: int
    nextpnr: tuple[str, ...]

    def platform(self) -> Platform:
        """A fresh Amaranth platform; one serves for one build only."""
        return self.amaranth_platform()

    def pll(self, wish_hz: float) -> Pll:
        """The PLL setting whose output is nearest to and not above ``wish_hz`` (Hz). Raises :class:`CascError` below its range."""
        return {"ecp5": ecp5_pll, "ice40": ice40_pll}[self.family](self.source_hz, wish_hz)

    def connect(self, m: Module, platform: Platform) -> Pins:
        """Add the clocks ``io`` and ``sync`` and the pins' buffers to ``m``, and return what is behind the buffers.

        The PLL's frequency here is a placeholder: the build writes the chosen one into the netlist.
        """
        m.domains += [ClockDomain("io"), ClockDomain("sync")]
        clocks = {"ecp5": Ecp5Clocks, "ice40": Ice40Clocks}[self.family]
        m.submodules.clocks = clocks(self.pll(2 * self.source_hz))
        uart = platform.request("uart", 0, dir={wire.name: "-" for wire in platform.lookup("uart").ios})  # "-": no hidden buffers
        m.submodules.rx = rx = io.Buffer("i", uart.rx)
        m.submodules.tx = tx = io.Buffer("o", uart.tx)
        leds = []
        for number in range(self.leds):
            m.submodules[f"led{number}"] = led = io.Buffer("o", platform.request("led", number, dir="-"))
            leds.append(led.o)
        return Pins(rx.i, tx.o, tuple(leds))

    def connect_flash(self, m: Module, platform: Platform, flash: Any) -> None:
        """Add the buffers of the board's SPI flash to ``m`` and connect them to ``flash``; write protection and hold stay off."""
        names = [wire.name for wire in platform.lookup("spi_flash_1x").ios]
        pins = platform.request("spi_flash_1x", 0, dir=dict.fromkeys(names, "-"))
        for name in names:
            m.submodules[f"flash_{name}"] = buffer = io.Buffer("i" if name == "cipo" else "o", getattr(pins, name))
            if name == "cipo":
                m.d.comb += flash.cipo.eq(buffer.i)
            elif name in ("cs", "clk", "copi"):
                m.d.comb += buffer.o.eq(getattr(flash, name))

    def mount(self, core: Core) -> Elaboratable:
        """The top of the chip: ``core`` on this board's pins and clocks."""
        return Mounted(self, core)


class Mounted(Elaboratable):
    """A :class:`Core` on a :class:`Board`: LED ``i`` shows bit ``i`` of ``core.leds`` as far as both go, the others stay dark."""

    def __init__(self, board: Board, core: Core):
        self.board = board
        self.core = core

    def elaborate(self, platform: Platform) -> Module:
        m = Module()
        pins = self.board.connect(m, platform)
        m.submodules.core = self.core
        m.d.comb += [self.core.rx.eq(pins.rx), pins.tx.eq(self.core.tx)]
        if hasattr(self.core, "flash"):
            self.board.connect_flash(m, platform, self.core.flash)
        m.d.comb += [pin.eq(bit) for pin, bit in zip(pins.leds, Value.cast(self.core.leds), strict=False)]
        return m
