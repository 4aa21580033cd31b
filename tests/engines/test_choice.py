"""Who proves itself is taken, and who lies, fails or is not there is passed over, and said."""

import sys
from types import ModuleType

import numpy as np
import pytest

from van_classification_tensorflow.engines.choice import (
    Candidate,
    Chosen,
    NoEngineError,
    choose,
    largest_difference,
)

PICTURE = np.ones((1, 2, 2, 3), np.float32)
RIGHT = np.array([[1, -4, 2]], np.float32)


def giving(*outputs):
    return lambda: lambda picture: [np.repeat(one, len(picture), 0) for one in outputs]


def raising(error):
    def make():
        raise error

    return make


def failing(error):
    def make():
        def engine(picture):
            raise error

        return engine

    return make


HONEST = Candidate("onnxruntime", giving(RIGHT + np.float32(4e-5)))


def test_the_first_that_proves_itself():
    found = choose([HONEST, Candidate("keras", raising(AssertionError))], RIGHT, PICTURE)
    assert (found.name, found.precision, found.rejected) == ("onnxruntime", "float32", ())
    assert found.difference == pytest.approx(1e-5, rel=0.05)
    np.testing.assert_array_equal(found.engine(PICTURE)[0], RIGHT + np.float32(4e-5))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (giving(RIGHT + np.float32(0.08)), "differs by 2e-02 of the largest logit"),
        (giving(RIGHT + np.float32(0.0008)), "differs by 2e-04 of the largest logit"),
        (giving(np.array([[np.nan, -4, 2]], np.float32)), "differs by nan of the largest logit"),
        (giving(np.array([[np.inf, -4, 2]], np.float32)), "differs by nan of the largest logit"),
        (giving(RIGHT[:, :2]), "gives (1, 2); expected (1, 3)"),
        (giving(), "gives 0 outputs; expected 1"),
        (giving(RIGHT, RIGHT), "gives 2 outputs; expected 1"),
        (failing(RuntimeError("no\n such   kernel")), "no such kernel"),
        (raising(ImportError("libfoo.so: not found")), "libfoo.so: not found"),
        (raising(MemoryError()), "MemoryError"),
    ],
)
def test_who_lies_or_fails_is_passed_over_and_said(monkeypatch, make, says):
    there = ModuleType("openvino")
    there.__version__ = "2026.4.1-21234-x"
    monkeypatch.setitem(sys.modules, "openvino", there)
    found = choose([Candidate("openvino", make), HONEST], RIGHT, PICTURE)
    assert found.name == "onnxruntime"
    assert found.rejected == (f"OpenVINO 2026.4.1: {says}",)
    assert found.describe().endswith(f"; not OpenVINO 2026.4.1: {says}")
    with pytest.raises(NoEngineError) as caught:
        choose([Candidate("openvino", make)], RIGHT, PICTURE)
    assert str(caught.value) == f"OpenVINO 2026.4.1: {says}"
    assert caught.value.rejected == found.rejected


def test_who_is_not_installed_is_passed_over_without_a_word(monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)

    def make():
        import openvino

        return openvino

    found = choose([Candidate("openvino", make), HONEST], RIGHT, PICTURE)
    assert len(found.rejected) == 1
    assert found.rejected[0].endswith(": not installed")
    assert "OpenVINO" not in found.describe()


def test_a_stopped_user_is_heard():
    with pytest.raises(KeyboardInterrupt):
        choose([Candidate("openvino", raising(KeyboardInterrupt())), HONEST], RIGHT, PICTURE)


def test_several_times_the_same_picture():
    """A wrong answer among right ones is found."""
    wrong = np.repeat(RIGHT, 3, 0)
    wrong[2, 1] = 0
    three = np.repeat(PICTURE, 3, 0)
    assert choose([HONEST], RIGHT, three).difference < 2e-5
    with pytest.raises(NoEngineError, match="differs by 1e\\+00"):
        choose([Candidate("onnxruntime", lambda: lambda picture: wrong)], RIGHT, three)


def test_tolerance_is_that_of_the_precision():
    near = Candidate("openvino", giving(RIGHT * np.float32(1.03)))
    far = Candidate("openvino", giving(RIGHT * np.float32(1.5)))
    with pytest.raises(NoEngineError):
        choose([near], RIGHT, PICTURE)
    on_gpu = Candidate("keras", near.make, lambda: 0.1)
    assert choose([on_gpu], RIGHT, PICTURE).name == "keras"
    assert choose([near], RIGHT, PICTURE, precision="bfloat16").precision == "bfloat16"
    with pytest.raises(NoEngineError):
        choose([far], RIGHT, PICTURE, precision="bfloat16")
    no_number = Candidate("openvino", giving(RIGHT * np.float32(np.nan)))
    with pytest.raises(NoEngineError):
        choose([no_number], RIGHT, PICTURE, precision="bfloat16")


def test_where_classes_are_decided_a_share_of_the_pictures_counts():
    pictures = np.ones((20, 2, 2, 3), np.float32)
    right = np.eye(4, dtype=np.float32)[np.arange(20) % 4]

    def asked(wrong):
        given = right.copy()
        given[:wrong] = given[:wrong, [1, 2, 3, 0]]
        candidate = Candidate("openvino", lambda: lambda pictures: given)
        return choose(
            [candidate], right, pictures, precision="int8", decide=lambda one: one.argmax(1)
        )

    assert asked(0).agreement == 1.0
    found = asked(2)
    assert (found.difference, found.agreement) == (1.0, 0.9)
    assert "by 1e+00 of the largest logit, best class the same for 90.0%" in found.describe()
    with pytest.raises(NoEngineError, match=r"the same for 85.0% of the pictures, not 90%"):
        asked(3)
    assert choose([HONEST], RIGHT, PICTURE).agreement is None


def test_every_output_counts():
    features = np.array([[100, 0]], np.float32)
    good = [RIGHT, features]
    assert largest_difference([RIGHT], good) == 0  # one that gives the logits alone
    assert largest_difference([RIGHT, features + 1], good) == pytest.approx(0.01)
    assert np.isnan(largest_difference([RIGHT, features * np.nan], good))


def test_what_is_no_number_in_the_reference():
    right = np.array([[np.inf, 2, 1]], np.float32)
    assert largest_difference([np.array([[np.nan, 2, 1]])], [right]) == 0
    assert np.isnan(largest_difference([np.array([[3, 2, 1]])], [right]))
    assert np.isnan(largest_difference([right * np.nan], [right * np.nan]))
    zero = np.zeros((1, 3))
    assert largest_difference([zero], [zero]) == 0
    assert largest_difference([zero + 0.5], [zero]) == 0.5


def test_one_number_that_is_near_zero_by_chance():
    features = np.ones((1, 8), np.float32)
    right, rounded = np.array([[1e-4]]), np.array([[1e-4 + 6e-8]])
    assert largest_difference([rounded, features], [right, features]) < 1e-5
    assert largest_difference([right + 1e-5, features], [right, features]) > 1e-4


def test_the_line_for_the_user():
    why = "the fastest that is installed"
    found = Chosen(None, "onnxruntime", "1.32.0", "float32", 2, why, 3.4e-7)
    assert found.describe() == (
        "Engine: ONNX Runtime 1.32.0 on 2 threads, float32: the fastest that is installed; differs "
        "from NumPy's reference by 3e-07 of the largest logit"
    )
    assert Chosen(None, "numpy", "2.4").describe() == "Engine: NumPy 2.4, float32"
