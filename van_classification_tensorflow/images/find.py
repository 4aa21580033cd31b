"""What a command line names: files, folders, patterns and lists -> one path for each picture.

A picture in a folder is known by its ending, or else by its first bytes. Other files are counted,
and so are hidden pictures (their names begin with a dot); what else is hidden, and what a desktop
keeps for itself, is passed over.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, TextIO

from ..spec.labels import comparable
from ..support.text import printable
from .decode import MAX_PIXELS, SUFFIXES, is_picture, kind_of, other_kind

_OF_THE_DESKTOP = ("thumbs.db", "desktop.ini")
_FIRST = 8192  # bytes of the standard input that tell what it is; a path has at most 4096
_LONGEST = 65_536  # bytes of what may still be a path
_MOST_PIPED = 8 * MAX_PIXELS
# What is in every kind of packed file, and hardly in a name.
_CONTROL = re.compile(rb"[\x01-\x08\x0b\x0c\x0e-\x1f]")


class LeftOut:
    """Files of folders that are no pictures: how many, with an example of each kind.

    False while there are none; as text, a sentence.
    """

    def __init__(self) -> None:
        self._kinds: dict[str, list[Any]] = {}

    def add(self, path: str) -> None:
        """Counts a file."""
        name = os.path.basename(path)
        kind = os.path.splitext(name)[1].lower() or "without an ending"
        kind = "hidden" if name.startswith(".") else kind
        self._kinds.setdefault(kind, [0, name])[0] += 1

    def __len__(self) -> int:
        return sum(count for count, _ in self._kinds.values())

    def __str__(self) -> str:
        ranked = sorted(self._kinds.items(), key=lambda item: (-item[1][0], item[0]))
        shown = [
            f"{count:,} {printable(kind)} ({printable(name)})" for kind, (count, name) in ranked[:4]
        ]
        if more := sum(count for _, (count, _) in ranked[4:]):
            shown.append(f"{more:,} others")
        what = "file that is hidden or no picture"
        if len(self) > 1:
            what = "files that are hidden or no pictures"
        return f"Left out {len(self):,} {what}: {', '.join(shown)}."


def no_pictures(where: str, left_out: LeftOut) -> str:
    """The sentence for nothing found; `where` as it may be printed."""
    return f"no pictures in {where}{f'. {left_out}' if left_out else ''}"


def expand(
    paths: Sequence[str], stdin: TextIO, left_out: LeftOut | None = None
) -> Iterator[str | bytes]:
    """Every picture that `paths` name, in a fixed order; of a file is read at most its beginning.

    Args:
        paths: Files (taken as they are, there or not); folders (`pictures_in`); patterns with
            `*`, `?`, `[` or `**` that the shell has left, for files and folders; "-" for the
            standard input: the bytes of one picture, or a list of paths, each ended by a newline
            or, as by `find -print0`, by a NUL. Bytes that are neither count as one picture, which
            cannot be read.
        stdin: Read for "-".
        left_out: Counts what is no picture.

    Raises:
        ValueError: The standard input has too much for a picture, or a name of too many bytes.
    """
    left_out = LeftOut() if left_out is None else left_out
    for path in paths:
        if path == "-":
            yield from _from_stdin(stdin)
        elif os.path.isdir(path):
            yield from pictures_in(path, left_out)
        elif glob.has_magic(path) and not os.path.lexists(path) and "\0" not in path:
            # A pattern that fits nothing stays: its record will say so.
            for match in sorted(glob.iglob(path, recursive=True), key=os.fsencode) or [path]:
                if not os.path.isdir(match):
                    yield match
                elif "**" not in path:  # which finds what is inside by itself
                    yield from pictures_in(match, left_out)
        else:
            yield path


def name_of(source: str | bytes) -> str:
    """What records call a picture: its path, or "-" where it came on the standard input."""
    return "-" if isinstance(source, bytes) else os.fsdecode(source)


def _from_stdin(stdin: TextIO) -> Iterator[str | bytes]:
    stream: BinaryIO | None = getattr(stdin, "buffer", None)
    if stream is None:
        yield from filter(None, (line.rstrip("\r\n") for line in stdin))
        return
    first = stream.read(_FIRST)
    end = b"\0" if b"\0" in first else b"\n"
    if kind_of(first) or (end == b"\0" and other_kind(first)) or _is_no_list(first, end):
        piped = first + stream.read(_MOST_PIPED)
        if len(piped) > _MOST_PIPED:
            raise ValueError(f"more than {_MOST_PIPED:,} bytes on the standard input")
        yield piped
        return
    # Bytes: a name need not be text.
    for name in _separated(stream, first, end):
        if name:
            yield os.fsdecode(name)


def _is_no_list(first: bytes, end: bytes) -> bool:
    """Whether a stream that begins with these bytes cannot be a list of paths."""
    if not _CONTROL.search(first):
        return False
    return not any(name and os.path.lexists(name) for name in first.split(end))


def _separated(stream: BinaryIO, rest: bytes, end: bytes) -> Iterator[bytes]:
    strip = b"" if end == b"\0" else b"\r"
    while True:
        *names, rest = rest.split(end)
        for name in names:
            yield name.rstrip(strip) if strip else name
        piece = stream.read(1 << 16)
        if not piece:
            yield rest.rstrip(strip) if strip else rest
            return
        if len(rest) > _LONGEST:
            raise ValueError(
                f"more than {_LONGEST:,} bytes on the standard input without the end of a line or "
                "a NUL: neither a picture nor a list of paths"
            )
        rest += piece


def pictures_in(folder: str, left_out: LeftOut) -> Iterator[str]:
    """All pictures of a folder at any depth, links to folders followed once, in a fixed order.

    A folder that cannot be read is given itself: to open it will say why.

    Args:
        folder: Where to look.
        left_out: Counts the files that are no pictures.
    """
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                continue  # a link that leads back
            seen.add((info.st_dev, info.st_ino))
            entries = _visible(folder, left_out)
        except OSError:
            yield folder
            continue
        folders = []
        for entry in entries:
            if _is_folder(entry):
                folders.append(entry.path)
            elif _is_picture(entry):
                yield entry.path
            else:
                left_out.add(entry.path)
        waiting += folders[::-1]


@dataclass(frozen=True)
class ClassFolder:
    """One class: its folder, that folder's own name, and the pictures in it."""

    path: str
    name: str
    pictures: tuple[str, ...]


