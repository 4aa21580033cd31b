"""What a shell completes: a script for bash, zsh or fish, made of the parser by `shtab`.

A script is made once and read by the shell, so that a press of the key starts no Python.
"""

from __future__ import annotations

from argparse import ArgumentParser, _SubParsersAction
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

SHELLS = ("bash", "zsh", "fish")


def completion_script(parser: ArgumentParser, shell: str, files: Collection[str]) -> str:
    """The script.

    Args:
        parser: Of the command, with all options of all that it has.
        shell: One of `SHELLS`.
        files: Names of the options that are completed as files; those of type `Path` are as well.
    """
    import shtab

    for one in _parsers(parser):
        for action in one._actions:
            if action.type is Path or action.dest in files:
                action.complete = shtab.FILE
    return shtab.complete(parser, shell)


def _parsers(parser: Any) -> Iterator[Any]:
    yield parser
    for action in parser._actions:
        if isinstance(action, _SubParsersAction):
            for one in action.choices.values():
                yield from _parsers(one)
