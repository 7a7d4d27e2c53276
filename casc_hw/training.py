"""Training: with floats, and with the rounding of the chip (`casc_hw.qat`).

    model = clip_quant(make_net(), levels=8)
    fit(model, images, labels, input_shape=(1, 28, 28), epochs=20)
    tuned = finetune(model, images, labels, input_shape=(1, 28, 28), bits=4)
    net = convert(tuned.model, input_shape=(1, 28, 28), bits=4).net
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from casc_hw import conversion
from casc_hw.errors import CascError
from casc_hw.qat import FakeQuantised, fake_quantise, fold_batchnorm

Loss = Callable[[Tensor, Tensor], Tensor]
Augment = Callable[[Tensor, torch.Generator], Tensor]


@dataclass(frozen=True)
class Epoch:
    """One pass over the images: the mean ``loss`` of its batches, and the loss and accuracy (0..1) on the validation set after it.

    None without a validation set; no accuracy where the loss is the caller's own.
    """

    loss: float
    held_loss: float | None = None
    accuracy: float | None = None


@dataclass(frozen=True)
class Tuned:
    """``model``, in eval mode, which `casc_hw.convert` with the same bits makes what was trained; and what its training was like."""

    model: nn.Module
    epochs: tuple[Epoch, ...]


def batches(count: int, size: int, chance: torch.Generator) -> Iterator[Tensor]:
    """Indices 0 to count - 1 in random order, whole batches only."""
    order = torch.randperm(count, generator=chance)
    return (order[start : start + size] for start in range(0, count - size + 1, size))


def descend(model: nn.Module, epochs: int, rate: float, epoch: Callable[[], Iterator[Tensor]], steps: int) -> Iterator[float]:
    """Run ``epochs`` of ``steps`` losses through AdamW with one rise and a cosine fall of the rate; after each, its mean loss.

    ``model`` trains meanwhile, and is in eval mode between epochs and afterwards. CascError for a loss that is not a number.
    """
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * steps + 1, pct_start=0.1)
    for number in range(1, epochs + 1):
        model.train()
        total = 0.0
        for loss in epoch():
            if not math.isfinite(value := loss.item()):
                raise CascError(f"epoch {number}: the loss is {value}; lower the rate, which is {rate:g}")
            total += value
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            optimiser.step()
            schedule.step()
        model.eval()
        yield total / steps


def fit(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    input_shape: Sequence[int],
    input_max: int = 255,
    epochs: int = 10,
    rate: float = 4e-3,
    batch: int = 100,
    seed: int = 0,
    loss: Loss | None = None,
    smoothing: float = 0.0,
    augment: Augment | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    told: Callable[[Epoch], None] | None = None,
) -> tuple[Epoch, ...]:
    """Train ``model`` in place, with floats; it is in eval mode afterwards.

    AdamW with one rise and a cosine fall of the rate (Smith, Topin, arXiv 1708.07120), every number that is drawn from ``seed``.

    Parameters
    ----------
    model: sees pixels over ``input_max``, as in `casc_hw.convert`; any activations.
    images: integers 0 to ``input_max``, (N, *input_shape).
    targets: (N, ...), whatever ``loss`` takes; classes, integers (N,), where that is left out.
    epochs, rate, batch: passes, the highest learning rate, images a step (of the rest, fewer than a batch, another pass has others).
    loss: of the output and the targets of a batch, a mean; default: cross entropy, with label ``smoothing``.
    augment: of pixels 0..1, (batch, *input_shape), and a generator, gives as many.
    validation: images and targets that are not trained on.
    told: called after every epoch.

    Raises
    ------
    CascError: for images, targets and settings that do not fit, and a loss that is not a number.
    """
    data = _Data(model, images, targets, tuple(input_shape), input_max, loss, smoothing)
    held = None if validation is None else _Data(model, *validation, tuple(input_shape), input_max, loss, smoothing)
    return _fit(model, data, held, epochs, rate, batch, seed, augment, told)


def finetune(
    model: nn.Module,
    images: Tensor,
    targets: Tensor,
    *,
    input_shape: Sequence[int],
    input_max: int = 255,
    bits: int | Mapping[str, int] = 4,
    epochs: int = 3,
    rate: float = 1e-3,
    batch: int = 100,
    seed: int = 0,
    loss: Loss | None = None,
    smoothing: float = 0.0,
    augment: Augment | None = None,
    validation: tuple[Tensor, Tensor] | None = None,
    told: Callable[[Epoch], None] | None = None,
) -> Tuned:
    """A copy of ``model``, trained already and activated by ClipQuan, trained on with weights rounded to ``bits``.

    BatchNorm is folded first, and stays so. ``bits``: 8, 6, 4, 3 or 2, one width for all or by the name of the module (8 where none is
    given), as in `casc_hw.convert`, which is to be given the same. The rest, and what is raised, as in `fit`, and as in
    `casc_hw.qat.fake_quantise`. The losses and accuracies are those of the rounded network.
    """
    model = fold_batchnorm(model)
    rounded = fake_quantise(model, input_shape=input_shape, input_max=input_max, bits=bits)
    data = _Data(model, images, targets, tuple(input_shape), input_max, loss, smoothing)
    held = None if validation is None else _Data(model, *validation, tuple(input_shape), input_max, loss, smoothing)
    return Tuned(model, _fit(rounded, data, held, epochs, rate, batch, seed, augment, told))


class _Data:
    """Images and what is wanted of them, checked against the network."""

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        targets: Tensor,
        shape: tuple[int, ...],
        input_max: int,
        loss: Loss | None,
        smoothing: float,
    ):
        self.images, self.targets, self.shape, self.input_max = images, targets, shape, input_max
        self.loss: Loss = loss or (lambda output, wanted: functional.cross_entropy(output.flatten(1), wanted, label_smoothing=smoothing))
        self.classes = loss is None
        if tuple(images.shape[1:]) != shape or not len(images):
            raise CascError(f"images: shape {tuple(images.shape)} is not (N, {', '.join(map(str, shape))}); give such, one at least")
        if images.is_floating_point() or images.dtype == torch.bool:
            raise CascError(f"images: are of {images.dtype}, not integers 0 to {input_max}; multiply them and round")
        if int(images.min()) < 0 or int(images.max()) > input_max:
            raise CascError(f"images: pixels span {int(images.min())} to {int(images.max())}, not 0 to {input_max}; rescale them")
        if len(targets) != len(images):
            raise CascError(f"labels: {len(targets)} for {len(images)} images; give one for each")
        self.dims = conversion._seen(conversion._trace(model.model if isinstance(model, FakeQuantised) else model), shape)
        self.like = next(model.parameters(), torch.zeros(()))
        outputs = self._outputs(model)
        if not self.classes:
            return
        if targets.ndim != 1 or targets.is_floating_point():
            raise CascError(f"labels: are {targets.dtype} of shape {tuple(targets.shape)}, not classes (N,); give a loss for others")
        if int(targets.min()) < 0 or int(targets.max()) >= outputs:
            raise CascError(
                f"labels: classes span {int(targets.min())} to {int(targets.max())}, but the network has {outputs} outputs; "
                "number them from 0, or widen the last layer"
            )
        self.targets = targets.long()

    def _outputs(self, model: nn.Module) -> int:
        with conversion._evaluation(model), torch.no_grad():
            x = self.pixels(torch.arange(1))
            try:
                output = model(x)
            except Exception as error:  # the forward is the user's own code
                raise CascError(
                    f"model: fails on images of shape {tuple(x.shape)} ({conversion._line(error)}); fix the model or the shape"
                ) from error
        return int(output[0].numel())

    def pixels(self, index: Tensor, augment: Augment | None = None, chance: torch.Generator | None = None) -> Tensor:
        """What the network sees of some images."""
        x = self.images[index].to(self.like) / self.input_max
        if augment is not None and chance is not None:
            x = augment(x, chance)
        return x.reshape(len(index), *self.dims)

    def measure(self, model: nn.Module) -> tuple[float, float | None]:
        """Mean loss, and accuracy where there are classes."""
        total, right = 0.0, 0
        with torch.no_grad():
            for index in torch.split(torch.arange(len(self.images)), 250):
                output, wanted = model(self.pixels(index)), self.targets[index].to(self.like.device)
                total += self.loss(output, wanted).item() * len(index)
                right += int((output.flatten(1).argmax(1) == wanted).sum()) if self.classes else 0
        return total / len(self.images), right / len(self.images) if self.classes else None


def accuracy(model: nn.Module, images: Tensor, labels: Tensor, *, input_shape: Sequence[int], input_max: int = 255) -> float:
    """Share of ``images``, integers (N, *input_shape), that ``model``, in floats, gives the class of ``labels``."""
    with conversion._evaluation(model):
        share = _Data(model, images, labels, tuple(input_shape), input_max, None, 0.0).measure(model)[1]
    assert share is not None
    return share


def _fit(
    model: nn.Module,
    data: _Data,
    held: _Data | None,
    epochs: int,
    rate: float,
    batch: int,
    seed: int,
    augment: Augment | None,
    told: Callable[[Epoch], None] | None,
) -> tuple[Epoch, ...]:
    for name, value in (("epochs", epochs), ("batch", batch)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise CascError(f"{name}: {value!r} is not a positive integer; give 1 or more")
    if not 0 < rate < math.inf:
        raise CascError(f"rate: {rate!r} is not a positive number; 1e-3 is usual")
    count = len(data.images)
    size = min(batch, count)
    if size == 1 and any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules()):
        raise CascError("batch: one image alone trains no BatchNorm; give 2 or more")
    done = []
    with torch.random.fork_rng(devices=[]):  # of dropout
        torch.manual_seed(seed)
        chance = torch.Generator().manual_seed(seed)

        def epoch() -> Iterator[Tensor]:
            for index in batches(count, size, chance):
                yield data.loss(model(data.pixels(index, augment, chance)), data.targets[index].to(data.like.device))

        for loss in descend(model, epochs, rate, epoch, count // size):
            done.append(Epoch(loss, *(held.measure(model) if held else ())))
            if told is not None:
                told(done[-1])
    return tuple(done)
