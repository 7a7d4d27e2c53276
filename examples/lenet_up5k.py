"""MNIST on a LeNet of two convolutions of 5 x 5 and max pools, small enough for an iCE40UP5K; 4-bit weights.

After LeCun et al., "Handwritten digit recognition with a back-propagation network", NIPS 2, 1989 (LeNet-1), with more maps and all of their
connections. Run ``python -m examples.lenet_up5k`` at the root of the repository.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace

from torch import nn

from casc_hw import ClipQuan
from examples import mnist_cnn_avg
from examples._training import norm, run


def make(*channels: int) -> nn.Sequential:
    one, two = channels or (6, 16)
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, one, 5, bias=False), norm1=norm(one), clip1=ClipQuan(8), pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(one, two, 5, bias=False), norm2=norm(two), clip2=ClipQuan(8), pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(), readout=nn.Linear(two * 4 * 4, 10),
        )
    )  # fmt: skip


RECIPE = replace(mnist_cnn_avg.RECIPE, name="lenet_up5k", make=make, sizes=(6, 16), activity=1.0, quiet=0.5)

if __name__ == "__main__":
    run(RECIPE)
