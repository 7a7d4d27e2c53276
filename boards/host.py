"""The PC's end of the host link (docs/protocol.md): images out, answers back, over a serial port."""

from __future__ import annotations

import binascii
import random
import struct
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import prod
from types import TracebackType
from typing import Any, NoReturn

import numpy as np
import serial

from casc_hw.errors import CascError
from rtl_gen.gates.frame import ANSWER, ERROR, ESCAPE, FLAG, FLIP, PROTOCOL, Fault, Kind

RETRY = {Fault.DAMAGED, Fault.BUSY, Fault.RESET}
"""Faults that may be gone when the request is sent again; requests change nothing on the board, so that is always safe."""
ONE_RELEASE = "use a bitstream and a program of one release"
HINTS: dict[int, str] = {
    Fault.TIMEOUT: "the core did not answer in time and was reset; send the image again, or build with a longer watchdog",
    Fault.MALFORMED: "the core's result was broken and it was reset; send the image again",
}
MALFORMED_INPUT, STEP_BOUND = 1 << 6, 1 << 7
"""Status flags of an IMAGE answer: bits 30 and 31 of the core's status word."""


@dataclass(frozen=True)
class Frame:
    """One frame's content; ``version`` other than `PROTOCOL` comes from another generation of boards."""

    kind: int
    sequence: int
    payload: bytes = b""
    version: int = PROTOCOL


def stuff(body: bytes) -> bytes:
    """``body`` between two flags, its flags and escapes escaped."""
    stuffed = body.replace(bytes([ESCAPE]), bytes([ESCAPE, ESCAPE ^ FLIP])).replace(bytes([FLAG]), bytes([ESCAPE, FLAG ^ FLIP]))
    return bytes([FLAG]) + stuffed + bytes([FLAG])


def encode(frame: Frame) -> bytes:
    """The bytes on the wire, flags included."""
    body = struct.pack("<BBBH", frame.version, frame.kind, frame.sequence, len(frame.payload)) + frame.payload
    return stuff(body + binascii.crc_hqx(body, 0xFFFF).to_bytes(2, "big"))


def split(received: bytes) -> tuple[list[bytes], bytes]:
    """What stood between flags, as received and without the empty ones; and what stands behind the last flag."""
    *whole, rest = received.split(bytes([FLAG]))
    return [stuffed for stuffed in whole if stuffed], rest


def decode(stuffed: bytes) -> Frame | None:
    """The frame that stood between two flags; None if it is damaged."""
    head, *parts = stuffed.split(bytes([ESCAPE]))
    if not all(parts):  # an escape with nothing behind it
        return None
    body = head + b"".join(bytes([part[0] ^ FLIP]) + part[1:] for part in parts)
    if len(body) < 7 or binascii.crc_hqx(body, 0xFFFF) != 0:
        return None
    version, kind, sequence, length = struct.unpack_from("<BBBH", body)
    return Frame(kind, sequence, body[5:-2], version) if length == len(body) - 7 else None


@dataclass(frozen=True)
class Hello:
    """What the board says of itself.

    Attributes
    ----------
    digest: the first 16 bytes of the design's digest, as hex.
    levels, margin, input_shape, input_max: as of the network on it.
    outputs: neurons, per layer; the last are the logits.
    banks: images it keeps besides those in the core.
    watchdog: seconds after which it gives an image up.
    code: "spike" or "count".
    grid: height and width of the read-out's map.
    """

    digest: str
    levels: int
    margin: int
    input_max: int
    input_shape: tuple[int, ...]
    outputs: tuple[int, ...]
    banks: int
    watchdog: float
    code: str
    grid: tuple[int, int]

    @classmethod
    def parse(cls, payload: bytes) -> Hello:
        """Read a HELLO answer's payload; bytes behind what is known are ignored. Raises ValueError if it is too short or no board."""
        try:
            return cls._parse(payload)
        except struct.error as error:
            raise ValueError(str(error)) from error

    @classmethod
    def _parse(cls, payload: bytes) -> Hello:
        _version, digest, levels, margin, input_max, dims = struct.unpack_from("<B16sHHBB", payload)
        at = struct.calcsize("<B16sHHBB")
        shape = struct.unpack_from(f"<{dims}H", payload, at)
        at += 2 * dims
        (layers,) = struct.unpack_from("<B", payload, at)
        outputs = struct.unpack_from(f"<{layers}I", payload, at + 1)
        banks, microseconds, counting, *grid = struct.unpack_from("<BIBHH", payload, at + 1 + 4 * layers)
        code = "count" if counting else "spike"
        if not all((levels, input_max, dims, *shape, layers, *outputs, banks, *grid)) or outputs[-1] % prod(grid):
            raise ValueError("a size is 0, or the logits are no map of the grid")
        return cls(digest.hex(), levels, margin, input_max, shape, outputs, banks, microseconds / 1e6, code, (grid[0], grid[1]))


