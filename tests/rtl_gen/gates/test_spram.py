"""Weights that are loaded: what is put in comes out, resets take nothing back, and synthesis finds SPRAM."""

from __future__ import annotations

import random
import re
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from amaranth.back import rtlil
from amaranth.hdl import Module, ResetInserter, Signal
from amaranth.sim import Simulator

from casc_hw import IntegerNet, Layer
from casc_hw.network import IMAGE, Synapses
from rtl_gen import tools
from rtl_gen.build import _FLOWS
from rtl_gen.gates.axi import AxiCore
from rtl_gen.gates.core import Core, weight_words
from rtl_gen.gates.spram import WeightStore, WeightStoreSpec
from rtl_gen.lower import Lanes, core_spec

SHAPES = [(1, 1), (1, 16), (2, 17), (5, 20), (9, 33), (16, 64), (33, 48)]


@pytest.mark.parametrize(("rows", "bits"), SHAPES)
@pytest.mark.parametrize("resets", [False, True])
def test_store_gives_back_what_was_loaded(rows: int, bits: int, resets: bool, stall: float) -> None:
    spec = WeightStoreSpec(rows, bits)
    chance = random.Random(rows * bits)
    contents = [chance.getrandbits(bits) for _ in range(rows)]
    store, reset = WeightStore(spec), Signal()

    async def bench(ctx: Any) -> None:
        for word in spec.words(contents):
            while chance.random() < stall:
                ctx.set(store.words.valid, 0)
                ctx.set(store.address, chance.randrange(rows))
                await ctx.tick()
            ctx.set(store.words.payload, word)
            ctx.set(store.words.valid, 1)
            ctx.set(store.address, chance.randrange(rows))
            ctx.set(reset, resets and chance.random() < 0.3)
            assert ctx.get(store.words.ready)
            assert not ctx.get(store.loaded)
            await ctx.tick()
        ctx.set(store.words.payload, 0xDEAD)  # offered, not taken
        order = [*range(rows), *(chance.randrange(rows) for _ in range(2 * rows))]
        for address in order:
            assert ctx.get(store.loaded)
            assert not ctx.get(store.words.ready)
            ctx.set(store.address, address)
            ctx.set(reset, resets and chance.random() < 0.3)
            await ctx.tick()
            ctx.set(store.address, chance.randrange(rows))
            assert ctx.get(store.data) == contents[address], f"row {address}"

    m = Module()
    m.submodules.store = ResetInserter(reset)(store)
    simulator = Simulator(m)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.parametrize(("rows", "bits"), [(0, 16), (16385, 16), (8, 65), (8, 0)])
def test_store_refuses_what_is_no_block(rows: int, bits: int) -> None:
    with pytest.raises(ValueError, match="are not 1 to 16384"):
        WeightStoreSpec(rows, bits)


def small_net(seed: int = 0) -> IntegerNet:
    """A convolution, two dense layers, a read-out; 4-bit weights."""
    chance = torch.Generator().manual_seed(seed)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randint(-8, 8, shape, generator=chance)

    def numbers(size: int, low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (size,), generator=chance)

    nodes = (
        Layer("conv", (Synapses(IMAGE, weight(3, 1, 3, 3), 4),), numbers(3, -9, 9), numbers(3, 5, 60)),
        Layer.dense("one", "conv", weight(11, 3 * 4 * 3), numbers(11, -9, 9), numbers(11, 5, 60), 4),
        Layer.dense("two", "one", weight(7, 11), numbers(7, -9, 9), numbers(7, 5, 30), 4),
        Layer.dense("out", "two", weight(4, 7), numbers(4, -9, 9), None, 4, 1.0),
    )
    return IntegerNet("small", 4, 4, None, (1, 6, 5), 15, nodes)


LANES = [Lanes(1, 1), Lanes(6, 2), Lanes(4, 1), Lanes(2, 1)]
STORED = ("conv", "one", "out")


