"""Test vectors: images and everything the reference says of them, as one file for benches in any language."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from casc_hw.network import IntegerNet
from casc_hw.reference import simulate


def save_vectors(net: IntegerNet, images: Tensor, path: str | os.PathLike[str]) -> None:
    """Write an ``.npz`` with, for B images over at most S steps:

    ``images`` uint8 (B, inputs); ``wake`` bool (S,); ``active`` bool (S, B): steps of each image's schedule;
    ``spikes_<layer>`` int8 (S, B, outputs) per spiking layer, counted from 0; ``counts_<layer>`` int64 (B, outputs);
    ``sums`` int64 (B, classes); ``classes``, ``sleep_steps`` int64 (B,); ``digest``: the network's.
    """
    trace = simulate(net, images)
    arrays: dict[str, Any] = {
        "images": net.check_images(images).numpy().astype(np.uint8),
        "wake": trace.wake.numpy(),
        "active": trace.active.numpy(),
        "sums": trace.answer.sums.numpy(),
        "classes": trace.answer.classes.numpy(),
        "sleep_steps": trace.sleep_steps.numpy(),
        "digest": np.array(net.digest),
    }
    for index, (spikes, counts) in enumerate(zip(trace.spikes, trace.answer.counts, strict=True)):
        arrays[f"spikes_{index}"] = spikes.numpy()
        arrays[f"counts_{index}"] = counts.numpy()
    temporary = Path(path).with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)
