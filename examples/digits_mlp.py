"""Handwritten digits of 8 x 8 pixels (scikit-learn's ``load_digits``) on a net small enough for an iCEBreaker.

Run ``python -m examples.digits_mlp`` at the root of the repository.
"""

from __future__ import annotations

import numpy as np
from torch import nn

from examples._training import Recipe, mlp, run


def make(*hidden: int) -> nn.Sequential:
    return mlp(64, *(hidden or (32,)))


def load() -> tuple[np.ndarray, np.ndarray]:
    from sklearn.datasets import load_digits

    digits = load_digits()
    return digits.images, digits.target


RECIPE = Recipe(
    name="digits_mlp",
    make=make,
    load=load,
    shape=(8, 8),
    input_max=16,
    test=360,
    sizes=(32,),
    teachers=3,
    teacher_epochs=60,
    copies=100,
    passes=40,
    kept=360,
    activity=0.7,
    shift=0.4,
    elastic=0.3,
)

if __name__ == "__main__":
    run(RECIPE)
