"""Names and colours of the classes of a segmentation: ADE20K's, Cityscapes's, or one's own.

The lists are those of mmsegmentation (`mmseg/utils/class_names.py`, Apache-2.0), which the authors'
weights were trained with: the 150 classes of ADE20K's scene parsing (Zhou et al., CVPR 2017) and
the 19 of Cityscapes (Cordts et al., CVPR 2016), with the colours of their own tools.
"""

from __future__ import annotations

import colorsys
import csv
import re
from collections.abc import Iterable
from functools import cache
from typing import Any

import numpy as np

from ..spec.labels import Label
from ..spec.labels import labels_of as named_labels
from ..spec.palette import colours_of
from ..support.files import asset
from ..support.text import shown

SETS = {"ade20k": 150, "cityscapes": 19}
"""{name: how many classes}"""
_HEX = re.compile(r"#?([0-9a-fA-F]{6})")
_TURN = 0.618033988749895  # of the colour circle, to a hue that is far from all before


@cache
def _set(name: str) -> tuple[tuple[str, tuple[int, int, int]], ...]:
    table = asset(f"{name}.tsv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(table, delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple((row["name"], _rgb(bytes.fromhex(row["colour"]))) for row in rows)


def _rgb(values: Iterable[Any]) -> tuple[int, int, int]:
    red, green, blue = (int(one) for one in values)
    return red, green, blue


def set_of(num_classes: int) -> str | None:
    """The known set that has so many classes; None where there is none."""
    return next((name for name, count in SETS.items() if count == num_classes), None)


def names_of(name: str) -> tuple[str, ...]:
    """Names of the classes of a known set, in the order of the model's outputs."""
    return tuple(one for one, _ in _set(name))


def labels_of(labels: Any, num_classes: int) -> tuple[Label, ...]:
    """The labels of a model's classes.

    Args:
        labels: "ade20k", "cityscapes", one text per class as `spec.labels.labels_of` takes them,
            or None: "class 0", ...
        num_classes: Outputs of the model.

    Raises:
        ValueError: Their number is another one, or the name is unknown.
    """
    if isinstance(labels, str):
        if labels not in SETS:
            raise ValueError(
                f"`labels` must be {' or '.join(SETS)}, or one name per class. "
                f"Received: {shown(labels)}"
            )
        labels = names_of(labels)
    if labels is None:
        labels = tuple(f"class {i}" for i in range(num_classes))
    return named_labels(labels, num_classes)


def palette_of(palette: Any, num_classes: int) -> np.ndarray:
    """A colour for each class.

    Args:
        palette: "ade20k", "cityscapes"; a colour per class, (red, green, blue) from 0 to 255 each
            or a text such as "#78c8ff"; or None: that of the known set with so many classes, else
            colours that are far from each other.
        num_classes: Outputs of the model.

    Returns:
        (num_classes, 3), uint8.

    Raises:
        ValueError: There are more or fewer, or one is no colour; names it.
    """
    if palette is None:
        palette = set_of(num_classes)
        if palette is None:
            return _distinct(num_classes)
    if isinstance(palette, str):
        if palette not in SETS:
            raise ValueError(
                f"`palette` must be {' or '.join(SETS)}, or one colour per class. "
                f"Received: {shown(palette)}"
            )
        palette = [colour for _, colour in _set(palette)]
    if isinstance(palette, (list, tuple)):
        palette = [_of_hex(one) for one in palette]
    return np.array(colours_of(palette, num_classes), np.uint8)


def _of_hex(one: Any) -> Any:
    found = _HEX.fullmatch(one) if isinstance(one, str) else None
    return one if found is None else tuple(bytes.fromhex(found[1]))


def _distinct(count: int) -> np.ndarray:
    """Colours for classes that have none: one hue after the other, in three shades."""
    made = [
        colorsys.hsv_to_rgb(i * _TURN % 1, (0.75, 0.45, 0.9)[i % 3], (0.95, 0.8, 0.6)[i // 3 % 3])
        for i in range(count)
    ]
    return np.rint(255 * np.array(made)).astype(np.uint8).reshape(count, 3)


def ink_on(colour: np.ndarray) -> tuple[int, int, int]:
    """Black or white, whichever is easier to read on a colour (WCAG 2's relative luminance)."""
    linear = (np.asarray(colour, np.float64) / 255) ** 2.2
    bright = float(linear @ (0.2126, 0.7152, 0.0722))
    return (0, 0, 0) if bright > 0.179 else (255, 255, 255)
