"""From gates to a bitstream, with the clock chosen by routing.

The design is placed and routed with the PLL at some frequency, no matter which: nextpnr weighs a path by its distance from the
slowest of its domain, so its outcome does not depend on the target (measured; it does on the seed). What routing met then decides: the
PLL's dividers are rewritten, in what nextpnr wrote, to the highest frequency not above it. Placement and routing stay as they are, so
the timing report and the bitstream are of one and the same routing.

How the dividers get there differs. An ECP5's are words of text in nextpnr's configuration (loading the routed netlist again loses the
constants at multipliers and block RAMs, with nextpnr 0.11). An iCE40's are scattered bits, so nextpnr loads the routed netlist with
the new dividers and writes the bits anew; they must equal the first ones everywhere but in the PLL's tiles.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Protocol

from amaranth.build.plat import Platform
from amaranth.hdl import Elaboratable

from casc_hw.errors import CascError
from rtl_gen import tools
from rtl_gen.budget import Budget
from rtl_gen.verilog import leave_collisions_open

ROUNDING = 0.999
"""nextpnr keeps periods in whole picoseconds and rounds a PLL's down, at most by this factor; the choice leaves room for it."""


class PllSetting(Protocol):
    """What :class:`boards.clock.Pll` is."""

    @property
    def hz(self) -> Any: ...
    @property
    def parameters(self) -> Any: ...


class Target(Protocol):
    """What :class:`boards.platform.Board` is. ``limit_hz`` is the fastest the device's clock tree may run."""

    @property
    def name(self) -> str: ...
    @property
    def family(self) -> str: ...
    @property
    def budget(self) -> Budget: ...
    @property
    def source_hz(self) -> float: ...
    @property
    def limit_hz(self) -> float: ...
    @property
    def nextpnr(self) -> tuple[str, ...]: ...

    def platform(self) -> Platform: ...
    def pll(self, wish_hz: float) -> Any: ...
    def mount(self, core: Any) -> Elaboratable: ...


@dataclass(frozen=True)
class _Flow:
    """A device family's tools, options and files; the ports of its PLL that carry the clocks; nextpnr's names for resources."""

    tools: tuple[str, str, str]
    synthesis: str
    constraints: tuple[str, str]
    routed_option: str
    routed: str
    bitstream: str
    clock_ports: dict[str, str]
    resources: dict[str, str]


_UNINITIALISED = r"delete t:$meminit_v2 r:MEMID=\spram %i"
"""Drops the contents of memories called ``spram`` (see `rtl_gen.gates.spram`): SPRAM has none, and yosys would not use it."""

_FLOWS = {
    "ecp5": _Flow(
        ("yosys", "nextpnr-ecp5", "ecppack"),
        # Purged: with all of the names, yosys 0.70 fails an assertion after ABC for some designs.
        "synth_ecp5 -top top -run begin:map_luts\nopt_clean -purge\nsynth_ecp5 -top top -run map_luts:",
        ("--lpf", "top.lpf"),
        "textcfg",
        "config",
        ".bit",
        {"io": "CLKI", "sync": "CLKOS"},
        {"LUT4": "TRELLIS_COMB", "FF": "TRELLIS_FF", "block RAM": "DP16KD", "DSP": "MULT18X18D"},
    ),
    "ice40": _Flow(
        ("yosys", "nextpnr-ice40", "icepack"),
        f"{_UNINITIALISED}\nsynth_ice40 -device u -dsp -top top",
        ("--pcf", "top.pcf"),
        "asc",
        "asc",
        ".bin",
        {"io": "PLLOUTGLOBALA", "sync": "PLLOUTGLOBALB"},
        {"LUT4": "ICESTORM_LC", "block RAM": "ICESTORM_RAM", "DSP": "ICESTORM_DSP", "SPRAM": "ICESTORM_SPRAM"},
    ),
}


@dataclass(frozen=True)
class BuildResult:
    """One finished build. Frequencies in MHz, times in seconds, paths absolute.

    ``sync_mhz`` is what the PLL makes; ``fmax_mhz`` is what routing met in each clock domain. ``utilisation`` is (used, available)
    for LUT4, FF, block RAM and DSP; an iCE40's LUT4 are logic cells, each with a flip-flop inside. ``digest`` is that of everything
    the tools were given, ``bitstream_digest`` that of what came out; with equal ``tools`` the one decides the other.
    """

    board: str
    device: str
    bitstream: Path
    sync_mhz: float
    io_mhz: float
    fmax_mhz: dict[str, float]
    utilisation: dict[str, tuple[int, int]]
    seconds: dict[str, float]
    tools: dict[str, str]
    seed: int
    digest: str
    bitstream_digest: str
    logs: dict[str, Path]

    def as_json(self) -> dict[str, Any]:
        """Plain values, for ``json.dump``; files by their names within the build's folder."""
        plain = {field.name: getattr(self, field.name) for field in fields(self)}
        return plain | {"bitstream": self.bitstream.name, "logs": {step: log.name for step, log in self.logs.items()}}


