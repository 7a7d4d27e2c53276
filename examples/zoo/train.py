"""Training a network of the zoo on a data set, from labels alone.

The network sees ``pixel / input_max``: a mean taken off first would make padded pixels other than raw zeros, which conversion refuses, and
a scale is undone by the BatchNorm behind the first convolution.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from casc_hw import IntegerNet, SpikingNet, convert, quantised_ann
from casc_hw.qat import fake_quantise, fold_batchnorm
from casc_hw.training import descend
from examples.datasets import Data
from examples.zoo import NETS
from examples.zoo.check import mismatches


def train(
    name: str,
    data: Data,
    *,
    epochs: int = 30,
    tune: int = 0,
    levels: int = 8,
    width: float = 1.0,
    bits: int = 8,
    batch: int = 100,
    rate: float = 4e-3,
    seed: int = 0,
    spiking: int = 100,
) -> IntegerNet:
    """Network ``name``, trained for ``epochs``, then for ``tune`` epochs with weights rounded to ``bits``, and converted.

    ``meta["results"]`` has the accuracies on the test images, in percent, and the mismatches between integer ANN and spiking network on the
    first ``spiking`` of them. CascError for what cannot be converted, or (with ``tune``) trained with rounding.
    """
    torch.manual_seed(seed)
    chance = torch.Generator().manual_seed(seed)
    model = NETS[name](data.classes, levels, width, data.train.shape)
    form: dict[str, Any] = {"input_shape": data.train.shape, "input_max": data.input_max, "bits": bits}
    convert(model, **form)  # what cannot be converted, or trained with rounding, is refused before the training
    if tune:
        fake_quantise(fold_batchnorm(model), **form)
    results: dict[str, float] = {}
    _fit(model, data, epochs, rate, batch, chance)
    results["float, %"] = _accuracy(model, data)
    if tune:
        model = fold_batchnorm(model)
        rounded = fake_quantise(model, **form)
        _fit(rounded, data, tune, rate / 4, batch, chance)
        results["float with rounded weights, %"] = _accuracy(rounded, data)
    net = convert(model, name=name, **form).net
    right = [quantised_ann(net, images).classes == labels for images, labels in data.test.batches(100)]
    results["integer, %"] = _percent(torch.cat(right))
    snn, some = SpikingNet(net), torch.arange(min(spiking, len(data.test)))
    results["spiking images"] = len(some)
    results["mismatches"] = sum(mismatches(quantised_ann(net, part), snn.run(part).answer) for part in map(data.test.read, some.split(25)))
    how = {"epochs": epochs, "tune": tune, "width": width, "bits": bits, "batch": batch, "rate": rate, "seed": seed}
    return replace(net, meta={"training images": len(data.train), "test images": len(data.test), "recipe": how, "results": results})


def shifted(images: Tensor, chance: torch.Generator) -> Tensor:
    """Float (N, C, H, W): each moved by up to an eighth of its size, and those in colour mirrored half of the time."""
    count, channels, height, width = images.shape
    down, across = height // 8, width // 8
    padded = functional.pad(images, (across, across, down, down))
    tops, lefts = (torch.randint(2 * of + 1, (count,), generator=chance).tolist() for of in (down, across))
    moved = torch.stack([of[:, y : y + height, x : x + width] for of, y, x in zip(padded, tops, lefts, strict=True)])
    if channels == 3:
        mirror = torch.rand(count, generator=chance) < 0.5
        moved[mirror] = moved[mirror].flip(3)
    return moved


def _fit(model: nn.Module, data: Data, epochs: int, rate: float, batch: int, chance: torch.Generator) -> None:
    batch = min(batch, len(data.train))
    steps = len(data.train) // batch

    def epoch() -> Iterator[Tensor]:
        for images, labels in islice(data.train.batches(batch, chance), steps):
            yield functional.cross_entropy(model(shifted(images / data.input_max, chance)), labels)

    deque(descend(model, epochs, rate, epoch, steps), 0)


@torch.no_grad()
def _accuracy(model: nn.Module, data: Data) -> float:
    return _percent(torch.cat([model(images / data.input_max).argmax(1) == labels for images, labels in data.test.batches(100)]))


def _percent(right: Tensor) -> float:
    return round(100 * right.double().mean().item(), 2)
