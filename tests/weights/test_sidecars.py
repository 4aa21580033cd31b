"""What other code bases write beside the tensors is taken, or refused by name."""

import json
import pickle
import re
import shutil
import tracemalloc

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file, save_file

from tests.parity import GOLDEN
from van_classification_tensorflow.export.convert import convert, write_safetensors
from van_classification_tensorflow.inference.classifier import Classifier
from van_classification_tensorflow.spec.preprocessing import Preprocessing
from van_classification_tensorflow.weights.checkpoint import (
    CheckpointError,
    read_checkpoint,
    read_weights,
)
from van_classification_tensorflow.weights.formats import torch as torch_file
from van_classification_tensorflow.weights.formats.torch import write_torch
from van_classification_tensorflow.weights.namings import spell
from van_classification_tensorflow.weights.pretrained import open_pretrained
from van_classification_tensorflow.weights.sidecars import of_openmmlab, of_timm, to_transformers

OWN = [f"my_own {i}" for i in range(10)]
# As transformers 4.57 saves its ConvNextImageProcessor.
CONVNEXT = {
    "crop_pct": 0.875,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": [0.485, 0.456, 0.406],
    "image_std": [0.229, 0.224, 0.225],
    "image_processor_type": "ConvNextImageProcessor",
    "resample": 3,
    "rescale_factor": 0.00392156862745098,
    "size": {"shortest_edge": 64},
}
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def folder(path, config=None, processor=CONVNEXT, without=()):
    """A copy of `micro_hf`, with changes to its JSON."""
    shutil.copytree(GOLDEN / "micro_hf", path)
    known = json.loads((path / "config.json").read_text())
    known |= {"id2label": {str(i): name for i, name in enumerate(OWN)}} | (config or {})
    known = {key: value for key, value in known.items() if key not in without}
    (path / "config.json").write_text(json.dumps(known))
    if processor is not None:
        (path / "preprocessor_config.json").write_text(json.dumps(processor))
    return path


def official():
    tensors = load_file(GOLDEN / "micro.safetensors")
    return {n: a for n, a in tensors.items() if not n.endswith("num_batches_tracked")}


# --- transformers ---


def test_a_folder_of_transformers_says_labels_and_preprocessing(tmp_path):
    opened = open_pretrained(folder(tmp_path / "hf"))
    assert opened.card.labels == tuple(OWN)
    expected = Preprocessing.of_sizes(
        73, 64, interpolation="bicubic", crop_rounding="down", **IMAGENET
    )
    assert opened.card.preprocessing == expected
    assert (opened.card.remarks(), opened.card.activation) == ("", "softmax")
    # Also where a file of the folder is named; not where it is a copy elsewhere.
    assert open_pretrained(tmp_path / "hf" / "model.safetensors").card.labels == tuple(OWN)
    shutil.copy(tmp_path / "hf" / "model.safetensors", tmp_path / "alone.safetensors")
    alone = open_pretrained(tmp_path / "alone.safetensors")
    assert (alone.card.labels, alone.card.preprocessing) == (None, None)
    assert "'class 0'" in alone.card.remarks()
    assert "published ImageNet-1k" in alone.card.remarks()
    assert alone.card.remarks(labels=OWN, preprocessing=expected) == ""


