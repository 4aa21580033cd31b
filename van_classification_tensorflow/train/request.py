"""What `van train` and `van demo` are asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.checks import at_least
from ..support.cluster import ClusterOptions
from ..support.options import changes_of, option, part
from ..support.result_folder import check_folder
from .recipe import Recipe

DEMO_FILES = {
    "predictions.png": "test images under their predicted label, mistakes first",
    "confusion_matrix.png": "which digit was taken for which",
    "training_curves.png": "loss and accuracy over the epochs",
    "metrics.json": "the figures above and the whole history",
    "model.keras": "the trained model: keras.saving.load_model(...)",
}


@dataclass(frozen=True, kw_only=True)
class DemoRequest:
    """The options of `van demo`, checked before any work is done.

    Raises:
        ValueError: `seed` or `epochs` is out of range.
        OSError: The output is in the way, or cannot be written.
        ModuleNotFoundError: matplotlib is missing; names the extra that brings it.
    """

    output: Path = option("folder for the model, the metrics and the pictures", Path("van-demo"))
    seed: int = option("seed of weights, order and augmentation", 0)
    epochs: int = option("passes over the 1,437 training images", 30)
    overwrite: bool = option("replace an earlier demo", False)

    def __post_init__(self) -> None:
        from ..support import plots  # takes NumPy, which `--help` does without

        for name, least in (("seed", 0), ("epochs", 1)):
            value = getattr(self, name)
            if value < least:
                raise ValueError(f"`{name}` must be at least {least}. Received: {name}={value}")
        plots.require_matplotlib()
        check_folder(self.output, DEMO_FILES, "demo", self.overwrite)


@dataclass(frozen=True, kw_only=True)
class TrainRequest:
    """The options of `van train`: a run to begin, or with `resume` one to go on with.

    Raises:
        ValueError: What a run needs is not given, or is the resumed run's own.
    """

    data: str | None = option(
        "a folder with a folder of pictures for each class, or with train/ and val/ of such; "
        "or digits (bundled)",
        None,
    )
    output: Path | None = option("folder to make for the run", None)
    recipe: str | None = option(
        "imagenet (the authors'), finetune, in22k-to-1k, digits, or a YAML file; by default "
        "finetune with --pretrained, digits for these, else imagenet",
        None,
    )
    resume: Path | None = option("go on with a stopped run", None, metavar="RUN")
    force: bool = option("go on although the recipe or the data have changed", False)
    print_config: bool = option("print the recipe as YAML, and stop", False)
    where: ClusterOptions = part(ClusterOptions)
    gpus_per_worker: int = option("GPUs of each process on the cluster", 0)
    storage: Path | None = option(
        "folder that all nodes of the cluster see, for Ray's own marks (default: inside the run's)",
        None,
    )
    changes: Mapping[str, Any] = changes_of(Recipe, "the recipe's fields (default: the authors')")

    def __post_init__(self) -> None:
        at_least("gpus_per_worker", self.gpus_per_worker, 0)
        if self.where.cluster is None:
            for name in ("gpus_per_worker", "storage"):
                if value := getattr(self, name):
                    raise ValueError(
                        f"`{name}` is of a `cluster`, which is not named. Received: {name}={value}"
                    )
        if self.resume is not None:
            if self.output is not None or self.recipe is not None:
                raise ValueError("--resume RUN has its --output and --recipe; leave them out")
        elif not self.print_config:
            missing = [f"`{name}`" for name in ("data", "output") if getattr(self, name) is None]
            if missing:
                raise ValueError(f"{' and '.join(missing)} must be given, or --resume RUN")
