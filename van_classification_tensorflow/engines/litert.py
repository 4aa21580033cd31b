"""LiteRT's files, by its interpreter."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from ..spec.card import LITERT_METADATA, MAX_METADATA
from ..support.extras import missing
from .protocol import Loaded, Spec


def load(path: Path, threads: int | None) -> Loaded:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise missing("this file", "ai-edge-litert", "litert", error) from error
    metadata = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if LITERT_METADATA in archive.namelist():
                with archive.open(LITERT_METADATA) as file:
                    metadata = file.read(MAX_METADATA + 1).decode()
    interpreter = Interpreter(os.fspath(path), num_threads=threads)
    interpreter.allocate_tensors()

    def spec(tensor: dict[str, Any]) -> Spec:
        return tensor["shape_signature"].tolist(), np.dtype(tensor["dtype"]).name

    def run(images: np.ndarray) -> np.ndarray:
        (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
        if tuple(given["shape"]) != images.shape:
            interpreter.resize_tensor_input(given["index"], images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(taken["index"])

    return Loaded(
        metadata,
        [spec(one) for one in interpreter.get_input_details()],
        [spec(one) for one in interpreter.get_output_details()],
        run,
    )
