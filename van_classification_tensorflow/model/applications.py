"""`VANB0` ... `VANB6`, `preprocess_input`, `decode_predictions`: as in `keras.applications`."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ..spec.config import CONFIGURATIONS, POOLINGS
from ..spec.labels import imagenet_classes
from ..support.checks import at_least, check_choice, check_flag, is_whole
from ..weights.pretrained import Pretrained, open_pretrained
from .arguments import check_image_shape, check_images
from .layers import foreign_tensorflow
from .load import load_checkpoint
from .network import Network
from .van import VAN

_DOCSTRING = """VAN-%s with the signature of `keras.applications`.

Args:
    include_top: True: class scores (B, classes). False: features.
    weights: "imagenet" (ImageNet-1k), "in22k" or another name of `van weights list`,
        downloaded once and verified on every load; the path of a weight file; a mapping
        {tensor name: array}; None for random weights. Published weights and files fit
        themselves to another `classes` (fresh head) or other input channels, and say so.
    input_tensor: A `keras.Input`, or a tensor made from one, to build on. The model
        is then a plain `keras.Model` from that tensor's own inputs, with the same
        layer names and `pyramid_outputs`.
    input_shape: (H, W, C) without the batch, or (C, H, W) if
        `keras.config.image_data_format()` is "channels_first"; H and W both given, or
        both None. Default: any size, 3 channels.
    pooling: Features without the top: None (B, h, w, C), "avg" or "max" (B, C).
    classes: Classes of the head; by default the weights' own, 1000 without weights.
    classifier_activation: Activation of the scores; None for logits. Of a single class
        "softmax" means "sigmoid".
    name: Name of the model.

Raises:
    ValueError: An argument is not allowed; names it, what is allowed and what came.
    OSError: The weights cannot be downloaded, verified or opened.
"""


def _application(configuration: str) -> Callable[..., keras.Model]:
    def build(
        include_top: bool = True,
        weights: str | os.PathLike | Mapping[str, Any] | None = "imagenet",
        input_tensor: Any = None,
        input_shape: Sequence[int | None] | None = None,
        pooling: str | None = None,
        classes: int | None = None,
        classifier_activation: Any = "softmax",
        name: str = configuration,
    ) -> keras.Model:
        if weights is not None and not isinstance(weights, (str, os.PathLike, Mapping)):
            raise ValueError(
                "`weights` must be 'imagenet', another name of the catalogue (`van weights list`), "
                "a path, a mapping {tensor name: array}, or None for random weights. "
                f"Received: weights={weights!r}"
            )
        head = {
            "num_classes": None if classes is None else at_least("classes", classes, 1),
            "include_top": check_flag("include_top", include_top),
            "classifier_activation": classifier_activation,
            "pooling": check_choice("pooling", pooling, POOLINGS),
        }
        shape = _image_shape(configuration, input_shape, input_tensor)
        opened, tensors = None, weights
        if not isinstance(weights, Mapping):
            opened, tensors = _opened(configuration, weights)
            if opened is not None:
                head["num_classes"] = head["num_classes"] or opened.weights.architecture.num_classes
        head["num_classes"] = head["num_classes"] or 1000
        model = _random(configuration, shape, input_tensor, name, head)
        if tensors is not None:
            load_checkpoint(model, tensors, adapt=not isinstance(weights, Mapping))
        if opened is not None:
            count = head["num_classes"] if head["include_top"] else None
            opened.describe(model, count, shape[_channel_axis()])
        if input_tensor is not None:  # saved with that layer; what is set on `model` is not
            first = model.get_layer("patch_embed1")
            first.labels, first.preprocessing = model.labels, model.preprocessing
        return model

    number = configuration.removeprefix("van_").upper()
    build.__name__ = build.__qualname__ = f"VAN{number}"
    build.__doc__ = _DOCSTRING % number
    return build


def _channel_axis() -> int:
    """Which entry of an image's shape is the channels, by Keras's own data format."""
    return 0 if keras.config.image_data_format() == "channels_first" else 2


def _image_shape(configuration: str, input_shape: Any, input_tensor: Any) -> tuple:
    """One image's shape, which the model can take."""
    data_format = keras.config.image_data_format()
    shape = _shape(input_shape, input_tensor, data_format == "channels_first")
    argument = "input_shape" if input_tensor is None else "input_tensor"
    stages = CONFIGURATIONS[configuration].num_stages
    check_images((None, *shape), argument, shape[_channel_axis()], data_format, stages)
    return shape


def _opened(configuration: str, weights: Any) -> tuple[Pretrained | None, Any]:
    """The weights of a name or a path, which must be of this configuration, and their tensors."""
    opened = open_pretrained(weights, configuration, "weights")
    if opened is None:
        return None, None
    expected = CONFIGURATIONS[configuration]
    opened.weights.architecture.check_same_sizes(expected, f"`weights`={weights!r}")
    return opened, opened.weights.tensors


