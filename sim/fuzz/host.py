"""The PC's end of the link: a line that damages, loses and delays, and boards that lie."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np

from boards.host import Frame, Host, decode, encode, split, stuff
from casc_hw.errors import CascError
from rtl_gen.gates.frame import ANSWER, ERROR, Fault, Kind
from rtl_gen.gates.link import LinkSpec
from sim.fuzz.files import _one_sentence

SPEC = LinkSpec(digest=bytes(range(16, 48)), levels=4, margin=3, input_shape=(2, 2, 3), input_max=200, outputs=(5, 12), beat=1,
                clock_hz=12_000_000, watchdog=120_000, grid=(3, 2))  # fmt: skip


def logits_of(pixels: bytes) -> list[int]:
    return [(-1) ** index * (sum(pixels) + index * pixels[index]) for index in range(12)]


class Line:
    """A serial port, by `serial.Serial`'s names, with a board behind it, and a clock that runs when somebody waits."""

    def __init__(self, chance: random.Random, lying: bool):
        self.chance, self.lying, self.trouble = chance, lying, chance.choice((0.1, 0.3, 0.7, 1.0))
        self.babble = chance.choice([b"", b"", b"", b"", b"\x00", b"\x7e\x01", encode(Frame(Kind.IMAGE | ANSWER, 0, b"x"))])
        self.breaks = chance.choice((0, 0, 0.005))
        self.now = 0.0
        self.coming: list[tuple[float, bytes]] = []
        self.received, self.sent = b"", b""
        self.timeout = 1.0
        self.closed = False

    def monotonic(self) -> float:
        self.now += 1e-3
        return self.now

    def reset_input_buffer(self) -> None:
        self.received = b""

    def close(self) -> None:
        self.closed = True

    @property
    def in_waiting(self) -> int:
        if self.chance.random() < self.breaks:
            raise OSError(5, "Input/output error")
        self.received += b"".join(wire for at, wire in self.coming if at <= self.now)
        self.coming = [(at, wire) for at, wire in self.coming if at > self.now]
        if self.now > 3:  # then it never stops
            self.received += self.babble
        return len(self.received)

    def read(self, size: int) -> bytes:
        if not self.in_waiting:
            self.now = min([self.now + self.timeout, *(at for at, _ in self.coming)])
        size = min(size, self.in_waiting)
        got, self.received = self.received[:size], self.received[size:]
        return got

    def write(self, wire: bytes) -> None:
        bodies, self.sent = split(self.sent + wire)
        for body in bodies:
            request = decode(body)
            if request is None:
                raise RuntimeError(f"the host sent a damaged frame: {body!r}")
            for delay, answer in self.answers(request):
                self.coming.append((self.now + delay, answer))
        self.coming.sort(key=lambda item: item[0])

    def answers(self, request: Frame) -> list[tuple[float, bytes]]:
        chance = self.chance
        sound = self.sound(request)
        if chance.random() > self.trouble:
            return [(0.001, encode(sound))]
        if self.lying:
            return [(0.001, encode(self.lie(sound)))]
        wire = bytearray(encode(sound))
        match chance.randrange(10):
            case 0:
                return []
            case 1:
                return [(chance.choice((0.5, 1.9, 2.5, 7.0)), bytes(wire))]
            case 2:
                return [(0.001, bytes(wire))] * 2
            case 3:
                return [(0.001, bytes(wire[: chance.randrange(len(wire))]))]
            case 4:
                return [(0.001, chance.randbytes(chance.randrange(60)) + wire)]
            case 5:  # up to three bits, which the CRC never misses
                for _ in range(chance.randrange(1, 4)):
                    wire[chance.randrange(len(wire))] ^= 1 << chance.randrange(8)
            case 6:  # a burst of up to 16 bits, likewise
                at = chance.randrange(len(wire) - 1)
                wire[at] ^= chance.randrange(256)
                wire[at + 1] ^= chance.randrange(256)
            case 7:
                fault = chance.choice([*Fault, 0, 99])
                return [(0.001, encode(Frame(ERROR, sound.sequence, bytes([fault, request.kind])[: chance.choice((0, 1, 2, 2, 2))])))]
            case 8:
                stale = self.sound(Frame(request.kind, (sound.sequence + chance.randrange(50, 200)) % 255 + 1, bytes(12)))  # of long ago
                return [(0.001, encode(stale)), (0.002, bytes(wire))]
            case _:
                cut = chance.randrange(len(wire))
                return [(0.001, bytes(wire[:cut])), (chance.choice((0.002, 3.0)), bytes(wire[cut:]))]
        return [(0.001, bytes(wire))]

    def sound(self, request: Frame) -> Frame:
        payload = b""
        if request.kind == Kind.HELLO:
            payload = SPEC.hello()
        elif request.kind == Kind.IMAGE:
            payload = struct.pack("<HBHIH12i", 3, 0, 7, 1234, 12, *logits_of(request.payload))
        return Frame(request.kind | ANSWER, request.sequence, payload)

    def lie(self, sound: Frame) -> Frame:
        """A frame with a good CRC, but no sound board's."""
        chance = self.chance
        payload = bytearray(sound.payload)
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            if payload:
                payload[chance.randrange(len(payload))] = chance.choice((0, 1, 127, 128, 255, chance.randrange(256)))
        payload = payload[: chance.choice((len(payload), len(payload), chance.randrange(len(payload) + 1)))]
        payload += chance.randbytes(chance.choice((0, 0, 1, 50)))
        kind = chance.choice([sound.kind] * 6 + [ERROR, chance.randrange(256)])
        return Frame(kind, sound.sequence, bytes(payload), chance.choice([2] * 12 + [chance.randrange(256)]))


