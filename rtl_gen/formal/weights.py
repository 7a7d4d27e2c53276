"""What is claimed of the weights' way: through the loader to the stores, each word in its place."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from typing import Any

from amaranth.hdl import Const, Mux, Signal
from amaranth.lib import wiring

from rtl_gen.formal.bench import Bench, Inside, Property
from rtl_gen.gates import spram
from rtl_gen.gates.spram import WORD_BITS, WeightStoreSpec


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


def _stores(name: str, what: str, *specs: WeightStoreSpec) -> Property:
    return Property(f"stores-{name}", f"{_STORES} ({what})", partial(stores, *specs), 4)


_STORES = (
    "WeightLoader, WeightStore: each word is read in its row and part, whatever the memory held before; all are there once the last is; "
    "an error, if that was not the stream's last"
)

PROPERTIES = (
    _stores("one", "3 rows of 20 bits", WeightStoreSpec(3, 20)),
    _stores("two", "2 rows of 16 bits, 3 of 40", WeightStoreSpec(2, 16), WeightStoreSpec(3, 40)),
)
