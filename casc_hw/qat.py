"""Quantisation-aware training: a network that already computes, in floats, what conversion will make of it.

    model = clip_quant(model, levels=8)                                   # a ReLU network; train it on
    model = fold_batchnorm(model)                                         # trained with BatchNorm and ClipQuan
    tuned = fake_quantise(model, input_shape=(28, 28), bits=4)
    ...                                                                   # train ``tuned`` on, which trains ``model``
    net = convert(model, input_shape=(28, 28), bits=4).net

Below 8 bits the rounding of weights and biases costs accuracy, and training can learn to live with it. The rounding is
`casc_hw.conversion.round_layer` itself, so that thresholds, weights and biases are those of the converted network at any time.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call

from casc_hw import conversion
from casc_hw.clipquan import ClipQuan
from casc_hw.conversion import round_layer
from casc_hw.errors import CascError


def clip_quant(model: nn.Module, levels: int) -> nn.Module:
    """``model`` with a `ClipQuan` of ``levels`` in the place of every ReLU and ReLU6 module, to be trained on; nothing else changes.

    In place, so that an optimiser that holds its parameters still does. Returned is ``model``, or the ClipQuan where it is itself a ReLU.
    CascError, and ``model`` as it was: for a relu that the forward calls as a function, by the module it is in; for a ClipQuan of
    other levels; where there is nothing to replace; and for a forward that torch.fx cannot trace, which may hide either.
    """
    if not isinstance(model, nn.Module):
        raise CascError(f"model: is a {type(model).__name__}, not a torch.nn.Module; give the network")
    ClipQuan(levels)  # says what is wrong with levels, before anything is changed
    traced = conversion._trace(model)
    for node in traced.graph.nodes:
        if node.op != "call_module" and conversion._is_relu(traced, node):
            path = next(reversed(node.meta.get("nn_module_stack") or [""])) or "model"
            raise CascError(f"{path}: its forward calls {node.name}, which cannot be exchanged; use a module, torch.nn.ReLU()")
    modules = dict(model.named_modules(remove_duplicate=False))
    relus = {name: module for name, module in modules.items() if isinstance(module, conversion._RELUS) and _of_torch(module)}
    clips = {name: module.levels for name, module in modules.items() if isinstance(module, ClipQuan)}
    for name, found in clips.items():
        if found != levels:
            raise CascError(f"{name or 'model'}: is a ClipQuan of {found} levels, not {levels}; T must be one for the network")
    if not relus and not clips:
        raise CascError("model: has no ReLU or ReLU6 module; put one behind each layer but the last")
    fresh = {module: ClipQuan(levels).train(module.training) for module in relus.values()}
    for name, module in relus.items():
        if not name:
            return fresh[module]
        model.set_submodule(name, fresh[module])
    return model


def _of_torch(module: nn.Module) -> bool:
    """Whether ``module`` computes what torch defines, rather than a subclass's own forward."""
    return type(module).forward.__module__.startswith("torch.nn.")


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """A copy of ``model``, in eval mode, with every BatchNorm behind a Conv2d or Linear folded into it and an Identity in its place.

    CascError where a Conv2d or Linear before a BatchNorm has another use as well.
    """
    model = copy.deepcopy(model).eval()
    traced = conversion._trace(model)
    calls = Counter(str(node.target) for node in traced.graph.find_nodes(op="call_module"))
    for node in traced.graph.find_nodes(op="call_module"):
        before = node.args[0] if node.args else None
        if not isinstance(before, fx.Node) or before.op != "call_module":
            continue
        name, source = str(node.target), str(before.target)
        norm, weighted = model.get_submodule(name), model.get_submodule(source)
        if not isinstance(norm, (nn.BatchNorm1d, nn.BatchNorm2d)) or not isinstance(weighted, (nn.Conv2d, nn.Linear)):
            continue
        if len(before.users) > 1 or calls[source] > 1 or calls[name] > 1:
            raise CascError(f"{name}: {source} before it has another use, so that it cannot be folded; give each use its own modules")
        if norm.running_mean is None or norm.running_var is None:
            raise CascError(f"{name}: {type(norm).__name__} keeps no running statistics; train it with track_running_stats=True")
        with torch.no_grad():
            gain = (norm.running_var + norm.eps).rsqrt() * (1 if norm.weight is None else norm.weight)
            bias = torch.zeros_like(gain) if weighted.bias is None else weighted.bias
            bias = (bias - norm.running_mean) * gain + (0 if norm.bias is None else norm.bias)
            weighted.weight.mul_(gain.reshape(-1, *[1] * (weighted.weight.ndim - 1)))
            weighted.bias = nn.Parameter(bias)
        model.set_submodule(name, nn.Identity())
    return model


@dataclass(frozen=True)
class _Synapses:
    """The module that holds their weights, or, without one, the constant weights of a shortcut; width; s_in."""

    module: str
    weight: Tensor
    bits: int | None
    unit: int


@dataclass(frozen=True)
class _Layer:
    """What is rounded together. ``offset``, float64 (outputs,): the part of the bias that no module holds."""

    name: str
    synapses: tuple[_Synapses, ...]
    offset: Tensor
    readout: bool

    @property
    def modules(self) -> list[str]:
        return [synapses.module for synapses in self.synapses if synapses.module]


