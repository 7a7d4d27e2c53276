"""What no plan can beat: the operations an image asks for, over the adders and the memory ports there are; and the events it sends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from casc_hw.network import IMAGE, IntegerNet, Synapses, reached
from rtl_gen.budget import Budget
from rtl_gen.cycles import Activity
from rtl_gen.gates.core import CoreSpec

PORT_BITS = {"DP16KD": 36, "SB_RAM40_4K": 16}
"""Bits that one block RAM gives in a cycle."""


@dataclass(frozen=True)
class Limits:
    """Bounds in cycles an image; see `limits_of`.

    Attributes
    ----------
    plan: of the plan's adders; ``layer``: by which.
    events: of the events that leave a node, one a cycle; ``node``: which (`IMAGE`: pixels).
    adders, memory: of the device, if all of its logic added, or all of its block RAM gave weights.
    """

    plan: float
    layer: str
    events: float
    node: str
    adders: float
    memory: float

    @property
    def best(self) -> float:
        """What no interval of this plan can be below."""
        return max(self.plan, self.events)

    @property
    def device(self) -> float:
        """What no interval can be below on this device, whatever the plan, except if its nodes send more than an event a cycle."""
        return max(self.adders, self.memory)


def operations(net: IntegerNet, activities: Sequence[Activity]) -> dict[str, tuple[float, ...]]:
    """By layer, for each of its synapses: synaptic operations of an image, that is events times the neurons each reaches (mean)."""
    return {
        layer.name: tuple(float(np.mean([_operations(net, synapses, one) for one in activities])) for synapses in layer.synapses)
        for layer in net.layers
    }


def _operations(net: IntegerNet, synapses: Synapses, activity: Activity) -> float:
    shape = net.shapes[synapses.source]
    image = synapses.source == IMAGE
    events = activity.pixels.reshape(-1, shape[0]).sum(1) if image else activity.events[synapses.source].sum(0)  # by pixel of the map
    if synapses.dense:
        return float(events.sum()) * synapses.outputs
    events = events.reshape(*shape[1:], -1).sum(2)  # of a map of one pixel they are told by channel
    places = reached(shape[1:], synapses.kernel, synapses.stride, synapses.padding).numpy()
    return float((events * places).sum()) * synapses.outputs / synapses.groups


def sent(net: IntegerNet, activities: Sequence[Activity]) -> dict[str, float]:
    """By node that sends events, `IMAGE` included: events of an image (mean)."""
    takers = {synapses.source for layer in net.layers for synapses in layer.synapses}
    each = [{IMAGE: one.pixels.sum()} | {name: found.sum() for name, found in one.events.items()} for one in activities]
    return {name: float(np.mean([one[name] for one in each])) for name in takers}


def limits_of(spec: CoreSpec, budget: Budget, asked: dict[str, tuple[float, ...]], events: dict[str, float]) -> Limits:
    """The bounds, where ``asked`` is what `operations` says and ``events`` what `sent` does:

        plan = max over synapses e of  operations_e / (lanes_e * taps_e)
        events = max over nodes of  events of the node
        adders = sum over e of  operations_e * width_e  / LUT4s           a full adder takes a LUT4 a bit
        memory = sum over e of  operations_e * weight bits_e / (block RAMs * port bits)

    ``lanes * taps`` (``lanes`` where a tap is taken at a time) are the accumulators that an event updates at once, each with a weight
    of its own: what the adders can do in a cycle and what the memory of weights gives is the same number, and `plan` is the bound of
    both.
    """
    plan, layer, adders, memory = 0.0, spec.layers[0].name, 0.0, 0.0
    for node in spec.layers:
        for synapses, count in zip(node.inputs, asked[node.name], strict=True):
            own = count / synapses.spec.adders
            if own > plan:
                plan, layer = own, node.name
            adders += count * synapses.spec.currents.width / budget.lut4
            memory += count * synapses.spec.weight_bits / (budget.block_rams * PORT_BITS[budget.block_ram_kind])
    busiest = max(events, key=lambda name: events[name])
    return Limits(plan, layer, events[busiest], busiest, adders, memory)
