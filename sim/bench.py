"""The cocotb bench of every network: drives pixels, and holds every spike, logit and class to the reference.

Runs inside the simulator (see `sim.runner`); the environment's ``CASC_JOB`` names a JSON file with the fields of `Job`.
"""

from __future__ import annotations

import json
import os
import random
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import cocotb
import numpy as np
from cocotb.clock import Clock
from cocotb.triggers import RisingEdge

MESSAGES = 20
"""Mismatches told in full; the others are counted."""
FIRED = 10_000
"""Transfers of each kind whose time is kept."""


@dataclass(frozen=True)
class Tap:
    """One layer's volleys, lowest bit first: mark, empty, in spike code the step's four flags, part, x, y, then ``lanes`` values.

    Attributes
    ----------
    shape: channels, height, width.
    widths: bits of part, x, y and of a value, which is signed where ``signed``.
    cumulative: values are counts since the image began.
    counting: a step is an image, and values are its counts: count code.
    before: spiking layers whose spikes make this one's steps active: itself, and those on the way to it.
    """

    shape: tuple[int, int, int]
    lanes: int
    widths: tuple[int, int, int, int]
    signed: bool
    cumulative: bool
    counting: bool
    before: tuple[int, ...]


def tap(spec: Any, index: int) -> Tap:
    """The tap of spiking layer ``index`` of a `rtl_gen.gates.core.CoreSpec`."""
    layer = spec.spiking[index]
    volleys = spec.volleys(layer.name)
    members = volleys.layout.members
    value = members["values"].elem_shape
    widths = (members["part"].width, members["x"].width, members["y"].width, value.width)
    before = tuple(number for number, other in enumerate(spec.spiking) if other.name in spec.ancestors(layer.name))
    return Tap(volleys.shape, volleys.lanes, widths, value.signed, spec.cumulative(layer.name), spec.counting, before)


@dataclass(frozen=True)
class Job:
    """What the bench is to do.

    Attributes
    ----------
    vectors: file made by `casc_hw.save_vectors`.
    outcome: JSON file to write.
    beat, pixel_bits: pixels a transfer, bits of a pixel.
    layers: per spiking layer, how its volleys stand on its tap.
    streams: width of the port ``stall``.
    stall: probability that a stream stands still in a cycle, 0 to 1.
    burst: cycles for which each stream within the core stands still, or none of these: long ones fill FIFOs.
    alone: the first so many images are sent each after the result of the one before.
    patience: cycles without a result after which the run is given up.
    seed: of the stalls.
    weights: JSON file of the words for the port ``weights``; empty: there is none.
    mutants: for the port ``mutant`` of a core of mutants (`sim.mutation`): a run for each, until it differs from the reference, after
        a reset amid an image; the outcomes are lines of JSON then. Those after a 0 have patience for three times its latency. Empty:
        there is no such port.
    faults: some images are framed or valued wrongly, such that only their status differs.
    """

    vectors: str
    outcome: str
    beat: int
    pixel_bits: int
    layers: list[Tap]
    streams: int
    stall: float
    alone: int
    patience: int
    seed: int
    weights: str = ""
    mutants: list[int] = field(default_factory=list)
    faults: bool = False
    burst: int = 1


@dataclass
class Outcome:
    """What the bench saw: ``spikes_compared`` values of neurons; `cycles` between results, `latency` from an image's first transfer
    to its last step."""

    images: int = 0
    spikes_compared: int = 0
    mismatches: int = 0
    messages: list[str] = field(default_factory=list)
    cycles: list[int] = field(default_factory=list)
    latency: list[int] = field(default_factory=list)
    sleep_steps: list[int] = field(default_factory=list)
    total_cycles: int = 0
    fired: list[list[int]] = field(default_factory=list)
    """When pixels entered, each layer's volleys passed, and words of results left: cycles, the first `FIRED` of each."""

    def mismatch(self, message: str, count: int = 1) -> None:
        self.mismatches += count
        if len(self.messages) < MESSAGES:
            self.messages.append(message)


