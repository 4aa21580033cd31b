"""Inference of mmsegmentation: the whole picture, or windows that slide over it and overlap.

The model is any function of normalised pictures (N, H, W, C) that gives logits (N, h, w, classes)
of any smaller size. Sizes are heights and widths in pixels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from .pixels import LONGEST, Size, resized, scaled_size, size_within, up_to_multiple
from .strips import Averaged, Cut, Held, Maps, Mirrored, Resized

Model = Callable[[np.ndarray], np.ndarray]
Box = tuple[int, int, int, int]
"""Top, bottom, left and right, in pixels; bottom and right are the first that are not in it."""

MAX_WHOLE = 1 << 22  # pixels that go through the model in one piece: 2048 x 2048
MAX_SCALED = 1 << 28  # pixels of a picture that windows slide over
MAX_HELD = 1 << 31  # bytes of the logits of windows that are held at once, of all views together


class Picture:
    """A picture as the model takes it, of which any window can be asked for.

    Only windows are float32: a large picture stays in 8 bits a channel.

    Args:
        pixels: (H, W, C), uint8, or what `normalise` takes.
        normalise: Makes of pixels what the model takes; None: they are that already.
        size: With zeros below and at the right; by default as it is.
    """

    def __init__(
        self,
        pixels: np.ndarray,
        normalise: Callable[[np.ndarray], np.ndarray] | None = None,
        size: Size | None = None,
    ):
        self.pixels, self.normalise = pixels, normalise
        self.inside: Size = pixels.shape[0], pixels.shape[1]
        self.size = self.inside if size is None else size

    def window(self, box: Box) -> np.ndarray:
        """(bottom - top, right - left, C), float32."""
        top, bottom, left, right = box
        found = self.pixels[top:bottom, left:right]
        if self.normalise is not None:
            found = self.normalise(found)
        short = (bottom - top) - found.shape[0], (right - left) - found.shape[1]
        if any(short):
            found = np.pad(found, ((0, short[0]), (0, short[1]), (0, 0)))
        return found.astype(np.float32, copy=False)


def windows_of(size: Size, crop: Size, stride: Size) -> list[Box]:
    """The windows of a picture, in the order of mmsegmentation, row by row.

    The last of a row or column are moved inwards; what is smaller than a window is one, as it is.

    Args:
        size: Of the picture.
        crop: Of a window.
        stride: From one window to the next.
    """
    rows, columns = (_spans(*one) for one in zip(size, crop, stride, strict=True))
    return [(*row, *column) for row in rows for column in columns]


def _spans(side: int, crop: int, stride: int) -> list[tuple[int, int]]:
    count = max(side - crop + stride - 1, 0) // stride + 1
    ends = [min(i * stride + crop, side) for i in range(count)]
    return [(max(end - crop, 0), end) for end in ends]


class Slid:
    """The `Maps` of logits that overlapping windows give: their mean wherever several lie.

    A window goes through the model when a strip needs it, and is forgotten when none can need it
    any more.

    Args:
        model: What gives the logits.
        picture: What of.
        crop: Of a window.
        stride: From one window to the next, at most `crop`.
        along: As of `Maps`; a long picture needs least memory along its longer side.
        batch_size: Windows that go through the model at once.
        max_held: Bytes of logits that may be held.

    Raises:
        ValueError: When logits are asked for, they would need more than `max_held`.
    """

    def __init__(
        self,
        model: Model,
        picture: Picture,
        crop: Size,
        stride: Size,
        along: int = 0,
        batch_size: int = 1,
        max_held: int = MAX_HELD,
    ):
        self.model, self.picture, self.along, self.batch_size = model, picture, along, batch_size
        self.max_held = max_held
        axes = [_spans(*one) for one in zip(picture.size, crop, stride, strict=True)]
        self._lines, self._across = axes[along], axes[1 - along]
        self._counts = [_counts(*one) for one in zip(picture.size, axes, strict=True)]
        self._held: dict[int, list[np.ndarray]] = {}
        self._had: set[int] = set()
        self._classes: int | None = None
        self._bytes = 0  # of a window's logits

    @property
    def shape(self) -> tuple[int, int, int]:
        if self._classes is None:  # only the model knows how many there are
            self._fill([0])
        assert self._classes is not None  # noqa: S101 - `_fill` has set it
        return (*self.picture.size, self._classes)

    def part(self, start: int, stop: int) -> np.ndarray:
        lines = [i for i, (low, high) in enumerate(self._lines) if low < stop and start < high]
        self._check(len(lines))
        # One that no strip has had yet was asked for by `shape`.
        done = self._had - set(lines)
        self._held = {i: found for i, found in self._held.items() if i not in done}
        self._fill([i for i in lines if i not in self._held])
        self._had.update(lines)
        shape = list(self.shape)
        shape[self.along] = stop - start
        total: np.ndarray = np.zeros(shape, np.float32)
        for line in lines:
            low, high = self._lines[line]
            first, last = max(start, low), min(stop, high)
            for (left, right), logits in zip(self._across, self._held[line], strict=True):
                size = (high - low, right - left)
                whole = Resized(Held(logits, self.along), size if self.along == 0 else size[::-1])
                there = slice(first - start, last - start), slice(left, right)
                total[there if self.along == 0 else there[::-1]] += whole.part(
                    first - low, last - low
                )
        rows, columns = self._counts
        if self.along == 0:
            rows = rows[start:stop]
        else:
            columns = columns[start:stop]
        total /= (rows[:, None] * columns)[:, :, None]
        return total

    def _fill(self, lines: list[int]) -> None:
        """Asks the model for all windows of some lines."""
        boxes = [(line, self._box(line, span)) for line in lines for span in self._across]
        for line in lines:
            self._held[line] = []
        for start in range(0, len(boxes), self.batch_size):
            some = boxes[start : start + self.batch_size]
            found = self.model(np.stack([self.picture.window(box) for _, box in some]))
            if self._classes is None:
                self._bytes, self._classes = 4 * found[0].size, found.shape[-1]
                self._check(int(self._counts[self.along].max()) + 1)  # a strip touches the next
            for (line, _), logits in zip(some, found, strict=True):
                # A copy, so that the others of its batch can be forgotten before it is.
                self._held[line].append(logits.astype(np.float32))

    def _box(self, line: int, across: tuple[int, int]) -> Box:
        along = self._lines[line]
        return (*along, *across) if self.along == 0 else (*across, *along)

    def _check(self, lines: int) -> None:
        """Whether the logits of so many lines of windows can be held."""
        needed = min(lines, len(self._lines)) * len(self._across) * self._bytes
        if needed > self.max_held:
            height, width = self.picture.size
            raise ValueError(
                f"windows that overlap so much need {needed / 2**30:.2f} GB for {width} x {height} "
                f"pixels; allowed for each view: {self.max_held / 2**30:.2f} GB. Take a larger "
                "`stride` or fewer `scales`, or make the picture smaller (`size`)"
            )


def _counts(side: int, spans: list[tuple[int, int]]) -> np.ndarray:
    """In how many spans each position lies."""
    steps: np.ndarray = np.zeros(side + 1, np.int64)
    for low, high in spans:
        steps[low] += 1
        steps[high] -= 1
    return np.cumsum(steps[:-1]).astype(np.float32)


def check_whole(size: Size) -> None:
    """Raises `ValueError` where a picture has too many pixels for one piece."""
    height, width = size
    if height * width > MAX_WHOLE:
        raise ValueError(
            f"{width} x {height} pixels are too many for one piece; allowed: {MAX_WHOLE:,}. Take "
            "`mode` slide, or make the picture smaller (`size`)"
        )


def in_one_piece(model: Model, picture: Picture, along: int = 0) -> Maps:
    """The logits of a whole picture, in its size.

    Raises:
        ValueError: It has more than `MAX_WHOLE` pixels.
    """
    height, width = picture.size
    check_whole(picture.size)
    logits = model(picture.window((0, height, 0, width))[None])[0]
    return Resized(Held(logits.astype(np.float32, copy=False), along), picture.size)


@dataclass(frozen=True, kw_only=True)
class Way:
    """How a picture goes through a model; `segment.request` checks what users give.

    Args:
        mode: "whole", or "slide" for windows.
        crop: Of a window.
        stride: From one window to the next.
        size: Pixels of the picture's shorter side, of which the longer is at most four times as
            long; None: the picture stays as large as it is.
        scales: By which that size is multiplied, for each a view; their probabilities are
            averaged.
        flip: Each view mirrored as well.
        fit: What makes the sides multiples of `multiple`: "resize" (the authors), "pad" with
            zeros behind the normalisation (mmsegmentation 1.x), or "none".
        multiple: Of pixels.
        batch_size: Windows that go through the model at once.
        least: What a smaller picture is enlarged to, with zeros below and at the right; None:
            nothing.
    """

    mode: str = "whole"
    crop: Size = (512, 512)
    stride: Size = (341, 341)
    size: int | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    fit: str = "resize"
    multiple: int = 32
    batch_size: int = 1
    least: Size | None = None

    def logits(
        self,
        model: Model,
        pixels: np.ndarray,
        normalise: Callable[[np.ndarray], np.ndarray] | None = None,
        size: Size | None = None,
    ) -> Maps:
        """What the model says of each pixel: logits, or of several views mean probabilities.

        Args:
            model: As of this module.
            pixels: (H, W, C), uint8.
            normalise: Of pixels, as of `Picture`.
            size: Of the result; by default that of the picture.

        Raises:
            ValueError: It needs too much memory; says what would help.
        """
        own = (pixels.shape[0], pixels.shape[1])
        size = own if size is None else size
        along = 0 if size[0] >= size[1] else 1
        views = []
        sizes = [self.size_of(own, scale) for scale in self.scales]
        for height, width in sizes:  # before any is made
            if self.mode != "slide":
                check_whole((height, width))
            elif height * width > MAX_SCALED:
                raise ValueError(
                    f"{width} x {height} pixels are too many; allowed: {MAX_SCALED:,}. Make the "
                    "picture smaller (`size`, `scales`)"
                )
        max_held = MAX_HELD // (len(sizes) * (1 + self.flip))
        for one_size in sizes:
            scaled = resized(pixels, one_size)
            for mirrored in (False, True) if self.flip else (False,):
                one = scaled[:, ::-1] if mirrored else scaled
                maps = self._view(model, one, normalise, along, max_held)
                views.append(Resized(Mirrored(maps) if mirrored else maps, size))
        return views[0] if len(views) == 1 else Averaged(views)

    def size_of(self, own: Size, scale: float = 1.0) -> Size:
        """How large a picture goes into the model, before its sides become multiples."""
        if self.size is None:
            return scaled_size(own, scale)
        return size_within(own, int(self.size * scale), int(LONGEST * self.size * scale))

    def _view(
        self,
        model: Model,
        pixels: np.ndarray,
        normalise: Callable[[np.ndarray], np.ndarray] | None,
        along: int,
        max_held: int,
    ) -> Maps:
        inside: Size = pixels.shape[0], pixels.shape[1]
        fitting = inside if self.fit == "none" else up_to_multiple(inside, self.multiple)
        if self.fit == "resize":
            pixels, inside = resized(pixels, fitting), fitting
        if self.least is not None:
            fitting = max(fitting[0], self.least[0]), max(fitting[1], self.least[1])
        picture = Picture(pixels, normalise, fitting)
        maps: Maps
        if self.mode == "slide":
            maps = Slid(model, picture, self.crop, self.stride, along, self.batch_size, max_held)
        else:
            maps = in_one_piece(model, picture, along)
        return maps if inside == fitting else Cut(maps, inside)
