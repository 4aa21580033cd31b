"""Shared by the tests of explanations."""

import keras
import pytest


@pytest.fixture(autouse=True)
def _mostly_eager(request):
    """To trace a model for each of its layers would take most of the time of these tests."""
    if keras.backend.backend() != "tensorflow" or "compiled" in request.node.name:
        yield
        return
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)
