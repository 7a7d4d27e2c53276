"""The converted network as a spiking ``torch.nn.Module``: schedules and neurons to compare, hooks after every step, statistics.

    snn = SpikingNet(net)                        # the published network, as `casc_hw.simulate` runs it
    plain = SpikingNet.plain(net)                # integrate-and-fire neurons without sleep, for comparison
    with snn.statistics() as seen:
        logits = snn(images)
    print(seen.spikes, seen.accumulates, seen.energy_pj, seen.ann_energy_pj)

The steps are those of `casc_hw.reference`; here are only the options around them, and what is counted.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from casc_hw.errors import CascError
from casc_hw.network import IMAGE, MAX_LEVELS, IntegerNet, Layer, Synapses, reached
from casc_hw.reference import Trace, _map, _per_channel, _Run

MAC_PJ = 4.6
"""Energy of a 32-bit float multiply-accumulate in 45 nm, pJ (Horowitz, "Computing's energy problem", ISSCC 2014)."""
AC_PJ = 0.9
"""Of an accumulate, likewise."""


@dataclass(frozen=True)
class Step:
    """One step of a batch, as a hook sees it; the tensors are not to be changed.

    Attributes
    ----------
    wake: wake or sleep.
    t: wake steps so far, this one included.
    asleep: sleep steps since, this one included; 0 in a wake step.
    active: bool (batch,): whether the step belongs to the image's own schedule (see `Trace`).
    events: by node, int64 (batch, C, H, W): what it emitted; of `IMAGE`, in wake steps, the pixels. The read-out's are zeros.
    counts, potentials: by spiking layer, likewise: n and v after the step.
    """

    wake: bool
    t: int
    asleep: int
    active: Tensor
    events: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    potentials: Mapping[str, Tensor]


class SpikingNet(nn.Module):
    """``net`` in spikes, integer and exact, a batch at a time, on the CPU; integer pixels in, logits out.

    With no options it does what `casc_hw.simulate` does, and (where ``net.sleep`` is None) answers as the integer ANN. It has no
    parameters: its weights are ``net``'s.

    Parameters
    ----------
    levels: T, wake steps and the highest count; other than the network's, it is the network of as many levels with the same weights.
    margin: wake steps in a row before a sleep; None: the network's, or one wake of all where ``levels`` is given.
    sleep: most sleep steps in one sleep, 0 for none; None: until no neuron of the batch spikes; ``...``: the network's.
    negative: whether neurons take spikes back. Without, the answer may differ from the integer ANN's.
    gamma: most spikes of one sign a neuron emits in a step.

    Raises
    ------
    CascError: an option that is out of range, or images that do not fit (`IntegerNet.check_images`).
    """

    def __init__(
        self,
        net: IntegerNet,
        *,
        levels: int | None = None,
        margin: int | None = None,
        sleep: int | EllipsisType | None = ...,
        negative: bool = True,
        gamma: int = 1,
    ):
        super().__init__()
        if not isinstance(net, IntegerNet):
            raise CascError(f"net: is a {type(net).__name__}, not an IntegerNet; give the `net` of what casc_hw.convert returns")
        if not isinstance(gamma, int) or isinstance(gamma, bool) or not 1 <= gamma <= MAX_LEVELS:
            raise CascError(f"gamma: {gamma!r} is not an integer from 1 to {MAX_LEVELS}; the published neuron has 1")
        steps = net.levels if levels is None else levels
        if margin is None:
            margin = net.margin if levels is None else steps
        self.net = replace(net, levels=steps, margin=margin, sleep=net.sleep if isinstance(sleep, EllipsisType) else sleep)
        self.negative, self.gamma = negative, gamma
        self._step_hooks: OrderedDict[int, Callable[[Step], None]] = OrderedDict()

    @classmethod
    def plain(cls, net: IntegerNet, *, levels: int | None = None) -> SpikingNet:
        """Integrate-and-fire neurons that subtract the threshold, T steps, no sleep: CIF without negative spikes.

        At one spike a step no count exceeds the steps so far, so that CIF's upper bound never acts.
        """
        return cls(net, levels=levels, sleep=0, negative=False)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float64 (batch, outputs), or (batch, C, H, W) of a read-out that is a map: ``sums / (T * scale)``.

        ``images``: integer pixels 0 to ``net.input_max``, shape (batch, *net.input_shape).
        """
        readout = self.net.readout
        sums = _map(self.net, readout.name, self.run(images).answer.sums).double() / (self.net.levels * (readout.scale or 1.0))
        return sums.flatten(1) if sums.shape[2:] == (1, 1) else sums

    def run(self, images: Tensor, *, record: bool = False, potentials: bool = False) -> Trace:
        """All that happened (see `Trace`): the answer, sleep steps; with ``record`` every spike, with ``potentials`` every potential."""
        pixels = self.net.check_images(images.cpu())
        return _Observed(self.net, pixels, self.gamma, record, potentials, self.negative, tuple(self._step_hooks.values())).run()

    def register_step_hook(self, hook: Callable[[Step], None]) -> RemovableHandle:
        """Call ``hook`` after every step, until the handle returned is removed."""
        handle = RemovableHandle(self._step_hooks)
        self._step_hooks[handle.id] = hook
        return handle

    @contextmanager
    def statistics(self) -> Iterator[Statistics]:
        """Statistics over all images that are run within."""
        seen = Statistics(self.net)
        handle = self.register_step_hook(seen)
        try:
            yield seen
        finally:
            handle.remove()

    def extra_repr(self) -> str:
        net = self.net
        return f"{net.name}, levels={net.levels}, margin={net.margin}, sleep={net.sleep}, negative={self.negative}, gamma={self.gamma}"


