"""How well masks agree with the truth: IoU, accuracy, Dice and F-score, as mmsegmentation has them.

Pixels are counted over all pictures first, then divided: a class counts by its area, wherever it
is. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..support.checks import at_least, is_whole

_STRIP = 1 << 22  # pixels that are compared at once


def ignored_label(num_classes: int) -> int:
    """The label of pixels that do not count, where nobody names one: 255, or 65535 of 256 classes.

    Args:
        num_classes: Of the model, at most 65,535.
    """
    return 255 if num_classes < 256 else 65_535


def without_zero(labels: np.ndarray, ignore: int = 255) -> np.ndarray:
    """Labels of a data set whose 0 means "none of the classes" (ADE20K): 0 is ignored, 1 becomes 0.

    Args:
        labels: Whole numbers, as they are in the file.
        ignore: What is ignored already, and stays so.

    Returns:
        The same shape; 0 -> `ignore`, `ignore` -> `ignore`, others less 1.
    """
    nothing = (labels == 0) | (labels == ignore)
    kind = np.promote_types(labels.dtype, np.min_scalar_type(ignore))
    return np.where(nothing, ignore, labels.astype(kind) - (labels > 0)).astype(kind)


def areas_of(mask: np.ndarray, num_classes: int) -> np.ndarray:
    """How many pixels each class has, (num_classes,), int64.

    Args:
        mask: Whole numbers from 0 to below `num_classes`, of any shape.
        num_classes: How many classes there are.
    """
    flat = mask.reshape(-1)
    found: np.ndarray = np.zeros(num_classes, np.int64)
    for start in range(0, flat.size, _STRIP):  # NumPy takes 8 bytes for each number
        found += np.bincount(flat[start : start + _STRIP], minlength=num_classes)
    return found


@dataclass
class Confusion:
    """Areas of classes, added up over pictures: what every metric is made of.

    Args:
        num_classes: Of the model.
        ignore: The label of pixels that do not count.

    Attributes:
        intersection: (num_classes,) pixels that are of the class and were taken for it.
        predicted: (num_classes,) pixels that were taken for the class.
        labelled: (num_classes,) pixels that are of the class.
        outside: Pixels whose label is none of the classes and not `ignore`. They count as errors
            of the class they were taken for, as in mmsegmentation.
        pictures: How many were added.
    """

    num_classes: int
    ignore: int = 255
    outside: int = 0
    pictures: int = 0
    intersection: np.ndarray = field(init=False)
    predicted: np.ndarray = field(init=False)
    labelled: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        at_least("num_classes", self.num_classes, 1)
        if not is_whole(self.ignore) or self.ignore < 0:
            raise ValueError(f"`ignore` must be a label, 0 or more. Received: {self.ignore!r}")
        self.intersection, self.predicted, self.labelled = (
            np.zeros(self.num_classes, np.int64) for _ in range(3)
        )

    def add(self, mask: np.ndarray, labels: np.ndarray) -> None:
        """Counts one picture.

        Args:
            mask: (H, W) whole numbers, what each pixel was taken for, below `num_classes`.
            labels: (H, W) whole numbers, what it is.

        Raises:
            ValueError: They differ in size, or are no whole numbers; nothing was counted.
        """
        mask, labels = np.asarray(mask), np.asarray(labels)
        for name, one in (("mask", mask), ("labels", labels)):
            if one.dtype.kind not in "iu":
                raise ValueError(f"`{name}` must be whole numbers. Received: {one.dtype}")
        if mask.shape != labels.shape:
            raise ValueError(
                f"`labels` must have the size of the picture, {_size(mask.shape)}. Received: "
                f"{_size(labels.shape)}"
            )
        mask, labels = mask.reshape(-1), labels.reshape(-1)
        if mask.size and not 0 <= int(mask.min()) <= int(mask.max()) < self.num_classes:
            raise ValueError(
                f"`mask` must be of classes 0 to {self.num_classes - 1}. Received: "
                f"{mask.min()} to {mask.max()}"
            )
        for start in range(0, mask.size, _STRIP):
            self._count(mask[start : start + _STRIP], labels[start : start + _STRIP])
        self.pictures += 1

    def _count(self, mask: np.ndarray, labels: np.ndarray) -> None:
        counts = labels != self.ignore
        mask, labels = mask[counts], labels[counts]
        inside = (labels >= 0) & (labels < self.num_classes)
        self.outside += int(labels.size - np.count_nonzero(inside))
        self.intersection += self._areas(mask[mask == labels])
        self.predicted += self._areas(mask)
        self.labelled += self._areas(labels[inside])

    def _areas(self, labels: np.ndarray) -> np.ndarray:
        return areas_of(labels, self.num_classes)

    def merge(self, other: Confusion) -> None:
        """Adds what another has counted, of other pictures.

        Raises:
            ValueError: It is of other classes, or ignores another label.
        """
        if (other.num_classes, other.ignore) != (self.num_classes, self.ignore):
            raise ValueError(
                f"`other` must be of {self.num_classes} classes and ignore {self.ignore}. "
                f"Received: {other.num_classes} and {other.ignore}"
            )
        self.intersection += other.intersection
        self.predicted += other.predicted
        self.labelled += other.labelled
        self.outside += other.outside
        self.pictures += other.pictures

    def scores(self) -> Scores:
        """The metrics of all that was counted."""
        found: np.ndarray = self.intersection.astype(np.float64)
        taken: np.ndarray = self.predicted.astype(np.float64)
        there: np.ndarray = self.labelled.astype(np.float64)
        precision, recall = _share(found, taken), _share(found, there)
        return Scores(
            accuracy=float(_share(found.sum(keepdims=True), there.sum(keepdims=True))[0]),
            iou=_share(found, taken + there - found),
            recall=recall,
            precision=precision,
            dice=_share(2 * found, taken + there),
            f_score=_share(2 * precision * recall, precision + recall),
        )


@dataclass(frozen=True)
class Scores:
    """Metrics, shares from 0 to 1; NaN of a class where there is nothing to divide by.

    Args:
        accuracy: Of all pixels (mmsegmentation's aAcc).
        iou: (classes,) intersection over union.
        recall: (classes,) of the pixels of the class those that were found (its Acc and Recall).
        precision: (classes,) of the pixels taken for the class those that are of it.
        dice: (classes,) 2 intersection / (predicted + labelled); 0 where nothing is right.
        f_score: (classes,) harmonic mean of precision and recall; NaN where both are 0, where
            `dice` is 0.
    """

    accuracy: float
    iou: np.ndarray
    recall: np.ndarray
    precision: np.ndarray
    dice: np.ndarray
    f_score: np.ndarray

    def means(self, missing: float | None = None) -> dict[str, float]:
        """{aAcc, mIoU, mAcc, mDice, mFscore, mPrecision, mRecall: percent}, not rounded.

        Args:
            missing: Share that stands for NaN (mmsegmentation's `nan_to_num`). None: such classes
                are left out of a mean, which is NaN where all are.
        """
        kinds = {
            "mIoU": self.iou,
            "mAcc": self.recall,
            "mDice": self.dice,
            "mFscore": self.f_score,
            "mPrecision": self.precision,
            "mRecall": self.recall,
        }
        means = {name: _mean(values, missing) for name, values in kinds.items()}
        return {"aAcc": 100 * self.accuracy, **means}

    def summary(self) -> dict[str, float]:
        """`means` as mmsegmentation reports them: percent, two decimals."""
        return {name: round(value, 2) for name, value in self.means().items()}


def _share(part: np.ndarray, whole: np.ndarray) -> np.ndarray:
    nothing: Any = np.full(np.shape(whole), np.nan)
    return np.divide(part, whole, out=nothing, where=(whole != 0) & ~np.isnan(whole))


def _mean(values: np.ndarray, missing: float | None) -> float:
    if missing is not None:
        values = np.where(np.isnan(values), missing, values)
    there = values[~np.isnan(values)]
    return 100 * float(there.mean()) if there.size else float("nan")


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape[::-1])) if len(shape) == 2 else str(shape)
