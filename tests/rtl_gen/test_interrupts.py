"""`build` ended from outside, at any moment, or with nowhere to write: the folder holds the old result or the new one, whole."""

from __future__ import annotations

import hashlib
import os
import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rtl_gen import build as build_module

ROOT = Path(__file__).resolve().parents[2]
BUILD = '''
import json, signal, sys, time
from pathlib import Path
import rtl_gen.build as module

class Steps:
    """Stands for the tools, which take minutes: files of one content, and a digest of them."""
    def __init__(self, core, board, work, name, seeds, progress):
        self.work = work
    def run(self):
        import hashlib
        content = sys.argv[2]
        for index in range(8):
            (self.work / f"part{index}").write_text(content * 2000)
            time.sleep(float(sys.argv[3]))
        (self.work / "digest").write_text(hashlib.sha256(content.encode() * 2000).hexdigest())
        return module.BuildResult("b", "d", self.work / "part0", 1, 1, {}, {}, {}, {}, 1, "", "", {})

module._Build = Steps
print("begin", flush=True)
module.build(None, None, Path(sys.argv[1]))
print("end", flush=True)
'''


def start(out: Path, content: str, pause: float = 0.0) -> subprocess.Popen[str]:
    """A build into ``out``, in a process of its own, that has begun."""
    command = [sys.executable, "-c", BUILD, str(out), content, str(pause)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "begin\n"
    return process


def ended(process: subprocess.Popen[str]) -> int:
    process.communicate(timeout=60)
    return process.returncode


def whole(out: Path) -> str:
    """The content of a result that is whole."""
    parts = {(out / f"part{index}").read_text() for index in range(8)}
    (content,) = parts
    assert hashlib.sha256(content.encode()).hexdigest() == (out / "digest").read_text()
    return content[: len(content) // 2000]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_build_leaves_the_old_result_or_the_new(tmp_path: Path, number: signal.Signals) -> None:
    out, chance, seen = tmp_path / "net", random.Random(number), set()
    assert ended(start(out, "0")) == 0
    for attempt in range(1, 9):
        process = start(out, str(attempt), 0.005)
        time.sleep(chance.uniform(0, 0.06))
        process.send_signal(number)
        ended(process)
        found = whole(out)
        assert found in (str(attempt), max(seen, default="0", key=int))
        seen.add(found)
    assert ended(start(out, "last")) == 0
    assert whole(out) == "last"
    assert os.listdir(tmp_path) == ["net"]


@pytest.mark.parametrize("moment", ["exchange", "after"])
def test_a_kill_at_the_exchange_itself(tmp_path: Path, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As if by SIGKILL: nothing runs any more, no ``finally`` either."""
    out, work = tmp_path / "net", tmp_path / f".net.{2**22 + 1}.building"
    for folder, content in ((out, "old"), (work, "new")):
        folder.mkdir()
        (folder / "top.bit").write_text(content)

    class Killed(BaseException):
        pass

    def killed(*_: object, **__: object) -> None:
        raise Killed

    monkeypatch.setattr(build_module, "_exchange" if moment == "exchange" else "_remove", killed)
    with pytest.raises(Killed):
        build_module._replace(work, out)
    assert (out / "top.bit").read_text() == ("old" if moment == "exchange" else "new")
    monkeypatch.undo()
    build_module._tidy(out)
    assert os.listdir(tmp_path) == ["net"]


def test_where_folders_cannot_be_exchanged_two_renames_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build_module, "_exchange", lambda one, two: False)
    for content in ("old", "new"):
        work = tmp_path / f".net.{os.getpid()}.building"
        work.mkdir()
        (work / "top.bit").write_text(content)
        build_module._replace(work, tmp_path / "net")
        assert (tmp_path / "net" / "top.bit").read_text() == content
    assert os.listdir(tmp_path) == ["net"]


def test_a_full_disk_leaves_the_old_result(tmp_path: Path) -> None:
    """A limit on the size of files stands for the disk: the system refuses to write either way."""
    out = tmp_path / "net"
    assert ended(start(out, "0")) == 0
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1500, before[1]))
    try:
        assert ended(start(out, "1")) == 1
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert whole(out) == "0"
    assert os.listdir(tmp_path) == ["net"]


def test_a_folder_that_takes_nothing_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root, who may write everywhere else, only what is no folder, or the system's own, refuses."""
    monkeypatch.setattr(build_module, "_Build", lambda *_: None)
    (tmp_path / "file").write_text("")
    for place in (Path("/proc/net"), tmp_path / "file" / "net"):
        with pytest.raises(OSError, match=r"No such file|Not a directory"):
            build_module.build(None, None, place)  # type: ignore[arg-type]
    assert os.listdir(tmp_path) == ["file"]
