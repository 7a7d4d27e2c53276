"""Training of detectors: loss, training with ClipQuan, training with rounded weights, evaluation.

    source, held = digits()
    model = make(8)
    train(model, Composer(source, 0))
    tuned = tune(model, 4, Composer(source, 1))
    net = convert(tuned.model, input_shape=(1, 64, 64), bits=4).net
    print(evaluate(net, compose(held, 300, torch.Generator().manual_seed(1))))
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional

from casc_hw import IntegerNet, SpikingNet, quantised_ann
from casc_hw.qat import FakeQuantised, fake_quantise, fold_batchnorm
from casc_hw.training import descend
from examples._training import Digits
from examples.detection.decode import FIELDS, Detections, Truth, areas, boxes_at, decode, mean_average_precision
from examples.detection.scenes import Scenes, compose


def giou(one: Tensor, other: Tensor) -> Tensor:
    """Generalised IoU of boxes (N, 4), pair by pair, -1 to 1 (Rezatofighi et al., arXiv 1902.09630)."""
    shared = areas(torch.cat([torch.maximum(one[:, :2], other[:, :2]), torch.minimum(one[:, 2:], other[:, 2:])], 1))
    hull = areas(torch.cat([torch.minimum(one[:, :2], other[:, :2]), torch.maximum(one[:, 2:], other[:, 2:])], 1)).clamp(min=1e-9)
    union = (areas(one) + areas(other) - shared).clamp(min=1e-9)
    return shared / union - (hull - union) / hull


def detection_loss(maps: Tensor, truths: Sequence[Truth], size: int) -> Tensor:
    """Objectness (binary cross-entropy), class (cross-entropy) and box (twice 1 - GIoU), summed, per object.

    ``maps`` (N, 5 + classes, G, G) are the read-out of N images of ``size`` x ``size`` pixels. An object belongs to the cell that its
    centre is in; the cells of ignored objects may say what they like.
    """
    grid = maps.shape[-1]
    image = torch.arange(len(truths)).repeat_interleave(torch.tensor([len(truth.classes) for truth in truths]))
    boxes, classes, ignored = (torch.cat([getattr(truth, name) for truth in truths]) for name in ("boxes", "classes", "ignored"))
    column, row = ((boxes[:, :2] + boxes[:, 2:]) / 2 * grid / size).long().clamp(0, grid - 1).unbind(1)
    target, weight = torch.zeros_like(maps[:, 0]), torch.ones_like(maps[:, 0])
    weight[image[ignored], row[ignored], column[ignored]] = 0
    image, row, column, boxes, classes = (of[~ignored] for of in (image, row, column, boxes, classes))
    target[image, row, column] = weight[image, row, column] = 1
    cells = maps[image, :, row, column]  # (objects, 5 + classes)
    there = functional.binary_cross_entropy_with_logits(maps[:, 0], target, weight, reduction="sum")
    place = 1 - giou(boxes_at(cells[:, 1:FIELDS], column, row, size / grid), boxes)
    return (there + functional.cross_entropy(cells[:, FIELDS:], classes, reduction="sum") + 2 * place.sum()) / max(len(image), 1)


class Batches(Protocol):
    """What is trained on; called, it gives as many batches as its length says."""

    def __len__(self) -> int: ...

    def __call__(self) -> Iterable[Scenes]: ...


@dataclass
class Composer:
    """Fresh scenes of ``source``'s digits for every epoch."""

    source: Digits
    seed: int
    scenes: int = 2000
    batch: int = 40
    chance: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.chance = torch.Generator().manual_seed(self.seed)

    def __len__(self) -> int:
        return self.scenes // self.batch

    def __call__(self) -> Iterator[Scenes]:
        return (compose(self.source, self.batch, self.chance, bend=True) for _ in range(len(self)))


def train(model: nn.Module, batches: Batches, *, epochs: int = 100, rate: float = 4e-3) -> list[float]:
    """Train ``model`` in place; the mean loss of each epoch."""

    def epoch() -> Iterator[Tensor]:
        for scenes in batches():
            yield detection_loss(model(scenes.images / 255), scenes.truths, scenes.images.shape[-1])

    return list(descend(model, epochs, rate, epoch, len(batches)))


def tune(
    model: nn.Module,
    bits: int | Mapping[str, int],
    batches: Batches,
    *,
    epochs: int = 8,
    rate: float = 1e-3,
    shape: tuple[int, int, int] = (1, 64, 64),
) -> FakeQuantised:
    """A copy of ``model``, batch norm folded, trained on with weights rounded to ``bits``; its ``model`` is what to convert.

    ``shape``: of an image. To move to another T, load ``model``'s state into `make` of that T first.
    """
    tuned = fake_quantise(fold_batchnorm(model), input_shape=shape, bits=bits)
    train(tuned, batches, epochs=epochs, rate=rate)
    return tuned


def maps_of(net: IntegerNet, sums: Tensor) -> Tensor:
    """The read-out's integers (N, outputs) as maps of logits, float64 (N, 5 + classes, G, G)."""
    return (sums.double() / (net.levels * (net.readout.scale or 1.0))).reshape(-1, *net.shapes[net.readout.name])


@torch.no_grad()
def read_out(net: IntegerNet | nn.Module, images: Tensor) -> Tensor:
    """The maps (N, 5 + classes, G, G) of uint8 ``images``: of a model in floats, of the integer ANN, or of a SpikingNet."""
    if isinstance(net, IntegerNet):
        return maps_of(net, quantised_ann(net, images).sums)
    maps: Tensor = net(images if isinstance(net, SpikingNet) else images / 255)
    return maps


def detect(net: IntegerNet | nn.Module, scenes: Iterable[Scenes]) -> tuple[list[Detections], list[Truth]]:
    """What ``net`` (see `read_out`) finds in batches of ``scenes``, and what there is."""
    found: list[Detections] = []
    truths: list[Truth] = []
    for part in scenes:
        found += decode(read_out(net, part.images), part.images.shape[-1])
        truths += part.truths
    return found, truths


def evaluate(net: IntegerNet | nn.Module, scenes: Scenes, *, iou: float | Sequence[float] = 0.5, batch: int = 50) -> float:
    """Mean average precision of ``net`` (see `read_out`) on ``scenes``."""
    return mean_average_precision(*detect(net, scenes.batches(batch)), iou)
