"""The encoder that turns volleys into events."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.streams import EventFormat, VolleyFormat, index_bits


class SpikeEncoder(wiring.Component):
    """Sends a volley's values that are not zero one a cycle in order of channels, and a mark after the last volley of a step.

    A volley of zeros takes one cycle, a mark another.

    Members
    -------
    volleys: In; ``lanes`` are a power of two.
    events: Out.
    """

    def __init__(self, spec: VolleyFormat):
        self.spec = spec
        super().__init__({"volleys": In(spec.signature), "events": Out(EventFormat(spec.shape, spec.value, spec.steps).signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        lanes = self.spec.lanes
        volley, pending = Signal(self.spec.layout), Signal(lanes)  # pending: values to send
        lane = Signal(index_bits(lanes))
        for index in reversed(range(lanes)):
            with m.If(pending[index]):
                m.d.comb += lane.eq(index)
        rest = Signal(lanes)
        values = Array(volley.values[index] for index in range(lanes))
        m.d.comb += [
            rest.eq(pending & (pending - 1)),
            self.events.valid.eq(pending.any() | volley.mark),
            self.events.p.mark.eq(~pending.any()),
            self.events.p.step.eq(volley.step),
            self.events.p.channel.eq(Cat(lane[: lanes.bit_length() - 1], volley.part)),
            self.events.p.x.eq(volley.x),
            self.events.p.y.eq(volley.y),
            self.events.p.value.eq(values[lane]),
            self.volleys.ready.eq(~self.events.valid | (self.events.ready & Mux(volley.mark, ~pending.any(), ~rest.any()))),
        ]
        with m.If(self.events.valid & self.events.ready):
            m.d.sync += pending.eq(rest)
        with m.If(self.volleys.ready):
            m.d.sync += [
                volley.eq(Mux(self.volleys.valid, self.volleys.payload, 0)),
                pending.eq(Mux(self.volleys.valid & ~self.volleys.p.empty, Cat(value != 0 for value in self.volleys.p.values), 0)),
            ]
        return m
