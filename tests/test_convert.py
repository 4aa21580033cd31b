import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from van_classification_tensorflow import VAN, load_checkpoint
from van_classification_tensorflow.convert import official_variables, to_official

from .parity import GOLDEN, MICRO, load_seeded


@pytest.fixture
def model():
    return load_seeded(VAN(**MICRO))


def test_names_and_shapes_are_the_authors(model):
    official = load_file(GOLDEN / "micro.safetensors")
    stored = {k: v.shape for k, v in official.items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in to_official(model).items()} == stored


def test_round_trip_is_bit_exact(model):
    tensors = to_official(model)
    other = load_checkpoint(VAN(**MICRO), tensors)
    for name, array in to_official(other).items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
        assert array.flags.c_contiguous
    for ours, theirs in zip(model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_weight_has_a_name(model):
    named = {id(v) for v in official_variables(model).values()}
    assert named == {id(w) for w in model.weights}


def test_axes_of_each_kind(model):
    tensors, variables = to_official(model), official_variables(model)
    for name, index, ours in (
        ("patch_embed2.proj.weight", (3, 5, 1, 2), (1, 2, 5, 3)),
        ("block2.0.attn.spatial_gating_unit.conv_spatial.weight", (4, 0, 2, 6), (2, 6, 4, 0)),
        ("block2.0.mlp.fc1.weight", (9, 2, 0, 0), (2, 9)),
        ("head.weight", (7, 3), (3, 7)),
        ("block3.1.norm2.running_var", (5,), (5,)),
    ):
        assert tensors[name][index] == np.asarray(variables[name])[ours], name


def test_headless_model_takes_a_classifier(model):
    headless = load_checkpoint(VAN(**MICRO, include_top=False), to_official(model))
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype("float32")
    pooled = keras.Model(model.input, model.get_layer("pool").output)
    np.testing.assert_array_equal(headless.predict_on_batch(x), pooled.predict_on_batch(x))


@pytest.mark.parametrize("name", ["junk.num_batches_tracked", "head.scale", "norm1.weight.", 3])
def test_ignored_names_are_exact(model, name):
    headless = VAN(**MICRO, include_top=False)
    with pytest.raises(ValueError, match=rf"not used by the model \(1\):\n  {name}"):
        load_checkpoint(headless, {**to_official(model), name: np.zeros(1)})
    counter = {"block1.0.norm1.num_batches_tracked": np.int64(7)}
    load_checkpoint(headless, {**to_official(model), **counter})


def test_a_quantised_model_is_left_alone(model):
    tensors = to_official(model)
    model.quantize("int8")
    with pytest.raises(ValueError, match=r"LoRA or quantisation.*head\.weight"):
        load_checkpoint(model, tensors)


def test_a_model_with_lora_is_left_alone(model):
    tensors = to_official(model)
    model.get_layer("block1_0").mlp.fc1.enable_lora(2)
    with pytest.raises(ValueError, match=r"without LoRA.*block1\.0\.mlp\.fc1\.weight"):
        load_checkpoint(model, {k: np.zeros_like(v) for k, v in tensors.items()})
    np.testing.assert_array_equal(
        np.asarray(model.get_layer("norm1").gamma), tensors["norm1.weight"]
    )


def test_everything_wrong_is_listed_and_nothing_assigned(model):
    before = to_official(model)
    bad = {name: np.zeros_like(array) for name, array in before.items()}
    del bad["block1.0.norm1.bias"], bad["norm3.weight"]
    bad["block1.0.norm1.biass"] = np.zeros(8)
    bad["head.weight"] = np.zeros((5, 32), "float32")
    bad["block2.0.mlp.fc1.weight"] = np.zeros((64, 16), "float32")
    bad["norm1.bias"] = np.array(["x"] * 8)
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load_checkpoint(model, bad)
    text = str(error.value)
    assert "missing (2):\n  block1.0.norm1.bias\n  norm3.weight" in text
    assert "not used by the model (1):\n  block1.0.norm1.biass" in text
    assert "head.weight: expected (10, 32), received (5, 32)" in text
    assert "block2.0.mlp.fc1.weight: expected (64, 16, 1, 1), received (64, 16)" in text
    assert "not numbers (1):\n  norm1.bias" in text
    for name, array in to_official(model).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("source", ["weights.pth", [1, 2], None])
def test_a_source_that_is_no_mapping(model, source):
    with pytest.raises(ValueError, match="`source` must be a mapping"):
        load_checkpoint(model, source)


def test_a_model_that_is_no_van():
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be a VAN"):
        load_checkpoint(other, {})
