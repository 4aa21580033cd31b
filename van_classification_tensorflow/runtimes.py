"""Exported files, run: ONNX, OpenVINO, LiteRT and TensorFlow's SavedModel behind one call.

A runtime is imported when a file of its format is opened; Keras never.
"""

from __future__ import annotations

import json
import os
import stat
import sys
import threading
import zipfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from math import prod
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np

from .images import printable
from .labels import right_number
from .names import Architecture
from .preprocessing import Preprocessing
from .quiet import without_warnings
from .scores import ACTIVATIONS, SIGMOID, activation_of
from .weights import KNOWN_NAMES

METADATA_KEY = "van_classification_tensorflow"
LITERT_METADATA = "van.json"  # in a zip archive behind the flatbuffer
SAVED_MODEL_METADATA = "assets.extra/van.json"
PRECISIONS = ("float32", "float16", "bfloat16", "int8")
INPUTS = ("float32", "uint8")
OUTPUTS = ("logits", "probabilities", "features")

_ENDINGS = {".onnx": "onnx", ".xml": "openvino", ".tflite": "litert"}
# Of what a file may ask for; far more than any VAN needs.
_MAX_METADATA = 8_000_000  # characters: the names of 21,841 classes are 1 million
_MAX_SIDE = 4096  # pixels
MAX_INPUT = 2**29  # numbers in one batch
_MAX_STAGES, _MAX_BLOCKS, _MAX_WIDTH = 16, 500, 10_000_000  # blocks of a stage


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
        labels: A text for each class, as `labels.labels_of` takes them; None: unknown.
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
        if len(text) > _MAX_METADATA:
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
        *zip(lists, (_MAX_WIDTH, _MAX_WIDTH, _MAX_BLOCKS), strict=True),
        (numbers, _MAX_WIDTH),
    ):
        if not isinstance(values, list) or not 0 < len(values) <= _MAX_STAGES:
            raise ValueError("its metadata: `architecture` must have lists of sizes")
        if not all(type(value) is int and 0 < value <= most for value in values):
            raise ValueError("its metadata: a size of `architecture` is no sensible number")
    if len(set(map(len, lists))) > 1:
        raise ValueError("its metadata: the lists of `architecture` differ in length")
    embed_dims, hidden_dims, depths = (tuple(values) for values in lists)
    return Architecture(embed_dims, hidden_dims, depths, numbers[0], classes)


def format_of(path: Any) -> str | None:
    """Format of an exported file, by its name; None: it is none of them.

    Args:
        path: Any value that may name weights. Names of the catalogue win over a folder of that
            name, as everywhere; it can be written ./van_b0.

    Returns:
        "onnx", "openvino", "litert", "saved_model" (a folder with a `saved_model.pb`) or None.
    """
    if not isinstance(path, (str, os.PathLike)):
        return None
    if isinstance(path, str) and path in KNOWN_NAMES:
        return None
    name = os.fsdecode(path).rstrip("/" + os.sep)  # which changes nothing
    if os.path.isfile(os.path.join(name, "saved_model.pb")):
        return "saved_model"
    return _ENDINGS.get(os.path.splitext(name)[1].lower())


