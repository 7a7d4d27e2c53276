"""From an integer network and the lanes chosen for it to the specs of its gates. Every width comes from an interval."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from math import prod
from typing import Any, Literal

from casc_hw.fixed import Interval
from casc_hw.intervals import LayerBounds, bounds
from casc_hw.network import IMAGE, IntegerNet, Layer, MapShape, Pool, Synapses, to_wire
from casc_hw.reference import sleep_bound
from rtl_gen.gates.core import CoreSpec, LayerSpec, PoolNode, SynapsesInput
from rtl_gen.gates.neurons import CountSpec, NeuronSpec
from rtl_gen.gates.pixels import PixelSpec
from rtl_gen.gates.pools import PoolSpec
from rtl_gen.gates.readout import ReadOutSpec
from rtl_gen.gates.serial import SerialSpec
from rtl_gen.gates.streams import CurrentFormat, EventFormat, VolleyFormat
from rtl_gen.gates.synapses import Multiplier, SynapsesSpec
from rtl_gen.gates.wake import ScheduleSpec
from rtl_gen.gates.walk import Geometry

Code = Literal["spike", "count"]
QUEUE = 512
"""Events that wait before a convolution, so that layers need not keep pace row by row."""


@dataclass(frozen=True)
class Lanes:
    """Parallelism of one layer.

    Attributes
    ----------
    synapses: output channels updated at a time, at all taps of the kernel; the layer takes every event ``channels / synapses`` times,
        rounded up.
    neurons: neurons updated in a cycle, a power of two that divides ``synapses`` (read-out: any divisor).
    multiplier: where products are made, if there are any.
    serial: convolutions take a tap at a time instead (see `SerialSynapses`); ``neurons`` is ``synapses``.
    """

    synapses: int
    neurons: int
    multiplier: Multiplier = "dsp"
    serial: bool = False


def core_spec(
    net: IntegerNet, lanes: Sequence[Lanes], beat: int, code: Code = "spike", queue: int = QUEUE, spram: Collection[str] = ()
) -> CoreSpec:
    """The gates of ``net`` in ``code`` with ``lanes`` layer by layer, ``beat`` pixels a transfer and ``queue`` events before convolutions.

    The weights of the layers named in ``spram`` are loaded (see `rtl_gen.gates.spram`); ValueError where one's are too wide or too many.
    """
    chosen = dict(zip((layer.name for layer in net.layers), lanes, strict=True))
    bound = dict(zip(chosen, bounds(net, code), strict=True))
    pixels = PixelSpec(pixel_shape(net), net.input_max, beat)
    schedule = ScheduleSpec(net.levels, net.margin, net.sleep, sleep_bound(net), len(net.layers)) if code == "spike" else None
    volleys: dict[str, VolleyFormat] = {}
    nodes: list[LayerSpec | PoolNode] = []
    for node in net.nodes:
        if isinstance(node, Pool):
            spec = PoolSpec(volleys[node.source], node.kind, node.kernel, node.stride, node.padding)
            nodes.append(PoolNode(node.name, node.source, spec))
            volleys[node.name] = spec.output
            continue
        width = current_width(bound[node.name], code)
        currents = CurrentFormat(net.shapes[node.name], chosen[node.name].neurons, width, steps=code == "spike")
        neurons = _neurons(net, node, bound[node.name], currents, code)
        if neurons is not None:
            volleys[node.name] = neurons.volleys
        nodes.append(LayerSpec(node.name, tuple(_inputs(net, node, bound[node.name], currents, chosen[node.name], queue)), neurons))
    nodes = [with_storage(node, "spram") if isinstance(node, LayerSpec) and node.name in spram else node for node in nodes]
    last = net.readout
    still = schedule or ScheduleSpec(net.levels, net.levels, 0, 0, len(net.layers))
    readout = ReadOutSpec(currents, still, tuple(last.bias.tolist()), bound[last.name].potential)
    return CoreSpec(pixels, schedule, tuple(nodes), readout)


def with_storage(layer: LayerSpec, storage: Literal["rom", "spram"]) -> LayerSpec:
    """``layer`` with its weights there."""
    return replace(layer, inputs=tuple(replace(item, spec=replace(item.spec, storage=storage)) for item in layer.inputs))


def pixel_shape(net: IntegerNet) -> tuple[int, int, int]:
    """The image as its events tell it: a map where a convolution takes it, else a row of pixels."""
    first = net.layers[0].synapses
    return (net.inputs, 1, 1) if all(synapses.dense for synapses in first) else net.shapes[IMAGE]


def potential_interval(bound: LayerBounds) -> Interval:
    """The potential before a spike, and after it: ``v - theta`` of a v >= 0, ``v + theta`` of a v < 0."""
    assert bound.threshold is not None
    return bound.potential | Interval(-bound.threshold.hi, bound.threshold.hi - 1)


def current_width(bound: LayerBounds, code: Code) -> int:
    """Bits of a current: its own interval, or the potential's where that is narrower (sums wrap, and are exact modulo 2^n)."""
    potential = bound.potential if bound.threshold is None or code == "count" else potential_interval(bound)
    return min(bound.current.signed_bits, potential.signed_bits)


