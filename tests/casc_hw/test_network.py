"""The integer network's checks and its file: a bad one gets a sentence, never a traceback and never code execution."""

from __future__ import annotations

import os
import pickle
import random
import re
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from casc_hw import CascError, IntegerNet

Net = Callable[..., IntegerNet]


@pytest.fixture
def net(make_net: Net) -> IntegerNet:
    return replace(make_net((6, 5, 3)), meta={"accuracy": 97.5, "split": [4000, 1000], "note": None})


@pytest.fixture
def saved(net: IntegerNet, tmp_path: Path) -> Path:
    path = tmp_path / "net.pt"
    net.save(path)
    return path


def refusal(path: Path) -> str:
    """The one sentence with which ``path`` is refused."""
    with pytest.raises(CascError) as caught:
        IntegerNet.load(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert len(text) < 300 + len(str(path))
    assert "; " in text, "says what is wrong, but not what to do"
    return text.removeprefix(f"{path}: ")


@pytest.mark.parametrize(
    ("sizes", "options"),
    [
        ((1, 1, 1), {"levels": 1, "bits": 2, "input_max": 1}),
        ((6, 5, 3), {"levels": 8, "margin": 3, "sleep": 0}),
        ((7, 5, 3, 2), {"levels": 255, "bits": 8, "sleep": 12, "extreme": True}),
        ((4, 3, 2), {"bits": 4}),
    ],
)
def test_round_trip(sizes: tuple[int, ...], options: dict[str, Any], make_net: Net, tmp_path: Path) -> None:
    net = replace(make_net(sizes, **options), name="a-b_9", meta={"x": [1, 2.5, "three", None, True]})
    net.save(tmp_path / "net.pt")
    back = IntegerNet.load(tmp_path / "net.pt")
    for field in ("name", "levels", "margin", "sleep", "input_shape", "input_max", "meta"):
        assert getattr(back, field) == getattr(net, field), field
    assert len(back.layers) == len(net.layers)
    for got, wanted in zip(back.layers, net.layers, strict=True):
        assert (got.name, got.bits, got.scale) == (wanted.name, wanted.bits, wanted.scale)
        assert got.weight.dtype == got.bias.dtype == torch.int64
        assert torch.equal(got.weight, wanted.weight)
        assert torch.equal(got.bias, wanted.bias)
        assert (got.threshold is None) == (wanted.threshold is None)
        assert got.threshold is None or torch.equal(got.threshold, wanted.threshold)
    assert back.digest == net.digest


def test_image_shape_survives(make_net: Net, tmp_path: Path) -> None:
    net = replace(make_net((24, 3, 2)), input_shape=(2, 3, 4))
    net.save(tmp_path / "net.pt")
    assert IntegerNet.load(tmp_path / "net.pt").input_shape == (2, 3, 4)


def test_digest_changes_with_everything_the_answer_depends_on(net: IntegerNet) -> None:
    first, last = net.layers
    variants = [
        replace(net, levels=9),
        replace(net, margin=7),
        replace(net, sleep=3),
        replace(net, input_shape=(2, 3)),
        replace(net, input_max=254),
        replace(net, layers=(replace(first, weight=first.weight.clamp(max=100)), last)),
        replace(net, layers=(replace(first, bias=first.bias + 1), last)),
        replace(net, layers=(replace(first, threshold=first.threshold + 1), last)),
        replace(net, layers=(first, replace(last, bias=last.bias + 1))),
        replace(net, layers=(first, replace(last, scale=99.0))),
    ]
    assert len({variant.digest for variant in [net, *variants]}) == len(variants) + 1
    assert replace(net, name="other", meta={}).digest == net.digest


# --- a field of the file is missing or wrong --------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("where", "field"),
    [(None, field) for field in ("format", "version", "name", "levels", "margin", "sleep", "input", "layers", "meta")]
    + [("input", field) for field in ("shape", "max")]
    + [(0, field) for field in ("type", "name", "bits", "weight", "bias", "threshold", "scale")],
)
def test_missing_field(where: str | int | None, field: str, saved: Path) -> None:
    content = torch.load(saved, weights_only=True)
    holder = content if where is None else content["input"] if where == "input" else content["layers"][where]
    del holder[field]
    torch.save(content, saved)
    assert re.search(f"the field '{field}' is missing; convert the network again$", refusal(saved))


