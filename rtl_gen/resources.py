"""What a core takes of a device: memories by rule, logic by a model fitted to synthesis (`python -m benchmarks` compares)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from rtl_gen.budget import Budget
from rtl_gen.gates.core import CoreSpec
from rtl_gen.gates.neurons import VOLLEYS

# Shapes (rows, bits) that one block RAM takes.
_BLOCK_SHAPES = {
    "DP16KD": ((512, 36), (1024, 18), (2048, 9), (4096, 4), (8192, 2), (16384, 1)),
    "SB_RAM40_4K": ((256, 16), (512, 8), (1024, 4), (2048, 2)),
}
LINK_LUT4, LINK_FF = 850, 560
"""Host link, clocks and LEDs: a fixed price a board pays."""


@dataclass(frozen=True)
class MemoryPlan:
    """A memory and where it goes: ``block`` RAM (``blocks`` of them), ``distributed`` RAM, ``logic`` (a table) or ``registers``."""

    name: str
    rows: int
    bits: int
    place: str
    blocks: int
    lut4: int


@dataclass(frozen=True)
class Resources:
    """Estimated use, and the device's; ``lut4`` on iCE40: logic cells."""

    device: str
    lut4: int
    ff: int
    block_rams: int
    dsps: int
    available: tuple[int, int, int, int]

    def rows(self) -> list[tuple[str, int, int]]:
        """(kind, used, available)."""
        used = (self.lut4, self.ff, self.block_rams, self.dsps)
        return list(zip(("LUT4", "FF", "block RAM", "DSP"), used, self.available, strict=True))

    def share(self, budget: Budget) -> float:
        """The largest share of a resource; block RAM and DSP are placed exactly and may be filled, so they count less."""
        weights = {"LUT4": 1.0, "FF": 1.0, "block RAM": 0.8, "DSP": 0.8}
        return max(weights[kind] * used / available if available else float(used > 0) * 2 for kind, used, available in self.rows())

    def over(self, max_share: float) -> list[tuple[str, int, int]]:
        """(kind, used, allowed) of what exceeds ``max_share`` (logic) or the device (block RAM, DSP)."""
        limits = [(kind, used, int(have * max_share) if kind in ("LUT4", "FF") else have) for kind, used, have in self.rows()]
        return [(kind, used, limit) for kind, used, limit in limits if used > limit]


def memories(spec: CoreSpec, layer: int, budget: Budget) -> Iterator[MemoryPlan]:
    """The memories of layer ``layer``."""
    synapses = spec.synapses[layer]
    kept = synapses.events.layout.members["address"].width + synapses.events.layout.members["value"].width
    yield _ram("weights", synapses.row_count, synapses.lanes * synapses.weight_bits, budget, rom=True)
    if synapses.passes > 1:
        yield _ram("events to repeat", synapses.events.size, kept, budget)
    currents = synapses.currents
    if layer == 0:
        rows = 2 << max((currents.chunks - 1).bit_length(), 1)
        yield _ram("input currents, two images", rows, currents.lanes * currents.width, budget)
    if layer < len(spec.neurons):
        neurons = spec.neurons[layer]
        yield _ram("potentials and counts", currents.chunks, currents.lanes * (neurons.potential.bits + neurons.count_bits), budget)
        yield _ram(
            "thresholds and biases", currents.chunks, currents.lanes * (neurons.threshold_bits + neurons.bias_bits), budget, rom=True
        )
        yield _ram("volleys", VOLLEYS, neurons.volley.as_shape().width, budget)
    else:
        yield _ram("sums", currents.chunks, currents.lanes * spec.readout.total.signed_bits, budget)


def estimate(spec: CoreSpec, budget: Budget) -> Resources:
    """Use of the whole board: the core, its host link, clocks and LEDs."""
    ecp5 = budget.block_ram_kind == "DP16KD"
    chain = 4 if ecp5 else 1  # carry chains end in cells of their own
    beat, pixel_bits = spec.pixels.beat, spec.pixels.maximum.bit_length()
    lut4 = LINK_LUT4 + 90 + beat * (pixel_bits + 10)
    ff = LINK_FF + 150 + beat * (pixel_bits + 2)
    blocks = _ram("pixels and answers", 2 * spec.pixels.size, 8, budget).blocks + 2
    dsps = 0
    for index, synapses in enumerate(spec.synapses):
        for memory in memories(spec, index, budget):
            blocks += memory.blocks
            lut4 += memory.lut4
            ff += memory.rows * memory.bits if memory.place == "registers" else 0
            ff += memory.bits if memory.place in ("distributed", "logic") else 0
        currents = synapses.currents
        ratio = synapses.lanes // currents.lanes
        product = synapses.weight_bits + (pixel_bits if synapses.multiplies else 0) + 1
        lut4 += 100 + synapses.lanes * (currents.width + chain)
        lut4 += 0 if synapses.multiplies else synapses.lanes * (synapses.weight_bits + 2)
        lut4 += currents.lanes * currents.width * {1: 0, 2: 1, 4: 2, 8: 4}.get(ratio, ratio // 2)
        lut4 += 60 if synapses.passes > 1 else 0
        ff += 110 + synapses.lanes * (synapses.weight_bits + product + currents.width) + currents.lanes * currents.width
        dsps += synapses.lanes if synapses.multiplies else 0
        if index == 0:
            lut4 += 120
            ff += 60
        if index < len(spec.neurons):
            neurons = spec.neurons[index]
            v, theta, count = neurons.potential.bits, neurons.threshold_bits, neurons.count_bits
            lut4 += 180 + currents.lanes * (4 * v + theta + 6 * count + 3 * chain + 8)
            ff += 160 + currents.lanes * (5 * v + 2 * theta + 3 * count + currents.width)
        else:
            total = spec.readout.total.signed_bits
            lut4 += 200 + currents.lanes * (3 * total + chain) + 2 * total
            ff += 200 + currents.lanes * total
    if ecp5:
        lut4 = lut4 * 108 // 100  # what the model has no term for
    else:
        lut4 += ff // 2 + 200  # a logic cell is a LUT with a flip-flop behind it; half of the flip-flops find no LUT to share one with
    return Resources(budget.name, lut4, ff, blocks, dsps, (budget.lut4, budget.ff, budget.block_rams, budget.dsps))


def _ram(name: str, rows: int, bits: int, budget: Budget, rom: bool = False) -> MemoryPlan:
    """Where yosys puts a memory, and what it costs there."""
    if rows == 1 and not rom:
        return MemoryPlan(name, rows, bits, "registers", 0, 0)
    if rom and rows <= 16:
        return MemoryPlan(name, rows, bits, "logic", 0, bits if rows > 1 else 0)
    if budget.block_ram_kind == "DP16KD" and rows <= 64 and not rom:
        return MemoryPlan(name, rows, bits, "distributed", 0, -(-rows // 16) * -(-bits // 4) * 6)
    blocks = min(-(-rows // depth) * -(-bits // width) for depth, width in _BLOCK_SHAPES[budget.block_ram_kind])
    return MemoryPlan(name, rows, bits, "block", blocks, 0)
