"""The converted network as a spiking ``torch.nn.Module``: schedules and neurons to compare, hooks after every step, statistics.

    snn = SpikingNet(net)                        # the published network, as `casc_hw.simulate` runs it
    plain = SpikingNet.plain(net)                # integrate-and-fire neurons without sleep, for comparison
    unrounded = SpikingNet(conversion.unrounded) # the same before the weights were rounded, in float64
    with snn.statistics() as seen:
        logits = snn(images)
    print(seen.spikes, seen.accumulates, seen.energy_pj, seen.ann_energy_pj)

The steps are made in `casc_hw.fast`, and are those of `casc_hw.reference`; here are the options around them, and what is counted.
"""

from __future__ import annotations

from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import prod
from types import EllipsisType

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from casc_hw.errors import CascError
from casc_hw.fast import Rows, Run, exact_dtype, exact_products, exact_sums
from casc_hw.network import IMAGE, MAX_LEVELS, FloatNet, IntegerNet, Network, Synapses, reached
from casc_hw.reference import Answer, Trace, _answer, _map

MAC_PJ = 4.6
"""Energy of a 32-bit float multiply-accumulate in 45 nm, pJ (Horowitz, "Computing's energy problem", ISSCC 2014)."""
AC_PJ = 0.9
"""Of an accumulate, likewise."""
GUARD = 2.0**-24
"""In thresholds, how much of one a `FloatNet`'s sum may lack: half of float32's spacing below 1, which is more than the rounding of float64
sums and less than the float32 of a model can tell."""


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
    sums: the read-out's so far, likewise. Of a `FloatNet`, these and potentials are float64.
    """

    wake: bool
    t: int
    asleep: int
    active: Tensor
    events: Mapping[str, Tensor]
    counts: Mapping[str, Tensor]
    potentials: Mapping[str, Tensor]
    sums: Tensor


class SpikingNet(nn.Module):
    """``net`` in spikes, integer and exact, a batch at a time; integer pixels in, logits out.

    With no options it does what `casc_hw.simulate` does, and (where ``net.sleep`` is None) answers as the integer ANN. It has no
    parameters: its weights are ``net``'s, kept as buffers of floats that hold every sum exactly (`casc_hw.fast.exact_dtype`). It runs
    where ``.to(device)`` put them, on a GPU always in float64; not tried on a GPU. On a CPU core, 25 to 100 images at a time are fastest.

    Of a `FloatNet` sums and potentials are float64, and with sleep until silence its counts are T times the activations of the model with
    ClipQuan, but for sums that are within floats' rounding of a threshold (`GUARD`).

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
        net: Network,
        *,
        levels: int | None = None,
        margin: int | None = None,
        sleep: int | EllipsisType | None = ...,
        negative: bool = True,
        gamma: int = 1,
    ):
        super().__init__()
        if not isinstance(net, (IntegerNet, FloatNet)):
            raise CascError(f"net: is a {type(net).__name__}, not an IntegerNet; give the `net` of what casc_hw.convert returns")
        if not isinstance(gamma, int) or isinstance(gamma, bool) or not 1 <= gamma <= MAX_LEVELS:
            raise CascError(f"gamma: {gamma!r} is not an integer from 1 to {MAX_LEVELS}; the published neuron has 1")
        steps = net.levels if levels is None else levels
        if margin is None:
            margin = net.margin if levels is None else steps
        self.net: IntegerNet | FloatNet = replace(
            net, levels=steps, margin=margin, sleep=net.sleep if isinstance(sleep, EllipsisType) else sleep
        )
        self.negative, self.gamma = negative, gamma
        self._step_hooks: OrderedDict[int, Callable[[Step], None]] = OrderedDict()
        self._watchers: OrderedDict[int, Statistics] = OrderedDict()
        self._dtype = exact_dtype(self.net) if isinstance(self.net, IntegerNet) else torch.float64
        for index, layer in enumerate(self.net.layers):
            for place, synapses in enumerate(layer.synapses):
                self._hold(f"weight{index}_{place}", synapses.weight)
            self._hold(f"bias{index}", layer.bias)
            if layer.threshold is not None:
                self._hold(f"threshold{index}", layer.threshold)

    @classmethod
    def plain(cls, net: Network, *, levels: int | None = None) -> SpikingNet:
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
        """All that happened (see `Trace`), in the CPU's memory: the answer, sleep steps; with ``record`` every spike, with
        ``potentials`` every potential."""
        net, layers, hooks = self.net, self.net.spiking, tuple(self._step_hooks.values())
        wakes: list[bool] = []
        actives: list[Tensor] = []
        spikes: list[list[Tensor]] = [[] for _ in layers]
        kept: list[list[Tensor]] = [[] for _ in layers]
        short = torch.int8 if self.gamma < 128 else torch.int16

        def after(wake: bool, active: Tensor) -> None:
            wakes.append(wake)
            actives.append(active)
            for index, layer in enumerate(layers):
                if record:
                    spikes[index].append(run.changes[layer.name].flatten(1).to(short))
                if potentials:
                    kept[index].append(self._sum(run.potential(layer.name).flatten(1)))
            if hooks:
                seen = self._step(run, wake, active)
                for hook in hooks:
                    hook(seen)

        with exact_sums(self.device):
            pixels = net.check_images(images.to(self.device))
            run = self._run(pixels, self.gamma, record or potentials or bool(hooks), tuple(self._watchers.values()))
            sleep_steps, settled = run.run(after)
            answer = self._answer(run)
        return Trace(
            wake=torch.tensor(wakes, device="cpu"),
            active=torch.stack(actives).cpu(),
            spikes=tuple(torch.stack(of).cpu() for of in spikes if record),
            potentials=tuple(torch.stack(of).cpu() for of in kept if potentials),
            answer=answer,
            sleep_steps=sleep_steps.cpu(),
            settled=settled.cpu(),
        )

    def ann(self, images: Tensor) -> Answer:
        """What the ANN answers, in one pass: of an `IntegerNet` what `casc_hw.quantised_ann` does."""
        with exact_sums(self.device):
            run = self._run(self.net.check_images(images.to(self.device)), gamma=self.net.levels)
            run.t = self.net.levels - 1
            run.step(True, torch.ones(len(images), dtype=torch.bool, device=self.device))
            return self._answer(run)

    def _answer(self, run: Run) -> Answer:
        counts = tuple(run.n[layer.name].long().flatten(1).cpu() for layer in self.net.spiking)
        return _answer(self.net, counts, self._sum(run.sums()).cpu())

    def _sum(self, sums: Tensor) -> Tensor:
        return sums.long() if isinstance(self.net, IntegerNet) else sums.double()

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return next(self.buffers()).device

    def _hold(self, name: str, tensor: Tensor) -> None:
        layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
        self.register_buffer(name, tensor.to(self._dtype, copy=True).contiguous(memory_format=layout), persistent=False)

    def _run(self, pixels: Tensor, gamma: int, detail: bool = False, watchers: tuple[Statistics, ...] = ()) -> Run:
        held = dict(self.named_buffers())
        if strange := {part.dtype for part in held.values()} - {self._dtype, torch.float64}:
            raise CascError(f"SpikingNet: moved to {strange.pop()}, in which its sums are not exact; move it to a device only")
        dtype = self._dtype if exact_products(self.device) else torch.float64
        held = {name: part.to(dtype) for name, part in held.items()}
        layers = self.net.layers
        return Run(
            self.net,
            {of.name: [held[f"weight{index}_{place}"] for place in range(len(of.synapses))] for index, of in enumerate(layers)},
            {of.name: held[f"bias{index}"] for index, of in enumerate(layers)},
            {of.name: held[f"threshold{index}"] for index, of in enumerate(layers[:-1])},
            pixels,
            gamma=gamma,
            negative=self.negative,
            detail=detail,
            watchers=watchers,
            guard=0.0 if isinstance(self.net, IntegerNet) else GUARD,
        )

    def _step(self, run: Run, wake: bool, active: Tensor) -> Step:
        """For hooks."""
        net = self.net
        events = {node.name: run.changes[node.name].long() for node in net.nodes} | ({IMAGE: run.n[IMAGE].long()} if wake else {})
        counts = {layer.name: run.n[layer.name].long() for layer in net.spiking}
        potentials = {layer.name: self._sum(run.potential(layer.name)) for layer in net.spiking}
        return Step(wake, run.t, run.asleep, active, events, counts, potentials, self._sum(run.sums()))

    def register_step_hook(self, hook: Callable[[Step], None]) -> RemovableHandle:
        """Call ``hook`` after every step, until the handle returned is removed."""
        handle = RemovableHandle(self._step_hooks)
        self._step_hooks[handle.id] = hook
        return handle

    @contextmanager
    def statistics(self) -> Iterator[Statistics]:
        """Statistics over all images that are run within."""
        seen = Statistics(self.net)
        self._watchers[id(seen)] = seen
        try:
            yield seen
        finally:
            del self._watchers[id(seen)]

    def extra_repr(self) -> str:
        net = self.net
        return f"{net.name}, levels={net.levels}, margin={net.margin}, sleep={net.sleep}, negative={self.negative}, gamma={self.gamma}"


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
    """Counts over any number of batches of one network, per layer and step, and per image (see `SpikingNet.statistics`).

    The energies are a **proxy**: accumulates at 0.9 pJ and products at 4.6 pJ, the arithmetic of 32-bit floats in 45 nm; no memory, no
    control, no neuron, and nothing of an FPGA is in them. They compare schedules and networks, not chips.

    Attributes
    ----------
    images: images seen.
    macs: multiply-accumulates that the ANN makes of an image, zeros included, padding not.
    """

    def __init__(self, net: Network):
        self.net = net
        self.images = 0
        self._index = {layer.name: index for index, layer in enumerate(net.layers)}
        self._ways: dict[str, list[tuple[int, Tensor]]] = defaultdict(list)
        """By source, the layers it reaches, and from each place how many of their neurons."""
        for index, layer in enumerate(net.layers):
            for synapses in layer.synapses:
                self._ways[synapses.source].append((index, _reach(synapses, net)))
        self.macs = int(sum(reach.sum() for ways in self._ways.values() for _, reach in ways))
        self._totals: dict[tuple[int, int], Tensor] = {}
        """By (t, asleep), int64 (layers, 5): images, spikes, negative spikes, uneven neurons, operations."""
        self._classes: dict[tuple[int, int], list[tuple[int, Tensor]]] = defaultdict(list)
        """By (t, asleep): of a batch, the number of its first image and the classes."""

    def begin(self, pixels: Tensor) -> None:
        self._first, self.images = self.images, self.images + len(pixels)
        self._rows = torch.zeros(len(self.net.layers), 5, dtype=torch.int64, device="cpu")
        self._uneven = torch.zeros(len(self.net.layers), len(pixels), dtype=torch.int64, device=pixels.device)
        self._operate(IMAGE, (pixels != 0).sum(0).double())

    def _operate(self, name: str, events: Tensor) -> None:
        """``events``: of node ``name``, float64 (C, H, W), summed over images."""
        for index, reach in self._ways[name]:
            self._rows[index, 4] += int((events * reach.to(events)).sum())

    def emitted(self, name: str, change: Tensor) -> None:
        size = change.abs().sum(0, dtype=torch.float64)
        self._operate(name, size)
        if name in self._index:
            spikes = int(size.sum())
            self._rows[self._index[name], 1] += spikes
            self._rows[self._index[name], 2] += (spikes - int(change.sum(dtype=torch.float64))) // 2

    def fired(self, name: str, rows: Rows, uneven: Tensor) -> None:
        self._uneven[self._index[name], slice(None) if rows is None else rows] = uneven.sum((1, 2, 3))

    def stepped(self, t: int, asleep: int, active: Tensor, sums: Tensor) -> None:
        self._rows[:, 0] = active.sum()
        self._rows[:, 3] = (self._uneven * active).sum(1)
        key = t, asleep
        self._totals[key] = self._totals.get(key, 0) + self._rows
        self._rows = torch.zeros_like(self._rows)
        self._classes[key].append((self._first, _answer(self.net, (), sums.cpu()).classes))

    @property
    def steps(self) -> list[tuple[int, int]]:
        """(t, asleep) of every step that any image took, in order."""
        return sorted(self._totals)

    @property
    def classes(self) -> Tensor:
        """The class that the read-out would name after each of the `steps`, int64 (steps, images); of an image at rest its last."""
        found = torch.zeros(len(self._totals), self.images, dtype=torch.int64, device="cpu")
        for index, key in enumerate(self.steps):
            if index:
                found[index] = found[index - 1]
            for first, classes in self._classes[key]:
                found[index, first : first + len(classes)] = classes
        return found

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


def _reach(synapses: Synapses, net: Network) -> Tensor:
    """How many neurons an event at each place of the source reaches, int64 (C, H, W)."""
    shape = net.shapes[synapses.source]
    if synapses.dense:
        return torch.full(shape, synapses.outputs)
    places = reached(shape[1:], synapses.kernel, synapses.stride, synapses.padding)
    return (synapses.outputs // synapses.groups * places).expand(shape)
