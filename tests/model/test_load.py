import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import GOLDEN, MICRO, load_seeded
from van_classification_tensorflow import VAN, load_checkpoint
from van_classification_tensorflow.model.load import official_variables, to_official
from van_classification_tensorflow.weights.namings import spell

# The same weights in every format that people publish.
FILES = (
    "micro.safetensors",
    "micro_official.pth.tar",
    "micro_official_legacy.pth.tar",
    "micro_mmpretrain.pth",
    "micro_hf",
    "micro_hf/pytorch_model.bin",
    "micro_seed.h5",
)


pytestmark = pytest.mark.usefixtures("eager")


@pytest.fixture
def model():
    return load_seeded(VAN(**MICRO))


@pytest.fixture(scope="module")
def one_model():
    """For all who leave it as it is."""
    return load_seeded(VAN(**MICRO))


def test_names_and_shapes_are_the_authors(one_model):
    official = load_file(GOLDEN / "micro.safetensors")
    stored = {k: v.shape for k, v in official.items() if not k.endswith("num_batches_tracked")}
    assert {k: v.shape for k, v in to_official(one_model).items()} == stored


def test_round_trip_is_bit_exact(one_model):
    tensors = to_official(one_model)
    other = load_checkpoint(VAN(**MICRO), tensors)
    for name, array in to_official(other).items():
        np.testing.assert_array_equal(array, tensors[name], err_msg=name)
        assert array.flags.c_contiguous
    for ours, theirs in zip(one_model.weights, other.weights, strict=True):
        np.testing.assert_array_equal(np.asarray(ours), np.asarray(theirs))


def test_every_weight_has_a_name(one_model):
    named = {id(v) for v in official_variables(one_model).values()}
    assert named == {id(w) for w in one_model.weights}


def test_axes_of_each_kind(one_model):
    tensors, variables = to_official(one_model), official_variables(one_model)
    for name, index, ours in (
        ("patch_embed2.proj.weight", (3, 5, 1, 2), (1, 2, 5, 3)),
        ("block2.0.attn.spatial_gating_unit.conv_spatial.weight", (4, 0, 2, 6), (2, 6, 4, 0)),
        ("block2.0.mlp.fc1.weight", (9, 2, 0, 0), (2, 9)),
        ("head.weight", (7, 3), (3, 7)),
        ("block3.1.norm2.running_var", (5,), (5,)),
    ):
        assert tensors[name][index] == np.asarray(variables[name])[ours], name


def test_headless_model_takes_a_classifier(one_model):
    headless = load_checkpoint(VAN(**MICRO, include_top=False), to_official(one_model))
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype("float32")
    pooled = keras.Model(one_model.input, one_model.get_layer("pool").output)
    np.testing.assert_array_equal(headless.predict_on_batch(x), pooled.predict_on_batch(x))


@pytest.fixture(scope="module")
def headless():
    return VAN(**MICRO, include_top=False)


@pytest.mark.parametrize("name", ["junk.num_batches_tracked", "head.scale", "norm1.weight.", 3])
def test_ignored_names_are_exact(one_model, headless, name):
    with pytest.raises(ValueError, match=rf"not used by the model \(1\):\n  {name}"):
        load_checkpoint(headless, {**to_official(one_model), name: np.zeros(1)})
    counter = {"block1.0.norm1.num_batches_tracked": np.int64(7)}
    load_checkpoint(headless, {**to_official(one_model), **counter})


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


def test_everything_wrong_is_listed_and_nothing_assigned(one_model):
    before = to_official(one_model)
    bad = {name: np.zeros_like(array) for name, array in before.items()}
    del bad["block1.0.norm1.bias"], bad["norm3.weight"]
    bad["block1.0.norm1.biass"] = np.zeros(8)
    bad["head.weight"] = np.zeros((5, 32), "float32")
    bad["block2.0.mlp.fc1.weight"] = np.zeros((64, 16), "float32")
    bad["norm1.bias"] = np.array(["x"] * 8)
    with pytest.raises(ValueError, match="nothing was loaded") as error:
        load_checkpoint(one_model, bad)
    text = str(error.value)
    assert "missing (2):\n  block1.0.norm1.bias\n  norm3.weight" in text
    assert "not used by the model (1):\n  block1.0.norm1.biass" in text
    assert "head.weight: expected (10, 32), received (5, 32)" in text
    assert "block2.0.mlp.fc1.weight: expected (64, 16, 1, 1), received (64, 16)" in text
    assert "not numbers (1):\n  norm1.bias" in text
    for name, array in to_official(one_model).items():
        np.testing.assert_array_equal(array, before[name])


