"""Pools and differences against windows in plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.pools import Difference, PoolSpec, WindowPool
from rtl_gen.gates.streams import MapShape, VolleyFormat

SPIKES, COUNTS = Interval(-1, 1), Interval(0, 5)
FLAGS = ("first", "wake", "final", "active")
Map = dict[tuple[int, int, int], int]
"""Values by (y, x, channel)."""


@dataclass(frozen=True)
class Case:
    shape: MapShape
    lanes: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


CASES = {
    "one of everything": Case((1, 1, 1), 1, (1, 1), (1, 1)),
    "2 x 2": Case((3, 4, 6), 4, (2, 2), (2, 2)),
    "2 x 2, two parts": Case((3, 4, 4), 2, (2, 2), (2, 2)),
    "2 x 2, three parts": Case((5, 2, 6), 2, (2, 2), (2, 2)),
    "2 x 2, five parts": Case((5, 4, 2), 1, (2, 2), (2, 2)),
    "2 x 2, a row and a column left over": Case((2, 5, 7), 2, (2, 2), (2, 2)),
    "2 x 2, a column left over": Case((2, 4, 5), 1, (2, 2), (2, 2)),
    "2 x 2, rows left over": Case((1, 7, 3), 2, (3, 3), (3, 3)),
    "2 x 3 of strides 3 x 4, gaps": Case((2, 8, 9), 2, (2, 3), (3, 4)),
    "1 x 1, stride 2": Case((3, 5, 4), 2, (1, 1), (2, 2)),
    "2 x 2, padded by one": Case((3, 4, 5), 2, (2, 2), (2, 2), (1, 1)),
    "the whole map": Case((5, 3, 4), 2, (3, 4), (3, 4)),
    "the whole map, one part": Case((2, 3, 3), 2, (3, 3), (1, 1)),
    "the whole map, stride 1, parts": Case((3, 4, 4), 2, (4, 4), (1, 1)),
    "one column": Case((2, 6, 1), 1, (2, 1), (2, 1)),
    "one row": Case((2, 1, 6), 2, (1, 3), (1, 3)),
    "3 x 3, stride 2": Case((2, 7, 5), 2, (3, 3), (2, 2)),
    "3 x 3, stride 2, padded": Case((3, 6, 5), 2, (3, 3), (2, 2), (1, 1)),
    "3 x 3, stride 1": Case((1, 4, 5), 1, (3, 3), (1, 1)),
    "3 x 3, stride 1, padded": Case((3, 3, 4), 2, (3, 3), (1, 1), (1, 1)),
    "3 x 3, stride 1, padded by two": Case((1, 3, 2), 1, (3, 3), (1, 1), (2, 2)),
    "larger than the map": Case((2, 2, 3), 2, (4, 5), (1, 2), (2, 2)),
    "one pixel": Case((3, 1, 1), 2, (3, 3), (1, 1), (1, 1)),
    "2 x 5, stride 1 x 3, uneven padding": Case((2, 3, 8), 2, (2, 5), (1, 3), (0, 3)),
    "5 x 2, stride 2 x 3": Case((2, 9, 8), 1, (5, 2), (2, 3), (4, 1)),
}


def spec_of(case: Case, kind: Any, value: Interval) -> PoolSpec:
    return PoolSpec(VolleyFormat(case.shape, case.lanes, value), kind, case.kernel, case.stride, case.padding)


def pooled(spec: PoolSpec, values: Map) -> Map:
    channels, height, width = spec.output.shape
    (down, across), (top, left) = spec.stride, spec.padding
    result = {}
    for y, x, channel in product(range(height), range(width), range(channels)):
        window = product(range(spec.kernel[0]), range(spec.kernel[1]))
        row = [values.get((y * down - top + i, x * across - left + j, channel), 0) for i, j in window]
        result[y, x, channel] = sum(row) if spec.kind == "average" else max(row)
    return result


def map_of(format: VolleyFormat, chance: random.Random) -> Map:
    """All low, all high, or anything."""
    channels, height, width = format.shape
    lo, hi = format.value.lo, format.value.hi
    kind = chance.randrange(5)
    value = {0: lambda: lo, 1: lambda: hi}.get(kind, lambda: chance.choice((lo, hi, chance.randint(lo, hi))))
    return {place: value() for place in product(range(height), range(width), range(channels))}


def volleys_of(format: VolleyFormat, step: dict[str, int], values: Map | None, chance: random.Random) -> list[dict[str, Any]]:
    """A step, dense, in order (None: nothing changed); ``active`` tells nothing before the mark."""
    if values is None:
        return [{"mark": 1, "empty": 1, "step": step, "values": [format.value.hi] * format.lanes}]
    _, height, width = format.shape
    result = []
    for y, x, part in product(range(height), range(width), range(format.parts)):
        row = [values.get((y, x, channel), 0) for channel in range(part * format.lanes, (part + 1) * format.lanes)]
        flags = step | {"active": chance.randrange(2)}
        result.append({"mark": 0, "empty": 0, "step": flags, "y": y, "x": x, "part": part, "values": row})
    result[-1] |= {"mark": 1, "step": step}
    return result


def told(volleys: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Volleys less what they leave open: ``active`` before the mark, all but the step where empty."""
    result = []
    for volley in volleys:
        step = {name: volley["step"][name] for name in FLAGS[: None if volley["mark"] else -1]}
        result.append({name: volley[name] for name in (("mark", "empty") if volley["empty"] else volley)} | {"step": step})
    return result


