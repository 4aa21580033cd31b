"""mmsegmentation's tensors <-> the variables of a `VANSegmenter`, strict both ways.

The names are those of the authors' checkpoints: `backbone.` before the authors' names of a VAN,
`decode_head.`, `neck.` and `auxiliary_head.` before those of the decoder.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from ..model.load import (
    LEAVES,
    architecture,
    assign,
    check_not_quantised,
    exported,
    fit_input,
    official_variables,
)
from ..spec.architecture import TensorSpec, check
from .checkpoint import BACKBONE, read_segmenter, split


def specs_of(model: keras.Model) -> dict[str, TensorSpec]:
    """{mmsegmentation's name: shape and kind} of all tensors."""
    backbone = architecture(model).tensors()
    decoder = model.sizes.tensors(model.embed_dims, model.num_classes)
    return {f"{BACKBONE}{name}": spec for name, spec in backbone.items()} | decoder


def variables_of(model: keras.Model) -> dict[str, Any]:
    """The Keras variable behind every tensor, in the same order."""
    found = {f"{BACKBONE}{name}": one for name, one in official_variables(model).items()}
    for conv in model.sizes.convolutions(model.embed_dims, model.num_classes):
        layer = model.get_layer(conv.layer)
        for name in conv.specs():
            inner = name.removeprefix(f"{conv.tensors}.")
            *module, leaf = inner.split(".")
            owner = getattr(layer, module[0]) if module else layer
            found[name] = next(getattr(owner, v) for v in LEAVES[leaf] if hasattr(owner, v))
    return found


def tensors_of(model: keras.Model) -> dict[str, np.ndarray]:
    """All weights of `model` under mmsegmentation's names, in PyTorch's shapes.

    `load_segmenter(model, tensors_of(model))` changes nothing, bit for bit.

    Raises:
        ValueError: The model is quantised, and has other tensors.
    """
    check_not_quantised(model)
    return exported(variables_of(model), specs_of(model))


def load_segmenter(
    model: keras.Model,
    source: Mapping[str, Any] | str | os.PathLike,
    *,
    adapt: bool = False,
    allow_nonfinite: bool = False,
) -> keras.Model:
    """Loads a segmentation checkpoint into `model`: all of it, or nothing.

    Args:
        model: A `VANSegmenter`; without an auxiliary head, that of the source is left out.
        source: Path of a file as `read_segmenter` takes it, or {tensor name: array} in
            mmsegmentation's names.
        adapt: Where the source has another number of classes, or no auxiliary head, keep what
            `model` has; where it has other input channels, fit the first convolution to them.
            Either is said in a warning.
        allow_nonfinite: Accept NaN and infinities.

    Returns:
        `model`.

    Raises:
        ValueError: The file is refused, or names are missing, unused or mis-shaped; all are
            listed, none assigned.
        OSError: There is no such file.
    """
    if isinstance(source, (str, os.PathLike)):
        tensors: Mapping[str, Any] = read_segmenter(source, allow_nonfinite).tensors
        origin = str(source)
    elif isinstance(source, Mapping):
        tensors, origin = source, "`source`"
    else:
        raise ValueError(
            "`source` must be a path, or a mapping {tensor name: array}. "
            f"Received: {type(source).__name__}"
        )
    specs, changes = specs_of(model), list[str]()
    # A model for inference takes the checkpoint of a training.
    left = () if model.auxiliary else ("auxiliary_head.",)
    unneeded = {name for name in tensors if str(name).startswith(left)}
    try:
        found = split(tensors).tensors
        if adapt:
            found, changes = _adapted(found, specs, model)
        arrays = check(found, specs, unneeded, allow_nonfinite)
    except ValueError as error:
        raise ValueError(
            f"{origin} does not fit model {model.name!r}; nothing was loaded.\n{error}"
        ) from error
    assign(variables_of(model), specs, arrays, changes)
    return model


def load_backbone(model: keras.Model, tensors: Mapping[str, np.ndarray]) -> None:
    """Assigns the tensors of a VAN without a head, in the authors' names and complete."""
    specs = architecture(model).tensors()
    arrays = check(tensors, specs, ("head.weight", "head.bias"), allow_nonfinite=True)
    assign(official_variables(model), specs, arrays)


def _adapted(
    tensors: dict[str, Any], specs: dict[str, TensorSpec], model: keras.Model
) -> tuple[dict[str, Any], list[str]]:
    """`tensors` with heads and first convolution fitted to `specs`; and what changed."""
    tensors, changes, own = dict(tensors), list[str](), tensors_of(model)
    for head, what in (("decode_head", "classes"), ("auxiliary_head", "auxiliary classes")):
        name = f"{head}.conv_seg.weight"
        if name in specs and name in tensors and np.shape(tensors[name]) != specs[name].shape:
            classes = len(tensors[name])
            for leaf in ("weight", "bias"):
                tensors[f"{head}.conv_seg.{leaf}"] = own[f"{head}.conv_seg.{leaf}"]
            changes.append(
                f"The weights' last layer was left out, of {classes:,} {what}: model "
                f"{model.name!r} has {model.num_classes:,} of its own. It is freshly initialised "
                "and needs training."
            )
    missing = [name for name in specs if name.startswith("auxiliary_head.")]
    if missing and not any(name in tensors for name in missing):
        tensors |= {name: own[name] for name in missing}
        changes.append(
            f"The weights have no auxiliary head: that of model {model.name!r} is freshly "
            "initialised and needs training."
        )
    return tensors, changes + fit_input(tensors, specs, f"{BACKBONE}patch_embed1.proj.weight")
