"""The command line as a user meets it: in a process of its own, from a folder of its own."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casc_hw import IntegerNet

ROOT = Path(__file__).resolve().parents[2]
DIGITS = ROOT / "examples" / "digits_mlp.pt"
MNIST = ROOT / "examples" / "mnist_mlp.pt"


@pytest.fixture
def rtl_gen(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """Runs a verb in an empty folder; the environment can be changed."""

    def run(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "rtl_gen", *map(str, arguments)]
        env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment}
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)

    return run


def refused(done: subprocess.CompletedProcess[str], folder: Path, *words: str, kept: tuple[str, ...] = ()) -> None:
    """Exit status 1, one sentence with ``words`` and what to do, and nothing but ``kept`` in the folder."""
    assert done.returncode == 1, done.stderr
    assert done.stdout == ""
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    assert "; " in lines[0]
    for word in words:
        assert word in lines[0]
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept)


@pytest.fixture
def damaged(tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], None]], Path]:
    """The digits network with its file's content changed."""

    def make(change: Callable[[dict[str, Any]], None]) -> Path:
        content = torch.load(DIGITS, weights_only=True)
        change(content)
        torch.save(content, tmp_path / "net.pt")
        return tmp_path / "net.pt"

    return make


def _nan(content: dict[str, Any]) -> None:
    (synapses,) = content["nodes"][0]["synapses"]
    synapses["weight"] = synapses["weight"].double()
    synapses["weight"][3, 1] = float("nan")


def _narrow(content: dict[str, Any]) -> None:
    (synapses,) = content["nodes"][1]["synapses"]
    synapses["weight"] = synapses["weight"][:, 1:].clone()


BAD_NETS = {
    "wrong layer": (lambda content: content["nodes"][0].update(type="lstm"), ("'lstm'",)),
    "NaN weight": (_nan, ("weight", "nan")),
    "threshold 0": (lambda content: content["nodes"][0]["threshold"].__setitem__(5, 0), ("threshold of channel 5 is 0",)),
    "missing field": (lambda content: content["nodes"][1].pop("bias"), ("'bias' is missing",)),
    "sizes that do not meet": (_narrow, ("takes 31 inputs, but 32 arrive",)),
}


@pytest.mark.parametrize("case", BAD_NETS)
def test_bad_network(case: str, rtl_gen: Any, damaged: Any, tmp_path: Path) -> None:
    change, words = BAD_NETS[case]
    refused(rtl_gen("build", "--net", damaged(change)), tmp_path, *words, kept=("net.pt",))


def test_pickled_code_is_not_run(rtl_gen: Any, tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "owned"),)

    torch.save({"format": "casc-net", "evil": Evil()}, tmp_path / "net.pt", pickle_module=pickle)
    refused(rtl_gen("build", "--net", tmp_path / "net.pt"), tmp_path, "never executed", kept=("net.pt",))


def test_network_too_large(rtl_gen: Any, tmp_path: Path) -> None:
    words = ("of LUT4, iCE40UP5K has 52 to give", "too few", "no fewer bits or levels would do")
    refused(rtl_gen("build", "--net", DIGITS, "--board", "icebreaker", "--max-share", "0.01"), tmp_path, *words)


def test_a_target_out_of_reach(rtl_gen: Any, tmp_path: Path) -> None:
    words = ("digits_mlp: 100,000,000 images a second", "at 24 MHz, iCE40UP5K gives", "at best", "held by")
    refused(rtl_gen("plan", "--net", DIGITS, "--board", "icebreaker", "--target-fps", "1e8"), tmp_path, *words)


