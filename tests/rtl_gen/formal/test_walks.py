"""The walk: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.walks import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

WALK = "rtl_gen.gates.walk"
MUTANTS = [
    Mutant(
        "rows of a flat map are one shorter", WALK, "(event.x + width * event.y)", "(event.x + (width - 1) * event.y)", "walk-flat", "row"
    ),
    Mutant(
        "a flat step is empty after events",
        WALK,
        "event.mark & ~touched),\n                self",
        "event.mark),\n                self",
        "walk-flat",
        "empty",
    ),
    Mutant(
        "a flat step remembers the one before",
        WALK,
        "m.d.sync += touched.eq(~event.mark)",
        "m.d.sync += touched.eq(1)",
        "walk-flat",
        "empty",
    ),
    Mutant(
        "an event is taken a cell early",
        WALK,
        "(event.x + lead < edge)",
        "(event.x + lead <= edge)",
        "walk-3x3 walk-3x3-2 walk-5x3",
        "in its cell",
    ),
    Mutant(
        "an event is offered in its column of any row",
        WALK,
        "here.eq((event.y == y) &",
        "here.eq((event.y >= y) &",
        "walk-3x3",
        "in its cell",
    ),
    Mutant("columns left of the map", WALK, "lead = max(padding_x - across, 0)", "lead = 0", "walk-5x3"),
    Mutant("marks are lost at the row's end", WALK, "with m.If(row_end | end):", "with m.If(end):", "walk-3x3 walk-2x2"),
    Mutant("a map ends with the row", WALK, "end.eq(bottom & (column == last_column))", "end.eq(bottom & row_end)", "walk-2x2"),
    Mutant("a neuron leaves before its last row", WALK, "(band >= taps_y - 1)", "(band + 1 >= taps_y - 1)", "walk-3x3 walk-3x3-2", "emit"),
    Mutant("a row is handed down late", WALK, "out.down.eq(phase == down - 1)", "out.down.eq(phase == 0)", "walk-3x3-2 walk-1x1-2", "down"),
    Mutant(
        "a column beyond the map is kept",
        WALK,
        "& (column <= last_column)),\n            out.emit",
        "),\n            out.emit",
        "walk-2x2",
        "keep",
    ),
    Mutant(
        "the column that leaves is the next",
        WALK,
        "out.leave.eq(column - (taps_x - 1))",
        "out.leave.eq(column - taps_x)",
        "walk-3x3",
        "leave",
    ),
    Mutant(
        "the column that enters is this one",
        WALK,
        "Mux(row_end | end, 0, column + 1)",
        "Mux(row_end | end, 0, column)",
        "walk-3x3 walk-2x2",
        "enter",
    ),
    Mutant("only the map's end leads to its first row", WALK, "end | (~row_end & (y == 0))", "end", "walk-3x3 walk-3x3-2", "top"),
    Mutant("the row after the end begins no neurons", WALK, "padding_y % down == 0, Mux", "0, Mux", "walk-1x1-2", "fresh"),
    Mutant("a phase is not begun again", WALK, "phase.eq(phase.init), band", "phase.eq(0), band", "walk-3x3-2"),
    Mutant("lost sources wait", WALK, "lost | (here & self.o.ready)", "here & self.o.ready", "walk-2x2-2", "moves something"),
    Mutant("lost sources touch the step", WALK, "(touched | ~lost)", "1", "walk-2x2-2", "empty"),
    Mutant(
        "events of a step that is not empty count once",
        WALK,
        "~event.mark & (touched | ~lost)",
        "~event.mark & ~lost",
        "walk-2x2-2",
        "empty",
    ),
    Mutant("a mark is taken with any cell", WALK, "self.o.ready & (end | empty)", "self.o.ready", "walk-3x3", "mark"),
    Mutant("all sets are the first", WALK, "event.channel >= sources * index", "event.channel > sources * index", "walk-1x1-2", "set"),
    Mutant(
        "columns of the stride change places",
        WALK,
        "+ (event.x + lead + across - edge)",
        "+ (edge - event.x - lead - 1)",
        "walk-1x1-2",
        "row",
    ),
    Mutant("an event is lost if it must wait", WALK, "lost | (here & self.o.ready)", "lost | here", "walk-3x3", "given on"),
]

TestWalks = properties_of(PROPERTIES, MUTANTS)
