"""The link and a board's top around the dummy core: requests on the wire, answers on the wire, in simulation."""

import struct
from dataclasses import replace

import pytest
from amaranth.back import rtlil
from amaranth.sim import Simulator

from boards.host import Frame, Hello, decode, encode, split, stuff
from boards.top import BoardTop
from rtl_gen.gates.frame import ANSWER, ERROR, PROTOCOL, Fault, Kind
from rtl_gen.gates.link import AnswerBook, HostLink, LinkSpec
from sim.dummy_core import EARLY, HANG, LATE, LOGITS, SLOW, DummyCore, dummy_answer

SPEC = LinkSpec(digest=bytes(range(100, 132)), levels=4, margin=3, input_shape=(1, 2, 3), input_max=255, outputs=(7, LOGITS), beat=4,
                clock_hz=4_000_000, watchdog=3000)  # fmt: skip
BIT = SPEC.uart.divisor
IO = 1 / SPEC.clock_hz


def exchange(wire: bytes, *, spec: LinkSpec = SPEC, ratio: float = 1.37, cycles: int, leds: int = 8) -> tuple[list[Frame], int, int]:
    """The answers to ``wire`` within so many io cycles, all sound; the LEDs at the end; and whether the board is busy then.

    ``ratio``: sync's frequency over io's.
    """
    top = BoardTop(DummyCore(spec), spec, leds)
    sim = Simulator(top)
    sim.add_clock(IO, domain="io")
    sim.add_clock(IO / ratio, domain="sync")
    received = bytearray()
    final = {}

    async def send(ctx):
        await ctx.delay(20.3 * IO)
        for byte in wire:
            for level in (0, *(byte >> index & 1 for index in range(8)), 1):
                ctx.set(top.rx, level)
                await ctx.delay(BIT * IO)

    async def take(ctx):
        while True:
            await ctx.negedge(top.tx)
            await ctx.delay(1.5 * BIT * IO)
            byte = 0
            for index in range(8):
                byte |= ctx.get(top.tx) << index
                await ctx.delay(BIT * IO)
            assert ctx.get(top.tx) == 1, "stop bit"
            received.append(byte)

    async def wait(ctx):
        await ctx.delay(cycles * IO)
        final.update(leds=ctx.get(top.leds), busy=ctx.get(top.busy))

    sim.add_testbench(send, background=True)
    sim.add_testbench(take, background=True)
    sim.add_testbench(wait)
    sim.run()
    stuffed, rest = split(bytes(received))
    answers = [decode(body) for body in stuffed]
    assert rest == b""
    assert all(answers), "a damaged answer"
    return answers, final["leds"], final["busy"]


def image(sequence: int, pixels: list[int]) -> bytes:
    return encode(Frame(Kind.IMAGE, sequence, bytes(pixels)))


def words(answer: Frame) -> list[int]:
    """An IMAGE answer in the order of `dummy_answer`."""
    class_index, flags, sleep, cycles, count = struct.unpack_from("<HBHIH", answer.payload)
    return [*struct.unpack_from(f"<{count}i", answer.payload, 11), class_index, sleep | flags << 24, cycles]


def error(sequence: int, fault: Fault, kind: int) -> Frame:
    return Frame(ERROR, sequence, bytes([fault, kind]))


def wire_cycles(count: int) -> int:
    """io cycles that ``count`` bytes take on the wire."""
    return count * (10 * BIT + 1)


IMAGES = [[1, 2, 3, 4, 5, 6], [0x7E, 0x7D, 0x7E, 0x7D, 0, 255], [250] * 6, [0] * 6]
HELLO_WIRE, RESET_WIRE = encode(Frame(Kind.HELLO, 0x7E)), encode(Frame(Kind.RESET, 5))


def test_hello_tells_the_spec():
    (answer,), leds, busy = exchange(HELLO_WIRE, cycles=wire_cycles(80))
    assert (answer.kind, answer.sequence, busy, leds) == (Kind.HELLO | ANSWER, 0x7E, 0, 0)
    assert Hello.parse(answer.payload) == Hello(bytes(range(100, 116)).hex(), 4, 3, 255, (1, 2, 3), (7, 3), 2, 751e-6, "spike", (1, 1))
    counting = Hello.parse(replace(SPEC, outputs=(7, 12), grid=(3, 2), counting=True).hello())
    assert (counting.code, counting.grid) == ("count", (3, 2))