def test_missing_tool(rtl_gen: Any, tmp_path: Path) -> None:
    done = rtl_gen("build", "--net", DIGITS, "--board", "icebreaker", PATH=str(tmp_path))
    refused(done, tmp_path, "g++")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["plan", "--board", "altair"], ["'altair'", "icebreaker"]),
        (["plan", "--net", "nothing.pt"], ["nothing.pt"]),
        (["plan", "--lanes", "nolayer=4"], ["'nolayer'"]),
        (["plan", "--net", DIGITS, "--lanes", "hidden=8x3"], ["hidden", "3 neuron lanes for 8"]),
        (["plan", "--max-lut", "0%"], ["max LUT4s"]),
        (["plan", "--max-share", "1.5"], ["1.5"]),
        (["plan", "--net", DIGITS, "--data", MNIST.with_name("mnist_mlp_images.npz")], ["(1000, 28, 28)"]),
        (["sim", "--net", DIGITS, "--images", "100000"], ["100000"]),
        (["sim", "--net", DIGITS, "--simulator", "icarus", "--vcd", "x.vcd"], ["vcd"]),
        (["sim", "--net", DIGITS, "--stage", "synth", "--stall", "0.3"], ["stage", "--stall"]),
        (["sim", "--net", DIGITS, "--stage", "bitstream"], ["bitstream of ulx3s-85f"]),
        (["serve", "--net", DIGITS, "--baud", "12000000"], ["baud"]),
        (["run", "--port", "/dev/nothing", MNIST.with_name("mnist_mlp_images.npz")], ["/dev/nothing"]),
        (["report", "nowhere"], ["plan.json"]),
        (["convert", "--model", "nowhere.py:f", "--shape", "8x8"], ["'nowhere.py:f'"]),
    ],
)
def test_bad_arguments(arguments: list[object], words: list[str], rtl_gen: Any, tmp_path: Path) -> None:
    refused(rtl_gen(*arguments), tmp_path, *words)


@pytest.mark.parametrize(
    "arguments",
    [
        ["plan", "--lanes", "four"],
        ["plan", "--lanes", "hidden=8x"],
        ["plan", "--max-lut", "many"],
        ["plan", "--code", "rate"],
        ["plan", "--nonsense"],
        ["convert"],
        ["sim", "--stall", "2"],
    ],
)
def test_usage_errors_end_with_2(arguments: list[str], rtl_gen: Any, tmp_path: Path) -> None:
    assert rtl_gen(*arguments).returncode == 2
    assert list(tmp_path.iterdir()) == []


def test_help_needs_nothing_heavy() -> None:
    code = "import sys, rtl_gen.__main__; print({'torch', 'amaranth', 'numpy', 'cocotb', 'rich'} & set(sys.modules))"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=True)
    assert shown.stdout.strip() == "set()"


def test_every_verb_helps_with_an_example(rtl_gen: Any) -> None:
    from rtl_gen.__main__ import main

    assert set(main.commands) == {
        "build", "plan", "verilog", "sim", "report", "boards", "convert", "run", "serve", "prove", "breadth", "mutate", "coverage",
        "fuzz",
    }  # fmt: skip
    for name, command in main.commands.items():
        assert name == "boards" or f"python -m rtl_gen {name}" in (command.help or "")
    assert "Examples:" in rtl_gen("--help").stdout


def test_plan_as_json(rtl_gen: Any) -> None:
    said = json.loads(rtl_gen("plan", "--net", DIGITS, "--board", "icebreaker", "--json").stdout)
    assert said["net"] == "digits_mlp"
    assert said["resources"]["lut4"] <= 0.8 * 5280
    assert said["code"] == "count"
    name = said["layers"][0]["name"]
    wide = json.loads(rtl_gen("plan", "--net", DIGITS, "--lanes", f"{name}=32x4", "--code", "spike", "--json").stdout)
    assert (wide["layers"][0]["synapse_lanes"], wide["layers"][0]["neuron_lanes"], wide["code"]) == (32, 4, "spike")
    assert wide["digest"] != said["digest"]
    small = json.loads(rtl_gen("plan", "--net", DIGITS, "--max-lut", "5%", "--json").stdout)
    assert small["resources"]["lut4"] <= 0.05 * 83640
    slow = json.loads(rtl_gen("plan", "--net", DIGITS, "--target-fps", "50000", "--json").stdout)
    assert slow["clock_hz"] / slow["prediction"]["interval"] >= 50000
    assert slow["resources"]["lut4"] < wide["resources"]["lut4"]


