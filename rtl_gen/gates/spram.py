"""Weights in memory that starts with unknown contents: the single-port RAM (SPRAM) of an iCE40 UP5K. They are loaded once."""

from __future__ import annotations

from dataclasses import dataclass

from amaranth.hdl import Const, Module, Mux, Signal, unsigned
from amaranth.lib import data, stream, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from rtl_gen.gates.streams import index_bits

WORD_BITS = 16
"""Width of a block, and of a word that is loaded."""
MAX_ROWS, MAX_PARTS = 1 << 14, 4
"""Rows of a block; blocks side by side."""
WORDS = stream.Signature(unsigned(WORD_BITS))
"""Words of a store."""
WEIGHTS = stream.Signature(data.StructLayout({"data": WORD_BITS, "last": 1}))
"""Words of a whole core's stores, ``last`` with the last."""


@dataclass(frozen=True)
class WeightStoreSpec:
    """``rows`` rows of ``bits`` bits, in blocks side by side."""

    rows: int
    bits: int

    def __post_init__(self) -> None:
        if not 1 <= self.rows <= MAX_ROWS or not 1 <= self.parts <= MAX_PARTS:
            raise ValueError(f"{self.rows!r} rows of {self.bits!r} bits are not 1 to {MAX_ROWS} of 1 to {MAX_PARTS * WORD_BITS}")

    @property
    def parts(self) -> int:
        """Blocks side by side, and words of a row."""
        return -(-self.bits // WORD_BITS)

    def words(self, rows: list[int]) -> list[int]:
        """What is loaded, for these rows: row by row, the lowest word first."""
        return [row >> (WORD_BITS * part) & ((1 << WORD_BITS) - 1) for row in rows for part in range(self.parts)]


class WeightLoader(wiring.Component):
    """Fills ``stores`` stores one after the other. Domain: ``sync``; no reset reaches it.

    Members
    -------
    weights: In, a word a cycle.
    words_0, words_1, ...: Out, to the stores; loaded_0, loaded_1, ...: In, from them.
    loaded: Out, all are full, and the word that filled the last was the stream's ``last``.
    error: Out, all are full, and it was not.
    """

    def __init__(self, stores: int):
        self.stores = stores
        ports = {f"words_{index}": Out(WORDS) for index in range(stores)} | {f"loaded_{index}": In(1) for index in range(stores)}
        super().__init__({"weights": In(WEIGHTS), "loaded": Out(1), "error": Out(1)} | ports)

    def elaborate(self, platform: object) -> Module:
        m = Module()
        full = Const(1)
        ended = Signal(reset_less=True)
        for index in range(self.stores):
            words, loaded = getattr(self, f"words_{index}"), getattr(self, f"loaded_{index}")
            m.d.comb += [words.payload.eq(self.weights.p.data), words.valid.eq(self.weights.valid & full)]
            with m.If(full & ~loaded):
                m.d.comb += self.weights.ready.eq(words.ready)
            full = full & loaded
        with m.If(self.weights.valid & self.weights.ready):
            m.d.sync += ended.eq(self.weights.p.last)
        m.d.comb += [self.loaded.eq(full & ended), self.error.eq(full & ~ended)]
        return m


class WeightStore(wiring.Component):
    """Takes its words once, then is a table of rows, read a cycle after the address. Domain: ``sync``.

    No reset takes the words back, as the memory keeps its contents: the counters have none. One port: a read or a write a cycle.
    The memory's submodule is called ``spram``: synthesis drops the contents that Amaranth gives to every memory (`rtl_gen.build`),
    with which it could not be SPRAM.

    Members
    -------
    words: In, a word a cycle, until all are there.
    loaded: Out, all are there.
    address: In; data: Out, that row, valid once ``loaded``.
    """

    def __init__(self, spec: WeightStoreSpec):
        self.spec = spec
        super().__init__(
            {
                "words": In(WORDS),
                "loaded": Out(1),
                "address": In(index_bits(spec.rows)),
                "data": Out(spec.bits),
            }
        )

    def elaborate(self, platform: object) -> Module:
        m = Module()
        spec = self.spec
        row, part = Signal(index_bits(spec.rows), reset_less=True), Signal(range(MAX_PARTS), reset_less=True)
        loaded, load = Signal(reset_less=True), Signal()
        m.submodules.spram = memory = Memory(shape=WORD_BITS * spec.parts, depth=spec.rows, init=[], attrs={"ram_style": "huge"})
        write, read = memory.write_port(granularity=WORD_BITS), memory.read_port()
        address = Mux(load, row, self.address)
        m.d.comb += [
            self.loaded.eq(loaded),
            self.words.ready.eq(~loaded),
            load.eq(self.words.valid & ~loaded),
            write.addr.eq(address),
            write.data.eq(self.words.payload.replicate(spec.parts)),
            *(write.en[index].eq(load & (part == index)) for index in range(spec.parts)),
            read.addr.eq(address),
            read.en.eq(~load),
            self.data.eq(read.data),
        ]
        with m.If(load):
            m.d.sync += part.eq(part + 1)
            with m.If(part == spec.parts - 1):
                m.d.sync += [part.eq(0), row.eq(row + 1), loaded.eq(row == spec.rows - 1)]
        return m
