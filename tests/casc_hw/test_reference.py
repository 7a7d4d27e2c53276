"""The reference, checked by three things that share no code with it: neuron by neuron in plain integers, the float model, theory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from casc_hw import ClipQuan, IntegerNet, Linear, Trace, quantised_ann, simulate, sleep_bound

Net = Callable[..., IntegerNet]
Images = Callable[..., torch.Tensor]

NETS = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.sampled_from([1, 2, 3, 5, 7, 8, 13]), min_size=3, max_size=6),  # one to four spiking layers
        "levels": st.integers(1, 16),
        "bits": st.sampled_from([2, 3, 4, 6, 8]),
        "input_max": st.sampled_from([1, 16, 255]),
        "spread": st.sampled_from([0.1, 0.5, 1.0, 3.0]),
        "extreme": st.booleans(),
        "seed": st.integers(0, 10_000),
    }
)


@pytest.fixture(scope="module")
def restless(make_net: Net) -> IntegerNet:
    """Three spiking layers, T = 8, whose images sleep 1 to 12 steps."""
    return make_net((13, 29, 23, 19, 5), levels=8, spread=0.3, seed=1)


# --- an independent model, written from docs/semantics.md: one image, one neuron at a time --------------------------------------


@dataclass
class Slow:
    """What one image does: [step][layer][neuron] spikes and potentials; sleep steps of every sleep."""

    spikes: list[list[list[int]]]
    potentials: list[list[list[int]]]
    wake: list[bool]
    counts: list[list[int]]
    sums: list[int]
    sleeps: list[int]
    settled: bool


def slow(net: IntegerNet, pixels: list[int], gamma: int = 1) -> Slow:
    out = Slow([], [], [], [[0] * layer.outputs for layer in net.spiking], [0] * net.readout.outputs, [], True)
    v = [[0] * layer.outputs for layer in net.spiking]
    weights = [layer.weight.tolist() for layer in net.layers]
    biases = [layer.bias.tolist() for layer in net.layers]
    thetas = [layer.threshold.tolist() for layer in net.spiking if layer.threshold is not None]

    def step(t: int, awake: bool) -> bool:
        arriving, any_spike, row, rest = pixels if awake else [0] * len(pixels), False, [], []
        for layer, theta in enumerate(thetas):
            leaving = []
            for neuron in range(len(theta)):
                x = biases[layer][neuron] if awake else 0
                for source, value in enumerate(arriving):
                    x += weights[layer][neuron][source] * value
                v[layer][neuron] += x
                spike, room = 0, gamma
                while v[layer][neuron] >= theta[neuron] and out.counts[layer][neuron] < t and room:
                    v[layer][neuron] -= theta[neuron]
                    out.counts[layer][neuron] += 1
                    spike, room = spike + 1, room - 1
                while v[layer][neuron] < 0 and out.counts[layer][neuron] > 0 and room:
                    v[layer][neuron] += theta[neuron]
                    out.counts[layer][neuron] -= 1
                    spike, room = spike - 1, room - 1
                leaving.append(spike)
                any_spike = any_spike or spike != 0
            row.append(leaving)
            rest.append(list(v[layer]))
            arriving = leaving
        for neuron in range(len(out.sums)):
            out.sums[neuron] += biases[-1][neuron] if awake else 0
            for source, value in enumerate(arriving):
                out.sums[neuron] += weights[-1][neuron][source] * value
        out.spikes.append(row)
        out.potentials.append(rest)
        out.wake.append(awake)
        return any_spike

    t = 0
    while t < net.levels:
        for _ in range(min(net.margin, net.levels - t)):
            t += 1
            step(t, True)
        steps, out.settled = 0, False
        while not out.settled and (net.sleep is None or steps < net.sleep):
            steps += 1
            out.settled = not step(t, False)
        out.sleeps.append(steps)
    return out


def assert_same(net: IntegerNet, images: torch.Tensor, gamma: int = 1) -> Trace:
    trace = simulate(net, images, gamma=gamma, potentials=True)
    for image, pixels in enumerate(images.tolist()):
        wanted, steps = slow(net, pixels, gamma), trace.steps(image)
        assert trace.wake[steps].tolist() == wanted.wake
        for layer in range(len(net.spiking)):
            assert trace.spikes[layer][steps, image].tolist() == [row[layer] for row in wanted.spikes]
            assert trace.potentials[layer][steps, image].tolist() == [row[layer] for row in wanted.potentials]
            assert trace.answer.counts[layer][image].tolist() == wanted.counts[layer]
            idle = trace.spikes[layer][~trace.active[:, image], image]
            assert not idle.any(), "an image moves in a step that is not its own"
        assert trace.answer.sums[image].tolist() == wanted.sums
        assert int(trace.answer.classes[image]) == wanted.sums.index(max(wanted.sums))
        assert int(trace.sleep_steps[image]) == sum(wanted.sleeps)
        assert bool(trace.settled[image]) == wanted.settled
    return trace


@settings(max_examples=60, deadline=None, derandomize=True)
@given(options=NETS, margin=st.integers(1, 16), sleep=st.none() | st.integers(0, 6))
def test_every_step_equals_the_slow_model(
    options: dict[str, Any], margin: int, sleep: int | None, make_net: Net, make_images: Images
) -> None:
    net = make_net(**options, margin=min(margin, options["levels"]), sleep=sleep)
    assert_same(net, make_images(net, 4, seed=options["seed"]))


@pytest.mark.parametrize("gamma", [2, 3, 8])
def test_bursts_equal_the_slow_model_and_end_with_the_same_counts(gamma: int, make_net: Net, make_images: Images) -> None:
    net = make_net((7, 11, 5, 3), levels=8, spread=0.3, seed=gamma)
    images = make_images(net, 12)
    trace = assert_same(net, images, gamma)
    assert max(int(spikes.max()) for spikes in trace.spikes) > 1, "no burst: the test shows nothing"
    assert_equals_ann(net, images, trace)


# --- spiking network = integer ANN ------------------------------------------------------------------------------------


def assert_equals_ann(net: IntegerNet, images: torch.Tensor, trace: Trace) -> None:
    answer = quantised_ann(net, images)
    for got, wanted in zip(trace.answer.counts, answer.counts, strict=True):
        assert torch.equal(got, wanted)
    assert torch.equal(trace.answer.sums, answer.sums)
    assert torch.equal(trace.answer.classes, answer.classes)
    assert trace.settled.all()


@settings(max_examples=120, deadline=None, derandomize=True)
@given(options=NETS, margin=st.integers(1, 16))
def test_spiking_equals_integer_ann(options: dict[str, Any], margin: int, make_net: Net, make_images: Images) -> None:
    net = make_net(**options, margin=min(margin, options["levels"]))
    images = make_images(net, 12, seed=options["seed"])
    trace = simulate(net, images)
    assert_equals_ann(net, images, trace)
    sleeps = -(-net.levels // net.margin)
    assert sleeps <= int(trace.sleep_steps.min())
    assert int(trace.sleep_steps.max()) <= sleeps * sleep_bound(net)


@pytest.mark.parametrize("margin", range(1, 9))
def test_spiking_equals_integer_ann_at_every_margin(margin: int, restless: IntegerNet, make_images: Images) -> None:
    images = make_images(restless, 40)
    trace = simulate(replace(restless, margin=margin), images)
    assert_equals_ann(restless, images, trace)
    assert int(trace.wake.sum()) == 8
    awake = "".join("W" if wake else "s" for wake in trace.wake.tolist())
    assert [len(block) for block in awake.replace("s", " ").split()] == [margin] * (8 // margin) + [8 % margin] * (8 % margin > 0)


def test_integer_ann_equals_the_formula(make_net: Net, make_images: Images) -> None:
    net = make_net((5, 7, 4, 3), levels=6)
    images = make_images(net, 9)
    answer = quantised_ann(net, images)
    for image, pixels in enumerate(images.tolist()):
        total = [net.levels * pixel for pixel in pixels]
        for index, layer in enumerate(net.layers):
            total = [
                net.levels * bias + sum(w * x for w, x in zip(row, total, strict=True))
                for row, bias in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)
            ]
            if layer.threshold is not None:
                total = [min(max(s // theta, 0), net.levels) for s, theta in zip(total, layer.threshold.tolist(), strict=True)]
                assert answer.counts[index][image].tolist() == total
        assert answer.sums[image].tolist() == total


def test_random_nets_are_worth_testing(restless: IntegerNet, make_images: Images) -> None:
    """They have silent, middling and full neurons, negative spikes, and sleeps of several steps."""
    trace = simulate(restless, make_images(restless, 40))
    for counts, spikes in zip(trace.answer.counts, trace.spikes, strict=True):
        assert set(counts.unique().tolist()) == set(range(9))
        assert spikes.max() == 1
    assert trace.spikes[1].min() == trace.spikes[2].min() == -1
    assert len(trace.sleep_steps.unique()) > 5


def test_equals_the_float_clipquan_model(make_net: Net, make_images: Images) -> None:
    """Thresholds and levels of powers of two make the float model exact, so that equality is exact as well."""
    for levels, seed in [(1, 0), (2, 1), (4, 2), (8, 3), (16, 4)]:
        net = make_net((9, 12, 7, 4), levels=levels, seed=seed)
        layers = [
            replace(layer, threshold=2 ** torch.log2(layer.threshold.double()).ceil().long()) if layer.threshold is not None else layer
            for layer in net.layers
        ]
        net = replace(net, layers=tuple(layers))
        modules: list[nn.Module] = []
        for layer in net.layers:
            linear = nn.Linear(layer.inputs, layer.outputs, dtype=torch.float64)
            one = torch.ones(layer.outputs) if layer.threshold is None else layer.threshold
            linear.weight.data, linear.bias.data = layer.weight / one[:, None].double(), layer.bias / one.double()
            modules += [linear] if layer.threshold is None else [linear, ClipQuan(levels)]
        images, x, counts = make_images(net, 50), make_images(net, 50).double(), []
        for module in modules:
            x = module(x)
            if isinstance(module, ClipQuan):
                counts.append(x.detach() * levels)
        trace = simulate(net, images)
        for got, wanted in zip(trace.answer.counts, counts, strict=True):
            assert torch.equal(got.double(), wanted)
        assert torch.equal(trace.answer.sums.double(), x.detach() * levels)


@pytest.mark.parametrize("pixel", [0, 255])
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("bias", [-(1 << 40), 0, 1 << 40])
@pytest.mark.parametrize("theta", [1, (1 << 45) - 1])
def test_extremes_of_the_format(pixel: int, weight: int, bias: int, theta: int) -> None:
    def layer(inputs: int, outputs: int, last: bool = False) -> Linear:
        return Linear(
            name=f"layer_{inputs}_{outputs}",
            weight=torch.full((outputs, inputs), weight),
            bias=torch.full((outputs,), bias),
            threshold=None if last else torch.full((outputs,), theta),
            bits=8,
            scale=1.0 if last else None,
        )

    net = IntegerNet("extreme", 16, 16, None, (3,), 255, (layer(3, 2), layer(2, 2), layer(2, 1, last=True)))
    images = torch.full((1, 3), pixel)
    trace = assert_same(net, images)
    assert_equals_ann(net, images, trace)
    total = 16 * (3 * weight * pixel + bias)
    assert trace.answer.counts[0].tolist() == [[min(max(total // theta, 0), 16)] * 2]


# --- how long it sleeps -----------------------------------------------------------------------------------------------


def test_one_spiking_layer_needs_no_sleep(make_net: Net, make_images: Images) -> None:
    """Its current is the same in every step, so it is at rest after each one: only the silent step is slept."""
    net = make_net((13, 17, 5), levels=16)
    assert simulate(net, make_images(net, 50)).sleep_steps.unique().tolist() == [1]


def test_a_late_burst_is_delivered_one_spike_a_step() -> None:
    """All of the second neuron's current comes with the last wake step: it emits T spikes, T - 1 of them in sleep."""
    first = Linear("first", torch.tensor([[1]]), torch.tensor([0]), torch.tensor([4]), 8)  # fires in wake step 4 of 4
    second = Linear("second", torch.tensor([[8]]), torch.tensor([0]), torch.tensor([2]), 8)
    last = Linear("last", torch.tensor([[3]]), torch.tensor([5]), None, 8, 1.0)
    net = IntegerNet("late", 4, 4, None, (1,), 1, (first, second, last))
    trace = simulate(net, torch.tensor([[1]]))
    assert trace.spikes[0][:, 0, 0].tolist() == [0, 0, 0, 1, 0, 0, 0, 0]
    assert trace.spikes[1][:, 0, 0].tolist() == [0, 0, 0, 1, 1, 1, 1, 0]
    assert trace.wake.tolist() == [True] * 4 + [False] * 4
    assert trace.sleep_steps.tolist() == [4]
    assert trace.answer.sums.tolist() == [[3 * 4 + 5 * 4]]


