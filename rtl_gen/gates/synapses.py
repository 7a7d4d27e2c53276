"""Synapses of a fully connected layer: events become currents."""

from __future__ import annotations

from dataclasses import dataclass, field

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.streams import STEP, CurrentFormat, EventFormat


@dataclass(frozen=True)
class SynapsesSpec:
    """``lanes`` outputs at a time, of all sources in turn.

    Attributes
    ----------
    events, currents: formats in and out; ``lanes`` is a multiple of ``currents.lanes``.
    lanes: accumulators.
    weight_bits: width of a weight.
    weights: by output, by source; each in ``weight_bits`` two's complement.
    """

    events: EventFormat
    currents: CurrentFormat
    lanes: int
    weight_bits: int
    weights: tuple[tuple[int, ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        if self.lanes % self.currents.lanes:
            raise ValueError(f"lanes {self.lanes!r} is not a multiple of the {self.currents.lanes!r} lanes of a transfer")

    @property
    def passes(self) -> int:
        """How often each step's events are needed (see `Replay`)."""
        return -(-self.currents.size // self.lanes)

    @property
    def multiplies(self) -> bool:
        """Whether an event needs a multiplier: its value is not just a sign."""
        return self.events.value.hi > 1

    @property
    def row_count(self) -> int:
        """Rows of the weight memory."""
        return self.passes * self.events.size

    @property
    def rows(self) -> list[int]:
        """The weight memory: row ``pass * sources + source`` holds the weights of ``lanes`` outputs, the first lowest."""
        mask = (1 << self.weight_bits) - 1
        rows = []
        for first in range(0, self.currents.size, self.lanes):
            group = self.weights[first : first + self.lanes]
            for source in range(self.events.size):
                row = 0
                for lane, weights in enumerate(group):
                    row |= (weights[source] & mask) << (lane * self.weight_bits)
                rows.append(row)
        return rows


class Synapses(wiring.Component):
    """Adds ``weight * value`` of each event to ``lanes`` accumulators; at a pass's mark sends them on and clears them.

    One event a cycle, never stalled by what follows; a mark takes one cycle and then one a chunk, if the last chunk has
    been taken. The sums wrap in ``currents.width`` bits, which hold every complete sum.

    Members
    -------
    events: In, each step's events ``passes`` times (see `Replay`); a step without events: one mark.
    currents: Out.
    """

    def __init__(self, spec: SynapsesSpec):
        self.spec = spec
        super().__init__({"events": In(spec.events.signature), "currents": Out(spec.currents.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, out = self.spec, self.spec.currents
        ratio = spec.lanes // out.lanes  # chunks a pass; the last pass may have fewer
        m.submodules.weights = weights = Memory(shape=spec.lanes * spec.weight_bits, depth=spec.row_count, init=spec.rows)
        read = weights.read_port()

        # Issue: an event, or a chunk to send, enters the pipeline each cycle; nothing in it ever waits.
        base = Signal(range(spec.row_count))  # first row of this pass
        chunk = Signal(range(out.chunks))  # next chunk of the step
        part = Signal(range(ratio))  # its place among the accumulators
        touched = Signal()  # this step has events
        pending = Signal()  # a chunk is under way or not yet taken
        step = Signal(STEP)
        add, send, clear, last = Signal(), Signal(), Signal(), Signal()
        m.d.comb += last.eq((chunk == out.chunks - 1) | ~touched)
        m.d.comb += clear.eq(send & (last | (part == ratio - 1)))
        taken = self.currents.valid & self.currents.ready
        with m.If(taken):
            m.d.sync += pending.eq(0)
        with m.FSM():
            with m.State("events"):
                m.d.comb += self.events.ready.eq(1)
                m.d.comb += add.eq(self.events.valid & ~self.events.p.mark)
                m.d.sync += step.eq(self.events.p.step)
                with m.If(add):
                    m.d.sync += touched.eq(1)
                with m.If(self.events.valid & self.events.p.mark):
                    m.next = "send"
            with m.State("send"):
                m.d.comb += send.eq(~pending | taken)
                with m.If(send):
                    m.d.sync += [pending.eq(1), chunk.eq(chunk + 1), part.eq(part + 1)]
                with m.If(clear):
                    m.d.sync += [part.eq(0), base.eq(base + spec.events.size)]
                    m.next = "events"
                with m.If(send & last):
                    m.d.sync += [chunk.eq(0), base.eq(0), touched.eq(0)]

        # Row address, weights, weights again (block RAM is slow to leave), product, sum.
        row = Signal.like(base, reset_less=True)
        m.d.sync += row.eq(base + self.events.p.address)
        m.d.comb += read.addr.eq(row)
        fetched = Signal.like(read.data, reset_less=True)
        m.d.sync += fetched.eq(read.data)
        value = _delay(m, self.events.p.value, 3, "value")
        add = _delay(m, add, 4, "add", reset=True)
        tag = _delay(m, Cat(send, clear, last, ~touched, part, step), 4, "tag", reset=True)
        send, clear, last, empty = (tag[bit] for bit in range(4))
        part, step = tag[4 : 4 + len(part)], tag[4 + len(part) :]

        sums = []
        for lane in range(spec.lanes):
            weight = fetched.word_select(lane, spec.weight_bits).as_signed()
            result = value * weight if spec.multiplies else Mux(value < 0, -weight, weight)
            product = Signal(result.shape(), reset_less=True, name=f"product_{lane}")
            total = Signal(signed(out.width), name=f"sum_{lane}")
            m.d.sync += product.eq(result)
            with m.If(clear):
                m.d.sync += total.eq(0)
            with m.Elif(add):
                m.d.sync += total.eq(total + product)
            sums.append(total)

        with m.If(self.currents.ready):
            m.d.sync += self.currents.valid.eq(0)
        with m.If(send):
            parts = Array(Cat(sums[first : first + out.lanes]) for first in range(0, spec.lanes, out.lanes))
            m.d.sync += [
                self.currents.valid.eq(1),
                self.currents.p.x.eq(parts[part]),
                self.currents.p.mark.eq(last),
                self.currents.p.empty.eq(empty),
                self.currents.p.step.eq(step),
            ]
        return m


def _delay(m: Module, value, stages: int, name: str, reset: bool = False):
    """``value`` as it was ``stages`` cycles ago."""
    for stage in range(stages):
        delayed = Signal.like(value, name=f"{name}_{stage + 1}", reset_less=not reset)
        m.d.sync += delayed.eq(value)
        value = delayed
    return value
