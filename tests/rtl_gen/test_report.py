"""The report: complete, self-contained, honest about where a figure is from, and whole whatever is missing."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

from casc_hw import CascError, IntegerNet, Layer, simulate
from casc_hw.network import IMAGE
from rtl_gen import report
from rtl_gen.budget import Budget
from rtl_gen.plan import Options, Plan, make_plan
from rtl_gen.report import SHOWN, summary, write_report
from sim.random_nets import random_graph

BUDGET = Budget("LFE5U-25F", 24288, 24288, 56, "DP16KD", 28)
SECTIONS = ["Result", "Network", "Plan", "Cycles, predicted and measured", "Utilisation", "Clocks", "Sleep", "One image, step by step",
            "Tools and digests"]  # fmt: skip


def make(sizes: tuple[int, ...] = (12, 9, 7, 3), shape: tuple[int, ...] | None = None, **fields: Any) -> IntegerNet:
    """A random network that spikes, negatively too."""
    chance = torch.Generator().manual_seed(9)
    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        weight = torch.randint(-8, 8, (outputs, inputs), generator=chance)
        threshold = None if index == len(sizes) - 2 else torch.randint(1, 1200 if index == 0 else 20, (outputs,), generator=chance)
        bias = torch.randint(-9, 9, (outputs,), generator=chance)
        source = f"layer{index - 1}" if index else IMAGE
        layers.append(Layer.dense(f"layer{index}", source, weight, bias, threshold, 4, 10.0 if threshold is None else None))
    return replace(IntegerNet("tiny", 6, 2, None, shape or sizes[:1], 15, tuple(layers)), **fields)


NET = make()
IMAGES = torch.randint(0, 16, (5, 12), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def plan() -> Plan:
    return make_plan(NET, BUDGET, Options("spike"), images=IMAGES)


def built(**changed: Any) -> dict[str, Any]:
    """What `BuildResult.as_json` says."""
    return {
        "board": "ulx3s-25f", "device": "LFE5U-25F", "bitstream": "tiny.bit", "sync_mhz": 80.0, "io_mhz": 25.0,
        "fmax_mhz": {"io": 140.25, "sync": 81.5},
        "utilisation": {"LUT4": [2400, 24288], "FF": [1800, 24288], "block RAM": [6, 56], "DSP": [4, 28]},
        "seconds": {"yosys": 30.5, "route1": 20.25, "pack": 1.0}, "tools": {"yosys": "Yosys 0.99", "nextpnr-ecp5": "nextpnr 0.11"},
        "seed": 3, "digest": "b" * 64, "bitstream_digest": "c" * 64, "logs": {"yosys": "yosys.log"},
    } | changed  # fmt: skip


def simulated(**changed: Any) -> dict[str, Any]:
    """What `SimResult.as_json` says."""
    return {
        "images": 5, "spikes_compared": 1234, "mismatches": 0, "messages": [], "cycles": {"min": 90, "median": 100.0, "max": 130},
        "latency": {"min": 150, "median": 160.0, "max": 170}, "sleep_steps": {"min": 3, "median": 4.0, "max": 6}, "total_cycles": 700,
        "simulator": "verilator", "stall": 0.0, "compile_seconds": 9.5, "run_seconds": 0.5,
    } | changed  # fmt: skip


class Page(HTMLParser):
    """The words of a page, its headings, what it would fetch, and the tags left open."""

    def __init__(self, text: str):
        super().__init__()
        self.words, self.headings, self.fetched, self.open, self.tags = "", [""], list[str](), list[str](), list[str]()
        self.feed(text)
        self.words = " ".join(self.words.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        sources = [value or "" for name, value in attrs if name in ("src", "href", "srcset", "style")]
        self.fetched += [value for value in sources if not value.startswith("data:image/png;base64,") and "/" in value]
        if tag not in ("meta", "img"):
            self.open.append(tag)
        if tag == "h2":
            self.headings.append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.words += data
        if "h2" in self.open and "span" not in self.open:
            self.headings[-1] += data


def written(folder: Path, net: IntegerNet, plan: Plan, **parts: Any) -> tuple[Page, dict[str, Any]]:
    write_report(folder, net, plan, **({"images": None, "build": None, "sim": None} | parts))
    assert sorted(path.name for path in folder.iterdir()) == ["report.html", "report.json"]
    text = (folder / "report.html").read_bytes().decode("ascii")
    page = Page(text)
    assert page.open == []
    assert page.fetched == []
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert not re.search(r"url\(|@import|https?:", text)
    assert [heading.strip() for heading in page.headings[1:]] == SECTIONS
    content = json.loads((folder / "report.json").read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    return page, content


def test_a_build_is_reported_whole(tmp_path: Path, plan: Plan) -> None:
    net = replace(NET, meta={"split": "none", "results": {"integer SNN, %": 97.25, "exact": True}})
    page, content = written(tmp_path, net, plan, images=IMAGES, labels=torch.tensor([1, 2, 0, 1, 2]), build=built(), sim=simulated())
    for words in (
        "tiny on ulx3s-25f", "800,000 images/s", "2 µs", "80.00 MHz", "Nothing here was tried on a physical board", "1,234 neuron steps",
        "held by " + plan.bottleneck.held_by, "synaptic operations of",
        "90 / 100 / 130", "150 / 160 / 170", "3 / 4 / 6", "integer SNN, % 97.25",
        "exact yes", "split none", "2,400 (10 %)", "81.500", "140.250",
        "seed 3", "yosys 30.50 s", "in all 51.75 s", "Yosys 0.99",
        net.digest, plan.digest, "b" * 64, "c" * 64, "a sleep after every 2 wake steps",
    ):  # fmt: skip
        assert words.replace(" ", "") in page.words.replace(" ", ""), words
    assert page.tags.count("img") == 4
    assert content["speed"]["images_per_second"] == pytest.approx(80e6 / 100)
    assert content["speed"]["latency_us"] == pytest.approx(160 / 80)
    assert content["speed"]["interval"]["error"] == pytest.approx(plan.prediction.interval / 100 - 1)
    assert [verdict["good"] for verdict in content["verdicts"]] == [True, True, True, None]
    assert content["plan"] == json.loads(json.dumps(plan.as_json()))
    assert content["build"] == built()
    assert content["sim"] == simulated()
    assert content["summary"] == [list(row) for row in summary(plan, built(), simulated())]


def test_a_plan_alone_says_what_is_missing(tmp_path: Path, plan: Plan) -> None:
    page, content = written(tmp_path, NET, plan)
    write_report(tmp_path, NET, plan, images=IMAGES[:0], build=None, sim=None)
    assert json.loads((tmp_path / "report.json").read_text()) == content
    for words in ("Not built: the clock", "not simulated", "No images were given", "says nothing of its accuracy"):
        assert words in page.words
    assert "images/s" not in page.words
    assert "img" not in page.tags
    assert (content["build"], content["sim"], content["activity"]) == (None, None, None)
    assert content["speed"]["images_per_second"] is None


@pytest.mark.parametrize("build", [None, built()], ids=["plan", "build"])
@pytest.mark.parametrize("sim", [None, simulated()], ids=["unproved", "sim"])
@pytest.mark.parametrize("images", [None, IMAGES[:1]], ids=["no images", "one"])
def test_any_part_may_be_missing(tmp_path: Path, plan: Plan, build: Any, sim: Any, images: Any) -> None:
    page, content = written(tmp_path, NET, plan, images=images, build=build, sim=sim)
    assert "Nothing here was tried on a physical board" in page.words
    assert len(content["summary"]) >= 10
    assert (content["activity"] is None) == (images is None or len(images) == 0)


def test_the_activity_is_the_references(tmp_path: Path, plan: Plan) -> None:
    _, content = written(tmp_path, NET, plan, images=IMAGES, labels=[2])
    trace, said = simulate(NET, IMAGES[:1], potentials=True), content["activity"]
    assert (said["class"], said["label"], said["image"]) == (int(trace.answer.classes[0]), 2, IMAGES[0].tolist())
    assert said["logits"] == pytest.approx((trace.answer.sums[0] / (NET.levels * 10.0)).tolist())
    assert said["wake"] == trace.wake.tolist()
    assert any(spike < 0 for layer in said["layers"] for _, _, spike in layer["spikes"])
    assert sum(images for _, images in said["sleep_steps"]) == said["sleep_images"] == len(IMAGES)
    for layer, spikes, potentials in zip(said["layers"], trace.spikes, trace.potentials, strict=True):
        again = torch.zeros_like(spikes[:, 0])
        for step, neuron, spike in layer["spikes"]:
            again[step, neuron] = spike
        assert torch.equal(again, spikes[:, 0])
        counts = spikes[:, 0].abs().sum(0)
        assert [int(counts[one["neuron"]]) for one in layer["traced"]] == sorted(counts.tolist(), reverse=True)[: len(layer["traced"])]
        for one in layer["traced"]:
            assert one["potential"] == potentials[:, 0, one["neuron"]].tolist()


def test_the_summary_says_where_each_figure_is_from(plan: Plan) -> None:
    both = dict(summary(plan, built(), simulated()))
    assert both["throughput"] == "800,000 images/s (simulated cycles at nextpnr's clock)"
    assert both["latency in time"] == "2 us (simulated cycles at nextpnr's clock)"
    assert both["LUT4"] == "2,400 of 24,288 (10%), nextpnr"
    assert both["timing met"].startswith("yes")
    assert "(estimated cycles at nextpnr's clock)" in dict(summary(plan, built(), None))["throughput"]
    alone = dict(summary(plan, None, None))
    assert alone["throughput"].endswith("images/s if the core reaches 80 MHz (estimated)")
    assert "latency in time" not in alone
    assert alone["interval"].endswith("cycles (estimated)")
    assert alone["LUT4"].endswith("estimated")
    for rows in (both, alone):
        assert rows["physical board"].startswith("not tried")
        assert all(isinstance(value, str) and value.isascii() for value in rows.values())


def test_faults_are_not_hidden(tmp_path: Path, plan: Plan) -> None:
    sim = simulated(mismatches=1, messages=["layer0 step 3 neuron 1: got 1, expected <0>"])
    build = built(sync_mhz=90.0, utilisation=built()["utilisation"] | {"DSP": [29, 28]})
    page, content = written(tmp_path, NET, plan, build=build, sim=sim)
    assert [verdict["answer"] for verdict in content["verdicts"]] == ["NO", "NO", "NO", "not tried"]
    assert "1 difference from the reference in 5 images, the first: layer0 step 3 neuron 1: got 1, expected <0>" in page.words
    assert content["speed"]["interval"]["source"] == "estimated"


@pytest.mark.parametrize(
    ("sim", "interval", "latency"),
    [
        (simulated(), "simulated", "simulated"),
        (simulated(images=1), "estimated", "simulated"),
        (simulated(stall=0.3), "estimated", "estimated"),
    ],
    ids=["whole", "one image", "stalled"],
)
def test_only_undisturbed_cycles_count(plan: Plan, sim: dict[str, Any], interval: str, latency: str) -> None:
    rows = dict(summary(plan, built(), sim))
    assert f"{interval} cycles" in rows["throughput"]
    assert f"{latency} cycles" in rows["latency in time"]


def test_names_and_notes_are_text(tmp_path: Path) -> None:
    """Not HTML, not formulas, not letters a font may lack; numbers that JSON lacks, and more notes than a page holds."""
    name = "<script>$\\frac{a}$ 层</script>"
    meta = {"<b>": float("nan"), "list": [1, 2.5, None], "many": {f"note {i}": "x" * 300 for i in range(100)}}
    renamed = replace(NET.layers[1], synapses=(replace(NET.layers[1].synapses[0], source=name),))
    net = replace(NET, meta=meta, nodes=(replace(NET.layers[0], name=name), renamed, *NET.layers[2:]))
    page, content = written(tmp_path, net, make_plan(net, BUDGET), images=IMAGES, build=built(board="<i>"))
    assert "script" not in page.tags
    assert "<script>$\\frac{a}$ 层</script>" in page.words
    assert content["network"]["meta"]["<b>"] == "nan"
    assert "more lines in report.json" in page.words


@pytest.mark.parametrize("shape", [(3, 4), (1, 3, 4), (3, 2, 2), (2, 2, 3)])
def test_images_of_any_shape(tmp_path: Path, shape: tuple[int, ...]) -> None:
    net = make(shape=shape)
    images = IMAGES.reshape(-1, *shape)
    page, _ = written(tmp_path, net, make_plan(net, BUDGET, images=images), images=images)
    assert page.tags.count("img") == 4


@pytest.mark.parametrize("code", ["spike", "count"])
def test_graphs(tmp_path: Path, code: Any) -> None:
    """Every node has its place: maps, pools, layers with several sources; in count code nothing sleeps."""
    for seed in (3, 7, 11):
        net = random_graph(seed)
        images = torch.randint(0, net.input_max + 1, (3, *net.input_shape), generator=torch.Generator().manual_seed(1))
        plan = make_plan(net, BUDGET, Options(code), images=images)
        folder = tmp_path / str(seed)
        folder.mkdir()
        page, content = written(folder, net, plan, images=images, build=built(), sim=simulated())
        assert [layer["name"] for layer in content["network"]["layers"]] == [node.name for node in net.nodes]
        assert [layer["shape"] for layer in content["network"]["layers"]] == [list(net.shapes[node.name]) for node in net.nodes]
        for layer in content["network"]["layers"]:
            assert all(source in page.words for source in [layer["kind"], *layer["sources"]])
        assert ("nothing sleeps" in page.words) == (code == "count")
        assert ("sleep steps" in dict(summary(plan, None, simulated()))) == (code == "spike")
        assert dict(summary(plan, None, None))["network"].endswith(f"{code} code")
        assert content["activity"]["sleep_steps"] or code == "count"


def test_of_a_large_map_the_first_neurons_are_shown(tmp_path: Path) -> None:
    net = make((12, SHOWN + 40, 3))
    _, content = written(tmp_path, net, make_plan(net, replace(BUDGET, lut4=90000, ff=90000)), images=IMAGES)
    (layer,) = content["activity"]["layers"]
    assert (layer["neurons"], layer["shown"]) == (SHOWN + 40, SHOWN)
    assert max(neuron for _, neuron, _ in layer["spikes"]) < SHOWN
    spikes = simulate(net, IMAGES[:1]).spikes[0]
    assert layer["count"] == int(spikes.ne(0).sum()) > len(layer["spikes"])


def test_small_and_odd_networks(tmp_path: Path) -> None:
    for net in (make((1, 1, 1)), make((12, 1, 30), sleep=0), make((12, 5, 4, 3, 2))):
        images = torch.full((2, net.inputs), 15)
        folder = tmp_path / str(len(net.layers) * net.inputs)
        folder.mkdir()
        page, content = written(folder, net, make_plan(net, BUDGET, Options("spike")), images=images, build=built(), sim=simulated())
        assert page.tags.count("img") == 4
        assert content["activity"]["settled"] == (0 if net.sleep == 0 else 2)


def test_writing_again_gives_the_same_bytes(tmp_path: Path, plan: Plan) -> None:
    parts = {"images": IMAGES, "build": built(), "sim": simulated()}
    written(tmp_path, NET, plan, **parts)
    before = [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")]
    written(tmp_path, NET, plan, **parts)
    assert [(tmp_path / name).read_bytes() for name in ("report.html", "report.json")] == before


def test_a_folder_that_is_not_there_and_images_that_do_not_fit(tmp_path: Path, plan: Plan) -> None:
    with pytest.raises(CascError, match="cannot be written"):
        write_report(tmp_path / "none", NET, plan, images=None, build=None, sim=None)
    with pytest.raises(CascError, match="image"):
        write_report(tmp_path, NET, plan, images=torch.zeros(1, 3, dtype=torch.int64), build=None, sim=None)
    assert list(tmp_path.iterdir()) == []


def test_importing_it_is_cheap() -> None:
    code = f"import sys, {report.__name__}; print(*sorted({{'torch', 'matplotlib', 'jinja2', 'amaranth'}} & set(sys.modules)))"
    loaded = subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == []


def test_no_global_state_of_pyplot(tmp_path: Path, plan: Plan) -> None:
    written(tmp_path, NET, plan, images=IMAGES)
    assert "matplotlib.pyplot" not in sys.modules
