"""Conversion: a trained ``torch.nn.Module`` becomes an `IntegerNet`.

The module is traced with torch.fx and walked once, in execution order. On the way a tensor is a `_Value`: pieces of channels,
each a sum of linear operators applied to what nodes emit (the image, spiking layers, pools), plus a bias. An activation ends
the sum and makes a layer; the sum that leaves the module is the read-out.

The only rounding is of weights and biases: ``W = round(w * theta / s_in)``, ``B = round(b * theta)``, where ``theta`` is
a channel's integer threshold and ``s_in`` the units of an input event (the pixel maximum, 1 for spikes, kh * kw times as much
behind an average pool, which on chip is a sum).
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import groupby
from math import lcm, prod
from typing import Any, Literal, NoReturn

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from casc_hw.clipquan import ClipQuan, IntegrateAndFire
from casc_hw.errors import CascError
from casc_hw.network import (
    IMAGE,
    MAX_LEVELS,
    MAX_SUM,
    SHORTCUT_BITS,
    WEIGHT_BITS,
    FloatNet,
    IntegerNet,
    Layer,
    MapShape,
    Pool,
    Synapses,
    to_wire,
)
from casc_hw.reference import events_of, quantised_ann

MAX_THRESHOLD = 1 << 24
"""Larger thresholds would only refine weights that are nearly zero, and cost width in every potential."""
MAX_SHORTCUT = (1 << (SHORTCUT_BITS - 1)) - 1
"""The largest weight of an identity shortcut."""
_FINE = 1 << 12
"""Steps per unit of a layer that has nothing but shortcuts, and so no weights that set its threshold."""
_BLOCK = 1 << 16
"""Weights whose rounding error is computed at a time: what a core's cache holds."""
_BATCH = 7919
"""The batch size in the shapes that a forward asks for: a prime, so that it is mistaken for no other size."""

_DROPOUTS = (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout)
_RELUS = (nn.ReLU, nn.ReLU6)
_CONVERTIBLE = (
    "use Conv2d, Linear, BatchNorm, ClipQuan, ReLU, ReLU6, AvgPool2d, AdaptiveAvgPool2d, MaxPool2d, add, cat, slices, "
    "Flatten, Dropout or Identity"
)


@dataclass(frozen=True)
class Loss:
    """How far a layer's activations, counts / T * scale, are from the float network's for the calibration images, of their norm.

    What the layers before have lost is in it.

    Attributes
    ----------
    total: norm(activation - float) / norm(float); 0 where both are 0 everywhere, inf where only the float network's is.
    clipped: likewise, of min(float, scale) - float: what is above the scale. The float network's own ClipQuan clips nothing more.
    rest: likewise, of activation - min(float, scale): levels, and the rounding of weights.
    """

    total: float
    clipped: float
    rest: float


@dataclass(frozen=True)
class Conversion:
    """A converted network and what the conversion cost.

    Attributes
    ----------
    net: the integer network.
    unrounded: the same before its rounding, for `casc_hw.SpikingNet`.
    weight_error: per layer, the root mean square of (integer weight in float units - weight), over that of the weights; of the
        worst of its synapses.
    scales: per spiking layer, what its activation was divided by (1 for ClipQuan without a scale; the percentile for ReLU); a list
        where its channels differ.
    losses: per spiking layer, how far its activations are from the float network's; empty without calibration.
    agreement: share of calibration images on which the integer network names the same class as the float network; None
        without calibration.
    """

    net: IntegerNet
    unrounded: FloatNet
    weight_error: dict[str, float]
    scales: dict[str, float | list[float]]
    agreement: float | None
    losses: dict[str, Loss] = field(default_factory=dict)


def convert(
    model: nn.Module,
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
    per_channel: bool = False,
    meta: dict[str, object] | None = None,
) -> Conversion:
    """Convert ``model``: convolutions, fully connected layers, pools, sums and concatenations between activations.

    Parameters
    ----------
    model: sees an image as ``(pixel / input_max - mean) / std``; BatchNorm is folded with its running statistics.
    input_shape, input_max: shape of one image without the batch, and the pixel value that stands for 1.0 (<= 255). A model that
        starts with Conv2d sees images of shape (H, W) as (1, H, W); one that starts with Linear sees any image flat.
    bits: width of the weights, one for all or by the name of the Conv2d or Linear module (8 where none is given).
    mean, std: input normalisation, one number or one per channel (the first dimension of ``input_shape``); folded.
    levels: T, needed for ReLU only: ClipQuan carries it.
    margin, sleep: the schedule (see `IntegerNet`); the default is one wake of T steps, then sleep until silence.
    calibration: float images in 0..1 (pixel / input_max), shape (N, *input_shape); needed for ReLU. All their activations of a
        layer are held at once: a few hundred images are enough.
    percentile: share of a ReLU's calibration activations that stay below its clip.
    per_channel: whether each channel of a ReLU has a clip of its own, folded into the weights, rather than each layer.

    Raises
    ------
    CascError: a module, operation, weight or setting that cannot be converted, by its name.
    """
    if not isinstance(model, nn.Module):
        raise CascError(f"model: is a {type(model).__name__}, not a torch.nn.Module; give the trained network")
    _check_parameters(model)
    if not isinstance(input_shape, Sequence) or not len(input_shape):
        raise CascError(f"input shape: {input_shape!r} is not a sequence of sizes; give the shape of one image, for example (28, 28)")
    input_shape = tuple(input_shape)
    for size in input_shape:
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise CascError(f"input shape: {size!r} is not a positive integer; give the shape of one image")
    if not isinstance(input_max, int) or isinstance(input_max, bool) or not 1 <= input_max <= 255:
        raise CascError(f"input_max: {input_max!r} is not an integer from 1 to 255; use 8-bit pixels or fewer")
    if not isinstance(percentile, (int, float)) or not 0 < percentile <= 1:
        raise CascError(f"percentile: {percentile!r} is not in (0, 1]; the default is 0.999")
    if calibration is not None and not isinstance(calibration, Tensor):
        raise CascError(f"calibration: is a {type(calibration).__name__}, not a tensor; use torch.from_numpy or torch.stack")
    if calibration is not None and (tuple(calibration.shape[1:]) != input_shape or len(calibration) == 0):
        raise CascError(f"calibration: shape {tuple(calibration.shape)} is not a batch of {input_shape}; give (N, {input_shape})")
    if calibration is not None and not ((calibration >= 0) & (calibration <= 1)).all():
        raise CascError(f"calibration: pixels span {calibration.min()} to {calibration.max()}, not 0 to 1; divide them by input_max")
    offset, gain = (_uniform(part.reshape(_map_shape(input_shape))) for part in _normalisation(mean, std, input_shape))
    with _evaluation(model), torch.no_grad():
        traced = _trace(model)
        steps = _levels(traced, levels)
        dims = _seen(traced, input_shape)
        parameter = next(model.parameters(), torch.zeros(()))

        def seen(images: Tensor) -> Tensor:
            normalised = images.reshape(len(images), *_map_shape(input_shape)).to(torch.float64) * gain + offset
            return normalised.reshape(len(images), *dims).to(parameter)

        walk = _Walk(traced, input_shape, dims, input_max, offset, gain, bits, steps, percentile, per_channel)
        if calibration is not None and any(_is_relu(traced, node) for node in traced.graph.nodes):
            walk.measure(seen(calibration))
        walk.walk()
        _check_trace(model, traced, seen(torch.rand(2, *input_shape, generator=torch.Generator().manual_seed(0))))
        steps = walk.levels or 1
        net = IntegerNet(
            name, steps, steps if margin is None else margin, sleep, input_shape, input_max, tuple(walk.nodes), dict(meta or {})
        )
        unrounded = FloatNet(
            name, steps, net.margin, sleep, input_shape, input_max, tuple(walk.unrounded.get(node.name, node) for node in walk.nodes)
        )
        agreement, losses = None, {}
        if calibration is not None:
            compared = _Compared(walk, net)
            for images in torch.split(calibration, 64):
                compared.compare(seen(images), (images * input_max).round().clamp(0, input_max))
            agreement, losses = compared.same / len(calibration), compared.losses()
    return Conversion(net, unrounded, walk.errors, walk.scales, agreement, losses)


# --- rounding ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rounded:
    """A layer in integers.

    Attributes
    ----------
    weights: per synapses, int64, in the shape given.
    bias: int64 (outputs,).
    threshold: int64 (outputs,), positive; None for a read-out.
    scale: of a read-out, integer units per float unit; else None.
    """

    weights: tuple[Tensor, ...]
    bias: Tensor
    threshold: Tensor | None
    scale: float | None

    @property
    def one(self) -> Tensor:
        """What stands for 1.0, float64 (outputs,): the thresholds, or the scale."""
        return torch.full((len(self.bias),), self.scale or 0.0, dtype=torch.float64) if self.threshold is None else self.threshold.double()


