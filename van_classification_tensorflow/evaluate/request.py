"""What `van evaluate` is asked for, checked before any work is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inference.request import ClassifierOptions
from ..support.cluster import ClusterOptions
from ..support.options import option, part
from ..support.text import printable


@dataclass(frozen=True, kw_only=True)
class EvaluateRequest:
    """The arguments of `evaluate`, which says what they are, and the options of `van evaluate`.

    Raises:
        ValueError: An argument is not allowed, or does not go with another.
        OSError: There are no such data, or the output is in the way or cannot be written.
        ModuleNotFoundError: matplotlib or TensorFlow Datasets is missing.
    """

    data: str | os.PathLike = option(
        "a folder with a folder for each class, tfds:NAME, or digits (bundled)"
    )
    classifier: ClassifierOptions = part(ClassifierOptions)
    split: str | None = option("of a TFDS data set, such as validation", None)
    subset: str | None = option(
        "imagenet-a or imagenet-r: predict among the 200 classes of these", None
    )
    class_map: str | os.PathLike | None = option("json or csv file: folder name, class index", None)
    real_labels: str | os.PathLike | None = option("real.json of the ReaL labels", None)
    output: Path | None = option(
        "folder to make: tables, JSON, pictures of the mistakes and of the least certain", None
    )
    overwrite: bool = option("replace an earlier output", False)
    against_original: bool = option(
        "the same batches through transformers' model with the same weights; exit 1 if it differs",
        False,
    )
    where: ClusterOptions = part(ClusterOptions)

    def __post_init__(self) -> None:
        if self.against_original and self.where.cluster is not None:
            raise ValueError(
                "`against_original` compares within this process: leave it or `cluster` out"
            )
        from ..datasets.labelled import check_asked  # take NumPy, which `--help` does without
        from ..weights.address import address_of
        from .files import check_output

        check_output(self.output, self.overwrite)
        check_asked(self.data, **self.how)
        if self.against_original and address_of(self.classifier.weights).kind == "exported":
            weights = printable(self.classifier.weights)
            raise ValueError(f"`against_original` needs the weights; {weights} is an exported file")

    @property
    def how(self) -> dict[str, Any]:
        """How `datasets.labelled.open_dataset` is to read the data."""
        names = ("split", "subset", "class_map", "real_labels")
        return {name: getattr(self, name) for name in names}

    @property
    def asked(self) -> dict[str, str | int]:
        """The options that decide what is measured, but the weights and views, as JSON holds them.

        Those that were left at their default are left out.
        """
        names = ("test_size", "engine", "precision", "calibration")
        given = {name: getattr(self.classifier, name) for name in names}
        usual = (None, "auto", "float32")
        kept = {name: value for name, value in {**self.how, **given}.items() if value not in usual}
        return {
            name: value if isinstance(value, int) else printable(value)
            for name, value in {"data": self.data, **kept}.items()
        }
