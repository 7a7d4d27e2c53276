"""The zoo: every network converts, and in spikes counts what its integer ANN counts; sizes as published; training and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import boards
from casc_hw import ClipQuan, IntegerNet, convert, quantised_ann
from casc_hw.qat import fake_quantise, fold_batchnorm
from examples.datasets import digits
from examples.zoo import FULL_SIZE, NETS
from examples.zoo.__main__ import main
from examples.zoo.check import check, prepare, random_images
from examples.zoo.layers import scaled
from examples.zoo.regnet import regnet_x
from examples.zoo.train import shifted, train
from rtl_gen.plan import make_plan

BIG = next(board.budget for board in boards.all_boards() if board.name == "ulx3s-85f")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


PUBLISHED = {
    "vgg11": 132_868_840, "vgg16": 138_365_992, "resnet18": 11_689_512, "resnet34": 21_797_672, "mobilenet_v1": 4_231_976,
    "regnet_x_400mf": 5_495_976, "resnext50_32x4d": 25_028_904,
}  # fmt: skip
"""Parameters at 1,000 classes: torchvision's tables (VGG: with BatchNorm), Keras's for MobileNet."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_as_many_parameters_as_published(name: str) -> None:
    with torch.device("meta"), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.init, "kaiming_normal_", lambda weight, **_: weight)
        model = NETS[name]()
    assert sum(parameter.numel() for parameter in model.parameters()) == PUBLISHED[name]


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("resnet18", "conv1.weight bn1.running_var layer1.0.conv1.weight layer2.0.downsample.0.weight layer4.1.bn2.bias fc.bias"),
        ("resnext50_32x4d", "layer1.0.downsample.1.bias layer1.2.conv3.weight layer4.2.bn3.weight fc.weight"),
        ("vgg11", "features.0.bias features.1.running_mean features.4.weight features.25.weight classifier.0.weight classifier.6.bias"),
    ],
)
def test_torchvisions_names(name: str, keys: str) -> None:
    model = NETS[name](width=1 / 32, levels=None)
    assert set(keys.split()) <= set(model.state_dict())


@pytest.mark.parametrize("name", NETS)
def test_levels_and_width_are_what_is_asked_for(name: str) -> None:
    shape = (3, 32, 32)
    models = [NETS[name](7, levels, 0.5, shape) for levels in (2, 5, None)]
    found = [[module for module in model.modules() if isinstance(module, (ClipQuan, nn.ReLU))] for model in models]
    assert len({len(of) for of in found}) == 1
    for levels, of in zip((2, 5, None), found, strict=True):
        assert all(isinstance(module, nn.ReLU) if levels is None else module.levels == levels for module in of)
    assert models[0](torch.zeros(2, *shape)).shape == (2, 7)
    count, twice = (sum(of.numel() for of in model.parameters()) for model in (models[0], NETS[name](7, 2, 1.0, shape)))
    assert 1.7 < twice / count < 4.1


def test_channels_keep_to_groups() -> None:
    assert [scaled(64, 0.3), scaled(64, 0.3, 16), scaled(4, 0.01), scaled(4, 0.01, 8)] == [19, 16, 1, 8]


REDUCED: list[tuple[str, tuple[int, int, int], float, int, int]] = [
    ("vgg11", (3, 32, 32), 1 / 16, 4, 8),
    ("vgg11", (3, 64, 64), 1 / 16, 2, 8),
    ("vgg16", (1, 28, 28), 1 / 16, 3, 4),
    ("vgg16", (3, 64, 64), 1 / 16, 2, 8),
    ("resnet18", (3, 32, 32), 1 / 16, 4, 4),
    ("resnet18", (3, 64, 64), 1 / 16, 4, 8),
    ("resnet20", (3, 16, 16), 1 / 4, 8, 8),
    ("resnet20", (1, 28, 28), 1 / 4, 2, 4),
    ("resnet34", (3, 64, 64), 1 / 16, 2, 8),
    ("mobilenet_v1", (3, 32, 32), 1 / 8, 4, 8),
    ("mobilenet_v1", (3, 64, 64), 1 / 8, 2, 8),
    ("regnet_x_400mf", (3, 32, 32), 1 / 4, 2, 8),
    ("regnet_x_400mf", (3, 64, 64), 1 / 4, 2, 8),
    ("resnext50_32x4d", (3, 32, 32), 1 / 16, 2, 4),
    ("resnext50_32x4d", (3, 64, 64), 1 / 8, 2, 8),
    ("rnn", (1, 28, 28), 1 / 2, 4, 8),
    ("rnn", (1, 8, 8), 1 / 2, 8, 4),
]
"""Name, image, width, T, bits."""


