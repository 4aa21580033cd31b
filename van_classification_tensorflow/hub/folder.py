"""The folder that Keras, KerasHub and this package open alike.

`config.json` and `model.weights.h5` mean something to both Keras and KerasHub: to Keras the whole
model, to KerasHub the backbone. Here they are the whole `VAN`, as Keras itself writes it.
KerasHub's `ImageClassifier` makes its own model of `task.json`, and finds the backbone's tensors in
`model.weights.h5`, where the layers of `VAN` and `VANBackbone` have the same places; the head's are
in `task.weights.h5`. What one file cannot be is the classifier for Keras and a headless backbone
for KerasHub: so `keras_hub.models.Backbone.from_preset` refuses the folder, and
`VANBackbone.from_weights` reads it. `model.safetensors` has the authors' names and, as metadata,
labels and preprocessing: it alone is read by this package.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from .. import __version__
from ..export.convert import describe, write_safetensors
from ..spec.scores import activation_of
from ..support.extras import is_installed
from ..weights.file_names import CONFIG, KERAS_HUB_FILES, KERAS_WEIGHTS, SAFETENSORS
from ..weights.pretrained import Pretrained

README = "README.md"


def write_model(folder: Path, opened: Pretrained) -> list[str]:
    """Writes the model into an empty folder, without the card.

    Args:
        folder: Where.
        opened: The weights, in float32, and their card.

    Returns:
        What the user should know of what is left out.
    """
    import keras

    from ..model.build import build_van

    sizes, card = opened.weights.architecture, opened.card
    activation = None
    if sizes.num_classes is not None:
        activation = activation_of(card.activation, sizes.num_classes, card.name)
    tensors = opened.weights.tensors
    model = build_van(sizes, tensors, classifier_activation=activation, dtype="float32")
    opened.describe(model, sizes.num_classes, sizes.in_chans)
    with tempfile.TemporaryDirectory(dir=folder) as work:
        made = Path(work) / "keras"
        keras.saving.save_model(model, made, zipped=False)
        for name in (CONFIG, KERAS_WEIGHTS):
            (made / name).rename(folder / name)
    metadata: dict[str, Any] = {
        "keras_version": keras.version(),
        "parameter_count": model.count_params(),
        "van_classification_tensorflow": __version__,
    }
    # Without a date: who pushes the same weights again changes nothing.
    (folder / "metadata.json").write_text(json.dumps(metadata), encoding="utf-8")
    write_safetensors(folder / SAFETENSORS, tensors, describe(opened))
    notes = _write_for_keras_hub(folder, opened, activation)
    for path in folder.glob("*.json"):
        _renumber(path)
    return notes


def _renumber(path: Path) -> None:
    """Gives shared objects of a configuration the numbers 1, 2, ... for their place in memory."""
    numbers: dict[Any, int] = {}

    def renumbered(found: Any) -> Any:
        if isinstance(found, list):
            return [renumbered(one) for one in found]
        if not isinstance(found, dict):
            return found
        made = {key: renumbered(value) for key, value in found.items()}
        if (number := made.get("shared_object_id")) is not None:
            made["shared_object_id"] = numbers.setdefault(number, len(numbers) + 1)
        return made

    record = renumbered(json.loads(path.read_text("utf-8")))
    path.write_text(json.dumps(record, indent=1) + "\n", "utf-8")


def _write_for_keras_hub(folder: Path, opened: Pretrained, activation: str | None) -> list[str]:
    if opened.weights.architecture.num_classes is None:
        return [
            "without a head there is nothing for KerasHub's ImageClassifier; "
            "VANBackbone.from_weights reads the folder"
        ]
    if not is_installed("keras_hub"):
        return [
            f"{', '.join(KERAS_HUB_FILES)} were not written, which KerasHub needs: "
            "pip install 'van-classification-tensorflow[keras-hub]'"
        ]
    from ..keras_hub import VANImageClassifier

    classifier = VANImageClassifier.from_weights(
        opened, data_format="channels_last", dtype="float32", activation=activation
    )
    notes = []
    with tempfile.TemporaryDirectory(dir=folder) as work:
        classifier.save_to_preset(work)
        for name in KERAS_HUB_FILES:
            if (Path(work) / name).is_file():
                shutil.move(Path(work) / name, folder / name)
            else:
                notes.append(f"KerasHub has written no {name}")
    return notes
