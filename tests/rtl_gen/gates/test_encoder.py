"""The encoder against the volleys written out."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.encoder import SpikeEncoder
from rtl_gen.gates.streams import VolleyFormat

FORMATS = [
    VolleyFormat((1, 1, 1), 1, Interval(-1, 1)),
    VolleyFormat((2, 1, 1), 1, Interval(0, 1)),
    VolleyFormat((2, 1, 1), 4, Interval(-1, 1)),
    VolleyFormat((13, 1, 1), 4, Interval(-1, 1)),
    VolleyFormat((5, 2, 3), 2, Interval(0, 16)),
    VolleyFormat((3, 3, 1), 16, Interval(-4, 4)),
    VolleyFormat((17, 1, 2), 8, Interval(-255, 255)),
    VolleyFormat((1, 3, 5), 1, Interval(-1, 0)),
]
FLAGS = ("first", "wake", "final", "active")


def step_of(chance: random.Random) -> dict[str, int]:
    return {name: chance.randrange(2) for name in FLAGS}


def volley_of(format: VolleyFormat, place: tuple[int, int, int], kind: int, step: dict[str, int], mark: bool, chance: random.Random) -> Any:
    """A chunk: zeros, all at an extreme, or anything."""
    y, x, part = place
    used = min(format.lanes, format.shape[0] - part * format.lanes)
    lo, hi = format.value.lo, format.value.hi
    row = [(0, hi, lo, chance.choice((0, lo, hi, chance.randint(lo, hi))))[kind] for _ in range(used)] + [0] * (format.lanes - used)
    return {"mark": int(mark), "empty": 0, "step": step, "y": y, "x": x, "part": part, "values": row}


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_volleys_written_out(format: VolleyFormat, stall: float, drive: Callable[..., Any]) -> None:
    chance, sent, wanted = random.Random(2), [], []
    for number in range(20):
        step = step_of(chance)
        if number % 5 == 3:  # what an empty volley says beside its step is nothing
            sent.append({"mark": 1, "empty": 1, "step": step, "values": [format.value.hi] * format.lanes})
            wanted.append({"mark": 1, "step": step})
            continue
        places = list(product(range(format.shape[1]), range(format.shape[2]), range(format.parts)))
        for place in places:
            mark = place == places[-1]
            volley = volley_of(format, place, chance.randrange(4), step, mark, chance)
            if not any(volley["values"]) and not mark and number % 2:
                continue  # dense or not
            sent.append(volley)
            for lane, value in enumerate(volley["values"]):
                if value:
                    channel = place[2] * format.lanes + lane
                    wanted.append({"mark": 0, "step": step, "channel": channel, "y": place[0], "x": place[1], "value": value})
            if mark:
                wanted.append({"mark": 1, "step": step})
    dut = SpikeEncoder(format)
    drive(dut, [(dut.volleys, sent)], [(dut.events, wanted)], stall=stall)


@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_converts(format: VolleyFormat) -> None:
    rtlil.convert(SpikeEncoder(format), emit_src=False)
