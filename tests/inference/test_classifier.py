"""Pictures in, ranked labels out: the same answer however a picture is given."""

import io

import numpy as np
import pytest
from PIL import Image

from tests.parity import GOLDEN
from tests.tiny_artefacts import FORMATS, about, build, expected, random_weights
from van_classification_tensorflow import VAN, Classifier, Preprocessing
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.engines.runtimes import Runtime
from van_classification_tensorflow.export.convert import convert
from van_classification_tensorflow.images.decode import ImageError


@pytest.fixture(scope="module")
def classifier():
    return Classifier("digits", batch_size=64, engine="keras")


@pytest.fixture(scope="module")
def scans():
    """The 360 test digits as a scanner would store them, 8 x 8, and their labels."""
    _, test = load_digits()
    pixels = (test.pixels.astype(float) * 255 / 16).round().astype(np.uint8)
    return pixels, test.labels


def test_digits_are_recognised(classifier, scans):
    pixels, labels = scans
    found = classifier(pixels, top=5)
    assert len(found) == len(labels)
    right = [ranked[0].index == label for ranked, label in zip(found, labels, strict=True)]
    assert sum(right) == 357  # of 360, as the demo that made the weights reports
    for ranked in found:
        assert [p.label for p in ranked] == [str(p.index) for p in ranked]
        values = [p.probability for p in ranked]
        assert values == sorted(values, reverse=True)
        assert 0 < sum(values) <= 1 + 1e-9
        assert all(p.wnid is None for p in ranked)


def test_the_same_picture_in_every_form(classifier, scans, tmp_path):
    picture = Image.fromarray(scans[0][0])
    picture.save(tmp_path / "a.png")
    encoded = io.BytesIO()
    picture.save(encoded, "PNG")
    forms = [
        tmp_path / "a.png",
        str(tmp_path / "a.png"),
        encoded.getvalue(),
        bytearray(encoded.getvalue()),
        picture,
        picture.convert("RGB"),
        scans[0][0],
        scans[0][0][..., None],
        np.repeat(scans[0][0][..., None], 3, -1),
    ]
    expected = classifier(forms[0])
    assert isinstance(expected[0].label, str)
    for form in forms:
        assert [p.index for p in classifier(form)] == [p.index for p in expected]
    for ranked in classifier(iter(forms)):
        np.testing.assert_allclose(
            [p.probability for p in ranked], [p.probability for p in expected], atol=1e-5
        )


@pytest.mark.parametrize("count", [1, 2, 63, 64, 65, 130])
def test_every_batch_gives_the_same(classifier, scans, count):
    """Padding and the last partial batch change nothing, and nothing is lost or swapped."""
    expected = classifier.model.predict_on_batch(
        classifier.preprocessing.normalise(np.kron(scans[0], np.ones((4, 4), np.uint8))[..., None])
    )
    results = list(classifier.stream(scans[0][:count]))
    assert len(results) == count
    for i, result in enumerate(results):
        np.testing.assert_array_equal(result.source, scans[0][i])
        np.testing.assert_allclose(result.output, expected[i], atol=1e-4)


def test_engines_give_the_same_and_auto_chooses(classifier, scans):
    expected = [r.output for r in classifier.stream(scans[0][:5])]
    fast = Classifier("digits", engine="numpy")
    np.testing.assert_allclose([r.output for r in fast.stream(scans[0][:5])], expected, atol=1e-5)
    assert "model" not in fast.__dict__
    auto = Classifier("digits")
    auto.numpy_limit = 3
    auto(list(scans[0][:3]))
    assert "model" not in auto.__dict__
    auto(list(scans[0][:4]))
    assert "model" in auto.__dict__
    many = Classifier("digits")
    many(iter(scans[0][:2]))  # how many come is not known
    assert "model" in many.__dict__


def test_features(classifier, scans):
    features = classifier.features(scans[0][:5])
    assert (features.shape, features.dtype) == ((5, 64), np.float32)
    one = classifier.features(scans[0][0])
    np.testing.assert_allclose(one, features[0], atol=1e-5)
    head = classifier.model.get_layer("head")
    logits = features @ np.asarray(head.kernel) + np.asarray(head.bias)
    results = list(classifier.stream(scans[0][:5]))
    np.testing.assert_allclose(logits, [r.output for r in results], atol=1e-4)


def test_views_are_averaged(scans):
    plain = Classifier("digits")
    many = Classifier(
        "digits", crops=5, flip=True, preprocessing=Preprocessing(32, 0.8, "box", (0.5,), (0.5,))
    )
    from van_classification_tensorflow.images.decode import open_image

    inputs = many.preprocessing.views(open_image(scans[0][3]), 5, True)
    expected = plain.model.predict_on_batch(inputs).mean(axis=0)
    (result,) = many.stream([scans[0][3]])
    np.testing.assert_allclose(result.output, expected, atol=1e-4)


