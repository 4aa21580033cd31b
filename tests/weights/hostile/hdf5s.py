"""HDF5: links out of the file, numbers elsewhere, other kinds of them, and damaged structures."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from tests.weights.hostile.payload import Payload, table
from tests.weights.hostile.writers import hdf5, nothing

LINKS = "links as Keras does not write them"
TWICE = "has a second name"
NEWER = "of another layout than Keras writes"
OWN = "without a name of its own|has no names"
LOST = "damaged HDF5|has no|is neither group nor array"
HERE = "HDF5 entry 'layers/a/vars/2' "  # the array that `array` puts beside the good ones
NO_NUMBERS = f"{HERE}holds .*, expected plain numbers"
Row = tuple[str, str, Any]
ARRAY = "layers/a/vars/2"


@cache
def hdf5s(folder: Path) -> tuple[Payload, ...]:
    """Made once: `.keras` files have the same inside."""
    return tuple(_hdf5s(folder))


def _hdf5s(folder: Path) -> Iterator[Payload]:
    yield from table(*links(folder), file=hdf5)
    yield from table(*elsewhere(folder))
    yield from table(*kinds(), file=hdf5)
    yield from table(*too_much(), file=hdf5)
    yield from table(*layouts())
    yield from table(*patches(), file=lambda values: _patched(BASE, *values))
    yield from table(*trees())


# --- Links ---


def _put(key: str, value: Any) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        if key == "layers":
            del file["layers"]
        file[key] = value

    return fill


def _again(key: str, of: str) -> Callable[[Any], None]:
    return lambda file: file.__setitem__(key, file[of])


def links(folder: Path) -> Iterator[Row]:
    files = {"a file": folder / "target.h5", "a pipe": folder / "pipe"}
    soft = f"{LINKS}|points elsewhere"
    for where in ("layers", "x", "layers/b", ARRAY):
        for what, file in {**files, "what is not there": "none.h5"}.items():
            yield f"{where} in {what}", LINKS, _put(where, h5py.ExternalLink(str(file), "/array"))
        yield f"{where} soft", soft, _put(where, h5py.SoftLink("/layers/a"))
        yield f"{where} dangling", soft, _put(where, h5py.SoftLink("/none"))
        yield f"{where} soft to itself", soft, _put(where, h5py.SoftLink(f"/{where}"))
    yield "an array twice", TWICE, _again(ARRAY, "layers/a/vars/0")
    yield "a group twice", TWICE, _again("layers/b", "layers/a")
    yield "a group in itself", TWICE, _again("layers/a/b", "layers/a")
    yield "the root in the root", TWICE, _again("layers/a/root", "/")


# --- Numbers that are not in one piece in the file ---


def array(*shape: Any, dtype: Any = "f4", **options: Any) -> bytes:
    return hdf5(lambda file: file.create_dataset(ARRAY, shape, dtype, **options))


def _virtual(of: str) -> Callable[[Any], None]:
    def fill(file: Any) -> None:
        layout = h5py.VirtualLayout((4,), "f4", maxshape=(None,))
        source = h5py.VirtualSource(of, "array", (4,), maxshape=(None,))
        layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
        file.create_virtual_dataset(ARRAY, layout)

    return fill


def _bomb(file: Any) -> None:
    """4 TB of zeros, of which 16 MB are there."""
    options = {"chunks": (1 << 22,), "compression": "gzip", "compression_opts": 9}
    made = file.create_dataset(ARRAY, (1 << 40,), "f4", **options)
    made.id.write_direct_chunk((0,), zlib.compress(bytes(16 << 20), 9))


def _compact(file: Any) -> None:
    kind, space = h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,))
    options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    options.set_layout(h5py.h5d.COMPACT)
    h5py.h5d.create(file["layers/a/vars"].id, b"2", kind, space, options)


def elsewhere(folder: Path) -> list[Row]:
    target, pipe = str(folder / "target.h5"), str(folder / "pipe")
    outside = f"{HERE}has its numbers in another file"
    virtual = f"{HERE}is (of another layout|chunked, virtual or compact)"
    zipped = f"{HERE}has its numbers compressed or filtered"
    pieces = f"{HERE}is chunked, virtual or compact"
    return [
        ("numbers in a file", outside, array(4, external=[(target, 0, 16)])),
        ("numbers in a pipe", outside, array(4, external=[(pipe, 0, 16)])),
        ("numbers in a system file", outside, array(4, external=[("/etc/passwd", 0, 16)])),
        ("numbers of a file, virtual", virtual, hdf5(_virtual(target))),
        ("numbers of a pipe, virtual", virtual, hdf5(_virtual(pipe))),
        ("numbers of this file, virtual", virtual, hdf5(_virtual("."))),
        ("gzip", zipped, array(4, compression="gzip")),
        ("a gzip bomb of 4 TB", zipped, hdf5(_bomb)),
        ("lzf", zipped, array(4, compression="lzf")),
        ("shuffled", zipped, array(4, shuffle=True)),
        ("with a checksum", zipped, array(4, fletcher32=True)),
        ("scaled", zipped, array(4, scaleoffset=2)),
        ("in chunks", pieces, array(4, chunks=(2,))),
        ("growing", pieces, array(4, maxshape=(None,))),
        ("compact", pieces, hdf5(_compact)),
        ("32 axes", f"{HERE}has no shape, or one of", array(*[1] * 32)),
        ("never written", f"{HERE}is larger than the file", array(4)),
        ("1 TB never written", f"{HERE}is larger than the file", array(1 << 38)),
    ]


# --- What is no plain numbers ---


def _of(dtype: Any) -> Callable[[Any], None]:
    return lambda file: file.create_dataset(ARRAY, (4,), dtype)


def _of_hdf5s(kind: Any) -> Callable[[Any], None]:
    """Of a type that NumPy does not have."""

    def fill(file: Any) -> None:
        space = h5py.h5s.create_simple((4,))
        h5py.h5d.create(file["layers/a/vars"].id, b"2", kind, space)

    return fill


def _of_named(file: Any) -> None:
    file["type"] = np.dtype("f4")
    file.create_dataset(ARRAY, (4,), file["type"])


def kinds() -> list[Row]:
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(100)
    packed = h5py.h5t.STD_I32LE.copy()
    packed.set_precision(20)
    many = np.dtype([(f"a{i}", "f4") for i in range(500)])
    named = "has a named type, or shares|is neither group nor array"
    return [
        ("strings", NO_NUMBERS, _of("S4")),
        ("texts", NO_NUMBERS, _of(h5py.string_dtype())),
        ("lists", NO_NUMBERS, _of(h5py.vlen_dtype("f4"))),
        ("compounds", NO_NUMBERS, _of(np.dtype([("a", "f4"), ("b", "f4")]))),
        ("compounds of 500", NO_NUMBERS, _of(many)),
        ("complex numbers", NO_NUMBERS, _of("c8")),
        ("references", NO_NUMBERS, _of(h5py.ref_dtype)),
        ("regions", NO_NUMBERS, _of(h5py.regionref_dtype)),
        ("truths", NO_NUMBERS, _of("?")),
        ("an enumeration", NO_NUMBERS, _of(h5py.enum_dtype({"a": 1, "b": 2}, "i4"))),
        ("arrays", NO_NUMBERS, _of(np.dtype(("f4", (2, 2))))),
        ("bytes", NO_NUMBERS, _of("V4")),
        ("wide floats", NO_NUMBERS, _of(np.longdouble)),
        ("floats of another kind", NO_NUMBERS, _of_hdf5s(odd)),
        ("integers of 20 bits", NO_NUMBERS, _of_hdf5s(packed)),
        ("bits", NO_NUMBERS, _of_hdf5s(h5py.h5t.STD_B32LE)),
        ("times", NO_NUMBERS, _of_hdf5s(h5py.h5t.UNIX_D32LE)),
        ("a named type", "'type' (is neither group nor array|has)", _put("type", np.dtype("f4"))),
        ("an array of a named type", named, _of_named),
        ("no shape", f"{HERE}has no shape", _put(ARRAY, h5py.Empty("f4"))),
    ]


# --- Too many, too deep, too long, or the wrong names ---


def _many_groups(file: Any) -> None:
    inside = file.create_group("layers/b").id
    for i in range(25_000):
        h5py.h5g.create(inside, b"%d" % i)


def _layer(value: Any, **options: Any) -> Callable[[Any], None]:
    """Names a layer."""
    return lambda file: file["layers/a/vars"].attrs.create("name", value, **options)


def _same_names(file: Any) -> None:
    file["layers/b/vars/0"] = np.ones(4, "f4")
    file["layers/b/vars"].attrs["name"] = "first"


def _empty(file: Any) -> None:
    del file["layers"]


def too_much() -> list[Row]:
    long, unclear = "an HDF5 layer name of 60,000 bytes", "is too long or not printable"
    notext = "an HDF5 layer name that is no text"
    refers = _layer(h5py.Reference(), dtype=h5py.ref_dtype)
    return [
        ("100 groups deep", "more than 16 deep", lambda file: file.create_group("a/" * 100)),
        ("25,000 groups", "more HDF5 entries than any VAN has", _many_groups),
        ("a layer name of 60 kB", long, _layer(np.bytes_(b"a" * 60_000))),
        ("a layer text of 60 kB", long, _layer("a" * 60_000)),
        ("escapes in a layer name", unclear, _layer("\x1b[2J")),
        ("escapes in an array's name", unclear, _put("layers/a/vars/\x1b[2J", np.ones(4, "f4"))),
        ("a layer name that is no UTF-8", "codec can't decode", _layer(np.bytes_(b"\xff\xfe"))),
        ("a layer name of numbers", notext, _layer(np.ones(3))),
        ("a layer name, twice", notext, _layer(["a", "b"])),
        ("a layer name that refers", notext, refers),
        ("two layers of one name", "two layers with the name 'first'", _same_names),
        ("an array's name of 300", OWN, _put("layers/" + "a" * 300, np.ones(4))),
        ("empty", "there are no tensors in it", _empty),
    ]


# --- Other layouts, and files cut short ---


def layouts() -> list[Row]:
    cut = f"{LOST}|is larger than the file"
    lengths = (20, 96, 200, len(BASE) // 2, len(BASE) - 1)
    return [
        ("the latest layout", NEWER, hdf5(nothing, libver="latest")),
        ("ordered groups", f"{NEWER}|{LINKS}", hdf5(nothing, track_order=True)),
        ("a block before it", "its content is none of", hdf5(nothing, userblock_size=512)),
        *((f"cut after {length}", cut, BASE[:length]) for length in lengths),
    ]


# --- Structures by hand ---


def _offsets(content: bytes, key: str) -> dict[str, int]:
    """Where the parts of an object's header lie: {kind of message: place of its content}."""
    with h5py.File(io.BytesIO(content)) as file:
        address = h5py.h5o.get_info(file[key].id).addr
    found = {"header": address}
    (length,) = struct.unpack_from("<I", content, address + 8)
    blocks = [(address + 16, length)]
    names = {0x01: "space", 0x03: "type", 0x08: "layout", 0x0C: "attribute", 0x11: "group"}
    for start, length in blocks:
        at = start
        while at + 8 <= start + length:
            kind, size = struct.unpack_from("<HH", content, at)
            if kind == 0x10:
                blocks.append(struct.unpack_from("<QQ", content, at + 8))
            found[names.get(kind, str(kind))] = at + 8
            at += 8 + size
    return found


