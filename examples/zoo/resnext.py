"""ResNeXt (Xie, Girshick, Dollar, Tu, He, arXiv 1611.05431)."""

from __future__ import annotations

from examples.zoo.layers import Shape, scaled
from examples.zoo.resnet import Block, Conv, ResNet, imagenet_resnet


def resnext50_32x4d(num_classes: int = 1000, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 224, 224)) -> ResNet:
    """Bottlenecks whose convolution of 3 x 3 has 32 groups, of 4 channels in the first stage; ``width`` scales groups and outputs."""
    groups = scaled(32, width)

    def unit(inputs: int, planes: int, stride: int) -> Block:
        inner = groups * 4 * planes // 64
        return Block(inputs, levels, Conv(inner, 1), Conv(inner, 3, stride, groups), Conv(scaled(4 * planes, width), 1))

    return imagenet_resnet((3, 4, 6, 3), num_classes, levels, width, shape, unit)
