"""Frames in gates against the PC's: any body there and back, garbage between, with and without stalls."""

import random

import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator

from boards.host import Frame, encode, split
from rtl_gen.gates.frame import Deframer, Framer

PERIOD = 1e-6
NASTY = bytes([0x7E, 0x7D, 0x5E, 0x5D, 0x20, 0x00, 0xFF])


def stalls(share: float, seed: int):
    rng = random.Random(seed)
    return lambda: rng.random() >= share


def transfer(dut, i, o, items, *, share: float, budget: int) -> list:
    """Everything that comes out of ``o`` within ``budget`` cycles when ``items`` go into ``i``; checks that waiting payloads hold."""
    got = []
    sim = Simulator(dut)
    sim.add_clock(PERIOD)

    async def send(ctx):
        go = stalls(share, 1)
        for item in items:
            while not go():
                await ctx.tick()
            ctx.set(i.payload, item)
            ctx.set(i.valid, 1)
            await ctx.tick().until(i.ready)
            ctx.set(i.valid, 0)

    async def take(ctx):
        go = stalls(share, 2)
        held = None
        for _ in range(budget):
            ready = go()
            ctx.set(o.ready, ready)
            _, _, valid, payload = await ctx.tick().sample(o.valid, o.payload)
            assert held is None or (valid and payload == held), "payload changed while it waited"
            held = payload if valid and not ready else None
            if valid and ready:
                got.append(payload)

    sim.add_testbench(send, background=True)
    sim.add_testbench(take)
    sim.run()
    return got


def frames(events) -> list[tuple[bytes, bool]]:
    """(body without CRC, good) of each frame that ended."""
    found, body = [], b""
    for event in events:
        if event.end:
            found.append((body[:-2], bool(event.good)))
            body = b""
        else:
            body += bytes([event.data])
    assert body == b""
    return found


def deframe(wire: bytes, share: float = 0.0, gaps=()) -> list[tuple[bytes, bool]]:
    dut = Deframer()
    items = [{"data": byte, "gap": index in gaps} for index, byte in enumerate(wire)]
    return frames(transfer(dut, dut.bytes, dut.frame, items, share=share, budget=len(wire) * (1 if share == 0 else 8) + 20))


def body_of(frame: Frame) -> bytes:
    return bytes([frame.version, frame.kind, frame.sequence]) + len(frame.payload).to_bytes(2, "little") + frame.payload


@pytest.mark.parametrize("share", [0.0, 0.5])
@pytest.mark.parametrize("payload", [b"", b"\x7e", NASTY, bytes(range(256))])
def test_deframer_reads_what_the_pc_writes(payload, share):
    frame = Frame(2, 0x7D, payload)
    assert deframe(encode(frame), share) == [(body_of(frame), True)]


def test_garbage_never_reaches_past_a_flag():
    rng = random.Random(5)
    good = Frame(1, 9, NASTY)
    for length in range(12):
        garbage = bytes(rng.randrange(256) for _ in range(length)) + (b"\x7d" if length % 2 else b"")
        found = deframe(garbage + encode(good) + encode(good)[:-3] + encode(good))
        assert [body for body, ok in found if ok] == [body_of(good)] * 2
        assert found[-2][1] is False


def test_a_lost_byte_spoils_its_frame_only():
    wire = encode(Frame(1, 1)) + encode(Frame(1, 2)) + encode(Frame(1, 3))
    each = len(wire) // 3
    assert [ok for _, ok in deframe(wire, gaps=[each + 4])] == [True, False, True]
    assert [ok for _, ok in deframe(wire, gaps=[0])] == [False, True, True, True]  # what was lost may have been a frame
    assert [ok for _, ok in deframe(wire, gaps=[2 * each - 1])] == [True, False, True]


def test_an_escaped_flag_ends_the_frame_as_damaged():
    whole = encode(Frame(1, 1))
    assert deframe(whole[:-1] + b"\x7d\x7e" + whole[1:]) == [(body_of(Frame(1, 1)), False), (body_of(Frame(1, 1)), True)]


@pytest.mark.parametrize("share", [0.0, 0.5])
def test_framer_writes_what_the_pc_reads(share):
    sent = [Frame(0x81, 3, NASTY), Frame(0xFF, 0x7E, b"x"), *(Frame(0x82, k, bytes([k])) for k in range(0, 256, 37))]
    dut = Framer()
    items = [{"data": byte, "last": at == len(body_of(f)) - 1} for f in sent for at, byte in enumerate(body_of(f))]
    wire = bytes(transfer(dut, dut.body, dut.bytes, items, share=share, budget=3000))
    assert wire == b"".join(encode(frame) for frame in sent)
    assert split(wire)[1] == b""


@pytest.mark.parametrize("part", [Deframer, Framer])
def test_converts(part):
    assert rtlil.convert(part())
