"""TensorFlow's SavedModels, by TensorFlow."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from ..spec.card import MAX_METADATA, SAVED_MODEL_METADATA
from ..support.quiet import without_warnings
from .protocol import Loaded, Spec


def load(path: Path, threads: int | None) -> Loaded:
    import tensorflow as tf

    metadata = None
    if (path / SAVED_MODEL_METADATA).is_file():
        with (path / SAVED_MODEL_METADATA).open("rb") as file:
            metadata = file.read(MAX_METADATA + 1).decode()
    if threads is not None:
        with suppress(RuntimeError):  # TensorFlow has started: it keeps what it has
            tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    with without_warnings():  # of the gradients, which it has been written without
        model = tf.saved_model.load(os.fspath(path))
    if "serving_default" not in model.signatures:
        raise ValueError("it has no signature serving_default")
    signature = model.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]

    def spec(tensor: Any) -> Spec:
        known = tensor.shape.rank is not None
        return tensor.shape.as_list() if known else None, tensor.dtype.name

    def run(images: np.ndarray, model: Any = model) -> np.ndarray:  # which owns the variables
        (given,) = signature(**{next(iter(inputs)): tf.constant(images)}).values()
        return given.numpy()

    return Loaded(
        metadata,
        [spec(one) for one in inputs.values()],
        [spec(one) for one in signature.structured_outputs.values()],
        run,
    )
