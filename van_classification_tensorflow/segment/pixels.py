"""Pictures in the sizes that a segmentation takes, pixel by pixel as mmsegmentation makes them.

Its pictures are resized by OpenCV (bilinear, without antialiasing, in whole numbers), as are those
that the published weights were trained and evaluated with. Pillow's filters are others.
"""

from __future__ import annotations

import numpy as np

Size = tuple[int, int]
"""Height and width in pixels."""

LONGEST = 4  # times the shorter side: mmsegmentation's (2048, 512)
_BITS = 11  # of a weight, in OpenCV's whole numbers
_STRIP = 1 << 21  # pixels at a time


def size_within(size: Size, short: int, long: int) -> Size:
    """The size of a picture whose sides fit into `long` x `short`, in the same proportions.

    Args:
        size: Of the picture.
        short: What the shorter side is at most, in pixels.
        long: The same of the longer side. One of the two is reached.
    """
    return scaled_size(size, min(long / max(size), short / min(size)))


def scaled_size(size: Size, scale: float) -> Size:
    """The size times `scale`, each side rounded to whole pixels, at least one."""
    height, width = (max(1, int(side * scale + 0.5)) for side in size)
    return height, width


def up_to_multiple(size: Size, multiple: int) -> Size:
    """The next larger size whose sides are multiples of `multiple` pixels."""
    height, width = (-(-side // multiple) * multiple for side in size)
    return height, width


def resized(pixels: np.ndarray, size: Size) -> np.ndarray:
    """A picture in another size, equal to OpenCV's `resize` with `INTER_LINEAR`.

    Args:
        pixels: (H, W, C), uint8.
        size: Height and width of the result.

    Returns:
        (height, width, C), uint8.
    """
    if pixels.shape[:2] == size:
        return pixels
    height, width = size
    made = np.empty((height, width, pixels.shape[2]), np.uint8)
    left, x = _places(width, pixels.shape[1])
    # Beside the picture there is nothing: its first and last column stand for themselves.
    x[(left < 0) | (left >= pixels.shape[1] - 1)] = 0
    left, right = (np.clip(one, 0, pixels.shape[1] - 1) for one in (left, left + 1))
    x0, x1 = (one[:, None] for one in _whole(x))
    above, y = _places(height, pixels.shape[0])
    y0, y1 = (one[:, None, None] for one in _whole(y))
    above, below = (np.clip(one, 0, pixels.shape[0] - 1) for one in (above, above + 1))
    rows = max(1, _STRIP // max(width, pixels.shape[1]))
    for start in range(0, height, rows):
        part = slice(start, min(start + rows, height))
        first, last = above[part.start], below[part.stop - 1] + 1
        some: np.ndarray = pixels[first:last].astype(np.int32)
        across = (some[:, left] * x0 + some[:, right] * x1) >> 4
        up, down = across[above[part] - first], across[below[part] - first]
        made[part] = ((up * y0[part] >> 16) + (down * y1[part] >> 16) + 2) >> 2
    return made


def _places(count: int, there: int) -> tuple[np.ndarray, np.ndarray]:
    """Of each new pixel the old one before it, and how far behind that it lies, below 1."""
    at = ((np.arange(count) + 0.5) * (there / count) - 0.5).astype(np.float32)
    before = np.floor(at)
    return before.astype(np.int64), at - before


def _whole(far: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the pixel before and the one behind, of 2048 together."""
    one = np.float32(1 << _BITS)
    weights = [np.rint(part * one).astype(np.int32) for part in (np.float32(1) - far, far)]
    return weights[0], weights[1]