@dataclass(frozen=True)
class Runtime:
    """An exported file, ready to run; threads take turns.

    Args:
        path: The file, or SavedModel's folder.
        format: As of `format_of`.
        about: What the file says of itself; None where it is not of this package.
        batch_size: Images it takes at once; None: any number.
        image_size: (height, width) in pixels; None: any.
        channels: Of its images.
        dtype: Of its images, float32 or uint8.
        outputs: Length of what it gives for an image.
    """

    path: Path
    format: str
    about: About | None
    batch_size: int | None
    image_size: tuple[int, int] | None
    channels: int
    dtype: np.dtype
    outputs: int
    _run: Callable[[np.ndarray], Any] = field(repr=False)
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def __call__(self, images: np.ndarray) -> np.ndarray:
        """Runs the model.

        Args:
            images: (N, H, W, C) of `dtype`: normalised in float32, or 0 to 255 in uint8. Where
                the file has a fixed batch they go through it batch by batch, the last one filled
                up.

        Returns:
            (N, `outputs`), float32, a copy.

        Raises:
            ValueError: They are not of the shape or the dtype that the file takes, or it does
                not run.
        """
        expected = (
            *images.shape[:1],
            *(self.image_size or images.shape[1:3]),
            self.channels,
        )
        if images.dtype != self.dtype or images.shape != expected:
            sides = ", ".join(map(str, self.image_size or ("height", "width")))
            raise ValueError(
                f"`images` must be {self.dtype} (N, {sides}, {self.channels}). "
                f"Received: {images.dtype} {images.shape}"
            )
        found: np.ndarray = np.empty((len(images), self.outputs), np.float32)
        size = self.batch_size or max(len(images), 1)
        for start in range(0, len(images), size):
            batch = images[start : start + size]
            if self.batch_size is not None and len(batch) < size:
                # With a copy: what lies within the range of the batch disturbs no quantisation.
                batch = np.concatenate([batch, np.repeat(batch[-1:], size - len(batch), axis=0)])
            try:
                with self._lock:  # what a runtime gives may be its own memory
                    given = np.array(self._run(np.ascontiguousarray(batch)))
            except Exception as error:  # each runtime has its own kinds
                raise ValueError(f"{printable(self.path)} does not run: {_line(error)}") from error
            if given.shape != (len(batch), self.outputs):
                raise ValueError(
                    f"{printable(self.path)} gave {given.shape} for {len(batch)} images; it "
                    f"promised {(len(batch), self.outputs)}"
                )
            found[start : start + size] = given[: len(images) - start]
        return found


_Spec = tuple[list[Any] | None, str]  # shape, None where not even the axes are known; dtype


@dataclass(frozen=True)
class _Loaded:
    """What a runtime tells of a file, and how it runs it."""

    metadata: str | None
    inputs: list[_Spec]
    outputs: list[_Spec]
    run: Callable[[np.ndarray], Any]


def open_runtime(path: str | os.PathLike, threads: int | None = None) -> Runtime:
    """Opens an exported file with the runtime of its format.

    A SavedModel is a TensorFlow program, whose operations can read and write files: open only
    what you trust.

    Args:
        path: *.onnx, *.xml (OpenVINO, with its *.bin beside it), *.tflite, or the folder of a
            SavedModel. Its image is (batch, height, width, channels), float32 or uint8.
        threads: CPU threads of one inference; by default the runtime's choice. TensorFlow takes
            it only before it has started, and then for all it does.

    Raises:
        ValueError: It is no exported file, damaged, or not a model of one image and one output.
        OSError: It is not there or cannot be read.
        ModuleNotFoundError: The runtime is not installed; says what to install.
    """
    if threads is not None and (
        not isinstance(threads, Integral) or isinstance(threads, bool) or threads < 1
    ):
        raise ValueError(f"`threads` must be an integer >= 1, or None. Received: threads={threads}")
    kind = format_of(path)
    if kind is None:
        raise ValueError(
            "`path` must end in .onnx, .xml or .tflite, or be the folder of a SavedModel. "
            f"Received: path={os.fspath(path)!r}"
        )
    folder = kind == "saved_model"
    file = Path(path) / "saved_model.pb" if folder else Path(path)
    # A better word than the runtimes have for what is missing or forbidden. Not blocking: a named
    # pipe would wait for a writer for ever.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)
    opened = os.open(file, flags)
    try:
        if not stat.S_ISREG(os.fstat(opened).st_mode):
            raise ValueError(f"{printable(file)}: not a regular file")
    finally:
        os.close(opened)
    try:
        loaded = _LOADERS[kind](Path(path), threads)
        about = None if loaded.metadata is None else About.from_json(loaded.metadata)
        batch_size, image_size, channels, dtype, outputs = _tensors(loaded)
        if about is not None:
            _check_same(about, image_size, channels, dtype, outputs)
    except ModuleNotFoundError:
        raise
    except Exception as error:  # each runtime has its own kinds, and a file may cause any
        raise ValueError(f"{printable(path)} was refused: {_line(error)}") from error
    return Runtime(
        path=Path(path),
        format=kind,
        about=about,
        batch_size=batch_size,
        image_size=image_size,
        channels=channels,
        dtype=np.dtype(dtype),
        outputs=outputs,
        _run=loaded.run,
    )


def _line(error: Exception) -> str:
    """An error of others in one line of sensible length."""
    text = printable(" ".join(str(error).split()) or type(error).__name__)
    return text if len(text) <= 300 else f"{text[:300]}..."


