"""`van explain`: what it writes, for whom, and what it refuses."""

import hashlib
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.parity import MICRO, load_seeded
from van_classification_tensorflow import VAN, Classifier, Preprocessing, cli, overlay
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.explanation import last_stage
from van_classification_tensorflow.explanation.explain import Explainer
from van_classification_tensorflow.support.files import asset


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four digits, enlarged, one of them in a folder, and a broken picture."""
    made = tmp_path_factory.mktemp("pictures")
    (made / "more").mkdir()
    _, test = load_digits()
    for i, name in enumerate(["a.png", "b.png", "more/a.png", "c ü'\n.png"]):
        pixels = np.rint((test[0][i, :, :, 0] + 1) * 127.5).astype(np.uint8)
        Image.fromarray(pixels).save(made / name)
    (made / "broken.png").write_bytes((made / "a.png").read_bytes()[:60])
    return made


def run(capsys, *arguments):
    """(exit code, standard output, error stream)"""
    code = 0
    try:
        cli.main(["explain", *map(str, arguments)])
    except SystemExit as ended:
        code = ended.code
    said = capsys.readouterr()
    return code, said.out, said.err


def test_a_folder(folder, tmp_path, capsys):
    output = tmp_path / "out"
    code, out, err = run(
        capsys, folder, "--weights", "digits", "--output", output, "--class", "top2", "3", "--sheet"
    )
    assert code == 1
    assert "1 of 5 failed" in err
    record = json.loads((output / "explanations.json").read_text())
    assert {*record["files"], "explanations.json"} == {one.name for one in output.iterdir()}
    pictures = {one["path"].removeprefix(f"{folder}/"): one for one in record["pictures"]}
    assert "broken.png" in pictures
    assert pictures["broken.png"]["error"]
    assert "maps" not in pictures["broken.png"]
    first = pictures["a.png"]
    assert (first["width"], first["height"]) == (32, 32)
    assert first["seen"] == {"left": 0, "top": 0, "right": 32, "bottom": 32}
    assert [one["method"] for one in first["maps"]] == ["grad-cam"] * len(first["maps"])
    assert first["maps"][0]["class"]["index"] == first["predictions"][0]["index"] == 0
    assert first["maps"][0]["probability"] == first["predictions"][0]["probability"]
    assert {one["class"]["index"] for one in first["maps"]} >= {0, 3}
    assert first["maps"][0]["picture"] == "a.grad-cam.block3_1.0.png"
    assert pictures["more/a.png"]["maps"][0]["picture"].startswith("a-2.")
    with Image.open(output / first["maps"][0]["picture"]) as picture:
        assert picture.width == 32 * first["maps"][0]["enlarged"] == 256
    assert first["sheet"] == "a.sheet.png"
    assert f"{len(record['files']) + 1} files" in out
    weights = Path(str(asset("digits.safetensors"))).read_bytes()
    assert record["weights"]["sha256"] == hashlib.sha256(weights).hexdigest()
    assert first["sha256"] == hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    assert "ONNX Runtime" in record["engine"]
    # What is written is what `LastStage` finds, which the golden files prove.
    classifier = Classifier("digits")
    images = classifier.prepare(str(folder / "a.png"))[0]
    raw = np.load(output / "a.grad-cam.block3_1.3.npy")
    assert abs(raw - last_stage.LastStage(classifier)(images, 3).raw[0]).max() < 1e-5
    # As one of another run it is replaced, with --overwrite only.
    again = folder / "a.png", "--weights", "digits", "--output", output
    code, _, err = run(capsys, *again)
    assert (code, "already there" in err) == (1, True)
    assert run(capsys, *again, "--overwrite")[0] == 0
    assert len(list(output.iterdir())) == 3
    (output / "mine.txt").touch()
    code, _, err = run(capsys, *again, "--overwrite")
    assert (code, "no explanation wrote (mine.txt)" in err) == (1, True)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "micro.keras"
    model = load_seeded(VAN(**MICRO))
    model.labels = ["cat, tabby", "dog", "mouse", "house", "e", "f", "g", "h", "i", "dog, wolf"]
    model.preprocessing = Preprocessing(64)
    model.save(path)
    return path, model


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (12, 18, 3), np.uint8)
    Image.fromarray(noise).resize((180, 120), Image.Resampling.BICUBIC).save(path)
    return path


def test_every_method_and_layers(weights, photo, tmp_path, capsys):
    path, model = weights
    output = tmp_path / "out"
    code, _, err = run(
        capsys,
        *(photo, "--weights", path, "--output", output, "--class", "mouse"),
        *("--method", "lka", "layer-cam", "integrated-gradients", "--layer", "all"),
        *("--steps", "2", "--opacity", "1"),
    )
    assert code == 0, err
    (picture,) = json.loads((output / "explanations.json").read_text())["pictures"]
    blocks = ["block1_0", "block2_0", "block3_0", "block3_1", "block4_0"]
    made = [(one["method"], one["layer"]) for one in picture["maps"]]
    assert made == [
        *(("lka", one) for one in blocks),
        *(("layer-cam", one) for one in blocks),
        ("integrated-gradients", "pixels"),
    ]
    assert [one["class"] and one["class"]["index"] for one in picture["maps"]] == [None] * 5 + [
        2
    ] * 6
    for name in ("lka-kernel", "receptive-field"):
        assert (output / f"{name}.block1_0.png").exists()
    assert np.load(output / "lka-kernel.block1_0.npy").shape == (23, 23)
    assert np.load(output / "receptive-field.block1_0.npy").shape == (64, 64)
    # The picture above the caption is `overlay` of what `explain` gives.
    image = Preprocessing(64)(Image.open(photo))[None]
    found = Explainer.of(model)(image, [2], "layer-cam", "block2_0")
    assert abs(np.load(output / "photo.layer-cam.block2_0.2.npy") - found.raw[0]).max() < 1e-5
    expected = np.asarray(overlay(photo, found.maps[0], Preprocessing(64), 1.0)).astype(int)
    with Image.open(output / "photo.layer-cam.block2_0.2.png") as whole:
        scale = whole.width // 180
        there = np.asarray(whole)[: 120 * scale : scale, ::scale].astype(int)
    assert np.abs(there - expected).max() <= 2


def test_without_a_framework_the_same(weights, photo, tmp_path, capsys, monkeypatch):
    found = []
    for methods in (last_stage.LAST_STAGE_METHODS, ()):
        monkeypatch.setattr(
            "van_classification_tensorflow.explanation.ways.LAST_STAGE_METHODS", methods
        )
        output = tmp_path / str(len(found))
        options = "--method", *last_stage.LAST_STAGE_METHODS, "--class", "top", "house"
        assert run(capsys, photo, "--weights", weights[0], "--output", output, *options)[0] == 0
        found.append({one.name: np.load(one) for one in output.glob("*.npy")})
    assert set(found[0]) == set(found[1])
    assert len(found[0]) == 9  # eigen-cam is of no class
    for name, one in found[0].items():
        assert np.abs(one - found[1][name]).max() <= 1e-4 * np.abs(one).max(), name


def test_layers_in_any_order_and_twice(weights, photo, tmp_path, capsys):
    output = tmp_path / "out"
    code, _, err = run(
        capsys,
        *(photo, "--weights", weights[0], "--output", output, "--method", "layer-cam", "layer-cam"),
        *("--layer", "norm3", "block1_0", "block1_0"),
    )
    assert code == 0, err
    shapes = {one.name.split(".")[2]: np.load(one).shape for one in output.glob("*.npy")}
    assert shapes == {"norm3": (4, 4), "block1_0": (16, 16)}
    assert len(list(output.iterdir())) == 5


def test_a_turned_photo_lies_as_a_viewer_shows_it(weights, tmp_path, capsys):
    """The overlay is upright and once only; the map, the frame and the numbers are of that."""
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[:20, :20] = 255  # top left, which is top right when it is turned
    Image.fromarray(pixels).save(tmp_path / "turned.png", exif=exif)
    output = tmp_path / "out"
    options = "--output", output, "--opacity", "0"
    assert run(capsys, tmp_path / "turned.png", "--weights", weights[0], *options)[0] == 0
    (picture,) = json.loads((output / "explanations.json").read_text())["pictures"]
    assert (picture["width"], picture["height"]) == (80, 120)
    (made,) = picture["maps"]
    with Image.open(output / made["picture"]) as whole:
        shown = np.asarray(whole.convert("L"))[: 120 * made["enlarged"]]
    assert shown.shape[1] == 80 * made["enlarged"]
    shown = shown[:: made["enlarged"], :: made["enlarged"]]
    assert shown[2, 70] > 250  # the mark, outside of the frame or in it
    assert shown[60, 40] == 0
    assert shown[2, 5] < 200


def test_a_list_a_pattern_and_a_picture_on_the_standard_input(folder, tmp_path):
    bytes_of, given = (folder / "a.png").read_bytes(), f"{folder / 'a.png'}\n{folder / 'b.png'}\n"
    for name, stdin, paths, count in (
        ("list", given.encode(), ["-"], 2),
        ("picture", bytes_of, ["-"], 1),
        ("pattern", b"", [str(folder / "[ab].png")], 2),
    ):
        command = [sys.executable, "-m", "van_classification_tensorflow", "explain", *paths]
        options = ["--weights", "digits", "--output", tmp_path / name]
        done = subprocess.run([*command, *options], input=stdin, capture_output=True)
        assert done.returncode == 0, done.stderr
        record = json.loads((tmp_path / name / "explanations.json").read_text())
        assert len(record["pictures"]) == count


def test_keras_does_not_start_for_the_usual_maps(folder, tmp_path):
    script = (
        "import sys; from van_classification_tensorflow.cli import main\n"
        "main(sys.argv[1:])\n"
        "assert not {'keras', 'tensorflow', 'jax', 'torch', 'matplotlib'} & set(sys.modules)"
    )
    arguments = [folder / "a.png", "--weights", "digits", "--output", tmp_path / "out"]
    done = subprocess.run(
        [sys.executable, "-c", script, "explain", *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "cat"], None),
        (["--class", "TABBY"], None),
        (["--class", "dog"], None),
        (["--class", "wolf", "top3", "2"], None),
        (["--class", "bird"], "--class must be an index from 0 to 9, or the name"),
        (["--class", "10"], "an index from 0 to 9.*Received: 10"),
        (["--class", "DOG, wolf", "cat,"], "--class must be an index"),
        (["--class", "top0"], "--class must name one at least"),
        (["--method", "cam"], "--method must be of grad-cam"),
        (["--layer", "block9_0"], "--layer must be all, or each .*Received: block9_0"),
        (["--layer", "pool"], "--layer must be all, or each .*Received: pool"),
        (["--method", "grad-cam", "lka", "--layer", "norm3"], "--layer must .*a block .*for lka"),
        (["--method", "saliency", "--layer", "block1_0"], "--layer must be left out for saliency"),
        (["--opacity", "2"], "--opacity must be from 0 to 1"),
        (["--batch-size", "0"], "--batch-size must be an integer >= 1"),
        (["--weights", "x.onnx"], "x.onnx is an exported file.*Give the weights"),
        (["--weights", "van_b9"], "no such weights"),
        (["--test-size", "3"], "--test-size is too small"),
    ],
    ids=str,
)
def test_classes_and_messages(weights, photo, tmp_path, capsys, arguments, message):
    output = tmp_path / "out"
    code, _, err = run(capsys, photo, "--weights", weights[0], "--output", output, *arguments)
    if message is None:
        assert code == 0, err
        return
    assert code == 1
    (line,) = [one for one in err.splitlines() if one.startswith("van: error:")]
    assert re.search(message, line), line
    assert not output.exists()
    assert not list(tmp_path.iterdir())


def test_no_head(tmp_path, photo, capsys):
    model = load_seeded(VAN(**MICRO, include_top=False))
    path = tmp_path / "bare.keras"
    model.save(path)
    code, _, err = run(capsys, photo, "--weights", path, "--output", tmp_path / "out")
    assert (code, "has no head" in err) == (1, True)
