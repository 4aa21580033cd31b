"""What `van benchmark` is asked for, checked before any work is done."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import Any

from ..support.checks import at_least, at_least_or_none
from ..support.options import option
from ..support.result_folder import check_folder

ENGINES = ("fused", "keras", "auto", "numpy", "onnxruntime", "openvino", "litert")
FILES = ("benchmark.csv", "launches.json", "latency.png", "throughput.png")


@dataclass(frozen=True, kw_only=True)
class BenchmarkRequest:
    """The arguments of `benchmark`, which says what they are, and the options of `van benchmark`.

    Args:
        output: Folder to make: `FILES`.
        overwrite: Replace the `output` of an earlier benchmark.

    Raises:
        ValueError: An argument is not allowed.
        OSError: The output is in the way, or cannot be written.
        ModuleNotFoundError: There is no matplotlib, which the output needs.
    """

    weights: tuple[str, ...] = option(
        "what to measure side by side: names of `van weights list` that are here, weight "
        "files, .keras models, exported files (default: {default}); open only .keras files and "
        "SavedModels that you trust",
        ("van_b0",),
    )
    random_weights: bool = option(
        "give names random weights, which need no download: the speed does not depend on "
        "their values",
        False,
    )
    engines: tuple[str, ...] = option(
        "how weights are run, one way or several: by Keras, fused for inference (fused, the "
        "default) or as they are (keras), on the backend that KERAS_BACKEND names; or as `van "
        "predict` runs them: numpy, onnxruntime, openvino, litert (converted by TensorFlow), or "
        "auto, which is what `van predict` takes for many pictures",
        ("fused",),
        flag="--engine",
        choices=ENGINES,
    )
    batch_sizes: tuple[int, ...] = option(
        "images in a call (default: {default})", (1,), flag="--batch-size", metavar="N"
    )
    image_sizes: tuple[int | tuple[int, int] | None, ...] = option(
        "side in pixels (default: what each was made for)",
        (None,),
        flag="--image-size",
        metavar="N",
    )
    threads: int | None = option(
        "of each engine but numpy, which takes one (default: its own choice)", None
    )
    rounds: int = option("launches of each, at least 2 (default: {default})", 3)
    seconds: float = option("timed calls in a launch (default: 2)", 2.0)
    max_spread: float = option(
        "report no figures of a model whose slowest launch takes more than this times its "
        "best one (default: {default})",
        1.25,
    )
    output: Path | None = option(
        "folder to make: a table, every launch in JSON, two pictures", None
    )
    overwrite: bool = option("replace an earlier output", False)

    def __post_init__(self) -> None:
        from ..support import plots  # takes NumPy, which `--help` does without

        check_folder(self.output, FILES, "benchmark", self.overwrite)
        if self.output is not None:
            plots.require_matplotlib()
        if not self.weights or len(set(self.weights)) != len(self.weights):
            raise ValueError(
                f"`weights` must be one or several, no two the same. Received: {list(self.weights)}"
            )
        for argument, numbers in (("batch_sizes", self.batch_sizes), ("rounds", [self.rounds])):
            for number in numbers:
                at_least(argument, number, 2 if argument == "rounds" else 1)
        # NumPy's numbers would fit into no JSON.
        self._take("batch_sizes", tuple(int(number) for number in self.batch_sizes))
        sizes = tuple(None if size is None else _pair(size) for size in self.image_sizes)
        self._take("image_sizes", sizes)
        self._take("rounds", int(self.rounds))
        self._take("threads", at_least_or_none("threads", self.threads, 1))
        if not isinstance(self.seconds, Real) or not 0 < self.seconds < math.inf:
            raise ValueError(f"`seconds` must be a number > 0. Received: seconds={self.seconds!r}")
        self._take("seconds", float(self.seconds))
        if not isinstance(self.max_spread, Real) or not self.max_spread >= 1:
            raise ValueError(
                f"`max_spread` must be a number >= 1. Received: max_spread={self.max_spread!r}"
            )
        if not self.engines or not set(self.engines) <= set(ENGINES):
            raise ValueError(
                f"`engines` must be among {', '.join(ENGINES)}. Received: {self.engines!r}"
            )
        if not self.batch_sizes or not sizes:
            raise ValueError("`batch_sizes` and `image_sizes` must have one value at least")

    def _take(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)


def _pair(size: Any) -> tuple[int, int]:
    height, width = size if isinstance(size, Sequence) and len(size) == 2 else (size, size)
    for side in (height, width):
        at_least("image_sizes", side, 1)
    return int(height), int(width)