def steps_of(count: int, chance: random.Random) -> list[tuple[dict[str, int], bool]]:
    """Steps, and whether nothing changed in them: never in an image's first."""
    steps = []
    for number in range(count):
        empty = number % 5 in (1, 2)
        first = number == 0 or (not empty and chance.random() < 0.3)
        steps.append(({"first": int(first)} | {name: chance.randrange(2) for name in FLAGS[1:]}, empty))
    return steps


@pytest.mark.parametrize(("kind", "value"), [("average", SPIKES), ("max", COUNTS)])
@pytest.mark.parametrize("name", CASES)
def test_windows(name: str, kind: str, value: Interval, stall: float, drive: Callable[..., Any]) -> None:
    spec, chance = spec_of(CASES[name], kind, value), random.Random(4)
    sent, wanted = [], []
    for step, empty in steps_of(5, chance):
        values = None if empty else map_of(spec.volleys, chance)
        sent += volleys_of(spec.volleys, step, values, chance)
        wanted += volleys_of(spec.output, step, None if values is None else pooled(spec, values), chance)
    dut = WindowPool(spec)
    (took,) = drive(dut, [(dut.i, sent)], [(dut.o, None)], stall=stall, seed=len(name), quiet=200)
    assert told(took) == told(wanted)


def times_of(drive: Callable[..., Any], dut: Any, sent: list[dict[str, Any]], quiet: int = 40) -> tuple[list[int], list[int]]:
    """Cycles in which volleys were taken and came."""
    times: tuple[list[int], list[int]] = ([], [])

    def hook(ctx: Any, cycle: int, given: list[Any], taken: list[Any]) -> None:
        for found, transfers in zip(times, (given, taken), strict=True):
            found.extend([cycle] * (transfers[0] is not None))

    drive(dut, [(dut.i, sent)], [(dut.o, None)], hook=hook, quiet=quiet)
    return times


@pytest.mark.parametrize("name", CASES)
def test_a_cycle_a_volley_and_window(name: str, drive: Callable[..., Any]) -> None:
    """Volleys are taken without a break, but for the zeros behind the map; where windows do not overlap, they are sent at once."""
    spec, chance, step = spec_of(CASES[name], "max", COUNTS), random.Random(6), dict.fromkeys(FLAGS, 1)
    maps = [map_of(spec.volleys, chance) for _ in range(3)]
    sent = [volley for values in maps for volley in volleys_of(spec.volleys, step, values, chance)]
    given, taken = times_of(drive, WindowPool(spec), sent)
    chunks, parts, (tall, wide) = spec.volleys.chunks, spec.output.parts, spec.walked
    assert given[chunks] - given[0] == given[2 * chunks] - given[chunks] == tall * wide * parts * prod(spec.taps)
    if spec.taps == (1, 1):
        _, height, width = spec.output.shape
        (kernel_y, kernel_x), (down, across), (top, left) = spec.kernel, spec.stride, spec.padding
        ends = [
            given[0] + ((y * down + kernel_y - 1 - top) * wide + x * across + kernel_x - 1 - left) * parts + part
            for y, x, part in product(range(height), range(width), range(parts))
        ]
        ends[-1] = given[0] + tall * wide * parts - 1
        assert taken[: len(ends)] == [end + 3 for end in ends]


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if spec_of(case, "max", COUNTS).walked == case.shape[1:]])
def test_the_last_window_waits_for_the_mark(name: str, stall: float, drive: Callable[..., Any]) -> None:
    """Whatever follows its last pixel: without the step's last volley, all other windows come; then it does, with the flags of the mark."""
    spec, chance = spec_of(CASES[name], "average", SPIKES), random.Random(7)
    values = map_of(spec.volleys, chance)
    for active in (0, 1):
        step = {"first": 1, "wake": 1, "final": 0, "active": active}
        sent = volleys_of(spec.volleys, step, values, chance)
        wanted = told(volleys_of(spec.output, step, pooled(spec, values), chance))
        for count, came in ((len(sent) - 1, wanted[:-1]), (len(sent), wanted)):
            dut = WindowPool(spec)
            (took,) = drive(dut, [(dut.i, sent[:count])], [(dut.o, None)], stall=stall, seed=active)
            assert told(took) == came


