"""Mutants: a module once more, with a piece of its source changed."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path
from typing import Any

import pytest


def mutated_module(what: str, name: str, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, Any]:
    """Module ``name``, and a copy called ``mutant`` in which ``old``, which occurs once, is ``new``."""
    original = importlib.import_module(name)
    text = Path(str(original.__file__)).read_text()
    assert text.count(old) == 1, f"{what}: {old!r} occurs {text.count(old)} times in {name}"
    module = types.ModuleType("mutant")
    monkeypatch.setitem(sys.modules, "mutant", module)  # where dataclasses look for it
    exec(compile(text.replace(old, new), f"<{what}>", "exec"), module.__dict__)
    return original, module
