"""The report of a plan or build: one HTML page that needs nothing else, and the same for machines.

Every figure says where it is from: ``estimated`` (the plan's models), ``simulated`` (the gates, cycle by cycle), ``nextpnr`` (what
routing met) or ``reference`` (the integer network in PyTorch). None is from a physical board.
"""

from __future__ import annotations

import base64
import json
import math
from collections import Counter
from collections.abc import Iterator, Sequence
from importlib import resources
from io import BytesIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rtl_gen.data import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from torch import Tensor

    from casc_hw.network import IntegerNet
    from rtl_gen.plan import Plan

SLEEP_IMAGES = 64
"""Images whose sleep steps are counted, by the reference: so many, or fewer where there are more than `SLEEP_NEURONS` in all."""
SLEEP_NEURONS = 1 << 18
SHOWN = 1500
"""Neurons of a layer whose spikes are drawn."""
TRACED = 6
"""Neurons whose potential is drawn."""
ROWS = 60
"""Lines of the network's own notes shown on the page; report.json has all."""
BLUE, RED, WAKE, SLEEP = "#2463a8", "#c43d32", "#fdf3d7", "#e3e9f2"


def write_report(
    folder: Path,
    net: IntegerNet,
    plan: Plan,
    *,
    images: Tensor | None,
    labels: Any = None,
    build: dict[str, Any] | None,
    sim: dict[str, Any] | None,
) -> None:
    """Write ``report.html`` and ``report.json`` into ``folder``, each whole or not at all.

    ``images``: integer pixels, a batch; its first image is drawn, with the first of ``labels``. ``build`` is
    `BuildResult.as_json()`, ``sim`` `SimResult.as_json()`; without them the page says what is missing.
    CascError if the images do not fit the network or a file cannot be written.
    """
    content = _plain(
        {
            "summary": summary(plan, build, sim),
            "verdicts": _verdicts(plan, build, sim),
            "speed": _speed(plan, build, sim),
            "utilisation": _utilisation(plan, build),
            "network": _network(net),
            "plan": plan.as_json(),
            "build": build,
            "sim": sim,
            "activity": None if images is None or len(images) == 0 else _activity(net, plan.code, images, labels),
        }
    )
    page = _template().render(**content, pictures=_pictures(content["activity"]) if content["activity"] else None)
    write_text(folder / "report.html", page.encode("ascii", "xmlcharrefreplace").decode())  # whatever the locale's encoding is
    write_text(folder / "report.json", json.dumps(content, indent=1, allow_nan=False) + "\n")


def summary(plan: Plan, build: dict[str, Any] | None, sim: dict[str, Any] | None) -> list[tuple[str, str]]:
    """The most important lines, (name, value with unit and source)."""
    from casc_hw.network import IMAGE

    speed, use, layers = _speed(plan, build, sim), _utilisation(plan, build), [layer for layer in plan.layers if layer.passes]
    bits = sorted({bits for layer in layers for bits in layer.weight_bits})
    lanes = ", ".join(f"{layer.name} {layer.synapse_lanes}/{layer.neuron_lanes}" for layer in layers)
    held, limits = plan.bottleneck, plan.bottleneck.limits
    source = "pixels" if limits.node == IMAGE else f"events of {limits.node}"
    rows = [
        ("network", f"{plan.net}: {maps_of(plan)}, {'/'.join(map(str, bits))}-bit weights, T = {plan.levels}, {plan.code} code"),
        ("device", f"{build['board']}, {build['device']}" if build else f"{plan.budget.name} (plan only)"),
        *((verdict["name"], f"{verdict['answer']}: {verdict['why']}") for verdict in _verdicts(plan, build, sim)),
        ("lanes, synapses/neurons", lanes),
    ]
    for name in ("interval", "latency"):
        cycles, error = speed[name], speed[name]["error"]
        said = f"{_number(cycles['cycles'])} cycles ({cycles['source']}"
        rows.append((name, f"{said}; predicted {_number(cycles['predicted'])}, {error:+.1%})" if error is not None else f"{said})"))
    bounds = f"{_number(limits.plan)} cycles (adders and weights' memory, {limits.layer}), {_number(limits.events)} ({source}, one a cycle)"
    device = f"{_number(limits.adders)} cycles if all its LUT4s added, {_number(limits.memory)} if all its block RAM gave weights"
    rows += [
        ("bottleneck", f"{held.part}, {_number(held.cycles)} cycles an image, held by {held.held_by}"),
        ("bounds of the plan", f"{bounds}: {held.nearness:.0%} of the interval predicted"),
        ("bounds of the device", device),
    ]
    if not build:
        rate, clock = plan.clock_hz / speed["interval"]["cycles"], f"{plan.clock_hz / 1e6:g} MHz"
        rows.append(("throughput", f"{_number(rate)} images/s if the core reaches {clock} (estimated)"))
    if build:
        rows += [
            ("throughput", f"{_number(speed['images_per_second'])} images/s ({speed['interval']['source']} cycles at nextpnr's clock)"),
            ("latency in time", f"{_number(speed['latency_us'])} us ({speed['latency']['source']} cycles at nextpnr's clock)"),
        ]
    if sim and plan.code == "spike":
        rows.append(("sleep steps", "{min} to {max}, median {median:g} (simulated)".format_map(sim["sleep_steps"])))
    for row in use:
        if row["used"] is not None or row["estimated"]:
            amount = row["estimated"] if row["used"] is None else row["used"]
            share = f" ({amount / row['available']:.0%})" if row["available"] else ""
            rows.append((row["kind"], f"{amount:,} of {row['available']:,}{share}, {'estimated' if row['used'] is None else 'nextpnr'}"))
    if build:
        rows.append(("build time", f"{_number(sum(build['seconds'].values()))} s"))
    return rows


