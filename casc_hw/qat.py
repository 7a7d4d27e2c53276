"""Quantisation-aware training: a network that already computes, in floats, what conversion will make of it.

    model = clip_quant(model, levels=8)                                   # a ReLU network; train it on
    model = fold_batchnorm(model)                                         # trained with BatchNorm and ClipQuan
    tuned = fake_quantise(model, input_shape=(28, 28), bits=4)
    ...                                                                   # train ``tuned`` on, which trains ``model``
    net = convert(model, input_shape=(28, 28), bits=4).net

Below 8 bits the rounding of weights and biases costs accuracy, and training can learn to live with it. The rounding is
that of `casc_hw.conversion`, whose walk is repeated at every step, so that thresholds, weights and biases are those of the converted
network at any time, clipping scales folded.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.func import functional_call
from torch.nn import functional

from casc_hw import conversion
from casc_hw.clipquan import ClipQuan
from casc_hw.errors import CascError
from casc_hw.network import Layer


def clip_quant(model: nn.Module, levels: int, scale: Literal["layer", "channel"] | None = None) -> nn.Module:
    """``model`` with a `ClipQuan` of ``levels`` in the place of every ReLU and ReLU6 module, to be trained on; nothing else changes.

    ``scale``: "layer" or "channel" gives each a clipping scale, trained from 1 on; a ClipQuan that is there and has none gets one too.
    In place, so that an optimiser that holds its parameters still does. Returned is ``model``, or the ClipQuan where it is itself a ReLU.
    CascError, and ``model`` as it was: for a relu that the forward calls as a function, by the module it is in; for a ClipQuan of
    other levels; where there is nothing to replace; for scales of channels that cannot be told from the layers before; and for a
    forward that torch.fx cannot trace, which may hide either.
    """
    if not isinstance(model, nn.Module):
        raise CascError(f"model: is a {type(model).__name__}, not a torch.nn.Module; give the network")
    if scale not in (None, "layer", "channel"):
        raise CascError(f"scale: is {scale!r}; give 'layer', 'channel' or None")
    ClipQuan(levels)  # says what is wrong with levels, before anything is changed
    traced = conversion._trace(model)
    for node in traced.graph.nodes:
        if node.op != "call_module" and conversion._is_relu(traced, node):
            path = next(reversed(node.meta.get("nn_module_stack") or [""])) or "model"
            raise CascError(f"{path}: its forward calls {node.name}, which cannot be exchanged; use a module, torch.nn.ReLU()")
    modules = dict(model.named_modules(remove_duplicate=False))
    relus = {name: module for name, module in modules.items() if isinstance(module, conversion._RELUS) and _of_torch(module)}
    clips = {name: module for name, module in modules.items() if isinstance(module, ClipQuan)}
    for name, clip in clips.items():
        if clip.levels != levels:
            raise CascError(f"{name or 'model'}: is a ClipQuan of {clip.levels} levels, not {levels}; T must be one for the network")
    if not relus and not clips:
        raise CascError("model: has no ReLU or ReLU6 module; put one behind each layer but the last")
    if scale:
        relus |= {name: clip for name, clip in clips.items() if type(clip) is ClipQuan and clip.log_scale is None}
    like = next(model.parameters(), torch.zeros(()))
    channels: dict[nn.Module, int] = {}
    for node in traced.graph.find_nodes(op="call_module") if scale == "channel" else ():
        name, module = str(node.target), traced.get_submodule(str(node.target))
        if name not in relus:
            continue
        if not (count := _channels(traced, node.all_input_nodes[0])):
            raise CascError(f"{name}: the layers before it do not tell its channels; use ClipQuan(levels, torch.ones(channels)) there")
        if channels.setdefault(module, count) != count:
            raise CascError(f"{name}: is used behind {channels[module]} and behind {count} channels; give each use its own module")
    fresh = {}
    for module in relus.values():
        start = torch.ones(channels.get(module, 1) if scale == "channel" else ()).to(like) if scale else None
        fresh[module] = ClipQuan(levels, start).train(module.training)
    for name, module in relus.items():
        if not name:
            return fresh[module]
        model.set_submodule(name, fresh[module])
    return model


def _of_torch(module: nn.Module) -> bool:
    """Whether ``module`` computes what torch defines, rather than a subclass's own forward."""
    return type(module).forward.__module__.startswith("torch.nn.")


