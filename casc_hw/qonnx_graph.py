"""QONNX graphs in (https://github.com/fastmachinelearning/qonnx): networks of quantised weights and uniform activations, taken as they are.

An activation that QONNX gives as ``s * clip(round(x / s), 0, T)`` is CASC's count of spikes. Nothing is rounded here: x is a sum of
integers in units of a real number (scale of the weights times that of what they take), plus a bias, so that a count of k or more begins
at some integer ``K[k]`` of that sum, computed in rational arithmetic from the scales as the file has them. Neurons begin it where

    m * sum + T * bias >= k * threshold,      m: what the layer's integer weights are multiplied by

and a layer is taken if integers m, bias and threshold put that at ``K[k]`` for every k that any sum can reach, with weights of at most
8 bits. Scales that are powers of two always do. A bias that is no multiple of T / m may come from a map of neurons that count 1.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from math import prod
from typing import Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from casc_hw.errors import CascError
from casc_hw.network import (
    IMAGE,
    MAX_LEVELS,
    MAX_MAP,
    MAX_PIXEL,
    MAX_SUM,
    SHORTCUT_BITS,
    WEIGHT_BITS,
    IntegerNet,
    Layer,
    MapShape,
    Pool,
    Synapses,
)

MAX_BYTES = 1 << 30
_MAX_MULTIPLE = 256
"""The most that weights are multiplied by: more than any T."""
_MAX_TERMS = 256
"""The most sums in one tensor, so that a file that doubles them over and over does not take all memory."""
_KNOWN = "use Quant, Conv, Gemm, MatMul, Add, BatchNormalization, Relu, MaxPool, AveragePool, GlobalAveragePool, Flatten or Concat"
_HALF = Fraction(1, 2)
_FAR = np.int64(1) << 61
"""Beyond every sum."""
_ROUNDINGS: dict[str, tuple[Fraction, Callable[[int], bool]]] = {
    **dict.fromkeys(("ROUND", "HALF_EVEN"), (_HALF, lambda k: k % 2 == 0)),
    "HALF_UP": (_HALF, lambda k: True),
    "HALF_DOWN": (_HALF, lambda k: False),
    **dict.fromkeys(("FLOOR", "DOWN"), (Fraction(0), lambda k: True)),
    **dict.fromkeys(("CEIL", "UP"), (Fraction(1), lambda k: False)),
}
"""By rounding_mode: k begins at ``x / s = k - first``, there included or not. Nothing below 0 matters."""


def from_qonnx(model: Any, *, input_shape: Sequence[int] | None = None, input_max: int | None = None, name: str = "net") -> IntegerNet:
    """The integer network of a QONNX graph: its counts times the scales are the graph's activations, its sums the logits.

    Parameters
    ----------
    model: an ``onnx.ModelProto``, or the path of its file; of the nodes Quant (weights: signed, zero point 0; activations: from 0), Conv,
        Gemm, MatMul, Add, BatchNormalization, Relu, MaxPool, AveragePool, GlobalAveragePool, ReduceMean over the map, Concat of channels,
        Flatten, Reshape, Transpose of weights, Dropout, Identity. The gain of a BatchNormalization is taken as the nearest float64.
    input_shape: of one image, without the batch; needed where the graph leaves it open.
    input_max: the largest pixel. Where the input goes through a Quant, pixel p stands for ``p * scale`` and this is at most its largest
        integer, the default; elsewhere p stands for ``p / input_max``, and 255 is the default.
    name: of the network.

    Raises
    ------
    CascError: a node that cannot be represented exactly, by its name.
    """
    onnx = _package()
    if isinstance(model, (str, os.PathLike)):
        model = _read(onnx, model)
    if not isinstance(model, onnx.ModelProto):
        raise CascError(f"model: is a {type(model).__name__}, not an onnx.ModelProto; give a model or the path of its file")
    if input_max is not None and (not isinstance(input_max, int) or isinstance(input_max, bool) or not 1 <= input_max <= MAX_PIXEL):
        raise CascError(f"input_max: {input_max!r} is not an integer from 1 to {MAX_PIXEL}; use 8-bit pixels or fewer")
    return _Walk(onnx, model.graph, input_shape, input_max).net(name)


def _package() -> Any:
    try:
        import onnx
    except ImportError as error:
        raise CascError("onnx: the package cannot be imported; install it with `pip install onnx`") from error
    return onnx


def _read(onnx: Any, path: str | os.PathLike[str]) -> Any:
    if not os.path.isfile(path):
        raise CascError(f"{path}: there is no such file; check the name")
    if (size := os.path.getsize(path)) > MAX_BYTES:
        raise CascError(f"{path}: {size} bytes, the most is {MAX_BYTES}; this is not a network for a small FPGA")
    from google.protobuf.message import DecodeError

    try:
        with open(path, "rb") as file:
            model = onnx.ModelProto.FromString(file.read())
    except (DecodeError, RecursionError, ValueError) as error:
        raise CascError(f"{path}: not an ONNX model ({error}); export one, for example with brevitas.export.export_qonnx") from error
    if not model.graph.node:
        raise CascError(f"{path}: holds no graph; export a model, for example with brevitas.export.export_qonnx")
    return model


@dataclass(frozen=True)
class _Constant:
    """``integers * scale``; a float tensor has integers None, and is all in ``scale``. ``scale`` has as many dimensions."""

    integers: Any
    scale: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.scale.shape if self.integers is None else self.integers.shape)

    def fractions(self) -> list[Fraction]:
        """Its values, exactly, flattened."""
        scale = np.broadcast_to(self.scale, self.shape).flatten().tolist()
        if self.integers is None:
            return [Fraction(value) for value in scale]
        return [Fraction(unit) * value for unit, value in zip(scale, self.integers.flatten().tolist(), strict=True)]


@dataclass(frozen=True)
class _Term:
    """``unit`` of the channel times integer synapses of what ``source`` emits; an identity, of no ``module``, weighs (C, 1, 1, 1) ones."""

    source: str
    weight: Tensor
    units: tuple[Fraction, ...]
    module: str = ""
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1


@dataclass(frozen=True)
class _Piece:
    """Channels of a value: the sum of ``terms``, plus ``bias`` per channel; ``shape`` is (C, H, W)."""

    terms: tuple[_Term, ...]
    bias: tuple[Fraction, ...]
    shape: MapShape

    def scaled(self, gains: Sequence[Fraction], shifts: Sequence[Fraction]) -> _Piece:
        terms = tuple(replace(term, units=tuple(map(Fraction.__mul__, term.units, gains))) for term in self.terms)
        return replace(self, terms=terms, bias=tuple(b * gain + shift for b, gain, shift in zip(self.bias, gains, shifts, strict=True)))

    @property
    def follows(self) -> str:
        """The node whose weights are in it; empty if none's."""
        return next((term.module for term in self.terms if term.module), "")

    @property
    def plain(self) -> bool:
        """Whether it is what one node emits, times a positive number."""
        return len(self.terms) == 1 and not self.follows and not any(self.bias) and min(self.terms[0].units) > 0


