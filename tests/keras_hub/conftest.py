"""KerasHub and its own harness. All tests here are slow: it takes seconds to import."""

import warnings

import pytest


@pytest.fixture
def keras_hub():
    """KerasHub, imported only when a test runs."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip("keras_hub")


@pytest.fixture
def hub(keras_hub):
    """What this package has for it."""
    from van_classification_tensorflow import keras_hub

    return keras_hub


@pytest.fixture
def harness(keras_hub):
    from keras_hub.src.tests.test_case import TestCase

    case = TestCase()
    yield case
    case.doCleanups()
