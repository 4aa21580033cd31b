"""What an evaluation has found, as records."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from ..spec.preprocessing import Preprocessing
from .original import TOLERANCE, Comparison

TIMM_COLUMNS = (
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
        backend: Of Keras; "numpy", "onnxruntime", "openvino" or "litert" where that was the
            engine; "onnx", "openvino", "litert" or "saved_model" of an exported file.
        version: Of this package.
        published: Beside the published figures; None where there are none for this.
        original: Beside the original; None where it was not asked for.
        notes: What a reader should know.
        engine: What ran the model, and why.
        engine_difference: How far its answer to one picture was from NumPy's, of int8 to those of
            the calibration from float32, in parts of the largest logit; None where nothing was
            compared.
        asked: {option of `van evaluate`: what it was given}, but for the weights and the views, of
            those that decide what is measured; {} where it was measured without.
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
    engine: str = ""
    engine_difference: float | None = None
    asked: dict[str, Any] = field(default_factory=dict)

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
                mine["largest_logit_difference"] = None  # JSON has no such numbers
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
        return dict(zip(TIMM_COLUMNS, values, strict=True))
