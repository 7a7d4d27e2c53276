"""End to end on real gates: the command ``serve`` behind a pseudo-terminal, the command ``run`` and a hostile wire before it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import serial
import torch

from boards.host import Frame, Host, encode
from casc_hw import IntegerNet, quantised_ann
from rtl_gen.gates.frame import Kind

ROOT = Path(__file__).resolve().parents[2]
NET = ROOT / "examples" / "digits_mlp.pt"
DATA = ROOT / "examples" / "digits_mlp_images.npz"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
IMAGES = 20


@pytest.fixture(scope="module")
def terminal(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("serve")
    link = folder / "board"
    command = [sys.executable, "-m", "rtl_gen", "serve", "--net", NET, "--board", "icebreaker", "--mhz", "33", "--link", link]
    with subprocess.Popen([*map(str, command)], cwd=folder, env=ENVIRONMENT, stdout=subprocess.DEVNULL) as process:
        deadline = time.monotonic() + 300
        while not link.exists():
            assert process.poll() is None, "serve ended"
            assert time.monotonic() < deadline, "serve did not offer a terminal"
            time.sleep(0.2)
        yield str(link)
        process.terminate()
        assert process.wait(20) == 0


@pytest.mark.slow
def test_run_answers_like_the_reference(terminal: str) -> None:
    command = [sys.executable, "-m", "rtl_gen", "run", "--port", terminal, "--net", NET, "--images", IMAGES, "--json", DATA]
    done = subprocess.run([*map(str, command)], env=ENVIRONMENT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    _compare([(said["class"], said["logits"]) for said in json.loads(done.stdout)])


@pytest.mark.slow
def test_every_good_frame_is_answered_right_whatever_comes_between(terminal: str) -> None:
    images = np.load(DATA)["images"][:IMAGES]
    good = encode(Frame(Kind.IMAGE, 77, images[0].tobytes()))
    spoilt = bytearray(good)
    spoilt[12] ^= 0x10
    oversized = encode(Frame(Kind.IMAGE, 78, images[0].tobytes() + bytes(500)))
    nuisances = [b"", np.random.default_rng(1).bytes(100), good[:30], bytes(spoilt), oversized, good[:-1] + b"\x7d", b"\x7e" * 5, b"\x7d"]
    answers = []
    for index, image in enumerate(images):
        with serial.Serial(terminal, 1_000_000, timeout=2) as port:
            port.write(nuisances[index % len(nuisances)])  # then the wire is dropped: the host disconnects
            port.flush()
        with Host(terminal) as host:
            answer = host.run(image)
        answers.append((answer.class_index, answer.logits.tolist()))
    _compare(answers)


def _compare(answers: list[tuple[int, list[int]]]) -> None:
    images = torch.from_numpy(np.load(DATA)["images"][:IMAGES])
    expected = quantised_ann(IntegerNet.load(NET), images)
    assert answers == list(zip(expected.classes.tolist(), expected.sums.tolist(), strict=True))
