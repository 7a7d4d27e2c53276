"""Synapses against a plain matrix product."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from amaranth.back import rtlil

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import CurrentFormat, EventFormat
from rtl_gen.gates.synapses import Synapses, SynapsesSpec

SIGNS = Interval(-1, 1)
# sources, values, outputs, accumulators, lanes of a transfer, weight bits
SHAPES = [
    (1, SIGNS, 1, 1, 1, 2),
    (2, SIGNS, 2, 1, 1, 3),
    (2, Interval(0, 255), 2, 2, 1, 8),
    (5, Interval(0, 100), 5, 2, 2, 4),
    (5, SIGNS, 13, 8, 2, 6),
    (7, SIGNS, 13, 6, 1, 8),
    (3, SIGNS, 3, 8, 2, 4),
    (13, Interval(0, 255), 7, 8, 8, 8),
    (4, Interval(0, 1), 9, 3, 3, 2),
]


def make(shape: tuple[Any, ...], extreme: bool = False) -> SynapsesSpec:
    sources, values, outputs, lanes, width, bits = shape
    chance, half = random.Random(3), 1 << (bits - 1)
    ends = (-half, half - 1)
    weights = tuple(
        tuple(chance.choice(ends) if extreme else chance.randrange(-half, half) for _ in range(sources)) for _ in range(outputs)
    )
    if extreme:  # the widest sums there are
        weights = ((-half,) * sources, *weights[1:-1], *[(half - 1,) * sources][: outputs - 1])
    sums = Interval.hull(sum((Interval(weight, weight) * values for weight in row), Interval(0, 0)) for row in weights)
    return SynapsesSpec(EventFormat(sources, values), CurrentFormat(outputs, width, (sums | 0).signed_bits), lanes, bits, weights)


@pytest.mark.parametrize("extreme", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sums(shape: tuple[Any, ...], extreme: bool, stall: float, drive: Callable[..., Any]) -> None:
    spec, chance = make(shape, extreme), random.Random(9)
    sources, values, out = spec.events.size, spec.events.value, spec.currents
    sent, wanted = [], []
    for kind in ("none", "hi", "lo", "none", *["some"] * 10):
        events = {
            "none": {},
            "hi": dict.fromkeys(range(sources), values.hi),
            "lo": dict.fromkeys(range(sources), values.lo or values.hi),
            "some": {index: chance.choice((values.lo or 1, values.hi)) for index in range(sources) if chance.random() < 0.5},
        }[kind]
        step = dict(zip(("first", "wake", "final", "active"), (chance.randrange(2) for _ in range(4)), strict=True))
        one = [*({"mark": 0, "address": address, "value": value} for address, value in events.items()), {"mark": 1, "step": step}]
        sent += one * (spec.passes if events else 1)
        if not events:
            wanted.append({"mark": 1, "empty": 1, "step": step})
            continue
        sums = [sum(row[address] * value for address, value in events.items()) for row in spec.weights]
        sums += [0] * (out.chunks * out.lanes - out.size)
        for chunk in range(out.chunks):
            x = sums[chunk * out.lanes : (chunk + 1) * out.lanes]
            wanted.append({"mark": int(chunk == out.chunks - 1), "empty": 0, "step": step, "x": x})
    dut = Synapses(spec)
    drive(dut, [(dut.events, sent)], [(dut.currents, wanted)], stall=stall)


def test_properties() -> None:
    spec = make(SHAPES[4])
    assert (spec.passes, spec.row_count, spec.multiplies) == (2, 10, False)
    assert [make(shape).multiplies for shape in SHAPES[:4]] == [False, False, True, True]
    assert len(spec.rows) == spec.row_count
    assert max(spec.rows).bit_length() <= spec.lanes * spec.weight_bits
    with pytest.raises(ValueError, match="lanes 3 is not a multiple of the 2"):
        make((5, SIGNS, 5, 3, 2, 4))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_converts(shape: tuple[Any, ...]) -> None:
    rtlil.convert(Synapses(make(shape)), emit_src=False)
