"""Class names, bundled: nothing is downloaded, and Keras is not imported."""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

DIGITS = tuple("0123456789")


@dataclass(frozen=True)
class ImageNetClass:
    """One class: position in the training order, WordNet id, names, definition."""

    index: int
    wnid: str
    lemmas: str
    definition: str = ""

    @property
    def name(self) -> str:
        """First lemma in the spelling of `keras.applications`: `great_white_shark`."""
        return self.lemmas.split(",")[0].strip().replace(" ", "_")


@dataclass(frozen=True)
class Label:
    """What a class is called; `wnid`: its WordNet id, where it has one."""

    name: str
    wnid: str | None = None

    @property
    def text(self) -> str:
        """As a file keeps it: `n02123045 tabby`, or the name alone."""
        return f"{self.wnid} {self.name}" if self.wnid else self.name

    @classmethod
    def of_text(cls, text: str) -> Label:
        """The inverse of `text`; control characters, which a terminal would obey, are escaped."""
        text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
        match = re.fullmatch(r"(n\d{8}) (.+)", text)
        return cls(match[2], match[1]) if match else cls(text)


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000 classes in training order (WordNet 3.0 and ImageNet)."""
    return _read("imagenet1k.tsv")


@cache
def imagenet22k_classes() -> tuple[ImageNetClass, ...]:
    """The 21,841 classes of ImageNet-22k, sorted by id; the order is unverified for VAN's files."""
    return _read("imagenet22k.tsv")


def _read(file: str) -> tuple[ImageNetClass, ...]:
    table = (files(__package__) / "data" / file).read_text(encoding="utf-8")
    rows = csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(
        ImageNetClass(int(r["index"]), r["wnid"], r["lemmas"], r.get("definition", ""))
        for r in rows
    )


def labels_of(labels: str | Sequence[str] | None, num_classes: int) -> tuple[Label, ...]:
    """The labels of a head.

    Args:
        labels: A key ("imagenet1k", "imagenet22k", "digits"); one text per class, a name or a
            wnid and a name ("n02123045 tabby"); or None: "class 0", "class 1", ...
        num_classes: How many there must be.

    Raises:
        ValueError: Their number is another one, or the key is unknown.
    """
    if labels is None:
        found = tuple(Label(f"class {i}") for i in range(num_classes))
    elif labels in ("imagenet1k", "imagenet22k"):
        classes = imagenet_classes() if labels == "imagenet1k" else imagenet22k_classes()
        found = tuple(Label(c.name, c.wnid) for c in classes)
    elif labels == "digits":
        found = tuple(Label(digit) for digit in DIGITS)
    elif isinstance(labels, str):
        raise ValueError(
            "`labels` must be imagenet1k, imagenet22k, digits or a list of names. "
            f"Received: {labels!r}"
        )
    else:
        found = tuple(Label.of_text(str(text)) for text in labels)
    if len(found) != num_classes:
        raise ValueError(
            f"`labels` must name each of {num_classes:,} classes. Received: {len(found):,} names"
        )
    return found
