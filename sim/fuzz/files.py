"""``converted.pt``: bits, bytes, archives, fields and pickles that nobody should have made."""

from __future__ import annotations

import copy
import io
import os
import pickle
import random
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from casc_hw.data import EXAMPLES
from casc_hw.errors import CascError
from casc_hw.network import IMAGE, IntegerNet, Layer, Pool, Synapses
from casc_hw.reference import quantised_ann

ANSWERED = 1 << 22
"""Accepted networks of at most so many weights times places are asked for an answer."""


def small_net() -> IntegerNet:
    """Every kind of node there is: convolution, shortcut, both pools, dense, read-out."""
    draw = torch.Generator().manual_seed(1)

    def weight(*shape: int) -> Tensor:
        return torch.randint(-8, 8, shape, generator=draw)

    def layer(name: str, *synapses: Synapses, threshold: int | None = 9) -> Layer:
        channels = synapses[0].outputs
        bias = torch.arange(channels) - 1
        return Layer(name, synapses, bias, None if threshold is None else bias * 0 + threshold, None if threshold else 2.5)

    return IntegerNet(
        "small",
        3,
        2,
        None,
        (1, 4, 4),
        15,
        (
            layer("conv", Synapses(IMAGE, weight(2, 1, 3, 3), 4, (1, 1), (1, 1)), threshold=40),
            layer(
                "add",
                Synapses("conv", weight(2, 2, 3, 3), 4, (1, 1), (1, 1)),
                Synapses("conv", torch.full((2, 1, 1, 1), 9), 12, groups=2),
            ),
            Pool("max", "add", "max", (2, 2), (2, 2)),
            Pool("mean", "max", "average", (2, 1), (1, 1)),
            Layer.dense("hidden", "mean", weight(3, 4), torch.arange(3), torch.full((3,), 7), 6),
            Layer.dense("out", "hidden", weight(2, 3), torch.arange(2), None, 8, 1.0),
        ),
        {"accuracy": 0.5, "how": ["by hand", {"epochs": 3}]},
    )


