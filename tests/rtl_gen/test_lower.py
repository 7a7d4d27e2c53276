"""From networks to specs: every number arrives, every width holds its interval and no bit more than it needs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import pytest
import torch

from casc_hw import IntegerNet, Pool, bounds, sleep_bound
from casc_hw.fixed import Interval
from casc_hw.network import IMAGE, to_wire
from rtl_gen.gates.core import CoreSpec, LayerSpec, PoolNode
from rtl_gen.gates.neurons import CountSpec, NeuronSpec
from rtl_gen.lower import Lanes, core_spec, current_width, geometry, pixel_shape, potential_interval
from sim.random_nets import random_graph

CODES: list[Literal["spike", "count"]] = ["spike", "count"]


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("code", CODES)
def test_widths(seed: int, code: Any, random_case: Callable[..., tuple[IntegerNet, CoreSpec]]) -> None:
    net, spec = random_case(seed, code)
    for layer, bound, laid in zip(net.layers, bounds(net, code), spec.layers, strict=True):
        kept = bound.potential
        if bound.threshold is not None and code == "spike":
            kept = potential_interval(bound)
            assert kept.lo <= min(bound.potential.lo, -bound.threshold.hi)  # below: v - theta of v = 0
            assert kept.hi >= max(bound.potential.hi, bound.threshold.hi - 1)  # above: v + theta of v = -1
        if layer.threshold is None:
            assert spec.readout.total == kept
        else:
            assert (laid.neurons.potential if isinstance(laid.neurons, NeuronSpec) else laid.neurons.total) == kept
        for synapses, part, values in zip(layer.synapses, laid.inputs, bound.event, strict=True):
            width = part.spec.currents.width
            assert width == current_width(bound, code) == min(bound.current.signed_bits, kept.signed_bits)
            assert part.spec.weight_bits == synapses.bits
            assert part.spec.events.value == values


@pytest.mark.parametrize("seed", range(30))
@pytest.mark.parametrize("code", CODES)
def test_everything_arrives(seed: int, code: Any, random_case: Callable[..., tuple[IntegerNet, CoreSpec]]) -> None:
    net, spec = random_case(seed, code)
    assert (spec.pixels.size, spec.pixels.maximum) == (net.inputs, net.input_max)
    assert spec.pixels.shape == pixel_shape(net)
    if code == "spike":
        schedule = spec.schedule
        assert schedule is not None
        assert (schedule.levels, schedule.margin, schedule.sleep, schedule.depth) == (net.levels, net.margin, net.sleep, len(net.layers))
        assert schedule.bound == sleep_bound(net)
        assert schedule.sleep_limit == (sleep_bound(net) if net.sleep is None else net.sleep)
    assert spec.counting == (code == "count")
    assert [node.name for node in spec.nodes] == [node.name for node in net.nodes]
    for node, laid in zip(net.nodes, spec.nodes, strict=True):
        if isinstance(node, Pool):
            assert isinstance(laid, PoolNode)
            assert (laid.source, laid.spec.kind, laid.spec.kernel, laid.spec.stride) == (node.source, node.kind, node.kernel, node.stride)
            assert laid.spec.padding == node.padding
            assert laid.spec.output.shape == net.shapes[node.name]
            continue
        assert isinstance(laid, LayerSpec)
        for synapses, part in zip(node.synapses, laid.inputs, strict=True):
            assert part.source == (None if synapses.source == IMAGE else synapses.source)
            weight = to_wire(synapses.weight, net.shapes[synapses.source]) if synapses.dense else synapses.weight
            assert torch.equal(torch.tensor(part.spec.weights), weight)
            assert part.spec.geometry == geometry(net, synapses)
            assert part.spec.currents.shape == net.shapes[node.name]
        if node.threshold is None:
            assert laid.neurons is None
            continue
        assert laid.neurons is not None
        assert list(laid.neurons.thresholds) == node.threshold.tolist()
        assert laid.neurons.levels == net.levels
        times = net.levels if code == "count" else 1
        assert list(laid.neurons.biases) == (times * node.bias).tolist()
        if isinstance(laid.neurons, CountSpec):
            assert laid.neurons.gain == (net.levels if node is net.layers[0] else 1)
            assert spec.events(node.name).value == Interval(0, net.levels)
        else:
            assert spec.events(node.name).value == Interval(-1, 1)
    assert list(spec.readout.biases) == net.readout.bias.tolist()


@pytest.mark.parametrize(("lanes", "passes", "chunks"), [(Lanes(1, 1), 13, 13), (Lanes(4, 2), 4, 7), (Lanes(16, 16), 1, 1)])
def test_lanes_and_beat_are_honoured(lanes: Lanes, passes: int, chunks: int, make_net: Callable[..., IntegerNet]) -> None:
    net = make_net((5, 13, 2))
    spec = core_spec(net, [lanes, Lanes(2, 2)], 4)
    first = spec.layers[0]
    assert (first.inputs[0].spec.lanes, first.inputs[0].spec.passes, first.neurons.currents.chunks) == (lanes.synapses, passes, chunks)
    assert (spec.pixels.beat, spec.pixels.beats) == (4, 2)
    assert core_spec(net, [lanes, Lanes(2, 2)], 1).pixels.beats == 5


@pytest.mark.parametrize("multiplier", ["dsp", "logic"])
def test_the_multiplier_is_honoured(multiplier: Any, make_net: Callable[..., IntegerNet]) -> None:
    spec = core_spec(make_net((5, 13, 2)), [Lanes(1, 1, multiplier)] * 2, 1)
    assert {part.spec.multiplier for layer in spec.layers for part in layer.inputs} == {multiplier}


@pytest.mark.parametrize("queue", [1, 30])
def test_queues_are_where_streams_wait(queue: int) -> None:
    """Before convolutions as deep as asked; where streams meet again as deep as a step; before dense layers none."""
    for seed in range(1, 40, 2):
        net = random_graph(seed)
        spec = core_spec(net, [Lanes(1, 1)] * len(net.layers), 1, queue=queue)
        for layer, laid in zip(net.layers, spec.layers, strict=True):
            for synapses, part in zip(layer.synapses, laid.inputs, strict=True):
                whole = part.spec.events.size + 1
                if len(layer.synapses) > 1:
                    assert part.queue == whole
                elif synapses.dense or synapses.source == IMAGE:
                    assert part.queue == 0
                else:
                    assert part.queue == min(queue, whole)


def test_weights_are_lowered_once(make_net: Callable[..., IntegerNet]) -> None:
    net = make_net((5, 13, 2))
    one, two = (core_spec(net, [Lanes(lanes, 1), Lanes(1, 1)], 1) for lanes in (1, 2))
    assert one.layers[0].inputs[0].spec.weights is two.layers[0].inputs[0].spec.weights


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
    with pytest.raises(ValueError, match="32-bit"):
        replace(core_spec(net, [Lanes(1, 1)] * 2, 1).readout, total=Interval(0, 1 << 32))


def test_formats_must_meet(make_net: Callable[..., IntegerNet]) -> None:
    spec = core_spec(make_net((5, 13, 2)), [Lanes(4, 2), Lanes(2, 2)], 1)
    other = core_spec(make_net((5, 12, 2)), [Lanes(4, 2), Lanes(2, 2)], 1)
    with pytest.raises(ValueError, match="layer1, synapses 0"):
        replace(spec, nodes=(spec.nodes[0], other.nodes[1]))
    with pytest.raises(ValueError, match="read-out"):
        replace(spec, nodes=spec.nodes[:1])
