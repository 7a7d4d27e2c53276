"""Mutants of the gates, each a change of their source text: the comparison with the reference must catch every one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from amaranth.lib.wiring import Component

from casc_hw import IntegerNet, Layer, Pool, Synapses, simulate
from casc_hw.network import IMAGE
from rtl_gen.gates import core as gates
from rtl_gen.gates.core import CoreSpec
from rtl_gen.lower import Lanes, core_spec
from tests.mutation import mutated_module

SEED, QUIET_SEED, MAPS_SEED = 451, 4, 313


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
    Mutant("n may reach T, not t", "neurons", "~paid[-1] & (n < t)", "~paid[-1] & (n < self.spec.levels)"),
    Mutant("n may fall below 0", "neurons", "kept[-1] & (n > 0)", "kept[-1]"),
    Mutant("v' = 0 takes back", "neurons", "kept[-1] & (n > 0)", "(kept <= 0) & (n > 0)"),
    Mutant("the threshold is not paid back", "neurons", "Mux(up | down, paid, kept)", "Mux(up, paid, kept)"),
    Mutant("the count is not taken back", "neurons", "n + up - down", "n + up"),
    Mutant("t goes on in sleep", "neurons", "Mux(step.wake & start,", "Mux(start,"),
    Mutant("t starts at 0", "neurons", "Mux(step.first, 1, t_last + 1)", "Mux(step.first, 0, t_last + 1)"),
    Mutant("t not restarted", "neurons", "Mux(step.first, 1, t_last + 1)", "t_last + 1"),
    Mutant("biases on in sleep", "neurons", "Mux(tags[1].step.wake, constant.bias, 0)", "constant.bias"),
    Mutant("no biases", "neurons", "Mux(tags[1].step.wake, constant.bias, 0)", "0"),
    Mutant("an image's state leaks into the next", "neurons", "m.If(tags[1].step.first)", "m.If(0)"),
    Mutant("the count leaks into the next", "neurons", "[v.eq(0), n.eq(0)]", "[v.eq(0)]"),
    Mutant("skipped while restless", "neurons", "quiet & ~self.restless & start", "quiet & start"),
    Mutant("an empty step adds what is on the wire", "neurons", "with m.If(self.currents.p.empty):", "with m.If(0):"),
    Mutant("a step overtakes the one before", "neurons", "(quiet | int(chunks < LATENCY))", "quiet"),
    Mutant("active forgets the layers before", "neurons", "done.step.active | spiked | before", "spiked | before"),
    Mutant("active forgets the chunks before", "neurons", "done.step.active | spiked | before", "done.step.active | spiked"),
    Mutant("negative spikes sent as positive", "neurons", "Cat(up | down, down).as_signed()", "Cat(up | down, 0).as_signed()"),
    Mutant("credits are not given back", "neurons", "+ (done.on & ~push) +", "+"),
    Mutant("thresholds of the pixel before", "neurons", "constant.addr.eq(place.part)", "constant.addr.eq(0)"),
    Mutant("the image's current counts once", "neurons", "x * spec.gain + constant.bias", "x + constant.bias"),
    Mutant("no biases in count code", "neurons", "x * spec.gain + constant.bias", "x * spec.gain"),
    Mutant("counts are not clipped", "neurons", "Mux(n > spec.levels, spec.levels, n)", "n"),
    Mutant("S = theta is less than theta", "neurons", "fits = ~less[-1]", "fits = less > 0"),
    Mutant("the step's last spike is lost", "encoder", "Mux(volley.mark, ~pending.any(), ~rest.any())", "~rest.any()"),
    Mutant("events at the wrong pixel", "encoder", "self.events.p.x.eq(volley.x)", "self.events.p.x.eq(volley.y)"),
    Mutant("chunks of a pass in the wrong order", "synapses", "zip(parts, part, strict", "zip(parts, part[::-1], strict"),
    Mutant("sums are not cleared", "synapses", "m.d.sync += total.eq(followers[key])", "m.d.sync += total.eq(total)"),
    Mutant("-1 adds the weight", "synapses", "Mux(value < 0, -weight, weight) if", "weight if"),
    Mutant("every pass reads the first rows", "synapses", "base + Mux(next_set, 0, spec.set_rows)", "base"),
    Mutant("groups hear each other", "synapses", "(cell.set == chunk_set)", "1"),
    Mutant("a chunk overtakes the one before", "synapses", "(credits != 0) | (0 if geometry.flat else ~sends)", "1"),
    Mutant("a value arrives a cycle late", "synapses", 'cell.value, 2, "value"', 'cell.value, 3, "value"'),
    Mutant("rows do not move down", "synapses", "Mux(tag.down, above, here)", "here"),
    Mutant("columns outside the map are kept", "synapses", "write.en.eq(tag.mark & tag.keep)", "write.en.eq(tag.mark)"),
    Mutant("a borrow is not given back", "synapses", "(pair[bits:].as_signed(), pair[bits - 1])", "(pair[bits:].as_signed(), 0)"),
    Mutant("a weight's sign digit counts as the others", "synapses", "for factor in (0, 1, -2, -1)", "for factor in (0, 1, 2, 3)"),
    Mutant("rows leave before their last source", "serial", "((dy >= kernel_y) & ~last_row)", "((dy >= kernel_y - 1) & ~last_row)"),
    Mutant("sums stay behind", "serial", "write.addr.eq(sending), write.data.eq(0), write.en.eq(1)", "write.en.eq(0)"),
    Mutant("an event overtakes the one before", "serial", "SETTLE = 3", "SETTLE = 1"),
    Mutant("sums outlive a reset", "serial", "touched.eq(1), dirty.eq(1)]", "touched.eq(1)]"),
    Mutant("each row of taps is the first", "serial", "tap.eq(tap_row - down * kernel_x)", "tap.eq(tap_row)"),
    Mutant("a row begins where the last one ended", "serial", "column.eq(0), left.eq(left.init)]", "column.eq(column)]"),
    Mutant("all groups in the place of the first", "serial", "first_chunk = self._set(event.channel) * spec.chunks", "first_chunk = 0"),
    Mutant("taps beyond the map", "serial", "& (to_row != rows - 1)", ""),
    Mutant("marks are lost at the row's end", "walk", "with m.If(row_end | end):", "with m.If(end):"),
    Mutant("an event is taken a cell early", "walk", "(event.x + lead < edge)", "(event.x + lead <= edge)"),
    Mutant("a neuron leaves before its last row", "walk", "(band >= taps_y - 1)", "(band + 1 >= taps_y - 1)"),
    Mutant("a repeated pass loses its last event", "replay", "end = item == count", "end = item + 1 >= count"),
    Mutant("one pass too few", "replay", "passes == self.spec.passes - 1", "passes >= self.spec.passes - 2"),
    Mutant("events are kept beyond their cell", "replay", "m.d.sync += count.eq(0)", "m.d.sync += count.eq(count)"),
    Mutant("windows go on from the last ones", "pools", "Mux(late.fresh, value, joined)", "joined"),
    Mutant("the smallest of a window", "pools", "Mux(value > old, value, old)", "Mux(value < old, value, old)"),
    Mutant("a window forgets a volley two cycles before", "pools", "Mux(again[1], held, read.data)", "read.data"),
    Mutant("what stood there in the last image", "pools", "Mux(volley.step.first, 0, old)", "old"),
    Mutant("each step tells everything anew", "pools", "value - Mux(volley.step.first, 0, old)", "value"),
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
    Mutant("pixels of a row at the wrong place", "pixels", "next_x.eq(next_x + across)", "next_x.eq(next_x + across + 1)"),
]


def mutated(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the mutant's components in the core's hands."""
    original, module = mutated_module(mutant.what, f"rtl_gen.gates.{mutant.module}", mutant.old, mutant.new, monkeypatch)
    for name, value in vars(module).items():
        if not isinstance(value, type) or value.__module__ != "mutant":
            continue
        if issubclass(value, Component):
            if hasattr(gates, name):
                monkeypatch.setattr(gates, name, value)
        else:  # a spec: the cases hold the original's instances
            for member, what in vars(value).items():
                if isinstance(what, property):
                    monkeypatch.setattr(getattr(original, name), member, what)


