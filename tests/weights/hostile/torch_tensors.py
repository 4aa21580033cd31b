"""Tensors of torch files that do not fit their numbers; and the container before 1.6."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from tests.weights.hostile.payload import Payload, table
from tests.weights.hostile.writers import (
    MAGIC,
    NUMBERS,
    dictionary,
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


# --- The older container ---


def older() -> Iterator[Payload]:
    whole = in_older(saved())
    count = "storage '0' should have 4 elements"
    yield from table(
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
    )
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
