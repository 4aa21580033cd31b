"""What is exported: the tensors of a VAN by the authors' names, and what goes with them."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.architecture import Architecture
from ..spec.card import Card
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
    """What is exported: the tensors by the authors' names, their sizes and their card.

    Of the card the labels are texts, the activation is checked, None of features, and there are
    a preprocessing and a pooling.
    """

    tensors: dict[str, np.ndarray]
    sizes: Architecture
    card: Card

    @property
    def preprocessing(self) -> Preprocessing:
        """How pictures become the model's input."""
        found = self.card.preprocessing
        assert found is not None  # noqa: S101 - `open_source` sees to it
        return found

    def keras_model(self, *, logits: bool = True, image_size: int | None = None) -> keras.Model:
        """The model that is exported, in float32; `image_size` fixes that of its input."""
        from ..model.build import build_van

        return build_van(
            self.sizes,
            self.tensors,
            classifier_activation=None if logits else self.card.activation,
            img_resolution=image_size,
            pooling=self.card.pooling,
            dtype="float32",
        )


def open_source(model: Any, features: bool) -> Source:
    """The tensors to export; with `features` without the head.

    Raises:
        ValueError: It is no VAN, or one that its tensors alone do not describe.
    """
    of_file = isinstance(model, (str, os.PathLike))
    given = _of_weights(model, features) if of_file else _in_memory(model)
    sizes, tensors, card, activation = given.sizes, given.tensors, given.card, None
    if sizes.num_classes is not None:
        if not features:
            activation = activation_of(card.activation, sizes.num_classes, card.name)
        card = replace(card, pooling="avg")
    elif card.pooling is None and not of_file:
        raise ValueError(
            "`model` must have a head or pool its features to be exported. Received: pooling=None"
        )
    if features and sizes.num_classes is not None:
        tensors = {n: a for n, a in tensors.items() if not n.startswith("head.")}
        sizes = replace(sizes, num_classes=None)
    preprocessing = card.preprocessing or Preprocessing().with_channels(sizes.in_chans)
    if preprocessing is None:
        raise ValueError(
            f"{card.name} takes {sizes.in_chans} channels and does not say how pictures become "
            "such input: set `model.preprocessing`"
        )
    labels, assumed = None, dict(card.assumed)
    if sizes.num_classes is None:
        assumed.pop("labels", None)
    elif card.labels is not None:
        labels = tuple(label.text for label in labels_of(card.labels, sizes.num_classes))
    card = replace(
        card,
        name=os.path.basename(card.name),
        labels=labels,
        preprocessing=preprocessing,
        activation=activation,
        pooling=card.pooling or "avg",
        assumed=assumed,
        problems={},
    )
    return Source(tensors, sizes, card)


def _of_weights(model: str | os.PathLike, features: bool) -> Source:
    opened = open_pretrained(model, argument="model")
    if opened is None:
        raise ValueError(f"`model` must be a name or a path. Received: model={model!r}")
    opened.check(["labels", "classifier_activation"] if features else ())
    return Source(opened.weights.tensors, opened.weights.architecture, opened.card)


def _in_memory(model: Any) -> Source:
    from ..model.load import architecture, to_official
    from ..model.van import VAN

    if not isinstance(model, VAN):
        raise ValueError(
            "`model` must be a VAN, the path of a weight file or a name of `van weights list`. "
            f"Received: {type(model).__name__}"
        )
    tensors, sizes, config = to_official(model), architecture(model), model.get_config()
    for layer, key, value in changed_parts(config.get("parts")):
        raise ValueError(
            "`model` must have the layers that `VAN` makes, as it is exported from its tensors "
            f"alone. Received: {layer} with {key}={shown(value)}"
        )
    assumed = {}
    if model.labels is None:
        assumed["labels"] = assumed_labels(sizes.num_classes or 0, of_others=False)[1]
    if model.preprocessing is None:
        assumed["preprocessing"] = NOT_SAID
    card = Card(
        name=model.name,
        labels=model.labels,
        preprocessing=model.preprocessing,
        activation=config["classifier_activation"],
        pooling=model.pooling,
        assumed=assumed,
    )
    return Source(tensors, sizes, card)
