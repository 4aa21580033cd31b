"""Weight files as an attacker would make them; made without torch.

`payloads(folder)` gives all of them. Each is a good file but for one thing, so that it can only
be refused for that thing; `good()` gives the good ones.
"""

from __future__ import annotations

import io
import json
import os
import pickletools
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from van_classification_tensorflow.weights.formats import torch as torch_file


@dataclass(frozen=True)
class Payload:
    """A file to be refused.

    Args:
        name: What is wrong with it.
        says: Regular expression that the refusal has to match.
        content: Its bytes, or a function that makes it at a path.
        reader: What has to refuse it: `read_checkpoint` if not `read_weights`.
    """

    name: str
    says: str
    content: bytes | Callable[[Path], Any]
    reader: str = "read_checkpoint"

    def make(self, path: Path) -> None:
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        else:
            self.content(path)


def payloads(folder: Path) -> Iterator[tuple[str, Payload]]:
    """(family, payload) of all.

    Args:
        folder: Where nothing may be opened nor made while they are read: some point there.
    """
    families = {
        "code": code(folder),
        "opcodes": opcodes(),
        "bombs": bombs(),
        "tensors": tensors(),
        "zip": zips(),
        "older": older(),
        "hdf5": hdf5s(folder),
        "keras": keras(folder),
        "safetensors": safetensors(),
        "no files": no_files(),
    }
    for family, found in families.items():
        for payload in found:
            yield family, payload


def decoys(folder: Path) -> list[Path]:
    """Files that payloads point to; opening one can be noticed, opening the pipe never ends."""
    pipe, target = folder / "pipe", folder / "target.h5"
    os.mkfifo(pipe)
    with h5py.File(target, "w") as file:
        file["array"] = np.ones(4, np.float32)
    return [pipe, target]


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


# --- Code ---

# (module, attribute, arguments); every one runs something, were it looked up and called.
ARGUMENTS = {
    "command": lambda mark: text(f"touch {mark}"),
    "source": lambda mark: text(f"open({str(mark)!r}, 'w')"),
    "path": lambda mark: text(str(mark)) + text("w"),
    "list": lambda mark: b"](" + text("touch") + text(str(mark)) + b"e",
    "bytes": lambda mark: b"C" + bytes([len(code_as_pickle(mark))]) + code_as_pickle(mark),
    "word": lambda mark: text("system"),
    "none": lambda mark: b"",
}


def code_as_pickle(mark: Path) -> bytes:
    """A pickle that makes the file `mark`."""
    return b"\x80\x02cos\nsystem\n" + text(f"touch {mark}") + b"\x85R."


