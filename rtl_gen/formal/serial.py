"""What is claimed of `SerialSynapses`: each current is the sum, by the definition of a convolution, over the events of its step."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import prod

from amaranth.hdl import Array, Cat, Mux, Signal, Value, signed

from casc_hw.fixed import Interval
from rtl_gen.formal.bench import Bench, Property
from rtl_gen.formal.synapses import COUNTS, spec_of
from rtl_gen.formal.walks import SPIKES, Events, looked_up, places
from rtl_gen.formal.windows import WEIGHTS, Target
from rtl_gen.gates import serial as gates
from rtl_gen.gates.serial import SETTLE, STAGES, SerialSpec
from rtl_gen.gates.streams import place_bits
from rtl_gen.gates.walk import Geometry


def serial(spec: SerialSpec, after_reset: bool = False) -> Bench:
    """Any one neuron's sum, from the memory to its current, while events come in wire order; ``after_reset``: of something before."""
    bench, dut = Bench(), gates.SerialSynapses(spec)
    m, inside, geometry, out = bench.m, bench.part("dut", dut, left=("sums", "dirty") * after_reset), spec.geometry, spec.currents
    i, o, event, p = dut.events, dut.currents, dut.events.p, dut.currents.p
    (down, across), (pad_y, pad_x) = geometry.stride, geometry.padding
    _, height, width = geometry.target
    came = Events(bench, i, spec.events)
    bench.take(o, "o")
    target = Target(bench, spec, event.y + pad_y, event.x + pad_x, event.channel, event.value)
    neuron = Cat(target.turn, target.x[: place_bits(width)], target.y)
    gives = Signal(signed(out.width))
    m.d.comb += gives.eq(Mux(i.valid & ~event.mark, target.gives, 0))

    # The contract.
    total, some = Signal(signed(out.width)), Signal()  # of what has been taken of the step
    chunk = Signal(range(max(out.chunks, 2)))  # that leaves
    leave = o.valid & o.ready
    with m.If(came.event):
        m.d.sync += [total.eq(total + gives), some.eq(1)]
    with m.If(came.mark):
        m.d.sync += [total.eq(0), some.eq(0)]
    with m.If(leave):
        m.d.sync += chunk.eq(Mux(p.mark, 0, chunk + 1))
    its_chunk, begun = Signal.like(chunk), some | (i.valid & ~event.mark)
    m.d.comb += its_chunk.eq((target.y * width + target.x) * out.parts + target.turn)
    now, gone = o.valid & ~p.empty & (chunk == its_chunk), chunk > its_chunk
    bench.claim("sums: the neuron's current", ~now | (Array(p.x)[target.adder] == total))
    bench.claim("sums: nothing comes for a neuron that is offered or gone", ~(now | gone) | (gives == 0))
    bench.claim("order: a step is all chunks, or one empty transfer", ~o.valid | (p.mark == (p.empty | (chunk == out.chunks - 1))))
    bench.claim("order: an empty step is nothing else", ~o.valid | ~p.empty | (chunk == 0))
    bench.claim("order: its mark is taken with the last", came.mark == (leave & p.mark))
    bench.claim("order: an offer stands until it is taken", bench.stands(o, "o"))
    bench.claim("steps: empty if without events", ~o.valid | (p.empty == ~begun))
    bench.claim("steps: each chunk has its flags", ~o.valid | (i.valid & (Value.cast(p.step) == Value.cast(event.step))))
    patience = spec.sums * after_reset + SETTLE + width + prod(geometry.taps) * spec.chunks + 2
    idle = bench.waits(i.valid & ~i.ready & ~o.valid, patience)
    bench.claim("order: what waits moves", idle <= patience)

    # Where the engine is: its row of neurons, its column, its tap, the chunk that leaves.
    row, ring, top, column, left, y = (inside[name] for name in ("row", "ring", "top", "column", "left", "y"))
    begins, add, take, sends = inside.at("begin"), inside.at("add"), inside.at("take"), inside.at("fetch") | inside.at("hold")
    sent, dy, dx, tall = inside["sent"], inside["dy"], inside["dx"], geometry.taps[0]
    reach_y, reach_x = geometry.kernel
    last = [looked_up(bench, f"last_{side}", came.last, [place[side] for place in places(geometry.source)]) for side in range(2)]  # y, x
    rings = [number % tall for number in range(2 * height + 2)]
    bench.invariant("the row", (row < height) & (top == row * down - pad_y) & (ring == looked_up(bench, "ring_of", row, rings)))
    bench.invariant("the column", (column < width) & (left == column * across - pad_x))
    bench.invariant("the chunk", (chunk == (row * width + sent.x) * out.parts + sent.part) & (sent.x < width) & (sent.part < out.parts))
    bench.invariant("a chunk is sent in two states", sends | ((sent.x == 0) & (sent.part == 0)))
    bench.invariant("a step begins in its corner", begun | ((chunk == 0) & (column == 0) & (y == 0) & ~sends & ~add))
    bench.invariant("a step begins with no sum", (some | (total == 0)) & (came.begins == ~some))
    bench.invariant("touched", inside["touched"] == (some | add))
    bench.invariant("an event stands while it is worked on", ~(add | sends) | i.valid)
    bench.invariant("rows leave before an event beyond them", ~sends | event.mark | ((dy >= reach_y) & (row != height - 1)))
    beyond = (row - 1) * down + reach_y - pad_y
    bench.invariant("rows have left", (row == 0) | (some & (last[0] >= beyond)) | (i.valid & (event.mark | (event.y >= beyond))))
    beyond = (column - 1) * across + reach_x - pad_x
    at_it = (some & (last[0] == y) & (last[1] >= beyond)) | (i.valid & ~event.mark & (event.y == y) & (event.x >= beyond))
    bench.invariant("columns are over", (column == 0) | at_it)
    to_row, to_column, part = inside["to_row"], inside["to_column"], inside["chunk"]
    far_y, far_x, tap_y = to_row - row, to_column - column, inside["tap_y"]
    bench.invariant(
        "the tap",
        ~add
        | (
            ~event.mark
            & (event.y == y)
            & (dy < reach_y)
            & (dx < reach_x)
            & (far_y >= 0)
            & (far_x >= 0)
            & (to_row < height)
            & (to_column < width)
        )
        & (tap_y == dy - far_y * down)
        & (inside["tap_x"] == dx - far_x * across)
        & (inside["to_ring"] == looked_up(bench, "to_ring_of", to_row, rings))
        & (inside["tap"] == tap_y * reach_x + inside["tap_x"])
        & (inside["tap_row"] == tap_y * reach_x + dx),
    )
    bench.invariant("the part", (part < spec.chunks) & (add | (part == 0)))

    # The neuron's sum is what was given to it, so many cycles ago; its place is clean before and behind.
    issued = Signal(signed(out.width))
    beyond_it = add & (Cat((inside["first_chunk"] + part)[: len(target.turn)], to_column[: place_bits(width)], to_row) > neuron)
    m.d.comb += issued.eq(Mux(gone, 0, total + Mux(beyond_it, gives, 0)))
    given = issued
    for stage in range(STAGES):
        value, given = given, Signal.like(given, name=f"given_{stage}")
        m.d.sync += given.eq(Mux(leave & now, 0, value))
    if after_reset:
        bench.assume(bench.before(1, "begun") | inside["dirty"])
    slot = Cat(target.turn, target.x[: place_bits(width)], looked_up(bench, "its_ring", target.y, rings)[: len(ring)])
    holds = Value.cast(inside.word("sums", slot)).word_select(target.adder, out.width).as_signed()
    bench.invariant("no sum before its row is there", (target.y < row + tall) | (total == 0))
    unknown = begins & inside["dirty"] & (slot >= inside["cleared"])
    bench.invariant("the sum", gone | unknown | (target.y >= row + tall) | (holds == given))
    owner = looked_up(bench, "owner", Cat(row, target.y), _owners(height, tall, len(row)))  # of the place: a row of neurons, or none
    cleared = chunk > (owner * width + target.x) * out.parts + target.turn
    bench.invariant("its place is clean", ~((owner >= height) | (sends & (owner == row) & cleared)) | unknown | (holds == 0))
    places_clean = inside["cleared"]
    bench.invariant("it begins with nothing", ~begins | (~some & (row == 0) & (idle <= places_clean) & (places_clean < spec.sums)))
    if not after_reset:
        bench.invariant("it begins with clean memory", ~begins | (~inside["dirty"] & (places_clean == 0)))
    here, rest = event.y == y, max(SETTLE, spec.sums * after_reset)
    progress = (far_y * geometry.taps[1] + far_x) * spec.chunks + part
    bench.invariant("the sums settle", (inside["settled"] < SETTLE) & (inside.at("settle") | (inside["settled"] == 0)))
    bench.invariant("its state", inside.state < 6)
    bench.invariant("it waits for the sums", ~inside.at("settle") | (idle <= inside["settled"]))
    bench.invariant("it waits for the column", ~take | (idle <= rest + Mux(here, 1 + column, 0)))
    bench.invariant("it waits for a row", ~inside.at("fetch") | (idle <= rest + 1 + width))
    bench.invariant("it waits for the taps", ~add | (idle <= rest + 2 + column + progress))
    return bench


