"""NIR graphs (Pedersen et al., Nature Communications 2024, https://neuroir.org) in and out, for networks of integrate-and-fire neurons.

What a graph is taken to mean, and what `to_nir` writes:

- The input is ``pixel / input_max``, 0 to 1, injected as the same current in every one of T = ``levels`` steps.
- Currents that arrive at a node by several edges add. Biases are added in every step.
- IF: in a step of length ``dt`` the potential rises by ``r * dt * current``, and a spike of 1 leaves at ``v_threshold``, which is then
  *subtracted*. NIR resets to ``v_reset`` at the moment of crossing, which with ``v_reset`` = 0 is the same in continuous time; a simulator
  that steps in time and resets to 0 loses what was above the threshold, and counts differently.
- LIF of infinite tau and r, as snnTorch writes Leaky of beta = 1, is IF, whose potential rises by the current in a step.
- Wake and sleep, spikes of -1, and the bounds 0 and T of a count are CASC's, not NIR's: a neuron ends at
  ``floor(T * clip(current * r * dt / v_threshold, 0, 1))`` spikes.
- What reaches Output has no neuron behind it: it is a sum of currents.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from graphlib import CycleError, TopologicalSorter
from keyword import iskeyword
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from casc_hw.clipquan import IntegrateAndFire
from casc_hw.conversion import convert
from casc_hw.errors import CascError
from casc_hw.network import IMAGE, WEIGHT_BITS, IntegerNet, Layer, MapShape, Pool, Synapses

METADATA = "casc"
"""Where a graph's metadata hold what NIR has no field for."""
_KNOWN = "use Affine, Linear, Conv2d, Scale, SumPool2d, AvgPool2d, Flatten and IF"


def _package() -> Any:
    try:
        import nir
    except ImportError as error:
        raise CascError("nir: the package cannot be imported; install it with `pip install nir`") from error
    return nir


# --- in ---------------------------------------------------------------------------------------------------------------


def from_nir(
    graph: Any,
    *,
    levels: int | None = None,
    input_max: int | None = None,
    bits: int | Mapping[str, int] | None = None,
    name: str | None = None,
    dt: float = 1.0,
) -> IntegerNet:
    """The integer network of a NIR graph (see above for what it is taken to mean), by `convert`.

    A layer whose weights, biases and thresholds are integers already is taken as it is, so that ``from_nir(to_nir(net))`` is ``net``.

    Parameters
    ----------
    graph: a ``nir.NIRGraph``, or the path of a file that ``nir.write`` made; feed-forward, of the nodes Input, Output, Affine, Linear,
        Conv2d, Scale, SumPool2d, AvgPool2d, Flatten and IF, or LIF that does not leak.
    levels: T; needed unless `to_nir` left it in the metadata, as it does the next three.
    input_max: the pixel that stands for 1.0 (255 where nothing says otherwise).
    bits: width of the weights, one for all or by node (8 where nothing says otherwise).
    name: of the network.
    dt: length of a step in the units of ``r``: 1 if ``r`` is 1; 1e-4 for SpikingJelly, which writes ``r = 1 / dt``.

    Raises
    ------
    CascError: a node that cannot be represented exactly, by its name.
    """
    if isinstance(graph, (str, os.PathLike)):
        graph = _read(graph)
    if not isinstance(graph, _package().NIRGraph):
        raise CascError(f"graph: is a {type(graph).__name__}, not a nir.NIRGraph; give a graph or the path of its file")
    told = _told(graph)
    levels = told.get("levels") if levels is None else levels
    if levels is None:
        raise CascError("levels: NIR says nothing of T; give levels (for example 16)")
    order, sources = _order(graph)
    parts = {}
    for node in order:
        try:
            parts[node] = _module(node, graph.nodes[node], levels, dt)
        except (TypeError, ValueError, IndexError, RuntimeError) as error:
            raise CascError(f"{node}: is no {type(graph.nodes[node]).__name__} that torch could build ({error}); fix it") from error
    shape = graph.nodes[order[0]].input_type["input"]
    if shape is None:
        raise CascError(f"{order[0]}: says no shape; give the shape of one image")
    widths: int | Mapping[str, int] | None = bits
    if widths is None:
        widths = {node: int(graph.nodes[node].metadata.get("bits", 8)) for node in order if isinstance(parts[node], (nn.Conv2d, nn.Linear))}
    net = convert(
        _Model(parts, sources, order).double(),
        input_shape=tuple(int(size) for size in shape),
        input_max=told.get("input_max", 255) if input_max is None else input_max,
        name=name or told.get("name", "net"),
        bits=widths,
        margin=told.get("margin") if levels == told.get("levels") else None,
        sleep=told.get("sleep"),
    ).net
    if net.readout.scale == 1.0 and "scale" in told:
        net = replace(net, nodes=(*net.nodes[:-1], replace(net.readout, scale=told["scale"])))
    if prod(told.get("input_shape", ())) == net.inputs:
        net = replace(net, input_shape=told["input_shape"])
    return net


