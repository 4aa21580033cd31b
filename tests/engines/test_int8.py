"""Weights in 8 bits: near float32, said how near, and refused where they decide otherwise."""

from dataclasses import replace

import keras
import numpy as np
import pytest

from tests.engines.test_of_weights import no_keras
from van_classification_tensorflow.datasets.calibration import calibration_of, digits
from van_classification_tensorflow.engines import graph_runner, int8
from van_classification_tensorflow.engines.graph_runner import GraphRunner
from van_classification_tensorflow.engines.int8 import choose_int8
from van_classification_tensorflow.engines.numpy_forward import forward
from van_classification_tensorflow.engines.of_weights import Model, choose_engine, onnx_of
from van_classification_tensorflow.weights.pretrained import open_pretrained

pytest.importorskip("onnxruntime")


@pytest.fixture(scope="module")
def model():
    """The bundled model."""
    weights = open_pretrained("digits").weights
    return Model(weights.tensors, weights.architecture, 32, 1)


@pytest.fixture(scope="module")
def calibration():
    """24 of its training pictures."""
    found = calibration_of("digits", open_pretrained("digits").card.preprocessing)
    return replace(found, crops=found.crops[:24])


@pytest.fixture(scope="module")
def unseen(calibration):
    """40 that it has not seen, (N, 32, 32, 1)."""
    crops = np.kron(np.stack(digits(train=False)[:40]), np.ones((4, 4), np.uint8))[..., None]
    return calibration.prepared(crops)


def check(chosen, engine, model, pictures):
    """It is what its description says, for features, single pictures and in threads."""
    assert (chosen.name, chosen.precision, chosen.pictures) == (engine, "int8", 24)
    assert 1e-3 < chosen.difference < 0.3  # it is not float32 by another name
    assert chosen.agreement >= 0.95
    features, logits = forward(model.tensors, model.sizes, pictures)
    found = chosen.engine(pictures)
    assert (found.argmax(1) == logits.argmax(1)).mean() >= 0.95
    assert abs(found - logits).max() < 0.3 * abs(logits).max()
    found = chosen.engine(pictures, features=True)
    assert abs(found - features).max() < 0.3 * abs(features).max()
    for one in (chosen.engine(pictures[:1]), chosen.engine.submit(pictures[:1]).result()):
        assert abs(one - logits[:1]).max() < 0.3 * abs(logits).max()


@pytest.mark.parametrize(
    "engine",
    [
        "onnxruntime",
        pytest.param("openvino", marks=pytest.mark.slow),
        pytest.param("litert", marks=pytest.mark.slow),
    ],
)
def test_near_float32(model, calibration, unseen, engine):
    if engine == "openvino":
        pytest.importorskip("nncf")
    elif engine == "litert":
        pytest.importorskip("ai_edge_litert")
        if keras.backend.backend() != "tensorflow":
            pytest.skip("TensorFlow converts for it")
    chosen = choose_int8(model, calibration, no_keras, engine, threads=2)
    check(chosen, engine, model, unseen)
    said = chosen.describe()
    assert "int8: as asked" in said
    assert (
        "are those of 24 pictures of the bundled digits (so few say little); differs from " in said
    )
    assert "in float32 there by " in said
    assert f"best class the same for {chosen.agreement:.1%}" in said


def test_without_nncf_onnxruntime_is_taken_and_that_is_said(
    monkeypatch, model, calibration, unseen
):
    pytest.importorskip("openvino")
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    chosen = choose_int8(model, calibration, no_keras)
    check(chosen, "onnxruntime", model, unseen)
    assert "int8 of OpenVINO needs nncf: pip install" in chosen.describe()
    with pytest.raises(ValueError, match=r"was refused on 24 pictures .* nncf"):
        choose_int8(model, calibration, no_keras, "openvino")


def giving(change):
    """What quantises as if it changed the tensors of the head so."""

    def graph(model, calibration, shape):
        tensors = dict(model.tensors)
        change(tensors)
        return onnx_of(replace(model, tensors=tensors), shape).SerializeToString()

    return graph


def negated(tensors):
    tensors["head.weight"] = -tensors["head.weight"]


def no_number(tensors):
    tensors["head.bias"] = tensors["head.bias"] * np.nan


def shifted(tensors):
    """By more than is allowed without a decision; the decision is the same."""
    tensors["head.bias"] = tensors["head.bias"] + 100


