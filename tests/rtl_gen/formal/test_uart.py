"""The UART: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

import pytest
from amaranth.hdl import Module, Signal
from amaranth.lib import wiring

from rtl_gen.formal.bench import Bench, Engine, prove
from rtl_gen.formal.uart import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

UART = "rtl_gen.gates.uart"
RECEIVE, SEND = "uart-receiver-4 uart-receiver-5 uart-receiver-7", "uart-transmitter-4 uart-transmitter-5 uart-transmitter-7"
MUTANTS = [
    Mutant("a spare state has no way out", UART, 'spare_states(m, 5, "IDLE")', "pass", "uart-rests-4 uart-rests-5 uart-rests-10"),
    Mutant("a break ends at a low line", UART, 'm.State("BREAK"), m.If(rx):', 'm.State("BREAK"), m.If(~rx):', "uart-rests-4"),
    Mutant("data has no end", UART, "shift.eq(Cat(shift[1:], rx))", "shift.eq(Cat(shift[1:], shift[0]))", "uart-rests-4"),
    Mutant("a byte begins in the middle", UART, "timer.eq(divisor // 2 - 1)", "timer.eq(divisor // 2)", RECEIVE),
    Mutant("a byte has nine bits", UART, "m.If(shift[1]):", "m.If(shift[0]):", "uart-receiver-4"),
    Mutant("bits are inverted", UART, "shift.eq(Cat(shift[1:], rx))", "shift.eq(Cat(shift[1:], ~rx))", "uart-receiver-4", "as it was sent"),
    Mutant(
        "what is untaken is overwritten", UART, "m.Elif(stream_.valid & ~stream_.ready):", "m.Elif(Const(0)):", "uart-receiver-4", "stands"
    ),
    Mutant("a loss is told for ever", UART, "gap.eq(lost), lost.eq(0)", "gap.eq(lost)", "uart-receiver-4", "word of"),
    Mutant("a loss is never told", UART, "gap.eq(lost), lost.eq(0)", "gap.eq(0), lost.eq(0)", "uart-receiver-4", "word of"),
    Mutant("an offer is taken back", UART, "m.If(stream_.ready):", "m.If(stream_.valid):", "uart-receiver-4", "stands"),
    Mutant("an offer stays", UART, "m.If(stream_.ready):", "m.If(stream_.ready & (shift == 0)):", "uart-receiver-4"),
    Mutant("a bit too short", UART, "timer.eq(self.spec.divisor - 1)", "timer.eq(self.spec.divisor - 2)", SEND),
    Mutant("the highest bit first", UART, "self.tx.eq(shift[0])", "self.tx.eq(shift[8])", "uart-transmitter-4", "start"),
    Mutant("no stop bit", UART, "m.Elif(shift != 0):", "m.Elif(shift[1:] != 0):", "uart-transmitter-4"),
    Mutant(
        "a byte is taken late", UART, "m.Elif(self.bytes.valid):", "m.Elif(self.bytes.valid & self.tx):", "uart-transmitter-4", "in time"
    ),
]


TestUart = properties_of(PROPERTIES, MUTANTS)


class _Trap(wiring.Component):
    """A register with a value that it never leaves and, once at its initial value, never comes to."""

    def __init__(self) -> None:
        super().__init__({"o": wiring.Out(2, init=1)})

    def elaborate(self, platform: object) -> Module:
        m = Module()
        with m.If(self.o != 3):
            m.d.sync += self.o.eq(1)
        return m


@pytest.mark.parametrize("engine", ["induction", "pdr"])
@pytest.mark.parametrize("upset", [False, True])
def test_only_registers_of_parts_with_any_start_begin_at_any_value(engine: Engine, upset: bool) -> None:
    bench = Bench()
    one, two, ours = _Trap(), _Trap(), Signal(2, init=1)
    bench.part("one", one, any_start=upset)
    bench.part("one_two", two)
    bench.m.d.sync += ours.eq(ours)
    bench.claim("part", one.o != 3)
    bench.claim("others", (two.o == 1) & (ours == 1))
    result = prove(bench, 3, engine=engine)
    assert (result.verdict, result.failed) == (("refuted", ("part",)) if upset else ("proved", ()))