@pytest.mark.parametrize(
    ("processor", "expected"),
    [
        ({"size": 96, "feature_extractor_type": "ConvNextFeatureExtractor"}, (109, 96, "bilinear")),
        ({"size": {"shortest_edge": 384}}, (384, 384, "bilinear", "both sides")),
        ({"image_processor_type": "ViTImageProcessor"}, (224, 224, "bilinear", "both sides")),
        (
            {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 75}},
            "a crop of 224 pixels out of 75",
        ),
        ({"image_processor_type": "BitImageProcessor", "crop_size": 200}, (224, 200, "bicubic")),
        (
            {"image_processor_type": "DeiTImageProcessorFast", "crop_size": None},
            (256, 224, "bicubic", "both sides"),
        ),
        (
            {"image_processor_type": "CLIPImageProcessor", "do_center_crop": False},
            "do_center_crop false: inputs that are not square",
        ),
        ({"image_processor_type": "LevitImageProcessor"}, "the processor 'LevitImageProcessor'"),
        ({"image_processor_type": ["x"]}, "the processor"),
        ({"do_resize": False}, "do_resize false"),
        ({"do_pad": True}, "'do_pad' True"),
        ({"size": {"height": 64, "width": 64}}, "size {'height': 64, 'width': 64}"),
        (
            {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 32}},
            "not square",
        ),
        ({"size": {"shortest_edge": 64.5}}, "a whole number"),
        ({"size": 10**9}, "a whole number, 1 to 8192"),
        ({"crop_pct": "much"}, "crop_pct 'much'"),
        ({"resample": 6}, "resample 6"),
        ({"image_mean": ["a"]}, "image_mean"),
        ({"image_std": 0}, "`std` divides"),
        ({"rescale_factor": None, "do_rescale": "yes"}, "do_rescale 'yes'"),
        ({"rescale_factor": 10**400}, "rescale_factor a number of 1,329 bits"),
        ({"rescale_factor": 1e-320}, "`mean` must hold one finite number"),
        ({"crop_pct": 5e-324}, "crop_pct 5e-324"),
        ({"size": 64, "do_center_crop": True, "crop_size": 32}, "crop_size 32 after `size`"),
        ([], "is no JSON object"),
    ],
)
def test_processors(tmp_path, processor, expected):
    place = folder(tmp_path / "hf", processor=processor)
    if isinstance(expected, str):
        with pytest.raises(CheckpointError, match="its preprocessing cannot be taken") as caught:
            open_pretrained(place).check()
        assert expected in str(caught.value)
        assert len(str(caught.value).splitlines()) == 1
        # The weights are read, and answered with a preprocessing of one's own.
        assert Classifier(place, preprocessing=Preprocessing(64)).labels[0].name == OWN[0]
        return
    opened = open_pretrained(place)
    opened.check()
    before, side, interpolation, *resize = expected
    found = opened.card.preprocessing
    assert (found.resize_to, found.input_size, found.interpolation) == (before, side, interpolation)
    assert [found.resize] == (resize or ["shorter side"])
    assert found.crop_rounding == "down"
    assert ("fast one" in opened.card.remarks()) == str(processor).count("Fast")


def test_every_way_to_scale_is_the_same_normalisation(tmp_path):
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    for i, (changes, expected) in enumerate(
        (
            (
                {"rescale_factor": 1 / 127.5, "image_mean": 1.0, "image_std": 1.0},
                pixels / 127.5 - 1,
            ),
            ({"do_rescale": False, "do_normalize": False}, pixels / 1.0),
            ({"do_normalize": False}, pixels / 255),
        )
    ):
        found = open_pretrained(folder(tmp_path / f"{i}", processor=CONVNEXT | changes))
        np.testing.assert_allclose(found.card.preprocessing.normalise(pixels), expected, atol=1e-4)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"hidden_act": "relu"}, "hidden_act 'relu'"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"layer_norm_eps": 1e-5}, "layer_norm_eps 1e-05"),
        ({"layer_norm_eps": None}, "layer_norm_eps None"),
        ({"strides": [2, 2, 2, 2]}, "strides"),
        ({"patch_sizes": [7, 3, 3, 5]}, "patch_sizes"),
        ({"patch_sizes": []}, "patch_sizes"),
        ({"layer_scale_init_value": 0}, "layer_scale_init_value 0"),
        ({"layer_scale_init_value": None}, "layer scale is on"),
        ({"layer_scale_init_value": 10**400}, "layer scale is on"),
        ({"model_type": "convnext"}, "of a model of type 'convnext'"),
        ({"num_channels": 1}, "num_channels 1"),
        ({"depths": [1, 1, 1, 1]}, "depths"),
        ({"hidden_sizes": [8, 16, 24, 64]}, "hidden_sizes"),
        ({"mlp_ratios": [4, 4, 2, 4]}, "mlp_ratios"),
        ({"mlp_ratios": "8"}, "mlp_ratios '8'"),
    ],
)
def test_another_architecture_is_refused_by_name(tmp_path, config, says):
    place = folder(tmp_path / "hf", config)
    with pytest.raises(CheckpointError) as caught:
        read_weights(place)
    assert says in str(caught.value)
    assert "nothing was loaded" in str(caught.value)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"id2label": {"0": "a", "1": "b"}}, "each of 10 classes. Received: 2 names"),
        ({"id2label": {str(i + 1): "a" for i in range(10)}}, "without a gap"),
        ({"id2label": {str(i): ["a"] for i in range(10)}}, "must hold texts"),
        ({"id2label": ["a"]}, "without a gap"),
        ({"problem_type": "regression"}, "not the scores of classes"),
        ({"problem_type": ["x"]}, "not the scores of classes"),
    ],
)
def test_labels_that_make_no_sense(tmp_path, config, says):
    place = folder(tmp_path / "hf", config)
    with pytest.raises(CheckpointError, match=says):
        Classifier(place)
    if "problem_type" in config:
        with pytest.raises(CheckpointError, match=says):
            convert(place, tmp_path / "x.safetensors")
        return
    assert [label.name for label in Classifier(place, labels=OWN).labels] == OWN
    report = convert(place, tmp_path / "x.safetensors")  # the way out of a command
    assert any(re.search(f"its labels is left out: .*{says}", note) for note in report.notes)
    assert open_pretrained(tmp_path / "x.safetensors").card.labels is None


