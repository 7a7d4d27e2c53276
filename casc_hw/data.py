"""Images and models from files, for the command lines."""

from __future__ import annotations

import pickle
import runpy
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from casc_hw.errors import CascError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from casc_hw.network import Network

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
DEFAULT_NET = EXAMPLES / "mnist_mlp.pt"


def load_array(path: Path, name: str = "images", optional: bool = False) -> Any:
    """The array of a ``.npy``, or ``name`` of a ``.npz`` (None if it is ``optional`` and not there)."""
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.lib.npyio.NpzFile):
            with loaded:
                return None if optional and name not in loaded else loaded[name]
    except OSError as error:
        raise CascError(f"{path}: cannot be read: {error.strerror or error}; check the name") from error
    except (ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise CascError(f"{path}: not a .npy, nor a .npz with {name!r}; save one with numpy.save") from error
    if loaded.dtype.kind not in "uif":
        raise CascError(f"{path}: holds values of type {loaded.dtype}, not pixels; save integers")
    return None if optional else loaded


def enough(images: Tensor, count: int | None, where: str) -> None:
    """CascError if ``images`` from ``where`` are fewer than ``count``."""
    if count is not None and count > len(images):
        raise CascError(f"images: {count} were asked for, {where} has {len(images)}; ask for fewer")


def load_images(net: Network, path: Path | None, net_path: Path) -> tuple[Tensor, Any, str]:
    """Images for ``net``: int64 (N, *shape), their labels or None, and in words where they come from.

    From ``path`` (``.npy``, or ``.npz`` with ``images`` and perhaps ``labels``), else ``<net>_images.npz`` beside the network,
    else 16 images of seeded random pixels. A single channel may be left out. CascError if they do not fit the network.
    """
    import torch

    beside = net_path.with_name(f"{net_path.stem}_images.npz")
    if path is None and not beside.exists():
        images = torch.randint(0, net.input_max + 1, (16, *net.input_shape), generator=torch.Generator().manual_seed(1))
        return images, None, f"random pixels ({beside} is not there)"
    path = path or beside
    array = load_array(path)
    shapes = [net.input_shape, (net.inputs,)] + [net.input_shape[1:]] * (len(net.input_shape) == 3 and net.input_shape[0] == 1)
    if array.shape in shapes:
        array = array[None]
    if array.shape[1:] not in shapes:
        raise CascError(f"{path}: shape {array.shape} is not (N, {', '.join(map(str, net.input_shape))}); reshape it")
    pixels = net.check_images(torch.from_numpy(array)).reshape(-1, *net.input_shape)
    return pixels, load_array(path, "labels", optional=True), str(path)


def load_calibration(path: Path, shape: tuple[int, ...], input_max: int) -> Tensor:
    """Pixels as a network sees them: float, 0 to 1, shape (N, *shape)."""
    import torch

    array = load_array(path)
    if array.shape[1:] != shape:
        raise CascError(f"{path}: shape {array.shape} is not (N, {', '.join(map(str, shape))}); reshape it or give the right --shape")
    return torch.from_numpy(array.astype(np.float32)) / input_max


def load_labelled(path: Path, shape: tuple[int, ...], input_max: int) -> tuple[Tensor, Tensor]:
    """``images`` and ``labels`` of a ``.npz``: integer pixels (N, *shape), and classes, int64 (N,). A single channel may be left out."""
    import torch

    images, labels = load_array(path), load_array(path, "labels", optional=True)
    if labels is None:
        raise CascError(f"{path}: holds no 'labels'; save both with numpy.savez(path, images=..., labels=...)")
    if images.ndim < 1 or labels.dtype.kind not in "ui" or labels.shape != images.shape[:1]:
        raise CascError(f"{path}: its labels are {labels.dtype} of shape {labels.shape} for {len(images)} images; save integers (N,)")
    if not len(images):
        raise CascError(f"{path}: holds no images; save some")
    if images.shape[1:] not in (shape, shape[1:] if shape[:1] == (1,) else shape):
        raise CascError(f"{path}: shape {images.shape} is not (N, {', '.join(map(str, shape))}); reshape it or give the right --shape")
    if not 0 <= images.min() <= images.max() <= input_max or (images.dtype.kind == "f" and not (images == np.rint(images)).all()):
        raise CascError(
            f"{path}: its pixels, {images.min()} to {images.max()}, are not integers 0 to {input_max}; rescale them or give --input-max"
        )
    return torch.from_numpy(images.astype(np.uint8)).reshape(-1, *shape), torch.from_numpy(labels.astype(np.int64))


def _its_own(file: str, what: str, run: Callable[[], Any]) -> Any:
    """What the user's own code returns; CascError if it raises."""
    try:
        return run()
    except Exception as error:
        said = " ".join(str(error).split())[:200]
        raise CascError(f"{file}: {what} raised {type(error).__name__} ({said}); `--debug` before the verb shows where") from error


def load_model(factory: str, weights: Path | None) -> nn.Module:
    """Call ``FILE.py:FUNCTION``, which is the user's own code, and load ``weights`` (a state_dict, never executed) into the model."""
    import torch

    file, _, function = factory.rpartition(":")
    if not file or not Path(file).is_file():
        raise CascError(f"model: {factory!r} does not name a file and a function in it; write FILE.py:FUNCTION")
    made = _its_own(file, "it", lambda: runpy.run_path(file)).get(function)
    if not callable(made):
        raise CascError(f"{file}: has no function {function!r}; write FILE.py:FUNCTION")
    model = _its_own(file, function, made)
    if not isinstance(model, torch.nn.Module):
        raise CascError(f"{file}: {function} returned a {type(model).__name__}, not a torch.nn.Module; return the network")
    if weights is not None:
        load_weights(model, load_state(weights), weights)
    return model


def load_state(weights: Path) -> dict[str, Tensor]:
    """What ``weights`` holds, never executed."""
    import torch

    try:
        state = torch.load(weights, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CascError(f"{weights}: cannot be read: {error.strerror or error}; check the name") from error
    except _BROKEN as error:
        raise _no_state(weights, error) from error
    if not isinstance(state, dict):
        raise _no_state(weights, TypeError(f"it holds a {type(state).__name__}"))
    return state


def load_weights(model: nn.Module, state: dict[str, Tensor], weights: Path) -> None:
    """Put ``state``, which comes from ``weights``, into ``model``."""
    try:
        model.load_state_dict(state)
    except _BROKEN as error:
        raise _no_state(weights, error) from error


_BROKEN = (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError)


def _no_state(weights: Path, error: Exception) -> CascError:
    reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
    return CascError(f"{weights}: not a state_dict of this model ({reason}); save one with torch.save(model.state_dict())")
