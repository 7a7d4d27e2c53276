"""Whole networks in gates: every spike, logit, class and status equals the reference's, whatever the lanes and the stalls."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from amaranth.back import rtlil

from casc_hw import IntegerNet, Linear, simulate
from rtl_gen.gates.core import Core
from rtl_gen.lower import Lanes, core_spec

Run = Callable[..., list[Any]]


def assert_right(outcomes: list[Any], images: int, where: str) -> None:
    for outcome in outcomes:
        assert outcome.mismatches == 0, f"{where}: {outcome.messages}"
        assert outcome.images == images
        assert outcome.spikes_compared > 0


@pytest.mark.parametrize("seed", range(20))
def test_random_net_equals_the_reference(seed: int, random_case: Callable[..., Any], make_images: Any, run_core: Run) -> None:
    net, spec = random_case(seed)
    outcomes = run_core(net, spec, make_images(net, 3, seed), stalls=(0.0, 0.4), seed=seed)
    assert_right(outcomes, 3, f"random_case({seed})")


@pytest.mark.slow
@pytest.mark.parametrize("block", range(10))
def test_a_hundred_more(block: int, random_case: Callable[..., Any], make_images: Any, run_core: Run) -> None:
    for seed in range(1000 + 10 * block, 1010 + 10 * block):
        net, spec = random_case(seed)
        outcomes = run_core(net, spec, make_images(net, 3, seed), stalls=(0.0, (0.1, 0.4, 0.7)[seed % 3]), seed=seed)
        assert_right(outcomes, 3, f"random_case({seed})")


def test_random_nets_are_worth_testing(random_case: Callable[..., Any], make_images: Any) -> None:
    """Among them: negative spikes, sleeps of many steps, sleeps cut short, several chunks, several passes."""
    seen = dict.fromkeys(("down", "long", "unsettled", "chunks", "passes", "ratio"), 0)
    for seed in range(20):
        net, spec = random_case(seed)
        trace = simulate(net, make_images(net, 3, seed))
        seen["down"] += any(bool((spikes < 0).any()) for spikes in trace.spikes)
        seen["long"] += int(trace.sleep_steps.max()) > 4
        seen["unsettled"] += not bool(trace.settled.all())
        for synapses in spec.synapses:
            seen["chunks"] += synapses.currents.chunks > 1
            seen["passes"] += synapses.passes > 1
            seen["ratio"] += synapses.lanes > synapses.currents.lanes
    assert min(seen.values()) >= 3, seen


@pytest.mark.parametrize(
    ("levels", "weight", "threshold"), [(1, -128, 1), (1, 127, 1), (1, -128, 1 << 40), (255, 127, (1 << 40) + 1), (255, 127, 1)]
)
def test_extremes_of_the_format(levels: int, weight: int, threshold: int, run_core: Run) -> None:
    def layer(name: str, inputs: int, outputs: int) -> Linear:
        theta = None if name == "last" else torch.full((outputs,), threshold)
        scale = 1.0 if theta is None else None
        return Linear(name, torch.full((outputs, inputs), weight), torch.full((outputs,), 3), theta, 8, scale)

    weights = (layer("first", 3, 2), layer("second", 2, 2), layer("last", 2, 1))
    net = IntegerNet("extreme", levels, levels, None, (3,), 255, weights)
    images = torch.tensor([[255] * 3, [0] * 3])
    assert_right(run_core(net, core_spec(net, [Lanes(2, 2), Lanes(1, 1), Lanes(1, 1)], 2), images), 2, f"weights {weight}")


def test_margins_and_sleeps(make_net: Callable[..., IntegerNet], make_images: Any, run_core: Run) -> None:
    """One network under every kind of schedule."""
    net = make_net((5, 7, 6, 3), levels=5, bits=3, seed=3)
    images = make_images(net, 3)
    for margin, sleep in [(1, None), (2, None), (4, None), (5, 0), (2, 0), (5, 1), (3, 2), (1, 3), (5, 100)]:
        shaped = replace(net, margin=margin, sleep=sleep)
        spec = core_spec(shaped, [Lanes(4, 4), Lanes(4, 2), Lanes(3, 3)], 4)
        assert_right(run_core(shaped, spec, images, stalls=(0.3,)), 3, f"margin {margin}, sleep {sleep}")


def test_lanes_change_nothing_but_the_time(make_net: Callable[..., IntegerNet], make_images: Any, run_core: Run) -> None:
    net = make_net((13, 9, 7, 5), levels=4, margin=3, seed=11)
    images = make_images(net, 3)
    cycles = []
    for hidden, last, beat in [(Lanes(1, 1), 1, 1), (Lanes(16, 16), 5, 8), (Lanes(6, 2), 2, 2), (Lanes(5, 1), 3, 4)]:
        (outcome,) = outcomes = run_core(net, core_spec(net, [hidden, hidden, Lanes(last, last)], beat), images)
        assert_right(outcomes, 3, f"lanes {hidden}, {last}, {beat}")
        cycles.append(outcome.total_cycles)
    assert cycles[0] == max(cycles)
    assert cycles[1] == min(cycles)


def test_layers_that_do_not_meet_are_refused(random_case: Callable[..., Any]) -> None:
    _, spec = random_case(3)
    with pytest.raises(ValueError, match="layer 0 takes"):
        replace(spec, pixels=replace(spec.pixels, size=99))
    with pytest.raises(ValueError, match="chain"):
        replace(spec, schedule=replace(spec.schedule, levels=99))


def test_converts(random_case: Callable[..., Any]) -> None:
    net, spec = random_case(1)
    for bench in (False, True):
        text = rtlil.convert(Core(spec, bench=bench), name="core", emit_src=False)
        assert ("spikes_0" in text) is bench
    assert len(net.spiking) == len(spec.neurons)
