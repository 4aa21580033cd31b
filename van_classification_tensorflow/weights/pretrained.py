"""What `pretrained=` names: a published checkpoint, a folder of a hub, or a file of one's own.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..spec.card import Card, read_labels, read_preprocessing
from ..spec.labels import assumed_labels, labels_of, right_number
from ..spec.preprocessing import NOT_SAID
from ..spec.scores import SIGMOID, SOFTMAX
from ..support.text import printable
from .address import address_of
from .cache import fetch
from .catalogue import Weights
from .checkpoint import CheckpointError, ModelWeights, files_beside, read_weights, weight_file
from .hub import fetch_folder
from .hub_name import HubName
from .sidecars import OPENMMLAB


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what goes with them."""

    weights: ModelWeights
    card: Card

    def check(self, given: Collection[str] = ()) -> None:
        """Raises `CheckpointError` where what is needed cannot be followed.

        Args:
            given: "labels" and "preprocessing", where the caller has his own or needs none.
        """
        for what, why in self.card.problems.items():
            if what not in given:
                way_out = (
                    "A model can be made of the weights: VAN(pretrained=...)"
                    if what == "classifier_activation"
                    else f"Give `{what}`, or write the weights without it: van convert"
                )
                raise CheckpointError(
                    f"{self.card.name}: its {what} cannot be taken: {why}. {way_out}"
                )

    def describe(self, model: Any, num_classes: int | None, in_chans: int) -> None:
        """Sets `model.labels` and `model.preprocessing` as far as they hold for it.

        Args:
            model: Has taken these weights.
            num_classes: Classes of its head; None without one.
            in_chans: Its input channels.
        """
        card = self.card
        model.labels = model.preprocessing = None
        same_head = num_classes is not None and (
            num_classes == self.weights.architecture.num_classes
        )
        if same_head and card.activation == SIGMOID:
            made = getattr(model.get_layer("pred").activation, "__name__", "")
            if made == SOFTMAX:
                warnings.warn(
                    f"{card.name}: its classes do not exclude each other (sigmoid); this model "
                    "makes one of them (softmax). classifier_activation='sigmoid' keeps them",
                    stacklevel=3,
                )
        for what, why in card.problems.items():
            if what == "preprocessing" or same_head:
                text = f"{card.name}: its {what} cannot be taken, and the model has none: {why}"
                warnings.warn(text, stacklevel=3)
        if card.labels is not None and same_head:
            model.labels = tuple(label.text for label in labels_of(card.labels, num_classes or 0))
        if card.preprocessing is not None:
            model.preprocessing = card.preprocessing.with_channels(in_chans)


def open_pretrained(
    pretrained: Any, configuration: str | None = None, argument: str = "pretrained"
) -> Pretrained | None:
    """Finds, fetches if needed, verifies and reads the weights that `pretrained` names.

    Args:
        pretrained: True (or "imagenet") for the ImageNet-1k weights of `configuration`; a tag
            such as "in22k", a name of the catalogue (`van weights list`), a path, or a folder of
            a hub, hf://USER/NAME[@REVISION]. False or None: nothing. A `Pretrained` is given
            back.
        configuration: The member of the family asked for, if any.
        argument: What the caller calls `pretrained`, for messages.

    Raises:
        ValueError: There are no such weights; says which there are. Or the file is refused.
        OSError: The file cannot be downloaded, verified or opened.
    """
    if pretrained is None or pretrained is False:
        return None
    if isinstance(pretrained, Pretrained):
        return pretrained
    address = address_of(pretrained)
    if address.kind == "exported":
        raise ValueError(
            f"`{argument}`: {printable(pretrained)} is an exported file, which `Classifier`, `van "
            "predict`, `van evaluate` and `van benchmark` take; give the weights it was made of"
        )
    if address.kind == "weights":
        weights = read_weights(pretrained)
        # Of a run's folder the file, so that it is said which; of transformers' the folder.
        file = weights.source.path
        return of_weights(str(file) if file.suffix == ".keras" else address.path, weights)
    if address.kind == "hub":
        folder = fetch_folder(HubName.of(pretrained, argument))
        return of_weights(folder.title, read_weights(folder.path))
    record = address.record(configuration, argument)
    return Pretrained(read_weights(local_file(record)), record)


def open_local(pretrained: Any, configuration: str | None = None) -> Pretrained | None:
    """As `open_pretrained`, but only for files: of all else the name is checked, no more."""
    address = address_of(pretrained)
    if address.is_path:
        return open_pretrained(pretrained, configuration)
    if address.kind == "hub":
        HubName.of(pretrained, "pretrained")
    elif pretrained is not None:
        address.record(configuration, "pretrained")
    return None


