"""Tiny cores: every image's answer is the network's within a bound of cycles, and not so for a mutant of the gates."""

from __future__ import annotations

from itertools import product

import pytest
import torch

from casc_hw.spiking import SpikingNet
from rtl_gen.formal import bench
from rtl_gen.formal.cores import COUNT, PROPERTIES, SPIKE, Tiny, core
from tests.rtl_gen.formal.mutants import Mutant, properties_of

READOUT, NEURONS = "rtl_gen.gates.readout", "rtl_gen.gates.neurons"
MUTANTS = [
    Mutant("the arg max is the lowest", READOUT, "(logit > best)", "(logit < best)", "core-count core-count-2 core-spike", "class"),
    Mutant(
        "currents are not summed",
        READOUT,
        "Mux(self.currents.p.empty, 0, self.currents.p.x[lane])",
        "0",
        "core-count core-spike",
        "sum",
    ),
    Mutant("a result never ends", READOUT, 'held.last.eq(state == "cycles")', "held.last.eq(0)", "core-count", "length"),
    Mutant(
        "a result is never begun",
        READOUT,
        "with m.If(last & over & step.final):",
        "with m.If(0):",
        "core-count core-spike",
        "word of the result",
    ),
    Mutant("no biases in count code", NEURONS, "x * spec.gain + constant.bias", "x * spec.gain", "core-count"),
]

TestCores = properties_of(PROPERTIES, MUTANTS)


@pytest.mark.parametrize("case", [COUNT, SPIKE], ids=["count", "spike"])
def test_the_answer_is_that_of_the_reference(case: Tiny) -> None:
    images = list(product(range(case.maximum + 1), repeat=len(case.hidden[0])))
    run = SpikingNet(case.net()).run(torch.tensor(images).reshape(len(images), -1, 1, 1))
    assert run.answer.sums.flatten(1).tolist() == [case.answer(image) for image in images]


@pytest.mark.slow
@pytest.mark.parametrize(("case", "depth"), [(COUNT, 44), (SPIKE, 54)], ids=["count", "spike"])
def test_an_image_is_answered_within_the_bound(case: Tiny, depth: int) -> None:
    assert bench.prove(core(case, depth, cover=True), depth, bounded=True, among="no image is answered").verdict == "refuted"
