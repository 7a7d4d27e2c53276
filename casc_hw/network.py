"""The integer network: what conversion makes, what the reference answers for, and what becomes gates.

`IntegerNet.save` and `IntegerNet.load` are its file, ``converted.pt``: tensors and plain values only, read with
``torch.load(weights_only=True)``, every field checked.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import pickletools
import struct
import tempfile
import zipfile
import zlib
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from casc_hw.errors import CascError
from casc_hw.fixed import Interval

FORMAT = "casc-net"
VERSION = 2
IMAGE = "image"
"""The name by which a network's nodes call its input."""
MapShape = tuple[int, int, int]
"""(channels, height, width)."""
WEIGHT_BITS = (2, 3, 4, 6, 8)
SHORTCUT_BITS = 24
"""Most bits of a shortcut's weight, which is a threshold over a unit."""
MAX_LEVELS = 255
MAX_PIXEL = 255
MAX_SUM = 1 << 52
"""No sum of currents may reach this size, so that float64 and int64 both hold it exactly."""
MAX_MAP = 1 << 24
"""Most pixels, neurons or windows of a map."""
MAX_META = 100_000
"""Most values in ``meta``."""
MAX_FILE_BYTES = 1 << 31
MAX_INFLATION = 1 << 28
"""Most bytes by which an archive may grow when it is unpacked; those of torch.save do not."""
SLACK = 1 << 20
"""Numbers that tensors may have beyond the bytes of the storages they are views of."""
_DAMAGE = (RuntimeError, EOFError, ValueError, KeyError, TypeError, AttributeError, IndexError, MemoryError, OverflowError,
           AssertionError, ImportError, zipfile.BadZipFile, zlib.error, struct.error)  # fmt: skip
"""What zipfile and torch.load raise on a damaged archive."""
MAX_PICKLE_BYTES = 1 << 22
"""Most bytes of the fields in a file, tensors excepted."""
MAX_META_TEXT = 1 << 20
"""Most characters in ``meta``."""
_PLAIN = {f"torch {kind}Storage" for kind in ("Bool", "Byte", "Char", "Short", "Int", "Long", "Half", "BFloat16", "Float", "Double")}
_PLAIN |= {"collections OrderedDict", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_parameter"}
"""What a file may call for. ``weights_only`` would allow more, such as ``bytearray(n)``, and so any amount of memory."""
_CALLS = ("GLOBAL", "STACK_GLOBAL", "INST", "OBJ", "NEWOBJ", "NEWOBJ_EX", "EXT1", "EXT2", "EXT4")
_FOLDER = 0x10
"""Attribute of a folder in a zip archive."""


@dataclass(frozen=True, eq=False)
class Synapses:
    """Weighted connections from one map to a layer: ``current = weight * events``, dense or a convolution.

    Attributes
    ----------
    source: `IMAGE`, or the name of an earlier node.
    weight: int64, each in the signed range of ``bits``; (outputs, inputs): dense, over the source flattened in (C, H, W) order,
        to a map (outputs, 1, 1); (outputs, inputs / groups, kh, kw): a convolution.
    bits: width of a weight, one of 2, 3, 4, 6, 8; of a `shortcut` 1 to 24.
    stride, padding: of a convolution, (vertical, horizontal); zeros are padded, fewer than the kernel is large.
    groups: of a convolution.
    """

    source: str
    weight: Tensor
    bits: int
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int] = (0, 0)
    groups: int = 1

    @property
    def outputs(self) -> int:
        """Channels of the layer."""
        return int(self.weight.shape[0])

    @property
    def dense(self) -> bool:
        """Whether every source reaches every neuron, rather than those under its kernel."""
        return self.weight.ndim == 2

    @property
    def kernel(self) -> tuple[int, int]:
        """(vertical, horizontal); (1, 1) where dense."""
        return (1, 1) if self.dense else (int(self.weight.shape[2]), int(self.weight.shape[3]))

    @property
    def shortcut(self) -> bool:
        """Whether each channel has one weight: a depthwise convolution of 1 x 1, as an identity needs."""
        return self.weight.shape[1:] == (1, 1, 1) and self.groups == self.outputs


