"""Detection: where the digits of a scene are, and which; a YOLO-like network on 64 x 64 pixels, 4-bit weights.

Run ``python -m examples.digit_scenes`` at the root of the repository.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from casc_hw import convert
from examples._training import measure, save_images, tell
from examples.detection.decode import COCO_IOUS, decode, mean_average_precision
from examples.detection.model import make
from examples.detection.scenes import compose, digits
from examples.detection.training import Composer, evaluate, maps_of, train, tune

LEVELS, BITS, SIZE = 8, 4, 64
EPOCHS, TUNE = 70, 6
TEST, KEPT = 300, 60
"""Test scenes; of these in the file of images."""


def run(arguments: list[str] | None = None) -> dict[str, object]:
    """The command line of the example."""
    parser = argparse.ArgumentParser(description="Train a detector of digits and convert it to integers.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "digit_scenes.pt", help="the converted network")
    parser.add_argument("--seed", type=int, default=0, help="of the training; the test scenes stay as they are")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="of 2,000 scenes")
    parser.add_argument("--tune", type=int, default=TUNE, help="epochs with rounded weights")
    parser.add_argument("--quick", action="store_true", help="a few seconds of training, to see that it runs")
    parser.add_argument("--validate", type=int, metavar="N", help="hold N training digits out, measure on their scenes; writes no file")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    started = time.monotonic()

    source, held = digits()
    if options.validate:
        source, held = source.split(options.validate, seed=options.seed)
    test = compose(held, TEST, torch.Generator().manual_seed(1))
    composer = Composer(source, options.seed, scenes=200 if options.quick else 2000)
    epochs, passes = (1, 1) if options.quick else (options.epochs, options.tune)
    model = make(LEVELS)
    train(model, composer, epochs=epochs)
    results: dict[str, object] = {"float ANN with ClipQuan, mAP@0.5": round(evaluate(model, test), 4)}
    tuned = tune(model, BITS, composer, epochs=passes)
    results["float ANN with rounded weights, mAP@0.5"] = round(evaluate(tuned, test), 4)
    net = convert(tuned.model, name="digit_scenes", input_shape=(1, SIZE, SIZE), bits=BITS).net

    def score(_: Tensor, sums: Tensor) -> float:
        return round(mean_average_precision(decode(maps_of(net, sums), SIZE), test.truths), 4)

    results |= measure(net, test.images, "mAP@0.5", score)
    results["integer ANN, mAP@0.5:0.95"] = round(evaluate(net, test, iou=COCO_IOUS), 4)
    results["training, seconds"] = round(time.monotonic() - started)
    what = "validation" if options.validate else "test"
    told = f"digit_scenes: {len(source.labels)} training digits, {TEST} {what} scenes of {len(held.labels)} digits, seed {options.seed}"
    tell(told, results)
    if not options.validate:
        meta = {
            "split": f"{len(source.labels)} digits for training, {len(held.labels)} for {TEST} test scenes composed with seed 1; "
            "stratified, scikit-learn train_test_split, random_state 0",
            "seed": options.seed,
            "recipe": {"levels": LEVELS, "bits": BITS, "scenes per epoch": composer.scenes, "epochs": epochs, "tune": passes},
            "results": results,
        }
        replace(net, meta=meta).save(options.out)
        boxes = pad_sequence([truth.boxes for truth in test.truths[:KEPT]], batch_first=True, padding_value=-1)
        classes = pad_sequence([truth.classes for truth in test.truths[:KEPT]], batch_first=True, padding_value=-1)
        images = options.out.with_name(f"{options.out.stem}_images.npz")
        save_images(images, test.images[:KEPT, 0], boxes=boxes.to(torch.int16), classes=classes.to(torch.int16))
        print(f"  wrote {options.out} and {images.name}")
    return results


if __name__ == "__main__":
    run()
