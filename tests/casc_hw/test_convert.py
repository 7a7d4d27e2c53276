"""Conversion against the float model: nothing but rounding may differ, and where rounding is exact nothing at all."""

from __future__ import annotations

import copy
import re
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from casc_hw import CascError, ClipQuan, IntegerNet, Loss, convert, quantised_ann, simulate
from casc_hw.conversion import MAX_THRESHOLD, _best, _rounding_errors, round_layer
from casc_hw.network import Layer, Pool


def _model(
    *sizes: int, levels: int = 8, norm: bool = True, activation: Callable[[], nn.Module] | None = None, seed: int = 0
) -> nn.Sequential:
    """Linear, BatchNorm with running statistics of no special value, activation; and a read-out. Float64, in eval mode."""
    torch.manual_seed(seed)
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        layers[f"fc{index}"] = nn.Linear(inputs, outputs)
        if index < len(sizes) - 2:
            if norm:
                layers[f"bn{index}"] = bn = nn.BatchNorm1d(outputs, eps=1e-2)
                bn.running_mean = torch.randn(outputs) * 0.2
                bn.running_var = torch.rand(outputs) + 0.2
                bn.weight.data, bn.bias.data = torch.randn(outputs) * 0.7, torch.rand(outputs) * 0.5
            layers[f"act{index}"] = ClipQuan(levels) if activation is None else activation()
    return nn.Sequential(layers).double().eval()


