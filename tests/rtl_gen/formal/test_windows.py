"""A convolution's synapses: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.windows import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

SYNAPSES = "rtl_gen.gates.synapses"
MUTANTS = [
    Mutant(
        "a source's sign is turned",
        SYNAPSES,
        "Mux(value < 0, -weight, weight)",
        "Mux(value > 0, -weight, weight)",
        "window-1x1 window-1x2 window-groups",
        "sums",
    ),
    Mutant(
        "a row keeps nothing",
        SYNAPSES,
        "write.en.eq(tag.mark & tag.keep)",
        "write.en.eq(0)",
        "window-2x1 window-2x1-2 window-2x2-2",
        "sums",
    ),
    Mutant(
        "a row is not handed down",
        SYNAPSES,
        "Mux(tag.down, above, here)",
        "here",
        "window-2x2 window-3x3 window-3x3-2 window-5x3",
        "sums",
    ),
    Mutant(
        "what was left in the row memory is of this step",
        SYNAPSES,
        "Mux(holds[tap == 0], read.data[place], 0)",
        "read.data[place]",
        "window-3x3",
        "sums",
    ),
    Mutant(
        "what was left in the windows is of this step",
        SYNAPSES,
        "zero = Mux(self._last_chunk(tag), tag.end, tag.first)",
        "zero = Const(0)",
        "window-passes window-memory",
        "sums",
    ),
    Mutant("windows leave in the wrong order", SYNAPSES, "[*chain[1:], value]", "[value, *chain[:-1]]", "window-passes", "sums"),
    Mutant(
        "the window of this pass follows it",
        SYNAPSES,
        "read.addr.eq(Mux(self._last_chunk(early), 0, early.chunk + 1))",
        "read.addr.eq(early.chunk)",
        "window-memory",
        "sums",
    ),
    Mutant(
        "a column of the next cell, though a pass is to come",
        SYNAPSES,
        "Mux(advances, early.enter, early.leave)",
        "early.enter",
        "window-2x1 window-3x1-2",
        "sums",
    ),
    Mutant(
        "a set begins with the rows of the next",
        SYNAPSES,
        "Mux(next_set, 0, spec.set_rows)",
        "spec.set_rows",
        "window-sets window-1x1-2",
        "sums",
    ),
    Mutant("all sets are one", SYNAPSES, " & (cell.set == chunk_set)", "", "window-sets", "sums"),
    Mutant(
        "the last pass has as many parts", SYNAPSES, "part[short - 1], part[ratio - 1]", "part[ratio - 1], part[ratio - 1]", "window-parts"
    ),
    Mutant("digits lie side by side", SYNAPSES, "term << (2 * index)", "term << index", "window-logic window-both", "sums"),
    Mutant("a chunk that waits takes no credit", SYNAPSES, "credits - send + taken", "credits", "window-1x1", "order"),
    Mutant("no credit at first", SYNAPSES, "init=credit)", "init=0)", "window-1x1", "moves"),
    Mutant("the step told is the next", SYNAPSES, "complete.step.eq(tag.step)", "complete.step.eq(early.step)", "window-2x2", "flags"),
    Mutant(
        "an empty step does not end",
        SYNAPSES,
        "tag.end & (self._last_chunk(tag) | tag.empty)",
        "tag.end & self._last_chunk(tag)",
        "window-passes",
        "marked",
    ),
    Mutant(
        "an empty step is a pass that leaves",
        SYNAPSES,
        "with m.If(last & ~leaving.empty):",
        "with m.If(last):",
        "window-parts",
    ),
]

TestWindows = properties_of(PROPERTIES, MUTANTS, search="pdr")
