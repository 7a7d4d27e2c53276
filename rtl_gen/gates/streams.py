"""What travels between the parts: events, currents and volleys, each on an `amaranth.lib.stream`.

Once ``valid`` is up, ``valid`` and payload hold until ``ready``; back-pressure changes timing only. The steps of an image
are told apart in-band: the last transfer of a step has ``mark`` set. In count code a step is a whole image.

A map has a shape (channels, height, width). Everything of a step travels in wire order: row by row, pixel by pixel, the
channels of a pixel side by side.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from amaranth.hdl import Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out
from amaranth.utils import ceil_log2

from casc_hw.fixed import Interval

MapShape = tuple[int, int, int]
"""(channels, height, width)."""

STEP = data.StructLayout({"first": 1, "wake": 1, "final": 1, "active": 1})
"""A step, told with its ``mark``: the image's first; wake or sleep; no wake step follows; a neuron has spiked in it so far."""


def step_layout(steps: bool) -> data.StructLayout:
    """What a format with ``steps`` tells of a step, `STEP`; where a step is an image there is nothing to tell."""
    return STEP if steps else data.StructLayout({})


def shape_of(interval: Interval) -> Shape:
    """The Amaranth shape that holds ``interval``."""
    return signed(interval.bits) if interval.signed else unsigned(interval.bits)


def index_bits(size: int) -> int:
    """Bits of an index into ``size`` places, at least 1."""
    return max(ceil_log2(size), 1)


def place_bits(size: int) -> int:
    """Bits of a coordinate that takes ``size`` values: none for one."""
    return ceil_log2(size)


def rom_attributes(depth: int) -> dict[str, str]:
    """Attributes of a table of constants: at most 16 rows take one 4-input look-up table a bit, more go where yosys likes."""
    return {"rom_style": "logic"} if depth <= 16 else {}


@dataclass(frozen=True)
class EventFormat:
    """Events of the sources of a map of ``shape`` with values in ``value``.

    A transfer is either an event (``y``, ``x``, ``channel``, ``value``) or, with ``mark``, the end of a step. ``steps``: see `step_layout`.
    """

    shape: MapShape
    value: Interval
    steps: bool = True

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def layout(self) -> data.StructLayout:
        channels, height, width = self.shape
        return data.StructLayout(
            {
                "mark": 1,
                "step": step_layout(self.steps),
                "channel": unsigned(place_bits(channels)),
                "x": unsigned(place_bits(width)),
                "y": unsigned(place_bits(height)),
                "value": shape_of(self.value),
            }
        )

    @property
    def signature(self) -> stream.Signature:
        return stream.Signature(self.layout)


