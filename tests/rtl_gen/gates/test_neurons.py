"""Neurons against the equations of docs/semantics.md, one neuron at a time."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.neurons import CountArray, CountSpec, NeuronArray, NeuronSpec
from rtl_gen.gates.streams import CurrentFormat, MapShape

FLAGS = ("first", "wake", "final", "active")
Step = dict[str, int]
Volley = dict[str, Any]


def currents_of(format: CurrentFormat, step: Step, currents: list[int] | None, chance: random.Random) -> list[dict[str, Any]]:
    """A step's transfers; ``active`` tells nothing before the mark, and currents nothing where it is empty."""
    if currents is None:
        return [{"step": step, "mark": 1, "empty": 1, "x": [7] * format.lanes}]
    return [
        {"step": step | ({} if last else {"active": chance.randrange(2)}), "mark": int(last), "empty": 0, "x": x}
        for x, last in chunked(format, currents)
    ]


def chunked(format: Any, values: list[int]) -> list[tuple[list[int], bool]]:
    """Values in wire order in chunks, padded with zeros; whether each is the last."""
    channels = format.shape[0]
    rows = []
    for pixel in range(0, len(values), channels):
        for first in range(0, channels, format.lanes):
            row = values[pixel : pixel + channels][first : first + format.lanes]
            rows.append(row + [0] * (format.lanes - len(row)))
    return [(row, index == len(rows) - 1) for index, row in enumerate(rows)]


def volleys_of(spec: Any, step: Step, values: list[int], spiked: bool, empty: bool) -> list[Volley]:
    """A step's volleys."""
    step = step | {"active": int(step["active"] or spiked)}
    if empty:
        return [{"mark": 1, "empty": 1, "step": step}]
    format, result = spec.volleys, []
    for index, (row, last) in enumerate(chunked(format, values)):
        if last or spec.complete or any(row):
            pixel, part = divmod(index, format.parts)
            y, x = divmod(pixel, format.shape[2])
            result.append({"mark": int(last), "empty": 0, "step": step, "y": y, "x": x, "part": part, "values": row})
    return result


def told(volleys: list[Volley]) -> list[Volley]:
    """Volleys less what they leave open: ``active`` before the mark, all but the step where empty."""
    result = []
    for volley in volleys:
        step = {name: volley["step"][name] for name in FLAGS[: None if volley["mark"] else -1]}
        result.append({name: volley[name] for name in (("mark", "empty") if volley["empty"] else volley)} | {"step": step})
    return result


# --- spike code -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    shape: MapShape
    lanes: int
    levels: int
    theta: tuple[int, int] = (1, 20)
    current: int = 30
    bias: int = 5
    margin: int = 3
    images: int = 6
    dense: bool = False
    cumulative: bool = False


CASES = [
    Case((1, 1, 1), 1, 1),
    Case((2, 1, 1), 1, 4),
    Case((2, 1, 1), 4, 4, theta=(1, 1), current=3),
    Case((3, 1, 1), 2, 7, margin=2),
    Case((5, 1, 1), 1, 3),  # as many chunks as the pipeline is long
    Case((13, 1, 1), 2, 4),
    Case((13, 1, 1), 8, 15, margin=5, images=2),
    Case((17, 1, 1), 1, 2, bias=0),
    Case((9, 1, 1), 4, 3, theta=((1 << 40) - 2, 1 << 40), current=1 << 40, bias=1 << 39),
    Case((1, 1, 1), 1, 255, margin=100, images=2),
    Case((3, 2, 3), 2, 4, images=3),
    Case((5, 3, 1), 4, 2, dense=True),
    Case((2, 1, 3), 2, 3, cumulative=True),
    Case((1, 2, 1), 1, 1, dense=True, cumulative=True),
]
Steps = list[tuple[Step, list[int] | None]]


