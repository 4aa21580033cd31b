"""Pillow's resize as part of a model, for exports that are to take pictures as they are.

Pillow's filters are separable: each output row and column is a weighted mean of input rows or
columns, so a resize is two matrix products, the width first as in `spec.preprocessing.resized`. The
matrices follow from the sizes alone.
"""

from __future__ import annotations

import math
from typing import Any

import keras
import numpy as np
from keras import ops

from ..spec.preprocessing import Preprocessing
from .layers import foreign_tensorflow, register

_BITS = 22  # Pillow's fixed-point weights: 32 bits less 8 of the pixel and 2 to spare
_HALF = 11  # a float32 product is exact up to 24 bits: the weights go in two parts
_GREY = (19595, 38470, 7471)  # Pillow's RGB -> L, in 1 / 65536


@register
class PreprocessingLayer(keras.layers.Layer):
    """Resize, centre crop and normalisation in the graph: `Preprocessing` without Pillow.

    Input: (B, H, W, C) uint8, upright pictures of one size per batch, C 1 or 3. H and W may be
    unknown until the model runs (TensorFlow). Output: (B, input_size, input_size, C of the
    record), normalised.

    The weights are Pillow's fixed-point ones, the sums exact, and each pass rounds to 8 bits as
    Pillow does. Measured on noise, gradients and edges of 13 sizes from 1 x 7 to 700 x 1000,
    enlarged and reduced: with each of the six filters every value is that of `Preprocessing`, on
    TensorFlow (sizes known or not), JAX and torch; also within `tf.data.Dataset.map`, where the
    other two use NumPy. `pytest -m "" tests/model/test_preprocessing_layer.py` measures it again.

    Args:
        preprocessing: The record, or what its `to_dict` gave.
    """

    def __init__(self, preprocessing: Preprocessing | dict[str, Any] | None = None, **kwargs):
        super().__init__(**kwargs)
        self.preprocessing = Preprocessing.of(preprocessing) or Preprocessing()
        self.built = True

    def __call__(self, inputs, *args, **kwargs):
        tensorflow = foreign_tensorflow(inputs)
        if tensorflow is None:
            return super().__call__(inputs, *args, **kwargs)
        # Within `tf.data`: Keras's operations cannot read this tensor. NumPy's do the same.
        shape = self.compute_output_shape(tuple(inputs.shape))
        self._check(inputs.shape, inputs.dtype)
        x = tensorflow.numpy_function(
            lambda pictures: preprocessed(np, pictures, self.preprocessing),
            [inputs],
            tensorflow.float32,
            stateful=False,
        )
        return tensorflow.cast(tensorflow.ensure_shape(x, shape), self.compute_dtype)

    def call(self, inputs):
        self._check(inputs.shape, inputs.dtype)
        return ops.cast(preprocessed(ops, inputs, self.preprocessing), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        self._check(input_shape)
        side = self.preprocessing.input_size
        return (input_shape[0], side, side, self.preprocessing.channels)

    def get_config(self) -> dict:
        return {**super().get_config(), "preprocessing": self.preprocessing.to_dict()}

    def _check(self, shape, dtype="uint8") -> None:
        if len(shape) != 4 or shape[3] not in (1, 3):
            raise ValueError(
                "pictures must be (B, H, W, C) with 1 or 3 channels. "
                f"Received: shape {tuple(shape)}"
            )
        if 0 in shape[1:3]:
            raise ValueError(f"pictures must not be empty. Received: shape {tuple(shape)}")
        if keras.backend.standardize_dtype(dtype) != "uint8":
            raise ValueError(
                "pictures must be uint8, 0 to 255, not yet scaled. "
                f"Received: {keras.backend.standardize_dtype(dtype)}"
            )


def preprocessed(xp, pictures, preprocessing: Preprocessing):
    """Resized, cropped and normalised pictures, as `Preprocessing` makes them.

    Args:
        xp: The module that computes: NumPy or `keras.ops`.
        pictures: (B, H, W, C), 0 to 255, uint8; an array or a tensor of Keras's backend.
        preprocessing: The record.

    Returns:
        (B, input_size, input_size, C of the record), float32.
    """
    side = preprocessing.input_size
    x = _in_channels(xp, pictures, preprocessing.channels)
    x = xp.transpose(x, (0, 3, 1, 2))  # sums over the last axis
    known, now = pictures.shape[1:3], xp.shape(pictures)[1:3]
    height, width = (a if a is not None else b for a, b in zip(known, now, strict=True))
    rows = _axis_weights(height, width, preprocessing)
    columns = _axis_weights(width, height, preprocessing)
    x = _weighted(xp, x, columns, side)  # (B, C, H, side)
    x = _weighted(xp, xp.transpose(x, (0, 1, 3, 2)), rows, side)  # (B, C, side, side)
    return normalised(xp, xp.transpose(x, (0, 3, 2, 1)), preprocessing)


def normalised(xp, pixels, preprocessing: Preprocessing):
    """(B, H, W, C) float32 pixels, 0 to 255: scaled to [0, 1], less mean, over std."""
    mean, std = (
        np.asarray(values, "float32") for values in (preprocessing.mean, preprocessing.std)
    )
    if xp is ops:
        mean, std = ops.convert_to_tensor(mean), ops.convert_to_tensor(std)
    return (pixels / 255.0 - mean) / std


def _in_channels(xp, x, want: int):
    have = x.shape[3]
    if have == want:
        return x
    if want == 3:
        return xp.repeat(x, 3, axis=3)
    x = _cast(x, "int32")
    grey = sum(x[..., i : i + 1] * weight for i, weight in enumerate(_GREY))
    return xp.right_shift(grey + (1 << 15), 16)


def _axis_weights(size, other, preprocessing: Preprocessing):
    """Pillow's weights for one axis, of the cropped lines only: (side, size), whole numbers.

    Sizes that are known make them with NumPy, once; others with Keras, in the graph.
    """
    if isinstance(size, int) and isinstance(other, int):
        return _weights(np, size, _resized(np, size, other, preprocessing), preprocessing)
    size, other = (ops.cast(one, "float64") for one in (size, other))
    return _weights(ops, size, _resized(ops, size, other, preprocessing), preprocessing)


def _resized(xp, size, other, preprocessing: Preprocessing):
    """Length of an axis once the picture is resized; of the longer one rounded down."""
    short = float(preprocessing.resize_to)
    square = preprocessing.resize == "both sides"
    longer = short if square else xp.floor(short * size / other)
    return xp.where(size <= other, short, longer)


def _weights(xp, size, resized, preprocessing: Preprocessing):
    """(input_size, size), float64, in 1 / 2**22. `xp` is NumPy or `keras.ops`."""
    kernel, support = _FILTERS[preprocessing.interpolation]
    side = preprocessing.input_size
    scale = size / resized
    stretch = xp.maximum(scale, 1.0)  # a filter grows with what one output line covers
    whole = xp.round if preprocessing.crop_rounding == "nearest" else xp.floor
    first = whole((resized - side) / 2.0)
    line = first + np.arange(side, dtype="float64")[:, None]
    centre = (line + 0.5) * scale
    position = xp.arange(size, dtype="float64")[None]
    if kernel is None:  # nearest, whose centres Pillow adds up: rounding decides at whole ones
        steps = xp.arange(first + side, dtype="float64")
        centre = xp.cumsum(xp.where(steps == 0.0, 0.5 * scale, scale))[-side:, None]
        return xp.where(position == xp.floor(centre), float(1 << _BITS), 0.0)
    reach = support * stretch
    low = xp.floor(xp.maximum(centre - reach + 0.5, 0.0))
    high = xp.floor(xp.minimum(centre + reach + 0.5, size))
    weight = kernel(xp, (position - centre + 0.5) * (1.0 / stretch))
    weight = xp.where((position >= low) & (position < high), weight, 0.0)
    weight = weight / xp.cumsum(weight, axis=1)[:, -1:]  # not `sum`: in Pillow's order
    return xp.sign(weight) * xp.floor(xp.abs(weight) * float(1 << _BITS) + 0.5)


def _weighted(xp, x, weights, side: int):
    """One pass: (..., size) whole numbers times (side, size) weights -> (..., side), 0 to 255."""
    of = np if isinstance(weights, np.ndarray) else ops
    upper = of.floor(weights / float(1 << _HALF) + 0.5)
    parts = of.concatenate([upper, weights - upper * float(1 << _HALF)], axis=0)
    parts = _cast(parts, "float32")
    if xp is ops:
        parts = ops.convert_to_tensor(parts)
    sums = xp.matmul(_cast(x, "float32"), xp.transpose(parts))
    sums = _cast(xp.round(sums), "int32")
    total = sums[..., :side] * (1 << _HALF) + sums[..., side:] + (1 << (_BITS - 1))
    return _cast(xp.clip(xp.right_shift(total, _BITS), 0, 255), "float32")


def _cast(x, dtype: str):
    return x.astype(dtype) if isinstance(x, np.ndarray) else ops.cast(x, dtype)


def _box(xp, x):
    return xp.where((x > -0.5) & (x <= 0.5), 1.0, 0.0)


def _bilinear(xp, x):
    return xp.maximum(1.0 - xp.abs(x), 0.0)


def _hamming(xp, x):
    a, b = float(np.float32(0.54)), float(np.float32(0.46))  # Pillow's are single precision
    window = a + b * xp.cos(math.pi * x)
    return xp.where(xp.abs(x) < 1.0, _sinc(xp, x) * window, 0.0)


def _bicubic(xp, x):
    a, x = -0.5, xp.abs(x)
    near = ((a + 2.0) * x - (a + 3.0)) * x * x + 1.0
    far = (((x - 5.0) * x + 8.0) * x - 4.0) * a
    return xp.where(x < 1.0, near, xp.where(x < 2.0, far, 0.0))


def _lanczos(xp, x):
    return xp.where((x >= -3.0) & (x < 3.0), _sinc(xp, x) * _sinc(xp, x / 3.0), 0.0)


def _sinc(xp, x):
    angle = math.pi * xp.where(x == 0.0, 1.0, x)
    return xp.where(x == 0.0, 1.0, xp.sin(angle) / angle)


_FILTERS: dict[str, Any] = {
    "nearest": (None, 0.0),
    "box": (_box, 0.5),
    "bilinear": (_bilinear, 1.0),
    "hamming": (_hamming, 1.0),
    "bicubic": (_bicubic, 2.0),
    "lanczos": (_lanczos, 3.0),
}
