"""Files of `torch.save`, zip or older layout, read without torch and without running anything.

A pickle is a small program. Here it is a description of data instead: an interpreter of the few
instructions that a dictionary of tensors needs builds dicts, lists and `Tensor` records; a name
of a Python object is looked up in a table of words, never imported; everything else is refused.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from types import MappingProxyType
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from .stored_zip import StoredZip, read_into

# What a file may cost. A B6 with optimizer and average needs 0.6 M steps in 2 MB; an instruction
# is a step, one that makes a container or looks up a name two, a call four.
_MAX_STEPS = 750_000
_MAX_PICKLE = 16 << 20  # bytes
# Beside the weights of 160,000 iterations, OpenMMLab keeps a dozen numbers of each: 30 MB.
_MAX_ZIPPED_PICKLE = 64 << 20
_MAX_DEPTH = 64  # of containers in containers
_MAX_RANK = 8

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_START = b"\x80\x02\x8a\x0a" + _LEGACY_MAGIC.to_bytes(10, "little") + b"."

_DTYPES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}


@dataclass(frozen=True, slots=True)
class Storage:
    """A run of numbers in the file that tensors are views of."""

    key: str
    dtype: np.dtype
    numel: int


@dataclass(frozen=True, slots=True)
class Tensor:
    """A view of a storage; offset and strides count elements."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * self.storage.dtype.itemsize


@dataclass(frozen=True, slots=True)
class Inert:
    """Something around the weights (a command line's arguments, say) of which nothing is kept."""

    name: str


@dataclass(frozen=True, slots=True)
class Namespace:
    """The arguments of a training script, as data: `argparse.Namespace`."""

    attributes: dict[str, Any]


class TorchFile:
    """An open file of `torch.save`: `root` is what was saved, with `Tensor` where tensors were.

    Storages are checked against the file at once and read when `array` asks for them.

    Raises:
        ValueError: The file is damaged, or holds more than tensors in plain containers.
    """

    root: Any
    layout: str

    def __init__(self, file: BinaryIO):
        file.seek(0)
        start = file.read(len(_LEGACY_START))
        self._read: Callable[[Storage], bytearray]
        if start == _LEGACY_START:
            self.layout = "torch, before 1.6"
            self._open_legacy(file)
        elif start.startswith(b"PK"):
            self.layout = "torch"
            self._open_zip(StoredZip(file))
        else:
            raise ValueError("neither the zip nor the older layout of torch.save")
        self._buffers: dict[str, np.ndarray] = {}

    def array(self, tensor: Tensor) -> np.ndarray:
        """The tensor's numbers: a view, not to be written, of its storage."""
        storage = tensor.storage
        if storage.key not in self._buffers:
            self._buffers[storage.key] = np.frombuffer(self._read(storage), storage.dtype)
        flat = self._buffers[storage.key][tensor.offset :]
        step = storage.dtype.itemsize
        strides = tuple(stride * step for stride in tensor.strides)
        return np.lib.stride_tricks.as_strided(flat, tensor.shape, strides, writeable=False)

    def _open_zip(self, archive: StoredZip) -> None:
        pickles = [name for name in archive.members if name.endswith("/data.pkl")]
        if len(pickles) != 1 or pickles[0].count("/") != 1:
            raise ValueError("a zip archive, but not one of torch.save (it needs one data.pkl)")
        folder = pickles[0].removesuffix("data.pkl")
        if f"{folder}constants.pkl" in archive.members:
            raise ValueError("a TorchScript archive, which holds a program; expected weights")
        byteorder = f"{folder}byteorder"
        if byteorder in archive.members and archive.read(byteorder, limit=16) != b"little":
            raise ValueError("written on a big-endian machine")
        pickle = _Pickle(bytes(archive.read(pickles[0], limit=_MAX_ZIPPED_PICKLE)))
        self.root = pickle.load()
        for storage in pickle.storages.values():
            member = archive.members.get(f"{folder}data/{storage.key}")
            expected = storage.numel * storage.dtype.itemsize
            if member is None:
                raise ValueError(f"the numbers of storage {storage.key!r} are missing")
            if member.size != expected:
                raise ValueError(
                    f"storage {storage.key!r} should have {expected:,} bytes; "
                    f"its member has {member.size:,}"
                )
        self._read = lambda storage: archive.read(f"{folder}data/{storage.key}")

    def _open_legacy(self, file: BinaryIO) -> None:
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        head = file.read(_MAX_PICKLE)
        at = len(_LEGACY_START)

        steps = 0

        def load_next() -> _Pickle:
            nonlocal at, steps
            pickle = _Pickle(head, at, steps)
            pickle.root = pickle.load()
            at, steps = pickle.position, pickle.steps
            return pickle

        protocol, machine = load_next().root, load_next().root
        if type(protocol) is not int or protocol != 1001:
            raise ValueError("another torch.save protocol than 1001")
        if not isinstance(machine, dict) or machine.get("little_endian") is not True:
            raise ValueError("written on a big-endian machine")
        saved = load_next()
        self.root = saved.root
        keys = load_next().root
        if (
            type(keys) is not list
            or not all(type(key) is str for key in keys)
            or sorted(keys) != sorted(saved.storages)
        ):
            raise ValueError("the list of storages does not fit the tensors")
        places: dict[str, tuple[int, int]] = {}
        for key in keys:
            storage = saved.storages[key]
            file.seek(at)
            count = file.read(8)
            length = storage.numel * storage.dtype.itemsize
            if len(count) < 8 or struct.unpack("<q", count)[0] != storage.numel:
                raise ValueError(f"storage {key!r} should have {storage.numel:,} elements")
            if at + 8 + length > size:
                raise ValueError(f"storage {key!r} is cut short")
            places[key] = (at + 8, length)
            at += 8 + length
        if at != size:
            raise ValueError(f"{size - at:,} bytes follow the last storage")

        def read(storage: Storage) -> bytearray:
            start, length = places[storage.key]
            data = bytearray(length)
            file.seek(start)
            read_into(file, data, f"storage {storage.key!r}")
            return data

        self._read = read


