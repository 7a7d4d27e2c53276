"""What a core takes of a device: memories by the rules of synthesis, logic by a model of each part, held to synthesis by `benchmarks`.

Figures are as nextpnr counts them. On ECP5 a LUT4 is a TRELLIS_COMB: an adder of n bits takes n, rounded up to even, and four more
for the ends of its carry chain; 16 x 4 bits of distributed RAM take four, and keep two more from use. On iCE40 it is a logic cell, a
LUT4 with a flip-flop behind: half of the flip-flops find no LUT4 to share one with.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import prod

from amaranth.hdl import Shape
from amaranth.utils import ceil_log2

from casc_hw.fixed import Interval
from rtl_gen.budget import Budget
from rtl_gen.gates.core import TICKETS, CoreSpec, LayerSpec, PoolNode
from rtl_gen.gates.neurons import CountSpec, NeuronSpec
from rtl_gen.gates.pixels import TICKET, PixelSpec
from rtl_gen.gates.pools import PoolSpec
from rtl_gen.gates.readout import ReadOutSpec
from rtl_gen.gates.replay import ReplaySpec
from rtl_gen.gates.serial import SerialSpec
from rtl_gen.gates.streams import EventFormat, VolleyFormat
from rtl_gen.gates.synapses import CREDITS, DSP_BITS, ROTATED, SynapsesSpec

_BLOCKS = {
    "DP16KD": ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1)),
    "SB_RAM40_4K": ((256, 16), (512, 8), (1024, 4), (2048, 2)),
}
"""Shapes (rows, bits) that one block RAM takes."""
LINK_LUT4, LINK_FF = 1020, 370
"""Host link, clocks and LEDs, memories aside: a fixed price a board pays."""
VOLLEYS = 16
"""Places for volleys behind neurons."""
ECP5, ICE40 = 0.95, 0.8
"""LUT4s for each of a part's own: across parts synthesis saves some, and on iCE40 the ends of carry chains cost none."""
UNPAIRED = 0.5
"""Flip-flops of an iCE40 that find no LUT4 to share a logic cell with."""


@dataclass(frozen=True)
class MemoryPlan:
    """A memory and where it goes: ``block`` RAM or ``spram`` (``blocks`` of them), ``distributed`` RAM, ``logic`` (a table), ``registers``.

    ``lut4``, ``ff``: what it takes beside blocks.
    """

    name: str
    rows: int
    bits: int
    place: str
    blocks: int
    lut4: int
    ff: int


@dataclass(frozen=True)
class Resources:
    """Estimated use, and the device's; ``lut4`` on iCE40: logic cells."""

    device: str
    lut4: int
    ff: int
    block_rams: int
    dsps: int
    sprams: int
    available: tuple[int, int, int, int, int]

    def rows(self) -> list[tuple[str, int, int]]:
        """(kind, used, available); no SPRAM where the device has none."""
        used = (self.lut4, self.ff, self.block_rams, self.dsps, self.sprams)
        rows = list(zip(("LUT4", "FF", "block RAM", "DSP", "SPRAM"), used, self.available, strict=True))
        return rows if self.available[-1] else rows[:-1]

    def over(self, max_share: float, max_lut: int | None = None) -> list[tuple[str, int, int]]:
        """(kind, used, allowed) of what exceeds ``max_share`` (logic; ``max_lut`` LUT4s if given), or the device (block RAM, DSP)."""
        limits = []
        for kind, used, have in self.rows():
            limit = int(have * max_share) if kind in ("LUT4", "FF") else have
            limits.append((kind, used, min(max_lut, have) if kind == "LUT4" and max_lut is not None else limit))
        return [(kind, used, limit) for kind, used, limit in limits if used > limit]


