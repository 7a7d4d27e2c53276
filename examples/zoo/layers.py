"""What the networks of the zoo share."""

from __future__ import annotations

from torch import nn

from casc_hw import ClipQuan

Shape = tuple[int, int, int]
"""(channels, height, width) of an image."""


def small(shape: Shape) -> bool:
    """Whether images of ``shape`` get a network's CIFAR form, which keeps the first maps as large as the image."""
    return min(shape[1:]) < 64


def scaled(channels: int, width: float, multiple: int = 1) -> int:
    """``channels`` times ``width``, rounded to a multiple (at least one) of ``multiple``."""
    return max(round(channels * width / multiple), 1) * multiple


def activation(levels: int | None) -> nn.Module:
    """`ClipQuan`, or (None) the ReLU of the papers, for weights that were trained with it."""
    return nn.ReLU() if levels is None else ClipQuan(levels)


def conv(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution in front of a BatchNorm, padded so that at stride 1 the map stays as large."""
    return nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
