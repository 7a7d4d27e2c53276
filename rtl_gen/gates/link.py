"""The host link: requests off a UART to the core's pixels, and the core's results to answers (docs/protocol.md).

Everything runs in the clock domain ``io``, whose frequency is known; only the core's own streams are in ``sync``, whose
frequency is chosen after routing. Nothing here waits for ever: a full buffer is an ERROR answer, a silent core is reset.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from amaranth.hdl import Cat, Const, DomainRenamer, Module, Mux, ResetInserter, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.fifo import AsyncFIFO, SyncFIFOBuffered
from amaranth.lib.memory import Memory, ReadPort, WritePort
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.frame import ANSWER, BODY, ERROR, PROTOCOL, RECEIVED_FRAME, Deframer, Fault, Framer, Kind
from rtl_gen.gates.readout import WORD
from rtl_gen.gates.uart import UartReceiver, UartSpec, UartTransmitter, spare_states

HEADER = 5
"""Bytes of a body before its payload: version, type, sequence, length."""
ANSWER_HEADER = 11
"""Bytes of an IMAGE answer's payload before its logits."""
QUEUE = 17
"""Requests that may wait for their answer; damaged frames only get one while fewer than half of the places are taken."""
RESET_CYCLES = 256
"""io cycles of a core reset: the core is held for the first half; the second lets both crossings run dry before new pixels.

Enough if sync is at least an eighth as fast as io.
"""

JOB = data.StructLayout({"sequence": 8, "kind": 2, "fault": 4})
"""An answer owed: to which request (kind 0: not known), and with ``fault`` 0 what it asked for, else an ERROR."""


@dataclass(frozen=True)
class LinkSpec:
    """What the link must know of the network, the board and the core.

    Attributes
    ----------
    digest: of the design, at least 16 bytes; HELLO tells the first 16.
    levels, margin: T and the wake steps in a row, as in the network.
    input_shape: one image; its product is the pixels of an IMAGE request, in wire order.
    input_max: the largest pixel, at most 255.
    outputs: neurons of each layer in order; the last are the logits.
    beat: pixels a transfer on the core's input.
    clock_hz: the ``io`` clock in Hz.
    watchdog: io cycles an image may take from when it is first in line, its way into the core included.
    baud: bits a second on the wire.
    banks: images that fit the pixel buffer, 1 or 2; with 2 the next image arrives while the last is played out.
    grid: height and width of the read-out's map; the logits are in wire order.
    counting: the core works in count code.
    """

    digest: bytes
    levels: int
    margin: int
    input_shape: tuple[int, ...]
    input_max: int
    outputs: tuple[int, ...]
    beat: int
    clock_hz: float
    watchdog: int
    baud: int = 1_000_000
    banks: int = 2
    grid: tuple[int, int] = (1, 1)
    counting: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.digest, bytes) or len(self.digest) < 16:
            raise ValueError(f"link: digest {self.digest!r} is not at least 16 bytes")
        for name, low, high in (("levels", 1, 0xFFFF), ("margin", 0, 0xFFFF), ("input_max", 1, 0xFF), ("beat", 1, 256), ("banks", 1, 2)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"link: {name} {getattr(self, name)!r} is not from {low} to {high}")
        if not 1 <= len(self.input_shape) <= 8 or not all(1 <= size <= 0xFFFF for size in self.input_shape) or self.pixels > 0xFFFF:
            raise ValueError(f"link: input_shape {self.input_shape!r} is not 1 to 8 sizes of together at most 65535 pixels")
        if not 1 <= len(self.outputs) <= 255 or not all(1 <= size < 1 << 32 for size in self.outputs) or self.logits > 16000:
            raise ValueError(f"link: outputs {self.outputs!r} are not 1 to 255 sizes, the last at most 16000")
        if not all(1 <= size <= 0xFFFF for size in self.grid) or self.logits % prod(self.grid):
            raise ValueError(f"link: {self.logits} logits are no map of height and width {self.grid!r}")
        if not self.pixels < self.watchdog < 1 << 32:
            raise ValueError(f"link: watchdog {self.watchdog!r} does not leave the {self.pixels} cycles to play an image out")
        _ = self.uart

    @property
    def pixels(self) -> int:
        return prod(self.input_shape)

    @property
    def logits(self) -> int:
        return self.outputs[-1]

    @property
    def uart(self) -> UartSpec:
        return UartSpec(self.clock_hz, self.baud)

    @property
    def pixel_signature(self) -> stream.Signature:
        """The core's input: an image in wire order, ``beat`` pixels a transfer, the first in element 0."""
        pixel = unsigned(self.input_max.bit_length())
        return stream.Signature(data.StructLayout({"data": data.ArrayLayout(pixel, self.beat), "last": 1}))

    def hello(self) -> bytes:
        """The payload of a HELLO answer."""

        def little(value: int, size: int) -> bytes:
            return value.to_bytes(size, "little")

        watchdog_us = min(round(self.watchdog / self.clock_hz * 1e6) + 1, 0xFFFF_FFFF)
        return b"".join(
            [
                *(little(PROTOCOL, 1), self.digest[:16], little(self.levels, 2), little(self.margin, 2), little(self.input_max, 1)),
                *(little(len(self.input_shape), 1), *(little(size, 2) for size in self.input_shape)),
                *(little(len(self.outputs), 1), *(little(size, 4) for size in self.outputs)),
                *(little(self.banks, 1), little(watchdog_us, 4)),
                *(little(self.counting, 1), *(little(size, 2) for size in self.grid)),
            ]
        )


