"""What `Segmenter` and `van segment` are asked for, checked before any work is done."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inference.request import ClassifierOptions
from ..support.checks import (
    at_least,
    at_least_or_none,
    check_choice,
    check_flag,
    is_number,
    is_whole,
)
from ..support.options import number_or, option, part, same_as
from ..support.recorded_folder import RecordedFolder
from ..support.text import shown
from .windows import MAX_WHOLE

INDEX = "segmentation.json"
FOLDER = RecordedFolder(INDEX, "segmentation")
OWN = "own"  # a picture stays as large as it is
MODES = ("whole", "slide")
FITS = ("resize", "pad", "none")
LEAST_CROP = 32  # pixels: the stride of the last stage
_MOST_SCALES = 32
_LARGEST_SCALE = 16
_MOST_IGNORED = 65_535


@dataclass(frozen=True, kw_only=True)
class SegmenterOptions:
    """The arguments of `Segmenter`, which says what they are; most are options of `van segment`.

    Raises:
        ValueError: An argument is not allowed, or does not go with another.
    """

    weights: Any = option(
        "weights of a segmentation: a name of `van weights list`, a checkpoint of mmsegmentation, "
        "a .keras of a VANSegmenter, or an exported file: *.onnx, *.xml, *.tflite, a SavedModel's "
        "folder"
    )
    labels: Any = None
    palette: Any = None
    preprocessing: Any = None
    mode: str = option(
        "whole: the picture in one piece; slide: in windows that overlap, whose answers are "
        "averaged (default: {default})",
        "whole",
        choices=MODES,
    )
    size: int | str | None = option(
        "the picture's shorter side in pixels, of which the longer is at most four times as long; "
        "own: as large as it is (default: the weights', mostly 512)",
        None,
        read=number_or(OWN),
    )
    crop: Any = option(
        "of a window, with --mode slide: a side, or height and width, in pixels (default: as the "
        "shorter side)",
        None,
        type=int,
        nargs="+",
        metavar="N",
    )
    stride: Any = option(
        "from one window to the next: a number, or two as for --crop (default: two thirds of it)",
        None,
        type=int,
        nargs="+",
        metavar="N",
    )
    scales: tuple[float, ...] = option(
        "times that size, for each a view; their probabilities are averaged: 0.5 0.75 1 1.25 1.5 "
        "1.75 for the published multi-scale figures (default: {default})",
        (1.0,),
    )
    flip: bool = option("each view mirrored as well", False)
    fit: str = option(
        "what makes the sides multiples of 32: resize, as the authors do; pad, with zeros, as "
        "mmsegmentation 1.x does; none (default: {default})",
        "resize",
        choices=FITS,
    )
    batch_size: int = option("windows at once (default: {default})", 4)
    workers: int | None = same_as(ClassifierOptions, "workers")
    max_pixels: int = same_as(ClassifierOptions, "max_pixels")

    def __post_init__(self) -> None:
        check_choice("mode", self.mode, MODES)
        check_choice("fit", self.fit, FITS)
        check_flag("flip", self.flip)
        at_least("batch_size", self.batch_size, 1)
        at_least_or_none("workers", self.workers, 1)
        at_least("max_pixels", self.max_pixels, 1)
        if self.size != OWN and (self.size is not None and not is_whole(self.size)):
            raise ValueError(
                f"`size` must be a number of pixels, or {OWN!r}. Received: size={self.size!r}"
            )
        if is_whole(self.size):
            at_least("size", self.size, LEAST_CROP)
        self._check_scales()
        self._check_windows()

    def _check_scales(self) -> None:
        scales = self.scales
        if not isinstance(scales, Iterable) or isinstance(scales, (str, bytes)):
            raise ValueError(f"`scales` must be numbers. Received: scales={shown(scales)}")
        scales = tuple(scales)
        if not all(is_number(one) and 0 < one <= _LARGEST_SCALE for one in scales):
            raise ValueError(
                f"`scales` must be numbers above 0, at most {_LARGEST_SCALE}. "
                f"Received: scales={shown(scales)}"
            )
        if not 0 < len(scales) <= _MOST_SCALES:
            raise ValueError(
                f"`scales` must be 1 to {_MOST_SCALES} numbers. Received: {len(scales)} of them"
            )
        object.__setattr__(self, "scales", tuple(float(one) for one in scales))

    def _check_windows(self) -> None:
        if self.mode != "slide":
            for name in ("crop", "stride"):
                if getattr(self, name) is not None:
                    raise ValueError(
                        f"`{name}` is for `mode` slide. Received: mode={self.mode!r}, "
                        f"{name}={shown(getattr(self, name))}"
                    )
            return
        crop = _pair("crop", self.crop, LEAST_CROP)
        stride = _pair("stride", self.stride, 1)
        if crop and stride and any(s > c for s, c in zip(stride, crop, strict=True)):
            raise ValueError(
                "`stride` must be at most `crop`, or pixels would lie in no window. Received: "
                f"stride={stride}, crop={crop}"
            )
        if crop is not None or isinstance(self.size, int):
            self.windows(self.size if isinstance(self.size, int) else 0)

    def windows(self, side: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """Crop and stride as heights and widths; `side`: of a window where none is given.

        Raises:
            ValueError: `stride` is larger than the window, or that too large for one piece.
        """
        crop = _pair("crop", self.crop, LEAST_CROP) or (side, side)
        stride = _pair("stride", self.stride, 1) or (crop[0] * 2 // 3, crop[1] * 2 // 3)
        if any(s > c for s, c in zip(stride, crop, strict=True)):
            raise ValueError(
                "`stride` must be at most the window, or pixels would lie in none. Received: "
                f"stride={stride}, windows of {crop}"
            )
        if self.mode == "slide" and crop[0] * crop[1] > MAX_WHOLE:
            raise ValueError(
                f"`crop` must be of at most {MAX_WHOLE:,} pixels (2048 x 2048). Received: windows "
                f"of {crop[1]} x {crop[0]}"
            )
        return crop, stride


def _pair(name: str, value: Any, least: int) -> tuple[int, int] | None:
    """A side as height and width; None where it is None."""
    if value is None:
        return None
    values = list(value) if isinstance(value, (list, tuple)) else [value]
    if len(values) not in (1, 2) or not all(is_whole(one) and one >= least for one in values):
        raise ValueError(
            f"`{name}` must be a side, or height and width, in pixels, at least {least}. "
            f"Received: {name}={shown(value)}"
        )
    return int(values[0]), int(values[-1])


@dataclass(frozen=True, kw_only=True)
class SegmentRequest:
    """The options of `van segment`.

    Args:
        paths: As in `images.find.expand`.
        segmenter: What segments.
        output: Folder to make: overlays, masks, areas and `INDEX`.
        truth: Folder of masks to compare with, PNGs that are named as the pictures are.
        reduce_zero_label: 0 in `truth` is none of the classes, and they begin with 1 (ADE20K).
        ignore: The label in `truth` of pixels that do not count; None: 255, of 256 classes or
            more 65,535.
        opacity: Of the colours.
        overlay: Draw the classes over each picture.
        overwrite: Replace an earlier output.

    Raises:
        ValueError: An option is not allowed, or does not go with another.
        OSError: The output is in the way or cannot be written, or there is no such folder.
    """

    paths: tuple[str, ...] = option(
        "pictures, folders (searched at any depth), patterns, or - for a list or a picture "
        "on the standard input",
        flag="path",
    )
    segmenter: SegmenterOptions = part(SegmenterOptions)
    output: Path = option(
        "folder to make: of each picture an overlay with a legend and a mask, the areas of its "
        "classes, and a record of all"
    )
    truth: Path | None = option(
        "folder of the right masks, PNGs of class numbers named as the pictures are: IoU of each "
        "class and mIoU",
        None,
    )
    reduce_zero_label: bool = option(
        "in those masks 0 is none of the classes, and the first class is 1 (ADE20K)", False
    )
    ignore: int | None = option(
        "their number of pixels that do not count (default: 255; of 256 classes or more 65535)",
        None,
        metavar="LABEL",
    )
    opacity: float = option("of the colours, 0 to 1 (default: {default})", 0.6)
    overlay: bool = option("write masks and areas only", True, flag="--no-overlay")
    overwrite: bool = option("replace an earlier output", False)

    def __post_init__(self) -> None:
        if not is_number(self.opacity) or not 0 <= self.opacity <= 1:
            raise ValueError(f"`opacity` must be from 0 to 1. Received: opacity={self.opacity!r}")
        if self.truth is None:
            if self.reduce_zero_label or self.ignore is not None:
                name = "reduce_zero_label" if self.reduce_zero_label else "ignore"
                raise ValueError(f"`{name}` is for a run with `truth`; leave it out")
        elif not self.truth.is_dir():
            raise FileNotFoundError(f"{self.truth} is no folder of masks (`truth`)")
        if self.ignore is not None and not 0 <= at_least("ignore", self.ignore, 0) <= _MOST_IGNORED:
            raise ValueError(
                f"`ignore` must be from 0 to {_MOST_IGNORED}. Received: ignore={self.ignore}"
            )
        FOLDER.check(self.output, self.overwrite)
