"""A folder that is only for reading, for the caches."""

import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest


@pytest.fixture
def reader_only():
    """A folder that this process cannot write, `root` included, and a switch."""
    folder = Path(tempfile.mkdtemp())
    user = os.geteuid()

    @contextmanager
    def without_rights():
        for each in (folder, *filter(Path.is_dir, folder.rglob("*"))):
            each.chmod(0o555)
        if user == 0:
            os.seteuid(65534)
        try:
            yield
        finally:
            if user == 0:
                os.seteuid(0)
            for each in (folder, *filter(Path.is_dir, folder.rglob("*"))):
                each.chmod(0o755)

    yield folder, without_rights
    shutil.rmtree(folder)
