"""Test vectors hold what their description says, and what the slow definitions give."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from casc_hw import IMAGE, IntegerNet, Layer, Synapses, quantised_ann, save_vectors

Net = Callable[..., IntegerNet]
Images = Callable[..., torch.Tensor]


def saved(net: IntegerNet, images: torch.Tensor, path: Path, code: str = "spike") -> dict[str, Any]:
    path.write_bytes(b"old")
    save_vectors(net, images, path, code)  # type: ignore[arg-type]
    assert list(path.parent.iterdir()) == [path]
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def layout(found: dict[str, Any]) -> dict[str, Any]:
    return {key: (value.dtype.name, value.shape) for key, value in found.items() if key not in ("digest", "code")}


def test_vectors(make_net: Net, make_images: Images, tmp_path: Path) -> None:
    net = replace(make_net((12, 7, 5, 3), levels=8, margin=4), input_shape=(3, 4))
    images = make_images(net, 6).reshape(6, 3, 4)
    found = saved(net, images, tmp_path / "vectors.npz")
    answer = quantised_ann(net, images)
    steps = len(found["wake"])
    assert layout(found) == {
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
        "shape_0": ("int64", (3,)),
        "shape_1": ("int64", (3,)),
    }
    assert (str(found["digest"]), str(found["code"])) == (net.digest, "spike")
    assert np.array_equal(found["images"], images.reshape(6, 12).numpy())
    assert found["wake"].sum() == 8
    for index, counts in enumerate(answer.counts):
        assert np.array_equal(found[f"counts_{index}"], counts.numpy())
        assert np.array_equal(found[f"spikes_{index}"].sum(0, dtype=np.int64), counts.numpy())
    assert found["shape_0"].tolist() == [7, 1, 1]
    assert np.array_equal(found["sums"], answer.sums.numpy())
    assert np.array_equal(found["classes"], answer.classes.numpy())
    assert np.array_equal((found["active"] & ~found["wake"][:, None]).sum(0), found["sleep_steps"])


def test_count_code_has_counts_and_no_steps(make_net: Net, make_images: Images, tmp_path: Path) -> None:
    net = make_net((12, 7, 5, 3), levels=8)
    images = make_images(net, 6)
    found = saved(net, images, tmp_path / "vectors.npz", "count")
    spike = saved(net, images, tmp_path / "vectors.npz")
    assert set(spike) - set(found) == {"wake", "active", "spikes_0", "spikes_1"}
    assert str(found["code"]) == "count"
    assert found["sleep_steps"].tolist() == [0] * 6
    for key in ("images", "sums", "classes", "counts_0", "counts_1", "shape_0", "shape_1"):
        assert np.array_equal(found[key], spike[key]), key


@pytest.mark.parametrize("code", ["spike", "count"])
def test_maps_travel_channel_innermost(code: str, make_images: Images, tmp_path: Path) -> None:
    """Images and sums in wire order; counts and spikes as the network has them, (C, H, W)."""
    one = torch.ones(2, dtype=torch.int64)
    weight = torch.tensor([[3, -1, 2], [1, 1, -2]])[:, :, None, None]
    first = Layer("first", (Synapses(IMAGE, weight, 8, padding=(0, 0)),), 0 * one, one + 1)
    last = Layer("last", (Synapses("first", torch.tensor([[1, 2], [3, -1]])[:, :, None, None], 8),), one, None, 1.0)
    net = IntegerNet("map", 4, 4, None, (3, 2, 5), 3, (first, last))
    images = make_images(net, 4).reshape(4, 3, 2, 5)
    found, answer = saved(net, images, tmp_path / "vectors.npz", code), quantised_ann(net, images)
    assert found["images"].reshape(4, 2, 5, 3).tolist() == images.permute(0, 2, 3, 1).tolist()
    assert found["sums"].reshape(4, 2, 5, 2).tolist() == answer.sums.reshape(4, 2, 2, 5).permute(0, 2, 3, 1).tolist()
    assert found["classes"].tolist() == found["sums"].argmax(1).tolist() == answer.classes.tolist()
    assert found["shape_0"].tolist() == [2, 2, 5]
    assert np.array_equal(found["counts_0"], answer.counts[0].numpy())