def _channels(traced: fx.GraphModule, node: fx.Node) -> int:
    """Of what ``node`` gives; 0 where the layers before it do not tell."""
    module = traced.get_submodule(str(node.target)) if node.op == "call_module" else None
    if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
        return module.num_features
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        return len(module.weight)
    handler = conversion._HANDLERS.get(conversion._target(node))
    before = [_channels(traced, of) for of in node.all_input_nodes]
    if handler is conversion._Walk._cat:
        return sum(before) if all(before) else 0
    same = isinstance(module, (ClipQuan, *conversion._RELUS, *conversion._DROPOUTS, *conversion._POOLS, nn.Identity))
    return max(before, default=0) if same or handler in _KEEP else 0


_KEEP = [
    *(conversion._Walk._relu, conversion._Walk._relu6, conversion._Walk._add, conversion._Walk._same, conversion._Walk._dropout),
    *(conversion._Walk._max, conversion._Walk._average, conversion._Walk._adaptive, conversion._Walk._mean),
]
"""Handlers of operations that leave the channels as they are."""


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
class _Done:
    """A piece of a sum, in units of what 1.0 stands for behind it, and the layer made of it.

    ``at``: the node that ends the sum; ``low``: the first of its numbers there.
    """

    piece: conversion._Piece
    layer: Layer
    at: fx.Node
    low: int

    @property
    def modules(self) -> list[str]:
        return list(dict.fromkeys(term.module for term in self.piece.terms if term.module))

    @property
    def shortcuts(self) -> list[int]:
        """Which terms are identities."""
        return [index for index, term in enumerate(self.piece.terms) if not term.module]

    def of(self, module: str, parts: Sequence[Tensor]) -> Tensor:
        """What belongs to ``module`` of something per term: joined, where the module takes a concatenation."""
        return torch.cat([part for part, term in zip(parts, self.piece.terms, strict=True) if term.module == module], 1)


