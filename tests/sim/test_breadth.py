"""The generator of cases: what it draws, and how it makes a failure small."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from click.testing import CliRunner

from rtl_gen.__main__ import main
from sim import breadth
from sim.breadth import FIXED, Case, draw_case, run, shrink
from tests.mutation import mutated_module


def size(net: Any, spec: Any) -> dict[str, int]:
    """What `FIXED` names, as it came out."""
    return {
        "layers": len(net.spiking),
        "size": max(*net.shapes["image"], *(layer.outputs for layer in net.layers[:-1])),
        "levels": net.levels,
        "bits": max(synapses.bits for layer in net.layers for synapses in layer.synapses if not synapses.shortcut),
        "input_max": net.input_max,
        "lanes": max(synapses.spec.lanes for layer in spec.layers for synapses in layer.inputs),
        "beat": spec.pixels.beat,
    }


@pytest.mark.parametrize("seed", [2, 6, 3, 9])
@pytest.mark.parametrize("name", ["levels", "bits", "input_max", "beat"])
def test_what_is_fixed_is_not_drawn(seed: int, name: str) -> None:
    for value in FIXED[name][:2]:
        assert size(*draw_case(seed, **{name: value}))[name] == value


@pytest.mark.parametrize(("name", "seed"), [("layers", 4), ("layers", 3), ("size", 2), ("size", 8), ("lanes", 2), ("lanes", 8)])
def test_what_is_bounded(name: str, seed: int) -> None:
    assert size(*draw_case(seed))[name] > 2
    for value in (1, 2):
        assert size(*draw_case(seed, **{name: value}))[name] == value


def test_the_rest_is_drawn_as_without() -> None:
    free, bound = draw_case(8)[0], draw_case(8, bits=4)[0]
    assert [layer.outputs for layer in free.layers] == [layer.outputs for layer in bound.layers]


def test_the_command_tells_the_whole_case() -> None:
    case = Case(17, "count", 0.4, 2, (("layers", 2), ("levels", 1)))
    assert case.command == "python -m rtl_gen breadth --case 17 --code count --stall 0.4 --image 2 --fix layers=2 --fix levels=1"
    assert Case(17, "spike").command == "python -m rtl_gen breadth --case 17 --code spike"


def test_shrinking_keeps_the_failure_and_nothing_else() -> None:
    def attempt(case: Case) -> tuple[int, str]:
        fixed = dict(case.fixed)
        return 1, "wrong" if case.image in (None, 1) and fixed.get("levels", 8) >= 3 else ""

    smallest, wrong = shrink(Case(3, "count", 0.7), "wrong", attempt)
    assert wrong == "wrong"
    assert (smallest.image, smallest.stall, dict(smallest.fixed)["levels"]) == (1, 0.0, 3)
    assert {name: value for name, value in smallest.fixed if name != "levels"} == {
        name: values[0] for name, values in FIXED.items() if name != "levels"
    }


@pytest.mark.slow
def test_a_mutant_is_found_and_made_small(monkeypatch: pytest.MonkeyPatch) -> None:
    """A neuron whose count is not taken back: a case that fails is found, shrunk, and fails when it is run again."""
    original, mutant = mutated_module("mutant", "rtl_gen.gates.neurons", "n + up - down", "n + up", monkeypatch)
    monkeypatch.setattr("rtl_gen.gates.core.NeuronArray", mutant.NeuronArray)
    cases = [Case(seed, "spike") for seed in range(2, 60, 2)]
    case, wrong = next((case, wrong) for case in cases if (wrong := run(case)[1]))
    smallest, wrong = shrink(case, wrong)
    assert "expected" in wrong or "no result" in wrong
    assert run(smallest)[1] == wrong
    assert smallest.image is not None
    monkeypatch.setattr("rtl_gen.gates.core.NeuronArray", original.NeuronArray)
    assert run(smallest)[1] == ""


def test_an_exception_in_the_gates_is_a_failure() -> None:
    def broken(_: Any) -> Any:
        raise ValueError("no gates")

    assert run(Case(2, "spike"), broken) == (0, "ValueError: no gates")


def test_the_verb(monkeypatch: pytest.MonkeyPatch) -> None:
    said = CliRunner().invoke(main, ["breadth", "--cases", "1", "--seed", "2", "--json"])
    assert said.exit_code == 0, said.output
    assert '"cases": 2' in said.output
    assert CliRunner().invoke(main, ["breadth", "--case", "2", "--fix", "layers=0"]).exit_code == 1
    real = breadth.run
    monkeypatch.setattr(breadth, "run", lambda case: (1, "image 0: wrong"))
    monkeypatch.setattr(breadth, "shrink", lambda case, wrong: (replace(case, image=0), wrong))
    failed = CliRunner().invoke(main, ["breadth", "--cases", "3", "--code", "count"])
    assert failed.exit_code == 1
    assert "repeat with `python -m rtl_gen breadth --case 0 --code count --image 0`" in failed.output
    assert real is not breadth.run
