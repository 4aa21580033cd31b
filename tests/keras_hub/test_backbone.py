"""`VANBackbone`: KerasHub's own test of a backbone, the numbers of the authors, what is kept."""

import errno
import json
import os
import subprocess
import sys
import warnings

import keras
import numpy as np
import pytest
from keras import ops

from tests.parity import GOLDEN, load_seeded, seeded_images
from van_classification_tensorflow import VAN, load_checkpoint
from van_classification_tensorflow.registration import CLASSES
from van_classification_tensorflow.support import files

pytestmark = pytest.mark.slow
BACKEND = keras.backend.backend()
SMALL = {"embed_dims": [8, 12], "mlp_ratios": [2, 2], "depths": [1, 1]}
MICRO = {"embed_dims": [8, 16, 24, 32], "mlp_ratios": [4, 4, 2, 2], "depths": [1, 1, 2, 1]}
FORMATS = ["channels_last", "channels_first"]


def numpy(tensor) -> np.ndarray:
    return ops.convert_to_numpy(tensor)


def test_kerashubs_own_test(hub, harness):
    harness.run_vision_backbone_test(
        cls=hub.VANBackbone,
        init_kwargs={**SMALL, "image_shape": (None, None, 3)},
        input_data=ops.ones((2, 32, 32, 3)),
        expected_output_shape=(2, 4, 4, 12),
        expected_pyramid_output_keys=["P2", "P3"],
        expected_pyramid_image_sizes=[(8, 8), (4, 4)],
    )
    harness.run_model_saving_test(
        cls=hub.VANBackbone, init_kwargs=SMALL, input_data=ops.ones((2, 32, 48, 3))
    )


@pytest.mark.parametrize("data_format", FORMATS)
def test_every_stage_is_the_authors_in_the_format_of_the_images(hub, data_format):
    first = data_format == "channels_first"
    backbone = hub.VANBackbone(**MICRO, data_format=data_format)
    load_checkpoint(backbone, GOLDEN / "micro_official.pth.tar")
    maps = keras.Model(backbone.inputs, backbone.pyramid_outputs)
    with np.load(GOLDEN / "micro.npz") as golden:
        images = golden["x"].transpose(0, 3, 1, 2) if first else golden["x"]
        outputs = maps(images)
        assert list(outputs) == ["P2", "P3", "P4", "P5"]
        np.testing.assert_array_equal(numpy(backbone(images)), numpy(outputs["P5"]))
        for i in range(1, 5):
            expected = golden[f"eval_stage{i}"]
            expected = expected.transpose(0, 3, 1, 2) if first else expected
            found = numpy(outputs[f"P{i + 1}"])
            assert (
                backbone.pyramid_outputs[f"P{i + 1}"].shape[1 if first else 3]
                == (MICRO["embed_dims"][i - 1])
            )
            np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("data_format", FORMATS)
def test_the_pyramid_of_van_itself_has_the_format_of_the_images(data_format):
    images = seeded_images(3, (2, 64, 96, 3))
    model = load_seeded(VAN(**SMALL, include_top=False, data_format="channels_last"))
    expected = keras.Model(model.inputs, model.pyramid_outputs)(images)
    other = load_seeded(VAN(**SMALL, include_top=False, data_format=data_format))
    first = data_format == "channels_first"
    found = keras.Model(other.inputs, other.pyramid_outputs)(
        images.transpose(0, 3, 1, 2) if first else images
    )
    for i, channels in enumerate(SMALL["embed_dims"]):
        maps = numpy(found[f"P{i + 2}"])
        size = (16 >> i, 24 >> i)
        assert maps.shape == ((2, channels, *size) if first else (2, *size, channels))
        maps = maps.transpose(0, 2, 3, 1) if first else maps
        np.testing.assert_array_equal(maps, numpy(expected[f"P{i + 2}"]))


def test_from_weights(hub):
    backbone = hub.VANBackbone.from_weights(GOLDEN / "micro_hf", drop_path_rate=0.1)
    assert backbone.depths == MICRO["depths"]
    assert backbone.drop_path_rate == 0.1
    with np.load(GOLDEN / "micro.npz") as golden:
        found = numpy(backbone(golden["x"]))
        np.testing.assert_allclose(found, golden["eval_stage4"], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="`weights` must be a name"):
        hub.VANBackbone.from_weights(None)
    with pytest.raises(ValueError, match="no such weights"):
        hub.VANBackbone.from_weights("van_b9")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"depths": [1]}, "same length"),
        ({"drop_path_rate": 1.5}, r"drop_path_rate=1\.5"),
        ({"data_format": "nchw"}, "data_format='nchw'"),
        ({"image_shape": (32, None, 3)}, "both H and W"),
        ({"image_shape": (32, 32)}, r"image_shape=\(32, 32\)"),
        ({"image_shape": (3, 32, 2)}, "too small"),
    ],
)
def test_refuses(hub, wrong, says):
    with pytest.raises(ValueError, match=says):
        hub.VANBackbone(**{**SMALL, **wrong})


def moved(backbone, images) -> None:
    """Trains a little, without a change of what is frozen."""
    model = keras.Model(backbone.inputs, keras.layers.GlobalAveragePooling2D()(backbone.output))
    model.compile(keras.optimizers.Adam(0.05), "mse", jit_compile=False)
    model.fit(images, np.ones((len(images), 12)), verbose=0, epochs=2)


