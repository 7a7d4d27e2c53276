"""The only definition of a right answer: the quantised integer ANN, and the CIF wake-sleep network step by step.

Semantics: Li, He, Kong, Zeng, "Spiking Neural Networks with Consistent Mapping Relations Allow High-Accuracy Inference",
Information Sciences 2024 (arXiv 2406.05371), restated in integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from casc_hw.network import IntegerNet, Linear


@dataclass(frozen=True)
class Answer:
    """What the integer ANN answers to a batch.

    Attributes
    ----------
    counts: per spiking layer, int64 (batch, outputs): the activation, 0 to T.
    sums: int64 (batch, classes): the read-out's current over all steps; the logit is ``sums / (T * scale)``.
    classes: int64 (batch,): the index of the largest sum, the lowest index of equals.
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
    spikes: per spiking layer, int8 (steps, batch, outputs): spikes emitted, negative ones taken back; empty if not recorded.
    potentials: per spiking layer, int64 (steps, batch, outputs): v after the step; empty if not recorded.
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
    """The integer ANN: ``n = clip(floor(S / theta), 0, T)`` layer by layer.

    ``images``: integer pixels, shape (batch, *net.input_shape); CascError if they do not fit.
    """
    totals = net.levels * net.check_images(images)
    counts = []
    for layer in net.spiking:
        assert layer.threshold is not None
        current = _currents(layer, totals) + net.levels * layer.bias
        totals = torch.div(current, layer.threshold, rounding_mode="floor").clamp(0, net.levels)
        counts.append(totals)
    return _answer(tuple(counts), _currents(net.readout, totals) + net.levels * net.readout.bias)


def simulate(net: IntegerNet, images: Tensor, *, gamma: int = 1, record: bool = True, potentials: bool = False) -> Trace:
    """Run the CIF network: wake ``net.margin`` steps, sleep, and so on until T wake steps and a last sleep have passed.

    A sleep ends with the first step in which no neuron spikes, or after ``net.sleep`` steps. ``gamma`` is the most
    spikes of one sign a neuron emits in a step. ``record`` keeps every spike, ``potentials`` every potential.
    With ``net.sleep`` None the answer equals `quantised_ann`'s.
    """
    pixels = net.check_images(images)
    run = _Run(net, pixels, gamma, record, potentials)
    done = 0
    while done < net.levels:
        block = min(net.margin, net.levels - done)
        for _ in range(block):
            run.step(wake=True)
        run.sleep()
        done += block
    return run.trace()


def sleep_bound(net: IntegerNet) -> int:
    """No sleep is longer: once a layer's inputs rest, T steps bring it to rest; one silent step ends the sleep."""
    return len(net.spiking) * net.levels + 1


class _Run:
    """The state of one batch between steps."""

    def __init__(self, net: IntegerNet, pixels: Tensor, gamma: int, record: bool, potentials: bool):
        batch = len(pixels)
        self.net, self.gamma, self.record, self.keep = net, gamma, record, potentials
        self.input_current = _currents(net.layers[0], pixels)
        self.v = [torch.zeros(batch, layer.outputs, dtype=torch.int64) for layer in net.spiking]
        self.n = [torch.zeros_like(v) for v in self.v]
        self.sums = torch.zeros(batch, net.readout.outputs, dtype=torch.int64)
        self.t = 0
        self.asleep = torch.zeros(batch, dtype=torch.int64)
        self.settled = torch.zeros(batch, dtype=torch.bool)
        self.wakes: list[bool] = []
        self.active: list[Tensor] = []
        self.spikes: list[list[Tensor]] = []
        self.potentials: list[list[Tensor]] = []

    def step(self, wake: bool, active: Tensor | None = None) -> Tensor:
        """One step of every layer; whether any neuron spiked, bool (batch,)."""
        self.t += wake
        events = torch.zeros(0)
        spiked = torch.zeros(len(self.sums), dtype=torch.bool)
        spikes = []
        for index, layer in enumerate(self.net.layers):
            current = _currents(layer, events) if index else self.input_current * wake
            if wake:
                current = current + layer.bias
            if layer.threshold is None:
                self.sums += current
                break
            events = self._neurons(index, current, layer.threshold)
            spiked |= (events != 0).any(1)
            spikes.append(events.to(torch.int8))
        self.wakes.append(wake)
        self.active.append(torch.ones_like(spiked) if active is None else active)
        if self.record:
            self.spikes.append(spikes)
        if self.keep:
            self.potentials.append([v.clone() for v in self.v])
        return spiked

    def _neurons(self, index: int, current: Tensor, theta: Tensor) -> Tensor:
        """The CIF update of one layer."""
        v, n = self.v[index] + current, self.n[index]
        wanted = torch.div(v, theta, rounding_mode="floor").clamp(-self.gamma, self.gamma)
        spike = torch.where(wanted > 0, torch.minimum(wanted, self.t - n), torch.maximum(wanted, -n))
        self.v[index], self.n[index] = v - spike * theta, n + spike
        return spike

    def sleep(self) -> None:
        """Sleep until every image of the batch was silent for a step, or the bound."""
        active = torch.ones(len(self.sums), dtype=torch.bool)
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
        def stack(steps: list[list[Tensor]]) -> tuple[Tensor, ...]:
            return tuple(torch.stack(layer) for layer in zip(*steps, strict=True))

        return Trace(
            wake=torch.tensor(self.wakes),
            active=torch.stack(self.active),
            spikes=stack(self.spikes),
            potentials=stack(self.potentials),
            answer=_answer(tuple(self.n), self.sums),
            sleep_steps=self.asleep,
            settled=self.settled,
        )


def _currents(layer: Linear, events: Tensor) -> Tensor:
    """Weighted sums without bias, int64 (batch, outputs); float64 is exact here since no sum reaches 2**52 (`IntegerNet`)."""
    return (events.to(torch.float64) @ layer.weight.to(torch.float64).T).to(torch.int64)


def _answer(counts: tuple[Tensor, ...], sums: Tensor) -> Answer:
    return Answer(counts, sums, torch.from_numpy(sums.numpy().argmax(1)))
