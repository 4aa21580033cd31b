"""`results.json` of an evaluation, also a stranger's."""

import json
from dataclasses import replace

import pytest

from van_classification_tensorflow.hub.measured import Measured, read_measured

RECORD = {
    "model": "runs/flowers",
    "dataset": "/home/alice/my flowers/",
    "pictures": 1000,
    "failed": [{"picture": "x", "reason": "y"}],
    "classes": 10,
    "top1": 0.91,
    "top5": 0.99,
    "top1_interval": [0.89, 0.93],
    "views": [5, True],
    "engine": "ONNX Runtime 1.32",
    "version": "2.0.0",
    "asked": {"data": "/home/alice/my flowers/", "test_size": 64, "labels": "x"},
}
MEASURED = Measured(
    "flowers",
    "my flowers",
    1000,
    1,
    10,
    0.91,
    0.99,
    (0.89, 0.93),
    5,
    True,
    "ONNX Runtime 1.32",
    "2.0.0",
    {"data": "my flowers", "test_size": "64"},
)


def written(tmp_path, record):
    path = tmp_path / "results.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def test_what_was_measured(tmp_path):
    assert read_measured(written(tmp_path, RECORD)) == MEASURED


def test_the_command_that_measures_it_again():
    plain = replace(MEASURED, asked={"data": "digits"}, views=1, flip=False)
    assert plain.command("hf://me/x") == "van evaluate --data digits --weights hf://me/x"
    assert MEASURED.command("hf://me/x") == (
        "van evaluate --data 'my flowers' --weights hf://me/x --test-size 64 --crops 5 --flip"
    )
    assert replace(MEASURED, asked={}).command("hf://me/x") == ""  # of an earlier version


@pytest.mark.parametrize(
    ("asked", "dataset", "expected"),
    [
        ({"data": "tfds:a/b", "split": "test"}, "tfds:a/b, split test", "--data tfds:a/b"),
        ({"data": "digits"}, "digits: the bundled test images", "--data digits"),
        ({"data": "/home/alice/digits"}, "digits", "--data ./digits"),
        ({"data": "C:\\alice\\val"}, "val", "--data val"),
        (
            {"data": "/alice/val", "real_labels": "/alice/real.json", "precision": "int8"},
            "val, ReaL labels",
            "--data val --weights w --real-labels real.json --precision int8",
        ),
    ],
)
def test_only_the_last_part_of_a_path_is_told(asked, dataset, expected, tmp_path):
    given = dataset if ":" in dataset else f"/home/alice/{dataset}"
    record = {**RECORD, "asked": asked, "dataset": given, "model": "/home/alice/best.keras"}
    found = read_measured(written(tmp_path, record))
    assert (found.dataset, found.model) == (dataset, "best.keras")
    assert expected in (command := found.command("w"))
    assert "alice" not in command


def test_what_van_evaluate_writes_is_read(tmp_path):
    from PIL import Image

    from tests.parity import GOLDEN
    from van_classification_tensorflow.evaluate.evaluate import evaluate

    for name in "01":
        (tmp_path / "alice" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "alice" / name / "x.png")
    (tmp_path / "map.csv").write_text("folder,index\n0,3\n1,4\n")
    evaluate(
        tmp_path / "alice",
        GOLDEN / "micro.safetensors",
        class_map=tmp_path / "map.csv",
        output=tmp_path / "out",
        engine="numpy",
        test_size=32,
        flip=True,
    )
    found = read_measured(tmp_path / "out" / "results.json")
    assert (found.model, found.dataset, found.pictures) == ("micro.safetensors", "alice", 2)
    assert found.command("hf://me/x") == (
        "van evaluate --data alice --weights hf://me/x --class-map map.csv --test-size 32 "
        "--engine numpy --flip"
    )


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ({}, "no `views`"),
        *(({**RECORD, key: None}, f"`{key}`") for key in RECORD),
        ({**RECORD, "asked": {"data": "x" * 5000}}, "`data` is no text of sensible length"),
        ({**RECORD, "asked": {"data": []}}, "`data` is no text of sensible length"),
        ({**RECORD, "top1": 1.1}, "`top1` is not from 0 to 1"),
        ({**RECORD, "top1": "1"}, "`top1` is not from 0 to 1"),
        ({**RECORD, "top1_interval": [0, float("nan")]}, "`top1_interval`"),
        ({**RECORD, "pictures": 10**12}, "`pictures` is no number"),
        ({**RECORD, "model": "x" * 501}, "`model` is no text of sensible length"),
    ],
)
def test_what_is_none_is_refused(record, says, tmp_path):
    with pytest.raises(ValueError, match=r"results\.json of `van evaluate --output`") as error:
        read_measured(written(tmp_path, record))
    assert says in str(error.value)


def test_it_must_be_a_file(tmp_path):
    with pytest.raises(ValueError, match="a folder"):
        read_measured(tmp_path)
    with pytest.raises(FileNotFoundError):
        read_measured(tmp_path / "none")