def test_what_stands_beside_the_tensors_is_read_with_care(tmp_path):
    place = folder(tmp_path / "hf")
    for text, says in (
        (b'{"model_type": "van", "model_type": "van"}', "config.json has a key twice"),
        (b"[1]", "config.json is no JSON object"),
        (b"null", "config.json is no JSON object"),
        (b'{"a": ' * 100_000, "nested too deep|no JSON"),
        (b" " * (8 << 20) + b"{}", "more than 8,388,608 bytes"),
    ):
        (place / "config.json").write_bytes(text)
        with pytest.raises(CheckpointError, match=says):
            read_checkpoint(place)
    (place / "config.json").write_text('{"model_type": "van"}')
    (place / "preprocessor_config.json").write_text("null")
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json is no JSON"):
        Classifier(place)
    (place / "preprocessor_config.json").unlink()
    # One of something else, in a folder of other things: not taken.
    (place / "config.json").write_text('{"name": "my project"}')
    assert open_pretrained(place / "model.safetensors").card.labels is None


def test_unknown_names_and_many_labels(tmp_path):
    bare = {"id2label": {str(i): f"LABEL_{i}" for i in range(10)}}
    opened = open_pretrained(folder(tmp_path / "bare", bare))
    assert opened.card.labels is None
    assert "'class 0'" in opened.card.remarks()
    several = folder(tmp_path / "several", {"problem_type": "multi_label_classification"})
    assert open_pretrained(several).card.activation == "sigmoid"
    assert read_checkpoint(several).said["classifier_activation"] == "sigmoid"


@pytest.fixture(scope="module")
def thousand():
    """A small VAN of 1,000 classes."""
    tensors = official()
    rng = np.random.default_rng(0)
    head = {"head.weight": rng.normal(size=(1000, 32)), "head.bias": np.zeros(1000)}
    return {**tensors, **{name: array.astype(np.float32) for name, array in head.items()}}


def test_a_thousand_own_classes_are_not_imagenets(tmp_path, thousand):
    save_file(thousand, tmp_path / "x.safetensors")
    guessed = Classifier(tmp_path / "x.safetensors")
    assert guessed.labels[0].wnid == "n01440764"
    assert "ImageNet-1k's 1,000 are assumed" in guessed.notes
    convert(tmp_path / "x.safetensors", tmp_path / "hf", naming="huggingface")
    own = [f"part_{i}" for i in range(1000)]
    config = json.loads((tmp_path / "hf" / "config.json").read_text())
    assert config["id2label"]["0"] == "tench, Tinca tinca"  # as transformers' own say it
    assert open_pretrained(tmp_path / "hf").card.labels == "imagenet1k"
    for names, expected in ((own, own), ([f"LABEL_{i}" for i in range(1000)], None)):
        config["id2label"] = {str(i): name for i, name in enumerate(names)}
        (tmp_path / "hf" / "config.json").write_text(json.dumps(config))
        found = Classifier(tmp_path / "hf")
        assert "ImageNet-1k's" not in found.notes
        wanted = expected or [f"class {i}" for i in range(1000)]
        assert [label.name for label in found.labels] == wanted
        if expected:
            convert(tmp_path / "hf", tmp_path / "x.keras")
            assert read_checkpoint(tmp_path / "x.keras").said["labels"] == own


# --- timm ---


