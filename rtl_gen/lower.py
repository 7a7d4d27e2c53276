"""From an integer network and the lanes chosen for it to the specs of its gates. Every width comes from an interval."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from casc_hw.fixed import Interval
from casc_hw.intervals import LayerBounds, bounds
from casc_hw.network import IntegerNet, Linear
from casc_hw.reference import sleep_bound
from rtl_gen.gates.core import CoreSpec
from rtl_gen.gates.neurons import NeuronSpec
from rtl_gen.gates.pixels import PixelSpec
from rtl_gen.gates.readout import ReadOutSpec
from rtl_gen.gates.streams import CurrentFormat, EventFormat
from rtl_gen.gates.synapses import SynapsesSpec
from rtl_gen.gates.wake import ScheduleSpec


@dataclass(frozen=True)
class Lanes:
    """Parallelism of one layer.

    Attributes
    ----------
    synapses: accumulators; the layer takes every event ``outputs / synapses`` times, rounded up.
    neurons: neurons updated in a cycle, a power of two that divides ``synapses`` (read-out: equal to ``synapses``).
    """

    synapses: int
    neurons: int


def core_spec(net: IntegerNet, lanes: Sequence[Lanes], beat: int) -> CoreSpec:
    """The gates of ``net`` with ``lanes`` layer by layer and ``beat`` pixels a transfer."""
    schedule = ScheduleSpec(net.levels, net.margin, net.sleep, sleep_bound(net), len(net.layers))
    pixels = PixelSpec(net.inputs, net.input_max, beat)
    events = pixels.events
    synapses, neurons = [], []
    for layer, bound, chosen in zip(net.layers, bounds(net), lanes, strict=True):
        currents = CurrentFormat(layer.outputs, chosen.neurons, current_width(bound))
        synapses.append(_synapses(layer, events, currents, chosen))
        if layer.threshold is None:
            readout = ReadOutSpec(currents, schedule, tuple(layer.bias.tolist()), bound.potential)
            continue
        neurons.append(
            NeuronSpec(currents, net.levels, tuple(layer.threshold.tolist()), tuple(layer.bias.tolist()), potential_interval(bound))
        )
        events = neurons[-1].events
    return CoreSpec(pixels, schedule, tuple(synapses), tuple(neurons), readout)


def potential_interval(bound: LayerBounds) -> Interval:
    """The potential before a spike, and after it: ``v - theta`` of a v >= 0, ``v + theta`` of a v < 0."""
    assert bound.threshold is not None
    return bound.potential | Interval(-bound.threshold.hi, bound.threshold.hi - 1)


def current_width(bound: LayerBounds) -> int:
    """Bits of a current: its own interval, or the potential's where that is narrower (sums wrap, and are exact modulo 2^n)."""
    potential = bound.potential if bound.threshold is None else potential_interval(bound)
    return min(bound.current.signed_bits, potential.signed_bits)


def _synapses(layer: Linear, events: EventFormat, currents: CurrentFormat, lanes: Lanes) -> SynapsesSpec:
    return SynapsesSpec(events, currents, lanes.synapses, layer.bits, tuple(tuple(row) for row in layer.weight.tolist()))
