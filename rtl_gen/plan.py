"""The plan: lanes for every layer, under a board's budget, with what they cost and how fast they are. A value with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from casc_hw.errors import CascError
from casc_hw.intervals import LayerBounds, bounds
from casc_hw.network import IMAGE, IntegerNet, Layer, Pool, Synapses
from casc_hw.reference import sleep_bound
from rtl_gen.budget import Budget
from rtl_gen.cycles import Prediction
from rtl_gen.gates.core import CoreSpec, LayerSpec, PoolNode
from rtl_gen.gates.serial import SerialSpec
from rtl_gen.limits import Limits, limits_of, operations, sent
from rtl_gen.lower import QUEUE, Code, Lanes, current_width, potential_interval
from rtl_gen.resources import MemoryPlan, Resources, parts
from rtl_gen.search import CLOCK_HZ, Candidate, Options, Search, held_by, out_of_reach, refusal


class TooLarge(CascError):
    """The network does not fit."""


@dataclass(frozen=True)
class Width:
    """A width in the gates and the interval it comes from."""

    what: str
    interval: str
    bits: int


@dataclass(frozen=True)
class LayerPlan:
    """One layer or pool.

    Attributes
    ----------
    name, kind: the latter in words.
    sources: what it takes.
    source, target: shapes (channels, height, width) of the first map it takes, and of its own.
    weight_bits, weights: of each of its synapses; none of a pool.
    synapse_lanes, neuron_lanes, passes: see `Lanes`; how often each event is taken. Of a pool, lanes are those before it.
    adders: accumulators that an event updates at once, of all synapses.
    multiplier: "dsp", "logic", or "none" where all values are -1, 0, 1.
    memories, widths: within.
    """

    name: str
    kind: str
    sources: tuple[str, ...]
    source: tuple[int, int, int]
    target: tuple[int, int, int]
    weight_bits: tuple[int, ...]
    weights: int
    synapse_lanes: int
    neuron_lanes: int
    passes: int
    adders: int
    multiplier: str
    memories: tuple[MemoryPlan, ...]
    widths: tuple[Width, ...]


@dataclass(frozen=True)
class Bottleneck:
    """What is slowest, and how near it is to what is possible.

    Attributes
    ----------
    part: the busiest part of the core (see `Prediction.busy`), ``cycles`` an image.
    held_by: in words, what keeps it from being faster.
    limits: bounds on cycles an image; ``nearness``: the plan's over the interval predicted.
    """

    part: str
    cycles: float
    held_by: str
    limits: Limits
    nearness: float


@dataclass(frozen=True)
class Plan:
    """A network laid out for a device.

    Attributes
    ----------
    net, net_digest, levels, margin, sleep, input_shape, input_max: the network's.
    code: "spike" or "count".
    budget: the device's.
    beat: pixels a transfer into the core.
    queue: events that wait before a convolution.
    lanes: by layer.
    spram: layers whose weights are loaded into SPRAM (see `rtl_gen.gates.spram`).
    layers: layers and pools, in words and numbers.
    resources: estimated, host link and clocks included.
    prediction: cycles between images and of one alone, estimated for ``measured_on`` images (0: for assumed activity).
    clock_hz: what the core is assumed to reach.
    spec: the gates.
    """

    net: str
    net_digest: str
    levels: int
    margin: int
    sleep: int | None
    input_shape: tuple[int, ...]
    input_max: int
    code: Code
    budget: Budget
    beat: int
    queue: int
    lanes: tuple[Lanes, ...]
    spram: tuple[str, ...]
    layers: tuple[LayerPlan, ...]
    resources: Resources
    prediction: Prediction
    bottleneck: Bottleneck
    measured_on: int
    clock_hz: float
    spec: CoreSpec

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the network, its code and the lanes: what the gates depend on, whatever the board."""
        lanes = [[lane.synapses, lane.neurons, lane.multiplier, lane.serial] for lane in self.lanes]
        return hashlib.sha256(json.dumps([self.net_digest, self.code, self.beat, self.queue, lanes, self.spram]).encode()).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the gates' spec (which holds the weights)."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "spec"}
        for name in ("budget", "resources", "prediction", "bottleneck"):
            plain[name] = asdict(plain[name])
        plain["lanes"] = [asdict(lane) for lane in self.lanes]
        plain["layers"] = [asdict(layer) for layer in self.layers]
        return plain | {"digest": self.digest}