@dataclass(frozen=True)
class AnswerBook:
    """The answers' bodies as they lie in memory, without sequence, fault and result.

    ``starts`` and ``ends`` are the first and last address by kind, 0 for ERROR.
    """

    spec: LinkSpec

    @property
    def bodies(self) -> dict[int, bytes]:
        def body(kind: int, payload: bytes) -> bytes:
            return bytes([PROTOCOL, kind, 0]) + len(payload).to_bytes(2, "little") + payload

        logits = self.spec.logits
        return {
            0: body(ERROR, bytes(2)),
            Kind.HELLO: body(ANSWER | Kind.HELLO, self.spec.hello()),
            Kind.RESET: body(ANSWER | Kind.RESET, b""),
            Kind.IMAGE: body(ANSWER | Kind.IMAGE, bytes(9) + logits.to_bytes(2, "little") + bytes(4 * logits)),
        }

    @property
    def starts(self) -> dict[int, int]:
        starts, at = {}, 0
        for kind, body in self.bodies.items():
            if kind == Kind.IMAGE:
                at += -(at + HEADER) % 16  # so that the fields before the logits differ in four address bits only
            starts[kind] = at
            at += len(body)
        return starts

    @property
    def ends(self) -> dict[int, int]:
        return {kind: self.starts[kind] + len(body) - 1 for kind, body in self.bodies.items()}

    @property
    def contents(self) -> bytes:
        contents = b""
        for kind, body in self.bodies.items():
            contents = contents.ljust(self.starts[kind], b"\0") + body
        return contents