def _set(*keys: str | int, to: Any) -> Callable[[Any], Any]:
    def change(content: Any) -> Any:
        holder = content
        for key in keys[:-1]:
            holder = holder[key]
        holder[keys[-1]] = to
        return content

    return change


def _weight(change: Callable[[torch.Tensor], Any], layer: int = 0, field: str = "weight") -> Callable[[Any], Any]:
    def edit(content: Any) -> Any:
        content["layers"][layer][field] = change(content["layers"][layer][field])
        return content

    return edit


def _nan(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.double()
    tensor.view(-1)[1] = float("nan")
    return tensor


def _twice(content: Any) -> Any:
    content["layers"][1]["name"] = content["layers"][0]["name"]
    return content


BAD_FIELDS = {
    "not a dictionary": (lambda content: [1, 2], r"is a list, not a dictionary"),
    "format": (_set("format", to="onnx"), r"format is 'onnx', not 'casc-net'"),
    "format of another type": (_set("format", to=7), r"format is 7, not a value of type str"),
    "version": (_set("version", to=2), r"version is 2, this program reads 1"),
    "version true": (_set("version", to=True), r"version is True, not a value of type int"),
    "name is a path": (_set("name", to="../../etc/passwd"), r"name: '../../etc/passwd' is not 1 to 64 letters"),
    "name empty": (_set("name", to=""), r"name: '' is not 1 to 64"),
    "name long": (_set("name", to="n" * 5000), r"name: 'nnn.*\.\.\. is not 1 to 64"),
    "name not a text": (_set("name", to=5), r"name is 5, not a value of type str"),
    "layer name empty": (_set("layers", 0, "name", to=""), r"layer 0: name '' is not 1 to 64 printable"),
    "layer name with an escape": (_set("layers", 0, "name", to="\x1b[2J"), r"layer 0: name .* is not 1 to 64 printable"),
    "layer name twice": (lambda content: _twice(content), r"layer 1: name .* is taken by an earlier layer"),
    "levels 0": (_set("levels", to=0), r"levels: 0 is not an integer from 1 to 255"),
    "levels 256": (_set("levels", to=256), r"levels: 256 is not an integer from 1 to 255"),
    "levels text": (_set("levels", to="8"), r"levels is '8', not a value of type int"),
    "levels fraction": (_set("levels", to=8.0), r"levels is 8.0, not a value of type int"),
    "levels none": (_set("levels", to=None), r"levels is None, not a value of type int"),
    "margin 0": (_set("margin", to=0), r"margin: 0 is not an integer from 1 to 8"),
    "margin above levels": (_set("margin", to=9), r"margin: 9 is not an integer from 1 to 8"),
    "sleep negative": (_set("sleep", to=-1), r"sleep: -1 is not an integer from 0"),
    "sleep huge": (_set("sleep", to=1 << 40), r"sleep: 1099511627776 is not an integer from 0"),
    "input not a dictionary": (_set("input", to=3), r"input is 3, not a value of type dict"),
    "input max 0": (_set("input", "max", to=0), r"input max: 0 is not an integer from 1 to 255"),
    "input max 256": (_set("input", "max", to=256), r"input max: 256 is not an integer from 1 to 255"),
    "shape text": (_set("input", "shape", to="6"), r"input: shape is '6', not a value of type list"),
    "shape empty": (_set("input", "shape", to=[]), r"input shape: is empty"),
    "shape of texts": (_set("input", "shape", to=["6"]), r"input shape: '6' is not an integer"),
    "shape of zero": (_set("input", "shape", to=[6, 0]), r"input shape: 0 is not an integer from 1"),
    "shape negative": (_set("input", "shape", to=[-2, -3]), r"input shape: -2 is not an integer from 1"),
    "shape huge": (_set("input", "shape", to=[1 << 60]), r"input shape: 1152921504606846976 is not an integer from 1"),
    "shape of huge product": (_set("input", "shape", to=[1 << 24] * 8), r"layer0: takes 6 inputs, but \d+ arrive"),
    "shape of another size": (_set("input", "shape", to=[7]), r"layer0: takes 6 inputs, but 7 arrive"),
    "layers not a list": (_set("layers", to={}), r"layers is a dict, not a value of type list"),
    "no layers": (_set("layers", to=[]), r"layers: 0 given"),
    "one layer": (lambda content: content | {"layers": content["layers"][1:]}, r"layers: 1 given"),
    "a layer is no dictionary": (_set("layers", 1, to=None), r"layer 1: is a NoneType, not a dictionary"),
    "layer type": (_set("layers", 0, "type", to="conv"), r"layer0: type 'conv' is not known"),
    "bits 5": (_set("layers", 0, "bits", to=5), r"layer0: 5-bit weights; use one of 2, 3, 4, 6, 8"),
    "bits too few": (_set("layers", 0, "bits", to=4), r"layer0: weights span -?\d+ to \d+, beyond 4 bits"),
    "weight is a list": (_set("layers", 0, "weight", to=[[1]]), r"layer0: weight is a list, not a value of type Tensor"),
    "weight none": (_set("layers", 0, "weight", to=None), r"layer0: weight is None, not a value of type Tensor"),
    "weight NaN": (_weight(_nan), r"layer0: weight holds nan, not integers"),
    "weight infinite": (_weight(lambda w: w / torch.zeros(1)), r"layer0: weight holds -?inf, not integers"),
    "weight float": (_weight(lambda w: w.float()), r"layer0: weight is of type torch.float32, not integers"),
    "weight half": (_weight(lambda w: w.half()), r"layer0: weight is of type torch.float16, not integers"),
    "weight float8": (_weight(lambda w: w.float().to(torch.float8_e4m3fn)), r"layer0: weight is of type torch.float8_e4m3fn, not"),
    "weight complex": (_weight(lambda w: w.to(torch.complex64)), r"layer0: weight is of type torch.complex64, not integers"),
    "weight bool": (_weight(lambda w: w > 0), r"layer0: weight is of type torch.bool, not integers"),
    "weight sparse": (_weight(lambda w: w.long().to_sparse()), r"layer0: weight is not a dense tensor"),
    "weight nowhere": (_weight(lambda w: w.to("meta")), r"layer0: weight is not a dense tensor"),
    "weight flat": (_weight(lambda w: w.flatten()), r"layer0: weight has shape \(30,\), expected 2 dimensions"),
    "weight empty": (_weight(lambda w: w[:0]), r"layer0: weight has shape \(0, 6\), which is empty"),
    "weight out of range": (_weight(lambda w: w.long() + 300), r"layer0: weights span \d+ to \d+, beyond 8 bits"),
    "weight huge": (_weight(lambda w: w[:1, :1].expand(1 << 24, 1 << 24)), r"layer0: weight has shape \(16777216, 16777216\), too large"),
    "bias NaN": (_weight(_nan, field="bias"), r"layer0: bias holds nan"),
    "bias of another size": (_weight(lambda b: b[1:], field="bias"), r"layer0: bias has shape \(4,\), expected \(5,\)"),
    "bias huge": (_weight(lambda b: b - (1 << 60), field="bias"), r"layer0: a bias of size \d+, the most is"),
    "bias most negative": (_weight(lambda b: b * 0 - (1 << 63), field="bias"), r"layer0: a bias of size 9223372036854775808"),
    "sums too large": (_weight(lambda b: b * 0 + (1 << 51), field="bias"), r"layer0: its sums may reach \d+, the most is"),
    "threshold 0": (_weight(lambda t: t * 0, field="threshold"), r"layer0: threshold of channel 0 is 0, it must be positive"),
    "threshold negative": (_weight(lambda t: -t, field="threshold"), r"layer0: threshold of channel \d is -\d+, it must be positive"),
    "threshold huge": (_weight(lambda t: t + (1 << 52), field="threshold"), r"layer0: threshold reaches \d+, the most is"),
    "threshold of another size": (_weight(lambda t: t[1:], field="threshold"), r"layer0: threshold has shape \(4,\), expected \(5,\)"),
    "threshold fraction": (_weight(lambda t: t + 0.5, field="threshold"), r"layer0: threshold is of type torch.float32, not integers"),
    "no threshold": (_set("layers", 0, "threshold", to=None), r"layer0: has no threshold, but is not the last layer"),
    "threshold on the read-out": (
        _set("layers", 1, "threshold", to=torch.ones(3, dtype=torch.int64)),
        r"layer1: the read-out has a threshold",
    ),
    "read-out of another size": (_weight(lambda w: w[:, 1:], layer=1), r"layer1: takes 4 inputs, but 5 arrive"),
    "scale none": (_set("layers", 1, "scale", to=None), r"layer1: scale is None, not a positive number"),
    "scale 0": (_set("layers", 1, "scale", to=0.0), r"layer1: scale is 0.0, not a positive number"),
    "scale NaN": (_set("layers", 1, "scale", to=float("nan")), r"layer1: scale is nan, not a positive number"),
    "scale infinite": (_set("layers", 1, "scale", to=float("inf")), r"layer1: scale is inf, not a positive number"),
    "meta text": (_set("meta", to="97 %"), r"meta is '97 %', not a value of type dict"),
}


@pytest.mark.parametrize("case", BAD_FIELDS)
def test_bad_field(case: str, saved: Path) -> None:
    change, wanted = BAD_FIELDS[case]
    torch.save(change(torch.load(saved, weights_only=True)), saved)
    assert re.match(f"(file: )?{wanted}", refusal(saved))


# --- the file is not what it says -------------------------------------------------------------------------------------


class _Evil:
    def __init__(self, command: Any):
        self.command = command

    def __reduce__(self) -> Any:
        return self.command


@pytest.mark.parametrize("function", [os.system, os.mkdir, subprocess.call, eval, torch.load])
@pytest.mark.parametrize("place", ["whole", "meta", "weight"])
def test_pickled_code_is_not_executed(function: Any, place: str, saved: Path, tmp_path: Path) -> None:
    mark = tmp_path / "executed"
    arguments = {os.mkdir: str(mark), eval: f"__import__('os').mkdir({str(mark)!r})", subprocess.call: ["mkdir", str(mark)]}
    evil: Any = _Evil((function, (arguments.get(function, f"mkdir {mark}"),)))
    content = torch.load(saved, weights_only=True)
    if place == "whole":
        content = evil
    elif place == "meta":
        content["meta"]["note"] = evil
    else:
        content["layers"][0]["weight"] = evil
    torch.save(content, saved)
    assert "never executed" in refusal(saved)
    assert not mark.exists()


def test_a_whole_module_is_refused(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    assert "never executed" in refusal(tmp_path / "model.pt")


def test_a_state_dict_is_refused_by_the_missing_field(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2).state_dict(), tmp_path / "model.pt")
    assert refusal(tmp_path / "model.pt").startswith("file: the field 'format' is missing")


@pytest.mark.parametrize("content", [b"", b"hello\n", b"PK\x03\x04", pickle.dumps({"format": "casc-net"}), bytes(range(256)) * 40])
def test_other_files_are_refused(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(content)
    assert "not a converted network" in refusal(tmp_path / "net.pt")


def test_other_archives_are_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "damaged" in refusal(tmp_path / "net.pt")


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casc_hw.network.MAX_FILE_BYTES", 1 << 20)
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 21))
    assert "bytes unpacked, the most is" in refusal(tmp_path / "net.pt")


