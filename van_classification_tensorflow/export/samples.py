"""Real pictures: int8 is calibrated on some, and every export is compared on others."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

import numpy as np
from rich.console import Console

from ..datasets.calibration import CALIBRATION, cropped, digits, is_bundled, name_of, shuffled
from ..datasets.labelled import open_dataset
from ..images.decode import ImageError, open_image
from ..images.find import LeftOut, pictures_in
from ..spec.labels import labels_of
from ..spec.scores import classes_of
from ..support.console import pictures_bar, say, say_failures
from .source import Source

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
    if is_bundled(data):
        train = digits(train=True)[:CALIBRATION] if calibrate else []
    else:
        order = shuffled(len(sources))
        share = min(CALIBRATION, len(sources) // 2) if calibrate else 0
        train = [sources[i] for i in order[:share]]
        kept = order[share:]
        sources = [sources[i] for i in kept]
        classes = None if classes is None else [classes[i] for i in kept]
    sources = sources[:COMPARISON]
    if not sources or (calibrate and not train):
        raise ValueError(f"`data` must have pictures, for int8 at least 2. Received: data={data}")

    def crop(one: Any) -> np.ndarray:
        return source.preprocessing.crop(open_image(one))

    with pictures_bar(console) as bar:
        task = bar.add_task("pictures", total=len(train) + len(sources), rate="")
        calibration, not_read = cropped(train, crop, advance=lambda: bar.advance(task))
        readable, nor_these = cropped(sources, crop, advance=lambda: bar.advance(task))
    if unreadable := not_read + nor_these:
        for error in unreadable:
            if not isinstance(error, ImageError):  # a file that is not there, or is forbidden
                raise error
        what = f"{len(unreadable):,} cannot be read and are left out"
        say_failures(console, what, [str(error) for error in unreadable])
    if not readable or (calibrate and not calibration):
        raise ValueError(f"`data` must have pictures that can be read. Received: data={data}")
    return Samples(
        name_of(data),
        np.stack([made for _, made in calibration]) if calibration else np.empty(0, np.uint8),
        np.stack([made for _, made in readable]),
        None if classes is None else np.array([classes[i] for i, _ in readable]),
        why_not,
    )


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
    if is_bundled(data):
        return [*digits(train=False)], None, why_not
    left_out = LeftOut()
    sources = list(pictures_in(os.fspath(data), left_out))
    if left_out:
        say(console, str(left_out))
    return sources, None, why_not
