"""The pictures to train on and those to validate on, found in folders or bundled; none is opened.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import hashlib
import os
import re
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np

from ..images.decode import SUFFIXES
from ..images.find import ClassFolder, LeftOut, class_folders, no_pictures
from ..support.checks import at_least
from ..support.text import first_few, printable
from .digits import CLASSES as DIGITS
from .digits import Split, load_digits

_TRAINING = ("train", "training")  # the first that is there
_VALIDATION = ("val", "validation", "valid", "eval", "test", "testing")  # likewise
_PART = re.compile(r"(?<![a-z])(train|dev|val|eval|test|fold|split)[a-z]*")


@dataclass(frozen=True, eq=False)
class Pictures:
    """Pictures and the class of each.

    Args:
        name: What reports call them.
        sources: Paths, or uint8 arrays (N, H, W).
        labels: (N,) int32, indices into `classes`.
        classes: Names, in the order of the model's outputs.
        fingerprint: SHA-256 over what each picture is called (its path within the folder), its
            class and its size in bytes: whether a run that goes on still has the same pictures.
        left_out: Which files of the folders, those to validate on included, are no pictures; "".
    """

    name: str
    sources: Sequence[str] | np.ndarray
    labels: np.ndarray
    classes: tuple[str, ...]
    fingerprint: str
    left_out: str = ""

    def __len__(self) -> int:
        return len(self.labels)

    def name_of(self, index: int) -> str:
        """What messages call a picture: its path, as it may be printed."""
        source = self.sources[index]
        return printable(source) if isinstance(source, str) else f"{self.name}, picture {index}"


def open_data(
    data: str | os.PathLike, *, validation_split: float = 0.2, seed: int = 0
) -> tuple[Pictures, Pictures]:
    """Finds the pictures to train on and those to validate on; none is opened.

    Pictures are known as in `pictures_in`. Names are compared in NFC, and classes are in
    the plain order of these.

    Args:
        data: "digits", the bundled images (32, 32): 1,437 and 360; or a folder: any other text,
            or a path. One that holds `train` or `training` and one of `val`, `validation`,
            `valid`, `eval`, `test`, `testing` (the first of these, in any case of letters), each
            with a folder of pictures for each class, is taken as it is. One that holds a folder
            for each class is split.
        validation_split: Share of each class that is held out where the folder is split, rounded;
            at least one picture and not all of them, and of a single one none.
        seed: Of that split: whether a picture is held out depends on it, the class and the names
            of the class's pictures, not on the machine.

    Returns:
        Training and validation, with the same classes.

    Raises:
        ValueError: A class has no pictures, there is only one, the two folders have different
            ones, a picture lies outside of the class folders, folders look like parts of a data
            set by other names, or an argument is out of its range.
        OSError: There is no such folder, or one cannot be read.
    """
    if not isinstance(validation_split, Real) or not 0 < validation_split < 1:
        raise ValueError(
            "`validation_split` must be a share above 0 and below 1. "
            f"Received: validation_split={validation_split!r}"
        )
    seed = at_least("seed", seed, 0)
    if data == "digits":
        training, validation = load_digits()
        return _of_digits(training, "digits, training"), _of_digits(validation, "digits, test")
    data = os.fsdecode(data)
    if not os.path.isdir(data):
        raise FileNotFoundError(
            "`data` must be a folder of class folders, one with train and val, or digits. "
            f"Received: {printable(data)}, and there is no such folder"
        )
    parts = {name.lower(): os.path.join(data, name) for name in sorted(os.listdir(data))}
    parts = {name: path for name, path in parts.items() if os.path.isdir(path)}
    train, held_out = (
        next((parts[name] for name in names if name in parts), None)
        for names in (_TRAINING, _VALIDATION)
    )
    if train and held_out:
        return _of_two_folders(train, held_out)
    left_out = LeftOut()
    kept, out = {}, {}
    for name, files in _class_folders(data, left_out).items():
        count = min(max(int(len(files) * validation_split + 0.5), 1), len(files) - 1)
        chosen = set(sorted(files, key=lambda file: _draw(seed, name, file.within))[:count])
        kept[name] = [file for file in files if file not in chosen]
        out[name] = [file for file in files if file in chosen]
    if not any(out.values()):
        raise ValueError(
            f"{printable(data)}: every class has one picture, so none is left to validate on"
        )
    shown = printable(data)
    return (
        _of_folder(f"{shown}, training part", kept, left_out),
        _of_folder(f"{shown}, validation part", out),
    )


def _of_two_folders(train: str, held_out: str) -> tuple[Pictures, Pictures]:
    left_out = LeftOut()
    training = _class_folders(train, left_out)
    validation = _class_folders(held_out, left_out, may_be_empty=True)
    for here, there, folder, other in (
        (validation, training, held_out, train),
        (training, validation, train, held_out),
    ):
        if only := sorted(set(here) - set(there)):
            raise ValueError(
                f"{printable(folder)} has classes that {printable(other)} lacks: {first_few(only)}"
                ". Give both the same; a class without validation pictures has an empty folder "
                "there"
            )
    if not any(validation.values()):
        raise ValueError(no_pictures(printable(held_out), left_out))
    return (
        _of_folder(printable(train), training, left_out),
        _of_folder(printable(held_out), validation),
    )


class _File(NamedTuple):
    """A picture: where it is within the folder of its class, in NFC and with "/", and its path."""

    within: str
    path: str


def _class_folders(
    folder: str, left_out: LeftOut, may_be_empty: bool = False
) -> dict[str, list[_File]]:
    """{class: its pictures}, all in order."""
    found, shown = class_folders(folder, left_out), printable(folder)
    if len(found) < 2:
        has = f"only one, {printable(*found)}" if found else "none"
        raise ValueError(
            f"{shown} must hold a folder of pictures for each class, two at least. It has {has}"
        )
    empty = [name for name, one in found.items() if not one.pictures]
    if empty and not may_be_empty:
        beside = f". {left_out}" if left_out else ""
        raise ValueError(
            f"{shown} has class folders without a picture: {first_few(empty)}; fill or remove them"
            f"{beside}"
        )
    if parts := _parts_among(found):
        raise ValueError(
            f"{shown}: {first_few(parts)} look like parts of a data set, not like classes: they "
            "have no pictures but in further folders. Name the part to train on train and the one "
            "to validate on val, or give the folder that holds the class folders"
        )
    return {name: sorted(map(_File, *_within(one))) for name, one in found.items()}


def _parts_among(found: Mapping[str, ClassFolder]) -> list[str]:
    """Folders whose names are the same but for a part's: training_set and test_set."""
    alike: dict[str, list[str]] = {}
    for name, one in found.items():
        rest, times = _PART.subn("", name.lower())
        if times and not any(os.path.dirname(path) == one.path for path in one.pictures):
            alike.setdefault(re.sub(r"\d", "", rest), []).append(name)
    return next((names for names in alike.values() if len(names) > 1), [])