class Files:
    """One file a case, read by `IntegerNet.load`; what is accepted must save to an equal file, and answer.

    Executed code would leave the file ``executed``.
    """

    name = "file"
    limited = True

    def __init__(self, folder: Path):
        torch.set_num_threads(1)
        self.folder, self.path, self.again, self.marker = folder, folder / "net.pt", folder / "again.pt", folder / "executed"
        for left in folder.iterdir():
            left.unlink()
        self.bases = []
        for net in (small_net(), IntegerNet.load(EXAMPLES / "digits_mlp.pt")):
            net.save(self.again)
            self.bases.append((net, self.again.read_bytes(), torch.load(self.again, weights_only=True)))
        self.ways: list[Callable[[random.Random], bytes]] = [self.bits, self.content, self.content, self.archive, self.machine]

    def case(self, chance: random.Random) -> str:
        self.original: IntegerNet | None = None
        self.path.write_bytes(chance.choice(self.ways)(chance))
        try:
            net = IntegerNet.load(self.path)
        except CascError as error:
            cause: BaseException | None = error
            while cause is not None:
                if isinstance(cause, MemoryError) or "can't allocate memory" in str(cause):
                    raise RuntimeError(f"asked for more memory than {error} should") from error
                cause = cause.__cause__
            _one_sentence(str(error))
            return "refused"
        finally:
            if self.marker.exists():
                self.marker.rmdir()
                raise RuntimeError("code in the file was executed")
        if self.original is not None and (net.digest, net.name) != (self.original.digest, self.original.name):
            raise RuntimeError("damage was taken for another network")
        net.save(self.again)
        back = IntegerNet.load(self.again)
        if (back.digest, back.name, repr(back.meta)) != (net.digest, net.name, repr(net.meta)):
            raise RuntimeError("saved, it is another network")
        if set(os.listdir(self.folder)) != {"net.pt", "again.pt"}:
            raise RuntimeError(f"left files: {os.listdir(self.folder)}")
        work = sum(part.weight.numel() for layer in net.layers for part in layer.synapses) * max(
            shape[1] * shape[2] for shape in net.shapes.values()
        )
        if work <= ANSWERED:
            quantised_ann(net, torch.zeros(1, net.inputs, dtype=torch.int64))
        return "accepted"

    # Ways to a file

    def bits(self, chance: random.Random) -> bytes:
        """A sound file with flipped bits, or with bytes overwritten, cut out, put in, doubled or cut off."""
        self.original, whole, _ = chance.choice(self.bases)
        return mutated(chance, whole)

    def content(self, chance: random.Random) -> bytes:
        """A sound archive of fields that are not."""
        _, _, fields = chance.choice(self.bases)
        fields = copy.deepcopy(fields)
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            places = list(_places(fields))
            holder, key = chance.choice(places)
            match chance.randrange(8):
                case 0 if isinstance(holder, (dict, list)):
                    del holder[key]
                case 1 if isinstance(holder, list):
                    holder.insert(key, copy.deepcopy(holder[key]))
                case 2:
                    other, there = chance.choice(places)
                    holder[key] = other[there]  # perhaps itself
                case 3 if isinstance(holder[key], Tensor):
                    holder[key] = self.tensor(chance, holder[key])
                case _:
                    holder[key] = self.value(chance, holder[key])
        buffer = io.BytesIO()
        try:
            torch.save(fields, buffer)
        except (RecursionError, RuntimeError, TypeError, NotImplementedError):  # not to be saved
            return buffer.getvalue()
        return buffer.getvalue()

    def value(self, chance: random.Random, old: Any) -> Any:
        names = ["", IMAGE, "conv", "add", "out", "hidden", "a" * 70, "\n", "\0", "\ud800", "é", "../../etc", "n" * 100_000, "x\x1b[2J"]
        numbers = [0, 1, -1, 2, 3, 7, 8, 64, 255, 256, 1 << 15, 1 << 24, 1 << 31, 1 << 52, 1 << 53, 1 << 63, -(1 << 63), 1 << 64, 10**5000]
        floats = [0.0, -0.0, 1.0, -1.0, 1e-320, 1e308, float("inf"), float("-inf"), float("nan")]
        if isinstance(old, int) and chance.random() < 0.5:
            return old + chance.choice((-2, -1, 1, 2))
        nested: Any = []
        for _ in range(chance.choice((3, 200))):
            nested = [nested] if chance.random() < 0.5 else {"a": nested}
        loop: list[Any] = []
        loop.append(loop)
        return chance.choice(
            [
                chance.choice(names),
                chance.choice(numbers),
                chance.choice(floats),
                [chance.choice(numbers) for _ in range(chance.randrange(6))],
                chance.choice([None, True, False, (), (1, 2), {}, {1: 2}, b"bytes", set(), 1j, torch.Size([1]), nested, loop]),
                chance.choice([torch.float32, torch.device("cpu"), torch.nn.Parameter(torch.ones(2)), [loop] * 3]),
                self.tensor(chance, torch.ones(2, 3, dtype=torch.int64)),
                [torch.ones(2, dtype=torch.int8)] * 4,
            ]
        )

    def tensor(self, chance: random.Random, old: Tensor) -> Tensor:
        """A tensor like ``old``, but not quite."""
        with_one = old.clone()
        if old.numel():
            with_one.view(-1)[chance.randrange(old.numel())] = chance.choice((0, -1, 127, -128))
        size = chance.choice((1, 3, 1 << 16, 1 << 24, 1 << 27, 1 << 33, 1 << 40))
        whole = old if old.dtype in (torch.int8, torch.int64) else torch.ones(2, dtype=torch.int64)
        return chance.choice(
            [
                with_one,
                with_one,
                old.reshape(-1),
                old[..., None],
                old[:0],
                old.T if old.ndim == 2 else old[None],
                old[1:],
                torch.tensor(3),
                torch.ones(1, dtype=torch.int8).expand(size),  # a byte that says it is many
                torch.ones(1, 1, dtype=torch.int64).expand(size, 3),
                torch.ones(1, 1, 1, 1, dtype=torch.int8).expand(size, 1, 1, 1),
                torch.ones((1,) * 70),
                old.double() * float("nan"),
                torch.full((1 << 10,), float("nan"), dtype=torch.float16).expand(1 << 14, 1 << 10),
                old.to(chance.choice((torch.bool, torch.float16, torch.bfloat16, torch.complex64, torch.uint8, torch.int32))),
                torch.tensor([1 << 62, -(1 << 63), (1 << 63) - 1]),
                torch.full_like(whole, chance.choice((127, -128, 0))),
                torch.ones(2, 2).to_sparse(),
                torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
                torch.empty(3, device="meta"),
                torch.ones(2, dtype=torch.complex64).conj(),
                torch.nn.Parameter(torch.ones(2)),
            ]
        )

    def archive(self, chance: random.Random) -> bytes:
        """A sound archive's members changed, with checksums that are right again."""
        _, whole, _ = chance.choice(self.bases)
        with zipfile.ZipFile(io.BytesIO(whole)) as archive:
            members = [(info.filename, archive.read(info)) for info in archive.infolist()]
        for _ in range(chance.choice((1, 1, 2))):
            index = chance.randrange(len(members)) if chance.random() < 0.5 else 0
            if not members:
                break
            name, data = members[index]
            match chance.randrange(8):
                case 0:
                    del members[index]
                case 1:
                    members.insert(chance.randrange(len(members) + 1), (name, mutated(chance, data)))
                case 2:
                    other = chance.choice([name + "x", "data.pkl", "small/data.pkl", "../" + name, name * 900, "é", name + "/"])
                    members[index] = other, data
                case 3:
                    members[index] = name, bytes(chance.choice((0, 1, 1000, 1 << 20)))
                case 4:
                    root = name.split("/")[0]
                    members.append((f"{root}/{chance.choice(['constants.pkl', 'code/x.py', 'byteorder', 'version', 'data/0'])}", b"big"))
                case _:
                    members[index] = name, mutated(chance, data)
        return archived(members, chance.choice((zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2)))

    def machine(self, chance: random.Random) -> bytes:
        """A pickle written by hand: calls, cycles, depths and sizes; in an archive, or by itself."""
        wicked = chance.choice(self.pickles(chance))
        if chance.random() < 0.3:
            wicked = mutated(chance, wicked)
        if chance.random() < 0.15:
            return wicked
        rest = [("n/byteorder", b"little"), ("n/data/0", struct.pack("<8q", *range(8))), ("n/version", b"3\n")]
        return archived([("n/data.pkl", wicked), *rest], zipfile.ZIP_STORED)

    def pickles(self, chance: random.Random) -> list[bytes]:
        marker = os.fspath(self.marker)
        module, function = chance.choice([("os", "mkdir"), ("posix", "mkdir"), ("nt", "mkdir"), ("torch.serialization", "os.mkdir")])
        text = f"__import__('os').mkdir({marker!r})"
        evil, name = chance.choice([("builtins", "eval"), ("builtins", "exec"), ("torch._utils", "eval"), ("__builtin__", "eval")])

        class Call:
            def __reduce__(self) -> Any:
                return os.mkdir, (marker,)

        class State:
            def __reduce__(self) -> Any:
                return dict, (), None, None, iter([("a", Call())])

        deep = chance.choice([10, 300, 300, 300, 3000] * 10 + [100_000])
        sizes = [0, 1, -1, 8, 1 << 20, 1 << 27, 1 << 29, (1 << 31) - 1, 1 << 40, (1 << 62)]
        size, offset = chance.choice(sizes), chance.choice([0, 0, 1, -1, 1 << 40])
        shape = tuple(chance.choice(sizes) for _ in range(chance.randrange(4)))
        stride = tuple(chance.choice([0, 1, -1, 1 << 40]) for _ in shape)
        calls = ("tensor", "tensor_v2", "tensor_v3", "parameter", "qtensor", "sparse_tensor", "nested_tensor", "meta_tensor_no_storage",
                 "wrapper_subclass", "device_tensor_from_numpy")  # fmt: skip
        call = f"_rebuild_{chance.choice(calls)}"
        kind = chance.choice(["LongStorage", "CharStorage", "DoubleStorage", "QInt8Storage", "storage.UntypedStorage", "cuda.LongStorage"])
        place, _, last = f"torch.{kind}".rpartition(".")
        storage = b"(" + _text("storage") + _global(place, last) + _text(chance.choice("01"))
        storage += _text(chance.choice(["cpu", "cuda:0", "meta"])) + _number(chance.choice([8, size])) + b"tQ"
        tensor = _global("torch._utils", call) + b"(" + storage + _number(offset) + _numbers(shape) + _numbers(stride) + b"\x89"
        tensor += _global("collections", "OrderedDict") + b")RtR"
        many = chance.choice(["bytearray", "set", "complex"])
        return [
            pickle.dumps(Call(), chance.choice((0, 2, 4))),
            pickle.dumps({"format": "casc-net", "meta": State()}, 2),
            b"\x80\x02" + _global(module, function) + b"(" + _text(marker) + b"tR.",
            b"\x80\x02" + _global(evil, name) + b"(" + _text(text) + b"tR.",
            b"\x80\x02(" + _text(marker) + f"i{module}\n{function}\n.".encode(),
            b"\x80\x04" + _text(module) + _text(function) + b"\x93" + _text(marker) + b"\x85R.",
            b"\x80\x02" + tensor + b".",
            b"\x80\x02}(" + _text("format") + _text("casc-net") + _text("bias") + tensor + b"u.",
            b"\x80\x02" + _global("builtins", many) + b"(" + _number(size) + b"tR.",
            b"\x80\x02" + _global("torch", "UntypedStorage") + b"(" + _number(size) + b"tR.",
            b"\x80\x02" + _global("torch", chance.choice(["ByteTensor", "Tensor", "Size"])) + b"(" + _number(size) + b"tR.",
            b"\x80\x02" + _global("_codecs", "encode") + b"(" + _text("a" * 1000) + _text("rot13") + b"tR.",
            b"\x80\x02" + b"(" * deep + b".",
            b"\x80\x02" + b"]q\x00" + b"h\x00a" * deep + b".",
            b"\x80\x02" + b"]" * deep + b"a" * (deep - 1) + b".",
            b"\x80\x02" + b"}q\x00" + _text("meta") + b"h\x00s.",
            b"\x80\x04\x8d" + struct.pack("<Q", size & 0xFFFF_FFFF_FFFF_FFFF) + b"abc.",
            b"\x80\x02\x8b" + struct.pack("<i", min(max(size, -1), (1 << 31) - 1)) + b"\xff" * 5000 + b".",
            b"\x80\x02r" + struct.pack("<I", 0xFFFF_FFFF) + b".",
            b"\x80\x02]" + b"q\x01h\x012" * deep + b".",
            b"\x80" + bytes([chance.randrange(256)]) + chance.randbytes(chance.randrange(300)),
            chance.randbytes(chance.randrange(2000)),
            b"",
        ]


