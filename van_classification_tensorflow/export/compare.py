"""Compares what was written, run by its own engine, with the Keras model."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console

from ..engines.choice import WITHOUT_CLASSES
from ..engines.runtimes import open_runtime
from ..spec.card import About
from ..spec.scores import best
from ..support.console import pictures_bar
from ..support.files import file_bytes
from .job import Job
from .request import ExportRequest
from .samples import Samples

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


def compare(job: Job, path: Path, kind: str, pictures: Samples, console: Console) -> Export:
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


def check_agreement(found: Export, request: ExportRequest) -> None:
    """Raises `ExportError` where the file differs more from the model than is allowed."""
    limit, share = TOLERANCES[request.precision]
    if request.precision == "int8" and found.about.architecture.num_classes in (None, 1):
        limit = WITHOUT_CLASSES
    limit *= max(found.largest, 1.0)
    tolerance = limit if request.tolerance is None else float(request.tolerance)
    agreement = share if request.agreement is None else float(request.agreement)
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
