"""Exported files of every format run alike; what is damaged or hostile is refused in one line."""

import json
import os
import subprocess
import sys
import zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from tests.tiny_artefacts import (
    FORMATS,
    about,
    build,
    expected,
    onnx_model,
    random_weights,
    save_onnx,
)
from van_classification_tensorflow.engines.runtimes import Runtime, open_runtime
from van_classification_tensorflow.spec.architecture import Architecture
from van_classification_tensorflow.spec.card import ASSUMED_BEFORE, About
from van_classification_tensorflow.spec.preprocessing import Preprocessing

MEAN_OF_3 = random_weights(3)


def pictures(count, side=8, uint8=False, seed=1):
    rng = np.random.default_rng(seed)
    if uint8:
        return rng.integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return rng.normal(size=(count, side, side, 3)).astype(np.float32)


# --- Running ---


@pytest.mark.parametrize("uint8", [False, True])
@pytest.mark.parametrize("format", FORMATS)
def test_a_fixed_batch(tmp_path, format, uint8):
    """Cut into batches of 2, the last one filled up; every pixel of every image counts."""
    weights = random_weights(8 * 8 * 3)
    path = build(tmp_path, format, weights, batch=2, side=8, uint8=uint8)
    runtime = open_runtime(path, threads=1)
    assert (runtime.path, runtime.format, runtime.about) == (path, format, None)
    assert (runtime.batch_size, runtime.image_size, runtime.channels) == (2, (8, 8), 3)
    assert (runtime.dtype, runtime.outputs) == (np.uint8 if uint8 else np.float32, 10)
    for count in (0, 1, 2, 5):
        images = pictures(count, uint8=uint8)
        found = runtime(images)
        assert (found.shape, found.dtype) == ((count, 10), np.float32)
        np.testing.assert_allclose(found, expected(images, weights), rtol=1e-4, atol=1e-4)
    kept, before = runtime(pictures(2, uint8=uint8)), runtime(pictures(2, uint8=uint8))
    runtime(pictures(2, uint8=uint8, seed=2))
    np.testing.assert_array_equal(kept, before)


@pytest.mark.parametrize("format", FORMATS)
def test_threads_take_turns(tmp_path, format):
    """What a runtime gives may be its own memory, which the next call overwrites."""
    weights = random_weights(8 * 8 * 3)
    runtime = open_runtime(build(tmp_path, format, weights, batch=1, side=8))
    batches = [pictures(3, seed=seed) for seed in range(60)]
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(runtime, batches))
    for images, logits in zip(batches, found, strict=True):
        np.testing.assert_allclose(logits, expected(images, weights), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("format", FORMATS)
def test_any_batch_and_size(tmp_path, format):
    runtime = open_runtime(build(tmp_path, format, MEAN_OF_3, batch=None, side=None))
    assert (runtime.batch_size, runtime.image_size, runtime.channels) == (None, None, 3)
    for count, side in ((3, 8), (1, 8), (1, 11), (3, 8), (0, 8)):
        images = pictures(count, side)
        np.testing.assert_allclose(runtime(images), expected(images, MEAN_OF_3), atol=1e-5)


@pytest.mark.parametrize("format", FORMATS)
def test_metadata(tmp_path, format):
    """With what has to be escaped in XML, JSON or neither."""
    labels = [f"{i} <&>\"'\\ é 猫 {{}}" for i in range(10)]
    record = about(side=8, labels=labels)
    runtime = open_runtime(build(tmp_path, format, MEAN_OF_3, record, side=8))
    assert runtime.about.labels == tuple(labels)
    assert json.loads(runtime.about.to_json()) == record
    np.testing.assert_allclose(
        runtime(pictures(1)), expected(pictures(1), MEAN_OF_3), rtol=1e-4, atol=1e-5
    )


def recording(**changes):
    """A runtime that takes three images at once and shows what it was given."""
    given = []
    buffer = np.zeros((3, 1), np.float32)

    def run(images):
        given.append(images.copy())
        buffer[:, 0] = images[:, 0, 0, 0]
        return buffer

    sizes = {"batch_size": 3, "image_size": None, "channels": 1, "outputs": 1}
    sizes |= {"dtype": np.dtype(np.float32), "path": "x", "format": "onnx", "about": None}
    return Runtime(**(sizes | {"_run": run} | changes)), given


def test_batches_are_filled_with_a_picture_and_results_are_copies():
    runtime, given = recording()
    images = np.arange(1, 6, dtype=np.float32).reshape(5, 1, 1, 1)
    found = runtime(images)
    assert found.tolist() == [[1], [2], [3], [4], [5]]
    assert [one.ravel().tolist() for one in given] == [[1, 2, 3], [4, 5, 5]]


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((1, 4, 4, 3), np.float64),
        np.zeros((1, 4, 5, 3), np.float32),
        np.zeros((1, 4, 4, 1), np.float32),
        np.zeros((1, 3, 4, 4), np.float32),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 3), np.float32),
        np.zeros(3, np.float32),
        np.zeros((), np.float32),
    ],
)
@pytest.mark.parametrize("image_size", [None, (4, 4)])
def test_images_of_another_shape_or_dtype_are_refused(images, image_size):
    runtime, given = recording(channels=3, image_size=image_size)
    if image_size is None and images.shape == (1, 4, 5, 3):
        pytest.skip("any size")
    with pytest.raises(ValueError, match=r"`images` must be float32 \(N, .*, 3\). Received:"):
        runtime(images)
    assert given == []


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (lambda images: 1 / 0, "x does not run: division by zero"),
        (lambda images: np.zeros((1, 1)), r"x gave \(1, 1\) for 3 images; it promised \(3, 1\)"),
        (lambda images: np.zeros((3, 2)), r"x gave \(3, 2\)"),
        (lambda images: np.zeros(3), r"x gave \(3,\)"),
    ],
)
def test_what_goes_wrong_while_it_runs(run, says):
    runtime, _ = recording(_run=run)
    with pytest.raises(ValueError, match=says):
        runtime(np.zeros((2, 1, 1, 1), np.float32))


