"""Several devices under `tf.distribute` train what one device trains with the whole batch."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from van_classification_tensorflow.model.layers import tf

pytestmark = [
    pytest.mark.skipif(tf is None, reason="tf.distribute needs TensorFlow"),
    pytest.mark.slow,
]


@pytest.fixture(scope="module")
def report():
    """What `two_devices.py` measured; about 35 s of CPU time, most of it tracing."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.two_devices"],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=False,
        timeout=600,  # replicas that wait for each other wait for ever
    )
    assert child.returncode == 0, child.stderr[-4000:]
    return json.loads(child.stdout.splitlines()[-1])


# Measured: 5e-7. With statistics of each device's own share: 1e-2.
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_fit_equals_one_device(report, optimizer):
    fit = report["fit"][optimizer]
    assert fit["moved"] > 1e-3
    assert fit["losses"] < 3e-6
    assert fit["variables"] < 1e-5  # weights, running statistics, seeds, optimizer
    assert fit["copies"] == 0.0


def test_scores_and_files_equal_one_device(report):
    fit = report["fit"]["sgd"]
    assert fit["predict"] < 1e-6
    assert fit["evaluate"] < 1e-6
    assert fit["loaded"] == 0.0
    assert fit["loaded predict"] < 1e-6


def test_gradients_equal_one_device(report):
    """In float64 to the last bits, so that nothing small hides; and recomputed ones."""
    exact, remat = report["gradients"]["float64"], report["gradients"]["remat"]
    assert exact["scale"] > 1.0
    assert exact["gradients"] < 1e-13
    assert exact["running"] < 1e-13
    assert remat["gradients"] < 3e-6
    assert remat["running"] < 3e-6


# As good as TensorFlow's kernel on one device, which is 3e-4 off at a mean of 3000 deviations.
@pytest.mark.parametrize(
    ("case", "tolerance"),
    [
        ("float32", 1e-3),
        ("uneven", 1e-3),
        ("mixed_bfloat16", 2e-2),
        ("mixed_float16", 2e-3),
        ("float64", 1e-10),
    ],
)
def test_batch_norm_sees_all_shares(report, case, tolerance):
    found = report["batch norm"][case]
    assert found["outputs"] < tolerance
    assert found["running"] < (1e-13 if case == "float64" else 3e-6)  # float32, unbiased


def test_drop_path_draws_for_the_whole_batch(report):
    assert report["drop path"] == {"whole batch": 0.0, "replicas": 2.0}


def test_half_precision_trains(report):
    fit = report["fit"]["sgd"]
    assert fit["half optimizer"] == "LossScaleOptimizer"
    assert fit["half finite"]
    assert fit["half losses"] < 1e-2
