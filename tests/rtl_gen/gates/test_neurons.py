"""CIF neurons against the equations of docs/semantics.md, one neuron at a time; the encoder against the volleys written out."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.neurons import NeuronArray, NeuronSpec, SpikeEncoder
from rtl_gen.gates.streams import CurrentFormat


@dataclass(frozen=True)
class Case:
    size: int
    lanes: int
    levels: int
    theta: tuple[int, int] = (1, 20)
    current: int = 30
    bias: int = 5
    margin: int = 3


CASES = [
    Case(1, 1, 1),
    Case(2, 1, 4),
    Case(2, 4, 4, theta=(1, 1), current=3),
    Case(3, 2, 7, margin=2),
    Case(5, 1, 3),  # as many chunks as the pipeline is long
    Case(13, 2, 4),
    Case(13, 8, 15, margin=5),
    Case(17, 1, 2, bias=0),
    Case(9, 4, 3, theta=((1 << 40) - 2, 1 << 40), current=1 << 40, bias=1 << 39),
    Case(1, 1, 255, margin=100),
]
Steps = list[tuple[dict[str, int], list[int] | None]]


def steps_of(case: Case, seed: int, images: int) -> Steps:
    """Steps of images: wake and sleep, with currents or empty; sleeps of silence among them."""
    chance = random.Random(seed)
    steps: Steps = []
    for _ in range(images):
        for wake in range(1, case.levels + 1):
            kinds = [1] + [0] * chance.randrange(8) * (wake % case.margin == 0 or wake == case.levels)
            for kind in kinds:
                step = {"first": int(kind and wake == 1), "wake": kind, "final": int(wake == case.levels), "active": chance.randrange(2)}
                quiet = chance.random() < (0.2 if kind else 0.7)
                span = chance.choice((1, case.current // 4, case.current))
                steps.append((step, None if quiet else [chance.randint(-span, span) for _ in range(case.size)]))
    return steps


def model(case: Case, theta: list[int], bias: list[int], steps: Steps) -> tuple[list[list[int]], Interval]:
    """Spikes step by step, and the interval of every potential, before and after the spike."""
    spikes, seen, t = [], [0], 0
    v, n = [0] * case.size, [0] * case.size
    for step, currents in steps:
        if step["first"]:
            v, n, t = [0] * case.size, [0] * case.size, 0
        t += step["wake"]
        row = []
        for index in range(case.size):
            v[index] += (currents[index] if currents else 0) + (bias[index] if step["wake"] else 0)
            seen.append(v[index])
            spike = 1 if v[index] >= theta[index] and n[index] < t else -1 if v[index] < 0 and n[index] > 0 else 0
            v[index] -= spike * theta[index]
            n[index] += spike
            seen.append(v[index])
            row.append(spike)
        spikes.append(row)
    return spikes, Interval.hull(seen)


def make(case: Case) -> tuple[NeuronSpec, Steps, list[list[int]]]:
    """A layer whose potential is exactly as wide as what it meets."""
    chance = random.Random(case.size)
    theta = [chance.choice((*case.theta, chance.randint(*case.theta))) for _ in range(case.size)]
    bias = [chance.choice((-case.bias, case.bias, 0)) for _ in range(case.size)]
    steps = steps_of(case, 6, 2 if case.levels > 100 else 8)
    spikes, seen = model(case, theta, bias, steps)
    width = Interval(-case.current, case.current).signed_bits
    currents = CurrentFormat(case.size, case.lanes, width)
    return NeuronSpec(currents, case.levels, tuple(theta), tuple(bias), seen | Interval(-max(theta), max(theta) - 1)), steps, spikes


@pytest.mark.parametrize("case", CASES, ids=str)
def test_every_spike(case: Case, stall: float, drive: Callable[..., Any]) -> None:
    spec, steps, spikes = make(case)
    out = spec.currents
    pad = out.chunks * out.lanes - out.size
    sent, wanted, restless = [], [], False
    for (step, currents), row in zip(steps, spikes, strict=True):
        if currents is None:
            sent.append({"step": step, "mark": 1, "empty": 1, "x": [7] * out.lanes})
        else:
            padded = [*currents, *[0] * pad]
            for chunk in range(out.chunks):
                x = padded[chunk * out.lanes : (chunk + 1) * out.lanes]
                sent.append({"step": step, "mark": chunk == out.chunks - 1, "empty": 0, "x": x})
        if currents is None and not step["wake"] and not restless:
            assert not any(row), "the model contradicts the skip"
        for chunk in range(out.chunks):
            part = row[chunk * out.lanes : (chunk + 1) * out.lanes]
            volley = {
                "mark": int(chunk == out.chunks - 1),
                "up": sum((spike > 0) << lane for lane, spike in enumerate(part)),
                "down": sum((spike < 0) << lane for lane, spike in enumerate(part)),
            }
            if volley["mark"]:
                volley["step"] = {**step, "active": int(step["active"] or any(row))}
            if any(part):
                volley["chunk"] = chunk
            if volley["mark"] or any(part):
                wanted.append(volley)
        restless = any(row)
    dut = NeuronArray(spec)
    drive(dut, [(dut.currents, sent)], [(dut.volleys, wanted)], stall=stall)
    if case.size > 5:
        assert {spike for row in spikes for spike in row} == {-1, 0, 1}
        assert any(spike < 0 for (step, _), row in zip(steps, spikes, strict=True) for spike in row if not step["wake"])


def test_equality_spikes_and_below_zero_takes_back(drive: Callable[..., Any]) -> None:
    """theta - 1: none; theta: one; 0: none back; -1 with n > 0: one back, with n = 0: none; never more than t."""
    theta = (10, 10, 10, 10, 10)
    wake = {"first": 0, "wake": 1, "final": 0, "active": 0}
    rows = [
        ({**wake, "first": 1}, [9, 10, 20, -1, 10], [0, 1, 1, 0, 1]),  # v = 9, 0, 10, -1, 0
        ({**wake, "wake": 0}, [1, 0, 0, 0, -1], [1, 0, 0, 0, -1]),  # 10; 0; 10 but n = t; -1 but n = 0; -1 and n = 1
        (wake, [0, -1, 0, 11, 1], [0, -1, 1, 1, 1]),  # v = 0, 9, 0, 0, 0
        ({**wake, "wake": 0}, [0, 0, 0, 0, 0], [0, 0, 0, 0, 0]),
    ]
    spec = NeuronSpec(CurrentFormat(5, 1, 8), 2, theta, (0,) * 5, Interval(-11, 30))
    sent = [{"step": step, "mark": index == 4, "empty": 0, "x": [value]} for step, x, _ in rows for index, value in enumerate(x)]
    dut = NeuronArray(spec)
    (volleys,) = drive(dut, [(dut.currents, sent)], [(dut.volleys, None)])
    got: list[list[int]] = [[0] * 5]
    for volley in volleys:
        got[-1][volley["chunk"]] = volley["up"] - volley["down"]
        if volley["mark"]:
            got.append([0] * 5)
    assert got[:-1] == [spikes for *_, spikes in rows]


def test_a_quiet_sleep_step_takes_one_cycle(drive: Callable[..., Any]) -> None:
    spec = NeuronSpec(CurrentFormat(64, 1, 8), 2, (10,) * 64, (0,) * 64, Interval(-11, 30))
    times: list[int] = []

    def hook(ctx: Any, cycle: int, given: list[Any], taken: list[Any]) -> None:
        times.extend([cycle] * (taken[0] is not None))

    dut = NeuronArray(spec)
    first = {"first": 1, "wake": 1, "final": 1, "active": 0}
    sent = [{"step": first, "mark": 1, "empty": 1}, *[{"step": {**first, "first": 0, "wake": 0}, "mark": 1, "empty": 1}] * 2]
    drive(dut, [(dut.currents, sent)], [(dut.volleys, None)], hook=hook)
    assert len(times) == 3
    assert times[0] > 64
    assert times[2] - times[0] < 20


@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_encoder_writes_volleys_out(case: Case, stall: float, drive: Callable[..., Any]) -> None:
    spec, _, _ = make(case)
    chance, out = random.Random(2), spec.currents
    sent, wanted = [], []
    for _ in range(25):
        step = dict(zip(("first", "wake", "final", "active"), (chance.randrange(2) for _ in range(4)), strict=True))
        for chunk in range(out.chunks):
            mark, used = int(chunk == out.chunks - 1), min(out.lanes, out.size - chunk * out.lanes)
            kind = chance.randrange(4)
            row = [(0, 1, -1, chance.choice((-1, 0, 1)))[kind] for _ in range(used)]
            if not mark and not any(row):
                continue
            volley = {"up": sum((s > 0) << i for i, s in enumerate(row)), "down": sum((s < 0) << i for i, s in enumerate(row))}
            sent.append({"mark": mark, "step": step, "chunk": chunk, **volley})
            for lane, spike in enumerate(row):
                if spike:
                    wanted.append({"mark": 0, "address": chunk * out.lanes + lane, "value": spike})
            if mark:
                wanted.append({"mark": 1, "step": step})
    dut = SpikeEncoder(spec)
    drive(dut, [(dut.volleys, sent)], [(dut.events, wanted)], stall=stall)


def test_lanes_are_powers_of_two() -> None:
    with pytest.raises(ValueError, match="3 lanes are not a power of two"):
        NeuronSpec(CurrentFormat(5, 3, 8), 2, (1,) * 5, (0,) * 5, Interval(-1, 1))


@pytest.mark.parametrize("part", [NeuronArray, SpikeEncoder])
@pytest.mark.parametrize("case", CASES, ids=str)
def test_converts(case: Case, part: Any) -> None:
    rtlil.convert(part(make(case)[0]), emit_src=False)
