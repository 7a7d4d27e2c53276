"""The image's way in: beats of pixels become events of the pixels that are not zero."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import EventFormat, MapShape, Skid, index_bits

TICKET = data.StructLayout({"start": 32, "malformed": 1})
"""What the read-out must know of an image: the cycle of its first transfer, and whether it was framed or valued wrongly."""


@dataclass(frozen=True)
class PixelSpec:
    """Images of ``shape`` with pixels from 0 to ``maximum``, in wire order, ``beat`` (a power of two) in a transfer.

    A transfer does not reach beyond a row of the map, unless that is all there is.
    """

    shape: MapShape
    maximum: int
    beat: int

    def __post_init__(self) -> None:
        if self.beat < 1 or self.beat & (self.beat - 1):
            raise ValueError(f"beat {self.beat!r} is not a power of two")
        if self.shape[1] > 1 and self.row % self.beat:
            raise ValueError(f"beat {self.beat!r} does not divide a row of {self.row} pixels")

    @property
    def size(self) -> int:
        return prod(self.shape)

    @property
    def row(self) -> int:
        """Pixels of a row, all channels."""
        return self.shape[0] * self.shape[2]

    @property
    def single(self) -> bool:
        """Whether the map is one pixel."""
        return self.shape[1:] == (1, 1)

    @property
    def beats(self) -> int:
        return -(-self.size // self.beat)

    @property
    def events(self) -> EventFormat:
        return EventFormat(self.shape, Interval(0, self.maximum), steps=False)

    @property
    def signature(self) -> stream.Signature:
        pixel = unsigned(self.maximum.bit_length())
        return stream.Signature(data.StructLayout({"data": data.ArrayLayout(pixel, self.beat), "last": 1}))


class PixelReader(wiring.Component):
    """Skips zeros: a beat with k pixels that are not zero takes max(1, k) cycles, an image's end two more.

    Each image is one step: what count code makes of it; in spike code `WakeSleep` plays the steps.

    An image ends at ``last``. Beats beyond its size are dropped, missing ones are zero, a pixel above the maximum counts
    as the maximum; each makes the ticket ``malformed``, and the next image starts afresh.

    Members
    -------
    pixels: In, see `PixelSpec.signature`; the image's first pixel is in element 0 of the first beat.
    events: Out, the pixels that are not zero in raster order, then the mark.
    tickets: Out, one `TICKET` an image, offered before its mark passes.
    now: In, the cycle counter.
    busy: Out, part of an image was taken and its mark has not passed.
    """

    def __init__(self, spec: PixelSpec):
        self.spec = spec
        super().__init__(
            {
                "pixels": In(spec.signature),
                "events": Out(spec.events.signature),
                "tickets": Out(stream.Signature(TICKET)),
                "now": In(32),
                "busy": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, beat = self.spec, self.spec.beat
        word = Signal.like(self.pixels.p.data, reset_less=True)
        pending = Signal(beat)  # elements of word not sent yet
        count = Signal(range(spec.beats + 1))  # beats of this image taken, at most all
        channels, _, width = spec.shape
        sizes = {"x": width, "channel": channels, "y": spec.shape[1]}
        x, channel, y = (Signal(range(max(size, 2)), name=name) for name, size in sizes.items())  # of word's first
        following = [Signal.like(counter, name=f"{counter.name}_following") for counter in (x, channel, y)]  # of the next word's
        ending = Signal()  # the image's last beat is in word
        ticketed = Signal()

        lane = Signal(index_bits(beat))
        for index in reversed(range(beat)):
            with m.If(pending[index]):
                m.d.comb += lane.eq(index)
        rest = pending & (pending - 1)
        m.submodules.skid = skid = Skid(spec.events.signature)
        events = skid.i
        wiring.connect(m, skid.o, wiring.flipped(self.events))
        place, across = self._place(channel, lane[: beat.bit_length() - 1])
        m.d.comb += [
            events.p.channel.eq(place),
            events.p.x.eq(x + across),
            events.p.y.eq(y),
            events.p.value.eq(word[lane]),
            events.p.mark.eq(~pending.any()),
            events.valid.eq(pending.any() | (ending & ticketed)),
            self.tickets.valid.eq(ending & ~ticketed),
            self.busy.eq((count != 0) | skid.o.valid),
            self.pixels.ready.eq(~ending & (~pending.any() | (events.ready & ~rest.any()))),
        ]
        with m.If(self.tickets.valid & self.tickets.ready):
            m.d.sync += ticketed.eq(1)
        with m.If(events.valid & events.ready):
            m.d.sync += pending.eq(rest)
            with m.If(events.p.mark):
                m.d.sync += [ending.eq(0), ticketed.eq(0), count.eq(0), self.tickets.p.malformed.eq(0)]
                m.d.sync += [counter.eq(0) for counter in following]

        with m.If(self.pixels.valid & self.pixels.ready):
            surplus = count == spec.beats
            end = count == spec.beats - 1
            present = Cat(pixel.any() for pixel in self.pixels.p.data)
            over = Cat(pixel > spec.maximum for pixel in self.pixels.p.data)
            inside = (1 << (spec.size - (spec.beats - 1) * beat)) - 1
            kept = present & Mux(end, inside, -1) & ~surplus.replicate(beat)
            m.d.sync += [
                word.eq(Cat(Mux(pixel > spec.maximum, spec.maximum, pixel) for pixel in self.pixels.p.data)),
                pending.eq(kept),
                *(counter.eq(after) for counter, after in zip((x, channel, y), following, strict=True)),
                count.eq(count + ~surplus),
                ending.eq(self.pixels.p.last),
                self.tickets.p.malformed.eq(self.tickets.p.malformed | (self.pixels.p.last != end) | (over & kept).any()),
            ]
            with m.If(count == 0):
                m.d.sync += self.tickets.p.start.eq(self.now)
            next_x, next_channel, next_y = following
            place, across = (next_channel + beat, 0) if spec.single else _divided(next_channel + beat, channels, channels + beat)
            m.d.sync += [next_channel.eq(place), next_x.eq(next_x + across)]
            with m.If(next_x + across >= width):
                m.d.sync += [next_x.eq(0), next_y.eq(next_y + 1)]
        return m

    def _place(self, channel: Signal, lane: Value) -> tuple[Value, Value]:
        """Channel of element ``lane`` of a beat that begins at ``channel``, and pixels between them."""
        channels, beat = self.spec.shape[0], self.spec.beat
        if self.spec.single or channels % beat == 0:
            return channel | lane, Const(0)
        if beat % channels == 0:
            return _divided(lane, channels, beat)
        return _divided(channel + lane, channels, channels + beat - 1)


def _divided(total, divisor: int, limit: int):
    """Remainder and quotient of a ``total`` below ``limit``."""
    quotient = sum((total >= times * divisor for times in range(1, (limit - 1) // divisor + 1)), Const(0))
    return total - quotient * divisor, quotient