def _owners(height: int, tall: int, bits: int) -> list[int]:
    """By the first row that is not complete, and a row of neurons: the row whose sums are where the latter's are, or beyond ``height``."""
    return [
        next(other for other in range(row, row + tall) if other % tall == its % tall)
        for its in range(1 << bits)
        for row in range(1 << bits)
    ]


def _serial(
    name: str,
    what: str,
    geometry: Geometry,
    lanes: int,
    value: Interval = SPIKES,
    weights: Sequence[int] = WEIGHTS,
    fast: bool = True,
    **options: bool,
) -> Property:
    spec = spec_of(geometry, value, lanes, weights, transfer=lanes, kind=SerialSpec)
    return Property(f"serial-{name}", f"{_SERIAL} ({what})", partial(serial, spec, **options), 8, fast)


_SERIAL = (
    "SerialSynapses: the current of any neuron in a step is the sum of weight x value of its events, in a width that no sum can leave; "
    "chunks in order with their step's flags; empty steps as one; offers stand; what waits moves"
)

PROPERTIES = (
    _serial("1x1", "a source, kernel 1 x 1", Geometry((1, 1, 1), 1), 1),
    _serial("2x2", "3 x 3, kernel 2 x 2", Geometry((1, 3, 3), 1, (2, 2)), 1),
    _serial("reset", "2 x 3, kernel 2 x 2, after a reset amid a step", Geometry((1, 2, 3), 1, (2, 2)), 1, after_reset=True),
    _serial("3x3", "2 channels of 3 x 3 to 2, padding 1, a lane", Geometry((2, 3, 3), 2, (3, 3), padding=(1, 1)), 1, fast=False),
    _serial("3x3-2", "5 x 4 counts, stride 2, padding 1", Geometry((1, 5, 4), 1, (3, 3), (2, 2), (1, 1)), 1, COUNTS),
    _serial("1x1-2", "2 channels in 2 groups of 4 x 4, stride 2, a lane", Geometry((2, 4, 4), 2, (1, 1), (2, 2), groups=2), 1),
    _serial("5x3", "4 x 4, padding 3 x 2", Geometry((1, 4, 4), 1, (5, 3), (1, 1), (3, 2)), 1, fast=False),
    _serial("parts", "2 channels of 3 x 3 counts to 3, 2 lanes", Geometry((2, 3, 3), 3, (2, 2)), 2, COUNTS),
)
