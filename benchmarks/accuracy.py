"""Accuracy, sleep and cost over T and weight bits: ``python -m benchmarks.accuracy [--only NET] [--kept]``.

Trains every network of the tables, once for all T and bits in a chain (T falls from 32 to 2, and for each T the bits from 8 to 2), converts,
runs the held-out images in every way of `casc_hw.evaluation`, and writes ``docs/accuracy.md``. Figures are kept in
``benchmarks/results/accuracy/<net>.json``, and ``--kept`` writes the page from them; trained networks in ``build/accuracy/``, where a run that was
interrupted goes on. All of it takes hours on one core. ``--validate`` holds out a part of the *training* images in place of the test
images, to choose settings with, and writes nothing but below ``build/``.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from casc_hw import ClipQuan, IntegerNet, convert
from casc_hw.evaluation import evaluate
from casc_hw.qat import fake_quantise, fold_batchnorm
from examples import mnist_cnn_avg, mnist_cnn_max, mnist_mlp, mnist_resnet
from examples._training import Digits, Recipe, fit_student, fit_teacher, make_pool, percent

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results" / "accuracy"
PAGE = ROOT / "docs" / "accuracy.md"
LEVELS = (32, 16, 8, 4, 2)
BITS = (8, 6, 4, 3, 2)
TUNE = {8: 0.1, 6: 0.1, 4: 0.3, 3: 0.5, 2: 2.0}
"""Passes through the pool with rounded weights; each width starts from the one before."""
MODES = ("integer ANN", "plain IF, no sleep", "CIF, no sleep", "CIF and sleep")


@dataclass(frozen=True)
class Case:
    """A network of the tables: of ``recipe``, the network, its data, activity prices and batch; its passes in floats are ours."""

    recipe: Recipe
    title: str

    @property
    def name(self) -> str:
        return self.recipe.name


CASES = (
    Case(mnist_mlp.RECIPE, "784-128-10"),
    Case(mnist_cnn_avg.RECIPE, "16c3-a2-32c3-a2-32c3-10, average pools"),
    Case(mnist_cnn_max.RECIPE, "16c3-m2-32c3-m2-32c3-10, max pools"),
    Case(mnist_resnet.RECIPE, "16c3-m2-[16c3-16c3 + x]-[32c3/2-32c3 + 32c1/2]-ga-10, residual"),
)


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
        torch.save(make(), path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
    return torch.load(path, weights_only=True)


@dataclass(frozen=True)
class Data:
    """The pool to train on, the teachers' logits for it, and the images held out."""

    pool: Digits
    logits: Tensor
    held: Digits

    def part(self, share: float, chance: torch.Generator) -> tuple[Digits, Tensor]:
        """As many passes of the pool as a whole number, or a random part of it, and its logits."""
        if share >= 1:
            return self.pool, self.logits
        index = torch.randperm(len(self.logits), generator=chance)[: round(share * len(self.logits))]
        return Digits(self.pool.images[index], self.pool.labels[index]), self.logits[index]


def load(work: Path, validate: bool) -> Data:
    """The 5,000 MNIST digits: 4,000 for training, or 3,500 and 500 to validate on."""
    recipe = mnist_cnn_avg.RECIPE
    pixels, classes = recipe.load()
    train, held = Digits(torch.from_numpy(pixels).byte(), torch.from_numpy(classes).long()).split(recipe.test, seed=0)
    if validate:
        train, held = train.split(500, seed=0)

    def make() -> tuple[Tensor, Tensor, Tensor]:
        torch.manual_seed(0)
        chance = torch.Generator().manual_seed(0)
        teachers = [fit_teacher(train, recipe, chance) for _ in range(recipe.teachers)]
        pool, logits = make_pool(train, teachers, recipe, chance)
        assert logits is not None
        return pool.images, pool.labels, logits

    images, labels, logits = kept(work / "pool.pt", make)
    return Data(Digits(images, labels), logits, held)


