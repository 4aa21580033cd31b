"""KerasHub and its own harness. All tests here are slow: it takes seconds to import."""

import pytest


@pytest.fixture
def hub():
    from van_classification_tensorflow import keras_hub

    return keras_hub


@pytest.fixture
def harness():
    from keras_hub.src.tests.test_case import TestCase

    case = TestCase()
    yield case
    case.doCleanups()
