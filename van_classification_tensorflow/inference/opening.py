"""What `Classifier` is given, opened: weights, an exported file or a model in memory."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING, Any

from ..engines.runtimes import Runtime, open_runtime
from ..spec.architecture import Architecture
from ..spec.card import Card
from ..spec.config import min_image_size
from ..spec.labels import Label, assumed_labels, labels_of
from ..spec.preprocessing import NOT_SAID, Preprocessing
from ..spec.scores import SOFTMAX, UNKNOWN_END, activation_of
from ..support.text import printable
from ..weights.address import address_of
from ..weights.pretrained import Pretrained, open_pretrained

if TYPE_CHECKING:
    import keras

    from .in_memory import InMemory


@dataclass(frozen=True)
class Opened:
    """One of `weights`, `runtime` and `in_memory`, and what goes with it.

    Args:
        name: What reports call it.
        preprocessing: Of its pictures.
        width: Length of its features.
        labels: Of its outputs; none without a head.
        activation: What makes probabilities of its logits.
        notes: What a user should know.
        batch_size: Of an exported file that takes no other.
        weights: The tensors and what was beside them.
        runtime: An exported file.
        in_memory: A Keras model.
    """

    name: str
    preprocessing: Preprocessing
    width: int
    labels: tuple[Label, ...] = ()
    activation: str = SOFTMAX
    notes: str = ""
    batch_size: int | None = None
    weights: Pretrained | None = None
    runtime: Runtime | None = None
    in_memory: InMemory | None = None

    @property
    def parameters(self) -> int | None:
        """How many numbers are trained; None of an exported file that does not say."""
        if self.in_memory is not None:
            return sum(prod(v.shape) for v in self.in_memory.model.trainable_variables)
        if self.weights is not None:
            sizes = self.weights.weights.architecture
        elif self.runtime is not None and self.runtime.about is not None:
            sizes = self.runtime.about.architecture
        else:
            return None
        tensors = sizes.tensors().items()
        return sum(prod(one.shape) for name, one in tensors if ".running_" not in name)


@dataclass(frozen=True)
class Wanted:
    """What the caller says instead of the weights, checked; None: theirs."""

    labels: str | Sequence[str] | None
    preprocessing: Preprocessing | None
    test_size: int | None
    engine: str
    precision: str
    batch_size: int

    def prepare(self, preprocessing: Preprocessing, channels: int) -> Preprocessing:
        """The preprocessing, for the size that is wanted and the model's channels."""
        if self.test_size is not None:
            preprocessing = replace(preprocessing, input_size=int(self.test_size))
        if preprocessing.channels != channels:
            raise ValueError(
                f"`preprocessing` makes {preprocessing.channels} channels; the model takes "
                f"{channels}"
            )
        return preprocessing


def open_any(weights: Any, wanted: Wanted) -> Opened:
    """Opens whatever `Classifier` takes.

    Raises:
        ValueError: It is nothing of that, or does not go with what is wanted.
        OSError: The weights cannot be downloaded, verified or opened.
        ModuleNotFoundError: The runtime of an exported file is not installed.
    """
    known = sys.modules.get("keras")  # where there is a model, it is there
    if known is not None and isinstance(weights, known.Model):
        return _open_model(weights, wanted)
    exported = address_of(weights).kind == "exported"
    return (_open_exported if exported else _open_weights)(weights, wanted)


def _open_weights(weights: Any, wanted: Wanted) -> Opened:
    opened = None if weights is True else open_pretrained(weights, argument="weights")
    if opened is None:
        raise ValueError(f"`weights` must be a name or a path. Received: weights={weights!r}")
    given = {"labels": wanted.labels, "preprocessing": wanted.preprocessing}
    opened.check([name for name, value in given.items() if value is not None])
    sizes, card = opened.weights.architecture, opened.card
    default = Preprocessing().with_channels(sizes.in_chans) or Preprocessing()
    preprocessing = wanted.prepare(
        wanted.preprocessing or card.preprocessing or default, sizes.in_chans
    )
    _check_side(preprocessing.input_size, sizes)
    labels: tuple[Label, ...] = ()
    activation = SOFTMAX
    if sizes.num_classes is not None:
        named = card.labels if wanted.labels is None else wanted.labels
        labels = labels_of(named, sizes.num_classes)
        activation = activation_of(card.activation, sizes.num_classes, card.name)
    return Opened(
        card.name,
        preprocessing,
        sizes.embed_dims[-1],
        labels,
        activation,
        card.remarks(wanted.labels, wanted.preprocessing),
        weights=opened,
    )


