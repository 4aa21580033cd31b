"""`van evaluate`: how good a checkpoint is on labelled pictures, and whether the port is exact."""

from __future__ import annotations

import csv
import math
import os
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..datasets.labelled import Dataset, Example, check_asked, is_validation_picture, open_dataset
from ..images.decode import open_image
from ..inference.classifier import Classifier
from ..spec.labels import Label
from ..spec.preprocessing import Preprocessing
from ..spec.scores import of_classes
from ..support import plots as pictures
from ..support.console import messages, pictures_bar, results, say, say_failures, to_json
from ..support.result_folder import check_folder, write_folder
from ..support.text import printable
from ..weights.address import format_of
from ..weights.catalogue import CATALOGUE
from .metrics import BINS, Score, calibration_error, score, wilson_interval
from .original import TOLERANCE, ClassifierBesideOriginal, Comparison

_MATRIX_CLASSES = 50  # more cannot be read in one picture
_TIMM = (
    "model",
    "top1",
    "top1_err",
    "top5",
    "top5_err",
    "param_count",
    "img_size",
    "crop_pct",
    "interpolation",
)
_FILES = (
    "results.csv",
    "results.json",
    "per_class.csv",
    "failed.csv",
    "confusion_matrix.png",
    "most_confused.png",
    "mistakes.png",
    "least_certain.png",
)
_GALLERY = 32  # pictures of a kind, at most


# --- What is found ---


@dataclass(frozen=True)
class ClassAccuracy:
    """One class; `accuracy` in [0, 1], None without a picture.

    Where several classes of a picture are right (ReaL), it counts for each of them.
    """

    index: int
    wnid: str | None
    label: str
    pictures: int
    right: int

    @property
    def accuracy(self) -> float | None:
        return self.right / self.pictures if self.pictures else None


@dataclass(frozen=True)
class Failure:
    """A picture without a result, and why."""

    picture: str
    reason: str


@dataclass(frozen=True)
class Shown:
    """A picture worth looking at.

    Args:
        picture: Its name.
        true: The classes that are right.
        predicted: The class it was taken for.
        probability: Of that class.
        right: Whether it is right.
        look: Gives what the model saw of it, uint8 (side, side, C).
    """

    picture: str
    true: str
    predicted: str
    probability: float
    right: bool
    look: Callable[[], np.ndarray] = field(repr=False, compare=False)

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "look"}


@dataclass(frozen=True)
class Published:
    """The published figures of catalogue weights on ImageNet-1k, in [0, 1].

    Args:
        top1: Published top-1.
        top5: Published top-5.
        top1_difference: Measured less published.
        top5_difference: Measured less published.
        inside: Whether the published top-1 lies in the interval of the measured one.
        same_preprocessing: Whether it was measured with the preprocessing of the published one.
    """

    top1: float
    top5: float | None
    top1_difference: float
    top5_difference: float | None
    inside: bool
    same_preprocessing: bool


