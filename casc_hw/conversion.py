"""Conversion: a trained ``torch.nn.Sequential`` becomes an `IntegerNet`.

The only rounding is of weights and biases: ``W = round(w * theta / s_in)``, ``B = round(b * theta)``, where ``theta`` is
a channel's integer threshold and ``s_in`` the units of an input event (the pixel maximum, or 1 for spikes).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn

from casc_hw.clipquan import ClipQuan
from casc_hw.errors import CascError
from casc_hw.network import MAX_LEVELS, WEIGHT_BITS, IntegerNet, Linear
from casc_hw.reference import quantised_ann

MAX_THRESHOLD = 1 << 24
"""Larger thresholds would only refine weights that are nearly zero, and cost width in every potential."""


@dataclass(frozen=True)
class Conversion:
    """A converted network and what the conversion cost.

    Attributes
    ----------
    net: the integer network.
    weight_error: per layer, the root mean square of (integer weight in float units - weight), over that of the weights.
    scales: per spiking layer, what its activation was divided by (1 for ClipQuan; the percentile for ReLU).
    agreement: share of calibration images on which the integer network names the same class as the float network; None
        without calibration.
    """

    net: IntegerNet
    weight_error: dict[str, float]
    scales: dict[str, float]
    agreement: float | None


@dataclass
class _Block:
    """Linear and what follows it, folded, in float64."""

    name: str
    weight: Tensor
    bias: Tensor
    activation: nn.Module | None = None
    activation_name: str = ""


def convert(
    model: nn.Sequential,
    *,
    input_shape: Sequence[int],
    input_max: int = 255,
    name: str = "net",
    bits: int | Mapping[str, int] = 8,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    levels: int | None = None,
    margin: int | None = None,
    sleep: int | None = None,
    calibration: Tensor | None = None,
    percentile: float = 0.999,
    meta: dict[str, object] | None = None,
) -> Conversion:
    """Convert ``model`` (Linear, BatchNorm1d, ClipQuan or ReLU, Flatten, Dropout, nested Sequential).

    Parameters
    ----------
    model: sees an image as ``(pixel / input_max - mean) / std``; BatchNorm is folded with its running statistics.
    input_shape, input_max: shape of one image without the batch, and the pixel value that stands for 1.0 (<= 255).
    bits: width of the weights, one for all or by the name of the Linear module.
    mean, std: input normalisation, one number or one per channel (the first dimension of ``input_shape``); folded.
    levels: T, needed for ReLU only: ClipQuan carries it.
    margin, sleep: the schedule (see `IntegerNet`); the default is one wake of T steps, then sleep until silence.
    calibration: float images in 0..1 (pixel / input_max), shape (N, *input_shape); needed for ReLU.
    percentile: share of a ReLU's calibration activations that stay below its clip.

    Raises
    ------
    CascError: a module, weight or setting that cannot be converted, by its name.
    """
    if not isinstance(model, nn.Sequential):
        raise CascError(f"model: is a {type(model).__name__}, not a torch.nn.Sequential; wrap the layers in one")
    input_shape = tuple(input_shape)
    if not isinstance(input_max, int) or isinstance(input_max, bool) or not 1 <= input_max <= 255:
        raise CascError(f"input_max: {input_max!r} is not an integer from 1 to 255; use 8-bit pixels or fewer")
    if not 0 < percentile <= 1:
        raise CascError(f"percentile: {percentile!r} is not in (0, 1]; the default is 0.999")
    if calibration is not None and (tuple(calibration.shape[1:]) != input_shape or len(calibration) == 0):
        raise CascError(f"calibration: shape {tuple(calibration.shape)} is not a batch of {input_shape}; give (N, {input_shape})")
    if calibration is not None and not ((calibration >= 0) & (calibration <= 1)).all():
        raise CascError(f"calibration: pixels span {calibration.min()} to {calibration.max()}, not 0 to 1; divide them by input_max")
    blocks = list(_fold(model))
    offset, gain = _normalisation(mean, std, input_shape)
    if blocks[0].weight.shape[1] != prod(input_shape):
        raise CascError(
            f"{blocks[0].name}: takes {blocks[0].weight.shape[1]} inputs, an image of shape {input_shape} has {prod(input_shape)}; "
            "give the right input_shape"
        )
    blocks[0].bias = blocks[0].bias + blocks[0].weight @ offset
    blocks[0].weight = blocks[0].weight * gain
    expected = None if calibration is None else _float_classes(model, calibration, offset, gain)
    steps = _levels(blocks, levels)
    scales = _absorb_scales(blocks, steps, calibration, percentile)

    layers, errors = [], {}
    for index, block in enumerate(blocks):
        unit = input_max if index == 0 else 1
        width = bits if isinstance(bits, int) else bits.get(block.name, 8)
        if width not in WEIGHT_BITS:
            raise CascError(f"{block.name}: {width!r}-bit weights; use one of {', '.join(map(str, WEIGHT_BITS))}")
        layer = quantise(block.name, block.weight, block.bias, width, unit, readout=block.activation is None)
        one = torch.tensor(layer.scale, dtype=torch.float64) if layer.threshold is None else layer.threshold[:, None]
        error = layer.weight * unit / one - block.weight
        errors[block.name] = float(error.norm() / block.weight.norm().clamp(min=1e-30))
        layers.append(layer)
    if isinstance(bits, Mapping) and (unknown := set(bits) - set(errors)):
        raise CascError(f"bits: no Linear is called {sorted(unknown)[0]!r}; the names are {', '.join(errors)}")
    net = IntegerNet(name, steps, steps if margin is None else margin, sleep, input_shape, input_max, tuple(layers), dict(meta or {}))
    agreement = None
    if calibration is not None and expected is not None:
        answer = quantised_ann(net, (calibration * input_max).round().clamp(0, input_max))
        agreement = float((answer.classes == expected).double().mean())
    return Conversion(net, errors, scales, agreement)


def quantise(name: str, weight: Tensor, bias: Tensor, bits: int, unit: int, *, readout: bool) -> Linear:
    """Round one layer: thresholds so that each channel uses its ``bits`` best, one scale for a read-out.

    ``weight`` float64 (outputs, inputs), ``bias`` float64 (outputs,), ``unit``: s_in. At 8 and 6 bits the largest weight of a
    channel meets the largest integer; below, the threshold that rounds and clips with the least square error is searched for.
    """
    top = (1 << (bits - 1)) - 1
    peak = weight.abs().amax(1)
    if readout:
        peak = peak.max().expand_as(peak)
    stretch = torch.tensor([1.0]) if bits >= 6 else torch.linspace(0.8, 4.0, 129, dtype=torch.float64)
    peak = torch.where(peak > 0, peak, peak.max()).clamp(min=1e-30)  # a channel without weights needs no width of its own
    one = (stretch[:, None] * unit * top / peak).clamp(max=MAX_THRESHOLD)  # (candidates, outputs)
    if not readout:  # a threshold is a positive integer; a scale need not be
        one = one.clamp(min=1).round()
    error = torch.stack(
        [((weight * (o / unit)[:, None]).round().clamp(-top, top) * unit / o[:, None] - weight).square().sum(1) for o in one]
    )
    if readout:
        error = error.sum(1, keepdim=True).expand_as(error)
    one = one.gather(0, error.argmin(0, keepdim=True))[0]
    return Linear(
        name=name,
        weight=(weight * (one / unit)[:, None]).round().clamp(-top, top).to(torch.int64),
        bias=(bias * one).round().to(torch.int64),
        threshold=None if readout else one.to(torch.int64),
        bits=bits,
        scale=float(one[0]) if readout else None,
    )


def _fold(model: nn.Sequential) -> Iterator[_Block]:
    """The blocks of ``model``; CascError, by name, at what cannot be converted."""
    block: _Block | None = None
    for name, module in _leaves(model, ""):
        if isinstance(module, nn.Flatten):
            if block is not None or (module.start_dim, module.end_dim) != (1, -1):
                raise CascError(f"{name}: Flatten must come first, with start_dim=1 and end_dim=-1; move it")
        elif isinstance(module, nn.Dropout):
            continue
        elif isinstance(module, nn.Linear):
            if block is not None:
                if block.activation is None:
                    raise CascError(f"{name}: follows {block.name} with no activation between; merge the two Linear layers or add ClipQuan")
                if module.in_features != len(block.bias):
                    raise CascError(f"{name}: takes {module.in_features} inputs, but {len(block.bias)} arrive; fix the layer sizes")
                yield block
            bias = torch.zeros(module.out_features) if module.bias is None else module.bias
            block = _Block(name, _finite(name, "weight", module.weight), _finite(name, "bias", bias))
        elif block is None:
            raise CascError(f"{name}: {type(module).__name__} comes before the first Linear; fold it into the input normalisation")
        elif block.activation is not None:
            raise CascError(f"{name}: {type(module).__name__} follows the activation {block.activation_name}; put it before")
        elif isinstance(module, nn.BatchNorm1d):
            if module.running_mean is None or module.running_var is None:
                raise CascError(f"{name}: BatchNorm1d keeps no running statistics; train it with track_running_stats=True")
            if module.num_features != len(block.bias):
                raise CascError(f"{name}: BatchNorm1d of {module.num_features} features follows {len(block.bias)} outputs; fix the sizes")
            gain = (_finite(name, "running_var", module.running_var) + module.eps).rsqrt()
            shift = -_finite(name, "running_mean", module.running_mean)
            gamma, beta = (torch.ones(()), torch.zeros(())) if module.weight is None else (module.weight, module.bias)
            gain = gain * _finite(name, "weight", gamma)
            block.weight = block.weight * gain[:, None]
            block.bias = (block.bias + shift) * gain + _finite(name, "bias", beta)
        elif isinstance(module, (ClipQuan, nn.ReLU)):
            block.activation, block.activation_name = module, name
        else:
            raise CascError(
                f"{name}: {type(module).__name__} cannot be converted; "
                "use Linear, BatchNorm1d, ClipQuan, ReLU, Flatten, Dropout or Sequential"
            )
    if block is None:
        raise CascError("model: has no Linear layer; there is nothing to convert")
    if block.activation is not None:
        raise CascError(f"{block.activation_name}: the network ends in an activation; end it with a Linear read-out")
    yield block


def _leaves(model: nn.Sequential, prefix: str) -> Iterator[tuple[str, nn.Module]]:
    for name, module in model.named_children():
        if isinstance(module, nn.Sequential):
            yield from _leaves(module, f"{prefix}{name}.")
        else:
            yield prefix + name, module


def _finite(name: str, field: str, tensor: Tensor) -> Tensor:
    tensor = tensor.detach().to(torch.float64).cpu()
    bad = (~torch.isfinite(tensor)).nonzero()
    if len(bad):
        at = tuple(bad[0].tolist())
        raise CascError(f"{name}: {field}{list(at)} is {tensor[at].item()}; train it again from a checkpoint without NaN")
    return tensor


def _normalisation(mean: float | Sequence[float], std: float | Sequence[float], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Per input, float64: offset and gain with ``(x - mean) / std = gain * x + offset``."""

    def spread(what: str, value: float | Sequence[float]) -> Tensor:
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if not torch.isfinite(tensor).all():
            raise CascError(f"{what}: {value!r} is not finite; give the normalisation the network was trained with")
        if tensor.ndim == 0:
            return tensor.expand(prod(shape))
        if tensor.ndim != 1 or not shape or len(tensor) != shape[0]:
            raise CascError(f"{what}: {tuple(tensor.shape)} values for images of shape {shape}; give one, or one per channel")
        return tensor.repeat_interleave(prod(shape) // shape[0])

    deviation = spread("std", std)
    if (deviation <= 0).any():
        raise CascError(f"std: {std!r} is not positive; give the normalisation the network was trained with")
    return -spread("mean", mean) / deviation, 1 / deviation


def _float_classes(model: nn.Sequential, calibration: Tensor, offset: Tensor, gain: Tensor) -> Tensor:
    training, parameter = model.training, next(model.parameters())
    images = calibration.reshape(len(calibration), -1).to(torch.float64) * gain + offset
    model.eval()
    with torch.no_grad():
        output: Tensor = model(images.to(parameter))  # flat already, which Flatten leaves as it is
    model.train(training)
    return output.argmax(1).cpu()


def _levels(blocks: list[_Block], levels: int | None) -> int:
    """T: the same in every ClipQuan; ``levels`` where there is none."""
    found = {block.activation_name: block.activation.levels for block in blocks if isinstance(block.activation, ClipQuan)}
    for name, value in found.items():
        first = next(iter(found))
        if value != found[first]:
            raise CascError(f"{name}: {value} levels, but {first} has {found[first]}; T must be one for the network")
        if levels is not None and value != levels:
            raise CascError(f"{name}: {value} levels, but levels={levels} was asked for; leave it out")
    if found:
        return next(iter(found.values()))
    if levels is None and len(blocks) > 1:
        raise CascError(f"{blocks[0].activation_name}: ReLU says nothing of T; give levels (for example 16)")
    if levels is not None and (not isinstance(levels, int) or not 1 <= levels <= MAX_LEVELS):
        raise CascError(f"levels: {levels!r} is not an integer from 1 to {MAX_LEVELS}; 16 is usual for ReLU")
    return levels if levels is not None else 1


def _absorb_scales(blocks: list[_Block], levels: int, calibration: Tensor | None, percentile: float) -> dict[str, float]:
    """Fold each ReLU's clip (a percentile of its calibration activations) into the weights around it."""
    scales = {}
    x = None if calibration is None else calibration.reshape(len(calibration), -1).to(torch.float64)
    for block, following in pairwise(blocks):
        scale = 1.0
        if x is not None:
            x = x @ block.weight.T + block.bias
        if isinstance(block.activation, nn.ReLU):
            if x is None:
                raise CascError(f"{block.activation_name}: ReLU needs its range measured; give calibration images")
            positive = x.clamp(min=0).flatten()
            rank = max(round(percentile * len(positive)), 1)
            scale = float(positive.kthvalue(rank).values) or float(positive.max()) or 1.0
            block.weight, block.bias = block.weight / scale, block.bias / scale
            following.weight = following.weight * scale
            x = x / scale
            # floor() loses half a level on average; half a level of bias gives it back (rate coding's usual correction)
            block.bias = block.bias + 0.5 / levels
            x = x.clamp(0, 1)
        elif x is not None:
            x = torch.floor(x.clamp(0, 1) * levels) / levels
        scales[block.name] = scale
    return scales
