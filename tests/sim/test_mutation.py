"""Mutants of the gates: which are drawn, how they are judged, and what is proved of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Module, Signal
from click.testing import CliRunner

from rtl_gen.__main__ import main
from sim import mutation
from sim.bench import Job, Outcome, _beats_of
from sim.breadth import Case
from sim.mutation import CYCLE_BITS, Mutant, Verdict, draw, equivalent, judge, parse, rate, run

CASE = Case(2, "count")
MUTANT = Mutant(CASE, 1, "inv", "-module core -cell x -port Y -portbit 0", "inv $and x.Y[0]")
SURVIVED, KILLED, NONE = (Verdict(MUTANT, outcome, "") for outcome in ("survived", "slow", "equivalent"))


def line(cell: str, port: str, bit: int, wire: str = "") -> str:
    return f"mutate -ctrl mutant 16 7 -mode cnot1 -module core -cell {cell} -port {port} -portbit {bit} -ctrlbit 3" + (
        f" -wire {wire} -wirebit {bit}" if wire else ""
    )


def test_a_line_is_a_mutant() -> None:
    cells = {"$flatten\\n1_pool.$3": {"type": "$add", "connections": {"\\Y": [1], "Y": [1] * 8}}}
    mutant = parse(CASE, 2, line("$flatten\\n1_pool.$3", "Y", 5, "n1_pool.x"), cells)
    place = "-module core -cell $flatten\\n1_pool.$3 -port Y -portbit 5 -ctrlbit 3"
    assert mutant == Mutant(CASE, 2, "cnot1", place, "cnot1 $add $flatten\\n1_pool.$3.Y[5] (n1_pool.x[5])")
    assert parse(CASE, 2, "mutate", cells) is None


@pytest.mark.parametrize(
    ("cell", "width", "bit", "wire", "drawn"),
    [
        ("$1", 32, CYCLE_BITS - 1, "now", True),
        ("$1", 32, CYCLE_BITS, "now", False),
        ("$1", 33, 31, "", False),
        ("$1", 33, 32, "", True),
        ("$1", 31, 30, "", True),
        ("$1", 64, 30, "fetched", True),
        ("$1", 20, 12, "reader.tickets.start", False),
        ("$1", 1, 0, "throttle_3.offered", False),
        ("$flatten\\throttle_11.$4", 1, 0, "", False),
    ],
)
def test_what_is_not_drawn(cell: str, width: int, bit: int, wire: str, drawn: bool) -> None:
    cells = {cell: {"type": "$dff", "connections": {"D": [1] * width}}}
    assert (parse(CASE, 1, line(cell, "D", bit, wire), cells) is not None) is drawn


def outcome(cycles: int = 9, *messages: str) -> Outcome:
    return Outcome(3, total_cycles=cycles, mismatches=len(messages), messages=list(messages))


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        ([outcome(), outcome()], "survived"),
        ([outcome(), outcome(8)], "slow"),
        ([outcome(8), outcome(9, "image 1, class: got 3, expected 2")], "slow"),
        ([outcome(), outcome(9, "image 1, class: got 3, expected 2")], "wrong"),
        ([outcome(9, "image 0: no result within 50 cycles of the one before")], "silent"),
        ([None], "silent"),
    ],
)
def test_verdicts(got: list[Outcome | None], expected: str) -> None:
    assert judge(MUTANT, [outcome()] * len(got), got).outcome == expected


def test_the_rate_leaves_out_what_is_no_mutant() -> None:
    assert rate([KILLED, KILLED, KILLED, SURVIVED]) == 0.75
    assert rate([KILLED, SURVIVED, NONE, NONE]) == 0.5
    assert rate([NONE]) == 1


@pytest.mark.parametrize("beat", [1, 4])
def test_faults_change_the_status_only(beat: int) -> None:
    """Read back as `PixelReader` reads them, the images are the same."""
    images = np.array([[9, 5, 0, 9, 1], [1, 0, 0, 0, 0], [9, 1, 0, 0, 0], [9, 5, 3, 2, 9]], dtype=np.uint8)
    job = Job("", "", beat, 4, [], 0, 0.0, 0, 0, 0, faults=True)
    all_beats, malformed = _beats_of(images, job)
    size = -(-5 // beat)
    assert malformed == {1, 2, 3}
    for index, (beats, image) in enumerate(zip(all_beats, images, strict=True)):
        assert [word >> (4 * beat) for word in beats] == [0] * (len(beats) - 1) + [1]
        pixels = [word >> (4 * lane) & 15 for word in beats[:size] for lane in range(beat)][:5]
        assert [min(pixel, 9) for pixel in pixels] + [0] * (5 - len(pixels)) == image.tolist()
        assert (len(beats) != size or max(pixels) > 9) is (index in malformed)


@pytest.mark.slow
def test_equivalents_are_proved(tmp_path: Path) -> None:
    """In y' = en ? a | (a & b) : y the product may be 0, and not 1; what a register takes without being enabled does not matter."""
    m, a, b, en, y, z = Module(), *(Signal(name=name) for name in ("a", "b", "en", "y", "z"))
    product = Signal()
    m.d.comb += product.eq(a & b)
    m.d.sync += z.eq(product)
    with m.If(en):
        m.d.sync += y.eq(a | product)
    text = rtlil.convert(m, name="core", ports=[a, b, en, y], emit_src=False)
    drawn, verilog = draw(CASE, text, 8, 1, tmp_path)
    assert len(drawn) == 8
    assert "input [15:0] mutant" in verilog
    cells = json.loads((tmp_path / "flat.json").read_text())["modules"]["core"]["cells"]
    either = next(name for name, cell in cells.items() if cell["type"] == "$or")
    mutants = [
        Mutant(CASE, 100 + index, mode, f"-module core -cell {either} -port {port} -portbit 0", "")
        for index, (mode, port) in enumerate((("const0", "A"), ("const0", "B"), ("const1", "Y"), ("inv", "Y")))
    ]
    assert len(equivalent(mutants, tmp_path)) == 1  # the port with the product


