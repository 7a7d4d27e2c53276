"""Pictures of an `Evaluation`: accuracy over steps, how often neurons spiked, and how unevenly their current came."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from casc_hw.evaluation import Evaluation

Step = tuple[int, int]
"""Wake steps so far, and sleep steps since."""


def draw(done: Evaluation, folder: Path) -> list[Path]:
    """Write ``accuracy.png``, ``rates.png`` and ``unevenness.png`` to ``folder``, each whole or not at all; their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures: dict[str, Callable[[Evaluation, Axes], None]] = {"accuracy": accuracy, "rates": rates, "unevenness": unevenness}
    paths = []
    for name, picture in pictures.items():
        figure = Figure(figsize=(7, 4), layout="constrained")
        axes = figure.add_subplot()
        picture(done, axes)
        axes.set_title(f"{done.net.name}, {done.images} images", fontsize=10)
        path = folder / f"{name}.png"
        temporary = path.with_suffix(".tmp")
        try:
            figure.savefig(temporary, format="png", dpi=120)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        paths.append(path)
    return paths


def accuracy(done: Evaluation, axes: Axes) -> None:
    """The accuracy that each way to run the network would have after each step (without labels: how often it names the ANN's class)."""
    ann, *spiking = done.modes
    labelled = ann.accuracy is not None
    steps = _shade(axes, [(at.t, at.asleep) for at in spiking[-1].over_steps])
    for mode, style in zip(spiking, ("s:", "^--", "o-"), strict=True):
        places = [steps.index((at.t, at.asleep)) for at in mode.over_steps]
        shares = [at.accuracy if at.accuracy is not None else at.agreement for at in mode.over_steps]
        axes.plot(places, [100 * share for share in shares], style, label=mode.name, markersize=4)
    axes.axhline(100 * (ann.accuracy if ann.accuracy is not None else 1), color="black", linewidth=1, label=ann.name)
    axes.set_ylabel("accuracy, %" if labelled else "the ANN's class, % of images")
    axes.legend(fontsize=8)


def rates(done: Evaluation, axes: Axes) -> None:
    """By spiking layer, the share of neurons whose count at the end is 0 to T."""
    for layer, counts in done.modes[-1].histogram.items():
        total = max(sum(counts), 1)
        axes.stairs([100 * count / total for count in counts], [index - 0.5 for index in range(len(counts) + 1)], label=layer)
    axes.set_yscale("log")
    axes.set_xlabel(f"spikes of a neuron at rest, of T = {done.net.levels}")
    axes.set_ylabel("neurons and images, %")
    axes.legend(fontsize=8)


def unevenness(done: Evaluation, axes: Axes) -> None:
    """By spiking layer, the share of neurons whose count is not yet what their current so far asks for (see `Activity`)."""
    steps = _shade(axes, sorted({(row.t, row.asleep) for row in done.activity}))
    for layer in done.net.spiking:
        rows = [row for row in done.activity if row.layer == layer.name]
        places = [steps.index((row.t, row.asleep)) for row in rows]
        axes.plot(places, [100 * row.unevenness for row in rows], "o-", label=layer.name, markersize=3)
    axes.set_ylabel("uneven neurons, %")
    axes.legend(fontsize=8)


def _shade(axes: Axes, steps: list[Step]) -> list[Step]:
    """``steps``, which become the places along the axis, those asleep on grey."""
    for place, (_, asleep) in enumerate(steps):
        if asleep:
            axes.axvspan(place - 0.5, place + 0.5, color="0.9", zorder=0, linewidth=0)
    axes.set_xticks(range(len(steps)), [f"+{asleep}" if asleep else str(t) for t, asleep in steps], fontsize=7)
    axes.set_xlabel("step: wake, and asleep (+, grey)")
    return steps
