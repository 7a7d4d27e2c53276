"""Parts of streams: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.streams import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

STREAMS, REPLAY = "rtl_gen.gates.streams", "rtl_gen.gates.replay"
MUTANTS = [
    Mutant("a skid loses what is spare", STREAMS, "Mux(held, spare, self.i.payload)", "self.i.payload", "skid queue-2 sum-3", "once"),
    Mutant(
        "a skid forgets that it holds", STREAMS, "self.o.valid.eq(held | self.i.valid)", "self.o.valid.eq(self.i.valid)", "skid queue-5"
    ),
    Mutant("a skid does not wait", STREAMS, "with m.If(~self.o.valid | self.o.ready):", "with m.If(~held):", "skid", "stands"),
    Mutant("a skid takes what it has no room for", STREAMS, "self.i.ready.eq(~held)", "self.i.ready.eq(1)", "skid"),
    Mutant(
        "a queue takes what it has no room for", STREAMS, "self.i.ready.eq(fifo.w_rdy)", "self.i.ready.eq(1)", "queue-1 queue-2 queue-5"
    ),
    Mutant(
        "a queue gives what it does not have",
        STREAMS,
        "skid.i.valid.eq(fifo.r_rdy)",
        "skid.i.valid.eq(1)",
        "queue-1 queue-2",
        "not taken in",
    ),
    Mutant("a queue drops what its skid cannot take", STREAMS, "fifo.r_en.eq(skid.i.ready)", "fifo.r_en.eq(1)", "queue-2 queue-5"),
    Mutant(
        "a fork gives twice",
        STREAMS,
        "output.valid.eq(self.i.valid & ~taken[way])",
        "output.valid.eq(self.i.valid)",
        "fork-2 fork-3",
        "twice",
    ),
    Mutant("a fork leaves one out", STREAMS, "self.i.ready.eq(done.all())", "self.i.ready.eq(done.any())", "fork-2 fork-3", "not left out"),
    Mutant(
        "a fork waits for all",
        STREAMS,
        "self.i.valid & ~taken[way]),",
        "self.i.valid & ~taken[way] & self.outputs[0].ready),",
        "fork-2",
        "wait",
    ),
    Mutant("a throttle takes an offer back", STREAMS, "offered.eq(self.o.valid & ~self.o.ready)", "offered.eq(0)", "throttle", "stands"),
    Mutant("a throttle swallows", STREAMS, "self.i.ready.eq(self.o.ready & go)", "self.i.ready.eq(self.o.ready)", "throttle", "once"),
    Mutant("an empty side leaves early", STREAMS, "(~one.empty | two.mark)", "1", "sum-3", "side 0"),
    Mutant(
        "a side leaves alone",
        STREAMS,
        "self.i_1.ready.eq(skid.i.ready & self.i_0.valid &",
        "self.i_1.ready.eq(skid.i.ready &",
        "sum-1 sum-3",
        "side 1",
    ),
    Mutant("an empty side adds what is on the wire", STREAMS, "Mux(one.empty, 0, a)", "a", "sum-1 sum-3", "the sum"),
    Mutant("one empty side makes the sum empty", STREAMS, "one.empty & two.empty", "one.empty", "sum-1 sum-3", "empty"),
    Mutant("a pass too few", REPLAY, "passes == self.spec.passes - 1", "passes == self.spec.passes - 2", "replay-3x3"),
    Mutant("a pass too many", REPLAY, "passes.eq(1), cell", "passes.eq(0), cell", "replay-1x2 replay-3x3"),
    Mutant("events of the cell before", REPLAY, "m.d.sync += count.eq(0)", "m.d.sync += count.eq(count)", "replay-1x2 replay-3x3"),
    Mutant(
        "an event is not kept",
        REPLAY,
        "write.en.eq(fire & ~self.i.p.mark)",
        "write.en.eq(fire & ~self.i.p.mark & (count == 0))",
        "replay-3x3",
        "again",
    ),
    Mutant("an event is not waited for", REPLAY, "Mux(fire, Mux(end, 0, item + 1), item)", "Mux(end, 0, item + 1)", "replay-3x3"),
    Mutant("a long queue", STREAMS, "fifo.r_en.eq(skid.i.ready)", "fifo.r_en.eq(1)", "queue-16"),
]

TestStreams = properties_of(PROPERTIES, MUTANTS)
