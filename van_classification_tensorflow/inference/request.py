"""What `Classifier` and `van predict` are asked for, checked before any work is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.checks import at_least, at_least_or_none, check_flag, is_number
from ..support.extras import is_installed, missing
from ..support.options import option, part

# {what runs the model: the package it needs, and what installs that}
ENGINES = {
    "auto": (),
    "numpy": (),
    "keras": (("keras", "keras"),),
    "onnxruntime": (("onnx", "onnx"), ("onnxruntime", "onnx")),
    "openvino": (("onnx", "onnx"), ("openvino", "openvino")),
}
# {arithmetic: the engines that have it}
PRECISIONS = {
    "float32": tuple(ENGINES),
    "bfloat16": ("auto", "keras", "openvino"),
}
# What only exported files have, as it takes minutes to make: TensorFlow's converter, calibration.
_EXPORTED = {
    "litert": ("engine", "van export --weights ... --output model.tflite"),
    "int8": (
        "precision",
        "van export --weights ... --precision int8 --data FOLDER --output x.onnx",
    ),
}
FORMATS = (".csv", ".jsonl", ".parquet")
FEATURE_FORMATS = (".parquet", ".npy")


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """The arguments of `Classifier`, which says what they are; most are options of commands.

    Raises:
        ValueError: An argument is not allowed.
    """

    weights: Any = option(
        "a name of `van weights list`, van_b0 ... for its ImageNet-1k weights, a weight file, "
        "or an exported file: *.onnx, *.xml, *.tflite, a SavedModel's folder (default: {default})",
        "van_b0",
    )
    labels: Any = None
    preprocessing: Any = None
    batch_size: int = option(
        "pictures at once (default: {default}; an exported file may have its own)", 32
    )
    workers: int | None = option("threads that decode (default: one a core)", None)
    test_size: int | None = option("side of the crop, if not the weights' own", None)
    crops: int = option("1, or 5: average over centre and corners", 1)
    flip: bool = option("average with the mirrored picture", False)
    max_pixels: int = option("largest picture (default: {default}, at most 178956970)", 50_000_000)
    engine: str = option(
        "what runs weights: auto (the first to be done of those that are installed and prove "
        "themselves on a picture), or one of them, which must prove itself; litert is for exported "
        "files (default: {default})",
        "auto",
        choices=(*ENGINES, "litert"),
    )
    precision: str = option(
        "of the arithmetic of weights: float32, or bfloat16 of openvino and keras; int8 is for "
        "exported files (default: {default})",
        "float32",
        choices=(*PRECISIONS, "int8"),
    )

    def __post_init__(self) -> None:
        at_least_or_none("test_size", self.test_size, 1)
        at_least("batch_size", self.batch_size, 1)
        at_least_or_none("workers", self.workers, 1)
        at_least("max_pixels", self.max_pixels, 1)
        if not is_number(self.crops) or self.crops not in (1, 5):
            raise ValueError(f"`crops` must be 1 or 5. Received: crops={self.crops!r}")
        check_flag("flip", self.flip)
        self._check_engine()

    def _check_engine(self) -> None:
        for asked in (self.engine, self.precision):
            if isinstance(asked, str) and asked in _EXPORTED:
                argument, command = _EXPORTED[asked]
                raise ValueError(
                    f"`{argument}`={asked!r} is for exported files, which bring it along: make one "
                    f"with `{command}`, and give that as the weights, without `{argument}`"
                )
        for name, value, known in (
            ("engine", self.engine, ENGINES),
            ("precision", self.precision, PRECISIONS),
        ):
            if not isinstance(value, str) or value not in known:
                raise ValueError(
                    f"`{name}` must be one of {', '.join(known)}. Received: {name}={value!r}"
                )
        able = PRECISIONS[self.precision]
        if self.engine not in able:
            raise ValueError(
                f"`engine` must be one of {', '.join(able)} for {self.precision}. Received: "
                f"engine={self.engine!r}"
            )
        for package, extra in ENGINES[self.engine]:
            if not is_installed(package):
                raise missing(f"engine {self.engine}", package, extra)


@dataclass(frozen=True, kw_only=True)
class PredictRequest:
    """The options of `van predict`.

    Args:
        paths: As in `images.find.expand`.
        classifier: What classifies.
        top: Classes to name for each picture, best first; None: 5, or features.
        output: *.csv, *.jsonl or *.parquet; with `features` *.parquet or *.npy. None: a table
            on a terminal, JSON lines otherwise.
        features: Write pooled features instead of classes.
        resume: Go on where a killed run with the same output stopped. Where it is finished, say
            so and what failed; the inputs must be the same.
        overwrite: Replace `output`, and forget an unfinished run of it.

    Raises:
        ValueError: An argument is not allowed, or does not go with another.
        FileNotFoundError: There is no folder for the output.
        ModuleNotFoundError: What writes the output is not installed.
    """

    paths: tuple[str, ...] = option(
        "pictures, folders (searched at any depth), patterns, or - for a list or a picture "
        "on the standard input",
        flag="path",
    )
    classifier: ClassifierOptions = part(ClassifierOptions)
    top: int | None = option("classes to name (default: 5)", None)
    output: Path | None = option(
        "*.csv, *.jsonl or *.parquet; without it a table on a terminal for up to 200 "
        "pictures, else JSON lines",
        None,
    )
    features: bool = option(
        "write pooled features instead: --output *.parquet, or *.npy with a table of its "
        "rows beside it (*.npy.csv)",
        False,
    )
    resume: bool = option("go on where a stopped run with this output was", False)
    overwrite: bool = option("replace the output, begin anew", False)

    def __post_init__(self) -> None:
        if self.features and self.top is not None:
            raise ValueError(
                "`top` is a number of classes, which `features` do without; leave it out"
            )
        at_least("top", self.classes, 1)
        if self.output is None:
            if self.features:
                raise ValueError(
                    f"features need an output: --output x{' or x'.join(FEATURE_FORMATS)}"
                )
            if self.resume or self.overwrite:
                raise ValueError("`resume` and `overwrite` are for a run with `output`")
        else:
            self._check_output(self.output)

    @property
    def classes(self) -> int:
        """How many classes are named."""
        return 5 if self.top is None else self.top

    def _check_output(self, output: Path) -> None:
        if self.resume and self.overwrite:
            raise ValueError("`resume` goes on, `overwrite` starts anew: leave one of them out")
        allowed = FEATURE_FORMATS if self.features else FORMATS
        if output.suffix not in allowed:
            raise ValueError(
                f"`output` must end in {', '.join(allowed)}"
                f"{' for features' if self.features else ''}. Received: {output}"
            )
        if output.suffix == ".parquet" and not is_installed("pyarrow"):
            raise missing("parquet", "pyarrow", "parquet")
        if not output.absolute().parent.is_dir():
            raise FileNotFoundError(f"{output.absolute().parent} is no folder; make it first")