@pytest.mark.parametrize("verb", ["build", "plan", "sim", "verilog", "serve"])
def test_verbs_that_plan_share_their_options(verb: str) -> None:
    from rtl_gen.__main__ import main

    names = {name for option in main.commands[verb].params for name in option.opts}
    assert {"--net", "--board", "--data", "--code", "--lanes", "--fastest", "--target-fps", "--max-lut", "--max-share"} <= names


def test_a_plan_in_words(rtl_gen: Any) -> None:
    done = rtl_gen("plan", "--net", MNIST.with_name("mnist_cnn_avg.pt"))
    assert done.returncode == 0, done.stderr
    words = (
        "conv 3x3",
        "average pool 2x2",
        "dense, read-out",
        "16x28x28",
        "bottleneck",
        "held by",
        "bounds of the plan",
        "partial sums of a row",
    )
    for word in words:
        assert word in done.stdout, word


def test_boards_as_json(rtl_gen: Any) -> None:
    names = [board["name"] for board in json.loads(rtl_gen("boards", "--json").stdout)]
    assert names == ["icebreaker", "ulx3s-12f", "ulx3s-25f", "ulx3s-45f", "ulx3s-85f"]


def test_convert_then_plan_then_verilog(rtl_gen: Any, tmp_path: Path) -> None:
    (tmp_path / "model.py").write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Dropout(), nn.Linear(9, 3))\n"
    )
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 9), torch.nn.ReLU(), torch.nn.Dropout(), torch.nn.Linear(9, 3))
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    np.save(tmp_path / "images.npy", np.random.default_rng(1).integers(0, 256, (50, 3, 4), dtype=np.uint8))
    arguments = ["--model", "model.py:make", "--weights", "weights.pt", "--shape", "3x4", "--levels", "16", "--out", "my.pt"]
    refused(rtl_gen("convert", *arguments), tmp_path, "calibration", kept=("model.py", "weights.pt", "images.npy"))
    done = rtl_gen("convert", *arguments, "--calibrate", "images.npy", "--bits", "1=4,4=8", "--per-channel")
    assert done.returncode == 0, done.stderr
    for told in ("same class as the float network", "1: activations off by", "clipped 0.", "1: activation scale", " to "):
        assert told in done.stdout
    net = IntegerNet.load(tmp_path / "my.pt")
    assert (net.levels, net.input_shape, [layer.synapses[0].bits for layer in net.layers]) == (16, (3, 4), [4, 8])
    assert rtl_gen("plan", "--net", "my.pt", "--board", "icebreaker").returncode == 0
    done = rtl_gen("verilog", "--net", "my.pt", "--out", "made/my.v")
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "made" / "my.v").read_text()
    assert "module casc_my(" in text
    if shutil.which("iverilog"):
        subprocess.run(["iverilog", "-g2005", "-t", "null", tmp_path / "made" / "my.v"], check=True)


@pytest.mark.slow
def test_build_report_and_rebuild(rtl_gen: Any, tmp_path: Path) -> None:
    done = rtl_gen("build", "--net", DIGITS, "--board", "ulx3s-12f", "--prove", "3")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "build" / "digits_mlp-ulx3s-12f"
    assert json.loads((folder / "plan.json").read_text())["code"] == "count"
    assert {"digits_mlp.bit", "report.html", "report.json", "plan.json", "build.json", "sim.json", "net.pt"} <= {
        p.name for p in folder.iterdir()
    }
    built = json.loads((folder / "build.json").read_text())
    assert built["fmax_mhz"]["sync"] >= built["sync_mhz"] >= 60
    before = (folder / "report.html").stat().st_mtime_ns
    assert rtl_gen("report", folder).returncode == 0
    assert (folder / "report.html").stat().st_mtime_ns > before
    bitstream = (folder / "digits_mlp.bit").read_bytes()
    done = rtl_gen("build", "--net", DIGITS, "--board", "ulx3s-12f", "--prove", "0", "--max-share", "0.001")
    assert done.returncode == 1
    assert (folder / "digits_mlp.bit").read_bytes() == bitstream
