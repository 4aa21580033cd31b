"""`van export`: a VAN as a file that ONNX Runtime, OpenVINO, LiteRT or TensorFlow runs.

A file is written beside its place, opened by its own runtime and compared with the Keras model on
real pictures. Only what agrees is moved to its place: an export leaves everything or nothing.
"""

from __future__ import annotations

import io
import math
import os
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, replace
from importlib import import_module
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from .. import __version__
from ..datasets.digits import load_digits
from ..datasets.labelled import open_dataset
from ..engines.onnx_graph import onnx_model
from ..engines.runtimes import MAX_INPUT, open_runtime
from ..images.decode import ImageError, open_image
from ..images.find import LeftOut, pictures_in
from ..images.parallel import decoded
from ..spec.architecture import Architecture
from ..spec.card import LITERT_METADATA, METADATA_KEY, SAVED_MODEL_METADATA, About
from ..spec.config import min_image_size
from ..spec.labels import assumed_labels, labels_of
from ..spec.preprocessing import NOT_SAID, Preprocessing
from ..spec.scores import activation_of, best, classes_of
from ..support.checks import is_number, is_whole
from ..support.console import messages, pictures_bar, say, say_failures
from ..support.extras import is_installed, missing
from ..support.files import file_bytes
from ..support.quiet import without_warnings
from ..support.text import printable, shown
from ..weights.address import format_of, names_a_path
from ..weights.fold import fold
from ..weights.keras_config import changed_parts
from ..weights.pretrained import open_pretrained

if TYPE_CHECKING:
    import keras
    import onnx
    import openvino

# What each format can be in; what else its runtime needs to be written.
FORMATS: dict[str, tuple[str, ...]] = {
    "saved_model": ("float32",),
    "onnx": ("float32", "float16", "int8"),
    "openvino": ("float32", "float16", "bfloat16", "int8"),
    "litert": ("float32", "float16", "int8"),
}
_NEEDS = {
    "saved_model": ("tensorflow",),
    "onnx": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "openvino"),
    "litert": ("tensorflow", "ai_edge_litert"),
}
_ENDINGS = {"onnx": ".onnx", "openvino": ".xml", "litert": ".tflite"}

# Largest difference of an output, in units of the largest one where that is above 1; and the share
# of pictures whose best class must be the same. What eight bits do to a logit says little; what
# they do to the decision is measured. Where there is none, of features, or one between two
# classes only, the difference counts as well.
TOLERANCES: dict[str, tuple[float, float]] = {
    "float32": (1e-4, 1.0),
    "float16": (1e-2, 0.99),
    "bfloat16": (5e-2, 0.99),
    "int8": (np.inf, 0.99),
}
_INT8_WITHOUT_CLASSES = 0.3
CALIBRATION = 256  # pictures, at most
COMPARISON = 512  # pictures, at most, none of them of the calibration


class ExportError(ValueError):
    """What was written does not compute what the model does; it was removed."""


@dataclass(frozen=True)
class Export:
    """What was written, and how it compares with the Keras model.

    Args:
        path: The file, or SavedModel's folder.
        about: What it says of itself.
        format: saved_model, onnx, openvino or litert.
        bytes: Size, with the file of weights beside an OpenVINO model.
        pictures: How many it was compared on.
        data: Whose they are.
        difference: Largest absolute difference of an output.
        largest: Largest absolute output of the Keras model.
        agreement: Share of the pictures with the same best class; None for features.
        accuracy: (of the model, of the file): top-1 on the pictures, where their classes are known.
        no_accuracy: Why it was not measured, where pictures were given.
        calibrated: Pictures that the ranges of int8 come from.
    """

    path: Path
    about: About
    format: str
    bytes: int
    pictures: int
    data: str
    difference: float
    largest: float
    agreement: float | None
    accuracy: tuple[float, float] | None = None
    no_accuracy: str = ""
    calibrated: int = 0

    def lines(self) -> list[str]:
        """The report for a person."""
        about = self.about
        lines = [
            f"model     {about.name}, {about.architecture}",
            f"input     images, {about.input}; {about.preprocessing}",
            f"output    {about.output}",
        ]
        if self.calibrated:
            lines.append(f"int8      ranges from {self.calibrated:,} pictures")
        same = "" if self.agreement is None else f", best class the same for {self.agreement:.2%}"
        lines.append(
            f"compared  {self.pictures:,} pictures of {self.data}: largest difference "
            f"{self.difference:.2g}{same}"
        )
        if self.pictures < 100:
            lines.append("note      so few pictures say little: give more with --data")
        if self.accuracy is not None:
            before, after = self.accuracy
            lines.append(f"accuracy  {before:.2%} before, {after:.2%} after")
        elif self.no_accuracy:
            lines.append(f"accuracy  not measured: {self.no_accuracy}")
        size = f"{self.format}, {about.precision}, {self.bytes / 1e6:.1f} MB"
        return [*lines, f"written   {self.path}: {size}"]


