"""What is read from each format: wrappers, prefixes, dtypes, layouts, and what is left out."""

import json

import keras
import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity import GOLDEN, MICRO, load_seeded
from van_classification_tensorflow import VAN
from van_classification_tensorflow.weights.checkpoint import (
    CheckpointError,
    read_checkpoint,
    read_weights,
)
from van_classification_tensorflow.weights.formats.torch import write_torch


@pytest.fixture(scope="module")
def official():
    return load_file(GOLDEN / "micro.safetensors")


def test_around_the_weights_of_the_authors_training_script(official):
    for file, layout in (
        ("micro_official.pth.tar", "torch"),
        ("micro_official_legacy.pth.tar", "torch, before 1.6"),
    ):
        found = read_checkpoint(GOLDEN / file)
        assert (found.layout, found.wrapper) == (layout, "state_dict")
        assert found.tensors.keys() == official.keys()
        for name, array in found.tensors.items():
            np.testing.assert_array_equal(array, official[name], err_msg=name)
        assert found.tensors["patch_embed1.norm.num_batches_tracked"].dtype == np.int64
        # The optimizer, an argparse.Namespace, an AMP scaler, ...: left out, and said.
        assert found.ignored["optimizer"] == found.ignored["amp_scaler"] == "training state"
        assert found.ignored["args"] == "not weights"


def test_weights_of_every_file(official):
    for file, naming, layout in (
        ("micro_mmpretrain.pth", "mmpretrain", "torch, before 1.6"),
        ("micro_hf", "huggingface", "safetensors"),
        ("micro_hf/pytorch_model.bin", "huggingface", "torch"),
        ("micro_seed.h5", "tensorflow port 1.x", "keras h5"),
    ):
        weights = read_weights(GOLDEN / file)
        assert (weights.naming, weights.source.layout) == (naming, layout)
        for name, array in weights.tensors.items():
            np.testing.assert_array_equal(array, official[name], err_msg=name)


@pytest.mark.parametrize("dtype", ["f4", "f8", "f2", "i8", "i4", "i2", "i1", "u1", "?", "bf16"])
def test_dtypes_of_torch(tmp_path, dtype):
    dtype = np.dtype(ml_dtypes.bfloat16) if dtype == "bf16" else np.dtype(dtype)
    tensors = {
        "matrix": np.arange(12).reshape(3, 4).astype(dtype),
        "transposed": np.arange(12).reshape(3, 4).T.astype(dtype, order="K"),
        "scalar": np.ones((), dtype),
        "empty": np.zeros((0, 4), dtype),
    }
    write_torch(tmp_path / "x.pth", tensors)
    found = read_checkpoint(tmp_path / "x.pth").tensors
    assert found.keys() == tensors.keys()
    for name, array in tensors.items():
        assert (found[name].dtype, found[name].shape) == (dtype, array.shape)
        np.testing.assert_array_equal(found[name], array)
        assert not found[name].flags.writeable


@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float64])
def test_dtypes_of_safetensors(tmp_path, official, dtype):
    changed = {n: a.astype(dtype) if a.ndim else a for n, a in official.items()}
    save_file(changed, tmp_path / "x.safetensors")
    found = read_checkpoint(tmp_path / "x.safetensors").tensors
    for name, array in changed.items():
        assert found[name].dtype == array.dtype
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def _torch_with(tmp_path, root_names, official):
    """A file of torch.save whose root has entries of these names, each with weights."""
    from van_classification_tensorflow.weights.formats import torch as torch_file

    path = tmp_path / "wrapped.pth"
    marks = {name: np.float32(i + 1) for i, name in enumerate(root_names)}
    tensors = {}
    for name, mark in marks.items():
        for tensor in ("patch_embed1.proj.bias", "norm1.bias"):
            tensors[f"{name}|{tensor}"] = np.full(3, mark, np.float32)
    # One dictionary a name, instead of the one that write_torch makes.
    write_torch(path, tensors)
    root = torch_file.TorchFile(open(path, "rb")).root["state_dict"]  # noqa: SIM115
    nested = {}
    for key, value in root.items():
        wrapper, _, tensor = key.partition("|")
        nested.setdefault(wrapper, {})[tensor] = value
    return nested


