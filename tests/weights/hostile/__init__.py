"""Weight files as an attacker would make them; made without torch.

`payloads(folder)` gives all of them. Each is a good file but for one thing, so that it can only
be refused for that thing; `writers.good()` gives the good ones.

Each module has the tables of a format: what is wrong, what the refusal says, how it is made.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from tests.weights.hostile import (
    bombs,
    hdf5s,
    keras_files,
    no_files,
    pickles,
    safetensors_files,
    torch_tensors,
    zips,
)
from tests.weights.hostile.payload import Payload

# {family: (its payloads, of the folder that some point to; how many there are at least)}.
FAMILIES = {
    "code": (pickles.code, 2700),
    "opcodes": (lambda folder: pickles.opcodes(), 400),
    "bombs": (lambda folder: bombs.bombs(), 85),
    "tensors": (lambda folder: torch_tensors.tensors(), 65),
    "zip": (lambda folder: zips.zips(), 70),
    "older": (lambda folder: torch_tensors.older(), 30),
    "hdf5": (hdf5s.hdf5s, 130),
    "keras": (keras_files.keras, 180),
    "safetensors": (lambda folder: safetensors_files.safetensors(), 50),
    "no files": (lambda folder: no_files.no_files(), 30),
}


def payloads(folder: Path) -> Iterator[tuple[str, Payload]]:
    """(family, payload) of all.

    Args:
        folder: Where nothing may be opened nor made while they are read: some point there.
    """
    for family, (made, _) in FAMILIES.items():
        for payload in made(folder):
            yield family, payload


def decoys(folder: Path) -> list[Path]:
    """Files that payloads point to; opening one can be noticed, opening the pipe never ends."""
    pipe, target = folder / "pipe", folder / "target.h5"
    os.mkfifo(pipe)
    with h5py.File(target, "w") as file:
        file["array"] = np.ones(4, np.float32)
    return [pipe, target]
