"""Frames on a byte wire: flags, byte stuffing, CRC (docs/protocol.md). Clock domain ``sync`` (rename it where the clock is another).

A flag always ends a frame and starts the next, so whatever was lost or garbled before it cannot reach past it.
"""

from __future__ import annotations

from enum import IntEnum

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.crc.catalog import CRC16_IBM_3740
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.uart import RECEIVED, spare_states

PROTOCOL = 2
"""The protocol's version, the first byte of every frame."""
FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20


class Kind(IntEnum):
    """A request's type byte; its answer's is the same with ``ANSWER`` set, or ``ERROR``."""

    HELLO = 0x01
    IMAGE = 0x02
    RESET = 0x03


ANSWER, ERROR = 0x80, 0xFF


class Fault(IntEnum):
    """Why a request is answered with ``ERROR``: the first byte of that answer's payload."""

    DAMAGED = 1
    VERSION = 2
    KIND = 3
    LENGTH = 4
    PIXEL = 5
    BUSY = 6
    TIMEOUT = 7
    RESET = 8
    MALFORMED = 9


RECEIVED_FRAME = data.StructLayout({"data": 8, "end": 1, "good": 1})
"""A byte of a frame's body (its CRC included), or with ``end`` no byte but the frame's end; ``good``: nothing lost, the CRC is right."""
BODY = data.StructLayout({"data": 8, "last": 1})
"""A byte of a frame's body without its CRC; ``last`` with the body's last byte."""


class Deframer(wiring.Component):
    """Bytes off the wire to bodies; one transfer a cycle, no latency; empty frames vanish.

    Members
    -------
    bytes: In, stream of `RECEIVED`.
    frame: Out, stream of `RECEIVED_FRAME`: the body's bytes, then one ``end``.
    """

    def __init__(self) -> None:
        super().__init__({"bytes": In(stream.Signature(RECEIVED)), "frame": Out(stream.Signature(RECEIVED_FRAME))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC16_IBM_3740().create()
        escaped = Signal()
        some = Signal()  # the frame has had a byte
        bad = Signal()
        received = self.bytes.p
        flag, escape = received.data == FLAG, received.data == ESCAPE
        m.d.comb += [
            self.frame.p.data.eq(received.data ^ Mux(escaped, FLIP, 0)),
            self.frame.p.end.eq(flag),
            self.frame.p.good.eq(crc.match_detected & ~(bad | escaped | received.gap)),
            self.frame.valid.eq(self.bytes.valid & Mux(flag, some | received.gap, escaped | ~escape)),
            self.bytes.ready.eq(~self.frame.valid | self.frame.ready),
            crc.data.eq(self.frame.p.data),
            crc.valid.eq(self.frame.valid & self.frame.ready & ~flag),
            crc.start.eq(~some),
        ]
        with m.If(self.bytes.valid & self.bytes.ready):
            m.d.sync += [some.eq(~flag), escaped.eq(~flag & escape & ~escaped), bad.eq(~flag & (bad | received.gap))]
        return m


class Framer(wiring.Component):
    """Bodies to bytes for the wire: a flag, the body and its CRC stuffed, a flag.

    Members
    -------
    body: In, stream of `BODY`.
    bytes: Out, stream of bytes.
    """

    def __init__(self) -> None:
        super().__init__({"body": In(stream.Signature(BODY)), "bytes": Out(stream.Signature(8))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        m.submodules.crc = crc = CRC16_IBM_3740().create()
        escaped = Signal()
        plain = Signal(8)  # the byte to stuff
        stuff = Signal()  # there is one
        sent = Signal()  # and it has gone
        out = self.bytes
        special = (plain == FLAG) | (plain == ESCAPE)
        with m.If(stuff):
            m.d.comb += [out.payload.eq(Mux(escaped, plain ^ FLIP, Mux(special, ESCAPE, plain))), sent.eq(out.ready & (escaped | ~special))]
            with m.If(out.valid & out.ready):
                m.d.sync += escaped.eq(special & ~escaped)
        with m.Else():
            m.d.comb += out.payload.eq(FLAG)
        m.d.comb += crc.data.eq(self.body.p.data)

        with m.FSM():
            with m.State("OPEN"):
                m.d.comb += [out.valid.eq(self.body.valid), crc.start.eq(1)]
                with m.If(out.valid & out.ready):
                    m.next = "BODY"
            with m.State("BODY"):
                m.d.comb += [stuff.eq(1), plain.eq(self.body.p.data), out.valid.eq(self.body.valid)]
                with m.If(self.body.valid & sent):
                    m.d.comb += [self.body.ready.eq(1), crc.valid.eq(1)]
                    with m.If(self.body.p.last):
                        m.next = "CRC_HIGH"
            with m.State("CRC_HIGH"):
                m.d.comb += [stuff.eq(1), plain.eq(crc.crc[8:]), out.valid.eq(1)]
                with m.If(sent):
                    m.next = "CRC_LOW"
            with m.State("CRC_LOW"):
                m.d.comb += [stuff.eq(1), plain.eq(crc.crc[:8]), out.valid.eq(1)]
                with m.If(sent):
                    m.next = "CLOSE"
            with m.State("CLOSE"):
                m.d.comb += out.valid.eq(1)
                with m.If(out.ready):
                    m.next = "OPEN"
            spare_states(m, 5, "OPEN")
        return m
