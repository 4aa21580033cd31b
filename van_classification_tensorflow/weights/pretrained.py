"""What `pretrained=` names: a published checkpoint, fetched and verified, or a file of one's own.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..spec.labels import assumed_labels, labels_of, right_number
from ..spec.preprocessing import NOT_SAID, Preprocessing
from ..spec.scores import SIGMOID, SOFTMAX
from ..support.text import printable
from .address import address_of
from .cache import fetch
from .catalogue import Weights
from .checkpoint import CheckpointError, ModelWeights, read_weights
from .sidecars import OPENMMLAB


@dataclass(frozen=True)
class Pretrained:
    """Weights, and what goes with them.

    Args:
        name: Name in the catalogue, or of the file.
        weights: The tensors.
        labels: Names of the classes or a key of `spec.labels.labels_of`; None where none are known.
        preprocessing: How the input is made; None where the file does not say.
        notes: What else one should know.
        assumed: {"labels" or "preprocessing": what stands in for what nobody says of it}.
        problems: {"labels", "preprocessing" or "classifier_activation": why what is said of it
            cannot be followed}; see `check`.
    """

    name: str
    weights: ModelWeights
    labels: str | tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    notes: str = ""
    assumed: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)

    def check(self, given: Collection[str] = ()) -> None:
        """Raises `CheckpointError` where what is needed cannot be followed.

        Args:
            given: "labels" and "preprocessing", where the caller has his own or needs none.
        """
        for what, why in self.problems.items():
            if what not in given:
                way_out = (
                    "A model can be made of the weights: VAN(pretrained=...)"
                    if what == "classifier_activation"
                    else f"Give `{what}`, or write the weights without it: van convert"
                )
                raise CheckpointError(f"{self.name}: its {what} cannot be taken: {why}. {way_out}")

    def remarks(self, labels: Any = None, preprocessing: Any = None) -> str:
        """`notes`, what is assumed or not taken, less what the caller gives; "" if nothing."""
        given = {"labels": labels, "preprocessing": preprocessing}
        assumed = (text for key, text in self.assumed.items() if given[key] is None)
        left = (f"Not taken: {self.problems[k]}." for k in self.problems if given.get(k, 0) is None)
        return " ".join(filter(None, (self.notes, *assumed, *left)))

    @property
    def activation(self) -> Any:
        """Its `classifier_activation`, unchecked: see `spec.scores.activation_of`."""
        return self.weights.source.about.get("classifier_activation", SOFTMAX)

    def describe(self, model: Any, num_classes: int | None, in_chans: int) -> None:
        """Sets `model.labels` and `model.preprocessing` as far as they hold for it.

        Args:
            model: Has taken these weights.
            num_classes: Classes of its head; None without one.
            in_chans: Its input channels.
        """
        model.labels = model.preprocessing = None
        same_head = num_classes is not None and (
            num_classes == self.weights.architecture.num_classes
        )
        if same_head and self.activation == SIGMOID:
            made = getattr(model.get_layer("pred").activation, "__name__", "")
            if made == SOFTMAX:
                warnings.warn(
                    f"{self.name}: its classes do not exclude each other (sigmoid); this model "
                    "makes one of them (softmax). classifier_activation='sigmoid' keeps them",
                    stacklevel=3,
                )
        for what, why in self.problems.items():
            if what == "preprocessing" or same_head:
                text = f"{self.name}: its {what} cannot be taken, and the model has none: {why}"
                warnings.warn(text, stacklevel=3)
        if self.labels is not None and same_head:
            model.labels = tuple(label.text for label in labels_of(self.labels, num_classes or 0))
        if self.preprocessing is not None:
            model.preprocessing = self.preprocessing.with_channels(in_chans)


_MAX_INPUT_SIZE = 4096  # that a file may ask for; pixels


def open_pretrained(
    pretrained: Any, configuration: str | None = None, argument: str = "pretrained"
) -> Pretrained | None:
    """Finds, fetches if needed, verifies and reads the weights that `pretrained` names.

    Args:
        pretrained: True (or "imagenet") for the ImageNet-1k weights of `configuration`; a tag
            such as "in22k", a name of the catalogue (`van weights list`), or a path. False or
            None: nothing. A `Pretrained` is given back.
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
    record = address.record(configuration, argument)
    weights = read_weights(local_file(record))
    return Pretrained(record.name, weights, record.labels, record.preprocessing, record.notes)