@dataclass(frozen=True)
class _Source:
    """What is exported: the tensors by the authors' names, and what goes with them."""

    name: str
    tensors: dict[str, np.ndarray]
    sizes: Architecture
    labels: tuple[str, ...] | None
    preprocessing: Preprocessing
    activation: str | None
    pooling: str = "avg"
    notes: str = ""
    assumed: tuple[str, ...] = ()

    def keras_model(self, *, logits: bool = True, image_size: int | None = None) -> keras.Model:
        from ..model.load import load_checkpoint
        from ..model.van import VAN

        config = self.sizes.config
        model = VAN(
            embed_dims=config.embed_dims,
            mlp_ratios=config.mlp_ratios,
            depths=config.depths,
            in_chans=self.sizes.in_chans,
            num_classes=self.sizes.num_classes,
            include_top=self.sizes.num_classes is not None,
            classifier_activation=None if logits else self.activation,
            data_format="channels_last",
            img_resolution=image_size,
            pooling=self.pooling,
            dtype="float32",
        )
        return load_checkpoint(model, self.tensors)


@dataclass(frozen=True)
class _Pictures:
    """Crops, uint8 (N, side, side, C), and the class of each, or why it is not known."""

    data: str
    calibration: np.ndarray
    comparison: np.ndarray
    classes: np.ndarray | None
    no_classes: str


