"""The command line of the network side. Everything heavy is imported inside functions, so that ``--help`` is instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from casc_hw.cli import SETTINGS, Root, convert_command, json_option
from casc_hw.errors import CascError

EPILOG = "Every verb explains itself: python -m casc_hw evaluate --help. Gates and bitstreams: python -m rtl_gen --help"
PROXY = "Energy is a proxy: 4.6 pJ a product, 0.9 pJ an accumulate (32-bit floats in 45 nm); no memory, no control, no FPGA is in it."


@click.group(cls=Root, epilog=EPILOG, context_settings=SETTINGS)
@click.option("--debug", is_flag=True, help="Show a traceback where an error is reported.")
def main(debug: bool) -> None:
    """From a PyTorch network to integers and spikes, and what they are worth.

    \b
    Examples:
      python -m casc_hw convert --model my.py:make_net --weights my_weights.pt --shape 28x28 --out my.pt
      python -m casc_hw evaluate --net my.pt --data held_out.npz
    """


main.add_command(convert_command("python -m casc_hw"))


def _evaluating(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options that say what `_evaluated` is to evaluate."""
    options = (
        click.option("--net", "net_path", type=click.Path(path_type=Path), help="A converted network [default: examples/mnist_mlp.pt]."),
        click.option(
            "--data",
            type=click.Path(path_type=Path),
            help="Images: .npy, or .npz with 'images' and 'labels' [default: <net>_images.npz beside the network].",
        ),
        click.option("--images", "count", type=click.IntRange(1), help="Only the first so many."),
        click.option("--levels", type=int, help="T: as many levels and wake steps, with the same weights [default: the network's]."),
        click.option("--margin", type=int, help="Wake steps before each sleep [default: the network's; T where --levels is given]."),
        click.option("--sleep", type=int, help="Most sleep steps in one sleep [default: the network's]."),
        click.option("--batch", type=click.IntRange(1), default=50, show_default=True, help="Images at a time; changes no result."),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _evaluated(
    net_path: Path | None, data: Path | None, count: int | None, levels: int | None, margin: int | None, sleep: int | None, batch: int
) -> tuple[Any, str]:
    """The `Evaluation`, and in words where its images come from."""
    import torch

    from casc_hw.data import DEFAULT_NET, enough, load_images
    from casc_hw.evaluation import evaluate as evaluate_net
    from casc_hw.network import IntegerNet
    from casc_hw.spiking import SpikingNet

    torch.set_num_threads(1)  # small matrices: more threads only wait for each other
    path = net_path or DEFAULT_NET
    loaded = IntegerNet.load(path)
    net = SpikingNet(loaded, levels=levels, margin=margin, sleep=... if sleep is None else sleep).net
    images, labels, where = load_images(net, data, path)
    enough(images, count, where)
    if labels is not None and labels.dtype.kind not in "ui":
        raise CascError(f"{where}: its labels are of type {labels.dtype}, not classes; save integers")
    classes = None if labels is None else torch.from_numpy(labels[:count].astype("int64"))
    return evaluate_net(net, images[:count], classes, batch=batch), where


@main.command()
@_evaluating
@click.option("--steps", is_flag=True, help="Also each layer's spikes, unevenness and operations, step by step.")
@json_option
def evaluate(steps: bool, as_json: bool, **options: Any) -> None:
    """Accuracy and cost of the integer ANN, plain integrate-and-fire neurons, CIF without sleep, and CIF with sleep.

    \b
    Examples:
      python -m casc_hw evaluate
      python -m casc_hw evaluate --net examples/mnist_cnn_avg.pt --images 50 --steps
      python -m casc_hw evaluate --net my.pt --data held_out.npz --levels 4 --json
    """
    done, where = _evaluated(**options)
    if as_json:
        click.echo(json.dumps(done.as_json() | {"data": where, "energy": PROXY}))
        return
    _show(done, where, steps)


@main.command()
@_evaluating
@click.option("--out", type=click.Path(path_type=Path), help="Folder for the pictures [default: build/<net>-plots].")
def plot(out: Path | None, **options: Any) -> None:
    """Draw accuracy over the steps of wake and sleep, how often neurons spike, and how unevenly each layer's current comes.

    \b
    Examples:
      python -m casc_hw plot
      python -m casc_hw plot --net examples/mnist_cnn_avg.pt --images 100 --out pictures
    """
    from casc_hw.plots import draw

    done, where = _evaluated(**options)
    paths = draw(done, out or Path("build") / f"{done.net.name}-plots")
    click.echo(f"{done.images} images, {where}: wrote {', '.join(map(str, paths))}")


def _show(done: Any, where: str, steps: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if sys.stdout.isatty() else 130)
    net = done.net
    console.print(f"{net.name}: T = {net.levels}, margin {net.margin}, sleep {'until silence' if net.sleep is None else net.sleep}; "
                  f"{done.images} images, {where}", highlight=False, soft_wrap=True)  # fmt: skip
    table = Table("network", "accuracy", "ANN's class", "ANN's counts", "spikes", "negative", "products", "accumulates", "energy, nJ")
    for mode in done.modes:
        accuracy = "no labels" if mode.accuracy is None else f"{mode.accuracy:.2%}"
        costs = (mode.spikes, mode.negative, mode.products, mode.accumulates, mode.energy_pj / 1000)
        table.add_row(mode.name, accuracy, f"{mode.agreement:.2%}", f"{mode.equal:.3%}", *(f"{cost:,.1f}" for cost in costs))
    console.print(table)
    click.echo("sleep steps: median {median}, p99 {p99}, most {max}".format(**done.sleep_steps))
    click.echo("Spikes, operations and energy are means per image. " + PROXY)
    if steps:
        table = Table("step", "layer", "images", "spikes", "negative", "spikes a neuron", "uneven neurons", "operations",
                      title=f"{done.modes[-1].name}: per image that takes the step")  # fmt: skip
        for row in done.activity:
            step = f"sleep {row.t}+{row.asleep}" if row.asleep else f"wake {row.t}"
            means = (value / row.images for value in (row.spikes, row.negative))
            table.add_row(step, row.layer, str(row.images), *(f"{mean:,.1f}" for mean in means), f"{row.rate:.4f}", f"{row.unevenness:.3%}",
                          f"{row.operations / row.images:,.1f}")  # fmt: skip
        console.print(table)


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(prog_name="python -m casc_hw")
