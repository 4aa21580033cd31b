"""A process of the cluster that trains: one of several, or one that there is no work for.

Imports neither Keras nor a backend before it is told on which one to run.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import socket
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.text import printable, reason
from ..train.recipe import Recipe

_POLL = 1.0  # seconds
_FIGURES = 0.5  # seconds between two


@dataclass(frozen=True)
class Work:
    """What all processes of a group are given.

    Args:
        data: As in `train.train.train`, as well as the next four.
        output: Folder of the run, on storage that all nodes see.
        recipe: As a dictionary.
        resume: Whether the run was there when the command was given.
        force: Although it was begun otherwise.
        mark: A hidden file in the folder, by whose text it is known that it is the same folder.
        gpus: Of each process.
        width: Columns of the command's terminal.
        news: Handle of a `cluster.news.News`.
    """

    data: str
    output: str
    recipe: dict[str, Any]
    resume: bool
    force: bool
    mark: tuple[str, str]
    gpus: int
    width: int
    news: Any


def sharing(recipe: Recipe, most: int, gpus: int = 0) -> int:
    """How many of at most `most` workers share a batch evenly, and no pair that is mixed."""
    pairs = 2 if recipe.mix_probability > 0 and recipe.mixup + recipe.cutmix > 0 else 1
    part = math.lcm(pairs, max(gpus, 1))
    return max(n for n in range(1, most + 1) if n == 1 or recipe.batch_size % (n * part) == 0)


def train_here(work: Work) -> None:
    """Trains with the others of the group; tells the command how it goes and how it ends."""
    import ray.train

    from .group import ADDRESSES

    context = ray.train.get_context()
    rank, recipe = context.get_world_rank(), Recipe.from_dict(work.recipe)
    addresses = json.loads(os.environ[ADDRESSES])
    addresses = addresses[: sharing(recipe, context.get_world_size(), work.gpus)]
    if rank >= len(addresses):
        return  # a batch of this size cannot be shared by all who are there
    try:
        _check_storage(work, rank)
        _train(work, recipe, rank, addresses)
    except (ValueError, OSError, ModuleNotFoundError) as error:
        # What a user can mend: another try would end likewise.
        work.news.tell.remote("error", (rank, type(error).__name__, reason(error)))
        time.sleep(_POLL)  # before the process is taken down
        raise


def _check_storage(work: Work, rank: int) -> None:
    name, text = work.mark
    path = Path(work.output) / name
    try:
        there = path.read_text(encoding="utf-8")
    except OSError:
        there = ""
    if there != text:
        raise ValueError(
            f"worker {rank}, on {socket.gethostname()}, does not see the folder of the run, "
            f"{printable(work.output)}: it must be on storage that all nodes mount at the same path"
        )


def _train(work: Work, recipe: Recipe, rank: int, addresses: list[str]) -> None:
    from rich.console import Console

    from ..train.callbacks import Stopped
    from ..train.train import train
    from ..train.workers import join
    from .figures import Figures
    from .news import Told

    strategy = join(rank, addresses) if len(addresses) > 1 or work.gpus > 1 else None
    consoles = [
        Console(file=Told(work.news, kind), width=work.width, force_terminal=False)
        for kind in ("message", "result")
    ]
    stops = threading.Event()
    threading.Thread(target=_ask, args=(work.news, stops), daemon=True).start()
    with contextlib.suppress(Stopped):  # as the command has asked for
        train(
            work.data,
            work.output,
            recipe,
            # Also of a group that has grown or shrunk, which is given the same `work` again.
            resume=work.resume or (Path(work.output) / "config.yaml").is_file(),
            force=work.force,
            strategy=strategy,
            callbacks=[Figures(work.news, _FIGURES, recipe.total_epochs)] if rank == 0 else [],
            stop=stops.is_set,
            console=consoles[0],
            report_to=consoles[1],
        )
        if rank == 0:  # the last to end: the others do not write
            work.news.tell.remote("done", rank)


def _ask(news: Any, stops: threading.Event) -> None:
    """Sets `stops` when the command asks for it."""
    import ray

    while not stops.wait(_POLL):
        try:
            if ray.get(news.stops.remote()):
                stops.set()
        except ray.exceptions.RayError:
            return  # the command is gone, and so will be this process
