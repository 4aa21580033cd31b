"""`van demo`: the whole job on real images, offline, in about a minute.

Trains a small VAN on the bundled digits from scratch, evaluates it on images it has not seen,
saves and reloads it, classifies held-out images, and leaves everything in a folder.
"""

from __future__ import annotations

import time
from pathlib import Path

import keras
import numpy as np
from rich.console import Console
from rich.table import Table

from ..datasets import digits
from ..model.van import VAN
from ..support import plots
from ..support.console import messages, results, say_files, to_json
from ..support.result_folder import write_folder
from ..support.text import printable
from .progress import FitProgress
from .request import DEMO_FILES, DemoRequest

_BATCH = 64
_PEAK_RATE = 2e-3


def _shifted(images: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Each image moved by up to one of its original pixels (4 here) along each axis."""
    out = np.empty_like(images)
    for image, target, (dy, dx) in zip(
        images, out, rng.integers(-4, 5, (len(images), 2)), strict=True
    ):
        padded = np.pad(image, ((4, 4), (4, 4), (0, 0)), constant_values=-1.0)
        target[:] = padded[4 + dy : 36 + dy, 4 + dx : 36 + dx]
    return out


def _one_hot(labels: np.ndarray) -> np.ndarray:
    return np.eye(len(digits.CLASSES), dtype=np.float32)[labels]


class _Batches(keras.utils.PyDataset):
    """Shuffled, shifted training batches; a function of (seed, epoch, batch) alone."""

    def __init__(self, split: digits.Split, seed: int):
        super().__init__()
        self.split, self.seed, self.epoch = split, seed, 0
        self._shuffle()

    def _shuffle(self) -> None:
        self.order = np.random.default_rng((self.seed, self.epoch)).permutation(
            len(self.split.labels)
        )

    def __len__(self) -> int:
        return len(self.order) // _BATCH  # a rest of a few images would sway BatchNorm

    def __getitem__(self, batch: int):
        take = self.order[batch * _BATCH : (batch + 1) * _BATCH]
        rng = np.random.default_rng((self.seed, self.epoch, batch))
        return _shifted(self.split.images[take], rng), _one_hot(self.split.labels[take])

    def on_epoch_end(self) -> None:
        self.epoch += 1
        self._shuffle()


def run(
    request: DemoRequest, console: Console | None = None, report_to: Console | None = None
) -> None:
    """Trains, evaluates, saves, reloads, classifies; leaves the folder that is asked for.

    Args:
        request: What to do.
        console: Where to show how it goes; by default on the error stream.
        report_to: Where to report; by default on the standard output.

    Raises:
        OSError: The output cannot be written, or has been made meanwhile.
    """
    console, output = console or messages(), request.output
    seed, epochs = request.seed, request.epochs
    started = time.perf_counter()

    train, test = digits.load_digits()
    keras.utils.set_random_seed(seed)
    batches = _Batches(train, seed)
    steps = epochs * len(batches)
    model = _compiled_model(steps, min(3 * len(batches), steps // 10))
    console.print(
        f"Training a VAN of {model.count_params():,} parameters from scratch on "
        f"{len(train.labels):,} images of handwritten digits ({epochs} epochs)."
    )
    with FitProgress(console) as progress:
        history = model.fit(
            batches,
            epochs=epochs,
            validation_data=(test.images, _one_hot(test.labels)),
            validation_batch_size=len(test.labels),
            verbose=0,
            callbacks=[progress],
        ).history

    metrics = {
        "parameters": model.count_params(),
        "epochs": epochs,
        "seed": seed,
        "history": history,
    }

    def fill(folder: Path) -> None:
        model.save(folder / "model.keras")
        metrics.update(_measure(folder, test))
        plots.training_curves(history, folder / "training_curves.png")
        metrics["seconds"] = round(time.perf_counter() - started, 1)
        text = to_json(metrics, indent=1)
        (folder / "metrics.json").write_text(text + "\n", encoding="utf-8")

    write_folder(output, DEMO_FILES, "demo", request.overwrite, fill)
    _report(metrics, output, report_to or results())


def _compiled_model(steps: int, warm_up: int) -> VAN:
    """The bundled configuration, to be trained for so many steps."""
    model = VAN(**digits.MODEL, drop_path_rate=0.1, data_format="channels_last", name="van_digits")
    model.labels, model.preprocessing = digits.CLASSES, digits.PREPROCESSING
    optimizer = keras.optimizers.AdamW(
        keras.optimizers.schedules.CosineDecay(
            0.0, steps - warm_up, alpha=0.0, warmup_target=_PEAK_RATE, warmup_steps=warm_up
        ),
        weight_decay=0.05,
        epsilon=1e-8,
    )
    # As the authors: decay matrices and kernels, not biases, norms and layer scales.
    optimizer.exclude_from_weight_decay([v for v in model.trainable_variables if v.ndim < 2])
    optimizer.build(model.trainable_variables)  # inside the first step it takes twice as long
    model.compile(
        optimizer,
        loss=keras.losses.CategoricalCrossentropy(label_smoothing=0.1),
        metrics=["accuracy"],
    )
    return model


def _measure(folder: Path, test: digits.Split) -> dict:
    """Measures the saved model on the test images, as a user would, and draws the pictures."""
    reloaded = keras.saving.load_model(folder / "model.keras")
    probabilities = reloaded.predict(test.images, batch_size=len(test.labels), verbose=0)
    ranking = np.argsort(-probabilities, axis=1, kind="stable")
    hits = ranking == test.labels[:, None]
    matrix: np.ndarray = np.zeros((10, 10), np.int64)
    np.add.at(matrix, (test.labels, ranking[:, 0]), 1)
    plots.confusion_matrix(
        matrix, digits.CLASSES, folder / "confusion_matrix.png", "digits: the bundled test images"
    )
    # All mistakes first: what a person wants to see; then right ones in test order.
    shown = np.argsort(hits[:, 0], kind="stable")[:40]
    plots.contact_sheet(
        test.pixels[shown],
        [digits.CLASSES[i] for i in test.labels[shown]],
        [digits.CLASSES[i] for i in ranking[shown, 0]],
        probabilities[shown].max(axis=1),
        folder / "predictions.png",
    )
    return {
        "test_top1": float(hits[:, 0].mean()),
        "test_top5": float(hits[:, :5].any(axis=1).mean()),
        "test_images": len(test.labels),
    }


def _report(metrics: dict, output: Path, console: Console) -> None:
    table = Table(title="Held-out digits, by the reloaded model")
    for column in ("Test images", "Top-1", "Top-5", "Seconds in all"):
        table.add_column(column, justify="right")
    table.add_row(
        str(metrics["test_images"]),
        f"{metrics['test_top1']:.2%}",
        f"{metrics['test_top5']:.2%}",
        f"{metrics['seconds']:.1f}",
    )
    console.print(table)
    say_files(console, printable(output), DEMO_FILES)
