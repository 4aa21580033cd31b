"""`van train`, from the first check to the report: `train`."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from ..datasets.training import Pictures
from ..images.decode import ImageError
from ..support.text import shown
from .devices import check_backend
from .folder import check_start
from .recipe import Recipe
from .report import draw_samples, introduce, report
from .run import Run, all_unreadable
from .snapshots import RunLock


def train(
    data: str | os.PathLike,
    output: str | os.PathLike,
    recipe: Recipe,
    *,
    resume: bool = False,
    force: bool = False,
    strategy: Any = None,
    shard: tuple[int, int] = (0, 1),
    found: tuple[Pictures, Pictures] | None = None,
    console: Console | None = None,
    report_to: Console | None = None,
) -> dict[str, list[float]]:
    """Trains; leaves a folder with the models, the figures and the pictures of the run.

    Sets the seeds of Python, NumPy and Keras and, if the recipe says so, TensorFlow's
    deterministic kernels, for the whole process.

    Args:
        data: "digits" or a folder, as in `datasets.training.open_data`.
        output: Folder to make; with `resume` the folder of the run.
        recipe: What to do.
        resume: Go on from the newest snapshot, bit for bit as if the run had not stopped. Of a
            finished run nothing is changed; it says how to train longer.
        force: Go on although the recipe or the data are not those of the run.
        strategy: Of `tf.distribute`, instead of the recipe's `devices`.
        shard: (which, of how many) workers this one is: its part of each batch.
        found: The pictures of `data`, where `train.folder.check_start` has been asked already.
        console: Where to show how it goes; by default nowhere.
        report_to: Where the report at the end goes; by default there as well.

    Returns:
        A list for each figure, one entry an epoch: `loss`, `val_accuracy`, ...

    Raises:
        ValueError: Recipe, data and model do not fit together; the folder is in the way; or the
            run fails with a loss that is not finite (`train.callbacks.TrainingError`).
        OSError: Data cannot be read, or the folder not written.
        ModuleNotFoundError: The extra `train` is missing.
        train.callbacks.Stopped: It was asked to stop (Ctrl-C, SIGTERM), and has been kept.
    """
    _check_arguments(data, output, recipe, strategy, shard)
    console, folder = console or Console(quiet=True), Path(output)
    if found is None:
        data, found = check_start(data, folder, recipe, resume, force)
    check_backend(recipe)
    data = data if data == "digits" else os.path.abspath(data)
    run = Run(folder, data, recipe, *found, strategy, shard, console)
    folder.mkdir(parents=True, exist_ok=True)
    with RunLock(folder):
        before = set(os.listdir(folder))
        try:
            if resume:
                run.resume(force)
            end = run.ending()
            if end is None:
                run.write_config()
                introduce(run)
                if run.snapshot is not None:
                    run.records.write_csv()
                if not (folder / "augmented.png").exists():
                    draw_samples(run)
                run.fit()
            elif end.missing:
                _make_again(run, end.missing)
            if end is None or end.missing:
                report(run, report_to or console)
        except BaseException as error:
            if not resume and run.nothing_to_lose():
                remove_all_but(before, folder)
            if isinstance(error, ImageError):
                raise all_unreadable(run, error) from None
            raise
    return run.records.history


def _check_arguments(data: Any, output: Any, recipe: Any, strategy: Any, shard: Any) -> None:
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
    if not isinstance(shard, Sequence) or isinstance(shard, str) or len(shard) != 2:
        raise ValueError(
            "`shard` must be (which worker this is, from 0, how many there are). "
            f"Received: {shown(shard)}"
        )


def _make_again(run: Run, missing: Collection[str]) -> None:
    """What a finished run has lost, or was killed before; the report is made after it."""
    if "best.keras" in missing:  # the weights that are there are the best
        run.save_best()
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
