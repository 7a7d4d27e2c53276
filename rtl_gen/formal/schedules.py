"""What is claimed of wake and sleep: the conductor that plays an image's steps, and the read-out that judges and sums them."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

from amaranth.hdl import Array, Mux, Signal, Value, signed

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Property
from rtl_gen.gates import readout as readouts
from rtl_gen.gates import wake as conductors
from rtl_gen.gates.pixels import TICKET
from rtl_gen.gates.readout import ReadOutSpec
from rtl_gen.gates.streams import CurrentFormat, MapShape
from rtl_gen.gates.wake import ScheduleSpec, WakeSpec

PATIENCE = 2
"""Cycles in a row without an offer, where a step is due."""


def conductor(schedule: ScheduleSpec, chunks: int) -> Bench:
    """Any images, and steps that are judged in order, at any time; of one image, any one, one chunk is followed.

    The network behind is a counter of the steps that have left and are not judged: sleep steps left over from the sleep before, wake
    steps, sleep steps of the running sleep.
    """
    currents = CurrentFormat((chunks, 1, 1), 1, 2)
    bench, dut = Bench(), conductors.WakeSleep(WakeSpec(currents, schedule))
    m, i, o = bench.m, dut.i, dut.o
    bench.part("dut", dut)
    bench.drive(i, "i", stable=True)
    bench.take(o, "o")
    levels, margin, limit, depth = schedule.levels, schedule.margin, schedule.sleep_limit, schedule.depth
    most = depth + 1  # sleep steps that are not judged
    enter, leave = i.valid & i.ready, o.valid & o.ready

    # An image that comes has all its chunks, or is one empty transfer.
    place = Signal(range(chunks + 1))
    with m.If(enter):
        m.d.sync += place.eq(Mux(i.p.mark, 0, place + 1))
    bench.assume(~i.valid | Mux(i.p.empty, i.p.mark & (place == 0), i.p.mark == (place == chunks - 1)))

    # The steps that are due: chunk ``chunk`` of wake step ``wakes``, or sleep steps, of which ``sleeps`` of this sleep have left; on their
    # way are ``old`` sleep steps, ``awake`` wake steps, ``new`` sleep steps of the running sleep, of which ``judged`` have arrived.
    asleep, wakes, chunk, sleeps = Signal(), Signal(range(levels + 1), init=1), Signal(range(chunks)), Signal(range(limit + 1))
    old, awake, new, judged = Signal(range(most + 2)), Signal(range(levels + 1)), Signal(range(most + 2)), Signal(range(limit + 1))
    settled, final = Signal(), wakes == levels
    woken, late, slept = leave & o.p.mark & o.p.step.wake, leave & ~o.p.step.wake & ~asleep, leave & ~o.p.step.wake & asleep
    passes = bench.free("passes") & ((old + awake + new + late + woken + slept) != 0)
    of_old = passes & ((old + late) != 0)
    of_awake = passes & ~of_old & ((awake + woken) != 0)
    of_new = passes & ~of_old & ~of_awake
    if limit:
        m.d.comb += settled.eq(of_new & (bench.free("silent") | (judged == limit - 1)))
    else:
        m.d.comb += settled.eq(of_awake & (asleep | woken) & final & (awake + woken == 1))
    m.d.comb += [dut.settled.eq(settled), dut.slept.eq(passes & ~of_awake)]
    block_ends = Array([step == levels or (limit != 0 and step % margin == 0) for step in range(levels + 1)])[wakes]
    with m.If(woken & block_ends):
        m.d.sync += asleep.eq(1)
    with m.Elif(woken):
        m.d.sync += wakes.eq(wakes + 1)
    with m.If(leave & o.p.step.wake):
        m.d.sync += chunk.eq(Mux(o.p.mark, 0, chunk + 1))
    m.d.sync += [awake.eq(awake + woken - of_awake), old.eq(old + late - of_old)]
    m.d.sync += [new.eq(new + slept - of_new), judged.eq(judged + of_new), sleeps.eq(sleeps + slept)]
    spare, last = Signal(), Signal()  # a sleep step is offered that was when the sleep ended, ``last`` if it was the image's last
    with m.If(settled):
        m.d.sync += [asleep.eq(0), wakes.eq(Mux(final, 1, wakes + 1)), sleeps.eq(0), judged.eq(0)]
        m.d.sync += [old.eq(new + slept - of_new), new.eq(0), spare.eq(o.valid & ~o.ready), last.eq(final)]
    with m.Elif(leave):
        m.d.sync += spare.eq(0)
    whole, done = Signal(range(4)), settled & final  # images that are there and not played to their end
    m.d.sync += whole.eq(whole + (enter & i.p.mark) - done)

    # One chunk of one image.
    seen, watched, known = Signal(), Signal(), Signal()
    ahead, chosen, current, blank = Signal(range(3)), Signal(range(chunks)), Signal(2), Signal()
    pick, choice = enter & (place == 0) & ~seen & bench.free("pick"), bench.free("choice", range(chunks))
    bench.assume(choice < chunks)
    with m.If(pick):
        m.d.sync += [seen.eq(1), watched.eq(1), chosen.eq(choice), ahead.eq(whole - done), known.eq(~i.p.mark), blank.eq(i.p.empty)]
    with m.Elif(watched & done):
        m.d.sync += [ahead.eq(ahead - 1), watched.eq(ahead != 0)]
    with m.If(enter & known & i.p.mark):
        m.d.sync += known.eq(0)
    with m.If(enter & (pick | known) & (place == Mux(pick, choice, chosen))):
        m.d.sync += current.eq(i.p.x[0])

    wake, its = o.valid & o.p.step.wake, o.valid & o.p.step.wake & watched & (ahead == 0)
    bench.claim("wake steps come of an image that is there, and in no sleep", ~wake | ((whole != 0) & ~asleep & ~spare))
    bench.claim("sleep steps in a sleep only, but for one that was offered as it ended", ~o.valid | o.p.step.wake | asleep | spare)
    bench.claim("a sleep is not too long", ~o.valid | o.p.step.wake | spare | (sleeps < max(limit, 1)) & (limit != 0))
    bench.claim("sleep steps ahead of their verdict", ~o.valid | o.p.step.wake | (old + new < most))
    bench.claim("a sleep step is empty", ~o.valid | o.p.step.wake | (o.p.mark & o.p.empty & ~o.p.step.first))
    bench.claim("the first step is told", ~wake | (o.p.step.first == (wakes == 1)))
    bench.claim("it is told that no wake step follows", ~o.valid | (o.p.step.final == Mux(spare, last, final)))
    bench.claim("no neuron has spiked yet", ~o.valid | ~o.p.step.active)
    bench.claim("a wake step is empty if the image is", ~its | (o.p.empty == blank))
    bench.claim("a wake step has all its chunks", ~its | (o.p.mark == (blank | (chunk == chunks - 1))))
    bench.claim("each wake step has the image's current", ~its | blank | (chunk != chosen) | (o.p.x[0] == current.as_signed()))
    bench.claim("an image is taken unless two are there", i.ready == (whole < 2))
    bench.claim("busy while an image is there", dut.busy == (whole != 0))
    waits = Signal(range(PATIENCE + 2))
    due = Mux(asleep, (sleeps < limit) & (old + new < most), whole != 0)
    m.d.sync += waits.eq(Mux(o.valid | ~due | settled, 0, waits + (waits <= PATIENCE)))
    bench.claim("the next step is offered in time", waits <= PATIENCE)
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    return bench


def readout(spec: ReadOutSpec, sums_only: bool) -> Bench:
    """Any images of any steps that a network may send: after a wake step another, or a sleep until it is settled and some silent steps
    more. With ``sums_only`` the claims are those on sums and arg max, else all others."""
    bench, dut = Bench(), readouts.ReadOut(spec)
    m, i, o, tickets = bench.m, dut.currents, dut.result, dut.tickets
    bench.part("dut", dut)
    bench.drive(i, "i", stable=True)
    bench.take(o, "o")
    now = bench.free("now", 32)
    m.d.comb += [dut.now.eq(now), Value.cast(tickets.payload).eq(bench.free("ticket", TICKET.size)), tickets.valid.eq(1)]
    schedule, currents = spec.schedule, spec.currents
    levels, limit = schedule.levels, schedule.sleep_limit
    channels, height, width = currents.shape
    size, lanes, parts, bits = channels * height * width, currents.lanes, currents.parts, spec.total.signed_bits
    enter, leave, step = i.valid & i.ready, o.valid & o.ready, i.p.step
    passes = enter & i.p.mark

    # What comes. A step has all its chunks, or is one empty transfer.
    chunk, wakes, asleep, over = Signal(range(currents.chunks)), Signal(range(levels + 1)), Signal(), Signal()
    slept, slept_in_all = Signal(range(limit + 1)), Signal(16)
    begun = Signal.like(Value.cast(step)[:3], name="begun")
    m.d.sync += begun.eq(Value.cast(step)[:3])
    with m.If(enter):
        m.d.sync += chunk.eq(Mux(i.p.mark, 0, chunk + 1))
    bench.assume(~i.valid | Mux(i.p.empty, i.p.mark & (chunk == 0), i.p.mark == (chunk == currents.chunks - 1)))
    bench.assume(~i.valid | (chunk == 0) | (Value.cast(step)[:3] == begun))
    follows = Mux(wakes == levels, 1, wakes + 1)  # this wake step, if it is one
    may_wake = ~asleep & (wakes != levels) | over if limit else 1
    bench.assume(~i.valid | Mux(step.wake, may_wake, (wakes != 0) & (asleep | (limit != 0))))
    bench.assume(~i.valid | (step.first == (step.wake & (follows == 1))))
    bench.assume(~i.valid | (step.final == (Mux(step.wake, follows, wakes) == levels)))
    some = Signal()  # of this step, some current is not zero
    current = ~i.p.empty & (Value.cast(i.p.x) != 0)
    silent = ~step.wake & ~step.active
    with m.If(enter):
        m.d.sync += some.eq(~i.p.mark & (some | current))
    bench.assume(~i.valid | ~i.p.mark | ~silent | ~(some | current))
    bench.assume(~i.valid | ~i.p.mark | step.wake | ~over | silent)
    settled = passes & ~step.wake & ~over & (silent | (slept == limit - 1)) if limit else passes & step.wake & step.final
    with m.If(passes & step.wake):
        m.d.sync += [wakes.eq(follows), asleep.eq(0), over.eq(0), slept.eq(0)]
    with m.Elif(passes):
        m.d.sync += [asleep.eq(1), over.eq(over | settled), slept.eq(slept + ~over)]

    # What must come of it.
    done = settled & step.final
    total = slept_in_all + (~step.wake & ~over)
    with m.If(passes):
        m.d.sync += slept_in_all.eq(Mux(done, 0, total))
    sums = [Signal(signed(bits), name=f"sum_{place}") for place in range(size)]
    for place, acc in enumerate(sums):
        pixel, channel = divmod(place, channels)
        at = pixel * parts + channel // lanes
        start = Mux(step.first, levels * spec.biases[channel], acc)
        with m.If(enter & (i.p.empty | (chunk == at))):
            m.d.sync += acc.eq(start + Mux(i.p.empty, 0, i.p.x[channel % lanes]))
    best: Any = 0
    for place in range(1, size):
        best = Mux(sums[place] > Array(sums)[best], place, best)
    status, cycles = Signal(32), Signal(32)
    sending, word = Signal(), Signal(range(size + 3))  # of a result
    tail, behind = Signal(32), Signal()  # its last word, for which the next image does not wait
    unsettled = ~silent if schedule.sleep is None else 0
    with m.If(done):
        m.d.sync += [sending.eq(1), word.eq(0), cycles.eq(now - tickets.p.start)]
        m.d.sync += status.eq(total | tickets.p.malformed << 30 | unsettled << 31)
    with m.If(leave & behind):
        m.d.sync += behind.eq(0)
    with m.Elif(leave):
        m.d.sync += word.eq(word + 1)
        with m.If(word == size + 1):
            m.d.sync += [sending.eq(0), tail.eq(cycles), behind.eq(1)]
    if sums_only:
        at = o.valid & ~behind
        bench.claim("a result: sums in wire order", ~at | (word >= size) | (o.p.data.as_signed() == Array(sums)[word]))
        bench.claim("a result: the place of the largest sum, the lowest of equals", ~at | (word != size) | (o.p.data == best))
        return bench
    bench.claim("a result comes of an image that has ended, once", ~o.valid | sending | behind)
    bench.claim("a result: the status", ~o.valid | behind | (word != size + 1) | (o.p.data == status))
    bench.claim("a result: cycles from its ticket's start", ~o.valid | ~behind | (o.p.data == tail))
    bench.claim("a result ends in its cycles", ~o.valid | (o.p.last == behind))
    bench.claim("a result leaves before the next image's steps, but for its last word", ~enter | ~sending)
    bench.claim("a sleep is over at its first silent step, or at the limit", dut.settled == settled)
    bench.claim("each sleep step is told", dut.slept == (passes & ~step.wake))
    bench.claim("an image takes one ticket, at its end", tickets.ready == done)
    bench.claim("an error is told of the last image", dut.error == status[30:].any())
    bench.claim("busy while a result leaves", ~o.valid | dut.busy)
    deaf, waits = Signal(range(2 * currents.chunks + 1)), Signal(range(5))
    m.d.sync += deaf.eq(Mux(enter | ~i.valid | sending, 0, deaf + (deaf != 2 * currents.chunks)))
    m.d.sync += waits.eq(Mux(o.valid | ~sending, 0, waits + (waits != 4)))
    bench.claim("a current is taken in time", deaf < 2 * currents.chunks)
    bench.claim("a word is offered in time", waits <= 3)
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    return bench


def _wake(name: str, what: str, schedule: ScheduleSpec, chunks: int, fast: bool = True) -> Property:
    claim = (
        "WakeSleep: T wake steps of the image's current in blocks of the margin, each followed by sleep steps until settled or at the "
        f"limit, at most depth + 1 ahead; flags; the next offer within {PATIENCE + 1} cycles ({what})"
    )
    return Property(f"wake-{name}", claim, partial(conductor, schedule, chunks), engine="pdr", fast=fast)


def _readout(name: str, what: str, spec: ReadOutSpec) -> Iterator[Property]:
    sums = "ReadOut: each sum is T biases and all currents of its image, in wire order, then the arg max, the lowest of equals"
    times = (
        "ReadOut: a sleep is over at its first silent step or at the limit; one result of one length an image, with status and cycles, a "
        "word within 4 cycles"
    )
    yield Property(f"readout-{name}-sums", f"{sums} ({what})", partial(readout, spec, True), engine="pdr", fast=False)
    yield Property(f"readout-{name}", f"{times} ({what})", partial(readout, spec, False), engine="pdr", fast=False)


def _spec(shape: MapShape, lanes: int, schedule: ScheduleSpec, biases: tuple[int, ...]) -> ReadOutSpec:
    """Currents of 2 bits, sums of 3."""
    return ReadOutSpec(CurrentFormat(shape, lanes, 2), schedule, biases, Interval(-4, 3))


PROPERTIES = (
    _wake("2", "T = 2, one sleep, depth 1, 2 chunks", ScheduleSpec(2, 2, None, 3, 1), 2),
    _wake("3", "T = 3, margin 2, depth 2, a chunk", ScheduleSpec(3, 2, None, 4, 2), 1),
    _wake("limit", "T = 2, margin 1, one sleep step, depth 2, 3 chunks", ScheduleSpec(2, 1, 1, 9, 2), 3),
    _wake("awake", "T = 3, margin 2, no sleep, depth 1, 2 chunks", ScheduleSpec(3, 2, 0, 9, 1), 2),
    *_readout("2", "2 classes, T = 2, a sleep until silence", _spec((2, 1, 1), 1, ScheduleSpec(2, 2, None, 3, 1), (1, -2))),
    *_readout("3", "3 classes, 2 lanes, T = 1, a sleep of 2 steps", _spec((3, 1, 1), 2, ScheduleSpec(1, 1, 2, 9, 1), (1, 0, -3))),
    *_readout("map", "2 channels of 1 x 2, T = 3, no sleep", _spec((2, 1, 2), 1, ScheduleSpec(3, 3, 0, 9, 1), (0, 1))),
    *_readout("pad", "1 channel of 1 x 2, 2 lanes, T = 1, no sleep", _spec((1, 1, 2), 2, ScheduleSpec(1, 1, 0, 9, 1), (-1,))),
)