def test_a_bad_picture_among_good_ones(classifier, scans, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"no picture")
    sources = [scans[0][0], bad, scans[0][1], tmp_path / "missing.png"]
    results = list(classifier.stream(sources))
    assert [r.error is None for r in results] == [True, False, True, False]
    assert results[1].error.startswith(str(bad))
    assert results[3].error == f"{tmp_path / 'missing.png'}: No such file or directory"
    with pytest.raises(ImageError, match=r"bad\.png"):
        classifier(sources)
    with pytest.raises(FileNotFoundError):
        classifier(tmp_path / "missing.png")


def test_a_saved_model_carries_labels_and_preprocessing(tmp_path, scans):
    model = VAN(pretrained="digits")
    model.labels = [f"digit {i}" for i in range(10)]
    model.save(tmp_path / "m.keras")
    classifier = Classifier(tmp_path / "m.keras")
    assert classifier.preprocessing == Preprocessing(32, 1.0, "box", (0.5,), (0.5,))
    assert classifier(scans[0][0])[0].label == f"digit {scans[1][0]}"
    convert(tmp_path / "m.keras", tmp_path / "m.safetensors")
    convert(tmp_path / "m.safetensors", tmp_path / "n.keras")
    for path in ("m.safetensors", "n.keras"):
        assert Classifier(tmp_path / path)(scans[0][0])[0].label == f"digit {scans[1][0]}"


def test_a_file_that_says_nothing(tmp_path):
    classifier = Classifier(GOLDEN / "micro_mmpretrain.pth")
    assert classifier.preprocessing == Preprocessing()
    assert [label.name for label in classifier.labels] == [f"class {i}" for i in range(10)]
    named = Classifier(GOLDEN / "micro_hf", labels=list("abcdefghij"))
    assert named.labels[2].name == "c"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"weights": "nothing"}, "no such weights"),
        ({"weights": None}, "`weights` must be a name or a path"),
        ({"weights": "digits", "labels": ["a"]}, "name each of 10 classes"),
        ({"weights": "digits", "batch_size": 0}, "`batch_size` must be an integer >= 1"),
        ({"weights": "digits", "engine": "tf"}, "`engine` must be one of auto, keras, numpy"),
        ({"weights": "digits", "crops": 3}, "`crops` must be 1 or 5"),
        ({"weights": "digits", "crops": np.array([1, 5])}, "`crops` must be 1 or 5"),
        ({"weights": "digits", "flip": "no"}, "`flip` must be True or False"),
        ({"weights": "digits", "engine": np.array(["a", "b"])}, "`engine` must be one of"),
        ({"weights": "digits", "labels": dict.fromkeys("abcdefghij")}, "0: name, 1: name"),
        ({"weights": "digits", "preprocessing": 3}, "`preprocessing` must be a `Preprocessing`"),
        ({"weights": "digits", "preprocessing": Preprocessing()}, "makes 3 channels"),
        ({"weights": "digits", "test_size": 8}, "too small"),
    ],
)
def test_wrong_arguments(arguments, says):
    with pytest.raises(ValueError, match=says):
        Classifier(**arguments)


def test_what_is_no_picture(classifier):
    with pytest.raises(ImageError, match="must be a path, bytes, a PIL image"):
        classifier([3])
    with pytest.raises(ImageError, match="must be uint8"):
        classifier(np.zeros((8, 8, 3)))
    with pytest.raises(ValueError, match="`top` must be an integer >= 1"):
        classifier(np.zeros((8, 8), np.uint8), top=0)


def test_a_backbone_gives_features_only(tmp_path, scans):
    from safetensors.numpy import load_file, save_file

    tensors = load_file(GOLDEN / "digits.safetensors")
    kept = {n: a for n, a in tensors.items() if not n.startswith("head.")}
    save_file(kept, tmp_path / "b.safetensors")
    one_channel = Preprocessing(32, 1.0, "box", (0.5,), (0.5,))
    backbone = Classifier(tmp_path / "b.safetensors", preprocessing=one_channel)
    assert backbone.features(scans[0][0]).shape == (64,)
    with pytest.raises(ValueError, match="has no head"):
        backbone(scans[0][0])


def test_the_global_precision_changes_nothing(scans):
    import keras

    expected = list(Classifier("digits", engine="numpy").stream(scans[0][:2]))
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        found = list(Classifier("digits", engine="keras").stream(scans[0][:2]))
    finally:
        keras.config.set_dtype_policy("float32")
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours.output, theirs.output, atol=1e-5)


