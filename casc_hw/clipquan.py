"""The activation a network is trained with, so that a spiking network can repeat it exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from casc_hw.errors import CascError
from casc_hw.network import MAX_LEVELS


class ClipQuan(nn.Module):
    """``y = floor(T * clip(x, 0, 1)) / T``, with the gradient of ``clip(x, 0, 1)`` (straight through the floor).

    where T = ``levels``, an integer from 1 to 255: the number of wake steps of the spiking network.
    Any shape in, the same shape out.
    """

    def __init__(self, levels: int):
        super().__init__()
        if not isinstance(levels, int) or isinstance(levels, bool) or not 1 <= levels <= MAX_LEVELS:
            raise CascError(f"ClipQuan: levels is {levels!r}; give an integer from 1 to {MAX_LEVELS}")
        self.levels = levels

    def forward(self, x: Tensor) -> Tensor:
        clipped = x.clamp(0, 1)
        quantised = torch.floor(clipped * self.levels) / self.levels
        return clipped + (quantised - clipped).detach()

    def extra_repr(self) -> str:
        return f"levels={self.levels}"


class IntegrateAndFire(ClipQuan):
    """``ClipQuan(x / threshold)``: what neurons of that threshold, which subtract it when they spike, count, over T.

    ``threshold``: positive, float64, of any shape that spreads over ``x`` (without the batch), constant within a channel. A layer whose
    weights and biases in units of its inputs, and whose thresholds, are integers already is converted as it is, unrounded.
    """

    def __init__(self, levels: int, threshold: Tensor):
        super().__init__(levels)
        self.threshold = threshold

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x / self.threshold.to(x))