def _read(path: str | os.PathLike[str]) -> Any:
    nir = _package()
    if not os.path.isfile(path):
        raise CascError(f"{path}: there is no such file; check the name")
    try:
        return nir.read(path, type_check=False)  # nir 1.0.8 gets the shapes of grouped and oblong kernels wrong; convert checks them all
    except (OSError, KeyError, ValueError, TypeError, AssertionError, AttributeError) as error:
        raise CascError(f"{path}: not a NIR graph ({error}); write one with nir.write") from error


def _told(graph: Any) -> dict[str, Any]:
    """What `to_nir` left in the metadata."""
    kinds: dict[str, Callable[[Any], Any]] = dict.fromkeys(("levels", "margin", "sleep", "input_max"), int)
    kinds |= {"name": str, "scale": float, "input_shape": lambda sizes: tuple(int(size) for size in sizes)}
    left = graph.metadata.get(METADATA, {})
    try:
        return {key: kind(left[key]) for key, kind in kinds.items() if key in left}
    except (TypeError, ValueError) as error:
        raise CascError(f"graph: its metadata {METADATA!r} are damaged ({error}); take them out and give levels") from error


def _order(graph: Any) -> tuple[list[str], dict[str, list[str]]]:
    """The nodes, each after those it takes and else as its first edge comes, Output last; and what each takes."""
    for kind, found in (("Input", graph.inputs), ("Output", graph.outputs)):
        if len(found) != 1:
            raise CascError(f"graph: has {len(found)} nodes of type {kind} ({', '.join(found)}); give it one")
    (start,), (end,) = graph.inputs, graph.outputs
    sources: dict[str, list[str]] = {}
    for source, target in graph.edges:
        if source not in graph.nodes or target not in graph.nodes or source == end or source in sources.get(target, []):
            raise CascError(f"graph: the edge {source!r} -> {target!r} is there twice, leaves Output, or has no node; take it out")
        sources.setdefault(target, []).append(source)
    used = {source for found in sources.values() for source in found}
    for node in graph.nodes:
        if (node not in sources and node != start) or (node not in used and node != end):
            raise CascError(f"{node}: no edge leads {'from' if node in sources else 'to'} it; connect it or take it out")
    sorter = TopologicalSorter(sources)
    try:
        sorter.prepare()
    except CycleError as error:
        circle = " -> ".join(error.args[1])
        raise CascError(f"{error.args[1][0]}: feeds back into itself ({circle}); only feed-forward graphs can be converted") from error
    place = {node: index for index, node in enumerate([start, *sources])}
    order: list[str] = []
    ready: list[str] = []
    while sorter.is_active():
        ready = sorted([*ready, *sorter.get_ready()], key=place.__getitem__)
        order.append(ready.pop(0))
        sorter.done(order[-1])
    order.remove(end)
    return [*order, end], sources


class _Model(nn.Module):
    """A graph as a module: ``parts`` by the names of the nodes, in ``order``; what arrives by several edges is added."""

    def __init__(self, parts: Mapping[str, nn.Module | None], sources: Mapping[str, list[str]], order: list[str]):
        super().__init__()
        self.sources, self.order = sources, order
        self.named = {name for name, part in parts.items() if part is not None}
        for name in sorted(self.named, key=lambda name: name.count(".")):
            within: nn.Module = self
            *path, last = _target(name).split(".")
            try:
                for step in path:
                    if step not in within._modules:
                        within.add_module(step, nn.Module())
                    within = within.get_submodule(step)
                within.add_module(last, parts[name])
            except KeyError as error:
                raise CascError(f"{name}: torch has no module of that name ({error}); rename the node") from error

    def forward(self, x: Tensor) -> Tensor:
        values: dict[str, Tensor] = {}
        for name in self.order:
            first, *others = [values[source] for source in self.sources.get(name, [])] or [x]
            for other in others:
                first = first + other
            values[name] = self.get_submodule(_target(name))(first) if name in self.named else first
        return values[self.order[-1]]


def _target(name: str) -> str:
    """The path of node ``name`` in the module: its name, but torch.fx cannot write ``self.if``."""
    return ".".join(f"<{part}>" if iskeyword(part) else part for part in name.split("."))