def maps_of(plan: Plan) -> str:
    """The maps from the image to the read-out, in words."""
    shapes = [plan.layers[0].source, *(layer.target for layer in plan.layers if layer.passes)]
    return " - ".join(map(_map_shape, shapes))


def _map_shape(shape: Sequence[int]) -> str:
    """(channels, height, width) in words."""
    return str(shape[0]) if tuple(shape[1:]) == (1, 1) else "x".join(map(str, shape))


def _verdicts(plan: Plan, build: dict[str, Any] | None, sim: dict[str, Any] | None) -> list[dict[str, Any]]:
    """What decides: whether it fits, meets timing and gives the reference's answer; ``good`` is None where that is not known."""
    use = _utilisation(plan, build)
    full = max(use, key=lambda row: row["share"])
    fits = all(row["share"] <= 1 for row in use)
    verdicts = [_verdict("fits", fits, f"{full['kind']} is fullest, {full['share']:.0%} ({'nextpnr' if build else 'estimated'})")]
    if build:
        clocks = _clocks(build)
        met = all(clock["runs"] <= clock["met"] for clock in clocks)
        said = ", ".join(f"{clock['domain']} {clock['runs']:.2f} MHz of {clock['met']:.2f}" for clock in clocks)
        verdicts.append(_verdict("timing met", met, f"{said} (nextpnr)"))
    else:
        verdicts.append(_verdict("timing met", None, "routing decides", "not built"))
    if not sim:
        verdicts.append(_verdict("bit-exact", None, "the gates were not held to the reference here", "not simulated"))
    elif sim["mismatches"]:
        said = f"{_count(sim['mismatches'], 'difference')} from the reference in {_count(sim['images'], 'image')}"
        verdicts.append(_verdict("bit-exact", False, said + (f", the first: {sim['messages'][0]}" if sim["messages"] else "")))
    else:
        what = "neuron steps" if plan.code == "spike" else "counts"
        compared = f"{sim['spikes_compared']:,} {what} and every sum of {_count(sim['images'], 'image')} equal the reference's"
        verdicts.append(_verdict("bit-exact", True, f"{compared} ({sim['simulator']})"))
    verdicts.append(_verdict("physical board", None, "nothing here was measured on one", "not tried"))
    return verdicts


def _verdict(name: str, good: bool | None, why: str, unknown: str = "") -> dict[str, Any]:
    return {"name": name, "good": good, "answer": {True: "yes", False: "NO", None: unknown}[good], "why": why}


