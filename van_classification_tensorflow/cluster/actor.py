"""A process on a cluster that classifies pictures as the one that asks for it does."""

from __future__ import annotations

import faulthandler
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from ..inference.classifier import Classifier
from ..inference.flow import Result
from ..inference.parts import content_of
from ..support.cores import use_at_most
from ..support.text import one_line, printable, reason


@dataclass(frozen=True)
class Task:
    """What a worker needs to know, the same for all.

    Args:
        options: Of `Classifier`; the engine is the one that was chosen.
        shape: Makes of a result what is sent back.
        features: Whether these are asked for, instead of logits.
        count: How many pictures there are in all.
        content: What the weights must be (`content_of`).
        calibration: SHA-256 of the pictures of int8; None without.
        folder: Where relative paths begin.
        files: Some of the files that are needed, {path: bytes}.
        backend: Of Keras; None for a node's own.
    """

    options: dict[str, Any]
    shape: Callable[[Classifier, Result], Any]
    features: bool
    count: int
    content: str
    calibration: str | None
    folder: str
    files: dict[str, int]
    backend: str | None = None


class Worker:
    """Classifies what it is sent; an actor of Ray.

    Args:
        task: What it needs to know.

    Attributes:
        patience: Seconds without a result after which it ends itself, with its traceback on the
            standard error: a disk that does not answer, or a decoder that never comes back, is
            then met as any other death is.
    """

    patience = 900.0

    def __init__(self, task: Task):
        self.task = task  # nothing that could fail: Ray gives an error here no words

    def start(self) -> str | None:
        """Opens the weights and makes the engine; what is in the way of that, in words."""
        task, where = self.task, f"node {socket.gethostname()}"
        if missing := unseen(task.folder, task.files):
            return f"{where} {missing}"
        use_at_most(1)  # the CPU that it has asked for
        if task.backend:
            os.environ["KERAS_BACKEND"] = task.backend
        try:
            self.classifier = Classifier(**task.options)
            chosen = self.classifier.choose_engine(task.count)
            if content_of(self.classifier, task.options["weights"]) != task.content:
                return f"{where} has other weights by the name {printable(self.classifier.name)}"
        except (ValueError, OSError, ModuleNotFoundError) as error:
            return f"{where}: {one_line(error)}"
        if chosen.calibration != task.calibration:
            return f"{where} has other pictures for the `calibration`"
        return None

    def work(self, items: Sequence[Any], left_out: Sequence[int]) -> list[Any]:
        """What `shape` makes of the result of each picture.

        Args:
            items: Pictures, from the beginning of a batch on.
            left_out: Positions of those that are not looked at: None in the answer. The others go
                in the batches in which they go where those cannot be read.
        """
        try:
            return self._work(items, left_out)
        finally:
            faulthandler.cancel_dump_traceback_later()

    def _work(self, items: Sequence[Any], left_out: Sequence[int]) -> list[Any]:
        size = self.classifier.pictures_at_once if left_out else max(len(items), 1)
        answer: list[Any] = [None] * len(items)
        for start in range(0, len(items), size):
            every = range(start, min(start + size, len(items)))
            places = [place for place in every if place not in left_out]
            self._have_patience()
            found = self.classifier.stream(
                [items[place] for place in places],
                features=self.task.features,
                count=self.task.count,
            )
            for place, result in zip(places, found, strict=True):
                answer[place] = self.task.shape(self.classifier, result)
                self._have_patience()
        return answer

    def _have_patience(self) -> None:
        """From now on; by a clock that also runs while something holds Python's lock."""
        faulthandler.dump_traceback_later(self.patience, exit=True)


def some_files(paths: Sequence[Any], count: int = 8) -> dict[str, int]:
    """{path: bytes} of some that are files here, spread over all."""
    found: dict[str, int] = {}
    for path in paths[:: max(len(paths) // count, 1)]:
        if isinstance(path, (str, os.PathLike)) and os.path.isfile(path):
            found[os.fspath(path)] = os.path.getsize(path)
    return found


def unseen(folder: str, files: dict[str, int]) -> str | None:
    """Goes to the folder; which of the files is not there, or another one, in words."""
    shared = "pictures, weights and calibration must be on storage that all nodes mount"
    try:
        os.chdir(folder)
    except OSError as error:
        if any(not os.path.isabs(path) for path in files):
            return f"does not see the folder {reason(error)}: {shared}, or have whole paths"
    for path, size in files.items():
        try:
            there = os.stat(path).st_size
        except OSError as error:
            return f"does not see {reason(error)}: {shared}"
        if there != size:
            return (
                f"has another file as {printable(path)}, of {there:,} bytes, not {size:,}: {shared}"
            )
    return None


def is_gone(error: str | None) -> bool:
    """Whether it says that a picture is not there."""
    return bool(error) and str(error).endswith("No such file or directory")


def error_of(source: Any, name: str) -> Result:
    """The result of a picture that processes die of."""
    return Result(source, None, f"{printable(name)}: the process that read it died, twice alone")


def actor_maker(ray: Any, worker: type[Worker], task: Task, gpus: float = 0) -> Callable[[], Any]:
    """A function that asks the cluster for one more worker, wherever there is room."""
    shared = ray.put(task)
    actor = ray.remote(worker).options(
        num_cpus=1,
        num_gpus=gpus,
        max_restarts=0,
        max_task_retries=0,
        scheduling_strategy="SPREAD",
    )
    return partial(actor.remote, shared)