CALLS = [
    ("os", "system", "command"),
    ("posix", "system", "command"),
    ("nt", "system", "command"),
    ("os", "popen", "command"),
    ("os", "remove", "path"),
    ("builtins", "eval", "source"),
    ("builtins", "exec", "source"),
    ("__builtin__", "eval", "source"),
    ("__builtin__", "execfile", "path"),
    ("builtins", "open", "path"),
    ("io", "open", "path"),
    ("builtins", "getattr", "word"),
    ("builtins", "__import__", "word"),
    ("builtins", "compile", "source"),
    ("builtins", "dict.fromkeys", "word"),
    ("subprocess", "Popen", "list"),
    ("subprocess", "check_output", "list"),
    ("pickle", "loads", "bytes"),
    ("_pickle", "loads", "bytes"),
    ("marshal", "loads", "bytes"),
    ("torch.storage", "_load_from_bytes", "bytes"),
    ("torch", "load", "path"),
    ("torch.jit", "load", "path"),
    ("torch.hub", "load", "path"),
    ("numpy", "load", "path"),
    ("numpy.core.multiarray", "_reconstruct", "word"),
    ("joblib", "load", "path"),
    ("keras.models", "load_model", "path"),
    ("runpy", "run_path", "path"),
    ("runpy", "_run_code", "source"),
    ("importlib", "import_module", "word"),
    ("ctypes", "CDLL", "path"),
    ("functools", "partial", "word"),
    ("operator", "attrgetter", "word"),
    ("operator", "methodcaller", "word"),
    ("types", "FunctionType", "none"),
    ("types", "CodeType", "none"),
    ("pathlib", "PosixPath", "path"),
    ("socket", "create_connection", "word"),
    ("shutil", "rmtree", "path"),
    ("webbrowser", "open", "word"),
    ("pty", "spawn", "list"),
    ("code", "interact", "none"),
    ("pdb", "Pdb", "none"),
    ("timeit", "timeit", "source"),
    ("sys", "modules", "none"),
    ("os", "environ", "none"),
    ("copyreg", "_reconstructor", "none"),
    ("copyreg", "__newobj__", "none"),
    ("__main__", "VAN", "none"),
    ("models.van", "VAN", "none"),
    ("torch.nn.modules.conv", "Conv2d", "none"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__", "none"),
    ("torch._utils", "_rebuild_tensor_v2.__globals__.__getitem__", "word"),
    ("torch._utils", "_rebuild_tensor_v3", "none"),
    ("torch._utils", "_import_dotted_name", "word"),
    ("torch._tensor", "_rebuild_from_type_v2", "none"),
    ("collections", "OrderedDict.__init__.__globals__", "none"),
    ("torch", "Size.__class__", "none"),
    ("torch", "Size ", "none"),
    ("torch ", "Size", "none"),
    ("torch", "size", "none"),
    ("", "os.system", "command"),
    ("torch Size", "", "none"),
    ("torch.Size", "__new__", "none"),
    ("t\u043erch", "Size", "none"),  # a Cyrillic o
    ("torch\u200b", "Size", "none"),
]


def routes(module: str, attribute: str, arguments: bytes) -> dict[str, tuple[str, bytes]]:
    """{way of naming and calling: (what the refusal says, instructions that leave one value)}."""
    named, packed = name(module, attribute), b"(" + arguments + b"t"
    words = text(module) + text(attribute)
    raw = [b"U" + bytes([len(word.encode())]) + word.encode() for word in (module, attribute)]
    object_ = "the Python object '.*nothing was run"
    space = name("argparse", "Namespace") + b")\x81"
    ordered = name("collections", "OrderedDict") + b")R"
    return {
        "GLOBAL REDUCE": (object_, named + packed + b"R"),
        "STACK_GLOBAL REDUCE": (object_, words + b"\x93" + packed + b"R"),
        "Python 2 text": (object_, b"".join(raw) + b"\x93" + packed + b"R"),
        "STRING": (
            r"instruction b'S'",
            f"S'{module}'\nS'{attribute}'\n".encode() + b"\x93" + packed + b"R",
        ),
        "INST": (r"instruction b'i'", b"(" + arguments + b"i" + named[1:]),
        "OBJ": (object_, b"(" + named + arguments + b"o"),
        "NEWOBJ": (object_, named + packed + b"\x81"),
        "NEWOBJ_EX": (object_, named + packed + b"}\x92"),
        "text from the memo": (
            object_,
            b"](" + text(module) + b"q\x05" + text(attribute) + b"q\x06h\x05h\x06\x93e",
        ),
        "object from the memo": (object_, b"](" + named + b"q\x07h\x07" + packed + b"Re"),
        "never called": (object_, named),
        "key": (object_, b"}" + named + b"Ns"),
        "BUILD __setstate__": (
            object_,
            space + b"}" + text("__setstate__") + named + b"sb" + arguments + b"b",
        ),
        "BUILD __dict__": (object_, ordered + b"}" + text("__dict__") + named + b"sb"),
        "BUILD __class__": (object_, tensor() + b"}" + text("__class__") + named + b"sb"),
        "BUILD with slots": (object_, space + b"N}" + text("a") + named + b"s\x86b"),
        "default factory": (object_, name("collections", "defaultdict") + named + b"\x85R"),
        "argument of a name that is allowed": (
            object_,
            name("torch", "device") + named + packed + b"R\x85R",
        ),
        "hooks of a tensor": (object_, tensor(more=b"\x89" + named + packed + b"R")),
        "type of a storage": (object_, storage(kind=named)),
        "PERSID": (r"instruction b'P'", b"P" + words[5:60].replace(b"\n", b"") + b"\n"),
        "BINPERSID": (object_, named + packed + b"RQ"),
    }


def code(folder: Path) -> Iterator[Payload]:
    mark = folder / "executed"
    for module, attribute, kind in CALLS:
        ways = routes(module, attribute, ARGUMENTS[kind](mark))
        for route, (says, extra) in ways.items():
            called = f"{module}.{attribute} by {route}"
            yield Payload(called, says, in_zip(saved(extra)))
            yield Payload(f"{called}, older", says, in_older(saved(extra)))
    for code_, length in ((b"\x82", 1), (b"\x83", 2), (b"\x84", 4)):
        extra = code_ + (1).to_bytes(length, "little") + text("x") + b"\x85R"
        yield Payload(f"EXT{length}", "the pickle instruction", in_zip(saved(extra)))
    whole = name("models.van", "VAN") + b")\x81}(" + text("training") + b"\x89ub"
    says = r"the Python object 'models\.van\.VAN'"
    yield Payload("a whole model", says, in_zip(b"\x80\x02" + whole + b"."))
    yield Payload("a whole model, older", says, in_older(b"\x80\x02" + whole + b"."))
    for where in ("protocol", "machine", "keys"):
        run = {where: code_as_pickle(mark)}
        yield Payload(
            f"code in the {where}", "the Python object 'os.system", in_older(saved(), **run)
        )
    escape = name("os", "\x1b[2J\x07system")
    yield Payload("escapes in a name", r"os\.\\x1b\[2J\\x07system", in_zip(saved(escape)))
    yield Payload("a text called", "a call of something", in_zip(saved(text("os.system") + b")R")))
    yield Payload("a tensor called", "a call of something", in_zip(saved(tensor() + b")R")))
    yield Payload(
        "a type called", "a call of something", in_zip(saved(name("torch", "float32") + b")R"))
    )
    yield Payload("called with a list", "a call of", in_zip(saved(name("torch", "Size") + b"]R")))
    for what, target in {
        "tensor": tensor(),
        "storage": storage(),
        "list": b"]",
        "tuple": b")",
        "str": text("a"),
        "int": b"K\x01",
        "function": name("torch", "Size"),
    }.items():
        says = f"attributes set on a (?i:{what})"
        yield Payload(f"BUILD on a {what}", says, in_zip(saved(target + b"}b")))
    ordered = name("collections", "OrderedDict") + b")R"
    for what, state in {"a tuple": b"N}\x86", "a text": text("a"), "a list": b"]"}.items():
        extra = ordered + state + b"b"
        yield Payload(f"BUILD of {what}", "attributes set on a dict", in_zip(saved(extra)))
    for what, found in {
        "None": b"N",
        "a text": text("0"),
        "a number": b"K\x00",
        "an empty tuple": b")",
        "a list": b"]",
        "a tensor": tensor(),
        "four of five": many(
            text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu")
        ),
        "another word": many(text("module"), *[b"N"] * 4),
        "bytes": many(b"C\x07storage", *[b"N"] * 4),
    }.items():
        says = "a persistent id that is no storage"
        yield Payload(f"BINPERSID of {what}", says, in_zip(saved(found + b"Q")))
    for what, found in {
        "type a text": storage(kind=text("FloatStorage")),
        "type a function": storage(kind=name("torch", "Size")),
        "type None": storage(kind=b"N"),
        "key a number": storage(key=b"K\x00"),
        "key None": storage(key=b"N"),
        "key a path": storage(key=text("../../etc/passwd")),
        "key with NUL": storage(key=text("0\0")),
        "key in other digits": storage(key=text("٣")),
        "key without end": storage(key=text("1" * 1_000_000)),
        "negative length": storage(numel=number(-1)),
        "length of 2^48": storage(numel=number(2**48)),
        "length a truth": storage(numel=b"\x88"),
        "length a float": storage(numel=b"G" + struct.pack(">d", 4)),
        "length a text": storage(numel=text("4")),
    }.items():
        says = "a storage whose type, key or length is not"
        yield Payload(f"storage, {what}", says, in_zip(saved(found)))
    view = storage(more=many(text("1"), number(0), number(2)))
    yield Payload("storage, a view", "a view of another", in_zip(saved(view)))


def opcodes() -> Iterator[Payload]:
    """Every byte that is no instruction of ours, and every instruction where it does not fit."""
    known = {ord(op.code): op.name for op in pickletools.opcodes}
    ours = {*torch_file._INSTRUCTIONS, ord(".")}
    for number_ in sorted(set(range(256)) - ours):
        called = known.get(number_, "no opcode")
        says = f"the pickle instruction {bytes([number_])!r}, which no".replace("\\", "\\\\")
        says = "".join(f"\\{c}" if c in "()[]{}|^$*+?." else c for c in says)
        pickle = saved(b"NN" + bytes([number_]) + b"1\n1\n" + bytes(8))
        yield Payload(f"{number_:#04x} {called}", says, in_zip(pickle))
        yield Payload(f"{number_:#04x} {called}, older", says, in_older(pickle))
    for number_ in sorted(ours):
        # Alone: on an empty stack, without its argument.
        yield Payload(
            f"{number_:#04x} {known[number_]} alone",
            "cut short|empty stack|promises|mark|leaves|holds a|name of|memo|at its top|46",
            in_zip(b"\x80\x02" + bytes([number_]) + (b"." if number_ != ord(".") else b"")),
        )
    for version in (0, 1, 6, 255):
        says = f"pickle protocol {version}; expected"
        yield Payload(f"protocol {version}", says, in_zip(b"\x80" + bytes([version]) + b"N."))


# --- Bombs ---


def bombs() -> Iterator[Payload]:
    def small(called: str, says: str, extra: bytes) -> Payload:
        return Payload(called, says, in_zip(saved(extra)))

    def both(called: str, says: str, extra: bytes) -> Iterator[Payload]:
        yield small(called, says, extra)
        yield Payload(f"{called}, older", says, in_older(saved(extra)))

    huge, steps = b"\xff\xff\xff\xff", "a pickle of more than 750,000 steps"
    yield small("memo entry that was never written", "memo entry 4,294,967,295", b"j" + huge)
    yield small("memo entry below it", "memo entry 7", b"Nr" + huge + b"h\x07")
    for called, start in {
        "BINUNICODE": b"X" + huge,
        "BINBYTES": b"B" + huge,
        "SHORT_BINUNICODE": b"\x8c\xff",
        "SHORT_BINBYTES": b"C\xff",
        "SHORT_BINSTRING": b"U\xff",
        "LONG1": b"\x8a\x08",
        "FRAME": b"\x95" + (4 << 30).to_bytes(8, "little"),
        "FRAME of 2^64": b"\x95" + b"\xff" * 8,
    }.items():
        pickle = b"\x80\x04" + start + b"."
        yield Payload(f"{called} without its bytes", "promises .* bytes more", in_zip(pickle))
    yield small("LONG1 of 255 bytes", "an integer of 255 bytes", b"\x8a\xff" + b"\x7f" * 255)
    yield small("a name of 300 bytes", "a name of more than 255", name("a" * 300, "b"))
    yield small("text that is no UTF-8", "not UTF-8", b"X\x02\x00\x00\x00\xff\xfe")

    # Instructions without end.
    for called, piece in {
        "NONE": b"N",
        "MARK": b"(",
        "EMPTY_LIST": b"]",
        "EMPTY_DICT": b"}",
        "empty tuples": b"(t",
        "tuples of tuples": b"N\x85\x85",
        "BINGET": b"h\x00",
        "MEMOIZE": b"N\x94",
        "text": b"U\x01a",
        "dictionaries": b"}NNs",
        "lists": b"]Na",
        "storages": b"h\x03Q",
        "tensors": b"h\x01h\x02R",
        "names": b"ctorch\nSize\n",
        "names from texts": b"h\x04h\x05\x93",
        "objects": b"h\x06)R",
    }.items():
        memo = name("torch._utils", "_rebuild_tensor_v2") + b"q\x01"
        place = many(
            text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), b"K\x04"
        )
        memo += place + b"q\x03" + many(storage(), b"K\x00", sizes(*[1] * 8), sizes(*[1] * 8))
        memo += b"q\x02" + text("torch") + b"q\x04" + text("Size") + b"q\x05"
        memo += name("collections", "OrderedDict") + b"q\x06"
        yield small(f"{called} without end", steps, b"(Nq\x00" + memo + piece * 760_000)
    yield from both("NEWTRUE without end", steps, b"(" + b"\x88" * 760_000 + b"t")
    yield small("a key set without end", steps, b"Nq\x00}(" + b"h\x00h\x00" * 400_000 + b"u\x86")
    repeated = b"Nq\x00(" + (b"(" + b"h\x00" * 20_000 + b"t") * 40
    yield small("huge tuples of one thing", steps, repeated)
    growing = b"Nq\x00]q\x01" + (b"(" + b"h\x00" * 1000 + b"e") * 800
    yield small("one list grows without end", steps, growing)
    shared = b"(" + b"N" * 100_000 + b"tq\x00](" + b"h\x00" * 700_000 + b"e\x86"
    yield small("one tuple held very often", steps, shared)
    in_turn = b"\x80\x02(" + b"N" * 400_000 + b"t."
    pickles = {"protocol": in_turn, "machine": in_turn}
    yield Payload("pickle after pickle", "steps|protocol", in_older(saved(), **pickles))
    inside = b"\x80\x02}(" + text("little_endian") + b"\x88" + text("a") + in_turn[2:-1] + b"u."
    grown = in_older(saved(in_turn[2:-1]), machine=inside)
    yield Payload("steps of two pickles", steps, grown)

    # Depth, circles, and values that are small here and endless once they are shown.
    deep = "containers more than 64 deep"
    for called, piece in {
        "tuples": b"N" + b"\x85" * 100_000,
        "lists": b"(" + b"]" * 100_000 + b"a" * 99_999 + b"t",
        "dictionaries": b"}N" * 100_000 + b"N" + b"s" * 100_000,
        "named dictionaries": b"N"
        + (b"q\x00" + name("collections", "OrderedDict") + b")RNh\x00s") * 70,
    }.items():
        yield from both(f"{called} 100,000 deep", deep, piece)
    changed = "a container that changes after it was put into another"
    down = b"".join(b"]q" + bytes([i]) + b"ah" + bytes([i]) for i in range(1, 200))
    yield small("lists filled from the outside", changed, b"](]q\x00h\x00" + down + b"e")
    yield small("a list in itself", changed, b"]q\x00h\x00a")
    yield small("a list in itself, by many", changed, b"]q\x00(NNh\x00e")
    yield small("a dictionary in itself", changed, b"}q\x00Nh\x00s")
    yield small("a circle of two", changed, b"]q\x00]q\x01h\x00ah\x00h\x01a\x86")
    doubled = b"]q\x00" + b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
    )
    lone = b"(" + doubled + b"t"  # 2^60 lists, were they written out
    yield small("a key of 2^60 parts", "a tuple as a key", b"}" + lone + b"Ns")
    yield small("a name of 2^60 parts", "the Python object 'tuple.tuple", lone * 2 + b"\x93")
    yield small("an id of 2^60 parts", "a persistent id", lone + b"Q")
    yield Payload("a root of 2^60 parts", "it holds a tuple", in_zip(b"\x80\x02" + lone + b"."))
    for where, says in {
        "protocol": "another torch.save protocol",
        "machine": "big-endian",
        "keys": "the list of storages",
    }.items():
        pickle = {where: b"\x80\x02" + (b"]" + lone + b"a" if where == "keys" else lone) + b"."}
        yield Payload(f"{where} of 2^60 parts", says, in_older(saved(), **pickle))
    long = b"\x80\x02" + text("\x1b" * 5_000_000) + b"."
    yield Payload(
        "a protocol of 5 MB", "another torch.save protocol", in_older(saved(), protocol=long)
    )

    # Keys.
    for called, key in {
        "a list": b"]",
        "a dict": b"}",
        "a tuple": b"NN\x86",
        "a bytes": b"C\x01a",
        "a float": b"G" + bytes(8),
        "a Tensor": tensor(),
        "a Inert": name("torch", "float32"),
    }.items():
        yield small(f"{called} as key", f"{called} as a key", b"}" + key + b"Ns")
    prime = 2**61 - 1
    collide = b"".join(number(i * prime) + b"N" for i in range(1, 20_000))
    yield small("integers of one hash", "an integer of 9 bytes", b"}(" + collide + b"u")
    floats = b"".join(
        b"G" + struct.pack(">d", (1 + 2**9 + 2**18) * 2.0 ** (61 * i)) + b"N"
        for i in range(-10, 10)
    )
    yield small("floats of one hash", "a float as a key", b"}(" + floats + b"u")
    yield small("a key without value", "a key without a value", b"}(NNNu")
    yield small("items set on a list", "items set on a list", b"](NNu")
    yield small("items of a mark", "a mark where|items set on a Mark", b"(NNs")
    yield small("a mark in the memo", "a mark where a value", b"(q\x00")
    yield small("a mark as argument", "a mark where a value", name("torch", "Size") + b"(R")
    yield small("a list appended to a dict", "values appended to a dict", b"}Na")
    yield small(
        "an OrderedDict of items",
        "an OrderedDict with",
        name("collections", "OrderedDict") + b"]\x85R",
    )
    yield small(
        "a size that is no tuple", "Size that is no tuple", name("torch", "Size") + b"N\x85R"
    )
    yield small("two values left", "leaves 4 values|empty stack|key without", b"NN")
    yield Payload("a pickle of 17 MB", "data.pkl' has 17,", in_zip(saved() + bytes(17 << 20)))

    # Tensors in numbers.
    place = storage() + b"q\x01"
    tuples = number(0) + sizes(4) + sizes(1) + b"\x89NtR"
    rebuild = name("torch._utils", "_rebuild_tensor_v2") + b"q\x02"
    first = rebuild + b"(" + place + tuples

    def views(count: int, shown: Callable[[int], str], of: bytes = first) -> dict[str, bytes]:
        return {shown(0): of + b"q\x03", **{shown(i): b"h\x03" for i in range(1, count)}}

    flood = {f"t{i}": b"h\x02(h\x01" + tuples for i in range(1, 22_000)}
    yield Payload(
        "22,000 tiny tensors",
        "22,000 tensors; allowed",
        in_zip(saved(weights={"t": first, **flood})),
    )
    yield Payload(
        "20,001 names of one tensor",
        "20,001 tensors; allowed: 20,000",
        in_zip(saved(weights=views(20_001, str))),
    )
    wide = name("torch._utils", "_rebuild_tensor_v2") + b"("
    wide += storage(numel=number(500_000), kind=name("torch", "HalfStorage"))
    wide += number(0) + sizes(500_000) + sizes(1) + b"\x89NtR"
    yield Payload(
        "20,000 views of 1 MB",
        "tensors that share their numbers",
        in_zip(saved(weights=views(20_000, str, wide)), {"0": bytes(1_000_000)}),
    )
    each = {f"s{i}": tensor(storage(key=text(str(i)))) for i in range(15_000)}
    yield Payload(
        "15,000 storages", "numbers of storage '1' are missing", in_zip(saved(weights=each))
    )
    says = "is too long or not printable"
    for called, shown in {
        "of 1 MB": "a" * 1_000_000,
        "of 201 characters": "a" * 201,
        "with escapes": "\x1b[2J",
        "with a line end": "a\nb",
        "with half a character": "\ud800",
        "written backwards": "a\u202eb",
    }.items():
        yield Payload(f"a name {called}", says, in_zip(saved(weights={shown: tensor()})))
    # Names that a regular expression could take apart in many ways.
    port = views(15_000, lambda i: f"{i}" + "a/" * 95)
    port = {"patch_embed1/patch_embed1/x": port.pop(next(iter(port))), **port}
    numbers = {"0": NUMBERS, "1": bytes(600_000)}
    padding = {"padding": tensor(storage(text("1"), number(150_000)))}
    yield Payload(
        "names that fit in many ways",
        "not the weights of a VAN|not used by",
        in_zip(saved(weights={**port, **padding}), numbers),
        reader="read_weights",
    )
    blocks = views(15_000, lambda i: f"block1.{i}.mlp.fc1.weight")
    yield Payload(
        "15,000 blocks",
        "not the weights of a VAN|expected 4 axes",
        in_zip(saved(weights={**blocks, **padding}), numbers),
        reader="read_weights",
    )


