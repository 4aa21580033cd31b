"""Which engine is tried first, for how many pictures, and that all of them are the same model."""

from dataclasses import replace

import numpy as np
import pytest

from tests.engines.test_graph_runner import small
from tests.parity import seeded_images
from van_classification_tensorflow.engines import graph_runner, of_weights
from van_classification_tensorflow.engines.numpy_forward import forward
from van_classification_tensorflow.engines.of_weights import Model, choose_engine
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.spec.config import CONFIGURATIONS


def no_keras():
    raise AssertionError("nobody asked for it")


def family(name, views=1, side=224):
    one = CONFIGURATIONS[name]
    return Model(
        {}, Architecture(one.embed_dims, one.hidden_dims, one.depths, 3, 1000), side, views
    )


def test_who_is_tried_first():
    model = family("van_b0")
    assert model.numpy_limit == 2
    for few in (None, 3, 500):
        assert model.order(few, "float32") == ["onnxruntime", "openvino", "keras"]
    assert model.order(10**5, "float32")[0] == "openvino"
    assert model.order(500, "bfloat16") == ["openvino", "keras"]
    assert family("van_b0", side=32).numpy_limit > 60
    assert family("van_b0", views=10).numpy_limit == 0


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("pictures", [1, 100])
def test_five_channels(engine, pictures):
    pytest.importorskip(engine)
    tensors, sizes = small(in_chans=5)
    chosen = choose_engine(Model(tensors, sizes, 37, 1), no_keras, engine, pictures=pictures)
    images = seeded_images(1, (3, 37, 37, 5))
    features, logits = forward(tensors, sizes, images)
    assert chosen.difference < 2e-6
    assert chosen.engine.format == engine
    np.testing.assert_allclose(chosen.engine(images), logits, atol=1e-5)
    np.testing.assert_allclose(chosen.engine(images, features=True), features, atol=1e-5)
    np.testing.assert_allclose(chosen.engine.submit(images).result(), logits, atol=1e-5)


@pytest.mark.parametrize("lies", [None, True, False])
def test_what_is_converted_once_proves_both_its_programs(monkeypatch, lies):
    """Of LiteRT; ONNX Runtime stands in for it, as its converter takes so long."""

    class Lying(graph_runner._OnnxRuntime):
        def __call__(self, graph, threads, together):
            made = super().__call__(graph, threads, together)
            if together is not lies:
                return made
            return replace(made, run=lambda image: [one + 1 for one in made.run(image)])

    monkeypatch.setattr(of_weights, "_flatbuffer", of_weights._graph)
    monkeypatch.setattr(graph_runner, "_LiteRT", Lying)
    tensors, sizes = small()
    for pictures in (1, 100):

        def choose(pictures=pictures):
            model = Model(tensors, sizes, 32, 1)
            return choose_engine(model, no_keras, "litert", pictures=pictures, threads=2)

        if lies is None:
            assert choose().difference < 2e-6
        else:
            with pytest.raises(ValueError, match=r"does not prove itself: LiteRT .*differs by"):
                choose()


def test_a_gpu_is_mentioned(monkeypatch, tmp_path):
    tensors, sizes = small()
    monkeypatch.setattr(of_weights, "Path", lambda _: tmp_path)
    chosen = choose_engine(Model(tensors, sizes, 32, 1), no_keras, pictures=5)
    assert "`keras` may use the GPU" in chosen.describe()