# --- What the runtimes are told ---


@pytest.mark.parametrize("threads", [None, 3])
def test_threads_of_onnx(tmp_path, monkeypatch, threads):
    path = build(tmp_path, "onnx", MEAN_OF_3)
    import onnxruntime

    seen, real = [], onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda p, o, **k: (seen.append(o), real(p, o, **k))[1]
    )
    open_runtime(path, threads)
    assert [o.intra_op_num_threads for o in seen] == [threads or 0]


@pytest.mark.parametrize("threads", [None, 3])
def test_threads_of_litert(tmp_path, monkeypatch, threads):
    path = build(tmp_path, "litert", MEAN_OF_3)
    from ai_edge_litert import interpreter

    seen, real = [], interpreter.Interpreter
    monkeypatch.setattr(
        interpreter, "Interpreter", lambda p, **k: (seen.append(k), real(p, **k))[1]
    )
    open_runtime(path, threads)
    assert seen == [{"num_threads": threads}]


@pytest.mark.parametrize(
    ("precision", "able", "hint"),
    [
        (None, ["FP32", "BF16", "FP16"], "f32"),
        ("float32", ["FP32", "BF16", "FP16"], "f32"),
        ("bfloat16", ["FP32", "BF16"], "bf16"),
        ("bfloat16", ["FP32", "FP16"], "f32"),
        ("float16", ["FP32", "FP16"], "f16"),
        ("float16", ["FP32", "BF16"], "f32"),
        ("int8", ["FP32", "BF16"], None),
    ],
)
def test_precision_and_threads_of_openvino(tmp_path, monkeypatch, precision, able, hint):
    """By itself OpenVINO would run a float32 model in bfloat16, 1e-3 off."""
    metadata = precision and about(precision=precision)
    path = build(tmp_path, "openvino", MEAN_OF_3, metadata)
    import openvino

    seen, real = [], openvino.Core.compile_model
    monkeypatch.setattr(openvino.Core, "get_property", lambda *_: able)
    monkeypatch.setattr(
        openvino.Core, "compile_model", lambda c, m, d, o: (seen.append(o), real(c, m, d))[1]
    )
    open_runtime(path, 3)
    open_runtime(path)
    common = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    common |= {} if hint is None else {"INFERENCE_PRECISION_HINT": hint}
    assert seen == [common | {"INFERENCE_NUM_THREADS": 3}, common]


@pytest.mark.parametrize("threads", [0, -1, 1.5, True, "2"])
def test_threads_that_are_none(threads):
    with pytest.raises(ValueError, match="`threads` must be an integer >= 1"):
        open_runtime("x.onnx", threads)


