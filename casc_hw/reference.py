"""The only definition of a right answer: the quantised integer ANN, and the CIF wake-sleep network step by step.

Semantics: Li, He, Kong, Zeng, "Spiking Neural Networks with Consistent Mapping Relations Allow High-Accuracy Inference",
Information Sciences 2024 (arXiv 2406.05371), restated in integers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor
from torch.nn import functional

from casc_hw.network import IMAGE, IntegerNet, Layer, Network, Pool, Synapses, to_wire


@dataclass(frozen=True)
class Answer:
    """What the integer ANN answers to a batch.

    Attributes
    ----------
    counts: per spiking layer, int64 (batch, neurons), flattened in (C, H, W) order: the activation, 0 to T.
    sums: int64 (batch, outputs), flattened likewise: the read-out's current over all steps; the logit is ``sums / (T * scale)``.
    classes: int64 (batch,): the index of the largest sum *in wire order* (channel innermost), the lowest index of equals.
    """

    counts: tuple[Tensor, ...]
    sums: Tensor
    classes: Tensor


@dataclass(frozen=True)
class Trace:
    """What the spiking network did, image by image.

    Steps run in lockstep over the batch; ``active[s, i]`` says whether step s belongs to image i's own schedule (an
    image that fell silent early idles, silent, until the others of its batch do).

    Attributes
    ----------
    wake: bool (steps,): wake or sleep.
    active: bool (steps, batch).
    spikes: per spiking layer, int8 (steps, batch, neurons): spikes emitted, negative ones taken back; empty if not recorded.
    potentials: per spiking layer, int64 (steps, batch, neurons): v after the step; empty if not recorded.
    answer: counts, sums and classes at the end.
    sleep_steps: int64 (batch,): sleep steps of the image's schedule, the silent one that ends a sleep included.
    settled: bool (batch,): the last sleep ended in silence rather than at the ``sleep`` bound.
    """

    wake: Tensor
    active: Tensor
    spikes: tuple[Tensor, ...]
    potentials: tuple[Tensor, ...]
    answer: Answer
    sleep_steps: Tensor
    settled: Tensor

    def steps(self, image: int) -> Tensor:
        """Indices of the steps that belong to ``image``, int64."""
        return self.active[:, image].nonzero()[:, 0]


def quantised_ann(net: IntegerNet, images: Tensor) -> Answer:
    """The integer ANN, node by node: a layer ``n = clip(floor(S / theta), 0, T)``, a pool its windows' sums or maxima of counts.

    ``images``: integer pixels, shape (batch, *net.input_shape); CascError if they do not fit.
    """
    values = {IMAGE: _map(net, IMAGE, net.levels * net.check_images(images))}
    counts = []
    for node in net.nodes:
        if isinstance(node, Pool):
            values[node.name] = _pool(node, values[node.source])
            continue
        total = _current(node, values) + net.levels * _per_channel(node.bias)
        if node.threshold is not None:
            total = torch.div(total, _per_channel(node.threshold), rounding_mode="floor").clamp(0, net.levels)
            counts.append(total.flatten(1))
        values[node.name] = total
    return _answer(net, tuple(counts), total)


def simulate(net: IntegerNet, images: Tensor, *, gamma: int = 1, record: bool = True, potentials: bool = False) -> Trace:
    """Run the CIF network: wake ``net.margin`` steps, sleep, and so on until T wake steps and a last sleep have passed.

    A sleep ends with the first step in which no neuron spikes, or after ``net.sleep`` steps. ``gamma`` is the most
    spikes of one sign a neuron emits in a step. ``record`` keeps every spike, ``potentials`` every potential.
    With ``net.sleep`` None the answer equals `quantised_ann`'s.
    """
    return _Run(net, net.check_images(images), gamma, record, potentials).run()


def sleep_bound(net: Network) -> int:
    """No sleep is longer: once a layer's inputs rest, T steps bring it to rest; one silent step ends the sleep."""
    return len(net.spiking) * net.levels + 1


