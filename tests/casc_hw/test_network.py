"""The integer network's checks and its file: a bad one gets a sentence, never a traceback and never code execution."""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from casc_hw import IMAGE, CascError, IntegerNet, Interval, Layer, Pool, Synapses, output_shape, to_wire

Net = Callable[..., IntegerNet]


@pytest.fixture
def net(make_net: Net) -> IntegerNet:
    return replace(make_net((6, 5, 3)), meta={"accuracy": 97.5, "split": [4000, 1000], "note": None})


@pytest.fixture
def graph() -> IntegerNet:
    """A convolution, a residual block with an identity and a projection, pools of both kinds, a read-out."""

    def ones(*shape: int) -> torch.Tensor:
        return torch.ones(shape, dtype=torch.int64)

    def layer(name: str, *synapses: Synapses) -> Layer:
        return Layer(name, synapses, ones(4), 3 * ones(4))

    nodes = (
        layer("first", Synapses(IMAGE, ones(4, 2, 3, 3), 4, padding=(1, 1))),
        Pool("max", "first", "max", (2, 2), (2, 2), (1, 0)),
        layer(
            "same", Synapses("max", ones(4, 2, 3, 1), 4, padding=(1, 0), groups=2), Synapses("max", 5000 * ones(4, 1, 1, 1), 14, groups=4)
        ),
        layer("half", Synapses("same", ones(4, 4, 2, 2), 4, (2, 2), (1, 1)), Synapses("max", ones(4, 4, 1, 1), 6, stride=(2, 2))),
        Pool("average", "half", "average", (2, 2), (1, 1)),
        Layer("last", (Synapses("average", ones(3, 4), 8),), ones(3), None, 2.0),
    )
    return IntegerNet("graph", 4, 4, None, (2, 5, 6), 255, nodes)


@pytest.fixture
def saved(net: IntegerNet, tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    net.save(path)
    return path


@pytest.fixture
def saved_graph(graph: IntegerNet, tmp_path: Path) -> Path:
    path = tmp_path / "graph.pt"
    graph.save(path)
    return path


def refusal(path: Path) -> str:
    """The one sentence with which ``path`` is refused."""
    with pytest.raises(CascError) as caught:
        IntegerNet.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 300 + len(str(path))
    assert "; " in text, "says what is wrong, but not what to do"
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 1, 1), {"levels": 1, "bits": 2, "input_max": 1}),
        ((6, 5, 3), {"levels": 8, "margin": 3, "sleep": 0}),
        ((7, 5, 3, 2), {"levels": 255, "bits": 8, "sleep": 12, "extreme": True}),
        ((4, 3, 2), {"bits": 4}),
    ],
)
def test_round_trip(sizes: tuple[int, ...], options: dict[str, Any], make_net: Net, tmp_path: Path) -> None:
    net = replace(make_net(sizes, **options), name="a-b_9", meta={"x": [1, 2.5, "three", None, True]})
    assert_round_trip(net, tmp_path / "net.pt")


def assert_round_trip(net: IntegerNet, path: Path) -> None:
    net.save(path)
    back = IntegerNet.load(path)
    for field in ("name", "levels", "margin", "sleep", "input_shape", "input_max", "meta", "shapes"):
        assert getattr(back, field) == getattr(net, field), field
    assert len(back.nodes) == len(net.nodes)
    for got, wanted in zip(back.nodes, net.nodes, strict=True):
        assert type(got) is type(wanted)
        assert_same(got, wanted)
    assert back.digest == net.digest


def assert_same(got: Any, wanted: Any) -> None:
    for item in fields(wanted):
        one, two = getattr(got, item.name), getattr(wanted, item.name)
        if isinstance(two, torch.Tensor):
            assert one.dtype == torch.int64
            assert torch.equal(one, two)
        elif item.name == "synapses":
            assert len(one) == len(two)
            for synapses in zip(one, two, strict=True):
                assert_same(*synapses)
        else:
            assert (type(one), one) == (type(two), two), item.name


@pytest.mark.parametrize("seed", range(20))
def test_graphs_survive(seed: int, make_graph: Net, tmp_path: Path) -> None:
    assert_round_trip(make_graph(seed), tmp_path / "net.pt")


def test_wide_shortcuts_survive(graph: IntegerNet, tmp_path: Path) -> None:
    assert_round_trip(graph, tmp_path / "net.pt")


def test_image_shape_survives(make_net: Net, tmp_path: Path) -> None:
    net = replace(make_net((24, 3, 2)), input_shape=(2, 3, 4))
    net.save(tmp_path / "net.pt")
    assert IntegerNet.load(tmp_path / "net.pt").input_shape == (2, 3, 4)


