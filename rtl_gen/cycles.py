"""How many cycles an image takes: a bound, and a prediction from what the reference says of it.

The prediction follows a step pixel by pixel through the parts of a core. Each part is a server that takes its work in order:

    end[k] = max(end[k-1], ready[k]) + work[k],  so  end[k] = W[k] + max over j <= k of (ready[j] - W[j-1]),  W = sum of work

(a recurrence in the max-plus algebra: Baccelli, Cohen, Olsder, Quadrat, "Synchronization and Linearity", 1992), where ``ready`` is
when the part before it has sent, and when the queue behind it has room. All images, or all wakes with their sleep, go side by side.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from math import prod
from typing import Any, Literal

import numpy as np

from casc_hw.network import IMAGE, IntegerNet, MapShape, Pool, reached
from casc_hw.reference import events_of, quantised_ann, simulate
from rtl_gen.gates.core import CoreSpec, LayerSpec, PoolNode
from rtl_gen.gates.neurons import LATENCY, VOLLEYS, NeuronSpec
from rtl_gen.gates.serial import SETTLE, SerialSpec
from rtl_gen.gates.synapses import CREDITS
from rtl_gen.gates.walk import Geometry

Array = Any
"""A numpy array of int64 unless told otherwise."""
BEATS = (1, 2, 4, 8)
"""Pixels a transfer that a plan may choose."""
BATCH = 1 << 25
"""Spikes kept at a time while activity is measured."""
SWEEPS = 8
"""Times a step is gone through at most: once for what comes down the core, again as long as full queues hold something up."""
NEVER = -(1 << 60)
"""Before all time."""
CACHED = 128 << 20
"""Bytes of intermediate results that are kept from one prediction to the next."""

READER, QUEUE, WALK, SYNAPSES, SUM, NEURONS, POOL, DIFFERENCE = 1, 3, 1, 1, 1, 1, 3, 1
"""Cycles from one part to the next beside its own, and beside the stages of the synapses' and the neurons' pipelines."""
SENT = 2
"""Cycles in which serial synapses send a chunk."""
HELD = 2
"""Events that registers hold: those behind the walk, behind the pixel reader, behind a queue."""
WINDOWS = 2
"""Volleys that wait behind a pool."""
RESULT = 4
"""Cycles of the read-out for a result beside those of the sums."""
VERDICT, AGAIN = 2, 3
"""Cycles from the read-out's last chunk of a sleep step until the neurons can have a sleep step that it lets in; the next wake."""
ROUND = 16
"""Cycles a chunk takes from where there was room for it to where there is room again, in a part that does nothing else."""


