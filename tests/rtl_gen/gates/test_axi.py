"""The AXI4-Stream core: pixels as bytes in, words out, and bytes above the maximum taken as the maximum."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from amaranth.hdl import ClockDomain, Module
from amaranth.sim import Simulator

from casc_hw import IntegerNet, simulate
from rtl_gen.gates.axi import AxiCore
from rtl_gen.lower import Lanes, core_spec


@pytest.mark.parametrize("beat", [1, 4])
def test_words_of_images(beat: int, make_net: Callable[..., IntegerNet], make_images: Any) -> None:
    net = make_net((6, 5, 3), levels=4, input_max=9, seed=3)
    images = make_images(net, 4, 3)
    dut = AxiCore(core_spec(net, [Lanes(4, 2), Lanes(3, 3)], beat))
    m = Module()
    m.domains.axi = axi = ClockDomain()
    m.submodules.dut = dut
    m.d.comb += [dut.aclk.eq(axi.clk), dut.aresetn.eq(~axi.rst)]
    words: list[tuple[int, int]] = []

    async def feed(ctx: Any) -> None:
        for image in images.tolist():
            bright = [200 if pixel == net.input_max else pixel for pixel in image]
            for first in range(0, len(bright), beat):
                chunk = bright[first : first + beat]
                ctx.set(dut.s_axis_tdata, sum(pixel << (8 * place) for place, pixel in enumerate(chunk)))
                ctx.set(dut.s_axis_tlast, first + beat >= len(bright))
                ctx.set(dut.s_axis_tvalid, 1)
                await ctx.tick(axi).until(dut.s_axis_tready)
                ctx.set(dut.s_axis_tvalid, 0)

    async def take(ctx: Any) -> None:
        ctx.set(dut.m_axis_tready, 1)
        for _ in range(5000):
            *_, valid, word, last = await ctx.tick(axi).sample(dut.m_axis_tvalid, dut.m_axis_tdata, dut.m_axis_tlast)
            if valid:
                words.append((word, last))

    simulator = Simulator(m)
    simulator.add_clock(1e-6, domain=axi)
    simulator.add_testbench(feed, background=True)
    simulator.add_testbench(take)
    simulator.run()
    trace = simulate(net, images)
    expected = []
    for index in range(len(images)):
        sums = [value & 0xFFFFFFFF for value in trace.answer.sums[index].tolist()]
        expected.append([*sums, int(trace.answer.classes[index]), int(trace.sleep_steps[index])])
    count = net.readout.outputs + 3
    assert [last for _, last in words] == ([0] * (count - 1) + [1]) * len(images)
    assert [[word for word, _ in words[first : first + count - 1]] for first in range(0, len(words), count)] == expected
