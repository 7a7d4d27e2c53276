"""QONNX graphs in, held to QONNX's own executor: every activation and every logit; what has no exact meaning is refused."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import suppress
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


def test_weights_of_no_unit_in_common_with_powers_of_two_are_taken_where_few_levels_leave_room() -> None:
    graph = small("ROUND", 1, scale=0.0371, bias=[0.01, 0.02, 0.03, 0.04], step=0.113)
    model = graph.model(graph.result)
    held_to_qonnx(model, from_qonnx(model))


def test_a_network_that_brevitas_trained_and_wrote() -> None:
    """Made with Brevitas 0.13.4: power-of-two scales, FLOOR, a shortcut, a max pool, a mean over the map, biases of floats and integers."""
    model = onnx.load(BREVITAS)
    net = from_qonnx(BREVITAS, name="brevitas")
    assert (net.name, net.levels, net.input_shape, net.input_max) == ("brevitas", 7, (1, 8, 8), 15)
    assert [len(layer.synapses) for layer in net.layers] == [1, 2, 1, 1]
    held_to_qonnx(model, net)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_brevitas_modules_answer_as_the_network(tmp_path: Path) -> None:
    """Where Brevitas (0.13.4 was tried, with onnxoptimizer), which is not among the requirements, is installed."""
    qnn = pytest.importorskip("brevitas.nn")
    pytest.importorskip("onnxoptimizer")
    from brevitas.export import export_qonnx
    from brevitas.inject.enum import FloatToIntImplType
    from brevitas.quant import Int16Bias
    from brevitas.quant.fixed_point import Int8WeightPerTensorFixedPoint, Uint8ActPerTensorFixedPoint

    class Floor(Uint8ActPerTensorFixedPoint):  # type: ignore[misc]
        float_to_int_impl_type = FloatToIntImplType.FLOOR

    torch.manual_seed(0)
    weights = {"weight_quant": Int8WeightPerTensorFixedPoint, "weight_bit_width": 4, "bias": True}
    model = nn.Sequential(
        qnn.QuantIdentity(act_quant=Uint8ActPerTensorFixedPoint, bit_width=5, return_quant_tensor=True),
        qnn.QuantLinear(20, 12, **weights),
        qnn.QuantReLU(act_quant=Floor, bit_width=3, return_quant_tensor=True),
        qnn.QuantLinear(12, 4, bias_quant=Int16Bias, **weights),
    )
    for _ in range(3):  # finds the scales
        model(torch.rand(32, 20))
    model.eval()
    export_qonnx(model, torch.rand(32, 20), export_path=str(tmp_path / "net.onnx"))
    net = from_qonnx(tmp_path / "net.onnx")
    pixels = torch.randint(0, net.input_max + 1, (32, 20), generator=torch.Generator().manual_seed(2))
    answer = quantised_ann(net, pixels)
    assert torch.equal(model(pixels * model[0].act_quant.scale()), (answer.sums / (net.levels * net.readout.scale)).float())


def test_the_image_is_the_quantisers_integers_or_a_share_of_its_largest() -> None:
    graph = small()
    model = graph.model(graph.result)
    assert from_qonnx(model).input_max == 15
    assert from_qonnx(model, input_max=7).input_max == 7
    with pytest.raises(CascError, match="quant0: pixels up to 16 are beyond its largest integer, 15"):
        from_qonnx(model, input_max=16)
    with pytest.raises(CascError, match="input_max: 256 is not an integer from 1 to 255"):
        from_qonnx(model, input_max=256)
    raw = Graph(4)
    model = raw.model(raw.dense(raw.quant(raw.dense("image", 3, 4), 0.25, 2), 2, 3))
    for largest in (255, 100):
        net = from_qonnx(model, input_max=largest)
        assert net.input_max == largest
        held_to_qonnx(model, net)


def test_an_image_may_be_flattened_before_its_quantiser() -> None:
    graph = Graph(1, 2, 2)
    x = graph.quant(graph.add("Flatten", "image"), 0.25, 2)
    model = graph.model(graph.dense(graph.quant(graph.dense(x, 3, 4), 0.125, 2), 2, 3))
    net = from_qonnx(model)
    assert (net.input_shape, net.input_max) == ((1, 2, 2), 3)
    assert [tuple(layer.synapses[0].weight.shape) for layer in net.layers] == [(3, 4), (2, 3)]


def test_the_shape_of_an_image_may_be_given() -> None:
    graph = small()
    model = graph.model(graph.result)
    model.graph.input[0].type.tensor_type.shape.dim[2].dim_param = "height"
    with pytest.raises(CascError, match=r"image: an image of shape \(1, 0, 5\); give input_shape"):
        from_qonnx(model)
    assert from_qonnx(model, input_shape=(1, 5, 5)).input_shape == (1, 5, 5)
    with pytest.raises(CascError, match="takes 4 inputs, but"):
        from_qonnx(model, input_shape=(1, 6, 6))


# What a channel's threshold is chosen by


@settings(max_examples=200, deadline=None)
@given(
    theta=st.fractions(Fraction(1, 4), 9, max_denominator=24),
    shift=st.fractions(-9, 9, max_denominator=24),
    weights=st.lists(st.integers(-3, 3), min_size=1, max_size=3),
    levels=st.integers(1, 5),
    pixels=st.booleans(),
    mode=st.sampled_from(sorted(_ROUNDINGS)),
)
def test_a_threshold_counts_as_fractions_do_or_there_is_none(
    theta: Fraction, shift: Fraction, weights: list[int], levels: int, pixels: bool, mode: str
) -> None:
    low, high = (levels * sum(side(weight, 0) for weight in weights) for side in (min, max))
    wanted = {}
    for total in range(low, high + 1):
        x = (total + shift) / theta
        rounded = {"FLOOR": x.__floor__(), "DOWN": int(x), "CEIL": x.__ceil__(), "UP": x.__ceil__(), "ROUND": round(x)}
        rounded["HALF_EVEN"] = round(x)
        rounded |= {"HALF_UP": (x + Fraction(1, 2)).__floor__(), "HALF_DOWN": (x - Fraction(1, 2)).__ceil__()}
        wanted[total] = min(max(rounded[mode], 0), levels)
    half = 8
    found = _Solver(theta, shift, low, high, [(torch.tensor(weights), half)], levels, pixels).solve(mode)
    times = levels if pixels else 1
    if found is not None:
        multiple, threshold, moved = found
        assert all(-half <= multiple * weight < half for weight in weights)
        assert {of: min(max((times * multiple * of + moved) // threshold, 0), levels) for of in wanted} == wanted
        return
    for multiple in range(1, half // max(abs(weight) for weight in weights)):  # by trying: there is none
        for threshold in range(1, 40):
            for moved in range(-60, 61, levels if pixels else 1):
                assert any(min(max((times * multiple * of + moved) // threshold, 0), levels) != count for of, count in wanted.items())


# Refusals


def _float_weights() -> Any:
    graph = Graph(4)
    x = graph.quant(graph.dense("image", 3, 4), 0.25, 2)
    return graph.model(graph.add("Gemm", x, graph.constant(np.ones((3, 2)))))


def _with(*, result: Callable[[Graph, str], str], **changed: Any) -> Any:
    graph = small(**changed)
    return graph.model(result(graph, graph.last))


def _out(graph: Graph, x: str, **changed: Any) -> str:
    return graph.dense(graph.add("Flatten", x), 3, 4, **changed)


def _norm(graph: Graph, x: str, channels: int, **changed: Any) -> str:
    return graph.add("BatchNormalization", x, *[graph.constant(np.ones(channels))] * 4, **changed)


def _again(graph: Graph, x: str, scale: Any, bits: float, **changed: Any) -> str:
    return _out(graph, graph.quant(x, scale, bits, **changed))


def _conv(graph: Graph, x: str, **changed: Any) -> str:
    return _out(graph, graph.quant(graph.conv(x, 4, 4, 3, 3, **changed), 1.0, 3))


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "tie": (lambda: _with(result=_out, mode="ROUND"), r"quant\d+: sums of channel 0 of conv5 can lie midway between two"),
    "scales": (lambda: _with(result=_out, bits=8, scale=0.00371, step=0.91), r"quant\d+: for channel \d of conv5 no integer threshold"),
    "levels": (lambda: _with(result=lambda g, x: _again(g, x, 2.0, 4)), r"quant\d+: has 15 levels, but an activation before it has 7"),
    "signed": (lambda: _with(result=lambda g, x: _again(g, x, 2.0, 4, signed=1)), r"quant\d+: is an activation from below 0"),
    "zero point": (lambda: _with(result=lambda g, x: _again(g, x, 2.0, 3, zero=1)), r"quant\d+: has a zero point of 1"),
    "bits": (lambda: _with(result=lambda g, x: _again(g, x, 2.0, 3.5)), r"quant\d+: has a width of 3.5 bits"),
    "many bits": (lambda: _with(result=lambda g, x: _again(g, x, 2.0, 1e9)), r"quant\d+: has a width of 1e\+09 bits"),
    "scale 0": (lambda: _with(result=lambda g, x: _again(g, x, 0.0, 3)), r"quant\d+: has a scale that is not above 0"),
    "scale inf": (lambda: _with(result=lambda g, x: _again(g, x, np.inf, 3)), r"the tensor 'c\d+' holds inf"),
    "rounding": (lambda: _with(result=lambda g, x: _again(g, x, 2.0, 3, mode="SLOPPY")), r"quant\d+: rounds by 'SLOPPY'"),
    "channel scales": (lambda: _with(result=lambda g, x: _again(g, x, [1.0, 2.0], 3)), r"quant\d+: its scale is 2 different numbers"),
    "wide weights": (lambda: _with(result=lambda g, x: _out(g, x, bits=9)), r"gemm\d+: its weights are -?\d+ to 255 times their scale"),
    "dropout": (lambda: _with(result=lambda g, x: g.add("Dropout", x, g.constant(0.5), g.constant(1))), r"dropout\d+: is in training"),
    "norm": (lambda: _with(result=lambda g, x: _norm(g, x, 4, training_mode=1)), r".*in training"),
    "statistics": (lambda: _with(result=lambda g, x: _norm(g, x, 3)), r".*has 3 channels"),
    "float weights": (_float_weights, r"gemm\d+: its weights are not quantised"),
    "no activation": (lambda: _with(result=lambda g, x: _conv(g, g.conv(x, 4, 4, 1, 1))), "conv.*: follows conv.* with no"),
    "relu": (lambda: _with(result=lambda g, x: _out(g, g.add("Relu", g.conv(x, 4, 4, 1, 1)))), "flatten.*|gemm.*: takes what a Relu"),
    "max of sums": (lambda: _with(result=lambda g, x: g.add("MaxPool", g.add("Add", x, x), kernel_shape=[1, 1])), r"maxpool\d+: takes the"),
    "one-sided": (lambda: _with(result=lambda g, x: _conv(g, x, pads=[2, 2, 0, 0])), r"conv\d+: pads by \[2, 2, 0, 0\]"),
    "auto_pad": (lambda: _with(result=lambda g, x: _conv(g, x, auto_pad="SAME_UPPER")), r"conv\d+: pads by auto_pad 'SAME_UPPER'"),
    "dilation": (lambda: _with(result=lambda g, x: _conv(g, x, dilations=[2, 2])), r"conv\d+: dilations \[2, 2\]"),
    "kernel": (lambda: _with(result=_conv), r"conv\d+: a kernel of 3, 3, padding 0, 0, does not fit"),
    "groups": (lambda: _with(result=lambda g, x: _conv(g, x, group=3)), r"conv\d+: takes 4 channels in 3 groups, but 4"),
    "constants": (lambda: _with(result=lambda g, x: _out(g, g.add("Add", x, g.constant([1.0, 2.0])))), r"add\d+: adds constants of shape"),
    "softmax": (lambda: _with(result=lambda g, x: g.add("Softmax", _out(g, x))), r"softmax\d+: Softmax cannot be converted; leave it to"),
    "sigmoid": (lambda: _with(result=lambda g, x: _out(g, g.add("Sigmoid", x))), r"sigmoid\d+: Sigmoid cannot be converted; use Quant"),
    "custom": (lambda: _with(result=lambda g, x: _out(g, g.add("Relu", x, domain="evil"))), r"relu\d+: Relu cannot be converted"),
    "no read-out": (lambda: _with(result=lambda g, x: g.add("Flatten", x)), r"flatten\d+_out: the result is no sum of weights"),
    "bias": (lambda: _with(result=lambda g, x: _out(g, x, bias=[0.1, 2**0.5, 0.3])), r"gemm\d+: its bias is no multiple"),
    "outputs": (lambda: _with(result=lambda g, x: _out(g, x, scale=[[0.125], [0.3], [1]])), r"gemm\d+: its outputs have scales"),
    "unmade": (lambda: _with(result=lambda g, x: _out(g, "nowhere")), r"flatten\d+: takes 'nowhere', which nothing before it makes"),
}  # fmt: skip




@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_exact_meaning_is_refused_by_name(what: str) -> None:
    make, message = REFUSED[what]
    with pytest.raises(CascError, match=message):
        from_qonnx(make())


def test_a_file_that_doubles_a_sum_over_and_over_is_refused() -> None:
    def doubled(graph: Graph, x: str) -> str:
        for _ in range(60):
            x = graph.add("Add", x, x)
        return _out(graph, x)

    with pytest.raises(CascError, match=r"add\d+: adds or concatenates more than 256 sums"):
        from_qonnx(_with(result=doubled))


def test_hostile_and_damaged_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = small()
    model = graph.model(graph.result)
    whole = model.SerializeToString()
    file = tmp_path / "net.onnx"
    chance = np.random.default_rng(0)
    for _ in range(150):  # a file may still be a network of other numbers
        damaged = bytearray(whole[: int(chance.integers(len(whole))) if chance.integers(3) == 0 else len(whole)])
        for at in chance.integers(0, max(len(damaged), 1), min(len(damaged), 3)):
            damaged[at] = chance.integers(256)
        file.write_bytes(damaged)
        with suppress(CascError):
            from_qonnx(file)
    (tmp_path / "secret").write_bytes(bytes(4))
    outside = onnx.ModelProto()
    outside.CopyFrom(model)
    tensor = outside.graph.initializer[0]
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=str(tmp_path / "secret"))
    huge = onnx.ModelProto()
    huge.CopyFrom(model)
    huge.graph.initializer[0].dims[:] = [1 << 40, 1 << 20]
    for text, content in {"are in another file": outside, "is damaged": huge}.items():
        file.write_bytes(content.SerializeToString())
        with pytest.raises(CascError, match=text):
            from_qonnx(file)
    with pytest.raises(CascError, match="an image of shape"):
        from_qonnx(model, input_shape=(1 << 40, 1 << 40, 1))
    file.write_bytes(b"")
    with pytest.raises(CascError, match="holds no graph"):
        from_qonnx(file)
    with pytest.raises(CascError, match="gone: there is no such file"):
        from_qonnx(tmp_path / "gone")
    with pytest.raises(CascError, match=r"model: is a dict, not an onnx\.ModelProto"):
        from_qonnx({})
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(CascError, match=r"install it with .pip install onnx.$"):
        from_qonnx(file)


# The command line


def test_import_takes_both_kinds_of_file(tmp_path: Path) -> None:
    out = tmp_path / "mine.pt"
    done = CliRunner().invoke(main, ["import", str(BREVITAS), "--out", str(out)])
    assert done.exit_code == 0, done.output
    net = IntegerNet.load(out)
    assert f"mine, T = 7, digest {net.digest[:16]}" in done.output
    assert net.digest == from_qonnx(BREVITAS).digest
    nir = pytest.importorskip("nir")
    from casc_hw import to_nir

    net = IntegerNet.load(Path(__file__).parents[2] / "examples" / "digits_mlp.pt")
    nir.write(tmp_path / "net.nir", to_nir(net))
    done = CliRunner().invoke(main, ["import", str(tmp_path / "net.nir"), "--out", str(out), "--name", "other", "--json"])
    told = json.loads(done.output)
    assert (told["digest"], told["net"], told["levels"]) == (net.digest, "other", net.levels)
    done = CliRunner().invoke(main, ["import", str(tmp_path / "net.nir"), "--out", str(out), "--levels", "3", "--json"])
    assert json.loads(done.output)["levels"] == 3


@pytest.mark.parametrize(("arguments", "code", "message"), [
    ([str(BREVITAS), "--levels", "8"], 2, "--levels: means nothing for a QONNX graph"),
    ([str(BREVITAS), "--shape", "1xx8"], 2, "'1xx8' is not numbers"),
    ([str(BREVITAS), "--input-max", "99"], 1, "pixels up to 99 are beyond its largest integer, 15"),
    ([str(BREVITAS), "--shape", "2x8x8"], 1, "node_conv2d: takes 1 channels in 1 groups, but 2 channels arrive"),
    ([__file__], 1, "not a NIR graph"),
    ([__file__, "--shape", "8"], 2, "--shape: means nothing for a NIR graph"),
])  # fmt: skip
def test_import_ends_with_one_sentence(arguments: list[str], code: int, message: str, tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["import", *arguments, "--out", str(tmp_path / "out.pt")])
    assert done.exit_code == code
    assert message in done.output
    assert not list(tmp_path.iterdir())
