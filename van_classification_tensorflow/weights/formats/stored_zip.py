"""Uncompressed zip archives from strangers: the container of `torch.save` and of `.keras`.

Every member must be stored as it is, be there once and share no byte with another, so that what
is read is what the file holds. The directory is parsed here: `zipfile` takes seconds for extra
fields made for it, and what it forgives changes with Python's version.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

# A B6 with optimizer and average has 13,000 members in a directory of 1.4 MB.
_MAX_DIRECTORY = 4 << 20  # bytes
_MAX_MEMBERS = 20_000
_MAX_FIELD = 255  # bytes of a name, or of what else an entry carries
_END = struct.Struct("<4s4H2IH")
_END64 = struct.Struct("<4sQ2H2I4Q")
_LOCATOR64 = struct.Struct("<4sIQI")
_ENTRY = struct.Struct("<4s6H3I5H2I")
_LOCAL = struct.Struct("<4s5H3I2H")


@dataclass(frozen=True)
class Member:
    """One member: where its bytes start in the file, how many they are, their CRC-32."""

    name: str
    start: int
    size: int
    crc: int


class StoredZip:
    """The members of an open file, checked; nothing of them is read yet.

    Args:
        file: Open for reading, seekable; stays open as long as members are read.

    Raises:
        ValueError: The archive is damaged, compressed, encrypted, or its members overlap.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.members: dict[str, Member] = {}
        spans = []
        for offset, member in self._entries():
            if member.name in self.members:
                raise ValueError(f"zip member {member.name!r} is there twice")
            self.members[member.name] = member
            spans.append((offset, member.start + member.size, member.name))
        end, before = 0, ""
        for offset, member_end, name in sorted(spans):
            if offset < end:
                raise ValueError(f"zip member {name!r} overlaps {before!r}")
            end, before = member_end, name
        if not spans or min(spans)[0] != 0:
            raise ValueError("a zip archive that is empty or does not begin with its first member")

    def _entries(self) -> Iterator[tuple[int, Member]]:
        """(where its header starts, member) of all, in the directory's order."""
        directory, count, start = self._directory()
        at = 0
        for _ in range(count):
            if at + _ENTRY.size > len(directory):
                raise ValueError("damaged zip archive: its directory is cut short")
            entry = _ENTRY.unpack_from(directory, at)
            magic, _, _, flags, method, _, _, crc, packed, size, *lengths, _, _, _, offset = entry
            if magic != b"PK\x01\x02":
                raise ValueError("damaged zip archive: its directory holds something else")
            if max(lengths) > _MAX_FIELD:
                raise ValueError(f"a zip member with a name or fields of {max(lengths):,} bytes")
            at += _ENTRY.size
            raw = directory[at : at + lengths[0]]
            extra = directory[at + lengths[0] : at + lengths[0] + lengths[1]]
            at += sum(lengths)
            name = raw.decode("utf-8" if flags & 0x800 else "cp437")
            if not name.isprintable():
                raise ValueError(f"a zip member whose name is not printable: {name!r}")
            size, packed, offset = _in_64_bits(extra, (size, packed, offset))
            if method != 0 or packed != size:
                raise ValueError(
                    f"zip member {name!r} is compressed, as neither torch.save nor Keras makes it"
                )
            if flags & 0x1:
                raise ValueError(f"zip member {name!r} is encrypted")
            data = self._data_start(name, raw, flags, offset, start)
            if data + size > start:
                raise ValueError(f"zip member {name!r} is larger than the archive")
            yield offset, Member(name, data, size, crc)
        if at != len(directory):
            raise ValueError("damaged zip archive: its directory has another length")

    def _data_start(self, name: str, raw: bytes, flags: int, offset: int, end: int) -> int:
        if offset + _LOCAL.size > end:
            raise ValueError(f"zip member {name!r} lies outside the archive")
        self.file.seek(offset)
        header = _LOCAL.unpack(self.file.read(_LOCAL.size))
        magic, _, own_flags, method, *_, name_length, extra_length = header
        if magic != b"PK\x03\x04":
            raise ValueError(f"zip member {name!r} has no header where it should start")
        own = (name_length, self.file.read(len(raw)), method, own_flags & 0x801)
        if own != (len(raw), raw, 0, flags & 0x801):
            raise ValueError(f"zip member {name!r} has another header than its directory")
        return offset + _LOCAL.size + name_length + extra_length

    def _directory(self) -> tuple[bytes, int, int]:
        """(the directory, its number of entries, where it starts)."""
        size = self.file.seek(0, os.SEEK_END)
        tail_start = max(size - (1 << 16) - _END.size, 0)
        self.file.seek(tail_start)
        tail = self.file.read(size - tail_start)
        at = tail.rfind(b"PK\x05\x06")
        if at < 0 or len(tail) - at < _END.size:
            raise ValueError("damaged zip archive: it has no end")
        *_, count, length, start, comment = _END.unpack_from(tail, at)
        if at + _END.size + comment != len(tail):
            raise ValueError("damaged zip archive: bytes follow its end")
        end = tail_start + at
        if tail[max(at - _LOCATOR64.size, 0) : at].startswith(b"PK\x06\x07"):
            end -= _LOCATOR64.size + _END64.size
            record = b""
            if _LOCATOR64.unpack_from(tail, at - _LOCATOR64.size)[2] == end:
                self.file.seek(end)
                record = self.file.read(_END64.size)
            if record[:4] != b"PK\x06\x06":
                raise ValueError("damaged zip archive: its zip64 end is not where it should be")
            *_, count, length, start = _END64.unpack(record)
        if length > _MAX_DIRECTORY or count > _MAX_MEMBERS:
            raise ValueError(
                f"a zip directory of {length:,} bytes and {count:,} members; allowed: "
                f"{_MAX_DIRECTORY:,} and {_MAX_MEMBERS:,}"
            )
        if start + length != end:
            raise ValueError("damaged zip archive: its directory is not where it should be")
        self.file.seek(start)
        return self.file.read(length), count, start

    def read(self, name: str, limit: int | None = None) -> bytearray:
        """All bytes of a member, its checksum verified.

        Raises:
            ValueError: There is no such member, it is larger than `limit`, or damaged.
        """
        if name not in self.members:
            raise ValueError(f"the archive has no member {name!r}")
        member = self.members[name]
        if limit is not None and member.size > limit:
            raise ValueError(f"zip member {name!r} has {member.size:,} bytes; allowed: {limit:,}")
        data = bytearray(member.size)
        self.file.seek(member.start)
        read_into(self.file, data, f"zip member {name!r}")
        if zlib.crc32(data) != member.crc:
            raise ValueError(f"zip member {name!r} is damaged (its checksum does not fit)")
        return data


def _in_64_bits(extra: bytes, numbers: tuple[int, ...]) -> list[int]:
    """`numbers`, those of them that are all ones taken from an entry's zip64 field."""
    field, at = b"", 0
    while at + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, at)
        if kind == 1:
            field = extra[at + 4 : at + 4 + length]
        at += 4 + length
    found, at = [], 0
    for number in numbers:
        if number == 2**32 - 1:
            if at + 8 > len(field):
                raise ValueError("damaged zip archive: a zip64 field that is cut short")
            number = struct.unpack_from("<Q", field, at)[0]
            at += 8
        found.append(number)
    return found


def read_into(file: BinaryIO, data: bytearray, what: str) -> None:
    """Fills `data` from where `file` stands, however few bytes one call gives (2 GiB on Linux)."""
    rest = memoryview(data)
    while rest:
        count = file.readinto(rest)  # type: ignore[attr-defined]
        if not count:
            raise ValueError(f"{what} is cut short")
        rest = rest[count:]
