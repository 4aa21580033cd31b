"""Shared by all tests: quiet TensorFlow, deterministic seeds."""

import gc
import os
from pathlib import Path

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before anything imports a backend

import keras
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="as many random kills (20), mutants (10,000) and sizes as the documents speak of",
    )


# The files that take longest, of all tests or of the slow ones, and so begin first: one that is
# begun last keeps a single core busy. (xdist itself begins with those of the most tests.)
LONG = [
    "docs/test_site",
    "docs/test_blocks",
    "support/test_quiet",
    "train/test_train",
    "train/test_kill",
    "model/test_parity",
    "model/test_fused",
    "model/test_van",
    "export/test_export",
    "weights/test_keras_config",
    "evaluate/test_evaluate",
    "train/test_demo",
    "train/test_distribution",
    "weights/test_fuzz",
    "benchmark/test_measure",
    "model/test_preprocessing_layer",
    "weights/test_pretrained",
    "weights/test_hostile_files",
    "test_before_packages",
    "test_public_api",
]


def pytest_collection_modifyitems(config, items):
    if not config.getoption("--thorough"):
        for item in items:
            if mark := item.get_closest_marker("thorough"):
                item.add_marker(pytest.mark.skip(reason=f"--thorough: {mark.args[0]}"))
    tests = Path(__file__).parent
    rank = {tests / f"{name}.py": i for i, name in enumerate(LONG)}
    items.sort(key=lambda item: rank.get(item.path, len(rank)))


def pytest_collection_finish():
    """What is imported by now stays: to look through it again and again took a 20th of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(10_000, 10, 10)


@pytest.fixture(scope="session")
def thorough(request) -> bool:
    """Whether the figures of the documents are wanted, for which there is not always time."""
    return request.config.getoption("--thorough")


@pytest.fixture
def eager(request):
    """Nothing is traced, where that takes longer than to run it; not for names with "compiled"."""
    if keras.backend.backend() != "tensorflow" or "compiled" in request.node.name:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(autouse=True)
def _seed_and_policy():
    keras.utils.set_random_seed(0)
    before, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    yield
    keras.config.set_dtype_policy(before)
    keras.config.set_image_data_format(data_format)
