"""QONNX graphs in, held to QONNX's own executor: every activation and every logit; what has no exact meaning is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from casc_hw import CascError, IntegerNet, Pool, from_qonnx, quantised_ann, simulate
from casc_hw.__main__ import main

onnx = pytest.importorskip("onnx")
from casc_hw.qonnx_graph import _ROUNDINGS, _Solver  # noqa: E402

BATCH = 16
BREVITAS = Path(__file__).with_name("brevitas_cnn.onnx")


class Graph:
    """A QONNX graph, put together node by node: every method returns the name of what it makes."""

    def __init__(self, *shape: int, seed: int = 0):
        self.chance = np.random.default_rng(seed)
        self.nodes: list[Any] = []
        self.constants: dict[str, np.ndarray] = {}
        self.image = onnx.helper.make_tensor_value_info("image", onnx.TensorProto.FLOAT, [BATCH, *shape])

    def constant(self, value: Any, kind: Any = np.float32) -> str:
        name = f"c{len(self.constants)}"
        self.constants[name] = np.asarray(value, dtype=kind)
        return name

    def add(self, kind: str, *inputs: str, domain: str = "", **attributes: Any) -> str:
        name = f"{kind.lower()}{len(self.nodes)}"
        self.nodes.append(onnx.helper.make_node(kind, inputs, [f"{name}_out"], name=name, domain=domain, **attributes))
        return f"{name}_out"

    def quant(self, x: str, scale: Any, bits: float, *, signed: int = 0, narrow: int = 0, zero: float = 0, mode: str = "FLOOR") -> str:
        inputs = (x, self.constant(scale), self.constant(zero), self.constant(bits))
        return self.add("Quant", *inputs, domain="qonnx.custom_op.general", signed=signed, narrow=narrow, rounding_mode=mode)

    def weight(self, *shape: int, bits: int = 4, scale: Any = 2.0**-3) -> str:
        top = 2 ** (bits - 1) - 1
        integers = self.chance.integers(-top, top + 1, shape)
        integers.flat[0] = top
        return self.quant(self.constant(integers * np.asarray(scale, np.float32)), scale, bits, signed=1, narrow=1, mode="ROUND")

    def conv(self, x: str, *shape: int, bias: Any = None, bits: int = 4, scale: Any = 2.0**-3, **attributes: Any) -> str:
        inputs = (x, self.weight(*shape, bits=bits, scale=scale))
        return self.add("Conv", *inputs, *(() if bias is None else (self.constant(bias),)), **attributes)

    def dense(self, x: str, outputs: int, inputs: int, *, bias: Any = None, bits: int = 4, scale: Any = 2.0**-3) -> str:
        operands = (x, self.weight(outputs, inputs, bits=bits, scale=scale))
        return self.add("Gemm", *operands, *(() if bias is None else (self.constant(bias),)), transB=1)

    def model(self, result: str) -> Any:
        out = onnx.helper.make_tensor_value_info(result, onnx.TensorProto.FLOAT, None)
        tensors = [onnx.numpy_helper.from_array(value, name) for name, value in self.constants.items()]
        graph = onnx.helper.make_graph(self.nodes, "test", [self.image], [out], tensors)
        opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("qonnx.custom_op.general", 2)]
        return onnx.helper.make_model(graph, opset_imports=opsets, ir_version=10)


def held_to_qonnx(model: Any, net: IntegerNet) -> None:
    """AssertionError unless counts times scales are what QONNX's executor makes of a batch of random images, and sums its logits."""
    pytest.importorskip("qonnx")
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.core.onnx_exec import execute_onnx
    from qonnx.transformation.infer_shapes import InferShapes

    wrapped = ModelWrapper(model).transform(InferShapes())
    constants = {tensor.name for tensor in model.graph.initializer}
    (image,) = (tensor for tensor in model.graph.input if tensor.name not in constants)
    quantisers = [node for node in model.graph.node if node.op_type == "Quant" and node.input[0] not in constants]
    unit = np.float32(1 / net.input_max)
    if quantisers[0].input[0] == image.name:
        unit = wrapped.get_initializer(quantisers.pop(0).input[1])
    shape = [size.dim_value for size in image.type.tensor_type.shape.dim]
    pixels = torch.randint(0, net.input_max + 1, (shape[0], net.inputs), generator=torch.Generator().manual_seed(1))
    found = execute_onnx(wrapped, {image.name: pixels.numpy().astype(np.float32).reshape(shape) * unit}, return_full_exec_context=True)
    answer = quantised_ann(net, pixels)
    counts = [of for of, layer in zip(answer.counts, net.spiking, strict=True) if not layer.name.endswith(".ones")]
    for node, of in zip(quantisers, counts, strict=True):
        expected = of.numpy().astype(np.float32) * wrapped.get_initializer(node.input[1])
        assert (found[node.output[0]].reshape(expected.shape) == expected).all(), node.name
        assert len(of.unique()) > 1, node.name
    logits = answer.sums.double().numpy() / (net.levels * net.readout.scale)
    np.testing.assert_allclose(found[model.graph.output[0].name].reshape(logits.shape), logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(simulate(net, pixels[:2], record=False).answer.sums, answer.sums[:2])


def small(mode: str = "FLOOR", levels_bits: int = 3, **changed: Any) -> Graph:
    """Image, Quant, Conv, Quant, Conv, Quant, Flatten, Gemm; what is changed are arguments of the second convolution and its Quant."""
    graph = Graph(1, 5, 5)
    graph.step = changed.pop("step", 1.0)
    x = graph.quant("image", 2.0**-4, 4, mode="ROUND")
    x = graph.quant(graph.conv(x, 3, 1, 3, 3, bias=graph.chance.normal(size=3)), 2.0**-3, levels_bits, mode="FLOOR")
    x = graph.conv(x, 4, 3, 3, 3, **changed)
    graph.last = graph.quant(graph.add("Relu", x), graph.step, levels_bits, mode=mode)
    graph.result = graph.dense(graph.add("Flatten", graph.last), 3, 4)
    return graph


@pytest.mark.parametrize("mode", _ROUNDINGS)
def test_every_way_of_rounding(mode: str) -> None:
    """The third bias takes ROUND's sums away from midway between two levels; the others' sums never lie there."""
    bias = np.array([0.6, 1.1, 2.0**-8, 0.7])
    graph = small(mode, bias=bias)
    model = graph.model(graph.result)
    held_to_qonnx(model, from_qonnx(model))


@pytest.mark.parametrize(("bits", "levels_bits"), [(2, 1), (3, 2), (4, 4), (6, 2), (8, 3), (8, 4)])
def test_widths_and_levels(bits: int, levels_bits: int) -> None:
    """Where wider weights have no room for a bias, a map of ones has it."""
    scale = 2.0**-bits
    graph = small(levels_bits=levels_bits, bits=bits, scale=scale, bias=np.array([5, -3, 1, 2]) * scale * 2.0**-3, step=0.25)
    model = graph.model(graph.result)
    net = from_qonnx(model)
    assert net.levels == 2**levels_bits - 1
    assert [layer.name for layer in net.layers if layer.name.endswith(".ones")] == (["conv5.ones"] if bits == 8 else [])
    held_to_qonnx(model, net)


@pytest.mark.parametrize("seed", range(10))
def test_random_graphs(seed: int) -> None:
    """Pools, shortcuts, concatenations, groups, strides, channels of their own scale, MatMul and Add, BatchNormalization of one level."""
    graph, chance = Graph(2, 8, 8, seed=seed), np.random.default_rng(seed)
    bits = int(chance.integers(1, 4))
    mode = ("FLOOR", "HALF_UP")[seed % 2]

    def neurons(x: str, step: float) -> str:
        return graph.quant(x, step, bits, mode=mode)

    x = graph.quant("image", 2.0**-6, 6, mode="ROUND") if seed % 3 else "image"
    unit = 2.0**-6 if seed % 3 else 2.0**-3
    channels = 2.0 ** -chance.integers(2, 5, (4, 1, 1, 1))
    x = neurons(graph.conv(x, 4, 2, 3, 3, scale=channels, bias=chance.normal(size=4) * 0.1, pads=[1, 1, 1, 1]), unit * 2)
    kind = ("MaxPool", "AveragePool")[int(chance.integers(2))]
    x = graph.add(kind, x, kernel_shape=[2, 2], strides=[2, 2])
    two = graph.conv(x, 4, 2, 3, 3, group=2, pads=[1, 1, 1, 1], bits=3)
    y = neurons(graph.add("Add", two, x) if seed % 2 else two, unit * 2)
    three = graph.conv(y, 5, 4, 1, 3, strides=[2, 1], pads=[0, 1, 0, 1], bits=2)
    if bits == 1:
        statistics = (chance.normal(size=5), chance.normal(size=5), chance.normal(size=5), chance.uniform(0.5, 2, 5))
        three = graph.add("BatchNormalization", three, *(graph.constant(of) for of in statistics))
    z = neurons(three, unit / 2)
    z = graph.add("Concat", z, graph.add("MaxPool", neurons(y, unit * 4), kernel_shape=[1, 1], strides=[2, 1]), axis=1)
    z = graph.add("GlobalAveragePool", z) if seed % 4 == 0 else z
    size = 9 if seed % 4 == 0 else 72
    flat = graph.add("Reshape", z, graph.constant([0, -1], np.int64))
    turned = graph.add("Transpose", graph.weight(6, size, bits=3), perm=[1, 0])
    w = neurons(graph.add("Add", graph.add("MatMul", flat, turned), graph.constant(chance.normal(size=6))), unit * 2)
    model = graph.model(graph.dense(w, 3, 6, bias=np.array([3, 0, -5]) * 2.0**-3 * unit * 2))
    net = from_qonnx(model)
    assert any(isinstance(node, Pool) for node in net.nodes)
    held_to_qonnx(model, net)
