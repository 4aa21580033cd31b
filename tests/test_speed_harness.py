"""The benchmark's own logic, without starting an engine: names, weights, refusal, report."""

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from van_classification_tensorflow import VAN
from van_classification_tensorflow.load import to_official

from .parity import seeded_tensor

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture(scope="module")
def speed():
    sys.path.insert(0, str(BENCHMARKS))
    try:
        import speed

        yield speed
    finally:
        sys.path.remove(str(BENCHMARKS))


@pytest.fixture
def weights(speed):
    return sys.modules.get("weights") or __import__("weights")


def test_weights_are_those_of_the_proof(weights):
    model = VAN(embed_dims=[8], mlp_ratios=[2], depths=[1], num_classes=3)
    for name, array in to_official(model).items():
        np.testing.assert_array_equal(
            weights.seeded(name, array.shape), seeded_tensor(name, array.shape), err_msg=name
        )


@pytest.mark.parametrize("wrong", [0.5, math.nan])
def test_disagreeing_contenders_are_refused(speed, wrong):
    setting = speed.Setting(mode="inference", model="van_b0", batch=8)
    ours, peer = {"name": "keras", "check": [1.0, 2.0]}, {"name": "torch_eager"}
    speed.require_agreement(ours, {**peer, "check": [1.0, 2.0001]}, setting)
    with pytest.raises(SystemExit, match="disagree"):
        speed.require_agreement(ours, {**peer, "check": [1.0, 2.0 + wrong]}, setting)


def test_report_uses_the_best_launch(speed):
    setting = speed.Setting(mode="inference", model="van_b0", batch=8)
    launches = {
        setting: {
            "keras": [{"median_ms": 100.0}, {"median_ms": 180.0}],
            "onnxruntime": [{"median_ms": 90.0}, {"median_ms": 80.0}],
        }
    }
    (line,) = speed.targets_report(launches)
    assert "0.80 x onnxruntime" in line
    assert "met" in line
    rows = speed.table(launches, gflops=200.0).splitlines()
    assert "| keras | 100.0 | 80.0 | 1.80 | 1.00 |" in rows[2]
    assert "| onnxruntime | 80.0 | 100.0 | 1.12 | 0.80 |" in rows[3]