def build(
    core: Any,
    board: Target,
    out_dir: Path,
    *,
    name: str = "top",
    seeds: Sequence[int] = (1,),
    progress: Callable[[str], None] = lambda message: None,
    finish: Callable[[Path, BuildResult], None] = lambda work, result: None,
) -> BuildResult:
    """Build ``core`` (see :class:`boards.platform.Core`) for ``board`` into the folder ``out_dir``, as ``<name>.bit`` or ``.bin``.

    Place and route runs once for each of nextpnr's ``seeds``, and the fastest ``sync`` is kept. ``progress`` is told, in words, what
    begins; ``finish`` may add to the folder before it appears under its name. The folder appears, or takes an older one's place, by
    a rename at the very end; until then an older one stays as it is.
    Raises :class:`CascError` if a tool is missing or fails, or if ``io`` or ``sync`` cannot run at a frequency the board makes; what
    had been written by then is kept beside, in ``<out_dir>-failed``.
    """
    out_dir = Path(out_dir).absolute()
    work = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.building")
    steps = _Build(core, board, work, name, seeds, progress)
    _tidy(out_dir)
    work.mkdir(parents=True)
    try:
        result = steps.run()
        finish(work, result)
    except CascError as error:
        failed = out_dir.with_name(f"{out_dir.name}-failed")
        shutil.rmtree(failed, ignore_errors=True)
        work.rename(failed)
        raise CascError(str(error).replace(str(work), str(failed))) from error
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    _replace(work, out_dir)
    moved = {step: out_dir / log.name for step, log in result.logs.items()}
    return BuildResult(
        **{field.name: getattr(result, field.name) for field in fields(result)}
        | {"bitstream": out_dir / result.bitstream.name, "logs": moved}
    )


def inputs(core: Any, board: Target) -> dict[str, str]:
    """What a build gives its tools, by the files' names in its folder: RTLIL, constraints and the yosys script."""
    flow = _FLOWS[board.family]
    plan = board.platform().prepare(board.mount(core), "top", emit_src=False)
    return {
        "top.il": leave_collisions_open(plan.files["top.il"]),
        flow.constraints[1]: plan.files[flow.constraints[1]],
        "top.ys": f"read_rtlil top.il\n{flow.synthesis}\nwrite_json top.json\n",
    }


def _tidy(out_dir: Path) -> None:
    """Remove what builds that are no longer alive left beside ``out_dir``, and put back a result that was caught between two renames."""
    for left in out_dir.parent.glob(f".{out_dir.name}.*"):
        if match := re.fullmatch(rf"\.{re.escape(out_dir.name)}\.(\d+)\.(building|replaced)", left.name):
            if int(match[1]) != os.getpid() and _alive(int(match[1])):
                continue
            if match[2] == "replaced" and not out_dir.exists():
                left.rename(out_dir)
            else:
                shutil.rmtree(left, ignore_errors=True)


def _alive(pid: int) -> bool:
    """Whether a process of that number is running."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _replace(work: Path, out_dir: Path) -> None:
    """Put ``work`` in ``out_dir``'s place, at one stroke where the system can exchange names."""
    if not out_dir.exists():
        work.rename(out_dir)
    elif _exchange(work, out_dir):
        _remove(work)
    else:
        replaced = out_dir.with_name(f".{out_dir.name}.{os.getpid()}.replaced")
        out_dir.rename(replaced)
        try:
            work.rename(out_dir)
        except BaseException:
            replaced.rename(out_dir)
            raise
        _remove(replaced)


