"""Handwritten digits of 8 x 8 pixels (scikit-learn's ``load_digits``) on a net small enough for an iCEBreaker.

Run ``python -m examples.digits_mlp`` at the root of the repository.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits

from examples._training import Recipe, run

RECIPE = Recipe(
    name="digits_mlp",
    input_max=16,
    test=360,
    hidden=(32,),
    teachers=3,
    teacher_epochs=60,
    copies=100,
    passes=40,
    activity=0.7,
    shift=0.4,
    elastic=0.3,
)


def load() -> tuple[np.ndarray, np.ndarray]:
    digits = load_digits()
    return digits.images, digits.target


if __name__ == "__main__":
    run(RECIPE, load)
