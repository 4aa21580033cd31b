"""Real pictures without labels, which int8 takes the ranges of its numbers from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..images.decode import MAX_PIXELS, open_image
from ..images.find import LeftOut, pictures_in
from ..images.parallel import decoded
from ..spec.preprocessing import Preprocessing
from ..support.text import printable
from .digits import load_digits

CALIBRATION = 256  # pictures, at most
_TRIED = 4  # times as many are opened, where some cannot be read
_FEW = 100


@dataclass(frozen=True)
class Calibration:
    """Pictures, cropped as a model wants them.

    Args:
        data: Whose they are, in words.
        crops: uint8 (N, side, side, C).
        preprocessing: Of the model.
        unreadable: How many could not be read.
    """

    data: str
    crops: np.ndarray
    preprocessing: Preprocessing
    unreadable: int = 0

    def __str__(self) -> str:
        count = len(self.crops)
        text = f"{count:,} picture{'' if count == 1 else 's'} of {self.data}"
        notes = [f"{self.unreadable:,} cannot be read"] if self.unreadable else []
        if count < _FEW:
            notes.append("so few say little")
        return f"{text} ({', '.join(notes)})" if notes else text

    def prepared(self, crops: np.ndarray) -> np.ndarray:
        """Some of them as the model takes them: normalised, float32."""
        return self.preprocessing.normalise(crops)

    def one_by_one(self) -> Iterator[np.ndarray]:
        """Each as the model takes it, (1, side, side, C)."""
        return (self.prepared(self.crops[i : i + 1]) for i in range(len(self.crops)))

    @property
    def digest(self) -> str:
        """SHA-256 of the pictures: that of others is another."""
        return hashlib.sha256(np.ascontiguousarray(self.crops)).hexdigest()


def calibration_of(
    data: Any,
    preprocessing: Preprocessing,
    workers: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> Calibration:
    """At most `CALIBRATION` pictures of a folder, drawn at random but always the same ones.

    Args:
        data: A folder of pictures at any depth, or "digits": the bundled training digits.
        preprocessing: Crops them.
        workers: Threads that decode.
        max_pixels: Largest height x width of a picture.

    Raises:
        ValueError: None can be read.
    """
    if is_bundled(data):
        sources = digits(train=True)[:CALIBRATION]
    else:
        every = list(pictures_in(os.fspath(data), LeftOut()))
        sources = [every[i] for i in shuffled(len(every))[: _TRIED * CALIBRATION]]
    crops: list[np.ndarray] = []
    unreadable: list[Exception] = []
    while sources and len(crops) < CALIBRATION:
        asked = sources[: CALIBRATION - len(crops)]
        sources = sources[len(asked) :]
        found, failed = cropped(
            asked, lambda one: preprocessing.crop(open_image(one, max_pixels)), workers
        )
        crops += [crop for _, crop in found]
        unreadable += failed
    if not crops:
        raise ValueError(
            "`calibration` must have pictures that can be read. Received: calibration="
            f"{printable(data)}, of which none can, the first because of: {unreadable[0]}"
        )
    return Calibration(name_of(data), np.stack(crops), preprocessing, len(unreadable))


def check_pictures(data: Any, argument: str) -> None:
    """Raises what is wrong with `argument`, which must be "digits" or a folder with pictures.

    Raises:
        FileNotFoundError: It is no folder.
        ValueError: It has no pictures.
    """
    if is_bundled(data):
        return
    if not os.path.isdir(data):
        raise FileNotFoundError(
            f"`{argument}` must be a folder of pictures, or digits. Received: "
            f"{argument}={printable(data)}"
        )
    if next(pictures_in(os.fspath(data), LeftOut()), None) is None:
        raise ValueError(f"`{argument}` must have pictures. Received: {argument}={printable(data)}")


def is_bundled(data: Any) -> bool:
    """Whether it stands for the bundled digits."""
    return data is None or data == "digits"


def name_of(data: Any) -> str:
    """What reports call it."""
    return "the bundled digits" if is_bundled(data) else printable(data)


def digits(train: bool) -> list[np.ndarray]:
    """The bundled digits as pictures, uint8 (8, 8)."""
    pixels = load_digits()[0 if train else 1].pixels
    return [np.round(one * (255 / 16)).astype(np.uint8) for one in pixels]  # 0..16 -> 0..255


def shuffled(count: int) -> np.ndarray:
    """The numbers below `count`, in an order that is always the same."""
    return np.random.Generator(np.random.PCG64(0)).permutation(count)


def cropped(
    sources: Sequence[Any],
    crop: Callable[[Any], np.ndarray],
    workers: int | None = None,
    advance: Callable[[], Any] = lambda: None,
) -> tuple[list[tuple[int, np.ndarray]], list[Exception]]:
    """([(which source, its crop)] of those that can be read, why the others cannot)."""
    found, unreadable = [], []
    for i, (_, made) in enumerate(decoded(sources, crop, workers)):
        advance()
        if isinstance(made, np.ndarray):
            found.append((i, made))
        else:
            unreadable.append(made)
    return found, unreadable
