"""The network before its rounding in spikes: the torch module's activations, and the integer network's where nothing is rounded."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from casc_hw import CascError, ClipQuan, Conversion, FloatNet, SpikingNet, Step, convert, simulate
from casc_hw.evaluation import evaluate

SHAPE = (2, 8, 8)


class Model(nn.Module):
    """A residual block of two convolutions, one of them depthwise, behind a pool, with batch norm."""

    def __init__(self, levels: int, pool: nn.Module):
        super().__init__()
        self.conv1, self.norm, self.clip1 = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), ClipQuan(levels)
        self.pool = pool
        self.conv2, self.clip2 = nn.Conv2d(4, 4, 3, padding=1, groups=4), ClipQuan(levels)
        self.conv3, self.clip3 = nn.Conv2d(4, 4, 1), ClipQuan(levels)
        self.readout = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.clip1(self.norm(self.conv1(x))))
        y = self.conv3(self.clip2(self.conv2(x)))
        return self.readout(self.clip3(x + y).flatten(1))


def made(levels: int, pool: nn.Module, seed: int = 0) -> tuple[nn.Module, Conversion]:
    torch.manual_seed(seed)
    model = Model(levels, pool).double().eval()
    with torch.no_grad():
        model.norm.running_mean.normal_(0, 0.1)
        model.norm.running_var.uniform_(0.1, 0.3)
        for conv in (model.conv1, model.conv2, model.conv3):
            conv.weight *= 2
    return model, convert(model, input_shape=SHAPE, bits=4)


def pixels(count: int, seed: int = 1) -> Tensor:
    return torch.randint(0, 256, (count, *SHAPE), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("levels", [3, 8])
@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_at_rest_it_is_the_model(levels: int, pool: nn.Module) -> None:
    model, done = made(levels, pool)
    assert isinstance(done.unrounded, FloatNet)
    images, seen = pixels(20), []
    for module in model.modules():
        if isinstance(module, ClipQuan):
            module.register_forward_hook(lambda _module, _taken, given: seen.append((given * levels).round().long().flatten(1)))
    with torch.no_grad():
        logits = model(images.double() / 255)
    for margin, gamma in ((levels, 1), (1, 1), (2, 3)):
        snn = SpikingNet(done.unrounded, margin=margin, gamma=gamma)
        trace = snn.run(images)
        assert trace.settled.all()
        assert len(trace.answer.counts) == len(seen) == 3
        assert all(map(torch.equal, trace.answer.counts, seen))
        assert torch.allclose(snn(images), logits, rtol=0, atol=1e-9)
        assert torch.allclose(trace.answer.sums / levels, logits, rtol=0, atol=1e-9)
        assert torch.equal(trace.answer.classes, logits.argmax(1))
    assert all(len(of.unique()) > 2 for of in seen)
    rounded = SpikingNet(done.net).run(images)  # rounding to 4 bits costs something
    assert not torch.equal(rounded.answer.counts[1], seen[1])
    assert not torch.equal(SpikingNet(done.unrounded, sleep=0).run(images).answer.counts[2], seen[2])


class Sliced(nn.Module):
    """Takes some channels of what neurons emit, and has ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2, self.readout = nn.Conv2d(2, 6, 3), nn.Conv2d(3, 4, 3), nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv1(x))
        return self.readout(torch.relu(self.conv2(x[:, 1:4])).flatten(1))


@pytest.mark.parametrize("bits", [4, 8])
def test_the_integers_are_its_rounding(bits: int) -> None:
    torch.manual_seed(5)
    model = Sliced().double()
    done = convert(model, input_shape=SHAPE, bits=bits, levels=8, calibration=pixels(30) / 255)
    for layer, exact in zip(done.net.layers, done.unrounded.layers, strict=True):
        assert layer.name == exact.name
        one = torch.full((layer.outputs,), layer.scale or 0.0).double() if layer.threshold is None else layer.threshold.double()
        assert float((exact.bias * one - layer.bias).abs().max()) <= 0.5 + 1e-6
        for synapses, other in zip(layer.synapses, exact.synapses, strict=True):
            full = other.weight * one.reshape(-1, *[1] * (other.weight.ndim - 1))
            top = (1 << (bits - 1)) - 1
            assert float((full.clamp(-top, top) - synapses.weight).abs().max()) <= 0.5 + 1e-6
            assert (synapses.source, synapses.stride, synapses.groups) == (other.source, other.stride, other.groups)
    logits = SpikingNet(done.unrounded).ann(pixels(9)).sums / 8
    assert torch.allclose(SpikingNet(done.unrounded)(pixels(9)), logits)
    with torch.no_grad():  # 8 levels of activations, but no rounding of weights
        assert float((logits - model(pixels(9).double() / 255)).abs().max()) < 0.2


