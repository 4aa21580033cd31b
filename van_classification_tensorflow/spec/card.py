"""What goes with the tensors of a VAN: the card, in weight files, exported files and the catalogue.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ..support.text import printable
from .architecture import Architecture
from .labels import labels_of, right_number
from .preprocessing import Preprocessing
from .scores import ACTIVATIONS, SIGMOID, SOFTMAX, activation_of

METADATA_KEY = "van_classification_tensorflow"
SEGMENTATION = "segmentation"  # `task` of exported segmenters; a classifier names none
LITERT_METADATA = "van.json"  # in a zip archive behind the flatbuffer
SAVED_MODEL_METADATA = "assets.extra/van.json"
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
INPUTS = ("float32", "uint8")
OUTPUTS = ("logits", "probabilities", "features")
# Of what a file may ask for; far more than any VAN needs.
MAX_METADATA = 8_000_000  # characters: the names of 21,841 classes are 1 million
_MAX_SIDE = 4096  # pixels
_MAX_STAGES, _MAX_BLOCKS, MAX_WIDTH = 16, 500, 10_000_000  # blocks of a stage


@dataclass(frozen=True, kw_only=True)
class Card:
    """What goes with the tensors of a VAN, wherever they are kept.

    Args:
        name: Of the weights: in the catalogue, or of their file.
        labels: Names of the classes, as `spec.labels.labels_of` takes them; None where none are
            known.
        preprocessing: How pictures become the input; None where nobody knows.
        activation: `classifier_activation` as written in the file, not yet checked
            (`spec.scores.activation_of` does).
        pooling: How a model without a head pools its features, as written; None: not written.
        notes: What else one should know.
        assumed: {"labels" or "preprocessing": what stands in for what nobody says of it}.
        problems: {"labels", "preprocessing" or "classifier_activation": why what is said of it
            cannot be followed}.
        dataset: What they were trained on, of published ones; as are the others.
        top1: ImageNet-1k top-1 in percent; None where none is published.
        top5: The same, top-5.
        licence: SPDX identifier.
        licence_note: What the authors add to the licence.
    """

    name: str
    labels: str | tuple[str, ...] | None = None
    preprocessing: Preprocessing | None = None
    activation: Any = SOFTMAX
    pooling: Any = None
    notes: str = ""
    assumed: Mapping[str, str] = field(default_factory=dict)
    problems: Mapping[str, str] = field(default_factory=dict)
    dataset: str = ""
    top1: float | None = None
    top5: float | None = None
    licence: str = ""
    licence_note: str = ""

    def remarks(self, labels: Any = None, preprocessing: Any = None) -> str:
        """For the user: the notes, what was assumed, and what could not be used; "" if nothing.

        Without what concerns labels or preprocessing that the caller supplies himself.
        """
        given = {"labels": labels, "preprocessing": preprocessing}
        assumed = (text for key, text in self.assumed.items() if given[key] is None)
        left = (f"Not taken: {self.problems[k]}." for k in self.problems if given.get(k, 0) is None)
        return " ".join(filter(None, (self.notes, *assumed, *left)))

    def to_dict(self) -> dict[str, Any]:
        """What a weight file of this package keeps of it, by the names that `VAN` has for it."""
        kept: dict[str, Any] = {}
        if self.labels is not None:
            kept["labels"] = self.labels
        if self.preprocessing is not None:
            kept["preprocessing"] = self.preprocessing.to_dict()
        if self.activation != SOFTMAX:
            kept["classifier_activation"] = self.activation
        return kept


def read_record(text: str) -> dict[str, Any]:
    """The metadata of an exported file, as an object.

    Raises:
        ValueError: It is no JSON object, or too large.
    """
    if len(text) > MAX_METADATA:
        raise ValueError(f"its metadata has {len(text):,} characters")
    try:
        record = json.loads(text)
    except RecursionError:
        raise ValueError("its metadata is nested too deep") from None
    except ValueError as error:
        raise ValueError(f"its metadata is no JSON: {error}") from error
    if not isinstance(record, dict):
        raise ValueError("its metadata is no JSON object")
    return record


def precision_of(metadata: str | None) -> str:
    """What an exported file computes in; float32 where it does not say, as segmentations do not.

    Raises:
        ValueError: It says something else.
    """
    record = {} if metadata is None else read_record(metadata)
    if metadata is None or record.get("task") == SEGMENTATION:
        return "float32"
    return _one_of(record, "precision", PRECISIONS)


def read_labels(said: Any, num_classes: int | None) -> str | tuple[str, ...] | None:
    """The labels that a file names, as a `Card` has them.

    Raises:
        ValueError: They are no texts, no key of `labels_of`, or of another number of classes.
    """
    if isinstance(said, str):
        labels_of(said, num_classes or 0)
    if said is None or isinstance(said, str):
        return said
    if not isinstance(said, list) or not all(isinstance(one, str) for one in said):
        raise ValueError("its metadata: `labels` is no list of texts")
    labels_of(said, num_classes or 0)
    return tuple(said)


def read_preprocessing(said: Any) -> Preprocessing | None:
    """The preprocessing that a file states.

    Raises:
        ValueError: It is none, or asks for far larger pictures than any VAN needs.
    """
    if said is None:
        return None
    if not isinstance(said, dict):
        raise ValueError("its metadata: `preprocessing` is no object")
    found = Preprocessing.from_dict(said)
    if found.resize_to > 2 * _MAX_SIDE:
        raise ValueError(f"pictures resized to {found.resize_to:,} pixels a side")
    if found.input_size > _MAX_SIDE:
        raise ValueError(f"an input of {found.input_size:,} pixels a side")
    return found


# Remarks on an exported file whose weights did not say this themselves.
ASSUMED_BEFORE = {
    "preprocessing": "How its pictures are prepared was assumed when it was exported.",
    "labels": "The names of its classes were assumed when it was exported.",
}


@dataclass(frozen=True, kw_only=True)
class About(Card):
    """What an exported file says of itself: the card, and what only a file for a runtime has.

    Of the card it has `name`; `labels`, texts or None; `preprocessing`, which may be None;
    `activation`, checked, None for features; and `assumed`, taken from `ASSUMED_BEFORE`.

    Args:
        precision: float32, float16, bfloat16 or int8.
        input: "float32": normalised; "uint8": pixels, 0 to 255, normalised inside.
        output: logits, probabilities or features.
        architecture: Sizes of the model it was made of.
        version: Of this package, when it was made.
    """

    precision: str
    input: str
    output: str
    architecture: Architecture
    version: str

    def to_json(self) -> str:
        """One line of ASCII, for the metadata of any format."""
        record = {
            "name": self.name,
            "precision": self.precision,
            "input": self.input,
            "output": self.output,
            "activation": self.activation,
            "preprocessing": self.preprocessing and self.preprocessing.to_dict(),
            "labels": self.labels,
            "architecture": asdict(self.architecture),
            "version": self.version,
            "assumed": sorted(self.assumed),
        }
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> About:
        """The inverse of `to_json`; keys it does not know are passed over.

        Raises:
            ValueError: It is no JSON or too large, or a value is missing, of a wrong type or in
                contradiction to another.
        """
        record = read_record(text)
        if record.get("task") == SEGMENTATION:
            raise ValueError("it is a segmentation: `Segmenter` and `van segment` take it")
        chosen = {
            key: _one_of(record, key, allowed)
            for key, allowed in (("precision", PRECISIONS), ("input", INPUTS), ("output", OUTPUTS))
        }
        architecture = _architecture(record.get("architecture"))
        preprocessing = read_preprocessing(record.get("preprocessing"))
        if preprocessing is not None and preprocessing.channels != architecture.in_chans:
            raise ValueError(
                f"its preprocessing makes {preprocessing.channels} channels; the model takes "
                f"{architecture.in_chans}"
            )
        labels = record.get("labels")
        if isinstance(labels, str):
            raise ValueError("its metadata: `labels` is no list of texts")
        classes = architecture.num_classes
        if isinstance(labels, list) and not right_number(len(labels), classes):
            raise ValueError(f"it names {len(labels):,} labels for {classes or 0:,} classes")
        assumed = record.get("assumed", [])  # not in files of versions before it
        if not isinstance(assumed, list):
            raise ValueError("its metadata: `assumed` is no list")
        return cls(
            name=_text(record, "name"),
            version=_text(record, "version"),
            activation=_activation(record, chosen["output"], architecture.num_classes),
            preprocessing=preprocessing,
            labels=read_labels(labels, architecture.num_classes),
            architecture=architecture,
            assumed={what: text for what, text in ASSUMED_BEFORE.items() if what in assumed},
            precision=chosen["precision"],
            input=chosen["input"],
            output=chosen["output"],
        )


def _one_of(record: dict[str, Any], key: str, allowed: Sequence[str]) -> str:
    value: Any = record.get(key)
    if value not in allowed:
        raise ValueError(f"its metadata: `{key}` must be one of {', '.join(allowed)}")
    return value


def _activation(record: dict[str, Any], output: str, classes: int | None) -> str | None:
    if output == "features":
        return None
    said = record.get("activation")
    if said is not None:
        _one_of(record, "activation", ACTIVATIONS)
    if output == "probabilities" and classes == 1 and said != SIGMOID:
        raise ValueError(
            "it gives a probability of 1 for every picture, the softmax of a single number: export "
            "it anew"
        )
    return activation_of(said, classes or 0, "it")


def _text(record: dict[str, Any], key: str) -> str:
    value = record.get(key)
    if not isinstance(value, str) or not 0 < len(value) <= 300:
        raise ValueError(f"its metadata: `{key}` must be a text of 1 to 300 characters")
    return printable(value)  # a terminal would obey control characters


def _architecture(record: Any) -> Architecture:
    if not isinstance(record, dict):
        raise ValueError("its metadata: `architecture` is no object")
    lists: list[Any] = [record.get(key) for key in ("embed_dims", "hidden_dims", "depths")]
    classes = record.get("num_classes")
    numbers: list[Any] = [record.get("in_chans"), 1 if classes is None else classes]
    for values, most in (
        *zip(lists, (MAX_WIDTH, MAX_WIDTH, _MAX_BLOCKS), strict=True),
        (numbers, MAX_WIDTH),
    ):
        if not isinstance(values, list) or not 0 < len(values) <= _MAX_STAGES:
            raise ValueError("its metadata: `architecture` must have lists of sizes")
        if not all(type(value) is int and 0 < value <= most for value in values):
            raise ValueError("its metadata: a size of `architecture` is no sensible number")
    if len(set(map(len, lists))) > 1:
        raise ValueError("its metadata: the lists of `architecture` differ in length")
    embed_dims, hidden_dims, depths = (tuple(values) for values in lists)
    return Architecture(embed_dims, hidden_dims, depths, numbers[0], classes)