def _module(name: str, node: Any, levels: int, dt: float) -> nn.Module | None:
    """What computes ``node``; None for Input and Output."""
    kind = type(node).__name__
    if kind in ("Input", "Output"):
        return None
    if kind in ("Affine", "Linear"):
        return _filled(nn.Linear(node.weight.shape[-1], node.weight.shape[0], kind == "Affine"), node)
    if kind == "Conv2d":
        size, groups = node.weight.shape, int(node.groups)
        stride, dilation = _pair(node.stride), _pair(node.dilation)
        padding = node.padding if isinstance(node.padding, str) else _pair(node.padding)
        return _filled(nn.Conv2d(size[1] * groups, size[0], size[2:], stride, padding, dilation, groups), node)
    if kind == "Scale":  # nn has a scale per channel in BatchNorm only
        scale = _values(name, "scale", node.scale)
        if scale.ndim not in (1, 3):
            raise CascError(f"{name}: its scale has {scale.ndim} dimensions; give it those of what it scales, 1 or 3")
        channels = scale.reshape(len(scale), -1)
        if not (channels == channels[:, :1]).all():
            raise CascError(f"{name}: its scale differs within a channel; use one per channel")
        norm = (nn.BatchNorm1d if scale.ndim == 1 else nn.BatchNorm2d)(len(scale), eps=0.0)
        norm.weight.data = channels[:, 0].clone()
        return norm
    if kind in ("SumPool2d", "AvgPool2d"):
        divisor = 1 if kind == "SumPool2d" else None
        return nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding), divisor_override=divisor)
    if kind == "Flatten":  # its dimensions are without the batch
        start, end = (int(dim) + (int(dim) >= 0) for dim in (node.start_dim, node.end_dim))
        return nn.Flatten(start, end)
    if kind == "IF":
        return _neurons(name, node, _values(name, "r", node.r) * dt, levels)
    if kind == "LIF" and np.isinf(node.tau).all() and np.isinf(node.r).all() and not np.any(node.v_leak):
        return _neurons(name, node, torch.ones(1, dtype=torch.float64), levels)  # snnTorch's beta = 1, for which it writes r = tau / dt
    leaks = "LI" in kind
    because = "leaks, so that its count depends on when its spikes arrive" if leaks else "cannot be converted"
    raise CascError(f"{name}: {kind} {because}; {_KNOWN}")


def _neurons(name: str, node: Any, rise: Tensor, levels: int) -> nn.Module:
    """Neurons whose potential rises by ``rise`` times the current in a step."""
    reset = _values(name, "v_reset", node.v_reset)
    if reset.any():
        raise CascError(f"{name}: resets to {float(reset[reset != 0][0]):g}; use v_reset 0, which stands for subtracting the threshold")
    threshold = _values(name, "v_threshold", node.v_threshold) / rise
    if not (rise > 0).all() or not (threshold > 0).all():
        raise CascError(f"{name}: r * dt or v_threshold is not above 0; make them positive")
    return IntegrateAndFire(levels, threshold)


def _filled(module: nn.Module, node: Any) -> nn.Module:
    """``module`` with the weights of ``node``."""
    for field, parameter in module.named_parameters():
        value = torch.from_numpy(np.array(getattr(node, field), dtype=np.float64))
        if value.shape != parameter.shape:
            raise ValueError(f"{field} has shape {tuple(value.shape)}, not {tuple(parameter.shape)}")
        parameter.data = value
    return module


def _values(name: str, field: str, value: Any) -> Tensor:
    tensor = torch.from_numpy(np.array(value, dtype=np.float64))
    if not torch.isfinite(tensor).all():
        raise CascError(f"{name}: {field} is not finite; give numbers")
    return tensor


def _pair(value: Any) -> tuple[int, int]:
    sizes = [int(size) for size in np.atleast_1d(value)]
    return sizes[0], sizes[-1]


# --- out --------------------------------------------------------------------------------------------------------------


def to_nir(net: IntegerNet) -> Any:
    """``net`` as a ``nir.NIRGraph`` whose weights, biases and thresholds are its integers, in float64 (see above for what it means).

    Weights from the image are times ``input_max``, since the input of the graph is ``pixel / input_max``. Output is the sum in the
    network's own integers. Shortcuts are nodes of type Scale. T, margin, sleep, the scale of the read-out, shape and maximum of an image
    are in the metadata under ``casc``, widths in those of each node; ``meta`` is left out. The graph is not type-checked: nir 1.0.8
    refuses grouped and oblong kernels, so read it with ``nir.read(path, type_check=False)`` where there are any.

    Raises
    ------
    CascError: a max pool, or a bias of a layer of nothing but shortcuts, for which NIR has no node.
    """
    return _Writer(net).graph()