class _Plan(conversion._Walk):
    """The conversion's walk, with the parameters as they are now, which keeps in ``done`` what it rounded."""

    def __init__(self, traced: fx.GraphModule, input_shape: tuple[int, ...], input_max: int, bits: int | Mapping[str, int]):
        raw = torch.ones(conversion._map_shape(input_shape)[0], 1, 1, dtype=torch.float64)
        dims, levels = conversion._seen(traced, input_shape), conversion._levels(traced, None)
        super().__init__(traced, input_shape, dims, input_max, raw - 1, raw, bits, levels, 1.0)
        self.done: list[_Done] = []
        self.waits: dict[fx.Node, bool] = {}
        """Whether a node gives max pools of a sum, which conversion takes behind the activation."""
        self.emitters: dict[tuple[object, ...], tuple[fx.Node, int, Tensor]] = {}
        """By what an identity takes: the first node that gives it, from which of its values on, and times what."""
        self.walk()

    def _visit(self, node: fx.Node) -> Any:
        value = super()._visit(node)
        if isinstance(value, conversion._Value):
            self.waits[node] = bool(value.waiting)
            low = 0
            for piece in value.pieces:
                if len(piece.terms) == 1 and not (piece.follows or value.waiting or piece.bias.any()):
                    self.emitters.setdefault(_taken(piece.terms[0]), (node, low, piece.terms[0].weight))
                low += prod(piece.shape)
        return value

    def _module(self, node: fx.Node, args: Any, kwargs: Any) -> Any:
        value = super()._module(node, args, kwargs)
        if isinstance(self.traced.get_submodule(str(node.target)), (nn.BatchNorm1d, nn.BatchNorm2d)):
            name = value.pieces[0].follows or self.where
            raise CascError(f"{name}: a BatchNorm scales what it takes or gives; fold it with fold_batchnorm, or put it behind {name}")
        return value

    def _layer(self, piece: conversion._Piece, readout: bool, threshold: Tensor | None = None) -> str:
        if threshold is not None:
            raise CascError(f"{self.where}: thresholds of its own cannot be trained with rounding; use ClipQuan")
        name, layer, node = super()._layer(piece, readout), self.nodes[-1], self.node
        assert isinstance(layer, Layer)
        assert node is not None
        done = _Done(piece, layer, node, sum(prod(before.piece.shape) for before in self.done if before.at is node))
        for module in done.modules:
            if any(module in before.modules for before in self.done):
                raise CascError(f"{module}: is used twice, and would be rounded in two ways; give each use its own module")
            if done.of(module, [term.weight for term in piece.terms]).shape != _weighted(self.traced, module).weight.shape:
                raise CascError(f"{module}: takes a sum that no activation ends, and would be rounded in two ways; put ClipQuan behind it")
        self.done.append(done)
        return name

    def rounded(self, done: _Done) -> list[Tensor]:
        """Per term, float64: the weights that the integers stand for."""
        one = _one(done.layer)
        return [
            synapses.weight * self.maps[synapses.source].unit / one.reshape(-1, *[1] * (synapses.weight.ndim - 1))
            for synapses in done.layer.synapses
        ]

    def with_shortcuts(self) -> fx.GraphModule:
        """The graph, where what the rounding of shortcuts adds is added (`_shifted`) with buffers that `_shortcut` names."""
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        output = graph.graph_copy(self.traced.graph, copies)
        copies[self.traced.graph.output_node()] = graph.output(output)
        for layer, done in enumerate(self.done):
            at = done.at
            while self.waits[before := at.all_input_nodes[0]]:
                if len(before.users) > 1:
                    raise CascError(f"{conversion._label(before)}: pools a sum for two activations; put one activation before it")
                at = before
            for index in done.shortcuts:
                term = done.piece.terms[index]
                if (taken := _taken(term)) in self.emitters:
                    node, low, _ = self.emitters[taken]
                    self.traced.register_buffer(_shortcut(layer, index), torch.zeros(2, *done.piece.shape))
                    with graph.inserting_before(copies[at]):
                        share = graph.get_attr(_shortcut(layer, index))
                        x = copies[at].all_input_nodes[0]
                        shifted = graph.call_function(_shifted, (x, copies[node], share, done.low, low, done.piece.shape))
                    copies[at].replace_input_with(x, shifted)
        return fx.GraphModule(self.traced, graph)


def _one(layer: Layer) -> Tensor:
    return conversion.Rounded((), layer.bias, layer.threshold, layer.scale).one


def _taken(term: conversion._Term) -> tuple[object, ...]:
    """What an identity takes, whatever its weight."""
    return tuple(getattr(term, field.name) for field in fields(term) if field.name != "weight")


def _shortcut(layer: int, term: int) -> str:
    return f"_shortcut_{layer}_{term}"


def _shifted(x: Tensor, taken: Tensor, share: Tensor, low: int, start: int, shape: tuple[int, ...]) -> Tensor:
    """``x`` (N, ...) and, from its value ``low`` on, ``share[0]`` times ``taken`` (from its value ``start`` on) and ``share[1]``."""
    part = taken.flatten(1)[:, start : start + prod(shape)].reshape(-1, *shape)
    part = (part * share[0].to(x) + share[1].to(x)).flatten(1)
    return x + functional.pad(part, (low, x[0].numel() - low - part.shape[1])).reshape(x.shape)


