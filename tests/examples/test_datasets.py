"""Data sets: small files in exactly the published formats, read back; and what is said of those that are not."""

from __future__ import annotations

import gzip
import io
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from casc_hw import CascError
from examples.datasets import SETS, Data, digits, load, mnist5k

CHANCE = np.random.default_rng(0)


def pixels(*shape: int) -> np.ndarray:
    return CHANCE.integers(0, 256, shape, dtype=np.uint8)


def text(value: str) -> bytes:
    """How Python 2 pickles a str."""
    return b"U" + bytes([len(value)]) + value.encode()


def python2(entries: dict[str, np.ndarray | list[int]], by_column: bool = False) -> bytes:
    """A dict as Python 2 pickled it with protocol 2: strs, lists of ints, and arrays of uint8, with numpy's names of then."""
    out = b"\x80\x02}("
    for name, value in entries.items():
        out += text(name)
        if isinstance(value, list):
            out += b"](" + b"".join(b"K" + bytes([of]) for of in value) + b"e"
            continue
        raw = value.tobytes(order="F" if by_column else "C")
        out += b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85" + text("b") + b"\x87R"
        out += b"(K\x01" + b"".join(b"M" + struct.pack("<H", of) for of in value.shape) + b"\x86"
        out += b"cnumpy\ndtype\n" + text("u1") + b"K\x00K\x01\x87R(K\x03" + text("|") + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        out += (b"\x88" if by_column else b"\x89") + b"T" + struct.pack("<i", len(raw)) + raw + b"tb"
    return out + b"u."


def equal(data: Data, images: np.ndarray, labels: list[int], held: np.ndarray, held_labels: list[int]) -> None:
    for part, wanted, classes in ((data.train, images, labels), (data.test, held, held_labels)):
        read, found = next(part.batches(len(part)))
        assert read.dtype == torch.uint8
        assert np.array_equal(read.numpy().reshape(wanted.shape), wanted)
        assert found.tolist() == part.labels.tolist() == classes


def cifar10(folder: Path, form: str) -> tuple[np.ndarray, list[int], np.ndarray, list[int]]:
    """Three images a batch."""
    images, labels = pixels(18, 3072), [int(of) for of in CHANCE.integers(0, 10, 18)]
    within = folder / f"cifar-10-batches-{'bin' if form == 'bin' else 'py'}"
    within.mkdir()
    for index, name in enumerate([*(f"data_batch_{of}" for of in range(1, 6)), "test_batch"]):
        part = slice(3 * index, 3 * index + 3)
        if form == "bin":
            rows = np.concatenate([np.array(labels[part], np.uint8)[:, None], images[part]], 1)
            (within / f"{name}.bin").write_bytes(rows.tobytes())
        elif form.startswith("python2"):
            entries = {"data": images[part], "labels": labels[part]}
            (within / name).write_bytes(python2(entries, by_column=form.endswith("column")))
        else:
            (within / name).write_bytes(pickle.dumps({b"data": images[part], b"labels": labels[part]}, protocol=2))
    return images[:15], labels[:15], images[15:], labels[15:]


@pytest.mark.parametrize("form", ["bin", "python2", "python2, by column", "python3"])
def test_cifar10(tmp_path: Path, form: str) -> None:
    wanted = cifar10(tmp_path, form)
    data = load("cifar10", tmp_path)
    equal(data, *wanted)
    assert (data.classes, data.train.shape, data.input_max) == (10, (3, 32, 32), 255)
    planes = wanted[0].reshape(-1, 3, 32, 32) / 255
    assert np.allclose(data.mean, planes.mean((0, 2, 3)))
    assert np.allclose(data.std, planes.std((0, 2, 3)))
    equal(load("cifar10", next(tmp_path.iterdir())), *wanted)  # the folder itself


def test_pickles_by_python_2_are_what_they_seem() -> None:
    """The test's writer, read by the real pickle."""
    rows = pixels(2, 300)
    for by_column in (False, True):
        loaded = pickle.loads(python2({"data": rows, "labels": [3, 7]}, by_column).replace(b"numpy.core", b"numpy._core"), encoding="bytes")
        assert np.array_equal(loaded[b"data"], rows)
        assert loaded[b"labels"] == [3, 7]


@pytest.mark.parametrize("form", ["bin", "py"])
def test_cifar100(tmp_path: Path, form: str) -> None:
    images, fine = pixels(5, 3072), [99, 0, 12, 50, 3]
    within = tmp_path / ("cifar-100-binary" if form == "bin" else "cifar-100-python")
    within.mkdir()
    for name, part in (("train", slice(3)), ("test", slice(3, 5))):
        if form == "bin":
            rows = [bytes([19, label]) + image.tobytes() for label, image in zip(fine[part], images[part], strict=True)]
            (within / f"{name}.bin").write_bytes(b"".join(rows))
        else:
            coarse = [19] * len(fine[part])
            (within / name).write_bytes(python2({"data": images[part], "coarse_labels": coarse, "fine_labels": fine[part]}))
    data = load("cifar100", tmp_path)
    equal(data, images[:3], fine[:3], images[3:], fine[3:])
    assert data.classes == 100