# --- What a pickle may name: (arguments) -> value. Nothing is imported, nothing called. ---


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: np.dtype


def _rebuild_tensor(arguments: tuple) -> Tensor:
    """torch._utils._rebuild_tensor[_v2](storage, offset, size, stride, ...)."""
    if not 4 <= len(arguments) <= 7:
        raise ValueError(f"a tensor rebuilt from {len(arguments)} arguments; expected 4 to 7")
    storage, offset, shape, strides = arguments[:4]
    if not isinstance(storage, Storage):
        raise ValueError("a tensor without a storage")
    for what, sizes in (("size", shape), ("stride", strides)):
        if not isinstance(sizes, tuple) or len(sizes) > _MAX_RANK or not all(map(_is_size, sizes)):
            raise ValueError(f"a tensor's {what} must be a tuple of at most {_MAX_RANK} sizes >= 0")
    if len(shape) != len(strides) or not _is_size(offset):
        raise ValueError("a tensor's offset, size and stride do not fit together")
    count = prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, strides, strict=True))
    # A stride of 0 would make a giant from a few numbers.
    if count > storage.numel or (count and last >= storage.numel) or offset > storage.numel:
        raise ValueError(
            f"a tensor of {count:,} elements, up to number {last:,} of its storage of "
            f"{storage.numel:,}"
        )
    return Tensor(storage, offset, shape, strides)


def _rebuild_parameter(arguments: tuple) -> Tensor:
    if len(arguments) != 3 or not isinstance(arguments[0], Tensor):
        raise ValueError("a parameter that is no tensor")
    return arguments[0]


def _ordered_dict(arguments: tuple) -> dict:
    if arguments:
        raise ValueError("an OrderedDict with arguments; expected none")
    return {}


def _default_dict(arguments: tuple) -> dict:
    return {}  # its factory was looked up like any name; here it has no use


def _size(arguments: tuple) -> tuple:
    if len(arguments) != 1 or not isinstance(arguments[0], tuple):
        raise ValueError("a torch.Size that is no tuple")
    return arguments[0]


def _namespace(arguments: tuple) -> Namespace:
    if arguments:
        raise ValueError("a Namespace with arguments; expected none")
    return Namespace({})


def _inert(name: str) -> Callable[[tuple], Inert]:
    return lambda arguments: Inert(name)


# mmengine keeps what a training logged as arrays in buffers, and names the functions of their
# class that sum them up. Nothing of these is kept.


def _history(arguments: tuple) -> Inert:
    """mmengine.logging.history_buffer.HistoryBuffer, made without arguments."""
    if arguments:
        raise ValueError("a HistoryBuffer of mmengine with arguments; expected none")
    return Inert("HistoryBuffer")


