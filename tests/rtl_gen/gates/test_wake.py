"""The conductor, with a judge of sleeps in plain Python in the read-out's place."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil

from rtl_gen.gates.streams import CurrentFormat
from rtl_gen.gates.wake import ScheduleSpec, WakeSleep, WakeSpec

# levels, margin, sleep; depth; size, lanes
CASES = [
    (1, 1, None, 2, 1, 1),
    (3, 3, None, 3, 5, 2),
    (3, 2, None, 2, 4, 1),
    (4, 1, None, 3, 2, 2),
    (4, 4, 0, 2, 3, 1),
    (5, 2, 0, 2, 5, 4),
    (3, 3, 1, 4, 2, 1),
    (5, 2, 3, 2, 7, 1),
    (2, 1, 100, 3, 3, 2),
    (255, 100, 2, 2, 1, 1),
]


def make(case: tuple[Any, ...]) -> WakeSpec:
    levels, margin, sleep, depth, size, lanes = case
    return WakeSpec(CurrentFormat((size, 1, 1), lanes, 10), ScheduleSpec(levels, margin, sleep, (depth - 1) * levels + 1, depth))


class Judge:
    """Passes steps after random delays, as the read-out does: when a sleep is over, and what it saw."""

    def __init__(self, dut: WakeSleep, seed: int):
        self.dut, self.schedule, self.chance = dut, dut.spec.schedule, random.Random(seed)
        self.waiting: list[tuple[int, dict[str, int]]] = []  # steps under way: due cycle, step
        self.seen: list[dict[str, int]] = []
        self.sleeping, self.slept, self.silent_at = True, 0, 0
        self.lengths: list[int] = []  # of sleeps, as judged
        self.finished: list[int] = []  # cycles in which an image was settled

    def __call__(self, ctx: Any, cycle: int, given: list[Any], taken: list[Any]) -> list[Any]:
        settled = slept = 0
        if taken[0] and taken[0]["mark"]:
            due = max(cycle + self.chance.randrange(6), self.waiting[-1][0] + 1 if self.waiting else 0)
            self.waiting.append((due, taken[0]["step"]))
            under_way = sum(not step["wake"] for _, step in self.waiting)
            assert under_way <= self.schedule.depth + 1, "too many sleep steps sent ahead"
        if self.waiting and self.waiting[0][0] <= cycle:
            step = self.waiting.pop(0)[1]
            slept = 1 - step["wake"]
            if step["wake"]:
                self.sleeping, self.slept = True, 0
                self.silent_at = self.chance.randint(1, 2 * self.schedule.levels)
                settled = int(self.schedule.sleep_limit == 0 and step["final"])
            elif self.sleeping:
                self.slept += 1
                settled = int(self.slept in (self.silent_at, self.schedule.sleep_limit))
                if settled:
                    self.sleeping = False
                    self.lengths.append(self.slept)
            if settled and step["final"]:
                self.finished.append(cycle)
        return [(self.dut.settled, settled), (self.dut.slept, slept)]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_plays_the_schedule(case: tuple[Any, ...], stall: float, drive: Callable[..., Any]) -> None:
    spec = make(case)
    schedule, out = spec.schedule, spec.currents
    chance, count = random.Random(4), 5
    images = [[[chance.randint(-512, 511) for _ in range(out.lanes)] for _ in range(out.chunks)] for _ in range(count)]
    images[0] = images[3] = []  # nothing but the mark
    images[4] = [[-512] * out.lanes] * out.chunks
    sent = []
    for image in images:
        sent += [{"x": x, "mark": index == len(image) - 1} for index, x in enumerate(image)] or [{"mark": 1, "empty": 1}]
    dut = WakeSleep(spec)
    judge = Judge(dut, 8)
    (took,) = drive(dut, [(dut.i, sent)], [(dut.o, None)], stall=stall, hook=judge, until=lambda: len(judge.finished) == count)

    steps: list[tuple[dict[str, int], list[list[int]]]] = []
    chunks: list[list[int]] = []
    for transfer in took:
        chunks += [] if transfer["empty"] else [transfer["x"]]
        if transfer["mark"]:
            steps.append((transfer["step"], chunks))
            chunks = []
    lengths = iter(judge.lengths)
    for image in images:
        for wake in range(1, schedule.levels + 1):
            step, chunks = steps.pop(0)
            final = int(wake == schedule.levels)
            assert step == {"first": int(wake == 1), "wake": 1, "final": final, "active": 0}
            assert chunks == image
            if schedule.sleep_limit == 0 or (wake % schedule.margin and not final):
                continue
            needed, sent_ahead = next(lengths), 0
            while steps and not steps[0][0]["wake"]:
                step, chunks = steps.pop(0)
                assert step == {"first": 0, "wake": 0, "final": final, "active": 0}
                assert chunks == [], "a sleep step with a current"
                sent_ahead += 1
            assert needed <= sent_ahead <= min(needed + schedule.depth + 1, schedule.sleep_limit)
    assert not steps
    assert next(lengths, None) is None


def test_the_next_image_is_taken_while_one_plays(drive: Callable[..., Any]) -> None:
    spec = make((4, 2, None, 3, 5, 2))
    dut = WakeSleep(spec)
    judge, taken_in = Judge(dut, 3), []

    def hook(ctx: Any, cycle: int, given: list[Any], taken: list[Any]) -> list[Any]:
        taken_in.extend([cycle] * (given[0] is not None and given[0] % 3 == 2))
        busy = len(taken_in) - (given[0] is not None and given[0] % 3 == 2) > len(judge.finished) - (cycle - 1 in judge.finished)
        assert ctx.get(dut.busy) == busy
        return judge(ctx, cycle, given, taken)

    sent = [{"x": [image, chunk], "mark": chunk == 2} for image in range(4) for chunk in range(3)]
    drive(dut, [(dut.i, sent)], [(dut.o, None)], hook=hook, until=lambda: len(judge.finished) == 4)
    assert taken_in[1] < judge.finished[0], "two banks"
    assert all(later > finished for later, finished in zip(taken_in[2:], judge.finished, strict=False)), "no more than two"


@pytest.mark.parametrize("case", CASES, ids=str)
def test_converts(case: tuple[Any, ...]) -> None:
    rtlil.convert(WakeSleep(make(case)), emit_src=False)