@pytest.mark.parametrize(
    ("format", "package", "extra"),
    [
        ("onnx", "onnxruntime", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("litert", "ai_edge_litert.interpreter", "litert"),
    ],
)
def test_a_missing_runtime(tmp_path, monkeypatch, format, package, extra):
    path = tmp_path / FORMATS[format]
    path.write_bytes(b"anything")
    monkeypatch.setitem(sys.modules, package, None)
    hint = rf"pip install 'van-classification-tensorflow\[{extra}\]'"
    with pytest.raises(ModuleNotFoundError, match=hint):
        open_runtime(path)


def test_a_runtime_needs_no_framework(tmp_path):
    path = build(tmp_path, "onnx", random_weights(3), about())
    code = (
        "import sys; from van_classification_tensorflow import Classifier\n"
        f"import numpy as np; Classifier({str(path)!r})(np.zeros((9, 9), np.uint8))\n"
        "print(sorted({'keras', 'tensorflow', 'openvino', 'torch', 'jax'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[]\n", "")


# --- What is an exported file ---


def test_what_is_no_exported_file(tmp_path):
    with pytest.raises(ValueError, match="`path` must end in"):
        open_runtime("van_b0.keras")
    for name in ("m.onnx", "m.xml", "m.tflite"):
        with pytest.raises(FileNotFoundError, match=name):
            open_runtime(tmp_path / name)
        (tmp_path / name).mkdir()
        with pytest.raises(ValueError, match=f"{name}: a folder"):
            open_runtime(tmp_path / name)


@pytest.mark.parametrize("cut", [0, 1, 40, 0.3, 0.9, "text", "ones"])
@pytest.mark.parametrize("format", FORMATS)
def test_damaged_files(tmp_path, capfd, format, cut):
    path = build(tmp_path, format, random_weights(8 * 8 * 3), about(side=8), side=8)
    capfd.readouterr()
    file = path / "saved_model.pb" if format == "saved_model" else path
    whole = file.read_bytes()
    damaged = {"text": b"no model\n" * 99, "ones": b"\xff" * 999}.get(cut)
    if damaged is None:
        damaged = whole[: int(len(whole) * cut) if isinstance(cut, float) else cut]
    if format == "litert" and cut == 0.9:
        damaged = whole[: len(whole) // 2]  # what comes last is the metadata
    file.write_bytes(damaged)
    with pytest.raises(ValueError, match="was refused: ") as error:
        open_runtime(path)
    assert str(error.value).startswith(str(path))
    assert not {"\n", "\\"} & set(str(error.value))
    said = capfd.readouterr()
    assert said.out == ""
    assert said.err.count("\n") <= (format in ("litert", "saved_model"))


@pytest.mark.parametrize("damage", [None, b"", b"short"])
def test_an_openvino_model_without_its_weights(tmp_path, damage):
    path = build(tmp_path, "openvino", MEAN_OF_3)
    if damage is None:
        path.with_suffix(".bin").unlink()
    else:
        path.with_suffix(".bin").write_bytes(damage)
    with pytest.raises(ValueError, match=r"was refused: .*weights") as error:
        open_runtime(path)
    assert not {"\n", "\\"} & set(str(error.value))


def test_a_saved_model_without_its_variables_or_signature(tmp_path):
    import tensorflow as tf

    path = build(tmp_path, "saved_model", MEAN_OF_3)
    (path / "variables" / "variables.index").unlink()
    with pytest.raises(ValueError, match="was refused: "):
        open_runtime(path)
    tf.saved_model.save(tf.Module(), str(tmp_path / "empty"))
    with pytest.raises(ValueError, match="no signature serving_default"):
        open_runtime(tmp_path / "empty")


def value_info(name, shape, kind="FLOAT"):
    import onnx

    return onnx.helper.make_tensor_value_info(name, getattr(onnx.TensorProto, kind), shape)


def _second_input(graph):
    graph.input.append(value_info("other", [1]))


def _second_output(graph):
    graph.output.append(value_info("t0", [1, 3]))


def _node(kind, shape, dtype="FLOAT", **attributes):
    def change(graph):
        import onnx

        node = onnx.helper.make_node(kind, ["logits"], ["last"], **attributes)
        graph.node.append(node)
        graph.output[0].CopyFrom(value_info("last", shape, dtype))

    return change


def _input(shape, kind="FLOAT"):
    def change(graph):
        graph.input[0].CopyFrom(value_info("images", shape, kind))

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (_second_input, "it has 2 inputs and 1 outputs"),
        (_second_output, "it has 1 inputs and 2 outputs"),
        (_node("Flatten", [10, 1], axis=2), r"its output \[10, 1\]: not one for each"),
        (_node("ReduceSum", [], keepdims=0), r"its output has the shape \[\]; expected 2 axes"),
        (_node("Cast", [1, 10], "INT32", to=6), r"its output is tensor\(int32\); expected float32"),
        (_node("Cast", [1, 10], "DOUBLE", to=11), r"its output is tensor\(double\)"),
        (_input([1, 8, 8, 3], "DOUBLE"), "."),
        (_input([1, 8, 8, "C"]), "known number of channels"),
        (_input([1, 8, "W", 3]), "expected height and width, or neither"),
        (_input([2**40, 8, 8, 3]), "too large"),
        (_input([1, 2**20, 2**20, 3]), "too large"),
        (_input([0, 8, 8, 3]), "no axis without entries"),
        (_input([1, 8, 3]), "."),
    ],
)
def test_other_models_are_refused(tmp_path, change, says):
    model = onnx_model(MEAN_OF_3, (1, 8, 8, 3))
    if change.__qualname__.startswith("_input"):
        model.graph.output[0].CopyFrom(value_info("logits", ["N", 10]))
    change(model.graph)
    save_onnx(model, tmp_path / "m.onnx")
    with pytest.raises(ValueError, match=f"m.onnx was refused: .*({says})"):
        open_runtime(tmp_path / "m.onnx")


