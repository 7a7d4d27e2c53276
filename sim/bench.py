"""The cocotb bench of every network: drives pixels, and holds every spike, logit and class to the reference.

Runs inside the simulator (see `sim.runner`); the environment's ``CASC_JOB`` names a JSON file with the fields of `Job`.
"""

from __future__ import annotations

import json
import os
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

MESSAGES = 20
"""Mismatches told in full; the others are counted."""


@dataclass(frozen=True)
class Job:
    """What the bench is to do.

    Attributes
    ----------
    vectors: file made by `casc_hw.save_vectors`.
    outcome: JSON file to write.
    beat, pixel_bits: pixels a transfer, bits of a pixel.
    events: per spiking layer, (address bits, value bits) of its events.
    streams: width of the port ``stall``.
    stall: probability that a stream stands still in a cycle, 0 to 1.
    alone: the first so many images are sent each after the result of the one before.
    patience: cycles without a result after which the run is given up.
    seed: of the stalls.
    """

    vectors: str
    outcome: str
    beat: int
    pixel_bits: int
    events: list[list[int]]
    streams: int
    stall: float
    alone: int
    patience: int
    seed: int


@dataclass
class Outcome:
    """What the bench saw; `cycles` between results, `latency` from an image's first transfer to its last step."""

    images: int = 0
    spikes_compared: int = 0
    mismatches: int = 0
    messages: list[str] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)
    latency: list[int] = field(default_factory=list)
    sleep_steps: list[int] = field(default_factory=list)
    total_cycles: int = 0

    def mismatch(self, message: str, count: int = 1) -> None:
        self.mismatches += count
        if len(self.messages) < MESSAGES:
            self.messages.append(message)


class SpikeCheck:
    """One layer's event stream, step by step, against the reference's spikes."""

    def __init__(self, layer: int, vectors: Any, widths: list[int], outcome: Outcome):
        self.layer, self.outcome = layer, outcome
        self.spikes, self.wake, self.active = vectors[f"spikes_{layer}"], vectors["wake"], vectors["active"]
        self.below = [vectors[f"spikes_{index}"] for index in range(layer + 1)]
        self.size = self.spikes.shape[2]
        self.address_bits, self.value_bits = widths
        self.image = 0
        self.steps = self._steps()
        self.got: list[tuple[int, int]] = []

    def _steps(self) -> list[int]:
        return [] if self.image == self.active.shape[1] else list(np.flatnonzero(self.active[:, self.image]))

    def take(self, event: int) -> None:
        """One transfer: mark 1, step 4 (first, wake, final, active), address, value, lowest bit first."""
        mark, step, event = event & 1, event >> 1 & 15, event >> 5
        if not mark:
            value = event >> self.address_bits
            sign = 1 << (self.value_bits - 1)
            self.got.append((event & ((1 << self.address_bits) - 1), (value ^ sign) - sign))
            return
        wake, active = bool(step >> 1 & 1), bool(step >> 3 & 1)
        got, self.got = self.got, []
        if not wake and (not self.steps or self.wake[self.steps[0]]):  # sent ahead of the verdict that ended the sleep
            if got or active:
                message = f"layer {self.layer}: {got} after image {self.image} had come to rest, expected no spike"
                self.outcome.mismatch(message, len(got) or 1)
            return
        if not self.steps:
            self.outcome.mismatch(f"layer {self.layer}: a wake step after the last image")
            return
        number = self.steps.pop(0)
        row = self.spikes[number, self.image]
        expected = [(int(neuron), int(row[neuron])) for neuron in np.flatnonzero(row)]
        where = f"layer {self.layer}, image {self.image}, step {number}"
        if wake != self.wake[number]:
            self.outcome.mismatch(f"{where}: got a {'wake' if wake else 'sleep'} step, expected the other")
        if active != any(below[number, self.image].any() for below in self.below):
            self.outcome.mismatch(f"{where}: got active={active}, expected {not active}")
        if got != expected:
            wrong = sorted(set(got) ^ set(expected))
            neuron = wrong[0][0] if wrong else got[0][0]
            self.outcome.mismatch(
                f"{where}, neuron {neuron}: got {dict(got).get(neuron, 0)}, expected {dict(expected).get(neuron, 0)}"
                + ("" if wrong else " (right spikes in the wrong order)"),
                max(len({neuron for neuron, _ in wrong}), 1),
            )
        self.outcome.spikes_compared += self.size
        if not self.steps:
            self.image += 1
            self.steps = self._steps()

    def finish(self) -> None:
        if self.steps or self.got:
            self.outcome.mismatch(f"layer {self.layer}: image {self.image} ended {len(self.steps)} steps early")


