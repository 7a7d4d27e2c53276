"""The CIF network of `casc_hw.reference` on counts instead of potentials, which is the same and several times as fast.

With S the sum of all current a neuron has received so far, v = S - theta * n, so that ``floor(v' / theta)`` of the published update is
``floor(S / theta) - n``, and one step is

    n' = clamp(clip(floor(S / theta), 0, t), n - gamma, n + gamma)      (without negative spikes: not below n)

(0 <= n <= t before it, so the bounds on n hold of what is clipped before as well as behind). S follows from what the sources have
counted so far, ``S = W * counts + t * bias``: an average pool is the sum of counts, LIPool their maximum, and where no source has moved
S has not either. The first layer, whose current stays the same, rests after every wake step at ``clip(floor(t * x / theta), 0, t)``.
In sleep only those images of a layer are computed of which a source, or the layer in the step before, moved.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from casc_hw.network import IMAGE, IntegerNet, Layer, Network, Pool
from casc_hw.reference import _map, _per_channel, sleep_bound

Rows = Tensor | None
"""Indices of images, int64; None: all of the batch."""


class Watcher(Protocol):
    """Is told what happens while it happens (see `casc_hw.Statistics`); the tensors are not to be changed."""

    def begin(self, pixels: Tensor) -> None:
        """Of a batch: its pixels, (batch, C, H, W)."""

    def emitted(self, name: str, change: Tensor) -> None:
        """What node ``name`` emits in this step, (images, C, H, W) of those images for which it is not 0, and perhaps others."""

    def fired(self, name: str, rows: Rows, uneven: Tensor) -> None:
        """Bool (rows, C, H, W): where a neuron's count is not what the current so far asks for; elsewhere it is as it was."""

    def stepped(self, t: int, asleep: int, active: Tensor, sums: Tensor) -> None:
        """After a step (see `casc_hw.Step`); ``sums``: the read-out's so far, (batch, C, H, W)."""


def exact_dtype(net: IntegerNet) -> torch.dtype:
    """float32 where no sum of ``net``, partial ones included, reaches 2**24, so that it is an exact integer; else float64.

    A source counts ``span`` per level at most, so no sum of current exceeds T times the weights' sum of ``|w| * span`` and the bias. A
    quotient by theta that is not whole is at least 1 / theta from an integer, too far to be rounded to it, if theta more fits as well.
    """
    for layer in net.layers:
        reach = layer.bias.abs()
        for synapses in layer.synapses:
            reach = reach + net.span(synapses.source) * synapses.weight.abs().flatten(1).sum(1)
        reach = net.levels * reach + (0 if layer.threshold is None else layer.threshold)
        if int(reach.max()) >= 1 << 24:
            return torch.float64
    return torch.float32


@contextmanager
def exact_sums(device: torch.device) -> Iterator[None]:
    """Convolutions are sums of products within: neither Winograd's nor Fourier's, whose results are not whole."""
    with ExitStack() as settings:
        settings.enter_context(torch.no_grad())
        settings.enter_context(torch.backends.nnpack.flags(enabled=False))
        if device.type == "cuda":
            settings.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


def exact_products(device: torch.device) -> bool:
    """Whether products of float32 are made of all their bits, as they are on a CPU unless someone asked for less."""
    onednn: Any = torch.backends.mkldnn
    return device.type == "cpu" and {onednn.conv.fp32_precision, onednn.matmul.fp32_precision} <= {"none", "ieee"}


