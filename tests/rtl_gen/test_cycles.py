"""The cycle model against the core itself, on chains and on graphs, in both codes; a bound that nothing passes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

import numpy as np
import pytest
import torch

from casc_hw import IntegerNet, Layer
from casc_hw.network import IMAGE, Pool, Synapses
from casc_hw.reference import quantised_ann, simulate
from rtl_gen.cycles import Activity, assume, measure, predict, worst_cycles
from rtl_gen.lower import Code, Lanes, core_spec

# sizes, net options, lanes by layer (synapses, neurons), beat
CHAINS = {
    "deep": ((40, 24, 20, 16, 5), {"levels": 6, "seed": 1}, ((8, 4), (8, 2), (4, 2), (5, 5)), 4),
    "margin": ((40, 24, 20, 5), {"levels": 6, "margin": 3, "seed": 2}, ((4, 1), (4, 2), (2, 2)), 2),
    "wide": ((60, 32, 5), {"levels": 8, "seed": 3}, ((32, 8), (5, 1)), 8),
}
SERIAL = ("dsp", True)
# nodes (see _graph), lanes by layer, beat
GRAPHS = {
    "convolutions": (("conv 4 3", "conv 3 3 2"), ((4, 2), (1, 1), (5, 5)), 2),
    "average pools": (("conv 4 3", "average 2", "conv 2 3", "average 3"), ((4, 2), (1, 1), (5, 5)), 2),
    "max pools": (("conv 4 5", "max 2", "max 2 1", "conv 2 3"), ((2, 2), (2, 2), (5, 5)), 4),
    "residual": (("conv 4 3", "max 2", "conv 4 3", "conv 4 3 + 2"), ((4, 2), (4, 1), (2, 1), (5, 5)), 2),
    "serial": (("conv 4 3", "conv 3 3 2"), ((2, 2, *SERIAL), (1, 1, *SERIAL), (5, 5)), 2),
    "serial, max pool": (("conv 4 5", "max 2", "conv 2 3"), ((1, 1, *SERIAL), (2, 2, *SERIAL), (5, 5)), 2),
    "serial, then not": (("conv 4 3", "average 2", "conv 2 3"), ((1, 1, *SERIAL), (2, 1), (5, 5)), 2),
}
TOLERANCE = 0.05


def _graph(nodes: tuple[str, ...], levels: int = 4, margin: int | None = None, side: int = 10) -> IntegerNet:
    """Square images, ``nodes``, a read-out of 5: "conv CHANNELS KERNEL [STRIDE] [+ NODES BACK]" or "KIND KERNEL [STRIDE]"."""
    draw = torch.Generator().manual_seed(len(nodes))
    made: list[Layer | Pool] = []
    channels, size, unit = [1], [side], [255.0]  # of the image and of each node

    def weight(*shape: int) -> Any:
        return torch.randint(-8, 8, shape, generator=draw)

    for index, node in enumerate(nodes):
        source = made[-1].name if made else IMAGE
        kind, *numbers = node.split(" + ")[0].split()
        if kind == "conv":
            count, kernel, stride = (*map(int, numbers), 1)[:3]
            pad = kernel // 2
            parts = [Synapses(source, weight(count, channels[-1], kernel, kernel), 4, (stride, stride), (pad, pad))]
            typical = int(1.5 * unit[-1] * kernel * channels[-1] ** 0.5)
            if " + " in node:
                back = made[-int(node.split(" + ")[1])].name
                parts.append(Synapses(back, torch.full((count, 1, 1, 1), typical), typical.bit_length() + 1, groups=count))
            theta = torch.randint(1, 2 * typical, (count,), generator=draw)
            made.append(Layer(f"node{index}", tuple(parts), torch.zeros_like(theta), theta))
            unit.append(0.5)
        else:
            kernel, stride = (*map(int, numbers), *map(int, numbers))[:2]
            count, pad = channels[-1], 0
            made.append(Pool(f"node{index}", source, kind, (kernel, kernel), (stride, stride)))  # type: ignore[arg-type]
            unit.append(unit[-1] * (kernel if kind == "average" else 1))
        channels.append(count)
        size.append((size[-1] + 2 * pad - kernel) // stride + 1)
    made.append(Layer.dense("readout", made[-1].name, weight(5, channels[-1] * size[-1] ** 2), torch.zeros(5).long(), None, 4, 1.0))
    return IntegerNet("graph", levels, levels if margin is None else margin, None, (1, side, side), 255, tuple(made))


def _sparse(count: int, side: int = 10) -> Any:
    """Images (count, 1, side, side): blots on black, none like the other."""
    draw = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, 1, side, side), generator=draw)
    for index, image in enumerate(images):
        image[:, : index % 4] = image[:, :, side - index % 3 :] = 0
    return images * (torch.rand(images.shape, generator=draw) < 0.7)


@pytest.mark.parametrize("code", ["spike", "count"])
@pytest.mark.parametrize("case", CHAINS)
def test_a_chain(case: str, code: Code, make_net: Callable[..., IntegerNet], make_images: Any, run_core: Callable[..., Any]) -> None:
    sizes, options, lanes, beat = CHAINS[case]
    net = make_net(sizes, **options)
    _holds(net, code, lanes, beat, make_images(net, 8, options["seed"])[2:], run_core)


@pytest.mark.parametrize("code", ["spike", "count"])
@pytest.mark.parametrize("case", GRAPHS)
def test_a_graph(case: str, code: Code, run_core: Callable[..., Any]) -> None:
    nodes, lanes, beat = GRAPHS[case]
    net = _graph(nodes, margin=2 if case == "average pools" else None, side=8)
    _holds(net, code, lanes, beat, _sparse(4, 8), run_core)


def _holds(net: IntegerNet, code: Code, lanes: Any, beat: int, images: Any, run_core: Callable[..., Any]) -> None:
    """Interval and latency, and the bound."""
    spec = core_spec(net, [Lanes(*lane) for lane in lanes], beat, code)
    (outcome,) = run_core(net, spec, images)
    assert outcome.messages == []
    activities = measure(net, images, code)
    assert predict(spec, activities).interval == pytest.approx(median(outcome.cycles), rel=TOLERANCE, abs=2)
    assert predict(spec, activities[:1]).latency == pytest.approx(outcome.latency[0], rel=TOLERANCE)
    assert outcome.latency[0] < worst_cycles(spec)


@pytest.mark.parametrize("code", ["spike", "count"])
def test_the_bound_holds(code: Code, make_net: Callable[..., IntegerNet], make_images: Any, run_core: Callable[..., Any]) -> None:
    """Each image alone, from the brightest to the dark one, stays below it."""
    net = make_net((13, 11, 7, 3), levels=4, margin=2, seed=5)
    spec = core_spec(net, [Lanes(1, 1), Lanes(2, 1), Lanes(1, 1)], 1, code)
    for image in make_images(net, 3):
        (outcome,) = run_core(net, spec, image[None])
        assert outcome.messages == []
        assert 0 < outcome.latency[0] < worst_cycles(spec)


def test_activity_in_spike_code_is_what_the_reference_says() -> None:
    net = _graph(("conv 3 3", "max 2", "conv 2 3", "average 5"), margin=2)
    images = _sparse(3)
    trace = simulate(net, images)
    for index, activity in enumerate(measure(net, images, "spike")):
        steps = trace.steps(index)
        assert activity.pixels.tolist() == images[index].flatten().ne(0).tolist()
        assert activity.wakes.tolist() == trace.wake[steps].tolist()
        spikes = trace.spikes[0][steps, index].reshape(len(steps), 3, 100)
        assert activity.events["node0"].tolist() == spikes.ne(0).sum(1).tolist()
        counts = spikes.cumsum(0).reshape(-1, 3, 5, 2, 5, 2).amax((3, 5)).flatten(2)
        changes = counts.diff(dim=0, prepend=torch.zeros_like(counts[:1]))
        assert activity.events["node1"].tolist() == changes.ne(0).sum(1).tolist()
        sums = trace.spikes[1][steps, index].reshape(len(steps), 2, 25).sum(2)
        assert activity.events["node3"].tolist() == sums.ne(0).tolist()  # a single pixel: by channel


def test_activity_in_count_code_is_what_the_reference_says() -> None:
    net = _graph(("conv 3 3", "max 2", "conv 2 3"))
    images = _sparse(3)
    counts = quantised_ann(net, images).counts
    for index, activity in enumerate(measure(net, images, "count")):
        assert activity.wakes.tolist() == [True]
        maps = counts[0][index].reshape(3, 5, 2, 5, 2)
        assert activity.events["node0"].tolist() == [maps.reshape(3, 100).ne(0).sum(0).tolist()]
        assert activity.events["node1"].tolist() == [maps.amax((2, 4)).reshape(3, 25).ne(0).sum(0).tolist()]


def test_a_large_batch_is_measured_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    net, images = _graph(("conv 3 3", "max 2")), _sparse(4)
    whole = measure(net, images, "spike")
    monkeypatch.setattr("rtl_gen.cycles.BATCH", 1)
    for one, two in zip(whole, measure(net, images, "spike"), strict=True):
        assert one.wakes.tolist() == two.wakes.tolist()
        assert [(name, events.tolist()) for name, events in one.events.items()] == [
            (name, found.tolist()) for name, found in two.events.items()
        ]


def test_beats_of_the_pixel_reader() -> None:
    for present, expected in ((1, {1: 9, 2: 9, 4: 9, 8: 9}), (0, {1: 9, 2: 5, 4: 3, 8: 2})):
        activity = Activity(np.full(9, present, dtype=bool), {}, np.ones(1, dtype=bool))
        assert {width: activity.beats(width).sum() for width in expected} == expected


@pytest.mark.parametrize("code", ["spike", "count"])
def test_assumed_activity_is_a_quarter(code: Code) -> None:
    net = replace(_graph(("conv 8 3", "average 2", "conv 4 3")), margin=2)
    activity = assume(net, code)[0]
    assert activity.pixels.sum() == 25
    assert activity.wakes.tolist() == ([True, True, False, False] * 2 if code == "spike" else [True])
    for name, size in (("node0", 800), ("node1", 200), ("node2", 100)):
        assert activity.events[name].sum(1).tolist() == [size // 4 * wake for wake in activity.wakes]


@pytest.mark.parametrize("code", ["spike", "count"])
def test_the_busiest_part_bounds_the_interval(code: Code) -> None:
    net = _graph(("conv 8 3", "max 2", "conv 4 3"))
    activities = measure(net, _sparse(6), code)
    slow = predict(core_spec(net, [Lanes(8, 4), Lanes(1, 1), Lanes(5, 5)], 2, code), activities)
    assert max(slow.busy, key=lambda part: slow.busy[part]) == "node2 synapses"
    assert slow.busy["node2 synapses"] <= slow.interval * 1.02
    fast = predict(core_spec(net, [Lanes(8, 4), Lanes(4, 4), Lanes(5, 5)], 2, code), activities)
    assert fast.interval < slow.interval
    assert fast.busy["node0 encoder"] == slow.busy["node0 encoder"]


@pytest.mark.parametrize("code", ["spike", "count"])
@pytest.mark.parametrize("field", ["levels", "size", "lanes"])
def test_more_work_takes_longer(field: str, code: Code, make_net: Callable[..., IntegerNet]) -> None:
    few = {"levels": 4, "size": 16, "lanes": 4}
    more = few | ({"lanes": 1} if field == "lanes" else {field: 2 * few[field]})
    found = []
    for chosen in (few, more):
        net = make_net((20, chosen["size"], 4), levels=chosen["levels"])
        spec = core_spec(net, [Lanes(chosen["lanes"], 1), Lanes(4, 4)], 2, code)
        found.append((predict(spec, assume(net, code)).latency, worst_cycles(spec)))
    if field == "levels" and code == "count":
        assert found[0][1] == found[1][1]
        return
    assert found[0][0] < found[1][0]
    assert found[0][1] < found[1][1] or field == "lanes"