@dataclass(frozen=True)
class Evaluation:
    """What `evaluate` found. Accuracies are shares in [0, 1], of the `count` pictures.

    Args:
        model: Name of the weights.
        dataset: What was measured on.
        pictures: How many there were, with those that failed, without those left out.
        count: How many were measured.
        failed: The others, and why.
        left_out: Pictures that have no class (ReaL).
        classes: How many were predicted among.
        top1: Share whose best class is right.
        top5: Share with a right class among the best 5, or among all where there are fewer.
        top1_interval: 95 % Wilson interval of `top1`.
        top1_failed_as_wrong: `top1` where a picture that failed counts as wrong.
        top5_failed_as_wrong: `top5` likewise.
        loss: Mean cross-entropy in nats; of independent classes (sigmoid) binary cross-entropy,
            the mean over classes as well.
        binary_accuracy: Of independent classes: the share of all pictures and classes for which
            "more probable than not" is the truth; None of others.
        calibration_error: Expected calibration error, 15 bins.
        per_class: Each class that was predicted among, in order.
        mistakes: Of the pictures taken for a wrong class those with the highest probability, the
            most confident first.
        least_certain: Those whose best class has the lowest probability, lowest first.
        confusion: (right class, predicted class, pictures), the most frequent first; both are
            outputs of the model. Of several right classes (ReaL) the predicted or the first.
        preprocessing: How the pictures were made the model's input.
        views: Crops of each picture, and whether they were mirrored as well.
        parameters: Trainable ones; of an exported file, of the model it was made of. None where
            it does not say.
        seconds: Of decoding and model, without loading and without the original.
        backend: Of Keras; "numpy" where the engine was NumPy; "onnx", "openvino", "litert" or
            "saved_model" of an exported file.
        version: Of this package.
        published: Beside the published figures; None where there are none for this.
        original: Beside the original; None where it was not asked for.
        notes: What a reader should know.
    """

    model: str
    dataset: str
    pictures: int
    count: int
    failed: tuple[Failure, ...]
    left_out: int
    classes: int
    top1: float
    top5: float
    top1_interval: tuple[float, float]
    top1_failed_as_wrong: float
    top5_failed_as_wrong: float
    loss: float
    binary_accuracy: float | None
    calibration_error: float
    per_class: tuple[ClassAccuracy, ...] = field(repr=False)
    confusion: tuple[tuple[int, int, int], ...] = field(repr=False)
    mistakes: tuple[Shown, ...] = field(repr=False)
    least_certain: tuple[Shown, ...] = field(repr=False)
    preprocessing: Preprocessing
    views: tuple[int, bool]
    parameters: int | None
    seconds: float
    backend: str
    version: str
    published: Published | None = None
    original: Comparison | None = None
    notes: tuple[str, ...] = ()

    @property
    def images_per_second(self) -> float:
        """Pictures decoded and classified in a second, the first batch included."""
        return self.pictures / self.seconds

    @property
    def mean_class_accuracy(self) -> float:
        """Mean over the classes that have pictures."""
        shares = [one.accuracy for one in self.per_class if one.accuracy is not None]
        return sum(shares) / len(shares)

    def to_dict(self) -> dict[str, Any]:
        """Everything, as JSON can hold it."""
        record = asdict(replace(self, mistakes=(), least_certain=()))
        record["mistakes"] = [one.to_dict() for one in self.mistakes]
        record["least_certain"] = [one.to_dict() for one in self.least_certain]
        record["images_per_second"] = self.images_per_second
        record["mean_class_accuracy"] = self.mean_class_accuracy
        for one, row in zip(self.per_class, record["per_class"], strict=True):
            row["accuracy"] = one.accuracy
        if self.original is not None:
            mine = record["original"]
            mine["metrics_difference"] = self.original.metrics_difference
            mine["agrees"] = self.original.agrees
            mine["allowed_logit_difference"] = TOLERANCE
            if not math.isfinite(self.original.largest_logit_difference):
                mine["largest_logit_difference"] = None  # JSON has no word for it
        return record

    def timm_row(self) -> dict[str, Any]:
        """The row of timm's `results.csv`: percentages to 4 decimals, parameters in millions."""
        top1, top5 = 100 * self.top1, 100 * self.top5
        values = (
            self.model,
            round(top1, 4),
            round(100 - top1, 4),
            round(top5, 4),
            round(100 - top5, 4),
            None if self.parameters is None else round(self.parameters / 1e6, 2),
            self.preprocessing.input_size,
            self.preprocessing.crop_pct,
            self.preprocessing.interpolation,
        )
        return dict(zip(_TIMM, values, strict=True))


# --- Measuring ---


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
    target = _ready(output, overwrite)
    check_asked(data, split=split, subset=subset, class_map=class_map, real_labels=real_labels)
    kind = ClassifierBesideOriginal if against_original else Classifier
    if format_of(weights) is None:
        # The model itself, also for a few pictures, for which "auto" would take NumPy.
        options = {"engine": "keras", **options}
    elif against_original:
        raise ValueError(
            f"`against_original` needs the weights; {printable(weights)} is an exported file"
        )
    classifier = kind(weights, **options)
    if not classifier.labels:
        raise ValueError(f"{classifier.name} has no head: it cannot be evaluated")
    dataset = open_dataset(
        data,
        classifier.classes,
        split=split,
        subset=subset,
        class_map=class_map,
        real_labels=real_labels,
    )
    with pictures_bar(console or Console(quiet=True)) as bar:
        task = bar.add_task(classifier.name, total=dataset.count, rate="")

        def advance() -> None:
            bar.advance(task)
            speed = bar.tasks[0].speed
            bar.update(task, rate=f"{speed:.1f} images/s" if speed else "")

        found = measure(classifier, dataset, advance)
    if target is not None:
        write(found, target, overwrite)
    return found


