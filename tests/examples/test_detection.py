"""The detector: boxes, scores and losses against cases worked by hand and plain loops; loaders; and the network that is shipped."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from casc_hw import CascError, IntegerNet, SpikingNet, convert, quantised_ann, simulate
from examples import digit_scenes
from examples._training import Digits
from examples.detection.__main__ import main
from examples.detection.coco import Coco
from examples.detection.decode import (
    COCO_IOUS,
    Detections,
    Truth,
    average_precision,
    boxes_at,
    decode,
    iou,
    mean_average_precision,
    nms,
)
from examples.detection.model import make
from examples.detection.photos import Photos, letterbox, mirrored, truth_of
from examples.detection.scenes import INK, Scenes, compose, digits
from examples.detection.training import Composer, detection_loss, evaluate, giou, read_out, train, tune
from examples.detection.voc import CLASSES, Voc

ROOT = Path(__file__).resolve().parents[2]
NET = ROOT / "examples" / "digit_scenes.pt"


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def split() -> tuple[Digits, Digits]:
    return digits()


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def random_boxes(count: int, chance: torch.Generator, size: int = 20) -> Tensor:
    """On integer corners, so that there are ties."""
    corner = torch.randint(0, size, (count, 2), generator=chance)
    return torch.cat([corner, corner + torch.randint(1, size // 2, (count, 2), generator=chance)], 1).float()


def plain_iou(one: list[float], other: list[float]) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((one[2] - one[0]) * (one[3] - one[1]) + (other[2] - other[0]) * (other[3] - other[1]) - shared)


# --- boxes ------------------------------------------------------------------------------------------------------------


def test_iou_by_hand() -> None:
    square = torch.tensor([0.0, 0, 2, 2])
    others = torch.tensor([[0.0, 0, 2, 2], [1, 0, 3, 2], [1, 1, 3, 3], [2, 0, 4, 2], [5, 5, 6, 6], [0, 0, 1, 1], [1, 1, 1, 1]])
    assert iou(square, others).tolist() == pytest.approx([1, 1 / 3, 1 / 7, 0, 0, 1 / 4, 0])
    assert iou(others[-1], others[-1]) == 0


def test_generalised_iou_by_hand() -> None:
    one = torch.tensor([[0.0, 0, 1, 1]] * 3)
    other = torch.tensor([[0.0, 0, 1, 1], [2, 0, 3, 1], [0, 0, 2, 1]])
    assert giou(one, other).tolist() == pytest.approx([1, -1 / 3, 1 / 2])  # a gap as wide as a box is a third of the hull


@pytest.mark.parametrize("threshold", [0.3, 0.6])
@pytest.mark.parametrize("seed", range(5))
def test_nms_is_the_plain_one(seed: int, threshold: float) -> None:
    chance = seeded(seed)
    boxes, scores = random_boxes(60, chance), torch.randint(0, 20, (60,), generator=chance) / 20
    kept: list[int] = []
    for index in sorted(range(60), key=lambda index: (-scores[index].item(), index)):
        if all(plain_iou(boxes[index].tolist(), boxes[other].tolist()) <= threshold + 1e-7 for other in kept):
            kept.append(index)
    assert nms(boxes, scores, threshold).tolist() == kept
    assert 5 < len(kept) < 60


def test_nms_by_hand() -> None:
    boxes = torch.tensor([[30.0, 0, 40, 10], [2, 0, 12, 10], [1, 0, 11, 10], [0, 0, 10, 10]])
    scores = torch.tensor([0.1, 0.5, 0.6, 0.9])
    assert nms(boxes, scores, 0.5).tolist() == [3, 0]
    assert nms(boxes, scores, 0.7).tolist() == [3, 1, 0]  # the second best would have hidden it, but is hidden itself
    assert nms(boxes, scores, 0.85).tolist() == [3, 2, 1, 0]
    assert nms(boxes[:0], scores[:0], 0.5).tolist() == []


# --- decoding ---------------------------------------------------------------------------------------------------------


def logit(share: float) -> float:
    return float(torch.logit(torch.tensor(share, dtype=torch.float64)))


def map_of(cells: dict[tuple[int, int], tuple[float, ...]], classes: int = 3, grid: int = 4) -> Tensor:
    """A read-out (1, 5 + classes, grid, grid), by (row, column); nothing elsewhere."""
    maps = torch.full((1, 5 + classes, grid, grid), -30.0, dtype=torch.float64)
    for (row, column), fields in cells.items():
        maps[0, :, row, column] = torch.tensor(fields, dtype=torch.float64)
    return maps


def test_decoding_by_hand() -> None:
    two = float(np.log(2))
    maps = map_of({(2, 1): (logit(0.8), logit(0.25), logit(0.5), two, 0.0, two, 0.0, 0.0)})
    (seen,) = decode(maps, 32)  # cells of 8 pixels; the centre at (8 * 1.25, 8 * 2.5), 16 wide, 8 high; classes 1/2, 1/4, 1/4
    assert seen.boxes[0].tolist() == pytest.approx([2, 16, 18, 24])
    assert seen.classes.tolist()[0] == 0
    assert sorted(seen.classes.tolist()) == [0, 1, 2]
    assert seen.scores.tolist() == pytest.approx([0.4, 0.2, 0.2])
    assert decode(maps, 32, least=0.3)[0].classes.tolist() == [0]
    assert decode(maps, 32, most=2)[0].scores.tolist() == pytest.approx([0.4, 0.2])
    (larger,) = decode(maps, 64)
    assert larger.boxes[0].tolist() == pytest.approx([4, 32, 36, 48])
    (cut,) = decode(map_of({(0, 0): (5.0, 0.0, 0.0, 2.0, 2.0, 9.0, 0.0, 0.0)}), 32, least=0.5)
    assert cut.boxes[0, :2].tolist() == [0, 0]
    assert decode(map_of({}), 32)[0].boxes.shape == (0, 4)


def test_boxes_of_one_class_hide_each_other() -> None:
    """Two cells side by side, whose boxes of 16 x 16 overlap by a third."""
    size = float(np.log(2))
    left, right = (2.0, 0.0, 0.0, size, size), (3.0, 0.0, 0.0, size, size)
    same = map_of({(1, 1): (*left, 20.0, 0.0, 0.0), (1, 2): (*right, 20.0, 0.0, 0.0)})
    other = map_of({(1, 1): (*left, 20.0, 0.0, 0.0), (1, 2): (*right, 0.0, 20.0, 0.0)})
    assert decode(same, 32, overlap=0.3)[0].boxes.tolist() == [[12, 4, 28, 20]]
    assert len(decode(same, 32, overlap=0.4)[0].boxes) == 2
    assert decode(other, 32, overlap=0.3)[0].classes.tolist() == [1, 0]


# --- mean average precision -------------------------------------------------------------------------------------------


def test_average_precision_by_hand() -> None:
    hits = torch.tensor([True, False, True])
    assert average_precision(hits, 3) == pytest.approx(1 / 3 + 2 / 3 * 1 / 3)
    assert average_precision(hits, 2) == pytest.approx(1 / 2 + 2 / 3 * 1 / 2)
    # A precision that rises again counts for the recall before: 0, 1/2, 2/3 is 2/3 throughout
    assert average_precision(torch.tensor([False, True, True]), 2) == pytest.approx(2 / 3)
    assert average_precision(torch.tensor([], dtype=torch.bool), 2) == 0


def test_mean_average_precision_by_hand() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10], [0, 0, 10, 6]])
    truths = [
        Truth(boxes[:2], torch.tensor([0, 0]), torch.tensor([False, False])),
        Truth(boxes[:1], torch.tensor([1]), torch.tensor([False])),
    ]
    found = [
        Detections(boxes[[0, 2, 1]], torch.tensor([0.9, 0.8, 0.7]), torch.tensor([0, 0, 0])),  # the second is the first's object once more
        Detections(boxes[2:], torch.tensor([0.6]), torch.tensor([1])),  # IoU 0.6
    ]
    first = 1 / 2 + 2 / 3 * 1 / 2
    assert mean_average_precision(found, truths) == pytest.approx((first + 1) / 2)
    assert mean_average_precision(found, truths, iou=0.65) == pytest.approx(first / 2)
    assert mean_average_precision(found, truths, iou=COCO_IOUS) == pytest.approx((first + 3 / 10) / 2)  # 0.5, 0.55 and 0.6 are met
    assert mean_average_precision(found[::-1], truths) == 0
    assert np.isnan(mean_average_precision(found, [Truth(boxes[:0], torch.tensor([]).long(), torch.tensor([]).bool())] * 2))


def test_what_is_ignored_neither_counts_nor_harms() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [20, 0, 30, 10]])
    found = [Detections(boxes, torch.tensor([0.9, 0.8]), torch.tensor([0, 0]))]
    for ignored, expected in (([True, False], 1.0), ([False, True], 1.0), ([False, False], 1.0)):
        assert mean_average_precision(found, [Truth(boxes, torch.tensor([0, 0]), torch.tensor(ignored))]) == expected
    alone = [Truth(boxes[1:], torch.tensor([0]), torch.tensor([False]))]
    assert mean_average_precision(found, alone) == 0.5  # nobody ignores the first now
    assert np.isnan(mean_average_precision(found, [Truth(boxes, torch.tensor([0, 0]), torch.tensor([True, True]))]))


def plain_average_precision(found: list[Detections], truths: list[Truth], kind: int, threshold: float) -> float:
    """As PASCAL VOC's devkit goes about it, in plain loops."""
    entries = [
        (score, image, box)
        for image, seen in enumerate(found)
        for box, score, of in zip(seen.boxes.tolist(), seen.scores.tolist(), seen.classes.tolist(), strict=True)
        if of == kind
    ]
    entries.sort(key=lambda entry: -entry[0])
    used: set[tuple[int, int]] = set()
    right, wrong = 0, 0
    objects = sum(int(((truth.classes == kind) & ~truth.ignored).sum()) for truth in truths)
    curve = []
    for _, image, box in entries:
        truth = truths[image]
        overlaps = [(plain_iou(box, other.tolist()), index) for index, other in enumerate(truth.boxes) if truth.classes[index] == kind]
        best, index = max(overlaps, key=lambda entry: entry[0], default=(0.0, -1))
        if best >= threshold and truth.ignored[index]:
            continue
        hit = best >= threshold and (image, index) not in used
        if hit:
            used.add((image, index))
        right, wrong = right + hit, wrong + (not hit)
        curve.append((right / objects, right / (right + wrong)))
    area, before = 0.0, 0.0
    for recall in sorted({recall for recall, _ in curve}):
        area += (recall - before) * max(precision for at, precision in curve if at >= recall)
        before = recall
    return area