def _exchange(one: Path, two: Path) -> bool:
    """Give two folders each other's name; False where the system (not Linux) or the file system cannot."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    return bool(renameat2(here, os.fsencode(one), here, os.fsencode(two), exchange) == 0)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


class _Build:
    """The steps of one build, inside its working folder. All file names are relative: YoWASP's tools see another /tmp than we do."""

    def __init__(self, core: Any, board: Target, work: Path, name: str, seeds: Sequence[int], progress: Callable[[str], None]):
        self.core, self.board, self.work, self.name, self.seeds, self.progress = core, board, work, name, tuple(seeds), progress
        self.flow = _FLOWS[board.family]
        self.device = [*board.nextpnr, *self.flow.constraints]
        self.tools = {tool: tools.find(tool) for tool in self.flow.tools}
        self.seconds: dict[str, float] = {}
        self.logs: dict[str, Path] = {}

    def run(self) -> BuildResult:
        yosys, _, pack = self.flow.tools
        digest = self.write_inputs()
        self.step("yosys", yosys, ["top.ys"], "synthesis")
        netlist = json.loads((self.work / "top.json").read_text())

        routings = {seed: self.place_and_route(netlist, seed) for seed in self.seeds}
        seed = max(routings, key=lambda seed: routings[seed]["sync"])
        fmax = routings[seed]
        for other in self.seeds:
            for file in self.work.glob(f"seed{other}.*"):
                if other != seed:
                    file.unlink()
                else:
                    file.rename(self.work / f"top.{file.name.split('.', 1)[1]}")
        if fmax["io"] < self.board.source_hz:
            raise CascError(
                f"io: routing met {fmax['io'] / 1e6:.2f} MHz, and the oscillator runs at {self.board.source_hz / 1e6:g} MHz; "
                f"try other seeds than {self.seeds}, or leave more of the device free"
            )
        pll = self.board.pll(min(ROUNDING * fmax["sync"], self.board.limit_hz))

        self.retune(netlist, pll)
        if self.fmax(netlist, "top.report.json")["sync"] < pll.hz:
            raise CascError(
                f"sync: the PLL makes {pll.hz / 1e6:.3f} MHz, more than the final timing allows; see {self.work / 'top.report.json'}"
            )
        routed, bitstream = f"top.{self.flow.routed}", self.work / (self.name + self.flow.bitstream)
        options = ["--compress", "--input", routed, "--bit"] if pack == "ecppack" else [routed]
        self.step("pack", pack, [*options, bitstream.name], f"bitstream, sync at {pll.hz / 1e6:.2f} MHz")
        result = BuildResult(
            board=self.board.name,
            device=self.board.budget.name,
            bitstream=bitstream,
            sync_mhz=pll.hz / 1e6,
            io_mhz=self.board.source_hz / 1e6,
            fmax_mhz={domain: hz / 1e6 for domain, hz in fmax.items()},
            utilisation=self.utilisation(netlist),
            seconds=self.seconds,
            tools={tool: found.version for tool, found in self.tools.items()},
            seed=seed,
            digest=digest,
            bitstream_digest=hashlib.sha256(bitstream.read_bytes()).hexdigest(),
            logs=self.logs,
        )
        (self.work / "build.json").write_text(json.dumps(result.as_json(), indent=2) + "\n")
        return result

    def write_inputs(self) -> str:
        """Write RTLIL, constraints and the yosys script; return the digest of all that decides the outcome."""
        given = inputs(self.core, self.board)
        for file, content in given.items():
            (self.work / file).write_text(content)
        settings = [self.board.nextpnr, self.board.source_hz, self.board.limit_hz, self.seeds]
        return hashlib.sha256(json.dumps([given, settings]).encode()).hexdigest()

    def step(self, step: str, tool: str, arguments: list[str], message: str) -> None:
        """Run one tool in the working folder, its output to a log, and raise with its own words if it fails."""
        self.progress(message)
        self.logs[step] = log = self.work / f"{step}.log"
        begin = time.monotonic()
        with log.open("w") as output:
            status = subprocess.run(
                [self.tools[tool].path, *arguments],
                cwd=self.work,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                check=False,
            ).returncode
        self.seconds[step] = round(time.monotonic() - begin, 2)
        if status != 0:
            lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
            said = next((line for line in lines if line.startswith("ERROR")), lines[-1] if lines else "nothing")
            raise CascError(f"{tool}: ended with status {status} and said {said!r}; see {log}")

    def place_and_route(self, netlist: dict[str, Any], seed: int) -> dict[str, float]:
        """Place and route with one seed; return what was met in ``io`` and ``sync``, in Hz."""
        self.step(
            f"route{seed}",
            self.flow.tools[1],
            [
                *self.device,
                "--json",
                "top.json",
                "--seed",
                str(seed),
                "--timing-allow-fail",
                "--report",
                f"seed{seed}.report.json",
                f"--{self.flow.routed_option}",
                f"seed{seed}.{self.flow.routed}",
                "--write",
                f"seed{seed}.routed.json",
            ],
            f"place and route, seed {seed}",
        )
        return self.fmax(netlist, f"seed{seed}.report.json")

    def fmax(self, netlist: dict[str, Any], report: str) -> dict[str, float]:
        """What was met in ``io`` and ``sync``, in Hz: of a report's clocks the one whose net bears a name of the PLL's wire."""
        clocks = json.loads((self.work / report).read_text())["fmax"]
        met = {}
        for domain, port in self.flow.clock_ports.items():
            wire = _pll_cell(netlist)["connections"][port]
            names = {name for name, net in netlist["modules"]["top"]["netnames"].items() if net["bits"] == wire}
            found = [float(clock["achieved"]) * 1e6 for net, clock in clocks.items() if net.removeprefix("$glbnet$") in names]
            if len(found) != 1:
                raise CascError(
                    f"{domain}: nextpnr timed {len(found)} clocks for this domain, not one, of {sorted(clocks)}; "
                    f"check that the core has registers in {domain!r}"
                )
            met[domain] = found[0]
        return met

    def retune(self, netlist: dict[str, Any], pll: PllSetting) -> None:
        """Give the routed design the PLL setting ``pll`` in place of the netlist's, and change nothing else."""
        routed = self.work / f"top.{self.flow.routed}"
        if self.board.family == "ecp5":
            routed.write_text(_retuned_config(routed.read_text(), _pll_cell(netlist)["parameters"], pll))
            return
        reload = self.work / "top.routed.json"
        design = json.loads(reload.read_text())
        parameters = _pll_cell(design)["parameters"]
        parameters |= {name: value if isinstance(value, str) else f"{value:0{len(parameters[name])}b}" for name, value in pll.parameters}
        reload.write_text(json.dumps(design))
        before = _tiles(routed.read_text())
        self.step(
            "retune",
            self.flow.tools[1],
            [
                *self.device,
                "--json",
                reload.name,
                "--no-pack",
                "--no-place",
                "--report",
                "top.report.json",
                f"--{self.flow.routed_option}",
                routed.name,
            ],
            f"the PLL set to {pll.hz / 1e6:.2f} MHz",
        )
        after = _tiles(routed.read_text())
        changed = [tile for tile in before.keys() | after.keys() if before.get(tile) != after.get(tile)]
        if not all(tile.startswith(".io_tile") for tile in changed):
            raise RuntimeError(f"loading the routed netlist again changed {sorted(changed)}, not only the PLL's tiles")

    def utilisation(self, netlist: dict[str, Any]) -> dict[str, tuple[int, int]]:
        """What the design takes of the device, from nextpnr's report."""
        report = json.loads((self.work / "top.report.json").read_text())["utilization"]
        count = {kind: (report[cell]["used"], report[cell]["available"]) for kind, cell in self.flow.resources.items()}
        if "FF" not in count:
            count["FF"] = sum(cell["type"].startswith("SB_DFF") for cell in _cells(netlist)), self.board.budget.ff
        return count


