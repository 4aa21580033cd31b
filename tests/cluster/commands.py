"""`van train` on a cluster as a process, and what of it can be killed."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

from van_classification_tensorflow.train.recipe import Recipe
from van_classification_tensorflow.train.snapshots import Snapshots


class Command:
    """`van train` on a cluster, as a process of its own."""

    def __init__(self, folder: Path, address: str, workers: str, recipe: Recipe | None = None):
        """Begins a run, or without a recipe goes on with it."""
        file = folder.parent / "recipe.yaml"
        if recipe is not None:
            file.write_text(str(recipe))
        what = ["--data", "digits", "--output", str(folder), "--recipe", str(file)]
        if recipe is None:
            what = ["--resume", str(folder)]
        program = [sys.executable, "-m", "van_classification_tensorflow", "train"]
        self.folder = folder
        self.process = subprocess.Popen(
            [*program, *what, "--cluster", address, "--cluster-workers", workers],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def reach(self, step: int, seconds: float = 400) -> None:
        """Waits for a snapshot of this step or a later one."""
        until = time.monotonic() + seconds
        while max(self.steps(), default=0) < step:
            assert self.process.poll() is None, self.process.communicate()[0][-3000:]
            assert time.monotonic() < until, f"no step {step} within {seconds} s"
            time.sleep(0.05)

    def steps(self) -> list[int]:
        return Snapshots(self.folder / "snapshots").steps()

    def end(self, seconds: float = 500) -> str:
        """What it has said, at its end."""
        try:
            said = self.process.communicate(timeout=seconds)[0]
        finally:
            self.process.kill()
        assert self.process.returncode == 0, said[-3000:]
        return said


def workers_of(folder: Path) -> dict[bool, list[int]]:
    """{whether it is the first: process ids} of the workers that train in `folder`."""
    found: dict[bool, list[int]] = {True: [], False: []}
    lock = str((folder / ".lock").resolve())
    for process in Path("/proc").iterdir():
        try:
            if b"ray::RayTrainWorker" not in (process / "cmdline").read_bytes():
                continue
            opened = {os.readlink(one) for one in (process / "fd").iterdir()}
        except (OSError, ValueError):
            continue
        found[lock in opened].append(int(process.name))
    return found


def saves(folder: Path, seconds: float = 60) -> bool:
    """Waits for a moment in which a snapshot is being written; whether there was one."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if any(one.name.startswith(".tmp-step") for one in os.scandir(folder / "snapshots")):
            return True
    return False