def with_levels(model: nn.Module, levels: int | None) -> nn.Module:
    """``model`` with ClipQuan of ``levels``, in place; None: with ReLU."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ClipQuan):
            model.set_submodule(name, nn.ReLU() if levels is None else ClipQuan(levels))
    return model


@torch.no_grad()
def accuracy(model: nn.Module, held: Digits, recipe: Recipe) -> float:
    model.eval()
    outputs = [model(part.reshape(-1, *recipe.shape) / recipe.input_max) for part in held.images.split(250)]
    return percent(torch.cat(outputs).argmax(1), held)


def train(case: Case, data: Data, work: Path) -> Iterator[tuple[float, float, IntegerNet]]:
    """For all T and bits in turn: percent of the float network with ReLU, of that with ClipQuan, and the converted network."""
    recipe = case.recipe

    def fitted(name: str, model: nn.Module, share: float, rate: float, source: nn.Module | None = None) -> nn.Module:
        """``model``, trained (``source`` is what is rounded); or as it was when it had been."""

        def make() -> dict[str, Any]:
            torch.manual_seed(0)
            chance = torch.Generator().manual_seed(0)
            pool, logits = data.part(share, chance)
            priced = recipe if name != "float" else replace(recipe, activity=0.0, quiet=0.0)
            fit_student(source or model, pool, logits, max(round(share), 1), rate, priced, chance)
            return model.state_dict()

        model.load_state_dict(kept(work / recipe.name / f"{name}.pt", make))
        return model.eval()

    torch.manual_seed(0)
    floats = fitted("float", with_levels(recipe.make(*recipe.sizes), None), 4 if recipe.shape[0] == 1 else 12, recipe.rate)
    best = accuracy(floats, data.held, recipe)
    model = recipe.make(*recipe.sizes)
    for levels in LEVELS:
        first = levels == LEVELS[0]
        passes = (3 if first else 1) * (1 if recipe.shape[0] == 1 else 4)
        fitted(f"{levels}", with_levels(model, levels), passes, recipe.rate / (1 if first else 2))
        clipped = accuracy(model, data.held, recipe)
        folded = fold_batchnorm(model)
        for bits in BITS:
            tuned = fake_quantise(folded, input_shape=recipe.shape, input_max=recipe.input_max, bits=bits)
            fitted(f"{levels}-{bits}", folded, TUNE[bits], recipe.tune_rate, tuned)
            shape = tuple(data.held.images.shape[1:])
            yield best, clipped, convert(copy.deepcopy(folded), name=f"{recipe.name}-{levels}-{bits}", input_shape=shape, bits=bits).net


def measure(case: Case, data: Data, work: Path) -> dict[str, Any]:
    """All cells of a network."""
    cells = []
    for best, clipped, net in train(case, data, work):
        _, levels, bits = net.name.rsplit("-", 2)
        path = work / case.name / f"{net.digest[:16]}.json"
        started = time.monotonic()
        if not path.exists():
            done = evaluate(net, data.held.images, data.held.labels, batch=100).as_json()
            write(path, {of: done[of] for of in ("images", "modes", "sleep_steps")})
        done = json.loads(path.read_text())
        cell = {"levels": int(levels), "bits": int(bits), "clipquan": clipped, "digest": net.digest, **done}
        cells.append(cell)
        shown = ", ".join(f"{mode['name']} {mode['accuracy']:.2%}" for mode in done["modes"])
        print(f"{net.name}: float {best}, ClipQuan {clipped}, {shown}; {time.monotonic() - started:.0f} s", flush=True)
    return {"net": case.name, "title": case.title, "float": best, "cells": cells}


def page(measured: list[dict[str, Any]]) -> str:
    """``docs/accuracy.md``."""
    text = [HEAD]
    for of in measured:
        score = of["score"]
        text += [f"## `{of['net']}`: {of['title']}\n", f"{of['held']}. Float ANN with ReLU: {of['float']:.2f} {score}.\n"]
        text += ["| T | bits | ClipQuan | integer ANN | plain IF | CIF, no sleep | CIF and sleep | sleep steps | spikes | products | accumulates |"]
        text += ["|" + "---|" * 11]
        for cell in of["cells"]:
            modes = {mode["name"]: mode for mode in cell["modes"]}
            shares = [f"{100 * modes[name]['accuracy']:.2f}" for name in MODES]
            costs = [f"{modes[MODES[-1]][cost]:,.0f}" for cost in ("spikes", "products", "accumulates")]
            steps = "{median} / {p99} / {max}".format(**cell["sleep_steps"])
            row = [str(cell["levels"]), str(cell["bits"]), f"{cell['clipquan']:.2f}", *shares, steps, *costs]
            text.append(f"| {' | '.join(row)} |")
        text.append("")
    return "\n".join(text)


HEAD = """# Accuracy over T and weight bits

Printed by `python -m benchmarks.accuracy`, which trains everything again (hours on one core); `--kept` writes this page from the figures in
`benchmarks/results/accuracy/`.
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[case.name for case in CASES], help="one network")
    parser.add_argument("--kept", action="store_true", help="only write the page from the figures kept")
    parser.add_argument("--train", action="store_true", help="only train, and measure nothing")
    parser.add_argument("--validate", action="store_true", help="hold training images out in place of the test images; writes no page")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if not options.kept:
        work = ROOT / "build" / ("accuracy-validation" if options.validate else "accuracy")
        data = load(work, options.validate)
        for case in CASES:
            if options.only not in (None, case.name):
                continue
            if options.train:
                for best, clipped, net in train(case, data, work):
                    print(f"{net.name}: trained; float {best}, ClipQuan {clipped}", flush=True)
            else:
                measured = measure(case, data, work)
                write((work if options.validate else RESULTS) / f"{case.name}.json", measured)


if __name__ == "__main__":
    main()
