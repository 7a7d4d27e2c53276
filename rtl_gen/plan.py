"""The plan: lanes for every layer, under a board's budget, with what they cost and how fast they are. A value with a digest."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from casc_hw.errors import CascError
from casc_hw.intervals import bounds
from casc_hw.network import IntegerNet
from casc_hw.reference import sleep_bound
from rtl_gen.budget import Budget
from rtl_gen.cycles import BEATS, Activity, Prediction, assume, measure, predict
from rtl_gen.gates.core import CoreSpec
from rtl_gen.lower import Lanes, core_spec, current_width, potential_interval
from rtl_gen.resources import MemoryPlan, Resources, estimate, memories

MAX_SHARE = 0.8
"""Share of each resource a plan may fill unless told otherwise: routing needs room, and the model may err."""
MAX_LANES = 256
BALANCED_LANES = 64
"""Lanes a plan goes up to unless it is to be the fastest: wider rows of weights take nextpnr long to route."""
ACTIVITY_IMAGES = 64
"""Images measured for the choice of lanes."""


@dataclass(frozen=True)
class Width:
    """A width in the gates and the interval it comes from."""

    what: str
    interval: str
    bits: int


@dataclass(frozen=True)
class LayerPlan:
    """One layer: its sizes, lanes, memories and widths."""

    name: str
    kind: str
    inputs: int
    outputs: int
    weight_bits: int
    synapse_lanes: int
    neuron_lanes: int
    passes: int
    memories: tuple[MemoryPlan, ...]
    widths: tuple[Width, ...]


@dataclass(frozen=True)
class Plan:
    """A network laid out for a device.

    Attributes
    ----------
    net, net_digest, levels, margin, sleep, input_shape, input_max: the network's.
    budget: the device's.
    beat: pixels a transfer into the core.
    lanes: by layer.
    layers: by layer, in words and numbers.
    resources: estimated, host link and clocks included.
    prediction: cycles between images and of one alone, estimated for ``measured_on`` images (0: for assumed activity).
    spec: the gates.
    """

    net: str
    net_digest: str
    levels: int
    margin: int
    sleep: int | None
    input_shape: tuple[int, ...]
    input_max: int
    budget: Budget
    beat: int
    lanes: tuple[Lanes, ...]
    layers: tuple[LayerPlan, ...]
    resources: Resources
    prediction: Prediction
    measured_on: int
    spec: CoreSpec

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of the network and the lanes: what the gates depend on, whatever the board."""
        return hashlib.sha256(
            json.dumps([self.net_digest, self.beat, [[lane.synapses, lane.neurons] for lane in self.lanes]]).encode()
        ).hexdigest()

    def as_json(self) -> dict[str, Any]:
        """Plain values, without the gates' spec (which holds the weights)."""
        plain = {name: getattr(self, name) for name in self.__dataclass_fields__ if name != "spec"}
        for name in ("budget", "resources", "prediction"):
            plain[name] = asdict(plain[name])
        plain["lanes"] = [asdict(lane) for lane in self.lanes]
        plain["layers"] = [asdict(layer) for layer in self.layers]
        return plain | {"digest": self.digest}


