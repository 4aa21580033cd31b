"""Where a command writes: results to the standard output, everything else to the error stream.

A progress display never takes what is printed: results go to the pipe or file behind the standard
output, also where the error stream is a terminal.
"""

from __future__ import annotations

import errno
import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.measure import Measurement
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

_UNBROKEN = 10_000  # columns of what is no terminal: nothing is cut or folded for a program
_FAILURES = 5  # that are named


class _Stream(Console):
    def on_broken_pipe(self) -> None:
        """Leaves a closed pipe to the command, which ends the same way whatever it was writing."""
        raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))


def results() -> Console:
    """The standard output, for a person's tables; as wide as needed where it is no terminal."""
    console = _Stream()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = _UNBROKEN
    return console


def messages() -> Console:
    """The error stream: progress, notes and what went wrong."""
    return _Stream(stderr=True)


def say(console: Console, text: str | Text, style: str | None = None) -> None:
    """One line as it is, whatever names are in it; a long one is not cut."""
    console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)


def say_files(console: Console, folder: str, files: Mapping[str, str]) -> None:
    """What a folder holds now: {name: what it is}."""
    say(console, f"In {folder}:")
    width = max(map(len, files))
    for name, what in files.items():
        say(console, Text.assemble(f"  {name:{width}}  ", (what, "dim")))


def say_failures(console: Console, what: str, reasons: Sequence[str]) -> None:
    """`what` failed, in red, then the first reasons and how many more there are."""
    say(console, what, "red")
    for reason in reasons[:_FAILURES]:
        say(console, f"  {reason}")
    if len(reasons) > _FAILURES:
        say(console, f"  and {len(reasons) - _FAILURES:,} more")


def progress_bar(console: Console, *columns: ProgressColumn) -> Progress:
    """A progress bar on the error stream; nothing where there is no terminal."""
    return Progress(
        *columns, console=console, disable=not console.is_terminal, redirect_stdout=False
    )


def shortened(text: str, most: int) -> str:
    """`text` in at most so many columns; of a path the beginning and, mostly, the end stay."""
    if cell_len(text) <= most:
        return text
    head = max(most - 1, 0) // 3
    tail = set_cell_size(text[::-1], max(most - 1 - head, 0))[::-1]
    return f"{set_cell_size(text, head)}…{tail}"


class Shortened:
    """A cell of a table that shortens its text to what room there is, so that it fits one line."""

    def __init__(self, text: str):
        self.text = text

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        return Measurement(1, cell_len(self.text)).with_maximum(options.max_width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Text(shortened(self.text, options.max_width), no_wrap=True)


def common_folder(paths: Sequence[str]) -> str:
    """The folder that all of several paths lie in, to be said once; "" where there is none."""
    folders = {os.path.dirname(path) for path in paths}
    if len(paths) < 2 or "" in folders or len({os.path.isabs(one) for one in folders}) > 1:
        return ""
    found = os.path.commonpath(folders)
    return "" if found == os.sep else found


class _Name(ProgressColumn):
    """A task's description, perhaps a path: as much of it as leaves room for the other columns."""

    def __init__(self, most: int):
        super().__init__()
        self.most = most

    def render(self, task: Task) -> Text:
        return Text(shortened(task.description, self.most), no_wrap=True)


def pictures_bar(console: Console) -> Progress:
    """A bar with counts, a `rate` field and the time left, in a line of 80 columns or more."""
    bar = max(10, min(40, console.width // 4))
    others = len(" 50000/50000 1234.5 images/s 0:00:00 ")
    return progress_bar(
        console,
        _Name(max(8, console.width - bar - others)),
        BarColumn(bar),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
    )


def print_report(lines: Sequence[str]) -> None:
    """Lines of a word and what it is, on the standard output; wrapped beside the words there."""
    console = results()
    if not console.is_terminal:
        print("\n".join(lines))
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for line in lines:
        word, _, rest = line.partition(" ")
        grid.add_row(Text(word), Text(rest.lstrip()))
    console.print(grid)


# Not text (bytes of a file name that are no UTF-8), not shown, or ends of lines to some readers.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def to_json(value: Any, **options: Any) -> str:
    """JSON that can be read as it stands: letters of any language are not escaped.

    Args:
        value: As `json.dumps` takes it.
        options: As of `json.dumps`.

    Returns:
        Text that UTF-8 can hold: what is no text is escaped, and comes back from `json.loads`.
    """
    text = json.dumps(value, ensure_ascii=False, **options)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def write_line(text: str) -> None:
    """One line on the standard output, in UTF-8 whatever the terminal's language, at once."""
    stream = getattr(sys.stdout, "buffer", None)
    if stream is None:  # replaced by something that takes text only
        print(text, flush=True)
        return
    sys.stdout.flush()
    stream.write(f"{text}\n".encode())
    stream.flush()
