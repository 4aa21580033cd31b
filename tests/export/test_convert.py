"""Any -> ours -> any is bit-exact; the report says what happened; nothing half-written."""

import json

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests.parity import GOLDEN
from van_classification_tensorflow.export.convert import convert
from van_classification_tensorflow.weights.checkpoint import (
    CheckpointError,
    read_checkpoint,
    read_weights,
)
from van_classification_tensorflow.weights.namings import spell

SOURCES = (
    "micro.safetensors",
    "micro_official.pth.tar",
    "micro_official_legacy.pth.tar",
    "micro_mmpretrain.pth",
    "micro_hf",
    "micro_seed.h5",
)
TARGETS = (
    ("o.safetensors", None),
    ("h.safetensors", "huggingface"),
    ("m.safetensors", "mmpretrain"),
    ("o.pth", "official"),
    ("m.pth", "mmpretrain"),
    ("o.pth.tar", None),
    ("pytorch_model.bin", "huggingface"),
    ("folder", "huggingface"),
    ("van-v1.0", "huggingface"),
    ("k.keras", None),
    ("k.weights.h5", None),
)


@pytest.fixture(scope="module")
def official():
    tensors = load_file(GOLDEN / "micro.safetensors")
    return {n: a for n, a in tensors.items() if not n.endswith("num_batches_tracked")}


def same(tensors, expected):
    assert tensors.keys() == expected.keys()
    for name, array in tensors.items():
        np.testing.assert_array_equal(array, expected[name], err_msg=name)


def test_the_same_weights_are_the_same_bytes(tmp_path):
    """The library writes its metadata in an order of chance."""
    files = [tmp_path / f"{i}.safetensors" for i in range(12)]
    for file in files:
        convert(GOLDEN / "micro_official.pth.tar", file)
    assert len({file.read_bytes() for file in files}) == 1
    assert read_weights(files[0]).source.metadata.keys() == {"format", "van"}


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_to_the_default(tmp_path, official, source):
    report = convert(GOLDEN / source, tmp_path / "x.safetensors")
    assert report.target == tmp_path / "x.safetensors"
    written = load_file(tmp_path / "x.safetensors")
    same({n: a for n, a in written.items() if "num_batches" not in n}, official)


@pytest.mark.parametrize(("target", "naming"), TARGETS)
def test_every_target_and_back(tmp_path, official, target, naming):
    convert(GOLDEN / "micro_official.pth.tar", tmp_path / target, naming=naming)
    again = read_weights(tmp_path / target)
    same(again.tensors, official)
    if target.endswith((".keras", ".h5")):
        assert again.naming == "keras"
        return
    # Names and shapes are exactly those of that code base's own files.
    found = read_checkpoint(tmp_path / target)
    same(found.tensors, spell(official, naming or "official"))
    convert(tmp_path / target, tmp_path / "back.safetensors")
    same(read_weights(tmp_path / "back.safetensors").tensors, official)


@pytest.mark.usefixtures("eager")
def test_a_converted_keras_file_is_the_model(tmp_path):
    import keras

    from van_classification_tensorflow import VAN

    convert(GOLDEN / "micro_mmpretrain.pth", tmp_path / "m.keras")
    model = keras.saving.load_model(tmp_path / "m.keras")
    assert isinstance(model, VAN)
    with np.load(GOLDEN / "micro.npz") as golden:
        logits = golden["eval_logits"]
        expected = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(model.predict_on_batch(golden["x"]), expected, atol=1e-6)


def test_the_configuration_of_a_transformers_folder(tmp_path):
    convert(GOLDEN / "micro_official.pth.tar", tmp_path / "hf", naming="huggingface")
    ours = json.loads((tmp_path / "hf" / "config.json").read_text())
    theirs = json.loads((GOLDEN / "micro_hf" / "config.json").read_text())
    for key in ("dtype", "transformers_version"):
        theirs.pop(key)
    assert ours == theirs