def _random(
    configuration: str, shape: tuple, input_tensor: Any, name: str, head: dict[str, Any]
) -> keras.Model:
    """The model with random weights, without labels and preprocessing."""
    first = _channel_axis() == 0
    if input_tensor is None:
        size = shape[1:] if first else shape[:2]
        model = VAN(
            configuration,
            in_chans=shape[_channel_axis()],
            data_format=keras.config.image_data_format(),
            img_resolution=None if None in size else size,
            name=name,
            **head,
        )
    else:
        config = CONFIGURATIONS[configuration]
        outputs, pyramid = Network(config, channels_first=first, **head)(input_tensor)
        model = keras.Model(keras.utils.get_source_inputs(input_tensor), outputs, name=name)
        model.pyramid_outputs = pyramid
    model.labels = model.preprocessing = None
    return model


def _shape(input_shape, input_tensor, channels_first: bool) -> tuple:
    """One image's shape, from whichever argument gives it."""
    default = (3, None, None) if channels_first else (None, None, 3)
    if input_shape is not None:
        shape = check_image_shape("input_shape", input_shape, channels_first)
    if input_tensor is None:
        return default if input_shape is None else shape
    if not keras.utils.is_keras_tensor(input_tensor) or len(input_tensor.shape) != 4:
        raise ValueError(
            "`input_tensor` must be a `keras.Input` of rank 4, or a tensor made from one. "
            f"Received: {input_tensor!r}"
        )
    of_tensor = tuple(input_tensor.shape[1:])
    if of_tensor[0 if channels_first else 2] is None:
        raise ValueError(
            f"`input_tensor` must have a known number of channels. Received: {input_tensor!r}"
        )
    if input_shape is not None and of_tensor != shape:
        raise ValueError(
            "`input_shape` and `input_tensor` must agree; give one of them. "
            f"Received: input_shape={shape}, input_tensor of shape {of_tensor}"
        )
    return of_tensor


VANB0 = _application("van_b0")
VANB1 = _application("van_b1")
VANB2 = _application("van_b2")
VANB3 = _application("van_b3")
VANB4 = _application("van_b4")
VANB5 = _application("van_b5")
VANB6 = _application("van_b6")


def preprocess_input(x, data_format: str | None = None):
    """Scales pixels as the published ImageNet-1k weights expect: mean = std = 0.5.

    Args:
        x: Array or tensor of RGB pixels in [0, 255], any shape.
        data_format: Accepted as in `keras.applications`; every channel is treated alike,
            so it changes nothing.

    Returns:
        `x / 127.5 - 1`, float32, in [-1, 1]: a NumPy array for a NumPy array, and within
        `tf.data.Dataset.map` TensorFlow's tensor on every backend.

    The published accuracies also need the resize: shorter side to 248 (bicubic), centre
    crop 224.
    """
    if data_format not in (None, "channels_last", "channels_first"):
        raise ValueError(
            "`data_format` must be None, 'channels_last' or 'channels_first'. "
            f"Received: data_format={data_format!r}"
        )
    if isinstance(x, np.ndarray):
        return np.asarray(x, dtype="float32") / np.float32(127.5) - np.float32(1.0)
    tensorflow = foreign_tensorflow(x)  # within `tf.data` on another backend
    cast = keras.ops.cast if tensorflow is None else tensorflow.cast
    return cast(x, "float32") / 127.5 - 1.0


def decode_predictions(preds, top: int = 5) -> list[list[tuple[str, str, float]]]:
    """Scores over ImageNet-1k -> the `top` classes of each image, best first.

    Args:
        preds: (B, 1000) scores: logits, or probabilities by softmax or by sigmoid; they are ranked
            and given back as they are.
        top: How many classes to name, 1 to 1000.

    Returns:
        For each image a list of (WordNet id, class name, score).
    """
    scores = keras.ops.convert_to_numpy(preds)
    classes = imagenet_classes()
    if scores.ndim != 2 or scores.shape[1] != len(classes):
        raise ValueError(
            f"`preds` must have shape (batch, {len(classes)}), the scores of an ImageNet-1k "
            f"model. Received shape: {scores.shape}"
        )
    if not is_whole(top) or not 1 <= top <= len(classes):
        raise ValueError(f"`top` must be an integer from 1 to {len(classes)}. Received: {top!r}")
    best = np.argsort(-scores, axis=1, kind="stable")[:, :top]
    return [
        [(classes[i].wnid, classes[i].name, float(row[i])) for i in indices]
        for row, indices in zip(scores, best, strict=True)
    ]