def test_a_large_file_is_refused_unread(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("casc_hw.network.MAX_FILE_BYTES", 100)
    assert re.match(r"\d+ bytes, the most is 100", refusal(saved))


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in refusal(tmp_path / "none.pt")
    assert "not a converted network" in refusal(tmp_path)


def test_truncated_file(saved: Path) -> None:
    whole = saved.read_bytes()
    for length in sorted({*range(0, len(whole), 97), len(whole) - 1, len(whole) - 22}):
        saved.write_bytes(whole[:length])
        refusal(saved)


def test_flipped_bits_are_refused_or_harmless(net: IntegerNet, saved: Path) -> None:
    """A flip in the padding changes nothing; one anywhere else must not load as another network."""
    whole, chance, refused = saved.read_bytes(), random.Random(1), 0
    for position in range(0, len(whole), 5):
        damaged = bytearray(whole)
        damaged[position] ^= 1 << chance.randrange(8)
        saved.write_bytes(damaged)
        try:
            back = IntegerNet.load(saved)
        except CascError:
            refused += 1
        else:
            assert back.digest == net.digest
            assert (back.name, back.meta) == (net.name, net.meta)
            assert [layer.name for layer in back.layers] == [layer.name for layer in net.layers]
    assert refused > len(whole) / 5 / 4


@pytest.mark.parametrize("name", ["data.pkl", "data/0", "data/1", "data/4"])
def test_a_flipped_bit_in_a_tensor_is_refused(name: str, saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        member = archive.getinfo(f"{archive.infolist()[0].filename.partition('/')[0]}/{name}")
        value = archive.read(member)
    whole = saved.read_bytes()
    assert whole.count(value) == 1
    damaged = bytearray(whole)
    damaged[whole.index(value) + len(value) // 2] ^= 4
    saved.write_bytes(damaged)
    assert refusal(saved).startswith("damaged")


# --- saving -----------------------------------------------------------------------------------------------------------


def test_a_failing_save_leaves_the_old_file_and_nothing_else(net: IntegerNet, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def fail(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fail)
    with pytest.raises(CascError, match=r"net\.pt: cannot be written: No space left on device; choose another place"):
        net.save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_an_interrupted_save_leaves_the_old_file_and_nothing_else(net: IntegerNet, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = saved.read_bytes()

    def interrupt(source: Any, target: Any) -> None:
        assert saved.read_bytes() == before, "written in place"
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupt)
    with pytest.raises(KeyboardInterrupt):
        replace(net, levels=9).save(saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def test_save_replaces_and_is_readable_by_all(net: IntegerNet, saved: Path) -> None:
    replace(net, levels=9).save(saved)
    assert IntegerNet.load(saved).levels == 9
    assert saved.stat().st_mode & 0o777 == 0o644


def test_save_into_no_folder(net: IntegerNet, tmp_path: Path) -> None:
    with pytest.raises(CascError, match="cannot be written: No such file or directory; choose another place"):
        net.save(tmp_path / "none" / "net.pt")


@pytest.mark.parametrize("value", [object(), {1, 2}, Path("x"), [{"deep": 1j}], numpy.float64(97.5)])
def test_meta_that_could_not_be_read_back_is_refused(value: Any, net: IntegerNet, tmp_path: Path) -> None:
    with pytest.raises(CascError, match=r"^meta: '(accuracy|deep)' holds .*; use texts, numbers, lists and dictionaries$"):
        replace(net, meta={"accuracy": value})
    assert not list(tmp_path.iterdir())


# --- images -----------------------------------------------------------------------------------------------------------


def test_images_are_flattened_to_integers(make_net: Net) -> None:
    net = replace(make_net((6, 3, 2)), input_shape=(2, 3))
    images = torch.arange(12, dtype=torch.uint8).reshape(2, 2, 3)
    flat = net.check_images(images)
    assert flat.dtype == torch.int64
    assert flat.tolist() == [list(range(6)), list(range(6, 12))]
    assert torch.equal(net.check_images(images.double()), flat)


@pytest.mark.parametrize(
    ("images", "wanted"),
    [
        (torch.zeros(2, 5), r"shape \(2, 5\) is not a batch of \(6,\); give an array of shape \(N, 6\)"),
        (torch.zeros(6), r"shape \(6,\) is not a batch"),
        (torch.zeros(()), r"shape \(\) is not a batch"),
        (torch.full((1, 6), 0.5), "got fractions"),
        (torch.full((1, 6), float("nan")), "got fractions"),
        (torch.full((1, 6), float("inf")), "pixels span"),
        (torch.full((1, 6), -1), "pixels span -1 to -1, the network takes 0 to 200"),
        (torch.full((1, 6), 201), "pixels span 201 to 201, the network takes 0 to 200"),
    ],
)
def test_images_that_do_not_fit(images: torch.Tensor, wanted: str, make_net: Net) -> None:
    with pytest.raises(CascError, match=wanted):
        make_net((6, 3, 2), input_max=200).check_images(images)
