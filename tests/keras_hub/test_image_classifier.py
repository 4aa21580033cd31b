"""`VANImageClassifier`: KerasHub's own test of a task, the authors' logits, folders, presets."""

import json
import warnings
from pathlib import Path

import keras
import numpy as np
import pytest
from keras import ops
from PIL import Image

from tests.model.test_preprocessing_layer import pictures
from tests.parity import GOLDEN, INPUTS, seeded_images, seeded_tensor
from van_classification_tensorflow import VAN, Preprocessing
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.spec.config import CONFIGURATIONS
from van_classification_tensorflow.weights import pretrained
from van_classification_tensorflow.weights.catalogue import CATALOGUE, of_task
from van_classification_tensorflow.weights.formats.torch import write_torch

pytestmark = pytest.mark.slow
BACKEND = keras.backend.backend()


def small(hub, **kwargs):
    backbone = hub.VANBackbone(embed_dims=[8, 12], mlp_ratios=[2, 2], depths=[1, 1], **kwargs)
    converter = hub.VANImageConverter.of(Preprocessing(32))
    preprocessor = hub.VANImageClassifierPreprocessor(converter)
    return {"backbone": backbone, "preprocessor": preprocessor, "num_classes": 4}


def logits(classifier, images) -> np.ndarray:
    """Of images that are prepared already."""
    return ops.convert_to_numpy(classifier(images))


def test_kerashubs_own_test(hub, harness):
    harness.run_task_test(
        cls=hub.VANImageClassifier,
        init_kwargs={**small(hub), "activation": "softmax"},
        train_data=(pictures(40, 61)[:2], np.array([0, 3])),
        expected_output_shape=(2, 4),
    )
    harness.run_preprocessing_layer_test(
        cls=hub.VANImageClassifierPreprocessor,
        init_kwargs={"image_converter": small(hub)["preprocessor"].image_converter},
        input_data=(pictures(40, 61)[:2], [0, 3], [1.0, 2.0]),
    )


@pytest.mark.parametrize("file", ["micro_official.pth.tar", "micro.safetensors", "micro_hf"])
def test_the_authors_logits_and_of_the_folder_the_same(keras_hub, hub, tmp_path, file):
    classifier = hub.VANImageClassifier.from_weights(GOLDEN / file)
    with np.load(GOLDEN / "micro.npz") as golden:
        images, expected = golden["x"], golden["eval_logits"]
    found = logits(classifier, images)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    if file != "micro.safetensors":
        return
    classifier.save_to_preset(tmp_path / "preset")
    classifier.save(tmp_path / "classifier.keras")
    preset = str(tmp_path / "preset")
    for again in (
        keras_hub.models.ImageClassifier.from_preset(preset),
        hub.VANImageClassifier.from_preset(preset),
        keras.saving.load_model(tmp_path / "classifier.keras"),
    ):
        assert type(again) is hub.VANImageClassifier
        assert again.preprocessor.image_converter.preprocessing == Preprocessing()
        np.testing.assert_array_equal(logits(again, images), found)
    backbone = keras_hub.models.Backbone.from_preset(preset)
    assert type(backbone) is hub.VANBackbone
    features = ops.convert_to_numpy(backbone(images))
    np.testing.assert_array_equal(features, ops.convert_to_numpy(classifier.backbone(images)))
    for kind, loaded in (
        (hub.VANImageConverter, keras_hub.layers.ImageConverter.from_preset(preset)),
        (
            hub.VANImageClassifierPreprocessor,
            keras_hub.models.ImageClassifierPreprocessor.from_preset(preset),
        ),
    ):
        assert type(loaded) is kind
    fresh = keras_hub.models.ImageClassifier.from_preset(preset, num_classes=3)
    assert logits(fresh, images).shape == (4, 3)
    np.testing.assert_array_equal(ops.convert_to_numpy(fresh.backbone(images)), features)


