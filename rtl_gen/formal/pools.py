"""What is claimed of pools: each window's sum or maximum, once, in order; and what changed since the step before."""

from __future__ import annotations

from functools import partial
from typing import Any

from amaranth.hdl import Array, Mux, Signal, Value

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Property
from rtl_gen.gates import pools
from rtl_gen.gates.pools import PoolSpec
from rtl_gen.gates.streams import VolleyFormat

SPIKES, COUNTS = Interval(-1, 1), Interval(0, 2)


class Volleys:
    """Any dense steps into ``port``, which may be empty in sleep.

    Members
    -------
    begin, end: the volley that is taken is a step's first, or last.
    """

    def __init__(self, bench: Bench, port: Any, format: VolleyFormat) -> None:
        m, p = bench.m, port.p
        _, height, width = format.shape
        bench.drive(port, "i", stable=True)
        place, flags = Signal(range(format.chunks)), Signal(3)
        enter = port.valid & port.ready
        self.begin, self.end = enter & (place == 0), enter & p.mark
        with m.If(enter):
            m.d.sync += [place.eq(Mux(p.mark, 0, place + 1)), flags.eq(Value.cast(p.step)[:3])]
        bench.assume(~port.valid | p.empty | (place == (p.y * width + p.x) * format.parts + p.part))
        bench.assume(~port.valid | p.empty | ((p.x < width) & (p.y < height) & (p.part < format.parts)))
        bench.assume(~port.valid | (p.mark == (p.empty | (place == format.chunks - 1))))
        bench.assume(~port.valid | ~p.empty | ((place == 0) & ~p.step.wake & ~p.step.first))
        bench.assume(~port.valid | (place == 0) | (flags == Value.cast(p.step)[:3]))
        for value in p.values:
            bench.assume((value >= format.value.lo) & (value <= format.value.hi))


def pool(spec: PoolSpec) -> Bench:
    """One window of one step, any ones, is followed."""
    given, told = spec.volleys, spec.output
    bench, dut = Bench(), pools.WindowPool(spec)
    m, i, o = bench.m, dut.i, dut.o
    bench.part("dut", dut)
    came = Volleys(bench, i, given)
    bench.take(o, "o")
    enter, leave = i.valid & i.ready, o.valid & o.ready
    (_, height, width), (_, rows, columns) = given.shape, told.shape
    sent, level, whole = Signal(range(told.chunks)), Signal(range(8)), Signal(range(8))  # steps begun, and whole, that have not left
    m.d.sync += [level.eq(level + came.begin - (leave & o.p.mark)), whole.eq(whole + came.end - (leave & o.p.mark))]
    with m.If(leave):
        m.d.sync += sent.eq(Mux(o.p.mark, 0, sent + 1))

    seen, watched, open = Signal(), Signal(), Signal()
    ahead, window, lane = Signal(range(8)), Signal(range(told.chunks)), Signal(range(given.lanes))
    step, blank, total = Signal(4), Signal(), Signal(Value.cast(o.p.values[0]).shape())
    pick = came.begin & ~seen & bench.free("pick")
    chosen, at = bench.free("window", range(told.chunks)), bench.free("lane", range(given.lanes))
    bench.assume((chosen < told.chunks) & (at < given.lanes))
    with m.If(pick):
        m.d.sync += [seen.eq(1), watched.eq(1), ahead.eq(level - (leave & o.p.mark)), window.eq(chosen), lane.eq(at), blank.eq(i.p.empty)]
    with m.Elif(watched & leave & o.p.mark):
        m.d.sync += [ahead.eq(ahead - 1), watched.eq(ahead != 0)]
    holds = []  # whether each window has the volley that comes
    for number in range(told.chunks):
        pixel, part = divmod(number, told.parts)
        y, x = (place * stride - padding for place, stride, padding in zip(divmod(pixel, columns), spec.stride, spec.padding, strict=True))
        in_rows, in_columns = (
            Array([int(corner <= place < corner + size) for place in range(extent)])[index]
            for corner, size, extent, index in ((y, spec.kernel[0], height, i.p.y), (x, spec.kernel[1], width, i.p.x))
        )
        holds.append((i.p.part == part) & in_rows & in_columns)
    value = Array(i.p.values)[Mux(pick, at, lane)]
    so_far = Mux(pick, 0, total)
    with m.If(enter & (pick | open)):
        m.d.sync += [step.eq(Value.cast(i.p.step)), open.eq(~i.p.mark), total.eq(so_far)]
        with m.If(Array(holds)[Mux(pick, chosen, window)] & ~i.p.empty):
            m.d.sync += total.eq(so_far + value if spec.kind == "average" else Mux(value > so_far, value, so_far))
    its = o.valid & watched & (ahead == 0)
    place = (o.p.y * columns + o.p.x) * told.parts + o.p.part
    bench.claim("what leaves is of a step that has come", ~o.valid | (level != 0))
    bench.claim("a step is over once it is taken", ~o.valid | ~o.p.mark | (whole != 0))
    bench.claim("windows leave in wire order", ~o.valid | o.p.empty | ((place == sent) & (o.p.x < columns) & (o.p.y < rows)))
    bench.claim("the last has the mark", ~o.valid | (o.p.mark == (o.p.empty | (sent == told.chunks - 1))))
    bench.claim("a step is empty as it came", ~its | (o.p.empty == blank))
    bench.claim("an empty step is one transfer", ~o.valid | ~o.p.empty | (sent == 0))
    bench.claim("a transfer has its step", ~its | (Value.cast(o.p.step)[:3] == step[:3]))
    bench.claim("a mark has its step", ~its | ~o.p.mark | (Value.cast(o.p.step) == step))
    bench.claim("a window has all its volleys", ~its | o.p.empty | (sent != window) | (Array(o.p.values)[lane] == total))
    tall, wide = spec.walked
    bound = spec.taps[0] * spec.taps[1] * (told.parts * (tall * wide - height * width) + 1) + 4
    waits = Signal(range(bound + 2))
    m.d.sync += waits.eq(Mux(enter | o.valid | (~i.valid & (whole == 0)), 0, waits + (waits <= bound)))
    bench.claim("an offer and room move something in time", waits <= bound)
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    return bench


