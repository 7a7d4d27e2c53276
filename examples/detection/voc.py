"""PASCAL VOC, 2007 to 2012: ``Annotations/*.xml``, ``JPEGImages/*.jpg``, ``ImageSets/Main/*.txt``.

Everingham, Van Gool, Williams, Winn, Zisserman, "The PASCAL Visual Object Classes (VOC) Challenge", IJCV 2010.
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from xml.etree import ElementTree
from xml.parsers import expat

from casc_hw import CascError
from examples.detection.decode import Truth
from examples.detection.photos import truth_of

CLASSES: tuple[str, ...] = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
DOWNLOAD = (
    "get VOCtrainval_06-Nov-2007.tar and VOCtest_06-Nov-2007.tar from http://host.robots.ox.ac.uk/pascal/VOC/voc2007/, unpack both in one "
    "place and give its VOCdevkit/VOC2007"
)


class Voc:
    """The images of a ``split`` (``ImageSets/Main/<split>.txt``: train, val, trainval, test) of ``root``, which holds Annotations.

    Item i is an image's path and its objects; those marked difficult are ignored. VOC counts pixels from 1 and inclusively: left and top
    are lowered by one. CascError for a file that is missing, or not as VOC writes it.
    """

    classes = CLASSES

    def __init__(self, root: Path, split: str = "trainval"):
        self.root = root
        path = root / "ImageSets" / "Main" / f"{split}.txt"
        try:
            lines = path.read_text().splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise CascError(f"{path}: cannot be read; {DOWNLOAD}") from error
        self.names = [line.split()[0] for line in lines if line.strip()]
        if not self.names:
            raise CascError(f"{path}: names no image; unpack the data set again")

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> tuple[Path, Truth]:
        name = self.names[index]
        return self.root / "JPEGImages" / f"{name}.jpg", read_annotation(self.root / "Annotations" / f"{name}.xml")


def read_annotation(path: Path) -> Truth:
    """The objects of one XML file. CascError for one with a document type, which might hold entities that grow without end."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise CascError(f"{path}: cannot be read: {error.strerror or error}; unpack the data set again") from error
    boxes, classes, ignored = [], [], []
    try:
        for entry in _parse(path, content).iter("object"):
            name = _text(path, entry, "name")
            if name not in CLASSES:
                raise CascError(f"{path}: has an object {name!r}, none of VOC's {len(CLASSES)} classes; check the file")
            left, top, right, bottom = (float(_text(path, entry, f"bndbox/{end}")) for end in ("xmin", "ymin", "xmax", "ymax"))
            if not (all(map(isfinite, (left, top, right, bottom))) and left <= right and top <= bottom):
                raise CascError(f"{path}: the box {left, top, right, bottom} of {name!r} has no inside; check the file")
            boxes.append([left - 1, top - 1, right, bottom])
            classes.append(CLASSES.index(name))
            ignored.append((entry.findtext("difficult") or "0").strip() == "1")
    except (ElementTree.ParseError, expat.ExpatError, ValueError) as error:
        raise CascError(f"{path}: is not an annotation of VOC ({error}); unpack the data set again") from error
    return truth_of(boxes, classes, ignored)


def _parse(path: Path, content: bytes) -> ElementTree.Element:
    def refuse(*_: object) -> None:
        raise CascError(f"{path}: declares a document type, which VOC's files do not; check where it comes from")

    first = expat.ParserCreate()
    first.StartDoctypeDeclHandler = refuse
    first.Parse(content, True)
    return ElementTree.fromstring(content)


def _text(path: Path, entry: ElementTree.Element, name: str) -> str:
    text = entry.findtext(name)
    if text is None:
        raise CascError(f"{path}: an object has no {name}; unpack the data set again")
    return text.strip()
