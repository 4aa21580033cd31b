"""What an exported file says of itself, as its metadata holds it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..support.text import printable
from .architecture import Architecture
from .labels import right_number
from .preprocessing import Preprocessing
from .scores import ACTIVATIONS, SIGMOID, activation_of

METADATA_KEY = "van_classification_tensorflow"
LITERT_METADATA = "van.json"  # in a zip archive behind the flatbuffer
SAVED_MODEL_METADATA = "assets.extra/van.json"
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
INPUTS = ("float32", "uint8")
OUTPUTS = ("logits", "probabilities", "features")
# Of what a file may ask for; far more than any VAN needs.
MAX_METADATA = 8_000_000  # characters: the names of 21,841 classes are 1 million
_MAX_SIDE = 4096  # pixels
_MAX_STAGES, _MAX_BLOCKS, MAX_WIDTH = 16, 500, 10_000_000  # blocks of a stage


@dataclass(frozen=True)
class About:
    """What an exported file says of itself.

    Args:
        name: Of the weights it was made of.
        precision: float32, float16, bfloat16 or int8.
        input: "float32": normalised; "uint8": pixels, 0 to 255, normalised inside.
        output: logits, probabilities or features.
        activation: What makes the probabilities of the logits, inside or after it: "softmax" or
            "sigmoid" (`scores`); None of features.
        preprocessing: How pictures become its input; None where nobody knows.
        labels: A text for each class, as `spec.labels.labels_of` takes them; None: unknown.
        architecture: Sizes of the model it was made of.
        version: Of this package, when it was made.
        assumed: Which of "labels" and "preprocessing" the weights did not say themselves.
    """

    name: str
    precision: str
    input: str
    output: str
    activation: str | None
    preprocessing: Preprocessing | None
    labels: tuple[str, ...] | None
    architecture: Architecture
    version: str
    assumed: tuple[str, ...] = ()

    def to_json(self) -> str:
        """One line of ASCII, for the metadata of any format."""
        record = asdict(self)  # the tuples in it become lists of JSON
        record["preprocessing"] = self.preprocessing and self.preprocessing.to_dict()
        return json.dumps(record)

    @classmethod
    def from_json(cls, text: str) -> About:
        """The inverse of `to_json`; keys it does not know are passed over.

        Raises:
            ValueError: It is no JSON or too large, or a value is missing, of a wrong type or in
                contradiction to another.
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
        chosen = {
            key: _one_of(record, key, allowed)
            for key, allowed in (("precision", PRECISIONS), ("input", INPUTS), ("output", OUTPUTS))
        }
        architecture = _architecture(record.get("architecture"))
        preprocessing = record.get("preprocessing")
        if preprocessing is not None:
            if not isinstance(preprocessing, dict):
                raise ValueError("its metadata: `preprocessing` is no object")
            preprocessing = Preprocessing.from_dict(preprocessing)
            if preprocessing.resize_to > 2 * _MAX_SIDE:
                raise ValueError(f"pictures resized to {preprocessing.resize_to:,} pixels a side")
            if preprocessing.input_size > _MAX_SIDE:
                raise ValueError(f"an input of {preprocessing.input_size:,} pixels a side")
            if preprocessing.channels != architecture.in_chans:
                raise ValueError(
                    f"its preprocessing makes {preprocessing.channels} channels; the model takes "
                    f"{architecture.in_chans}"
                )
        labels = record.get("labels")
        if labels is not None:
            if not isinstance(labels, list) or not all(isinstance(one, str) for one in labels):
                raise ValueError("its metadata: `labels` is no list of texts")
            if not right_number(len(labels), architecture.num_classes):
                raise ValueError(
                    f"it names {len(labels):,} labels for {architecture.num_classes or 0:,} classes"
                )
        assumed = record.get("assumed", [])  # not in files of versions before it
        if not isinstance(assumed, list):
            raise ValueError("its metadata: `assumed` is no list")
        return cls(
            name=_text(record, "name"),
            version=_text(record, "version"),
            activation=_activation(record, chosen["output"], architecture.num_classes),
            preprocessing=preprocessing,
            labels=None if labels is None else tuple(labels),
            architecture=architecture,
            assumed=tuple(one for one in ("labels", "preprocessing") if one in assumed),
            **chosen,
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