def events_of(net: IntegerNet, name: str, counts: Sequence[Tensor]) -> Tensor:
    """What the spiking layer or pool ``name`` emits in all, int64 (..., C, H, W), where neurons have emitted ``counts``.

    ``counts``: per spiking layer (..., neurons). With the final counts these are the events of count code. With the counts after
    every step, ``spikes.cumsum(0)``, the differences from step to step are the events of spike code.
    """
    chain: list[Pool] = []
    nodes = {node.name: node for node in net.nodes}
    node = nodes[name]
    while isinstance(node, Pool):
        chain.append(node)
        node = nodes[node.source]
    values = counts[net.spiking.index(node)].to(torch.int64)
    batch = values.shape[:-1]
    values = values.reshape(prod(batch), *net.shapes[node.name])
    for pool in reversed(chain):
        values = _pool(pool, values)
    return values.reshape(*batch, *values.shape[1:])


class _Run:
    """The state of one batch between steps, in int64; or in float64, faster and as exact, since no sum reaches 2**52 (`IntegerNet`)."""

    def __init__(self, net: IntegerNet, pixels: Tensor, gamma: int, record: bool, potentials: bool, dtype: torch.dtype = torch.int64):
        batch = len(pixels)
        self.net, self.gamma, self.record, self.keep = net, gamma, record, potentials
        self.input_current = _current(net.layers[0], {IMAGE: _map(net, IMAGE, pixels)}).to(dtype)
        self.v = {node.name: torch.zeros(batch, *net.shapes[node.name], dtype=dtype) for node in net.nodes}
        self.n = {name: torch.zeros_like(v) for name, v in self.v.items()}
        self.t = 0
        self.asleep = torch.zeros(batch, dtype=torch.int64)
        self.settled = torch.zeros(batch, dtype=torch.bool)
        self.wakes: list[bool] = []
        self.active: list[Tensor] = []
        self.spikes: list[list[Tensor]] = [[] for _ in net.spiking]
        self.potentials: list[list[Tensor]] = [[] for _ in net.spiking]
        self.events: dict[str, Tensor] = {}

    def run(self) -> Trace:
        """The whole schedule."""
        while self.t < self.net.levels:
            for _ in range(min(self.net.margin, self.net.levels - self.t)):
                self.step(wake=True)
            self.sleep()
        return self.trace()

    def step(self, wake: bool, active: Tensor | None = None) -> Tensor:
        """One step of every node; whether any neuron spiked, bool (batch,)."""
        self.t += wake
        events = self.events = {}
        spiked = torch.zeros(len(self.asleep), dtype=torch.bool)
        for node in self.net.nodes:
            events[node.name] = self._pooled(node, events) if isinstance(node, Pool) else self._layer(node, events, wake)
        for index, layer in enumerate(self.net.spiking):
            spikes = events[layer.name].flatten(1).to(torch.int8 if self.gamma < 128 else torch.int16)
            spiked |= spikes.any(1)
            if self.record:
                self.spikes[index].append(spikes)
            if self.keep:
                self.potentials[index].append(self.v[layer.name].flatten(1).to(torch.int64, copy=True))
        self.wakes.append(wake)
        self.active.append(torch.ones_like(spiked) if active is None else active)
        return spiked

    def _pooled(self, pool: Pool, events: dict[str, Tensor]) -> Tensor:
        """The sums of the windows; or (LIPool) how the largest of the counts so far has changed."""
        if pool.kind == "average":
            return _pool(pool, events[pool.source])
        before, self.n[pool.name] = self.n[pool.name], _pool(pool, self.n[pool.source])
        return self.n[pool.name] - before

    def _layer(self, layer: Layer, events: dict[str, Tensor], wake: bool) -> Tensor:
        """The CIF update of a layer: its spikes. The read-out has no neurons, and adds up its currents."""
        v, n = self.v[layer.name], self.n[layer.name]
        if layer is not self.net.layers[0]:
            v = v + _current(layer, events)
        elif wake:
            v = v + self.input_current
        if wake:
            v = v + _per_channel(layer.bias)
        spike = torch.zeros_like(v)
        if layer.threshold is not None:
            theta = _per_channel(layer.threshold)
            spike = self._spikes(_floor(v, theta).clamp(-self.gamma, self.gamma), n)
            v, self.n[layer.name] = v - spike * theta, n + spike
        self.v[layer.name] = v
        return spike

    def _spikes(self, wanted: Tensor, n: Tensor) -> Tensor:
        """What neurons of counts ``n``, 0 <= n <= t, emit that would emit ``wanted``, but for these bounds."""
        return torch.clamp(wanted, -n, self.t - n)

    def sleep(self) -> None:
        """Sleep until every image of the batch was silent for a step, or the bound."""
        active = torch.ones(len(self.asleep), dtype=torch.bool)
        limit = sleep_bound(self.net) if self.net.sleep is None else self.net.sleep
        for _ in range(limit):
            if not active.any():
                break
            self.asleep += active
            active = active & self.step(wake=False, active=active)
        if active.any() and self.net.sleep is None:
            raise AssertionError(f"an image still spikes after {limit} sleep steps, beyond the proved bound")
        self.settled = ~active

    def trace(self) -> Trace:
        def stack(layers: list[list[Tensor]]) -> tuple[Tensor, ...]:
            return tuple(torch.stack(steps) for steps in layers)

        counts = tuple(self.n[layer.name].flatten(1).to(torch.int64) for layer in self.net.spiking)
        return Trace(
            wake=torch.tensor(self.wakes),
            active=torch.stack(self.active),
            spikes=stack(self.spikes) if self.record else (),
            potentials=stack(self.potentials) if self.keep else (),
            answer=_answer(self.net, counts, self.v[self.net.readout.name].to(torch.int64)),
            sleep_steps=self.asleep,
            settled=self.settled,
        )


