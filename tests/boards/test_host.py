"""The PC's end of the link against a board made of a thread: losses, damage, stale answers, wrong boards."""

import os
import struct
import threading
import tty
from contextlib import suppress
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from boards.host import Frame, Hello, Host, decode, encode, split
from casc_hw.errors import CascError
from rtl_gen.gates.frame import ANSWER, ERROR, Fault, Kind
from rtl_gen.gates.link import LinkSpec

SPEC = LinkSpec(digest=bytes(range(16, 48)), levels=4, margin=3, input_shape=(2, 3), input_max=200, outputs=(5, 2), beat=1,
                clock_hz=12_000_000, watchdog=1200)  # fmt: skip
LAYERS = [SimpleNamespace(name="a"), SimpleNamespace(name="b")]
NETWORK = SimpleNamespace(
    name="net", levels=4, margin=3, input_max=200, input_shape=(2, 3), layers=LAYERS, shapes={"a": (5, 1, 1), "b": (2, 1, 1)}
)
IMAGE = np.arange(6).reshape(2, 3)
FAST = {"timeout": 0.1, "retries": 2}


def answer_to(frame: Frame) -> bytes:
    """What a sound board says."""
    if frame.kind == Kind.HELLO:
        payload = SPEC.hello()
    elif frame.kind == Kind.IMAGE:
        payload = struct.pack("<HBHIH2i", 1, 0, 7, 1234, 2, -sum(frame.payload), sum(frame.payload))
    else:
        payload = b""
    return encode(Frame(frame.kind | ANSWER, frame.sequence, payload))


class Board:
    """A terminal; ``script`` maps the n-th request after HELLO (from 0) to what is said instead of a sound answer."""

    def __init__(self, script=None, hello=answer_to):
        self.script, self.hello = script or {}, hello
        self.requests: list[Frame] = []
        self.master, slave = os.openpty()
        tty.setraw(slave)
        self.path, self.slave = os.ttyname(slave), slave
        self.thread = threading.Thread(target=self.serve)

    def serve(self) -> None:
        received = b""
        while True:
            try:
                received += os.read(self.master, 4096)
            except OSError:
                return
            bodies, received = split(received)
            for frame in map(decode, bodies):
                if frame is None:
                    return
                if frame.kind == Kind.HELLO:
                    os.write(self.master, self.hello(frame))
                    continue
                self.requests.append(frame)
                os.write(self.master, self.script.get(len(self.requests) - 1, answer_to)(frame))

    def __enter__(self) -> "Board":
        self.thread.start()
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):
            os.write(self.slave, b"\x7e\x00\x7e")  # a damaged frame ends the thread
        self.thread.join(5)
        os.close(self.master)
        os.close(self.slave)


def silent(frame: Frame) -> bytes:
    return b""


def damaged(frame: Frame) -> bytes:
    wire = bytearray(answer_to(frame))
    wire[8] ^= 1
    return bytes(wire)


def stale(frame: Frame) -> bytes:
    return answer_to(Frame(frame.kind, (frame.sequence + 100) % 255 + 1, b"\1\2\3\4\5\6")) + answer_to(frame)


def refused(fault: int):
    return lambda frame: encode(Frame(ERROR, frame.sequence, bytes([fault, frame.kind])))


def flagged(flags: int):
    return lambda frame: encode(Frame(frame.kind | ANSWER, frame.sequence, struct.pack("<HBHIH2i", 0, flags, 9, 1, 2, 0, 0)))


@given(st.integers(0, 255), st.integers(0, 255), st.binary(max_size=40), st.binary(max_size=20))
def test_frames_survive_any_content_and_any_garbage_before(kind, sequence, payload, garbage):
    frame = Frame(kind, sequence, payload)
    bodies, rest = split(garbage + encode(frame))
    assert (decode(bodies[-1]), rest) == (frame, b"")


@given(st.binary(max_size=60))
def test_decode_takes_anything(stuffed):
    frame = decode(stuffed)
    assert frame is None or split(encode(frame))[0]


@given(st.binary(min_size=1, max_size=30), st.data())
def test_one_flipped_bit_is_noticed(payload, choice):
    wire = bytearray(encode(Frame(2, 3, payload)))
    wire[choice.draw(st.integers(1, len(wire) - 2))] ^= 1 << choice.draw(st.integers(0, 7))
    assert all(decode(body) is None for body in split(bytes(wire))[0])


def test_hello_reads_what_the_link_says():
    assert Hello.parse(SPEC.hello() + b"more") == Hello(SPEC.digest[:16].hex(), 4, 3, 200, (2, 3), (5, 2), 2, 101e-6, "spike", (1, 1))
    with pytest.raises(ValueError, match="requires a buffer"):
        Hello.parse(SPEC.hello()[:-1])


