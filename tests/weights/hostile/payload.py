"""What a file made to do harm is, and how a table of them is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Payload:
    """A file to be refused.

    Args:
        name: What is wrong with it.
        says: Regular expression that the refusal has to match.
        content: Its bytes, or a function that makes it at a path.
        reader: What has to refuse it: `read_checkpoint` if not `read_weights`.
    """

    name: str
    says: str
    content: bytes | Callable[[Path], Any]
    reader: str = "read_checkpoint"

    def make(self, path: Path) -> None:
        if isinstance(self.content, bytes):
            path.write_bytes(self.content)
        else:
            self.content(path)


def table(
    *rows: tuple[str, str, Any],
    file: Callable[[Any], Any] = lambda content: content,
    reader: str = "read_checkpoint",
) -> Iterator[Payload]:
    """The payloads of a table: (what is wrong, what the refusal says, content).

    Args:
        rows: One for each payload; the second entry is a regular expression.
        file: Puts what a row has into a file: its `Payload.content`.
        reader: What has to refuse them.
    """
    for name, says, content in rows:
        yield Payload(name, says, file(content), reader)