def _at(place: int) -> int:
    """The address that stands at `place` of `BASE`."""
    return struct.unpack_from("<Q", BASE, place)[0]


def _patched(content: bytes, at: int, layout: str, *values: Any) -> bytes:
    made = bytearray(content)
    struct.pack_into(layout, made, at, *values)
    return bytes(made)


BASE = hdf5(nothing)
ROOT = _offsets(BASE, "/")
FIRST, SECOND = (_offsets(BASE, f"layers/a/vars/{key}") for key in "01")
TREE, HEAP = _at(ROOT["group"]), _at(ROOT["group"] + 8)
LEAF, SEGMENT = _at(TREE + 32), _at(HEAP + 24)


def patches() -> list[tuple[str, str, tuple]]:
    """(what is wrong, what is said, (where, how, what is written there))."""
    group, child = ROOT["group"], LEAF + 8 + 8
    header, space, kind, layout = (FIRST[part] for part in ("header", "space", "type", "layout"))
    other = _at(SECOND["layout"] + 2)
    attribute = _offsets(BASE, "layers/a/vars")["attribute"]
    assert BASE[attribute + 8 : attribute + 13] == b"name\0"
    value = attribute + 8 + 8 + 24 + 8
    texts = _at(value + 4)
    shape, larger, overlap = (
        "has 24 bytes, but the shape",
        "is larger than the file",
        "arrays that overlap",
    )
    in_circles = "structures that overlap|more HDF5"
    in_itself = (0x10, 24, 0, space - 8, 32)
    return [
        # The tree of the entries, and their names.
        ("a tree that is a leaf", "no tree of entries", (group, "<Q", LEAF)),
        ("a tree nowhere", LOST, (group, "<Q", 2**64 - 1)),
        ("a tree of 65,535", LOST, (TREE + 6, "<H", 65_535)),
        ("a leaf of 65,535", LOST, (LEAF + 6, "<H", 65_535)),
        ("names nowhere", LOST, (group + 8, "<Q", 2**63)),
        ("names elsewhere", "has no names", (group + 8, "<Q", TREE)),
        ("4 EB of names", LOST, (HEAP + 8, "<Q", 2**62)),
        ("a name outside", OWN, (LEAF + 8, "<Q", 2**62)),
        ("a name of nothing", OWN, (SEGMENT + 8, "<6s", bytes(6))),
        ("a path as name", OWN, (SEGMENT + 8, "<6s", b"a/../b")),
        ("a name that is no UTF-8", "codec can't decode", (SEGMENT + 8, "<B", 255)),
        ("an entry nowhere", LOST, (child, "<Q", 2**64 - 1)),
        ("an entry that is the root", TWICE, (child, "<Q", ROOT["header"])),
        ("an entry that is a soft link", "points elsewhere", (child + 8, "<I", 2)),
        ("a root nowhere", LOST, (64, "<Q", 2**64 - 1)),
        # The header of an array.
        ("a header of 4 GB", LOST, (header + 8, "<I", 2**32 - 1)),
        ("an empty header", "neither group nor array", (header + 8, "<I", 0)),
        ("another header", NEWER, (header, "<B", 2)),
        ("a message of 64 kB", LOST, (space - 6, "<H", 65_528)),
        ("two spaces", "is described twice", (kind - 8, "<H", 1)),
        ("an unknown message", "messages of 0x99", (kind - 8, "<H", 0x99)),
        ("a shared type", "named type, or shares", (kind - 4, "<B", 2)),
        ("an unknown type", "holds an unknown type", (kind, "<B", 0x1F)),
        (
            "a header in itself",
            in_circles,
            (space - 8, "<HHB3xQQ", *in_itself),
        ),
        # Its shape and place.
        ("another shape", shape, (space + 8, "<Q", 7)),
        ("2^63 elements", shape, (space + 8, "<Q", 2**63)),
        ("2^64 bytes", "bytes, but the shape", (layout + 10, "<Q", 2**64 - 1)),
        ("past the end", larger, (layout + 2, "<Q", len(BASE) - 23)),
        ("at 2^64", larger, (layout + 2, "<Q", 2**64 - 1)),
        ("one place for two", overlap, (layout + 2, "<Q", other)),
        ("half of another", overlap, (layout + 2, "<Q", other - 4)),
        # Texts, and the start of the file.
        ("a text nowhere", LOST, (value + 4, "<Q", 2**64 - 1)),
        ("a text elsewhere", "texts that are not where", (value + 4, "<Q", TREE)),
        ("a heap of texts of 3 bytes", LOST, (texts + 8, "<Q", 3)),
        ("a heap of texts of 2^63", LOST, (texts + 8, "<Q", 2**63)),
        ("sizes of 4 bytes", NEWER, (13, "<B", 4)),
        ("a base address", NEWER, (24, "<Q", 512)),
    ]


