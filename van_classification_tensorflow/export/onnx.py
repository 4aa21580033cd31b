"""Writes ONNX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..engines.onnx_graph import onnx_model
from ..engines.quantised import quantised_onnx
from ..spec.card import METADATA_KEY
from ..weights.fold import fold
from .job import Job

if TYPE_CHECKING:
    import onnx


def write(job: Job, path: Path) -> None:
    import onnx

    model = graph(job)
    if job.about.precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    elif job.about.precision == "int8":
        model = quantised_onnx(model, job.batches, path.parent)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, job.about.to_json()
    onnx.save(model, os.fspath(path))


def graph(job: Job) -> onnx.ModelProto:
    source = job.source
    return onnx_model(
        fold(source.tensors),
        source.sizes,
        name=source.card.name,
        batch_size=job.batch_size,
        image_size=(job.image_size, job.image_size),
        normalisation=source.preprocessing if job.about.input == "uint8" else None,
        activation=source.card.activation if job.about.output == "probabilities" else None,
        pooling=source.card.pooling,
    )
