"""Replay: each step's events ``passes`` times, a step without events once."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.replay import Replay, ReplaySpec
from rtl_gen.gates.streams import EventFormat

SPECS = [
    ReplaySpec(EventFormat(size, value), passes)
    for size, value, passes in [
        (1, Interval(-1, 1), 2),
        (2, Interval(-1, 1), 3),
        (5, Interval(0, 100), 1),
        (5, Interval(0, 255), 7),
        (8, Interval(-1, 1), 4),
    ]
]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_repeats_every_step(spec: ReplaySpec, stall: float, drive: Callable[..., Any]) -> None:
    chance = random.Random(5)
    sent, wanted = [], []
    for count in (0, spec.format.size, 0, 0, 1, spec.format.size, *(chance.randint(0, spec.format.size) for _ in range(12))):
        events = [
            {"mark": 0, "address": address, "value": chance.choice((spec.format.value.lo, spec.format.value.hi))}
            for address in sorted(chance.sample(range(spec.format.size), count))
        ]
        step = dict(zip(("first", "wake", "final", "active"), (chance.randrange(2) for _ in range(4)), strict=True))
        sent += [*events, {"mark": 1, "step": step}]
        wanted += [*events, {"mark": 1, "step": step}] * (spec.passes if events else 1)
    dut = Replay(spec)
    drive(dut, [(dut.i, sent)], [(dut.o, wanted)], stall=stall)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_converts(spec: ReplaySpec) -> None:
    rtlil.convert(Replay(spec), emit_src=False)
