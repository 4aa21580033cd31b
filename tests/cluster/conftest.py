"""One cluster of three nodes for all tests of it."""

import pytest

from tests.cluster.nodes import started


@pytest.fixture(scope="session")
def nodes():
    """Two nodes of two CPUs each beside the head; a test that kills one adds another."""
    pytest.importorskip("ray", reason="the extra cluster is not installed")
    with started() as made:
        yield made
