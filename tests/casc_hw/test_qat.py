"""Training with rounding: in float64 the network is the converted one, count by count, and everything in it can be trained."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from casc_hw import CascError, ClipQuan, clip_quant, convert, quantised_ann
from casc_hw.qat import fake_quantise, fold_batchnorm


def _randomise(model: nn.Module, seed: int) -> nn.Module:
    """Parameters and running statistics of no special value, in float64, in eval mode."""
    chance = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            ends = ((module.running_mean, -0.3, 0.3), (module.running_var, 0.1, 0.6), (module.weight, 0.3, 1.0), (module.bias, -0.1, 0.4))
            for tensor, low, high in ends:
                tensor.data.copy_(torch.rand(tensor.shape, generator=chance) * (high - low) + low)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            spread = module.weight[0].numel() ** -0.5
            module.weight.data.copy_(torch.randn(module.weight.shape, generator=chance) * spread)
            if module.bias is not None:
                module.bias.data.copy_(torch.randn(module.bias.shape, generator=chance) * 0.1 + 0.2 * isinstance(model, Shortcuts))
        elif isinstance(module, ClipQuan) and module.log_scale is not None:
            module.log_scale.data.copy_(torch.rand(module.log_scale.shape, generator=chance) * 1.5 - 0.9)
    return model.double().eval()


def _sequence(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def mlp(levels: int = 8) -> nn.Module:
    return _sequence(flat=nn.Flatten(), fc1=nn.Linear(64, 20), bn=nn.BatchNorm1d(20), act1=ClipQuan(levels), drop=nn.Dropout(0.5),
                     fc2=nn.Linear(20, 9, bias=False), act2=ClipQuan(levels), fc3=nn.Linear(9, 5))  # fmt: skip


def cnn(levels: int = 8, pool: type[nn.Module] = nn.AvgPool2d) -> nn.Module:
    return _sequence(
        conv1=nn.Conv2d(1, 5, 3, padding=1, bias=False), bn1=nn.BatchNorm2d(5), act1=ClipQuan(levels), pool1=pool(2),
        conv2=nn.Conv2d(5, 5, 3, padding=1, groups=5, bias=False), act2=ClipQuan(levels), pool2=pool(2, padding=1),
        conv3=nn.Conv2d(5, 7, 1), bn3=nn.BatchNorm2d(7), act3=ClipQuan(levels), flat=nn.Flatten(), fc=nn.Linear(63, 4),
    )  # fmt: skip


class Residual(nn.Module):
    """A stem, a block with an identity, one with a projection, an average, a read-out."""

    def __init__(self, levels: int = 8):
        super().__init__()
        self.stem, self.stem_bn, self.act, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), ClipQuan(levels), nn.MaxPool2d(2)
        self.conv1, self.bn1, self.act1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), ClipQuan(levels)
        self.conv2, self.bn2, self.act2 = nn.Conv2d(4, 6, 3, 2, padding=1, bias=False), nn.BatchNorm2d(6), ClipQuan(levels)
        self.side, self.side_bn = nn.Conv2d(4, 6, 1, 2, bias=False), nn.BatchNorm2d(6)
        self.mean, self.fc = nn.AdaptiveAvgPool2d(1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.act(self.stem_bn(self.stem(x))))
        x = self.act1(self.bn1(self.conv1(x)) + x)
        x = self.act2(self.bn2(self.conv2(x)) + self.side_bn(self.side(x)))
        return self.fc(torch.flatten(self.mean(x), 1))


class Shortcuts(nn.Module):
    """Identities of concatenations into a max pool, and of neurons and averages beside convolutions; parts of the read-out's input."""

    def __init__(self, levels: int = 8):
        super().__init__()
        self.conv1, self.conv2, self.conv3, self.conv4 = (nn.Conv2d(*of, 3, padding=1) for of in ((1, 3), (3, 2), (3, 3), (3, 2)))
        self.conv5, self.conv6, self.conv7 = nn.Conv2d(5, 5, 1), nn.Conv2d(5, 5, 3, padding=1), nn.Conv2d(5, 5, 1)
        self.fc = nn.Linear(20 + 80 + 192, 4)
        self.act1, self.act2, self.act3, self.act4, self.act5, self.act6, self.act7, self.act8 = (ClipQuan(levels) for _ in range(8))
        self.mean, self.max = nn.AvgPool2d(2), nn.MaxPool2d(2)

    def forward(self, x: Tensor) -> Tensor:
        one = self.act1(self.conv1(x))
        both = torch.cat([one, self.act2(self.conv2(one))], 1)
        other = torch.cat([self.act3(self.conv3(one)), self.act4(self.conv4(one))], 1)
        most = self.act5(self.max(both + other))
        deep = self.act6(self.conv5(most))
        sums = self.act7(self.conv6(most) + deep)
        last = self.act8(self.conv7(self.mean(sums)) + self.mean(deep))
        return self.fc(torch.cat([last.flatten(1), most.flatten(1), one.flatten(1)], 1))