def of_weights(name: str, weights: ModelWeights) -> Pretrained:
    """Weights with the card that their file, or what stands beside it, gives them.

    What others wrote and cannot be followed stands in its `problems`.

    Raises:
        CheckpointError: What a file of this package says makes no sense.
    """
    said, sizes = weights.source.said, weights.architecture
    notes, assumed = list(said.get("notes", ())), {}
    problems = dict(said.get("problems", {}))
    labels = preprocessing = None
    try:
        if sizes.num_classes is not None:
            labels = _labels(said, sizes.num_classes, notes)
    except (ValueError, TypeError, AttributeError) as error:
        problems.setdefault("labels", _one_line(error))
    try:
        if "preprocessing" not in problems:
            preprocessing = read_preprocessing(said.get("preprocessing"))
    except (ValueError, TypeError, AttributeError) as error:
        problems["preprocessing"] = _one_line(error)
    if problems and "origin" not in said:
        why = next(iter(problems.values()))
        raise CheckpointError(f"{name} was refused: what it says of itself: {why}")
    if sizes.num_classes is None:  # of a part of another model, which may have been used otherwise
        if "preprocessing" in problems:
            notes.append(f"Not taken: {problems['preprocessing']}.")
        problems = {}
    if labels is None and sizes.num_classes is not None and "labels" not in problems:
        of_others = "labels" not in said and not weights.source.own
        labels, assumed["labels"] = assumed_labels(sizes.num_classes, of_others)
    fitting = preprocessing and preprocessing.with_channels(sizes.in_chans)
    if preprocessing and fitting is None:
        notes.append(f"Its preprocessing is not that of {sizes.in_chans} channels.")
    if fitting is not None and "assumed" in said:
        assumed["preprocessing"] = said["assumed"]
    elif fitting is None and "preprocessing" not in problems:
        assumed["preprocessing"] = NOT_SAID
    card = Card(
        name=name,
        labels=labels,
        preprocessing=fitting,
        activation=said.get("classifier_activation", SOFTMAX),
        pooling=said.get("pooling"),
        notes=" ".join(notes),
        assumed=assumed,
        problems=problems,
    )
    return Pretrained(weights, card)


def _labels(said: Mapping[str, Any], classes: int, notes: list[str]) -> Any:
    """The labels that a file names, checked, as a `Card` has them.

    None where it names none, or where OpenMMLab's are of another number of classes.
    """
    labels = said.get("labels") or None
    if isinstance(labels, (list, tuple)):
        labels = [str(label) for label in labels]
    if labels and said.get("origin") == OPENMMLAB:
        count = 1000 if labels == "imagenet1k" else len(labels)
        if not right_number(count, classes):
            # A frequent slip there: the names of the kind of data set, not of one's own.
            notes.append(f"{OPENMMLAB} names {count:,} classes, which are not these.")
            return None
    return read_labels(labels, classes)


def _one_line(error: Exception) -> str:
    why = " ".join(printable(str(error)).split())
    return why if len(why) <= 400 else f"{why[:400]}..."


def local_file(record: Weights, **options: Any) -> Path:
    """A verified file of a published checkpoint; `options` as in `weights.cache.fetch`."""
    return fetch(record, check=check_file, **options)


def check_file(path: Path, record: Weights) -> None:
    """Raises `CheckpointError` where the file does not hold what `record` promises."""
    found = read_weights(path).architecture
    # Of a segmenter the backbone is seen here, and the rest when it is loaded.
    classes = record.num_classes if record.decoder is None else None
    wrong_classes = classes and found.num_classes != classes
    if found.configuration != record.configuration or wrong_classes:
        raise CheckpointError(
            f"{path}: it should hold {record.name} ({record.num_classes:,} classes); "
            f"it holds {found}"
        )


def state_of_weights(path: str) -> list[int]:
    """Size and time of the weights' files, so that others of that name are noticed."""
    found = [file.stat() for file in files_of_weights(path)]
    return [number for info in found for number in (info.st_size, info.st_mtime_ns)]


def files_of_weights(path: str) -> list[Path]:
    """The files that weights, or an exported file, consist of; none of what is not a path."""
    address, files = address_of(path), [Path(path)]
    if not address.is_path:
        return []
    if address.kind == "weights":
        file = weight_file(path)
        files = [file, *files_beside(file)]
    elif address.format == "saved_model":
        files = sorted(Path(path).rglob("*"))
    elif address.format == "openvino":
        files.append(Path(path).with_suffix(".bin"))
    return [file for file in files if file.is_file()]
