"""What is claimed of neurons: the CIF update and where it rests, the divider of count code, the volleys that leave."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

from amaranth.hdl import Array, Cat, Const, Mux, Signal, Value, signed
from amaranth.lib import data

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Buffered, Engine, Inside, Property, Watch
from rtl_gen.gates import neurons
from rtl_gen.gates.neurons import CountSpec, NeuronSpec
from rtl_gen.gates.streams import STEP, CurrentFormat, MapShape


@dataclass(frozen=True)
class Neuron:
    """One CIF neuron: what it receives of each source that spikes, the bias of a wake step, the threshold, T.

    image: it takes pixels of 0 to ``image``, the same in each wake step and none in sleep, instead of spikes.
    cumulative: it tells counts, as a maximum needs them.
    """

    weights: tuple[int, ...]
    bias: int
    threshold: int
    levels: int
    image: int = 0
    cumulative: bool = False

    def bounds(self) -> tuple[NeuronSpec, Interval]:
        """The gates that `rtl_gen.lower` makes for it, and the interval of its potential as it is compared."""
        import torch

        from casc_hw.intervals import bounds
        from casc_hw.network import IMAGE, IntegerNet, Layer, Pool
        from rtl_gen.lower import Lanes, core_spec

        def layer(name: str, source: str, weights: Sequence[Sequence[int]], bias: int, threshold: int | None) -> Layer:
            matrix = torch.tensor(weights)
            theta = None if threshold is None else torch.full((len(weights),), threshold)
            return Layer.dense(name, source, matrix, torch.full((len(weights),), bias), theta, 8, 1.0 if theta is None else None)

        nodes: list[Layer | Pool] = [] if self.image else [layer("before", IMAGE, [[1]] * len(self.weights), 0, 1)]
        nodes.append(layer("neuron", IMAGE if self.image else "before", [list(self.weights)], self.bias, self.threshold))
        nodes += [Pool("max", "neuron", "max", (1, 1), (1, 1))] * self.cumulative
        nodes.append(layer("readout", nodes[-1].name, [[1]], 0, None))
        inputs = len(self.weights) if self.image else 1
        net = IntegerNet("proof", self.levels, self.levels, None, (inputs, 1, 1), self.image or 1, tuple(nodes))
        spec = core_spec(net, [Lanes(1, 1)] * len(net.layers), 1, "spike")
        place = [node.name for node in net.layers].index("neuron")
        (gates,) = [node.neurons for node in spec.layers if node.name == "neuron"]
        assert isinstance(gates, NeuronSpec)
        return gates, bounds(net)[place].potential


def neuron(case: Neuron) -> Bench:
    """The gates of one neuron beside the neuron in integers that no width bounds, under any schedule and any spikes."""
    spec, potential = case.bounds()
    bench, dut = Bench(), neurons.NeuronArray(spec)
    m, i = bench.m, dut.currents
    inside = bench.part("dut", dut)
    bench.take(dut.volleys, "volleys")
    theta, levels, bias = case.threshold, case.levels, case.bias
    wide = signed(max(potential.bits, spec.potential.bits, spec.bias_bits, (theta * (levels + 1)).bit_length() + 1) + 3)
    count = range(levels + 1)

    # What comes: an image begins with its first wake step, has T at most, and sleep steps between and after them.
    bench.drive(i, "i")
    step = i.p.step
    running, t = Signal(), Signal(count)
    t_next = Signal(range(levels + 2))
    m.d.comb += t_next.eq(Mux(step.first, 1, t + step.wake))
    bench.assume(~i.valid | (i.p.mark & (running | step.first) & (~step.first | step.wake) & (t_next <= levels)))
    if case.image:
        current, held = Signal(wide), Signal(wide)
        reach = Interval(0, case.image)
        span = Interval(sum(min((reach * w).lo, 0) for w in case.weights), sum(max((reach * w).hi, 0) for w in case.weights))
        bench.assume((current >= span.lo) & (current <= span.hi))
        m.d.comb += current.eq(Mux(step.wake, Mux(step.first, bench.free("pixels", wide), held), 0))
        total = (held + bias) * t
    else:
        spikes = [bench.free(f"spike_{index}", signed(2)) for index in range(len(case.weights))]
        counts = [Signal(count, name=f"source_{index}") for index in range(len(case.weights))]
        after = [Mux(step.first, 0, old) + new for old, new in zip(counts, spikes, strict=True)]
        for new, spike in zip(after, spikes, strict=True):
            bench.assume(~i.valid | ((new >= 0) & (new <= levels) & (spike >= -1)))
        current = Signal(wide)
        m.d.comb += current.eq(sum(weight * spike for weight, spike in zip(case.weights, spikes, strict=True)))
        total = sum(weight * old for weight, old in zip(case.weights, counts, strict=True)) + bias * t
    bench.assume(~i.valid | Mux(i.p.empty, current == 0, Value.cast(i.p.x[0]) == current[: spec.currents.width].as_signed()))

    # The neuron of casc.md.
    v, n = Signal(wide), Signal(count)
    compared, before = Signal(wide), Signal(count)
    up, down, fire = Signal(), Signal(), i.valid & i.ready
    m.d.comb += [
        before.eq(Mux(step.first, 0, n)),
        compared.eq(Mux(step.first, 0, v) + current + Mux(step.wake, bias, 0)),
        up.eq((compared >= theta) & (before < t_next)),
        down.eq((compared < 0) & (before > 0)),
    ]
    said = Signal(signed(2))
    quiet = Signal(count)  # sleep steps without input until now
    with m.If(fire):
        m.d.sync += [
            running.eq(1),
            t.eq(t_next),
            v.eq(compared - Mux(up, theta, 0) + Mux(down, theta, 0)),
            n.eq(before + up - down),
            said.eq(Mux(up, 1, Mux(down, -1, 0))),
            quiet.eq(Mux(step.wake | (current != 0), 0, Mux(quiet == levels, quiet, quiet + 1))),
        ]
        if case.image:
            m.d.sync += held.eq(Mux(step.first, current, held))
        else:
            m.d.sync += [old.eq(new) for old, new in zip(counts, after, strict=True)]

    bench.claim("0 <= n <= t <= T", (n <= t) & (t <= levels))
    bench.claim("the potential as it is compared is in its interval", ~fire | ((compared >= potential.lo) & (compared <= potential.hi)))
    bench.claim("the potential that is kept is in its interval", (v >= spec.potential.lo) & (v <= spec.potential.hi))
    bench.invariant("v = S - theta n", v == total - theta * n)
    resting = ((v >= 0) & (v < theta)) | ((v >= theta) & (n == levels)) | ((v < 0) & (n == 0))
    clipped = ((n == 0) | (total >= theta * n)) & ((n == levels) | (total < theta * (n + 1)))
    bench.claim("at rest n = clip(floor(S / theta), 0, T)", ~resting | clipped)
    left = levels - quiet
    bench.claim("after T sleep steps without input no spike", ~fire | step.wake | (current != 0) | (quiet < levels) | ~(up | down))
    bench.invariant("and before, no further from rest than steps are left (above)", (n + left >= t) | (total < theta * (n + left + 1)))
    bench.invariant("and before, no further from rest than steps are left (below)", (n <= left) | (total >= theta * (n - left)))

    # Why the potential is in its interval.
    if case.image:
        bench.invariant("an image's current has one sign", Mux(held + bias < 0, (n == 0) & (v <= 0), v >= 0))
        bench.invariant("and its interval", (held >= span.lo) & (held <= span.hi))
        bench.invariant("nothing before the first image", running | ((t == 0) & (n == 0) & (v == 0) & (held == 0)))
    else:
        since = [Signal(count, name=f"since_{index}") for index in range(len(case.weights))]  # at the last positive spike
        since_t = Signal(count)
        with m.If(fire):
            with m.If(up):
                m.d.sync += [then.eq(new) for then, new in zip(since, after, strict=True)]
                m.d.sync += since_t.eq(t_next)
            with m.Elif(step.first):
                m.d.sync += [then.eq(0) for then in since]
                m.d.sync += since_t.eq(0)
        drift = sum(w * (old - then) for w, old, then in zip(case.weights, counts, since, strict=True)) + bias * (t - since_t)
        bench.invariant("no lower than what came since the last positive spike", v >= drift)
        bench.invariant("sources count 0 to T", Cat(value <= levels for value in (*counts, *since)).all() & (since_t <= t))

    _same(bench, inside, spec, fire, v, n, t, said, running, theta)
    return bench


def _same(bench: Bench, inside: Inside, spec: NeuronSpec, fire: Any, v: Any, n: Any, t: Any, said: Any, running: Any, theta: int) -> None:
    """The gates do what the neuron does, five cycles later."""
    dut, tags = inside.component, inside["tags"]
    done, result, fired, says = tags[-1], inside["_lane.result"], inside["fired"], inside["values"][0]
    stages = [bench.before(fire, "stage_1")]
    for stage in range(2, len(tags)):
        stages.append(bench.before(stages[-1], f"stage_{stage}"))
    bench.invariant("gates: one step at a time", Cat(stages) & (Cat(stages) - 1) == 0)
    for stage, (tag, on) in enumerate(zip(tags[1:], stages, strict=True), 1):
        bench.invariant(f"gates: stage {stage}", tag.on == on)
        bench.invariant(f"gates: stage {stage} has t and the chunk", ~on | ((tag.t == t) & (tag.chunk == 0) & tag.last))
    same = (result.v == v) & (result.n == n) & (fired == (said != 0))
    bench.claim("gates: the spike, the potential and the count are the neuron's", ~done.on | done.skip | same)
    ready = ~dut.currents.valid | Cat(stages).any() | (inside["credits"] == 0)
    bench.claim("gates: a step is taken once the one before is done and there is room for what it says", ready | fire)
    bench.claim("gates: a step that is skipped has no spike", ~(done.on & done.skip) | (said == 0))
    bench.claim("gates: what is sent is the count, or the spike", ~done.on | done.skip | (says == (n if spec.cumulative else said)))
    idle = running & ~Cat(stages).any()
    word = inside.word("_neurons.state", 0)
    held = (word[: spec.potential.bits].as_signed() == v) & (word[spec.potential.bits :] == n)
    bench.invariant("gates: the memory has the state", ~idle | held)
    bench.invariant("gates: t", ~running | (inside["_neurons.t_last"] == t))
    bench.invariant("gates: a neuron that is not restless rests", ~idle | dut.restless | (((v < theta) | (n == t)) & ((v >= 0) | (n == 0))))
    bench.invariant("gates: the place", (inside["_neurons.chunk"] == 0) & inside["start"] & ~inside["before"])


def array(spec: NeuronSpec) -> Bench:
    """Any one neuron of an array of several, beside a neuron that is alone, in the width of the gates' potential (`neuron` shows that
    it is wide enough); what is said of it when its chunk leaves the pipeline."""
    format, levels = spec.currents, spec.levels
    (outputs, _, width), lanes, parts, chunks = format.shape, format.lanes, format.parts, format.chunks
    bench, dut = Bench(), neurons.NeuronArray(spec)
    m, i, p = bench.m, dut.currents, dut.currents.p
    inside = bench.part("dut", dut)
    bench.drive(i, "i", stable=True)
    bench.take(dut.volleys, "volleys")
    chosen, lane = bench.fixed("chosen", chunks), bench.fixed("lane", lanes)

    # What comes: steps of all chunks, or of one empty transfer; an image begins with its first wake step and has T at most.
    step, place, running, t = p.step, Signal(range(chunks)), Signal(), Signal(range(levels + 1))
    enter, skip, told = inside["enter"], inside["skip"], Signal(3)
    now = Mux(place == 0, Mux(step.wake, Mux(step.first, 1, t + 1), t), t)
    last = place == chunks - 1
    spread = Signal()  # an empty transfer has been taken for the first chunks
    bench.assume(~i.valid | (p.mark == (p.empty | last)) & (~p.empty | (place == 0) | spread))
    bench.assume(~i.valid | (place == 0) | (Value.cast(step)[:3] == told))
    bench.assume(~i.valid | ((running | step.first) & (~step.first | step.wake) & (now <= levels)))
    over = last | skip
    with m.If(enter):
        m.d.sync += [place.eq(Mux(over, 0, place + 1)), spread.eq(p.empty & ~over)]
        m.d.sync += [t.eq(now), running.eq(1), told.eq(Value.cast(step)[:3])]
    bench.claim("a transfer is taken with its chunk, an empty one with the step's last", i.ready == (enter & (over | ~p.empty)))

    # The neuron.
    bits = signed(spec.potential.bits)
    v, n, total, spike = Signal(bits), Signal(range(levels + 1)), Signal(bits), Signal(signed(2))
    channel = Signal(range(parts * lanes))
    m.d.comb += channel.eq((chosen % parts) * lanes + lane)
    rows = [(theta, bias) for theta, bias in zip(spec.thresholds, spec.biases, strict=True)] + [(1, 0)] * (parts * lanes - outputs)
    theta, bias = (Array(row[which] for row in rows)[channel] for which in range(2))
    v_now, n_now = Mux(step.first, 0, v), Mux(step.first, 0, n)
    own = enter & (place == chosen) & ~skip
    m.d.comb += total.eq(v_now + Mux(p.empty | (channel >= outputs), 0, Array(p.x)[lane]) + Mux(step.wake, bias, 0))
    bench.assume((channel < outputs) | p.empty | (Array(p.x)[lane] == 0))
    with m.If((total >= theta) & (n_now < now)):
        m.d.comb += spike.eq(1)
    with m.Elif((total < 0) & (n_now > 0)):
        m.d.comb += spike.eq(-1)
    with m.If(own):
        m.d.sync += [v.eq(total - spike * theta), n.eq(n_now + spike)]
    bench.claim("a step that is skipped would change nothing", ~(enter & skip) | ((spike == 0) & (total == v) & ~step.first))

    # What is said, five cycles later.
    said = Signal(signed(4))
    m.d.comb += said.eq(n_now + spike if spec.cumulative else spike)
    says = Cat(enter, skip, over, place, Value.cast(step), own, said, spike != 0)
    for stage in range(1, len(inside["tags"])):
        says = bench.before(says, f"stage_{stage}")
    at = Signal(data.StructLayout({"on": 1, "skip": 1, "last": 1, "place": len(place), "step": STEP, "own": 1, "value": 4, "fired": 1}))
    m.d.comb += Value.cast(at).eq(says)
    volley, push, some = inside["volley"], inside["push"], Signal()
    value = Value.cast(Array(volley.values)[lane]).as_unsigned()
    any_ = Cat(Value.cast(one) != 0 for one in volley.values).any() if not spec.cumulative else inside["fired"].any()
    with m.If(at.on):
        m.d.sync += some.eq(~at.last & (some | (any_ & ~at.skip)))
    where = (volley.part == at.place % parts) & (volley.x == at.place // parts % width) & (volley.y == at.place // (parts * width))
    bench.claim("what enters leaves five cycles later", inside["done"].on == at.on)
    bench.claim("a chunk has the neuron's spike, or its count", ~at.own | (value == at.value[: len(value)]))
    bench.claim("a neuron that spikes is told of", ~at.own | ~at.fired | push)
    bench.claim("every chunk sends, or one that says something, or a step's last", push == (at.on & (at.last | int(spec.complete) | any_)))
    bench.claim("a chunk has its place", ~at.on | at.skip | where)
    bench.claim("a chunk has its step", ~at.on | (Value.cast(volley.step)[:3] == Value.cast(at.step)[:3]))
    bench.claim("a step's mark is its last", ~at.on | (volley.mark == at.last) & (volley.empty == at.skip))
    active = at.step.active | some | (any_ & ~at.skip)
    bench.claim("a step is active if it came so or a neuron spikes", ~at.on | ~at.last | (volley.step.active == active))
    return bench


def counts(levels: int, thresholds: int, total: Interval, gain: int = 1, biases: Sequence[int] = (0,)) -> Bench:
    """Channels of every threshold from 1 to ``thresholds``, one a cycle, and any S in ``total``."""
    channels = [(theta, biases[theta % len(biases)]) for theta in range(1, thresholds + 1)]
    current = Interval(-(-(total.lo - max(biases)) // gain) - 1, (total.hi - min(biases)) // gain + 1)
    format = CurrentFormat((thresholds, 1, 1), 1, current.signed_bits)
    own = tuple(bias for _, bias in channels)
    spec = CountSpec(format, levels, tuple(range(1, thresholds + 1)), own, gain, total)
    bench, dut = Bench(), neurons.CountArray(spec)
    m, i = bench.m, dut.currents
    inside = bench.part("dut", dut)
    bench.drive(i, "i")
    bench.take(dut.volleys, "volleys")
    tags, fired, says = inside["tags"], inside["fired"], inside["values"][0]
    wide = signed(max(total.bits, format.width + gain.bit_length(), thresholds.bit_length() + levels.bit_length() + 1) + 2)
    part, x = tags[0].part, Mux(i.p.empty, 0, i.p.x[0])
    theta, total_sum = Signal(wide), Signal(wide)
    with m.Switch(part):
        for index, (threshold, bias) in enumerate(channels):
            with m.Case(index):
                m.d.comb += [theta.eq(threshold), total_sum.eq(x * gain + bias)]
        with m.Default():
            m.d.comb += theta.eq(1)
    bench.assume(~tags[0].on | ((total_sum >= total.lo) & (total_sum <= total.hi)))
    stages = [(tags[0].on, theta, total_sum)]
    for stage in range(1, len(tags)):
        stages.append(tuple(bench.before(value, f"{name}_{stage}") for name, value in zip("otS", stages[-1], strict=True)))
    on, theta, total_sum = stages[-1]
    n = Value.cast(says)
    right = (n <= levels) & ((n == 0) | (total_sum >= theta * n)) & ((n == levels) | (total_sum < theta * (n + 1)))
    bench.claim("n = clip(floor(S / theta), 0, T)", ~on | right)
    bench.claim("a chunk is taken each cycle in which there is room for what it says", ~i.valid | tags[0].on | (inside["credits"] == 0))
    bench.claim("a neuron that counts is one that has fired", ~on | (fired == (n != 0)))
    bench.invariant("what is in the pipeline is known", tags[-1].on == on)
    bench.invariant("a channel of the map", part < thresholds)
    return bench


def volleys(kind: str, chunks: int, dense: bool, watched: bool = False) -> Bench:
    """Volleys wait in a FIFO that credits keep from overflowing, whatever the back-pressure; ``watched``: any one of them is, besides."""
    format = CurrentFormat((chunks, 1, 1), 1, 3)
    thetas, biases = (2,) * chunks, (0,) * chunks
    if kind == "spike":
        dut: Any = neurons.NeuronArray(NeuronSpec(format, 2, thetas, biases, Interval(-8, 7), dense))
    else:
        dut = neurons.CountArray(CountSpec(format, 2, thetas, biases, 1, Interval(-4, 3), dense))
    bench = Bench()
    inside = bench.part("dut", dut)
    bench.drive(dut.currents, "i", stable=True)
    bench.take(dut.volleys, "volleys")
    flying = sum(tag.on for tag in inside["tags"][1:])
    fifo = Buffered(bench, inside.child("fifo"))
    room = Const(neurons.VOLLEYS) - fifo.level
    bench.claim("a volley finds room", ~inside["push"] | inside["fifo"].w_rdy)
    bench.claim("credits are the room that nobody has taken yet", inside["credits"] == room - flying)
    bench.invariant("room for all that are on their way", flying <= room)
    if not watched:  # which `pdr` proves by itself
        bench.claim("an offer stands until it is taken", bench.stands(dut.volleys, "volleys"))
        return bench
    pushed = SimpleNamespace(valid=inside["push"], ready=Const(1), payload=inside["fifo"].w_data)
    watch = Watch(bench, pushed, dut.volleys, neurons.VOLLEYS)
    bench.invariant("all that were pushed are there", watch.level == fifo.level)
    bench.invariant("the volleys are in order", ~watch.waiting | watch.is_in(fifo.word(watch.ahead)))
    return bench


_NEURON = (
    "the gates are the neuron; 0 <= n <= t <= T; v in its interval; at rest n = clip(floor(S / theta), 0, T), within T quiet sleep steps"
)
_ARRAY = (
    "NeuronArray: any one neuron of several does what one alone would, in its width; its chunk leaves five cycles later with its spike "
    "or count, its place and its step's flags; a step that is skipped changes nothing"
)
_COUNT = "n = clip(floor(S / theta), 0, T)"
_VOLLEYS = "the volleys' FIFO never overflows, credits are exact, offers stand"
_WATCHED = f"{_VOLLEYS}; any one volley is given out as it was, once, in order"


def _neuron(name: str, case: Neuron, what: str, fast: bool = True) -> Property:
    return Property(f"neuron-{name}", f"{_NEURON} ({what}, T = {case.levels})", lambda: neuron(case), fast=fast)


def _count(name: str, levels: int, thresholds: int, total: Interval, fast: bool = True, **options: Any) -> Property:
    what = f"T = {levels}, theta 1 to {thresholds}, S in {total}"
    return Property(f"divider-{name}", f"{_COUNT} ({what})", lambda: counts(levels, thresholds, total, **options), 14, fast)


def _several(shape: MapShape, lanes: int, levels: int = 1, width: int = 2, **options: Any) -> NeuronSpec:
    """Thresholds and biases of small neurons."""
    thetas, biases = (1, 2, 1)[: shape[0]], (0, -1, 1)[: shape[0]]
    return NeuronSpec(CurrentFormat(shape, lanes, width), levels, thetas, biases, Interval(-4, 3), **options)


def _array(name: str, what: str, spec: NeuronSpec, depth: int = 0) -> Property:
    claim = f"{_ARRAY} ({what})"
    engine: Engine = "induction" if depth else "pdr"
    return Property(f"array-{name}", claim, partial(array, spec), depth or 8, False, engine, bounded=bool(depth))


def _volleys(kind: str, chunks: int, dense: bool, watched: bool = False) -> Property:
    name = f"volleys-{kind}-{chunks}{'-dense' * dense}{'-watched' * watched}"
    claim = f"{_WATCHED if watched else _VOLLEYS} ({kind} code, {chunks} chunks)"
    return Property(name, claim, lambda: volleys(kind, chunks, dense, watched))


PROPERTIES = (
    _neuron("binary", Neuron((2, -1), 0, 1, 1), "2 sources"),
    _neuron("two", Neuron((4, -3), 1, 3, 2), "2 sources"),
    _neuron("three", Neuron((6, -5), -1, 4, 3), "2 sources"),
    _neuron("counts", Neuron((5, -3), -1, 3, 2, cumulative=True), "2 sources, before a max pool"),
    _neuron("image", Neuron((2, -3), -1, 3, 3, image=3), "2 pixels of 0 to 3"),
    _neuron("four", Neuron((7, -4), 1, 6, 4), "2 sources", fast=False),
    _neuron("many", Neuron((2, -1, -2), 1, 2, 2), "3 sources", fast=False),
    _neuron("image-wide", Neuron((7, -5), 3, 9, 4, image=15), "2 pixels of 0 to 15", fast=False),
    _array("two", "2 chunks of a lane, T = 1", _several((2, 1, 1), 1)),
    _array("lanes", "2 pixels of 2 parts of 2 lanes, one of them padded, T = 1", _several((3, 1, 2), 2), 18),
    _array("six", "6 chunks of a lane, more than the pipeline has stages, T = 2", _several((2, 1, 3), 1, levels=2, width=3), 16),
    _array("counts", "2 chunks of a lane, counts, T = 2", _several((2, 1, 1), 1, levels=2, cumulative=True), 18),
    _count("binary", 1, 4, Interval(-3, 7)),
    _count("three", 3, 5, Interval(-9, 20)),
    _count("seven", 7, 7, Interval(-64, 63)),
    _count("eight", 8, 9, Interval(-40, 99), gain=8, biases=(0, 3, -5)),
    _count("fifteen", 15, 32, Interval(-512, 511), fast=False),
    _volleys("spike", 1, False),
    _volleys("spike", 7, False),
    _volleys("spike", 7, True),
    _volleys("count", 3, False),
    _volleys("count", 3, True),
    _volleys("spike", 7, False, watched=True),
    _volleys("count", 3, False, watched=True),
)