class Run:
    """One batch on its way through ``net``, on the device of ``weights``.

    Parameters
    ----------
    weights: by layer, of every synapses; of one floating type, in which is computed.
    biases, thresholds: by layer, (C,); a read-out has no threshold.
    pixels: (batch, inputs), integers.
    gamma, negative: see `casc_hw.SpikingNet`.
    detail: whether `changes` and `totals` are kept.
    guard: what is added to ``S / theta`` before it is rounded down; 0 of integers.

    Attributes
    ----------
    t, asleep: wake steps so far, and sleep steps since.
    n: by node, what it has emitted so far, (batch, C, H, W): of a neuron its count.
    changes: by node, what it emitted in the step.
    totals: by layer, S after the step.
    """

    def __init__(
        self,
        net: Network,
        weights: Mapping[str, Sequence[Tensor]],
        biases: Mapping[str, Tensor],
        thresholds: Mapping[str, Tensor],
        pixels: Tensor,
        *,
        gamma: int = 1,
        negative: bool = True,
        detail: bool = False,
        watchers: Sequence[Watcher] = (),
        guard: float = 0.0,
    ):
        self.net, self.weights, self.biases, self.guard = net, weights, biases, guard
        self.thetas = {name: _per_channel(theta) for name, theta in thresholds.items()}
        self.gamma, self.negative, self.detail, self.watchers = gamma, negative, detail, watchers
        bias = biases[net.layers[0].name]
        image = _map(net, IMAGE, pixels)
        none = torch.empty(0, dtype=torch.int64, device=bias.device)
        self.n = {IMAGE: image.to(bias.dtype).contiguous(memory_format=torch.channels_last)}
        self.input_current = self._current(net.layers[0], None, bias).contiguous(memory_format=torch.channels_last)
        for node in net.nodes:
            zeros = bias.new_zeros(len(pixels), *net.shapes[node.name])
            self.n[node.name] = zeros.contiguous(memory_format=torch.channels_last)
        self.owed = dict(self.n)
        self.spare = torch.empty_like(self.input_current)
        self.moved: dict[str, Rows] = dict.fromkeys(self.n, none)
        self.changes: dict[str, Tensor] = {}
        self.totals: dict[str, Tensor] = {}
        self.t = self.asleep = 0
        for watcher in watchers:
            watcher.begin(image)

    def run(self, after: Callable[[bool, Tensor], None]) -> tuple[Tensor, Tensor]:
        """The whole schedule, ``after(wake, active)`` after each step; `Trace`'s sleep_steps and settled."""
        everyone = torch.ones(len(self.n[IMAGE]), dtype=torch.bool, device=self.input_current.device)
        sleep_steps, active = torch.zeros_like(everyone, dtype=torch.int64), everyone
        limit = sleep_bound(self.net) if self.net.sleep is None else self.net.sleep
        while self.t < self.net.levels:
            for _ in range(min(self.net.margin, self.net.levels - self.t)):
                self.step(True, everyone)
                after(True, everyone)
            active = everyone
            for _ in range(limit):
                if not active.any():
                    break
                sleep_steps += active
                spiked = self.step(False, active)
                after(False, active)
                active = active & spiked
            if active.any() and self.net.sleep is None:
                raise AssertionError(f"an image still spikes after {limit} sleep steps, beyond the proved bound")
        return sleep_steps, ~active

    def step(self, wake: bool, active: Tensor) -> Tensor:
        """One step of every node; in sleep, whether any neuron of an image spiked, bool (batch,)."""
        self.t += wake
        self.asleep = 0 if wake else self.asleep + 1
        before = {node.name: self.n[node.name].clone() for node in self.net.nodes} if self.detail else {}
        spiked = torch.zeros_like(active)
        for node in self.net.nodes[:-1]:
            if isinstance(node, Pool):
                self._pool(node)
            else:
                self._layer(node, wake)
                if not wake:
                    spiked[self.moved[node.name]] = True
        self.changes = {name: self.n[name] - was for name, was in before.items()}
        for watcher in self.watchers:
            watcher.stepped(self.t, self.asleep, active, self.sums())
        return spiked

    def sums(self) -> Tensor:
        """The read-out's sums so far, (batch, C, H, W)."""
        return self._current(self.net.readout, None, self.t * self.biases[self.net.readout.name])

    def potential(self, name: str) -> Tensor:
        """v of a layer's neurons, ``S - theta * n``; needs ``detail``."""
        return self.totals[name] - self.thetas[name] * self.n[name]

    def _layer(self, layer: Layer, wake: bool) -> None:
        name = layer.name
        if layer is self.net.layers[0]:
            self.moved[name] = self.moved[IMAGE]
            if wake:  # at rest at once; the buffer of the step before is used again
                self._owe(name, None, torch.mul(self.input_current, self.t, out=self.spare))
                self.spare = self.n[name]
                self._become(name, None, self.owed[name])
            return
        fresh = None if wake else _union([self.moved[synapses.source] for synapses in layer.synapses])
        if fresh is None or len(fresh):
            self._owe(name, fresh, self._current(layer, fresh, self.t * self.biases[name]))
        rows = None if wake or self.asleep == 1 else _union([fresh, self.moved[name]])
        if rows is not None and not len(rows):
            return
        n, owed = _take(self.n[name], rows), _take(self.owed[name], rows)
        change = torch.sub(owed, n).clamp_(-self.gamma if self.negative else 0, self.gamma)
        if not wake:
            moved = change.movedim(1, -1).flatten(1).any(1)
            self.moved[name] = moved.nonzero()[:, 0] if rows is None else rows[moved]
        for watcher in self.watchers:
            watcher.emitted(name, change)
        n = change.add_(n)
        for watcher in self.watchers:
            watcher.fired(name, rows, n != owed)
        self.n[name] = _put(self.n[name], rows, n)

    def _owe(self, name: str, rows: Rows, total: Tensor) -> None:
        """The counts that S asks for, ``clip(floor(S / theta), 0, t)``, S being ``total``, which is used up."""
        if self.detail:
            self.totals[name] = _put(self.totals.get(name), rows, total.clone())
        total.div_(self.thetas[name])
        if self.guard:
            total.add_(self.guard)
        self.owed[name] = _put(self.owed[name], rows, total.floor_().clamp_(0, self.t))

    def _become(self, name: str, rows: Rows, counts: Tensor) -> None:
        """Of what follows at once."""
        for watcher in self.watchers:
            watcher.emitted(name, counts - _take(self.n[name], rows))
        self.n[name] = _put(self.n[name], rows, counts)

    def _pool(self, pool: Pool) -> None:
        """Sums, or (LIPool) maxima, of the windows' counts so far."""
        rows = self.moved[pool.name] = None if not self.asleep else self.moved[pool.source]
        if rows is not None and not len(rows):
            return
        down, across = pool.padding
        x = _take(self.n[pool.source], rows)
        if pool.padding != (0, 0):
            x = functional.pad(x, (across, across, down, down))
        if pool.kind == "average":
            self._become(pool.name, rows, functional.avg_pool2d(x, pool.kernel, pool.stride, divisor_override=1))
        else:
            self._become(pool.name, rows, functional.max_pool2d(x, pool.kernel, pool.stride))

    def _current(self, layer: Layer, rows: Rows, bias: Tensor) -> Tensor:
        """What all that the sources have emitted so far makes in the ``layer``, and ``bias``."""
        total: Tensor | None = None
        for synapses, weight in zip(layer.synapses, self.weights[layer.name], strict=True):
            x, bias_once = _take(self.n[synapses.source], rows), bias if total is None else None
            if synapses.dense:
                part = functional.linear(x.flatten(1), weight, bias_once)[:, :, None, None]
            else:
                part = functional.conv2d(x, weight, bias_once, synapses.stride, synapses.padding, 1, synapses.groups)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total


def _take(values: Tensor, rows: Rows) -> Tensor:
    return values if rows is None else values[rows]


def _put(values: Tensor | None, rows: Rows, new: Tensor) -> Tensor:
    return new if rows is None or values is None else values.index_copy_(0, rows, new)


def _union(parts: Sequence[Rows]) -> Rows:
    found = [rows for rows in parts if rows is not None]
    if len(found) < len(parts):
        return None
    found = [rows for rows in found if len(rows)] or found[:1]
    return found[0] if len(found) == 1 else torch.unique(torch.cat(found))
