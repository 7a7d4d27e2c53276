"""What of the gates simulations reach: Verilator's coverage of lines and of bits, merged over random networks.

Each design has its own modules, so what is merged is (kind of module, signal, bit), a kind being a name without numbers: ``neurons`` of
``n0_neurons``. A bit is toggled if it rises and falls in one module of its kind at least.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from casc_hw.errors import CascError
from rtl_gen.gates.core import Core
from rtl_gen.verilog import to_verilog
from sim.breadth import draw_case
from sim.random_nets import random_images
from sim.runner import Bench

IMAGES = 12
STALL = 0.3
_POINT = re.compile(r"^C '(?P<fields>.*)' (?P<count>\d+)$")
_ESCAPED = re.compile(r"__0([0-9A-Fa-f]{2})")  # how Verilator writes what is no letter
_BENCH = "throttle"


@dataclass(frozen=True, order=True)
class Point:
    """A statement, or a bit of a signal, of a kind of module; names without numbers of layers and lanes."""

    kind: str
    what: Literal["line", "toggle"]
    place: str


def kind_of(module: str) -> str:
    """The kind of a module: the last part of its name, without numbers; ``core`` of the whole."""
    return _plain(re.sub(r"^n\d+_", "", module.rsplit(".", 1)[-1]))


def _plain(name: str) -> str:
    """A name without the numbers that end its parts."""
    return re.sub(r"(?<=\w)_\d+(?=_|\b)", "", name)


def parse(text: str, source: Sequence[str]) -> dict[Point, bool]:
    """The points of a ``coverage.dat`` (see ``verilator_coverage``) of lines ``source``, and whether one of each was reached.

    A bit has two points in the file, an edge each. Left out: throttles, and signals that have but a number of Amaranth's for a name.
    """
    edges: dict[tuple[Point, str], list[bool]] = defaultdict(list)
    for line in text.splitlines():
        if not (match := _POINT.match(line)):
            continue
        of = dict(field.split("\x02", 1) for field in match["fields"].split("\x01") if field)
        page, _, module = of["page"].partition("/")
        kind, hit, where = kind_of(module), int(match["count"]) > 0, of["h"]
        if kind == _BENCH:
            continue
        if page == "v_toggle":
            signal = _ESCAPED.sub(lambda of: chr(int(of[1], 16)), of["o"].partition(":")[0])
            if "$" not in signal:
                edges[Point(kind, "toggle", _plain(signal)), f"{where} {signal}"].append(hit)
        elif page in ("v_line", "v_branch"):
            statement = re.sub(r"\d+", "", source[int(of["l"]) - 1]).strip()
            edges[Point(kind, "line", statement), f"{where} {of['l']} {of['o']}"].append(hit)
    points: dict[Point, bool] = {}
    for (point, _), hits in edges.items():
        points[point] = points.get(point, False) or all(hits)
    return points


def measure(seeds: Iterable[int], work: Path, tell: Callable[[str], None] = lambda message: None) -> dict[Point, bool]:
    """Whether each point of the networks ``seeds`` of `sim.breadth`, in both codes, is reached in one run at least, stalled or not.

    Files go below ``work``. Raises CascError where a run differs from the reference.
    """
    points: dict[Point, bool] = {}
    for seed in seeds:
        for code in ("spike", "count"):
            tell(f"network {seed} in {code} code")
            net, spec = draw_case(seed, code)
            text = to_verilog(Core(spec, bench=True), "core", undefined_collisions=True)
            images, options = random_images(net, IMAGES, seed), ["--coverage-line", "--coverage-toggle"]
            bench = Bench(net, spec, images, work.resolve(), text, options=options, quick=True)
            for stall in (0.0, STALL):
                (work / "coverage.dat").unlink(missing_ok=True)
                if (result := bench.run(stall, seed)).mismatches:
                    raise CascError(f"coverage: network {seed} in {code} code: {result.messages[0]}; report it")
                for point, hit in parse((work / "coverage.dat").read_text(), text.splitlines()).items():
                    points[point] = points.get(point, False) or hit
    return points


def summary(points: Mapping[Point, bool]) -> dict[str, dict[str, Any]]:
    """By kind of module, and of ``all``: points and those reached, of lines and of bits, and the signals with bits never toggled."""
    rows: dict[str, dict[str, Any]] = {}
    for kind in [*sorted({point.kind for point in points}), "all"]:
        own = {point: hit for point, hit in points.items() if kind in (point.kind, "all")}
        lines, bits = ([hit for point, hit in own.items() if point.what == what] for what in ("line", "toggle"))
        holes = sorted({point.place for point, hit in own.items() if not hit and kind != "all"})
        rows[kind] = {"lines": len(lines), "covered": sum(lines), "bits": len(bits), "toggled": sum(bits), "holes": holes}
    return rows
