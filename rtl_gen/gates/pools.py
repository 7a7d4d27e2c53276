"""Pools: windows of volleys become volleys; and what has changed in volleys that tell how things stand."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from amaranth.hdl import Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import Raster, Skid, VolleyFormat, index_bits, place_bits, shape_of, step_layout


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
        return VolleyFormat((channels, height, width), self.volleys.lanes, value, steps=self.volleys.steps)

    @property
    def walked(self) -> tuple[int, int]:
        """(height, width) of the map with the zeros behind it that its last windows reach."""
        parts = zip(self.volleys.shape[1:], self.output.shape[1:], self.kernel, self.stride, self.padding, strict=True)
        height, width = (max(size, (count - 1) * stride - padding + kernel) for size, count, kernel, stride, padding in parts)
        return height, width

    @property
    def taps(self) -> tuple[int, int]:
        """Windows, down and across, that one pixel is in at most."""
        return -(-self.kernel[0] // self.stride[0]), -(-self.kernel[1] // self.stride[1])


class WindowPool(wiring.Component):
    """Adds each volley to the windows it is in, and sends a window once its last pixel has passed, the map's last one once the step has.

    A cycle a volley and window; zeros behind the map count as volleys. A step in which nothing changed passes as such.

    Members
    -------
    i: In, dense. o: Out, dense.
    """

    def __init__(self, spec: PoolSpec):
        self.spec = spec
        super().__init__({"i": In(spec.volleys.signature), "o": Out(spec.output.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, out, parts = self.spec, self.spec.output, self.spec.output.parts
        (channels, height, width), (_, rows, columns), (tall, wide) = spec.volleys.shape, out.shape, spec.walked
        (kernel_y, kernel_x), (down, across), (padding_y, padding_x), (taps_y, taps_x) = spec.kernel, spec.stride, spec.padding, spec.taps
        window = data.ArrayLayout(shape_of(out.value), out.lanes)
        part_bits, column_bits = place_bits(parts), place_bits(columns)
        depth = max(taps_y << (part_bits + column_bits), 2)
        m.submodules.windows = windows = Memory(shape=window, depth=depth, init=[])
        read, write = windows.read_port(), windows.write_port()
        m.submodules.skid = skid = Skid(out.signature)
        wiring.connect(m, skid.o, wiring.flipped(self.o))
        go = Signal()

        # Where the volley is: its place in the stride, the lowest and rightmost window it may be in, and the tap that is served.
        place = Raster(m, VolleyFormat((channels, tall, wide), out.lanes, spec.volleys.value), "place")
        phase_y, band_y = (
            Signal(range(max(down, 2)), init=padding_y % down),
            Signal(range((tall - 1 + padding_y) // down + 2), init=padding_y // down),
        )
        slot = Signal(range(max(taps_y, 2)), init=padding_y // down % taps_y)
        phase_x, band_x = (
            Signal(range(max(across, 2)), init=padding_x % across),
            Signal(range((wide - 1 + padding_x) // across + 2), init=padding_x // across),
        )
        tap_y, tap_x = Signal(range(max(taps_y, 2))), Signal(range(max(taps_x, 2)))
        own_y, own_x = phase_y + tap_y * down, phase_x + tap_x * across  # in the window
        own_slot = Mux(slot >= tap_y, slot - tap_y, slot + taps_y - tap_y)
        real, serve, inside, ends = Signal(), Signal(), Signal(), Signal()
        last_tap = (tap_y == taps_y - 1) & (tap_x == taps_x - 1)
        m.d.comb += [
            real.eq((place.y < height) & (place.x < width)),
            serve.eq(~real | (self.i.valid & ~self.i.p.empty)),
            inside.eq((own_y < kernel_y) & (band_y >= tap_y) & (band_y < tap_y + rows)
                      & (own_x < kernel_x) & (band_x >= tap_x) & (band_x < tap_x + columns)),
            ends.eq(place.last & last_tap),
            self.i.ready.eq(go & real & (last_tap | self.i.p.empty)),
        ]  # fmt: skip
        with m.If(go & serve):
            m.d.sync += tap_x.eq(tap_x + 1)
            with m.If(tap_x == taps_x - 1):
                m.d.sync += [tap_x.eq(0), tap_y.eq(tap_y + 1)]
            with m.If(last_tap):
                m.d.sync += tap_y.eq(0)
                place.advance(m)
                with m.If(place.part == parts - 1):
                    m.d.sync += phase_x.eq(phase_x + 1)
                    with m.If(phase_x == across - 1):
                        m.d.sync += [phase_x.eq(0), band_x.eq(band_x + 1)]
                    with m.If(place.x == wide - 1):
                        m.d.sync += [phase_x.eq(phase_x.init), band_x.eq(band_x.init), phase_y.eq(phase_y + 1)]
                        with m.If(phase_y == down - 1):
                            m.d.sync += [phase_y.eq(0), band_y.eq(band_y + 1), slot.eq(Mux(slot == taps_y - 1, 0, slot + 1))]
                with m.If(place.last):
                    m.d.sync += [phase_y.eq(phase_y.init), band_y.eq(band_y.init), slot.eq(slot.init)]

        # A window is read (at the end of the step, the last one), then kept, then written with the volley added; what the two before
        # it wrote cannot be read yet.
        last_window = (parts - 1) | (columns - 1) << part_bits | (rows - 1) % taps_y << (part_bits + column_bits)
        tag = data.StructLayout(
            {"touch": 1, "fresh": 1, "complete": 1, "ends": 1, "empty": 1, "step": step_layout(out.steps), "address": range(depth),
             "values": spec.volleys.layout.members["values"]}
        )  # fmt: skip
        early, late, address, again = Signal(tag), Signal(tag), Signal(range(depth)), Signal(2)
        before, held = Signal(window, reset_less=True), Signal(window, reset_less=True)
        m.d.comb += [
            address.eq(Mux(ends, last_window, Cat(place.part, (band_x - tap_x)[:column_bits], own_slot))),
            read.addr.eq(address),
            read.en.eq(go),
            write.addr.eq(late.address),
            write.en.eq(late.touch),
            go.eq(skid.i.ready | ~(late.complete | late.ends | late.empty)),
        ]
        with m.If(go):
            m.d.sync += [
                early.touch.eq(serve & inside),
                early.fresh.eq(inside & ((own_y == 0) | (place.y == 0)) & ((own_x == 0) | (place.x == 0))),
                early.complete.eq(serve & inside & (own_y == kernel_y - 1) & (own_x == kernel_x - 1)),
                early.ends.eq(serve & ends),
                early.empty.eq(real & self.i.valid & self.i.p.empty),
                early.address.eq(address),
                again.eq(Cat(early.touch & (early.address == address), late.touch & (late.address == address))),
                early.values.eq(Mux(real & inside, self.i.p.values, 0)),
                before.eq(Mux(again[0], write.data, Mux(again[1], held, read.data))),
                held.eq(write.data),
                late.eq(early),
            ]
            with m.If(real):
                m.d.sync += early.step.eq(self.i.p.step)
        for value, old, total in zip(late.values, before, write.data, strict=True):
            joined = old + value if spec.kind == "average" else Mux(value > old, value, old)
            m.d.comb += total.eq(Mux(late.fresh, value, joined))

        sent = Raster(m, out, "sent")
        m.d.comb += [
            skid.i.valid.eq(late.empty | late.ends | (late.complete & ~sent.last)),
            skid.i.p.mark.eq(late.empty | late.ends),
            skid.i.p.empty.eq(late.empty),
            skid.i.p.step.eq(late.step),
            *(skid.i.p[name].eq(getattr(sent, name)) for name in ("part", "x", "y")),
            skid.i.p.values.eq(write.data),
        ]
        with m.If(go & skid.i.valid & ~late.empty):
            sent.advance(m)
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
        super().__init__({"i": In(spec.signature), "o": Out(VolleyFormat(spec.shape, spec.lanes, value, steps=spec.steps).signature)})

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
