"""Segmentation checkpoints: mmsegmentation's as they are, this package's own, and hostile ones."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import keras
import numpy as np
import pytest

from tests.parity import GOLDEN
from tests.segment.golden import channels_first, golden, images, micro, relative
from tests.segment.test_parity import golden_bases
from van_classification_tensorflow import VAN, VANSegmenter, load_checkpoint
from van_classification_tensorflow.segment.checkpoint import open_segmenter, read_segmenter
from van_classification_tensorflow.segment.load import load_segmenter, tensors_of
from van_classification_tensorflow.segment.save import save_segmenter
from van_classification_tensorflow.weights.checkpoint import CheckpointError
from van_classification_tensorflow.weights.formats.torch import write_torch

MMSEG_0 = GOLDEN / "seg_upernet_micro_mmseg0.pth"
PROJECT = GOLDEN / "seg_fpn_micro_project1.pth"
MMSEG_1 = GOLDEN / "seg_ham_micro_mmseg1.pth"
LABELS = tuple(f"class_{i}" for i in range(7))


@pytest.mark.parametrize("path", [MMSEG_0, PROJECT, MMSEG_1], ids=lambda path: path.stem)
def test_checkpoints_as_mmsegmentation_writes_them(path):
    """Of 0.x, and of mmengine with either naming of the backbone; what it logged is left alone."""
    options = {"ham_rank": 8} if path is MMSEG_1 else {}
    model = VANSegmenter(pretrained=path, data_format="channels_last", **options)
    if path is MMSEG_0:
        expected = golden("upernet_micro")["b_logits"]
    else:
        expected = golden("ckpt_outputs")[f"{path.stem.removeprefix('seg_')}/b_logits"]
    if path is MMSEG_1:
        model.get_layer("ham").bases = golden_bases(32, 8)
    assert relative(channels_first(model(images("micro", "b"))), expected) <= 1e-5
    assert model.labels == LABELS
    assert model.palette[:2] == ((0, 0, 0), (37, 91, 17))
    assert model.preprocessing.mean == (0.485, 0.456, 0.406)


def test_it_is_read_without_keras():
    code = (
        "import sys; from van_classification_tensorflow.segment.checkpoint import read_segmenter; "
        f"found = read_segmenter({str(MMSEG_1)!r}); "
        "heavy = {'keras', 'torch', 'mmengine'} & set(sys.modules); "
        "print(found.decoder, len(found.tensors), heavy)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "ham_channels=32, ham_rank=64, ham_groups=1) 175 set()" in run.stdout, run


def test_every_tensor_is_accounted_for():
    names = golden("ckpt_outputs")
    for path in (PROJECT, MMSEG_1):
        found = read_segmenter(path)
        theirs = {str(n) for n in names[f"{path.stem.removeprefix('seg_')}/names"]}
        spelled = {re.sub(r"(mlp\.dwconv)\.dwconv", r"\1", n) for n in found.tensors}
        theirs = {re.sub(r"(mlp\.dwconv)\.dwconv", r"\1", n) for n in theirs}
        assert spelled | {n for n in found.ignored if n in theirs} == theirs
        counters = {n for n in theirs if n.endswith("num_batches_tracked")}
        assert theirs - spelled == counters
    assert {"message_hub", "optimizer", "param_schedulers"} <= found.ignored.keys()


@pytest.mark.parametrize("ending", [".safetensors", ".pth", ".keras"])
def test_files_of_this_package(tmp_path, ending):
    model = micro("ham", norm_epsilon=2e-5, ham_seed=7)
    model.labels, model.palette = list("abcdefg"), np.arange(21, dtype=np.uint8).reshape(7, 3)
    path = tmp_path / f"x{ending}"
    if ending == ".keras":
        model.save(path)
    else:
        save_segmenter(model, path)
    found, tensors = read_segmenter(path), tensors_of(model)
    assert found.tensors.keys() == tensors.keys()
    assert all(np.array_equal(found.tensors[name], tensors[name]) for name in tensors)
    assert (found.decoder, found.norm_epsilon) == (model.sizes, 2e-5)  # also what no tensor tells
    assert (found.labels, found.palette) == (model.labels, model.palette)
    assert found.preprocessing is None
    assert found.ham_seed == VANSegmenter(pretrained=path).ham_seed == 7
    assert open_segmenter(found) is found
    assert [*tmp_path.iterdir()] == [path]
    # Its backbone is a VAN's, for whoever wants that.
    van = VAN(pretrained=path, include_top=False, data_format="channels_last")
    assert (van.embed_dims, van.depths) == (model.embed_dims, model.depths)
    assert np.array_equal(van.get_layer("norm1").gamma, model.get_layer("norm1").gamma)


@pytest.mark.slow
def test_sizes_and_heads_that_are_not_the_file_s(tmp_path):
    path = tmp_path / "x.safetensors"
    save_segmenter(micro("upernet"), path)
    with pytest.warns(UserWarning, match="last layer was left out, of 7 classes"):
        model = VANSegmenter(pretrained=path, num_classes=3, in_chans=3)
    assert (model.num_classes, model.auxiliary, model.labels) == (3, False, None)
    with pytest.warns(UserWarning, match="summed from 3 to 1 input channels"):
        model = VANSegmenter(pretrained=path, in_chans=1)
    assert (model.auxiliary, model.in_chans, model.preprocessing) == (False, 1, None)
    with pytest.raises(ValueError, match=r"has decoder='upernet'. Received: decoder='light_ham'"):
        VANSegmenter(pretrained=path, decoder="light_ham")
    with pytest.raises(ValueError, match="the model asked for has embed_dims"):
        VANSegmenter("van_b0", pretrained=path)
    with pytest.raises(ValueError, match=r"does not fit .*\nwrong shape"):
        VANSegmenter(pretrained=path, channels=16)
    save_segmenter(VANSegmenter(pretrained=path), path)
    with pytest.warns(UserWarning, match="The weights have no auxiliary head"):
        assert VANSegmenter(pretrained=path, auxiliary=True).auxiliary_channels == 256
    with pytest.raises(ValueError, match=r"must end in .safetensors or .pth"):
        save_segmenter(model, tmp_path / "x.h5")


# --- All or nothing ---


def refused(path, says):
    with pytest.raises(CheckpointError, match=says) as error:
        read_segmenter(path)
    assert str(error.value).startswith(str(path))


def changed(path, tensors, **changes):
    tensors = {**tensors, **{name.replace("__", "."): array for name, array in changes.items()}}
    write_torch(path, {name: array for name, array in tensors.items() if array is not None})
    return path


def test_what_is_no_segmenter_is_named(tmp_path):
    tensors, path = read_segmenter(MMSEG_0).tensors, tmp_path / "x.pth"
    refused(GOLDEN / "micro_official.pth.tar", "not the weights of a segmenter: decode_head.conv")
    only_head = {n: t for n, t in tensors.items() if not n.startswith("backbone.")}
    refused(changed(path, only_head), "not the weights of a VAN")
    seg = "decode_head.conv_seg"
    refused(changed(path, tensors, decode_head__psp_modules__0__1__bn__bias=None), "missing .1.")
    refused(changed(path, tensors, decode_head__gate__weight=np.ones(3, np.float32)), "not used by")
    wrong = tensors[f"{seg}.weight"][:, :5]
    refused(changed(path, tensors, decode_head__conv_seg__weight=wrong), r"expected \(7, 32, 1, 1")
    broken = np.full(7, np.nan, np.float32)
    refused(changed(path, tensors, decode_head__conv_seg__bias=broken), "NaN or infinity")
    refused(changed(path, {**tensors, "neck.fpn_convs.0.conv.bias": broken}), "not used by")
    names = [n for n in tensors if not n.startswith("backbone.block4")]
    names = [n for n in names if not n.startswith(("backbone.patch_embed4", "backbone.norm4"))]
    refused(changed(path, {n: tensors[n] for n in names}), "a backbone of 3 stages")


@pytest.mark.parametrize(
    ("said", "says"),
    [
        ({"channels": 64}, "and has the tensors of"),
        ({"decoder": "light_ham"}, "belongs to|must be"),
        ({"channels": "32"}, "`channels` must be an integer"),
        ({"channels": 10**12}, "more than 1,000,000 channels"),
        ({"labels": ["a"]}, "each of 7 classes"),
        ({"palette": [[1, 2, 3]]}, "a colour for each of 7"),
        ({"preprocessing": {"mean": []}}, "`mean`"),
        ({"norm_epsilon": 2}, "`norm_epsilon` must be a number above 0"),
        ({"norm_epsilon": "1"}, "`norm_epsilon` must be a number above 0"),
    ],
)
def test_what_a_file_says_of_itself_is_checked(tmp_path, said, says):
    found = read_segmenter(MMSEG_0)
    about = {"decoder": "upernet", **found.decoder.numbers(), **said}
    write_torch(tmp_path / "x.pth", found.tensors, beside={"van": json.dumps(about)})
    refused(tmp_path / "x.pth", says)


def test_what_mmsegmentation_says_may_be_anything(tmp_path):
    found = read_segmenter(MMSEG_0)

    def read(**meta):
        write_torch(tmp_path / "x.pth", found.tensors, beside={"meta": meta})
        return read_segmenter(tmp_path / "x.pth")

    assert read(CLASSES=["a"]).notes == ("It names 1 classes, which are not these 7.",)
    assert read(dataset_meta={"classes": list("abcdefg")}).labels == tuple("abcdefg")
    assert read(CLASSES=["\x1b[2J", *"bcdefg"]).labels[0] == r"\x1b[2J"
    (assumed,) = read_segmenter(MMSEG_1).notes
    assert assumed.startswith("It does not say the rank of its factorisation: 64")
    ham = read_segmenter(MMSEG_1)
    said = "model = dict(decode_head=dict(ham_kwargs=dict(MD_R=8, MD_S=2)))"
    write_torch(tmp_path / "h.pth", ham.tensors, beside={"meta": {"cfg": said}})
    decoder = read_segmenter(tmp_path / "h.pth").decoder
    assert (decoder.ham_rank, decoder.ham_groups) == (8, 2)
    write_torch(tmp_path / "h.pth", ham.tensors, beside={"meta": {"cfg": said.replace("8", "0")}})
    refused(tmp_path / "h.pth", "`MD_R` must be a whole number from 1 on")
    assert read(PALETTE="red").notes == ("Its palette is not one of colours for these classes.",)
    own = "img_norm_cfg = dict(mean=[51.0, 102.0, 127.5], std=[51, 51, 51], to_rgb=True)"
    assert read(config=own).preprocessing.mean == (0.2, 0.4, 0.5)
    new = "model = dict(data_preprocessor=dict(mean=[0, 0, 0], std=[255, 1, 1], bgr_to_rgb=True))"
    assert read(cfg=new).preprocessing.std[0] == 1
    for text in ("img_norm_cfg = dict(mean=1, to_rgb=True)", "import os", "(" * 9999, ""):
        assert read(cfg=text).preprocessing == found.preprocessing
    write_torch(
        tmp_path / "x.pth", found.tensors, beside={"meta": {"cfg": own.replace("True", "0")}}
    )
    refused(tmp_path / "x.pth", "in the order BGR")
    write_torch(
        tmp_path / "x.pth", found.tensors, beside={"meta": {"cfg": own.replace("51,", "0,")}}
    )
    refused(tmp_path / "x.pth", "`std`")


def test_a_model_stays_as_it_is(tmp_path):
    model = micro("upernet")
    tensors = tensors_of(model)
    zeros = {name: np.zeros_like(array) for name, array in tensors.items()}
    zeros["decode_head.bottleneck.bn.bias"] = np.full(32, np.inf, np.float32)
    for source, says in (
        (zeros, r"nothing was loaded.\nholding NaN or infinity \(1\)"),
        (MMSEG_1, "does not fit"),
        (GOLDEN / "micro_official.pth.tar", "not the weights of a segmenter"),
        (3, "`source` must be a path, or a mapping"),
    ):
        with pytest.raises(ValueError, match=says):
            load_segmenter(model, source)
    after = tensors_of(model)
    assert all(np.array_equal(after[name], tensors[name]) for name in tensors)
    # A classifier's weights go into the backbone.
    load_checkpoint(model, GOLDEN / "micro.safetensors")
    assert not np.array_equal(
        keras.ops.convert_to_numpy(model.get_layer("norm1").gamma), tensors["backbone.norm1.weight"]
    )
