"""What is claimed of the UART: bits on the wire and bytes are the same thing, whatever state an upset has left."""

from __future__ import annotations

from functools import partial

from amaranth.hdl import Array, Const, Mux, Signal, Value

from rtl_gen.formal.bench import Bench, Inside, Property
from rtl_gen.gates import uart


def receiver_rests(divisor: int) -> Bench:
    """From any state, eleven bits of high line."""
    bench, dut = Bench(), uart.UartReceiver(uart.UartSpec(divisor * 1e6, 1_000_000))
    inside = bench.part("dut", dut, any_start=True)
    bench.take(dut.bytes, "o")
    bench.m.d.comb += dut.rx.eq(1)
    since = Signal(range(11 * divisor + 1))
    with bench.m.If(since != 11 * divisor):
        bench.m.d.sync += since.eq(since + 1)
    bench.claim("it waits for a start bit", (since != 11 * divisor) | _rests(inside))
    return bench


def _rests(receiver: Inside) -> Value:
    """It waits for a start bit."""
    return (receiver.state == 0) & receiver["rx"]


def receiver(divisor: int) -> Bench:
    """From any state in which it waits for a start bit (`receiver_rests`): bytes, back to back or not, on a line that is right in the
    middle of each bit: up to ``slack`` cycles before and after where an edge belongs it may be anything."""
    bench, dut = Bench(), uart.UartReceiver(uart.UartSpec(divisor * 1e6, 1_000_000))
    m, o = bench.m, dut.bytes
    inside = bench.part("dut", dut, any_start=True)
    bench.take(o, "o")
    begun: Value = bench.before(1, "begun")
    bench.assume((begun & bench.before(begun, "begun_2")) | _rests(inside))  # for as long as the line takes to ``rx``

    # The sender.
    slack = divisor // 2 - 1
    sending, bit, cycle, byte = Signal(), Signal(range(10)), Signal(range(divisor)), Signal(8)
    last, ready, begins = Signal(), Signal(), Signal()
    level = Array([Const(0, 1), *byte, Const(1, 1)])[bit]
    loose = ((cycle < slack) & (bit != 0)) | ((cycle >= divisor - slack) & (bit != 9))
    m.d.comb += [
        last.eq((bit == 9) & (cycle == divisor - 1)),
        ready.eq(~sending | ((bit == 9) & (cycle >= divisor - 1 - slack))),
        begins.eq(ready & bench.free("start")),
        dut.rx.eq(~sending | Mux(loose, bench.free("noise"), level)),
    ]
    with m.If(begins):
        m.d.sync += [sending.eq(1), bit.eq(0), cycle.eq(0), byte.eq(bench.free("byte", 8))]
    with m.Elif(sending):
        m.d.sync += cycle.eq(cycle + 1)
        with m.If(cycle == divisor - 1):
            m.d.sync += [cycle.eq(0), bit.eq(bit + 1)]
        with m.If(last):
            m.d.sync += [sending.eq(0), bit.eq(0)]

    # What is due: a byte, a fixed time after its stop bit begins, unless the one before is untaken then.
    due, stop, begin = Signal(), Signal(), (bit == 9) & (cycle == 0) & sending
    m.d.comb += stop.eq(begin)
    for stage in range(divisor // 2 + 2):
        stop = bench.before(stop, f"stop_{stage}")
    waiting, expected, sent = Signal(), Signal(uart.RECEIVED), Signal(8)
    known, stale, lost = Signal(), Signal(init=1), Signal()
    there = Mux(begun, waiting, o.valid)
    with m.If(begin):
        m.d.sync += sent.eq(byte)
    m.d.sync += [waiting.eq(there & ~o.ready), stale.eq(stale & there & ~o.ready)]
    with m.If(stop):
        m.d.sync += [known.eq(1), lost.eq(there & ~o.ready)]
        with m.If(~(there & ~o.ready)):
            m.d.sync += [waiting.eq(1), stale.eq(0), expected.data.eq(sent), expected.gap.eq(Mux(known, lost, o.p.gap)), due.eq(known)]
    bench.claim("a byte is offered in the middle of its stop bit, until it is taken, and nothing else", ~begun | (o.valid == waiting))
    bench.claim("as it was sent", ~waiting | stale | (o.p.data == expected.data))
    bench.claim("with word of whether one before was lost", ~waiting | stale | ~due | (o.p.gap == expected.gap))
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    return bench


def transmitter(divisor: int) -> Bench:
    """The line beside a model of it, from any state."""
    bench, dut = Bench(), uart.UartTransmitter(uart.UartSpec(divisor * 1e6, 1_000_000))
    m, i = bench.m, dut.bytes
    bench.part("dut", dut, any_start=True)
    bench.drive(i, "i")
    most = 11 * divisor + (1 << (divisor - 1).bit_length())  # cycles for what it was in, and for a byte
    waits, known, first = Signal(range(most + 2)), Signal(), Signal()
    sending, wait, bit, cycle, byte = Signal(), Signal(), Signal(range(10)), Signal(range(divisor)), Signal(8)
    fire, last = i.valid & i.ready, sending & ~wait & (bit == 9) & (cycle == divisor - 1)
    with m.If(wait):
        m.d.sync += wait.eq(0)
    with m.Elif(sending):
        m.d.sync += cycle.eq(cycle + 1)
        with m.If(cycle == divisor - 1):
            m.d.sync += [cycle.eq(0), bit.eq(bit + 1)]
        with m.If(last):
            m.d.sync += [sending.eq(0), bit.eq(0)]
    with m.If(fire):
        m.d.sync += [first.eq(~known), known.eq(1), sending.eq(1), wait.eq(1), bit.eq(0), cycle.eq(0), byte.eq(i.payload)]
    m.d.sync += waits.eq(Mux(fire | ~i.valid, 0, waits + 1))
    line = Mux(sending & ~wait, Array([Const(0, 1), *byte, Const(1, 1)])[bit], 1)
    bench.claim("start, eight data bits, the lowest first, and stop, each as long as a bit is", ~known | (first & wait) | (dut.tx == line))
    bench.claim("a byte is taken when the one before has gone", ~known | ~fire | ~sending | last)
    bench.claim("and then at once", ~known | ~i.valid | (sending & ~last) | fire)
    bench.claim("from any state one is taken in time", waits <= most)
    return bench


PROPERTIES = (
    *(
        Property(
            f"uart-rests-{divisor}",
            f"UartReceiver: from any state, after eleven bits of high line it waits for a start bit ({divisor} cycles a bit)",
            partial(receiver_rests, divisor),
            engine="pdr",
            fast=divisor != 10,
        )
        for divisor in (4, 5, 10)
    ),
    *(
        Property(
            f"uart-receiver-{divisor}",
            "UartReceiver: from any state that waits for a start bit, bytes are received as they were, once, if edges are "
            f"at most {divisor // 2 - 1} of {divisor} cycles off; one that finds the one before untaken is lost, and told of; offers stand",
            partial(receiver, divisor),
            engine="pdr",
            fast=False,
        )
        for divisor in (4, 5, 7)
    ),
    *(
        Property(
            f"uart-transmitter-{divisor}",
            "UartTransmitter: from any state of its registers, a byte is taken in time, and the line is the bits of those taken, in order, "
            f"each {divisor} cycles",
            partial(transmitter, divisor),
            engine="pdr",
            fast=divisor == 4,
        )
        for divisor in (4, 5, 7)
    ),
)
