"""From activations and gradients to a map: the methods, in NumPy alone.

Shapes: N pictures, h x w positions, C channels. `activation` is what a layer gives, `gradient`
that of a class's logit (not of its probability) with respect to it, both (N, h, w, C).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..support.checks import is_whole
from ..support.text import shown

OWN_CLASS = -1  # of a picture, in place of an index: the class with the largest logit
# Where a map is this small beside the numbers it is the sum of, it is nothing but their rounding.
ROUNDING = {"float32": 3e-5, "float16": 2e-2, "bfloat16": 5e-2}


def grad_cam(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Terms (N, h, w, C): activation x mean gradient of its channel."""
    return activation * gradient.mean(axis=(1, 2), keepdims=True)


def hires_cam(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Terms (N, h, w, C): activation x gradient."""
    return activation * gradient


def layer_cam(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Terms (N, h, w, C): activation x gradient where that is positive."""
    return activation * np.maximum(gradient, 0)


def grad_cam_plus_plus(activation: np.ndarray, gradient: np.ndarray) -> np.ndarray:
    """Terms (N, h, w, C), the second and third derivatives as for an exponential score (Eq. 19)."""
    whole = activation.sum(axis=(1, 2), keepdims=True, dtype=np.float32)
    below = 2 * gradient**2 + whole * gradient**3 + np.float32(1e-6)
    share = np.where(gradient != 0, gradient**2 / below, 0)
    weight = (np.maximum(gradient, 0) * share).sum(axis=(1, 2), keepdims=True)
    return activation * weight


@dataclass(frozen=True)
class Explained:
    """The maps of N pictures, and what they are of.

    Args:
        maps: (N, h, w), float32, from 0 to 1.
        raw: (N, h, w), float32, signed, before the negative part is cut off; None of several
            layers.
        logits: (N, K), float32.
        class_index: (N,), the class each was explained for; of one output 1, or 0: that it is not.
        layer: Where.
        method: How.
    """

    maps: np.ndarray
    raw: np.ndarray | None
    logits: np.ndarray
    class_index: np.ndarray
    layer: str
    method: str

    @property
    def empty(self) -> np.ndarray:
        """(N,), whether a map shows nothing: it is 0 everywhere."""
        return np.logical_not(self.maps.any(axis=(1, 2)))

    def reason(self) -> str:
        """Why maps of it may be empty, and what helps."""
        if self.maps[0].size == 1:
            return "there is a single position. Take an earlier layer, or larger pictures"
        if self.method == "hires-cam" and not self.layer.startswith("norm"):
            return "a layer norm follows, so that gradient x activation sums to 0. Take that norm"
        return "nothing there speaks for the class"


OF_GRADIENTS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "grad-cam": grad_cam,
    "grad-cam++": grad_cam_plus_plus,
    "hires-cam": hires_cam,
    "layer-cam": layer_cam,
}


def of_gradients(
    method: str,
    activation: np.ndarray,
    gradient: np.ndarray,
    rounding: float = ROUNDING["float32"],
) -> np.ndarray:
    """The raw map of a method of `OF_GRADIENTS`.

    Args:
        method: Its name.
        activation: (N, h, w, C), float32.
        gradient: The same.
        rounding: So small a share of the numbers it is the sum of is nothing.

    Returns:
        (N, h, w), float32, signed; 0 where the sum over the channels is but rounding.
    """
    terms = OF_GRADIENTS[method](activation, gradient)
    found = terms.sum(axis=-1)
    size = np.abs(terms).sum(axis=-1).max(axis=(1, 2), keepdims=True)
    nothing = np.abs(found).max(axis=(1, 2), keepdims=True) <= rounding * size
    return np.where(nothing, np.float32(0), found).astype(np.float32)


def eigen_cam(activation: np.ndarray) -> np.ndarray:
    """The raw map (N, h, w): positions projected on the first principal component of the channels.

    A component has no sign: here it grows with the magnitude of the activation.
    """
    n, height, width, channels = activation.shape
    rows = activation.reshape(n, height * width, channels)
    centred = rows - rows.mean(axis=1, keepdims=True)
    found = np.zeros((n, height * width), np.float32)
    for i in range(n):
        first = np.linalg.svd(centred[i], full_matrices=False)[2][0]
        found[i] = centred[i] @ first
    magnitude = np.abs(rows).sum(axis=2)
    magnitude -= magnitude.mean(axis=1, keepdims=True)
    sign = np.where((found * magnitude).sum(axis=1, keepdims=True) < 0, -1, 1)
    return (sign * found).reshape(n, height, width).astype(np.float32)


