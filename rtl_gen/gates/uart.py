"""A UART, 8N1: bytes on a wire to a stream of bytes, and back. Clock domain ``sync`` (rename it where the clock is another)."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import data, stream, wiring
from amaranth.lib.cdc import FFSynchronizer
from amaranth.lib.wiring import In, Out

RECEIVED = data.StructLayout({"data": 8, "gap": 1})
"""A received byte; ``gap``: something was lost between the byte before and this one (framing error, break or overrun)."""


@dataclass(frozen=True)
class UartSpec:
    """``clock_hz``: the clock in Hz; ``baud``: bits a second. Their ratio must be near enough to a whole number of at least 4."""

    clock_hz: float
    baud: int

    def __post_init__(self) -> None:
        if self.baud <= 0 or self.divisor < 4:
            raise ValueError(f"uart: {self.baud!r} baud does not leave 4 cycles a bit of a {self.clock_hz!r} Hz clock; choose fewer baud")
        actual = self.clock_hz / self.divisor
        if abs(actual / self.baud - 1) > 0.02:
            raise ValueError(
                f"uart: a {self.clock_hz!r} Hz clock makes {actual:.0f} baud, not {self.baud!r}; choose a baud rate that divides the clock"
            )

    @property
    def divisor(self) -> int:
        """Clock cycles a bit."""
        return round(self.clock_hz / self.baud)


def spare_states(m: Module, used: int, home: str) -> None:
    """Within an FSM of ``used`` states: codes left over lead ``home``: an upset may set one, and without a state there is no way out."""
    for spare in range(used, 1 << (used - 1).bit_length()):
        with m.State(f"SPARE_{spare}"):
            m.next = home


class UartReceiver(wiring.Component):
    """Transfer k is the k-th byte whose start and stop bit were right; it is offered half a bit before its stop bit ends.

    The wire cannot wait: a byte that finds the one before still untaken is lost, and so is one with a wrong stop bit; the next
    transfer then has ``gap`` set. After a wrong stop bit (a break, say) the line must be high again before a byte begins.

    Members
    -------
    rx: In, the pin, not synchronised.
    bytes: Out, stream of `RECEIVED`.
    """

    def __init__(self, spec: UartSpec):
        self.spec = spec
        super().__init__({"rx": In(1, init=1), "bytes": Out(stream.Signature(RECEIVED))})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        divisor = self.spec.divisor
        rx = Signal(init=1)
        m.submodules.rx_sync = FFSynchronizer(self.rx, rx, init=1)

        timer = Signal(range(divisor))
        shift = Signal(9)  # data, then the sentinel that reaches bit 0 with the last data bit
        lost = Signal()
        stream_ = self.bytes
        with m.If(stream_.ready):
            m.d.sync += stream_.valid.eq(0)
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.sync += timer.eq(divisor // 2 - 1)
                with m.If(~rx):
                    m.next = "START"
            with m.State("START"), m.If(timer == 0):
                m.d.sync += [timer.eq(divisor - 1), shift.eq(1 << 8)]
                m.next = "DATA"
                with m.If(rx):  # a spike on the wire
                    m.next = "IDLE"
            with m.State("DATA"), m.If(timer == 0):
                m.d.sync += [timer.eq(divisor - 1), shift.eq(Cat(shift[1:], rx))]
                with m.If(shift[1]):
                    m.next = "STOP"
            with m.State("STOP"), m.If(timer == 0):
                m.next = "IDLE"
                with m.If(~rx):
                    m.d.sync += lost.eq(1)
                    m.next = "BREAK"
                with m.Elif(stream_.valid & ~stream_.ready):
                    m.d.sync += lost.eq(1)
                with m.Else():
                    m.d.sync += [stream_.valid.eq(1), stream_.p.data.eq(shift[1:]), stream_.p.gap.eq(lost), lost.eq(0)]
            with m.State("BREAK"), m.If(rx):
                m.next = "IDLE"
            spare_states(m, 5, "IDLE")
        return m


class UartTransmitter(wiring.Component):
    """Byte k of the stream is the k-th on the wire; ten bit times a byte.

    Members
    -------
    bytes: In, stream of bytes.
    tx: Out, the pin; high when idle.
    """

    def __init__(self, spec: UartSpec):
        self.spec = spec
        super().__init__({"bytes": In(stream.Signature(8)), "tx": Out(1, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        timer = Signal(range(self.spec.divisor))
        shift = Signal(10)  # what is still to send; the stop bit is its own sentinel, so 0 when idle
        with m.If(timer != 0):
            m.d.sync += timer.eq(timer - 1)
        with m.Elif(shift != 0):
            m.d.sync += [timer.eq(self.spec.divisor - 1), self.tx.eq(shift[0]), shift.eq(shift[1:])]
        with m.Elif(self.bytes.valid):
            m.d.comb += self.bytes.ready.eq(1)
            m.d.sync += shift.eq(Cat(Const(0, 1), self.bytes.payload, Const(1, 1)))
        return m
