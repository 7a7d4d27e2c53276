"""The activation a network is trained with, so that a spiking network can repeat it exactly."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from casc_hw.errors import CascError
from casc_hw.network import MAX_LEVELS


class ClipQuan(nn.Module):
    """``y = s * floor(T * clip(x / s, 0, 1)) / T``, with the gradient of ``s * clip(x / s, 0, 1)`` in x (straight through the floor).

    where T = ``levels``, an integer from 1 to 255: the number of wake steps of the spiking network; and s = 1, or, where ``scale``
    is given, trained from there: positive, one number for all, or (C,) for x of shape (N, C) or (N, C, H, W). Its gradient is
    y / s - x / s inside the clip and 1 above it (Choi et al., PACT, arXiv 1805.06085, with the term for the steps of Esser et al.,
    LSQ, arXiv 1902.08153); the parameter is its logarithm, ``log_scale``, which keeps it positive. Conversion folds it away.
    Any shape in, the same shape out. CascError for levels out of range, and for scales that are not positive numbers or of another shape.
    """

    log_scale: nn.Parameter | None

    def __init__(self, levels: int, scale: float | Tensor | None = None):
        super().__init__()
        if not isinstance(levels, int) or isinstance(levels, bool) or not 1 <= levels <= MAX_LEVELS:
            raise CascError(f"ClipQuan: levels is {levels!r}; give an integer from 1 to {MAX_LEVELS}")
        self.levels = levels
        self.log_scale = None
        if scale is not None:
            given = scale.detach() if isinstance(scale, Tensor) else torch.tensor(float(scale))
            if given.ndim > 1 or not given.numel() or not given.is_floating_point():
                raise CascError(f"ClipQuan: scale is {given.dtype} of shape {tuple(given.shape)}; give floats, () or (C,)")
            if len(bad := given[~((given > 0) & given.isfinite())]):
                raise CascError(f"ClipQuan: scale is {bad.flatten()[0].item()!r}; give a positive number, or one per channel")
            self.log_scale = nn.Parameter(given.log())

    @property
    def scale(self) -> Tensor | None:
        """s, () or (C,); None where it is 1 and stays so."""
        return None if self.log_scale is None else self.log_scale.exp()

    def forward(self, x: Tensor) -> Tensor:
        scale = self.scale
        if scale is None:
            return self._staircase(x)
        scale = scale.reshape(-1, *[1] * (x.ndim - 2)) if scale.ndim else scale
        return self._staircase(x / scale) * scale

    def _staircase(self, x: Tensor) -> Tensor:
        clipped = x.clamp(0, 1)
        quantised = torch.floor(clipped * self.levels) / self.levels
        return clipped + (quantised - clipped).detach()

    def extra_repr(self) -> str:
        if self.log_scale is None:
            return f"levels={self.levels}"
        return f"levels={self.levels}, scale={'one' if not self.log_scale.ndim else len(self.log_scale)}"


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
