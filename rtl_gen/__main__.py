"""The command line. Everything heavy is imported inside functions, so that ``--help`` is instant."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from math import prod
from pathlib import Path
from typing import Any

import click

from casc_hw.cli import SETTINGS, Root, convert_command
from casc_hw.cli import json_option as _json
from casc_hw.cli import table as _table
from casc_hw.errors import CascError

LARGER = 4
"""Times that a device is thought larger, to simulate a network which does not fit it."""
EPILOG = "Every verb explains itself: python -m rtl_gen build --help"


@click.group(cls=Root, epilog=EPILOG, context_settings=SETTINGS)
@click.option("--debug", is_flag=True, help="Show a traceback where an error is reported.")
def main(debug: bool) -> None:
    """From a converted PyTorch network to a spiking FPGA bitstream that gives the same answer.

    \b
    Examples:
      python -m rtl_gen build                              the example network, down to a ULX3S bitstream
      python -m rtl_gen build --net net.pt --board icebreaker
      python -m rtl_gen sim --net net.pt --images 200      every spike against the PyTorch reference
      python -m rtl_gen serve                              the whole board in a simulator, behind a terminal
      python -m rtl_gen run --port /dev/ttyUSB0 image.npy  the answer of the board on the desk
    """


@dataclass(frozen=True)
class Planning:
    """What the options of a verb ask of a plan; see `planning`."""

    net_path: Path | None
    board_name: str
    data: Path | None
    code: str
    lanes: tuple[str, ...]
    fastest: bool
    target_fps: float | None
    max_lut: str | None
    max_share: float | None

    def folder(self, net: Any, board: Any, tail: str = "") -> Path:
        """Where a verb puts its files unless told otherwise."""
        code = "" if self.code == "count" else f"-{self.code}"
        return Path("build") / f"{net.name}-{board.name}{code}{tail}"

    def again(self) -> str:
        """The command that simulates this plan."""
        words = [f"--net {self.net_path}"] * (self.net_path is not None) + [f"--code {self.code}"] * (self.code != "count")
        return " ".join(["python -m rtl_gen sim", *words])


def _planning(command: Callable[..., Any]) -> Callable[..., Any]:
    """The options of `Planning`, which ``command`` gets as one value."""

    @functools.wraps(command)
    def planned(**options: Any) -> Any:
        own = {field.name: options.pop(field.name) for field in fields(Planning)}
        return command(Planning(**own), **options)

    path = click.Path(path_type=Path)
    for option in (
        click.option("--max-share", type=float, help="Share of the logic that may be filled [default: 0.8; if nothing fits then, 0.95]."),
        click.option("--max-lut", metavar="N|N%", help="LUT4s that may be filled instead: a number, or a share as in 60%."),
        click.option("--target-fps", type=float, metavar="N", help="The smallest plan for N images a second, at 80 MHz (iCE40: 24)."),
        click.option("--fastest", is_flag=True, help="As fast as the device allows, whatever the area."),
        click.option("--lanes", multiple=True, metavar="LAYER=N[xM]", help="N synapse (and M neuron) lanes of a layer, not the planner's."),
        click.option("--code", type=click.Choice(["count", "spike"]), default="count", show_default=True,
                     help="Each neuron's count once, the fast one; or the published dynamics, spike by spike. The answer is the same."),
        click.option("--data", type=path, help="Images: .npy, or .npz with 'images' [default: <net>_images.npz beside the network]."),
        click.option("--board", "board_name", default="ulx3s", show_default=True, help="A board; see `boards`."),
        click.option("--net", "net_path", type=path, help="A converted network [default: examples/mnist_mlp.pt]."),
    ):  # fmt: skip
        planned = option(planned)
    return planned


@main.command()
@_planning
@click.option("--out", type=click.Path(path_type=Path), help="Folder to make [default: build/<net>-<board>, of spike code -spike].")
@click.option("--prove", type=click.IntRange(0), default=20, show_default=True, help="Images simulated against the reference first.")
@click.option("--seeds", type=click.IntRange(1, 64), default=1, show_default=True, help="Placements to try; the fastest is kept.")
@click.option("--baud", type=click.IntRange(1), default=1_000_000, show_default=True, help="Bits a second of the host link.")
@_json
def build(planning: Planning, out: Path | None, prove: int, seeds: int, baud: int, as_json: bool) -> None:
    """Plan, prove by simulation, synthesise, route, and report.

    \b
    Examples:
      python -m rtl_gen build
      python -m rtl_gen build --net examples/digits_mlp.pt --board icebreaker
      python -m rtl_gen build --net examples/mnist_cnn_avg.pt --fastest --seeds 4
      python -m rtl_gen build --net net.pt --board ulx3s-45f --target-fps 5000 --code spike
    """
    from boards.top import BoardTop, link_spec
    from rtl_gen import tools
    from rtl_gen.build import build as build_bitstream
    from rtl_gen.gates.core import Core
    from rtl_gen.report import summary

    net, board, plan, images, labels = _plan(planning)
    link = link_spec(plan, board.source_hz, baud)
    if prove:
        tools.verilator_environment()
    out = out or planning.folder(net, board)
    sim = None
    with _progress(as_json) as progress:
        if prove:
            progress(f"simulating {min(prove, len(images))} images against the reference")
            sim = _simulate(net, plan, images[:prove], out.with_name(f"{out.name}-sim"))
            _equal(sim, planning)
        result = build_bitstream(
            BoardTop(Core(plan.spec), link, board.leds),
            board,
            out,
            name=net.name,
            seeds=range(1, seeds + 1),
            progress=progress,
            finish=lambda work, done: _keep(work, net, plan, done.as_json(), sim, images, labels),
        )
    said = sim.as_json() if sim else None
    if as_json:
        click.echo(json.dumps({"plan": plan.as_json(), "build": result.as_json(), "sim": said, "folder": str(out)}, default=str))
        return
    _table(f"{net.name} on {board.name}", summary(plan, result.as_json(), said))
    click.echo(f"bitstream: {out / result.bitstream.name}\nreport:    {out / 'report.html'}")
    if plan.spram:
        weights = out / f"{net.name}.weights.bin"
        click.echo(f"weights:   {weights}, read from flash: iceprog {out / result.bitstream.name} && iceprog -o 1M {weights}")


def _keep(work: Path, net: Any, plan: Any, built: Any, sim: Any, images: Any, labels: Any) -> None:
    """The parts of a build folder that are not the tools': network, plan, weights that are loaded, simulation and report."""
    from rtl_gen.gates.core import weight_words
    from rtl_gen.gates.flash import flash_bytes
    from rtl_gen.report import write_report

    if words := weight_words(plan.spec):
        (work / f"{net.name}.weights.bin").write_bytes(flash_bytes(words))
    net.save(work / "net.pt")
    (work / "plan.json").write_text(json.dumps(plan.as_json(), indent=2))
    if sim:
        (work / "sim.json").write_text(json.dumps(sim.as_json(), indent=2))
    write_report(work, net, plan, images=images, labels=labels, build=built, sim=sim.as_json() if sim else None)


