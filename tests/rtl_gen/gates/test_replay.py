"""Replay: each cell's events and mark ``passes`` times, an empty step's mark once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.replay import Replay, ReplaySpec
from rtl_gen.gates.walk import CellFormat, Geometry

SPECS = [
    ReplaySpec(CellFormat(geometry, sets, value), passes)
    for geometry, sets, value, passes in [
        (Geometry((1, 1, 1), 2, flat=True), 1, Interval(-1, 1), 2),
        (Geometry((2, 1, 1), 3, flat=True), 1, Interval(-1, 1), 3),
        (Geometry((5, 1, 1), 1, flat=True), 1, Interval(0, 100), 1),
        (Geometry((5, 2, 1), 7, flat=True), 1, Interval(0, 255), 7),
        (Geometry((4, 3, 3), 4, (3, 3), (1, 2), (1, 1), 4), 2, Interval(-4, 4), 2),
    ]
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_repeats_every_cell(spec: ReplaySpec, stall: float, drive: Callable[..., Any]) -> None:
    chance = random.Random(5)
    rows, value = spec.format.geometry.sources, spec.format.value
    sent, wanted = [], []
    for count in (0, spec.depth, 0, 0, 1, spec.depth, *(chance.randint(0, spec.depth) for _ in range(12))):
        events = [
            {"mark": 0, "row": chance.randrange(rows), "set": chance.randrange(spec.format.sets)}
            | {"value": chance.choice((value.lo, value.hi))}
            for _ in range(count)
        ]
        flags = () if spec.format.geometry.flat else ("first", "end", "emit", "down", "keep", "top", "fresh")
        mark = {"mark": 1, "empty": 0, "step": {"wake": chance.randrange(2)}} | {flag: chance.randrange(2) for flag in flags}
        sent += [*events, mark]
        wanted += [*events, {key: value for key, value in mark.items() if key != "step"}] * spec.passes
        if chance.random() < 0.3:
            sent.append({"mark": 1, "empty": 1})
            wanted.append({"mark": 1, "empty": 1})
    dut = Replay(spec)
    drive(dut, [(dut.i, sent)], [(dut.o, wanted)], stall=stall)


def test_a_cycle_an_event_and_a_cycle_a_mark(drive: Callable[..., Any]) -> None:
    spec = SPECS[3]
    dut, times = Replay(spec), []

    def hook(ctx: Any, cycle: int, given: Any, taken: Any) -> None:
        times.extend([cycle] * (taken[0] is not None))

    drive(dut, [(dut.i, [*({"mark": 0, "row": row} for row in range(4)), {"mark": 1}])], [(dut.o, None)], hook=hook)
    assert times == list(range(times[0], times[0] + 5 * spec.passes))


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_converts(spec: ReplaySpec) -> None:
    rtlil.convert(Replay(spec), emit_src=False)
