"""Pools: windows of volleys become volleys; and what has changed in volleys that tell how things stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import STEP, Raster, VolleyFormat, index_bits, place_bits, shape_of


@dataclass(frozen=True)
class PoolSpec:
    """Attributes
    ----------
    volleys: what enters, dense.
    kind: "average": the sum of a window; "max": its largest value, which is not negative.
    kernel, stride, padding: (vertical, horizontal); zeros are padded.
    """

    volleys: VolleyFormat
    kind: Literal["average", "max"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)

    def __post_init__(self) -> None:
        if self.kind not in ("average", "max"):
            raise ValueError(f"a pool of kind {self.kind!r}")
        if min(*self.kernel, *self.stride) < 1:
            raise ValueError(f"kernel {self.kernel!r} or stride {self.stride!r} is not positive")
        if any(not 0 <= padding < kernel for padding, kernel in zip(self.padding, self.kernel, strict=True)):
            raise ValueError(f"padding {self.padding!r} is negative, or not less than the kernel {self.kernel!r}")
        if min(self.output.shape[1:]) < 1:
            raise ValueError(f"kernel {self.kernel!r} is larger than the padded map {self.volleys.shape!r}")
        if self.kind == "max" and self.volleys.value.lo < 0:
            raise ValueError(f"the maximum of values {self.volleys.value}, which may be negative")

    @property
    def output(self) -> VolleyFormat:
        """What leaves, dense."""
        channels, *sizes = self.volleys.shape
        parts = zip(sizes, self.kernel, self.stride, self.padding, strict=True)
        height, width = ((size + 2 * padding - kernel) // stride + 1 for size, kernel, stride, padding in parts)
        value = self.volleys.value * (self.kernel[0] * self.kernel[1]) if self.kind == "average" else self.volleys.value
        return VolleyFormat((channels, height, width), self.volleys.lanes, value)

    @property
    def taps(self) -> tuple[int, int]:
        """Windows, down and across, that one pixel is in at most."""
        return -(-self.kernel[0] // self.stride[0]), -(-self.kernel[1] // self.stride[1])


class WindowPool(wiring.Component):
    """Adds each volley to the windows it is in, and sends a row of windows once its last pixel has passed.

    A cycle a volley and window, a cycle a window sent and two more a row of windows. A step in which nothing changed passes as such.

    Members
    -------
    i: In, dense. o: Out, dense.
    """

    def __init__(self, spec: PoolSpec):
        self.spec = spec
        super().__init__({"i": In(spec.volleys.signature), "o": Out(spec.output.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, out = self.spec, self.spec.output
        (_, height, width), (_, rows, columns) = spec.volleys.shape, out.shape
        (kernel_y, kernel_x), (down, across), (padding_y, padding_x), (taps_y, taps_x) = spec.kernel, spec.stride, spec.padding, spec.taps
        window = data.ArrayLayout(shape_of(out.value), out.lanes)
        part_bits, column_bits = place_bits(out.parts), place_bits(columns)
        depth = max(taps_y << (part_bits + column_bits), 2)
        m.submodules.windows = windows = Memory(shape=window, depth=depth, init=[])
        read, write = windows.read_port(), windows.write_port()

        # Where the volley is: its place in the stride, the lowest and rightmost window it may be in, and the tap that is served.
        place = Raster(m, spec.volleys, "place")
        phase_y, band_y = Signal(range(max(down, 2)), init=padding_y % down), Signal(range(rows + taps_y + 1), init=padding_y // down)
        slot = Signal(range(max(taps_y, 2)), init=padding_y // down % taps_y)
        phase_x, band_x = (
            Signal(range(max(across, 2)), init=padding_x % across),
            Signal(range(columns + taps_x + 1), init=padding_x // across),
        )
        tap_y, tap_x = Signal(range(max(taps_y, 2))), Signal(range(max(taps_x, 2)))
        inside = Signal()
        first = ((phase_y + tap_y * down == 0) | (place.y == 0)) & ((phase_x + tap_x * across == 0) | (place.x == 0))
        m.d.comb += inside.eq(
            (phase_y + tap_y * down < kernel_y) & (band_y >= tap_y) & (band_y < tap_y + rows)
            & (phase_x + tap_x * across < kernel_x) & (band_x >= tap_x) & (band_x < tap_x + columns)
        )  # fmt: skip
        last_tap = (tap_y == taps_y - 1) & (tap_x == taps_x - 1)
        own_slot = Mux(slot >= tap_y, slot - tap_y, slot + taps_y - tap_y)

        # A window is read, then written with the volley added; what was written last may not be readable yet.
        touch, address = Signal(), Signal(range(depth))
        values = Signal(spec.volleys.layout.members["values"], reset_less=True)
        fresh, touched, where, again = Signal(), Signal(), Signal.like(address), Signal()
        held = Signal(window, reset_less=True)
        m.d.sync += [
            touched.eq(touch),
            where.eq(address),
            again.eq(touched & (where == address)),
            fresh.eq(first),
            values.eq(self.i.p.values),
        ]
        m.d.comb += [read.addr.eq(address), write.addr.eq(where), write.en.eq(touched)]
        for lane in range(out.lanes):
            before = Mux(again, held[lane], read.data[lane])
            value = values[lane]
            joined = before + value if spec.kind == "average" else Mux(value > before, value, before)
            m.d.comb += write.data[lane].eq(Mux(fresh, value, joined))
        m.d.sync += held.eq(write.data)

        step, row, row_slot = Signal(STEP), Signal(range(rows + 1)), Signal.like(slot, init=0)
        due = Signal(range(rows * down + kernel_y + 1), init=kernel_y - 1 - padding_y)  # the last input row of ``row``
        sent = Raster(m, VolleyFormat((out.shape[0], 1, columns), out.lanes, out.value), "sent")
        bottom, ended = Signal(), Signal()  # the map's last row has passed; with it the step
        complete = (row != rows) & (bottom | ((due <= place.y) & (row != rows - 1)))
        loaded, coordinates = Signal(), Signal(data.StructLayout({"part": part_bits, "x": column_bits, "last": 1}))
        free = ~loaded | self.o.ready
        m.d.comb += [
            self.o.payload.eq(0),
            self.o.p.step.eq(step),
            self.o.p.y.eq(row),
            self.o.p.x.eq(coordinates.x),
            self.o.p.part.eq(coordinates.part),
            self.o.p.values.eq(read.data),
        ]
        with m.FSM():
            with m.State("take"):
                m.d.comb += [
                    address.eq(Cat(place.part, (band_x - tap_x)[:column_bits], own_slot)),
                    touch.eq(self.i.valid & ~self.i.p.empty & inside),
                    self.i.ready.eq(~self.i.p.empty & last_tap),
                ]
                with m.If(self.i.valid & ~self.i.p.empty):
                    m.d.sync += tap_x.eq(tap_x + 1)
                    with m.If(tap_x == taps_x - 1):
                        m.d.sync += [tap_x.eq(0), tap_y.eq(tap_y + 1)]
                    with m.If(last_tap):
                        m.d.sync += [tap_y.eq(0), step.eq(self.i.p.step), bottom.eq(place.y == height - 1)]
                        with m.If((place.part == out.parts - 1) & (place.x == width - 1)):
                            m.next = "rows"
                        with m.Else():
                            place.advance(m)
                        with m.If(place.part == out.parts - 1):
                            m.d.sync += phase_x.eq(phase_x + 1)
                            with m.If(phase_x == across - 1):
                                m.d.sync += [phase_x.eq(0), band_x.eq(band_x + 1)]
                with m.If(self.i.valid & self.i.p.empty):
                    m.d.sync += step.eq(self.i.p.step)
                    m.next = "empty"
            with m.State("empty"):
                m.d.comb += [self.o.valid.eq(1), self.o.p.mark.eq(1), self.o.p.empty.eq(1), self.o.p.values.eq(0)]
                with m.If(self.o.ready):
                    m.d.comb += self.i.ready.eq(1)
                    m.next = "take"
            with m.State("rows"):
                m.d.sync += [phase_x.eq(phase_x.init), band_x.eq(band_x.init)]
                with m.If(complete):
                    m.next = "send"
                with m.Else():
                    place.advance(m)
                    m.d.sync += phase_y.eq(phase_y + 1)
                    with m.If(phase_y == down - 1):
                        m.d.sync += [phase_y.eq(0), band_y.eq(band_y + 1), slot.eq(Mux(slot == taps_y - 1, 0, slot + 1))]
                    with m.If(bottom):
                        m.d.sync += [phase_y.eq(phase_y.init), band_y.eq(band_y.init), slot.eq(slot.init)]
                        m.d.sync += [row.eq(0), due.eq(due.init), row_slot.eq(0), bottom.eq(0)]
                    m.next = "take"
            with m.State("send"):
                m.d.comb += [
                    address.eq(Cat(sent.part, sent.x, row_slot)),
                    read.en.eq(free),
                    self.o.valid.eq(loaded),
                    self.o.p.mark.eq(coordinates.last & (row == rows - 1)),
                ]
                with m.If(free & ~ended):
                    sent.advance(m, restart=sent.last)
                    m.d.sync += [loaded.eq(1), coordinates.part.eq(sent.part), coordinates.x.eq(sent.x), coordinates.last.eq(sent.last)]
                    m.d.sync += ended.eq(sent.last)
                with m.Elif(self.o.ready):
                    m.d.sync += [loaded.eq(0), ended.eq(0), row.eq(row + 1), due.eq(due + down)]
                    m.d.sync += row_slot.eq(Mux(row_slot == taps_y - 1, 0, row_slot + 1))
                    m.next = "rows"
        return m


class Difference(wiring.Component):
    """What has changed since the step before, of volleys that tell how things stand.

    A chunk a cycle. A step in which nothing changed passes as such.

    Members
    -------
    i: In, dense. o: Out, dense, with values in ``value``.
    """

    def __init__(self, spec: VolleyFormat, value: Interval):
        self.spec, self.value = spec, value
        super().__init__({"i": In(spec.signature), "o": Out(VolleyFormat(spec.shape, spec.lanes, value).signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self.spec
        m.submodules.last = last = Memory(shape=spec.layout.members["values"], depth=spec.chunks, init=[])
        read, write = last.read_port(), last.write_port()
        chunk, volley, held = Signal(index_bits(spec.chunks)), Signal(spec.layout, reset_less=True), Signal()
        take = Signal()  # with a single chunk, what was written a cycle ago cannot be read yet
        m.d.comb += [
            take.eq(~held if spec.chunks == 1 else ~held | self.o.ready),
            self.i.ready.eq(take),
            read.addr.eq(chunk),
            read.en.eq(take),
            write.addr.eq(chunk - 1 if spec.chunks > 1 else 0),
            write.data.eq(volley.values),
            write.en.eq(held & ~volley.empty),
            self.o.valid.eq(held),
            *(self.o.p[name].eq(volley[name]) for name in ("mark", "empty", "step", "part", "x", "y")),
            *(
                out.eq(Mux(volley.empty, 0, value - Mux(volley.step.first, 0, old)))
                for out, value, old in zip(self.o.p.values, volley.values, read.data, strict=True)
            ),
        ]
        place = Signal.like(chunk)  # of the volley held
        m.d.comb += write.addr.eq(place)
        with m.If(take):
            m.d.sync += held.eq(self.i.valid)
            with m.If(self.i.valid):
                m.d.sync += [volley.eq(self.i.payload), place.eq(chunk)]
                with m.If(~self.i.p.empty):
                    m.d.sync += chunk.eq(Mux(self.i.p.mark, 0, chunk + 1))
        with m.Elif(self.o.ready):
            m.d.sync += held.eq(0)
        return m
