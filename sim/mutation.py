"""Automatic mutants of the gates: yosys spoils a net or the port of a cell, and the bench has to notice.

``python -m rtl_gen mutate`` draws them over some of `sim.breadth`'s cases. All mutants of a design are compiled into one simulation, whose port
``mutant`` turns one of them on (0: none).
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from amaranth.back import rtlil

from casc_hw.errors import CascError
from rtl_gen import tools
from rtl_gen.gates.core import Core
from rtl_gen.verilog import leave_collisions_open
from sim.breadth import Case, draw_case
from sim.random_nets import random_images
from sim.runner import Bench, SimResult

DESIGNS: tuple[Case, ...] = tuple(Case(seed, code) for seed, code in ((4, "spike"), (5, "spike"), (9, "count"), (12, "count"), (13, "spike"), (3, "count")))
"""What is mutated: chains and graphs in both codes."""
IMAGES = 12
STALLS = (0.0, 0.3, 0.7)
_READ = "read_rtlil design.il\nproc\npmuxtree\nmemory_collect\nopt_expr\nopt_merge\nwreduce\nopt_expr -full\nopt_clean -purge\n"
_LIST = _READ + "select -set gates core* core.throttle* %d core/throttle* %d\nmutate -list {count} -seed {seed} -ctrl mutant 16 1 -o list.ys @gates\n"
_WRITE = _READ + "script list.ys\nopt_clean\nwrite_verilog -norename design.v\n"
_FIELDS = re.compile(r"-ctrl mutant 16 (?P<number>\d+) -mode (?P<mode>\S+) -module (?P<module>\S+) -cell (?P<cell>\S+) -port (?P<port>\S+) -portbit (?P<bit>\d+)(?: .*?-wire (?P<wire>\S+))?")


@dataclass(frozen=True)
class Mutant:
    """A change of one bit.

    Attributes
    ----------
    case: whose gates.
    number: 1 to the count of the case's mutants.
    mode: of yosys' ``mutate``: inv, const0, const1, cnot0 or cnot1 (inverted where another bit is 0, 1).
    where: module, cell, port and bit, and the net at it, as yosys calls them.
    """

    case: Case
    number: int
    mode: str
    where: str


@dataclass(frozen=True)
class Verdict:
    """``outcome``: another answer than the reference's, no answer, other cycles than without the mutant, or no difference."""

    mutant: Mutant
    outcome: Literal["wrong", "silent", "slow", "survived"]
    message: str

    @property
    def killed(self) -> bool:
        return self.outcome != "survived"


def mutate(case: Case, text: str, count: int, seed: int) -> tuple[list[Mutant], str]:
    """``count`` mutants of module ``core``, RTLIL ``text``; and Verilog that has them all. The bench's own throttles are left alone."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "design.il").write_text(text)
        for name, script in (("list", _LIST.format(count=count, seed=seed)), ("write", _WRITE)):
            Path(folder, f"{name}.sc").write_text(script)
            command = [tools.find("yosys").path, "-q", "-s", f"{name}.sc"]
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise RuntimeError(f"yosys could not mutate: {done.stdout}{done.stderr}")
        found = [match for line in Path(folder, "list.ys").read_text().splitlines() if (match := _FIELDS.search(line))]
        mutants = [
            Mutant(case, int(of["number"]), of["mode"], f"{of['module']} {of['cell']}.{of['port']}[{of['bit']}] {of['wire'] or ''}".rstrip())
            for of in found
        ]
        return mutants, Path(folder, "design.v").read_text()


def times(result: SimResult) -> tuple[object, ...]:
    """What a mutant may change besides the answer."""
    return result.total_cycles, result.cycles, result.latency


def judge(mutant: Mutant, without: Sequence[SimResult], got: Sequence[SimResult]) -> Verdict:
    """The verdict over runs at all of `STALLS`, without and with the mutant."""
    for one in got:
        if one.mismatches:
            silent = "no result within" in one.messages[0]
            return Verdict(mutant, "silent" if silent else "wrong", one.messages[0])
    for before, after in zip(without, got, strict=True):
        if times(before) != times(after):
            return Verdict(mutant, "slow", f"{after.total_cycles} cycles in place of {before.total_cycles}")
    return Verdict(mutant, "survived", "")


def run(count: int, seed: int, work: Path, designs: Sequence[Case] = DESIGNS) -> Iterator[Verdict]:
    """``count`` mutants, as many of each design, judged one after the other; files go below ``work``."""
    for index, case in enumerate(designs):
        share = (count + index) // len(designs)
        if not share:
            continue
        net, spec = draw_case(case.seed, case.code, **dict(case.fixed))
        text = leave_collisions_open(rtlil.convert(Core(spec, bench=True), name="core", emit_src=False))
        mutants, verilog = mutate(case, text, share, seed)
        bench = Bench(net, spec, random_images(net, IMAGES, case.seed), work / f"{case.seed}-{case.code}", verilog)
        without = [bench.run(stall, case.seed, 0) for stall in STALLS]
        if wrong := [message for result in without for message in result.messages]:
            raise CascError(f"mutate: the gates are wrong without a mutant: {wrong[0]}; report it")
        for mutant in mutants:
            got: list[SimResult] = []
            for stall in STALLS:
                got.append(bench.run(stall, case.seed, mutant.number))
                if got[-1].mismatches or times(got[-1]) != times(without[len(got) - 1]):
                    break
            yield judge(mutant, without[: len(got)], got)
