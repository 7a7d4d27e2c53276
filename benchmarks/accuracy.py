"""Accuracy, sleep and cost over T and weight bits: ``python -m benchmarks.accuracy [--only NET] [--kept]``.

Trains every network of the tables, for all T and bits in a chain (T falls from 32 to 2, and for each T the bits from 8 to 2),
converts, runs the held-out images in every way of `casc_hw.evaluation`, and writes ``docs/accuracy.md``. Figures are kept in
``benchmarks/results/accuracy/<net>.json``, and ``--kept`` writes the page from them; trained networks in ``build/accuracy/``, where a
run that was interrupted goes on. All of it takes hours on one core. ``--validate`` holds out a part of the *training* images in place
of the test images, to choose settings with, and writes nothing but below ``build/``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from casc_hw import ClipQuan, IntegerNet, SpikingNet, convert
from casc_hw.evaluation import evaluate
from casc_hw.network import save_whole
from casc_hw.qat import fake_quantise, fold_batchnorm
from examples import mnist_cnn_avg, mnist_cnn_max, mnist_mlp, mnist_resnet
from examples._training import Digits, Recipe, fit_student, fit_teacher, make_pool, percent
from examples.detection import scenes
from examples.detection import training as detection
from examples.detection.model import make as make_detector

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "accuracy"
PAGE = ROOT / "docs" / "accuracy.md"
LEVELS = (32, 16, 8, 4, 2)
BITS = (8, 6, 4, 3, 2)
TUNE = {8: 0.1, 6: 0.1, 4: 0.3, 3: 0.5, 2: 2.0}
"""Passes with rounded weights, in units of what a network is trained on for a new T; each width starts from the one before."""
MODES = ("integer ANN", "plain IF, no sleep", "CIF, no sleep", "CIF and sleep")


class Task(Protocol):
    """A network of the tables and its data.

    Attributes
    ----------
    name, title: of the network; ``score``: what its figures are; ``held``: the images they are of, in words.
    shape: of an image as the network sees it; ``images``, ``labels``: held out, integers; labels None where ``measure`` alone tells.
    float_passes, first_passes: of the training with ReLU, and of the first T; each further T has one.
    """

    name: str
    title: str
    score: str
    held: str
    shape: tuple[int, ...]
    images: Tensor
    labels: Tensor | None
    float_passes: float
    first_passes: float

    def make(self, levels: int | None) -> nn.Module:
        """The network, of T = ``levels``; of None, with ReLU."""

    def fit(self, model: nn.Module, passes: float, share: float, plain: bool) -> None:
        """Train it with ``share`` of the usual rate; ``plain``: without a price on activity."""

    def measure(self, net: IntegerNet | nn.Module) -> float:
        """Percent, on what is held out: of a network in floats, of the integer ANN, or of spikes."""


class Classification:
    """Of `examples`' MNIST recipes, network, data, activity prices and batch."""

    score = "accuracy, %"

    def __init__(self, recipe: Recipe, title: str, work: Path, validate: bool):
        self.recipe, self.name, self.title, self.shape = recipe, recipe.name, title, recipe.shape
        pixels, classes = recipe.load()
        train, held = Digits(torch.from_numpy(pixels).byte(), torch.from_numpy(classes).long()).split(recipe.test, seed=0)
        if validate:
            train, held = train.split(500, seed=0)
        self.images, self.labels = held.images.reshape(-1, *recipe.shape), held.labels
        self.held = f"{len(held.labels)} MNIST digits, trained on {len(train.labels)} others"
        self.passes = 1 if len(recipe.shape) == 3 else 4  # an MLP's are short
        self.float_passes, self.first_passes = 4 if self.passes == 1 else 12, 3 * self.passes
        self.pool, self.logits = self._pool(train, work / "pool.pt")

    def _pool(self, train: Digits, path: Path) -> tuple[Digits, Tensor]:
        """What is trained on, the same for all recipes, and the teachers' logits."""

        def make() -> tuple[Tensor, Tensor, Tensor]:
            recipe = mnist_cnn_avg.RECIPE
            torch.manual_seed(0)
            chance = torch.Generator().manual_seed(0)
            pool, logits = make_pool(train, [fit_teacher(train, recipe, chance) for _ in range(recipe.teachers)], recipe, chance)
            assert logits is not None
            return pool.images, pool.labels, logits

        images, labels, logits = kept(path, make)
        return Digits(images, labels), logits

    def make(self, levels: int | None) -> nn.Module:
        model = self.recipe.make(*self.recipe.sizes)
        for name, module in list(model.named_modules()):
            if isinstance(module, ClipQuan):
                model.set_submodule(name, nn.ReLU() if levels is None else ClipQuan(levels))
        return model

    def fit(self, model: nn.Module, passes: float, share: float, plain: bool) -> None:
        recipe = replace(self.recipe, activity=0.0, quiet=0.0) if plain else self.recipe
        chance = torch.Generator().manual_seed(0)
        pool, logits = self.pool, self.logits
        if passes < 1:
            index = torch.randperm(len(logits), generator=chance)[: round(passes * len(logits))]
            pool, logits = Digits(pool.images[index], pool.labels[index]), logits[index]
        fit_student(model, pool, logits, max(round(passes), 1), share * recipe.rate, recipe, chance)

    @torch.no_grad()
    def measure(self, net: IntegerNet | nn.Module) -> float:
        assert isinstance(net, nn.Module)
        outputs = [net(part / self.recipe.input_max) for part in self.images.split(250)]
        return percent(torch.cat(outputs).argmax(1), Digits(self.images, self.labels))


