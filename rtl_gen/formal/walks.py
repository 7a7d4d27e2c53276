"""What is claimed of the way from events to cells: the walk against a convolution's definition."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

from amaranth.hdl import Array, Cat, Mux, Signal, Value

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Property
from rtl_gen.gates import walk as walks
from rtl_gen.gates.streams import EventFormat, MapShape
from rtl_gen.gates.walk import CellFormat, Geometry, WalkSpec

SPIKES = Interval(-1, 1)


def places(shape: MapShape) -> list[tuple[int, int, int]]:
    """(y, x, channel) in wire order."""
    return list(product(range(shape[1]), range(shape[2]), range(shape[0])))


def reached(geometry: Geometry, y: int, x: int) -> list[tuple[int, int, int, int]]:
    """(row, column) of the neurons that a source reaches, and the kernel's (row, column) by which: of each neuron the sources in turn."""
    _, height, width = geometry.target
    return [
        (oy, ox, ky, kx)
        for oy, ox, ky, kx in product(range(height), range(width), range(geometry.kernel[0]), range(geometry.kernel[1]))
        if (oy * geometry.stride[0] + ky - geometry.padding[0], ox * geometry.stride[1] + kx - geometry.padding[1]) == (y, x)
    ]


class Events:
    """Any steps of events in wire order into ``port``; the flags of a step, except ``active``, are the same in all of it.

    Members
    -------
    place: of the event that is offered, in wire order. event, mark: one is taken. begins: what is offered next is a step's first.
    last: the place of the event that was taken last.
    """

    def __init__(self, bench: Bench, port: Any, format: EventFormat) -> None:
        m, p = bench.m, port.p
        channels, height, width = format.shape
        bench.drive(port, "i", stable=True)
        self.place, last, begins = Signal(range(format.size)), Signal(range(format.size)), Signal(init=1)
        flags = Cat(p.step[name] for name in p.step.shape().members if name != "active")
        before = Signal.like(flags)
        m.d.comb += self.place.eq((p.y * width + p.x) * channels + p.channel)
        enter = port.valid & port.ready
        self.event, self.mark, self.begins, self.last = enter & ~p.mark, enter & p.mark, begins, last
        with m.If(enter):
            m.d.sync += [begins.eq(p.mark), before.eq(flags), last.eq(Mux(p.mark, last, self.place))]
        inside = (p.channel < channels) & (p.x < width) & (p.y < height)
        inside &= (p.value >= format.value.lo) & (p.value <= format.value.hi) & (p.value != 0)
        bench.assume(~port.valid | p.mark | (inside & (begins | (self.place > last))))
        bench.assume(~port.valid | begins | (before == flags))


def looked_up(bench: Bench, name: str, index: Any, table: Sequence[int]) -> Signal:
    """The number of ``table`` at ``index``."""
    signal = Signal(range(min(table), max(max(table) + 1, 2)), name=name)
    bench.m.d.comb += signal.eq(Array(table)[index])
    return signal


def cells_of(geometry: Geometry, columns: int) -> list[tuple[int, int]]:
    """(row, column) of a step's cells, of which a row has ``columns``, but for the last, that ends with the geometry's own."""
    return [*product(range(geometry.rows), range(columns))][: (geometry.rows - 1) * columns + geometry.columns]


