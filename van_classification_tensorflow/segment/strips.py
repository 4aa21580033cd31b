"""Maps of many classes that are made strip by strip, so that a large picture needs little memory.

The logits of 150 classes at each of 100 million pixels are 60 GB. No more of them is held than the
strip that is looked at, and what it is made of: the model's own, smaller output.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from .pixels import Size

STRIP_BYTES = 32 << 20  # of a strip, float32; what is made on the way needs several times as much


class Maps(Protocol):
    """Maps (H, W, classes), of which any strip can be asked for.

    Attributes:
        shape: H, W, classes.
        along: The axis that strips follow one another along: 0, strips are rows; 1, columns.
    """

    @property
    def shape(self) -> tuple[int, int, int]: ...

    @property
    def along(self) -> int: ...

    def part(self, start: int, stop: int) -> np.ndarray:
        """The rows (or columns) from `start` to before `stop`, float32, not to be changed."""
        ...


class Held:
    """Maps that are there.

    Args:
        maps: (H, W, classes), float32.
        along: As of `Maps`.
    """

    def __init__(self, maps: np.ndarray, along: int = 0):
        self.maps, self.along = maps, along
        self.shape: tuple[int, int, int] = maps.shape

    def part(self, start: int, stop: int) -> np.ndarray:
        return self.maps[start:stop] if self.along == 0 else self.maps[:, start:stop]


class Resized:
    """Maps in another size: bilinear, half-pixel centres, no antialiasing.

    As PyTorch's `interpolate(mode="bilinear", align_corners=False)`.

    Args:
        source: The maps.
        size: Height and width.
    """

    def __init__(self, source: Maps, size: Size):
        self.source, self.along = source, source.along
        self.shape = (*size, source.shape[2])
        self._axes = [_between(new, old) for new, old in zip(size, source.shape[:2], strict=True)]

    def part(self, start: int, stop: int) -> np.ndarray:
        if self.shape == self.source.shape:
            return self.source.part(start, stop)
        before, behind, far = (one[start:stop] for one in self._axes[self.along])
        first = int(before[0])
        maps = self.source.part(first, int(behind[-1]) + 1)
        of_strip: Any = before - first, behind - first, far
        # The width first, as PyTorch does.
        steps = [(1, self._axes[1]), (0, of_strip)]
        if self.along == 1:
            steps = [(1, of_strip), (0, self._axes[0])]
        for axis, places in steps:
            if not _is_as_it_is(maps.shape[axis], *places):
                maps = _mixed(maps, axis, *places)
        return maps


def _is_as_it_is(there: int, before: np.ndarray, behind: np.ndarray, far: np.ndarray) -> bool:
    return not far.any() and np.array_equal(before, np.arange(there))


def _between(count: int, there: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of each new position the old ones before and behind it, and how far behind the first."""
    scale = np.float32(there) / np.float32(count)
    at = np.maximum(scale * (np.arange(count, dtype=np.float32) + np.float32(0.5)) - 0.5, 0)
    at = at.astype(np.float32)
    before = np.minimum(at.astype(np.int64), there - 1)
    return before, np.minimum(before + 1, there - 1), at - before.astype(np.float32)


def _mixed(
    maps: np.ndarray, axis: int, before: np.ndarray, behind: np.ndarray, far: np.ndarray
) -> np.ndarray:
    far = far.reshape((-1, 1, 1) if axis == 0 else (1, -1, 1))
    made, other = np.take(maps, before, axis), np.take(maps, behind, axis)
    made *= 1 - far
    other *= far
    made += other
    return made


class Cut:
    """The upper left part of maps: without what was added below and at the right.

    Args:
        source: The maps.
        size: Height and width of the part.
    """

    def __init__(self, source: Maps, size: Size):
        self.source, self.along = source, source.along
        self.shape = (*size, source.shape[2])

    def part(self, start: int, stop: int) -> np.ndarray:
        return self.source.part(start, stop)[: self.shape[0], : self.shape[1]]


class Mirrored:
    """Maps, left for right.

    Args:
        source: The maps.
    """

    def __init__(self, source: Maps):
        self.source, self.along, self.shape = source, source.along, source.shape

    def part(self, start: int, stop: int) -> np.ndarray:
        if self.along == 1:
            start, stop = self.shape[1] - stop, self.shape[1] - start
        return self.source.part(start, stop)[:, ::-1]


class Averaged:
    """The mean of the probabilities (softmax) that several logits stand for.

    Args:
        sources: Logits of one shape.
    """

    def __init__(self, sources: Sequence[Maps]):
        self.sources, self.along, self.shape = sources, sources[0].along, sources[0].shape

    def part(self, start: int, stop: int) -> np.ndarray:
        total = softmax(self.sources[0].part(start, stop))
        for one in self.sources[1:]:
            total += softmax(one.part(start, stop))
        total /= len(self.sources)
        return total


def softmax(logits: np.ndarray) -> np.ndarray:
    """Probabilities over the last axis."""
    made = logits - logits.max(axis=-1, keepdims=True)
    np.exp(made, out=made)
    made /= made.sum(axis=-1, keepdims=True)
    return made


def strips_of(maps: Maps) -> Iterator[tuple[tuple[slice, slice], np.ndarray]]:
    """All of `maps`, in strips of `STRIP_BYTES`: which rows and columns, and what is there."""
    length, across = maps.shape[maps.along], maps.shape[1 - maps.along]
    step = max(1, STRIP_BYTES // (across * maps.shape[2] * 4))
    for start in range(0, length, step):
        stop = min(start + step, length)
        every, some = slice(None), slice(start, stop)
        yield (some, every) if maps.along == 0 else (every, some), maps.part(start, stop)


def whole(maps: Maps) -> np.ndarray:
    """All of `maps` at once, (H, W, classes): for small ones."""
    return maps.part(0, maps.shape[maps.along])


def best_of(maps: Maps) -> np.ndarray:
    """The class with the largest value at each pixel; of equal ones the first.

    Returns:
        (H, W), uint8, or uint16 of more than 256 classes.
    """
    mask = np.empty(maps.shape[:2], np.uint8 if maps.shape[2] <= 256 else np.uint16)
    for place, part in strips_of(maps):
        mask[place] = part.argmax(axis=-1)
    return mask
