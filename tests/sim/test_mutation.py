"""Mutants of the gates: which are drawn, how they are judged, and what is proved of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from amaranth.back import rtlil
from amaranth.hdl import Cat, Module, Signal
from amaranth.lib.memory import Memory
from click.testing import CliRunner

from rtl_gen.__main__ import main
from rtl_gen.tools import run_yosys
from sim import mutation
from sim.bench import Job, Outcome, _beats_of
from sim.mutation import CYCLE_BITS, DESIGNS, Mutant, Verdict, draw, equivalent, judge, parse, rate, run

DESIGN = DESIGNS[1].name
MUTANT = Mutant(DESIGN, 1, "inv", "-module core -cell x -port Y -portbit 0", "inv $and x.Y[0]")
SURVIVED, KILLED, NONE = (Verdict(MUTANT, outcome, "") for outcome in ("survived", "slow", "equivalent"))


def line(cell: str, port: str, bit: int, wire: str = "") -> str:
    return f"mutate -ctrl mutant 16 7 -mode cnot1 -module core -cell {cell} -port {port} -portbit {bit} -ctrlbit 3" + (
        f" -wire {wire} -wirebit {bit}" if wire else ""
    )


def test_a_line_is_a_mutant() -> None:
    cells = {"$flatten\\n1_pool.$3": {"type": "$add", "connections": {"\\Y": [1], "Y": [1] * 8}}}
    mutant = parse(DESIGN, 2, line("$flatten\\n1_pool.$3", "Y", 5, "n1_pool.x"), cells)
    place = "-module core -cell $flatten\\n1_pool.$3 -port Y -portbit 5 -ctrlbit 3"
    assert mutant == Mutant(DESIGN, 2, "cnot1", place, "cnot1 $add $flatten\\n1_pool.$3.Y[5] (n1_pool.x[5])")
    assert parse(DESIGN, 2, "mutate", cells) is None


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
    assert (parse(DESIGN, 1, line(cell, "D", bit, wire), cells) is not None) is drawn


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
    drawn, verilog = draw(DESIGN, text, 8, 1, tmp_path)
    assert len(drawn) == 8
    assert "input [15:0] mutant" in verilog
    cells = json.loads((tmp_path / "flat.json").read_text())["modules"]["core"]["cells"]
    either = next(name for name, cell in cells.items() if cell["type"] == "$or")
    mutants = [
        Mutant(DESIGN, 100 + index, mode, f"-module core -cell {either} -port {port} -portbit 0", "")
        for index, (mode, port) in enumerate((("const0", "A"), ("const0", "B"), ("const1", "Y"), ("inv", "Y")))
    ]
    assert len(equivalent(mutants, tmp_path)) == 1  # the port with the product


def test_what_settles_and_what_nobody_reads_is_proved(tmp_path: Path) -> None:
    """A register is 1 from the second cycle on, and what is kept in a memory of two bits is read of one only."""
    m, address, o = Module(), Signal(), Signal(2)
    one, kept = Signal(reset_less=True), Signal(2, reset_less=True)
    m.submodules.memory = memory = Memory(shape=2, depth=4, init=[])
    word, write = memory.read_port(), memory.write_port()
    m.d.comb += [write.addr.eq(address), write.en.eq(1), write.data.eq(kept), o.eq(Cat(word.data[0], one & address))]
    m.d.sync += [one.eq(1), kept.eq(Cat(address, ~address))]
    (tmp_path / "design.il").write_text(rtlil.convert(m, name="core", ports=[address, o], emit_src=False))
    run_yosys(mutation._FLAT.rpartition("mutate")[0], tmp_path)
    cells = json.loads((tmp_path / "flat.json").read_text())["modules"]["core"]["cells"]
    (memory_cell,) = (name for name, cell in cells.items() if cell["type"] == "$mem_v2")
    (settled,) = (name for name, cell in cells.items() if cell["connections"].get("D") == ["1"])
    places = [("const1", settled, "Q", 0), ("const0", settled, "Q", 0)]
    places += [("inv", memory_cell, "WR_DATA", 1), ("inv", memory_cell, "WR_DATA", 0)]
    mutants = [
        Mutant(DESIGN, 100 + index, mode, f"-module core -cell {cell} -port {port} -portbit {bit}", "")
        for index, (mode, cell, port, bit) in enumerate(places)
    ]
    assert {mutant.number for mutant in equivalent(mutants, tmp_path)} == {100, 102}


@pytest.mark.slow
def test_mutants_of_a_small_design(tmp_path: Path) -> None:
    verdicts = list(run(4, 3, tmp_path, DESIGNS[1:2]))
    assert len(verdicts) == 4
    assert rate(verdicts) >= 0.5
    killed = next(verdict for verdict in verdicts if verdict.killed)
    assert killed.message
    assert list(run(4, 3, tmp_path, DESIGNS[1:2], killed.mutant.number)) == [killed]


def test_the_verb(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    designs = mutation.DESIGNS

    def made(count: int, seed: int, work: Path, designs: Any, number: int | None, tell: Any) -> list[Verdict]:
        mutants = [Mutant(design.name, index + 1, "inv", "", "net") for design in designs for index in range(count)]
        return [Verdict(of, "survived" if of.number == 1 else "wrong", "") for of in mutants if number in (None, of.number)]

    monkeypatch.setattr(mutation, "run", made)

    def verb(*arguments: str) -> Any:
        return CliRunner().invoke(main, ["mutate", "--work", str(tmp_path), *arguments])

    bad = verb("--count", str(2 * len(designs)))
    assert bad.exit_code == 1
    assert f"--count {2 * len(designs)} --seed 0 --only {designs[0].name} --mutant 1" in bad.output
    assert "50.0 % are killed, of which 95 % must be" in bad.output
    good = verb("--count", str(2 * len(designs)), "--least", "50", "--json")
    assert good.exit_code == 0
    assert json.loads(good.output)["designs"]["all"]["killed_percent"] == 50
    assert verb("--only", designs[1].name, "--mutant", "2", "--count", str(2 * len(designs))).exit_code == 0
    for arguments in (["--only", "7-none"], ["--mutant", "1"], ["--only", designs[0].name, "--mutant", "99"]):
        assert verb(*arguments).exit_code == 1
