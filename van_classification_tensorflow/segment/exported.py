"""Exported segmenters, run by the runtime of their format."""

from __future__ import annotations

import os
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np

from ..engines import litert, onnx, openvino, saved_model
from ..engines.protocol import Loaded
from ..spec.segment_card import MOST_CLASSES, SegmentCard
from ..support.files import open_regular
from ..support.text import one_line, printable
from ..weights.address import address_of
from .pixels import Size

_ENGINES = {"onnx": onnx, "openvino": openvino, "litert": litert, "saved_model": saved_model}
_MOST_INPUT = 2**29  # numbers in one batch


@dataclass(frozen=True)
class Exported:
    """An exported segmenter, ready to run.

    Args:
        path: The file, or SavedModel's folder.
        card: What it says of itself; None where it is not of this package.
        size: Height and width that it takes; None: any.
        batch_size: Pictures at once; None: any number.
        channels: Of its pictures.
        classes: Maps that it gives.
        loaded: What runs it.
    """

    path: Path
    card: SegmentCard | None
    size: Size | None
    batch_size: int | None
    channels: int
    classes: int
    loaded: Loaded

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """(N, H, W, C), normalised, float32 -> logits (N, h, w, classes).

        Raises:
            ValueError: It does not run, or gives something else.
        """
        found, step = [], self.batch_size or max(len(images), 1)
        for start in range(0, len(images), step):
            batch = images[start : start + step]
            missing = (self.batch_size or len(batch)) - len(batch)
            given = np.concatenate([batch, np.repeat(batch[-1:], missing, axis=0)])
            try:
                maps = np.array(self.loaded.run(np.ascontiguousarray(given)), np.float32)
            except Exception as error:  # each runtime has its own kinds
                raise ValueError(
                    f"{printable(self.path)} does not run: {one_line(error)}"
                ) from error
            if maps.ndim != 4 or (len(maps), maps.shape[-1]) != (len(given), self.classes):
                raise ValueError(
                    f"{printable(self.path)} gave {maps.shape} for {len(given)} pictures; it "
                    f"promised maps of {self.classes} classes"
                )
            found.append(maps[: len(batch)])
        return np.concatenate(found)


def open_exported(path: str | os.PathLike) -> Exported:
    """Opens an exported segmenter with the runtime of its format.

    A SavedModel is a TensorFlow program, whose operations can read and write files: open only
    what you trust.

    Args:
        path: *.onnx, *.xml, *.tflite or the folder of a SavedModel, (N, H, W, C) float32 -> (N, h,
            w, classes).

    Raises:
        ValueError: It is no such file, damaged, or a model of something else.
        OSError: It is not there or cannot be read.
        ModuleNotFoundError: The runtime is not installed; says what to install.
    """
    kind = address_of(path).format
    if kind not in _ENGINES:
        raise ValueError(
            "`weights` of an exported segmenter must end in .onnx, .xml or .tflite, or be the "
            f"folder of a SavedModel. Received: {printable(path)}"
        )
    file = Path(path) / "saved_model.pb" if kind == "saved_model" else Path(path)
    try:
        open_regular(file).close()
    except ValueError as error:
        raise ValueError(f"{printable(file)}: {error}") from None
    try:
        loaded = _ENGINES[kind].load(Path(path), None)
        card = None if loaded.metadata is None else SegmentCard.from_json(loaded.metadata)
        batch_size, size, channels, classes = _tensors(loaded)
        if card is not None and card.classes != classes:
            raise ValueError(f"it gives {classes} maps; its metadata says {card.classes}")
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each runtime has its own kinds, and a file may cause any
        raise ValueError(f"{printable(path)} was refused: {one_line(error)}") from error
    return Exported(Path(path), card, size, batch_size, channels, classes, loaded)


def _tensors(loaded: Loaded) -> tuple[int | None, Size | None, int, int]:
    """Batch, (height, width), channels and classes, of the one input and the one output."""
    if len(loaded.inputs) != 1 or len(loaded.outputs) != 1:
        raise ValueError(f"it has {len(loaded.inputs)} inputs and {len(loaded.outputs)} outputs")
    shapes: list[list[int | None]] = []
    for what, (shape, dtype) in (("input", loaded.inputs[0]), ("output", loaded.outputs[0])):
        if shape is None or len(shape) != 4 or dtype != "float32":
            raise ValueError(f"its {what} is {dtype} {shape}; expected float32 with 4 axes")
        shapes.append([n if isinstance(n, int) and n >= 0 else None for n in shape])
    (batch, height, width, channels), (*_, classes) = shapes
    if channels is None or classes is None or 0 in (batch, height, width, channels, classes):
        raise ValueError(
            f"its input {shapes[0]} and its output {shapes[1]} must have a known number of "
            "channels and classes, and no axis without entries"
        )
    if (height is None) != (width is None):
        raise ValueError(f"its input is {shapes[0]}; expected height and width, or neither")
    if prod(n or 1 for n in shapes[0]) > _MOST_INPUT or classes > MOST_CLASSES:
        raise ValueError(f"its input is {shapes[0]} and its output {shapes[1]}: too large")
    return batch, None if height is None or width is None else (height, width), channels, classes
