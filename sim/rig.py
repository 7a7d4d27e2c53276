"""A core in Amaranth's own simulator, held to the reference as `sim.bench` holds one in Verilog: nothing to compile."""

from __future__ import annotations

import gc
import random
from collections.abc import Sequence
from typing import Any

from amaranth.hdl import Module, ResetInserter, Signal, Value
from amaranth.sim import Simulator

from rtl_gen.gates.core import Core, weight_words
from sim.bench import LayerCheck, Outcome, ResultCheck, _beats, tap


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


class Rig:
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
