"""Random integer networks, chains of dense layers and graphs with convolutions, pools and shortcuts, to hold reference and gates to."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise, product
from math import gcd, prod
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional

from casc_hw.network import IMAGE, IntegerNet, Layer, MapShape, Pool, Synapses, output_shape

SIZES = (1, 2, 3, 4, 5, 7, 8, 9)
CHANNELS = (1, 2, 3, 4, 5, 6)


def random_chain(
    sizes: Sequence[int],
    *,
    levels: int = 8,
    margin: int | None = None,
    sleep: int | None = None,
    bits: int = 8,
    input_max: int = 255,
    seed: int = 0,
    spread: float = 0.5,
) -> IntegerNet:
    """A network of ``sizes`` (inputs, hidden..., classes); ``spread``: the typical threshold over the typical current."""
    chance = random.Random(seed)
    half = 1 << (bits - 1)
    layers = []
    for index, (inputs, outputs) in enumerate(pairwise(sizes)):
        last = index == len(sizes) - 2
        typical = max(int(spread * (2 * input_max if index == 0 else 0.5) * half * inputs**0.5 / 2), 1)
        weight = [[chance.choice((-half, half - 1, *(chance.randrange(-half, half) for _ in range(6)))) for _ in range(inputs)]
                  for _ in range(outputs)]  # fmt: skip
        bias = [chance.randint(-max(typical // 4, 2), max(typical // 4, 2)) for _ in range(outputs)]
        threshold = None if last else torch.tensor([chance.randint(1, 2 * typical) for _ in range(outputs)])
        source = f"layer{index - 1}" if index else IMAGE
        scale = 100.0 if last else None
        layers.append(Layer.dense(f"layer{index}", source, torch.tensor(weight), torch.tensor(bias), threshold, bits, scale))
    return IntegerNet("random", levels, levels if margin is None else margin, sleep, (sizes[0],), input_max, tuple(layers))


def random_images(net: IntegerNet, count: int, seed: int = 0) -> Tensor:
    """All bright, all dark, then random ones, every other one of extremes only."""
    chance = torch.Generator().manual_seed(seed)
    images = torch.randint(0, net.input_max + 1, (count, net.inputs), generator=chance)
    images[::2] = (images[::2] > net.input_max // 2) * net.input_max
    images[:1] = net.input_max
    images[1:2] = 0
    return images


def random_graph(seed: int, **fixed: Any) -> IntegerNet:
    """A network of two to six layers on maps of up to 9 x 9 and 6 channels, whose neurons are neither all silent nor all saturated.

    By chance it has strides, paddings, groups, pools of both kinds, identities, projections, and layers of several sources.
    ``fixed``: ``levels`` 1 to 16, ``margin``, ``sleep`` (None), ``bits``, ``input_max``, ``input_shape``, ``layers`` (spiking ones).
    """
    return Builder(random.Random(seed), fixed).graph(f"random{seed}")


class Builder:
    """Nodes one after the other, with random weights, and biases and thresholds at which neurons neither are silent nor saturate.

    ``fixed``: see `random_graph`. A node's source is a name; what is drawn comes from ``chance``.
    """

    def __init__(self, chance: random.Random, fixed: dict[str, Any]):
        self.chance, self.fixed = chance, fixed
        self.levels = fixed.get("levels", chance.choice([1, 2, 3, 4, 5, 7, 8, 16]))
        self.input_max = fixed.get("input_max", chance.choice([1, 16, 255]))
        sizes = [chance.choice(SIZES) for _ in range(2)]
        shape = chance.choice([(chance.choice((1, 2, 3)), *sizes)] * 4 + [tuple(sizes), (chance.choice((1, 5, 13)),)])
        self.input_shape: tuple[int, ...] = fixed.get("input_shape", shape)
        self.draw = torch.Generator().manual_seed(chance.randrange(1 << 32))
        batch, size = 24, prod(self.input_shape)
        pixels = torch.randint(0, self.input_max + 1, (batch, size), generator=self.draw)
        pixels[::3] = (pixels[::3] > self.input_max // 2) * self.input_max
        probe = IntegerNet("probe", 1, 1, None, self.input_shape, 1, _probe(size))
        self.shapes: dict[str, MapShape] = {IMAGE: probe.shapes[IMAGE]}
        self.values: dict[str, Tensor] = {IMAGE: self.levels * pixels.reshape(batch, *self.shapes[IMAGE]).double()}
        self.spans = {IMAGE: self.input_max}
        self.averages: set[str] = set()
        self.unused: list[str] = []
        self.nodes: list[Layer | Pool] = []

    def graph(self, name: str) -> IntegerNet:
        """Nodes at random."""
        chance = self.chance
        self.layer("layer1", IMAGE)
        for index in range(2, self.fixed.get("layers", chance.randrange(1, 6)) + 1):
            if chance.random() < 0.5:
                self.some_pool(f"pool{index - 1}")
                if chance.random() < 0.2:
                    self.some_pool(f"pool{index - 1}b")
            self.layer(f"layer{index}", self.unused[-1])
        if chance.random() < 0.5:
            self.some_pool("pool")
        self.readout()
        margin = chance.choice([self.levels, self.levels, chance.randrange(1, self.levels + 1)])
        return self.net(name, self.fixed.get("margin", margin), self.fixed.get("sleep"))

    def net(self, name: str, margin: int, sleep: int | None) -> IntegerNet:
        """The network of all nodes so far, the last of which is the read-out."""
        return IntegerNet(name, self.levels, margin, sleep, self.input_shape, self.input_max, tuple(self.nodes))

    # Nodes

    def layer(self, name: str, main: str) -> None:
        source = self.shapes[main]
        first = self.dense(main, self.chance.choice((1, 2, 5, 7))) if self.chance.random() < 0.1 else self.convolution(main)
        target = output_shape(first, source)
        synapses = [first]
        if main == IMAGE:
            if self.chance.random() < 0.1:
                synapses += self.towards(IMAGE, target)
        else:
            others = [other for other in self.shapes if other not in (IMAGE, main)] + [main]
            for other in others:
                if self.chance.random() < (0.7 if other in self.unused else 0.35) and len(synapses) < 3:
                    synapses += self.towards(other, target)
        total = torch.stack([self.current(part) for part in synapses]).sum(0)
        for index, part in enumerate(synapses):
            if part.shortcut and part.bits not in (2, 3, 4, 6, 8):
                # about as strong as the rest, or much stronger
                gain = self.chance.choice((1, 1, 30)) / self.spans[part.source] / self.levels
                one = (total.std((0, 2, 3), correction=0) * gain).clamp(1, 1 << 20).long()
                synapses[index] = Synapses(part.source, one.reshape(-1, 1, 1, 1), int(one.max()).bit_length() + 1, groups=part.groups)
        self.spiking(name, synapses)

    def spiking(self, name: str, synapses: Sequence[Synapses]) -> None:
        """A layer of neurons behind ``synapses``."""
        target = output_shape(synapses[0], self.shapes[synapses[0].source])
        total = torch.stack([self.current(part) for part in synapses]).sum(0)
        spread = total.std((0, 2, 3), correction=0).clamp(min=1)
        middle = total.movedim(1, 0).flatten(1).median(1).values
        bias = ((self.uniform(-0.5, 0.8, len(spread)) * spread - middle) / self.levels).round().long()
        theta = (self.uniform(0.3, 1.6, len(spread)) * spread / self.levels).round().clamp(min=1).long()
        self.add(Layer(name, tuple(synapses), bias, theta), target)
        counts = ((total + self.levels * bias[:, None, None]) / theta[:, None, None]).floor()
        self.values[name] = counts.clamp(0, self.levels)

    def some_pool(self, name: str) -> None:
        source = self.unused[-1]
        kind: Literal["average", "max"] = "average" if source in self.averages else self.chance.choice(("average", "max"))
        kernel, stride, padding = self.window(self.shapes[source], (1, 2, 2, 3), (1, 2, 2, 3))
        if self.chance.random() < 0.1:
            kernel, stride, padding = self.shapes[source][1:], (1, 1), (0, 0)
        self.pool(name, source, kind, kernel, stride, padding)

    def pool(
        self,
        name: str,
        source: str,
        kind: Literal["average", "max"],
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
    ) -> None:
        pool = Pool(name, source, kind, kernel, stride, padding)
        self.add(pool, output_shape(pool, self.shapes[source]))
        padded = functional.pad(self.values[source], (padding[1], padding[1], padding[0], padding[0]))
        if kind == "average":
            self.values[name] = functional.avg_pool2d(padded, kernel, stride, divisor_override=1)
            self.averages.add(name)
        else:
            self.values[name] = functional.max_pool2d(padded, kernel, stride)
            if source in self.averages:
                self.averages.add(name)

    def readout(self) -> None:
        classes = self.chance.choice((1, 2, 3, 10))
        if len(self.unused) == 1 and self.chance.random() < 0.3:
            synapses = [self.convolution(self.unused[0])]
        else:
            synapses = [self.dense(source, classes) for source in self.unused]
        self.output(synapses)

    def output(self, synapses: Sequence[Synapses], bias: int = 50) -> None:
        """The read-out behind ``synapses``, its biases from -``bias`` to ``bias``."""
        biases = torch.randint(-bias, bias + 1, (synapses[0].outputs,), generator=self.draw)
        self.add(Layer("readout", tuple(synapses), biases, None, 100.0), output_shape(synapses[0], self.shapes[synapses[0].source]))

    def add(self, node: Layer | Pool, shape: MapShape) -> None:
        sources = [part.source for part in (node.synapses if isinstance(node, Layer) else (node,))]
        self.unused = [name for name in self.unused if name not in sources] + [node.name]
        self.nodes.append(node)
        self.shapes[node.name] = shape
        gain = prod(node.kernel) if isinstance(node, Pool) and node.kind == "average" else 1
        self.spans[node.name] = gain * (self.spans[node.source] if isinstance(node, Pool) else 1)

    # Synapses

    def dense(self, source: str, outputs: int) -> Synapses:
        bits = self.bits()
        return Synapses(source, self.weight(bits, outputs, prod(self.shapes[source])), bits)

    def convolution(self, source: str) -> Synapses:
        kernel, stride, padding = self.window(self.shapes[source], (1, 2, 3, 3, 3), (1, 1, 1, 1, 1, 2, 3))
        same = source != IMAGE and self.chance.random() < 0.4
        return self.convolve(source, self.shapes[source][0] if same else self.chance.choice(CHANNELS), kernel, stride, padding)

    def convolve(
        self,
        source: str,
        outputs: int,
        kernel: tuple[int, int],
        stride: tuple[int, int],
        padding: tuple[int, int],
        groups: int | None = None,
    ) -> Synapses:
        """``groups``: at random if None."""
        inputs, bits = self.shapes[source][0], self.bits()
        common = gcd(inputs, outputs)
        groups = groups or self.chance.choice([1, 1, *(size for size in range(1, common + 1) if common % size == 0)])
        weight = self.weight(bits, outputs, inputs // groups, *kernel)
        return Synapses(source, weight, bits, stride, padding, groups)

    def towards(self, source: str, target: MapShape) -> list[Synapses]:
        """Synapses from ``source`` to a map of shape ``target``: an identity, a convolution, or none where none fits."""
        shape = self.shapes[source]
        if shape == target and self.chance.random() < 0.6:
            return [Synapses(source, torch.ones(shape[0], 1, 1, 1, dtype=torch.int64), 24, groups=shape[0])]
        fits = [
            [
                (kernel, stride, padding)
                for kernel, stride in product((1, 2, 3), (1, 2, 3))
                for padding in range(kernel)
                if size + 2 * padding >= kernel and (size + 2 * padding - kernel) // stride + 1 == wanted
            ]
            for size, wanted in zip(shape[1:], target[1:], strict=True)
        ]
        if not all(fits):
            return []
        down, across = (self.chance.choice(fit) for fit in fits)
        kernel, stride, padding = zip(down, across, strict=True)
        return [self.convolve(source, target[0], kernel, stride, padding)]

    def window(
        self, shape: MapShape, kernels: tuple[int, ...], strides: tuple[int, ...]
    ) -> tuple[tuple[int, int], tuple[int, int], tuple[int, int]]:
        """Kernel, stride and padding, often the same both ways."""
        kernel: list[int] = []
        stride: list[int] = []
        padding: list[int] = []
        for size in shape[1:]:
            same = kernel and self.chance.random() < 0.7
            high, step = (kernel[0], stride[0]) if same else (self.chance.choice(kernels), self.chance.choice(strides))
            rim = padding[0] if same else self.chance.choice((0, high // 2, high // 2, self.chance.randrange(high)))
            while size + 2 * rim < high:
                high, rim = high - 1, min(rim, max(high - 2, 0))
            kernel.append(high)
            stride.append(step)
            padding.append(rim)
        return (kernel[0], kernel[1]), (stride[0], stride[1]), (padding[0], padding[1])

    def current(self, part: Synapses) -> Tensor:
        values, weight = self.values[part.source], part.weight.double()
        if part.dense:
            return (values.flatten(1) @ weight.T)[:, :, None, None]
        return functional.conv2d(values, weight, None, part.stride, part.padding, 1, part.groups)

    def bits(self) -> int:
        return self.fixed.get("bits", self.chance.choice((2, 3, 4, 4, 6, 8)))

    def weight(self, bits: int, *shape: int) -> Tensor:
        half = 1 << (bits - 1)
        return torch.randint(-half, half, shape, generator=self.draw)

    def uniform(self, low: float, high: float, size: int) -> Tensor:
        return low + (high - low) * torch.rand(size, generator=self.draw, dtype=torch.float64)


def _probe(inputs: int) -> tuple[Layer, Layer]:
    """The smallest network, to be asked how it takes an image."""
    one = torch.ones(1, dtype=torch.int64)
    weight = torch.ones(1, inputs, dtype=torch.int64)
    return Layer.dense("a", IMAGE, weight, one, one, 2), Layer.dense("b", "a", weight[:, :1], one, None, 2, 1.0)
