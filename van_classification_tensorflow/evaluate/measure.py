"""Goes through labelled pictures once and measures a classifier on them."""

from __future__ import annotations

import contextlib
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np

from .. import __version__
from ..datasets.labelled import Dataset, Example, is_validation_picture
from ..engines.choice import Chosen
from ..images.decode import open_image
from ..inference.classifier import Classifier, Result
from ..spec.labels import Label
from ..spec.preprocessing import Preprocessing
from ..spec.scores import of_classes
from ..support.text import printable
from ..weights.catalogue import CATALOGUE
from .metrics import Score, calibration_error, score, wilson_interval
from .original import Comparison, Original, full_float32
from .result import ClassAccuracy, Evaluation, Failure, Published, Shown

_GALLERY = 32  # pictures of a kind, at most


def measure(
    classifier: Classifier,
    dataset: Dataset,
    advance: Callable[[], None] = lambda: None,
    original: Original | None = None,
    stream: Callable[[Iterator[Any]], Iterator[Result]] | None = None,
) -> Evaluation:
    """Evaluates a classifier that is there.

    Args:
        classifier: With a head.
        dataset: Of `datasets.labelled.open_dataset`, for its labels.
        advance: Called after each picture.
        original: Given the same inputs, and compared.
        stream: Gives the result of each picture, in order; by default the classifier does.

    Raises:
        ValueError: No picture could be measured, or one is not of the classes predicted among.
    """
    going = _Measurement(classifier, dataset, original)
    chosen = classifier.choose_engine(dataset.count)  # and made, before the clock runs
    with contextlib.nullcontext() if original is None else full_float32():
        before = 0.0 if original is None else original.seconds
        started = time.perf_counter()
        seen = None if original is None else original.see
        if stream is None:
            stream = partial(classifier.stream, watch=seen, count=dataset.count)
        for result in stream(going.sources(advance)):
            going.take(result)
            advance()
        spent = 0.0 if original is None else original.seconds - before
        seconds = time.perf_counter() - started - spent
    return going.evaluation(seconds, chosen)


