"""How many cycles an image takes: a bound, and a prediction from what the reference says of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from casc_hw.network import IntegerNet
from casc_hw.reference import simulate
from rtl_gen.gates.core import CoreSpec
from rtl_gen.gates.neurons import LATENCY
from rtl_gen.gates.synapses import SynapsesSpec

SEND = 5
"""Cycles from one chunk of a pass to the next, where a pass has several: through the synapses' pipeline and back."""
VOLLEY = 1
"""Cycles from a volley's entry into its queue to its first event."""


@dataclass(frozen=True)
class Activity:
    """The work one image makes.

    Attributes
    ----------
    pixels: pixels that are not zero.
    beats: cycles the pixel reader needs for them, by beat width 1, 2, 4, ... (each beat max(1, its pixels that are not zero)).
    events: per spiking layer, per step: spikes emitted.
    wakes: per step: whether it is a wake step.
    """

    pixels: int
    beats: dict[int, int]
    events: tuple[tuple[int, ...], ...]
    wakes: tuple[bool, ...]


@dataclass(frozen=True)
class Prediction:
    """Cycles between images (median over those after the first), and of one image alone."""

    interval: float
    latency: float


FILL = 7
"""Cycles from an image's last event into the synapses to its current's last chunk out of them."""
BEATS = (1, 2, 4, 8)
"""Pixels a transfer that a plan may choose."""


def measure(net: IntegerNet, images: object) -> list[Activity]:
    """The activity of real images, by the reference."""
    pixels = net.check_images(images)  # type: ignore[arg-type]
    trace = simulate(net, pixels.reshape(len(pixels), *net.input_shape))
    counts = [spikes.ne(0).sum(2) for spikes in trace.spikes]
    result = []
    for index, image in enumerate(pixels):
        steps = trace.steps(index)
        present = image.ne(0)
        beats = {}
        for width in BEATS:
            padded = present.new_zeros(-(-len(present) // width) * width)
            padded[: len(present)] = present
            beats[width] = int(padded.reshape(-1, width).sum(1).clamp(min=1).sum())
        result.append(
            Activity(
                int(present.sum()), beats, tuple(tuple(count[steps, index].tolist()) for count in counts), tuple(trace.wake[steps].tolist())
            )
        )
    return result


def assume(net: IntegerNet) -> list[Activity]:
    """Without images: a quarter of the pixels and of the possible spikes, evenly spread, and a silent step for each layer."""
    pixels = -(-net.inputs // 4)
    per_step = tuple(-(-layer.outputs // 4) for layer in net.spiking)
    sleeps = len(net.spiking) if net.sleep is None else min(net.sleep, len(net.spiking))
    beats = {width: max(pixels, -(-net.inputs // width)) for width in BEATS}
    events = tuple((count,) * net.levels + (0,) * sleeps for count in per_step)
    return [Activity(pixels, beats, events, (True,) * net.levels + (False,) * sleeps)] * 3


def predict(spec: CoreSpec, activities: Sequence[Activity]) -> Prediction:
    """Cycles of ``activities`` on ``spec``, images back to back, and alone."""
    stages = [(_input(spec, activity), _steps(spec, activity)) for activity in activities]
    taken = settled = 0
    intervals = []
    for entry, run in stages:
        taken = max(taken + entry, settled)  # a second bank takes the next image's current while one plays
        begin = max(taken + FILL, settled + 2)
        intervals.append(begin + run - settled)
        settled = begin + run
    latency = median(entry + FILL + run for entry, run in stages)
    return Prediction(median(intervals[1:]) if len(intervals) > 1 else latency, latency)


def _passes(synapses: SynapsesSpec, events: int) -> int:
    """Cycles of all passes after the first, and of sending every pass's chunks."""
    if events == 0:
        return 1
    ratio = min(synapses.lanes // synapses.currents.lanes, synapses.currents.chunks)
    return (synapses.passes - 1) * (events + 1) + synapses.passes * (1 + (ratio - 1) * SEND)


def _input(spec: CoreSpec, activity: Activity) -> int:
    """From an image's first transfer to its whole current: pixel reader and synapses."""
    return activity.beats[spec.pixels.beat] + 3 + _passes(spec.synapses[0], activity.pixels)


def _steps(spec: CoreSpec, activity: Activity) -> int:
    """From the first wake step to the last step's verdict: each part of each layer in turn, as soon as it has its input and is free."""
    scanned, encoded = [0] * len(spec.neurons), [0] * len(spec.neurons)
    free = [0] * len(spec.neurons)  # when the next layer's synapses have finished their passes
    read = 0
    for step, wake in enumerate(activity.wakes):
        arrived = read + 2 if wake and step and not activity.wakes[step - 1] else 0  # a wake after a sleep awaits its verdict
        for index, neurons in enumerate(spec.neurons):
            events, chunks = activity.events[index][step], neurons.currents.chunks
            before = activity.events[index - 1][step] if index else 0
            restless = step > 0 and activity.events[index][step - 1] > 0
            quiet = not wake and before == 0
            wait = LATENCY if chunks < LATENCY or quiet else 0
            scanned[index] = max(arrived, scanned[index] + wait) + (1 if quiet and not restless else chunks)
            first = scanned[index] - (chunks - 1) + LATENCY + VOLLEY  # chunks are scanned while the spikes of those before leave
            encoded[index] = max(max(first, encoded[index], free[index]) + events, scanned[index] + LATENCY + VOLLEY + events // chunks) + 1
            free[index] = encoded[index] + _passes(spec.synapses[index + 1], events)
            arrived = free[index] + SEND + 1
        read = max(arrived, read) + 2 * spec.readout.currents.chunks
    return read + 2


def worst_cycles(spec: CoreSpec) -> int:
    """No image takes more cycles where no stream is stalled from outside: every source an event in every step, no overlap."""
    schedule = spec.schedule
    sleeps = -(-schedule.levels // schedule.margin) * (schedule.sleep_limit + schedule.depth + 1)
    layers = 0
    for index, synapses in enumerate(spec.synapses):
        layers += synapses.passes * (synapses.events.size + 8) + 8 * synapses.currents.chunks
        if index < len(spec.neurons):
            layers += spec.neurons[index].currents.chunks + spec.neurons[index].currents.size + 2 * LATENCY
    return spec.pixels.beats + spec.pixels.size + (schedule.levels + sleeps) * layers + 4 * spec.readout.currents.size + 64
