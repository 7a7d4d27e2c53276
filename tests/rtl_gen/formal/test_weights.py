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
FLASH = "rtl_gen.gates.flash"
ON_FLASH = [
    Mutant(
        "it reads before the flash is awake",
        FLASH,
        "m.d.io += [awake.eq(1), pins",
        "m.d.io += [awake.eq(1), wait.eq(7), pins",
        "flash-short",
        "pause",
    ),
    Mutant("a command has a bit less", FLASH, "Mux(awake, 31, 7)", "Mux(awake, 30, 7)", "flash-short", "as the flash"),
    Mutant("the address is a byte further", FLASH, "READ << 24 | spec.offset", "READ << 24 | spec.offset + 1", "flash-short", "where"),
    Mutant(
        "the word is turned round",
        FLASH,
        "word.eq(word << 1 | pins.cipo)",
        "word.eq(word >> 1 | pins.cipo << 15)",
        "flash-short",
        "as the flash",
    ),
    Mutant("any checksum will do", FLASH, "final & (checksum.crc != spec.checksum)", "final & 0", "flash-short", "right"),
    Mutant("no checksum will do", FLASH, "(checksum.crc != spec.checksum)", "(checksum.crc == spec.checksum)", "flash-short", "right"),
    Mutant("a wrong checksum is an end", FLASH, 'm.next = "failed"', 'm.next = "done"', "flash-short", "ends"),
    Mutant("it does not wait", FLASH, "wait == spec.pause - 1", "wait == 7", "flash", "pause"),
]

TestWeights = properties_of(PROPERTIES, [*MUTANTS, *ON_FLASH], search="pdr")
