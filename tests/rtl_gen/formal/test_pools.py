"""Pools: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.pools import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

POOLS = "rtl_gen.gates.pools"
MUTANTS = [
    Mutant("a volley is taken with each tap", POOLS, "real & (last_tap | self.i.p.empty)", "real", "pool-padded", "volleys"),
    Mutant(
        "an empty step is a volley",
        POOLS,
        "serve.eq(~real | (self.i.valid & ~self.i.p.empty))",
        "serve.eq(~real | self.i.valid)",
        "pool-sum",
    ),
    Mutant("windows are not left to the skid", POOLS, "go.eq(skid.i.ready | ~", "go.eq(1 | ~", "pool-1 pool-sum"),
    Mutant("the window before is not added to", POOLS, "joined = old + value", "joined = value", "pool-sum", "volleys"),
    Mutant("the smallest", POOLS, "Mux(value > old, value, old)", "Mux(value > old, old, value)", "pool-max pool-padded", "volleys"),
    Mutant("what is under way is not seen", POOLS, "Mux(again[0], write.data,", "Mux(0, write.data,", "pool-sum", "volleys"),
    Mutant(
        "zeros behind the map are volleys", POOLS, "Mux(real & inside, self.i.p.values, 0)", "self.i.p.values", "pool-padded", "volleys"
    ),
    Mutant("columns left over end a row", POOLS, "(band_x < tap_x + columns)", "1", "pool-max"),
    Mutant(
        "the last window has no mark", POOLS, "skid.i.p.mark.eq(late.empty | late.ends)", "skid.i.p.mark.eq(late.empty)", "pool-1", "mark"
    ),
    Mutant("an empty step is full", POOLS, "skid.i.p.empty.eq(late.empty)", "skid.i.p.empty.eq(0)", "pool-1 pool-sum", "empty"),
    Mutant("the step of what comes", POOLS, "skid.i.p.step.eq(late.step)", "skid.i.p.step.eq(early.step)", "pool-sum", "its step"),
    Mutant("empty steps move the place", POOLS, "with m.If(go & skid.i.valid & ~late.empty):", "with m.If(go & skid.i.valid):", "pool-sum"),
    Mutant("differences from the image before", POOLS, "Mux(volley.step.first, 0, old)", "old", "difference-1 difference-4", "gained"),
    Mutant("no difference", POOLS, "Mux(volley.step.first, 0, old)", "0", "difference-1 difference-4", "gained"),
    Mutant("an empty step gains", POOLS, "Mux(volley.empty, 0, value -", "(value -", "difference-1", "gained"),
    Mutant("an empty step is kept", POOLS, "write.en.eq(held & ~volley.empty)", "write.en.eq(held)", "difference-4", "gained"),
    Mutant(
        "kept in the next place", POOLS, "m.d.comb += write.addr.eq(place)", "m.d.comb += write.addr.eq(chunk)", "difference-4", "gained"
    ),
    Mutant(
        "one chunk in each cycle",
        POOLS,
        "take.eq(~held if spec.chunks == 1 else ~held | self.o.ready)",
        "take.eq(~held | self.o.ready)",
        "difference-1",
        "gained",
    ),
    Mutant(
        "a volley is offered for ever",
        POOLS,
        "with m.Elif(self.o.ready):\n            m.d.sync += held.eq(0)",
        "with m.Elif(0):\n            m.d.sync += held.eq(0)",
        "difference-1",
        "once",
    ),
    Mutant("a volley is lost", POOLS, "else ~held | self.o.ready)", "else 1)", "difference-4"),
]

TestPools = properties_of(PROPERTIES, MUTANTS)