class _Plan(conversion._Walk):
    """The conversion's walk, which keeps what it rounds together in ``layers``."""

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], input_max: int, bits: int | Mapping[str, int]):
        traced = conversion._trace(model)
        for node in traced.graph.nodes:
            if conversion._is_relu(traced, node):
                name = node.target if node.op == "call_module" else node.name
                raise CascError(f"{name}: ReLU has no levels to train with; train with ClipQuan instead")
        raw = torch.ones(conversion._map_shape(input_shape)[0], 1, 1, dtype=torch.float64)
        dims, levels = conversion._seen(traced, input_shape), conversion._levels(traced, None)
        super().__init__(traced, input_shape, dims, input_max, raw - 1, raw, bits, levels, 1.0)
        self.layers: list[_Layer] = []
        self.walk()

    def _layer(self, piece: conversion._Piece, readout: bool, threshold: Tensor | None = None) -> str:
        if threshold is not None:
            raise CascError(f"{self.where}: thresholds of its own cannot be trained with rounding; use ClipQuan")
        name = super()._layer(piece, readout)
        synapses: list[_Synapses] = []
        offset = piece.bias.flatten()
        for term in piece.terms:
            unit = self.maps[term.source].unit
            if not term.module:
                synapses.append(_Synapses("", term.weight[..., None], None, unit))
                continue
            if term.module in [of.module for of in synapses] + [module for layer in self.layers for module in layer.modules]:
                raise CascError(f"{term.module}: is used twice, and would be rounded in two ways; give each use its own module")
            module = _weighted(self.traced, term.module)
            if module.weight.shape != term.weight.shape:
                raise CascError(f"{term.module}: takes a concatenation, whose parts are rounded one by one; give it one source to train it")
            if not torch.equal(module.weight.detach().double(), term.weight):
                raise CascError(
                    f"{term.module}: a BatchNorm scales what it takes or gives; fold it with fold_batchnorm, or put it behind {term.module}"
                )
            if module.bias is not None:
                offset = offset - module.bias.detach().double()
            synapses.append(_Synapses(term.module, term.weight, self._bits(term.module), unit))
        offset = torch.where(offset.abs() < 1e-12, 0.0, offset)  # what the subtraction of several left
        self.layers.append(_Layer(name, tuple(synapses), offset, readout))
        return name


class FakeQuantised(nn.Module):
    """``model`` with its weights and biases rounded as `casc_hw.convert` rounds them; gradients pass straight through the rounding.

    The activations are the converted network's counts over T, and the output its sums over T times the scale: exactly in
    float64, and in float32 but for sums that come within a float's rounding of a threshold.

    Attributes
    ----------
    model: the network that is trained, and converted afterwards.
    """

    def __init__(self, model: nn.Module, layers: Sequence[_Layer], levels: int):
        super().__init__()
        self.model, self.layers, self.levels = model, tuple(layers), levels

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = functional_call(self.model, self.rounded(), (x,))
        return output

    def rounded(self) -> dict[str, Tensor]:
        """The parameters that `forward` computes with, by their names in ``model``."""
        own = dict(self.model.named_parameters())
        used: dict[str, Tensor] = {}
        for layer in self.layers:
            weights = [own[f"{of.module}.weight"].detach().double() if of.module else of.weight for of in layer.synapses]
            biases = [own[name] for module in layer.modules if (name := f"{module}.bias") in own]
            bias = torch.stack([layer.offset, *(bias.detach().double() for bias in biases)]).sum(0)
            bits, units = [of.bits for of in layer.synapses], [of.unit for of in layer.synapses]
            done = round_layer(layer.name, weights, bias, bits, units, readout=layer.readout)
            for of, integers in zip(layer.synapses, done.weights, strict=True):
                if of.module:
                    name = f"{of.module}.weight"
                    one = done.one.reshape(-1, *[1] * (integers.ndim - 1))
                    used[name] = _straight(own[name], integers * of.unit / one)
            # A sum over T steps is an integer: half of one more tips no floor, and keeps the floats' rounding from tipping one
            half = 0.0 if layer.readout else 0.5 / self.levels
            if layer.modules:
                name = f"{layer.modules[0]}.bias"
                used[name] = _straight(own[name], own[name].detach() + (done.bias + half) / done.one - bias)
        return used


def fake_quantise(
    model: nn.Module, *, input_shape: Sequence[int], input_max: int = 255, bits: int | Mapping[str, int] = 8
) -> FakeQuantised:
    """``model`` (which sees pixels over ``input_max``, has no BatchNorm any more and activates by ClipQuan) for training with rounding.

    The parameters are those of `casc_hw.convert`, which is to be given the same. CascError for what it cannot convert, for ReLU, for
    BatchNorm that `fold_batchnorm` left, for concatenations and for modules used twice.
    """
    plan = _Plan(model, tuple(input_shape), input_max, bits)
    for layer in plan.layers:
        if layer.modules and (first := _weighted(model, layer.modules[0])).bias is None:
            first.bias = nn.Parameter(torch.zeros(len(layer.offset)).to(first.weight))
    return FakeQuantised(model, plan.layers, plan.levels or 1)


def _weighted(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, (nn.Conv2d, nn.Linear))  # conversion says that it has weights
    return module


def _straight(parameter: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of ``parameter``."""
    return value.to(parameter) + (parameter - parameter.detach())
