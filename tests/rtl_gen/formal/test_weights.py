"""The weights' way: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.weights import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

SPRAM = "rtl_gen.gates.spram"
MUTANTS = [
    Mutant("a row has one part", SPRAM, "part == spec.parts - 1", "part == 0", "stores-one stores-two", "place"),
    Mutant("every part has the first's words", SPRAM, "load & (part == index)", "load", "stores-one stores-two", "place"),
    Mutant(
        "what is read is the next row",
        SPRAM,
        "address = Mux(load, row, self.address)",
        "address = Mux(load, row, self.address + 1)",
        "stores-one",
        "place",
    ),
    Mutant("a store is full a row early", SPRAM, "row == spec.rows - 1", "row == spec.rows - 2", "stores-one stores-two"),
    Mutant(
        "all stores take all words", SPRAM, "words.valid.eq(self.weights.valid & full)", "words.valid.eq(self.weights.valid)", "stores-two"
    ),
    Mutant("whether it was the last is not told", SPRAM, "self.error.eq(full & ~ended)", "self.error.eq(0)", "stores-one", "was not"),
]

TestWeights = properties_of(PROPERTIES, MUTANTS)
