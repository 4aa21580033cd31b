"""Files: of strangers, opened with care; our own, written beside and then renamed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import file_digest, sha1
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any, BinaryIO


def asset(name: str) -> Traversable:
    """A file that comes with this package, in its folder `assets`."""
    return files("van_classification_tensorflow") / "assets" / name


def sha256_of(path: str | os.PathLike) -> str:
    """Of a file's content, in hexadecimal digits."""
    with open(path, "rb") as file:
        return file_digest(file, "sha256").hexdigest()


def git_hash_of(path: str | os.PathLike, size: int) -> str:
    """What git calls a file's content: SHA-1 of "blob", its size and itself."""

    def begun() -> Any:
        return sha1(f"blob {size}\0".encode(), usedforsecurity=False)

    with open(path, "rb") as file:
        return file_digest(file, begun).hexdigest()


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


def check_place_for_file(path: Path) -> None:
    """Raises `FileExistsError` where what is there is no file: a rename would replace a device."""
    if path.is_dir():
        raise FileExistsError(f"{path} is a folder; name a file")
    if path.exists() and not path.is_file():
        raise FileExistsError(f"{path} is not a regular file; name another")


def write_atomically(
    path: str | os.PathLike, write: Callable[[Path], object], *, shared: bool = False
) -> None:
    """Makes or replaces a file: at any moment it is the old one or the new one, whole.

    Args:
        path: A file, or a place for one.
        write: Makes the file at the path it is called with, whose name ends as `path` does.
        shared: Several processes may do so at once, each beside the others: what a killed one
            leaves stays. Else one at a time, and the next overwrites what a killed one left.

    Raises:
        OSError: It could not be written, or `path` is a folder or a device; it is as it was.
    """
    path = Path(path)
    check_place_for_file(path)
    mine = f"{os.urandom(4).hex()}-" if shared else ""
    new = path.with_name(_fitting(f".tmp-{mine}", path.name))
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


def _fitting(prefix: str, name: str) -> str:
    """`prefix` and as much of the end of `name` as a file's name has room for, 255 bytes."""
    while len(os.fsencode(prefix + name)) > 255:
        name = name[1:]
    return prefix + name


@contextmanager
def folder_beside(path: Path) -> Iterator[Path]:
    """An empty folder on the disk where `path` is or will be; at the end it is gone."""
    import tempfile  # not where files are only read

    with tempfile.TemporaryDirectory(prefix=".van-", dir=path.absolute().parent) as folder:
        yield Path(folder)


def put_in_place(moves: Sequence[tuple[Path, Path]], work: Path) -> None:
    """Moves what was made to its places: all of it, or with an error nothing.

    A single file takes its place at once. A folder cannot replace another, nor two files two
    others: there what is replaced steps aside first.

    Args:
        moves: (a file or folder, its place), on one disk.
        work: A folder of that disk for what is replaced; the caller removes it (`folder_beside`).

    Raises:
        OSError: Something could not be moved; everything is as it was.
    """
    for made, _ in moves:
        for path in (*(made.rglob("*") if made.is_dir() else ()), made):
            sync(path)
    if len(moves) == 1 and moves[0][0].is_file():
        os.replace(*moves[0])
    else:
        import tempfile

        aside = Path(tempfile.mkdtemp(prefix="older-", dir=work))
        _put_all([(made, place, aside / place.name) for made, place in moves])
    for folder in {place.absolute().parent for _, place in moves}:
        sync(folder)


def _put_all(moves: Sequence[tuple[Path, Path, Path]]) -> None:
    begun = 0
    try:
        for made, place, older in moves:
            begun += 1
            if os.path.lexists(place):
                os.replace(place, older)
            os.replace(made, place)
    except BaseException:  # Ctrl-C as well
        for made, place, older in moves[:begun]:
            if os.path.lexists(place) and not os.path.lexists(made):
                os.replace(place, made)
            if os.path.lexists(older):
                os.replace(older, place)
        raise


def sync(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk.

    Not every system can wait for a folder, and not every folder that can be written to can be
    read: what is in it is there all the same.
    """
    try:
        _sync(path)
    except OSError as error:
        if not (path.is_dir() and error.errno in _NO_WAITING):
            raise


_NO_WAITING = (errno.EACCES, errno.EPERM, errno.EINVAL, errno.ENOTSUP)


def _sync(path: Path) -> None:
    windows = os.name == "nt"  # where only files that can be written are waited for
    handle = os.open(path, os.O_RDWR if windows else os.O_RDONLY)
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