def test_runs_images_and_resets():
    with Board() as board, Host(board.path, digest=SPEC.digest.hex(), network=NETWORK, **FAST) as host:
        answer = host.run(IMAGE)
        assert (answer.class_index, list(answer.logits), answer.cycles, answer.sleep_steps) == (1, [-15, 15], 1234, 7)
        host.reset()
        images = [np.full((2, 3), value, dtype=np.float32) for value in range(9)]
        assert [answer.logits[1] for answer in host.run_all(images)] == [6 * value for value in range(9)]
        assert len({frame.sequence for frame in board.requests}) == 11
        assert 0 not in {frame.sequence for frame in board.requests}


def test_maps_travel_in_wire_order():
    """An image (C, H, W) is sent with the channels of a pixel side by side, and so come the logits of a map."""
    spec = replace(SPEC, input_shape=(2, 2, 3), outputs=(5, 12), grid=(3, 2))
    image = np.arange(12).reshape(2, 2, 3)

    def sound(frame: Frame) -> bytes:
        payload = struct.pack("<HBHIH12i", 1, 0, 0, 9, 12, *range(12)) if frame.kind == Kind.IMAGE else spec.hello()
        return encode(Frame(frame.kind | ANSWER, frame.sequence, payload))

    with Board({0: sound}, hello=sound) as board, Host(board.path, **FAST) as host:
        answer = host.run(image)
        assert list(board.requests[0].payload) == [0, 6, 1, 7, 2, 8, 3, 9, 4, 10, 5, 11]
        assert answer.logits.reshape(2, 3, 2).tolist() == np.arange(12).reshape(3, 2, 2).transpose(2, 0, 1).tolist()


@pytest.mark.parametrize("trouble", [silent, damaged, stale, refused(Fault.BUSY), refused(Fault.DAMAGED), refused(Fault.RESET)])
def test_gets_over(trouble):
    with Board({0: trouble, 3: trouble}) as board, Host(board.path, **FAST) as host:
        images = [np.full((2, 3), value) for value in range(5)]
        assert [answer.logits[1] for answer in host.run_all(images)] == [6 * value for value in range(5)]
        assert len(board.requests) >= 5


@pytest.mark.parametrize(("trouble", "words"), [
    (silent, "no answer to 3 IMAGE requests"),
    (damaged, "no answer"),
    (refused(Fault.BUSY), "no answer"),
    (refused(Fault.TIMEOUT), "TIMEOUT: the core did not answer"),
    (refused(Fault.MALFORMED), "MALFORMED"),
    (refused(99), "99; use a bitstream"),
    (lambda frame: encode(Frame(frame.kind | ANSWER, frame.sequence, b"\0")), "1 bytes are no answer"),
    (flagged(128), "step bound after 9"),
    (flagged(64), "malformed"),
    (lambda frame: encode(Frame(frame.kind | ANSWER, frame.sequence, version=7)), "protocol 7"),
])  # fmt: skip
def test_gives_up_with_a_sentence(trouble, words):
    with Board(dict.fromkeys(range(9), trouble)) as board, Host(board.path, **FAST) as host:
        with pytest.raises(CascError, match=words):
            host.run(IMAGE)
        board.script = {}
        assert host.run(IMAGE).cycles == 1234


@pytest.mark.parametrize(("image", "words"), [
    (np.zeros((3, 2)), r"shape \(3, 2\) is not the board's \(2, 3\)"),
    (np.full((2, 3), 201), "span 201 to 201"),
    (np.full((2, 3), -1), "span -1"),
    (np.full((2, 3), 0.5), "not integers"),
    (np.full((2, 3), np.nan), "not integers"),
])  # fmt: skip
def test_refuses_images_that_do_not_fit(image, words):
    with Board() as board, Host(board.path, **FAST) as host, pytest.raises(CascError, match=words):
        host.run(image)


@pytest.mark.parametrize("change", [{"levels": 5}, {"margin": 1}, {"input_max": 255}, {"input_shape": (6,)}, {"layers": []}])
def test_refuses_a_board_with_another_network(change):
    with Board() as board, pytest.raises(CascError, match=r"the board's network has .*load the right bitstream"):
        Host(board.path, network=SimpleNamespace(**{**vars(NETWORK), **change}), **FAST)


def test_refuses_a_board_with_another_design_or_none():
    with Board() as board, pytest.raises(CascError, match="carries design 1011"):
        Host(board.path, digest="ff", **FAST)
    with Board(hello=silent) as board, pytest.raises(CascError, match="no answer to 3 HELLO requests"):
        Host(board.path, **FAST)
    with pytest.raises(CascError, match="/dev/none: cannot be opened"):
        Host("/dev/none")


def test_says_so_when_the_board_is_unplugged():
    with Board() as board, Host(board.path, **FAST) as host:
        os.write(board.slave, b"\x7e\x00\x7e")  # ends the thread
        board.thread.join(5)
        os.close(board.master)
        board.master = os.dup(board.slave)
        with pytest.raises(CascError, match="connection broke"):
            host.run(IMAGE)