def _of_history(arguments: tuple) -> Inert:
    """getattr(HistoryBuffer, name), and of nothing else."""
    if len(arguments) != 2 or arguments[0] is not _history or type(arguments[1]) is not str:
        raise ValueError(
            "an attribute of something else than mmengine's HistoryBuffer is asked for; nothing "
            "was run"
        )
    return Inert("a function of HistoryBuffer")


@dataclass(frozen=True, slots=True)
class _Word:
    """A class of others, which is only ever handed to a function here."""

    name: str


_ARRAY = _Word("ndarray")


def _array(arguments: tuple) -> Inert:
    """Numpy's _reconstruct(ndarray, (0,), b"b"): an array, of which nothing is kept."""
    if len(arguments) != 3 or arguments[0] is not _ARRAY or arguments[1] != (0,):
        raise ValueError("an array made of something else than numpy's ndarray; nothing was run")
    return Inert("ndarray")


_NAMES: dict[str, Any] = {
    "torch._utils _rebuild_tensor": _rebuild_tensor,
    "torch._utils _rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils _rebuild_parameter": _rebuild_parameter,
    "torch Size": _size,
    "collections OrderedDict": _ordered_dict,
    "collections defaultdict": _default_dict,
    "argparse Namespace": _namespace,
    # A dictionary, in which Lightning keeps a model's arguments.
    **{
        f"{package} AttributeDict": _ordered_dict
        for package in (
            "pytorch_lightning.utilities.parsing",
            "lightning.pytorch.utilities.parsing",
            "lightning_fabric.utilities.data",
            "lightning.fabric.utilities.data",
        )
    },
    "mmengine.logging.history_buffer HistoryBuffer": _history,
    "__builtin__ getattr": _of_history,
    "numpy ndarray": _ARRAY,
    "numpy.core.multiarray _reconstruct": _array,
    "numpy._core.multiarray _reconstruct": _array,
    # What the training scripts save beside the weights.
    **{
        name: _inert(name)
        for name in (
            "torch device",
            "numpy dtype",
            "numpy.core.multiarray scalar",
            "numpy._core.multiarray scalar",
            "_codecs encode",
            "__builtin__ dict",
            "builtins dict",
        )
    },
    **{
        f"torch {name}": Inert(name)
        for name in ("float16", "bfloat16", "float32", "float64", "int32", "int64", "bool")
    },
    **{f"torch {name}": _StorageType(dtype) for name, dtype in _DTYPES.items()},
    **{f"torch.cuda {name}": _StorageType(dtype) for name, dtype in _DTYPES.items()},
}