def mutated(chance: random.Random, whole: bytes) -> bytes:
    """``whole`` with a few bits or bytes changed."""
    data = bytearray(whole)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        if not data:
            break
        at, size = chance.randrange(len(data)), chance.choice((1, 2, 4, 8, 100))
        match chance.randrange(9):
            case 0:
                del data[at:]
            case 1:
                del data[at : at + size]
            case 2:
                data[at:at] = chance.randbytes(size)
            case 3:
                data[at : at + size] = chance.choice([bytes(size), b"\xff" * size, chance.randbytes(size)])
            case 4:
                data[at:at] = data[at : at + size]
            case 5:
                data[at:] = data[at:][::-1]
            case _:
                data[at] ^= 1 << chance.randrange(8)
    return bytes(data)


def archived(members: list[tuple[str, bytes]], how: int) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", how) as archive:
        for name, data in members:
            archive.writestr(zipfile.ZipInfo(name), data, how)
    return buffer.getvalue()


def _places(value: Any, seen: set[int] | None = None) -> Any:
    """Every (container, key) within ``value``."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return
    seen.add(id(value))
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, entry in list(entries):
        yield value, key
        yield from _places(entry, seen)


def _global(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def _text(text: str) -> bytes:
    return b"X" + struct.pack("<I", len(text.encode())) + text.encode()


def _number(number: int) -> bytes:
    return b"\x8a\x09" + number.to_bytes(9, "little", signed=True)


def _numbers(numbers: tuple[int, ...]) -> bytes:
    return b"(" + b"".join(map(_number, numbers)) + b"t"


def _one_sentence(message: str) -> None:
    """RuntimeError unless the user can read ``message``: one line, what to do, no riddles."""
    if "\n" in message or "; " not in message or len(message) > 1000 or not message.isprintable():
        raise RuntimeError(f"no sentence: {message[:150]!r}")
