"""`van evaluate`: how good a checkpoint is on labelled pictures, and whether the port is exact."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..datasets.labelled import Dataset, open_dataset
from ..engines.choice import Chosen
from ..inference.classifier import Classifier
from ..inference.engines import slow_start
from ..inference.flow import Result
from ..inference.request import ClassifierOptions
from ..support.console import messages, pictures_bar, results, say, say_failures
from .files import FILES, write
from .measure import measure
from .metrics import BINS
from .original import Original, require_original
from .request import EvaluateRequest
from .result import Evaluation


def evaluate(
    data: str | os.PathLike,
    weights: str | os.PathLike = "van_b0",
    *,
    split: str | None = None,
    subset: str | None = None,
    class_map: str | os.PathLike | None = None,
    real_labels: str | os.PathLike | None = None,
    output: str | os.PathLike | None = None,
    overwrite: bool = False,
    against_original: bool = False,
    console: Console | None = None,
    **options: Any,
) -> Evaluation:
    """Classifies labelled pictures and measures how well.

    Args:
        data: As in `datasets.labelled.open_dataset`; so are `split`, `subset`, `class_map` and
            `real_labels`.
        weights: As in `Classifier`.
        split: Of a TFDS data set.
        subset: "imagenet-a" or "imagenet-r".
        class_map: What the class folders are.
        real_labels: File of the ReaL labels.
        output: Folder to make, with results.csv (timm's columns), results.json, per_class.csv,
            failed.csv if there are any, confusion_matrix.png, or for more than 50 classes
            most_confused.png, mistakes.png if there are any, the most confident first, and
            least_certain.png. It appears whole or not at all.
        overwrite: Replace the `output` of an earlier evaluation.
        against_original: Give the same batches to transformers' model with the same weights and
            compare (extra `original`).
        console: Where to show the progress; by default nowhere.
        options: As in `Classifier`.

    Raises:
        ValueError: Data and weights do not fit together, nothing could be measured, or an
            argument is not allowed.
        OSError: Weights or data cannot be read, or the output not written.
        ModuleNotFoundError: An extra is missing; says which.
    """
    request = EvaluateRequest(
        data=data,
        classifier=ClassifierOptions(weights=weights, **options),
        split=split,
        subset=subset,
        class_map=class_map,
        real_labels=real_labels,
        output=None if output is None else Path(output),
        overwrite=overwrite,
        against_original=against_original,
    )
    found = _evaluate(request, console or Console(quiet=True))
    if request.output is not None:
        write(found, request.output, overwrite)
    return found


class Doer(AbstractContextManager[Any], Protocol):
    """Processes elsewhere that classify the pictures."""

    def begin(self, classifier: Classifier, chosen: Chosen, dataset: Dataset) -> Dataset:
        """Called before anything is measured; the data set again, which may be read but once."""

    def stream(self, sources: Iterator[Any]) -> Iterator[Result]:
        """The result of each picture, in order."""


def run(request: EvaluateRequest, console: Console | None = None, doer: Doer | None = None) -> int:
    """Evaluates and reports; 1 where a picture could not be measured, or the original disagrees.

    Args:
        request: What to do.
        console: Where to report.
        doer: Who classifies; by default this process.

    Raises:
        ValueError: As `evaluate`.
        OSError: As `evaluate`.
    """
    console = console or results()
    found = _evaluate(request, messages(), doer)
    report(found, console)  # first: should the disk be full, hours of work are not lost
    if request.output is not None:
        write(found, request.output, request.overwrite)
        names = ", ".join(name for name in FILES if (request.output / name).exists())
        say(console, f"{request.output}: {names}")
    differs = found.original is not None and not found.original.agrees
    return 1 if differs or found.failed else 0


def _evaluate(request: EvaluateRequest, console: Console, doer: Doer | None = None) -> Evaluation:
    with nullcontext() if doer is None else doer:
        return _evaluate_by(doer, request, console)


def _evaluate_by(doer: Doer | None, request: EvaluateRequest, console: Console) -> Evaluation:
    if request.against_original:
        require_original()
    classifier = Classifier(**vars(request.classifier))
    if not classifier.labels:
        raise ValueError(f"{classifier.name} has no head: it cannot be evaluated")
    dataset = open_dataset(request.data, classifier.classes, **request.how)
    original = None
    if request.against_original:
        original = Original(request.classifier.weights, classifier.name)
    if slow := slow_start(classifier.engine, classifier.precision):
        say(console, slow)
    chosen = classifier.choose_engine(dataset.count)
    say(console, chosen.describe())
    if doer is not None:
        dataset = doer.begin(classifier, chosen, dataset)
    with pictures_bar(console) as bar:
        task = bar.add_task(classifier.name, total=dataset.count, rate="")

        def advance() -> None:
            bar.advance(task)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} images/s" if speed else "")

        stream = None if doer is None else doer.stream
        found = measure(classifier, dataset, advance, original, stream)
    return replace(found, asked=request.asked)


def report(found: Evaluation, console: Console | None = None) -> None:
    """Prints the figures for a person."""
    console = console or results()
    table = Table(show_header=False, title="Evaluation")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, value in _lines(found):
        table.add_row(name, Text(value))
    console.print(table)
    if found.failed:
        what = (
            f"{len(found.failed):,} of {found.pictures:,} pictures failed and are not in the "
            "figures above"
        )
        say_failures(console, what, [one.reason for one in found.failed])
    for note in found.notes:
        console.print(note, highlight=False, markup=False)
    if found.original is not None:
        found.original.report(console)


def _lines(found: Evaluation) -> Iterator[tuple[str, str]]:
    low, high = found.top1_interval
    crops, flip = found.views
    views = "" if (crops, flip) == (1, False) else f"; {crops} crops"
    k = min(5, found.classes)
    size = "" if found.parameters is None else f" ({found.parameters / 1e6:.2f} M parameters)"
    yield "Weights", f"{found.model}{size}"
    yield "Engine", found.engine.removeprefix("Engine: ")
    yield "Preprocessing", f"{found.preprocessing}{views}{', mirrored as well' if flip else ''}"
    yield "Data", found.dataset
    left_out = f", {found.left_out:,} without a class left out" if found.left_out else ""
    yield "Pictures", f"{found.count:,} measured, {len(found.failed):,} failed{left_out}"
    yield "Top-1", f"{found.top1:.3%}, 95 % interval {low:.3%} to {high:.3%}"
    yield f"Top-{k}", f"{found.top5:.3%}"
    if found.failed:
        yield (
            "Failed as wrong",
            f"top-1 {found.top1_failed_as_wrong:.3%}, top-{k} {found.top5_failed_as_wrong:.3%}",
        )
    yield "Mean of classes", f"{found.mean_class_accuracy:.3%}"
    if found.binary_accuracy is not None:
        yield "Binary accuracy", f"{found.binary_accuracy:.3%}"
    yield "Loss", f"{found.loss:.4f} nats"
    yield "Calibration", f"error {found.calibration_error:.4f} ({BINS} bins)"
    yield "Speed", f"{found.images_per_second:.1f} images/s"
    if (there := found.published) is not None:
        yield (
            "On ImageNet-1k",
            f"published top-1 {there.top1:.2%}: {100 * there.top1_difference:+.3f} points here, "
            f"{'inside' if there.inside else 'outside'} the interval",
        )
        if there.top5 is not None and there.top5_difference is not None:
            yield (
                "",
                f"published top-5 {there.top5:.2%}: {100 * there.top5_difference:+.3f} points here",
            )
        if not there.same_preprocessing:
            yield "", "the published ones with another preprocessing or other views than here"
