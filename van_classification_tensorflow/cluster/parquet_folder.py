"""A folder of Parquet files, which the processes of a cluster write: `van predict --rows-per-file`.

Each file is the record of so many pictures, in order, and lies there whole or not at all: which of
them are there is all that a run that goes on has to know. Until all are, they lie beside the
output.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ..images.find import name_of
from ..inference.journal import Journal
from ..inference.records import READERS, to_record, write_output
from ..inference.shard import digest_of
from ..support.files import folder_beside, put_in_place, sync, write_atomically
from ..support.text import printable
from .actor import Worker, error_of, is_gone

_PART = re.compile(r"part-[0-9]{8}\.parquet")
_ABOUT = "_run.json"  # readers of Parquet folders pass over what begins so


class FolderJournal(Journal):
    """Which files of the folder are there.

    Args:
        output: The folder to make in the end.
        rows: Of each file; `begin` reads it.
        resume: As of `Journal`.
        overwrite: As of `Journal`.

    Attributes:
        to_do: Numbers of the files that are to be made (`begin`).

    Raises:
        FileExistsError: The output is there, or another run is writing it.
    """

    def __init__(self, output: Path, rows: int, resume: bool, overwrite: bool = False):
        self.rows = rows
        self.to_do: list[int] = []
        self._begun = False
        super().__init__(output, resume, overwrite)

    @property
    def begun(self) -> bool:
        return self._begun

    def _check(self, output: Path, resume: bool, overwrite: bool) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self.resume, self.overwrite, self.errors_before = resume, overwrite, []
        for folder in (output, self.path):
            _check_ours(folder)
        begun, there = self.path.exists(), output.exists()
        self.finished = resume and there and not begun
        if self.finished or overwrite:
            return
        if begun and not resume:
            raise FileExistsError(
                f"{self.path} is of an unfinished run: go on with --resume, or begin anew with "
                "--overwrite"
            )
        if there and not begun:
            raise FileExistsError(f"{output} is already there; to replace it: --overwrite")

    def begin(self, about: dict[str, Any], inputs: list[str | bytes]) -> list[str | bytes]:
        """The inputs whose files are not there yet: those of `to_do`."""
        about = about | {
            "rows_per_file": self.rows,
            "inputs": digest_of(map(name_of, inputs), 1, self.rows),
        }
        if self.overwrite and self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(exist_ok=True)
        said = self.path / _ABOUT
        if said.exists():
            self._check_same(_parsed(said), about)
        else:
            text = json.dumps(about)
            write_atomically(said, lambda new: new.write_text(text, encoding="utf-8"))
        self._begun = True
        there = {path.name for path in self.path.iterdir()}
        parts = range(-(-len(inputs) // self.rows))
        self.to_do = [number for number in parts if name_of_part(number) not in there]
        for number in sorted({*parts} - {*self.to_do}):
            records = READERS[".parquet"](self.path / name_of_part(number))
            self.errors_before += [one["error"] for one in records if one["error"]]
        starts = (number * self.rows for number in self.to_do)
        return [one for start in starts for one in inputs[start : start + self.rows]]

    def add(self, record: dict[str, Any]) -> None:
        """Its file has it."""

    def finish(self, top: int, features: bool) -> None:
        """Gives the folder the name of the output."""
        for path in self.path.iterdir():
            if not _PART.fullmatch(path.name):  # of the start, and of processes that were killed
                path.unlink()
        with folder_beside(self.output) as work:
            put_in_place([(self.path, self.output)], work)
        sync(self.output.absolute().parent)


def name_of_part(number: int) -> str:
    """Of the file with this number, from 0: sorted by name, rows are in the order of the inputs."""
    return f"part-{number:08}.parquet"


@dataclass(frozen=True)
class Folder:
    """Where files are made.

    Args:
        path: The folder, as all nodes see it.
        top: Classes of a record.
        features: Whether it holds features instead.
    """

    path: str
    top: int
    features: bool

    def write(self, number: int, records: Sequence[dict[str, Any]]) -> None:
        """Makes the file with this number; two may do so at once."""
        path = Path(self.path) / name_of_part(number)
        write_output(path, partial(iter, records), self.top, self.features, shared=True)

    def record_of_killer(self, classifier: Any, path: Any) -> dict[str, Any]:
        """Of a picture that processes die of."""
        return to_record(classifier, error_of(path, name_of(path)), self.top, self.features)


def into_folder(worker: type[Worker], folder: Folder) -> type[Worker]:
    """A class of workers that write the records of what they are sent, and give the errors back.

    Their inputs are (number of the file, picture). Of a single one, as it is sent where a process
    died, they write nothing and give the record; and so where a picture is not there.
    """

    class IntoFolder(worker):  # type: ignore[valid-type,misc]
        def work(self, items: Sequence[Any], left_out: Sequence[int]) -> list[Any]:
            paths = [path for _, path in items]
            records = super().work(paths, left_out)
            if len(items) == 1:
                return records
            killed = partial(folder.record_of_killer, self.classifier)
            records = [
                killed(path) if record is None else record
                for path, record in zip(paths, records, strict=True)
            ]
            if any(is_gone(record["error"]) for record in records):
                return records  # whether there is such a picture is not for one node to say
            folder.write(items[0][0], records)
            return [(record["error"],) for record in records]

    return IntoFolder


def _check_ours(folder: Path) -> None:
    """Raises `FileExistsError` where what is there is no folder of such files."""
    if not os.path.lexists(folder):
        return
    if folder.is_symlink() or not folder.is_dir():
        raise FileExistsError(f"{folder} is there and is no folder; name another")
    for name in sorted(os.listdir(folder)):
        if not (_PART.fullmatch(name) or name == _ABOUT or name.startswith(".tmp-")):
            raise FileExistsError(
                f"{folder} holds what no `van predict --rows-per-file` wrote "
                f"({printable(name)}); name another folder"
            )


def _parsed(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        return None
