"""What is claimed of what makes events: the reader of an image's pixels, and the encoder of volleys."""

from __future__ import annotations

from functools import partial

from amaranth.hdl import Mux, Signal, Value

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Property
from rtl_gen.gates import encoder as encoders
from rtl_gen.gates import pixels as readers
from rtl_gen.gates.pixels import PixelSpec
from rtl_gen.gates.streams import VolleyFormat


def encoder(spec: VolleyFormat) -> Bench:
    """Any volleys, beside what of the last one that was taken has not left."""
    bench, dut = Bench(), encoders.SpikeEncoder(spec)
    m, i, o = bench.m, dut.volleys, dut.events
    bench.part("dut", dut)
    bench.drive(i, "i")
    bench.take(o, "o")
    bench.assume(~i.valid | ~i.p.empty | i.p.mark)
    for lane in range(spec.shape[0] - (spec.parts - 1) * spec.lanes, spec.lanes):
        bench.assume((i.p.part != spec.parts - 1) | (i.p.values[lane] == 0))  # a pixel's last chunk is padded

    enter, leave = i.valid & i.ready, o.valid & o.ready
    volley, some, mark = Signal(spec.layout), Signal(), Signal()  # what is not zero in it may leave, its mark must
    passed = Signal(range(spec.lanes + 1))  # its lanes before this one have left
    lane, event = Signal(range(spec.lanes)), Signal()
    value = Signal(Value.cast(o.p.value).shape())
    for number in reversed(range(spec.lanes)):
        with m.If(some & (volley.values[number] != 0) & (passed <= number)):
            m.d.comb += [event.eq(1), lane.eq(number), value.eq(volley.values[number])]
    more = Signal()  # beside what is offered
    m.d.comb += more.eq(event & (mark | (sum((volley.values[number] != 0) & (lane < number) for number in range(spec.lanes)) != 0)))
    with m.If(enter):
        m.d.sync += [volley.eq(i.payload), some.eq(~i.p.empty), mark.eq(i.p.mark), passed.eq(0)]
    with m.Elif(leave & event):
        m.d.sync += passed.eq(lane + 1)
    with m.Elif(leave):
        m.d.sync += mark.eq(0)
    bench.claim("an event for each value that is not zero, then the step's mark, at once, and nothing else", o.valid == (event | mark))
    bench.claim("the mark comes last", ~o.valid | (o.p.mark == ~event))
    bench.claim("events come in order of channels", ~o.valid | o.p.mark | (o.p.channel == volley.part * spec.lanes + lane))
    bench.claim("an event has its volley's pixel", ~o.valid | o.p.mark | ((o.p.x == volley.x) & (o.p.y == volley.y)))
    bench.claim("an event has its value", ~o.valid | o.p.mark | (o.p.value == value))
    bench.claim("a transfer has its step", ~o.valid | (Value.cast(o.p.step) == Value.cast(volley.step)))
    bench.claim("a volley is taken as the last of the one before leaves", i.ready == (~o.valid | (leave & ~more)))
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    return bench


