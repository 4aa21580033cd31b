"""What `Segmenter` is given, opened: weights, a Keras file or model, or an exported file."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.keras import filled
from ..spec.labels import Label
from ..spec.preprocessing import NOT_SAID, Preprocessing
from ..spec.segment_card import MOST_CLASSES
from ..support.text import one_line, printable, shown
from ..weights.address import address_of
from ..weights.catalogue import OF_SEGMENTERS
from .checkpoint import open_segmenter
from .exported import open_exported
from .labels import labels_of, palette_of, set_of
from .pixels import Size
from .windows import Model

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Opened:
    """A model of any kind that gives a class for every pixel.

    Args:
        name: What reports call it.
        run: (N, H, W, C), normalised, float32 -> logits (N, h, w, classes).
        labels: Of the classes.
        palette: (classes, 3), uint8.
        preprocessing: Of the pictures: mean, standard deviation, and the shorter side.
        notes: What a user should know.
        model: The Keras model, if it is one.
        file: Of the weights, if they are in one file.
        size: Height and width that it takes; None: any.
    """

    name: str
    run: Model
    labels: tuple[Label, ...]
    palette: np.ndarray
    preprocessing: Preprocessing
    notes: str = ""
    model: keras.Model | None = None
    file: Path | None = None
    size: Size | None = None


@dataclass(frozen=True)
class Wanted:
    """What the caller says instead of the weights; None: theirs."""

    labels: Any = None
    palette: Any = None
    preprocessing: Preprocessing | None = None
    batch_size: int = 1

    def describe(
        self,
        name: str,
        run: Model,
        outputs: int | None,
        channels: int,
        said: Any,
        notes: list[str],
        model: keras.Model | None = None,
    ) -> Opened:
        """An `Opened` of what is said of a model, and what is wanted of it.

        Args:
            name: Of the model.
            run: Of `Opened`; of a single output as it is.
            outputs: Maps that it gives; None where it does not say.
            channels: Of its pictures.
            said: Has its own `labels`, `palette` and `preprocessing`, each perhaps None.
            notes: What a user should know so far.
            model: Of `Opened`.

        Raises:
            ValueError: Something does not go with the model.
        """
        if outputs is None or not 1 <= outputs <= MOST_CLASSES:
            raise ValueError(f"{name} gives {shown(outputs)} maps; allowed: 1 to {MOST_CLASSES:,}")
        classes = max(outputs, 2)
        if outputs == 1:  # the logit of the second of two classes
            run = _of_two(run)
        labels, palette = self.labels, self.palette
        if labels is None:
            labels = getattr(said, "labels", None)
            if labels is not None and outputs == 1 and len(labels) == 1:
                labels = ("background", *labels)
        if labels is None:
            labels = set_of(classes)
            assumed = f"those of {labels}" if labels else "'class 0', 'class 1', ..."
            notes = [*notes, f"It names no classes: {assumed} are assumed."]
        if palette is None:
            palette = getattr(said, "palette", None)
            palette = None if palette is None or len(palette) != classes else palette
        preprocessing = self.preprocessing or getattr(said, "preprocessing", None)
        if preprocessing is None:
            preprocessing, notes = OF_SEGMENTERS, [*notes, NOT_SAID_HERE]
        if preprocessing.channels != channels:
            raise ValueError(
                f"`preprocessing` must make {channels} channels for {name}. Received: "
                f"{preprocessing.channels}"
            )
        return Opened(
            name,
            run,
            labels_of(labels, classes),
            palette_of(palette, classes),
            preprocessing,
            " ".join(notes),
            model,
        )


NOT_SAID_HERE = NOT_SAID.replace("the published ImageNet-1k weights", "the published segmentations")


def _of_two(run: Model) -> Model:
    def both(images: np.ndarray) -> np.ndarray:
        logits = run(images)
        return np.concatenate([np.zeros_like(logits), logits], axis=-1)

    return both


def open_any(weights: Any, wanted: Wanted) -> Opened:
    """Opens whatever `Segmenter` takes.

    Raises:
        ValueError: It is nothing of that, or does not go with what is wanted.
        OSError: The weights cannot be downloaded, verified or opened.
    """
    known = sys.modules.get("keras")  # where there is a model, it is there
    if known is not None and isinstance(weights, known.Model):
        return _of_model(weights, weights.name, wanted, [])
    address = address_of(weights)
    if address.kind == "other":
        raise ValueError(
            "`weights` must be a name, a path or a Keras model of a segmentation. "
            f"Received: {type(weights).__name__}"
        )
    if address.kind == "exported":
        return _of_exported(weights, wanted)
    source = open_segmenter(weights, argument="weights")
    assert source is not None  # noqa: S101 - None is no address
    from .model import VANSegmenter  # which starts Keras

    model = VANSegmenter(pretrained=source, data_format="channels_last", dtype="float32")
    opened = _of_model(model, printable(source.name), wanted, list(source.notes))
    return replace(opened, file=source.source.path)


def _of_exported(path: Any, wanted: Wanted) -> Opened:
    found = open_exported(path)
    name = printable(found.path)
    if found.card is not None:
        name = f"{found.card.name} ({name})"
    opened = wanted.describe(name, found, found.classes, found.channels, found.card, [])
    one_file = found.path.is_file() and found.path.suffix != ".xml"  # that has weights beside it
    file = found.path if one_file else None
    return replace(opened, file=file, size=found.size)


def _of_model(model: keras.Model, name: str, wanted: Wanted, notes: list[str]) -> Opened:
    """A `VANSegmenter`, or any Keras model from pictures to maps of logits."""
    first = getattr(model, "data_format", None) == "channels_first"
    axis = 1 if first else -1
    # A second output is an auxiliary head's, for training.
    inputs, outputs = list(model.inputs or ()), list(model.outputs or ())[:1]
    if len(inputs) != 1 or [len(one.shape) for one in (*inputs, *outputs)] != [4, 4]:
        raise ValueError(
            f"`weights` must give a map for each class, (N, H, W, C) -> (N, h, w, classes); "
            f"{name} does not"
        )

    def run(images: np.ndarray) -> np.ndarray:
        count = len(images)
        images = filled(images, wanted.batch_size)
        try:
            found = model.predict_on_batch(np.moveaxis(images, -1, 1) if first else images)
        except Exception as error:  # each backend has its own kinds
            size = f"{images.shape[2]} x {images.shape[1]}"
            raise ValueError(
                f"{name} does not run on {len(images)} of {size} pixels (a smaller `batch_size` or "
                f"`crop` needs less memory): {one_line(error)}"
            ) from error
        found = found[0] if isinstance(found, (list, tuple)) else found
        maps = np.asarray(found)[:count].astype(np.float32, copy=False)
        return np.moveaxis(maps, 1, -1) if first else maps

    height, width = inputs[0].shape[2:] if first else inputs[0].shape[1:3]
    opened = wanted.describe(
        name, run, outputs[0].shape[axis], inputs[0].shape[axis], model, notes, model
    )
    fixed = None if height is None or width is None else (height, width)
    return replace(opened, size=fixed)