@main.command()
@_planning
@_json
def plan(planning: Planning, as_json: bool) -> None:
    """Lanes, memories, widths, cost and speed of a network on a board, what holds it, and how near that is to what is possible.

    \b
    Examples:
      python -m rtl_gen plan --board icebreaker --net examples/digits_mlp.pt
      python -m rtl_gen plan --net examples/mnist_cnn_avg.pt --target-fps 20000 --max-lut 60%
      python -m rtl_gen plan --lanes hidden=64x4 --json
    """
    from rtl_gen.report import summary

    net, board, made, _images, _labels = _plan(planning)
    if as_json:
        click.echo(json.dumps(made.as_json()))
        return
    rows = []
    for layer in made.layers:
        maps = ("x".join(map(str, shape)) for shape in (layer.source, layer.target))
        bits, products = "/".join(map(str, layer.weight_bits)), "" if layer.multiplier == "none" else layer.multiplier
        numbers = (layer.synapse_lanes or "", layer.neuron_lanes, layer.passes or "", products, sum(m.blocks for m in layer.memories))
        rows.append((layer.name, layer.kind, *maps, bits, *numbers))
    _grid(("layer", "kind", "from", "to", "bits", "lanes", "neurons", "passes", "products", "RAMs"), rows, width=110)
    for layer in made.layers:
        memories = [f"{memory.name} {memory.rows} x {memory.bits} ({memory.place})" for memory in layer.memories]
        click.echo(f"  {layer.name}: {', '.join(memories)}")
    _table(f"{net.name} on {board.name} (estimated)", summary(made, None, None))


