"""UART: every byte, odd divisors, clocks that are off, breaks, overruns."""

import random

import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module
from amaranth.sim import Simulator

from rtl_gen.gates.uart import UartReceiver, UartSpec, UartTransmitter

PERIOD = 1e-6


def receive(spec: UartSpec, levels: list[tuple[int, float]], *, ready=lambda index: True, budget: int) -> list[tuple[int, int]]:
    """(data, gap) of what the receiver makes of a wire that is at ``level`` for so many clock cycles, in turn."""
    dut = UartReceiver(spec)
    got: list[tuple[int, int]] = []
    sim = Simulator(dut)
    sim.add_clock(PERIOD)

    async def drive(ctx):
        for level, cycles in levels:
            ctx.set(dut.rx, level)
            await ctx.delay(cycles * PERIOD)

    async def watch(ctx):
        held = None
        for index in range(budget):
            ctx.set(dut.bytes.ready, ready(index))
            _, _, valid, data, gap, taken = await ctx.tick().sample(dut.bytes.valid, dut.bytes.p.data, dut.bytes.p.gap, dut.bytes.ready)
            assert held is None or (valid, data, gap) == (1, *held), "payload changed while it waited"
            held = (data, gap) if valid and not taken else None
            if valid and taken:
                got.append((data, gap))

    sim.add_testbench(watch)
    sim.add_testbench(drive, background=True)
    sim.run()
    return got


def wire(data: bytes, bit: float) -> list[tuple[int, float]]:
    return [level for byte in data for level in [(0, bit), *((byte >> index & 1, bit) for index in range(8)), (1, bit)]]


@pytest.mark.parametrize(("divisor", "off"), [(4, 1.0), (5, 1.0), (12, 0.97), (12, 1.03), (25, 0.97), (25, 1.03)])
def test_receives_back_to_back_at_a_clock_that_is_off(divisor, off):
    spec = UartSpec(divisor * 1000, 1000)
    data = bytes(random.Random(divisor).sample(range(256), 8)) + b"\x00\xff\x55"
    got = receive(spec, [(1, 7.3), *wire(data, divisor * off), (1, divisor)], budget=int(divisor * 10.5 * len(data)) + 40)
    assert got == [(byte, 0) for byte in data]


def test_a_break_and_a_spike_leave_a_gap_and_nothing_else():
    spec = UartSpec(16_000, 1000)
    levels = [(1, 20), *wire(b"A", 16), (0, 16 * 30), (1, 40), *wire(b"B", 16), (1, 40), (0, 5), (1, 200), *wire(b"C", 16), (1, 16)]
    assert receive(spec, levels, budget=1600) == [(ord("A"), 0), (ord("B"), 1), (ord("C"), 0)]


def test_a_byte_that_finds_no_room_leaves_a_gap():
    spec = UartSpec(8000, 1000)
    got = receive(spec, [*wire(b"ABCDE", 8), (1, 8)], ready=lambda index: index > 200 and index % 3 == 0, budget=600)
    assert got == [(ord("A"), 0), (ord("C"), 1), (ord("D"), 0), (ord("E"), 0)]


@pytest.mark.parametrize("divisor", [4, 7, 25])
def test_what_is_sent_arrives(divisor):
    spec = UartSpec(divisor * 1000, 1000)
    m = Module()
    m.submodules.sender = sender = UartTransmitter(spec)
    m.submodules.receiver = receiver = UartReceiver(spec)
    m.d.comb += [receiver.rx.eq(sender.tx), receiver.bytes.ready.eq(1)]
    data, got = bytes(range(0, 256, 15)), []
    budget = (10 * divisor + 1) * len(data) + 4 * divisor
    sim = Simulator(m)
    sim.add_clock(PERIOD)

    async def send(ctx):
        for byte in data:
            ctx.set(sender.bytes.payload, byte)
            ctx.set(sender.bytes.valid, 1)
            await ctx.tick().until(sender.bytes.ready)
        ctx.set(sender.bytes.valid, 0)

    async def watch(ctx):
        for _ in range(budget):
            _, _, valid, byte = await ctx.tick().sample(receiver.bytes.valid, receiver.bytes.payload)
            if valid:
                got.append((byte.data, byte.gap))

    sim.add_testbench(send, background=True)
    sim.add_testbench(watch)
    sim.run()
    assert got == [(byte, 0) for byte in data]


@pytest.mark.parametrize(("clock_hz", "baud"), [(12e6, 5_000_000), (1e6, 0), (12e6, 921_600 * 2)])
def test_refuses_rates_the_clock_cannot_make(clock_hz, baud):
    with pytest.raises(ValueError, match="uart"):
        UartSpec(clock_hz, baud)


@pytest.mark.parametrize("part", [UartReceiver, UartTransmitter])
def test_converts(part):
    assert rtlil.convert(part(UartSpec(12e6, 1_000_000)))
