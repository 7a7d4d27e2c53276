"""SpikingNet: the reference where it should be, its options against loops of their own, its statistics against brute force."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace
from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from casc_hw import (
    IMAGE,
    CascError,
    IntegerNet,
    Layer,
    SpikingNet,
    Statistics,
    Step,
    Synapses,
    Trace,
    events_of,
    quantised_ann,
    simulate,
)
from casc_hw.fast import exact_dtype, exact_products

Net = Callable[..., IntegerNet]
Images = Callable[..., Tensor]


def equal(one: Trace, other: Trace) -> None:
    def flat(value: Any) -> list[Tensor]:
        if isinstance(value, Tensor):
            return [value]
        return [part for of in (value if isinstance(value, tuple) else vars(value).values()) for part in flat(of)]

    for field in fields(Trace):
        got, wanted = flat(getattr(one, field.name)), flat(getattr(other, field.name))
        assert len(got) == len(wanted)
        assert all(map(torch.equal, got, wanted)), field.name


def whole(net: IntegerNet, images: Tensor) -> Tensor:
    return images.reshape(-1, *net.input_shape)


# --- the reference ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_it_is_the_reference_step_by_step(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed)
    images = whole(net, make_images(net, 5))
    gamma = 1 + seed % 3
    wanted = simulate(net, images, gamma=gamma, potentials=True)
    equal(SpikingNet(net, gamma=gamma).run(images, record=True, potentials=True), wanted)
    shape = net.shapes[net.readout.name]
    logits = (wanted.answer.sums.double() / (net.levels * net.readout.scale)).reshape(5, *(shape[:1] if shape[1:] == (1, 1) else shape))
    got = SpikingNet(net, gamma=gamma)(images)
    assert got.dtype == torch.float64
    assert torch.equal(got, logits)
    assert wanted.spikes
    assert SpikingNet(net).run(images).spikes == ()


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"levels": 3}, {"levels": 3, "margin": 3}),
        ({"levels": 16}, {"levels": 16, "margin": 16}),
        ({"levels": 6, "margin": 4}, {"levels": 6, "margin": 4}),
        ({"margin": 1}, {"margin": 1}),
        ({"sleep": 0}, {"sleep": 0}),
        ({"sleep": 2, "margin": 3}, {"sleep": 2, "margin": 3}),
        ({"sleep": None}, {"sleep": None}),
        ({}, {}),
    ],
)
def test_schedules(options: dict[str, Any], schedule: dict[str, Any], make_net: Net, make_images: Images) -> None:
    net = make_net((13, 29, 23, 19, 5), levels=8, margin=5, sleep=1, spread=0.3, seed=1)
    images = make_images(net, 9)
    wanted = simulate(replace(net, **schedule), images)
    equal(SpikingNet(net, **options).run(images, record=True), wanted)
    assert schedule == {} or not torch.equal(wanted.wake, simulate(net, images).wake)


@pytest.mark.parametrize("levels", [2, 8])
def test_until_silence_the_answer_is_the_integer_ann_of_as_many_levels(levels: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(3, sleep=1)
    images = whole(net, make_images(net, 6))
    got, wanted = (
        SpikingNet(net, levels=levels, sleep=None).run(images).answer,
        quantised_ann(replace(net, levels=levels, margin=1), images),
    )
    assert torch.equal(got.sums, wanted.sums)
    assert all(map(torch.equal, got.counts, wanted.counts))


@pytest.mark.parametrize("seed", range(20))
def test_without_records_it_is_the_reference_too(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed, **[{}, {"sleep": 0}, {"sleep": 2}, {"margin": 1, "sleep": 1}][seed % 4])
    images = whole(net, make_images(net, 11))
    for gamma in (1, 3):
        equal(SpikingNet(net, gamma=gamma).run(images), simulate(net, images, gamma=gamma, record=False))


def test_floats_hold_every_sum(make_net: Net, make_images: Images) -> None:
    """Just below 2**24 and from there on: float32 and float64, both right where the next smaller type would not be."""
    net = make_net((5, 7, 3), levels=4)
    first = net.layers[0]
    span = int((255 * first.synapses[0].weight.abs().sum(1)).max())
    for reach, dtype in (((1 << 24) - 1, torch.float32), (1 << 24, torch.float64)):
        theta = torch.full((7,), reach - 4 * (span + 1000))
        wide = replace(net, nodes=(replace(first, bias=torch.full((7,), 1000), threshold=theta), *net.nodes[1:]))
        worst = 4 * (255 * first.synapses[0].weight.abs().sum(1) + 1000) + theta
        assert int(worst.max()) == reach
        assert exact_dtype(wide) == dtype
        images = make_images(net, 40)
        equal(SpikingNet(wide).run(images, record=True, potentials=True), simulate(wide, images, potentials=True))
    odd = Layer.dense("a", IMAGE, torch.tensor([[127, 1]]), torch.tensor([(1 << 26) + 1]), torch.tensor([1 << 26]), 8)
    out = Layer.dense("out", "a", torch.ones(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), None, 8, 1.0)
    big = IntegerNet("big", 2, 2, None, (2,), 255, (odd, out))
    two = torch.tensor([[0, 0], [1, 1]])
    equal(SpikingNet(big).run(two, potentials=True, record=True), simulate(big, two, potentials=True))
    snn = SpikingNet(net).half()
    with pytest.raises(CascError, match=r"^SpikingNet: moved to torch.float16, .*; "):
        snn(images.new_zeros(1, 5))
    with pytest.raises(CascError, match=r"^SpikingNet: moved to torch.float32, .*; "):
        SpikingNet(big).float()(two)
    assert torch.equal(SpikingNet(net).double()(make_images(net, 3)), SpikingNet(net)(make_images(net, 3)))
    try:
        torch.set_float32_matmul_precision("medium")
        assert not exact_products(torch.device("cpu"))
        equal(SpikingNet(net).run(images), simulate(net, images, record=False))
    finally:
        torch.set_float32_matmul_precision("highest")
    assert exact_products(torch.device("cpu"))
    assert not exact_products(torch.device("cuda"))


@pytest.mark.parametrize("seed", range(8))
def test_the_ann_in_one_pass(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed)
    images = whole(net, make_images(net, 6))
    got, wanted = SpikingNet(net, gamma=2, negative=False).ann(images), quantised_ann(net, images)
    assert torch.equal(got.sums, wanted.sums)
    assert torch.equal(got.classes, wanted.classes)
    assert all(map(torch.equal, got.counts, wanted.counts))


@pytest.mark.parametrize("seed", range(4))
def test_it_computes_where_its_buffers_are(seed: int, make_graph: Net, make_images: Images) -> None:
    """Under a default device that holds no values, whatever is made elsewhere by itself cannot be computed with."""
    net = make_graph(seed)
    images = whole(net, make_images(net, 6))
    snn, steps = SpikingNet(net), list[Step]()
    wanted = simulate(net, images, potentials=True)
    with snn.statistics() as seen, snn.register_step_hook(steps.append), torch.device("meta"):
        equal(snn.run(images, record=True, potentials=True), wanted)
        assert snn(images).device.type == "cpu"
        assert seen.classes.device.type == "cpu"
        assert {part.device.type for step in steps for part in (*step.counts.values(), *step.events.values(), step.sums)} == {"cpu"}
    assert snn.to("meta").device.type == "meta"


# --- neurons of other kinds, against loops that share nothing with it ---------------------------------------------------


def loop(net: IntegerNet, images: Tensor, sleep: bool, bounded: bool) -> tuple[list[Tensor], list[Tensor]]:
    """Of a fully connected network: spikes of each layer, (steps, batch, neurons), and counts; no spike is taken back."""
    v = [torch.zeros(len(images), layer.outputs, dtype=torch.int64) for layer in net.spiking]
    n = [torch.zeros_like(of) for of in v]
    spikes: list[list[Tensor]] = [[] for _ in v]
    step = 0
    while step < net.levels or sleep:
        awake = step < net.levels
        x, silent = images if awake else torch.zeros_like(images), True
        for index, layer in enumerate(net.spiking):
            v[index] = v[index] + x @ layer.synapses[0].weight.T + (layer.bias if awake else 0)
            fires = v[index] >= layer.threshold
            if bounded:
                fires &= n[index] < min(step + 1, net.levels)
            x = fires.long()
            v[index], n[index] = v[index] - x * layer.threshold, n[index] + x
            spikes[index].append(x)
            silent = silent and not x.any()
        step += 1
        if not awake and silent:
            break
    return [torch.stack(of) for of in spikes], n


@pytest.mark.parametrize("seed", range(6))
def test_plain_neurons_integrate_and_fire(seed: int, make_net: Net, make_images: Images) -> None:
    net = make_net((13, 29, 23, 19, 5), levels=1 + 3 * seed, margin=1, spread=0.3, seed=seed)
    images = make_images(net, 7)
    got = SpikingNet.plain(net).run(images, record=True)
    spikes, counts = loop(net, images, sleep=False, bounded=False)
    assert got.wake.all()
    assert got.sleep_steps.sum() == 0
    assert all(torch.equal(one.long(), other) for one, other in zip(got.spikes, spikes, strict=True))
    assert all(map(torch.equal, got.answer.counts, counts))
    assert len(SpikingNet.plain(net, levels=5).run(images).wake) == 5


@pytest.mark.parametrize("seed", range(6))
def test_without_negative_spikes(seed: int, make_net: Net, make_images: Images) -> None:
    net = make_net((13, 29, 23, 19, 5), levels=8, spread=0.3, seed=seed)
    images = make_images(net, 7)
    got = SpikingNet(net, negative=False).run(images, record=True)
    spikes, counts = loop(net, images, sleep=True, bounded=True)
    assert all(torch.equal(one.long(), other) for one, other in zip(got.spikes, spikes, strict=True))
    assert all(map(torch.equal, got.answer.counts, counts))
    assert not got.wake.all()
    assert any((of < 0).any() for of in SpikingNet(net).run(images, record=True).spikes)  # the option is one that matters here


# --- hooks and statistics -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(10))
def test_hooks_see_every_step(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed)
    images = whole(net, make_images(net, 4))
    snn, seen = SpikingNet(net), []
    handle = snn.register_step_hook(seen.append)
    trace = snn.run(images, record=True, potentials=True)
    handle.remove()
    snn.run(images)
    assert len(seen) == len(trace.wake)
    so_far = [spikes.cumsum(0, dtype=torch.int64) for spikes in trace.spikes]
    emitted = {node.name: events_of(net, node.name, so_far) for node in net.nodes if node.name != net.readout.name}
    for index, step in enumerate(seen):
        assert isinstance(step, Step)
        assert step.wake == bool(trace.wake[index]) == (step.asleep == 0)
        assert step.t == int(trace.wake[: index + 1].sum())
        assert torch.equal(step.active, trace.active[index])
        assert (IMAGE in step.events) == step.wake
        if step.wake:
            assert torch.equal(step.events[IMAGE].flatten(), images.flatten())
        for name, values in emitted.items():
            assert torch.equal(step.events[name], values[index] - (values[index - 1] if index else 0)), name
        for layer, counts, potentials in zip(net.spiking, so_far, trace.potentials, strict=True):
            assert torch.equal(step.counts[layer.name].flatten(1), counts[index])
            assert torch.equal(step.potentials[layer.name].flatten(1), potentials[index])


def reached(net: IntegerNet, synapses: Synapses) -> list[int]:
    """By place of the source, flattened: the neurons that an event there reaches, one event at a time."""
    size = net.shapes[synapses.source]
    units = torch.eye(prod(size), dtype=torch.float64)
    if synapses.dense:
        out = units @ torch.ones_like(synapses.weight).double().T
    else:
        ones = torch.ones_like(synapses.weight).double()
        out = functional.conv2d(units.reshape(-1, *size), ones, None, synapses.stride, synapses.padding, 1, synapses.groups)
    return (out.flatten(1) != 0).sum(1).tolist()


@pytest.mark.parametrize("seed", range(12))
def test_statistics_by_brute_force(seed: int, make_graph: Net, make_images: Images) -> None:
    net = make_graph(seed)
    images = whole(net, make_images(net, 4))
    snn, steps = SpikingNet(net, gamma=1 + seed % 2), []
    with snn.statistics() as seen, snn.register_step_hook(steps.append):
        trace = snn.run(images, record=True, potentials=True)
    snn.run(images)  # no longer counted
    assert seen.images == 4
    ways = {layer.name: [reached(net, synapses) for synapses in layer.synapses] for layer in net.layers}
    assert seen.macs == sum(sum(map(sum, of)) for of in ways.values())
    counts = [spikes.cumsum(0, dtype=torch.int64) for spikes in trace.spikes]
    rows = iter(seen.activity)
    operations = 0
    for index, step in enumerate(steps):
        for place, layer in enumerate(net.layers):
            row, on = next(rows), trace.active[index]
            assert (row.layer, row.t, row.asleep, row.images) == (layer.name, step.t, step.asleep, int(on.sum()))
            sources = zip(layer.synapses, ways[layer.name], strict=True)
            if place:
                wanted = sum(int((step.events[of.source].abs().flatten(1) * torch.tensor(way)).sum()) for of, way in sources)
                operations += wanted
            else:
                wanted = sum(int(((images != 0).flatten(1) * torch.tensor(way)).sum()) for _, way in sources) if index == 0 else 0
                assert index or wanted / 4 == seen.products
            assert row.operations == wanted
            if layer.threshold is None:
                assert (row.spikes, row.negative, row.rate, row.unevenness) == (0, 0, 0.0, 0.0)
                continue
            spikes = trace.spikes[place][index]
            assert (row.spikes, row.negative) == (int(spikes.abs().sum()), int((-spikes).clamp(min=0).sum()))
            assert row.rate == row.spikes / (row.images * spikes.shape[1])
            theta = layer.threshold.repeat_interleave(spikes.shape[1] // layer.outputs)
            n = counts[place][index]
            received = trace.potentials[place][index] + n * theta
            uneven = (torch.div(received, theta, rounding_mode="floor").clamp(0, step.t) != n)[on]
            assert row.unevenness == pytest.approx(float(uneven.double().mean()))
            if place == 0:
                assert row.unevenness == 0 or snn.gamma == 1  # a constant current comes evenly, if a spike a step can follow it
    assert next(rows, None) is None
    assert all(row.unevenness == 0 for row in seen.activity[-len(net.layers) :])  # at rest
    assert seen.accumulates == operations / 4
    assert seen.spikes == sum(int(spikes.abs().sum(dtype=torch.int64)) for spikes in trace.spikes) / 4
    assert seen.energy_pj == pytest.approx(4.6 * seen.products + 0.9 * seen.accumulates)
    assert seen.ann_energy_pj == pytest.approx(4.6 * seen.macs)


def test_an_integrator_knows_unevenness() -> None:
    """Weights +1 and -1: the neuron spikes at the first input, before the second tells that it should not have."""

    def dense(name: str, source: str, weight: list[list[int]], bias: int, threshold: int | None) -> Layer:
        rows = torch.tensor(weight)
        count = len(weight)
        thresholds = None if threshold is None else torch.full((count,), threshold)
        return Layer.dense(name, source, rows, torch.full((count,), bias), thresholds, 4, 1.0 if threshold is None else None)

    # input 0 fires in steps 1 to 4, input 1 in steps 2 and 4 with twice the weight
    nodes = (dense("a", IMAGE, [[2, 0], [0, 1]], 0, 2), dense("b", "a", [[1, -2]], 0, 1), dense("out", "b", [[1]], 0, None))
    net = IntegerNet("even", 4, 4, None, (2,), 1, nodes)
    with SpikingNet(net).statistics() as seen:
        SpikingNet(net)(torch.ones(1, 2, dtype=torch.int64))
    assert seen.images == 0  # of another module
    snn = SpikingNet(net)
    with snn.statistics() as seen:
        assert snn(torch.ones(1, 2, dtype=torch.int64)).tolist() == [[0.0]]
    b = [(row.t, row.asleep, row.spikes, row.negative) for row in seen.activity if row.layer == "b"]
    assert b == [(1, 0, 1, 0), (2, 0, 1, 1), (3, 0, 1, 0), (4, 0, 1, 1), (4, 1, 0, 0)]
    assert (seen.spikes, seen.negative) == (4 + 2 + 4, 2)
    plain = SpikingNet.plain(net)
    with plain.statistics() as seen:
        plain(torch.ones(1, 2, dtype=torch.int64))
    b = [(row.spikes, row.unevenness) for row in seen.activity if row.layer == "b"]
    assert b == [(1, 0.0), (0, 1.0), (0, 0.0), (0, 1.0)]  # S is 1, 0, 1, 0, the count stays 1


@pytest.mark.parametrize("margin", [1, 3, 8])
def test_statistics_of_batches_add_up(margin: int, make_net: Net, make_images: Images) -> None:
    net = make_net((13, 29, 23, 19, 5), levels=8, margin=margin, spread=0.3, seed=1)
    images = make_images(net, 12)
    snn = SpikingNet(net)
    with snn.statistics() as together:
        snn(images)
    with snn.statistics() as apart:
        for part in images.split(5):
            snn(part)
    assert apart.activity == together.activity
    assert apart.images == together.images == 12
    assert Statistics(net).spikes == Statistics(net).energy_pj == 0  # of no images


# --- a module, and what it refuses ----------------------------------------------------------------------------------------


def test_it_is_a_module(make_net: Net, make_images: Images) -> None:
    net = make_net((5, 7, 3))
    snn = nn.Sequential(SpikingNet(net, sleep=4)).eval()
    assert snn(make_images(net, 3)).shape == (3, 3)
    assert list(snn.parameters()) == []
    assert "levels=8, margin=8, sleep=4, negative=True, gamma=1" in repr(snn)


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"levels": 0}, "levels"),
        ({"levels": 256}, "levels"),
        ({"levels": 4, "margin": 5}, "margin"),
        ({"margin": 0}, "margin"),
        ({"sleep": -1}, "sleep"),
        ({"gamma": 0}, "gamma"),
        ({"gamma": True}, "gamma"),
        ({"gamma": 1.5}, "gamma"),
    ],
)
def test_options_out_of_range(options: dict[str, Any], word: str, make_net: Net) -> None:
    with pytest.raises(CascError, match=rf"^{word}: .*; ") as refused:
        SpikingNet(make_net((5, 7, 3)), **options)
    assert "\n" not in str(refused.value)


def test_only_an_integer_net_spikes() -> None:
    with pytest.raises(CascError, match=r"^net: is a Linear, .*; "):
        SpikingNet(nn.Linear(2, 2))  # type: ignore[arg-type]


@pytest.mark.parametrize("images", [torch.zeros(2, 4), torch.full((2, 5), 256), torch.full((2, 5), 0.5)])
def test_images_that_do_not_fit(images: Tensor, make_net: Net) -> None:
    with pytest.raises(CascError, match=r"^image: .*; "):
        SpikingNet(make_net((5, 7, 3)))(images)
