"""Weights out of a serial flash."""

from __future__ import annotations

import random
from typing import Any

import pytest
from amaranth.back import rtlil
from amaranth.hdl import ClockDomain, Module
from amaranth.lib import wiring
from amaranth.lib.crc.catalog import CRC32_MPEG_2
from amaranth.sim import Simulator

from rtl_gen.gates.flash import OFFSET, PAUSE, FlashReader, FlashSpec, flash_bytes
from sim.flash import FlashModel


def _read(spec: FlashSpec, contents: list[int], offset: int = OFFSET, stall: float = 0.0) -> tuple[list[tuple[int, int]], bool]:
    """What the reader of ``spec`` gives of a flash with ``contents`` from ``offset`` on, and whether it has failed."""
    chance = random.Random(len(contents))
    reader, flash = FlashReader(spec), FlashModel(FlashSpec(len(contents), 0, offset), contents)
    took: list[tuple[int, int]] = []
    failed = False

    async def bench(ctx: Any) -> None:
        nonlocal failed
        for _ in range(2 * PAUSE + 200 + int(40 * spec.size * (1 + 8 * stall))):
            ctx.set(reader.words.ready, chance.random() >= stall)
            if ctx.get(reader.words.valid) and ctx.get(reader.words.ready):
                took.append((ctx.get(reader.words.p.data), ctx.get(reader.words.p.last)))
            await ctx.tick("io")
        assert not ctx.get(reader.busy)
        assert not ctx.get(reader.pins.cs)
        failed = bool(ctx.get(reader.failed))

    m = Module()
    m.domains.io = ClockDomain()
    m.submodules.reader, m.submodules.flash = reader, flash
    wiring.connect(m, reader.pins, flash.pins)
    simulator = Simulator(m)
    simulator.add_clock(1e-6, domain="io")
    simulator.add_testbench(bench)
    simulator.run()
    return took, failed


def _words(size: int) -> list[int]:
    chance = random.Random(size)
    return [chance.getrandbits(16) for _ in range(size)]


@pytest.mark.parametrize("size", [1, 2, 37])
def test_words_come_out_in_order(size: int, stall: float) -> None:
    words = _words(size)
    took, failed = _read(FlashSpec.of(words), words, stall=stall)
    assert took == [(word, int(index == size - 1)) for index, word in enumerate(words)]
    assert not failed


def test_another_offset() -> None:
    words = _words(5)
    spec = FlashSpec(5, FlashSpec.of(words).checksum, 0x12_3456)
    took, failed = _read(spec, words, 0x12_3456)
    assert [word for word, _ in took] == words
    assert not failed


@pytest.mark.parametrize("what", ["a bit", "order", "erased", "moved"])
def test_other_words_do_not_pass(what: str) -> None:
    """The last is never sent."""
    words = _words(9)
    contents = list(words)
    if what == "a bit":
        contents[4] ^= 0x100
    elif what == "order":
        contents[2], contents[3] = contents[3], contents[2]
    elif what == "erased":
        contents = [0xFFFF] * 9
    took, failed = _read(FlashSpec.of(words), contents, OFFSET + 2 * (what == "moved"))
    assert failed
    assert len(took) == 8
    assert not any(last for _, last in took)


def test_bytes_have_the_high_one_first() -> None:
    assert flash_bytes([0x1234, 0x00FF]) == b"\x12\x34\x00\xff"
    assert FlashSpec.of([0x3132, 0x3334]).checksum == CRC32_MPEG_2(data_width=8).compute(b"1234")
    assert CRC32_MPEG_2(data_width=8).compute(b"123456789") == 0x0376E6E7  # the catalogue's check value


@pytest.mark.parametrize(("size", "offset"), [(0, 0), (1, -2), (2, (1 << 24) - 2)])
def test_beyond_the_flash_is_refused(size: int, offset: int) -> None:
    with pytest.raises(ValueError, match="flash"):
        FlashSpec(size, 0, offset)


def test_converts() -> None:
    assert "copi" in rtlil.convert(FlashReader(FlashSpec.of([1, 2])), name="reader", emit_src=False)