def test_from_weights_refuses_and_fits(hub, tmp_path):
    path = GOLDEN / "micro_official.pth.tar"
    other = hub.VANImageClassifier.from_weights(path, num_classes=3, preprocessor=None)
    assert other.preprocessor is None
    assert logits(other, np.zeros((1, 64, 64, 3))).shape == (1, 3)
    other.backbone.save_weights(tmp_path / "features.weights.h5")
    hub.VANBackbone.from_weights(path).load_weights(tmp_path / "features.weights.h5")
    sizes = Architecture((8, 12), (16, 24), (1, 1), 3, None)
    tensors = {name: seeded_tensor(name, spec.shape) for name, spec in sizes.tensors().items()}
    write_torch(tmp_path / "headless.pth", tensors)
    with pytest.raises(ValueError, match="`num_classes` must be given"):
        hub.VANImageClassifier.from_weights(tmp_path / "headless.pth")
    classifier = hub.VANImageClassifier.from_weights(tmp_path / "headless.pth", num_classes=2)
    assert classifier.output_dense.units == 2


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float16"])
def test_scores_stay_in_float32(keras_hub, hub, tmp_path, policy):
    classifier = hub.VANImageClassifier(**small(hub, dtype=policy))
    assert classifier.backbone.compute_dtype == policy.removeprefix("mixed_")
    images = np.zeros((1, 32, 32, 3), "float32")
    scores = logits(classifier, images)
    assert scores.dtype == "float32"
    if policy.startswith("mixed"):
        classifier.save_to_preset(tmp_path)
        again = keras_hub.models.ImageClassifier.from_preset(str(tmp_path), dtype=policy)
        np.testing.assert_array_equal(logits(again, images), scores)
        assert keras_hub.models.ImageClassifier.from_preset(str(tmp_path)).compute_dtype == (
            "float32"
        )


@pytest.mark.thorough("Keras's int8, as tests/model/test_van.py has it, in most of a minute")
@pytest.mark.skipif(BACKEND == "torch", reason="Keras's int8 product there")
def test_int8_with_its_head(keras_hub, hub, tmp_path):
    classifier = hub.VANImageClassifier.from_weights(GOLDEN / "micro_official.pth.tar")
    with np.load(GOLDEN / "micro.npz") as golden:
        images, expected = golden["x"], golden["eval_logits"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        classifier.quantize("int8")
    assert classifier.output_dense.quantization_mode == "int8"
    found = logits(classifier, images)
    assert np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    classifier.save_to_preset(tmp_path / "preset")
    classifier.save(tmp_path / "classifier.keras")
    for again in (
        keras_hub.models.ImageClassifier.from_preset(str(tmp_path / "preset")),
        keras.saving.load_model(tmp_path / "classifier.keras"),
    ):
        assert again.output_dense.quantization_mode == "int8"
        np.testing.assert_array_equal(logits(again, images), found)


def test_every_published_checkpoint_is_a_preset(keras_hub, hub):
    presets = hub.VANBackbone.presets
    assert presets == hub.VANImageClassifier.presets == hub.VANImageConverter.presets
    records = of_task("classification")
    names = {record.name: name for name, record in zip(presets, records, strict=True)}
    assert names["van_b0.in1k"] == "van_b0_imagenet"
    assert names["van_b4.in22k"] == "van_b4_imagenet22k"
    assert names["van_b6.in22k_backbone"] == "van_b6_imagenet22k_backbone"
    assert names["digits"] == "van_digits"
    assert set(presets) <= set(keras_hub.models.ImageClassifier.presets)
    for record in records:
        metadata = presets[names[record.name]]["metadata"]
        assert metadata["path"] == "van"
        assert metadata.get("params") == record.parameters
        assert record.dataset in metadata["description"]
    with pytest.raises(KeyError):
        presets["van_digits"]["kaggle"]


def test_threads_share_the_folder_of_a_preset(hub, monkeypatch):
    from concurrent.futures import ThreadPoolExecutor
    from threading import Barrier

    from van_classification_tensorflow.keras_hub import presets as module

    preset, start, made = module.Preset(CATALOGUE["digits"]), Barrier(4), []

    def files(record):
        made.append(module._MAKING.locked())  # so that the others wait
        return {"config.json": {}}

    def ask(_):
        start.wait(10)
        return preset["kaggle_handle"]

    monkeypatch.setattr(module, "preset_files", files)
    with ThreadPoolExecutor(4) as pool:
        (folder,) = set(pool.map(ask, range(4)))
    assert made == [True]
    assert json.loads(Path(folder, "config.json").read_text()) == {}


def test_the_digits_are_read(keras_hub, hub):
    classifier = keras_hub.models.ImageClassifier.from_preset("van_digits")
    assert type(classifier) is hub.VANImageClassifier
    _, digits = load_digits()
    scans = np.round(digits.pixels[..., None] * (255 / 16)).astype("uint8")
    scores = classifier.predict(scans, verbose=0)
    assert (scores.argmax(-1) == digits.labels).mean() == pytest.approx(
        357 / 360
    )  # as `van evaluate` has it


def test_the_folder_of_a_preset_is_what_kerashub_would_write(hub, tmp_path):
    from van_classification_tensorflow.keras_hub.presets import preset_files

    def written(name):
        return json.loads((tmp_path / name).read_text())

    def values(config):
        """Without what the one names and the other leaves to a default."""
        if not isinstance(config, dict):
            return config
        defaults = {"name": None, "trainable": True, "dtype": None, "data_format": "channels_last"}
        defaults |= {"drop_rate": 0.0, "drop_path_rate": 0.0}
        task = {"activation": "linear", "pooling": "avg", "dropout": 0.0}
        kept = {k: v for k, v in config.items() if k not in {**defaults, **task}}
        return {key: values(value) for key, value in kept.items()}

    files = preset_files(CATALOGUE["digits"])
    classifier = hub.VANImageClassifier.from_preset("van_digits")
    classifier.save_to_preset(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} - files.keys() == {
        "metadata.json",
        "model.weights.h5",  # model.weights.json, where it is named
    }
    for name in ("config.json", "task.json", "preprocessor.json", "image_converter.json"):
        assert values(files[name]) == values(written(name))


@pytest.fixture
def published(tmp_path, monkeypatch):
    """The published B0, seeded; a list of what was asked of the cache."""
    config = CONFIGURATIONS["van_b0"]
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, 1000)
    tensors = {name: seeded_tensor(name, spec.shape) for name, spec in sizes.tensors().items()}
    write_torch(tmp_path / "van-tiny.pth", tensors)
    asked = []

    def local_file(record):
        asked.append(record.name)
        return tmp_path / "van-tiny.pth"

    monkeypatch.setattr(pretrained, "local_file", local_file)
    return asked


