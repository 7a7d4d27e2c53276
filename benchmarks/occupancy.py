"""The picture of ``docs/performance.md``: which layer is at work when, as seen in the gates."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np

IMAGES, ALONE, BIN = 6, 1, 16


def draw(net_path: Path, picture: Path) -> None:
    """Simulate ``IMAGES`` images in count code with the planner's lanes and draw when pixels enter, volleys pass and results leave."""
    from matplotlib.figure import Figure

    import boards
    from casc_hw import IntegerNet
    from casc_hw.data import load_images
    from rtl_gen.plan import make_plan
    from sim.runner import run_bench

    net = IntegerNet.load(net_path)
    images, _labels, _where = load_images(net, None, net_path)
    plan = make_plan(net, boards.get("ulx3s").budget, images=images, code="count")
    with tempfile.TemporaryDirectory() as work:
        result = run_bench(net, plan.spec, images[:IMAGES], Path(work))
        if result.mismatches:
            raise SystemExit(f"{net_path}: {result.messages[0]}")
        fired = json.loads(Path(work, "outcome.json").read_text())["fired"]
    names = ["pixels", *(layer.name for layer in net.spiking), "results"]
    figure = Figure(figsize=(9, 0.55 * len(names) + 1), layout="constrained")
    axes = figure.subplots()
    for row, cycles in enumerate(fired):
        bins = np.bincount(np.array(cycles) // BIN, minlength=1)
        shade = np.minimum(bins / max(np.percentile(bins[bins > 0], 90), 1), 1)
        axes.imshow(shade[None], aspect="auto", cmap="Blues", vmin=0, vmax=1, extent=(0, len(bins) * BIN, row + 0.4, row - 0.4))
    axes.set_xlim(0, max(cycles[-1] for cycles in fired) + BIN)
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("cycle")
    axes.set_title(f"{net.name}, count code: {ALONE} image alone, then {IMAGES - ALONE} back to back", loc="left", fontsize=9)
    figure.savefig(picture, dpi=110, metadata={"Software": None})