@dataclass(frozen=True, eq=False)
class Layer:
    """Neurons, or the read-out, on which the currents of all ``synapses`` add.

    Where ``threshold`` is given the layer ends in CIF neurons, else it is the read-out.

    Attributes
    ----------
    name: the module's name in the source network.
    synapses: at least one; all give a map of the same shape (C, H, W).
    bias: int64, shape (C,): added in every wake step.
    threshold: int64, shape (C,), positive; None for the read-out.
    scale: read-out only: integer units per unit of the float network's output (per wake step); else None.
    """

    name: str
    synapses: tuple[Synapses, ...]
    bias: Tensor
    threshold: Tensor | None
    scale: float | None = None

    @property
    def outputs(self) -> int:
        """Channels."""
        return int(self.bias.shape[0])

    @classmethod
    def dense(
        cls, name: str, source: str, weight: Tensor, bias: Tensor, threshold: Tensor | None, bits: int, scale: float | None = None
    ) -> Layer:
        """A fully connected layer: ``weight`` (outputs, inputs)."""
        return cls(name, (Synapses(source, weight, bits),), bias, threshold, scale)


@dataclass(frozen=True, eq=False)
class Pool:
    """Windows over one map, no neurons.

    Attributes
    ----------
    name: the module's name in the source network.
    source: a spiking layer or another pool.
    kind: "average": the *sum* of a window (1 / size is in the next thresholds); "max": LIPool, what the largest count of a window gained.
    kernel, stride, padding: (vertical, horizontal); zeros are padded, fewer than the kernel is large.
    """

    name: str
    source: str
    kind: Literal["average", "max"]
    kernel: tuple[int, int]
    stride: tuple[int, int]
    padding: tuple[int, int] = (0, 0)


Node = Layer | Pool


def output_shape(part: Synapses | Pool, source: MapShape) -> MapShape:
    """Shape of the map that ``part`` makes of one of shape ``source``; sizes below 1 where the kernel is larger than the padded map."""
    if isinstance(part, Synapses) and part.dense:
        return part.outputs, 1, 1
    height, width = (
        (size + 2 * padding - kernel) // stride + 1
        for size, kernel, stride, padding in zip(source[1:], part.kernel, part.stride, part.padding, strict=True)
    )
    return part.outputs if isinstance(part, Synapses) else source[0], height, width


