"""Writes LiteRT's flatbuffer."""

from __future__ import annotations

import tempfile
import zipfile
from pathlib import Path

import numpy as np

from ..spec.card import LITERT_METADATA
from .job import Job, quiet
from .saved_model import tensorflow_function

# XNNPACK, LiteRT's kernels on CPUs, has 8-bit depthwise kernels up to so many taps, and none for
# these operations: GELU, and the parts of layer normalisation. In between, what is in floats runs
# in one piece with the rest; in 8 bits each would be left to a slow kernel outside. B0: 11.6 -> 7.8
# ms, and 120 ms with all taps at once.
_LITERT_TAPS = 25
_LITERT_FLOATS = ["GELU", "MEAN", "NEG", "RSQRT", "SQUARED_DIFFERENCE"]


def write(job: Job, path: Path) -> None:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function, _ = tensorflow_function(job, _LITERT_TAPS)
    # The converter's calibration reads no variables, and only a SavedModel keeps the names.
    constant = convert_variables_to_constants_v2(function.get_concrete_function())
    output = job.about.output

    @tf.function(input_signature=function.input_signature)
    def frozen(images):
        return {output: constant(images)[0]}

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, quiet():
        module = tf.Module()
        module.function = frozen
        tf.saved_model.save(
            module,
            folder,
            {"serving_default": frozen.get_concrete_function()},
            tf.saved_model.SaveOptions(experimental_custom_gradients=False),  # none are needed
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        if job.about.precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if job.about.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if job.about.precision == "int8":
            converter.representative_dataset = lambda: ({"images": b} for b in job.batches())
            # The tool for quantising all but some operations; nothing is debugged.
            options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=_LITERT_FLOATS)
            selective = tf.lite.experimental.QuantizationDebugger(
                converter=converter,
                debug_dataset=converter.representative_dataset,
                debug_options=options,
            )
            written = _with_shared_vectors(selective.get_nondebug_quantized_model())
        else:
            written = converter.convert()
    path.write_bytes(written)
    # Files that go with a LiteRT model stand in a zip archive behind it.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LITERT_METADATA, job.about.to_json())


def _with_shared_vectors(model: bytes) -> bytes:
    """The same LiteRT model, each of its vectors of numbers stored once.

    The converter stores a zero point of 8 bytes for every channel of every tensor, all of them 0:
    a tenth of an int8 model's size.
    """
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    class Builder(flatbuffers.Builder):
        def __init__(self) -> None:
            super().__init__(len(model))
            self.vectors: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 - flatbuffers' name
            key = (x.dtype.str, x.tobytes())
            if key not in self.vectors:
                self.vectors[key] = super().CreateNumpyVector(x)
            return self.vectors[key]

    builder = Builder()
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())
