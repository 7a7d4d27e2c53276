"""The command, the engines and their verdicts; what is proved lies in `tests/rtl_gen/formal/`."""

from __future__ import annotations

import json

import pytest
from amaranth.hdl import Signal
from click.testing import CliRunner

from casc_hw.errors import CascError
from rtl_gen.__main__ import main
from rtl_gen.formal import bench
from rtl_gen.formal.bench import Bench
from rtl_gen.prove import PROPERTIES, select
from tests.rtl_gen.formal.mutants import mutated
from tests.rtl_gen.formal.test_streams import MUTANTS


def _counter(limit: int, top: int) -> Bench:
    made = Bench()
    count = Signal(8)
    made.m.d.sync += count.eq(count + 1)
    made.assume(made.free("any") | (count < top))
    made.claim("true", made.free("other") | 1)
    made.claim("it stays small", count < limit)
    return made


def test_the_engine_tells_verdicts_apart() -> None:
    assert bench.prove(_counter(6, 3), 10) == bench.Result("refuted", 7, ("it stays small",))
    assert bench.prove(_counter(6, 3), 5, bounded=True) == bench.Result("bounded", 5)
    assert bench.prove(_counter(200, 3), 5).verdict == "undecided"
    assert bench.prove(_counter(200, 3), 5, engine="pdr") == bench.Result("refuted", 201, ("it stays small",))


def test_a_refutation_names_the_claims_that_fail_from_the_start() -> None:
    """Not those of a model of the induction step before, of as many cycles."""
    said = """[base case 1] Solving
Import proof for assert: \\claim_0 when 1'1.
[induction step 1] Solving
     2 \\claim_0     0   0   0
     2 \\claim_1     1   1   1
[base case 2] Solving
     2 \\claim_0     1   1   1
     2 \\claim_1     0   0   0
proof finished - model found for base case: FAIL!
"""
    assert bench._read(said, {"claim_0": "first", "claim_1": "second"}, 8, False) == bench.Result("refuted", 2, ("second",))


def test_pdr_needs_no_invariants() -> None:
    """All of the contract that induction proves with invariants, it proves without."""
    for name in ("neuron-two", "divider-three", "volleys-spike-7", "skid", "queue-5", "sum-3", "replay-1x2"):
        assert bench.prove(select([name])[0].bench(), 0, engine="pdr", among="").verdict == "proved", name


def test_the_command_prints_a_table() -> None:
    done = CliRunner().invoke(main, ["prove", "--only", "skid", "--only", "throttle"])
    assert done.exit_code == 0, done.output
    assert "skid" in done.output
    assert "unbounded" in done.output
    done = CliRunner().invoke(main, ["prove", "--only", "skid", "--json"])
    (said,) = json.loads(done.stdout)
    assert (said["name"], said["verdict"], said["unbounded"]) == ("skid", "proved", True)


def test_the_command_fails_where_a_proof_does(monkeypatch: pytest.MonkeyPatch) -> None:
    mutated(next(mutant for mutant in MUTANTS if mutant.what == "a throttle takes an offer back"), monkeypatch)
    done = CliRunner().invoke(main, ["prove", "--only", "throttle"])
    assert done.exit_code == 1
    assert "throttle fails in cycle 2: an offer stands until it is taken; repeat with" in done.output


def test_an_unknown_property_is_named() -> None:
    with pytest.raises(CascError, match="there is no property 'skdi'; choose among neuron-binary, "):
        select(["skdi"])
    assert {item.name for item in select(fast=True)} < {item.name for item in PROPERTIES}
