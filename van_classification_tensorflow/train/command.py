"""`van train`: begins a run or goes on with one; what can be told at once is told at once.

Imports neither Keras nor a backend until the training begins.
"""

from __future__ import annotations

import os

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
    data, recipe = _meant(request)
    if request.print_config:
        print(recipe, end="")
        return
    going_on, output = request.resume is not None, request.resume or request.output
    assert data is not None  # noqa: S101 - the request has seen to it
    assert output is not None  # noqa: S101 - likewise
    data, found = check_start(data, output, recipe, going_on, request.force)
    if going_on and (end := check_finished(output, recipe, *found)):
        say(messages(), str(end))
        return
    # Only now, as it starts Keras.
    from .callbacks import Stopped
    from .train import train

    try:
        train(
            data,
            output,
            recipe,
            resume=going_on,
            force=request.force,
            found=found,
            console=messages(),
            report_to=results(),
        )
    except (Stopped, KeyboardInterrupt):
        if not (output / "config.yaml").is_file():
            raise KeyboardInterrupt from None  # nothing has been begun
        raise Interrupted(instead=["train", "--resume", os.fspath(output)]) from None


def _meant(request: TrainRequest) -> tuple[str | None, Recipe]:
    """Data and recipe: those that are asked for, or those of the run that goes on."""
    if request.resume is None:
        return request.data, choose_recipe(request.recipe, request.data, request.changes)
    data, recipe = check_run(request.resume)
    return request.data or data, recipe.with_(**request.changes)