@main.command()
@_planning
@click.option("--out", type=click.Path(path_type=Path), help="File to write [default: build/<net>.v].")
def verilog(planning: Planning, out: Path | None) -> None:
    """The core as Verilog with AXI4-Stream ports, for your own SoC; lanes are planned for the board's device.

    \b
    Examples:
      python -m rtl_gen verilog --net net.pt --out casc.v
    """
    from rtl_gen.data import write_text
    from rtl_gen.gates.axi import AxiCore
    from rtl_gen.gates.core import weight_words
    from rtl_gen.report import maps_of
    from rtl_gen.verilog import to_verilog

    net, _board, made, _images, _labels = _plan(planning)
    module = f"casc_{net.name.replace('-', '_')}"
    out = out or Path("build") / f"{net.name}.v"
    if not out.name:
        raise CascError(f"out: {str(out)!r} names no file; give one, as in net.v")
    _folder(out.parent)
    pixels, logits = made.spec.pixels, prod(net.shapes[net.readout.name])
    header = [
        f"// {net.name}: {maps_of(made)}, T = {net.levels}, {made.code} code, digest {made.digest}",
        f"// s_axis: {pixels.size} pixels of 0..{pixels.maximum}, {pixels.beat} bytes a transfer, first pixel lowest; tlast ends an image.",
        "//         Order: by y, x, and channel innermost; the sums likewise.",
        f"// m_axis: {logits} sums (two's complement; logit = sum / {net.levels * (net.readout.scale or 1):g}), class,",
        "//         status (15:0 sleep steps, 30 malformed image, 31 not settled), cycles; tlast on the last word.",
    ]
    if words := weight_words(made.spec):
        weights = out.with_suffix(".weights.hex")
        write_text(weights, "".join(f"{word:04x}\n" for word in words))
        header.append(
            f"// s_axis_weights: the {len(words)} words of {weights.name} in order, once, before any pixel is taken; tlast with the last."
        )
    write_text(out, "\n".join(header) + "\n" + to_verilog(AxiCore(made.spec), module))
    click.echo(f"{out}: module {module}")


@main.command()
@_planning
@click.option("--images", "count", type=click.IntRange(1), default=20, show_default=True, help="How many images.")
@click.option("--stage", type=click.Choice(["rtl", "synth", "route", "bitstream"]), default="rtl", show_default=True,
              help="The core; or the whole board, as synthesis or routing left it, or unpacked from an iCE40's bitstream.")  # fmt: skip
@click.option("--simulator", type=click.Choice(["verilator", "icarus"]), default="verilator", show_default=True)
@click.option(
    "--stall", type=click.FloatRange(0, 0.9), default=0.0, show_default=True, help="Chance that a stream stands still in a cycle."
)
@click.option("--seed", type=int, default=1, show_default=True, help="Of the stalls.")
@click.option("--vcd", type=click.Path(path_type=Path), help="Write every signal's changes here.")
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the simulator's files [default: build/<net>-<board>-sim].")
@_json
def sim(
    planning: Planning,
    count: int,
    stage: str,
    simulator: str,
    stall: float,
    seed: int,
    vcd: Path | None,
    work: Path | None,
    as_json: bool,
) -> None:
    """Hold the gates to the reference: every count (with --code spike every spike in every step) of every neuron, every logit, the class.

    Of a netlist (--stage), which is driven by the board's pins: every logit and the class, and the cycles against the RTL's. It is that of
    build/<net>-<board>, if it was built from the same; else it is built first.

    \b
    Examples:
      python -m rtl_gen sim --images 200
      python -m rtl_gen sim --net examples/digits_mlp.pt --board icebreaker --stall 0.3 --json
      python -m rtl_gen sim --net examples/digits_mlp.pt --board icebreaker --stage route --images 5
    """
    if vcd is not None and simulator != "verilator":
        raise CascError(f"vcd: {simulator} does not write one here; use verilator")
    if stage != "rtl":
        if simulator != "verilator" or stall or vcd is not None:
            raise CascError(f"stage: {stage} runs on verilator, without stalls or a VCD; leave --simulator, --stall and --vcd out")
        _sim_netlist(planning, count, stage, work, as_json)
        return
    net, board, made, images, _labels = _plan(planning, count, anyway=True)
    work = work or planning.folder(net, board, "-sim")
    if vcd is not None:
        _folder(vcd.parent)
    with _progress(as_json) as progress:
        progress(f"simulating {len(images)} images on {simulator}")
        result = _simulate(net, made, images, work, simulator=simulator, stall=stall, seed=seed, vcd=vcd)
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        spiking, steps = made.code == "spike", result.sleep_steps
        spread = "min {0.min}, median {0.median:g}, max {0.max}"
        _table(
            f"{net.name} in {made.code} code on {simulator}, lanes planned for {made.budget.name}",
            [
                ("images", str(result.images)),
                ("spikes compared" if spiking else "counts compared", f"{result.spikes_compared:,}"),
                ("mismatches", str(result.mismatches)),
                ("cycles per image, back to back", spread.format(result.cycles)),
                ("latency in cycles, one at a time", spread.format(result.latency)),
                ("predicted (median)", f"{made.prediction.interval:g} between images, {made.prediction.latency:g} latency"),
                *[("sleep steps", spread.format(steps))] * spiking,
                ("compiling, running", f"{result.compile_seconds} s, {result.run_seconds} s"),
            ],
        )
    _equal(result, planning)


