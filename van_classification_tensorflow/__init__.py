"""Visual Attention Network (arXiv 2202.09741) for Keras 3.

Names are imported on first use, so that `import van_classification_tensorflow` and
`van --help` start neither Keras nor a backend.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from .registration import register as _register

__version__ = "2.0.0.dev0"

_HOME = {
    "Classifier": "classifier",
    "Preprocessing": "preprocessing",
    "PreprocessingLayer": "preprocessing_layer",
    "VAN": "model",
    "VANB0": "applications",
    "VANB1": "applications",
    "VANB2": "applications",
    "VANB3": "applications",
    "VANB4": "applications",
    "VANB5": "applications",
    "VANB6": "applications",
    "decode_predictions": "applications",
    "fuse": "fusion",
    "load_checkpoint": "load",
    "preprocess_input": "applications",
}

__all__ = [
    "VAN",
    "VANB0",
    "VANB1",
    "VANB2",
    "VANB3",
    "VANB4",
    "VANB5",
    "VANB6",
    "Classifier",
    "Preprocessing",
    "PreprocessingLayer",
    "__version__",
    "decode_predictions",
    "fuse",
    "load_checkpoint",
    "preprocess_input",
]

_register()

if TYPE_CHECKING:
    from .applications import (
        VANB0,
        VANB1,
        VANB2,
        VANB3,
        VANB4,
        VANB5,
        VANB6,
        decode_predictions,
        preprocess_input,
    )
    from .classifier import Classifier
    from .fusion import fuse
    from .load import load_checkpoint
    from .model import VAN
    from .preprocessing import Preprocessing
    from .preprocessing_layer import PreprocessingLayer


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
