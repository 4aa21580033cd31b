"""A folder of results beside a record of what is in it, by which an earlier one is known."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from .console import pictures_bar, say_failures
from .result_folder import check_folder, write_folder


@dataclass(frozen=True)
class RecordedFolder:
    """A kind of folder that a command makes.

    Args:
        index: Name of the record: JSON with the names of all other files under "files".
        maker: What makes it, for messages: "explanation", ...
    """

    index: str
    maker: str

    def check(self, output: Path, overwrite: bool) -> None:
        """Raises `OSError` where it is in the way or cannot be written; before the work is done."""
        check_folder(output, self._earlier(output), self.maker, overwrite)

    def write(self, output: Path, overwrite: bool, fill: Callable[[Path], None]) -> None:
        """Makes the folder, whole or not at all; `fill` is given an empty one."""
        write_folder(output, self._earlier(output), self.maker, overwrite, fill)

    def write_records(
        self,
        output: Path,
        overwrite: bool,
        name: str,
        total: int,
        of_all: Callable[[Path], Iterator[Any]],
        console: Console,
    ) -> None:
        """Makes the folder as `write` does, with a bar of `total` pictures by the model's name.

        Args:
            output: The folder.
            overwrite: Whether an earlier one of this kind is replaced.
            name: Stands before the bar.
            total: Pictures.
            of_all: Given the empty folder, yields something for each picture once its files are
                there.
            console: Where the bar is shown.
        """

        def fill(work: Path) -> None:
            with pictures_bar(console) as bar:
                task = bar.add_task(name, total=total, rate="")
                for _ in of_all(work):
                    bar.advance(task)

        self.write(output, overwrite, fill)

    def outside(self, inputs: Sequence[str | bytes], output: Path) -> list[str | bytes]:
        """`inputs` without what an earlier run has drawn there, if `output` lies among them."""
        folder = os.path.abspath(output) + os.sep
        return [
            one
            for one in inputs
            if isinstance(one, bytes) or not os.path.abspath(one).startswith(folder)
        ]

    def _earlier(self, output: Path) -> set[str]:
        """Names of what an earlier run wrote there, by its own record."""
        try:
            record = json.loads((output / self.index).read_text(encoding="utf-8"))
            return {self.index, *map(str, record["files"])}
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {self.index}


def say_errors(console: Console, records: Sequence[dict[str, Any]]) -> int:
    """Says which of the pictures' records have an "error"; how many."""
    errors = [one["error"] for one in records if one["error"]]
    if errors:
        say_failures(console, f"{len(errors):,} of {len(records):,} failed", errors)
    return len(errors)


class Names:
    """Names of files, each once: from the picture's own, of what all systems take."""

    def __init__(self) -> None:
        self._taken: set[str] = set()
        self._last: dict[str, int] = {}
        self.files: list[str] = []

    def stem(self, path: str) -> str:
        """The beginning of the names of all files of one picture."""
        plain = Path(path).name.rsplit(".", 1)[0] if path != "-" else "picture"
        plain = "".join(one if one.isalnum() or one in "-_" else "_" for one in plain)[:80]
        plain = plain.encode("ascii", "replace").decode().replace("?", "_") or "picture"
        key = plain.lower()  # on some systems large letters are the same
        number = self._last.get(key, 0) + 1
        while (found := plain if number == 1 else f"{plain}-{number}").lower() in self._taken:
            number += 1
        self._last[key] = number
        self._taken.add(found.lower())
        return found

    def file(self, name: str) -> str:
        """Notes a file that is written."""
        self.files.append(name)
        return name
