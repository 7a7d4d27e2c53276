"""What is claimed of the link's frames: what one end sends the other receives, whatever state an upset has left of either."""

from __future__ import annotations

from functools import partial

from amaranth.hdl import Cat, ClockDomain, ClockSignal, Const, Mux, Signal, Value

from rtl_gen.formal.bench import Bench, Property
from rtl_gen.gates import frame, link
from rtl_gen.gates.frame import ESCAPE, FLAG, FLIP, PROTOCOL, Fault, Kind


def checked(crc: Value, byte: Value) -> Value:
    """The CRC of docs/protocol.md after one byte more, bit by bit."""
    masks = [1 << place for place in range(16)]  # a bit is the parity of these bits of ``crc`` and ``byte``
    for place in reversed(range(16, 24)):
        top = masks[15] ^ 1 << place
        masks = [0, *masks[:15]]
        for tap in (0, 5, 12):
            masks[tap] ^= top
    return Cat(*((Cat(crc, byte) & mask).xor() for mask in masks))


def deframer() -> Bench:
    """Any bytes off the wire beside what the format says of those since the last flag."""
    bench, dut = Bench(), frame.Deframer()
    m, i, o = bench.m, dut.bytes, dut.frame
    inside = bench.part("dut", dut, any_start=True)
    bench.drive(i, "i", stable=True)
    bench.take(o, "o")
    known, begun, escaped, lost = Signal(), Signal(), Signal(), Signal()
    crc, last, count = Signal(16), Signal(16), Signal(range(3))  # of the bytes before the last two; those two; how many, at most two
    flag, escape, taken = i.p.data == FLAG, (i.p.data == ESCAPE) & ~escaped, i.valid & i.ready
    byte = i.p.data ^ Mux(escaped, FLIP, 0)
    due = i.valid & Mux(flag, begun | i.p.gap, ~escape)
    right = (count == 2) & (last == crc) & ~(escaped | lost | i.p.gap)
    with m.If(taken & flag):
        m.d.sync += [known.eq(1), begun.eq(0), escaped.eq(0), lost.eq(0), crc.eq(0xFFFF), count.eq(0)]
    with m.Elif(taken):
        m.d.sync += [begun.eq(1), escaped.eq(escape), lost.eq(lost | i.p.gap)]
        with m.If(~escape):
            m.d.sync += [last.eq(Cat(byte, last[:8])), count.eq(count + (count != 2))]
            with m.If(count == 2):
                m.d.sync += crc.eq(checked(crc, last[8:]))
    bench.claim("each byte is given out, and an end for each flag behind a byte or a gap", ~known | (o.valid == due))
    bench.claim("a byte is as it was before it was stuffed", ~known | ~due | ((o.p.end == flag) & (flag | (o.p.data == byte))))
    bench.claim(
        "a frame is good if its last two bytes are the CRC of the others and nothing is lost", ~known | ~due | ~flag | (o.p.good == right)
    )
    bench.claim("a byte is taken as it is given out, or at once", i.ready == (~o.valid | o.ready))
    waited = bench.before(o.valid & ~o.ready, "waited")
    still = [Value.cast(value) == bench.before(value, name) for name, value in (("data", o.p.data), ("end", o.p.end), ("good", o.p.good))]
    bench.claim("an offer stands until it is taken", ~waited | (o.valid & still[0] & still[1] & (still[2] | ~o.p.end)))
    nothing = Const(0, 8)  # what is sent is as good as mixed into the CRC before
    of_all = Mux(count == 0, 0xFFFF, Mux(count == 1, checked(Const(0xFFFF, 16), last[:8]), checked(checked(crc ^ last, nothing), nothing)))
    same = (inside["some"] == begun) & (inside["escaped"] == escaped) & (inside["bad"] == lost)
    bench.invariant("it is known what was since the last flag", ~known | same)
    bench.invariant("and the CRC of it all", ~known | ~begun | (inside["crc"].crc == of_all))
    bench.invariant("of fewer than two bytes", ~known | (count == 2) | ((count < 2) & (crc == 0xFFFF)))
    bench.invariant("some byte", ~known | begun | ((count == 0) & ~escaped & ~lost))
    return bench


def framing() -> Bench:
    """`Framer`, then `Deframer`, both from any state; what leaves is known behind the first body's end."""
    bench, sender, receiver = Bench(), frame.Framer(), frame.Deframer()
    m, i, o, wire = bench.m, sender.body, receiver.frame, receiver.bytes
    bench.part("sender", sender, any_start=True)
    bench.part("receiver", receiver, any_start=True)
    bench.drive(i, "i", stable=True)
    bench.take(o, "o")
    m.d.comb += [wire.valid.eq(sender.bytes.valid), wire.p.data.eq(sender.bytes.payload), sender.bytes.ready.eq(wire.ready)]
    ended, known, extra, waits = Signal(), Signal(), Signal(range(4)), Signal(range(10))
    enter, leave = i.valid & i.ready, o.valid & o.ready
    with m.If(enter & i.p.last):
        m.d.sync += [ended.eq(1), extra.eq(0)]
    with m.Elif(ended & leave & o.p.end):
        m.d.sync += [known.eq(1), ended.eq(0)]
    with m.Elif(ended & leave):
        m.d.sync += extra.eq(extra + (extra != 3))
    m.d.sync += waits.eq(Mux(enter | ~i.valid | ~o.ready, 0, waits + (waits != 9)))
    bench.claim(
        "until a body ends a byte goes in as it comes out, the same",
        ~known | ended | ((enter == leave) & (~leave | ~o.p.end & (o.p.data == i.p.data))),
    )
    bench.claim("behind it come two bytes and an end", ~known | ~ended | (~enter & (~leave | (o.p.end == (extra == 2)))))
    bench.claim("the end of a good frame", ~known | ~(o.valid & o.p.end) | o.p.good)
    bench.claim("from any state a byte is taken within eight cycles of a willing receiver", waits <= 8)
    bench.claim("an offer stands until it is taken", bench.stands(sender.bytes, "wire"))
    return bench


