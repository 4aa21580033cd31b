"""`results.json` of an evaluation, also a stranger's."""

import json
from dataclasses import replace

import pytest

from van_classification_tensorflow.hub.measured import Measured, read_measured

RECORD = {
    "model": "runs/flowers",
    "dataset": "my flowers",
    "pictures": 1000,
    "failed": [{"picture": "x", "reason": "y"}],
    "classes": 10,
    "top1": 0.91,
    "top5": 0.99,
    "top1_interval": [0.89, 0.93],
    "views": [5, True],
    "engine": "ONNX Runtime 1.32",
    "version": "2.0.0",
}
MEASURED = Measured(
    "runs/flowers",
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
)


def written(tmp_path, record):
    path = tmp_path / "results.json"
    path.write_text(record if isinstance(record, str) else json.dumps(record))
    return path


def test_what_was_measured(tmp_path):
    assert read_measured(written(tmp_path, RECORD)) == MEASURED


def test_the_command_that_measures_it_again():
    plain = replace(MEASURED, dataset="digits", model="digits", views=1, flip=False)
    assert plain.command == "van evaluate --data digits --weights digits"
    assert MEASURED.command.endswith("--weights runs/flowers --crops 5 --flip")


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("[]", "no JSON object"),
        ({}, "no `views`"),
        *(({**RECORD, key: None}, f"`{key}`") for key in RECORD),
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