@pytest.mark.parametrize(
    ("entries", "expected"),
    [
        (["state_dict", "model", "model_ema"], "state_dict"),
        (["model", "model_ema", "optimizer_of_mine"], "model"),
        (["model_ema", "state_dict_ema"], "model_ema"),
    ],
)
def test_which_entry_is_read(tmp_path, monkeypatch, official, entries, expected):
    from van_classification_tensorflow.weights import checkpoint
    from van_classification_tensorflow.weights.formats import torch as torch_file

    nested = _torch_with(tmp_path, entries, official)
    plain = torch_file.TorchFile

    class Nested(plain):
        def __init__(self, file):
            super().__init__(file)
            self.root = {**nested, "epoch": 3}

    monkeypatch.setattr(checkpoint, "TorchFile", Nested)
    found = read_checkpoint(tmp_path / "wrapped.pth")
    assert found.wrapper == expected
    mark = entries.index(expected) + 1
    np.testing.assert_array_equal(found.tensors["norm1.bias"], np.full(3, mark, np.float32))
    for other in set(entries) - {expected}:
        assert found.ignored[other] == f"other weights; to read them instead: --wrapper {other!r}"
        chosen = read_checkpoint(tmp_path / "wrapped.pth", wrapper=other)
        mark = entries.index(other) + 1
        np.testing.assert_array_equal(chosen.tensors["norm1.bias"], np.full(3, mark, "f4"))
    with pytest.raises(CheckpointError, match="no entry 'nope' with tensors; there are: "):
        read_checkpoint(tmp_path / "wrapped.pth", wrapper="nope")


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model.", "model.module."])
def test_prefixes_that_every_name_has(tmp_path, official, prefix):
    save_file({prefix + n: a for n, a in official.items()}, tmp_path / "x.safetensors")
    assert read_checkpoint(tmp_path / "x.safetensors").tensors.keys() == official.keys()
    mixed = {(prefix if n.startswith("block") else "") + n: a for n, a in official.items()}
    save_file(mixed, tmp_path / "y.safetensors")
    assert read_checkpoint(tmp_path / "y.safetensors").tensors.keys() == mixed.keys()
    with pytest.raises(CheckpointError):
        read_weights(tmp_path / "y.safetensors")


@pytest.mark.parametrize("name", ["m.keras", pytest.param("m.weights.h5", marks=pytest.mark.slow)])
@pytest.mark.usefixtures("eager")
def test_our_own_keras_files(tmp_path, official, name):
    model = load_seeded(VAN(**MICRO, drop_path_rate=0.1, drop_rate=0.1))
    model.compile(keras.optimizers.SGD(momentum=0.9), "mse")
    model.train_on_batch(np.zeros((2, 64, 64, 3), "float32"), np.eye(10, dtype="float32")[:2])
    load_seeded(model)
    save = model.save if name.endswith(".keras") else model.save_weights
    save(tmp_path / name)
    weights = read_weights(tmp_path / name)
    for key, array in weights.tensors.items():
        np.testing.assert_array_equal(array, official[key], err_msg=key)
    assert set(weights.ignored.values()) == {"training state"}
    if name.endswith(".keras"):
        assert weights.source.metadata["config"]["depths"] == [1, 1, 2, 1]


@pytest.mark.parametrize(
    "dtype",
    [
        "bfloat16",
        *(
            pytest.param(p, marks=pytest.mark.slow)
            for p in ("float16", "float64", "mixed_bfloat16")
        ),
    ],
)
def test_keras_files_of_every_precision(tmp_path, dtype):
    model = load_seeded(VAN(**MICRO, dtype=dtype))
    model.save(tmp_path / "m.keras")
    from van_classification_tensorflow.model.load import to_official

    weights = read_weights(tmp_path / "m.keras")
    for name, array in to_official(model).items():
        np.testing.assert_array_equal(
            weights.tensors[name], array.astype(weights.tensors[name].dtype)
        )


def test_a_model_on_an_input_tensor_is_ours_too(tmp_path):
    from van_classification_tensorflow import VANB0

    model = VANB0(weights=None, input_tensor=keras.Input((64, 64, 3)), classes=3)
    model.save(tmp_path / "m.keras")
    assert read_weights(tmp_path / "m.keras").architecture.configuration == "van_b0"


def test_metadata_of_safetensors(tmp_path):
    save_file({"a": np.zeros(1)}, tmp_path / "x.safetensors", metadata={"van": json.dumps([1])})
    assert read_checkpoint(tmp_path / "x.safetensors").metadata == {"van": "[1]"}


def test_the_format_is_told_by_the_content(tmp_path, official):
    for file, layout in (
        ("micro_official.pth.tar", "torch"),
        ("micro_seed.h5", "keras h5"),
        ("micro.safetensors", "safetensors"),
    ):
        path = tmp_path / "weights.bin"
        path.write_bytes((GOLDEN / file).read_bytes())
        assert read_checkpoint(path).layout == layout


@pytest.mark.parametrize(
    ("file", "says"),
    [
        ("digits.npz", "is compressed, as neither torch.save nor Keras makes it"),
        ("micro_hf/config.json", "its content is none of torch.save, safetensors"),
        (".", "a folder without model.safetensors"),
    ],
)
def test_other_files(file, says):
    with pytest.raises(CheckpointError, match=says):
        read_checkpoint(GOLDEN / file)


def test_a_wrapper_of_a_file_without_entries():
    with pytest.raises(CheckpointError, match="a file of format safetensors has no entries"):
        read_checkpoint(GOLDEN / "micro.safetensors", wrapper="model_ema")


def test_an_incomplete_file_is_refused_with_its_name(tmp_path, official):
    tensors = {n: a for n, a in official.items() if n != "norm3.bias"}
    save_file(tensors, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors was refused.*missing \(1\)"):
        read_weights(tmp_path / "x.safetensors")


def test_long_names_make_no_long_messages(tmp_path):
    places = ("x" * 100_000 + ".a.", "x" * 100_000 + ".b.", "x" * 900 + ".a.", "x" * 900 + ".b.")
    for pair in (places[:2], places[2:]):
        named = {f"{one}patch_embed1.proj.weight": np.zeros(1) for one in pair}
        save_file(named, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=r"too long|several VANs") as caught:
            read_checkpoint(tmp_path / "x.safetensors")
        assert len(str(caught.value)) < 1500
