"""Writes TensorFlow's SavedModel."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engines.flatbuffer import tensorflow_function
from ..spec.card import SAVED_MODEL_METADATA
from .job import Job

if TYPE_CHECKING:
    import keras


def write(job: Job, path: Path) -> None:
    function, model = function_of(job)
    save(model, function, job.about.to_json(), path)


def save(model: keras.Model, function: Any, metadata: str, path: Path) -> None:
    """Writes a tf.function as the signature, beside what the folder says of itself.

    Args:
        model: Whose variables `function` uses.
        function: tf.function with its input signature.
        metadata: ASCII.
        path: The folder.
    """
    import tensorflow as tf

    module = tf.Module()
    module.model, module.function = model, function  # or their variables would be gone
    tf.saved_model.save(
        module,
        os.fspath(path),
        signatures={"serving_default": function.get_concrete_function()},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    extra = path / SAVED_MODEL_METADATA
    extra.parent.mkdir(exist_ok=True)
    extra.write_text(metadata, encoding="ascii")


def function_of(job: Job, max_taps: int | None = None) -> tuple[Any, keras.Model]:
    """(tf.function, the model whose variables it uses); `max_taps` as of `DepthwiseConv`."""
    source, about = job.source, job.about
    model = source.keras_model(logits=about.output != "probabilities", image_size=job.image_size)
    if job.fused:
        from ..model.fused import fuse

        model = fuse(model)
    shape = (job.batch_size, job.image_size, job.image_size, source.sizes.in_chans)
    normalisation = source.preprocessing if about.input == "uint8" else None
    return tensorflow_function(model, shape, about.output, normalisation, max_taps), model