class Hosts:
    """`boards.host.Host` on a `Line`: HELLO, images, RESET. A noisy line gives the right answer or a `CascError`; a lying board
    an answer of the right form or a `CascError`. Some cases are of the frame's parser alone."""

    name = "host"
    limited = True

    def __init__(self, folder: Path):
        pass

    def case(self, chance: random.Random) -> str:
        if chance.random() < 0.3:
            return self.parser(chance)
        lying = chance.random() < 0.5
        line = Line(chance, lying)
        fakes: dict[str, Any] = {"serial": SimpleNamespace(Serial=lambda *_, **__: line), "time": line, "random": chance}
        try:
            with mock.patch.multiple("boards.host", **fakes), Host("port", timeout=2.0, retries=3, digest="1011") as host:
                images = [np.array([chance.randrange(201) for _ in range(12)]).reshape(2, 2, 3) for _ in range(chance.randrange(4))]
                if chance.random() < 0.3:
                    host.reset()
                for image, answer in zip(images, host.run_all(images), strict=True):
                    right = np.array(logits_of(image.transpose(1, 2, 0).astype(np.uint8).tobytes())).reshape(3, 2, 2).transpose(2, 0, 1)
                    told = (answer.class_index, answer.cycles, answer.sleep_steps, answer.logits.tolist())
                    if lying and answer.logits.shape == (12,) and answer.logits.dtype == np.int64:
                        continue
                    if told != (3, 1234, 7, right.reshape(-1).tolist()):
                        raise RuntimeError(f"a wrong answer: {told}")
        except CascError as error:
            _one_sentence(str(error))
            return "refused"
        finally:
            if not line.closed:
                raise RuntimeError("the port was left open")
        return "accepted"

    def parser(self, chance: random.Random) -> str:
        """Whatever is on the wire, frames come out of it that were put in, once a flag has come."""
        frames = [Frame(chance.randrange(256), chance.randrange(256), chance.randbytes(chance.randrange(40))) for _ in range(3)]
        noise = [chance.randbytes(chance.randrange(50)), b"\x7d" * chance.randrange(9), stuff(chance.randbytes(chance.randrange(9))), b""]
        wire = b"".join(chance.choice(noise) + encode(frame) for frame in frames)
        bodies: list[bytes] = []
        rest = b""
        while wire:
            size = chance.randrange(1, 30)
            found, rest = split(rest + wire[:size])
            bodies, wire = bodies + found, wire[size:]
        got = [frame for frame in map(decode, bodies) if frame is not None]
        if rest or [frame for frame in got if frame in frames] != frames:
            raise RuntimeError(f"{frames} went in, {got} came out, {rest!r} is left")
        return "accepted"
