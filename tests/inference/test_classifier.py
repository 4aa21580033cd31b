"""Pictures in, ranked labels out: the same answer however a picture is given."""

import copy
import io
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import keras
import numpy as np
import pytest
from PIL import Image

from tests.parity import GOLDEN, seeded_tensor
from tests.tiny_artefacts import FORMATS, about, build, expected, random_weights
from van_classification_tensorflow import VAN, Classifier, Preprocessing
from van_classification_tensorflow.datasets import calibration
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.engines import graph_runner, of_weights
from van_classification_tensorflow.engines.runtimes import Runtime
from van_classification_tensorflow.export.convert import convert
from van_classification_tensorflow.images.decode import ImageError
from van_classification_tensorflow.model import build as of_keras
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.spec.config import CONFIGURATIONS


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


@pytest.mark.usefixtures("eager")
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


@pytest.mark.parametrize(
    "count", [1, 64, 65, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 63, 130))]
)
@pytest.mark.usefixtures("eager")
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


# --- Engines ---


def weights_of(tmp_path, in_chans=3, num_classes=10):
    """(a file of random weights, pictures for it)."""
    from safetensors.numpy import save_file

    sizes = Architecture((8, 16), (32, 32), (1, 1), in_chans, num_classes)
    tensors = {n: seeded_tensor(n, s.shape) for n, s in sizes.tensors().items()}
    save_file(tensors, tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors", photographs(5)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "keras"])
@pytest.mark.parametrize(
    ("in_chans", "num_classes", "options"),
    [
        (1, 10, {}),
        (3, 10, {"crops": 5, "flip": True}),
        (3, 1, {"test_size": 37}),
        (3, None, {}),
    ],
)
@pytest.mark.usefixtures("eager")
def test_every_engine_is_numpy(tmp_path, engine, in_chans, num_classes, options):
    """Grey input, odd sizes, views, sigmoid, no head: logits and features."""
    pytest.importorskip(engine)
    path, sources = weights_of(tmp_path, in_chans, num_classes)
    mean = (0.4,) * in_chans
    options = {"preprocessing": Preprocessing(32, 0.9, mean=mean, std=mean), **options}
    for features in (True, False) if num_classes else (True,):
        right, found = (
            [
                one.output
                for one in Classifier(path, engine=name, **options).stream(
                    sources, features=features
                )
            ]
            for name in ("numpy", engine)
        )
        assert len(found) == len(sources)
        for ours, theirs in zip(found, right, strict=True):
            assert ours.dtype == np.float32
            np.testing.assert_allclose(ours, theirs, atol=2e-6 * max(1, abs(theirs).max()))


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "count", [0, 1, 40, *(pytest.param(n, marks=pytest.mark.slow) for n in (2, 3))]
)
def test_results_keep_their_order_on_any_number_of_threads(scans, engine, count):
    """Whatever is given, a list or what has no length, and however many decode."""
    pytest.importorskip(engine)
    right = [r.output for r in Classifier("digits", engine="numpy").stream(scans[0][:count])]
    classifier = Classifier("digits", engine=engine, workers=3)
    for sources in (list(scans[0][:count]), iter(scans[0][:count])):
        found = list(classifier.stream(sources))
        assert len(found) == count
        for i, result in enumerate(found):
            np.testing.assert_array_equal(result.source, scans[0][i])
            np.testing.assert_allclose(result.output, right[i], atol=1e-5)


def test_a_bad_picture_in_the_flow(scans, tmp_path):
    good = list(scans[0][:6])
    sources = [tmp_path / "a.png", *good[:2], tmp_path / "b.png", *good[2:], tmp_path / "c.png"]
    classifier = Classifier("digits", engine="onnxruntime")
    found = list(classifier.stream(sources))
    assert [one.error is None for one in found] == [False, *[True] * 2, False, *[True] * 4, False]
    with pytest.raises(FileNotFoundError):
        classifier(sources)
    assert [r[0].index for r in classifier(good)] == scans[1][:6].tolist()