class _Observed(_Run):
    """The reference's steps, with or without negative spikes, and hooks after each."""

    def __init__(
        self,
        net: IntegerNet,
        pixels: Tensor,
        gamma: int,
        record: bool,
        potentials: bool,
        negative: bool,
        hooks: tuple[Callable[[Step], None], ...],
    ):
        super().__init__(net, pixels, gamma, record, potentials, torch.float64)
        self.pixels, self.negative, self.hooks = _map(net, IMAGE, pixels), negative, hooks
        self.since = 0
        self.silent: set[str] = set()

    def step(self, wake: bool, active: Tensor | None = None) -> Tensor:
        spiked = super().step(wake, active)
        self.since = 0 if wake else self.since + 1
        if self.hooks:
            layers = [layer.name for layer in self.net.spiking]
            events = {name: values.long() for name, values in self.events.items()} | ({IMAGE: self.pixels} if wake else {})
            counts, potentials = ({name: of[name].long() for name in layers} for of in (self.n, self.v))
            seen = Step(wake, self.t, self.since, self.active[-1], events, counts, potentials)
            for hook in self.hooks:
                hook(seen)
        return spiked

    def _layer(self, layer: Layer, events: dict[str, Tensor], wake: bool) -> Tensor:
        """Nothing changes, and nothing is computed, in a sleep step without current where the step before had no spike."""
        arrives = wake or any(events[of.source].any() for of in layer.synapses if of.source != IMAGE)
        if not arrives and layer.name in self.silent:
            return torch.zeros_like(self.v[layer.name])
        spikes = super()._layer(layer, events, wake)
        (self.silent.discard if spikes.any() else self.silent.add)(layer.name)
        return spikes

    def _spikes(self, wanted: Tensor, n: Tensor) -> Tensor:
        return super()._spikes(wanted if self.negative else wanted.clamp(min=0), n)


@dataclass(frozen=True)
class Activity:
    """What a layer did in one step, in all the images whose schedule has it.

    Attributes
    ----------
    layer: its name; the read-out has no neurons, so that only ``operations`` says something of it.
    t, asleep: wake steps so far, and sleep steps since; ``asleep`` is 0 in a wake step.
    images: how many they are.
    spikes, negative: emitted in all, of both signs; the negative ones among them.
    rate: spikes per neuron and image.
    unevenness: share of neurons whose count is not what the current S received so far asks for, ``clip(floor(S / theta), 0, t)``:
        the current came unevenly, too early or too late. At rest it is 0.
    operations: a nonzero pixel or event of value v (of a spike 1, behind an average pool the window's sum) into k synapses counts k
        products, or |v| * k accumulates. The first layer takes all its products in the first step, since its current stays the same.
    """

    layer: str
    t: int
    asleep: int
    images: int
    spikes: int
    negative: int
    rate: float
    unevenness: float
    operations: int


