"""The whole network in gates: pixels in, results out."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property, reduce

from amaranth.hdl import Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.fifo import SyncFIFOBuffered
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.encoder import SpikeEncoder
from rtl_gen.gates.neurons import CountArray, CountSpec, NeuronArray, NeuronSpec
from rtl_gen.gates.pixels import TICKET, PixelReader, PixelSpec
from rtl_gen.gates.pools import Difference, PoolSpec, WindowPool
from rtl_gen.gates.readout import WORD, ReadOut, ReadOutSpec
from rtl_gen.gates.replay import Replay, ReplaySpec
from rtl_gen.gates.serial import SerialSpec, SerialSynapses
from rtl_gen.gates.spram import WEIGHTS, WeightLoader
from rtl_gen.gates.streams import CurrentSum, EventFormat, Fork, Queue, Skid, Throttle, VolleyFormat
from rtl_gen.gates.synapses import Synapses, SynapsesSpec
from rtl_gen.gates.wake import ScheduleSpec, WakeSleep, WakeSpec
from rtl_gen.gates.walk import Walk

TICKETS = 64
"""Of a core that is built, see `Core`."""


@dataclass(frozen=True)
class SynapsesInput:
    """A set of synapses of a layer: the node whose events it takes (None: the image), and a queue of ``queue`` events before it.

    Where streams that part meet again, the queue must hold a step's events and its mark, else one side could wait for the other for ever.
    """

    source: str | None
    spec: SynapsesSpec
    queue: int


@dataclass(frozen=True)
class LayerSpec:
    """Neurons and their synapses; ``neurons`` is None for the read-out."""

    name: str
    inputs: tuple[SynapsesInput, ...]
    neurons: NeuronSpec | CountSpec | None


@dataclass(frozen=True)
class PoolNode:
    """A pool over the neurons, or the pool, ``source``."""

    name: str
    source: str
    spec: PoolSpec


@dataclass(frozen=True)
class CoreSpec:
    """Nodes in order of the data's way, the read-out last.

    Attributes
    ----------
    pixels: the image's way in.
    schedule: of wake and sleep; None in count code.
    nodes: layers and pools; the image feeds the first, and that alone.
    readout: what the last layer's currents go to.
    """

    pixels: PixelSpec
    schedule: ScheduleSpec | None
    nodes: tuple[LayerSpec | PoolNode, ...]
    readout: ReadOutSpec

    def __post_init__(self) -> None:
        for layer in self.layers:
            for index, synapses in enumerate(layer.inputs):
                events = self.pixels.events if synapses.source is None else self.events(synapses.source)
                currents = self.readout.currents if layer.neurons is None else layer.neurons.currents
                currents = replace(currents, steps=events.steps)  # those of the image's are told by `WakeSleep`
                if synapses.spec.events != events or synapses.spec.currents != currents:
                    raise ValueError(f"{layer.name}, synapses {index}: take {synapses.spec.events}, not {events}, or give other currents")
        if [layer.neurons is None for layer in self.layers] != [False] * (len(self.layers) - 1) + [True]:
            raise ValueError("the last layer, and no other, is the read-out")

    @cached_property
    def by_name(self) -> dict[str, LayerSpec | PoolNode]:
        return {node.name: node for node in self.nodes}

    @property
    def layers(self) -> tuple[LayerSpec, ...]:
        return tuple(node for node in self.nodes if isinstance(node, LayerSpec))

    @property
    def spiking(self) -> tuple[LayerSpec, ...]:
        """Layers with neurons."""
        return self.layers[:-1]

    @property
    def stored(self) -> tuple[SynapsesSpec, ...]:
        """Synapses whose weights are loaded, in that order."""
        return tuple(synapses.spec for layer in self.layers for synapses in layer.inputs if synapses.spec.store is not None)

    @property
    def counting(self) -> bool:
        """Count code, not spike code."""
        return self.schedule is None

    def volleys(self, name: str) -> VolleyFormat:
        """What node ``name`` says of a step."""
        node = self.by_name[name]
        if isinstance(node, PoolNode):
            return node.spec.output
        assert node.neurons is not None
        return node.neurons.volleys

    def cumulative(self, name: str) -> bool:
        """Whether node ``name`` says what there has been since the image began, not what happened in the step."""
        node = self.by_name[name]
        if isinstance(node, PoolNode):
            return self.cumulative(node.source)
        return isinstance(node.neurons, NeuronSpec) and node.neurons.cumulative

    def events(self, name: str) -> EventFormat:
        """The events that leave node ``name``: its volleys, or what has changed in them since the step before."""
        volleys = self.volleys(name)
        if not self.cumulative(name):
            return EventFormat(volleys.shape, volleys.value, volleys.steps)
        node = self.by_name[name]
        windows = 1
        while isinstance(node, PoolNode):
            windows *= node.spec.kernel[0] * node.spec.kernel[1] if node.spec.kind == "average" else 1
            node = self.by_name[node.source]
        return EventFormat(volleys.shape, type(volleys.value)(-windows, windows), volleys.steps)

    @cached_property
    def consumers(self) -> dict[str | None, tuple[list[PoolNode], list[tuple[LayerSpec, int]]]]:
        """By node (None: the image): the pools over it, and the synapses that take its events."""
        found: dict[str | None, tuple[list[PoolNode], list[tuple[LayerSpec, int]]]] = defaultdict(lambda: ([], []))
        for node in self.nodes:
            if isinstance(node, PoolNode):
                found[node.source][0].append(node)
            else:
                for index, synapses in enumerate(node.inputs):
                    found[synapses.source][1].append((node, index))
        return found

    def ancestors(self, name: str) -> set[str]:
        """Node ``name`` and all that it hears of, the image excepted."""
        node = self.by_name[name]
        sources = [node.source] if isinstance(node, PoolNode) else [synapses.source for synapses in node.inputs]
        return {name}.union(*(self.ancestors(source) for source in sources if source is not None))

    @property
    def streams(self) -> int:
        """Streams within the core that a bench can make wait, see `Core`."""
        return sum(1 for _ in self._joints())

    def _joints(self) -> Iterator[str]:
        for node in self.nodes:
            if isinstance(node, PoolNode):
                yield f"{node.name} in"
            else:
                for index, synapses in enumerate(node.inputs):
                    within = () if isinstance(synapses.spec, SerialSpec) else ("cells", "passes")
                    yield from (f"{node.name} {index} {part}" for part in ("events", *within, "currents"))
                if node is self.nodes[0]:
                    yield f"{node.name} steps"
            yield f"{node.name} volleys"


def weight_words(spec: CoreSpec) -> list[int]:
    """The 16-bit words that the core of ``spec`` takes before it takes pixels: layer by layer, row by row, the lowest word first."""
    return [word for synapses in spec.stored if synapses.store is not None for word in synapses.store.words(synapses.rows)]


class Core(wiring.Component):
    """One engine a layer, all at work at once, joined by streams. Domain: ``sync``.

    A reset takes back all but loaded weights, and may come while they are being loaded.

    Members
    -------
    pixels: In, see `PixelSpec.signature`.
    result: Out, see `rtl_gen.gates.readout.WORD`.
    busy: Out, an image is under way.
    error: Out, the last result was malformed or unsettled, or the weights did not end with the last word.
    weights: In, where weights are loaded: `weight_words`, once; no pixel is taken before.
    stall: In, with ``bench``: one bit for each of `CoreSpec.streams` (see `Throttle`).
    volleys_<layer>: Out, with ``bench``: what the layer's neurons send, and ``fire`` when they do.

    ``tickets``: images that may be on their way between the pixel reader's mark and their result.
    """

    def __init__(self, spec: CoreSpec, *, bench: bool = False, tickets: int = TICKETS):
        self.spec, self.bench, self.tickets = spec, bench, tickets
        members = {"pixels": In(spec.pixels.signature), "result": Out(WORD), "busy": Out(1), "error": Out(1)}
        if spec.stored:
            members["weights"] = In(WEIGHTS)
        if bench:
            members["stall"] = In(spec.streams)
            for index, layer in enumerate(spec.spiking):
                members[f"volleys_{index}"] = Out(data.StructLayout({"fire": 1, "volley": spec.volleys(layer.name).layout}))
        super().__init__(members)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self.spec
        joints = {name: index for index, name in enumerate(spec._joints())}

        def through(source: stream.Interface, name: str) -> stream.Interface:
            """``source``; in a bench, behind the throttle of joint ``name``."""
            if not self.bench:
                return source
            m.submodules[f"throttle_{joints[name]}"] = throttle = Throttle(source.signature)
            m.d.comb += throttle.stall.eq(self.stall[joints[name]])
            wiring.connect(m, source, throttle.i)
            return throttle.o

        def branch(source: stream.Interface, ways: int, name: str) -> list[stream.Interface]:
            if ways == 1:
                return [source]
            m.submodules[f"{name}_fork"] = fork = Fork(source.signature, ways)
            wiring.connect(m, source, fork.i)
            return fork.outputs

        m.submodules.reader = reader = PixelReader(spec.pixels)
        m.submodules.readout = readout = ReadOut(spec.readout)
        m.submodules.tickets = tickets = SyncFIFOBuffered(width=TICKET.size, depth=self.tickets)
        stores: list[Synapses | SerialSynapses] = []  # engines whose weights are loaded
        arriving: dict[tuple[str, int], stream.Interface] = {}  # events by layer and synapses
        over: dict[str, stream.Interface] = {}  # volleys by pool
        self._share(m, branch, None, reader.events, arriving)
        labels = {node.name: f"n{index}" for index, node in enumerate(spec.nodes)}  # names within, whatever the user's are
        for node in spec.nodes:
            label = labels[node.name]
            if isinstance(node, PoolNode):
                m.submodules[f"{label}_pool"] = pool = WindowPool(node.spec)
                wiring.connect(m, through(over[node.name], f"{node.name} in"), pool.i)
                said = pool.o
            else:
                currents = self._synapses(m, through, label, node, arriving, stores)
                if node.neurons is None:
                    wiring.connect(m, currents, readout.currents)
                    break
                neurons = NeuronArray(node.neurons) if isinstance(node.neurons, NeuronSpec) else CountArray(node.neurons)
                m.submodules[f"{label}_neurons"] = neurons
                if node is spec.nodes[0] and spec.schedule is not None:
                    m.submodules.wake_sleep = conductor = WakeSleep(WakeSpec(node.neurons.currents, spec.schedule))
                    m.submodules.skid = skid = Skid(conductor.o.signature)
                    wiring.connect(m, currents, conductor.i)
                    wiring.connect(m, conductor.o, skid.i)
                    m.d.comb += [conductor.settled.eq(readout.settled), conductor.slept.eq(readout.slept)]
                    currents = through(skid.o, f"{node.name} steps")
                wiring.connect(m, currents, neurons.currents)
                said = neurons.volleys
                if self.bench:
                    tap = getattr(self, f"volleys_{spec.spiking.index(node)}")
                    m.d.comb += [tap.fire.eq(said.valid & said.ready), tap.volley.eq(said.payload)]
            said = through(said, f"{node.name} volleys")
            pools, synapses = spec.consumers[node.name]
            ways = branch(said, len(pools) + bool(synapses), label)
            over.update((pool.name, way) for pool, way in zip(pools, ways, strict=False))
            if synapses:
                said, volleys, events = ways[-1], spec.volleys(node.name), spec.events(node.name)
                if spec.cumulative(node.name):
                    m.submodules[f"{label}_difference"] = difference = Difference(volleys, events.value)
                    wiring.connect(m, said, difference.i)
                    said, volleys = difference.o, replace(volleys, value=events.value)
                m.submodules[f"{label}_encoder"] = encoder = SpikeEncoder(volleys)
                wiring.connect(m, said, encoder.volleys)
                self._share(m, branch, node.name, encoder.events, arriving)
        wiring.connect(m, readout.result, wiring.flipped(self.result))
        self._load(m, reader, stores)

        now = Signal(32)
        m.d.sync += now.eq(now + 1)
        m.d.comb += [
            reader.now.eq(now),
            readout.now.eq(now),
            tickets.w_en.eq(reader.tickets.valid),
            tickets.w_data.eq(reader.tickets.payload),
            reader.tickets.ready.eq(tickets.w_rdy),
            readout.tickets.valid.eq(tickets.r_rdy),
            readout.tickets.payload.eq(tickets.r_data),
            tickets.r_en.eq(readout.tickets.ready),
            self.busy.eq(reader.busy | (tickets.level != 0) | readout.busy),
            self.error.eq(readout.error | (m.submodules.loader.error if stores else 0)),
        ]
        return m

    def _load(self, m: Module, reader: PixelReader, stores: list[Synapses | SerialSynapses]) -> None:
        """Fill the stores of weights; no pixel before they are full."""
        if not stores:
            wiring.connect(m, wiring.flipped(self.pixels), reader.pixels)
            return
        m.submodules.loader = loader = WeightLoader(len(stores))
        wiring.connect(m, wiring.flipped(self.weights), loader.weights)
        for index, store in enumerate(stores):
            wiring.connect(m, getattr(loader, f"words_{index}"), store.words)
            m.d.comb += getattr(loader, f"loaded_{index}").eq(store.loaded)
        m.d.comb += [
            reader.pixels.payload.eq(self.pixels.payload),
            reader.pixels.valid.eq(self.pixels.valid & loader.loaded),
            self.pixels.ready.eq(reader.pixels.ready & loader.loaded),
        ]

    def _share(self, m: Module, branch, name: str | None, events: stream.Interface, arriving) -> None:
        """Give ``events`` of node ``name`` to all synapses that take them."""
        takers = self.spec.consumers[name][1]
        label = "image" if name is None else f"n{list(self.spec.by_name).index(name)}"
        for (layer, index), way in zip(takers, branch(events, len(takers), f"{label}_events"), strict=True):
            arriving[layer.name, index] = way

    def _synapses(
        self, m: Module, through, label: str, layer: LayerSpec, arriving, stores: list[Synapses | SerialSynapses]
    ) -> stream.Interface:
        """The layer's currents."""

        def add(one: stream.Interface, two: stream.Interface) -> stream.Interface:
            m.submodules[f"{label}_sum_{len(sums)}"] = total = CurrentSum(layer.inputs[0].spec.currents)
            sums.append(total)
            wiring.connect(m, one, total.i_0)
            wiring.connect(m, two, total.i_1)
            return total.o

        currents: list[stream.Interface] = []
        sums: list[CurrentSum] = []
        for index, synapses_input in enumerate(layer.inputs):
            spec, events = synapses_input.spec, arriving[layer.name, index]
            parts = m.submodules
            if synapses_input.queue:
                parts[f"{label}_queue_{index}"] = queue = Queue(events.signature, synapses_input.queue)
                wiring.connect(m, events, queue.i)
                events = queue.o
            events = through(events, f"{layer.name} {index} events")
            parts[f"{label}_synapses_{index}"] = synapses = SerialSynapses(spec) if isinstance(spec, SerialSpec) else Synapses(spec)
            if spec.store is not None:
                stores.append(synapses)
            if isinstance(synapses, SerialSynapses):
                wiring.connect(m, events, synapses.events)
            else:
                parts[f"{label}_walk_{index}"] = walk = Walk(spec.walk)
                parts[f"{label}_skid_{index}"] = skid = Skid(spec.cells.signature)
                parts[f"{label}_replay_{index}"] = replay = Replay(ReplaySpec(spec.cells, spec.passes))
                wiring.connect(m, events, walk.i)
                wiring.connect(m, walk.o, skid.i)
                wiring.connect(m, through(skid.o, f"{layer.name} {index} cells"), replay.i)
                wiring.connect(m, through(replay.o, f"{layer.name} {index} passes"), synapses.cells)
            currents.append(through(synapses.currents, f"{layer.name} {index} currents"))
        return reduce(add, currents)
