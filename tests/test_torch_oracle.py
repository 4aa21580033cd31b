"""torch and transformers as judges of what is read and written here.

Neither is in the test environment of the README; `scripts/test_backends.sh`, which CI runs, has
both: pip install '.[torch,original,test]'.
"""

import argparse
import io
import json

import numpy as np
import pytest

from van_classification_tensorflow.export.convert import convert
from van_classification_tensorflow.inference.classifier import Classifier
from van_classification_tensorflow.spec.preprocessing import Preprocessing
from van_classification_tensorflow.weights.checkpoint import (
    CheckpointError,
    read_checkpoint,
    read_weights,
)
from van_classification_tensorflow.weights.formats.torch import TorchFile
from van_classification_tensorflow.weights.pretrained import open_pretrained

from .parity import GOLDEN

torch = pytest.importorskip("torch", reason="scripts/test_backends.sh runs this with torch")


def saved(value, zip_layout=True):
    file = io.BytesIO()
    torch.save(value, file, _use_new_zipfile_serialization=zip_layout)
    return TorchFile(file)


def numpy(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.float().numpy()
    return tensor.detach().numpy()


@pytest.mark.parametrize("zip_layout", [True, False])
@pytest.mark.parametrize(
    "dtype", ["float32", "float64", "float16", "bfloat16", "int64", "int32", "uint8", "bool"]
)
def test_every_dtype_and_every_view(zip_layout, dtype):
    base = (torch.arange(120) - 50).reshape(2, 3, 4, 5).to(getattr(torch, dtype))
    big = torch.arange(1000).to(getattr(torch, dtype))
    views = {
        "plain": base,
        "permuted": base.permute(3, 1, 0, 2),
        "sliced": base[:, 1:, ::2, 3],
        "channels_last": base.to(memory_format=torch.channels_last),
        "scalar": base[1, 1, 1, 1],
        "empty": base[:0],
        "offset": big[700:],
        "shared": big[:10],
        "again": big[5:15],
    }
    opened = saved(views, zip_layout)
    assert len({opened.root[name].storage.key for name in ("offset", "shared", "again")}) == 1
    for name, tensor in views.items():
        array = opened.array(opened.root[name])
        assert array.shape == tuple(tensor.shape), name
        np.testing.assert_array_equal(array.astype(numpy(tensor).dtype), numpy(tensor), name)


@pytest.mark.parametrize("zip_layout", [True, False])
def test_everything_a_training_script_saves(tmp_path, zip_layout):
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    model(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    contents = {
        "epoch": 7,
        "arch": "van_b0",
        "state_dict": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "scheduler": scheduler.state_dict(),
        "args": argparse.Namespace(lr=1e-3, size=(3, 224, 224), device=torch.device("cpu")),
        "scaler": {"scale": 65536.0, "growth_interval": 2000, "_growth_tracker": 0},
        "metric": np.float64(81.1),
        "best": np.float32(3),
        "shape": torch.Size([1, 2]),
        "dtype": torch.float32,
        "random": torch.get_rng_state(),
        "parameter": torch.nn.Parameter(torch.ones(3)),
        "nested": [{"a": (1, 2.5, None, True, "text", -(2**40))}],
        "bytes": b"nothing is kept of these",
    }
    path = tmp_path / "x.pth.tar"
    torch.save(contents, path, _use_new_zipfile_serialization=zip_layout)
    found = read_checkpoint(path)
    assert found.wrapper == "state_dict"
    assert found.tensors.keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        np.testing.assert_array_equal(found.tensors[name], tensor.numpy(), name)
    assert set(found.ignored) == contents.keys() - {"state_dict"}
    assert found.metadata["args"]["lr"] == 1e-3
    assert found.metadata["args"]["size"] == (3, 224, 224)
    with open(path, "rb") as file:
        opened = TorchFile(file)
        assert opened.root["nested"] == contents["nested"]
        assert opened.root["shape"] == (1, 2)
        exp = opened.root["optimizer"]["state"][0]["exp_avg"]
        expected = optimizer.state_dict()["state"][0]["exp_avg"].numpy()
        np.testing.assert_array_equal(opened.array(exp), expected)


def test_the_preprocessing_of_a_training_checkpoint(tmp_path):
    state = {
        n: torch.from_numpy(a.copy())
        for n, a in read_checkpoint(GOLDEN / "micro.safetensors").tensors.items()
    }
    args = argparse.Namespace(mean=[0.1, 0.2, 0.3], std=None, crop_pct=0.8, interpolation="")
    torch.save({"state_dict": state, "args": args, "epoch": 3}, tmp_path / "x.pth.tar")
    opened = open_pretrained(tmp_path / "x.pth.tar")
    assert opened.card.preprocessing == Preprocessing(crop_pct=0.8, mean=(0.1, 0.2, 0.3))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path, protocol):
    torch.save({"a": torch.ones(2)}, tmp_path / "x.pth", pickle_protocol=protocol)
    np.testing.assert_array_equal(read_checkpoint(tmp_path / "x.pth").tensors["a"], [1, 1])


def test_a_whole_model_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "x.pth")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear"):
        read_checkpoint(tmp_path / "x.pth")


