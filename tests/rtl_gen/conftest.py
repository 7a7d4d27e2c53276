"""What the benches of the gates share: one driver of streams, one of cores, and random networks. All by seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from amaranth.hdl import Const, Elaboratable, Module, Shape, Signal, Value
from amaranth.lib import data, stream
from amaranth.sim import Simulator

from casc_hw import IntegerNet
from casc_hw.vectors import save_vectors
from rtl_gen.cycles import worst_cycles
from rtl_gen.gates.core import Core, CoreSpec
from sim.bench import Outcome, load_vectors
from sim.breadth import draw_case
from sim.random_nets import random_chain, random_images
from sim.rig import Rig


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=[0.0, 0.5], ids=["flowing", "stalled"])
def stall(request: pytest.FixtureRequest) -> float:
    """Probability that a source is idle, or a sink not ready, in a cycle."""
    return request.param


# --- streams ----------------------------------------------------------------------------------------------------------


def plain(shape: Any, raw: int) -> Any:
    """``raw`` as plain values: dictionaries, lists and integers."""
    if isinstance(shape, data.StructLayout):
        return {name: plain(field.shape, raw >> field.offset) for name, field in shape}
    if isinstance(shape, data.ArrayLayout):
        return [plain(shape.elem_shape, raw >> field.offset) for _, field in shape]
    shape = Shape.cast(shape)
    raw &= (1 << shape.width) - 1
    return raw - (1 << shape.width) if shape.signed and raw >> (shape.width - 1) else raw


def _drive(
    dut: Elaboratable,
    sources: Sequence[tuple[stream.Interface, Sequence[Any]]],
    sinks: Sequence[tuple[stream.Interface, Sequence[dict[str, Any]] | None]],
    *,
    stall: float = 0.0,
    seed: int = 0,
    cycles: int = 20_000,
    quiet: int = 40,
    hook: Callable[[Any, int, list[Any], list[Any]], list[tuple[Any, int]] | None] | None = None,
    until: Callable[[], bool] = lambda: True,
    eager: Sequence[int] = (),
) -> list[list[Any]]:
    """Offer each source its payloads, compare what each sink takes with what it expects (the fields given; None: anything).

    Ends ``quiet`` cycles after all came and ``until`` holds, in which nothing more may come; fails after ``cycles``.
    ``hook(ctx, cycle, given, taken)`` sees each cycle's transfers, of sources and of sinks (None: no transfer), before its edge, and
    may give (signal, value) to set after it. Sources in ``eager`` are never idle. Returns what each sink took.
    """
    chance = random.Random(seed)
    took: list[list[Any]] = [[] for _ in sinks]

    async def bench(ctx: Any) -> None:
        ins = [(s.valid, s.ready, Value.cast(s.payload), [Const.cast(s.payload.shape().const(p)).value for p in ps]) for s, ps in sources]
        outs = [(s.valid, s.ready, Value.cast(s.payload), s.payload.shape(), expected) for s, expected in sinks]
        sent, offered = [0] * len(ins), [False] * len(ins)
        held: list[int | None] = [None] * len(outs)
        rest = cycle = 0
        while rest < quiet:
            assert cycle < cycles, f"no end within {cycles} cycles: sent {sent}, took {[len(items) for items in took]}"
            for index, (valid, _, payload, items) in enumerate(ins):
                if not offered[index]:
                    offered[index] = sent[index] < len(items) and (index in eager or chance.random() >= stall)
                    ctx.set(valid, offered[index])
                    ctx.set(payload, items[sent[index]] if offered[index] else chance.getrandbits(len(payload)))
            ready = [chance.random() >= stall for _ in outs]
            for (_, port, *_), value in zip(outs, ready, strict=True):
                ctx.set(port, value)
            given = [sent[index] if offered[index] and ctx.get(entry[1]) else None for index, entry in enumerate(ins)]
            taken: list[Any] = [None] * len(outs)
            for index, (valid, _, payload, shape, expected) in enumerate(outs):
                raw = ctx.get(payload) if ctx.get(valid) else None
                assert held[index] in (None, raw), f"sink {index}, cycle {cycle}: valid or payload did not hold until ready"
                held[index] = None if ready[index] else raw
                if raw is None or not ready[index]:
                    continue
                number, got = len(took[index]), plain(shape, raw)
                taken[index] = got
                took[index].append(got)
                if expected is not None:
                    assert number < len(expected), f"sink {index}: {got} after all {number} transfers"
                    compared = {name: got[name] for name in expected[number]}
                    assert compared == expected[number], f"sink {index}, transfer {number}, cycle {cycle}, stall {stall}, seed {seed}"
            changes = hook(ctx, cycle, given, taken) if hook else None
            await ctx.tick()
            for signal, value in changes or ():
                ctx.set(signal, value)
            for index, number in enumerate(given):
                if number is not None:
                    sent[index], offered[index] = number + 1, False
            done = all(count == len(entry[3]) for count, entry in zip(sent, ins, strict=True))
            done &= all(entry[4] is None or len(items) == len(entry[4]) for items, entry in zip(took, outs, strict=True))
            rest = rest + 1 if done and until() and not any(taken) else 0
            cycle += 1

    module = Module()
    module.submodules.dut = dut
    module.d.sync += Signal().eq(1)  # there is a clock even where the part has none
    simulator = Simulator(module)
    simulator.add_clock(1e-6)
    simulator.add_testbench(bench)
    simulator.run()
    return took


@pytest.fixture(scope="session")
def drive() -> Callable[..., list[list[Any]]]:
    return _drive


# --- networks and cores -----------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def make_net() -> Callable[..., IntegerNet]:
    return random_chain


@pytest.fixture(scope="session")
def make_images() -> Callable[..., torch.Tensor]:
    return random_images


@pytest.fixture(scope="session")
def random_case() -> Callable[..., tuple[IntegerNet, CoreSpec]]:
    return draw_case


@pytest.fixture(scope="session")
def run_core(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., list[Outcome]]:
    """Images through ``core`` (the one of ``spec`` unless given) at each of ``stalls``, and what differs from ``net``'s reference."""
    path: Path = tmp_path_factory.mktemp("core") / "vectors.npz"

    def run(
        net: IntegerNet,
        spec: CoreSpec,
        images: torch.Tensor,
        *,
        stalls: Sequence[float] = (0.0,),
        seed: int = 0,
        core: Core | None = None,
        restarts: bool = False,
    ) -> list[Outcome]:
        save_vectors(net, images, path, "count" if spec.counting else "spike")
        rig = Rig(Core(spec, bench=True) if core is None else core)
        return rig.run(load_vectors(path), stalls, seed, worst_cycles(spec), restarts)

    return run