@dataclass(frozen=True)
class _Value:
    """A tensor: ``pieces`` along the channels; ``dims`` is its shape without the batch; ``relu``: negative ones are still to become 0."""

    pieces: tuple[_Piece, ...]
    dims: tuple[int, ...]
    relu: bool = False


class _Walk:
    """Visits the graph's nodes in order and leaves ``nodes`` of an `IntegerNet`."""

    def __init__(self, onnx: Any, graph: Any, input_shape: Sequence[int] | None, input_max: int | None):
        self.onnx, self.graph = onnx, graph
        self.asked_max, self.input_max = input_max, input_max or MAX_PIXEL
        self.levels = 0
        self.where = ""
        self.nodes: list[Layer | Pool] = []
        self.spans: dict[str, int] = {}
        """By the name of a node, the most that one place of it counts per level."""
        self.values: dict[str, Any] = {}
        for tensor in graph.initializer:
            self.where = tensor.name
            self.values[tensor.name] = self._array(tensor)
        images = [tensor for tensor in graph.input if tensor.name not in self.values]
        if len(images) != 1 or len(graph.output) != 1:
            raise CascError(f"graph: has {len(images)} inputs and {len(graph.output)} outputs; give it one image and one result")
        self.image, self.result = images[0].name, graph.output[0].name
        sizes = [size.dim_value for size in images[0].type.tensor_type.shape.dim][1:] if input_shape is None else list(input_shape)
        if not all(isinstance(size, int) and size > 0 for size in sizes) or len(sizes) not in (1, 3) or prod(sizes) > MAX_MAP:
            raise CascError(f"{self.image}: an image of shape ({', '.join(map(str, sizes))}); give input_shape, (C, H, W) or one size")
        self.input_shape = tuple(sizes)
        shape = (sizes[0], sizes[1], sizes[2]) if len(sizes) == 3 else (sizes[0], 1, 1)
        self.raw = self.values[self.image] = self._emitted(IMAGE, shape, Fraction(1, self.input_max), self.input_shape)

    def net(self, name: str) -> IntegerNet:
        needed = {self.result}
        wanted = []
        for node in reversed(self.graph.node):
            if needed & set(node.output):
                wanted.append(node)
                needed |= set(node.input)
        for node in reversed(wanted):
            self.where = node.name or f"{node.op_type} {node.output[0]}"
            self.values[node.output[0]] = self._guarded(self._visit, node)
        self.where = self.result
        self._guarded(self._readout, self.values.get(self.result))
        levels = self.levels or 1
        return IntegerNet(name, levels, levels, None, self.input_shape, self.input_max, tuple(self.nodes))

    def _guarded(self, do: Callable[[Any], Any], of: Any) -> Any:
        """What ``do`` makes of ``of``; CascError where damaged sizes or numbers make it fail."""
        try:
            done = do(of)
        except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError, MemoryError) as error:
            raise CascError(f"{self.where}: its sizes or numbers make no sense ({_line(error)}); export it again") from error
        if isinstance(done, _Value) and sum(len(piece.terms) for piece in done.pieces) > _MAX_TERMS:
            self._refuse(f"adds or concatenates more than {_MAX_TERMS} sums; use fewer")
        return done

    def _visit(self, node: Any) -> Any:
        handler = _HANDLERS.get(node.op_type)
        standard = node.domain in ("", "ai.onnx") or node.op_type in _QUANTS
        if handler is None or not standard:
            if node.op_type in ("Softmax", "LogSoftmax", "ArgMax", "TopK"):
                self._refuse(f"{node.op_type} cannot be converted; leave it to the host, the largest sum stays the largest")
            self._refuse(f"{node.op_type} cannot be converted; {_KNOWN}")
        inputs = []
        for of in node.input:
            if of and of not in self.values:
                self._refuse(f"takes {of!r}, which nothing before it makes; export the graph again")
            inputs.append(self.values[of] if of else None)
        return handler(self, inputs, self._attributes(node))

    def _attributes(self, node: Any) -> dict[str, Any]:
        plain = {self.onnx.AttributeProto.INT: "i", self.onnx.AttributeProto.FLOAT: "f", self.onnx.AttributeProto.INTS: "ints"}
        found: dict[str, Any] = {}
        for attribute in node.attribute:
            if attribute.type in plain:
                value = getattr(attribute, plain[attribute.type])
                found[attribute.name] = list(value) if attribute.type == self.onnx.AttributeProto.INTS else value
            elif attribute.type == self.onnx.AttributeProto.STRING:
                found[attribute.name] = attribute.s.decode()
            elif attribute.type == self.onnx.AttributeProto.TENSOR:
                found[attribute.name] = self._array(attribute.t)
        return found

    def _array(self, tensor: Any) -> _Constant:
        if tensor.data_location == self.onnx.TensorProto.EXTERNAL:
            self._refuse(f"the numbers of {tensor.name!r} are in another file, which is not read; save the model in one file")
        try:
            array = np.asarray(self.onnx.numpy_helper.to_array(tensor))
            values = array.astype(np.float64)
        except (TypeError, ValueError, KeyError, RuntimeError, MemoryError, AttributeError) as error:
            raise CascError(f"{self.where}: the tensor {tensor.name!r} is damaged ({error}); export it again") from error
        if not np.isfinite(values).all():
            self._refuse(f"the tensor {tensor.name!r} holds {values[~np.isfinite(values)][0]}; train it again")
        return _Constant(None, values)

    def _refuse(self, what: str) -> NoReturn:
        raise CascError(f"{self.where}: {what}")

    def _emitted(self, source: str, shape: MapShape, unit: Fraction, dims: tuple[int, ...]) -> _Value:
        """What ``source`` emits, times ``unit``."""
        ones = torch.ones(shape[0], 1, 1, 1, dtype=torch.int64)
        term = _Term(source, ones, (unit,) * shape[0], groups=shape[0])
        return _Value((_Piece((term,), (Fraction(0),) * shape[0], shape),), dims)

    # What nodes are given

    def _value(self, value: Any) -> _Value:
        if not isinstance(value, _Value):
            self._refuse("takes a constant where it should take what comes from the image; export the graph with constants folded")
        return value

    def _constant(self, value: Any, what: str) -> _Constant:
        if not isinstance(value, _Constant):
            self._refuse(f"its {what} is no constant; export the graph with constants folded")
        return value

    def _number(self, value: Any, what: str) -> float:
        values = self._constant(value, what).scale
        if values.size < 1 or (values != values.flat[0]).any():
            self._refuse(f"its {what} is {values.size} different numbers; use one")
        return float(values.flat[0])

    def _whole(self, value: Any, what: str) -> list[int]:
        return [int(size) for size in self._constant(value, what).scale.flatten()]

    def _activations(self, given: Any, padded: bool = False) -> _Value:
        """What a convolution, pool or Gemm takes: multiples of what nodes emit."""
        value = self._linear(given)
        for piece in value.pieces:
            if piece.follows:
                self._refuse(f"follows {piece.follows} with no quantised activation between; put an unsigned Quant behind {piece.follows}")
            if padded and any(piece.bias):
                self._refuse("pads with zeros what a constant has shifted, which no bias can repeat; use padding 0")
        return value

    # Quantisers

    def _quant(self, inputs: list[Any], attributes: dict[str, Any]) -> Any:
        x, scale, zero, width = inputs
        bits = self._number(width, "bit width")
        if bits not in range(1, 33):
            self._refuse(f"has a width of {bits:g} bits; use 2 to 8")
        if self._number(zero, "zero point"):
            self._refuse(f"has a zero point of {self._number(zero, 'zero point'):g}; use a quantiser without one")
        if (self._constant(scale, "scale").scale <= 0).any():
            self._refuse("has a scale that is not above 0; export it again")
        mode = str(attributes.get("rounding_mode", "ROUND")).upper()
        if mode not in _ROUNDINGS:
            self._refuse(f"rounds by {mode[:40]!r}; use one of {', '.join(_ROUNDINGS)}")
        signed, narrow = bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0))
        top = (1 << int(bits) - signed) - 1 - (narrow and not signed)
        bottom = -top - (not narrow) if signed else 0
        if isinstance(x, _Constant):
            return self._quantised(x, scale.scale, bottom, top, mode)
        value, unit = self._value(x), Fraction(self._number(scale, "scale"))
        if value.pieces is self.raw.pieces:
            return replace(self._image(unit, top), dims=value.dims)
        if all(piece.plain and set(piece.terms[0].units) == {unit} and self._top(piece) <= top for piece in value.pieces):
            return value  # it is quantised like this already
        if signed and not value.relu:
            self._refuse("is an activation from below 0, but a count of spikes begins at 0; use an unsigned quantiser, or Relu before it")
        if self.levels not in (0, top):
            self._refuse(f"has {top} levels, but an activation before it has {self.levels}; T must be one for the network")
        if not 1 <= top <= MAX_LEVELS:
            self._refuse(f"has {top} levels; use 1 to {MAX_LEVELS}, that is 8 bits or fewer")
        self.levels = top
        pieces: list[_Piece] = []
        for piece in value.pieces:
            made = self._neurons(piece, unit, mode)
            pieces += self._emitted(made, piece.shape, unit, ()).pieces
        return _Value(tuple(pieces), value.dims)

    def _quantised(self, x: _Constant, scale: Any, bottom: int, top: int, mode: str) -> _Constant:
        """In float32, as the network was trained."""
        if x.integers is not None:
            self._refuse("quantises what is quantised already; use one Quant")
        scale = scale.reshape((1,) * (x.scale.ndim - scale.ndim) + scale.shape if scale.size > 1 else (1,) * x.scale.ndim)
        steps = (x.scale.astype(np.float32) / scale.astype(np.float32)).clip(bottom, top)
        size = np.abs(steps)
        rounded = {
            **dict.fromkeys(("ROUND", "HALF_EVEN"), np.round(steps)),
            "FLOOR": np.floor(steps),
            "CEIL": np.ceil(steps),
            "DOWN": np.trunc(steps),
            "UP": np.sign(steps) * np.ceil(size),
            "HALF_UP": np.sign(steps) * np.floor(size + 0.5),
            "HALF_DOWN": np.sign(steps) * np.ceil(size - 0.5),
        }[mode]
        return _Constant(rounded.astype(np.int64), scale)

    def _image(self, unit: Fraction, top: int) -> _Value:
        largest = min(top, MAX_PIXEL) if self.asked_max is None else self.asked_max
        if largest > top:
            self._refuse(f"pixels up to {largest} are beyond its largest integer, {top}; give input_max={top}")
        self.input_max = largest
        return self._emitted(IMAGE, self.raw.pieces[0].shape, unit, self.input_shape)

    def _top(self, piece: _Piece) -> int:
        source = piece.terms[0].source
        return self.input_max if source == IMAGE else self.levels * self.spans[source]

    # Linear operators

    def _weights(self, value: Any, turned: bool = False) -> tuple[Tensor, list[Fraction]]:
        """Integers (O, ...) and the scale of every output."""
        constant = self._constant(value, "weight")
        if constant.integers is None:
            self._refuse("its weights are not quantised; put a Quant behind them")
        integers, scale = constant.integers, constant.scale
        if turned:
            integers, scale = integers.T, scale.T
        if scale.size not in (1, scale.shape[0]) or scale.shape[0] not in (1, len(integers)):
            self._refuse(f"its weights have scales of shape {scale.shape}; use one, or one per output")
        top = 1 << (WEIGHT_BITS[-1] - 1)
        if integers.min() < -top or integers.max() >= top:
            self._refuse(f"its weights are {integers.min()} to {integers.max()} times their scale; quantise them to 8 signed bits or fewer")
        scales = np.broadcast_to(scale.reshape(-1), len(integers)).tolist()
        return torch.from_numpy(integers.copy()), [Fraction(unit) for unit in scales]

    def _bias(self, value: Any, size: int) -> tuple[Fraction, ...]:
        if value is None:
            return (Fraction(0),) * size
        values = self._constant(value, "bias").fractions()
        if len(values) not in (1, size):
            self._refuse(f"has a bias of {len(values)} for {size} outputs; fix the sizes")
        return tuple(values if len(values) == size else values * size)

    def _conv(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        weight, scales = self._weights(inputs[1])
        if weight.ndim != 4:
            self._refuse(f"has weights of {weight.ndim} dimensions; use a convolution of maps")
        stride, padding = self._geometry(attributes, tuple(weight.shape[2:]))
        value, groups = self._activations(inputs[0], padding != (0, 0)), int(attributes.get("group", 1))
        self._map(value)
        if groups < 1 or weight.shape[1] * groups != value.dims[0] or len(weight) % groups:
            self._refuse(f"takes {weight.shape[1]} channels in {groups} groups, but {value.dims[0]} channels arrive; fix the layer sizes")
        if groups > 1 and len(value.pieces) > 1:
            self._refuse("convolves a concatenation in groups; convolve its parts, and concatenate then")
        size = self._size(value, weight.shape[2:], stride, padding)
        bias, terms, low = list(self._bias(inputs[2] if len(inputs) > 2 else None, len(weight))), [], 0
        for piece in value.pieces:
            part = weight if groups > 1 else weight[:, low : low + piece.shape[0]]
            low += piece.shape[0]
            terms += self._applied(piece, part, scales, bias, stride, padding, groups)
        return _Value((_Piece(tuple(terms), tuple(bias), (len(weight), *size)),), (len(weight), *size))

    def _applied(
        self, piece: _Piece, weight: Tensor, scales: list[Fraction], bias: list[Fraction], stride: Any = (1, 1), padding: Any = (0, 0),
        groups: int = 1,
    ) -> list[_Term]:  # fmt: skip
        """Terms of ``weight`` applied to ``piece``, what it is shifted by into ``bias``."""
        if len({*piece.bias}) > 1 or any(len({*term.units}) > 1 for term in piece.terms):
            self._refuse("takes what is scaled or shifted by channel; use one number, or put a quantised activation between")
        if shift := piece.bias[0]:
            for channel, total in enumerate(weight.flatten(1).sum(1).tolist()):
                bias[channel] += shift * scales[channel] * total
        return [
            _Term(term.source, weight, tuple(scale * term.units[0] for scale in scales), self.where, stride, padding, groups)
            for term in piece.terms
        ]

    def _gemm(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            self._refuse("has alpha, beta or transA; use a Gemm without")
        return self._dense(inputs, not attributes.get("transB", 0))

    def _dense(self, inputs: list[Any], turned: bool = True) -> _Value:
        weight, scales = self._weights(inputs[1], turned)
        value = self._activations(inputs[0])
        if weight.ndim != 2 or len(value.dims) != 1 or weight.shape[1] != value.dims[0]:
            self._refuse(f"takes {_sizes(weight.shape[1:])} inputs, but ({_sizes(value.dims)}) arrive; flatten, and fix the layer sizes")
        bias, terms, low = list(self._bias(inputs[2] if len(inputs) > 2 else None, len(weight))), [], 0
        for piece in value.pieces:
            size = prod(piece.shape)
            terms += self._applied(piece, weight[:, low : low + size], scales, bias)
            low += size
        return _Value((_Piece(tuple(terms), tuple(bias), (len(weight), 1, 1)),), (len(weight),))

    def _norm(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        value = self._linear(inputs[0])
        if attributes.get("training_mode", 0):
            self._refuse("is in training mode; export the model in eval mode")
        gamma, beta, mean, variance = (self._constant(of, "statistic").fractions() for of in inputs[1:5])
        if any(len(of) != value.dims[0] for of in (gamma, beta, mean, variance)):
            self._refuse(f"has {len(gamma)} channels, but {value.dims[0]} arrive; fix the sizes")
        epsilon = attributes.get("epsilon", 1e-5)
        gains = [Fraction(float(g) / math.sqrt(float(of) + epsilon)) for g, of in zip(gamma, variance, strict=True)]
        shifts = [b - m * g for b, m, g in zip(beta, mean, gains, strict=True)]
        pieces, low = [], 0
        for piece in value.pieces:
            if len(value.dims) == 1 and piece.shape[1:] != (1, 1):
                self._refuse("normalises every place of a flattened map by itself; normalise before Flatten")
            high = low + piece.shape[0]
            pieces.append(piece.scaled(gains[low:high], shifts[low:high]))
            low = high
        return replace(value, pieces=tuple(pieces))

    def _linear(self, given: Any) -> _Value:
        """A value that no Relu waits in."""
        value = self._value(given)
        if value.relu:
            self._refuse("takes what a Relu leaves, with no quantised activation between; put an unsigned Quant behind the Relu")
        return value

    def _add(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        one, two = inputs
        if isinstance(one, _Constant):
            one, two = two, one
        value = self._linear(one)
        if isinstance(two, _Constant):
            shape = two.shape[-len(value.dims) :] if prod(two.shape) > 1 else ()
            if prod(shape) != prod(two.shape) or (shape and (len(shape) < len(value.dims) or prod(shape) != shape[0])):
                self._refuse(f"adds constants of shape ({_sizes(two.shape)}) to ({_sizes(value.dims)}); use one number, or one per channel")
            shifts, pieces, low = self._bias(two, value.dims[0]), [], 0
            for piece in value.pieces:
                if len(value.dims) == 1 and piece.shape[1:] != (1, 1):
                    self._refuse("shifts every place of a flattened map by itself; add before Flatten")
                high = low + piece.shape[0]
                pieces.append(piece.scaled([Fraction(1)] * piece.shape[0], shifts[low:high]))
                low = high
            return replace(value, pieces=tuple(pieces))
        added = self._linear(two)
        if value.dims != added.dims or [piece.shape for piece in value.pieces] != [piece.shape for piece in added.pieces]:
            self._refuse(f"adds ({_sizes(value.dims)}) and ({_sizes(added.dims)}), or concatenations of other parts; give them one shape")
        pieces = []
        for first, second in zip(value.pieces, added.pieces, strict=True):
            bias = tuple(map(Fraction.__add__, first.bias, second.bias))
            pieces.append(_Piece(first.terms + second.terms, bias, first.shape))
        return replace(value, pieces=tuple(pieces))

    def _relu(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        value = self._value(inputs[0])
        return value if all(piece.plain for piece in value.pieces) else replace(value, relu=True)

    # Shapes

    def _same(self, inputs: list[Any], attributes: dict[str, Any]) -> Any:
        if len(inputs) > 2 and inputs[2] is not None and self._number(inputs[2], "training mode"):
            self._refuse("is in training mode; export the model in eval mode")
        return inputs[0]

    def _transpose(self, inputs: list[Any], attributes: dict[str, Any]) -> _Constant:
        constant = self._constant(inputs[0], "operand")
        order = attributes.get("perm", list(range(len(constant.shape)))[::-1])
        return _Constant(*(None if part is None else part.transpose(order) for part in (constant.integers, constant.scale)))

    def _flatten(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        value = self._value(inputs[0])
        if attributes.get("axis", 1) != 1:
            self._refuse(f"flattens from dimension {attributes['axis']}; use 1")
        return replace(value, dims=(prod(value.dims),))

    def _reshape(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        value, asked = self._value(inputs[0]), self._whole(inputs[1], "shape")[1:]
        whole = prod(value.dims)
        if not attributes.get("allowzero", 0):
            asked = [value.dims[at] if size == 0 else size for at, size in enumerate(asked)]
        known = prod(size for size in asked if size != -1)
        asked = [whole // known if size == -1 and known else size for size in asked]
        one = len(value.pieces) == 1 and tuple(asked) == value.pieces[0].shape
        if not one and tuple(asked) != value.dims and asked != [whole]:
            self._refuse(f"reshapes ({_sizes(value.dims)}) to ({_sizes(asked)}); only flattening to (N, -1) can be converted")
        return replace(value, dims=tuple(asked))

    def _concat(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        values = [self._linear(value) for value in inputs]
        dims = values[0].dims
        if attributes.get("axis") not in (1, -len(dims)) or any(value.dims[1:] != dims[1:] for value in values):
            self._refuse(f"concatenates along dimension {attributes.get('axis')}, or several sizes; use 1, the channels, and one size")
        pieces = tuple(piece for value in values for piece in value.pieces)
        return _Value(pieces, (sum(value.dims[0] for value in values), *dims[1:]))

    # Windows

    def _map(self, value: _Value) -> None:
        if len(value.dims) != 3:
            self._refuse(f"takes (channels, height, width), but ({_sizes(value.dims)}) arrives; fix the shapes")

    def _geometry(self, attributes: dict[str, Any], kernel: tuple[int, ...]) -> tuple[tuple[int, int], tuple[int, int]]:
        """Stride and padding."""
        if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            self._refuse(f"pads by auto_pad {attributes['auto_pad'][:40]!r}; use pads")
        if any(step != 1 for step, size in zip(attributes.get("dilations", [1, 1]), kernel, strict=True) if size != 1):
            self._refuse(f"dilations {attributes['dilations']} cannot be converted; use 1")
        if list(attributes.get("kernel_shape", kernel)) != list(kernel):
            self._refuse(f"says a kernel of {attributes['kernel_shape']}, but has one of {list(kernel)}; export it again")
        (down, across), pads = attributes.get("strides", [1, 1]), attributes.get("pads", [0, 0, 0, 0])
        if len(pads) != 4 or pads[:2] != pads[2:] or min(pads) < 0 or min(down, across) < 1:
            self._refuse(f"pads by {pads} at strides {[down, across]}; pad both sides alike")
        return (down, across), (pads[0], pads[1])

    def _size(self, value: _Value, kernel: Any, stride: tuple[int, int], padding: tuple[int, int]) -> tuple[int, int]:
        sizes = [(of + 2 * p - int(k)) // s + 1 for of, k, s, p in zip(value.dims[1:], kernel, stride, padding, strict=True)]
        if min(sizes) < 1 or any(p >= int(k) for p, k in zip(padding, kernel, strict=True)):
            self._refuse(f"a kernel of {_sizes(kernel)}, padding {_sizes(padding)}, does not fit ({_sizes(value.dims)}); use another")
        return sizes[0], sizes[1]

    def _pooled(self, inputs: list[Any], attributes: dict[str, Any], kind: Literal["average", "max"]) -> _Value:
        kernel = tuple(attributes["kernel_shape"])
        stride, padding = self._geometry(attributes, kernel)
        value = self._activations(inputs[0], padding != (0, 0))
        self._map(value)
        size = self._size(value, kernel, stride, padding)
        steps = zip(value.dims[1:], kernel, stride, padding, strict=True)
        if attributes.get("ceil_mode", 0) and any((of + 2 * p - k) % s for of, k, s, p in steps):
            self._refuse("ceil_mode cannot be converted for this size; use 0")
        if kind == "average" and padding != (0, 0) and not attributes.get("count_include_pad", 0):
            self._refuse("averages without the padding; use pads 0, or count_include_pad 1")
        return self._windows(value, kind, (kernel[0], kernel[1]), stride, padding, size)

    def _windows(self, value: _Value, kind: Literal["average", "max"], kernel: Any, stride: Any, padding: Any, size: Any) -> _Value:
        if kind == "max" and not all(piece.plain for piece in value.pieces):
            self._refuse("takes the maximum of sums; put a quantised activation before it")
        pieces = []
        for piece in value.pieces:
            terms = []
            for term in piece.terms:
                if term.source == IMAGE:
                    self._refuse("pools the image, but only what neurons emit can be pooled; shrink the images beforehand")
                name = self._unique(self.where)
                self.nodes.append(Pool(name, term.source, kind, kernel, stride, padding))
                share = prod(kernel) if kind == "average" else 1
                self.spans[name] = self.spans[term.source] * share
                terms.append(replace(term, source=name, units=tuple(unit / share for unit in term.units)))
            pieces.append(replace(piece, terms=tuple(terms), shape=(piece.shape[0], *size)))
        return _Value(tuple(pieces), (value.dims[0], *size))

    def _max(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        return self._pooled(inputs, attributes, "max")

    def _average(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        return self._pooled(inputs, attributes, "average")

    def _mean(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        axes = self._whole(inputs[1], "axes") if len(inputs) > 1 and inputs[1] is not None else attributes.get("axes", [])
        value = self._global(inputs[:1], {})
        if sorted(axis % 4 for axis in axes) != [2, 3]:
            self._refuse(f"the mean over dimensions {axes} cannot be converted; use 2 and 3, the whole map")
        return value if attributes.get("keepdims", 1) else replace(value, dims=value.dims[:1])

    def _global(self, inputs: list[Any], attributes: dict[str, Any]) -> _Value:
        value = self._activations(inputs[0])
        self._map(value)
        return self._windows(value, "average", value.dims[1:], (1, 1), (0, 0), (1, 1))

    # Layers

    def _unique(self, name: str) -> str:
        """``name``, as a node may be called, and as no other is."""
        name = "".join(letter if letter.isprintable() else "_" for letter in name)[-64:]
        unique, count = name, 1
        while unique in self.spans or unique == IMAGE:
            count += 1
            unique = f"{name[: 63 - len(str(count))]}.{count}"
        self.spans[unique] = 1
        return unique

    def _summed(self, piece: _Piece) -> tuple[list[Tensor], list[Fraction]]:
        """Integer weights of every term, and the one unit that all terms of a channel then have."""
        weights = [term.weight.clone() for term in piece.terms]
        units = []
        for channel in range(piece.shape[0]):
            scales = [term.units[channel] for term in piece.terms]
            unit = _common(scales)
            units.append(unit)
            for term, weight, scale in zip(piece.terms, weights, scales, strict=True):
                multiple = int(scale / unit)
                if abs(multiple) * int(weight[channel].abs().max()) > _half(term) or abs(multiple) >= MAX_SUM:
                    say = ", ".join(f"{float(of):.6g}" for of in scales)
                    self._refuse(
                        f"channel {channel} adds sums in units of {say}, which no small whole numbers relate; give them scales that are "
                        "multiples of each other, best powers of two"
                    )
                weight[channel] *= multiple
        return weights, units

    def _neurons(self, piece: _Piece, step: Fraction, mode: str) -> str:
        """A layer whose counts are ``piece`` over ``step``, rounded by ``mode``; by its name."""
        weights, units = self._summed(piece)
        pixels = self._takes_image(piece)
        span = [self.input_max if pixels else self.levels * self.spans[term.source] for term in piece.terms]
        highs = torch.stack([weight.flatten(1).clamp(min=0).sum(1) * most for weight, most in zip(weights, span, strict=True)]).sum(0)
        lows = torch.stack([weight.flatten(1).clamp(max=0).sum(1) * most for weight, most in zip(weights, span, strict=True)]).sum(0)
        found = []
        for channel, unit in enumerate(units):
            low, high = int(lows[channel]), int(highs[channel])
            rows = [(weight[channel], _half(term)) for weight, term in zip(weights, piece.terms, strict=True)]
            theta, shift = step / unit, piece.bias[channel] / unit
            solver = _Solver(theta, shift, low, high, rows, self.levels, pixels)
            if (solved := solver.solve(mode)) is None:
                of = f" of {piece.follows}" if piece.follows else ""
                if mode in ("ROUND", "HALF_EVEN") and solver.solve("HALF_UP"):
                    self._refuse(
                        f"sums of channel {channel}{of} can lie midway between two levels; {mode} takes the even one, no neuron does; "
                        f"use the rounding_mode FLOOR or HALF_UP, or move its bias by {float(unit) / 4:.6g}, a quarter of the sums' unit"
                    )
                self._refuse(
                    f"for channel {channel}{of} no integer threshold gives {self.levels} levels, of {float(step):.6g} each and the sums "
                    f"in units of {float(unit):.6g}, with 8-bit weights; train with power-of-two scales, or fewer levels or weight bits"
                )
            found.append(solved)
        multiples, thresholds, shifts = ([of[index] for of in found] for index in range(3))
        return self._layer(piece, weights, multiples, shifts, thresholds, None)

    def _takes_image(self, piece: _Piece) -> bool:
        sources = {term.source for term in piece.terms}
        if IMAGE in sources and (len(piece.terms) > 1 or any(isinstance(node, Layer) for node in self.nodes)):
            self._refuse("takes the image, but only the first layer may, and nothing else then; let later layers take what neurons emit")
        return IMAGE in sources

    def _readout(self, value: Any) -> None:
        if not isinstance(value, _Value) or value.relu or len(value.pieces) != 1 or not value.pieces[0].follows:
            self._refuse("the result is no sum of weights; end the graph with a Conv or Gemm that no activation follows")
        (piece,) = value.pieces
        self.where = piece.follows
        if not self.nodes:
            self._refuse("no activation comes before it, so that nothing spikes; add a layer with an activation")
        self._takes_image(piece)
        weights, units = self._summed(piece)
        unit = _common(units)
        for channel, of in enumerate(units):
            if int(of / unit) * max(int(weight[channel].abs().max()) for weight in weights) > 128:
                self._refuse(
                    f"its outputs have scales of {float(min(units)):.6g} to {float(max(units)):.6g}, which no small whole numbers relate, "
                    "but the largest is looked for; use one scale for all weights of the last layer"
                )
            for weight in weights:
                weight[channel] *= int(of / unit)
        rows = [(weight, _half(term)) for weight, term in zip(weights, piece.terms, strict=True)]
        for size in (self.levels, 1):
            for multiple in _multiples(rows):
                exact = [multiple * bias / unit for bias in piece.bias]
                shifts = [round(of) for of in exact]
                # a bias is a multiple of scales that were multiplied in float32
                near = all(abs(of - shift) <= Fraction(abs(shift), 1 << 22) for of, shift in zip(exact, shifts, strict=True))
                if near and all(shift % size == 0 for shift in shifts):
                    self._layer(piece, weights, [multiple] * len(units), shifts, None, float(multiple / unit / self.levels))
                    return
        self._refuse(f"its bias is no multiple of its sums' unit, {float(unit):.6g}; quantise it (bias_quant=Int16Bias), or leave it out")

    def _layer(
        self,
        piece: _Piece,
        weights: list[Tensor],
        multiples: list[int],
        shifts: list[int],
        thresholds: list[int] | None,
        scale: float | None,
    ) -> str:
        name = self._unique(piece.follows or self.where)
        synapses = []
        for term, weight in zip(piece.terms, weights, strict=True):
            integers = weight * torch.tensor(multiples).reshape(-1, *[1] * (weight.ndim - 1))
            widths = WEIGHT_BITS if term.module else range(1, SHORTCUT_BITS + 1)
            width = next(width for width in widths if _fits(integers, 1 << (width - 1)))
            synapses.append(Synapses(term.source, integers, width, term.stride, term.padding, term.groups))
        rest = torch.tensor([(shift + self.levels // 2) % self.levels - self.levels // 2 for shift in shifts])
        if rest.any():
            synapses.append(self._ones(name, synapses[0], rest))
        bias = (torch.tensor(shifts) - rest) // self.levels
        self.nodes.append(Layer(name, tuple(synapses), bias, None if thresholds is None else torch.tensor(thresholds), scale))
        return name

    def _ones(self, name: str, like: Synapses, weights: Tensor) -> Synapses:
        """``weights``, (outputs,), times a map of neurons that count 1, as large as the one that ``like`` gives."""
        inputs = like.weight.shape[1] * like.groups
        nothing = torch.zeros(1, inputs, *like.weight.shape[2:], dtype=torch.int64)
        ones = self._unique(f"{name}.ones")
        bias, threshold = torch.ones(1, dtype=torch.int64), torch.tensor([self.levels])
        self.nodes.append(Layer(ones, (Synapses(like.source, nothing, 2, like.stride, like.padding),), bias, threshold))
        return Synapses(ones, weights.reshape(-1, 1, 1, 1), 8)


_QUANTS = ("Quant", "IntQuant")
_HANDLERS: dict[str, Callable[[_Walk, list[Any], dict[str, Any]], Any]] = {
    **dict.fromkeys(_QUANTS, _Walk._quant),
    "Constant": lambda walk, inputs, attributes: attributes["value"],
    "Conv": _Walk._conv,
    "Gemm": _Walk._gemm,
    "MatMul": lambda walk, inputs, attributes: walk._dense(inputs),
    "BatchNormalization": _Walk._norm,
    "Add": _Walk._add,
    "Relu": _Walk._relu,
    **dict.fromkeys(("Identity", "Dropout"), _Walk._same),
    "Transpose": _Walk._transpose,
    "Flatten": _Walk._flatten,
    "Reshape": _Walk._reshape,
    "Concat": _Walk._concat,
    "MaxPool": _Walk._max,
    "AveragePool": _Walk._average,
    "GlobalAveragePool": _Walk._global,
    "ReduceMean": _Walk._mean,
}


# --- thresholds -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Solver:
    """A channel: its counts are ``(S + shift) / theta``, rounded, 0 to ``levels``, for an integer S from ``low`` to ``high``.

    ``rows``: its weights, and half the range of integers each may have. ``pixels``: S is of the image, there in every wake step.
    """

    theta: Fraction
    shift: Fraction
    low: int
    high: int
    rows: list[tuple[Tensor, int]]
    levels: int
    pixels: bool

    def solve(self, mode: str) -> tuple[int, int, int] | None:
        """Multiple, threshold and shift: the count is ``floor((multiple * S + shift) / threshold)``, of pixels ``levels * multiple``.

        None if there are none. The shift is a multiple of ``levels``, as a bias is, if one will do.
        """
        begins = [min(max(of, self.low), self.high + 1) for of in self._begins(mode)]
        natural = self.theta * _ROUNDINGS[mode][0] + self.shift
        for size in (self.levels,) if self.pixels else (self.levels, 1):
            for multiple in _multiples(self.rows):
                times = multiple * (self.levels if self.pixels else 1)
                if times * (max(-self.low, self.high) + 1) * self.levels >= MAX_SUM:
                    break
                if found := self._threshold(np.array(begins), times, size, times * natural):
                    return multiple, *found
        return None

    def _begins(self, mode: str) -> list[int]:
        """The least S of which the count is k or more, for k = 1 to ``levels``."""
        first, included = _ROUNDINGS[mode]
        start = first * self.theta + self.shift
        step, offset = self.theta.numerator * start.denominator, start.numerator * self.theta.denominator
        bottom = self.theta.denominator * start.denominator
        return [-((offset - k * step) // bottom) if included(k) else (k * step - offset) // bottom + 1 for k in range(1, self.levels + 1)]

    def _threshold(self, begins: Any, times: int, size: int, natural: Fraction) -> tuple[int, int] | None:
        """See `solve`: a threshold near ``times * theta``, and a shift near ``natural``, a multiple of ``size``, for ``times * S``."""
        k = np.arange(1, self.levels + 1)
        # between these is k * threshold - shift
        least = np.where(begins > self.low, times * (begins - 1) + 1, -_FAR)
        most = np.where(begins <= self.high, times * begins, _FAR)
        inside = np.flatnonzero((begins > self.low) & (begins <= self.high))
        if len(inside) > 1:
            first, last = inside[0], inside[-1]
            between = int(last - first)
            tries = range(max(-(-int(least[last] - most[first]) // between), 1), int(most[last] - least[first]) // between + 1)
        else:
            tries = range(times * (self.high - self.low) + 1, times * (self.high - self.low) + size + 2)
        nearest = round(times * self.theta)
        for threshold in sorted(tries, key=lambda of: abs(of - nearest)):
            lowest, highest = -(-int((k * threshold - most).max()) // size), int((k * threshold - least).min()) // size
            if lowest <= highest:
                return threshold, size * min(max(round(natural / size), lowest), highest)
        return None


def _multiples(rows: list[tuple[Tensor, int]]) -> range:
    """What all weights can be multiplied by."""
    most = _MAX_MULTIPLE
    for weight, half in rows:
        low, high = int(weight.min()), int(weight.max())
        most = min(most, half // -low if low < 0 else most, (half - 1) // high if high > 0 else most)
    return range(1, most + 1)


def _half(term: _Term) -> int:
    return 1 << ((WEIGHT_BITS[-1] if term.module else SHORTCUT_BITS) - 1)


def _fits(weight: Tensor, half: int) -> bool:
    return -half <= int(weight.min()) and int(weight.max()) < half


def _common(scales: Sequence[Fraction]) -> Fraction:
    """The largest number of which all are whole multiples; 1 if all are 0."""
    bottom = math.lcm(*(scale.denominator for scale in scales))
    top = math.gcd(*(int(scale * bottom) for scale in scales))
    return Fraction(top, bottom) if top else Fraction(1)


def _line(error: Exception) -> str:
    """The first line of what ``error`` says."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".;")[:200]


def _sizes(dims: Any) -> str:
    return ", ".join(str(int(size)) for size in dims)
