"""A Keras model with a VAN in it, in memory, for `Classifier`: what it takes and what it gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from .config import min_image_size
from .labels import right_number, texts_of
from .model import OverlapPatchEmbed
from .preprocessing import Preprocessing
from .scores import ACTIVATIONS, logits_of

_NO_HEAD = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.LayerNormalization,
)
_NO_CHANGE = (keras.layers.InputLayer, keras.layers.Permute, keras.layers.Dropout)


@dataclass(frozen=True)
class InMemory:
    """What `Classifier` needs to know of a model.

    Args:
        model: (B, H, W, C) or (B, C, H, W) -> (B, outputs).
        features: The same -> (B, C); None where they cannot be told from the rest.
        activation: `classifier_activation` as it is said; None without a head.
        is_probabilities: Whether `model` gives them, instead of logits.
        channels: Of the pictures.
        channels_first: Whether they come first.
        labels: Of the head.
        preprocessing: Of the pictures.
        changed_by: A layer that changes the pictures before the VAN sees them.
        notes: What is not known.
        least: Smallest side of a picture.
    """

    model: keras.Model
    features: keras.Model | None
    activation: str | None
    is_probabilities: bool
    channels: int
    channels_first: bool
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing | None
    changed_by: str | None
    notes: str
    least: int

    @property
    def outputs(self) -> int:
        return self.model.output_shape[-1]

    def __call__(self, images: np.ndarray, features: bool) -> np.ndarray:
        """(N, H, W, C) float32 -> logits or features, float32."""
        if self.channels_first:
            images = images.transpose(0, 3, 1, 2)
        model = self.features if features and self.features is not None else self.model
        found = keras.ops.convert_to_numpy(model.predict_on_batch(images)).astype(np.float32)
        as_logits = self.is_probabilities and not features
        return logits_of(found, str(self.activation)) if as_logits else found


def open_model(model: keras.Model) -> InMemory:
    """Looks at a model.

    Raises:
        ValueError: It holds no VAN, or is no classifier and no backbone of pictures.
    """
    every = list(model._flatten_layers())
    firsts = [layer for layer in every if isinstance(layer, OverlapPatchEmbed)]
    shapes = [getattr(model, name, None) for name in ("input_shape", "output_shape")]
    if not firsts:
        raise ValueError(f"`weights` must be a model with a VAN in it. Received: {model.name!r}")
    for what, shape, rank in zip(("input", "output"), shapes, (4, 2), strict=True):
        if not isinstance(shape, tuple) or len(shape) != rank or shape[0] is not None:
            raise ValueError(
                f"`weights` must be a model with one {what} of {rank} axes, the first of them any "
                f"number of pictures. Received: {model.name!r}, {what} {shape}"
            )
    first = next((one for one in firsts if one.name == "patch_embed1"), firsts[0])
    channels = first.proj.kernel.shape[2]
    permuted = any(layer.name == "to_channels_last" for layer in every)
    last = _last(model)
    activation, inside = _activation(last), model
    apart = (keras.layers.Activation, keras.layers.Softmax)
    if isinstance(last, apart) and any(last is layer for layer in model.layers):
        inside = _before_layer(model, last) or model  # exact, where probabilities are rounded
    if inside is model and activation == "softmax" and model.output_shape[-1] == 1:
        raise ValueError(
            "`weights` must not be a softmax of one output, which is 1 for every picture: give "
            f"its layer {last.name} activation='sigmoid'"
        )
    labels = texts_of(_said(model, firsts, "labels"))
    notes = []
    if activation is not None:
        outputs = inside.output_shape[-1]
        if labels is not None and not right_number(len(labels), outputs):
            notes.append(f"Its {len(labels):,} labels are left out: it has {outputs:,} classes.")
            labels = None
        if labels is None:
            notes.append("It names no classes: they are called 'class 0', 'class 1', ...")
        if not isinstance(last, keras.layers.Softmax) and not hasattr(last, "activation"):
            notes.append("What it ends with is not known: its outputs are taken for logits.")
    return InMemory(
        model=inside,
        features=_features(model, activation is not None),
        activation=activation,
        is_probabilities=inside is model and activation in ACTIVATIONS,
        channels=channels,
        channels_first=permuted and model.input_shape[3] != channels,
        labels=labels if activation is not None else None,
        preprocessing=Preprocessing.of(_said(model, firsts, "preprocessing")),
        changed_by=_before(model),
        notes=" ".join(notes),
        least=min_image_size(len({layer.name for layer in firsts})),
    )


def _said(model: keras.Model, firsts: list[OverlapPatchEmbed], name: str) -> Any:
    """What is set on the model itself, or on a VAN in it."""
    found = (getattr(one, name, None) for one in (model, *firsts))
    return next((value for value in found if value is not None), None)


def _steps(model: Any) -> list[Any]:
    """What a model calls, in order; nothing of a subclassed one, which nobody knows."""
    if isinstance(model, keras.Function):
        return model.operations
    return model.layers if isinstance(model, keras.Sequential) else []


def _last(model: Any) -> Any:
    """The layer or operation that gives the output, inside inner models as well."""
    steps = _steps(model)
    return _last(steps[-1]) if steps else model


def _activation(last: Any) -> Any:
    """Of the scores; None where there are none but features."""
    if isinstance(last, _NO_HEAD):
        return None
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    return keras.activations.serialize(getattr(last, "activation", None) or "linear")


def _features(model: keras.Model, has_head: bool) -> keras.Model | None:
    if not has_head:
        return model
    heads = [step for step in _steps(model) if isinstance(step, keras.layers.Dense)]
    return _before_layer(model, heads[-1]) if heads else None


def _before_layer(model: keras.Model, layer: keras.layers.Layer) -> keras.Model | None:
    """What `model` computes up to `layer`; None where that is called in several models."""
    try:
        return keras.Model(model.inputs[0], layer.input)
    except (AttributeError, ValueError):
        return None


def _before(model: Any) -> str | None:
    for step in _steps(model):
        inside = step._flatten_layers() if isinstance(step, keras.layers.Layer) else ()
        if any(isinstance(layer, OverlapPatchEmbed) for layer in inside):
            return _before(step)
        if not isinstance(step, _NO_CHANGE):
            return step.name
    return None
