"""A core that adds pixels up, to try the link and a board without a network; the first pixel can make it misbehave."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.link import LinkSpec
from rtl_gen.gates.readout import WORD

LOGITS = 3
HANG, EARLY, SLOW, LATE = 255, 254, 253, 252
"""First pixels that make it stay silent for ever, end the result early, take 8 cycles times the sum, or end it a word late."""


def dummy_answer(image: Sequence[int], beat: int) -> list[int]:
    """The words of `DummyCore`'s result for an image that lets it answer."""
    total, first = sum(image), image[0]
    return [total, -total, first - 1000, total % 2, -(-len(image) // beat), len(image)]


class DummyCore(wiring.Component):
    """Takes an image a beat a cycle, then tells `dummy_answer`, a word a cycle. ``spec`` as of the link."""

    def __init__(self, spec: LinkSpec):
        self.spec = spec
        super().__init__({"pixels": In(spec.pixel_signature), "result": Out(WORD), "busy": Out(1), "error": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pixels = self.pixels.p
        total, beats, first, word = Signal(signed(32)), Signal(14), Signal(8), Signal(3)
        wait = Signal(24)
        end = Mux(first == EARLY, 2, Mux(first == LATE, 6, 5))
        m.d.comb += self.busy.eq(1)
        with m.FSM():
            with m.State("TAKE"):
                m.d.comb += [self.pixels.ready.eq(1), self.busy.eq(beats != 0)]
                with m.If(self.pixels.valid):
                    m.d.sync += [total.eq(total + sum(pixels.data)), beats.eq(beats + 1)]
                    with m.If(beats == 0):
                        m.d.sync += first.eq(pixels.data[0])
                    with m.If(pixels.last):
                        m.d.sync += wait.eq(0)
                        m.next = "WAIT"
            with m.State("WAIT"):
                m.d.sync += wait.eq(wait + 1)
                with m.If(((first != SLOW) | (wait == total << 3)) & (first != HANG)):
                    m.next = "TELL"
            with m.State("TELL"):
                m.d.comb += [self.result.valid.eq(1), self.result.p.last.eq(word == end)]
                with m.Switch(word):
                    for index, value in enumerate([total, -total, first - 1000, total[:1], beats, self.spec.pixels]):
                        with m.Case(index):
                            m.d.comb += self.result.p.data.eq(value)
                with m.If(self.result.ready):
                    m.d.sync += word.eq(word + 1)
                    with m.If(word == end):
                        m.d.sync += [total.eq(0), beats.eq(0), word.eq(0)]
                        m.next = "TAKE"
        m.d.comb += self.error.eq(first == EARLY)
        return m