def _within(one: ClassFolder) -> tuple[list[str], Sequence[str]]:
    for path in one.pictures:
        if not path.lower().endswith(SUFFIXES) and os.path.isdir(path):
            os.listdir(path)  # raises why it cannot be read
    names = [path.removeprefix(one.path + os.sep).replace(os.sep, "/") for path in one.pictures]
    return [unicodedata.normalize("NFC", name) for name in names], one.pictures


def _draw(seed: int, name: str, path: str) -> bytes:
    """What decides who is held out: the same everywhere, as good as random."""
    return hashlib.sha256(b"%d\0" % seed + os.fsencode(f"{name}\0{path}")).digest()


def _of_folder(
    name: str, classes: Mapping[str, Sequence[_File]], left_out: LeftOut | None = None
) -> Pictures:
    hashed = hashlib.sha256()
    sources: list[str] = []
    for one, files in classes.items():
        for file in files:
            sources.append(file.path)
            try:
                size = os.path.getsize(file.path)
            except OSError:  # a link to nothing: reading it will say so
                size = -1
            hashed.update(os.fsencode(f"{one}\0{file.within}\0{size}\0"))
    counts = [len(files) for files in classes.values()]
    labels: np.ndarray = np.arange(len(counts), dtype=np.int32).repeat(counts)
    said = str(left_out) if left_out else ""
    return Pictures(name, tuple(sources), labels, tuple(classes), hashed.hexdigest(), said)


def _of_digits(split: Split, name: str) -> Pictures:
    # 0..16 -> 0..255, and each pixel a 4 x 4 patch, as in `load_digits`.
    pixels = np.round(split.pixels * (255 / 16)).astype(np.uint8)
    pictures = pixels.repeat(4, axis=1).repeat(4, axis=2)
    hashed = hashlib.sha256(pictures.tobytes() + split.labels.tobytes()).hexdigest()
    return Pictures(name, pictures, split.labels, DIGITS, hashed)