def idx(values: np.ndarray) -> bytes:
    return bytes((0, 0, 8, values.ndim)) + struct.pack(f">{values.ndim}I", *values.shape) + values.tobytes()


def write_mnist(folder: Path, packed: bool) -> tuple[np.ndarray, list[int], np.ndarray, list[int]]:
    images, labels = pixels(7, 28, 28), [0, 9, 4, 4, 1, 7, 2]
    for name, part in (("train", slice(5)), ("t10k", slice(5, 7))):
        for kind, values in (("images-idx3", images[part]), ("labels-idx1", np.array(labels[part], np.uint8))):
            content, path = idx(values), folder / f"{name}-{kind}-ubyte"
            (path.with_name(f"{path.name}.gz") if packed else path).write_bytes(gzip.compress(content) if packed else content)
    return images[:5], labels[:5], images[5:], labels[5:]


@pytest.mark.parametrize("packed", [False, True])
def test_mnist(tmp_path: Path, packed: bool) -> None:
    wanted = write_mnist(tmp_path, packed)
    data = load("mnist", tmp_path)
    equal(data, *wanted)
    assert data.train.shape == (1, 28, 28)


def write_imagenet(folder: Path) -> None:
    """Two classes of two images to train on, upright and lying, and one for the test; one colour each, of split, class and number."""
    for split, value in (("train", 50), ("val", 150)):
        for label, name in enumerate(("n01440764", "n02102040")):
            (folder / split / name).mkdir(parents=True)
            for index, size in enumerate([(320, 256), (256, 400)][: 2 if split == "train" else 1]):
                image = Image.new("RGB", size, (value, 100 * label, index))
                image.save(folder / split / name / f"{name}_{index}.JPEG", quality=95)