class LayerCheck:
    """One layer's volleys, step by step, against the reference's spikes or counts."""

    def __init__(self, layer: int, vectors: Any, tap: Tap, outcome: Outcome):
        self.layer, self.outcome, self.tap = layer, outcome, tap
        self.wake, self.active = vectors["wake"], vectors["active"]
        channels, height, width = tap.shape

        def in_wire_order(values: Any) -> Any:
            return np.moveaxis(values.reshape(*values.shape[:-1], channels, height, width), -3, -1).reshape(*values.shape[:-1], -1)

        if tap.counting:  # a single step for each image
            self.expected = in_wire_order(vectors[f"counts_{layer}"])[None]
            self.busy = None
        else:
            self.expected = in_wire_order(vectors[f"spikes_{layer}"])
            self.busy = np.any([vectors[f"spikes_{index}"].any(2) for index in tap.before], axis=0)
        self.size = channels * height * width
        self.image = 0
        self.steps = self._steps()
        self.counts = np.zeros(self.size, dtype=np.int64)  # of this image, where they travel
        self.rested = self.counts  # of the image before
        self.got: dict[int, int] = {}

    def _steps(self) -> list[int]:
        return [] if self.image == self.active.shape[1] else [int(step) for step in np.flatnonzero(self.active[:, self.image])]

    def take(self, volley: int) -> None:
        """One transfer."""
        mark, empty, rest = volley & 1, volley >> 1 & 1, volley >> 2
        names = () if self.tap.counting else ("first", "wake", "final", "active")
        flags = {name: bool(rest >> bit & 1) for bit, name in enumerate(names)}
        rest >>= len(names)
        if not empty:
            place = []
            for bits in self.tap.widths[:3]:
                place.append(rest & ((1 << bits) - 1))
                rest >>= bits
            if rest or self.tap.cumulative:
                part, x, y = place
                self._values(part, x, y, rest)
        if mark:
            self._step(flags, bool(empty))

    def _values(self, part: int, x: int, y: int, rest: int) -> None:
        channels, _, width = self.tap.shape
        bits = self.tap.widths[3]
        mask, sign = (1 << bits) - 1, (1 << (bits - 1)) if self.tap.signed else 0
        first = (y * width + x) * channels
        for channel in range(part * self.tap.lanes, (part + 1) * self.tap.lanes):
            value, rest = ((rest & mask) ^ sign) - sign, rest >> bits
            if channel >= channels:
                if value:
                    self.outcome.mismatch(f"layer {self.layer}: {value} from a lane beyond the last channel")
            elif first + channel >= self.size:
                self.outcome.mismatch(f"layer {self.layer}: a volley from part {part} of (y, x) = {(y, x)}, which is not on the map")
            elif value or self.tap.cumulative:
                self.got[first + channel] = value

    def _step(self, flags: dict[str, bool], empty: bool) -> None:
        got, self.got = self.got, {}
        if not self.tap.counting and not flags["wake"] and (not self.steps or self.wake[self.steps[0]]):
            # sent ahead of the verdict that ended the sleep
            moved = [place for place, value in got.items() if value != (self.rested[place] if self.tap.cumulative else 0)]
            if moved or flags["active"]:
                message = f"layer {self.layer}: {len(moved)} spikes after image {self.image} had come to rest, expected none"
                self.outcome.mismatch(message, len(moved) or 1)
            return
        if not self.steps:
            self.outcome.mismatch(f"layer {self.layer}: a wake step after the last image")
            return
        number = self.steps.pop(0)
        row = self.expected[number, self.image]
        where = f"layer {self.layer}, image {self.image}" + ("" if self.tap.counting else f", step {number}")
        values = np.zeros(self.size, dtype=np.int64)
        values[list(got)] = list(got.values())
        if self.tap.cumulative:
            values = np.zeros_like(values) if empty else values - self.counts
            self.counts += row
        if list(got) != sorted(got):
            self.outcome.mismatch(f"{where}: neurons out of order")
        if self.busy is not None:
            active = self.busy[number, self.image]
            due = {"first": number == 0, "wake": self.wake[number], "final": not self.wake[number + 1 :].any(), "active": active}
            for name, flag in flags.items():
                if flag != due[name]:
                    self.outcome.mismatch(f"{where}: got {name}={flag}, expected {not flag}")
        wrong = np.flatnonzero(values != row)
        if len(wrong):
            channels, _, width = self.tap.shape
            pixel, channel = divmod(int(wrong[0]), channels)
            neuron = (channel, *divmod(pixel, width))
            named = f"neuron {neuron[0]}" if self.size == channels else f"neuron (channel, y, x) = {neuron}"
            self.outcome.mismatch(f"{where}, {named}: got {values[wrong[0]]}, expected {row[wrong[0]]}", len(wrong))
        self.outcome.spikes_compared += self.size
        if not self.steps:
            self.image += 1
            self.rested, self.counts = self.counts, np.zeros_like(self.counts)
            self.steps = self._steps()

    def finish(self) -> None:
        if self.steps or self.got:
            self.outcome.mismatch(f"layer {self.layer}: image {self.image} ended {len(self.steps)} steps early")


