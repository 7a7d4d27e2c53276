"""A recurrent classifier (Elman, "Finding structure in time", Cognitive Science 1990) that reads an image row by row."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from examples._training import norm
from examples.zoo.layers import Shape, activation, scaled


class RNN(nn.Module):
    """``h[t] = clip(wx e[t] + wh h[t - 1])`` over the rows of an image, unrolled; the read-out takes the last h.

    where e[t] = clip(embed row[t]). Images (N, C, H, W) to logits (N, num_classes).
    """

    def __init__(self, num_classes: int, levels: int | None, embedding: int, hidden: int, shape: Shape):
        super().__init__()
        channels, self.rows, across = shape
        self.embed = nn.Conv2d(channels, embedding, (1, across), bias=False)
        self.bn, self.clip = norm(embedding), activation(levels)
        self.wx, self.wh = nn.Linear(embedding, hidden), nn.Linear(hidden, hidden, bias=False)
        self.clip_h = activation(levels)
        self.fc = nn.Linear(hidden, num_classes)
        nn.init.normal_(self.wx.weight, std=embedding**-0.5)
        with torch.no_grad():  # a state that lasts, between forgotten at once and never (Le et al., arXiv 1504.00941)
            self.wh.weight.mul_(0.5).add_(torch.eye(hidden), alpha=0.75)

    def forward(self, x: Tensor) -> Tensor:
        e = self.clip(self.bn(self.embed(x)))
        h = self.clip_h(self.wx(e[:, :, 0, 0]))
        for t in range(1, self.rows):
            h = self.clip_h(self.wx(e[:, :, t, 0]) + self.wh(h))
        out: Tensor = self.fc(h)
        return out


def rnn(num_classes: int = 10, levels: int | None = 8, width: float = 1.0, shape: Shape = (1, 28, 28)) -> RNN:
    """32 channels of embedding, 64 of state, times ``width``."""
    return RNN(num_classes, levels, scaled(32, width), scaled(64, width), shape)