def test_threads_of_the_caller(scans):
    """Eight ask one classifier at once, each for several and for one: all get the same."""
    classifier = Classifier("digits", engine="onnxruntime")

    def ask(i):
        some = list(scans[0][i : i + 5])
        found = [r.output for r in classifier.stream(some)]
        return np.stack([*found, *(r.output for r in classifier.stream(some[:1]))])

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(ask, range(24)))
    for i, one in enumerate(found):
        np.testing.assert_array_equal(one, ask(i))


def test_auto_takes_numpy_for_few_and_then_a_runtime(scans):
    auto = Classifier("digits")
    assert auto.engine_used is None
    auto.numpy_limit = 3
    auto(list(scans[0][:2]))
    assert auto.engine_used.name == "numpy"
    assert "so few pictures" in auto.engine_used.describe()
    auto(scans[0][0])
    assert auto.engine_used.name == "numpy"
    auto(scans[0][0])  # one after the other they have become many
    used = auto.engine_used
    assert used.name in ("onnxruntime", "openvino")
    assert used.difference < 1e-5
    assert auto.choose_engine(1) is used
    auto(list(scans[0][:2]))  # together they have a program of their own, which is proven as well
    assert auto.engine_used is auto.choose_engine() is not used
    assert auto.engine_used.difference < 1e-5
    auto(scans[0][0])
    assert auto.engine_used is used
    many = Classifier("digits")
    many(iter(scans[0][:2]))  # how many come is not known
    assert many.engine_used.name == "onnxruntime"
    assert Classifier("digits").choose_engine(10**7).name == "openvino"


def lying(answer):
    """ONNX Runtime, which tells something else."""

    class Lying(graph_runner._OnnxRuntime):
        def __call__(self, *arguments):
            program = super().__call__(*arguments)
            return replace(program, run=lambda image: answer(program.run(image)))

    return Lying


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (lambda outputs: [outputs[0] + 1, outputs[1]], r"differs by \S+ of the largest logit"),
        (lambda outputs: [outputs[0], outputs[1] * 1.01], r"differs by 1e-02 of the largest"),
        (lambda outputs: [one * np.nan for one in outputs], "differs by nan of"),
        (lambda outputs: [one[:, :-1] for one in outputs], r"gave \(1, 9\); it promised \(1, 10\)"),
        (lambda outputs: outputs[:1], "does not run the model: "),
        (lambda outputs: 1 / 0, "does not run the model: division by zero"),
    ],
)
def test_an_engine_that_lies_is_passed_over_and_said(scans, monkeypatch, answer, says):
    monkeypatch.setattr(graph_runner, "_OnnxRuntime", lying(answer))
    with pytest.raises(ValueError, match=f"`engine`='onnxruntime' does not prove itself: .*{says}"):
        Classifier("digits", engine="onnxruntime").choose_engine(100)
    monkeypatch.setattr(of_weights, "AUTOMATIC", ("onnxruntime", "openvino"))
    classifier = Classifier("digits")
    classifier.numpy_limit = 0
    expected = Classifier("digits", engine="numpy")(list(scans[0][:3]))
    found = classifier(list(scans[0][:3]))
    used = classifier.engine_used
    assert used.name == "openvino"
    assert re.search(f"; not ONNX Runtime .*{says}", used.describe())
    assert [r[0].index for r in found] == [r[0].index for r in expected]


