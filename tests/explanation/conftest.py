"""Shared by the tests of explanations."""

import pytest


@pytest.fixture(autouse=True)
def _mostly_eager(eager):
    """To trace a model for each of its layers would take most of the time of these tests."""
