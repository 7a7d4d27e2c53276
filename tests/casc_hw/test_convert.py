"""Conversion against the float model: nothing but rounding may differ, and rounding by no more than half a unit."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from casc_hw import CascError, ClipQuan, IntegerNet, convert, quantised_ann
from casc_hw.conversion import MAX_THRESHOLD, quantise


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


def assert_only_rounding(
    net: IntegerNet, model: nn.Sequential, pixels: Tensor, mean: Tensor | float = 0.0, std: Tensor | float = 1.0
) -> None:
    """Every layer fed with the float model's own input: |integer - float| <= half a unit per weight times input, and per bias."""
    for index, (layer, (entered, wanted)) in enumerate(
        zip(net.layers, _before_activations(model, (pixels.double() / net.input_max - mean) / std).values(), strict=True)
    ):
        events = pixels.flatten(1).double() if index == 0 else entered  # an activation of 1 is T spikes in T steps
        one = layer.threshold.double() if layer.threshold is not None else torch.tensor(layer.scale, dtype=torch.float64)
        got = (events @ layer.weight.double().T + layer.bias) / one
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
    assert {layer.bits for layer in result.net.layers} == {bits}
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


def test_one_mean_and_std_fold_too() -> None:
    model = _model(12, 9, 4)
    assert_only_rounding(convert(model, input_shape=(12,), mean=0.4, std=0.25).net, model, _pixels(50, 12), 0.4, 0.25)


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
        largest = layer.weight.abs().amax(1)
        assert int(largest.max()) == top
        if layer.threshold is not None:
            assert int(largest.min()) >= top - 2  # the threshold is rounded first
    assert all(layer.weight.abs().max() < 128 for layer in net.layers)


@pytest.mark.parametrize("bits", [2, 3, 4])
@pytest.mark.parametrize("readout", [False, True])
def test_few_bits_beat_scaling_to_the_peak(bits: int, readout: bool) -> None:
    torch.manual_seed(bits)
    weight, top = torch.randn(8, 200, dtype=torch.float64), (1 << (bits - 1)) - 1
    layer = quantise("layer", weight, torch.zeros(8, dtype=torch.float64), bits, 255, readout=readout)
    one = torch.full((8,), layer.scale, dtype=torch.float64) if layer.threshold is None else layer.threshold.double()
    step = 255 / one[:, None]
    peak = weight.abs().amax(1, keepdim=True) if not readout else weight.abs().max()
    plain = (weight / peak * top).round() * peak / top
    assert int(layer.weight.abs().max()) == top
    assert ((layer.weight * step - weight).norm() < 0.9 * (plain - weight).norm()).item()


def test_per_layer_bits() -> None:
    result = convert(_model(12, 9, 7, 4), input_shape=(12,), bits={"fc0": 4, "fc2": 3})
    assert [layer.bits for layer in result.net.layers] == [4, 8, 3]
    assert [int(layer.weight.abs().max()) for layer in result.net.layers] == [7, 127, 3]
    assert result.weight_error["fc0"] > 5 * result.weight_error["fc1"] > 0


def test_weight_error_is_the_relative_rounding() -> None:
    model = _model(12, 9, 4, norm=False)
    result = convert(model, input_shape=(12,))
    layer, weight = result.net.layers[0], model.fc0.weight.detach()
    back = layer.weight * 255 / layer.threshold[:, None]
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
    assert not net.layers[0].weight[3].any()
    assert int(threshold[3]) == int(threshold.min())
    assert float(net.layers[0].bias[3] / threshold[3]) == pytest.approx(model.bn0.bias[3].item(), abs=1 / int(threshold[3]))
    assert int(threshold.max()) < MAX_THRESHOLD


def test_schedule_name_and_meta_pass_through() -> None:
    net = convert(_model(4, 3, 2), input_shape=(4,), name="mine", margin=2, sleep=5, meta={"seed": 1}).net
    assert (net.name, net.margin, net.sleep, net.meta) == ("mine", 2, 5, {"seed": 1})
    default = convert(_model(4, 3, 2), input_shape=(4,)).net
    assert (default.margin, default.sleep) == (8, None)


def test_the_model_is_left_as_it_was() -> None:
    model = _model(12, 9, 4).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    convert(model, input_shape=(12,), calibration=_pixels(20, 12) / 255)
    assert model.training
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


def test_relu_scales_cancel_and_half_a_level_is_added() -> None:
    model, images = _model(12, 20, 4, activation=nn.ReLU, norm=False), _pixels(200, 12) / 255
    result = convert(model, input_shape=(12,), levels=2, calibration=images)
    first, last = result.net.layers
    assert first.threshold is not None
    scale = result.scales["fc0"]
    assert torch.allclose((first.weight * 255 / first.threshold[:, None] * scale).double(), model.fc0.weight, atol=0.01)
    assert torch.allclose((first.bias / first.threshold - 0.5 / 2).double(), model.fc0.bias / scale, atol=0.01)
    assert torch.allclose((last.weight / last.scale / scale).double(), model.fc1.weight, atol=0.02)


def test_a_dead_relu_is_converted() -> None:
    model = _model(4, 3, 2, activation=nn.ReLU, norm=False)
    model.fc0.weight.data.zero_()
    model.fc0.bias.data.fill_(-1)
    result = convert(model, input_shape=(4,), levels=4, calibration=_pixels(9, 4) / 255)
    assert result.scales == {"fc0": 1.0}
    assert not quantised_ann(result.net, _pixels(9, 4)).counts[0].any()


