"""Automatic mutants of the gates: yosys spoils a bit of a cell's port, and the bench has to notice.

``python -m rtl_gen mutate`` draws them over some designs. All mutants of a design are compiled into one simulation,
whose port ``mutant`` turns one of them on (0: none). Those that no stimulus tells from the original are compared with it by proof.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from amaranth.back import rtlil

from casc_hw.errors import CascError
from casc_hw.network import IMAGE, IntegerNet
from rtl_gen import tools
from rtl_gen.gates.core import Core, CoreSpec
from rtl_gen.lower import Code, Lanes, core_spec
from rtl_gen.verilog import leave_collisions_open
from sim.bench import Outcome
from sim.random_nets import Builder, random_images
from sim.runner import Bench


@dataclass(frozen=True)
class Design:
    """A network of which all bits of the gates have something to do, as far as can be: T = 3 takes all two bits of a count, pixels all
    values that they can have, channels fill lanes, and wakes and sleeps come in turn.

    Attributes
    ----------
    name: for ``--only``.
    code: spike or count.
    seed: of weights, biases and thresholds: one with which most neurons take all counts, and take spikes back.
    shape: of the image.
    nodes: adds the network's to a builder.
    lanes: of the layers.
    sleep: as in `casc_hw.IntegerNet`.
    beat: pixels a transfer.
    """

    name: str
    code: Code
    seed: int
    shape: tuple[int, int, int]
    nodes: Callable[[Builder], None]
    lanes: tuple[Lanes, ...]
    sleep: int | None = None
    beat: int = 2

    def build(self) -> tuple[IntegerNet, CoreSpec]:
        """The network and its gates."""
        builder = Builder(random.Random(self.seed), {"levels": 3, "input_max": 3, "bits": 3, "input_shape": self.shape})
        self.nodes(builder)
        net = builder.net(self.name, 2, self.sleep)
        return net, core_spec(net, self.lanes, self.beat, self.code, queue=8)


def _dense(net: Builder) -> None:
    net.spiking("one", [net.dense(IMAGE, 4)])
    net.spiking("two", [net.dense("one", 4)])
    net.output([net.dense("two", 4)], 4)


def _maps(net: Builder) -> None:
    net.spiking("one", [net.convolve(IMAGE, 4, (3, 3), (1, 1), (1, 1), 1)])
    net.pool("pool", "one", "max", (2, 2), (2, 2), (0, 0))
    net.spiking("two", [net.convolve("pool", 4, (3, 3), (1, 1), (1, 1), 2)])
    net.output([net.dense("two", 2)], 4)


def _averages(net: Builder) -> None:
    net.spiking("one", [net.convolve(IMAGE, 2, (2, 2), (2, 2), (0, 0), 1)])
    net.pool("pool", "one", "average", (3, 2), (2, 2), (1, 0))
    net.spiking("two", [net.convolve("pool", 4, (3, 2), (1, 2), (1, 1), 1)])
    net.output([net.dense("two", 4)], 4)


def _shortcut(net: Builder) -> None:
    net.spiking("one", [net.convolve(IMAGE, 2, (1, 1), (1, 1), (0, 0), 1)])
    net.spiking("two", [net.convolve("one", 2, (3, 3), (1, 1), (1, 1), 1)])
    net.spiking("three", [net.convolve("two", 2, (2, 2), (2, 2), (0, 0), 1), net.convolve("one", 2, (2, 2), (2, 2), (0, 0), 1)])
    net.output([net.dense("three", 2)], 4)


DESIGNS: tuple[Design, ...] = (
    Design("dense-spike", "spike", 19, (4, 1, 1), _dense, (Lanes(4, 2), Lanes(2, 1), Lanes(2, 2))),
    Design("dense-count", "count", 19, (4, 1, 1), _dense, (Lanes(2, 2), Lanes(4, 2), Lanes(4, 4))),
    Design("maps-spike", "spike", 41, (2, 4, 4), _maps, (Lanes(4, 2), Lanes(2, 2), Lanes(2, 1)), 3),
    Design("maps-count", "count", 41, (2, 4, 4), _maps, (Lanes(2, 2), Lanes(4, 1), Lanes(2, 2)), beat=4),
    Design("averages-spike", "spike", 12, (1, 8, 8), _averages, (Lanes(2, 2), Lanes(2, 2, "logic"), Lanes(4, 2))),
    Design("averages-count", "count", 12, (1, 8, 8), _averages, (Lanes(2, 2, serial=True), Lanes(4, 2, "both"), Lanes(2, 2)), beat=4),
    Design("shortcut-spike", "spike", 55, (2, 4, 4), _shortcut, (Lanes(2, 2), Lanes(2, 2, serial=True), Lanes(2, 2), Lanes(2, 2))),
    Design("shortcut-count", "count", 55, (2, 4, 4), _shortcut, (Lanes(1, 1), Lanes(2, 2), Lanes(2, 1), Lanes(2, 2)), beat=1),
)
"""What is mutated: flat layers and maps, pools of both kinds, sums, a queue, engines a tap at a time, several passes, chunks and parts,
both codes, sleep until silence and bounded."""
IMAGES = 200
TICKETS = 4
"""Room for images under way; there are never as many as would fill a core's that is built."""
STALLS = ((0.0, 1), (0.5, 1), (0.5, 50))
"""Runs: of `Job`, ``stall`` and ``burst``."""
CYCLE_BITS = 10
"""From this bit on what has 32 or 33 bits is not mutated: cycle counters and what passes them on, as differences of cycles do not reach so
far; in words of a result these bits of sums are signs, which lower bits have, too."""
PROOF_SECONDS = 10
_FLAT = """read_rtlil design.il
hierarchy -top core
proc
flatten
pmuxtree
memory_collect
opt_mem
opt -full
wreduce
splitcells
opt -full
opt_clean -purge
delete t:$scopeinfo
write_rtlil flat.il
write_json flat.json
mutate -list {count} -seed {seed} -ctrl mutant 16 1 -o list.ys
"""
_SETTLED = (
    "memory_map -rom-only\n"
    + "opt_expr -full\nopt_dff -simple-dffe t:$dff\n" * 6  # as many as there are registers in a row that have but one value
    + "opt_expr -full\nsetattr -unset init w:*\n"
)
MEMORIES_IN_A_ROW = 4
"""Through so many a bit that nobody reads is followed to where it comes from."""
_FIELDS = re.compile(
    r"-mode (?P<mode>\S+) -module core -cell (?P<cell>\S+) -port (?P<port>\S+) -portbit (?P<bit>\d+)(?: -ctrlbit (?P<control>\d+))?"
    r"(?: -wire (?P<wire>\S+) -wirebit (?P<wirebit>\d+))?"
)
_BENCH = re.compile(r"\bthrottle_\d+\b")
_CYCLES = re.compile(r"\b(now|start|cycles)$")


