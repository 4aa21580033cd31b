"""What a word for weights means."""

from pathlib import Path

import pytest

from van_classification_tensorflow.weights.address import address_of


@pytest.mark.parametrize(
    ("given", "kind", "format"),
    [
        ("van_b0", "name", None),
        ("in22k", "name", None),
        ("", "name", None),
        ("onnx", "name", None),
        ("nobody_knows", "name", None),
        ("x.bin", "weights", None),
        ("x.keras", "weights", None),
        ("X.PTH.TAR", "weights", None),
        ("folder/", "weights", None),
        ("a/b.onnx", "exported", "onnx"),
        ("x.onnx/", "exported", "onnx"),
        ("B.ONNX", "exported", "onnx"),
        ("x.xml", "exported", "openvino"),
        ("x.tflite", "exported", "litert"),
        (Path("van_b0"), "weights", None),
        (None, "other", None),
        (True, "other", None),
        (3, "other", None),
        (b"x.onnx", "other", None),
    ],
)
def test_by_the_word(given, kind, format):
    address = address_of(given)
    assert (address.kind, address.given, address.format) == (kind, given, format)
    assert address.is_path == (kind in ("weights", "exported"))


def test_by_what_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("van_b0", "mine", "run"):
        (tmp_path / name).mkdir()
    for name in ("van_b0", "mine"):
        (tmp_path / name / "saved_model.pb").touch()
    assert address_of("van_b0").kind == "name"  # the published weights
    assert address_of("run").kind == "weights"
    for given in ("mine", "mine/", "./van_b0", tmp_path / "van_b0"):
        assert address_of(given).format == "saved_model"
    (tmp_path / "saved_model.pb").touch()
    assert address_of("/").kind == "weights"  # not the current folder


def test_slashes_at_the_end_change_nothing():
    assert [address_of(given).path for given in ("a/b//", "./a/", "/", Path("a/b/"))] == [
        "a/b",
        "./a",
        "/",
        "a/b",
    ]


def test_records():
    assert address_of("in22k").record("van_b5").name == "van_b5.in22k"
    assert address_of(True).record("van_b1").name == "van_b1.in1k"
    with pytest.raises(ValueError, match="`x`: no such weights are published: 'van_b9'"):
        address_of("van_b9").record(argument="x")
    with pytest.raises(ValueError, match=r"`x=True` needs a `configuration`.*van_b0"):
        address_of(True).record(argument="x")
    with pytest.raises(ValueError, match=r"`x` must be True, False.*Received: x=7"):
        address_of(7).record(argument="x")
