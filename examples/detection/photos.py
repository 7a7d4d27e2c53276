"""Photographs with boxes from a data set on disk: letterboxed to a square, read when they are needed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from casc_hw import CascError
from examples.detection.decode import Truth
from examples.detection.scenes import Scenes


class Dataset(Protocol):
    """Images and what is in them; item i is a file and, in its pixels, the truth. CascError for what cannot be read."""

    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> tuple[Path, Truth]: ...


def truth_of(boxes: list[list[float]], classes: list[int], ignored: list[bool]) -> Truth:
    """As tensors; also of nothing."""
    corners = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4)
    return Truth(corners, torch.tensor(classes, dtype=torch.long), torch.tensor(ignored, dtype=torch.bool))


def letterbox(path: Path, truth: Truth, size: int) -> tuple[Tensor, Truth]:
    """The image at ``path``, uint8 (3, size, size), scaled to fit and centred among black; and its boxes, scaled along."""
    try:
        with Image.open(path) as file:
            picture = file.convert("RGB")
    except UnidentifiedImageError as error:
        raise CascError(f"{path}: is not an image; unpack the data set again") from error
    except OSError as error:
        raise CascError(f"{path}: cannot be read: {error.strerror or error}; unpack the data set again") from error
    scale = size / max(picture.size)
    width, height = (max(round(length * scale), 1) for length in picture.size)
    left, top = (size - width) // 2, (size - height) // 2
    image = torch.zeros(3, size, size, dtype=torch.uint8)
    pixels = np.asarray(picture.resize((width, height), Image.Resampling.BILINEAR))
    image[:, top : top + height, left : left + width] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    factor = torch.tensor([width / picture.width, height / picture.height]).repeat(2)
    return image, Truth(truth.boxes * factor + torch.tensor([left, top]).repeat(2), truth.classes, truth.ignored)


def mirrored(image: Tensor, truth: Truth) -> tuple[Tensor, Truth]:
    """Left and right exchanged."""
    left, top, right, bottom = truth.boxes.unbind(1)
    size = image.shape[-1]
    return image.flip(-1), Truth(torch.stack([size - right, top, size - left, bottom], 1), truth.classes, truth.ignored)


@dataclass
class Photos:
    """Batches of letterboxed photographs; with a ``seed`` whole batches in random order, half of them mirrored, else all in order."""

    data: Dataset
    size: int
    batch: int = 16
    seed: int | None = None
    chance: torch.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.chance = torch.Generator().manual_seed(self.seed or 0)

    def __len__(self) -> int:
        return len(self.data) // self.batch if self.seed is not None else -(-len(self.data) // self.batch)

    def __call__(self) -> Iterator[Scenes]:
        """Of one epoch, each read as it is asked for."""
        order = torch.arange(len(self.data)) if self.seed is None else torch.randperm(len(self.data), generator=self.chance)
        for indices in order.split(self.batch)[: len(self)]:
            read = [letterbox(*self.data[index], self.size) for index in indices.tolist()]
            if self.seed is not None:
                flip = torch.rand(len(read), generator=self.chance) < 0.5
                read = [mirrored(*one) if yes else one for one, yes in zip(read, flip, strict=True)]
            images, truths = zip(*read, strict=True)
            yield Scenes(torch.stack(images), truths)
