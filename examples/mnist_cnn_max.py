"""MNIST on the CNN of `examples.mnist_cnn_avg` with max pools.

Run ``python -m examples.mnist_cnn_max`` at the root of the repository.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import nn

from examples import mnist_cnn_avg
from examples._training import run

make = partial(mnist_cnn_avg.make, pool=nn.MaxPool2d)

RECIPE = replace(mnist_cnn_avg.RECIPE, name="mnist_cnn_max", make=make, activity=0.8, quiet=0.5)

if __name__ == "__main__":
    run(RECIPE)