class Statistics:
    """A step hook that counts: over any number of batches of one network, per layer and step, and per image.

    The energies are a **proxy**: accumulates at 0.9 pJ and products at 4.6 pJ, the arithmetic of 32-bit floats in 45 nm; no memory, no
    control, no neuron, and nothing of an FPGA is in them. They compare schedules and networks, not chips.

    Attributes
    ----------
    images: images seen.
    macs: multiply-accumulates that the ANN makes of an image, zeros included, padding not.
    """

    def __init__(self, net: IntegerNet):
        self.net = net
        self.images = 0
        self._reach = [[_reach(of, net) for of in layer.synapses] for layer in net.layers]
        self.macs = int(sum(reach.sum() for parts in self._reach for reach in parts))
        self._totals: dict[tuple[int, int], Tensor] = {}
        """By (t, asleep), int64 (layers, 5): images, spikes, negative spikes, uneven neurons, operations."""

    def __call__(self, step: Step) -> None:
        if step.t == 1 and step.wake:
            self.images += len(step.active)
        rows = [[int(step.active.sum()), *self._neurons(step, index), self._operations(step, index)] for index in range(len(self._reach))]
        key = step.t, step.asleep
        self._totals[key] = self._totals.get(key, 0) + torch.tensor(rows)

    def _neurons(self, step: Step, index: int) -> tuple[int, int, int]:
        """Spikes, negative spikes, uneven neurons."""
        layer = self.net.layers[index]
        if layer.threshold is None:
            return 0, 0, 0
        spikes, n, v = (of[layer.name] for of in (step.events, step.counts, step.potentials))
        owed = torch.div(v, _per_channel(layer.threshold), rounding_mode="floor")  # S = v + theta * n
        uneven = n != (n + owed).clamp(0, step.t)  # never where an image idles, since it is at rest
        return int(spikes.abs().sum()), int(-spikes.clamp(max=0).sum()), int(uneven.sum())

    def _operations(self, step: Step, index: int) -> int:
        if index == 0 and (step.t, step.asleep) != (1, 0):
            return 0
        total = 0
        for synapses, reach in zip(self.net.layers[index].synapses, self._reach[index], strict=True):
            events = step.events[synapses.source]
            total += int(((events != 0) if index == 0 else events.abs()).sum(0).mul(reach).sum())
        return total

    @property
    def activity(self) -> list[Activity]:
        """In order, step by step, and in a step layer by layer."""
        found = []
        for (t, asleep), totals in sorted(self._totals.items()):
            for layer, (images, spikes, negative, uneven, operations) in zip(self.net.layers, totals.tolist(), strict=True):
                places = max(images * prod(self.net.shapes[layer.name]), 1)
                found.append(
                    Activity(layer.name, t, asleep, images, spikes, negative, spikes / places, uneven / places, operations),
                )
        return found

    def _mean(self, column: int, layers: slice = slice(None)) -> float:
        return int(sum(totals[layers, column].sum() for totals in self._totals.values())) / max(self.images, 1)

    @property
    def spikes(self) -> float:
        """Spikes of both signs per image, mean."""
        return self._mean(1)

    @property
    def negative(self) -> float:
        """Negative spikes per image, mean."""
        return self._mean(2)

    @property
    def products(self) -> float:
        """Multiply-accumulates per image, mean: what the nonzero pixels make in the first layer."""
        return self._mean(4, slice(0, 1))

    @property
    def accumulates(self) -> float:
        """Synaptic operations behind the first layer per image, mean."""
        return self._mean(4, slice(1, None))

    @property
    def energy_pj(self) -> float:
        """Of an image, pJ: a proxy."""
        return self.products * MAC_PJ + self.accumulates * AC_PJ

    @property
    def ann_energy_pj(self) -> float:
        """Of an image in the ANN, pJ: likewise."""
        return self.macs * MAC_PJ


def _reach(synapses: Synapses, net: IntegerNet) -> Tensor:
    """How many neurons an event at each place of the source reaches, int64 (C, H, W)."""
    shape = net.shapes[synapses.source]
    if synapses.dense:
        return torch.full(shape, synapses.outputs)
    places = reached(shape[1:], synapses.kernel, synapses.stride, synapses.padding)
    return (synapses.outputs // synapses.groups * places).expand(shape)
