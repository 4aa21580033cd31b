"""What `Classifier` and `van predict` are asked for, checked before any work is done."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..support.checks import at_least, at_least_or_none, check_choice, check_flag, is_number
from ..support.cluster import ClusterOptions
from ..support.extras import is_installed, missing
from ..support.options import option, part
from ..support.text import shown
from .shard import Shard

# {what runs the model: the package it needs, and what installs that}
ENGINES = {
    "auto": (),
    "numpy": (),
    "keras": (("keras", "keras"),),
    "onnxruntime": (("onnx", "onnx"), ("onnxruntime", "onnx")),
    "openvino": (("onnx", "onnx"), ("openvino", "openvino")),
    "litert": (("tensorflow", "litert"), ("ai_edge_litert", "litert")),
}
# {arithmetic: the engines that have it}
PRECISIONS = {
    "float32": tuple(ENGINES),
    "bfloat16": ("auto", "keras", "openvino"),
    "int8": ("auto", "onnxruntime", "openvino", "litert"),
}
FORMATS = (".csv", ".jsonl", ".parquet")
FEATURE_FORMATS = (".parquet", ".npy")


@dataclass(frozen=True, kw_only=True)
class ClassifierOptions:
    """The arguments of `Classifier`, which says what they are; most are options of commands.

    Raises:
        ValueError: An argument is not allowed.
        FileNotFoundError: There is no such folder for the calibration.
        ModuleNotFoundError: What the engine needs is not installed; says what installs it.
    """

    weights: Any = option(
        "a name of `van weights list`, van_b0 ... for its ImageNet-1k weights, a weight file, "
        "hf://USER/NAME of a model hub, or an exported file: *.onnx, *.xml, *.tflite, a "
        "SavedModel's folder (default: {default})",
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
        "themselves on a picture), or one of them, which must prove itself; litert starts "
        "TensorFlow to convert them, and is never taken by auto (default: {default})",
        "auto",
        choices=tuple(ENGINES),
    )
    precision: str = option(
        "of the arithmetic of weights: float32; bfloat16 of openvino and keras; or int8 of "
        "openvino, onnxruntime and litert, which needs --calibration and must decide as float32 "
        "does (default: {default})",
        "float32",
        choices=tuple(PRECISIONS),
    )
    calibration: Any = option(
        "real pictures, such as the model will see, that int8 takes its ranges from: a folder, or "
        "digits (bundled)",
        None,
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
        check_choice("engine", self.engine, tuple(ENGINES))
        check_choice("precision", self.precision, tuple(PRECISIONS))
        able = PRECISIONS[self.precision]
        if self.engine not in able:
            raise ValueError(
                f"`engine` must be one of {', '.join(able)} for {self.precision}. Received: "
                f"engine={self.engine!r}"
            )
        needed = list(ENGINES[self.engine])
        if (self.engine, self.precision) == ("openvino", "int8"):
            needed.append(("nncf", "openvino"))
        for package, extra in needed:
            if not is_installed(package):
                raise missing(f"engine {self.engine}", package, extra)
        from ..weights.address import address_of

        a_path = isinstance(self.weights, (str, os.PathLike))
        if not a_path or address_of(self.weights).kind == "exported":
            return  # neither is converted, as is said of it
        if self.engine == "litert":
            from ..engines.flatbuffer import check_named_backend  # takes NumPy

            check_named_backend("the program of `engine`='litert'")
        self._check_calibration()

    def _check_calibration(self) -> None:
        if self.precision != "int8":
            if self.calibration is not None:
                raise ValueError(
                    "`calibration` goes with `precision` int8 only. Received: "
                    f"precision={self.precision!r}, calibration={shown(self.calibration)}"
                )
            return
        if not isinstance(self.calibration, (str, os.PathLike)):
            raise ValueError(
                "`calibration` must name real pictures for int8, such as those the model will see: "
                "the ranges of its numbers come from them. A folder, or digits. Received: "
                f"calibration={shown(self.calibration)}"
            )
        from ..datasets.calibration import check_pictures

        check_pictures(self.calibration, "calibration")


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
        shard: "I/N": predict the share I, from 0 to N - 1, of the inputs, and write a part beside
            `output`, which is made of all N parts by `van merge`.
        rows_per_file: With `where`: `output` is a folder of Parquet files of so many rows, at least
            1, which the processes of the cluster write; for what one machine should not write.
        where: Which processes do it; by default this one.

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
    shard: str | None = option(
        "be one of N processes with the same inputs: I/N, I from 0 to N - 1; each writes a part "
        "beside the output, and `van merge OUTPUT` makes one of them",
        None,
        metavar="I/N",
    )
    rows_per_file: int | None = option(
        "with --cluster: make of --output *.parquet a folder of files with so many rows each, "
        "which the processes of the cluster write themselves",
        None,
        metavar="N",
    )
    where: ClusterOptions = part(ClusterOptions)

    def __post_init__(self) -> None:
        if self.shard is not None:
            Shard.parse(self.shard)
            if self.where.cluster is not None:
                raise ValueError(
                    "`shard` is for processes without a word between them, `cluster` deals the "
                    "pictures by itself: leave one of them out"
                )
        if self.features and self.top is not None:
            raise ValueError(
                "`top` is a number of classes, which `features` do without; leave it out"
            )
        at_least("top", self.classes, 1)
        if self.rows_per_file is not None:
            at_least("rows_per_file", self.rows_per_file, 1)
            if not (self.where.cluster and self.output and self.output.suffix == ".parquet"):
                raise ValueError(
                    "`rows_per_file` makes a folder on a cluster: it needs `cluster` and an "
                    "`output` that ends in .parquet. Received: "
                    f"cluster={self.where.cluster!r}, output={self.output and str(self.output)!r}"
                )
        if self.output is None:
            if self.features:
                raise ValueError(
                    f"features need an output: --output x{' or x'.join(FEATURE_FORMATS)}"
                )
            if self.resume or self.overwrite:
                raise ValueError("`resume` and `overwrite` are for a run with `output`")
            if self.shard is not None:
                raise ValueError("`shard` needs the `output` that the parts are to be merged to")
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
        _check_writable(output)


@dataclass(frozen=True, kw_only=True)
class MergeRequest:
    """The options of `van merge`.

    Args:
        output: What `van predict --shard` was given as `output`; its parts lie beside it.
        overwrite: Replace `output`, and forget an unfinished run of it.
        keep_parts: Leave the parts there.

    Raises:
        ValueError: The output has no known ending.
        FileNotFoundError: There is no such folder.
        ModuleNotFoundError: What writes the output is not installed.
    """

    output: Path = option(
        "the output that the shards of `van predict` were given; the parts are beside it",
        flag="output",
    )
    overwrite: bool = option("replace the output", False)
    keep_parts: bool = option("leave the parts there", False)

    def __post_init__(self) -> None:
        allowed = tuple(dict.fromkeys(FORMATS + FEATURE_FORMATS))
        if self.output.suffix not in allowed:
            raise ValueError(f"`output` must end in {', '.join(allowed)}. Received: {self.output}")
        _check_writable(self.output)


def _check_writable(output: Path) -> None:
    if output.suffix == ".parquet" and not is_installed("pyarrow"):
        raise missing("parquet", "pyarrow", "parquet")
    if not output.absolute().parent.is_dir():
        raise FileNotFoundError(f"{output.absolute().parent} is no folder; make it first")