def test_arguments_of_timm():
    args = {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225], "crop_pct": 0.95}
    args |= {"img_size": 256, "input_size": None, "interpolation": "", "num_classes": 10}
    found = Preprocessing.from_dict(of_timm(args)["preprocessing"])
    assert found == Preprocessing(256, 0.95, "bicubic", **IMAGENET)
    args |= {"input_size": [3, 192, 192], "interpolation": "bilinear", "mean": [0.4]}
    found = Preprocessing.from_dict(of_timm(args)["preprocessing"])
    assert (found.input_size, found.interpolation) == (192, "bilinear")
    assert found.mean == (0.4, 0.4, 0.4)
    for wrong in (
        *({"mean": "x"}, {"crop_pct": 0}, {"input_size": []}, {"interpolation": "random"}),
        *({"mean": [10**400] * 3}, {"crop_pct": 1e-320}, {"input_size": [3, 224, 256]}),
    ):
        assert "its `args`: " in of_timm(wrong)["problems"]["preprocessing"]
    assert "border" in of_timm({"crop_mode": "border"})["problems"]["preprocessing"]
    # As other scripts say the same.
    args = {"img_size": [64, 64], "interpolation": 3, "crop_pct": 1.0}
    found = of_timm(args | {"imagenet_default_mean_and_std": True, "mean": None})
    assert Preprocessing.from_dict(found["preprocessing"]) == Preprocessing(64, 1.0, **IMAGENET)
    assert "assumed" not in found


@pytest.fixture
def saying(tmp_path, monkeypatch):
    """Weights of a file of `torch.save` with any plain data beside them."""
    plain = lambda value: pickle.dumps(value, 2)[2:-1]  # noqa: E731
    monkeypatch.setattr(torch_file, "pickled_plain", plain)

    def write(beside, tensors=None):
        write_torch(tmp_path / "said.pth", tensors or official(), beside=beside)
        return tmp_path / "said.pth"

    return write


def test_lists_that_hold_one_another_are_not_written_out(saying):
    value = ["ab"]
    for _ in range(6):
        value = [value] * 10
    tracemalloc.start()
    try:
        for name in ("crop_mode", "mean", "interpolation", "input_size"):
            assert name in of_timm({name: value})["problems"]["preprocessing"]
            with pytest.raises(ValueError, match=r"\.\.\."):
                Preprocessing(**{"mean": value} if name == "crop_mode" else {name: value})
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()
    for _ in range(30):
        value = [value] * 10
    with pytest.raises(CheckpointError, match="crop_mode"):
        open_pretrained(saying({"args": {"crop_mode": value}})).check()


def test_what_args_leave_open_is_assumed_and_said(saying):
    assert "preprocessing" not in of_timm({"lr": 1e-3})
    for args, says in (({"lr": 0.1}, "does not say how"), ({"crop_pct": 0.95}, "Nothing is said")):
        opened = open_pretrained(saying({"args": args}))
        assert says in opened.card.remarks()
        assert says not in opened.card.remarks(preprocessing=Preprocessing())
    assert (
        opened.card.preprocessing,
        "input_size, interpolation, mean, std" in opened.card.remarks(),
    ) == (
        Preprocessing(crop_pct=0.95),
        True,
    )


@pytest.mark.parametrize("file", ["micro_official.pth.tar", "micro_official_legacy.pth.tar"])
def test_a_training_checkpoint_of_timm(file):
    opened = open_pretrained(GOLDEN / file)
    args = read_checkpoint(GOLDEN / file).metadata["args"]
    assert args["model"]
    assert opened.card.preprocessing is None
    assert "It does not say how" in opened.card.remarks()
    assert "No names of its classes are known" in opened.card.remarks()


def test_what_is_wrong_is_told_in_one_short_line(tmp_path):
    about = {"preprocessing": {"mean": [1.0] * 100_000}}
    save_file(official(), tmp_path / "x.safetensors", metadata={"van": json.dumps(about)})
    with pytest.raises(CheckpointError, match="`mean` must hold one finite number") as caught:
        open_pretrained(tmp_path / "x.safetensors")
    assert len(str(caught.value)) < 1000
    assert len(str(caught.value).splitlines()) == 1


def grey():
    tensors = official()
    tensors["patch_embed1.proj.weight"] = tensors["patch_embed1.proj.weight"][:, :1]
    return tensors


