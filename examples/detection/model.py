"""The detector: a small convolutional backbone, one cell for every 8 x 8 pixels, and a read-out without activation.

Like YOLO in its first version (arXiv 1506.02640), fully convolutional and without anchors. All up to the read-out's sums is integer
after conversion; sigmoid, exp and softmax are the host's (`examples.detection.decode`).
"""

from __future__ import annotations

from collections import OrderedDict

import torch
from torch import nn

from casc_hw import ClipQuan
from examples._training import norm
from examples.detection.decode import FIELDS


def make(levels: int | None = 8, *, classes: int = 10, channels: int = 1, width: float = 1.0, deep: bool = False) -> nn.Sequential:
    """Images (N, channels, 8G, 8G), 0 to 1, to maps (N, 5 + classes, G, G).

    ``levels``: T of every activation; None for ReLU. ``width``: multiplies the channels. ``deep``: for photographs, two more layers and
    a stride of 16 (G cells for 16G pixels).
    """
    plan = [(16, 2, 0), (32, 2, 0), (32, 1, 2), (48, 1, 0), (64, 1, 0)]  # channels, stride, max pool behind
    if deep:
        plan[3:4] = [(48, 1, 0), (64, 1, 2), (96, 1, 0)]
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    inputs = channels
    for index, (base, stride, pool) in enumerate(plan, 1):
        outputs = max(round(base * width), 1)
        layers[f"conv{index}"] = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        layers[f"norm{index}"] = norm(outputs)
        layers[f"clip{index}"] = nn.ReLU() if levels is None else ClipQuan(levels)
        if pool:
            layers[f"pool{index}"] = nn.MaxPool2d(pool)
        inputs = outputs
    layers["readout"] = readout = nn.Conv2d(inputs, FIELDS + classes, 1)
    assert readout.bias is not None
    with torch.no_grad():  # at first few cells believe in an object (Lin et al., arXiv 1708.02002), of twice a cell's side
        readout.bias[0] = -3.0
        readout.bias[3:FIELDS] = 0.7
    return nn.Sequential(layers)
