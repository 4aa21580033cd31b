"""The graph by itself: what it takes and gives, and that no runtime need guess at it."""

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import GOLDEN, MICRO
from van_classification_tensorflow import VAN, Preprocessing, load_checkpoint
from van_classification_tensorflow.engines.onnx_graph import onnx_model
from van_classification_tensorflow.engines.onnx_nodes import OPSET
from van_classification_tensorflow.spec.architecture import architecture_of
from van_classification_tensorflow.weights.fold import fold

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

TENSORS = load_file(GOLDEN / "micro.safetensors")
SIZES = architecture_of(TENSORS)
FOLDED = fold(TENSORS)
SIZE = {"batch_size": 4, "image_size": (64, 96)}  # of the golden images


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "micro.npz") as data:
        return dict(data)


def _run(model, images):
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    (output,) = session.run(None, {"images": images})
    return output


def test_logits_of_the_authors_code(golden):
    model = onnx_model(FOLDED, SIZES, **SIZE)
    logits = _run(model, golden["x"])
    assert abs(logits - golden["eval_logits"]).max() <= 1e-5
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & {"BatchNormalization", "MatMul", "Erf"}
    # One for the input, and none between the convolutions.
    assert sum(node.op_type == "Transpose" for node in model.graph.node) == 1


def test_names_and_shapes_are_stable():
    model = onnx_model(FOLDED, SIZES, **SIZE)
    (given,), (made,) = model.graph.input, model.graph.output
    assert (given.name, made.name) == ("images", "logits")
    dims = [[d.dim_value for d in one.type.tensor_type.shape.dim] for one in (given, made)]
    assert dims == [[4, 64, 96, 3], [4, 10]]
    assert [(o.domain, o.version) for o in model.opset_import] == [("", OPSET)]
    assert {c.name for c in model.graph.initializer} >= set(FOLDED)


def test_any_number_and_any_size(golden):
    model = onnx_model(FOLDED, SIZES, batch_size=None, image_size=(None, None))
    names = [d.dim_param for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert names[:3] == ["batch", "height", "width"]
    assert abs(_run(model, golden["x"]) - golden["eval_logits"]).max() <= 1e-5
    keras_model = load_checkpoint(VAN(**MICRO, classifier_activation=None), TENSORS)
    odd = golden["x"][:1, :51, :77]
    expected = keras.ops.convert_to_numpy(keras_model(odd))
    assert abs(_run(model, odd) - expected).max() <= 1e-5


def test_pixels_are_normalised_inside():
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 96, 3), np.uint8)
    preprocessing = Preprocessing(64, mean=(0.1, 0.5, 0.9), std=(0.2, 0.5, 1.0))
    inside = onnx_model(FOLDED, SIZES, **SIZE, normalisation=preprocessing)
    outside = onnx_model(FOLDED, SIZES, **SIZE)
    expected = _run(outside, preprocessing.normalise(pixels))
    assert abs(_run(inside, pixels) - expected).max() <= 1e-5


def test_probabilities(golden):
    logits = golden["eval_logits"].astype(np.float64)
    expected = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    model = onnx_model(FOLDED, SIZES, **SIZE, activation="softmax")
    assert model.graph.output[0].name == "probabilities"
    assert abs(_run(model, golden["x"]) - expected).max() <= 1e-6


@pytest.mark.parametrize("pooling", ["avg", "max"])
def test_features(golden, pooling):
    headless = {n: a for n, a in TENSORS.items() if not n.startswith("head")}
    sizes = architecture_of(headless)
    model = onnx_model(fold(headless), sizes, **SIZE, pooling=pooling)
    assert model.graph.output[0].name == "features"
    backbone = VAN(**{**MICRO, "include_top": False}, pooling=pooling)
    load_checkpoint(backbone, headless)
    expected = keras.ops.convert_to_numpy(backbone(golden["x"]))
    assert abs(_run(model, golden["x"]) - expected).max() <= 1e-5