@pytest.mark.parametrize(
    ("args", "expected", "says"),
    [
        ({"lr": 1}, Preprocessing(mean=(0.5,), std=(0.5,)), "does not say how"),
        ({"img_size": 64}, Preprocessing(64, mean=(0.5,), std=(0.5,)), "Nothing is said of crop"),
        (
            {"input_size": [1, 64, 64], "mean": [0.1307], "std": [0.3081]},
            Preprocessing(64, mean=(0.1307,), std=(0.3081,)),
            "Nothing is said of crop",
        ),
        (IMAGENET, Preprocessing(mean=(0.5,), std=(0.5,)), "not that of 1 channels"),
    ],
)
def test_grey_checkpoints_with_args(saying, tmp_path, args, expected, says):
    source = saying({"args": args}, grey())
    found = Classifier(source)
    assert found.preprocessing == expected
    assert says in found.notes
    convert(source, tmp_path / "hf", naming="huggingface")
    written = json.loads((tmp_path / "hf" / "preprocessor_config.json").read_text())
    assert written["image_mean"] == list(expected.mean)


def test_a_folder_of_timm(tmp_path):
    stated = {"mean": IMAGENET["mean"], "std": IMAGENET["std"], "crop_pct": 1.0}
    stated |= {"interpolation": "bilinear", "input_size": [3, 64, 64]}
    config = {"architecture": "van_b0", "num_classes": 10, "label_names": OWN}
    save_file(official(), tmp_path / "model.safetensors")
    place = tmp_path / "config.json"
    place.write_text(json.dumps(config | {"pretrained_cfg": stated}))
    opened = open_pretrained(tmp_path)
    assert opened.card.preprocessing == Preprocessing(64, 1.0, "bilinear", **IMAGENET)
    assert (opened.card.labels, opened.card.remarks()) == (tuple(OWN), "")
    for wrong, says in (
        ({"pretrained_cfg": stated | {"input_size": [3, 64, 96]}}, "not square"),
        ({"pretrained_cfg": stated, "label_names": {"a": 1}}, "must be a list of texts"),
        ({"pretrained_cfg": stated, "label_names": ["a"]}, "Received: 1 names"),
    ):
        place.write_text(json.dumps(config | wrong))
        with pytest.raises(CheckpointError, match=says):
            Classifier(tmp_path)
    place.write_text(json.dumps(config | {"pretrained_cfg": None}))
    assert "does not say how" in open_pretrained(tmp_path).card.remarks()


# --- OpenMMLab ---

PIPELINE = """
data_preprocessor = dict(
    mean=[123.675, 116.28, 103.53], num_classes=10, std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(backbone=dict(arch='tiny', type='VAN'), type='ImageClassifier')
test_dataloader = dict(
    batch_size=128,
    dataset=dict(
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(backend='pillow', edge='short', interpolation='bicubic', scale=248,
                 type='ResizeEdge'),
            dict(crop_size=224, type='CenterCrop'),
            dict(type='PackInputs'),
        ],
        type='ImageNet'))
launcher = None
"""
OLD_PIPELINE = """
data = dict(test=dict(type='ImageNet', pipeline=[
    dict(type='LoadImageFromFile'),
    dict(type='Resize', size=(256, -1), backend='pillow'),
    dict(type='CenterCrop', crop_size=(224, 224)),
    dict(type='Normalize', mean=[127.5, 127.5, 127.5], std=[127.5, 127.5, 127.5], to_rgb=True),
    dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]))
"""


def test_meta_of_openmmlab():
    found = of_openmmlab({"dataset_meta": {"classes": OWN}, "cfg": PIPELINE})
    assert found["labels"] == OWN
    expected = Preprocessing.of_sizes(248, 224, **IMAGENET)
    assert Preprocessing.from_dict(found["preprocessing"]).resize_to == 248
    np.testing.assert_allclose(found["preprocessing"]["mean"], expected.mean, atol=1e-12)
    assert found["notes"] == []
    old = of_openmmlab({"CLASSES": tuple(OWN), "config": OLD_PIPELINE})
    assert old["labels"] == OWN
    assert Preprocessing.from_dict(old["preprocessing"]) == Preprocessing.of_sizes(
        256, 224, interpolation="bilinear"
    )


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (PIPELINE.replace("to_rgb=True", "to_rgb=False"), "BGR"),
        (PIPELINE.replace("CenterCrop", "TenCrop"), "the step 'TenCrop'"),
        (PIPELINE.replace("scale=248", "scale=(248, 300)"), "cannot be followed"),
        (PIPELINE.replace("scale=248", "scale='248'"), "a whole number"),
        (PIPELINE.replace("'bicubic'", "'area'"), "`interpolation` must be one of"),
        (PIPELINE.replace("mean=[", "mean=['a', "), "mean ['a'"),
        (PIPELINE.replace("mean=[123.675", f"mean=[1{'0' * 400}"), "a number of 1,329 bits"),
        (PIPELINE.replace("scale=248", "scale=100"), "a crop of 224 pixels out of 100"),
        (PIPELINE.replace("crop_size=224", "efficientnet_style=True, crop_size=224"), "efficient"),
        (
            PIPELINE.replace("dict(type='PackInputs')", "dict(type='Resize', scale=64)"),
            "Resize at that place",
        ),
    ],
)
def test_pipelines_that_cannot_be_followed(text, says):
    assert says in of_openmmlab({"cfg": text})["problems"]["preprocessing"]


