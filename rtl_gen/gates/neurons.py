"""CIF neurons, and the encoder that turns their volleys into events."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import STEP, CurrentFormat, EventFormat, index_bits, rom_attributes

LATENCY = 5
"""Cycles from a chunk's entry until its new state can be read."""
VOLLEYS = 8
"""Volleys that may wait for the encoder."""


@dataclass(frozen=True)
class NeuronSpec:
    """A layer of CIF neurons, ``currents.lanes`` (a power of two) updated at a time.

    Attributes
    ----------
    currents: format of the currents; its size is the number of neurons.
    levels: T.
    thresholds, biases: one a neuron.
    potential: interval of the potential, the spike's effect included.
    """

    currents: CurrentFormat
    levels: int
    thresholds: tuple[int, ...] = field(repr=False)
    biases: tuple[int, ...] = field(repr=False)
    potential: Interval

    def __post_init__(self) -> None:
        if self.currents.lanes & (self.currents.lanes - 1):
            raise ValueError(f"{self.currents.lanes!r} lanes are not a power of two")

    @property
    def events(self) -> EventFormat:
        return EventFormat(self.currents.size, Interval(-1, 1))

    @property
    def count_bits(self) -> int:
        return self.levels.bit_length()

    @property
    def threshold_bits(self) -> int:
        return max(self.thresholds).bit_length()

    @property
    def bias_bits(self) -> int:
        return Interval.hull(self.biases).signed_bits

    @property
    def volley(self) -> data.StructLayout:
        """What one chunk emits: masks of lanes with a positive and with a negative spike."""
        return data.StructLayout(
            {
                "mark": 1,
                "step": STEP,
                "chunk": unsigned(index_bits(self.currents.chunks)),
                "up": unsigned(self.currents.lanes),
                "down": unsigned(self.currents.lanes),
            }
        )

    @property
    def constants(self) -> data.StructLayout:
        return data.StructLayout({"threshold": unsigned(self.threshold_bits), "bias": signed(self.bias_bits)})