def test_imagenet(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    data = load("imagenet", tmp_path)
    assert (data.classes, data.train.shape) == (2, (3, 224, 224))
    assert (data.train.labels.tolist(), data.test.labels.tolist()) == ([0, 0, 1, 1], [0, 1])
    for part, value in ((data.train, 50), (data.test, 150)):
        for images, labels in part.batches(1):
            assert images.shape == (1, 3, 224, 224)
            assert (images[0, 0].int() - value).abs().max() <= 2
            assert (images[0, 1].int() - 100 * int(labels)).abs().max() <= 2


def test_an_image_is_scaled_and_cut_in_the_middle(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    columns = np.zeros((512, 768, 3), np.uint8) + (np.arange(768) // 3).astype(np.uint8)[None, :, None]  # halved: 384 x 256, cut at 80
    Image.fromarray(columns).save(tmp_path / "val" / "n01440764" / "n01440764_0.JPEG", quality=100)
    image = load("imagenet", tmp_path).test.read(torch.tensor([0]))[0]
    wanted = ((torch.arange(224) + 80.5) * 2 - 0.5) / 3 - 1 / 3
    assert (image.double() - wanted).abs().max() < 3


def test_images_are_opened_when_asked_for(tmp_path: Path) -> None:
    write_imagenet(tmp_path)
    bad = tmp_path / "train" / "n02102040" / "n02102040_1.JPEG"
    bad.write_bytes(bad.read_bytes()[:300])
    train = load("imagenet", tmp_path).train
    assert len(train.read(torch.tensor([0, 1, 2]))) == 3
    with pytest.raises(CascError, match=r"n02102040_1\.JPEG: no image that can be read .*; download it again or remove it"):
        train.read(torch.tensor([3]))


@pytest.mark.parametrize(
    ("make", "shape", "top", "sizes"), [(digits, (1, 8, 8), 16, (1437, 360)), (mnist5k, (1, 28, 28), 255, (4000, 1000))]
)
def test_sets_that_come_with_packages(make: Callable[[], Data], shape: tuple[int, ...], top: int, sizes: tuple[int, int]) -> None:
    data = make()
    assert (len(data.train), len(data.test), data.train.shape, data.input_max, data.classes) == (*sizes, shape, top, 10)
    images = torch.cat([images for images, _ in data.train.batches(500)])
    assert int(images.max()) == top
    assert data.mean[0] == pytest.approx((images.double() / top).mean().item())


def test_batches_are_in_order_or_shuffled_by_the_seed() -> None:
    train = digits().train

    def labels(seed: int | None) -> list[int]:
        chance = None if seed is None else torch.Generator().manual_seed(seed)
        return torch.cat([labels for _, labels in train.batches(100, chance)]).tolist()

    assert labels(None) == train.labels.tolist()
    assert labels(1) == labels(1) != labels(2)
    assert sorted(labels(1)) == sorted(labels(None))


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("evil"),)  # type: ignore[return-value]


def corrupt(name: str, folder: Path) -> Path:
    """Break the set of ``name`` in ``folder``; the file that is to be named."""
    kind, _, damage = name.partition(": ")
    if kind.startswith("cifar"):
        cifar10(folder, "python2" if kind == "cifar py" else "bin")
        path = next(folder.rglob("data_batch_3*"))
    elif kind == "mnist":
        write_mnist(folder, packed=damage == "gzip")
        path = folder / ("t10k-images-idx3-ubyte" + ".gz" * (damage == "gzip"))
    else:
        write_imagenet(folder)
        path = folder / "val" / "n01440764" / "n01440764_0.JPEG"
    content = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "cut" or damage == "gzip":
        path.write_bytes(content[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "label":
        path.write_bytes(bytes([10]) + content[1:])
        path = path.with_name("data_batch_1.bin")
    elif damage == "magic":
        path.write_bytes(b"\x89PNG" + content[4:])
    elif damage == "code":
        path.write_bytes(pickle.dumps({"data": Evil(), "labels": [1]}))
    elif damage == "other":
        path.write_bytes(pickle.dumps([1, 2]))
    elif damage == "type":
        path.write_bytes(content.replace(text("u1"), text("f8")))
    elif damage == "count":
        path.write_bytes(idx(pixels(1, 28, 28)))
        path = folder
    elif damage == "class":
        path.parent.rename(path.parents[1] / "n00000001")
        path = folder
    elif damage == "no images":
        path.unlink()
        path = path.parent
    return path


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("cifar bin: missing", "cannot be read: No such file or directory; download it again"),
        ("cifar bin: cut", "9212 bytes are no whole number of images of 3073; download it again"),
        ("cifar bin: empty", "0 bytes are no whole number"),
        ("cifar bin: label", "label 10 of 10 classes"),
        ("cifar py: missing", "cannot be read"),
        ("cifar py: cut", "no CIFAR batch .*; download it again"),
        ("cifar py: empty", "no CIFAR batch .EOFError"),
        ("cifar py: code", "no CIFAR batch .UnpicklingError: it asks for"),
        ("cifar py: other", "no CIFAR batch .AttributeError"),
        ("cifar py: type", "data of type b'f8'"),
        ("mnist: missing", "is not there, nor .*gz; put train-images"),
        ("mnist: cut", "1561 values where 2 x 28 x 28 were announced"),
        ("mnist: gzip", "damaged .*; download it again"),
        ("mnist: empty", "starts with nothing, not 00000803"),
        ("mnist: magic", "starts with 89504e47, not 00000803"),
        ("mnist: count", "1 t10k images, but 2 labels"),
        ("imagenet: class", "class 'n00000001' is in one of train and val only"),
        ("imagenet: no images", "has no image .*; unpack it again"),
    ],
)
def test_what_is_wrong_is_said_by_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str) -> None:
    monkeypatch.chdir(tmp_path)
    path = corrupt(name, tmp_path)
    with pytest.raises(CascError, match=says) as caught:
        load(name.split()[0].rstrip(":").replace("cifar", "cifar10"), tmp_path)
    assert str(path) in str(caught.value)
    assert not Path("evil").exists()


@pytest.mark.parametrize("damage", ["text", "cut png", "nothing"])
def test_a_corrupt_image_is_named(tmp_path: Path, damage: str) -> None:
    write_imagenet(tmp_path)
    png = io.BytesIO()
    Image.fromarray(pixels(300, 300, 3)).save(png, "PNG")
    bad = tmp_path / "val" / "n02102040" / "n02102040_0.JPEG"
    bad.write_bytes({"text": b"not an image", "cut png": png.getvalue()[:5000], "nothing": b""}[damage])
    with pytest.raises(CascError, match=r"n02102040_0\.JPEG: no image that can be read"):
        list(load("imagenet", tmp_path).test.batches(2))


@pytest.mark.parametrize("name", [name for name, (_, advice) in SETS.items() if advice])
def test_without_its_files_a_set_says_what_to_download(tmp_path: Path, name: str) -> None:
    advice = SETS[name][1]
    with pytest.raises(CascError) as caught:
        load(name, None)
    assert f"{name}: no folder was given; {advice}" in str(caught.value)
    with pytest.raises(CascError) as caught:
        load(name, tmp_path)
    assert str(tmp_path) in str(caught.value)
    assert advice in str(caught.value)
    with pytest.raises(CascError, match="is not a folder; "):
        load(name, tmp_path / "nowhere")


def test_a_set_that_is_not_known() -> None:
    with pytest.raises(CascError, match="there is no set 'svhn'; take one of cifar10, cifar100, mnist, imagenet, digits, mnist5k"):
        load("svhn", None)