@pytest.mark.parametrize("ratio", [0.21, 1.0, 1.37, 4.3])
def test_answers_images_sent_ahead_in_order(ratio):
    wire = b"".join(image(10 + index, pixels) for index, pixels in enumerate(IMAGES))
    answers, leds, busy = exchange(wire, ratio=ratio, cycles=wire_cycles(40 * len(IMAGES)))
    assert [(answer.kind, answer.sequence) for answer in answers] == [(Kind.IMAGE | ANSWER, 10 + index) for index in range(len(IMAGES))]
    assert [words(answer) for answer in answers] == [dummy_answer(pixels, SPEC.beat) for pixels in IMAGES]
    assert (leds, busy) == (dummy_answer(IMAGES[-1], SPEC.beat)[LOGITS], 0)


@pytest.mark.parametrize(
    ("beat", "banks", "maximum", "shape"),
    [(1, 1, 255, (1,)), (1, 2, 1, (5,)), (3, 1, 15, (7, 1)), (8, 2, 100, (2, 2)), (6, 2, 255, (6,))],
)
def test_odd_shapes(beat, banks, maximum, shape):
    spec = replace(SPEC, beat=beat, banks=banks, input_max=maximum, input_shape=shape)
    images = [[(7 * index + 3 * at) % (maximum + 1) for at in range(spec.pixels)] for index in range(3)]
    wire = b"".join(image(index, pixels) + bytes([0x7E] * 30) for index, pixels in enumerate(images))
    answers, _, _ = exchange(wire, spec=spec, cycles=wire_cycles(170))
    assert [words(answer) for answer in answers] == [dummy_answer(pixels, beat) for pixels in images]


def test_every_fault_is_named_and_harms_nothing():
    good = IMAGES[0]
    damaged = bytearray(image(1, good))
    damaged[5] ^= 0x10
    spec = replace(SPEC, input_max=254)
    wire = b"".join(
        [
            bytes(damaged),
            encode(Frame(Kind.HELLO, 2, version=PROTOCOL - 1)),
            encode(Frame(0, 3)),
            encode(Frame(0x40, 4)),
            encode(Frame(Kind.HELLO, 5, b"x")),
            image(6, good[:-1]),
            image(7, [*good, 0]),
            stuff(b""),
            image(8, [1, 2, 3, 4, 5, 255]),
            b"garbage",
            image(9, good),
        ]
    )
    answers, _, busy = exchange(wire, spec=spec, cycles=wire_cycles(len(wire) + 150))
    assert answers[:-1] == [
        error(1, Fault.DAMAGED, Kind.IMAGE),
        error(2, Fault.VERSION, Kind.HELLO),
        error(3, Fault.KIND, 0),
        error(4, Fault.KIND, 0),
        error(5, Fault.LENGTH, Kind.HELLO),
        error(6, Fault.LENGTH, Kind.IMAGE),
        error(7, Fault.LENGTH, Kind.IMAGE),
        error(8, Fault.PIXEL, Kind.IMAGE),
        error(ord("r"), Fault.DAMAGED, 0),
    ]
    assert (answers[-1].sequence, words(answers[-1]), busy) == (9, dummy_answer(good, SPEC.beat), 0)


def test_a_frame_that_was_cut_or_promises_too_much_swallows_nothing():
    cut = [image(1, IMAGES[0])[:length] for length in (2, 6, 9, 13)]
    boast = stuff(bytes([1, Kind.IMAGE, 1, 0xFF, 0xFF, 1, 2, 3]))
    wire = b"".join(bad + image(40 + index, IMAGES[0]) for index, bad in enumerate([*cut, boast]))
    answers, _, _ = exchange(wire, cycles=wire_cycles(350))
    assert [answer.sequence for answer in answers if answer.kind != ERROR] == [40, 41, 42, 43, 44]
    assert all(answer.payload[0] == Fault.DAMAGED for answer in answers if answer.kind == ERROR)


def test_a_flood_of_garbage_leaves_room_for_requests():
    wire = b"\x7e\x01" * 60 + encode(Frame(Kind.HELLO, 3)) + image(4, IMAGES[0])
    answers, _, _ = exchange(wire, cycles=wire_cycles(500))
    assert [answer.sequence for answer in answers[-2:]] == [3, 4]
    assert {answer.payload for answer in answers[:-2]} == {bytes([Fault.DAMAGED, 0])}


