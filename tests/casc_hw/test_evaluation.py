"""The four ways to run a network, side by side, and the command line that prints them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casc_hw import CascError, IntegerNet, SpikingNet, Step, quantised_ann, simulate
from casc_hw.evaluation import evaluate

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits_mlp.pt"
Net = Callable[..., IntegerNet]
Images = Callable[..., torch.Tensor]


@pytest.mark.parametrize("margin", [2, 8])
def test_the_modes_by_hand(margin: int, make_net: Net, make_images: Images) -> None:
    net = make_net((13, 29, 23, 19, 5), levels=8, margin=margin, spread=0.3, seed=1)
    images = make_images(net, 31)
    labels = torch.arange(31) % 5
    done = evaluate(net, images, labels, batch=7)
    wanted, trace = quantised_ann(net, images), simulate(net, images)
    assert [mode.name for mode in done.modes] == ["integer ANN", "plain IF, no sleep", "CIF, no sleep", "CIF and sleep"]
    ann, plain, cif, full = done.modes
    assert (ann.agreement, ann.equal, full.agreement, full.equal) == (1, 1, 1, 1)
    assert ann.accuracy == full.accuracy == float((wanted.classes == labels).double().mean())
    for mode, snn in ((plain, SpikingNet.plain(net)), (cif, SpikingNet(net, sleep=0))):
        with snn.statistics() as seen:
            answer = snn.run(images).answer
        assert mode.accuracy == float((answer.classes == labels).double().mean())
        assert mode.agreement == float((answer.classes == wanted.classes).double().mean())
        assert mode.equal == float((torch.cat(answer.counts, 1) == torch.cat(wanted.counts, 1)).double().mean()) < 1
        assert (mode.spikes, mode.accumulates, mode.energy_pj) == (seen.spikes, seen.accumulates, seen.energy_pj)
    assert plain.negative == 0 < cif.negative
    steps = sorted(trace.sleep_steps.tolist())
    assert done.sleep_steps == {"median": steps[15], "p99": steps[30], "max": steps[30]}
    assert done.images == 31
    assert json.loads(json.dumps(done.as_json()))["modes"][3]["spikes"] == full.spikes
    told = json.loads(json.dumps(done.as_json()))["modes"][3]
    last = done.activity[-1].asleep  # of the last sleep
    assert told["over_steps"][-1] == {"t": 8, "asleep": last, "accuracy": full.accuracy, "agreement": 1}
    assert margin == 2 or last == steps[30]
    assert told["histogram"]["layer1"] == list(full.histogram["layer1"])
    blind = [replace(mode, accuracy=None, over_steps=tuple(replace(at, accuracy=None) for at in mode.over_steps)) for mode in done.modes]
    assert evaluate(net, images, batch=31) == replace(done, modes=tuple(blind))


@pytest.mark.parametrize("margin", [3, 8])
def test_histogram_and_accuracy_over_steps_by_hand(margin: int, make_net: Net, make_images: Images) -> None:
    net = make_net((13, 29, 23, 19, 5), levels=8, margin=margin, spread=0.3, seed=1)
    images = make_images(net, 20)
    labels = torch.arange(20) % 5
    done = evaluate(net, images, labels, batch=7)
    wanted = quantised_ann(net, images)
    for mode, snn in zip(done.modes[1:], (SpikingNet.plain(net), SpikingNet(net, sleep=0), SpikingNet(net)), strict=True):
        # one image at a time: by (t, asleep), the class after the step
        seen: list[dict[tuple[int, int], int]] = []
        for image in images:
            took: list[Step] = []
            with snn.register_step_hook(took.append):
                snn.run(image[None])
            seen.append({(step.t, step.asleep): int(step.sums.flatten().argmax()) for step in took})
        for at in mode.over_steps:
            then = torch.tensor([of[max(key for key in of if key <= (at.t, at.asleep))] for of in seen])
            assert at.accuracy == pytest.approx(float((then == labels).double().mean()))
            assert at.agreement == pytest.approx(float((then == wanted.classes).double().mean()))
        assert [(at.t, at.asleep) for at in mode.over_steps] == sorted({key for of in seen for key in of})
        counts = snn.run(images).answer.counts
        for layer, of in zip(net.spiking, counts, strict=True):
            assert list(mode.histogram[layer.name]) == [int((of == count).sum()) for count in range(9)]
    assert len({at.agreement for at in done.modes[3].over_steps}) > 1
    assert done.modes[0].over_steps == ()
    assert sum(done.modes[0].histogram["layer2"]) == 20 * 19


def test_what_does_not_fit_is_refused(make_net: Net, make_images: Images) -> None:
    net = make_net((5, 7, 3))
    images = make_images(net, 4)
    for arguments, word in (((images[:0],), "image"), ((images, torch.zeros(3)), "labels"), ((images, torch.zeros(4)), "labels")):
        with pytest.raises(CascError, match=rf"^{word}: .*; "):
            evaluate(net, *arguments)
    with pytest.raises(CascError, match=r"^batch: 0 .*; "):
        evaluate(net, images, batch=0)


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.fixture
def casc_hw(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a verb in an empty folder."""

    def run(*arguments: object) -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "casc_hw", *map(str, arguments)]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)

    return run