def measure(
    classifier: Classifier, dataset: Dataset, advance: Callable[[], None] = lambda: None
) -> Evaluation:
    """Evaluates a classifier that is there; beside the original if it is one that has it.

    Args:
        classifier: With a head.
        dataset: Of `datasets.labelled.open_dataset`, for its labels.
        advance: Called after each picture.

    Raises:
        ValueError: No picture could be measured, or one is not of the classes predicted among.
    """
    classes = classifier.classes
    predicted_among = dataset.restricted or tuple(range(len(classes)))
    ours = _Tally(predicted_among, classifier.activation)
    theirs = _Tally(predicted_among, classifier.activation)
    beside = classifier if isinstance(classifier, ClassifierBesideOriginal) else None
    waiting: deque[Example] = deque()
    mistakes, least_certain = _Gallery(), _Gallery()
    failed: list[Failure] = []
    differences: list[float] = []
    left_out = 0
    all_validation = dataset.original_labels and dataset.restricted is None

    def sources() -> Iterator[Any]:
        nonlocal left_out, all_validation
        for example in dataset.examples:
            if not example.classes:
                left_out += 1
                advance()
                continue
            ours.check(example)
            all_validation &= is_validation_picture(example.name)
            waiting.append(example)
            yield example.source

    parameters, backend = _parameters_and_backend(classifier)
    original_before = beside.seconds if beside else 0.0
    started = time.perf_counter()
    for result in classifier.stream(sources()):
        example = waiting.popleft()
        logits, error = result.output, result.error
        if beside is not None and logits is not None:
            original = beside.theirs.popleft()
            differences.append(float(np.abs(original - logits).max()))
            theirs.add(original, example.classes)
        if logits is not None and not np.isfinite(logits).all():
            error = f"{printable(example.name)}: the model's logits are not finite"
        if error is None and logits is not None:
            ours.add(logits, example.classes)
            shown = _shown(classifier, classes, example, predicted_among, ours.scores[-1])
            least_certain.offer(shown, shown.probability)
            if not shown.right:
                mistakes.offer(shown, -shown.probability)
        else:
            failed.append(Failure(printable(example.name), error or "no result"))
        advance()
    seconds = time.perf_counter() - started - (beside.seconds - original_before if beside else 0)
    count = len(ours.scores)
    if not count and failed:
        raise ValueError(
            f"none of {len(failed):,} pictures could be measured; the first: {failed[0].reason}"
        )
    if not count:
        raise ValueError(f"{dataset.name}: all of {left_out:,} pictures have no class")
    right1, right5 = ours.count("top1"), ours.count("top5")
    interval = wilson_interval(right1, count)
    comparison = None
    if beside is not None:
        comparison = Comparison(
            configuration=classifier.name,
            resolution=classifier.preprocessing.input_size,
            top1_original=theirs.count("top1") / len(theirs.scores),
            top1_ported=right1 / count,
            top5_original=theirs.count("top5") / len(theirs.scores),
            top5_ported=right5 / count,
            parameters=parameters or 0,  # of weights they are always known
            # `max` of Python passes over what is not a number.
            largest_logit_difference=float(np.max(differences)),
            pictures=len(differences),
        )
    published = None
    if all_validation:
        published = _published(classifier, right1 / count, right5 / count, interval)
    notes = (*dataset.notes, *filter(None, [classifier.notes]))
    if dataset.restricted is not None:
        notes += ("Top-5, loss and calibration are of the classes predicted among, as top-1 is.",)
    decisions = [one.decisions for one in ours.scores if one.decisions is not None]
    if decisions:
        notes += (
            "The classes do not exclude each other (sigmoid): top-k is by their scores; loss and "
            "binary accuracy take every class that the data do not name for a picture as wrong.",
        )
    return Evaluation(
        model=classifier.name,
        dataset=dataset.name,
        pictures=count + len(failed),
        count=count,
        failed=tuple(failed),
        left_out=left_out,
        classes=len(predicted_among),
        top1=right1 / count,
        top5=right5 / count,
        top1_interval=interval,
        top1_failed_as_wrong=right1 / (count + len(failed)),
        top5_failed_as_wrong=right5 / (count + len(failed)),
        loss=sum(one.loss for one in ours.scores) / count,
        binary_accuracy=sum(decisions) / count if decisions else None,
        calibration_error=calibration_error(
            [one.confidence for one in ours.scores], [one.top1 for one in ours.scores]
        ),
        per_class=ours.per_class(classes),
        confusion=ours.confusion(),
        mistakes=mistakes.best(),
        least_certain=least_certain.best(),
        preprocessing=classifier.preprocessing,
        views=(classifier.crops, classifier.flip),
        parameters=parameters,
        seconds=seconds,
        backend=backend,
        version=__version__,
        published=published,
        original=comparison,
        notes=notes,
    )


