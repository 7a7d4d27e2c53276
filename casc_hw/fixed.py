"""Intervals of integers, and the number of bits that hold them: the source of every width in the gates."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Interval:
    """The integers ``lo`` to ``hi``, both included.

    ``a + b`` and ``a * b`` hold every sum and every product of a member of ``a`` and a member of ``b``
    (Moore's interval arithmetic); a plain ``int`` stands for the interval of that one number.
    """

    lo: int
    hi: int

    def __post_init__(self) -> None:
        if self.lo > self.hi:
            raise ValueError(f"empty interval: lo {self.lo!r} is above hi {self.hi!r}")

    def __add__(self, other: Interval | int) -> Interval:
        other = _interval(other)
        return Interval(self.lo + other.lo, self.hi + other.hi)

    def __neg__(self) -> Interval:
        return Interval(-self.hi, -self.lo)

    def __mul__(self, other: Interval | int) -> Interval:
        other = _interval(other)
        corners = [a * b for a in (self.lo, self.hi) for b in (other.lo, other.hi)]
        return Interval(min(corners), max(corners))

    def __or__(self, other: Interval | int) -> Interval:
        """The smallest interval that holds both."""
        other = _interval(other)
        return Interval(min(self.lo, other.lo), max(self.hi, other.hi))

    def __contains__(self, value: int) -> bool:
        return self.lo <= value <= self.hi

    def __str__(self) -> str:
        return f"[{self.lo}, {self.hi}]"

    @property
    def signed(self) -> bool:
        """Whether a sign bit is needed."""
        return self.lo < 0

    @property
    def bits(self) -> int:
        """Width in bits: two's complement if ``signed``, else unsigned; at least 1."""
        if self.signed:
            return max((-self.lo - 1).bit_length(), max(self.hi, 0).bit_length()) + 1
        return max(self.hi.bit_length(), 1)

    @property
    def signed_bits(self) -> int:
        """Width in bits in two's complement, whether or not a member is negative."""
        return self.bits if self.signed else self.hi.bit_length() + 1

    @classmethod
    def hull(cls, intervals: Iterable[Interval | int]) -> Interval:
        """The smallest interval that holds all of ``intervals`` (at least one)."""
        result: Interval | None = None
        for interval in intervals:
            result = _interval(interval) if result is None else result | interval
        if result is None:
            raise ValueError("the hull of no interval")
        return result


def _interval(value: Interval | int) -> Interval:
    return value if isinstance(value, Interval) else Interval(value, value)