# --- What a file says of itself ---

RECORD = About(
    name="van_b0.in1k",
    precision="int8",
    input="uint8",
    output="probabilities",
    activation="sigmoid",
    preprocessing=Preprocessing(),
    architecture=Architecture((32, 64), (64, 128), (3, 3), 3, 1000),
    version="2.0.0",
    assumed={"labels": ASSUMED_BEFORE["labels"]},
)


def test_metadata_there_and_back():
    text = RECORD.to_json()
    assert text.isascii()
    assert "\n" not in text
    assert json.loads(text) == {
        "name": "van_b0.in1k",
        "precision": "int8",
        "input": "uint8",
        "output": "probabilities",
        "activation": "sigmoid",
        "preprocessing": Preprocessing().to_dict(),
        "labels": None,
        "architecture": {
            "embed_dims": [32, 64],
            "hidden_dims": [64, 128],
            "depths": [3, 3],
            "in_chans": 3,
            "num_classes": 1000,
        },
        "version": "2.0.0",
        "assumed": ["labels"],
    }
    backbone = replace(RECORD.architecture, num_classes=None)
    for record in (
        RECORD,
        replace(RECORD, labels=("a",) * 1000, preprocessing=None),
        replace(RECORD, output="features", activation=None, architecture=backbone),
    ):
        assert About.from_json(record.to_json()) == record


def changed(**changes):
    return json.dumps(about() | changes)


def resized(**changes):
    return changed(architecture=about()["architecture"] | changes)