class Detection:
    """`examples.detection` on scenes of digits."""

    name, title, score = "digit_scenes", "detector, 16c3/2-32c3/2-32c3-m2-48c3-64c3, 8 x 8 cells", "mAP@0.5, %"
    shape = (1, 64, 64)
    labels = None
    float_passes, first_passes = 6.0, 6.0
    epochs = 10
    """Of a pass."""

    def __init__(self, work: Path, validate: bool):
        self.source, held = scenes.digits()
        if validate:
            self.source, held = self.source.split(500, seed=0)
        self.test = scenes.compose(held, 300, torch.Generator().manual_seed(1))
        self.images = self.test.images
        self.held = f"300 scenes of {len(held.labels)} MNIST digits, trained on scenes of {len(self.source.labels)} others"

    def make(self, levels: int | None) -> nn.Module:
        return make_detector(levels)

    def fit(self, model: nn.Module, passes: float, share: float, plain: bool) -> None:
        detection.train(model, detection.Composer(self.source, 0), epochs=max(round(passes * self.epochs), 1), rate=4e-3 * share)

    def measure(self, net: IntegerNet | nn.Module) -> float:
        return round(100 * detection.evaluate(net, self.test), 2)


TASKS: dict[str, Callable[[Path, bool], Task]] = {
    "mnist_mlp": partial(Classification, mnist_mlp.RECIPE, "784-128-10"),
    "mnist_cnn_avg": partial(Classification, mnist_cnn_avg.RECIPE, "16c3-a2-32c3-a2-32c3-10, average pools"),
    "mnist_cnn_max": partial(Classification, mnist_cnn_max.RECIPE, "16c3-m2-32c3-m2-32c3-10, max pools"),
    "mnist_resnet": partial(Classification, mnist_resnet.RECIPE, "16c3-m2-[16c3-16c3 + x]-[32c3/2-32c3 + 32c1/2]-ga-10, residual"),
    "digit_scenes": Detection,
}


