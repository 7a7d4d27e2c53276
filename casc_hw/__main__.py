"""The command line of the network side. Everything heavy is imported inside functions, so that ``--help`` is instant."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from casc_hw.cli import SETTINGS, Root, convert_command, json_option, numbers, table, widths
from casc_hw.errors import CascError

EPILOG = "Every verb explains itself: python -m casc_hw evaluate --help. Gates and bitstreams: python -m rtl_gen --help"
PROXY = "Energy is a proxy: 4.6 pJ a product, 0.9 pJ an accumulate (32-bit floats in 45 nm); no memory, no control, no FPGA is in it."


@click.group(cls=Root, epilog=EPILOG, context_settings=SETTINGS)
@click.option("--debug", is_flag=True, help="Show a traceback where an error is reported.")
def main(debug: bool) -> None:
    """From a PyTorch network to integers and spikes, and what they are worth.

    \b
    Examples:
      python -m casc_hw train --model my.py:make_net --data train.npz --shape 28x28 --bits 4 --out my.pt
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


@main.command()
@click.option("--model", "factory", required=True, metavar="FILE.py:FUNCTION", help="Your function that returns the torch.nn.Module.")
@click.option("--data", type=click.Path(path_type=Path), required=True, help="A .npz with 'images' (integers) and 'labels'.")
@click.option("--validate", type=click.Path(path_type=Path), help="Likewise, not trained on [default: every tenth image of --data].")
@click.option("--shape", required=True, help="One image, for example 28x28, or 3x32x32 (channels first).")
@click.option("--input-max", type=click.IntRange(1, 255), default=255, show_default=True, help="The pixel that stands for 1.0.")
@click.option("--levels", type=int, help="T [default: that of the model's ClipQuan, else 8].")
@click.option("--clip-scale", type=click.Choice(["layer", "channel"]), help="Train where activations are clipped, one scale for each.")
@click.option("--bits", default="8", show_default=True, help="Weight bits: one number, or MODULE=N,MODULE=N [others: 8].")
@click.option("--epochs", type=click.IntRange(0), default=10, show_default=True, help="Passes with floats.")
@click.option("--tune", type=click.IntRange(0), default=3, show_default=True, help="Passes with rounded weights, BatchNorm folded.")
@click.option("--rate", type=float, default=4e-3, show_default=True, help="The highest learning rate of --epochs.")
@click.option("--tune-rate", type=float, default=1e-3, show_default=True, help="That of --tune.")
@click.option("--batch", type=click.IntRange(1), default=100, show_default=True, help="Images a step.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of first weights, order and dropout.")
@click.option("--weights", type=click.Path(path_type=Path), help="A state_dict to start from.")
@click.option("--save-weights", type=click.Path(path_type=Path), help="The state_dict behind --epochs, for --weights; --tune is not in it.")
@click.option("--name", help="Of the network [default: the output file's].")
@click.option("--out", type=click.Path(path_type=Path), default=Path("trained.pt"), show_default=True, help="The converted network.")
@json_option
def train(
    factory: str,
    data: Path,
    validate: Path | None,
    shape: str,
    input_max: int,
    levels: int | None,
    clip_scale: Any,
    bits: str,
    epochs: int,
    tune: int,
    rate: float,
    tune_rate: float,
    batch: int,
    seed: int,
    weights: Path | None,
    save_weights: Path | None,
    name: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Train a classifier with ClipQuan for its ReLUs, then with its weights rounded, and convert it.

    \b
    Examples:
      python -m casc_hw train --model my.py:make_net --data train.npz --shape 28x28 --bits 4 --out my.pt
      python -m casc_hw train --model my.py:make_net --data train.npz --validate held.npz --shape 3x32x32 \\
          --clip-scale channel --bits conv1=8,fc=8,conv2=2,conv3=2 --epochs 40 --tune 10 --save-weights w.pt
      python -m casc_hw train --model my.py:make_net --weights w.pt --epochs 0 --tune 5 --data train.npz --shape 28x28 --bits 3

    One core is used, whose results can be repeated; OMP_NUM_THREADS=8 before the command takes eight.
    """
    import torch

    from casc_hw.clipquan import ClipQuan
    from casc_hw.conversion import convert
    from casc_hw.data import load_labelled, load_model, load_state, load_weights
    from casc_hw.network import save_whole
    from casc_hw.qat import clip_quant, fake_quantise, fold_batchnorm
    from casc_hw.reference import quantised_ann
    from casc_hw.spiking import SpikingNet
    from casc_hw.training import accuracy, finetune, fit

    for path in (out, save_weights):
        if path is not None and not path.parent.is_dir():
            raise CascError(f"{path}: there is no folder {path.parent}; make it first")
    size: Any = tuple(numbers("shape", shape, "x", int))
    rounding: Any = {"input_shape": size, "input_max": input_max, "bits": widths(bits)}
    images, labels = load_labelled(data, size, input_max)
    if validate is not None:
        held = load_labelled(validate, size, input_max)
    else:
        tenth = torch.arange(len(images)) % 10 == 9
        if not tenth.any():
            raise CascError(f"{data}: {len(images)} images leave none to validate on; give more, or --validate")
        held, images, labels = (images[tenth], labels[tenth]), images[~tenth], labels[~tenth]

    torch.manual_seed(seed)
    model = load_model(factory, None)
    state = {} if weights is None else load_state(weights)
    scaled = state.keys() - model.state_dict() and clip_scale  # saved with scales that the function's model does not have
    if weights is not None and not scaled:
        load_weights(model, state, weights)
    found = (module.levels for module in model.modules() if isinstance(module, ClipQuan))
    model = clip_quant(model, levels if levels is not None else next(found, 8), clip_scale)
    if weights is not None and scaled:
        load_weights(model, state, weights)
    convert(model, **rounding)  # whatever is wrong is said before the training
    if tune:
        fake_quantise(fold_batchnorm(model), **rounding)

    settings: Any = {"input_shape": size, "input_max": input_max, "batch": batch, "seed": seed, "validation": held}
    if epochs:
        with _progress("training", epochs) as told:
            fit(model, images, labels, **settings, epochs=epochs, rate=rate, told=told)
    if save_weights is not None:
        save_whole(model.state_dict(), save_weights)
    pixels = {"input_shape": size, "input_max": input_max}
    results = {"float, with ClipQuan": accuracy(model, *held, **pixels)}
    if tune:
        with _progress("rounded", tune) as told:
            model = finetune(model, images, labels, **settings, bits=rounding["bits"], epochs=tune, rate=tune_rate, told=told).model
        results["float, weights rounded"] = accuracy(fake_quantise(model, **rounding), *held, **pixels)
    spec = {"epochs": epochs, "tune": tune, "rate": rate, "tune_rate": tune_rate, "batch": batch, "seed": seed, "clip_scale": clip_scale}
    net = convert(model, **rounding, name=name or out.stem, meta={"training": spec}).net
    snn, right, spiking = SpikingNet(net), 0, 0
    for some, classes in zip(*(torch.split(of, 50) for of in held), strict=True):
        right += int((quantised_ann(net, some).classes == classes).sum())
        spiking += int((snn.run(some).answer.classes == classes).sum())
    results |= {"integer ANN": right / len(held[0]), "integer SNN": spiking / len(held[0])}
    net.save(out)
    if as_json:
        said = {"file": str(out), "net": net.name, "levels": net.levels, "digest": net.digest}
        click.echo(json.dumps(said | {"training_images": len(images), "validation_images": len(held[0]), "accuracy": results}))
        return
    rows = [(key, f"{value:.2%}") for key, value in results.items()]
    table(f"{out}: T = {net.levels}, digest {net.digest[:16]}; accuracy on {len(held[0])} images that were not trained on", rows)


@contextmanager
def _progress(what: str, epochs: int) -> Iterator[Callable[[Any], None]]:
    """Takes what `casc_hw.fit` tells, and shows it where someone looks."""
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), disable=not sys.stderr.isatty(), transient=True) as progress:
        task = progress.add_task(what, total=epochs)

        def told(epoch: Any) -> None:
            progress.update(task, advance=1, description=f"{what}: loss {epoch.loss:.4f}, accuracy {epoch.accuracy:.2%}")

        yield told


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(prog_name="python -m casc_hw")