def other_features(tensors):
    """Which give the same logits."""
    last = max(n for n in tensors if n.startswith("norm") and n.endswith("bias"))
    tensors[last] = tensors[last] + 100
    weight = tensors["head.weight"]
    tensors["head.bias"] = tensors["head.bias"] - 100 * weight.sum(1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (other_features, "its features differ by"),
        (negated, r"its best class is the same for \d.*% of the pictures, not 90%"),
        (no_number, "differs by nan"),
    ],
)
def test_what_decides_otherwise_is_refused(monkeypatch, model, calibration, change, says):
    monkeypatch.setitem(int8._GRAPHS, "onnxruntime", giving(change))
    with pytest.raises(ValueError, match=f"`precision`='int8' was refused .*{says}"):
        choose_int8(model, calibration, no_keras, "onnxruntime")


def test_what_decides_the_same_is_taken_whatever_the_difference(monkeypatch, model, calibration):
    monkeypatch.setitem(int8._GRAPHS, "onnxruntime", giving(shifted))
    chosen = choose_int8(model, calibration, no_keras, "onnxruntime")
    assert chosen.difference > 1
    assert chosen.agreement == 1.0
    with pytest.raises(ValueError, match="differs by"):  # where each class is a decision
        choose_int8(model, calibration, no_keras, "onnxruntime", "sigmoid")


def test_a_picture_alone_is_looked_at(monkeypatch, model, calibration):
    class Lying(graph_runner._OnnxRuntime):
        def __call__(self, graph, threads, together):
            made = super().__call__(graph, threads, together)
            return made if together else replace(made, run=lambda x: [-o for o in made.run(x)])

    asked = choose_int8(model, calibration, no_keras, "onnxruntime", threads=2)
    assert asked.name == "onnxruntime"
    monkeypatch.setattr(int8, "choose_engine", lambda *_, **__: asked)
    monkeypatch.setattr(graph_runner, "_OnnxRuntime", Lying)
    with pytest.raises(ValueError, match="a picture alone differs by"):
        choose_int8(model, calibration, no_keras, "onnxruntime", threads=2)


@pytest.mark.parametrize("classes", [1, None])
def test_without_classes_the_difference_counts(monkeypatch, model, calibration, classes):
    """Of features, and of a decision between two, a share of the pictures says little."""
    tensors = {n: a for n, a in model.tensors.items() if not n.startswith("head.")}
    if classes:
        tensors |= {"head.weight": model.tensors["head.weight"][:1], "head.bias": np.zeros(1, "f4")}
    one = Model(tensors, replace(model.sizes, num_classes=classes), 32, 1)
    chosen = choose_int8(one, calibration, no_keras, "onnxruntime")
    assert 1e-3 < chosen.difference < 0.3
    assert (chosen.agreement is None) == (classes is None)

    def changed(model, calibration, shape):
        last = max(n for n in tensors if n.startswith("norm") and n.endswith("bias"))
        other = {**model.tensors, last: model.tensors[last] + 100}
        return onnx_of(replace(model, tensors=other), shape).SerializeToString()

    monkeypatch.setitem(int8._GRAPHS, "onnxruntime", changed)
    with pytest.raises(ValueError, match=r"was refused .* differ"):
        choose_int8(one, calibration, no_keras, "onnxruntime")


def test_it_is_quantised_once(monkeypatch, model, calibration, unseen):
    asked, quantise = [], int8._GRAPHS["onnxruntime"]

    def watched(*arguments):
        asked.append(arguments[-1])
        return quantise(*arguments)

    monkeypatch.setitem(int8._GRAPHS, "onnxruntime", watched)
    chosen = choose_int8(model, calibration, no_keras, "onnxruntime", threads=2)
    chosen.engine(unseen[:1])
    chosen.engine(unseen[:3])
    assert asked == [(32, 32, 1)]


@pytest.mark.slow
def test_litert_in_float32(model, unseen):
    """Proven as the others are; its interpreters are asked by many threads."""
    pytest.importorskip("ai_edge_litert")
    if keras.backend.backend() != "tensorflow":
        with pytest.raises(ValueError, match="by the TensorFlow backend of Keras"):
            choose_engine(model, no_keras, "litert")
        return
    chosen = choose_engine(model, no_keras, "litert", threads=2)
    assert chosen.difference < 1e-5
    assert "LiteRT" in chosen.describe()
    assert "converted by TensorFlow" in chosen.describe()
    features, logits = forward(model.tensors, model.sizes, unseen)
    for count in (1, 2, 7):
        np.testing.assert_allclose(chosen.engine(unseen[:count]), logits[:count], atol=1e-5)
    np.testing.assert_allclose(chosen.engine(unseen, features=True), features, atol=1e-5)
    assert isinstance(chosen.engine.runner, GraphRunner)
    bare = {n: a for n, a in model.tensors.items() if not n.startswith("head.")}
    found = choose_engine(
        replace(model, tensors=bare, sizes=replace(model.sizes, num_classes=None)),
        no_keras,
        "litert",
    )
    np.testing.assert_allclose(found.engine(unseen), features, atol=1e-5)