def _is_size(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**48


def _is_key(value: Any) -> bool:
    return type(value) is str and len(value) <= 20 and value.isascii() and value.isdigit()


class _Mark:
    __slots__ = ()


class _Pickle:
    """The interpreter: `load()` gives the value; afterwards `position` is behind its STOP."""

    root: Any = None

    def __init__(self, data: bytes, position: int = 0, steps: int = 0):
        self.data, self.position, self.steps = data, position, steps
        self.stack: list[Any] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}
        self.depth: dict[int, int] = {}
        self.inside: set[int] = set()  # containers in others
        self.kept: list[Any] = []  # so that no identity in the two is used twice

    def load(self) -> Any:
        data = self.data
        instructions = _INSTRUCTIONS
        try:
            while True:
                code = data[self.position]
                self.position += 1
                if code == 0x2E:  # STOP
                    break
                instruction = instructions.get(code)
                if instruction is None:
                    raise ValueError(
                        f"the pickle instruction {bytes([code])!r}, which no dictionary of "
                        "tensors needs"
                    )
                instruction(self)
                self.steps += 1
                if self.steps > _MAX_STEPS:
                    raise ValueError(f"a pickle of more than {_MAX_STEPS:,} steps")
        except (IndexError, struct.error) as error:
            raise ValueError("a pickle that is cut short or takes from an empty stack") from error
        if len(self.stack) != 1 or self.stack[0] is _MARK:
            raise ValueError(f"a pickle that leaves {len(self.stack)} values; expected one")
        return self.stack[0]

    # --- Bytes ---

    def take(self, length: int) -> bytes:
        end = self.position + length
        if end > len(self.data):
            raise ValueError(f"a pickle that promises {length:,} bytes more than there are")
        piece = self.data[self.position : end]
        self.position = end
        return piece

    def byte(self) -> int:
        value = self.data[self.position]  # IndexError: cut short
        self.position += 1
        return value

    def unpack(self, layout: struct.Struct) -> Any:
        return layout.unpack(self.take(layout.size))[0]

    def text(self, length: int) -> str:
        try:
            return self.take(length).decode("utf-8", "surrogatepass")
        except UnicodeDecodeError as error:
            raise ValueError("a text that is not UTF-8") from error

    def line(self) -> str:
        end = self.data.find(b"\n", self.position, self.position + 256)
        if end < 0:
            raise ValueError("a name of more than 255 bytes")
        text = self.text(end - self.position)
        self.position = end + 1
        return text

    # --- Stack ---

    def pop(self) -> Any:
        value = self.stack.pop()
        if value is _MARK:
            raise ValueError("a mark where a value should be")
        return value

    def pop_to_mark(self) -> list[Any]:
        stack = self.stack
        at = len(stack) - 1
        while stack[at] is not _MARK:  # IndexError: there is none
            at -= 1
            if at < 0:
                raise ValueError("values without the mark that should precede them")
        values = stack[at + 1 :]
        del stack[at:]
        return values

    def nest(self, container: Any, values: list[Any] | tuple) -> None:
        """Notes how deep `container` is now that it holds `values`.

        What is in a container is complete: else depths would be wrong, and circles possible.
        """
        self.steps += 1
        depths, key = self.depth, id(container)
        known = depths.get(key)
        deepest = known or 1
        for value in values:
            depth = depths.get(id(value))
            if depth is not None:
                self.inside.add(id(value))
                if depth >= deepest:
                    deepest = depth + 1
        if deepest > _MAX_DEPTH:
            raise ValueError(f"containers more than {_MAX_DEPTH} deep")
        if known is None:
            self.kept.append(container)
        elif key in self.inside:
            raise ValueError("a container that changes after it was put into another, or itself")
        depths[key] = deepest

    def push_tuple(self, values: list[Any]) -> None:
        value = tuple(values)
        if value:
            self.nest(value, value)
        self.stack.append(value)

    def top(self, kind: type, doing: str) -> Any:
        value = self.stack[-1]
        if type(value) is not kind:
            raise ValueError(f"{doing} a {type(value).__name__.strip('_')}")
        return value

    def set_items(self, items: list[Any]) -> None:
        target = self.top(dict, "items set on")
        if len(items) % 2:
            raise ValueError("a key without a value")
        keys, values = items[::2], items[1::2]
        for key, value in zip(keys, values, strict=True):
            # No floats: hundreds of chosen ones share one hash.
            if type(key) not in (str, int, bool, type(None)):
                raise ValueError(f"a {type(key).__name__} as a key; expected text or an integer")
            target[key] = value
        self.nest(target, values)

    def append(self, values: list[Any]) -> None:
        target = self.top(list, "values appended to")
        target.extend(values)
        self.nest(target, values)

    # --- Names ---

    def name(self, module: Any, attribute: Any) -> None:
        words = type(module) is str and type(attribute) is str
        found = f"{module} {attribute}" if words else ""
        if found not in _NAMES:
            raise ValueError(
                f"the Python object {_printable(module, attribute)}, which no dictionary of "
                "tensors needs; nothing was run. If you trust the file, keep only its weights "
                "with torch: torch.save({'state_dict': ...}, path)"
            )
        self.steps += 1
        self.stack.append(_NAMES[found])

    def call(self) -> None:
        self.steps += 3
        arguments, function = self.pop(), self.pop()
        if type(arguments) is not tuple or not callable(function):
            raise ValueError("a call of something that is not one of the few names allowed")
        value = function(arguments)
        if type(value) in (dict, Namespace):
            self.nest(value, ())
        self.stack.append(value)

    def build(self) -> None:
        """Attributes: state dicts carry their `_metadata` so, argument lists everything."""
        state, target = self.pop(), self.stack[-1]
        if type(target) is Namespace:
            if type(state) is dict and not target.attributes:  # else nothing of it is kept
                target.attributes.update(state)
                self.nest(target, list(state.values()))
        elif type(target) is not Inert and (type(target) is not dict or type(state) is not dict):
            raise ValueError(f"attributes set on a {type(target).__name__.strip('_')}")

    def storage(self) -> None:
        """("storage", type, key, device, elements[, view]) -> `Storage`."""
        found = self.pop()
        if type(found) is not tuple or len(found) not in (5, 6) or found[0] != "storage":
            raise ValueError("a persistent id that is no storage")
        _, kind, key, _, numel = found[:5]
        if type(kind) is not _StorageType or not _is_key(key) or not _is_size(numel):
            raise ValueError("a storage whose type, key or length is not one of torch.save")
        if len(found) == 6 and found[5] is not None:
            raise ValueError("a storage that is a view of another (PyTorch 0.3 or older)")
        storage = self.storages.get(key)
        if storage is None:
            storage = self.storages[key] = Storage(key, kind.dtype, numel)
        elif storage.dtype is not kind.dtype or storage.numel != numel:
            raise ValueError(f"storage {key!r} with two types or lengths")
        self.stack.append(storage)

    def put(self, index: int) -> None:
        if self.stack[-1] is _MARK:
            raise ValueError("a mark where a value should be")
        self.memo[index] = self.stack[-1]

    def get(self, index: int) -> None:
        if index not in self.memo:
            raise ValueError(f"memo entry {index:,}, which was never written")
        self.stack.append(self.memo[index])

    def protocol(self) -> None:
        version = self.byte()
        if not 2 <= version <= 5:
            raise ValueError(f"pickle protocol {version}; expected 2 to 5")

    def frame(self) -> None:
        length = self.unpack(_U8)
        if length > len(self.data) - self.position:
            raise ValueError(f"a pickle that promises {length:,} bytes more than there are")

    def long(self) -> None:
        length = self.byte()
        if length > 8:  # chosen giants as keys would all share one hash
            raise ValueError(f"an integer of {length} bytes; allowed: 8")
        self.stack.append(int.from_bytes(self.take(length), "little", signed=True))