def _node(level: int, children: list[int]) -> bytes:
    head = struct.pack("<4sBBHQQ", b"TREE", 0, level, len(children), 2**64 - 1, 2**64 - 1)
    body = b"".join(struct.pack("<QQ", 0, child) for child in children) + struct.pack("<Q", 8)
    return (head + body).ljust(544, b"\0")


def _with_tree(nodes: list[bytes]) -> bytes:
    """With `nodes` behind the file, the last of them the root of the tree."""
    made = BASE + b"".join(nodes)
    made = _patched(made, 40, "<Q", len(made))  # an end of the file that fits
    return _patched(made, ROOT["group"], "<Q", len(BASE) + 544 * (len(nodes) - 1))


def _levels(count: int) -> list[bytes]:
    """Each node 32 times in the next one."""
    places = [LEAF, *(len(BASE) + 544 * level for level in range(count))]
    return [_node(level, [places[level]] * 32) for level in range(count)]


def trees() -> list[Row]:
    own = "structures that overlap|its own"
    itself = "no tree|no entries|overlap"
    return [
        ("32^3 entries", f"{own}|more HDF5", _with_tree(_levels(3))),
        ("32^8 entries", f"{own}|more HDF5", _with_tree(_levels(8))),
        ("32^200 entries", f"{own}|more HDF5", _with_tree(_levels(200))),
        ("32 times one leaf", own, _with_tree([_node(0, [LEAF] * 32)])),
        ("a tree of itself, 0", itself, _with_tree([_node(0, [len(BASE)] * 2)])),
        ("a tree of itself, 1", itself, _with_tree([_node(1, [len(BASE)] * 2)])),
        ("a tree of itself, 255", itself, _with_tree([_node(255, [len(BASE)] * 2)])),
    ]
