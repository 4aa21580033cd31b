"""Files of our own: written beside and then renamed, flushed to the disk, measured."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path


def asset(name: str) -> Traversable:
    """A file that comes with this package, in its folder `assets`."""
    return files("van_classification_tensorflow") / "assets" / name


def write_atomically(path: str | os.PathLike, write: Callable[[Path], object]) -> None:
    """Makes or replaces a file: at any moment it is the old one or the new one, whole.

    One process at a time may do so: what a killed one leaves is overwritten by the next.

    Args:
        path: A file, or a place for one.
        write: Makes the file at the path it is called with, whose name ends as `path` does.

    Raises:
        OSError: It could not be written; `path` is as it was.
        ValueError: `path` is something else, which a rename would replace (a device, a folder).
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise ValueError(f"`path` must be a file, or not be there yet. Received: path={path}")
    new = path.with_name(f".tmp-{path.name}")
    try:
        new.unlink(missing_ok=True)  # nothing of a dead process may pass for what `write` makes
        write(new)
        sync(new)
        os.replace(new, path)
    except OSError as error:
        if error.filename is None:  # a full disk does not say which file
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise
    finally:
        new.unlink(missing_ok=True)
    sync(path.parent)


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def file_bytes(path: Path) -> int:
    """Size of a model on the disk: a file, all files of a folder, or *.xml with its *.bin."""
    if path.is_dir():
        return sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
    beside = path.with_suffix(".bin")
    if path.suffix == ".xml" and beside.is_file():
        return path.stat().st_size + beside.stat().st_size
    return path.stat().st_size
