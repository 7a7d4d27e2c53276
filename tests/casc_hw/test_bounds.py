"""No sum ever leaves its proved interval, and the intervals are not wider than they need to be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from casc_hw import IntegerNet, Interval, LayerBounds, Linear, bounds, simulate

Net = Callable[..., IntegerNet]
Images = Callable[..., torch.Tensor]


def worst_images(net: IntegerNet) -> torch.Tensor:
    """For every neuron of the first layer, the brightest image it likes and the one it dislikes; and halves of them."""
    weight = net.layers[0].weight
    images = torch.cat([(weight > 0), (weight < 0)]) * net.input_max
    return torch.cat([images, images // 2, images // net.levels])


def extremes(net: IntegerNet, images: torch.Tensor) -> list[dict[str, Interval]]:
    """Per layer, what was seen: the current of a step without the bias, the potential as it is compared, the read-out's sum."""
    trace = simulate(net, images, potentials=True)
    seen = []
    for index, layer in enumerate(net.layers):
        current = (trace.spikes[index - 1].long() if index else net.check_images(images)) @ layer.weight.T
        compared = trace.answer.sums
        if layer.threshold is not None:  # before the spike was taken off
            compared = trace.potentials[index] + trace.spikes[index].long() * layer.threshold
        seen.append(
            {
                "current": Interval(int(current.min()), int(current.max())),
                "potential": Interval(int(compared.min()), int(compared.max())),
            }
        )
    return seen


def assert_inside(seen: Interval, proved: Interval, what: str) -> None:
    assert proved.lo <= seen.lo, what
    assert seen.hi <= proved.hi, what


def assert_within(net: IntegerNet, images: torch.Tensor) -> None:
    for index, (seen, proved) in enumerate(zip(extremes(net, images), bounds(net), strict=True)):
        assert_inside(seen["current"], proved.current, f"current of layer {index}")
        assert_inside(seen["potential"], proved.potential, f"potential of layer {index}")
        layer = net.layers[index]
        assert proved.bias == Interval(int(layer.bias.min()), int(layer.bias.max()))
        if layer.threshold is None:
            assert proved.threshold is None
        else:
            assert proved.threshold == Interval(int(layer.threshold.min()), int(layer.threshold.max()))
            assert 0 in proved.potential, "a potential starts at 0"
        assert 0 in proved.current, "a current may be 0"


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

    def layer(name: str, weight: list[list[int]], bias: int, theta: int | None) -> Linear:
        count = len(weight)
        threshold = None if theta is None else torch.full((count,), theta)
        return Linear(name, torch.tensor(weight), torch.full((count,), bias), threshold, 8, 1.0 if theta is None else None)

    layers = (layer("first", first, bias1, theta1), layer("second", second, 0, theta2), layer("last", [[1] * len(second)], last_bias, None))
    return IntegerNet("small", 4, 4, None, (len(first[0]),), 10, layers)


def _layer(net: IntegerNet, index: int) -> LayerBounds:
    return bounds(net)[index]


def test_first_layer_is_tight() -> None:
    net = _net([[5, -3], [2, -7]], [[1, 1]], theta1=100_000)
    seen = extremes(net, worst_images(net))[0]
    assert _layer(net, 0).event == Interval(0, 10)
    assert _layer(net, 0).current == seen["current"] == Interval(-70, 50)
    assert _layer(net, 0).potential == seen["potential"] == Interval(-4 * 70, 4 * 50)


def test_first_layer_with_a_bias_is_tight() -> None:
    net = _net([[5, -3]], [[1]], theta1=100_000, bias1=20)
    seen = extremes(net, worst_images(net))[0]
    assert _layer(net, 0).current == Interval(-30, 50)
    assert _layer(net, 0).potential == seen["potential"] == Interval(-4 * 10, 4 * 70)


def test_second_layer_is_tight_above() -> None:
    net = _net([[5, 0, 0], [0, 5, 0], [0, 0, 5]], [[9, 2, -6]], theta2=100_000, theta1=20)
    assert _layer(net, 1).event == Interval(-1, 1)
    assert _layer(net, 1).current == Interval(-17, 17)
    assert _layer(net, 1).potential.hi == extremes(net, torch.tensor([[10, 10, 0]]))[1]["potential"].hi == 4 * 11


def test_second_layer_is_tight_below_where_a_threshold_limits_it() -> None:
    """With theta small, what was sent up can be taken back at most T times: v >= S_lo - theta T."""
    net = _net([[5]], [[-9]], theta2=2, theta1=20)
    assert _layer(net, 1).potential == Interval(-36, 0)
    assert extremes(net, torch.tensor([[10]]))[1]["potential"].lo == -36


def test_second_layer_below_is_within_twice_of_what_is_reached() -> None:
    net = _net([[1], [-1]], [[-9, 9]], theta2=100_000, theta1=1)
    proved = _layer(net, 1).potential
    seen = extremes(net, torch.arange(11)[:, None])[1]["potential"]
    assert seen.lo == -36
    assert -2 * 36 <= proved.lo <= seen.lo


def test_what_was_sent_is_taken_back_at_once() -> None:
    """Weights that are all positive, and yet a negative potential: what three sources sent one by one, they take back together."""

    def layer(name: str, weight: list[list[int]], theta: list[int] | None) -> Linear:
        threshold = None if theta is None else torch.tensor(theta)
        return Linear(name, torch.tensor(weight), torch.zeros(len(weight), dtype=torch.int64), threshold, 8, None if theta else 1.0)

    early_and_late = layer("early and late", [[1], [1]], [1, 4])  # fire in every step; in the last of four
    falling = layer("falling", [[5, -100]] * 3, [5] * 3)  # three steps up, then down again
    together = layer("together", [[9, 9, 9]], [27])
    net = IntegerNet("falling", 4, 4, None, (1,), 1, (early_and_late, falling, together, layer("last", [[1]], None)))
    trace = simulate(net, torch.tensor([[1]]))
    assert trace.spikes[1][:7, 0, 0].tolist() == [1, 1, 1, -1, -1, -1, 0]
    seen, proved = extremes(net, torch.tensor([[1]]))[2]["potential"], _layer(net, 2).potential
    assert seen.lo == -27
    assert proved.lo == -4 * 27, "at most T spikes were sent, at most T are taken back"
    assert_within(net, torch.tensor([[1]]))


def test_the_read_out_is_tight() -> None:
    net = _net([[5]], [[1], [1]], theta1=1, last_bias=-3)
    assert _layer(net, 2).potential == Interval(4 * -3, 4 * (2 - 3))
    assert extremes(net, torch.tensor([[0], [10]]))[2]["potential"] == Interval(-12, -4)


@pytest.mark.parametrize("levels", [1, 7])
def test_intervals_grow_with_the_levels(levels: int, make_net: Net) -> None:
    net = make_net((5, 4, 3), levels=levels)
    once, twice = bounds(net), bounds(replace(net, levels=2 * levels, margin=2 * levels))
    assert twice[0].potential.hi == 2 * once[0].potential.hi
    assert twice[0].potential.lo < once[0].potential.lo
    assert twice[0].current == once[0].current
