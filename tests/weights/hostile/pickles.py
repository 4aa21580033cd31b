"""Pickles that would run something, and instructions that are not ours."""

from __future__ import annotations

import pickletools
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.weights.hostile.payload import Payload
from tests.weights.hostile.writers import (
    in_older,
    in_zip,
    many,
    name,
    number,
    saved,
    sizes,
    storage,
    tensor,
    text,
)

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
    ("numpy.core.multiarray", "fromstring", "word"),
    ("numpy", "fromfile", "path"),
    ("mmengine.logging.history_buffer", "np", "none"),
    ("mmengine.logging.history_buffer", "HistoryBuffer.__init__.__globals__", "none"),
    ("mmengine.logging.history_buffer.HistoryBuffer", "current", "none"),
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


def of_mmengine() -> Iterator[tuple[str, str, bytes]]:
    """(what, what the refusal says, instructions) of words that mmengine's files are allowed."""
    history = name("mmengine.logging.history_buffer", "HistoryBuffer")
    attribute, array = name("__builtin__", "getattr"), name("numpy", "ndarray")
    other = "an attribute of something else than mmengine's HistoryBuffer"
    for what, owner in {
        "a function's": name("torch._utils", "_rebuild_tensor_v2"),
        "a type's": name("torch", "Size"),
        "a dictionary's": b"}",
        "a tensor's": tensor(),
        "a text's": text("os"),
        "getattr's": attribute,
        "an array's": array,
        "a buffer's": history + b")\x81",
    }.items():
        yield f"{what} attribute", other, attribute + many(owner, text("__globals__")) + b"R"
    yield "no attribute", other, attribute + many(history) + b"R"
    yield "a default", other, attribute + many(history, text("a"), attribute) + b"R"
    yield "an attribute that is no text", other, attribute + many(history, b"K\x01") + b"R"
    method = attribute + many(history, text("__init__")) + b"R"
    yield "a method called", "a call of something", method + b")R"
    yield "a buffer called", "a call of something", history + b")\x81)R"
    wrong = "an array made of something else than numpy's ndarray"
    for module in ("numpy.core.multiarray", "numpy._core.multiarray"):
        make = name(module, "_reconstruct")
        yield f"{module} of a buffer", wrong, make + many(history, sizes(0), b"C\x01b") + b"R"
        yield f"{module} of a word", wrong, make + many(text("os"), sizes(0), b"C\x01b") + b"R"
        yield f"{module} of a size", wrong, make + many(array, sizes(9), b"C\x01b") + b"R"
        yield f"{module} of nothing", wrong, make + b")R"
    yield "a buffer of arguments", "a HistoryBuffer of mmengine with", history + sizes(1) + b"\x81"
    yield "an array called", "a call of something", array + b")R"
    yield "an array's class", "attributes set on a Word", array + b"}b"
    yield "a buffer's class", "attributes set on a function", history + b"}b"
    yield "a buffer as a key", "as a key", b"}" + history + b"Ns"


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
    for what, says, found in of_mmengine():
        yield Payload(f"mmengine: {what}", says, in_zip(saved(found)))
        yield Payload(f"mmengine: {what}, older", says, in_older(saved(found)))
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


# The instructions that are read; a new one has to be looked at as an attacker would.
OURS = b"().BCGJKMNQRUX]abcehjqrstu}\x80\x81\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95"


def opcodes() -> Iterator[Payload]:
    """Every byte that is no instruction of ours, and every instruction where it does not fit."""
    known = {ord(op.code): op.name for op in pickletools.opcodes}
    for number_ in sorted(set(range(256)) - {*OURS}):
        called = known.get(number_, "no opcode")
        says = f"the pickle instruction {bytes([number_])!r}, which no".replace("\\", "\\\\")
        says = "".join(f"\\{c}" if c in "()[]{}|^$*+?." else c for c in says)
        pickle = saved(b"NN" + bytes([number_]) + b"1\n1\n" + bytes(8))
        yield Payload(f"{number_:#04x} {called}", says, in_zip(pickle))
        yield Payload(f"{number_:#04x} {called}, older", says, in_older(pickle))
    for number_ in OURS:
        # Alone: on an empty stack, without its argument.
        yield Payload(
            f"{number_:#04x} {known[number_]} alone",
            "cut short|empty stack|promises|mark|leaves|holds a|name of|memo|at its top|46",
            in_zip(b"\x80\x02" + bytes([number_]) + (b"." if number_ != ord(".") else b"")),
        )
    for version in (0, 1, 6, 255):
        says = f"pickle protocol {version}; expected"
        yield Payload(f"protocol {version}", says, in_zip(b"\x80" + bytes([version]) + b"N."))