def reached(sizes: tuple[int, int], kernel: tuple[int, int], stride: tuple[int, int], padding: tuple[int, int]) -> Tensor:
    """By place of a map of ``sizes``, how many windows of a convolution it is in, and so the places it reaches: int64 (height, width)."""

    def along(size: int, kernel: int, stride: int, padding: int) -> Tensor:
        windows = torch.arange((size + 2 * padding - kernel) // stride + 1)
        distance = torch.arange(size)[:, None] + padding - stride * windows
        return ((distance >= 0) & (distance < kernel)).sum(1)

    down, across = map(along, sizes, kernel, stride, padding)
    return torch.outer(down, across)


def to_wire(values: Tensor, shape: MapShape) -> Tensor:
    """``values`` (..., C * H * W) of maps of ``shape`` in the order in which they travel on chip: by y, x, and channel innermost."""
    return values.reshape(*values.shape[:-1], *shape).movedim(-3, -1).flatten(-3)


@dataclass(frozen=True, eq=False)
class Network:
    """Layers and pools between an image and a read-out, and the schedule in which they run.

    Attributes
    ----------
    name: a short identifier; names the build folder.
    levels: T, the wake steps and the highest spike count.
    margin: wake steps in a row before a sleep; equal to ``levels`` for one wake and one sleep.
    sleep: most sleep steps in one sleep; None: until no neuron spikes (exact).
    input_shape: shape of one image, without the batch: (C, H, W), (H, W), or anything that is flattened.
    input_max: the pixel value that stands for 1.0; pixels are integers 0 to ``input_max``.
    nodes: layers and pools, each after those it takes. The first is a layer, which alone takes the image; the last is the
        read-out, the only layer without a threshold. A max pool takes no average, since it needs the counts of neurons.
    """

    name: str
    levels: int
    margin: int
    sleep: int | None
    input_shape: tuple[int, ...]
    input_max: int
    nodes: tuple[Node, ...]
    meta: dict[str, Any] = field(default_factory=dict)
    """Plain values a person may want to know (accuracies, how it was trained); nothing depends on it."""

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """The layers in order, the read-out last."""
        return tuple(node for node in self.nodes if isinstance(node, Layer))

    @property
    def spiking(self) -> tuple[Layer, ...]:
        """The layers with neurons."""
        return self.layers[:-1]

    @property
    def readout(self) -> Layer:
        return self.layers[-1]

    @property
    def inputs(self) -> int:
        return prod(self.input_shape)

    @cached_property
    def shapes(self) -> dict[str, MapShape]:
        """By name, the shape of the image and of what every node makes of it."""
        shapes = {IMAGE: _image_shape(self.input_shape)}
        for node in self.nodes:
            part = node if isinstance(node, Pool) else node.synapses[0]
            shapes[node.name] = output_shape(part, shapes[part.source])
        return shapes

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


@dataclass(frozen=True, eq=False)
class IntegerNet(Network):
    """A converted network (see `casc_hw.conversion`), ready for the reference and for hardware; CascError if a field does not fit."""

    def __post_init__(self) -> None:
        _check(self)

    @cached_property
    def _spans(self) -> dict[str, int]:
        spans = {IMAGE: self.input_max}
        for node in self.nodes:
            spans[node.name] = _span(node, spans)
        return spans

    def span(self, name: str) -> int:
        """The most that one place of node ``name`` can count per level: of a neuron 1, of an average pool its window's sum."""
        return self._spans[name]

    def events(self, name: str) -> Interval:
        """The values of an event that leaves node ``name``, or `IMAGE`, in spike coding with gamma = 1."""
        return Interval(0 if name == IMAGE else -self._spans[name], self._spans[name])

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) of everything the answer depends on."""
        sha = hashlib.sha256()
        sha.update(json.dumps([FORMAT, VERSION, self.levels, self.margin, self.sleep, list(self.input_shape), self.input_max]).encode())
        place = {name: index for index, name in enumerate(self.shapes)}
        for node in self.nodes:
            parts = [node] if isinstance(node, Pool) else node.synapses
            told: list[Any] = [node.kind] if isinstance(node, Pool) else [node.scale]
            told += [[place[part.source], part.kernel, part.stride, part.padding] for part in parts]
            tensors: list[Tensor | None] = []
            if isinstance(node, Layer):
                told += [[synapses.bits, list(synapses.weight.shape), synapses.groups] for synapses in node.synapses]
                tensors = [*(synapses.weight for synapses in node.synapses), node.bias, node.threshold]
            sha.update(json.dumps(told).encode())
            for tensor in tensors:
                if tensor is not None:
                    sha.update(tensor.numpy().astype("<i8").tobytes())
        return sha.hexdigest()

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
            "nodes": [_encode(node) for node in self.nodes],
            "meta": self.meta,
        }
        save_whole(content, Path(path))

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
                members = archive.infolist()
                size = sum(member.file_size for member in members)
                most = min(MAX_FILE_BYTES, path.stat().st_size + MAX_INFLATION)
                if size > most:
                    raise CascError(f"{path}: {size} bytes unpacked, the most is {most}; this is not a converted network")
                if damaged := archive.testzip():  # torch.load does not look at the checksums
                    raise CascError(f"{path}: damaged (checksum of {_short(damaged)}); copy or convert it again")
                for member in members:
                    if member.filename.endswith("data.pkl"):
                        _check_pickle(path, archive.read(member))
                if any(member.external_attr & _FOLDER for member in members):  # torch.load would take what happens to be in memory
                    raise CascError(f"{path}: damaged (a tensor is marked as a folder); copy or convert it again")
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


def save_whole(content: object, path: Path) -> None:
    """``torch.save`` to ``path``, whole or not at all."""
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


@dataclass(frozen=True, eq=False)
class FloatNet(Network):
    """A network before its rounding (`casc_hw.Conversion.unrounded`), which tells what the rounding costs: `casc_hw.SpikingNet` runs it.

    All thresholds are 1, and weights, biases and thresholds float64: in units of a threshold per event and, of the read-out, of the
    model's output. Pixels are integers all the same. CascError if the schedule is out of range.
    """

    def __post_init__(self) -> None:
        _check_schedule(self)


def _check_pickle(path: Path, text: bytes) -> None:
    """CascError if the fields are too many; UnpicklingError if they call for other than `_PLAIN`; ValueError if they are no pickle."""
    if len(text) > MAX_PICKLE_BYTES:
        raise CascError(f"{path}: fields of {len(text)} bytes, the most is {MAX_PICKLE_BYTES}; this is not a converted network")
    for code, argument, _ in pickletools.genops(text):
        if code.name in _CALLS and (code.name != "GLOBAL" or argument not in _PLAIN):
            raise pickle.UnpicklingError(f"calls for {_short(argument)}")


def _encode(node: Node) -> dict[str, Any]:
    if isinstance(node, Pool):
        return {
            "type": "pool",
            "name": node.name,
            "source": node.source,
            "kind": node.kind,
            "kernel": list(node.kernel),
            "stride": list(node.stride),
            "padding": list(node.padding),
        }
    return {
        "type": "layer",
        "name": node.name,
        "synapses": [
            {
                "source": synapses.source,
                "weight": synapses.weight.to(torch.int8 if synapses.bits <= 8 else torch.int32),
                "bits": synapses.bits,
                "stride": list(synapses.stride),
                "padding": list(synapses.padding),
                "groups": synapses.groups,
            }
            for synapses in node.synapses
        ],
        "bias": node.bias,
        "threshold": node.threshold,
        "scale": node.scale,
    }


def _decode(content: Any) -> IntegerNet:
    fields = _Fields("file", content)
    kind = fields.take("format", str)
    if kind != FORMAT:
        raise CascError(f"format is {_short(kind)}, not {FORMAT!r}; make the file with `python -m rtl_gen convert`")
    version = fields.take("version", int)
    if version != VERSION:
        raise CascError(f"version is {_short(version)}, this program reads {VERSION}; convert the network again")
    source = _Fields("input", fields.take("input", dict))
    return IntegerNet(
        name=fields.take("name", str),
        levels=fields.take("levels", int),
        margin=fields.take("margin", int),
        sleep=fields.take("sleep", int, optional=True),
        input_shape=tuple(source.take("shape", list)),
        input_max=source.take("max", int),
        nodes=tuple(_decode_node(fields, index, entry) for index, entry in enumerate(fields.take("nodes", list))),
        meta=fields.take("meta", dict),
    )


def _decode_node(fields: _Fields, index: int, entry: Any) -> Node:
    item = _Fields(f"node {index}", entry, fields)
    name, kind = item.take("name", str), item.take("type", str)
    if 0 < len(name) <= 64 and name.isprintable():
        item.where = name
    if kind == "pool":
        return Pool(name, item.take("source", str), item.take("kind", str), item.pair("kernel"), item.pair("stride"), item.pair("padding"))
    if kind != "layer":
        raise CascError(f"{item.where}: type {_short(kind)} is not known; use 'layer' or 'pool'")
    synapses = []
    for number, part in enumerate(item.take("synapses", list)):
        one = _Fields(f"{item.where}, synapses {number}", part, item)
        synapses.append(
            Synapses(
                source=one.take("source", str),
                weight=one.tensor("weight", 2, 4),
                bits=one.take("bits", int),
                stride=one.pair("stride"),
                padding=one.pair("padding"),
                groups=one.take("groups", int),
            )
        )
    return Layer(name, tuple(synapses), item.tensor("bias", 1), item.tensor("threshold", 1, optional=True), item.take("scale", float, True))


class _Fields:
    """Takes checked fields out of a dictionary read from a file."""

    def __init__(self, where: str, content: Any, within: _Fields | None = None):
        self.numbers: list[int] = within.numbers if within else [0]  # in the tensors taken so far, those of the file together
        self.storages: dict[int, int] = within.storages if within else {}  # what they are in: bytes by address
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

    def pair(self, name: str) -> tuple[int, int]:
        value = self.take(name, list)
        if len(value) != 2 or not all(isinstance(size, int) and not isinstance(size, bool) for size in value):
            raise CascError(f"{self.where}: {name} is not two integers; convert the network again")
        return value[0], value[1]

    def tensor(self, name: str, *ndim: int, optional: bool = False) -> Any:
        value = self.take(name, Tensor, optional)
        if value is None:
            return None
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            raise CascError(f"{self.where}: {name} is not a dense tensor in memory; convert the network again")
        if value.ndim not in ndim:
            wanted = " or ".join(map(str, ndim))
            raise CascError(f"{self.where}: {name} has shape {_shape(value)}, expected {wanted} dimensions; convert the network again")
        storage = value.untyped_storage()
        self.storages[storage.data_ptr()] = storage.nbytes()
        self.numbers[0] += value.numel()
        if self.numbers[0] > SLACK + sum(self.storages.values()):  # a few bytes can stand for many numbers
            raise CascError(f"{self.where}: {name} has shape {_shape(value)}, too large; convert the network again")
        if value.dtype not in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64):
            common = value.dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
            bad = value[~torch.isfinite(value)][:1].tolist() if common else []
            shown = f"holds {bad[0]}" if bad else f"is of type {value.dtype}"
            raise CascError(f"{self.where}: {name} {shown}, not integers; convert the network again")
        return value.detach().to(torch.int64)


def _check(net: IntegerNet) -> None:
    """CascError unless every field of ``net`` is in range and the nodes fit each other."""
    if not net.name.replace("_", "").replace("-", "").isalnum() or not net.name.isascii() or len(net.name) > 64:
        raise CascError(f"name: {_short(net.name)} is not 1 to 64 letters, digits, '-' or '_'; give another name")
    _check_schedule(net)
    _within("input max", net.input_max, 1, MAX_PIXEL, "use 8-bit pixels or fewer")
    if not net.input_shape:
        raise CascError("input shape: is empty; give the shape of one image")
    for size in net.input_shape:
        if not isinstance(size, int) or isinstance(size, bool):
            raise CascError(f"input shape: {_short(size)} is not an integer; give the shape of one image")
        _within("input shape", size, 1, MAX_MAP, "give the shape of one image")
    if net.inputs > MAX_MAP:
        raise CascError(f"input shape: {_short(net.inputs)} pixels, the most is {MAX_MAP}; use smaller images")
    _check_meta(net.meta)
    if len(net.layers) < 2:
        raise CascError(
            f"layers: {len(net.layers)} given, at least one spiking layer and a read-out are needed; add a Linear with an activation"
        )
    _check_names(net)
    _Check(net).run()


def _check_schedule(net: Network) -> None:
    _within("levels", net.levels, 1, MAX_LEVELS, "convert with fewer levels")
    _within("margin", net.margin, 1, net.levels, "use a number of wake steps from 1 to levels")
    if net.sleep is not None:
        _within("sleep", net.sleep, 0, 1 << 15, "use None to sleep until no neuron spikes")


def _check_names(net: IntegerNet) -> None:
    names = {IMAGE}
    for index, node in enumerate(net.nodes):
        if not 0 < len(node.name) <= 64 or not node.name.isprintable():
            raise CascError(f"node {index}: name {_short(node.name)} is not 1 to 64 printable characters; give another name")
        if node.name in names:
            taken = "the input's" if node.name == IMAGE else "taken by an earlier node"
            raise CascError(f"node {index}: name {_short(node.name)} is {taken}; give another name")
        names.add(node.name)


class _Check:
    """The nodes of a network, one after the other, in the light of those before."""

    def __init__(self, net: IntegerNet):
        self.net = net
        self.shapes = {IMAGE: _image_shape(net.input_shape)}
        self.spans = {IMAGE: net.input_max}
        self.averages: set[str] = set()
        self.used: set[str] = set()

    def run(self) -> None:
        *rest, last = self.net.nodes
        for index, node in enumerate(self.net.nodes):
            shape = self.pool(node) if isinstance(node, Pool) else self.layer(node, index == 0, node is last)
            if prod(shape) > MAX_MAP:
                raise CascError(f"{node.name}: a map of {_times(shape)}, the most is {MAX_MAP} neurons; use a larger stride")
            self.shapes[node.name] = shape
            self.spans[node.name] = span = _span(node, self.spans)
            if self.net.levels * span >= MAX_SUM:
                raise CascError(f"{node.name}: its windows may sum up to {_short(span)}, the most is {MAX_SUM - 1}; use smaller windows")
        for node in rest:
            if node.name not in self.used:
                raise CascError(f"{node.name}: no later node takes it; remove it")
        if isinstance(last, Pool):
            raise CascError(f"{last.name}: the network ends in a pool; end it with one Linear or Conv2d that has no activation")

    def source(self, where: str, name: str) -> MapShape:
        """The shape of the map ``name``, which ``where`` takes."""
        if name not in self.shapes:
            later = any(node.name == name for node in self.net.nodes)
            say = "which is not before it" if later else "which is no node"
            raise CascError(f"{where}: takes {_short(name)}, {say}; put every node after those it takes")
        self.used.add(name)
        return self.shapes[name]

    def pool(self, pool: Pool) -> MapShape:
        where = pool.name
        if pool.source == IMAGE:
            raise CascError(f"{where}: pools the image, but only what neurons emit can be pooled; shrink the images beforehand")
        if pool.kind not in ("average", "max"):
            raise CascError(f"{where}: kind {_short(pool.kind)} is not known; use 'average' or 'max'")
        source = self.source(where, pool.source)
        if pool.source in self.averages and pool.kind == "max":
            raise CascError(f"{where}: takes the maximum of averages ({pool.source}), but needs single neurons; put ClipQuan between")
        if pool.kind == "average" or pool.source in self.averages:
            self.averages.add(where)
        return self.window(where, pool, source)

    def window(self, where: str, part: Synapses | Pool, source: MapShape) -> MapShape:
        """What a convolution or pool makes of ``source``."""
        for size, kernel, stride, padding in zip(source[1:], part.kernel, part.stride, part.padding, strict=True):
            _within(f"{where}: kernel", kernel, 1, MAX_MAP, "use a positive size")
            _within(f"{where}: stride", stride, 1, MAX_MAP, "use a positive stride")
            _within(f"{where}: padding", padding, 0, kernel - 1, "pad less than the kernel's size")
            if size + 2 * padding < kernel:
                raise CascError(
                    f"{where}: a kernel of {_times(part.kernel)} is larger than the padded map, {_times(source[1:])} and padding "
                    f"{_times(part.padding)}; use a smaller kernel"
                )
        return output_shape(part, source)

    def layer(self, layer: Layer, first: bool, last: bool) -> MapShape:
        where = layer.name
        if not layer.synapses:
            raise CascError(f"{where}: has no synapses; give it at least one source")
        shapes = [self.synapses(where, synapses, first) for synapses in layer.synapses]
        shape, source = shapes[0], layer.synapses[0].source
        for synapses, other in zip(layer.synapses, shapes, strict=True):
            if other != shape:
                raise CascError(
                    f"{where}: a map of {_times(other)} comes from {synapses.source}, one of {_times(shape)} from {source}; "
                    "make their shapes equal"
                )
        self.vector(where, "bias", layer.bias, shape[0])
        if last != (layer.threshold is None):
            say = "the read-out has a threshold" if last else "has no threshold, but is not the last node"
            raise CascError(f"{where}: {say}; end the network with one Linear or Conv2d that has no activation")
        if last and (type(layer.scale) is not float or not 0 < layer.scale < float("inf")):
            raise CascError(f"{where}: scale is {_short(layer.scale)}, not a positive number; convert the network again")
        if layer.threshold is not None:
            self.vector(where, "threshold", layer.threshold, shape[0])
            channel = int(layer.threshold.argmin())
            if int(layer.threshold[channel]) < 1:
                raise CascError(
                    f"{where}: threshold of channel {channel} is {int(layer.threshold[channel])}, it must be positive; convert again"
                )
            if int(layer.threshold.max()) >= MAX_SUM:
                raise CascError(
                    f"{where}: threshold reaches {int(layer.threshold.max())}, the most is {MAX_SUM - 1}; use fewer weight bits"
                )
        if (size := max(abs(int(layer.bias.min())), abs(int(layer.bias.max())))) >= MAX_SUM:
            raise CascError(f"{where}: a bias of size {size}, the most is {MAX_SUM - 1}; use fewer weight bits")
        self.sums(layer)
        return shape

    def vector(self, where: str, name: str, tensor: Tensor, size: int) -> None:
        if tensor.shape != (size,) or tensor.dtype != torch.int64:
            raise CascError(
                f"{where}: {name} has shape {_shape(tensor)} of {tensor.dtype}, expected ({size},) of torch.int64; "
                "convert the network again"
            )

    def synapses(self, where: str, synapses: Synapses, first: bool) -> MapShape:
        """The map that arrives at the layer ``where``."""
        weight = synapses.weight
        source = self.source(where, synapses.source)
        if synapses.source == IMAGE and not first:
            raise CascError(f"{where}: takes the image, but only the first node may; add what it needs to the first layer")
        if weight.ndim not in (2, 4) or weight.numel() == 0 or weight.dtype != torch.int64:
            raise CascError(
                f"{where}: weight has shape {_shape(weight)} of {weight.dtype}, not 2 or 4 sizes above 0 of torch.int64; "
                "convert the network again"
            )
        if not isinstance(synapses.bits, int) or not (
            synapses.bits in WEIGHT_BITS or (synapses.shortcut and 1 <= synapses.bits <= SHORTCUT_BITS)
        ):
            raise CascError(f"{where}: {_short(synapses.bits)}-bit weights; use one of {', '.join(map(str, WEIGHT_BITS))}")
        if synapses.dense:
            if (synapses.stride, synapses.padding, synapses.groups) != ((1, 1), (0, 0), 1):
                raise CascError(f"{where}: dense synapses with a stride, padding or groups; convert the network again")
            shape = output_shape(synapses, source)
        else:
            _within(f"{where}: groups", synapses.groups, 1, MAX_MAP, "use a number that divides the channels")
            if source[0] % synapses.groups or synapses.outputs % synapses.groups:
                raise CascError(
                    f"{where}: {source[0]} to {synapses.outputs} channels in {synapses.groups} groups; use a number that divides both"
                )
            shape = self.window(where, synapses, source)
        wanted = prod(source) if synapses.dense else source[0] // synapses.groups
        if weight.shape[1] != wanted:
            what = "inputs" if synapses.dense or synapses.groups == 1 else "channels a group"
            raise CascError(f"{where}: takes {weight.shape[1]} {what}, but {wanted} arrive; fix the layer sizes")
        half = 1 << (synapses.bits - 1)
        low, high = int(weight.min()), int(weight.max())
        if low < -half or high >= half:
            raise CascError(f"{where}: weights span {low} to {high}, beyond {synapses.bits} bits; use more bits")
        return shape

    def sums(self, layer: Layer) -> None:
        """CascError if a sum may reach `MAX_SUM`. In float64: integers that stay below 2**53 are exact, and rounding is monotone."""
        worst = layer.bias.abs().double()
        for synapses in layer.synapses:
            moves = 1 if synapses.source == IMAGE else 2  # a spike count may fall by T and rise by T
            worst += synapses.weight.abs().flatten(1).sum(1).double() * (moves * self.spans[synapses.source])
        if (reached := self.net.levels * int(worst.max())) >= MAX_SUM:
            raise CascError(f"{layer.name}: its sums may reach {reached}, the most is {MAX_SUM - 1}; use fewer weight bits or levels")


def _image_shape(input_shape: tuple[int, ...]) -> MapShape:
    if len(input_shape) == 3:
        return input_shape[0], input_shape[1], input_shape[2]
    if len(input_shape) == 2:
        return 1, input_shape[0], input_shape[1]
    return prod(input_shape), 1, 1


def _span(node: Node, spans: dict[str, int]) -> int:
    """See `IntegerNet.span`."""
    if isinstance(node, Layer):
        return 1
    return spans[node.source] * (prod(node.kernel) if node.kind == "average" else 1)


def _check_meta(meta: dict[str, Any]) -> None:
    """CascError unless ``meta`` can be read back without executing anything."""
    rest, count, size = list(meta.items()), 0, 0
    while rest:
        key, value = rest.pop()
        count += 1
        if count + len(rest) > MAX_META:
            raise CascError(f"meta: holds more than {MAX_META} values, or itself; use a few texts and numbers")
        if type(key) is not str:
            raise CascError(f"meta: the key {_short(key)} is not a text; use plain dictionaries")
        size += len(key) + (len(value) if type(value) is str else 0)
        if size > MAX_META_TEXT:
            raise CascError(f"meta: holds more than {MAX_META_TEXT} characters; use a few texts and numbers")
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
        return f"a tensor of shape {_shape(value)}"
    text = repr(value) if isinstance(value, (int, float, str, bool, type(None))) else f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


def _shape(tensor: Tensor) -> str:
    sizes = tuple(tensor.shape)
    return str(sizes) if len(sizes) <= 8 else f"of {len(sizes)} dimensions"


def _times(sizes: tuple[int, ...]) -> str:
    return "x".join(map(str, sizes))
