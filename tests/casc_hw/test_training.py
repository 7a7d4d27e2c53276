"""Training with floats and with rounding, as a library and as the verb: scikit-learn's digits in a few seconds."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from torch import Tensor, nn

from casc_hw import CascError, ClipQuan, IntegerNet, clip_quant, convert, finetune, fit, quantised_ann
from casc_hw.__main__ import main
from casc_hw.qat import fake_quantise
from casc_hw.training import accuracy

SHAPE: Any = {"input_shape": (8, 8), "input_max": 16}
QUICK: Any = SHAPE | {"batch": 50, "rate": 1e-2}
Split = tuple[Tensor, Tensor, Tensor, Tensor]


@pytest.fixture(scope="module")
def digits() -> Split:
    """1,437 images and labels to train on, 360 to measure with."""
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images, labels = torch.from_numpy(data.images.astype(np.uint8))[order], torch.from_numpy(data.target.astype(np.int64))[order]
    return images[360:], labels[360:], images[:360], labels[:360]


def make(seed: int = 0, scale: Any = None) -> nn.Module:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
    return clip_quant(model, 8, scale)


@pytest.fixture(scope="module")
def trained(digits: Split) -> nn.Module:
    model = make()
    fit(model, *digits[:2], **QUICK, epochs=15)
    return model


def integer_accuracy(net: IntegerNet, images: Tensor, labels: Tensor) -> float:
    return float((quantised_ann(net, images).classes == labels).double().mean())


@pytest.mark.parametrize(("bits", "least"), [(8, 0.95), (6, 0.95), (4, 0.95), (3, 0.95), (2, 0.94), ({"1": 2, "4": 3}, 0.94)])
def test_finetuning_at_every_width(bits: Any, least: float, trained: nn.Module, digits: Split) -> None:
    before = {key: value.clone() for key, value in trained.state_dict().items()}
    tuned = finetune(trained, *digits[:2], **SHAPE, bits=bits, epochs=3, rate=2e-3, batch=50, validation=digits[2:])
    assert all(torch.equal(value, before[key]) for key, value in trained.state_dict().items())
    net = convert(tuned.model, **SHAPE, bits=bits).net
    assert [layer.synapses[0].bits for layer in net.layers] == ([2, 3] if isinstance(bits, dict) else [bits] * 2)
    measured = integer_accuracy(net, *digits[2:])
    assert measured >= least
    # What training saw is what the chip gets: but for sums within a float's rounding of a threshold
    assert tuned.epochs[-1].accuracy == pytest.approx(measured, abs=1 / 360)
    assert accuracy(fake_quantise(tuned.model, **SHAPE, bits=bits), *digits[2:], **SHAPE) == tuned.epochs[-1].accuracy
    plain = integer_accuracy(convert(trained, **SHAPE, bits=bits).net, *digits[2:])
    assert measured >= plain - 0.01
    if bits == 2:
        assert measured > plain + 0.02  # for what it is done


@pytest.mark.parametrize("kind", ["layer", "channel"])
def test_clipping_scales_are_trained_and_folded(kind: Any, digits: Split) -> None:
    model = make(scale=kind)
    fit(model, *digits[:2], **QUICK, epochs=8)
    tuned = finetune(model, *digits[:2], **SHAPE, bits=4, epochs=1, batch=50).model
    scale, first = tuned[3].scale, model[3].scale
    assert scale.shape == (() if kind == "layer" else (32,))
    assert not torch.allclose(first, torch.ones(()), atol=0.01)
    assert not torch.equal(scale, first)
    assert integer_accuracy(convert(tuned, **SHAPE, bits=4).net, *digits[2:]) >= 0.94


@pytest.mark.parametrize("seed", [1, 2])
def test_a_seed_repeats_everything(seed: int, digits: Split) -> None:
    images, labels = digits[0][:300], digits[1][:300]

    def noise(x: Tensor, chance: torch.Generator) -> Tensor:
        return x + 0.1 * torch.randn(x.shape, generator=chance)

    def weights(seed: int) -> tuple[Tensor, Any]:
        model = nn.Sequential(nn.Dropout(0.1), *make())
        epochs = fit(model, images, labels, **SHAPE, epochs=2, seed=seed, augment=noise)
        tuned = finetune(model, images, labels, **SHAPE, epochs=1, seed=seed)
        return torch.cat([parameter.flatten() for parameter in tuned.model.parameters()]), (epochs, tuned.epochs)

    (once, epochs), (again, same) = weights(seed), weights(seed)
    assert torch.equal(once, again)
    assert epochs == same
    assert not torch.equal(once, weights(seed + 5)[0])
    model, drawn = make(), torch.get_rng_state()
    fit(model, images, labels, **SHAPE, epochs=1, seed=seed)
    assert torch.equal(drawn, torch.get_rng_state())


def test_any_loss_and_targets(trained: nn.Module, digits: Split) -> None:
    images = digits[0]
    with torch.no_grad():
        logits = trained(images / 16)
    model, heard = make(seed=1), []
    held = images[:100], logits[:100]
    epochs = fit(model, images, logits, **QUICK, epochs=6, loss=nn.functional.mse_loss, validation=held, told=heard.append)
    assert tuple(heard) == epochs
    assert epochs[-1].loss < epochs[0].loss / 3
    assert all(epoch.accuracy is None for epoch in epochs)
    assert epochs[-1].held_loss == pytest.approx(nn.functional.mse_loss(model(images[:100] / 16), logits[:100]).item(), rel=1e-5)
    assert accuracy(model, *digits[2:], **SHAPE) > 0.93
    assert finetune(model, images, logits, **SHAPE, bits=3, epochs=1, loss=nn.functional.mse_loss).epochs[0].loss < epochs[0].loss
    assert not model.training


@pytest.mark.parametrize("setting", [{"rate": 1e-3}, {"batch": 50}, {"smoothing": 0.2}, {"input_max": 255}, {"epochs": 2}])
def test_every_setting_counts(setting: dict[str, Any], digits: Split) -> None:
    def loss(**setting: Any) -> float:
        return fit(make(), digits[0][:200], digits[1][:200], **{**SHAPE, "epochs": 1} | setting)[0].loss

    assert loss() == loss() != loss(**setting)


def test_a_convolution_sees_its_channel(digits: Split) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), ClipQuan(4), nn.Conv2d(2, 10, 6))
    epochs = fit(model, digits[0], digits[1], **QUICK, epochs=3, validation=digits[2:])
    assert epochs[2].loss < epochs[0].loss
    assert epochs[2].accuracy > 0.4
    assert len(finetune(model, *digits[:2], **SHAPE, epochs=1).epochs) == 1


def wrong(**other: Any) -> dict[str, Any]:
    images, labels = torch.zeros(4, 8, 8, dtype=torch.uint8), torch.arange(4)
    return {"model": make(), "images": images, "targets": labels, "input_shape": (8, 8), "input_max": 16} | other


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ({"images": torch.zeros(4, 9, 9, dtype=torch.uint8)}, r"images: shape \(4, 9, 9\) is not \(N, 8, 8\)"),
        ({"images": torch.zeros(0, 8, 8, dtype=torch.uint8), "targets": torch.zeros(0)}, "images: shape"),
        ({"images": torch.zeros(4, 8, 8)}, "images: are of torch.float32"),
        ({"images": torch.full((4, 8, 8), 17)}, "images: pixels span 17 to 17, not 0 to 16"),
        ({"targets": torch.arange(3)}, "labels: 3 for 4 images"),
        ({"targets": torch.tensor([0, 1, 2, 10])}, "labels: classes span 0 to 10, but the network has 10 outputs"),
        ({"targets": torch.tensor([0, 1, 2, -1])}, "labels: classes span -1 to 2"),
        ({"targets": torch.zeros(4, 10)}, r"labels: are torch.float32 of shape \(4, 10\), not classes"),
        ({"model": nn.Sequential(nn.Flatten(), nn.Linear(65, 2))}, r"model: fails on images of shape \(1, 8, 8\)"),
        ({"epochs": 0}, "epochs: 0 is not a positive integer"),
        ({"batch": 2.0}, "batch: 2.0 is not a positive integer"),
        ({"batch": 1}, "batch: one image alone trains no BatchNorm"),
        ({"rate": -1.0}, "rate: -1.0 is not a positive number"),
        ({"loss": lambda output, wanted: output.sum() * float("nan")}, "epoch 1: the loss is nan"),
    ],
)
def test_what_does_not_fit_is_refused(other: dict[str, Any], message: str) -> None:
    with pytest.raises(CascError, match=f"^{message}.*; "):
        fit(**wrong(**other))


def test_relus_cannot_be_tuned() -> None:
    with pytest.raises(CascError, match=r"^1: ReLU has no levels.*; "):
        finetune(**wrong(model=nn.Sequential(nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4))))


# --- the verb ---------------------------------------------------------------------------------------------------------

MODEL = """
from torch import nn
def make():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 32, bias=False), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10))
def conv():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(36, 10))
def lstm():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 10))
"""


@pytest.fixture
def train(tmp_path: Path, digits: Split, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    (tmp_path / "model.py").write_text(MODEL)
    np.savez(tmp_path / "train.npz", images=digits[0].numpy(), labels=digits[1].numpy())
    np.savez(tmp_path / "held.npz", images=digits[2].numpy(), labels=digits[3].numpy().astype(np.uint8))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(main, ["train", "--input-max", "16", "--shape", "8x8", "--model", "model.py:make", "--data", "train.npz",
                                         *map(str, arguments)])  # fmt: skip

    return run


@pytest.mark.parametrize(("bits", "scale"), [("4", ["--clip-scale", "channel"]), ("2", [])])
def test_train_end_to_end(bits: str, scale: list[str], train: Any, tmp_path: Path, digits: Split) -> None:
    done = train("--validate", "held.npz", "--bits", bits, *scale, "--epochs", 12, "--rate", 0.01, "--batch", 50, "--tune", 2, "--json")
    assert (done.exit_code, done.stderr) == (0, "")
    said = json.loads(done.stdout)
    net = IntegerNet.load(tmp_path / "trained.pt")
    assert (said["file"], said["net"], said["levels"], said["digest"]) == ("trained.pt", "trained", 8, net.digest)
    assert (said["training_images"], said["validation_images"]) == (1437, 360)
    assert {layer.synapses[0].bits for layer in net.layers} == {int(bits)}
    shares = said["accuracy"]
    assert list(shares) == ["float, with ClipQuan", "float, weights rounded", "integer ANN", "integer SNN"]
    assert shares["integer ANN"] == shares["integer SNN"] == integer_accuracy(net, *digits[2:]) >= 0.93
    assert shares["float, weights rounded"] == pytest.approx(shares["integer ANN"], abs=1 / 360)
    assert shares["float, with ClipQuan"] >= 0.94


def test_training_goes_on_from_saved_weights(train: Any, tmp_path: Path) -> None:
    common = ["--model", "model.py:conv", "--levels", 5, "--clip-scale", "layer", "--bits", "0=8,4=3", "--batch", 50, "--seed", 3]
    done = train(*common, "--epochs", 1, "--tune", 0, "--save-weights", "w.pt", "--rate", 0.01)
    assert done.exit_code == 0, done.stderr
    assert "trained.pt: T = 5" in done.stdout
    assert "accuracy on 143 images" in done.stdout
    assert "weights rounded" not in done.stdout
    assert set(torch.load(tmp_path / "w.pt", weights_only=True)) == {"0.weight", "0.bias", "1.log_scale", "4.weight", "4.bias"}
    first = IntegerNet.load(tmp_path / "trained.pt")
    done = train(*common, "--epochs", 0, "--tune", 0, "--weights", "w.pt", "--out", "again.pt", "--name", "trained")
    assert done.exit_code == 0, done.stderr
    again = IntegerNet.load(tmp_path / "again.pt")
    for one, two in zip(first.layers, again.layers, strict=True):
        assert torch.equal(one.synapses[0].weight, two.synapses[0].weight)
        assert one.synapses[0].bits == two.synapses[0].bits == {"0": 8, "4": 3}[one.name]
    done = train(*common, "--epochs", 0, "--tune", 1, "--tune-rate", 1e-2, "--weights", "w.pt", "--out", "tuned.pt")
    assert done.exit_code == 0, done.stderr
    assert not torch.equal(IntegerNet.load(tmp_path / "tuned.pt").layers[0].synapses[0].weight, first.layers[0].synapses[0].weight)
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--data", "nothing.npz"], "nothing.npz"),
        (["--data", "unlabelled.npz"], "holds no 'labels'"),
        (["--data", "fractions.npz"], "not integers 0 to 16"),
        (["--data", "few.npz"], "few.npz: 3 images leave none"),
        (["--data", "empty.npz"], "holds no images"),
        (["--data", "far.npz"], "labels: classes span 0 to 10, but the network has 10 outputs"),
        (["--shape", "7x7"], "(1437, 8, 8) is not (N, 7, 7)"),
        (["--rate", "1e20"], "lower the rate"),
        (["--rate", "0"], "rate: 0.0"),
        (["--bits", "5"], "5-bit weights"),
        (["--bits", "nowhere=4"], "'nowhere'"),
        (["--levels", "0"], "levels is 0"),
        (["--model", "model.py:lstm"], "3: LayerNorm"),
        (["--weights", "train.npz"], "not a state_dict"),
        (["--out", "nowhere/my.pt"], "there is no folder"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: list[str], words: str, train: Any, tmp_path: Path, digits: Split) -> None:
    images, labels = digits[0].numpy(), digits[1].numpy()
    files: dict[str, dict[str, Any]] = {
        "unlabelled": {"images": images},
        "fractions": {"images": images / 3, "labels": labels},
        "few": {"images": images[:3], "labels": labels[:3]},
        "empty": {"images": images[:0], "labels": labels[:0]},
        "far": {"images": images, "labels": labels + (labels == 9)},
    }
    if (name := arguments[1].removesuffix(".npz")) in files:
        np.savez(tmp_path / f"{name}.npz", **files[name])
    before = sorted(tmp_path.iterdir())
    done = train("--epochs", "1", "--tune", "1", *arguments)
    assert (done.exit_code, done.stdout) == (1, ""), done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "; " in line
    assert words in line
    assert sorted(tmp_path.iterdir()) == before
