"""Whether a map tells the truth: what happens to the score when the pixels that it names go first.

Deletion and insertion (Petsiuk et al., arXiv 1806.07421, Section 4), in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ..support.checks import at_least


def order_of(map: np.ndarray) -> np.ndarray:
    """(H, W) -> (H * W,), the flat index y * W + x of each pixel, the largest number first."""
    return np.argsort(-map.reshape(-1), kind="stable")


def blurred(image: np.ndarray, side: int = 11, sigma: float = 5.0) -> np.ndarray:
    """(H, W, C) blurred, zeros around it: where insertion begins.

    The kernel is RISE's: what a Gaussian filter makes of a spot in the middle of `side` x `side`
    pixels, mirrored at their edges, so that it is flatter than the Gaussian.

    Args:
        image: As the model takes it.
        side: Of the kernel, odd.
        sigma: Standard deviation in pixels.
    """
    pad, reach = side // 2, int(4 * sigma + 0.5)
    offsets = np.arange(-reach, reach + 1)
    weights = np.exp(-(offsets**2) / (2 * sigma**2))
    weights /= weights.sum()
    # Where each pixel looks, mirrored: ... 1 0 | 0 1 2 ... side - 1 | side - 1 ...
    seen = (np.arange(side)[:, None] + offsets) % (2 * side)
    seen = np.where(seen < side, seen, 2 * side - 1 - seen)
    line = ((seen == pad) @ weights).astype(np.float32)
    wide = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    rows = sum(line[i] * wide[i : i + image.shape[0]] for i in range(side))
    made = sum(line[i] * rows[:, i : i + image.shape[1]] for i in range(side))
    return np.asarray(made, np.float32)


def curve(
    score: Callable[[np.ndarray], np.ndarray],
    start: np.ndarray,
    end: np.ndarray,
    order: np.ndarray,
    step: int,
) -> np.ndarray:
    """Scores while the pixels of one picture are replaced by those of another.

    Deletion goes from the picture to an empty one, insertion from a blurred one to the picture.

    Args:
        score: (N, H, W, C) -> (N,), such as the probability of the class.
        start: (H, W, C).
        end: The same.
        order: As `order_of` gives it.
        step: Pixels at once.

    Returns:
        (steps + 1,), float32, of `start` first.

    Raises:
        ValueError: `step` is not at least 1, or the order not that of all pixels.
    """
    at_least("step", step, 1)
    pixels, channels = start.shape[0] * start.shape[1], start.shape[2]
    if not np.array_equal(np.sort(order), np.arange(pixels)):
        raise ValueError(f"`order` must hold each of the {pixels} pixels once")
    steps = -(-pixels // step)
    flat = np.repeat(start.reshape(1, pixels, channels), steps + 1, axis=0)
    for i in range(1, steps + 1):
        replaced = order[: i * step]
        flat[i, replaced] = end.reshape(pixels, channels)[replaced]
    return score(flat.reshape(steps + 1, *start.shape)).astype(np.float32)


def area(scores: np.ndarray) -> float:
    """Under a curve over [0, 1], by trapezoids. Small for deletion and large for insertion."""
    return float((scores.sum() - scores[0] / 2 - scores[-1] / 2) / (len(scores) - 1))
