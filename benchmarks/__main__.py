"""Builds and simulates the example networks and prints what they cost: ``python -m benchmarks [--only NAME] [--images N]``.

Each row's figures are kept in ``benchmarks/results/<net>-<board>.json``; ``--kept`` prints those again without building.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
CASES = (("mnist_mlp", "ulx3s-85f"), ("digits_mlp", "icebreaker"), ("digits_mlp", "ulx3s-12f"))


def measure(net: str, board: str, images: int) -> dict[str, Any]:
    """One build with its proof by simulation, as the command line's JSON, without what differs from run to run by name only."""
    command = [sys.executable, "-m", "rtl_gen", "build", "--net", f"examples/{net}.pt", "--board", board, "--prove", str(images), "--json"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{net} on {board}: exit status {done.returncode}")
    said: dict[str, Any] = json.loads(done.stdout)
    return said


def row(said: dict[str, Any]) -> list[str]:
    """A line of the table."""
    plan, build, sim = said["plan"], said["build"], said["sim"]
    cycles, predicted = sim["cycles"]["median"], plan["prediction"]["interval"]
    lut4, estimated = build["utilisation"]["LUT4"][0], plan["resources"]["lut4"]
    return [
        plan["net"],
        build["board"],
        f"{cycles:g} ({predicted / cycles - 1:+.0%})",
        f"{sim['latency']['median']:g}",
        f"{build['sync_mhz']:.1f}",
        f"{build['sync_mhz'] * 1e6 / cycles:,.0f}",
        f"{lut4} ({estimated / lut4 - 1:+.0%})",
        str(build["utilisation"]["block RAM"][0]),
        str(build["utilisation"]["DSP"][0]),
        f"{sum(build['seconds'].values()):.0f}",
        f"{sim['compile_seconds']:.0f} + {sim['run_seconds']:.0f}",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--only", help="a network's name")
    parser.add_argument("--images", type=int, default=200, help="images simulated (default 200)")
    parser.add_argument("--kept", action="store_true", help="print kept results, build nothing")
    options = parser.parse_args()
    RESULTS.mkdir(exist_ok=True)
    head = ["net", "board", "cycles (plan)", "latency", "MHz", "images/s", "LUT4 (plan)", "RAMs", "DSPs", "build s", "sim s"]
    print("| " + " | ".join(head) + " |\n" + "|---" * len(head) + "|")
    for net, board in CASES:
        kept = RESULTS / f"{net}-{board}.json"
        if (options.only not in (None, net)) or (options.kept and not kept.exists()):
            continue
        if not options.kept:
            kept.write_text(json.dumps(measure(net, board, options.images), indent=1))
        print("| " + " | ".join(row(json.loads(kept.read_text()))) + " |", flush=True)


if __name__ == "__main__":
    main()