@pytest.mark.parametrize(
    "text",
    [
        "import os\nos.system('touch /tmp/owned')\n",
        "test_pipeline = __import__('os').listdir()",
        "test_pipeline = [dict(**{'type': 'x'})]",
        "test_pipeline = [1, 2]",
        "((((" * 1000,
        "-" * 90_000 + "1",
        "x = " + "1" + "+1" * 40_000,
        "x = -1" + "0" * 400,
        "\0",
        "a" * 200_000,
    ],
)
def test_a_configuration_text_is_never_run(text):
    found = of_openmmlab({"CLASSES": OWN, "cfg": text})
    assert found["labels"] == OWN
    assert "preprocessing" not in found
    assert found["notes"] == ["The configuration text in its `meta` could not be read."]


def test_heads_of_openmmlab(saying):
    head = "model = dict(type='ImageClassifier', head=dict(type='mmpretrain.{}'))\n"
    for kind, expected in (("LinearClsHead", "softmax"), ("MultiLabelLinearClsHead", "sigmoid")):
        opened = open_pretrained(saying({"meta": {"cfg": head.format(kind)}}))
        assert opened.card.activation == expected
        assert Classifier(saying({"meta": {"cfg": head.format(kind)}})).activation == expected
    with pytest.raises(CheckpointError, match="a head of type 'OrdinalHead' cannot be followed"):
        Classifier(saying({"meta": {"cfg": head.format("OrdinalHead")}}))


def test_what_cannot_be_followed_stops_no_model(saying, capsys):
    from van_classification_tensorflow import VAN
    from van_classification_tensorflow.cli import main

    source = saying({"args": {"crop_mode": "border"}})
    with pytest.warns(UserWarning, match="its preprocessing cannot be taken, and the model has no"):
        assert VAN(pretrained=source).preprocessing is None
    opened = open_pretrained(source)
    assert "Not taken: its `args`: crop_mode" in opened.card.remarks()
    assert "Not taken" not in opened.card.remarks(preprocessing=Preprocessing())
    Image.new("RGB", (8, 8)).save(source.with_name("p.png"))
    with pytest.raises(SystemExit, match="1"):
        main(["predict", str(source.with_name("p.png")), "--weights", str(source)])
    assert "its preprocessing cannot be taken: its `args`: crop_mode" in capsys.readouterr().err


def test_a_backbone_in_another_model_is_read(saying):
    text = "test_pipeline = [dict(type='MultiScaleFlipAug', img_scale=(2048, 512), flip=False)]"
    tensors = {n: a for n, a in official().items() if not n.startswith("head.")}
    found = Classifier(saying({"meta": {"CLASSES": ["a", "b"], "config": text}}, tensors))
    assert found.labels == ()
    assert "the step 'MultiScaleFlipAug' cannot be followed" in found.notes
    assert "published ImageNet-1k" in found.notes


def test_resized_by_opencv_is_said():
    found = of_openmmlab({"cfg": PIPELINE.replace("backend='pillow'", "backend='cv2'")})
    assert "OpenCV" in found["notes"][0]


def test_a_checkpoint_of_openmmlab_and_names_of_others(tmp_path):
    named = spell(official(), "mmpretrain")
    write_torch(tmp_path / "m.pth", named, beside={"meta": {"CLASSES": OWN, "cfg": PIPELINE}})
    opened = open_pretrained(tmp_path / "m.pth")
    assert opened.card.labels == tuple(OWN)
    assert opened.card.preprocessing.resize_to == 248
    # The slip of a configuration that names ImageNet's classes for ten of its own.
    write_torch(tmp_path / "n.pth", named, beside={"meta": {"CLASSES": ["a", "b"]}})
    opened = open_pretrained(tmp_path / "n.pth")
    assert opened.card.labels is None
    assert "names 2 classes, which are not these" in opened.card.remarks()


