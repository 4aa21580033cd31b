"""What is seen of a run: what it is going to do, what the model is shown, how good it is."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import keras
import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..datasets.labelled import Dataset, Example
from ..datasets.training import Pictures
from ..evaluate.evaluate import report as report_evaluation
from ..evaluate.files import write
from ..evaluate.measure import measure
from ..images.decode import ImageError, open_image
from ..inference.classifier import Classifier
from ..support import plots
from ..support.console import pictures_bar, say, say_files
from ..support.files import write_atomically
from ..support.text import first_few, in_shell, printable
from .build import class_weights, make_batches, make_transforms, preprocessing_of
from .folder import note_reported
from .run import Run

_SAMPLES = 32


def introduce(run: Run) -> None:
    """Says what is going to be trained, on what, and from where."""
    recipe, model = run.recipe, run.model
    trained = sum(int(np.prod(v.shape)) for v in model.trainable_variables)
    per_update = f"{recipe.batch_size} pictures"
    if recipe.accumulation_steps > 1:
        per_update += f" in {recipe.accumulation_steps} parts"
    rows = [
        ("Model", f"{model.name}, {trained:,} of {model.count_params():,} weights learn"),
        ("Starts from", run.start),
        (
            "Pictures",
            f"{len(run.found):,} + {len(run.validation):,} to validate, read in "
            f"{'grey' if model.in_chans == 1 else 'colour'}",
        ),
        ("Classes", f"{len(run.found.classes):,}: {first_few(run.found.classes)}"),
        ("Of each class", _balance(run)),
        ("Epochs", _epochs(run)),
        ("An update", f"{per_update}, learning rate up to {recipe.learning_rate:g}"),
        ("Evaluation", str(model.preprocessing)),
        ("Devices", f"{run.workers.replicas}, {keras.backend.backend()}, {recipe.precision}"),
        ("Folder", printable(run.folder)),
    ]
    table = Table(show_header=False, title="Training")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in rows:
        table.add_row(name, Text(value))
    run.console.print(table)
    if run.remarks:
        say(run.console, f"{printable(recipe.pretrained or '')}: {run.remarks}")
    if run.found.left_out:
        say(run.console, run.found.left_out)
    if model.in_chans == 1 and _in_colour(run.found):
        why = f"it starts from {recipe.pretrained}, which has one channel"
        if recipe.mean is not None:
            why = "`mean` has one number; in colour: --mean 0.5 0.5 0.5 --std 0.5 0.5 0.5"
        say(
            run.console,
            f"The pictures are in colour, and the model is shown them in grey, as {why}",
            "yellow",
        )
    if run.snapshot is not None:
        run.console.print(
            f"Going on after step {run.position.step:,} (epoch "
            f"{run.position.step // run.batches.steps_per_epoch + 1}).",
            highlight=False,
        )


def _epochs(run: Run) -> str:
    recipe = run.recipe
    parts = {"to warm up": recipe.warmup_epochs, "to cool down": recipe.cooldown_epochs}
    within = "".join(f", {count} {what}" for what, count in parts.items() if count)
    return f"{recipe.total_epochs} of {run.batches.steps_per_epoch:,} batches{within}"


def _balance(run: Run) -> str:
    recipe, counts = run.recipe, np.bincount(run.found.labels)
    text = f"{counts.min():,} to {counts.max():,} pictures"
    if recipe.sampling:
        return f"{text}, shown equally often"
    if weights := class_weights(recipe, run.found):
        return f"{text}, weighing {max(weights):.3g} to {min(weights):.3g}"
    if counts.max() > 2 * counts.min():
        return f"{text}; to even that out: --sampling balanced"
    return text


def _in_colour(found: Pictures, looked_at: int = 8) -> bool:
    """Whether any of a few pictures, taken from the whole set, is in colour."""
    for index in np.linspace(0, len(found) - 1, looked_at).astype(int):
        with contextlib.suppress(ImageError, OSError):
            pixels = np.asarray(open_image(found.sources[index]))
            if pixels.ndim == 3 and np.ptp(pixels, axis=2).max() > 8:
                return True
    return False


def draw_samples(run: Run) -> None:
    """Draws `augmented.png`: pictures as the model is shown them."""
    # Of several batches: a batch is mixed in one way.
    few = min(_SAMPLES // 4, run.recipe.batch_size // run.recipe.accumulation_steps)
    recipe = run.recipe.with_(batch_size=few, accumulation_steps=1)
    batches = make_batches(recipe, run.model, run.found).iterate()
    drawn = [next(batches)[:2] for _ in range(4)]
    batches.close()
    images, targets = (np.concatenate(parts) for parts in zip(*drawn, strict=True))
    seen = make_transforms(recipe, preprocessing_of(run.model))[1].to_picture(images)
    smoothing = recipe.label_smoothing
    names = plots.shortened([printable(name) for name in run.found.classes], 20)
    captions = [caption_of(row, smoothing, names) for row in targets]
    write_atomically(
        run.folder / "augmented.png", lambda path: plots.sample_sheet(seen, captions, path)
    )


def caption_of(target: np.ndarray, smoothing: float, classes: Sequence[str]) -> str:
    """What a target holds, without the smoothing: one class, or two and their shares."""
    shares = (target - smoothing / len(classes)) / (1 - smoothing)
    first, second = np.argsort(-shares, kind="stable")[:2]
    if shares[second] < 0.005:
        return classes[first]
    parts = [f"{classes[i]} {shares[i]:.0%}" for i in (first, second)]
    return (" + " if sum(map(len, parts)) < 24 else "\n+ ").join(parts)


def report(run: Run, console: Console) -> None:
    """Measures the saved best model on the validation pictures, as a user would."""
    classifier = Classifier(run.folder / "best.keras", engine="keras")
    names = (run.validation.name_of(i) for i in range(len(run.validation)))
    examples = [
        Example(source, name, (int(label),))
        for source, name, label in zip(
            run.validation.sources, names, run.validation.labels, strict=True
        )
    ]
    dataset = Dataset(run.validation.name, examples, len(examples))
    with pictures_bar(run.console) as bar:
        task = bar.add_task("best.keras", total=len(examples), rate="")
        found = measure(classifier, dataset, lambda: bar.advance(task))
    write(found, run.folder / "evaluation", overwrite=True)
    note_reported(run.folder, run.position.step)
    report_evaluation(found, console)
    if corrupt := run.batches.corrupt(run.position.step):
        say(
            console,
            f"{len(corrupt):,} training pictures could not be read, and were replaced by "
            f"others: {first_few(sorted(corrupt))}",
            "yellow",
        )
    say_files(
        console,
        printable(run.folder),
        {
            "best.keras": f"the best model (epoch {run.records.best['epoch']:.0f})",
            "last.keras": "the weights after the last update",
            "evaluation": "best.keras on the validation pictures, class by class",
            "training_curves.png": "loss and accuracy over the epochs",
            "augmented.png": "what the model was shown",
            "metrics.csv": "each epoch; tensorboard/ holds the same",
            "config.yaml": "the recipe, to be used again with --recipe",
        },
    )
    best = in_shell(run.folder / "best.keras")
    say(console, f"To use it: van predict PICTURES --weights {best}")