@pytest.mark.parametrize("naming", ["official", "huggingface", "mmpretrain"])
def test_torch_reads_what_is_written(tmp_path, naming):
    convert(GOLDEN / "micro_seed.h5", tmp_path / "x.pth", naming=naming)
    theirs = torch.load(tmp_path / "x.pth", weights_only=True)["state_dict"]
    ours = read_checkpoint(tmp_path / "x.pth").tensors
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[name], name)
        assert tensor.is_contiguous()


@pytest.mark.parametrize(
    "file",
    ["micro_official.pth.tar", "micro_official_legacy.pth.tar", "micro_mmpretrain.pth"],
)
def test_golden_files_as_torch_reads_them(file):
    with torch.serialization.safe_globals([argparse.Namespace]):
        theirs = torch.load(GOLDEN / file, weights_only=True)["state_dict"]
    ours = read_checkpoint(GOLDEN / file).tensors
    assert list(theirs) == list(ours)
    for name, tensor in theirs.items():
        np.testing.assert_array_equal(tensor.numpy(), ours[name], name)


@pytest.mark.parametrize("head", [True, False])
def test_transformers_reads_what_is_written(tmp_path, head):
    transformers = pytest.importorskip(
        "transformers", reason="scripts/test_backends.sh runs this with transformers"
    )
    source = GOLDEN / "micro_official.pth.tar"
    if not head:
        from safetensors.numpy import load_file, save_file

        tensors = load_file(GOLDEN / "micro.safetensors")
        source = tmp_path / "headless.safetensors"
        save_file({n: a for n, a in tensors.items() if not n.startswith("head.")}, source)
    convert(source, tmp_path / "hf", naming="huggingface")
    kind = transformers.VanForImageClassification if head else transformers.VanModel
    assert json.loads((tmp_path / "hf" / "config.json").read_text())["architectures"] == [
        kind.__name__
    ]
    model, report = kind.from_pretrained(tmp_path / "hf", output_loading_info=True)
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        assert not report[problem], (problem, report[problem])
    assert model.config.layer_norm_eps == 1e-6
    with np.load(GOLDEN / "micro.npz") as golden, torch.no_grad():
        images = torch.from_numpy(golden["x"].transpose(0, 3, 1, 2).copy())
        output = model.eval()(images)
        if head:
            difference = np.abs(output.logits.numpy() - golden["eval_logits"]).max()
            assert difference <= 1e-5
            # And back: what transformers saves is read here.
            model.save_pretrained(tmp_path / "again")
            again = read_weights(tmp_path / "again").tensors
            for name, array in read_weights(GOLDEN / "micro_official.pth.tar").tensors.items():
                np.testing.assert_array_equal(array, again[name], name)


IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}
PROCESSORS = {
    "convnext": ("ConvNextImageProcessor", {"size": 64, "resample": 3, **IMAGENET}),
    "convnext, all halves": (
        "ConvNextImageProcessor",
        {"size": {"shortest_edge": 65}, "crop_pct": 0.9},
    ),
    "convnext, squashed": ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    "convnext, mean only": ("ConvNextImageProcessor", {"size": 64, "do_rescale": False}),
    "vit": ("ViTImageProcessor", {"size": 64, "rescale_factor": 1 / 127.5, "image_mean": 1.0}),
    "clip": ("CLIPImageProcessor", {"size": {"shortest_edge": 75}, "crop_size": 64}),
    "bit": ("BitImageProcessor", {"size": {"shortest_edge": 70}, "crop_size": 64, "resample": 0}),
    "deit": ("DeiTImageProcessor", {"size": {"height": 75, "width": 75}, "crop_size": 64}),
}


