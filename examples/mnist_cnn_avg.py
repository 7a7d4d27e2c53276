"""MNIST on a CNN of three convolutions of 3 x 3 with average pools between them; 4-bit weights.

Run ``python -m examples.mnist_cnn_avg`` at the root of the repository. `examples.mnist_cnn_max` is the same with max pools.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial

from torch import nn

from casc_hw import ClipQuan
from examples._training import Recipe, mnist, norm, run


def make(*channels: int, pool: type[nn.Module] = nn.AvgPool2d) -> nn.Sequential:
    one, two, three = channels or (16, 32, 32)
    conv = partial(nn.Conv2d, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(
        OrderedDict(
            conv1=conv(1, one), norm1=norm(one), clip1=ClipQuan(8), pool1=pool(2),
            conv2=conv(one, two), norm2=norm(two), clip2=ClipQuan(8), pool2=pool(2),
            conv3=conv(two, three), norm3=norm(three), clip3=ClipQuan(8),
            flatten=nn.Flatten(), readout=nn.Linear(three * 7 * 7, 10),
        )
    )  # fmt: skip


RECIPE = Recipe(
    name="mnist_cnn_avg",
    make=make,
    load=mnist,
    shape=(1, 28, 28),
    input_max=255,
    test=1000,
    sizes=(16, 32, 32),
    teachers=2,
    teacher_epochs=25,
    copies=40,
    passes=4,
    tune=2,
    bits=4,
    batch=100,
    activity=1.5,
)

if __name__ == "__main__":
    run(RECIPE)
