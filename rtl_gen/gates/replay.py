"""The events of a step once more, for layers with more outputs than lanes."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.streams import STEP, EventFormat, index_bits


@dataclass(frozen=True)
class ReplaySpec:
    """Events of ``format``, each step's sent ``passes`` times; a step holds at most one event of each source."""

    format: EventFormat
    passes: int


class Replay(wiring.Component):
    """Passes a step's events on while it keeps them, then repeats them ``passes - 1`` times, each pass ending in a mark.

    A step without events is one mark, not repeated. One event a cycle; a repeated pass costs two cycles more.

    Members
    -------
    i, o: event streams.
    """

    def __init__(self, spec: ReplaySpec):
        self.spec = spec
        super().__init__({"i": In(spec.format.signature), "o": Out(spec.format.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.spec.passes == 1:
            wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
            return m
        size, layout = self.spec.format.size, self.spec.format.layout
        kept = data.StructLayout({"address": layout.members["address"], "value": layout.members["value"]})
        m.submodules.events = events = Memory(shape=kept, depth=size, init=[])
        write, read = events.write_port(), events.read_port()

        count = Signal(range(size + 1))  # events kept of this step
        index = Signal(range(size + 1))  # next event to read
        passes = Signal(range(self.spec.passes))  # passes begun after the first
        loaded = Signal()  # read.data is an event to send
        step = Signal(STEP)
        m.d.comb += [
            write.addr.eq(count[: index_bits(size)]),
            write.data.address.eq(self.i.p.address),
            write.data.value.eq(self.i.p.value),
            read.addr.eq(index[: index_bits(size)]),
        ]
        with m.FSM():
            with m.State("pass"):
                fire = self.i.valid & self.i.ready
                m.d.comb += [self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready), self.o.payload.eq(self.i.payload)]
                m.d.comb += write.en.eq(fire & ~self.i.p.mark)
                m.d.sync += [index.eq(0), loaded.eq(0), passes.eq(1)]
                with m.If(fire & ~self.i.p.mark):
                    m.d.sync += count.eq(count + 1)
                with m.Elif(fire & (count != 0)):
                    m.d.sync += step.eq(self.i.p.step)
                    m.next = "repeat"
            with m.State("repeat"):
                end = index == count
                m.d.comb += [
                    self.o.valid.eq(loaded | end),
                    self.o.p.mark.eq(~loaded),
                    self.o.p.step.eq(step),
                    self.o.p.address.eq(read.data.address),
                    self.o.p.value.eq(read.data.value),
                    read.en.eq(~loaded | self.o.ready),
                ]
                with m.If(read.en):
                    m.d.sync += [loaded.eq(~end), index.eq(index + ~end)]
                with m.If(self.o.valid & self.o.ready & self.o.p.mark):
                    m.d.sync += [index.eq(0), loaded.eq(0), passes.eq(passes + 1)]
                    with m.If(passes == self.spec.passes - 1):
                        m.d.sync += count.eq(0)
                        m.next = "pass"
        return m