def test_numpy_where_nothing_else_proves_itself(scans, monkeypatch):
    def broken(precision):
        raise ImportError("libx.so: cannot open shared object file")

    monkeypatch.setattr(graph_runner, "_OnnxRuntime", broken)
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.setattr(of_keras, "van_of", broken)
    classifier = Classifier("digits")
    used = classifier.choose_engine(10**6)
    assert used.name == "numpy"
    assert len(used.rejected) == 3
    assert "slow, but no other proves itself; not ONNX Runtime" in used.describe()
    assert "libx.so: cannot open shared object file" in used.describe()
    assert classifier(scans[0][0])[0].index == scans[1][0]


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_engine_that_is_not_installed(monkeypatch, engine):
    monkeypatch.setitem(sys.modules, engine, None)
    with pytest.raises(ModuleNotFoundError, match=f"engine {engine} needs {engine}: pip install"):
        Classifier("digits", engine=engine)
    other = Classifier("digits").choose_engine(10**6)
    assert other.name == {"openvino": "onnxruntime", "onnxruntime": "openvino"}[engine]


def test_large_models_prove_themselves_on_a_small_picture():
    def sizes(name):
        one = CONFIGURATIONS[name]
        return Architecture(one.embed_dims, one.hidden_dims, one.depths, 3, 1000)

    assert of_weights.proof_side(sizes("van_b0"), 224) == 224
    assert of_weights.proof_side(sizes("van_b1"), 224) in (192, 224)
    assert of_weights.proof_side(sizes("van_b3"), 224) in (96, 128)
    assert of_weights.proof_side(sizes("van_b6"), 224) == 64
    assert of_weights.proof_side(sizes("van_b6"), 48) == 48


def test_a_small_proof_leaves_no_program_behind(scans, monkeypatch):
    monkeypatch.setattr(of_weights, "_PROOF_SECONDS", 0)
    monkeypatch.setattr(of_weights, "proof_side", lambda sizes, side: 16)
    classifier = Classifier("digits", engine="onnxruntime")
    runner = classifier.choose_engine(3).engine.runner
    assert not runner._programs
    assert [r[0].index for r in classifier(scans[0][:3])] == scans[1][:3].tolist()


@pytest.mark.parametrize("engine", ["openvino", "keras"])
@pytest.mark.usefixtures("eager")
def test_bfloat16(scans, engine):
    if engine == "openvino":
        openvino = pytest.importorskip("openvino")
        if "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
            pytest.skip("this processor has none")
    classifier = Classifier("digits", engine=engine, precision="bfloat16")
    found = classifier(list(scans[0][:20]))
    assert [r[0].index for r in found] == scans[1][:20].tolist()
    used = classifier.engine_used
    assert (used.name, used.precision) == (engine, "bfloat16")
    assert 1e-4 < used.difference < 0.05


def test_a_model_in_memory_has_fewer_engines(classifier):
    for options, says in (
        ({"engine": "numpy"}, "`engine` must be 'auto', 'keras', .* for a model in memory"),
        ({"precision": "int8", "calibration": "digits"}, "`precision` is for weights"),
        ({"precision": "bfloat16"}, "`precision` is for weights; a model in memory"),
    ):
        with pytest.raises(ValueError, match=says):
            Classifier(classifier.model, **options)


def test_parameters(classifier, tmp_path):
    expected = sum(int(np.prod(v.shape)) for v in classifier.model.trainable_variables)
    assert classifier.parameters == Classifier(classifier.model).parameters == expected


@pytest.mark.usefixtures("eager")
def test_features(classifier, scans):
    features = classifier.features(scans[0][:5])
    assert (features.shape, features.dtype) == ((5, 64), np.float32)
    one = classifier.features(scans[0][0])
    np.testing.assert_allclose(one, features[0], atol=1e-5)
    head = classifier.model.get_layer("head")
    logits = features @ np.asarray(head.kernel) + np.asarray(head.bias)
    results = list(classifier.stream(scans[0][:5]))
    np.testing.assert_allclose(logits, [r.output for r in results], atol=1e-4)


@pytest.mark.usefixtures("eager")
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


