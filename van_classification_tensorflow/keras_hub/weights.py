"""Published weights and weight files -> models of KerasHub.

KerasHub loads a preset's weights by `load_weights` of a file in its folder. For published weights
that file only names them: the tensors come from the verified cache of this package.
"""

from __future__ import annotations

import json
import os
from typing import Any

import keras

from ..model.load import load_checkpoint
from ..spec.config import VANConfig
from ..weights.catalogue import CATALOGUE
from ..weights.pretrained import Pretrained, open_pretrained

_KEY = "van_weights"
_MOST = 1000  # bytes of a file that names weights


def naming(name: str) -> dict[str, Any]:
    """What a file that names weights holds, as JSON: to KerasHub an index of no other files."""
    return {"weight_map": {}, _KEY: name}


def named(path: str | os.PathLike) -> Pretrained | None:
    """The published weights that a file names; None if it is another file.

    Raises:
        ValueError: It names weights that are not of the catalogue: no path is followed.
        OSError: They cannot be downloaded or verified.
    """
    try:
        with open(path, "rb") as file:
            text = file.read(_MOST + 1)
        said = json.loads(text) if text[:1] == b"{" and len(text) <= _MOST else {}
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(said, dict) or _KEY not in said:
        return None
    if not isinstance(said[_KEY], str) or said[_KEY] not in CATALOGUE:
        raise ValueError(f"{path} must name weights of `van weights list`. Received: {said[_KEY]}")
    return open_pretrained(said[_KEY])


def opened(weights: Any) -> Pretrained:
    """The weights of a name of the catalogue, of a path or of a folder of a hub.

    Raises:
        ValueError: There are no such weights, or the file is refused.
        OSError: They cannot be downloaded, verified or opened.
    """
    found = open_pretrained(weights, argument="weights")
    if found is None:
        raise ValueError(
            "`weights` must be a name of the catalogue (`van weights list`), a path or "
            "hf://USER/NAME[@REVISION]. "
            f"Received: weights={weights!r}"
        )
    return found


def sizes_of(config: VANConfig, channels: int, data_format: str | None = None) -> dict[str, Any]:
    """The arguments of `VANBackbone` for weights of these sizes; `channels`: of the images."""
    first = (data_format or keras.config.image_data_format()) == "channels_first"
    return {
        "embed_dims": list(config.embed_dims),
        "mlp_ratios": list(config.mlp_ratios),
        "depths": list(config.depths),
        "image_shape": [channels, None, None] if first else [None, None, channels],
        "data_format": data_format,
    }


def load_head(layer: keras.layers.Dense, weights: Pretrained) -> None:
    """The classifier's head of `weights` into `layer`.

    Raises:
        ValueError: They have none, or one of other sizes.
    """
    sizes, tensors = weights.weights.architecture, weights.weights.tensors
    if sizes.num_classes != layer.units:
        raise ValueError(
            f"`num_classes` must be that of {weights.card.name}, {sizes.num_classes or 'no head'}. "
            f"Received: num_classes={layer.units}"
        )
    layer.kernel.assign(tensors["head.weight"].T)
    layer.bias.assign(tensors["head.bias"])


def load_features(backbone: keras.Model, weights: Pretrained) -> None:
    """All but the head of `weights` into `backbone`, or nothing.

    Raises:
        ValueError: They are of other sizes.
    """
    config = VANConfig(backbone.embed_dims, backbone.mlp_ratios, backbone.depths)
    weights.weights.architecture.check_same_sizes(config, weights.card.name)
    load_checkpoint(backbone, weights.weights.tensors)