@dataclass(frozen=True)
class _Chunked:
    """A map of ``shape``, ``lanes`` channels of a pixel at a time; the last chunk of a pixel is padded. ``steps``: see `step_layout`."""

    shape: MapShape
    lanes: int
    steps: bool = field(default=True, kw_only=True)

    @property
    def parts(self) -> int:
        """Chunks of a pixel."""
        return -(-self.shape[0] // self.lanes)

    @property
    def chunks(self) -> int:
        """Chunks of the map."""
        return self.shape[1] * self.shape[2] * self.parts


@dataclass(frozen=True)
class CurrentFormat(_Chunked):
    """Currents of a map of neurons, in ``width``-bit two's complement.

    A step is ``chunks`` transfers in order, the last with ``mark``; or one transfer with ``empty`` and ``mark``: all zero.
    """

    width: int

    @property
    def layout(self) -> data.StructLayout:
        return data.StructLayout(
            {"mark": 1, "empty": 1, "step": step_layout(self.steps), "x": data.ArrayLayout(signed(self.width), self.lanes)}
        )

    @property
    def signature(self) -> stream.Signature:
        return stream.Signature(self.layout)


@dataclass(frozen=True)
class VolleyFormat(_Chunked):
    """What the neurons of a map (or a pool's windows) say in a step, each in ``value``.

    A transfer is the chunk ``part`` of pixel (``y``, ``x``), the last of a step with ``mark``; or, with ``empty`` and ``mark``, a step in
    which nothing changed. A stream that is ``dense`` has all chunks of a step; else chunks of zeros may be left out, but not the last.
    """

    value: Interval

    @property
    def layout(self) -> data.StructLayout:
        _, height, width = self.shape
        return data.StructLayout(
            {
                "mark": 1,
                "empty": 1,
                "step": step_layout(self.steps),
                "part": unsigned(place_bits(self.parts)),
                "x": unsigned(place_bits(width)),
                "y": unsigned(place_bits(height)),
                "values": data.ArrayLayout(shape_of(self.value), self.lanes),
            }
        )

    @property
    def signature(self) -> stream.Signature:
        return stream.Signature(self.layout)


class Raster:
    """Counters over the chunks of a map in wire order: signals ``part``, ``x``, ``y`` and ``last``; ``advance(m)`` steps them."""

    def __init__(self, m: Module, chunked: _Chunked, name: str):
        _, height, width = chunked.shape
        self._limits = []
        self.part, self.x, self.y = (
            Signal(place_bits(size), name=f"{name}_{field}") for field, size in (("part", chunked.parts), ("x", width), ("y", height))
        )
        last = True
        for counter, size in ((self.part, chunked.parts), (self.x, width), (self.y, height)):
            end = Signal(name=f"{counter.name}_end")
            m.d.comb += end.eq(counter == size - 1)
            self._limits.append((counter, end))
            last = end & last
        self.last = Signal(name=f"{name}_last")
        m.d.comb += self.last.eq(last)

    def advance(self, m: Module, restart=0) -> None:
        """In the current context: on to the next chunk, or with ``restart`` to the first."""
        carry = True
        for counter, end in self._limits:
            if len(counter):
                m.d.sync += counter.eq(Mux(restart | (end & carry), 0, counter + carry))
            carry = end & carry


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


class Fork(wiring.Component):
    """One stream to several: each takes a transfer when it likes, the next is offered once all have.

    Members
    -------
    i, o_0, o_1, ...: streams of ``signature``; ``outputs`` lists the latter.
    """

    def __init__(self, signature: stream.Signature, ways: int):
        self.ways = ways
        super().__init__({"i": In(signature)} | {f"o_{way}": Out(signature) for way in range(ways)})

    @property
    def outputs(self) -> list[stream.Interface]:
        return [getattr(self, f"o_{way}") for way in range(self.ways)]

    def elaborate(self, platform: object) -> Module:
        m = Module()
        taken = Signal(self.ways)
        done = Signal(self.ways)
        m.d.comb += self.i.ready.eq(done.all())
        for way, output in enumerate(self.outputs):
            m.d.comb += [
                output.valid.eq(self.i.valid & ~taken[way]),
                output.payload.eq(self.i.payload),
                done[way].eq(taken[way] | output.ready),
            ]
        with m.If(self.i.valid):
            m.d.sync += taken.eq(Mux(done.all(), 0, done))
        return m


class Queue(wiring.Component):
    """A FIFO of ``depth`` transfers, and registers behind it: block RAM is slow to leave.

    Members
    -------
    i, o: streams of ``signature``.
    """

    def __init__(self, signature: stream.Signature, depth: int):
        self.depth = depth
        super().__init__({"i": In(signature), "o": Out(signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=Value.cast(self.i.payload).shape().width, depth=self.depth)
        m.submodules.skid = skid = Skid(self.o.signature)
        wiring.connect(m, skid.o, wiring.flipped(self.o))
        m.d.comb += [
            fifo.w_data.eq(self.i.payload),
            fifo.w_en.eq(self.i.valid),
            self.i.ready.eq(fifo.w_rdy),
            skid.i.payload.eq(fifo.r_data),
            skid.i.valid.eq(fifo.r_rdy),
            fifo.r_en.eq(skid.i.ready),
        ]
        return m


class CurrentSum(wiring.Component):
    """Adds the currents of several sets of synapses on the same neurons, chunk by chunk.

    A step that is empty on one side is the other's; on all sides, it is empty.

    Members
    -------
    i_0, i_1: In, currents; o: Out. A chunk a cycle.
    """

    def __init__(self, spec: CurrentFormat):
        self.spec = spec
        super().__init__({"i_0": In(spec.signature), "i_1": In(spec.signature), "o": Out(spec.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.skid = skid = Skid(self.spec.signature)
        one, two, both = self.i_0.p, self.i_1.p, skid.i.p
        m.d.comb += [
            skid.i.valid.eq(self.i_0.valid & self.i_1.valid),
            self.i_0.ready.eq(skid.i.ready & self.i_1.valid & (~one.empty | two.mark)),
            self.i_1.ready.eq(skid.i.ready & self.i_0.valid & (~two.empty | one.mark)),
            both.empty.eq(one.empty & two.empty),
            both.mark.eq(one.mark & two.mark),
            both.step.eq(one.step),
            *([both.step.active.eq(one.step.active | two.step.active)] if self.spec.steps else []),
            *(x.eq(Mux(one.empty, 0, a) + Mux(two.empty, 0, b)) for x, a, b in zip(both.x, one.x, two.x, strict=True)),
        ]
        wiring.connect(m, skid.o, wiring.flipped(self.o))
        return m