def reader(spec: PixelSpec) -> Bench:
    """Images of any pixels and lengths; one pixel, any one, is followed."""
    bench, dut = Bench(), readers.PixelReader(spec)
    m, i, o, tickets = bench.m, dut.pixels, dut.events, dut.tickets
    bench.part("dut", dut)
    bench.drive(i, "i", stable=True)
    bench.take(o, "o")
    bench.take(tickets, "tickets")
    now = bench.free("now", 32)
    m.d.comb += dut.now.eq(now)
    enter, pay = i.valid & i.ready, tickets.valid & tickets.ready
    event, mark = o.valid & o.ready & ~o.p.mark, o.valid & o.ready & o.p.mark
    channels, height, width = spec.shape

    # Of the image that comes: beats so far, the pixel of each lane; of an image that has ended, its ticket.
    count = Signal(range(spec.beats + 1))
    came = Signal()  # some of it
    begin, end = enter & ~came, enter & i.p.last
    places = [Signal(range((spec.beats + 1) * spec.beat), name=f"place_{lane}") for lane in range(spec.beat)]
    bad, over, wrong, owed, start = Signal(), Signal(), Signal(), Signal(), Signal(32)
    m.d.comb += [place.eq(count * spec.beat + lane) for lane, place in enumerate(places)]
    m.d.comb += over.eq(sum((place < spec.size) & (i.p.data[lane] > spec.maximum) for lane, place in enumerate(places)) != 0)
    with m.If(enter):
        m.d.sync += [came.eq(~i.p.last), bad.eq(over | (bad & came)), count.eq(Mux(i.p.last, 0, count + (count != spec.beats)))]
    with m.If(begin):
        m.d.sync += start.eq(now)
    with m.If(end):
        m.d.sync += [owed.eq(1), wrong.eq(over | (bad & came) | (count != spec.beats - 1))]
    with m.Elif(pay):
        m.d.sync += owed.eq(0)
    paid = Signal(range(4))  # images whose ticket was taken, whose mark was not
    level, whole = Signal(range(4)), Signal(range(4))  # images begun, and ended, whose mark has not left
    m.d.sync += [paid.eq(paid + pay - mark), level.eq(level + begin - mark), whole.eq(whole + end - mark)]
    bench.claim("one ticket an image, once it has ended", ~tickets.valid | owed)
    bench.claim("an image begins once the one before has its ticket", ~begin | ~owed)
    bench.claim("a ticket tells of a wrong length, or a pixel that is too large", ~tickets.valid | (tickets.p.malformed == wrong))
    bench.claim("a ticket has the cycle of its image's first transfer", ~tickets.valid | (tickets.p.start == start))
    bench.claim("a mark comes behind its image's ticket", ~(o.valid & o.p.mark) | (paid != 0))
    bench.claim("an event is of an image that has begun", ~o.valid | (level != 0))
    bench.claim("busy while an image's mark has not passed", dut.busy == (level != 0))

    # Any one pixel of any one image, and whether it was told.
    seen, watched, told, known = Signal(), Signal(), Signal(), Signal()
    ahead, chosen, pixel = Signal(range(4)), Signal(range(max(spec.size, 2))), Signal(Value.cast(i.p.data[0]).shape())
    pick, choice = bench.free("pick") & begin & ~seen, bench.free("choice", range(max(spec.size, 2)))
    target, follows = Signal.like(chosen), Signal()
    bench.assume(choice < spec.size)
    m.d.comb += [target.eq(Mux(pick, choice, chosen)), follows.eq(pick | known)]
    with m.If(pick):
        m.d.sync += [seen.eq(1), watched.eq(1), chosen.eq(choice), ahead.eq(level - mark)]
    with m.Elif(watched & mark):
        m.d.sync += [ahead.eq(ahead - 1), watched.eq(ahead != 0)]
    with m.If(enter & follows):
        m.d.sync += known.eq(~i.p.last)
        for lane, place in enumerate(places):
            with m.If(place == target):
                m.d.sync += pixel.eq(Mux(i.p.data[lane] > spec.maximum, spec.maximum, i.p.data[lane]))
    at, first, last = Signal.like(chosen), Signal(init=1), Signal.like(chosen)  # where the event is, and the one before
    m.d.comb += at.eq((o.p.y * width + o.p.x) * channels + o.p.channel)
    its = watched & (ahead == 0)
    hit = o.valid & ~o.p.mark & (at == chosen)
    with m.If(event | mark):
        m.d.sync += [first.eq(mark), last.eq(at)]
    with m.If(event & its & hit):
        m.d.sync += told.eq(1)
    inside = (o.p.channel < channels) & (o.p.x < width) & (o.p.y < height)
    bench.claim("events are on the map, in raster order", ~o.valid | o.p.mark | (inside & (first | (at > last))))
    bench.claim("an event has its pixel's value, at most the maximum", ~(its & hit) | ((o.p.value == pixel) & (pixel != 0)))
    bench.claim("no pixel that is not zero is left out", ~(its & o.valid & o.p.mark) | (told == (pixel != 0)))
    bench.claim("an event's mark is the end of an image", ~(o.valid & o.p.mark) | (whole != 0))
    waits, still = Signal(range(4)), (i.valid | (whole != 0)) & o.ready & tickets.ready & ~(i.ready & i.valid) & ~o.valid & ~tickets.valid
    m.d.sync += waits.eq(Mux(still, waits + (waits != 3), 0))
    bench.claim("what is offered and taken moves something in two cycles", waits <= 1)
    bench.claim("an event's offer stands until it is taken", bench.stands(o, "o"))
    bench.claim("a ticket's offer stands until it is taken", bench.stands(tickets, "tickets"))
    return bench


def _encoder(name: str, what: str, spec: VolleyFormat) -> Property:
    claim = f"SpikeEncoder: an event for each value that is not zero, in order, with place, value and step, then the step's mark ({what})"
    return Property(f"encoder-{name}", claim, partial(encoder, spec), engine="pdr")


def _reader(name: str, what: str, spec: PixelSpec, fast: bool = False) -> Property:
    claim = f"PixelReader: each pixel that is not zero once, in raster order; the ticket before the mark; malformed images ({what})"
    return Property(f"pixels-{name}", claim, partial(reader, spec), engine="pdr", fast=fast)


PROPERTIES = (
    _encoder("1", "2 channels of 2 x 2, a lane, spikes", VolleyFormat((2, 2, 2), 1, Interval(-1, 1))),
    _encoder("2", "3 channels of 1 x 2, 2 lanes, spikes", VolleyFormat((3, 1, 2), 2, Interval(-1, 1))),
    _encoder("4", "7 neurons, 4 lanes, counts", VolleyFormat((7, 1, 1), 4, Interval(0, 3))),
    _reader("1", "1 pixel, beats of 4", PixelSpec((1, 1, 1), 2, 4), fast=True),
    _reader("5", "5 channels of 1 pixel, beats of 2", PixelSpec((5, 1, 1), 2, 2)),
    _reader("1x2x4", "1 channel of 2 x 4, beats of 2", PixelSpec((1, 2, 4), 2, 2)),
    _reader("2x2x2", "2 channels of 2 x 2, beats of 1", PixelSpec((2, 2, 2), 1, 1)),
    _reader("3x2x2", "3 channels of 2 x 2, beats of 2", PixelSpec((3, 2, 2), 1, 2)),
    _reader("3x1x2", "3 channels of 1 x 2, beats of 4", PixelSpec((3, 1, 2), 2, 4)),
)
