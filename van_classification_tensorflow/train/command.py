"""`van train`: begins a run or goes on with one; what can be told at once is told at once.

Imports neither Keras nor a backend until the training begins.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from ..datasets.training import Pictures
from ..support.console import messages, results, say
from ..support.interrupt import Interrupted
from .folder import check_finished, check_run, check_start
from .recipe import Recipe, choose_recipe
from .request import TrainRequest


def run(request: TrainRequest) -> None:
    """Trains, or prints the recipe that is meant.

    Raises:
        ValueError: As `train.train.train`.
        OSError: As `train.train.train`.
        ModuleNotFoundError: The extra `train` is missing.
        Interrupted: Ctrl-C; says by what the run goes on.
    """
    job = job_of(request)
    if job is None:
        return
    # Only now, as it starts Keras.
    from .callbacks import Stopped
    from .train import train

    try:
        train(
            job.data,
            job.output,
            job.recipe,
            resume=job.resume,
            force=request.force,
            found=job.found,
            console=messages(),
            report_to=results(),
        )
    except (Stopped, KeyboardInterrupt):
        raise interrupted(job.output) from None


@dataclass(frozen=True)
class Job:
    """What is to be trained, checked as far as that can be done at once.

    Args:
        data: Where the pictures are, also for whoever stands in another folder.
        output: Folder of the run.
        recipe: What to do.
        resume: Whether the run is there, and goes on.
        found: The pictures, to train on and to validate on.
    """

    data: str
    output: Path
    recipe: Recipe
    resume: bool
    found: tuple[Pictures, Pictures]


def job_of(request: TrainRequest) -> Job | None:
    """What is asked for; None where that was to print the recipe, or the run is finished.

    Raises:
        ValueError: As `train.folder.check_start`.
        OSError: As `train.folder.check_start`.
        ModuleNotFoundError: The extra `train` is missing.
    """
    data, recipe = _meant(request)
    if request.print_config:
        print(recipe, end="")
        return None
    going_on, output = request.resume is not None, request.resume or request.output
    assert data is not None  # noqa: S101 - the request has seen to it
    assert output is not None  # noqa: S101 - likewise
    data, found = check_start(data, output, recipe, going_on, request.force)
    if going_on and (end := check_finished(output, recipe, *found)):
        say(messages(), str(end))
        return None
    return Job(data, output, recipe, going_on, found)


def interrupted(output: Path) -> KeyboardInterrupt:
    """What ends a command that was stopped: it says by what the run goes on, if it has begun."""
    if not (output / "config.yaml").is_file():
        return KeyboardInterrupt()
    return Interrupted(instead=["train", "--resume", os.fspath(output)])


def _meant(request: TrainRequest) -> tuple[str | None, Recipe]:
    """Data and recipe: those that are asked for, or those of the run that goes on."""
    if request.resume is None:
        return request.data, choose_recipe(request.recipe, request.data, request.changes)
    data, recipe = check_run(request.resume)
    return request.data or data, recipe.with_(**request.changes)
