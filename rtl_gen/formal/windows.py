"""What is claimed of a convolution's `Synapses`: each current is the sum, by the definition, over the events of its cells."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import product
from typing import Any

from amaranth.hdl import Array, Cat, Const, Mux, Signal, Value, signed
from amaranth.lib import data

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Buffered, Inside, Property
from rtl_gen.formal.synapses import COUNTS, spec_of
from rtl_gen.formal.walks import SPIKES, cells_of, flags_of, looked_up, marked
from rtl_gen.gates import synapses
from rtl_gen.gates.streams import place_bits
from rtl_gen.gates.synapses import ROTATED, SynapsesSpec
from rtl_gen.gates.walk import Geometry

LEFT = ("row", "window", "entering", "held", "product", "fetched", "value", "multiple", "term")
"""What a reset of the synapses leaves as it is."""
WEIGHTS = (1, -1, -2, 1, -1, 3, -4, 2, 1, -3, 2, 0, -1)


class Cells:
    """Steps of cells as `Walk` and `Replay` send them, with any events of each cell's sources in each of its passes.

    Members
    -------
    cells: (row, column) of each. at, turn: the cell and the pass of what is offered. touched: the step has had an event.
    empty: it is a step without events; enter: it is taken; marks: that is a cell's mark; ends: and a step's.
    y, x: place of the event in the padded map; channel: its.
    """

    def __init__(self, bench: Bench, spec: SynapsesSpec, i: Any) -> None:
        m, geometry, p = bench.m, spec.geometry, i.p
        self.cells = cells = cells_of(geometry, spec.walk.columns)
        channels, height, width = geometry.source
        (down, across), (pad_y, pad_x) = geometry.stride, geometry.padding
        self.at, self.turn = Signal(range(max(len(cells), 2)), name="at"), Signal(place_bits(spec.passes), name="turn")
        self.touched = touched = Signal()
        bench.drive(i, "i", stable=True)
        self.enter, self.empty = i.valid & i.ready, p.mark & p.empty
        self.marks = self.enter & p.mark & ~p.empty
        end, last = self.at == len(cells) - 1, self.turn == spec.passes - 1
        self.ends = self.enter & p.mark & (p.empty | (end & last))
        with m.If(self.marks):
            m.d.sync += self.turn.eq(Mux(last, 0, self.turn + 1))
            with m.If(last):
                m.d.sync += self.at.eq(Mux(end, 0, self.at + 1))
        with m.If(self.enter):
            m.d.sync += touched.eq(~self.ends & (touched | ~p.mark))
        bench.assume(~i.valid | ~self.empty | ((self.at == 0) & (self.turn == 0) & ~touched))
        for right in marked(bench, geometry, cells, self.at, p).values():
            bench.assume(~i.valid | ~p.mark | right)

        # The row of weights tells the source's channel, and its place in the stride.
        phases = [divmod(row % geometry.phases, across) for row in range(geometry.sources)]
        self.channel = looked_up(bench, "channel", p.row, [row // geometry.phases for row in range(geometry.sources)])
        phase_y, phase_x = (looked_up(bench, f"phase_{side}", p.row, [phase[side] for phase in phases]) for side in range(2))
        self.y, self.x = Signal(range(geometry.rows + pad_y + 1)), Signal(range((spec.walk.columns + 1) * across))
        m.d.comb += [
            self.y.eq(looked_up(bench, "y", self.at, [y + pad_y for y, _ in cells])),
            self.x.eq(looked_up(bench, "x", self.at, [column * across for _, column in cells]) + phase_x),
        ]
        on_map = (self.y >= pad_y) & (self.y < height + pad_y) & (self.x >= pad_x) & (self.x < width + pad_x) & (p.row < geometry.sources)
        phase = looked_up(bench, "phase", self.at, [(y + pad_y) % down for y, _ in cells])
        its_set = looked_up(bench, "its_set", self.channel, [channel * spec.sets // channels for channel in range(channels)])
        sound = on_map & (phase_y == phase) & (p.set == its_set) & (p.value >= spec.events.value.lo) & (p.value <= spec.events.value.hi)
        bench.assume(~i.valid | p.mark | (sound & (p.value != 0)))
        bench.invariant("the cell and the pass exist", (self.at < len(cells)) & (self.turn < spec.passes))


class Target:
    """Any one neuron, the same for ever.

    Members
    -------
    y, x, output: its place. turn: the pass in which its channel is updated; adder: the lane.
    gives: what an event gives it in that pass, of the place (y, x) in the padded map, the channel and the value that are given.
    """

    def __init__(self, bench: Bench, spec: SynapsesSpec, y: Any, x: Any, channel: Any, value: Any) -> None:
        m, geometry, outputs = bench.m, spec.geometry, range(spec.geometry.outputs)
        inputs, group = geometry.source[0] // geometry.groups, geometry.outputs // geometry.groups
        _, height, width = geometry.target
        self.y, self.x, self.output = bench.fixed("row", height), bench.fixed("column", width), bench.fixed("output", len(outputs))
        self.turn, self.adder = Signal(place_bits(spec.passes), name="its_turn"), Signal(range(max(spec.lanes, 2)), name="adder")
        m.d.comb += [
            self.turn.eq(looked_up(bench, "turn_of", self.output, [output // spec.lanes for output in outputs])),
            self.adder.eq(looked_up(bench, "adder_of", self.output, [output % spec.lanes for output in outputs])),
        ]
        (down, across), (tall, wide) = geometry.stride, geometry.kernel
        at_y, at_x = Signal(signed(8), name="kernel_y"), Signal(signed(8), name="kernel_x")  # by the definition of a convolution
        m.d.comb += [at_y.eq(y - self.y * down), at_x.eq(x - self.x * across)]
        none = ((0,) * wide,) * tall
        kernels: Any = [
            [spec.weights[to][of % inputs] if of // inputs == to // group else none for of in range(geometry.source[0])] for to in outputs
        ]
        for row in kernels:  # each source gives once (`walk-*`, `replay-*`): so what wraps on the way is whole in the end
            reach = sum(((spec.events.value | 0) * weight for kernel in row for line in kernel for weight in line), Interval(0, 0))
            assert reach.signed_bits <= spec.currents.width, f"a sum of {reach} in {spec.currents.width} bits"
        weight, self.gives = Signal(signed(spec.weight_bits), name="weight"), Signal(signed(spec.currents.width), name="gives")
        nested = Array(Array(Array(Array(line) for line in kernel) for kernel in row) for row in kernels)
        inside = (at_y >= 0) & (at_y < tall) & (at_x >= 0) & (at_x < wide)
        m.d.comb += weight.eq(nested[self.output][channel][at_y[:7]][at_x[:7]])
        m.d.comb += self.gives.eq(Mux(inside, weight * value, 0))


def window(spec: SynapsesSpec) -> Bench:
    """Any one neuron's sum, where it waits from cell to cell, and any one chunk on its way out."""
    bench, dut = Bench(), synapses.Synapses(spec)
    m, inside, geometry, out = bench.m, bench.part("dut", dut, left=LEFT), spec.geometry, spec.currents
    i, o, passes, lanes, (taps_y, taps_x) = dut.cells, dut.currents, spec.passes, spec.lanes, geometry.taps
    (down, _), (pad_y, _) = geometry.stride, geometry.padding
    came = Cells(bench, spec, i)
    cells = came.cells
    bench.take(o, "o")
    target = Target(bench, spec, came.y, came.x, came.channel, i.p.value)
    to_y, to_x, its, adder = target.y, target.x, target.turn, target.adder
    total = Signal(signed(out.width))
    with m.If(came.enter):
        m.d.sync += total.eq(Mux(came.ends, 0, total + Mux(~i.p.mark & (came.turn == its), target.gives, 0)))

    bench.invariant("a step begins with no sum", came.touched | (total == 0))
    neurons, now = list(product(*map(range, geometry.target[1:]))), Cat(came.turn, came.at)
    begin, end = (
        looked_up(bench, name, to_y * geometry.target[2] + to_x, numbers)
        for name, numbers in (
            ("begin", [cells.index((max(y * down - pad_y, 0), x)) for y, x in neurons]),
            ("end", [cells.index(((y + taps_y) * down - pad_y - 1, x + taps_x - 1)) for y, x in neurons]),
        )
    )
    bench.invariant("no sum before its first cell", (now >= Cat(its, begin)) | (total == 0))
    given = i.valid & ~i.p.mark & (came.turn == its) & (target.gives != 0)
    bench.claim("sums: nothing comes for a neuron that is complete", (now <= Cat(its, end)) | ~given)

    # So many cycles later it acts on the sums.
    now_told = {"at": came.at, "turn": came.turn, "sum": total, "marks": came.marks, "empty": came.enter & came.empty, "step": i.p.step}
    at, turn, sum_, marks, empty, step = (bench.history(Value.cast(value), spec.stages, name)[-1] for name, value in now_told.items())
    emits = flags_of(geometry, cells)["emit"]
    sending = (came.marks & looked_up(bench, "emits_now", came.at, emits)) | (came.enter & came.empty)
    sends = bench.history(sending, spec.stages, "sends")
    sums, follows, send = inside["sums"], Signal.like(came.at), inside["send"]
    behind = Signal()  # the neuron's pass of this cell is over
    m.d.comb += [behind.eq(its < turn), follows.eq(Mux(behind, Mux(at == len(cells) - 1, 0, at + 1), at))]
    ny = looked_up(bench, "row_of_cell", follows, [y + pad_y for y, _ in cells])
    nx = looked_up(bench, "column_of_cell", follows, [column for _, column in cells])
    tap_y, tap_x = (Signal(range(-64, 64), name=f"tap_{side}") for side in "yx")
    m.d.comb += [tap_y.eq(looked_up(bench, "band", follows, [(y + pad_y) // down for y, _ in cells]) - to_y), tap_x.eq(nx - to_x)]
    hit = (tap_y >= 0) & (tap_y < taps_y) & (tap_x >= 0) & (tap_x < taps_x)
    place = Signal(range(max(len(sums), 2)))  # among `sums`
    m.d.comb += place.eq((tap_y * taps_x + tap_x) * lanes + adder)
    bench.invariant("the sum of this pass", ~hit | (its != turn) | (Array(sums.values())[place] == sum_))
    if passes > 1 and taps_x > 1:
        if passes <= ROTATED:
            ahead = Signal(range(passes))
            m.d.comb += ahead.eq(Mux(behind, its + passes, its) - turn - 1)
            waits = Array([Array(chain) for chain in inside["_windows.chains"].values()])[place][ahead[: place_bits(passes - 1)]]
        else:
            waits = Value.cast(inside.word("_windows.windows", its)).word_select(place, out.width).as_signed()
        bench.invariant("the sum of another pass", ~hit | (its == turn) | (follows == 0) | (waits == sum_))
    if geometry.kept_rows:
        first_tap = int(down == 1)
        to_come = Signal(range(geometry.rows + pad_y + 2))  # the next row that the neuron hears of
        past = nx >= to_x + taps_x
        m.d.comb += to_come.eq(ny + past)
        before = (nx < to_x) | ((nx == to_x) & (its != turn) if taps_x == 1 else 0)
        begun = (to_come > to_y * down) & (to_come > pad_y)
        tap = looked_up(bench, "tap", to_come, [number // down for number in range(geometry.rows + pad_y + 2)]) - to_y
        word = Value.cast(inside.word("_row_memory.rows", Cat(its[: place_bits(passes)], to_x[: place_bits(geometry.target[2])])))
        kept = word.word_select(((tap - first_tap)[:6].as_unsigned() * lanes + adder)[:8], out.width).as_signed()
        bench.invariant("the sum between rows", ~((past | before) & begun & (tap < taps_y)) | (kept == sum_))

    # What the gates say of the pass.
    per_set, within = passes // spec.sets, inside["_next_chunk.within"] if passes > 1 else Const(0)
    if passes > 1:
        base = looked_up(bench, "base_of", came.turn, [(number - number // per_set) * spec.set_rows for number in range(passes)])
        bench.invariant("the pass", (inside["chunk"] == came.turn) & (inside["base"] == base))
        bench.invariant(
            "the pass of its set", within == looked_up(bench, "within_of", came.turn, [number % per_set for number in range(passes)])
        )
        bench.invariant(
            "its set", inside["chunk_set"] == looked_up(bench, "set_of", came.turn, [number // per_set for number in range(passes)])
        )

    # What is complete, and its way out.
    mine = marks & (its == turn) & (ny + 1 == (to_y + taps_y) * down) & (nx == to_x + taps_x - 1)
    ends = empty | ((at == len(cells) - 1) & (turn == passes - 1))
    bench.claim("sums: the neuron's sum, once it is complete", ~mine | (send & (Array(inside["complete"].x)[adder] == sum_)))
    bench.claim("order: what is sent is complete, or an empty step", send == sends[-1])
    fifo = Buffered(bench, inside.child("fifo"))
    bench.claim("order: what is sent finds room", ~send | inside["fifo"].w_rdy)
    bench.claim("order: credits are the room that nobody has taken", inside["credits"] + sum(sends[1:]) + fifo.level == spec.room)
    bench.claim("order: what waits moves", bench.waits(i.valid & ~i.ready & ~o.valid, spec.stages + 2) <= spec.stages + 2)
    told = {"empty": empty, "end": ends, "mine": mine, "turn": turn, "sum": sum_, "step": step}
    _leaving(bench, spec, inside, fifo, told, adder, Mux(looked_up(bench, "emits", at, emits), turn, 0))
    return bench


def _leaving(bench: Bench, spec: SynapsesSpec, inside: Inside, fifo: Buffered, told: dict[str, Any], adder: Any, following: Any) -> None:
    """Any one chunk from where it is complete until it has left, in parts; ``told`` of it; ``following``: the next one's pass."""
    m, o, passes, lanes = bench.m, inside.component.currents, spec.passes, spec.currents.lanes
    send, taken, there, p = inside["send"], inside["taken"], inside["there"], o.p
    waiting, ahead = Signal(), Signal(range(spec.room + 2))
    kept = {name: Signal.like(Value.cast(value), name=f"kept_{name}") for name, value in told.items()}
    with m.If(send & bench.free("pick") & ~waiting):
        m.d.sync += [waiting.eq(1), ahead.eq(fifo.level - taken), *(kept[name].eq(value) for name, value in told.items())]
    with m.Elif(waiting & taken):
        m.d.sync += [ahead.eq(ahead - 1), waiting.eq(ahead != 0)]
    word = data.View(inside["parcel"], fifo.word(ahead))
    same = (word.empty == kept["empty"]) & (word.end == kept["end"]) & (Value.cast(word.step) == kept["step"])
    same &= ~kept["mine"] | (Array(word.x)[adder] == kept["sum"])
    bench.invariant("the chunk watched is in its place", ~waiting | ((ahead < fifo.level) & same))
    filled = [~data.View(inside["parcel"], fifo.word(Const(place, len(ahead)))).empty for place in range(spec.room)]

    def turn_behind(chunks: Any, name: str) -> Signal:
        """The pass of the chunk that leaves after so many others."""
        before = sum((place < chunks) & is_ for place, is_ in enumerate(filled))
        return looked_up(bench, name, inside["whole"] + before, [number % passes for number in range(passes + spec.room)])

    bench.invariant("the pass of the chunk watched", ~waiting | (turn_behind(ahead, "its_pass") == kept["turn"]))
    bench.invariant("the pass of the next chunk", (turn_behind(fifo.level, "next_pass") == following) & (inside["whole"] < passes))

    parts = spec.lanes // lanes
    part = Signal(range(max(parts, 2)))
    leave, now = o.valid & o.ready, there & waiting & (ahead == 0)
    with m.If(leave):
        m.d.sync += part.eq(Mux(taken, 0, part + 1))
    short = spec.currents.parts - (passes - 1) * parts  # parts of a pixel's last chunk
    last = kept["empty"] | (part == Mux(kept["turn"] == passes - 1, short, parts) - 1)
    within = there & ~inside["leaving"].empty & (part < Mux(inside["whole"] == passes - 1, short, parts))
    bench.invariant("the part", (inside["part"] == 1 << part) & ((part == 0) | within))
    bench.claim("order: what waits is offered", o.valid == there)
    bench.claim("order: a chunk leaves with its last part", ~now | (taken == (leave & last)))
    bench.claim("order: the step's last part is marked", ~now | (p.mark == (kept["end"] & last)))
    lane, its_part = (
        looked_up(bench, name, adder, numbers)
        for name, numbers in (
            ("lane", [number % lanes for number in range(spec.lanes)]),
            ("its_part", [number // lanes for number in range(spec.lanes)]),
        )
    )
    bench.claim("sums: it leaves as it was", ~now | ~kept["mine"] | (part != its_part) | (Array(p.x)[lane] == kept["sum"]))
    bench.claim("steps: a chunk has its flags", ~now | ((p.empty == kept["empty"]) & (Value.cast(p.step) == kept["step"])))
    bench.claim("order: an offer stands until it is taken", bench.stands(o, "o"))


def _window(
    name: str,
    what: str,
    geometry: Geometry,
    lanes: int,
    weights: Sequence[int] = WEIGHTS,
    value: Interval = SPIKES,
    fast: bool = True,
    **options: Any,
) -> Property:
    spec = spec_of(geometry, value, lanes, weights, **options)
    return Property(f"window-{name}", f"{_WINDOW} ({what})", partial(window, spec), 9, fast)


_WINDOW = (
    "Synapses of a convolution: the current of any neuron is the sum of weight x value of the events of its cells, in a width that no sum "
    "can leave; chunks in order with their step's flags; credits exact; offers stand; what waits moves"
)

PROPERTIES = (
    _window("1x1", "a source, kernel 1 x 1", Geometry((1, 1, 1), 1), 1),
    _window("1x1-2", "2 channels in 2 groups of 4 x 4, stride 2, a lane", Geometry((2, 4, 4), 2, (1, 1), (2, 2), groups=2), 1),
    _window("1x2", "1 x 2, padding 1", Geometry((1, 1, 2), 1, (1, 2), padding=(0, 1)), 1),
    _window("2x1", "3 x 3 to 2 channels, kernel 2 x 1, a lane", Geometry((1, 3, 3), 2, (2, 1)), 1),
    _window("2x1-2", "4 x 1, kernel 2 x 1, stride 2 x 1", Geometry((1, 4, 1), 1, (2, 1), (2, 1)), 1),
    _window("3x1-2", "4 x 3 to 2 channels, kernel 3 x 1, stride 2 x 1, a lane", Geometry((1, 4, 3), 2, (3, 1), (2, 1), (1, 0)), 1),
    _window("2x2", "2 x 2, kernel 2 x 2", Geometry((1, 2, 2), 1, (2, 2)), 1),
    _window("2x2-2", "3 x 5 counts, stride 2: sources that reach no neuron", Geometry((1, 3, 5), 1, (2, 2), (2, 2)), 1, value=COUNTS),
    _window("3x3", "2 channels of 3 x 4 to 2, padding 1, 2 lanes", Geometry((2, 3, 4), 2, (3, 3), padding=(1, 1)), 2),
    _window("3x3-2", "5 x 4, stride 2, padding 1", Geometry((1, 5, 4), 1, (3, 3), (2, 2), (1, 1)), 1),
    _window("5x3", "4 x 4, padding 3 x 2", Geometry((1, 4, 4), 1, (5, 3), (1, 1), (3, 2)), 1, fast=False),
    _window("parts", "2 channels of 3 x 3 counts to 3, 2 lanes, 1 a transfer", Geometry((2, 3, 3), 3, (2, 2)), 2, value=COUNTS, fast=False),
    _window("passes", "3 x 3 to 3 channels, a lane: windows in registers", Geometry((1, 3, 3), 3, (2, 2)), 1, fast=False),
    _window("memory", "3 x 3 to 5 channels, a lane: windows in a memory", Geometry((1, 3, 3), 5, (2, 2)), 1, fast=False),
    _window("sets", "4 channels in 2 groups to 4, 3 x 3, a lane", Geometry((4, 3, 3), 4, (3, 3), padding=(1, 1), groups=2), 1, fast=False),
    _window("groups", "2 channels in 2 groups, 3 x 3, 2 lanes", Geometry((2, 3, 3), 2, (3, 3), padding=(1, 1), groups=2), 2, fast=False),
    _window("logic", "3 x 3 counts, products in logic", Geometry((1, 3, 3), 1, (2, 2)), 1, (15, -16, 9), COUNTS, multiplier="logic"),
    _window("both", "3 x 3 counts, products in both", Geometry((1, 3, 3), 1, (2, 2)), 1, (7, -8, 3), COUNTS, multiplier="both"),
)
