"""Interval: sums, products and widths hold every member, and widths are the least that do."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casc_hw import Interval

NUMBERS = st.integers(-(1 << 70), 1 << 70) | st.sampled_from([0, 1, -1, 127, 128, -128, -129, 255, 256])
INTERVALS = st.tuples(NUMBERS, NUMBERS).map(lambda pair: Interval(min(pair), max(pair)))


@st.composite
def members(draw: st.DrawFn) -> tuple[Interval, int]:
    interval = draw(INTERVALS)
    return interval, draw(st.sampled_from([interval.lo, interval.hi]) | st.integers(interval.lo, interval.hi))


@given(members(), members())
def test_arithmetic_holds_every_member(first: tuple[Interval, int], second: tuple[Interval, int]) -> None:
    (a, x), (b, y) = first, second
    assert x + y in a + b
    assert x * y in a * b
    assert -x in -a
    assert x in a | b
    assert y in a | b
    assert x + 3 in a + 3
    assert x * -3 in a * -3


@given(INTERVALS, INTERVALS)
def test_arithmetic_is_no_wider_than_its_corners(a: Interval, b: Interval) -> None:
    corners = [x * y for x in (a.lo, a.hi) for y in (b.lo, b.hi)]
    assert (a * b).lo in corners
    assert (a * b).hi in corners
    assert (a + b).hi - (a + b).lo == (a.hi - a.lo) + (b.hi - b.lo)
    assert {(a | b).lo, (a | b).hi} <= {a.lo, a.hi, b.lo, b.hi}


@pytest.mark.parametrize(
    ("lo", "hi", "signed", "bits", "signed_bits"),
    [
        (0, 0, False, 1, 1),
        (0, 1, False, 1, 2),
        (0, 2, False, 2, 3),
        (0, 255, False, 8, 9),
        (0, 256, False, 9, 10),
        (5, 7, False, 3, 4),
        (-1, 0, True, 1, 1),
        (-1, 1, True, 2, 2),
        (-2, 1, True, 2, 2),
        (-2, 2, True, 3, 3),
        (-128, 127, True, 8, 8),
        (-129, 127, True, 9, 9),
        (-128, 128, True, 9, 9),
        (-9, -5, True, 5, 5),
    ],
)
def test_widths(lo: int, hi: int, signed: bool, bits: int, signed_bits: int) -> None:
    interval = Interval(lo, hi)
    assert (interval.signed, interval.bits, interval.signed_bits) == (signed, bits, signed_bits)


@given(INTERVALS)
def test_widths_hold_the_interval_and_one_bit_less_does_not(interval: Interval) -> None:
    def fits(width: int, signed: bool) -> bool:
        low, high = (-(1 << width - 1), (1 << width - 1) - 1) if signed else (0, (1 << width) - 1)
        return low <= interval.lo and interval.hi <= high

    assert fits(interval.bits, interval.signed)
    assert interval.bits == 1 or not fits(interval.bits - 1, interval.signed)
    assert fits(interval.signed_bits, True)
    assert interval.signed_bits == 1 or not fits(interval.signed_bits - 1, True)


def test_hull_membership_and_text() -> None:
    assert Interval.hull([3, Interval(-2, 1), 7]) == Interval(-2, 7)
    assert 0 in Interval(-1, 1)
    assert 2 not in Interval(-1, 1)
    assert -2 not in Interval(-1, 1)
    assert str(Interval(-3, 4)) == "[-3, 4]"


def test_an_empty_interval_is_refused() -> None:
    with pytest.raises(ValueError, match="lo 1 is above hi 0"):
        Interval(1, 0)
    with pytest.raises(ValueError, match="no interval"):
        Interval.hull([])
