"""KerasHub's own tests of `VAN` and of its layers, and its heads on a `VAN` itself.

`scripts/test_backends.sh` runs it again on PyTorch, where channels-first heads run on a CPU. It is
not run on JAX: there the backbone's test spends minutes in compiling.
"""

import keras
import numpy as np
import pytest
from keras import ops

from tests.model.test_keras_harness import SMALL, TRAINED
from van_classification_tensorflow import VAN

pytestmark = pytest.mark.slow
BACKEND = keras.backend.backend()
PYRAMID = {
    "embed_dims": [8, 8, 12, 12],
    "mlp_ratios": [2] * 4,
    "depths": [1] * 4,
    "include_top": False,
    "pooling": None,
}
FORMATS = [
    "channels_last",
    pytest.param(
        "channels_first",
        marks=pytest.mark.skipif(
            BACKEND == "tensorflow", reason="TensorFlow's convolutions of the heads, on a CPU"
        ),
    ),
]


def _image_shape(data_format: str) -> tuple:
    return (3, None, None) if data_format == "channels_first" else (None, None, 3)


def _images(data_format: str, size: int = 64) -> np.ndarray:
    images = np.random.default_rng(0).standard_normal((2, size, size, 3)).astype("float32")
    return images.transpose(0, 3, 1, 2) if data_format == "channels_first" else images


def test_backbone(harness, monkeypatch):
    monkeypatch.setattr(VAN, "token_embedding", None, raising=False)  # its test asks for one
    harness.run_vision_backbone_test(
        cls=VAN,
        init_kwargs={**SMALL, "pooling": None},
        input_data=ops.ones((2, 32, 32, 3)),
        expected_output_shape=(2, 4, 4, 12),
        expected_pyramid_output_keys=["P2", "P3"],
        expected_pyramid_image_sizes=[(8, 8), (4, 4)],
    )


@pytest.mark.parametrize("name", [name for name in TRAINED if name != "VAN"])
def test_layer(harness, name):
    kind, arguments = TRAINED[name]
    images = ops.ones((2, 9, 11, 8))
    layer = kind(**arguments)
    output = layer(images)
    harness.run_layer_test(
        cls=kind,
        init_kwargs=arguments,
        input_data=images,
        expected_output_shape=output.shape,
        expected_num_trainable_weights=len(layer.trainable_weights),
        expected_num_non_trainable_weights=len(layer.non_trainable_weights),
        expected_num_non_trainable_variables=len(layer.non_trainable_variables),
    )


@pytest.mark.parametrize("data_format", FORMATS)
def test_segmentation(keras_hub, data_format):
    keras.config.set_image_data_format(data_format)
    backbone = keras_hub.models.DeepLabV3Backbone(
        image_encoder=VAN(**PYRAMID),
        spatial_pyramid_pooling_key="P5",
        low_level_feature_key="P2",
        upsampling_size=8,
        dilation_rates=[1, 2, 3],
        image_shape=_image_shape(data_format),
    )
    model = keras_hub.models.DeepLabV3ImageSegmenter(
        backbone=backbone, num_classes=2, activation="softmax", preprocessor=None
    )
    # Not the sparse loss: see the test below.
    axis = 1 if data_format == "channels_first" else -1
    model.compile("sgd", loss=keras.losses.CategoricalCrossentropy(axis=axis), jit_compile=False)
    classes = np.random.default_rng(1).integers(0, 2, (2, 64, 64))
    labels = np.moveaxis(np.eye(2, dtype="float32")[classes], -1, axis)
    images = _images(data_format)
    before = model.predict(images, verbose=0)
    assert before.shape == labels.shape
    loss = model.fit(images, labels, epochs=1, verbose=0).history["loss"]
    assert np.isfinite(loss).all()
    assert not np.array_equal(model.predict(images, verbose=0), before)


@pytest.mark.parametrize("data_format", FORMATS)
def test_detection(keras_hub, data_format):
    keras.config.set_image_data_format(data_format)
    backbone = keras_hub.models.RetinaNetBackbone(
        image_encoder=VAN(**PYRAMID),
        min_level=3,
        max_level=5,
        use_p5=False,
        image_shape=_image_shape(data_format),
    )
    maps = backbone(_images(data_format))
    assert set(maps) == {"P3", "P4", "P5"}
    channels = {one.shape[1 if data_format == "channels_first" else -1] for one in maps.values()}
    assert channels == {256}


@pytest.mark.parametrize("data_format", FORMATS)
def test_classification_of_a_feature_map(keras_hub, data_format):
    keras.config.set_image_data_format(data_format)
    model = keras_hub.models.ImageClassifier(
        backbone=VAN(**PYRAMID), num_classes=5, pooling="max", preprocessor=None
    )
    assert model.predict(_images(data_format), verbose=0).shape == (2, 5)


@pytest.mark.skipif(BACKEND != "torch", reason="a fault of torch")
@pytest.mark.xfail(reason="torch's NLLLoss of strided maps, pytorch/pytorch#175084", strict=False)
def test_sparse_loss_of_feature_maps_without_a_van():
    """Why DeepLabV3 cannot be trained on its default labels there: no part of this package."""
    import torch

    predicted = torch.rand(2, 4, 4, 3, requires_grad=True)
    labels = torch.zeros(2, 4, 4, dtype=torch.int64)
    keras.losses.SparseCategoricalCrossentropy()(labels, predicted).backward()
