"""Neurons: currents in, volleys out; CIF neurons step by step (spike code), or their final counts at once (count code)."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise

from amaranth.hdl import Cat, Module, Mux, Signal, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from casc_hw.fixed import Interval
from rtl_gen.gates.streams import CurrentFormat, Raster, VolleyFormat, index_bits, rom_attributes

LATENCY = 5
"""Cycles from a chunk's entry until a CIF neuron's new state can be read."""
VOLLEYS = 16
"""Volleys that may wait for the encoder."""


@dataclass(frozen=True)
class _ArraySpec:
    """A layer of neurons, ``currents.lanes`` (a power of two) updated at a time.

    Attributes
    ----------
    currents: format of the currents; its map is that of the neurons.
    levels: T.
    thresholds, biases: one a channel.
    """

    currents: CurrentFormat
    levels: int
    thresholds: tuple[int, ...] = field(repr=False)
    biases: tuple[int, ...] = field(repr=False)

    def __post_init__(self) -> None:
        if self.currents.lanes & (self.currents.lanes - 1):
            raise ValueError(f"{self.currents.lanes!r} lanes are not a power of two")
        if not len(self.thresholds) == len(self.biases) == self.currents.shape[0]:
            raise ValueError(f"{len(self.thresholds)} thresholds and {len(self.biases)} biases for {self.currents.shape[0]} channels")
        if min(self.thresholds) < 1:
            raise ValueError(f"a threshold of {min(self.thresholds)}; it must be positive")
        if self.levels < 1:
            raise ValueError(f"{self.levels!r} levels; there must be at least one")

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
    def constants(self) -> data.StructLayout:
        return data.StructLayout({"threshold": unsigned(self.threshold_bits), "bias": signed(self.bias_bits)})

    @property
    def rows(self) -> list[list[dict[str, int]]]:
        """Constants by part of a pixel, by lane; lanes beyond the last channel never fire: threshold 1, nothing ever added."""
        lanes, unused = self.currents.lanes, {"threshold": 1, "bias": 0}
        entries = [{"threshold": theta, "bias": bias} for theta, bias in zip(self.thresholds, self.biases, strict=True)]
        entries += [unused] * (-len(entries) % lanes)
        return [entries[first : first + lanes] for first in range(0, len(entries), lanes)]


@dataclass(frozen=True)
class NeuronSpec(_ArraySpec):
    """CIF neurons in spike code.

    Attributes
    ----------
    potential: interval of the potential, the spike's effect included.
    dense: every chunk sends a volley, a pool follows.
    cumulative: volleys tell counts since the image began instead of spikes, as a maximum needs them; they are dense.
    """

    potential: Interval
    dense: bool = False
    cumulative: bool = False

    @property
    def volleys(self) -> VolleyFormat:
        value = Interval(0, self.levels) if self.cumulative else Interval(-1, 1)
        return VolleyFormat(self.currents.shape, self.currents.lanes, value, steps=self.currents.steps)

    @property
    def complete(self) -> bool:
        """Whether every chunk sends a volley."""
        return self.dense or self.cumulative

    @property
    def latency(self) -> int:
        """Cycles from a chunk's entry to its volley."""
        return LATENCY


@dataclass(frozen=True)
class CountSpec(_ArraySpec):
    """Neurons in count code; ``biases`` are those of all T steps.

    Attributes
    ----------
    gain: S = gain * x + bias: T where x is an image's current, which comes again in each wake step, else 1.
    total: interval of S.
    dense: every chunk sends a volley, a pool follows.
    """

    gain: int
    total: Interval
    dense: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.gain < 1:
            raise ValueError(f"a gain of {self.gain!r}; it must be positive")

    @property
    def volleys(self) -> VolleyFormat:
        return VolleyFormat(self.currents.shape, self.currents.lanes, Interval(0, self.levels), steps=self.currents.steps)

    @property
    def complete(self) -> bool:
        """Whether every chunk sends a volley."""
        return self.dense

    @property
    def latency(self) -> int:
        """Cycles from a chunk's entry to its volley."""
        return 3 + self.count_bits


