"""From a read-out map to boxes, and how good they are: decoding, non-maximum suppression, mean average precision.

The read-out is a grid of cells as in YOLO (Redmon, Divvala, Girshick, Farhadi, arXiv 1506.02640), one box per cell and no anchors; its
channels are objectness, x, y, width, height, and a logit per class. In a cell (column, row) of a side of ``stride`` pixels

    centre = stride * (column + sigmoid(x), row + sigmoid(y)),    size = stride * (exp(width), exp(height)),
    score of class c = sigmoid(objectness) * softmax(classes)[c]

Boxes are float (N, 4): left, top, right, bottom in pixels, the last two exclusive; right > left and bottom > top.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FIELDS = 5
"""Channels of the read-out before the classes."""
COCO_IOUS = tuple(round(0.5 + 0.05 * index, 2) for index in range(10))
"""0.5, 0.55 to 0.95: COCO's AP is the mean over them."""


@dataclass(frozen=True)
class Truth:
    """What is in an image: boxes float (K, 4), classes int64 (K,), ignored bool (K,): neither counted nor missed (VOC's difficult)."""

    boxes: Tensor
    classes: Tensor
    ignored: Tensor


@dataclass(frozen=True)
class Detections:
    """What was found in an image, best first: boxes float (K, 4), scores float (K,), classes int64 (K,)."""

    boxes: Tensor
    scores: Tensor
    classes: Tensor


def areas(boxes: Tensor) -> Tensor:
    """Of boxes (..., 4), in pixels (...)."""
    return (boxes[..., 2:] - boxes[..., :2]).clamp(min=0).prod(-1)


def iou(one: Tensor, other: Tensor) -> Tensor:
    """Intersection over union of boxes (..., 4), broadcast; 0 where both are empty."""
    corner, end = torch.maximum(one[..., :2], other[..., :2]), torch.minimum(one[..., 2:], other[..., 2:])
    shared = (end - corner).clamp(min=0).prod(-1)
    return shared / (areas(one) + areas(other) - shared).clamp(min=1e-9)


def boxes_at(fields: Tensor, column: Tensor, row: Tensor, stride: float) -> Tensor:
    """The boxes (..., 4) of cells; ``fields`` (..., 4) are their x, y, width, height as read out."""
    centre = (torch.stack([column, row], -1) + fields[..., :2].sigmoid()) * stride
    half = fields[..., 2:].clamp(max=8).exp() * stride / 2
    return torch.cat([centre - half, centre + half], -1)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices of the boxes to keep, best first: greedily, each whose IoU with no better one kept exceeds ``threshold``.

    ``boxes`` (N, 4), ``scores`` (N,); of equal scores the first comes first.
    """
    order = scores.argsort(descending=True, stable=True)
    over = (iou(boxes[order, None], boxes[order]) > threshold).triu(1)
    keep = torch.ones(len(order), dtype=torch.bool)
    for index in range(len(order)):
        if keep[index]:
            keep &= ~over[index]
    return order[keep]


def decode(maps: Tensor, size: int, *, least: float = 0.01, overlap: float = 0.5, most: int = 100) -> list[Detections]:
    """Detections in each image of ``size`` x ``size`` pixels, from the read-out ``maps`` (N, 5 + classes, G, G).

    ``least``: scores to keep. ``overlap``: the IoU up to which two boxes of one class are two objects. ``most``: detections of an image.
    """
    grid = maps.shape[-1]
    row, column = torch.meshgrid(torch.arange(grid), torch.arange(grid), indexing="ij")
    cells = maps.permute(0, 2, 3, 1).double()
    boxes = boxes_at(cells[..., 1:FIELDS], column, row, size / grid).clamp(0, size).flatten(1, 2)
    scores = (cells[..., :1].sigmoid() * cells[..., FIELDS:].softmax(-1)).flatten(1, 2)
    found = []
    for place, score in zip(boxes, scores, strict=True):
        cell, kind = (score > least).nonzero(as_tuple=True)
        kept = []
        for number in kind.unique():
            of = (kind == number).nonzero()[:, 0]
            kept.append(of[nms(place[cell[of]], score[cell[of], number], overlap)])
        index = torch.cat(kept) if kept else cell
        index = index[score[cell[index], kind[index]].argsort(descending=True, stable=True)[:most]]
        found.append(Detections(place[cell[index]], score[cell[index], kind[index]], kind[index]))
    return found


def average_precision(hits: Tensor, objects: int) -> float:
    """Area under the precision-recall curve at all points, as PASCAL VOC defines it since 2010.

    ``hits``: bool (N,), best detection first: which of them found one of the ``objects``. At each recall the precision is the highest at
    that recall or above (Everingham et al., "The PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015).
    """
    right = hits.double().cumsum(0)
    precision = right / torch.arange(1, len(hits) + 1)
    envelope = precision.flip(0).cummax(0).values.flip(0)
    return float((envelope * hits).sum()) / objects


def matches(found: Sequence[Detections], truths: Sequence[Truth], kind: int, threshold: float) -> tuple[Tensor, int]:
    """Hits of the class ``kind`` over all images, bool (N,), best first, and how many objects there are.

    As in VOC: a detection goes with the object it overlaps most, and is a hit if the IoU is ``threshold`` or more and no better detection
    has hit it; one that goes with an ignored object is left out.
    """
    scores, hits = [], []
    objects = 0
    for seen, truth in zip(found, truths, strict=True):
        there, mine = truth.classes == kind, seen.classes == kind
        ignored = truth.ignored[there].tolist()
        objects += ignored.count(False)
        if not mine.any():
            continue
        order = seen.scores[mine].argsort(descending=True, stable=True)
        overlaps = iou(seen.boxes[mine][order, None].double(), truth.boxes[there].double())
        taken = [False] * len(ignored)
        for score, row in zip(seen.scores[mine][order].tolist(), overlaps, strict=True):
            best = int(row.argmax()) if len(row) else -1
            hit = best >= 0 and float(row[best]) >= threshold
            if hit and ignored[best]:
                continue
            scores.append(score)
            hits.append(hit and not taken[best])
            if hit:
                taken[best] = True
    order = torch.tensor(scores, dtype=torch.float64).argsort(descending=True, stable=True)
    return torch.tensor(hits, dtype=torch.bool)[order], objects


def mean_average_precision(found: Sequence[Detections], truths: Sequence[Truth], iou: float | Sequence[float] = 0.5) -> float:
    """Mean of `average_precision` over the classes that occur, and over the IoU thresholds if ``iou`` is several (`COCO_IOUS`).

    An image each in ``found`` and ``truths``. NaN where there is no object at all. VOC's own tool counts pixels inclusively; here a box's
    end is exclusive. Over COCO_IOUS it is COCO's AP but for the interpolation (COCO samples the curve at 101 recalls).
    """
    kinds = sorted({kind for truth in truths for kind in truth.classes[~truth.ignored].tolist()})
    values = [
        average_precision(*matches(found, truths, kind, threshold))
        for threshold in ([iou] if isinstance(iou, (int, float)) else iou)
        for kind in kinds
    ]
    return sum(values) / len(values) if values else float("nan")
