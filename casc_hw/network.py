"""The integer network: what conversion makes, what the reference answers for, and what becomes gates.

`IntegerNet.save` and `IntegerNet.load` are its file, ``converted.pt``: tensors and plain values only, read with
``torch.load(weights_only=True)``, every field checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from casc_hw.errors import CascError
from casc_hw.fixed import Interval

FORMAT = "casc-net"
VERSION = 1
WEIGHT_BITS = (2, 3, 4, 6, 8)
MAX_LEVELS = 255
MAX_PIXEL = 255
MAX_SUM = 1 << 52
"""No sum of currents may reach this size, so that float64 and int64 both hold it exactly."""
MAX_FILE_BYTES = 1 << 30
_DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, MemoryError, OverflowError,
           AssertionError, ImportError, zipfile.BadZipFile, zlib.error, struct.error)  # fmt: skip
"""What zipfile and torch.load raise on a damaged archive."""


@dataclass(frozen=True, eq=False)
class Linear:
    """A fully connected layer in integers: ``current = weight @ events + bias``.

    Where ``threshold`` is given the layer ends in CIF neurons, else it is the read-out.

    Attributes
    ----------
    name: the module's name in the source network.
    weight: int64, shape (outputs, inputs), each in the signed range of ``bits``.
    bias: int64, shape (outputs,): added in every wake step.
    threshold: int64, shape (outputs,), positive; None for the read-out.
    bits: width of a weight, one of 2, 3, 4, 6, 8.
    scale: read-out only: integer units per unit of the float network's output (per wake step); else None.
    """

    name: str
    weight: Tensor
    bias: Tensor
    threshold: Tensor | None
    bits: int
    scale: float | None = None

    @property
    def inputs(self) -> int:
        return int(self.weight.shape[1])

    @property
    def outputs(self) -> int:
        return int(self.weight.shape[0])


@dataclass(frozen=True, eq=False)
class IntegerNet:
    """A converted network (see `casc_hw.conversion`), ready for the reference and for hardware.

    Attributes
    ----------
    name: a short identifier; names the build folder.
    levels: T, the wake steps and the highest spike count.
    margin: wake steps in a row before a sleep; equal to ``levels`` for one wake and one sleep.
    sleep: most sleep steps in one sleep; None: until no neuron spikes (exact).
    input_shape: shape of one image, without the batch.
    input_max: the pixel value that stands for 1.0; pixels are integers 0 to ``input_max``.
    layers: the layers in order; the last is the read-out and the only one without a threshold.
    """

    name: str
    levels: int
    margin: int
    sleep: int | None
    input_shape: tuple[int, ...]
    input_max: int
    layers: tuple[Linear, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    """Plain values a person may want to know (accuracies, how it was trained); nothing depends on it."""

    def __post_init__(self) -> None:
        _check(self)

    @property
    def spiking(self) -> tuple[Linear, ...]:
        """The layers with neurons."""
        return self.layers[:-1]

    @property
    def readout(self) -> Linear:
        return self.layers[-1]

    @property
    def inputs(self) -> int:
        return prod(self.input_shape)

    @property
    def digest(self) -> str:
        """SHA-256 (hex) of everything the answer depends on."""
        sha = hashlib.sha256()
        sha.update(json.dumps([FORMAT, VERSION, self.levels, self.margin, self.sleep, list(self.input_shape), self.input_max]).encode())
        for layer in self.layers:
            sha.update(json.dumps([layer.bits, list(layer.weight.shape), layer.scale]).encode())
            for tensor in (layer.weight, layer.bias, layer.threshold):
                if tensor is not None:
                    sha.update(tensor.numpy().astype("<i8").tobytes())
        return sha.hexdigest()

    def events(self, index: int) -> Interval:
        """The values of an event that enters layer ``index`` in spike coding: pixels, else spikes."""
        return Interval(0, self.input_max) if index == 0 else Interval(-1, 1)

    def check_images(self, images: Tensor) -> Tensor:
        """``images`` as int64 of shape (batch, inputs); CascError if their shape or a pixel does not fit."""
        if images.is_floating_point() and not torch.equal(images, images.round()):
            raise CascError(f"image: pixels must be integers 0 to {self.input_max}, got fractions; multiply by the pixel maximum and round")
        if images.ndim < 1 or images[0:1].numel() != self.inputs:
            raise CascError(
                f"image: shape {tuple(images.shape)} is not a batch of {self.input_shape}; "
                f"give an array of shape (N, {', '.join(map(str, self.input_shape))})"
            )
        flat = images.reshape(len(images), -1).to(torch.int64)
        if flat.numel() and not (int(flat.min()) >= 0 and int(flat.max()) <= self.input_max):
            raise CascError(
                f"image: pixels span {int(flat.min())} to {int(flat.max())}, the network takes 0 to {self.input_max}; rescale them"
            )
        return flat

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` whole or not at all."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "name": self.name,
            "levels": self.levels,
            "margin": self.margin,
            "sleep": self.sleep,
            "input": {"shape": list(self.input_shape), "max": self.input_max},
            "layers": [
                {
                    "type": "linear",
                    "name": layer.name,
                    "bits": layer.bits,
                    "weight": layer.weight.to(torch.int8),
                    "bias": layer.bias,
                    "threshold": layer.threshold,
                    "scale": layer.scale,
                }
                for layer in self.layers
            ],
            "meta": self.meta,
        }
        path = Path(path)
        try:
            with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}.", delete=False) as file:
                try:
                    torch.save(content, file)
                    file.close()
                    os.chmod(file.name, 0o644)
                    os.replace(file.name, path)
                except BaseException:
                    os.unlink(file.name)
                    raise
        except OSError as error:
            raise CascError(f"{path}: cannot be written: {error.strerror or error}; choose another place") from error

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> IntegerNet:
        """Read a ``converted.pt``; CascError, naming field and value, on anything that is not one."""
        path = Path(path)
        try:
            size = path.stat().st_size
            if size > MAX_FILE_BYTES:
                raise CascError(f"{path}: {size} bytes, the most is {MAX_FILE_BYTES}; this is not a converted network")
            if not zipfile.is_zipfile(path):
                raise CascError(f"{path}: not a converted network (no torch archive); make one with `python -m rtl_gen convert`")
            with zipfile.ZipFile(path) as archive:
                size = sum(member.file_size for member in archive.infolist())
                if size > MAX_FILE_BYTES:
                    raise CascError(f"{path}: {size} bytes unpacked, the most is {MAX_FILE_BYTES}; this is not a converted network")
                if damaged := archive.testzip():  # torch.load does not look at the checksums
                    raise CascError(f"{path}: damaged (checksum of {_short(damaged)}); copy or convert it again")
            content = torch.load(path, map_location="cpu", weights_only=True)
        except OSError as error:
            raise CascError(f"{path}: cannot be read: {error.strerror or error}; check the name") from error
        except pickle.UnpicklingError as error:
            raise CascError(
                f"{path}: holds something other than tensors and plain values, which is never executed; "
                "make it again with `python -m rtl_gen convert`"
            ) from error
        except _DAMAGE as error:
            raise CascError(f"{path}: damaged ({type(error).__name__}); copy or convert it again") from error
        try:
            return _decode(content)
        except CascError as error:
            raise CascError(f"{path}: {error}") from None


def _decode(content: Any) -> IntegerNet:
    fields = _Fields("file", content)
    kind = fields.take("format", str)
    if kind != FORMAT:
        raise CascError(f"format is {kind!r}, not {FORMAT!r}; make the file with `python -m rtl_gen convert`")
    version = fields.take("version", int)
    if version != VERSION:
        raise CascError(f"version is {version!r}, this program reads {VERSION}; convert the network again")
    source = _Fields("input", fields.take("input", dict))
    layers = []
    for index, entry in enumerate(fields.take("layers", list)):
        item = _Fields(f"layer {index}", entry)
        name = item.take("name", str)
        item.where = name or item.where
        kind = item.take("type", str)
        if kind != "linear":
            raise CascError(f"{item.where}: type {kind!r} is not known; use 'linear'")
        layers.append(
            Linear(
                name=name,
                weight=item.tensor("weight", 2),
                bias=item.tensor("bias", 1),
                threshold=item.tensor("threshold", 1, optional=True),
                bits=item.take("bits", int),
                scale=item.take("scale", float, optional=True),
            )
        )
    shape = source.take("shape", list)
    return IntegerNet(
        name=fields.take("name", str),
        levels=fields.take("levels", int),
        margin=fields.take("margin", int),
        sleep=fields.take("sleep", int, optional=True),
        input_shape=tuple(shape),
        input_max=source.take("max", int),
        layers=tuple(layers),
        meta=fields.take("meta", dict),
    )


class _Fields:
    """Takes checked fields out of a dictionary read from a file."""

    def __init__(self, where: str, content: Any):
        if not isinstance(content, dict):
            raise CascError(f"{where}: is a {type(content).__name__}, not a dictionary of fields; convert the network again")
        self.where = where
        self.content = content

    def take(self, name: str, kind: type, optional: bool = False) -> Any:
        if name not in self.content:
            raise CascError(f"{self.where}: the field {name!r} is missing; convert the network again")
        value = self.content[name]
        if value is None and optional:
            return None
        if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
            raise CascError(f"{self.where}: {name} is {_short(value)}, not a value of type {kind.__name__}; convert the network again")
        return value

    def tensor(self, name: str, ndim: int, optional: bool = False) -> Any:
        value = self.take(name, Tensor, optional)
        if value is None:
            return None
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CascError(f"{self.where}: {name} is not a dense tensor in memory; convert the network again")
        if value.ndim != ndim:
            raise CascError(f"{self.where}: {name} has shape {tuple(value.shape)}, expected {ndim} dimensions; convert the network again")
        if value.numel() * 8 > MAX_FILE_BYTES:
            raise CascError(f"{self.where}: {name} has shape {tuple(value.shape)}, too large; convert the network again")
        if value.dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64):
            common = value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
            bad = value[~torch.isfinite(value)].tolist() if common else []
            shown = f"holds {bad[0]}" if bad else f"is of type {value.dtype}"
            raise CascError(f"{self.where}: {name} {shown}, not integers; convert the network again")
        return value.detach().to(torch.int64)


def _check(net: IntegerNet) -> None:
    """CascError unless every field of ``net`` is in range and the layers fit each other."""
    if not net.name.replace("_", "").replace("-", "").isalnum() or not net.name.isascii() or len(net.name) > 64:
        raise CascError(f"name: {_short(net.name)} is not 1 to 64 letters, digits, '-' or '_'; give another name")
    _within("levels", net.levels, 1, MAX_LEVELS, "convert with fewer levels")
    _within("margin", net.margin, 1, net.levels, "use a number of wake steps from 1 to levels")
    if net.sleep is not None:
        _within("sleep", net.sleep, 0, 1 << 15, "use None to sleep until no neuron spikes")
    _within("input max", net.input_max, 1, MAX_PIXEL, "use 8-bit pixels or fewer")
    if not net.input_shape:
        raise CascError("input shape: is empty; give the shape of one image")
    for size in net.input_shape:
        if not isinstance(size, int) or isinstance(size, bool):
            raise CascError(f"input shape: {_short(size)} is not an integer; give the shape of one image")
        _within("input shape", size, 1, 1 << 24, "give the shape of one image")
    _check_meta(net.meta)
    if len(net.layers) < 2:
        raise CascError(
            f"layers: {len(net.layers)} given, at least one spiking layer and a read-out are needed; add a Linear with an activation"
        )
    inputs = net.inputs
    for index, layer in enumerate(net.layers):
        _check_layer(net, index, layer, inputs)
        inputs = layer.outputs


def _check_layer(net: IntegerNet, index: int, layer: Linear, inputs: int) -> None:
    where, last = layer.name or f"layer {index}", index == len(net.layers) - 1
    if not 0 < len(layer.name) <= 64 or not layer.name.isprintable():
        raise CascError(f"layer {index}: name {_short(layer.name)} is not 1 to 64 printable characters; give another name")
    if layer.name in (other.name for other in net.layers[:index]):
        raise CascError(f"layer {index}: name {_short(layer.name)} is taken by an earlier layer; give another name")
    if layer.bits not in WEIGHT_BITS:
        raise CascError(f"{where}: {_short(layer.bits)}-bit weights; use one of {', '.join(map(str, WEIGHT_BITS))}")
    if layer.weight.numel() == 0:
        raise CascError(f"{where}: weight has shape {tuple(layer.weight.shape)}, which is empty; give it at least one output")
    if layer.inputs != inputs:
        raise CascError(f"{where}: takes {layer.inputs} inputs, but {inputs} arrive; fix the layer sizes")
    half = 1 << (layer.bits - 1)
    low, high = int(layer.weight.min()), int(layer.weight.max())
    if low < -half or high >= half:
        raise CascError(f"{where}: weights span {low} to {high}, beyond {layer.bits} bits; use more bits")
    if layer.bias.shape != (layer.outputs,):
        raise CascError(f"{where}: bias has shape {tuple(layer.bias.shape)}, expected ({layer.outputs},); convert the network again")
    if last != (layer.threshold is None):
        say = "the read-out has a threshold" if last else "has no threshold, but is not the last layer"
        raise CascError(f"{where}: {say}; end the network with one Linear that has no activation")
    if last and (layer.scale is None or not 0 < layer.scale < float("inf")):
        raise CascError(f"{where}: scale is {layer.scale!r}, not a positive number; convert the network again")
    if layer.threshold is not None:
        if layer.threshold.shape != (layer.outputs,):
            raise CascError(
                f"{where}: threshold has shape {tuple(layer.threshold.shape)}, expected ({layer.outputs},); convert the network again"
            )
        channel = int(layer.threshold.argmin())
        if int(layer.threshold[channel]) < 1:
            raise CascError(
                f"{where}: threshold of channel {channel} is {int(layer.threshold[channel])}, it must be positive; convert again"
            )
        if int(layer.threshold.max()) >= MAX_SUM:
            raise CascError(f"{where}: threshold reaches {int(layer.threshold.max())}, the most is {MAX_SUM - 1}; use fewer weight bits")
    if (size := max(abs(int(layer.bias.min())), abs(int(layer.bias.max())))) >= MAX_SUM:
        raise CascError(f"{where}: a bias of size {size}, the most is {MAX_SUM - 1}; use fewer weight bits")
    unit = net.input_max if index == 0 else 2  # a spike count may fall by T and rise by T
    worst = net.levels * int((layer.weight.abs().sum(1) * unit + layer.bias.abs()).max())
    if worst >= MAX_SUM:
        raise CascError(f"{where}: its sums may reach {worst}, the most is {MAX_SUM - 1}; use fewer weight bits or levels")


def _check_meta(meta: dict[str, Any]) -> None:
    """CascError unless ``meta`` can be read back without executing anything."""
    rest = list(meta.items())
    while rest:
        key, value = rest.pop()
        if type(key) is not str:
            raise CascError(f"meta: the key {_short(key)} is not a text; use plain dictionaries")
        if type(value) is dict:
            rest.extend(value.items())
        elif type(value) in (list, tuple):
            rest.extend((key, item) for item in value)
        elif type(value) not in (str, int, float, bool, type(None)):
            raise CascError(f"meta: {_short(key)} holds {_short(value)}; use texts, numbers, lists and dictionaries")


def _within(where: str, value: Any, low: int, high: int, advice: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise CascError(f"{where}: {_short(value)} is not an integer from {low} to {high}; {advice}")


def _short(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    text = repr(value) if isinstance(value, (int, float, str, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."
