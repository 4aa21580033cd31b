"""Small files that would take much memory or time: without end, deep, shared, repeated."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

from tests.weights.hostile.payload import Payload
from tests.weights.hostile.writers import (
    NUMBERS,
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

HUGE, STEPS = b"\xff\xff\xff\xff", "a pickle of more than 750,000 steps"


def bombs() -> Iterator[Payload]:
    for made in (promises, endless, deep_and_round, keys, many_tensors):
        yield from made()


def _small(called: str, says: str, extra: bytes) -> Payload:
    return Payload(called, says, in_zip(saved(extra)))


def _both(called: str, says: str, extra: bytes) -> Iterator[Payload]:
    yield _small(called, says, extra)
    yield Payload(f"{called}, older", says, in_older(saved(extra)))


def promises() -> Iterator[Payload]:
    """More bytes are promised, or referred to, than there are."""
    yield _small("memo entry that was never written", "memo entry 4,294,967,295", b"j" + HUGE)
    yield _small("memo entry below it", "memo entry 7", b"Nr" + HUGE + b"h\x07")
    for called, start in {
        "BINUNICODE": b"X" + HUGE,
        "BINBYTES": b"B" + HUGE,
        "SHORT_BINUNICODE": b"\x8c\xff",
        "SHORT_BINBYTES": b"C\xff",
        "SHORT_BINSTRING": b"U\xff",
        "LONG1": b"\x8a\x08",
        "FRAME": b"\x95" + (4 << 30).to_bytes(8, "little"),
        "FRAME of 2^64": b"\x95" + b"\xff" * 8,
    }.items():
        pickle = b"\x80\x04" + start + b"."
        yield Payload(f"{called} without its bytes", "promises .* bytes more", in_zip(pickle))
    yield _small("LONG1 of 255 bytes", "an integer of 255 bytes", b"\x8a\xff" + b"\x7f" * 255)
    yield _small("a name of 300 bytes", "a name of more than 255", name("a" * 300, "b"))
    yield _small("text that is no UTF-8", "not UTF-8", b"X\x02\x00\x00\x00\xff\xfe")


def endless() -> Iterator[Payload]:
    """Instructions without end."""
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
        yield _small(f"{called} without end", STEPS, b"(Nq\x00" + memo + piece * 760_000)
    yield from _both("NEWTRUE without end", STEPS, b"(" + b"\x88" * 760_000 + b"t")
    yield _small("a key set without end", STEPS, b"Nq\x00}(" + b"h\x00h\x00" * 400_000 + b"u\x86")
    repeated = b"Nq\x00(" + (b"(" + b"h\x00" * 20_000 + b"t") * 40
    yield _small("huge tuples of one thing", STEPS, repeated)
    growing = b"Nq\x00]q\x01" + (b"(" + b"h\x00" * 1000 + b"e") * 800
    yield _small("one list grows without end", STEPS, growing)
    shared = b"(" + b"N" * 100_000 + b"tq\x00](" + b"h\x00" * 700_000 + b"e\x86"
    yield _small("one tuple held very often", STEPS, shared)
    in_turn = b"\x80\x02(" + b"N" * 400_000 + b"t."
    pickles = {"protocol": in_turn, "machine": in_turn}
    yield Payload("pickle after pickle", "steps|protocol", in_older(saved(), **pickles))
    inside = b"\x80\x02}(" + text("little_endian") + b"\x88" + text("a") + in_turn[2:-1] + b"u."
    grown = in_older(saved(in_turn[2:-1]), machine=inside)
    yield Payload("steps of two pickles", STEPS, grown)


def deep_and_round() -> Iterator[Payload]:
    """Depth, circles, and values that are small here and endless once they are shown."""
    deep = "containers more than 64 deep"
    for called, piece in {
        "tuples": b"N" + b"\x85" * 100_000,
        "lists": b"(" + b"]" * 100_000 + b"a" * 99_999 + b"t",
        "dictionaries": b"}N" * 100_000 + b"N" + b"s" * 100_000,
        "named dictionaries": b"N"
        + (b"q\x00" + name("collections", "OrderedDict") + b")RNh\x00s") * 70,
    }.items():
        yield from _both(f"{called} 100,000 deep", deep, piece)
    changed = "a container that changes after it was put into another"
    down = b"".join(b"]q" + bytes([i]) + b"ah" + bytes([i]) for i in range(1, 200))
    yield _small("lists filled from the outside", changed, b"](]q\x00h\x00" + down + b"e")
    yield _small("a list in itself", changed, b"]q\x00h\x00a")
    yield _small("a list in itself, by many", changed, b"]q\x00(NNh\x00e")
    yield _small("a dictionary in itself", changed, b"}q\x00Nh\x00s")
    yield _small("a circle of two", changed, b"]q\x00]q\x01h\x00ah\x00h\x01a\x86")
    doubled = b"]q\x00" + b"".join(
        b"](h" + bytes([i]) + b"h" + bytes([i]) + b"eq" + bytes([i + 1]) for i in range(60)
    )
    lone = b"(" + doubled + b"t"  # 2^60 lists, were they written out
    yield _small("a key of 2^60 parts", "a tuple as a key", b"}" + lone + b"Ns")
    yield _small("a name of 2^60 parts", "the Python object 'tuple.tuple", lone * 2 + b"\x93")
    yield _small("an id of 2^60 parts", "a persistent id", lone + b"Q")
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


def keys() -> Iterator[Payload]:
    """Keys that are no keys or collide, and marks and containers where they do not fit."""
    for called, key in {
        "a list": b"]",
        "a dict": b"}",
        "a tuple": b"NN\x86",
        "a bytes": b"C\x01a",
        "a float": b"G" + bytes(8),
        "a Tensor": tensor(),
        "a Inert": name("torch", "float32"),
    }.items():
        yield _small(f"{called} as key", f"{called} as a key", b"}" + key + b"Ns")
    prime = 2**61 - 1
    collide = b"".join(number(i * prime) + b"N" for i in range(1, 20_000))
    yield _small("integers of one hash", "an integer of 9 bytes", b"}(" + collide + b"u")
    floats = b"".join(
        b"G" + struct.pack(">d", (1 + 2**9 + 2**18) * 2.0 ** (61 * i)) + b"N"
        for i in range(-10, 10)
    )
    yield _small("floats of one hash", "a float as a key", b"}(" + floats + b"u")
    yield _small("a key without value", "a key without a value", b"}(NNNu")
    yield _small("items set on a list", "items set on a list", b"](NNu")
    yield _small("items of a mark", "a mark where|items set on a Mark", b"(NNs")
    yield _small("a mark in the memo", "a mark where a value", b"(q\x00")
    yield _small("a mark as argument", "a mark where a value", name("torch", "Size") + b"(R")
    yield _small("a list appended to a dict", "values appended to a dict", b"}Na")
    yield _small(
        "an OrderedDict of items",
        "an OrderedDict with",
        name("collections", "OrderedDict") + b"]\x85R",
    )
    yield _small(
        "a size that is no tuple", "Size that is no tuple", name("torch", "Size") + b"N\x85R"
    )
    yield _small("two values left", "leaves 4 values|empty stack|key without", b"NN")
    yield Payload("a pickle of 65 MB", "data.pkl' has 68,", in_zip(saved() + bytes(65 << 20)))


def many_tensors() -> Iterator[Payload]:
    """Tensors in numbers, and their names."""
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
