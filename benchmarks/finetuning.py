"""What pretrained weights bring: the digits 5 to 9 from a few pictures each.

    python benchmarks/finetuning.py [--output FOLDER]

The same recipe, pictures, seeds and number of steps three times, with a fresh head each time: from
the bundled `digits` weights (which have seen pictures of all ten classes), from weights that have
only ever seen 0 to 4 (trained here first), and from scratch. Printed: the accuracy of the last
epoch on the same held-out pictures.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
from PIL import Image
from rich.console import Console

from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.train.recipe import RECIPES
from van_classification_tensorflow.train.train import train


def write_pictures(folder: Path, classes: range, per_class: int | None) -> Path:
    """train/ and val/ as PNG files: of the bundled training images the first of each class."""
    training, test = load_digits()
    for part, split, most in (("train", training, per_class), ("val", test, None)):
        for digit in classes:
            target = folder / part / str(digit)
            target.mkdir(parents=True)
            for i in np.flatnonzero(split.labels == digit)[:most]:
                pixels = np.round(split.pixels[i] * (255 / 16)).astype(np.uint8)
                Image.fromarray(np.kron(pixels, np.ones((4, 4), np.uint8))).save(
                    target / f"{i}.png"
                )
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--output", type=Path, help="folder for the runs; by default none stays")
    parser.add_argument("--per-class", type=int, default=5, help="training pictures (default: 5)")
    parser.add_argument("--epochs", type=int, default=8, help="of each (default: 8)")
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.output or Path(temporary)
        known = write_pictures(folder / "digits 0-4", range(5), None)
        new = write_pictures(folder / "digits 5-9", range(5, 10), options.per_class)
        console = Console()
        base = RECIPES["digits"].with_(early_stopping=None)
        train(known, folder / "runs" / "0-4", base.with_(epochs=20), console=console)
        few = base.with_(
            epochs=options.epochs,
            warmup_epochs=1,
            batch_size=min(12, 5 * options.per_class),
            mixup=0.0,
            erasing=0.0,
            average_decay=None,
        )
        starts = ("digits", str(folder / "runs" / "0-4" / "best.keras"), None)
        rows = []
        for seed in range(options.seeds):
            accuracies = []
            for i, weights in enumerate(starts):
                recipe = few.with_(pretrained=weights, seed=seed)
                history = train(new, folder / "runs" / f"{seed}-{i}", recipe, console=console)
                # Of the last epoch: nothing was chosen on the held-out pictures.
                accuracies.append(history["val_accuracy"][-1])
            rows.append((seed, accuracies))
    steps = options.epochs * (5 * options.per_class // few.batch_size)
    print(f"\nDigits 5 to 9, {options.per_class} training pictures each, {steps} steps\n")
    print("| seed | from `digits` | from 0 to 4 | from scratch |\n|---:|---:|---:|---:|")
    for seed, accuracies in rows:
        print(f"| {seed} | " + " | ".join(f"{one:.2%}" for one in accuracies) + " |")


if __name__ == "__main__":
    main()
