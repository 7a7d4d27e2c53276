"""What a converted network is worth, and what its spikes cost: the integer ANN beside three ways to run it in spikes."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from casc_hw.errors import CascError
from casc_hw.network import IntegerNet, Network
from casc_hw.reference import Answer, quantised_ann
from casc_hw.spiking import Activity, SpikingNet, Statistics


@dataclass(frozen=True)
class OverSteps:
    """What the read-out would have answered after a step, over all images; an image at rest keeps its last class.

    Attributes
    ----------
    t, asleep: wake steps so far, and sleep steps since.
    accuracy, agreement: as of a `Mode`.
    """

    t: int
    asleep: int
    accuracy: float | None
    agreement: float


@dataclass(frozen=True)
class Mode:
    """One way to run the network, over all images.

    Attributes
    ----------
    name: which.
    accuracy: share of images whose class is the label; None without labels.
    agreement: share of images that get the integer ANN's class.
    equal: share of neurons, over all images, whose count is the integer ANN's.
    spikes, negative: per image, mean; negative ones are among the spikes.
    products, accumulates: synaptic operations per image, mean (`Statistics`; of the ANN products only, its zeros included).
    energy_pj: per image, a proxy (`Statistics`).
    histogram: by spiking layer, over all neurons and images: how many counts at the end are 0, 1, ..., T.
    over_steps: step by step; of the ANN none.
    """

    name: str
    accuracy: float | None
    agreement: float
    equal: float
    spikes: float
    negative: float
    products: float
    accumulates: float
    energy_pj: float
    histogram: dict[str, tuple[int, ...]]
    over_steps: tuple[OverSteps, ...]


@dataclass(frozen=True)
class Evaluation:
    """Four `Mode`\\ s: the integer ANN (of a `FloatNet` its own, unrounded); plain integrate-and-fire; CIF without sleep; CIF with the
    network's sleep.

    Attributes
    ----------
    net: as evaluated.
    images: how many.
    modes: in that order.
    sleep_steps: of the last mode, per image (`Trace`): median, 99th percentile (a number of steps that was run), most.
    activity: of the last mode, per layer and step.
    """

    net: Network
    images: int
    modes: tuple[Mode, ...]
    sleep_steps: dict[str, int]
    activity: tuple[Activity, ...]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        net = {of: getattr(self.net, of, None) for of in ("name", "digest", "levels", "margin", "sleep")}
        told = {"images": self.images, "modes": list(map(asdict, self.modes)), "sleep_steps": self.sleep_steps}
        return {"net": net, **told, "activity": list(map(asdict, self.activity))}


def evaluate(net: Network, images: Tensor, labels: Tensor | None = None, *, batch: int = 50) -> Evaluation:
    """Run ``net`` in all four ways, ``batch`` images at a time.

    ``images``: integer pixels (N, *net.input_shape), N at least 1; ``labels``: integers (N,). CascError if they do not fit.
    """
    net.check_images(images)
    if labels is not None and (labels.shape != (len(images),) or labels.is_floating_point() or labels.is_complex()):
        raise CascError(
            f"labels: shape {tuple(labels.shape)} of {labels.dtype} for {len(images)} images; give one integer, the class, for each"
        )
    if not isinstance(batch, int) or batch < 1:
        raise CascError(f"batch: {batch!r} is not a positive integer; 50 is the default")
    parts = [images[low : low + batch] for low in range(0, len(images), batch)]
    snn = SpikingNet(net)
    wanted = [quantised_ann(net, part) if isinstance(net, IntegerNet) else snn.ann(part) for part in parts]

    right = torch.cat([answer.classes for answer in wanted])

    def share(classes: Tensor, of: Tensor) -> float:
        return (classes == of).double().mean().item()

    def mode(name: str, got: list[Answer], seen: Statistics, ann: bool = False) -> Mode:
        classes = torch.cat([answer.classes for answer in got])
        pairs = [(a, b) for one, two in zip(got, wanted, strict=True) for a, b in zip(one.counts, two.counts, strict=True)]
        equal = sum(int((a == b).sum()) for a, b in pairs) / sum(a.numel() for a, _ in pairs)
        cost = (0.0, 0.0, float(seen.macs), 0.0, seen.ann_energy_pj)
        if not ann:
            cost = (seen.spikes, seen.negative, seen.products, seen.accumulates, seen.energy_pj)
        histogram = {
            layer.name: tuple(torch.bincount(torch.cat(counts).flatten(), minlength=net.levels + 1).tolist())
            for layer, *counts in zip(net.spiking, *(answer.counts for answer in got), strict=True)
        }
        over_steps = tuple(
            OverSteps(t, asleep, None if labels is None else share(then, labels), share(then, right))
            for (t, asleep), then in zip(seen.steps, seen.classes, strict=True)
        )
        accuracy = None if labels is None else share(classes, labels)
        return Mode(name, accuracy, share(classes, right), equal, *cost, histogram, over_steps)

    modes = [mode("integer ANN" if isinstance(net, IntegerNet) else "ANN", wanted, Statistics(net), ann=True)]
    runs = {"plain IF, no sleep": SpikingNet.plain(net), "CIF, no sleep": SpikingNet(net, sleep=0), "CIF and sleep": snn}
    for name, snn in runs.items():
        with snn.statistics() as seen:
            traces = [snn.run(part) for part in parts]
        modes.append(mode(name, [trace.answer for trace in traces], seen))
    asleep = torch.cat([trace.sleep_steps for trace in traces]).double()
    middle, late = (int(torch.quantile(asleep, at, interpolation="higher")) for at in (0.5, 0.99))
    steps = {"median": middle, "p99": late, "max": int(asleep.max())}
    return Evaluation(net, len(images), tuple(modes), steps, tuple(seen.activity))