@dataclass(frozen=True)
class Answer:
    """The board's answer to one image.

    Attributes
    ----------
    class_index: the index of the largest logit in wire order (by y, x, and channel innermost), the lowest index of equals.
    logits: int64 (classes,): the read-out's sums, flattened in (C, H, W) order.
    cycles: of the core's clock, from the image's first pixels to its answer.
    sleep_steps: sleep steps run, the silent one that ends it included.
    """

    class_index: int
    logits: np.ndarray
    cycles: int
    sleep_steps: int


def pixels(image: Any, info: Hello) -> bytes:
    """The payload of an IMAGE request; see `Host.run`."""
    array = np.asarray(image)
    if array.shape != info.input_shape and (1, *array.shape) != info.input_shape:
        raise CascError(f"image: shape {array.shape} is not the board's {info.input_shape}; reshape it")
    if array.dtype.kind not in "iub" and not (array.dtype.kind == "f" and np.array_equal(array, np.round(array))):
        raise CascError(f"image: pixels of type {array.dtype} are not integers; multiply by {info.input_max} and round")
    if array.min() < 0 or array.max() > info.input_max:
        raise CascError(f"image: pixels span {array.min()} to {array.max()}, the board takes 0 to {info.input_max}; rescale them")
    if array.ndim == 3:  # to wire order
        array = array.transpose(1, 2, 0)
    return array.astype(np.uint8).tobytes()


def parse_answer(payload: bytes, info: Hello, port: str) -> Answer:
    """Read an IMAGE answer's payload.

    Raises ValueError or struct.error if it is none of this board's, and CascError, which names ``port``, if it tells of an error.
    """
    class_index, flags, sleep_steps, cycles, count = struct.unpack_from("<HBHIH", payload)
    logits = np.array(struct.unpack_from(f"<{count}i", payload, 11), dtype=np.int64)
    if count != info.outputs[-1] or class_index >= count:
        raise ValueError(f"{count} logits, class {class_index}")
    logits = np.moveaxis(logits.reshape(*info.grid, -1), -1, 0).reshape(-1)  # from wire order
    if flags & MALFORMED_INPUT:
        raise CascError(f"{port}: the core took the image for malformed (flags {flags:#04x}); reset the board and send it again")
    if flags & STEP_BOUND:
        raise CascError(f"{port}: the core stopped at its step bound after {sleep_steps} sleep steps; build with a higher bound")
    return Answer(class_index, logits, cycles, sleep_steps)


@dataclass
class _Request:
    kind: Kind
    payload: bytes
    sequence: int = 0
    sends: int = 0
    deadline: float = 0.0
    answer: Any = field(default=None)


