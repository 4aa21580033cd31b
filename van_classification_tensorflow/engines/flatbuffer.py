"""A Keras model as a function of TensorFlow, and that as LiteRT's flatbuffer.

Only TensorFlow has a converter for LiteRT, and only for the backend TensorFlow of Keras.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.architecture import Architecture
from ..spec.preprocessing import Preprocessing
from ..support.quiet import quiet_converter
from .quantised import Batches

if TYPE_CHECKING:
    import keras

# XNNPACK, LiteRT's kernels on CPUs, has 8-bit depthwise kernels up to so many taps, and none for
# these operations: GELU, and the parts of layer normalisation. In between, what is in floats runs
# in one piece with the rest; in 8 bits each would be left to a slow kernel outside. B0: 11.6 -> 7.8
# ms, and 120 ms with all taps at once.
LITERT_TAPS = 25
_LITERT_FLOATS = ["GELU", "MEAN", "NEG", "RSQRT", "SQUARED_DIFFERENCE"]


def check_backend(what: str, backend: str | None = None) -> None:
    """Raises `ValueError` where Keras's backend cannot write `what`.

    Args:
        what: In words.
        backend: By default the one that Keras has; it starts for that.
    """
    if backend is None:
        import keras

        backend = keras.backend.backend()
    if backend != "tensorflow":
        raise ValueError(
            f"{what} is written by the TensorFlow backend of Keras: KERAS_BACKEND=tensorflow. "
            f"It is {backend}"
        )


def check_named_backend(what: str) -> None:
    """`check_backend` of what the environment says, before Keras starts."""
    check_backend(what, os.environ.get("KERAS_BACKEND") or "tensorflow")


def tensorflow_function(
    model: keras.Model,
    shape: tuple[int | None, ...],
    output: str,
    normalisation: Preprocessing | None = None,
    max_taps: int | None = None,
) -> Any:
    """The tf.function `images` -> {name: output} of a model, which must live as long.

    Args:
        model: Of one output, or of a dictionary of outputs.
        shape: (B, H, W, C) of the images; None for any size.
        output: Name of the one output.
        normalisation: The images are uint8, 0 to 255, and (x / 255 - mean) / std comes first;
            None: they are float32, normalised.
        max_taps: As of `DepthwiseConv`; set in the model.
    """
    import tensorflow as tf

    from ..model.layers import DepthwiseConv

    for layer in model._flatten_layers():
        if isinstance(layer, DepthwiseConv):
            layer.max_taps = max_taps
    dtype = "float32" if normalisation is None else "uint8"
    if normalisation is not None:
        mean, std = (np.float32(x) for x in (normalisation.mean, normalisation.std))

    @tf.function(input_signature=[tf.TensorSpec(shape, dtype, name="images")])
    def function(images):
        if normalisation is not None:
            images = (tf.cast(images, tf.float32) / 255.0 - mean) / std
        found = model(images, training=False)
        return found if isinstance(found, dict) else {output: found}

    return function


def flatbuffer(
    function: Any, precision: str, batches: Batches | None = None, folder: Path | None = None
) -> bytes:
    """LiteRT's model of a `tensorflow_function` that was made with `LITERT_TAPS`.

    Args:
        function: Of a fixed shape.
        precision: "float32", "float16" (of the weights) or "int8".
        batches: As of `quantised`, for int8.
        folder: For what the converter reads; by default the system's.
    """
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    # The converter's calibration reads no variables, and only a SavedModel keeps the names.
    concrete = function.get_concrete_function()
    constant = convert_variables_to_constants_v2(concrete)
    names = sorted(concrete.structured_outputs)  # as TensorFlow orders what is in dictionaries

    @tf.function(input_signature=function.input_signature)
    def frozen(images):
        return dict(zip(names, constant(images), strict=True))

    with tempfile.TemporaryDirectory(dir=folder) as place, quiet_converter():
        module = tf.Module()
        module.function = frozen
        tf.saved_model.save(
            module,
            place,
            {"serving_default": frozen.get_concrete_function()},
            tf.saved_model.SaveOptions(experimental_custom_gradients=False),  # none are needed
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(
            place, signature_keys=["serving_default"]
        )
        if precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if precision != "int8":
            return converter.convert()
        assert batches is not None  # noqa: S101 - int8 has its pictures
        converter.representative_dataset = lambda: ({"images": b} for b in batches())
        # The tool for quantising all but some operations; nothing is debugged.
        options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=_LITERT_FLOATS)
        selective = tf.lite.experimental.QuantizationDebugger(
            converter=converter,
            debug_dataset=converter.representative_dataset,
            debug_options=options,
        )
        return _with_shared_vectors(selective.get_nondebug_quantized_model())


def flatbuffer_of_weights(
    tensors: Any,
    sizes: Architecture,
    shape: tuple[int, ...],
    precision: str = "float32",
    batches: Batches | None = None,
) -> bytes:
    """LiteRT's model of weights, folded: logits and features of one picture, or features alone.

    Args:
        tensors: By the authors' names.
        sizes: Their architecture.
        shape: (H, W, C) of the picture.
        precision: As of `flatbuffer`.
        batches: As of `flatbuffer`.

    Raises:
        ValueError: Keras has another backend than TensorFlow.
    """
    check_backend("the program of `engine`='litert'")
    import keras

    from ..model.build import build_van
    from ..model.fused import fuse

    model: keras.Model = fuse(build_van(sizes, tensors, img_resolution=shape[:2], dtype="float32"))
    if sizes.num_classes is not None:
        outputs = {"logits": model.output, "features": model.get_layer("pool").output}
        model = keras.Model(model.input, outputs)
    function = tensorflow_function(model, (1, *shape), "features", max_taps=LITERT_TAPS)
    return flatbuffer(function, precision, batches)


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
