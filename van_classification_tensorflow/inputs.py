"""What a command line names: files, folders, patterns and lists -> one path for each picture."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from typing import TextIO

from .images import SUFFIXES


def expand(paths: Sequence[str], stdin: TextIO) -> Iterator[str]:
    """Every picture that `paths` name, in a fixed order; nothing is opened.

    Args:
        paths: Files (taken as they are, there or not); folders (all their pictures by ending, at
            any depth, links to folders followed once); patterns with `*`, `?`, `[` or `**`
            that the shell has left, for files and folders; "-" for a list on `stdin`, one path
            a line.
        stdin: Read for "-".
    """
    for path in paths:
        if path == "-":
            # Bytes where there are any: a name need not be text.
            for line in getattr(stdin, "buffer", stdin):
                if name := os.fsdecode(line).rstrip("\r\n"):
                    yield name
        elif os.path.isdir(path):
            yield from _in_folder(path)
        elif glob.has_magic(path) and not os.path.lexists(path) and "\0" not in path:
            # A pattern that fits nothing stays: its record will say so.
            for match in sorted(glob.iglob(path, recursive=True), key=os.fsencode) or [path]:
                if not os.path.isdir(match):
                    yield match
                elif "**" not in path:  # which finds what is inside by itself
                    yield from _in_folder(match)
        else:
            yield path


def _in_folder(folder: str) -> Iterator[str]:
    seen: set[tuple[int, int]] = set()
    waiting = [folder]
    while waiting:
        folder = waiting.pop()
        try:
            info = os.stat(folder)
            if (info.st_dev, info.st_ino) in seen:
                continue  # a link that leads back
            seen.add((info.st_dev, info.st_ino))
            entries = sorted(os.scandir(folder), key=lambda entry: os.fsencode(entry.name))
        except OSError:
            yield folder  # its record will say why
            continue
        folders = []
        for entry in entries:
            if _is_folder(entry):
                folders.append(entry.path)
            elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("._"):
                yield entry.path
        waiting += folders[::-1]


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False
