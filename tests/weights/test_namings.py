"""Every naming to the authors' and back; shapes, kinds, and what is said of wrong tensors."""

import numpy as np
import pytest
from safetensors.numpy import load_file

from tests.parity import GOLDEN
from van_classification_tensorflow.spec.architecture import Architecture, architecture_of, check
from van_classification_tensorflow.spec.config import CONFIGURATIONS
from van_classification_tensorflow.weights.namings import NAMINGS, spell, translate, without_prefix

MICRO = Architecture((8, 16, 24, 32), (32, 64, 48, 64), (1, 1, 2, 1), 3, 10)


@pytest.fixture
def official():
    tensors = load_file(GOLDEN / "micro.safetensors")
    return {k: v for k, v in tensors.items() if not k.endswith("num_batches_tracked")}


def test_shapes_and_order_are_the_authors(official):
    specs = MICRO.tensors()
    assert {name: spec.shape for name, spec in specs.items()} == {
        name: array.shape for name, array in official.items()
    }
    # The order of the authors' state dict, as their own file has it.
    from van_classification_tensorflow.weights.checkpoint import read_checkpoint

    file = read_checkpoint(GOLDEN / "micro_official.pth.tar")
    assert list(specs) == [n for n in file.tensors if not n.endswith("num_batches_tracked")]


def test_architecture_from_shapes(official):
    assert architecture_of(official) == MICRO
    assert MICRO.configuration is None
    assert MICRO.config.mlp_ratios == (4, 4, 2, 2)
    del official["head.weight"], official["head.bias"]
    assert architecture_of(official).num_classes is None


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_every_configuration_is_recognised(name):
    config = CONFIGURATIONS[name]
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, 1000)
    shapes = {n: np.broadcast_to(np.float32(0), s.shape) for n, s in sizes.tensors().items()}
    assert architecture_of(shapes) == sizes
    assert sizes.configuration == name
    assert sizes.config == config
    assert str(sizes) == f"{name}, 3 input channels, 1,000 classes"


def test_a_ratio_that_floats_cannot_hold():
    for dim in range(1, 80):
        for hidden in range(1, 80):
            sizes = Architecture((dim,), (hidden,), (1,), 3, None)
            assert sizes.config.hidden_dims == (hidden,), (dim, hidden)


@pytest.mark.parametrize("naming", NAMINGS)
def test_there_and_back(official, naming):
    state = translate(spell(official, naming))
    assert state.naming == naming
    assert state.tensors.keys() == official.keys()
    for name, array in official.items():
        assert state.tensors[name] is array
    counters = [n for n in state.ignored if n.endswith("num_batches_tracked")]
    assert len(counters) == sum(n.endswith("running_var") for n in official)


def test_names_are_those_of_the_real_files(official):
    from van_classification_tensorflow.weights.checkpoint import read_checkpoint

    for file, naming in (
        ("micro_official.pth.tar", "official"),
        ("micro_mmpretrain.pth", "mmpretrain"),
        ("micro_hf", "huggingface"),
    ):
        theirs = read_checkpoint(GOLDEN / file).tensors
        ours = spell(official, naming)
        assert ours.keys() == theirs.keys()
        assert {n: a.shape for n, a in ours.items()} == {n: a.shape for n, a in theirs.items()}


def test_mmsegmentation_and_a_model_around_the_backbone(official):
    def nested(name):
        return "backbone." + name.replace(".mlp.dwconv.dwconv.", ".mlp.dwconv.")

    del official["head.weight"], official["head.bias"]
    around = {"decode_head.conv_seg.weight": np.zeros((19, 8, 1, 1))}
    state = translate({**{nested(n): a for n, a in official.items()}, **around})
    assert state.naming == "mmsegmentation"
    assert state.tensors.keys() == official.keys()
    assert list(state.ignored) == ["decode_head.conv_seg.weight"]


def test_headless_transformers_names(official):
    del official["head.weight"], official["head.bias"]
    names = {n.removeprefix("van."): a for n, a in spell(official, "huggingface").items()}
    assert translate(names).tensors.keys() == official.keys()


def test_two_names_for_one_tensor(official):
    twice = spell(official, "mmpretrain")
    twice["patch_embed1.projection.weight"] = twice["backbone.patch_embed1.projection.weight"]
    with pytest.raises(ValueError, match=r"both mean patch_embed1\.proj\.weight"):
        translate(twice)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.pop("patch_embed1.proj.weight"), "patch_embed1.proj.weight is missing"),
        (lambda t: t.pop("block2.0.mlp.fc1.weight"), "block2.0.mlp.fc1.weight is missing"),
        (
            lambda t: t.update({"head.weight": np.zeros(3)}),
            r"head.weight has shape \(3,\); expected 2 axes",
        ),
        (
            lambda t: t.update({"patch_embed1.proj.weight": np.zeros((0, 3, 7, 7))}),
            "none of them 0",
        ),
    ],
)
def test_tensors_of_no_van(official, change, says):
    change(official)
    with pytest.raises(ValueError, match=says):
        architecture_of(official)