# --- refusals, each by the name of what is wrong ----------------------------------------------------------------------


def _broken(edit: Callable[[nn.Sequential], Any], *sizes: int) -> nn.Sequential:
    model = _model(*(sizes or (4, 3, 2)))
    edit(model)
    return model


def _named(**modules: nn.Module) -> nn.Sequential:
    return nn.Sequential(OrderedDict(modules))


def _poison(field: Tensor, value: float) -> None:
    field.data.view(-1)[1] = value


FC, OUT = nn.Linear(4, 3), nn.Linear(3, 2)
RELU = lambda: _model(4, 3, 2, activation=nn.ReLU)  # noqa: E731
GOOD = lambda: _model(4, 3, 2)  # noqa: E731
IMAGES = torch.zeros(5, 4)

REFUSALS: list[tuple[Callable[[], Any], dict[str, Any], str]] = [
    (lambda: nn.Linear(4, 3), {}, r"model: is a Linear, not a torch\.nn\.Sequential"),
    (lambda: _named(flat=nn.Flatten()), {}, "model: has no Linear layer"),
    (lambda: _named(fc=FC, conv=nn.Conv2d(1, 1, 3)), {}, "conv: Conv2d cannot be converted"),
    (lambda: _named(fc=FC, act=nn.Sigmoid(), out=OUT), {}, "act: Sigmoid cannot be converted"),
    (lambda: _named(fc=FC, act=nn.ReLU6(), out=OUT), {}, "act: ReLU6 cannot be converted"),
    (lambda: _named(block=_named(fc=FC, soft=nn.Softmax(1))), {}, r"block\.soft: Softmax cannot be converted"),
    (lambda: _named(act=ClipQuan(8), fc=FC), {}, "act: ClipQuan comes before the first Linear"),
    (lambda: _named(bn=nn.BatchNorm1d(4), fc=FC), {}, "bn: BatchNorm1d comes before the first Linear"),
    (lambda: _named(fc=FC, out=OUT), {}, "out: follows fc with no activation between"),
    (lambda: _named(fc=FC, act=ClipQuan(8), bn=nn.BatchNorm1d(3), out=OUT), {}, "bn: BatchNorm1d follows the activation act"),
    (lambda: _named(fc=FC, act=ClipQuan(8), again=nn.ReLU(), out=OUT), {}, "again: ReLU follows the activation act"),
    (lambda: _named(fc=FC, act=ClipQuan(8)), {}, "act: the network ends in an activation"),
    (lambda: _named(fc=FC, flat=nn.Flatten(), act=ClipQuan(8), out=OUT), {}, "flat: Flatten must come first"),
    (lambda: _named(flat=nn.Flatten(0), fc=FC, act=ClipQuan(8), out=OUT), {}, "flat: Flatten must come first, with start_dim=1"),
    (lambda: _named(fc=FC, bn=nn.BatchNorm1d(5), act=ClipQuan(8), out=OUT), {}, "bn: BatchNorm1d of 5 features follows 3 outputs"),
    (
        lambda: _named(fc=FC, bn=nn.BatchNorm1d(3, track_running_stats=False), act=ClipQuan(8), out=OUT),
        {},
        "bn: BatchNorm1d keeps no running statistics",
    ),
    (lambda: _named(fc=FC, act=ClipQuan(8), out=nn.Linear(5, 2)), {}, "out: takes 5 inputs, but 3 arrive"),
    (lambda: _named(fc=FC, act=ClipQuan(8), out=nn.Linear(5, 2)), {"calibration": IMAGES}, "out: takes 5 inputs, but 3 arrive"),
    (lambda: _named(fc=FC), {}, "layers: 1 given, at least one spiking layer"),
    (lambda: _named(a=FC, x=ClipQuan(8), b=nn.Linear(3, 3), y=ClipQuan(4), c=OUT), {}, "y: 4 levels, but x has 8"),
    (lambda: _broken(lambda m: _poison(m.fc0.weight, float("nan"))), {}, r"fc0: weight\[0, 1\] is nan"),
    (lambda: _broken(lambda m: _poison(m.fc1.bias, float("inf"))), {}, r"fc1: bias\[1\] is inf"),
    (lambda: _broken(lambda m: _poison(m.bn0.running_var, float("nan"))), {}, r"bn0: running_var\[1\] is nan"),
    (lambda: _broken(lambda m: _poison(m.bn0.running_mean, float("nan"))), {}, r"bn0: running_mean\[1\] is nan"),
    (lambda: _broken(lambda m: _poison(m.bn0.weight, float("-inf"))), {}, r"bn0: weight\[1\] is -inf"),
    (GOOD, {"input_shape": (5,)}, r"fc0: takes 4 inputs, an image of shape \(5,\) has 5"),
    (GOOD, {"levels": 16}, "act0: 8 levels, but levels=16 was asked for"),
    (GOOD, {"bits": 5}, "fc0: 5-bit weights; use one of 2, 3, 4, 6, 8"),
    (GOOD, {"bits": {"fc1": 7}}, "fc1: 7-bit weights"),
    (GOOD, {"bits": {"fc9": 8}}, "bits: no Linear is called 'fc9'; the names are fc0, fc1"),
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
    with pytest.raises(CascError) as caught:
        convert(model(), **{"input_shape": (4,), **options})
    text = str(caught.value)
    assert re.match(wanted, text)
    assert "\n" not in text
    assert "; " in text, "says what is wrong, but not what to do"