@pytest.mark.slow
def test_mutants_of_a_small_design(tmp_path: Path) -> None:
    verdicts = list(run(4, 3, tmp_path, [CASE]))
    assert len(verdicts) == 4
    assert rate(verdicts) >= 0.5
    killed = next(verdict for verdict in verdicts if verdict.killed)
    assert killed.message
    assert list(run(4, 3, tmp_path, [CASE], killed.mutant.number)) == [killed]


def test_the_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    cases = mutation.DESIGNS

    def made(count: int, seed: int, work: Path, designs: Any, number: int | None, tell: Any) -> list[Verdict]:
        mutants = [Mutant(case, index + 1, "inv", "", "net") for case in designs for index in range(count)]
        return [Verdict(of, "survived" if of.number == 1 else "wrong", "") for of in mutants if number in (None, of.number)]

    monkeypatch.setattr(mutation, "run", made)

    def verb(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["mutate", "--work", str(tmp_path), *arguments])

    bad = verb("--count", str(2 * len(cases)))
    assert bad.exit_code == 1
    assert f"--count {2 * len(cases)} --seed 0 --only {mutation.name(cases[0])} --mutant 1" in bad.output
    assert "50.0 % are killed, of which 95 % must be" in bad.output
    good = verb("--count", str(2 * len(cases)), "--least", "50", "--json")
    assert good.exit_code == 0
    assert json.loads(good.output)["designs"]["all"]["killed_percent"] == 50
    assert verb("--only", mutation.name(cases[1]), "--mutant", "2", "--count", str(2 * len(cases))).exit_code == 0
    for arguments in (["--only", "7-none"], ["--mutant", "1"], ["--only", mutation.name(cases[0]), "--mutant", "99"]):
        assert verb(*arguments).exit_code == 1
