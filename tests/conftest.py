"""Shared by all tests: quiet TensorFlow, deterministic seeds."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # before anything imports a backend

import keras
import pytest


def pytest_addoption(parser):
    parser.addoption(
        "--thorough",
        action="store_true",
        help="as many random kills (20), mutants (10,000) and sizes as the documents speak of",
    )


@pytest.fixture(scope="session")
def thorough(request) -> bool:
    """Whether the figures of the documents are wanted, for which there is not always time."""
    return request.config.getoption("--thorough")


@pytest.fixture(autouse=True)
def _seed_and_policy():
    keras.utils.set_random_seed(0)
    before, data_format = keras.config.dtype_policy(), keras.config.image_data_format()
    yield
    keras.config.set_dtype_policy(before)
    keras.config.set_image_data_format(data_format)
