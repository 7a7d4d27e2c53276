"""Neurons, dividers and volleys: the claims hold, and each fails for a mutant of the gates, of the bounds, or of the rule itself."""

from __future__ import annotations

from rtl_gen.formal.neurons import PROPERTIES
from tests.rtl_gen.formal.mutants import Mutant, properties_of

NEURONS, FORMAL, BOUNDS = "rtl_gen.gates.neurons", "rtl_gen.formal.neurons", "casc_hw.intervals"
DIVIDERS = "divider-three divider-seven divider-eight"
MUTANTS = [
    Mutant(
        "v' = theta does not spike",
        NEURONS,
        "~kept[-1] & ~paid[-1] & (n < t)",
        "~kept[-1] & (paid > 0) & (n < t)",
        "neuron-two neuron-image",
    ),
    Mutant("n may pass t", NEURONS, "~paid[-1] & (n < t)", "~paid[-1]", "neuron-binary neuron-two neuron-counts"),
    Mutant("n may reach T, not t", NEURONS, "~paid[-1] & (n < t)", "~paid[-1] & (n < self.spec.levels)", "neuron-two"),
    Mutant("n may fall below 0", NEURONS, "kept[-1] & (n > 0)", "kept[-1]", "neuron-binary neuron-three neuron-image"),
    Mutant("v' = 0 takes back", NEURONS, "kept[-1] & (n > 0)", "(kept <= 0) & (n > 0)", "neuron-two"),
    Mutant("the threshold is not paid back", NEURONS, "Mux(up | down, paid, kept)", "Mux(up, paid, kept)", "neuron-two"),
    Mutant("the count is not taken back", NEURONS, "n + up - down", "n + up", "neuron-counts"),
    Mutant("t goes on in sleep", NEURONS, "Mux(step.wake & start,", "Mux(start,", "neuron-two"),
    Mutant("biases on in sleep", NEURONS, "Mux(tags[1].step.wake, constant.bias, 0)", "constant.bias", "neuron-two"),
    Mutant("an image's state leaks into the next", NEURONS, "m.If(tags[1].step.first)", "m.If(0)", "neuron-two"),
    Mutant("skipped while restless", NEURONS, "quiet & ~self.restless & start", "quiet & start", "neuron-two", "a step that is skipped"),
    Mutant("an empty step adds what is on the wire", NEURONS, "with m.If(self.currents.p.empty):", "with m.If(0):", "neuron-two"),
    Mutant("a step overtakes the one before", NEURONS, "(quiet | int(chunks < LATENCY))", "quiet", "neuron-two"),
    Mutant(
        "negative spikes sent as positive",
        NEURONS,
        "Cat(up | down, down).as_signed()",
        "Cat(up | down, 0).as_signed()",
        "neuron-two",
        "sent",
    ),
    Mutant(
        "counts are sent as spikes",
        NEURONS,
        "result.n if self.spec.cumulative else",
        "result.n[:1] if self.spec.cumulative else",
        "neuron-counts",
    ),
    Mutant("the rule lets n pass t", FORMAL, "& (before < t_next)", "& (before < levels)", "neuron-two", "n <= t"),
    Mutant("the rule takes back below 0", FORMAL, "(compared < 0) & (before > 0)", "compared < 0", "neuron-two", "n <= t"),
    Mutant("the rule spikes late", FORMAL, "(compared >= theta) &", "(compared > theta) &", "neuron-two", "(above)"),
    Mutant(
        "the rule pays a threshold too little",
        FORMAL,
        "compared - Mux(up, theta, 0)",
        "compared - Mux(up, theta - 1, 0)",
        "neuron-two",
        "v = S",
    ),
    Mutant("the rule rests one too high", FORMAL, "(v < theta)) | ((v", "(v <= theta)) | ((v", "neuron-two", "at rest"),
    Mutant("the upper bound without the bias", BOUNDS, "else high + up)", "else high)", "neuron-two", "compared is in its interval"),
    Mutant(
        "the lower bound without windows", BOUNDS, "(low - high + down)", "(low + down)", "neuron-binary", "compared is in its interval"
    ),
    Mutant(
        "the image's bound once, not T times",
        BOUNDS,
        "net.levels * ((high + layer.bias)",
        "((high + layer.bias)",
        "neuron-image",
        "in its interval",
    ),
    Mutant(
        "the smallest multiple is left out",
        NEURONS,
        "reversed(range(spec.count_bits))",
        "reversed(range(1, spec.count_bits + 1))",
        DIVIDERS,
    ),
    Mutant("counts are not clipped", NEURONS, "Mux(n > spec.levels, spec.levels, n)", "n", "divider-eight"),
    Mutant("an exact multiple does not fit", NEURONS, "fits = ~less[-1]", "fits = less > 0", "divider-binary " + DIVIDERS),
    Mutant("the rest is not kept", NEURONS, "Mux(fits, less, rest)", "rest", DIVIDERS),
    Mutant("the image's current counts once", NEURONS, "x * spec.gain + constant.bias", "x + constant.bias", "divider-eight"),
    Mutant("no biases in count code", NEURONS, "x * spec.gain + constant.bias", "x * spec.gain", "divider-eight"),
    Mutant("a count of one has not fired", NEURONS, "fired.eq(n.any())", "fired.eq(n[1:].any())", "divider-three", "fired"),
    Mutant("thresholds of the channel before", NEURONS, "constant.addr.eq(place.part)", "constant.addr.eq(0)", DIVIDERS),
    Mutant(
        "credits are not given back",
        NEURONS,
        "+ (done.on & ~push) +",
        "+",
        "volleys-spike-1 volleys-spike-7 volleys-count-3",
        "credits are",
    ),
    Mutant(
        "a volley leaves changed",
        NEURONS,
        "self.volleys.payload.eq(fifo.r_data)",
        "self.volleys.payload.eq(fifo.r_data ^ 1)",
        "volleys-spike-7-watched volleys-count-3-watched",
        "as it was",
    ),
    Mutant("the last credit is not used", NEURONS, "(credits != 0)", "(credits > 1)", "divider-binary", "a chunk is taken"),
    Mutant("sleep steps are not taken", NEURONS, "& ~wait)", "& ~wait & self.currents.p.step.wake)", "neuron-two", "a step is taken"),
    Mutant(
        "credits are not asked for",
        NEURONS,
        "& (credits != 0) &",
        "&",
        "volleys-spike-7-dense volleys-count-3-dense",
        "a volley finds room",
    ),
    Mutant("state is kept in the next place", NEURONS, "write.addr.eq(done.chunk)", "write.addr.eq(done.chunk ^ 1)", "array-two", "spike"),
    Mutant("always the first place", NEURONS, "place.advance(m, restart=last)", "place.advance(m, restart=1)", "array-lanes", "its place"),
    Mutant("a step that waits for nothing", NEURONS, "int(chunks < LATENCY)", "0", "array-two array-counts", ""),
    Mutant("a skip does not wait", NEURONS, "(quiet | int(chunks < LATENCY))", "int(chunks < LATENCY)", "array-six", "skipped"),
    Mutant("active stays", NEURONS, "before.eq(~done.last & (before | spiked))", "before.eq(before | spiked)", "array-two", "active"),
    Mutant("only the last chunk is active", NEURONS, "step.active | spiked | before)", "step.active | spiked)", "array-lanes", "active"),
    Mutant("each chunk begins an image", NEURONS, "Mux(step.wake & start,", "Mux(step.wake,", "array-counts", "count"),
    Mutant("counts of images that are wide", NEURONS, "Mux(up | down, paid, kept)", "Mux(up, paid, kept)", "neuron-four neuron-many"),
    Mutant("an image's wide potential", NEURONS, "kept[-1] & (n > 0)", "kept[-1]", "neuron-image-wide"),
    Mutant("a long division", NEURONS, "fits = ~less[-1]", "fits = less > 0", "divider-fifteen"),
]

TestNeurons = properties_of(PROPERTIES, MUTANTS)
