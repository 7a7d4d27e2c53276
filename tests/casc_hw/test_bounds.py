"""No sum ever leaves its proved interval, and the intervals are not wider than they need to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casc_hw import IMAGE, IntegerNet, Interval, Layer, LayerBounds, Pool, Synapses, bounds, events_of, quantised_ann, simulate
from casc_hw.reference import _weighted

Net = Callable[..., IntegerNet]
Images = Callable[..., torch.Tensor]


def worst_images(net: IntegerNet) -> torch.Tensor:
    """For every neuron of the first layer, the brightest image it likes and the one it dislikes; and halves of them."""
    still = torch.zeros(1, *net.shapes[IMAGE], dtype=torch.float64, requires_grad=True)
    liked = torch.zeros_like(still)
    for synapses in net.layers[0].synapses:  # the gradient of a neuron's current are the weights it sees
        if synapses.dense:
            rows = synapses.weight.double().reshape(-1, *still.shape[1:])
        else:
            out = torch.nn.functional.conv2d(
                still, synapses.weight.double(), None, synapses.stride, synapses.padding, 1, synapses.groups
            ).flatten()
            chosen = out[torch.linspace(0, len(out) - 1, min(len(out), 20)).long()]
            rows = torch.cat([torch.autograd.grad(neuron, still, retain_graph=True)[0] for neuron in chosen])
        liked = torch.cat([liked, rows])
    images = torch.cat([(liked > 0), (liked < 0)]).flatten(1) * net.input_max
    return torch.cat([images, images // 2, images // net.levels])


@dataclass
class Seen:
    """What was seen of a layer: an event, its synapses' currents and their sum in a step, the potential as it is compared (or the sum)."""

    event: list[Interval]
    currents: list[Interval]
    current: Interval
    potential: Interval


def span_of(values: torch.Tensor) -> Interval:
    return Interval(int(values.min()), int(values.max()))


def extremes(net: IntegerNet, images: torch.Tensor) -> list[Seen]:
    """Per layer, in spike code."""
    trace = simulate(net, images, potentials=True)
    pixels = net.check_images(images).reshape(-1, *net.shapes[IMAGE])
    totals = [spikes.long().cumsum(0) for spikes in trace.spikes]
    seen = []
    for index, layer in enumerate(net.layers):
        events = []
        for synapses in layer.synapses:
            if synapses.source == IMAGE:
                events.append(pixels)
            else:
                total = events_of(net, synapses.source, totals)
                events.append(torch.cat([total[:1], total.diff(dim=0)]).flatten(0, 1))
        currents = [_weighted(synapses, values) for synapses, values in zip(layer.synapses, events, strict=True)]
        compared = trace.answer.sums
        if layer.threshold is not None:  # before the spike was taken off
            theta = layer.threshold.repeat_interleave(prod(net.shapes[layer.name][1:]))
            compared = trace.potentials[index] + trace.spikes[index].long() * theta
        seen.append(Seen([*map(span_of, events)], [*map(span_of, currents)], span_of(torch.stack(currents).sum(0)), span_of(compared)))
    return seen


def count_extremes(net: IntegerNet, images: torch.Tensor) -> list[Seen]:
    """Per layer, in count code, where a step is the whole image."""
    answer = quantised_ann(net, images)
    pixels = net.check_images(images).reshape(-1, *net.shapes[IMAGE])
    seen = []
    for layer in net.layers:
        image = layer.synapses[0].source == IMAGE
        events = [pixels if image else events_of(net, synapses.source, answer.counts) for synapses in layer.synapses]
        currents = [_weighted(synapses, values) for synapses, values in zip(layer.synapses, events, strict=True)]
        current = torch.stack(currents).sum(0)
        total = current * (net.levels if image else 1) + net.levels * layer.bias[:, None, None]
        seen.append(Seen([*map(span_of, events)], [*map(span_of, currents)], span_of(current), span_of(total)))
    return seen


def assert_inside(seen: Interval, proved: Interval, what: str) -> None:
    assert proved.lo <= seen.lo, what
    assert seen.hi <= proved.hi, what