class _Writer:
    def __init__(self, net: IntegerNet):
        self.nir, self.net = _package(), net
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.ends: dict[str, str] = {}
        """By the name of a network's node, the graph's node that gives its output."""
        parts = [(part, node.name) for node in net.nodes for part in (node.synapses if isinstance(node, Layer) else (node,))]
        self.flat = {name: all(self.vector(part) for part, of in parts if of == name) for name in net.shapes}
        """Whether a node's map has one dimension in the graph."""
        changed = True
        while changed:
            changed = False
            for part, name in parts:
                if self.flat[part.source] and not self.flat[name]:
                    changed, self.flat[part.source] = True, False
                elif self.flat[name] and not self.flat[part.source] and self.scales(part):
                    changed, self.flat[name] = True, False

    @classmethod
    def vector(cls, part: Synapses | Pool) -> bool:
        """Whether it may take and make maps of one dimension."""
        return cls.scales(part) or (isinstance(part, Synapses) and part.dense)

    @staticmethod
    def scales(part: Synapses | Pool) -> bool:
        """Whether it is an identity shortcut."""
        return isinstance(part, Synapses) and part.shortcut and part.bits not in WEIGHT_BITS and part.stride == (1, 1)

    def graph(self) -> Any:
        net, nir = self.net, self.nir
        self.ends[IMAGE] = self.add("input", nir.Input(input_type=self.type(IMAGE)), [])
        for node in net.nodes:
            if isinstance(node, Layer):
                self.layer(node)
            elif node.kind == "max":
                raise CascError(f"{node.name}: NIR has no node for a max pool; use an average pool")
            else:
                pool = nir.SumPool2d(*(np.array(pair) for pair in (node.kernel, node.stride, node.padding)))
                pool.input_type, pool.output_type = {"input": self.type(node.source)}, {"output": self.type(node.name)}
                self.ends[node.name] = self.add(node.name, pool, [self.ends[node.source]])
        told: dict[str, Any] = {"name": net.name, "levels": net.levels, "margin": net.margin, "input_max": net.input_max}
        told |= {"input_shape": list(net.input_shape), "scale": net.readout.scale}
        told |= {} if net.sleep is None else {"sleep": net.sleep}
        told |= {"neurons": "subtract the threshold, count 0 to levels, and take spikes back by -1 (CASC, arXiv 2406.05371)"}
        return nir.NIRGraph(nodes=self.nodes, edges=self.edges, metadata={METADATA: told}, type_check=False)

    def type(self, name: str) -> Any:
        shape = self.net.shapes[name]
        return np.array([prod(shape)] if self.flat[name] else shape)

    def add(self, name: str, node: Any, sources: list[str]) -> str:
        """``node`` under ``name``, or one like it that no other has, which is returned."""
        name = name.replace("/", "_")  # HDF5 would make folders of it
        unique, count = name, 1
        while unique in self.nodes:
            unique, count = f"{name}_{count}", count + 1
        self.nodes[unique] = node
        self.edges += [(source, unique) for source in sources]
        return unique

    def layer(self, layer: Layer) -> None:
        shape = self.net.shapes[layer.name]
        bias = layer.bias.double().numpy()
        arriving = []
        for part in layer.synapses:
            linear, takes_bias = self.linear(part, shape, self.flat[layer.name], bias)
            source = self.ends[part.source]
            if isinstance(linear, (self.nir.Affine, self.nir.Linear)) and not self.flat[part.source]:
                source = self.add(f"{layer.name}_flatten", self.nir.Flatten(self.type(part.source), 0, -1), [source])
            arriving.append(self.add(layer.name, linear, [source]))
            bias = np.zeros_like(bias) if takes_bias else bias
        if bias.any():
            raise CascError(f"{layer.name}: has a bias and nothing but shortcuts, for which NIR has no node; give it a convolution")
        if layer.threshold is None:
            self.add("output", self.nir.Output(output_type=self.type(layer.name)), arriving)
            return
        threshold = layer.threshold.double()[:, None, None].expand(shape).reshape(tuple(self.type(layer.name))).numpy()
        self.ends[layer.name] = self.add(f"{layer.name}_if", self.nir.IF(np.ones_like(threshold), threshold), arriving)

    def linear(self, part: Synapses, shape: MapShape, flat: bool, bias: Any) -> tuple[Any, bool]:
        """A node for ``part`` of a layer of ``shape``, and whether ``bias`` is in it."""
        unit = self.net.input_max if part.source == IMAGE else 1
        source, told = self.net.shapes[part.source], {"bits": part.bits}
        weight = (part.weight * unit).double()
        if self.scales(part):
            return self.nir.Scale(weight.reshape(-1, 1, 1).expand(shape).reshape((-1,) if flat else shape).numpy()), False
        if part.dense and flat:
            if bias.any():
                return self.nir.Affine(weight.numpy(), bias, metadata=told), True
            return self.nir.Linear(weight.numpy(), metadata=told), False
        if part.dense:  # to a map, of which others are a convolution
            weight = weight.reshape(-1, *source)
        spread = (np.array(part.stride), np.array(part.padding), np.array((1, 1)))
        return self.nir.Conv2d(source[1:], weight.numpy(), *spread, part.groups, bias, metadata=told), True