class FakeQuantised(nn.Module):
    """``model`` with its weights and biases rounded as `casc_hw.convert` rounds them; gradients pass straight through the rounding.

    The activations are the converted network's counts over T, times the ClipQuan's scale, and the output its sums over T times the
    scale of the read-out: exactly in float64, and in float32 but for sums that come within a float's rounding of a threshold.

    Attributes
    ----------
    model: the network that is trained, and converted afterwards.
    """

    def __init__(self, model: nn.Module, input_shape: tuple[int, ...], input_max: int, bits: int | Mapping[str, int]):
        super().__init__()
        self.model = model
        traced = conversion._trace(model)
        for node in traced.graph.nodes:
            if conversion._is_relu(traced, node):
                name = node.target if node.op == "call_module" else node.name
                raise CascError(f"{name}: ReLU has no levels to train with; train with ClipQuan instead")
        self._plan = partial(_Plan, traced, input_shape, input_max, bits)
        plan = self._plan()
        for done in plan.done:
            if done.modules and (first := _weighted(model, done.modules[0])).bias is None:
                first.bias = nn.Parameter(torch.zeros(len(done.layer.bias)).to(first.weight))
        self._with_shortcuts = (plan.with_shortcuts(),)  # not a module of its own: those in it are the model's

    def forward(self, x: Tensor) -> Tensor:
        used, shortcuts = self._rounded()
        model = self._with_shortcuts[0] if shortcuts else self.model
        output: Tensor = functional_call(model, used | shortcuts, (x,))
        return output

    def rounded(self) -> dict[str, Tensor]:
        """The parameters that `forward` computes with, by their names in ``model``."""
        return self._rounded()[0]

    def _rounded(self) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Also the buffers of `_Plan.with_shortcuts`: what `_shifted` takes as share."""
        own = dict(self.model.named_parameters())
        used: dict[str, Tensor] = {}
        shortcuts: dict[str, Tensor] = {}
        with torch.no_grad():
            plan = self._plan()
        for number, done in enumerate(plan.done):
            layer, piece, one = done.layer, done.piece, _one(done.layer)
            scale = plan.ones[layer.name].flatten() if layer.threshold is not None else torch.ones_like(one)
            values = plan.rounded(done)
            for module in done.modules:
                parameter = own[f"{module}.weight"]
                value, folded = done.of(module, values), done.of(module, [term.weight for term in piece.terms])
                value = torch.where(value == 0, 0.0, value * (parameter.detach().double().cpu() / folded))  # 0 whatever it is folded with
                used[f"{module}.weight"] = _straight(parameter, value)
            # A sum over T steps is an integer: half of one more tips no floor, and keeps the floats' rounding from tipping one
            half = 0.0 if layer.threshold is None else 0.5 / (plan.levels or 1)
            rounded, bias = (layer.bias + half) / one * scale, piece.bias.flatten() * scale
            if done.modules:
                parameter = own[name := f"{done.modules[0]}.bias"]
                used[name] = _straight(parameter, parameter.detach().cpu() + rounded - bias)
            for index in done.shortcuts:
                error = values[index].reshape(-1, 1, 1) - piece.terms[index].weight
                shift = torch.zeros_like(error) if done.modules or index else (rounded - bias).reshape(-1, 1, 1)
                if (taken := _taken(piece.terms[index])) in plan.emitters:
                    share = error * scale.reshape(-1, 1, 1) / plan.emitters[taken][2]
                    shortcuts[_shortcut(number, index)] = torch.stack([share, shift])
                elif error.any():
                    raise CascError(f"{layer.name}: its shortcut averages a sum of activations, whose rounding cannot be trained with; "
                                    "put ClipQuan between the sum and the average")  # fmt: skip
        return used, shortcuts


def fake_quantise(
    model: nn.Module, *, input_shape: Sequence[int], input_max: int = 255, bits: int | Mapping[str, int] = 8
) -> FakeQuantised:
    """``model`` (which sees pixels over ``input_max``, has no BatchNorm any more and activates by ClipQuan) for training with rounding.

    The parameters are those of `casc_hw.convert`, which is to be given the same. CascError for what it cannot convert, for ReLU, for
    BatchNorm that `fold_batchnorm` left, and for modules used twice.
    """
    return FakeQuantised(model, tuple(input_shape), input_max, bits)


def _weighted(model: nn.Module, name: str) -> nn.Conv2d | nn.Linear:
    module = model.get_submodule(name)
    assert isinstance(module, (nn.Conv2d, nn.Linear))  # conversion says that it has weights
    return module


def _straight(parameter: Tensor, value: Tensor) -> Tensor:
    """``value``, with the gradient of ``parameter``."""
    return value.to(parameter) + (parameter - parameter.detach())