def _neurons(net: IntegerNet, layer: Layer, bound: LayerBounds, currents: CurrentFormat, code: Code) -> NeuronSpec | CountSpec | None:
    if layer.threshold is None:
        return None
    thresholds, biases = tuple(layer.threshold.tolist()), tuple(layer.bias.tolist())
    pools = [node.kind for node in net.nodes if isinstance(node, Pool) and node.source == layer.name]
    if code == "spike":
        cumulative = "max" in pools
        return NeuronSpec(currents, net.levels, thresholds, biases, potential_interval(bound), bool(pools), cumulative)
    gain = net.levels if layer.synapses[0].source == IMAGE else 1
    return CountSpec(currents, net.levels, thresholds, tuple(net.levels * bias for bias in biases), gain, bound.potential, bool(pools))


def _inputs(
    net: IntegerNet, layer: Layer, bound: LayerBounds, currents: CurrentFormat, lanes: Lanes, queue: int
) -> Iterator[SynapsesInput]:
    for synapses, values in zip(layer.synapses, bound.event, strict=True):
        image, shape = synapses.source == IMAGE, geometry(net, synapses)
        weights = _weights(synapses, net.shapes[synapses.source])
        kind = SerialSpec if lanes.serial and not shape.flat else SynapsesSpec
        events = EventFormat(shape.source, values, currents.steps and not image)
        given = replace(currents, steps=events.steps)
        spec = kind(shape, events, given, lanes.synapses, synapses.bits, weights, lanes.multiplier)
        everything = prod(shape.source) + 1
        depth = everything if len(layer.synapses) > 1 else 0 if image or synapses.dense else min(queue, everything)
        yield SynapsesInput(None if image else synapses.source, spec, depth)


def geometry(net: IntegerNet, synapses: Synapses) -> Geometry:
    """Which sources of ``synapses`` reach which neurons."""
    source = pixel_shape(net) if synapses.source == IMAGE else net.shapes[synapses.source]
    if synapses.dense:
        return Geometry(source, synapses.outputs, flat=True)
    return Geometry(source, synapses.outputs, synapses.kernel, synapses.stride, synapses.padding, synapses.groups)


@lru_cache(maxsize=256)
def _weights(synapses: Synapses, source: MapShape) -> Any:
    """The weights of `SynapsesSpec`, of synapses from a map of shape ``source``; kept, since a planner lowers a network often."""
    weight = to_wire(synapses.weight, source) if synapses.dense else synapses.weight
    return _frozen(weight.tolist())


def _frozen(nested: Any) -> Any:
    return tuple(_frozen(item) for item in nested) if isinstance(nested, list) else nested
