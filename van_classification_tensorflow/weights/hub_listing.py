"""What a model hub says is in a folder: names, sizes and hashes, checked before a file is fetched.

A hub's answer is a stranger's: only plain names at the top of the folder are taken, nothing may be
larger than any VAN needs, and each file has a hash that its bytes must have.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.files import git_hash_of, sha256_of
from .file_names import (
    CONFIG,
    INDEX,
    KERAS_HUB_FILES,
    KERAS_WEIGHTS,
    MAX_JSON,
    PREPROCESSOR_CONFIG,
    PYTORCH,
    SAFETENSORS,
)

MAX_LISTING = 16 << 20  # bytes; a file takes some 200
_MAX_FILES = 10_000
_MAX_WEIGHTS = 4 << 30  # bytes of a file; a B6 with its optimizer has 2.4 GB
_MAX_ALL = 16 << 30
_WEIGHTS = (".safetensors", ".bin", ".h5", ".keras")

_BESIDE = (CONFIG, PREPROCESSOR_CONFIG)
# What Keras and KerasHub read as well.
_OF_KERAS = ("metadata.json", KERAS_WEIGHTS, *KERAS_HUB_FILES)
_FOR_PEOPLE = ("README.md", "LICENSE", "LICENSE.md", "LICENSE.txt", "results.json")
_KEPT = (
    SAFETENSORS,
    PYTORCH,
    SAFETENSORS + INDEX,
    PYTORCH + INDEX,
    *_BESIDE,
    *_OF_KERAS,
    *_FOR_PEOPLE,
)
_SHARD = r"{}-\d{{5}}-of-\d{{5}}\.{}"


class Kept(Container[str]):
    """The names of all that may be kept of a folder, parts of weights in several files too."""

    def __contains__(self, name: object) -> bool:
        return name in _KEPT or any(_is_shard(name, of) for of in (SAFETENSORS, PYTORCH))


def _is_shard(name: object, of: str) -> bool:
    """Whether a file is a part of the weights that would be called `of` in one file."""
    stem, ending = of.rsplit(".", 1)
    pattern = _SHARD.format(re.escape(stem), ending)
    return isinstance(name, str) and bool(re.fullmatch(pattern, name))


@dataclass(frozen=True)
class Entry:
    """A file, as the hub says it is.

    Args:
        name: A plain one.
        size: Bytes.
        sha256: Of its bytes, of large files; "" of others.
        blob: What git calls its bytes: SHA-1 of "blob", its size and these.
    """

    name: str
    size: int
    sha256: str = ""
    blob: str = ""

    def mismatch(self, path: Path) -> str:
        """What is wrong with the file at `path`; "" where nothing is."""
        size = path.stat().st_size
        if size != self.size:
            return f"expected {self.size:,} bytes, found {size:,}"
        if self.sha256:
            kind, expected, found = "SHA-256", self.sha256, sha256_of(path)
        else:
            kind, expected, found = "git's hash", self.blob, git_hash_of(path, size)
        return "" if found == expected else f"expected {kind} {expected}, found {found}"


@dataclass(frozen=True)
class Listing:
    """What is in a folder of a hub.

    Args:
        commit: 40 hexadecimal digits; what is in it never changes.
        files: {name: entry} of plain names at its top.
    """

    commit: str
    files: dict[str, Entry]

    @classmethod
    def from_json(cls, text: bytes) -> Listing:
        """What the hub answers, `GET /api/models/USER/NAME/revision/REVISION?blobs=true`.

        Raises:
            ValueError: It is no such answer.
        """
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError("its answer is no JSON") from error
        siblings = record.get("siblings") if isinstance(record, dict) else None
        if not isinstance(siblings, list) or len(siblings) > _MAX_FILES:
            raise ValueError(f"its answer has no list of at most {_MAX_FILES:,} files")
        commit = record.get("sha")
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise ValueError("its answer names no commit")
        found = [entry for one in siblings if (entry := _entry(one)) is not None]
        files = {entry.name: entry for entry in found}
        if len(files) != len(found):
            raise ValueError("its answer has a file twice")
        return cls(commit, files)

    def to_json(self) -> str:
        """As the hub would say it, for `from_json`."""
        siblings = [
            {
                "rfilename": one.name,
                "size": one.size,
                "blobId": one.blob,
                **({"lfs": {"sha256": one.sha256}} if one.sha256 else {}),
            }
            for one in self.files.values()
        ]
        return json.dumps({"sha": self.commit, "siblings": siblings})

    def to_read(self) -> list[Entry]:
        """The files that weights are read from, and what stands beside them.

        Raises:
            ValueError: There are none, or they are larger than any VAN's.
        """
        for name in (SAFETENSORS, PYTORCH):
            if name in self.files:
                return self._chosen([name, *_BESIDE])
            if name + INDEX in self.files:
                shards = [one for one in self.files if _is_shard(one, name)]
                return self._chosen([name + INDEX, *shards, *_BESIDE])
        if KERAS_WEIGHTS in self.files and CONFIG in self.files:
            return self._chosen([KERAS_WEIGHTS, CONFIG])
        raise ValueError(
            f"there is no {SAFETENSORS}, {PYTORCH} or {KERAS_WEIGHTS} with {CONFIG} in it"
        )

    def to_keep(self) -> list[Entry]:
        """All that is of use to this package, Keras, KerasHub or a person.

        Raises:
            ValueError: As `to_read`.
        """
        names = [entry.name for entry in self.to_read()]
        return self._chosen(dict.fromkeys([*names, *_BESIDE, *_OF_KERAS, *_FOR_PEOPLE]))

    def only(self, *names: str) -> list[Entry]:
        """Those of these names that are there.

        Raises:
            ValueError: They are larger than any VAN's.
        """
        return self._chosen(names)

    def _chosen(self, names: Iterable[str]) -> list[Entry]:
        entries = [self.files[name] for name in names if name in self.files]
        for one in entries:
            most = _MAX_WEIGHTS if one.name.endswith(_WEIGHTS) else MAX_JSON
            if one.size > most:
                raise ValueError(f"its {one.name} has {one.size:,} bytes; allowed: {most:,}")
        if sum(one.size for one in entries) > _MAX_ALL:
            raise ValueError(f"its files have more than {_MAX_ALL:,} bytes together")
        return entries


def _entry(said: Any) -> Entry | None:
    """A file that may be fetched; None of one in a folder, or of a name that is not plain.

    Raises:
        ValueError: What is said of it makes no sense.
    """
    name = said.get("rfilename") if isinstance(said, dict) else None
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,199}", name):
        return None
    lfs = said.get("lfs")
    large = lfs if isinstance(lfs, dict) else {}
    size, sha256, blob = said.get("size"), large.get("sha256", ""), said.get("blobId", "")
    if type(size) is not int or size < 0:
        raise ValueError(f"its answer does not say how large {name} is")
    if lfs is not None and not _is_hash(sha256, 64):
        raise ValueError(f"its answer has no SHA-256 of {name}")
    if lfs is None and not _is_hash(blob, 40):
        raise ValueError(f"its answer has no hash of {name}")
    return Entry(name, size, sha256, blob if _is_hash(blob, 40) else "")


def _is_hash(value: Any, digits: int) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(f"[0-9a-f]{{{digits}}}", value))


def left_out(listing: Listing, kept: Collection[Entry]) -> list[str]:
    """Names of the files that are not kept."""
    names = {entry.name for entry in kept}
    return sorted(name for name in listing.files if name not in names)
