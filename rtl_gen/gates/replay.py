"""The events of a cell once more, for layers with more output channels than lanes."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.streams import index_bits
from rtl_gen.gates.walk import CellFormat


@dataclass(frozen=True)
class ReplaySpec:
    """Cells of ``format``, each sent ``passes`` times; a cell holds at most one event of each of its sources."""

    format: CellFormat
    passes: int

    @property
    def depth(self) -> int:
        """Sources of a cell."""
        geometry = self.format.geometry
        return geometry.sources if geometry.flat else geometry.source[0] * geometry.stride[1]


class Replay(wiring.Component):
    """Passes a cell's events on while it keeps them, then repeats them ``passes - 1`` times, each pass ending in the cell's mark.

    An ``empty`` mark is not repeated. A cycle an event, a cycle a mark.

    Members
    -------
    i, o: streams of cells.
    """

    def __init__(self, spec: ReplaySpec):
        self.spec = spec
        super().__init__({"i": In(spec.format.signature), "o": Out(spec.format.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        if self.spec.passes == 1:
            wiring.connect(m, wiring.flipped(self.i), wiring.flipped(self.o))
            return m
        layout = self.spec.format.layout
        kept = data.StructLayout({name: layout.members[name] for name in ("row", "set", "value")})
        m.submodules.events = events = Memory(shape=kept, depth=self.spec.depth, init=[])
        write, read = events.write_port(), events.read_port()

        count = Signal(range(self.spec.depth + 1))  # events kept of this cell
        item, following = Signal.like(count), Signal.like(count)  # what is sent, and next cycle: an event, or, after all, the mark
        passes = Signal(range(self.spec.passes))  # passes begun after the first
        cell = Signal(layout)  # the mark
        fire = self.o.valid & self.o.ready
        m.d.comb += [
            write.addr.eq(count[: index_bits(self.spec.depth)]),
            read.addr.eq(following[: index_bits(self.spec.depth)]),
            *(write.data[name].eq(self.i.p[name]) for name in kept.members),
        ]
        m.d.sync += item.eq(following)
        with m.FSM():
            with m.State("pass"):
                m.d.comb += [self.o.valid.eq(self.i.valid), self.i.ready.eq(self.o.ready), self.o.payload.eq(self.i.payload)]
                m.d.comb += write.en.eq(fire & ~self.i.p.mark)
                m.d.sync += [passes.eq(1), cell.eq(self.i.payload)]
                with m.If(fire & ~self.i.p.mark):
                    m.d.sync += count.eq(count + 1)
                with m.Elif(fire & ~self.i.p.empty):
                    m.next = "repeat"
            with m.State("repeat"):
                end = item == count
                m.d.comb += [
                    following.eq(Mux(fire, Mux(end, 0, item + 1), item)),
                    self.o.valid.eq(1),
                    self.o.payload.eq(cell),
                    self.o.p.mark.eq(end),
                    *(self.o.p[name].eq(read.data[name]) for name in kept.members),
                ]
                with m.If(fire & end):
                    m.d.sync += passes.eq(passes + 1)
                    with m.If(passes == self.spec.passes - 1):
                        m.d.sync += count.eq(0)
                        m.next = "pass"
        return m
