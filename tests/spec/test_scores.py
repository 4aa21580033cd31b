"""Probabilities of one output and of independent ones, wherever a model is read or written.

Against a calculation in NumPy: the logits by the NumPy network, their sigmoid by its definition.
"""

import io
import json
import warnings

import keras
import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from tests.parity import MICRO, load_seeded
from tests.tiny_artefacts import FORMATS, about, build, random_weights
from van_classification_tensorflow import VAN, Classifier, Preprocessing, fuse
from van_classification_tensorflow.datasets.labelled import open_dataset
from van_classification_tensorflow.engines.numpy_forward import forward
from van_classification_tensorflow.engines.runtimes import open_runtime
from van_classification_tensorflow.evaluate.evaluate import evaluate, report
from van_classification_tensorflow.export import export as module
from van_classification_tensorflow.export import samples
from van_classification_tensorflow.export.convert import convert
from van_classification_tensorflow.export.export import export
from van_classification_tensorflow.export.source import open_source
from van_classification_tensorflow.model.applications import decode_predictions
from van_classification_tensorflow.model.load import architecture, to_official
from van_classification_tensorflow.model.network import Network
from van_classification_tensorflow.spec import scores
from van_classification_tensorflow.spec.card import About
from van_classification_tensorflow.spec.config import VANConfig
from van_classification_tensorflow.spec.labels import Label
from van_classification_tensorflow.weights.pretrained import open_pretrained

# What a head may be: (outputs, activation, labels).
HEADS = {
    "binary": (1, "softmax", None),
    "named": (1, "sigmoid", ("cat",)),
    "both named": (1, None, ("dog", "cat")),
    "independent": (3, "sigmoid", ("sky", "sea", "sand")),
}
TINY = {"embed_dims": [8], "mlp_ratios": [2], "depths": [1]}  # quick to build
PREPROCESSING = Preprocessing(32)
ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite", "saved_model": ""}


def made(outputs, activation, labels):
    """A VAN whose logits differ from picture to picture and lie on both sides of 0."""
    model = load_seeded(VAN(**TINY, num_classes=outputs, classifier_activation=activation))
    head = model.get_layer("head")
    head.kernel.assign(head.kernel * 4)
    model.labels, model.preprocessing = labels, PREPROCESSING
    head.bias.assign(head.bias - logits_by_numpy(model).mean(axis=0))
    return model