def _map(net: Network, name: str, flat: Tensor) -> Tensor:
    return flat.reshape(len(flat), *net.shapes[name])


def _per_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def _floor(v: Tensor, theta: Tensor) -> Tensor:
    """``floor(v / theta)``; of floats below 2**53 too: a quotient that is not whole is too far from an integer to be rounded to it."""
    return (v / theta).floor() if v.is_floating_point() else torch.div(v, theta, rounding_mode="floor")


def _current(layer: Layer, values: dict[str, Tensor]) -> Tensor:
    """What the synapses of ``layer`` make of the ``values`` of its sources, without bias: (batch, C, H, W) of their dtype."""
    first, *rest = (_weighted(synapses, values[synapses.source]) for synapses in layer.synapses)
    return sum(rest, first)


def _weighted(synapses: Synapses, values: Tensor) -> Tensor:
    """Weighted sums, (batch, C, H, W) of the dtype of ``values``; float64 is exact here since no sum reaches 2**52 (`IntegerNet`)."""
    weight, x = synapses.weight.to(torch.float64), values.to(torch.float64)
    if synapses.dense:
        return (x.flatten(1) @ weight.T).to(values.dtype)[:, :, None, None]
    out = functional.conv2d(x, weight, None, synapses.stride, synapses.padding, 1, synapses.groups)
    return out.to(values.dtype)


def _pool(pool: Pool, values: Tensor) -> Tensor:
    """Sums or maxima of the windows of ``values`` (batch, C, H, W) among zeros, of their dtype."""
    down, across = pool.padding
    padded = functional.pad(values.to(torch.float64), (across, across, down, down))
    if pool.kind == "average":
        return functional.avg_pool2d(padded, pool.kernel, pool.stride, divisor_override=1).to(values.dtype)
    return functional.max_pool2d(padded, pool.kernel, pool.stride).to(values.dtype)


def _answer(net: Network, counts: tuple[Tensor, ...], sums: Tensor) -> Answer:
    flat = sums.flatten(1)
    return Answer(counts, flat, torch.from_numpy(to_wire(flat, net.shapes[net.readout.name]).numpy().argmax(1)))