class ResultCheck:
    """The result stream: logits, class, status and cycles of each image, in order."""

    def __init__(self, vectors: Any, outcome: Outcome, malformed: Collection[int] = ()):
        self.vectors, self.outcome, self.malformed = vectors, outcome, malformed
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
        if len(words) != self.vectors["sums"].shape[1] + 3:
            self.outcome.mismatch(f"image {image}: {len(words)} words, expected {self.vectors['sums'].shape[1] + 3}")
            return True
        logits = [word - (1 << 32) if word >> 31 else word for word in words[:-3]]
        got = {"logits": logits, "class": words[-3], "status": words[-2]}
        expected = {
            "logits": self.vectors["sums"][image].tolist(),
            "class": int(self.vectors["classes"][image]),
            "status": int(self.vectors["sleep_steps"][image]) | (image in self.malformed) << 30,
        }
        for name, value in got.items():
            if value != expected[name]:
                self.outcome.mismatch(f"image {image}, {name}: got {value}, expected {expected[name]}")
        self.outcome.sleep_steps.append(words[-2] & 0xFFFF)
        self.outcome.latency.append(words[-1])
        return True


def load_vectors(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What `casc_hw.save_vectors` wrote; in count code with one step an image, as if it were a wake step."""
    vectors: dict[str, Any] = dict(np.load(path))
    if str(vectors["code"]) == "count":
        images = len(vectors["images"])
        vectors |= {"wake": np.ones(1, dtype=bool), "active": np.ones((1, images), dtype=bool)}
    return vectors


@cocotb.test()
async def equals_reference(dut: Any) -> None:
    """Every spike of every layer in every step, every logit and the class of every image."""
    said = json.loads(Path(os.environ["CASC_JOB"]).read_text())
    job = Job(**said | {"layers": [Tap(**layer) for layer in said["layers"]]})
    vectors = load_vectors(job.vectors)
    beats, malformed = _beats_of(vectors["images"], job)
    if not job.mutants:
        outcome = Outcome()
        try:
            await _start(dut, job)
            await _run(dut, job, vectors, beats, malformed, outcome)
        except Exception as error:  # what the checks do not expect is wrong, too
            outcome.mismatch(f"{type(error).__name__} in the bench: {error}")
            raise
        finally:
            Path(job.outcome).write_text(json.dumps(outcome.__dict__))
        assert outcome.mismatches == 0, outcome.messages[0]
        assert outcome.images == len(vectors["images"])
        return
    await _start(dut, job)
    with Path(job.outcome).open("a") as file:
        for mutant in job.mutants:
            outcome = Outcome()
            dut.mutant.value = mutant
            try:
                await _reset_amid_an_image(dut, beats[0][0])
                await _run(dut, job, vectors, beats, malformed, outcome)
            except Exception as error:
                outcome.mismatch(f"{type(error).__name__} in the bench: {error}")
            if mutant == 0:
                job = replace(job, patience=min(job.patience, 3 * max(outcome.latency, default=job.patience) + 500))
            file.write(json.dumps(outcome.__dict__) + "\n")
            file.flush()  # a mutant may end the simulator


async def _start(dut: Any, job: Job) -> None:
    """Clock, reset, weights."""
    dut.rst.value = 1
    dut.stall.value = 0
    dut.pixels__valid.value = 0
    dut.result__ready.value = 1
    Clock(dut.clk, 10, unit="ns").start()
    for _ in range(4):
        await RisingEdge(dut.clk)
    dut.rst.value = 0
    if job.weights:
        await _load(dut, json.loads(Path(job.weights).read_text()), job.stall, random.Random(job.seed))


async def _reset_amid_an_image(dut: Any, beat: int) -> None:
    """What reset does is put to the test, too."""
    dut.pixels__payload.value = beat
    dut.pixels__valid.value = 1
    dut.stall.value = 0
    dut.result__ready.value = 1
    for cycle in range(60):
        await RisingEdge(dut.clk)
        dut.rst.value = cycle > 50
    dut.pixels__valid.value = 0
    dut.rst.value = 0


async def _run(dut: Any, job: Job, vectors: dict[str, Any], beats: list[list[int]], malformed: set[int], outcome: Outcome) -> None:
    """All images, from reset."""
    layers = [LayerCheck(index, vectors, tap, outcome) for index, tap in enumerate(job.layers)]
    results = ResultCheck(vectors, outcome, malformed)
    taps = [getattr(dut, f"volleys_{index}") for index in range(len(layers))]
    chance = random.Random(job.seed)

    fired: list[list[int]] = [[] for _ in range(len(layers) + 2)]
    outcome.fired = fired
    image = beat = 0  # the transfer offered or to be offered next
    offered, taken, ready, quiet, last_result = False, False, True, 0, 0
    cycle = 0
    margin = 64 + 4 * len(beats[0]) if job.stall else 64  # cycles watched after the last result: nothing more may come
    while (outcome.images < len(beats) or quiet < margin) and not (job.mutants and outcome.mismatches):
        await RisingEdge(dut.clk)
        cycle += 1
        quiet += 1
        if taken and not int(dut.busy.value):
            outcome.mismatch(f"image {image}: not busy after a transfer of pixels")
        taken = offered and bool(int(dut.pixels__ready.value))
        if taken:
            offered = False
            fired[0].append(cycle)
            beat += 1
            if beat == len(beats[image]):
                image, beat = image + 1, 0
        for index, layer in enumerate(layers):
            transfer = int(taps[index].value)
            if transfer & 1:
                layer.take(transfer >> 1)
                if len(fired[index + 1]) < FIRED:
                    fired[index + 1].append(cycle)
        if ready and int(dut.result__valid.value):
            word = int(dut.result__payload.value)
            fired[-1].append(cycle)
            if not int(dut.busy.value):
                outcome.mismatch(f"image {outcome.images}: not busy while its result leaves")
            if results.take(word & 0xFFFFFFFF, bool(word >> 32)):
                # With this word held up, the next image's status may be there already.
                if int(dut.error.value) not in {image_ in malformed for image_ in (outcome.images - 1, outcome.images)}:
                    outcome.mismatch(f"image {outcome.images - 1}: error is {int(dut.error.value)}")
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
        if job.stall and cycle % job.burst == 0:
            dut.stall.value = sum((chance.random() < job.stall) << stream for stream in range(job.streams))
    outcome.total_cycles = cycle
    for layer in layers:
        layer.finish()
    if results.words:
        outcome.mismatch(f"image {outcome.images}: {len(results.words)} words of a result that never ended")
    if not outcome.mismatches and int(dut.busy.value):
        outcome.mismatch("busy after the last result")


async def _load(dut: Any, words: list[int], stall: float, chance: random.Random) -> None:
    """Give the core its weights."""
    for index, word in enumerate(words):
        while chance.random() < stall:
            dut.weights__valid.value = 0
            await RisingEdge(dut.clk)
        dut.weights__payload.value = word | (index == len(words) - 1) << 16
        dut.weights__valid.value = 1
        await RisingEdge(dut.clk)
        assert int(dut.weights__ready.value), f"word {index} of weights was not taken"
    dut.weights__valid.value = 0


def _beats(image: Any, beat: int, bits: int) -> list[int]:
    """An image's transfers as they stand on the port: pixels, the first lowest, then ``last``."""
    pixels = [int(pixel) for pixel in image]
    groups = [pixels[first : first + beat] for first in range(0, len(pixels), beat)]
    words = [sum(pixel << (bits * place) for place, pixel in enumerate(group)) for group in groups]
    words[-1] |= 1 << (bits * beat)
    return words


def _beats_of(images: Any, job: Job) -> tuple[list[list[int]], set[int]]:
    """Every image's transfers, and with ``job.faults`` which images are malformed.

    Of four images one goes on for three transfers beyond its end, one ends with its last pixels that are not zero, and one has its
    brightest pixels too bright; pixels beyond the last one are anything.
    """
    all_beats = [_beats(image, job.beat, job.pixel_bits) for image in images]
    malformed: set[int] = set()
    if not job.faults:
        return all_beats, malformed
    bits, last = job.pixel_bits, 1 << (job.pixel_bits * job.beat)
    brightest = int(images.max())
    for index, (image, beats) in enumerate(zip(images, all_beats, strict=True)):
        before = list(beats)
        if index % 4 == 1:
            beats[-1] ^= last
            beats += [last - 1, last - 1, 2 * last - 1]
        elif index % 4 == 2:
            while len(beats) > 1 and beats[-1] == last:
                beats.pop()
                beats[-1] |= last
        elif index % 4 == 3 and brightest < (1 << bits) - 1:
            for place in (place for place, pixel in enumerate(image) if pixel == brightest):
                beats[place // job.beat] |= ((1 << bits) - 1) << (bits * (place % job.beat))
        if before != beats:
            malformed.add(index)
        unused = len(before) * job.beat - len(image)
        if unused and len(beats) >= len(before):
            beats[len(before) - 1] |= (last - 1) >> (bits * (job.beat - unused)) << (bits * (job.beat - unused))
    return all_beats, malformed