def _sim_netlist(planning: Planning, count: int, stage: str, work: Path | None, as_json: bool) -> None:
    """Hold a build's netlist to the reference."""
    from boards.top import link_spec
    from sim.netlist import run_netlist

    net, board, made, images, _labels = _plan(planning, count)
    work = work or planning.folder(net, board, "-netlist")
    with _progress(as_json) as progress:
        result = run_netlist(
            net, made.spec, link_spec(made, board.source_hz), board, images, stage, work, planning.folder(net, board), progress
        )
    if as_json:
        click.echo(json.dumps(result.as_json()))
    else:
        _table(
            f"{net.name} in {made.code} code on {board.name}, {stage}",
            [
                ("netlist of", result.folder),
                ("images", str(result.images)),
                ("sums, classes, cycles compared", f"{result.compared:,}"),
                ("mismatches", str(result.mismatches)),
                ("cycles of an image", f"{min(result.cycles)} to {max(result.cycles)}" if result.cycles else "none"),
                ("seconds", ", ".join(f"{name} {spent}" for name, spent in result.seconds.items())),
            ],
        )
    _equal(result, planning, f" --stage {stage} --board {board.name}")


@main.command()
@click.option("--only", multiple=True, metavar="NAME", help="This property; may be given again.")
@click.option("--fast", is_flag=True, help="The subset that takes less than a minute.")
@_json
def prove(only: tuple[str, ...], fast: bool, as_json: bool) -> None:
    """Prove the gates' parts formally: what holds on every path, whatever comes in and whatever the back-pressure.

    \b
    Examples:
      python -m rtl_gen prove
      python -m rtl_gen prove --fast --json
      python -m rtl_gen prove --only skid --only divider-seven
    """
    from rtl_gen.prove import run as run_proofs
    from rtl_gen.prove import select

    chosen = select(only, fast)
    with _progress(as_json) as progress:
        outcomes = list(run_proofs(chosen, progress))
    if as_json:
        click.echo(json.dumps([outcome.as_json() for outcome in outcomes]))
    else:
        rows = [(of.name, of.claim, of.engine, of.reach, of.depth, of.seconds) for of in outcomes]
        _grid(("property", "claim", "engine", "holds", "induction", "seconds"), rows)
    if bad := [outcome for outcome in outcomes if outcome.verdict not in ("proved", "bounded")]:
        claims = f": {'; '.join(bad[0].failed)}" if bad[0].failed else ""
        raise CascError(
            f"prove: {len(bad)} of {len(outcomes)} properties are not proved, the first: {bad[0].name} {bad[0].reach}{claims}; "
            f"repeat with `python -m rtl_gen prove --only {bad[0].name}` and report it"
        )


@main.command("fuzz")
@click.option("--cases", type=click.IntRange(1), default=100_000, show_default=True, help="In all.")
@click.option("--seed", type=int, default=0, show_default=True, help="With a case's number it makes the case.")
@click.option("--only", multiple=True, metavar="TARGET", help="file, host, gates, cli or upset; may be given again.")
@click.option("--case", type=click.IntRange(0), help="This one only.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/fuzz"), show_default=True, help="Folder for files.")
@_json
def fuzz_all(cases: int, seed: int, only: tuple[str, ...], case: int | None, work: Path, as_json: bool) -> None:
    """Hostile files, wires and command lines, and upsets of the gates' state: seeded cases, none of which may do harm.

    \b
    Examples:
      python -m rtl_gen fuzz
      python -m rtl_gen fuzz --only file --cases 1000 --json
      python -m rtl_gen fuzz --only file --case 123 --seed 0
    """
    import logging
    import warnings

    from sim.fuzz import fuzz

    warnings.simplefilter("ignore")  # torch's, of what the files hold
    logging.disable()
    with _progress(as_json) as progress:
        outcomes = list(fuzz(only, cases, seed, case, work, progress))
    if as_json:
        click.echo(json.dumps([outcome.as_json() for outcome in outcomes]))
    else:
        rows = []
        for outcome in outcomes:
            verdicts = ", ".join(f"{count:,} {verdict}" for verdict, count in outcome.verdicts.most_common())
            numbers = (f"{outcome.failed:,}", f"{outcome.seconds:g}", f"{outcome.grown / (1 << 20):.0f} MiB")
            rows.append((outcome.target, f"{outcome.cases:,}", verdicts, *numbers))
        _grid(("target", "cases", "what became of them", "failures", "seconds", "grown by"), rows)
    if bad := [(outcome.target, failure) for outcome in outcomes for failure in outcome.failures]:
        target, failure = bad[0]
        raise CascError(
            f"fuzz: {sum(outcome.failed for outcome in outcomes)} cases failed, the first of {target}: {' '.join(failure.what.split())}; "
            f"repeat with `python -m rtl_gen fuzz --only {target} --case {failure.case} --seed {seed}` and report it"
        )