MODELS: dict[str, Callable[[], nn.Module]] = {
    "mlp": mlp,
    "mlp, T = 3": lambda: mlp(3),
    "average": cnn,
    "max": lambda: cnn(pool=nn.MaxPool2d),
    "average, T = 5": lambda: cnn(5),
    "residual": Residual,
    "residual, T = 6": lambda: Residual(6),
    "shortcuts": Shortcuts,
    "concatenated": lambda: Concatenated(),
    **{
        f"{name}, a scale per {kind}": lambda make=make, levels=levels, kind=kind: clip_quant(make(levels), levels, kind)
        for name, make, levels in (("mlp", mlp, 8), ("average", cnn, 8), ("max", lambda levels: cnn(levels, nn.MaxPool2d), 5),
                                   ("residual", Residual, 6), ("shortcuts", Shortcuts, 8), ("concatenated", lambda _: Concatenated(), 8))
        for kind in ("layer", "channel")
    },
}  # fmt: skip


def _images(count: int = 40) -> Tensor:
    chance = torch.Generator().manual_seed(5)
    images = torch.randint(0, 256, (count, 1, 8, 8), generator=chance)
    images[::3] *= torch.rand(images[::3].shape, generator=chance) < 0.3
    return images


def _activations(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What each ClipQuan gives over its scale, in order; and the output."""
    seen: list[Tensor] = []

    def keep(clip: nn.Module, _: object, given: Tensor) -> None:
        scale = torch.ones(()) if clip.scale is None else clip.scale
        seen.append(given / scale.reshape(-1, *[1] * (given.ndim - 2)))

    hooks = [
        module.register_forward_hook(keep)
        for module in model.modules()
        if isinstance(module, ClipQuan)
    ]
    with torch.no_grad():
        output = model(x)
    for hook in hooks:
        hook.remove()
    return seen, output


@pytest.mark.parametrize("name", MODELS)
def test_folding_changes_nothing(name: str) -> None:
    model, x = _randomise(MODELS[name](), 1), _images().double() / 255
    before = {key: value.clone() for key, value in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)) for module in folded.modules())
    assert torch.allclose(folded(x), model(x), rtol=1e-9, atol=1e-9)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize("name", MODELS)
def test_counts_and_sums_are_the_converted_networks(name: str, bits: int) -> None:
    model, images = fold_batchnorm(_randomise(MODELS[name](), bits)), _images()
    tuned = fake_quantise(model, input_shape=(1, 8, 8), bits=bits).eval()
    seen, output = _activations(tuned, images.double() / 255)
    net = convert(model, input_shape=(1, 8, 8), bits=bits).net
    answer = quantised_ann(net, images)
    assert torch.equal((output * net.levels * (net.readout.scale or 0)).round().to(torch.int64), answer.sums)
    for count in answer.counts:
        assert len(count.unique()) > 1
    if not isinstance(model, Shortcuts):  # whose layers are not its ClipQuans
        for layer, activation, count in zip(net.spiking, seen, answer.counts, strict=True):
            assert torch.equal((activation * net.levels).round().to(torch.int64).flatten(1), count), layer.name


def test_bits_by_module_and_pixels_of_one_bit() -> None:
    model = fold_batchnorm(_randomise(cnn(), 3))
    settings: dict[str, Any] = {"input_shape": (8, 8), "input_max": 1, "bits": {"conv1": 2, "conv2": 6, "fc": 3}}
    images = _images() % 2
    _, output = _activations(fake_quantise(model, **settings), images.double())
    net = convert(model, **settings).net
    assert torch.equal((output * net.levels * (net.readout.scale or 0)).round().to(torch.int64), quantised_ann(net, images).sums)


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_learns(name: str) -> None:
    model = fold_batchnorm(_randomise(MODELS[name](), 4))
    tuned = fake_quantise(model, input_shape=(1, 8, 8), bits=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    optimiser = torch.optim.SGD(tuned.parameters(), lr=1e-2)
    losses = []
    for _ in range(20):
        optimiser.zero_grad()
        loss = nn.functional.cross_entropy(tuned(_images().double() / 255), torch.arange(40) % 3)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_the_gradient_is_that_of_the_rounded_weights() -> None:
    model = fold_batchnorm(_randomise(mlp(), 6))
    tuned = fake_quantise(model, input_shape=(8, 8), bits=4)
    x = _images().double() / 255
    tuned(x).sum().backward()
    rounded = {key: value.detach().requires_grad_() for key, value in tuned.rounded().items()}
    torch.func.functional_call(model, rounded, (x,)).sum().backward()
    for key, parameter in model.named_parameters():
        assert torch.allclose(parameter.grad, rounded[key].grad), key


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm, self.fc = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2), nn.Linear(72, 3)
        self.act, self.flat = ClipQuan(8), nn.Flatten()
        self.normed = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        for _ in range(2):
            x = self.act(self.norm(self.conv(x)) if self.normed else self.conv(x))
        return self.fc(self.flat(x))


class Concatenated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.fc = nn.Conv2d(1, 2, 3), nn.Conv2d(2, 2, 1), nn.Linear(144, 3)
        self.act = ClipQuan(8)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.stem(x))
        return self.fc(torch.cat([x, self.act(self.conv(x))], 1).flatten(1))


REFUSALS: list[tuple[Callable[[], nn.Module], str]] = [
    (cnn, "conv1: a BatchNorm scales what it takes or gives; fold it with fold_batchnorm"),
    (lambda: _sequence(flat=nn.Flatten(), fc=nn.Linear(64, 3), act=nn.ReLU(), out=nn.Linear(3, 2)), "act: ReLU has no levels"),
    (lambda: _sequence(flat=nn.Flatten(), fc=nn.Linear(64, 3), act=nn.Sigmoid(), out=nn.Linear(3, 2)), "act: Sigmoid cannot be converted"),
    (Twice, "conv: is used twice"),
]


@pytest.mark.parametrize(("make", "message"), REFUSALS)
def test_refusals(make: Callable[[], nn.Module], message: str) -> None:
    with pytest.raises(CascError, match=message):
        fake_quantise(make(), input_shape=(1, 8, 8), bits=4)


def test_refusals_of_folding() -> None:
    model = Twice()
    model.normed = True
    with pytest.raises(CascError, match="norm: conv before it has another use"):
        fold_batchnorm(model)
    untracked = _sequence(fc=nn.Linear(4, 3), bn=nn.BatchNorm1d(3, track_running_stats=False), act=ClipQuan(8), out=nn.Linear(3, 2))
    with pytest.raises(CascError, match="bn: BatchNorm1d keeps no running statistics"):
        fold_batchnorm(untracked)
    with pytest.raises(CascError, match="fc: 5-bit weights"):
        fake_quantise(_sequence(fc=nn.Linear(4, 3), act=ClipQuan(8), out=nn.Linear(3, 2)), input_shape=(4,), bits=5)
