"""The reference, checked by three things that share no code with it: neuron by neuron in plain integers, the float model, theory."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from casc_hw import (
    IMAGE,
    ClipQuan,
    IntegerNet,
    Layer,
    Pool,
    Synapses,
    Trace,
    events_of,
    quantised_ann,
    simulate,
    sleep_bound,
    to_wire,
)
from casc_hw.reference import _floor

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


def windows(size: int, kernel: int, stride: int, padding: int) -> list[list[tuple[int, int]]]:
    """By place in the output, the (tap, place in the input) that lie on the map."""
    count = (size + 2 * padding - kernel) // stride + 1
    return [
        [(tap, place * stride + tap - padding) for tap in range(kernel) if 0 <= place * stride + tap - padding < size]
        for place in range(count)
    ]


def reach(part: Synapses | Pool, shape: tuple[int, int, int]) -> dict[int, list[tuple[int, int]]]:
    """By source, the (target, weight) that it reaches: both flattened in (C, H, W) order. A pool's weights are 1."""
    (channels, height, width), found = shape, dict[int, list[tuple[int, int]]]()
    if isinstance(part, Synapses) and part.dense:
        return {source: list(enumerate(column)) for source, column in enumerate(part.weight.T.tolist())}
    rows = windows(height, part.kernel[0], part.stride[0], part.padding[0])
    columns = windows(width, part.kernel[1], part.stride[1], part.padding[1])
    outputs = part.outputs if isinstance(part, Synapses) else channels
    groups = part.groups if isinstance(part, Synapses) else channels
    weight = part.weight.tolist() if isinstance(part, Synapses) else None
    for output, (y, row), (x, column) in product(range(outputs), enumerate(rows), enumerate(columns)):
        for slot, (down, i), (across, j) in product(range(channels // groups), row, column):
            channel = output // (outputs // groups) * (channels // groups) + slot
            one = weight[output][slot][down][across] if weight else 1
            source, target = (channel * height + i) * width + j, (output * len(rows) + y) * len(columns) + x
            found.setdefault(source, []).append((target, one))
    return found


def slow(net: IntegerNet, pixels: list[int], gamma: int = 1) -> Slow:
    sizes = {name: prod(shape) for name, shape in net.shapes.items()}
    last = net.readout.name
    counts = {node.name: [0] * sizes[node.name] for node in net.nodes}
    v = {layer.name: [0] * sizes[layer.name] for layer in net.spiking}
    out = Slow([], [], [], [counts[layer.name] for layer in net.spiking], counts[last], [], True)
    inputs = {
        node.name: [(part.source, reach(part, net.shapes[part.source])) for part in ([node] if isinstance(node, Pool) else node.synapses)]
        for node in net.nodes
    }

    def cif(layer: Layer, current: list[int], t: int) -> list[int]:
        """The spikes of a layer."""
        leaving, count, rest = [], counts[layer.name], v[layer.name]
        theta = [one for one in layer.threshold.tolist() for _ in range(sizes[layer.name] // layer.outputs)]  # type: ignore[union-attr]
        for neuron, x in enumerate(current):
            rest[neuron] += x
            spike, room = 0, gamma
            while rest[neuron] >= theta[neuron] and count[neuron] < t and room:
                rest[neuron] -= theta[neuron]
                count[neuron] += 1
                spike, room = spike + 1, room - 1
            while rest[neuron] < 0 and count[neuron] > 0 and room:
                rest[neuron] += theta[neuron]
                count[neuron] -= 1
                spike, room = spike - 1, room - 1
            leaving.append(spike)
        return leaving

    def step(t: int, awake: bool) -> bool:
        events = {IMAGE: pixels if awake else [0] * len(pixels)}
        for node in net.nodes:
            arrived = [0] * sizes[node.name]
            if isinstance(node, Layer) and awake:
                arrived = [bias for bias in node.bias.tolist() for _ in range(sizes[node.name] // node.outputs)]
            if isinstance(node, Pool) and node.kind == "max":  # over counts, not events; padding has count 0
                ((source, ways),) = inputs[node.name]
                for place, targets in ways.items():
                    for target, _ in targets:
                        arrived[target] = max(arrived[target], counts[source][place])
                events[node.name] = [now - before for now, before in zip(arrived, counts[node.name], strict=True)]
                counts[node.name] = arrived
                continue
            for source, ways in inputs[node.name]:
                for place, value in enumerate(events[source]):
                    for target, weight in ways.get(place, []) if value else []:
                        arrived[target] += weight * value
            if isinstance(node, Layer) and node.threshold is not None:
                events[node.name] = cif(node, arrived, t)
            else:
                events[node.name] = arrived
                counts[node.name][:] = [a + b for a, b in zip(counts[node.name], arrived, strict=True)]
        out.spikes.append([events[layer.name] for layer in net.spiking])
        out.potentials.append([list(v[layer.name]) for layer in net.spiking])
        out.wake.append(awake)
        return any(any(row) for row in out.spikes[-1])

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
        wire = to_wire(torch.tensor(wanted.sums), net.shapes[net.readout.name]).tolist()
        assert int(trace.answer.classes[image]) == wire.index(max(wire))
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


@pytest.mark.parametrize("seed", range(40))
def test_every_step_of_a_graph_equals_the_slow_model(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed, sleep=[None, None, 1, 4][seed % 4])
    assert_same(net, make_images(net, 3, seed))


@pytest.mark.parametrize("gamma", [2, 3, 8])
def test_bursts_equal_the_slow_model_and_end_with_the_same_counts(gamma: int, make_net: Net, make_images: Images) -> None:
    net = make_net((7, 11, 5, 3), levels=8, spread=0.3, seed=gamma)
    images = make_images(net, 12)
    trace = assert_same(net, images, gamma)
    assert max(int(spikes.max()) for spikes in trace.spikes) > 1, "no burst: the test shows nothing"
    assert_equals_ann(net, images, trace)


@pytest.mark.parametrize("seed", range(6))
def test_bursts_of_a_graph_equal_the_slow_model(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed, levels=8)
    images = make_images(net, 3, seed)
    assert_equals_ann(net, images, assert_same(net, images, gamma=3))


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


@pytest.mark.parametrize("seed", range(80))
def test_spiking_equals_integer_ann_on_graphs(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed)
    images = make_images(net, 16, seed)
    trace = simulate(net, images)
    assert_equals_ann(net, images, trace)
    sleeps = -(-net.levels // net.margin)
    assert sleeps <= int(trace.sleep_steps.min())
    assert int(trace.sleep_steps.max()) <= sleeps * sleep_bound(net)


def test_random_graphs_are_worth_testing(make_graph: Net, make_images: Images) -> None:
    """They have everything that a network may have, and neurons that are silent, full and between, and that take spikes back."""
    seen, silent, full, falling, neurons = Counter[str](), 0, 0, 0, 0
    for seed in range(80):
        net = make_graph(seed)
        trace = simulate(net, make_images(net, 16, seed))
        for counts, spikes in zip(trace.answer.counts, trace.spikes, strict=True):
            silent, full, neurons = silent + int((counts == 0).sum()), full + int((counts == net.levels).sum()), neurons + counts.numel()
            falling += int((spikes < 0).any())
        averages = {node.name for node in net.nodes if isinstance(node, Pool) and node.kind == "average"}
        pooled = {node.name for node in net.nodes if isinstance(node, Pool)}
        for node in net.nodes:
            if isinstance(node, Pool):
                seen[node.kind] += 1
                seen["padded pool"] += node.padding != (0, 0)
                seen["overlapping pool"] += node.stride[0] < node.kernel[0]
                seen["pool of a pool"] += node.source in pooled
                continue
            seen["two sources"] += len({synapses.source for synapses in node.synapses}) > 1
            seen["one source twice"] += len({synapses.source for synapses in node.synapses}) < len(node.synapses)
            for synapses in node.synapses:
                seen["dense"] += synapses.dense
                seen["dense from a map"] += synapses.dense and max(net.shapes[synapses.source][1:]) > 1
                seen["stride"] += max(synapses.stride) > 1
                seen["padding"] += max(synapses.padding) > 0
                seen["uneven kernel"] += synapses.kernel[0] != synapses.kernel[1]
                seen["groups"] += synapses.groups > 1
                seen["shortcut"] += synapses.shortcut and synapses.groups > 1
                seen["wide shortcut"] += synapses.bits > 8
                seen["weights on averages"] += synapses.source in averages
    assert len(seen) == 16
    assert min(seen.values()) > 0, seen
    assert 0.2 < silent / neurons < 0.7
    assert 0.1 < full / neurons < 0.6
    assert falling > 40


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
                for row, bias in zip(layer.synapses[0].weight.tolist(), layer.bias.tolist(), strict=True)
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


def power_of_two(net: IntegerNet) -> IntegerNet:
    """With thresholds and levels of powers of two a float model is exact, so that equality is exact as well."""

    def rounded(node: Layer | Pool) -> Layer | Pool:
        if isinstance(node, Pool) or node.threshold is None:
            return node
        return replace(node, threshold=2 ** torch.log2(node.threshold.double()).ceil().long())

    return replace(net, nodes=tuple(map(rounded, net.nodes)))


class FloatModel(nn.Module):
    """The ClipQuan network that ``net`` stands for, on pixels: weights, biases and activations are fractions, 1.0 is a threshold."""

    def __init__(self, net: IntegerNet):
        super().__init__()
        self.net, self.clip = net, ClipQuan(net.levels)

    def forward(self, images: torch.Tensor) -> tuple[list[torch.Tensor], torch.Tensor]:
        values, activations, x = {IMAGE: images.double().reshape(-1, *self.net.shapes[IMAGE])}, [], images
        for node in self.net.nodes:
            if isinstance(node, Pool):
                x = functional.pad(values[node.source], (node.padding[1],) * 2 + (node.padding[0],) * 2)
                if node.kind == "max":
                    x = functional.max_pool2d(x, node.kernel, node.stride)
                else:  # the sum, for what comes next divides by the size
                    x = functional.avg_pool2d(x, node.kernel, node.stride, divisor_override=1)
            else:
                one = torch.ones(node.outputs).double() if node.threshold is None else node.threshold.double()
                x = (node.bias / one)[:, None, None]
                for part in node.synapses:
                    weight, source = part.weight.double() / one.reshape(-1, *[1] * (part.weight.ndim - 1)), values[part.source]
                    if part.dense:
                        x = x + functional.linear(source.flatten(1), weight)[:, :, None, None]
                    else:
                        x = x + functional.conv2d(source, weight, None, part.stride, part.padding, 1, part.groups)
                if node.threshold is not None:
                    x = self.clip(x)
                    activations.append(x.detach().flatten(1))
            values[node.name] = x
        return activations, x.detach().flatten(1)


def assert_equals_float(net: IntegerNet, images: torch.Tensor) -> None:
    activations, output = FloatModel(net)(images)
    trace = simulate(net, images)
    for got, wanted in zip(trace.answer.counts, activations, strict=True):
        assert torch.equal(got.double(), wanted * net.levels)
    assert torch.equal(trace.answer.sums.double(), output * net.levels)


@pytest.mark.parametrize(("levels", "seed"), [(1, 0), (2, 1), (4, 2), (8, 3), (16, 4)])
def test_equals_the_float_clipquan_model(levels: int, seed: int, make_net: Net, make_images: Images) -> None:
    net = power_of_two(make_net((9, 12, 7, 4), levels=levels, seed=seed))
    assert_equals_float(net, make_images(net, 50))


@pytest.mark.parametrize("seed", range(40))
def test_a_graph_equals_the_float_clipquan_model(seed: int, make_graph: Net, make_images: Images) -> None:
    net = power_of_two(make_graph(seed, levels=2 ** (seed % 5)))
    assert_equals_float(net, make_images(net, 20, seed))


@pytest.mark.parametrize("pixel", [0, 255])
@pytest.mark.parametrize("weight", [-128, 127])
@pytest.mark.parametrize("bias", [-(1 << 40), 0, 1 << 40])
@pytest.mark.parametrize("theta", [1, (1 << 45) - 1])
def test_extremes_of_the_format(pixel: int, weight: int, bias: int, theta: int) -> None:
    def layer(source: str, inputs: int, outputs: int, last: bool = False) -> Layer:
        return Layer.dense(
            name=f"layer_{inputs}_{outputs}",
            source=source,
            weight=torch.full((outputs, inputs), weight),
            bias=torch.full((outputs,), bias),
            threshold=None if last else torch.full((outputs,), theta),
            bits=8,
            scale=1.0 if last else None,
        )

    net = IntegerNet(
        "extreme", 16, 16, None, (3,), 255, (layer(IMAGE, 3, 2), layer("layer_3_2", 2, 2), layer("layer_2_2", 2, 1, last=True))
    )
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
    first = Layer.dense("first", IMAGE, torch.tensor([[1]]), torch.tensor([0]), torch.tensor([4]), 8)  # fires in wake step 4 of 4
    second = Layer.dense("second", "first", torch.tensor([[8]]), torch.tensor([0]), torch.tensor([2]), 8)
    last = Layer.dense("last", "second", torch.tensor([[3]]), torch.tensor([5]), None, 8, 1.0)
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
    zero = torch.zeros(4, dtype=torch.int64)
    hidden = Layer.dense("hidden", IMAGE, torch.ones(2, 1, dtype=torch.int64), zero[:2], zero[:2] + 1, 2)
    last = Layer.dense("last", "hidden", torch.tensor([[-1, 0], [1, 0], [0, 1], [1, 0]]), zero, None, 2, 1.0)
    net = IntegerNet("ties", 4, 4, None, (1,), 1, (hidden, last))
    images = torch.tensor([[1], [0]])
    assert quantised_ann(net, images).classes.tolist() == simulate(net, images).answer.classes.tolist() == [1, 0]


# --- maps -------------------------------------------------------------------------------------------------------------


def identity(source: str, channels: int, weight: int = 1) -> Synapses:
    return Synapses(source, torch.full((channels, 1, 1, 1), weight), 8, groups=channels)


def unit(name: str, *synapses: Synapses, theta: int = 1) -> Layer:
    channels = synapses[0].outputs
    return Layer(name, synapses, torch.zeros(channels, dtype=torch.int64), torch.full((channels,), theta))


def read(*synapses: Synapses) -> Layer:
    return Layer("read", synapses, torch.zeros(synapses[0].outputs, dtype=torch.int64), None, 1.0)


def test_of_equal_sums_of_a_map_the_first_in_wire_order_wins() -> None:
    """Channel 1 of the first pixel comes before channel 0 of the second."""
    net = IntegerNet("ties", 4, 4, None, (2, 1, 2), 1, (unit("first", identity(IMAGE, 2)), read(identity("first", 2))))
    images = torch.tensor([[[[0, 1]], [[1, 0]]], [[[0, 0]], [[0, 1]]], [[[0, 1]], [[0, 1]]]])
    answer = quantised_ann(net, images)
    assert answer.sums.tolist() == [[0, 4, 4, 0], [0, 0, 0, 4], [0, 4, 0, 4]]
    assert answer.classes.tolist() == simulate(net, images).answer.classes.tolist() == [1, 3, 2]


def test_max_pool_emits_what_the_largest_count_gains_and_loses() -> None:
    """A neuron that runs ahead and takes its spikes back is followed by the pool; one that only catches up adds nothing."""
    uneven = Layer.dense("uneven", IMAGE, torch.tensor([[1], [1]]), torch.tensor([0, 0]), torch.tensor([1, 4]), 8)
    falling = Layer(
        "falling", (Synapses("uneven", torch.tensor([[5, -100], [2, 0]])[:, :, None, None], 8),), torch.tensor([0, 0]), torch.tensor([5, 2])
    )
    pool = Pool("pool", "falling", "max", (2, 2), (2, 2), (1, 1))
    net = IntegerNet("falling", 4, 4, None, (1,), 1, (uneven, falling, pool, read(identity("pool", 2))))
    trace = simulate(net, torch.tensor([[1]]))
    assert trace.spikes[1][:7, 0].T.tolist() == [[1, 1, 1, -1, -1, -1, 0], [1, 1, 1, 1, 0, 0, 0]]
    assert trace.answer.sums.tolist() == [[0, 4]]
    totals = [spikes.long().cumsum(0) for spikes in trace.spikes]
    assert events_of(net, "pool", totals)[:7, 0, :, 0, 0].T.tolist() == [[1, 2, 3, 2, 1, 0, 0], [1, 2, 3, 4, 4, 4, 4]]


def test_max_pool_of_a_window_is_neither_sum_nor_spike() -> None:
    """Neurons with counts 2 and 3 of 4: their spikes lie in different steps, yet the pool counts 3."""
    first = Layer("first", (Synapses(IMAGE, torch.ones(1, 1, 1, 1, dtype=torch.int64), 2),), torch.tensor([0]), torch.tensor([4]))
    images = torch.tensor([[[2, 3], [0, 1]]])
    for kind, wanted in (("max", 3), ("average", 6)):
        net = IntegerNet("pool", 4, 4, None, (2, 2), 4, (first, Pool("pool", "first", kind, (2, 2), (2, 2)), read(identity("pool", 1))))
        trace = simulate(net, images)
        assert trace.answer.counts[0].tolist() == [[2, 3, 0, 1]]
        assert trace.answer.sums.tolist() == quantised_ann(net, images).sums.tolist() == [[wanted]]
        assert net.events("pool").hi == net.span("pool") == (1 if kind == "max" else 4)


def test_an_identity_of_a_threshold_adds_its_source(make_images: Images) -> None:
    """A shortcut of weight theta beside weights of zero gives the same counts again; beside itself, the double, clipped."""
    first = unit("first", Synapses(IMAGE, torch.tensor([[[[1, 2], [3, 4]]]]), 8, (1, 1), (1, 1)), theta=7)
    block = unit(
        "block", Synapses("first", torch.zeros(1, 1, 3, 3, dtype=torch.int64), 2, (1, 1), (1, 1)), identity("first", 1, 50), theta=50
    )
    twice = unit("twice", identity("block", 1, 3), identity("first", 1, 3), theta=3)
    net = IntegerNet("residual", 5, 5, None, (3, 4), 3, (first, block, twice, read(identity("twice", 1))))
    images = make_images(net, 9)
    answer = quantised_ann(net, images)
    assert torch.equal(answer.counts[1], answer.counts[0])
    assert torch.equal(answer.counts[2], (2 * answer.counts[0]).clamp(max=5))
    assert_equals_ann(net, images, simulate(net, images))


def test_synapses_from_two_maps_are_one_convolution_of_both(make_images: Images) -> None:
    """A layer over two maps of 2 and 3 channels is one over a map of 5: a concatenation."""
    draw = torch.Generator().manual_seed(5)
    one, two = torch.randint(-8, 8, (2, 1, 3, 3), generator=draw), torch.randint(-8, 8, (3, 1, 3, 3), generator=draw)
    over = torch.randint(-8, 8, (4, 5, 2, 3), generator=draw)
    whole = unit("whole", Synapses(IMAGE, torch.cat([one, two]), 4, (1, 1), (1, 1)), theta=60)
    joint = unit("joint", Synapses("whole", over, 4, (2, 1), (1, 2)), theta=8)
    halves = [
        unit("a", Synapses("whole", torch.eye(5, dtype=torch.int64)[:2, :, None, None], 2)),
        unit("b", Synapses("whole", torch.eye(5, dtype=torch.int64)[2:, :, None, None], 2)),
    ]
    parts = unit("joint", Synapses("a", over[:, :2], 4, (2, 1), (1, 2)), Synapses("b", over[:, 2:], 4, (2, 1), (1, 2)), theta=8)
    single = IntegerNet("single", 8, 8, None, (5, 4), 3, (whole, joint, read(identity("joint", 4))))
    split = IntegerNet("split", 8, 8, None, (5, 4), 3, (whole, *halves, parts, read(identity("joint", 4))))
    images = make_images(single, 12)
    got, wanted = quantised_ann(split, images), quantised_ann(single, images)
    assert torch.equal(torch.cat(got.counts[1:3], 1), wanted.counts[0])
    assert torch.equal(got.counts[3], wanted.counts[1])
    assert torch.equal(got.sums, wanted.sums)
    assert wanted.counts[1].unique().tolist() == list(range(9))


@pytest.mark.parametrize("seed", range(10))
def test_events_of_every_node(seed: int, make_graph: Net, make_images: Images) -> None:
    """In all: the ANN's values; step by step: -1, 0, 1 of a neuron or maximum, and sums of those of an average."""
    net = make_graph(seed)
    images = make_images(net, 5, seed)
    trace, answer = simulate(net, images), quantised_ann(net, images)
    totals = [spikes.long().cumsum(0) for spikes in trace.spikes]
    for node in net.nodes[:-1]:
        final, steps = events_of(net, node.name, answer.counts), events_of(net, node.name, totals)
        assert final.shape == (5, *net.shapes[node.name])
        assert torch.equal(steps[-1], final)
        assert int(final.max()) <= net.levels * net.span(node.name)
        events = torch.cat([steps[:1], steps.diff(dim=0)])
        assert int(events.min()) in net.events(node.name)
        assert int(events.max()) in net.events(node.name)
        if isinstance(node, Layer):
            assert torch.equal(events.flatten(2), trace.spikes[net.spiking.index(node)].long())


def test_floors_of_floats_are_those_of_integers() -> None:
    """As large as a potential and a threshold can be, and where the quotient is nearest to a whole number."""
    chance = random.Random(1)
    for _ in range(2000):
        theta = chance.randrange(1, 1 << chance.randrange(1, 52))
        whole = chance.randrange(-(1 << 52) // theta, (1 << 52) // theta + 1)
        v = torch.tensor([whole * theta + rest for rest in (-1, 0, 1, theta - 1, chance.randrange(theta))])
        one = torch.tensor([theta])
        assert torch.equal(_floor(v.double(), one).long(), _floor(v, one))
