"""Files: of strangers, opened with care; our own, written beside and then renamed."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import BinaryIO


def asset(name: str) -> Traversable:
    """A file that comes with this package, in its folder `assets`."""
    return files("van_classification_tensorflow") / "assets" / name


def open_regular(path: str | os.PathLike, buffering: int = -1) -> BinaryIO:
    """Opens a file for reading, if it is one; `buffering` as of `open`.

    Never waits, as a named pipe without a writer would have it. What it is is asked before and
    after, since to open a device or a pipe already does something.

    Raises:
        ValueError: It is something else; says what, as in "a folder".
        OSError: It is not there or cannot be read.
    """
    try:
        info = os.stat(path)
    except ValueError:  # a NUL, or a lone surrogate
        raise ValueError("not a name that a file can have") from None
    if stat.S_ISREG(info.st_mode):
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        file = open(os.open(path, flags), "rb", buffering)  # noqa: SIM115
        info = os.fstat(file.fileno())
        if stat.S_ISREG(info.st_mode):
            return file
        file.close()
    raise ValueError("a folder" if stat.S_ISDIR(info.st_mode) else "not a regular file")


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
