"""Coverage of the gates: how points of several designs are merged, and one run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from rtl_gen.__main__ import main
from sim import coverage
from sim.coverage import Point, kind_of, measure, parse, summary


def dat(page: str, hier: str, line: int, what: str, count: int) -> str:
    fields = {"f": "core.v", "l": line, "n": 3, "page": page, "o": what, "h": hier}
    return "C '" + "".join(f"\x01{key}\x02{value}" for key, value in fields.items()) + f"' {count}"


@pytest.mark.parametrize(
    ("module", "kind"),
    [("core", "core"), ("core.n0_neurons", "neurons"), ("core.n12_synapses_3", "synapses"), ("core.n1_queue_0.skid", "skid")],
)
def test_kinds(module: str, kind: str) -> None:
    assert kind_of(module) == kind


def test_points_of_lanes_and_modules_are_one() -> None:
    text = "\n".join(
        [
            dat("v_toggle/core.n0_neurons", "a", 1, "sum_0[1]:0->1", 3),
            dat("v_toggle/core.n0_neurons", "a", 1, "sum_0[1]:1->0", 0),  # rises, does not fall
            dat("v_toggle/core.n1_neurons", "b", 1, "sum_4[1]:0->1", 0),
            dat("v_toggle/core.n1_neurons", "b", 1, "sum_4[1]:1->0", 1),
            dat("v_toggle/core.n1_neurons", "b", 1, "sum__05F4[0]:0->1", 2),
            dat("v_toggle/core.n1_neurons", "b", 1, "sum__05F4[0]:1->0", 2),
            dat("v_toggle/core.throttle_2", "c", 1, "offered:0->1", 0),
            dat("v_toggle/core.n1_pool", "d", 1, "__024signal__0243:0->1", 0),
            dat("v_branch/core.n1_pool", "d", 2, "if", 0),
            dat("v_line/core.n1_pool", "d", 3, "block", 4),
            "nothing",
        ]
    )
    points = parse(text, ["", "  if (rst) x_1 <= 0;", "always @(posedge clk)"])
    assert points == {
        Point("neurons", "toggle", "sum[1]"): False,
        Point("neurons", "toggle", "sum[0]"): True,
        Point("pool", "line", "if (rst) x_ <= ;"): False,
        Point("pool", "line", "always @(posedge clk)"): True,
    }
    rows = summary(points)
    assert rows["neurons"] == {"lines": 0, "covered": 0, "bits": 2, "toggled": 1, "holes": ["sum[1]"]}
    assert rows["all"] == {"lines": 2, "covered": 1, "bits": 2, "toggled": 1, "holes": []}


@pytest.mark.slow
def test_a_network(tmp_path: Path) -> None:
    points = measure([2], tmp_path)
    rows = summary(points)
    assert {"core", "reader", "readout", "neurons", "synapses"} <= set(rows)
    assert points[Point("readout", "toggle", "settled")]
    assert not points[Point("core", "toggle", "now[31]")]
    assert 0.5 < rows["all"]["toggled"] / rows["all"]["bits"] < 1


def test_the_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = {Point("neurons", "toggle", "sum[1]"): False, Point("neurons", "toggle", "sum[0]"): True}
    monkeypatch.setattr(coverage, "measure", lambda seeds, work, tell: points)

    def verb(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["coverage", "--work", str(tmp_path), *arguments])

    assert json.loads(verb("--json").output)["holes"] == ["neurons: sum[1]"]
    assert verb("--least", "50").exit_code == 0
    assert verb("--least", "51").exit_code == 1
