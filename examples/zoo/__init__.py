"""Networks of the literature with `ClipQuan` where they have ReLU, by name; ``python -m examples.zoo --help``.

Each takes ``num_classes``, ``levels`` (T; None: ReLU), ``width`` (channels, times) and the ``shape`` of an image; images of fewer than
64 pixels get the form that is usual for CIFAR. VGG (with BatchNorm), ResNet, ResNeXt have torchvision's modules in torchvision's order.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from examples.zoo.layers import Shape
from examples.zoo.mobilenet import mobilenet_v1
from examples.zoo.regnet import regnet_x_400mf
from examples.zoo.resnet import resnet18, resnet20, resnet34
from examples.zoo.resnext import resnext50_32x4d
from examples.zoo.rnn import rnn
from examples.zoo.vgg import vgg11, vgg16

NETS: dict[str, Callable[..., nn.Module]] = {
    of.__name__: of for of in (vgg11, vgg16, resnet18, resnet20, resnet34, mobilenet_v1, regnet_x_400mf, resnext50_32x4d, rnn)
}
_SMALL, _LARGE = ("vgg11", "vgg16", "resnet18", "resnet20", "mobilenet_v1"), [name for name in NETS if name not in ("resnet20", "rnn")]
FULL_SIZE: list[tuple[str, Shape, int, int]] = [
    ("rnn", (1, 28, 28), 10, 4),
    *((name, (3, 32, 32), 10, 4) for name in _SMALL),
    *((name, (3, 224, 224), 1000, 2) for name in _LARGE),
]
"""Each network with the images and classes it is known for, and a T at which it is run in seconds."""
