"""What every sum in the network can reach, proved from its weights: the intervals behind the widths in the gates."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from casc_hw.fixed import Interval
from casc_hw.network import IntegerNet


@dataclass(frozen=True)
class LayerBounds:
    """Intervals of one layer, each the hull over its output channels.

    Attributes
    ----------
    event: values of one incoming event.
    current: the synapses' sum in one step (first layer: in one image), without the bias.
    bias: the biases.
    threshold: the thresholds; ``None`` for the read-out.
    potential: the potential as it is compared, after a step's current was added (read-out: the sum that leaves).
    """

    event: Interval
    current: Interval
    bias: Interval
    threshold: Interval | None
    potential: Interval


def bounds(net: IntegerNet) -> tuple[LayerBounds, ...]:
    """The intervals of every layer of ``net`` in spike coding with gamma = 1.

    With S the sum of all current a neuron has received up to some step and n its count, ``v = S - theta * n`` with
    ``0 <= n <= T``. Each input has then delivered a count between 0 and T and the bias at most T times, so

        S_lo = T * (sum of negative parts) <= S <= T * (sum of positive parts) = S_hi.

    *Upper bound*: n >= 0, so v <= S_hi. *Lower bound*: v >= S_lo - theta * T; and since v >= 0 at the start and after
    each positive spike, and a negative spike only raises v, v is at least the most negative sum of the currents of
    consecutive steps: T times the most negative current of the first layer (its current is the same in every step),
    or ``-T * sum |w| + T * min(b, 0)`` (an input's count moves by at most T within the window). The potential that is
    compared, before the spike is taken off, obeys the same bounds: the argument uses n of the step before.
    """
    result = []
    for index, layer in enumerate(net.layers):
        event = net.events(index)
        up, down = layer.weight.clamp(min=0).sum(1), layer.weight.clamp(max=0).sum(1)
        high, low = event.hi * up + event.lo * down, event.hi * down + event.lo * up
        count = event.hi  # most of an input a step: a pixel, which comes again in every wake step, or a spike
        total_hi = net.levels * (count * up + layer.bias).clamp(min=0) if index == 0 else net.levels * (up + layer.bias.clamp(min=0))
        total_lo = net.levels * (count * down + layer.bias).clamp(max=0) if index == 0 else net.levels * (down + layer.bias.clamp(max=0))
        if layer.threshold is None:
            potential = _hull(net.levels * (count * down + layer.bias), net.levels * (count * up + layer.bias))
        else:
            window = total_lo if index == 0 else net.levels * (down - up + layer.bias.clamp(max=0))
            potential = _hull(torch.maximum(window, total_lo - layer.threshold * net.levels), total_hi) | 0
        result.append(
            LayerBounds(
                event=event,
                current=_hull(low, high) | 0,
                bias=_hull(layer.bias, layer.bias),
                threshold=None if layer.threshold is None else _hull(layer.threshold, layer.threshold),
                potential=potential,
            )
        )
    return tuple(result)


def _hull(low: torch.Tensor, high: torch.Tensor) -> Interval:
    return Interval(int(low.min()), int(high.max()))
