"""Random networks x plans x codes x back-pressure in gates, held to the reference in Amaranth's simulator.

``python -m rtl_gen breadth`` runs them by seed. A case that fails is made smaller as long as it goes on failing, and is told by the
command that runs it again.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

from casc_hw.errors import CascError
from casc_hw.network import IntegerNet, Pool
from casc_hw.vectors import save_vectors
from rtl_gen.cycles import worst_cycles
from rtl_gen.gates.core import Core, CoreSpec
from rtl_gen.gates.synapses import DIGIT_BITS, Multiplier, lanes_fit
from rtl_gen.lower import Code, Lanes, core_spec, geometry, pixel_shape
from sim.bench import load_vectors
from sim.random_nets import random_chain, random_graph, random_images
from sim.rig import Rig

STALLS = (0.0, 0.1, 0.4, 0.7)
FIXED: Mapping[str, tuple[int, ...]] = {
    "layers": (1, 2, 3, 4),
    "size": (1, 2, 3, 5),
    "levels": (1, 2, 3, 4, 8),
    "margin": (1, 2),
    "bits": (2, 4),
    "input_max": (1, 16),
    "lanes": (1, 2),
    "beat": (1,),
    "queue": (1, 8),
}
"""What of a case need not be drawn, and the values that are tried, the smallest first, when it is made smaller."""
ATTEMPTS = 200
"""A case is made smaller in at most so many runs."""


def _lanes(net: IntegerNet, chance: random.Random, most: int) -> list[Lanes]:
    """Lanes drawn at random, among those that the layers allow; at most ``most`` if there are such."""
    lanes = []
    for layer in net.layers:
        neurons = min(chance.choice((1, 2, 4)), most)
        allowed = [
            neurons * ratio
            for ratio in range(1, -(-layer.outputs // neurons) + 2)
            if all(lanes_fit(geometry(net, synapses), neurons * ratio) for synapses in layer.synapses)
        ]
        serial = chance.random() < 0.2 and neurons in allowed
        small = all(synapses.bits <= DIGIT_BITS for synapses in layer.synapses)
        multiplier: Multiplier = chance.choice(("dsp", "logic", "both" if small else "dsp"))
        allowed = [neurons] if serial else allowed or [neurons * -(-layer.outputs // neurons)]
        allowed = [of for of in allowed if of <= most] or allowed[:1]
        lanes.append(Lanes(chance.choice(allowed), neurons, multiplier, serial))
    return lanes


def draw_case(seed: int, code: Code = "spike", **fixed: int) -> tuple[IntegerNet, CoreSpec]:
    """A network (a chain of dense layers where ``seed`` is even, else a graph) and its gates, with lanes drawn at random.

    ``fixed``: some of `FIXED`: spiking layers; most neurons of a layer (of a graph: the side of an image); T; wake steps before a
    sleep; bits of weights; the brightest pixel; most lanes; pixels a transfer; depth of queues. What is given is not drawn, and the
    rest as it would be without.
    """
    chance = random.Random(seed)
    levels = chance.choice((1, 2, 3, 4, 5, 6, 7, 8, 8, 16))
    if seed % 2:
        given: dict[str, Any] = {of: fixed[of] for of in ("layers", "levels", "margin", "bits", "input_max") if of in fixed}
        if "size" in fixed:
            given["input_shape"] = (1, fixed["size"], fixed["size"])
        net = random_graph(seed, **given)
        while any(isinstance(node, Pool) and prod(node.kernel) > 9 * prod(node.stride) for node in net.nodes):
            net = random_graph(chance.randrange(1 << 30), **given)  # windows that overlap so much take their time, here above all
    else:
        sizes = [chance.choice((1, 2, 3, 5, 5, 7, 7, 8, 9, 11, 13)) for _ in range(chance.choice((3, 4, 5, 5)))]
        levels = fixed.get("levels", levels)
        margin = chance.choice((levels, chance.randint(-(-levels // 4), levels)))
        net = random_chain(
            [min(size, fixed.get("size", size)) for size in sizes[: 2 + fixed.get("layers", len(sizes))]],
            levels=levels,
            margin=fixed.get("margin", margin),
            sleep=chance.choice((None, None, None, None, None, None, 0, 1, 3)),
            bits=fixed.get("bits", chance.choice((2, 3, 4, 6, 8))),
            input_max=fixed.get("input_max", chance.choice((1, 16, 100, 255))),
            seed=seed,
            spread=chance.choice((0.2, 0.5, 1.0)),
        )
    channels, height, width = pixel_shape(net)
    beats = [beat for beat in (1, 2, 4, 8) if height == 1 or channels * width % beat == 0]
    lanes = _lanes(net, chance, fixed.get("lanes", 1 << 20))
    beat = chance.choice(beats)
    return net, core_spec(net, lanes, fixed.get("beat", beat), code, queue=fixed.get("queue", chance.choice((1, 8, 512))))


@dataclass(frozen=True)
class Case:
    """One run.

    Attributes
    ----------
    seed: of everything drawn.
    code: spike or count.
    stall: probability that a stream stands still in a cycle; None: drawn.
    image: the number of the only image of the three; None: all three.
    fixed: what is not drawn (`FIXED`).
    """

    seed: int
    code: Code
    stall: float | None = None
    image: int | None = None
    fixed: tuple[tuple[str, int], ...] = ()

    @property
    def probability(self) -> float:
        return STALLS[self.seed // 2 % len(STALLS)] if self.stall is None else self.stall

    @property
    def command(self) -> str:
        """What runs it again."""
        text = f"python -m rtl_gen breadth --case {self.seed} --code {self.code}"
        text += "" if self.stall is None else f" --stall {self.stall:g}"
        text += "" if self.image is None else f" --image {self.image}"
        return text + "".join(f" --fix {name}={value}" for name, value in self.fixed)

    def smaller(self) -> Iterator[Case]:
        """Cases to try in its place, the smallest of each kind first."""
        if self.image is None:
            yield from (replace(self, image=image) for image in range(3))
        if self.stall != 0:
            yield replace(self, stall=0.0)
        fixed = dict(self.fixed)
        for name, values in FIXED.items():
            for value in values:
                if value < fixed.get(name, 1 << 20):
                    yield replace(self, fixed=tuple(sorted((fixed | {name: value}).items())))


def run(case: Case, make_core: Callable[[CoreSpec], Core] = lambda spec: Core(spec, bench=True)) -> tuple[int, str]:
    """Values compared, and what is wrong: the first mismatch, or the exception that the gates, built or run, raise; empty: nothing."""
    try:
        net, spec = draw_case(case.seed, case.code, **dict(case.fixed))
        images = random_images(net, 3, case.seed)
        images = images if case.image is None else images[case.image : case.image + 1]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "vectors.npz")
            save_vectors(net, images, path, case.code)
            (outcome,) = Rig(make_core(spec)).run(load_vectors(path), (case.probability,), case.seed, worst_cycles(spec), False)
    except CascError:  # such a network cannot be
        return 0, ""
    except Exception as error:  # whatever our generator does wrong is a failure, too
        return 0, f"{type(error).__name__}: {error}"
    wrong = outcome.messages[0] if outcome.mismatches else ""
    if not wrong and outcome.images != len(images):
        wrong = f"{outcome.images} of {len(images)} images were answered"
    return outcome.spikes_compared, wrong


def shrink(case: Case, wrong: str, attempt: Callable[[Case], tuple[int, str]] = run) -> tuple[Case, str]:
    """The smallest case found that fails, and what is wrong with it, starting from ``case``, which fails with ``wrong``."""
    left = ATTEMPTS
    progress = True
    while progress and left:
        progress = False
        for smaller in case.smaller():
            left -= 1
            if message := attempt(smaller)[1]:
                case, wrong, progress = smaller, message, True
                break
            if not left:
                break
    return case, wrong