def make_plan(
    net: IntegerNet,
    budget: Budget,
    options: Options | None = None,
    *,
    images: Any = None,
    larger: Mapping[str, Budget] | None = None,
    **asked: Any,
) -> Plan:
    """A plan for ``net`` on ``budget`` as ``options`` ask, or fields of `Options` by name.

    Starting from one lane everywhere, the busiest part gets what relieves it most for the room it takes, again and again, until
    there is no room or nothing relieves it. Of the plans on this way the one with the least area times time squared is taken; the
    fastest; or the first that reaches the target.

    Parameters
    ----------
    images: integer pixels, a batch, whose activity the lanes are balanced for; None: assumed activity.
    larger: by name, boards' devices to suggest where this one is too small.

    Raises
    ------
    TooLarge: by how much the network does not fit, and what would make it fit. CascError: the target is out of reach.
    """
    options = options or Options(**asked)
    _can_be_told(net, options.code)
    search = Search(net, budget, options, images)
    smallest = search.smallest()
    if search.over(smallest):
        raise TooLarge(refusal(search, smallest, larger or {}))
    way = search.way(smallest)
    wanted = None if options.target_fps is None else CLOCK_HZ[budget.block_ram_kind] / options.target_fps
    if wanted is not None:
        if way[-1].prediction.interval > wanted:
            raise CascError(out_of_reach(search, min(way, key=lambda one: one.prediction.interval), wanted))
        chosen = search.trimmed(way[-1], wanted)
    elif options.fastest:
        least = min(one.cost for one in way)
        chosen = min((one for one in way if one.cost <= 1.005 * least), key=lambda one: one.resources.lut4)
    else:
        chosen = min(way, key=lambda one: one.resources.lut4 * one.cost**2)
    return _plan(search, chosen)


def plan_of(
    net: IntegerNet,
    budget: Budget,
    lanes: Sequence[Lanes],
    beat: int,
    code: Code = "count",
    queue: int = QUEUE,
    spram: Sequence[str] = (),
    *,
    images: Any = None,
) -> Plan:
    """The plan with just these lanes by layer, this beat, queue and layers in SPRAM; nothing is chosen or refused."""
    search = Search(net, budget, Options(code), images, queue, tuple(spram))
    return _plan(search, search.candidate(list(lanes), beat))


