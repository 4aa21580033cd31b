"""Pictures -> a class for every pixel, from Python: `Segmenter`."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..images.decode import MAX_PIXELS, is_one, open_image
from ..images.parallel import decoded
from ..spec.labels import Label
from ..spec.preprocessing import Preprocessing
from ..support.cores import cores
from ..support.text import printable, reason
from .drawing import Entry, overlay_of, with_legend
from .metrics import areas_of
from .opening import Wanted, open_any
from .pixels import LONGEST
from .request import OWN, SegmenterOptions
from .strips import best_of
from .windows import Way

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class ClassArea:
    """What one class covers of a picture.

    Args:
        label: Name of the class.
        index: Its number, that of its pixels in the mask.
        pixels: How many they are.
        share: Of the picture, from 0 to 1.
        colour: Red, green, blue, as it is drawn.
    """

    label: str
    index: int
    pixels: int
    share: float
    colour: tuple[int, int, int]


@dataclass(frozen=True)
class Segmentation:
    """What became of one picture: a mask, or the reason why not.

    Args:
        source: What was given.
        mask: (H, W) of the upright picture, the class of each pixel: uint8, or uint16 of more
            than 256 classes; None where there was an error.
        areas: The classes that are there, the largest first.
        error: Why there is no mask.
        palette: (classes, 3), uint8.
        max_pixels: Largest height x width of a picture that is drawn over.
    """

    source: Any
    mask: np.ndarray | None
    areas: tuple[ClassArea, ...] = ()
    error: str | None = None
    palette: np.ndarray | None = field(default=None, repr=False)
    max_pixels: int = field(default=MAX_PIXELS, repr=False)

    def overlay(
        self, image: Any = None, opacity: float = 0.6, legend: bool = True, title: str = ""
    ) -> Image.Image:
        """The classes over the picture, with a legend below.

        Args:
            image: The picture; by default `source`.
            opacity: Of the colours, from 0 to 1.
            legend: With names and shares; without, it has the picture's size (or less, above
                16 million pixels).
            title: Of the legend.

        Raises:
            ValueError: There is no mask, or an argument is not allowed.
            ImageError: The picture cannot be read.
        """
        if self.mask is None or self.palette is None:
            raise ValueError(f"there is nothing to draw: {self.error}")
        picture = self.source if image is None else image
        drawn = overlay_of(picture, self.mask, self.palette, opacity, self.max_pixels)
        if not legend:
            return drawn
        count = len(self.areas)
        entries = [Entry(one.index, one.label, one.share, one.colour) for one in self.areas]
        title = title or (f"{count} classes" if count != 1 else "1 class")
        return with_legend(drawn, self.mask, entries, title)


class Segmenter:
    """A segmentation model with its preprocessing, names and colours: pictures in, masks out.

    `Segmenter("upernet.pth")("street.jpg").areas[0].label`

    Each picture goes through the model as mmsegmentation has it (`mode`, `size`, `scales`, `flip`,
    `fit`); its answers are enlarged to the picture's own size, and the best class taken. Memory
    does not grow with classes x pixels: that happens in strips. What goes through the model in
    one piece, a picture or a window, has at most 2048 x 2048 pixels.

    Args:
        weights: A checkpoint of mmsegmentation, a name of `van weights list`, a `.keras` of a
            `VANSegmenter`; an exported file (*.onnx, *.xml, *.tflite or a SavedModel's folder);
            or a Keras model in memory, (N, H, W, C) -> logits (N, h, w, classes).
        labels: Names of the classes, or "ade20k", "cityscapes"; the weights' own by default.
        palette: Colours of the classes, as `segment.labels.palette_of` takes them; the weights'
            own by default.
        preprocessing: Mean and standard deviation, and with `input_size` the shorter side; the
            weights' own by default.
        mode: "whole" or "slide".
        size: Pixels of the shorter side, of which the longer is at most four times as long; "own":
            the picture's own. By default that of the preprocessing, mostly 512.
        crop: Of a window, with `mode` "slide": a side, or (height, width). By default `size`.
        stride: From one window to the next, at most `crop`; by default two thirds of it.
        scales: Times `size`, for each a view, whose probabilities are averaged.
        flip: Each view mirrored as well.
        fit: What makes the sides multiples of 32: "resize" (the authors), "pad" (mmsegmentation
            1.x) or "none".
        batch_size: Windows that go through the model at once.
        workers: Threads that decode; by default one for each core.
        max_pixels: Largest height x width of a picture.

    Attributes:
        name: What reports call the model.
        labels: Of the classes.
        palette: (classes, 3), uint8.
        notes: What a user should know of the weights.
        model: The Keras model; None of an exported file.
        file: Of the weights, if they are in one file.
        way: How pictures go through the model, with everything that was not given filled in.
        workers: As given.
        max_pixels: As given.

    Raises:
        ValueError: There are no such weights, or an argument is not allowed.
        OSError: The weights cannot be downloaded, verified or opened.
    """

    def __init__(
        self,
        weights: str | os.PathLike | keras.Model,
        *,
        labels: Any = None,
        palette: Any = None,
        preprocessing: Preprocessing | None = None,
        mode: str = "whole",
        size: int | str | None = None,
        crop: Any = None,
        stride: Any = None,
        scales: Iterable[float] = (1.0,),
        flip: bool = False,
        fit: str = "resize",
        batch_size: int = 4,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
    ):
        options = SegmenterOptions(
            weights=weights,
            labels=labels,
            palette=palette,
            preprocessing=preprocessing,
            mode=mode,
            size=size,
            crop=crop,
            stride=stride,
            scales=scales,  # type: ignore[arg-type]
            flip=flip,
            fit=fit,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels,
        )  # which checks them
        wanted = Wanted(labels, palette, Preprocessing.of(preprocessing), batch_size)
        opened = open_any(weights, wanted)
        self._opened = opened
        self.name, self.notes, self.model = opened.name, opened.notes, opened.model
        self.file = opened.file
        self.labels: tuple[Label, ...] = opened.labels
        self.palette, self.preprocessing = opened.palette, opened.preprocessing
        self.workers, self.max_pixels = workers, max_pixels
        side = opened.preprocessing.input_size
        if opened.size is not None:  # or the zeros around would be most of its window
            side = max(side, min(opened.size))
        short = None if size == OWN else side if size is None else int(size)
        if opened.size is not None:
            crop, stride = _windows_of_file(opened.size, options, self.name)
        else:
            crop, stride = options.windows(side if short is None else short)
        self.way = Way(
            mode=mode,
            crop=crop,
            stride=stride,
            size=short,
            scales=options.scales,
            flip=bool(flip),
            fit=fit,
            batch_size=batch_size,
            least=opened.size,
        )

    def __call__(self, images: Any) -> Segmentation | list[Segmentation]:
        """Segments one picture or several.

        Args:
            images: A path, the bytes of a picture file, a PIL image, a uint8 array (H, W, 3),
                (H, W) or (H, W, 4); or an iterable of those.

        Returns:
            A `Segmentation`, or of several a list.

        Raises:
            ImageError: A picture cannot be read; names it and the reason.
            OSError: A file cannot be opened.
            ValueError: A picture is too large for the way it is to go through the model, or that
                fails.
        """
        if is_one(images):
            return self.segment(images)
        return [self.segment(one) for one in images]

    def segment(self, source: Any) -> Segmentation:
        """As `__call__`, of one picture; raises what that does."""
        return self._of_pixels(source, self._pixels(source))

    def stream(self, images: Iterable[Any]) -> Iterator[Segmentation]:
        """Exactly one `Segmentation` for each picture, in order; decodes ahead in parallel.

        What goes wrong with a picture is noted in its `error`: it cannot be read, it needs more
        memory than there is, or the model fails on it.

        Args:
            images: As in `__call__`, several; may be endless.
        """
        ahead = 1 + (self.workers or cores())  # a large picture has 150 MB
        for source, pixels in decoded(images, self._pixels, self.workers, ahead):
            if isinstance(pixels, Exception):
                yield Segmentation(source, None, error=reason(pixels))
                continue
            try:
                yield self._of_pixels(source, pixels)
            except (ValueError, MemoryError) as error:  # of its size
                why = "too large for the memory" if isinstance(error, MemoryError) else str(error)
                named = isinstance(source, (str, os.PathLike))
                why = f"{printable(source)}: {why}" if named else why
                yield Segmentation(source, None, error=why)

    def logits(self, source: Any) -> np.ndarray:
        """Logits (H, W, classes) of a picture in its own size; of several views probabilities.

        All of them at once: of 150 classes 600 bytes a pixel.

        Args:
            source: As in `__call__`, one.

        Raises:
            ImageError: It cannot be read.
            OSError: The file cannot be opened.
            ValueError: It is too large for the way it is to go through the model, or that fails.
        """
        maps = self._maps(self._pixels(source))
        return np.ascontiguousarray(maps.part(0, maps.shape[maps.along]))

    def describe(self) -> str:
        """How pictures go through the model, in words."""
        way = self.way
        said = ["whole picture"]
        if way.mode == "slide":
            (height, width), (down, across) = way.crop, way.stride
            said = [f"windows of {width} x {height} every {across} x {down} pixels"]
        size = "its own size" if way.size is None else f"shorter side {way.size}"
        said.append(f"{size}, at most {LONGEST} times as long" if way.size else size)
        if way.scales != (1.0,):
            said.append(f"scales {' '.join(f'{one:g}' for one in way.scales)}")
        if way.flip:
            said.append("mirrored as well")
        fits = {"resize": "resized to", "pad": "zeros added up to"}
        if way.fit in fits:
            said.append(f"{fits[way.fit]} multiples of {way.multiple}")
        return ", ".join(said)

    def _maps(self, pixels: np.ndarray) -> Any:
        return self.way.logits(self._opened.run, pixels, self.preprocessing.normalise)

    def _pixels(self, source: Any) -> np.ndarray:
        """The upright picture, (H, W, C), uint8."""
        image = open_image(source, self.max_pixels)
        pixels = np.asarray(image.convert("L" if self.preprocessing.channels == 1 else "RGB"))
        return pixels.reshape(*pixels.shape[:2], self.preprocessing.channels)

    def _of_pixels(self, source: Any, pixels: np.ndarray) -> Segmentation:
        mask = best_of(self._maps(pixels))
        return Segmentation(
            source,
            mask,
            self.areas_of(mask),
            palette=self.palette,
            max_pixels=self.max_pixels,
        )

    def areas_of(self, mask: np.ndarray) -> tuple[ClassArea, ...]:
        """The classes of a mask, the largest first.

        Args:
            mask: (H, W), numbers of classes.
        """
        counts = areas_of(mask, len(self.labels))
        found = [int(i) for i in np.argsort(-counts, kind="stable") if counts[i]]
        return tuple(
            ClassArea(
                self.labels[i].name,
                i,
                int(counts[i]),
                float(counts[i] / mask.size),
                (int(self.palette[i][0]), int(self.palette[i][1]), int(self.palette[i][2])),
            )
            for i in found
        )


def _windows_of_file(
    size: tuple[int, int], options: SegmenterOptions, name: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """Windows for what takes one size only: an exported file, or a Keras model.

    Raises:
        ValueError: Others are asked for.
    """
    height, width = size
    if options.mode != "slide":
        raise ValueError(
            f"`mode` must be slide for {name}, which takes windows of {width} x {height} "
            f"pixels only. Received: mode={options.mode!r}"
        )
    if options.crop is None:
        options = replace(options, crop=size)
    found = options.windows(0)
    if found[0] != size:
        raise ValueError(
            f"`crop` must be {size} for {name}, or left out. Received: crop={options.crop}"
        )
    return found
