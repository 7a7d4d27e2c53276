"""Formal proofs of the gates: what is claimed, for which parts and sizes, and the runs that show it (see ``docs/verification.md``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from casc_hw.errors import CascError
from casc_hw.fixed import Interval
from rtl_gen.formal import bench, neurons, streams
from rtl_gen.formal.bench import Bench, Engine, Verdict
from rtl_gen.formal.neurons import Neuron

ENGINES: dict[Engine, str] = {"induction": "yosys sat -tempinduct", "pdr": "yosys abc pdr"}


@dataclass(frozen=True)
class Property:
    """Claims about one part.

    Attributes
    ----------
    name: for ``--only``.
    claim: in one sentence.
    bench: makes the bench, whose claims have names of their own.
    depth: the longest induction tried.
    engine: induction, or "pdr", which needs no invariants and so less to read, and takes longer.
    fast: of the subset for every day.
    """

    name: str
    claim: str
    bench: Callable[[], Bench]
    depth: int = 8
    fast: bool = True
    engine: Engine = "induction"


@dataclass(frozen=True)
class Outcome:
    """What a run said of a property. Where it is proved it holds for runs of any length; ``depth`` is that of the induction,
    or of ``pdr`` the frames it needed."""

    name: str
    claim: str
    engine: str
    verdict: Verdict
    depth: int
    seconds: float
    failed: tuple[str, ...]

    @property
    def reach(self) -> str:
        """How far the claim is shown to hold."""
        return {"proved": "unbounded", "refuted": f"fails in cycle {self.depth}"}.get(self.verdict, f"undecided at {self.depth}")

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"unbounded": self.verdict == "proved"}


_STREAM = "nothing lost, doubled, changed or overtaken under any back-pressure; offers stand; counters hold"
_NEURON = (
    "the gates are the neuron; 0 <= n <= t <= T; v in its interval; at rest n = clip(floor(S / theta), 0, T), within T quiet sleep steps"
)
_COUNT = "n = clip(floor(S / theta), 0, T)"
_VOLLEYS = "the volleys' FIFO never overflows, credits are exact, offers stand"


def _neuron(name: str, case: Neuron, what: str, fast: bool = True) -> Property:
    return Property(f"neuron-{name}", f"{_NEURON} ({what}, T = {case.levels})", lambda: neurons.neuron(case), fast=fast)


def _count(name: str, levels: int, thresholds: int, total: Interval, fast: bool = True, **options: Any) -> Property:
    what = f"T = {levels}, theta 1 to {thresholds}, S in {total}"
    return Property(f"divider-{name}", f"{_COUNT} ({what})", lambda: neurons.counts(levels, thresholds, total, **options), 14, fast)


def _volleys(kind: str, chunks: int, dense: bool) -> Property:
    name = f"volleys-{kind}-{chunks}{'-dense' * dense}"
    return Property(name, f"{_VOLLEYS} ({kind} code, {chunks} chunks)", lambda: neurons.volleys(kind, chunks, dense))


def _queue(depth: int, fast: bool = True) -> Property:
    return Property(f"queue-{depth}", f"Queue: {_STREAM}", lambda: streams.queue(depth), fast=fast)


def _fork(ways: int) -> Property:
    return Property(
        f"fork-{ways}", "Fork: each way gets each transfer once, in order, without waiting for others", lambda: streams.fork(ways)
    )


def _sum(chunks: int) -> Property:
    return Property(
        f"sum-{chunks}", f"CurrentSum: chunks of one place add up, empty steps add nothing; {_STREAM}", lambda: streams.current_sum(chunks)
    )


def _replay(depth: int, passes: int) -> Property:
    name = f"replay-{depth}x{passes}"
    return Property(
        name, f"Replay: {passes} passes of the same events in order, each ending in the mark", lambda: streams.replay(depth, passes)
    )


PROPERTIES: tuple[Property, ...] = (
    _neuron("binary", Neuron((2, -1), 0, 1, 1), "2 sources"),
    _neuron("two", Neuron((4, -3), 1, 3, 2), "2 sources"),
    _neuron("three", Neuron((6, -5), -1, 4, 3), "2 sources"),
    _neuron("counts", Neuron((5, -3), -1, 3, 2, cumulative=True), "2 sources, before a max pool"),
    _neuron("image", Neuron((2, -3), -1, 3, 3, image=3), "2 pixels of 0 to 3"),
    _neuron("four", Neuron((7, -4), 1, 6, 4), "2 sources", fast=False),
    _neuron("many", Neuron((2, -1, -2), 1, 2, 2), "3 sources", fast=False),
    _neuron("image-wide", Neuron((7, -5), 3, 9, 4, image=15), "2 pixels of 0 to 15", fast=False),
    _count("binary", 1, 4, Interval(-3, 7)),
    _count("three", 3, 5, Interval(-9, 20)),
    _count("seven", 7, 7, Interval(-64, 63)),
    _count("eight", 8, 9, Interval(-40, 99), gain=8, biases=(0, 3, -5)),
    _count("fifteen", 15, 32, Interval(-512, 511), fast=False),
    _volleys("spike", 1, False),
    _volleys("spike", 7, False),
    _volleys("spike", 7, True),
    _volleys("count", 3, False),
    _volleys("count", 3, True),
    Property("skid", f"Skid: {_STREAM}", streams.skid),
    _queue(1),
    _queue(2),
    _queue(5),
    _queue(16, fast=False),
    _fork(2),
    _fork(3),
    Property("throttle", "Throttle: passes on what comes, takes no offer back", streams.throttle),
    _sum(1),
    _sum(3),
    _replay(1, 2),
    _replay(3, 3),
)


def select(only: Iterable[str] = (), fast: bool = False) -> list[Property]:
    """The properties of these names, or all; with ``fast`` those of the subset. Raises :class:`CascError` for a name that is none."""
    names = [item.name for item in PROPERTIES]
    only = list(only)
    for name in only:
        if name not in names:
            raise CascError(f"prove: there is no property {name!r}; choose among {', '.join(names)}")
    return [item for item in PROPERTIES if (item.name in only or not only) and (item.fast or not fast)]


def run(properties: Iterable[Property], tell: Callable[[str], None] = lambda message: None) -> Iterator[Outcome]:
    """Proves them one by one."""
    for item in properties:
        tell(f"proving {item.name}")
        start = time.monotonic()
        result = bench.prove(item.bench(), item.depth, engine=item.engine)
        seconds = round(time.monotonic() - start, 1)
        yield Outcome(item.name, item.claim, ENGINES[item.engine], result.verdict, result.depth, seconds, result.failed)
