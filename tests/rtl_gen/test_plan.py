"""Plans: within the budget, steered by their parameters, refused with numbers; and what they predict."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import boards
from casc_hw import CascError, IntegerNet, bounds
from rtl_gen.cycles import assume, measure, predict, worst_cycles
from rtl_gen.data import load_images
from rtl_gen.lower import Lanes, core_spec
from rtl_gen.plan import make_plan, plan_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS, MNIST = (IntegerNet.load(EXAMPLES / f"{name}_mlp.pt") for name in ("digits", "mnist"))
BOARDS = {board.name: board.budget for board in boards.all_boards()}


def images(net: IntegerNet) -> torch.Tensor:
    return load_images(net, None, EXAMPLES / f"{net.name}.pt")[0]


@pytest.mark.parametrize("board", BOARDS)
def test_within_the_budget(board: str) -> None:
    plan = make_plan(DIGITS, BOARDS[board], images=images(DIGITS))
    for kind, used, available in plan.resources.rows():
        assert 0 < used <= available * (0.8 if kind in ("LUT4", "FF") else 1)


@pytest.mark.parametrize("share", [0.7, 0.8])
def test_max_share_is_honoured(share: float) -> None:
    plan = make_plan(DIGITS, BOARDS["icebreaker"], images=images(DIGITS), max_share=share)
    assert plan.resources.lut4 <= share * 5280
    assert plan.resources.lut4 > (share - 0.15) * 5280  # and made use of


def test_fastest_is_faster_and_larger() -> None:
    normal, fastest = (make_plan(DIGITS, BOARDS["ulx3s-85f"], images=images(DIGITS), fastest=fastest) for fastest in (False, True))
    assert fastest.prediction.interval < normal.prediction.interval
    assert fastest.resources.lut4 > normal.resources.lut4


@pytest.mark.parametrize("lanes", [2, 16])
def test_lanes_are_honoured_and_change_the_digest(lanes: int) -> None:
    free = make_plan(DIGITS, BOARDS["ulx3s-85f"], images=images(DIGITS))
    name = free.layers[0].name
    fixed = make_plan(DIGITS, BOARDS["ulx3s-85f"], images=images(DIGITS), lanes={name: lanes})
    assert fixed.lanes[0].synapses == lanes
    assert (fixed.digest == free.digest) == (fixed.lanes == free.lanes and fixed.beat == free.beat)
    assert fixed.digest == make_plan(DIGITS, BOARDS["ulx3s-85f"], images=images(DIGITS), lanes={name: lanes}).digest


def test_more_lanes_are_faster() -> None:
    measured = images(DIGITS)
    intervals = [plan_of(DIGITS, BOARDS["ulx3s-85f"], [(n, n), (10, 10)], 4, images=measured).prediction.interval for n in (1, 4, 16)]
    assert intervals == sorted(intervals, reverse=True)
    assert len(set(intervals)) == 3


def test_a_network_too_large_is_refused_with_numbers() -> None:
    with pytest.raises(
        CascError, match=r"mnist_mlp: needs at least \d+ of block RAM, iCE40UP5K has 30 to give \(\d+ too few\); try a larger board"
    ):
        make_plan(MNIST, BOARDS["icebreaker"], images=images(MNIST))
    with pytest.raises(CascError, match=r"of LUT4, iCE40UP5K has 52 to give"):
        make_plan(DIGITS, BOARDS["icebreaker"], max_share=0.01)


@pytest.mark.parametrize(
    "bad", [{"max_share": 0.0}, {"max_share": 1.1}, {"lanes": {"none": 1}}, {"lanes": {"hidden": 0}}, {"lanes": {"hidden": 512}}]
)
def test_bad_parameters(bad: dict[str, object]) -> None:
    with pytest.raises(CascError, match="; "):
        make_plan(DIGITS, BOARDS["ulx3s-85f"], **bad)


def test_sleeps_too_long_to_tell_are_refused() -> None:
    with pytest.raises(CascError, match=r"may sleep 262136 steps, more than the 65535"):
        make_plan(replace(DIGITS, margin=1, sleep=32767), BOARDS["ulx3s-85f"])


def test_every_width_holds_its_interval() -> None:
    spec = core_spec(DIGITS, [Lanes(8, 2), Lanes(5, 5)], 4)
    hidden, readout = bounds(DIGITS)
    shape = spec.neurons[0].potential
    assert shape.lo <= hidden.potential.lo
    assert hidden.potential.hi <= shape.hi
    assert shape.lo <= -hidden.threshold.hi
    assert spec.readout.total == readout.potential
    with pytest.raises(ValueError, match="32-bit"):
        replace(spec.readout, total=readout.potential * (1 << 24))


def test_formats_must_meet() -> None:
    spec = core_spec(DIGITS, [Lanes(8, 2), Lanes(5, 5)], 4)
    with pytest.raises(ValueError, match="layer 1"):
        replace(spec, synapses=(spec.synapses[0], replace(spec.synapses[0], lanes=8)))


def test_the_bound_is_above_the_prediction() -> None:
    for beat in (1, 8):
        spec = core_spec(DIGITS, [Lanes(4, 1), Lanes(2, 2)], beat)
        for activity in (assume(DIGITS), measure(DIGITS, images(DIGITS)[:20])):
            assert 0 < predict(spec, activity).interval <= predict(spec, activity).latency < worst_cycles(spec)