def test_check_widens_half_precision_and_refuses_nan(official):
    specs = MICRO.tensors()
    half = {n: a.astype(np.float16) for n, a in official.items()}
    checked = check(half, specs)
    assert all(array.dtype == np.float32 for array in checked.values())
    np.testing.assert_array_equal(checked["head.bias"], half["head.bias"])
    official["norm2.bias"] = np.full(16, np.nan, np.float32)
    official["norm3.bias"] = np.full(24, np.inf, np.float32)
    with pytest.raises(ValueError, match=r"NaN or infinity \(2\):\n  norm2\.bias\n  norm3\.bias"):
        check(official, specs)
    assert np.isnan(check(official, specs, allow_nonfinite=True)["norm2.bias"]).all()


def test_a_long_list_of_problems_is_cut(official):
    with pytest.raises(ValueError, match=r"missing \(164\):\n(  .*\n){20}  \.\.\. and 144 more"):
        check({}, MICRO.tensors())


FIRST, HF_FIRST = "patch_embed1.proj.weight", "encoder.stages.0.embeddings.convolution.weight"
MM_FIRST = "patch_embed1.projection.weight"


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ([FIRST, "head.bias"], [FIRST, "head.bias"]),
        (["_orig_mod.module." + FIRST, "_orig_mod.module.head.bias"], [FIRST, "head.bias"]),
        (["model._orig_mod." + FIRST, "model._orig_mod.head.bias"], [FIRST, "head.bias"]),
        ([FIRST, "block1.0._orig_mod.norm1.bias"], [FIRST, "block1.0.norm1.bias"]),
        (["net." + FIRST, "net.head.bias", "loss.weight", "val_acc.tp"], [FIRST, "head.bias"]),
        (["my.own.path." + FIRST, "my.own.path.head.bias", "x"], [FIRST, "head.bias"]),
        (["backbone." + FIRST, "head.bias", "loss.weight"], ["backbone." + FIRST, "head.bias"]),
        (
            ["backbone.module." + FIRST, "backbone.module.norm1.bias", "head.bias"],
            ["backbone." + FIRST, "backbone.norm1.bias", "head.bias"],
        ),
        (
            ["model.backbone." + MM_FIRST, "model.head.fc.bias", "model.decode_head.x", "ema.y"],
            ["backbone." + MM_FIRST, "head.fc.bias", "decode_head.x"],
        ),
        (
            ["module.van." + HF_FIRST, "module.van.layernorm.bias", "module.classifier.bias"],
            ["van." + HF_FIRST, "van.layernorm.bias", "classifier.bias"],
        ),
        (["student." + HF_FIRST, "student.layernorm.bias"], [HF_FIRST, "layernorm.bias"]),
        # Of several the usual name is meant.
        (["model." + FIRST, "model.head.bias", "teacher." + FIRST], [FIRST, "head.bias"]),
        (["teacher.backbone." + MM_FIRST, "teacher.head.fc.bias", FIRST, "x"], [FIRST, "x"]),
        (["model." + FIRST, "model.teacher." + FIRST, "model.head.bias"], [FIRST, "head.bias"]),
        (["foo", "bar.baz"], ["foo", "bar.baz"]),
    ],
)
def test_the_prefix_is_found_from_the_names(names, kept):
    found, ignored = without_prefix({name: i for i, name in enumerate(names)})
    assert list(found) == kept
    assert len(found) + len(ignored) == len(names)


def test_one_of_several_models_is_chosen():
    both = dict.fromkeys([f"{who}.{name}" for who in "ab" for name in (FIRST, "head.bias")], 0)
    says = r"several VANs are in it, under 'a\.', 'b\.'; .* van convert IN OUT --wrapper 'b\.'"
    with pytest.raises(ValueError, match=says):
        without_prefix(both)
    _, ignored = without_prefix({f"model.{FIRST}": 0} | both)
    assert {why.rsplit(": ")[-1] for why in ignored.values()} == {
        "--wrapper 'a.'",
        "--wrapper 'b.'",
    }
    found, ignored = without_prefix(both, "b.")
    assert list(found) == [FIRST, "head.bias"]
    assert ignored.keys() == {f"a.{FIRST}", "a.head.bias"}
    with pytest.raises(ValueError, match=r"no VAN stands there\. VANs are under: 'a\.', 'b\.'"):
        without_prefix(both, "c.")
    with pytest.raises(ValueError, match="30 VANs are in it"):
        without_prefix({f"m{i}.{FIRST}": 0 for i in range(30)})
    with pytest.raises(ValueError, match="two tensors are 'patch_embed1"):
        without_prefix({FIRST: 0, f"_orig_mod.{FIRST}": 1})
