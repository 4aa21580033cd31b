"""Writes ONNX."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..engines.onnx_graph import onnx_model
from ..spec.card import METADATA_KEY
from ..weights.fold import fold
from .job import Job, quiet

if TYPE_CHECKING:
    import onnx


def write(job: Job, path: Path) -> None:
    import onnx

    model = graph(job)
    if job.about.precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    elif job.about.precision == "int8":
        model = _quantised(job, model, path.parent)
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


def _quantised(job: Job, model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Convolutions and the head in int8, by ONNX Runtime's tool; what lies between in float32."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = job.batches()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"images": batch} for batch in self.batches), None)

    written = folder / "quantised.onnx"
    with quiet():
        quantize_static(
            model,
            os.fspath(written),
            Reader(),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    quantised = onnx.load(os.fspath(written))
    written.unlink()
    return quantised