def _cells(netlist: dict[str, Any]) -> list[dict[str, Any]]:
    """The cells of a flat netlist in yosys' JSON."""
    return list(netlist["modules"]["top"]["cells"].values())


def _pll_cell(netlist: dict[str, Any]) -> dict[str, Any]:
    """The one PLL in a netlist of yosys or, once packed, of nextpnr."""
    (cell,) = [cell for cell in _cells(netlist) if cell["type"] in ("EHXPLLL", "SB_PLL40_2_PAD", "ICESTORM_PLL")]
    return cell


def _retuned_config(config: str, before: dict[str, str], pll: PllSetting) -> str:
    """An ECP5 configuration with the PLL's dividers replaced: 7-bit words, a divider less one, a phase as it is.

    ``before`` holds the parameters that nextpnr was given, in binary; that each is found as expected shows that the words are understood.
    """

    def word(name: str, value: int) -> str:
        return f"word: {name} {value - name.endswith('DIV'):07b}"

    tiles = config.split("\n\n")
    (number,) = [number for number, tile in enumerate(tiles) if "\nenum: MODE EHXPLLL" in tile]
    lines = tiles[number].splitlines()
    for name, value in pll.parameters:
        lines[lines.index(word(name, int(before[name], 2)))] = word(name, value)
    tiles[number] = "\n".join(lines)
    return "\n\n".join(tiles)


def _tiles(asc: str) -> dict[str, str]:
    """An iCE40 configuration by tile; their order has no meaning."""
    sections = re.split(r"^(\..*)\n", asc, flags=re.MULTILINE)
    return dict(zip(sections[1::2], sections[2::2], strict=True))