@pytest.fixture(scope="module")
def pictures():
    """RGB, of several shapes: with half pixels left over by the crop, smaller and square ones."""
    from PIL import Image

    def picture(width, height):
        pixels = np.random.default_rng(0).integers(0, 256, (height // 8, width // 8, 3), np.uint8)
        return Image.fromarray(pixels).resize((width, height), 3)

    return [picture(*size) for size in ((401, 300), (333, 500), (260, 90), (64, 64), (389, 515))]


@pytest.fixture
def _width_first(monkeypatch):
    """Pillow resizes in its order of all releases up to 12, in which transformers used it.

    Since 13 it takes the height of tall pictures first, so that the pipeline's answer depends on
    the release: by up to 1e-4 for these pictures.
    """
    from PIL import Image

    resize = Image.Image.resize

    def in_order(self, size, resample=None, box=None, reducing_gap=None):
        if box is None and reducing_gap is None:
            self = resize(self, (size[0], self.height), resample)
        return resize(self, size, resample, box, reducing_gap)

    monkeypatch.setattr(Image.Image, "resize", in_order)


def assert_same_probabilities(pipeline, classifier, pictures):
    classes = len(classifier.labels)
    for picture in pictures:
        theirs = {one["label"]: one["score"] for one in pipeline(picture, top_k=classes)}
        ours = {one.label: one.probability for one in classifier(picture, top=classes)}
        assert theirs.keys() == ours.keys()
        assert max(abs(theirs[name] - ours[name]) for name in ours) <= 1e-6


@pytest.mark.usefixtures("_width_first")
@pytest.mark.parametrize(
    "name",
    [
        name if "halves" in name else pytest.param(name, marks=pytest.mark.slow)
        for name in PROCESSORS
    ],
)
def test_probabilities_of_the_pipeline_of_transformers(tmp_path, pictures, name):
    transformers = pytest.importorskip("transformers", reason="scripts/test_backends.sh has it")
    model = transformers.VanForImageClassification.from_pretrained(GOLDEN / "micro_hf")
    model.config.id2label = {i: f"of_my own {i}" for i in range(10)}
    kind, options = PROCESSORS[name]
    model.save_pretrained(tmp_path / "theirs")
    getattr(transformers, kind)(**options).save_pretrained(tmp_path / "theirs")
    classifier = Classifier(tmp_path / "theirs", engine="numpy")
    # And back: what is written here is read there, with the same probabilities.
    report = convert(tmp_path / "theirs", tmp_path / "ours", naming="huggingface")
    assert report.notes == ()
    for folder in ("theirs", "ours"):
        pipeline = transformers.pipeline("image-classification", model=str(tmp_path / folder))
        assert_same_probabilities(pipeline, classifier, pictures)


@pytest.mark.slow
def test_own_preprocessing_in_the_pipeline_of_transformers(tmp_path, pictures):
    from safetensors.numpy import load_file, save_file

    transformers = pytest.importorskip("transformers", reason="scripts/test_backends.sh has it")
    for i, record in enumerate(
        (
            Preprocessing(64, 0.9, crop_rounding="down"),
            Preprocessing.of_sizes(97, 64, interpolation="lanczos", crop_rounding="down"),
            Preprocessing(
                400, 0.95, "box", (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "shorter side", "down"
            ),
            Preprocessing(64, 0.75, "hamming", resize="both sides", crop_rounding="down"),
        )
    ):
        about = {"labels": [f"n0000000{k} of_my own" for k in range(10)]}
        about |= {"preprocessing": record.to_dict()}
        source = tmp_path / f"{i}.safetensors"
        tensors = load_file(GOLDEN / "micro.safetensors")
        save_file(tensors, source, metadata={"van": json.dumps(about)})
        assert convert(source, tmp_path / f"{i}", naming="huggingface").notes == ()
        pipeline = transformers.pipeline("image-classification", model=str(tmp_path / f"{i}"))
        classifier = Classifier(source, engine="numpy", labels=about["labels"])
        scores = {one["label"]: one["score"] for one in pipeline(pictures[0], top_k=10)}
        for one in classifier(pictures[0], top=10):
            assert abs(scores[f"{one.wnid} {one.label}"] - one.probability) <= 1e-6
