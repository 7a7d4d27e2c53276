"""COCO: ``annotations/instances_<split>.json`` and the images in ``<split>/``.

Lin et al., "Microsoft COCO: Common Objects in Context", arXiv 1405.0312.
"""

from __future__ import annotations

import json
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

from casc_hw import CascError
from examples.detection.decode import Truth
from examples.detection.photos import truth_of

DOWNLOAD = (
    "get train2017.zip, val2017.zip and annotations_trainval2017.zip from https://cocodataset.org/#download, unpack all in one place and "
    "give that"
)


class Coco:
    """The images of a ``split`` (train2017, val2017) under ``root``, in the order of the file, those without objects too.

    Item i is an image's path and its objects; crowds are ignored, boxes without an inside left out. ``classes`` are the categories by
    rising id: COCO's ids have gaps. CascError for a file that is missing, or not as COCO writes it.
    """

    def __init__(self, root: Path, split: str = "train2017"):
        path = root / "annotations" / f"instances_{split}.json"
        try:
            with path.open("rb") as file:
                content = json.load(file)
        except OSError as error:
            raise CascError(f"{path}: cannot be read; {DOWNLOAD}") from error
        except (ValueError, RecursionError) as error:
            raise CascError(f"{path}: is not JSON ({error}); unpack the data set again") from error
        try:
            categories = {entry["id"]: str(entry["name"]) for entry in content["categories"]}
            self.classes = tuple(categories[key] for key in sorted(categories))
            place = {key: index for index, key in enumerate(sorted(categories))}
            files = {entry["id"]: PurePosixPath(entry["file_name"]).name for entry in content["images"]}
            found: dict[Any, tuple[list[list[float]], list[int], list[bool]]] = {key: ([], [], []) for key in files}
            for entry in content["annotations"]:
                left, top, width, height = map(float, entry["bbox"])
                if all(map(isfinite, (left, top, width, height))) and width > 0 and height > 0:
                    boxes, classes, crowds = found[entry["image_id"]]
                    boxes.append([left, top, left + width, top + height])
                    classes.append(place[entry["category_id"]])
                    crowds.append(bool(entry.get("iscrowd", 0)))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"{type(error).__name__}: {error}"
            raise CascError(f"{path}: is not a file of COCO's instances ({reason}); unpack the data set again") from error
        if not files:
            raise CascError(f"{path}: names no image; unpack the data set again")
        self.entries = [(root / split / name, found[key]) for key, name in files.items()]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> tuple[Path, Truth]:
        path, objects = self.entries[index]
        return path, truth_of(*objects)
