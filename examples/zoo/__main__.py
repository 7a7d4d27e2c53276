"""``python -m examples.zoo``: every network at full size, checked; or one of them trained. Heavy imports are inside functions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from casc_hw.cli import SETTINGS, Root
from casc_hw.errors import CascError


@click.group(cls=Root, invoke_without_command=True, subcommand_metavar="", context_settings=SETTINGS)
@click.option("--net", "name", help="Only this network [default: all].")
@click.option("--dataset", help="Train on it: cifar10, cifar100, mnist or imagenet, for which --data is needed; digits or mnist5k.")
@click.option("--data", "folder", type=click.Path(path_type=Path), help="The folder with the data set's files.")
@click.option("--epochs", type=click.IntRange(1), default=30, show_default=True)
@click.option("--tune", type=click.IntRange(0), default=0, show_default=True, help="Epochs with rounded weights, for few bits.")
@click.option("--levels", type=int, help="T [default: 8 to train; else 4, and 2 at 224 x 224].")
@click.option("--width", type=click.FloatRange(0, min_open=True), default=1.0, show_default=True, help="Channels, times.")
@click.option("--bits", type=int, default=8, show_default=True, help="Of weights.")
@click.option("--batch", type=click.IntRange(2), default=100, show_default=True)
@click.option("--rate", type=click.FloatRange(0, min_open=True), default=4e-3, show_default=True, help="The highest of training.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of training.")
@click.option("--out", type=click.Path(path_type=Path), help="The trained network, converted [default: <net>_<dataset>.pt].")
@click.option("--debug", is_flag=True, help="Show a traceback where an error is reported.")
def main(name: str | None, dataset: str | None, folder: Path | None, levels: int | None, out: Path | None, debug: bool, **how: Any) -> None:
    """Networks of the literature: at full size with random weights, converted and run in spikes; or one of them trained.

    \b
    Examples:
      python -m examples.zoo
      python -m examples.zoo --net mobilenet_v1
      python -m examples.zoo --net rnn --dataset digits
      python -m examples.zoo --net resnet20 --dataset cifar10 --data ~/data --epochs 100
    """
    import torch

    from examples.zoo import NETS

    torch.set_num_threads(1)
    if name is not None and name not in NETS:
        raise CascError(f"net: there is no {name!r}; take one of {', '.join(NETS)}")
    if dataset is None:
        if folder is not None:
            raise click.UsageError("--data is for --dataset, which says what is in it")
        _table([name] if name else list(NETS), levels, how["width"], how["bits"])
        return
    if name is None:
        raise click.UsageError("--dataset is for --net, the network to train")

    out = out or Path(f"{name}_{dataset}.pt")
    if not out.parent.is_dir():  # said before the training, not after
        raise CascError(f"{out}: {out.parent} is not a folder; choose another place")

    from examples.datasets import load
    from examples.zoo.train import train

    net = train(name, load(dataset, folder), levels=8 if levels is None else levels, **how)
    for key, value in net.meta["results"].items():
        click.echo(f"{key:32} {value}")
    net.save(out)
    click.echo(f"wrote {out}")


def _table(names: list[str], levels: int | None, width: float, bits: int) -> None:
    from examples.zoo import FULL_SIZE
    from examples.zoo.check import check

    click.echo("| network | image | T | parameters | neurons | active | conversion, s | ANN, s | SNN, s | sleep steps | mismatches |")
    click.echo("|---|---|---|---|---|---|---|---|---|---|---|")
    wrong = []
    for name, shape, classes, usual in (of for of in FULL_SIZE if of[0] in names):
        found = check(name, shape, classes=classes, levels=usual if levels is None else levels, width=width, bits=bits)
        cells = [
            name,
            "x".join(map(str, shape)),
            str(found.net.levels),
            f"{found.parameters:,}",
            f"{found.neurons:,}",
            f"{found.active:.0%}",
        ]
        cells += [f"{seconds:.1f}" for seconds in (found.convert_s, found.ann_s, found.snn_s)]
        click.echo(f"| {' | '.join([*cells, str(found.sleep_steps), str(found.mismatches)])} |")
        wrong += [name] * bool(found.mismatches)
    if wrong:
        raise CascError(f"{wrong[0]}: spiking network and integer ANN differ, which is a fault of casc_hw; report it")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main(prog_name="python -m examples.zoo")
