"""NIR graphs in and out, with the real package: what goes out comes back as the same network, what has no exact meaning is refused."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from casc_hw import IMAGE, CascError, ClipQuan, IntegerNet, Layer, Pool, Synapses, convert, from_nir, quantised_ann, to_nir
from casc_hw.clipquan import IntegrateAndFire
from casc_hw.qat import fake_quantise
from sim.random_nets import random_graph

nir = pytest.importorskip("nir")

EXAMPLES = Path(__file__).parents[2] / "examples"


def _rewritten(graph: Any, path: Path) -> Any:
    nir.write(path, graph)
    return path


def _has_max(net: IntegerNet) -> bool:
    return any(isinstance(node, Pool) and node.kind == "max" for node in net.nodes)


def _same_answers(one: IntegerNet, two: IntegerNet) -> bool:
    images = torch.randint(0, one.input_max + 1, (20, one.inputs), generator=torch.Generator().manual_seed(1))
    first, second = quantised_ann(one, images), quantised_ann(two, images)
    counts = zip(first.counts, second.counts, strict=True)
    return torch.equal(first.sums, second.sums) and all(torch.equal(mine, yours) for mine, yours in counts)


@pytest.mark.parametrize("name", ["digits_mlp", "mnist_mlp", "mnist_cnn_avg", "mnist_mobilenet"])
def test_an_example_comes_back_from_a_file_as_it_went(name: str, tmp_path: Path) -> None:
    net = IntegerNet.load(EXAMPLES / f"{name}.pt")
    back = from_nir(_rewritten(to_nir(net), tmp_path / "net.nir"))
    assert back.digest == net.digest
    assert (back.name, back.margin, back.sleep, back.input_shape) == (net.name, net.margin, net.sleep, net.input_shape)


@pytest.mark.parametrize("seed", range(16))
def test_random_graphs_come_back_with_the_same_answers(seed: int, tmp_path: Path) -> None:
    """Shortcuts, several sources, strides, groups, oblong kernels; a digest may differ where a dense layer is a map, or a pool 1 x 1."""
    net = random_graph(seed)
    if _has_max(net):
        with pytest.raises(CascError, match=r"pool.*: NIR has no node for a max pool"):
            to_nir(net)
        return
    back = from_nir(_rewritten(to_nir(net), tmp_path / "net.nir"))
    assert _same_answers(net, back)
    assert (back.levels, back.margin, back.sleep, back.input_max) == (net.levels, net.margin, net.sleep, net.input_max)


def test_shortcuts_of_dense_layers_come_back(make_net: Callable[..., IntegerNet], tmp_path: Path) -> None:
    net = make_net((6, 4, 4, 3), levels=5, bits=3, input_max=15, sleep=9)
    first, second, last = net.layers
    ones = torch.tensor([300, 1, 7, 500]).reshape(4, 1, 1, 1)
    around = Layer(second.name, (*second.synapses, Synapses("layer0", ones, 10, groups=4)), second.bias, second.threshold)
    net = IntegerNet("around", 5, 3, 9, (2, 3), 15, (first, around, last))
    assert from_nir(_rewritten(to_nir(net), tmp_path / "net.nir")).digest == net.digest


def test_what_is_written_is_integers_and_says_what_nir_cannot() -> None:
    net = IntegerNet.load(EXAMPLES / "mnist_cnn_avg.pt")
    graph = to_nir(net)
    for node in graph.nodes.values():
        for field in ("weight", "bias", "v_threshold"):
            value = getattr(node, field, np.zeros(1))
            assert (value == value.round()).all()
    first, unit = net.layers[0], net.input_max
    assert (graph.nodes[first.name].weight == first.synapses[0].weight.numpy() * unit).all()
    assert (graph.nodes[f"{first.name}_if"].r == 1).all()
    told = graph.metadata["casc"]
    assert (told["levels"], told["input_max"], told["scale"]) == (net.levels, unit, net.readout.scale)


def test_a_bias_on_nothing_but_shortcuts_is_refused() -> None:
    one = torch.ones(1, dtype=torch.int64)
    shortcut = Synapses("a", torch.full((1, 1, 1, 1), 9), 5)
    net = IntegerNet("bare", 2, 2, None, (1,), 1, (
        Layer.dense("a", IMAGE, one[:, None], one, one, 2),
        Layer("b", (shortcut,), one, one),
        Layer.dense("c", "b", one[:, None], one, None, 2, 1.0),
    ))  # fmt: skip
    with pytest.raises(CascError, match="b: has a bias and nothing but shortcuts"):
        to_nir(net)


# Graphs of others: floats, scalars for pairs, r = 1 / dt


def _draw(*shape: int) -> np.ndarray:
    chance = np.random.default_rng(sum(shape))
    return (chance.standard_normal(shape) / 3).astype(np.float32)


def _foreign(**changed: Any) -> Any:
    """Conv2d, IF, a pool, Flatten, Affine, IF, Linear; ``changed`` nodes by name."""
    nodes = {
        "input": nir.Input(np.array([1, 6, 6])),
        "conv.1": nir.Conv2d((6, 6), _draw(3, 1, 3, 3), 1, 1, 1, 1, _draw(3)),
        "if": nir.IF(np.full((3, 6, 6), 1e4), np.full((3, 6, 6), 0.5)),
        "pool": nir.AvgPool2d(2, 2, 0),
        "flatten": nir.Flatten(np.array([3, 3, 3]), 0, -1),
        "0": nir.Affine(_draw(5, 27), _draw(5)),
        "1": nir.IF(np.full(5, 1e4), np.linspace(0.5, 2, 5)),
        "2": nir.Linear(_draw(4, 5)),
        "output": nir.Output(np.array([4])),
    }
    names = list(nodes)
    return nir.NIRGraph(nodes | changed, list(pairwise(names)), type_check=False)


def _float_net(pool: nn.Module, gain: float) -> IntegerNet:
    """The same in torch, with the thresholds in the weights."""
    graph = _foreign().nodes
    conv, dense, out = nn.Conv2d(1, 3, 3, padding=1).double(), nn.Linear(27, 5).double(), nn.Linear(5, 4, bias=False).double()
    theta = torch.linspace(0.5, 2, 5, dtype=torch.float64)
    conv.weight.data, conv.bias.data = (torch.tensor(of).double() / 0.5 for of in (graph["conv.1"].weight, graph["conv.1"].bias))
    dense.weight.data = torch.tensor(graph["0"].weight).double() * gain / theta[:, None]
    dense.bias.data = torch.tensor(graph["0"].bias).double() / theta
    out.weight.data = torch.tensor(graph["2"].weight).double()
    model = nn.Sequential(conv, ClipQuan(6), pool, nn.Flatten(), dense, ClipQuan(6), out)
    return convert(model, input_shape=(1, 6, 6), input_max=15, bits=4).net


@pytest.mark.parametrize(("kind", "gain"), [("AvgPool2d", 1.0), ("SumPool2d", 4.0)])
def test_a_graph_of_floats_is_converted_as_the_same_torch_network(kind: str, gain: float, tmp_path: Path) -> None:
    graph = _foreign(pool=getattr(nir, kind)(np.array([2, 2]), np.array([2, 2]), np.array([0, 0])))
    net = from_nir(_rewritten(graph, tmp_path / "net.nir"), levels=6, input_max=15, bits=4, dt=1e-4, name="mine")
    assert net.digest == _float_net(nn.AvgPool2d(2), gain).digest
    assert (net.name, net.levels, [layer.name for layer in net.layers]) == ("mine", 6, ["conv.1", "0", "2"])


@pytest.mark.parametrize("widths", [8, {"conv.1": 3, "0": 6}])
def test_bits_are_one_for_all_or_by_node(widths: Any) -> None:
    net = from_nir(_foreign(), levels=4, bits=widths, dt=1e-4)
    found = {layer.name: layer.synapses[0].bits for layer in net.layers}
    assert found == ({"conv.1": 3, "0": 6, "2": 8} if isinstance(widths, dict) else dict.fromkeys(found, 8))
    assert net.input_max == 255


def test_a_branch_that_meets_again_is_a_sum() -> None:
    graph = _foreign(side=nir.Linear(_draw(5, 27)))
    graph.edges += [("flatten", "side"), ("side", "1")]
    net = from_nir(graph, levels=4, dt=1e-4)
    assert [len(layer.synapses) for layer in net.layers] == [1, 2, 1]
    assert {part.source for part in net.layers[1].synapses} == {"pool"}


def _leaky() -> Any:
    ones = np.ones((3, 6, 6))
    return nir.LIF(ones, ones, ones, ones, ones)


def _uneven() -> np.ndarray:
    values = np.ones((3, 6, 6))
    values[1, 2, 3] = 2
    return values


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "leak": ({"if": _leaky()}, "if: LIF leaks"),
    "delay": ({"if": nir.Delay(np.ones((3, 6, 6)))}, "if: Delay cannot be converted"),
    "reset": ({"1": nir.IF(np.ones(5), np.ones(5), np.full(5, -1.0))}, "1: resets to -1"),
    "threshold 0": ({"1": nir.IF(np.ones(5), np.zeros(5))}, r"1: r \* dt or v_threshold is not above 0"),
    "threshold nan": ({"1": nir.IF(np.ones(5), np.full(5, np.nan))}, "1: v_threshold is not finite"),
    "uneven": ({"if": nir.IF(np.ones((3, 6, 6)), _uneven())}, "if.*: its threshold differs within a channel"),
    "neurons": ({"1": nir.IF(np.ones(4), np.ones(4))}, "1: has thresholds for 4 neurons, but 5 values arrive"),
    "dilation": ({"conv.1": nir.Conv2d((6, 6), _draw(3, 1, 3, 3), 1, 2, 2, 1, _draw(3))}, r"conv.1: dilation \(2, 2\)"),
    "weights nan": ({"2": nir.Linear(np.full((4, 5), np.nan))}, "2: weight.* is nan"),
    "weights of 3 dimensions": ({"2": nir.Linear(np.ones((2, 4, 5)))}, "2: is no Linear that torch could build"),
    "sizes": ({"2": nir.Linear(_draw(4, 7))}, "2: takes 7 inputs, but 5 arrive"),
    "part flattened": ({"flatten": nir.Flatten(np.array([3, 3, 3]), 1, -1)}, "0: takes a flat tensor, but one of shape"),
    "no neuron": ({"1": nir.Scale(np.ones(5))}, "2: follows 0 with no activation between"),
    "scale": ({"pool": nir.Scale(_uneven())}, "pool: its scale differs within a channel"),
    "graph within": ({"1": nir.NIRGraph({}, [], type_check=False)}, "1: NIRGraph cannot be converted"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_what_has_no_exact_meaning_is_refused_by_name(what: str) -> None:
    changed, message = REFUSED[what]
    with pytest.raises(CascError, match=f"^<?{message}"):
        from_nir(_foreign(**changed), levels=4, dt=1e-4)


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([("1", "0")], "feeds back into itself"),
        ([("2", "nowhere")], "the edge '2' -> 'nowhere'"),
        ([("if", "pool")], "the edge 'if' -> 'pool' is there twice"),
        ([("output", "0")], "leaves Output"),
    ],
)
def test_edges_that_make_no_feed_forward_graph_are_refused(edges: list[tuple[str, str]], message: str) -> None:
    graph = _foreign()
    graph.edges += edges
    with pytest.raises(CascError, match=message):
        from_nir(graph, levels=4, dt=1e-4)


def test_what_is_no_graph_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "noise").write_bytes(b"noise")
    with pytest.raises(CascError, match="noise: not a NIR graph"):
        from_nir(tmp_path / "noise", levels=4)
    with pytest.raises(CascError, match="gone: there is no such file"):
        from_nir(str(tmp_path / "gone"), levels=4)
    with pytest.raises(CascError, match="graph: is a dict, not"):
        from_nir({}, levels=4)
    with pytest.raises(CascError, match="levels: NIR says nothing of T"):
        from_nir(_foreign())
    with pytest.raises(CascError, match="lone: no edge leads to it"):
        from_nir(_foreign(lone=nir.Scale(np.ones(2))), levels=4)
    with pytest.raises(CascError, match="has 2 nodes of type Output"):
        from_nir(_foreign(more=nir.Output(np.array([4]))), levels=4)
    monkeypatch.setitem(sys.modules, "nir", None)
    with pytest.raises(CascError, match="install it with `pip install nir`"):
        from_nir(tmp_path / "noise", levels=4)


def test_thresholds_of_their_own_are_not_trained_with_rounding() -> None:
    model = nn.Sequential(nn.Linear(4, 3), IntegrateAndFire(4, torch.ones(3)), nn.Linear(3, 2))
    with pytest.raises(CascError, match="1: thresholds of its own cannot be trained with rounding"):
        fake_quantise(model, input_shape=(4,))


@pytest.mark.filterwarnings("ignore")
def test_a_network_of_spikingjelly_is_converted_as_the_same_torch_network(tmp_path: Path) -> None:
    """Where SpikingJelly (2.0.0 was tried), which is not among the requirements, is installed."""
    neuron = pytest.importorskip("spikingjelly.activation_based.neuron")
    exchange = pytest.importorskip("spikingjelly.activation_based.nir_exchange")
    conv, dense, out = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(64, 5), nn.Linear(5, 3)
    fires = [neuron.IFNode(v_threshold=theta, v_reset=0.0) for theta in (0.5, 1.0)]
    net = nn.Sequential(conv, fires[0], nn.AvgPool2d(2), nn.Flatten(), dense, fires[1], out)
    exchange.export_to_nir(net, torch.rand(1, 1, 8, 8), save_path=tmp_path / "net.nir")
    conv.weight.data, conv.bias.data = conv.weight.data * 2, conv.bias.data * 2
    model = nn.Sequential(conv, ClipQuan(8), nn.AvgPool2d(2), nn.Flatten(), dense, ClipQuan(8), out)
    assert from_nir(tmp_path / "net.nir", levels=8, dt=1e-4).digest == convert(model, input_shape=(1, 8, 8)).net.digest
