"""Synapses: the events of cells become currents."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, reduce
from itertools import product
from operator import or_
from typing import Literal

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.spram import WORDS, WeightStore, WeightStoreSpec
from rtl_gen.gates.streams import CurrentFormat, EventFormat, place_bits, rom_attributes
from rtl_gen.gates.walk import HAZARD, CellFormat, Geometry, WalkSpec

CREDITS = 8
"""Completed chunks that may wait to be taken."""
ROTATED = 3
"""Up to so many chunks a pixel their windows stand in registers, from there on in a memory."""
DSP_BITS = 18
"""Width of a multiplier's inputs."""
DIGIT_BITS = 4
"""Width of a weight up to which logic makes a product in a cycle."""
STAGES = 4
"""Cycles from a transfer's entry until it acts on the sums, the extra stage of a large multiplier not counted."""


Multiplier = Literal["dsp", "logic", "both"]


def lanes_fit(geometry: Geometry, lanes: int) -> bool:
    """Whether chunks of ``lanes`` channels take whole groups, or are whole parts of one."""
    group = geometry.outputs // geometry.groups
    if geometry.groups == 1 or lanes >= geometry.outputs or group % lanes == 0:
        return True
    return lanes % group == 0 and geometry.groups % (lanes // group) == 0


@dataclass(frozen=True)
class SynapsesSpec:
    """All ``taps`` of ``lanes`` output channels at a time; further channels in turn (see `Replay`).

    Attributes
    ----------
    geometry: which sources reach which neurons.
    events, currents: formats in and out; ``lanes`` is a multiple of ``currents.lanes``.
    lanes: output channels updated at a time: a divisor or a multiple of a group's, or anything where there is one group.
    weight_bits: width of a weight.
    weights: flat: by output, by source in wire order. Else by output, input channel of its group, row and column of the kernel.
        Each in ``weight_bits`` two's complement.
    multiplier: where the products are made, if an event's value may be other than -1, 0, 1: in "dsp" blocks, in "logic", or half of them in
        each, "both" (weights of at most 4 bits).
    storage: of the weights: "rom", a table that the bitstream fills, or "spram", loaded once (see `WeightStore`).
    room: completed chunks that may wait to be taken; of a flat geometry it is one.
    """

    geometry: Geometry
    events: EventFormat
    currents: CurrentFormat
    lanes: int
    weight_bits: int
    weights: tuple = field(repr=False)
    multiplier: Multiplier = "dsp"
    storage: Literal["rom", "spram"] = "rom"
    room: int = CREDITS

    def __post_init__(self) -> None:
        if self.lanes % self.currents.lanes:
            raise ValueError(f"lanes {self.lanes!r} is not a multiple of the {self.currents.lanes!r} lanes of a transfer")
        if self.events.shape != self.geometry.source or self.currents.shape != self.geometry.target:
            raise ValueError(f"{self.geometry} does not lead from {self.events.shape} to {self.currents.shape}")
        if not lanes_fit(self.geometry, self.lanes):
            raise ValueError(f"lanes {self.lanes!r} do not make whole chunks of {self.geometry.groups} groups of {self._group} channels")
        if self.multiplier == "both" and self.weight_bits > DIGIT_BITS:
            raise ValueError(f"products of {self.weight_bits!r}-bit weights, which take longer in logic, in both places")
        _ = self.store

    @property
    def _group(self) -> int:
        """Output channels of a group."""
        return self.geometry.outputs // self.geometry.groups

    @property
    def passes(self) -> int:
        """Chunks of ``lanes`` channels: how often each cell's events are needed (see `Replay`)."""
        return -(-self.geometry.outputs // self.lanes)

    @property
    def sets(self) -> int:
        """Sets of groups; a chunk's sources are all in one set."""
        if self.geometry.groups == 1 or self.lanes >= self.geometry.outputs:
            return 1
        return self.geometry.groups // max(self.lanes // self._group, 1)

    @property
    def cells(self) -> CellFormat:
        return CellFormat(self.geometry, self.sets, self.events.value, self.events.steps)

    @property
    def walk(self) -> WalkSpec:
        """Cells of a row: enough that a column is kept before it is needed again."""
        columns = self.geometry.columns
        if self.geometry.kept_rows:
            columns = max(columns, self.geometry.taps[1] + -(-HAZARD // self.passes))
        return WalkSpec(self.events, self.cells, columns)

    @property
    def multiplies(self) -> bool:
        """Whether an event's value may be other than -1, 0, 1."""
        return not (self.events.value.lo >= -1 and self.events.value.hi <= 1)

    @property
    def stages(self) -> int:
        """Cycles from a transfer's entry until it acts on the sums."""
        return STAGES + (self.multiplies and self.multiplier == "logic" and self.weight_bits > DIGIT_BITS)

    @property
    def in_dsps(self) -> int:
        """Products made in DSPs, of those of `slots` and lanes."""
        places = len(self.slots) * self.lanes
        return 0 if not self.multiplies else {"dsp": places, "both": places // 4 * 2, "logic": 0}[self.multiplier]

    @property
    def set_rows(self) -> int:
        """Weight rows of a chunk."""
        return self.geometry.sources // self.sets

    @property
    def adders(self) -> int:
        """Accumulators that an event updates in a cycle."""
        return self.lanes * len(self.slots)

    @property
    def row_count(self) -> int:
        return self.passes * self.set_rows

    @property
    def row_bits(self) -> int:
        """Bits of a row of weights."""
        return len(self.slots) * self.lanes * self.weight_bits

    @property
    def store(self) -> WeightStoreSpec | None:
        """Where the weights are loaded; None where they are a table."""
        return WeightStoreSpec(self.row_count, self.row_bits) if self.storage == "spram" else None

    @property
    def slots(self) -> tuple[tuple[int, int], ...]:
        """Taps (down, across), in the order in which they stand in a row of weights."""
        return tuple(product(range(self.geometry.taps[0]), range(self.geometry.taps[1])))

    @cached_property
    def rows(self) -> list[int]:
        """Rows of weights, as one number each: by tap, by lane; sources of a chunk side by side, see `Synapses`."""
        mask, rows = (1 << self.weight_bits) - 1, []
        for chunk in range(self.passes):
            for source in range(self.set_rows):
                row = 0
                for place, (slot, lane) in enumerate(product(self.slots, range(self.lanes))):
                    row |= (self._weight(chunk, source, slot, chunk * self.lanes + lane) & mask) << (place * self.weight_bits)
                rows.append(row)
        return rows

    def _weight(self, chunk: int, source: int, slot: tuple[int, int], output: int) -> int:
        geometry = self.geometry
        if output >= geometry.outputs:
            return 0
        if geometry.flat:
            return self.weights[output][source]
        local, phase = divmod(source, geometry.phases)
        channel = local + chunk * self.sets // self.passes * (geometry.source[0] // self.sets)
        group_inputs = geometry.source[0] // geometry.groups
        y, x = (part + tap * stride for part, tap, stride in zip(divmod(phase, geometry.stride[1]), slot, geometry.stride, strict=True))
        if y >= geometry.kernel[0] or x >= geometry.kernel[1] or channel // group_inputs != output // self._group:
            return 0
        return self.weights[output][channel % group_inputs][y][x]


class Synapses(wiring.Component):
    """Adds row x value of each event to the sums of the window; at a cell's mark the window moves on by a column.

    The window holds, for each of ``lanes`` channels, the sums of the neurons that the cell reaches (``taps`` down and across). At a mark
    its last column leaves: the neuron whose last row this was is complete and sent on, the others wait in a row memory; a new
    column enters, from the row memory or from zero. With several chunks of channels a pixel, each has its window, and a mark
    also goes on to the next chunk. The sums wrap in ``currents.width`` bits, which hold every complete sum.

    An event or a mark a cycle; nothing in the pipeline waits: a mark that completes neurons enters only if there is room for them.
    A flat geometry takes nothing more until its neurons have left.

    Members
    -------
    cells: In, each cell's events and mark ``passes`` times (see `Replay`).
    currents: Out.
    words, loaded: In, Out, of weights that are loaded, see `WeightStore`; no event may come before they are.
    """

    def __init__(self, spec: SynapsesSpec):
        self.spec = spec
        members = {"cells": In(spec.cells.signature), "currents": Out(spec.currents.signature)}
        if spec.store is not None:
            members |= {"words": In(WORDS), "loaded": Out(1)}
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, out, geometry = self.spec, self.spec.currents, self.spec.geometry
        taps_y, taps_x = geometry.taps
        address, row_data = weight_table(m, self, spec)
        step = self.currents.p.step.shape()
        fields = {"x": data.ArrayLayout(signed(out.width), spec.lanes), "empty": 1, "step": step}
        parcel = data.StructLayout(fields if geometry.flat else fields | {"end": 1})
        credit = 1 if geometry.flat else spec.room

        # Issue: a cell's event or mark.
        cell, chunk = self.cells.p, Signal(place_bits(spec.passes))
        last_chunk = Signal()
        base = Signal(range(max(spec.row_count, 2)))  # of the chunk's rows, less those of the sets before its own
        credits = Signal(range(credit + 1), init=credit)
        fire, add, mark, send = Signal(), Signal(), Signal(), Signal()
        sends = cell.mark if geometry.flat else cell.mark & (cell.emit | cell.empty)
        chunk_set = Signal(place_bits(spec.sets))
        m.d.comb += [
            last_chunk.eq(chunk == spec.passes - 1),
            self.cells.ready.eq((credits != 0) | (0 if geometry.flat else ~sends)),
            fire.eq(self.cells.valid & self.cells.ready),
            add.eq(fire & ~cell.mark & (cell.set == chunk_set)),
            mark.eq(fire & cell.mark & ~cell.empty),
            send.eq(fire & sends),
        ]
        taken, clear = Signal(), Signal()  # the last part of a chunk was; a cycle later
        m.d.sync += [credits.eq(credits - send + taken), clear.eq(taken)]
        with m.If(mark):
            self._next_chunk(m, chunk, last_chunk, base, chunk_set)

        # Row address, weights, weights again (block RAM is slow to leave), product, sum.
        row = Signal.like(base, reset_less=True)
        m.d.sync += row.eq(base + cell.row)
        m.d.comb += address.eq(row)
        fetched = Signal.like(row_data, reset_less=True)
        m.d.sync += fetched.eq(row_data)
        before = delay(m, cell.value, 2, "value")
        value = delay(m, before, 1, "value_now")  # with the weights
        add = delay(m, add, spec.stages, "add", reset=True)
        send = delay(m, send, spec.stages, "send", reset=True)
        told = {name: shape for name, shape in cell.shape().members.items() if name not in ("mark", "emit", "row", "set", "value")}
        known = {"chunk": chunk, "mark": mark} | ({"last_chunk": last_chunk} if spec.passes > 1 else {})
        tag = Signal(data.StructLayout(told | {name: unsigned(len(value)) for name, value in known.items()}))
        m.d.comb += [*(tag[name].eq(cell[name]) for name in told), *(tag[name].eq(value) for name, value in known.items())]
        early = delay(m, tag, spec.stages - 2, "early", reset=True)  # where the memories are asked for what acts two cycles later
        tag = delay(m, early, 2, "tag", reset=True)

        sums = {
            (slot, lane): Signal(signed(out.width), name=f"sum_{slot[0]}_{slot[1]}_{lane}")
            for slot, lane in product(spec.slots, range(spec.lanes))
        }
        entering = self._row_memory(m, early, tag, sums)
        followers = self._windows(m, early, tag, sums, entering)
        for (key, total), (added, carry) in zip(sums.items(), self._products(m, fetched, value, before), strict=True):
            with m.If(clear if geometry.flat else tag.mark):
                m.d.sync += total.eq(followers[key])
            with m.Elif(add):
                if isinstance(carry, Value):  # one adder, with a carry in
                    m.d.sync += total.eq((Cat(1, total).as_signed() + Cat(carry, added).as_signed())[1:])
                else:
                    m.d.sync += total.eq(total + added)

        # Completed chunks wait in a FIFO (of a flat geometry, which completes few, where they are) and leave in parts.
        complete, leaving, there = Signal(parcel), Signal(parcel), Signal()
        corner = (taps_y - 1, taps_x - 1)
        m.d.comb += [complete.x[lane].eq(sums[corner, lane]) for lane in range(spec.lanes)]
        m.d.comb += [complete.empty.eq(tag.empty), complete.step.eq(tag.step)]
        if geometry.flat:
            said = Signal.like(Cat(complete.empty, complete.step))
            with m.If(send):
                m.d.sync += [there.eq(1), said.eq(Cat(complete.empty, complete.step))]
            with m.Elif(taken):
                m.d.sync += there.eq(0)
            m.d.comb += [leaving.eq(complete), Cat(leaving.empty, leaving.step).eq(said)]
        else:
            m.d.comb += complete.end.eq(tag.end & (self._last_chunk(tag) | tag.empty))
            m.submodules.fifo = fifo = SyncFIFOBuffered(width=parcel.size, depth=spec.room + 1)
            m.d.comb += [fifo.w_data.eq(complete), fifo.w_en.eq(send), leaving.eq(fifo.r_data), there.eq(fifo.r_rdy), fifo.r_en.eq(taken)]
        ratio = spec.lanes // out.lanes
        part, whole = Signal(ratio, init=1), Signal(place_bits(spec.passes))  # the former one-hot, which is cheaper to choose by
        short = out.parts - (spec.passes - 1) * ratio  # parts of a pixel's last chunk
        last, last_pass = Signal(), whole == spec.passes - 1
        parts = (Cat(leaving.x[lane] for lane in range(first, first + out.lanes)) for first in range(0, spec.lanes, out.lanes))
        m.d.comb += [
            last.eq(leaving.empty | Mux(last_pass, part[short - 1], part[ratio - 1])),
            self.currents.valid.eq(there),
            self.currents.p.x.eq(reduce(or_, (one & chosen.replicate(len(one)) for one, chosen in zip(parts, part, strict=True)))),
            self.currents.p.mark.eq(last & (leaving.empty | last_pass if geometry.flat else leaving.end)),
            self.currents.p.empty.eq(leaving.empty),
            self.currents.p.step.eq(leaving.step),
            taken.eq(there & self.currents.ready & last),
        ]
        with m.If(self.currents.valid & self.currents.ready):
            m.d.sync += part.eq(Mux(last, 1, part << 1))
            with m.If(last & ~leaving.empty):
                m.d.sync += whole.eq(Mux(last_pass, 0, whole + 1))
        return m

    def _last_chunk(self, tag):
        """Whether the chunk of ``tag`` is a pixel's last."""
        return tag.last_chunk if self.spec.passes > 1 else Const(1)

    def _next_chunk(self, m: Module, chunk: Signal, last_chunk: Signal, base: Signal, chunk_set: Signal) -> None:
        """At a mark: the rows of the next chunk; ``base`` is that of its first row less the sources of the sets before its own."""
        spec = self.spec
        if spec.passes == 1:
            return
        per_set = spec.passes // spec.sets  # chunks of a set
        within = Signal(place_bits(per_set))
        next_set = within == per_set - 1
        m.d.sync += [
            chunk.eq(Mux(last_chunk, 0, chunk + 1)),
            within.eq(Mux(next_set, 0, within + 1)),
            base.eq(Mux(last_chunk, 0, base + Mux(next_set, 0, spec.set_rows))),
        ]
        if spec.sets > 1:
            m.d.sync += chunk_set.eq(Mux(last_chunk, 0, chunk_set + next_set))

    def _products(self, m: Module, fetched: Signal, value: Signal, before: Signal) -> list[tuple[Signal, Signal | int]]:
        """By place in a row of weights: weight x value, registered, and a carry that belongs to it; ``before`` is next cycle's value."""
        spec, places = self.spec, len(self.spec.slots) * self.spec.lanes
        half = 1 << (spec.weight_bits - 1)
        bits = (Interval(-half, half - 1) * spec.events.value).signed_bits
        weights = [fetched.word_select(place, spec.weight_bits).as_signed() for place in range(places)]

        def register(result, width: int, name: str) -> Signal:
            signal = Signal(signed(width), reset_less=True, name=name)
            m.d.sync += signal.eq(result)
            return signal

        if not spec.multiplies:
            weights = [Mux(value < 0, -weight, weight) if spec.events.value.lo < 0 else weight for weight in weights]
            return [(register(weight, bits, f"product_{place}"), 0) for place, weight in enumerate(weights)]
        cut, products = spec.in_dsps, list[tuple[Signal, Signal | int]]()
        paired = cut // 2 * 2 if bits + spec.weight_bits + 1 <= DSP_BITS else 0
        # Two products a multiplier: (high * 2^bits + low) * value. A negative low product borrows from the high one, which gets it back.
        for place in range(0, paired, 2):
            low, high = weights[place], weights[place + 1]
            both = Cat(low[: spec.weight_bits], low[-1].replicate(bits - spec.weight_bits), (high - low[-1])[: spec.weight_bits + 1])
            pair = register(both.as_signed() * value, 2 * bits + 1, f"product_{place}")  # a bit more: for what was borrowed
            products += [(pair[:bits].as_signed(), 0), (pair[bits:].as_signed(), pair[bits - 1])]
        products += [(register(weights[place] * value, bits, f"product_{place}"), 0) for place in range(paired, cut)]
        if cut < places:
            totals = enumerate(self._digits(m, weights[cut:], before), cut)
            products += [(register(total, bits, f"product_{place}"), 0) for place, total in totals]
        return products

    def _digits(self, m: Module, weights, before: Signal):
        """weight x value as a sum over the weight's digits of two bits, each of which chooses among multiples made once for all lanes."""
        bits = (self.spec.events.value * Interval(-2, 3)).signed_bits
        multiples = {}
        for factor, multiple in ((0, 0), (1, before), (2, before << 1), (3, before + (before << 1)), (-1, -before), (-2, -(before << 1))):
            multiples[factor] = Signal(signed(bits), name=f"multiple_{factor % 6}", reset_less=True)
            m.d.sync += multiples[factor].eq(multiple)
        for place, weight in enumerate(weights):
            digits = [weight[start : start + 2] for start in range(0, len(weight), 2)]
            if len(weight) % 2:
                digits[-1] = weight[-1].replicate(2)
            terms = [Array(multiples[factor] for factor in (0, 1, 2, 3))[digit] for digit in digits[:-1]]
            terms.append(Array(multiples[factor] for factor in (0, 1, -2, -1))[digits[-1]])
            if len(terms) > 2:
                for index, term in enumerate(terms):
                    terms[index] = Signal(signed(bits), reset_less=True, name=f"term_{place}_{index}")
                    m.d.sync += terms[index].eq(term)
            yield sum((term << (2 * index) for index, term in enumerate(terms[1:], 1)), terms[0])

    def _row_memory(self, m: Module, early, tag, sums) -> dict[tuple[int, int], Signal]:
        """By tap down and lane: what the entering column holds."""
        spec, geometry = self.spec, self.spec.geometry
        width, taps_y, taps_x = spec.currents.width, *geometry.taps
        entering = {}
        if not geometry.kept_rows:
            return {(tap, lane): Signal(signed(width), name=f"zero_{tap}_{lane}") for tap in range(taps_y) for lane in range(spec.lanes)}
        kept = range(0 if geometry.stride[0] > 1 else 1, taps_y)  # taps that a row hands down
        layout = data.ArrayLayout(signed(width), len(kept) * spec.lanes)
        places = max(1 << (place_bits(spec.passes) + place_bits(geometry.target[2])), 2)
        m.submodules.rows = rows = Memory(shape=layout, depth=places, init=[])
        write, read = rows.write_port(), rows.read_port()
        advances = self._last_chunk(early)
        next_chunk = Mux(advances, 0, early.chunk + 1)
        if taps_x > 1:  # the column enters the window of this chunk, to be used in the next cell
            address, top, fresh = Cat(early.chunk, early.enter), early.top, early.fresh
        else:  # the window is the column: that of the next chunk, or of the next cell's first
            address = Cat(next_chunk[: len(early.chunk)], Mux(advances, early.enter, early.leave))
            top, fresh = Mux(advances, early.top, early.own_top), Mux(advances, early.fresh, early.own_fresh)
        m.d.comb += [
            read.addr.eq(address),
            write.addr.eq(Cat(tag.chunk, tag.leave)),
            write.en.eq(tag.mark & tag.keep),
        ]
        holds = delay(m, Cat(~top, ~(top | fresh)), 1, "holds")
        for tap, lane in product(range(taps_y), range(spec.lanes)):
            entering[tap, lane] = signal = Signal(signed(width), name=f"entering_{tap}_{lane}", reset_less=True)
            if tap in kept:
                place = (tap - kept[0]) * spec.lanes + lane
                m.d.sync += signal.eq(Mux(holds[tap == 0], read.data[place], 0))
                here, above = sums[(tap, taps_x - 1), lane], sums[(tap - 1, taps_x - 1), lane] if tap else 0
                m.d.comb += write.data[place].eq(Mux(tag.down, above, here))
        return entering

    def _windows(self, m: Module, early, tag, sums, entering):
        """By slot and lane: what follows at a mark."""
        spec = self.spec
        taps_x = spec.geometry.taps[1]
        moved = {(slot, lane): entering[slot[0], lane] if slot[1] == 0 else sums[(slot[0], slot[1] - 1), lane] for slot, lane in sums}
        if taps_x == 1:
            return moved
        zero = Mux(self._last_chunk(tag), tag.end, tag.first)
        if spec.passes == 1:
            return {key: Mux(zero, 0, value) for key, value in moved.items()}
        if spec.passes <= ROTATED:
            following, chains = {}, {}
            for (slot, lane), value in moved.items():
                chains[slot, lane] = chain = [
                    Signal(signed(spec.currents.width), name=f"window_{slot[0]}_{slot[1]}_{lane}_{index}", reset_less=True)
                    for index in range(spec.passes - 1)
                ]
                with m.If(tag.mark):
                    m.d.sync += [stage.eq(before) for stage, before in zip(chain, [*chain[1:], value], strict=True)]
                following[slot, lane] = Mux(zero, 0, chain[0])
            return following
        layout = data.ArrayLayout(signed(spec.currents.width), len(moved))
        m.submodules.windows = windows = Memory(shape=layout, depth=spec.passes, init=[])
        write, read = windows.write_port(), windows.read_port()
        held = Signal(layout, reset_less=True)
        m.d.comb += [
            read.addr.eq(Mux(self._last_chunk(early), 0, early.chunk + 1)),
            write.addr.eq(tag.chunk),
            write.en.eq(tag.mark),
            *(write.data[place].eq(value) for place, value in enumerate(moved.values())),
        ]
        m.d.sync += held.eq(read.data)
        return {key: Mux(zero, 0, held[place]) for place, key in enumerate(moved)}


def weight_table(m: Module, synapses: wiring.Component, spec: SynapsesSpec):
    """(address, data) of the rows of ``spec``, as a table or loaded through ``synapses``: a row comes a cycle after its address."""
    if spec.store is None:
        attributes = rom_attributes(spec.row_count)
        m.submodules.weights = weights = Memory(shape=spec.row_bits, depth=spec.row_count, init=spec.rows, attrs=attributes)
        read = weights.read_port()
        return read.addr, read.data
    m.submodules.weights = store = WeightStore(spec.store)
    wiring.connect(m, wiring.flipped(synapses.words), store.words)
    m.d.comb += synapses.loaded.eq(store.loaded)
    return store.address, store.data


def delay(m: Module, value, stages: int, name: str, reset: bool = False):
    """``value`` as it was ``stages`` cycles ago."""
    for stage in range(stages):
        delayed = Signal.like(value, name=f"{name}_{stage + 1}", reset_less=not reset)
        m.d.sync += delayed.eq(value)
        value = delayed
    return value
