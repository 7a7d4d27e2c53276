"""The read-out against sums, an arg max and a count of sleep steps in plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.readout import ReadOut, ReadOutSpec
from rtl_gen.gates.streams import CurrentFormat
from rtl_gen.gates.wake import ScheduleSpec


@dataclass(frozen=True)
class Case:
    size: int
    lanes: int
    levels: int
    margin: int
    sleep: int | None
    bound: int = 9
    current: int = 40
    bias: int = 100


CASES = [
    Case(1, 1, 1, 1, None),
    Case(2, 1, 3, 3, None),
    Case(3, 2, 4, 2, None, bound=4),
    Case(5, 5, 5, 1, None, bound=3),
    Case(7, 2, 4, 4, 0),
    Case(5, 8, 5, 2, 0),
    Case(10, 4, 5, 3, 2),
    Case(2, 2, 3, 2, 1),
    Case(3, 1, 255, 200, None, current=1 << 22, bias=1 << 16),
    Case(4, 2, 2, 1, 100, current=1, bias=0),  # ties
]
Step = tuple[dict[str, int], list[int] | None]


def make(case: Case) -> ReadOutSpec:
    chance = random.Random(case.size)
    bias = tuple(chance.choice((-case.bias, case.bias, chance.randint(-case.bias, case.bias))) for _ in range(case.size))
    schedule = ScheduleSpec(case.levels, case.margin, case.sleep, case.bound, 2)
    width = Interval(-case.current, case.current).signed_bits
    total = min(case.levels * (case.bias + (schedule.sleep_limit + 1 << width)), (1 << 31) - 1)
    return ReadOutSpec(CurrentFormat((case.size, 1, 1), case.lanes, width), schedule, bias, Interval(-total - 1, total))


def image_of(spec: ReadOutSpec, chance: random.Random, kind: str) -> tuple[list[Step], list[int], int, int, list[tuple[int, int]]]:
    """Steps of one image; its sums; sleep steps; unsettled; and (slept, settled) of every step.

    A sleep's steps are active until its silent one; after a verdict some more silent steps come, as the conductor sends ahead.
    """
    schedule, size = spec.schedule, spec.currents.shape[0]
    limit = (1 << (spec.currents.width - 1)) - 1
    sums, steps, slept, unsettled, verdicts = [schedule.levels * bias for bias in spec.biases], [], 0, 0, []

    def add(step: dict[str, int], quiet: float) -> None:
        x = None
        if chance.random() >= quiet and kind != "blank":
            x = [{"high": limit, "low": -limit}.get(kind, chance.randint(-limit, limit)) for _ in range(size)]
            sums[:] = [total + value for total, value in zip(sums, x, strict=True)]
        steps.append((step, x))

    for wake in range(1, schedule.levels + 1):
        final = int(wake == schedule.levels)
        add({"first": int(wake == 1), "wake": 1, "final": final, "active": chance.randrange(2)}, 0.2)
        verdicts.append((0, int(final and schedule.sleep_limit == 0)))
        if schedule.sleep_limit == 0 or not (final or wake % schedule.margin == 0):
            continue
        silent_at = (
            schedule.sleep_limit + 1 if kind == "restless" else chance.choice((1, 2, 3, schedule.sleep_limit, schedule.sleep_limit + 1))
        )
        length = min(silent_at, schedule.sleep_limit)
        for number in range(1, length + 1):
            add({"first": 0, "wake": 0, "final": final, "active": int(number != silent_at)}, 1.0 if number == silent_at else 0.5)
            verdicts.append((1, int(number == length)))
        slept += length
        unsettled = int(silent_at > schedule.sleep_limit)
        for _ in range(chance.randrange(3) if length < schedule.sleep_limit else 0):
            add({"first": 0, "wake": 0, "final": final, "active": 0}, 1.0)
            verdicts.append((1, 0))
    return steps, sums, slept, unsettled if schedule.sleep is None else 0, verdicts


@pytest.mark.parametrize("case", CASES, ids=str)
def test_results(case: Case, stall: float, drive: Callable[..., Any]) -> None:
    spec, chance = make(case), random.Random(1)
    out = spec.currents
    sent, words, tickets, verdicts, starts = [], [], [], [], []
    for index, kind in enumerate(("blank", "high", "low", "any", "restless", *["any"] * (1 if case.levels > 100 else 8))):
        steps, sums, slept, unsettled, judged = image_of(spec, chance, kind)
        verdicts += judged
        malformed = chance.randrange(2)
        starts.append(chance.randrange(1 << 32))
        tickets.append({"start": starts[-1], "malformed": malformed})
        status = slept | malformed << 30 | unsettled << 31
        words += [{"data": word & 0xFFFFFFFF, "last": 0} for word in (*sums, sums.index(max(sums)), status)] + [{"last": 1}]
        assert all(value in spec.total for value in sums), index
        for step, x in steps:
            if x is None:
                sent.append({"step": step, "mark": 1, "empty": 1, "x": [1] * out.lanes})
                continue
            padded = [*x, *[0] * out.lanes]
            for chunk in range(out.chunks):
                part = padded[chunk * out.lanes : (chunk + 1) * out.lanes]
                sent.append({"step": step, "mark": chunk == out.chunks - 1, "empty": 0, "x": part})
    dut = ReadOut(spec)
    seen: list[tuple[int, int]] = []
    taken_at: list[int] = []

    def hook(ctx: Any, cycle: int, given: list[Any], taken: list[Any]) -> list[Any]:
        now = cycle * 77777 & 0xFFFFFFFF
        if given[0] is not None and sent[given[0]]["mark"]:
            seen.append((ctx.get(dut.slept), ctx.get(dut.settled)))
        else:
            assert not ctx.get(dut.slept)
            assert not ctx.get(dut.settled)
        if given[1] is not None:
            taken_at.append(now)
        if taken[0] and taken[0]["last"]:
            assert taken[0]["data"] == (taken_at[-1] - starts[len(taken_at) - 1]) & 0xFFFFFFFF
        assert ctx.get(dut.busy) or taken[0] is None
        return [(dut.now, (cycle + 1) * 77777 & 0xFFFFFFFF)]

    # Tickets come before the image's mark: a queue that is never empty when the read-out looks.
    cycles = 60 * len(sent) * (out.chunks + 1) + 5000
    drive(dut, [(dut.currents, sent), (dut.tickets, tickets)], [(dut.result, words)], stall=stall, hook=hook, cycles=cycles, eager=(1,))
    assert seen == verdicts
    assert len(taken_at) == len(tickets)


def test_the_lowest_of_equals_and_the_error_flag(drive: Callable[..., Any]) -> None:
    """Arg max over every pattern of ties of four classes, in chunks of three; an error flag that follows the last image."""
    spec = ReadOutSpec(CurrentFormat((4, 1, 1), 3, 3), ScheduleSpec(1, 1, 0, 3, 2), (0, 0, 0, -1), Interval(-9, 9))
    step = {"first": 1, "wake": 1, "final": 1, "active": 1}
    images = [[index // 3**place % 3 - 1 for place in range(4)] for index in range(81)]
    sent, classes = [], []
    for x in images:
        sums = [*x[:3], x[3] - 1]
        classes.append(sums.index(max(sums)))
        sent += [{"step": step, "mark": 0, "x": x[:3]}, {"step": step, "mark": 1, "x": [x[3], 0, 0]}]
    tickets = [{"malformed": index % 2} for index in range(81)]
    dut, errors = ReadOut(spec), []

    def hook(ctx: Any, cycle: int, given: list[Any], taken: list[Any]) -> None:
        if taken[0] and taken[0]["last"]:
            errors.append(ctx.get(dut.error))

    (words,) = drive(dut, [(dut.currents, sent), (dut.tickets, tickets)], [(dut.result, None)], hook=hook, eager=(1,))
    assert [word["data"] for word in words[4::7]] == classes
    assert errors == [index % 2 for index in range(81)]


def test_sums_beyond_a_word_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit a 32-bit word"):
        ReadOutSpec(CurrentFormat((1, 1, 1), 1, 3), ScheduleSpec(1, 1, 0, 3, 2), (0,), Interval(0, 1 << 31))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_converts(case: Case) -> None:
    rtlil.convert(ReadOut(make(case)), emit_src=False)
