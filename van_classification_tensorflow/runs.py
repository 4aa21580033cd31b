"""What can be known of a training run before it is begun, and before Keras has started.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from . import pictures
from .data import Pictures, open_data
from .folders import check_folder
from .pretrained import check_known
from .recipe import Recipe, read_yaml, require_yaml
from .runtimes import is_installed

DEMO_FILES = {
    "predictions.png": "test images under their predicted label, mistakes first",
    "confusion_matrix.png": "which digit was taken for which",
    "training_curves.png": "loss and accuracy over the epochs",
    "metrics.json": "the figures above and the whole history",
    "model.keras": "the trained model: keras.saving.load_model(...)",
}


def check_run(folder: Path) -> tuple[str, Recipe]:
    """Data and recipe of a run that is there.

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


def check_start(
    data: str | os.PathLike, folder: Path, recipe: Recipe, resume: bool
) -> tuple[str, tuple[Pictures, Pictures]]:
    """Whether a run can be begun, or gone on with; the nearest and cheapest is asked first.

    Args:
        data: As in `data.open_data`.
        folder: Of the run.
        recipe: Of the run.
        resume: Whether it goes on.

    Returns:
        Where the data is, also for whoever stands in another folder; and its pictures, to train
        on and to validate on.

    Raises:
        ValueError: Recipe and data do not fit together, or the folder holds no run.
        OSError: The folder is in the way, or the data or the weights to start from are not there.
        ModuleNotFoundError: The extra `train` is missing.
    """
    require_yaml()
    pictures.require_matplotlib()
    if not is_installed("grain"):
        raise ModuleNotFoundError(
            "Training needs grain: pip install 'van-classification-tensorflow[train]'"
        )
    if resume:
        check_run(folder)
    elif os.path.lexists(folder) and (not folder.is_dir() or _visible(folder)):
        hint = f"; to go on with it: --resume {folder}" if (folder / "config.yaml").exists() else ""
        raise FileExistsError(f"`output` {folder} is already there and not empty{hint}")
    data = str(data) if str(data) == "digits" else os.path.abspath(data)
    if data != "digits" and Path(data).resolve() in folder.resolve().parents:
        raise ValueError(
            f"`output` {folder} lies inside of `data` {data}, and would be taken for pictures of "
            "it; name a folder elsewhere"
        )
    check_known(recipe.pretrained, recipe.model)
    found, validation = open_data(data, validation_split=recipe.validation_split, seed=recipe.seed)
    if recipe.batch_size > len(found):
        raise ValueError(
            f"`batch_size` must be at most the number of pictures to train on, {len(found):,}. "
            f"Received: batch_size={recipe.batch_size}. With so few, start from published weights: "
            "--pretrained"
        )
    return data, (found, validation)


def check_demo(output: Path, seed: int, epochs: int, overwrite: bool) -> None:
    """Whether the demo can be run.

    Raises:
        ValueError: `seed` or `epochs` is out of range.
        OSError: The output is in the way, or cannot be written.
        ModuleNotFoundError: matplotlib is missing.
    """
    for name, value, least in (("seed", seed, 0), ("epochs", epochs, 1)):
        if value < least:
            raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")
    pictures.require_matplotlib()
    check_folder(output, DEMO_FILES, "demo", overwrite)


def _visible(folder: Path) -> list[str]:
    """A run that was killed at its very beginning has left its lock, no more."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(".")]
