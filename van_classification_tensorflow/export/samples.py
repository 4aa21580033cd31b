"""Real pictures: int8 is calibrated on some, and every export is compared on others."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from ..datasets.digits import load_digits
from ..datasets.labelled import open_dataset
from ..images.decode import ImageError, open_image
from ..images.find import LeftOut, pictures_in
from ..images.parallel import decoded
from ..spec.labels import labels_of
from ..spec.scores import classes_of
from ..support.console import pictures_bar, say, say_failures
from ..support.text import printable
from .source import Source

CALIBRATION = 256  # pictures, at most
COMPARISON = 512  # pictures, at most, none of them of the calibration


@dataclass(frozen=True)
class Samples:
    """Crops, uint8 (N, side, side, C), and the class of each, or why it is not known."""

    data: str
    calibration: np.ndarray
    comparison: np.ndarray
    classes: np.ndarray | None
    no_classes: str


def take_samples(data: Any, source: Source, calibrate: bool, console: Console) -> Samples:
    """Real pictures, cropped as the model wants them; those of the calibration apart."""
    sources, classes, why_not = list_pictures(data, source, console)
    if data is None or data == "digits":
        train = [_as_picture(p) for p in load_digits()[0].pixels[:CALIBRATION]] if calibrate else []
    else:
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(sources))
        share = min(CALIBRATION, len(sources) // 2) if calibrate else 0
        train = [sources[i] for i in order[:share]]
        kept = order[share:]
        sources = [sources[i] for i in kept]
        classes = None if classes is None else [classes[i] for i in kept]
    sources = sources[:COMPARISON]
    if not sources or (calibrate and not train):
        raise ValueError(f"`data` must have pictures, for int8 at least 2. Received: data={data}")

    unreadable: list[str] = []

    def crop(one: Any) -> np.ndarray:
        return source.preprocessing.crop(open_image(one))

    with pictures_bar(console) as bar:
        task = bar.add_task("pictures", total=len(train) + len(sources), rate="")

        def crops(of: list[Any]) -> Iterator[tuple[int, np.ndarray]]:
            for i, (_, made) in enumerate(decoded(of, crop)):
                bar.advance(task)
                if isinstance(made, np.ndarray):
                    yield i, made
                elif isinstance(made, ImageError):
                    unreadable.append(str(made))
                else:
                    raise made

        calibration = [made for _, made in crops(train)]
        readable = list(crops(sources))
    if unreadable:
        say_failures(console, f"{len(unreadable):,} cannot be read and are left out", unreadable)
    if not readable or (calibrate and not calibration):
        raise ValueError(f"`data` must have pictures that can be read. Received: data={data}")
    bundled = data is None or data == "digits"
    return Samples(
        "the bundled digits" if bundled else printable(data),
        np.stack(calibration) if calibration else np.empty(0, np.uint8),
        np.stack([made for _, made in readable]),
        None if classes is None else np.array([classes[i] for i, _ in readable]),
        why_not,
    )


def check_data(data: Any) -> None:
    if data is None or data == "digits":
        return
    if not os.path.isdir(data):
        raise FileNotFoundError(
            f"`data` must be a folder of pictures, or digits. Received: data={printable(data)}"
        )
    if next(pictures_in(os.fspath(data), LeftOut()), None) is None:
        raise ValueError(f"`data` must have pictures. Received: data={printable(data)}")


def list_pictures(
    data: Any, source: Source, console: Console
) -> tuple[list[Any], list[int] | None, str]:
    """Pictures, and the class of each where all have one; else why not, where it was asked for."""
    why_not = ""
    if data is not None and source.sizes.num_classes is None:
        why_not = "features have no classes"
    elif data is not None:
        labels = labels_of(source.card.labels, source.sizes.num_classes or 0)
        try:
            left_out = LeftOut()
            named = open_dataset(data, classes_of(labels), left_out=left_out)
        except ValueError as error:  # pictures without classes will do, or with classes of others
            why_not = str(error)
            if "`class_map`" in why_not:
                why_not += "; `van evaluate` takes one, and the exported file"
        else:
            if left_out:
                say(console, str(left_out))
            examples = list(named.examples)
            return [e.source for e in examples], [e.classes[0] for e in examples], ""
    if data is None or data == "digits":
        return [_as_picture(pixels) for pixels in load_digits()[1].pixels], None, why_not
    left_out = LeftOut()
    sources = list(pictures_in(os.fspath(data), left_out))
    if left_out:
        say(console, str(left_out))
    return sources, None, why_not


def _as_picture(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255