def test_labels_of_imagenet_in_a_transformers_folder():
    from van_classification_tensorflow.export.convert import hugging_face_config
    from van_classification_tensorflow.spec.architecture import Architecture

    sizes = Architecture((8,), (16,), (1,), 3, 1000)
    named = hugging_face_config(sizes, "imagenet1k")
    assert named["id2label"]["2"].startswith("great white shark")
    assert hugging_face_config(sizes)["id2label"]["2"] == "LABEL_2"
    named = hugging_face_config(Architecture((8,), (16,), (1,), 3, 2), ["no", "yes"])
    assert named["label2id"] == {"no": 0, "yes": 1}
    with pytest.raises(ValueError, match="only whole mlp_ratios"):
        hugging_face_config(Architecture((8,), (12,), (1,), 3, 2))


def test_the_report(tmp_path):
    text = "\n".join(convert(GOLDEN / "micro_official.pth.tar", tmp_path / "x.pth").lines())
    for words in (
        "torch file, entry 'state_dict', official names: 164 tensors",
        "depths [1, 1, 2, 1], 3 input channels, 10 classes",
        "optimizer, amp_scaler (2): training state",
        "(14): BatchNorm's step counter",
        "x.pth: torch, official names",
    ):
        assert words in text, words
    text = "\n".join(convert(GOLDEN / "micro_hf", tmp_path / "y.pth").lines())
    assert "van.layernorm.weight (2): transformers stores it and uses it nowhere" in text


def test_other_precisions_become_float32_and_it_is_said(tmp_path, official):
    for dtype in (np.float16, ml_dtypes.bfloat16, np.float64):
        changed = {n: a.astype(dtype) for n, a in official.items()}
        save_file(changed, tmp_path / "x.safetensors")
        report = convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors", overwrite=True)
        same(
            read_weights(tmp_path / "y.safetensors").tensors,
            {n: a.astype(np.float32) for n, a in changed.items()},
        )
        assert report.notes == (f"{np.dtype(dtype).name} numbers were written as float32",)