def test_digest_changes_with_everything_the_answer_depends_on(net: IntegerNet) -> None:
    first, last = net.layers
    (synapses,) = first.synapses
    weaker = replace(synapses, weight=synapses.weight.clamp(max=100))
    variants = [
        replace(net, levels=9),
        replace(net, margin=7),
        replace(net, sleep=3),
        replace(net, input_shape=(2, 3)),
        replace(net, input_max=254),
        replace(net, nodes=(replace(first, synapses=(weaker,)), last)),
        replace(net, nodes=(replace(first, synapses=(synapses, weaker)), last)),
        replace(net, nodes=(replace(first, bias=first.bias + 1), last)),
        replace(net, nodes=(replace(first, threshold=first.threshold + 1), last)),
        replace(net, nodes=(first, replace(last, bias=last.bias + 1))),
        replace(net, nodes=(first, replace(last, scale=99.0))),
    ]
    assert len({variant.digest for variant in [net, *variants]}) == len(variants) + 1
    assert replace(net, name="other", meta={}).digest == net.digest


def renamed(net: IntegerNet) -> IntegerNet:
    """Every node under another name."""

    def new(node: Layer | Pool) -> Layer | Pool:
        if isinstance(node, Pool):
            return replace(node, name=f"new {node.name}", source=f"new {node.source}")
        synapses = tuple(replace(part, source=part.source if part.source == IMAGE else f"new {part.source}") for part in node.synapses)
        return replace(node, name=f"new {node.name}", synapses=synapses)

    return replace(net, nodes=tuple(map(new, net.nodes)))


def with_node(net: IntegerNet, name: str, **changes: Any) -> IntegerNet:
    """``net`` with node ``name``, or its synapses 0 where they have the field, changed."""

    def new(node: Layer | Pool) -> Layer | Pool:
        if node.name != name:
            return node
        if isinstance(node, Layer) and not set(changes) & {"name", "synapses", "bias", "threshold", "scale"}:
            return replace(node, synapses=(replace(node.synapses[0], **changes), *node.synapses[1:]))
        return replace(node, **changes)

    return replace(net, nodes=tuple(map(new, net.nodes)))


def test_digest_of_a_graph_changes_with_its_shape_and_not_with_its_names(graph: IntegerNet) -> None:
    half = graph.layers[2]
    one, two = (replace(part, source=other.source) for part, other in zip(half.synapses, half.synapses[::-1], strict=True))
    swapped = replace(graph, nodes=(*graph.nodes[:3], replace(half, synapses=(one, two)), *graph.nodes[4:]))
    variants = [
        with_node(graph, "max", kind="average"),
        with_node(graph, "max", kernel=(3, 2)),
        with_node(graph, "max", padding=(1, 1), kernel=(3, 3), stride=(2, 2)),
        with_node(graph, "average", stride=(2, 1)),
        with_node(graph, "same", groups=1, weight=torch.ones(4, 4, 3, 1, dtype=torch.int64)),
        with_node(graph, "same", bits=6),
        swapped,
        replace(graph, nodes=(*graph.nodes[:3], replace(half, synapses=half.synapses[::-1]), *graph.nodes[4:])),
        replace(graph, nodes=(*graph.nodes[:3], replace(half, synapses=half.synapses[:1]), *graph.nodes[4:])),
    ]
    assert len({variant.digest for variant in [graph, *variants]}) == len(variants) + 1
    assert renamed(graph).digest == graph.digest


# --- shapes, spans, order ----------------------------------------------------------------------------------------------


def test_shapes_and_spans(graph: IntegerNet) -> None:
    assert graph.shapes == {
        IMAGE: (2, 5, 6),
        "first": (4, 5, 6),
        "max": (4, 3, 3),
        "same": (4, 3, 3),
        "half": (4, 2, 2),
        "average": (4, 1, 1),
        "last": (3, 1, 1),
    }
    assert [graph.span(name) for name in graph.shapes] == [255, 1, 1, 1, 1, 4, 1]
    assert graph.events(IMAGE) == Interval(0, 255)
    assert graph.events("first") == graph.events("max") == Interval(-1, 1)
    assert graph.events("average") == Interval(-4, 4)
    assert [layer.name for layer in graph.layers] == ["first", "same", "half", "last"]
    assert [layer.outputs for layer in graph.layers] == [4, 4, 4, 3]
    assert graph.spiking == graph.layers[:-1]
    assert graph.readout is graph.nodes[-1]


@pytest.mark.parametrize(
    ("shape", "wanted"), [((6,), (6, 1, 1)), ((2, 3), (1, 2, 3)), ((2, 3, 1), (2, 3, 1)), ((1, 2, 1, 3), (6, 1, 1)), ((6, 1), (1, 6, 1))]
)
def test_the_image_as_a_map(shape: tuple[int, ...], wanted: tuple[int, int, int], make_net: Net) -> None:
    assert replace(make_net((6, 3, 2)), input_shape=shape).shapes[IMAGE] == wanted


@pytest.mark.parametrize("seed", range(30))
def test_output_shapes_are_those_of_torch(seed: int) -> None:
    chance = random.Random(seed)
    size, kernel, stride = ([chance.randrange(1, most) for _ in range(2)] for most in (10, 4, 4))
    padding = [chance.randrange(of) for of in kernel]
    if any(s + 2 * p < k for s, k, p in zip(size, kernel, padding, strict=True)):
        size = [9, 7]
    synapses = Synapses(IMAGE, torch.ones(5, 2, *kernel, dtype=torch.int64), 2, (stride[0], stride[1]), (padding[0], padding[1]))
    pool = Pool("pool", "x", "max", synapses.kernel, synapses.stride, synapses.padding)
    wanted = torch.nn.functional.conv2d(torch.ones(1, 2, *size), synapses.weight.float(), None, stride, padding).shape[1:]
    assert output_shape(synapses, (2, size[0], size[1])) == tuple(wanted)
    assert output_shape(pool, (2, size[0], size[1])) == (2, *wanted[1:])
    assert output_shape(Synapses(IMAGE, torch.ones(5, 8), 2), (2, 2, 2)) == (5, 1, 1)


