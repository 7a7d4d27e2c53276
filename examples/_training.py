"""What the examples share: split, augmentation, teacher, student, report, files.

A recipe runs in three stages, on the training split alone: a few small CNNs (the teachers) learn from augmented images; their
average labels a pool of augmented copies; the spiking net's source, an MLP with ClipQuan, learns from that pool (distillation:
Hinton, Vinyals, Dean, arXiv 1503.02531) with a small price on activity, because hardware time is spikes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import torch
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional

from casc_hw import ClipQuan, IntegerNet, convert, quantised_ann, simulate


@dataclass(frozen=True)
class Recipe:
    """How one example is trained.

    Attributes
    ----------
    test: images held out for the numbers that are reported, stratified by class.
    hidden: sizes of the spiking layers.
    teachers, teacher_epochs: the ensemble.
    copies, passes: augmented copies of each training image in the pool, and how often the pool is gone through.
    activity: price of the mean activation (0..1) beside the loss in nats.
    temperature: of the distillation.
    rotate, scale, shear, shift, elastic: standard deviations; degrees, share, share, pixels, pixels.
    """

    name: str
    input_max: int
    test: int
    hidden: tuple[int, ...]
    teachers: int
    teacher_epochs: int
    copies: int
    passes: int
    levels: int = 8
    bits: int = 8
    batch: int = 250
    rate: float = 4e-3
    activity: float = 0.0
    temperature: float = 2.0
    rotate: float = 8.0
    scale: float = 0.08
    shear: float = 0.1
    shift: float = 1.0
    elastic: float = 1.0


@dataclass(frozen=True)
class Digits:
    """Images uint8 (N, H, W) and labels int64 (N,)."""

    images: Tensor
    labels: Tensor

    def split(self, held_out: int, seed: int) -> tuple[Digits, Digits]:
        """(the rest, ``held_out`` images), stratified by class."""
        rest, out = train_test_split(
            np.arange(len(self.labels)), test_size=held_out, random_state=seed, stratify=self.labels.numpy(), shuffle=True
        )
        return Digits(self.images[rest], self.labels[rest]), Digits(self.images[out], self.labels[out])


def augment(pixels: Tensor, recipe: Recipe, chance: torch.Generator) -> Tensor:
    """Each image of ``pixels`` (float (N, H, W)) turned, scaled, sheared, shifted and bent at random."""
    count, height, width = pixels.shape

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
    return functional.grid_sample(pixels[:, None], grid, mode="bilinear", align_corners=False)[:, 0]


def student(size: int, recipe: Recipe) -> nn.Sequential:
    """The network that is converted: per hidden layer Linear, BatchNorm, ClipQuan; then a Linear read-out."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
    for index, width in enumerate(recipe.hidden):
        tail = str(index + 1) if len(recipe.hidden) > 1 else ""
        layers["hidden" + tail] = nn.Linear(size, width, bias=False)
        layers["norm" + tail] = norm = nn.BatchNorm1d(width)
        layers["clip" + tail] = ClipQuan(recipe.levels)
        nn.init.constant_(norm.weight, 0.5)  # most of a unit normal times a half lies inside the clip
        size = width
    layers["readout"] = nn.Linear(size, 10)
    return nn.Sequential(layers)


