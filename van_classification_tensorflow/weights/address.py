"""What a word for weights is: a name of the catalogue, a file of weights, or an exported file."""

from __future__ import annotations

import os
from typing import Any

from .catalogue import KNOWN_NAMES

_ENDINGS = {".onnx": "onnx", ".xml": "openvino", ".tflite": "litert"}


def format_of(path: Any) -> str | None:
    """Format of an exported file, by its name; None: it is none of them.

    Args:
        path: Any value that may name weights. Names of the catalogue win over a folder of that
            name, as everywhere; it can be written ./van_b0.

    Returns:
        "onnx", "openvino", "litert", "saved_model" (a folder with a `saved_model.pb`) or None.
    """
    if not isinstance(path, (str, os.PathLike)):
        return None
    if isinstance(path, str) and path in KNOWN_NAMES:
        return None
    name = os.fsdecode(path).rstrip("/" + os.sep)  # which changes nothing
    if os.path.isfile(os.path.join(name, "saved_model.pb")):
        return "saved_model"
    return _ENDINGS.get(os.path.splitext(name)[1].lower())


# Endings of weight files: a text that ends so is a path, there or not.
_SUFFIXES = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors", ".h5", ".keras", ".index.json")


def names_a_path(weights: Any) -> bool:
    """Whether `weights` means a file or folder, there or not, and no name of the catalogue.

    What `find` knows wins over a file or folder of that name, which can be written ./imagenet.
    """
    if not isinstance(weights, str):
        return isinstance(weights, os.PathLike)
    if weights in KNOWN_NAMES:
        return False
    named_so = "/" in weights or os.sep in weights or weights.lower().endswith(_SUFFIXES)
    return named_so or os.path.exists(weights)


def without_slash(path: str | os.PathLike) -> str:
    """The path without a slash at its end, which changes nothing."""
    text = os.fspath(path)
    return text.rstrip("/" + os.sep) or text
