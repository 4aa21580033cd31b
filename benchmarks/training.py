"""What training costs beside the model's own steps: reading pictures, and keeping snapshots.

    python benchmarks/training.py

Makes JPEGs of ImageNet's usual size, then measures

- the input pipeline alone with the authors' recipe (decoding, random crop, RandAugment, mixing,
  erasing), by one thread on one core, and VAN-B0's training step at 224 and batch 8 on all cores.
  Asked: per core at least 3 times as many pictures as the model takes;
- a real run of VAN-B0 (`van train`, AdamW with a moving average, batch 8) at the default interval
  of snapshots: the share of the time that goes into them. Asked: at most 3 %.

A timing never fails anything. Run it on a quiet machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
sys.path.insert(0, str(Path(__file__).resolve().parent))

import decoding
import numpy as np

CLASSES = 4


def make_folder(folder: Path, count: int) -> Path:
    """`count` JPEGs of 500 x 375 in class folders."""
    raw = folder / "raw"
    raw.mkdir()
    for i, path in enumerate(decoding.make_pictures(raw, 500, 375, count)):
        target = folder / "data" / f"class {i % CLASSES}" / f"{i}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    return folder / "data"


def pipeline_rate(data: Path, seconds: float) -> float:
    """Pictures a second of the input pipeline, by one thread; this process has one core."""
    from van_classification_tensorflow.datasets.training import open_data
    from van_classification_tensorflow.train.build import build_model, make_batches
    from van_classification_tensorflow.train.recipe import RECIPES

    recipe = RECIPES["imagenet"].with_(batch_size=8, workers=1)
    pictures, _ = open_data(data)
    batches = make_batches(recipe, build_model(recipe, pictures.classes), pictures).iterate()
    for _ in range(4):
        next(batches)
    start, done = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        done += len(next(batches)[0])
    rate = done / (time.perf_counter() - start)
    batches.close()
    return rate


def model_rate(steps: int) -> float:
    """Pictures a second of VAN-B0's training step, batch 8 at 224, on all cores."""
    import keras

    from van_classification_tensorflow.train.build import build_model, make_loss, make_optimizer
    from van_classification_tensorflow.train.recipe import RECIPES

    recipe = RECIPES["imagenet"]
    model = build_model(recipe, [f"class {i}" for i in range(1000)])
    model.compile(make_optimizer(recipe, model), make_loss())
    model.optimizer.build(model.trainable_variables)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((8, 224, 224, 3)).astype(np.float32)
    targets = keras.utils.to_categorical(rng.integers(0, 1000, 8), 1000)
    times = []
    for _ in range(steps + 3):
        start = time.perf_counter()
        model.train_on_batch(images, targets)
        times.append(time.perf_counter() - start)
    return 8 / statistics.median(times[3:])


def snapshot_share(data: Path, output: Path, epochs: int) -> None:
    """Trains as `van train` does, and prints what its snapshots took of the time."""
    from van_classification_tensorflow.train import callbacks
    from van_classification_tensorflow.train.recipe import RECIPES
    from van_classification_tensorflow.train.run import Run
    from van_classification_tensorflow.train.train import train

    spent: dict[str, list[float]] = {"save": [], "refresh": [], "save_best": []}
    steps: list[float] = []

    def timed(owner, name):
        before = getattr(owner, name)

        def call(self):
            start = time.perf_counter()
            before(self)
            spent[name].append(time.perf_counter() - start)

        setattr(owner, name, call)

    timed(callbacks.KeepSnapshots, "save")
    timed(Run, "refresh")  # last.keras and the curves
    timed(Run, "save_best")
    end = callbacks.Position.on_train_batch_end

    def on_train_batch_end(self, batch, logs=None):
        end(self, batch, logs)
        steps.append(time.perf_counter())

    callbacks.Position.on_train_batch_end = on_train_batch_end
    recipe = RECIPES["imagenet"].with_(
        batch_size=8,
        epochs=epochs,
        warmup_epochs=0,
        cooldown_epochs=0,
        average_decay=0.999,
        learning_rate=1e-4,
        deterministic=False,
    )
    train(data, output, recipe)
    wall = steps[-1] - steps[0]
    # The last of each is the end of the run.
    inside, best = sum(spent["save"][:-1]) + sum(spent["refresh"][:-1]), sum(spent["save_best"])
    folder = max((output / "snapshots").glob("step-*"))
    size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
    one = statistics.median(spent["save"])
    count = len(spent["save"]) - 1
    print(f"{wall} {count} {inside} {best} {one} {size} {recipe.snapshot_seconds}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--pictures", type=int, default=320)
    parser.add_argument("--seconds", type=float, default=20.0, help="of the pipeline")
    parser.add_argument("--steps", type=int, default=20, help="of the model")
    parser.add_argument("--epochs", type=int, default=8, help="of the run with snapshots")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.part == "pipeline":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        print(pipeline_rate(options.folder / "data", options.seconds))
    elif options.part == "model":
        print(model_rate(options.steps))
    elif options.part == "snapshots":
        snapshot_share(options.folder / "data", options.folder / "run", options.epochs)
    else:
        report(options)


def report(options: argparse.Namespace) -> None:
    """Each part in a process of its own."""
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_folder(folder, options.pictures)

        def part(name: str) -> list[float]:
            command = [sys.executable, __file__, "--part", name, "--folder", str(folder)]
            for key in ("seconds", "steps", "epochs"):
                command += [f"--{key}", str(getattr(options, key))]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            return [float(word) for word in output.split()]

        (pipeline,), (model,) = part("pipeline"), part("model")
        per_core = model / cores
        print("| | images/s | per core | over the model's | asked |\n|---|---:|---:|---:|---:|")
        print(
            f"| VAN-B0 training step, batch 8, {cores} cores | {model:.1f} | {per_core:.1f} | | |"
        )
        print(
            f"| input pipeline, one core | {pipeline:.1f} | {pipeline:.1f} | "
            f"{pipeline / per_core:.1f} | 3.0 |\n"
        )
        wall, count, inside, best, one, size, every = part("snapshots")
        print("| | |\n|---|---:|")
        print(f"| a snapshot of VAN-B0 with AdamW and an average | {size:.1f} MB |")
        print(f"| time to keep one, median | {one * 1e3:.0f} ms |")
        print(f"| kept in {wall:.0f} s, at most one every {every:.0f} s | {count:.0f} |")
        print(f"| their share of the time, with last.keras and curves | {inside / wall:.2%} |")
        print(f"| with best.keras, whenever an epoch is the best | {(inside + best) / wall:.2%} |")
        print("| asked: at most | 3 % |")


if __name__ == "__main__":
    main()
