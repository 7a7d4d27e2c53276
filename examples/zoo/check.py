"""Whether a network converts, and spikes as its integer ANN counts: on random images, with weights no one has trained."""

from __future__ import annotations

import time
from dataclasses import dataclass
from itertools import pairwise
from math import prod

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn

from casc_hw import Answer, IntegerNet, SpikingNet, convert, quantised_ann
from examples.zoo import NETS
from examples.zoo.layers import Shape


@dataclass(frozen=True)
class Check:
    """What was found for one network.

    Attributes
    ----------
    net: converted.
    parameters: of the float network.
    neurons, mismatches: spiking neurons, and those (of all images) whose count is not the integer ANN's, or sums of the read-out.
    active: of the layer with the fewest, the share of neurons that spike.
    sleep_steps: of the slowest image.
    convert_s, ann_s, snn_s: seconds of conversion, of the integer ANN, of the spiking network.
    """

    net: IntegerNet
    parameters: int
    neurons: int
    mismatches: int
    active: float
    sleep_steps: int
    convert_s: float
    ann_s: float
    snn_s: float


def random_images(count: int, shape: Shape, seed: int) -> Tensor:
    """Pixels uint8 (count, *shape): smooth patches of random colour under noise, so that places differ."""
    chance = torch.Generator().manual_seed(seed)
    patches = torch.rand(count, shape[0], 4, 4, generator=chance)
    smooth = nn.functional.interpolate(patches, size=shape[1:], mode="bilinear")
    noise = torch.rand(count, *shape, generator=chance)
    return ((0.75 * smooth + 0.25 * noise) * 255).round().to(torch.uint8)


def prepare(model: nn.Module, shape: Shape, count: int = 4) -> nn.Module:
    """``model`` with BatchNorm statistics of ``count`` random images: without them hardly a neuron would be active, or each one full."""
    update_bn([random_images(count, shape, seed=1) / 255], model)  # type: ignore[arg-type, unused-ignore]
    return model.eval()


def check(name: str, shape: Shape, *, classes: int, levels: int, width: float = 1.0, bits: int = 8, images: int = 1) -> Check:
    """Make network ``name`` with seeded random weights, convert it, and run ``images`` random images as ANN and in spikes."""
    torch.manual_seed(0)
    model = prepare(NETS[name](classes, levels, width, shape), shape)
    pixels = random_images(images, shape, seed=2)
    times = [time.perf_counter()]
    net = convert(model, name=name, input_shape=shape, bits=bits).net
    times.append(time.perf_counter())
    ann = quantised_ann(net, pixels)
    times.append(time.perf_counter())
    trace = SpikingNet(net).run(pixels)
    times.append(time.perf_counter())
    convert_s, ann_s, snn_s = (end - start for start, end in pairwise(times))
    return Check(
        net,
        sum(parameter.numel() for parameter in model.parameters()),
        sum(prod(net.shapes[layer.name]) for layer in net.spiking),
        mismatches(ann, trace.answer),
        min((counts > 0).double().mean().item() for counts in ann.counts),
        int(trace.sleep_steps.max()),
        convert_s,
        ann_s,
        snn_s,
    )


def mismatches(one: Answer, two: Answer) -> int:
    """Counts and sums in which they differ."""
    return sum(int((a != b).sum()) for a, b in zip((*one.counts, one.sums), (*two.counts, two.sums), strict=True))