def open_local(pretrained: Any, configuration: str | None = None) -> Pretrained | None:
    """As `open_pretrained` where a file is named; of the catalogue only the name is looked at."""
    address = address_of(pretrained)
    if address.is_path:
        return open_pretrained(pretrained, configuration)
    if pretrained is not None:
        address.record(configuration, "pretrained")
    return None


def of_weights(name: str, weights: ModelWeights) -> Pretrained:
    """Weights with the labels and the preprocessing that their file names.

    What others wrote beside them and cannot be followed stands in `problems`.

    Raises:
        CheckpointError: What a file of this package says makes no sense.
    """
    about, sizes = weights.source.about, weights.architecture
    notes, assumed = list(about.get("notes", ())), {}
    problems = dict(about.get("problems", {}))
    labels = preprocessing = None
    try:
        if sizes.num_classes is not None:
            labels = _labels(about, sizes.num_classes, notes)
    except (ValueError, TypeError, AttributeError) as error:
        problems.setdefault("labels", _one_line(error))
    try:
        if "preprocessing" not in problems:
            preprocessing = _preprocessing(about)
    except (ValueError, TypeError, AttributeError) as error:
        problems["preprocessing"] = _one_line(error)
    if problems and "origin" not in about:
        why = next(iter(problems.values()))
        raise CheckpointError(f"{name} was refused: what it says of itself: {why}")
    if sizes.num_classes is None:  # of a part of another model, which may have been used otherwise
        if "preprocessing" in problems:
            notes.append(f"Not taken: {problems['preprocessing']}.")
        problems = {}
    if labels is None and sizes.num_classes is not None and "labels" not in problems:
        of_others = "labels" not in about and not weights.source.own
        labels, assumed["labels"] = assumed_labels(sizes.num_classes, of_others)
    fitting = preprocessing and preprocessing.with_channels(sizes.in_chans)
    if preprocessing and fitting is None:
        notes.append(f"Its preprocessing is not that of {sizes.in_chans} channels.")
    if fitting is not None and "assumed" in about:
        assumed["preprocessing"] = about["assumed"]
    elif fitting is None and "preprocessing" not in problems:
        assumed["preprocessing"] = NOT_SAID
    return Pretrained(name, weights, labels, fitting, " ".join(notes), assumed, problems)


def _labels(about: Mapping[str, Any], classes: int, notes: list[str]) -> Any:
    """As `Pretrained.labels`, checked."""
    labels = about.get("labels")
    if labels is None or (isinstance(labels, list) and not labels):
        return None
    labels = tuple(map(str, labels)) if isinstance(labels, list) else labels
    count = 1000 if labels == "imagenet1k" else len(labels)
    if about.get("origin") == OPENMMLAB and not right_number(count, classes):
        # A frequent slip there: the names of the kind of data set, not of one's own.
        notes.append(f"{OPENMMLAB} names {count:,} classes, which are not these.")
        return None
    labels_of(labels, classes)
    return labels


def _preprocessing(about: Mapping[str, Any]) -> Preprocessing | None:
    if about.get("preprocessing") is None:
        return None
    found = Preprocessing.from_dict(about["preprocessing"])
    if found.resize_to > 2 * _MAX_INPUT_SIZE:
        raise ValueError(f"pictures resized to {found.resize_to:,} pixels a side")
    if found.input_size > _MAX_INPUT_SIZE:
        raise ValueError(f"an input of {found.input_size:,} pixels a side")
    return found


def _one_line(error: Exception) -> str:
    why = " ".join(printable(str(error)).split())
    return why if len(why) <= 400 else f"{why[:400]}..."


def local_file(record: Weights, **options: Any) -> Path:
    """A verified file of a published checkpoint; `options` as in `weights.cache.fetch`."""
    return fetch(record, check=check_file, **options)


def check_file(path: Path, record: Weights) -> None:
    """Raises `CheckpointError` where the file does not hold what `record` promises."""
    found = read_weights(path).architecture
    wrong_classes = record.num_classes and found.num_classes != record.num_classes
    if found.configuration != record.configuration or wrong_classes:
        raise CheckpointError(
            f"{path}: it should hold {record.name} ({record.num_classes:,} classes); "
            f"it holds {found}"
        )
