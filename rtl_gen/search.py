"""The way to a plan: which lanes relieve a core most for the room they take, what a device has no room for, and what would help."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from math import inf, prod
from typing import Any

from casc_hw.errors import CascError
from casc_hw.network import IMAGE, IntegerNet, Layer, Synapses
from rtl_gen.budget import Budget
from rtl_gen.cycles import BEATS, Activity, Prediction, assume, measure, predict
from rtl_gen.gates.core import CoreSpec
from rtl_gen.gates.spram import WeightStoreSpec
from rtl_gen.gates.synapses import DIGIT_BITS, lanes_fit
from rtl_gen.lower import QUEUE, Code, Lanes, core_spec, geometry, pixel_shape
from rtl_gen.resources import estimate, parts

MAX_SHARE = 0.8
"""Share of the logic a plan may fill unless told otherwise: routing needs room, and the model may err."""
TIGHT_SHARE = 0.95
"""Share that the smallest plan of all may fill."""
MAX_BLOCKS = 0.95
"""Share of the block RAM that lanes are chosen for; the model may err."""
MAX_LANES = 256
MAX_ADDERS = 1152
"""Most accumulators of a layer."""
BALANCED_LANES, BALANCED_ADDERS = 64, 160
"""Likewise, unless the plan is to be the fastest: wider rows of weights take nextpnr long to route."""
MAX_NEURON_LANES = 16
CLOCK_HZ = {"DP16KD": 80e6, "SB_RAM40_4K": 24e6}
"""Clock of the core that a device is assumed to reach, by its kind of block RAM, that is by its family."""
QUEUES = {"DP16KD": QUEUE, "SB_RAM40_4K": 256}
"""Events that wait before a convolution."""
SWEEPS = 2
"""Times that all layers are gone through in search of room."""
STUCK = 4
"""Parts, busiest first, that are looked at for what saves time."""
ROUNDS = 3
"""Times that a plan which is to be fast makes room and goes on."""
ACTIVITY_IMAGES = 16
"""Images measured for the choice of lanes."""


@dataclass(frozen=True)
class Options:
    """What a user may ask of a plan.

    Attributes
    ----------
    code: "spike" or "count".
    lanes: by layer, synapse lanes that are not to be changed, and perhaps neuron lanes.
    max_share: share of the logic that may be filled (None: `MAX_SHARE`, or `TIGHT_SHARE` by the smallest plan, if no other fits, and
        by the fastest, if one lane a layer does not fit); ``max_lut``: LUT4s that may, if given.
    fastest: as fast as the device allows, whatever the area.
    target_fps: the smallest plan that takes so many images a second at the clock assumed.
    """

    code: Code = "count"
    lanes: Mapping[str, tuple[int, int | None]] | None = None
    max_share: float | None = None
    max_lut: int | None = None
    fastest: bool = False
    target_fps: float | None = None

    def __post_init__(self) -> None:
        if self.code not in ("spike", "count"):
            raise CascError(f"code: {self.code!r} is not known; use spike or count")
        if self.max_share is not None and not 0 < self.max_share <= 1:
            raise CascError(f"max share: {self.max_share!r} is not in (0, 1]; the default is {MAX_SHARE}")
        if self.max_lut is not None and self.max_lut < 1:
            raise CascError(f"max LUT4s: {self.max_lut!r} is not positive; give a number or a share, as in 60%")
        if self.target_fps is not None and not 0 < self.target_fps < inf:
            raise CascError(f"target: {self.target_fps!r} images a second is not a positive number; choose another")


class Candidate:
    """Lanes under consideration, with their cost."""

    def __init__(self, search: Search, lanes: list[Lanes], beat: int):
        self.lanes, self.beat, self.spram = lanes, beat, search.spram or ()
        code, budget = search.options.code, search.budget
        self.spec = core_spec(search.net, lanes, beat, code, search.queue, self.spram)
        self.resources = estimate(self.spec, budget)
        if search.spram is None and budget.spram and self.resources.block_rams > budget.block_rams * MAX_BLOCKS:
            self.spram = loaded(self.spec, budget, self.resources.block_rams - int(budget.block_rams * MAX_BLOCKS))
            self.spec = core_spec(search.net, lanes, beat, code, search.queue, self.spram)
            self.resources = estimate(self.spec, budget)
        self._search = search

    @cached_property
    def prediction(self) -> Prediction:
        return predict(self.spec, self._search.activities)

    def swapped(self, index: int, lanes: Lanes) -> list[Lanes]:
        """The lanes, with others in layer ``index``."""
        return [*self.lanes[:index], lanes, *self.lanes[index + 1 :]]

    @property
    def cost(self) -> float:
        return self.prediction.interval + 0.1 * self.prediction.latency

    @property
    def part(self) -> str:
        """The busiest."""
        busy = self.prediction.busy
        return max(busy, key=lambda part: busy[part])


def loaded(spec: CoreSpec, budget: Budget, excess: int) -> tuple[str, ...]:
    """Layers whose weights leave block RAM for SPRAM, the largest first, until ``excess`` blocks are free or there is no more SPRAM."""
    used, left, names = parts(spec, budget), budget.spram, []
    sizes = {layer.name: sum(m.blocks for m in used[layer.name].memories if m.name == "weights") for layer in spec.layers}
    for layer in sorted(spec.layers, key=lambda layer: -sizes[layer.name]):
        try:
            stores = [WeightStoreSpec(synapses.spec.row_count, synapses.spec.row_bits) for synapses in layer.inputs]
        except ValueError:
            continue
        need = sum(store.parts for store in stores)
        if excess > 0 and sizes[layer.name] and need <= left:
            names.append(layer.name)
            left, excess = left - need, excess - sizes[layer.name]
    return tuple(names)


class Search:
    """What plans are chosen among; ``spram``: layers whose weights are loaded, None: as it turns out."""

    def __init__(
        self,
        net: IntegerNet,
        budget: Budget,
        options: Options,
        images: Any = None,
        queue: int | None = None,
        spram: tuple[str, ...] | None = None,
    ):
        self.net, self.budget, self.options, self.spram = net, budget, options, spram
        self._known: dict[Any, Candidate] = {}
        self.share, self.tight = MAX_SHARE if options.max_share is None else options.max_share, False
        self.queue = QUEUES[budget.block_ram_kind] if queue is None else queue
        self.images = images
        self.shapes = [[geometry(net, synapses) for synapses in layer.synapses] for layer in net.layers]
        self.fixed = {self._index(name): self._fixed(self._index(name), *wish) for name, wish in (options.lanes or {}).items()}

    @cached_property
    def activities(self) -> list[Activity]:
        net, code = self.net, self.options.code
        return assume(net, code) if self.images is None else measure(net, self.images[:ACTIVITY_IMAGES], code)

    @property
    def far(self) -> bool:
        """Whether speed is asked for, whatever the area."""
        return self.options.fastest or self.options.target_fps is not None

    def candidate(self, lanes: list[Lanes], beat: int) -> Candidate:
        key = (*lanes, beat)
        if key not in self._known:
            self._known[key] = Candidate(self, lanes, beat)
        return self._known[key]

    def over(self, one: Candidate, blocks: float = 1.0) -> list[tuple[str, int, int]]:
        """(kind, used, allowed) of what ``one`` takes too much of."""
        over = one.resources.over(self.share, self.options.max_lut)  # SPRAM is never more than there is
        room = int(self.budget.block_rams * blocks)
        if one.resources.block_rams > room and not any(kind == "block RAM" for kind, _, _ in over):
            over.append(("block RAM", one.resources.block_rams, room))
        return over

    # The start

    def smallest(self) -> Candidate:
        """One lane everywhere; where that is too much, layer after layer what is nearest to room; then, where it may, with more room."""
        single = [Lanes(1, 1, self._multipliers(index)[0]) for index in range(len(self.net.layers))]
        first = self.candidate([self.fixed.get(index, lanes) for index, lanes in enumerate(single)], 1)
        best = self._squeezed(first)
        if self.options.max_share is None and (self.over(best) or (self.options.fastest and best is not first)):
            self.share, self.tight = TIGHT_SHARE, True
            best = self._squeezed(best)
        return best

    def _squeezed(self, best: Candidate) -> Candidate:
        for _ in range(SWEEPS):
            for index in range(len(self.net.layers)):
                if self.over(best):
                    best = min([best, *(self.candidate(*move) for move in self._all(best, index))], key=self._excess)
        return best

    def _excess(self, one: Candidate) -> tuple[float, int]:
        over = self.over(one)
        return sum(used / max(allowed, 1) - 1 for _, used, allowed in over), one.resources.lut4

    def _all(self, one: Candidate, index: int) -> Iterator[tuple[list[Lanes], int]]:
        """Some passes, every multiplier, and a tap at a time, of layer ``index``, as far as the user leaves them open."""
        current, choices = one.lanes[index], list[Lanes | None]()
        for multiplier in self._multipliers(index):
            if index in self.fixed:
                choices.append(replace(current, multiplier=multiplier))
            else:
                choices += [self._lanes(index, passes, 1, multiplier) for passes in (self._passes(index, current), 32, 16, 8, 4, 3, 2, 1)]
        start = current if index in self.fixed else Lanes(1, 1)
        choices.append(self._serial(index, replace(start, neurons=start.synapses) if self._open(index) else start))
        for choice in dict.fromkeys(choices):
            if choice is not None and choice != current:
                yield one.swapped(index, choice), one.beat

    # The way

    def way(self, start: Candidate) -> list[Candidate]:
        """Ever faster plans, each a change away from the one before."""
        way, rounds = [start], 0
        wanted = 0.0 if self.options.target_fps is None else CLOCK_HZ[self.budget.block_ram_kind] / self.options.target_fps
        while way[-1].prediction.interval > wanted and (self.far or not self.tight):
            better = self._better(way[-1])
            if better is None and self.far and rounds < ROUNDS:  # what others do not need makes room
                rounds, better = rounds + 1, self.trimmed(way[-1], way[-1].prediction.interval)
            if better is None or better is way[-1]:
                break
            way.append(self.settled(better))
        return way

    def settled(self, one: Candidate) -> Candidate:
        """``one`` with DSPs where they save most logic."""
        while True:
            others = (
                self.candidate(one.swapped(index, replace(lanes, multiplier=multiplier)), one.beat)
                for index, lanes in enumerate(one.lanes)
                for multiplier in self._multipliers(index)
                if multiplier != lanes.multiplier
            )
            fits = (other for other in others if not self.over(other, MAX_BLOCKS))
            better = min(fits, key=lambda other: other.resources.lut4, default=one)
            if better.resources.lut4 >= one.resources.lut4:
                return one
            one = better

    def _better(self, one: Candidate) -> Candidate | None:
        """The change that relieves the busiest part for least; if none does, that of the part after it which saves time at all."""
        busy = one.prediction.busy
        for rank, part in enumerate(sorted(busy, key=lambda part: -busy[part])[:STUCK]):
            rest = max((cycles for other, cycles in busy.items() if other != part), default=0.0)
            found: list[tuple[float, int, Candidate]] = []
            for move in self.moves(one, part):
                other = self.candidate(*move)
                if self.over(other, MAX_BLOCKS) or other.prediction.busy.get(part, 0.0) >= busy[part] * 0.999:
                    continue
                if other.cost <= one.cost * (1.001 if rank == 0 else 0.995):
                    found.append((other.resources.lut4 * max(other.prediction.busy.get(part, 0.0), rest) ** 2, len(found), other))
            if found:
                return min(found)[2]
        return None

    def trimmed(self, one: Candidate, wanted: float) -> Candidate:
        """``one`` with fewer lanes wherever an interval of ``wanted`` cycles allows."""
        while True:
            fewer = [self.candidate(*move) for move in self._fewer(one)]
            fewer = [other for other in fewer if other.resources.lut4 < one.resources.lut4 and not self.over(other)]
            for other in sorted(fewer, key=lambda other: other.resources.lut4):
                if other.prediction.interval <= wanted:
                    one = other
                    break
            else:
                return one

    def _fewer(self, one: Candidate) -> Iterator[tuple[list[Lanes], int]]:
        if one.beat > 1:
            yield one.lanes, one.beat // 2
        for index, lanes in enumerate(one.lanes):
            if index in self.fixed:
                continue
            passes = self._passes(index, lanes)
            if lanes.serial:
                choice = self._serial(index, replace(lanes, synapses=lanes.synapses // 2, neurons=lanes.neurons // 2))
                if choice is not None:
                    yield one.swapped(index, choice), one.beat
                continue
            choices = [(passes, lanes.neurons // 2)]
            choices += [(more, lanes.neurons) for more in (passes + 1, 2 * passes) if more <= self.net.layers[index].outputs]
            for more, neurons in choices:
                other = self._lanes(index, more, neurons, lanes.multiplier) if neurons else None
                if other is not None and other != lanes:
                    yield one.swapped(index, other), one.beat

    def moves(self, one: Candidate, part: str) -> Iterator[tuple[list[Lanes], int]]:
        """Plans one change away that may relieve ``part``."""
        if part == "image":
            yield from ((one.lanes, beat) for beat in self._beats() if one.beat < beat <= 4 * one.beat)
            return
        index, what = self.place(part)
        lanes, open_ = one.lanes[index], self._open(index)
        passes = self._passes(index, lanes)
        choices: list[Lanes | None] = []
        if lanes.serial and index not in self.fixed:
            choices.append(self._serial(index, replace(lanes, synapses=2 * lanes.synapses, neurons=2 * lanes.neurons)))
        if what == "synapses" and index not in self.fixed:
            fewer = {passes - 1, -(-passes // 2), -(-passes // 4)} - ({0} if lanes.serial else {0, passes})
            choices += [self._lanes(index, few, lanes.neurons, m) for few in sorted(fewer) for m in self._multipliers(index)]
        elif what != "synapses" and open_:
            for neurons in (2 * lanes.neurons, 4 * lanes.neurons):
                if index in self.fixed:
                    fits = lanes.synapses % neurons == 0
                    choices.append(replace(lanes, neurons=neurons) if fits and neurons <= MAX_NEURON_LANES else None)
                else:
                    choices += [self._lanes(index, passes, neurons, m) for m in self._multipliers(index)]
                    choices += [self._lanes(index, -(-passes // 2), neurons, m) for m in self._multipliers(index)]
        for choice in dict.fromkeys(choices):
            if choice is not None and choice != lanes:
                yield one.swapped(index, choice), one.beat

    def place(self, part: str) -> tuple[int, str]:
        """The layer that ``part`` (see `Prediction.busy`) belongs to, and what it is there."""
        names = [layer.name for layer in self.net.layers]
        if part == "read-out":
            return len(names) - 1, "neurons"
        name, _, what = part.rpartition(" ")
        return names.index(name), what

    # What is possible

    def _beats(self) -> list[int]:
        shape = pixel_shape(self.net)
        return [beat for beat in BEATS if shape[1] == 1 or shape[0] * shape[2] % beat == 0]

    def _multipliers(self, index: int) -> list[Any]:
        """Where layer ``index`` may make products, if it makes any."""
        layer = self.net.layers[index]
        large = [synapses for synapses in layer.synapses if synapses.bits > DIGIT_BITS and not synapses.shortcut]
        small = self.budget.block_ram_kind == "DP16KD" and not large  # a shortcut's products are few
        if small or all(self._plain(synapses) for synapses in layer.synapses):
            # Small products: 100 MHz in logic beside the sums, 63 MHz in multipliers all over an ECP5; a few of these do no harm.
            return ["logic", "both"] if small and all(shape.flat for shape in self.shapes[index]) else ["logic"]
        return ["dsp", "logic"] if self.budget.dsps else ["logic"]

    def _plain(self, synapses: Synapses) -> bool:
        """Whether events through ``synapses`` are -1, 0 or 1."""
        span = self.net.span(synapses.source)
        levels = self.net.levels if self.options.code == "count" and synapses.source != IMAGE else 1
        return span * levels == 1

    def _passes(self, index: int, lanes: Lanes) -> int:
        return -(-self.net.layers[index].outputs // lanes.synapses)

    def _serial(self, index: int, lanes: Lanes) -> Lanes | None:
        """``lanes`` with a tap at a time; None where layer ``index`` has no convolution, or cannot have them."""
        last, count, shapes = index == len(self.net.layers) - 1, lanes.synapses, self.shapes[index]
        fits = (
            lanes.neurons == count
            and 1 <= count <= MAX_NEURON_LANES
            and (last or not count & (count - 1))
            and all(lanes_fit(shape, count) for shape in shapes)
        )
        return replace(lanes, serial=True) if fits and not all(shape.flat for shape in shapes) else None

    def _open(self, index: int) -> bool:
        """Whether the user leaves the neuron lanes of layer ``index`` open."""
        return index not in self.fixed or (self.options.lanes or {})[self.net.layers[index].name][1] is None

    def _top(self, index: int) -> int:
        """Most synapse lanes of layer ``index``."""
        most, adders = (MAX_LANES, MAX_ADDERS) if self.far else (BALANCED_LANES, BALANCED_ADDERS)
        return min(most, adders // max(prod(shape.taps) for shape in self.shapes[index]))

    def _lanes(self, index: int, passes: int, neurons: int, multiplier: Any = None) -> Lanes | None:
        """Lanes for so many passes and neuron lanes, as near as layer ``index`` allows; None where it does not."""
        outputs, last = self.net.layers[index].outputs, index == len(self.net.layers) - 1
        synapses = -(-outputs // passes)
        if last:
            neurons = max(size for size in range(1, synapses + 1) if synapses % size == 0 and size <= max(neurons, 1))
        elif neurons > MAX_NEURON_LANES:
            return None
        synapses = -(-synapses // neurons) * neurons
        if synapses > max(self._top(index), 1) or not all(lanes_fit(shape, synapses) for shape in self.shapes[index]):
            return None
        return Lanes(synapses, neurons, multiplier or self._multipliers(index)[0])

    def _index(self, name: str) -> int:
        names = [layer.name for layer in self.net.layers]
        if name not in names:
            raise CascError(f"lanes: no layer is called {name!r}; the names are {', '.join(names)}")
        return names.index(name)

    def _fixed(self, index: int, synapses: int, neurons: int | None) -> Lanes:
        layer, last = self.net.layers[index], index == len(self.net.layers) - 1
        if not 1 <= synapses <= MAX_LANES:
            raise CascError(f"lanes of {layer.name}: {synapses} is not from 1 to {MAX_LANES}; choose another")
        if not all(lanes_fit(shape, synapses) for shape in self.shapes[index]):
            fits = [str(n) for n in range(1, layer.outputs + 1) if all(lanes_fit(shape, n) for shape in self.shapes[index])]
            raise CascError(f"lanes of {layer.name}: {synapses} are no whole chunks of its groups; use one of {', '.join(fits)}")
        if neurons is None:
            neurons = 1
        elif neurons < 1 or synapses % neurons or (not last and neurons & (neurons - 1)):
            power = "" if last else "a power of two that is "
            raise CascError(f"lanes of {layer.name}: {neurons} neuron lanes for {synapses}; choose {power}a divisor of {synapses}")
        return Lanes(synapses, neurons, self._multipliers(index)[0])


def refusal(search: Search, smallest: Candidate, larger: Mapping[str, Budget]) -> str:
    """By how much the network is too large, and what would make it fit, each tried on its own."""
    net, budget, options = search.net, search.budget, replace(search.options, lanes=None)
    what, used, available = max(search.over(smallest), key=lambda entry: entry[1] / max(entry[2], 1))

    def fits(net: IntegerNet, budget: Budget = budget, options: Options = options) -> bool:
        other = Search(net, budget, options)
        return not other.over(other.smallest())

    def first(found: Iterator[str]) -> list[str]:
        return [advice for advice in [next(found, "")] if advice]

    advice = []
    if search.options.lanes and fits(net):
        advice.append("lanes of the planner's choice")
    bits = max(synapses.bits for layer in net.layers for synapses in layer.synapses if not synapses.shortcut)
    advice += first(f"{few}-bit weights" for few in (6, 4, 3, 2) if few < bits and fits(narrower(net, few)))
    fewer = [levels for levels in (net.levels // 2, net.levels // 4, 1) if 0 < levels < net.levels]
    advice += first(f"T = {levels}" for levels in fewer if fits(replace(net, levels=levels, margin=min(net.margin, levels))))
    other: Code = "spike" if options.code == "count" else "count"
    advice += [f"--code {other}"] * fits(net, options=replace(options, code=other))
    bigger = sorted(larger.items(), key=lambda item: item[1].lut4)
    advice += first(f"--board {name}" for name, device in bigger if device.lut4 > budget.lut4 and fits(net, device))
    would = f"it would fit with {' or '.join(advice)}" if advice else "no fewer bits or levels would do, make it smaller"
    return (
        f"{net.name}: needs at least {used} of {what}, {smallest.resources.device} has {available} to give "
        f"({used - available} too few); {would}"
    )


def narrower(net: IntegerNet, bits: int) -> IntegerNet:
    """``net`` with weights of at most ``bits`` bits, the low ones cut off: of use for its size alone."""

    def cut(synapses: Synapses) -> Synapses:
        less = max(synapses.bits - bits, 0) * (not synapses.shortcut)
        return replace(synapses, weight=synapses.weight >> less, bits=synapses.bits - less)

    nodes = [replace(node, synapses=tuple(map(cut, node.synapses))) if isinstance(node, Layer) else node for node in net.nodes]
    return replace(net, nodes=tuple(nodes))


def out_of_reach(search: Search, best: Candidate, wanted: float) -> str:
    clock, interval = CLOCK_HZ[search.budget.block_ram_kind], best.prediction.interval
    return (
        f"{search.net.name}: {search.options.target_fps:,.0f} images a second are {wanted:,.0f} cycles each at {clock / 1e6:g} MHz, "
        f"{search.budget.name} gives {clock / interval:,.0f} at best ({interval:,.0f} cycles); {best.part} is held by "
        f"{held_by(search, best)}"
    )


def held_by(search: Search, one: Candidate) -> str:
    """What keeps the busiest part from being faster."""
    part = one.part
    if part == "image":
        return f"{one.beat} pixels a transfer"
    index, what = search.place(part)
    lanes, layer = one.lanes[index], one.spec.layers[index]
    if what == "encoder":
        return "one event a cycle"
    if what == "neurons":
        return f"{lanes.neurons} neuron{'s' * (lanes.neurons > 1)} a cycle"
    engine = layer.inputs[0].spec
    adders = sum(synapses.spec.adders for synapses in layer.inputs)
    if lanes.serial:
        return f"a tap at a time of {lanes.synapses} channel{'s' * (lanes.synapses > 1)}"
    if engine.passes == 1:
        return f"one event a cycle, with all {engine.geometry.outputs} channels at once ({adders} adders)"
    over = [search.over(search.candidate(*move), MAX_BLOCKS) for move in search.moves(one, part)]
    kinds = {max(found, key=lambda entry: entry[1] / max(entry[2], 1))[0] for found in over if found}
    bits = sum(synapses.spec.adders * synapses.spec.weight_bits for synapses in layer.inputs)
    if over and all(over) and kinds == {"block RAM"}:
        return f"the bandwidth of its weights' memory, {bits:,} bits a cycle"
    reason = f", and there is no room for more {' or '.join(sorted(kinds))}" if over and all(over) else ""
    return f"{adders} adders ({lanes.synapses} lanes x {adders // lanes.synapses} taps){reason}"