def _clocks(build: dict[str, Any]) -> list[dict[str, Any]]:
    """Per domain the frequency it runs at and what routing met, in MHz."""
    runs = {"sync": build["sync_mhz"], "io": build["io_mhz"]}
    return [{"domain": domain, "runs": mhz, "met": build["fmax_mhz"][domain]} for domain, mhz in runs.items()]


def _speed(plan: Plan, build: dict[str, Any] | None, sim: dict[str, Any] | None) -> dict[str, Any]:
    """Cycles between images and of one alone, predicted and simulated (the better one counts), and time at the clock that was built."""
    speed: dict[str, Any] = {}
    usable = sim is not None and sim["stall"] == 0 and not sim["mismatches"]
    for name, key, enough in (("interval", "cycles", 2), ("latency", "latency", 1)):
        predicted = getattr(plan.prediction, name)
        measured = sim[key] if usable and sim and sim["images"] >= enough else None
        speed[name] = {
            "predicted": predicted,
            "simulated": measured,
            "error": predicted / measured["median"] - 1 if measured and measured["median"] else None,
            "cycles": measured["median"] if measured else predicted,
            "source": "simulated" if measured else "estimated",
        }
    clock = build["sync_mhz"] if build else None
    speed["clock_mhz"] = clock
    speed["images_per_second"] = clock * 1e6 / speed["interval"]["cycles"] if clock else None
    speed["latency_us"] = speed["latency"]["cycles"] / clock if clock else None
    return speed


