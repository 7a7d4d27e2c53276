"""Mutants of the gates, each a change of their source text: the comparison with the reference must catch every one."""

from __future__ import annotations

import importlib
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from amaranth.lib.wiring import Component

from casc_hw import IntegerNet, simulate
from rtl_gen.gates import core as gates
from rtl_gen.gates.core import CoreSpec
from rtl_gen.lower import Lanes, core_spec

SEED, QUIET_SEED = 451, 4


@dataclass(frozen=True)
class Mutant:
    """In ``rtl_gen.gates.<module>``, ``old`` (which occurs once) becomes ``new``."""

    what: str
    module: str
    old: str
    new: str


MUTANTS = [
    Mutant("v' = theta does not spike", "neurons", "~kept[-1] & ~paid[-1] & (n < t)", "~kept[-1] & (paid > 0) & (n < t)"),
    Mutant("n may pass t", "neurons", "~paid[-1] & (n < t)", "~paid[-1]"),
    Mutant("n may reach T, not t", "neurons", "~paid[-1] & (n < t)", "~paid[-1] & (n < spec.levels)"),
    Mutant("n may fall below 0", "neurons", "kept[-1] & (n > 0)", "kept[-1]"),
    Mutant("v' = 0 takes back", "neurons", "kept[-1] & (n > 0)", "(kept <= 0) & (n > 0)"),
    Mutant("the threshold is not paid back", "neurons", "Mux(up | down, paid, kept)", "Mux(up, paid, kept)"),
    Mutant("the count is not taken back", "neurons", "n + up - down", "n + up"),
    Mutant("t goes on in sleep", "neurons", "Mux(step.wake & (chunk == 0),", "Mux((chunk == 0),"),
    Mutant("t starts at 0", "neurons", "Mux(step.first, 1, t_last + 1)", "Mux(step.first, 0, t_last + 1)"),
    Mutant("t not restarted", "neurons", "Mux(step.first, 1, t_last + 1)", "t_last + 1"),
    Mutant("biases on in sleep", "neurons", "Mux(tags[1].step.wake, constant.bias, 0)", "constant.bias"),
    Mutant("no biases", "neurons", "Mux(tags[1].step.wake, constant.bias, 0)", "0"),
    Mutant("an image's state leaks into the next", "neurons", "m.If(tags[1].step.first)", "m.If(0)"),
    Mutant("the count leaks into the next", "neurons", "[v.eq(0), n.eq(0)]", "[v.eq(0)]"),
    Mutant("skipped while restless", "neurons", "quiet & ~restless & (chunk == 0)", "quiet & (chunk == 0)"),
    Mutant("restless is only the last chunk's", "neurons", "restless.eq(before | spiked)", "restless.eq(spiked)"),
    Mutant("an empty step adds what is on the wire", "neurons", "with m.If(self.currents.p.empty):", "with m.If(0):"),
    Mutant("a step overtakes the one before", "neurons", "(quiet | int(chunks < LATENCY))", "quiet"),
    Mutant("active forgets the layers before", "neurons", "done.step.active | spiked | before", "spiked | before"),
    Mutant("active forgets the chunks before", "neurons", "done.step.active | spiked | before", "done.step.active | spiked"),
    Mutant(
        "negative spikes sent as positive",
        "neurons",
        "(volley.up & ~rest & pending).any(), 1, -1)",
        "(volley.up & ~rest & pending).any(), 1, 1)",
    ),
    Mutant("the step's last spike is lost", "neurons", "Mux(volley.mark, ~pending.any(), ~rest.any())", "~rest.any()"),
    Mutant("credits are not given back", "neurons", "+ (done.on & ~push) +", "+"),
    Mutant("neurons' lanes in the wrong order", "synapses", "enumerate(group)", "enumerate(group[::-1])"),
    Mutant("chunks of a pass in the wrong order", "synapses", "self.currents.p.x.eq(parts[part])", "self.currents.p.x.eq(parts[part ^ 1])"),
    Mutant(
        "accumulators are not cleared",
        "synapses",
        "with m.If(clear):\n                m.d.sync += total.eq(0)",
        "with m.If(0):\n                m.d.sync += total.eq(0)",
    ),
    Mutant("-1 adds the weight", "synapses", "Mux(value < 0, -weight, weight)", "weight"),
    Mutant("every pass reads the first rows", "synapses", "base.eq(base + spec.events.size)", "base.eq(0)"),
    Mutant("a chunk overtakes the one before", "synapses", "send.eq(~pending | taken)", "send.eq(1)"),
    Mutant("a value arrives a cycle late", "synapses", 'self.events.p.value, 3, "value"', 'self.events.p.value, 4, "value"'),
    Mutant("a repeated pass loses its last event", "replay", "end = index == count", "end = index + 1 >= count"),
    Mutant("one pass too few", "replay", "passes == self.spec.passes - 1", "passes >= self.spec.passes - 2"),
    Mutant("events are kept beyond their step", "replay", "m.d.sync += count.eq(0)", "m.d.sync += count.eq(count)"),
    Mutant("one wake step too few", "wake", "final.eq(wakes == schedule.levels)", "final.eq(wakes >= schedule.levels - 1)"),
    Mutant("the margin is one step longer", "wake", "block != schedule.margin", "block != schedule.margin + 1"),
    Mutant("the input goes on in sleep", "wake", "self.o.p.empty.eq(~wake | blank[playing])", "self.o.p.empty.eq(blank[playing])"),
    Mutant("an empty image plays the last one", "wake", "blank[into].eq(self.i.p.empty)", "blank[into].eq(0)"),
    Mutant("both images in one bank", "wake", "write.addr.eq(Cat(place, into))", "write.addr.eq(Cat(place, 0))"),
    Mutant("every wake step is the first", "wake", "wake & (wakes == 1)", "wake"),
    Mutant("no sleep waits for its verdict", "wake", "m.Elif(self.settled):", "m.Elif(sleeps != 0):"),
    Mutant("judged one step early", "readout", "silent.eq(~step.wake & ~step.active)", "silent.eq(~step.wake)"),
    Mutant("a wake step may be judged", "readout", "silent.eq(~step.wake & ~step.active)", "silent.eq(~step.active)"),
    Mutant("the sleep's bound is one less", "readout", "slept == schedule.sleep_limit - 1", "slept >= schedule.sleep_limit - 2"),
    Mutant("steps sent ahead are counted", "readout", "m.Elif(sleeping):", "m.Elif(1):"),
    Mutant(
        "the silent step is not counted", "readout", "status.sleep_steps.eq(sleep_steps + ~step.wake)", "status.sleep_steps.eq(sleep_steps)"
    ),
    Mutant("sleep steps of all images", "readout", "sleep_steps.eq(0),\n", "sleep_steps.eq(sleep_steps + 1),\n"),
    Mutant("arg max takes the highest of equals", "readout", "(logit > best)", "(logit >= best)"),
    Mutant("arg max remembers the last image", "readout", "(index == 0) | (logit > best)", "(logit > best)"),
    Mutant("sums leak into the next image", "readout", "Mux(step.first, fresh.data[lane], read.data[lane])", "read.data[lane]"),
    Mutant("biases once, not T times", "readout", "[levels * bias for bias", "[bias for bias"),
    Mutant("never unsettled", "readout", "~silent if schedule.sleep is None else 0", "~silent"),
    Mutant("a beat's last pixel is lost", "pixels", "pending.eq(kept)", "pending.eq(kept & (kept - 1))"),
    Mutant("beats at the wrong place", "pixels", "base.eq(count)", "base.eq(count + 1)"),
]


