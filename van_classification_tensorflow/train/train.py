"""`van train`, from the first check to the report: `train`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import keras
from rich.console import Console

from ..datasets.training import Pictures
from ..images.decode import ImageError
from ..support.text import shown
from .devices import check_backend, strategy_for, versions
from .folder import check_start, fingerprints, open_training_data
from .recipe import Recipe
from .report import draw_samples, introduce, report
from .run import Run, all_unreadable
from .snapshots import RunLock
from .workers import workers_of


def train(
    data: str | os.PathLike,
    output: str | os.PathLike,
    recipe: Recipe,
    *,
    resume: bool = False,
    force: bool = False,
    strategy: Any = None,
    callbacks: Sequence[keras.callbacks.Callback] = (),
    stop: Callable[[], bool] = lambda: False,
    found: tuple[Pictures, Pictures] | None = None,
    console: Console | None = None,
    report_to: Console | None = None,
) -> dict[str, list[float]]:
    """Trains; leaves a folder with the models, the figures and the pictures of the run.

    Sets the seeds of Python, NumPy and Keras and, if the recipe says so, TensorFlow's
    deterministic kernels, for the whole process.

    Several workers train one model if each of them calls this with the same arguments, on
    TensorFlow with a `MultiWorkerMirroredStrategy`, on JAX after `jax.distributed.initialize` and
    `keras.distribution.set_distribution`. What comes out is what one worker makes of the same
    `batch_size`, to rounding. All read the data and the folder; the first alone writes.

    Args:
        data: "digits" or a folder, as in `datasets.training.open_data`.
        output: Folder to make; with `resume` the folder of the run.
        recipe: What to do.
        resume: Go on from the newest snapshot, bit for bit as if the run had not stopped. Of a
            finished run nothing is changed; it says how to train longer.
        force: Go on although the recipe or the data are not those of the run.
        strategy: Of `tf.distribute`, instead of the recipe's `devices`.
        callbacks: Of your own, called after those of the run. What state they have is not kept in
            snapshots. Of several workers all must have the same.
        stop: Called after steps, about once a second where several workers train: whether to stop,
            as after Ctrl-C.
        found: The pictures of `data`, where `train.folder.check_start` has been asked already.
        console: Where to show how it goes; by default nowhere.
        report_to: Where the report at the end goes; by default there as well.

    Returns:
        A list for each figure, one entry an epoch: `loss`, `val_accuracy`, ...

    Raises:
        ValueError: Recipe, data and model do not fit together; the folder is in the way; the
            workers do not see the same; or the run fails with a loss that is not finite
            (`train.callbacks.TrainingError`).
        OSError: Data cannot be read, or the folder not written.
        ModuleNotFoundError: The extra `train` is missing.
        train.callbacks.Stopped: It was asked to stop (Ctrl-C, SIGTERM), and has been kept.
    """
    _check_arguments(data, output, recipe, strategy)
    folder = Path(output)
    check_backend(recipe)
    workers = workers_of(strategy or strategy_for(recipe.devices))
    console = console if console and workers.leads else Console(quiet=True)

    def start() -> tuple[str | os.PathLike, tuple[Pictures, Pictures]]:
        if found is not None or workers.leads:
            return (data, found) if found else check_start(data, folder, recipe, resume, force)
        return data, open_training_data(data, recipe)  # the folder is the first one's to judge

    data, found = workers.together(start)
    resume = bool(workers.share(resume))  # as the first sees the folder
    workers.check_equal({**versions(), "data": str(fingerprints(*found)), "recipe": str(recipe)})
    data = data if data == "digits" else os.path.abspath(data)
    run = Run(folder, data, recipe, *found, workers, console, callbacks, stop)
    with contextlib.ExitStack() as held:
        workers.first_alone(lambda: _enter(folder, held))
        before = set(os.listdir(folder)) if workers.leads else set()
        try:
            if resume:
                run.resume(force)
            end = run.ending()
            if end is None:
                workers.first_alone(lambda: _begin(run))
                run.fit()
            elif end.missing:
                _make_again(run, end.missing)
            if workers.leads and (end is None or end.missing):
                with workers.local():
                    report(run, report_to or console)
        except BaseException as error:
            if workers.leads and not resume and run.nothing_to_lose():
                remove_all_but(before, folder)
            if isinstance(error, ImageError):
                raise all_unreadable(run, error) from None
            raise
    return run.records.history


def _enter(folder: Path, held: contextlib.ExitStack) -> None:
    """Makes the folder, and keeps others out of it."""
    folder.mkdir(parents=True, exist_ok=True)
    held.enter_context(RunLock(folder))


def _begin(run: Run) -> None:
    """Writes what is there before the first step, and says what is going to be done."""
    run.write_config()
    introduce(run)
    if run.snapshot is not None:
        run.records.write_csv()
    if not (run.folder / "augmented.png").exists():
        draw_samples(run)


def _check_arguments(data: Any, output: Any, recipe: Any, strategy: Any) -> None:
    for name, path in (("data", data), ("output", output)):
        if not isinstance(path, (str, os.PathLike)):
            raise ValueError(f"`{name}` must be a path. Received: {shown(path)}")
    if not isinstance(recipe, Recipe):
        raise ValueError(
            "`recipe` must be a `Recipe`: one of `RECIPES`, changed by its `with_(epochs=10)`, or "
            f"`Recipe.from_dict`. Received: {shown(recipe)}"
        )
    if strategy is not None and not hasattr(strategy, "scope"):
        raise ValueError(f"`strategy` must be one of `tf.distribute`. Received: {shown(strategy)}")


def _make_again(run: Run, missing: Collection[str]) -> None:
    """What a finished run has lost, or was killed before; the report is made after it."""
    if "best.keras" in missing:  # the weights that are there are the best
        run.save_best()
    if run.workers.leads:
        if "augmented.png" in missing:
            draw_samples(run)
        run.records.write_csv()
    run.refresh()


def remove_all_but(names: Collection[str], folder: Path) -> None:
    """What a run that failed at its start has made, so that it can be started again.

    The lock stays, since removing it would let two in; it is hidden and in nobody's way.
    """
    for path in folder.iterdir():
        if path.name not in names:
            with contextlib.suppress(OSError):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