def test_a_published_preset_by_name(keras_hub, hub, published):
    random = keras_hub.models.ImageClassifier.from_preset("van_b0_imagenet", load_weights=False)
    assert random.output_dense.units == 1000
    converter = keras_hub.layers.ImageConverter.from_preset("van_b4_imagenet22k")
    assert converter.preprocessing == CATALOGUE["van_b4.in22k"].preprocessing
    assert published == []  # nothing was needed
    classifier = keras_hub.models.ImageClassifier.from_preset("van_b0_imagenet")
    assert set(published) == {"van_b0.in1k"}
    images = seeded_images(7, INPUTS["b"])
    with np.load(GOLDEN / "van_b0.npz") as golden:
        np.testing.assert_allclose(
            logits(classifier, images), golden["b_logits"], rtol=0, atol=1e-4
        )
        found = ops.convert_to_numpy(classifier.backbone(images)).mean((1, 2))
        np.testing.assert_allclose(found, golden["b_features"], rtol=0, atol=1e-4)
    assert len(keras_hub.utils.decode_imagenet_predictions(logits(classifier, images))[0]) == 5
    with pytest.raises(
        ValueError, match=r"van_b0\.in1k holds van_b0"
    ):  # of other sizes, nothing is loaded
        hub.VANBackbone(embed_dims=[8], mlp_ratios=[2], depths=[1]).load_weights(
            hub.VANBackbone.presets["van_b0_imagenet"]["kaggle_handle"] + "/model.weights.json"
        )


@pytest.mark.parametrize(
    "content",
    [
        b'{"van_weights": "/etc/passwd", "weight_map": {}}',
        b'{"van_weights": "../x.pth"}',
        b'{"van_weights": ["van_b0.in1k"]}',
    ],
)
def test_a_file_names_only_published_weights(hub, tmp_path, content, published):
    (tmp_path / "model.weights.json").write_bytes(content)
    backbone = hub.VANBackbone(embed_dims=[8], mlp_ratios=[2], depths=[1])
    with pytest.raises(ValueError, match="must name weights of `van weights list`"):
        backbone.load_weights(tmp_path / "model.weights.json")
    (tmp_path / "other.weights.json").write_bytes(b"[" * 999)
    with pytest.raises((ValueError, OSError, RecursionError)):
        backbone.load_weights(tmp_path / "other.weights.json")
    assert published == []


def test_pictures_are_predicted_as_with_pillow_by_van(hub):
    path, batch = GOLDEN / "micro.safetensors", pictures(300, 401)
    prepared = np.stack([Preprocessing()(Image.fromarray(one)) for one in batch])
    van = VAN(pretrained=path, classifier_activation=None, data_format="channels_last")
    expected = van.predict(prepared, verbose=0)
    found = hub.VANImageClassifier.from_weights(path).predict(batch, verbose=0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
