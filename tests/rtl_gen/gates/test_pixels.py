"""The pixel reader against a list of beats read in plain Python."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil

from rtl_gen.gates.pixels import PixelReader, PixelSpec

SPECS = [
    *(
        PixelSpec((size, 1, 1), *rest)
        for size, *rest in ((1, 1, 1), (1, 255, 4), (2, 255, 2), (5, 100, 1), (5, 100, 2), (13, 255, 4), (13, 5, 8), (16, 16, 8))
    ),
    PixelSpec((1, 3, 4), 255, 2),
    PixelSpec((1, 2, 8), 100, 8),
    PixelSpec((3, 2, 4), 255, 4),
    PixelSpec((3, 3, 8), 5, 8),
    PixelSpec((5, 2, 3), 255, 1),
    PixelSpec((6, 2, 2), 255, 4),
]
Beats = list[tuple[list[int], int]]


def framed(spec: PixelSpec, pixels: list[int]) -> Beats:
    padded = pixels + [0] * (spec.beats * spec.beat - len(pixels))
    return [(padded[first : first + spec.beat], int(first + spec.beat >= len(padded))) for first in range(0, len(padded), spec.beat)]


def model(spec: PixelSpec, beats: Beats) -> tuple[list[dict[str, int]], int]:
    """Events of one image's beats, mark included; and whether the image is malformed."""
    events, malformed = [], len(beats) != spec.beats
    pixels = [pixel for beat, _ in beats for pixel in beat][: spec.size]
    channels, _, width = spec.shape
    for number, pixel in enumerate(pixels):
        if pixel:
            (y, x), channel = divmod(number // channels, width), number % channels
            events.append({"mark": 0, "y": y, "x": x, "channel": channel, "value": min(pixel, spec.maximum)})
        malformed |= pixel > spec.maximum
    return [*events, {"mark": 1}], int(malformed)


def images(spec: PixelSpec, seed: int) -> list[Beats]:
    """Good images and every kind of bad one, each bad one followed by a good one."""
    chance = random.Random(seed)

    def good() -> Beats:
        return framed(spec, [chance.choice((0, chance.randint(0, spec.maximum))) for _ in range(spec.size)])

    top = (1 << spec.maximum.bit_length()) - 1  # the largest the port can carry
    late = [*((beat, 0) for beat, _ in good()), ([1] * spec.beat, 0), ([top] * spec.beat, 1)]
    over = [([top] * spec.beat, last) for _, last in good()]
    bright, dark = framed(spec, [spec.maximum] * spec.size), framed(spec, [0] * spec.size)
    filled = [([pixel or 1 for pixel in beat], last) for beat, last in bright]  # beyond the size: dropped, and no error
    bad = [late, over, filled]
    if spec.beats > 1:
        early = good()[: spec.beats // 2]
        early[-1] = (early[-1][0], 1)
        bad += [early, [([0] * spec.beat, 1)], [([1] * spec.beat, 1)]]
    return [good(), bright, dark, *(image for each in bad for image in (each, good())), dark, dark, bright]


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_events_and_tickets(spec: PixelSpec, stall: float, drive: Callable[..., Any]) -> None:
    wanted, tickets, sent = [], [], []
    for beats in images(spec, 7):
        events, malformed = model(spec, beats)
        wanted += events
        tickets.append({"malformed": malformed})
        sent += [{"data": beat, "last": last} for beat, last in beats]
    firsts = {index for index in range(len(sent)) if index == 0 or sent[index - 1]["last"]}
    dut, starts, seen = PixelReader(spec), [], []

    def hook(ctx: Any, cycle: int, given: Any, taken: Any) -> list[Any]:
        if given[0] in firsts:
            starts.append(cycle)
        if taken[1]:
            seen.append(taken[1]["start"])
        marks.extend([cycle] * bool(taken[0] and taken[0]["mark"]))
        assert len(seen) >= len(marks), "a mark before its ticket"
        assert ctx.get(dut.busy) == (len(starts) - (given[0] in firsts) > len(marks) - bool(taken[0] and taken[0]["mark"]))
        return [(dut.now, cycle + 1)]

    marks: list[int] = []
    drive(dut, [(dut.pixels, sent)], [(dut.events, wanted), (dut.tickets, tickets)], stall=stall, hook=hook)
    assert seen == starts


def test_a_beat_takes_as_many_cycles_as_it_has_pixels(drive: Callable[..., Any]) -> None:
    """The next beat is taken in the cycle its predecessor's last pixel leaves."""
    spec = PixelSpec((16, 1, 1), 255, 4)
    for pixels, cycles in [([1] * 16, 16), ([0] * 16, 4), ([1, 0, 0, 0] * 4, 4), ([1, 0, 0, 1] * 4, 8)]:
        dut, times = PixelReader(spec), []

        def hook(ctx: Any, cycle: int, given: Any, taken: Any, times: list[int] = times) -> None:
            times.extend([cycle] * bool(taken[0] and taken[0]["mark"]))

        sent = [{"data": beat, "last": last} for beat, last in framed(spec, pixels)]
        drive(dut, [(dut.pixels, sent)], [(dut.events, None), (dut.tickets, None)], hook=hook)
        assert cycles <= times[0] <= cycles + 3


def test_beats_are_powers_of_two() -> None:
    with pytest.raises(ValueError, match="beat 3 is not a power of two"):
        PixelSpec((5, 1, 1), 255, 3)
    with pytest.raises(ValueError, match="beat 4 does not divide a row of 6 pixels"):
        PixelSpec((2, 5, 3), 255, 4)


@pytest.mark.parametrize("spec", SPECS, ids=str)
def test_converts(spec: PixelSpec) -> None:
    rtlil.convert(PixelReader(spec), emit_src=False)
