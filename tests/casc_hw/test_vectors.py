"""Test vectors hold what their description says, and what the slow definitions give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from casc_hw import IntegerNet, quantised_ann, save_vectors


def test_vectors(make_net: Callable[..., IntegerNet], make_images: Callable[..., torch.Tensor], tmp_path: Path) -> None:
    net = replace(make_net((12, 7, 5, 3), levels=8, margin=4), input_shape=(3, 4))
    images = make_images(net, 6).reshape(6, 3, 4)
    path = tmp_path / "vectors.npz"
    path.write_bytes(b"old")
    save_vectors(net, images, path)
    assert list(tmp_path.iterdir()) == [path]
    with np.load(path, allow_pickle=False) as file:
        found = dict(file)
    answer = quantised_ann(net, images)
    steps = len(found["wake"])
    assert {key: (value.dtype.name, value.shape) for key, value in found.items() if key != "digest"} == {
        "images": ("uint8", (6, 12)),
        "wake": ("bool", (steps,)),
        "active": ("bool", (steps, 6)),
        "sums": ("int64", (6, 3)),
        "classes": ("int64", (6,)),
        "sleep_steps": ("int64", (6,)),
        "spikes_0": ("int8", (steps, 6, 7)),
        "spikes_1": ("int8", (steps, 6, 5)),
        "counts_0": ("int64", (6, 7)),
        "counts_1": ("int64", (6, 5)),
    }
    assert str(found["digest"]) == net.digest
    assert np.array_equal(found["images"], images.reshape(6, 12).numpy())
    assert found["wake"].sum() == 8
    for index, counts in enumerate(answer.counts):
        assert np.array_equal(found[f"counts_{index}"], counts.numpy())
        assert np.array_equal(found[f"spikes_{index}"].sum(0, dtype=np.int64), counts.numpy())
    assert np.array_equal(found["sums"], answer.sums.numpy())
    assert np.array_equal(found["classes"], answer.classes.numpy())
    assert np.array_equal((found["active"] & ~found["wake"][:, None]).sum(0), found["sleep_steps"])
