"""Class names, bundled: nothing is downloaded, and Keras is not imported."""

from __future__ import annotations

import csv
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import cache
from typing import Any

from ..support.checks import is_whole
from ..support.files import asset
from ..support.text import printable, shown

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
        text = _escaped(text)
        match = re.fullmatch(r"(n\d{8}) (.+)", text)
        return cls(match[2], match[1]) if match else cls(text)


def _escaped(text: str) -> str:
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def comparable(name: str) -> str:
    """A name of a class or of its folder as names are compared: NFC, as labels are kept.

    One and the same name is composed (NFC) on one system and decomposed (NFD) on another.
    """
    return _escaped(unicodedata.normalize("NFC", name))


@cache
def imagenet_classes() -> tuple[ImageNetClass, ...]:
    """The 1,000 classes in training order (WordNet 3.0 and ImageNet)."""
    return _read("imagenet1k.tsv")


@cache
def imagenet22k_classes() -> tuple[ImageNetClass, ...]:
    """The 21,841 classes of ImageNet-22k, sorted by id; the order is unverified for VAN's files."""
    return _read("imagenet22k.tsv")


def _read(file: str) -> tuple[ImageNetClass, ...]:
    table = asset(file).read_text(encoding="utf-8")
    rows = csv.DictReader(table.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    return tuple(
        ImageNetClass(int(r["index"]), r["wnid"], r["lemmas"], r.get("definition", ""))
        for r in rows
    )


KEYS = ("imagenet1k", "imagenet22k", "digits")


def texts_of(labels: Any) -> tuple[str, ...] | None:
    """The texts of labels as anyone may give them, in the order of the classes.

    Args:
        labels: A key of `labels_of`; one text (or whole number) per class, in anything that has an
            order, such as a list, a NumPy array or a generator; {index: text}; or None.

    Raises:
        ValueError: They are something else; names what.
    """
    if getattr(labels, "ndim", None) == 0:  # NumPy's, of one text
        labels = labels.item()
    if labels is None:
        return None
    if isinstance(labels, str):
        if labels not in KEYS:
            raise ValueError(
                f"`labels` must be {', '.join(KEYS)} or a list of names. Received: {shown(labels)}"
            )
        if labels == "digits":
            return DIGITS
        classes = imagenet_classes() if labels == "imagenet1k" else imagenet22k_classes()
        return tuple(Label(c.name, c.wnid).text for c in classes)
    if isinstance(labels, Mapping):
        labels = _in_order(labels)
    if isinstance(labels, (bytes, Set)) or not isinstance(labels, Iterable):
        raise ValueError(
            "`labels` must be one name per class, in the order of the classes. "
            f"Received: {type(labels).__name__}"
        )
    texts = []
    for i, one in enumerate(labels):
        if isinstance(one, Label):
            one = one.text
        if not isinstance(one, str) and not is_whole(one):
            raise ValueError(
                f"`labels` must be texts. Received for class {i}: {type(one).__name__} {shown(one)}"
            )
        texts.append(unicodedata.normalize("NFC", str(one)))
    return tuple(texts)


def _in_order(labels: Mapping[Any, Any]) -> list[Any]:
    """{index: name} -> names; the indices may be texts, as in JSON."""
    try:
        indexed = {int(index): name for index, name in labels.items()}
    except (TypeError, ValueError):
        indexed = {}
    if len(indexed) != len(labels) or sorted(indexed) != list(range(len(labels))):
        raise ValueError(
            "`labels` as a dictionary must be {0: name, 1: name, ...}, without a gap. "
            f"Received the keys: {', '.join(map(repr, list(labels)[:5]))}"
        )
    return [indexed[i] for i in range(len(indexed))]


# Of so many classes there is only one well-known set.
_SETS = {1000: ("imagenet1k", "ImageNet-1k"), 21_841: ("imagenet22k", "ImageNet-22k")}


def assumed_labels(num_classes: int, of_others: bool) -> tuple[str | None, str]:
    """What stands in for labels that nobody names, as `labels_of` takes it, and how that is said.

    Args:
        num_classes: Outputs of the head.
        of_others: Whether it is in no file or model of this package, which would name them.
    """
    if of_others and num_classes in _SETS:
        key, name = _SETS[num_classes]
        return key, f"It names no classes: {name}'s {num_classes:,} are assumed."
    used = "'positive' is" if num_classes == 1 else "'class 0', 'class 1', ... are"
    return None, f"No names of its classes are known: {used} used."


def right_number(labels: int, num_classes: int | None) -> bool:
    """Whether so many labels name the classes of a head, as in `labels_of`."""
    return labels == num_classes or (labels, num_classes) == (2, 1)


def labels_of(labels: Any, num_classes: int) -> tuple[Label, ...]:
    """The labels of a head.

    Args:
        labels: A key ("imagenet1k", "imagenet22k", "digits"); one text per class, a name or a
            wnid and a name ("n02123045 tabby"), as `texts_of` takes them; or None: "class 0", ...,
            and "positive" of a single output.
        num_classes: Outputs of the head. Of a single one (binary) one label is the positive
            class, two are the negative and the positive class.

    Raises:
        ValueError: Their number is another one, or the key is unknown.
    """
    texts = texts_of(labels)
    if texts is None:
        one = num_classes == 1
        texts = ("positive",) if one else tuple(f"class {i}" for i in range(num_classes))
    found = tuple(map(Label.of_text, texts))
    if not right_number(len(found), num_classes):
        what = f"name each of {num_classes:,} classes"
        if num_classes == 1:
            what = "name the positive class of a single output, or the negative and the positive"
        raise ValueError(f"`labels` must {what}. Received: {len(found):,} names")
    return found


def index_of(word: str, labels: Sequence[Label], argument: str) -> int:
    """The position of the class that is meant.

    Args:
        word: Its name, its WordNet id, its position, or one of the names that commas separate in
            its name ("tabby" of "tabby, tabby cat"); small letters stand for large ones.
        labels: Of all classes.
        argument: What the caller calls the word.

    Raises:
        ValueError: There is no such class, or several.
    """
    wanted = comparable(word).casefold()
    names = [comparable(one.name).casefold() for one in labels]
    texts = [(one.wnid, one.text.casefold()) for one in labels]
    found = [i for i, name in enumerate(names) if wanted == name or wanted in texts[i]]
    if not found and word.isascii() and word.isdigit() and len(word) < 10:
        found = [int(word)] if int(word) < len(labels) else []
    if not found:
        found = [i for i, name in enumerate(names) if wanted in map(str.strip, name.split(","))]
    if len(found) == 1:
        return found[0]
    if found:
        which = ", ".join(f"{i} ({printable(labels[i].text)})" for i in found[:5])
        raise ValueError(f"`{argument}` must be one class. {printable(word[:200])} may be {which}")
    example = ", ".join(printable(one.name) for one in labels[:3])
    raise ValueError(
        f"`{argument}` must be an index from 0 to {len(labels) - 1}, or the name or WordNet id of "
        f"a class, such as {example}. Received: {printable(word[:200])}"
    )
