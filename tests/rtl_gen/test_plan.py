"""Plans: within the budget, steered by their options, refused with numbers and advice; what they cost, and what bounds them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import boards
from casc_hw import CascError, ClipQuan, IntegerNet, Layer, Synapses, convert, quantised_ann, simulate
from casc_hw.data import load_images
from casc_hw.network import IMAGE
from rtl_gen.budget import Budget
from rtl_gen.cycles import assume, measure
from rtl_gen.gates.synapses import lanes_fit
from rtl_gen.limits import limits_of, operations, sent
from rtl_gen.lower import Lanes, core_spec, geometry
from rtl_gen.plan import Options, kind_of, make_plan, plan_of
from rtl_gen.resources import Resources, estimate, parts
from rtl_gen.search import CLOCK_HZ, MAX_NEURON_LANES, Search, held_by, narrower
from sim.random_nets import random_graph

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
DIGITS, MNIST = (IntegerNet.load(EXAMPLES / f"{name}_mlp.pt") for name in ("digits", "mnist"))
BOARDS = {board.name: board.budget for board in boards.all_boards()}
BIG, SMALL = BOARDS["ulx3s-85f"], BOARDS["ulx3s-12f"]
GRAPHS = [random_graph(seed) for seed in (1, 4, 9, 15)]


def images(net: IntegerNet) -> torch.Tensor:
    return load_images(net, None, EXAMPLES / f"{net.name}.pt")[0]


def convolutional(channels: int = 12, size: int = 10) -> IntegerNet:
    """Two convolutions of 3 x 3 and a dense read-out, about half of whose neurons spike."""
    chance = torch.Generator().manual_seed(3)

    def weight(*shape: int) -> torch.Tensor:
        return torch.randint(-8, 8, shape, generator=chance)

    one, two = torch.full((channels,), 300), torch.full((channels,), 8)
    zero = torch.zeros(channels, dtype=torch.int64)
    nodes = (
        Layer("one", (Synapses(IMAGE, weight(channels, 1, 3, 3), 4, padding=(1, 1)),), zero, one),
        Layer("two", (Synapses("one", weight(channels, channels, 3, 3), 4, stride=(2, 2), padding=(1, 1)),), zero, two),
        Layer.dense("out", "two", weight(5, channels * (-(-size // 2)) ** 2), zero[:5], None, 4, 1.0),
    )
    return IntegerNet("conv", 4, 4, None, (1, size, size), 15, nodes)


CONV = convolutional()


class Elman(torch.nn.Module):
    """A recurrent network, unrolled over the four rows of its images."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.wx, self.wh, self.out = torch.nn.Conv2d(1, 4, (1, 6)), *(torch.nn.Linear(4, size) for size in (4, 4, 3))
        self.clip = ClipQuan(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        e = self.clip(self.embed(x))
        h = self.clip(self.wx(e[:, :, 0, 0]))
        for t in range(1, 4):
            h = self.clip(self.wx(e[:, :, t, 0]) + self.wh(h))
        return self.out(h)


@pytest.mark.parametrize("code", ["spike", "count"])
def test_a_recurrent_network_fits(code: Any) -> None:
    torch.manual_seed(0)
    net = convert(Elman(), input_shape=(4, 6)).net
    plan = make_plan(net, SMALL, Options(code=code))
    assert [layer.name for layer in net.layers] == ["embed", "wx", "wh", "wh.2", "wh.3", "out"]
    assert len(plan.spec.layers) == 6


@pytest.mark.parametrize("code", ["spike", "count"])
@pytest.mark.parametrize("board", BOARDS)
def test_within_the_budget(board: str, code: Any) -> None:
    plan = make_plan(DIGITS, BOARDS[board], Options(code), images=images(DIGITS))
    for kind, used, available in plan.resources.rows():
        assert 0 <= used <= available * (0.8 if kind in ("LUT4", "FF") else 1), kind
    assert plan.resources.lut4 > 0
    assert plan.code == code


@pytest.mark.parametrize("net", [*GRAPHS, CONV], ids=lambda net: net.name)
@pytest.mark.parametrize("code", ["spike", "count"])
def test_graphs_get_lanes_that_fit(net: IntegerNet, code: Any) -> None:
    plan = make_plan(net, SMALL, Options(code))
    for layer, lanes in zip(net.layers, plan.lanes, strict=True):
        assert all(lanes_fit(geometry(net, synapses), lanes.synapses) for synapses in layer.synapses)
        assert lanes.synapses % lanes.neurons == 0
        if layer.threshold is not None:
            assert lanes.neurons & (lanes.neurons - 1) == 0
            assert lanes.neurons <= MAX_NEURON_LANES
    assert [node.name for node in plan.layers] == [node.name for node in net.nodes]
    assert plan.spec == core_spec(net, plan.lanes, plan.beat, code, plan.queue)


def test_the_part_that_holds_the_others_gets_more() -> None:
    """From one lane everywhere, where the second convolution is the slowest by far, to a plan in which no part is idle for long."""
    start = plan_of(CONV, BIG, [Lanes(1, 1)] * 3, 1)
    assert start.bottleneck.part == "two synapses"
    plan = make_plan(CONV, BIG)
    assert plan.prediction.interval < start.prediction.interval / 4
    assert plan.lanes[1].synapses >= 4
    assert max(plan.prediction.busy.values()) > 0.5 * plan.prediction.interval


@pytest.mark.parametrize("share", [0.6, 0.8])
def test_max_share_is_honoured(share: float) -> None:
    plan = make_plan(DIGITS, BOARDS["icebreaker"], Options(max_share=share, fastest=True), images=images(DIGITS))
    assert plan.resources.lut4 <= share * 5280
    assert plan.resources.lut4 > (share - 0.25) * 5280  # and made use of


def test_the_lenet_fits_an_icebreaker_a_tap_at_a_time() -> None:
    """Its smallest plan fills about what plans do, unless told what may be filled."""
    net, board = IntegerNet.load(EXAMPLES / "lenet_up5k.pt"), BOARDS["icebreaker"]
    plan = make_plan(net, board, images=images(net))
    assert [lanes.serial for lanes in plan.lanes] == [True, True, False]
    assert 0.75 * 5280 < plan.resources.lut4 < 0.95 * 5280
    fastest = make_plan(net, board, Options(fastest=True), images=images(net))
    assert fastest.prediction.interval < 0.6 * plan.prediction.interval
    fixed = make_plan(net, board, Options(lanes={"conv2": (2, None)}), images=images(net))
    assert (fixed.lanes[1].synapses, fixed.lanes[1].neurons, fixed.lanes[1].serial) == (2, 2, True)
    with pytest.raises(CascError, match="lanes of the planner's choice"):
        make_plan(net, board, Options(lanes={"conv2": (4, 2)}), images=images(net))
    roomy = make_plan(net, board, Options(max_share=0.9), images=images(net))
    assert plan.resources.lut4 < roomy.resources.lut4 <= 0.9 * 5280
    assert roomy.prediction.interval < plan.prediction.interval
    with pytest.raises(CascError, match=r"lenet_up5k: needs at least \d+ of LUT4, iCE40UP5K has 3960 to give"):
        make_plan(net, board, Options(max_share=0.75), images=images(net))


@pytest.mark.parametrize("luts", [6000, 9000, 18000])
def test_max_lut_is_honoured_and_stands_above_the_share(luts: int) -> None:
    plan = make_plan(CONV, SMALL, Options(max_lut=luts, max_share=0.5, fastest=True))
    assert 0.6 * luts < plan.resources.lut4 <= luts


def test_fastest_is_faster_and_larger() -> None:
    normal, fastest = (make_plan(MNIST, BIG, Options(fastest=fastest), images=images(MNIST)) for fastest in (False, True))
    assert fastest.prediction.interval < normal.prediction.interval
    assert fastest.resources.lut4 > normal.resources.lut4


@pytest.mark.parametrize("share", [0.3, 0.8])
def test_a_target_takes_the_smallest_plan_that_reaches_it(share: float) -> None:
    fastest = make_plan(CONV, BIG, Options(fastest=True))
    target = share * 80e6 / fastest.prediction.interval
    plan = make_plan(CONV, BIG, Options(target_fps=target))
    assert plan.clock_hz / plan.prediction.interval >= target
    assert plan.resources.lut4 <= 1.02 * fastest.resources.lut4
    search = Search(CONV, BIG, Options(target_fps=target))
    for lanes, beat in search._fewer(search.candidate(list(plan.lanes), plan.beat)):
        fewer = search.candidate(lanes, beat)
        assert fewer.prediction.interval > 80e6 / target or fewer.resources.lut4 >= plan.resources.lut4


def test_a_target_out_of_reach_is_refused_with_the_best_there_is() -> None:
    words = r"conv: 10,000,000 images a second are 8 cycles each at 80 MHz, LFE5U-85F gives [\d,]+ at best .* is held by .*"
    with pytest.raises(CascError, match=words):
        make_plan(CONV, BIG, Options(target_fps=1e7))
    assert CLOCK_HZ["SB_RAM40_4K"] == 24e6


@pytest.mark.parametrize("lanes", [(2, None), (16, None), (16, 4), (16, 16)])
def test_lanes_are_honoured_and_change_the_digest(lanes: tuple[int, int | None]) -> None:
    free = make_plan(DIGITS, BIG, images=images(DIGITS))
    name = free.layers[0].name
    fixed = make_plan(DIGITS, BIG, Options(lanes={name: lanes}), images=images(DIGITS))
    assert fixed.lanes[0].synapses == lanes[0]
    assert lanes[1] is None or fixed.lanes[0].neurons == lanes[1]
    assert (fixed.digest == free.digest) == (fixed.lanes == free.lanes and fixed.beat == free.beat)
    assert fixed.digest == make_plan(DIGITS, BIG, Options(lanes={name: lanes}), images=images(DIGITS)).digest


def test_everything_the_gates_depend_on_is_in_the_digest() -> None:
    plan = plan_of(DIGITS, BIG, [Lanes(8, 2), Lanes(5, 5)], 4)
    others = [
        plan_of(DIGITS, BIG, [Lanes(8, 4), Lanes(5, 5)], 4),
        plan_of(DIGITS, BIG, [Lanes(8, 2, "logic"), Lanes(5, 5)], 4),
        plan_of(DIGITS, BIG, [Lanes(8, 2, serial=True), Lanes(5, 5)], 4),
        plan_of(DIGITS, BIG, [Lanes(8, 2), Lanes(5, 5)], 2),
        plan_of(DIGITS, BIG, [Lanes(8, 2), Lanes(5, 5)], 4, "spike"),
        plan_of(DIGITS, BIG, [Lanes(8, 2), Lanes(5, 5)], 4, queue=16),
        plan_of(replace(DIGITS, levels=7, margin=7), BIG, [Lanes(8, 2), Lanes(5, 5)], 4),
    ]
    assert len({plan.digest, *(other.digest for other in others)}) == 1 + len(others)
    assert plan.digest == plan_of(DIGITS, SMALL, [Lanes(8, 2), Lanes(5, 5)], 4).digest  # not the board


def test_a_plan_is_rebuilt_from_what_is_kept_of_it() -> None:
    for net in (DIGITS, CONV, GRAPHS[0]):
        plan = make_plan(net, SMALL)
        kept = json.loads(json.dumps(plan.as_json()))
        again = plan_of(net, SMALL, [Lanes(**lane) for lane in kept["lanes"]], kept["beat"], kept["code"], kept["queue"], kept["spram"])
        assert again == plan
        assert kept["digest"] == plan.digest


def test_more_lanes_are_faster() -> None:
    measured = images(DIGITS)
    intervals = [plan_of(DIGITS, BIG, [Lanes(n, n), Lanes(10, 10)], 4, images=measured).prediction.interval for n in (1, 4, 16)]
    assert intervals == sorted(intervals, reverse=True)
    assert len(set(intervals)) == 3


def test_a_network_too_large_is_refused_with_numbers_and_what_was_tried() -> None:
    others = {name: budget for name, budget in BOARDS.items() if name != "icebreaker"}
    words = r"conv: needs at least \d+ of .*, iCE40UP5K has \d+ to give \(\d+ too few\); it would fit with .*"
    with pytest.raises(CascError, match=words) as refusal:
        make_plan(convolutional(64, 28), BOARDS["icebreaker"], larger=others)
    assert "--board ulx3s-12f" in str(refusal.value)
    with pytest.raises(CascError, match=r"of LUT4, LFE5U-12F has 242 to give .* no fewer bits or levels would do, make it smaller"):
        make_plan(DIGITS, SMALL, Options(max_share=0.01))


def test_advice_was_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights that leave no room: with fewer bits, and on a larger device, there is some."""
    tiny = Budget("tiny", 20000, 20000, 12, "DP16KD", 4)
    chance = torch.Generator().manual_seed(1)
    weight = torch.randint(-128, 128, (40, 1000), generator=chance)
    nodes = (
        Layer.dense("a", IMAGE, weight, torch.zeros(40, dtype=torch.int64), torch.full((40,), 9999), 8),
        Layer.dense("b", "a", weight[:10, :40], torch.zeros(10, dtype=torch.int64), None, 8, 1.0),
    )
    net = IntegerNet("wide", 8, 8, None, (1000,), 255, nodes)
    with pytest.raises(CascError) as refusal:
        make_plan(net, tiny, larger={"big": replace(tiny, lut4=30000, block_rams=40), "small": replace(tiny, block_rams=40)})
    text = str(refusal.value)
    assert "of block RAM, tiny has 12 to give" in text
    bits = int(text.split("fit with ")[1].split("-bit")[0])
    make_plan(narrower(net, bits), tiny)
    assert "--board big" in text
    assert "small" not in text
    with pytest.raises(CascError, match="lanes of the planner's choice"):
        make_plan(DIGITS, replace(SMALL, lut4=4000), Options(lanes={DIGITS.layers[0].name: (32, 16)}))


@pytest.mark.parametrize(
    "bad",
    [
        {"max_share": 0.0},
        {"max_share": 1.1},
        {"max_lut": 0},
        {"target_fps": 0.0},
        {"target_fps": float("nan")},
        {"code": "rate"},
        {"lanes": {"none": (1, None)}},
        {"lanes": {"hidden": (0, None)}},
        {"lanes": {"hidden": (512, None)}},
        {"lanes": {"hidden": (12, 3)}},
        {"lanes": {"hidden": (12, 8)}},
        {"lanes": {"readout": (10, 3)}},
    ],
)
def test_bad_options(bad: dict[str, Any]) -> None:
    with pytest.raises(CascError, match="; "):
        make_plan(DIGITS, BIG, Options(**bad))


def test_lanes_that_cut_groups_are_refused_with_those_that_do_not() -> None:
    one = torch.ones(6, 1, 3, 3, dtype=torch.int64)
    zero, theta = torch.zeros(6, dtype=torch.int64), torch.ones(6, dtype=torch.int64)
    nodes = (
        Layer("a", (Synapses(IMAGE, one, 4, padding=(1, 1)),), zero, theta),
        Layer("b", (Synapses("a", one, 4, groups=6),), zero, theta),
        Layer.dense("out", "b", torch.ones(2, 24, dtype=torch.int64), zero[:2], None, 4, 1.0),
    )
    net = IntegerNet("grouped", 4, 4, None, (1, 4, 4), 15, nodes)
    with pytest.raises(CascError, match=r"lanes of b: 4 are no whole chunks of its groups; use one of 1, 2, 3, 6"):
        make_plan(net, BIG, Options(lanes={"b": (4, None)}))
    assert make_plan(net, BIG, Options(lanes={"b": (3, None)})).lanes[1].synapses == 3
    assert [kind_of(net, node) for node in net.nodes] == ["conv 3x3", "depthwise 3x3", "dense, read-out"]


def test_results_that_cannot_be_told_are_refused() -> None:
    long = replace(DIGITS, margin=1, sleep=32767)
    with pytest.raises(CascError, match=r"may sleep 262136 steps, more than the 65535"):
        make_plan(long, BIG, Options("spike"))
    make_plan(long, BIG, Options("count"))  # nothing sleeps


# What bounds a plan


@pytest.mark.parametrize("seed", range(0, 40, 2))
@pytest.mark.parametrize("code", ["spike", "count"])
def test_operations_are_those_of_the_definition(seed: int, code: Any) -> None:
    """Events times the neurons that each reaches, counted weight by weight."""
    net = random_graph(seed)
    chance = torch.Generator().manual_seed(seed)
    batch = torch.randint(0, net.input_max + 1, (3, *net.input_shape), generator=chance)
    batch *= torch.randint(0, 2, batch.shape, generator=chance)
    asked = operations(net, measure(net, batch, code))
    sends = sent(net, measure(net, batch, code))
    for layer in net.layers:
        for synapses, count in zip(layer.synapses, asked[layer.name], strict=True):
            events = _events(net, synapses.source, batch, code)
            ones = replace(synapses, weight=torch.ones_like(synapses.weight), bits=8)
            reached = _weighted(ones, events)
            assert count == pytest.approx(reached.sum().item() / len(batch))
            assert sends[synapses.source] == pytest.approx(events.sum().item() / len(batch))


def _events(net: IntegerNet, name: str, batch: torch.Tensor, code: str) -> torch.Tensor:
    """By image, how many events each place of a node sends, float (N, C, H, W)."""
    from casc_hw.reference import events_of

    if name == IMAGE:
        return net.check_images(batch).ne(0).double().reshape(len(batch), *net.shapes[IMAGE])
    if code == "count":
        return events_of(net, name, quantised_ann(net, batch).counts).ne(0).double()
    found = []
    for index in range(len(batch)):
        trace = simulate(net, batch[index : index + 1])
        so_far = events_of(net, name, [spikes.cumsum(0) for spikes in trace.spikes])
        changes = torch.diff(so_far, dim=0, prepend=torch.zeros_like(so_far[:1]))
        found.append(changes.ne(0).sum(0)[0])
    return torch.stack(found).double()


def _weighted(synapses: Synapses, values: torch.Tensor) -> torch.Tensor:
    if synapses.dense:
        return values.flatten(1) @ synapses.weight.double().T
    return torch.nn.functional.conv2d(values, synapses.weight.double(), None, synapses.stride, synapses.padding, 1, synapses.groups)


@pytest.mark.parametrize("code", ["spike", "count"])
def test_no_interval_is_below_the_bounds(code: Any) -> None:
    for net in (DIGITS, CONV, *GRAPHS):
        for plan in (make_plan(net, BIG, Options(code, fastest=True)), plan_of(net, BIG, [Lanes(1, 1)] * len(net.layers), 1, code)):
            limits = plan.bottleneck.limits
            assert limits.best <= plan.prediction.interval * 1.001
            assert limits.device <= limits.best
            assert plan.bottleneck.nearness == pytest.approx(limits.best / plan.prediction.interval)
            assert plan.bottleneck.cycles == max(plan.prediction.busy.values())


def test_bounds_follow_from_operations() -> None:
    activities = assume(CONV, "count")
    asked, sends = operations(CONV, activities), sent(CONV, activities)
    narrow, wide = (limits_of(core_spec(CONV, [Lanes(n, 1)] * 2 + [Lanes(1, 1)], 1, "count"), BIG, asked, sends) for n in (1, 4))
    assert narrow.plan == pytest.approx(4 * wide.plan, rel=0.01) or narrow.layer == "out"
    assert narrow.memory == wide.memory
    assert narrow.adders == wide.adders
    assert narrow.memory == pytest.approx(4 * sum(sum(counts) for counts in asked.values()) / (208 * 36))


@pytest.mark.parametrize(
    ("lanes", "words"),
    [
        ((12, 12, 5), "one event a cycle"),
        ((1, 1, 1), "9 adders|4 adders"),
    ],
)
def test_what_holds_a_plan_is_named(lanes: tuple[int, ...], words: str) -> None:
    plan = plan_of(CONV, BIG, [Lanes(n, 4 if n == 12 else 1) for n in lanes], 2 if lanes[0] > 1 else 1)
    assert any(word in plan.bottleneck.held_by for word in words.split("|")), plan.bottleneck


def test_the_memory_of_weights_may_be_what_holds() -> None:
    search = Search(CONV, replace(BIG, block_rams=7), Options(fastest=True))
    one = search.candidate([Lanes(4, 4), Lanes(1, 1), Lanes(1, 1)], 2)
    held = held_by(search, one)
    assert one.part == "two synapses"
    assert "block RAM" in held or "adders" in held or "bits a cycle" in held


# What it costs


@pytest.mark.parametrize("board", ["icebreaker", "ulx3s-85f"])
@pytest.mark.parametrize("code", ["spike", "count"])
def test_parts_make_up_the_whole(board: str, code: Any) -> None:
    for net in (DIGITS, CONV, *GRAPHS):
        spec = core_spec(net, [Lanes(1, 1)] * len(net.layers), 1, code)
        costs = np.array([part.cost for part in parts(spec, BOARDS[board]).values()])
        whole = estimate(spec, BOARDS[board])
        assert np.rint(costs.sum(0)).astype(int).tolist() == [whole.lut4, whole.ff, whole.block_rams, whole.dsps, whole.sprams]
        assert set(parts(spec, BOARDS[board])) == {None, *(node.name for node in net.nodes)}


def test_more_parallel_is_larger() -> None:
    def used(lanes: list[Lanes], code: Any = "count") -> Resources:
        return estimate(core_spec(CONV, lanes, 1, code), BIG)

    few, many = used([Lanes(2, 2), Lanes(2, 2), Lanes(1, 1)]), used([Lanes(4, 4), Lanes(4, 4), Lanes(5, 5)])
    assert few.lut4 < many.lut4
    assert few.ff < many.ff
    assert few.dsps < many.dsps
    logic = used([Lanes(2, 2, "logic"), Lanes(2, 2, "logic"), Lanes(1, 1, "logic")])
    assert logic.dsps <= 2  # of addresses
    assert logic.lut4 > few.lut4
    assert used([Lanes(2, 2, "dsp")] * 2 + [Lanes(1, 1)], "spike").dsps - logic.dsps == 9  # of pixels alone; spikes need no products


def test_no_room_for_weights_in_block_ram_is_made_in_spram() -> None:
    plan = make_plan(MNIST, BOARDS["icebreaker"], images=images(MNIST))
    assert plan.spram == (MNIST.layers[0].name,)
    assert plan.resources.sprams in (1, 2, 3, 4)
    assert {kind: used for kind, used, _ in plan.resources.rows()}["SPRAM"] == plan.resources.sprams
    assert plan.layers[0].memories
    assert [memory.place for memory in plan.layers[0].memories if memory.name == "weights"] == ["spram"]
    assert make_plan(DIGITS, BOARDS["icebreaker"], images=images(DIGITS)).spram == ()
    assert "SPRAM" not in [kind for kind, _, _ in make_plan(DIGITS, BIG).resources.rows()]
