"""From networks to specs: every number arrives, every width holds its interval and no bit more than it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from casc_hw import IntegerNet, bounds, sleep_bound
from casc_hw.fixed import Interval
from rtl_gen.lower import Lanes, core_spec, current_width, potential_interval


@pytest.mark.parametrize("seed", range(30))
def test_widths(seed: int, random_case: Callable[..., Any]) -> None:
    net, spec = random_case(seed)
    for layer, bound, synapses in zip(net.layers, bounds(net), spec.synapses, strict=True):
        width = synapses.currents.width
        if bound.threshold is None:
            kept = bound.potential
            assert spec.readout.total == kept
        else:
            kept = potential_interval(bound)
            assert kept.lo <= min(bound.potential.lo, -bound.threshold.hi)  # below: v - theta of v = 0
            assert kept.hi >= max(bound.potential.hi, bound.threshold.hi - 1)  # above: v + theta of v = -1
            assert layer.threshold is not None
        assert width == current_width(bound) <= bound.current.signed_bits
        assert width == bound.current.signed_bits or width == kept.signed_bits
        assert synapses.weight_bits == layer.bits


@pytest.mark.parametrize("seed", range(30))
def test_everything_arrives(seed: int, random_case: Callable[..., Any]) -> None:
    net, spec = random_case(seed)
    assert (spec.pixels.size, spec.pixels.maximum) == (net.inputs, net.input_max)
    assert spec.synapses[0].events.value == Interval(0, net.input_max)
    schedule = spec.schedule
    assert (schedule.levels, schedule.margin, schedule.sleep, schedule.depth) == (net.levels, net.margin, net.sleep, len(net.layers))
    assert schedule.bound == sleep_bound(net)
    assert schedule.sleep_limit == (sleep_bound(net) if net.sleep is None else net.sleep)
    for layer, synapses in zip(net.layers, spec.synapses, strict=True):
        assert [list(row) for row in synapses.weights] == layer.weight.tolist()
        assert (synapses.events.size, synapses.currents.size) == (layer.inputs, layer.outputs)
    for layer, neurons in zip(net.spiking, spec.neurons, strict=True):
        assert list(neurons.thresholds) == layer.threshold.tolist()
        assert list(neurons.biases) == layer.bias.tolist()
        assert neurons.levels == net.levels
        assert neurons.events.value == Interval(-1, 1)
    assert list(spec.readout.biases) == net.readout.bias.tolist()


@pytest.mark.parametrize(("lanes", "passes", "chunks"), [(Lanes(1, 1), 13, 13), (Lanes(4, 2), 4, 7), (Lanes(16, 16), 1, 1)])
def test_lanes_and_beat_are_honoured(lanes: Lanes, passes: int, chunks: int, make_net: Callable[..., IntegerNet]) -> None:
    net = make_net((5, 13, 2))
    spec = core_spec(net, [lanes, Lanes(2, 2)], 4)
    assert (spec.synapses[0].lanes, spec.synapses[0].passes, spec.neurons[0].currents.chunks) == (lanes.synapses, passes, chunks)
    assert (spec.pixels.beat, spec.pixels.beats) == (4, 2)
    assert core_spec(net, [lanes, Lanes(2, 2)], 1).pixels.beats == 5


def test_lanes_that_do_not_fit_are_refused(make_net: Callable[..., IntegerNet]) -> None:
    net = make_net((5, 13, 2))
    for bad, words in [
        ((Lanes(3, 2), Lanes(1, 1)), "not a multiple"),
        ((Lanes(3, 3), Lanes(1, 1)), "power of two"),
        ((Lanes(1, 1),), "shorter"),
    ]:
        with pytest.raises(ValueError, match=words):
            core_spec(net, bad, 1)
    assert core_spec(replace(net, sleep=0), [Lanes(1, 1), Lanes(1, 1)], 1).schedule.sleep_limit == 0