def assert_within(net: IntegerNet, images: torch.Tensor) -> None:
    for code, what in (("spike", extremes(net, images)), ("count", count_extremes(net, images))):
        for layer, seen, proved in zip(net.layers, what, bounds(net, code), strict=True):
            for index in range(len(layer.synapses)):
                assert_inside(seen.event[index], proved.event[index], f"{code} events to {layer.name}, synapses {index}")
                assert_inside(seen.currents[index], proved.currents[index], f"{code} currents of {layer.name}, synapses {index}")
                assert 0 in proved.currents[index], "a current may be 0"
            assert_inside(seen.current, proved.current, f"{code} current of {layer.name}")
            assert_inside(seen.potential, proved.potential, f"{code} potential of {layer.name}")
            assert 0 in proved.current, "a current may be 0"
            assert proved.bias == Interval(int(layer.bias.min()), int(layer.bias.max()))
            assert all(net.levels * bias in proved.potential for bias in (proved.bias.lo, proved.bias.hi)), "no source may reach a neuron"
            if layer.threshold is None:
                assert proved.threshold is None
            else:
                assert proved.threshold == Interval(int(layer.threshold.min()), int(layer.threshold.max()))
                assert code == "count" or 0 in proved.potential, "a potential starts at 0"


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    options=st.fixed_dictionaries(
        {
            "sizes": st.lists(st.sampled_from([1, 2, 3, 5, 7, 13]), min_size=3, max_size=6),
            "levels": st.integers(1, 16),
            "bits": st.sampled_from([2, 4, 8]),
            "input_max": st.sampled_from([1, 16, 255]),
            "spread": st.sampled_from([0.02, 0.3, 1.0, 5.0]),
            "extreme": st.booleans(),
            "seed": st.integers(0, 10_000),
            "sleep": st.none() | st.integers(0, 3),
        }
    ),
    margin=st.integers(1, 16),
)
def test_nothing_leaves_its_interval(options: dict[str, Any], margin: int, make_net: Net, make_images: Images) -> None:
    net = make_net(**options, margin=min(margin, options["levels"]))
    assert_within(net, torch.cat([make_images(net, 16, seed=options["seed"]), worst_images(net)]))


@pytest.mark.parametrize("seed", range(60))
def test_nothing_leaves_its_interval_in_a_graph(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed)
    assert_within(net, torch.cat([make_images(net, 16, seed), worst_images(net)]))


def test_climbing_towards_the_bound_does_not_pass_it(make_net: Net) -> None:
    """Hill climbing on single pixels, for the lowest and the highest potential of the second layer."""
    chance = torch.Generator().manual_seed(0)
    for seed in range(4):
        net = make_net((6, 8, 1, 2), levels=8, bits=4, seed=seed, spread=0.5)
        for sign in (1, -1):
            best = torch.zeros(1, 6, dtype=torch.int64)
            for _ in range(25):
                tries = best.repeat(32, 1)
                tries[torch.arange(32), torch.randint(6, (32,), generator=chance)] = torch.randint(256, (32,), generator=chance)
                trace = simulate(net, torch.cat([best, tries]), potentials=True)
                theta = net.layers[1].threshold
                assert theta is not None
                compared = trace.potentials[1] + trace.spikes[1].long() * theta
                score = (sign * compared).amax((0, 2))
                best = torch.cat([best, tries])[score.argmax()][None]
            assert_within(net, best)


def _net(
    first: list[list[int]], second: list[list[int]], *, theta1: int = 1, theta2: int = 1, bias1: int = 0, last_bias: int = 0
) -> IntegerNet:
    """Two spiking layers and a read-out of ones; T = 4, pixels 0 to 10."""

    def layer(name: str, weight: list[list[int]], bias: int, theta: int | None) -> Layer:
        count = len(weight)
        threshold = None if theta is None else torch.full((count,), theta)
        source = {"first": IMAGE, "second": "first", "last": "second"}[name]
        return Layer.dense(name, source, torch.tensor(weight), torch.full((count,), bias), threshold, 8, 1.0 if theta is None else None)

    layers = (layer("first", first, bias1, theta1), layer("second", second, 0, theta2), layer("last", [[1] * len(second)], last_bias, None))
    return IntegerNet("small", 4, 4, None, (len(first[0]),), 10, layers)