class _Measurement:
    """What has been measured so far, picture by picture."""

    def __init__(self, classifier: Classifier, dataset: Dataset, original: Original | None):
        self.classifier, self.dataset, self.original = classifier, dataset, original
        self.classes = classifier.classes
        self.among = dataset.restricted or tuple(range(len(self.classes)))
        self.ours, self.theirs = (_Tally(self.among, classifier.activation) for _ in range(2))
        self.waiting: deque[Example] = deque()
        self.mistakes, self.least_certain = _Gallery(), _Gallery()
        self.failed: list[Failure] = []
        self.differences: list[float] = []
        self.left_out = 0
        self.all_validation = dataset.original_labels and dataset.restricted is None

    def sources(self, advance: Callable[[], None]) -> Iterator[Any]:
        """The pictures that have a class; `advance` is called for each of the others."""
        for example in self.dataset.examples:
            if not example.classes:
                self.left_out += 1
                advance()
                continue
            self.ours.check(example)
            self.all_validation &= is_validation_picture(example.name)
            self.waiting.append(example)
            yield example.source

    def take(self, result: Result) -> None:
        """Scores the result of the next picture."""
        example = self.waiting.popleft()
        logits, error = result.output, result.error
        if self.original is not None and logits is not None:
            theirs = self.original.logits.popleft()
            self.differences.append(float(np.abs(theirs - logits).max()))
            self.theirs.add(theirs, example.classes)
        if logits is not None and not np.isfinite(logits).all():
            error = f"{printable(example.name)}: the model's logits are not finite"
        if error is not None or logits is None:
            self.failed.append(Failure(printable(example.name), error or "no result"))
            return
        self.ours.add(logits, example.classes)
        shown = _shown(self.classifier, self.classes, example, self.among, self.ours.scores[-1])
        self.least_certain.offer(shown, shown.probability)
        if not shown.right:
            self.mistakes.offer(shown, -shown.probability)

    def evaluation(self, seconds: float, chosen: Chosen) -> Evaluation:
        """All figures, once every picture has been taken."""
        ours, classifier, failed = self.ours, self.classifier, len(self.failed)
        count = len(ours.scores)
        if not count and failed:
            raise ValueError(
                f"none of {failed:,} pictures could be measured; the first: {self.failed[0].reason}"
            )
        if not count:
            raise ValueError(
                f"{self.dataset.name}: all of {self.left_out:,} pictures have no class"
            )
        right1, right5 = ours.count("top1"), ours.count("top5")
        interval = wilson_interval(right1, count)
        published = None
        if self.all_validation:
            published = published_beside(classifier, right1 / count, right5 / count, interval)
        decisions = [one.decisions for one in ours.scores if one.decisions is not None]
        return Evaluation(
            model=classifier.name,
            dataset=self.dataset.name,
            pictures=count + failed,
            count=count,
            failed=tuple(self.failed),
            left_out=self.left_out,
            classes=len(self.among),
            top1=right1 / count,
            top5=right5 / count,
            top1_interval=interval,
            top1_failed_as_wrong=right1 / (count + failed),
            top5_failed_as_wrong=right5 / (count + failed),
            loss=sum(one.loss for one in ours.scores) / count,
            binary_accuracy=sum(decisions) / count if decisions else None,
            calibration_error=calibration_error(
                [one.confidence for one in ours.scores], [one.top1 for one in ours.scores]
            ),
            per_class=ours.per_class(self.classes),
            confusion=ours.confusion(),
            mistakes=self.mistakes.best(),
            least_certain=self.least_certain.best(),
            preprocessing=classifier.preprocessing,
            views=(classifier.crops, classifier.flip),
            parameters=classifier.parameters,
            seconds=seconds,
            backend=_backend(classifier, chosen),
            engine=chosen.describe(),
            engine_difference=chosen.difference,
            version=__version__,
            published=published,
            original=self._comparison(),
            notes=self._notes(bool(decisions)),
        )

    def _comparison(self) -> Comparison | None:
        if self.original is None:
            return None
        ours, theirs = self.ours, self.theirs
        return Comparison(
            configuration=self.classifier.name,
            resolution=self.classifier.preprocessing.input_size,
            top1_original=theirs.count("top1") / len(theirs.scores),
            top1_ported=ours.count("top1") / len(ours.scores),
            top5_original=theirs.count("top5") / len(theirs.scores),
            top5_ported=ours.count("top5") / len(ours.scores),
            parameters=self.classifier.parameters or 0,  # of weights they are always known
            # Python's `max` passes over what is not a number; NumPy's does not.
            largest_logit_difference=float(np.max(self.differences)),
            pictures=len(self.differences),
        )

    def _notes(self, independent: bool) -> tuple[str, ...]:
        notes = (*self.dataset.notes, *filter(None, [self.classifier.notes]))
        if self.dataset.restricted is not None:
            notes += (
                "Top-5, loss and calibration are of the classes predicted among, as top-1 is.",
            )
        if independent:
            notes += (
                "The classes do not exclude each other (sigmoid): top-k is by their scores; loss "
                "and binary accuracy take every class that the data do not name for a picture as "
                "wrong.",
            )
        return notes


def _backend(classifier: Classifier, chosen: Chosen) -> str:
    """As in `Evaluation`."""
    if chosen.name != "keras":
        return chosen.name if classifier.runtime is None else classifier.runtime.format
    import keras

    return keras.backend.backend()


class _Gallery:
    """Keeps the few pictures of the lowest rank, of equal ones the first."""

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
    """The centre crop of a picture; a grey one where its file is gone meanwhile."""
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


def published_beside(
    classifier: Classifier, top1: float, top5: float, interval: tuple[float, float]
) -> Published | None:
    """The published accuracy of these weights beside the measured one; None if there is none."""
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
