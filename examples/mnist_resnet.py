"""MNIST on a residual network: an identity shortcut, a projection with stride 2, a global average; 4-bit weights.

Run ``python -m examples.mnist_resnet`` at the root of the repository.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor, nn

from casc_hw import ClipQuan
from examples import mnist_cnn_avg
from examples._training import norm, run


class Block(nn.Module):
    """Two convolutions of 3 x 3 beside a shortcut, which is a convolution of 1 x 1 where the shape changes; then ClipQuan of the sum."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1, self.clip1 = norm(outputs), ClipQuan(8)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2, self.clip2 = norm(outputs), ClipQuan(8)
        self.shortcut: nn.Module = nn.Identity()
        if inputs != outputs or stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), norm(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.clip1(self.norm1(self.conv1(x)))
        out: Tensor = self.clip2(self.norm2(self.conv2(y)) + self.shortcut(x))
        return out


class ResNet(nn.Module):
    """Images (N, 1, 28, 28) to logits (N, 10)."""

    def __init__(self, narrow: int, wide: int):
        super().__init__()
        self.conv = nn.Conv2d(1, narrow, 3, padding=1, bias=False)
        self.norm, self.clip, self.pool = norm(narrow), ClipQuan(8), nn.MaxPool2d(2)
        self.block1 = Block(narrow, narrow)
        self.block2 = Block(narrow, wide, stride=2)
        self.average, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        self.readout = nn.Linear(wide, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.clip(self.norm(self.conv(x))))
        x = self.average(self.block2(self.block1(x)))
        out: Tensor = self.readout(self.flatten(x))
        return out


def make(narrow: int = 16, wide: int = 32) -> ResNet:
    return ResNet(narrow, wide)


RECIPE = replace(mnist_cnn_avg.RECIPE, name="mnist_resnet", make=make, sizes=(16, 32), activity=1.0, quiet=0.5)

if __name__ == "__main__":
    run(RECIPE)
