"""The link's frames: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from amaranth.hdl import Const
from amaranth.lib.crc.catalog import CRC16_IBM_3740
from amaranth.sim import Simulator

from rtl_gen.formal.bench import Bench
from rtl_gen.formal.link import PROPERTIES, checked
from tests.rtl_gen.formal.mutants import Mutant, properties_of

FRAME, LINK = "rtl_gen.gates.frame", "rtl_gen.gates.link"
READERS = "reader-2x2 reader-3x2 reader-1x1"
MUTANTS = [
    Mutant("an escaped escape escapes", FRAME, "escaped.eq(~flag & escape & ~escaped)", "escaped.eq(~flag & escape)", "deframer"),
    Mutant(
        "a loss outlives its frame", FRAME, "bad.eq(~flag & (bad | received.gap))", "bad.eq(bad | received.gap)", "deframer framing", "good"
    ),
    Mutant("an open escape is no fault", FRAME, "~(bad | escaped | received.gap)", "~(bad | received.gap)", "deframer", "good"),
    Mutant("a loss before the end is no fault", FRAME, "~(bad | escaped | received.gap)", "~(bad | escaped)", "deframer", "good"),
    Mutant("empty frames come out", FRAME, "Mux(flag, some | received.gap,", "Mux(flag, 1,", "deframer", "an end for each"),
    Mutant("a loss between frames is not told", FRAME, "Mux(flag, some | received.gap,", "Mux(flag, some,", "deframer", "an end for each"),
    Mutant("an escape is dropped", FRAME, "received.data ^ Mux(escaped, FLIP, 0)", "received.data", "deframer framing"),
    Mutant("the CRC goes on over frames", FRAME, "crc.start.eq(~some)", "crc.start.eq(0)", "deframer framing", "good"),
    Mutant(
        "the CRC takes a byte at each offer",
        FRAME,
        "crc.valid.eq(self.frame.valid & self.frame.ready & ~flag)",
        "crc.valid.eq(self.frame.valid & ~flag)",
        "deframer",
        "good",
    ),
    Mutant("an escape is not stuffed", FRAME, "(plain == FLAG) | (plain == ESCAPE)", "plain == FLAG", "framing"),
    Mutant("a byte is stuffed for ever", FRAME, "escaped.eq(special & ~escaped)", "escaped.eq(special)", "framing"),
    Mutant("the CRC's bytes are swapped", FRAME, "plain.eq(crc.crc[8:])", "plain.eq(crc.crc[:8])", "framing", "good"),
    Mutant("a body's CRC begins with the last's", FRAME, "crc.start.eq(1)", "crc.start.eq(0)", "framing", "good"),
    Mutant("a spare state has no way out", FRAME, 'spare_states(m, 5, "OPEN")', "pass", "framing", "eight cycles"),
    Mutant("an image is one pixel short", LINK, "Mux(image, pixels + 2, 2)", "Mux(image, pixels + 1, 2)", READERS),
    Mutant("a full bank is written", LINK, "stored.eq(image & self.free)", "stored.eq(image)", "reader-2x2", "pixels are written"),
    Mutant("both banks are one", LINK, "Mux(self.bank, pixels, 0)", "0", "reader-2x2 reader-3x2", "in its place"),
    Mutant("only the last pixel counts", LINK, "wrong_pixel.eq(wrong_pixel | ", "wrong_pixel.eq(", "reader-2x2", "wrong"),
    Mutant("the largest pixel is too large", LINK, "(byte > self.spec.input_max)", "(byte >= self.spec.input_max)", "reader-2x2", "wrong"),
    Mutant(
        "the next frame's header is stored",
        LINK,
        "wrong_pixel.eq(0), stored.eq(0)",
        "wrong_pixel.eq(0)",
        "reader-2x2",
        "pixels are written",
    ),
    Mutant("a flush loses a byte", LINK, "self.frame.ready.eq(~self.flush)", "self.frame.ready.eq(1)", "reader-2x2", "stands still"),
    Mutant("a crowd drops good frames", LINK, "(fault != Fault.DAMAGED) | ~self.crowded", "~self.crowded", "reader-2x2", "with each end"),
    Mutant("an image without its job", LINK, "self.commit.eq(self.jobs.ready & ", "self.commit.eq(", "reader-2x2", "once it is owed"),
    Mutant("a reset without its job", LINK, "self.reset.eq(self.jobs.ready & ", "self.reset.eq(", "reader-2x2", "reset"),
    Mutant("the bank stays", LINK, "self.bank.eq(~self.bank if", "self.bank.eq(self.bank if", "reader-2x2", "the bank"),
    Mutant("a short frame has the last's sequence", LINK, "kind.eq(0), sequence.eq(0)", "kind.eq(0)", "reader-2x2", "this request"),
]


TestLink = properties_of(PROPERTIES, MUTANTS)


def test_the_benches_crc_is_the_catalogue_s() -> None:
    """Which the gates take from there."""
    data = b"123456789"
    bench = Bench()
    crc = Const(0xFFFF, 16)
    steps = [bench.free(f"crc_{place}", 16) for place in range(len(data) + 1)]
    for now, then, byte in zip(steps, steps[1:], data, strict=False):
        bench.m.d.comb += then.eq(checked(now, Const(byte, 8)))
    bench.m.d.comb += steps[0].eq(crc)

    async def look(context) -> None:  # type: ignore[no-untyped-def]
        await context.delay(1e-9)
        assert context.get(steps[-1]) == CRC16_IBM_3740(8).compute(data) == 0x29B1

    simulator = Simulator(bench)
    simulator.add_testbench(look)
    simulator.run()
