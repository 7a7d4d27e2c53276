"""Synapses a tap at a time: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.serial import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

SERIAL = "rtl_gen.gates.serial"
MUTANTS = [
    Mutant("the sums do not settle", SERIAL, "SETTLE = 3", "SETTLE = 1", "serial-1x1 serial-2x2", "sums"),
    Mutant("a weight comes a cycle early", SERIAL, 'delay(m, row_data, 1, "fetched")', "row_data", "serial-2x2", "sums"),
    Mutant("a sign is turned", SERIAL, "Mux(value < 0, -weight, weight)", "Mux(value > 0, -weight, weight)", "serial-1x1", "sums"),
    Mutant("the next neuron has the same weight", SERIAL, "tap.eq(tap - across)", "tap.eq(tap)", "serial-2x2 serial-3x3", "sums"),
    Mutant("a row begins where the one before ended", SERIAL, "m.d.sync += [tap_x.eq(dx), to", "m.d.sync += [to", "serial-5x3", "sums"),
    Mutant("rows of neurons lie side by side", SERIAL, "top.eq(top + down)", "top.eq(top + 1)", "serial-3x3-2 serial-1x1-2", "sums"),
    Mutant(
        "sums are left behind",
        SERIAL,
        "write.addr.eq(sending), write.data.eq(0), write.en.eq(1)",
        "write.addr.eq(sending), write.data.eq(0), write.en.eq(0)",
        "serial-1x1",
        "sums",
    ),
    Mutant("a row leaves late", SERIAL, "(dy >= kernel_y) & ~last_row", "(dy > kernel_y) & ~last_row", "serial-2x2", "sums"),
    Mutant("a row leaves early", SERIAL, "(dy >= kernel_y) & ~last_row", "(dy >= kernel_y - 1) & ~last_row", "serial-2x2", "sums"),
    Mutant("all channels are of the first set", SERIAL, "self._set(event.channel) * spec.chunks", "0", "serial-1x1-2", "sums"),
    Mutant("a reset leaves all sums but one", SERIAL, "cleared == spec.sums - 1", "cleared == 0", "serial-reset", "sums"),
    Mutant("a reset leaves all sums", SERIAL, "write.en.eq(dirty)", "write.en.eq(0)", "serial-reset", "sums"),
    Mutant(
        "every row ends the step",
        SERIAL,
        "done = event.mark & last_row & sent.last",
        "done = event.mark & sent.last",
        "serial-parts",
        "order",
    ),
    Mutant("an event is no step", SERIAL, "event.mark & ~touched", "event.mark", "serial-1x1", "steps: empty"),
    Mutant("columns are not stepped over", SERIAL, "column.eq(column + 1), left.eq", "left.eq", "serial-2x2"),
    Mutant("it waits for ever", SERIAL, "with m.If(settled == SETTLE - 1):", "with m.If(settled == SETTLE):", "serial-1x1", "moves"),
]

TestSerial = properties_of(PROPERTIES, MUTANTS, search="pdr")
