"""Writes LiteRT's flatbuffer."""

from __future__ import annotations

import zipfile
from pathlib import Path

from ..engines.flatbuffer import LITERT_TAPS, flatbuffer
from ..spec.card import LITERT_METADATA
from .job import Job
from .saved_model import function_of


def write(job: Job, path: Path) -> None:
    function, _ = function_of(job, LITERT_TAPS)
    path.write_bytes(flatbuffer(function, job.about.precision, job.batches, path.parent))
    # Files that go with a LiteRT model stand in a zip archive behind it.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LITERT_METADATA, job.about.to_json())