@dataclass
class Part:
    """What is counted of a part: look-up tables without and with memories' own, flip-flops, DSPs, memories."""

    budget: Budget
    lut4: float = 0
    ff: float = 0
    dsps: int = 0
    memories: list[MemoryPlan] = field(default_factory=list)

    @property
    def ecp5(self) -> bool:
        return self.budget.block_ram_kind == "DP16KD"

    def add(self, lut4: float, ff: float = 0) -> None:
        self.lut4 += lut4
        self.ff += ff

    def adders(self, count: float, bits: float) -> None:
        """``count`` adders, or comparisons, of ``bits`` bits."""
        self.lut4 += count * (2 * -(-bits // 2) + 4 if self.ecp5 else bits + 1)

    def memory(self, name: str, rows: int, bits: int, rom: bool = False) -> None:
        """A memory with a port that reads, and unless ``rom`` one that writes."""
        if rows > 0 and bits > 0:
            self.memories.append(_memory(name, rows, bits, self.budget, rom))

    def fifo(self, name: str, depth: int, bits: int) -> None:
        """A buffered FIFO: its last place is a register."""
        self.memory(name, depth - 1, bits)
        self.add(0, bits * (depth == 2))
        self.add(25 + (8 if depth > VOLLEYS else 4) * ceil_log2(depth), 3 * ceil_log2(depth))

    def skid(self, bits: int) -> None:
        self.add(bits + 5, 2 * bits + 2)

    @property
    def cost(self) -> tuple[float, float, int, int, int]:
        """LUT4 (logic cells), flip-flops, block RAMs, DSPs, SPRAMs."""
        lut4 = self.lut4 + sum(memory.lut4 for memory in self.memories)
        ff = self.ff + sum(memory.ff for memory in self.memories)
        blocks, sprams = (sum(memory.blocks for memory in self.memories if memory.place == place) for place in ("block", "spram"))
        return (ECP5 * lut4 if self.ecp5 else ICE40 * lut4 + UNPAIRED * ff), ff, blocks, self.dsps, sprams


def estimate(spec: CoreSpec, budget: Budget) -> Resources:
    """Use of the whole board: the core, its host link, clocks and LEDs."""
    costs = zip(*(part.cost for part in parts(spec, budget).values()), strict=True)
    lut4, ff, blocks, dsps, sprams = (round(sum(column)) for column in costs)
    have = (budget.lut4, budget.ff, budget.block_rams, budget.dsps, budget.spram)
    return Resources(budget.name, lut4, ff, blocks, dsps, sprams, have)


def parts(spec: CoreSpec, budget: Budget) -> dict[str | None, Part]:
    """By node, what it takes with the encoder behind it; under None, what is of no node: board, link, reader, read-out's control."""
    rest = Part(budget, LINK_LUT4, LINK_FF)
    _link(rest, spec)
    _reader(rest, spec.pixels)
    found: dict[str | None, Part] = {None: rest}
    for index, node in enumerate(spec.nodes):
        part = found[node.name] = Part(budget)
        pools, synapses = spec.consumers[node.name]
        if isinstance(node, PoolNode):
            _pool(part, node.spec)
        else:
            _layer(part, spec, node, first=index == 0)
        if isinstance(node, LayerSpec) and node.neurons is None:
            continue
        volleys, events = spec.volleys(node.name), spec.events(node.name)
        ways = len(pools) + bool(synapses)
        part.add(3 * ways * (ways > 1), ways * (ways > 1))
        if synapses:
            if spec.cumulative(node.name):
                _difference(part, volleys, events)
                volleys = replace(volleys, value=events.value)
            _encoder(part, volleys, events)
            part.add(3 * len(synapses) * (len(synapses) > 1), len(synapses) * (len(synapses) > 1))
    return found


def _link(part: Part, spec: CoreSpec) -> None:
    """The link's pixel buffer of two images, and the book of answers."""
    part.memory("pixels of two images", 2 * spec.pixels.size, spec.pixels.maximum.bit_length())
    book = 160 + 4 * prod(spec.readout.currents.shape)
    if not part.ecp5 or book > 256:  # the small one is counted with the link
        part.memory("answers", book, 8)
    part.memory("requests", 16, 14)
    part.add(8 * spec.pixels.beat + 60, (spec.pixels.maximum.bit_length() + 1) * spec.pixels.beat)
    if any(synapses.spec.store for layer in spec.layers for synapses in layer.inputs):
        part.add(180, 150)  # what reads them from flash


def _reader(part: Part, spec: PixelSpec) -> None:
    pixel, event = spec.maximum.bit_length(), _width(spec.events)
    part.add(70 + spec.beat * (6 + pixel), 50 + spec.beat * (pixel + 1))
    part.add(25 * (spec.shape[0] > 1))
    part.skid(event)
    part.fifo("tickets", TICKETS, TICKET.size)
    part.add(32, 64)  # the cycle counter, the cycle of an image's start


def _layer(part: Part, spec: CoreSpec, node: LayerSpec, first: bool) -> None:
    for synapses in node.inputs:
        if synapses.queue:
            part.fifo("queue of events", synapses.queue, _width(synapses.spec.events))
            part.skid(_width(synapses.spec.events))
        if isinstance(synapses.spec, SerialSpec):
            _serial(part, synapses.spec)
        else:
            _synapses(part, synapses.spec)
    currents = spec.readout.currents if node.neurons is None else node.neurons.currents
    for _ in node.inputs[1:]:
        part.adders(currents.lanes, currents.width)
        part.add(currents.lanes * currents.width * 2)
        part.skid(currents.lanes * currents.width + 6)
    if node.neurons is None:
        _readout(part, spec.readout)
        return
    if first and spec.schedule is not None:
        bits = currents.lanes * currents.width
        part.memory("input currents of two images", 2 << max(ceil_log2(currents.chunks), 1), bits)
        part.add(100, 60)
        part.skid(bits + 6)
    if isinstance(node.neurons, NeuronSpec):
        _neurons(part, node.neurons)
    else:
        _counts(part, node.neurons)


def _synapses(part: Part, spec: SynapsesSpec) -> None:
    """Walk, replay, and the synapses themselves: adders, products, windows, partial sums of rows, completed chunks."""
    geometry, width, lanes = spec.geometry, spec.currents.width, spec.lanes
    places = len(spec.slots) * lanes
    taps_y, taps_x = geometry.taps
    cell = spec.cells.layout.size
    if geometry.flat:
        part.add(5, 1)
        if geometry.source[1] * geometry.source[2] > 1 and part.ecp5:
            part.dsps += sum(size & (size - 1) != 0 for size in (geometry.source[0], geometry.source[2]))
    else:
        part.add(125, 22)
    part.skid(cell)
    if spec.passes > 1:
        replay = ReplaySpec(spec.cells, spec.passes)
        kept = sum(Shape.cast(spec.cells.layout.members[name]).width for name in ("row", "set", "value"))
        part.memory("events to repeat", replay.depth, kept)
        part.add(70 + 2 * kept, cell + 15)

    _weights(part, spec)
    _products(part, spec)
    paired = spec.in_dsps if _paired(spec) else 0
    part.adders(paired, width + 1)
    part.adders(places - paired, width)
    part.add(places * width * (geometry.kept_rows or taps_x > 1), places * width)

    if geometry.kept_rows:
        kept_rows = taps_y - (geometry.stride[0] == 1)
        row = kept_rows * lanes * width
        part.memory("partial sums of a row", max(1 << (ceil_log2(spec.passes) + ceil_log2(geometry.target[2])), 2), row)
        part.add(2 * row, row)
    if taps_x > 1 and spec.passes > 1:
        window = places * width - (0 if geometry.stride[0] > 1 else lanes * width)
        if spec.passes <= ROTATED:
            part.add(0, window * (spec.passes - 1))
        else:
            part.memory("windows", spec.passes, window)
            part.add(0, window)
    if not geometry.flat:
        part.fifo("completed chunks", CREDITS + 1, lanes * width + 6)
    part.add(_choice(lanes // spec.currents.lanes) * spec.currents.lanes * width)
    part.add(60 + 15 * (spec.passes > 1), (12 if geometry.flat else 30) * spec.stages + 3 * spec.events.value.bits)


def _weights(part: Part, spec: SynapsesSpec) -> None:
    if spec.store is None:
        part.memory("weights", spec.row_count, spec.row_bits, rom=True)
    else:
        part.memories.append(MemoryPlan("weights", spec.row_count, spec.row_bits, "spram", spec.store.parts, 60, 32))


def _serial(part: Part, spec: SerialSpec) -> None:
    """A control that is much the same for all, and little beside."""
    lanes, width, bits = spec.lanes, spec.currents.width, spec.weight_bits
    product, places = _product(spec).signed_bits, ceil_log2(spec.sums)
    _weights(part, spec)
    part.memory("sums", spec.sums, lanes * width)
    part.adders(lanes, width)
    part.add(lanes * width, lanes * (2 * width + product + bits))
    part.add(210 + 95 * part.ecp5 + 3 * places + 2 * spec.geometry.groups * (spec.sets > 1), 60 + 5 * places + ceil_log2(spec.row_count))
    part.add(0, 3 * spec.events.value.bits)
    if spec.multiplies and (part.ecp5 or product > 10):  # narrower ones are not given one on iCE40
        part.dsps += lanes
    else:
        part.add(lanes * bits * (spec.events.value.bits + 1 if spec.multiplies else 2))


def _paired(spec: SynapsesSpec) -> bool:
    """Whether two products share a multiplier, see `Synapses`."""
    return _product(spec).signed_bits + spec.weight_bits + 1 <= DSP_BITS


def _product(spec: SynapsesSpec) -> Interval:
    half = 1 << (spec.weight_bits - 1)
    return Interval(-half, half - 1) * spec.events.value


def _products(part: Part, spec: SynapsesSpec) -> None:
    """What makes the products of weights and values, and keeps both a cycle.

    Weights of few rows are almost constants; of one row, equal ones share a product.
    """
    places, bits, value = len(spec.slots) * spec.lanes, spec.weight_bits, spec.events.value
    product = _product(spec).signed_bits
    count: float = min(places, 1 << bits) if spec.row_count == 1 else places * {2: 0.5, 3: 0.75, 4: 0.75}.get(spec.row_count, 1)
    if not spec.multiplies and value.lo < 0:
        part.adders(count, bits)
        part.add(count * (bits + 1))
    logic, pairs = count * (1 - spec.in_dsps / places), spec.in_dsps // 2 if _paired(spec) else 0
    if spec.multiplies and logic:
        multiple, digits = (value * Interval(-2, 3)).signed_bits, -(-bits // 2)
        part.add(logic * digits * multiple * (1.3 if spec.row_count > 1 else 0), 4 * multiple)
        part.adders(2, multiple)
        if digits > 1:
            part.adders(logic, product - 2)
        if digits > 2:  # carries are saved
            part.add(logic * (digits - 2) * 2 * product, logic * digits * multiple)
    part.dsps += spec.in_dsps - pairs
    part.adders(pairs, bits + 1)
    if not part.ecp5:
        part.add(pairs * 10 * max(product + bits + 1 - 16, 0))  # beyond the 16 bits of a multiplier
    # On iCE40 products are registered in the DSP.
    part.add(0, (count if part.ecp5 else logic) * (product + bits * (spec.row_count > 1)))


def _neurons(part: Part, spec: NeuronSpec) -> None:
    lanes, width, v = spec.currents.lanes, spec.currents.width, spec.potential.bits
    count, theta, bias = spec.count_bits, spec.threshold_bits, spec.bias_bits
    part.memory("potentials and counts", spec.currents.chunks, lanes * (v + count))
    _array(part, spec)
    part.adders(lanes * 2, v)
    part.adders(lanes, max(width, bias))
    part.add(lanes * (v + (bias + theta) / 2 + 4 * count), lanes * (5 * v + 2 * theta + 3 * count + width))


def _counts(part: Part, spec: CountSpec) -> None:
    lanes, width, total = spec.currents.lanes, spec.currents.width, spec.total.signed_bits
    theta, stages = spec.threshold_bits, ceil_log2(spec.levels)
    _array(part, spec)
    part.adders(lanes * (1 + _digits(spec.gain) - 1), total)
    part.adders(lanes, total - stages)
    part.adders(lanes * stages, theta + 1)
    part.add(lanes * (stages * theta + 12), lanes * (width + total + (stages + 1) * theta + stages * (stages + 4)) * 0.8)


def _digits(number: int) -> int:
    """Powers of two that ``number`` is a sum or difference of, at least."""
    return (number ^ 3 * number).bit_count()


def _array(part: Part, spec: NeuronSpec | CountSpec) -> None:
    """What arrays of neurons share."""
    currents = spec.currents
    part.memory("thresholds and biases", currents.parts if currents.parts > 1 else 0, currents.lanes * spec.constants.size, rom=True)
    part.fifo("volleys", VOLLEYS, spec.volleys.layout.size)
    part.add(110, 90)


def _pool(part: Part, spec: PoolSpec) -> None:
    lanes, value = spec.volleys.lanes, spec.output.layout.members["values"].elem_shape.width
    taps = -(-spec.kernel[0] // spec.stride[0])
    part.memory("windows", max(taps << (ceil_log2(spec.output.parts) + ceil_log2(spec.output.shape[2])), 2), lanes * value)
    part.adders(lanes, value)
    taken = spec.volleys.layout.members["values"].elem_shape.width
    part.add(135 + lanes * value * (5.5 if spec.kind == "max" else 4), 140 + lanes * (4.5 * value + 2 * taken))


def _difference(part: Part, volleys: VolleyFormat, events: EventFormat) -> None:
    before, change = volleys.layout.members["values"].elem_shape.width, events.value.bits
    part.memory("counts of the step before", volleys.chunks, volleys.lanes * before)
    part.adders(volleys.lanes, change)
    part.add(20 + volleys.lanes * before, 40 + volleys.lanes * (before + change))


def _encoder(part: Part, volleys: VolleyFormat, events: EventFormat) -> None:
    lanes = volleys.lanes
    value = 1 if volleys.value.lo >= -1 and volleys.value.hi <= 1 else volleys.value.bits
    part.add(20 + lanes * (8 + 1.5 * value + 0.9 * lanes), lanes * (1 + volleys.value.bits) + 16)


def _readout(part: Part, spec: ReadOutSpec) -> None:
    currents, total = spec.currents, spec.total.signed_bits
    part.memory("sums", currents.chunks, currents.lanes * total)
    part.memory("start of sums", currents.parts if currents.parts > 1 else 0, currents.lanes * total, rom=True)
    part.adders(currents.lanes + 1, total)
    part.adders(2, 16)
    part.add(140 + 2 * total + currents.lanes * total * 2.7, 85 + 3 * total + currents.lanes * total * 1.8)


def _width(events: EventFormat) -> int:
    return int(events.layout.size)


def _choice(ways: int) -> float:
    """LUT4s that choose one bit of so many, as synthesis makes it of an array."""
    return 0 if ways == 1 else ways * (0.7 if ways <= 6 else 1.1 if ways <= 10 else 1.7)


def _memory(name: str, rows: int, bits: int, budget: Budget, rom: bool) -> MemoryPlan:
    """Where yosys puts a memory, and what it costs there: it compares a price of logic or distributed RAM with one of blocks."""
    ecp5 = budget.block_ram_kind == "DP16KD"
    blocks, segments = _blocks(rows, bits, budget.block_ram_kind)
    if rows == 1 and rom:
        return MemoryPlan(name, rows, bits, "logic", 0, 0, 0)
    if rows == 1:
        return MemoryPlan(name, rows, bits, "registers", 0, 0, bits)
    if rom:
        if rows <= 16 or rows * bits <= 16 * (128 if ecp5 else 64) * blocks:
            lut4 = bits * rows / (16 if ecp5 or rows <= 16 else 8) * (1.5 if rows > 128 else 1)
            return MemoryPlan(name, rows, bits, "logic", 0, round(max(lut4, bits * (rows > 2))), bits)
        return MemoryPlan(name, rows, bits, "block", blocks, round(bits * _segments(segments)), 0)
    banks = -(-rows // 16)
    distributed = banks * -(-bits // 4)
    if ecp5 and banks * bits < 60 * blocks + 1.55 * bits * segments:
        lut4 = 6 * distributed + bits * {1: 0, 2: 1}.get(banks, banks) + 4 * (banks > 1) * banks
        return MemoryPlan(name, rows, bits, "distributed", 0, lut4, bits)
    if not ecp5 and rows * bits <= 72 * blocks:
        return MemoryPlan(name, rows, bits, "registers", 0, round(bits * rows / 2), bits * (rows + 1))
    return MemoryPlan(name, rows, bits, "block", blocks, round(bits * _segments(segments)), 0)


def _segments(count: int) -> float:
    """LUT4s that choose a bit of so many blocks, one behind the other."""
    return count - 1 if count <= 8 else 1.5 * count


def _blocks(rows: int, bits: int, kind: str) -> tuple[int, int]:
    """Fewest block RAMs for so many rows, and how many stand one behind the other.

    All of one shape; of 16 or 18 bits, the last rows may share a block where they are few; of 36, bits beyond the full columns share
    blocks in their bytes.
    """
    found = []
    shapes = _BLOCKS[kind]
    capacity = shapes[-1][0] * shapes[-1][1]
    for depth, width in shapes:
        full, columns, segments = rows // depth, -(-bits // width), -(-rows // depth)
        found.append((columns * segments, segments))
        if full and width in (16, 18) and (rows - full * depth) * bits <= capacity:
            found.append((full * columns + 1, segments))
    depth, width = shapes[0]
    segments, (whole, over) = -(-rows // depth), divmod(bits, width)
    for share in (4, 2):
        if 0 < over <= width // share and kind == "DP16KD":
            found.append((whole * segments + -(-segments // share), segments))
    return min(found)
