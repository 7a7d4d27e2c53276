"""Images a second of `casc_hw.SpikingNet` on one core: ``python -m benchmarks.snn [--batch N]``, kept in ``benchmarks/results/snn.json``.

Until silence, without hooks or records; of the core's own time, the best of several rounds, since others may use it as well.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

import torch

from casc_hw import IntegerNet, SpikingNet
from casc_hw.data import load_images

ROOT = Path(__file__).resolve().parent.parent
NETS = ("mnist_mlp", "mnist_cnn_avg", "mnist_cnn_max", "mnist_resnet", "mnist_mobilenet", "vgg7")
ROUNDS, SECONDS = 8, 0.5


def rate(path: Path, batch: int) -> float:
    """Images a second of the network at ``path``."""
    net = IntegerNet.load(path)
    images, _labels, _where = load_images(net, None, path)
    snn, parts = SpikingNet(net), images.split(batch)
    if len(parts[-1]) < batch:
        parts = parts[:-1] or parts
    snn.run(parts[0])
    best = 0.0
    for _ in range(ROUNDS):
        begin, done = time.process_time(), 0
        while time.process_time() - begin < SECONDS:
            for part in parts:
                snn.run(part)
                done += len(part)
        best = max(best, done / (time.process_time() - begin))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.snn", description=__doc__)
    parser.add_argument("--batch", type=int, default=100, help="images at a time (default 100)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    for name in NETS:
        found[name] = round(rate(ROOT / "examples" / f"{name}.pt", options.batch), 1)
        print(f"{name}: {found[name]:,.0f} images/s", flush=True)
    kept = ROOT / "benchmarks" / "results" / "snn.json"
    told = {"torch": torch.__version__, "simd": torch.backends.cpu.get_cpu_capability(), "batch": options.batch, "images_per_s": found}
    part = kept.with_suffix(".part")
    part.write_text(json.dumps(told, indent=1))
    os.replace(part, kept)


if __name__ == "__main__":
    main()