@pytest.mark.parametrize("threshold", [0.5, 0.3])
@pytest.mark.parametrize("seed", range(6))
def test_mean_average_precision_is_the_plain_one(seed: int, threshold: float) -> None:
    chance = seeded(seed)
    found, truths = [], []
    for _ in range(8):
        count = int(torch.randint(0, 6, (), generator=chance))
        boxes = random_boxes(count, chance)
        truths.append(Truth(boxes, torch.randint(0, 2, (count,), generator=chance), torch.rand(count, generator=chance) < 0.2))
        close = (boxes + torch.randint(-1, 2, boxes.shape, generator=chance)).repeat(2, 1)
        guesses = torch.cat([close, random_boxes(3, chance)])
        guesses[:, 2:] = torch.maximum(guesses[:, 2:], guesses[:, :2] + 1)
        scores = torch.rand(len(guesses), dtype=torch.float64, generator=chance)  # no ties, which may be ordered in more than one way
        classes = torch.cat([truths[-1].classes.repeat(2), torch.randint(0, 2, (3,), generator=chance)])
        found.append(Detections(guesses, scores, classes))
    plain = [plain_average_precision(found, truths, kind, threshold) for kind in (0, 1)]
    assert mean_average_precision(found, truths, iou=threshold) == pytest.approx(sum(plain) / 2)
    assert 0.05 < sum(plain) / 2 < 0.95
    several = [mean_average_precision(found, truths, iou=one) for one in COCO_IOUS]
    assert mean_average_precision(found, truths, iou=COCO_IOUS) == pytest.approx(sum(several) / 10)