@dataclass(frozen=True)
class Mutant:
    """A change of one bit.

    Attributes
    ----------
    design: the name of the `Design` that is changed.
    number: 1 to the count of the design's mutants.
    mode: of yosys' ``mutate``: inv, const0, const1, cnot0 or cnot1 (inverted where another bit is 0, 1).
    place: the options of ``mutate`` that tell cell, port and bit.
    where: the same in words, with the kind of cell and the net.
    """

    design: str
    number: int
    mode: str
    place: str
    where: str


@dataclass(frozen=True)
class Verdict:
    """``outcome``: another answer than the reference's; no answer; other cycles than without the mutant; no difference, and proved to have
    none; no difference."""

    mutant: Mutant
    outcome: Literal["wrong", "silent", "slow", "equivalent", "survived"]
    message: str

    @property
    def killed(self) -> bool:
        return self.outcome in ("wrong", "silent", "slow")


def rate(verdicts: Collection[Verdict]) -> float:
    """Share of the mutants killed, those that are proved to be none not counted; 1 of none."""
    left = [verdict for verdict in verdicts if verdict.outcome != "equivalent"]
    return sum(verdict.killed for verdict in left) / len(left) if left else 1.0


def draw(design: str, text: str, count: int, seed: int, folder: Path) -> tuple[list[Mutant], str]:
    """``count`` mutants (or all there are) of module ``core``, RTLIL ``text``, optimised as one module; and Verilog that has them all.

    Not drawn: what is the bench's own, and `CYCLE_BITS`. ``folder`` keeps files that `equivalent` needs.
    """
    (folder / "design.il").write_text(text)
    tools.run_yosys(_FLAT.format(count=3 * count + 20, seed=seed), folder)
    cells = json.loads((folder / "flat.json").read_text())["modules"]["core"]["cells"]
    mutants: list[Mutant] = []
    for line in (folder / "list.ys").read_text().splitlines():
        mutant = parse(design, len(mutants) + 1, line, cells)
        if mutant and len(mutants) < count and all(mutant.where != other.where for other in mutants):
            mutants.append(mutant)
    control = "".join(f"mutate -ctrl mutant 16 {mutant.number} -mode {mutant.mode} {mutant.place}\n" for mutant in mutants)
    tools.run_yosys(f"read_rtlil flat.il\n{control}opt_clean\nwrite_verilog -norename design.v\n", folder)
    return mutants, (folder / "design.v").read_text()


