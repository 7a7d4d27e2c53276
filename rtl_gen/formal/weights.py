"""What is claimed of the weights' way: from the flash, and through the loader to the stores, each word in its place."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

from amaranth.hdl import ClockDomain, Const, Mux, Signal
from amaranth.lib import wiring

from rtl_gen.formal.bench import Bench, Inside, Property
from rtl_gen.gates import flash as flashes
from rtl_gen.gates import spram
from rtl_gen.gates.flash import READ, WAKE, FlashSpec
from rtl_gen.gates.spram import WORD_BITS, WeightStoreSpec

POLYNOMIAL = 0x04C11DB7
"""Of CRC-32 (MPEG-2), from all ones on, the highest bit first."""


def stores(*specs: WeightStoreSpec) -> Bench:
    """`WeightLoader` and a `WeightStore` for each of ``specs``: any one word, from the stream to what is read."""
    bench, loader = Bench(), spram.WeightLoader(len(specs))
    m, i = bench.m, loader.weights
    bench.part("loader", loader)
    parts: list[tuple[Any, Inside]] = []
    for index, spec in enumerate(specs):
        parts.append((store := spram.WeightStore(spec), bench.part(f"store_{index}", store, left=("spram",))))
        wiring.connect(m, getattr(loader, f"words_{index}"), store.words)
        m.d.comb += [
            getattr(loader, f"loaded_{index}").eq(store.loaded),
            store.address.eq(bench.free(f"address_{index}", len(store.address))),
        ]
    bench.drive(i, "i", stable=True)
    sizes = [spec.rows * spec.parts for spec in specs]
    total = sum(sizes)
    count, watched, kept, last = Signal(range(total + 1)), bench.fixed("word", total), Signal(WORD_BITS), Signal()
    enter = i.valid & i.ready
    with m.If(enter):
        m.d.sync += [count.eq(count + 1), last.eq(i.p.last), kept.eq(Mux(count == watched, i.p.data, kept))]
    bench.claim("a word is taken until all are there, at once", i.ready == (count != total))
    bench.claim("all are there, and the last was the last", loader.loaded == ((count == total) & last))
    bench.claim("all are there, and it was not", loader.error == ((count == total) & ~last))
    bench.invariant("no more than there are", count <= total)
    for (store, inside), spec, size, first in zip(parts, specs, sizes, accumulate(sizes, initial=0), strict=False):
        own = Signal(range(-total, 2 * total + 1), name=f"own_{first}")  # words of this store that have come
        m.d.comb += own.eq(Mux(count < first, 0, Mux(count > first + size, size, count - first)))
        place = inside["row"] * spec.parts + inside["part"]
        bench.invariant(
            "the store's place", (store.loaded == (own == size)) & (store.loaded | (place == own)) & (inside["part"] < spec.parts)
        )
        for number in range(size):  # the word watched is one of them, in this row and part
            row, part = divmod(number, spec.parts)
            its = (watched == first + number) & (count > watched)
            asked = bench.before(store.loaded & (store.address == row), f"asked_{first + number}")
            bench.claim(
                "a word is read in its place",
                ~its | ~asked | (store.data[part * WORD_BITS : (part + 1) * WORD_BITS] == kept[: spec.bits - part * WORD_BITS]),
            )
            bench.invariant(
                "a word is kept in its place",
                ~its | (inside.word("memory", Const(row, range(max(spec.rows, 2)))).word_select(part, WORD_BITS) == kept),
            )
    return bench


def flash(spec: FlashSpec) -> Bench:
    """`FlashReader` and a flash, which says any bits: what it is told, any one word, and the checksum of all."""
    bench, dut = Bench(), flashes.FlashReader(spec)
    m, pins, words = bench.m, dut.pins, dut.words
    m.domains.io = io = ClockDomain("io", reset_less=True)
    m.d.comb += io.clk.eq(bench.inputs[0])
    inside = bench.part("dut", dut)
    bench.take(words, "words")
    tells = bench.free("tells")
    m.d.comb += pins.cipo.eq(tells)

    # The flash: bits since it was selected (it takes and gives one while the clock is high), what it was told, how long it has been off.
    size = 32 + WORD_BITS * spec.size
    bits, told, off, selected = (
        Signal(shape, name=name)
        for name, shape in (("bits", range(size + 1)), ("told", 32), ("off", range(spec.pause + 1)), ("selected", 2))
    )
    before = bench.before(pins.cs, "cs")
    m.d.sync += [bits.eq(Mux(pins.cs, bits + pins.clk, 0)), off.eq(Mux(pins.cs, 0, Mux(off == spec.pause, spec.pause, off + 1)))]
    with m.If(pins.cs & pins.clk & (bits < 32)):
        m.d.sync += told.eq(told << 1 | pins.copi)
    rises, falls = pins.cs & ~before, ~pins.cs & before
    m.d.sync += selected.eq(selected + (rises & (selected != 3)))
    read = READ << 24 | spec.offset
    bench.claim("told: only after a pause", ~rises | (off == spec.pause))
    bench.claim("told: first to wake up, then to read", ~falls | Mux(selected == 1, (bits == 8) & (told[:8] == WAKE), selected == 2))
    bench.claim("told: where to read from", (bits < 32) | (told == read))
    bench.claim("told: no bit twice", ~pins.clk | ~bench.before(pins.clk, "clk"))

    # What it said: any one word, and the checksum of all, from all ones on, the highest bit first.
    watched, kept, crc = bench.fixed("word", spec.size), Signal(WORD_BITS), Signal(32, init=0xFFFFFFFF)
    number = Signal(range(spec.size + 1))  # words given
    sample = pins.cs & ~pins.clk & (bits >= 32) & inside.at("read")
    with m.If(sample):
        m.d.sync += crc.eq((crc << 1)[:32] ^ Mux(crc[31] ^ tells, POLYNOMIAL, 0))
        with m.If((bits - 32)[4:] == watched):
            m.d.sync += kept.eq(kept << 1 | tells)
    with m.If(words.valid & words.ready):
        m.d.sync += number.eq(number + 1)
    bench.claim("words: each as the flash has it", ~words.valid | (number != watched) | (words.p.data == kept))
    bench.claim("words: the last is marked", ~words.valid | (words.p.last == (number == spec.size - 1)))
    bench.claim("words: no more than there are", ~words.valid | (number < spec.size))
    bench.claim("words: the last is right only if all are", ~words.valid | ~words.p.last | (crc == spec.checksum))
    bench.claim("words: an offer stands until it is taken", bench.stands(words, "words"))
    bench.claim("ends: all were given, or the checksum was wrong", dut.busy | Mux(dut.failed, crc != spec.checksum, number == spec.size))

    # Where the reader is.
    pause, command, reads, gives = (inside.at(name) for name in ("pause", "command", "read", "give"))
    awake, left, wait, word = inside["awake"], inside["left"], inside["wait"], inside["word"]
    said = Mux(awake, Const(read, 32), Const(WAKE << 24, 32))
    sent, place = Mux(awake, 31, 7) - left, (spec.size - 1 - inside["words"]) * WORD_BITS
    bench.invariant("its state", inside.state < 6)
    bench.invariant("it is selected", inside.at("failed") | (pins.cs == (command | reads | gives)))
    bench.invariant("its clock rests", (command | reads | ~pins.clk) & (pause | (wait == 0)))
    bench.invariant("it wakes the flash first", awake | pause | command)
    bench.invariant("it has been selected so often", selected + rises == Mux(awake, 2 - pause, 1 - pause))
    bench.invariant(
        "a pause", ~pause | ((bits == Mux(before, 8, 0)) & (off >= wait) & (off <= spec.pause) & (~before | (awake & (told[:8] == WAKE))))
    )
    bench.invariant("a command", ~command | ((bits == sent) & (sent >= 0) & (inside["command"] == (said << bits[:5])[:32])))
    rest = Signal(range(33))  # of a command, to come
    m.d.comb += rest.eq(32 - bits)
    bench.invariant("what has been told", ~command | ((told << rest)[:32] == ((said >> rest) << rest)[:32]))
    bench.invariant("words given", (inside["words"] < spec.size) & (number == spec.size - 1 - inside["words"] + inside.at("done")))
    bench.invariant("no word before the flash was asked", ~(pause | command) | (number == 0))
    bench.invariant("bits of a word", ~reads | ((left < WORD_BITS) & (bits == 32 + place + WORD_BITS - 1 - left)))
    bench.invariant("a word is there", ~gives | ((left == WORD_BITS - 1) & (bits == 32 + place + WORD_BITS)))
    to_come = Signal(range(WORD_BITS + 1))  # bits of this word
    m.d.comb += to_come.eq(Mux(gives, 0, left + 1 - pins.clk))
    same = (word << to_come)[:WORD_BITS] == (kept << to_come)[:WORD_BITS]
    bench.invariant("the word watched", ~(reads | gives) | (number != watched) | same)
    bench.invariant("the checksum", inside["checksum"].crc == crc)
    bench.invariant("why it failed", ~inside.at("failed") | (crc != spec.checksum))
    patience = 2 * spec.pause + 120
    idle = bench.waits(dut.busy & ~words.valid, patience)
    bench.claim("ends: the next comes in time", idle <= patience)
    begun = Mux(awake, spec.pause + 17, 0)
    bench.invariant("it waits for a pause", ~pause | (idle <= begun + wait))
    bench.invariant("it waits for a command", ~command | (idle <= begun + spec.pause + 2 * bits + pins.clk))
    bench.invariant("it waits for a word", ~(reads | gives) | (idle <= patience - 6 - 2 * to_come))
    return bench


def _stores(name: str, what: str, *specs: WeightStoreSpec) -> Property:
    return Property(f"stores-{name}", f"{_STORES} ({what})", partial(stores, *specs), 4)


_STORES = (
    "WeightLoader, WeightStore: each word is read in its row and part, whatever the memory held before; all are there once the last is; "
    "an error, if that was not the stream's last"
)

_FLASH = (
    "FlashReader: the flash is woken, then read from the right place, each after a pause; each word as the flash has it, in order, the "
    "last marked, and only if the checksum is right; it ends, or fails; the next word comes within two pauses and 120 cycles"
)

PROPERTIES = (
    Property("flash", f"{_FLASH} (10,000 words, pauses of 4096 cycles)", partial(flash, FlashSpec(10_000, 0x1234ABCD)), 4),
    Property("flash-short", f"{_FLASH} (a word, pauses of 8 cycles)", partial(flash, replace(FlashSpec.of((0xBEE5,)), pause=8)), 4),
    _stores("one", "3 rows of 20 bits", WeightStoreSpec(3, 20)),
    _stores("two", "2 rows of 16 bits, 3 of 40", WeightStoreSpec(2, 16), WeightStoreSpec(3, 40)),
)