def difference(spec: VolleyFormat) -> Bench:
    """One place, any one, is followed."""
    most = spec.value.hi
    bench, dut = Bench(), pools.Difference(spec, Interval(-most, most))
    m, i, o = bench.m, dut.i, dut.o
    bench.part("dut", dut)
    came = Volleys(bench, i, spec)
    bench.take(o, "o")
    enter, leave = i.valid & i.ready, o.valid & o.ready
    chunk = Signal(range(spec.chunks))
    choice, lane = bench.fixed("choice", spec.chunks), bench.fixed("lane", spec.lanes)
    begun, before = Signal(), Signal(Value.cast(i.p.values[0]).shape())  # the place's value at the step before
    bench.assume(~i.valid | begun | i.p.step.first)
    some, change = Signal(), Signal(Value.cast(o.p.values[0]).shape())
    here = Signal()  # what is due is the place
    with m.If(came.end):
        m.d.sync += begun.eq(1)
    with m.If(leave):
        m.d.sync += some.eq(0)
    with m.If(enter):
        m.d.sync += [chunk.eq(Mux(i.p.mark, 0, chunk + 1)), some.eq(1), here.eq(i.p.empty | (chunk == choice))]
        value = Array(i.p.values)[lane]
        m.d.sync += change.eq(Mux(i.p.empty, 0, value - Mux(i.p.step.first, 0, before)))
        with m.If(~i.p.empty & (chunk == choice)):
            m.d.sync += before.eq(value)
    wanted = {name: Signal.like(Value.cast(o.p[name]), name=f"wanted_{name}") for name in ("mark", "empty", "step", "part", "x", "y")}
    with m.If(enter):
        m.d.sync += [signal.eq(Value.cast(i.p[name])) for name, signal in wanted.items()]
    same = [Value.cast(o.p[name]) == signal for name, signal in wanted.items()]
    for name, right in zip(wanted, same, strict=True):
        bench.claim(f"a volley keeps its {name}", ~o.valid | right)
    bench.claim("a volley is offered at once, and once", o.valid == some)
    bench.claim("a volley is taken if there is room", i.ready | some)
    bench.claim("none is lost", ~enter | ~some | leave)
    bench.claim("a value is what was gained since the step before", ~o.valid | ~here | (Array(o.p.values)[lane] == change))
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    return bench


def _pool(name: str, what: str, spec: PoolSpec, fast: bool = False) -> Property:
    claim = "WindowPool: each window's sum or maximum of its step's volleys, zeros around the map, once, in wire order, with its step"
    return Property(f"pool-{name}", f"{claim} ({what})", partial(pool, spec), engine="pdr", fast=fast)


def _difference(name: str, what: str, spec: VolleyFormat) -> Property:
    claim = "Difference: each volley as it came, its values less those of the image's step before"
    return Property(f"difference-{name}", f"{claim} ({what})", partial(difference, spec), engine="pdr")


PROPERTIES = (
    _pool("1", "1 x 1", PoolSpec(VolleyFormat((1, 1, 1), 1, SPIKES), "average", (1, 1), (1, 1)), fast=True),
    _pool("sum", "sums of 2 x 2 of 2 x 4", PoolSpec(VolleyFormat((1, 2, 4), 1, SPIKES), "average", (2, 2), (2, 2))),
    _pool("max", "maxima of 2 x 2 of 2 x 3, 2 parts", PoolSpec(VolleyFormat((2, 2, 3), 1, COUNTS), "max", (2, 2), (2, 2))),
    _pool(
        "padded",
        "maxima of 3 x 2, stride 2 x 1, padding 1, of 2 x 2",
        PoolSpec(VolleyFormat((1, 2, 2), 1, COUNTS), "max", (3, 2), (2, 1), (1, 1)),
    ),
    _difference("1", "1 chunk of 2 lanes", VolleyFormat((2, 1, 1), 2, COUNTS)),
    _difference("4", "2 parts of 1 x 2", VolleyFormat((2, 1, 2), 1, COUNTS)),
)