def write(path: Path, content: Any) -> None:
    """``content`` as JSON, or a text, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    temporary.write_text(content if isinstance(content, str) else json.dumps(content, indent=1) + "\n")
    os.replace(temporary, path)


def kept(path: Path, make: Any) -> Any:
    """What ``make()`` returns, from ``path`` if it is there."""
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        save_whole(make(), path)
    return torch.load(path, weights_only=True)


def train(task: Task, work: Path) -> Iterator[tuple[float, float, IntegerNet]]:
    """For all T and bits in turn: the score of the float network with ReLU, of that with ClipQuan, and the converted network."""

    def fitted(name: str, model: nn.Module, passes: float, share: float, source: nn.Module | None = None) -> nn.Module:
        """``model``, trained (as ``source``, which rounds it), in eval mode; or what a run before this has made of it."""

        def make() -> dict[str, Any]:
            torch.manual_seed(0)
            task.fit(source or model, passes, share, plain=name == "float")
            return model.state_dict()

        model.load_state_dict(kept(work / task.name / f"{name}.pt", make))
        return model.eval()

    torch.manual_seed(0)
    best = task.measure(fitted("float", task.make(None), task.float_passes, 1.0))
    model: nn.Module | None = None
    for levels in LEVELS:
        before, model = model, task.make(levels)
        if before is not None:
            model.load_state_dict(before.state_dict())
        usual = task.first_passes if before is None else task.first_passes / 3
        fitted(f"{levels}", model, usual, 1.0 if before is None else 0.5)
        clipped = task.measure(model)
        folded = fold_batchnorm(model)
        for bits in BITS:
            tuned = fake_quantise(folded, input_shape=task.shape, bits=bits)
            share = TUNE[bits] * (1 if len(task.shape) == 3 else 2)
            fitted(f"{levels}-{bits}", folded, share, 0.25, tuned)
            yield best, clipped, convert(copy.deepcopy(folded), name=f"{task.name}-{levels}-{bits}", input_shape=task.shape, bits=bits).net


def measure(task: Task, work: Path) -> dict[str, Any]:
    """All cells of a network."""
    cells = []
    for best, clipped, net in train(task, work):
        _, levels, bits = net.name.rsplit("-", 2)
        path = work / task.name / f"{net.digest[:16]}.json"
        started = time.monotonic()
        if not path.exists():
            done = evaluate(net, task.images, task.labels, batch=100).as_json()
            if task.labels is None:
                ways = (net, SpikingNet.plain(net), SpikingNet(net, sleep=0), SpikingNet(net))
                for mode, way in zip(done["modes"], ways, strict=True):
                    mode["accuracy"] = task.measure(way) / 100
            fields = ("name", "accuracy", "agreement", "equal", "spikes", "negative", "products", "accumulates")
            modes = [{of: mode[of] for of in fields} for mode in done["modes"]]
            write(path, {"modes": modes, "sleep_steps": done["sleep_steps"]})
        done = json.loads(path.read_text())
        if done["modes"][-1]["equal"] != 1 or done["modes"][-1]["accuracy"] != done["modes"][0]["accuracy"]:
            raise AssertionError(f"{net.name}: after sleep, {done['modes'][-1]['equal']:.6%} of the counts are the integer ANN's")
        cell = {"levels": int(levels), "bits": int(bits), "clipquan": clipped, "digest": net.digest, **done}
        cells.append(cell)
        shown = ", ".join(f"{mode['name']} {mode['accuracy']:.2%}" for mode in cell["modes"])
        print(f"{net.name}: float {best}, ClipQuan {clipped}, {shown}; {time.monotonic() - started:.0f} s", flush=True)
    return {"net": task.name, "title": task.title, "score": task.score, "held": task.held, "float": best, "cells": cells}


def page(measured: list[dict[str, Any]]) -> str:
    """``docs/accuracy.md``."""
    text = [HEAD, *short(measured)]
    for of in measured:
        score = of["score"]
        text += [f"## `{of['net']}`: {of['title']}\n", f"{of['held']}; {score}. The float ANN with ReLU: {of['float']:.2f}.\n"]
        columns = ("T", "bits", "ClipQuan", *MODES, "sleep steps", "spikes", "products", "accumulates")
        text += [f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)]
        for cell in of["cells"]:
            modes = {mode["name"]: mode for mode in cell["modes"]}
            shares = [f"{100 * modes[name]['accuracy']:.2f}" for name in MODES]
            shares[1:3] = [f"{share} / {100 * modes[name]['equal']:.2f}" for share, name in zip(shares[1:3], MODES[1:3], strict=True)]
            costs = [f"{modes[MODES[-1]][cost]:,.0f}" for cost in ("spikes", "products", "accumulates")]
            steps = "{median} / {p99} / {max}".format(**cell["sleep_steps"])
            row = [str(cell["levels"]), str(cell["bits"]), f"{cell['clipquan']:.2f}", *shares, steps, *costs]
            text.append(f"| {' | '.join(row)} |")
        text.append("")
    return "\n".join(text)


def short(measured: list[dict[str, Any]]) -> list[str]:
    """The table of T = 8: of every network what its weights cost."""
    text = [
        "## T = 8 in short\n",
        "| network | float, ReLU | ClipQuan |" + "".join(f" {bits} bits |" for bits in BITS),
        "|" + "---|" * (3 + len(BITS)),
    ]
    for of in measured:
        cells = {cell["bits"]: cell for cell in of["cells"] if cell["levels"] == 8}
        shares = [f"{100 * cells[bits]['modes'][-1]['accuracy']:.2f}" for bits in BITS]
        text.append(f"| `{of['net']}`, {of['score']} | {of['float']:.2f} | {cells[8]['clipquan']:.2f} | {' | '.join(shares)} |")
    return [*text, "\nThe last five columns: the integer ANN, and so CIF with sleep.\n"]


HEAD = """# Accuracy over T and weight bits

