"""Builds and simulates the example networks and prints what they cost: ``python -m benchmarks [--only NAME] [--images N]``.

Each row's figures are kept in ``benchmarks/results/<net>-<board>-<code>.json``; ``--kept`` prints those again without building, and
``--picture`` draws ``docs/occupancy.png`` from the reference's activity.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from casc_hw import IntegerNet
from casc_hw.data import load_images
from rtl_gen.cycles import measure as measure_activity
from rtl_gen.cycles import predict
from rtl_gen.lower import Lanes, core_spec
from sim.runner import alone

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True)
class Case:
    """One build: ``options`` of ``python -m rtl_gen build``; ``goal``: cycles between images that it is to stay below."""

    net: str
    board: str
    code: str
    options: tuple[str, ...] = ()
    goal: int | None = None

    @property
    def kept(self) -> Path:
        return RESULTS / f"{self.net}-{self.board}-{self.code}.json"


CASES = (
    Case("mnist_mlp", "ulx3s-85f", "count", ("--lanes", "hidden=128x4"), 250),
    Case("mnist_mlp", "ulx3s-85f", "spike", (), 700),
    Case("mnist_cnn_avg", "ulx3s-85f", "count", (), 2500),
    Case("mnist_cnn_avg", "ulx3s-85f", "spike", (), 12_000),
    Case("mnist_cnn_max", "ulx3s-85f", "count", (), 2500),
    Case("mnist_cnn_max", "ulx3s-85f", "spike", (), 12_000),
    Case("mnist_resnet", "ulx3s-85f", "count"),
    Case("lenet_up5k", "icebreaker", "count", ("--max-share", "0.9")),
    Case("digits_mlp", "icebreaker", "spike"),
)


def measure(case: Case, images: int) -> dict[str, Any]:
    """One build with its proof by simulation, as the command line's JSON."""
    command = [sys.executable, "-m", "rtl_gen", "build", "--net", f"examples/{case.net}.pt", "--board", case.board, "--code", case.code]
    command += [*case.options, "--prove", str(images), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{case.net} on {case.board}, {case.code} code: exit status {done.returncode}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said | {"model": modelled(case, said, images)}


def modelled(case: Case, said: dict[str, Any], images: int) -> float:
    """Interval by the cycle model for the very images that were simulated back to back; the plan's own is for the first few."""
    path, plan = ROOT / "examples" / f"{case.net}.pt", said["plan"]
    net = IntegerNet.load(path)
    activities = measure_activity(net, load_images(net, None, path)[0][:images], plan["code"])
    lanes = [Lanes(**lane) for lane in plan["lanes"]]
    spec = core_spec(net, lanes, plan["beat"], plan["code"], plan["queue"], plan["spram"])
    return predict(spec, activities[alone(images) :]).interval


HEAD = (
    "net", "board", "code", "cycles (model)", "goal", "bound", "of it", "latency", "MHz", "images/s", "LUT4 (plan)", "RAMs", "DSPs",
    "build s", "sim s",
)  # fmt: skip


def row(case: Case, said: dict[str, Any]) -> list[str]:
    """A line of the table; the bound is the larger of the plan's adders' and memory's and that of the events, see `rtl_gen.limits`."""
    plan, build, sim = said["plan"], said["build"], said["sim"]
    cycles, predicted = sim["cycles"]["median"], said["model"]
    lut4, estimated = build["utilisation"]["LUT4"][0], plan["resources"]["lut4"]
    limits = plan["bottleneck"]["limits"]
    bound = max(limits["plan"], limits["events"])
    return [
        plan["net"],
        build["board"],
        case.code,
        f"{cycles:,g} ({predicted / cycles - 1:+.0%})",
        "" if case.goal is None else f"{case.goal:,}",
        f"{bound:,.0f}",
        f"{bound / cycles:.0%}",
        f"{sim['latency']['median']:,g}",
        f"{build['sync_mhz']:.1f}",
        f"{build['sync_mhz'] * 1e6 / cycles:,.0f}",
        f"{lut4:,} ({estimated / lut4 - 1:+.0%})",
        str(build["utilisation"]["block RAM"][0]),
        str(build["utilisation"]["DSP"][0]),
        f"{sum(build['seconds'].values()):.0f}",
        f"{sim['compile_seconds']:.0f} + {sim['run_seconds']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="a network's name")
    parser.add_argument("--code", choices=("spike", "count"), help="only this code")
    parser.add_argument("--images", type=int, default=50, help="images simulated (default 50)")
    parser.add_argument("--kept", action="store_true", help="print kept results, build nothing")
    parser.add_argument("--picture", action="store_true", help="draw docs/occupancy.png and nothing else")
    options = parser.parse_args()
    if options.picture:
        from benchmarks.occupancy import draw

        draw(ROOT / "examples" / "mnist_cnn_avg.pt", ROOT / "docs" / "occupancy.png")
        return
    RESULTS.mkdir(exist_ok=True)
    print("| " + " | ".join(HEAD) + " |\n" + "|---" * len(HEAD) + "|")
    for case in CASES:
        if options.only not in (None, case.net) or options.code not in (None, case.code) or (options.kept and not case.kept.exists()):
            continue
        if not options.kept:
            case.kept.write_text(json.dumps(measure(case, options.images), indent=1))
        print("| " + " | ".join(row(case, json.loads(case.kept.read_text()))) + " |", flush=True)


if __name__ == "__main__":
    main()
