"""ResNet (He, Zhang, Ren, Sun, arXiv 1512.03385), and the frame that ResNeXt and RegNet have in common with it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor, nn

from examples._training import norm
from examples.zoo.layers import Shape, activation, conv, scaled, small


class Conv(NamedTuple):
    """A convolution of `Block` or `ResNet`."""

    outputs: int
    kernel: int
    stride: int = 1
    groups: int = 1


class Block(nn.Module):
    """Convolutions with BatchNorm, an activation between two, beside a shortcut; an activation of the sum.

    The shortcut is the identity, or a convolution of 1 x 1 where the shape changes.
    """

    def __init__(self, inputs: int, levels: int | None, *convs: Conv):
        super().__init__()
        channels, stride = inputs, 1
        for index, of in enumerate(convs, 1):
            self.add_module(f"conv{index}", conv(channels, *of))
            self.add_module(f"bn{index}", norm(of.outputs))
            self.add_module(f"relu{index}", activation(levels))
            channels, stride = of.outputs, stride * of.stride
        self.depth, self.outputs = len(convs), channels
        same = inputs == channels and stride == 1
        self.downsample = nn.Identity() if same else nn.Sequential(conv(inputs, channels, 1, stride), norm(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for index in range(1, self.depth + 1):
            y = self.get_submodule(f"bn{index}")(self.get_submodule(f"conv{index}")(y))
            if index == self.depth:
                y = y + self.downsample(x)
            y = self.get_submodule(f"relu{index}")(y)
        return y


class ResNet(nn.Module):
    """A convolution, stages of blocks, the average of the map, a Linear read-out: images (N, channels, H, W) to logits (N, num_classes).

    ``stem``: the first convolution; ``pool``: whether a max pool of 3 x 3 with stride 2 follows. ``stages``: (depth, width, stride),
    the stride being the first block's. ``unit(inputs, width, stride)`` makes a block.
    """

    def __init__(
        self,
        channels: int,
        num_classes: int,
        levels: int | None,
        stem: Conv,
        pool: bool,
        stages: Sequence[tuple[int, int, int]],
        unit: Callable[[int, int, int], Block],
    ):
        super().__init__()
        self.conv1, self.bn1, self.relu = conv(channels, *stem), norm(stem.outputs), activation(levels)
        self.maxpool = nn.MaxPool2d(3, 2, padding=1) if pool else nn.Identity()
        inputs = stem.outputs
        for index, (depth, width, stride) in enumerate(stages, 1):
            blocks = nn.Sequential()
            for step in [stride] + [1] * (depth - 1):
                blocks.append(made := unit(inputs, width, step))
                inputs = made.outputs
            self.add_module(f"layer{index}", blocks)
        self.depth = len(stages)
        self.avgpool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.fc = nn.Linear(inputs, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        for index in range(1, self.depth + 1):
            x = self.get_submodule(f"layer{index}")(x)
        out: Tensor = self.fc(self.flatten(self.avgpool(x)))
        return out


def imagenet_resnet(
    depths: Sequence[int], num_classes: int, levels: int | None, width: float, shape: Shape, unit: Callable[[int, int, int], Block]
) -> ResNet:
    """Four stages of 64 to 512 channels behind 7 x 7 with stride 2 and a max pool; on small images behind 3 x 3 alone."""
    stem = Conv(scaled(64, width), 3) if small(shape) else Conv(scaled(64, width), 7, 2)
    stages = [(depth, 64 << index, min(index + 1, 2)) for index, depth in enumerate(depths)]
    return ResNet(shape[0], num_classes, levels, stem, not small(shape), stages, unit)


def _basic(levels: int | None, scale: float) -> Callable[[int, int, int], Block]:
    def unit(inputs: int, width: int, stride: int) -> Block:
        outputs = scaled(width, scale)
        return Block(inputs, levels, Conv(outputs, 3, stride), Conv(outputs, 3))

    return unit


def resnet18(num_classes: int = 1000, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 224, 224)) -> ResNet:
    return imagenet_resnet((2, 2, 2, 2), num_classes, levels, width, shape, _basic(levels, width))


def resnet34(num_classes: int = 1000, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 224, 224)) -> ResNet:
    return imagenet_resnet((3, 4, 6, 3), num_classes, levels, width, shape, _basic(levels, width))


def resnet20(num_classes: int = 10, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 32, 32)) -> ResNet:
    """The one for CIFAR, three stages of 16 to 64 channels; where the shape changes its shortcuts are convolutions (option B)."""
    stages = [(3, 16 << index, min(index + 1, 2)) for index in range(3)]
    return ResNet(shape[0], num_classes, levels, Conv(scaled(16, width), 3), False, stages, _basic(levels, width))