def class_folders(folder: str, left_out: LeftOut) -> dict[str, ClassFolder]:
    """As `class_entries`, and the pictures of each."""
    return {
        name: ClassFolder(entry.path, entry.name, tuple(pictures_in(entry.path, left_out)))
        for name, entry in class_entries(folder, left_out).items()
    }


def class_entries(folder: str, left_out: LeftOut) -> dict[str, os.DirEntry]:
    """Every class, by its name as names are compared (`spec.labels.comparable`), in that order.

    Args:
        folder: Of one folder of pictures for each class.
        left_out: Counts the files beside these that are no pictures.

    Raises:
        ValueError: A picture lies in no class folder, or two folders have the same name but for
            how it is written in Unicode.
        OSError: The folder cannot be read.
    """
    folders: dict[str, os.DirEntry] = {}
    loose, shown = [], printable(folder)
    for entry in _visible(folder, left_out):
        if not _is_folder(entry):
            if _is_picture(entry):
                loose.append(entry.name)
            else:
                left_out.add(entry.path)
            continue
        name = comparable(entry.name)
        if name in folders:
            raise ValueError(
                f"{shown} has two folders for the class {name}, whose names differ only in how "
                "Unicode composes their letters; put their pictures into one"
            )
        folders[name] = entry
    if loose:
        first = ", ".join(map(printable, loose[:3])) + (", ..." if len(loose) > 3 else "")
        raise ValueError(
            f"{shown}: {len(loose):,} pictures lie in no class folder, so their class is unknown "
            f"({first}); move them into the folder of their class, or out"
        )
    return dict(sorted(folders.items()))


def _visible(folder: str, left_out: LeftOut) -> list[os.DirEntry]:
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            name = entry.name.lower()
            if name[0] != "." and name not in _OF_THE_DESKTOP:
                found.append(entry)
            elif name.endswith(SUFFIXES) and not name.startswith("._") and not _is_folder(entry):
                left_out.add(entry.path)  # "._a.jpg" is no picture, but macOS's notes on one
    return sorted(found, key=lambda entry: os.fsencode(entry.name))


def _is_picture(entry: os.DirEntry) -> bool:
    return entry.name.lower().endswith(SUFFIXES) or is_picture(entry.path)


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
