"""The conductor: keeps an image's input current and plays it step by step, wake and sleep."""

from __future__ import annotations

from dataclasses import dataclass, replace

from amaranth.hdl import Array, Cat, Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.streams import CurrentFormat, index_bits


@dataclass(frozen=True)
class ScheduleSpec:
    """When a network wakes and sleeps (see `casc_hw.IntegerNet`).

    Attributes
    ----------
    levels: T, wake steps in all.
    margin: wake steps before each sleep.
    sleep: most sleep steps in a sleep; None: until silence.
    bound: a sleep until silence that is longer is an error.
    depth: layers a step passes through; so many sleep steps are under way before the first is judged.
    """

    levels: int
    margin: int
    sleep: int | None
    bound: int
    depth: int

    @property
    def sleep_limit(self) -> int:
        return self.bound if self.sleep is None else self.sleep


@dataclass(frozen=True)
class WakeSpec:
    currents: CurrentFormat
    schedule: ScheduleSpec


class WakeSleep(wiring.Component):
    """Plays each image: its current again in every wake step, empty steps in sleep, until the read-out says it is settled.

    Two banks: the next image's current is taken while this one plays. Sleep steps are sent ahead of the verdict on those
    before them: a step after a silent one is silent too, so they change nothing and are not counted.

    Members
    -------
    i: In, one step an image: its input current.
    o: Out, the steps.
    settled: In, the running sleep is over (or, without sleep, the last wake step is).
    slept: In, a sleep step has passed the read-out.
    busy: Out, an image is kept or playing.
    """

    def __init__(self, spec: WakeSpec):
        self.spec = spec
        image = replace(spec.currents, steps=False)
        super().__init__({"i": In(image.signature), "o": Out(spec.currents.signature), "settled": In(1), "slept": In(1), "busy": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, schedule = self.spec.currents, self.spec.schedule
        bank_bits = index_bits(spec.chunks)
        layout = data.ArrayLayout(spec.layout.members["x"].elem_shape, spec.lanes)
        m.submodules.currents = currents = Memory(shape=layout, depth=2 << bank_bits, init=[])
        write, read = currents.write_port(), currents.read_port()
        full, blank = Array(Signal(name=f"full_{b}") for b in range(2)), Array(Signal(name=f"blank_{b}") for b in range(2))

        into, place = Signal(), Signal(bank_bits)
        m.d.comb += [
            self.i.ready.eq(~full[into]),
            write.addr.eq(Cat(place, into)),
            write.data.eq(self.i.p.x),
            write.en.eq(self.i.valid & self.i.ready),
            self.busy.eq(full[0] | full[1]),
        ]
        with m.If(self.i.valid & self.i.ready):
            m.d.sync += place.eq(place + 1)
            with m.If(self.i.p.mark):
                m.d.sync += [place.eq(0), into.eq(~into), full[into].eq(1), blank[into].eq(self.i.p.empty)]

        playing, chunk = Signal(), Signal(bank_bits)
        wakes = Signal(range(schedule.levels + 1))  # wake steps begun or sent, this one included
        block = Signal(range(schedule.margin + 1))  # of them since the last sleep
        sleeps = Signal(range(schedule.sleep_limit + 1))  # sleep steps of this sleep sent
        ahead = Signal(range(schedule.depth + 2))  # sleep steps sent and not judged
        held = Signal()  # the output register, and read.data, hold a transfer
        advance, send, wake = Signal(), Signal(), Signal()
        mark = (chunk == spec.chunks - 1) | blank[playing]
        final = Signal()
        m.d.comb += [advance.eq(~held | self.o.ready), read.en.eq(advance), read.addr.eq(Cat(chunk, playing))]
        m.d.comb += final.eq(wakes == schedule.levels)

        with m.FSM():
            with m.State("wait"):
                m.d.sync += [wakes.eq(1), block.eq(1)]
                with m.If(full[playing]):
                    m.next = "wake"
            with m.State("wake"):
                m.d.comb += [wake.eq(1), send.eq(advance)]
                m.d.sync += sleeps.eq(0)
                with m.If(send):
                    m.d.sync += chunk.eq(Mux(mark, 0, chunk + 1))
                with m.If(send & mark):
                    with m.If(final):
                        m.next = "sleep"
                    with m.Elif(block != schedule.margin):
                        m.d.sync += [wakes.eq(wakes + 1), block.eq(block + 1)]
                    with m.Elif(schedule.sleep_limit == 0):
                        m.d.sync += [wakes.eq(wakes + 1), block.eq(1)]
                    with m.Else():
                        m.next = "sleep"
            with m.State("sleep"):
                m.d.comb += send.eq(advance & (ahead <= schedule.depth) & (sleeps != schedule.sleep_limit) & ~self.settled)
                with m.If(send):
                    m.d.sync += sleeps.eq(sleeps + 1)
                with m.If(self.settled & final):
                    m.d.sync += [full[playing].eq(0), playing.eq(~playing)]
                    m.next = "wait"
                with m.Elif(self.settled):
                    m.d.sync += [wakes.eq(wakes + 1), block.eq(1)]
                    m.next = "wake"

        m.d.sync += ahead.eq(ahead + (send & ~wake) - self.slept)
        m.d.comb += [self.o.valid.eq(held), self.o.p.x.eq(read.data)]
        with m.If(advance):
            m.d.sync += [
                held.eq(send),
                self.o.p.mark.eq(~wake | mark),
                self.o.p.empty.eq(~wake | blank[playing]),
                self.o.p.step.wake.eq(wake),
                self.o.p.step.first.eq(wake & (wakes == 1)),
                self.o.p.step.final.eq(final),
            ]
        return m
