"""The command lines: verbs with options that do not belong together, and values that nobody should give."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
from pathlib import Path
from typing import Any

import click

from casc_hw.data import EXAMPLES
from sim.fuzz.files import mutated, small_net

MODEL = """import torch
from torch import nn
def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.ReLU(), nn.Linear(5, 3))
def nothing():
    return 3
def wrong():
    raise ValueError("two\\nlines")
value = 1
"""
LONG = ("breadth", "coverage", "fuzz", "mutate", "prove", "train")
"""Verbs that work for minutes whatever they are given, so that they are given what they cannot take."""
SAFE = ("plan", "verilog", "convert", "report", "run", "boards", "evaluate")
"""Verbs that may get a sound network; the others would build or simulate for minutes, and get none."""


class Commands:
    """One command line a case, in this process, in a folder with a few sound and unsound files: exit status 0, 1 with one sentence on
    standard error, or 2 for the usage; and unless it is 0, the folder is as it was."""

    name = "cli"
    limited = False  # yosys, which `verilog` starts, would inherit it

    def __init__(self, folder: Path):
        import numpy as np
        import torch

        torch.set_num_threads(1)
        shutil.rmtree(folder)
        self.folder = folder / "here"
        self.sound = folder / "sound"
        self.sound.mkdir(parents=True)
        small_net().save(self.sound / "small.pt")
        shutil.copy(EXAMPLES / "digits_mlp.pt", self.sound)
        (self.sound / "model.py").write_text(MODEL)
        (self.sound / "garbage.pt").write_bytes(b"garbage")
        (self.sound / "cut.pt").write_bytes((self.sound / "small.pt").read_bytes()[:900])
        draw = np.random.default_rng(1)
        np.save(self.sound / "images.npy", draw.integers(0, 16, (9, 1, 4, 4), dtype=np.uint8))
        np.save(self.sound / "square.npy", draw.integers(0, 256, (9, 4, 4), dtype=np.uint8))
        np.save(self.sound / "nan.npy", np.full((2, 1, 4, 4), np.nan))
        np.save(self.sound / "empty.npy", np.zeros((0, 1, 4, 4), np.uint8))
        np.save(self.sound / "text.npy", np.array(["a", "b"]))
        np.savez(self.sound / "some.npz", images=draw.integers(0, 16, (9, 4, 4), dtype=np.uint8), labels=np.arange(7))
        (self.sound / "cut.npz").write_bytes((self.sound / "some.npz").read_bytes()[:300])
        (self.sound / "built").mkdir()
        for part in ("plan", "build"):
            (self.sound / "built" / f"{part}.json").write_text('{"lanes": [{"synapse": 1}], "board": "ulx3s", "beat": 1}')
        shutil.copy(self.sound / "small.pt", self.sound / "built" / "net.pt")
        self.roots = self._roots()

    @staticmethod
    def _roots() -> list[tuple[str, click.Group]]:
        import casc_hw.__main__ as software
        import rtl_gen.__main__ as hardware

        return [("python -m rtl_gen", hardware.main), ("python -m rtl_gen", hardware.main), ("python -m casc_hw", software.main)]

    def case(self, chance: random.Random) -> str:
        name, root = chance.choice(self.roots)
        verb = chance.choice([*root.commands, *(verb for verb in SAFE if verb in root.commands)])
        if verb in (*LONG, "boards") and chance.random() < 0.9:
            verb = "plan" if name.endswith("rtl_gen") else "evaluate"
        words = self.words(chance, root.commands[verb], verb in SAFE)
        if verb in LONG:
            words = ["--nothing"]
        if chance.random() < 0.05:
            words.insert(chance.randrange(len(words) + 1), chance.choice(["--nonsense", "-x", "--", "", "-", "\udcff", "--help"]))
        shutil.rmtree(self.folder, ignore_errors=True)
        shutil.copytree(self.sound, self.folder)
        if chance.random() < 0.2:
            path = self.folder / chance.choice(["images.npy", "some.npz", "small.pt", "built/plan.json", "built/build.json"])
            path.write_bytes(mutated(chance, path.read_bytes()))
        before = self.listing()
        command = f"{name} {verb} {words}"
        try:
            status, out, err = self.invoke(name, root, [verb, *words])
        except Exception as error:
            raise RuntimeError(f"{command}: {error!r}") from error
        if status not in (0, 1, 2):
            raise RuntimeError(f"{command}: ended with {status}")
        if status == 1:
            lines = [line for line in err.splitlines() if not line.startswith("note: ")]
            if out or len(lines) != 1 or not lines[0].startswith("error: ") or "; " not in lines[0]:
                raise RuntimeError(f"{command}: said {err[-300:]!r} and {out[:50]!r}")
        if (status and self.listing() != before) or any(Path(path).name.startswith(".") for path in self.listing()):
            raise RuntimeError(f"{command}: ended with {status} and left {sorted(self.listing() ^ before)}")
        return ("accepted", "refused", "refused as usage")[status]

    def listing(self) -> set[str]:
        return {os.fspath(path.relative_to(self.folder)) for path in self.folder.rglob("*")}

    def invoke(self, name: str, root: click.Group, words: list[str]) -> tuple[Any, str, str]:
        """Exit status, and what was said on standard output and error."""
        out, err, here = io.StringIO(), io.StringIO(), os.getcwd()
        os.chdir(self.folder)
        try:
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                root.main(words, prog_name=name)
        except SystemExit as end:
            return end.code or 0, out.getvalue(), err.getvalue()
        finally:
            os.chdir(here)
        return 0, out.getvalue(), err.getvalue()

    def words(self, chance: random.Random, command: click.Command, sound: bool) -> list[str]:
        """Some of the options of ``command``, with values; those that it must have, most of the time."""
        words = []
        for option in command.params:
            given = "--net" in option.opts or (chance.random() < 0.95 if option.required else chance.random() < 0.2)
            if not given or "--help" in option.opts:
                continue
            value = self.value(chance, option, sound)
            if isinstance(option, click.Argument):
                words.append(value)
            elif isinstance(option, click.Option) and option.is_flag:
                words.append(option.opts[0])
            else:
                words += [f"{option.opts[0]}={value}"] if chance.random() < 0.5 else [option.opts[0], value]
        return words

    def value(self, chance: random.Random, option: click.Parameter, sound: bool) -> str:
        name = option.opts[0].lstrip("-")
        if name == "net" and not sound:
            return chance.choice(["garbage.pt", "cut.pt", "missing.pt", ".", "", "/dev/null"])
        numbers = ["0", "²", "٣", "1_0", "1", "2", "3", "8", "-1", "100", "1e3", "0.5", "nan", "inf", "-inf", "9" * 20, "", "x"]
        sizes = ["4x4", "1x4x4", "16", "8x8", "0x4", "-1x4", "4x", "100000x100000", "4x4x4x4", "²x4", "nanx1"]
        arrays = ["images.npy", "square.npy", "nan.npy", "empty.npy", "text.npy", "some.npz", "cut.npz"]
        files = [*arrays, "small.pt", "garbage.pt", "missing", ".", ""]
        known = {
            "net": ["small.pt", "small.pt", "digits_mlp.pt", "garbage.pt", "cut.pt", "missing.pt", ".", "", "built/net.pt"],
            "board": ["icebreaker", "ulx3s", "ulx3s-12f", "altair", "", "ULX3S"],
            "code": ["count", "spike", "rate", ""],
            "lanes": ["hidden=1", "hidden=2x1", "conv=2x2", "hidden=²", "=4", "hidden=", "hidden=0", "hidden=4x3", f"hidden={9**20}", "x"],
            "max-lut": ["50%", "3000", "0", "-1", "nan%", "inf%", "1e3%", "", "²", "nan", "%"],
            "model": [
                *["model.py:make"] * 3,
                "model.py:nothing",
                "model.py:wrong",
                "model.py:value",
                "model.py:gone",
                "gone.py:f",
                ":",
                "",
            ],
            "shape": ["4x4", "16", *sizes],
            "bits": ["8", "4", "1=4,3=8", "1=4", "0", "9", "1=²", "=4", "", "x", "nan", "99999999999999999999"],
            "mean": ["0", "0.5", "0,1", "nan", "inf", "", "1e308", "x"],
            "std": ["1", "0.5", "0", "-1", "nan", "inf", "1e-320", ""],
            "percentile": ["0.9", "0", "1", "2", "nan", "-1"],
            "name": ["net", "", "a b", "../x", "é", "n" * 99, "\n"],
            "out": ["x.v", "out/x", "x.pt", ".", "", "missing/deep/x", "/proc/x", "/dev/full", "garbage.pt/x", "n" * 300],
            "port": ["/dev/nothing", "/dev/null", "garbage.pt", ".", "", "loop://", "socket://localhost:1"],
            "calibrate": files,
            "weights": files,
            "data": files,
            "images": files,
            "folder": ["built", "built", ".", "missing", "small.pt", ""],
        }
        values = known.get(name, numbers + files[:3])
        return values[0] if chance.random() < 0.6 else chance.choice(values)