class Host:
    """A board on ``port``. Use it as a context manager, or ``close()`` it.

    Parameters
    ----------
    baud: bits a second, as the board was built for.
    timeout: seconds without an answer, over what wire and watchdog need, before a request is sent again.
    retries: how often it is, after a damaged frame too.
    digest: if given, hex of the design's digest (or its start): the board must have it.
    network: if given, an `IntegerNet`: the board must have its shape, levels and layers.

    Raises CascError if there is no such port, no answer, another protocol, or another network.
    """

    def __init__(self, port: str, *, baud: int = 1_000_000, timeout: float = 2.0, retries: int = 3, digest: str | None = None,
                 network: Any = None):  # fmt: skip
        self.port, self.baud, self.timeout, self.retries = port, baud, timeout, retries
        self._sequence = random.randrange(255)
        self._received = b""
        self._frames: deque[bytes] = deque()
        self._info: Hello | None = None
        try:
            self._serial = serial.Serial(port, baud, timeout=timeout, write_timeout=timeout + 30)
        except (OSError, ValueError) as error:  # SerialException is an OSError
            raise CascError(f"{port}: cannot be opened ({error}); plug the board in and give its serial port") from None
        try:
            self._serial.reset_input_buffer()
            self._check(self.hello(), digest, network)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Host:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._serial.close()

    @property
    def info(self) -> Hello:
        """What the board last said of itself."""
        return self._info or self.hello()

    def hello(self) -> Hello:
        """Ask the board what it is."""
        (self._info,) = self._ask([_Request(Kind.HELLO, b"")])
        return self._info

    def reset(self) -> None:
        """Reset the core; whatever was under way is lost. Returns when it is done."""
        list(self._ask([_Request(Kind.RESET, b"")]))

    def run(self, image: Any) -> Answer:
        """The board's answer to one image: integers 0 to ``info.input_max``, ``info.input_shape`` (a single channel may be left out)."""
        (answer,) = self.run_all([image])
        return answer

    def run_all(self, images: Iterable[Any]) -> Iterator[Answer]:
        """The answers in order; the next image is sent while the board works on the one before."""
        return self._ask(_Request(Kind.IMAGE, self._pixels(image)) for image in images)

    def _pixels(self, image: Any) -> bytes:
        return pixels(image, self.info)

    def _check(self, info: Hello, digest: str | None, network: Any) -> None:
        if digest is not None and not info.digest.startswith(digest[:32].lower()):
            raise CascError(f"{self.port}: the board carries design {info.digest}, not {digest[:32]}; load the right bitstream")
        if network is None:
            return
        for name, expected in (
            ("levels", network.levels),
            ("margin", network.margin),
            ("input_max", network.input_max),
            ("input_shape", tuple(network.input_shape)),
            ("outputs", tuple(prod(network.shapes[layer.name]) for layer in network.layers)),
        ):
            if getattr(info, name) != expected:
                raise CascError(
                    f"{self.port}: the board's network has {name} {getattr(info, name)}, {network.name} has {expected}; "
                    f"load the right bitstream"
                )

    def _ask(self, requests: Iterable[_Request]) -> Iterator[Any]:
        """Send ``requests``, no more at a time than the board has banks for, and yield their answers in order."""
        waiting: deque[_Request] = deque()
        source = iter(requests)
        while True:
            limit = self._info.banks if self._info else 1
            while len(waiting) < limit and (request := next(source, None)) is not None:
                waiting.append(request)
                self._send(request)
            if not waiting:
                return
            frame, damaged = self._receive(waiting[0].deadline)
            if frame is None:  # nothing came, or something unreadable: the oldest answer is missed
                for request in [waiting[0]] if damaged else list(waiting):
                    if request.answer is None:
                        self._send(request)
                continue
            if frame.version != PROTOCOL:
                raise CascError(f"{self.port}: the board speaks protocol {frame.version}, not {PROTOCOL}; {ONE_RELEASE}")
            for request in waiting:
                if request.sequence == frame.sequence and request.answer is None:
                    self._take(request, frame)
                    break
            else:
                if time.monotonic() > waiting[0].deadline:  # frames that nobody asked for, perhaps without end
                    self._send(waiting[0])
            while waiting and waiting[0].answer is not None:
                yield waiting.popleft().answer

    def _send(self, request: _Request) -> None:
        if request.sends > self.retries:
            raise CascError(
                f"{self.port}: no answer to {request.sends} {request.kind.name} requests; check the cable, the baud rate ({self.baud}) "
                f"and that the board is loaded"
            )
        self._sequence = self._sequence % 255 + 1  # 0 is for frames the board could not read
        wire = encode(Frame(request.kind, self._sequence, request.payload))
        request.sequence, request.sends = self._sequence, request.sends + 1
        try:
            self._serial.write(wire)
        except OSError as error:
            self._gone(error)
        work = 2 * self._info.watchdog if self._info else 0.0  # an image may find another in the core
        request.deadline = time.monotonic() + self.timeout + 2 * 10 * len(wire) / self.baud + work

    def _take(self, request: _Request, frame: Frame) -> None:
        if frame.kind == ERROR and len(frame.payload) >= 1:
            code = frame.payload[0]
            if code in RETRY:
                self._send(request)
                return
            name = Fault(code).name if code in set(Fault) else str(code)
            hint = f": {HINTS[code]}" if code in HINTS else f"; {ONE_RELEASE}"
            raise CascError(f"{self.port}: the board refused {request.kind.name} with {name}{hint}")
        if frame.kind != request.kind | ANSWER:
            return
        try:
            match request.kind:
                case Kind.HELLO:
                    request.answer = Hello.parse(frame.payload)
                case Kind.IMAGE:
                    request.answer = parse_answer(frame.payload, self.info, self.port)
                case Kind.RESET:
                    request.answer = True
        except (ValueError, struct.error):
            raise CascError(f"{self.port}: {len(frame.payload)} bytes are no answer to {request.kind.name}; {ONE_RELEASE}") from None

    def _receive(self, deadline: float) -> tuple[Frame | None, bool]:
        """The next frame, or None: at the deadline, or (True) since one was damaged."""
        late = False
        while not self._frames:
            left = deadline - time.monotonic()
            try:
                ready = self._serial.in_waiting
                if left <= 0 and (late or not ready):  # what has come by then is read, once: a line may babble for ever
                    return None, False
                late = left <= 0
                self._serial.timeout = max(left, 0)
                self._received += self._serial.read(max(1, ready))
            except OSError as error:
                self._gone(error)
            frames, self._received = split(self._received)
            self._frames.extend(frames)
        frame = decode(self._frames.popleft())
        return frame, frame is None

    def _gone(self, error: Exception) -> NoReturn:
        raise CascError(f"{self.port}: the connection broke ({error}); check the cable and open it again") from None