@dataclass(frozen=True, eq=False)
class Activity:
    """The work one image makes.

    Attributes
    ----------
    pixels: bool (inputs,), in wire order: whether a pixel is not zero.
    events: by layer and pool, (steps, height * width): how many of a pixel's channels send an event; of a map of one pixel,
        (steps, channels): which do. In count code, one step.
    wakes: bool (steps,): whether it is a wake step.
    """

    pixels: Array
    events: dict[str, Array]
    wakes: Array

    def beats(self, width: int) -> Array:
        """Cycles that the pixel reader needs for each beat of ``width`` pixels."""
        padded = np.zeros((-(-len(self.pixels) // width), width), dtype=bool)
        padded.reshape(-1)[: len(self.pixels)] = self.pixels
        return np.maximum(padded.sum(1), 1)


@dataclass(frozen=True)
class Prediction:
    """Cycles between images (median over those after the first), and of one image alone (median).

    ``busy``: by part of the core, cycles of an image in which it is at work (median): the largest is a bound on the interval.
    """

    interval: float
    latency: float
    busy: dict[str, float] = field(default_factory=dict)


def measure(net: IntegerNet, images: Any, code: Literal["spike", "count"]) -> list[Activity]:
    """The activity of real images, by the reference."""
    pixels = net.check_images(images)
    neurons = sum(prod(net.shapes[layer.name]) for layer in net.spiking)
    size = max(BATCH // (neurons * (1 if code == "count" else 3 * net.levels) * 8), 1)
    found: list[Activity] = []
    for first in range(0, len(pixels), size):
        batch = pixels[first : first + size]
        batch = batch.reshape(len(batch), *net.input_shape)
        found += (_counted if code == "count" else _traced)(net, batch, _present(net, batch))
    return found


def _present(net: IntegerNet, batch: Any) -> Array:
    maps = batch.reshape(len(batch), *net.shapes[IMAGE]).ne(0)
    return maps.movedim(1, -1).flatten(1).numpy()


def _counted(net: IntegerNet, batch: Any, pixels: Array) -> list[Activity]:
    counts = quantised_ann(net, batch).counts
    events = {node.name: _places(events_of(net, node.name, counts)) for node in net.nodes[:-1]}
    wakes = np.ones(1, dtype=bool)
    return [Activity(image, {name: found[index, None] for name, found in events.items()}, wakes) for index, image in enumerate(pixels)]


def _places(events: Any) -> Array:
    """Maps (..., C, H, W) of events as `Activity.events` has them."""
    present = events.ne(0)
    if prod(events.shape[-2:]) > 1:
        present = present.sum(-3)
    return present.flatten(len(events.shape) - 3).numpy()


def _traced(net: IntegerNet, batch: Any, pixels: Array) -> list[Activity]:
    trace = simulate(net, batch)
    pooled = any(isinstance(node, Pool) for node in net.nodes)
    counts = [spikes.cumsum(0) for spikes in trace.spikes] if pooled else []
    events = {}
    for node in net.nodes[:-1]:
        if isinstance(node, Pool):
            so_far = events_of(net, node.name, counts)
            so_far[1:] -= so_far[:-1].clone()
        else:
            so_far = trace.spikes[net.spiking.index(node)]
            so_far = so_far.reshape(*so_far.shape[:2], *net.shapes[node.name])
        events[node.name] = _places(so_far)
    result = []
    for index, image in enumerate(pixels):
        steps = trace.steps(index).numpy()
        mine = {name: found[steps, index] for name, found in events.items()}
        result.append(Activity(image, mine, trace.wake.numpy()[steps]))
    return result


def assume(net: IntegerNet, code: Literal["spike", "count"]) -> list[Activity]:
    """Without images: a quarter of the pixels and of the possible events, evenly spread, and a silent step for each layer."""

    def quarter(size: int, each: int) -> Array:
        return np.diff(np.arange(size + 1) * each // 4)

    wakes = np.ones(1, dtype=bool)
    if code == "spike":
        sleeps = len(net.spiking) if net.sleep is None else min(net.sleep, len(net.spiking))
        blocks = [[True] * min(net.margin, net.levels - done) + [False] * sleeps for done in range(0, net.levels, net.margin)]
        wakes = np.concatenate(blocks)
    events = {}
    for node in net.nodes[:-1]:
        channels, height, width = net.shapes[node.name]
        each = quarter(height * width, channels) if height * width > 1 else quarter(channels, 1)
        events[node.name] = each * wakes[:, None]
    return [Activity(quarter(net.inputs, 1) > 0, events, wakes)] * 3


def predict(spec: CoreSpec, activities: Sequence[Activity]) -> Prediction:
    """Cycles of ``activities`` on ``spec``, images back to back, and alone."""
    batch = _batch(tuple(activities), spec.counting)
    every = np.arange(len(activities))
    if spec.counting:
        alone = _Flow(spec, batch.images, 1)
        latencies = alone.run()[0]
        verdicts = _Flow(spec, batch.images, len(activities)).run()[:, 0].tolist()
        busy = alone.busy(every)
    else:
        alone, steps = _Flow(spec, batch.images, 1, entry=True), _Flow(spec, batch.blocks, batch.steps)
        done = steps.run()
        latencies = alone.run()[0] + batch.played(done)
        if steps.occupy(np.append(True, np.diff(batch.owner) > 0)):
            done = steps.run()
        verdicts = _settled(_Flow(spec, batch.images, len(activities), entry=True), batch.played(done))
        busy = alone.busy(every) | steps.busy(batch.owner)
    latency = float(np.median(latencies)) - 1  # counted to the beginning of the cycle that ends it
    return Prediction(float(np.median(np.diff(verdicts))) if len(verdicts) > 1 else latency, latency, busy)


def _settled(entry: _Flow, played: Array) -> list[int]:
    """Last verdicts of images back to back. `WakeSleep` has two banks: an image's current waits until the one before the last has left."""
    verdicts: list[int] = []

    def begin(step: int, done: Array) -> Array:
        if step:
            verdicts.append(max(int(done[step - 1, 0]), verdicts[-1] if verdicts else 0) + int(played[step - 1]))
        return np.full(1, verdicts[-2] if len(verdicts) > 1 else 0)

    done = entry.run(begin)
    begin(len(played), done)
    return verdicts


@dataclass(frozen=True, eq=False)
class _Units:
    """Steps whose work is known, by row: unit ``step * rows + row``. In count code, or on its way in, an image is a unit.

    Attributes
    ----------
    events: by layer and pool, (units, pixels).
    wakes: bool (units,).
    activities: one a unit, where a unit is an image.
    kept: intermediate results, the last used last.
    """

    events: dict[str, Array]
    wakes: Array
    activities: tuple[Activity, ...] = ()
    kept: OrderedDict[Hashable, Any] = field(default_factory=OrderedDict)

    def keep(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """What ``make`` gives for ``key``, made once."""
        if key not in self.kept:
            self.kept[key] = make()
            while sum(map(_bytes, self.kept.values())) > CACHED and len(self.kept) > 1:
                self.kept.popitem(last=False)
        self.kept.move_to_end(key)
        return self.kept[key]

    def events_of(self, spec: CoreSpec, name: str) -> Array:
        """Events of each piece of a node, `IMAGE` included, (units, pieces).

        A piece is a pixel; of a map of one pixel a chunk, or if a pool follows or it is one, all; of an image that is a row, its pixels.
        """
        if name == IMAGE:
            channels, height, width = spec.pixels.shape
            channels = channels if height * width > 1 else 1
            return self.keep((IMAGE, channels), lambda: np.stack([one.pixels.reshape(-1, channels).sum(1) for one in self.activities]))
        found, volleys = self.events[name], spec.volleys(name)
        if prod(volleys.shape[1:]) > 1:
            return found
        parts = volleys.parts if _chunked(spec, name) else 1
        return self.keep((name, parts), lambda: np.pad(found, ((0, 0), (0, -found.shape[1] % parts))).reshape(len(found), parts, -1).sum(2))


def _chunked(spec: CoreSpec, name: str) -> bool:
    """Whether node ``name`` is followed chunk by chunk: one pixel, and no pool."""
    node = spec.by_name[name]
    if isinstance(node, PoolNode):
        return False
    shape = spec.readout.currents.shape if node.neurons is None else node.neurons.currents.shape
    return prod(shape[1:]) == 1 and not spec.consumers[name][0]


def _bytes(value: Any) -> int:
    if isinstance(value, dict):
        return _bytes(tuple(value.values()))
    return sum(map(_bytes, value)) if isinstance(value, tuple) else getattr(value, "nbytes", 0)


class _Batch:
    """Activities side by side: ``images`` one a unit; in spike code ``blocks``, rows of a wake with its sleep, ``steps`` each.

    ``owner``: image of each row; ``lengths``: its steps.
    """

    def __init__(self, activities: tuple[Activity, ...], counting: bool):
        names = activities[0].events
        events = {name: np.concatenate([one.events[name] for one in activities]) for name in names} if counting else {}
        self.images = _Units(events, np.ones(len(activities), dtype=bool), activities)
        if counting:
            return
        spans = []
        for index, one in enumerate(activities):
            starts = np.flatnonzero(one.wakes & ~np.append(False, one.wakes[:-1]))
            spans += [(index, first, end) for first, end in zip(starts, [*starts[1:], len(one.wakes)], strict=True)]
        self.owner = np.array([index for index, _, _ in spans])
        self.lengths = np.array([end - first for _, first, end in spans])
        self.steps = int(self.lengths.max())

        def rows(each: Callable[[Activity], Array]) -> Array:
            found = [each(activities[index])[first:end] for index, first, end in spans]
            rows = np.zeros((self.steps, len(spans), *found[0].shape[1:]), dtype=found[0].dtype)
            for row, (steps, length) in enumerate(zip(found, self.lengths, strict=True)):
                rows[:length, row] = steps
            return rows.reshape(-1, *rows.shape[2:])

        self.blocks = _Units({name: rows(lambda one, name=name: one.events[name]) for name in names}, rows(lambda one: one.wakes))  # type: ignore[misc]

    def played(self, done: Array) -> Array:
        """By image, cycles from its whole current to its last verdict, where the steps of ``blocks`` are ``done`` (steps, rows)."""
        return np.bincount(self.owner, done[self.lengths - 1, np.arange(len(self.owner))] + AGAIN).astype(np.int64)


_batch = lru_cache(maxsize=2)(_Batch)


class _Flow:
    """``units`` of a core on their way: ``steps`` one behind the other, rows of them independent of each other.

    With ``entry``, as far as the current of the first layer; in spike code, else from there.
    """

    def __init__(self, spec: CoreSpec, units: _Units, steps: int, entry: bool = False):
        self.spec, self.units, self.steps = spec, units, steps
        self.rows = len(units.wakes) // steps
        self.entry, self.played = entry, not entry and spec.schedule is not None
        self.senders: dict[str, _Sender] = {}
        self.layers: list[_Layer] = []
        if not self.played:
            self.reader = _Reader(self)
            self.senders[IMAGE] = self.reader
        for node in spec.layers[:1] if entry else spec.layers:
            layer = _Layer(self, node)
            self.layers.append(layer)
            self.senders |= {sender.name: sender for sender in layer.senders}

    def unit(self, step: int) -> slice:
        """The units of ``step``."""
        return slice(step * self.rows, (step + 1) * self.rows)

    def keep(self, key: tuple[Hashable, ...], make: Callable[[], Any]) -> Any:
        """What ``make`` gives, which depends on how the units are arranged, and on ``key``."""
        return self.units.keep((*key, self.steps, self.entry), make)

    def run(self, begin: Callable[[int, Array], Array] | None = None) -> Array:
        """When the last layer is done with each step, (steps, rows).

        ``begin`` gives, for a step and what is known of those before it, when the first layer may begin (rows,).
        """
        done = np.full((self.steps, self.rows), NEVER)
        for step in range(self.steps):
            first = (begin or self._begin)(step, done)
            before = None
            for _ in range(SWEEPS):
                if not self.played:
                    self.reader.send(step, np.full((self.rows, self.reader.pieces), NEVER))
                for layer in self.layers:
                    done[step] = layer.step(step, first)
                after = [int(layer.neurons.of(step).sum()) for layer in self.layers]
                if after == before:
                    break
                before = after
        return done

    def _begin(self, step: int, done: Array) -> Array:
        """At once; but a sleep step waits for the verdict on the sleep step that is as many before it as may be under way."""
        ahead = self.spec.schedule.depth + 1 if self.spec.schedule is not None else 0
        if not self.played or step < ahead:
            return np.zeros(self.rows, dtype=np.int64)
        wakes = self.units.wakes
        return np.where(wakes[self.unit(step)] | wakes[self.unit(step - ahead)], 0, done[step - ahead] + VERDICT)

    def occupy(self, result: Array) -> bool:
        """Let the read-out first send a ``result`` (rows,) and take the sleep steps under way at the verdict before; whether it matters.

        After a `run`, and for another.
        """
        schedule, readout = self.spec.schedule, self.layers[-1].neurons
        flat = [engine for engine in self.layers[-1].engines if engine.geometry.flat]
        round_trip = max((engine.latency + 1 for engine in flat), default=0)
        assert schedule is not None
        steps = readout.chunk_cycles + (schedule.depth - 1) * (readout.chunk_cycles + round_trip) if schedule.sleep is None else 0
        until = steps - AGAIN + np.where(result, readout.result, 0)
        needed = readout.of(0)[:, 0] - readout.work.each[: self.rows, 0]
        needed -= max((engine.latency + engine.work.each[: self.rows, 0] for engine in flat), key=np.sum, default=0)
        for server in (readout, *flat):
            server.ends[:, 0] = until
        return bool((until > needed).any())

    def busy(self, owner: Array) -> dict[str, float]:
        """By part, cycles of work of an image (median); ``owner``: the image of each row."""
        parts = {} if self.played else {"image": self.reader.work.total}
        for layer in self.layers:
            parts |= layer.works()
        return {name: float(np.median(np.bincount(owner, work.reshape(self.steps, self.rows).sum(0)))) for name, work in parts.items()}


class _Work:
    """Work ``each`` (units, pieces) that a server takes in order, and ``idle`` cycles between; ``total`` (units,) without them."""

    def __init__(self, each: Array, idle: Array | int = 0):
        self.total = each.sum(1)
        self.each = each + idle
        self.upto = self.each.cumsum(1)
        self.before = self.upto - self.each
        self.nbytes = 3 * self.each.nbytes


class _Server:
    """Takes the pieces of ``work`` in order, each when it is ready and there is room for what comes of it.

    ``ends`` (rows, 1 + steps * pieces): when each is done, after a first that never was.
    """

    def __init__(self, flow: _Flow, work: _Work, wait: Array | None = None):
        self.flow, self.work, self.wait = flow, work, wait
        self.pieces = work.each.shape[1]
        self.ends = np.full((flow.rows, 1 + flow.steps * self.pieces), NEVER)
        self.rooms: list[tuple[_Server, Array, Array, Array | None]] = []

    def wait_for(self, later: _Server, room: tuple[Array, Array], extra: Array | int = 0, pieces: Array | None = None) -> None:
        """``pieces`` (None: all) are done no earlier than there is ``room`` (see `_room`) before ``later``, and ``extra`` cycles."""
        index, place = room
        own = self.work.each if pieces is None else self.work.each[:, pieces]
        rows = np.arange(len(index)) % self.flow.rows * later.ends.shape[1]
        self.rooms.append((later, index + rows[:, None], place + extra - own, pieces))

    def of(self, step: int) -> Array:
        """The ends of ``step``."""
        return self.ends[:, 1 + step * self.pieces : 1 + (step + 1) * self.pieces]

    def serve(self, step: int, ready: Array) -> Array:
        """When each piece is done, (rows, pieces), if it can begin when ``ready`` (overwritten)."""
        unit = self.flow.unit(step)
        for later, index, extra, pieces in self.rooms:
            room = later.ends.reshape(-1)[index[unit]]
            room += extra[unit]
            if pieces is None:
                np.maximum(ready, room, out=ready)
            else:
                ready[:, pieces] = np.maximum(ready[:, pieces], room)
        free = self.ends[:, step * self.pieces] + (0 if self.wait is None else self.wait[unit])
        ready -= self.work.before[unit]
        np.maximum(ready[:, 0], free, out=ready[:, 0])
        ends = self.of(step)
        np.maximum.accumulate(ready, axis=1, out=ends)
        ends += self.work.upto[unit]
        return ends


def _room(rows: int, given: Array, taken: Array, spent: Array, capacity: Array | int) -> tuple[Array, Array]:
    """What must have happened for a server to be rid of a piece, where ``capacity`` transfers fit between it and the next.

    ``given``, ``taken`` (units, pieces): transfers of each piece of the one and of the other server; ``spent``: cycles in which the
    other takes those of a piece. Returns, by piece of the first, how many pieces the other must have done, of all steps, and cycles then.
    """
    ends = _running(rows, taken)
    wanted = _running(rows, given) - 1 - capacity
    index, place = np.zeros_like(wanted), np.zeros_like(wanted)
    for row in range(rows):
        mine, want = np.append(0, ends[row::rows]), wanted[row::rows]
        piece = (np.searchsorted(mine, want, side="right") - 1).clip(0)
        index[row::rows] = piece
        within, number, cycles = want - mine[piece] + 1, np.append(taken[row::rows], 1)[piece], np.append(spent[row::rows], 1)[piece]
        place[row::rows] = np.where(want < 0, 0, cycles * within // np.maximum(number, 1))
    return index, place


def _running(rows: int, each: Array) -> Array:
    """Sums over all pieces of a row up to each, (units, pieces)."""
    steps = len(each) // rows
    by_row = each.reshape(steps, rows, -1).swapaxes(0, 1).reshape(rows, -1).cumsum(1)
    return by_row.reshape(rows, steps, -1).swapaxes(0, 1).reshape(len(each), -1)


class _Sender(_Server):
    """What sends the events of node ``name``: pixel by pixel, then the mark.

    ``times`` (rows, pieces): when an event, at last the mark, is there for the next part.
    """

    def __init__(self, flow: _Flow, name: str, work: _Work, delay: int):
        super().__init__(flow, work)
        self.name, self.delay = name, delay
        self.times: Array = None

    def send(self, step: int, ready: Array) -> None:
        """``ready`` (rows, pieces; overwritten): when a piece's work can begin."""
        self.times = self.serve(step, ready) + self.delay

    def feed(self, engine: _Engine, room: tuple[Array, Array]) -> None:
        """Wait for ``room`` (for each pixel's events and the mark) before ``engine``."""
        self.wait_for(engine, room, -self.delay)


class _Reader(_Sender):
    """The pixel reader."""

    def __init__(self, flow: _Flow):
        pixels, units = flow.spec.pixels, flow.units
        work = units.keep(
            ("reader", pixels), lambda: _Work(np.stack([_reading(one, pixels.shape, pixels.beat) for one in units.activities]))
        )
        super().__init__(flow, IMAGE, work, READER)
        self.ends[:, 0] = 0


def _reading(activity: Activity, shape: MapShape, beat: int) -> Array:
    """Cycles that the reader takes for each piece of an image (see `_Units.events_of`), and for the mark."""
    padded = np.zeros((-(-len(activity.pixels) // beat), beat), dtype=np.int64)
    padded.reshape(-1)[: len(activity.pixels)] = activity.pixels
    within = padded.cumsum(1)
    within[:, -1] = np.maximum(within[:, -1], 1)
    ends = within + (within[:, -1:].cumsum(0) - within[:, -1:])
    channels = shape[0] if prod(shape[1:]) > 1 else 1
    last = ends.reshape(-1)[channels - 1 : len(activity.pixels) : channels].copy()
    last[-1] = ends[-1, -1]
    return np.append(np.diff(last, prepend=0), 2)


class _Engine(_Server):
    """Walk, replay and synapses ``index`` of ``layer``: its pieces are cells; of serial synapses, source pixels and neurons that leave."""

    def __init__(self, flow: _Flow, layer: LayerSpec, index: int, neurons: _Neurons):
        self.taken = layer.inputs[index]
        spec = self.taken.spec
        self.geometry, self.passes, self.parts = spec.geometry, spec.passes, spec.currents.parts
        self.source = self.taken.source or IMAGE
        self.counts = flow.units.events_of(flow.spec, self.source)
        self.columns = 1 if self.geometry.flat else spec.walk.columns
        self.serial = isinstance(spec, SerialSpec)
        cells = _serial_cells if self.serial else _cells
        self.upto, self.known, self.sent = cells(self.geometry, self.columns, self.counts.shape[1])
        self.ratio = spec.lanes // spec.currents.lanes
        self.latency = 0 if self.serial else spec.stages + (0 if self.geometry.flat else SYNAPSES)
        where = (self.source, self.counts.shape, self.geometry, self.columns, self.serial)
        self.following, self.lead = flow.keep(("following", *where), lambda: self._following(flow.rows))
        key = ("engine", index, *where, *neurons.key)
        work, self.start, self.tail, full, self.total = flow.keep(key, lambda: self._tables(flow, neurons))
        super().__init__(flow, work)
        self.sender = flow.senders[self.source]
        self.sender.feed(self, flow.keep(("room", *where, self.taken.queue), lambda: self._entry(flow.rows)))
        if full is not None:
            self.wait_for(neurons, full, 0, self.sent)
        if neurons.chunked and not self.geometry.flat:
            self.sent = np.repeat(self.sent, self.parts)

    @cached_property
    def _inside(self) -> Array:
        """Events that reach a neuron, by piece of the source."""
        _, height, width = self.geometry.source
        if self.geometry.flat or height * width == 1:
            return self.counts
        kept = np.zeros((height, width), dtype=np.int64)
        kept[: self.geometry.rows, : self.geometry.columns * self.geometry.stride[1] - self.geometry.padding[1]] = 1
        return self.counts * kept.reshape(-1)

    def _following(self, rows: int) -> tuple[Array, Array]:
        """By cell, the first piece with an event after it, or the mark, as a flat index; by piece, its events but the first."""
        seen = self._inside
        pieces = seen.shape[1]
        index = np.where(seen > 0, np.arange(pieces), pieces)
        index = np.concatenate([index, np.full((len(seen), 1), pieces)], axis=1)
        index = np.minimum.accumulate(index[:, ::-1], axis=1)[:, ::-1]
        return index[:, self.known] + (np.arange(len(seen)) % rows * (pieces + 1))[:, None], _marked(np.maximum(self.counts - 1, 0), 0)

    def _entry(self, rows: int) -> tuple[Array, Array]:
        """The room for events of the source's pieces and the mark, in the queue and beside it.

        Events that reach no neuron are dropped at once, and no piece waits for its own events.
        """
        given, cells = _marked(self._inside, 1), _between(self._inside, self.upto)
        cells[:, -1] += 1
        held = HELD * ((not self.serial) + (self.source == IMAGE) + (self.taken.queue > 0))
        spent = np.where(cells > 0, self.work.each, 0) if self.serial else cells
        return _room(rows, given, cells, spent, np.maximum(given, self.taken.queue + held))

    def _tables(self, flow: _Flow, neurons: _Neurons) -> tuple[_Work, Array, Array | int, tuple[Array, Array] | None, Array]:
        """Work by cell; its events; by pixel, from its cell's end to when its neurons can begin; room for its chunks before them.

        And all work (units,). Of a flat geometry just the first pass: the others go in step with the neurons (see `_Neurons`).
        """
        spec, passes = self.taken.spec, self.passes
        events = _between(self._inside, self.upto)
        work = self._serial_work(events) if self.serial else passes * (events + 1)
        empty = self.counts.sum(1) == 0
        if self.geometry.flat:
            total = np.where(empty, 1, passes) * (events[:, 0] + 1 + spec.stages + self.ratio * neurons.chunk_cycles)
            return _Work(events + 1), events, 0, None, total
        work[empty] = 0
        work[empty, -1] = 1
        total = work.sum(1)
        scanned = neurons.work.each[:, :-1].reshape(len(work), len(self.sent), -1).sum(2)  # by pixel
        given = np.full_like(scanned, self.parts)
        chunks = np.full_like(neurons.work.each, self.parts // (neurons.pieces - 1) if neurons.chunked else self.parts)
        chunks[:, -1] = 0
        for each in (given, chunks):
            each[empty] = 0
        given[empty, -1] = chunks[empty, -1] = 1
        held = 1 if self.serial else CREDITS * self.ratio
        full = _room(flow.rows, given, chunks, np.minimum(neurons.work.each, chunks), held)
        start = 0 * events if self.serial else events
        if neurons.chunked:
            after = passes - 1 - np.arange(self.parts) // self.ratio
            return _Work(work), start, -after * (work[:, self.sent] // passes), full, total
        between = SENT if self.serial else events[:, self.sent] + 1
        tail = np.maximum(-(-scanned // passes), scanned - (passes - 1) * between)
        tail[empty] = scanned[empty]
        return _Work(work), start, tail - scanned, full, total

    def _serial_work(self, events: Array) -> Array:
        """Cycles of each source pixel's ``events``, and of each pixel of neurons that leaves."""
        spec, geometry = self.taken.spec, self.geometry
        assert isinstance(spec, SerialSpec)
        _, height, width = geometry.source
        taps = reached((height, width), geometry.kernel, geometry.stride, geometry.padding).numpy().reshape(-1)
        reach = geometry.kernel[1] - 1 - geometry.padding[1] - np.arange(width)
        first = (-(reach // geometry.stride[1])).clip(0, geometry.target[2] - 1)  # by place, the column that an event is sought to
        pixels = np.flatnonzero(self.known < self.upto)
        work = np.zeros_like(events)
        work[:, self.sent] = SENT * self.parts
        work[:, self.sent[:: geometry.target[2]]] += 1
        seen = events[:, pixels].reshape(-1, height, width)
        at = np.maximum.accumulate(np.where(seen > 0, first, 0), axis=2)
        sought = np.diff(at, axis=2, prepend=0) + (np.cumsum(seen > 0, axis=2) == 1) * (seen > 0)
        sought[:, 0] -= (np.cumsum(seen[:, 0] > 0, axis=1) == 1) * (seen[:, 0] > 0)
        work[:, pixels] = events[:, pixels] * np.where(taps > 0, taps * spec.chunks + SETTLE + 1, 1) + sought.reshape(len(events), -1)
        return work

    def step(self, step: int) -> Array:
        """When the neurons of each piece can begin, (rows, pieces); of a flat geometry, of the first."""
        unit = self.flow.unit(step)
        times = self.sender.times - self.lead[unit]
        ready = times.reshape(-1)[self.following[unit]]
        ready -= self.start[unit]
        ready += (QUEUE if self.taken.queue else 0) + (0 if self.serial else WALK)
        done: Array = self.serve(step, ready)[:, self.sent]
        done += self.latency
        return done if self.geometry.flat else done + self.tail[unit]


def _marked(each: Array, mark: int) -> Array:
    """``each`` (units, pieces), and a last piece for the mark."""
    return np.pad(each, ((0, 0), (0, 1)), constant_values=mark)


def _between(counts: Array, upto: Array) -> Array:
    """Sums of ``counts`` (units, pieces) from where one of ``upto`` ends to where the next does."""
    return np.diff(np.pad(counts.cumsum(1), ((0, 0), (1, 0)))[:, upto], axis=1, prepend=0)


def _cells(geometry: Geometry, columns: int, pieces: int) -> tuple[Array, Array, Array]:
    """By cell, the pieces of the source up to its end, and those beyond which one must be known; by neuron's pixel, its last cell."""
    _, height, width = geometry.source
    if geometry.flat:
        return np.array([pieces]), np.array([pieces]), np.array([0])
    (down, across), (pad_y, pad_x), (taps_y, taps_x) = geometry.stride, geometry.padding, geometry.taps
    cells = np.arange((geometry.rows - 1) * columns + geometry.columns)
    y, column = np.divmod(cells, columns)
    upto = np.minimum(y, height) * width + np.where(y < height, ((column + 1) * across - pad_x).clip(0, width), 0)
    if height * width == 1:
        upto *= pieces
    _, rows, wide = geometry.target
    own_y, own_x = (np.arange(rows) + taps_y) * down - 1 - pad_y, np.arange(wide) + taps_x - 1
    return upto, upto, (own_y[:, None] * columns + own_x).reshape(-1)


def _serial_cells(geometry: Geometry, columns: int, pieces: int) -> tuple[Array, Array, Array]:
    """Likewise of `SerialSynapses`: a cell is a pixel of the source; or one of neurons, once the source row after their last is known."""
    _, height, width = geometry.source
    _, rows, wide = geometry.target
    each = pieces if height * width == 1 else 1
    last = (np.arange(rows) * geometry.stride[0] + geometry.kernel[0] - 1 - geometry.padding[0]).clip(0, height - 1)
    last[-1] = height - 1
    order = np.concatenate([np.repeat(np.arange(height), width), np.repeat(last, wide) + 0.5])  # source row, or that after which it is
    placed = np.argsort(order, kind="stable")
    pixel, rest = placed < height * width, np.floor(order[placed]).astype(np.int64) + 1
    upto = np.where(pixel, placed + 1, rest * width) * each
    return upto, np.where(pixel, placed * each, upto), np.flatnonzero(~pixel)


class _Neurons(_Server):
    """A layer's neurons, or the read-out; on the way in, what keeps the current. Its pieces are those of the layer's map, then the mark."""

    def __init__(self, flow: _Flow, node: LayerSpec):
        self.node = node
        self.currents = flow.spec.readout.currents if node.neurons is None else node.neurons.currents
        self.chunked = _chunked(flow.spec, node.name)
        self.size = self.currents.parts if self.chunked else prod(self.currents.shape[1:])
        self.chunks = 1 if self.chunked else self.currents.parts  # of a piece
        self.chunk_cycles = 2 if node.neurons is None else 1
        self.result = prod(self.currents.shape) + self.currents.chunks + RESULT  # of the read-out: cycles of sending it
        self.driven = flow.played and node is flow.spec.layers[0]
        engines = ((type(one.spec), one.spec.passes, one.spec.lanes, one.spec.stages) for one in node.inputs)
        self.key = ("neurons", node.name, self.currents.lanes, *engines)
        work, wait, self.quiet = flow.keep(self.key, lambda: self._tables(flow))
        super().__init__(flow, work, wait)
        self.offered = slice(None)  # pieces that send volleys
        self.waiting = VOLLEYS
        self.dense = node.neurons is not None and (bool(flow.spec.consumers[node.name][0]) or flow.spec.cumulative(node.name))
        self.delay = NEURONS + (0 if node.neurons is None else node.neurons.latency)

    def _tables(self, flow: _Flow) -> tuple[_Work, Array | None, Array]:
        """Work; cycles that must lie between steps (units,); whether a step is passed on as such (units,)."""
        node, units = self.node, flow.units
        work = np.full((len(units.wakes), self.size + 1), self.chunks * (1 if flow.entry else self.chunk_cycles))
        work[:, -1] = 0
        again = np.zeros_like(work)  # a pass of a flat geometry after the first begins when the chunks of the one before have been taken
        for one in node.inputs:
            if one.spec.geometry.flat and not self.driven:
                events = units.events_of(flow.spec, one.source or IMAGE).sum(1)
                each = np.where(events > 0, events + 1 + one.spec.stages, 0)[:, None]
                if self.chunked:
                    ratio = one.spec.lanes // one.spec.currents.lanes
                    again[:, ratio:-1:ratio] = np.maximum(again[:, ratio:-1:ratio], each)
                else:
                    again[:, :1] = np.maximum(again[:, :1], each * (one.spec.passes - 1))
        none = np.zeros(len(work), dtype=np.int64)
        quiet = np.ones(len(work), dtype=bool)
        if not self.driven:
            quiet = sum((units.events_of(flow.spec, one.source or IMAGE).sum(1) for one in node.inputs), none) == 0
        if flow.entry:
            work[quiet] = 0
            work[quiet, -2] = 1
            return _Work(work, again), None, quiet
        if node.neurons is None:
            quiet[: flow.rows if flow.played else None] = False  # what is left of the image before is cleared
            work[quiet] = 0
            work[quiet, -2] = self.chunk_cycles
            if not flow.played:
                work[:, -1] = self.result
            return _Work(work, again), None, quiet
        own = units.events[node.name].sum(1)
        quiet &= ~units.wakes & (np.concatenate([none[: flow.rows], own[: -flow.rows]]) == 0)
        work[quiet] = 0
        work[quiet, -1] = 1
        wait = None
        if isinstance(node.neurons, NeuronSpec):
            wait = (LATENCY - 1) * (quiet | (self.currents.chunks < LATENCY))
        return _Work(work, again), wait, quiet

    def volleys(self, flow: _Flow) -> Array:
        """Volleys that each piece sends, (units, pieces)."""
        return flow.keep(("volleys", *self.key), lambda: self._volleys(flow))

    def _volleys(self, flow: _Flow) -> Array:
        counts = flow.units.events_of(flow.spec, self.node.name)
        found = _marked(np.full_like(counts, self.chunks) if self.dense else self.chunks - _idle(counts, self.chunks), 0)
        found[self.quiet] = 0
        found[self.quiet, -1] = 1
        return found

    def feed(self, later: _Server, room: tuple[Array, Array]) -> None:
        """Wait for ``room`` (for what each piece sends, and the mark) before ``later``."""
        self.wait_for(later, room)


def _idle(counts: Array, chunks: int) -> Array:
    """Chunks without an event, of ``chunks`` that have so many by chance."""
    return np.rint(chunks * (1 - 1 / chunks) ** counts).astype(np.int64)


class _Encoder(_Sender):
    """The encoder behind neurons or a pool; its pieces are those that they send."""

    def __init__(self, flow: _Flow, source: _Neurons | _Pool):
        self.source = source
        work, self.behind, full = flow.keep(("encoder", *source.key), lambda: self._tables(flow))
        super().__init__(flow, source.node.name, work, DIFFERENCE * flow.spec.cumulative(source.node.name))
        source.feed(self, full)

    def _tables(self, flow: _Flow) -> tuple[_Work, Array, tuple[Array, Array]]:
        """Work; from a piece's last volley to when its work can begin; the room before it."""
        source, volleys = self.source, self.source.volleys(flow)
        counts = flow.units.events_of(flow.spec, source.node.name)
        work = _marked(counts + _idle(counts, source.chunks) if source.dense else counts, 1)
        work[source.quiet, :-1] = 0
        after = np.maximum(work // np.maximum(volleys, 1) - 1, 0)  # events of a piece's last volley
        return _Work(work), _behind(source, work), _room(flow.rows, volleys, volleys, work - after, source.waiting)

    def step(self, step: int) -> None:
        self.send(step, self.source.of(step)[:, self.source.offered] + self.behind[self.flow.unit(step)])


def _behind(source: _Neurons | _Pool, work: Array) -> Array:
    """By piece that ``source`` sends, cycles from its end to when its ``work`` can begin in the next part."""
    return source.delay - np.minimum(source.work.each[:, source.offered], work)


class _Pool(_Server):
    """A pool; its pieces are the pixels that it walks, those behind the map too, then the mark."""

    def __init__(self, flow: _Flow, node: PoolNode, source: _Neurons | _Pool):
        self.node, self.source = node, source
        self.chunks, self.dense, self.delay, self.waiting = node.spec.output.parts, True, POOL, WINDOWS
        self.quiet: Array = source.quiet
        self.key: tuple[Hashable, ...] = (node.name, *source.key)
        (_, height, width), (tall, wide), (_, rows, columns) = node.spec.volleys.shape, node.spec.walked, node.spec.output.shape
        self.taken = np.append((np.arange(height)[:, None] * wide + np.arange(width)).reshape(-1), tall * wide)
        (down, across), (last_y, last_x) = node.spec.stride, np.subtract(node.spec.kernel, node.spec.padding) - 1
        ends = (np.arange(rows) * down + last_y)[:, None] * wide + np.arange(columns) * across + last_x
        self.offered = np.append(ends.reshape(-1)[:-1], [tall * wide - 1, tall * wide])
        work, self.behind, full = flow.keep(("pool", *self.key), lambda: self._tables(flow))
        super().__init__(flow, work)
        source.feed(self, full)

    def volleys(self, flow: _Flow) -> Array:
        """Volleys that each window sends, (units, windows + 1)."""
        found = _marked(np.full((len(self.quiet), len(self.offered) - 1), self.chunks), 0)
        found[self.quiet] = 0
        found[self.quiet, -1] = 1
        return found

    def _tables(self, flow: _Flow) -> tuple[_Work, Array, tuple[Array, Array]]:
        """As `_Encoder._tables`."""
        taps, given = prod(self.node.spec.taps), self.source.volleys(flow)
        work = np.full((len(given), self.taken[-1] + 1), self.chunks * taps)
        work[:, -1] = 0
        work[self.quiet] = 0
        work[self.quiet, -1] = 1
        volleys = np.zeros_like(work)
        volleys[:, self.taken] = given
        full = _room(flow.rows, given, volleys, np.where(volleys > 0, work, 0), self.source.waiting)
        return _Work(work), _behind(self.source, work[:, self.taken]), full

    def feed(self, later: _Server, room: tuple[Array, Array]) -> None:
        """Wait for ``room`` (for what each window sends, and the mark) before ``later``."""
        self.wait_for(later, room, 2 - self.delay, self.offered)

    def step(self, step: int) -> None:
        ready = np.full((self.flow.rows, self.pieces), NEVER)
        ready[:, self.taken] = self.source.of(step)[:, self.source.offered] + self.behind[self.flow.unit(step)]
        self.serve(step, ready)


class _Layer:
    """A layer's engines, its neurons or the read-out, and what sends their events and those of the pools behind them."""

    def __init__(self, flow: _Flow, node: LayerSpec):
        self.flow, self.name, self.neurons = flow, node.name, _Neurons(flow, node)
        self.engines = [] if self.neurons.driven else [_Engine(flow, node, index, self.neurons) for index in range(len(node.inputs))]
        self.pools: list[_Pool] = []
        self.senders: list[_Encoder] = []
        self.last = node.neurons is None
        if self.last or flow.entry:
            return
        sources: list[_Neurons | _Pool] = [self.neurons]
        for source in sources:
            pools, synapses = flow.spec.consumers[source.node.name]
            if synapses:
                self.senders.append(_Encoder(flow, source))
            sources += (_Pool(flow, pool, source) for pool in pools)
        self.pools = [source for source in sources if isinstance(source, _Pool)]

    def step(self, step: int, begin: Array) -> Array:
        """When the last neuron has begun (rows,); ``begin`` is when the first may, of a layer that is played to or kept."""
        ready = np.full((self.flow.rows, self.neurons.pieces), NEVER)
        if self.neurons.driven or self.flow.entry:
            ready[:, 0] = begin
        for engine in self.engines:
            given = engine.step(step) + SUM * (len(self.engines) - 1)
            ready[:, : given.shape[1]] = np.maximum(ready[:, : given.shape[1]], given)
        ends = self.neurons.serve(step, ready)
        for engine in self.engines:
            if engine.geometry.flat:  # takes nothing more until its neurons have left
                engine.ends[:, step + 1] = ends[:, -2 if self.last else -1]
        for pool in self.pools:
            pool.step(step)
        for sender in self.senders:
            sender.step(step)
        return ends[:, -2]

    def works(self) -> dict[str, Array]:
        """By part, cycles of work (units,)."""
        found = {f"{self.name} synapses": np.max([engine.total for engine in self.engines], axis=0)} if self.engines else {}
        if self.senders:
            found[f"{self.name} neurons"] = self.neurons.work.total
            found[f"{self.name} encoder"] = np.max([one.work.total for one in (*self.pools, *self.senders)], axis=0)
        elif self.last:
            found["read-out"] = self.neurons.work.total
        return found


def worst_cycles(spec: CoreSpec) -> int:
    """No image takes more cycles where no stream is stalled from outside.

    Every source sends an event in every step, no two parts ever work at once, and a chunk of currents or of a volley is charged what
    a round through the pipeline of a part takes.
    """
    step = 0
    for node in spec.nodes:
        if isinstance(node, PoolNode):
            pool = node.spec
            step += pool.output.parts * prod(pool.walked) * prod(pool.taps) + pool.volleys.chunks * ROUND
            step += prod(pool.output.shape) + pool.output.chunks * ROUND
            continue
        for synapses in node.inputs:
            geometry, events, passes = synapses.spec.geometry, synapses.spec.events.size, synapses.spec.passes
            step += synapses.spec.currents.chunks * ROUND
            if isinstance(synapses.spec, SerialSpec):
                step += events * (prod(geometry.taps) * synapses.spec.chunks + SETTLE + 2) + geometry.source[1] * (geometry.target[2] + 1)
                step += synapses.spec.sums
            else:
                step += passes * (events + geometry.rows * (1 if geometry.flat else synapses.spec.walk.columns))
        currents = spec.readout.currents if node.neurons is None else node.neurons.currents
        step += currents.chunks * ROUND + prod(currents.shape)
        step += 4 * ROUND * (len(node.inputs) + 1)
    schedule, steps = spec.schedule, 1
    if schedule is not None:
        steps = schedule.levels + -(-schedule.levels // schedule.margin) * (schedule.sleep_limit + schedule.depth + 1)
    return spec.pixels.beats + spec.pixels.size + (steps + 1) * step + 4 * prod(spec.readout.currents.shape) + 64
