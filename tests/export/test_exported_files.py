"""docs/exported-files.md: its example is run as it stands, and its tables are complete."""

import ast
import json
import re
import zipfile
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.parity import load_seeded
from tests.tiny_artefacts import FORMATS, KEY, about, build, random_weights
from van_classification_tensorflow import VAN, Classifier, Preprocessing
from van_classification_tensorflow.export import samples
from van_classification_tensorflow.export.export import export

pytest.importorskip("onnxruntime")
TEXT = (Path(__file__).parents[2] / "docs" / "exported-files.md").read_text(encoding="utf-8")
EXAMPLE = re.search(r"<!-- example: onnx -->\n```python\n(.*?)```", TEXT, re.DOTALL)[1]
RGB = Preprocessing(32, 0.9, "bicubic", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
GREY = Preprocessing(31, 0.875, "bilinear", (0.5,), (0.25,))
UNUSUAL = replace(RGB, input_size=33, resize="both sides", crop_rounding="down")
# Sizes with halves at the cut, an odd one, and one that needs no resize.
SIZES = [(61, 90), (90, 61), (35, 80), (47, 47), (300, 33)]


def pictures(channels):
    rng = np.random.default_rng(0)
    for width, height in SIZES:
        pixels = rng.integers(0, 256, (height, width, channels), np.uint8)
        yield Image.fromarray(pixels.squeeze())


def check(tmp_path, monkeypatch, preprocessing):
    """The example's probabilities against those of `Classifier` for model.onnx."""
    monkeypatch.chdir(tmp_path)
    classifier = Classifier(tmp_path / "model.onnx")
    assert classifier.preprocessing == preprocessing
    for picture in pictures(preprocessing.channels):
        picture.save("picture.png")
        found = {}
        exec(EXAMPLE, found)  # noqa: S102 - of this repository
        expected = sorted((p.index, p.probability) for p in classifier("picture.png", 99))
        p = np.atleast_1d(found["probabilities"])
        p = np.array([1 - p[0], p[0]]) if len(p) == 1 and len(expected) == 2 else p
        np.testing.assert_allclose(p, [share for _, share in expected], rtol=0, atol=1e-6)


def test_the_example_needs_nothing_of_this_package_and_is_short():
    imported = {
        (getattr(node, "module", None) or node.names[0].name).split(".")[0]
        for node in ast.walk(ast.parse(EXAMPLE))
        if isinstance(node, (ast.Import, ast.ImportFrom))
    }
    assert imported == {"json", "numpy", "onnxruntime", "PIL"}
    assert len([line for line in EXAMPLE.splitlines() if line]) <= 19


@pytest.mark.parametrize("preprocessing", [RGB, GREY, UNUSUAL])
@pytest.mark.parametrize(
    ("outputs", "changes"),
    [
        (10, {}),
        (3, {"activation": "sigmoid"}),
        (1, {"activation": "sigmoid", "labels": ["no", "yes"]}),
    ],
)
def test_the_example(tmp_path, monkeypatch, preprocessing, outputs, changes):
    channels = preprocessing.channels
    record = about(preprocessing.input_size, channels, outputs, **changes)
    record["preprocessing"] = preprocessing.to_dict()
    side = preprocessing.input_size
    weights = random_weights(side * side * channels, outputs) / np.float32(40)
    path = build(tmp_path, "onnx", weights, record, side=side, channels=channels)
    path.rename(tmp_path / "model.onnx")
    check(tmp_path, monkeypatch, preprocessing)


def test_the_example_on_what_is_exported(tmp_path, monkeypatch):
    monkeypatch.setattr(samples, "COMPARISON", 4)
    model = load_seeded(VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], num_classes=4))
    model.preprocessing = RGB
    export(model, tmp_path / "model.onnx")
    check(tmp_path, monkeypatch, RGB)


def test_the_document_names_every_key():
    for key, value in about().items():
        assert f"`{key}`" in TEXT, key
        for inner in value if isinstance(value, dict) else ():
            assert f"`{inner}`" in TEXT, inner
    for field in fields(Preprocessing):
        assert f"`{field.name}`" in TEXT, field.name


@pytest.mark.parametrize("format", FORMATS)
def test_where_the_metadata_is(tmp_path, format):
    """As the document says for each format, without this package."""
    record = about()
    path = build(tmp_path, format, random_weights(3), record)
    if format == "onnx":
        import onnxruntime

        found = onnxruntime.InferenceSession(path).get_modelmeta().custom_metadata_map[KEY]
    elif format == "openvino":
        import openvino

        found = openvino.Core().read_model(path).get_rt_info(KEY).value
    elif format == "litert":
        found = zipfile.ZipFile(path).read("van.json")
    else:
        found = (path / "assets.extra" / "van.json").read_text()
    assert json.loads(found) == record
