"""The fenced blocks of a page, and the commands in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the page where it begins."""

    language: str
    text: str
    line: int


def pages() -> dict[str, Path]:
    """{name: file} of README and every page of the documentation that is written by hand."""
    found = sorted(p for p in (ROOT / "docs").glob("*.md") if p.name != "index.md")
    return {"README": ROOT / "README.md"} | {path.stem: path for path in found}


def blocks(path: Path) -> list[Block]:
    tokens = MarkdownIt("commonmark").parse(path.read_text("utf-8"))
    return [Block(t.info.strip(), t.content, t.map[0] + 1) for t in tokens if t.type == "fence"]


def commands(text: str) -> list[str]:
    """The commands of a bash block: comments left out, lines that end in a backslash joined."""
    found = []
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        command = re.sub(r"(^|\s+)#.*$", "", line).strip()
        if command:
            found.append(command)
    return found


def inline_commands(path: Path) -> Iterator[str]:
    """`van ...` between single backticks."""
    for token in MarkdownIt("commonmark").enable("table").parse(path.read_text("utf-8")):
        for one in token.children or ():
            if one.type == "code_inline" and one.content.startswith("van "):
                yield " ".join(one.content.split())
