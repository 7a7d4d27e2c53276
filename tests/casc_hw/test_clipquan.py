"""ClipQuan: the staircase forwards, the clipped ramp backwards."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from casc_hw import CascError, ClipQuan


@pytest.mark.parametrize("levels", [1, 2, 3, 8, 16, 255])
def test_forward_is_the_staircase(levels: int) -> None:
    x = torch.linspace(-0.5, 1.5, 4002, dtype=torch.float64).reshape(3, -1)
    wanted = [math.floor(levels * min(max(Fraction(value), Fraction(0)), Fraction(1))) / levels for value in x.flatten().tolist()]
    got = ClipQuan(levels)(x)
    assert got.shape == x.shape
    assert got.flatten().tolist() == wanted


@pytest.mark.parametrize("levels", [1, 2, 8, 64])
def test_steps_belong_to_the_upper_level(levels: int) -> None:
    exact = torch.arange(levels + 1, dtype=torch.float32) / levels
    assert torch.equal(ClipQuan(levels)(exact), exact)
    below = torch.nextafter(exact, torch.tensor(-1.0))
    assert torch.equal(ClipQuan(levels)(below), (exact - 1 / levels).clamp(min=0))


def test_gradient_is_that_of_the_clip() -> None:
    x = torch.tensor([-2.0, -0.01, 0.01, 0.3, 0.99, 1.01, 5.0], requires_grad=True)
    (ClipQuan(4)(x) * torch.arange(1.0, 8.0)).sum().backward()
    assert x.grad is not None
    assert x.grad.tolist() == [0, 0, 3, 4, 5, 0, 0]


@pytest.mark.parametrize("levels", [0, -1, 256, 8.0, "8", None, True])
def test_levels_out_of_range_are_refused(levels: object) -> None:
    with pytest.raises(CascError, match=r"^ClipQuan: levels is .*; give an integer from 1 to 255$"):
        ClipQuan(levels)  # type: ignore[arg-type]


def test_repr_names_the_levels() -> None:
    assert repr(ClipQuan(7)) == "ClipQuan(levels=7)"