def _tensors(loaded: _Loaded) -> tuple[int | None, tuple[int, int] | None, int, str, int]:
    """Batch, (height, width), channels, dtype and outputs, of the one input and the one output."""
    if len(loaded.inputs) != 1 or len(loaded.outputs) != 1:
        raise ValueError(
            f"it has {len(loaded.inputs)} inputs and {len(loaded.outputs)} outputs; a model that "
            "`van export` writes has one of each"
        )
    shapes: list[list[int | None]] = []
    for what, axes, dtypes, (shape, dtype) in (
        ("input", 4, INPUTS, loaded.inputs[0]),
        ("output", 2, ("float32",), loaded.outputs[0]),
    ):
        if shape is None or len(shape) != axes:
            raise ValueError(f"its {what} has the shape {shape}; expected {axes} axes")
        if dtype not in dtypes:
            raise ValueError(f"its {what} is {dtype}; expected {' or '.join(dtypes)}")
        # Runtimes write an unknown size as None, as -1 or as a name.
        shapes.append([n if isinstance(n, int) and n >= 0 else None for n in shape])
    (batch, height, width, channels), (results, outputs) = shapes
    if channels is None or outputs is None or 0 in (batch, height, width, channels, outputs):
        raise ValueError(
            f"its input {shapes[0]} and its output {shapes[1]} must have a known number of "
            "channels, and no axis without entries"
        )
    if results not in (batch, None):
        raise ValueError(f"its input is {shapes[0]} and its output {shapes[1]}: not one for each")
    if (height is None) != (width is None):
        raise ValueError(f"its input is {shapes[0]}; expected height and width, or neither")
    if prod(n or 1 for n in shapes[0]) > MAX_INPUT or outputs > _MAX_WIDTH:
        raise ValueError(f"its input is {shapes[0]} and its output {shapes[1]}: too large")
    size = None if height is None or width is None else (height, width)
    return batch, size, channels, loaded.inputs[0][1], outputs


def _check_same(
    about: About, image_size: tuple[int, int] | None, channels: int, dtype: str, outputs: int
) -> None:
    sizes = about.architecture
    promised = sizes.embed_dims[-1] if about.output == "features" else sizes.num_classes
    if (about.input, sizes.in_chans, promised) != (dtype, channels, outputs):
        raise ValueError(
            f"it takes {channels} channels of {dtype} and gives {outputs:,} outputs; its metadata "
            f"says {sizes.in_chans} of {about.input} and {promised} {about.output}"
        )
    side = about.preprocessing and about.preprocessing.input_size
    if side and image_size and image_size != (side, side):
        raise ValueError(f"it takes {image_size} pixels; its metadata says ({side}, {side})")


# --- Each runtime ---


def is_installed(package: str) -> bool:
    """Whether a package is there, without importing it, which may take seconds."""
    if package in sys.modules:
        return sys.modules[package] is not None
    return find_spec(package) is not None


def _missing(package: str, extra: str, error: ImportError) -> ModuleNotFoundError:
    return ModuleNotFoundError(
        f"this file needs {package}: pip install 'van-classification-tensorflow[{extra}]' ({error})"
    )


def _load_onnx(path: Path, threads: int | None) -> _Loaded:
    try:
        import onnxruntime
    except ImportError as error:
        raise _missing("onnxruntime", "onnx", error) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what fails is raised as well
    session = onnxruntime.InferenceSession(
        os.fspath(path), options, providers=["CPUExecutionProvider"], enable_fallback=0
    )
    dtypes = {"tensor(float)": "float32", "tensor(uint8)": "uint8"}

    def spec(tensor: Any) -> _Spec:
        return list(tensor.shape), dtypes.get(tensor.type, tensor.type)

    inputs = session.get_inputs()
    return _Loaded(
        session.get_modelmeta().custom_metadata_map.get(METADATA_KEY),
        [spec(one) for one in inputs],
        [spec(one) for one in session.get_outputs()],
        lambda images: session.run(None, {inputs[0].name: images})[0],
    )


