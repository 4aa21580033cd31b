"""What `van train` and `van demo` are asked for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ..support.options import option
from ..support.result_folder import check_folder

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
