"""Properties and their mutants: each property is proved, and fails once a line of the gates, of the bounds, or of the rule is changed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest

from rtl_gen.formal import bench
from rtl_gen.formal.bench import Engine, Property
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


def mutated(mutant: Mutant, monkeypatch: pytest.MonkeyPatch) -> None:
    """Puts the mutant's functions and components in the place of the original's, in every module that has taken them by name."""
    original, module = mutated_module(mutant.what, mutant.module, mutant.old, mutant.new, monkeypatch)
    ours = [user for name, user in sys.modules.items() if name.partition(".")[0] in ("casc_hw", "rtl_gen")]
    for name, value in vars(module).items():
        if getattr(value, "__module__", "") == "mutant" and not name.endswith("Spec"):
            replaced = vars(original)[name]
            for user in ours:
                if vars(user).get(name) is replaced:
                    monkeypatch.setattr(user, name, value)


def properties_of(properties: Sequence[Property], among: Sequence[Mutant], search: Engine | None = None) -> type:
    """Tests of a room: each property is proved, each of the properties that a mutant names fails of it, and each property is named by one.

    The slow are marked; of a mutant's properties every day has the first. ``search``: the engine that looks for
    failures, if not the proof's.
    """
    named = [(mutant, place, name) for mutant in among for place, name in enumerate(mutant.properties.split())]

    class Properties:
        @pytest.mark.parametrize("item", [pytest.param(item, id=item.name, marks=_slow(not item.fast)) for item in properties])
        def test_is_proved(self, item: Property) -> None:
            (outcome,) = run(select([item.name]))
            assert outcome.verdict == ("bounded" if item.bounded else "proved"), outcome

        @pytest.mark.parametrize(
            ("mutant", "name"),
            [
                pytest.param(mutant, name, id=f"{mutant.what} ({name})", marks=_slow(not mutant.fast or place > 0))
                for mutant, place, name in named
            ],
        )
        def test_fails_on_a_mutant(self, mutant: Mutant, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
            """A run from an initial state breaks a claim of the contract, in `CYCLES` unless "pdr" looks for it; invariants are not
            asked for."""
            mutated(mutant, monkeypatch)
            (item,) = select([name])
            depth = item.depth if item.bounded else CYCLES
            result = bench.prove(item.bench(), depth, engine=search or item.engine, bounded=True, among=mutant.claim, timeout=120)
            assert result.verdict == "refuted", f"survived: {mutant.what}"
            print(f"{name:20}{mutant.what:48}cycle {result.depth}: {'; '.join(result.failed)}")

        def test_every_property_fails_on_some_mutant(self) -> None:
            assert {item.name for item in properties} == {name for _, _, name in named}

    return Properties


def _slow(slow: bool) -> list[Any]:
    return [pytest.mark.slow] if slow else []