# --- Tensors ---


def tensors() -> Iterator[Payload]:
    big, tuples = 2**40, "must be a tuple of at most 8 sizes >= 0"
    outside = "a tensor of .* elements, up to number"
    for called, says, weight in (
        ("a giant of stride 0", outside, tensor(shape=sizes(big), strides=sizes(0))),
        ("stride 0 in both axes", outside, tensor(shape=sizes(big, big), strides=sizes(0, 0))),
        ("overlapping views", outside, tensor(shape=sizes(3, 3), strides=sizes(0, 1))),
        ("2^40 elements", outside, tensor(shape=sizes(big))),
        ("2^384 elements", outside, tensor(shape=sizes(*[2**47] * 8), strides=sizes(*[1] * 8))),
        ("sizes of 2^48", tuples, tensor(shape=sizes(2**48))),
        ("a negative size", tuples, tensor(shape=sizes(-4))),
        ("two negative sizes", tuples, tensor(shape=sizes(-2, -2), strides=sizes(2, 1))),
        ("a negative stride", tuples, tensor(strides=sizes(-1))),
        ("a negative offset", "do not fit together", tensor(offset=number(-1))),
        ("a truth as offset", "do not fit together", tensor(offset=b"\x89")),
        ("a truth as size", tuples, tensor(shape=many(b"\x88"))),
        ("a float as size", tuples, tensor(shape=many(b"G" + struct.pack(">d", 4)))),
        ("a text as size", tuples, tensor(shape=many(text("4")))),
        ("a list of sizes", tuples, tensor(shape=b"]K\x04a")),
        ("no sizes", tuples, tensor(shape=b"N")),
        ("1000 axes", tuples, tensor(shape=sizes(*[1] * 1000), strides=sizes(*[1] * 1000))),
        ("more sizes than strides", "do not fit together", tensor(shape=sizes(2, 2))),
        ("past the end", outside, tensor(shape=sizes(5))),
        ("past the end by stride", outside, tensor(strides=sizes(2))),
        ("past the end by offset", outside, tensor(offset=number(1))),
        ("an empty one past the end", outside, tensor(offset=number(5), shape=sizes(0))),
        ("a tensor in a tensor", "without a storage", tensor(inside=tensor())),
        ("a number as storage", "without a storage", tensor(inside=b"K\x00")),
        (
            "too few arguments",
            "rebuilt from 1 arguments",
            name("torch._utils", "_rebuild_tensor_v2") + b"N\x85R",
        ),
        ("too many arguments", "rebuilt from 9 arguments", tensor(more=b"NNNNN")),
        (
            "a parameter of nothing",
            "a parameter that is no tensor",
            name("torch._utils", "_rebuild_parameter") + many(b"N", b"N", b"N") + b"R",
        ),
    ):
        yield Payload(called, says, in_zip(saved(weight=weight)))
        yield Payload(f"{called}, older", says, in_older(saved(weight=weight)))
    # Empty, with sizes whose product NumPy cannot hold.
    empty = tensor(shape=sizes(0, 2**47, 2**47), strides=sizes(1, 1, 1))
    yield Payload("an empty giant", "too big|large|dimension", in_zip(saved(weight=empty)))
    for called, other in {
        "types": storage(kind=name("torch", "DoubleStorage")),
        "lengths": storage(numel=number(5)),
    }.items():
        says = "storage '0' with two types or lengths"
        yield Payload(f"a key with two {called}", says, in_zip(saved(tensor(other))))
    for called, numbers, says in (
        ("missing", {}, "the numbers of storage '0' are missing"),
        ("too short", {"0": NUMBERS[:-1]}, r"should have 16 bytes; its member has 15"),
        ("too long", {"0": NUMBERS + b"\0"}, r"should have 16 bytes; its member has 17"),
        ("elsewhere", {"../data/0": NUMBERS}, "the numbers of storage '0' are missing"),
    ):
        yield Payload(f"numbers {called}", says, in_zip(saved(), numbers))
    unused = saved(storage(text("7"), number(2**40)))
    yield Payload("numbers missing that nothing uses", "storage '7' are missing", in_zip(unused))
    for called, says, pickle in (
        ("a list", "it holds a list", b"\x80\x02]."),
        ("a tensor", "it holds a tensor", b"\x80\x02" + tensor() + b"."),
        ("nothing", "it holds a nonetype", b"\x80\x02N."),
        ("an empty dictionary", "no tensors at its top", b"\x80\x02}."),
        ("numbers under numbers", "no tensors at its top", b"\x80\x02}K\x01K\x02s."),
        (
            "no weights",
            "no tensors at its top",
            b"\x80\x02" + dictionary({"epoch": b"K\x01"}) + b".",
        ),
        (
            "other weights",
            "'net'",
            b"\x80\x02" + dictionary({"net": b"}" + text("w") + tensor() + b"s"}) + b".",
        ),
    ):
        yield Payload(f"it holds {called}", says, in_zip(pickle))
    nameless = b"\x80\x02}K\x01" + tensor() + b"s."
    yield Payload("weights without names", "there are no tensors in it", in_zip(nameless))


