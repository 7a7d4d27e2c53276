"""VGG with BatchNorm (Simonyan, Zisserman, arXiv 1409.1556; BatchNorm: Ioffe, Szegedy, arXiv 1502.03167)."""

from __future__ import annotations

from torch import nn

from examples._training import norm
from examples.zoo.layers import Shape, activation, scaled, small


def vgg11(num_classes: int = 1000, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 224, 224)) -> nn.Sequential:
    """Configuration A; on small images with one Linear behind the convolutions."""
    return _vgg((1, 1, 2, 2, 2), num_classes, levels, width, shape)


def vgg16(num_classes: int = 1000, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 224, 224)) -> nn.Sequential:
    """Configuration D, likewise."""
    return _vgg((2, 2, 3, 3, 3), num_classes, levels, width, shape)


def _vgg(depths: tuple[int, ...], num_classes: int, levels: int | None, width: float, shape: Shape) -> nn.Sequential:
    inputs, height, across = shape
    features: list[nn.Module] = []
    for depth, channels in zip(depths, (64, 128, 256, 512, 512), strict=True):
        for _ in range(depth):
            outputs = scaled(channels, width)
            features += [nn.Conv2d(inputs, outputs, 3, padding=1), norm(outputs), activation(levels)]
            inputs = outputs
        if min(height, across) > 1:
            features.append(nn.MaxPool2d(2))
            height, across = height // 2, across // 2
    inputs *= height * across
    classifier: list[nn.Module] = []
    hidden = scaled(4096, width)
    for _ in range(0 if small(shape) else 2):
        classifier += [nn.Linear(inputs, hidden), activation(levels), nn.Dropout()]
        inputs = hidden
    classifier.append(nn.Linear(inputs, num_classes))
    for module in classifier[:-1]:
        if isinstance(module, nn.Linear):  # no BatchNorm follows: He et al., arXiv 1502.01852
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Sequential(*classifier))
    return model