@pytest.mark.parametrize("source", [[1, 2], None, 3])
def test_a_source_that_is_neither_path_nor_mapping(one_model, source):
    with pytest.raises(ValueError, match="`source` must be a path, or a mapping"):
        load_checkpoint(one_model, source)


def test_a_file_that_is_not_there(one_model):
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"):
        load_checkpoint(one_model, "weights.pth")


@pytest.fixture(scope="module")
def receiver():
    return VAN(**MICRO, classifier_activation=None)


@pytest.mark.parametrize("file", FILES)
def test_every_golden_file_is_the_same_model(receiver, file):
    load_seeded(receiver, seed=1)  # whatever the file before it has left
    with np.load(GOLDEN / "micro.npz") as golden:
        model = load_checkpoint(receiver, GOLDEN / file)
        difference = np.abs(model.predict_on_batch(golden["x"]) - golden["eval_logits"]).max()
    assert difference <= 1e-5
    expected = {n: a for n, a in load_file(GOLDEN / "micro.safetensors").items() if a.ndim}
    for name, array in to_official(model).items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_any_naming_as_a_mapping(one_model):
    tensors = to_official(one_model)
    for naming in ("huggingface", "mmpretrain"):
        other = load_checkpoint(VAN(**MICRO), spell(tensors, naming))
        for name, array in to_official(other).items():
            np.testing.assert_array_equal(array, tensors[name], err_msg=name)


def test_a_file_of_another_model_changes_nothing(one_model):
    before = to_official(one_model)
    with pytest.raises(ValueError, match=r"digits\.safetensors does not fit .*nothing was loaded"):
        load_checkpoint(one_model, GOLDEN / "digits.safetensors", adapt=True)
    for name, array in to_official(one_model).items():
        np.testing.assert_array_equal(array, before[name])


def test_nan_is_refused_unless_asked_for(model):
    tensors = to_official(model)
    tensors["norm2.bias"] = np.full(16, np.nan, "float32")
    with pytest.raises(ValueError, match=r"holding NaN or infinity \(1\):\n  norm2\.bias"):
        load_checkpoint(model, tensors)
    assert np.isfinite(to_official(model)["norm2.bias"]).all()
    load_checkpoint(model, tensors, allow_nonfinite=True)
    assert np.isnan(to_official(model)["norm2.bias"]).all()


def test_adapt_keeps_the_own_head_and_says_so(model):
    tensors = to_official(model)
    other = VAN(**{**MICRO, "num_classes": 7})
    own = to_official(other)
    with pytest.raises(ValueError, match=r"head\.weight: expected \(7, 32\)"):
        load_checkpoint(other, tensors)
    with pytest.warns(UserWarning, match="7 classes of its own. Its head is freshly initialised"):
        load_checkpoint(other, tensors, adapt=True)
    after = to_official(other)
    for name, array in after.items():
        expected = own if name.startswith("head.") else tensors
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_adapt_fits_the_input_channels_and_says_so(model):
    tensors = to_official(model)
    grey = VAN(**MICRO, in_chans=1)
    with pytest.warns(UserWarning, match="summed from 3 to 1"):
        load_checkpoint(grey, tensors, adapt=True)
    x = np.random.default_rng(0).standard_normal((2, 64, 64, 1)).astype("float32")
    # A grey picture gives what its copy in three channels gave.
    np.testing.assert_allclose(
        grey.predict_on_batch(x), model.predict_on_batch(np.repeat(x, 3, -1)), atol=1e-6
    )
    for channels in (2, 4, 5, 6, 13):
        many = VAN(**MICRO, in_chans=channels)
        with pytest.warns(UserWarning, match=f"repeated and rescaled from 3 to {channels}"):
            load_checkpoint(many, tensors, adapt=True)
        kernel = to_official(many)["patch_embed1.proj.weight"]
        source = tensors["patch_embed1.proj.weight"]
        for c in range(channels):
            np.testing.assert_allclose(kernel[:, c], source[:, c % 3] * 3 / channels, rtol=1e-6)


def test_without_adapt_nothing_is_said(model, recwarn):
    load_checkpoint(model, to_official(model))
    load_checkpoint(model, to_official(model), adapt=True)
    assert not [w for w in recwarn if w.category is UserWarning]


def test_a_model_that_is_no_van():
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    with pytest.raises(ValueError, match="`model` must be a VAN"):
        load_checkpoint(other, {})
