"""ImageNet-1k class names, bundled: nothing is downloaded, and Keras is not imported."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from functools import cache
from importlib.resources import files


@dataclass(frozen=True)
class ImageNetClass:
    """One class: position in the training order, WordNet id, names, definition."""

    index: int
    wnid: str
    lemmas: str
    definition: str

    @property
    def name(self) -> str:
        """First lemma in the spelling of `keras.applications`: `great_white_shark`."""
        return self.lemmas.split(",")[0].strip().replace(" ", "_")


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000 classes in training order (WordNet 3.0 and ImageNet)."""
    table = (files(__package__) / "data" / "imagenet1k.tsv").read_text(encoding="utf-8")
    rows = csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(
        ImageNetClass(int(r["index"]), r["wnid"], r["lemmas"], r["definition"]) for r in rows
    )