def reader(pixels: int, banks: int) -> Bench:
    """Frames of any bytes beside what docs/protocol.md says of them; known behind the first frame's end."""
    spec = link.LinkSpec(bytes(16), 3, 1, (pixels,), 5, (2,), 1, 8e6, 1000, banks=banks)
    bench, dut = Bench(), link.RequestReader(spec)
    m, i, job = bench.m, dut.frame, dut.jobs
    m.domains.io = io = ClockDomain("io", reset_less=True)
    m.d.comb += io.clk.eq(ClockSignal())
    bench.part("dut", dut, any_start=True)
    bench.drive(i, "i", stable=True)
    bench.take(job, "jobs")
    m.d.comb += [dut.crowded.eq(bench.free("crowded")), dut.free.eq(bench.free("bank_free")), dut.flush.eq(bench.free("flush"))]
    known, count, stored, dear = Signal(), Signal(range(pixels + 9)), Signal(), Signal()
    head = [Signal(8, name=f"head_{place}") for place in range(5)]
    version, kind, sequence, low, high = head
    taken = i.valid & i.ready
    byte, end, pixel = taken & ~i.p.end, taken & i.p.end, count - 5
    in_pixels = (count >= 5) & (pixel < pixels)
    image, bank = kind == Kind.IMAGE, dut.bank
    if banks == 1:
        bench.assume(bank == 0)  # a register that nothing changes is none, once synthesised
    with m.If(end):
        m.d.sync += [known.eq(1), count.eq(0), stored.eq(0), dear.eq(0)]
    with m.Elif(byte):
        m.d.sync += count.eq(count + (count != pixels + 8))
        for place, field in enumerate(head):
            with m.If(count == place):
                m.d.sync += field.eq(i.p.data)
        with m.If(count == 4):
            m.d.sync += stored.eq(image & dut.free)
        with m.If(in_pixels):
            m.d.sync += dear.eq(dear | (i.p.data > spec.input_max))
    length = Mux(image, pixels, 0)
    named = (count >= 2) & ((kind == Kind.HELLO) | image | (kind == Kind.RESET))
    fault = Mux(image & ~stored, Fault.BUSY, 0)
    fault = Mux(image & dear, Fault.PIXEL, fault)
    fault = Mux((count != length + 7) | (Cat(low, high) != length), Fault.LENGTH, fault)
    fault = Mux(~named, Fault.KIND, fault)
    fault = Mux((count >= 1) & (version != PROTOCOL), Fault.VERSION, fault)
    fault = Mux(~i.p.good, Fault.DAMAGED, fault)
    owed, accepted = end & ((fault != Fault.DAMAGED) | ~dut.crowded), end & (fault == 0) & job.ready
    bench.claim("a byte is taken unless all stands still", i.ready == ~dut.flush)
    bench.claim(
        "with each end, and with nothing else, an answer is owed, of a damaged frame if there is much room", ~known | (job.valid == owed)
    )
    bench.claim("or what is wrong", ~known | ~owed | (job.p.fault == fault))
    bench.claim(
        "to this request",
        ~known | ~owed | ~i.p.good | ((job.p.sequence == Mux(count >= 3, sequence, 0)) & (job.p.kind == Mux(named, kind, 0))),
    )
    bench.claim("an image is there once it is owed", ~known | (dut.commit == (accepted & image)))
    bench.claim("a reset too", ~known | (dut.reset == (accepted & (kind == Kind.RESET))))
    bench.claim(
        "an image's pixels are written, if its bank is free, and nothing else", ~known | (dut.write.en == (byte & in_pixels & stored))
    )
    place = (Mux(bank, pixels, 0) + pixel)[: len(dut.write.addr)]
    bench.claim(
        "each in its place", ~known | ~dut.write.en | ((dut.write.addr == place) & (dut.write.data == i.p.data[: len(dut.write.data)]))
    )
    committed, before = bench.before(dut.commit, "commit"), bench.before(bank, "bank")
    bench.claim("the bank changes with an image", ~known | (bank == before ^ (committed if banks == 2 else 0)))
    return bench


PROPERTIES = (
    Property(
        "deframer",
        "Deframer: from any state, behind a flag, the bytes of a frame of any length come out as they were, and an end that says whether "
        "the frame is good: the last two bytes are the CRC of the others, nothing was lost; offers stand",
        deframer,
    ),
    Property(
        "framing",
        "Framer, Deframer: both from any state, each body behind the first comes out as it went in, with two bytes more and a good end; "
        "from any state a byte is taken within 8 cycles of a willing receiver; offers stand",
        framing,
        engine="pdr",
        fast=False,
    ),
    *(
        Property(
            f"reader-{pixels}x{banks}",
            "RequestReader: from any state, behind the first frame's end, each frame is owed the answer that the protocol says, a good "
            f"image lies in its bank, each pixel in its place, and nothing else is written ({pixels} pixels, banks: {banks})",
            partial(reader, pixels, banks),
            engine="pdr",
        )
        for pixels, banks in ((1, 1), (2, 2), (3, 2))
    ),
)