# --- Zip ---


def zips() -> Iterator[Payload]:
    pickle, version = Part("archive/data.pkl", saved()), Part("archive/version", b"3\n")
    numbers = Part("archive/data/0", NUMBERS)

    def changed(called: str, says: str, **changes: Any) -> Payload:
        return Payload(called, says, stored([pickle, replace(numbers, **changes), version]))

    whole = stored([pickle, numbers, version])
    yield changed("a header of another", "has another header", offset=0)
    # Two members of one place, each with the header that its entry wants.
    inside = stored([Part("archive/data/0", NUMBERS)])[: 30 + 14 + 16]
    outer = Part("archive/data.pkl", saved() + inside)
    at = 30 + len(outer.name) + len(saved())
    hidden = Part("archive/data/0", b"", offset=at, size=16, crc=zlib.crc32(NUMBERS))
    yield Payload("a member in a member", "overlaps", stored([outer, hidden, version]))
    yield Payload(
        "a name twice", "'archive/data/0' is there twice", stored([pickle, numbers, numbers])
    )
    nul = replace(numbers, name="archive/data/0\0b")
    yield Payload("a name twice, by NUL", "is not printable", stored([pickle, numbers, nul]))
    other = Part("other/data.pkl", saved())
    yield Payload(
        "two data.pkl", "it needs one data.pkl", stored([pickle, other, numbers, version])
    )
    yield Payload("no data.pkl", "it needs one data.pkl", stored([version, numbers]))
    deep = replace(pickle, name="a/b/data.pkl")
    yield Payload("data.pkl too deep", "it needs one data.pkl", stored([deep, numbers]))
    script = Part("archive/constants.pkl", b"\x80\x02).")
    yield Payload("TorchScript", "TorchScript", stored([pickle, numbers, script]))
    for order in (b"big", b"little\n"):
        big = Part("archive/byteorder", order)
        yield Payload(f"byteorder {order!r}", "big-endian", stored([pickle, numbers, big]))
    big = Part("archive/byteorder", bytes(1 << 20))
    yield Payload("byteorder of 1 MB", "allowed: 16", stored([pickle, numbers, big]))
    zeros = zlib.compress(bytes(64 << 20), 9)[2:-4]
    bomb = {"content": zeros, "packed": len(zeros), "size": 64 << 20, "method": 8}
    yield changed("a deflate bomb", "is compressed", **bomb)
    deflated = io.BytesIO()
    with zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", saved())
        archive.writestr("archive/data/0", NUMBERS)
    yield Payload("compressed", "is compressed", deflated.getvalue())
    for method in (1, 9, 12, 14, 93, 95, 99):
        yield changed(f"method {method}", "is compressed", method=method)
    yield changed("stored, of two sizes", "is compressed", packed=4)
    yield changed("encrypted", "is encrypted", flags=1)
    yield changed("encrypted, locally", "another header", local_flags=1)
    yield changed("compressed, locally", "another header", local_method=8)
    yield changed("another name locally", "another header", local=b"archive/data/1")
    yield changed("a longer name locally", "another header", local=b"archive/data/0" * 4000)
    yield changed("no name locally", "another header", local=b"")
    yield changed("a wrong checksum", "its checksum does not fit", crc=0)
    damaged = whole.replace(NUMBERS, NUMBERS[:-1] + b"\x41")
    yield Payload("damaged numbers", "its checksum does not fit", damaged)
    damaged = whole.replace(b"extra", b"extrb")
    yield Payload("a damaged pickle", "its checksum does not fit", damaged)
    yield changed("larger than the archive", "is larger than the archive", size=100_000)
    yield changed("4 GB", "is larger than the archive", size=2**32 - 2)
    yield changed("extra field past the end", "is larger than the archive", local_extra=0xFFFF)
    for offset in (len(whole), 10**6, 2**32 - 2):
        yield changed(f"at {offset}", "lies outside", offset=offset)
    yield changed("where no header is", "has no header", offset=1)
    yield changed(
        "in the directory", "has no header|is larger|lies outside", offset=len(whole) - 150
    )
    extra = struct.pack("<HHQQQ", 1, 24, 2**64 - 1, 2**64 - 1, 2**63 + 5)
    zip64 = {"size": 2**32 - 1, "packed": 2**32 - 1, "offset": 2**32 - 1}
    yield changed("zip64: at 2^63", "lies outside", **zip64, extra=extra)
    extra = struct.pack("<HHQQQ", 1, 24, 2**62, 2**62, len(saved()) + 46)
    yield changed("zip64: 2^62 bytes", "is larger than the archive", **zip64, extra=extra)
    yield changed("zip64: cut short", "damaged zip|lies outside", **zip64, extra=b"\1\0\x02\0ab")
    odd = b"\xfe\xca\0\0" * 63
    yield changed("extra of 252", "is compressed|larger", extra=odd, size=100_000)
    fields = "a zip member with a name or fields of"
    yield changed("extra of 256", fields, extra=odd + b"\xfe\xca\0\0")
    padded = [Part(f"{i:x}", b"", extra=b"\xfe\xca\0\0" * 16_383) for i in range(63)]
    yield Payload("a million fields", fields, stored([pickle, numbers, *padded]))
    yield changed("name of 300", f"{fields} 314", name="archive/data/0" + "a" * 300)
    lying = replace(numbers, name="archive/\ud7ff", flags=0x800)
    raw = stored([pickle, lying]).replace("\ud7ff".encode(), b"\xff\xfe\xfd")
    yield Payload("a name that is no UTF-8", "codec can't decode", raw)

    # The directory and its end.
    def end(length: int, start: int, count: int = 3, comment: int = 0) -> bytes:
        counts = (0, 0, count, count)
        return struct.pack("<4s4H2IH", b"PK\x05\x06", *counts, length, start, comment)

    start = len(stored([pickle, numbers, version], end=b"")) - 46 * 3 - 14 - 16 - 15
    length = len(whole) - 22 - start
    body = whole[:-22]
    assert body + end(length, start) == whole
    for called, says, record in (
        ("no end", "it has no end", b""),
        ("an end cut short", "it has no end", end(length, start)[:-1]),
        ("a directory of 4 GB", "a zip directory of 4,294,967,294 bytes", end(2**32 - 2, start)),
        ("a comment", "has no end|bytes follow", end(length, start, comment=9) + b"01234567"),
        ("bytes behind", "bytes follow its end", end(length, start) + b"\0"),
        (
            "an end in a comment",
            "bytes follow",
            end(length, start, comment=30) + end(0, 0) + bytes(8),
        ),
        ("fewer members", "its directory has another length", end(length, start, 2)),
        ("more members", "its directory is cut short", end(length, start, 4)),
        ("a directory before the file", "damaged zip", end(length + 10_000, 0)),
        ("a directory cut short", "damaged zip", end(length - 1, start)),
        ("an empty directory", "its directory is cut short", end(0, len(body))),
        (
            "bytes in between",
            "has no header|damaged|lies outside|begin",
            b"PK??" + end(length, start),
        ),
    ):
        yield Payload(called, says, body + record)
    yield Payload("empty", "is empty or does not begin|its content is none", b"PK" + end(0, 2, 0))
    yield Payload("an empty archive", "is empty or does not begin", end(0, 0, 0))
    prefix = stored([pickle, numbers, version], before=b"PK and what else one likes")
    yield Payload("a prefix", "does not begin with its first member", prefix)
    yield Payload("a prefix that is not counted", "directory is not where", b"PK!" + whole)
    yield Payload("a script before it", "its content is none of", b"#!/bin/sh\nexit\n" + whole)
    gap = stored([replace(pickle, offset=30 + 8), numbers], before=b"")
    yield Payload("a first member at 38", "has no header", gap)

    # zip64: the locator points to one record, another stands before it.
    def record64(size: int, at: int) -> bytes:
        head = (b"PK\x06\x06", 44, 45, 45, 0, 0, 3, 3)
        return struct.pack("<4sQHHIIQQQQ", *head, size, at)

    def locator(at: int) -> bytes:
        return struct.pack("<4sIQI", b"PK\x06\x07", 0, at, 1)

    marked = end(2**32 - 1, 2**32 - 1, 0xFFFF)
    modest = record64(length, start)
    greedy = record64(1 << 40, start)
    says = "its zip64 end is not where it should be"
    two = body + modest + greedy
    yield Payload("two zip64 ends", says, two + locator(len(body)) + marked)
    yield Payload("no zip64 end", says, body + locator(len(body)) + marked)
    yield Payload("a zip64 end at 2^64", says, body + modest + locator(2**64 - 1) + marked)
    yield Payload(
        "a zip64 directory of 1 TB",
        "a zip directory of 1,099,511,627,776 bytes",
        body + greedy + locator(len(body)) + marked,
    )
    backwards = record64(length, 2**64 - 1)
    yield Payload(
        "a zip64 directory at 2^64",
        "lies outside|damaged|another header",
        body + backwards + locator(len(body)) + marked,
    )
    # Directories that are really there.
    tiny = [Part(f"{i:x}", b"") for i in range(60_000)]
    yield Payload("60,000 members", "bytes and 60,000 members; allowed", stored(tiny))
    one = Part("a", b"", offset=0)
    yield Payload("one member 19,999 times", "is there twice", stored([one] * 19_999))
    spread = [Part("0", b"")] + [Part(f"{i:x}", b"", offset=0, local=b"") for i in range(1, 19_999)]
    yield Payload("19,999 names of one place", "another header", stored(spread))
    comments = stored(
        [replace(p, extra=b"\xca\xfe" + b"\xf0\xff" + bytes(0xFFF0)) for p in tiny[:90]]
    )
    yield Payload("a directory of 6 MB", "a zip directory of 5,", comments)
    sparse = stored([pickle, numbers, version])

    def make_sparse(path: Path) -> None:
        """1 TB, of which nearly nothing is on disk."""
        with open(path, "wb") as file:
            file.write(sparse)
            file.truncate(1 << 40)

    yield Payload("a sparse file of 1 TB", "it has no end", make_sparse)