FORMATS = {
    "one chunk": (VolleyFormat((1, 1, 1), 1, Interval(0, 4)), SPIKES),
    "one chunk of two": (VolleyFormat((2, 1, 1), 4, Interval(0, 4)), Interval(-4, 4)),
    "two chunks": (VolleyFormat((3, 1, 1), 2, Interval(0, 1)), SPIKES),
    "a map": (VolleyFormat((3, 2, 3), 2, Interval(0, 255)), Interval(-255, 255)),
    "a map of spikes summed": (VolleyFormat((2, 3, 1), 2, Interval(-4, 4)), Interval(-8, 8)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_differences(name: str, stall: float, drive: Callable[..., Any]) -> None:
    (format, value), chance = FORMATS[name], random.Random(3)
    changes = VolleyFormat(format.shape, format.lanes, value)
    sent, wanted, last = [], [], {}
    for step, empty in steps_of(30, chance):
        values, change = None, None
        if not empty:
            values = map_of(format, chance)
            before = dict.fromkeys(values, 0) if step["first"] else last
            for place, now in values.items():  # no faster than the changes may be
                values[place] = min(max(now, before[place] + value.lo), before[place] + value.hi)
            change = {place: now - before[place] for place, now in values.items()}
            last = values
        sent += volleys_of(format, step, values, chance)
        wanted += volleys_of(changes, step, change, chance)
    dut = Difference(format, value)
    (took,) = drive(dut, [(dut.i, sent)], [(dut.o, None)], stall=stall)
    assert told(took) == told(wanted)


def test_specs_are_checked() -> None:
    volleys = VolleyFormat((2, 3, 4), 2, SPIKES)
    for arguments, message in [
        (("median", (2, 2), (2, 2)), "a pool of kind 'median'"),
        (("average", (0, 2), (2, 2)), r"kernel \(0, 2\) or stride \(2, 2\) is not positive"),
        (("average", (2, 2), (2, 0)), "is not positive"),
        (("average", (2, 2), (2, 2), (0, 2)), r"padding \(0, 2\) is negative, or not less than the kernel \(2, 2\)"),
        (("average", (2, 2), (2, 2), (-1, 0)), "is negative"),
        (("average", (4, 4), (2, 2)), r"kernel \(4, 4\) is larger than the padded map \(2, 3, 4\)"),
        (("max", (2, 2), (2, 2)), r"the maximum of values \[-1, 1\], which may be negative"),
    ]:
        with pytest.raises(ValueError, match=message):
            PoolSpec(volleys, *arguments)


def test_properties() -> None:
    spec = PoolSpec(VolleyFormat((3, 7, 9), 2, COUNTS), "average", (3, 3), (2, 2), (1, 0))
    assert spec.output == VolleyFormat((3, 4, 4), 2, Interval(0, 45))
    assert PoolSpec(VolleyFormat((3, 8, 8), 4, COUNTS), "max", (2, 2), (2, 2)).output == VolleyFormat((3, 4, 4), 4, COUNTS)
    assert spec.taps == (2, 2)


@pytest.mark.parametrize("name", CASES)
def test_pools_convert(name: str) -> None:
    for kind, value in (("average", SPIKES), ("max", COUNTS)):
        rtlil.convert(WindowPool(spec_of(CASES[name], kind, value)), emit_src=False)


@pytest.mark.parametrize("name", FORMATS)
def test_differences_convert(name: str) -> None:
    rtlil.convert(Difference(*FORMATS[name]), emit_src=False)