def score_cam_masks(activation: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Each channel as a mask of the picture, in [0, 1].

    Args:
        activation: (h, w, C) of one picture.
        size: (H, W) of the picture.

    Returns:
        (C, H, W), float32: enlarged with the corners kept where they are, then min-max.
    """
    maps = np.moveaxis(activation, -1, 0)
    for axis, length in ((1, size[0]), (2, size[1])):
        steps = maps.shape[axis]
        at = np.linspace(0, steps - 1, length) if length > 1 else np.zeros(1)
        maps = _between(maps, at, axis)
    low = maps.min(axis=(1, 2), keepdims=True)
    high = maps.max(axis=(1, 2), keepdims=True)
    return ((maps - low) / (high - low + np.float32(1e-8))).astype(np.float32)


def gate(attention: np.ndarray) -> np.ndarray:
    """The raw map (N, h, w) of a gate (N, h, w, C): its mean magnitude."""
    return np.abs(attention).mean(axis=-1, dtype=np.float32)


def to_unit(raw: np.ndarray) -> np.ndarray:
    """(N, h, w) -> the positive part from 0 to 1, each map by itself; a constant one is 0."""
    found = np.maximum(raw, 0)
    found = found - found.min(axis=(1, 2), keepdims=True)
    return (found / (found.max(axis=(1, 2), keepdims=True) + np.float32(1e-7))).astype(np.float32)


def pixels_to_unit(raw: np.ndarray) -> np.ndarray:
    """(N, H, W) of single pixels -> the positive part from 0 to 1, each map by itself.

    The hundredth part that is largest is all 1: a few pixels would hide the others.
    """
    found = np.maximum(raw, 0)
    most = np.quantile(found, 0.99, axis=(1, 2), keepdims=True)
    most = np.where(most > 0, most, found.max(axis=(1, 2), keepdims=True))
    return np.clip(found / np.maximum(most, np.float32(1e-30)), 0, 1).astype(np.float32)


def enlarged(
    maps: np.ndarray, size: tuple[int, int], rows: tuple[int, int] | None = None
) -> np.ndarray:
    """(N, h, w) -> (N, H, W): bilinear, half-pixel centres, edges clamped.

    Args:
        maps: Of any size.
        size: (H, W).
        rows: Give only these, from the first up to the second.
    """
    for axis, length in ((1, size[0]), (2, size[1])):
        steps = maps.shape[axis]
        at = (np.arange(length) + 0.5) * (steps / length) - 0.5
        at = at[slice(*rows)] if rows is not None and axis == 1 else at
        maps = _between(maps, np.clip(at, 0, steps - 1), axis)
    return maps.astype(np.float32)


def together(raws: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The final map (N, H, W) of one or several layers' raw maps, in [0, 1].

    Args:
        raws: Of each layer (N, h, w).
        size: (H, W) of the pictures.
    """
    return to_unit(np.mean([enlarged(to_unit(raw), size) for raw in raws], axis=0))


def _between(maps: np.ndarray, at: np.ndarray, axis: int) -> np.ndarray:
    """Values at fractional places of an axis."""
    below = np.floor(at).astype(int)
    above = np.minimum(below + 1, maps.shape[axis] - 1)
    shape = [1, 1, 1]
    shape[axis] = -1
    share = (at - below).astype(np.float32).reshape(shape)
    low: np.ndarray = maps.take(below, axis)
    return low + (maps.take(above, axis) - low) * share


def check_classes(class_index: Any, count: int, outputs: int) -> np.ndarray:
    """(N,), the classes to explain, `OWN_CLASS` for None.

    Args:
        class_index: As in `explain`.
        count: Of the pictures.
        outputs: Of the model.

    Raises:
        ValueError: They are no classes of it, or not as many as pictures.
    """
    if class_index is None:
        return np.full(count, OWN_CLASS)
    given = [class_index] * count if is_whole(class_index) else class_index
    try:
        wanted = np.asarray(given)
    except ValueError:  # lists of several lengths
        wanted = np.zeros(())
    classes = max(outputs, 2)
    whole = wanted.shape == (count,) and np.issubdtype(wanted.dtype, np.integer)
    if not whole or wanted.min() < 0 or wanted.max() >= classes:
        raise ValueError(
            f"`class_index` must be None, a whole number from 0 to {classes - 1}, or one for each "
            f"of the {count} pictures. Received: class_index={shown(class_index)}"
        )
    return wanted.astype(np.int64)


class NotFiniteError(ValueError):
    """A model gave something that is no finite number."""


def check_finite(logits: np.ndarray) -> None:
    """Raises `NotFiniteError` where the model gives something that is no number."""
    if not np.isfinite(logits).all():
        which = int(np.argmin(np.isfinite(logits).all(axis=1)))
        raise NotFiniteError(
            f"the model gives logits that are no finite numbers for picture {which}: there is "
            "nothing to explain"
        )