def test_where_nothing_is_rounded_it_is_the_integer_network_step_by_step() -> None:
    """Weights of whole 127ths, whose sums meet thresholds exactly but for floats: that is what the guard is for."""
    chance = torch.Generator().manual_seed(3)
    model = nn.Sequential(nn.Linear(9, 30), ClipQuan(5), nn.Linear(30, 20), ClipQuan(5), nn.Linear(20, 4)).double()
    with torch.no_grad():
        for index in (0, 2, 4):
            linear = model[index]
            linear.weight.copy_(torch.randint(-127, 128, linear.weight.shape, generator=chance).double() / 127 / 4)
            linear.weight[:, 0] = torch.where(linear.weight[:, 0] > 0, 0.25, -0.25)
            linear.bias.zero_()
    done = convert(model, input_shape=(9,), input_max=5)
    assert max(done.weight_error.values()) < 1e-12
    images = torch.randint(0, 6, (200, 9), generator=chance)
    wanted = simulate(done.net, images, potentials=True)
    got = SpikingNet(done.unrounded).run(images, record=True, potentials=True)
    theta = [layer.threshold[0] for layer in done.net.spiking]
    assert any((of % of_theta == 0).any() for of, of_theta in zip(wanted.potentials, theta, strict=True))
    assert all(map(torch.equal, got.spikes, wanted.spikes))
    assert torch.equal(got.sleep_steps, wanted.sleep_steps)
    for mine, exact, of_theta in zip(got.potentials, wanted.potentials, theta, strict=True):
        assert mine.dtype == torch.float64
        assert torch.allclose(mine, exact.double() / of_theta, rtol=0, atol=1e-9)


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_options_hooks_and_statistics(pool: nn.Module) -> None:
    model, done = made(6, pool)
    images, steps = pixels(12), list[Step]()
    snn = SpikingNet(done.unrounded, levels=4, margin=3, gamma=2)
    with snn.statistics() as seen, snn.register_step_hook(steps.append):
        trace = snn.run(images, record=True, potentials=True)
    assert len(steps) == len(trace.wake)
    assert int(trace.wake.sum()) == 4
    for index, layer in enumerate(done.unrounded.spiking):
        assert sum(int(of.abs().sum(dtype=torch.int64)) for of in trace.spikes[index]) == sum(
            row.spikes for row in seen.activity if row.layer == layer.name
        )
        assert torch.equal(steps[-1].counts[layer.name].flatten(1), trace.answer.counts[index])
        assert torch.equal(steps[-1].potentials[layer.name].flatten(1), trace.potentials[index][-1])
    assert torch.equal(steps[-1].sums.flatten(1), trace.answer.sums)
    assert all(row.unevenness == 0 for row in seen.activity[-4:])
    assert any(row.negative for row in seen.activity)
    assert not any((of < 0).any() for of in SpikingNet(done.unrounded, negative=False).run(images, record=True).spikes)
    with torch.no_grad():
        labels = model(images.double() / 255).argmax(1)
    told = evaluate(done.unrounded, images, labels)
    assert told.modes[0].name == "ANN"
    assert told.modes[0].accuracy == told.modes[3].accuracy == told.modes[3].equal == 1 > told.modes[1].equal
    assert told.as_json()["net"]["digest"] is None


def test_what_is_refused() -> None:
    _, done = made(4, nn.AvgPool2d(2))
    with pytest.raises(CascError, match=r"^margin: 9 .*; "):
        SpikingNet(done.unrounded, margin=9)
    with pytest.raises(CascError, match=r"^image: pixels must be integers .*; "):
        SpikingNet(done.unrounded)(pixels(1) / 255)
    with pytest.raises(CascError, match=r"^SpikingNet: moved to torch.float32, .*; "):
        SpikingNet(done.unrounded).float()(pixels(1))
    assert replace(done.unrounded, sleep=3).sleep == 3