# --- The older container ---


def older() -> Iterator[Payload]:
    whole = in_older(saved())
    count = "storage '0' should have 4 elements"
    for called, says, content in (
        ("a count too large", count, in_older(saved(), struct.pack("<q", 5) + NUMBERS)),
        ("a count of 2^62", count, in_older(saved(), struct.pack("<q", 2**62) + NUMBERS)),
        ("a negative count", count, in_older(saved(), struct.pack("<q", -4) + NUMBERS)),
        ("half a count", count, in_older(saved(), b"\4\0\0")),
        ("no numbers", "storage '0' is cut short", in_older(saved(), struct.pack("<q", 4))),
        ("numbers cut short", "storage '0' is cut short", whole[:-1]),
        ("bytes behind", "1 bytes follow", whole + b"\0"),
        ("much behind", "1,000,000 bytes follow", whole + bytes(1_000_000)),
        ("nothing behind the start", "cut short", MAGIC),
        ("cut in the pickle", "promises|cut short", whole[: len(MAGIC) + 120]),
    ):
        yield Payload(called, says, content)
    giant = saved(weight=tensor(storage(numel=number(2**47))))
    numbers = struct.pack("<q", 2**47) + NUMBERS
    yield Payload("2^47 elements", "storage '0' is cut short", in_older(giant, numbers))
    says = "the list of storages does not fit"
    for called, keys in {
        "no keys": b"]",
        "a key too many": b"](" + text("0") + text("1") + b"e",
        "a key twice": b"](" + text("0") + text("0") + b"e",
        "another key": b"]" + text("1") + b"a",
        "a key that is a number": b"]K\x00a",
        "keys in a tuple": text("0") + b"\x85",
        "keys that are none": b"N",
        "keys in a dictionary": b"}" + text("0") + b"Ns",
    }.items():
        yield Payload(called, says, in_older(saved(), keys=b"\x80\x02" + keys + b"."))
    for called, protocol in {
        "protocol 1002": number(1002),
        "protocol True": b"\x88",
        "protocol a text": text("1001"),
        "no protocol": b"N",
    }.items():
        content = in_older(saved(), protocol=b"\x80\x02" + protocol + b".")
        yield Payload(called, "another torch.save protocol", content)
    for called, machine in {
        "big-endian": b"}" + text("little_endian") + b"\x89s",
        "of no machine": b"}",
        "of a machine that is none": b"N",
        "of a machine that says 1": b"}" + text("little_endian") + b"K\x01s",
    }.items():
        content = in_older(saved(), machine=b"\x80\x02" + machine + b".")
        yield Payload(called, "big-endian", content)
    wrong = MAGIC.replace(b"\x6c", b"\x6d")
    yield Payload(
        "another magic number", "neither the zip nor the older", whole.replace(MAGIC, wrong)
    )
    bare = saved()
    yield Payload("a pickle alone", "neither the zip nor the older", bare)
    tarred = b"\x80\x02}" + text("sys.tar") + b"Ns."
    yield Payload("torch before 0.1.10", "neither the zip nor the older", tarred + bytes(1024))
    pickle = saved(b"B" + struct.pack("<I", 15 << 20) + bytes(15 << 20))
    behind = in_older(pickle, protocol=b"\x80\x02" + number(1001) + b"." + b"")
    behind = behind.replace(b"NN", b"NN") + b"\0"
    yield Payload("15 MB of bytes, then one more", "1 bytes follow", behind)
    pickle = saved(b"B" + struct.pack("<I", 17 << 20) + bytes(17 << 20))
    yield Payload("a pickle of 17 MB", "promises .* more than there are", in_older(pickle))


# --- HDF5 ---


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


def _patched(content: bytes, at: int, layout: str, *values: Any) -> bytes:
    made = bytearray(content)
    struct.pack_into(layout, made, at, *values)
    return bytes(made)


def _enlarged(content: bytes, more: bytes) -> bytes:
    """With `more` at its end, and an end-of-file address that fits."""
    return _patched(content + more, 40, "<Q", len(content) + len(more))


def _node(level: int, children: list[int], key: int = 0) -> bytes:
    head = struct.pack("<4sBBHQQ", b"TREE", 0, level, len(children), 2**64 - 1, 2**64 - 1)
    body = b"".join(struct.pack("<QQ", key, child) for child in children) + struct.pack("<Q", 8)
    return (head + body).ljust(544, b"\0")


def hdf5s(folder: Path) -> Iterator[Payload]:
    for called, says, content in _hdf5s(folder):
        yield Payload(called, says, content)