def _before_activations(model: nn.Sequential, x: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
    """Per Linear, by name: its input, and what arrives at the activation behind it."""
    found, name, entered = {}, "", x
    for label, module in model.named_children():
        if isinstance(module, nn.Linear):
            name, entered = label, x
        x = module(x).detach()
        if not isinstance(module, (ClipQuan, nn.ReLU, nn.Flatten)):
            found[name] = (entered, x)
    return found


def _weight(layer: Layer) -> Tensor:
    (synapses,) = layer.synapses
    return synapses.weight


def assert_only_rounding(
    net: IntegerNet, model: nn.Sequential, pixels: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0
) -> None:
    """Every layer fed with the float model's own input: |integer - float| <= half a unit per weight times input, and per bias."""
    for index, (layer, (entered, wanted)) in enumerate(
        zip(net.layers, _before_activations(model, (pixels.double() / net.input_max - mean) / std).values(), strict=True)
    ):
        events = pixels.flatten(1).double() if index == 0 else entered  # an activation of 1 is T spikes in T steps
        one = layer.threshold.double() if layer.threshold is not None else torch.tensor(layer.scale, dtype=torch.float64)
        got = (events @ _weight(layer).double().T + layer.bias) / one
        allowed = 0.5 * (events.abs().sum(1, keepdim=True) + 1) / one
        assert ((got - wanted).abs() <= allowed * (1 + 1e-9)).all(), layer.name
        assert not torch.equal(got, wanted)


def _pixels(count: int, *shape: int, high: int = 255, seed: int = 0) -> Tensor:
    return torch.randint(0, high + 1, (count, *shape), generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize(("high", "bits"), [(255, 8), (16, 8), (1, 6)])
def test_folding(norm: bool, high: int, bits: int) -> None:
    model = _model(12, 9, 7, 4, norm=norm)
    result = convert(model, input_shape=(3, 4), input_max=high, bits=bits)
    assert (result.net.input_max, result.net.input_shape, result.net.levels) == (high, (3, 4), 8)
    assert [layer.name for layer in result.net.layers] == ["fc0", "fc1", "fc2"]
    assert {synapses.bits for layer in result.net.layers for synapses in layer.synapses} == {bits}
    assert result.scales == {"fc0": 1.0, "fc1": 1.0}
    assert result.agreement is None
    assert_only_rounding(result.net, model, _pixels(50, 3, 4, high=high))


@pytest.mark.parametrize("shape", [(12,), (3, 4), (3, 2, 2)])
def test_mean_and_std_fold_per_channel(shape: tuple[int, ...]) -> None:
    model = _model(12, 9, 4)
    mean, std = torch.linspace(0.1, 0.6, shape[0]).double(), torch.linspace(0.2, 0.9, shape[0]).double()
    net = convert(model, input_shape=shape, mean=mean.tolist(), std=std.tolist()).net
    spread = (shape[0],) + (1,) * (len(shape) - 1)
    assert_only_rounding(net, model, _pixels(50, *shape), mean.reshape(spread), std.reshape(spread))


@pytest.mark.parametrize("several", [False, True])
def test_one_mean_and_std_fold_too(several: bool) -> None:
    model = _model(12, 9, 4)
    net = convert(model, input_shape=(12,), mean=[0.4] if several else 0.4, std=0.25).net
    assert_only_rounding(net, model, _pixels(50, 12), 0.4, 0.25)


def test_bn_without_affine_linear_without_bias_dropout_and_nesting() -> None:
    torch.manual_seed(0)
    bn = nn.BatchNorm1d(5, affine=False)
    bn.running_mean, bn.running_var = torch.randn(5), torch.rand(5) + 0.5
    head = nn.Sequential(nn.Dropout(0.5), nn.Linear(6, 5, bias=False), bn, ClipQuan(4))
    model = nn.Sequential(head, nn.Dropout(0.5), nn.Linear(5, 3)).double()
    net = convert(model, input_shape=(6,)).net
    assert [layer.name for layer in net.layers] == ["0.1", "2"]
    assert net.levels == 4
    flat = nn.Sequential(OrderedDict(a=head[1], b=bn, c=head[3], d=model[2])).eval()
    assert_only_rounding(net, flat, _pixels(20, 6))


def test_the_largest_weight_uses_all_its_bits() -> None:
    net = convert(_model(12, 9, 7, 4), input_shape=(12,), bits={"fc1": 6}).net
    for layer, top in zip(net.layers, (127, 31, 127), strict=True):
        largest = _weight(layer).abs().amax(1)
        assert int(largest.max()) == top
        if layer.threshold is not None:
            assert int(largest.min()) >= top - 2  # the threshold is rounded first
    assert all(_weight(layer).abs().max() < 128 for layer in net.layers)


def test_per_layer_bits() -> None:
    result = convert(_model(12, 9, 7, 4), input_shape=(12,), bits={"fc0": 4, "fc2": 3})
    assert [layer.synapses[0].bits for layer in result.net.layers] == [4, 8, 3]
    assert [int(_weight(layer).abs().max()) for layer in result.net.layers] == [7, 127, 3]
    assert result.weight_error["fc0"] > 5 * result.weight_error["fc1"] > 0


def test_weight_error_is_the_relative_rounding() -> None:
    model = _model(12, 9, 4, norm=False)
    result = convert(model, input_shape=(12,))
    layer, weight = result.net.layers[0], model.fc0.weight.detach()
    back = _weight(layer).double() * 255 / layer.threshold[:, None]
    assert result.weight_error["fc0"] == pytest.approx(float((back - weight).norm() / weight.norm()))


def test_a_read_out_of_large_weights_is_not_clipped() -> None:
    model = _model(12, 9, 4, norm=False)
    model.fc1.weight.data *= 1000
    result = convert(model, input_shape=(12,), bits=4)
    assert result.weight_error["fc1"] < 0.2


def test_a_channel_without_weights_costs_no_width() -> None:
    model = _model(12, 9, 4)
    model.bn0.weight.data[3] = 0
    net = convert(model, input_shape=(12,)).net
    threshold = net.layers[0].threshold
    assert threshold is not None
    assert not _weight(net.layers[0])[3].any()
    assert int(threshold[3]) == int(threshold.min())
    assert float(net.layers[0].bias[3] / threshold[3]) == pytest.approx(model.bn0.bias[3].item(), abs=1 / int(threshold[3]))
    assert int(threshold.max()) < MAX_THRESHOLD


def test_schedule_name_and_meta_pass_through() -> None:
    net = convert(_model(4, 3, 2), input_shape=(4,), name="mine", margin=2, sleep=5, meta={"seed": 1}).net
    assert (net.name, net.margin, net.sleep, net.meta) == ("mine", 2, 5, {"seed": 1})
    default = convert(_model(4, 3, 2), input_shape=(4,)).net
    assert (default.margin, default.sleep) == (8, None)


def test_the_model_is_left_as_it_was() -> None:
    model = _model(12, 9, 4, activation=nn.ReLU).train()
    model.bn0.eval()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    convert(model, input_shape=(12,), levels=8, calibration=_pixels(20, 12) / 255)
    assert [module.training for module in model] == [True, True, False, True, True]
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_agreement_counts_equal_classes() -> None:
    model, pixels = _model(12, 20, 4), _pixels(300, 3, 4)
    result = convert(model, input_shape=(3, 4), calibration=pixels / 255, bits=4)
    with torch.no_grad():
        wanted = model(pixels.double() / 255).argmax(1)
    share = float((quantised_ann(result.net, pixels).classes == wanted).double().mean())
    assert 0.5 < share < 1
    assert result.agreement == pytest.approx(share)


def test_a_model_without_flatten_takes_flat_images() -> None:
    model = _model(12, 9, 4)
    same = nn.Sequential(OrderedDict(list(model.named_children())[1:]))
    images = _pixels(20, 3, 4) / 255
    agreements = [convert(module, input_shape=(3, 4), calibration=images).agreement for module in (same, model)]
    assert agreements[0] == agreements[1] > 0.5


# --- rounding ---------------------------------------------------------------------------------------------------------


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def _plain(weight: Tensor, bits: int, unit: int, readout: bool) -> Tensor:
    """`round_layer`'s thresholds of one layer of weights, (outputs,), in the plainest way."""
    top = (1 << (bits - 1)) - 1
    peak = weight.abs().amax(1)
    if readout:
        peak = peak.max().expand_as(peak)
    stretch = torch.ones(1) if bits >= 6 else torch.linspace(0.8, 4.0, 129, dtype=torch.float64)
    one = (stretch[:, None] * unit * top / peak).clamp(max=MAX_THRESHOLD)
    if not readout:
        one = one.clamp(min=1).round()
    error = torch.stack(
        [((weight * (o / unit)[:, None]).round().clamp(-top, top) * unit / o[:, None] - weight).square().sum(1) for o in one]
    )
    if readout:
        error = error.sum(1, keepdim=True).expand_as(error)
    return one.gather(0, error.argmin(0, keepdim=True))[0]


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("unit", [1, 9, 255])
def test_one_dense_layer_is_rounded_as_written_down(bits: int, readout: bool, unit: int) -> None:
    weight = _random(50, 30, 5, 5, seed=bits)  # more than a block
    done = round_layer("layer", [weight], _random(50), [bits], [unit], readout=readout)
    one = _plain(weight.flatten(1), bits, unit, readout)
    assert torch.equal(done.one, one)
    assert (done.threshold is None, done.scale is None) == (readout, not readout)
    assert torch.equal(done.bias, (_random(50) * one).round().to(torch.int64))
    top = (1 << (bits - 1)) - 1
    assert torch.equal(done.weights[0], (weight * (one / unit).reshape(-1, 1, 1, 1)).round().clamp(-top, top).to(torch.int64))


@pytest.mark.parametrize("readout", [False, True])
@pytest.mark.parametrize("steps", [0, 4])
def test_the_search_finds_the_threshold_of_least_error_the_first_of_equals(steps: int, readout: bool) -> None:
    flat = [_random(40, 300), _random(40, 9, seed=1) / 3, _random(40, 700, seed=2) / 50]
    if steps:  # weights in few steps, so that thresholds tie
        flat = [(weight * steps).round() / steps for weight in flat]
    one = torch.linspace(2, 40, 65, dtype=torch.float64)[:, None].expand(65, 40)
    one = one if readout else (one * torch.linspace(0.5, 1, 40)).round().clamp(min=1)
    tops, units = [7, 127, 1], [1, 4, 9]
    error = _rounding_errors(flat, one, tops, units)
    if readout:
        error = error.sum(1, keepdim=True).expand_as(error)
    assert torch.equal(_best(flat, one, tops, units, readout), one.gather(0, error.argmin(0, keepdim=True)))
    assert len(error.argmin(0).unique()) > (0 if readout else 5)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("readout", [False, True])
def test_few_bits_beat_scaling_to_the_peak(bits: int, readout: bool) -> None:
    weight, top = _random(8, 200, seed=bits), (1 << (bits - 1)) - 1
    done = round_layer("layer", [weight], torch.zeros(8, dtype=torch.float64), [bits], [255], readout=readout)
    peak = weight.abs().amax(1, keepdim=True) if not readout else weight.abs().max()
    plain = (weight / peak * top).round() * peak / top
    assert int(done.weights[0].abs().max()) == top
    assert ((done.weights[0] * 255 / done.one[:, None] - weight).norm() < 0.9 * (plain - weight).norm()).item()


def test_rounding_rounded_weights_changes_nothing() -> None:
    for bits in (3, 4, 8):
        first = round_layer("layer", [_random(8, 60)], _random(8), [bits], [1])
        again = round_layer("layer", [first.weights[0] / first.one[:, None]], first.bias / first.one, [bits], [1])
        assert torch.equal(again.weights[0], first.weights[0])
        assert torch.equal(again.bias, first.bias)


def test_synapses_of_one_layer_share_the_thresholds_that_all_their_bits_allow() -> None:
    weights = [_random(6, 40) / 100, _random(6, 3, 3, 3, seed=1) / 500, _random(6, 10, seed=2) / 30]
    done = round_layer("layer", weights, torch.zeros(6, dtype=torch.float64), [8, 8, 6], [1, 4, 1])
    limits = torch.stack([127 / weights[0].abs().amax(1), 4 * 127 / weights[1].flatten(1).abs().amax(1), 31 / weights[2].abs().amax(1)])
    assert torch.equal(done.one, limits.amin(0).round())
    for integers, weight, unit in zip(done.weights, weights, (1, 4, 1), strict=True):
        spread = done.one.reshape(-1, *[1] * (weight.ndim - 1))
        assert ((integers * unit / spread - weight).abs() <= 0.5001 * unit / spread).all()


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("readout", [False, True])
def test_a_shortcut_is_exact_and_costs_its_neighbour_little(bits: int, readout: bool) -> None:
    weight, identity = _random(6, 40) / 200, torch.ones(6, 1, 1, 1, dtype=torch.float64)
    done = round_layer("layer", [weight, identity], torch.zeros(6, dtype=torch.float64), [bits, None], [1, 9], readout=readout)
    assert torch.equal(done.weights[1].flatten() * 9, done.one.to(torch.int64))
    alone = round_layer("layer", [weight], torch.zeros(6, dtype=torch.float64), [bits], [1], readout=readout)
    assert (done.one / alone.one - 1).abs().max() < (0.2 if bits == 4 else 0.05)


def test_a_shortcut_that_is_no_whole_number_needs_no_multiple() -> None:
    weight, identity = _random(6, 40) / 20, torch.full((6, 1, 1, 1), 0.3, dtype=torch.float64)
    done = round_layer("layer", [weight, identity], torch.zeros(6, dtype=torch.float64), [8, None], [1, 9])
    assert torch.equal(done.one, round_layer("layer", [weight], torch.zeros(6, dtype=torch.float64), [8], [1]).one)
    assert torch.equal(done.weights[1].flatten(), (0.3 * done.one / 9).round().to(torch.int64))


def test_shortcuts_alone_take_the_least_threshold_that_is_exact() -> None:
    ones, zero = torch.ones(2, 1, 1, 1, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    assert round_layer("layer", [ones, ones], zero, [None, None], [1, 1]).one.tolist() == [1, 1]
    assert round_layer("layer", [ones, 2 * ones], zero, [None, None], [4, 6]).one.tolist() == [12, 12]
    fine = round_layer("layer", [ones, ones], zero + 0.123, [None, None], [4, 6])
    assert (fine.one >= 4096 * 6).all()
    assert (fine.one % 12 == 0).all()


def test_a_shortcut_beyond_the_bits_is_refused() -> None:
    with pytest.raises(CascError, match=r"layer: its shortcut needs a threshold that is a multiple of 64 .* but 4-bit .*; use more bits"):
        round_layer("layer", [_random(6, 40), torch.ones(6, 1, 1, 1)], torch.zeros(6), [4, None], [1, 64])
    with pytest.raises(CascError, match=r"layer: 4-bit weights leave a threshold .* size 64 is rounded to nothing; use more bits"):
        round_layer("layer", [_random(6, 40), torch.full((6, 1, 1, 1), 0.9)], torch.zeros(6), [4, None], [1, 64])


# --- every operation, with weights and activations that integers hold exactly ------------------------------------------


class Net(nn.Module):
    """Modules and a forward that uses them."""

    def __init__(self, forward: Callable[[Any, Any], Any], **modules: nn.Module):
        super().__init__()
        self.way = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Any) -> Any:
        return self.way(self, x)


def act(levels: int = 8) -> ClipQuan:
    return ClipQuan(levels)


def conv(inputs: int, outputs: int, kernel: Any = 3, step: int = 1, **options: Any) -> nn.Conv2d:
    return _exact(nn.Conv2d(inputs, outputs, kernel, **options), step)


def fc(inputs: int, outputs: int, step: int = 1) -> nn.Linear:
    return _exact(nn.Linear(inputs, outputs), step)


def _exact(module: Any, step: int = 1) -> Any:
    """Weights of ``step``/128, the first of each output 127/128, so that a threshold is 128 units; the sums stay near 0..1."""
    weight = module.weight
    chance = torch.Generator().manual_seed(weight.numel())
    reach = max(round(100 / step / (weight[0].numel() ** 0.5)), 1)
    weight.data = torch.randint(-reach, reach + 1, weight.shape, generator=chance).double() * step / 128
    weight.data.view(len(weight), -1)[:, 0] = 127 / 128
    module.bias.data = torch.randint(-8, 9, module.bias.shape, generator=chance).double() / 32
    return module


def bn(features: int, kind: type[Any] = nn.BatchNorm2d, gains: tuple[float, ...] = (0.5, 1.0, 2.0), shift: bool = True) -> Any:
    """Gains by turns; means and biases in steps of 1/16."""
    module = kind(features, eps=2**-4).double()
    chance = torch.Generator().manual_seed(features)
    module.running_var = torch.tensor([gains[index % len(gains)] ** -2.0 for index in range(features)]).double() - 2**-4
    if shift:
        module.running_mean = torch.randint(-2, 3, (features,), generator=chance).double() / 16
        module.bias.data = torch.randint(-2, 3, (features,), generator=chance).double() / 16
    return module


def seq(*modules: nn.Module, **named: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict([*((str(index), module) for index, module in enumerate(modules)), *named.items()]))


class Block(nn.Module):
    """Two convolutions, and the input or its projection added."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1, self.bn1, self.act1 = conv(inputs, outputs, stride=stride, padding=1), bn(outputs, gains=(1.0, 0.5)), act()
        self.conv2, self.bn2, self.act2 = conv(outputs, outputs, padding=1), bn(outputs, gains=(1.0,)), act()
        self.down = None
        if stride != 1 or inputs != outputs:
            self.down = seq(conv(inputs, outputs, 1, stride=stride), bn(outputs, gains=(1.0,)))

    def forward(self, x: Any) -> Any:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        out += x if self.down is None else self.down(x)
        return self.act2(out)


def _mnist(m: Any, x: Any) -> Any:
    """As in the examples of PyTorch: the pool comes before the activation."""
    x = m.act(F.max_pool2d(m.conv1(x), 2))
    x = m.act(F.max_pool2d(m.drop(m.conv2(x)), 2))
    x = x.view(-1, 12)
    x = m.act(m.fc1(x))
    x = F.dropout(x, training=m.training)
    return m.fc2(x)


def _dense(m: Any, x: Any) -> Any:
    x = m.act(m.stem(x))
    for layer in (m.one, m.two):
        x = torch.cat([x, m.act(layer(x))], 1)
    return m.fc(m.act(m.last(x)).mean((2, 3)))


def _elman(m: Any, x: Any) -> Any:
    """A recurrent network, unrolled."""
    e = m.act(m.embed(x))
    h = m.act(m.wx(e[:, :, 0, 0]))
    for t in range(1, 5):
        h = m.act(m.wx(e[:, :, t, 0]) + m.wh(h))
    return m.out(h)


def _shuffled(m: Any, x: Any) -> Any:
    """As in ShuffleNet: half of the channels go by, and the halves are shuffled."""
    a, b = m.act(m.a(x)).chunk(2, 1)
    y = torch.cat([F.max_pool2d(a, 2, 1), m.act(m.b(F.max_pool2d(b, 2, 1)))], 1)
    y = y.view(y.size(0), 2, 2, y.size(2), y.size(3)).transpose(1, 2).reshape(y.shape[0], -1, y.size(2), y.size(3))
    return m.tail(m.act(m.c(y)))


def _tail(channels: int, height: int, width: int) -> nn.Sequential:
    return seq(nn.Flatten(), fc(channels * height * width, 5))


def _net(forward: Callable[[Any, Any], Any], **modules: nn.Module) -> Callable[[], nn.Module]:
    return lambda: Net(forward, **modules)


# By name: a model, the shape of its images, and its nodes: layers with their synapses' sources, pools with their source.
MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "plain": (
        lambda: seq(conv(2, 6), bn(6), act(), conv(6, 4), bn(4), act(), nn.Flatten(), fc(16, 3)),
        (2, 6, 6),
        "0(image) 3(0) 7(3)",
    ),
    "strides and kernels of two sizes": (
        lambda: seq(conv(2, 6, (3, 5), stride=(2, 1), padding=(1, 2)), act(), conv(6, 4, (2, 1), stride=(1, 2)), act(), _tail(4, 2, 4)),
        (2, 5, 7),
        "0(image) 2(0) 4.1(2)",
    ),
    "same and valid": (
        lambda: seq(conv(1, 4, (3, 5), padding="same"), act(), conv(4, 4, 3, padding="valid"), act(), _tail(4, 4, 3)),
        (6, 5),
        "0(image) 2(0) 4.1(2)",
    ),
    "groups": (
        lambda: seq(conv(4, 6, groups=2, padding=1), act(), conv(6, 9, groups=3), act(), _tail(9, 3, 3)),
        (4, 5, 5),
        "0(image) 2(0) 4.1(2)",
    ),
    "depthwise": (
        lambda: seq(conv(3, 6, groups=3), act(), conv(6, 6, groups=6), bn(6), act(), conv(6, 4, 1), act(), _tail(4, 2, 2)),
        (3, 6, 6),
        "0(image) 2(0) 5(2) 7.1(5)",
    ),
    "depthwise of 1x1": (
        lambda: seq(conv(3, 4, 1), act(), conv(4, 4, 1, groups=4), act(), _tail(4, 2, 2)),
        (3, 2, 2),
        "0(image) 2(0) 4.1(2)",
    ),
    "max pools": (
        lambda: seq(conv(2, 5), act(), nn.MaxPool2d(3, 2, 1), nn.MaxPool2d(2, (1, 2)), conv(5, 4, (2, 1)), act(), _tail(4, 1, 1)),
        (2, 8, 8),
        "0(image) 2=max(0) 3=max(2) 4(3) 6.1(4)",
    ),
    "average pools": (
        lambda: seq(conv(2, 5), act(), nn.AvgPool2d(2, 1), nn.AvgPool2d((1, 2), padding=(0, 1)), conv(5, 4, 2), act(), _tail(4, 4, 2)),
        (2, 8, 8),
        "0(image) 2=average(0) 3=average(2) 4(3) 6.1(4)",
    ),
    "an average of a maximum": (
        lambda: seq(conv(2, 5), act(), nn.MaxPool2d(2), nn.AvgPool2d(2), _tail(5, 1, 1)),
        (2, 6, 6),
        "0(image) 2=max(0) 3=average(2) 4.1(3)",
    ),
    "global average": (
        lambda: seq(conv(2, 5), act(), nn.AdaptiveAvgPool2d(1), _tail(5, 1, 1)),
        (2, 6, 6),
        "0(image) 2=average(0) 3.1(2)",
    ),
    "adaptive average of a divisor": (
        lambda: seq(conv(2, 5), act(), nn.AdaptiveAvgPool2d((2, None)), nn.AdaptiveAvgPool2d((2, 4)), _tail(5, 2, 4)),
        (2, 6, 6),
        "0(image) 2=average(0) 4.1(2)",
    ),
    "means": (
        _net(lambda m, x: m.b(m.act(m.a(x)).mean([-1, -2], keepdim=True).flatten(1)), a=conv(2, 5), act=act(), b=fc(5, 3)),
        (2, 6, 4),
        "a(image) mean=average(a) b(mean)",
    ),
    "functional pools": (
        _net(
            lambda m, x: m.b(F.adaptive_avg_pool2d(F.avg_pool2d(F.max_pool2d(m.act(m.a(x)), 2), (1, 2), stride=1), 1).flatten(1)),
            a=conv(2, 5),
            act=act(),
            b=fc(5, 3),
        ),
        (2, 6, 8),
        "a(image) max_pool2d=max(a) avg_pool2d=average(max_pool2d) adaptive_avg_pool2d=average(avg_pool2d) b(adaptive_avg_pool2d)",
    ),
    "max pool before the activation": (
        _net(_mnist, conv1=conv(1, 4), act=act(), drop=nn.Dropout2d(), conv2=conv(4, 12, 2), fc1=fc(12, 6), fc2=fc(6, 3)),
        (8, 8),
        "conv1(image) max_pool2d=max(conv1) conv2(max_pool2d) max_pool2d_1=max(conv2) fc1(max_pool2d_1) fc2(fc1)",
    ),
    "average of a pointwise convolution": (
        lambda: seq(conv(2, 5), act(), bn(5, gains=(1.0,), shift=False), conv(5, 4, 1), nn.AvgPool2d(2), bn(4), act(), _tail(4, 2, 2)),
        (2, 6, 6),
        "0(image) 4=average(0) 3(4) 7.1(3)",
    ),
    "residual": (
        lambda: seq(conv(2, 4), act(), Block(4, 4), Block(4, 6, 2), _tail(6, 2, 2)),
        (2, 6, 6),
        "0(image) 2.conv1(0) 2.conv2(2.conv1,0) 3.conv1(2.conv2) 3.conv2(3.conv1,2.conv2) 4.1(3.conv2)",
    ),
    "projection first": (
        _net(
            lambda m, x: m.d(m.act(m.b(y := m.act(m.a(x))) + m.c2(m.act(m.c1(y))))),
            a=fc(6, 4),
            act=act(),
            b=fc(4, 4),
            c1=fc(4, 5),
            c2=fc(5, 4),
            d=fc(4, 3),
        ),
        (6,),
        "a(image) c1(a) c2(a,c1) d(c2)",
    ),
    "residual behind an average": (
        _net(
            lambda m, x: m.tail(m.act(m.b(y := m.act(m.a(x))) + m.pool(y))),
            a=conv(2, 4, padding=1),
            act=act(),
            b=conv(4, 4, stride=2, padding=1),
            pool=nn.AvgPool2d(2),
            tail=_tail(4, 3, 3),
        ),
        (2, 6, 6),
        "a(image) pool=average(a) b(a,pool) tail.1(b)",
    ),
    "residual of fully connected layers": (
        _net(lambda m, x: m.c(m.act(m.b(y := m.act(m.a(x))) + y)), a=fc(6, 4), act=act(), b=fc(4, 4), c=fc(4, 3)),
        (6,),
        "a(image) b(a,a) c(b)",
    ),
    "sums of activations": (
        _net(
            lambda m, x: m.tail(m.act(m.c(sum([y := m.act(m.a(x)), m.act(m.b(y))])) + y + y)),
            a=conv(2, 4, padding=1),
            act=act(),
            b=conv(4, 4, padding=1),
            c=conv(4, 4, padding=1),
            tail=_tail(4, 4, 4),
        ),
        (2, 4, 4),
        "a(image) b(a) c(a,b,a) tail.1(c)",
    ),
    "an activation of a sum of activations": (
        _net(
            lambda m, x: m.tail(m.last((y := m.act(m.a(x))) + m.act(m.b(y)))),
            a=conv(2, 4, padding=1),
            act=act(),
            b=conv(4, 4, padding=1),
            last=act(),
            tail=_tail(4, 4, 4),
        ),
        (2, 4, 4),
        "a(image) b(a) last(a,b) tail.1(last)",
    ),
    "dense blocks": (
        _net(
            _dense,
            stem=conv(2, 4, padding=1),
            act=act(),
            one=conv(4, 3, padding=1),
            two=conv(7, 2, padding=1),
            last=conv(9, 6),
            fc=fc(6, 3),
        ),
        (2, 6, 6),
        "stem(image) one(stem) two(stem,one) last(stem,one,two) mean=average(last) fc(mean)",
    ),
    "concatenations of sums, pools and depthwise": (
        _net(
            lambda m, x: m.tail(m.act(m.dw(m.pool(m.act(m.bn(torch.cat((m.b(y := m.act(m.a(x))), m.c(y)), dim=-3))))))),
            a=conv(2, 4),
            act=act(),
            b=conv(4, 3, padding=1),
            c=conv(4, 2, 1),
            bn=bn(5),
            pool=nn.MaxPool2d(2),
            dw=conv(5, 5, 2, groups=5),
            tail=_tail(5, 1, 1),
        ),
        (2, 6, 6),
        "a(image) b(a) c(a) pool=max(b) pool.2=max(c) dw(pool) dw.2(pool.2) tail.1(dw,dw.2)",
    ),
    "concatenation of flat tensors": (
        _net(
            lambda m, x: m.c(
                torch.cat([F.avg_pool2d(y := m.act(m.a(x)), 2).flatten(1), y.reshape(y.shape[0], -1), m.act(m.b(y.flatten(1)))], 1)
            ),
            a=conv(2, 3),
            act=act(),
            b=fc(48, 4),
            c=fc(64, 3, step=4),
        ),
        (2, 6, 6),
        "a(image) avg_pool2d=average(a) b(a) c(avg_pool2d,a,b)",
    ),
    "detection head": (lambda: seq(conv(2, 4), act(), conv(4, 7, 1)), (2, 5, 4), "0(image) 2(0)"),
    "a normalised activation": (
        lambda: seq(conv(2, 4), act(), bn(4), conv(4, 3), bn(3), act(), _tail(3, 1, 1)),
        (2, 5, 5),
        "0(image) 3(0) 6.1(3)",
    ),
    "activation, norm, activation": (
        lambda: seq(conv(2, 4), act(), bn(4), act(), _tail(4, 3, 3)),
        (2, 5, 5),
        "0(image) 3(0) 4.1(3)",
    ),
    "one module, used twice": (
        _net(lambda m, x: m.c(m.act(m.b(m.act(m.b(m.act(m.a(x))))))), a=fc(6, 4), act=act(), b=fc(4, 4), c=fc(4, 3)),
        (6,),
        "a(image) b(a) b.2(b) c(b.2)",
    ),
    "a sum used twice": (
        _net(
            lambda m, x: m.d(m.act((u := m.b(m.act(m.a(x)))) + m.c(m.act(u)))),
            a=fc(6, 4),
            act=act(),
            b=fc(4, 4),
            c=fc(4, 4),
            d=fc(4, 3),
        ),
        (6,),
        "a(image) b(a) c(a,b) d(c)",
    ),
    "ways to flatten": (
        _net(
            lambda m, x: m.b(m.act(m.a(m.act(m.c(x.view(x.size(0), 1, 4, 4))).contiguous().view(-1, 4 * x.size(2))))),
            a=fc(16, 4),
            act=act(),
            b=fc(4, 3),
            c=conv(1, 4, padding=0),
        ),
        (4, 4),
        "c(image) a(c) b(a)",
    ),
    "an image that spikes": (lambda: seq(act(), conv(2, 4), act(), _tail(4, 2, 2)), (2, 4, 4), "0(image) 1(0) 3.1(1)"),
    "numbers added": (_net(lambda m, x: m.b(m.act(m.a(x) + 0.25)), a=fc(6, 4), act=act(), b=fc(4, 3)), (6,), "a(image) b(a)"),
    "a recurrent network": (
        _net(_elman, embed=conv(1, 4, (1, 6)), act=act(), wx=fc(4, 5), wh=fc(5, 5), out=fc(5, 3)),
        (5, 6),
        "embed(image) wx(embed) wh(embed,wx) wh.2(embed,wh) wh.3(embed,wh.2) wh.4(embed,wh.3) out(wh.4)",
    ),
    "selections": (
        _net(
            lambda m, x: m.c(
                m.act(m.b((y := m.act(m.a(x))).select(2, 1).select(2, 0)))
                + torch.select(y, 2, 2)[..., 1]
                + y.unbind(2)[0].unbind(-1)[3]
                + y.narrow(3, 2, 1)[:, :, 3].squeeze(-1)
            ),
            a=conv(2, 4),
            act=act(),
            b=fc(4, 4),
            c=fc(4, 3),
        ),
        (2, 6, 6),
        "a(image) b(a) c(b,a)",
    ),
    "parts of the channels": (
        _net(
            lambda m, x: m.tail(
                m.act(
                    m.b(m.pool((y := m.act(m.a(x))).split([4, 2], 1)[0]))
                    + m.c(m.pool(y[:, 1:])[:, 1::2])
                    + m.d(m.pool(y[:, :3]))
                    + m.pool(m.e(y[:, [5, 0]]))
                )
            ),
            a=conv(2, 6),
            act=act(),
            pool=nn.AvgPool2d(2),
            b=conv(4, 4, padding=1, groups=2),
            c=conv(2, 4, 1),
            d=conv(3, 4, padding=1),
            e=conv(2, 4, 1),
            tail=_tail(4, 2, 2),
        ),
        (2, 6, 6),
        "a(image) pool=average(a) pool.2=average(a) pool.3=average(a) pool.4=average(a) e(pool,pool.2,pool.3,pool.4) tail.1(e)",
    ),
    "convolutions of parts of the map": (
        _net(
            lambda m, x: m.tail(m.act(m.b((y := m.act(m.a(x)))[:, 1:4, 2:7]) + m.c(y[..., 1::2, :8]) + m.d(y[:, :, 3:, 1:]))),
            a=conv(2, 4),
            act=act(),
            b=conv(3, 4, (3, 3), stride=(1, 2)),
            c=conv(4, 4, (2, 6)),
            d=conv(4, 4, 3, stride=(1, 2)),
            tail=_tail(4, 3, 3),
        ),
        (2, 10, 10),
        "a(image) d(a,a,a) tail.1(d)",
    ),
    "other orders": (
        _net(
            lambda m, x: m.d(
                torch.cat(
                    [
                        m.act(m.b((y := m.act(m.a(x))).permute(0, 2, 3, 1).flatten(1))),
                        m.act(m.b(torch.cat([y, y[:, :1]], 1)[:, 1:].transpose(2, 3).swapaxes(1, 2).reshape(-1, 48))),
                        torch.movedim(y, 1, 3).reshape(x.size(0), -1)[:, 5:9],
                    ],
                    1,
                )
            ),
            a=conv(2, 3),
            act=act(),
            b=fc(48, 4),
            d=fc(12, 3),
        ),
        (2, 6, 6),
        "a(image) b(a) b.2(a) d(b,b.2,a)",
    ),
    "shuffled channels": (
        _net(_shuffled, a=conv(2, 4), act=act(), b=conv(2, 2, padding=1), c=conv(4, 4, 3), tail=_tail(4, 1, 1)),
        (2, 6, 6),
        "a(image) max_pool2d=max(a) max_pool2d_1=max(a) b(max_pool2d_1) c(max_pool2d,b) tail.1(c)",
    ),
    "a part of the image": (
        lambda: Net(lambda m, x: m.b(m.act(m.a(x[:, 1:, 1:4].flatten(1)))), a=fc(30, 4), act=act(), b=fc(4, 3)),
        (3, 6, 5),
        "a(image) b(a)",
    ),
    "a dead branch": (
        _net(lambda m, x: (m.lost(m.act(m.a(x))), m.b(m.act(m.a(x))))[1], a=fc(6, 4), act=act(), b=fc(4, 3), lost=nn.Softmax(1)),
        (6,),
        "a(image) b(a)",
    ),
}


def _written(net: IntegerNet) -> str:
    return " ".join(
        f"{node.name}={node.kind}({node.source})"
        if isinstance(node, Pool)
        else f"{node.name}({','.join(synapses.source for synapses in node.synapses)})"
        for node in net.nodes
    )


def _activations(model: nn.Module, x: Tensor) -> tuple[list[Tensor], Tensor]:
    """What every call of an activation emits, in order, and what the model does."""
    found: list[Tensor] = []
    hooks = [
        module.register_forward_hook(lambda module, given, emitted: found.append(emitted.detach().clone()))
        for module in model.modules()
        if isinstance(module, ClipQuan)
    ]
    with torch.no_grad():
        answer = model(x)
    for hook in hooks:
        hook.remove()
    return found, answer


@pytest.mark.parametrize("scale", [None, 0.5])
@pytest.mark.parametrize("case", MODELS)
def test_counts_and_sums_are_those_of_the_float_model(case: str, scale: float | None) -> None:
    make, shape, written = MODELS[case]
    model, pixels = copy.deepcopy(make()).eval(), _pixels(20, *shape, high=16)
    for clip in [module for module in model.modules() if isinstance(module, ClipQuan)] if scale else []:
        clip.log_scale = nn.Parameter(torch.tensor(scale, dtype=torch.float64).log())
    result = convert(model, input_shape=shape, input_max=16)
    assert _written(result.net) == written
    assert set(result.weight_error.values()) == {0.0}
    assert list(result.scales) == [layer.name for layer in result.net.spiking]
    x = pixels.double() / 16
    emitted, wanted = _activations(model, x[:, None] if len(shape) == 2 else x)
    answer = quantised_ann(result.net, pixels)
    assert torch.equal(answer.sums.double(), 8 * (result.net.readout.scale or 0) * wanted.flatten(1))
    assert torch.equal(answer.classes, wanted.movedim(1, -1).flatten(1).argmax(1))
    if "max_pool2d" not in written.split("(image)")[1][:12] and case != "a dead branch":  # a pool may move behind its activation
        numbers = torch.cat([tensor.flatten(1) for tensor in emitted], 1) / (scale or 1)
        assert torch.equal(torch.cat(answer.counts, 1).double(), 8 * numbers)
    assert min(int(counts.max()) for counts in answer.counts) > 0, "says nothing: a layer is silent"


@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_around_a_slice_disturb_no_rounding(bits: int) -> None:
    torch.manual_seed(1)
    model = Net(_elman, embed=nn.Conv2d(1, 4, (1, 6)), act=act(), wx=nn.Linear(4, 5), wh=nn.Linear(5, 5), out=nn.Linear(5, 3)).double()
    net = convert(model, input_shape=(5, 6), bits=bits).net
    alone = round_layer("wx", [model.wx.weight.detach()], model.wx.bias.detach(), [bits], [1])
    both = [model.wx.weight.detach(), model.wh.weight.detach()]
    used = round_layer("wh", both, (model.wx.bias + model.wh.bias).detach(), [bits, bits], [1, 1])
    for t, layer in enumerate(net.spiking[1:]):
        done = used if t else alone
        full = torch.zeros(5, 4, 5, dtype=torch.int64)
        full[:, :, t] = done.weights[0]
        assert torch.equal(layer.synapses[0].weight, full.flatten(1))
        assert all(map(torch.equal, [of.weight for of in layer.synapses[1:]], done.weights[1:]))
        assert torch.equal(layer.bias, done.bias)
        assert layer.threshold is not None
        assert done.threshold is not None
        assert torch.equal(layer.threshold, done.threshold)


def test_a_recurrent_network_that_slept_answers_as_its_ann() -> None:
    net, pixels = convert(MODELS["a recurrent network"][0](), input_shape=(5, 6), input_max=16).net, _pixels(30, 5, 6, high=16)
    wanted, trace = quantised_ann(net, pixels), simulate(net, pixels, record=False)
    assert trace.settled.all()
    assert torch.equal(trace.answer.sums, wanted.sums)
    assert all(map(torch.equal, trace.answer.counts, wanted.counts))
    assert len(wanted.sums.unique(dim=0)) > 10


@pytest.mark.parametrize("bits", [4, 8])
def test_classes_agree_with_a_float_model_of_any_weights(bits: int) -> None:
    torch.manual_seed(3)
    model = seq(conv(2, 4), act(), Block(4, 4), Block(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc(6, 3))
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data = torch.randn_like(module.weight) / module.weight[0].numel() ** 0.5
    result = convert(model, input_shape=(2, 8, 8), bits=bits, calibration=_pixels(200, 2, 8, 8) / 255)
    assert 0 < max(result.weight_error.values()) < (0.25 if bits == 4 else 0.02)
    assert result.agreement is not None
    assert result.agreement > (0.6 if bits == 4 else 0.95)
    identity = result.net.layers[2].synapses[1]
    assert (identity.source, identity.groups) == ("0", 4)
    assert torch.equal(identity.weight.flatten(), result.net.layers[2].threshold)


def test_agreement_of_a_detection_head_is_of_the_place_and_channel() -> None:
    make, shape, _ = MODELS["detection head"]
    assert convert(make(), input_shape=shape, input_max=16, calibration=_pixels(99, *shape, high=16) / 16).agreement == 1.0


@pytest.mark.parametrize("flat", [False, True])
def test_mean_and_std_fold_into_a_convolution_or_norm(flat: bool) -> None:
    first = [nn.Flatten(), bn(50, nn.BatchNorm1d), fc(50, 4)] if flat else [bn(2), conv(2, 4, groups=2), nn.Flatten(), fc(36, 4)]
    model = seq(*first, act(), fc(4, 3)).eval()
    mean, std = torch.tensor([0.5, 0.25]).double().reshape(2, 1, 1), torch.tensor([0.5, 2.0]).double().reshape(2, 1, 1)
    if not flat:
        with pytest.raises(CascError, match="3: follows 1 with no activation between"):
            convert(model, input_shape=(2, 5, 5), mean=[0.5, 0.25], std=[0.5, 2.0])
        model = seq(*first[:2], act(), *first[2:])
    net = convert(model, input_shape=(2, 5, 5), input_max=16, mean=[0.5, 0.25], std=[0.5, 2.0]).net
    pixels = _pixels(50, 2, 5, 5, high=16)
    emitted, _ = _activations(model, (pixels / 16 - mean) / std)
    counts = quantised_ann(net, pixels).counts[0].double()
    assert ((counts - 8 * emitted[0].flatten(1)).abs() <= 1).all()
    assert (counts == 8 * emitted[0].flatten(1)).double().mean() > 0.95
    assert 0 < float(counts.mean()) < 8


def test_std_alone_goes_with_zero_padding() -> None:
    model, pixels = seq(conv(2, 4, padding=1), act(), _tail(4, 4, 4)), _pixels(50, 2, 4, 4, high=16)
    net = convert(model, input_shape=(2, 4, 4), input_max=16, std=[0.5, 2.0]).net
    emitted, _ = _activations(model, pixels / 16 / torch.tensor([0.5, 2.0]).double().reshape(2, 1, 1))
    assert (quantised_ann(net, pixels).counts[0] == 8 * emitted[0].flatten(1)).double().mean() > 0.98


def test_names_are_short_printable_and_unique() -> None:
    long = "\x85" + "a " * 40
    model = Net(
        lambda m, x: m.c(m.act(m.get_submodule(long)(m.act(m.image(x))))),
        image=fc(4, 4),
        **{long: fc(4, 4)},
        act=act(),
        c=fc(4, 3),
    )
    net = convert(model, input_shape=(4,), bits={long: 4}).net
    assert [layer.name for layer in net.layers] == ["image.2", long[-64:], "c"]
    assert [layer.synapses[0].bits for layer in net.layers] == [8, 4, 8]


def test_bits_of_a_layer_are_those_of_its_modules() -> None:
    model = seq(conv(2, 4), act(), Block(4, 6, 2), _tail(6, 2, 2))
    net = convert(model, input_shape=(2, 6, 6), bits={"2.down.0": 4, "2.conv2": 6}).net
    assert [[synapses.bits for synapses in layer.synapses] for layer in net.layers] == [[8], [8], [6, 4], [8]]


# --- ReLU -------------------------------------------------------------------------------------------------------------


def _relative_error(levels: int, percentile: float = 1.0) -> float:
    """Of the logits, over their spread, of a converted ReLU network of two spiking layers."""
    model, pixels = _model(12, 20, 15, 4, activation=nn.ReLU), _pixels(400, 12)
    net = convert(model, input_shape=(12,), levels=levels, calibration=pixels / 255, percentile=percentile).net
    with torch.no_grad():
        wanted = model(pixels.double() / 255)
    got = quantised_ann(net, pixels).sums / (levels * float(net.readout.scale or 0))
    return float((got - wanted).square().mean().sqrt() / wanted.std())


def test_relu_nears_the_float_model_as_levels_grow() -> None:
    coarse, middle, fine = (_relative_error(levels) for levels in (4, 16, 128))
    assert coarse > 2 * middle > 4 * fine
    assert fine < 0.05


def test_relu_scale_is_the_percentile_of_its_activations() -> None:
    model, images = _model(12, 20, 15, 4, activation=nn.ReLU), _pixels(200, 12) / 255
    result = convert(model, input_shape=(12,), levels=16, calibration=images, percentile=0.9)
    first = model[:3](images.double()).detach().clamp(min=0).flatten().sort().values
    assert result.scales["fc0"] == pytest.approx(float(first[round(0.9 * len(first)) - 1]), rel=1e-9)
    assert result.scales["fc1"] != 1.0
    whole = convert(model, input_shape=(12,), levels=16, calibration=images, percentile=1.0)
    assert whole.scales["fc0"] == pytest.approx(float(first[-1]), rel=1e-9)


def test_relu_clips_what_the_next_relu_is_measured_with() -> None:
    model, images = _model(12, 20, 15, 4, activation=nn.ReLU), _pixels(200, 12) / 255
    result = convert(model, input_shape=(12,), levels=16, calibration=images, percentile=0.5)
    with torch.no_grad():
        second = model[4:6](model[:4](images.double()).clamp(max=result.scales["fc0"])).clamp(min=0).flatten().sort().values
    assert result.scales["fc1"] == pytest.approx(float(second[round(0.5 * len(second)) - 1]), rel=1e-9)


def test_relu_scales_cancel_and_half_a_level_is_added() -> None:
    model, images = _model(12, 20, 4, activation=nn.ReLU, norm=False), _pixels(200, 12) / 255
    result = convert(model, input_shape=(12,), levels=2, calibration=images)
    first, last = result.net.layers
    assert first.threshold is not None
    scale = result.scales["fc0"]
    assert torch.allclose((_weight(first) * 255 / first.threshold[:, None] * scale).double(), model.fc0.weight, atol=0.01)
    assert torch.allclose((first.bias / first.threshold - 0.5 / 2).double(), model.fc0.bias / scale, atol=0.01)
    assert torch.allclose((_weight(last) / last.scale / scale).double(), model.fc1.weight, atol=0.02)


def test_a_dead_relu_is_converted() -> None:
    model = _model(4, 3, 2, activation=nn.ReLU, norm=False)
    model.fc0.weight.data.zero_()
    model.fc0.bias.data.fill_(-1)
    result = convert(model, input_shape=(4,), levels=4, calibration=_pixels(9, 4) / 255)
    assert result.scales == {"fc0": 1.0}
    assert not quantised_ann(result.net, _pixels(9, 4)).counts[0].any()


@pytest.mark.parametrize("kind", [nn.ReLU6, lambda: F.relu6])
def test_relu6_clips_at_six_at_most(kind: Callable[[], Any]) -> None:
    model = Net(lambda m, x: m.b(m.act(m.a(x)) if hasattr(m, "act") else F.relu6(m.a(x))), a=fc(4, 4), b=fc(4, 3))
    if kind is nn.ReLU6:
        model.act = kind()
    images, high = _pixels(99, 4) / 255, {}
    for gain in (1, 100):
        model.a.weight.data *= gain
        high[gain] = convert(model, input_shape=(4,), levels=16, calibration=images).scales["a"]
    assert 0 < high[1] < 6 == high[100]


RELU_MODELS = {
    "residuals": lambda: seq(
        conv(2, 4), nn.ReLU(inplace=True), Block(4, 4), Block(4, 6, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), fc(6, 3)
    ),
    "dense": lambda: Net(
        _dense, stem=conv(2, 4), act=nn.ReLU(), one=conv(4, 3, padding=1), two=conv(7, 2, padding=1), last=conv(9, 6), fc=fc(6, 3)
    ),
    "pools": lambda: seq(conv(2, 5), nn.MaxPool2d(2), nn.ReLU(), conv(5, 4, 2), nn.ReLU6(), nn.AvgPool2d(2, 1, 1), bn(4), _tail(4, 3, 3)),
    "functional": lambda: Net(
        lambda m, x: m.tail(F.relu(m.b(torch.relu((y := m.a(x).relu()) + 0.1)) + F.avg_pool2d(y, 3, 1, 1), inplace=True)),
        a=conv(2, 4, padding=1),
        b=conv(4, 4, padding=1),
        tail=_tail(4, 8, 8),
    ),
    "mixed with ClipQuan": lambda: seq(conv(2, 5), nn.ReLU(), conv(5, 4), ClipQuan(128), _tail(4, 4, 4)),
}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("case", RELU_MODELS)
def test_relu_networks_of_every_form_near_the_float_model(case: str, per_channel: bool) -> None:
    model = RELU_MODELS[case]().eval()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, ClipQuan) and "ClipQuan" not in case:
                setattr(module, name, nn.ReLU(inplace=True))
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.weight.data = module.weight.data.roll(1) * 0.6
    pixels = _pixels(200, 2, 8, 8)
    levels = None if "ClipQuan" in case else 128
    options: dict[str, Any] = {"input_shape": (2, 8, 8), "levels": levels, "calibration": pixels / 255, "per_channel": per_channel}
    result = convert(model, **options, percentile=1.0)
    assert len(result.scales) == len(result.net.spiking)
    for layer in result.net.spiking * per_channel:
        scales = result.scales[layer.name]
        assert not isinstance(scales, list) or len(scales) == layer.outputs
    assert max(loss.total for loss in result.losses.values()) < 0.06
    assert not any(loss.clipped for loss in list(result.losses.values())[:1])
    with torch.no_grad():
        wanted = model(pixels.double() / 255)
    got = quantised_ann(result.net, pixels).sums / (128 * float(result.net.readout.scale or 0))
    assert float((got - wanted).square().mean().sqrt() / wanted.std()) < 0.06
    coarse = convert(model, **options, percentile=0.5)
    if not per_channel:  # where some channel may be silent
        assert all(coarse.scales[name] < scale for name, scale in result.scales.items() if scale not in (1.0, 6.0))


@pytest.mark.parametrize("percentile", [0.5, 1.0])
def test_per_channel_scales_are_percentiles_of_channels(percentile: float) -> None:
    model, images = seq(conv(2, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(), fc(45, 4), nn.ReLU(), fc(4, 3)), _pixels(60, 2, 8, 8) / 255
    options: dict[str, Any] = {"input_shape": (2, 8, 8), "levels": 128, "calibration": images, "percentile": percentile}
    result = convert(model, **options, per_channel=True)
    with torch.no_grad():
        first = model[:3](images.double())
        channels = first.transpose(0, 1).flatten(1).sort(1).values
        scales = channels[:, round(percentile * channels.shape[1]) - 1]
        second = model[3:6](first.clamp(max=scales[:, None, None])).sort(0).values
    assert torch.allclose(torch.tensor(result.scales["0"]).double(), scales)
    assert torch.allclose(torch.tensor(result.scales["4"]).double(), second[round(percentile * 60) - 1])
    assert scales.max() > scales.min() > 0
    whole = convert(model, **options)
    assert whole.scales["0"] == pytest.approx(float(first.flatten().kthvalue(round(percentile * first.numel())).values))
    assert result.losses["0"].total < whole.losses["0"].total


# --- the loss of each layer -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case", ["residual", "max pool before the activation", "concatenations of sums, pools and depthwise", "dense blocks"]
)
def test_nothing_is_lost_where_integers_are_exact(case: str) -> None:
    make, shape, _ = MODELS[case]
    result = convert(make(), input_shape=shape, input_max=16, calibration=_pixels(70, *shape, high=16) / 16)
    assert list(result.losses) == [layer.name for layer in result.net.spiking]
    assert set(result.losses.values()) == {Loss(0.0, 0.0, 0.0)}
    assert convert(make(), input_shape=shape, input_max=16).losses == {}


@pytest.mark.parametrize("per_channel", [False, True])
@pytest.mark.parametrize("percentile", [0.7, 1.0])
def test_losses_are_clipping_and_the_rest(percentile: float, per_channel: bool) -> None:
    model, pixels = _model(12, 20, 15, 4, activation=nn.ReLU), _pixels(130, 12)
    result = convert(model, input_shape=(12,), levels=8, calibration=pixels / 255, percentile=percentile, bits=4, per_channel=per_channel)
    answer, x = quantised_ann(result.net, pixels), pixels.double() / 255
    for name, counts, modules in zip(("fc0", "fc1"), answer.counts, (model[:4], model[4:7]), strict=True):
        x = modules(x).detach()
        scale = torch.tensor(result.scales[name], dtype=torch.float64)
        assert scale.ndim == per_channel
        got, loss = counts / 8 * scale, result.losses[name]
        assert loss.total == pytest.approx(float((got - x).norm() / x.norm()))
        assert loss.clipped == pytest.approx(float((x - scale).clamp(min=0).norm() / x.norm()), abs=1e-6)
        assert loss.rest == pytest.approx(float((got - torch.minimum(x, scale)).norm() / x.norm()))
        assert (loss.clipped > 0) == (percentile < 1)
    model.fc0.weight.data.zero_()
    model.bn0.bias.data.fill_(-9)
    silent = convert(model, input_shape=(12,), levels=8, calibration=pixels / 255).losses["fc0"]
    assert silent == Loss(0.0, 0.0, 0.0)


# --- refusals, each by the name of what is wrong ----------------------------------------------------------------------


def _broken(edit: Callable[[nn.Sequential], Any], *sizes: int) -> nn.Sequential:
    model = _model(*(sizes or (4, 3, 2)))
    edit(model)
    return model


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _poison(field: Tensor, value: float) -> None:
    field.data.view(-1)[1] = value


def _way(forward: Callable[[Any, Any], Any]) -> Callable[[], nn.Module]:
    """A forward of a network with an activation (act), fully connected layers (fc 4 to 4, out 4 to 2) and dropout (drop)."""
    return lambda: Net(
        forward, fc=nn.Linear(4, 4), fd=nn.Linear(4, 4), act=ClipQuan(8), out=nn.Linear(4, 2), drop=nn.Dropout(), same=nn.Identity()
    )


def _conv_way(*modules: nn.Module, **named: nn.Module) -> Callable[[], nn.Module]:
    """A network for images of (2, 6, 6): a convolution to (4, 6, 6), an activation, ``modules`` and a flat read-out of nothing."""
    return lambda: seq(conv(2, 4, padding=1), act(), *modules, **named)


def _pruned() -> nn.Module:
    from torch.nn.utils import prune

    model = _model(4, 3, 2)
    prune.random_unstructured(model.fc0, "weight", 0.5)
    return model


class _OwnConv(nn.Conv2d):
    def _conv_forward(self, input: Any, weight: Any, bias: Any) -> Any:
        return super()._conv_forward(input, weight.round(), bias)


class _Parameter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.fc = nn.Parameter(torch.ones(4)), nn.Linear(4, 2)

    def forward(self, x: Any) -> Any:
        return self.fc(x + self.gain)


def _hidden_alias(m: Any, x: Any) -> Any:
    y = z = m.act(m.fc(x))
    y += m.act(m.fd(z))
    return m.out(m.act(y + z))


class _Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)

    def forward(self, x: Any, y: Any) -> Any:
        return self.fc(x + y)


class _InPlace(nn.Module):
    """A residual block whose sum is of what its activation has changed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu = conv(4, 4, padding=1), nn.ReLU(inplace=True)

    def forward(self, x: Any) -> Any:
        y = self.conv(x)
        return self.relu(y) + y


def _bad(*modules: nn.Module) -> list[tuple[Callable[[], Any], dict[str, Any], str]]:
    return [(_conv_way(bad=module), MAP, f"bad: {type(module).__name__} cannot be converted; ") for module in modules]


FC, OUT = nn.Linear(4, 3), nn.Linear(3, 2)
RELU = lambda: _model(4, 3, 2, activation=nn.ReLU)  # noqa: E731
GOOD = lambda: _model(4, 3, 2)  # noqa: E731
IMAGES = torch.zeros(5, 4)
MAP = {"input_shape": (2, 6, 6)}

ELEMENTWISE: dict[str, Callable[[Any, Any], Any]] = {
    "mul: mul": lambda m, x: (y := m.act(m.fc(x))) * y,
    "matmul: matmul": lambda m, x: torch.matmul(m.act(m.fc(x)), x),
    "sigmoid: sigmoid": lambda m, x: torch.sigmoid(m.fc(x)),
    r"sigmoid: Tensor\.sigmoid": lambda m, x: m.fc(x).sigmoid(),
    "gelu: gelu": lambda m, x: F.gelu(m.fc(x)),
    "neg: neg": lambda m, x: -m.act(m.fc(x)),
    "truediv: truediv": lambda m, x: m.act(m.fc(x)) / 2,
    r"clamp: Tensor\.clamp": lambda m, x: m.fc(x).clamp(0, 1),
    r"repeat: Tensor\.repeat": lambda m, x: m.act(m.fc(x)).repeat(1, 2),
    "linear: linear": lambda m, x: F.linear(m.act(m.fc(x)), x),
    "pad: pad": lambda m, x: F.pad(m.act(m.fc(x)), (1, 1)),
    "interpolate: interpolate": lambda m, x: F.interpolate(x, scale_factor=2),
}
REFUSALS: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    # modules and functions
    (lambda: 3, {}, r"model: is a int, not a torch\.nn\.Module"),
    (lambda: nn.Linear(4, 3), {}, "0: no activation comes before it, so that nothing spikes"),
    (lambda: _named(flat=nn.Flatten()), {}, "the image: the network ends in an activation or pool"),
    (lambda: _named(fc=FC, act=nn.Sigmoid(), out=OUT), {}, "act: Sigmoid cannot be converted; use Conv2d"),
    (lambda: _named(block=_named(fc=FC, soft=nn.Softmax(1))), {}, r"block\.soft: Softmax cannot be converted; leave it to the host"),
    (_way(lambda m, x: torch.sin(m.out(x))), {}, "sin: sin cannot be converted; use"),
    (_way(lambda m, x: m.out(x).log_softmax(1)), {}, r"log_softmax: Tensor\.log_softmax cannot be converted; leave it"),
    (lambda: _named(a=_named(b=Net(lambda m, x: m.fc(x) * 2, fc=FC)), out=OUT), {}, r"mul: mul \(in module a\.b\) cannot be converted"),
    (_way(lambda m, x: m.out(x)[:, 0]), {}, "getitem: takes apart the sums of out, which no activation ended; put ClipQuan"),
    (_way(lambda m, x: m.out(m.act(m.fc(x))[0])), {}, r"getitem: getitem from \(N, 4\) to \(4\) cannot be converted; leave the batch"),
    (_way(lambda m, x: m.out(m.act(m.fc(x))[:, 9])), {}, r"getitem: getitem of a tensor of shape \(N, 4\) fails \(.*; fix it"),
    (_way(lambda m, x: m.out(x.data)), {}, "getattr_1: the attribute 'data' of a tensor"),
    (_Parameter, {}, "gain: is a parameter or buffer that the forward uses itself"),
    (lambda: _named(conv=_OwnConv(2, 4, 3)), MAP, "conv: _OwnConv convolves in a way of its own"),
    (_pruned, {}, "fc0: has a forward pre-hook"),
    (_way(lambda m, x: m.out(x if x.sum() > 0 else -x)), {}, r"model: torch\.fx cannot trace its forward \(symbolically traced variables"),
    (lambda: Net(lambda m, x: m.missing(x)), {}, r"model: torch\.fx cannot trace its forward \('Net' object has no attribute 'missing'\)"),
    (_way(lambda m, x: (m.out(x), x)), {}, "model: returns a tuple, not one tensor"),
    (_way(lambda m, x: m.out(m.act(m.fc(F.dropout(x))))), {}, "dropout: drops out in eval mode too"),
    (_way(lambda m, x: m.out(m.act(m.fc(x))).view(3, -1)), {}, r"view: view of a tensor of shape \(N, 2\) fails \(shape '\[3, -1\]'"),
    (_way(lambda m, x: m.out(m.act(m.fc(x))).view(7, 9)), {}, r"view: view of a tensor of shape \(N, 2\) fails \(shape '\[7, 9\]'"),
    (_way(lambda m, x: m.out(m.act(m.fc(x)).mean(1, keepdim=True))), {}, r"mean: takes \(channels, height, width\), but"),
    (_way(lambda m, x: m.out(torch.add(m.act(m.fc(x)), 1, out=x))), {}, "add: got an unexpected keyword argument 'out'"),
    *_bad(nn.GELU(), nn.SiLU(), nn.LeakyReLU(), nn.PReLU(), nn.Softmax(1), nn.Upsample(scale_factor=2), nn.InstanceNorm2d(4)),
    *_bad(nn.GroupNorm(2, 4), nn.LayerNorm([4, 6, 6]), nn.Conv1d(4, 4, 3), nn.Conv3d(4, 4, 3), nn.MaxPool1d(2), nn.ZeroPad2d(1)),
    *((_way(forward), {}, f"{wanted} cannot be converted; use") for wanted, forward in ELEMENTWISE.items()),
    (
        _net(lambda m, x: m.out(m.lstm(x)[0][:, -1]), lstm=nn.LSTM(4, 4, batch_first=True), out=nn.Linear(4, 2)),
        {"input_shape": (5, 4)},
        "lstm: LSTM cannot be converted; use",
    ),
    (_way(lambda m, x: m.out(m.act(m.fc(x)).permute(1, 0))), {}, r"permute: permute from \(N, 4\) to \(4, N\) cannot be converted; leave"),
    (_way(lambda m, x: F.linear(m.act(m.fc(x)), m.out.weight)), {}, "out_weight: is a parameter or buffer that the forward uses itself"),
    (_way(lambda m, x: {"sums": m.out(m.act(m.fc(x)))}), {}, "model: returns a immutable_dict, not one tensor"),
    (_way(lambda m, x: m.out(m.act(m.fc(x))) if x.shape[1] > 3 else x), {}, r"model: torch\.fx cannot trace its forward"),
    (_Two, {}, r"model: its forward takes 2 inputs \(x, y\); give it one, the image"),
    # slices
    (
        _way(lambda m, x: m.out(m.act(x[:, 1:]))),
        {},
        "act: a slice of image is added to the sum, or activated, without weights; put a Linear",
    ),
    (_way(lambda m, x: m.out(m.act(m.fc(y := m.act(m.fd(x))) + y[:, [1, 0, 3, 2]]))), {}, "act: a slice of fd is added"),
    (_way(lambda m, x: m.out(m.act(m.fc(x))[:, [1, 1, 2, 3]])), {}, "out: takes a number several times; take each once"),
    (_way(lambda m, x: m.out(m.act(m.fc(x).split(2, 1)[1]))), {}, "split: takes apart the sums of fc"),
    (_way(lambda m, x: m.out(m.act(m.fc(x[m.act(x)])))), {}, r"getitem: getitem of a tensor of shape \(N, 4\) fails"),
    (
        _net(lambda m, x: m.b(m.act(m.a(x))[:, :, 1:]), a=conv(2, 4), act=act(), b=conv(4, 4, padding=1)),
        MAP,
        "b: pads with zeros a slice of a,",
    ),
    (_net(lambda m, x: m.b(m.act(m.a(x)).mT), a=conv(2, 4), act=act(), b=conv(4, 4)), MAP, "getattr_1: the attribute 'mT' of a tensor"),
    (
        _net(lambda m, x: m.b(m.act(m.a(x)).transpose(2, 3)), a=conv(2, 4), act=act(), b=conv(4, 4)),
        MAP,
        "b: convolves what was taken of a out of",
    ),
    (
        _net(lambda m, x: m.b(m.act(m.a(x))[:, :, [0, 1, 3]]), a=conv(2, 4), act=act(), b=conv(4, 4)),
        MAP,
        "b: convolves what was taken of a out of order",
    ),
    (
        _net(lambda m, x: m.b(F.max_pool2d(m.act(m.a(x))[:, :, 1:], 2)), a=conv(2, 4), act=act(), b=conv(4, 4, 1)),
        MAP,
        "max_pool2d: pools a part of the map of a; pool all of it",
    ),
    (
        _net(
            lambda m, x: m.b(torch.cat([y := m.act(m.a(x)), m.act(m.c(y))], 1).transpose(1, 2)),
            a=conv(2, 4),
            act=act(),
            c=conv(4, 3, 1),
            b=conv(4, 4, 1),
        ),
        MAP,
        r"b: mixes the parts of a concatenation \(4x4x4 \+ 3x4x4\)",
    ),
    # in place
    (_way(lambda m, x: m.out(m.act((y := m.fc(x)).relu_() + y))), {}, "relu_: works in place on a tensor that add uses too"),
    (
        lambda: Net(lambda m, x: m.out(m.r(y := m.fc(x)) + y), fc=nn.Linear(4, 4), r=nn.ReLU(inplace=True), out=nn.Linear(4, 2)),
        {},
        "r: works in place on a tensor that add uses too; make it inplace=False",
    ),
    (
        _way(lambda m, x: m.out((F.relu(m.same(y := m.fc(x)), inplace=True), y)[1])),
        {},
        "relu: works in place on a tensor that out uses too",
    ),
    (_way(_hidden_alias), {}, r"model: its torch\.fx graph gives another answer than its forward; write `x = x \+ y`"),
    (
        lambda: seq(conv(2, 4), act(), _InPlace(), act(), _tail(4, 4, 4)),
        {**MAP, "levels": 8, "calibration": torch.zeros(2, 2, 6, 6)},
        r"2\.relu: works in place on a tensor that add uses too; make it inplace=False",
    ),
    # order
    (lambda: _named(fc=FC, out=OUT), {}, "out: follows fc with no activation between"),
    (lambda: _named(fc=FC, act=ClipQuan(8)), {}, "act: the network ends in an activation"),
    (lambda: _named(flat=nn.Flatten(0), fc=FC, act=ClipQuan(8), out=OUT), {}, r"flat: flatten from \(N, 4\) to"),
    (lambda: _named(fc=FC, bn=nn.BatchNorm1d(5), act=ClipQuan(8), out=OUT), {}, "bn: BatchNorm1d of 5 features follows 3 outputs"),
    (
        lambda: _named(fc=FC, bn=nn.BatchNorm1d(3, track_running_stats=False), act=ClipQuan(8), out=OUT),
        {},
        "bn: BatchNorm1d keeps no running statistics",
    ),
    (lambda: _named(fc=FC, act=ClipQuan(8), out=nn.Linear(5, 2)), {}, "out: takes 5 inputs, but 3 arrive"),
    (lambda: _named(fc=FC, act=ClipQuan(8), out=nn.Linear(5, 2)), {"calibration": IMAGES}, "out: takes 5 inputs, but 3 arrive"),
    (lambda: _named(a=FC, x=ClipQuan(8), b=nn.Linear(3, 3), y=ClipQuan(4), c=OUT), {}, "y: 4 levels, but x has 8"),
    (_way(lambda m, x: m.out(m.act(m.fc(x)) + m.act(m.fd(x)))), {}, "fd: takes the image, which fc takes already"),
    (_way(lambda m, x: m.out(m.act(m.fc(x)) + x)), {}, "out: takes the image, which fc takes already"),
    (_way(lambda m, x: m.out(m.act(x + 1)) + m.act(m.fc(x))), {}, "fc: takes the image, which act takes already"),
    (_way(lambda m, x: torch.cat([m.out(y := m.act(m.fc(x))), m.fd(y)], 1)), {}, "cat: the network ends in a concatenation"),
    (_way(lambda m, x: torch.cat([m.out(m.act(m.fc(x)))] * 2)), {}, "cat: concatenates along dimension 0"),
    (_way(lambda m, x: m.fd(y := m.act(m.fc(x))) + m.out(y)), {}, r"add: adds tensors of shapes \(N, 4\) and \(N, 2\)"),
    (_way(lambda m, x: m.out(m.act(torch.add(m.fc(x), x, alpha=2)))), {}, "add: adds 2 times a tensor"),
    (_way(lambda m, x: m.out(m.act(m.fc(x)) + x.size(0) * x)), {}, "mul: mul cannot be converted"),
    (
        lambda: Net(lambda m, x: m.out(m.fc(x)), fc=nn.Conv2d(4, 4, 1), out=nn.Linear(4, 2)),
        {},
        r"fc: takes \(channels, height, width\), but a ten",
    ),
    # maps
    (lambda: _named(fc=FC, conv=nn.Conv2d(1, 1, 3)), {}, r"conv: follows fc with no activation between"),
    (_conv_way(bad=conv(3, 4)), MAP, "bad: takes 3 channels, but 4 arrive"),
    (_conv_way(bad=conv(4, 4, dilation=2)), MAP, r"bad: dilation \(2, 2\) cannot be converted"),
    (_conv_way(bad=conv(4, 4, padding=3)), MAP, r"bad: padding \(3, 3\) is not less than the kernel \(3, 3\)"),
    (_conv_way(bad=conv(4, 4, 2, padding="same")), MAP, r"bad: 'same' padding of an even kernel \(2, 2\)"),
    (_conv_way(bad=conv(4, 4, padding=1, padding_mode="reflect")), MAP, "bad: padding_mode 'reflect'"),
    (_conv_way(bad=conv(4, 4, 7)), MAP, r"bad: a kernel \(7, 7\) does not fit a map of 6x6"),
    (_conv_way(bad=nn.ConvTranspose2d(4, 4, 3)), MAP, "bad: ConvTranspose2d cannot be converted"),
    (_conv_way(bad=fc(6, 4)), MAP, r"bad: takes a flat tensor, but one of shape \(N, 4, 6, 6\) arrives; put Flatten"),
    (_conv_way(bad=nn.BatchNorm1d(4)), MAP, r"bad: BatchNorm1d takes a flat tensor, but"),
    (_conv_way(nn.Flatten(), bad=nn.BatchNorm2d(4)), MAP, r"bad: takes \(channels, height, width\), but a tensor of shape \(N, 144\)"),
    (
        _conv_way(conv(4, 4), nn.Flatten(), bad=nn.BatchNorm1d(64)),
        MAP,
        "bad: BatchNorm1d normalises every place of a flattened map by itself",
    ),
    (_conv_way(nn.Flatten(), bn(144, nn.BatchNorm1d), bad=act()), MAP, "bad: the scale differs over the map"),
    (_conv_way(bn(4), bad=conv(4, 4, padding=1)), MAP, "bad: pads with zeros what a BatchNorm or sum has shifted"),
    (
        lambda: seq(bad=conv(2, 4, padding=1)),
        {**MAP, "mean": 0.5},
        "bad: pads with zeros, but a pixel of 0 is -0.5 after the input normalisation",
    ),
    (lambda: seq(bad=conv(1, 4)), {"input_shape": (3, 4), "mean": [0.1, 0.2, 0.3]}, "bad: the bias of what it takes differs over the map"),
    (lambda: seq(bad=conv(1, 4)), {"input_shape": (3, 4), "std": [0.1, 0.2, 0.3]}, "bad: the scale of what it takes differs over the map"),
    (
        _conv_way(conv(4, 4), nn.MaxPool2d(2), bad=conv(4, 4, 2)),
        MAP,
        "bad: takes the max pool 3 of a sum that no activation ended; put ClipQuan",
    ),
    (_conv_way(conv(4, 4), nn.MaxPool2d(2)), MAP, "3: takes the max pool 3 of a sum"),
    (_conv_way(bad=nn.MaxPool2d(2, ceil_mode=True, stride=3)), MAP, "bad: ceil_mode=True"),
    (_conv_way(bad=nn.MaxPool2d(2, dilation=2)), MAP, "bad: dilation 2"),
    (_conv_way(bad=nn.MaxPool2d(2, return_indices=True)), MAP, "bad: return_indices=True"),
    (_conv_way(nn.AvgPool2d(2), bad=nn.MaxPool2d(2)), MAP, r"bad: takes the maximum of averages \(2\), but needs single neurons"),
    (lambda: seq(bad=nn.MaxPool2d(2)), MAP, "bad: pools the image"),
    (lambda: seq(bad=nn.AvgPool2d(2)), MAP, "bad: pools the image"),
    (lambda: seq(conv(2, 4, 1), bad=nn.AvgPool2d(2)), MAP, "bad: pools the image"),
    (_conv_way(conv(4, 4), bad=nn.AvgPool2d(2)), MAP, "bad: averages the sums of 2, which has no activation"),
    (_conv_way(bad=nn.AvgPool2d(2, padding=1, count_include_pad=False)), MAP, "bad: count_include_pad=False"),
    (_conv_way(bn(4), bad=nn.AvgPool2d(2, padding=1)), MAP, "bad: pads with zeros what a bias has shifted"),
    (_conv_way(bad=nn.AdaptiveAvgPool2d(4)), MAP, r"bad: output size \(4, 4\) does not divide the map of 6x6"),
    (_conv_way(bad=nn.AdaptiveAvgPool2d(12)), MAP, r"bad: output size \(12, 12\) does not divide"),
    (_conv_way(nn.Flatten(), nn.Unflatten(1, (4, 6, 6))), MAP, "3: Unflatten cannot be converted"),
    (
        _net(
            lambda m, x: m.b(torch.cat([y := m.act(m.a(x)), m.act(m.c(y))], 1)),
            a=conv(2, 3),
            act=act(),
            c=conv(3, 5, 1),
            b=conv(8, 4, 1, groups=2),
        ),
        MAP,
        r"b: groups of 4 channels cut through a concatenation of \(3x4x4 \+ 5x4x4\)",
    ),
    (
        _net(lambda m, x: m.act(torch.cat([y := m.act(m.a(x)), y], 1) + m.c(y)), a=conv(2, 3), act=act(), c=conv(3, 6, 1)),
        MAP,
        r"add: adds \(3x4x4 \+ 3x4x4\) and \(6x4x4\), which are put together differently",
    ),
    (
        _net(
            lambda m, x: m.act(m.c(y := m.act(m.a(x))) + m.p(m.act(m.b(y)))),
            a=conv(2, 4),
            act=act(),
            c=conv(4, 4, 4),
            b=conv(4, 4, 1),
            p=nn.AvgPool2d(4),
        ),
        {**MAP, "bits": 2},
        r"c: its shortcut needs a threshold that is a multiple of 16",
    ),
    # numbers
    (lambda: _broken(lambda m: _poison(m.fc0.weight, float("nan"))), {}, r"fc0: weight\[0, 1\] is nan"),
    (lambda: _broken(lambda m: _poison(m.fc1.bias, float("inf"))), {}, r"fc1: bias\[1\] is inf"),
    (lambda: _broken(lambda m: _poison(m.bn0.running_var, float("nan"))), {}, r"bn0: running_var\[1\] is nan"),
    (lambda: _broken(lambda m: _poison(m.bn0.running_mean, float("nan"))), {}, r"bn0: running_mean\[1\] is nan"),
    (lambda: _broken(lambda m: _poison(m.bn0.weight, float("-inf"))), {}, r"bn0: weight\[1\] is -inf"),
    (lambda: _broken(lambda m: _poison(m.bn0.running_var, -5.0)), {}, r"bn0: running_var\[1\] is -5\.0, with which it cannot normalise"),
    (lambda: _named(fc=FC, act=ClipQuan(8), out=nn.LazyLinear(2)), {}, r"out\.weight: has no shape yet; run the model once"),
    (lambda: GOOD().to("meta"), {}, r"fc0\.weight: is on the meta device, without numbers; load"),
    (lambda: _broken(lambda m: setattr(m.fc0, "weight", nn.Parameter(m.fc0.weight + 0j))), {}, r"fc0\.weight: is complex"),
    # settings
    (GOOD, {"input_shape": 4}, "input shape: 4 is not a sequence of sizes"),
    (GOOD, {"input_shape": ()}, r"input shape: \(\) is not a sequence of sizes"),
    (GOOD, {"percentile": "most"}, "percentile: 'most' is not in"),
    (GOOD, {"calibration": IMAGES.numpy()}, "calibration: is a ndarray, not a tensor"),
    (GOOD, {"calibration": IMAGES + float("inf")}, "calibration: pixels span inf to inf"),
    (GOOD, {"calibration": IMAGES - 0.1}, r"calibration: pixels span -0\.1\d* to -0\.1\d*, not 0 to 1"),
    (GOOD, {"input_shape": (5,)}, r"fc0: takes 4 inputs, an image of shape \(5,\) has 5"),
    (GOOD, {"input_shape": (0,)}, "input shape: 0 is not a positive integer"),
    (GOOD, {"input_shape": (4.0,)}, r"input shape: 4\.0 is not"),
    (GOOD, {"levels": 16}, "act0: 8 levels, but levels=16 was asked for"),
    (GOOD, {"bits": 5}, "fc0: 5-bit weights; use one of 2, 3, 4, 6, 8"),
    (GOOD, {"bits": {"fc1": 7}}, "fc1: 7-bit weights"),
    (GOOD, {"bits": {"fc9": 8}}, "bits: no Conv2d or Linear is called 'fc9'; the names are fc0, fc1"),
    (GOOD, {"input_max": 256}, "input_max: 256 is not an integer from 1 to 255"),
    (GOOD, {"input_max": 0}, "input_max: 0 is not"),
    (GOOD, {"input_max": 1.0}, r"input_max: 1\.0 is not"),
    (GOOD, {"input_max": True}, "input_max: True is not"),
    (GOOD, {"std": 0.0}, r"std: 0\.0 is not positive"),
    (GOOD, {"std": [1.0, 2.0]}, r"std: \(2,\) values for images of shape \(4,\)"),
    (GOOD, {"mean": float("nan")}, "mean: nan is not finite"),
    (GOOD, {"mean": [[0.0]]}, r"mean: \(1, 1\) values"),
    (GOOD, {"percentile": 0.0}, r"percentile: 0\.0 is not in"),
    (GOOD, {"percentile": 1.5}, r"percentile: 1\.5 is not in"),
    (GOOD, {"margin": 9}, "margin: 9 is not an integer from 1 to 8"),
    (GOOD, {"sleep": -1}, "sleep: -1 is not"),
    (GOOD, {"name": "a/b"}, "name: 'a/b' is not"),
    (GOOD, {"calibration": torch.zeros(5, 3)}, r"calibration: shape \(5, 3\) is not a batch of \(4,\)"),
    (GOOD, {"calibration": torch.zeros(0, 4)}, r"calibration: shape \(0, 4\) is not a batch"),
    (GOOD, {"calibration": IMAGES + 255}, r"calibration: pixels span 255\.0 to 255\.0, not 0 to 1; divide them by input_max"),
    (GOOD, {"calibration": IMAGES * float("nan")}, "calibration: pixels span nan to nan"),
    (RELU, {}, "act0: ReLU says nothing of T; give levels"),
    (RELU, {"levels": 8}, "act0: ReLU needs its range measured; give calibration images"),
    (RELU, {"levels": 0, "calibration": IMAGES}, "levels: 0 is not an integer from 1 to 255"),
    (RELU, {"levels": 300, "calibration": IMAGES}, "levels: 300 is not"),
    (RELU, {"levels": 2.5, "calibration": IMAGES}, r"levels: 2\.5 is not"),
]


@pytest.mark.parametrize(("model", "options", "wanted"), REFUSALS, ids=[wanted for _, _, wanted in REFUSALS])
def test_refusals_name_what_is_wrong(model: Callable[[], Any], options: dict[str, Any], wanted: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(CascError) as caught:
        convert(model(), **{"input_shape": (4,), **options})
    text = str(caught.value)
    assert re.match(wanted, text)
    assert "\n" not in text
    assert "; " in text, "says what is wrong, but not what to do"


def test_a_refusal_leaves_the_model_as_it_was() -> None:
    model = _named(fc=FC, act=nn.Sigmoid(), drop=nn.Dropout(), out=OUT).train()
    model.drop.eval()
    with pytest.raises(CascError, match="act: Sigmoid"):
        convert(model, input_shape=(4,))
    assert [module.training for module in model] == [True, True, False, True]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_model_of_half_precision_is_converted_as_its_weights_are(dtype: torch.dtype) -> None:
    model, pixels = seq(conv(2, 4), act(), nn.MaxPool2d(2), _tail(4, 2, 2)).to(dtype), _pixels(40, 2, 6, 6) / 255
    result = convert(model, input_shape=(2, 6, 6), calibration=pixels)
    assert result.net.digest == convert(model.double(), input_shape=(2, 6, 6)).net.digest
    assert result.agreement is not None
    assert result.agreement > 0.8
