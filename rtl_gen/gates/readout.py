"""The read-out: currents in, logits and the class out."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod

from amaranth.hdl import Module, Mux, Signal, signed
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.pixels import TICKET
from rtl_gen.gates.streams import STEP, CurrentFormat, index_bits, rom_attributes
from rtl_gen.gates.wake import ScheduleSpec

WORD = stream.Signature(data.StructLayout({"data": 32, "last": 1}))
"""Results: per image one word a logit, then `STATUS`'s class, status and cycles; ``last`` on the final word."""
STATUS = data.StructLayout({"sleep_steps": 16, "reserved": 14, "malformed": 1, "unsettled": 1})
"""The status word: sleep steps run; the image was framed or valued wrongly; silence was not reached within the bound."""


@dataclass(frozen=True)
class ReadOutSpec:
    """Attributes
    ----------
    currents: format of the currents; its map is what leaves: classes, or the maps of a head.
    schedule: see `ScheduleSpec`.
    biases: one a channel, added in every wake step: T times in all, taken at the start.
    total: interval of the sums that leave.
    """

    currents: CurrentFormat
    schedule: ScheduleSpec
    biases: tuple[int, ...] = field(repr=False)
    total: Interval

    def __post_init__(self) -> None:
        if self.total.signed_bits > 32:
            raise ValueError(f"sums {self.total} do not fit a 32-bit word")