# --- scenes -----------------------------------------------------------------------------------------------------------


def test_a_box_is_tight_around_the_ink(split: tuple[Digits, Digits]) -> None:
    scenes = compose(split[1], 40, seeded(), most=1, speckle=0)
    for image, truth in zip(scenes.images, scenes.truths, strict=True):
        down, across = (image[0] > INK).nonzero(as_tuple=True)
        assert truth.boxes.tolist() == [[across.min(), down.min(), across.max() + 1, down.max() + 1]]


@pytest.mark.parametrize(("size", "most", "overlap"), [(64, 5, 0.1), (96, 8, 0.02)])
def test_scenes(split: tuple[Digits, Digits], size: int, most: int, overlap: float) -> None:
    scenes = compose(split[0], 200, seeded(), size=size, most=most, overlap=overlap)
    assert scenes.images.shape == (200, 1, size, size)
    assert scenes.images.dtype == torch.uint8
    counts = [len(truth.classes) for truth in scenes.truths]
    assert min(counts) == 1
    assert max(counts) == most
    assert sum(counts) / 200 == pytest.approx((most + 1) / 2, rel=0.1)
    assert {kind for truth in scenes.truths for kind in truth.classes.tolist()} == set(range(10))
    for truth in scenes.truths:
        assert truth.boxes.min() >= 0
        assert truth.boxes.max() <= size
        assert all(plain_iou(one, other) < overlap for one, other in combinations(truth.boxes.tolist(), 2))


