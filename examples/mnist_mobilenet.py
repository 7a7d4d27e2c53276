"""MNIST on depthwise and pointwise convolutions, as in MobileNet; 8-bit depthwise and 4-bit other weights.

Run ``python -m examples.mnist_mobilenet`` at the root of the repository.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from torch import nn

from casc_hw import ClipQuan
from examples import mnist_cnn_avg
from examples._training import norm, run


def separable(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    """A depthwise convolution of 3 x 3, a pointwise one, each with neurons."""
    return nn.Sequential(
        OrderedDict(
            depthwise=nn.Conv2d(inputs, inputs, 3, stride, padding=1, groups=inputs, bias=False),
            norm1=norm(inputs), clip1=ClipQuan(8),
            pointwise=nn.Conv2d(inputs, outputs, 1, bias=False),
            norm2=norm(outputs), clip2=ClipQuan(8),
        )
    )  # fmt: skip


def make(*channels: int) -> nn.Sequential:
    one, two, three, four = channels or (16, 32, 64, 64)
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(1, one, 3, stride=2, padding=1, bias=False), norm=norm(one), clip=ClipQuan(8),
            block1=separable(one, two),
            block2=separable(two, three, stride=2),
            block3=separable(three, four),
            average=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), readout=nn.Linear(four, 10),
        )
    )  # fmt: skip


RECIPE = replace(
    mnist_cnn_avg.RECIPE,
    name="mnist_mobilenet",
    make=make,
    sizes=(16, 32, 64, 64),
    activity=0.3,
    quiet=0.3,
    bits={
        "conv": 4,
        **{f"block{index}.depthwise": 8 for index in (1, 2, 3)},
        **{f"block{index}.pointwise": 4 for index in (1, 2, 3)},
        "readout": 4,
    },
)

if __name__ == "__main__":
    run(RECIPE)