@pytest.mark.usefixtures("eager")
def test_batches_begin_where_they_would_if_all_could_be_read(scans, tmp_path):
    """So that whoever has some of the pictures, whole batches of them, has the same batches."""
    bad, good = [tmp_path / "missing.png"] * 5, list(scans[0][:8])
    classifier, seen = Classifier("digits", batch_size=4, engine="numpy"), []
    sources = [*bad, *good[:5], bad[0], *good[5:]]
    results = list(classifier.stream(sources, watch=lambda _, count: seen.append(count)))
    assert seen == [3, 3, 2]  # of 4 + 4 + 4 + 2 sources
    assert [result.error is None for result in results] == [one is not bad[0] for one in sources]


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
        (
            {"weights": "digits", "engine": "tf"},
            "`engine` must be one of 'auto', 'numpy', 'keras', 'onnx",
        ),
        (
            {"weights": "digits", "precision": "int4"},
            "`precision` must be one of 'float32', 'bfloat",
        ),
        ({"weights": "digits", "precision": "int8"}, "`calibration` must name real .*=None"),
        (
            {"weights": "digits", "precision": "int8", "calibration": 3},
            "`calibration` must name real pictures .* Received: calibration=3",
        ),
        (
            {"weights": "digits", "precision": "int8", "engine": "keras", "calibration": "digits"},
            "`engine` must be one of auto, onnxruntime, openvino, litert for int8",
        ),
        (
            {"weights": "digits", "calibration": "digits"},
            "`calibration` goes with `precision` int8",
        ),
        (
            {"weights": "digits", "precision": "bfloat16", "engine": "onnxruntime"},
            "`engine` must be one of auto, keras, openvino for bfloat16",
        ),
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


def test_no_folder_for_the_calibration(tmp_path):
    with pytest.raises(FileNotFoundError, match="`calibration` must be a folder of pictures"):
        Classifier("digits", precision="int8", calibration=tmp_path / "gone")


def test_litert_is_not_for_other_backends(monkeypatch):
    pytest.importorskip("ai_edge_litert")
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    with pytest.raises(ValueError, match="`engine`='litert' is written by the TensorFlow backend"):
        Classifier("digits", engine="litert")


@pytest.mark.slow
def test_litert(scans):
    pytest.importorskip("ai_edge_litert")
    if keras.backend.backend() != "tensorflow":
        pytest.skip("TensorFlow converts for it")
    found = Classifier("digits", engine="litert")
    expected = Classifier("digits", engine="numpy")(scans[0][:20])
    for ours, right in zip(found(scans[0][:20]), expected, strict=True):
        assert [p.index for p in ours] == [p.index for p in right]
    assert found.engine_used.name == "litert"
    assert found.engine_used.difference < 1e-5


def test_int8(monkeypatch, scans):
    monkeypatch.setattr(calibration, "CALIBRATION", 16)
    found = Classifier("digits", engine="onnxruntime", precision="int8", calibration="digits")
    ranked = found(scans[0][:100], 1)
    assert sum(one[0].index == label for one, label in zip(ranked, scans[1], strict=False)) >= 97
    chosen = found.engine_used
    assert (chosen.name, chosen.precision, chosen.pictures) == ("onnxruntime", "int8", 16)
    assert len(chosen.calibration) == 64
    assert "of 16 pictures of the bundled digits" in chosen.describe()


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


@pytest.mark.usefixtures("eager")
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
        ({"precision": "bfloat16"}, "`precision` is for weights; .* exported file"),
        ({"precision": "int8"}, "`precision` is for weights; .* exported file"),
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
    assert classifier.engine_used is None


@pytest.mark.parametrize("engine", ["auto", "numpy", "onnxruntime"])
def test_a_classifier_goes_to_other_processes(engine, scans):
    pictures = list(scans[0][:6])
    classifier = Classifier("digits", engine=engine)
    fresh = pickle.dumps(classifier)
    expected = classifier(pictures)
    used = pickle.dumps(classifier)
    copies = [pickle.loads(one) for one in (fresh, used)]  # noqa: S301 - our own
    for copied in (*copies, copy.deepcopy(classifier)):
        for one, right in zip(copied(pictures), expected, strict=True):
            assert [p.label for p in one] == [p.label for p in right]
