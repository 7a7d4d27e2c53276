"""What is claimed of the parts of streams: no transfer is lost, doubled, changed or overtaken, whatever the back-pressure."""

from __future__ import annotations

from typing import Any

from amaranth.hdl import Cat, Mux, Signal, Value, unsigned
from amaranth.lib import stream

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Buffered, Inside, Property, Watch
from rtl_gen.gates import replay as replay_gates
from rtl_gen.gates import streams
from rtl_gen.gates.walk import CellFormat, Geometry

WORD = stream.Signature(unsigned(4))


def _in_skid(bench: Bench, watch: Watch, skid: Inside) -> Any:
    """Claims that a skid has the first transfers of ``watch`` to leave, and where; returns how many it has."""
    held, spare, o = skid["held"], skid["spare"], skid.component.o
    bench.invariant("skid: the spare is used last", ~held | o.valid)
    bench.invariant("skid: the first to leave", watch.kept(0, o.payload) | ~o.valid)
    bench.invariant("skid: the second to leave", watch.kept(1, spare) | ~held)
    return o.valid + held


def skid() -> Bench:
    bench, dut = Bench(), streams.Skid(WORD)
    inside = bench.part("dut", dut)
    bench.drive(dut.i, "i")
    bench.take(dut.o, "o")
    watch = Watch(bench, dut.i, dut.o, 2)
    bench.invariant("all that was taken in is there", watch.level == _in_skid(bench, watch, inside))
    bench.claim("what is there is offered at once", (watch.level == 0) | dut.o.valid)
    bench.claim("there is room unless two wait", dut.i.ready | (watch.level == 2))
    return bench


def queue(depth: int) -> Bench:
    bench, dut = Bench(), streams.Queue(WORD, depth)
    inside = bench.part("dut", dut)
    fifo = inside.child("fifo")
    bench.drive(dut.i, "i")
    bench.take(dut.o, "o")
    watch = Watch(bench, dut.i, dut.o, depth + 2)
    skid = _in_skid(bench, watch, inside.child("skid"))
    level = fifo.component.level
    if depth > 1:
        waits = Buffered(bench, fifo)
        kept = watch.is_in(waits.word(watch.ahead - skid))
    else:
        kept = watch.is_in(fifo.component.r_data)
    bench.invariant("the FIFO is in order", ~watch.waiting | (watch.ahead < skid) | kept)
    bench.invariant("all that was taken in is there", watch.level == skid + level)
    slow = bench.before(bench.before((watch.level != 0) & ~dut.o.valid, "idle") & ~dut.o.valid & (watch.level != 0), "idle_2")
    bench.claim("what is there is offered within three cycles", ~slow | dut.o.valid)
    bench.claim("there is room unless depth - 1 wait, or one", dut.i.ready | (watch.level >= max(depth - 1, 1)))
    return bench


def fork(ways: int) -> Bench:
    bench, dut = Bench(), streams.Fork(WORD, ways)
    m, i = bench.m, dut.i
    inside = bench.part("dut", dut)
    bench.drive(i, "i", stable=True)
    enter = i.valid & i.ready
    for way, o in enumerate(dut.outputs):
        bench.take(o, f"o_{way}")
        has, leave = Signal(name=f"has_{way}"), o.valid & o.ready  # this way has had the transfer that is offered
        m.d.sync += has.eq((has | leave) & ~enter)
        bench.claim(f"way {way}: not twice, and nothing that is not offered", ~leave | (i.valid & ~has))
        bench.claim(f"way {way}: as it was", ~o.valid | (Value.cast(o.payload) == Value.cast(i.payload)))
        bench.claim(f"way {way}: not left out", ~enter | has | leave)
        bench.claim(f"way {way}: does not wait for the others", ~i.valid | has | o.valid)
        bench.claim(f"way {way}: an offer stands until it is taken", bench.stands(o, f"o_{way}"))
        bench.invariant(f"way {way}: what it remembers", inside["taken"][way] == has)
    bench.claim("the next is offered once all have taken", ~i.valid | (i.ready == inside["done"].all()))
    return bench


