"""ClipQuan: the staircase forwards, the clipped ramp backwards; and clip_quant, which puts it in."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from casc_hw import CascError, ClipQuan, clip_quant, convert


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


# --- clipping scales --------------------------------------------------------------------------------------------------


def test_without_a_scale_there_is_no_parameter() -> None:
    assert not list(ClipQuan(8).parameters())
    assert not ClipQuan(8).state_dict()
    assert ClipQuan(8).scale is None


@pytest.mark.parametrize("shape", [(5, 3), (5, 3, 2, 4)])
@pytest.mark.parametrize("levels", [3, 8])
def test_a_scale_stretches_the_staircase(levels: int, shape: tuple[int, ...]) -> None:
    x = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(levels))
    scale = torch.tensor([0.3, 1.0, 2.5], dtype=torch.float64)
    each, one = ClipQuan(levels, scale), ClipQuan(levels, scale[2])
    assert torch.allclose(each.scale, scale)
    for channel in range(3):
        assert torch.allclose(each(x)[:, channel], scale[channel] * ClipQuan(levels)(x[:, channel] / each.scale[channel]))
    assert torch.equal(one(x)[:, 2], each(x)[:, 2])
    assert torch.equal(ClipQuan(levels, 1.0)(x), ClipQuan(levels)(x))
    assert (repr(each), repr(one)) == (f"ClipQuan(levels={levels}, scale=3)", f"ClipQuan(levels={levels}, scale=one)")


def test_the_gradient_of_the_scale_is_that_of_learned_step_sizes() -> None:
    """LSQ, equation 3, with floor for round: y/s - x/s inside the clip, 1 above, 0 below; and that of x stays the clip's."""
    x = torch.tensor([[-1.0, 0.3], [0.7, 0.8], [1.1, 9.0], [1.9, -3.0], [5.0, 0.1]], dtype=torch.float64, requires_grad=True)
    clip = ClipQuan(4, torch.tensor([2.0, 0.5], dtype=torch.float64))
    y, scale = clip(x), clip.scale.detach()
    y.sum().backward()
    inside, above = (x > 0) & (x < scale), x >= scale
    wanted = torch.where(inside, (y - x) / scale, above.double()).sum(0)
    assert torch.allclose(clip.log_scale.grad, (wanted * scale).detach())  # the parameter is the logarithm
    assert torch.equal(x.grad, inside.double())


@pytest.mark.parametrize("levels", [16, 255])
def test_the_gradient_above_the_clip_is_the_slope(levels: int) -> None:
    x, step = torch.linspace(2.1, 5, 50, dtype=torch.float64), 1e-6
    clip = ClipQuan(levels, 2.0).double()
    clip(x).sum().backward()
    with torch.no_grad():
        clip.log_scale += step
        more = clip(x).sum()
        clip.log_scale -= 2 * step
        slope = (more - clip(x).sum()) / (2 * step)
    assert clip.log_scale.grad.item() == pytest.approx(slope.item(), rel=1e-6)


def test_a_scale_stays_positive() -> None:
    clip = ClipQuan(4, 0.1)
    optimiser = torch.optim.SGD(clip.parameters(), lr=50.0)
    for _ in range(5):
        optimiser.zero_grad()
        clip(torch.ones(3)).sum().backward()
        optimiser.step()
    assert 0 < clip.scale < 1e-3


@pytest.mark.parametrize(
    ("scale", "words"),
    [
        (0.0, "scale is 0.0"),
        (-1, "scale is -1.0"),
        (math.inf, "scale is inf"),
        (torch.tensor([1.0, math.nan]), "scale is nan"),
        (torch.ones(2, 2), r"of shape \(2, 2\)"),
        (torch.ones(0), r"of shape \(0,\)"),
        (torch.ones(2, dtype=torch.int64), "torch.int64"),
    ],
)
def test_scales_that_cannot_be_are_refused(scale: object, words: str) -> None:
    with pytest.raises(CascError, match=rf"^ClipQuan: .*{words}.*; "):
        ClipQuan(8, scale)  # type: ignore[arg-type]


@pytest.mark.parametrize(("kind", "shapes"), [("layer", [(), (), ()]), ("channel", [(2,), (6,), (5,)])])
def test_clip_quant_gives_scales(kind: str, shapes: list[tuple[int, ...]]) -> None:
    class Joined(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.act, self.pool = nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.MaxPool2d(2)
            self.wide, self.both, self.flat = nn.Conv2d(2, 4, 1), ClipQuan(4), nn.Flatten()
            self.fc, self.last = nn.Linear(24, 5), nn.ReLU6()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.pool(self.act(self.norm(self.conv(x))))
            return self.last(self.fc(self.flat(self.both(torch.cat([self.wide(x), x + x], 1)))))

    model = clip_quant(Joined().double(), 4, kind)  # type: ignore[arg-type]
    scales = [module.log_scale for module in (model.act, model.both, model.last)]
    assert [tuple(scale.shape) for scale in scales] == shapes
    assert all(scale.dtype == torch.float64 and not scale.any() for scale in scales)
    assert model(torch.rand(2, 1, 4, 4, dtype=torch.float64)).shape == (2, 5)
    kept = model.act
    assert clip_quant(model, 4, kind).act is kept  # type: ignore[arg-type]


def test_channels_that_cannot_be_told_are_refused() -> None:
    with pytest.raises(CascError, match=r"^2: the layers before it do not tell its channels; use ClipQuan\(levels, torch.ones"):
        clip_quant(nn.Sequential(nn.Conv2d(1, 2, 1), nn.Flatten(), nn.ReLU()), 4, "channel")
    act = nn.ReLU()
    with pytest.raises(CascError, match=r"^1: is used behind 3 and behind 4 channels; "):
        clip_quant(nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 4), act), 4, "channel")
    with pytest.raises(CascError, match=r"^scale: is 'neuron'; "):
        clip_quant(nn.Sequential(nn.ReLU()), 4, "neuron")  # type: ignore[arg-type]


