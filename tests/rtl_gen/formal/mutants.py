"""Properties and their mutants: each property is proved, and fails once a line of the gates, of the bounds, or of the rule is changed."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rtl_gen.formal import bench
from rtl_gen.formal.bench import Property
from rtl_gen.prove import run, select
from tests.mutation import mutated_module

CYCLES = 26
"""Every mutant fails within so many, or within the bound of a property that has one."""


@dataclass(frozen=True)
class Mutant:
    """In ``module``, ``old`` (which occurs once) becomes ``new``; these properties fail: a claim with ``claim`` in its name, or, of none,
    any of the part's contract."""

    what: str
    module: str
    old: str
    new: str
    properties: str
    claim: str = ""

    @property
    def fast(self) -> bool:
        return all(item.fast for item in select(self.properties.split()))


BOUNDS = "casc_hw.intervals"


def mutated(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the mutant's functions and components in the place of the original's."""
    original, module = mutated_module(mutant.what, mutant.module, mutant.old, mutant.new, monkeypatch)
    users = [original, importlib.import_module("rtl_gen.lower" if mutant.module == BOUNDS else "rtl_gen.gates.core")]
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") == "mutant" and not name.endswith("Spec"):
            for user in users:
                if hasattr(user, name):
                    monkeypatch.setattr(user, name, value)


def proofs(properties: Iterable[Property]) -> Any:
    """Marks a test of each of these properties."""
    return pytest.mark.parametrize("name", [pytest.param(item.name, marks=[] if item.fast else [pytest.mark.slow]) for item in properties])


def mutants(among: Iterable[Mutant]) -> Any:
    """Marks a test of each mutant and each property that must fail of it; on every day, of the first."""
    cases = [
        pytest.param(mutant, name, id=f"{mutant.what} ({name})", marks=[] if mutant.fast and place == 0 else [pytest.mark.slow])
        for mutant in among
        for place, name in enumerate(mutant.properties.split())
    ]
    return pytest.mark.parametrize(("mutant", "name"), cases)


def is_proved(name: str) -> None:
    (item,) = select([name])
    (outcome,) = run([item])
    assert outcome.verdict == ("bounded" if item.bounded else "proved"), outcome


def fails_on(mutant: Mutant, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run from an initial state breaks a claim of the contract, in `CYCLES` unless "pdr" looks for it; invariants are not asked for."""
    mutated(mutant, monkeypatch)
    (item,) = select([name])
    depth = item.depth if item.bounded else CYCLES
    result = bench.prove(item.bench(), depth, engine=item.engine, bounded=True, among=mutant.claim)
    assert result.verdict == "refuted", f"survived: {mutant.what}"
    print(f"{name:20}{mutant.what:48}cycle {result.depth}: {'; '.join(result.failed)}")


def each_fails_on_some(properties: Iterable[Property], among: Sequence[Mutant]) -> None:
    assert {item.name for item in properties} == {name for mutant in among for name in mutant.properties.split()}
