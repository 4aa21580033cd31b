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
    made = flatbuffer(function, job.about.precision, job.batches, path.parent)
    save(made, job.about.to_json(), path)


def save(made: bytes, metadata: str, path: Path) -> None:
    """Writes a flatbuffer, and behind it what it says of itself."""
    path.write_bytes(made)
    # Files that go with a LiteRT model stand in a zip archive behind it.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LITERT_METADATA, metadata)