def _load_openvino(path: Path, threads: int | None) -> _Loaded:
    try:
        import openvino
    except ImportError as error:
        raise _missing("openvino", "openvino", error) from error
    with path.open("rb") as file:
        # OpenVINO would try what is no IR as every other format, and say so for each.
        head = file.read(4096)
        file.seek(max(file.seek(0, os.SEEK_END) - 64, 0))
        if b"<net" not in head or b"</net>" not in file.read():
            raise ValueError("not an OpenVINO model")
    core = openvino.Core()
    model = core.read_model(path)
    metadata = None
    if model.has_rt_info(METADATA_KEY):
        metadata = model.get_rt_info(METADATA_KEY).value
        if not isinstance(metadata, str):
            raise ValueError("its metadata is no text")
    options: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    if threads is not None:
        options["INFERENCE_NUM_THREADS"] = int(threads)
    precision = About.from_json(metadata).precision if metadata is not None else "float32"
    if precision != "int8":  # beside int8, OpenVINO knows best what the rest runs in
        hints = {"float16": ("FP16", "f16"), "bfloat16": ("BF16", "bf16")}
        needed, hint = hints.get(precision, ("FP32", "f32"))
        able = core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        options["INFERENCE_PRECISION_HINT"] = hint if needed in able else "f32"
    compiled = core.compile_model(model, "CPU", options)
    dtypes = {"f32": "float32", "u8": "uint8"}

    def spec(tensor: Any) -> _Spec:
        name = tensor.element_type.get_type_name()
        shape = tensor.partial_shape
        if shape.rank.is_dynamic:
            return None, name
        sizes = [n.get_length() if n.is_static else None for n in shape]
        return sizes, dtypes.get(name, name)

    return _Loaded(
        metadata,
        [spec(one) for one in model.inputs],
        [spec(one) for one in model.outputs],
        lambda images: compiled(images)[0],
    )


def _load_litert(path: Path, threads: int | None) -> _Loaded:
    try:
        from ai_edge_litert.interpreter import Interpreter
    except ImportError as error:
        raise _missing("ai-edge-litert", "litert", error) from error
    metadata = None
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            if LITERT_METADATA in archive.namelist():
                with archive.open(LITERT_METADATA) as file:
                    metadata = file.read(_MAX_METADATA + 1).decode()
    interpreter = Interpreter(os.fspath(path), num_threads=threads)
    interpreter.allocate_tensors()

    def spec(tensor: dict[str, Any]) -> _Spec:
        return tensor["shape_signature"].tolist(), np.dtype(tensor["dtype"]).name

    def run(images: np.ndarray) -> np.ndarray:
        (given,), (taken,) = interpreter.get_input_details(), interpreter.get_output_details()
        if tuple(given["shape"]) != images.shape:
            interpreter.resize_tensor_input(given["index"], images.shape)
            interpreter.allocate_tensors()
        interpreter.set_tensor(given["index"], images)
        interpreter.invoke()
        return interpreter.get_tensor(taken["index"])

    return _Loaded(
        metadata,
        [spec(one) for one in interpreter.get_input_details()],
        [spec(one) for one in interpreter.get_output_details()],
        run,
    )


def _load_saved_model(path: Path, threads: int | None) -> _Loaded:
    import tensorflow as tf

    metadata = None
    if (path / SAVED_MODEL_METADATA).is_file():
        with (path / SAVED_MODEL_METADATA).open("rb") as file:
            metadata = file.read(_MAX_METADATA + 1).decode()
    if threads is not None:
        with suppress(RuntimeError):  # TensorFlow has started: it keeps what it has
            tf.config.threading.set_intra_op_parallelism_threads(int(threads))
    with without_warnings():  # of the gradients, which it has been written without
        model = tf.saved_model.load(os.fspath(path))
    if "serving_default" not in model.signatures:
        raise ValueError("it has no signature serving_default")
    signature = model.signatures["serving_default"]
    inputs = signature.structured_input_signature[1]

    def spec(tensor: Any) -> _Spec:
        known = tensor.shape.rank is not None
        return tensor.shape.as_list() if known else None, tensor.dtype.name

    def run(images: np.ndarray, model: Any = model) -> np.ndarray:  # which owns the variables
        (given,) = signature(**{next(iter(inputs)): tf.constant(images)}).values()
        return given.numpy()

    return _Loaded(
        metadata,
        [spec(one) for one in inputs.values()],
        [spec(one) for one in signature.structured_outputs.values()],
        run,
    )


_LOADERS: dict[str, Callable[[Path, int | None], _Loaded]] = {
    "onnx": _load_onnx,
    "openvino": _load_openvino,
    "litert": _load_litert,
    "saved_model": _load_saved_model,
}
