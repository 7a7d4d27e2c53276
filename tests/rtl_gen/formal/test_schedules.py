"""Wake and sleep: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.schedules import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

WAKE, READOUT = "rtl_gen.gates.wake", "rtl_gen.gates.readout"
MUTANTS = [
    Mutant("a bank too many", WAKE, "self.i.ready.eq(~full[into])", "self.i.ready.eq(1)", "wake-2", "image"),
    Mutant("an image in the other's bank", WAKE, "write.addr.eq(Cat(place, into))", "write.addr.eq(Cat(place, 0))", "wake-2", "current"),
    Mutant("chunks from the end on", WAKE, "place.eq(0), into.eq(~into)", "into.eq(~into)", "wake-limit", "current"),
    Mutant("an image stays empty", WAKE, "blank[into].eq(self.i.p.empty)", "blank[into].eq(blank[into] | self.i.p.empty)", "wake-2", "is"),
    Mutant("busy with the first bank", WAKE, "full[0] | full[1]", "full[0]", "wake-3", "busy"),
    Mutant("empty images have all chunks", WAKE, "(chunk == spec.chunks - 1) | blank[playing]", "(chunk == spec.chunks - 1)", "wake-2"),
    Mutant("a chunk is lost as it waits", WAKE, "advance.eq(~held | self.o.ready)", "advance.eq(1)", "wake-limit wake-awake", "stands"),
    Mutant("the other bank's current", WAKE, "read.addr.eq(Cat(chunk, playing))", "read.addr.eq(Cat(chunk, into))", "wake-2", "current"),
    Mutant("a wake step more", WAKE, "final.eq(wakes == schedule.levels)", "final.eq(wakes > schedule.levels - 2)", "wake-3 wake-awake"),
    Mutant(
        "no image begins anew", WAKE, "[wakes.eq(1), block.eq(1)]\n                with", "[block.eq(1)]\n                with", "wake-2"
    ),
    Mutant(
        "blocks go on over images",
        WAKE,
        "[wakes.eq(1), block.eq(1)]\n                with",
        "[wakes.eq(1)]\n                with",
        "wake-3",
    ),
    Mutant("sleeps add up", WAKE, "m.d.sync += sleeps.eq(0)", "m.d.sync += sleeps.eq(sleeps)", "wake-limit wake-2", "in time"),
    Mutant("no chunk but the first", WAKE, "Mux(mark, 0, chunk + 1)", "0", "wake-2 wake-limit wake-awake"),
    Mutant(
        "the last block has no sleep",
        WAKE,
        "with m.If(final):\n                        m.next",
        "with m.If(0):\n                        m.next",
        "wake-3",
    ),
    Mutant("a margin too long", WAKE, "m.Elif(block != schedule.margin)", "m.Elif(block != schedule.margin + 1)", "wake-3 wake-limit"),
    Mutant("one more ahead", WAKE, "(ahead <= schedule.depth)", "(ahead <= schedule.depth + 1)", "wake-2 wake-3", "ahead"),
    Mutant("one less ahead", WAKE, "(ahead <= schedule.depth)", "(ahead < schedule.depth)", "wake-2 wake-3", "in time"),
    Mutant("no limit", WAKE, "& (sleeps != schedule.sleep_limit)", "", "wake-limit wake-awake", "too long"),
    Mutant(
        "a step behind the verdict", WAKE, "(sleeps != schedule.sleep_limit) & ~self.settled", "(sleeps != schedule.sleep_limit)", "wake-2"
    ),
    Mutant("a bank is not given back", WAKE, "[full[playing].eq(0), playing.eq(~playing)]", "[playing.eq(~playing)]", "wake-2"),
    Mutant("the same image again", WAKE, "[full[playing].eq(0), playing.eq(~playing)]", "[full[playing].eq(0)]", "wake-3"),
    Mutant("no more wake steps", WAKE, "with m.If(self.settled & final)", "with m.If(self.settled)", "wake-3 wake-limit"),
    Mutant(
        "a wake step is not counted", WAKE, "m.d.sync += [wakes.eq(wakes + 1), block.eq(1)]\n                    m.next", "m.next", "wake-3"
    ),
    Mutant("all that is sent is ahead", WAKE, "ahead + (send & ~wake) - self.slept", "ahead + send - self.slept", "wake-2 wake-limit"),
    Mutant("what is judged stays ahead", WAKE, "(send & ~wake) - self.slept", "(send & ~wake)", "wake-2 wake-limit"),
    Mutant("a sleep step has chunks", WAKE, "mark.eq(~wake | mark)", "mark.eq(mark)", "wake-limit", "a sleep step"),
    Mutant("a sleep step has a current", WAKE, "empty.eq(~wake | blank[playing])", "empty.eq(blank[playing])", "wake-3", "a sleep step"),
    Mutant(
        "each block begins an image", WAKE, "first.eq(wake & (wakes == 1))", "first.eq(wake & (block == 1))", "wake-3 wake-limit", "first"
    ),
    Mutant("the first sleep is a first step", WAKE, "first.eq(wake & (wakes == 1))", "first.eq(wakes == 1)", "wake-limit", "a sleep step"),
    Mutant(
        "the last wake step is not told", WAKE, "final.eq(final)", "final.eq(final & ~wake)", "wake-2 wake-awake", "no wake step follows"
    ),
    Mutant("any sleep is silent", READOUT, "~step.wake & ~step.active", "~step.wake", "readout-2 readout-3", "over"),
    Mutant("silence is not heard", READOUT, "sleeping & (silent | limit)", "sleeping & limit", "readout-2 readout-3", "over"),
    Mutant("a sleep is over twice", READOUT, "sleeping & (silent | limit)", "(silent | limit)", "readout-2 readout-3", "over"),
    Mutant("a sleep is longer by a step", READOUT, "schedule.sleep_limit - 1)", "schedule.sleep_limit)", "readout-2 readout-3", "over"),
    Mutant("any wake step ends an image", READOUT, "step.wake & step.final if", "step.wake if", "readout-map", "over"),
    Mutant("an image adds to the last", READOUT, "Mux(step.first, fresh", "Mux(0, fresh", "readout-2-sums readout-3-sums", "in wire order"),
    Mutant(
        "an empty step adds what is on the wire",
        READOUT,
        "Mux(self.currents.p.empty, 0, self.currents.p.x[lane])",
        "self.currents.p.x[lane]",
        "readout-2-sums",
        "in wire order",
    ),
    Mutant(
        "an empty first step adds no bias",
        READOUT,
        "self.currents.p.empty & ~step.first",
        "self.currents.p.empty",
        "readout-3-sums",
        "in wire order",
    ),
    Mutant("an empty first step has one chunk", READOUT, "skip | (chunk == chunks - 1)", "1", "readout-2-sums readout-map-sums"),
    Mutant("an empty first step is taken chunk by chunk", READOUT, "last | ~self.currents.p.empty", "1", "readout-2"),
    Mutant(
        "a chunk is added once more",
        READOUT,
        "Mux(last, 0, chunk + 1)",
        "0",
        "readout-2-sums readout-3-sums readout-map-sums",
        "in wire order",
    ),
    Mutant("all parts have the first's bias", READOUT, "part.eq(Mux(last, 0, next_part))", "part.eq(0)", "readout-2-sums", "in wire order"),
    Mutant(
        "pixels do not begin with the first part",
        READOUT,
        "next_part = Mux(part == parts - 1, 0, part + 1)",
        "next_part = part + (part != parts - 1)",
        "readout-map-sums",
    ),
    Mutant("biases once", READOUT, "levels * bias for", "bias for", "readout-2-sums readout-map-sums", "in wire order"),
    Mutant("any sleep's end sends a result", READOUT, "last & over & step.final", "last & over", "readout-2"),
    Mutant(
        "sums before they are read",
        READOUT,
        'with m.State("load"):\n                m.next = "fetch"',
        'with m.State("load"):\n                m.next = "send"',
        "readout-2-sums",
    ),
    Mutant("padding leaves, too", READOUT, "Mux(part == parts - 1, short, lanes)", "lanes", "readout-pad-sums"),
    Mutant("the highest of equals", READOUT, "(logit > best)", "(logit >= best)", "readout-2-sums readout-map-sums", "largest"),
    Mutant(
        "the last image's largest", READOUT, "(index == 0) | (logit > best)", "logit > best", "readout-2-sums readout-3-sums", "largest"
    ),
    Mutant("sums without a sign", READOUT, "(logit > best)", "(logit.as_unsigned() > best.as_unsigned())", "readout-3-sums", "largest"),
    Mutant(
        "a row is sent in one lane", READOUT, "row.as_value() >> total.elem_shape.width", "row.as_value()", "readout-3-sums", "wire order"
    ),
    Mutant(
        "a result ends in the status", READOUT, 'held.last.eq(state == "cycles")', 'held.last.eq(state != "class")', "readout-2", "ends"
    ),
    Mutant("the index goes on", READOUT, "part.eq(0), index.eq(0)]", "part.eq(0)]", "readout-2-sums readout-3"),
    Mutant("wake steps have slept", READOUT, "self.slept.eq(~step.wake)", "self.slept.eq(1)", "readout-2 readout-map", "told"),
    Mutant("steps of all sleeps are one sleep's", READOUT, "Mux(step.wake | over, 0, slept + 1)", "slept + 1", "readout-2", "over"),
    Mutant("no sleep after the first", READOUT, "m.d.sync += sleeping.eq(1)", "m.d.sync += sleeping.eq(sleeping)", "readout-2 readout-3"),
    Mutant("steps of the image before", READOUT, "sleep_steps.eq(0),", "", "readout-2 readout-3", "status"),
    Mutant("the silent step is not counted", READOUT, "sleep_steps + ~step.wake", "sleep_steps", "readout-2 readout-3", "status"),
    Mutant("steps left over are counted", READOUT, "with m.Elif(sleeping):", "with m.Else():", "readout-2", "status"),
    Mutant(
        "no image is malformed", READOUT, "status.malformed.eq(self.tickets.p.malformed)", "status.malformed.eq(0)", "readout-map", "status"
    ),
    Mutant("a bound is a silence", READOUT, "~silent if schedule.sleep is None else 0", "0", "readout-2", "status"),
    Mutant("a limit is an error", READOUT, "~silent if schedule.sleep is None else 0", "~silent", "readout-3", "status"),
    Mutant(
        "cycles of the counter", READOUT, "self.now - self.tickets.p.start", "self.now", "readout-2 readout-map readout-pad", "cycles from"
    ),
    Mutant("a ticket for each sleep", READOUT, "with m.If(over & step.final):", "with m.If(over):", "readout-2", "ticket"),
    Mutant("an error is a malformed image", READOUT, "status.malformed | status.unsettled", "status.malformed", "readout-2", "error"),
    Mutant("busy once it has left", READOUT, "self.busy.eq(self.result.valid)", "self.busy.eq(self.result.ready)", "readout-3", "busy"),
    Mutant("a word is overtaken", READOUT, "free = ~self.result.valid | self.result.ready", "free = 1", "readout-2 readout-map", "stands"),
    Mutant(
        "a word is given twice",
        READOUT,
        "m.d.sync += self.result.valid.eq(0)",
        "m.d.sync += self.result.valid.eq(self.result.valid)",
        "readout-3",
    ),
]

TestSchedules = properties_of(PROPERTIES, MUTANTS)