def test_scenes_follow_their_settings(split: tuple[Digits, Digits]) -> None:
    def heights(**settings: Any) -> float:
        return float(torch.cat([t.boxes[:, 3] - t.boxes[:, 1] for t in compose(split[1], 50, seeded(), **settings).truths]).mean())

    assert heights(zoom=(0.6, 0.6)) == pytest.approx(0.6 * heights(zoom=(1.0, 1.0)), rel=0.05)
    settings = [(0, 0.03, False), (0, 0.03, False), (1, 0.03, False), (0, 0.2, False), (0, 0.03, True)]
    images = [compose(split[1], 20, seeded(seed), speckle=speckle, bend=bend).images for seed, speckle, bend in settings]
    assert torch.equal(images[0], images[1])
    assert all(not torch.equal(images[0], other) for other in images[2:])
    faint = [((image > 0) & (image <= 85)).float().mean() for image in images]
    assert faint[3] - faint[0] == pytest.approx(0.17, abs=0.04)


def test_a_crowded_scene_has_fewer(split: tuple[Digits, Digits]) -> None:
    """Where no place is free a digit is left out; a canvas as large as a digit holds one."""
    scenes = compose(split[1], 20, seeded(), size=28, most=4, zoom=(1.0, 1.0), overlap=0.01)
    assert max(len(truth.classes) for truth in scenes.truths) < 4
    assert min(len(truth.classes) for truth in scenes.truths) >= 1


def test_no_digit_is_in_both_splits(split: tuple[Digits, Digits]) -> None:
    train_, test = (torch.unique(part.images.flatten(1), dim=0) for part in split)
    assert [len(part.labels) for part in split] == [4000, 1000]
    assert len(torch.unique(torch.cat([train_, test]), dim=0)) == len(train_) + len(test)


# --- training ---------------------------------------------------------------------------------------------------------


