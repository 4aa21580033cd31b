"""A Keras model with a VAN in it, in memory, for `Classifier`: what it takes and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ..engines.keras import filled
from ..engines.protocol import FLOAT32
from ..model.blocks import OverlapPatchEmbed
from ..spec.config import min_image_size
from ..spec.labels import assumed_labels, right_number, texts_of
from ..spec.preprocessing import Preprocessing
from ..spec.scores import ACTIVATIONS, UNKNOWN_END, logits_of
from ..weights.keras_config import ONLY_IN_TRAINING

_NO_HEAD = (
    keras.layers.Dropout,
    keras.layers.Flatten,
    keras.layers.GlobalAveragePooling2D,
    keras.layers.GlobalMaxPooling2D,
    keras.layers.LayerNormalization,
)
_NO_CHANGE_IN_INFERENCE = tuple(getattr(keras.layers, name) for name in ONLY_IN_TRAINING)
_NO_CHANGE = (keras.layers.InputLayer, keras.layers.Permute, *_NO_CHANGE_IN_INFERENCE)


@dataclass
class InMemory:
    """The `Engine` of a model in memory, and what `Classifier` needs to know of it.

    Args:
        model: (B, H, W, C) or (B, C, H, W) -> (B, outputs).
        features: The same -> (B, C); None where they cannot be told from the rest.
        activation: `classifier_activation` as it is said; None without a head.
        is_probabilities: Whether `model` gives them, instead of logits.
        channels: Of the pictures.
        channels_first: Whether they come first.
        labels: Of the head.
        preprocessing: Of the pictures.
        changed_by: A layer that may change the pictures before the VAN sees them.
        notes: What is not known.
        notes_on_labels: The same of `labels`.
        least: Smallest side of a picture.
        batch_size: As of `KerasEngine`.
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
    notes_on_labels: str
    least: int
    batch_size: int
    format: str = "keras"
    dtype: np.dtype = FLOAT32

    @property
    def outputs(self) -> int:
        return self.model.output_shape[-1]

    def __call__(self, images: np.ndarray, features: bool = False) -> np.ndarray:
        count, images = len(images), filled(images, self.batch_size)
        return self.answer(self.of(features).predict_on_batch, images, features)[:count]

    def of(self, features: bool) -> keras.Model:
        """The model of the features, or of the scores."""
        return self.features if features and self.features is not None else self.model

    def answer(
        self, predict: Callable[[np.ndarray], Any], images: np.ndarray, features: bool
    ) -> np.ndarray:
        """As a call, by `predict`, which computes what `of` does."""
        if self.channels_first:
            images = images.transpose(0, 3, 1, 2)
        found = keras.ops.convert_to_numpy(predict(images)).astype(np.float32)
        as_logits = self.is_probabilities and not features
        return logits_of(found, str(self.activation)) if as_logits else found


def look_at(model: keras.Model, batch_size: int, argument: str = "weights") -> InMemory:
    """Looks at a model.

    Args:
        model: Any model.
        batch_size: As of `KerasEngine`.
        argument: What the caller calls it.

    Raises:
        ValueError: It holds no VAN, or is no classifier and no backbone of pictures.
    """
    every = list(model._flatten_layers())
    firsts = [layer for layer in every if isinstance(layer, OverlapPatchEmbed)]
    shapes = [getattr(model, name, None) for name in ("input_shape", "output_shape")]
    if not firsts:
        raise ValueError(f"`{argument}` must be a model with a VAN in it. Received: {model.name!r}")
    for what, shape, rank in zip(("input", "output"), shapes, (4, 2), strict=True):
        if not isinstance(shape, tuple) or len(shape) != rank or shape[0] is not None:
            raise ValueError(
                f"`{argument}` must be a model with one {what} of {rank} axes, the first of them "
                f"any number of pictures. Received: {model.name!r}, {what} {shape}"
            )
    first = next((one for one in firsts if one.name == "patch_embed1"), firsts[0])
    channels = first.proj.kernel.shape[2]
    permuted = any(layer.name == "to_channels_last" for layer in every)
    last, before = decisive(model)
    activation, inside = _activation(last), model
    if activation in ACTIVATIONS and _is_apart(last) and len(before.shape) == 2:
        inside = _up_to(model, before) or model  # exact, where probabilities are rounded
    if inside is model and activation == "softmax" and model.output_shape[-1] == 1:
        raise ValueError(
            f"`{argument}` must not be a softmax of one output, which is 1 for every picture: give "
            f"its layer {last.name} activation='sigmoid'"
        )
    labels, notes, notes_on_labels = texts_of(_said(model, firsts, "labels")), "", []
    if activation is not None:
        outputs = inside.output_shape[-1]
        if labels is not None and not right_number(len(labels), outputs):
            left_out = f"Its {len(labels):,} labels are left out: it has {outputs:,} classes."
            notes_on_labels.append(left_out)
            labels = None
        if labels is None:
            notes_on_labels.append(assumed_labels(outputs, of_others=False)[1])
        if not _is_known(last):
            notes = UNKNOWN_END
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
        notes=notes,
        notes_on_labels=" ".join(notes_on_labels),
        least=min_image_size(len({layer.name for layer in firsts})),
        batch_size=batch_size,
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


