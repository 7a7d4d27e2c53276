"""MobileNet (Howard et al., arXiv 1704.04861)."""

from __future__ import annotations

from torch import nn

from examples._training import norm
from examples.zoo.layers import Shape, activation, conv, scaled, small


def mobilenet_v1(num_classes: int = 1000, levels: int | None = 8, width: float = 1.0, shape: Shape = (3, 224, 224)) -> nn.Sequential:
    """``width`` is the paper's alpha. On small images the first convolution has stride 1."""

    def block(*how: int) -> list[nn.Module]:
        return [made := conv(*how), norm(made.out_channels), activation(levels)]

    inputs = scaled(32, width)
    features = block(shape[0], inputs, 3, 1 if small(shape) else 2)
    rows = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
    for channels, stride in rows:
        outputs = scaled(channels, width)
        features += block(inputs, inputs, 3, stride, inputs)  # depthwise
        features += block(inputs, outputs, 1)  # pointwise
        inputs = outputs
    model = nn.Sequential()
    model.add_module("features", nn.Sequential(*features))
    model.add_module("avgpool", nn.AdaptiveAvgPool2d(1))
    model.add_module("flatten", nn.Flatten())
    model.add_module("classifier", nn.Linear(inputs, num_classes))
    return model
