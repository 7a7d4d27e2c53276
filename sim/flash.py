"""A serial flash that holds weights, for benches and the virtual board."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In

from rtl_gen.gates.flash import PINS, READ, WAKE, FlashSpec
from rtl_gen.gates.streams import index_bits

ASLEEP = 40
"""Cycles of ``io`` after the command that wakes it in which it hears no other."""


class FlashModel(wiring.Component):
    """``words`` from ``spec.offset`` on, elsewhere as erased (ones); asleep at first. SPI mode 0, at half of ``io`` at most.

    Members
    -------
    pins: In, see `rtl_gen.gates.flash.PINS`; ``cipo`` is one unless it answers.
    """

    def __init__(self, spec: FlashSpec, words: Sequence[int]):
        self.spec, self.words = spec, list(words)
        super().__init__({"pins": In(PINS)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pins, words = self.pins, self.words
        m.submodules.contents = contents = Memory(shape=16, depth=len(words), init=words)
        read = contents.read_port(domain="comb")
        before, selected, awake, woken = Signal(), Signal(), Signal(), Signal(range(ASLEEP + 1))
        heard, received = Signal(range(33)), Signal(32)  # bits of a command, how many
        address = Signal(27)  # in bits
        at = Signal(28)
        reading = (heard == 32) & (received[24:] == READ) & awake
        inside = (at[:27] >= 8 * self.spec.offset) & (at[:27] < 8 * self.spec.offset + 16 * len(words))
        within = Signal(27)
        m.d.comb += [
            at.eq(address),
            within.eq(at - 8 * self.spec.offset),
            read.addr.eq(within[4:][: index_bits(len(words))]),
            pins.cipo.eq(Mux(reading & inside, read.data.bit_select(~within[:4], 1), 1)),
        ]
        m.d.io += [before.eq(pins.clk), selected.eq(pins.cs)]
        with m.If(woken != 0):
            m.d.io += [woken.eq(woken - 1), awake.eq(woken == 1)]
        with m.If(~pins.cs):
            m.d.io += heard.eq(0)
            with m.If(selected & (heard == 8) & (received[:8] == WAKE)):
                m.d.io += woken.eq(ASLEEP)
        with m.Elif(pins.clk & ~before):
            with m.If(heard < 32):
                m.d.io += [received.eq(Cat(pins.copi, received)), heard.eq(heard + 1), address.eq(Cat(0, 0, 0, pins.copi, received[:23]))]
            with m.Else():
                m.d.io += address.eq(address + 1)
        return m