def teacher(height: int, width: int) -> nn.Sequential:
    """A CNN of three convolutions; far larger than the student in work, and never converted."""

    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        nn.Unflatten(1, (1, height)),
        *block(1, 16), nn.MaxPool2d(2),
        *block(16, 32), *block(32, 32), nn.MaxPool2d(2),
        *block(32, 64), nn.Flatten(), nn.Dropout(0.3), nn.Linear(64 * (height // 4) * (width // 4), 10),
    )  # fmt: skip


def activities(model: nn.Sequential, x: Tensor) -> tuple[Tensor, Tensor]:
    """The output, and the mean activation of the ClipQuan layers."""
    total = torch.zeros(())
    for module in model:
        x = module(x)
        if isinstance(module, ClipQuan):
            total = total + x.mean()
    return x, total


def batches(count: int, size: int, chance: torch.Generator) -> Iterator[Tensor]:
    """Indices 0 to count - 1 in random order, whole batches only."""
    order = torch.randperm(count, generator=chance)
    return (order[start : start + size] for start in range(0, count - size + 1, size))


def fit(model: nn.Module, epochs: int, rate: float, epoch: Callable[[], Iterator[Tensor]], steps: int) -> None:
    """Run ``epochs`` of ``steps`` losses through AdamW with one rise and a cosine fall of the rate."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps + 1, pct_start=0.1)
    model.train()
    for _ in range(epochs):
        for loss in epoch():
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            schedule.step()
    model.eval()


def fit_teacher(train: Digits, recipe: Recipe, chance: torch.Generator) -> nn.Sequential:
    pixels = train.images / recipe.input_max
    model = teacher(*pixels.shape[1:])
    size = min(100, len(pixels))

    def epoch() -> Iterator[Tensor]:
        fresh = augment(pixels, recipe, chance)
        for index in batches(len(fresh), size, chance):
            yield functional.cross_entropy(model(fresh[index]), train.labels[index], label_smoothing=0.05)

    fit(model, recipe.teacher_epochs, 4e-3, epoch, len(pixels) // size)
    return model


@torch.no_grad()
def label(models: list[nn.Sequential], pixels: Tensor) -> Tensor:
    """The mean of the teachers' logits, a thousand images at a time."""
    return torch.cat([torch.stack([m(part) for m in models]).mean(0) for part in pixels.split(1000)])


def make_pool(train: Digits, teachers: list[nn.Sequential], recipe: Recipe, chance: torch.Generator) -> tuple[Digits, Tensor]:
    """The training images and ``recipe.copies`` augmented copies of each, rounded to pixels; and the teachers' logits."""
    pixels = train.images / recipe.input_max
    images, logits = [train.images], [label(teachers, pixels)]
    for _ in range(recipe.copies):
        images.append((augment(pixels, recipe, chance) * recipe.input_max).round().to(torch.uint8))
        logits.append(label(teachers, images[-1] / recipe.input_max))
    return Digits(torch.cat(images), train.labels.repeat(recipe.copies + 1)), torch.cat(logits)


def fit_student(pool: Digits, logits: Tensor, recipe: Recipe, chance: torch.Generator) -> nn.Sequential:
    images, labels = pool.images, pool.labels
    model = student(images[0].numel(), recipe)

    def epoch() -> Iterator[Tensor]:
        for index in batches(len(images), recipe.batch, chance):
            output, activity = activities(model, images[index] / recipe.input_max)
            soft = functional.kl_div(
                functional.log_softmax(output / recipe.temperature, 1),
                functional.log_softmax(logits[index] / recipe.temperature, 1),
                reduction="batchmean",
                log_target=True,
            )
            hard = functional.cross_entropy(output, labels[index])
            yield recipe.temperature**2 * soft + 0.1 * hard + recipe.activity * activity

    fit(model, recipe.passes, recipe.rate, epoch, len(images) // recipe.batch)
    return model


def measure(model: nn.Sequential, net: IntegerNet, held: Digits) -> dict[str, float | int | bool]:
    """Accuracies in percent and the cost in spikes and steps on ``held``."""
    with torch.no_grad():
        floating = model(held.images / net.input_max).argmax(1)
    integer, trace = quantised_ann(net, held.images), simulate(net, held.images)
    same = torch.equal(integer.sums, trace.answer.sums) and all(map(torch.equal, integer.counts, trace.answer.counts))

    def percent(classes: Tensor) -> float:
        return round(100 * (classes == held.labels).double().mean().item(), 2)

    spikes = torch.stack([layer.abs().sum((0, 2), dtype=torch.int64) for layer in trace.spikes]).sum(0).double()
    return {
        "float ClipQuan ANN, %": percent(floating),
        "integer ANN, %": percent(integer.classes),
        "integer SNN, %": percent(trace.answer.classes),
        "integer SNN = integer ANN on every image": same,
        "sleep steps, median": int(trace.sleep_steps.median()),
        "sleep steps, most": int(trace.sleep_steps.max()),
        "spikes per image, mean": round(spikes.mean().item(), 1),
        "spikes per image, most": int(spikes.max()),
        "nonzero pixels per image, mean": round((held.images > 0).flatten(1).sum(1).double().mean().item(), 1),
    }


def save_images(path: Path, held: Digits) -> None:
    """``images`` uint8 (N, H, W) and ``labels`` uint8 (N,), compressed, whole or not at all."""
    temporary = path.with_suffix(".tmp.npz")
    np.savez_compressed(temporary, images=held.images.numpy(), labels=held.labels.numpy().astype(np.uint8))
    os.replace(temporary, path)


def run(recipe: Recipe, load: Callable[[], tuple[np.ndarray, np.ndarray]], arguments: list[str] | None = None) -> dict[str, object]:
    """The command line of an example; ``load`` gives images (N, H, W), 0 to ``recipe.input_max``, and labels."""
    parser = argparse.ArgumentParser(description=f"Train {recipe.name} and convert it to integers.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / f"{recipe.name}.pt", help="the converted network")
    parser.add_argument("--seed", type=int, default=0, help="of the training; the split stays as it is")
    parser.add_argument("--hidden", type=int, nargs="+", default=recipe.hidden, help="sizes of the spiking layers")
    parser.add_argument("--quick", action="store_true", help="a few seconds of training, to see that it runs")
    parser.add_argument("--validate", type=int, metavar="N", help="hold N training images out and measure on them; writes no file")
    for field in ("activity", "passes", "copies", "teachers"):
        default = getattr(recipe, field)
        parser.add_argument(f"--{field}", type=type(default), default=default)
    options = parser.parse_args(arguments)
    recipe = replace(
        recipe,
        hidden=tuple(options.hidden),
        activity=options.activity,
        passes=options.passes,
        copies=options.copies,
        teachers=options.teachers,
    )
    if options.quick:
        recipe = replace(recipe, teachers=1, teacher_epochs=2, copies=2, passes=4)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    chance = torch.Generator().manual_seed(options.seed)
    started = time.monotonic()

    pixels, classes = load()
    data = Digits(torch.from_numpy(pixels.astype(np.uint8)), torch.from_numpy(classes.astype(np.int64)))
    train, held = data.split(recipe.test, seed=0)
    if options.validate:
        train, held = train.split(options.validate, seed=options.seed)
    teachers = [fit_teacher(train, recipe, chance) for _ in range(recipe.teachers)]
    taught = 100 * (label(teachers, held.images / recipe.input_max).argmax(1) == held.labels).double().mean().item()
    model = fit_student(*make_pool(train, teachers, recipe, chance), recipe, chance)
    converted = convert(
        model,
        name=recipe.name,
        input_shape=pixels.shape[1:],
        input_max=recipe.input_max,
        bits=recipe.bits,
        calibration=train.images / recipe.input_max,
    )
    results: dict[str, object] = {"teachers, float CNNs, %": round(taught, 2), **measure(model, converted.net, held)}
    results["training, seconds"] = round(time.monotonic() - started)
    what = "validation" if options.validate else "test"
    print(f"{recipe.name}: {len(train.labels)} training images, {len(held.labels)} {what} images, seed {options.seed}")
    for key, value in results.items():
        print(f"  {key:42} {value}")
    if not options.validate:
        meta = {
            "split": f"{len(train.labels)} train, {len(held.labels)} test, stratified, scikit-learn train_test_split, random_state 0",
            "seed": options.seed,
            "recipe": {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(recipe).items()},
            "results": results,
        }
        replace(converted.net, meta=meta).save(options.out)
        save_images(options.out.with_name(f"{options.out.stem}_images.npz"), held)
        print(f"  wrote {options.out} and {options.out.stem}_images.npz")
    return results
