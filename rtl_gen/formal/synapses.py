"""What is claimed of the way from events to currents: both kinds of synapses against the sums by definition."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from math import prod
from operator import add
from typing import Any

from amaranth.hdl import Array, Cat, Const, Mux, Signal, Value, signed
from amaranth.lib import wiring

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Inside, Property
from rtl_gen.formal.walks import SPIKES, Events, looked_up, places, reached
from rtl_gen.gates import replay as replays
from rtl_gen.gates import synapses
from rtl_gen.gates import walk as walks
from rtl_gen.gates.replay import ReplaySpec
from rtl_gen.gates.streams import CurrentFormat, EventFormat
from rtl_gen.gates.synapses import SynapsesSpec
from rtl_gen.gates.walk import Geometry

COUNTS = Interval(0, 3)


def weight_of(spec: SynapsesSpec, target: tuple[int, int, int], source: tuple[int, int, int]) -> int:
    """The weight between two places (y, x, channel), by the definition of a convolution."""
    geometry, (oy, ox, output), (y, x, channel) = spec.geometry, target, source
    if geometry.flat:
        return int(spec.weights[output][places(geometry.source).index(source)])
    inputs, outputs = geometry.source[0] // geometry.groups, geometry.outputs // geometry.groups
    if channel // inputs != output // outputs:
        return 0
    row = spec.weights[output][channel % inputs]
    return sum(int(row[ky][kx]) for to_y, to_x, ky, kx in reached(geometry, y, x) if (to_y, to_x) == (oy, ox))


def spec_of(
    geometry: Geometry, value: Interval, lanes: int, weights: Sequence[int], *, transfer: int = 1, kind: Any = SynapsesSpec, **options: Any
) -> Any:
    """Synapses of ``kind`` with ``weights``, as many as there are, one after the other and from the start again."""
    span = Interval(min(weights), max(weights))
    shape = (prod(geometry.source),) if geometry.flat else (geometry.source[0] // geometry.groups, *geometry.kernel)
    nested: Any = [weights[index % len(weights)] for index in range(geometry.outputs * prod(shape))]
    for size in reversed(shape):
        nested = [tuple(nested[start : start + size]) for start in range(0, len(nested), size)]
    out = CurrentFormat(geometry.target, transfer, (span * value * prod(shape)).signed_bits)
    return kind(geometry, EventFormat(geometry.source, value), out, lanes, span.signed_bits, tuple(nested), **options)


class Neuron:
    """Any one neuron, the same for ever, and what the events of a step give it.

    Members
    -------
    place: in wire order. gives: what the event that is offered gives it; hears: whether it reaches any neuron.
    total: what the events of this step have given.
    chunk: place of the next transfer that leaves, in its step; its: it is the neuron's; lane: there.
    """

    def __init__(self, bench: Bench, spec: SynapsesSpec, came: Events, i: Any, o: Any) -> None:
        m, geometry, out = bench.m, spec.geometry, spec.currents
        sources, targets = places(geometry.source), places(geometry.target)
        self.place = bench.fixed("target", len(targets))

        self.came, self._bench, self._size = came, bench, 1 << len(came.place)
        self._rows = [[weight_of(spec, to, source) for source in sources] + [0] * (self._size - len(sources)) for to in targets]
        reach = [list(accumulate(((spec.events.value | 0) * weight for weight in row), add)) for row in self._rows]  # by the last event
        wide = signed(max(out.width, *(row[-1].signed_bits for row in reach)) + 1)
        self.gives, self.total = Signal(wide, name="gives"), Signal(wide, name="total")
        m.d.comb += self.gives.eq(self.weight(came.place, self.place) * i.p.value)
        at = Cat(came.last, self.place)
        lowest = looked_up(bench, "lowest", at, [total.lo for row in reach for total in row])
        highest = looked_up(bench, "highest", at, [total.hi for row in reach for total in row])
        bench.invariant("the total is in its interval", (self.total >= lowest) & (self.total <= highest))
        self.hears = looked_up(bench, "hears", came.place, [int(geometry.flat or bool(reached(geometry, y, x))) for y, x, _ in sources])

        self.chunk = Signal(range(max(out.chunks, 2)))
        with m.If(o.valid & o.ready):
            m.d.sync += self.chunk.eq(Mux(o.p.mark, 0, self.chunk + 1))
        parts = [place // geometry.outputs * out.parts + place % geometry.outputs // out.lanes for place in range(len(targets))]
        self.its = self.chunk == looked_up(bench, "its_chunk", self.place, parts)
        self.lane = looked_up(bench, "its_lane", self.place, [place % geometry.outputs % out.lanes for place in range(len(targets))])

    def weight(self, source: Any, target: Any) -> Signal:
        """The weight between two places, 0 beyond the map; both signals have as many bits as they need."""
        rows = self._rows + [[0] * self._size] * ((1 << len(target)) - len(self._rows))
        return looked_up(self._bench, "weight", Cat(source, target), [weight for row in rows for weight in row])


def dense(spec: SynapsesSpec) -> Bench:
    """`Walk`, `Replay` and `Synapses` of a dense layer: a step's events in, then its currents out."""
    bench, dut = Bench(), synapses.Synapses(spec)
    m, walk, replay = bench.m, walks.Walk(spec.walk), replays.Replay(ReplaySpec(spec.cells, spec.passes))
    insides = [bench.part(name, part) for name, part in (("walk", walk), ("replay", replay), ("dut", dut))]
    wiring.connect(m, walk.o, replay.i)
    wiring.connect(m, replay.o, dut.cells)
    i, o = walk.i, dut.currents
    p, step = o.p, Value.cast(i.p.step)
    came = Events(bench, i, spec.events)
    bench.take(o, "o")
    leave = o.valid & o.ready
    neuron = Neuron(bench, spec, came, i, o)
    some, ended, told = Signal(), Signal(), Signal(len(step))  # the step has had an event; its mark; what that told
    with m.If(came.event):
        m.d.sync += [some.eq(1), neuron.total.eq(neuron.total + neuron.gives)]
    with m.If(came.mark):
        m.d.sync += [ended.eq(1), told.eq(step)]
    with m.If(leave & p.mark):
        m.d.sync += [some.eq(0), ended.eq(0), neuron.total.eq(0)]
    patience = spec.stages + 1 + spec.geometry.sources * (spec.passes > 1)  # the pipeline's, and a pass's
    idle = bench.waits((ended | i.valid) & ~o.valid & ~(i.valid & i.ready), patience)
    bench.claim("sums: the neuron's current", ~o.valid | p.empty | ~neuron.its | (Array(p.x)[neuron.lane] == neuron.total))
    bench.claim("sums: an empty step has no current", ~o.valid | ~p.empty | (neuron.total == 0))
    bench.claim("order: nothing leaves before its step's mark has come", ~o.valid | ended)
    bench.claim("order: nothing is taken until the step before has left", ~ended | ~(came.event | came.mark))
    last = neuron.chunk == spec.currents.chunks - 1
    bench.claim("order: a step is all chunks, or one empty transfer", ~o.valid | (p.mark == (p.empty | last)))
    bench.claim("order: an empty step is nothing else", ~o.valid | ~p.empty | (neuron.chunk == 0))
    bench.claim("order: an offer stands until it is taken", bench.stands(o, "o"))
    bench.claim("order: what waits moves", idle <= patience)
    bench.claim("steps: empty if without events", ~o.valid | (p.empty == ~some))
    bench.claim("steps: each chunk has its flags", ~o.valid | (Value.cast(p.step) == told))
    _inside_dense(bench, spec, neuron, insides, some, ended, told, idle)
    bench.invariant("a step begins where one ended", came.begins == (ended | ~some))
    return bench


