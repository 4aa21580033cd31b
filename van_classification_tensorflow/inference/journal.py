"""What a run has done, line by line: one that is killed goes on where it was."""

from __future__ import annotations

import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

from filelock import FileLock, Timeout

from ..images.find import name_of
from ..support.console import to_json
from ..support.files import check_place_for_file
from ..support.text import printable
from .records import rows_beside, write_output


class Journal:
    """The records of a run, line by line, until the output is made of them in one step.

    Args:
        output: The file to make in the end.
        resume: Accept an unfinished journal.
        overwrite: Begin anew, whatever is there; the old output stays until the new one is whole.

    Attributes:
        finished: With `resume`: the output is there and whole.

    Raises:
        FileExistsError: The output is there, or another run is writing it.
    """

    def __init__(self, output: Path, resume: bool, overwrite: bool = False):
        self.output = output
        self.lock = FileLock(output.with_name(f".{output.name}.lock"))
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(f"another run is writing {output}") from None
        try:
            self._check(output, resume, overwrite)
        except BaseException:
            self.close()
            raise

    def _check(self, output: Path, resume: bool, overwrite: bool) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self.resume = resume
        self.errors_before: list[str] = []
        begun = self.path.exists()
        self.finished = resume and output.exists() and not begun
        check_place_for_file(output)
        if self.finished:
            return
        self.overwrite = overwrite
        if overwrite:
            return
        if begun and not resume:
            raise FileExistsError(
                f"{self.path} is of an unfinished run: go on with --resume, or begin anew with "
                "--overwrite"
            )
        if begun:
            return  # what is there it may replace, or has begun to
        check_not_there(output)

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other runs at the output; the journal stays unless the run was finished."""
        if not self.file.closed:
            self.file.close()
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()

    file: TextIO = io.StringIO()  # until `begin`
    together = 1  # (`begin`) so many records at once, or none of them, are kept of a stopped run

    @property
    def begun(self) -> bool:
        """Whether this run writes its records down."""
        return self.file is not Journal.file

    def begin(self, about: dict[str, Any], inputs: list[str | bytes]) -> list[str | bytes]:
        """The inputs that have no record yet."""
        self.together = about.get("block", 1)  # goes on with a whole batch
        done: Counter[str] = Counter()
        if self.overwrite:
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            with self.path.open("rb+") as file:
                good = end = 0
                waiting: list[dict[str, Any]] = []
                for line in file:
                    record = parsed(line)
                    if record is None:
                        break  # the line at which the run was killed
                    end += len(line)
                    if good == 0:
                        self._check_same(record, about)
                        good = end
                        continue
                    waiting.append(record)
                    if len(waiting) == self.together:
                        done.update(one["path"] for one in waiting)
                        self.errors_before += [one["error"] for one in waiting if one["error"]]
                        waiting, good = [], end
                file.truncate(good)
        self.file = self.path.open("a", encoding="utf-8")
        if not self.path.stat().st_size:
            self.add(about)
        to_do = []
        for source in inputs:
            if done[name_of(source)]:
                done[name_of(source)] -= 1
            else:
                to_do.append(source)
        if others := +done:
            self.file.close()
            raise ValueError(
                f"{self.path} has records of {others.total():,} pictures that are not among the "
                f"inputs, such as {printable(next(iter(others)))}: resume with the same inputs"
            )
        return to_do

    def _check_same(self, before: Any, now: dict[str, Any]) -> None:
        before = before if isinstance(before, dict) else {}
        before = {"precision": "float32", **before}  # journals did not always say it
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise ValueError(
                f"{self.path} was begun with other settings: "
                + ", ".join(f"{key}={before.get(key)!r} (now {now[key]!r})" for key in changed)
            )

    def add(self, record: dict[str, Any]) -> None:
        self.file.write(to_json(record) + "\n")
        self.file.flush()

    def finish(self, top: int, features: bool) -> None:
        """Makes the output and removes the journal."""
        self.file.close()

        write_output(self.output, self._records, top, features)
        self.path.unlink()

    def _records(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def check_not_there(output: Path) -> None:
    """Raises `FileExistsError` where an output, or what would stand beside it, is there."""
    for path in [output, rows_beside(output)] if output.suffix == ".npy" else [output]:
        if path.exists():
            raise FileExistsError(f"{path} is already there; to replace it: --overwrite")


def parsed(line: bytes) -> dict[str, Any] | None:
    """What a line of a journal says; None where it is cut short or damaged."""
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None
