"""What every sum in the network can reach, proved from its weights: the intervals behind the widths in the gates."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from casc_hw.fixed import Interval
from casc_hw.network import IMAGE, IntegerNet, Layer, Synapses


@dataclass(frozen=True)
class LayerBounds:
    """Intervals of one layer, each the hull over its neurons.

    Attributes
    ----------
    event: values of one incoming event, by synapses.
    current: the sum of all synapses in one step (spike code's first layer, and count code: in one image), without the bias.
    currents: the same by synapses.
    bias: the biases.
    threshold: the thresholds; ``None`` for the read-out.
    potential: spike code: the potential as it is compared, after a step's current was added; count code: S, complete
        (read-out: the sum that leaves).
    """

    event: tuple[Interval, ...]
    current: Interval
    currents: tuple[Interval, ...]
    bias: Interval
    threshold: Interval | None
    potential: Interval


def bounds(net: IntegerNet, code: Literal["spike", "count"] = "spike") -> tuple[LayerBounds, ...]:
    """The intervals of every layer of ``net``, aligned with ``net.layers``; spike code with gamma = 1.

    Let P and N be a channel's sums of positive and of negative weights, each weight times the `IntegerNet.span` of its source: what
    a neuron receives if each of its sources counts ``c`` levels lies between ``c * N`` and ``c * P``. A neuron at a padded border has
    some of these weights only, its own sums are nearer to 0, and every bound below only widens as P grows and N falls.

    *Spike code.* With S the sum of all current a neuron has received up to some step and n its count, ``v = S - theta * n`` with
    ``0 <= n <= T``. Each source has then counted between 0 and T levels and the bias came at most T times, so

        S_lo = T * (N + min(b, 0)) <= S <= T * (P + max(b, 0)) = S_hi,

    and for the image, whose current is the same in every step and comes with the bias, ``T * min(N + b, 0)`` and ``T * max(P + b, 0)``.
    *Upper bound*: n >= 0, so v <= S_hi. *Lower bound*: v >= S_lo - theta * T; and since v >= 0 at the start and after
    each positive spike, and a negative spike only raises v, v is at least the most negative sum of the currents of
    consecutive steps: S_lo for the image, else ``T * (N - P + min(b, 0))`` (a source's count moves by at most T levels within the
    window). The potential that is compared, before the spike is taken off, obeys the same bounds: the argument uses n of the
    step before. The read-out's sum at the end has the bias T times exactly.

    *Count code.* Every source sends its final count once, and every pixel its value, which then counts for T steps: S is complete
    when it is compared, ``T * (N + b) <= S <= T * (P + b)``.
    """
    return tuple(_spike(net, layer) if code == "spike" else _count(net, layer) for layer in net.layers)


def _spike(net: IntegerNet, layer: Layer) -> LayerBounds:
    low, high = _sides(layer, [Interval(0, net.span(synapses.source)) for synapses in layer.synapses])
    event = [net.events(synapses.source) for synapses in layer.synapses]
    if layer.threshold is None:
        return _bounds(layer, event, net.levels * (low + layer.bias), net.levels * (high + layer.bias))
    image = layer.synapses[0].source == IMAGE
    up, down = layer.bias.clamp(min=0), layer.bias.clamp(max=0)
    top = net.levels * ((high + layer.bias).clamp(min=0) if image else high + up)
    bottom = net.levels * ((low + layer.bias).clamp(max=0) if image else low + down)
    window = bottom if image else net.levels * (low - high + down)
    return _bounds(layer, event, torch.maximum(window, bottom - layer.threshold * net.levels), top)


def _count(net: IntegerNet, layer: Layer) -> LayerBounds:
    image = layer.synapses[0].source == IMAGE
    event = [Interval(0, net.span(synapses.source) * (1 if image else net.levels)) for synapses in layer.synapses]
    low, high = _sides(layer, event)
    gain = net.levels if image else 1
    return _bounds(layer, event, gain * low + net.levels * layer.bias, gain * high + net.levels * layer.bias)


def _sides(layer: Layer, event: list[Interval]) -> tuple[Tensor, Tensor]:
    """By channel, the least and the most current when every source sends one of ``event``."""
    sides = [_side(synapses, value) for synapses, value in zip(layer.synapses, event, strict=True)]
    return torch.stack([low for low, _ in sides]).sum(0), torch.stack([high for _, high in sides]).sum(0)


def _side(synapses: Synapses, value: Interval) -> tuple[Tensor, Tensor]:
    weight = synapses.weight.flatten(1)
    up, down = weight.clamp(min=0).sum(1), weight.clamp(max=0).sum(1)
    return value.hi * down + value.lo * up, value.hi * up + value.lo * down


def _bounds(layer: Layer, event: list[Interval], low: Tensor, high: Tensor) -> LayerBounds:
    """``low``, ``high``: of the potential, by channel."""
    return LayerBounds(
        event=tuple(event),
        current=_hull(*_sides(layer, event)) | 0,
        currents=tuple(_hull(*_side(synapses, value)) | 0 for synapses, value in zip(layer.synapses, event, strict=True)),
        bias=_hull(layer.bias, layer.bias),
        threshold=None if layer.threshold is None else _hull(layer.threshold, layer.threshold),
        potential=_hull(low, high),
    )


def _hull(low: Tensor, high: Tensor) -> Interval:
    return Interval(int(low.min()), int(high.max()))
