"""`import van_classification_tensorflow` is enough for Keras to load a file with its layers.

Keras finds a class by the name that it was registered with, which happens when its module is
imported; that takes Keras itself. So a stand-in is registered, which imports the class when a file
asks for it: at once where Keras is there already, else as soon as it is.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
from importlib import import_module
from typing import Any

_PACKAGE = "van_classification_tensorflow"
CLASSES = {
    "model.layers": (
        "BatchNorm",
        "DepthwiseConv",
        "Dropout",
        "DropPath",
        "FanOutNormal",
        "LayerScale",
        "PointwiseConv",
    ),
    "model.blocks": ("Attention", "Block", "LKA", "Mlp", "OverlapPatchEmbed"),
    "model.van": ("VAN",),
    "model.fused": ("FusedAttention", "FusedBlock", "FusedVAN"),
    "segment.resize": ("AdaptiveAveragePooling", "ResizeLike", "UpsampleTwice"),
    "segment.layers": ("ChannelDropout", "ConvNormAct"),
    "segment.hamburger": ("NMF2D",),
    "segment.losses": ("SegmentationCrossEntropy",),
    "segment.model": ("VANSegmenter",),
    "train.optim": ("AdamW",),
    "model.preprocessing_layer": ("PreprocessingLayer",),
}


def registered() -> dict[str, Any]:
    """{name that Keras knows it by: stand-in} of every class and function."""

    def stand_in(module: str, name: str) -> type:
        def from_config(cls: type, config: dict[str, Any]) -> Any:
            return getattr(import_module(f".{module}", _PACKAGE), name).from_config(config)

        return type(name, (), {"from_config": classmethod(from_config)})

    def gelu(x: Any) -> Any:
        return import_module(".model.layers", _PACKAGE).gelu(x)

    classes = {
        f"{_PACKAGE}>{name}": stand_in(module, name)
        for module, names in CLASSES.items()
        for name in names
    }
    return {**classes, f"{_PACKAGE}>gelu": gelu}


def register() -> None:
    """Registers the stand-ins, now or when Keras is imported."""
    if "keras" not in sys.modules:
        sys.meta_path.insert(0, _WhenKerasComes())
    elif sys.modules["keras"] is not None:  # which is how a module is kept from being imported
        _tell(sys.modules["keras"])


def _tell(keras: Any) -> None:
    known = keras.saving.get_custom_objects()
    for name, stand_in in registered().items():
        known.setdefault(name, stand_in)


class _WhenKerasComes:
    """Finds nothing itself; sees Keras being imported, and looked for before that."""

    def __init__(self) -> None:
        self.others = threading.local()  # `asked` while the others are

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != "keras" or getattr(self.others, "asked", False):
            return None
        self.others.asked = True
        try:
            spec = importlib.util.find_spec(name)
        finally:
            self.others.asked = False
        if spec is None or spec.loader is None:
            return spec
        execute = spec.loader.exec_module

        def and_tell(module: Any) -> None:
            execute(module)
            if module.__name__ == name:  # one loader may be of several modules
                _tell(module)
                with contextlib.suppress(ValueError):  # done already
                    sys.meta_path.remove(self)

        spec.loader.exec_module = and_tell  # type: ignore[method-assign]
        return spec
