"""Runs the bench of `sim.bench` on a core and an array of images, in Verilator or Icarus."""

from __future__ import annotations

import json
import os
import shutil
import statistics
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from cocotb_tools.runner import get_runner
from torch import Tensor

from casc_hw.errors import CascError
from casc_hw.network import IntegerNet
from casc_hw.vectors import save_vectors
from rtl_gen import tools
from rtl_gen.cycles import worst_cycles
from rtl_gen.gates.core import Core, CoreSpec, weight_words
from rtl_gen.verilog import to_verilog
from sim.bench import Job, Outcome, tap

SIMULATORS = ("verilator", "icarus")
ALONE = 10
"""At most so many images, and at most a tenth, run one by one, for their latency; the others back to back."""


def alone(images: int) -> int:
    """How many of so many images run one by one."""
    return min(ALONE, max(images // 10, 1))


@dataclass(frozen=True)
class Spread:
    """Smallest, median and largest of some integers."""

    min: int
    median: float
    max: int

    @classmethod
    def of(cls, values: list[int]) -> Spread | None:
        return cls(min(values), statistics.median(values), max(values)) if values else None


@dataclass(frozen=True)
class SimResult:
    """What a run compared and measured.

    Attributes
    ----------
    images: images run.
    spikes_compared: values compared: in spike code -1, 0, +1, one a layer, step and neuron; in count code final counts.
    mismatches: of these, logits, classes, status words; ``messages`` tells the first.
    cycles: between one result and the next, images back to back (of a single image: its latency).
    latency: from an image's first transfer to its last step, nothing else under way.
    sleep_steps: of each image.
    """

    images: int
    spikes_compared: int
    mismatches: int
    messages: list[str]
    cycles: Spread
    latency: Spread
    sleep_steps: Spread
    total_cycles: int
    simulator: str
    stall: float
    compile_seconds: float
    run_seconds: float

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def run_bench(
    net: IntegerNet,
    spec: CoreSpec,
    images: Tensor,
    work: Path,
    *,
    simulator: str = "verilator",
    stall: float = 0.0,
    seed: int = 1,
    vcd: Path | None = None,
    core: Core | None = None,
) -> SimResult:
    """Simulate ``images`` on the core of ``spec`` and compare with the reference of ``net``.

    ``work`` takes the simulator's files and is used again where the design is the same. ``stall`` is the probability that a
    stream stands still in a cycle. ``core`` stands in for the core that ``spec`` describes (mutants, in tests).
    A mismatch is in the result; CascError means that the simulation did not run.
    """
    if simulator not in SIMULATORS:
        raise CascError(f"simulator: {simulator!r} is not known; use one of {', '.join(SIMULATORS)}")
    if vcd is not None and simulator != "verilator":
        raise CascError(f"vcd: {simulator} does not write one here; use verilator")
    if simulator == "icarus" and shutil.which("iverilog") is None:
        raise CascError("icarus: iverilog is not on PATH; install it or use verilator")
    if len(images) == 0:
        raise CascError("images: there are none to simulate; give at least one")
    text = to_verilog(Core(spec, bench=True) if core is None else core, "core", undefined_collisions=True)
    return Bench(net, spec, images, work.resolve(), text, simulator, vcd).run(stall, seed)


class Bench:
    """``images`` of ``net`` and the module ``core``, Verilog ``text`` of what ``spec`` describes, compiled in ``work``.

    ``options``: further ones, of Verilator. ``quick``: compile in less time, run in more.
    """

    def __init__(
        self,
        net: IntegerNet,
        spec: CoreSpec,
        images: Tensor,
        work: Path,
        text: str,
        simulator: str = "verilator",
        vcd: Path | None = None,
        options: Sequence[str] = (),
        quick: bool = False,
    ):
        self.spec, self.images, self.work, self.simulator, self.vcd = spec, images, work, simulator, vcd
        work.mkdir(parents=True, exist_ok=True)
        source = work / "core.v"
        if not source.exists() or source.read_text() != text:
            source.write_text(text)
        self.words = weight_words(spec)
        (work / "weights.json").write_text(json.dumps(self.words))
        save_vectors(net, images, work / "vectors.npz", "count" if spec.counting else "spike")
        started = time.monotonic()
        with _environment(simulator):
            if quick:
                os.environ["MAKEFLAGS"] = f"{os.environ.get('MAKEFLAGS', '')} OPT_FAST=-O1 OPT_SLOW=-O0 OPT_GLOBAL=-O0"
            self.runner = get_runner(simulator)
            # cocotb makes every signal public, which keeps Verilator from optimising; only the ports need be.
            control = work / "public.vlt"
            control.write_text('`verilator_config\npublic_flat_rw -module "core" -port "*"\n')
            given = ["--no-public-flat-rw", "-O3", "-Wno-fatal", "-Wno-WIDTH", "--x-assign", "unique", "--x-initial", "fast", *options]
            _guard(
                lambda: self.runner.build(
                    sources=[control, source] if simulator == "verilator" else [source],
                    hdl_toplevel="core",
                    build_dir=work / f"{simulator}{'-vcd' if vcd else ''}",
                    build_args=given if simulator == "verilator" else ["-g2012"],
                    timescale=("1ns", "1ps"),
                    waves=vcd is not None,
                    log_file=work / "compile.log",
                ),
                work / "compile.log",
            )
        self.compile_seconds = round(time.monotonic() - started, 2)

    def run(self, stall: float = 0.0, seed: int = 1) -> SimResult:
        """All images once."""
        job = self._job(stall, seed)
        started = time.monotonic()
        self._simulate(job)
        said = json.loads(Path(job.outcome).read_text())
        latency = Spread.of(said["latency"][: job.alone]) or Spread.of(said["latency"]) or Spread(0, 0, 0)
        return SimResult(
            images=said["images"],
            spikes_compared=said["spikes_compared"],
            mismatches=said["mismatches"],
            messages=said["messages"],
            cycles=Spread.of(said["cycles"]) or latency,
            latency=latency,
            sleep_steps=Spread.of(said["sleep_steps"]) or Spread(0, 0, 0),
            total_cycles=said["total_cycles"],
            simulator=self.simulator,
            stall=stall,
            compile_seconds=self.compile_seconds,
            run_seconds=round(time.monotonic() - started, 2),
        )

    def mutants(self, numbers: Sequence[int], stall: float, burst: int, seed: int) -> list[Outcome | None]:
        """All images once for each of ``numbers`` at the port ``mutant`` (see `Job`); None: that mutant ends the simulator."""
        outcomes: list[Outcome | None] = []
        while left := list(numbers[len(outcomes) :]):
            job = replace(self._job(stall, seed), mutants=left, faults=True, burst=burst)
            self._simulate(job)
            said = [Outcome(**json.loads(line)) for line in Path(job.outcome).read_text().splitlines()]
            outcomes += said if len(said) == len(left) else [*said, None]
        return outcomes

    def _job(self, stall: float, seed: int) -> Job:
        spec = self.spec
        return Job(
            vectors=str(self.work / "vectors.npz"),
            outcome=str(self.work / "outcome.json"),
            beat=spec.pixels.beat,
            pixel_bits=spec.pixels.maximum.bit_length(),
            layers=[tap(spec, index) for index in range(len(spec.spiking))],
            streams=spec.streams,
            stall=stall,
            alone=alone(len(self.images)) if stall == 0 else 0,
            patience=int(worst_cycles(spec) * (1 if stall == 0 else 8 / (1 - stall))) + 1000,
            seed=seed,
            weights=str(self.work / "weights.json") if self.words else "",
        )

    def _simulate(self, job: Job) -> None:
        """Run ``job``; its outcome is in its file."""
        work, outcome, verilator = self.work, Path(job.outcome), self.simulator == "verilator"
        outcome.unlink(missing_ok=True)
        (work / "job.json").write_text(json.dumps(asdict(job)))
        with _environment(self.simulator, CASC_JOB=str(work / "job.json")):
            _guard(
                lambda: self.runner.test(
                    test_module="sim.bench",
                    hdl_toplevel="core",
                    test_dir=work,
                    results_xml=str(work / "results.xml"),
                    waves=self.vcd is not None,
                    plusargs=["+verilator+rand+reset+2", f"+verilator+seed+{job.seed % (1 << 31) + 1}"] if verilator else [],
                    test_args=["--trace-file", str(self.vcd.resolve())] if self.vcd is not None else [],
                    log_file=work / "run.log",
                ),
                work / "run.log",
                outcome,
            )


def _guard(run: Any, log: Path, outcome: Path | None = None) -> None:
    """Run a step of cocotb's runner; what it thinks of the outcome is not asked where the bench has written its own."""
    try:
        run()
    except (SystemExit, RuntimeError, OSError) as error:
        if outcome is None or not outcome.exists():
            raise CascError(f"simulation: {error}; see {log}") from error
    if outcome is not None and not outcome.exists():
        raise CascError(f"simulation: the bench ended without a verdict; see {log}")


@contextmanager
def _environment(simulator: str, **extra: str) -> Iterator[None]:
    """The process's environment changed for the simulator; cocotb's runner reads no other."""
    before = dict(os.environ)
    changed = tools.verilator_environment() if simulator == "verilator" else before
    os.environ.update(changed, **extra)
    os.environ.pop("PYTEST_CURRENT_TEST", None)  # else the runner raises on a failed bench in pytest, and only there
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
