"""Exported files of every format, tiny and known exactly: what `van export` would write.

The model is linear: `weights` (H x W x C, K) of the flattened image, or (C, K) of its mean over
height and width, which any size has. `expected` is the same in NumPy.
"""

import json
import zipfile
from pathlib import Path

import numpy as np
import pytest

from van_classification_tensorflow.spec.preprocessing import Preprocessing

FORMATS = {"onnx": "m.onnx", "openvino": "m.xml", "litert": "m.tflite", "saved_model": "m"}
KEY = "van_classification_tensorflow"
MEAN, STD = 0.25, 0.5  # of the normalisation inside a uint8 file


def random_weights(rows, outputs=10, seed=0):
    """(rows, outputs), float32."""
    return np.random.default_rng(seed).normal(size=(rows, outputs)).astype(np.float32)


def about(side=32, channels=3, classes=10, labels=None, **changes):
    """The metadata object."""
    record = {
        "name": "van_test.tiny",
        "precision": "float32",
        "input": "float32",
        "output": "logits",
        "activation": "softmax",
        "preprocessing": Preprocessing(
            side, 1.0, "box", (MEAN,) * channels, (STD,) * channels
        ).to_dict(),
        "labels": labels,
        "architecture": {
            "embed_dims": [8],
            "hidden_dims": [16],
            "depths": [1],
            "in_chans": channels,
            "num_classes": classes,
        },
        "version": "2.0.0",
        "assumed": [],
    }
    return record | changes


def expected(images, weights, probabilities=False):
    """What the file must give for these images."""
    if images.dtype == np.uint8:
        images = (images.astype(np.float32) / 255 - MEAN) / STD
    mean = len(weights) == images.shape[3]
    logits = (images.mean((1, 2)) if mean else images.reshape(-1, len(weights))) @ weights
    if probabilities:
        logits = np.exp(logits - logits.max(1, keepdims=True))
        logits /= logits.sum(1, keepdims=True)
    return logits


def build(
    folder,
    format,
    weights,
    metadata=None,
    *,
    batch=1,
    side=32,
    channels=3,
    uint8=False,
    probabilities=False,
):
    """Writes a file and returns its path; skips the test where the format's packages are missing.

    Args:
        folder: Where.
        format: One of `FORMATS`.
        weights: As above.
        metadata: An object, or a text that need not be JSON; None: none.
        batch: None: any.
        side: Pixels; None: any.
        channels: Of the image.
        uint8: Take pixels, and normalise them inside.
        probabilities: Give them instead of logits.
    """
    path = Path(folder) / FORMATS[format]
    text = metadata if metadata is None or isinstance(metadata, str) else json.dumps(metadata)
    shape = (batch, side, side, channels)
    if format in ("onnx", "openvino"):
        model = onnx_model(weights, shape, uint8, probabilities)
        save_onnx(model, path.with_suffix(".onnx"), text)
        if format == "openvino":
            openvino = pytest.importorskip("openvino")
            converted = openvino.Core().read_model(path.with_suffix(".onnx"))
            path.with_suffix(".onnx").unlink()
            if text is not None:
                converted.set_rt_info(text, KEY)
            openvino.save_model(converted, path, compress_to_fp16=False)
        return path
    if format == "litert":
        pytest.importorskip("ai_edge_litert.interpreter")
    tensorflow_model(path, format, weights, shape, uint8, probabilities)
    if text is not None and format == "litert":
        with zipfile.ZipFile(path, "a") as archive:
            archive.writestr("van.json", text)
    elif text is not None:
        (path / "assets.extra").mkdir()
        (path / "assets.extra" / "van.json").write_text(text)
    return path


def onnx_model(weights, shape, uint8=False, probabilities=False):
    """The model as ONNX has it."""
    onnx = pytest.importorskip("onnx")
    from onnx import helper, numpy_helper

    constants = {"weights": weights, "flat": np.array([0, -1]), "sides": np.array([1, 2])}
    constants |= {
        name: np.float32(value) for name, value in (("of", 255), ("mean", MEAN), ("std", STD))
    }
    nodes, at = [], "images"

    def add(kind, *inputs, **attributes):
        nonlocal at
        out = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, [at, *inputs], [out], **attributes))
        at = out

    if uint8:
        add("Cast", to=onnx.TensorProto.FLOAT)
        add("Div", "of")
        add("Sub", "mean")
        add("Div", "std")
    if len(weights) == shape[3]:
        add("ReduceMean", "sides", keepdims=0)
    else:
        add("Reshape", "flat")
    add("MatMul", "weights")
    if probabilities:
        add("Softmax", axis=1)
    nodes[-1].output[0] = name = "probabilities" if probabilities else "logits"
    kind = onnx.TensorProto.UINT8 if uint8 else onnx.TensorProto.FLOAT
    sizes = [n or axis for n, axis in zip(shape, "NHWC", strict=True)]
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("images", kind, sizes)],
        [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [sizes[0], weights.shape[1]])],
        [numpy_helper.from_array(np.asarray(value), n) for n, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def save_onnx(model, path, text=None):
    """Writes a model of `onnx_model`, with its metadata."""
    import onnx

    pytest.importorskip("onnxruntime")
    if text is not None:
        onnx.helper.set_model_props(model, {KEY: text})
    onnx.save(model, path)
    return path


def tensorflow_model(path, format, weights, shape, uint8=False, probabilities=False):
    """The model as LiteRT or SavedModel have it."""
    import tensorflow as tf

    kind = tf.uint8 if uint8 else tf.float32
    module = tf.Module()
    module.weights = tf.Variable(weights)

    @tf.function(input_signature=[tf.TensorSpec(shape, kind, name="images")])
    def serve(images):
        if uint8:
            images = (tf.cast(images, tf.float32) / 255 - MEAN) / STD
        mean = len(weights) == shape[3]
        flat = tf.reduce_mean(images, [1, 2]) if mean else tf.reshape(images, [-1, len(weights)])
        logits = tf.linalg.matmul(flat, module.weights)
        logits = tf.ensure_shape(logits, [shape[0], weights.shape[1]])
        return {"probabilities": tf.nn.softmax(logits)} if probabilities else {"logits": logits}

    module.serve = serve
    if format == "saved_model":
        tf.saved_model.save(module, str(path), signatures={"serving_default": serve})
        return
    concrete = serve.get_concrete_function()
    converter = tf.lite.TFLiteConverter.from_concrete_functions([concrete], module)
    path.write_bytes(converter.convert())
