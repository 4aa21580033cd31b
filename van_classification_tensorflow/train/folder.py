"""What can be known of a training run before it is begun, and before Keras has started.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..datasets.training import Pictures, open_data
from ..spec.config import resolve
from ..support import plots
from ..support.extras import is_installed, missing
from ..support.files import write_atomically
from ..support.text import in_shell, printable
from ..weights.pretrained import open_local
from .recipe import Recipe, read_yaml, require_yaml
from .snapshots import Snapshots

# Fields that change how a run is done, not what comes out.
_FREE = ("workers", "processes", "snapshot_seconds", "max_corrupt")
_AT_THE_END = ("last.keras", "training_curves.png", "evaluation")
_REPORTED = ".reported"  # holds the step after which the report was written


def check_run(folder: Path) -> tuple[str, Recipe]:
    """The data and the recipe of a run whose folder is there.

    Raises:
        ValueError: The folder holds no run.
    """
    if not (folder / "config.yaml").is_file():
        raise ValueError(f"{folder} is not the folder of a run: there is no config.yaml in it")
    record = read_yaml(folder / "config.yaml")
    if not isinstance(record.get("recipe"), Mapping) or not isinstance(record.get("data"), str):
        raise ValueError(f"{folder / 'config.yaml'} must hold `data` and `recipe`")
    try:
        return record["data"], Recipe.from_dict(record["recipe"])
    except ValueError as error:
        raise ValueError(f"{folder / 'config.yaml'}: {error}") from error


def changes(before: Recipe, now: Recipe) -> dict[str, tuple[Any, Any]]:
    """{field: (before, now)} of what decides how a run comes out."""
    return {k: v for k, v in before.differences(now).items() if k not in _FREE}


def fingerprints(found: Pictures, validation: Pictures) -> dict[str, str]:
    """Hashes of training and validation data, which must be the same for a run to go on."""
    return {"training": found.fingerprint, "validation": validation.fingerprint}


def is_no_better(
    rows: Sequence[Mapping[str, float]], best: Mapping[str, float], patience: int | None
) -> bool:
    """Whether the last `patience` epochs have not been better than the best one."""
    return bool(patience and best and rows[-1]["epoch"] - best["epoch"] >= patience)


@dataclass(frozen=True)
class Ending:
    """A run whose training is done; as text, what is to be said of it.

    Args:
        folder: Of the run.
        why: How training ended.
        longer: Options that make it go on.
        best_epoch: The epoch that best.keras is of.
        missing: What the run leaves and is not there, or is older than its end.
    """

    folder: Path
    why: str
    longer: str
    best_epoch: int
    missing: tuple[str, ...]

    def __str__(self) -> str:
        then = f"Nothing was changed. To train longer, for example: {self.command}"
        if self.missing:
            then = f"Written again: {', '.join(self.missing)}."
        return f"{self.begin} The best is of epoch {self.best_epoch}. {then}"

    @property
    def begin(self) -> str:
        return f"{printable(self.folder)} is finished: {self.why}."

    @property
    def command(self) -> str:
        return f"van train --resume {in_shell(self.folder)} {self.longer} --force"


def ending(
    folder: Path, recipe: Recipe, position: Mapping[str, Any], records: Mapping[str, Any]
) -> Ending | None:
    """How a run has ended; None where there is still something to train.

    Args:
        folder: Of the run.
        recipe: Of the run, as it would go on.
        position: State of `train.callbacks.Position`.
        records: State of `train.callbacks.Records`.

    Raises:
        ValueError: Its best model is gone, and of an epoch whose weights nothing else has.
    """
    done, steps = position["step"], position["steps_per_epoch"]
    best, patience = records["best"], recipe.early_stopping
    early = is_no_better(records["rows"], best, patience)
    if not best or not (early or done >= recipe.total_epochs * steps):
        return None
    missing = {
        name
        for name in ("best.keras", "metrics.csv", "augmented.png", *_AT_THE_END)
        if not (folder / name).exists()
    }
    if not is_reported(folder, done):  # killed before it: what is there is older
        missing |= set(_AT_THE_END)
    found = Ending(
        folder,
        f"stopped after epoch {done // steps}, as the last {patience} were no better"
        if early
        else f"all {recipe.total_epochs} epochs are done",
        f"--early-stopping {2 * (patience or 0)}" if early else f"--epochs {2 * recipe.epochs}",
        int(best["epoch"]),
        tuple(sorted(missing)),
    )
    if "best.keras" in missing and best["step"] != done:
        raise ValueError(
            f"{found.begin} Its best.keras, of epoch {found.best_epoch}, is gone and cannot be "
            "made again, as only the last weights are kept: put it back, or train longer, for "
            "example: "
            f"{found.command}"
        )
    return found


def is_reported(folder: Path, step: int) -> bool:
    """Whether the report of the run was written, after this step."""
    try:
        return (folder / _REPORTED).read_text(encoding="utf-8") == str(step)
    except (OSError, UnicodeDecodeError):
        return False


def note_reported(folder: Path, step: int) -> None:
    """Notes that the report was written, and everything before it."""
    write_atomically(folder / _REPORTED, lambda path: path.write_text(str(step), encoding="utf-8"))


def check_finished(folder: Path, recipe: Recipe, *found: Pictures) -> Ending | None:
    """How a run has ended of which nothing is missing; None where that is for `train` to find out.

    Args:
        folder: Of the run.
        recipe: As it would go on.
        found: Its pictures, to train on and to validate on.

    Raises:
        ValueError: As for `ending`.
    """
    state = Snapshots(folder / "snapshots").newest_state()
    changed = changes(check_run(folder)[1], recipe)
    if state is None or changed or state["data"] != fingerprints(*found):
        return None
    states = state["callbacks"]
    end = ending(folder, recipe, states["Position"], states["Records"])
    return None if end is None or end.missing else end


def check_unchanged(
    folder: Path,
    recipe: Recipe,
    data: str,
    found: Sequence[Pictures],
    state: Mapping[str, Any] | None,
) -> None:
    """Raises `ValueError` where a run would go on otherwise than it was begun.

    Args:
        folder: Of the run.
        recipe: As it would go on.
        data: Where its pictures are.
        found: These, to train on and to validate on.
        state: Of its newest snapshot; None where there is none, or where that is in doubt.
    """
    changed = changes(check_run(folder)[1], recipe).items()
    lines = [f"  {name}: {old} -> {new}" for name, (old, new) in changed]
    if state is not None and state["data"] != fingerprints(*found):
        lines.append(f"  data: the pictures of {printable(data)} are not those of the run")
    if lines:
        text = "\n".join(lines)
        raise ValueError(
            f"{printable(folder)} was begun otherwise:\n{text}\nTo go on all the same: --force"
        )


def check_start(
    data: str | os.PathLike, folder: Path, recipe: Recipe, resume: bool, force: bool = False
) -> tuple[str, tuple[Pictures, Pictures]]:
    """Whether a run can be begun, or gone on with; the nearest and cheapest is asked first.

    Args:
        data: As in `datasets.training.open_data`.
        folder: Of the run.
        recipe: Of the run.
        resume: Whether it goes on.
        force: Although recipe or data have changed.

    Returns:
        Where the data is, also for whoever stands in another folder; and its pictures, to train
        on and to validate on.

    Raises:
        ValueError: Recipe, weights and data do not fit together, the folder holds no run, or one
            that was begun otherwise.
        OSError: The folder is in the way, or the data or the weights to start from are not there.
        ModuleNotFoundError: The extra `train` is missing.
    """
    require_yaml()
    plots.require_matplotlib()
    if not is_installed("grain"):
        raise missing("Training", "grain", "train")
    if force and not resume:
        raise ValueError("`force` is for a run that goes on, with `resume`; leave it out")
    if resume:
        check_run(folder)
    elif os.path.lexists(folder) and (not folder.is_dir() or _visible(folder)):
        is_run = (folder / "config.yaml").exists()
        hint = f"; to go on with it: van train --resume {in_shell(folder)}" if is_run else ""
        raise FileExistsError(f"`output` {folder} is already there and not empty{hint}")
    data = "digits" if data == "digits" else os.path.abspath(data)  # a path of that name is a path
    if data != "digits" and Path(data).resolve() in folder.resolve().parents:
        raise ValueError(
            f"`output` {folder} lies inside of `data` {data}, and would be taken for pictures of "
            "it; name a folder elsewhere"
        )
    _check_weights(recipe)
    found, validation = open_training_data(data, recipe)
    if recipe.batch_size > len(found):
        raise ValueError(
            f"`batch_size` must be at most the number of pictures to train on, {len(found):,}. "
            f"Received: batch_size={recipe.batch_size}. With so few, start from published weights: "
            "--pretrained"
        )
    if resume and not force:
        state = Snapshots(folder / "snapshots").newest_state()
        check_unchanged(folder, recipe, data, (found, validation), state)
    return data, (found, validation)


def check_batch(recipe: Recipe, parts: int) -> None:
    """Raises `ValueError` where so many devices, of all workers together, cannot share a batch."""
    if recipe.batch_size % (parts * recipe.accumulation_steps):
        raise ValueError(
            f"`batch_size` must be a multiple of the {parts} devices that share it. "
            f"Received: batch_size={recipe.batch_size}"
        )
    if parts > 1 and max(recipe.accumulation_steps, recipe.steps_per_execution) > 1:
        raise ValueError("`accumulation_steps` and `steps_per_execution` are for one device")
    if parts > 1 and recipe.clip_norm is not None:
        raise ValueError("`clip_norm` is for one device: Keras clips before gradients are added")


def open_training_data(data: str | os.PathLike, recipe: Recipe) -> tuple[Pictures, Pictures]:
    """The pictures to train on and to validate on, divided as the recipe has it."""
    return open_data(data, validation_split=recipe.validation_split, seed=recipe.seed)


def _check_weights(recipe: Recipe) -> None:
    """Checks the weights to start from as `VAN` will, if they are on this machine."""
    source = open_local(recipe.pretrained, recipe.model)
    if source is not None:
        sizes = source.weights.architecture
        asked = (recipe.model, recipe.embed_dims, recipe.mlp_ratios, recipe.depths)
        config = resolve(*asked, default=sizes.config)
        sizes.check_same_sizes(config, f"`pretrained`: {printable(source.card.name)}")


def _visible(folder: Path) -> list[str]:
    """Names in the folder but hidden ones, such as the lock that a killed run leaves."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