HOSTILE = {
    "no JSON": ("{", "no JSON"),
    "empty": ("", "no JSON"),
    "a number": ("3", "no JSON object"),
    "a list": ("[]", "no JSON object"),
    "nothing": ("{}", "`precision` must be one of"),
    "deep": ("[" * 100_000, "nested too deep"),
    "large": (f'"{"x" * 8_000_001}"', "8,000,003 characters"),
    "digits": ('{"name": ' + "9" * 10_000 + "}", "no JSON"),
    "precision": (changed(precision="int4"), "`precision` must be one of"),
    "input": (changed(input=["uint8"]), "`input` must be one of"),
    "output": (changed(output={}), "`output` must be one of"),
    "activation": (changed(activation="tanh"), "`activation` must be one of softmax, sigmoid"),
    "no name": (changed(name=None), "`name` must be a text"),
    "empty name": (changed(name=""), "`name` must be a text"),
    "long name": (changed(name="x" * 301), "`name` must be a text"),
    "version": (changed(version=2), "`version` must be a text"),
    "preprocessing": (changed(preprocessing=[]), "`preprocessing` is no object"),
    "its key": (changed(preprocessing={"crop": 1}), r"Received also: \['crop'\]"),
    "its value": (changed(preprocessing={"std": [0, 0, 0]}), "`std` divides"),
    "its type": (changed(preprocessing={"mean": {"a": 1}}), "`mean` must hold"),
    "not finite": (changed(preprocessing={"mean": [float("nan")] * 3}), "`mean` must hold"),
    "its size": (changed(preprocessing={"input_size": 10**6}), "1,111,111 pixels"),
    "its channels": (changed(preprocessing={"mean": [0.5], "std": [0.5]}), "makes 1 channels"),
    "labels": (changed(labels="abcdefghij"), "`labels` is no list of texts"),
    "a label": (changed(labels=[1] * 10), "`labels` is no list of texts"),
    "assumed": (changed(assumed="labels"), "`assumed` is no list"),
    "their number": (changed(labels=["a"] * 9), "names 9 labels for 10 classes"),
    "architecture": (changed(architecture=3), "`architecture` is no object"),
    "a list of it": (resized(depths=3), "must have lists of sizes"),
    "no stages": (resized(embed_dims=[], hidden_dims=[], depths=[]), "lists of sizes"),
    "stages": (resized(depths=[1] * 17), "lists of sizes"),
    "other stages": (resized(depths=[1, 1]), "differ in length"),
    "blocks": (resized(depths=[10**9]), "no sensible number"),
    "width": (resized(embed_dims=[10**12]), "no sensible number"),
    "zero": (resized(hidden_dims=[0]), "no sensible number"),
    "truth": (resized(hidden_dims=[True]), "no sensible number"),
    "a half": (resized(hidden_dims=[1.5]), "no sensible number"),
    "no channels": (resized(in_chans=None), "no sensible number"),
    "classes": (resized(num_classes=-1), "no sensible number"),
    "classes as text": (resized(num_classes="10"), "no sensible number"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_metadata(case):
    text, says = HOSTILE[case]
    with pytest.raises(ValueError, match=says):
        About.from_json(text)


def test_control_characters_in_a_name():
    found = About.from_json(changed(name="a\x1b[31m\nb", version="\x07"))
    assert (found.name, found.version) == ("a\\x1b[31m\\nb", "\\x07")


@pytest.mark.parametrize("format", FORMATS)
def test_hostile_metadata_in_a_file(tmp_path, format):
    path = build(tmp_path, format, MEAN_OF_3, "[" * 100_000)
    with pytest.raises(ValueError, match=r"was refused: its metadata is nested too deep$"):
        open_runtime(path)


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (about(side=8, input="uint8"), "takes 3 channels of float32 .* says 3 of uint8"),
        (about(side=8, channels=1), "takes 3 channels .* says 1 of float32"),
        (about(side=8, classes=11), "gives 10 outputs; its metadata says .* 11 logits"),
        (about(side=8, classes=None), "gives 10 outputs; its metadata says .* None logits"),
        (about(side=8, output="features"), "gives 10 outputs; its metadata says .* 8 features"),
        (about(side=9), r"takes \(8, 8\) pixels; its metadata says \(9, 9\)"),
        (about(side=8, preprocessing={"mean": "x" * 10**6}), "`mean` must hold"),
    ],
)
def test_metadata_that_contradicts_the_model(tmp_path, record, says):
    path = build(tmp_path, "onnx", MEAN_OF_3, record, side=8)
    with pytest.raises(ValueError, match=f"was refused: .*{says}") as error:
        open_runtime(path)
    assert len(str(error.value)) < 1000


def test_a_litert_archive_that_is_hostile(tmp_path):
    path = build(tmp_path, "litert", MEAN_OF_3)
    plain = path.read_bytes()
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open("van.json", "w") as file,
    ):
        file.write(b" " * 20_000_000)
    with pytest.raises(ValueError, match=r"was refused: its metadata has 8,000,001 characters"):
        open_runtime(path)
    path.write_bytes(plain)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("labels.txt", "of someone else")
    assert open_runtime(path).about is None


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes")
def test_a_named_pipe(tmp_path):
    os.mkfifo(tmp_path / "m.onnx")
    with pytest.raises(ValueError, match="not a regular file"):
        open_runtime(tmp_path / "m.onnx")