# --- Written ---


@pytest.mark.parametrize(
    ("preprocessing", "kind", "shifted"),
    [
        (Preprocessing(), "ConvNextImageProcessor", "one crop in four"),
        (Preprocessing(crop_rounding="down"), "ConvNextImageProcessor", ""),
        (Preprocessing(480, 0.9, crop_rounding="down"), "CLIPImageProcessor", ""),
        (Preprocessing(64, 1.0, "box", resize="both sides"), "ViTImageProcessor", ""),
        (Preprocessing.of_sizes(67, 64, resize="both sides"), "DeiTImageProcessor", "every crop"),
    ],
)
def test_processors_that_are_written_say_the_same(tmp_path, preprocessing, kind, shifted):
    record, notes = to_transformers(preprocessing)
    assert record["image_processor_type"] == kind
    assert (shifted in " ".join(notes)) if shifted else notes == []
    read = open_pretrained(folder(tmp_path / "hf", processor=record)).card.preprocessing
    assert read.resize_to == preprocessing.resize_to
    for field in ("input_size", "interpolation", "mean", "std", "resize"):
        assert getattr(read, field) == getattr(preprocessing, field)


@pytest.mark.parametrize("target", ["o.pth", "m.pth", "x.safetensors", "hf", "k.keras"])
def test_every_written_format_keeps_what_belongs_to_the_tensors(tmp_path, target):
    source = folder(tmp_path / "source", {"problem_type": "multi_label_classification"})
    naming = {"m.pth": "mmpretrain", "hf": "huggingface"}.get(target)
    report = convert(source, tmp_path / target, naming=naming)
    assert report.notes == ()
    first, again = open_pretrained(source).card, open_pretrained(tmp_path / target).card
    for what in ("labels", "preprocessing", "activation"):
        assert getattr(again, what) == getattr(first, what), what
    if target == "hf":
        config = json.loads((tmp_path / "hf" / "config.json").read_text())
        assert (config["image_size"], config["problem_type"]) == (64, "multi_label_classification")
        assert list(config["id2label"].values()) == OWN
    if target == "m.pth":
        meta = read_checkpoint(tmp_path / target).metadata["meta"]
        assert meta == {"CLASSES": OWN, "dataset_meta": {"classes": OWN}}


def test_files_of_tensors_alone_say_what_is_left_out(tmp_path):
    source = folder(tmp_path / "source")
    report = convert(source, tmp_path / "pytorch_model.bin", naming="huggingface")
    assert "holds tensors only: labels and preprocessing are left out" in report.notes[0]
    assert read_checkpoint(tmp_path / "pytorch_model.bin").wrapper == ""  # as transformers reads


@pytest.mark.parametrize("said", ["relu", ["x"]])
@pytest.mark.parametrize("target", ["m.pth", "x.safetensors", "hf", "k.keras"])
def test_scores_that_are_no_probabilities_are_not_written_as_such(tmp_path, target, said):
    card = {"classifier_activation": said}
    write_safetensors(tmp_path / "source.safetensors", official(), card)
    naming = "huggingface" if target == "hf" else None
    with pytest.raises(ValueError, match="its scores are no probabilities"):
        convert(tmp_path / "source.safetensors", tmp_path / target, naming=naming)
    assert not (tmp_path / target).exists()


def test_a_card_cannot_speak_for_the_reader(tmp_path):
    source = tmp_path / "source.safetensors"
    for said in ({"notes": ["\x1b[2J evil"]}, {"notes": 5}, {"problems": 5}, {"origin": 1}):
        write_safetensors(source, official(), {"labels": OWN, **said})
        opened = open_pretrained(source)
        opened.check()
        assert (opened.card.labels, opened.card.notes) == (tuple(OWN), "")
    for said in ({"\x1b[2J": 1}, {"\x1b[2J": 1, "problem": 2}, {"mean": "\x1b"}):
        write_safetensors(source, official(), {"preprocessing": said})
        with pytest.raises(CheckpointError) as caught:
            open_pretrained(source)
        assert str(caught.value).isprintable()


# --- Folders ---


