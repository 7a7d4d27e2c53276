"""A day's worth of hostile inputs, the harness itself, and what broke once."""

from __future__ import annotations

import io
import os
import random
import struct
import zipfile
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import numpy as np
import pytest
import torch

from boards.host import Frame, Hello, Host, decode, encode, split
from casc_hw.errors import CascError
from casc_hw.network import IntegerNet
from rtl_gen.gates.frame import ANSWER, Kind
from sim.dummy_core import dummy_answer
from sim.fuzz import Failure, fuzz, run
from sim.fuzz.commands import Commands
from sim.fuzz.files import Files, archived, small_net
from sim.fuzz.gates import SPEC as SPEC_OF_GATES
from sim.fuzz.gates import Gates
from sim.fuzz.host import SPEC, Hosts, Line

pytestmark = pytest.mark.filterwarnings("ignore")  # torch's, of what the files hold


@pytest.mark.parametrize(("target", "cases"), [(Files, 250), (Hosts, 400), (Commands, 25)])
def test_some_cases_of_each(tmp_path: Path, target, cases: int) -> None:
    outcome = run(target(tmp_path), 1, range(cases))
    assert outcome.failures == []
    assert (outcome.cases, sum(outcome.verdicts.values())) == (cases, cases)
    assert min(outcome.verdicts["accepted"], sum(outcome.verdicts[word] for word in outcome.verdicts if word != "accepted")) > 0


@pytest.fixture(scope="module")
def gates(tmp_path_factory: pytest.TempPathFactory) -> Gates:
    return Gates(tmp_path_factory.mktemp("gates"))


@pytest.mark.slow
def test_noise_on_the_pin_of_the_gates(gates: Gates) -> None:
    outcome = run(gates, 1, range(150))
    assert outcome.failures == []
    assert outcome.verdicts["accepted"] > 100


@pytest.mark.slow
@pytest.mark.parametrize("moment", [300, 700, 950])
def test_no_bit_of_the_link_can_be_upset_for_good(gates: Gates, moment: int) -> None:
    """While a frame comes in, an image is in the core, an answer goes out: then RESET, at most four times, and all is well.

    The codes of FSMs that no path leads to, and the queue of requests, whose counters could disagree for ever, did not come back.
    """
    image = bytes([5, 4, 3, 2, 1, 0])
    with gates.board.power_on() as board:
        bits = [(part, bit) for part in board.parts() if part.rows == 1 for bit in range(part.width)]
    assert {"top link responder fsm_state", "top link queue inner_level"} <= {part.name for part, _ in bits}
    for part, bit in bits:
        with gates.board.power_on() as board:
            board.run(600)
            board.send(encode(Frame(Kind.IMAGE, 1, image)))
            board.run(moment)
            board.flip(part, 0, bit)
            board.run(2 * SPEC_OF_GATES.watchdog)
            for sequence in range(10, 14):
                board.send(encode(Frame(Kind.RESET, sequence)))
                bodies, _ = split(board.run(2 * SPEC_OF_GATES.watchdog))
                if Frame(Kind.RESET | ANSWER, sequence) in map(decode, bodies):
                    break
            else:
                pytest.fail(f"{part.name} bit {bit}: no answer to RESET")
            board.send(encode(Frame(Kind.IMAGE, 20, image)))
            answer, _ = gates.answer(board, 20, b"")
            assert answer is not None, (part.name, bit)
            class_index, flags, sleep, cycles, count = struct.unpack_from("<HBHIH", answer.payload)
            words = [*struct.unpack_from(f"<{count}i", answer.payload, 11), class_index, sleep | flags << 24, cycles]
            assert words == dummy_answer(image, 4), (part.name, bit)


def test_the_harness_tells_what_fails_and_repeats_it() -> None:
    class Moody:
        name, limited = "moody", True

        def case(self, chance: random.Random) -> str:
            match chance.randrange(4):
                case 0:
                    raise KeyError("oops")
                case 1:
                    while True:
                        pass
                case 2:
                    return f"{len(bytearray(1 << 31))} bytes"
            return "accepted"

    with mock.patch.multiple("sim.fuzz", PATIENCE=0.05, SHOWN=30):
        outcome = run(Moody(), 0, range(30))
        said = {failure.what.partition(":")[0] for failure in outcome.failures}
        assert said == {"KeyError", "no end within 0.05 s", "MemoryError"}
        assert outcome.failed + outcome.verdicts["accepted"] == 30
        first = outcome.failures[0]
        assert run(Moody(), 0, range(first.case, first.case + 1)).failures == [Failure(first.case, first.what)]
        assert run(Moody(), 5, range(30)).verdicts != outcome.verdicts


def test_a_strange_target_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CascError, match="'usb' is no target; use file, host"):
        list(fuzz(("usb",), 1, 0, None, tmp_path, print))


# What broke once