def test_one_picture_of_the_callers_many_times(scans, tmp_path):
    """Pillow loads lazily, and threads share the object."""
    Image.fromarray(np.kron(scans[0][0], np.ones((200, 200), np.uint8))).save(tmp_path / "x.png")
    for _ in range(3):
        lazy = Image.open(tmp_path / "x.png")
        results = list(Classifier("digits", workers=4).stream([lazy] * 8))
        assert [r.error for r in results] == [None] * 8


def test_no_pictures(classifier):
    assert classifier([]) == []
    assert classifier.features([]).shape == (0, 64)


def test_a_thousand_classes_are_imagenets_only_in_files_of_others(tmp_path):
    model = VAN(embed_dims=[8], mlp_ratios=[1], depths=[1], num_classes=1000)
    model.save(tmp_path / "m.keras")
    assert Classifier(tmp_path / "m.keras").labels[0].name == "class 0"
    from safetensors.numpy import save_file

    from van_classification_tensorflow.model.load import to_official

    save_file(to_official(model), tmp_path / "m.safetensors")
    assert Classifier(tmp_path / "m.safetensors").labels[0].wnid == "n01440764"


# --- Exported files ---

NAMES = [f"n{i:08} thing {i}" for i in range(10)]


def photographs(count):
    """Colour pictures of several shapes, none square."""
    rng = np.random.default_rng(5)
    return [rng.integers(0, 256, (40 + i, 36 + 3 * i, 3), dtype=np.uint8) for i in range(count)]


def linear(rows=32 * 32 * 3, outputs=10):
    return random_weights(rows, outputs) / np.float32(40)


def softmax(logits):
    return np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_exported_files(tmp_path, format, uint8, probabilities):
    """Labels, preprocessing, batches, views and what the outputs are: all from the file."""
    record = about(
        labels=NAMES,
        input="uint8" if uint8 else "float32",
        output="probabilities" if probabilities else "logits",
    )
    options = {"batch": 2, "uint8": uint8, "probabilities": probabilities}
    path = build(tmp_path, format, linear(), record, **options)
    classifier = Classifier(path, crops=5, flip=True)
    assert classifier.name == f"van_test.tiny (float32, {path})"
    assert classifier.preprocessing == Preprocessing.from_dict(record["preprocessing"])
    assert classifier.labels[3].wnid == "n00000003"
    assert classifier.runtime.format == format
    assert classifier.batch_size == 2
    sources = photographs(3)
    results = list(classifier.stream(sources))
    for source, result, ranked in zip(sources, results, classifier(sources, 10), strict=True):
        # As by hand: the views as they are without a runtime, through NumPy.
        views = classifier.preprocessing.views(Image.fromarray(source), 5, True)
        logits = expected(views, linear()).mean(axis=0)
        assert result.output.dtype == np.float32
        np.testing.assert_allclose(softmax(result.output), softmax(logits), atol=1e-5)
        if not probabilities:
            np.testing.assert_allclose(result.output, logits, atol=1e-4)
        assert [p.index for p in ranked] == np.argsort(-logits).tolist()
        assert ranked[0].label == f"thing {ranked[0].index}"
        shares = [p.probability for p in ranked]
        np.testing.assert_allclose(shares, np.sort(softmax(logits))[::-1], atol=1e-5)
    with pytest.raises(ValueError, match="holds no Keras model"):
        _ = classifier.model


def test_probabilities_that_are_zero(tmp_path):
    """Of an exported file they may be: the rest stays in order, and nothing is infinite."""
    weights = np.zeros((3, 10), np.float32)
    weights[:, 4], weights[:, 7] = 1000, 999
    record = about(output="probabilities", labels=NAMES)
    path = build(tmp_path, "onnx", weights, record, probabilities=True)
    (result,) = Classifier(path).stream([np.full((9, 9, 3), 255, np.uint8)])
    assert np.isfinite(result.output).all()
    ranked = Classifier(path)(np.full((9, 9, 3), 255, np.uint8), 3)
    assert [p.index for p in ranked] == [4, 7, 0]
    shares = softmax(np.array([1.5 * 1000 * 3, 1.5 * 999 * 3, 0]) - 4500)
    np.testing.assert_allclose([p.probability for p in ranked], shares, atol=1e-6)


def test_an_exported_file_for_any_batch_and_size(tmp_path, monkeypatch):
    path = build(tmp_path, "onnx", linear(3), about(labels=NAMES), batch=None, side=None)
    classifier = Classifier(path, test_size=48, batch_size=3)
    assert classifier.preprocessing.input_size == 48
    seen, run = [], Runtime.__call__

    def watched(self, images, *others):
        seen.append(images.shape)
        return run(self, images, *others)

    monkeypatch.setattr(Runtime, "__call__", watched)
    assert len(classifier(photographs(5))) == 5
    assert seen == [(3, 48, 48, 3), (2, 48, 48, 3)]
    assert classifier([]) == []


