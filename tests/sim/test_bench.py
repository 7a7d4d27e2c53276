"""The bench itself: it passes what is right, on two simulators, and tells what is wrong."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from amaranth.hdl import Const, Module, ResetInserter

from casc_hw import CascError, IntegerNet
from casc_hw.data import load_images
from rtl_gen.cycles import measure, predict
from rtl_gen.gates.core import Core, CoreSpec
from rtl_gen.lower import Lanes, core_spec
from sim.bench import LayerCheck, Outcome, ResultCheck, Tap
from sim.runner import run_bench

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
LANES, BEAT = [Lanes(8, 2), Lanes(5, 5)], 4
icarus = pytest.param("icarus", marks=pytest.mark.skipif(not shutil.which("iverilog"), reason="iverilog is not installed"))


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder for all: the simulator's own objects are compiled once."""
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def net() -> IntegerNet:
    return IntegerNet.load(EXAMPLES / "digits_mlp.pt")


@pytest.fixture(scope="module")
def spec(net: IntegerNet) -> CoreSpec:
    return core_spec(net, LANES, BEAT)


@pytest.fixture(scope="module")
def images(net: IntegerNet) -> torch.Tensor:
    return load_images(net, None, EXAMPLES / "digits_mlp.pt")[0][:40]


@pytest.mark.slow
@pytest.mark.parametrize("simulator", ["verilator", icarus])
@pytest.mark.parametrize("stall", [0.0, 0.4])
def test_equal(simulator: str, stall: float, net: IntegerNet, spec: CoreSpec, images: torch.Tensor, work: Path) -> None:
    result = run_bench(net, spec, images, work, simulator=simulator, stall=stall)
    assert (result.images, result.mismatches, result.messages) == (40, 0, [])
    assert result.spikes_compared == 40 * 32 * 9  # eight wake steps and a silent one
    assert result.sleep_steps.min == result.sleep_steps.max == 1
    if stall == 0:
        predicted = predict(spec, measure(net, images, "spike"))
        assert predicted.interval == pytest.approx(result.cycles.median, rel=0.12)


@pytest.mark.slow
def test_another_network_is_told(net: IntegerNet, spec: CoreSpec, images: torch.Tensor, work: Path) -> None:
    threshold = net.layers[0].threshold.clone()
    threshold[3] = threshold[3] // 3
    other = replace(net, nodes=(replace(net.nodes[0], threshold=threshold), net.nodes[1]))
    result = run_bench(other, spec, images, work)
    assert result.mismatches > 0
    assert "layer 0, image " in result.messages[0]
    assert "step " in result.messages[0]
    assert "neuron 3: got " in result.messages[0]
    assert ", expected " in result.messages[0]


@pytest.mark.slow
def test_a_core_that_hangs_is_given_up(net: IntegerNet, spec: CoreSpec, images: torch.Tensor, work: Path) -> None:
    class Dead(Core):
        def elaborate(self, platform: object) -> Module:
            return ResetInserter(Const(1))(super().elaborate(platform))

    result = run_bench(net, spec, images[:2], work, core=Dead(spec, bench=True))
    assert result.images == 0
    assert "not busy after a transfer of pixels" in result.messages[0]


@pytest.mark.slow
def test_vcd(net: IntegerNet, spec: CoreSpec, images: torch.Tensor, work: Path, tmp_path: Path) -> None:
    assert run_bench(net, spec, images[:1], work, vcd=tmp_path / "waves.vcd").mismatches == 0
    assert "$enddefinitions" in (tmp_path / "waves.vcd").read_text()[:2_000_000]


def test_a_volley_beside_the_map_is_told() -> None:
    outcome, vectors = Outcome(), {"wake": np.ones(1, bool), "active": np.ones((1, 1), bool), "counts_0": np.zeros((1, 3), int)}
    layer = LayerCheck(0, vectors, Tap((1, 1, 3), 1, (0, 2, 0, 2), False, False, True, (0,)), outcome)
    layer.take(2 << 2)
    assert not outcome.messages
    layer.take(3 << 2 | 1 << 4)
    assert "(y, x) = (0, 3), which is not on the map" in outcome.messages[0]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ([4, -1 % (1 << 32), 0, 3 | 1 << 30, 99], ""),
        ([4, -1 % (1 << 32), 0, 3, 99], "image 0, status: got 3, expected 1073741827"),
        ([4, 0, 3 | 1 << 30, 99], "image 0: 4 words, expected 5"),
    ],
)
def test_words_of_a_result(words: list[int], told: str) -> None:
    outcome = Outcome()
    check = ResultCheck({"sums": np.array([[4, -1]]), "classes": [0], "sleep_steps": [3]}, outcome, {0})
    assert [check.take(word, index == len(words) - 1) for index, word in enumerate(words)] == [False] * (len(words) - 1) + [True]
    assert outcome.messages == [told] * bool(told)


@pytest.mark.parametrize(
    ("options", "words"),
    [({"simulator": "modelsim"}, "'modelsim' is not known"), ({"simulator": "icarus", "vcd": Path("x")}, "vcd: icarus")],
)
def test_refused(options: dict[str, object], words: str, net: IntegerNet, spec: CoreSpec, images: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(CascError, match=words):
        run_bench(net, spec, images, tmp_path, **options)
    with pytest.raises(CascError, match="there are none"):
        run_bench(net, spec, images[:0], tmp_path)