def parse(design: str, number: int, line: str, cells: Mapping[str, Any]) -> Mutant | None:
    """The mutant of a ``line`` of ``mutate -list``, ``cells`` as yosys' JSON has them; None: it is not one to be drawn."""
    found = _FIELDS.search(line)
    if not found:
        return None
    wire, bit = found["wire"] or "", int(found["bit"])
    cell = cells[found["cell"].removeprefix("\\")]
    width = len(cell["connections"][found["port"].removeprefix("\\")])
    if _BENCH.search(found["cell"]) or _BENCH.search(wire):
        return None
    counter = _CYCLES.search(wire)
    cycles = [(bit, width), (int(found["control"] or 0), width), (int(found["wirebit"] or 0), 32 if counter else 0)]
    if any(CYCLE_BITS <= index < 32 and size in (32, 33) for index, size in cycles):
        return None
    place = f"-module core -cell {found['cell']} -port {found['port']} -portbit {bit}"
    if found["control"]:
        place += f" -ctrlbit {found['control']}"
    net = f" ({wire}[{found['wirebit']}])" if wire else ""
    return Mutant(design, number, found["mode"], place, f"{found['mode']} {cell['type']} {found['cell']}.{found['port']}[{bit}]{net}")


def judge(mutant: Mutant, without: Sequence[Outcome], got: Sequence[Outcome | None]) -> Verdict:
    """The verdict over the same runs without and with the mutant."""
    for before, after in zip(without, got, strict=True):
        if after is None:
            return Verdict(mutant, "silent", "the simulation does not go on")
        if after.mismatches:
            return Verdict(mutant, "silent" if "no result within" in after.messages[0] else "wrong", after.messages[0])
        if before != after:
            return Verdict(mutant, "slow", f"{after.total_cycles} cycles in place of {before.total_cycles}")
    return Verdict(mutant, "survived", "")


