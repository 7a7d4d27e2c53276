"""Formats, and the parts that only pass a stream on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Shape

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import CurrentFormat, EventFormat, Skid, Throttle, index_bits, shape_of

FORMATS = [
    EventFormat((1, 1, 1), Interval(-1, 1)),
    EventFormat((13, 2, 3), Interval(0, 100)),
    CurrentFormat((1, 1, 1), 1, 1),
    CurrentFormat((2, 1, 1), 1, 20),
    CurrentFormat((5, 3, 2), 2, 9),
]
PARTS = [Skid, Throttle]


@pytest.mark.parametrize(
    ("lo", "hi", "width", "sign"), [(0, 0, 1, 0), (0, 1, 1, 0), (-1, 1, 2, 1), (0, 100, 7, 0), (0, 255, 8, 0), (-128, 127, 8, 1)]
)
def test_a_value_takes_the_bits_of_its_interval(lo: int, hi: int, width: int, sign: int) -> None:
    assert shape_of(Interval(lo, hi)) == Shape(width, bool(sign))
    assert EventFormat((3, 1, 1), Interval(lo, hi)).layout.members["value"] == Shape(width, bool(sign))


@pytest.mark.parametrize(
    ("size", "lanes", "chunks", "bits"), [(1, 1, 1, 1), (2, 1, 2, 1), (5, 2, 3, 3), (8, 8, 1, 3), (9, 8, 2, 4), (1, 4, 1, 1)]
)
def test_chunks_and_addresses(size: int, lanes: int, chunks: int, bits: int) -> None:
    assert CurrentFormat((size, 1, 1), lanes, 3).chunks == chunks
    assert CurrentFormat((size, 2, 3), lanes, 3).chunks == 6 * chunks
    assert index_bits(size) == bits


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_everything_passes_once_and_in_order(part: Any, format: Any, stall: float, drive: Callable[..., Any]) -> None:
    chance = random.Random(1)
    width = format.layout.size
    sent = [format.layout.from_bits(chance.getrandbits(width)) for _ in range(60)]
    fields = [_plain(format, payload) for payload in sent]
    dut = part(format.signature)
    blocked = random.Random(2)

    def hook(ctx: Any, cycle: int, given: Any, taken: Any) -> list[Any]:
        return [(dut.stall, blocked.random() < stall)] if part is Throttle else []

    drive(dut, [(dut.i, sent)], [(dut.o, fields)], stall=stall, hook=hook)


def test_full_throughput_through_a_skid(drive: Callable[..., Any]) -> None:
    """A transfer a cycle, and one cycle of latency."""
    format = FORMATS[1]
    dut = Skid(format.signature)
    times: list[int] = []

    def hook(ctx: Any, cycle: int, given: Any, taken: Any) -> None:
        times.extend([cycle] * (taken[0] is not None))

    drive(dut, [(dut.i, [format.layout.from_bits(index) for index in range(20)])], [(dut.o, None)], hook=hook)
    assert times == list(range(1, 21))


def test_a_throttle_holds_what_it_offered(drive: Callable[..., Any]) -> None:
    """Stalled for good after a transfer was offered, it still passes; nothing after it does."""
    format = FORMATS[1]
    dut = Throttle(format.signature)

    def hook(ctx: Any, cycle: int, given: Any, taken: Any) -> list[Any]:
        times.extend([cycle] * (taken[0] is not None))
        return [(dut.stall, 3 <= cycle < 50)]

    times: list[int] = []
    drive(dut, [(dut.i, [format.layout.from_bits(index) for index in range(20)])], [(dut.o, None)], stall=0.3, hook=hook)
    assert len([cycle for cycle in times if 4 <= cycle <= 50]) <= 1
    assert len(times) == 20


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("format", FORMATS, ids=str)
def test_converts(part: Any, format: Any) -> None:
    rtlil.convert(part(format.signature), emit_src=False)


def _plain(format: Any, payload: Any) -> dict[str, Any]:
    step = {name: int(payload.step[name]) for name in ("first", "wake", "final", "active")}
    if isinstance(format, EventFormat):
        place = {name: int(payload[name]) for name in ("channel", "x", "y", "value")}
        return {"mark": int(payload.mark), "step": step} | place
    lanes = [int(payload.x[lane]) for lane in range(format.lanes)]
    return {"mark": int(payload.mark), "step": step, "empty": int(payload.empty), "x": lanes}