def _hdf5s(folder: Path) -> Iterator[tuple[str, str, bytes]]:
    pipe, target = str(folder / "pipe"), str(folder / "target.h5")
    base = hdf5(nothing)
    links = "links as Keras does not write them"

    def linked(key: str, link: Any) -> Callable[[Any], None]:
        def fill(file: Any) -> None:
            if key == "layers":
                del file["layers"]
            file[key] = link

        return fill

    for where in ("layers", "x", "layers/b", "layers/a/vars/2"):
        for what, file in (("a file", target), ("a pipe", pipe), ("what is not there", "none.h5")):
            link = h5py.ExternalLink(file, "/array")
            yield f"{where} in {what}", links, hdf5(linked(where, link))
        elsewhere = f"{links}|points elsewhere"
        yield f"{where} soft", elsewhere, hdf5(linked(where, h5py.SoftLink("/layers/a")))
        yield f"{where} dangling", elsewhere, hdf5(linked(where, h5py.SoftLink("/none")))
        yield f"{where} soft to itself", elsewhere, hdf5(linked(where, h5py.SoftLink(f"/{where}")))

    def again(key: str, of: str) -> Callable[[Any], None]:
        return lambda file: file.__setitem__(key, file[of])

    twice = "has a second name"
    yield "an array twice", twice, hdf5(again("layers/a/vars/2", "layers/a/vars/0"))
    yield "a group twice", twice, hdf5(again("layers/b", "layers/a"))
    yield "a group in itself", twice, hdf5(again("layers/a/b", "layers/a"))
    yield "the root in the root", twice, hdf5(again("layers/a/root", "/"))

    # Numbers that are not plain numbers in one piece.
    def array(*shape: Any, dtype: Any = "f4", **options: Any) -> bytes:
        return hdf5(lambda file: file.create_dataset("layers/a/vars/2", shape, dtype, **options))

    here = "HDF5 entry 'layers/a/vars/2' "
    for called, file in (("a file", target), ("a pipe", pipe), ("a system file", "/etc/passwd")):
        made = array(4, external=[(file, 0, 16)])
        yield f"numbers in {called}", f"{here}has its numbers in another file", made
    for called, file in (("a file", target), ("a pipe", pipe), ("this file", ".")):

        def virtual(opened: Any, file: str = file) -> None:
            layout = h5py.VirtualLayout((4,), "f4", maxshape=(None,))
            source = h5py.VirtualSource(file, "array", (4,), maxshape=(None,))
            layout[: h5py.h5s.UNLIMITED] = source[: h5py.h5s.UNLIMITED]
            opened.create_virtual_dataset("layers/a/vars/2", layout)

        says = f"{here}is (of another layout|chunked, virtual or compact)"
        yield f"numbers of {called}, virtual", says, hdf5(virtual)
    zipped = f"{here}has its numbers compressed or filtered"
    bomb = {"chunks": (1 << 22,), "compression": "gzip", "compression_opts": 9}
    yield "gzip", zipped, array(4, compression="gzip")

    def filled(file: Any) -> None:
        made = file.create_dataset("layers/a/vars/2", (1 << 40,), "f4", **bomb)
        made.id.write_direct_chunk((0,), zlib.compress(bytes(16 << 20), 9))

    yield "a gzip bomb of 4 TB", zipped, hdf5(filled)
    for called, option in {
        "lzf": {"compression": "lzf"},
        "shuffled": {"shuffle": True},
        "with a checksum": {"fletcher32": True},
        "scaled": {"scaleoffset": 2},
    }.items():
        yield called, zipped, array(4, **option)
    pieces = f"{here}is chunked, virtual or compact"
    yield "in chunks", pieces, array(4, chunks=(2,))
    yield "growing", pieces, array(4, maxshape=(None,))

    def compact(file: Any) -> None:
        kind, space = h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple((4,))
        options = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        options.set_layout(h5py.h5d.COMPACT)
        h5py.h5d.create(file["layers/a/vars"].id, b"2", kind, space, options)

    yield "compact", pieces, hdf5(compact)
    odd = h5py.h5t.IEEE_F32LE.copy()
    odd.set_ebias(100)
    packed = h5py.h5t.STD_I32LE.copy()
    packed.set_precision(20)
    texts, objects = h5py.string_dtype(), h5py.ref_dtype
    for called, dtype in {
        "strings": "S4",
        "texts": texts,
        "lists": h5py.vlen_dtype("f4"),
        "compounds": [("a", "f4"), ("b", "f4")],
        "compounds of 500": [(f"a{i}", "f4") for i in range(500)],
        "complex numbers": "c8",
        "references": objects,
        "regions": h5py.regionref_dtype,
        "truths": "?",
        "an enumeration": h5py.enum_dtype({"a": 1, "b": 2}, "i4"),
        "arrays": ("f4", (2, 2)),
        "bytes": "V4",
        "wide floats": np.longdouble,
    }.items():
        dtype = dtype if isinstance(dtype, str) or dtype in (texts, objects) else np.dtype(dtype)
        yield called, f"{here}holds .*, expected plain numbers", array(4, dtype=dtype)
    for called, kind in {
        "floats of another kind": odd,
        "integers of 20 bits": packed,
        "bits": h5py.h5t.STD_B32LE,
        "times": h5py.h5t.UNIX_D32LE,
    }.items():

        def typed(file: Any, kind: Any = kind) -> None:
            space = h5py.h5s.create_simple((4,))
            h5py.h5d.create(file["layers/a/vars"].id, b"2", kind, space)

        yield called, f"{here}holds .*, expected plain numbers", hdf5(typed)

    def committed(file: Any) -> None:
        file["type"] = np.dtype("f4")

    yield "a named type", "'type' (is neither group nor array|has)", hdf5(committed)

    def of_named(file: Any) -> None:
        file["type"] = np.dtype("f4")
        file.create_dataset("layers/a/vars/2", (4,), file["type"])

    named = "has a named type, or shares|is neither group nor array"
    yield "an array of a named type", named, hdf5(of_named)
    yield (
        "no shape",
        f"{here}has no shape",
        hdf5(lambda f: f.__setitem__("layers/a/vars/2", h5py.Empty("f4"))),
    )
    yield "32 axes", f"{here}has no shape, or one of", array(*[1] * 32)
    yield "never written", f"{here}is larger than the file", array(4)
    yield "1 TB never written", f"{here}is larger than the file", array(1 << 38)

    # Too many, too deep, too long.
    yield "100 groups deep", "more than 16 deep", hdf5(lambda f: f.create_group("a/" * 100))

    def groups(file: Any) -> None:
        inside = file.create_group("layers/b").id
        for i in range(25_000):
            h5py.h5g.create(inside, b"%d" % i)

    yield "25,000 groups", "more HDF5 entries than any VAN has", hdf5(groups)

    def layer(value: Any, **options: Any) -> bytes:
        def fill(file: Any) -> None:
            file["layers/a/vars"].attrs.create("name", value, **options)

        return hdf5(fill)

    long = "an HDF5 layer name of 60,000 bytes"
    yield "a layer name of 60 kB", long, layer(np.bytes_(b"a" * 60_000))
    yield "a layer text of 60 kB", long, layer("a" * 60_000)
    unclear = "is too long or not printable"
    yield "escapes in a layer name", unclear, layer("\x1b[2J")
    yield (
        "escapes in an array's name",
        unclear,
        hdf5(lambda f: f.__setitem__("layers/a/vars/\x1b[2J", np.ones(4, "f4"))),
    )
    yield "a layer name that is no UTF-8", "codec can't decode", layer(np.bytes_(b"\xff\xfe"))
    notext = "an HDF5 layer name that is no text"
    yield "a layer name of numbers", notext, layer(np.ones(3))
    yield "a layer name, twice", notext, layer(["a", "b"])
    yield "a layer name that refers", notext, layer(h5py.Reference(), dtype=h5py.ref_dtype)

    def same_names(file: Any) -> None:
        file["layers/b/vars/0"] = np.ones(4, "f4")
        file["layers/b/vars"].attrs["name"] = "first"

    yield "two layers of one name", "two layers with the name 'first'", hdf5(same_names)
    own = "without a name of its own|has no names"
    yield (
        "an array's name of 300",
        own,
        hdf5(lambda f: f.__setitem__("layers/" + "a" * 300, np.ones(4))),
    )

    def empty(file: Any) -> None:
        del file["layers"]

    yield "empty", "there are no tensors in it", hdf5(empty)
    newer = "of another layout than Keras writes"
    yield "the latest layout", newer, hdf5(nothing, libver="latest")
    yield "ordered groups", f"{newer}|{links}", hdf5(nothing, track_order=True)
    yield "a block before it", "its content is none of", hdf5(nothing, userblock_size=512)

    # Structures by hand.
    root = _offsets(base, "/")
    arrays = {key: _offsets(base, f"layers/a/vars/{key}") for key in "01"}
    tree, heap = struct.unpack_from("<QQ", base, root["group"])
    (leaf,) = struct.unpack_from("<Q", base, tree + 32)
    (segment,) = struct.unpack_from("<Q", base, heap + 24)
    lost = "damaged HDF5|has no|is neither group nor array"

    def with_tree(more: list[bytes], at: int) -> bytes:
        """`more` nodes behind the file, the last but `at` the root of the tree."""
        made = _enlarged(base, b"".join(more))
        return _patched(made, root["group"], "<Q", len(base) + at)

    for levels in (3, 8, 200):
        nodes, below = [], leaf
        for level in range(levels):
            nodes.append(_node(level, [below] * 32))
            below = len(base) + 544 * level
        content = with_tree(nodes, 544 * (levels - 1))
        yield f"32^{levels} entries", "structures that overlap|its own|more HDF5", content
    flat = [_node(0, [leaf] * 32)]
    yield "32 times one leaf", "structures that overlap|its own", with_tree(flat, 0)
    for levels in (0, 1, 255):
        looped = [_node(levels, [len(base)] * 2)]
        yield f"a tree of itself, {levels}", "no tree|no entries|overlap", with_tree(looped, 0)
    yield "a tree that is a leaf", "no tree of entries", _patched(base, root["group"], "<Q", leaf)
    yield "a tree nowhere", lost, _patched(base, root["group"], "<Q", 2**64 - 1)
    yield "a tree of 65,535", lost, _patched(base, tree + 6, "<H", 65_535)
    yield "a leaf of 65,535", lost, _patched(base, leaf + 6, "<H", 65_535)
    yield "names nowhere", lost, _patched(base, root["group"] + 8, "<Q", 2**63)
    yield "names elsewhere", "has no names", _patched(base, root["group"] + 8, "<Q", tree)
    yield "4 EB of names", lost, _patched(base, heap + 8, "<Q", 2**62)
    yield "a name outside", own, _patched(base, leaf + 8, "<Q", 2**62)
    yield "a name of nothing", own, _patched(base, segment + 8, "<6s", bytes(6))
    yield "a path as name", own, _patched(base, segment + 8, "<6s", b"a/../b")
    yield "a name that is no UTF-8", "codec can't decode", _patched(base, segment + 8, "<B", 255)
    child = leaf + 8 + 8
    yield "an entry nowhere", lost, _patched(base, child, "<Q", 2**64 - 1)
    yield "an entry that is the root", twice, _patched(base, child, "<Q", root["header"])
    yield "an entry that is a soft link", "points elsewhere", _patched(base, child + 8, "<I", 2)
    yield "a root nowhere", lost, _patched(base, 64, "<Q", 2**64 - 1)
    header = arrays["0"]["header"]
    yield "a header of 4 GB", lost, _patched(base, header + 8, "<I", 2**32 - 1)
    yield "an empty header", "neither group nor array", _patched(base, header + 8, "<I", 0)
    yield "another header", newer, _patched(base, header, "<B", 2)
    space, kind, layout = (arrays["0"][part] for part in ("space", "type", "layout"))
    yield "a message of 64 kB", lost, _patched(base, space - 6, "<H", 65_528)
    yield "two spaces", "is described twice", _patched(base, kind - 8, "<H", 1)
    yield "an unknown message", "messages of 0x99", _patched(base, kind - 8, "<H", 0x99)
    yield "a shared type", "named type, or shares", _patched(base, kind - 4, "<B", 2)
    yield "an unknown type", "holds an unknown type", _patched(base, kind, "<B", 0x1F)
    loop = _patched(base, space - 8, "<HHB3xQQ", 0x10, 24, 0, space - 8, 32)
    yield "a header in itself", "structures that overlap|more HDF5", loop
    says = "has 24 bytes, but the shape"
    yield "another shape", says, _patched(base, space + 8, "<Q", 7)
    yield "2^63 elements", says, _patched(base, space + 8, "<Q", 2**63)
    yield "2^64 bytes", "bytes, but the shape", _patched(base, layout + 10, "<Q", 2**64 - 1)
    yield (
        "past the end",
        "is larger than the file",
        _patched(base, layout + 2, "<Q", len(base) - 23),
    )
    yield "at 2^64", "is larger than the file", _patched(base, layout + 2, "<Q", 2**64 - 1)
    (other,) = struct.unpack_from("<Q", base, arrays["1"]["layout"] + 2)
    yield "one place for two", "arrays that overlap", _patched(base, layout + 2, "<Q", other)
    yield "half of another", "arrays that overlap", _patched(base, layout + 2, "<Q", other - 4)
    attribute = _offsets(base, "layers/a/vars")["attribute"]
    assert base[attribute + 8 : attribute + 13] == b"name\0"
    value = attribute + 8 + 8 + 24 + 8
    yield "a text nowhere", lost, _patched(base, value + 4, "<Q", 2**64 - 1)
    yield "a text elsewhere", "texts that are not where", _patched(base, value + 4, "<Q", tree)
    (texts_at,) = struct.unpack_from("<Q", base, value + 4)
    yield "a heap of texts of 3 bytes", lost, _patched(base, texts_at + 8, "<Q", 3)
    yield "a heap of texts of 2^63", lost, _patched(base, texts_at + 8, "<Q", 2**63)
    yield "sizes of 4 bytes", newer, _patched(base, 13, "<B", 4)
    yield "a base address", newer, _patched(base, 24, "<Q", 512)
    for length in (20, 96, 200, len(base) // 2, len(base) - 1):
        yield f"cut after {length}", f"{lost}|is larger than the file", base[:length]


# --- .keras ---


def keras(folder: Path) -> Iterator[Payload]:
    def graph(*layers: Any) -> dict[str, Any]:
        module = "keras.src.models.functional"
        return {"module": module, "class_name": "Functional", "config": {"layers": [*layers]}}

    def inner(value: Any) -> dict[str, Any]:
        return {**VAN_CONFIG, "config": {**VAN_CONFIG["config"], "a": [{"b": value}]}}

    shell = {"module": "keras.layers", "class_name": "Lambda", "config": {"function": "x"}}
    foreign = {"module": "evil", "class_name": "Layer", "registered_name": "evil>Layer"}
    wrapper = {"module": "keras.layers", "class_name": "TorchModuleWrapper"}
    ours = {
        "module": "van_classification_tensorflow.model.layers",
        "class_name": "Block",
        "registered_name": "van_classification_tensorflow>Block",
    }
    function = {"module": "builtins", "class_name": "function", "config": "f"}
    for called, found, shown in (
        ("Lambda", shell, "keras.layers.Lambda"),
        ("a foreign class", foreign, "evil.Layer"),
        ("TorchModuleWrapper", wrapper, "TorchModuleWrapper"),
        ("a function", function, "builtins.function"),
        ("__lambda__", {"class_name": "__lambda__", "config": {"value": "x"}}, "__lambda__"),
        ("a class that is a list", {"module": "keras.layers", "class_name": [[]]}, "list"),
        ("a class that is none", {"module": "keras.layers", "class_name": None}, "NoneType"),
        ("a name that is a list", {**foreign, "registered_name": [1]}, "evil.Layer"),
    ):
        says = f"the class .*{shown}.* in its config.json"
        yield Payload(f"{called} as layer", says, in_keras(graph(ours, found)))
        hidden = {**ours, "config": {"layer": {"config": [found]}}}
        yield Payload(f"{called} in a layer of ours", says, in_keras(graph(hidden)))
        yield Payload(f"{called} in VAN", says, in_keras(inner(found)))
        top = {**found, "config": {}}
        yield Payload(f"{called} as model", "a model of class", in_keras(top))
    layers = json.dumps(graph("X")).encode()
    for called, left, right in (("lists", b"[", b"]"), ("objects", b'{"a":', b"}")):
        deep = layers.replace(b'"X"', left * 100_000 + b"1" + right * 100_000)
        yield Payload(f"{called} 100,000 deep", "config.json is nested too deep", in_keras(deep))
        cut = layers.replace(b'"X"]}}', left * 100_000)
        yield Payload(f"{called} without end", "nested too deep|is no JSON", in_keras(cut))
    # What is shown once for every level would be shown 900 times.
    chain: Any = ["a" * 1000] * 1000
    for _ in range(200):
        chain = {"module": chain, "registered_name": "a"}
    chain = {**foreign, "module": chain}
    yield Payload("a module of 200 modules", "the class 'dict.Layer'", in_keras(inner(chain)))
    for called, says, config in (
        ("no JSON", "config.json is no JSON", b"{"),
        ("empty", "config.json is no JSON", b""),
        ("no text", "config.json is no JSON", b"\xff\xfe\xfd"),
        ("half of UTF-16", "config.json is no JSON", b"\xff\xfe{"),
        ("a list", "describes no model", b"[]"),
        ("null", "describes no model", b"null"),
        ("without config", "describes no model", b"{}"),
        ("with a list", "describes no model", b'{"config": []}'),
        ("with a number of 1 MB", "digits|is no JSON", b'{"config": ' + b"9" * 1_000_000 + b"}"),
        ("with a key twice", "has a key twice", b'{"config": {"a": 1, "a": 2}}'),
        ("of 3 MB", "has 3,", b'{"config": "' + b" " * 3_000_000 + b'"}'),
        (
            "of empty objects",
            "a model of class",
            b'{"config": {"a": [' + b"{}," * 340_000 + b"{}]}}",
        ),
        ("of empty lists", "a model of class", b'{"config": {"a": [' + b"[]," * 340_000 + b"[]]}}"),
    ):
        yield Payload(f"a config.json that is {called}", says, in_keras(config))
    registered = json.dumps(VAN_CONFIG).encode().replace(b"[1]", b"[" + b"{}," * 340_000 + b"1]")
    damaged = in_keras(registered, b"\x89HDF\r\n\x1a\n")
    yield Payload("340,000 objects, then no weights", "damaged HDF5", damaged)
    config = Part("config.json", json.dumps(VAN_CONFIG).encode())
    weights = Part("model.weights.h5", hdf5(nothing))
    says = "the archive has no member 'config.json'"
    yield Payload("no config.json", says, stored([weights]))
    yield Payload("no weights", "it needs one data.pkl", stored([config]))
    yield Payload("config.json twice", "is there twice", stored([config, config, weights]))
    changed = replace(weights, crc=1)
    yield Payload("a wrong checksum", "its checksum does not fit", stored([config, changed]))
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("config.json", config.content)
        archive.writestr("model.weights.h5", weights.content)
    yield Payload("compressed", "is compressed", packed.getvalue())
    for called, content in {"empty": b"", "a text": b"hello", "a pickle": saved()}.items():
        yield Payload(f"weights that are {called}", "HDF5", in_keras(weights=content))
    for called, says, content in _hdf5s(folder):
        if not called.startswith(("a block before it", "25,000")):
            yield Payload(f"HDF5 in it: {called}", says, in_keras(weights=content))


# --- safetensors ---


def safetensors() -> Iterator[Payload]:
    broken, lengths = "not a valid safetensors file", "a safetensors header of .* bytes in a file"
    whole = in_safetensors({"w": entry()})
    for called, says, content in (
        ("a header past the end", lengths, in_safetensors({"w": entry()}, length=10_000)),
        ("a header of 2^64", lengths, in_safetensors({"w": entry()}, length=2**64 - 1)),
        ("a header cut short", "header is no JSON", in_safetensors({"w": entry()}, length=30)),
        ("a header that takes numbers", "JSON|decode", in_safetensors({"w": entry()}, length=70)),
        ("numbers cut short", broken, whole[:-1]),
        ("numbers behind", broken, whole + b"\0"),
        ("no JSON", "header is no JSON", in_safetensors(b"{nothing}")),
        ("no text", "header is no JSON", in_safetensors(b"{\xff\xff\xff")),
        ("no object", "its content is none of", in_safetensors(b"[]")),
        ("nothing in it", "there are no tensors", in_safetensors({}, b"")),
        ("only metadata", "there are no tensors", in_safetensors({"__metadata__": {}}, b"")),
    ):
        yield Payload(called, says, content)
    for called, says, found in (
        ("offsets out of range", broken, entry(offsets=(0, 2**40))),
        ("offsets backwards", broken, entry(offsets=(16, 0))),
        ("offsets negative", broken, entry(offsets=(-16, 0))),
        ("offsets of 2^64", broken, entry(offsets=(2**64 - 16, 2**64))),
        ("a gap before it", broken, entry(shape=(3,), offsets=(4, 16))),
        ("one offset", broken, entry(offsets=(0,))),
        ("offsets that are texts", broken, entry(offsets=("0", "16"))),
        ("another shape", broken, entry(shape=(5,))),
        ("a shape of 2^80", broken, entry(shape=(2**40, 2**40))),
        ("a shape of 2^64", broken, entry(shape=(2**64,))),
        ("a negative shape", broken, entry(shape=(-4,))),
        ("a shape of floats", broken, entry(shape=(4.0,))),
        ("no shape", broken, {"dtype": "F32", "data_offsets": (0, 16)}),
        ("an unknown dtype", broken, entry("F33")),
        ("dtype FLOAT8", broken, entry("F8_E4M3", (16,))),
        ("dtype F4", broken, entry("F4", (32,))),
        ("a dtype that is a path", broken, entry("../../x")),
        ("a dtype that is a list", broken, entry(["F32"])),
        ("an entry that is a text", broken, "w"),
        ("1000 axes", "maximum supported dimension", entry(shape=(1,) * 999 + (4,))),
    ):
        yield Payload(called, says, in_safetensors({"w": found}))
    empty = entry(shape=(0, 2**62, 2**62), offsets=(0, 0))
    yield Payload(
        "an empty giant", "too big|too large|overflow|large", in_safetensors({"w": empty}, b"")
    )
    overlap = {"v": entry(), "w": entry(shape=(2,), offsets=(8, 16))}
    yield Payload("overlapping", broken, in_safetensors(overlap))
    yield Payload("one place for two", broken, in_safetensors({"v": entry(), "w": entry()}))
    gap = {"v": entry(shape=(1,), offsets=(0, 4)), "w": entry(shape=(1,), offsets=(12, 16))}
    yield Payload("a gap", broken, in_safetensors(gap))
    one = json.dumps({"w": entry()})[1:-1]
    for called, header in {
        "a tensor twice": f"{{{one}, {one}}}",
        "a tensor twice, escaped": f"{{{one}, {one.replace('w', chr(92) + 'u0077', 1)}}}",
        "metadata twice": f'{{"__metadata__": {{}}, "__metadata__": {{}}, {one}}}',
        "metadata with a key twice": f'{{"__metadata__": {{"a": "1", "a": "2"}}, {one}}}',
        "a dtype twice": "{" + one.replace("{", '{"dtype": "I32", ') + "}",
    }.items():
        yield Payload(called, "header has a key twice", in_safetensors(header.encode()))
    for left in (b"[", b'{"a":'):
        bomb = b'{"w":' + left * 100_000
        yield Payload(f"{left!r} without end", "nested too deep", in_safetensors(bomb))
    lists = b'{"__metadata__": {"a": [' + b"[]," * 300_000 + b"[]]}}"
    yield Payload("300,000 lists", broken, in_safetensors(lists, b""))
    shape = b'{"w":{"dtype":"F32","data_offsets":[0,16],"shape":[' + b"1," * 500_000 + b"4]}}"
    yield Payload("500,000 axes", "maximum supported dimension", in_safetensors(shape))
    tiny = {f"{i:x}": entry("U8", (0,), (0, 0)) for i in range(25_000)}
    yield Payload("25,000 tensors", lengths, in_safetensors(tiny, b""))
    meta = b'{"__metadata__":{' + b",".join(b'"%x":""' % i for i in range(90_000)) + b"}}"
    yield Payload("90,000 metadata", "there are no tensors", in_safetensors(meta, b""))
    unclear = "is too long or not printable"
    for called, shown in {
        "escapes": "\x1b[2J",
        "a line end": "a\nb",
        "1 MB": "a" * 1_000_000,
    }.items():
        yield Payload(f"a name of {called}", unclear, in_safetensors({shown: entry()}))
    half = b'{"\\ud800": ' + json.dumps(entry()).encode() + b"}"
    yield Payload("a name of half a character", f"{broken}|{unclear}", in_safetensors(half))

    def sparse(path: Path) -> None:
        """A header of 100 MB that is there, as far as the file system knows."""
        with open(path, "wb") as file:
            file.write(struct.pack("<Q", 100 << 20) + b'{"w"')
            file.truncate(101 << 20)

    yield Payload("a header of 100 MB", lengths, sparse)


# --- No files ---


def no_files() -> Iterator[Payload]:
    regular, none = "not a regular file", "its content is none of"

    def linked(path: Path) -> None:
        os.mkfifo(path.with_suffix(".pipe"))
        path.symlink_to(path.with_suffix(".pipe"))

    def with_pipe(path: Path) -> None:
        path.mkdir()
        os.mkfifo(path / "model.safetensors")

    for called, says, make in (
        ("a pipe", regular, os.mkfifo),
        ("a link to a pipe", regular, linked),
        ("/dev/zero", regular, lambda path: path.symlink_to("/dev/zero")),
        ("/dev/null", regular, lambda path: path.symlink_to("/dev/null")),
        ("an empty folder", "a folder without", Path.mkdir),
        ("a folder with a pipe", "a folder without", with_pipe),
    ):
        yield Payload(called, says, make)
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
    for called, says, content in (
        ("two bytes of a zip", "it has no end", b"PK"),
        ("four bytes of a zip", "it has no end", b"PK\x03\x04"),
        ("two bytes of a pickle", "neither the zip nor the older", b"\x80\x02"),
        ("the start of the older layout", "cut short", MAGIC),
        ("eight bytes of HDF5", "damaged HDF5", b"\x89HDF\r\n\x1a\n"),
        ("nine bytes of safetensors", "a safetensors header of", struct.pack("<Q", 2) + b"{"),
    ):
        yield Payload(called, says, content)
