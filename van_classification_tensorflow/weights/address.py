"""What a word for weights is: a name of the catalogue, a file, an exported file, or of a hub.

The one place that tells. Imports neither Keras nor a backend.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any, Literal

from .catalogue import CATALOGUE, CLASSIFICATION, KNOWN_NAMES, Weights, find
from .hub_name import is_hub_name

_EXPORTED = {".onnx": "onnx", ".xml": "openvino", ".tflite": "litert"}
# Endings of weight files: a text that ends so is a path, there or not.
_WEIGHTS = (".pth", ".pth.tar", ".pt", ".bin", ".safetensors", ".h5", ".keras", ".index.json")


@dataclass(frozen=True)
class Address:
    """What a word for weights means, told by the word and by what is there of that name.

    Args:
        kind: "name": to be looked up in the catalogue, which may not have it. "weights": a file
            or folder of weights, there or not. "exported": an exported file, there or not.
            "hub": the address of a folder of a hub, hf://USER/NAME, well-formed or not.
            "other": no word, such as True or a model in memory.
        given: The word, or what else was given.
        format: Of an exported file: "onnx", "openvino", "litert" or "saved_model" (a folder with
            a `saved_model.pb`).
    """

    kind: Literal["name", "weights", "exported", "hub", "other"]
    given: Any
    format: str | None = None

    @property
    def is_path(self) -> bool:
        """Whether it means a file or folder, there or not."""
        return self.kind in ("weights", "exported")

    @property
    def path(self) -> str:
        """The file or folder as text, without a slash at its end."""
        return _path(self.given)

    def record(
        self,
        configuration: str | None = None,
        argument: str = "weights",
        task: str | None = CLASSIFICATION,
    ) -> Weights:
        """The record of the catalogue that a name means; True means the ImageNet-1k weights.

        Args:
            configuration: The member of the family it is for; then its tag is enough ("in22k").
            argument: What the caller calls the word, for messages.
            task: What the weights are wanted for, as in `find`.

        Raises:
            ValueError: There are no such weights; says which there are.
        """
        if self.given is not True and not isinstance(self.given, str):
            raise ValueError(
                f"`{argument}` must be True, False, a name of the catalogue (`van weights list`) "
                f"or a path. Received: {argument}={self.given!r}"
            )
        if self.given is True and configuration is None:
            with_weights = sorted({w.configuration for w in CATALOGUE.values() if w.configuration})
            raise ValueError(
                f"`{argument}=True` needs a `configuration` with published weights: "
                f"{', '.join(with_weights)}"
            )
        return find(self.given, configuration, argument, task)


def address_of(weights: Any) -> Address:
    """What `weights` means. Never fails: whether there are such weights is told by using them.

    What the catalogue knows wins over a file or folder of that name, which can be written
    ./imagenet, or given as a `Path`.
    """
    text = isinstance(weights, str)
    if not text and not isinstance(weights, os.PathLike):
        return Address("other", weights)
    if is_hub_name(weights):
        return Address("hub", weights)
    if text and weights in KNOWN_NAMES:
        return Address("name", weights)
    path = _path(weights)
    if os.path.isfile(os.path.join(path, "saved_model.pb")):
        return Address("exported", weights, "saved_model")
    if format := _EXPORTED.get(os.path.splitext(path)[1].lower()):
        return Address("exported", weights, format)
    if text and not (
        "/" in weights
        or os.sep in weights
        or weights.lower().endswith(_WEIGHTS)
        or os.path.exists(weights)
    ):
        return Address("name", weights)
    return Address("weights", weights)


def _path(given: Any) -> str:
    text = os.fsdecode(given)
    return text.rstrip("/" + os.sep) or text