def throttle() -> Bench:
    bench, dut = Bench(), streams.Throttle(WORD)
    i, o, stall = dut.i, dut.o, bench.free("stall")
    bench.part("dut", dut)
    bench.m.d.comb += dut.stall.eq(stall)
    bench.drive(i, "i", stable=True)
    bench.take(o, "o")
    bench.claim("what is taken in is given out, once", (i.valid & i.ready) == (o.valid & o.ready))
    bench.claim("as it was", ~o.valid | (Value.cast(o.payload) == Value.cast(i.payload)))
    bench.claim("nothing is made up", ~o.valid | i.valid)
    bench.claim("it passes on what it has when it is not stalled", stall | (o.valid == i.valid))
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    return bench


def current_sum(chunks: int, lanes: int = 2, width: int = 3) -> Bench:
    spec = streams.CurrentFormat((lanes * chunks, 1, 1), lanes, width)
    bench, dut = Bench(), streams.CurrentSum(spec)
    m, inside = bench.m, bench.part("dut", dut)
    skid = inside.child("skid")
    o, sides = skid.component.i, (dut.i_0, dut.i_1)
    bench.take(dut.o, "o")
    places = [Signal(range(chunks), name=f"place_{side}") for side in range(2)]  # of the chunk that a side offers
    fires = [side.valid & side.ready for side in sides]
    for index, (side, place, fire) in enumerate(zip(sides, places, fires, strict=True)):
        bench.drive(side, f"i_{index}", stable=True)
        bench.assume(~side.valid | (side.p.mark == (side.p.empty | (place == chunks - 1))))
        bench.assume(~side.valid | ~side.p.empty | (place == 0))
        with m.If(fire):
            m.d.sync += place.eq(Mux(side.p.mark, 0, place + 1))
    out, enter = Signal(range(chunks)), o.valid & o.ready  # the place of the sum's chunk
    with m.If(enter):
        m.d.sync += out.eq(Mux(o.p.mark, 0, out + 1))
    empty = dut.i_0.p.empty & dut.i_1.p.empty
    for index, (side, place, fire) in enumerate(zip(sides, places, fires, strict=True)):
        bench.claim(f"side {index}: taken with a sum that is given on only", ~fire | enter)
        bench.claim(f"side {index}: a chunk is taken with its sum", ~enter | side.p.empty | fire)
        bench.claim(f"side {index}: an empty step is taken with the other's end", ~enter | ~side.p.empty | (fire == o.p.mark))
        bench.claim(f"side {index}: chunks of one place are added", ~enter | side.p.empty | (place == out))
        bench.invariant(f"side {index}: its place, between steps of the other", (place == out) | (place == 0))
    bench.invariant("sides that are under way are at one place", (places[0] == 0) | (places[1] == 0) | (places[0] == places[1]))
    bench.invariant("a side that is behind offers an empty step", _behind(sides, places, out))
    bench.claim("a step ends with its last chunk", ~enter | (o.p.mark == (empty | (out == chunks - 1))))
    bench.claim("the sum of two empty steps is one", ~enter | (o.p.empty == empty))
    for lane in range(lanes):
        total = sum(Mux(side.p.empty, 0, side.p.x[lane]) for side in sides)
        bench.claim(f"lane {lane}: the sum", ~enter | (Value.cast(o.p.x[lane])[:width] == Value.cast(total)[:width]))
    bench.claim("two offers and room make a sum", enter | ~(dut.i_0.valid & dut.i_1.valid & o.ready))
    watch = Watch(bench, o, dut.o, 2)
    bench.invariant("all sums are there", watch.level == _in_skid(bench, watch, skid))
    return bench


def _behind(sides: Any, places: Any, out: Any) -> Any:
    """Where a sum is under way, a side at place 0 offers the empty step that it adds."""
    one, two = sides
    return (out == 0) | (
        ((places[0] == out) | (one.valid & one.p.empty))
        & ((places[1] == out) | (two.valid & two.p.empty))
        & ((places[0] == out) | (places[1] == out))
    )