@pytest.mark.parametrize(("name", "shape", "width", "levels", "bits"), REDUCED)
def test_reduced_networks_spike_as_the_ann_counts(
    tmp_path: Path, name: str, shape: tuple[int, int, int], width: float, levels: int, bits: int
) -> None:
    found = check(name, shape, classes=10, levels=levels, width=width, bits=bits, images=3)
    assert found.mismatches == 0
    assert found.active > 0.05
    assert found.sleep_steps > 1  # neurons took spikes back or spiked late: it is sleep that makes them equal
    found.net.save(tmp_path / "net.pt")
    assert IntegerNet.load(tmp_path / "net.pt").digest == found.net.digest


@pytest.mark.parametrize(("name", "shape", "width", "levels", "bits"), [of for of in REDUCED if of[0] != "rnn"])
def test_reduced_networks_are_the_modules_with_rounded_weights(
    name: str, shape: tuple[int, int, int], width: float, levels: int, bits: int
) -> None:
    """In float64, where that is exact. With weights no one has trained, the network without rounding answers quite differently."""
    torch.manual_seed(0)
    model = fold_batchnorm(prepare(NETS[name](10, levels, width, shape), shape)).double()
    rounded = fake_quantise(model, input_shape=shape, bits=bits)
    net = convert(model, input_shape=shape, bits=bits).net
    pixels = random_images(2, shape, seed=3)
    sums = quantised_ann(net, pixels).sums.double() / (net.levels * (net.readout.scale or 0.0))
    assert torch.allclose(rounded(pixels.double() / 255), sums, rtol=1e-9, atol=1e-9)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape", "classes", "levels"), FULL_SIZE)
def test_full_size(name: str, shape: tuple[int, int, int], classes: int, levels: int) -> None:
    """As `python -m examples.zoo` prints for docs/networks.md."""
    found = check(name, shape, classes=classes, levels=levels)
    assert found.mismatches == 0
    assert found.active > 0.05


