"""Right masks beside pictures, and how well a model agrees with them."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..images.decode import MAX_PIXELS
from ..images.find import name_of
from ..images.masks import open_mask
from ..spec.labels import Label
from ..support.text import first_few, printable
from .metrics import Confusion, Scores, ignored_label, without_zero

SCORES = "scores.json"
_MOST_FILES = 5_000_000  # of a folder of masks


def masks_of(inputs: Sequence[str | bytes], folder: Path) -> dict[str, Path]:
    """{picture: its mask}: the PNG in `folder`, at any depth, that is named as the picture is.

    Raises:
        ValueError: A picture has none or several, or shares one with another picture; or came on
            the standard input.
        OSError: The folder cannot be read.
    """
    found: dict[str, list[Path]] = {}
    for count, path in enumerate(_pngs(folder)):
        if count >= _MOST_FILES:
            raise ValueError(f"{printable(folder)} (`truth`) has more than {_MOST_FILES:,} masks")
        found.setdefault(path.stem, []).append(path)
    masks, without, taken = {}, [], dict[Path, str]()
    for source in inputs:
        if isinstance(source, bytes):
            raise ValueError("a picture on the standard input has no name by which to find `truth`")
        name = name_of(source)
        there = found.get(Path(name).stem, [])
        if len(there) > 1:
            raise ValueError(
                f"`truth`: {printable(name)} may have the mask {printable(there[0])} or "
                f"{printable(there[1])}; give the folder of one"
            )
        if there:
            other = taken.setdefault(there[0], name)
            if other != name:
                raise ValueError(
                    f"`truth`: {printable(there[0])} may be the mask of {printable(other)} or of "
                    f"{printable(name)}; segment them one after the other"
                )
            masks[name] = there[0]
        else:
            without.append(f"{Path(name).stem}.png")
    if without:
        raise ValueError(
            f"{len(without):,} of {len(inputs):,} pictures have no mask in {printable(folder)} "
            f"(`truth`): {first_few(without)}"
        )
    return masks


def _pngs(folder: Path) -> Any:
    def fail(error: OSError) -> None:
        raise error

    for where, folders, files in os.walk(folder, onerror=fail):
        folders.sort()
        for name in sorted(files):
            if name.lower().endswith(".png") and not name.startswith("."):
                yield Path(where, name)


@dataclass
class Agreement:
    """Masks of a model beside the right ones, added up.

    Args:
        masks: {picture: its mask}.
        labels: Of the classes.
        reduce_zero_label: As of `SegmentRequest`.
        ignore: As of `SegmentRequest`.
        max_pixels: Of a mask.

    Raises:
        ValueError: `ignore` does not go with `reduce_zero_label`.
    """

    masks: dict[str, Path]
    labels: Sequence[Label]
    reduce_zero_label: bool = False
    ignore: int | None = None
    max_pixels: int = MAX_PIXELS
    confusion: Confusion = field(init=False)

    def __post_init__(self) -> None:
        ignore = ignored_label(len(self.labels)) if self.ignore is None else self.ignore
        if self.reduce_zero_label and ignore < len(self.labels):
            # All labels move by one, so that another class would become the one not to count.
            raise ValueError(
                f"`ignore` must be at least the number of classes, {len(self.labels)}, with "
                f"`reduce_zero_label`. Received: ignore={ignore}"
            )
        self.confusion = Confusion(len(self.labels), ignore)

    def add(self, name: str, mask: np.ndarray) -> dict[str, float | None]:
        """Counts a picture; its own metrics.

        Raises:
            ImageError: Its right mask cannot be read.
            ValueError: That has another size.
            OSError: It cannot be opened.
        """
        path = self.masks[name]
        labels = open_mask(path, self.max_pixels)
        if self.reduce_zero_label:
            labels = without_zero(labels, self.confusion.ignore)
        one = Confusion(self.confusion.num_classes, self.confusion.ignore)
        try:
            one.add(mask, labels)
        except ValueError as error:
            raise ValueError(f"{printable(path)}: {error}") from None
        self.confusion.merge(one)
        means = one.scores().means()
        return {name: _number(means[name]) for name in ("aAcc", "mIoU")}

    def record(self) -> dict[str, Any]:
        """What `SCORES` holds: metrics in percent, not rounded, and the areas behind them."""
        found, scores = self.confusion, self.confusion.scores()
        return {
            "pictures": found.pictures,
            "ignore": found.ignore,
            "reduce_zero_label": self.reduce_zero_label,
            "pixels_of_no_class": found.outside,
            **{name: _number(value) for name, value in scores.means().items()},
            "classes": [self._class(i, scores) for i in range(len(self.labels))],
        }

    def _class(self, i: int, scores: Scores) -> dict[str, Any]:
        found = self.confusion
        each = {
            "IoU": scores.iou,
            "Acc": scores.recall,
            "Precision": scores.precision,
            "Dice": scores.dice,
            "Fscore": scores.f_score,
        }
        return {
            "index": i,
            "label": self.labels[i].name,
            **{name: _number(100 * float(values[i])) for name, values in each.items()},
            "pixels": int(found.labelled[i]),
            "predicted_pixels": int(found.predicted[i]),
            "right_pixels": int(found.intersection[i]),
        }

    def write(self, path: Path) -> None:
        """Writes the record as JSON."""
        path.write_text(json.dumps(self.record(), indent=1), encoding="utf-8")

    def report(self, console: Console) -> None:
        """A line for each class that is there or was taken to be, then the means."""
        scores, areas = self.confusion.scores(), self.confusion.labelled
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("Class", overflow="fold")
        for name in ("IoU %", "Acc %", "of all pixels %"):
            table.add_column(name, justify="right", no_wrap=True)
        total = max(int(areas.sum()), 1)
        for i, label in enumerate(self.labels):
            if not math.isnan(scores.iou[i]):
                values = (scores.iou[i], scores.recall[i], areas[i] / total)
                cells = ("-" if math.isnan(v) else f"{100 * v:.2f}" for v in values)
                table.add_row(Text(printable(label.name)), *cells)
        console.print(table)
        summary = scores.summary()
        said = ", ".join(f"{name} {summary[name]:.2f} %" for name in ("mIoU", "aAcc", "mAcc"))
        one = self.confusion.pictures
        console.print(f"{said} ({one:,} picture{'' if one == 1 else 's'})", highlight=False)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else float(value)
