"""The whole network in gates: pixels in, results out."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFO
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.neurons import NeuronArray, NeuronSpec, SpikeEncoder
from rtl_gen.gates.pixels import TICKET, PixelReader, PixelSpec
from rtl_gen.gates.readout import WORD, ReadOut, ReadOutSpec
from rtl_gen.gates.replay import Replay, ReplaySpec
from rtl_gen.gates.streams import Skid, Throttle
from rtl_gen.gates.synapses import Synapses, SynapsesSpec
from rtl_gen.gates.wake import ScheduleSpec, WakeSleep, WakeSpec

TICKETS = 4
"""Images that may be on their way between the pixel reader's mark and their result."""


@dataclass(frozen=True)
class CoreSpec:
    """A chain of layers: ``synapses[i]`` feeds ``neurons[i]``, the last feeds the read-out; formats meet or ValueError."""

    pixels: PixelSpec
    schedule: ScheduleSpec
    synapses: tuple[SynapsesSpec, ...]
    neurons: tuple[NeuronSpec, ...]
    readout: ReadOutSpec

    def __post_init__(self) -> None:
        events = [self.pixels.events, *(neurons.events for neurons in self.neurons)]
        currents = [*(neurons.currents for neurons in self.neurons), self.readout.currents]
        for index, synapses in enumerate(self.synapses):
            if synapses.events != events[index] or synapses.currents != currents[index]:
                raise ValueError(f"layer {index} takes {synapses.events} to {synapses.currents}, not {events[index]} to {currents[index]}")
        if len(self.synapses) != len(self.neurons) + 1 or self.readout.schedule != self.schedule:
            raise ValueError("the layers do not make a chain")

    @property
    def streams(self) -> int:
        """Streams within the core: three a layer, the neurons' volleys, and the first layer's steps."""
        return 3 * len(self.synapses) + len(self.neurons) + 1


class Core(wiring.Component):
    """One engine a layer, all at work at once, joined by streams. Domain: ``sync``.

    Members
    -------
    pixels: In, see `PixelSpec.signature`.
    result: Out, see `rtl_gen.gates.readout.WORD`.
    busy: Out, an image is under way.
    error: Out, the last result was malformed or unsettled.
    stall: In, with ``bench``: one bit a stream within (see `Throttle`), in the order of ``streams``.
    spikes_<layer>: Out, with ``bench``: what passes on the layer's event stream.
    """

    def __init__(self, spec: CoreSpec, *, bench: bool = False):
        self.spec, self.bench = spec, bench
        members = {"pixels": In(spec.pixels.signature), "result": Out(WORD), "busy": Out(1), "error": Out(1)}
        if bench:
            members["stall"] = In(spec.streams)
            for index, neurons in enumerate(spec.neurons):
                members[f"spikes_{index}"] = Out(data.StructLayout({"fire": 1, "event": neurons.events.layout}))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self.spec
        throttles = iter(range(spec.streams))

        def join(source: stream.Interface, sink: stream.Interface) -> None:
            if self.bench:
                index = next(throttles)
                m.submodules[f"throttle_{index}"] = throttle = Throttle(source.signature)
                m.d.comb += throttle.stall.eq(self.stall[index])
                wiring.connect(m, source, throttle.i)
                source = throttle.o
            wiring.connect(m, source, sink)

        m.submodules.reader = reader = PixelReader(spec.pixels)
        m.submodules.wake_sleep = conductor = WakeSleep(WakeSpec(spec.neurons[0].currents, spec.schedule))
        m.submodules.readout = readout = ReadOut(spec.readout)
        m.submodules.tickets = tickets = SyncFIFO(width=TICKET.size, depth=TICKETS)

        wiring.connect(m, wiring.flipped(self.pixels), reader.pixels)
        events = reader.events
        for index, synapses_spec in enumerate(spec.synapses):
            m.submodules[f"replay_{index}"] = replay = Replay(ReplaySpec(synapses_spec.events, synapses_spec.passes))
            m.submodules[f"synapses_{index}"] = synapses = Synapses(synapses_spec)
            join(events, replay.i)
            join(replay.o, synapses.events)
            currents = synapses.currents
            if index == 0:
                join(currents, conductor.i)
                m.submodules.skid = skid = Skid(conductor.o.signature)
                wiring.connect(m, conductor.o, skid.i)
                currents = skid.o
            if index == len(spec.neurons):
                join(currents, readout.currents)
                break
            m.submodules[f"neurons_{index}"] = neurons = NeuronArray(spec.neurons[index])
            m.submodules[f"encoder_{index}"] = encoder = SpikeEncoder(spec.neurons[index])
            join(currents, neurons.currents)
            join(neurons.volleys, encoder.volleys)
            events = encoder.events
            if self.bench:
                tap = getattr(self, f"spikes_{index}")
                m.d.comb += [tap.fire.eq(events.valid & events.ready), tap.event.eq(events.payload)]
        wiring.connect(m, readout.result, wiring.flipped(self.result))

        now = Signal(32)
        m.d.sync += now.eq(now + 1)
        m.d.comb += [reader.now.eq(now), readout.now.eq(now), conductor.settled.eq(readout.settled), conductor.slept.eq(readout.slept)]
        m.d.comb += [
            tickets.w_en.eq(reader.tickets.valid),
            tickets.w_data.eq(reader.tickets.payload),
            reader.tickets.ready.eq(tickets.w_rdy),
            readout.tickets.valid.eq(tickets.r_rdy),
            readout.tickets.payload.eq(tickets.r_data),
            tickets.r_en.eq(readout.tickets.ready),
            self.busy.eq(reader.busy | tickets.r_rdy | readout.busy),
            self.error.eq(readout.error),
        ]
        return m
