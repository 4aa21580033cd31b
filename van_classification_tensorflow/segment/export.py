"""`van export`: of a segmentation here, of a classifier by `export.export`.

As there a file is opened by its own runtime and compared with the Keras model, and only what agrees
is moved to its place.
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from .. import __version__
from ..export.compare import TOLERANCES, ExportError
from ..export.export import run as run_for_classifiers
from ..export.formats import import_runtime
from ..export.litert import save as save_litert
from ..export.openvino import save as save_openvino
from ..export.place import place
from ..export.request import ExportRequest
from ..export.saved_model import save
from ..spec.card import METADATA_KEY
from ..spec.segment_card import SegmentCard
from ..support.checks import is_whole
from ..support.console import messages, print_report, say
from ..support.files import file_bytes, folder_beside
from ..support.text import printable
from ..weights.address import address_of
from ..weights.catalogue import SEGMENTATION
from ..weights.checkpoint import CheckpointError, read_weights
from .checkpoint import SegmenterWeights, open_segmenter
from .exported import open_exported

if TYPE_CHECKING:
    import keras

FORMATS = ("onnx", "openvino", "litert", "saved_model")
_ANY_SIZE = ("saved_model",)
_PICTURES = 4  # that are compared
_ANY = (96, 160)  # of a file for any size
_DECODER = "decode_head."  # begins the names of its tensors
_LEAST = 32  # pixels a side


@dataclass(frozen=True)
class SegmenterExport:
    """What was written, and how it compares with the Keras model.

    Args:
        path: The file, or SavedModel's folder.
        card: What it says of itself.
        format: One of `FORMATS`.
        bytes: Size.
        difference: Largest absolute difference of a logit.
        largest: Largest absolute logit of the Keras model.
        agreement: Share of the logits' positions with the same best class.
        size: Height and width of its pictures; None: any.
    """

    path: Path
    card: SegmentCard
    format: str
    bytes: int
    difference: float
    largest: float
    agreement: float
    size: tuple[int, int] | None

    def lines(self) -> list[str]:
        """The report for a person."""
        size = "any size" if self.size is None else f"{self.size[1]} x {self.size[0]} pixels"
        return [
            f"model     {self.card.name}, a segmentation of {self.card.classes} classes",
            f"input     images, float32, {size}",
            "output    logits at the decoder's own size",
            f"compared  {_PICTURES} pictures of noise: largest difference {self.difference:.2g} of "
            f"{self.largest:.2g}, best class the same for {self.agreement:.2%} of the positions",
            f"written   {self.path}: {self.format}, float32, {self.bytes / 1e6:.1f} MB",
        ]


def run(request: ExportRequest) -> None:
    """`van export`: writes, and prints how what was written compares with the model."""
    source = segmentation_of(request.model)
    if source is None:
        run_for_classifiers(request)
    else:
        print_report(export_segmenter(source, request, messages()).lines())


def segmentation_of(model: Any) -> SegmenterWeights | keras.Model | None:
    """What `van export` is given, if it is a segmentation; None of a classifier.

    Raises:
        ValueError: Weights are refused as a segmentation, which they are.
        OSError: They cannot be downloaded, verified or opened.
    """
    made = sys.modules.get("van_classification_tensorflow.segment.model")
    if made is not None and isinstance(model, made.VANSegmenter):
        return model
    address = address_of(model)
    if address.kind == "name":
        if address.record(argument="model", task=None).task != SEGMENTATION:
            return None
        return open_segmenter(model, argument="model")
    if address.kind != "weights":
        return None
    try:
        tensors = read_weights(model).source.tensors
    except CheckpointError:  # the words of what opens classifiers say what is wrong
        return None
    has_decoder = any(name.startswith(_DECODER) for name in tensors)
    return open_segmenter(model, argument="model") if has_decoder else None


def export_segmenter(
    source: SegmenterWeights | keras.Model, request: ExportRequest, console: Console
) -> SegmenterExport:
    """Writes it, opens it in its own runtime, and leaves it where it agrees.

    The file takes normalised pictures (batch, height, width, channels) and gives logits (batch,
    h, w, classes) at the decoder's own size; its metadata hold labels, colours and preprocessing,
    with which `Segmenter` and `van segment` use it.

    Args:
        source: Weights, as `open_segmenter` gives them, or a `VANSegmenter`.
        request: Where to and how: a format of one size, or "saved_model"; float32.
        console: Where to show progress.

    Raises:
        ExportError: It does not agree with the model.
        ValueError: Something is asked for that there is not for segmentations.
        OSError: It cannot be written.
    """
    _check(request)
    import_runtime(request.kind)
    import keras

    from .model import VANSegmenter

    if isinstance(source, SegmenterWeights):
        model = VANSegmenter(pretrained=source, data_format="channels_last", dtype="float32")
        name = os.path.basename(printable(source.name))
    else:
        model, name = source, source.name
        if (model.data_format, model.compute_dtype) != ("channels_last", "float32"):
            raise ValueError(
                "`model` must be channels last and in float32 to be exported: make it anew with "
                "these, or give its file"
            )
    if model.auxiliary:  # for training
        model = keras.Model(model.inputs, model.outputs[0], name=model.name)
    first = source if not isinstance(source, SegmenterWeights) else model
    card = SegmentCard(
        name=name,
        classes=int(model.outputs[0].shape[-1]),
        labels=first.labels,
        palette=first.palette,
        preprocessing=first.preprocessing,
        version=__version__,
    )
    size = _size(request, card)
    with folder_beside(request.target) as folder:
        made = folder / request.target.name
        with console.status(f"{name}: writing {request.kind}"):
            _WRITERS[request.kind](model, card, size, request, made)
        found = _compared(model, card, made, request, size)
        place(made, request.target, request.kind)
    if request.kind not in _ANY_SIZE:
        say(console, "Of one size only: `van segment --mode slide` takes its windows from it.")
    return found


def _check(request: ExportRequest) -> None:
    """Raises `ValueError` where something is asked for that is for classifiers."""
    if request.kind not in FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)} for a segmentation. Received: "
            f"{request.kind}"
        )
    for name, only in (("precision", "float32"), ("uint8", False), ("softmax", False),
                       ("features", False), ("data", None)):  # fmt: skip
        if getattr(request, name) != only:
            raise ValueError(
                f"`{name}` is for classifiers; a segmentation takes normalised pictures and gives "
                f"logits, in float32. Received: {name}={getattr(request, name)!r}"
            )
    if request.kind in _ANY_SIZE:
        return
    if "any" in (request.batch_size, request.image_size):
        raise ValueError(
            f"`batch_size` and `image_size` must be fixed for {request.kind} of a segmentation; "
            f"saved_model takes any. Received: batch_size={request.batch_size!r}, "
            f"image_size={request.image_size!r}"
        )
    if request.batch_size != 1:
        raise ValueError(
            f"`batch_size` must be 1 for {request.kind} of a segmentation. Received: "
            f"{request.batch_size}"
        )


def _size(request: ExportRequest, card: SegmentCard) -> tuple[int, int] | None:
    if request.image_size == "any":
        return None
    side = request.image_size
    if side is None:
        side = card.preprocessing.input_size if card.preprocessing else 512
    if not is_whole(side) or int(side) < _LEAST:
        raise ValueError(
            f"`image_size` must be at least {_LEAST} for a segmentation. Received: {side}"
        )
    return int(side), int(side)


def _write_onnx(
    model: keras.Model, card: SegmentCard, size: Any, request: ExportRequest, path: Path
) -> None:
    import onnx

    made = onnx.load_model_from_string(_onnx(model, size))
    entry = made.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, card.to_json()
    onnx.save(made, os.fspath(path))


def _onnx(model: keras.Model, size: Any) -> bytes:
    from .graph import graph_of

    return graph_of(model)((*size, int(model.inputs[0].shape[-1]))).model


def _write_openvino(
    model: keras.Model, card: SegmentCard, size: Any, request: ExportRequest, path: Path
) -> None:
    from ..engines.quantised import openvino_model

    save_openvino(openvino_model(_onnx(model, size)), card.to_json(), path, compress=False)


def _write_litert(
    model: keras.Model, card: SegmentCard, size: Any, request: ExportRequest, path: Path
) -> None:
    from ..engines.flatbuffer import LITERT_TAPS, flatbuffer, tensorflow_function

    shape = (1, *size, int(model.inputs[0].shape[-1]))
    function = tensorflow_function(model, shape, "logits", max_taps=LITERT_TAPS)
    save_litert(flatbuffer(function, "float32", folder=path.parent), card.to_json(), path)


def _write_saved_model(
    model: keras.Model, card: SegmentCard, size: Any, request: ExportRequest, path: Path
) -> None:
    from ..engines.flatbuffer import tensorflow_function

    batch = None if request.batch_size == "any" else int(request.batch_size)
    shape = (batch, *(size or (None, None)), int(model.inputs[0].shape[-1]))
    function = tensorflow_function(model, shape, "logits")
    save(model, function, card.to_json(), path)


_WRITERS = {
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "litert": _write_litert,
    "saved_model": _write_saved_model,
}


def _compared(
    model: keras.Model, card: SegmentCard, path: Path, request: ExportRequest, size: Any
) -> SegmenterExport:
    """The file and the model on the same pictures, one after the other."""
    opened, rng = open_exported(path), np.random.default_rng(0)
    pairs = []
    for _ in range(_PICTURES):
        shape = (1, *(size or _ANY), opened.channels)
        picture = rng.standard_normal(shape).astype(np.float32)
        pairs.append((np.asarray(model.predict_on_batch(picture)), opened(picture)))
    difference = max(float(abs(a - b).max()) for a, b in pairs)
    largest = max(float(abs(a).max()) for a, _ in pairs)
    same = [float((a.argmax(axis=-1) == b.argmax(axis=-1)).mean()) for a, b in pairs]
    share = float(np.mean(same))
    limit = TOLERANCES["float32"][0] * max(largest, 1.0)
    tolerance = limit if request.tolerance is None else float(request.tolerance)
    if not difference <= tolerance:
        raise ExportError(
            f"{request.kind} does not agree with the Keras model: its output differs by "
            f"{difference:.2g} (allowed: {tolerance:.2g}); nothing was left"
        )
    return SegmenterExport(
        path=request.target,
        card=card,
        format=request.kind,
        bytes=file_bytes(path),
        difference=difference,
        largest=largest,
        agreement=share,
        size=size,
    )
