"""Where an export goes: nothing else is replaced, and all of its files or none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from ..support.files import put_in_place
from ..support.text import printable
from ..weights.address import address_of


def files_at(path: Path, kind: str) -> list[Path]:
    """What stands at `path`: of OpenVINO the weights as well, first, as the other names them."""
    return [path.with_suffix(".bin"), path] if kind == "openvino" else [path]


def check_place(target: Path, kind: str, model: Any, overwrite: bool) -> None:
    """Raises `OSError` where the file cannot be put, or would take the place of something else."""
    for file in files_at(target, kind):
        if os.path.lexists(file) and not overwrite:
            raise FileExistsError(f"{printable(file)} is already there; to replace it: --overwrite")
        if kind != "saved_model" and file.is_dir():
            raise FileExistsError(f"{printable(file)} is a folder, and is not replaced by a file")
        both = address_of(model).is_path and os.path.exists(model) and file.exists()
        if both and file.samefile(model):
            raise FileExistsError(f"{printable(file)} is what is to be exported")
    if kind == "saved_model" and target.exists() and address_of(target).format != kind:
        raise FileExistsError(f"{printable(target)} is no SavedModel, and is not replaced by one")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{printable(target.parent)}: there is no such folder")


def place(made: Path, target: Path, kind: str) -> None:
    """Moves what was made to its place, or leaves what was there."""
    places = files_at(target, kind)
    put_in_place([(made.with_name(place.name), place) for place in places], made.parent)