def drawn(seed):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (rng.integers(2, 6), rng.integers(2, 6), 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize((40, 36), Image.Resampling.BILINEAR)


PICTURES = [drawn(seed) for seed in range(6)]


def logits_by_numpy(model):
    inputs = np.stack([PREPROCESSING(picture) for picture in PICTURES])
    return forward(to_official(model), architecture(model), inputs)[1].astype(np.float64)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def check(classifier, logits, labels):
    """Every probability of every picture, by name and in order."""
    for found, z in zip(classifier(PICTURES, 5), logits, strict=True):
        shares = sigmoid(z)
        names = labels or ("positive",)
        if len(names) == 2 and len(z) == 1:
            shares = np.array([1 - shares[0], shares[0]])
        expected = sorted(zip(-shares, range(len(names)), strict=True))
        assert [(p.label, p.index) for p in found] == [(names[i], i) for _, i in expected]
        np.testing.assert_allclose(
            [-s for s, _ in expected], [p.probability for p in found], atol=2e-5
        )


@pytest.fixture(scope="module", params=HEADS)
def head(request, tmp_path_factory):
    """(model, its `.keras` file, logits by NumPy, labels)."""
    outputs, activation, labels = HEADS[request.param]
    model = made(outputs, activation, labels)
    path = tmp_path_factory.mktemp("heads") / "m.keras"
    model.save(path)
    logits = logits_by_numpy(model)
    assert (logits > 0.1).any()
    assert (logits < -0.1).any()
    return model, path, logits, labels


# --- Weights ---


@pytest.mark.usefixtures("eager")
def test_keras_model_and_fused(head):
    model, path, logits, _ = head
    inputs = np.stack([PREPROCESSING(picture) for picture in PICTURES])
    expected = logits if model.classifier_activation is None else sigmoid(logits)
    for one in (model, fuse(model), keras.saving.load_model(path)):
        np.testing.assert_allclose(one.predict_on_batch(inputs), expected, atol=2e-5)


@pytest.mark.parametrize("engine", ["numpy", "keras"])
def test_weights(head, engine):
    _, path, logits, labels = head
    classifier = Classifier(path, engine=engine)
    assert classifier.activation == "sigmoid"
    check(classifier, logits, labels)


def test_views_are_averaged_as_logits(head):
    model, path, _, _ = head
    (result,) = Classifier(path, flip=True).stream(PICTURES[:1])
    views = PREPROCESSING.views(PICTURES[0], 1, flip=True)
    both = forward(to_official(model), architecture(model), views)[1]
    np.testing.assert_allclose(result.output, both.mean(axis=0), atol=2e-5)


@pytest.mark.parametrize("target", ["m.safetensors", "again.keras", "m.pth", "m.weights.h5"])
def test_converted(tmp_path, head, target):
    """The activation goes along where the format can say it, and where not, that is said."""
    _, path, logits, labels = head
    made = convert(path, tmp_path / target)
    lost = target == "m.weights.h5"
    assert any("sigmoid" in note for note in made.notes) == (lost and logits.shape[1] > 1)
    if not lost:
        check(Classifier(tmp_path / target), logits, labels)
    elif logits.shape[1] == 1:  # needs no word: it is always a sigmoid
        classifier = Classifier(
            tmp_path / target, labels=labels, preprocessing=PREPROCESSING, engine="numpy"
        )
        check(classifier, logits, labels)


def test_a_graph_of_keras_applications(tmp_path):
    """A plain functional model has no such argument: its layer `pred` says it."""
    images, config = keras.Input((32, 32, 3)), VANConfig([8], [2], [1])
    for classes, activation, expected in (
        (3, "sigmoid", "sigmoid"),
        (3, "softmax", "softmax"),
        (3, None, "softmax"),
        (1, "softmax", "sigmoid"),
        (3, "tanh", None),
    ):
        network = Network(config, num_classes=classes, classifier_activation=activation)
        outputs, _ = network(images)
        keras.Model(images, outputs).save(tmp_path / "m.keras")
        if expected is None:
            with pytest.raises(ValueError, match="classifier_activation='tanh'"):
                Classifier(tmp_path / "m.keras")
        else:
            assert Classifier(tmp_path / "m.keras").activation == expected


@pytest.mark.parametrize("activation", ["tanh", "relu", "log_softmax"])
def test_other_activations_are_refused_by_name(tmp_path, activation):
    path = tmp_path / "m.keras"
    model = VAN(**TINY, num_classes=4, classifier_activation=activation)
    model.save(path)
    said = f"classifier_activation='{activation}': its scores are no probabilities"
    for refuse in (
        lambda: Classifier(path),
        lambda: export(path, tmp_path / "m.onnx"),
        lambda: export(model, tmp_path / "m.onnx"),
        lambda: convert(path, tmp_path / "n.keras"),
    ):
        with pytest.raises(ValueError, match=said):
            refuse()
    assert open_source(model, features=True).card.activation is None  # no scores are made


def test_what_was_saved_with_the_softmax_of_one_number():
    """Earlier files say softmax."""
    config = VAN(**TINY, num_classes=1).get_config()
    assert config["classifier_activation"] == "sigmoid"
    again = VAN.from_config({**config, "classifier_activation": "softmax"})
    assert again.get_layer("pred").activation is keras.activations.sigmoid
    assert again.get_config() == config


def test_independent_classes_become_a_softmax_with_a_word(tmp_path):
    made(*HEADS["independent"]).save(tmp_path / "m.keras")
    with pytest.warns(UserWarning, match="classifier_activation='sigmoid' keeps them"):
        VAN(pretrained=tmp_path / "m.keras")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for activation in ("sigmoid", None):
            VAN(pretrained=tmp_path / "m.keras", classifier_activation=activation)
    assert open_pretrained(tmp_path / "m.keras").card.activation == "sigmoid"


# --- Exported files ---


@pytest.fixture
def _few_pictures(monkeypatch):
    monkeypatch.setattr(samples, "COMPARISON", 6)


@pytest.mark.usefixtures("_few_pictures")
@pytest.mark.parametrize(
    ("kind", "which", "softmax"),
    [
        ("onnx", "binary", False),
        ("onnx", "both named", True),
        ("onnx", "independent", False),
        pytest.param("openvino", "independent", True, marks=pytest.mark.slow),
        *(
            pytest.param(kind, which, softmax, marks=pytest.mark.slow)
            for kind in ENDINGS
            for which in HEADS
            for softmax in (False, True)
        ),
    ],
)
def test_exported(tmp_path, kind, which, softmax):
    outputs, activation, labels = HEADS[which]
    model = made(outputs, activation, labels)
    logits = logits_by_numpy(model)
    path = tmp_path / f"m{ENDINGS[kind]}"
    done = export(model, path, softmax=softmax)
    assert (done.about.activation, done.agreement) == ("sigmoid", 1.0)
    inputs = np.stack([PREPROCESSING(picture) for picture in PICTURES])
    given = open_runtime(path)(inputs)
    np.testing.assert_allclose(given, sigmoid(logits) if softmax else logits, atol=2e-5)
    check(Classifier(path), logits, labels)


@pytest.mark.parametrize("format", FORMATS)
def test_files_of_any_format(tmp_path, format):
    """Linear models whose logits are known exactly; the metadata says what they are."""
    weights = random_weights(3, 3) / np.float32(4)
    record = about(classes=3, activation="sigmoid", labels=["sky", "sea", "sand"])
    classifier = Classifier(build(tmp_path, format, weights, record))
    inputs = np.stack([classifier.preprocessing(picture) for picture in PICTURES])
    check(classifier, inputs.mean((1, 2)).astype(np.float64) @ weights, ("sky", "sea", "sand"))


def test_a_single_output_of_others(tmp_path):
    """Without metadata: a logit."""
    weights = random_weights(3, 1)
    path = build(tmp_path, "onnx", weights)
    classifier = Classifier(path, preprocessing=PREPROCESSING)
    inputs = np.stack([PREPROCESSING(picture) for picture in PICTURES])
    logits = inputs.mean((1, 2)).astype(np.float64) @ weights
    check(classifier, logits, None)
    named = Classifier(path, preprocessing=PREPROCESSING, labels=["no", "yes"])
    check(named, logits, ("no", "yes"))


def test_a_file_whose_every_probability_is_one_is_refused():
    record = about(classes=1, output="probabilities")
    del record["activation"]
    for said in ({}, {"activation": "softmax"}):
        with pytest.raises(ValueError, match=r"a probability of 1 for every picture.*export it"):
            About.from_json(json.dumps(record | said))
    record["output"] = "logits"
    assert About.from_json(json.dumps(record)).activation == "sigmoid"
    record["activation"] = "softmax"
    assert About.from_json(json.dumps(record)).activation == "sigmoid"
    del record["activation"]
    record["architecture"]["num_classes"] = 10
    assert About.from_json(json.dumps(record)).activation == "softmax"


def test_an_export_of_one_output_is_compared_by_its_decisions(tmp_path, monkeypatch):
    model = made(*HEADS["both named"])
    write = module.WRITERS["onnx"]

    def wrong(job, path):
        tensors = {**job.source.tensors, "head.weight": -job.source.tensors["head.weight"]}
        write(module.replace(job, source=module.replace(job.source, tensors=tensors)), path)

    monkeypatch.setitem(module.WRITERS, "onnx", wrong)
    for number, name in enumerate(("cat", "dog")):
        for i, picture in enumerate(PICTURES):
            (tmp_path / name).mkdir(exist_ok=True)
            picture.save(tmp_path / name / f"{number}{i}.png")
    done = export(model, tmp_path / "m.onnx", data=tmp_path, tolerance=1e9, agreement=0)
    positive = float((logits_by_numpy(model) > 0).mean())
    assert done.agreement < 1
    assert done.accuracy[0] == 0.5  # each picture lies in both folders
    assert 0 < positive < 1


# --- Figures ---


def folders(tmp_path, names):
    """The pictures, by turns in the folders."""
    for i, picture in enumerate(PICTURES):
        folder = tmp_path / names[i % len(names)]
        folder.mkdir(exist_ok=True, parents=True)
        picture.save(folder / f"{i}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("labels", "names"),
    [
        (None, ("0", "1")),
        (None, ("negative", "positive")),
        (("cat",), ("hund", "cat")),
        (("cat",), ("not cat", "cat")),
        (("dog", "cat"), ("dog", "cat")),
    ],
)
def test_binary_evaluation(tmp_path, labels, names):
    model = made(1, "sigmoid", labels)
    model.save(tmp_path / "m.keras")
    found = evaluate(folders(tmp_path / "data", names), tmp_path / "m.keras", engine="numpy")
    p = sigmoid(logits_by_numpy(model)[:, 0])
    truth = np.arange(6) % 2 == 1
    assert (found.count, found.classes, found.top5) == (6, 2, 1.0)
    assert found.top1 == pytest.approx(((p > 0.5) == truth).mean())
    assert found.loss == pytest.approx(-np.log(np.where(truth, p, 1 - p)).mean(), abs=1e-5)
    assert found.binary_accuracy is None  # it is top-1
    assert [one.pictures for one in found.per_class] == [3, 3]


def test_two_folders_that_a_binary_model_does_not_know(tmp_path):
    data = folders(tmp_path, ("hund", "katze"))
    with pytest.raises(ValueError, match=r"hund, katze of the .* match no class .*`class_map`"):
        open_dataset(data, (Label("not cat"), Label("cat")))
    folders(tmp_path, ("cat", "hund", "katze"))
    with pytest.raises(ValueError, match=r"hund, katze of the .* match no class"):
        open_dataset(data, (Label("not cat"), Label("cat")))


def test_evaluation_of_independent_classes(tmp_path):
    model = made(*HEADS["independent"])
    model.save(tmp_path / "m.keras")
    names = HEADS["independent"][2]
    found = evaluate(folders(tmp_path / "data", names), tmp_path / "m.keras", engine="numpy")
    z = logits_by_numpy(model)
    truth = np.eye(3)[np.arange(6) % 3]
    p = sigmoid(z)
    assert found.top1 == pytest.approx((z.argmax(1) == np.arange(6) % 3).mean())
    bce = -(truth * np.log(p) + (1 - truth) * np.log(1 - p))
    assert found.loss == pytest.approx(bce.mean(), abs=1e-5)
    assert found.binary_accuracy == pytest.approx(((p > 0.5) == truth).mean())
    console = Console(file=io.StringIO(), width=100)
    report(found, console)
    assert "Binary accuracy" in console.file.getvalue()
    assert "do not exclude each other" in " ".join(console.file.getvalue().split())


# --- By themselves ---


@pytest.mark.parametrize("activation", scores.ACTIVATIONS)
def test_logits_there_and_back(activation):
    z = np.linspace(-12, 12, 21, dtype=np.float32).reshape(3, 7)
    p = scores.probabilities(z, activation)
    expected = sigmoid(z.astype(np.float64))
    if activation == "softmax":
        expected = np.exp(z.astype(np.float64))
        expected /= expected.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(p, expected, rtol=1e-12)
    again = scores.probabilities(scores.logits_of(p.astype(np.float32), activation), activation)
    np.testing.assert_allclose(again, expected, rtol=1e-4, atol=1e-7)
    ends = scores.logits_of(np.float32([[0, 1]]), activation)
    assert np.isfinite(ends).all()
    assert ends.dtype == np.float32
    far = scores.probabilities(np.float32([[-2000, 2000]]), activation)
    np.testing.assert_allclose(far, [[0, 1]], atol=1e-12)


def test_predictions_are_decoded_by_their_order():
    z = np.random.default_rng(0).normal(size=(2, 1000))
    for ours, by_softmax in zip(
        decode_predictions(sigmoid(z), 3), decode_predictions(z, 3), strict=True
    ):
        assert [name for _, name, _ in ours] == [name for _, name, _ in by_softmax]
        assert all(0 < share < 1 for _, _, share in ours)


@pytest.mark.slow
@pytest.mark.parametrize("which", ["both named", "independent"])
def test_beside_the_original(tmp_path, which):
    """Transformers has one output as well, and the same figures come of it."""
    pytest.importorskip("transformers")
    pytest.importorskip("torch")
    outputs, activation, labels = HEADS[which]
    four_stages = {**MICRO, "num_classes": outputs}
    model = load_seeded(VAN(**four_stages, classifier_activation=activation))
    model.labels, model.preprocessing = labels, PREPROCESSING
    model.save(tmp_path / "m.keras")
    data = folders(tmp_path / "data", labels)
    found = evaluate(data, tmp_path / "m.keras", engine="numpy", against_original=True)
    assert found.original.agrees
    assert found.original.pictures == 6
