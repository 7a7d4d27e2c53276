"""Formats, and the parts that only pass a stream on."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Shape

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import CurrentFormat, CurrentSum, EventFormat, Fork, Queue, Skid, Throttle, index_bits, shape_of

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


@pytest.mark.parametrize("ways", [1, 2, 3])
def test_each_way_of_a_fork_gets_everything(ways: int, stall: float, drive: Callable[..., Any]) -> None:
    format = FORMATS[1]
    sent = [format.layout.from_bits(index) for index in range(50)]
    dut = Fork(format.signature, ways)
    drive(dut, [(dut.i, sent)], [(output, [_plain(format, payload) for payload in sent]) for output in dut.outputs], stall=stall)


@pytest.mark.parametrize("depth", [1, 2, 30])
def test_a_queue_keeps_order(depth: int, stall: float, drive: Callable[..., Any]) -> None:
    format = FORMATS[1]
    sent = [format.layout.from_bits(index) for index in range(50)]
    dut = Queue(format.signature, depth)
    drive(dut, [(dut.i, sent)], [(dut.o, [_plain(format, payload) for payload in sent])], stall=stall)


def test_currents_add_up_and_an_empty_step_is_the_others(stall: float, drive: Callable[..., Any]) -> None:
    format, chance = CurrentFormat((3, 2, 1), 2, 9), random.Random(3)
    sides: tuple[list[Any], list[Any]] = ([], [])
    wanted = []
    for _ in range(40):
        step = {"wake": chance.randrange(2), "first": chance.randrange(2)}
        active, empty = [chance.randrange(2) for _ in sides], [chance.random() < 0.4 for _ in sides]
        chunks = [[[0] * format.lanes if empty[side] else [chance.randint(-100, 100) for _ in range(format.lanes)]
                   for _ in range(format.chunks)] for side in range(2)]  # fmt: skip
        for side, to in enumerate(sides):
            said = step | {"active": active[side]}
            if empty[side]:
                to.append({"mark": 1, "empty": 1, "step": said, "x": [77] * format.lanes})
            else:
                to += [{"mark": int(i == format.chunks - 1), "step": said, "x": x} for i, x in enumerate(chunks[side])]
        if all(empty):
            wanted.append({"mark": 1, "empty": 1})
        else:
            wanted += [{"mark": int(i == format.chunks - 1), "empty": 0, "x": [a + b for a, b in zip(*pair, strict=True)]}
                       for i, pair in enumerate(zip(*chunks, strict=True))]  # fmt: skip
        wanted[-1]["step"] = {"first": step["first"], "wake": step["wake"], "final": 0, "active": int(any(active))}
    dut = CurrentSum(format)
    drive(dut, [(dut.i_0, sides[0]), (dut.i_1, sides[1])], [(dut.o, wanted)], stall=stall)


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