def walk(geometry: Geometry, sets: int = 1, spare: int = 0) -> Bench:
    """Each event in the cell and the weight row that the definition gives it; ``spare`` columns more than the geometry needs."""
    events = EventFormat(geometry.source, SPIKES)
    columns = geometry.columns + spare
    bench, dut = Bench(), walks.Walk(WalkSpec(events, CellFormat(geometry, sets, SPIKES), columns))
    m, o, p = bench.m, dut.o, dut.o.p
    bench.part("dut", dut)
    came = Events(bench, dut.i, events)
    bench.take(o, "o")
    place = came.place
    leave = o.valid & o.ready
    event, mark = leave & ~p.mark, leave & p.mark
    touched = Signal()  # the step has had an event that was given on
    cells = [(0, 0)] if geometry.flat else cells_of(geometry, columns)
    cell = Signal(range(max(len(cells), 2)))
    last = cell == len(cells) - 1
    with m.If(mark):
        m.d.sync += cell.eq(Mux(p.empty | last, 0, cell + 1))
    with m.If(leave):
        m.d.sync += touched.eq(~(p.mark & (p.empty | last)) & (touched | event))

    # Where the definition has each source: a neuron that it reaches at (row, column) by the kernel's (row, column).
    rows, at, must = [], [], []
    (down, across), (pad_y, pad_x) = geometry.stride, geometry.padding
    for number, (y, x, channel) in enumerate(places(geometry.source)):
        ways = [] if geometry.flat else reached(geometry, y, x)
        found = {(oy + ky // down, ox + kx // across, ky % down, kx % across) for oy, ox, ky, kx in ways}
        assert len(found) <= 1
        must.append(int(geometry.flat or bool(ways)))
        nowhere = (y, (x + pad_x) // across, (y + pad_y) % down, (x + pad_x) % across)
        _, column, phase_y, phase_x = next(iter(found), nowhere)
        rows.append(number if geometry.flat else channel * geometry.phases + phase_y * across + phase_x)
        at.append(0 if geometry.flat else cells.index((y, column)) if (y, column) in cells else len(cells))
    channel_set = [channel * sets // geometry.source[0] for _, _, channel in places(geometry.source)]
    bench.claim("an event that reaches a neuron is given on as it is taken", ~came.event | event | ~looked_up(bench, "must", place, must))
    bench.claim("an event is given on once, as it is taken", ~event | came.event)
    bench.claim("an event is offered in its cell", ~o.valid | p.mark | (looked_up(bench, "at", place, at) == cell))
    bench.claim("an event has its weights' row", ~o.valid | p.mark | (p.row == looked_up(bench, "row", place, rows)))
    bench.claim("an event has its set", ~o.valid | p.mark | (p.set == looked_up(bench, "set", place, channel_set)))
    bench.claim("an event keeps its value", ~o.valid | p.mark | (p.value == dut.i.p.value))
    bench.claim("a transfer has its step", ~o.valid | (Value.cast(p.step) == Value.cast(dut.i.p.step)))
    bench.claim("the step's mark is taken with its last cell, or the empty one", came.mark == (mark & (p.empty | (last & dut.i.p.mark))))
    bench.claim("a step ends in its mark only", ~mark | ~(p.empty | last) | came.mark)
    bench.claim("a step is empty if no event was given on", ~o.valid | ~p.mark | (p.empty == (dut.i.p.mark & ~touched)))
    bench.claim("an empty step has no cells", ~o.valid | ~p.mark | ~p.empty | (cell == 0))
    bench.claim("what is offered and taken moves something", ~dut.i.valid | ~o.ready | dut.i.ready | o.valid)
    bench.claim("an offer stands until it is taken", bench.stands(o, "o"))
    for name, right in ({} if geometry.flat else marked(bench, geometry, cells, cell, p)).items():
        bench.claim(f"a cell's {name}", ~o.valid | ~p.mark | right)
    return bench


def marked(bench: Bench, geometry: Geometry, cells: Sequence[tuple[int, int]], cell: Any, mark: Any) -> dict[str, Any]:
    """That ``mark`` of ``cell`` tells what it must, by what it tells; of an empty step, that it ends."""
    width = geometry.target[2]
    leaves = [column - geometry.taps[1] + 1 for _, column in cells]
    enters = [column for _, column in [*cells[1:], *cells[:1]]]
    right = {}
    for flag, values in flags_of(geometry, cells).items():
        same = getattr(mark, flag) == looked_up(bench, f"told_{flag}", cell, values)
        right[f"flags: {flag}"] = Mux(mark.empty, mark.end if flag == "end" else 1, same)
    for name, side, numbers in (("leave", mark.leave, leaves), ("enter", mark.enter, enters)):
        known = looked_up(bench, f"knows_{name}", cell, [int(0 <= number < width) for number in numbers])
        right[f"columns: {name}"] = (
            mark.empty | ~known | (side == looked_up(bench, f"told_{name}", cell, [number % width for number in numbers]))
        )
    return right


def flags_of(geometry: Geometry, cells: Sequence[tuple[int, int]]) -> dict[str, list[int]]:
    """What each cell's mark tells, by flag: of the rows of neurons, which each have ``taps`` times ``stride`` rows of sources."""
    (_, height, width), (down, _), (pad, _), (tall, wide) = geometry.target, geometry.stride, geometry.padding, geometry.taps
    ends = {oy * down - pad + tall * down - 1 for oy in range(height)}  # the last row of sources of each row of neurons
    begins = [(y + pad) % down == 0 for y, _ in cells]
    tops = [y == 0 for y, _ in cells]
    completes = [0 <= column - wide + 1 < width for _, column in cells]
    return {
        "first": [int(cell == (0, 0)) for cell in cells],
        "end": [int(cell == cells[-1]) for cell in cells],
        "keep": [int(complete) for complete in completes],
        "emit": [int(complete and y in ends) for complete, (y, _) in zip(completes, cells, strict=True)],
        "down": [int((y + pad + 1) % down == 0) for y, _ in cells],
        "top": [int(top) for top in tops[1:] + tops[:1]],
        "fresh": [int(begin) for begin in begins[1:] + begins[:1]],
        "own_top": [int(top) for top in tops],
        "own_fresh": [int(begin) for begin in begins],
    }


def _walk(name: str, what: str, geometry: Geometry, fast: bool = True, **options: int) -> Property:
    return Property(f"walk-{name}", f"{_WALK} ({what})", lambda: walk(geometry, **options), fast=fast, engine="pdr")


_WALK = "Walk: each event once, in its cell, with its row of weights; cells in order with flags; empty steps as one mark; offers stand"

PROPERTIES = (
    _walk("flat", "2 x 3 pixels of 2 channels", Geometry((2, 2, 3), 3, flat=True)),
    _walk("3x3", "2 channels of 3 x 4, kernel 3 x 3, padding 1", Geometry((2, 3, 4), 2, (3, 3), padding=(1, 1))),
    _walk("2x2", "4 x 3, kernel 2 x 2, a spare column", Geometry((1, 4, 3), 1, (2, 2)), spare=1),
    _walk("3x3-2", "5 x 4, kernel 3 x 3, stride 2, padding 1", Geometry((1, 5, 4), 1, (3, 3), (2, 2), (1, 1))),
    _walk("1x1-2", "2 channels in 2 groups of 4 x 4, kernel 1 x 1, stride 2", Geometry((2, 4, 4), 2, (1, 1), (2, 2), groups=2), sets=2),
    _walk("2x2-2", "3 x 5, kernel 2 x 2, stride 2: sources that reach no neuron", Geometry((1, 3, 5), 1, (2, 2), (2, 2))),
    _walk("5x3", "4 x 4, kernel 5 x 3, padding 3 x 2", Geometry((1, 4, 4), 1, (5, 3), (1, 1), (3, 2))),
)
