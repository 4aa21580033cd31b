"""What an exported segmenter says of itself, in the metadata of its file.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from ..support.text import printable
from .card import SEGMENTATION, read_preprocessing, read_record
from .labels import labels_of
from .palette import Colour, colours_of
from .preprocessing import Preprocessing

MOST_CLASSES = 65_535  # what a mask of 16 bits can hold


@dataclass(frozen=True, kw_only=True)
class SegmentCard:
    """What `Segmenter` needs to know of an exported file: normalised images in, logits out.

    Args:
        name: Of the weights.
        classes: Maps that it gives.
        labels: Names of the classes; None where none are known.
        palette: Their colours; None likewise.
        preprocessing: Of the pictures; None where nobody knows.
        version: Of this package, when it was made.
    """

    name: str
    classes: int
    labels: tuple[str, ...] | None = None
    palette: tuple[Colour, ...] | None = None
    preprocessing: Preprocessing | None = None
    version: str = ""

    def to_json(self) -> str:
        """One line of ASCII, for the metadata of any format."""
        record = {
            "task": SEGMENTATION,
            "name": self.name,
            "classes": self.classes,
            "labels": self.labels,
            "palette": self.palette,
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "version": self.version,
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> SegmentCard:
        """The inverse of `to_json`; keys it does not know are passed over.

        Raises:
            ValueError: It is no JSON or too large, of another task, or a value makes no sense.
        """
        record = read_record(text)
        if record.get("task") != SEGMENTATION:
            raise ValueError(
                "its metadata does not say that it is a segmentation: a classifier is for "
                "`Classifier` and `van predict`"
            )
        classes, labels = record.get("classes"), record.get("labels")
        if type(classes) is not int or not 1 <= classes <= MOST_CLASSES:
            raise ValueError(f"its metadata: `classes` must be from 1 to {MOST_CLASSES:,}")
        if labels is not None:
            if not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
                raise ValueError("its metadata: `labels` is no list of texts")
            labels = tuple(one.text for one in labels_of(labels, classes))
        palette = record.get("palette")
        words: dict[str, Any] = {}
        for key in ("name", "version"):
            words[key] = record.get(key)
            if not isinstance(words[key], str) or len(words[key]) > 300:
                raise ValueError(f"its metadata: `{key}` must be a text of at most 300 characters")
        return cls(
            name=printable(words["name"]),
            classes=classes,
            labels=labels,
            palette=None if palette is None else colours_of(palette, classes),
            preprocessing=read_preprocessing(record.get("preprocessing")),
            version=printable(words["version"]),
        )
