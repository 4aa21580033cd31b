"""Uncompressed zip archives from strangers: the container of `torch.save` and of `.keras`.

Python's `zipfile` parses the directory; on top of it every member must be stored as it is, be
there once and share no byte with another, so that what is read is what the file holds.
"""

from __future__ import annotations

import os
import struct
import zipfile
import zlib
from dataclasses import dataclass
from typing import BinaryIO

_MAX_DIRECTORY = 4 << 20  # bytes, some 50,000 members; a B6 with optimizer has 12,000
_END, _END64, _LOCATOR64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"
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
        size = file.seek(0, os.SEEK_END)
        _check_directory_size(file, size)
        try:
            with zipfile.ZipFile(file) as archive:
                infos = archive.infolist()
                directory = archive.start_dir
        except (zipfile.BadZipFile, NotImplementedError, struct.error, OSError) as error:
            raise ValueError(f"damaged zip archive: {error}") from error
        self.members: dict[str, Member] = {}
        for info in infos:
            if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
                raise ValueError(
                    f"zip member {info.filename!r} is compressed, as neither torch.save "
                    "nor Keras makes it"
                )
            if info.flag_bits & 0x1:
                raise ValueError(f"zip member {info.filename!r} is encrypted")
            if info.filename in self.members:
                raise ValueError(f"zip member {info.filename!r} is there twice")
            start = self._data_start(info, directory)
            member = Member(info.filename, start, info.file_size, info.CRC)
            self.members[info.filename] = member
        spans = sorted((info.header_offset, self.members[info.filename]) for info in infos)
        end, before = 0, "the start of the file"
        for offset, member in spans:
            if offset < end:
                raise ValueError(f"zip member {member.name!r} overlaps {before}")
            end, before = member.start + member.size, repr(member.name)

    def _data_start(self, info: zipfile.ZipInfo, directory: int) -> int:
        self.file.seek(info.header_offset)
        raw = self.file.read(_LOCAL.size)
        if len(raw) < _LOCAL.size:
            raise ValueError(f"zip member {info.filename!r} lies outside the file")
        magic, *_, name_length, extra_length = _LOCAL.unpack(raw)
        if magic != b"PK\x03\x04":
            raise ValueError(f"zip member {info.filename!r} has no header where it should start")
        start = info.header_offset + _LOCAL.size + name_length + extra_length
        if start + info.file_size > directory:
            raise ValueError(f"zip member {info.filename!r} is larger than the archive")
        return start

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
        if self.file.readinto(data) != member.size:  # type: ignore[attr-defined]
            raise ValueError(f"zip member {name!r} is cut short")
        if zlib.crc32(data) != member.crc:
            raise ValueError(f"zip member {name!r} is damaged (its checksum does not fit)")
        return data


def _check_directory_size(file: BinaryIO, size: int) -> None:
    """Bounds what `zipfile` will read, before it reads it."""
    tail_start = max(size - (1 << 16) - 22, 0)
    file.seek(tail_start)
    tail = file.read(size - tail_start)
    at = tail.rfind(_END)
    if at < 0 or len(tail) - at < 22:
        raise ValueError("damaged zip archive: it has no end")
    length = struct.unpack_from("<I", tail, at + 12)[0]
    if at >= 20 and tail[at - 20 : at - 16] == _LOCATOR64:
        file.seek(min(struct.unpack_from("<Q", tail, at - 12)[0], size))
        record = file.read(56)
        if len(record) < 56 or record[:4] != _END64:
            raise ValueError("damaged zip archive: its zip64 end is not where it should be")
        length = max(struct.unpack_from("<Q", record, 40)[0], length if length < 2**32 - 1 else 0)
    if length > _MAX_DIRECTORY:
        raise ValueError(f"the zip directory has {length:,} bytes; allowed: {_MAX_DIRECTORY:,}")