def test_an_exported_file_of_features(tmp_path):
    record = about(output="features", labels=NAMES)  # 10 classes, 8 features
    classifier = Classifier(build(tmp_path, "onnx", linear(3, 8), record))
    sources = photographs(2)
    views = [classifier.preprocessing(Image.fromarray(source)) for source in sources]
    found = classifier.features(sources)
    np.testing.assert_allclose(found, expected(np.stack(views), linear(3, 8)), atol=1e-5)
    assert classifier.features(sources[0]).shape == (8,)
    assert classifier.features([]).shape == (0, 8)
    with pytest.raises(ValueError, match="has no head"):
        classifier(sources)


def test_features_of_an_exported_file_of_logits(tmp_path):
    path = build(tmp_path, "onnx", linear(3), about())
    for classifier in (Classifier(path), Classifier(path, labels=NAMES)):
        for sources in (photographs(1), []):
            with pytest.raises(ValueError, match=r"gives logits, no features: export .*`van exp"):
                classifier.features(sources)


def test_an_exported_file_of_others(tmp_path):
    path = build(tmp_path, "onnx", linear(3, 1000))
    with pytest.raises(ValueError, match=r"`van export` writes do: .* give `preprocessing`"):
        Classifier(path)
    classifier = Classifier(path, preprocessing=Preprocessing(32))
    assert classifier.name == str(path)
    assert classifier.labels[0].wnid == "n01440764"
    end = "What it ends with is not known: its outputs are taken for logits."
    assert classifier.notes == f"{end} It names no classes: ImageNet-1k's 1,000 are assumed."
    assert len(classifier(photographs(1)[0])) == 5
    with pytest.raises(ValueError, match="gives logits, no features"):
        classifier.features(photographs(1))
    unnamed = Classifier(build(tmp_path, "onnx", linear(3)), preprocessing=Preprocessing(32))
    assert unnamed.labels[2].name == "class 2"
    assert "No names of its classes are known" in unnamed.notes
    options = {"labels": NAMES, "preprocessing": Preprocessing(32)}
    assert Classifier(tmp_path / "m.onnx", **options).notes == end
    silent = build(tmp_path, "onnx", linear(3), about(preprocessing=None, labels=NAMES))
    with pytest.raises(ValueError, match="does not say how its pictures are prepared"):
        Classifier(silent)
    assert Classifier(silent, preprocessing=Preprocessing(32)).labels[2].name == "thing 2"


def test_what_was_assumed_when_it_was_exported_is_said(tmp_path):
    record = about(labels=NAMES)
    del record["assumed"]  # as in files before that key
    path = build(tmp_path, "onnx", linear(3), record)
    assert not Classifier(path).notes
    build(tmp_path, "onnx", linear(3), record | {"assumed": ["labels", "preprocessing", "x"]})
    assert Classifier(path).notes == (
        "How its pictures are prepared was assumed when it was exported. The names of its classes "
        "were assumed when it was exported."
    )
    assert not Classifier(path, labels=NAMES, preprocessing=Preprocessing(32)).notes
    build(tmp_path, "onnx", linear(3), about())
    assert "No names of its classes are known" in Classifier(path).notes
    assert not Classifier(path, labels=NAMES).notes


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"test_size": 40}, r"`test_size` must be that of .*exported for 32 x 32.*Received: 40"),
        ({"preprocessing": Preprocessing(33)}, "exported for 32 x 32"),
        ({"preprocessing": Preprocessing(32, mean=(0,), std=(1,))}, "makes 1 channels"),
        ({"engine": "keras"}, "`engine` is for weights; .* exported file"),
        ({"engine": "numpy"}, "`engine` is for weights"),
        ({"labels": ["a"]}, "name each of 10 classes"),
    ],
)
def test_what_an_exported_file_does_not_take(tmp_path, options, says):
    path = build(tmp_path, "onnx", linear(), about())
    with pytest.raises(ValueError, match=says):
        Classifier(path, **options)


def test_an_exported_file_for_any_size_has_a_smallest_one(tmp_path):
    path = build(tmp_path, "onnx", linear(3), about(), side=None)
    with pytest.raises(ValueError, match="`test_size` is too small: this model needs at least 4"):
        Classifier(path, test_size=3)


def test_no_keras_model_is_made_for_pictures_that_cannot_be_read(tmp_path):
    classifier = Classifier("digits", engine="keras")
    with pytest.raises(OSError, match="missing"):
        classifier(tmp_path / "missing.png")
    assert [result.output for result in classifier.stream([tmp_path / "missing.png"])] == [None]
    assert "model" not in vars(classifier)
