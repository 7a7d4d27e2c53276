"""The zoo: every network converts, and in spikes counts what its integer ANN counts; sizes as published; training and the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from torch import nn

import boards
from casc_hw import CascError, ClipQuan, IntegerNet, convert
from examples.datasets import digits
from examples.zoo import FULL_SIZE, NETS
from examples.zoo.__main__ import main
from examples.zoo.check import check, prepare, random_images
from examples.zoo.layers import scaled
from examples.zoo.train import shifted, train
from rtl_gen.plan import TooLarge, make_plan

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


@pytest.mark.slow
@pytest.mark.parametrize(("name", "shape"), [of for of in FULL_SIZE if of[0] in ("rnn", "resnet20", "mobilenet_v1")])
def test_full_size(name: str, shape: tuple[int, int, int]) -> None:
    """The others: python -m examples.zoo (docs/networks.md)."""
    found = check(name, shape, classes=10 if min(shape[1:]) < 64 else 1000, levels=2)
    assert found.mismatches == 0
    assert found.active > 0.05


def test_a_mismatch_would_be_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain integrate-and-fire without sleep is not equal."""
    from casc_hw import SpikingNet

    monkeypatch.setattr("examples.zoo.check.SpikingNet", SpikingNet.plain)
    assert check("resnet20", (3, 16, 16), classes=10, levels=4, width=0.25).mismatches > 50


def test_reduced_networks_are_planned() -> None:
    """One small one of each kind; on a device where they do not fit it is said by how much."""