def _layer(net: IntegerNet, index: int) -> LayerBounds:
    return bounds(net)[index]


def test_first_layer_is_tight() -> None:
    net = _net([[5, -3], [2, -7]], [[1, 1]], theta1=100_000)
    seen = extremes(net, worst_images(net))[0]
    assert _layer(net, 0).event == (Interval(0, 10),)
    assert _layer(net, 0).current == seen.current == Interval(-70, 50)
    assert _layer(net, 0).potential == seen.potential == Interval(-4 * 70, 4 * 50)


def test_first_layer_with_a_bias_is_tight() -> None:
    net = _net([[5, -3]], [[1]], theta1=100_000, bias1=20)
    seen = extremes(net, worst_images(net))[0]
    assert _layer(net, 0).current == Interval(-30, 50)
    assert _layer(net, 0).potential == seen.potential == Interval(-4 * 10, 4 * 70)


def test_second_layer_is_tight_above() -> None:
    net = _net([[5, 0, 0], [0, 5, 0], [0, 0, 5]], [[9, 2, -6]], theta2=100_000, theta1=20)
    assert _layer(net, 1).event == (Interval(-1, 1),)
    assert _layer(net, 1).current == Interval(-17, 17)
    assert _layer(net, 1).potential.hi == extremes(net, torch.tensor([[10, 10, 0]]))[1].potential.hi == 4 * 11


def test_second_layer_is_tight_below_where_a_threshold_limits_it() -> None:
    """With theta small, what was sent up can be taken back at most T times: v >= S_lo - theta T."""
    net = _net([[5]], [[-9]], theta2=2, theta1=20)
    assert _layer(net, 1).potential == Interval(-36, 0)
    assert extremes(net, torch.tensor([[10]]))[1].potential.lo == -36


def test_second_layer_below_is_within_twice_of_what_is_reached() -> None:
    net = _net([[1], [-1]], [[-9, 9]], theta2=100_000, theta1=1)
    proved = _layer(net, 1).potential
    seen = extremes(net, torch.arange(11)[:, None])[1].potential
    assert seen.lo == -36
    assert -2 * 36 <= proved.lo <= seen.lo


def test_what_was_sent_is_taken_back_at_once() -> None:
    """Weights that are all positive, and yet a negative potential: what three sources sent one by one, they take back together."""

    def layer(name: str, source: str, weight: list[list[int]], theta: list[int] | None) -> Layer:
        threshold, bias = None if theta is None else torch.tensor(theta), torch.zeros(len(weight), dtype=torch.int64)
        return Layer.dense(name, source, torch.tensor(weight), bias, threshold, 8, None if theta else 1.0)

    uneven = layer("uneven", IMAGE, [[1], [1]], [1, 4])  # fire in every step; in the last of four
    falling = layer("falling", "uneven", [[5, -100]] * 3, [5] * 3)  # three steps up, then down again
    together = layer("together", "falling", [[9, 9, 9]], [27])
    net = IntegerNet("falling", 4, 4, None, (1,), 1, (uneven, falling, together, layer("last", "together", [[1]], None)))
    trace = simulate(net, torch.tensor([[1]]))
    assert trace.spikes[1][:7, 0, 0].tolist() == [1, 1, 1, -1, -1, -1, 0]
    seen, proved = extremes(net, torch.tensor([[1]]))[2].potential, _layer(net, 2).potential
    assert seen.lo == -27
    assert proved.lo == -4 * 27, "at most T spikes were sent, at most T are taken back"
    assert_within(net, torch.tensor([[1]]))


def test_the_read_out_is_tight() -> None:
    net = _net([[5]], [[1], [1]], theta1=1, last_bias=-3)
    assert _layer(net, 2).potential == Interval(4 * -3, 4 * (2 - 3))
    assert extremes(net, torch.tensor([[0], [10]]))[2].potential == Interval(-12, -4)