class _Array(wiring.Component):
    """What both kinds share: chunks enter, go down a pipeline of ``latency`` stages that never waits, and end in a FIFO of volleys.

    Chunks that say nothing send no volley unless ``dense``, the step's last excepted. A transfer that is ``empty`` stands for all chunks
    with no current.

    Members
    -------
    currents: In.
    volleys: Out, in order of chunks; the step's last has ``mark``, and ``active`` if a neuron spiked here or before.
    busy: Out, a chunk is in the pipeline.
    """

    def __init__(self, spec: NeuronSpec | CountSpec):
        self.spec = spec
        super().__init__({"currents": In(spec.currents.signature), "volleys": Out(spec.volleys.signature), "busy": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, lanes = self.spec, self.spec.currents.lanes
        constants = Memory(
            shape=data.ArrayLayout(spec.constants, lanes), depth=len(spec.rows), init=spec.rows, attrs=rom_attributes(len(spec.rows))
        )
        m.submodules.constants = constants
        m.submodules.fifo = fifo = SyncFIFOBuffered(width=spec.volleys.layout.size, depth=VOLLEYS)
        constant = constants.read_port()

        place, start = Raster(m, spec.currents, "place"), Signal(init=1)  # the chunk that enters; the step's first
        credits = Signal(range(VOLLEYS + 1), init=VOLLEYS)
        enter, skip, last, wait, t = Signal(), Signal(), Signal(), Signal(), Signal(spec.count_bits)
        m.d.comb += [
            last.eq(Mux(self.currents.p.empty, skip | place.last, self.currents.p.mark)),
            enter.eq(self.currents.valid & (credits != 0) & ~wait),
            self.currents.ready.eq(enter & (last | ~self.currents.p.empty)),
            constant.addr.eq(place.part),
        ]
        with m.If(enter):
            place.advance(m, restart=last)
            m.d.sync += start.eq(last)

        fields = {"part": place.part, "x": place.x, "y": place.y}
        step = self.currents.p.step
        flags = {"on": 1, "skip": 1, "last": 1, "step": step.shape(), "t": len(t), "chunk": index_bits(spec.currents.chunks)}
        layout = data.StructLayout(flags | {name: len(counter) for name, counter in fields.items()})
        tags = [Signal(layout, name=f"tag_{stage}") for stage in range(spec.latency)]
        known = {"on": enter, "skip": skip, "last": last, "step": step, "t": t} | fields
        m.d.comb += [tags[0][name].eq(value) for name, value in known.items()]
        m.d.sync += [after.eq(before) for before, after in pairwise(tags)]
        m.d.comb += self.busy.eq(Cat(after.on for after in tags[1:]).any())
        done = tags[-1]
        fired = Signal(lanes)
        volley = Signal(spec.volleys.layout)
        values = self._neurons(m, tags, start, skip, wait, t, constant.data, fired)

        spiked, before, push = Signal(), Signal(), Signal()  # a neuron of this chunk, of the chunks before it, spiked
        m.d.comb += [
            *(volley.values[lane].eq(Mux(done.skip, 0, value)) for lane, value in enumerate(values)),
            *(volley[name].eq(done[name]) for name in ("step", *fields)),
            volley.mark.eq(done.last),
            volley.empty.eq(done.skip),
            spiked.eq(fired.any() & ~done.skip),
            push.eq(done.on & (done.last | spiked | int(spec.complete))),
            fifo.w_data.eq(volley),
            fifo.w_en.eq(push),
            self.volleys.valid.eq(fifo.r_rdy),
            self.volleys.payload.eq(fifo.r_data),
            fifo.r_en.eq(self.volleys.ready),
        ]
        if spec.currents.steps:
            m.d.comb += volley.step.active.eq(done.step.active | spiked | before)
        with m.If(done.on):
            m.d.sync += before.eq(~done.last & (before | spiked))
        self._restless(m, done, before | spiked)
        m.d.sync += credits.eq(credits - enter + (done.on & ~push) + (self.volleys.valid & self.volleys.ready))
        return m

    def _neurons(self, m: Module, tags, start, skip, wait, t, constant, fired):
        """The neurons between their tags: drives ``skip``, ``wait``, ``t`` at the entry, and ``fired``; what each lane says at the end."""
        raise NotImplementedError

    def _restless(self, m: Module, done, spiked) -> None:
        """Remembers at a step's end whether a neuron here spiked in it, where that matters."""


class NeuronArray(_Array):
    """One step of each neuron, as in ``docs/semantics.md``:

        v' = v + x + (bias in wake);  spike = +1 if v' >= theta and n < t, -1 if v' < 0 and n > 0, else 0
        v  = v' - spike * theta;      n = n + spike

    with t the image's wake steps so far. A chunk a cycle; a step takes at least `LATENCY` cycles. An empty sleep step after
    a step in which no neuron here spiked can spike none either, and takes one cycle.
    """

    spec: NeuronSpec

    def _neurons(self, m: Module, tags, start, skip, wait, t, constant, fired):
        spec, lanes, chunks = self.spec, self.spec.currents.lanes, self.spec.currents.chunks
        v_shape, n_shape = signed(spec.potential.bits), unsigned(spec.count_bits)
        layout = data.ArrayLayout(data.StructLayout({"v": v_shape, "n": n_shape}), lanes)
        m.submodules.state = state = Memory(shape=layout, depth=chunks, init=[])
        read, write = state.read_port(), state.write_port()
        step = self.currents.p.step
        chunk, t_last, quiet, done = Signal(index_bits(chunks)), Signal(n_shape), Signal(), tags[-1]
        self.restless = Signal()
        m.d.comb += [
            quiet.eq(self.currents.p.empty & ~step.wake),
            skip.eq(quiet & ~self.restless & start),
            # The chunk of the step before must have left; what an empty step does depends on all of the step before.
            wait.eq(start & self.busy & (quiet | int(chunks < LATENCY))),
            t.eq(Mux(step.wake & start, Mux(step.first, 1, t_last + 1), t_last)),
            read.addr.eq(chunk),
            tags[0].chunk.eq(chunk),
            write.addr.eq(done.chunk),
            write.en.eq(done.on & ~done.skip),
        ]
        with m.If(tags[0].on):
            m.d.sync += [chunk.eq(Mux(tags[0].last, 0, chunk + 1)), t_last.eq(t)]
        return [self._lane(m, lane, tags, read.data[lane], constant[lane], write.data[lane], fired[lane]) for lane in range(lanes)]

    def _restless(self, m: Module, done, spiked) -> None:
        with m.If(done.on & done.last):
            m.d.sync += self.restless.eq(spiked)

    def _lane(self, m: Module, lane: int, tags, state, constant, result, fired):
        """The datapath of one neuron a cycle; registers of stage k hold the chunk of ``tags[k]``."""
        shape = signed(self.spec.potential.bits)

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
        up, down = Signal(name=f"up_{lane}"), Signal(name=f"down_{lane}")
        m.d.comb += [
            up.eq(~kept[-1] & ~paid[-1] & (n < t)),
            down.eq(kept[-1] & (n > 0)),
            fired.eq(up | down),
            result.v.eq(Mux(up | down, paid, kept)),
            result.n.eq(n + up - down),
        ]
        return result.n if self.spec.cumulative else Cat(up | down, down).as_signed()


class CountArray(_Array):
    """The count at which each neuron comes to rest: n = clip(floor(S / theta), 0, T), by subtracting theta times 2^k, the largest first.

    A chunk a cycle.
    """

    spec: CountSpec

    def _neurons(self, m: Module, tags, start, skip, wait, t, constant, fired):
        return [self._lane(m, lane, constant[lane], fired[lane]) for lane in range(self.spec.currents.lanes)]

    def _lane(self, m: Module, lane: int, constant, fired):
        spec = self.spec
        shape = signed(spec.total.signed_bits)

        def register(name: str, value, like) -> Signal:
            signal = Signal(like, name=f"{name}_{lane}", reset_less=True)
            m.d.sync += signal.eq(value)
            return signal

        x = register("x", Mux(self.currents.p.empty, 0, self.currents.p.x[lane]), self.currents.p.x[lane].shape())
        rest = register("total", x * spec.gain + constant.bias, shape)
        theta, n = register("theta", constant.threshold, constant.threshold.shape()), Signal(0)
        for bit in reversed(range(spec.count_bits)):
            less = rest - (theta << bit)
            fits = ~less[-1]
            rest = register(f"rest_{bit}", Mux(fits, less, rest), shape)
            theta = register(f"theta_{bit}", theta, theta.shape())
            n = register(f"count_{bit}", Cat(fits, n), spec.count_bits - bit)
        clipped = Mux(n > spec.levels, spec.levels, n)
        m.d.comb += fired.eq(n.any())
        return clipped
