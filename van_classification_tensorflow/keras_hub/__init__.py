"""VAN in KerasHub: importing this is what tells KerasHub of the classes and their presets."""

from ..support.extras import is_installed, missing

if not is_installed("keras_hub"):
    raise missing("van_classification_tensorflow.keras_hub", "keras-hub", "keras-hub")

from .backbone import VANBackbone
from .image_classifier import VANImageClassifier, VANImageClassifierPreprocessor
from .image_converter import VANImageConverter
from .presets import register

__all__ = [
    "VANBackbone",
    "VANImageClassifier",
    "VANImageClassifierPreprocessor",
    "VANImageConverter",
]

register()
