"""Imports point one way: casc_hw <- rtl_gen <- boards, sim <- tests; the gates know Amaranth and no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("casc_hw", "rtl_gen", "boards", "sim", "tests", "examples", "benchmarks")
HARDWARE = ("amaranth", "amaranth_boards", "cocotb")
GATES_MAY_TAKE = ("casc_hw.fixed", "casc_hw.errors")


def imports(source: str, package: str, inside_functions: bool = True) -> Iterator[tuple[int, str]]:
    """Line and full name of every module that ``source``, a module of ``package``, imports."""

    def visit(node: ast.AST, inside: bool) -> Iterator[tuple[int, str]]:
        if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            return
        if isinstance(node, ast.Import) and (inside_functions or not inside):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and (inside_functions or not inside):
            base = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            # `from package import module` imports the module; of `from module import name` the module itself is what counts
            yield from ((node.lineno, f"{module}.{alias.name}") for alias in node.names)
        for child in ast.iter_child_nodes(node):
            yield from visit(child, inside or isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)))

    return visit(ast.parse(source), False)


def forbidden(found: str, names: tuple[str, ...]) -> bool:
    return any(found == name or found.startswith(name + ".") for name in names)


def offences(folder: str, names: tuple[str, ...], allowed: tuple[str, ...] = (), inside_functions: bool = True) -> list[str]:
    found = []
    for path in sorted((ROOT / folder).rglob("*.py")):
        package = ".".join(path.relative_to(ROOT).parent.parts)
        inside = inside_functions and path.relative_to(ROOT).as_posix() != "rtl_gen/__main__.py"
        for line, name in imports(path.read_text(), package, inside):
            if forbidden(name, names) and not forbidden(name, allowed):
                found.append(f"{path.relative_to(ROOT)}:{line} imports {name}")
    return found


def test_casc_hw_knows_no_hardware() -> None:
    others = tuple(name for name in OURS if name != "casc_hw")
    assert offences("casc_hw", (*HARDWARE, *others)) == []


def test_rtl_gen_knows_no_board_and_no_simulation() -> None:
    assert offences("rtl_gen", ("boards", "sim", "tests", "examples", "benchmarks", "cocotb")) == []


def test_rtl_gen_imports_no_torch_when_it_is_imported() -> None:
    """Only inside functions, so that ``--help`` and the gates are instant."""
    assert offences("rtl_gen", ("torch",), inside_functions=False) == []


@pytest.mark.parametrize("path", ["rtl_gen/__main__.py", "casc_hw/__main__.py", "casc_hw/cli.py"])
def test_the_command_lines_import_nothing_heavy_at_the_top(path: str) -> None:
    heavy = ("torch", "casc_hw", "amaranth", "boards", "sim", "numpy", "matplotlib", "cocotb", "rich")
    package = path.partition("/")[0]
    found = [name for _, name in imports((ROOT / path).read_text(), package, inside_functions=False)]
    assert [name for name in found if forbidden(name, heavy) and not forbidden(name, ("casc_hw.errors", "casc_hw.cli"))] == []


def test_gates_know_intervals_and_errors_only() -> None:
    assert offences("rtl_gen/gates", ("torch", "casc_hw", "boards", "sim", "tests"), GATES_MAY_TAKE) == []


@pytest.mark.parametrize("folder", ["boards", "sim"])
def test_nothing_imports_tests_or_examples(folder: str) -> None:
    assert offences(folder, ("tests", "examples", "benchmarks")) == []


def test_run_time_needs_no_scikit_learn() -> None:
    for folder in ("casc_hw", "rtl_gen", "boards", "sim"):
        assert offences(folder, ("sklearn", "mlxtend", "scipy", "pandas")) == []


def test_casc_hw_as_imported_loads_no_hardware() -> None:
    """What the text says, asked of the interpreter: the whole of casc_hw without Amaranth, cocotb or any of ours."""
    code = "import sys, casc_hw; print(*sorted({name.partition('.')[0] for name in sys.modules}))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert "casc_hw" in loaded
    assert set(loaded) & {*HARDWARE, "rtl_gen", "boards", "sim", "sklearn", "mlxtend"} == set()


@pytest.mark.parametrize(
    ("source", "package", "found"),
    [
        ("import torch.nn", "rtl_gen", ["torch.nn"]),
        ("from torch import nn", "rtl_gen", ["torch.nn"]),
        ("from ..plan import Plan", "rtl_gen.gates", ["rtl_gen.plan.Plan"]),
        ("from . import plan", "rtl_gen", ["rtl_gen.plan"]),
        ("import casc_hw, sim", "rtl_gen", ["casc_hw", "sim"]),
        ("try:\n    import torch\nexcept ImportError:\n    pass", "rtl_gen", ["torch"]),
        ("class A:\n    import torch", "rtl_gen", ["torch"]),
        ("def f():\n    import torch", "rtl_gen", []),
        ("if TYPE_CHECKING:\n    import torch", "rtl_gen", []),
    ],
)
def test_the_scanner_finds_imports(source: str, package: str, found: list[str]) -> None:
    assert [name for _, name in imports(source, package, inside_functions=False)] == found
    if source.startswith("def"):
        assert [name for _, name in imports(source, package)] == ["torch"]