def test_numbers_too_large_for_float32(tmp_path, official):
    official = {**official, "norm1.bias": np.full(8, 1e300)}
    save_file(official, tmp_path / "x.safetensors")
    with pytest.raises(ValueError, match=r"norm1\.bias does not fit into float32"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.pth")
    assert not (tmp_path / "y.pth").exists()


def test_nan_only_when_asked_for(tmp_path, official):
    save_file({**official, "norm1.bias": np.full(8, np.nan, "f4")}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match="holding NaN or infinity"):
        convert(tmp_path / "x.safetensors", tmp_path / "y.pth")
    assert [p.name for p in tmp_path.iterdir()] == ["x.safetensors"]
    for target in ("y.pth", "y.keras"):
        convert(tmp_path / "x.safetensors", tmp_path / target, allow_nonfinite=True)
        kept = read_weights(tmp_path / target, allow_nonfinite=True)
        assert np.isnan(kept.tensors["norm1.bias"]).all()


def test_metadata_of_ours_is_kept(tmp_path):
    from van_classification_tensorflow.weights.cache import fetch
    from van_classification_tensorflow.weights.catalogue import CATALOGUE

    convert(fetch(CATALOGUE["digits"]), tmp_path / "x.safetensors")
    about = json.loads(read_checkpoint(tmp_path / "x.safetensors").metadata["van"])
    assert about["labels"] == list("0123456789")
    assert about["preprocessing"] == CATALOGUE["digits"].preprocessing.to_dict()
    assert (about["in_chans"], about["num_classes"]) == (1, 10)


@pytest.mark.parametrize("about", ["[1]", "no JSON", "3", '"x"', "{}"])
def test_metadata_of_strangers_does_no_harm(tmp_path, official, about):
    save_file(official, tmp_path / "x.safetensors", metadata={"van": about})
    convert(tmp_path / "x.safetensors", tmp_path / "y.safetensors")
    written = read_checkpoint(tmp_path / "y.safetensors").metadata["van"]
    assert json.loads(written)["depths"] == [1, 1, 2, 1]


def test_what_is_there_is_not_replaced_unasked(tmp_path):
    target = tmp_path / "x.safetensors"
    target.write_text("precious")
    with pytest.raises(FileExistsError, match="to replace it: --overwrite"):
        convert(GOLDEN / "micro_seed.h5", target)
    assert target.read_text() == "precious"
    convert(GOLDEN / "micro_seed.h5", target, overwrite=True)
    assert len(load_file(target)) == 178


def test_a_failure_while_writing_leaves_the_old(tmp_path, monkeypatch):
    from van_classification_tensorflow.export import convert as module

    target = tmp_path / "x.pth"
    target.write_text("precious")

    def full(path, tensors, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "write_torch", full)
    with pytest.raises(OSError, match="No space left"):
        convert(GOLDEN / "micro_seed.h5", target, overwrite=True)
    assert target.read_text() == "precious"
    assert [p.name for p in tmp_path.iterdir()] == ["x.pth"]


STALE = ("preprocessor_config.json", "model.safetensors.index.json")


def two_channels(path):
    """Weights of which no preprocessing is known."""
    tensors = load_file(GOLDEN / "micro.safetensors")
    name = "patch_embed1.proj.weight"
    save_file(tensors | {name: np.ascontiguousarray(tensors[name][:, :2])}, path)
    return path


def test_what_another_model_left_in_a_folder_does_not_stay(tmp_path, monkeypatch):
    from van_classification_tensorflow.export import convert as module

    source, target = two_channels(tmp_path / "x.safetensors"), tmp_path / "hf"
    convert(GOLDEN / "micro_hf", target, naming="huggingface")
    for name in (*STALE[1:], "README.md", "pytorch_model.bin"):
        (target / name).write_text("{}")
    before = {path.name: path.read_bytes() for path in target.iterdir()}
    assert {"preprocessor_config.json", "config.json", "model.safetensors"} < set(before)

    def full(path, *_):
        path.mkdir()
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as changed:
        changed.setattr(module, "write_folder", full)
        with pytest.raises(OSError, match="No space left"):
            convert(source, target, naming="huggingface", overwrite=True)
    assert {path.name: path.read_bytes() for path in target.iterdir()} == before
    convert(source, target, naming="huggingface", overwrite=True)
    assert {path.name for path in target.iterdir()} == set(before) - set(STALE)
    assert read_weights(target).architecture.in_chans == 2


def test_a_folder_that_is_converted_in_place_keeps_its_own(tmp_path):
    source = two_channels(tmp_path / "model.safetensors")
    (tmp_path / "preprocessor_config.json").write_text('{"size": "unheard of"}')
    convert(source, tmp_path, naming="huggingface", overwrite=True)
    assert (tmp_path / "preprocessor_config.json").exists()


@pytest.mark.parametrize("target", ["x.safetensors", "x.pth", "x.keras", "x.weights.h5"])
def test_written_files_are_as_readable_as_others(tmp_path, target):
    convert(GOLDEN / "micro_seed.h5", tmp_path / target)
    (tmp_path / "plain").touch()
    assert (tmp_path / target).stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("target", "naming", "says"),
    [
        ("x.onnx", None, r"`target` must end in \.safetensors"),
        ("x", None, r"`target` must end in \.safetensors"),
        ("x", "mmpretrain", r"`target` must end in \.safetensors"),
        ("x.onnx", "huggingface", r"`target` must end in \.safetensors"),
        ("x.keras", "official", "does not apply to x.keras"),
        ("x.pth", "paddle", "`naming` must be one of official, huggingface, mmpretrain"),
        ("no/folder/x.pth", None, "is no folder; make it first"),
    ],
)
def test_wrong_targets(tmp_path, target, naming, says):
    with pytest.raises((ValueError, OSError), match=says):
        convert(GOLDEN / "micro_seed.h5", tmp_path / target, naming=naming)
    assert list(tmp_path.iterdir()) == []