def test_the_loss_of_a_right_answer_is_none() -> None:
    box = torch.tensor([[12.0, 4, 28, 20]])  # its centre (20, 12): column 2, row 1 of cells of 8
    size = float(np.log(2))
    maps = map_of({(1, 2): (30.0, 0.0, 0.0, size, size, 0.0, 30.0, 0.0)})
    truth = Truth(box, torch.tensor([1]), torch.tensor([False]))
    assert float(detection_loss(maps, [truth], 32)) == pytest.approx(0, abs=1e-6)
    wrong_class = replace(truth, classes=torch.tensor([0]))
    assert float(detection_loss(maps, [wrong_class], 32)) == pytest.approx(30, abs=1e-6)
    moved = replace(truth, boxes=box + torch.tensor([0.0, 0, 16, 0]) / 8)  # 18 wide in place of 16: 1 - 8/9, twice
    assert float(detection_loss(maps, [moved], 32)) == pytest.approx(2 / 9, abs=1e-6)
    nothing = truth_of([], [], [])
    assert float(detection_loss(maps, [nothing], 32)) == pytest.approx(30, abs=1e-6)
    ignored = replace(truth, ignored=torch.tensor([True]))
    assert float(detection_loss(maps, [ignored], 32)) == pytest.approx(0, abs=1e-6)
    both = torch.cat([maps, maps])
    assert float(detection_loss(both, [truth, wrong_class], 32)) == pytest.approx(15, abs=1e-6)  # per object


def test_a_box_can_be_learnt_from_its_loss() -> None:
    """Gradient descent on the loss alone brings `decode` to the truth."""
    truths = [truth_of([[3, 5, 17, 30], [20, 20, 30, 26]], [2, 0], [False, False])]
    maps = torch.zeros(1, 8, 4, 4, requires_grad=True)
    optimiser = torch.optim.Adam([maps], lr=0.1)
    for _ in range(300):
        optimiser.zero_grad()
        detection_loss(maps, truths, 32).backward()
        optimiser.step()
    (seen,) = decode(maps.detach(), 32, least=0.5)
    order = seen.boxes[:, 0].argsort()
    assert seen.classes[order].tolist() == [2, 0]
    assert (seen.boxes[order] - truths[0].boxes).abs().max() < 0.3
    column = torch.tensor([2.0, 0.0])
    assert boxes_at(torch.zeros(2, 4), column, column, 8.0).tolist() == [[16, 16, 24, 24], [0, 0, 8, 8]]


@pytest.mark.parametrize(("levels", "bits"), [(8, 4), (4, 8)])
def test_training_in_seconds(split: tuple[Digits, Digits], levels: int, bits: int) -> None:
    torch.manual_seed(0)
    model = make(levels, width=0.5)
    losses = train(model, Composer(split[0], 0, scenes=200, batch=20), epochs=4, rate=1e-2)
    assert len(losses) == 4
    assert losses[-1] < 0.8 * losses[0]
    tuned = tune(model, bits, Composer(split[0], 1, scenes=60, batch=20), epochs=1)
    net = convert(tuned.model, input_shape=(1, 64, 64), bits=bits).net
    assert net.levels == levels
    assert {synapses.bits for layer in net.layers for synapses in layer.synapses} == {bits}
    scenes = compose(split[1], 6, seeded())
    maps = read_out(net, scenes.images)
    assert maps.shape == (6, 15, 8, 8)
    assert torch.equal(read_out(SpikingNet(net), scenes.images), maps)
    assert (read_out(tuned.double(), scenes.images.double()) - maps).abs().max() < 1e-9
    assert evaluate(net, scenes, batch=6) == evaluate(SpikingNet(net), scenes, batch=4)


def test_relu_and_larger_networks() -> None:
    assert not any("ClipQuan" in repr(module) for module in make(None).modules())
    maps = make(4, classes=20, channels=3, width=0.5, deep=True)(torch.zeros(2, 3, 64, 64))
    assert maps.shape == (2, 25, 4, 4)
    assert sum(p.numel() for p in make(width=2.0).parameters()) > 3 * sum(p.numel() for p in make(width=1.0).parameters())


# --- data sets on disk ------------------------------------------------------------------------------------------------

ANNOTATION = """<annotation><folder>VOC2007</folder><filename>{name}.jpg</filename>
<size><width>80</width><height>40</height><depth>3</depth></size>{objects}</annotation>
"""
OBJECT = """<object><name>{name}</name><pose>Left</pose><truncated>0</truncated><difficult>{difficult}</difficult>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
<part><name>head</name><bndbox><xmin>1</xmin><ymin>1</ymin><xmax>2</xmax><ymax>2</ymax></bndbox></part></object>"""


