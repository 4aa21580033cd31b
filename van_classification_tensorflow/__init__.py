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
    "Classifier": "inference.classifier",
    "Preprocessing": "spec.preprocessing",
    "PreprocessingLayer": "model.preprocessing_layer",
    "VAN": "model.van",
    "VANB0": "model.applications",
    "VANB1": "model.applications",
    "VANB2": "model.applications",
    "VANB3": "model.applications",
    "VANB4": "model.applications",
    "VANB5": "model.applications",
    "VANB6": "model.applications",
    "decode_predictions": "model.applications",
    "fuse": "model.fused",
    "load_checkpoint": "model.load",
    "preprocess_input": "model.applications",
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
    from .inference.classifier import Classifier
    from .model.applications import (
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
    from .model.fused import fuse
    from .model.load import load_checkpoint
    from .model.preprocessing_layer import PreprocessingLayer
    from .model.van import VAN
    from .spec.preprocessing import Preprocessing


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
