"""How the scores of a head become probabilities: the one place that decides it.

- softmax: of several classes one is right. The probabilities of a picture add up to 1.
- sigmoid: each output is a question of its own, "is this in the picture?" (multi-label).
- One output is always the sigmoid of it (binary): the probability of the positive class. The
  softmax of a single number is 1, whatever the picture shows.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ..support.text import shown
from .labels import Label

SOFTMAX, SIGMOID = ACTIVATIONS = ("softmax", "sigmoid")
UNKNOWN_END = "What it ends with is not known: its outputs are taken for logits."


def activation_of(said: Any, outputs: int, name: str) -> str:
    """Which of the two makes probabilities of the logits of a head.

    Args:
        said: Its `classifier_activation`, as a configuration has it. "linear" and None, of a
            model that gives logits, mean softmax.
        outputs: Logits of a picture.
        name: Of the model, for the message.

    Raises:
        ValueError: It is another one, whose scores are no probabilities.
    """
    if said not in (*ACTIVATIONS, "linear", None):
        raise ValueError(
            f"{name} has classifier_activation={shown(said)}: its scores are no probabilities, "
            "neither of one class among others (softmax) nor of each class by itself (sigmoid)"
        )
    return SIGMOID if said == SIGMOID or outputs == 1 else SOFTMAX


def probabilities(logits: np.ndarray, activation: str) -> np.ndarray:
    """(..., outputs) logits -> as many probabilities, float64."""
    z: np.ndarray = logits.astype(np.float64)
    if activation == SIGMOID:
        return np.exp(-np.logaddexp(0, -z))
    shifted = np.exp(z - z.max(axis=-1, keepdims=True))
    return shifted / shifted.sum(axis=-1, keepdims=True)


def logits_of(probabilities: np.ndarray, activation: str) -> np.ndarray:
    """(..., outputs) -> logits of the same probabilities, float32, none of them infinite."""
    info = np.finfo(np.float32)
    # What was rounded to 0 or to 1 is no infinity.
    if activation == SIGMOID:
        p = np.clip(probabilities.astype(np.float64), info.tiny, 1 - info.epsneg)
        return (np.log(p) - np.log1p(-p)).astype(np.float32)
    return np.log(np.maximum(probabilities, info.tiny))


def best(outputs: np.ndarray, are_probabilities: bool) -> np.ndarray:
    """(N, outputs) logits or probabilities -> the class decided for, (N,); of one output 0 or 1."""
    if outputs.shape[1] == 1:
        return (outputs[:, 0] > (0.5 if are_probabilities else 0)).astype(np.int64)
    return outputs.argmax(axis=1)


# --- One output, two classes ---


def of_classes(logits: np.ndarray, activation: str) -> tuple[np.ndarray, str]:
    """Logits with one for each class, and their activation: of one output [negative, positive].

    Their softmax is [1 - p, p], where p is the sigmoid of the one.
    """
    if logits.shape[-1] == 1:
        return np.concatenate([np.zeros_like(logits), logits], axis=-1), SOFTMAX
    return logits, activation


def classes_of(labels: Sequence[Label]) -> tuple[Label, ...]:
    """What a picture may be of: the labels; where there is but one, also what it is not."""
    if len(labels) == 1:
        return Label(negative_of(labels[0].name)), labels[0]
    return tuple(labels)


def negative_of(positive: str) -> str:
    """What the other class of a binary model is called that names its positive one only."""
    return "negative" if positive == "positive" else f"not {positive}"
