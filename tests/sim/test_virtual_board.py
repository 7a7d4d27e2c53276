"""End to end: the PC's program, a terminal, the board's pins in Verilator, the link, a core, and all the way back."""

import os
import random
import time
from pathlib import Path

import numpy as np
import pytest
import serial

from boards.host import Frame, Host, encode, stuff
from casc_hw.errors import CascError
from rtl_gen.gates.frame import Kind
from rtl_gen.gates.link import LinkSpec
from sim.dummy_core import EARLY, HANG, LOGITS, DummyCore, dummy_answer
from sim.virtual_board import build_virtual_board, running

pytestmark = pytest.mark.slow

SHAPE = (5, 7)
SPEC = LinkSpec(digest=bytes(range(32)), levels=8, margin=8, input_shape=SHAPE, input_max=255, outputs=(12, LOGITS), beat=4,
                clock_hz=25_000_000, watchdog=50_000)  # fmt: skip
CLOCKS = [(25_000_000, 80_000_000), (12_000_000, 9_300_000)]


@pytest.fixture(scope="module", params=CLOCKS, ids=["fast", "slow"])
def board(request, tmp_path_factory):
    """A running board's terminal."""
    io_hz, sync_hz = request.param
    spec = LinkSpec(**{**vars(SPEC), "clock_hz": io_hz})
    folder = tmp_path_factory.mktemp("board")
    executable = build_virtual_board(DummyCore(spec), spec, folder, io_hz, sync_hz)
    with running(executable, link=folder / "tty") as path:
        assert os.path.realpath(folder / "tty") == path
        yield path
    assert not os.path.lexists(folder / "tty")


def images(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    found = [rng.integers(0, 256, SHAPE, dtype=np.uint8) for _ in range(count)]
    for image in found:
        image[0, 0] %= 250  # above: see DummyCore
    return found


def check(image: np.ndarray, answer) -> None:
    expected = dummy_answer([int(pixel) for pixel in image.reshape(-1)], SPEC.beat)
    assert [*answer.logits, answer.class_index, answer.sleep_steps, answer.cycles] == expected


def test_hello_and_images(board):
    with Host(board, timeout=10, digest=SPEC.digest.hex()) as host:
        info = host.hello()
        assert (info.levels, info.margin, info.input_shape, info.outputs, info.banks) == (8, 8, SHAPE, (12, LOGITS), 2)
        batch = images(20, 1)
        answers = list(host.run_all(batch))
        assert len(answers) == len(batch)
        for image, answer in zip(batch, answers, strict=True):
            check(image, answer)
        host.reset()
        check(batch[3], host.run(batch[3]))


def test_a_hanging_and_a_broken_core_are_named_and_the_board_goes_on(board):
    (good,) = images(1, 2)
    with Host(board, timeout=10) as host:
        for first, name in ((HANG, "TIMEOUT"), (EARLY, "MALFORMED")):
            bad = good.copy()
            bad[0, 0] = first
            with pytest.raises(CascError, match=name):
                host.run(bad)
            check(good, host.run(good))


def test_noise_on_the_wire_loses_no_good_image(board):
    rng = random.Random(3)
    for round_, image in enumerate(images(12, 3)):
        whole = encode(Frame(Kind.IMAGE, 77, image.tobytes()))
        flipped = bytearray(whole)
        flipped[rng.randrange(1, len(whole) - 1)] ^= 1 << rng.randrange(8)
        noise = [
            bytes(rng.randrange(256) for _ in range(40)),
            whole[: rng.randrange(2, len(whole))],
            bytes(flipped),
            stuff(bytes([1, Kind.IMAGE, 9, 0xFF, 0xFF, 1, 2, 3])),
            b"\x7d\x7e" * 20,
            bytes(300),
        ][round_ % 6]
        with serial.Serial(board, 1_000_000) as port:  # another program, which then leaves without reading
            port.write(noise)
        with Host(board, timeout=10) as host:
            check(image, host.run(image))
            host._serial.write(noise)
            check(image, host.run(image))


def test_a_host_that_leaves_in_the_middle_harms_nobody(board):
    for image in images(3, 4):
        with serial.Serial(board, 1_000_000) as port:
            port.write(encode(Frame(Kind.IMAGE, 200, image.tobytes()))[:20])
        with Host(board, timeout=10) as host:
            check(image, host.run(image))


def test_idles_without_burning_a_core(board):
    with Host(board, timeout=10):
        pass
    time.sleep(0.3)
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        arguments = cmdline.read_text().split("\0")
        if "--link" in arguments and os.path.realpath(arguments[arguments.index("--link") + 1]) == board:
            stat = cmdline.with_name("stat")

    def ticks() -> int:
        return sum(map(int, stat.read_text().rsplit(")", 1)[1].split()[11:13]))

    before = ticks()
    time.sleep(1.0)
    assert ticks() - before <= 5  # of 100


@pytest.mark.parametrize("wrong", [{"digest": "ff" * 32}])
def test_refuses_the_wrong_design(board, wrong):
    with pytest.raises(CascError, match="load the right bitstream"):
        Host(board, timeout=10, **wrong)
