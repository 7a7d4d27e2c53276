"""Digit scenes: MNIST digits scattered over a dark canvas, with the boxes of their ink. Composed on the spot, the same for one seed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from examples import mnist_cnn_avg
from examples._training import Digits, augment, mnist
from examples.detection.decode import Truth, iou

INK = 32
"""A pixel brighter than this, of 255, belongs to a digit's box."""
BEND = replace(mnist_cnn_avg.RECIPE, scale=0.0, shift=0.0)
"""How digits of training scenes are turned, sheared and bent."""
TRIES = 20
"""Random places a digit is offered; where none is free, the scene has one digit less."""


@dataclass(frozen=True)
class Scenes:
    """Images uint8 (N, C, S, S), and for each what is in it."""

    images: Tensor
    truths: tuple[Truth, ...]

    def at(self, index: Tensor | slice) -> Scenes:
        """Some of the scenes."""
        places = torch.arange(len(self.truths))[index].tolist()
        return Scenes(self.images[index], tuple(self.truths[place] for place in places))

    def batches(self, size: int) -> Iterator[Scenes]:
        """All of them in order, ``size`` at a time."""
        return (self.at(slice(low, low + size)) for low in range(0, len(self.truths), size))


def digits() -> tuple[Digits, Digits]:
    """4,000 digits for training scenes alone, 1,000 for test scenes alone: the split of the other MNIST examples."""
    images, labels = mnist()
    return Digits(torch.from_numpy(images).to(torch.uint8), torch.from_numpy(labels).long()).split(1000, seed=0)


def compose(
    source: Digits,
    count: int,
    chance: torch.Generator,
    *,
    size: int = 64,
    most: int = 5,
    zoom: tuple[float, float] = (0.6, 1.0),
    overlap: float = 0.1,
    speckle: float = 0.03,
    bend: bool = False,
) -> Scenes:
    """``count`` scenes of 1 to ``most`` digits of ``source``, on a canvas of ``size`` x ``size`` pixels.

    ``zoom``: of a digit's 28 x 28 pixels, uniform. ``overlap``: what the IoU of two boxes stays below. ``speckle``: share of pixels with
    noise, up to a third of full brightness. ``bend``: whether digits are turned, sheared and bent first.
    """

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=chance)

    wanted = torch.arange(most) < torch.randint(1, most + 1, (count, 1), generator=chance)  # (count, most)
    picked = torch.randint(len(source.labels), (count * most,), generator=chance)
    ink = source.images[picked] / 255
    if bend:
        ink = augment(ink, BEND, chance)
    theta = torch.zeros(count * most, 2, 3)
    theta[:, 0, 0] = theta[:, 1, 1] = 1 / (zoom[0] + (zoom[1] - zoom[0]) * uniform(count * most))
    grid = functional.affine_grid(theta, [count * most, 1, *ink.shape[1:]], align_corners=False)
    ink = (functional.grid_sample(ink[:, None], grid, align_corners=False) * 255).round().reshape(count, most, *ink.shape[1:])

    tight, corners = _tight(ink > INK), torch.zeros(count, most, 2, dtype=torch.long)
    boxes = torch.zeros(count, most, 4)
    for slot in range(most):
        frame = tight[:, slot, None]  # (count, 1, 4)
        room = size - (frame[..., 2:] - frame[..., :2])
        corner = (uniform(count, TRIES, 2) * (room + 1)).long().clamp(max=room) - frame[..., :2]  # (count, TRIES, 2)
        offered = frame + corner.repeat(1, 1, 2)
        free = (iou(offered[:, :, None].float(), boxes[:, None, :slot]) < overlap).all(2)
        first = free.int().argmax(1)
        wanted[:, slot] &= free.any(1) & (tight[:, slot] != 0).any(1)
        corners[:, slot] = corner[range(count), first]
        boxes[:, slot] = offered[range(count), first] * wanted[:, slot, None]

    canvas = (uniform(count, size * size) < speckle) * uniform(count, size * size) * (255 / 3)
    across, down = (corners[..., axis, None] + torch.arange(length) for axis, length in enumerate(reversed(ink.shape[2:])))
    inside = ((down >= 0) & (down < size))[..., None] & ((across >= 0) & (across < size))[..., None, :] & wanted[..., None, None]
    place = (down[..., None] * size + across[..., None, :]).clamp(0, size * size - 1)
    canvas.scatter_reduce_(1, place.flatten(1), (ink * inside).flatten(1), "amax")

    labels = source.labels[picked].reshape(count, most)
    truths = tuple(
        Truth(box[there], label[there], torch.zeros(int(there.sum()), dtype=torch.bool))
        for box, label, there in zip(boxes, labels, wanted, strict=True)
    )
    return Scenes(canvas.round().to(torch.uint8).reshape(count, 1, size, size), truths)


def _tight(ink: Tensor) -> Tensor:
    """The box around what is True, int64 (..., 4); zeros where nothing is."""
    ends = []
    for axis in (-2, -1):
        there = ink.any(axis).long()
        ends += [there.argmax(-1), there.shape[-1] - there.flip(-1).argmax(-1)]
    return torch.stack([ends[0], ends[2], ends[1], ends[3]], -1) * ink.flatten(-2).any(-1)[..., None]
