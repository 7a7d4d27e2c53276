"""What travels between the parts: events, volleys and currents, each on an `amaranth.lib.stream`.

Once ``valid`` is up, ``valid`` and payload hold until ``ready``; back-pressure changes timing only. The steps of an image
are told apart in-band: the last transfer of a step has ``mark`` set.
"""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Mux, Shape, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from casc_hw.fixed import Interval

STEP = data.StructLayout({"first": 1, "wake": 1, "final": 1, "active": 1})
"""A step, told with its ``mark``: the image's first; wake or sleep; no wake step follows; a neuron has spiked in it so far."""


def shape_of(interval: Interval) -> Shape:
    """The Amaranth shape that holds ``interval``."""
    return signed(interval.bits) if interval.signed else unsigned(interval.bits)


def index_bits(size: int) -> int:
    """Bits of an index into ``size`` places, at least 1."""
    return max(ceil_log2(size), 1)


def rom_attributes(depth: int) -> dict[str, str]:
    """Attributes of a table of constants: at most 16 rows take one 4-input look-up table a bit, more go where yosys likes."""
    return {"rom_style": "logic"} if depth <= 16 else {}


@dataclass(frozen=True)
class EventFormat:
    """Events of ``size`` sources with values in ``value``.

    A transfer is either an event (``address``, ``value``) or, with ``mark``, the end of a step.
    """

    size: int
    value: Interval

    @property
    def layout(self) -> data.StructLayout:
        return data.StructLayout({"mark": 1, "step": STEP, "address": unsigned(index_bits(self.size)), "value": shape_of(self.value)})

    @property
    def signature(self) -> stream.Signature:
        return stream.Signature(self.layout)


@dataclass(frozen=True)
class CurrentFormat:
    """Currents of ``size`` neurons, ``lanes`` a transfer, in ``width``-bit two's complement.

    A step is ``chunks`` transfers in order, the last with ``mark``; or one transfer with ``empty`` and ``mark``: all zero.
    """

    size: int
    lanes: int
    width: int

    @property
    def chunks(self) -> int:
        return -(-self.size // self.lanes)

    @property
    def layout(self) -> data.StructLayout:
        return data.StructLayout({"mark": 1, "empty": 1, "step": STEP, "x": data.ArrayLayout(signed(self.width), self.lanes)})

    @property
    def signature(self) -> stream.Signature:
        return stream.Signature(self.layout)


class Skid(wiring.Component):
    """Two registers that cut a stream's ``ready`` (and payload) from what comes before: one cycle later, full throughput.

    Members
    -------
    i, o: streams of ``signature``.
    """

    def __init__(self, signature: stream.Signature):
        super().__init__({"i": In(signature), "o": Out(signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spare, held = Signal.like(self.i.payload, reset_less=True), Signal()
        m.d.comb += self.i.ready.eq(~held)
        with m.If(~self.o.valid | self.o.ready):
            m.d.sync += [self.o.valid.eq(held | self.i.valid), self.o.payload.eq(Mux(held, spare, self.i.payload)), held.eq(0)]
        with m.Elif(self.i.valid & ~held):
            m.d.sync += held.eq(1)
        with m.If(~held):
            m.d.sync += spare.eq(self.i.payload)
        return m


class Throttle(wiring.Component):
    """A wire that stands still while ``stall`` is up, for benches: no transfer is offered anew, none is taken back.

    Members
    -------
    i, o: streams of ``signature``.
    stall: a transfer that was not offered before waits.
    """

    def __init__(self, signature: stream.Signature):
        super().__init__({"i": In(signature), "o": Out(signature), "stall": In(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        offered = Signal()
        go = ~self.stall | offered
        m.d.comb += [self.o.valid.eq(self.i.valid & go), self.i.ready.eq(self.o.ready & go), self.o.payload.eq(self.i.payload)]
        m.d.sync += offered.eq(self.o.valid & ~self.o.ready)
        return m