class NeuronArray(wiring.Component):
    """One step of each neuron, as in ``docs/semantics.md``:

        v' = v + x + (bias in wake);  spike = +1 if v' >= theta and n < t, -1 if v' < 0 and n > 0, else 0
        v  = v' - spike * theta;      n = n + spike

    with t the image's wake steps so far. A chunk a cycle; a step takes at least `LATENCY` cycles. An empty sleep step after
    a step in which no neuron here spiked can spike none either, and takes one cycle. Chunks without a spike send no volley.

    Members
    -------
    currents: In.
    volleys: Out, in order of chunks; the step's last has ``mark``, and ``active`` if a neuron spiked here or before.
    busy: Out, a chunk is in the pipeline.
    """

    def __init__(self, spec: NeuronSpec):
        self.spec = spec
        super().__init__({"currents": In(spec.currents.signature), "volleys": Out(stream.Signature(spec.volley)), "busy": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, lanes, chunks = self.spec, self.spec.currents.lanes, self.spec.currents.chunks
        v_shape, n_shape = signed(spec.potential.bits), unsigned(spec.count_bits)
        layout = data.ArrayLayout(data.StructLayout({"v": v_shape, "n": n_shape}), lanes)
        m.submodules.state = state = Memory(shape=layout, depth=chunks, init=[])
        m.submodules.constants = constants = Memory(
            shape=data.ArrayLayout(spec.constants, lanes), depth=chunks, init=_constants(spec), attrs=rom_attributes(chunks)
        )
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=spec.volley.as_shape().width, depth=VOLLEYS)
        read, write, constant = state.read_port(), state.write_port(), constants.read_port()

        # Enter: a chunk of the transfer offered; of an empty one, each chunk in turn, or none where all neurons rest.
        step = self.currents.p.step
        chunk, t_last, t = Signal(index_bits(chunks)), Signal(n_shape), Signal(n_shape)
        credits = Signal(range(VOLLEYS + 1), init=VOLLEYS)
        restless, quiet, enter, skip, last = Signal(), Signal(), Signal(), Signal(), Signal()
        m.d.comb += [
            quiet.eq(self.currents.p.empty & ~step.wake),
            skip.eq(quiet & ~restless & (chunk == 0)),
            last.eq(Mux(self.currents.p.empty, skip | (chunk == chunks - 1), self.currents.p.mark)),
            # The chunk of the step before must have left; what an empty step does depends on all of the step before.
            enter.eq(self.currents.valid & (credits != 0) & ~((chunk == 0) & self.busy & (quiet | int(chunks < LATENCY)))),
            self.currents.ready.eq(enter & (last | ~self.currents.p.empty)),
            t.eq(Mux(step.wake & (chunk == 0), Mux(step.first, 1, t_last + 1), t_last)),
            read.addr.eq(chunk),
            constant.addr.eq(chunk),
        ]
        with m.If(enter):
            m.d.sync += [chunk.eq(Mux(last, 0, chunk + 1)), t_last.eq(t)]

        # The pipeline, which never waits: state read, current with bias, potential, potential less threshold, verdict.
        tag = data.StructLayout({"on": 1, "skip": 1, "last": 1, "step": STEP, "chunk": chunk.shape(), "t": n_shape})
        tags = [Signal(tag, name=f"tag_{stage}") for stage in range(LATENCY)]
        for field_name, value in {"on": enter, "skip": skip, "last": last, "step": step, "chunk": chunk, "t": t}.items():
            m.d.comb += getattr(tags[0], field_name).eq(value)
        m.d.sync += [after.eq(before) for before, after in pairwise(tags)]
        m.d.comb += self.busy.eq(Cat(after.on for after in tags[1:]).any())
        done = tags[-1]
        ups, downs = [], []
        for lane in range(lanes):
            ups.append(Signal(name=f"up_{lane}"))
            downs.append(Signal(name=f"down_{lane}"))
            self._lane(m, lane, tags, read.data[lane], constant.data[lane], write.data[lane], ups[-1], downs[-1])
        m.d.comb += [write.addr.eq(done.chunk), write.en.eq(done.on & ~done.skip)]

        volley = Signal(spec.volley)
        spiked, before = Signal(), Signal()  # a neuron of this chunk, of the chunks before it, spiked
        push = Signal()
        m.d.comb += [
            volley.up.eq(Mux(done.skip, 0, Cat(ups))),
            volley.down.eq(Mux(done.skip, 0, Cat(downs))),
            volley.chunk.eq(done.chunk),
            volley.mark.eq(done.last),
            volley.step.eq(done.step),
            volley.step.active.eq(done.step.active | spiked | before),
            spiked.eq((volley.up | volley.down).any()),
            push.eq(done.on & (done.last | spiked)),
            fifo.w_data.eq(volley),
            fifo.w_en.eq(push),
            self.volleys.valid.eq(fifo.r_rdy),
            self.volleys.payload.eq(fifo.r_data),
            fifo.r_en.eq(self.volleys.ready),
        ]
        with m.If(done.on):
            m.d.sync += before.eq(~done.last & (before | spiked))
            with m.If(done.last):
                m.d.sync += restless.eq(before | spiked)
        m.d.sync += credits.eq(credits - enter + (done.on & ~push) + (self.volleys.valid & self.volleys.ready))
        return m

    def _lane(self, m: Module, lane: int, tags, state, constant, result, up: Signal, down: Signal) -> None:
        """The datapath of one neuron a cycle; registers of stage k hold the chunk of ``tags[k]``."""
        spec = self.spec
        shape = signed(spec.potential.bits)

        def register(name: str, value, like=shape) -> Signal:
            signal = Signal(like, name=f"{name}_{lane}", reset_less=True)
            m.d.sync += signal.eq(value)
            return signal

        x = register("x", self.currents.p.x[lane], self.currents.p.x[lane].shape())
        with m.If(self.currents.p.empty):
            m.d.sync += x.eq(0)
        current = register("current", x + Mux(tags[1].step.wake, constant.bias, 0))
        v, n = register("v", state.v), register("n", state.n, state.n.shape())
        with m.If(tags[1].step.first):
            m.d.sync += [v.eq(0), n.eq(0)]
        theta = register("theta", constant.threshold, constant.threshold.shape())
        moved = register("moved", v + current)
        n, theta = register("n2", n, n.shape()), register("theta2", theta, theta.shape())
        # One adder takes the threshold off a potential that is not negative and adds it to one that is.
        below = moved[-1]
        signed_theta = Cat(theta, 0).as_signed() ^ (~below).replicate(len(theta) + 1).as_signed()
        paid = register("paid", (Cat(1, moved).as_signed() + Cat(~below, signed_theta).as_signed())[1:].as_signed())
        kept, n = register("kept", moved), register("n3", n, n.shape())
        t = tags[4].t
        m.d.comb += [
            up.eq(~kept[-1] & ~paid[-1] & (n < t)),
            down.eq(kept[-1] & (n > 0)),
            result.v.eq(Mux(up | down, paid, kept)),
            result.n.eq(n + up - down),
        ]


class SpikeEncoder(wiring.Component):
    """Sends a volley's spikes one a cycle in order of address, and a mark after the last volley of a step.

    Members
    -------
    volleys: In.
    events: Out, values -1 and +1.
    """

    def __init__(self, spec: NeuronSpec):
        self.spec = spec
        super().__init__({"volleys": In(stream.Signature(spec.volley)), "events": Out(spec.events.signature)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        volley = Signal(self.spec.volley)
        lanes = self.spec.currents.lanes
        lane = Signal(index_bits(lanes))
        pending = volley.up | volley.down
        rest = Signal(lanes)
        for index in reversed(range(lanes)):
            with m.If(pending[index]):
                m.d.comb += lane.eq(index)
        m.d.comb += [
            rest.eq(pending & (pending - 1)),
            self.events.valid.eq(pending.any() | volley.mark),
            self.events.p.mark.eq(~pending.any()),
            self.events.p.step.eq(volley.step),
            self.events.p.address.eq(Cat(lane[: lanes.bit_length() - 1], volley.chunk)),
            self.events.p.value.eq(Mux((volley.up & ~rest & pending).any(), 1, -1)),
            self.volleys.ready.eq(~self.events.valid | (self.events.ready & Mux(volley.mark, ~pending.any(), ~rest.any()))),
        ]
        with m.If(self.events.valid & self.events.ready):
            m.d.sync += [volley.up.eq(volley.up & rest), volley.down.eq(volley.down & rest)]
            with m.If(self.events.p.mark):
                m.d.sync += volley.mark.eq(0)
        with m.If(self.volleys.ready):
            m.d.sync += volley.eq(Mux(self.volleys.valid, self.volleys.payload, 0))
        return m


def _constants(spec: NeuronSpec) -> list[list[dict[str, int]]]:
    """By chunk, by lane; lanes beyond the last neuron never spike: threshold 1, nothing ever added."""
    size, lanes = spec.currents.size, spec.currents.lanes
    return [
        [
            {"threshold": spec.thresholds[i], "bias": spec.biases[i]} if i < size else {"threshold": 1, "bias": 0}
            for i in range(first, first + lanes)
        ]
        for first in range(0, size, lanes)
    ]
