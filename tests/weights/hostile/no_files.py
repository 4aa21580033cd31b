"""What is no weight file at all."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.weights.hostile.payload import Payload, table
from tests.weights.hostile.writers import MAGIC


def no_files() -> Iterator[Payload]:
    regular, none = "not a regular file", "its content is none of"

    def linked(path: Path) -> None:
        os.mkfifo(path.with_suffix(".pipe"))
        path.symlink_to(path.with_suffix(".pipe"))

    def with_pipe(path: Path) -> None:
        path.mkdir()
        os.mkfifo(path / "model.safetensors")

    yield from table(
        ("a pipe", regular, os.mkfifo),
        ("a link to a pipe", regular, linked),
        ("/dev/zero", regular, lambda path: path.symlink_to("/dev/zero")),
        ("/dev/null", regular, lambda path: path.symlink_to("/dev/null")),
        ("an empty folder", "a folder without", Path.mkdir),
        ("a folder with a pipe", "a folder without", with_pipe),
    )
    for called, content in {
        "an empty file": b"",
        "one byte": b"\0",
        "HTML": b"<!DOCTYPE html><html><body>404 Not Found</body></html>",
        "a text": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
        "an error as JSON": b'{"error": "not found"}',
        "an image": b"\x89PNG\r\n\x1a\n" + bytes(100),
        "gzip": b"\x1f\x8b" + bytes(100),
        "xz": b"\xfd7zXZ\0" + bytes(100),
        "a program": b"\x7fELF" + bytes(100),
        "a tar": b"weights".ljust(257, b"\0") + b"ustar\0" + bytes(249),
        "NumPy": b"\x93NUMPY\x01\0" + bytes(120),
        "an escape": b"\x1b[2J\x1b[H" * 10,
        "pickle 0": b"cos\nsystem\n(S'id'\ntR.",
        "pickle 4": b"\x80\x04N.",
        "one byte of a zip": b"P",
        "one byte of a pickle": b"\x80",
        "one byte of HDF5": b"\x89",
        "seven bytes of HDF5": b"\x89HDF\r\n\x1a",
        "seven bytes of safetensors": b"\x02\0\0\0\0\0\0",
        "eight bytes of safetensors": struct.pack("<Q", 2),
    }.items():
        yield Payload(called, none, content)
    yield from table(
        ("two bytes of a zip", "it has no end", b"PK"),
        ("four bytes of a zip", "it has no end", b"PK\x03\x04"),
        ("two bytes of a pickle", "neither the zip nor the older", b"\x80\x02"),
        ("the start of the older layout", "cut short", MAGIC),
        ("eight bytes of HDF5", "damaged HDF5", b"\x89HDF\r\n\x1a\n"),
        ("nine bytes of safetensors", "a safetensors header of", struct.pack("<Q", 2) + b"{"),
    )
