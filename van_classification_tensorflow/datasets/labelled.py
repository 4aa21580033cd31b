"""What `van evaluate` measures on: pictures, and the classes that count as right for each.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import csv
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ..images.find import LeftOut, class_entries, class_folders, no_pictures, pictures_in
from ..spec.labels import Label, comparable, imagenet_classes
from ..spec.scores import negative_of
from ..support.checks import is_whole
from ..support.extras import is_installed
from ..support.files import asset
from ..support.text import first_few, printable
from .digits import CLASSES as DIGITS
from .digits import load_digits

# Sets whose authors restrict the predictions to the 200 classes that the pictures have.
# ImageNet-A: arXiv 1907.07174. ImageNet-R: arXiv 2006.16241.
SUBSETS = {"imagenet-a": "imagenet_a.txt", "imagenet-r": "imagenet_r.txt"}

_VALIDATION = re.compile(r"ILSVRC2012_val_(\d{8})\b")
_INDEX = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True)
class Example:
    """One picture.

    Args:
        source: A path, the bytes of a picture file or a uint8 array, as `open_image` takes them.
        name: What reports call it.
        classes: Outputs of the model that count as right; none: the picture is left out.
    """

    source: Any
    name: str
    classes: tuple[int, ...]


@dataclass(frozen=True)
class Dataset:
    """Pictures to measure on.

    Args:
        name: What reports call it.
        examples: In a fixed order; to be iterated over once.
        count: How many there are.
        restricted: Outputs among which the best is looked for, ascending; None: all.
        original_labels: Each picture has the one class its authors gave it (not ReaL's).
        notes: What a reader of the result should know.
    """

    name: str
    examples: Iterable[Example]
    count: int
    restricted: tuple[int, ...] | None = None
    original_labels: bool = True
    notes: tuple[str, ...] = ()


def open_dataset(
    data: str | os.PathLike,
    labels: Sequence[Label],
    *,
    split: str | None = None,
    subset: str | None = None,
    class_map: str | os.PathLike | None = None,
    real_labels: str | os.PathLike | None = None,
    left_out: LeftOut | None = None,
) -> Dataset:
    """Finds the pictures and what each should be taken for.

    Args:
        data: A folder with one folder of pictures for each class, named by WordNet id, by the
            model's own class name or by class index; `digits` for the 360 bundled test images;
            `tfds:NAME` for a data set of TensorFlow Datasets.
        labels: Of the model's outputs.
        split: Of a TFDS data set; by default "test" or else "validation", for ImageNet itself
            "validation".
        subset: "imagenet-a" or "imagenet-r": predict only among that set's 200 classes, as its
            authors do.
        class_map: JSON ({folder: class index}) or CSV (folder, class index) that says what the
            class folders are.
        real_labels: `real.json` of "Are we done with ImageNet?" (arXiv 2006.07159): for each
            validation picture, by its number, the classes that are right. The pictures are then
            found by their names, ILSVRC2012_val_00000001.JPEG, at any depth; one without a class
            is left out.
        left_out: Counts the files of folders that are no pictures; a note says so as well.

    Raises:
        ValueError: Classes and weights do not fit together, there is nothing to measure on, or
            an option does not apply.
        OSError: A folder or a list cannot be read.
        ModuleNotFoundError: tensorflow_datasets is missing.
    """
    check_asked(data, split=split, subset=subset, class_map=class_map, real_labels=real_labels)
    restricted = None if subset is None else _restricted(subset, labels)
    real = None if real_labels is None else _Real(Path(real_labels), labels)
    left_out = LeftOut() if left_out is None else left_out
    if data == "digits":
        dataset = _digits(labels)
    elif isinstance(data, str) and data.startswith("tfds:"):
        dataset = _tfds(data.removeprefix("tfds:"), labels, split, real)
    elif real is not None:
        dataset = _real_folder(os.fspath(data), real, left_out)
    else:
        dataset = _class_folders(os.fspath(data), labels, class_map, restricted, left_out)
    if not dataset.count:
        raise ValueError(no_pictures(printable(data), left_out))
    if restricted is None:
        return dataset
    name = f"{dataset.name}, predicted among the {len(restricted)} classes of {subset}"
    return replace(dataset, name=name, restricted=restricted)


def check_asked(
    data: str | os.PathLike,
    *,
    split: str | None = None,
    subset: str | None = None,
    class_map: str | os.PathLike | None = None,
    real_labels: str | os.PathLike | None = None,
) -> None:
    """Raises what `open_dataset` would without knowing the labels; of folders few are looked at."""
    is_tfds = isinstance(data, str) and data.startswith("tfds:")
    if split is not None and not is_tfds:
        raise ValueError(f"`split` applies to tfds:NAME only. Received: split={split!r}, {data}")
    if class_map is not None and (is_tfds or data == "digits" or real_labels is not None):
        raise ValueError("`class_map` applies to a folder of class folders only; leave it out")
    if real_labels is not None and (data == "digits" or subset is not None):
        raise ValueError(
            "`real_labels` are of ImageNet's whole validation set: they fit neither digits nor a "
            "`subset`; leave one out"
        )
    if is_tfds:
        if not is_installed("tensorflow_datasets"):
            raise ModuleNotFoundError(
                f"{data} needs TensorFlow Datasets: pip install tensorflow-datasets"
            )
    elif data != "digits" and not os.path.isdir(data):
        raise FileNotFoundError(
            "`data` must be a folder of class folders, tfds:NAME or digits. "
            f"Received: {printable(data)}, and there is no such folder"
        )
    for path in (class_map, real_labels):
        if path is not None:
            os.stat(path)
    if subset is not None:
        subset_indices(subset)
    if data == "digits" or is_tfds:
        return
    left_out, data = LeftOut(), os.fspath(data)
    folders = [data]
    if real_labels is None:
        folders = [entry.path for entry in class_entries(data, left_out).values()]
    if not folders:
        beside = f". {left_out}" if left_out else ""
        raise ValueError(
            f"{printable(data)} has no folders: it must hold one for each class{beside}"
        )
    if not any(True for folder in folders for _ in pictures_in(folder, left_out)):
        raise ValueError(no_pictures(printable(data), left_out))


# --- Folders ---


def _class_folders(
    data: str,
    labels: Sequence[Label],
    class_map: str | os.PathLike | None,
    restricted: tuple[int, ...] | None,
    left_out: LeftOut,
) -> Dataset:
    folders = class_folders(data, left_out)
    names = list(folders)
    if class_map is None:
        classes, how = match_classes(names, labels, f"folders of {printable(data)}")
    else:
        classes = _read_class_map(Path(class_map), len(labels))
        how = f"class map {printable(class_map)}"
        if unknown := sorted(set(names) - set(classes)):
            raise ValueError(f"{class_map} does not name {first_few(unknown)} of {printable(data)}")
    if restricted is not None:
        outside = [name for name in names if classes[name] not in restricted]
        if outside:
            raise ValueError(
                f"{printable(data)}: {first_few(sorted(outside))}: not of the {len(restricted)} "
                "classes of `subset`; remove them, or leave `subset` out"
            )
    examples = [
        Example(path, path, (classes[name],))
        # By class, so that 2 comes before 10 where folders are named by index.
        for name in sorted(names, key=lambda name: (classes[name], os.fsencode(name)))
        for path in folders[name].pictures
    ]
    notes = [f"Classes of the {len(names):,} folders: by {how}."]
    if empty := [name for name in names if not folders[name].pictures]:
        notes.append(f"Folders without a picture: {len(empty):,} ({first_few(empty)}).")
    if left_out:
        notes.append(str(left_out))
    if restricted is None:
        present = tuple(sorted({classes[name] for name in names}))
        for subset in SUBSETS:
            if all(label.wnid for label in labels) and present == _subset_or_none(subset, labels):
                notes.append(
                    f"These are the classes of {subset}. Its authors predict only among them: "
                    f"--subset {subset}."
                )
    return Dataset(f"{printable(data)}", examples, len(examples), notes=tuple(notes))


def match_classes(
    names: Sequence[str], labels: Sequence[Label], what: str
) -> tuple[dict[str, int], str]:
    """Which class each name means: all by WordNet id, all by class name, or all by index.

    Names that are all the model's own labels mean these, whatever else they could be read as. Of
    two names of which one is the only class that a binary model names, the other is its negative.

    Args:
        names: Of class folders.
        labels: Of the model's outputs.
        what: What the names are of, for messages: "folders of x".

    Returns:
        {name: class index}, and how the names were read.

    Raises:
        ValueError: A name matches no class, they are of several kinds, or it is not clear which
            class is meant.
    """
    own = [comparable(label.name) for label in labels]
    times = Counter(own)
    by_name = {name: i for i, name in enumerate(own) if times[name] == 1}
    # A folder called "n02123045 tabby" became a label of that WordNet id and name.
    by_name |= {comparable(label.text): i for i, label in enumerate(labels) if label.wnid}
    exact = {n: by_name[word] for n in names if (word := comparable(n)) in by_name}
    if [*exact.values()] == [1] and len(names) == 2 and own == [negative_of(own[1]), own[1]]:
        exact = {n: exact.get(n, 0) for n in names}
    if len(set(exact.values())) == len(names):
        return exact, "class name"
    by_wnid = {label.wnid: i for i, label in enumerate(labels) if label.wnid}
    indices = {n: int(n) for n in names if _INDEX.fullmatch(n)}
    readings: dict[str, dict[str, int]] = {
        "WordNet id": {n: by_wnid[n] for n in names if n in by_wnid},
        "class name": {
            n: by_name[word]
            for n in names
            for word in [comparable(n) if n in exact else comparable(n).replace(" ", "_")]
            if word in by_name
        },
        "class index": {n: i for n, i in indices.items() if i < len(labels)},
    }
    fitting = {how: found for how, found in readings.items() if len(found) == len(names)}
    for how, found in fitting.items():
        if len(set(found.values())) < len(found):
            twice = [n for n in names if list(found.values()).count(found[n]) > 1]
            raise ValueError(f"The {what}: several mean the same class: {first_few(sorted(twice))}")
        if how == "class index" and exact:
            others = sorted(set(names) - set(exact))
            raise ValueError(
                f"The {what}: {first_few(sorted(exact))} could be labels of the weights or, as "
                f"{first_few(others)} must be, class indices, which mean other classes: name all "
                "by their labels, or say with `class_map` what they are"
            )
        if how == "class index" and by_wnid and len(labels) != len(imagenet_classes()):
            raise ValueError(
                f"The {what} are named by index, and the weights have {len(labels):,} classes: "
                "ImageNet-1k's indices would mean others. Name them by WordNet id, or say with "
                "`class_map` which is meant"
            )
        return found, how
    raise ValueError(_no_match(names, labels, readings, indices, times, what))


def _no_match(names, labels, readings, indices, times, what) -> str:
    """Why `names` cannot be matched, in words."""
    matched = set().union(*readings.values())
    unknown = sorted(set(names) - matched)
    if not unknown:
        kinds = ", ".join(f"{first_few(sorted(f))} by {how}" for how, f in readings.items() if f)
        return f"The {what} are named in several ways: {kinds}; name them all in one"
    own = ", ".join(label.name for label in labels[:3]) + (", ..." if len(labels) > 3 else "")
    why = f"the weights have {len(labels):,} classes: {own}"
    if any(name in indices for name in unknown):
        why = f"the weights have {len(labels):,} classes, 0 to {len(labels) - 1}"
    elif any(times[comparable(name)] > 1 for name in unknown):
        why = "several classes are called so; use WordNet ids"
    elif any(re.fullmatch(r"n\d{8}", name) for name in unknown) and not labels[0].wnid:
        why += "; they have no WordNet ids"
    verb = "matches no class" if len(unknown) == 1 else "match no class"
    return (
        f"{first_few(unknown)} of the {what} {verb} ({why}). Name them by WordNet id, class name "
        "or class index, say with `class_map` what they are, or take other weights"
    )


def _read_class_map(path: Path, classes: int) -> dict[str, int]:
    # Bytes of another encoding stay what they are in the names of folders.
    text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    if path.suffix == ".json":
        try:
            pairs = json.loads(text, object_pairs_hook=tuple)
        except ValueError as error:
            raise ValueError(f"`class_map` {path}: not JSON: {error}") from error
        if not isinstance(pairs, tuple):
            raise ValueError(f'`class_map` {path}: it must hold {{"folder": class index, ...}}')
    elif path.suffix == ".csv":
        rows = [row for row in csv.reader(text.splitlines()) if any(cell.strip() for cell in row)]
        if any(len(row) != 2 for row in rows):
            raise ValueError(f"`class_map` {path}: each line must be: folder,class index")
        if rows and not _INDEX.fullmatch(rows[0][1].strip()):
            rows = rows[1:]  # a heading
        pairs = tuple((folder.strip(), _integer(index)) for folder, index in rows)
    else:
        raise ValueError(f"`class_map` must end in .json or .csv. Received: {path}")
    pairs = tuple((comparable(folder), index) for folder, index in pairs)
    for folder, index in pairs:
        if not is_whole(index) or not 0 <= index < classes:
            raise ValueError(
                f"`class_map` {path}: {folder!r} must have a class index, 0 to {classes - 1}. "
                f"Received: {index!r}"
            )
    if twice := [folder for folder, times in Counter(f for f, _ in pairs).items() if times > 1]:
        raise ValueError(f"`class_map` {path} names twice: {first_few(twice)}")
    return dict(pairs)


def _integer(text: str) -> int | str:
    return int(text) if _INDEX.fullmatch(text.strip()) else text


# --- ImageNet's own: subsets, ReaL ---


def _of_imagenet(labels: Sequence[Label]) -> list[int | None]:
    """Where each of ImageNet-1k's classes is among `labels`, by WordNet id."""
    of_wnid = {label.wnid: i for i, label in enumerate(labels) if label.wnid}
    return [of_wnid.get(c.wnid) for c in imagenet_classes()]


def subset_indices(subset: str) -> tuple[int, ...]:
    """ImageNet-1k indices of the 200 classes of "imagenet-a" or "imagenet-r", ascending."""
    if subset not in SUBSETS:
        raise ValueError(f"`subset` must be {' or '.join(SUBSETS)}. Received: subset={subset!r}")
    text = asset(SUBSETS[subset]).read_text(encoding="ascii")
    return tuple(sorted(map(int, text.split())))


def _subset_or_none(subset: str, labels: Sequence[Label]) -> tuple[int, ...] | None:
    where = _of_imagenet(labels)
    found = [where[i] for i in subset_indices(subset)]
    return None if None in found else tuple(sorted(i for i in found if i is not None))


def _restricted(subset: str, labels: Sequence[Label]) -> tuple[int, ...]:
    found = _subset_or_none(subset, labels)
    if found is None:
        raise ValueError(
            f"`subset` {subset} needs weights with ImageNet's classes; these have "
            f"{len(labels):,}: {first_few([label.name for label in labels])}"
        )
    return found


class _Real:
    """The ReaL labels: for a file name, the model's outputs that are right."""

    def __init__(self, path: Path, labels: Sequence[Label]):
        self.path = path
        try:
            self.accepted = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(f"`real_labels` {path}: not JSON: {error}") from error
        self.where = _of_imagenet(labels)
        if None in self.where:
            raise ValueError(
                f"`real_labels` needs weights with ImageNet-1k's classes; these have "
                f"{len(labels):,}: {first_few([label.name for label in labels])}"
            )
        if not isinstance(self.accepted, list) or not all(
            isinstance(one, list) and all(isinstance(i, int) and 0 <= i < 1000 for i in one)
            for one in self.accepted
        ):
            raise ValueError(
                f"`real_labels` {path} must hold a list with, for each validation picture, the "
                "list of its class indices, 0 to 999"
            )

    def classes(self, name: str) -> tuple[int, ...]:
        found = _VALIDATION.search(name)
        number = int(found[1]) if found else 0
        if not 1 <= number <= len(self.accepted):
            raise ValueError(
                f"{printable(name)}: `real_labels` {self.path} is for pictures named "
                f"ILSVRC2012_val_00000001 to ILSVRC2012_val_{len(self.accepted):08d}"
            )
        indices = (self.where[i] for i in self.accepted[number - 1])
        return tuple(i for i in indices if i is not None)


def _real_folder(data: str, real: _Real, left_out: LeftOut) -> Dataset:
    # By number, whatever folders they lie in.
    paths = sorted(pictures_in(data, left_out), key=lambda path: os.path.basename(path))
    examples = [Example(p, p, real.classes(os.path.basename(p))) for p in paths]
    name = f"{printable(data)}, ReaL labels"
    notes = (str(left_out),) if left_out else ()
    return Dataset(name, examples, len(examples), original_labels=False, notes=notes)


def is_validation_picture(name: str) -> bool:
    """Whether a picture is, by its name, of ImageNet-1k's validation set."""
    return _VALIDATION.search(os.path.basename(name)) is not None


# --- Not in folders ---


def _digits(labels: Sequence[Label]) -> Dataset:
    where = {label.name: i for i, label in enumerate(labels)}
    if set(where) != set(DIGITS):
        raise ValueError(
            "`data` digits needs weights whose classes are the digits 0 to 9; these have "
            f"{len(labels):,}: {first_few([label.name for label in labels])}"
        )
    test = load_digits()[1]
    # 0..16 -> 0..255.
    pictures = np.round(test.pixels * (255 / 16)).astype(np.uint8)
    examples = [
        Example(picture, f"digit {i}", (where[DIGITS[label]],))
        for i, (picture, label) in enumerate(zip(pictures, test.labels, strict=True))
    ]
    return Dataset("digits: the bundled test images", examples, len(examples))


def _tfds(name: str, labels: Sequence[Label], split: str | None, real: _Real | None) -> Dataset:
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ModuleNotFoundError(
            f"tfds:{name} needs TensorFlow Datasets: pip install tensorflow-datasets"
        ) from error
    builder = tfds.builder(name)
    builder.download_and_prepare()  # nothing, if it is there
    info = builder.info
    splits = list(info.splits)
    # The test pictures of ImageNet are published without labels.
    order = ("validation",) if name.startswith("imagenet2012") else ("test", "validation")
    split = split or next((s for s in order if s in splits), None)
    if split is None or split.partition("[")[0] not in splits:
        raise ValueError(
            f"`split` of tfds:{name} must be one of {', '.join(splits)}, or a part such as "
            f"{splits[0] if splits else 'test'}[:100]. Received: split={split!r}"
        )
    features = info.features
    key = next((k for k in ("label", "real_label") if k in features), None)
    if "image" not in features or key is None:
        raise ValueError(
            f"tfds:{name} is not for classification: it must have image and label. "
            f"It has: {', '.join(features)}"
        )
    feature = features[key]
    names = getattr(feature, "feature", feature).names  # of one label, or of a sequence of them
    matched, how = match_classes(names, labels, f"classes of tfds:{name}")
    where = [matched[n] for n in names]
    # Encoded as they are stored: Pillow is to decode them, as it does files.
    stored = builder.as_dataset(
        split=split, shuffle_files=False, decoders={"image": tfds.decode.SkipDecoding()}
    )

    def examples() -> Iterator[Example]:
        for number, record in enumerate(tfds.as_numpy(stored)):
            text = record.get("file_name", b"")
            file = text.decode() if isinstance(text, bytes) else str(text)
            indices = np.atleast_1d(record[key])
            if (indices < 0).any():
                raise ValueError(f"tfds:{name}: `split` {split} has no labels; choose another")
            classes = tuple(where[i] for i in indices) if real is None else real.classes(file)
            yield Example(record["image"], file or f"{name} {split} {number}", classes)

    count = info.splits[split].num_examples
    is_real = real is not None or key == "real_label"
    return Dataset(
        f"tfds:{name}, split {split}{', ReaL labels' if is_real else ''}",
        examples(),
        count,
        original_labels=not is_real,
        notes=(f"Classes: by {how}.",),
    )