def test_evaluate_as_json_and_in_words(casc_hw: Any) -> None:
    done = casc_hw("evaluate", "--net", DIGITS, "--images", "30", "--levels", "4", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert (said["net"]["levels"], said["net"]["margin"], said["images"]) == (4, 4, 30)
    assert said["modes"][0]["accuracy"] == said["modes"][3]["accuracy"] > 0.8
    assert said["modes"][3]["equal"] == 1
    assert "proxy" in said["energy"]
    assert {row["layer"] for row in said["activity"]} == {"hidden", "readout"}
    done = casc_hw("evaluate", "--net", DIGITS, "--images", "10", "--steps", "--margin", "3", "--sleep", "2")
    assert done.returncode == 0, done.stderr
    for word in ("T = 8, margin 3, sleep 2; 10 images", "integer ANN", "CIF and sleep", "sleep steps: median 3", "wake 8", "proxy"):
        assert word in done.stdout, word


def test_evaluate_without_labels(casc_hw: Any, tmp_path: Path) -> None:
    np.save(tmp_path / "images.npy", np.zeros((3, 8, 8), np.uint8))
    done = casc_hw("evaluate", "--net", DIGITS, "--data", "images.npy")
    assert done.returncode == 0, done.stderr
    assert "no labels" in done.stdout


def test_convert_then_evaluate(casc_hw: Any, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\n"
        "from casc_hw import clip_quant\n"
        "def make():\n"
        "    return clip_quant(nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3)), levels=4)\n"
    )
    done = casc_hw("convert", "--model", "model.py:make", "--shape", "3x4", "--out", "my.pt", "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    net = IntegerNet.load(tmp_path / "my.pt")
    assert (said["file"], said["net"], said["levels"], said["digest"]) == ("my.pt", "my", 4, net.digest)
    assert set(said["weight_error"]) == {"1", "3"}
    done = casc_hw("evaluate", "--net", "my.pt", "--json")
    assert done.returncode == 0, done.stderr
    assert "random pixels" in json.loads(done.stdout)["data"]


@pytest.mark.parametrize("per_channel", [False, True])
def test_convert_tells_what_is_lost(per_channel: bool, casc_hw: Any, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "def make():\n"
        "    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 3))\n"
        "def bad():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.GELU(), nn.Linear(9, 3))\n"
    )
    np.save(tmp_path / "images.npy", np.random.default_rng(1).integers(0, 256, (50, 3, 4), dtype=np.uint8))
    rest = ["--shape", "3x4", "--levels", "8", "--calibrate", "images.npy", "--percentile", "0.8", *["--per-channel"] * per_channel]
    done = casc_hw("convert", "--model", "model.py:make", *rest, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert set(said["losses"]) == {"1"}
    assert 0 < said["losses"]["1"]["clipped"] < said["losses"]["1"]["total"] < 0.5
    assert not per_channel or len(said["scales"]["1"]) == 9
    done = casc_hw("convert", "--model", "model.py:bad", *rest)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: 2: GELU cannot be converted; use ")


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (["evaluate", "--net", "nothing.pt"], "nothing.pt"),
        (["evaluate", "--net", DIGITS, "--images", "100000"], "100000"),
        (["evaluate", "--net", DIGITS, "--levels", "256"], "levels"),
        (["evaluate", "--net", DIGITS, "--margin", "9"], "margin"),
        (["evaluate", "--net", DIGITS, "--sleep", "-1"], "sleep"),
        (["evaluate", "--net", DIGITS, "--data", DIGITS.with_name("mnist_mlp_images.npz")], "(1000, 28, 28)"),
        (["evaluate", "--net", DIGITS, "--data", DIGITS], "numpy.save"),
        (["convert", "--model", "nowhere.py:f", "--shape", "8x8"], "'nowhere.py:f'"),
    ],
)
def test_mistakes_end_in_one_sentence(arguments: list[object], word: str, casc_hw: Any, tmp_path: Path) -> None:
    done = casc_hw(*arguments)
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "; " in line
    assert word in line
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("labels", [np.zeros(2, np.uint8), np.zeros(3), np.array(["a", "b", "c"])])
def test_labels_that_do_not_fit(labels: np.ndarray, casc_hw: Any, tmp_path: Path) -> None:
    np.savez(tmp_path / "images.npz", images=np.zeros((3, 8, 8), np.uint8), labels=labels)
    done = casc_hw("evaluate", "--net", DIGITS, "--data", "images.npz")
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "labels" in line
    assert "; " in line


@pytest.mark.parametrize("arguments", [["evaluate", "--nonsense"], ["evaluate", "--batch", "0"], ["convert"]])
def test_usage_errors_end_with_2(arguments: list[str], casc_hw: Any) -> None:
    assert casc_hw(*arguments).returncode == 2


def test_help_has_examples_and_needs_nothing_heavy(casc_hw: Any) -> None:
    from casc_hw.__main__ import main

    assert set(main.commands) == {"convert", "evaluate", "import", "plot", "train"}
    for name, command in main.commands.items():
        assert f"python -m casc_hw {name}" in (command.help or "")
        assert "rtl_gen" not in (command.help or "")
    assert "Examples:" in casc_hw("--help").stdout
    code = "import sys, casc_hw.__main__; print({'torch', 'numpy', 'rich'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.strip() == "set()"
