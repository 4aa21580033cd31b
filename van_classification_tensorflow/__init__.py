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
    "Segmenter": "segment.segmenter",
    "VAN": "model.van",
    "VANB0": "model.applications",
    "VANB1": "model.applications",
    "VANB2": "model.applications",
    "VANB3": "model.applications",
    "VANB4": "model.applications",
    "VANB5": "model.applications",
    "VANB6": "model.applications",
    "VANSegmenter": "segment.model",
    "accelerate": "inference.accelerate",
    "decode_predictions": "model.applications",
    "explain": "explanation.explain",
    "fuse": "model.fused",
    "load_checkpoint": "model.load",
    "overlay": "explanation.overlay",
    "preprocess_input": "model.applications",
}

__all__ = [*_HOME, "__version__"]

_register()

if TYPE_CHECKING:  # `as`: for others to import from here
    from .explanation.explain import explain as explain
    from .explanation.overlay import overlay as overlay
    from .inference.accelerate import accelerate as accelerate
    from .inference.classifier import Classifier as Classifier
    from .model.applications import VANB0 as VANB0
    from .model.applications import VANB1 as VANB1
    from .model.applications import VANB2 as VANB2
    from .model.applications import VANB3 as VANB3
    from .model.applications import VANB4 as VANB4
    from .model.applications import VANB5 as VANB5
    from .model.applications import VANB6 as VANB6
    from .model.applications import decode_predictions as decode_predictions
    from .model.applications import preprocess_input as preprocess_input
    from .model.fused import fuse as fuse
    from .model.load import load_checkpoint as load_checkpoint
    from .model.preprocessing_layer import PreprocessingLayer as PreprocessingLayer
    from .model.van import VAN as VAN
    from .segment.model import VANSegmenter as VANSegmenter
    from .segment.segmenter import Segmenter as Segmenter
    from .spec.preprocessing import Preprocessing as Preprocessing


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted(__all__)