def replay(depth: int, passes: int) -> Bench:
    format = CellFormat(Geometry((depth, 1, 1), 4, flat=True), 2, Interval(-1, 1))
    bench, dut = Bench(), replay_gates.Replay(replay_gates.ReplaySpec(format, passes))
    m, i, o = bench.m, dut.i, dut.o
    inside = bench.part("dut", dut)
    bench.drive(i, "i", stable=True)
    bench.take(o, "o")
    names = ("row", "set", "value")

    def event(payload: Any) -> Value:
        return Cat(payload[name] for name in names)

    enter, leave = i.valid & i.ready, o.valid & o.ready
    size, place = Signal(range(depth + 1)), Signal(range(depth + 1))  # events of the cell so far; place of what is sent, in its pass
    turn = Signal(range(passes + 1))  # passes that are complete
    cell = Signal(format.layout)
    bench.assume(~i.valid | i.p.mark | (size < depth))
    bench.assume(~i.valid | ~i.p.mark | ~i.p.empty | (size == 0))
    repeat = turn != 0
    with m.If(enter):
        m.d.sync += size.eq(size + ~i.p.mark)
        with m.If(i.p.mark):
            m.d.sync += cell.eq(i.payload)
    with m.If(leave):
        m.d.sync += place.eq(Mux(o.p.mark, 0, place + 1))
        with m.If(o.p.mark & ~(~repeat & o.p.empty)):
            m.d.sync += turn.eq(turn + 1)
            with m.If(turn == passes - 1):
                m.d.sync += [turn.eq(0), size.eq(0)]

    watched, where, kept = Signal(), Signal(range(depth)), Signal(len(event(i.p)))  # an event of this cell
    with m.If(enter & ~i.p.mark & bench.free("pick")):
        m.d.sync += [watched.eq(1), where.eq(size), kept.eq(event(i.p))]
    with m.If(leave & o.p.mark & (turn == passes - 1)):
        m.d.sync += watched.eq(0)

    bench.claim("the first pass is what comes", repeat | ((enter == leave) & (~o.valid | (Value.cast(o.payload) == Value.cast(i.payload)))))
    bench.claim("nothing is taken in while a cell is repeated", ~repeat | ~enter)
    bench.claim("a repeated pass is as long as the cell", ~(repeat & o.valid) | (o.p.mark == (place == size)))
    bench.claim("each event again at its place", ~(repeat & o.valid & watched & (place == where)) | (event(o.p) == kept))
    same = Cat(Value.cast(cell[name]) == Value.cast(o.p[name]) for name in format.layout.members if name not in names).all()
    bench.claim("a pass ends in the cell's mark", ~(repeat & o.valid & o.p.mark) | same)
    bench.claim("a pass stands still for its receiver only", ~repeat | o.valid)
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))

    count, item = inside["count"], inside["item"]
    state = inside["passes"]
    bench.invariant("counters: events", (count == size) & (size <= depth))
    bench.invariant("counters: passes", (turn < passes) & (~repeat | (state == turn)))
    bench.invariant("counters: the item", ~repeat | ((item == place) & (place <= size)))
    bench.invariant("between cells the item is 0", repeat | (place == size))
    bench.invariant("what is watched is of this cell", ~watched | (where < size))
    word = inside.word("events", Mux(watched, where, 0))
    stored = event(inside["kept"](word))
    bench.invariant("the memory keeps it", ~watched | (stored == kept))
    bench.invariant("the memory gives it", ~(repeat & watched & (item == where)) | (event(inside["read"].data) == kept))
    bench.invariant("its state", repeat == inside.state)
    bench.invariant("the mark that is kept", ~repeat | ((Value.cast(inside["cell"]) == Value.cast(cell)) & cell.mark & ~cell.empty))
    return bench


_STREAM = "nothing lost, doubled, changed or overtaken under any back-pressure; offers stand; counters hold"


def _queue(depth: int, fast: bool = True) -> Property:
    return Property(f"queue-{depth}", f"Queue: {_STREAM}", lambda: queue(depth), fast=fast)


def _fork(ways: int) -> Property:
    return Property(f"fork-{ways}", "Fork: each way gets each transfer once, in order, without waiting for others", lambda: fork(ways))


def _sum(chunks: int) -> Property:
    return Property(
        f"sum-{chunks}", f"CurrentSum: chunks of one place add up, empty steps add nothing; {_STREAM}", lambda: current_sum(chunks)
    )


def _replay(depth: int, passes: int) -> Property:
    name = f"replay-{depth}x{passes}"
    return Property(name, f"Replay: {passes} passes of the same events in order, each ending in the mark", lambda: replay(depth, passes))


PROPERTIES = (
    Property("skid", f"Skid: {_STREAM}", skid),
    _queue(1),
    _queue(2),
    _queue(5),
    _queue(16, fast=False),
    _fork(2),
    _fork(3),
    Property("throttle", "Throttle: passes on what comes, takes no offer back", throttle),
    _sum(1),
    _sum(3),
    _replay(1, 2),
    _replay(3, 3),
)
