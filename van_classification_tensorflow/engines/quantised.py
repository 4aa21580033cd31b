"""Graphs in 8 bits: by ONNX Runtime's tool, and by NNCF for OpenVINO.

Their ranges come from pictures. `batches` gives those as the graph takes them, anew each time.
"""

from __future__ import annotations

import io
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ..support.extras import missing
from ..support.quiet import quiet_converter

if TYPE_CHECKING:
    import onnx
    import openvino

Batches = Callable[[], Iterable[np.ndarray]]


def quantised_onnx(
    model: onnx.ModelProto, batches: Batches, folder: Path | None = None
) -> onnx.ModelProto:
    """Convolutions and the head in int8; what lies between in float32.

    Args:
        model: With the input `images`.
        batches: As said above.
        folder: For what the tool writes on its way; by default the system's.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter(batches())

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"images": batch} for batch in self.batches), None)

    with tempfile.TemporaryDirectory(dir=folder) as place, quiet_converter():
        written = os.path.join(place, "quantised.onnx")
        quantize_static(
            model,
            written,
            Reader(),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(written)


def openvino_model(graph: bytes) -> openvino.Model:
    """An ONNX graph as OpenVINO quantises and writes it.

    `convert_model` folds what is between a kernel and its convolution into the kernel. As
    `Core.read_model` leaves it, depthwise convolutions stay in floats when the rest is quantised,
    and it takes 1.4 x the time.
    """
    import openvino

    model = openvino.convert_model(io.BytesIO(graph))
    model.input(0).set_names({"images"})
    return model


def quantised_openvino(model: openvino.Model, batches: Batches) -> openvino.Model:
    """Convolutions and the head in int8, as NNCF finds it best."""
    try:
        import nncf
    except ImportError as error:
        raise missing("int8 of OpenVINO", "nncf", "openvino", error) from error

    every = list(batches())
    with quiet_converter():
        return nncf.quantize(
            model,
            nncf.Dataset(every),
            subset_size=len(every),
            # Of the products and sums between convolutions only the precision would go down.
            ignored_scope=nncf.IgnoredScope(types=["Multiply", "Add"], validate=False),
        )
