"""Formal proofs of the gates: the runs that show what `rtl_gen/formal/` claims (see ``docs/verification.md``)."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from casc_hw.errors import CascError
from rtl_gen.formal import bench, cores, images, link, neurons, pools, schedules, serial, streams, synapses, uart, walks, weights, windows
from rtl_gen.formal.bench import Engine, Property, Verdict

ENGINES: dict[Engine, str] = {"induction": "yosys sat -tempinduct", "pdr": "yosys abc pdr"}


@dataclass(frozen=True)
class Outcome:
    """What a run said of a property. Where it is proved it holds for runs of any length; ``depth`` is that of the induction,
    or of ``pdr`` the frames it needed.
    What is bounded holds for runs of ``depth`` cycles."""

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
        return {"proved": "unbounded", "bounded": f"{self.depth} cycles", "refuted": f"fails in cycle {self.depth}"}.get(
            self.verdict, f"undecided at {self.depth}"
        )

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"unbounded": self.verdict == "proved"}


PROPERTIES: tuple[Property, ...] = (
    *neurons.PROPERTIES,
    *streams.PROPERTIES,
    *walks.PROPERTIES,
    *synapses.PROPERTIES,
    *windows.PROPERTIES,
    *serial.PROPERTIES,
    *weights.PROPERTIES,
    *images.PROPERTIES,
    *schedules.PROPERTIES,
    *pools.PROPERTIES,
    *cores.PROPERTIES,
    *uart.PROPERTIES,
    *link.PROPERTIES,
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
        result = bench.prove(item.bench(), item.depth, engine=item.engine, bounded=item.bounded)
        seconds = round(time.monotonic() - start, 1)
        yield Outcome(item.name, item.claim, ENGINES[item.engine], result.verdict, result.depth, seconds, result.failed)