def picture(path: Path, seed: int, width: int = 80, height: int = 40) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)).save(path)


def write_voc(root: Path, count: int = 6) -> Path:
    """``count`` images of 80 x 40 for training and for the test: a dog, and a car that is difficult in every other one."""
    for folder in ("Annotations", "ImageSets/Main"):
        (root / folder).mkdir(parents=True)
    names = [f"{index:06}" for index in range(count)]
    for index, name in enumerate(names):
        picture(root / "JPEGImages" / f"{name}.jpg", index)
        objects = OBJECT.format(name="dog", difficult=0, box=(1, 1, 40, 20)) + OBJECT.format(
            name="car", difficult=index % 2, box=(31.5, 11, 70, 40)
        )
        (root / "Annotations" / f"{name}.xml").write_text(ANNOTATION.format(name=name, objects=objects))
    for split in ("trainval", "test"):
        (root / "ImageSets" / "Main" / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root


def write_coco(root: Path, count: int = 6) -> Path:
    """The same, in COCO's format; category ids have a gap, the last image has no object."""
    for split in ("train2017", "val2017"):
        content: dict[str, list[dict[str, Any]]] = {
            "images": [{"id": 100 + index, "file_name": f"{index:012}.jpg", "width": 80, "height": 40} for index in range(count)],
            "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}, {"id": 3, "name": "car", "supercategory": "vehicle"}],
            "annotations": [],
        }
        for index in range(count - 1):
            for kind, crowd, box in ((18, 0, [0, 0, 40, 20]), (3, index % 2, [30.5, 10, 39.5, 30]), (3, 0, [5, 5, 0, 9])):
                entry = {"id": len(content["annotations"]), "image_id": 100 + index, "category_id": kind, "bbox": box, "iscrowd": crowd}
                content["annotations"].append(entry)
        for index in range(count):
            picture(root / split / f"{index:012}.jpg", index)
        (root / "annotations").mkdir(exist_ok=True)
        (root / "annotations" / f"instances_{split}.json").write_text(json.dumps(content))
    return root


def test_voc(tmp_path: Path) -> None:
    data = Voc(write_voc(tmp_path / "VOC2007"), "test")
    assert len(data) == 6
    path, truth = data[1]
    assert path == tmp_path / "VOC2007" / "JPEGImages" / "000001.jpg"
    assert [CLASSES[kind] for kind in truth.classes] == ["dog", "car"]
    assert truth.boxes.tolist() == [[0, 0, 40, 20], [30.5, 10, 70, 40]]
    assert truth.ignored.tolist() == [False, True]
    assert data[2][1].ignored.tolist() == [False, False]


def test_coco(tmp_path: Path) -> None:
    data = Coco(write_coco(tmp_path), "val2017")
    assert data.classes == ("car", "dog")
    path, truth = data[1]
    assert path == tmp_path / "val2017" / "000000000001.jpg"
    assert truth.classes.tolist() == [1, 0]
    assert truth.boxes.tolist() == [[0, 0, 40, 20], [30.5, 10, 70, 40]]
    assert truth.ignored.tolist() == [False, True]
    assert data[5][1].boxes.shape == (0, 4)


@pytest.mark.parametrize(("width", "height", "box"), [(80, 40, [0, 16, 16, 24]), (40, 80, [16, 0, 32, 16])])
def test_letterbox(tmp_path: Path, width: int, height: int, box: list[float]) -> None:
    picture(tmp_path / "a.png", 0, width, height)
    image, truth = letterbox(tmp_path / "a.png", truth_of([[0, 0, 20, 10]] if width == 80 else [[0, 0, 20, 20]], [3], [False]), 64)
    dark = image.sum(0) == 0
    across, down = (dark.all(axis) for axis in (0, 1))
    if width == 80:
        assert down.tolist() == [True] * 16 + [False] * 32 + [True] * 16
        assert truth.boxes.tolist() == [[0, 16, 16, 24]]
    else:
        assert across.tolist() == [True] * 16 + [False] * 32 + [True] * 16
        assert truth.boxes.tolist() == [[16, 0, 32, 16]]
    turned, other = mirrored(image, truth)
    assert torch.equal(turned[:, :, 0], image[:, :, -1])
    assert other.boxes[0].tolist() == [64 - truth.boxes[0, 2], truth.boxes[0, 1], 64 - truth.boxes[0, 0], truth.boxes[0, 3]]


def test_batches_of_photographs(tmp_path: Path) -> None:
    data = Coco(write_coco(tmp_path))
    in_order = list(Photos(data, 32, batch=4)())
    assert [len(part.truths) for part in in_order] == [4, 2]
    assert in_order[0].images.shape == (4, 3, 32, 32)
    mixed = Photos(data, 48, batch=4, seed=0)
    assert (len(Photos(data, 32, batch=4)), len(mixed)) == (2, 1)
    (first,), (second,) = mixed(), mixed()
    assert first.images.shape == (4, 3, 48, 48)
    assert not torch.equal(first.images, second.images)
    (again,) = Photos(data, 48, batch=4, seed=0)()
    assert torch.equal(first.images, again.images)
    reads = []

    class Watched:
        classes = data.classes

        def __len__(self) -> int:
            return len(data)

        def __getitem__(self, index: int) -> tuple[Path, Truth]:
            reads.append(index)
            return data[index]

    next(iter(Photos(Watched(), 32, batch=2)()))
    assert reads == [0, 1]  # and no more than was asked for


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text.replace("dog", "unicorn"), "'unicorn', none of VOC's 20 classes"),
        (lambda text: text.replace("<xmin>1<", "<xmin>left<"), "not an annotation of VOC"),
        (lambda text: text.replace("<xmin>1<", "<xmin>41<"), "has no inside"),
        (lambda text: text.replace("<xmin>1<", "<xmin>nan<"), "has no inside"),
        (lambda text: text.replace("<xmin>1</xmin>", ""), "has no bndbox/xmin"),
        (lambda text: text[:-20], "not an annotation of VOC"),
        (lambda text: '<!DOCTYPE a [<!ENTITY b "c">]>' + text.replace("dog", "&b;"), "declares a document type"),
    ],
)
def test_voc_that_is_not(tmp_path: Path, change: Any, words: str) -> None:
    path = write_voc(tmp_path / "voc", 1) / "Annotations" / "000000.xml"
    path.write_text(change(path.read_text()))
    with pytest.raises(CascError, match=words) as caught:
        Voc(tmp_path / "voc")[0]
    assert str(caught.value).startswith(f"{path}: ")
    assert "; " in str(caught.value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda text: text[:-5], "is not JSON"),
        (lambda text: "[" * 100_000, "is not JSON"),
        (lambda text: text.replace('"bbox"', '"box"'), "KeyError: 'bbox'"),
        (lambda text: text.replace('"image_id": 100', '"image_id": 99'), "KeyError: 99"),
        (lambda text: text.replace("[0, 0, 40, 20]", '"none"'), "not a file of COCO's instances"),
        (lambda text: "[]", "not a file of COCO's instances"),
        (lambda text: '{"images": [], "categories": [], "annotations": []}', "names no image"),
    ],
)
def test_coco_that_is_not(tmp_path: Path, change: Any, words: str) -> None:
    path = write_coco(tmp_path, 2) / "annotations" / "instances_train2017.json"
    path.write_text(change(path.read_text()))
    with pytest.raises(CascError, match=words) as caught:
        Coco(tmp_path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "; " in str(caught.value)


def test_files_that_are_missing(tmp_path: Path) -> None:
    data = Voc(write_voc(tmp_path, 2))
    (tmp_path / "Annotations" / "000001.xml").unlink()
    with pytest.raises(CascError, match=r"000001\.xml: cannot be read: No such file"):
        data[1]
    (tmp_path / "JPEGImages" / "000000.jpg").write_bytes(b"no picture")
    with pytest.raises(CascError, match=r"000000\.jpg: is not an image"):
        letterbox(*data[0], 32)
    (tmp_path / "JPEGImages" / "000000.jpg").unlink()
    with pytest.raises(CascError, match=r"000000\.jpg: cannot be read: No such file"):
        letterbox(*data[0], 32)
    (tmp_path / "ImageSets" / "Main" / "val.txt").write_text("\n")
    with pytest.raises(CascError, match="names no image"):
        Voc(tmp_path, "val")


@pytest.mark.parametrize(("dataset", "words"), [("voc", "VOCtrainval_06-Nov-2007.tar"), ("coco", "annotations_trainval2017.zip")])
def test_without_data_it_says_what_to_get(dataset: str, words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--dataset", dataset, "--data", str(tmp_path)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith(f"error: {tmp_path}")
    assert words in said.err
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(("dataset", "levels", "bits"), [("voc", 8, 4), ("coco", 4, 8)])
def test_with_data_it_trains(dataset: str, levels: int, bits: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (write_voc if dataset == "voc" else write_coco)(tmp_path / "data")
    out = tmp_path / "net.pt"
    words = f"--dataset {dataset} --size 32 --width 0.25 --epochs 2 --tune 1 --batch 3 --levels {levels} --bits {bits}"
    assert main([*words.split(), "--data", str(tmp_path / "data"), "--out", str(out)]) == 0
    said = capsys.readouterr().out
    assert f"detect_{dataset}: 6 training images, 6 test images" in said
    net = IntegerNet.load(out)
    assert net.levels == levels
    assert net.layers[0].synapses[0].bits == bits
    assert net.shapes["readout"] == (5 + (20 if dataset == "voc" else 2), 2, 2)
    results: Any = net.meta["results"]
    assert results["SNN = integer ANN on 3 test images"] is True
    assert 0 <= results["integer ANN, mAP@0.5:0.95"] <= results["integer ANN, mAP@0.5"] <= 1


def test_help_is_instant() -> None:
    code = "import sys; from examples.detection.__main__ import main; print('torch' in sys.modules, flush=True); main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("False\n")
    assert "--dataset" in done.stdout


# --- the network that is shipped --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def net() -> IntegerNet:
    return IntegerNet.load(NET)


@pytest.fixture(scope="module")
def scenes_held(split: tuple[Digits, Digits]) -> Scenes:
    return compose(split[1], digit_scenes.TEST, seeded(1))


def test_the_images_are_of_the_held_out_scenes(scenes_held: Scenes) -> None:
    with np.load(NET.with_name("digit_scenes_images.npz")) as file:
        kept = scenes_held.at(slice(len(file["images"])))
        assert len(kept.truths) == digit_scenes.KEPT
        assert np.array_equal(file["images"], kept.images[:, 0])
        for boxes, classes, truth in zip(file["boxes"], file["classes"], kept.truths, strict=True):
            assert boxes[classes >= 0].tolist() == truth.boxes.tolist()
            assert classes[classes >= 0].tolist() == truth.classes.tolist()
            assert (boxes[classes < 0] == -1).all()


def test_it_finds_what_it_has_not_seen(net: IntegerNet, scenes_held: Scenes) -> None:
    found = evaluate(net, scenes_held)
    results: Any = net.meta["results"]
    assert found >= 0.9
    assert found == pytest.approx(results["integer ANN, mAP@0.5"], abs=1e-4)
    assert evaluate(net, scenes_held, iou=COCO_IOUS) == pytest.approx(results["integer ANN, mAP@0.5:0.95"], abs=1e-4)


@pytest.mark.slow
def test_spikes_answer_as_the_integer_network_on_every_neuron(net: IntegerNet, scenes_held: Scenes) -> None:
    for part in scenes_held.at(slice(60)).batches(20):
        expected, trace = quantised_ann(net, part.images), simulate(net, part.images, record=False)
        assert trace.settled.all()
        assert all(torch.equal(one, other) for one, other in zip(trace.answer.counts, expected.counts, strict=True))
        assert torch.equal(trace.answer.sums, expected.sums)
        assert expected.sums.shape == (20, 960)
