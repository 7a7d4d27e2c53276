"""What makes events: the claims hold, and each fails for a mutant of the gates."""

from __future__ import annotations

from rtl_gen.formal.images import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

ENCODER, PIXELS = "rtl_gen.gates.encoder", "rtl_gen.gates.pixels"
MUTANTS = [
    Mutant(
        "the last value goes first", ENCODER, "for index in reversed(range(lanes))", "for index in range(lanes)", "encoder-2", "in order"
    ),
    Mutant("a value alone is not sent", ENCODER, "rest.eq(pending & (pending - 1))", "rest.eq(pending >> 1)", "encoder-4"),
    Mutant(
        "events of a volley with a mark wait for it", ENCODER, "pending.any() | volley.mark", "pending.any() ^ volley.mark", "encoder-1"
    ),
    Mutant("a mark is sent with an event", ENCODER, "p.mark.eq(~pending.any())", "p.mark.eq(volley.mark)", "encoder-1 encoder-2", "last"),
    Mutant(
        "the step of the volley that comes", ENCODER, "step.eq(volley.step)", "step.eq(self.volleys.p.step)", "encoder-1", "has its step"
    ),
    Mutant(
        "parts of a pixel are one", ENCODER, "lanes.bit_length() - 1], volley.part", "lanes.bit_length() - 1], 0", "encoder-1", "channels"
    ),
    Mutant(
        "part before lane", ENCODER, "Cat(lane[: lanes.bit_length() - 1], volley.part)", "Cat(volley.part, lane)", "encoder-4", "channels"
    ),
    Mutant("the first lane's value", ENCODER, "p.value.eq(values[lane])", "p.value.eq(values[0])", "encoder-2 encoder-4", "its value"),
    Mutant("a row is a column", ENCODER, "p.y.eq(volley.y)", "p.y.eq(volley.x)", "encoder-1", "pixel"),
    Mutant(
        "a mark is lost", ENCODER, "Mux(volley.mark, ~pending.any(), ~rest.any())", "~rest.any()", "encoder-1 encoder-4", "for each value"
    ),
    Mutant("a value is lost", ENCODER, "Mux(volley.mark, ~pending.any(), ~rest.any())", "~volley.mark | ~rest.any()", "encoder-2"),
    Mutant("events are sent as others come", ENCODER, "(self.events.ready & Mux", "(Mux", "encoder-2", "stands"),
    Mutant(
        "an empty step has values", ENCODER, "self.volleys.valid & ~self.volleys.p.empty", "self.volleys.valid", "encoder-4", "nothing else"
    ),
    Mutant("negative values are none", ENCODER, "Cat(value != 0 for", "Cat(value > 0 for", "encoder-1", "for each value"),
    Mutant(
        "what is not offered is taken", ENCODER, "Mux(self.volleys.valid, self.volleys.payload, 0)", "self.volleys.payload", "encoder-4"
    ),
    Mutant(
        "the last pixel goes first",
        PIXELS,
        "for index in reversed(range(beat))",
        "for index in range(beat)",
        "pixels-5 pixels-3x1x2",
        "raster",
    ),
    Mutant("a mark before the last event", PIXELS, "p.mark.eq(~pending.any())", "p.mark.eq(ending)", "pixels-2x2x2", "left out"),
    Mutant("the mark does not wait for the ticket", PIXELS, "(ending & ticketed)", "ending", "pixels-1", "behind its image's ticket"),
    Mutant("a ticket each cycle", PIXELS, "valid.eq(ending & ~ticketed)", "valid.eq(ending)", "pixels-5", "one ticket"),
    Mutant("busy until the mark is in the skid", PIXELS, "(count != 0) | skid.o.valid", "count != 0", "pixels-1", "busy"),
    Mutant("the next image does not wait", PIXELS, "ready.eq(~ending & (", "ready.eq((", "pixels-2x2x2"),
    Mutant("a pixel is lost", PIXELS, "(events.ready & ~rest.any())", "events.ready", "pixels-5", "left out"),
    Mutant(
        "malformed once, malformed ever", PIXELS, "count.eq(0), self.tickets.p.malformed.eq(0)]", "count.eq(0)]", "pixels-1", "ticket tells"
    ),
    Mutant("the next image goes on", PIXELS, "[counter.eq(0) for counter in following]", "[]", "pixels-3x1x2"),
    Mutant("beats beyond the image are pixels", PIXELS, "& ~surplus.replicate(beat)", "", "pixels-2x2x2"),
    Mutant(
        "an image is as long as its last beat",
        PIXELS,
        "inside = (1 << (spec.size - (spec.beats - 1) * beat)) - 1",
        "inside = -1",
        "pixels-5 pixels-1",
    ),
    Mutant("short images are sound", PIXELS, "(self.pixels.p.last != end)", "(end & ~self.pixels.p.last)", "pixels-5", "ticket tells"),
    Mutant(
        "long images are sound",
        PIXELS,
        "(self.pixels.p.last != end)",
        "(self.pixels.p.last & (count < spec.beats - 1))",
        "pixels-3x1x2",
        "ticket tells",
    ),
    Mutant("large pixels beyond the image count", PIXELS, "(over & kept).any()", "over.any()", "pixels-5", "ticket tells"),
    Mutant("large pixels are sound", PIXELS, "| (over & kept).any()", "", "pixels-1x2x4", "ticket tells"),
    Mutant("a pixel is not clamped", PIXELS, "Mux(pixel > spec.maximum, spec.maximum, pixel)", "pixel", "pixels-1 pixels-1x2x4", "at most"),
    Mutant(
        "a large pixel is nothing",
        PIXELS,
        "Mux(pixel > spec.maximum, spec.maximum, pixel)",
        "Mux(pixel > spec.maximum, 0, pixel)",
        "pixels-5",
        "at most",
    ),
    Mutant("each beat is a start", PIXELS, "with m.If(count == 0):", "with m.If(self.pixels.valid):", "pixels-3x1x2", "first transfer"),
    Mutant("rows are one longer", PIXELS, "next_x + across >= width", "next_x + across > width", "pixels-1x2x4 pixels-3x2x2", "on the map"),
    Mutant(
        "beats are a channel apart", PIXELS, "_divided(next_channel + beat, channels", "_divided(next_channel + 1, channels", "pixels-3x2x2"
    ),
    Mutant("pixels of a beat lie in one place", PIXELS, "p.x.eq(x + across)", "p.x.eq(x)", "pixels-1x2x4 pixels-3x1x2"),
    Mutant(
        "channels and lanes change places", PIXELS, "return _divided(channel + lane,", "return _divided(lane,", "pixels-3x2x2 pixels-3x1x2"
    ),
]

TestImages = properties_of(PROPERTIES, MUTANTS)