@pytest.mark.parametrize("code", ["spike", "count"])
def test_core_equals_the_reference(code: Any, make_images: Any, run_core: Callable[..., list[Any]]) -> None:
    net = small_net()
    spec = core_spec(net, LANES, 1, code, spram=STORED)
    assert [synapses.store is not None for layer in spec.layers for synapses in (layer.inputs[0].spec,)] == [True, True, False, True]
    for outcome in run_core(net, spec, make_images(net, 4), stalls=(0.0, 0.4)):
        assert outcome.mismatches == 0, outcome.messages
        assert outcome.images == 4


@pytest.mark.parametrize("serial", [False, True])
@pytest.mark.parametrize("code", ["spike", "count"])
def test_resets_keep_the_weights(code: Any, serial: bool, make_images: Any, run_core: Callable[..., list[Any]]) -> None:
    net = small_net(1)
    spec = core_spec(net, [replace(LANES[0], serial=serial), *LANES[1:]], 1, code, spram=STORED)
    outcomes = run_core(net, spec, make_images(net, 3), stalls=(0.0, 0.0, 0.3), restarts=True)
    assert len(outcomes) == 3
    for outcome in outcomes:
        assert outcome.mismatches == 0, outcome.messages
        assert outcome.images == 3


def test_words_that_end_elsewhere_are_an_error() -> None:
    spec = core_spec(small_net(), LANES, 1, "count", spram=["out"])
    words = weight_words(spec)
    for end, wrong in ((len(words) - 1, False), (len(words) - 2, True), (len(words), True)):
        core = Core(spec)

        async def bench(ctx: Any, core: Core = core, end: int = end, wrong: bool = wrong) -> None:
            ctx.set(core.weights.valid, 1)
            for index, word in enumerate(words):
                ctx.set(core.weights.payload, {"data": word, "last": index == end})
                assert not ctx.get(core.error)
                await ctx.tick()
            assert ctx.get(core.error) == wrong
            assert ctx.get(core.pixels.ready) != wrong
            assert not ctx.get(core.weights.ready)

        simulator = Simulator(core)
        simulator.add_clock(1e-6)
        simulator.add_testbench(bench)
        simulator.run()


def test_words_of_a_core() -> None:
    """Layer by layer, row by row, the lowest word first."""
    spec = core_spec(small_net(), LANES, 1, "count", spram=STORED)
    rows = [spec.layers[index].inputs[0].spec.rows for index in (0, 1, 3)]
    bits = [spec.layers[index].inputs[0].spec.row_bits for index in (0, 1, 3)]
    assert bits == [36, 24, 8]
    words = iter(weight_words(spec))
    for count, layer in zip((3, 2, 1), rows, strict=True):
        for row in layer:
            assert sum(next(words) << (16 * part) for part in range(count)) == row
    assert next(words, None) is None
    assert weight_words(core_spec(small_net(), LANES, 1, "count")) == []


def test_too_wide_or_too_many_are_refused() -> None:
    with pytest.raises(ValueError, match="2 rows of 72 bits"):
        core_spec(small_net(), [Lanes(2, 1), *LANES[1:]], 1, "count", spram=["conv"])


def test_converts() -> None:
    spec = core_spec(small_net(), LANES, 1, "count", spram=STORED)
    for component in (Core(spec), Core(spec, bench=True), AxiCore(spec)):
        assert "weights" in rtlil.convert(component, name="core", emit_src=False)


@pytest.mark.slow
def test_synthesis_finds_spram(tmp_path: Path) -> None:
    """One block for each 16 bits of a row, by the script that builds bitstreams."""
    spec = core_spec(small_net(), LANES, 1, "count", spram=STORED)
    (tmp_path / "top.il").write_text(rtlil.convert(Core(spec), name="top", emit_src=False))
    (tmp_path / "top.ys").write_text(f"read_rtlil top.il\n{_FLOWS['ice40'].synthesis}\ntee -o cells stat\n")
    subprocess.run([tools.find("yosys").path, "-q", "top.ys"], cwd=tmp_path, check=True, capture_output=True)
    found = re.search(r"(\d+)\s+SB_SPRAM256KA", (tmp_path / "cells").read_text())
    assert found is not None
    assert int(found[1]) == 3 + 2 + 1
