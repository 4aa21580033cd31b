"""safetensors: headers that lie about the numbers behind them."""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path

from tests.weights.hostile.payload import Payload, table
from tests.weights.hostile.writers import entry, in_safetensors


def safetensors() -> Iterator[Payload]:
    broken, lengths = "not a valid safetensors file", "a safetensors header of .* bytes in a file"
    whole = in_safetensors({"w": entry()})
    yield from table(
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
    )
    yield from table(
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
        file=lambda found: in_safetensors({"w": found}),
    )
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