def _printable(module: Any, attribute: Any) -> str:
    """A dotted name for a message: short and printable, whatever the file says."""
    words = [w if type(w) is str else type(w).__name__ for w in (module, attribute)]
    return ascii(".".join(words)[:80])


_MARK = _Mark()
_U1, _U2, _I4, _U4 = (struct.Struct(layout) for layout in ("<B", "<H", "<i", "<I"))
_U8, _F8 = struct.Struct("<Q"), struct.Struct(">d")


def _push(value: Any) -> Callable[[_Pickle], None]:
    return lambda machine: machine.stack.append(value)


def _push_new(kind: type) -> Callable[[_Pickle], None]:
    def push(machine: _Pickle) -> None:
        value = kind()
        machine.nest(value, ())
        machine.stack.append(value)

    return push


def _push_number(layout: struct.Struct) -> Callable[[_Pickle], None]:
    return lambda machine: machine.stack.append(machine.unpack(layout))


def _push_text(layout: struct.Struct) -> Callable[[_Pickle], None]:
    return lambda machine: machine.stack.append(machine.text(machine.unpack(layout)))


def _push_bytes(layout: struct.Struct) -> Callable[[_Pickle], None]:
    return lambda machine: machine.stack.append(machine.take(machine.unpack(layout)))


def _push_tuple_of(count: int) -> Callable[[_Pickle], None]:
    return lambda machine: machine.push_tuple([machine.pop() for _ in range(count)][::-1])