@dataclass(frozen=True)
class _Job:
    """What a writer needs to know."""

    source: _Source
    about: About
    batch_size: int | None
    image_size: int | None
    fused: bool
    calibration: np.ndarray

    def batches(self) -> Iterator[np.ndarray]:
        """The calibration pictures as the exported file will get them, the last batch filled up."""
        size, count = self.batch_size or 1, len(self.calibration)
        for start in range(0, count, size):
            yield self.inputs(self.calibration[np.arange(start, start + size) % count])

    def inputs(self, crops: np.ndarray) -> np.ndarray:
        return crops if self.about.input == "uint8" else self.source.preprocessing.normalise(crops)


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
    target = Path(path)
    kind = _format(target, format)
    flags = {"uint8": uint8, "softmax": softmax, "features": features}
    for name, value in {**flags, "fused": fused, "overwrite": overwrite}.items():
        if not isinstance(value, bool):
            raise ValueError(f"`{name}` must be True or False. Received: {name}={value!r}")
    if precision not in FORMATS[kind]:
        raise ValueError(
            f"`precision` must be one of {', '.join(FORMATS[kind])} for {kind}. "
            f"Received: precision={precision!r}"
        )
    _check_sizes(kind, batch_size, image_size)
    if features and agreement is not None:
        raise ValueError("`agreement` does not go with `features`, which have no best class")
    if softmax and features:
        raise ValueError("`softmax` does not go with `features`, which are no probabilities")
    if not fused and kind in ("onnx", "openvino"):
        raise ValueError(f"`fused`: {kind} is always fused. Received: fused={fused!r}")
    if precision == "int8" and data is None:
        raise ValueError(
            "`data` must name real pictures for int8, such as those the model will see: the ranges "
            "of its numbers come from them. Received: data=None"
        )
    for name, limit, most in (("tolerance", tolerance, np.inf), ("agreement", agreement, 1.0)):
        if limit is not None and not (is_number(limit) and 0 <= limit <= most):
            raise ValueError(f"`{name}` must be from 0 to {most}. Received: {name}={limit!r}")
    _check_place(target, kind, model, overwrite)
    _check_installed(kind, precision)
    _check_data(data)

    source = _source(model, features)
    if isinstance(image_size, Integral):
        source = replace(
            source, preprocessing=replace(source.preprocessing, input_size=int(image_size))
        )
    side = source.preprocessing.input_size
    least = min_image_size(len(source.sizes.depths))
    if side < least:
        raise ValueError(
            f"`image_size` must be at least {least} for this model. Received: image_size={side}"
        )
    images = None if batch_size == "any" else int(batch_size)
    numbers = side * side * source.sizes.in_chans * (images or 1)
    if numbers > MAX_INPUT:
        raise ValueError(
            f"`batch_size` and `image_size` make an input of {numbers:,} numbers; allowed: "
            f"{MAX_INPUT:,}"
        )
    if softmax and source.sizes.num_classes is None:
        raise ValueError("`softmax` is for a model with a head")
    has_head = source.sizes.num_classes is not None
    about = About(
        name=source.name,
        precision=precision,
        input="uint8" if uint8 else "float32",
        output=("probabilities" if softmax else "logits") if has_head else "features",
        activation=source.activation,
        preprocessing=source.preprocessing,
        labels=source.labels,
        architecture=source.sizes,
        version=__version__,
        assumed=source.assumed,
    )
    console = console or messages()
    if source.notes:
        say(console, source.notes)
    pictures = _pictures(data, source, precision == "int8", console)
    _import_runtime(kind)  # only now: TensorFlow takes its time, and may not be needed at all
    job = _Job(
        source,
        about,
        images,
        None if image_size == "any" else side,
        fused,
        pictures.calibration,
    )
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".van-export-") as folder:
        made = Path(folder) / target.name
        with console.status(f"{source.name}: writing {kind}"):
            try:
                _WRITERS[kind](job, made)
            except (OSError, ImportError, MemoryError):
                raise
            except Exception as error:  # each converter has its own kinds
                why = " ".join(str(error).split())[:300] or type(error).__name__
                raise ExportError(f"{kind} could not be written: {why}") from error
        found = _compare(job, made, kind, pictures, console)
        limit, share = TOLERANCES[precision]
        if precision == "int8" and source.sizes.num_classes in (None, 1):
            limit = _INT8_WITHOUT_CLASSES
        limit *= max(found.largest, 1.0)
        _check_agreement(
            found,
            limit if tolerance is None else float(tolerance),
            share if agreement is None else float(agreement),
        )
        _place(made, target, kind)
    return replace(found, path=target)


# --- What is asked for ---


def _format(target: Path, asked: str | None) -> str:
    kind = asked
    if asked is None:
        kind = {ending: kind for kind, ending in _ENDINGS.items()}.get(
            target.suffix, "saved_model" if not target.suffix else None
        )
    if kind not in FORMATS:
        raise ValueError(
            f"`format` must be one of {', '.join(FORMATS)}, or `path` end in .onnx, .xml or "
            f".tflite, or in nothing for a SavedModel. Received: format={asked!r}, "
            f"path={printable(target)}"
        )
    try:
        target.name.encode()
    except UnicodeEncodeError:
        raise ValueError(
            f"`path` must be text in UTF-8. Received: path={printable(target)}"
        ) from None
    if target.suffix != _ENDINGS.get(kind, target.suffix):
        raise ValueError(
            f"`path` must end in {_ENDINGS[kind]} for {kind}. Received: path={printable(target)}"
        )
    if kind == "saved_model" and target.suffix.lower() in _ENDINGS.values():
        raise ValueError(
            f"`path` must be a folder for saved_model. Received: path={printable(target)}"
        )
    return kind


