"""What is claimed of a whole core: each image gets the answer of the network's function, in time, whatever the back-pressure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from amaranth.hdl import Array, Cat, Mux, Signal

from casc_hw.network import IMAGE, IntegerNet, Layer
from rtl_gen.formal.bench import Bench, Property
from rtl_gen.gates import core as core_gates
from rtl_gen.gates.core import CoreSpec
from rtl_gen.gates.readout import STATUS
from rtl_gen.lower import Code, Lanes, core_spec

TICKETS = 2
"""Room for images under way: the gates have more, which no bench here fills."""


@dataclass(frozen=True)
class Tiny:
    """A dense network so small that a proof covers every image.

    hidden, biases, thresholds: of the one layer of neurons, by neuron; readout, offsets: of the classes.
    maximum: of a pixel. lanes: of both layers. beat: pixels a transfer.
    """

    code: Code
    levels: int
    hidden: tuple[tuple[int, ...], ...]
    biases: tuple[int, ...]
    thresholds: tuple[int, ...]
    readout: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    maximum: int = 1
    lanes: int = 1
    beat: int = 1

    def net(self) -> IntegerNet:
        import torch

        nodes = (
            Layer.dense("hidden", IMAGE, torch.tensor(self.hidden), torch.tensor(self.biases), torch.tensor(self.thresholds), 8, None),
            Layer.dense("readout", "hidden", torch.tensor(self.readout), torch.tensor(self.offsets), None, 8, 1.0),
        )
        return IntegerNet("proof", self.levels, self.levels, None, (len(self.hidden[0]), 1, 1), self.maximum, nodes)

    def spec(self) -> CoreSpec:
        return core_spec(self.net(), [Lanes(self.lanes, self.lanes)] * 2, self.beat, self.code)

    def answer(self, pixels: Sequence[int]) -> list[int]:
        """The sums of docs/semantics.md: of T wake steps, at rest."""
        counts = []
        for weights, bias, theta in zip(self.hidden, self.biases, self.thresholds, strict=True):
            total = self.levels * (sum(w * p for w, p in zip(weights, pixels, strict=True)) + bias)
            counts.append(min(max(total // theta, 0), self.levels))
        return [
            sum(w * n for w, n in zip(weights, counts, strict=True)) + self.levels * offset
            for weights, offset in zip(self.readout, self.offsets, strict=True)
        ]


def core(case: Tiny, patience: int, images: int = 1, *, cover: bool = False) -> Bench:
    """Sound images one after the other, at most ``images`` of them under way, any back-pressure.

    patience: cycles until a core offers the next word, or takes the next pixel. cover: claim, wrongly, that no image is answered.
    """
    assert images in (1, 2)
    spec = case.spec()
    bench, dut = Bench(), core_gates.Core(spec, tickets=TICKETS)
    m = bench.m
    bench.part("dut", dut)
    pixels, result = dut.pixels, dut.result
    bench.drive(pixels, "pixels", stable=True)
    bench.take(result, "result")
    size, classes, beats = spec.pixels.size, len(case.readout), spec.pixels.beats
    enter, leave = pixels.valid & pixels.ready, result.valid & result.ready

    # What comes: images of the right size, of pixels up to the maximum.
    beat = Signal(range(beats + 1))
    bench.assume(~pixels.valid | (pixels.p.last == (beat == beats - 1)))
    for lane in range(case.beat):
        bench.assume(~pixels.valid | (pixels.p.data[lane] <= case.maximum))
    begun, ended = enter & (beat == 0), leave & result.p.last
    bits = case.maximum.bit_length()
    image = [Signal(bits, name=f"pixel_{place}") for place in range(size)]  # of the image that comes
    word = Signal(range(classes + 4))  # of the result that leaves
    first, second = Signal(bits * size), Signal(bits * size)  # the images that are under way and complete, the older first
    level, complete = Signal(range(images + 1)), Signal(range(images + 1))
    m.d.sync += level.eq(level + begun - ended)
    bench.assume(~pixels.valid | (beat != 0) | (level < images))
    now = list(image)
    for place in range(size):
        here = enter & (beat == place // case.beat)
        now[place] = Mux(here, pixels.p.data[place % case.beat], image[place])
        m.d.sync += image[place].eq(now[place])
    whole = enter & pixels.p.last
    with m.If(enter):
        m.d.sync += beat.eq(Mux(pixels.p.last, 0, beat + 1))
    with m.If(leave):
        m.d.sync += word.eq(Mux(result.p.last, 0, word + 1))
    m.d.sync += complete.eq(complete + whole - ended)
    with m.If(ended):
        m.d.sync += first.eq(Mux(complete == 1, Cat(now), second))
    with m.Elif(whole & (complete == 0)):
        m.d.sync += first.eq(Cat(now))
    if images > 1:
        with m.If(whole & (complete == 1 + ended)):
            m.d.sync += second.eq(Cat(now))

    # What must come of it.
    answers = []
    for code in range(1 << (bits * size)):
        values = [code >> (bits * place) & ((1 << bits) - 1) for place in range(size)]
        answers.append(case.answer([min(value, case.maximum) for value in values]))
    span = max(abs(value) for answer in answers for value in answer).bit_length() + 1
    for place in range(classes):
        expected = Signal(32, name=f"sum_{place}")
        m.d.comb += expected.eq(Array(answer[place] & 0xFFFFFFFF for answer in answers)[first])
        at = result.valid & (word == place)
        bench.claim(f"sum {place} is the network's", ~at | (result.p.data[:span] == expected[:span]))
        bench.claim(f"sum {place} is the network's, sign", ~at | (result.p.data[span:] == expected[span:]))
    best = Signal(range(max(classes, 2)))
    m.d.comb += best.eq(Array(answer.index(max(answer)) for answer in answers)[first])
    bench.claim("the class is the network's", ~(result.valid & (word == classes)) | (result.p.data == best))
    status = STATUS(result.p.data)
    bench.claim("nothing is malformed or unsettled", ~(result.valid & (word == classes + 1)) | ~(status.malformed | status.unsettled))
    bench.claim("a result is of the right length", ~result.valid | (result.p.last == (word == classes + 2)))
    bench.claim("a result comes of an image that is complete only", ~result.valid | (complete != 0))
    bench.claim("an offer stands until it is taken", bench.stands(result, "result"))
    waited, deaf = Signal(range(patience + 2)), Signal(range(patience + 2))
    m.d.sync += waited.eq(Mux((complete == 0) | result.valid, 0, waited + (waited <= patience)))
    bench.claim("a word of the result is offered in time", waited <= patience)
    m.d.sync += deaf.eq(Mux(enter | ~pixels.valid | (result.valid & ~result.ready), 0, deaf + (deaf <= patience)))
    bench.claim("a pixel is taken in time", deaf <= patience)
    if cover:
        bench.claim("no image is answered", ~(leave & result.p.last))
    return bench


def _core(name: str, case: Tiny, depth: int, patience: int, images: int = 1) -> Property:
    what = f"{case.code} code, {len(case.hidden[0])} pixels, {len(case.hidden)} neurons, {len(case.readout)} classes, T = {case.levels}"
    claim = f"sums and class are the network's for every image, each word within {patience} cycles ({what}, {images} under way)"
    return Property(f"core-{name}", claim, lambda: core(case, patience, images), depth, False, bounded=True)


ONE = {"levels": 1, "hidden": ((2,),), "biases": (-1,), "thresholds": (1,), "readout": ((3,), (-2,)), "offsets": (-1, 1)}
COUNT, SPIKE = Tiny("count", **ONE), Tiny("spike", **ONE)  # type: ignore[arg-type]
PROPERTIES = (
    _core("count", COUNT, 44, 36),
    _core("count-2", COUNT, 44, 36, images=2),
    _core("spike", SPIKE, 54, 48),
)
