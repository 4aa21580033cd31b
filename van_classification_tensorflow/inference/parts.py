"""What a process with `--shard` writes: a part, which is its journal, whole.

Its first line says what it was made with, and of which inputs it is which share; each other line
is the record of a picture, in order.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import file_digest, sha256
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..images.find import name_of
from ..support.files import sync
from ..support.text import in_shell, printable
from ..weights.pretrained import files_of_weights
from .classifier import Classifier
from .journal import Journal, check_not_there, parsed
from .shard import Shard, digest_of

_AT_ONCE = 1 << 18  # bytes of a part that are in memory
# {what the first line says: of which kind it is}
_SAID: dict[str, type | tuple[type, ...]] = {
    "shard": str,
    "inputs": int,
    "block": int,
    "names": str,
    "content": str,
    "weights": list,
    "preprocessing": dict,
    "views": list,
    "features": bool,
    "top": (int, type(None)),
    "precision": str,
    "engine": str,
}

_OF_CLASS: dict[str, type | tuple[type, ...]] = {
    "label": str,
    "wnid": (str, type(None)),
    "index": int,
    "probability": float,
}


def said_of_shard(
    shard: Shard, inputs: list[str | bytes], classifier: Classifier, weights: Any
) -> dict[str, Any]:
    """What a part says beyond what every journal says.

    Args:
        shard: Which one it is.
        inputs: Of all shards, in order.
        classifier: What classifies them.
        weights: What it was opened with.
    """
    block = classifier.pictures_at_once
    return {
        "shard": str(shard),
        "inputs": len(inputs),
        "block": block,
        "names": digest_of(map(name_of, inputs), shard.count, block),
        "content": content_of(classifier, weights),
    }


def content_of(classifier: Classifier, weights: Any) -> str:
    """SHA-256 of numbers and labels: copies of a file on several machines differ in time."""
    digest = sha256(repr((classifier.activation, classifier.labels)).encode())
    if classifier.opened_weights is not None:
        for name, array in sorted(classifier.opened_weights.tensors.items()):
            digest.update(repr((name, array.dtype.name, array.shape)).encode())
            digest.update(np.ascontiguousarray(array).tobytes())
    else:
        for path in files_of_weights(weights):
            with path.open("rb") as file:
                digest.update(file_digest(file, "sha256").digest())
    return digest.hexdigest()


class PartJournal(Journal):
    """The journal of one shard; finished, it is the part itself.

    Args:
        whole: The output of all shards.
        shard: Which one it is.
        resume: As of `Journal`.
        overwrite: As of `Journal`.

    Raises:
        FileExistsError: The part or the whole output is there, or another run is writing it.
    """

    def __init__(self, whole: Path, shard: Shard, resume: bool, overwrite: bool = False):
        self.whole, self.shard = whole, shard
        super().__init__(shard.part_of(whole), resume, overwrite)

    def _check(self, output: Path, resume: bool, overwrite: bool) -> None:
        super()._check(output, resume, overwrite)
        if not (overwrite or self.finished or self.path.exists()):
            check_not_there(self.whole)  # now, and not when all is done

    def _check_same(self, before: Any, now: dict[str, Any]) -> None:
        told = isinstance(before, dict) and "names" in before
        if told and before.get("block") == now["block"] and before["names"] != now["names"]:
            raise ValueError(
                f"{self.path} was begun with other inputs, or in another order: resume with the "
                "same, or begin anew with --overwrite"
            )
        super()._check_same(before, now)

    def finish(self, top: int, features: bool) -> None:
        """Gives the journal the name of the part."""
        self.file.close()
        sync(self.path)
        os.replace(self.path, self.output)
        sync(self.output.absolute().parent)


@dataclass(frozen=True)
class Part:
    """A part that is whole.

    Args:
        output: Which it is a part of.
        shard: Which one it is, by its name.
        about: What its first line says.
        state: By which it is noticed that it was replaced.
    """

    output: Path
    shard: Shard
    about: dict[str, Any]
    state: tuple[int, ...]

    @property
    def path(self) -> Path:
        """Where it lies."""
        return self.shard.part_of(self.output)

    @property
    def anew(self) -> str:
        """By what it is made anew, in words."""
        return f"make it anew: {command(self.output, self.shard)} --overwrite"

    def records(self) -> Iterator[dict[str, Any]]:
        """The record of each picture, in order.

        Closed between reads: there may be more parts than a process may hold open.

        Raises:
            ValueError: A line is damaged, or the file was changed since it was opened.
        """
        for number, line in islice(enumerate(self._lines(), start=1), 1, None):
            record = parsed(line)
            if record is None or not _is_record(record, self.about):
                raise ValueError(f"{printable(self.path)}: line {number:,} is damaged; {self.anew}")
            yield record

    def _lines(self) -> Iterator[bytes]:
        at = 0
        while True:
            with self.path.open("rb") as file:
                if _state(file) != self.state:
                    raise ValueError(f"{printable(self.path)} was changed meanwhile; try again")
                file.seek(at)
                lines = file.readlines(_AT_ONCE)
            if not lines:
                return
            at += sum(map(len, lines))
            yield from lines


def open_part(output: Path, shard: Shard) -> Part:
    """Reads what a part says of itself.

    Raises:
        ValueError: It is not what `van predict` writes for this shard.
    """
    with shard.part_of(output).open("rb") as file:
        state, about = _state(file), parsed(file.readline())
    part = Part(output, shard, about or {}, state)
    if not (
        isinstance(about, dict)
        and all(isinstance(about.get(key), kind) for key, kind in _SAID.items())
        and min(about["inputs"], about["block"]) >= 1
        and (about["top"] is None) == about["features"]
        and about["shard"] == str(shard)
    ):
        raise ValueError(
            f"{printable(part.path)}: its first line is not that of part {shard}, as `van "
            f"predict` writes it; {part.anew}"
        )
    return part


def command(output: Path, shard: Shard | str) -> str:
    """What makes a part, to be filled in."""
    return f"van predict ... --output {in_shell(output)} --shard {shard}"


def parts_beside(output: Path) -> dict[Shard, bool]:
    """{each shard of which there is a part: whether it is whole}, by number."""
    pattern = re.compile(
        rf"{re.escape(output.name)}\.([0-9]{{1,5}})-of-([0-9]{{1,5}})\.part(\.partial)?"
    )
    found: dict[Shard, bool] = {}
    for path in output.absolute().parent.iterdir():
        if (named := pattern.fullmatch(path.name)) and int(named[1]) < int(named[2]):
            shard = Shard(int(named[1]), int(named[2]))
            # One that is made anew is not whole, though the older one is still there.
            found[shard] = found.get(shard, True) and named[3] is None
    return dict(sorted(found.items(), key=lambda item: (item[0].count, item[0].number)))


def _state(file: BinaryIO) -> tuple[int, ...]:
    info = os.fstat(file.fileno())
    return info.st_ino, info.st_size, info.st_mtime_ns


def _is_record(record: dict[str, Any], about: dict[str, Any]) -> bool:
    """Whether the writers can take it."""
    if not isinstance(record, dict) or not isinstance(record.get("path"), str):
        return False
    if "error" not in record or not isinstance(record["error"], (str, type(None))):
        return False
    if about["features"]:
        found = record.get("features")
        if record["error"] is not None:
            return found is None
        return isinstance(found, list) and all(isinstance(one, float) for one in found)
    found = record.get("predictions")
    return (
        isinstance(found, list)
        and len(found) <= about["top"]
        and all(
            isinstance(one, dict)
            and all(isinstance(one.get(key, ...), kind) for key, kind in _OF_CLASS.items())
            for one in found
        )
    )