def test_lora_trains_what_its_file_keeps(hub, tmp_path):
    images = seeded_images(1, (4, 32, 32, 3))
    backbone = load_seeded(hub.VANBackbone(**SMALL))
    before = numpy(backbone(images))
    plain = [numpy(w) for w in load_seeded(hub.VANBackbone(**SMALL)).weights]
    backbone.enable_lora(2)
    names = [w.path.split("/")[-1] for w in backbone.trainable_weights]
    assert names == ["lora_kernel_a", "lora_kernel_b"] * 6  # three of each of two blocks
    np.testing.assert_array_equal(numpy(backbone(images)), before)
    moved(backbone, images)
    after = numpy(backbone(images))
    assert np.abs(after - before).max() > 1e-3
    lora = [w for w in backbone.weights if "lora" in w.path]
    kept = [numpy(w) for w in backbone.weights if all(w is not one for one in lora)]
    for found, expected in zip(kept, plain, strict=True):
        np.testing.assert_array_equal(found, expected)

    backbone.save_lora_weights(tmp_path / "tuned.lora.h5")
    again = load_seeded(hub.VANBackbone(**SMALL))
    again.load_lora_weights(tmp_path / "tuned.lora.h5")
    np.testing.assert_array_equal(numpy(again(images)), after)
    backbone.save_to_preset(tmp_path / "preset")  # the products go into the kernels
    merged = hub.VANBackbone.from_preset(str(tmp_path / "preset"))
    np.testing.assert_allclose(numpy(merged(images)), after, rtol=0, atol=1e-5)

    again = load_seeded(hub.VANBackbone(**SMALL))
    again.enable_lora(1, ["fc1", "fc2"])
    assert len(again.trainable_weights) == 8


@pytest.mark.skipif(BACKEND == "torch", reason="Keras's int8 product there")
def test_int8(hub, tmp_path):
    images = seeded_images(1, (2, 32, 32, 3))
    backbone = load_seeded(hub.VANBackbone(**SMALL))
    before = numpy(backbone(images))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*copy keyword.*", category=DeprecationWarning)
        warnings.filterwarnings("error", category=UserWarning)  # of layers that Keras cannot
        backbone.quantize("int8")
    quantised = [layer.name for layer in backbone._flatten_layers() if layer.quantization_mode]
    assert sorted(quantised) == sorted(["proj_1", "conv1", "proj_2", "fc1", "fc2"] * 2)
    after = numpy(backbone(images))
    assert 0 < np.abs(after - before).max() < 0.05 * np.abs(before).max()
    backbone.save_to_preset(tmp_path / "preset")
    backbone.save(tmp_path / "backbone.keras")
    for again in (
        hub.VANBackbone.from_preset(str(tmp_path / "preset")),
        keras.saving.load_model(tmp_path / "backbone.keras"),
    ):
        np.testing.assert_array_equal(numpy(again(images)), after)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "bfloat16"])
def test_policies(hub, tmp_path, policy):
    backbone = hub.VANBackbone(**SMALL, dtype=policy)
    assert keras.backend.standardize_dtype(backbone(np.zeros((1, 32, 32, 3))).dtype) == (
        policy.removeprefix("mixed_")
    )
    backbone.save_to_preset(tmp_path)
    assert hub.VANBackbone.from_preset(str(tmp_path)).dtype_policy.name == "float32"  # KerasHub's
    again = hub.VANBackbone.from_preset(str(tmp_path), dtype=policy)
    assert again.dtype_policy.name == policy
    for found, expected in zip(again.get_weights(), backbone.get_weights(), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_full_disk_leaves_the_configuration_whole(hub, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    backbone = hub.VANBackbone(**SMALL, dtype="mixed_bfloat16")
    monkeypatch.setattr(files, "sync", full)
    with pytest.raises(OSError, match="No space"):
        backbone.save_to_preset(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["class_name"] == "VANBackbone"
    assert not list(tmp_path.glob(".tmp-*"))


def test_weights_that_are_none_say_what_may_be(hub):
    with pytest.raises(ValueError, match=r"a path or hf://USER/NAME\[@REVISION\]"):
        hub.VANBackbone.from_weights(None)


def test_a_map_of_policies_without_entries_keeps_its_default(hub):
    policies = keras.dtype_policies.DTypePolicyMap("mixed_bfloat16")
    backbone = hub.VANBackbone(**SMALL, dtype=policies)
    assert backbone.get_layer("block1_0").mlp.fc1.compute_dtype == "bfloat16"


def test_every_class_is_registered_by_its_stand_ins_name(hub):
    found = {}
    for name in hub.__all__:
        kind = keras.saving.get_registered_object(f"van_classification_tensorflow>{name}")
        assert kind is getattr(hub, name)
        found.setdefault(kind.__module__.split(".", 1)[1], set()).add(name)
    assert found == {m: set(names) for m, names in CLASSES.items() if m.startswith("keras_hub.")}


_LOAD = """
import sys
{imports}
loaded = {load}
from van_classification_tensorflow.keras_hub import VANImageClassifier
assert type(loaded) is VANImageClassifier, type(loaded)
print("fine")
"""


@pytest.mark.parametrize(
    ("imports", "load"),
    [
        (
            "import van_classification_tensorflow\nimport keras_hub",
            "keras_hub.models.ImageClassifier.from_preset('van_digits')",
        ),
        (
            "import van_classification_tensorflow, keras\nassert 'keras_hub' not in sys.modules",
            "keras.saving.load_model(sys.argv[1])",
        ),
    ],
)
def test_importing_the_package_is_enough(hub, tmp_path, imports, load):
    path = tmp_path / "classifier.keras"
    if "argv" in load:
        hub.VANImageClassifier(hub.VANBackbone(**SMALL), num_classes=2).save(path)
    done = subprocess.run(
        [sys.executable, "-c", _LOAD.format(imports=imports, load=load), str(path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-1] == "fine"
