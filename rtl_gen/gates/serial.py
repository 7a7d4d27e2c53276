"""Synapses a tap at a time, for a convolution on a small device: sums of a few rows wait in a memory, not in registers."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import product

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.spram import WORDS
from rtl_gen.gates.streams import Raster, VolleyFormat, place_bits
from rtl_gen.gates.synapses import SynapsesSpec, delay, weight_table

SETTLE = 3
"""Cycles after an event in which its last sums are on their way back to memory."""
STAGES = 4
"""Cycles from a tap's issue until its sum is written."""


@dataclass(frozen=True)
class SerialSpec(SynapsesSpec):
    """One tap of ``lanes`` output channels at a time; ``lanes`` are those of a transfer. Not of a flat geometry."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.geometry.flat or self.lanes != self.currents.lanes:
            raise ValueError(f"a tap at a time: {self.geometry} with {self.lanes!r} lanes for {self.currents.lanes!r} of a transfer")

    @property
    def adders(self) -> int:
        return self.lanes

    @property
    def chunks(self) -> int:
        """Chunks of channels that an event reaches."""
        return self.passes // self.sets

    @property
    def row_count(self) -> int:
        """A row for each source channel, tap of the kernel and chunk, their numbers side by side in its address."""
        return self.geometry.source[0] << (place_bits(self.geometry.kernel[0] * self.geometry.kernel[1]) + place_bits(self.chunks))

    @property
    def row_bits(self) -> int:
        return self.lanes * self.weight_bits

    @property
    def sums(self) -> int:
        """Places for sums: rows of neurons that a source reaches."""
        return self.geometry.taps[0] << (place_bits(self.passes) + place_bits(self.geometry.target[2]))

    @cached_property
    def rows(self) -> list[int]:
        """Rows of weights, as one number each, by lane."""
        geometry, mask, rows = self.geometry, (1 << self.weight_bits) - 1, [0] * self.row_count
        inputs, taps = geometry.source[0] // geometry.groups, list(product(*map(range, geometry.kernel)))
        tap_bits, chunk_bits = place_bits(len(taps)), place_bits(self.chunks)
        for channel, (tap, (y, x)), chunk in product(range(geometry.source[0]), enumerate(taps), range(self.chunks)):
            first = (channel // (geometry.source[0] // self.sets) * self.chunks + chunk) * self.lanes
            for lane, output in enumerate(range(first, min(first + self.lanes, geometry.outputs))):
                if channel // inputs == output // self._group:
                    weight = self.weights[output][channel % inputs][y][x] & mask
                    rows[((channel << tap_bits | tap) << chunk_bits) | chunk] |= weight << (lane * self.weight_bits)
        return rows


class SerialSynapses(wiring.Component):
    """Adds weight x value of each event to the sums of the neurons that it reaches, tap by tap, chunk by chunk of channels.

    An event takes a cycle for each, and ``SETTLE + 1`` more. A row of neurons leaves once an event beyond its last source row has come, or
    the mark: two cycles a chunk, which leave zeros behind. The sums wrap in ``currents.width`` bits, which hold every complete sum.

    Members
    -------
    events: In, in wire order. currents: Out.
    words, loaded: In, Out, of weights that are loaded, see `WeightStore`; no event may come before they are.
    """

    def __init__(self, spec: SerialSpec):
        self.spec = spec
        members = {"events": In(spec.events.signature), "currents": Out(spec.currents.signature)}
        if spec.store is not None:
            members |= {"words": In(WORDS), "loaded": Out(1)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, geometry, out, event = self.spec, self.spec.geometry, self.spec.currents, self.events.p
        (kernel_y, kernel_x), (down, across), (padding_y, padding_x) = geometry.kernel, geometry.stride, geometry.padding
        height, (_, rows, columns) = geometry.source[1], geometry.target
        word = data.ArrayLayout(signed(out.width), spec.lanes)
        m.submodules.sums = sums = Memory(shape=word, depth=max(spec.sums, 2), init=[])
        read, write = sums.read_port(), sums.write_port()

        # Rows of neurons: the first that is not complete, its place in the memory, the padded source row it begins with.
        row, ring = Signal(range(max(rows, 2))), Signal(range(max(geometry.taps[0], 2)))
        top = Signal(range(-padding_y - 1, max(rows * down, 1)), init=-padding_y)
        # The first column that the source may reach, and where it begins; the source row it is for.
        column, left = Signal(range(max(columns, 2))), Signal(range(-padding_x - 1, max(columns * across, 1)), init=-padding_x)
        y = Signal(range(max(height, 2)))
        dy, dx = event.y - top, event.x - left
        last_row = row == rows - 1
        touched = Signal()  # the step has had an event

        # The tap: its neuron, its place in the kernel, its chunk.
        add = Signal()
        tap_y, tap_x, tap, tap_row = (Signal(range(max(size, 2))) for size in (kernel_y, kernel_x, *[kernel_y * kernel_x] * 2))
        to_row, to_ring, to_column = Signal.like(row, init=0), Signal.like(ring, init=0), Signal.like(column, init=0)
        chunk = Signal(place_bits(spec.chunks))
        first_chunk = self._set(event.channel) * spec.chunks
        row_address, row_data = weight_table(m, self, spec)
        where = Signal(range(max(spec.sums, 2)))
        m.d.sync += [
            row_address.eq(Cat(chunk, tap[: place_bits(kernel_y * kernel_x)], event.channel)),
            where.eq(self._place(m, first_chunk + chunk, to_column, to_ring)),
        ]
        self._accumulate(m, add, where, row_data, read, write)

        sent = Raster(m, VolleyFormat((out.shape[0], 1, columns), out.lanes, spec.events.value), "sent")
        sending = self._place(m, sent.part, sent.x, ring)
        dirty, cleared = Signal(reset_less=True, name="dirty"), Signal.like(where, init=0)  # sums may have been left by what a reset ended
        settled = Signal(range(SETTLE))
        m.d.comb += [
            self.currents.p.x.eq(read.data),
            self.currents.p.step.eq(event.step),
        ]

        def following(signal: Signal, size: int):
            return signal.eq(Mux(signal == size - 1, 0, signal + 1))

        with m.FSM():
            with m.State("begin"):
                m.d.comb += [write.addr.eq(cleared), write.data.eq(0), write.en.eq(dirty)]
                m.d.sync += cleared.eq(cleared + 1)
                with m.If(~dirty | (cleared == spec.sums - 1)):
                    m.d.sync += dirty.eq(0)
                    m.next = "take"
            with m.State("take"):  # noqa: SIM117
                with m.If(self.events.valid):
                    with m.If(event.mark & ~touched):
                        m.d.comb += [self.currents.valid.eq(1), self.currents.p.mark.eq(1), self.currents.p.empty.eq(1)]
                        m.d.comb += [self.currents.p.x.eq(0), self.events.ready.eq(self.currents.ready)]
                    with m.Elif(event.mark | ((dy >= kernel_y) & ~last_row)):
                        m.next = "fetch"
                    with m.Elif(event.y != y):
                        m.d.sync += [y.eq(event.y), column.eq(0), left.eq(left.init)]
                    with m.Elif((dx >= kernel_x) & (column != columns - 1)):
                        m.d.sync += [column.eq(column + 1), left.eq(left + across)]
                    with m.Elif((dx < 0) | (dy < 0) | (dx >= kernel_x) | (dy >= kernel_y)):
                        m.d.comb += self.events.ready.eq(1)
                        m.d.sync += touched.eq(1)
                    with m.Else():
                        start = Array(line * kernel_x for line in range(kernel_y))[dy[: len(tap_y)]] + dx[: len(tap_x)]
                        m.d.sync += [tap_y.eq(dy), tap_x.eq(dx), tap.eq(start), tap_row.eq(start)]
                        m.d.sync += [to_row.eq(row), to_ring.eq(ring), to_column.eq(column), touched.eq(1), dirty.eq(1)]
                        m.next = "add"
            with m.State("add"):
                m.d.comb += add.eq(1)
                m.d.sync += following(chunk, spec.chunks)
                with m.If(chunk == spec.chunks - 1):
                    with m.If((tap_x >= across) & (to_column != columns - 1)):
                        m.d.sync += [tap_x.eq(tap_x - across), tap.eq(tap - across), to_column.eq(to_column + 1)]
                    with m.Elif((tap_y >= down) & (to_row != rows - 1)):
                        m.d.sync += [tap_x.eq(dx), to_column.eq(column), to_row.eq(to_row + 1), following(to_ring, geometry.taps[0])]
                        m.d.sync += [tap_y.eq(tap_y - down), tap.eq(tap_row - down * kernel_x), tap_row.eq(tap_row - down * kernel_x)]
                    with m.Else():
                        m.d.comb += self.events.ready.eq(1)
                        m.next = "settle"
            with m.State("settle"):
                m.d.sync += following(settled, SETTLE)
                with m.If(settled == SETTLE - 1):
                    m.next = "take"
            with m.State("fetch"):
                m.d.comb += [read.addr.eq(sending), read.en.eq(1)]
                m.next = "hold"
            with m.State("hold"):
                done = event.mark & last_row & sent.last
                m.d.comb += [self.currents.valid.eq(1), self.currents.p.mark.eq(done)]
                with m.If(self.currents.ready):
                    m.d.comb += [write.addr.eq(sending), write.data.eq(0), write.en.eq(1), self.events.ready.eq(done)]
                    sent.advance(m, restart=sent.last)
                    m.next = "fetch"
                    with m.If(sent.last):
                        m.d.sync += [row.eq(row + 1), top.eq(top + down), following(ring, geometry.taps[0])]
                        m.next = "take"
                    with m.If(done):
                        m.d.sync += [signal.eq(signal.init) for signal in (row, top, ring, y, column, left, touched)]
        return m

    def _set(self, channel: Signal):
        """The set of groups that ``channel`` is of."""
        sources = self.spec.geometry.source[0] // self.spec.sets
        return Array(source // sources for source in range(self.spec.geometry.source[0]))[channel] if self.spec.sets > 1 else 0

    def _place(self, m: Module, part, column: Signal, ring: Signal) -> Cat:
        """The place of a neuron's sums."""
        chunk = Signal(place_bits(self.spec.passes))
        m.d.comb += chunk.eq(part)
        return Cat(chunk, column[: place_bits(self.spec.geometry.target[2])], ring)

    def _accumulate(self, m: Module, add: Signal, where: Signal, row_data, read, write) -> None:
        """Sum, weights; both again (block RAM is slow to leave); product; sum."""
        spec, value = self.spec, delay(m, self.events.p.value, STAGES - 1, "value")
        issued = delay(m, add, 1, "issued", reset=True)
        at, there = delay(m, where, STAGES - 1, "at"), delay(m, issued, STAGES - 1, "there", reset=True)
        fetched = delay(m, row_data, 1, "fetched")
        before = delay(m, read.data.as_value(), 2, "before")
        m.d.comb += [read.addr.eq(where), read.en.eq(issued), write.addr.eq(at), write.en.eq(there)]
        for lane, (total, old) in enumerate(zip(write.data, data.View(read.data.shape(), before), strict=True)):
            weight = fetched.word_select(lane, spec.weight_bits).as_signed()
            result = weight * value if spec.multiplies else Mux(value < 0, -weight, weight)
            product_ = Signal(result.shape(), name=f"product_{lane}", reset_less=True)
            m.d.sync += product_.eq(result)
            m.d.comb += total.eq(old + product_)
