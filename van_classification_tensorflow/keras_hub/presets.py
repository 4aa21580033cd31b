"""The published weights as presets of KerasHub: `van_b0_imagenet`, `van_b4_imagenet22k`, ...

KerasHub reads a preset from a folder. That of published weights is made when it is first asked
for: a few small files that say which classes, sizes and preprocessing, and name the weights, which
are downloaded and verified by this package only when they are loaded.
"""

from __future__ import annotations

import json
import tempfile
import threading
from pathlib import Path
from typing import Any

import keras
from keras_hub.src.utils import preset_utils

from ..spec.config import CONFIGURATIONS
from ..weights.catalogue import CLASSIFICATION, Weights, of_task
from .backbone import VANBackbone
from .image_classifier import VANImageClassifier, VANImageClassifierPreprocessor
from .image_converter import VANImageConverter
from .weights import naming, opened, sizes_of

_MAKING = threading.Lock()  # of the folder of a preset, which several threads may ask for
_DATASETS = {"in1k": "imagenet", "in22k": "imagenet22k"}


def preset_name(record: Weights) -> str:
    """`van_b0.in1k` -> `van_b0_imagenet`; `digits` -> `van_digits`."""
    configuration, _, tag = record.name.partition(".")
    if not tag:
        return f"van_{record.name}"
    dataset, _, rest = tag.partition("_")
    return "_".join(filter(None, (configuration, _DATASETS[dataset], rest)))


class Preset(dict):
    """What KerasHub keeps of a preset; where it is, its "kaggle_handle", is a folder made here.

    Args:
        record: Of the catalogue.
    """

    def __init__(self, record: Weights):
        head = f"{record.num_classes:,} classes" if record.num_classes else "no head"
        metadata: dict[str, Any] = {
            "description": f"VAN {record.configuration or ''} trained on {record.dataset}, {head}.",
            "path": "van",
        }
        if record.parameters is not None:
            metadata["params"] = record.parameters
        super().__init__(metadata=metadata)
        self._record = record

    def __missing__(self, key: str) -> str:
        if key != "kaggle_handle":
            raise KeyError(key)
        with _MAKING:
            if key not in self:  # else another thread has been quicker
                folder = tempfile.TemporaryDirectory(prefix="van_preset_")
                for name, content in preset_files(self._record).items():
                    Path(folder.name, name).write_text(json.dumps(content, indent=4), "utf-8")
                self._folder = folder  # until Python ends
                self[key] = folder.name
        return self[key]


def preset_files(record: Weights) -> dict[str, Any]:
    """{file name: content as JSON} of the folder that KerasHub reads the preset from."""
    if record.configuration is None:  # bundled
        sizes = opened(record.name).weights.architecture
        config, channels = sizes.config, sizes.in_chans
    else:
        config, channels = CONFIGURATIONS[record.configuration], 3
    backbone = _serialized(VANBackbone, sizes_of(config, channels))
    files = {
        preset_utils.CONFIG_FILE: backbone,
        preset_utils.SHARDED_MODEL_WEIGHTS_CONFIG_FILE: naming(record.name),
    }
    preprocessor = None
    if record.preprocessing is not None:
        converter = VANImageConverter.of(record.preprocessing)
        layer = VANImageClassifierPreprocessor(converter)
        preprocessor = keras.saving.serialize_keras_object(layer)
        files[preset_utils.IMAGE_CONVERTER_CONFIG_FILE] = keras.saving.serialize_keras_object(
            converter
        )
        files[preset_utils.PREPROCESSOR_CONFIG_FILE] = preprocessor
    if record.num_classes:
        task = {
            "backbone": backbone,
            "preprocessor": preprocessor,
            "num_classes": record.num_classes,
        }
        files[preset_utils.TASK_CONFIG_FILE] = _serialized(VANImageClassifier, task)
        files[preset_utils.TASK_WEIGHTS_FILE] = naming(record.name)
    return files


def _serialized(kind: type, config: dict[str, Any]) -> dict[str, Any]:
    """What Keras makes of an object that is not made."""
    return {
        "module": kind.__module__,
        "class_name": kind.__name__,
        "config": config,
        "registered_name": keras.saving.get_registered_name(kind),
    }


PRESETS = {preset_name(record): Preset(record) for record in of_task(CLASSIFICATION)}


def register() -> None:
    """Tells KerasHub of the presets, whose base classes then find them as well."""
    preset_utils.register_presets(PRESETS, VANBackbone)
