"""Exported files, run: ONNX, OpenVINO, LiteRT and TensorFlow's SavedModel behind one call.

A runtime is imported when a file of its format is opened; Keras never.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from ..spec.card import (
    INPUTS,
    MAX_WIDTH,
    About,
)
from ..support.checks import is_whole
from ..support.files import open_regular
from ..support.text import one_line, printable
from ..weights.address import address_of
from . import litert, onnx, openvino, saved_model
from .protocol import Loaded

MAX_INPUT = 2**29  # numbers in one batch


@dataclass(frozen=True)
class Runtime:
    """An exported file, ready to run; threads take turns where its runtime needs that.

    Args:
        path: The file, or SavedModel's folder.
        format: As of an `Address`.
        about: What the file says of itself; None where it is not of this package.
        batch_size: Images it takes at once; None: any number.
        image_size: (height, width) in pixels; None: any.
        channels: Of its images.
        dtype: Of its images, float32 or uint8.
        outputs: Length of what it gives for an image.
    """

    path: Path
    format: str
    about: About | None
    batch_size: int | None
    image_size: tuple[int, int] | None
    channels: int
    dtype: np.dtype
    outputs: int
    _run: Callable[[np.ndarray], Any] = field(repr=False)
    _lock: Any = field(default_factory=threading.Lock, repr=False)

    def __call__(self, images: np.ndarray, features: bool = False) -> np.ndarray:
        """Runs the model.

        Args:
            images: (N, H, W, C) of `dtype`: normalised in float32, or 0 to 255 in uint8. Where
                the file has a fixed batch they go through it batch by batch, the last one filled
                up.
            features: Of an `Engine`; what the file gives was decided when it was written.

        Returns:
            (N, `outputs`), float32, a copy.

        Raises:
            ValueError: They are not of the shape or the dtype that the file takes, or it does
                not run.
        """
        expected = (
            *images.shape[:1],
            *(self.image_size or images.shape[1:3]),
            self.channels,
        )
        if images.dtype != self.dtype or images.shape != expected:
            sides = ", ".join(map(str, self.image_size or ("height", "width")))
            raise ValueError(
                f"`images` must be {self.dtype} (N, {sides}, {self.channels}). "
                f"Received: {images.dtype} {images.shape}"
            )
        found: np.ndarray = np.empty((len(images), self.outputs), np.float32)
        size = self.batch_size or max(len(images), 1)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            if self.batch_size is not None and len(batch) < size:
                # With a copy: what lies within the range of the batch disturbs no quantisation.
                batch = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            try:
                with self._lock:  # what a runtime gives may be its own memory
                    given = np.array(self._run(np.ascontiguousarray(batch)))
            except Exception as error:  # each runtime has its own kinds
                raise ValueError(
                    f"{printable(self.path)} does not run: {one_line(error)}"
                ) from error
            if given.shape != (len(batch), self.outputs):
                raise ValueError(
                    f"{printable(self.path)} gave {given.shape} for {len(batch)} images; it "
                    f"promised {(len(batch), self.outputs)}"
                )
            found[start : start + size] = given[: len(images) - start]
        return found


def open_runtime(path: str | os.PathLike, threads: int | None = None) -> Runtime:
    """Opens an exported file with the runtime of its format.

    A SavedModel is a TensorFlow program, whose operations can read and write files: open only
    what you trust.

    Args:
        path: *.onnx, *.xml (OpenVINO, with its *.bin beside it), *.tflite, or the folder of a
            SavedModel. Its image is (batch, height, width, channels), float32 or uint8.
        threads: CPU threads of one inference; by default the runtime's choice. TensorFlow takes
            it only before it has started, and then for all it does.

    Raises:
        ValueError: It is no exported file, damaged, or not a model of one image and one output.
        OSError: It is not there or cannot be read.
        ModuleNotFoundError: The runtime is not installed; says what to install.
    """
    if threads is not None and (not is_whole(threads) or threads < 1):
        raise ValueError(f"`threads` must be an integer >= 1, or None. Received: threads={threads}")
    kind = address_of(path).format
    if kind is None:
        raise ValueError(
            "`path` must end in .onnx, .xml or .tflite, or be the folder of a SavedModel. "
            f"Received: path={os.fspath(path)!r}"
        )
    folder = kind == "saved_model"
    file = Path(path) / "saved_model.pb" if folder else Path(path)
    try:  # a better word than the engines have for what is missing or forbidden
        open_regular(file).close()
    except ValueError as error:
        raise ValueError(f"{printable(file)}: {error}") from None
    try:
        loaded = _ENGINES[kind].load(Path(path), threads)
        about = None if loaded.metadata is None else About.from_json(loaded.metadata)
        batch_size, image_size, channels, dtype, outputs = _tensors(loaded)
        if about is not None:
            _check_same(about, image_size, channels, dtype, outputs)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each runtime has its own kinds, and a file may cause any
        raise ValueError(f"{printable(path)} was refused: {one_line(error)}") from error
    return Runtime(
        path=Path(path),
        format=kind,
        about=about,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        dtype=np.dtype(dtype),
        outputs=outputs,
        _run=loaded.run,
        _lock=nullcontext() if loaded.shared else threading.Lock(),
    )


def _tensors(loaded: Loaded) -> tuple[int | None, tuple[int, int] | None, int, str, int]:
    """Batch, (height, width), channels, dtype and outputs, of the one input and the one output."""
    if len(loaded.inputs) != 1 or len(loaded.outputs) != 1:
        raise ValueError(
            f"it has {len(loaded.inputs)} inputs and {len(loaded.outputs)} outputs; a model that "
            "`van export` writes has one of each"
        )
    shapes: list[list[int | None]] = []
    for what, axes, dtypes, (shape, dtype) in (
        ("input", 4, INPUTS, loaded.inputs[0]),
        ("output", 2, ("float32",), loaded.outputs[0]),
    ):
        if shape is None or len(shape) != axes:
            raise ValueError(f"its {what} has the shape {shape}; expected {axes} axes")
        if dtype not in dtypes:
            raise ValueError(f"its {what} is {dtype}; expected {' or '.join(dtypes)}")
        # Runtimes write an unknown size as None, as -1 or as a name.
        shapes.append([n if isinstance(n, int) and n >= 0 else None for n in shape])
    (batch, height, width, channels), (results, outputs) = shapes
    if channels is None or outputs is None or 0 in (batch, height, width, channels, outputs):
        raise ValueError(
            f"its input {shapes[0]} and its output {shapes[1]} must have a known number of "
            "channels, and no axis without entries"
        )
    if results not in (batch, None):
        raise ValueError(f"its input is {shapes[0]} and its output {shapes[1]}: not one for each")
    if (height is None) != (width is None):
        raise ValueError(f"its input is {shapes[0]}; expected height and width, or neither")
    if prod(n or 1 for n in shapes[0]) > MAX_INPUT or outputs > MAX_WIDTH:
        raise ValueError(f"its input is {shapes[0]} and its output {shapes[1]}: too large")
    size = None if height is None or width is None else (height, width)
    return batch, size, channels, loaded.inputs[0][1], outputs


def _check_same(
    about: About, image_size: tuple[int, int] | None, channels: int, dtype: str, outputs: int
) -> None:
    sizes = about.architecture
    promised = sizes.embed_dims[-1] if about.output == "features" else sizes.num_classes
    if (about.input, sizes.in_chans, promised) != (dtype, channels, outputs):
        raise ValueError(
            f"it takes {channels} channels of {dtype} and gives {outputs:,} outputs; its metadata "
            f"says {sizes.in_chans} of {about.input} and {promised} {about.output}"
        )
    side = about.preprocessing and about.preprocessing.input_size
    if side and image_size and image_size != (side, side):
        raise ValueError(f"it takes {image_size} pixels; its metadata says ({side}, {side})")


_ENGINES = {
    "onnx": onnx,
    "openvino": openvino,
    "litert": litert,
    "saved_model": saved_model,
}