# --- clip_quant -------------------------------------------------------------------------------------------------------


class Block(nn.Module):
    """One activation module, used twice, and one of a kind that is none of ours."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.act = nn.Conv2d(2, 2, 1), nn.Conv2d(2, 2, 1), nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.act(self.conv2(self.act(self.conv1(x))) + x)


class Functional(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.relu(x)


class Leaky(nn.ReLU):
    """A subclass whose forward is its own."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.clamp(min=-1)


def test_every_relu_is_exchanged_in_place() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 1), nn.ReLU6(), Block(), nn.GELU(), Leaky(), nn.Dropout(), nn.ReLU(inplace=True)).eval()
    kept = {name: module for name, module in model.named_modules() if not type(module).__name__.startswith("ReLU")}
    parameters = list(model.parameters())
    assert clip_quant(model, levels=4) is model
    found = dict(model.named_modules())
    assert {name for name, module in found.items() if isinstance(module, ClipQuan) and module.levels == 4} == {"1", "2.act", "6"}
    assert all(found[name] is module for name, module in kept.items())
    assert len(found) == len(kept) + 3
    assert all(one is other for one, other in zip(model.parameters(), parameters, strict=True))
    assert not any(module.training for module in model.modules())
    x = torch.rand(2, 1, 3, 3)
    clipped = ClipQuan(4)(model[0](x))
    conv1, conv2 = model[2].conv1, model[2].conv2
    assert torch.equal(model[:3](x), ClipQuan(4)(conv2(ClipQuan(4)(conv1(clipped))) + clipped))
    assert clip_quant(model, 4) is model  # once more changes nothing
    assert dict(model.named_modules()) == found


def test_a_module_under_two_names_stays_one() -> None:
    act = nn.ReLU()
    model = clip_quant(nn.Sequential(nn.Linear(3, 3), act, nn.Linear(3, 3), act), 2)
    assert model[1] is model[3]
    assert isinstance(model[1], ClipQuan)


def test_a_relu_alone_becomes_a_clipquan() -> None:
    assert isinstance(clip_quant(nn.ReLU(), levels=3), ClipQuan)


@pytest.mark.parametrize("levels", [4, 16])
def test_what_it_makes_converts(levels: int) -> None:
    torch.manual_seed(0)
    model = clip_quant(nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2)), levels)
    assert convert(model, input_shape=(4, 4)).net.levels == levels


class Shared(nn.Module):
    """Works in place on what a shortcut takes too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(2, 2, 1), nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.conv(x)
        return self.act(x) + x


class Branching(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x if x.sum() > 0 else -x


@pytest.mark.parametrize(
    ("model", "levels", "words"),
    [
        (nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2), Functional())), 8, ("1.1: its forward calls relu", "torch.nn.ReLU()")),
        (Functional(), 8, ("model: its forward calls relu",)),
        (nn.Sequential(nn.ReLU(), ClipQuan(4)), 8, ("1: is a ClipQuan of 4 levels, not 8",)),
        (nn.Sequential(nn.Linear(2, 2)), 8, ("model: has no ReLU",)),
        (nn.Sequential(nn.ReLU(), Branching()), 8, ("torch.fx cannot trace",)),
        (nn.Sequential(nn.ReLU(), Shared()), 8, ("1.act: works in place", "inplace=False")),
        (nn.Sequential(nn.ReLU()), 0, ("levels is 0",)),
        (nn.Sequential(nn.ReLU(), nn.Sequential(nn.Linear(2, 2), nn.ReLU())), 2.0, ("levels is 2.0",)),
        (nn.Sequential(nn.ReLU()), True, ("levels is True",)),
    ],
)
def test_what_cannot_be_exchanged_is_refused_by_name(model: nn.Module, levels: int, words: tuple[str, ...]) -> None:
    before = dict(model.named_modules())
    with pytest.raises(CascError) as refused:
        clip_quant(model, levels)
    assert "; " in str(refused.value)
    assert "\n" not in str(refused.value)
    for word in words:
        assert word in str(refused.value)
    assert dict(model.named_modules()) == before


def test_only_a_module_has_relus() -> None:
    with pytest.raises(CascError, match=r"^model: is a str, .*; "):
        clip_quant("net.pt", 8)  # type: ignore[arg-type]