@pytest.mark.parametrize("sleep", [0, 1, 2, 3])
@pytest.mark.parametrize("margin", [2, 8])
def test_the_sleep_bound_of_the_schedule_is_honoured(sleep: int, margin: int, restless: IntegerNet, make_images: Images) -> None:
    net = replace(restless, margin=margin, sleep=sleep)
    images = make_images(net, 30)
    trace = simulate(net, images)
    assert int(trace.sleep_steps.max()) == sleep * (8 // margin)
    assert not trace.settled.all()
    answer = quantised_ann(net, images)
    for image in trace.settled.nonzero()[:, 0].tolist():
        assert torch.equal(trace.answer.sums[image], answer.sums[image])
    assert not torch.equal(trace.answer.sums, answer.sums), "cut short, and yet every answer is right: the bound did nothing"


def test_unsettled_images_are_told_from_settled_ones(restless: IntegerNet, make_images: Images) -> None:
    images = make_images(restless, 30)
    long = simulate(restless, images).sleep_steps
    short = simulate(replace(restless, sleep=4), images)
    assert torch.equal(short.settled, long <= 4)
    assert 0 < int(short.settled.sum()) < 30


def test_nothing_is_recorded_unless_asked(make_net: Net, make_images: Images) -> None:
    net = make_net((5, 3, 2))
    trace = simulate(net, make_images(net, 3), record=False)
    assert trace.spikes == trace.potentials == ()
    assert_equals_ann(net, make_images(net, 3), trace)


def test_an_image_does_the_same_alone_and_in_a_batch(restless: IntegerNet, make_images: Images) -> None:
    net = replace(restless, margin=3)
    images = make_images(net, 10)
    batch = simulate(net, images)
    for image in range(10):
        alone = simulate(net, images[image : image + 1])
        for together, single in zip(batch.spikes, alone.spikes, strict=True):
            assert torch.equal(together[batch.steps(image), image], single[:, 0])
        assert int(alone.sleep_steps) == int(batch.sleep_steps[image])


def test_of_equal_sums_the_first_class_wins() -> None:
    hidden = Linear("hidden", torch.ones(2, 1, dtype=torch.int64), torch.zeros(2, dtype=torch.int64), torch.ones(2, dtype=torch.int64), 2)
    last = Linear("last", torch.tensor([[-1, 0], [1, 0], [0, 1], [1, 0]]), torch.zeros(4, dtype=torch.int64), None, 2, 1.0)
    net = IntegerNet("ties", 4, 4, None, (1,), 1, (hidden, last))
    images = torch.tensor([[1], [0]])
    assert quantised_ann(net, images).classes.tolist() == simulate(net, images).answer.classes.tolist() == [1, 0]
