"""Synapses: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.synapses import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

SYNAPSES = "rtl_gen.gates.synapses"
MUTANTS = [
    Mutant(
        "a source's sign is turned", SYNAPSES, "Mux(value < 0, -weight, weight)", "Mux(value > 0, -weight, weight)", "synapses-one", "sums"
    ),
    Mutant(
        "a value comes a cycle early",
        SYNAPSES,
        'delay(m, cell.value, 2, "value")',
        'delay(m, cell.value, 1, "value")',
        "synapses-one",
        "sums",
    ),
    Mutant(
        "three times a value is five times",
        SYNAPSES,
        "(3, before + (before << 1))",
        "(3, before + (before << 2))",
        "synapses-logic",
        "sums",
    ),
    Mutant("sums are cleared as they are sent", SYNAPSES, "clear if geometry.flat else tag.mark", "tag.mark", "synapses-one", "sums"),
    Mutant(
        "sums are not cleared",
        SYNAPSES,
        "clear if geometry.flat else tag.mark",
        "(clear & 0) if geometry.flat else tag.mark",
        "synapses-one",
        "sums",
    ),
    Mutant("a step that waits does not stop the next", SYNAPSES, "(0 if geometry.flat else ~sends)", "~sends", "synapses-one", "order"),
    Mutant("no credit at first", SYNAPSES, "init=credit)", "init=0)", "synapses-one", "moves"),
    Mutant(
        "an empty step is not told",
        SYNAPSES,
        "self.currents.p.empty.eq(leaving.empty)",
        "self.currents.p.empty.eq(0)",
        "synapses-one",
        "steps: empty",
    ),
    Mutant("the step told is the next", SYNAPSES, "complete.step.eq(tag.step)", "complete.step.eq(early.step)", "synapses-one", "flags"),
    Mutant("a low product's borrow is not taken", SYNAPSES, "(high - low[-1])", "high", "synapses-parts synapses-map", "sums"),
    Mutant(
        "a low product's borrow is not given back",
        SYNAPSES,
        "pair[bits:].as_signed(), pair[bits - 1])]",
        "pair[bits:].as_signed(), 0)]",
        "synapses-parts synapses-both",
        "sums",
    ),
    Mutant("digits lie side by side", SYNAPSES, "term << (2 * index)", "term << index", "synapses-logic synapses-both", "sums"),
    Mutant(
        "the last digit has no sign",
        SYNAPSES,
        "(0, 1, -2, -1))[digits[-1]]",
        "(0, 1, 2, 3))[digits[-1]]",
        "synapses-logic synapses-both",
        "sums",
    ),
    Mutant(
        "parts of a pass are one",
        SYNAPSES,
        "taken.eq(there & self.currents.ready & last)",
        "taken.eq(there & self.currents.ready)",
        "synapses-parts synapses-chunks",
    ),
    Mutant(
        "the last pass has as many parts",
        SYNAPSES,
        "part[short - 1], part[ratio - 1]",
        "part[ratio - 1], part[ratio - 1]",
        "synapses-chunks",
        "order",
    ),
    Mutant(
        "the first pass ends the step",
        SYNAPSES,
        "leaving.empty | last_pass if geometry.flat",
        "leaving.empty | 1 if geometry.flat",
        "synapses-passes synapses-chunks",
        "order",
    ),
    Mutant(
        "a pass has the rows of the one before", SYNAPSES, "Mux(next_set, 0, spec.set_rows)", "0", "synapses-passes synapses-three", "sums"
    ),
    Mutant("an empty step is a pass that leaves", SYNAPSES, "with m.If(last & ~leaving.empty):", "with m.If(last):", "synapses-chunks"),
    Mutant("an empty step is a pass", SYNAPSES, "mark.eq(fire & cell.mark & ~cell.empty)", "mark.eq(fire & cell.mark)", "synapses-passes"),
    Mutant("a chunk that waits takes no credit", SYNAPSES, "credits - send + taken", "credits", "synapses-1x1"),
    Mutant(
        "the window moves with an empty step",
        SYNAPSES,
        "fire & cell.mark & ~cell.empty",
        "fire & cell.mark & cell.empty",
        "synapses-1x2",
        "sums",
    ),
    Mutant("a row keeps nothing", SYNAPSES, "write.en.eq(tag.mark & tag.keep)", "write.en.eq(0)", "synapses-2x2", "sums"),
    Mutant("a row is not handed down", SYNAPSES, "Mux(tag.down, above, here)", "here", "synapses-2x2", "sums"),
]

TestSynapses = properties_of(PROPERTIES, MUTANTS)