def steps_of(case: Case, seed: int) -> Steps:
    """Steps of images: wake and sleep, with currents or empty; sleeps of silence among them."""
    chance = random.Random(seed)
    steps: Steps = []
    for _ in range(case.images):
        for wake in range(1, case.levels + 1):
            kinds = [1] + [0] * chance.randrange(8) * (wake % case.margin == 0 or wake == case.levels)
            for kind in kinds:
                step = {"first": int(kind and wake == 1), "wake": kind, "final": int(wake == case.levels), "active": chance.randrange(2)}
                quiet = chance.random() < (0.2 if kind else 0.7)
                span = chance.choice((1, case.current // 4, case.current))
                steps.append((step, None if quiet else [chance.randint(-span, span) for _ in range(prod(case.shape))]))
    return steps


def model(case: Case, theta: list[int], bias: list[int], steps: Steps) -> tuple[list[list[int]], list[list[int]], Interval]:
    """Spikes and counts step by step, and the interval of every potential, before and after the spike."""
    size, channels = prod(case.shape), case.shape[0]
    spikes, counts, seen, t = [], [], [0], 0
    v, n = [0] * size, [0] * size
    for step, currents in steps:
        if step["first"]:
            v, n, t = [0] * size, [0] * size, 0
        t += step["wake"]
        row = []
        for index in range(size):
            limit = theta[index % channels]
            v[index] += (currents[index] if currents else 0) + (bias[index % channels] if step["wake"] else 0)
            seen.append(v[index])
            spike = 1 if v[index] >= limit and n[index] < t else -1 if v[index] < 0 and n[index] > 0 else 0
            v[index] -= spike * limit
            n[index] += spike
            seen.append(v[index])
            row.append(spike)
        spikes.append(row)
        counts.append(list(n))
    return spikes, counts, Interval.hull(seen)


def make(case: Case) -> tuple[NeuronSpec, Steps, list[list[int]], list[list[int]]]:
    """A layer whose potential is exactly as wide as what it meets."""
    channels = case.shape[0]
    chance = random.Random(channels)
    theta = [chance.choice((*case.theta, chance.randint(*case.theta))) for _ in range(channels)]
    bias = [chance.choice((-case.bias, case.bias, 0)) for _ in range(channels)]
    steps = steps_of(case, 6)
    spikes, counts, seen = model(case, theta, bias, steps)
    currents = CurrentFormat(case.shape, case.lanes, Interval(-case.current, case.current).signed_bits)
    potential = seen | Interval(-max(theta), max(theta) - 1)
    spec = NeuronSpec(currents, case.levels, tuple(theta), tuple(bias), potential, case.dense, case.cumulative)
    return spec, steps, spikes, counts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_spike(case: Case, stall: float, drive: Callable[..., Any]) -> None:
    spec, steps, spikes, counts = make(case)
    chance, sent, wanted, restless = random.Random(1), [], [], False
    for (step, currents), row, count in zip(steps, spikes, counts, strict=True):
        skipped = currents is None and not step["wake"] and not restless
        assert not (skipped and any(row)), "the model contradicts the skip"
        sent += currents_of(spec.currents, step, currents, chance)
        wanted += volleys_of(spec, step, count if case.cumulative else row, any(row), skipped)
        restless = any(row)
    dut = NeuronArray(spec)
    (took,) = drive(dut, [(dut.currents, sent)], [(dut.volleys, None)], stall=stall)
    assert told(took) == told(wanted)
    if prod(case.shape) > 5:
        assert {spike for row in spikes for spike in row} == {-1, 0, 1}
        assert any(spike < 0 for (step, _), row in zip(steps, spikes, strict=True) for spike in row if not step["wake"])


def test_equality_spikes_and_below_zero_takes_back(drive: Callable[..., Any]) -> None:
    """theta - 1: none; theta: one; 0: none back; -1 with n > 0: one back, with n = 0: none; never more than t."""
    wake = {"first": 0, "wake": 1, "final": 0, "active": 0}
    rows = [
        ({**wake, "first": 1}, [9, 10, 20, -1, 10], [0, 1, 1, 0, 1]),  # v = 9, 0, 10, -1, 0
        ({**wake, "wake": 0}, [1, 0, 0, 0, -1], [1, 0, 0, 0, -1]),  # 10; 0; 10 but n = t; -1 but n = 0; -1 and n = 1
        (wake, [0, -1, 0, 11, 1], [0, -1, 1, 1, 1]),  # v = 0, 9, 0, 0, 0
        ({**wake, "wake": 0}, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ]
    spec = NeuronSpec(CurrentFormat((5, 1, 1), 1, 8), 2, (10,) * 5, (0,) * 5, Interval(-11, 30), dense=True)
    sent = [{"step": step, "mark": index == 4, "empty": 0, "x": [value]} for step, x, _ in rows for index, value in enumerate(x)]
    dut = NeuronArray(spec)
    (volleys,) = drive(dut, [(dut.currents, sent)], [(dut.volleys, None)])
    got = [volley["values"][0] for volley in volleys]
    assert got == [spike for *_, spikes in rows for spike in spikes]


def times_of(drive: Callable[..., Any], dut: Any, sent: list[dict[str, Any]]) -> tuple[list[int], list[int]]:
    """Cycles in which currents were taken and volleys came."""
    times: tuple[list[int], list[int]] = ([], [])

    def hook(ctx: Any, cycle: int, given: list[Any], taken: list[Any]) -> None:
        for found, transfers in zip(times, (given, taken), strict=True):
            found.extend([cycle] * (transfers[0] is not None))

    drive(dut, [(dut.currents, sent)], [(dut.volleys, None)], hook=hook)
    return times


@pytest.mark.parametrize("dense", [False, True])
def test_a_quiet_sleep_step_takes_one_cycle(dense: bool, drive: Callable[..., Any]) -> None:
    spec = NeuronSpec(CurrentFormat((64, 1, 1), 1, 8), 2, (10,) * 64, (0,) * 64, Interval(-11, 30), dense)
    first = {"first": 1, "wake": 1, "final": 1, "active": 0}
    sent = [{"step": first, "mark": 1, "empty": 1}, *[{"step": {**first, "first": 0, "wake": 0}, "mark": 1, "empty": 1}] * 2]
    _, times = times_of(drive, NeuronArray(spec), sent)
    assert len(times) == (64 if dense else 1) + 2
    assert times[-3] > 64
    assert times[-1] - times[-3] < 20


# --- count code -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CountCase:
    shape: MapShape
    lanes: int
    levels: int
    theta: tuple[int, int] = (1, 20)
    bias: int = 5
    gain: int = 1
    dense: bool = False


COUNT_CASES = [
    *(CountCase((5, 1, 1), 2, levels, gain=levels if levels % 2 else 1) for levels in range(1, 17)),
    CountCase((1, 1, 1), 1, 8, gain=8),
    CountCase((2, 1, 1), 4, 4, theta=(1, 1), dense=True),
    CountCase((3, 2, 3), 2, 4, dense=True),
    CountCase((13, 1, 1), 8, 15),
    CountCase((4, 3, 1), 1, 2, bias=0),
    CountCase((3, 1, 1), 4, 255, gain=255),
    CountCase((3, 1, 1), 1, 255, theta=(900, 1000), bias=100_000),
    CountCase((3, 1, 1), 1, 171, gain=171),
    CountCase((5, 1, 1), 2, 5, theta=((1 << 40) - 2, 1 << 40), bias=1 << 42, gain=5),
]


def make_count(case: CountCase) -> tuple[CountSpec, Steps, list[list[int]]]:
    """A layer with currents around each multiple of the threshold, and its counts image by image."""
    channels, chance = case.shape[0], random.Random(case.levels)
    theta = [chance.choice((*case.theta, chance.randint(*case.theta))) for _ in range(channels)]
    bias = [chance.choice((-case.bias, case.bias, 0)) for _ in range(channels)]
    steps: Steps = []
    for image in range(16):
        step = {"first": 1, "wake": 1, "final": 1, "active": chance.randrange(2)}
        row = []
        for index in range(prod(case.shape)):
            channel = index % channels
            total = theta[channel] * chance.choice((0, 1, case.levels, chance.randint(-1, case.levels + 1), 3 * case.levels))
            row.append((total + chance.choice((-1, 0, 1)) - bias[channel]) // case.gain)
        steps.append((step, None if image % 5 == 4 else row))
    sums = [[case.gain * (row[i] if row else 0) + bias[i % channels] for i in range(prod(case.shape))] for _, row in steps]
    counts = [[min(max(total // theta[i % channels], 0), case.levels) for i, total in enumerate(row)] for row in sums]
    width = Interval.hull(x for _, row in steps if row for x in row).signed_bits
    total = Interval.hull(total for row in sums for total in row)
    spec = CountSpec(CurrentFormat(case.shape, case.lanes, width), case.levels, tuple(theta), tuple(bias), case.gain, total, case.dense)
    return spec, steps, counts


@pytest.mark.parametrize("case", COUNT_CASES, ids=str)
def test_every_count(case: CountCase, stall: float, drive: Callable[..., Any]) -> None:
    spec, steps, counts = make_count(case)
    chance, sent, wanted = random.Random(1), [], []
    for (step, currents), row in zip(steps, counts, strict=True):
        sent += currents_of(spec.currents, step, currents, chance)
        wanted += volleys_of(spec, step, row, any(row), False)
    dut = CountArray(spec)
    (took,) = drive(dut, [(dut.currents, sent)], [(dut.volleys, None)], stall=stall)
    assert told(took) == told(wanted)
    assert {0, case.levels} <= {count for row in counts for count in row}


# --- both -------------------------------------------------------------------------------------------------------------

WAKE = {"first": 1, "wake": 1, "final": 1, "active": 0}


@pytest.mark.parametrize("levels", [1, 8, 15, 255])
@pytest.mark.parametrize("part", [NeuronArray, CountArray])
def test_a_chunk_a_cycle(part: Any, levels: int, drive: Callable[..., Any]) -> None:
    """From the first to the last, once the first has come through the pipeline and the queue."""
    currents = CurrentFormat((1, 1, 60), 1, 8)
    if part is NeuronArray:
        spec: Any = NeuronSpec(currents, levels, (10,), (0,), Interval(-100, 100), dense=True)
    else:
        spec = CountSpec(currents, levels, (10,), (0,), levels, Interval(-100, 100), dense=True)
    sent = [{"step": WAKE, "mark": index == 59, "empty": 0, "x": [index % 2]} for index in range(60)]
    entered, left = times_of(drive, part(spec), sent)
    assert entered == list(range(60))
    assert left == list(range(spec.latency + 1, spec.latency + 61))


def test_specs_are_checked() -> None:
    spec, count = make(CASES[3])[0], make_count(COUNT_CASES[0])[0]
    with pytest.raises(ValueError, match="3 lanes are not a power of two"):
        replace(spec, currents=CurrentFormat((3, 1, 1), 3, 8))
    with pytest.raises(ValueError, match="2 thresholds and 3 biases for 3 channels"):
        replace(spec, thresholds=(1, 1))
    with pytest.raises(ValueError, match="a threshold of 0"):
        replace(spec, thresholds=(1, 1, 0))
    with pytest.raises(ValueError, match="0 levels"):
        replace(count, levels=0)
    with pytest.raises(ValueError, match="a gain of 0"):
        replace(count, gain=0)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_neurons_convert(case: Case) -> None:
    rtlil.convert(NeuronArray(make(case)[0]), emit_src=False)


@pytest.mark.parametrize("case", COUNT_CASES, ids=str)
def test_counts_convert(case: CountCase) -> None:
    rtlil.convert(CountArray(make_count(case)[0]), emit_src=False)