# Instruction byte -> what it does; names as in Python's `pickletools`.
_INSTRUCTIONS: dict[int, Callable[[_Pickle], Any]] = {
    ord(code): instruction
    for code, instruction in {
        "\x80": _Pickle.protocol,  # PROTO
        "\x95": _Pickle.frame,  # FRAME
        "(": _push(_MARK),  # MARK
        "}": _push_new(dict),  # EMPTY_DICT
        "]": _push_new(list),  # EMPTY_LIST
        ")": _push(()),  # EMPTY_TUPLE
        "N": _push(None),  # NONE
        "\x88": _push(True),  # NEWTRUE
        "\x89": _push(False),  # NEWFALSE
        "K": lambda machine: machine.stack.append(machine.byte()),  # BININT1
        "M": _push_number(_U2),  # BININT2
        "J": _push_number(_I4),  # BININT
        "\x8a": _Pickle.long,  # LONG1
        "G": _push_number(_F8),  # BINFLOAT
        "X": _push_text(_U4),  # BINUNICODE
        "\x8c": _push_text(_U1),  # SHORT_BINUNICODE
        "U": _push_text(_U1),  # SHORT_BINSTRING, of Python 2
        "C": _push_bytes(_U1),  # SHORT_BINBYTES
        "B": _push_bytes(_U4),  # BINBYTES
        "t": lambda machine: machine.push_tuple(machine.pop_to_mark()),  # TUPLE
        "\x85": _push_tuple_of(1),  # TUPLE1
        "\x86": _push_tuple_of(2),  # TUPLE2
        "\x87": _push_tuple_of(3),  # TUPLE3
        "u": lambda machine: machine.set_items(machine.pop_to_mark()),  # SETITEMS
        "s": lambda machine: machine.set_items([machine.pop() for _ in range(2)][::-1]),  # SETITEM
        "e": lambda machine: machine.append(machine.pop_to_mark()),  # APPENDS
        "a": lambda machine: machine.append([machine.pop()]),  # APPEND
        "q": lambda machine: machine.put(machine.byte()),  # BINPUT
        "r": lambda machine: machine.put(machine.unpack(_U4)),  # LONG_BINPUT
        "\x94": lambda machine: machine.put(len(machine.memo)),  # MEMOIZE
        "h": lambda machine: machine.get(machine.byte()),  # BINGET
        "j": lambda machine: machine.get(machine.unpack(_U4)),  # LONG_BINGET
        "c": lambda machine: machine.name(machine.line(), machine.line()),  # GLOBAL
        "\x93": lambda machine: machine.name(
            *[machine.pop() for _ in range(2)][::-1]
        ),  # STACK_GLOBAL
        "R": _Pickle.call,  # REDUCE
        "\x81": _Pickle.call,  # NEWOBJ
        "b": _Pickle.build,  # BUILD
        "Q": _Pickle.storage,  # BINPERSID
    }.items()
}


# --- Writing ---


def write_torch(
    path: Path,
    tensors: Mapping[str, np.ndarray],
    wrapper: str = "state_dict",
    beside: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Writes a state dict as `torch.save` would, for `torch.load(weights_only=True)`.

    Args:
        path: File to write; replaced if there is one.
        tensors: {name: array}, of any dtype that is read here.
        wrapper: Entry that holds them; "": they stand at the top, as transformers wants them.
        beside: Other entries: texts, lists of texts, and dictionaries of these.
    """
    kinds = {dtype: kind.encode() for kind, dtype in _DTYPES.items()}
    out = bytearray(b"\x80\x02}")
    if wrapper:
        out += b"(" + b"".join(_text(key) + pickled_plain(value) for key, value in beside.items())
        out += _text(wrapper) + b"}"
    out += b"("
    for key, (name, array) in enumerate(tensors.items()):
        steps = [stride // array.itemsize for stride in np.empty(array.shape, array.dtype).strides]
        out += _text(name) + b"ctorch._utils\n_rebuild_tensor_v2\n(("
        out += _text("storage") + b"ctorch\n" + kinds[array.dtype] + b"\n" + _text(str(key))
        out += _text("cpu") + _integer(array.size) + b"tQ" + _integer(0)
        out += b"(" + b"".join(map(_integer, array.shape)) + b"t"
        out += b"(" + b"".join(map(_integer, steps)) + b"t"
        out += b"\x89ccollections\nOrderedDict\n)RtR"
    out += b"uu." if wrapper else b"u."
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", bytes(out))
        archive.writestr("archive/byteorder", b"little")
        for key, array in enumerate(tensors.values()):
            archive.writestr(f"archive/data/{key}", array.tobytes())
        archive.writestr("archive/version", b"3\n")


def pickled_plain(value: Any) -> bytes:
    """Texts, lists and dictionaries of these, as instructions of a pickle."""
    if isinstance(value, str):
        return _text(value)
    if isinstance(value, dict):
        items = b"".join(_text(key) + pickled_plain(one) for key, one in value.items())
        return b"}(" + items + b"u"
    return b"](" + b"".join(map(pickled_plain, value)) + b"e"


def _text(text: str) -> bytes:
    encoded = text.encode("utf-8", "surrogatepass")
    return b"X" + _U4.pack(len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return b"J" + _I4.pack(value) if value < 2**31 else b"\x8a\x08" + value.to_bytes(8, "little")
