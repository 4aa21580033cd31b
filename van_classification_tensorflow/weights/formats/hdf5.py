"""HDF5 files as Keras writes them, parsed without the HDF5 library.

The C library opens other files that a file names, decompresses without bound, and runs for ever on
a tree whose branches share their nodes. Keras needs so little of the format (groups of groups of
plain arrays) that this little is read here, bounded and memory-safe.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import BinaryIO

import ml_dtypes
import numpy as np

from ...support.text import excerpt
from .stored_zip import read_into

# Keras needs 8 groups in groups, 5 axes; a B6 with optimizer 0.3 M steps and 4 MB.
_MAX_DEPTH, _MAX_RANK = 16, 8
_MAX_STEPS = 400_000  # a message or an entry is one, an object 16
_MAX_STRUCTURE = 16 << 20  # bytes, without the numbers

# Kinds of messages that describe an object.
# Attributes that are read: of a layer its name, of an array what Keras calls its numbers.
_KEPT = (b"name\0", b"dtype\0")
_SPACE, _TYPE, _LAYOUT, _ATTRIBUTE, _CONTINUED, _GROUP = 0x01, 0x03, 0x08, 0x0C, 0x10, 0x11
_SKIPPED = (0x00, 0x04, 0x05, 0x0D, 0x0E, 0x12)  # padding, fill values, comment, times
_REFUSED = {
    0x02: "links as Keras does not write them",
    0x06: "links as Keras does not write them (soft or external ones, say)",
    0x07: "its numbers in another file",
    0x0B: "its numbers compressed or filtered",
}
_CLASSES = (
    *("integers", "floats", "times", "strings", "bit fields", "opaque bytes", "compounds"),
    *("references", "an enumeration", "lists of variable length", "arrays of arrays"),
)


def _number_types() -> dict[bytes, np.dtype]:
    """Description of a type in the file -> the type, for all that NumPy has as well."""
    types = {}
    for order in (0, 1):  # little-endian, big-endian
        for n in (1, 2, 4, 8):
            for kind, sign in (("u", 0), ("i", 8)):
                key = struct.pack("<4BIHH", 0, order | sign, 0, 0, n, 0, 8 * n)
                types[key] = np.dtype(f"{'<>'[order]}{kind}{n}")
        for n, exponent, mantissa in ((2, 5, 10), (4, 8, 23), (8, 11, 52)):
            places = (mantissa, exponent, 0, mantissa, (1 << (exponent - 1)) - 1)
            head = (1, 0x20 | order, 8 * n - 1, 0, n, 0, 8 * n)
            types[struct.pack("<4BIHH4BI", *head, *places)] = np.dtype(f"{'<>'[order]}f{n}")
    return types


_NUMBER_TYPES = _number_types()


@dataclass(frozen=True)
class _Array:
    """Where an array lies in the file."""

    dtype: np.dtype
    shape: tuple[int, ...]
    address: int
    nbytes: int


class Hdf5File:
    """The arrays of an HDF5 file as h5py writes it by default: groups of groups of plain arrays.

    Every structure may be reached once, and all together may cost so much.

    Args:
        file: Open for reading; stays open as long as arrays are read.

    Attributes:
        arrays: {path: where it lies}.
        layer_names: {path of a group `vars`: the name Keras gave its layer}.

    Raises:
        ValueError: The file is damaged, or holds other things than such groups and arrays.
    """

    def __init__(self, file: BinaryIO):
        self.file = file
        self.size = file.seek(0, os.SEEK_END)
        self.steps, self.bytes = _MAX_STEPS, min(self.size, _MAX_STRUCTURE)
        self.seen: set[int] = set()
        self.heaps: dict[int, dict[int, bytes]] = {}
        self.arrays: dict[str, _Array] = {}
        self.layer_names: dict[str, str] = {}
        start = self.at(0, 96)
        if start[8] != 0 or start[13:15] != b"\x08\x08" or any(start[24:32]):
            raise ValueError("HDF5 of another layout than Keras writes")
        try:
            self.walk(struct.unpack_from("<Q", start, 64)[0], "", 1)
        except (struct.error, IndexError) as error:
            raise ValueError("damaged HDF5: a structure that is cut short") from error
        end = 0
        for array in sorted(self.arrays.values(), key=lambda array: array.address):
            if array.nbytes and array.address < end:
                raise ValueError("HDF5 arrays that overlap")
            end = max(end, array.address + array.nbytes)

    def read(self, path: str) -> np.ndarray:
        array = self.arrays[path]
        data = bytearray(array.nbytes)
        if data:
            self.file.seek(array.address)
            read_into(self.file, data, f"the HDF5 array {excerpt(path)}")
        numbers = np.frombuffer(data, array.dtype).reshape(array.shape)
        return numbers.astype(array.dtype.newbyteorder("="), copy=False)

    def at(self, address: int, length: int) -> bytes:
        if not 0 <= length <= self.bytes or address + length > self.size:
            raise ValueError("damaged HDF5: structures that overlap or lie outside the file")
        self.bytes -= length
        self.file.seek(address)
        return self.file.read(length)

    def spend(self, steps: int) -> None:
        self.steps -= steps
        if self.steps < 0:
            raise ValueError("more HDF5 entries than any VAN has")

    def walk(self, address: int, path: str, depth: int) -> None:
        """The object there and all below it; `path` is "" for the root."""
        self.spend(16)
        here = f"the HDF5 entry {excerpt(path)}" if path else "the root of the HDF5 file"
        if address in self.seen:
            raise ValueError(f"{here} has a second name")
        self.seen.add(address)
        if depth > _MAX_DEPTH:
            raise ValueError(f"HDF5 groups more than {_MAX_DEPTH} deep")
        messages = self.messages(address, here)
        if _GROUP not in messages:
            self.arrays[path] = self.array(messages, here)
            return
        if _ATTRIBUTE in messages and path.endswith("/vars"):
            self.layer_names[path] = self.text(messages[_ATTRIBUTE])
        for name, child in sorted(self.entries(messages[_GROUP], here)):
            self.walk(child, f"{path}/{name}" if path else name, depth + 1)

    def messages(self, address: int, here: str) -> dict[int, bytes]:
        """What describes an object, {kind: content}; of its attributes only `name`."""
        version, length = struct.unpack("<B7xI", self.at(address, 12))
        if version != 1:
            raise ValueError(f"{here} is of another layout than Keras writes")
        found: dict[int, bytes] = {}
        blocks = [(address + 16, length)]
        for start, length in blocks:
            block, end = self.at(start, length), 0
            while end + 8 <= length:
                self.spend(1)
                kind, size, flags = struct.unpack_from("<HHB", block, end)
                content = block[end + 8 : end + 8 + size]
                end += 8 + size
                if kind in _SKIPPED:
                    continue
                if kind == _CONTINUED:
                    blocks.append(struct.unpack_from("<QQ", content))
                elif kind not in (_SPACE, _TYPE, _LAYOUT, _GROUP, _ATTRIBUTE):
                    raise ValueError(f"{here} has {_REFUSED.get(kind, f'messages of {kind:#x}')}")
                elif flags & 2:
                    raise ValueError(f"{here} has a named type, or shares what describes it")
                elif kind != _ATTRIBUTE or any(content.startswith(_KEPT, i) for i in (8, 9)):
                    if kind in found:
                        raise ValueError(f"{here} is described twice")
                    found[kind] = content
        return found

    def entries(self, group: bytes, here: str) -> list[tuple[str, int]]:
        """(name, address) of the objects in a group, through its tree of sorted names."""
        tree, heap = struct.unpack_from("<QQ", group)
        magic, length, start = struct.unpack("<4s4xQ8xQ", self.at(heap, 32))
        if magic != b"HEAP":
            raise ValueError(f"{here} has no names where they should be")
        names = self.at(start, length)
        found: dict[str, int] = {}
        nodes: list[tuple[int, int | None]] = [(tree, None)]
        for address, expected in nodes:
            self.spend(1)
            if expected == -1:  # no more branches: entries
                magic, count = struct.unpack("<4s2xH", self.at(address, 8))
                if magic != b"SNOD":
                    raise ValueError(f"{here} has no entries where they should be")
                self.spend(count)
                leaf = self.at(address + 8, 40 * count)
                for name_at, child, kind in struct.iter_unpack("<QQI20x", leaf):
                    name = names[name_at : name_at + 256].partition(b"\0")[0].decode()
                    if not 0 < len(name) < 256 or "/" in name or name in found:
                        raise ValueError(f"{here} holds an entry without a name of its own")
                    if kind == 2:
                        raise ValueError(f"{here} holds {excerpt(name)}, which points elsewhere")
                    found[name] = child
                continue
            magic, kind, level, count = struct.unpack("<4sBBH16x", self.at(address, 24))
            if magic != b"TREE" or kind != 0 or expected not in (None, level):
                raise ValueError(f"{here} has no tree of entries where it should be")
            branches = struct.iter_unpack("<8xQ", self.at(address + 24, 16 * count))
            nodes += [(branch, level - 1) for (branch,) in branches]
        return list(found.items())

    def array(self, messages: dict[int, bytes], here: str) -> _Array:
        if not {_SPACE, _TYPE, _LAYOUT} <= messages.keys():
            raise ValueError(f"{here} is neither group nor array")
        space, kind, layout = messages[_SPACE], messages[_TYPE], messages[_LAYOUT]
        found = bytes([kind[0] & 15]) + kind[1:]
        dtype = _NUMBER_TYPES.get(found[:12]) or _NUMBER_TYPES.get(found[:20])
        # NumPy's HDF5 has no bfloat16: Keras writes 2 opaque bytes and says what they are.
        opaque = found[0] == 5 and found[4:8] == b"\2\0\0\0"
        if opaque and self.text(messages.get(_ATTRIBUTE, b"")) == "bfloat16":
            dtype = np.dtype(ml_dtypes.bfloat16)
        if dtype is None:
            what = _CLASSES[found[0]] if found[0] < len(_CLASSES) else "an unknown type"
            raise ValueError(f"{here} holds {what}, expected plain numbers")
        version, rank = space[0], space[1]
        if version not in (1, 2) or (version == 2 and space[3] == 2) or rank > _MAX_RANK:
            raise ValueError(f"{here} has no shape, or one of more than {_MAX_RANK} axes")
        shape = struct.unpack_from(f"<{rank}Q", space, 8 if version == 1 else 4)
        if layout[0] not in (3, 4) or layout[1] != 1:
            raise ValueError(f"{here} is chunked, virtual or compact, expected in one piece")
        address, nbytes = struct.unpack_from("<QQ", layout, 2)
        if prod(shape) * dtype.itemsize != nbytes:
            raise ValueError(f"{here} has {nbytes:,} bytes, but the shape {shape} of {dtype}")
        if nbytes and address + nbytes > self.size:
            raise ValueError(f"{here} is larger than the file")
        return _Array(dtype, shape, address, nbytes)

    def text(self, attribute: bytes) -> str:
        """The text of an attribute, in it or in a heap of texts; "" for none."""
        if not attribute:
            return ""
        version, *sizes = struct.unpack_from("<BxHHH", attribute)
        step, at = (8, 8) if version == 1 else (1, 9)  # the parts are padded or not
        _, kind_at, space_at, at = accumulate((-(-n // step) * step for n in sizes), initial=at)
        kind, data = attribute[kind_at:space_at], attribute[at:]
        if attribute[space_at + 1] == 0 and kind[0] & 15 == 3:
            text = data[: struct.unpack_from("<I", kind, 4)[0]]
        elif attribute[space_at + 1] == 0 and kind[0] & 15 == 9 and kind[1] & 15 == 1:
            length, heap, index = struct.unpack_from("<IQI", data)
            text = self.texts(heap).get(index, b"")[:length]
        else:
            raise ValueError("an HDF5 layer name that is no text")
        if len(text) > 255:
            raise ValueError(f"an HDF5 layer name of {len(text):,} bytes")
        return text.rstrip(b"\0").decode()

    def texts(self, address: int) -> dict[int, bytes]:
        if address not in self.heaps:
            magic, size = struct.unpack("<4s4xQ", self.at(address, 16))
            if magic != b"GCOL":
                raise ValueError("HDF5 texts that are not where they should be")
            heap, at, texts = self.at(address + 16, size - 16), 0, {}
            while at + 16 <= len(heap):
                self.spend(1)
                index, length = struct.unpack_from("<H6xQ", heap, at)
                if index == 0:
                    break
                texts[index] = heap[at + 16 : at + 16 + length]
                at += 16 + -(-length // 8) * 8
            self.heaps[address] = texts
        return self.heaps[address]