def _utilisation(plan: Plan, build: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Per kind of resource: estimated, used (nextpnr; None without a build), available, and the share taken by the better figure."""
    used = build["utilisation"] if build else {}
    planned = {kind: (estimated, available) for kind, estimated, available in plan.resources.rows()}
    rows: list[dict[str, Any]] = []
    for kind in planned | used:
        estimated, have = planned.get(kind, (None, 0))
        count, available = used.get(kind, (None, have))
        rows.append({"kind": kind, "estimated": estimated, "used": count, "available": available})
    for row in rows:
        amount = row["estimated"] if row["used"] is None else row["used"]
        row["share"] = amount / row["available"] if row["available"] else 2.0 * (amount > 0)
    return rows


def _network(net: IntegerNet) -> dict[str, Any]:
    from casc_hw.network import Pool
    from rtl_gen.plan import kind_of

    layers = []
    for node in net.nodes:
        parts = (node,) if isinstance(node, Pool) else node.synapses
        weights = [] if isinstance(node, Pool) else [synapses.weight for synapses in node.synapses]
        layers.append(
            {
                "name": node.name,
                "kind": kind_of(net, node),
                "sources": [part.source for part in parts],
                "shape": list(net.shapes[node.name]),
                "bits": [] if isinstance(node, Pool) else [synapses.bits for synapses in node.synapses],
                "weights": sum(weight.numel() for weight in weights),
                "zeros": sum(int((weight == 0).sum()) for weight in weights),
            }
        )
    fields = ("name", "levels", "margin", "sleep", "input_shape", "input_max", "digest", "meta")
    return {name: getattr(net, name) for name in fields} | {"layers": layers}


def _activity(net: IntegerNet, code: str, images: Tensor, labels: Any) -> dict[str, Any]:
    """What the reference says of the first image, step by step, and in spike code how long the first `SLEEP_IMAGES` sleep."""
    from casc_hw.network import to_wire
    from casc_hw.reference import simulate

    neurons = sum(prod(net.shapes[layer.name]) for layer in net.spiking)
    batch = simulate(net, images[: max(min(SLEEP_IMAGES, SLEEP_NEURONS // neurons), 1) if code == "spike" else 1], record=False)
    trace = simulate(net, images[:1], potentials=True)
    layers, scale = [], net.levels * (net.readout.scale or 1.0)
    for layer, spikes, potentials in zip(net.spiking, trace.spikes, trace.potentials, strict=True):
        assert layer.threshold is not None
        most = spikes[:, 0].abs().sum(0).argsort(descending=True, stable=True)[: max(TRACED // len(net.spiking), 1)]
        events = [[step, neuron, int(spikes[step, 0, neuron])] for step, neuron in spikes[:, 0, :SHOWN].nonzero().tolist()]
        theta = layer.threshold.repeat_interleave(prod(net.shapes[layer.name][1:]))
        traced = [{"neuron": n, "threshold": int(theta[n]), "potential": potentials[:, 0, n].tolist()} for n in most.tolist()]
        sizes = {"neurons": spikes.shape[2], "shown": min(spikes.shape[2], SHOWN)}
        sizes |= {"count": int(spikes[:, 0].ne(0).sum()), "negative": int(spikes[:, 0].lt(0).sum())}
        layers.append({"name": layer.name, **sizes, "spikes": events, "traced": traced})
    return {
        "image": images[0].tolist(),
        "pixel_maximum": net.input_max,
        "label": None if labels is None or len(labels) == 0 else int(labels[0]),
        "class": int(trace.answer.classes[0]),
        "logits": [total / scale for total in to_wire(trace.answer.sums[0], net.shapes[net.readout.name]).tolist()],
        "wake": trace.wake.tolist(),
        "layers": layers,
        "sleep_steps": sorted(Counter(batch.sleep_steps.tolist()).items()) if code == "spike" else [],
        "sleep_images": len(batch.settled),
        "settled": int(batch.settled.sum()),
    }


def _template() -> Any:
    from jinja2 import Environment, StrictUndefined

    page = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    page.filters |= {"number": _number, "count": _count, "notes": _notes, "clocks": _clocks, "map_shape": _map_shape}
    return page.from_string(resources.files("rtl_gen").joinpath("report.html").read_text(encoding="utf-8"))


def _number(value: float) -> str:
    """Four digits, or all of those before the point, in threes."""
    value = float(value)
    if value == int(value) or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _notes(meta: dict[str, Any]) -> tuple[list[tuple[str, str]], list[tuple[str, str]], int]:
    """The network's notes as lines: results, then the others, and how many there was no room for."""

    def lines(value: Any, name: str = "") -> Iterator[tuple[str, str]]:
        if isinstance(value, dict):
            for key, item in value.items():
                yield from lines(item, f"{name}: {key}" if name else key)
        else:
            if isinstance(value, bool):
                value = "yes" if value else "no"
            text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield name, text if len(text) <= 200 else text[:197] + "..."

    results = meta.get("results")
    first = list(lines(results)) if isinstance(results, dict) else []
    rest = list(lines({key: value for key, value in meta.items() if not (first and key == "results")}))
    room = max(ROWS - len(first), 0)
    return first[:ROWS], rest[:room], len(first) + len(rest) - len(first[:ROWS]) - len(rest[:room])


def _plain(value: Any) -> Any:
    """``value`` in JSON's types; a float that JSON does not know becomes its name."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _pictures(activity: dict[str, Any]) -> dict[str, str]:
    """The pictures, as PNG in base64."""
    return {"image": _image(activity), "logits": _logits(activity), "raster": _raster(activity), "membranes": _membranes(activity)}


def _figure(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _encoded(figure: Figure) -> str:
    for axes in figure.axes:
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, color="#888888")
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=160, metadata={"Software": None})
    return base64.b64encode(picture.getvalue()).decode()


def _title(axes: Axes, text: str) -> None:
    """The user's own names are no formulas, and need no letters that the font lacks."""
    axes.set_title(text.encode("ascii", "replace").decode(), fontsize=9, loc="left", parse_math=False)


def _image(activity: dict[str, Any]) -> str:
    import numpy as np

    pixels = np.array(activity["image"])
    if pixels.ndim == 3 and pixels.shape[0] == 3:
        pixels = pixels.transpose(1, 2, 0) / activity["pixel_maximum"]
    elif pixels.ndim == 3:  # channel by channel
        pixels = pixels.reshape(-1, pixels.shape[2])
    elif pixels.ndim != 2:
        pixels = pixels.reshape(1, -1)
    figure = _figure(2.6, 2.6)
    axes = figure.subplots()
    aspect = "equal" if len(pixels) > 1 else "auto"
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=activity["pixel_maximum"], interpolation="nearest", aspect=aspect)  # type: ignore[arg-type]
    axes.set_xticks([])
    axes.set_yticks([])
    return _encoded(figure)