def sharded(path, ending=".safetensors", files=2):
    """`micro_hf` in several files, as transformers writes large models; its index."""
    folder(path)
    for whole in ("model.safetensors", "pytorch_model.bin"):
        (path / whole).unlink()
    tensors = load_file(GOLDEN / "micro_hf" / "model.safetensors")
    stem = "model" if ending == ".safetensors" else "pytorch_model"
    shards = {
        name: f"{stem}-{i % files + 1:05}-of-{files:05}{ending}" for i, name in enumerate(tensors)
    }
    for file in set(shards.values()):
        its = {name: tensors[name] for name in tensors if shards[name] == file}
        if ending == ".bin":
            write_torch(path / file, its, wrapper="")
        else:
            save_file(its, path / file, metadata={"format": "pt"})
    index = path / f"{stem}{ending}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": shards}))
    return index


@pytest.mark.parametrize("ending", [".safetensors", ".bin"])
def test_folders_in_several_files(tmp_path, ending):
    index = sharded(tmp_path / "hf", ending, files=3)
    expected = read_weights(GOLDEN / "micro_hf").tensors
    for path in (tmp_path / "hf", index, f"{tmp_path / 'hf'}/"):
        found = open_pretrained(path)
        assert found.card.labels == tuple(OWN)
        assert "3 files" in found.weights.source.layout
        with pytest.raises(CheckpointError, match="model_ema"):
            read_checkpoint(path, wrapper="model_ema")
        for name, array in found.weights.tensors.items():
            np.testing.assert_array_equal(array, expected[name])


def test_hostile_indices(tmp_path):
    index = sharded(tmp_path / "hf")
    good = json.loads(index.read_text())["weight_map"]
    first = next(iter(good))
    shutil.copy(GOLDEN / "micro.safetensors", tmp_path / "outside.safetensors")
    many = {f"x{i}": f"m-{i}.safetensors" for i in range(300)}
    for shards, says in (
        (good | {first: "../outside.safetensors"}, "expected a plain name"),
        (good | {first: str(tmp_path / "outside.safetensors")}, "expected a plain name"),
        (good | {first: "..\\outside.safetensors"}, "expected a plain name"),
        (good | {first: "x.bin"}, "ends in .safetensors"),
        (good | {first: 3}, "expected a plain name"),
        (good | {"more": good[first]}, "differ: 'more'"),
        ({n: file for n, file in good.items() if n != first}, "differ: "),
        (many, "300 tensors in 300 files"),
        ({}, "no `weight_map`"),
        ([], "no `weight_map`"),
    ):
        index.write_text(json.dumps({"weight_map": shards}))
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(tmp_path / "hf")
        assert says in str(caught.value)
    index.write_text(json.dumps({"weight_map": good | {first: "gone.safetensors"}}))
    with pytest.raises(FileNotFoundError, match=r"gone\.safetensors"):
        read_checkpoint(tmp_path / "hf")


def test_the_folder_of_a_run_is_its_best_model(tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "metrics.csv").write_text("epoch\n")
    with pytest.raises(
        CheckpointError, match=r"a folder without .*best\.keras, last\.keras or model"
    ):
        open_pretrained(run)
    convert(folder(tmp_path / "hf"), run / "last.keras")
    assert open_pretrained(run).card.name == str(run / "last.keras")
    shutil.copy(run / "last.keras", run / "best.keras")
    for given in (run, f"{run}/", str(run)):
        opened = open_pretrained(given)
        assert (opened.card.name, opened.card.labels) == (str(run / "best.keras"), tuple(OWN))


def test_a_bare_name_and_a_slash_at_its_end(tmp_path, monkeypatch):
    from van_classification_tensorflow.export import source
    from van_classification_tensorflow.inference import predict
    from van_classification_tensorflow.weights.pretrained import open_local

    folder(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    for name in ("mine", "mine/", "./mine//"):
        assert open_local(name).card.name == name.rstrip("/")
        assert open_pretrained(name).card.name == name.rstrip("/")
        assert Classifier(name).labels[0].name == OWN[0]
        assert predict.state_of_weights(name) == predict.state_of_weights("mine")
        assert source.open_source(name, False).card.name == "mine"
        convert(name, "out/" if name.endswith("/") else "out", naming="huggingface", overwrite=True)
        assert (tmp_path / "out" / "config.json").is_file()
    assert len(predict.state_of_weights("mine")) == 6  # of three files