def test_more_images_than_banks_are_refused_busy():
    slow = [SLOW, 0, 0, 0, 0, 0]
    wire = b"".join(image(index, slow) for index in range(1, 9)) + HELLO_WIRE
    answers, _, _ = exchange(wire, ratio=1.0, cycles=wire_cycles(450))
    done = [answer.sequence for answer in answers if answer.kind == Kind.IMAGE | ANSWER]
    busy = [answer.sequence for answer in answers if answer == error(answer.sequence, Fault.BUSY, Kind.IMAGE)]
    assert [answer.sequence for answer in answers] == [1, 2, 3, 4, 5, 6, 7, 8, 0x7E]
    assert done[:3] == [1, 2, 3]
    assert len(done) >= 4
    assert len(busy) >= 1
    assert sorted(done + busy) == [1, 2, 3, 4, 5, 6, 7, 8]


@pytest.mark.parametrize("ratio", [0.21, 4.3])
@pytest.mark.parametrize(("first", "fault"), [(HANG, Fault.TIMEOUT), (EARLY, Fault.MALFORMED), (LATE, Fault.MALFORMED)])
def test_a_core_that_fails_is_reset_and_named(first, fault, ratio):
    wire = image(1, [first, 1, 2, 3, 4, 5]) + image(2, IMAGES[0]) + bytes([0x7E] * 80) + image(3, IMAGES[1])
    answers, leds, _ = exchange(wire, ratio=ratio, cycles=wire_cycles(len(wire) + 60) + SPEC.watchdog)
    assert answers[0] == error(1, fault, Kind.IMAGE)
    assert answers[1] == error(2, Fault.RESET, Kind.IMAGE) or words(answers[1]) == dummy_answer(IMAGES[0], SPEC.beat)
    assert words(answers[2]) == dummy_answer(IMAGES[1], SPEC.beat)
    assert len(answers) == 3
    assert leds >> 6 == 0


@pytest.mark.parametrize("ratio", [0.21, 1.0, 4.3])
@pytest.mark.parametrize("pause", [0, 3])
def test_reset_leaves_nothing_behind(pause, ratio):
    slow = image(1, [SLOW, 255, 255, 255, 9, 9])
    wire = slow + image(2, IMAGES[2]) + bytes([0x7E] * pause) + RESET_WIRE + image(6, IMAGES[0]) + RESET_WIRE + image(7, IMAGES[1])
    answers, _, busy = exchange(wire, ratio=ratio, cycles=wire_cycles(len(wire) + 150))
    assert [answer.sequence for answer in answers] == [1, 2, 5, 6, 5, 7]
    assert answers[0] == error(1, Fault.RESET, Kind.IMAGE)
    assert answers[1] == error(2, Fault.RESET, Kind.IMAGE)
    assert answers[2] == answers[4] == Frame(Kind.RESET | ANSWER, 5)
    assert answers[3] == error(6, Fault.RESET, Kind.IMAGE) or words(answers[3]) == dummy_answer(IMAGES[0], SPEC.beat)
    assert (words(answers[5]), busy) == (dummy_answer(IMAGES[1], SPEC.beat), 0)


def test_a_hung_core_leaves_the_led_on():
    answers, leds, busy = exchange(image(1, [HANG] * 6), cycles=wire_cycles(40) + SPEC.watchdog)
    assert (answers, leds >> 7, busy) == ([error(1, Fault.TIMEOUT, Kind.IMAGE)], 1, 0)


@pytest.mark.parametrize("leds", [1, 2, 3, 12])
def test_leds_and_conversion(leds):
    spec = replace(SPEC, input_shape=(28, 28), watchdog=100_000)
    assert rtlil.convert(BoardTop(DummyCore(spec), spec, leds))
    assert rtlil.convert(HostLink(spec))


@pytest.mark.parametrize("change", [
    {"digest": b"short"}, {"digest": "0" * 32}, {"levels": 0}, {"margin": -1}, {"input_max": 256}, {"input_shape": ()},
    {"input_shape": (300, 300)}, {"outputs": ()}, {"outputs": (3, 20000)}, {"beat": 0}, {"banks": 3}, {"watchdog": 6}, {"baud": 3_000_000},
])  # fmt: skip
def test_refuses(change):
    with pytest.raises(ValueError, match=r"link:|uart:"):
        replace(SPEC, **change)


@pytest.mark.parametrize("outputs", [(1,), (10,), (1000,), (3, 1000, 2)])
def test_the_answer_book_holds_together(outputs):
    book = AnswerBook(replace(SPEC, outputs=outputs))
    for kind, body in book.bodies.items():
        assert book.contents[book.starts[kind] : book.ends[kind] + 1] == body
        assert int.from_bytes(body[3:5], "little") == len(body) - 5
    assert (book.starts[Kind.IMAGE] + 5) % 16 == 0
