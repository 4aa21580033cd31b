"""The progress bar of commands that go through pictures."""

from __future__ import annotations

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


def pictures_bar(console: Console) -> Progress:
    """A bar with counts, a `rate` field and the time left; nothing where there is no terminal."""
    return Progress(
        TextColumn("{task.description}", markup=False),  # the name of a file, perhaps
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