def round_layer(
    name: str, weights: Sequence[Tensor], bias: Tensor, bits: Sequence[int | None], units: Sequence[int], *, readout: bool = False
) -> Rounded:
    """Round the synapses of one layer together: thresholds so that each channel uses its bits best, one scale for a read-out.

    ``weights``: float64, (outputs, ...) each; ``bias``: float64 (outputs,); ``units``: s_in of each. At 8 and 6 bits the largest
    weight of a channel meets the largest integer; below, the threshold that rounds and clips with the least square error is
    searched for. ``bits`` None marks an identity shortcut: its weights do not limit the threshold, and where they are whole
    numbers the threshold is a multiple of its unit, so that they stay exact. CascError where no threshold can be.
    """
    flat = [weight.flatten(1) for weight in weights]
    tops = [MAX_SHORTCUT if width is None else (1 << (width - 1)) - 1 for width in bits]
    shortcuts = [index for index, width in enumerate(bits) if width is None]
    exact = [index for index in shortcuts if torch.equal(flat[index], flat[index].round())]
    multiple = lcm(*(units[index] for index in exact))
    one = _candidates(flat, bits, tops, units, readout)
    if one is None:  # nothing but shortcuts
        whole = len(exact) == len(flat) and torch.equal(bias * multiple, (bias * multiple).round())
        fine = multiple if whole else -(-_FINE * max(units) // multiple) * multiple
        one = torch.full((1, len(bias)), float(fine), dtype=torch.float64)
    one = one.clamp(max=MAX_THRESHOLD)
    for index in shortcuts:
        limit = (MAX_SHORTCUT * units[index] / flat[index].abs().amax(1).clamp(min=1e-30)).floor()
        one = torch.minimum(one, limit.min() if readout else limit)
    widths = ", ".join(str(width) for width in bits if width is not None)
    if multiple > 1 and (worst := float(one.amax(0).min())) < multiple:
        raise CascError(
            f"{name}: its shortcut needs a threshold that is a multiple of {multiple} (the size of the average pools before it), "
            f"but {widths}-bit weights of this size allow {worst:.3g} at most; use more bits, or put an activation behind the pool"
        )
    if multiple > 1:
        one = ((one / multiple).floor() * multiple).clamp(min=multiple)
    elif not readout or shortcuts:  # a threshold is a positive integer; a scale need not be
        one = one.clamp(min=1).round()
    if len(one) > 1:
        one = _best(flat, one, tops, units, readout)
    one = one[0]
    integers = tuple(
        (rows * (one / unit)[:, None]).round_().clamp_(-top, top).to(torch.int64).reshape(weight.shape)
        for weight, rows, unit, top in zip(weights, flat, units, tops, strict=True)
    )
    for index in shortcuts:
        if weights[index].any() and not integers[index].any():
            raise CascError(
                f"{name}: {widths}-bit weights leave a threshold of {float(one.max()):.3g}, at which its shortcut behind average pools of "
                f"size {units[index]} is rounded to nothing; use more bits, or put an activation behind the pool"
            )
    return Rounded(
        weights=integers,
        bias=(bias * one).round().to(torch.int64),
        threshold=None if readout else one.to(torch.int64),
        scale=float(one[0]) if readout else None,
    )


def _as_it_is(
    weights: Sequence[Tensor], bias: Tensor, bits: Sequence[int | None], units: Sequence[int], threshold: Tensor | None
) -> Rounded | None:
    """The layer unrounded, if its weights over their units, biases and thresholds (None: a read-out) are integers and fit; else None."""
    parts = [weight / unit for weight, unit in zip(weights, units, strict=True)]
    theta = torch.ones_like(bias) if threshold is None else threshold.flatten()
    halves = [1 << ((SHORTCUT_BITS if width is None else width) - 1) for width in bits]
    halves += [MAX_SUM, MAX_SUM]
    for part, half in zip([*parts, bias, theta], halves, strict=True):
        if not torch.equal(part, part.round()) or float(part.min()) < -half or float(part.max()) >= half:
            return None
    scale = 1.0 if threshold is None else None
    return Rounded(tuple(part.long() for part in parts), bias.long(), None if threshold is None else theta.long(), scale)


def _candidates(
    flat: Sequence[Tensor], bits: Sequence[int | None], tops: Sequence[int], units: Sequence[int], readout: bool
) -> Tensor | None:
    """Thresholds to try, float64 (candidates, outputs): from where the first of the weights meets its largest integer; None if free."""
    weighted = [index for index, width in enumerate(bits) if width is not None]
    if not weighted:
        return None
    ends = [flat[index].aminmax(dim=1) for index in weighted]
    peaks = torch.stack([torch.maximum(-low, high) for low, high in ends])  # (synapses, outputs)
    if readout:
        peaks = peaks.amax(1, keepdim=True).expand_as(peaks)
    unit, top = (torch.tensor([of[index] for index in weighted])[:, None].expand_as(peaks) for of in (units, tops))
    load = peaks / (unit * top)
    tight = load.argmax(0, keepdim=True)
    channel = torch.arange(peaks.shape[1])
    channel = torch.where(load.amax(0) > 0, channel, load.amax(0).argmax())  # a channel without weights needs no width of its own
    peak, unit, top = (of.gather(0, tight)[0, channel] for of in (peaks, unit, top))
    search = min(width for width in bits if width is not None) < 6
    stretch = torch.linspace(0.8, 4.0, 129, dtype=torch.float64) if search else torch.ones(1, dtype=torch.float64)
    return stretch[:, None] * unit * top / peak.clamp(min=1e-30)


def _best(flat: Sequence[Tensor], one: Tensor, tops: Sequence[int], units: Sequence[int], readout: bool) -> Tensor:
    """Of the candidates ``one`` those, (1, outputs), that round and clip with the least square error, the first of equals."""
    error = _estimated_errors(flat, one, tops, units)
    size = sum((weight.square().sum(1) for weight in flat), torch.zeros(one.shape[1], dtype=torch.float64))
    if readout:
        error, size = error.sum(1, keepdim=True), size.sum(0, keepdim=True)
    near = error <= error.amin(0) + 1e-9 * size  # far more than the estimate's own rounding
    best = one.gather(0, near.int().argmax(0, keepdim=True).expand(1, one.shape[1]))
    unsure = (near & (one != best)).any(0).expand(one.shape[1]).nonzero()[:, 0]
    if len(unsure):
        near = near.expand_as(one)[:, unsure]
        tried = near.any(1).nonzero()[:, 0]
        error = _rounding_errors([weight[unsure] for weight in flat], one[tried][:, unsure], tops, units)
        if readout:
            error = error.sum(1, keepdim=True).expand_as(error)
        error = error.masked_fill(~near[tried], float("inf"))
        best[0, unsure] = one[tried][:, unsure].gather(0, error.argmin(0, keepdim=True))[0]
    return best


def _estimated_errors(flat: Sequence[Tensor], one: Tensor, tops: Sequence[int], units: Sequence[int]) -> Tensor:
    """`_rounding_errors` but for the rounding of its sums: of sorted weights, each is one sum for each integer up to ``top``."""
    errors = torch.zeros_like(one)
    for weight, top, unit in zip(flat, tops, units, strict=True):
        inputs = weight.shape[1]
        if inputs <= top:
            errors += _rounding_errors([weight], one, [top], [unit])
            continue
        integers = torch.arange(1, top + 1)
        size = max(4 * _BLOCK // max(inputs, len(one) * top), 1)
        for low in range(0, len(weight), size):
            rows = torch.from_numpy(np.sort(weight[low : low + size].abs().numpy(), axis=1))
            step = (unit / one[:, low : low + size].T).contiguous()  # (outputs, candidates)
            bounds = (step[..., None] * (integers - 0.5)).flatten(1)
            below = torch.searchsorted(rows, bounds, right=True)
            sums = F.pad(rows.cumsum(1), (1, 0))
            # The weights above bound i are rounded to i steps or more: what i - 1 steps become with one more, summed over i
            above = (sums[:, -1:] - sums.gather(1, below)).reshape(len(rows), -1, top).sum(2)
            count = ((inputs - below).reshape(len(rows), -1, top) * (2 * integers - 1)).sum(2)
            errors[:, low : low + size] += (rows.square().sum(1, keepdim=True) - step * (2 * above - step * count)).T
    return errors


def _rounding_errors(flat: Sequence[Tensor], one: Tensor, tops: Sequence[int], units: Sequence[int]) -> Tensor:
    """Per candidate threshold and output, float64: the square error of all weights, rounded and clipped; a block of rows at a time."""
    errors = torch.zeros_like(one)
    for weight, top, unit in zip(flat, tops, units, strict=True):
        size = max(_BLOCK // weight.shape[1], 1)
        for low in range(0, len(weight), size):
            rows = weight[low : low + size]
            buffer = torch.empty_like(rows)
            for error, theta in zip(errors[:, low : low + size], one[:, low : low + size, None], strict=True):
                torch.mul(rows, theta / unit, out=buffer)
                error += buffer.round_().clamp_(-top, top).mul_(unit).div_(theta).sub_(rows).square_().sum(1)
    return errors


# --- the walk ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Term:
    """A linear operator applied to what ``source`` emits.

    ``weight``, float64: (O, inputs) or (O, I // groups, kh, kw) of a ``module``; or, of a scaled identity, which has no module,
    (C, 1, 1), or (C, H, W) where it differs over the map.

    ``at``: None where all of the source is taken, as it is. Else int64: of an identity (C, H, W), what is taken of the source
    flattened; of a module (O, inputs) or (1, inputs), the places of its weights in rows of zeros of shape ``room``, for all of the source.
    ``columns``: which of the inputs of a module without groups, in the order of ``weight``.
    """

    source: str
    weight: Tensor
    module: str = ""
    order: int = 0
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1
    at: Tensor | None = None
    room: tuple[int, ...] = ()
    columns: tuple[range, ...] = ()

    @property
    def pointwise(self) -> bool:
        """Commutes with an average."""
        if not self.module:
            return True
        kernel = (self.weight.shape if self.at is None else self.room)[-2:]
        return self.weight.ndim == 4 and (*kernel, *self.stride, *self.padding) == (1, 1, 1, 1, 0, 0)

    def reaching(self, integers: Tensor) -> Tensor:
        """``integers``, of the shape of ``weight``, as they reach all of the source: among zeros."""
        if self.at is None:
            return integers
        rows = integers.flatten(1)
        full = torch.zeros(len(rows), prod(self.room), dtype=rows.dtype)
        return full.scatter_(1, self.at.expand(len(rows), -1), rows).reshape(len(rows), *self.room)


@dataclass(frozen=True)
class _Piece:
    """Channels of a value: the sum of ``terms``, plus ``bias``, float64 (C, 1, 1) or (C, H, W); ``shape`` is (C, H, W)."""

    terms: tuple[_Term, ...]
    bias: Tensor
    shape: MapShape

    def scaled(self, gain: Tensor) -> _Piece:
        """Times ``gain``, (C, 1, 1); or (C, H, W) where there are only identities."""
        terms = []
        for term in self.terms:
            spread = gain.reshape(-1, *[1] * (term.weight.ndim - 1)) if term.module else gain
            terms.append(replace(term, weight=term.weight * spread))
        return replace(self, terms=tuple(terms), bias=self.bias * gain)

    @property
    def follows(self) -> str:
        """The module whose weights are in it; empty if none's."""
        return next((term.module for term in self.terms if term.module), "")


@dataclass(frozen=True)
class _Window:
    """Of a pool."""

    name: str
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int]


@dataclass(frozen=True)
class _Value:
    """A tensor of the model: ``pieces`` along the channels; ``dims`` is its shape without the batch.

    ``waiting``: max pools of a sum, which are taken behind the activation that follows, for which it makes no difference.
    ``places``: None, or which of the numbers of ``pieces``, in order, the tensor has, int64 of shape ``dims``: see `_Walk._tensor`.
    """

    pieces: tuple[_Piece, ...]
    dims: tuple[int, ...]
    waiting: tuple[_Window, ...] = ()
    places: Tensor | None = None


@dataclass(frozen=True)
class _Map:
    """What a node emits: its shape (C, H, W), s_in, its depth in layers, whether averages are in it, and who made it."""

    shape: MapShape
    unit: int
    depth: int
    averaged: bool
    made_by: str


class _Walk:
    """Visits the graph's nodes in order and leaves ``nodes`` of an `IntegerNet`. Handlers have the parameters of the torch functions."""

    def __init__(
        self,
        traced: fx.GraphModule,
        input_shape: tuple[int, ...],
        dims: tuple[int, ...],
        input_max: int,
        offset: Tensor,
        gain: Tensor,
        bits: int | Mapping[str, int],
        levels: int | None,
        percentile: float,
        per_channel: bool = False,
    ):
        self.traced, self.bits, self.levels, self.percentile, self.per_channel = traced, bits, levels, percentile, per_channel
        self.input_shape = input_shape
        shape = _map_shape(input_shape)
        self.image = _Value((_Piece((_Term(IMAGE, gain),), offset, shape),), dims)
        self.maps = {IMAGE: _Map(shape, input_max, 0, False, "the image")}
        self.run: fx.Interpreter | None = None
        self.values: dict[fx.Node, Any] = {}
        self.node: fx.Node | None = None
        self.where = ""
        self.modules: dict[str, None] = {}
        self.order = 0
        self.image_layer = ""
        self.again = False
        """Whether modules were looked at before, and may have hooks that look on by now."""
        self.whole = False
        """Whether a layer that is whole already stays as it is."""
        self.nodes: list[Layer | Pool] = []
        self.unrounded: dict[str, Layer] = {}
        self.errors: dict[str, float] = {}
        self.scales: dict[str, float | list[float]] = {}
        self.ones: dict[str, Tensor] = {}
        """Per spiking layer, what its T spikes stand for, float64 (C, 1, 1)."""
        self.made: dict[fx.Node, list[tuple[str, _Piece]]] = {}
        """By activation, the layers it became, and what they and the pools behind them give in its place."""

    def measure(self, images: Tensor) -> None:
        """Run the float network on ``images`` along with the walk."""
        self.run = fx.Interpreter(self.traced)
        for node in self.traced.graph.find_nodes(op="placeholder"):
            self.run.env[node] = images

    def walk(self) -> None:
        """Visit every node; CascError, by name, at the first that cannot be converted."""
        waiting = {node: len(node.users) for node in self.traced.graph.nodes}
        for node in self.traced.graph.nodes:
            self.node, self.where = node, _label(node)
            self.values[node] = self._visit(node)
            if self.run is not None and node not in self.run.env and node.op != "output":
                self.run.env[node] = self.run.run_node(node)
            for operand in node.all_input_nodes:
                waiting[operand] -= 1
                if not waiting[operand]:
                    del self.values[operand]
                    if self.run is not None:
                        del self.run.env[operand]
        if isinstance(self.bits, Mapping) and (unknown := set(self.bits) - set(self.modules)):
            raise CascError(f"bits: no Conv2d or Linear is called {sorted(unknown)[0]!r}; the names are {', '.join(self.modules)}")

    def _visit(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return self.image
        args, kwargs = fx.map_arg((node.args, node.kwargs), self.values.__getitem__)
        if node.op == "output":
            return self._readout(args[0])
        if node.op == "call_module":
            return self._module(node, args, kwargs)
        if node.op == "get_attr":
            self._refuse("is a parameter or buffer that the forward uses itself; use a module")
        tensors = [value for value in map(self.values.__getitem__, node.all_input_nodes) if isinstance(value, _Value)]
        if not tensors:  # arithmetic on sizes
            result = getattr(args[0], node.target)(*args[1:], **kwargs) if isinstance(node.target, str) else node.target(*args, **kwargs)
            return self._cannot() if isinstance(result, Tensor) else result
        handler = _HANDLERS.get(node.target)
        if handler is None:
            self._cannot()
        return self._call(handler, *args, **kwargs)

    def _module(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        module = self.traced.get_submodule(str(node.target))
        if isinstance(module, (nn.Conv2d, nn.Linear, nn.BatchNorm1d, nn.BatchNorm2d)):
            if module._forward_pre_hooks and not self.again:
                self._refuse("has a forward pre-hook (pruning, weight norm?), which may change its weights; make them permanent first")
            handler = _Walk._conv if isinstance(module, nn.Conv2d) else _Walk._linear if isinstance(module, nn.Linear) else _Walk._norm
            return self._call(handler, *args, module=module, **kwargs)
        if isinstance(module, ClipQuan):
            return self._call(_Walk._clip, *args, module=module, **kwargs)
        if isinstance(module, _RELUS):
            return self._call(_Walk._relu6 if isinstance(module, nn.ReLU6) else _Walk._relu, *args, **kwargs)
        if isinstance(module, (*_DROPOUTS, nn.Identity)):
            return self._call(_Walk._same, *args, **kwargs)
        if isinstance(module, nn.Flatten):
            return self._call(_reshaper("flatten"), *args, start_dim=module.start_dim, end_dim=module.end_dim, **kwargs)
        pool = next((of for kind, of in _POOLS.items() if isinstance(module, kind)), None)
        if pool is None:
            self._cannot(type(module).__name__)
        handler, fields = pool
        return self._call(handler, *args, **{field: getattr(module, field) for field in fields}, **kwargs)

    def _call(self, handler: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            inspect.signature(handler).bind(self, *args, **kwargs)
        except TypeError as error:
            raise CascError(f"{self.where}: {error}, which cannot be converted; leave it out") from error
        return handler(self, *args, **kwargs)

    def _refuse(self, what: str) -> NoReturn:
        raise CascError(f"{self.where}: {what}")

    def _cannot(self, kind: str = "") -> NoReturn:
        node = self.node
        assert node is not None
        kind = kind or (f"Tensor.{node.target}" if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target)))
        path = next(reversed(node.meta.get("nn_module_stack") or [""]))
        within = f" (in module {path})" if path and node.op != "call_module" else ""
        if "softmax" in kind.lower():
            self._refuse(f"{kind}{within} cannot be converted; leave it to the host, the largest sum stays the largest")
        self._refuse(f"{kind}{within} cannot be converted; {_CONVERTIBLE}")

    # Linear operators

    def _tensor(self, value: Any) -> _Value:
        """``value``, which must be a tensor, in pieces along its channels again."""
        if not isinstance(value, _Value):
            self._refuse(f"takes a {type(value).__name__}, not a tensor; {_CONVERTIBLE}")
        return value if value.places is None else self._taken(value, value.places)

    def _ended(self, value: Any) -> _Value:
        """``value``, for which no max pool may wait."""
        tensor = self._tensor(value)
        if tensor.waiting:
            name = tensor.waiting[-1].name
            self._refuse(f"takes the max pool {name} of a sum that no activation ended; put ClipQuan before {name} or right behind it")
        return tensor

    def _activations(self, value: Any) -> _Value:
        """What a convolution or Linear takes: sums of identities."""
        tensor = self._ended(value)
        for piece in tensor.pieces:
            if piece.follows:
                self._refuse(
                    f"follows {piece.follows} with no activation between; merge the two layers or add ClipQuan behind {piece.follows}"
                )
        return tensor

    def _even(self, part: Tensor, what: str) -> Tensor:
        if part.shape[1:] != (1, 1):
            self._refuse(f"{what} differs over the map, because of the input normalisation or a BatchNorm1d; use one number per channel")
        return part

    def _spread(self, value: _Value) -> MapShape:
        if len(value.dims) != 3:
            self._refuse(f"takes (channels, height, width), but a tensor of shape (N, {_sizes(value.dims)}) arrives; fix the shapes")
        return value.dims

    def _parameters(self, module: nn.Conv2d | nn.Linear) -> tuple[Tensor, Tensor]:
        self.modules.setdefault(self.where)
        self.order += 1
        weight = _finite(self.where, "weight", module.weight)
        bias = torch.zeros(len(weight)) if module.bias is None else module.bias
        return weight, _finite(self.where, "bias", bias)

    def _conv(self, input: Any, *, module: nn.Conv2d) -> _Value:
        value = self._activations(input)
        pieces = value.pieces
        _, height, width = self._spread(value)
        if module.in_channels != value.dims[0]:
            self._refuse(f"takes {module.in_channels} channels, but {value.dims[0]} arrive; fix the layer sizes")
        if type(module)._conv_forward is not nn.Conv2d._conv_forward:
            self._refuse(f"{type(module).__name__} convolves in a way of its own; use torch.nn.Conv2d")
        kernel, padding = _pair(module.kernel_size), self._padding(module)
        size = self._size(height, width, kernel, _pair(module.stride), padding)
        weight, bias = self._parameters(module)
        per_group, outputs = weight.shape[1], len(weight) // module.groups
        made = []
        low = 0
        for piece in pieces:
            high = low + piece.shape[0]
            if module.groups == 1:
                terms, shift = self._convolved(piece, module, weight[:, low:high], 1, padding)
                made.append((tuple(replace(term, columns=(range(low, high),)) for term in terms), shift))
            elif low % per_group or high % per_group:
                self._refuse(
                    f"groups of {per_group} channels cut through a concatenation of ({_parts(pieces)}); use groups that fit its parts"
                )
            else:
                groups = slice(low // per_group * outputs, high // per_group * outputs)
                terms, shift = self._convolved(piece, module, weight[groups], (high - low) // per_group, padding)
                made.append((terms, shift + bias[groups]))
            low = high
        if module.groups == 1:
            made = [(_joined(term for terms, _ in made for term in terms), bias + torch.stack([shift for _, shift in made]).sum(0))]
        done = tuple(_Piece(terms, shift[:, None, None], (len(shift), *size)) for terms, shift in made)
        return _Value(done, (len(weight), *size))

    def _convolved(
        self, piece: _Piece, module: nn.Conv2d, weight: Tensor, groups: int, padding: tuple[int, int]
    ) -> tuple[tuple[_Term, ...], Tensor]:
        """Terms and bias, (O,), of a convolution of ``piece``."""

        def by_weight(channels: Tensor) -> Tensor:  # (I, 1, 1) as (O, I // groups, 1, 1)
            return channels.reshape(groups, 1, -1).expand(-1, len(weight) // groups, -1).reshape(len(weight), -1, 1, 1)

        shift = piece.bias
        if padding != (0, 0) and shift.any():
            if any(term.source == IMAGE for term in piece.terms):
                self._refuse(
                    f"pads with zeros, but a pixel of 0 is {float(shift.flatten()[shift.flatten().abs().argmax()]):.3g} after the input "
                    "normalisation, so that the padded pixels are not raw zeros; use padding 0, or train with mean 0"
                )
            self._refuse(
                "pads with zeros what a BatchNorm or sum has shifted, which no bias can repeat; use padding 0 or normalise after it"
            )
        terms = tuple(
            self._placed(
                _Term(
                    term.source,
                    weight * by_weight(self._even(term.weight, "the scale of what it takes")),
                    self.where,
                    self.order,
                    _pair(module.stride),
                    padding,
                    groups,
                ),
                term.at,
            )
            for term in piece.terms
        )
        if not shift.any():
            return terms, torch.zeros(len(weight), dtype=torch.float64)
        return terms, (weight * by_weight(self._even(shift, "the bias of what it takes"))).sum((1, 2, 3))

    def _placed(self, term: _Term, taken: Tensor | None) -> _Term:
        """A convolution of what was ``taken`` of its source, (C, H, W), as one of the whole source that has zeros among its weights."""
        if taken is None:
            return term
        source = self.maps[term.source].shape
        channels = taken[:, 0, 0] // prod(source[1:])
        rows, columns = taken[0, :, 0] // source[2] % source[1], taken[0, 0] % source[2]
        if not torch.equal(taken, (channels[:, None, None] * source[1] + rows[:, None]) * source[2] + columns):
            self._refuse(f"convolves what was taken of {term.source} out of order; use slices along the channels, height and width alone")
        down, across = (
            self._along(term, axis, places, source[1 + axis], taken.shape[1 + axis]) for axis, places in enumerate((rows, columns))
        )
        outputs, per_group, room = len(term.weight), term.weight.shape[1], (source[0], down[1], across[1])
        group = torch.arange(outputs) // (outputs // term.groups)
        channels = channels[group[:, None] * per_group + torch.arange(per_group)] if term.groups > 1 else channels[None]
        at = (channels[:, :, None, None] * room[1] + down[0][:, None]) * room[2] + across[0]
        return replace(term, stride=(down[2], across[2]), padding=(down[3], across[3]), groups=1, at=at.flatten(1), room=room)

    def _along(self, term: _Term, axis: int, places: Tensor, size: int, taken: int) -> tuple[Tensor, int, int, int]:
        """Along one axis of a map of ``size``: where the weights are in a longer kernel, its length, stride and padding."""
        kernel, stride, padding = term.weight.shape[2 + axis], term.stride[axis], term.padding[axis]
        if torch.equal(places, torch.arange(size)):
            return torch.arange(kernel), kernel, stride, padding
        if padding:
            self._refuse(f"pads with zeros a slice of {term.source}, beside which there are none; use padding 0, or slice behind it")
        first, step = int(places[0]), int(places[1] - places[0]) if taken > 1 else 1
        if step < 1 or not torch.equal(places, first + step * torch.arange(taken)):
            self._refuse(f"convolves what was taken of {term.source} out of order; use slices along the channels, height and width alone")
        at, outputs = first + step * torch.arange(kernel), (taken - kernel) // stride + 1
        # The least kernel that is placed as often as the weights are along the slice
        return at, max(int(at[-1]) + 1, size + 1 - outputs * stride * step), stride * step, 0

    def _padding(self, module: nn.Conv2d) -> tuple[int, int]:
        kernel = _pair(module.kernel_size)
        if any(step != 1 and size != 1 for step, size in zip(_pair(module.dilation), kernel, strict=True)):
            self._refuse(f"dilation {module.dilation} cannot be converted; use dilation 1")
        if module.padding == "same" and not all(size % 2 for size in kernel):
            self._refuse(f"'same' padding of an even kernel {kernel} is not symmetric; use an odd kernel or a number")
        named = {"same": ((kernel[0] - 1) // 2, (kernel[1] - 1) // 2), "valid": (0, 0)}
        padding = named[module.padding] if isinstance(module.padding, str) else _pair(module.padding)
        if padding != (0, 0) and module.padding_mode != "zeros":
            self._refuse(f"padding_mode {module.padding_mode!r} cannot be converted; use zeros")
        return padding

    def _size(self, height: int, width: int, kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
        """Height and width of the output map."""
        if padding[0] >= kernel[0] or padding[1] >= kernel[1]:
            self._refuse(f"padding {padding} is not less than the kernel {kernel}; use less padding")
        sizes = [(of + 2 * p - k) // s + 1 for of, k, s, p in zip((height, width), kernel, stride, padding, strict=True)]
        if min(sizes) < 1:
            self._refuse(f"a kernel {kernel} does not fit a map of {height}x{width} with padding {padding}; use a smaller kernel")
        return sizes[0], sizes[1]

    def _linear(self, input: Any, *, module: nn.Linear) -> _Value:
        value = self._activations(input)
        pieces = value.pieces
        if len(value.dims) != 1:
            self._refuse(f"takes a flat tensor, but one of shape (N, {_sizes(value.dims)}) arrives; put Flatten before it")
        if module.in_features != value.dims[0]:
            if [term.source for piece in pieces for term in piece.terms] == [IMAGE]:
                self._refuse(
                    f"takes {module.in_features} inputs, an image of shape {self.input_shape} has {value.dims[0]}; "
                    "give the right input_shape"
                )
            self._refuse(f"takes {module.in_features} inputs, but {value.dims[0]} arrive; fix the layer sizes")
        weight, bias = self._parameters(module)
        terms: list[_Term] = []
        low = 0
        for piece in pieces:
            columns = range(low, low + prod(piece.shape))
            spread = weight[:, columns.start : columns.stop].reshape(-1, *piece.shape)
            low = columns.stop
            for term in piece.terms:
                at = None if term.at is None else term.at.reshape(1, -1)
                room = () if at is None else (prod(self.maps[term.source].shape),)
                scaled = (spread if (term.weight == 1).all() else spread * term.weight).flatten(1)
                terms.append(_Term(term.source, scaled, self.where, self.order, at=at, room=room, columns=(columns,)))
            if piece.bias.any():
                bias = bias + (spread * piece.bias).sum((1, 2, 3))
        return _Value((_Piece(_joined(terms), bias[:, None, None], (len(bias), 1, 1)),), (len(bias),))

    def _norm(self, input: Any, *, module: nn.BatchNorm1d | nn.BatchNorm2d) -> _Value:
        value = self._ended(input)
        kind = type(module).__name__
        if isinstance(module, nn.BatchNorm2d):
            self._spread(value)
        elif len(value.dims) != 1:
            self._refuse(f"{kind} takes a flat tensor, but one of shape (N, {_sizes(value.dims)}) arrives; use BatchNorm2d")
        if module.running_mean is None or module.running_var is None:
            self._refuse(f"{kind} keeps no running statistics; train it with track_running_stats=True")
        if module.num_features != value.dims[0]:
            self._refuse(f"{kind} of {module.num_features} features follows {value.dims[0]} outputs; fix the sizes")
        variance = _finite(self.where, "running_var", module.running_var) + module.eps
        if (variance <= 0).any():
            at = int(variance.argmin())
            self._refuse(f"running_var[{at}] is {float(module.running_var[at])}, with which it cannot normalise; train it again")
        gain = variance.rsqrt()
        shift = -_finite(self.where, "running_mean", module.running_mean)
        affine = module.weight is not None
        gain = gain * (_finite(self.where, "weight", module.weight) if affine else 1.0)
        beta = _finite(self.where, "bias", module.bias) if affine else torch.zeros_like(gain)
        pieces, low = [], 0
        for piece in value.pieces:
            flat = len(value.dims) == 1 and piece.shape[1:] != (1, 1)
            if flat and piece.follows:
                self._refuse(f"{kind} normalises every place of a flattened map by itself; use BatchNorm2d before Flatten")
            shape = piece.shape if flat else (piece.shape[0], 1, 1)
            part = slice(low, low + prod(shape))
            low = part.stop
            scaled = replace(piece, bias=piece.bias + shift[part].reshape(shape)).scaled(gain[part].reshape(shape))
            pieces.append(replace(scaled, bias=scaled.bias + beta[part].reshape(shape)))
        return replace(value, pieces=tuple(pieces))

    def _add(self, input: Any, other: Any, *, alpha: Any = 1) -> _Value:
        if alpha != 1:
            self._refuse(f"adds {alpha!r} times a tensor, which cannot be converted; add it once")
        value, added = (other, input) if isinstance(other, _Value) and not isinstance(input, _Value) else (input, other)
        value = self._ended(value)
        if isinstance(added, (int, float)) and not isinstance(added, bool):
            return replace(value, pieces=tuple(replace(piece, bias=piece.bias + added) for piece in value.pieces))
        added = self._ended(added)
        if value.dims != added.dims:
            self._refuse(f"adds tensors of shapes (N, {_sizes(value.dims)}) and (N, {_sizes(added.dims)}); give them one shape")
        if [piece.shape for piece in value.pieces] != [piece.shape for piece in added.pieces]:
            self._refuse(
                f"adds ({_parts(value.pieces)}) and ({_parts(added.pieces)}), which are put together differently; "
                "put an activation between them and Flatten or cat"
            )
        pieces = []
        for one, two in zip(value.pieces, added.pieces, strict=True):
            terms = list(one.terms)
            for term in two.terms:
                twin = next((at for at, of in enumerate(terms) if not (of.module or term.module) and _same_places(of, term)), None)
                if twin is None:
                    terms.append(term)
                else:
                    terms[twin] = replace(term, weight=terms[twin].weight + term.weight)
            pieces.append(replace(one, terms=tuple(terms), bias=one.bias + two.bias))
        return replace(value, pieces=tuple(pieces))

    def _cat(self, tensors: Any, dim: int = 0, *, axis: int | None = None) -> _Value:
        tensors = [self._ended(value) for value in tensors]
        dims = tensors[0].dims
        dim = dim if axis is None else axis
        if len(dims) not in (1, 3) or dim % (len(dims) + 1) != 1:
            self._refuse(f"concatenates along dimension {dim}, which cannot be converted; use dim=1, the channels")
        if any(value.dims[1:] != dims[1:] for value in tensors):
            self._refuse(f"concatenates {' and '.join(f'(N, {_sizes(value.dims)})' for value in tensors)}; give them one height and width")
        pieces = tuple(piece for value in tensors for piece in value.pieces)
        return _Value(pieces, (sum(value.dims[0] for value in tensors), *dims[1:]))

    # Shapes

    def _same(self, input: Any) -> Any:
        return input

    def _dropout(self, input: Any, p: float = 0.5, training: bool = True, inplace: bool = False) -> Any:
        if training:
            self._refuse("drops out in eval mode too; pass training=self.training")
        return input

    def _shape(self, method: str, input: Any, *args: Any, **kwargs: Any) -> Any:
        """What ``method`` of a tensor in that shape says: sizes as they are; a tensor, or several, of numbers of ``input`` as values."""
        if not isinstance(input, _Value):
            self._cannot()

        def said(tensor: Tensor, batch: int) -> Any:
            given = fx.node.map_aggregate((args, kwargs), lambda of: batch if type(of) is int and of == _BATCH else of)
            return getattr(tensor, method)(*given[0], **given[1])

        try:
            seen = said(torch.empty((_BATCH, *input.dims), device="meta"), _BATCH)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            raise CascError(
                f"{self.where}: {method.strip('_')} of a tensor of shape (N, {_sizes(input.dims)}) fails ({_line(error)}); fix it"
            ) from error
        single = isinstance(seen, Tensor)
        parts = [seen] if single else seen
        if not isinstance(parts, (tuple, list)) or not all(isinstance(part, Tensor) for part in parts):
            return seen
        whole = input.pieces[0].shape if len(input.pieces) == 1 else (input.dims[0], 1, 1)
        square = len(input.pieces) == 1 or all(piece.shape[1:] == (1, 1) for piece in input.pieces)
        if single and method in _RESHAPES and seen.shape[0] == _BATCH and input.places is None:
            dims = tuple(seen.shape[1:])
            if dims == input.dims or len(dims) == 1 or (dims == whole and square and not input.waiting):
                return replace(input, dims=dims)
        if input.places is None:
            input = self._ended(input)
        if follows := next((piece.follows for piece in input.pieces if piece.follows), ""):
            self._refuse(f"takes apart the sums of {follows}, which no activation ended; put ClipQuan or ReLU between")
        for part in parts:
            if part.ndim < 2 or part.shape[0] != _BATCH or 0 in part.shape:
                shown = _sizes(("N" if size == _BATCH else size) for size in part.shape)
                self._refuse(
                    f"{method.strip('_')} from (N, {_sizes(input.dims)}) to ({shown}) cannot be converted; leave the batch, N, as it is"
                )
        places = torch.arange(prod(input.dims)).reshape(input.dims) if input.places is None else input.places
        taken = said(places[None], 1)
        made = tuple(replace(input, dims=tuple(part.shape[1:]), places=part[0]) for part in ([taken] if single else taken))
        return made[0] if single else made

    def _taken(self, value: _Value, places: Tensor) -> _Value:
        """What is at ``places``, int64, of the numbers of ``value`` in order, in the shape of ``places``."""
        dims = tuple(places.shape)
        places = places.reshape(*dims[:2], *[1] * (3 - len(dims)), *([-1] if len(dims) > 2 else []))
        if int(places.flatten().bincount().max()) > 1:
            self._refuse("takes a number several times; take each once")
        ends = torch.tensor([prod(piece.shape) for piece in value.pieces]).cumsum(0)
        owner = torch.bucketize(places.contiguous(), ends, right=True)
        if not torch.equal(owner, owner[:, :1, :1].expand_as(owner)):
            self._refuse(f"mixes the parts of a concatenation ({_parts(value.pieces)}); put an activation behind the concatenation")
        pieces, low = [], 0
        for index, run in groupby(owner[:, 0, 0].tolist()):
            piece = value.pieces[index]
            high = low + len(list(run))
            local = places[low:high] - (int(ends[index]) - prod(piece.shape))
            low = high

            def of(tensor: Tensor, piece: _Piece = piece, local: Tensor = local) -> Tensor:
                return _uniform(tensor.expand(piece.shape).flatten()[local])

            terms = []
            for term in piece.terms:
                at = local if term.at is None else term.at.flatten()[local]
                shape = self.maps[term.source].shape
                all_of_it = at.shape == shape and torch.equal(at.flatten(), torch.arange(prod(shape)))
                terms.append(replace(term, weight=of(term.weight), at=None if all_of_it else at))
            pieces.append(_Piece(tuple(terms), of(piece.bias), _map_shape(local.shape)))
        return _Value(tuple(pieces), dims)

    def _attribute(self, input: Any, name: str) -> Any:
        if name not in ("shape", "ndim", "dtype", "device"):
            self._refuse(f"the attribute {name!r} of a tensor cannot be converted; {_CONVERTIBLE}")
        return getattr(torch.empty((_BATCH, *input.dims), device="meta"), name)

    # Pools

    def _window(self, value: _Value, kernel: Any, stride: Any, padding: Any, dilation: Any, ceil: bool) -> tuple[_Window, tuple[int, int]]:
        _, height, width = self._spread(value)
        window = _Window(self.where, _pair(kernel), _pair(kernel if stride is None or stride == () else stride), _pair(padding))
        if _pair(dilation) != (1, 1):
            self._refuse(f"dilation {dilation} cannot be converted; use dilation 1")
        size = self._size(height, width, window.kernel, window.stride, window.padding)
        if ceil and any(
            (of + 2 * p - k) % s for of, k, s, p in zip((height, width), window.kernel, window.stride, window.padding, strict=True)
        ):
            self._refuse("ceil_mode=True cannot be converted for this size; use ceil_mode=False")
        for piece in value.pieces:
            if any(term.source == IMAGE and not term.module for term in piece.terms):
                self._refuse("pools the image, but only what neurons emit can be pooled; shrink the images beforehand")
        return window, size

    def _max(
        self,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        dilation: Any = 1,
        ceil_mode: bool = False,
        return_indices: bool = False,
    ) -> _Value:
        if return_indices:
            self._refuse("return_indices=True cannot be converted; leave it out")
        value = self._tensor(input)
        window, size = self._window(value, kernel_size, stride, padding, dilation, ceil_mode)
        dims = (value.dims[0], *size)
        if window.kernel == window.stride == (1, 1):
            return value
        plain = all(len(piece.terms) == 1 and not piece.follows and (piece.terms[0].weight > 0).all() for piece in value.pieces)
        if value.waiting or not plain:
            return replace(value, dims=dims, waiting=(*value.waiting, window))
        return _Value(tuple(self._pooled_max(piece, window) for piece in value.pieces), dims)

    def _pooled_max(self, piece: _Piece, window: _Window) -> _Piece:
        (term,) = piece.terms
        if self.maps[term.source].averaged:
            self._refuse(
                f"takes the maximum of averages ({self.maps[term.source].made_by}), but needs single neurons; put ClipQuan between"
            )
        term = self._behind(term, self._pool("max", term.source, window))
        return replace(piece, terms=(term,), shape=(piece.shape[0], *self.maps[term.source].shape[1:]))

    def _average(
        self,
        input: Any,
        kernel_size: Any,
        stride: Any = None,
        padding: Any = 0,
        ceil_mode: bool = False,
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> _Value:
        value = self._ended(input)
        window, size = self._window(value, kernel_size, stride, padding, 1, ceil_mode)
        if window.padding != (0, 0) and not count_include_pad:
            self._refuse("count_include_pad=False cannot be converted with padding; use padding 0 or count_include_pad=True")
        if window.kernel == window.stride == (1, 1) and divisor_override in (None, 1):
            return value
        pooled: dict[str, str] = {}
        pieces = []
        for piece in value.pieces:
            if window.padding != (0, 0) and piece.bias.any():
                self._refuse("pads with zeros what a bias has shifted, which no bias can repeat; use padding 0")
            self._even(piece.bias, "the bias of what it averages")
            terms = []
            for term in piece.terms:
                if not term.pointwise:
                    self._refuse(f"averages the sums of {term.module}, which has no activation; put ClipQuan between")
                if not term.module:
                    self._even(term.weight, "the scale of what it averages")
                if term.source not in pooled:
                    if term.source == IMAGE:
                        self._refuse("pools the image, but only what neurons emit can be pooled; shrink the images beforehand")
                    pooled[term.source] = self._pool("average", term.source, window)
                terms.append(self._behind(term, pooled[term.source]))
            pieces.append(replace(piece, terms=tuple(terms), shape=(piece.shape[0], *size)))
        if divisor_override is not None:
            gain = torch.tensor(prod(window.kernel) / divisor_override, dtype=torch.float64)
            pieces = [piece.scaled(gain.expand(piece.shape[0], 1, 1)) for piece in pieces]
        return _Value(tuple(pieces), (value.dims[0], *size))

    def _adaptive(self, input: Any, output_size: Any) -> _Value:
        value = self._ended(input)
        sizes = self._spread(value)[1:]
        asked = [of if want is None else want for of, want in zip(sizes, _pair(output_size), strict=True)]
        if any(of % want for of, want in zip(sizes, asked, strict=True)):
            self._refuse(f"output size {tuple(asked)} does not divide the map of {sizes[0]}x{sizes[1]}; use 1 or a divisor")
        return self._average(value, tuple(of // want for of, want in zip(sizes, asked, strict=True)))

    def _mean(self, input: Any, dim: Any = None, keepdim: bool = False, *, dtype: Any = None) -> _Value:
        value = self._ended(input)
        height, width = self._spread(value)[1:]
        if dim is None or isinstance(dim, int) or sorted(of % 4 for of in dim) != [2, 3]:
            self._refuse(f"the mean over dimensions {dim} cannot be converted; use (2, 3), the whole map")
        done = self._average(value, (height, width))
        return done if keepdim else replace(done, dims=done.dims[:1])

    def _pool(self, kind: Literal["average", "max"], source: str, window: _Window) -> str:
        """A pool of ``source``, by its name."""
        of = self.maps[source]
        size = self._size(*of.shape[1:], window.kernel, window.stride, window.padding)
        name = self._unique(window.name)
        self.nodes.append(Pool(name, source, kind, window.kernel, window.stride, window.padding))
        unit = of.unit * prod(window.kernel) if kind == "average" else of.unit
        self.maps[name] = _Map((of.shape[0], *size), unit, of.depth, of.averaged or kind == "average", self.where)
        return name

    def _behind(self, term: _Term, pool: str) -> _Term:
        """``term`` of what ``pool`` makes of its source."""
        at = term.at
        if at is not None and not term.module:
            before, after = self.maps[term.source].shape, self.maps[pool].shape
            channels = at[:, :1, :1] // prod(before[1:])
            if not torch.equal(at, channels * prod(before[1:]) + torch.arange(prod(before[1:])).reshape(before[1:])):
                self._refuse(f"pools a part of the map of {term.source}; pool all of it, and slice behind")
            at = channels * prod(after[1:]) + torch.arange(prod(after[1:])).reshape(after[1:])
        return replace(term, source=pool, at=at)

    # Layers

    def _clip(self, input: Any, *, module: ClipQuan) -> _Value:
        scale = None if module.scale is None else _finite(self.where, "scale", module.scale)
        ones = None if scale is None else self._per_channel(self._tensor(input), scale)
        return self._activated(input, ones, threshold=module.threshold if isinstance(module, IntegrateAndFire) else None)

    def _relu(self, input: Any, inplace: bool = False) -> _Value:
        return self._activated(input, self._scale("ReLU", float("inf"), input), half=True)

    def _relu6(self, input: Any, inplace: bool = False) -> _Value:
        return self._activated(input, self._scale("ReLU6", 6.0, input), half=True)

    def _scale(self, kind: str, limit: float, input: Any) -> list[Tensor]:
        """What becomes 1.0 behind this activation, float64 (C, 1, 1) of each piece: a percentile of it for the calibration images."""
        if self.levels is None:
            self._refuse(f"{kind} says nothing of T; give levels (for example 16)")
        if self.run is None:
            self._refuse(f"{kind} needs its range measured; give calibration images")
        assert self.node is not None
        value, x = self._tensor(input), self.run.env[self.node.all_input_nodes[0]].clamp(min=0)

        def of(part: Tensor) -> float:
            rank = max(round(self.percentile * part.numel()), 1)
            return min(float(part.flatten().kthvalue(rank).values) or float(part.max()) or 1.0, limit)

        channels = [piece.shape[0] for piece in value.pieces]
        if self.per_channel:
            each = [prod(value.dims) // sum(channels) if value.waiting else prod(piece.shape[1:]) for piece in value.pieces]
            sizes = [size for count, size in zip(channels, each, strict=True) for _ in range(count)]
            scales = torch.tensor([of(part) for part in x.flatten(1).split(sizes, 1)], dtype=torch.float64)
            most = scales.repeat_interleave(torch.tensor(sizes)).reshape(x.shape[1:])
            self.run.env[self.node] = torch.minimum(x, most.to(x))
        else:
            scale = of(x)
            scales = torch.full((sum(channels),), scale, dtype=torch.float64)
            self.run.env[self.node] = x.clamp(max=scale)
        return [part[:, None, None] for part in torch.split(scales, channels)]

    def _activated(self, input: Any, ones: list[Tensor] | None, half: bool = False, threshold: Tensor | None = None) -> _Value:
        """An activation ends the sum of every piece in neurons, whose 1.0 is in ``ones`` (None: 1), (C, 1, 1) of each piece.

        ``threshold`` is of `IntegrateAndFire`.
        """
        value = self._tensor(input)
        pieces = []
        weights = ones or [torch.ones(piece.shape[0], 1, 1, dtype=torch.float64) for piece in value.pieces]
        for piece, theta, weight in zip(value.pieces, self._thresholds(value, threshold), weights, strict=True):
            if ones is not None:
                piece = piece.scaled(1 / weight)
            if half:
                # floor() loses half a level on average; half a level of bias gives it back (rate coding's usual correction)
                piece = replace(piece, bias=piece.bias + 0.5 / (self.levels or 1))
            name = self._layer(piece, readout=False, threshold=theta)
            self.ones[name] = weight
            self.scales[name] = float(weight[0]) if (weight == weight[0]).all() else weight.flatten().tolist()
            made = _Piece((_Term(name, weight),), torch.zeros_like(weight), piece.shape)
            for window in value.waiting:
                made = self._pooled_max(made, window)
            pieces.append(made)
            if self.node is not None:
                self.made.setdefault(self.node, []).append((name, made))
        return _Value(tuple(pieces), value.dims)

    def _per_channel(self, value: _Value, scale: Tensor) -> list[Tensor]:
        """``scale``, () or (channels,), as (C, 1, 1) for every piece of ``value``."""
        count, flat = value.dims[0], len(value.dims) == 1
        if scale.numel() not in (1, count):
            self._refuse(f"has scales for {scale.numel()} channels, but {count} arrive; fix the sizes")
        parts = torch.split(scale.reshape(-1).expand(count), [prod(piece.shape) if flat else piece.shape[0] for piece in value.pieces])
        shaped = [_uniform(part.reshape(piece.shape if flat else (-1, 1, 1))) for part, piece in zip(parts, value.pieces, strict=True)]
        if any(part.shape[1:] != (1, 1) for part in shaped):
            self._refuse("its scale differs within a channel, whose neurons share one; put it before Flatten, or use a single one")
        return shaped

    def _thresholds(self, value: _Value, threshold: Tensor | None) -> list[Tensor | None]:
        """(C, 1, 1) for every piece of ``value``."""
        if threshold is None:
            return [None] * len(value.pieces)
        self.whole = True
        count = sum(prod(piece.shape) for piece in value.pieces)
        if threshold.numel() not in (1, count):
            self._refuse(f"has thresholds for {threshold.numel()} neurons, but {count} values arrive; fix the shapes")
        parts = torch.split(threshold.double().reshape(-1).expand(count), [prod(piece.shape) for piece in value.pieces])
        shaped = [_uniform(part.reshape(piece.shape)) for part, piece in zip(parts, value.pieces, strict=True)]
        if any(part.shape[1:] != (1, 1) for part in shaped):
            self._refuse("its threshold differs within a channel, but neurons of a channel share one; use one per channel")
        return [part.expand(piece.shape[0], 1, 1) for part, piece in zip(shaped, value.pieces, strict=True)]

    def _readout(self, value: Any) -> None:
        if not isinstance(value, _Value):
            raise CascError(f"model: returns a {type(value).__name__}, not one tensor; return the read-out alone")
        (node,) = self.traced.graph.output_node().all_input_nodes
        self.where = _label(node)
        value = self._ended(value)
        if len(value.pieces) != 1:
            self._refuse("the network ends in a concatenation; end it with one Linear or Conv2d")
        (piece,) = value.pieces
        if not piece.follows:
            where = self.maps[piece.terms[-1].source].made_by
            raise CascError(f"{where}: the network ends in an activation or pool; end it with a Linear or Conv2d read-out")
        if not self.scales:
            raise CascError(f"{piece.follows}: no activation comes before it, so that nothing spikes; add a layer with ClipQuan")
        self._layer(piece, readout=True)

    def _layer(self, piece: _Piece, readout: bool, threshold: Tensor | None = None) -> str:
        """Round ``piece`` and make it a layer, by its name: that of the module on the longest way from the image."""
        deepest = max(piece.terms, key=lambda term: (bool(term.module), self.maps[term.source].depth, term.order))
        name = self._unique(deepest.module or self.where)
        sources = [term.source for term in piece.terms]
        for term in piece.terms:
            if term.at is not None and not term.module:
                self._refuse(f"a slice of {term.source} is added to the sum, or activated, without weights; put a Linear or Conv2d between")
        if IMAGE in sources:
            if self.image_layer:
                raise CascError(f"{name}: takes the image, which {self.image_layer} takes already; only the first layer may")
            if others := set(sources) - {IMAGE}:
                raise CascError(f"{name}: takes the image together with {sorted(others)[0]}; only the first layer may take the image")
            self.image_layer = name

        def parts(piece: _Piece) -> tuple[list[Tensor], Tensor]:
            weights = [term.weight if term.module else self._even(term.weight, "the scale")[..., None] for term in piece.terms]
            return weights, self._even(piece.bias, "the bias").flatten()

        bits = [self._bits(term.module) if term.module else None for term in piece.terms]
        units = [self.maps[source].unit for source in sources]
        rounded = _as_it_is(*parts(piece), bits, units, threshold) if self.whole else None
        weights, bias = parts(piece if threshold is None else piece.scaled(1 / threshold))
        rounded = rounded or round_layer(name, weights, bias, bits, units, readout=readout)
        synapses, errors, floats = [], [], []
        for term, weight, width, unit, integers in zip(piece.terms, weights, bits, units, rounded.weights, strict=True):
            one = rounded.one.reshape(-1, *[1] * (weight.ndim - 1))
            off = integers.double().mul_(unit).div_(one).sub_(weight)
            errors.append(float(off.norm() / weight.norm().clamp(min=1e-30)))
            width = int(integers.abs().max()).bit_length() + 1 if width is None else width
            groups = term.groups if term.module else piece.shape[0]
            synapses.append(Synapses(term.source, term.reaching(integers), width, term.stride, term.padding, groups))
            floats.append(replace(synapses[-1], weight=term.reaching(weight / unit)))
        self.errors[name] = max(errors)
        self.nodes.append(Layer(name, tuple(synapses), rounded.bias, rounded.threshold, rounded.scale))
        self.unrounded[name] = Layer(name, tuple(floats), bias, None if readout else torch.ones_like(bias), 1.0 if readout else None)
        depth = 1 + max(self.maps[source].depth for source in sources)
        self.maps[name] = _Map(piece.shape, 1, depth, False, self.where)
        return name

    def _bits(self, module: str) -> int:
        width = self.bits.get(module, 8) if isinstance(self.bits, Mapping) else self.bits
        if width not in WEIGHT_BITS:
            raise CascError(f"{module}: {width!r}-bit weights; use one of {', '.join(map(str, WEIGHT_BITS))}")
        return width

    def _unique(self, name: str) -> str:
        """``name``, as a node may be called, and as no other is."""
        name = "".join(letter if letter.isprintable() else "_" for letter in name)[-64:]
        unique, count = name, 1
        while unique in self.maps:
            count += 1
            unique = f"{name[: 63 - len(str(count))]}.{count}"
        return unique


def _reshaper(method: str) -> Callable[..., Any]:
    return lambda walk, input, *args, **kwargs: walk._shape(method, input, *args, **kwargs)


_RESHAPES = ("view", "reshape", "flatten", "squeeze", "unsqueeze")
"""Methods that leave the order of the numbers as it is."""
_TAKES = ("select", "narrow", "unbind", "chunk", "split", "tensor_split", "transpose", "swapaxes", "permute", "movedim")
"""Methods that take some of the numbers, or take them in another order."""
_HANDLERS: dict[Any, Callable[..., Any]] = {
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, "relu", "relu_"), _Walk._relu),
    F.relu6: _Walk._relu6,
    **dict.fromkeys((operator.add, operator.iadd, torch.add, "add", "add_"), _Walk._add),
    **dict.fromkeys((torch.cat, torch.concat, torch.concatenate), _Walk._cat),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d), _Walk._max),
    F.avg_pool2d: _Walk._average,
    F.adaptive_avg_pool2d: _Walk._adaptive,
    **dict.fromkeys((torch.mean, "mean"), _Walk._mean),
    **dict.fromkeys((F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout), _Walk._dropout),
    "contiguous": _Walk._same,
    getattr: _Walk._attribute,
    operator.getitem: _reshaper("__getitem__"),
    **{method: _reshaper(method) for method in (*_RESHAPES, *_TAKES, "size", "dim")},
    **{getattr(torch, method): _reshaper(method) for method in (*_RESHAPES[1:], *_TAKES)},
}
"""By the function, or the name of the method of a tensor."""
_POOLS: dict[type[nn.Module], tuple[Callable[..., Any], tuple[str, ...]]] = {
    nn.MaxPool2d: (_Walk._max, ("kernel_size", "stride", "padding", "dilation", "ceil_mode", "return_indices")),
    nn.AvgPool2d: (_Walk._average, ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")),
    nn.AdaptiveAvgPool2d: (_Walk._adaptive, ("output_size",)),
}
"""Handler, and the module's attributes that are its parameters."""
_LOOKS = ("size", "dim", getattr)
"""Operations that only ask for a tensor's shape."""
_VIEWS = (
    *("contiguous", operator.getitem, *_RESHAPES, *_TAKES),
    *(getattr(torch, method) for method in (*_RESHAPES[1:], *_TAKES)),
)
"""Operations whose result may share its numbers with what they take."""


class _Compared(fx.Interpreter):
    """Runs the float network, and compares what its activations emit with the counts of the integer network."""

    def __init__(self, walk: _Walk, net: IntegerNet):
        super().__init__(walk.traced)
        self.walk, self.net, self.same = walk, net, 0
        self.counts: tuple[Tensor, ...] = ()
        self.squares = {layer.name: torch.zeros(4, dtype=torch.float64) for layer in net.spiking}
        """Per layer, of the sums of the squares: the error, what is clipped of it, the rest, and the float activations."""

    def compare(self, images: Tensor, pixels: Tensor) -> None:
        answer = quantised_ann(self.net, pixels)
        self.counts = answer.counts
        self.same += int((answer.classes == _classes(self.net, self.run(images))).sum())

    def run_node(self, n: fx.Node) -> Any:
        emitted = super().run_node(n)
        low = 0
        for name, piece in self.walk.made.get(n, ()):
            (term,) = piece.terms
            high = low + prod(piece.shape)
            wanted = emitted.flatten(1)[:, low:high].double().cpu().reshape(-1, *piece.shape)
            got = events_of(self.net, term.source, self.counts) / self.net.levels * term.weight
            most = torch.minimum(wanted, term.weight)
            self.squares[name] += torch.stack([part.square().sum() for part in (got - wanted, most - wanted, got - most, wanted)])
            low = high
        return emitted

    def losses(self) -> dict[str, Loss]:
        norms = {name: squares.sqrt() for name, squares in self.squares.items()}
        return {name: Loss(*torch.where(of[:3] > 0, of[:3] / of[3], 0.0).tolist()) for name, of in norms.items()}


# --- tracing ----------------------------------------------------------------------------------------------------------


class _Tracer(fx.Tracer):
    """Looks into everything but the modules of torch.nn and ClipQuan, and those that only inherit their forward."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return type(m).forward.__module__.startswith(("torch.nn.", ClipQuan.__module__)) and not isinstance(m, nn.Sequential)


def _trace(model: nn.Module) -> fx.GraphModule:
    """The graph of ``model`` without its dead branches; CascError if it has none, or in-place operations that it hides."""
    tracer = _Tracer()
    if tracer.is_leaf_module(model, ""):
        model = nn.Sequential(model)
    try:
        graph = tracer.trace(model)
        traced = fx.GraphModule(model, graph)
    except Exception as error:  # the forward is the user's own code
        raise CascError(
            f"model: torch.fx cannot trace its forward ({_line(error)}); write it without control flow that depends on tensors"
        ) from error
    images = graph.find_nodes(op="placeholder")
    if len([node for node in images if node.users or not node.args]) != 1:
        raise CascError(f"model: its forward takes {len(images)} inputs ({', '.join(map(str, images))}); give it one, the image")
    _check_in_place(traced)
    for node in reversed(list(graph.nodes)):
        if not node.users and node.op != "output" and not (node.op == "placeholder" and not node.args):
            graph.erase_node(node)
    traced.recompile()
    return traced


def _label(node: fx.Node) -> str:
    """What a user knows a node by: the module's name, or the graph's."""
    return str(node.target) if node.op == "call_module" else node.name


def _target(node: fx.Node) -> Any:
    """The function, or the name of the method, that a node calls; None if it calls none."""
    return node.target if node.op in ("call_function", "call_method") else None


def _check_in_place(traced: fx.GraphModule) -> None:
    """CascError where an operation works in place on a tensor that others use too: the graph would not show what they see."""
    origin: dict[fx.Node, fx.Node] = {}
    for node in traced.graph.nodes:
        operand = node.all_input_nodes[0] if node.all_input_nodes else node
        module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
        target = _target(node)
        views = isinstance(module, (*_DROPOUTS, nn.Identity, nn.Flatten)) or _HANDLERS.get(target) is _Walk._dropout
        inside = getattr(module, "inplace", False) or node.kwargs.get("inplace") or target in (operator.iadd, torch.relu_)
        inside = not views and (inside or (isinstance(target, str) and target.endswith("_")))
        if inside:
            same = [other for other, of in origin.items() if of is origin[operand]]
            for user in (user for other in same for user in other.users if user not in same):
                if user is not node and _target(user) not in _LOOKS:
                    raise CascError(f"{_label(node)}: works in place on a tensor that {_label(user)} uses too; make it inplace=False")
        origin[node] = origin[operand] if operand is not node and (inside or views or target in _VIEWS) else node


def _check_trace(model: nn.Module, traced: fx.GraphModule, images: Tensor) -> None:
    """CascError unless the graph answers as the model does."""
    try:
        wanted = model(images.clone())
    except Exception as error:  # the forward is the user's own code
        raise CascError(f"model: fails on a batch of shape {tuple(images.shape)} ({_line(error)}); fix the model or input_shape") from error
    if not torch.allclose(wanted, traced(images.clone()), rtol=1e-3, atol=1e-3 * float(wanted.abs().max()), equal_nan=True):
        raise CascError(
            "model: its torch.fx graph gives another answer than its forward; write `x = x + y` for `x += y`, and no other tricks"
        )


def _is_relu(traced: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return isinstance(traced.get_submodule(str(node.target)), _RELUS)
    return _HANDLERS.get(_target(node)) in (_Walk._relu, _Walk._relu6)


def _levels(traced: fx.GraphModule, levels: int | None) -> int | None:
    """T: the same in every ClipQuan; ``levels`` where there is none."""
    found = {}
    for node in traced.graph.find_nodes(op="call_module"):
        if isinstance(module := traced.get_submodule(str(node.target)), ClipQuan):
            found[str(node.target)] = module.levels
    for name, value in found.items():
        first = next(iter(found))
        if value != found[first]:
            raise CascError(f"{name}: {value} levels, but {first} has {found[first]}; T must be one for the network")
        if levels is not None and value != levels:
            raise CascError(f"{name}: {value} levels, but levels={levels} was asked for; leave it out")
    if found:
        return next(iter(found.values()))
    if levels is not None and (not isinstance(levels, int) or isinstance(levels, bool) or not 1 <= levels <= MAX_LEVELS):
        raise CascError(f"levels: {levels!r} is not an integer from 1 to {MAX_LEVELS}; 16 is usual for ReLU")
    return levels


def _seen(traced: fx.GraphModule, input_shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape in which the model takes an image: (1, H, W) for (H, W) before a Conv2d, flat before a Linear."""
    rest = list(traced.graph.find_nodes(op="placeholder"))
    while rest:
        for user in rest.pop().users:
            module = traced.get_submodule(str(user.target)) if user.op == "call_module" else None
            if isinstance(module, (*_DROPOUTS, nn.Identity)):
                rest.append(user)
            elif isinstance(module, (nn.Conv2d, nn.BatchNorm2d)) and len(input_shape) == 2:
                return (1, *input_shape)
            elif isinstance(module, (nn.Linear, nn.BatchNorm1d)):
                return (prod(input_shape),)
    return input_shape


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """``model`` in eval mode, and afterwards as it was."""
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, was in training.items():
            module.training = was


def _classes(net: IntegerNet, output: Tensor) -> Tensor:
    """The index of the largest output, in the order in which sums leave the chip: channel innermost."""
    return to_wire(output.flatten(1), net.shapes[net.readout.name]).argmax(1).cpu()


def _map_shape(shape: Sequence[int]) -> MapShape:
    """(C, H, W) of an image."""
    if len(shape) == 3:
        return shape[0], shape[1], shape[2]
    return (1, shape[0], shape[1]) if len(shape) == 2 else (prod(shape), 1, 1)


def _uniform(part: Tensor) -> Tensor:
    """(C, 1, 1) of (C, H, W), if it is the same over the map."""
    return part[:, :1, :1] if (part == part[:, :1, :1]).all() else part


def _pair(value: Any) -> tuple[int, int]:
    pair = (value, value) if isinstance(value, int) or value is None else tuple(value) * (1 if len(value) > 1 else 2)
    return pair[0], pair[1]


def _joined(terms: Iterable[_Term]) -> tuple[_Term, ...]:
    """``terms`` of one module, fewer where several take other parts of one source."""
    done: list[_Term] = []
    for term in terms:
        for index, other in enumerate(done):
            if other.at is None or term.at is None or (other.source, other.groups) != (term.source, term.groups):
                continue
            if (other.stride, other.padding, other.room) != (term.stride, term.padding, term.room):
                continue
            at = torch.cat([of.at.expand(max(len(other.at), len(term.at)), -1) for of in (other, term) if of.at is not None], 1)
            if all(int(row.bincount().max()) == 1 for row in at):
                weight, columns = torch.cat([other.weight, term.weight], 1), other.columns + term.columns
                done[index] = replace(other, weight=weight, at=at, columns=columns)
                break
        else:
            done.append(term)
    return tuple(done)


def _same_places(one: _Term, two: _Term) -> bool:
    """Whether two identities take the same of one source."""
    return one.source == two.source and (one.at is two.at or (one.at is not None and two.at is not None and torch.equal(one.at, two.at)))


def _sizes(dims: Any) -> str:
    return ", ".join(map(str, dims))


def _parts(pieces: Sequence[_Piece]) -> str:
    return " + ".join("x".join(map(str, piece.shape)) for piece in pieces)


def _line(error: Exception) -> str:
    """The first line of what ``error`` says."""
    return str(error).strip().splitlines()[0].rstrip(".;")[:200] if str(error).strip() else type(error).__name__


def _check_parameters(model: nn.Module) -> None:
    """CascError unless the parameters and buffers of ``model`` are there, and real."""
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if is_lazy(tensor):
            raise CascError(f"{name}: has no shape yet; run the model once, and train it")
        if tensor.is_meta:
            raise CascError(f"{name}: is on the meta device, without numbers; load the weights")
        if tensor.is_complex():
            raise CascError(f"{name}: is complex ({tensor.dtype}); use real weights")


def _finite(name: str, field: str, tensor: Tensor) -> Tensor:
    finite = torch.isfinite(tensor.detach())
    if not finite.all():
        at = tuple((~finite).nonzero()[0].tolist())
        raise CascError(f"{name}: {field}{list(at)} is {tensor[at].item()}; train it again from a checkpoint without NaN")
    return tensor.detach().to(torch.float64).cpu()


def _normalisation(mean: float | Sequence[float], std: float | Sequence[float], shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """Per input, float64: offset and gain with ``(x - mean) / std = gain * x + offset``."""

    def spread(what: str, value: float | Sequence[float]) -> Tensor:
        tensor = torch.as_tensor(value, dtype=torch.float64)
        if not torch.isfinite(tensor).all():
            raise CascError(f"{what}: {value!r} is not finite; give the normalisation the network was trained with")
        if tensor.ndim == 0 or tensor.shape == (1,):
            return tensor.expand(prod(shape))
        if tensor.ndim != 1 or not shape or len(tensor) != shape[0]:
            raise CascError(f"{what}: {tuple(tensor.shape)} values for images of shape {shape}; give one, or one per channel")
        return tensor.repeat_interleave(prod(shape) // shape[0])

    deviation = spread("std", std)
    if (deviation <= 0).any():
        raise CascError(f"std: {std!r} is not positive; give the normalisation the network was trained with")
    return 0 - spread("mean", mean) / deviation, 1 / deviation