def _can_be_told(net: IntegerNet, code: Code) -> None:
    """CascError if a result does not fit what `rtl_gen.gates.readout` sends."""
    sums = bounds(net, code)[-1].potential
    if sums.signed_bits > 32:
        raise CascError(f"{net.readout.name}: sums reach {sums}, beyond a 32-bit result; use fewer weight bits or levels")
    sleeps = -(-net.levels // net.margin) * (sleep_bound(net) if net.sleep is None else net.sleep)
    if code == "spike" and sleeps > 0xFFFF:
        raise CascError(f"{net.name}: may sleep {sleeps} steps, more than the 65535 that a result can tell; use a larger margin")


# The plan in words and numbers


def _plan(search: Search, chosen: Candidate) -> Plan:
    net, budget, prediction = search.net, search.budget, chosen.prediction
    limits = limits_of(chosen.spec, budget, operations(net, search.activities), sent(net, search.activities))
    nearness = limits.best / max(prediction.interval, 1)
    bottleneck = Bottleneck(chosen.part, prediction.busy[chosen.part], held_by(search, chosen), limits, nearness)
    used = parts(chosen.spec, budget)
    bound = dict(zip((layer.name for layer in net.layers), bounds(net, search.options.code), strict=True))
    return Plan(
        net=net.name,
        net_digest=net.digest,
        levels=net.levels,
        margin=net.margin,
        sleep=net.sleep,
        input_shape=net.input_shape,
        input_max=net.input_max,
        code=search.options.code,
        budget=budget,
        beat=chosen.beat,
        queue=search.queue,
        lanes=tuple(chosen.lanes),
        spram=chosen.spram,
        layers=tuple(
            _layer_plan(net, chosen.spec, node, tuple(used[node.name].memories), bound.get(node.name), search.options.code)
            for node in net.nodes
        ),
        resources=chosen.resources,
        prediction=prediction,
        bottleneck=bottleneck,
        measured_on=0 if search.images is None else len(search.activities),
        clock_hz=CLOCK_HZ[budget.block_ram_kind],
        spec=chosen.spec,
    )


def kind_of(net: IntegerNet, node: Layer | Pool) -> str:
    """What a node is, in words."""
    if isinstance(node, Pool):
        return f"{node.kind} pool {_times(node.kernel)}"
    kinds = [_kind(net, synapses) for synapses in node.synapses]
    return " + ".join(kinds) + ", read-out" * (node.threshold is None)


def _kind(net: IntegerNet, synapses: Synapses) -> str:
    if synapses.dense:
        return "dense"
    if synapses.shortcut:
        return "shortcut"
    depthwise = synapses.groups == net.shapes[synapses.source][0] > 1
    grouped = "depthwise " if depthwise else f"{synapses.groups} groups " if synapses.groups > 1 else "conv "
    stride = f" / {_times(synapses.stride)}" if synapses.stride != (1, 1) else ""
    return f"{grouped}{_times(synapses.kernel)}{stride}"


def _times(sizes: Sequence[int]) -> str:
    return "x".join(map(str, sizes))


def _layer_plan(
    net: IntegerNet, spec: CoreSpec, node: Layer | Pool, memories: tuple[MemoryPlan, ...], bound: LayerBounds | None, code: Code
) -> LayerPlan:
    laid = spec.by_name[node.name]
    if isinstance(node, Pool):
        assert isinstance(laid, PoolNode)
        value = laid.spec.output.value
        return LayerPlan(
            name=node.name,
            kind=kind_of(net, node),
            sources=(node.source,),
            source=net.shapes[node.source],
            target=net.shapes[node.name],
            weight_bits=(),
            weights=0,
            synapse_lanes=0,
            neuron_lanes=laid.spec.volleys.lanes,
            passes=0,
            adders=0,
            multiplier="none",
            memories=memories,
            widths=(Width("window", str(value), value.bits),),
        )
    assert isinstance(laid, LayerSpec)
    assert bound is not None
    engines = [synapses.spec for synapses in laid.inputs]
    return LayerPlan(
        name=node.name,
        kind=kind_of(net, node) + ", tap by tap" * any(isinstance(engine, SerialSpec) for engine in engines),
        sources=tuple(synapses.source for synapses in node.synapses),
        source=net.shapes[node.synapses[0].source],
        target=net.shapes[node.name],
        weight_bits=tuple(synapses.bits for synapses in node.synapses),
        weights=sum(synapses.weight.numel() for synapses in node.synapses),
        synapse_lanes=engines[0].lanes,
        neuron_lanes=engines[0].currents.lanes,
        passes=engines[0].passes,
        adders=sum(engine.adders for engine in engines),
        multiplier=engines[0].multiplier if any(engine.multiplies for engine in engines) else "none",
        memories=memories,
        widths=tuple(_widths(net, laid, bound, code)),
    )


def _widths(net: IntegerNet, laid: LayerSpec, bound: LayerBounds, code: Code) -> Iterator[Width]:
    for synapses, values in zip(laid.inputs, bound.event, strict=True):
        yield Width("event" if len(laid.inputs) == 1 else f"event of {synapses.source or IMAGE}", str(values), values.bits)
    yield Width("current", str(bound.current), current_width(bound, code))
    yield Width("bias", str(bound.bias), bound.bias.signed_bits)
    if bound.threshold is None:
        yield Width("sum", str(bound.potential), bound.potential.signed_bits)
        return
    yield Width("threshold", str(bound.threshold), bound.threshold.bits)
    kept = bound.potential if code == "count" else potential_interval(bound)
    yield Width("sum" if code == "count" else "potential", str(kept), kept.signed_bits)
    yield Width("count", f"[0, {net.levels}]", net.levels.bit_length())
