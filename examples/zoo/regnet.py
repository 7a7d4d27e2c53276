"""RegNet (Radosavovic, Kosaraju, Girshick, He, Dollar, arXiv 2003.13678)."""

from __future__ import annotations

from collections.abc import Sequence

from examples.zoo.layers import Shape, scaled, small
from examples.zoo.resnet import Block, Conv, ResNet


def regnet_x(
    depths: Sequence[int],
    widths: Sequence[int],
    group_width: int,
    num_classes: int = 1000,
    levels: int | None = 8,
    shape: Shape = (3, 224, 224),
    stem: int = 32,
) -> ResNet:
    """Stages of X blocks: 1 x 1, 3 x 3 in groups of ``group_width`` channels, 1 x 1, all of the stage's width.

    Stem and stages halve the map each; on small images the stem and the first stage do not. ``widths`` are multiples of ``group_width``.
    """

    def unit(inputs: int, width: int, stride: int) -> Block:
        return Block(inputs, levels, Conv(width, 1), Conv(width, 3, stride, width // group_width), Conv(width, 1))

    first = 1 if small(shape) else 2
    stages = [(depth, width, 2 if index else first) for index, (depth, width) in enumerate(zip(depths, widths, strict=True))]
    return ResNet(shape[0], num_classes, levels, Conv(stem, 3, first), False, stages, unit)


def regnet_x_400mf(num_classes: int = 1000, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 224, 224)) -> ResNet:
    """REGNETX-400MF; ``width`` scales the number of groups."""
    widths = [scaled(channels, width, 16) for channels in (32, 64, 160, 400)]
    return regnet_x((1, 2, 7, 12), widths, 16, num_classes, levels, shape, scaled(32, width))