def mutated(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the mutant's components in the core's hands."""
    original = importlib.import_module(f"rtl_gen.gates.{mutant.module}")
    text = Path(str(original.__file__)).read_text()
    assert text.count(mutant.old) == 1, f"{mutant.what}: {mutant.old!r} occurs {text.count(mutant.old)} times in {mutant.module}"
    module = types.ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", module)  # where dataclasses look for it
    exec(compile(text.replace(mutant.old, mutant.new), f"<{mutant.what}>", "exec"), module.__dict__)
    for name, value in vars(module).items():
        if not isinstance(value, type) or value.__module__ != "mutant":
            continue
        if issubclass(value, Component):
            monkeypatch.setattr(gates, name, value)
        else:  # a spec: the cases hold the original's instances
            for member, what in vars(value).items():
                if isinstance(what, property):
                    monkeypatch.setattr(getattr(original, name), member, what)


@pytest.fixture(scope="module")
def cases(make_net: Callable[..., IntegerNet], make_images: Any) -> list[tuple[IntegerNet, CoreSpec, torch.Tensor]]:
    """Small networks, deep enough for negative spikes, with lanes that give several chunks, passes and parts."""
    net = make_net((5, 7, 6, 3), levels=4, margin=3, bits=3, input_max=5, seed=SEED)
    images = make_images(net, 5, SEED)
    short = replace(net, margin=2, sleep=2)
    quiet = make_net((5, 4, 3, 2), levels=4, bits=3, input_max=5, seed=QUIET_SEED, spread=1.0)
    return [
        (net, core_spec(net, [Lanes(4, 2), Lanes(4, 1), Lanes(2, 2)], 2), images),
        (short, core_spec(short, [Lanes(2, 1), Lanes(8, 4), Lanes(3, 3)], 4), images),
        (quiet, core_spec(quiet, [Lanes(2, 2), Lanes(2, 1), Lanes(2, 2)], 1), make_images(quiet, 5, QUIET_SEED)),
    ]


def check(cases: list[tuple[IntegerNet, CoreSpec, torch.Tensor]], run_core: Callable[..., Any]) -> str:
    """The first mismatch, or nothing."""
    for net, spec, images in cases:
        for outcome in run_core(net, spec, images, stalls=(0.0, 0.5)):
            if outcome.mismatches:
                return str(outcome.messages[0])
    return ""


def test_the_cases_show_what_the_mutants_touch(cases: list[tuple[IntegerNet, CoreSpec, torch.Tensor]]) -> None:
    (net, spec, images), (short, *_), (quiet, _, dim) = cases
    trace, cut, calm = simulate(net, images), simulate(short, images), simulate(quiet, dim)
    for layer in (0, 1):
        assert {0, 1} <= set(trace.spikes[layer].unique().tolist())
        assert trace.spikes[layer][:, :, -1].any(), "the last neuron is silent"
    assert (trace.spikes[1][trace.wake] < 0).any()
    assert (trace.spikes[1][~trace.wake] < 0).any()
    assert (trace.spikes[1][~trace.wake] > 0).any()
    first, second = (spikes.ne(0).any(2) for spikes in calm.spikes)
    assert (first & ~second & calm.active).any(), "the second layer spikes whenever the first does"
    assert not (first | second)[calm.wake][-1].all(), "no last wake step is silent"
    assert len(trace.sleep_steps.unique()) > 2
    assert not cut.settled.all()
    top = trace.answer.sums.max(1, keepdim=True).values
    assert ((trace.answer.sums == top).sum(1) > 1).any(), "no tie"
    assert {synapses.passes > 1 for synapses in spec.synapses} == {True}


def test_the_control_passes(cases: list[tuple[IntegerNet, CoreSpec, torch.Tensor]], run_core: Callable[..., Any]) -> None:
    assert check(cases, run_core) == ""


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.what)
def test_is_killed(
    mutant: Mutant, cases: list[tuple[IntegerNet, CoreSpec, torch.Tensor]], run_core: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    mutated(mutant, monkeypatch)
    message = check(cases, run_core)
    assert message, f"survived: {mutant.what}"
    print(f"{mutant.module:10}{mutant.what:48}{message}")