def test_wire_order_is_by_pixel_and_channel_innermost() -> None:
    values = torch.arange(12).repeat(2, 1)
    assert to_wire(values, (2, 2, 3)).tolist() == [[0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]] * 2
    assert to_wire(values[0], (1, 3, 4)).tolist() == to_wire(values[0], (12, 1, 1)).tolist() == list(range(12))


def test_a_shortcut_is_one_weight_a_channel() -> None:
    def synapses(groups: int, *shape: int) -> Synapses:
        return Synapses("x", torch.ones(shape, dtype=torch.int64), 12, groups=groups)

    assert synapses(4, 4, 1, 1, 1).shortcut
    assert not any(part.shortcut for part in (synapses(1, 4, 1, 1, 1), synapses(4, 4, 1, 1, 2), synapses(4, 8, 1, 1, 1), synapses(1, 1, 1)))


# --- a field of the file is missing or wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "field"),
    [(None, field) for field in ("format", "version", "name", "levels", "margin", "sleep", "input", "nodes", "meta")]
    + [("input", field) for field in ("shape", "max")]
    + [("node", field) for field in ("type", "name", "synapses", "bias", "threshold", "scale")]
    + [("synapses", field) for field in ("source", "weight", "bits", "stride", "padding", "groups")]
    + [("pool", field) for field in ("type", "name", "source", "kind", "kernel", "stride", "padding")],
)
def test_missing_field(where: str | None, field: str, saved_graph: Path) -> None:
    content = torch.load(saved_graph, weights_only=True)
    nodes = content["nodes"]
    holder = {None: content, "input": content["input"], "node": nodes[0], "synapses": nodes[2]["synapses"][1], "pool": nodes[1]}[where]
    del holder[field]
    torch.save(content, saved_graph)
    assert re.search(f"the field '{field}' is missing; convert the network again$", refusal(saved_graph))


