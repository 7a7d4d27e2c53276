"""The cycle model against the core itself, on networks of several depths; a bound that nothing passes."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import pytest
import torch

from casc_hw import IntegerNet
from rtl_gen.cycles import assume, measure, predict, worst_cycles
from rtl_gen.lower import Lanes, core_spec

# sizes, net options, lanes by layer (synapses, neurons), beat
CASES = [
    ((40, 24, 20, 16, 5), {"levels": 6, "seed": 1}, ((8, 4), (8, 2), (4, 2), (5, 5)), 4),
    ((40, 24, 20, 5), {"levels": 6, "margin": 3, "seed": 2}, ((4, 1), (4, 2), (2, 2)), 2),
    ((60, 32, 5), {"levels": 8, "seed": 3}, ((8, 2), (5, 5)), 4),
]


@pytest.mark.parametrize(("sizes", "options", "lanes", "beat"), CASES, ids=lambda value: str(value) if isinstance(value, tuple) else "")
def test_prediction(
    sizes: Any, options: Any, lanes: Any, beat: int, make_net: Callable[..., IntegerNet], make_images: Any, run_core: Callable[..., Any]
) -> None:
    net = make_net(sizes, **options)
    spec = core_spec(net, [Lanes(*lane) for lane in lanes], beat)
    images = make_images(net, 7, options["seed"])[2:]
    (outcome,) = run_core(net, spec, images)
    assert outcome.messages == []
    assert predict(spec, measure(net, images)).interval == pytest.approx(median(outcome.cycles), rel=0.12)


def test_the_bound_holds(make_net: Callable[..., IntegerNet], make_images: Any, run_core: Callable[..., Any]) -> None:
    """Each image alone, from the brightest to the dark one, stays below it."""
    net = make_net((13, 11, 7, 3), levels=4, margin=2, seed=5)
    spec = core_spec(net, [Lanes(1, 1), Lanes(2, 1), Lanes(1, 1)], 1)
    for image in make_images(net, 3):
        (outcome,) = run_core(net, spec, image[None])
        assert outcome.messages == []
        assert 0 < outcome.latency[0] < worst_cycles(spec)


def test_activity_is_what_the_reference_says(make_net: Callable[..., IntegerNet]) -> None:
    net = make_net((9, 5, 3), levels=4)
    bright, dark = measure(net, torch.tensor([[255] * 9, [0] * 9]))
    assert (bright.pixels, bright.beats) == (9, {1: 9, 2: 9, 4: 9, 8: 9})
    assert (dark.pixels, dark.beats) == (0, {1: 9, 2: 5, 4: 3, 8: 2})
    assert bright.wakes[:4] == (True,) * 4
    assert not any(bright.wakes[4:])
    assert {len(layer) for layer in bright.events} == {len(bright.wakes)}
    assert len(assume(net)[0].events) == 1


@pytest.mark.parametrize("field", ["levels", "size", "lanes"])
def test_more_work_takes_longer(field: str, make_net: Callable[..., IntegerNet]) -> None:
    few = {"levels": 4, "size": 16, "lanes": 4}
    more = few | ({"lanes": 1} if field == "lanes" else {field: 2 * few[field]})
    found = []
    for chosen in (few, more):
        net = make_net((20, chosen["size"], 4), levels=chosen["levels"])
        spec = core_spec(net, [Lanes(chosen["lanes"], 1), Lanes(4, 4)], 2)
        found.append((predict(spec, assume(net)).latency, worst_cycles(spec)))
    assert found[0][0] < found[1][0]
    assert found[0][1] < found[1][1] or field == "lanes"