def run(
    count: int,
    seed: int,
    work: Path,
    designs: Sequence[Design] = DESIGNS,
    number: int | None = None,
    tell: Callable[[str], None] = lambda message: None,
) -> Iterator[Verdict]:
    """The verdicts of ``count`` mutants of each design, or of the one with ``number``; files go below ``work``."""
    for design in designs:
        folder = work / design.name
        folder.mkdir(parents=True, exist_ok=True)
        tell(f"{design.name}: drawing mutants")
        net, spec = design.build()
        mutants, verilog = draw(design.name, rtlil_of(spec), count, seed, folder)
        images = random_images(net, IMAGES)
        images[2::4, images.shape[1] // 2 :] = 0  # those that `sim.bench` cuts short
        tell(f"{design.name}: compiling")
        bench = Bench(net, spec, images, (work / "bench").resolve(), verilog, quick=True)  # one for all: its objects are compiled once
        left = [mutant for mutant in mutants if number in (None, mutant.number)]
        without: list[Outcome] = []
        got: dict[Mutant, list[Outcome | None]] = {mutant: [] for mutant in left}
        for stall, burst in STALLS:
            tell(f"{design.name}: {len(left)} mutants, stall {stall:g} for {burst} cycles")
            first, *outcomes, last = bench.mutants([0, *(of.number for of in left), 0], stall, burst, seed)
            if first is None or first.mismatches or last != first:
                raise CascError(f"mutate: {design.name} is wrong without a mutant: {first and first.messages[:1]}; report it")
            without.append(first)
            for mutant, outcome in zip(left, outcomes, strict=True):
                got[mutant].append(outcome)
            left = [mutant for mutant in left if not judge(mutant, without, got[mutant]).killed]
        tell(f"{design.name}: proving of {len(left)} that they are none")
        proved = equivalent(left, folder)
        for mutant, outcomes in got.items():
            verdict = judge(mutant, without[: len(outcomes)], outcomes)
            yield replace(verdict, outcome="equivalent") if mutant in proved else verdict


def rtlil_of(spec: CoreSpec) -> str:
    """RTLIL of the core of ``spec`` with its bench's ports."""
    return leave_collisions_open(rtlil.convert(Core(spec, bench=True, tickets=TICKETS), name="core", emit_src=False))


def equivalent(mutants: Sequence[Mutant], folder: Path) -> set[Mutant]:
    """Those of ``mutants`` that are proved to do what the gates do: in any state, even one that is never reached, with any input, the
    outputs and what registers and memories take in are the same (SAT, at most `PROOF_SECONDS` each). Tables are logic; a register that
    takes the same in each cycle, whatever the state, has that, as it does once a few cycles have passed; bits of memories that nobody
    reads are none. ``folder``: of `draw`."""
    found: set[Mutant] = set()
    for settled in ("", _SETTLED):
        left = [mutant for mutant in mutants if mutant not in found]
        files = {f"gate_{mutant.number}": f"mutate -mode {mutant.mode} {mutant.place}" for mutant in left} | {"gold": ""}
        script = "read_rtlil flat.il\nsetattr -unset init w:*\ndesign -save flat\n"
        for file, change in files.items():
            script += f"design -load flat\n{change}\n{settled}dffunmap\nopt_clean\nwrite_json {file}.json\n"
        tools.run_yosys(script, folder)
        for _ in range(MEMORIES_IN_A_ROW):
            for file in files:
                _trim(folder / f"{file}.json")
            script = "".join(f"design -reset\nread_json {file}.json\nopt_clean\nwrite_json {file}.json\n" for file in files)
            tools.run_yosys(script, folder)
        ports = _cut(folder / "gold.json", "gold")
        asked = [mutant for mutant in left if _cut(folder / f"gate_{mutant.number}.json", "gate") == ports]
        script = "read_json gold.json\ndesign -save gold\n"
        for mutant in asked:
            script += (
                f"design -load gold\nread_json gate_{mutant.number}.json\nmiter -equiv -flatten gold gate miter\n"
                "hierarchy -top miter\nopt -full miter\n"
                f"tee -q -o proof_{mutant.number}.txt sat -prove trigger 0 -timeout {PROOF_SECONDS} miter\n"
            )
        tools.run_yosys(script, folder)
        found |= {mutant for mutant in asked if "model found: SUCCESS" in (folder / f"proof_{mutant.number}.txt").read_text()}
    return found


def _trim(path: Path) -> None:
    """Takes from the memories of the netlist at ``path`` the bits that nobody reads: they are written as 0."""
    netlist = json.loads(path.read_text())
    core = netlist["modules"]["core"]
    used = {bit for port in core["ports"].values() for bit in port["bits"]}
    for cell in core["cells"].values():
        for port, bits in cell["connections"].items():
            if cell["port_directions"][port] == "input":
                used.update(bits)
    for cell in core["cells"].values():
        if cell["type"] == "$mem_v2":
            read, write = cell["connections"]["RD_DATA"], cell["connections"]["WR_DATA"]
            width = int(str(cell["parameters"]["WIDTH"]), 2)
            for column in range(width):
                if used.isdisjoint(read[column::width]):
                    write[column::width] = ["0"] * len(write[column::width])
    path.write_text(json.dumps(netlist))


def _cut(path: Path, module: str) -> set[str]:
    """Takes registers and memories out of the netlist at ``path``, which becomes ``module``: what they give is an input of it, what they
    take an output. The names of its ports.

    What a memory is given counts only where it is enabled.
    """
    netlist = json.loads(path.read_text())
    core = netlist["modules"].pop("core")
    netlist["modules"] = {module: core}
    cells, ports = core["cells"], core["ports"]
    core["netnames"], core["memories"] = {}, {}
    fresh = 1 + max(bit for cell in cells.values() for bits in cell["connections"].values() for bit in bits if isinstance(bit, int))

    def masked(label: str, bits: list[Any], mask: list[Any]) -> list[int]:
        nonlocal fresh
        result = list(range(fresh, fresh + len(bits)))
        fresh += len(bits)
        parameters = {"A_SIGNED": 0, "B_SIGNED": 0, "A_WIDTH": len(bits), "B_WIDTH": len(bits), "Y_WIDTH": len(bits)}
        directions = {"A": "input", "B": "input", "Y": "output"}
        cells[label] = {"type": "$and", "parameters": parameters, "attributes": {}, "port_directions": directions,
                        "connections": {"A": bits, "B": mask, "Y": result}}  # fmt: skip
        return result

    for label, cell in list(cells.items()):
        memory = cell["type"] == "$mem_v2"
        if not memory and cell["type"] != "$dff":
            continue
        del cells[label]
        of = cell["connections"]
        if memory:
            for kind in ("WR", "RD"):
                data, enable, address = of[f"{kind}_DATA"], of[f"{kind}_EN"], of[f"{kind}_ADDR"]
                ways = len(of[f"{kind}_CLK"])
                each = [enable[way * len(enable) // ways] for way in range(ways)]  # a port's enables are one
                of[f"{kind}_ADDR"] = masked(f"{label}.{kind}.a", address, [bit for bit in each for _ in range(len(address) // ways)])
                if kind == "WR":
                    of["WR_DATA"] = masked(f"{label}.{kind}.d", data, enable)
        given = "RD_DATA" if memory else "Q"
        for port, bits in of.items():
            if bits and "CLK" not in port:
                ports[f"{label}.{port}"] = {"direction": "input" if port == given else "output", "bits": bits}
    path.write_text(json.dumps(netlist))
    return set(ports)
