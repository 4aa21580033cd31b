"""The folder of an evaluation: tables, JSON and pictures."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..support import plots
from ..support.console import to_json
from ..support.result_folder import check_folder, write_folder
from .result import TIMM_COLUMNS, Evaluation, Shown

_MATRIX_CLASSES = 50  # more cannot be read in one picture
FILES = (
    "results.csv",
    "results.json",
    "per_class.csv",
    "failed.csv",
    "confusion_matrix.png",
    "most_confused.png",
    "mistakes.png",
    "least_certain.png",
)


def check_output(output: Path | None, overwrite: bool) -> None:
    """Before the work, finds whatever would keep its result from being written after it."""
    check_folder(output, FILES, "evaluation", overwrite)
    if output is not None:
        plots.require_matplotlib()


def write(found: Evaluation, output: Path, overwrite: bool) -> None:
    """Writes tables, JSON and a picture to the folder `output`, as in `evaluate`.

    Raises:
        OSError: It cannot be written, or is in the way.
    """
    write_folder(output, FILES, "evaluation", overwrite, lambda folder: write_files(found, folder))


def write_files(found: Evaluation, folder: Path) -> None:
    _write_csv(folder / "results.csv", TIMM_COLUMNS, [found.timm_row().values()])
    taken: Counter[int] = Counter()
    for _, predicted, count in found.confusion:
        taken[predicted] += count
    rows = [
        (c.index, c.wnid, c.label, c.pictures, c.right, c.accuracy, n, c.right / n if n else None)
        for c in found.per_class
        for n in [taken[c.index]]
    ]
    # The accuracy of a class is its recall.
    head = ("index", "wnid", "label", "pictures", "right", "accuracy", "predicted", "precision")
    _write_csv(folder / "per_class.csv", head, rows)
    if found.failed:
        reasons = [(one.picture, one.reason) for one in found.failed]
        _write_csv(folder / "failed.csv", ("picture", "reason"), reasons)
    text = to_json(found.to_dict(), indent=1, allow_nan=False)
    (folder / "results.json").write_text(text + "\n", encoding="utf-8")
    if found.classes <= _MATRIX_CLASSES:
        draw_matrix(found, folder / "confusion_matrix.png")
    else:
        draw_most_confused(found, folder / "most_confused.png")
    for kind, title, shown in (
        ("mistakes", "Mistakes, the most confident first", found.mistakes),
        ("least_certain", "Least certain, with the lowest probability first", found.least_certain),
    ):
        if shown:
            _draw_gallery(shown, f"{title}: class  →  taken for", found, folder / f"{kind}.png")


def _write_csv(path: Path, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(head)
        writer.writerows(rows)


def draw_matrix(found: Evaluation, path: Path) -> None:
    """The right class of each picture against the predicted one, as a picture at `path`."""
    position = {one.index: i for i, one in enumerate(found.per_class)}
    matrix: np.ndarray = np.zeros((found.classes, found.classes), np.int64)
    for right, predicted, count in found.confusion:
        matrix[position[right], position[predicted]] = count
    names = [_spaced(one.label) for one in found.per_class]
    plots.confusion_matrix(matrix, names, path, found.dataset)


def draw_most_confused(found: Evaluation, path: Path, shown: int = 25) -> None:
    """The `shown` most frequent mistakes, as a picture at `path`."""
    label = {one.index: _spaced(one.label) for one in found.per_class}
    there = {one.index: one.pictures for one in found.per_class}
    wrong = [pair for pair in found.confusion if pair[0] != pair[1]][:shown]
    mistakes = [(label[t], label[p], n, there[t]) for t, p, n in wrong]
    plots.most_confused(mistakes, path, found.dataset)


def _draw_gallery(shown: Sequence[Shown], title: str, found: Evaluation, path: Path) -> None:
    captions = [
        f"{_spaced(one.true)}\n→ {_spaced(one.predicted)} ({one.probability:.0%})" for one in shown
    ]
    colours = ["black" if one.right else "crimson" for one in shown]
    images = np.stack([one.look() for one in shown])
    columns = max(4, min(len(shown), 8))
    about = {"title": title, "data": found.dataset}
    plots.sample_sheet(images, captions, path, columns, colours=colours, **about)


def _spaced(label: str) -> str:
    return label.replace("_", " ")
