"""What the benches of the gates share: one driver of streams, one of cores, and random networks. All by seed."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Sequence
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch
from amaranth.hdl import Const, Elaboratable, Module, ResetInserter, Shape, Signal, Value
from amaranth.lib import data, stream
from amaranth.sim import Simulator

from casc_hw import IntegerNet, Layer, Pool
from casc_hw.network import IMAGE
from casc_hw.vectors import save_vectors
from rtl_gen.cycles import worst_cycles
from rtl_gen.gates.core import Core, CoreSpec, weight_words
from rtl_gen.gates.synapses import DIGIT_BITS, lanes_fit
from rtl_gen.lower import Lanes, core_spec, geometry, pixel_shape
from sim.bench import LayerCheck, Outcome, ResultCheck, _beats, load_vectors, tap
from tests.random_nets import random_graph


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


def _make_net(
    sizes: Sequence[int],
    *,
    levels: int = 8,
    margin: int | None = None,
    sleep: int | None = None,
    bits: int = 8,
    input_max: int = 255,
    seed: int = 0,
    spread: float = 0.5,
) -> IntegerNet:
    """A network of ``sizes`` (inputs, hidden..., classes); ``spread``: the typical threshold over the typical current."""
    chance = random.Random(seed)
    half = 1 << (bits - 1)
    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = index == len(sizes) - 2
        typical = max(int(spread * (2 * input_max if index == 0 else 0.5) * half * inputs**0.5 / 2), 1)
        weight = [[chance.choice((-half, half - 1, *(chance.randrange(-half, half) for _ in range(6)))) for _ in range(inputs)]
                  for _ in range(outputs)]  # fmt: skip
        bias = [chance.randint(-max(typical // 4, 2), max(typical // 4, 2)) for _ in range(outputs)]
        threshold = None if last else torch.tensor([chance.randint(1, 2 * typical) for _ in range(outputs)])
        source = f"layer{index - 1}" if index else IMAGE
        scale = 100.0 if last else None
        layers.append(Layer.dense(f"layer{index}", source, torch.tensor(weight), torch.tensor(bias), threshold, bits, scale))
    return IntegerNet("random", levels, levels if margin is None else margin, sleep, (sizes[0],), input_max, tuple(layers))


@pytest.fixture(scope="session")
def make_net() -> Callable[..., IntegerNet]:
    return _make_net


def _make_images(net: IntegerNet, count: int, seed: int = 0) -> torch.Tensor:
    """All bright, all dark, then random ones, every other one of extremes only."""
    chance = torch.Generator().manual_seed(seed)
    images = torch.randint(0, net.input_max + 1, (count, net.inputs), generator=chance)
    images[::2] = (images[::2] > net.input_max // 2) * net.input_max
    images[:1] = net.input_max
    images[1:2] = 0
    return images


@pytest.fixture(scope="session")
def make_images() -> Callable[..., torch.Tensor]:
    return _make_images


def _lanes(net: IntegerNet, chance: random.Random) -> list[Lanes]:
    """Lanes drawn at random, among those that the layers allow."""
    lanes = []
    for layer in net.layers:
        neurons = chance.choice((1, 2, 4))
        allowed = [
            neurons * ratio
            for ratio in range(1, -(-layer.outputs // neurons) + 2)
            if all(lanes_fit(geometry(net, synapses), neurons * ratio) for synapses in layer.synapses)
        ]
        serial = chance.random() < 0.2 and neurons in allowed
        small = all(synapses.bits <= DIGIT_BITS for synapses in layer.synapses)
        multiplier = chance.choice(("dsp", "logic", "both" if small else "dsp"))
        allowed = [neurons] if serial else allowed or [neurons * -(-layer.outputs // neurons)]
        lanes.append(Lanes(chance.choice(allowed), neurons, multiplier, serial))
    return lanes


def _random_case(seed: int, code: str = "spike") -> tuple[IntegerNet, CoreSpec]:
    """A network of one to three spiking layers, or a graph of convolutions and pools, and its gates with lanes drawn at random."""
    chance = random.Random(seed)
    levels = chance.choice((1, 2, 3, 4, 5, 6, 7, 8, 8, 16))
    if seed % 2:
        net = random_graph(seed)
        while any(isinstance(node, Pool) and prod(node.kernel) > 9 * prod(node.stride) for node in net.nodes):
            net = random_graph(chance.randrange(1 << 30))  # windows that overlap so much take their time, here above all
    else:
        net = _make_net(
            [chance.choice((1, 2, 3, 5, 5, 7, 7, 8, 9, 11, 13)) for _ in range(chance.choice((3, 4, 5, 5)))],
            levels=levels,
            margin=chance.choice((levels, chance.randint(-(-levels // 4), levels))),
            sleep=chance.choice((None, None, None, None, None, None, 0, 1, 3)),
            bits=chance.choice((2, 3, 4, 6, 8)),
            input_max=chance.choice((1, 16, 100, 255)),
            seed=seed,
            spread=chance.choice((0.2, 0.5, 1.0)),
        )
    channels, height, width = pixel_shape(net)
    beats = [beat for beat in (1, 2, 4, 8) if height == 1 or channels * width % beat == 0]
    return net, core_spec(net, _lanes(net, chance), chance.choice(beats), code, queue=chance.choice((1, 8, 512)))


@pytest.fixture(scope="session")
def random_case() -> Callable[..., tuple[IntegerNet, CoreSpec]]:
    return _random_case


async def _load(ctx: Any, core: Core, chance: random.Random, stall: float, reset: Signal | None) -> None:
    """Give ``core`` its weights, if it takes any; no pixel is taken before. ``reset`` comes in between, now and then."""
    words = weight_words(core.spec)
    for index, word in enumerate(words):
        while chance.random() < stall:
            ctx.set(core.weights.valid, 0)
            await ctx.tick()
        ctx.set(core.weights.payload, {"data": word, "last": index == len(words) - 1})
        ctx.set(core.weights.valid, 1)
        if reset is not None:
            ctx.set(reset, chance.random() < 0.2)
        ctx.set(core.pixels.valid, 1)
        assert ctx.get(core.weights.ready)
        assert not ctx.get(core.pixels.ready), "pixels before weights"
        ctx.set(core.pixels.valid, 0)
        await ctx.tick()
    if words:
        ctx.set(core.weights.valid, 0)
        assert not ctx.get(core.weights.ready)


class _Rig:
    """A core in the pure-Python simulator, held to the reference as `sim.bench` holds one in Verilog."""

    def __init__(self, core: Core):
        self.core = core

    def run(self, vectors: dict[str, Any], stalls: Sequence[float], seed: int, patience: int, restarts: bool) -> list[Outcome]:
        """The same images once for each of ``stalls``, without a reset between; ends with the first that goes wrong.

        With ``restarts``, the core is reset while it takes its weights, and each time amid an image that does not count.
        """
        outcomes = []
        reset = Signal()

        async def bench(ctx: Any) -> None:
            await _load(ctx, self.core, random.Random(seed), max(stalls), reset if restarts else None)
            for stall in stalls:
                if restarts:  # amid an image
                    ctx.set(self.core.pixels.valid, 1)
                    ctx.set(Value.cast(self.core.pixels.payload), 1)
                    await ctx.tick().repeat(40)
                    ctx.set(self.core.pixels.valid, 0)
                    ctx.set(reset, 1)
                    await ctx.tick().repeat(3)
                    ctx.set(reset, 0)
                outcomes.append(Outcome())
                await self._bench(ctx, vectors, outcomes[-1], stall, random.Random(seed), int(patience * (1 + 12 * stall)) + 500)
                if outcomes[-1].mismatches:
                    return

        module = Module()
        module.submodules.core = ResetInserter(reset)(self.core)
        gc.disable()  # a core in the simulator is a million objects
        try:
            simulator = Simulator(module)
            simulator.add_clock(1e-6)
            simulator.add_testbench(bench)
            simulator.run()
        finally:
            gc.enable()
        return outcomes

    async def _bench(self, ctx: Any, vectors: dict[str, Any], outcome: Outcome, stall: float, chance: random.Random, patience: int) -> None:
        core, spec = self.core, self.core.spec
        layers = [LayerCheck(index, vectors, tap(spec, index), outcome) for index in range(len(spec.spiking))]
        results = ResultCheck(vectors, outcome)
        taps = [Value.cast(getattr(core, f"volleys_{index}")) for index in range(len(layers))]
        beats = [beat for image in vectors["images"] for beat in _beats(image, spec.pixels.beat, spec.pixels.maximum.bit_length())]
        payload, result = Value.cast(core.pixels.payload), Value.cast(core.result.payload)
        offered, ready, quiet, cycle, last = False, True, 0, 0, 0
        ctx.set(core.result.ready, 1)
        while outcome.images < len(vectors["images"]) or quiet < 60:
            if not offered and beats and chance.random() >= stall:
                ctx.set(payload, beats.pop(0))
                ctx.set(core.pixels.valid, 1)
                offered = True
            if stall:
                ready = chance.random() >= stall
                ctx.set(core.result.ready, ready)
                ctx.set(core.stall, sum((chance.random() < stall) << index for index in range(spec.streams)))
            accepted = offered and ctx.get(core.pixels.ready)
            for volleys, layer in zip(taps, layers, strict=True):
                if (transfer := ctx.get(volleys)) & 1:
                    layer.take(transfer >> 1)
            if ready and ctx.get(core.result.valid):
                word = ctx.get(result)
                if results.take(word & 0xFFFFFFFF, bool(word >> 32)):
                    if outcome.images > 1:
                        outcome.cycles.append(cycle - last)
                    last, quiet = cycle, 0
            await ctx.tick()
            cycle, quiet = cycle + 1, quiet + 1
            if accepted:
                offered = False
                ctx.set(core.pixels.valid, 0)
            if outcome.mismatches:
                return
            if quiet > patience:
                outcome.mismatch(f"image {outcome.images}: no result within {patience} cycles of the one before")
                break
        outcome.total_cycles = cycle
        for layer in layers:
            layer.finish()
        ctx.set(core.stall, 0)
        if results.words or (ctx.get(core.busy) and not outcome.mismatches):
            outcome.mismatch(f"image {outcome.images}: {len(results.words)} words of one more result, busy {ctx.get(core.busy)}")


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
        rig = _Rig(Core(spec, bench=True) if core is None else core)
        return rig.run(load_vectors(path), stalls, seed, worst_cycles(spec), restarts)

    return run
