"""A folder of results that a command makes: whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable, Container
from pathlib import Path

from .files import folder_beside, put_in_place
from .text import printable


def check_folder(output: Path | None, files: Container[str], maker: str, overwrite: bool) -> None:
    """Before the work: can `output` be made, or replaced?

    Args:
        output: What is to be made; None: nothing.
        files: Names of all that `maker` may write into it; a folder with others is not replaced.
        maker: What makes it, for messages: "evaluation", ...
        overwrite: Replace an earlier one.

    Raises:
        ValueError: Nothing is to be made, and so nothing to `overwrite`.
        OSError: It is in the way, or cannot be written.
    """
    if output is None:
        if overwrite:
            raise ValueError("`overwrite` is for a run with `output`; leave it out")
        return
    folder = output.absolute().parent
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is no folder; make it first")
    if output.absolute() == Path.cwd():
        raise FileExistsError(f"`output` {output} is the current folder; name another")
    with folder_beside(output):
        pass  # so that what cannot be written is not first made
    if not os.path.lexists(output):
        return
    if output.is_symlink() or not output.is_dir():
        raise FileExistsError(f"`output` {output} is there and is no folder; name another")
    there = sorted(path.name for path in output.iterdir())
    if foreign := [name for name in there if name not in files]:
        raise FileExistsError(
            f"`output` {output} holds what no {maker} wrote ({printable(foreign[0])}); name "
            "another folder"
        )
    if there and not overwrite:
        raise FileExistsError(f"`output` {output} is already there; to replace it: --overwrite")


def write_folder(
    output: Path,
    files: Container[str],
    maker: str,
    overwrite: bool,
    write: Callable[[Path], None],
) -> None:
    """Makes `output` beside its place, then moves it: an interrupted run leaves the old or nothing.

    Args:
        output: As in `check_folder`, as are the others.
        files: Names.
        maker: For messages.
        overwrite: Replace.
        write: Called with an empty folder to fill.

    Raises:
        OSError: It cannot be written, or is in the way.
    """
    with folder_beside(output) as work:
        made = work / "made"
        made.mkdir()
        write(made)
        check_folder(output, files, maker, overwrite)  # again: it may have been made meanwhile
        put_in_place([(made, output)], work)
