"""Maps of another size, as PyTorch makes them: `interpolate` and `adaptive_avg_pool2d`.

All take and give channels-last maps (B, H, W, C), and work where H and W are known only when the
graph runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
from keras import layers, ops

from ..model.layers import register, tf

INTERPOLATIONS = ("bilinear", "nearest")


def resize_bilinear(maps, size: Sequence):
    """Bilinear with half-pixel centres and no antialias: torch's `align_corners=False`.

    Args:
        maps: (B, H, W, C), float.
        size: (height, width), whole numbers or scalar tensors.

    Returns:
        (B, height, width, C), in the type of `maps`; computed in float32 at least.
    """
    if _has(maps, size):
        return maps
    dtype = keras.backend.result_type(maps.dtype, "float32")
    if dtype == "float64":  # which TensorFlow's kernel knows as little as its BatchNorm does
        down, across = map(_interpolation, size, ops.shape(maps)[1:3])
        return ops.einsum("jw,biwc->bijc", across, ops.einsum("ih,bhwc->biwc", down, maps))
    x = ops.cast(maps, dtype)
    if tf is not None:  # Keras's own takes no sizes that are known only when the graph runs
        made = tf.image.resize(x, size, "bilinear", antialias=False)
    else:
        options: Any = {"antialias": False, "data_format": "channels_last"}
        made = ops.image.resize(x, tuple(size), "bilinear", **options)
    return ops.cast(made, maps.dtype)


def _has(maps, size: Sequence) -> bool:
    """Whether the maps are known to be of that size."""
    return all(isinstance(n, int) and n == m for n, m in zip(size, maps.shape[1:3], strict=True))


def _interpolation(out, into):
    """(out, into), float64: what each of `into` positions adds to each of `out`."""
    place = (ops.cast(ops.arange(out), "float64") + 0.5) * (into / out) - 0.5
    place = ops.clip(place, 0.0, ops.cast(into, "float64") - 1.0)  # at the edges they repeat
    distance = ops.abs(place[:, None] - ops.cast(ops.arange(into), "float64")[None])
    return ops.maximum(1.0 - distance, 0.0)


def resize_nearest(maps, size: Sequence):
    """Position i of the result is position floor(i * in / out) of `maps`: torch's "nearest".

    Args:
        maps: (B, H, W, C).
        size: (height, width), whole numbers or scalar tensors.

    Returns:
        (B, height, width, C).
    """
    if _has(maps, size):
        return maps
    for axis, (out, into) in enumerate(zip(size, ops.shape(maps)[1:3], strict=True), start=1):
        maps = ops.take(maps, ops.arange(out, dtype="int32") * into // out, axis=axis)
    return maps


def adaptive_average_pool(maps, bins: int):
    """The means of `bins` x `bins` windows that cover the maps: torch's `adaptive_avg_pool2d`.

    Window i of a side of n reaches from floor(i n / bins) to ceil((i + 1) n / bins): windows
    overlap where `bins` does not divide n, and repeat where it is larger.

    Args:
        maps: (B, H, W, C), float.
        bins: Windows along a side, at least 1.

    Returns:
        (B, bins, bins, C).
    """
    height, width = ops.shape(maps)[1:3]
    # As two matrix products: (bins, H) x (B, H, W, C), then (bins, W).
    pooled = ops.einsum("ih,bhwc->biwc", _windows(height, bins, maps.dtype), maps)
    return ops.einsum("jw,biwc->bijc", _windows(width, bins, maps.dtype), pooled)


def _windows(size, bins: int, dtype):
    """(bins, size): 1 / length of window i at the positions in it, 0 elsewhere."""
    i = ops.arange(bins, dtype="int32")[:, None]
    position = ops.arange(size, dtype="int32")[None]
    first, end = i * size // bins, ((i + 1) * size + bins - 1) // bins
    inside = ops.logical_and(position >= first, position < end)
    return ops.cast(inside, dtype) / ops.cast(end - first, dtype)


@register
class ResizeLike(layers.Layer):
    """Takes [maps, others], and gives the maps at the height and width of the others.

    Args:
        interpolation: "bilinear" or "nearest", as above.
    """

    def __init__(self, interpolation: str = "bilinear", **kwargs):
        super().__init__(**kwargs)
        if interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"`interpolation` must be one of {', '.join(INTERPOLATIONS)}. "
                f"Received: {interpolation!r}"
            )
        self.interpolation = interpolation
        self.built = True

    def call(self, inputs):
        maps, others = inputs
        resize = resize_bilinear if self.interpolation == "bilinear" else resize_nearest
        return resize(maps, ops.shape(others)[1:3])

    def compute_output_shape(self, input_shape):
        maps, others = input_shape
        return (maps[0], *others[1:3], maps[3])

    def get_config(self) -> dict:
        return {**super().get_config(), "interpolation": self.interpolation}


@register
class UpsampleTwice(layers.Layer):
    """Twice the height and width, bilinear: (B, H, W, C) -> (B, 2 H, 2 W, C)."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.built = True

    def call(self, maps):
        height, width = ops.shape(maps)[1:3]
        return resize_bilinear(maps, (2 * height, 2 * width))

    def compute_output_shape(self, input_shape):
        batch, height, width, channels = input_shape
        doubled = (None if side is None else 2 * side for side in (height, width))
        return (batch, *doubled, channels)


@register
class AdaptiveAveragePooling(layers.Layer):
    """(B, H, W, C) -> (B, bins, bins, C), see `adaptive_average_pool`.

    Args:
        bins: Windows along a side, at least 1.
    """

    def __init__(self, bins: int, **kwargs):
        super().__init__(**kwargs)
        self.bins = bins
        self.built = True

    def call(self, maps):
        return adaptive_average_pool(maps, self.bins)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], self.bins, self.bins, input_shape[3])

    def get_config(self) -> dict:
        return {**super().get_config(), "bins": self.bins}
