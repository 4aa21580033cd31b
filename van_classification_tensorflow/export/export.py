"""`van export`: a VAN as a file that ONNX Runtime, OpenVINO, LiteRT or TensorFlow runs.

A file is written beside its place, opened by its own runtime and compared with the Keras model on
real pictures. Only what agrees is moved to its place: an export leaves everything or nothing.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from .. import __version__
from ..engines.runtimes import MAX_INPUT
from ..spec.card import ASSUMED_BEFORE, About
from ..spec.config import min_image_size
from ..support.checks import is_whole
from ..support.console import messages, print_report, say
from ..support.files import folder_beside
from . import litert, onnx, openvino, saved_model
from .compare import Export, ExportError, check_agreement, compare
from .formats import import_runtime
from .job import Job
from .place import place
from .request import ExportRequest
from .samples import Samples, take_samples
from .source import Source, open_source

if TYPE_CHECKING:
    import keras

WRITERS: dict[str, Callable[[Job, Path], None]] = {
    "saved_model": saved_model.write,
    "onnx": onnx.write,
    "openvino": openvino.write,
    "litert": litert.write,
}


def export(
    model: str | os.PathLike | keras.Model,
    path: str | os.PathLike,
    format: str | None = None,
    *,
    precision: str = "float32",
    batch_size: int | str = 1,
    image_size: int | str | None = None,
    uint8: bool = False,
    softmax: bool = False,
    features: bool = False,
    fused: bool = True,
    data: str | os.PathLike | None = None,
    tolerance: float | None = None,
    agreement: float | None = None,
    overwrite: bool = False,
    console: Console | None = None,
) -> Export:
    """Writes a VAN for another runtime, opens it there, and compares it with the Keras model.

    The file takes `images` (batch, height, width, channels) and gives `logits`, `probabilities` or
    `features` (batch, length); its metadata hold labels and preprocessing, with which `Classifier`
    and `van predict` use it.

    Args:
        model: A name of `van weights list`, a weight file, or a `VAN`.
        path: `*.onnx`, `*.xml` (OpenVINO, with a `*.bin` beside it), `*.tflite`, or a folder to
            make for a SavedModel.
        format: "saved_model", "onnx", "openvino" or "litert"; by default what `path` ends in.
        precision: "float32" for all; "float16" (weights only; on a CPU the arithmetic stays
            float32) but for SavedModel; "bfloat16" (arithmetic) for OpenVINO; "int8" but for
            SavedModel, with ranges from pictures of `data`.
        batch_size: Images at once, fixed; "any": any number (not LiteRT).
        image_size: Side in pixels, fixed; by default of the preprocessing. "any": any height and
            width (not LiteRT).
        uint8: Take pixels, 0 to 255, and normalise inside; resizing stays outside.
        softmax: Give probabilities: by softmax, or by sigmoid where the model has a single output
            or `classifier_activation="sigmoid"`.
        features: Leave the head out and give pooled features.
        fused: Fold batch norm and layer scale (`fuse`); ONNX and OpenVINO are always fused.
        data: Real pictures, which int8 is calibrated on and the result is compared on: a folder,
            or "digits". Where its folders are the classes, accuracy is reported. By default the
            bundled digits; int8 must be given its own.
        tolerance: Largest absolute difference of an output allowed; by default `TOLERANCES`.
        agreement: Smallest share of pictures with the same best class, in [0, 1]; by default
            `TOLERANCES`.
        overwrite: Replace what is at `path`.
        console: Where to show progress.

    Raises:
        ExportError: The file does not agree with the model.
        ValueError: An argument is not allowed, or the weights are refused.
        FileExistsError: `path` is there and `overwrite` is not set.
        OSError: A file cannot be read or written.
        ModuleNotFoundError: The runtime is not installed; says what to install.
    """
    request = ExportRequest(
        model=model,
        path=path,
        format=format,
        precision=precision,
        batch_size=batch_size,
        image_size=image_size,
        uint8=uint8,
        softmax=softmax,
        features=features,
        fused=fused,
        data=data,
        tolerance=tolerance,
        agreement=agreement,
        overwrite=overwrite,
    )
    return _export(request, console or messages())


def run(request: ExportRequest) -> None:
    """`van export`: writes, and prints how what was written compares with the model."""
    print_report(_export(request, messages()).lines())


def _export(request: ExportRequest, console: Console) -> Export:
    source = _source_of(request)
    if remarks := source.card.remarks():
        say(console, remarks)
    samples = take_samples(request.data, source, request.precision == "int8", console)
    import_runtime(request.kind)  # only now: TensorFlow takes its time, and may not be needed
    job = _job(request, source, samples)
    with folder_beside(request.target) as folder:
        made = folder / request.target.name
        with console.status(f"{source.card.name}: writing {request.kind}"):
            _write(request.kind, job, made)
        found = compare(job, made, request.kind, samples, console)
        check_agreement(found, request)
        place(made, request.target, request.kind)
    return replace(found, path=request.target)


def _source_of(request: ExportRequest) -> Source:
    """The tensors, and the preprocessing for the size that is asked for."""
    source = open_source(request.model, request.features)
    if is_whole(request.image_size):
        side = int(request.image_size)  # type: ignore[arg-type]
        preprocessing = replace(source.preprocessing, input_size=side)
        source = replace(source, card=replace(source.card, preprocessing=preprocessing))
    side = source.preprocessing.input_size
    least = min_image_size(len(source.sizes.depths))
    if side < least:
        raise ValueError(
            f"`image_size` must be at least {least} for this model. Received: image_size={side}"
        )
    images = 1 if request.batch_size == "any" else int(request.batch_size)
    numbers = side * side * source.sizes.in_chans * images
    if numbers > MAX_INPUT:
        raise ValueError(
            f"`batch_size` and `image_size` make an input of {numbers:,} numbers; allowed: "
            f"{MAX_INPUT:,}"
        )
    if request.softmax and source.sizes.num_classes is None:
        raise ValueError("`softmax` is for a model with a head")
    return source


def _job(request: ExportRequest, source: Source, samples: Samples) -> Job:
    output, card = "probabilities" if request.softmax else "logits", source.card
    about = About(
        name=card.name,
        precision=request.precision,
        input="uint8" if request.uint8 else "float32",
        output="features" if source.sizes.num_classes is None else output,
        activation=card.activation,
        preprocessing=card.preprocessing,
        labels=card.labels,
        architecture=source.sizes,
        version=__version__,
        # Labels of which nothing is known have no names that could have been assumed.
        assumed={
            what: ASSUMED_BEFORE[what]
            for what in card.assumed
            if what != "labels" or card.labels is not None
        },
    )
    return Job(
        source,
        about,
        None if request.batch_size == "any" else int(request.batch_size),
        None if request.image_size == "any" else source.preprocessing.input_size,
        request.fused,
        samples.calibration,
    )


def _write(kind: str, job: Job, path: Path) -> None:
    try:
        WRITERS[kind](job, path)
    except (OSError, ImportError, MemoryError):
        raise
    except Exception as error:  # each converter has its own kinds
        why = " ".join(str(error).split())[:300] or type(error).__name__
        raise ExportError(f"{kind} could not be written: {why}") from error
