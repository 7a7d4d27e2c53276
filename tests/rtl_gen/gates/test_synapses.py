"""The currents of random events, for every kind of geometry, against sums in plain Python: of both kinds of synapses."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import fields, replace
from itertools import product
from typing import Any

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.lib import wiring

from casc_hw.fixed import Interval
from rtl_gen.gates.replay import Replay, ReplaySpec
from rtl_gen.gates.serial import SerialSpec, SerialSynapses
from rtl_gen.gates.streams import CurrentFormat, EventFormat
from rtl_gen.gates.synapses import Synapses, SynapsesSpec
from rtl_gen.gates.walk import Geometry, Walk

SPIKES, COUNTS, PIXELS = Interval(-1, 1), Interval(0, 5), Interval(0, 255)

# geometry, values, lanes, lanes of a transfer, weight bits
CASES = {
    "flat, one of everything": (Geometry((1, 1, 1), 1, flat=True), PIXELS, 1, 1, 2),
    "flat, passes, a short last chunk": (Geometry((3, 2, 3), 7, flat=True), SPIKES, 4, 2, 3),
    "flat, many sources": (Geometry((13, 1, 1), 5, flat=True), PIXELS, 5, 5, 8),
    "3 x 3, padded, all lanes": (Geometry((2, 5, 4), 4, (3, 3), padding=(1, 1)), SPIKES, 4, 4, 4),
    "3 x 3, padded, two passes": (Geometry((3, 4, 5), 4, (3, 3), padding=(1, 1)), COUNTS, 2, 1, 4),
    "3 x 3, padded, three passes": (Geometry((2, 3, 3), 5, (3, 3), padding=(1, 1)), SPIKES, 2, 2, 2),
    "3 x 3, padded, five passes": (Geometry((2, 3, 4), 5, (3, 3), padding=(1, 1)), COUNTS, 1, 1, 3),
    "3 x 3, one neuron": (Geometry((2, 3, 3), 3, (3, 3)), SPIKES, 4, 2, 4),
    "3 x 3 on one pixel": (Geometry((3, 1, 1), 3, (3, 3), padding=(1, 1)), SPIKES, 2, 2, 4),
    "3 x 3, stride 2": (Geometry((2, 6, 7), 3, (3, 3), (2, 2), (1, 1)), COUNTS, 2, 2, 6),
    "3 x 3, stride 2, passes": (Geometry((1, 7, 6), 6, (3, 3), (2, 2), (1, 1)), SPIKES, 1, 1, 4),
    "2 x 2, stride 2": (Geometry((2, 5, 4), 2, (2, 2), (2, 2)), COUNTS, 2, 1, 4),
    "1 x 1": (Geometry((4, 3, 2), 6, (1, 1)), COUNTS, 2, 2, 4),
    "1 x 1, stride 2": (Geometry((3, 5, 4), 4, (1, 1), (2, 2)), SPIKES, 2, 1, 4),
    "1 x 1, stride 3, sources that reach nothing": (Geometry((2, 8, 9), 2, (1, 1), (3, 3)), COUNTS, 1, 1, 4),
    "5 x 3, uneven strides and padding": (Geometry((2, 6, 5), 3, (5, 3), (1, 2), (3, 2)), SPIKES, 4, 4, 4),
    "3 x 1": (Geometry((2, 4, 3), 2, (3, 1)), COUNTS, 1, 1, 4),
    "1 x 3, stride 1 x 2": (Geometry((2, 2, 6), 2, (1, 3), (1, 2), (0, 2)), COUNTS, 2, 2, 4),
    "5 x 5, padded": (Geometry((1, 4, 6), 2, (5, 5), padding=(2, 2)), PIXELS, 2, 2, 8),
    "depthwise, all lanes": (Geometry((4, 3, 4), 4, (3, 3), padding=(1, 1), groups=4), SPIKES, 4, 2, 4),
    "depthwise, two channels at a time": (Geometry((6, 4, 3), 6, (3, 3), padding=(1, 1), groups=6), COUNTS, 2, 1, 4),
    "depthwise, one channel at a time, stride 2": (Geometry((3, 5, 5), 3, (3, 3), (2, 2), (1, 1), 3), SPIKES, 1, 1, 4),
    "two groups, part of one at a time": (Geometry((4, 3, 3), 8, (3, 3), padding=(1, 1), groups=2), SPIKES, 2, 2, 4),
    "two groups in a chunk": (Geometry((8, 2, 3), 8, (2, 2), groups=4), COUNTS, 4, 4, 4),
    "channel multiplier": (Geometry((3, 3, 3), 6, (3, 3), padding=(1, 1), groups=3), COUNTS, 2, 2, 4),
}  # fmt: skip


def make(case: tuple[Any, ...], extreme: bool = False, **changes: Any) -> SynapsesSpec:
    geometry, values, lanes, width, bits = case
    chance, half = random.Random(7), 1 << (bits - 1)
    weight = (lambda: chance.choice((-half, half - 1))) if extreme else (lambda: chance.randrange(-half, half))
    channels, height, wide = geometry.source
    if geometry.flat:
        weights = tuple(tuple(weight() for _ in range(channels * height * wide)) for _ in range(geometry.outputs))
        fan = channels * height * wide
    else:
        inputs, (rows, columns) = channels // geometry.groups, geometry.kernel

        def kernel() -> tuple[tuple[int, ...], ...]:
            return tuple(tuple(weight() for _ in range(columns)) for _ in range(rows))

        weights = tuple(tuple(kernel() for _ in range(inputs)) for _ in range(geometry.outputs))
        fan = inputs * rows * columns
    sums = Interval(-half, half) * values * fan
    currents = CurrentFormat(geometry.target, width, sums.signed_bits)
    return replace(SynapsesSpec(geometry, EventFormat(geometry.source, values), currents, lanes, bits, weights), **changes)


def wire_order(shape: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """(y, x, channel) in the order in which they travel."""
    return list(product(range(shape[1]), range(shape[2]), range(shape[0])))


def expected(spec: SynapsesSpec, events: dict[tuple[int, int, int], int]) -> dict[tuple[int, int, int], int]:
    """Currents by (y, x, channel) of events by (y, x, channel)."""
    geometry = spec.geometry
    sources = wire_order(geometry.source)
    sums = dict.fromkeys(wire_order(geometry.target), 0)
    group_inputs, group_outputs = geometry.source[0] // geometry.groups, geometry.outputs // geometry.groups
    for (y, x, channel), value in events.items():
        if geometry.flat:
            for output in range(geometry.outputs):
                sums[0, 0, output] += spec.weights[output][sources.index((y, x, channel))] * value
            continue
        for row, column in product(range(geometry.kernel[0]), range(geometry.kernel[1])):
            down, across = y + geometry.padding[0] - row, x + geometry.padding[1] - column
            if down % geometry.stride[0] or across % geometry.stride[1]:
                continue
            for output in range(geometry.outputs):
                place = (down // geometry.stride[0], across // geometry.stride[1], output)
                if place in sums and output // group_outputs == channel // group_inputs:
                    sums[place] += spec.weights[output][channel % group_inputs][row][column] * value
    return sums


def serial(spec: SynapsesSpec) -> SerialSpec:
    """The same, a tap at a time."""
    return SerialSpec(**{field.name: getattr(spec, field.name) for field in fields(spec)} | {"lanes": spec.currents.lanes})


def chain(spec: SynapsesSpec) -> Module:
    """Walk, Replay, Synapses."""
    m = Module()
    if isinstance(spec, SerialSpec):
        m.submodules.synapses = m.synapses = SerialSynapses(spec)
        m.events = m.synapses.events
        return m
    m.walk, m.synapses = Walk(spec.walk), Synapses(spec)
    m.events = m.walk.i
    m.submodules.walk, m.submodules.synapses = m.walk, m.synapses
    m.submodules.replay = replay = Replay(ReplaySpec(spec.cells, spec.passes))
    wiring.connect(m, m.walk.o, replay.i)
    wiring.connect(m, replay.o, m.synapses.cells)
    return m


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize(
    ("name", "how"),
    [(name, how) for name in CASES for how in ("dsp", "logic", "both")[: 1 + (CASES[name][1] != SPIKES) * (1 + (CASES[name][4] <= 4))]]
    + [(name, "serial") for name in CASES if not CASES[name][0].flat],
)
def test_sums(name: str, how: str, extreme: bool, stall: float, drive: Callable[..., Any]) -> None:
    spec = serial(make(CASES[name], extreme)) if how == "serial" else make(CASES[name], extreme, multiplier=how)
    chance, values, out = random.Random(9), spec.events.value, spec.currents
    places = wire_order(spec.geometry.source)
    lost = [place for place in places if not any(spec_reach(spec, place))]
    sent, wanted = [], []
    for kind in ("none", "hi", "lo", "none", *["some"] * 5, "few", "few", "lost", "some", "one lost", "few"):
        events = {
            "none": {},
            "hi": dict.fromkeys(places, values.hi),
            "lo": dict.fromkeys(places, values.lo or values.hi),
            "some": {place: chance.choice((values.lo or 1, values.hi)) for place in places if chance.random() < 0.5},
            "few": {place: values.hi for place in places if chance.random() < 0.1},
            "lost": dict.fromkeys(lost, values.hi),
            "one lost": dict.fromkeys(lost[-1:], values.hi),
        }[kind]
        step = dict(zip(("first", "wake", "final", "active"), (chance.randrange(2) for _ in range(4)), strict=True))
        sent += [{"mark": 0, "step": step | {"active": 0}, "y": y, "x": x, "channel": c, "value": v} for (y, x, c), v in events.items()]
        sent.append({"mark": 1, "step": step})
        sums = expected(spec, events)
        if not events or (not any(sums.values()) and not spec.geometry.flat and not reached(spec, events)):
            wanted.append({"mark": 1, "empty": 1, "step": step})
            continue
        _, height, width = spec.geometry.target
        for y, x, part in product(range(height), range(width), range(out.parts)):
            lanes = [sums.get((y, x, part * out.lanes + lane), 0) for lane in range(out.lanes)]
            last = (y, x, part) == (height - 1, width - 1, out.parts - 1)
            wanted.append({"mark": int(last), "empty": 0, "step": step if last else step | {"active": 0}, "x": lanes})
    m = chain(spec)
    unstepped = [{key: value for key, value in want.items() if key != "step"} for want in wanted]
    took = drive(m, [(m.events, sent)], [(m.synapses.currents, unstepped)], stall=stall)
    for got, want in zip(took[0], wanted, strict=True):
        got, want = dict(got["step"]), dict(want["step"])
        if not want.get("active"):
            got.pop("active"), want.pop("active", None)
        assert got == want


def spec_reach(spec: SynapsesSpec, place: tuple[int, int, int]) -> list[int]:
    """By neuron, over how many synapses the source at ``place`` reaches it."""
    if spec.geometry.flat:
        return [1]
    kernel = ((1,) * spec.geometry.kernel[1],) * spec.geometry.kernel[0]
    ones = ((kernel,) * len(spec.weights[0]),) * spec.geometry.outputs
    return list(expected(replace(spec, weights=ones), {place: 1}).values())


def reached(spec: SynapsesSpec, events: Any) -> bool:
    """Whether an event lies where a walk goes."""
    geometry = spec.geometry
    return isinstance(spec, SerialSpec) or any(
        y < geometry.rows and x + geometry.padding[1] < geometry.columns * geometry.stride[1] for y, x, _ in events
    )


def test_properties() -> None:
    spec = make(CASES["two groups, part of one at a time"])
    assert (spec.passes, spec.sets, spec.row_count) == (4, 2, 8)
    spec = make(CASES["depthwise, two channels at a time"])
    assert (spec.passes, spec.sets, spec.row_count) == (3, 3, 6)
    spec = make(CASES["3 x 3, stride 2"])
    assert (spec.geometry.taps, spec.geometry.phases, spec.geometry.target) == ((2, 2), 4, (3, 3, 4))
    assert max(spec.rows).bit_length() <= 4 * spec.lanes * spec.weight_bits
    with pytest.raises(ValueError, match="lanes 3 is not a multiple of the 2"):
        replace(make(CASES["flat, passes, a short last chunk"]), lanes=3)
    with pytest.raises(ValueError, match="lanes 3 do not make whole chunks"):
        make((Geometry((4, 2, 2), 8, (1, 1), groups=2), SPIKES, 3, 1, 4))


@pytest.mark.parametrize("name", CASES)
def test_converts(name: str) -> None:
    rtlil.convert(Synapses(make(CASES[name])), emit_src=False)
