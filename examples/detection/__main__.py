"""Train a detector on PASCAL VOC or COCO, convert it, and measure both: ``python -m examples.detection --dataset voc --data DIR``."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from casc_hw.errors import CascError


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0, or 1 after a sentence about what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m examples.detection", description=(__doc__ or "").partition(":")[0] + ".")
    parser.add_argument("--dataset", choices=("voc", "coco"), required=True)
    parser.add_argument("--data", type=Path, required=True, metavar="DIR", help="VOC: the folder that holds Annotations; COCO: annotations")
    parser.add_argument("--train", metavar="SPLIT", help="to train on [trainval; train2017]")
    parser.add_argument("--test", metavar="SPLIT", help="to measure on [test; val2017]")
    parser.add_argument("--size", type=int, default=256, help="of the square that images are fitted into, a multiple of 16")
    parser.add_argument("--width", type=float, default=2.0, help="of the network: multiplies its channels")
    parser.add_argument("--levels", type=int, default=8, help="T")
    parser.add_argument("--bits", type=int, default=4, choices=(8, 6, 4, 3, 2), help="of the weights")
    parser.add_argument("--epochs", type=int, default=60)
    parser.add_argument("--tune", type=int, default=5, metavar="EPOCHS", help="with rounded weights")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=1, help="of torch")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="the converted network [build/detect_<dataset>.pt]")
    options = parser.parse_args(arguments)
    if options.size < 16 or options.size % 16:
        parser.error(f"--size {options.size} is not a multiple of 16")
    if min(options.epochs, options.tune, options.batch, options.threads) < 1:
        parser.error("--epochs, --tune, --batch and --threads are 1 or more")
    try:
        run(options)
    except CascError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(options: argparse.Namespace) -> None:
    """Train, convert, measure, save."""
    from dataclasses import replace

    import torch

    from casc_hw import SpikingNet, convert
    from examples.detection.coco import Coco
    from examples.detection.decode import COCO_IOUS, mean_average_precision
    from examples.detection.model import make
    from examples.detection.photos import Photos
    from examples.detection.training import detect, read_out, train, tune
    from examples.detection.voc import Voc

    read, splits = (Voc, ("trainval", "test")) if options.dataset == "voc" else (Coco, ("train2017", "val2017"))
    data, held = read(options.data, options.train or splits[0]), read(options.data, options.test or splits[1])
    batch = min(options.batch, len(data))
    fresh, test = Photos(data, options.size, batch, options.seed), Photos(held, options.size, batch)
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = make(options.levels, classes=len(data.classes), channels=3, width=options.width, deep=True)
    train(model, fresh, epochs=options.epochs)
    shape = (3, options.size, options.size)
    tuned = tune(model, options.bits, fresh, epochs=options.tune, shape=shape)
    name = f"detect_{options.dataset}"
    net = convert(tuned.model, name=name, input_shape=shape, bits=options.bits).net
    results: dict[str, object] = {}
    for what, of in (("float", model), ("rounded", tuned), ("integer ANN", net)):
        seen = detect(of, test())
        for unit, threshold in (("mAP@0.5", 0.5), ("mAP@0.5:0.95", COCO_IOUS)):
            results[f"{what}, {unit}"] = round(mean_average_precision(*seen, threshold), 4)
    images = next(test()).images
    results[f"SNN = integer ANN on {len(images)} test images"] = torch.equal(read_out(SpikingNet(net), images), read_out(net, images))
    print(f"{name}: {len(data)} training images, {len(held)} test images")
    for key, value in results.items():
        print(f"  {key:36} {value}")
    out = options.out or Path("build") / f"{name}.pt"
    out.parent.mkdir(parents=True, exist_ok=True)
    recipe = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
    replace(net, meta={"classes": list(data.classes), "recipe": recipe, "results": results}).save(out)
    print(f"  wrote {out}")


if __name__ == "__main__":
    sys.exit(main())