def test_a_mismatch_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain integrate-and-fire without sleep is not equal."""
    from casc_hw import SpikingNet

    monkeypatch.setattr("examples.zoo.check.SpikingNet", SpikingNet.plain)
    assert check("resnet20", (3, 16, 16), classes=10, levels=4, width=0.25).mismatches > 50


def tiny(name: str) -> IntegerNet:
    """At T = 2 and 4 bits."""
    shape = (1, 8, 8) if name == "rnn" else (3, 32, 32)
    width = {"resnet20": 1 / 4, "resnext50_32x4d": 1 / 32, "rnn": 1 / 2}.get(name, 1 / 16)
    if name == "regnet_x":  # all 22 blocks would not fit
        model: nn.Module = regnet_x((1, 1, 1, 2), (8, 8, 16, 16), 8, 10, 2, shape, 8)
    else:
        model = NETS[name](10, 2, width, shape)
    return convert(prepare(model, shape), name=name, input_shape=shape, bits=4).net


@pytest.mark.parametrize("name", ["vgg11", "resnet18", "resnet20", "mobilenet_v1", "regnet_x", "resnext50_32x4d", "rnn"])
def test_a_tiny_one_of_each_kind_is_planned(name: str) -> None:
    net = tiny(name)
    plan = make_plan(net, BIG, target_fps=1)
    assert [layer.name for layer in plan.layers] == [node.name for node in net.nodes]
    assert all(used <= available for _, used, available in plan.resources.rows())


def test_images_are_shifted_and_those_in_colour_mirrored() -> None:
    images = torch.zeros(40, 3, 16, 16)
    images[:, :, 8, 4] = 1
    places = shifted(images, torch.Generator().manual_seed(0)).nonzero()
    assert len(places) == 120
    assert set(places[:, 2].tolist()) == {6, 7, 8, 9, 10}
    assert set(places[:, 3].tolist()) == {2, 3, 4, 5, 6, 9, 10, 11, 12, 13}
    grey = shifted(images[:, :1], torch.Generator().manual_seed(0)).nonzero()
    assert set(grey[:, 3].tolist()) == {2, 3, 4, 5, 6}


@pytest.mark.slow
def test_training() -> None:
    data = digits()
    net = train("rnn", data, epochs=15, spiking=50)
    results: dict[str, Any] = net.meta["results"]
    assert results["float, %"] > 85
    assert results["integer, %"] > 85
    assert (results["spiking images"], results["mismatches"]) == (50, 0)
    assert net.levels == 8
    again = train("rnn", data, epochs=15, spiking=50)
    assert again.digest == net.digest


@pytest.mark.slow
@pytest.mark.slow
def test_training_with_rounded_weights() -> None:
    """Two epochs say nothing of accuracy; but the rounded network is the converted one."""
    net = train("resnet20", digits(), epochs=1, tune=1, levels=4, width=0.25, bits=3, rate=2e-2, spiking=10)
    results: dict[str, Any] = net.meta["results"]
    assert results["integer, %"] == results["float with rounded weights, %"] != results["float, %"]
    assert {synapses.bits for layer in net.layers for synapses in layer.synapses if not synapses.shortcut} == {3}


def run(*arguments: str) -> Any:
    return CliRunner().invoke(main, arguments)


def test_the_table() -> None:
    done = run("--net", "resnet20", "--width", "0.25", "--levels", "3")
    assert done.exit_code == 0
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(rows) == 3
    assert rows[2][:3] == ["| resnet20", "3x32x32", "3"]
    assert rows[2][-1] == "0 |"


def test_training_from_the_command_line(tmp_path: Path) -> None:
    out = tmp_path / "rnn.pt"
    done = run("--net", "rnn", "--dataset", "digits", "--epochs", "1", "--width", "0.25", "--levels", "3", "--bits", "6", "--out", str(out))
    assert done.exit_code == 0
    net = IntegerNet.load(out)
    assert (net.levels, net.input_max, net.input_shape, net.meta["recipe"]["epochs"]) == (3, 16, (1, 8, 8), 1)
    assert f"integer, %                       {net.meta['results']['integer, %']}" in done.stdout
    assert f"wrote {out}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (["--net", "alexnet"], 1, "error: net: there is no 'alexnet'; take one of vgg11"),
        (["--net", "resnet20", "--dataset", "cifar10"], 1, "error: cifar10: no folder was given; download https://"),
        (["--net", "resnet20", "--dataset", "cifar10", "--data", "nowhere"], 1, "error: nowhere: is not a folder; download https://"),
        (["--net", "rnn", "--dataset", "digits", "--out", "nowhere/x.pt"], 1, "error: nowhere/x.pt: nowhere is not a folder"),
        (
            ["--net", "resnet20", "--dataset", "digits", "--bits", "5", "--epochs", "1000"],
            1,
            "error: conv1: 5-bit weights; use one of 2, 3, 4",
        ),
        (["--net", "rnn", "--dataset", "digits", "--levels", "0"], 1, "error: ClipQuan: levels is 0"),
        (["--net", "rnn", "--dataset", "digits", "--tune", "1", "--epochs", "1000"], 1, "error: wx: is used twice"),
        (["--net", "resnet20", "--data", "x"], 2, "--data is for --dataset"),
        (["--dataset", "digits"], 2, "--dataset is for --net"),
    ],
)
def test_what_the_command_line_refuses(arguments: list[str], status: int, says: str) -> None:
    done = run(*arguments)
    assert done.exit_code == status
    assert says in done.stderr
    assert "Traceback" not in done.stderr
