"""A VGG of seven weighted layers for images of 3 x 32 x 32, the size of CIFAR-10's, on synthetic images; 4-bit weights.

The images are no data set: MNIST digits in one colour, pasted at a random place on a smooth coloured background with noise. They give
the network something to tell apart, and its layers an activity like that of a trained network; the accuracy says little.
Run ``python -m examples.vgg7`` at the root of the repository.
"""

from __future__ import annotations

from collections import OrderedDict

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from casc_hw import ClipQuan
from examples._training import Recipe, mnist, norm, run


def make(narrow: int = 32) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = 3
    for index in range(6):
        outputs = narrow << index // 2
        layers[f"conv{index + 1}"] = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        layers[f"norm{index + 1}"], layers[f"clip{index + 1}"] = norm(outputs), ClipQuan(8)
        if index % 2:
            layers[f"pool{index // 2 + 1}"] = nn.MaxPool2d(2)
        inputs = outputs
    return nn.Sequential(layers | {"flatten": nn.Flatten(), "readout": nn.Linear(inputs * 4 * 4, 10)})


def load() -> tuple[np.ndarray, np.ndarray]:
    """Images (5000, 3, 32, 32), 0 to 255, and labels; always the same."""
    digits, labels = mnist()
    chance = torch.Generator().manual_seed(0)
    count = len(digits)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(count, *shape, generator=chance)

    ink = torch.zeros(count, 1, 32, 32)
    places = torch.randint(0, 5, (count, 2), generator=chance).tolist()
    for image, digit, (top, left) in zip(ink, torch.from_numpy(digits / 255), places, strict=True):
        image[0, top : top + 28, left : left + 28] = digit
    ground = functional.interpolate(uniform(3, 4, 4) * 0.6, size=(32, 32), mode="bilinear", align_corners=False)
    colour = 0.6 + 0.4 * uniform(3, 1, 1)
    images = ((1 - ink) * ground + ink * colour + 0.1 * (uniform(3, 32, 32) - 0.5)).clamp(0, 1)
    return (images * 255).round().to(torch.uint8).numpy(), labels


RECIPE = Recipe(
    name="vgg7",
    make=make,
    load=load,
    shape=(3, 32, 32),
    input_max=255,
    test=1000,
    sizes=(32,),
    teachers=0,
    teacher_epochs=0,
    copies=3,
    passes=2,
    tune=1,
    bits=4,
    kept=60,
    batch=100,
    activity=0.3,
)

if __name__ == "__main__":
    run(RECIPE)
