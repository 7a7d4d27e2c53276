"""Test vectors: images and everything the reference says of them, as one file for benches in any language."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch import Tensor

from casc_hw.network import IMAGE, IntegerNet, to_wire
from casc_hw.reference import quantised_ann, simulate


def save_vectors(net: IntegerNet, images: Tensor, path: str | os.PathLike[str], code: Literal["spike", "count"] = "spike") -> None:
    """Write an ``.npz`` with, for B images, what enters and leaves the chip, in wire order (by y, x, and channel innermost):

    ``images`` uint8 (B, inputs); ``sums`` int64 (B, outputs); ``classes``, ``sleep_steps`` int64 (B,), the latter zeros in count code;
    ``code``; ``digest``: the network's. Per spiking layer, counted from 0, neurons flattened in (C, H, W) order: ``shape_<layer>``
    int64 (3,), that is C, H, W; ``counts_<layer>`` int64 (B, neurons). In spike code, over at most S steps, also ``wake`` bool (S,);
    ``active`` bool (S, B): steps of each image's schedule; ``spikes_<layer>`` int8 (S, B, neurons).
    """
    trace = simulate(net, images) if code == "spike" else None
    answer = quantised_ann(net, images) if trace is None else trace.answer
    arrays: dict[str, Any] = {
        "images": to_wire(net.check_images(images), net.shapes[IMAGE]).numpy().astype(np.uint8),
        "sums": to_wire(answer.sums, net.shapes[net.readout.name]).numpy(),
        "classes": answer.classes.numpy(),
        "sleep_steps": np.zeros(len(answer.classes), np.int64) if trace is None else trace.sleep_steps.numpy(),
        "code": np.array(code),
        "digest": np.array(net.digest),
    }
    for index, (layer, counts) in enumerate(zip(net.spiking, answer.counts, strict=True)):
        arrays[f"shape_{index}"] = np.array(net.shapes[layer.name], np.int64)
        arrays[f"counts_{index}"] = counts.numpy()
        if trace is not None:
            arrays[f"spikes_{index}"] = trace.spikes[index].numpy()
    if trace is not None:
        arrays |= {"wake": trace.wake.numpy(), "active": trace.active.numpy()}
    temporary = Path(path).with_suffix(".tmp.npz")
    np.savez_compressed(temporary, **arrays)
    os.replace(temporary, path)