def _check_sizes(kind: str, batch_size: Any, image_size: Any) -> None:
    value: Any
    for name, value, others in (
        ("batch_size", batch_size, ("any",)),
        ("image_size", image_size, (None, "any")),
    ):
        if (value is None or isinstance(value, str)) and value in others:
            continue
        if not is_whole(value) or not 1 <= int(value) <= 4096:
            raise ValueError(
                f"`{name}` must be an integer from 1 to 4096, or 'any'. Received: {name}={value!r}"
            )
    if kind == "litert" and "any" in (batch_size, image_size):
        raise ValueError(
            "`batch_size` and `image_size` must be fixed for litert, whose dilated convolutions "
            "would be taken apart: write a file for each size. "
            f"Received: batch_size={batch_size!r}, image_size={image_size!r}"
        )


def _check_place(target: Path, kind: str, model: Any, overwrite: bool) -> None:
    """Raises `OSError` where the file cannot be put, or would take the place of something else."""
    for file in _files(target, kind):
        if os.path.lexists(file) and not overwrite:
            raise FileExistsError(f"{printable(file)} is already there; to replace it: --overwrite")
        if kind != "saved_model" and file.is_dir():
            raise FileExistsError(f"{printable(file)} is a folder, and is not replaced by a file")
        both = names_a_path(model) and os.path.exists(model) and file.exists()
        if both and file.samefile(model):
            raise FileExistsError(f"{printable(file)} is what is to be exported")
    if kind == "saved_model" and target.exists() and format_of(target) != kind:
        raise FileExistsError(f"{printable(target)} is no SavedModel, and is not replaced by one")
    if not target.parent.is_dir():
        raise FileNotFoundError(f"{printable(target.parent)}: there is no such folder")


def _check_installed(kind: str, precision: str) -> None:
    """Before any work: a missing package is named with what installs it."""
    needed = [*_NEEDS[kind], *(["nncf"] if (kind, precision) == ("openvino", "int8") else [])]
    for package in needed:
        if not is_installed(package):
            raise missing(kind, package, kind)
    if "tensorflow" in needed and os.environ.get("KERAS_BACKEND", "tensorflow") != "tensorflow":
        raise _other_backend(kind, os.environ["KERAS_BACKEND"])


def _import_runtime(kind: str) -> None:
    """What is installed may be broken, and Keras be told its backend by a file."""
    for package in _NEEDS[kind]:
        if package == "tensorflow":
            import keras

            if keras.backend.backend() != "tensorflow":
                raise _other_backend(kind, keras.backend.backend())
        try:
            import_module(package)
        except ImportError as error:
            raise missing(kind, package, kind, error) from error


def _other_backend(kind: str, backend: str) -> ValueError:
    return ValueError(
        f"{kind} is written by the TensorFlow backend of Keras: KERAS_BACKEND=tensorflow. "
        f"It is {backend}"
    )


def _source(model: Any, features: bool) -> _Source:
    if isinstance(model, (str, os.PathLike)):
        opened = open_pretrained(model, argument="model")
        if opened is None:
            raise ValueError(f"`model` must be a name or a path. Received: model={model!r}")
        opened.check(["labels", "classifier_activation"] if features else ())
        tensors, sizes = opened.weights.tensors, opened.weights.architecture
        name, labels, record = opened.name, opened.labels, opened.preprocessing
        said, pooling = opened.activation, opened.weights.source.about.get("pooling")
        assumed, notes = dict(opened.assumed), opened.notes
    else:
        from ..model.load import architecture, to_official
        from ..model.van import VAN

        if not isinstance(model, VAN):
            raise ValueError(
                "`model` must be a VAN, the path of a weight file or a name of `van weights "
                f"list`. Received: {type(model).__name__}"
            )
        tensors, sizes, name = to_official(model), architecture(model), model.name
        labels, record, pooling = model.labels, model.preprocessing, model.pooling
        config = model.get_config()
        for layer, key, value in changed_parts(config.get("parts")):
            raise ValueError(
                "`model` must have the layers that `VAN` makes, as it is exported from its tensors "
                f"alone. Received: {layer} with {key}={shown(value)}"
            )
        said, notes, assumed = config["classifier_activation"], "", {}
        if labels is None:
            assumed["labels"] = assumed_labels(sizes.num_classes or 0, of_others=False)[1]
        if record is None:
            assumed["preprocessing"] = NOT_SAID
    activation = None
    if sizes.num_classes is not None:
        activation = None if features else activation_of(said, sizes.num_classes, name)
        pooling = "avg"
    elif pooling is None and not isinstance(model, (str, os.PathLike)):
        raise ValueError(
            "`model` must have a head or pool its features to be exported. Received: pooling=None"
        )
    if features and sizes.num_classes is not None:
        tensors = {n: a for n, a in tensors.items() if not n.startswith("head.")}
        sizes = replace(sizes, num_classes=None)
    preprocessing = record or Preprocessing().with_channels(sizes.in_chans)
    if preprocessing is None:
        raise ValueError(
            f"{name} takes {sizes.in_chans} channels and does not say how pictures become such "
            "input: set `model.preprocessing`"
        )
    texts = None
    if labels is not None and sizes.num_classes is not None:
        texts = tuple(label.text for label in labels_of(labels, sizes.num_classes))
    if sizes.num_classes is None:
        assumed.pop("labels", None)
    return _Source(
        os.path.basename(name),
        tensors,
        sizes,
        texts,
        preprocessing,
        activation,
        pooling or "avg",
        " ".join(filter(None, (notes, *assumed.values()))),
        tuple(what for what in assumed if what != "labels" or texts is not None),
    )