@pytest.mark.parametrize(
    "call", [b"cbuiltins\nbytearray\n", b"ctorch\nTensor\n", b"ctorch\nUntypedStorage\n", b"cposix\nmkdir\n", b"cbuiltins\nset\n"]
)
def test_a_pickle_of_a_few_bytes_gets_no_memory(tmp_path: Path, call: bytes) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(archived([("n/data.pkl", b"\x80\x02" + call + b"(\x8a\x05\0\0\0\0\1tR."), ("n/version", b"3\n")], zipfile.ZIP_STORED))
    with pytest.raises(CascError, match="holds something other than tensors and plain values, which is never executed"):
        IntegerNet.load(path)


def test_fields_without_end(tmp_path: Path) -> None:
    net = small_net()
    net.meta["long"] = "x" * 2_000_000
    with pytest.raises(CascError, match="meta: holds more than 1048576 characters"):
        IntegerNet(**{name: getattr(net, name) for name in net.__dataclass_fields__})
    net.save(tmp_path / "net.pt")
    with pytest.raises(CascError, match="meta: holds more than 1048576 characters"):
        IntegerNet.load(tmp_path / "net.pt")
    net.meta["long"] = "x" * 5_000_000
    net.save(tmp_path / "net.pt")
    with pytest.raises(CascError, match="the most is 4194304; this is not a converted network"):
        IntegerNet.load(tmp_path / "net.pt")


def test_many_infinities_are_one_message(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    small_net().save(tmp_path / "net.pt")
    content = torch.load(tmp_path / "net.pt", weights_only=True)
    content["nodes"][0]["bias"] = torch.full((1 << 22,), float("inf"), dtype=torch.float16)
    torch.save(content, buffer)
    (tmp_path / "net.pt").write_bytes(buffer.getvalue())
    with pytest.raises(CascError, match="conv: bias holds inf, not integers"):
        IntegerNet.load(tmp_path / "net.pt")


@pytest.mark.parametrize("babble", [b"\0", b"\x7e\x01", encode(Frame(Kind.IMAGE | ANSWER, 0, b"x"))])
def test_a_line_that_never_stops_is_given_up(babble: bytes) -> None:
    line = Line(random.Random(1), False)
    line.trouble, line.breaks, line.babble = 0.0, 0.0, babble
    fakes = {"serial": SimpleNamespace(Serial=lambda *_, **__: line), "time": line}
    with mock.patch.multiple("boards.host", **fakes), Host("port") as host:
        assert host.run(np.zeros((2, 2, 3))).cycles == 1234
        line.answers = lambda request: []  # type: ignore[method-assign]
        line.now = 4.0
        with pytest.raises(CascError, match="no answer to 4 IMAGE requests"):
            host.run(np.zeros((2, 2, 3)))


@pytest.mark.parametrize(("at", "size"), [(17, 2), (21, 1), (22, 1), (23, 2), (29, 1), (30, 4), (34, 4), (38, 1), (44, 2), (46, 2)])
def test_a_board_that_says_nothing_of_sense_is_refused(at: int, size: int) -> None:
    hello = SPEC.hello()
    assert Hello.parse(hello).grid == (3, 2)
    with pytest.raises(ValueError, match=r"a size is 0|requires a buffer"):
        Hello.parse(hello[:at] + bytes(size) + hello[at + size :])


@pytest.mark.parametrize(("count", "class_index"), [(0, 0), (11, 0), (12, 12), (13, 0)])
def test_an_answer_of_another_form_is_refused(count: int, class_index: int) -> None:
    line = Line(random.Random(1), False)
    line.trouble = line.breaks = 0.0
    fakes = {"serial": SimpleNamespace(Serial=lambda *_, **__: line), "time": line}
    with mock.patch.multiple("boards.host", **fakes), Host("port") as host:
        payload = struct.pack(f"<HBHIH{count}i", class_index, 0, 7, 1, count, *range(count))
        line.sound = lambda request: Frame(Kind.IMAGE | ANSWER, request.sequence, payload)  # type: ignore[method-assign]
        with pytest.raises(CascError, match="bytes are no answer to IMAGE; use a bitstream"):
            host.run(np.zeros((2, 2, 3)))


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan", "--lanes", "hidden=²"], None),
        (["convert", "--model", "model.py:make", "--shape", "16", "--bits", "1=²"], None),
        (["verilog", "--net", "small.pt", "--board", "icebreaker", "--out", ""], "names no file; give one"),
        (["convert", "--model", "model.py:wrong", "--shape", "4x4"], "model.py: wrong raised ValueError (two lines);"),
    ],
)
def test_command_lines_that_ended_in_a_traceback(tmp_path: Path, words: list[str], said: str | None) -> None:
    commands = Commands(tmp_path)
    commands.folder = commands.sound
    before = sorted(os.listdir(commands.folder))
    status, out, err = commands.invoke("python -m rtl_gen", commands.roots[0][1], words)
    assert (status, out) == (1 if said else 2, "")
    assert (said or "Usage:") in err
    assert sorted(os.listdir(commands.folder)) == before
