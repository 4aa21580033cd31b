"""Segmenters exported: equal to the Keras model, taken by `Segmenter`, refused where they lie."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

from tests.parity import GOLDEN, seeded_tensor
from van_classification_tensorflow import Classifier, Segmenter, VANSegmenter, cli
from van_classification_tensorflow.engines.keras_values import Untranslatable
from van_classification_tensorflow.export.request import ExportRequest
from van_classification_tensorflow.segment import export as exporting
from van_classification_tensorflow.segment.graph import graph_of
from van_classification_tensorflow.segment.load import load_segmenter, tensors_of
from van_classification_tensorflow.spec.segment_card import SegmentCard
from van_classification_tensorflow.support.console import messages
from van_classification_tensorflow.weights.catalogue import OF_SEGMENTERS

from . import micro

WEIGHTS = GOLDEN / "seg_upernet_micro_mmseg0.pth"


def run(capsys, *arguments):
    """(exit code, standard output, error stream)"""
    code = 0
    try:
        cli.main([str(one) for one in arguments])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes",
    [
        {"decoder": "semantic_fpn", "channels": 16, "neck_channels": 32},
        {"decoder": "light_ham", "channels": 32, "ham_channels": 64, "ham_rank": 8},
        {
            "decoder": "light_ham",
            "channels": 32,
            "ham_channels": 64,
            "ham_rank": 8,
            "ham_groups": 2,
        },
    ],
)
def test_graph(sizes):
    """Of sizes that are no multiples of 32, where every resize has work to do."""
    model = VANSegmenter(**micro.SIZES, **sizes, num_classes=7, data_format="channels_last")
    shapes = {name: array.shape for name, array in tensors_of(model).items()}
    load_segmenter(model, {name: seeded_tensor(name, shape) for name, shape in shapes.items()})
    assert_same(model, (75, 131))


def assert_same(model, size):
    picture = np.random.default_rng(0).standard_normal((1, *size, 3)).astype(np.float32)
    written = graph_of(model)(picture.shape[1:])
    (found,) = onnxruntime.InferenceSession(written.model).run(None, {"images": picture})
    expected = np.asarray(model(picture, training=False))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() <= 1e-5 * max(np.abs(expected).max(), 1)


def test_graph_of_upernet():
    assert_same(micro.model(), (75, 131))


@pytest.mark.slow
def test_bases_drawn_anew_have_no_graph():
    model = VANSegmenter(
        **micro.SIZES, decoder="light_ham", channels=32, ham_channels=64, ham_seed=None
    )
    with pytest.raises(Untranslatable, match=r"`ham_seed` fixes them"):
        graph_of(model)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """(the ONNX file, what the command said)"""
    path, model = tmp_path_factory.mktemp("exported") / "u.onnx", micro.model()
    with pytest.MonkeyPatch.context() as patch:
        said = []
        patch.setattr(exporting, "print_report", said.extend)
        patch.setattr(exporting, "segmentation_of", lambda weights: model)
        patch.setattr(model, "preprocessing", OF_SEGMENTERS)
        patch.setattr(model, "labels", [f"class_{i}" for i in range(7)])
        patch.setattr(model, "palette", [(37 * i % 256, 91 * i % 256, 17 * i) for i in range(7)])
        options = ["--weights", str(WEIGHTS), "--output", str(path), "--image-size", "64"]
        cli.main(["export", *options])
    return path, said


def test_onnx(exported):
    path, said = exported
    assert said[0] == f"model     {micro.model().name}, a segmentation of 7 classes"
    assert "largest difference" in said[3]
    assert "the same for 100.00% of the positions" in said[3]
    metadata = onnx.load(path).metadata_props[0].value
    card = SegmentCard.from_json(metadata)
    assert card.labels[2] == "class_2"
    assert card.palette[1] == (37, 91, 17)
    assert card.preprocessing.input_size == 512
    assert SegmentCard.from_json(card.to_json()) == card


def test_segmenter_takes_it(exported):
    """In windows of its size, also of a picture that is smaller than one."""
    path, _ = exported
    by_file = Segmenter(path, mode="slide", stride=40, size="own", fit="pad")
    assert by_file.model is None
    assert by_file.labels[2].name == "class_2"
    assert by_file.notes == ""
    rgb = np.ascontiguousarray(micro.golden()["predict_image_bgr"])
    expected = by_file.way.logits(micro.run, rgb, by_file.preprocessing.normalise)
    assert (
        np.abs(by_file.logits(rgb) - expected.part(0, expected.shape[expected.along])).max() < 1e-4
    )
    assert Segmenter(path, mode="slide").way.size == 512
    small = by_file(rgb[:40, :50])
    assert small.mask.shape == (40, 50)
    for given, says in (
        ({}, r"`mode` must be slide for .* windows of 64 x 64 pixels only"),
        ({"mode": "slide", "crop": 96}, r"`crop` must be \(64, 64\) for"),
        ({"mode": "slide", "stride": 65}, r"`stride` must be at most `crop`"),
    ):
        with pytest.raises(ValueError, match=says):
            Segmenter(path, **given)
    with pytest.raises(ValueError, match="it is a segmentation: `Segmenter`"):
        Classifier(path)


def test_what_does_not_agree_is_not_left(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(exporting, "segmentation_of", lambda weights: micro.model())
    output = tmp_path / "x.onnx"
    given = ("export", "--weights", WEIGHTS, "--output", output, "--image-size", "64")
    code, _, err = run(capsys, *given, "--tolerance", "0")
    assert (code, "does not agree with the Keras model" in err) == (1, True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("--output x.xml --image-size any", "must be fixed for openvino of a segmentation"),
        ("--output x.tflite --batch-size 2", "--batch-size must be 1 for litert"),
        ("--output x.onnx --softmax", "--softmax is for classifiers"),
        ("--output x.onnx --features", "--features is for classifiers"),
        ("--output x.onnx --uint8", "--uint8 is for classifiers"),
        ("--output x.onnx --precision float16", "--precision is for classifiers"),
        ("--output x.onnx --image-size any", "must be fixed for onnx of a segmentation"),
        ("--output x.onnx --batch-size 2", "--batch-size must be 1 for onnx"),
        ("--output x.onnx --image-size 16", "--image-size must be at least 32"),
    ],
)
def test_options_that_are_refused(given, says, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(exporting, "segmentation_of", lambda model: micro.model())
    code, _, err = run(capsys, "export", "--weights", WEIGHTS, *given.split())
    assert (code, says in err) == (1, True), err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"classes": 8, "labels": None, "palette": None}, "it gives 7 maps; its metadata says 8"),
        ({"classes": "7"}, "`classes` must be from 1 to"),
        ({"labels": ["a"]}, "`labels` must name each of 7 classes"),
        ({"labels": {"a": 1}}, "`labels` is no list of texts"),
        ({"palette": [[0, 0, 999]] * 7}, "`palette` must hold"),
        ({"preprocessing": []}, "`preprocessing` is no object"),
        ({"name": 1}, "`name` must be a text"),
        ({"task": "detection"}, "does not say that it is a segmentation"),
        ("{", "its metadata is no JSON"),
        ("[" * 100_000, "its metadata is"),
    ],
)
def test_metadata_of_strangers(change, says, exported, tmp_path):
    model = onnx.load(exported[0])
    (entry,) = model.metadata_props
    if isinstance(change, dict):
        change = json.dumps(json.loads(entry.value) | change)
    entry.value = change
    onnx.save(model, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match=f"x.onnx was refused: .*{says}"):
        Segmenter(tmp_path / "x.onnx", mode="slide")


def test_files_that_are_no_segmenters(tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"x\.onnx was refused"):
        Segmenter(tmp_path / "x.onnx")
    with pytest.raises(FileNotFoundError):
        Segmenter(tmp_path / "no.onnx")
    (tmp_path / "x.xml").write_text("<net></net>")
    (tmp_path / "x.tflite").write_bytes(b"no")
    for name in ("x.xml", "x.tflite"):
        with pytest.raises(ValueError, match=rf"{name} was refused"):
            Segmenter(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("ending", ["xml", "tflite"])
def test_other_runtimes(tmp_path, capsys, ending):
    """OpenVINO and LiteRT, in windows, beside ONNX Runtime's mask; each decoder was compared."""
    pytest.importorskip({"xml": "openvino", "tflite": "ai_edge_litert"}[ending])
    output = tmp_path / f"x.{ending}"
    given = ("export", "--weights", WEIGHTS, "--output", output, "--image-size", "64")
    code, out, err = run(capsys, *given)
    assert code == 0, err
    assert "best class the same for 100.00% of the positions" in out
    assert "images, float32, 64 x 64 pixels" in out
    picture = Image.fromarray(micro.golden()["predict_image_bgr"])
    slide = {"mode": "slide", "crop": 64, "stride": 40, "size": "own"}
    found = Segmenter(output, **slide)
    np.testing.assert_array_equal(found(picture).mask, Segmenter(WEIGHTS, **slide)(picture).mask)
    assert found.labels[2].name == "class_2"
    with pytest.raises(ValueError, match="it is a segmentation: `Segmenter`"):
        Classifier(output)


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    ["openvino", pytest.param("litert", marks=pytest.mark.thorough("half a minute of tracing"))],
)
@pytest.mark.parametrize(
    "sizes",
    [
        {"decoder": "semantic_fpn", "channels": 16, "neck_channels": 32},
        {"decoder": "light_ham", "channels": 32, "ham_channels": 64, "ham_rank": 8},
    ],
    ids=["fpn", "ham"],
)
def test_other_decoders_by_other_runtimes(tmp_path, kind, sizes):
    pytest.importorskip({"openvino": "openvino", "litert": "ai_edge_litert"}[kind])
    model = VANSegmenter(**micro.SIZES, **sizes, num_classes=7, data_format="channels_last")
    target = tmp_path / {"openvino": "x.xml", "litert": "x.tflite"}[kind]
    request = ExportRequest(model=model, path=target, image_size=64)
    found = exporting.export_segmenter(model, request, messages())
    assert found.difference <= 1e-4 * max(found.largest, 1)
    assert found.agreement == 1
    assert found.bytes > 10_000


@pytest.mark.slow
def test_saved_model_of_any_size(tmp_path, capsys):
    output = tmp_path / "saved"
    code, out, err = run(
        capsys,
        *("export", "--weights", WEIGHTS, "--output", output),
        *("--image-size", "any", "--batch-size", "any"),
    )
    assert code == 0, err
    assert "seg_upernet_micro_mmseg0.pth, a segmentation of 7 classes" in out
    assert "images, float32, any size" in out
    picture = Image.fromarray(micro.golden()["predict_image_bgr"])
    by_keras = Segmenter(WEIGHTS, size=96, scales=(0.5, 1), flip=True)(picture)
    found = Segmenter(output, size=96, scales=(0.5, 1), flip=True)(picture)
    np.testing.assert_array_equal(found.mask, by_keras.mask)