def _logits(activity: dict[str, Any]) -> str:
    logits = activity["logits"]
    figure = _figure(4.6, 2.6)
    axes = figure.subplots()
    axes.bar(range(len(logits)), logits, color=[BLUE if index == activity["class"] else "#b8c4d3" for index in range(len(logits))])
    axes.axhline(0, color="#555555", linewidth=0.8)
    if len(logits) <= 20:
        axes.set_xticks(range(len(logits)))
    axes.set_xlabel("class", fontsize=8)
    axes.set_ylabel("logit", fontsize=8)
    return _encoded(figure)


def _shade(axes: Axes, wake: list[bool]) -> None:
    """Wake and sleep steps behind the picture, counted from 1."""
    from matplotlib.ticker import MaxNLocator

    begin = 0
    for step in range(1, len(wake) + 1):
        if step == len(wake) or wake[step] != wake[begin]:
            axes.axvspan(begin + 0.5, step + 0.5, color=WAKE if wake[begin] else SLEEP, zorder=0, linewidth=0)
            begin = step
    axes.set_xlim(0.5, len(wake) + 0.5)
    axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))


def _raster(activity: dict[str, Any]) -> str:
    layers, wake = activity["layers"], activity["wake"]
    heights = [min(max(layer["shown"] * 0.025, 1.1), 3.2) for layer in layers]
    figure = _figure(8.2, sum(heights) + 0.45 * len(layers) + 0.3)
    panels = figure.subplots(len(layers), 1, squeeze=False, sharex=True, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, layer, height in zip(panels, layers, heights, strict=True):
        _shade(axes, wake)
        thick = min(max(height * 72 / layer["shown"], 0.4 if layer["shown"] > 200 else 1.2), 5)
        for positive, colour in ((True, BLUE), (False, RED)):
            events = [(step + 1, neuron) for step, neuron, spike in layer["spikes"] if (spike > 0) == positive]
            begins, rows = [step - 0.3 for step, _ in events], [neuron for _, neuron in events]
            axes.hlines(rows, begins, [begin + 0.6 for begin in begins], colors=colour, linewidth=thick)
        axes.set_ylim(layer["shown"] - 0.4, -0.6)
        axes.locator_params(axis="y", integer=True)
        axes.set_ylabel("neuron", fontsize=8)
        said = f"{layer['name'][:40]}: {_count(layer['count'], 'spike')}, {layer['negative']} of them negative"
        some = f"; the first {layer['shown']:,} of {layer['neurons']:,} neurons" if layer["shown"] < layer["neurons"] else ""
        _title(axes, said + some)
    panels[-1].set_xlabel("step", fontsize=8)
    return _encoded(figure)


def _membranes(activity: dict[str, Any]) -> str:
    """Saw-teeth: at each step the potential with the step's current, then what the spike left of it."""
    chosen = [(layer, neuron) for layer in activity["layers"] for neuron in layer["traced"]]
    rows = -(-len(chosen) // 2)
    figure = _figure(8.2, 1.5 * rows + 0.3)
    panels = list(figure.subplots(rows, 2, squeeze=False, sharex=True).flat)
    for axes, (layer, traced) in zip(panels, chosen, strict=False):
        _shade(axes, activity["wake"])
        spikes = {step: spike for step, neuron, spike in layer["spikes"] if neuron == traced["neuron"]}
        after = [value / traced["threshold"] for value in traced["potential"]]
        before = [value + spikes.get(step, 0) for step, value in enumerate(after)]
        teeth = [value for pair in zip(before, after, strict=True) for value in pair]
        axes.plot([0, *(step // 2 + 1 for step in range(len(teeth)))], [0, *teeth], color="#444444", linewidth=1)
        for step, spike in spikes.items():
            axes.vlines(step + 1, *sorted((before[step], after[step])), color=BLUE if spike > 0 else RED, linewidth=2.2)
        for level in (0, 1):
            axes.axhline(level, color="#888888", linewidth=0.7, linestyle=(0, (4, 3)))
        _title(axes, f"{layer['name'][:24]}, neuron {traced['neuron']}: threshold {traced['threshold']:,}")
        axes.set_ylabel("potential / threshold", fontsize=7)
    for axes in panels[len(chosen) :]:
        axes.set_visible(False)
    for axes in panels[-2:]:
        axes.set_xlabel("step", fontsize=8)
    return _encoded(figure)
