"""Formal proofs: the claims hold for the gates, and each fails for a mutant of the gates, of the bounds, or of the rule itself."""

from __future__ import annotations

import importlib
import json
from dataclasses import dataclass

import pytest
from amaranth.hdl import Signal
from click.testing import CliRunner

from casc_hw.errors import CascError
from rtl_gen import prove as proofs
from rtl_gen.__main__ import main
from rtl_gen.formal import bench
from rtl_gen.formal.bench import Bench
from rtl_gen.prove import PROPERTIES, Property, select
from tests.mutation import mutated_module

CYCLES = 26
"""Every mutant fails within so many."""


@dataclass(frozen=True)
class Mutant:
    """In ``module``, ``old`` (which occurs once) becomes ``new``; these properties fail: a claim with ``claim`` in its name, or, of none,
    any of the part's contract."""

    what: str
    module: str
    old: str
    new: str
    properties: str
    claim: str = ""

    @property
    def fast(self) -> bool:
        return all(item.fast for item in select(self.properties.split()))


GATES, FORMAL, BOUNDS = "rtl_gen.gates.", "rtl_gen.formal.neurons", "casc_hw.intervals"
NEURONS, STREAMS, REPLAY = GATES + "neurons", GATES + "streams", GATES + "replay"
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
    Mutant("counts of images that are wide", NEURONS, "Mux(up | down, paid, kept)", "Mux(up, paid, kept)", "neuron-four neuron-many"),
    Mutant("an image's wide potential", NEURONS, "kept[-1] & (n > 0)", "kept[-1]", "neuron-image-wide"),
    Mutant("a long division", NEURONS, "fits = ~less[-1]", "fits = less > 0", "divider-fifteen"),
    Mutant("a long queue", STREAMS, "fifo.r_en.eq(skid.i.ready)", "fifo.r_en.eq(1)", "queue-16"),
]
CASES = [
    pytest.param(mutant, name, id=f"{mutant.what} ({name})", marks=[] if mutant.fast and place == 0 else [pytest.mark.slow])
    for mutant in MUTANTS
    for place, name in enumerate(mutant.properties.split())
]


def mutated(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the mutant's functions and components in the place of the original's."""
    original, module = mutated_module(mutant.what, mutant.module, mutant.old, mutant.new, monkeypatch)
    users = [original, importlib.import_module("rtl_gen.lower")] if mutant.module == BOUNDS else [original]
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") == "mutant" and not name.endswith("Spec"):
            for user in users:
                if hasattr(user, name):
                    monkeypatch.setattr(user, name, value)


def _property(name: str) -> Property:
    (found,) = select([name])
    return found


@pytest.mark.parametrize("name", [pytest.param(item.name, marks=[] if item.fast else [pytest.mark.slow]) for item in PROPERTIES])
def test_is_proved(name: str) -> None:
    (outcome,) = proofs.run([_property(name)])
    assert outcome.verdict == "proved", outcome


@pytest.mark.parametrize(("mutant", "name"), CASES)
def test_fails_on_a_mutant(mutant: Mutant, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutated(mutant, monkeypatch)
    result = bench.prove(_property(name).bench(), CYCLES, bounded=True, among=mutant.claim)
    assert result.verdict == "refuted", f"survived: {mutant.what}"
    print(f"{name:20}{mutant.what:48}cycle {result.depth}: {'; '.join(result.failed)}")


def test_every_property_fails_on_some_mutant() -> None:
    assert {item.name for item in PROPERTIES} == {name for mutant in MUTANTS for name in mutant.properties.split()}


def _counter(limit: int, top: int) -> Bench:
    made = Bench()
    count = Signal(8)
    made.m.d.sync += count.eq(count + 1)
    made.assume(made.free("any") | (count < top))
    made.claim("true", made.free("other") | 1)
    made.claim("it stays small", count < limit)
    return made


def test_the_engine_tells_verdicts_apart() -> None:
    assert bench.prove(_counter(6, 3), 10) == bench.Result("refuted", 7, ("it stays small",))
    assert bench.prove(_counter(6, 3), 5, bounded=True) == bench.Result("bounded", 5)
    assert bench.prove(_counter(200, 3), 5).verdict == "undecided"
    assert bench.prove(_counter(200, 3), 5, engine="pdr") == bench.Result("refuted", 201, ("it stays small",))


def test_pdr_needs_no_invariants() -> None:
    """All of the contract that induction proves with invariants, it proves without."""
    for name in ("neuron-two", "divider-three", "volleys-spike-7", "skid", "queue-5", "sum-3", "replay-1x2"):
        assert bench.prove(_property(name).bench(), 0, engine="pdr", among="").verdict == "proved", name


def test_the_command_prints_a_table() -> None:
    done = CliRunner().invoke(main, ["prove", "--only", "skid", "--only", "throttle"])
    assert done.exit_code == 0, done.output
    assert "skid" in done.output
    assert "unbounded" in done.output
    done = CliRunner().invoke(main, ["prove", "--only", "skid", "--json"])
    (said,) = json.loads(done.stdout)
    assert (said["name"], said["verdict"], said["unbounded"]) == ("skid", "proved", True)


def test_the_command_fails_where_a_proof_does(monkeypatch: pytest.MonkeyPatch) -> None:
    mutated(next(mutant for mutant in MUTANTS if mutant.what == "a throttle takes an offer back"), monkeypatch)
    done = CliRunner().invoke(main, ["prove", "--only", "throttle"])
    assert done.exit_code == 1
    assert "throttle fails in cycle 2: an offer stands until it is taken; repeat with" in done.output


def test_an_unknown_property_is_named() -> None:
    with pytest.raises(CascError, match="there is no property 'skdi'; choose among neuron-binary, "):
        select(["skdi"])
    assert {item.name for item in select(fast=True)} < {item.name for item in PROPERTIES}
