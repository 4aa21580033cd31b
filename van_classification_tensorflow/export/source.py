"""What is exported: the tensors of a VAN by the authors' names, and what goes with them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.architecture import Architecture
from ..spec.labels import assumed_labels, labels_of
from ..spec.preprocessing import NOT_SAID, Preprocessing
from ..spec.scores import activation_of
from ..support.text import shown
from ..weights.keras_config import changed_parts
from ..weights.pretrained import open_pretrained

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class Source:
    """What is exported: the tensors by the authors' names, and what goes with them."""

    name: str
    tensors: dict[str, np.ndarray]
    sizes: Architecture
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    activation: str | None
    pooling: str = "avg"
    notes: str = ""
    assumed: tuple[str, ...] = ()

    def keras_model(self, *, logits: bool = True, image_size: int | None = None) -> keras.Model:
        """The model that is exported, in float32; `image_size` fixes that of its input."""
        from ..model.build import build_van

        return build_van(
            self.sizes,
            self.tensors,
            classifier_activation=None if logits else self.activation,
            img_resolution=image_size,
            pooling=self.pooling,
            dtype="float32",
        )


def open_source(model: Any, features: bool) -> Source:
    if isinstance(model, (str, os.PathLike)):
        opened = open_pretrained(model, argument="model")
        if opened is None:
            raise ValueError(f"`model` must be a name or a path. Received: model={model!r}")
        opened.check(["labels", "classifier_activation"] if features else ())
        tensors, sizes = opened.weights.tensors, opened.weights.architecture
        name, labels, record = opened.name, opened.labels, opened.preprocessing
        said, pooling = opened.activation, opened.weights.source.about.get("pooling")
        assumed, notes = dict(opened.assumed), opened.notes
    else:
        from ..model.load import architecture, to_official
        from ..model.van import VAN

        if not isinstance(model, VAN):
            raise ValueError(
                "`model` must be a VAN, the path of a weight file or a name of `van weights "
                f"list`. Received: {type(model).__name__}"
            )
        tensors, sizes, name = to_official(model), architecture(model), model.name
        labels, record, pooling = model.labels, model.preprocessing, model.pooling
        config = model.get_config()
        for layer, key, value in changed_parts(config.get("parts")):
            raise ValueError(
                "`model` must have the layers that `VAN` makes, as it is exported from its tensors "
                f"alone. Received: {layer} with {key}={shown(value)}"
            )
        said, notes, assumed = config["classifier_activation"], "", {}
        if labels is None:
            assumed["labels"] = assumed_labels(sizes.num_classes or 0, of_others=False)[1]
        if record is None:
            assumed["preprocessing"] = NOT_SAID
    activation = None
    if sizes.num_classes is not None:
        activation = None if features else activation_of(said, sizes.num_classes, name)
        pooling = "avg"
    elif pooling is None and not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            "`model` must have a head or pool its features to be exported. Received: pooling=None"
        )
    if features and sizes.num_classes is not None:
        tensors = {n: a for n, a in tensors.items() if not n.startswith("head.")}
        sizes = replace(sizes, num_classes=None)
    preprocessing = record or Preprocessing().with_channels(sizes.in_chans)
    if preprocessing is None:
        raise ValueError(
            f"{name} takes {sizes.in_chans} channels and does not say how pictures become such "
            "input: set `model.preprocessing`"
        )
    texts = None
    if labels is not None and sizes.num_classes is not None:
        texts = tuple(label.text for label in labels_of(labels, sizes.num_classes))
    if sizes.num_classes is None:
        assumed.pop("labels", None)
    return Source(
        os.path.basename(name),
        tensors,
        sizes,
        texts,
        preprocessing,
        activation,
        pooling or "avg",
        " ".join(filter(None, (notes, *assumed.values()))),
        tuple(what for what in assumed if what != "labels" or texts is not None),
    )
