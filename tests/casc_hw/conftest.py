"""Random integer networks for every test here."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

import pytest
import torch

from casc_hw import IMAGE, IntegerNet, Layer
from sim.random_nets import random_graph


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def _make_net(
    sizes: Sequence[int],
    *,
    levels: int = 8,
    margin: int | None = None,
    sleep: int | None = None,
    bits: int = 8,
    input_max: int = 255,
    seed: int = 0,
    spread: float = 1.0,
    extreme: bool = False,
) -> IntegerNet:
    """A fully connected network of ``sizes`` (inputs, hidden..., classes) whose neurons are neither all silent nor all saturated.

    ``spread``: the typical threshold over the typical current. ``extreme``: weights, biases at the ends of the format.
    """
    chance = torch.Generator().manual_seed(seed)
    half = 1 << (bits - 1)

    def draw(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high + 1, shape, generator=chance)

    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = index == len(sizes) - 2
        typical = max(int(spread * (input_max if index == 0 else 1) * half * inputs**0.5 / 2), 1)
        weight = draw(0, 1, outputs, inputs) * (2 * half - 1) - half if extreme else draw(-half, half - 1, outputs, inputs)
        layers.append(
            Layer.dense(
                name=f"layer{index}",
                source=f"layer{index - 1}" if index else IMAGE,
                weight=weight,
                bias=(draw(0, 1, outputs) * 2 - 1) * typical if extreme else draw(-(typical // 2), typical // 2, outputs),
                threshold=None if last else draw(1, typical * 2, outputs),
                bits=bits,
                scale=100.0 if last else None,
            )
        )
    return IntegerNet("random", levels, levels if margin is None else margin, sleep, (sizes[0],), input_max, tuple(layers))


@pytest.fixture(scope="session")
def make_net() -> Callable[..., IntegerNet]:
    return _make_net


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., IntegerNet]:
    return random_graph


@pytest.fixture(scope="session")
def make_images() -> Callable[..., torch.Tensor]:
    def make(net: IntegerNet, count: int, seed: int = 0) -> torch.Tensor:
        """``count`` images: all dark, all bright, then random ones, every other one of extremes only."""
        chance = torch.Generator().manual_seed(seed)
        images = torch.randint(0, net.input_max + 1, (count, net.inputs), generator=chance)
        images[::2] = (images[::2] > net.input_max // 2) * net.input_max
        images[0] = 0
        images[1:2] = net.input_max
        return images

    return make