class RequestReader(wiring.Component):
    """Checks frames, keeps an image's pixels in the bank that is free, and queues what is owed for each frame. Domain: ``io``.

    A job is queued with the frame's end; an image is committed to its bank in the same cycle. If the queue is full the
    frame is ignored.

    Members
    -------
    frame: In, off the wire.
    jobs: Out; not a waiting stream: a job that is not taken at once is dropped.
    crowded: In, the queue has no more room for answers to damaged frames.
    write: the pixel memory's port.
    free: In, the bank to write may be filled.
    bank: Out, the bank to write.
    commit: Out, it now holds an image.
    flush: In, stand still for this cycle.
    reset: Out, a RESET was queued.
    """

    def __init__(self, spec: LinkSpec):
        self.spec = spec
        self._port = WritePort.Signature(addr_width=(spec.banks * spec.pixels - 1).bit_length(), shape=spec.input_max.bit_length())
        super().__init__(
            {
                "frame": In(stream.Signature(RECEIVED_FRAME)),
                "jobs": Out(stream.Signature(JOB)),
                "crowded": In(1),
                "write": Out(wiring.Signature({"addr": Out(self._port.addr_width), "data": Out(self._port.shape), "en": Out(1)})),
                "free": In(1),
                "bank": Out(1),
                "commit": Out(1),
                "flush": In(1),
                "reset": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pixels, byte = self.spec.pixels, self.frame.p.data
        job, fault = self.jobs.p, self.jobs.p.fault
        left = Signal(range(pixels + 3))  # bytes of payload and CRC to come
        address = Signal(self._port.addr_width)
        wrong_version, wrong_length, wrong_pixel, stored = Signal(), Signal(), Signal(), Signal()
        field = Signal(range(6))  # of the header, 5: behind it
        in_body = field == HEADER
        sequence, kind = Signal(8), Signal(2)
        image = kind == Kind.IMAGE

        m.d.comb += [self.frame.ready.eq(~self.flush), job.sequence.eq(sequence), job.kind.eq(kind)]
        with m.If(~self.frame.p.good):
            m.d.comb += fault.eq(Fault.DAMAGED)
        with m.Elif(wrong_version):
            m.d.comb += fault.eq(Fault.VERSION)
        with m.Elif(kind == 0):
            m.d.comb += fault.eq(Fault.KIND)
        with m.Elif(wrong_length | ~in_body | (left != 0)):
            m.d.comb += fault.eq(Fault.LENGTH)
        with m.Elif(wrong_pixel):
            m.d.comb += fault.eq(Fault.PIXEL)
        with m.Elif(image & ~stored):
            m.d.comb += fault.eq(Fault.BUSY)

        step, end = Signal(), Signal()
        m.d.comb += [step.eq(self.frame.valid & ~self.flush & ~self.frame.p.end), end.eq(self.frame.valid & ~self.flush & self.frame.p.end)]
        m.d.comb += [self.write.addr.eq(address), self.write.data.eq(byte), self.write.en.eq(step & stored & (left > 2))]
        with m.If(step):
            m.d.io += field.eq(field + ~in_body)
            with m.Switch(field):
                with m.Case(0):
                    m.d.io += wrong_version.eq(byte != PROTOCOL)
                with m.Case(1):
                    m.d.io += kind.eq(Mux(byte <= max(Kind), byte, 0))
                with m.Case(2):
                    m.d.io += sequence.eq(byte)
                with m.Case(3):
                    m.d.io += wrong_length.eq(byte != Mux(image, pixels & 0xFF, 0))
                with m.Case(4):
                    m.d.io += wrong_length.eq(wrong_length | (byte != Mux(image, pixels >> 8, 0)))
                    m.d.io += [left.eq(Mux(image, pixels + 2, 2)), address.eq(Mux(self.bank, pixels, 0)), stored.eq(image & self.free)]
                with m.Default():
                    m.d.io += [left.eq(left - (left != 0)), address.eq(address + 1), wrong_length.eq(wrong_length | (left == 0))]
                    m.d.io += wrong_pixel.eq(wrong_pixel | (left > 2) & (byte > self.spec.input_max))
        with m.If(end):
            m.d.comb += [
                self.jobs.valid.eq((fault != Fault.DAMAGED) | ~self.crowded),
                self.commit.eq(self.jobs.ready & image & (fault == 0)),
                self.reset.eq(self.jobs.ready & (kind == Kind.RESET) & (fault == 0)),
            ]
            m.d.io += [field.eq(0), kind.eq(0), sequence.eq(0)]
            m.d.io += [wrong_version.eq(0), wrong_length.eq(0), wrong_pixel.eq(0), stored.eq(0)]
        with m.If(self.commit):
            m.d.io += self.bank.eq(~self.bank if self.spec.banks == 2 else 0)
        return m


class PixelPlayer(wiring.Component):
    """Plays the full banks out, oldest first, a pixel a cycle at best. Domain: ``io``.

    Members
    -------
    pixels: Out, one pixel a transfer, ``last`` with the image's last.
    read: the pixel memory's port.
    bank, commit: In, the bank being written, and that it now holds an image.
    free: Out, the bank being written may be filled.
    flush: In, forget all images.
    hold: In, begin no image.
    """

    def __init__(self, spec: LinkSpec):
        self.spec = spec
        pixel = spec.input_max.bit_length()
        port = ReadPort.Signature(addr_width=(spec.banks * spec.pixels - 1).bit_length(), shape=pixel)
        super().__init__(
            {
                "pixels": Out(stream.Signature(data.StructLayout({"data": pixel, "last": 1}))),
                "read": Out(wiring.Signature({"addr": Out(port.addr_width), "data": In(port.shape), "en": Out(1)})),
                "bank": In(1),
                "commit": In(1),
                "free": Out(1),
                "flush": In(1),
                "hold": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        pixels = self.spec.pixels
        full = Signal(2)
        bank = Signal()  # being played
        left = Signal(range(pixels + 1))  # pixels to read
        address = Signal(self.read.addr.shape())
        fetch = Signal()
        m.d.comb += [
            self.free.eq(~full.bit_select(self.bank, 1)),
            fetch.eq((left != 0) & (~self.pixels.valid | self.pixels.ready)),
            self.read.addr.eq(address),
            self.read.en.eq(fetch),
            self.pixels.p.data.eq(self.read.data),
        ]
        with m.If(self.pixels.ready):
            m.d.io += self.pixels.valid.eq(0)
        with m.If(fetch):
            m.d.io += [self.pixels.valid.eq(1), self.pixels.p.last.eq(left == 1), left.eq(left - 1), address.eq(address + 1)]
            with m.If(left == 1):
                m.d.io += [full.bit_select(bank, 1).eq(0), bank.eq(~bank if self.spec.banks == 2 else 0)]
        with m.Elif((left == 0) & full.bit_select(bank, 1) & ~self.hold):
            m.d.io += [left.eq(pixels), address.eq(Mux(bank, pixels, 0))]
        with m.If(self.commit):
            m.d.io += full.bit_select(self.bank, 1).eq(1)
        with m.If(self.flush):
            m.d.io += [full.eq(0), left.eq(0), self.pixels.valid.eq(0), bank.eq(self.bank)]
        return m


class ResultCollector(wiring.Component):
    """Lays a result down in the answer book in the order of the IMAGE answer. Domain: ``io``.

    Members
    -------
    result: In, the core's words as bytes, lowest first; ``last`` with the last.
    write: the answer book's port.
    done: Out, a result is in the book; the next waits.
    taken: In, it has been sent.
    kept: In, it is being sent: no flush can take it back.
    malformed: Out, the core's result ended too early or too late.
    flush: In, forget the result, whole or half.
    drain: In, throw away what comes.
    shown: Out, the lowest 8 bits of the newest class.
    """

    def __init__(self, spec: LinkSpec):
        self.spec, self.book = spec, AnswerBook(spec)
        super().__init__(
            {
                "result": In(stream.Signature(data.StructLayout({"data": 8, "last": 1}))),
                "write": Out(wiring.Signature({"addr": Out((len(self.book.contents) - 1).bit_length()), "data": Out(8), "en": Out(1)})),
                "done": Out(1),
                "taken": In(1),
                "kept": In(1),
                "malformed": Out(1),
                "flush": In(1),
                "drain": In(1),
                "shown": Out(8),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        fields = self.book.starts[Kind.IMAGE] + HEADER  # class 2, flags 1, sleep steps 2, cycles 4, logit count 2
        logits = fields + ANSWER_HEADER
        places = (0, 1, None, None, 3, 4, None, 2, 5, 6, 7, 8)  # of the bytes of class, status, cycles; None: not kept
        address = Signal(self.write.addr.shape(), init=logits)
        tail = Signal(range(len(places)))
        in_tail = Signal()
        place, keep = Signal(4), Signal()
        with m.Switch(tail):
            for index, where in enumerate(places):
                with m.Case(index):
                    m.d.comb += [place.eq(where or 0), keep.eq(where is not None)]
        step = Signal()
        m.d.comb += [
            self.result.ready.eq(self.drain | ~(self.done | self.malformed)),
            step.eq(self.result.valid & self.result.ready & ~self.drain),
            self.write.addr.eq(Mux(in_tail, Cat(place, Const(fields >> 4, max(len(address) - 4, 1))), address)),
            self.write.data.eq(self.result.p.data),
            # Only an upset could lead the address to what the book says of other things, and that nothing would write again.
            self.write.en.eq(step & Mux(in_tail, keep, address >= logits)),
        ]
        with m.If(step):
            with m.If(in_tail):
                m.d.io += tail.eq(tail + 1)
                with m.If(tail == 0):
                    m.d.io += self.shown.eq(self.result.p.data)
            with m.Else():
                m.d.io += [address.eq(address + 1), in_tail.eq(address == self.book.ends[Kind.IMAGE])]
            with m.If(tail == len(places) - 1):
                m.d.io += self.done.eq(self.result.p.last)
            with m.If(self.result.p.last != (tail == len(places) - 1)):
                m.d.io += self.malformed.eq(1)
        with m.If(self.taken):
            m.d.io += self.done.eq(0)
        with m.If(self.flush):
            m.d.io += [self.done.eq(self.kept & ~self.taken), self.malformed.eq(0)]
        with m.If(self.done | self.flush):
            m.d.io += [address.eq(logits), tail.eq(0), in_tail.eq(0)]
        return m


class Responder(wiring.Component):
    """Answers the jobs in order; an image's once its result is there, or as an ERROR once there can be none. Domain: ``io``.

    Members
    -------
    jobs: In, what is owed.
    level: In, how many jobs wait.
    body: Out, to the framer.
    read: the answer book's port.
    done, malformed: In, the result of the image that is first in line is there, or is broken.
    taken, kept: Out, see `ResultCollector`.
    failed: Out, the core has missed the watchdog or sent a broken result; it must be reset.
    flush: In, all images so far are lost.
    hold: In, take no job.
    idle: Out, nothing is being answered.
    """

    def __init__(self, spec: LinkSpec):
        self.spec, self.book = spec, AnswerBook(spec)
        address = (len(self.book.contents) - 1).bit_length()
        super().__init__(
            {
                "jobs": In(stream.Signature(JOB)),
                "level": In(range(QUEUE + 1)),
                "body": Out(stream.Signature(BODY)),
                "read": Out(wiring.Signature({"addr": Out(address), "data": In(8), "en": Out(1)})),
                **{name: In(1) for name in ("done", "malformed", "flush", "hold")},
                **{name: Out(1) for name in ("taken", "kept", "failed", "idle")},
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        starts, ends = self.book.starts, self.book.ends
        job = Signal(JOB)
        lost = Signal(range(QUEUE + 1))  # of the jobs waiting, so many from before the last flush
        timer = Signal(range(self.spec.watchdog))
        address = Signal(self.read.addr.shape())
        end = Signal(self.read.addr.shape())
        place = Signal(range(8))  # of the byte in the body, at most 7

        with m.Switch(Mux(job.fault == 0, job.kind, 0)):
            for kind in starts:
                with m.Case(kind):
                    m.d.comb += end.eq(ends[kind])
        m.d.comb += [self.read.addr.eq(address), self.read.en.eq(1)]
        m.d.comb += [self.body.p.data.eq(self.read.data), self.body.p.last.eq(address == end)]
        with m.If(place == 2):
            m.d.comb += self.body.p.data.eq(job.sequence)
        with m.If((job.fault != 0) & (place == HEADER)):
            m.d.comb += self.body.p.data.eq(job.fault)
        with m.If((job.fault != 0) & (place == HEADER + 1)):
            m.d.comb += self.body.p.data.eq(job.kind)

        with m.FSM(domain="io"):
            with m.State("IDLE"):
                m.d.comb += [self.jobs.ready.eq(~(self.flush | self.hold)), self.idle.eq(~self.jobs.valid)]
                m.d.io += [job.eq(self.jobs.payload), timer.eq(self.spec.watchdog - 1), place.eq(0)]
                with m.If(self.jobs.valid & self.jobs.ready):
                    m.next = "FIND"
                    with m.If((self.jobs.p.kind == Kind.IMAGE) & (self.jobs.p.fault == 0)):
                        m.next = "WAIT"
                        with m.If(lost != 0):
                            m.d.io += job.fault.eq(Fault.RESET)
                            m.next = "FIND"
                    m.d.io += lost.eq(lost - (lost != 0))
            with m.State("WAIT"):
                m.d.io += timer.eq(timer - 1)
                with m.If(self.flush | self.done | self.malformed | (timer == 0)):
                    m.next = "FIND"
                with m.If(self.flush):
                    m.d.io += job.fault.eq(Fault.RESET)
                with m.Elif(self.done):
                    m.d.io += self.kept.eq(1)
                with m.Elif(self.malformed | (timer == 0)):
                    m.d.comb += self.failed.eq(1)
                    m.d.io += job.fault.eq(Mux(self.malformed, Fault.MALFORMED, Fault.TIMEOUT))
            with m.State("FIND"):
                with m.Switch(Mux(job.fault == 0, job.kind, 0)):
                    for kind in starts:
                        with m.Case(kind):
                            m.d.io += address.eq(starts[kind])
                m.next = "READ"
            with m.State("READ"):
                m.next = "SEND"
            with m.State("SEND"):
                m.d.comb += self.body.valid.eq(1)
                with m.If(self.body.ready):
                    m.d.io += [address.eq(address + 1), place.eq(place + (place != 7))]
                    m.next = "READ"
                    with m.If(self.body.p.last):
                        m.d.comb += self.taken.eq(self.kept)
                        m.d.io += self.kept.eq(0)
                        m.next = "IDLE"
            spare_states(m, 5, "IDLE")
        with m.If(self.flush):
            m.d.io += lost.eq(self.level)
        return m


class PixelPacker(wiring.Component):
    """Single pixels to beats of the core's input; missing elements of an image's last beat are 0. Domain: ``sync``.

    Members
    -------
    i: In, one pixel a transfer, ``last`` with the image's last.
    o: Out, see `LinkSpec.pixel_signature`.
    reset: In, take and forget whatever comes.
    """

    def __init__(self, spec: LinkSpec):
        self.spec = spec
        super().__init__(
            {
                "i": In(stream.Signature(data.StructLayout({"data": spec.input_max.bit_length(), "last": 1}))),
                "o": Out(spec.pixel_signature),
                "reset": In(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        beat = self.spec.beat
        index = Signal(range(beat))
        m.d.comb += self.i.ready.eq(self.reset | ~self.o.valid | self.o.ready)
        with m.If(self.o.ready):
            m.d.sync += self.o.valid.eq(0)
        with m.If(self.i.valid & self.i.ready):
            for element in range(beat):
                with m.If(index == element):
                    m.d.sync += self.o.p.data[element].eq(self.i.p.data)
                with m.Elif(index == 0):
                    m.d.sync += self.o.p.data[element].eq(0)
            m.d.sync += [self.o.p.last.eq(self.i.p.last), self.o.valid.eq(self.i.p.last | (index == beat - 1))]
            m.d.sync += index.eq(Mux(self.i.p.last | (index == beat - 1), 0, index + 1))
        with m.If(self.reset):
            m.d.sync += [index.eq(0), self.o.valid.eq(0)]
        return m


class HostLink(wiring.Component):
    """UART pins on one side, the core on the other.

    A core reset leaves nothing behind: while ``core_reset`` holds the core, the packer swallows the pixels still crossing and
    the collector the results; the crossings themselves are never reset, so their Gray counters never jump. Only when both
    have run dry (`RESET_CYCLES`) does the next image start. The core must not offer a result while it is in reset.

    Members
    -------
    rx, tx: the pins (``io``; rx is synchronised here).
    pixels: Out, to the core (``sync``), see `LinkSpec.pixel_signature`.
    result: In, from the core (``sync``), see `rtl_gen.gates.readout.WORD`.
    core_reset: Out (``sync``): holds the core in reset; up at power-on, on RESET, and when the core has failed.
    shown: Out (``io``): the lowest 8 bits of the newest class.
    failed: Out (``io``): the newest image's core had to be reset.
    idle: Out (``io``): no frame, no image and no answer is under way.
    """

    def __init__(self, spec: LinkSpec):
        self.spec = spec
        super().__init__(
            {
                "rx": In(1, init=1),
                "tx": Out(1, init=1),
                "pixels": Out(spec.pixel_signature),
                "result": In(WORD),
                "core_reset": Out(1, init=1),
                "shown": Out(8),
                "failed": Out(1),
                "idle": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, book = self.spec, AnswerBook(self.spec)
        to_io = DomainRenamer("io")
        receiver, transmitter, deframer, framer = UartReceiver(spec.uart), UartTransmitter(spec.uart), Deframer(), Framer()
        for name, part in (("receiver", receiver), ("transmitter", transmitter), ("deframer", deframer), ("framer", framer)):
            m.submodules[name] = to_io(part)
        m.submodules.reader = reader = RequestReader(spec)
        m.submodules.player = player = PixelPlayer(spec)
        m.submodules.collector = collector = ResultCollector(spec)
        m.submodules.responder = responder = Responder(spec)
        m.submodules.packer = packer = PixelPacker(spec)
        queue = SyncFIFOBuffered(width=JOB.size, depth=QUEUE)
        # Its counters agree again, whatever upset them, as soon as it is empty.
        m.submodules.queue = to_io(ResetInserter((queue.level == 0) & ~queue.w_en)(queue))
        m.submodules.banks = banks = Memory(shape=spec.input_max.bit_length(), depth=spec.banks * spec.pixels, init=[])
        m.submodules.book = answers = Memory(shape=8, depth=len(book.contents), init=book.contents)
        m.submodules.pixels_cross = pixels = AsyncFIFO(width=packer.i.p.as_value().shape().width, depth=4, w_domain="io", r_domain="sync")
        m.submodules.result_cross = result = AsyncFIFO(width=9, depth=4, w_domain="sync", r_domain="io")

        # The wire.
        m.d.comb += [receiver.rx.eq(self.rx), self.tx.eq(transmitter.tx)]
        wiring.connect(m, receiver.bytes, deframer.bytes)
        wiring.connect(m, deframer.frame, reader.frame)
        wiring.connect(m, responder.body, framer.body)
        wiring.connect(m, framer.bytes, transmitter.bytes)

        # What is owed.
        m.d.comb += [
            queue.w_en.eq(reader.jobs.valid),
            queue.w_data.eq(reader.jobs.payload),
            reader.jobs.ready.eq(queue.w_rdy),
            reader.crowded.eq(queue.level >= QUEUE // 2),
            responder.jobs.valid.eq(queue.r_rdy),
            responder.jobs.payload.eq(queue.r_data),
            queue.r_en.eq(responder.jobs.ready),
            responder.level.eq(queue.level),
        ]

        # Starting afresh.
        flush = Signal()
        hold = Signal(range(RESET_CYCLES), init=RESET_CYCLES - 1)
        holding = hold != 0
        m.d.io += [flush.eq(reader.reset | responder.failed), hold.eq(Mux(flush, RESET_CYCLES - 1, hold - holding))]
        m.submodules.reset_cross = FFSynchronizer(hold[-1], self.core_reset, o_domain="sync", init=1)
        m.d.comb += [part.flush.eq(flush) for part in (reader, player, collector, responder)]
        m.d.comb += [player.hold.eq(holding), collector.drain.eq(holding), responder.hold.eq(holding), packer.reset.eq(self.core_reset)]

        # Images to the core.
        connect_ports(m, reader.write, banks.write_port(domain="io"))
        connect_ports(m, player.read, banks.read_port(domain="io"))
        m.d.comb += [reader.free.eq(player.free), player.bank.eq(reader.bank), player.commit.eq(reader.commit)]
        m.d.comb += [pixels.w_en.eq(player.pixels.valid), pixels.w_data.eq(player.pixels.payload), player.pixels.ready.eq(pixels.w_rdy)]
        m.d.comb += [packer.i.valid.eq(pixels.r_rdy), packer.i.payload.eq(pixels.r_data), pixels.r_en.eq(packer.i.ready)]
        wiring.connect(m, packer.o, wiring.flipped(self.pixels))

        # Results from the core, byte by byte.
        index = Signal(2)
        word = self.result.p
        m.d.comb += [
            result.w_en.eq(self.result.valid & ~self.core_reset),
            result.w_data.eq(Cat(word.data.word_select(index, 8), word.last & (index == 3))),
            self.result.ready.eq(result.w_rdy & (index == 3) & ~self.core_reset),
        ]
        with m.If(self.core_reset):
            m.d.sync += index.eq(0)
        with m.Elif(self.result.valid & result.w_rdy):
            m.d.sync += index.eq(index + 1)
        m.d.comb += [
            collector.result.valid.eq(result.r_rdy),
            collector.result.payload.eq(result.r_data),
            result.r_en.eq(collector.result.ready),
        ]
        connect_ports(m, collector.write, answers.write_port(domain="io"))
        connect_ports(m, responder.read, answers.read_port(domain="io"))
        m.d.comb += [responder.done.eq(collector.done), responder.malformed.eq(collector.malformed)]
        m.d.comb += [collector.taken.eq(responder.taken), collector.kept.eq(responder.kept)]

        m.d.comb += [self.shown.eq(collector.shown), self.idle.eq(responder.idle & ~holding)]
        m.d.io += self.failed.eq((self.failed | responder.failed) & ~responder.kept)
        return m


def connect_ports(m: Module, ours: wiring.PureInterface, port: ReadPort | WritePort) -> None:
    """Drive a memory's ``port`` from a component's interface of the same member names."""
    m.d.comb += [port.addr.eq(ours.addr), port.en.eq(ours.en)]
    m.d.comb += port.data.eq(ours.data) if isinstance(port, WritePort) else ours.data.eq(port.data)