@main.command()
@click.option("--cases", type=click.IntRange(1), default=50, show_default=True, help="Networks; each is run in both codes unless --code.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="The first network's; the others' follow.")
@click.option("--code", type=click.Choice(["spike", "count"]), help="Only in this code.")
@click.option("--case", "number", type=click.IntRange(0), help="Run one network, as a failure tells.")
@click.option("--stall", type=click.FloatRange(0, 0.95), help="Probability that a stream stands still in a cycle [default: drawn].")
@click.option("--image", type=click.IntRange(0, 2), help="Only this one of the three images.")
@click.option("--fix", "fixed", multiple=True, metavar="WHAT=N", help="Something of the network that is not drawn; may be given again.")
@_json
def breadth(
    cases: int,
    seed: int,
    code: str | None,
    number: int | None,
    stall: float | None,
    image: int | None,
    fixed: tuple[str, ...],
    as_json: bool,
) -> None:
    """Hold random networks, lanes and back-pressure to the reference, and make a case that fails as small as it gets.

    \b
    Examples:
      python -m rtl_gen breadth
      python -m rtl_gen breadth --cases 1000 --seed 5000 --code spike --json
      python -m rtl_gen breadth --case 17 --code count --stall 0 --fix layers=1 --fix levels=2
    """
    from casc_hw.cli import pairs
    from sim.breadth import FIXED, Case, run, shrink

    given = dict(pairs("fix", fixed))
    for name, value in given.items():
        if name not in FIXED or value < 1:
            raise CascError(f"fix: {name}={value} is not one of {', '.join(FIXED)}, from 1; leave it out")
    seeds = range(seed, seed + cases) if number is None else [number]
    codes: Any = ["spike", "count"] if code is None else [code]
    compared = done = 0
    with _progress(as_json) as progress:
        for case in (Case(of, code, stall, image, tuple(sorted(given.items()))) for of in seeds for code in codes):
            progress(f"network {case.seed} in {case.code} code")
            values, wrong = run(case)
            compared, done = compared + values, done + 1
            if wrong:
                progress(f"making {case.command} smaller")
                smallest, wrong = shrink(case, wrong)
                raise CascError(f"breadth: {wrong}, after {done - 1} cases that were right; repeat with `{smallest.command}` and report it")
    if as_json:
        click.echo(json.dumps({"cases": done, "compared": compared, "mismatches": 0}))
    else:
        click.echo(f"{done} cases, {compared:,} values compared, 0 mismatches")


@main.command()
@click.option("--count", type=click.IntRange(1), default=320, show_default=True, help="Mutants in all, as many of each design.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Which are drawn.")
@click.option("--only", multiple=True, metavar="DESIGN", help="Of this design, as dense-spike; may be given again.")
@click.option("--mutant", "number", type=click.IntRange(1), help="Only the one of this number, of the design of --only.")
@click.option("--least", type=click.FloatRange(0, 100), default=95, show_default=True, help="Percent that must be killed.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/mutants"), show_default=True, help="Folder for files.")
@_json
def mutate(count: int, seed: int, only: tuple[str, ...], number: int | None, least: float, work: Path, as_json: bool) -> None:
    """Spoil the gates in one place at a time, and see whether the bench notices.

    \b
    Examples:
      python -m rtl_gen mutate
      python -m rtl_gen mutate --count 80 --seed 1 --json
      python -m rtl_gen mutate --only dense-spike --mutant 3
    """
    from sim.mutation import DESIGNS, rate
    from sim.mutation import run as run_mutants

    known = {design.name: design for design in DESIGNS}
    if unknown := [of for of in only if of not in known]:
        raise CascError(f"only: {unknown[0]!r} is not one of {', '.join(known)}; name one of them")
    if number is not None and len(only) != 1:
        raise CascError(f"mutant: {number} of which design? name one with --only")
    designs = [known[of] for of in only or known]
    share = -(-count // len(DESIGNS))
    _folder(work)
    with _progress(as_json) as progress:
        verdicts = list(run_mutants(share, seed, work, designs, number, progress))
    if not verdicts:
        raise CascError(f"mutant: {number} is not one of the {share} of {only[0]}; choose a smaller one")
    outcomes = ("wrong", "silent", "slow", "equivalent", "survived")
    rows: dict[str, list[Any]] = {}
    for label, chosen in [(of.name, [v for v in verdicts if v.mutant.design == of.name]) for of in designs] + [("all", verdicts)]:
        rows[label] = [len(chosen), *(sum(of.outcome == outcome for of in chosen) for outcome in outcomes), round(100 * rate(chosen), 1)]

    def again(of: Any) -> str:
        return f"python -m rtl_gen mutate --count {count} --seed {seed} --only {of.mutant.design} --mutant {of.mutant.number}"

    if as_json:
        fields = ("mutants", *outcomes, "killed_percent")
        said = [{"where": of.mutant.where, "outcome": of.outcome, "message": of.message, "again": again(of)} for of in verdicts]
        click.echo(json.dumps({"designs": {label: dict(zip(fields, row, strict=True)) for label, row in rows.items()}, "mutants": said}))
    else:
        _grid(("design", "mutants", *outcomes, "killed"), [(label, *row[:-1], f"{row[-1]} %") for label, row in rows.items()])
        for of in verdicts if number else [of for of in verdicts if of.outcome == "survived"]:
            click.echo(f"{of.outcome}: {of.mutant.where}{': ' * bool(of.message)}{of.message}\n  {again(of)}")
    if 100 * rate(verdicts) < least:
        raise CascError(f"mutate: {rows['all'][-1]} % are killed, of which {least:g} % must be; strengthen the bench where mutants survive")


@main.command()
@click.option("--cases", type=click.IntRange(1), default=6, show_default=True, help="Networks; each is run in both codes.")
@click.option("--seed", type=click.IntRange(0), default=1, show_default=True, help="The first network's; the others' follow.")
@click.option("--least", type=click.FloatRange(0, 100), default=0, show_default=True, help="Percent that must be covered.")
@click.option("--work", type=click.Path(path_type=Path), default=Path("build/coverage"), show_default=True, help="Folder for files.")
@_json
def coverage(cases: int, seed: int, least: float, work: Path, as_json: bool) -> None:
    """Lines and bits of the gates that simulations of random networks reach, by kind of module, and those that none does.

    \b
    Examples:
      python -m rtl_gen coverage
      python -m rtl_gen coverage --cases 2 --seed 21 --json
    """
    from sim.coverage import measure, summary

    _folder(work)
    with _progress(as_json) as progress:
        points = measure(range(seed, seed + cases), work, progress)
    rows = summary(points)
    if as_json:
        holes = sorted(f"{point.kind}: {point.place}" for point, hit in points.items() if not hit)
        click.echo(json.dumps({"kinds": rows, "holes": holes}))
    else:
        numbers = ("lines", "covered", "bits", "toggled")
        shown = [(kind, *(row[of] for of in numbers), " ".join(row["holes"])) for kind, row in rows.items()]
        _grid(("module", *numbers, "holes"), shown)
    total = rows["all"]
    share = 100 * (total["covered"] + total["toggled"]) / max(total["lines"] + total["bits"], 1)
    if share < least:
        raise CascError(f"coverage: {share:.1f} % is covered, of which {least:g} % must be; run more networks (--cases)")


@main.command()
@click.argument("folder", type=click.Path(path_type=Path), required=False)
def report(folder: Path | None) -> None:
    """Write a build folder's report again from what the build left there.

    \b
    Examples:
      python -m rtl_gen report build/mnist_mlp-ulx3s-85f
    """
    from casc_hw.data import DEFAULT_NET, load_images
    from casc_hw.network import IntegerNet
    from rtl_gen.report import write_report

    folder = folder or Path("build") / f"{DEFAULT_NET.stem}-ulx3s-85f"
    said = {}
    for part in ("plan", "build", "sim"):
        try:
            said[part] = json.loads((folder / f"{part}.json").read_text())
        except FileNotFoundError:
            if part != "sim":
                raise CascError(f"{folder}: holds no {part}.json; build the network there first") from None
        except ValueError as error:
            raise CascError(f"{folder / part}.json: damaged ({error}); build again") from error
    import boards

    net = IntegerNet.load(folder / "net.pt")
    images, labels, _where = load_images(net, None, DEFAULT_NET.with_name(f"{net.name}.pt"))
    from rtl_gen.lower import Lanes
    from rtl_gen.plan import plan_of

    try:
        lanes = [Lanes(**lane) for lane in said["plan"]["lanes"]]
        made = plan_of(
            net,
            boards.get(said["build"]["board"]).budget,
            lanes,
            said["plan"]["beat"],
            said["plan"]["code"],
            said["plan"]["queue"],
            said["plan"]["spram"],
            images=images,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise CascError(f"{folder / 'plan'}.json: of another release, or damaged ({error!r}); build again") from error
    write_report(folder, net, made, images=images, labels=labels, build=said["build"], sim=said.get("sim"))
    click.echo(str(folder / "report.html"))


@main.command("boards")
@_json
def list_boards(as_json: bool) -> None:
    """The boards, and what their devices have to give."""
    import boards

    if as_json:
        click.echo(
            json.dumps(
                [
                    {**board.budget.__dict__, "name": board.name, "device": board.budget.name, "title": board.title}
                    for board in boards.all_boards()
                ]
            )
        )
        return
    rows = []
    for board in boards.all_boards():
        budget = board.budget
        rams = f"{budget.block_rams} x {budget.block_ram_bits // 1024} Kbit"
        rows.append((board.name, budget.name, budget.lut4, rams, budget.dsps, f"{board.source_hz / 1e6:g} MHz"))
    _grid(("board", "device", "LUT4", "block RAMs", "DSPs", "oscillator"), rows, width=None)
    click.echo("ulx3s is the ulx3s-85f.")


main.add_command(convert_command("python -m rtl_gen"))


@main.command()
@click.option("--port", required=True, help="Serial port of the board, or the terminal that `serve` names.")
@click.option("--net", "net_path", type=click.Path(path_type=Path), help="Refuse a board that carries another network.")
@click.option("--baud", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--timeout", type=float, default=2.0, show_default=True, help="Seconds to wait for an answer, four times.")
@click.option("--images", "count", type=click.IntRange(1), help="Only the first so many.")
@_json
@click.argument("images", type=click.Path(path_type=Path))
def run(port: str, net_path: Path | None, baud: int, timeout: float, count: int | None, as_json: bool, images: Path) -> None:
    """Ask a board. IMAGES: .npy of one image or a batch, or .npz with 'images'; integer pixels.

    \b
    Examples:
      python -m rtl_gen run --port /dev/ttyUSB0 image.npy
      python -m rtl_gen run --port /dev/ttyUSB0 --net examples/mnist_mlp.pt --images 20 examples/mnist_mlp_images.npz
    """
    from boards.host import Host
    from casc_hw.data import load_array

    network = None
    if net_path is not None:
        from casc_hw.network import IntegerNet

        network = IntegerNet.load(net_path)
    array = load_array(images)
    with Host(port, baud=baud, timeout=timeout, network=network) as host:
        array = array[None] if host.info.input_shape in (array.shape, (1, *array.shape)) else array
        answers = []
        for index, answer in enumerate(host.run_all(array[:count])):
            plain = {
                "image": index,
                "class": answer.class_index,
                "logits": answer.logits.tolist(),
                "cycles": answer.cycles,
                "sleep_steps": answer.sleep_steps,
            }
            answers.append(plain)
            if not as_json:
                spent = f"{answer.cycles} cycles, {answer.sleep_steps} sleep steps"
                click.echo(f"image {index}: class {answer.class_index}, {spent}, logits {plain['logits']}")
    if as_json:
        click.echo(json.dumps(answers))


@main.command()
@_planning
@click.option("--link", "symlink", type=click.Path(path_type=Path), help="Make this a symbolic link to the terminal.")
@click.option("--mhz", type=click.FloatRange(1), default=80.0, show_default=True, help="The core's clock, beside the oscillator's.")
@click.option("--baud", type=click.IntRange(1), default=1_000_000, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), help="Folder for the simulator's files [default: build/<net>-<board>-board].")
def serve(planning: Planning, symlink: Path | None, mhz: float, baud: int, work: Path | None) -> None:
    """The whole board, UART pins and all, in Verilator behind a pseudo-terminal, until Ctrl-C.

    \b
    Examples:
      python -m rtl_gen serve --net examples/digits_mlp.pt --link /tmp/board &
      python -m rtl_gen run --port /tmp/board examples/digits_mlp_images.npz
    """
    from boards.top import link_spec
    from rtl_gen.gates.core import Core
    from sim.virtual_board import build_virtual_board, running

    net, board, made, _images, _labels = _plan(planning)
    spec = link_spec(made, board.source_hz, baud)
    work = work or planning.folder(net, board, "-board")
    with _progress(False) as progress:
        progress(f"compiling the virtual {board.name}")
        executable = build_virtual_board(Core(made.spec), spec, work, int(board.source_hz), int(mhz * 1e6))
    with running(executable, symlink) as terminal:
        click.echo(f"{net.name} on a virtual {board.name}: {symlink or terminal} ({baud} baud in simulated time). Ctrl-C ends it.")
        sys.stdout.flush()
        _wait()


def _wait() -> None:
    """Until somebody ends us."""
    import signal

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    try:
        while True:
            signal.pause()
    except KeyboardInterrupt:
        click.echo("", err=True)


def _plan(planning: Planning, count: int | None = None, anyway: bool = False) -> tuple[Any, Any, Any, Any, Any]:
    """Network, board, plan, images (the first ``count``) and labels for a verb's options; ``anyway``: also of a network too large."""
    import torch

    import boards
    from casc_hw.data import DEFAULT_NET, enough, load_images
    from casc_hw.network import IntegerNet
    from rtl_gen.plan import Options, TooLarge, make_plan

    board = boards.get(planning.board_name)
    lanes, max_lut = dict(_lanes(planning.lanes)), _luts(planning.max_lut, board.budget.lut4)
    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    net_path = planning.net_path or DEFAULT_NET
    net = IntegerNet.load(net_path)
    images, labels, where = load_images(net, planning.data, net_path)
    enough(images, count, where)
    code: Any = planning.code
    options = Options(code, lanes, planning.max_share, max_lut, planning.fastest, planning.target_fps)
    larger = {other.name: other.budget for other in boards.all_boards()}
    try:
        made = make_plan(net, board.budget, options, images=images, larger=larger)
    except TooLarge as error:
        if not anyway:
            raise
        click.echo(f"note: {error}; planned as for a device {LARGER} times as large", err=True)
        made = make_plan(net, board.budget.times(LARGER), options, images=images)
    return net, board, made, images[:count], None if labels is None else labels[:count]


def _simulate(net: Any, plan: Any, images: Any, work: Path, **options: Any) -> Any:
    from sim.runner import run_bench

    return run_bench(net, plan.spec, images, work, **options)


def _equal(result: Any, planning: Planning, options: str = "") -> None:
    """A mismatch is an error."""
    if result.mismatches:
        raise CascError(
            f"simulation: {result.mismatches} mismatches with the reference, the first: {result.messages[0]}; "
            f"repeat with `{planning.again()}{options}` and report it"
        )


def _lanes(texts: tuple[str, ...]) -> Iterator[tuple[str, tuple[int, int | None]]]:
    for text in texts:
        name, _, lanes = text.rpartition("=")
        synapses, _, neurons = lanes.partition("x")
        if not name or not synapses.isdecimal() or not (neurons.isdecimal() or "x" not in lanes):
            raise click.UsageError(f"--lanes: {text!r} is not LAYER=N or LAYER=NxM")
        yield name, (int(synapses), int(neurons) if neurons else None)


def _luts(text: str | None, available: int) -> int | None:
    """LUT4s that ``text`` allows."""
    if text is None:
        return None
    try:
        return int(float(text[:-1]) / 100 * available) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        raise click.UsageError(f"--max-lut: {text!r} is not a number, nor a share as in 60%") from None


def _folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise CascError(f"{path}: cannot be made: {error.strerror}; choose another place") from error


def _grid(columns: Iterable[str], rows: Iterable[Iterable[object]], width: int | None = 140) -> None:
    """A table on standard output, ``width`` characters wide where that is no terminal (None: as rich has it)."""
    from rich.console import Console
    from rich.table import Table

    table = Table(*columns)
    for row in rows:
        table.add_row(*map(str, row))
    Console(width=None if sys.stdout.isatty() else width).print(table)


@contextmanager
def _progress(quiet: bool) -> Iterator[Callable[[str], None]]:
    """Tell what is under way, with a clock, on standard error."""
    from rich.console import Console
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield (lambda message: None) if quiet else (lambda message: click.echo(f"... {message}", err=True))
        return
    with Progress(SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=False) as bar:
        tasks: list[Any] = []

        def tell(message: str) -> None:
            if tasks:
                bar.update(tasks[-1], total=1, completed=1)
            tasks.append(bar.add_task(message, total=None))

        yield tell
        if tasks:
            bar.update(tasks[-1], total=1, completed=1)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(prog_name="python -m rtl_gen")