def _inside_dense(
    bench: Bench, spec: SynapsesSpec, neuron: Neuron, insides: Sequence[Inside], some: Any, ended: Any, told: Any, idle: Any
) -> None:
    """Where the events of a step are, and what they have given to the sum of the neuron's adder in this pass."""
    m, (walk, replay, inside) = bench.m, insides
    outputs, lanes, passes, width = spec.geometry.outputs, spec.lanes, spec.passes, spec.currents.width
    cell, fire, there, taken, whole = inside.component.cells.p, inside["fire"], inside["there"], inside["taken"], inside["whole"]
    chunk, pass_ = inside["chunk"], Signal(range(max(passes, 2)))  # of this pass
    m.d.comb += pass_.eq(chunk)
    adder = looked_up(bench, "its_adder", neuron.place, [output % lanes for output in range(outputs)])
    its = looked_up(bench, "its_pass", neuron.place, [output // lanes for output in range(outputs)])
    output = Signal(range(max(passes * lanes, 2)))
    m.d.comb += output.eq(pass_ * lanes + adder)
    issued = Signal(width)
    given = bench.history(Mux(fire & ~cell.mark, neuron.weight(cell.row, output) * cell.value, 0), spec.stages, "given")
    sends = bench.history(fire & cell.mark, spec.stages, "sends")
    m.d.sync += issued.eq(Mux(taken, 0, issued + given[0]))
    total = Mux(inside["clear"], 0, Array(inside["sums"][(0, 0), place] for place in range(lanes))[adder])
    bench.invariant("a sum is what was given to it, less what is on its way", (total + sum(given[1:]))[:width] == issued)
    bench.invariant("one pass is on its way", inside["credits"] + sum(sends[1:]) + there == 1)
    sent = Cat(*sends[1:], there).any()
    left = neuron.chunk - whole * (lanes // spec.currents.lanes)  # parts of what leaves
    bench.invariant(
        "the part",
        (left >= 0)
        & (neuron.chunk < spec.currents.chunks)
        & (inside["part"] == 1 << left[:3].as_unsigned())
        & ((there & some) | (left == 0)),
    )
    bench.invariant("the walk", walk["touched"] == (some & ~ended))
    position = sum(stage * at for stage, at in enumerate([*sends[1:], there], 1))
    if passes == 1:
        bench.invariant("it waits for the pipeline", idle <= position)
        bench.invariant("the step has ended", ended == sent)
        bench.invariant("a step without events has no total", some | (neuron.total == 0))
        bench.invariant("what was given is the total", issued == neuron.total[:width])
        return

    # Of several passes: the events that `Replay` keeps are those of the step, and a pass has given so many of them.
    repeat, count, item, kept, depth = replay.state, replay["count"], replay["item"], replay["kept"], replay.component.spec.depth
    terms = [Const(0)]  # what so many of them give
    for place in range(depth):
        event = kept(replay.word("events", place))
        gives = Signal.like(neuron.total, name=f"keeps_{place}")
        m.d.comb += gives.eq(neuron.weight(event.row, neuron.place) * event.value)
        terms.append((terms[-1] + gives)[:width])
        sound = (event.row < depth) & (event.value != 0) & (event.value >= spec.events.value.lo) & (event.value <= spec.events.value.hi)
        bench.invariant(f"event {place}", (place >= count) | sound)
    was = Mux(sent, whole, pass_)  # the pass that has given
    right = Mux(repeat & ~sent, Array(terms)[item], neuron.total[:width])
    bench.invariant("what was given is of the events of the pass", (was != its) | (issued == right))
    bench.invariant("what is kept is the total", (sent & ~repeat) | (Array(terms)[count] == neuron.total[:width]))
    bench.invariant("a pass gives the events in turn", Mux(repeat & ~sent, item <= count, item == 0))
    bench.invariant("the next event", ~repeat | (item == count) | (Value.cast(replay["read"].data) == replay.word("events", item)))
    bench.invariant("the pass", Mux(repeat, (replay["passes"] == pass_) & (pass_ != 0) & (pass_ < passes), pass_ == 0))
    bench.invariant("the pass that leaves", whole == Mux(sent & some, Mux(repeat, pass_ - 1, passes - 1), pass_))
    bench.invariant("the step has ended", ended == (sent | repeat))
    bench.invariant("it waits for a pass and the pipeline", idle <= Mux(sent, depth + position, Mux(repeat, item, 0)))
    bench.invariant("rows of the pass", (inside["base"] == pass_ * spec.set_rows) & (inside["_next_chunk.within"] == pass_))
    bench.invariant("events kept", ((count != 0) == (repeat | (some & ~sent))) & (count <= depth))
    bench.invariant("there is room for the others", repeat | ended | ~some | (count <= neuron.came.last + 1))
    mark = replay["cell"]
    bench.invariant("the mark that is kept", ~repeat | (some & mark.mark & ~mark.empty & (Value.cast(mark.step) == told)))


class Step:
    """Any one step, followed from its first offer to its last current, while others are before and behind it.

    Members
    -------
    leaving: it is on its way, and all before it have left. taken: what is taken in is of it. total: what its events have given the neuron.
    reached: one that reaches any neuron has come; ended: its mark; told: what was told last. level: marks taken and not yet given out.
    """

    def __init__(self, bench: Bench, neuron: Neuron, i: Any, leaves: Any, most: int) -> None:
        m, step, came = bench.m, Value.cast(i.p.step), neuron.came
        enter = i.valid & i.ready
        watched, self.level, ahead = Signal(name="watched"), Signal(range(most + 2)), Signal(range(most + 2))
        total, reached_, ended, told = Signal.like(neuron.total), Signal(), Signal(), Signal(len(step))
        pick, now, before = Signal(), Signal(), Signal.like(ahead)
        m.d.comb += [
            pick.eq(i.valid & came.begins & ~watched & bench.free("pick")),
            now.eq(watched | pick),
            before.eq(Mux(watched, ahead, self.level)),
        ]
        of_it = now & ~ended
        hears = i.valid & ~i.p.mark & neuron.hears
        self.total, self.leaving, self.taken = total, now & (before == 0), of_it & enter
        self.reached, self.ended = reached_ | (of_it & hears), ended | (of_it & i.valid & i.p.mark)
        self.told = Mux(ended | ~i.valid, told, step)
        end = leaves & (before == 0)
        m.d.sync += [
            self.level.eq(self.level + came.mark - leaves),
            watched.eq(now & ~end),
            ahead.eq(before - leaves),
            total.eq(Mux(now & ~end, total + Mux(of_it & came.event, neuron.gives, 0), 0)),
            reached_.eq(now & ~end & self.reached),
            ended.eq(now & ~end & (ended | (of_it & came.mark))),
        ]
        with m.If(self.taken):
            m.d.sync += told.eq(step)


def convolution(spec: SynapsesSpec, most: int) -> Bench:
    """`Walk`, `Replay` and `Synapses` of a convolution: steps follow each other closely, at most ``most`` of them are on their way."""
    bench, dut = Bench(), synapses.Synapses(spec)
    m, walk, replay = bench.m, walks.Walk(spec.walk), replays.Replay(ReplaySpec(spec.cells, spec.passes))
    for name, part in (("walk", walk), ("replay", replay), ("dut", dut)):
        bench.part(name, part)
    wiring.connect(m, walk.o, replay.i)
    wiring.connect(m, replay.o, dut.cells)
    i, o = walk.i, dut.currents
    p = o.p
    came = Events(bench, i, spec.events)
    bench.take(o, "o")
    leave = o.valid & o.ready
    neuron = Neuron(bench, spec, came, i, o)
    step = Step(bench, neuron, i, leave & p.mark, most)
    leaving, last = o.valid & step.leaving, neuron.chunk == spec.currents.chunks - 1
    gone = Signal()  # the neuron's current has left
    with m.If(leave & step.leaving):
        m.d.sync += gone.eq(~p.mark & (gone | neuron.its))
    now = gone | (leaving & (neuron.its | p.empty))
    bench.claim("sums: the neuron's current", ~leaving | p.empty | ~neuron.its | (Array(p.x)[neuron.lane] == step.total))
    bench.claim("sums: an empty step has no current", ~leaving | ~p.empty | (step.total == 0))
    bench.claim("sums: nothing comes for a neuron that is offered or gone", ~(now & step.taken & came.event) | (neuron.gives == 0))
    bench.claim("order: a step is all chunks, or one empty transfer", ~o.valid | (p.mark == (p.empty | last)))
    bench.claim("order: an empty step is nothing else", ~o.valid | ~p.empty | (neuron.chunk == 0))
    bench.claim("order: never more steps than there is room for", step.level <= most)
    bench.claim("order: nothing leaves that was not offered", ~o.valid | (step.level != 0) | i.valid | ~came.begins)
    bench.claim("order: an offer stands until it is taken", bench.stands(o, "o"))
    bench.claim("steps: empty if no event reaches a neuron", ~leaving | (p.empty == ~step.reached))
    bench.claim("steps: it ends once its mark has come", ~leaving | ~p.mark | step.ended)
    bench.claim("steps: each chunk has its flags", ~leaving | (Value.cast(p.step)[:3] == step.told[:3]))
    bench.claim("steps: the mark has its flags", ~leaving | ~p.mark | (Value.cast(p.step) == step.told))
    return bench


def _dense(name: str, what: str, spec: SynapsesSpec, fast: bool = True) -> Property:
    return Property(f"synapses-{name}", f"{_DENSE} ({what})", partial(dense, spec), 6, fast)


def _convolution(name: str, what: str, geometry: Geometry, weights: Sequence[int], depth: int = 0) -> Property:
    """Of any length, or, with ``depth``, for so many cycles."""
    bench = partial(convolution, spec_of(geometry, SPIKES, 1, weights, room=2), 4)
    said = f"{_CONVOLUTION} ({what}, room for 2 chunks)"
    if not depth:
        return Property(f"synapses-{name}", said, bench, fast=False, engine="pdr")
    return Property(f"synapses-{name}", said, bench, depth, fast=False, bounded=True)


def _flat(sources: int, outputs: int) -> Geometry:
    return Geometry((sources, 1, 1), outputs, flat=True)


_DENSE = (
    "Walk, Replay, Synapses: the current of a neuron in a step is the sum of weight x value of its events, unwrapped; "
    "currents in order with their step's flags; empty steps as one; offers stand; what waits moves"
)

_CONVOLUTION = (
    "Walk, Replay, Synapses: the current of any neuron in any step is the sum of weight x value of its events, unwrapped; "
    "steps and chunks in order with their flags; empty steps as one; offers stand"
)

_MAP = Geometry((1, 2, 2), 4, flat=True)

PROPERTIES = (
    _dense("one", "2 spikes to 1 neuron", spec_of(_flat(2, 1), SPIKES, 1, (1, -2))),
    _dense("parts", "3 counts to 3 neurons, 4 lanes, 2 a transfer", spec_of(_flat(3, 3), COUNTS, 4, (3, -4, 1, 2, -1), transfer=2)),
    _dense("logic", "2 counts to 2 neurons, products in logic", spec_of(_flat(2, 2), COUNTS, 2, (15, -16, 9), multiplier="logic")),
    _dense("both", "2 counts to 4 neurons, products in both", spec_of(_flat(2, 4), COUNTS, 4, (7, -8, 3), multiplier="both")),
    _dense("passes", "2 spikes to 2 neurons, a lane", spec_of(_flat(2, 2), SPIKES, 1, (1, -2, -1))),
    _dense("three", "4 spikes to 5 neurons, 2 lanes, 1 a transfer", spec_of(_flat(4, 5), SPIKES, 2, (1, -2, -1, 3, 0, -4, 2)), False),
    _dense("map", "2 x 2 counts to 4 neurons, 4 lanes, 2 a transfer", spec_of(_MAP, COUNTS, 4, (3, -4, 1, 2, -1), transfer=2), False),
    _dense("chunks", "2 counts to 3 neurons, 2 lanes, 1 a transfer", spec_of(_flat(2, 3), COUNTS, 2, (1, -2, -1, 1))),
    _convolution("1x1", "a source, kernel 1 x 1", Geometry((1, 1, 1), 1), (1,)),
    _convolution("1x2", "1 x 3, kernel 1 x 2", Geometry((1, 1, 3), 1, (1, 2)), (1, -1), 18),
    _convolution("2x2", "2 x 2, kernel 2 x 2", Geometry((1, 2, 2), 1, (2, 2)), (1, -1, -1, 1), 18),
)