def _maps(seed: int) -> IntegerNet:
    """A small network of maps: convolutions with strides, groups and padding, both pools, a residual sum, a dense read-out."""
    chance = torch.Generator().manual_seed(seed)

    def conv(source: str, outputs: int, inputs: int, kernel: int, bits: int = 3, **options: Any) -> Synapses:
        half = 1 << (bits - 1)
        return Synapses(source, torch.randint(-half, half, (outputs, inputs, kernel, kernel), generator=chance), bits, **options)

    def layer(name: str, theta: int, *synapses: Synapses) -> Layer:
        outputs = synapses[0].outputs
        bias = torch.randint(-theta // 3, theta // 3 + 1, (outputs,), generator=chance)
        return Layer(name, synapses, bias, torch.randint(max(theta // 2, 1), theta * 2, (outputs,), generator=chance))

    readout = torch.randint(-4, 4, (3, 16), generator=chance)
    nodes = (
        layer("first", 30, conv(IMAGE, 4, 1, 3, padding=(1, 1))),
        Pool("largest", "first", "max", (2, 2), (2, 2)),
        layer("groups", 8, conv("largest", 4, 2, 3, padding=(1, 1), groups=2)),
        layer("sum", 9, conv("groups", 4, 4, 3, padding=(1, 1)), conv("largest", 4, 4, 1)),
        Pool("average", "sum", "average", (2, 2), (1, 1)),
        Layer.dense("readout", "average", readout, torch.tensor([1, -2, 3]), None, 3, 1.0),
    )
    return IntegerNet("maps", 4, 4, None, (1, 6, 6), 5, nodes)


@pytest.fixture(scope="module")
def cases(make_net: Callable[..., IntegerNet], make_images: Any) -> list[tuple[IntegerNet, CoreSpec, torch.Tensor]]:
    """Small networks, deep enough for negative spikes, with lanes that give several chunks, passes and parts."""
    net = make_net((5, 7, 6, 3), levels=4, margin=3, bits=3, input_max=5, seed=SEED)
    images = make_images(net, 5, SEED)
    short = replace(net, margin=2, sleep=2)
    quiet = make_net((5, 4, 3, 2), levels=4, bits=3, input_max=5, seed=QUIET_SEED, spread=1.0)
    maps = _maps(MAPS_SEED)
    few = make_images(maps, 4, 1)
    serial = [Lanes(1, 1, "dsp", serial=True), Lanes(2, 2, "dsp", serial=True), Lanes(1, 1, "dsp", serial=True), Lanes(1, 1)]
    each = [Lanes(4, 2, "logic"), Lanes(2, 2, "dsp"), Lanes(1, 1, "dsp"), Lanes(2, 1, "logic")]
    return [
        (net, core_spec(net, [Lanes(4, 2), Lanes(4, 1), Lanes(2, 2)], 2), images),
        (short, core_spec(short, [Lanes(2, 1), Lanes(8, 4), Lanes(3, 3)], 4), images),
        (quiet, core_spec(quiet, [Lanes(2, 2), Lanes(2, 1), Lanes(2, 2)], 1), make_images(quiet, 5, QUIET_SEED)),
        (maps, core_spec(maps, each, 2, "count"), few),
        (maps, core_spec(maps, [Lanes(2, 2, "dsp"), Lanes(4, 4), Lanes(4, 2, "dsp"), Lanes(4, 4, "dsp")], 1, "count"), few),
        (maps, core_spec(maps, serial, 1, "count"), few),
        (maps, core_spec(maps, each, 2), few),
    ]


def check(cases: list[tuple[IntegerNet, CoreSpec, torch.Tensor]], run_core: Callable[..., Any]) -> str:
    """The first mismatch, or nothing."""
    for net, spec, images in cases:
        for outcome in run_core(net, spec, images, stalls=(0.0, 0.5), restarts=True):
            if outcome.mismatches:
                return str(outcome.messages[0])
    return ""


def test_the_cases_show_what_the_mutants_touch(cases: list[tuple[IntegerNet, CoreSpec, torch.Tensor]]) -> None:
    (net, spec, images), (short, *_), (quiet, _, dim), *_, (maps, _, few) = cases
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
    assert {synapses.spec.passes > 1 for layer in spec.layers for synapses in layer.inputs} == {True}
    steps = simulate(maps, few)
    for spikes in steps.spikes:
        assert spikes.any(2).any(1).sum() > 2, "a map is silent"
        assert not spikes.ne(0).all(2).any(), "a map is all at once"
    assert (steps.spikes[1] < 0).any()
    assert len(steps.sleep_steps.unique()) > 1


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
