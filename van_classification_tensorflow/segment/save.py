"""A `VANSegmenter` -> a file of its tensors under mmsegmentation's names."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import keras
import numpy as np

from ..export.convert import write_safetensors
from ..spec.decoders import LIGHT_HAM
from ..support.files import write_atomically
from ..weights.formats.torch import write_torch
from ..weights.sidecars import to_openmmlab
from .load import tensors_of

_TORCH = (".pth", ".pth.tar", ".pt")


def save_segmenter(model: keras.Model, path: str | os.PathLike) -> None:
    """Writes all weights, labels, palette, preprocessing and what else no tensor tells.

    Args:
        model: A `VANSegmenter`.
        path: `*.safetensors` or `*.pth` (also .pth.tar, .pt), which mmsegmentation's
            `load_checkpoint` takes; replaced if it is there, whole or not at all. The backbone's
            names are those of the authors' own code.

    Raises:
        ValueError: The name ends otherwise, or the model is quantised.
        OSError: It could not be written.
    """
    path = Path(path)
    if not path.name.endswith((".safetensors", *_TORCH)):
        raise ValueError(
            f"`path` must end in .safetensors or {', '.join(_TORCH)}. Received: {path}"
        )
    tensors, said = tensors_of(model), description(model)
    if path.name.endswith(".safetensors"):
        write_atomically(path, lambda new: write_safetensors(new, tensors, said))
        return
    counters: dict[str, np.ndarray] = {
        name.replace("running_var", "num_batches_tracked"): np.zeros((), np.int64)
        for name in tensors
        if name.endswith(".running_var")
    }
    beside: dict[str, Any] = {"van": json.dumps(said)}
    if meta := to_openmmlab(model.labels, model.num_classes):
        beside["meta"] = meta
    write_atomically(path, lambda new: write_torch(new, tensors | counters, beside=beside))


def description(model: keras.Model) -> dict[str, Any]:
    """What a file says beside the tensors, as `read_segmenter` takes it."""
    said = {"decoder": model.decoder, "norm_epsilon": model.norm_epsilon}
    said |= model.sizes.numbers()
    if model.decoder == LIGHT_HAM:
        said["ham_seed"] = model.ham_seed
    if model.labels is not None:
        said["labels"] = list(model.labels)
    if model.palette is not None:
        said["palette"] = [list(colour) for colour in model.palette]
    if model.preprocessing is not None:
        said["preprocessing"] = model.preprocessing.to_dict()
    return said
