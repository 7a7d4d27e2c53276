"""Whole networks in gates: every spike, logit, class and status equals the reference's, whatever the lanes and the stalls."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from amaranth.back import rtlil

from casc_hw import IntegerNet, Layer, simulate
from casc_hw.network import IMAGE
from rtl_gen.gates.core import Core, PoolNode
from rtl_gen.lower import Lanes, core_spec

Run = Callable[..., list[Any]]


def assert_right(outcomes: list[Any], images: int, where: str) -> None:
    for outcome in outcomes:
        assert outcome.mismatches == 0, f"{where}: {outcome.messages}"
        assert outcome.images == images
        assert outcome.spikes_compared > 0


@pytest.mark.parametrize("code", ["spike", "count"])
@pytest.mark.parametrize("seed", range(20))
def test_random_net_equals_the_reference(seed: int, code: str, random_case: Callable[..., Any], make_images: Any, run_core: Run) -> None:
    net, spec = random_case(seed, code)
    outcomes = run_core(net, spec, make_images(net, 3, seed), stalls=(0.0, 0.4), seed=seed)
    assert_right(outcomes, 3, f"random_case({seed}, {code!r})")


@pytest.mark.slow
@pytest.mark.parametrize("code", ["spike", "count"])
@pytest.mark.parametrize("block", range(int(os.environ.get("RANDOM_NETS", "200")) // 10))
def test_many_more(block: int, code: str, random_case: Callable[..., Any], make_images: Any, run_core: Run) -> None:
    """``RANDOM_NETS``: how many, 200 unless told otherwise."""
    for seed in range(1000 + 10 * block, 1010 + 10 * block):
        net, spec = random_case(seed, code)
        images = make_images(net, 3, seed)[1 if code == "count" else 2 :]
        outcomes = run_core(net, spec, images, stalls=((0.0, 0.1, 0.4, 0.7)[seed // 2 % 4],), seed=seed)
        assert_right(outcomes, len(images), f"random_case({seed}, {code!r})")


def test_random_nets_are_worth_testing(random_case: Callable[..., Any], make_images: Any) -> None:
    """Among them: negative spikes, sleeps of many steps, sleeps cut short, and every kind of geometry, pool and passes."""
    seen: Counter[str] = Counter()
    for seed in range(60):
        net, spec = random_case(seed)
        trace = simulate(net, make_images(net, 3, seed))
        seen["down"] += any(bool((spikes < 0).any()) for spikes in trace.spikes)
        seen["long sleep"] += int(trace.sleep_steps.max()) > 4
        seen["unsettled"] += not bool(trace.settled.all())
        for node in spec.nodes:
            if isinstance(node, PoolNode):
                seen[node.spec.kind] += 1
                seen["windows overlap"] += max(node.spec.taps) > 1
                continue
            seen["currents added"] += len(node.inputs) > 1
            for synapses in (entry.spec for entry in node.inputs):
                geometry = synapses.geometry
                seen["chunks"] += synapses.currents.chunks > 1
                seen["two or three passes"] += 1 < synapses.passes <= 3
                seen["more passes"] += synapses.passes > 3
                seen["parts"] += synapses.lanes > synapses.currents.lanes
                seen["groups"] += geometry.groups > 1
                seen["strides"] += max(geometry.stride) > 1
                seen["padding"] += max(geometry.padding) > 0
                seen["several taps"] += max(geometry.taps) > 1
                seen["logic"] += synapses.multiplies and synapses.multiplier == "logic"
                seen["dsp"] += synapses.multiplies and synapses.multiplier == "dsp"
    assert min(seen.values()) >= 3, seen


@pytest.mark.parametrize(
    ("levels", "weight", "threshold"), [(1, -128, 1), (1, 127, 1), (1, -128, 1 << 40), (255, 127, (1 << 40) + 1), (255, 127, 1)]
)
def test_extremes_of_the_format(levels: int, weight: int, threshold: int, run_core: Run) -> None:
    def layer(name: str, source: str, inputs: int, outputs: int) -> Layer:
        theta = None if name == "last" else torch.full((outputs,), threshold)
        scale = 1.0 if theta is None else None
        return Layer.dense(name, source, torch.full((outputs, inputs), weight), torch.full((outputs,), 3), theta, 8, scale)

    nodes = (layer("first", IMAGE, 3, 2), layer("second", "first", 2, 2), layer("last", "second", 2, 1))
    net = IntegerNet("extreme", levels, levels, None, (3,), 255, nodes)
    images = torch.tensor([[255] * 3, [0] * 3])
    for code, multiplier in (("spike", "dsp"), ("count", "dsp"), ("count", "logic")):
        spec = core_spec(net, [Lanes(2, 2, multiplier), Lanes(1, 1, multiplier), Lanes(1, 1, multiplier)], 2, code)
        assert_right(run_core(net, spec, images), 2, f"weights {weight}, {code}, {multiplier}")


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
    _, spec = random_case(4)
    with pytest.raises(ValueError, match="synapses 0: take"):
        replace(spec, pixels=replace(spec.pixels, maximum=3))
    with pytest.raises(ValueError, match="is the read-out"):
        replace(spec, nodes=spec.nodes[:-1])


def test_converts(random_case: Callable[..., Any]) -> None:
    for seed in (1, 2):
        net, spec = random_case(seed)
        for bench in (False, True):
            text = rtlil.convert(Core(spec, bench=bench), name="core", emit_src=False)
            assert ("volleys_0" in text) is bench
        assert len(net.spiking) == len(spec.spiking)
