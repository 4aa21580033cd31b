"""`import van_classification_tensorflow` is enough for Keras to load a file with its layers.

Keras finds a class by the name that it was registered with, which happens when its module is
imported; that takes Keras itself. So a stand-in is registered, which imports the class when a file
asks for it: at once where Keras is there already, else as soon as it is. KerasHub looks for the
classes themselves, among all that is registered: they are imported once it is there.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
import threading
import warnings
from collections.abc import Callable
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
    "keras_hub.backbone": ("VANBackbone",),
    "keras_hub.image_converter": ("VANImageConverter",),
    "keras_hub.image_classifier": ("VANImageClassifier", "VANImageClassifierPreprocessor"),
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
    """Registers the stand-ins, and the classes of KerasHub, now or when these are imported."""
    for name, tell in (("keras", _tell_keras), ("keras_hub", _tell_keras_hub)):
        if name not in sys.modules:
            sys.meta_path.insert(0, _WhenItComes(name, tell))
        elif sys.modules[name] is not None:  # which is how a module is kept from being imported
            tell(sys.modules[name])


def _tell_keras(keras: Any) -> None:
    known = keras.saving.get_custom_objects()
    for name, stand_in in registered().items():
        known.setdefault(name, stand_in)


def _tell_keras_hub(keras_hub: Any) -> None:
    try:
        import_module(".keras_hub", _PACKAGE)
    except Exception as error:  # of another release: whoever imports it may not need a VAN
        warnings.warn(f"KerasHub does not know VAN: {error}", stacklevel=2)


class _WhenItComes:
    """Finds nothing itself; sees a module being imported, and looked for before that.

    Args:
        awaited: Its name.
        tell: Called with the module when it is there.
    """

    def __init__(self, awaited: str, tell: Callable[[Any], None]) -> None:
        self.awaited = awaited
        self.tell = tell
        self.others = threading.local()  # `asked` while the others are

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != self.awaited or getattr(self.others, "asked", False):
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
                self.tell(module)
                with contextlib.suppress(ValueError):  # done already
                    sys.meta_path.remove(self)

        spec.loader.exec_module = and_tell  # type: ignore[method-assign]
        return spec