# --- Pictures ---


def _pictures(data: Any, source: _Source, calibrate: bool, console: Console) -> _Pictures:
    """Real pictures, cropped as the model wants them; those of the calibration apart."""
    sources, classes, why_not = _listed(data, source, console)
    if data is None or data == "digits":
        train = [_as_picture(p) for p in load_digits()[0].pixels[:CALIBRATION]] if calibrate else []
    else:
        order = np.random.Generator(np.random.PCG64(0)).permutation(len(sources))
        share = min(CALIBRATION, len(sources) // 2) if calibrate else 0
        train = [sources[i] for i in order[:share]]
        kept = order[share:]
        sources = [sources[i] for i in kept]
        classes = None if classes is None else [classes[i] for i in kept]
    sources = sources[:COMPARISON]
    if not sources or (calibrate and not train):
        raise ValueError(f"`data` must have pictures, for int8 at least 2. Received: data={data}")

    unreadable: list[str] = []

    def crop(one: Any) -> np.ndarray:
        return source.preprocessing.crop(open_image(one))

    with pictures_bar(console) as bar:
        task = bar.add_task("pictures", total=len(train) + len(sources), rate="")

        def crops(of: list[Any]) -> Iterator[tuple[int, np.ndarray]]:
            for i, (_, made) in enumerate(decoded(of, crop)):
                bar.advance(task)
                if isinstance(made, np.ndarray):
                    yield i, made
                elif isinstance(made, ImageError):
                    unreadable.append(str(made))
                else:
                    raise made

        calibration = [made for _, made in crops(train)]
        readable = list(crops(sources))
    if unreadable:
        say_failures(console, f"{len(unreadable):,} cannot be read and are left out", unreadable)
    if not readable or (calibrate and not calibration):
        raise ValueError(f"`data` must have pictures that can be read. Received: data={data}")
    bundled = data is None or data == "digits"
    return _Pictures(
        "the bundled digits" if bundled else printable(data),
        np.stack(calibration) if calibration else np.empty(0, np.uint8),
        np.stack([made for _, made in readable]),
        None if classes is None else np.array([classes[i] for i, _ in readable]),
        why_not,
    )


def _check_data(data: Any) -> None:
    if data is None or data == "digits":
        return
    if not os.path.isdir(data):
        raise FileNotFoundError(
            f"`data` must be a folder of pictures, or digits. Received: data={printable(data)}"
        )
    if next(pictures_in(os.fspath(data), LeftOut()), None) is None:
        raise ValueError(f"`data` must have pictures. Received: data={printable(data)}")


def _listed(
    data: Any, source: _Source, console: Console
) -> tuple[list[Any], list[int] | None, str]:
    """Pictures, and the class of each where all have one; else why not, where it was asked for."""
    why_not = ""
    if data is not None and source.sizes.num_classes is None:
        why_not = "features have no classes"
    elif data is not None:
        labels = labels_of(source.labels, source.sizes.num_classes or 0)
        try:
            left_out = LeftOut()
            named = open_dataset(data, classes_of(labels), left_out=left_out)
        except ValueError as error:  # pictures without classes will do, or with classes of others
            why_not = str(error)
            if "`class_map`" in why_not:
                why_not += "; `van evaluate` takes one, and the exported file"
        else:
            if left_out:
                say(console, str(left_out))
            examples = list(named.examples)
            return [e.source for e in examples], [e.classes[0] for e in examples], ""
    if data is None or data == "digits":
        return [_as_picture(pixels) for pixels in load_digits()[1].pixels], None, why_not
    left_out = LeftOut()
    sources = list(pictures_in(os.fspath(data), left_out))
    if left_out:
        say(console, str(left_out))
    return sources, None, why_not


def _as_picture(pixels: np.ndarray) -> np.ndarray:
    return np.round(pixels * (255 / 16)).astype(np.uint8)  # 0..16 -> 0..255


# --- Writing ---


def _write_onnx(job: _Job, path: Path) -> None:
    import onnx

    model = _graph(job)
    if job.about.precision == "float16":
        from onnxruntime.transformers.float16 import convert_float_to_float16

        model = convert_float_to_float16(model, keep_io_types=True)
    elif job.about.precision == "int8":
        model = _quantised(job, model, path.parent)
    entry = model.metadata_props.add()
    entry.key, entry.value = METADATA_KEY, job.about.to_json()
    onnx.save(model, os.fspath(path))


def _graph(job: _Job) -> onnx.ModelProto:
    source = job.source
    return onnx_model(
        fold(source.tensors),
        source.sizes,
        name=source.name,
        batch_size=job.batch_size,
        image_size=(job.image_size, job.image_size),
        normalisation=source.preprocessing if job.about.input == "uint8" else None,
        activation=source.activation if job.about.output == "probabilities" else None,
        pooling=source.pooling,
    )


def _quantised(job: _Job, model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Convolutions and the head in int8, by ONNX Runtime's tool; what lies between in float32."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = job.batches()

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(({"images": batch} for batch in self.batches), None)

    written = folder / "quantised.onnx"
    with _quiet():
        quantize_static(
            model,
            os.fspath(written),
            Reader(),
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    quantised = onnx.load(os.fspath(written))
    written.unlink()
    return quantised


def _write_openvino(job: _Job, path: Path) -> None:
    import openvino

    # `convert_model` folds what is between a kernel and its convolution into the kernel. As
    # `Core.read_model` leaves it, depthwise convolutions stay in floats when the rest is quantised,
    # and it takes 1.4 x the time.
    model = openvino.convert_model(io.BytesIO(_graph(job).SerializeToString()))
    model.input(0).set_names({"images"})
    if job.about.precision == "int8":
        model = _quantised_openvino(job, model)
    model.set_rt_info(job.about.to_json(), METADATA_KEY)
    compress = job.about.precision in ("float16", "bfloat16")
    openvino.save_model(model, os.fspath(path), compress_to_fp16=compress)
    # A seventh of the text is indentation.
    path.write_text("\n".join(map(str.strip, path.read_text("utf-8").splitlines())), "utf-8")


def _quantised_openvino(job: _Job, model: openvino.Model) -> openvino.Model:
    import nncf

    batches = list(job.batches())
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(batches),
            subset_size=len(batches),
            # Of the products and sums between convolutions only the precision would go down.
            ignored_scope=nncf.IgnoredScope(types=["Multiply", "Add"], validate=False),
        )


def _write_saved_model(job: _Job, path: Path) -> None:
    import tensorflow as tf

    function, model = _tensorflow_function(job)
    module = tf.Module()
    module.model, module.function = model, function  # or their variables would be gone
    tf.saved_model.save(
        module,
        os.fspath(path),
        signatures={"serving_default": function.get_concrete_function()},
        options=tf.saved_model.SaveOptions(experimental_custom_gradients=False),
    )
    extra = path / SAVED_MODEL_METADATA
    extra.parent.mkdir(exist_ok=True)
    extra.write_text(job.about.to_json(), encoding="ascii")


def _tensorflow_function(job: _Job, max_taps: int | None = None) -> tuple[Any, keras.Model]:
    """(tf.function, the model whose variables it uses); `max_taps` as of `DepthwiseConv`."""
    import tensorflow as tf

    from ..model.layers import DepthwiseConv

    source, about = job.source, job.about
    model = source.keras_model(logits=about.output != "probabilities", image_size=job.image_size)
    if job.fused:
        from ..model.fused import fuse

        model = fuse(model)
    for layer in model._flatten_layers():
        if isinstance(layer, DepthwiseConv):
            layer.max_taps = max_taps
    shape = (job.batch_size, job.image_size, job.image_size, source.sizes.in_chans)
    mean, std = (np.float32(x) for x in (source.preprocessing.mean, source.preprocessing.std))

    @tf.function(input_signature=[tf.TensorSpec(shape, about.input, name="images")])
    def function(images):
        if about.input == "uint8":
            images = (tf.cast(images, tf.float32) / 255.0 - mean) / std
        return {about.output: model(images, training=False)}

    return function, model


# XNNPACK, LiteRT's kernels on CPUs, has 8-bit depthwise kernels up to so many taps, and none for
# these operations: GELU, and the parts of layer normalisation. In between, what is in floats runs
# in one piece with the rest; in 8 bits each would be left to a slow kernel outside. B0: 11.6 -> 7.8
# ms, and 120 ms with all taps at once.
_LITERT_TAPS = 25
_LITERT_FLOATS = ["GELU", "MEAN", "NEG", "RSQRT", "SQUARED_DIFFERENCE"]


def _write_litert(job: _Job, path: Path) -> None:
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import (
        convert_variables_to_constants_v2,
    )

    function, _ = _tensorflow_function(job, _LITERT_TAPS)
    # The converter's calibration reads no variables, and only a SavedModel keeps the names.
    constant = convert_variables_to_constants_v2(function.get_concrete_function())
    output = job.about.output

    @tf.function(input_signature=function.input_signature)
    def frozen(images):
        return {output: constant(images)[0]}

    with tempfile.TemporaryDirectory(dir=path.parent) as folder, _quiet():
        module = tf.Module()
        module.function = frozen
        tf.saved_model.save(
            module,
            folder,
            {"serving_default": frozen.get_concrete_function()},
            tf.saved_model.SaveOptions(experimental_custom_gradients=False),  # none are needed
        )
        converter = tf.lite.TFLiteConverter.from_saved_model(
            folder, signature_keys=["serving_default"]
        )
        if job.about.precision != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if job.about.precision == "float16":
            converter.target_spec.supported_types = [tf.float16]
        if job.about.precision == "int8":
            converter.representative_dataset = lambda: ({"images": b} for b in job.batches())
            # The tool for quantising all but some operations; nothing is debugged.
            options = tf.lite.experimental.QuantizationDebugOptions(denylisted_ops=_LITERT_FLOATS)
            selective = tf.lite.experimental.QuantizationDebugger(
                converter=converter,
                debug_dataset=converter.representative_dataset,
                debug_options=options,
            )
            written = _with_shared_vectors(selective.get_nondebug_quantized_model())
        else:
            written = converter.convert()
    path.write_bytes(written)
    # Files that go with a LiteRT model stand in a zip archive behind it.
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr(LITERT_METADATA, job.about.to_json())


def _with_shared_vectors(model: bytes) -> bytes:
    """The same LiteRT model, each of its vectors of numbers stored once.

    The converter stores a zero point of 8 bytes for every channel of every tensor, all of them 0:
    a tenth of an int8 model's size.
    """
    import flatbuffers
    from tensorflow.lite.python import schema_py_generated as schema

    class Builder(flatbuffers.Builder):
        def __init__(self) -> None:
            super().__init__(len(model))
            self.vectors: dict[tuple[str, bytes], int] = {}

        def CreateNumpyVector(self, x: np.ndarray) -> int:  # noqa: N802 - flatbuffers' name
            key = (x.dtype.str, x.tobytes())
            if key not in self.vectors:
                self.vectors[key] = super().CreateNumpyVector(x)
            return self.vectors[key]

    builder = Builder()
    tree = schema.ModelT.InitFromObj(schema.Model.GetRootAsModel(model, 0))
    builder.Finish(tree.Pack(builder), b"TFL3")
    return bytes(builder.Output())


_WRITERS: dict[str, Callable[[_Job, Path], None]] = {
    "saved_model": _write_saved_model,
    "onnx": _write_onnx,
    "openvino": _write_openvino,
    "litert": _write_litert,
}


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what converters log or warn of; their progress not on the standard output."""
    with redirect_stdout(sys.stderr), without_warnings():
        yield


# --- Comparing ---


def _compare(job: _Job, path: Path, kind: str, pictures: _Pictures, console: Console) -> Export:
    """Both on the same pictures, in batches that need little memory."""
    runtime = open_runtime(path)
    logits = job.about.output != "probabilities"
    model = job.source.keras_model(logits=logits)
    crops = pictures.comparison
    size = max(job.batch_size or 1, 8)
    expected, found = [], []
    with pictures_bar(console) as bar:
        task = bar.add_task("comparing", total=len(crops), rate="")
        for start in range(0, len(crops), size):
            batch = crops[start : start + size]
            expected.append(model.predict_on_batch(job.source.preprocessing.normalise(batch)))
            found.append(runtime(job.inputs(batch)))
            bar.advance(task, len(batch))
    a, b = np.concatenate(expected), np.concatenate(found)
    decided = [best(x, not logits) for x in (a, b)]
    accuracy = None
    if pictures.classes is not None:
        accuracy = tuple(float((x == pictures.classes).mean()) for x in decided)
    is_class = job.about.output != "features"
    return Export(
        path=path,
        about=job.about,
        format=kind,
        bytes=file_bytes(path),
        pictures=len(crops),
        data=pictures.data,
        difference=float(abs(a - b).max()),
        largest=float(abs(a).max()),
        agreement=float((decided[0] == decided[1]).mean()) if is_class else None,
        accuracy=accuracy,  # type: ignore[arg-type]  # of two
        no_accuracy=pictures.no_classes,
        calibrated=len(pictures.calibration),
    )


def _check_agreement(found: Export, tolerance: float, agreement: float) -> None:
    wrong = []
    if not found.difference <= tolerance:
        wrong.append(f"its output differs by {found.difference:.2g} (allowed: {tolerance:.2g})")
    if found.agreement is not None and found.agreement < agreement:
        same = round(found.agreement * found.pictures)
        least = math.ceil(agreement * found.pictures - 1e-9)
        wrong.append(
            f"its best class is the same for {same:,} of {found.pictures:,} pictures, "
            f"{found.agreement:.2%} (asked: {agreement:.2%}, {least:,} of them; `agreement` asks "
            "for another share, `data` gives more pictures)"
        )
    if wrong:
        raise ExportError(
            f"{found.format} in {found.about.precision} does not agree with the Keras model: "
            f"{' and '.join(wrong)}; nothing was left"
        )


def _files(path: Path, kind: str) -> list[Path]:
    """What stands at `path`: of OpenVINO the weights as well, first, as the other names them."""
    return [path.with_suffix(".bin"), path] if kind == "openvino" else [path]


def _place(made: Path, target: Path, kind: str) -> None:
    """Moves what was made to its place, or leaves what was there."""
    if kind in ("onnx", "litert"):
        os.replace(made, target)  # at any moment the old file or the new one
        return
    aside = made.parent / "replaced"
    aside.mkdir()
    moved: list[Path] = []
    try:
        for place in _files(target, kind):
            moved.append(place)
            if os.path.lexists(place):
                os.rename(place, aside / place.name)
            os.rename(made.with_name(place.name), place)
    except BaseException:  # Ctrl-C as well
        for place in moved:
            if os.path.lexists(place) and not made.with_name(place.name).exists():
                os.rename(place, made.with_name(place.name))
            if (aside / place.name).exists():
                os.rename(aside / place.name, place)
        raise
