"""Words of weights from a board's serial flash."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Const, DomainRenamer, Module, Mux, Signal
from amaranth.lib import wiring
from amaranth.lib.crc.catalog import CRC32_MPEG_2
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.spram import WEIGHTS, WORD_BITS

OFFSET = 0x10_0000
"""Where the words begin in the flash (bytes): behind any bitstream of a small device."""
WAKE, READ = 0xAB, 0x03
"""Commands: release from deep power-down, in which an iCE40 leaves its flash; read from a 24-bit address."""
PAUSE = 4096
"""Cycles before each command: at 12 MHz 341 us, where flashes ask for 3 to 100 us to wake up."""
PINS = wiring.Signature({"cs": Out(1), "clk": Out(1), "copi": Out(1), "cipo": In(1)})
"""A flash's pins, ``cs`` 1 = selected; write protection and hold stay off."""


def flash_bytes(words: Sequence[int]) -> bytes:
    """The words as they lie in the flash, each with its high byte first."""
    return b"".join(word.to_bytes(WORD_BITS // 8, "big") for word in words)


@dataclass(frozen=True)
class FlashSpec:
    """``size`` words, whose bytes' CRC-32 (MPEG-2) is ``checksum``, from byte ``offset`` on; ``pause``: cycles, a power of two."""

    size: int
    checksum: int
    offset: int = OFFSET
    pause: int = PAUSE

    def __post_init__(self) -> None:
        if self.size < 1 or self.offset < 0 or self.offset + 2 * self.size > 1 << 24:
            raise ValueError(f"flash: {self.size!r} words from {self.offset:#x} on are none, or beyond a 24-bit address")

    @classmethod
    def of(cls, words: Sequence[int]) -> FlashSpec:
        """For just these words."""
        return cls(len(words), CRC32_MPEG_2(data_width=8).compute(flash_bytes(words)))


class FlashReader(wiring.Component):
    """Reads the words once, after power-up: wakes the flash, reads on and on at half the clock, mode 0. Domain: ``io``.

    The checksum is part of the gates, so that words of another network, or none, do not pass: then the last is never sent.
    A word takes 33 cycles at best; the clock of the flash stands still until it is taken.

    Members
    -------
    pins: the flash's; ``cipo`` follows ``clk`` and needs no synchroniser.
    words: Out, ``last`` with the last.
    busy: Out, there are more to come. failed: Out, the checksum was wrong.
    """

    def __init__(self, spec: FlashSpec):
        self.spec = spec
        super().__init__({"pins": Out(PINS), "words": Out(WEIGHTS), "busy": Out(1), "failed": Out(1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec, pins = self.spec, self.pins
        m.submodules.checksum = checksum = DomainRenamer("io")(CRC32_MPEG_2(data_width=1).create())
        awake = Signal()
        wait = Signal(range(spec.pause))
        command = Signal(32)
        left = Signal(range(32), reset_less=True)  # bits, after this one
        word = Signal(WORD_BITS, reset_less=True)
        words = Signal(range(spec.size), init=spec.size - 1)  # after this one
        final = words == 0
        sample = Signal()
        m.d.comb += [
            pins.copi.eq(command[-1]),
            checksum.valid.eq(sample),
            checksum.data.eq(pins.cipo),
            self.words.p.data.eq(word),
            self.words.p.last.eq(final),
            self.busy.eq(1),
        ]
        with m.FSM(domain="io"):
            with m.State("pause"):
                m.d.io += [
                    wait.eq(wait + 1),
                    command.eq(Mux(awake, Const(READ << 24 | spec.offset, 32), WAKE << 24)),
                    left.eq(Mux(awake, 31, 7)),
                ]
                with m.If(wait == spec.pause - 1):
                    m.d.io += pins.cs.eq(1)
                    m.next = "command"
            with m.State("command"):
                m.d.io += pins.clk.eq(~pins.clk)
                with m.If(pins.clk):
                    m.d.io += [command.eq(command << 1), left.eq(left - 1)]
                    with m.If(left == 0):
                        m.d.io += [awake.eq(1), pins.cs.eq(awake), left.eq(WORD_BITS - 1)]
                        m.next = "pause"
                        with m.If(awake):
                            m.next = "read"
            with m.State("read"):
                m.d.io += pins.clk.eq(~pins.clk)
                m.d.comb += sample.eq(~pins.clk)
                with m.If(sample):
                    m.d.io += word.eq(word << 1 | pins.cipo)
                with m.Else():
                    m.d.io += left.eq(Mux(left == 0, WORD_BITS - 1, left - 1))
                    with m.If(left == 0):
                        m.next = "give"
            with m.State("give"):
                with m.If(final & (checksum.crc != spec.checksum)):
                    m.next = "failed"
                with m.Else():
                    m.d.comb += self.words.valid.eq(1)
                    with m.If(self.words.ready):
                        m.d.io += words.eq(words - ~final)
                        m.next = "read"
                        with m.If(final):
                            m.d.io += pins.cs.eq(0)
                            m.next = "done"
            with m.State("done"):
                m.d.comb += self.busy.eq(0)
            with m.State("failed"):
                m.d.io += pins.cs.eq(0)
                m.d.comb += [self.busy.eq(0), self.failed.eq(1)]
        return m
