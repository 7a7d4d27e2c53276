"""What the command lines share, and `convert`, which is a verb of both. Everything heavy is imported inside functions."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from casc_hw.errors import CascError

SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Root(click.Group):
    """Turns the user's errors into one sentence and exit status 1."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CascError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {error}", err=True)
        except OSError as error:
            if ctx.params.get("debug"):
                raise
            click.echo(f"error: {error.filename or 'system'}: {error.strerror or error}; make room or choose another place", err=True)
        return ctx.exit(1)


def json_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds ``--json``, which ``command`` gets as ``as_json``."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON for machines.")(command)


def pairs(option: str, texts: Any) -> Iterator[tuple[str, int]]:
    for text in texts:
        name, _, number = text.rpartition("=")
        if not name or not number.removeprefix("-").isdecimal():
            raise click.UsageError(f"--{option}: {text!r} is not LAYER=N")
        yield name, int(number)


def numbers(option: str, text: str, separator: str, kind: type) -> list[Any]:
    try:
        return [kind(part) for part in text.split(separator)]
    except ValueError:
        raise click.UsageError(f"--{option}: {text!r} is not numbers separated by {separator!r}") from None


def widths(bits: str) -> int | dict[str, int]:
    """Of ``--bits``: one number, or MODULE=N,MODULE=N."""
    if "=" in bits:
        return dict(pairs("bits", bits.split(",")))
    width: int = numbers("bits", bits, ",", int)[0]
    return width


def table(title: str, rows: list[tuple[str, str]]) -> None:
    width = max((len(name) for name, _ in rows), default=0)
    click.echo(title)
    for name, value in rows:
        click.echo(f"  {name:<{width}}  {value}")


@click.command("convert")
@click.option("--model", "factory", required=True, metavar="FILE.py:FUNCTION", help="Your function that returns the torch.nn.Module.")
@click.option("--weights", type=click.Path(path_type=Path), help="state_dict saved with torch.save.")
@click.option("--shape", required=True, help="One image, for example 28x28, or 3x32x32 (channels first).")
@click.option("--input-max", type=click.IntRange(1, 255), default=255, show_default=True, help="The pixel that stands for 1.0.")
@click.option("--bits", default="8", show_default=True, help="Weight bits: one number, or MODULE=N,MODULE=N [others: 8].")
@click.option("--mean", default="0", show_default=True, help="Input normalisation: one number, or one per channel, by commas.")
@click.option("--std", default="1", show_default=True, help="Likewise.")
@click.option("--levels", type=int, help="T, where the model has plain ReLU.")
@click.option("--margin", type=int, help="Wake steps before each sleep [default: T].")
@click.option("--sleep", type=int, help="Most sleep steps [default: until silence, exact].")
@click.option("--calibrate", type=click.Path(path_type=Path), help="Images (.npy or .npz) as pixels; needed for ReLU.")
@click.option("--percentile", type=float, default=0.999, show_default=True, help="Of a ReLU's calibration activations.")
@click.option("--per-channel", is_flag=True, help="A percentile for each channel, rather than each layer.")
@click.option("--name", help="Of the network [default: the output file's].")
@click.option("--out", type=click.Path(path_type=Path), default=Path("converted.pt"), show_default=True)
@json_option
def _convert(
    factory: str,
    weights: Path | None,
    shape: str,
    input_max: int,
    bits: str,
    mean: str,
    std: str,
    levels: int | None,
    margin: int | None,
    sleep: int | None,
    calibrate: Path | None,
    percentile: float,
    per_channel: bool,
    name: str | None,
    out: Path,
    as_json: bool,
) -> None:
    """Turn a trained PyTorch network into integers: any module that torch.fx can trace.

    \b
    Examples:
      {program} convert --model my.py:make_net --weights my_weights.pt --shape 28x28 --out my.pt
      {program} convert --model my.py:make_resnet --weights w.pt --shape 3x32x32 --bits conv1=8,fc=8
      {program} convert --model my.py:make_relu_net --weights w.pt --shape 8x8 --levels 16 --calibrate train.npy
    """
    from casc_hw.conversion import convert as convert_model
    from casc_hw.data import load_calibration, load_model

    size = tuple(numbers("shape", shape, "x", int))
    model = load_model(factory, weights)
    calibration = None if calibrate is None else load_calibration(calibrate, size, input_max)
    means, stds = numbers("mean", mean, ",", float), numbers("std", std, ",", float)
    done = convert_model(
        model,
        input_shape=size,
        input_max=input_max,
        name=name or out.stem,
        bits=widths(bits),
        mean=means if len(means) > 1 else means[0],
        std=stds if len(stds) > 1 else stds[0],
        levels=levels,
        margin=margin,
        sleep=sleep,
        calibration=calibration,
        percentile=percentile,
        per_channel=per_channel,
    )
    done.net.save(out)
    if as_json:
        told = {"file": str(out), "net": done.net.name, "levels": done.net.levels, "digest": done.net.digest}
        told |= {of: getattr(done, of) for of in ("weight_error", "scales", "agreement")}
        click.echo(json.dumps(told | {"losses": {layer: asdict(loss) for layer, loss in done.losses.items()}}))
        return
    rows = [(f"{layer}: weights off by", f"{error:.2%} (rms)") for layer, error in done.weight_error.items()]
    for layer, scale in done.scales.items():
        span = f"{min(scale):g} to {max(scale):g}, by channel" if isinstance(scale, list) else f"{scale:g}"
        rows += [(f"{layer}: activation scale", span)] * (scale != 1)
    rows += [
        (f"{layer}: activations off by", f"{loss.total:.2%} (rms; clipped {loss.clipped:.2%}, the rest {loss.rest:.2%})")
        for layer, loss in done.losses.items()
    ]
    if done.agreement is not None:
        rows.append(("same class as the float network", f"{done.agreement:.2%} of the calibration images"))
    table(f"{out}: T = {done.net.levels}, digest {done.net.digest[:16]}", rows)


def convert_command(program: str) -> click.Command:
    """`convert`, whose examples call ``program``."""
    command = copy.copy(_convert)
    command.help = (command.help or "").replace("{program}", program)
    return command