def _parameters_and_backend(classifier: Classifier) -> tuple[int | None, str]:
    """As in `Evaluation`; makes the Keras model, before the clock runs."""
    if (runtime := classifier.runtime) is not None:
        if runtime.about is None:
            return None, runtime.format
        tensors = runtime.about.architecture.tensors().items()
        count = sum(math.prod(one.shape) for name, one in tensors if ".running_" not in name)
        return count, runtime.format
    import keras

    parameters = sum(math.prod(v.shape) for v in classifier.model.trainable_variables)
    return parameters, "numpy" if classifier.engine == "numpy" else keras.backend.backend()


class _Gallery:
    """Of many pictures those with the lowest rank, of equal ones the first; few are kept."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, Shown]] = []

    def offer(self, shown: Shown, rank: float) -> None:
        self.kept.append((rank, shown))
        if len(self.kept) > 4 * _GALLERY:
            self._cut()

    def best(self) -> tuple[Shown, ...]:
        self._cut()
        return tuple(shown for _, shown in self.kept)

    def _cut(self) -> None:
        self.kept = sorted(self.kept, key=lambda pair: pair[0])[:_GALLERY]


def _shown(
    classifier: Classifier,
    classes: Sequence[Label],
    example: Example,
    among: Sequence[int],
    found: Score,
) -> Shown:
    return Shown(
        picture=printable(example.name),
        true=" or ".join(classes[i].name for i in example.classes),
        predicted=classes[among[found.predicted]].name,
        probability=found.confidence,
        right=found.top1,
        look=partial(_seen, example.source, classifier.preprocessing, classifier.max_pixels),
    )


def _seen(source: Any, preprocessing: Preprocessing, max_pixels: int) -> np.ndarray:
    """The centre crop; grey where the picture is gone meanwhile."""
    try:
        return preprocessing.crop(open_image(source, max_pixels))
    except (ValueError, OSError):
        side = preprocessing.input_size
        return np.full((side, side, preprocessing.channels), 200, np.uint8)


class _Tally:
    """The scores of one model, picture by picture.

    Args:
        among: Classes that are predicted among, ascending.
        activation: As in `Classifier`.
    """

    def __init__(self, among: Sequence[int], activation: str):
        self.among, self.activation = np.array(among), activation
        self.position = {output: i for i, output in enumerate(among)}
        self.scores: list[Score] = []
        self.right: list[tuple[int, ...]] = []  # positions, as in the scores

    def check(self, example: Example) -> None:
        """Raises `ValueError` where a class of the picture is not predicted among."""
        if not set(example.classes) <= self.position.keys():
            raise ValueError(
                f"{printable(example.name)} is of a class that is not of the `subset`; leave the "
                "picture or the `subset` out"
            )

    def add(self, logits: np.ndarray, classes: Iterable[int]) -> None:
        """Takes all logits of the model and the outputs that are right."""
        right = tuple(self.position[output] for output in classes)
        logits, activation = of_classes(logits, self.activation)
        self.scores.append(score(logits[self.among], right, activation))
        self.right.append(right)

    def count(self, what: str) -> int:
        return sum(getattr(one, what) for one in self.scores)

    def per_class(self, labels: Sequence[Label]) -> tuple[ClassAccuracy, ...]:
        there = Counter(i for right in self.right for i in right)
        hits = Counter(
            i for one, right in zip(self.scores, self.right, strict=True) if one.top1 for i in right
        )
        return tuple(
            ClassAccuracy(int(output), labels[output].wnid, labels[output].name, there[i], hits[i])
            for i, output in enumerate(self.among)
        )

    def confusion(self) -> tuple[tuple[int, int, int], ...]:
        pairs = Counter(
            (one.predicted if one.top1 else right[0], one.predicted)
            for one, right in zip(self.scores, self.right, strict=True)
        )
        ranked = sorted(pairs.items(), key=lambda item: (-item[1], item[0]))
        return tuple((int(self.among[t]), int(self.among[p]), n) for (t, p), n in ranked)


def _published(
    classifier: Classifier, top1: float, top5: float, interval: tuple[float, float]
) -> Published | None:
    about = classifier.runtime and classifier.runtime.about
    record = CATALOGUE.get(about.name if about else classifier.name)
    if record is None or record.top1 is None:
        return None
    there1 = record.top1 / 100
    there5 = None if record.top5 is None else record.top5 / 100
    return Published(
        top1=there1,
        top5=there5,
        top1_difference=top1 - there1,
        top5_difference=None if there5 is None else top5 - there5,
        inside=interval[0] <= there1 <= interval[1],
        same_preprocessing=classifier.preprocessing == record.preprocessing
        and (classifier.crops, classifier.flip) == (1, False),
    )


# --- Files ---


def _ready(output: str | os.PathLike | None, overwrite: bool) -> Path | None:
    """Before the work, finds whatever would keep its result from being written after it."""
    target = None if output is None else Path(output)
    check_folder(target, _FILES, "evaluation", overwrite)
    if target is not None:
        pictures.require_matplotlib()
    return target


def write(found: Evaluation, output: Path, overwrite: bool) -> None:
    """Writes tables, JSON and a picture to the folder `output`, as in `evaluate`.

    Raises:
        OSError: It cannot be written, or is in the way.
    """
    write_folder(
        output, _FILES, "evaluation", overwrite, lambda folder: _write_files(found, folder)
    )


def _write_files(found: Evaluation, folder: Path) -> None:
    _write_csv(folder / "results.csv", _TIMM, [found.timm_row().values()])
    taken: Counter[int] = Counter()
    for _, predicted, count in found.confusion:
        taken[predicted] += count
    rows = [
        (c.index, c.wnid, c.label, c.pictures, c.right, c.accuracy, n, c.right / n if n else None)
        for c in found.per_class
        for n in [taken[c.index]]
    ]
    # The accuracy of a class is its recall.
    head = ("index", "wnid", "label", "pictures", "right", "accuracy", "predicted", "precision")
    _write_csv(folder / "per_class.csv", head, rows)
    if found.failed:
        reasons = [(one.picture, one.reason) for one in found.failed]
        _write_csv(folder / "failed.csv", ("picture", "reason"), reasons)
    text = to_json(found.to_dict(), indent=1, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    if found.classes <= _MATRIX_CLASSES:
        _draw_matrix(found, folder / "confusion_matrix.png")
    else:
        _draw_most_confused(found, folder / "most_confused.png")
    for kind, title, shown in (
        ("mistakes", "Mistakes, the most confident first", found.mistakes),
        ("least_certain", "Least certain, with the lowest probability first", found.least_certain),
    ):
        if shown:
            _draw_gallery(shown, f"{title}: class  →  taken for", found, folder / f"{kind}.png")


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def _draw_matrix(found: Evaluation, path: Path) -> None:
    position = {one.index: i for i, one in enumerate(found.per_class)}
    matrix: np.ndarray = np.zeros((found.classes, found.classes), np.int64)
    for right, predicted, count in found.confusion:
        matrix[position[right], position[predicted]] = count
    names = [_spaced(one.label) for one in found.per_class]
    pictures.confusion_matrix(matrix, names, path, found.dataset)


def _draw_most_confused(found: Evaluation, path: Path, shown: int = 25) -> None:
    label = {one.index: _spaced(one.label) for one in found.per_class}
    there = {one.index: one.pictures for one in found.per_class}
    wrong = [pair for pair in found.confusion if pair[0] != pair[1]][:shown]
    mistakes = [(label[t], label[p], n, there[t]) for t, p, n in wrong]
    pictures.most_confused(mistakes, path, found.dataset)


def _draw_gallery(shown: Sequence[Shown], title: str, found: Evaluation, path: Path) -> None:
    captions = [
        f"{_spaced(one.true)}\n→ {_spaced(one.predicted)} ({one.probability:.0%})" for one in shown
    ]
    colours = ["black" if one.right else "crimson" for one in shown]
    images = np.stack([one.look() for one in shown])
    columns = max(4, min(len(shown), 8))
    about = {"title": title, "data": found.dataset}
    pictures.sample_sheet(images, captions, path, columns, colours=colours, **about)


def _spaced(label: str) -> str:
    return label.replace("_", " ")


# --- The command ---


def run(
    data: str,
    weights: str = "van_b0",
    *,
    output: Path | None = None,
    overwrite: bool = False,
    console: Console | None = None,
    **options: Any,
) -> int:
    """Evaluates, reports and returns the exit code.

    It is 1 where a picture could not be measured, or the original disagrees.

    Args:
        data: As in `evaluate`, as are the others.
        weights: As in `Classifier`.
        output: Folder to make.
        overwrite: Replace the `output` of an earlier evaluation.
        console: Where to report.
        options: As in `evaluate`.

    Raises:
        ValueError: As `evaluate`.
        OSError: As `evaluate`.
    """
    console = console or results()
    target = _ready(output, overwrite)
    found = evaluate(data, weights, console=messages(), **options)
    report(found, console)  # first: should the disk be full, hours of work are not lost
    if target is not None:
        write(found, target, overwrite)
        names = ", ".join(name for name in _FILES if (target / name).exists())
        say(console, f"{target}: {names}")
    differs = found.original is not None and not found.original.agrees
    return 1 if differs or found.failed else 0


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