Printed by `python -m benchmarks.accuracy`, which trains everything again (hours on one core); `--kept` writes this page from the figures
in `benchmarks/results/accuracy/`.

- *ClipQuan*: the network with ClipQuan of T levels, weights in floats. *integer ANN*: converted, after training on with the rounding of
  the chip. The other columns run that network in spikes: *plain IF* with integrate-and-fire neurons, T steps, no spike taken back, no
  sleep; *CIF, no sleep* with the consistent neuron, T steps; *CIF and sleep* until silence. Behind a stroke: percent of all neurons, over
  all images, whose count is the integer ANN's.
- **CIF and sleep equals the integer ANN on every neuron of every image, in every row**; the command fails where one differs.
- *sleep steps*: median / 99th percentile / most. *spikes*, *products* (in the first layer, of pixels that are not zero), *accumulates*
  (one for each synapse that a spike reaches): of CIF and sleep, per image, mean.
- For each T training starts from the network of the T above it, for each width of the weights from the width above it. One run, one
  seed. How long to train was chosen on images held out of the training images (`--validate`); for the prices on activity, which come
  from `examples/`, that cannot be vouched for (its README). 1,000 images tell accuracies apart to about half a percent.
- The MNIST networks are those of `examples/`, taught by two small CNNs, at a price on activity. The float network with ReLU has no such
  price and is no upper bound.

Step by step, of `examples/mnist_resnet.pt` (T = 8, 4 bits) on 200 images, by
`python -m casc_hw plot --net examples/mnist_resnet.pt --out docs/mnist_resnet`:

| accuracy over steps | uneven neurons | spikes of a neuron |
|---|---|---|
| ![accuracy over steps](mnist_resnet/accuracy.png) | ![unevenness](mnist_resnet/unevenness.png) | ![rates](mnist_resnet/rates.png) |
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(TASKS), help="one network")
    parser.add_argument("--kept", action="store_true", help="only write the page from the figures kept")
    parser.add_argument("--train", action="store_true", help="only train, and measure nothing")
    parser.add_argument("--validate", action="store_true", help="hold training images out in place of the test images; writes no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    work = ROOT / "build" / ("accuracy-validation" if options.validate else "accuracy")
    for name, make in TASKS.items():
        if options.kept or options.only not in (None, name):
            continue
        task = make(work, options.validate)
        if options.train:
            for best, clipped, net in train(task, work):
                print(f"{net.name}: trained; float {best}, ClipQuan {clipped}", flush=True)
        else:
            write((work if options.validate else RESULTS) / f"{name}.json", measure(task, work))
    if not (options.validate or options.train):
        write(PAGE, page([json.loads(path.read_text()) for name in TASKS if (path := RESULTS / f"{name}.json").exists()]))


if __name__ == "__main__":
    main()
