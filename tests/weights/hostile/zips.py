"""Zip archives whose directory and members do not say the same, or say too much."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.weights.hostile.payload import Payload, table
from tests.weights.hostile.writers import NUMBERS, Part, saved, stored

PICKLE = Part("archive/data.pkl", saved())
MEMBER = Part("archive/data/0", NUMBERS)
VERSION = Part("archive/version", b"3\n")
WHOLE = stored([PICKLE, MEMBER, VERSION])
MAX32 = 2**32 - 1


def zips() -> Iterator[Payload]:
    yield from table(*members(), file=stored)
    yield from table(*fields(), file=_with)
    yield from table(*archives())
    yield from table(*ends(), file=lambda record: WHOLE[: -len(END)] + record)
    yield from table(*large_directories(), file=stored)
    yield Payload("a sparse file of 1 TB", "it has no end", _sparse)


# --- Which members there are ---


def members() -> list[tuple[str, str, list[Part]]]:
    needs = "it needs one data.pkl"
    # Two members of one place, each with the header that its entry wants.
    inside = stored([Part("archive/data/0", NUMBERS)])[: 30 + 14 + 16]
    outer = Part("archive/data.pkl", saved() + inside)
    at = 30 + len(outer.name) + len(saved())
    hidden = Part("archive/data/0", b"", offset=at, size=16, crc=zlib.crc32(NUMBERS))
    nul = replace(MEMBER, name="archive/data/0\0b")
    deep = replace(PICKLE, name="a/b/data.pkl")
    gap = replace(PICKLE, offset=30 + 8)
    script = Part("archive/constants.pkl", b"\x80\x02).")

    def order(said: bytes) -> Part:
        return Part("archive/byteorder", said)

    return [
        ("a member in a member", "overlaps", [outer, hidden, VERSION]),
        ("a name twice", "'archive/data/0' is there twice", [PICKLE, MEMBER, MEMBER]),
        ("a name twice, by NUL", "is not printable", [PICKLE, MEMBER, nul]),
        ("two data.pkl", needs, [PICKLE, Part("other/data.pkl", saved()), MEMBER, VERSION]),
        ("no data.pkl", needs, [VERSION, MEMBER]),
        ("data.pkl too deep", needs, [deep, MEMBER]),
        ("TorchScript", "TorchScript", [PICKLE, MEMBER, script]),
        ("byteorder b'big'", "big-endian", [PICKLE, MEMBER, order(b"big")]),
        ("byteorder b'little\\n'", "big-endian", [PICKLE, MEMBER, order(b"little\n")]),
        ("byteorder of 1 MB", "allowed: 16", [PICKLE, MEMBER, order(bytes(1 << 20))]),
        ("a first member at 38", "has no header", [gap, MEMBER]),
    ]


# --- What the directory says of one member ---


def _with(changes: dict[str, Any]) -> bytes:
    return stored([PICKLE, replace(MEMBER, **changes), VERSION])


def fields() -> list[tuple[str, str, dict[str, Any]]]:
    packed, another = "is compressed", "has another header"
    larger, outside = "is larger than the archive", "lies outside"
    long = "a zip member with a name or fields of"
    zeros = zlib.compress(bytes(64 << 20), 9)[2:-4]
    bomb = {"content": zeros, "packed": len(zeros), "size": 64 << 20, "method": 8}
    zip64 = {"size": MAX32, "packed": MAX32, "offset": MAX32}
    at_2_63 = struct.pack("<HHQQQ", 1, 24, 2**64 - 1, 2**64 - 1, 2**63 + 5)
    of_2_62 = struct.pack("<HHQQQ", 1, 24, 2**62, 2**62, len(saved()) + 46)
    odd = b"\xfe\xca\0\0" * 63
    return [
        ("a header of another", another, {"offset": 0}),
        ("a deflate bomb", packed, bomb),
        *((f"method {n}", packed, {"method": n}) for n in (1, 9, 12, 14, 93, 95, 99)),
        ("stored, of two sizes", packed, {"packed": 4}),
        ("encrypted", "is encrypted", {"flags": 1}),
        ("encrypted, locally", another, {"local_flags": 1}),
        ("compressed, locally", another, {"local_method": 8}),
        ("another name locally", another, {"local": b"archive/data/1"}),
        ("a longer name locally", another, {"local": b"archive/data/0" * 4000}),
        ("no name locally", another, {"local": b""}),
        ("a wrong checksum", "its checksum does not fit", {"crc": 0}),
        ("larger than the archive", larger, {"size": 100_000}),
        ("4 GB", larger, {"size": 2**32 - 2}),
        ("extra field past the end", larger, {"local_extra": 0xFFFF}),
        *((f"at {at}", outside, {"offset": at}) for at in (len(WHOLE), 10**6, 2**32 - 2)),
        ("where no header is", "has no header", {"offset": 1}),
        (
            "in the directory",
            f"has no header|is larger|{outside}",
            {"offset": len(WHOLE) - 150},
        ),
        ("zip64: at 2^63", outside, {**zip64, "extra": at_2_63}),
        ("zip64: 2^62 bytes", larger, {**zip64, "extra": of_2_62}),
        ("zip64: cut short", f"damaged zip|{outside}", {**zip64, "extra": b"\1\0\x02\0ab"}),
        ("extra of 252", f"{packed}|larger", {"extra": odd, "size": 100_000}),
        ("extra of 256", long, {"extra": odd + b"\xfe\xca\0\0"}),
        ("name of 300", f"{long} 314", {"name": "archive/data/0" + "a" * 300}),
    ]


# --- Whole archives ---


def archives() -> list[tuple[str, str, bytes]]:
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", saved())
        archive.writestr("archive/data/0", NUMBERS)
    checksum = "its checksum does not fit"
    lying = replace(MEMBER, name="archive/\ud7ff", flags=0x800)
    no_utf8 = stored([PICKLE, lying]).replace("\ud7ff".encode(), b"\xff\xfe\xfd")
    prefixed = stored([PICKLE, MEMBER, VERSION], before=b"PK and what else one likes")
    return [
        ("compressed", "is compressed", deflated.getvalue()),
        ("damaged numbers", checksum, WHOLE.replace(NUMBERS, NUMBERS[:-1] + b"\x41")),
        ("a damaged pickle", checksum, WHOLE.replace(b"extra", b"extrb")),
        ("a name that is no UTF-8", "codec can't decode", no_utf8),
        ("empty", "is empty or does not begin|its content is none", b"PK" + _end(0, 2, 0)),
        ("an empty archive", "is empty or does not begin", _end(0, 0, 0)),
        ("a prefix", "does not begin with its first member", prefixed),
        ("a prefix that is not counted", "directory is not where", b"PK!" + WHOLE),
        ("a script before it", "its content is none of", b"#!/bin/sh\nexit\n" + WHOLE),
    ]


# --- The end, which tells where the directory is ---


def _end(length: int, start: int, count: int = 3, comment: int = 0) -> bytes:
    counts = (0, 0, count, count)
    return struct.pack("<4s4H2IH", b"PK\x05\x06", *counts, length, start, comment)


def _end64(size: int, at: int) -> bytes:
    head = (b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3)
    return struct.pack("<4sQHHIIQQQQ", *head, size, at)


def _locator(at: int) -> bytes:
    """Points to one zip64 end; another may stand before it."""
    return struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)


START = len(stored([PICKLE, MEMBER, VERSION], end=b"")) - 46 * 3 - 14 - 16 - 15
LENGTH = len(WHOLE) - 22 - START
END = _end(LENGTH, START)
BODY = len(WHOLE) - len(END)
assert WHOLE.endswith(END)


def ends() -> list[tuple[str, str, bytes]]:
    short, damaged, misplaced = (
        "its directory is cut short",
        "damaged zip",
        "its zip64 end is not where it should be",
    )
    marked = _end(MAX32, MAX32, 0xFFFF)
    modest, greedy, backwards = (
        _end64(LENGTH, START),
        _end64(1 << 40, START),
        _end64(LENGTH, 2**64 - 1),
    )
    here = _locator(BODY) + marked
    return [
        ("no end", "it has no end", b""),
        ("an end cut short", "it has no end", END[:-1]),
        ("a directory of 4 GB", "a zip directory of 4,294,967,294 bytes", _end(2**32 - 2, START)),
        (
            "a comment",
            "has no end|bytes follow",
            _end(LENGTH, START, comment=9) + b"01234567",
        ),
        ("bytes behind", "bytes follow its end", END + b"\0"),
        (
            "an end in a comment",
            "bytes follow",
            _end(LENGTH, START, comment=30) + _end(0, 0) + bytes(8),
        ),
        ("fewer members", "its directory has another length", _end(LENGTH, START, 2)),
        ("more members", short, _end(LENGTH, START, 4)),
        ("a directory before the file", damaged, _end(LENGTH + 10_000, 0)),
        ("a directory cut short", damaged, _end(LENGTH - 1, START)),
        ("an empty directory", short, _end(0, BODY)),
        ("bytes in between", "has no header|damaged|lies outside|begin", b"PK??" + END),
        ("two zip64 ends", misplaced, modest + greedy + here),
        ("no zip64 end", misplaced, here),
        ("a zip64 end at 2^64", misplaced, modest + _locator(2**64 - 1) + marked),
        ("a zip64 directory of 1 TB", "a zip directory of 1,099,511,627,776 bytes", greedy + here),
        (
            "a zip64 directory at 2^64",
            "lies outside|damaged|another header",
            backwards + here,
        ),
    ]


# --- Directories that are really there, and large ---


def large_directories() -> list[tuple[str, str, list[Part]]]:
    tiny = [Part(f"{i:x}", b"") for i in range(60_000)]
    padded = [Part(f"{i:x}", b"", extra=b"\xfe\xca\0\0" * 16_383) for i in range(63)]
    spread = [Part("0", b"")] + [Part(f"{i:x}", b"", offset=0, local=b"") for i in range(1, 19_999)]
    six = [replace(p, extra=b"\xca\xfe" + b"\xf0\xff" + bytes(0xFFF0)) for p in tiny[:90]]
    return [
        ("60,000 members", "bytes and 60,000 members; allowed", tiny),
        ("one member 19,999 times", "is there twice", [Part("a", b"", offset=0)] * 19_999),
        ("19,999 names of one place", "another header", spread),
        ("a directory of 6 MB", "a zip directory of 5,", six),
        ("a million fields", "a zip member with a name or fields of", [PICKLE, MEMBER, *padded]),
    ]


def _sparse(path: Path) -> None:
    """1 TB, of which nearly nothing is on disk."""
    with open(path, "wb") as file:
        file.write(WHOLE)
        file.truncate(1 << 40)