class ReadOut(wiring.Component):
    """Sums the currents of all steps; judges when a sleep is over; then sends sums, arg max (the lowest of equals), status, cycles.

    Sums leave in wire order, and the arg max is a place in it.

    A chunk takes two cycles. While a result leaves, the next image's steps wait.

    Members
    -------
    currents: In.
    tickets: In, one `TICKET` an image.
    result: Out, see `WORD`.
    now: In, the cycle counter.
    settled, slept: Out, see `WakeSleep`.
    busy: Out, a result is leaving.
    error: Out, the last image was malformed or unsettled.
    """

    def __init__(self, spec: ReadOutSpec):
        self.spec = spec
        super().__init__(
            {
                "currents": In(spec.currents.signature),
                "tickets": In(stream.Signature(TICKET)),
                "result": Out(WORD),
                "now": In(32),
                "settled": Out(1),
                "slept": Out(1),
                "busy": Out(1),
                "error": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, schedule, lanes = self.spec, self.spec.schedule, self.spec.currents.lanes
        size, chunks, parts = prod(spec.currents.shape), spec.currents.chunks, spec.currents.parts
        total = data.ArrayLayout(signed(spec.total.signed_bits), lanes)
        m.submodules.sums = sums = Memory(shape=total, depth=chunks, init=[])
        m.submodules.start = start = Memory(shape=total, depth=parts, init=self._start(), attrs=rom_attributes(parts))
        read, write, fresh = sums.read_port(), sums.write_port(), start.read_port()

        chunk, part = Signal(index_bits(chunks)), Signal(index_bits(parts))  # part: of its pixel
        next_part = Mux(part == parts - 1, 0, part + 1)
        step = Signal(STEP)
        m.d.comb += step.eq(self.currents.p.step if spec.currents.steps else STEP.const({"first": 1, "wake": 1, "final": 1}))
        slept = Signal(range(schedule.sleep_limit + 1))  # steps of this sleep
        sleeping = Signal(init=1)  # this sleep is not over
        sleep_steps = Signal(16)  # of all sleeps of this image
        status, cycles = Signal(STATUS), Signal(32)

        silent, limit, over, done = Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            silent.eq(~step.wake & ~step.active),
            limit.eq(~step.wake & (slept == schedule.sleep_limit - 1)),
            over.eq(step.wake & step.final if schedule.sleep_limit == 0 else sleeping & (silent | limit)),
            read.addr.eq(chunk),
            fresh.addr.eq(part),
            write.addr.eq(chunk),
        ]
        m.d.comb += [
            write.data[lane].eq(Mux(step.first, fresh.data[lane], read.data[lane]) + Mux(self.currents.p.empty, 0, self.currents.p.x[lane]))
            for lane in range(lanes)
        ]

        row, left = Signal(total, reset_less=True), Signal(range(lanes + 1))  # logits to send, of this chunk
        index, best, best_index = Signal(range(size + 1)), Signal(total.elem_shape), Signal(range(size))
        held = Signal.like(self.result.payload, reset_less=True)  # the word offered
        m.d.comb += [self.result.payload.eq(held), self.busy.eq(self.result.valid), self.error.eq(status.malformed | status.unsettled)]
        free = ~self.result.valid | self.result.ready
        with m.If(self.result.ready):
            m.d.sync += self.result.valid.eq(0)
        with m.FSM():
            with m.State("wait"), m.If(self.currents.valid):
                m.next = "add"
            with m.State("add"):
                skip = self.currents.p.empty & ~step.first
                last = Mux(self.currents.p.empty, skip | (chunk == chunks - 1), self.currents.p.mark)
                m.d.comb += [write.en.eq(~skip), done.eq(last), self.currents.ready.eq(last | ~self.currents.p.empty)]
                m.d.sync += [chunk.eq(Mux(last, 0, chunk + 1)), part.eq(Mux(last, 0, next_part))]
                m.next = "wait"
                with m.If(last & over & step.final):
                    m.next = "load"
            with m.State("load"):
                m.next = "fetch"
            with m.State("fetch"):
                short = spec.currents.shape[0] - (parts - 1) * lanes  # channels of a pixel's last chunk
                m.d.sync += [row.eq(read.data), left.eq(Mux(part == parts - 1, short, lanes)), chunk.eq(chunk + 1), part.eq(next_part)]
                m.next = "send"
            with m.State("send"):
                logit = row[0]
                with m.If(free):
                    m.d.sync += [self.result.valid.eq(1), held.data.eq(logit), held.last.eq(0), index.eq(index + 1)]
                    m.d.sync += [row.as_value().eq(row.as_value() >> total.elem_shape.width), left.eq(left - 1)]
                    with m.If((index == 0) | (logit > best)):
                        m.d.sync += [best.eq(logit), best_index.eq(index)]
                    with m.If(index == size - 1):
                        m.next = "class"
                    with m.Elif(left == 1):
                        m.next = "fetch"
            for state, word, following in (("class", best_index, "status"), ("status", status, "cycles"), ("cycles", cycles, "wait")):
                with m.State(state), m.If(free):
                    m.d.sync += [self.result.valid.eq(1), held.data.eq(word), held.last.eq(state == "cycles")]
                    m.next = following
                    if following == "wait":
                        m.d.sync += [chunk.eq(0), part.eq(0), index.eq(0)]

        with m.If(done):
            m.d.comb += [self.slept.eq(~step.wake), self.settled.eq(over)]
            m.d.sync += slept.eq(Mux(step.wake | over, 0, slept + 1))
            with m.If(step.wake):
                m.d.sync += sleeping.eq(1)
            with m.Elif(sleeping):
                m.d.sync += [sleeping.eq(~over), sleep_steps.eq(sleep_steps + 1)]
            with m.If(over & step.final):
                m.d.comb += self.tickets.ready.eq(1)
                m.d.sync += [
                    sleep_steps.eq(0),
                    status.sleep_steps.eq(sleep_steps + ~step.wake),
                    status.malformed.eq(self.tickets.p.malformed),
                    status.unsettled.eq(~silent if schedule.sleep is None else 0),
                    cycles.eq(self.now - self.tickets.p.start),
                ]
        return m

    def _start(self) -> list[list[int]]:
        lanes, levels = self.spec.currents.lanes, self.spec.schedule.levels
        padded = [levels * bias for bias in self.spec.biases] + [0] * lanes
        return [padded[first : first + lanes] for first in range(0, len(self.spec.biases), lanes)]
