"""Hostile inputs: seeded cases against what reads files, wires and command lines, and upsets of the gates' own state.

A case is a function of its number and the seed alone, so one that fails is repeated by itself. It fails by anything but a verdict: an
exception that is no `CascError` where one is due, a wrong answer, more than `PATIENCE` seconds, or more than `MEMORY` bytes beyond what the
process had.
"""

from __future__ import annotations

import random
import resource
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

from casc_hw.errors import CascError

PATIENCE = 10
"""Seconds of the processor that a case may take, and by the clock `WAIT`."""
WAIT = 120
MEMORY = 1 << 30
"""Bytes by which a target may make the process grow."""
SHOWN = 5
"""Failures kept, of each target."""


class Target(Protocol):
    """What is fuzzed; made once, in an empty folder of its own."""

    name: str
    limited: bool
    """Whether memory is limited by the system; a target that starts other programs cannot be."""

    def case(self, chance: random.Random) -> str:
        """Run one case; return what became of it: "accepted", "refused", or words of the target's own. Any exception is a failure."""


@dataclass(frozen=True)
class Failure:
    case: int
    what: str


@dataclass
class Outcome:
    """What became of a target's cases; ``verdicts`` counts those that did not fail. Seconds, bytes."""

    target: str
    cases: int = 0
    verdicts: Counter[str] = field(default_factory=Counter)
    failed: int = 0
    failures: list[Failure] = field(default_factory=list)
    seconds: float = 0.0
    grown: int = 0

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class _Late(BaseException):
    """A case has taken too long; not an Exception, so that nothing under test catches it."""


def run(target: Target, seed: int, numbers: range, progress: Callable[[str], None] = lambda message: None) -> Outcome:
    """The cases of ``numbers``."""
    outcome = Outcome(target.name)
    begin = time.monotonic()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with _limited(target.limited), _alarm():
        for number in numbers:
            outcome.cases += 1
            try:
                signal.setitimer(signal.ITIMER_PROF, PATIENCE)
                signal.setitimer(signal.ITIMER_REAL, WAIT)
                outcome.verdicts[target.case(random.Random(f"{seed} {target.name} {number}"))] += 1
            except _Late:
                outcome.failures.append(Failure(number, f"no end within {PATIENCE} s"))
            except Exception as error:
                outcome.failures.append(Failure(number, f"{type(error).__name__}: {str(error)[:200]}"))
            finally:
                signal.setitimer(signal.ITIMER_PROF, 0)
                signal.setitimer(signal.ITIMER_REAL, 0)
            if outcome.cases % 5000 == 0:
                progress(f"{target.name}: {outcome.cases} of {len(numbers)}, {len(outcome.failures)} failures")
    outcome.grown = 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
    if outcome.grown > MEMORY:
        outcome.failures.append(Failure(numbers[-1], f"the process grew by {outcome.grown} bytes"))
    outcome.failed = len(outcome.failures)
    outcome.failures = outcome.failures[:SHOWN]
    outcome.seconds = round(time.monotonic() - begin, 1)
    return outcome


@contextmanager
def _limited(limited: bool) -> Iterator[None]:
    """No more than `MEMORY` bytes beyond what the process has now."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    if limited:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + MEMORY, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@contextmanager
def _alarm() -> Iterator[None]:
    def late(*_: object) -> None:
        raise _Late

    before = {number: signal.signal(number, late) for number in (signal.SIGPROF, signal.SIGALRM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def make(name: str, folder: Path) -> Target:
    """The target of that name."""
    from sim.fuzz.commands import Commands
    from sim.fuzz.files import Files
    from sim.fuzz.gates import Gates
    from sim.fuzz.host import Hosts
    from sim.fuzz.upset import Upsets

    targets: dict[str, Callable[[Path], Target]] = {"file": Files, "host": Hosts, "gates": Gates, "cli": Commands, "upset": Upsets}
    return targets[name](folder)


SHARES = {"file": 0.5, "host": 0.46, "gates": 0.02, "cli": 0.01, "upset": 0.01}
"""By target, the part of the cases that it gets."""


def fuzz(only: tuple[str, ...], cases: int, seed: int, case: int | None, work: Path, progress: Callable[[str], None]) -> Iterator[Outcome]:
    """Run ``cases`` in all on the targets ``only`` (all, if empty), or the one numbered ``case`` on each."""
    chosen = only or tuple(SHARES)
    if strange := set(chosen) - set(SHARES):
        raise CascError(f"only: {sorted(strange)[0]!r} is no target; use {', '.join(SHARES)}")
    for name in chosen:
        progress(f"fuzzing: {name}")
        folder = work / name
        folder.mkdir(parents=True, exist_ok=True)
        count = max(round(cases * SHARES[name] / sum(SHARES[other] for other in chosen)), 1)
        yield run(make(name, folder), seed, range(count) if case is None else range(case, case + 1), progress)