@pytest.mark.parametrize("levels", [1, 7])
def test_intervals_grow_with_the_levels(levels: int, make_net: Net) -> None:
    net = make_net((5, 4, 3), levels=levels)
    once, twice = bounds(net), bounds(replace(net, levels=2 * levels, margin=2 * levels))
    assert twice[0].potential.hi == 2 * once[0].potential.hi
    assert twice[0].potential.lo < once[0].potential.lo
    assert twice[0].current == once[0].current


def test_a_pooled_source_counts_for_its_window() -> None:
    """Behind sums of 2 x 3 windows an event has up to six spikes; behind the maxima of those windows, one."""
    one = torch.ones(1, dtype=torch.int64)
    first = Layer("first", (Synapses(IMAGE, torch.ones(1, 1, 1, 1, dtype=torch.int64), 2),), 0 * one, one)
    weight = torch.tensor([[2, -3]])
    for kind, span in (("average", 6), ("max", 1)):
        pool = Pool("pool", "first", kind, (2, 3), (2, 3))
        nodes = (
            first,
            pool,
            Layer.dense("second", "pool", weight, 0 * one, 1000 * one, 8),
            Layer.dense("last", "second", one[None], one, None, 8, 1.0),
        )
        net = IntegerNet("pooled", 4, 4, None, (4, 3), 1, nodes)
        spike, count = bounds(net)[1], bounds(net, "count")[1]
        assert spike.event == (Interval(-span, span),)
        assert spike.current == spike.currents[0] == Interval(-5 * span, 5 * span)
        assert spike.potential == Interval(-4 * 5 * span, 4 * 2 * span)
        assert count.event == (Interval(0, 4 * span),)
        assert count.current == count.potential == Interval(-4 * 3 * span, 4 * 2 * span)
        images = torch.tensor([[[1, 1, 1]] * 2 + [[0, 0, 0]] * 2, [[0, 0, 0]] * 2 + [[1, 1, 1]] * 2])
        assert count_extremes(net, images)[1].potential == count.potential
        assert_within(net, images)


def test_synapses_add_channel_by_channel() -> None:
    """The sum's interval is that of the channels' sums: narrower than the sum of the synapses' intervals."""
    zero = torch.zeros(2, dtype=torch.int64)
    first = Layer.dense("first", IMAGE, torch.eye(2, dtype=torch.int64), zero, zero + 1, 8)
    parts = (Synapses("first", torch.tensor([[7, 0], [-1, 0]]), 8), Synapses("first", torch.tensor([[0, -5], [0, 2]]), 8))
    second = Layer("second", parts, zero + torch.tensor([1, -1]), zero + 100)
    net = IntegerNet("sum", 4, 4, None, (2,), 1, (first, second, Layer.dense("last", "second", torch.eye(2).long(), zero, None, 8, 1.0)))
    spike, count = bounds(net)[1], bounds(net, "count")[1]
    assert spike.currents == (Interval(-7, 7), Interval(-5, 5))
    assert spike.current == Interval(-12, 12)
    assert count.currents == (Interval(-4, 28), Interval(-20, 8))
    assert count.current == Interval(-20, 28)
    assert count.potential == Interval(-16, 32)
    assert_within(net, torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]]))


def test_a_border_neuron_may_have_its_bias_alone() -> None:
    """Padding leaves one tap to the corner: its potential is nearer to the bias than any that has the whole kernel."""
    first = Layer(
        "first", (Synapses(IMAGE, torch.tensor([[[[0, 0], [0, 5]]]]), 8, (1, 1), (1, 1)),), torch.tensor([-30]), torch.tensor([1000])
    )
    last = Layer.dense("last", "first", torch.ones(1, 9, dtype=torch.int64), torch.tensor([0]), None, 8, 1.0)
    net = IntegerNet("border", 4, 4, None, (2, 2), 10, (first, last))
    bright = torch.full((1, 2, 2), 10)
    assert bounds(net)[0].potential == Interval(-120, 80)
    assert extremes(net, bright)[0].potential == Interval(-120, 80)
    assert bounds(net, "count")[0].potential == count_extremes(net, bright)[0].potential == Interval(-120, 80)