def _backwards(model: Any) -> Iterator[tuple[Any, list[Any]]]:
    """(step, its inputs) from the output back, inside inner models as well.

    As far as each takes one tensor: before that, it is no chain.
    """
    if not _steps(model):
        return
    tensors = model.outputs
    while len(tensors) == 1:
        step, node, _ = tensors[0]._keras_history
        tensors = step._inbound_nodes[node].input_tensors
        if _steps(step):
            yield from _backwards(step)
        else:
            yield step, tensors


def decisive(model: Any) -> tuple[Any, Any]:
    """(the last step that changes the scores, its input): what they are is said by that one."""
    for step, tensors in _backwards(model):
        passes = isinstance(step, _NO_CHANGE_IN_INFERENCE) or _operation(step) == "Cast"
        if isinstance(step, keras.layers.Activation):
            passes = _activation(step) == "linear"
        elif isinstance(step, (keras.layers.Flatten, keras.layers.Reshape)):
            passes = len(tensors[0].shape) == 2
        if not passes:
            return step, next(iter(tensors), None)
    return model, None


def _operation(step: Any) -> str:
    """What one of `keras.ops` is called; "" of a layer."""
    return "" if isinstance(step, keras.layers.Layer) else type(step).__name__


def _is_apart(last: Any) -> bool:
    """Whether it is nothing but an activation."""
    apart = isinstance(last, (keras.layers.Activation, keras.layers.Softmax))
    return apart or bool(_operation(last))


def _is_known(last: Any) -> bool:
    """Whether it is said what `last` does with the scores."""
    is_softmax = isinstance(last, keras.layers.Softmax)
    of_ops = _operation(last).lower() in ACTIVATIONS
    return is_softmax or of_ops or getattr(last, "activation", None) is not None


def _activation(last: Any) -> Any:
    """Of the scores; None where there are none but features."""
    if isinstance(last, _NO_HEAD):
        return None
    if isinstance(last, keras.layers.Softmax):
        return "softmax"
    if _operation(last).lower() in ACTIVATIONS:
        return _operation(last).lower()
    found = getattr(last, "activation", None) or keras.activations.linear
    name = getattr(found, "__name__", type(found).__name__.lower())  # a layer is one, too
    module = str(getattr(found, "__module__", ""))
    return name if module.split(".")[0] == "keras" else f"{module}.{name}"


def _features(model: keras.Model, has_head: bool) -> keras.Model | None:
    if not has_head:
        return model
    heads = [step for step in _steps(model) if isinstance(step, keras.layers.Dense)]
    try:
        return _up_to(model, heads[-1].input) if heads else None
    except (AttributeError, ValueError):  # it is called more than once
        return None


def _up_to(model: keras.Model, tensor: Any) -> keras.Model | None:
    """What `model` computes up to `tensor`; None where that is in an inner model."""
    try:
        return keras.Model(model.inputs[0], tensor)
    except ValueError:
        return None


def _before(model: Any) -> str | None:
    """A layer before the VAN that does something in inference, for all that is known of it."""
    for step in _steps(model):
        inside = step._flatten_layers() if isinstance(step, keras.layers.Layer) else ()
        is_van = any(isinstance(layer, OverlapPatchEmbed) for layer in inside)
        # By its very class: one made from it may do more. Some cast to their dtype even then.
        passes = type(step) in _NO_CHANGE and "float" in str(step.dtype)
        found = _before(step) if _steps(step) else None if is_van or passes else step.name
        if is_van or found is not None:
            return found
    return None