def _set(*keys: str | int, to: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        holder = content
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = to
        return content

    return change


def _weight(change: Callable[[torch.Tensor], Any], layer: int = 0, field: str = "weight") -> Callable[[Any], Any]:
    def edit(content: Any) -> Any:
        holder = content["nodes"][layer]
        holder = holder["synapses"][0] if field == "weight" else holder
        holder[field] = change(holder[field])
        return content

    return edit


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.double()
    tensor.view(-1)[1] = float("nan")
    return tensor


def _twice(content: Any) -> Any:
    content["nodes"][1]["name"] = content["nodes"][0]["name"]
    return content


def _cycle(content: Any) -> Any:
    content["meta"]["self"] = [content["meta"], content["meta"]]
    return content


BAD_FIELDS = {
    "not a dictionary": (lambda content: [1, 2], r"is a list, not a dictionary"),
    "format": (_set("format", to="onnx"), r"format is 'onnx', not 'casc-net'"),
    "format long": (_set("format", to="x" * 5000), r"format is 'xxx.*, not 'casc-net'"),
    "format of another type": (_set("format", to=7), r"format is 7, not a value of type str"),
    "version": (_set("version", to=1), r"version is 1, this program reads 2"),
    "version huge": (_set("version", to=10**90), r"version is 100000.*, this program reads 2"),
    "version true": (_set("version", to=True), r"version is True, not a value of type int"),
    "name is a path": (_set("name", to="../../etc/passwd"), r"name: '../../etc/passwd' is not 1 to 64 letters"),
    "name empty": (_set("name", to=""), r"name: '' is not 1 to 64"),
    "name long": (_set("name", to="n" * 5000), r"name: 'nnn.*\.\.\. is not 1 to 64"),
    "name not a text": (_set("name", to=5), r"name is 5, not a value of type str"),
    "layer name empty": (_set("nodes", 0, "name", to=""), r"node 0: name '' is not 1 to 64 printable"),
    "layer name with an escape": (_set("nodes", 0, "name", to="\x1b[2J"), r"node 0: name .* is not 1 to 64 printable"),
    "layer name twice": (lambda content: _twice(content), r"node 1: name .* is taken by an earlier node"),
    "levels 0": (_set("levels", to=0), r"levels: 0 is not an integer from 1 to 255"),
    "levels 256": (_set("levels", to=256), r"levels: 256 is not an integer from 1 to 255"),
    "levels text": (_set("levels", to="8"), r"levels is '8', not a value of type int"),
    "levels fraction": (_set("levels", to=8.0), r"levels is 8.0, not a value of type int"),
    "levels none": (_set("levels", to=None), r"levels is None, not a value of type int"),
    "margin 0": (_set("margin", to=0), r"margin: 0 is not an integer from 1 to 8"),
    "margin above levels": (_set("margin", to=9), r"margin: 9 is not an integer from 1 to 8"),
    "sleep negative": (_set("sleep", to=-1), r"sleep: -1 is not an integer from 0"),
    "sleep huge": (_set("sleep", to=1 << 40), r"sleep: 1099511627776 is not an integer from 0"),
    "input not a dictionary": (_set("input", to=3), r"input is 3, not a value of type dict"),
    "input max 0": (_set("input", "max", to=0), r"input max: 0 is not an integer from 1 to 255"),
    "input max 256": (_set("input", "max", to=256), r"input max: 256 is not an integer from 1 to 255"),
    "shape text": (_set("input", "shape", to="6"), r"input: shape is '6', not a value of type list"),
    "shape empty": (_set("input", "shape", to=[]), r"input shape: is empty"),
    "shape of texts": (_set("input", "shape", to=["6"]), r"input shape: '6' is not an integer"),
    "shape of zero": (_set("input", "shape", to=[6, 0]), r"input shape: 0 is not an integer from 1"),
    "shape negative": (_set("input", "shape", to=[-2, -3]), r"input shape: -2 is not an integer from 1"),
    "shape huge": (_set("input", "shape", to=[1 << 60]), r"input shape: 1152921504606846976 is not an integer from 1"),
    "shape of huge product": (_set("input", "shape", to=[1 << 24] * 8), r"input shape: \d+ pixels, the most is 16777216"),
    "shape of another size": (_set("input", "shape", to=[7]), r"layer0: takes 6 inputs, but 7 arrive"),
    "nodes not a list": (_set("nodes", to={}), r"nodes is a dict, not a value of type list"),
    "no layers": (_set("nodes", to=[]), r"layers: 0 given"),
    "one layer": (lambda content: content | {"nodes": content["nodes"][1:]}, r"layers: 1 given"),
    "a layer is no dictionary": (_set("nodes", 1, to=None), r"node 1: is a NoneType, not a dictionary"),
    "node type": (_set("nodes", 0, "type", to="conv"), r"layer0: type 'conv' is not known; use 'layer' or 'pool'"),
    "node type long": (_set("nodes", 0, "type", to="c" * 999), r"layer0: type 'ccc.* is not known; use"),
    "bits 5": (_set("nodes", 0, "synapses", 0, "bits", to=5), r"layer0: 5-bit weights; use one of 2, 3, 4, 6, 8"),
    "bits too few": (_set("nodes", 0, "synapses", 0, "bits", to=4), r"layer0: weights span -?\d+ to \d+, beyond 4 bits"),
    "weight is a list": (
        _set("nodes", 0, "synapses", 0, "weight", to=[[1]]),
        r"layer0, synapses 0: weight is a list, not a value of type Tensor",
    ),
    "weight none": (_set("nodes", 0, "synapses", 0, "weight", to=None), r"layer0, synapses 0: weight is None, not a value of type Tensor"),
    "weight NaN": (_weight(_nan), r"layer0, synapses 0: weight holds nan, not integers"),
    "weight infinite": (_weight(lambda w: w / torch.zeros(1)), r"layer0, synapses 0: weight holds -?inf, not integers"),
    "weight float": (_weight(lambda w: w.float()), r"layer0, synapses 0: weight is of type torch.float32, not integers"),
    "weight half": (_weight(lambda w: w.half()), r"layer0, synapses 0: weight is of type torch.float16, not integers"),
    "weight float8": (
        _weight(lambda w: w.float().to(torch.float8_e4m3fn)),
        r".*holds something other than tensors and plain values",
    ),
    "weight complex": (_weight(lambda w: w.to(torch.complex64)), r".*holds something other than tensors and plain values"),
    "weight bool": (_weight(lambda w: w > 0), r"layer0, synapses 0: weight is of type torch.bool, not integers"),
    "weight sparse": (_weight(lambda w: w.long().to_sparse()), r".*holds something other than tensors and plain values"),
    "weight nowhere": (_weight(lambda w: w.to("meta")), r".*holds something other than tensors and plain values"),
    "weight flat": (_weight(lambda w: w.flatten()), r"layer0, synapses 0: weight has shape \(30,\), expected 2 or 4 dimensions"),
    "weight empty": (_weight(lambda w: w[:0]), r"layer0: weight has shape \(0, 6\) of torch.int64, not 2 or 4 sizes above 0"),
    "weight out of range": (_weight(lambda w: w.long() + 300), r"layer0: weights span \d+ to \d+, beyond 8 bits"),
    "weight huge": (
        _weight(lambda w: w[:1, :1].expand(1 << 24, 1 << 24)),
        r"layer0, synapses 0: weight has shape \(16777216, 16777216\), too large",
    ),
    "bias NaN": (_weight(_nan, field="bias"), r"layer0: bias holds nan"),
    "bias of another size": (_weight(lambda b: b[1:], field="bias"), r"layer0: bias has shape \(4,\) of torch.int64, expected \(5,\)"),
    "bias huge": (_weight(lambda b: b - (1 << 60), field="bias"), r"layer0: a bias of size \d+, the most is"),
    "bias most negative": (_weight(lambda b: b * 0 - (1 << 63), field="bias"), r"layer0: a bias of size 9223372036854775808"),
    "sums too large": (_weight(lambda b: b * 0 + (1 << 51), field="bias"), r"layer0: its sums may reach \d+, the most is"),
    "threshold 0": (_weight(lambda t: t * 0, field="threshold"), r"layer0: threshold of channel 0 is 0, it must be positive"),
    "threshold negative": (_weight(lambda t: -t, field="threshold"), r"layer0: threshold of channel \d is -\d+, it must be positive"),
    "threshold huge": (_weight(lambda t: t + (1 << 52), field="threshold"), r"layer0: threshold reaches \d+, the most is"),
    "threshold of another size": (
        _weight(lambda t: t[1:], field="threshold"),
        r"layer0: threshold has shape \(4,\) of torch.int64, expected \(5,\)",
    ),
    "threshold fraction": (_weight(lambda t: t + 0.5, field="threshold"), r"layer0: threshold is of type torch.float32, not integers"),
    "no threshold": (_set("nodes", 0, "threshold", to=None), r"layer0: has no threshold, but is not the last node"),
    "threshold on the read-out": (
        _set("nodes", 1, "threshold", to=torch.ones(3, dtype=torch.int64)),
        r"layer1: the read-out has a threshold",
    ),
    "read-out of another size": (_weight(lambda w: w[:, 1:], layer=1), r"layer1: takes 4 inputs, but 5 arrive"),
    "scale none": (_set("nodes", 1, "scale", to=None), r"layer1: scale is None, not a positive number"),
    "scale 0": (_set("nodes", 1, "scale", to=0.0), r"layer1: scale is 0.0, not a positive number"),
    "scale NaN": (_set("nodes", 1, "scale", to=float("nan")), r"layer1: scale is nan, not a positive number"),
    "scale infinite": (_set("nodes", 1, "scale", to=float("inf")), r"layer1: scale is inf, not a positive number"),
    "scale an integer": (_set("nodes", 1, "scale", to=1), r"layer1: scale is 1, not a value of type float"),
    "meta that holds itself": (_cycle, r"meta: holds more than 100000 values, or itself"),
    "meta text": (_set("meta", to="97 %"), r"meta is '97 %', not a value of type dict"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_field(case: str, saved: Path) -> None:
    change, wanted = BAD_FIELDS[case]
    torch.save(change(torch.load(saved, weights_only=True)), saved)
    assert re.match(f"(file: )?{wanted}", refusal(saved))


def _synapses(node: int, number: int = 0, **fields: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content["nodes"][node]["synapses"][number] |= fields
        return content

    return change


def _node(node: int, **fields: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content["nodes"][node] |= fields
        return content

    return change


def _reorder(*order: int) -> Callable[[Any], Any]:
    return lambda content: content | {"nodes": [content["nodes"][index] for index in order]}


def _insert(place: int, **entry: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        content["nodes"].insert(place, entry)
        return content

    return change


def _ones(*shape: int) -> torch.Tensor:
    return torch.ones(shape, dtype=torch.int8)


POOL = {"type": "pool", "kernel": [2, 2], "stride": [1, 1], "padding": [0, 0]}
BAD_NODES = {
    # nodes: 0 first, 1 max, 2 same (max, max), 3 half (same, max), 4 average, 5 last
    "named as the image": (_node(1, name="image"), r"node 1: name 'image' is the input's; give another name"),
    "source unknown": (_synapses(2, source="nobody"), r"same: takes 'nobody', which is no node; put every node after"),
    "source long": (_synapses(2, source="n" * 5000), r"same: takes 'nnn.*, which is no node"),
    "source not a text": (_synapses(2, source=1), r"same, synapses 0: source is 1, not a value of type str"),
    "source itself": (_synapses(2, source="same"), r"same: takes 'same', which is not before it"),
    "source later: a cycle": (
        _synapses(2, source="half"),
        r"same: takes 'half', which is not before it; put every node after those it takes",
    ),
    "wrong order": (_reorder(0, 2, 1, 3, 4, 5), r"same: takes 'max', which is not before it"),
    "pool of itself": (_node(1, source="max"), r"max: takes 'max', which is not before it"),
    "pool of nothing": (_node(1, source=""), r"max: takes '', which is no node"),
    "pool of the image": (_node(1, source="image"), r"max: pools the image, but only what neurons emit can be pooled"),
    "pool first": (_reorder(1, 0, 2, 3, 4, 5), r"max: takes 'first', which is not before it"),
    "pool last": (_insert(6, name="end", source="last", kind="max", **POOL), r"last: has no threshold, but is not the last node"),
    "ends in a pool": (_reorder(0, 1, 2, 3, 4), r"average: the network ends in a pool; end it with one Linear or Conv2d"),
    "unused pool": (_insert(2, name="more", source="first", kind="max", **POOL), r"more: no later node takes it; remove it"),
    "unused layer": (_synapses(3, source="max", weight=_ones(4, 4, 2, 2)), r"same: no later node takes it"),
    "no synapses": (_node(2, synapses=[]), r"same: has no synapses"),
    "synapses not a list": (_node(2, synapses={}), r"same: synapses is a dict, not a value of type list"),
    "synapses not dictionaries": (_node(2, synapses=[7]), r"same, synapses 0: is a int, not a dictionary"),
    "image twice": (_synapses(3, 1, source="image", weight=_ones(4, 2, 1, 1), stride=[3, 3]), r"half: takes the image, but only the first"),
    "image later": (_synapses(2, source="image", weight=_ones(4, 1, 3, 1)), r"same: takes the image, but only the first node may"),
    "first without the image": (_synapses(0, source="max"), r"first: takes 'max', which is not before it"),
    "max of an average": (
        _insert(5, name="worse", source="average", kind="max", **(POOL | {"kernel": [1, 1]})),
        r"worse: takes the maximum of averages \(average\)",
    ),
    "kind": (_node(1, kind="median"), r"max: kind 'median' is not known; use 'average' or 'max'"),
    "kind long": (_node(1, kind="m" * 999), r"max: kind 'mmm.* is not known"),
    "kernel 0": (_node(1, kernel=[2, 0]), r"max: kernel: 0 is not an integer from 1"),
    "kernel not a list": (_node(1, kernel=2), r"max: kernel is 2, not a value of type list"),
    "kernel of three": (_node(1, kernel=[2, 2, 2]), r"max: kernel is not two integers"),
    "kernel of fractions": (_node(1, kernel=[2.0, 2]), r"max: kernel is not two integers"),
    "kernel true": (_node(1, kernel=[True, 2]), r"max: kernel is not two integers"),
    "kernel larger than the map": (_node(4, kernel=[3, 2]), r"average: a kernel of 3x2 is larger than the padded map, 2x2 and padding 0x0"),
    "kernel huge": (_node(4, kernel=[1 << 70, 1]), r"average: kernel: \d+ is not an integer from 1"),
    "stride 0": (_node(1, stride=[0, 1]), r"max: stride: 0 is not an integer from 1"),
    "stride negative": (_synapses(3, stride=[2, -2]), r"half: stride: -2 is not an integer from 1"),
    "padding negative": (_synapses(3, padding=[1, -1]), r"half: padding: -1 is not an integer from 0 to 1"),
    "padding of the kernel's size": (_node(1, padding=[2, 0]), r"max: padding: 2 is not an integer from 0 to 1"),
    "padding huge": (_synapses(0, padding=[1 << 60, 0]), r"first: padding: \d+ is not an integer from 0 to 2"),
    "groups 0": (_synapses(2, groups=0), r"same: groups: 0 is not an integer from 1"),
    "groups that do not divide": (_synapses(2, groups=3), r"same: 4 to 4 channels in 3 groups; use a number that divides both"),
    "groups of another size": (_synapses(2, groups=4), r"same: takes 2 channels a group, but 1 arrive"),
    "groups true": (_synapses(2, groups=True), r"same, synapses 0: groups is True, not a value of type int"),
    "channels": (_synapses(0, weight=_ones(4, 3, 3, 3)), r"first: takes 3 inputs, but 2 arrive"),
    "weight of three dimensions": (
        _synapses(0, weight=_ones(4, 3, 3)),
        r"first, synapses 0: weight has shape \(4, 3, 3\), expected 2 or 4",
    ),
    "weight without a tap": (_synapses(0, weight=_ones(4, 2, 3, 0)), r"first: weight has shape \(4, 2, 3, 0\) of torch.int64, not 2 or 4"),
    "kernel of weights too large": (_synapses(0, weight=_ones(4, 2, 8, 3)), r"first: a kernel of 8x3 is larger than the padded map, 5x6"),
    "dense with a stride": (_synapses(5, stride=[1, 2]), r"last: dense synapses with a stride, padding or groups"),
    "dense with groups": (_synapses(5, groups=2), r"last: dense synapses with a stride, padding or groups"),
    "dense of another size": (_synapses(5, weight=_ones(3, 5)), r"last: takes 5 inputs, but 4 arrive"),
    "bits of a shortcut": (_synapses(2, 1, bits=25), r"same: 25-bit weights; use one of 2, 3, 4, 6, 8"),
    "bits of a shortcut too few": (_synapses(2, 1, bits=13), r"same: weights span 5000 to 5000, beyond 13 bits"),
    "wide weights that are no shortcut": (_synapses(2, 0, bits=14), r"same: 14-bit weights"),
    "bits 0": (_synapses(2, 1, bits=0), r"same: 0-bit weights"),
    "bits negative": (_synapses(2, 1, bits=-3), r"same: -3-bit weights"),
    "maps of two shapes": (_synapses(3, 1, stride=[1, 1]), r"half: a map of 4x3x3 comes from max, one of 4x2x2 from same"),
    "channels of two shapes": (_synapses(3, 1, weight=_ones(3, 4, 1, 1)), r"half: a map of 3x2x2 comes from max, one of 4x2x2 from same"),
    "bias by neuron": (_node(0, bias=torch.zeros(120).long()), r"first: bias has shape \(120,\) of torch.int64, expected \(4,\)"),
    "image of another shape": (_set("input", "shape", to=[5, 6, 2]), r"first: takes 2 inputs, but 5 arrive"),
    "image that is flat": (_set("input", "shape", to=[60]), r"first: takes 2 inputs, but 60 arrive"),
    "image too large": (_set("input", "shape", to=[2, 1 << 20, 1 << 20]), r"input shape: 2199023255552 pixels, the most is"),
    "maps too large": (_set("input", "shape", to=[2, 1 << 12, 1 << 11]), r"first: a map of 4x4096x2048, the most is 16777216 neurons"),
}


@pytest.mark.parametrize("case", BAD_NODES)
def test_bad_node(case: str, saved_graph: Path) -> None:
    change, wanted = BAD_NODES[case]
    torch.save(change(torch.load(saved_graph, weights_only=True)), saved_graph)
    assert re.match(wanted, refusal(saved_graph))


def test_a_pool_alone_at_the_end_is_no_read_out(graph: IntegerNet) -> None:
    first, second = graph.nodes[0], replace(graph.nodes[0], name="second", synapses=(Synapses("first", _ones(4, 4, 1, 1).long(), 2),))
    with pytest.raises(CascError, match=r"^pool: the network ends in a pool; end it with one Linear or Conv2d that has no activation$"):
        replace(graph, nodes=(first, second, Pool("pool", "second", "max", (1, 1), (1, 1))))


def test_sums_behind_averages_are_told_from_the_span(graph: IntegerNet) -> None:
    """Windows upon windows multiply: the file is small, the sums are not."""

    def chain(count: int) -> tuple[Layer | Pool, ...]:
        pools = [Pool(f"pool{index}", f"pool{index - 1}" if index else "half", "average", (2, 2), (1, 1), (1, 1)) for index in range(count)]
        last = Layer(
            "last", (Synapses(f"pool{count - 1}", torch.ones(3, 4 * (2 + count) ** 2).long(), 8),), torch.ones(3).long(), None, 2.0
        )
        return (*graph.nodes[:4], *pools, last)

    net = replace(graph, nodes=chain(18))
    assert net.span("pool17") == 4**18
    with pytest.raises(CascError, match=r"^last: its sums may reach \d+, the most is 4503599627370495"):
        replace(graph, nodes=chain(21))
    with pytest.raises(CascError, match=r"^pool24: its windows may sum up to 1125899906842624, the most is 4503599627370495"):
        replace(graph, nodes=chain(30))


@pytest.mark.parametrize("source", ["same", IMAGE])
def test_the_sum_of_all_synapses_counts(source: str, graph: IntegerNet) -> None:
    """Each below the bound, together above."""
    half = torch.full((4,), 1 << 48)
    name, channels = ("first", 2) if source == IMAGE else ("half", 4)
    node = next(node for node in graph.nodes if node.name == name)
    assert isinstance(node, Layer)
    part = replace(node.synapses[0], weight=torch.ones(4, channels, 1, 1).long() * 2**22, bits=8)
    assert part.weight.max() == 1 << 22
    net = with_node(graph, name, bias=half * 3)
    with pytest.raises(CascError, match=rf"^{name}: its sums may reach \d+"):
        with_node(net, name, bias=half * 4)


# --- the file is not what it says -------------------------------------------------------------------------------------


class _Evil:
    def __init__(self, command: Any):
        self.command = command

    def __reduce__(self) -> Any:
        return self.command


@pytest.mark.parametrize("function", [os.system, os.mkdir, subprocess.call, eval, torch.load])
@pytest.mark.parametrize("place", ["whole", "meta", "weight"])
def test_pickled_code_is_not_executed(function: Any, place: str, saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    arguments = {os.mkdir: str(mark), eval: f"__import__('os').mkdir({str(mark)!r})", subprocess.call: ["mkdir", str(mark)]}
    evil: Any = _Evil((function, (arguments.get(function, f"mkdir {mark}"),)))
    content = torch.load(saved, weights_only=True)
    if place == "whole":
        content = evil
    elif place == "meta":
        content["meta"]["note"] = evil
    else:
        content["nodes"][0]["synapses"][0]["weight"] = evil
    torch.save(content, saved)
    assert "never executed" in refusal(saved)
    assert not mark.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    assert "never executed" in refusal(tmp_path / "model.pt")


def test_a_state_dict_is_refused_by_the_missing_field(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    assert refusal(tmp_path / "model.pt").startswith("file: the field 'format' is missing")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", pickle.dumps({"format": "casc-net"}), bytes(range(256)) * 40])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    assert "not a converted network" in refusal(tmp_path / "net.pt")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "damaged" in refusal(tmp_path / "net.pt")


@pytest.mark.parametrize("limit", ["MAX_FILE_BYTES", "MAX_INFLATION"])
def test_a_zip_bomb_is_refused_before_it_is_unpacked(limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(f"casc_hw.network.{limit}", 1 << 20)
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 21))
    assert "bytes unpacked, the most is" in refusal(tmp_path / "net.pt")


def test_tensors_that_unpack_to_more_than_the_file_are_refused(saved: Path) -> None:
    """Each is small enough, and none holds more than one number; together they are too large."""
    content = torch.load(saved, weights_only=True)
    content["nodes"][0]["synapses"] = [content["nodes"][0]["synapses"][0] | {"weight": _ones(1, 1).expand(900, 900)} for _ in range(2)]
    torch.save(content, saved)
    assert refusal(saved) == "layer0, synapses 1: weight has shape (900, 900), too large; convert the network again"


def test_a_large_file_is_refused_unread(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casc_hw.network.MAX_FILE_BYTES", 100)
    assert re.match(r"\d+ bytes, the most is 100", refusal(saved))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "none.pt")
    assert "not a converted network" in refusal(tmp_path)


def test_truncated_file(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in sorted({*range(0, len(whole), 97), len(whole) - 1, len(whole) - 22}):
        saved.write_bytes(whole[:length])
        refusal(saved)


def test_flipped_bits_are_refused_or_harmless(net: IntegerNet, saved: Path) -> None:
    """A flip in the padding changes nothing; one anywhere else must not load as another network."""
    whole, chance, refused = saved.read_bytes(), random.Random(1), 0
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        saved.write_bytes(damaged)
        try:
            back = IntegerNet.load(saved)
        except CascError:
            refused += 1
        else:
            assert back.digest == net.digest
            assert (back.name, back.meta) == (net.name, net.meta)
            assert [layer.name for layer in back.nodes] == [layer.name for layer in net.nodes]
    assert refused > len(whole) / 5 / 4


def test_a_tensor_marked_as_a_folder_is_refused(saved: Path) -> None:
    """One flipped bit, for which no checksum is wrong, and torch.load reads nothing and returns what was in memory."""
    whole = saved.read_bytes()
    with zipfile.ZipFile(saved) as archive:
        entry = archive.start_dir
        for _ in archive.infolist():
            damaged = bytearray(whole)
            assert damaged[entry : entry + 4] == b"PK\1\2"
            damaged[entry + 38] |= 0x10
            saved.write_bytes(damaged)
            assert refusal(saved).startswith("damaged")
            entry += 46 + sum(int.from_bytes(whole[entry + at : entry + at + 2], "little") for at in (28, 30, 32))
    assert whole[entry : entry + 4] in (b"PK\5\6", b"PK\6\6"), "not every member was tried"


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "data/1", "data/4"])
def test_a_flipped_bit_in_a_tensor_is_refused(name: str, saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        member = archive.getinfo(f"{archive.infolist()[0].filename.partition('/')[0]}/{name}")
        value = archive.read(member)
    whole = saved.read_bytes()
    assert whole.count(value) == 1
    damaged = bytearray(whole)
    damaged[whole.index(value) + len(value) // 2] ^= 4
    saved.write_bytes(damaged)
    assert refusal(saved).startswith("damaged")


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_failing_save_leaves_the_old_file_and_nothing_else(net: IntegerNet, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CascError, match=r"net\.pt: cannot be written: No space left on device; choose another place"):
        net.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(net: IntegerNet, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupt(source: Any, target: Any) -> None:
        assert saved.read_bytes() == before, "written in place"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(net, levels=9).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_save_replaces_and_is_readable_by_all(net: IntegerNet, saved: Path) -> None:
    replace(net, levels=9).save(saved)
    assert IntegerNet.load(saved).levels == 9
    assert saved.stat().st_mode & 0o777 == 0o644


def test_save_into_no_folder(net: IntegerNet, tmp_path: Path) -> None:
    with pytest.raises(CascError, match="cannot be written: No such file or directory; choose another place"):
        net.save(tmp_path / "none" / "net.pt")


@pytest.mark.parametrize("value", [object(), {1, 2}, Path("x"), [{"deep": 1j}], numpy.float64(97.5)])
def test_meta_that_could_not_be_read_back_is_refused(value: Any, net: IntegerNet, tmp_path: Path) -> None:
    with pytest.raises(CascError, match=r"^meta: '(accuracy|deep)' holds .*; use texts, numbers, lists and dictionaries$"):
        replace(net, meta={"accuracy": value})
    assert not list(tmp_path.iterdir())


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_are_flattened_to_integers(make_net: Net) -> None:
    net = replace(make_net((6, 3, 2)), input_shape=(2, 3))
    images = torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3)
    flat = net.check_images(images)
    assert flat.dtype == torch.int64
    assert flat.tolist() == [list(range(6)), list(range(6, 12))]
    assert torch.equal(net.check_images(images.double()), flat)


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        (torch.zeros(2, 5), r"shape \(2, 5\) is not a batch of \(6,\); give an array of shape \(N, 6\)"),
        (torch.zeros(6), r"shape \(6,\) is not a batch"),
        (torch.zeros(()), r"shape \(\) is not a batch"),
        (torch.full((1, 6), 0.5), "got fractions"),
        (torch.full((1, 6), float("nan")), "got fractions"),
        (torch.full((1, 6), float("inf")), "pixels span"),
        (torch.full((1, 6), -1), "pixels span -1 to -1, the network takes 0 to 200"),
        (torch.full((1, 6), 201), "pixels span 201 to 201, the network takes 0 to 200"),
    ],
)
def test_images_that_do_not_fit(images: torch.Tensor, wanted: str, make_net: Net) -> None:
    with pytest.raises(CascError, match=wanted):
        make_net((6, 3, 2), input_max=200).check_images(images)
