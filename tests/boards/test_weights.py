"""A board whose core takes its weights from flash, pins and all."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from amaranth.hdl import ClockDomain, Module
from amaranth.lib import wiring
from amaranth.sim import Simulator

import boards
from boards.host import Host
from boards.top import BoardTop
from casc_hw import IntegerNet, Layer, quantised_ann
from casc_hw.errors import CascError
from rtl_gen.gates.core import Core, CoreSpec, weight_words
from rtl_gen.gates.flash import PAUSE
from rtl_gen.gates.link import LinkSpec
from rtl_gen.lower import Lanes, core_spec
from sim.flash import FlashModel
from sim.virtual_board import build_virtual_board, running

LINK = LinkSpec(digest=bytes(16), levels=4, margin=4, input_shape=(9,), input_max=15, outputs=(7, 3), beat=1, clock_hz=12e6,
                watchdog=40_000, counting=True)  # fmt: skip


@pytest.fixture
def net() -> IntegerNet:
    chance = torch.Generator().manual_seed(5)
    one, two = torch.randint(-8, 8, (7, 9), generator=chance), torch.randint(-8, 8, (3, 7), generator=chance)
    layers = (
        Layer.dense("one", "image", one, torch.arange(7) - 3, torch.arange(7) + 20, 4),
        Layer.dense("two", "one", two, torch.arange(3) - 1, None, 4, 1.0),
    )
    return IntegerNet("loaded", 4, 4, None, (9,), 15, layers)


@pytest.fixture
def spec(net: IntegerNet) -> CoreSpec:
    return core_spec(net, [Lanes(5, 1), Lanes(1, 1)], 1, "count", spram=["one", "two"])


def spoilt(words: list[int]) -> list[int]:
    return [*words[:3], words[3] ^ 1, *words[4:]]


@pytest.mark.parametrize("spoil", [False, True])
def test_leds_tell_that_weights_are_being_read_and_whether_they_are_right(spec: CoreSpec, spoil: bool) -> None:
    words = weight_words(spec)
    core = Core(spec)
    top = BoardTop(core, LINK, 2)
    assert top.flash_spec is not None
    flash = FlashModel(top.flash_spec, spoilt(words) if spoil else words)

    async def bench(ctx: Any) -> None:
        await ctx.tick("io").repeat(2 * PAUSE + 200)
        assert ctx.get(top.leds) == 0b01  # busy
        assert not ctx.get(core.pixels.ready)
        await ctx.tick("io").repeat(36 * len(words))
        assert ctx.get(top.leds) == (0b10 if spoil else 0)
        assert ctx.get(core.pixels.ready) == (not spoil)

    m = Module()
    m.domains += [ClockDomain("io"), ClockDomain("sync")]
    m.submodules.top, m.submodules.flash = top, flash
    wiring.connect(m, top.flash, flash.pins)
    simulator = Simulator(m)
    simulator.add_clock(1 / 12e6, domain="io")
    simulator.add_clock(1 / 19e6, domain="sync")
    simulator.add_testbench(bench)
    simulator.run()


@pytest.mark.slow
@pytest.mark.parametrize(("io_hz", "sync_hz"), [(12_000_000, 24_000_000), (12_000_000, 9_300_000)])
def test_images_are_answered_before_and_after_a_reset(net: IntegerNet, spec: CoreSpec, io_hz: int, sync_hz: int, tmp_path: Path) -> None:
    images = torch.randint(0, 16, (6, 9), generator=torch.Generator().manual_seed(6))
    expected = quantised_ann(net, images)
    executable = build_virtual_board(Core(spec), LINK, tmp_path, io_hz, sync_hz)
    with running(executable) as terminal, Host(terminal, timeout=10) as host:
        for index, image in enumerate(images):
            if index in (0, 3):
                host.reset()
            answer = host.run(image.numpy())
            assert answer.class_index == int(expected.classes[index])
            assert answer.logits.tolist() == expected.sums[index].tolist()


@pytest.mark.slow
def test_wrong_weights_are_a_fault_not_an_answer(spec: CoreSpec, tmp_path: Path) -> None:
    executable = build_virtual_board(Core(spec), LINK, tmp_path, 12_000_000, 24_000_000, weights=spoilt(weight_words(spec)))
    with running(executable) as terminal, Host(terminal, timeout=10) as host:
        assert host.hello().input_shape == (9,)
        for _ in range(2):
            with pytest.raises(CascError, match="TIMEOUT"):
                host.run(torch.zeros(9, dtype=torch.int64).numpy())


def flash_pins(spec: CoreSpec) -> list[str]:
    """Pins of the flash that an iCEBreaker's constraints name."""
    board = boards.get("icebreaker")
    plan = board.platform().prepare(board.mount(BoardTop(Core(spec), LINK, board.leds)), "top", emit_src=False)
    constraints = plan.files["top.pcf"]
    text = constraints if isinstance(constraints, str) else constraints.decode()
    return sorted(line.split()[2] for line in text.splitlines() if line.startswith("set_io") and "spi_flash" in line)


def test_the_icebreaker_has_the_pins(net: IntegerNet, spec: CoreSpec) -> None:
    """All six, write protection and hold among them; none where nothing is loaded."""
    assert flash_pins(spec) == ["12", "13", "14", "15", "16", "17"]
    assert flash_pins(core_spec(net, [Lanes(5, 1), Lanes(1, 1)], 1, "count")) == []