def _open_model(model: keras.Model, wanted: Wanted) -> Opened:
    from .in_memory import look_at

    if wanted.engine in ("numpy", "litert"):
        raise ValueError(
            "`engine` must be 'auto', 'keras', 'onnxruntime' or 'openvino' for a model in memory. "
            f"Received: engine={wanted.engine!r}"
        )
    if wanted.precision != "float32":
        raise ValueError(
            "`precision` is for weights; a model in memory computes in its own dtype: leave it "
            f"out. Received: precision={wanted.precision!r}"
        )
    opened = look_at(model, wanted.batch_size)
    notes = [opened.notes]
    if wanted.labels is None:
        notes.append(opened.notes_on_labels)
    found = wanted.preprocessing or opened.preprocessing
    if wanted.preprocessing is None and opened.changed_by:
        raise ValueError(
            f"`preprocessing` must be given for {model.name!r}, whose layer {opened.changed_by} "
            "may change the pictures before the VAN sees them: what is to come before that layer"
        )
    if found is None:
        found = Preprocessing().with_channels(opened.channels) or Preprocessing()
        notes.append(NOT_SAID)
    found = wanted.prepare(found, opened.channels)
    side = found.input_size
    if side < opened.least or any(
        fixed not in (None, side, opened.channels) for fixed in model.input_shape[1:]
    ):
        raise ValueError(
            f"`test_size` must be a size that {model.name!r} takes, {model.input_shape}, at least "
            f"{opened.least} pixels. Received: {side}"
        )
    labels: tuple[Label, ...] = ()
    activation = SOFTMAX
    if opened.activation is not None:
        activation = activation_of(opened.activation, opened.outputs, model.name)
        named = opened.labels if wanted.labels is None else wanted.labels
        labels = labels_of(named, opened.outputs)
    return Opened(
        model.name,
        found,
        opened.outputs if opened.features is None else opened.features.output_shape[1],
        labels,
        activation,
        " ".join(filter(None, notes)),
        in_memory=opened,
    )


def _open_exported(path: str | os.PathLike, wanted: Wanted) -> Opened:
    shown = printable(path)
    for argument, value, default in (
        ("engine", wanted.engine, "auto"),
        ("precision", wanted.precision, "float32"),
    ):
        if value != default:
            raise ValueError(
                f"`{argument}` is for weights; {shown} is an exported file, which its own runtime "
                f"runs in its own precision: leave it out. Received: {argument}={value!r}"
            )
    runtime = open_runtime(path)
    about = runtime.about
    name = shown if about is None else f"{about.name} ({about.precision}, {shown})"
    card = about or Card(name=shown, activation=None, notes=UNKNOWN_END)
    preprocessing = wanted.preprocessing or card.preprocessing
    if preprocessing is None:
        raise ValueError(
            f"{shown} does not say how its pictures are prepared, as files that `van export` "
            "writes do: export it with that, or give `preprocessing` (and `labels`)"
        )
    preprocessing = wanted.prepare(preprocessing, runtime.channels)
    side = preprocessing.input_size
    if runtime.image_size not in (None, (side, side)):
        height, width = runtime.image_size or (0, 0)
        raise ValueError(
            f"`test_size` must be that of {shown}, which was exported for {height} x {width} "
            f"pixels only. Received: {side}"
        )
    if about is not None:
        _check_side(side, about.architecture)
    labels, notes = _labels_of_exported(runtime, card, wanted)
    activation = card.activation if about else activation_of(None, runtime.outputs, name)
    return Opened(
        name,
        preprocessing,
        runtime.outputs,
        labels,
        activation or SOFTMAX,
        notes,
        runtime.batch_size,
        runtime=runtime,
    )


def _labels_of_exported(
    runtime: Runtime, card: Card, wanted: Wanted
) -> tuple[tuple[Label, ...], str]:
    """The labels of its outputs, none of features, and what a user should know of the file."""
    if runtime.about is not None and card.activation is None:
        return (), card.remarks((), wanted.preprocessing)
    labels = card.labels if wanted.labels is None else wanted.labels
    if labels is None:
        labels, said = assumed_labels(runtime.outputs, of_others=runtime.about is None)
        card = replace(card, assumed={**card.assumed, "labels": said})
    return labels_of(labels, runtime.outputs), card.remarks(wanted.labels, wanted.preprocessing)


def _check_side(side: int, sizes: Architecture) -> None:
    least = min_image_size(len(sizes.depths))
    if side < least:
        raise ValueError(
            f"`test_size` is too small: this model needs at least {least} pixels. Received: {side}"
        )