def make_plan(
    net: IntegerNet,
    budget: Budget,
    *,
    images: Any = None,
    lanes: Mapping[str, int] | None = None,
    max_share: float = MAX_SHARE,
    fastest: bool = False,
) -> Plan:
    """A plan for ``net`` within ``max_share`` of ``budget``.

    Starting from one lane everywhere, the change that saves most cycles for the room it takes is made again and again,
    until none lowers area times time squared any more; with ``fastest``, until none lowers cycles.

    Parameters
    ----------
    images: integer pixels, a batch, whose activity the lanes are balanced for; None: assumed activity.
    lanes: by layer name, synapse lanes that are not to be changed.

    Raises
    ------
    CascError: the network does not fit, by how much, and what would make it fit.
    """
    if not 0 < max_share <= 1:
        raise CascError(f"max share: {max_share!r} is not in (0, 1]; the default is {MAX_SHARE}")
    sums = bounds(net)[-1].potential
    if sums.signed_bits > 32:
        raise CascError(f"{net.readout.name}: sums reach {sums}, beyond a 32-bit result; use fewer weight bits or levels")
    sleeps = -(-net.levels // net.margin) * (sleep_bound(net) if net.sleep is None else net.sleep)
    if sleeps > 0xFFFF:
        raise CascError(f"{net.name}: may sleep {sleeps} steps, more than the 65535 that a result can tell; use a larger margin")
    fixed = _fixed(net, lanes or {})
    activities = assume(net) if images is None else measure(net, images[:ACTIVITY_IMAGES])
    best = _Candidate(net, budget, activities, [fixed.get(index, Lanes(1, 1)) for index in range(len(net.layers))], 1)
    _refuse(net, best, max_share)
    top = MAX_LANES if fastest else BALANCED_LANES
    while True:
        moves = [_Candidate(net, budget, activities, *choice) for choice in _neighbours(net, best, fixed, top)]
        moves = [move for move in moves if move.resources.share(budget) <= max_share and move.cost < best.cost * 0.995]
        moves = [move for move in moves if fastest or move.merit < best.merit]
        if not moves:
            break
        best = min(moves, key=lambda move: move.merit)
    return _plan(net, budget, best, 0 if images is None else len(activities))


def plan_of(net: IntegerNet, budget: Budget, lanes: Sequence[tuple[int, int]], beat: int, *, images: Any = None) -> Plan:
    """The plan with just these (synapse, neuron) lanes by layer and this beat; nothing is chosen or refused."""
    activities = assume(net) if images is None else measure(net, images[:ACTIVITY_IMAGES])
    chosen = _Candidate(net, budget, activities, [Lanes(*lane) for lane in lanes], beat)
    return _plan(net, budget, chosen, 0 if images is None else len(activities))


class _Candidate:
    """Lanes under consideration, with their cost."""

    def __init__(self, net: IntegerNet, budget: Budget, activities: list[Activity], lanes: list[Lanes], beat: int):
        self.lanes, self.beat = lanes, beat
        self.spec = core_spec(net, lanes, beat)
        self.resources = estimate(self.spec, budget)
        self.prediction = predict(self.spec, activities)
        self.cost = self.prediction.interval + 0.1 * self.prediction.latency
        self.merit = self.resources.lut4 * self.cost**2


def _fixed(net: IntegerNet, wished: Mapping[str, int]) -> dict[int, Lanes]:
    names = [layer.name for layer in net.layers]
    fixed = {}
    for name, count in wished.items():
        if name not in names:
            raise CascError(f"lanes: no layer is called {name!r}; the names are {', '.join(names)}")
        index = names.index(name)
        if not 1 <= count <= MAX_LANES:
            raise CascError(f"lanes of {name}: {count} is not from 1 to {MAX_LANES}; choose another")
        if index == len(names) - 1:
            fixed[index] = Lanes(count, count)
        else:
            fixed[index] = Lanes(count, count & -count if count < 32 else min(count & -count, 16))
    return fixed


def _neighbours(net: IntegerNet, current: _Candidate, fixed: Mapping[int, Lanes], top: int) -> Iterator[tuple[list[Lanes], int]]:
    """Plans one change away: a layer's synapse lanes, neuron lanes or both doubled, or wider pixel transfers."""
    wider = [beat for beat in BEATS if beat > current.beat]
    for beat in wider[:2]:
        yield current.lanes, beat
    for index, (layer, lane) in enumerate(zip(net.layers, current.lanes, strict=True)):
        choices = []
        if index in fixed:
            continue
        if index == len(net.layers) - 1:
            passes = -(-layer.outputs // lane.synapses)
            choices += [Lanes(-(-layer.outputs // fewer), -(-layer.outputs // fewer)) for fewer in (passes // 2, 1) if fewer]
        else:
            most = min(1 << (layer.outputs - 1).bit_length(), top)
            for synapses, neurons in ((2, 1), (1, 2), (2, 2), (4, 1), (4, 2), (4, 4), (1, 4)):
                choices.append(Lanes(min(lane.synapses * synapses, most), lane.neurons * neurons))
        for choice in choices:
            if choice != lane and choice.neurons <= choice.synapses <= top and choice.synapses % choice.neurons == 0:
                for beat in [current.beat, *wider[:1]]:
                    yield [*current.lanes[:index], choice, *current.lanes[index + 1 :]], beat


def _refuse(net: IntegerNet, smallest: _Candidate, max_share: float) -> None:
    """CascError if even one lane everywhere is too much."""
    over = smallest.resources.over(max_share)
    if not over:
        return
    what, used, available = max(over, key=lambda entry: entry[1] / max(entry[2], 1))
    advice = ["a larger board"]
    if what == "block RAM":
        bits = [(layer.bits, layer.weight.numel()) for layer in net.layers]
        total = sum(width * count for width, count in bits)
        need = total * available / used
        fits = [width for width in (6, 4, 3, 2) if sum(min(width, old) * count for old, count in bits) <= need]
        advice += [f"{fits[0]}-bit weights"] if fits else ["a smaller network"]
    else:
        advice += ["fewer neurons"]
    raise CascError(
        f"{net.name}: needs at least {used} of {what}, {smallest.resources.device} has {available} to give "
        f"({used - available} too few); try {' or '.join(advice)}"
    )


def _plan(net: IntegerNet, budget: Budget, chosen: _Candidate, measured_on: int) -> Plan:
    layers: list[LayerPlan] = []
    for layer, bound, lane, synapses in zip(net.layers, bounds(net), chosen.lanes, chosen.spec.synapses, strict=True):
        index = len(layers)
        widths = [
            Width("event", str(bound.event), synapses.events.layout.members["value"].width),
            Width("current", str(bound.current), current_width(bound)),
            Width("bias", str(bound.bias), bound.bias.signed_bits),
        ]
        if bound.threshold is None:
            widths.append(Width("sum", str(bound.potential), bound.potential.signed_bits))
        else:
            potential = potential_interval(bound)
            widths += [Width("threshold", str(bound.threshold), bound.threshold.bits), Width("potential", str(potential), potential.bits)]
            widths.append(Width("count", f"[0, {net.levels}]", net.levels.bit_length()))
        layers.append(
            LayerPlan(
                layer.name,
                "read-out" if bound.threshold is None else "spiking",
                layer.inputs,
                layer.outputs,
                layer.bits,
                lane.synapses,
                lane.neurons,
                synapses.passes,
                tuple(memories(chosen.spec, index, budget)),
                tuple(widths),
            )
        )
    return Plan(
        net=net.name,
        net_digest=net.digest,
        levels=net.levels,
        margin=net.margin,
        sleep=net.sleep,
        input_shape=net.input_shape,
        input_max=net.input_max,
        budget=budget,
        beat=chosen.beat,
        lanes=tuple(chosen.lanes),
        layers=tuple(layers),
        resources=chosen.resources,
        prediction=chosen.prediction,
        measured_on=measured_on,
        spec=core_spec(net, chosen.lanes, chosen.beat),
    )
