"""Weight files of every format, written byte by byte: the good ones, and pieces to change."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import h5py
import numpy as np

# --- Pickle ---


def text(value: str) -> bytes:
    encoded = value.encode("utf-8", "surrogatepass")
    return b"X" + struct.pack("<I", len(encoded)) + encoded


def number(value: int) -> bytes:
    if -(2**31) <= value < 2**31:
        return b"J" + struct.pack("<i", value)
    length = value.bit_length() // 8 + 1
    return b"\x8a" + bytes([length]) + value.to_bytes(length, "little", signed=True)


def many(*parts: bytes) -> bytes:
    """A tuple."""
    return b"(" + b"".join(parts) + b"t"


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def storage(
    key: bytes = text("0"),
    numel: bytes = number(4),
    kind: bytes = name("torch", "FloatStorage"),
    first: bytes = text("storage"),
    more: bytes = b"",
) -> bytes:
    return many(first, kind, key, text("cpu"), numel, more) + b"Q"


def sizes(*values: int) -> bytes:
    return many(*map(number, values))


def tensor(
    inside: bytes = storage(),
    offset: bytes = number(0),
    shape: bytes = sizes(4),
    strides: bytes = sizes(1),
    more: bytes = b"\x89" + name("collections", "OrderedDict") + b")R",
) -> bytes:
    rebuild = name("torch._utils", "_rebuild_tensor_v2")
    return rebuild + many(inside, offset, shape, strides, more) + b"R"


def dictionary(entries: dict[str, bytes]) -> bytes:
    return b"}(" + b"".join(text(key) + value for key, value in entries.items()) + b"u"


def saved(extra: bytes = b"N", weight: bytes | None = None, weights: dict | None = None) -> bytes:
    """The pickle of {"state_dict": {"w": weight}, "extra": extra}."""
    state = dictionary(weights or {"w": tensor() if weight is None else weight})
    return b"\x80\x02" + dictionary({"state_dict": state, "extra": extra}) + b"."


NUMBERS = struct.pack("<4f", 1, 2, 3, 4)


def in_zip(pickle: bytes, numbers: dict[str, bytes] | None = None) -> bytes:
    """The container of torch since 1.6."""
    numbers = {"0": NUMBERS} if numbers is None else numbers
    return stored(
        [
            Part("archive/data.pkl", pickle),
            Part("archive/byteorder", b"little"),
            *(Part(f"archive/data/{key}", content) for key, content in numbers.items()),
            Part("archive/version", b"3\n"),
        ]
    )


MAGIC = b"\x80\x02\x8a\x0a" + 0x1950A86A20F9469CFC6C.to_bytes(10, "little") + b"."
LITTLE = b"\x80\x02}(" + text("little_endian") + b"\x88" + text("protocol_version") + number(1001)


def in_older(
    pickle: bytes,
    numbers: bytes = struct.pack("<q", 4) + NUMBERS,
    keys: bytes = b"\x80\x02](" + text("0") + b"e.",
    protocol: bytes = b"\x80\x02" + number(1001) + b".",
    machine: bytes = LITTLE + b"u.",
) -> bytes:
    """The container of torch before 1.6."""
    return MAGIC + protocol + machine + pickle + keys + numbers


# --- Zip ---


@dataclass(frozen=True)
class Part:
    """A member of an archive; what is None is told as it is."""

    name: str
    content: bytes
    crc: int | None = None
    size: int | None = None
    packed: int | None = None
    offset: int | None = None
    method: int = 0
    flags: int = 0
    version: int = 20
    extra: bytes = b""
    local: bytes | None = None
    local_method: int | None = None
    local_flags: int | None = None
    local_extra: int = 0


def stored(
    parts: list[Part], before: bytes = b"", between: bytes = b"", end: bytes | None = None
) -> bytes:
    """A zip archive.

    Args:
        parts: Its members.
        before: Precedes the first member, and is counted in the offsets.
        between: Stands between directory and end.
        end: Replaces the end record.
    """
    out, directory = bytearray(before), bytearray()
    for part in parts:
        called = part.name.encode()
        crc = zlib.crc32(part.content) if part.crc is None else part.crc
        size = len(part.content) if part.size is None else part.size
        packed = size if part.packed is None else part.packed
        offset = len(out) if part.offset is None else part.offset
        local = called if part.local is None else part.local
        method = part.method if part.local_method is None else part.local_method
        flags = part.flags if part.local_flags is None else part.local_flags
        shown = [n & 0xFFFFFFFF for n in (crc, packed, size)]
        head = (b"PK\x03\x04", part.version, flags, method, 0, 0, *shown)
        out += struct.pack("<4s5H3I2H", *head, len(local), part.local_extra) + local
        out += part.content
        head = (b"PK\x01\x02", 20, part.version, part.flags, part.method, 0, 0, *shown)
        tail = (len(called), len(part.extra), 0, 0, 0, 0, offset & 0xFFFFFFFF)
        directory += struct.pack("<4s6H3I5H2I", *head, *tail) + called + part.extra
    counts = (0, 0, len(parts) & 0xFFFF, len(parts) & 0xFFFF)
    record = struct.pack("<4s4H2IH", b"PK\x05\x06", *counts, len(directory), len(out), 0)
    return bytes(out + directory) + between + (record if end is None else end)


# --- HDF5 ---


def hdf5(fill: Callable[[Any], Any], **options: Any) -> bytes:
    """A file with the arrays `layers/a/vars/0` and `1` of Keras 3, and what `fill` puts in it."""
    content = io.BytesIO()
    with h5py.File(content, "w", **options) as file:
        file["layers/a/vars/0"] = np.arange(6, dtype=np.float32)
        file["layers/a/vars/1"] = np.full(6, 7, np.float32)
        file["layers/a/vars"].attrs["name"] = "first"
        fill(file)
    return content.getvalue()


def nothing(file: Any) -> None:
    """Leaves the file as it is."""


VAN_CONFIG: dict[str, Any] = {
    "module": "van_classification_tensorflow.model.van",
    "class_name": "VAN",
    "config": {"depths": [1], "dtype": {"module": "keras", "class_name": "DTypePolicy"}},
    "registered_name": "van_classification_tensorflow>VAN",
}


def in_keras(config: Any = VAN_CONFIG, weights: bytes | None = None, **more: bytes) -> bytes:
    config = config if isinstance(config, bytes) else json.dumps(config).encode()
    weights = hdf5(nothing) if weights is None else weights
    members = {"metadata.json": b"{}", "config.json": config, "model.weights.h5": weights}
    return stored([Part(called, content) for called, content in {**members, **more}.items()])


# --- safetensors ---


def in_safetensors(header: Any, numbers: bytes = NUMBERS, length: int | None = None) -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + numbers


def entry(dtype: Any = "F32", shape: Any = (4,), offsets: Any = (0, 16)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


# --- Good files ---


def good() -> dict[str, bytes]:
    """What the payloads are made from, with everything beside the weights that is allowed."""
    harmless = many(
        # Attributes set on what is not kept are not kept.
        name("argparse", "Namespace") + b")\x81" + dictionary({"__class__": text("x")}) + b"b",
        name("argparse", "Namespace") + b")\x81" + dictionary({"__setstate__": b"N"}) + b"b",
        name("collections", "OrderedDict") + b")R" + dictionary({"__reduce__": b"N"}) + b"b",
        name("collections", "defaultdict") + name("builtins", "dict") + b"\x85R",
        text("torch") + text("Size") + b"\x93" + many(sizes(1, 2)) + b"R",
        name("torch", "device") + text("cpu") + b"\x85R",
        name("torch", "Size") + b"r\xff\xff\xff\xff0"[:-1],
        b"j\xff\xff\xff\xff)\x85R",
        number(2**63 - 1) + number(-(2**62)) + b"G" + bytes(8) + b"K\x01M\x01\x01\x88\x89N",
        b"C\x02\xff\xfeB\x02\x00\x00\x00\xff\xfeU\x01aX\x01\x00\x00\x00a\x8c\x01a](NN\x85e",
    )
    ours, norm = "van_classification_tensorflow>", {"epsilon": 1e-6, "center": True, "scale": True}
    steps = [
        ("images", "InputLayer", "", {}),
        ("patch_embed1", "OverlapPatchEmbed", ours, {"kernel_size": 7, "stride": 4}),
        ("block1_0", "Block", ours, {}),
        ("norm1", "LayerNormalization", "", {**norm, "axis": -1}),
        ("pool", "GlobalAveragePooling2D", "", {"data_format": "channels_last"}),
        ("mine", "Dense", "", {"units": 4}),
    ]
    layers: list[dict[str, Any]] = []
    for called, kind, package, config in steps:
        before = [layer["name"] for layer in layers[-1:]]
        tensors = [{"config": {"keras_history": [one, 0, 0]}} for one in before]
        layers.append(
            {
                "module": "keras.layers",
                "class_name": kind,
                "registered_name": package + kind if package else None,
                "config": {"name": called, **config},
                "name": called,
                "inbound_nodes": [{"args": tensors}] if tensors else [],
            }
        )
    graph = {
        "module": "keras.src.models.functional",
        "class_name": "Functional",
        "registered_name": None,
        "config": {"layers": layers, "output_layers": [["mine", 0, 0]]},
    }
    return {
        "zip": in_zip(saved(harmless)),
        "older": in_older(saved(harmless)),
        "hdf5": hdf5(lambda file: file.create_group("layers/b/vars")),
        "keras": in_keras(),
        "keras graph": in_keras(graph),
        "safetensors": in_safetensors({"w": entry(), "__metadata__": {"a": "b"}}),
    }
