"""The loss that the authors' segmenters were trained with: mmsegmentation's `CrossEntropyLoss`."""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from ..model.layers import register
from ..spec.config import DATA_FORMATS
from ..support.checks import check_choice, check_flag, is_number, is_whole
from .resize import resize_bilinear

_EPSILON = 1.1920929e-07  # float32's, beside a divisor that may be 0


@register
class SegmentationCrossEntropy(keras.losses.Loss):
    """Cross-entropy of every pixel, of logits that are first resized to the labels' size.

    The mean is over *all* pixels of a batch, ignored ones, which count as 0, included; so it is in
    mmsegmentation unless told otherwise. With an auxiliary head: `compile(loss=[loss, loss],
    loss_weights=[1.0, 0.4])`, and the labels twice.

    Args:
        ignore_index: The label of pixels that do not count.
        avg_non_ignore: Whether the mean is over the other pixels only.
        class_weight: A weight for each class; the mean is then weighted: the divisor is the sum of
            the weights of the labels.
        data_format: Of the logits; None: `keras.config.image_data_format()`.
        name: Of the loss.
        reduction: As of Keras; not "sum" with the two above, which are of a mean.
        dtype: As of Keras.

    Labels (B, H, W) or (B, H, W, 1), whole numbers; logits (B, h, w, classes), or
    (B, classes, h, w).

    Raises:
        ValueError: An argument is not allowed, or is not for so many classes.
    """

    def __init__(
        self,
        ignore_index: int = 255,
        avg_non_ignore: bool = False,
        class_weight: Sequence[float] | None = None,
        data_format: str | None = None,
        name: str = "segmentation_cross_entropy",
        reduction: str = "sum_over_batch_size",
        dtype=None,
    ):
        super().__init__(name=name, reduction=reduction, dtype=dtype)
        if not is_whole(ignore_index):
            raise ValueError(
                f"`ignore_index` must be a whole number. Received: ignore_index={ignore_index!r}"
            )
        self.ignore_index = int(ignore_index)
        self.avg_non_ignore = check_flag("avg_non_ignore", avg_non_ignore)
        self.class_weight = None if class_weight is None else _weights(class_weight)
        data_format = keras.config.image_data_format() if data_format is None else data_format
        self.data_format = check_choice("data_format", data_format, DATA_FORMATS)
        if reduction == "sum" and (self.avg_non_ignore or self.class_weight is not None):
            raise ValueError(
                "`reduction` must not be 'sum' with `avg_non_ignore` or `class_weight`, which are "
                "of a mean"
            )

    def __call__(self, y_true, y_pred, sample_weight=None):
        # Not cast to the loss's type, which in half precision would round large labels.
        y_true = ops.cast(ops.convert_to_tensor(y_true), "int32")
        return super().__call__(y_true, y_pred, sample_weight)

    def call(self, y_true, y_pred):
        """The loss of every pixel, (B, H, W), whose mean is that of the batch."""
        labels = ops.cast(y_true, "int32")
        if len(labels.shape) == 4:
            labels = ops.squeeze(labels, -1)
        if self.data_format == "channels_first":
            y_pred = ops.transpose(y_pred, (0, 2, 3, 1))
        classes = y_pred.shape[-1]
        if self.class_weight is not None and classes not in (None, len(self.class_weight)):
            raise ValueError(
                f"`class_weight` must hold a number for each of {classes} classes. Received: "
                f"{len(self.class_weight)} of them"
            )
        logits = resize_bilinear(y_pred, ops.shape(labels)[1:3])
        logits = ops.cast(logits, keras.backend.result_type(logits.dtype, "float32"))
        kept = ops.not_equal(labels, self.ignore_index)
        labels = ops.where(kept, labels, 0)
        losses = ops.sparse_categorical_crossentropy(labels, logits, from_logits=True)
        counted = ops.cast(kept, losses.dtype)
        if self.class_weight is not None:
            weights = ops.convert_to_tensor(self.class_weight, losses.dtype)
            counted = counted * ops.take(weights, labels, axis=0)
        losses = losses * counted
        if not self.avg_non_ignore and self.class_weight is None:
            return losses
        # The mean over all pixels follows, whose number is put right here.
        pixels = ops.cast(ops.size(labels), losses.dtype)
        return losses * (pixels / (ops.sum(counted) + _EPSILON))

    def get_config(self) -> dict:
        return {
            **super().get_config(),
            "ignore_index": self.ignore_index,
            "avg_non_ignore": self.avg_non_ignore,
            "class_weight": self.class_weight and list(self.class_weight),
            "data_format": self.data_format,
        }


def _weights(class_weight: Sequence[float]) -> tuple[float, ...]:
    found = tuple(class_weight)
    if not found or not all(is_number(one) and one >= 0 for one in found):
        raise ValueError(
            "`class_weight` must hold a number >= 0 for each class. "
            f"Received: class_weight={class_weight!r}"
        )
    return tuple(map(float, found))