class ResultCheck:
    """The result stream: logits, class, status and cycles of each image, in order."""

    def __init__(self, vectors: Any, outcome: Outcome):
        self.vectors, self.outcome = vectors, outcome
        self.words: list[int] = []

    def take(self, word: int, last: bool) -> bool:
        """One word; whether it was an image's last."""
        self.words.append(word)
        if not last:
            return False
        words, self.words = self.words, []
        image = self.outcome.images
        self.outcome.images += 1
        if image == len(self.vectors["sums"]):
            self.outcome.mismatch(f"result {image}: one more than there are images")
            return True
        logits = [word - (1 << 32) if word >> 31 else word for word in words[:-3]]
        got = {"logits": logits, "class": words[-3], "status": words[-2]}
        expected = {
            "logits": self.vectors["sums"][image].tolist(),
            "class": int(self.vectors["classes"][image]),
            "status": int(self.vectors["sleep_steps"][image]),
        }
        for name, value in got.items():
            if value != expected[name]:
                self.outcome.mismatch(f"image {image}, {name}: got {value}, expected {expected[name]}")
        self.outcome.sleep_steps.append(words[-2] & 0xFFFF)
        self.outcome.latency.append(words[-1])
        return True


@cocotb.test()
async def equals_reference(dut: Any) -> None:
    """Every spike of every layer in every step, every logit and the class of every image."""
    job = Job(**json.loads(Path(os.environ["CASC_JOB"]).read_text()))
    vectors = dict(np.load(job.vectors))
    outcome = Outcome()
    try:
        await _run(dut, job, vectors, outcome)
    finally:
        Path(job.outcome).write_text(json.dumps(outcome.__dict__))
    assert outcome.mismatches == 0, outcome.messages[0]
    assert outcome.images == len(vectors["images"])


async def _run(dut: Any, job: Job, vectors: dict[str, Any], outcome: Outcome) -> None:
    layers = [SpikeCheck(index, vectors, widths, outcome) for index, widths in enumerate(job.events)]
    results = ResultCheck(vectors, outcome)
    taps = [getattr(dut, f"spikes_{index}") for index in range(len(layers))]
    beats = [_beats(image, job.beat, job.pixel_bits) for image in vectors["images"]]
    chance = random.Random(job.seed)

    dut.rst.value = 1
    dut.stall.value = 0
    dut.pixels__valid.value = 0
    dut.result__ready.value = 1
    Clock(dut.clk, 10, unit="ns").start()
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0

    image = beat = 0  # the transfer offered or to be offered next
    offered, ready, quiet, last_result = False, True, 0, 0
    cycle = 0
    margin = 64 + 4 * len(beats[0]) if job.stall else 64  # cycles watched after the last result: nothing more may come
    while outcome.images < len(beats) or quiet < margin:
        await RisingEdge(dut.clk)
        cycle += 1
        quiet += 1
        if offered and int(dut.pixels__ready.value):
            offered = False
            beat += 1
            if beat == len(beats[image]):
                image, beat = image + 1, 0
        for tap, layer in zip(taps, layers, strict=True):
            transfer = int(tap.value)
            if transfer & 1:
                layer.take(transfer >> 1)
        if ready and int(dut.result__valid.value):
            word = int(dut.result__payload.value)
            if results.take(word & 0xFFFFFFFF, bool(word >> 32)):
                if outcome.images > max(job.alone, 1):
                    outcome.cycles.append(cycle - last_result)
                last_result, quiet = cycle, 0
        if quiet > job.patience:
            outcome.mismatch(f"image {outcome.images}: no result within {job.patience} cycles of the one before")
            break

        start = image < len(beats) and (beat > 0 or image >= job.alone or image == outcome.images)
        if not offered and start and chance.random() >= job.stall:
            dut.pixels__payload.value = beats[image][beat]
            dut.pixels__valid.value = 1
            offered = True
        elif not offered:
            dut.pixels__valid.value = 0
        if job.stall:
            ready = chance.random() >= job.stall
            dut.result__ready.value = ready
            dut.stall.value = sum((chance.random() < job.stall) << stream for stream in range(job.streams))
    outcome.total_cycles = cycle
    for layer in layers:
        layer.finish()
    if results.words:
        outcome.mismatch(f"image {outcome.images}: {len(results.words)} words of a result that never ended")


def _beats(image: Any, beat: int, bits: int) -> list[int]:
    """An image's transfers as they stand on the port: pixels, the first lowest, then ``last``."""
    pixels = [int(pixel) for pixel in image]
    groups = [pixels[first : first + beat] for first in range(0, len(pixels), beat)]
    words = [sum(pixel << (bits * place) for place, pixel in enumerate(group)) for group in groups]
    words[-1] |= 1 << (bits * beat)
    return words
