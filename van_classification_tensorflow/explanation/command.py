"""`van explain`: for each picture, maps of what its classes came from."""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..images.decode import ImageError
from ..images.find import name_of
from ..images.parallel import decoded
from ..inference.classifier import Classifier
from ..inference.predict import inputs_of
from ..support.console import messages, results, say
from ..support.cores import cores
from ..support.files import sha256_of
from ..support.recorded_folder import Names, say_errors
from ..support.text import printable, reason
from .drawing import Drawing
from .folder import FOLDER, INDEX
from .kinds import GATE, METHODS
from .receptive import effective_receptive_field, lka_kernel
from .request import ExplainRequest
from .ways import Classes, maps_of, ways_of

_IN_TABLE = 60  # maps, on a terminal
_FOR_FIELD = 8  # pictures that a receptive field is averaged over


def run(
    request: ExplainRequest, stdin: TextIO | None = None, console: Console | None = None
) -> int:
    """Explains every picture; how many could not be read.

    Args:
        request: What to do.
        stdin: Read where a path is "-".
        console: Where to report.

    Raises:
        ValueError: Weights and request do not fit together, or there are no pictures.
        OSError: The output cannot be written.
    """
    console = console or messages()
    inputs = inputs_of(request.paths, stdin or sys.stdin, console)
    inputs = FOLDER.outside(inputs, request.output)
    classifier = Classifier(
        request.weights,
        test_size=request.test_size,
        batch_size=request.batch_size,
        workers=request.workers,
        max_pixels=request.max_pixels,
    )
    classifier.check_top(1)
    job = _Job(request, classifier, Classes(request.classes, classifier))
    say(console, f"{classifier.name}: {classifier.preprocessing}")
    if classifier.notes:
        say(console, classifier.notes)
    FOLDER.write_records(
        request.output,
        request.overwrite,
        classifier.name,
        len(inputs),
        partial(job.of_all, inputs),
        console,
    )
    _report(request, job, results())
    return say_errors(console, job.records)


@dataclass
class _Job:
    """A run: what is asked, and what it has written."""

    request: ExplainRequest
    classifier: Classifier
    classes: Classes
    names: Names = field(default_factory=Names)
    records: list[dict[str, Any]] = field(default_factory=list)
    _some: list[np.ndarray] = field(default_factory=list)  # prepared pictures

    def of_all(self, inputs: Sequence[str | bytes], work: Path) -> Iterator[dict[str, Any]]:
        """A record for each picture, whose files are then in `work`; in the end, that of all."""
        request = self.request
        ways, engine = ways_of(request, self.classifier)
        drawing = Drawing(
            self.classifier, self.names, work, request.opacity, request.sheet, request.max_pixels
        )
        size = request.batch_size
        made = decoded(inputs, self.classifier.prepare, request.workers, 2 * size)
        with ThreadPoolExecutor(request.workers or cores(), "draw") as pool:

            def of_batch(batch: list[tuple[Any, Any]]) -> Iterator[dict[str, Any]]:
                good = [one[0][:1] for _, one in batch if not isinstance(one, Exception)]
                found: Any = iter(())
                if good:
                    images = np.concatenate(good)
                    self._some += list(images[: _FOR_FIELD - len(self._some)])
                    found = zip(*maps_of(images, ways, self.classes), strict=True)
                stems = [self.names.stem(name_of(source)) for source, _ in batch]
                tasks = [
                    (*pair, stem, None if isinstance(pair[1], Exception) else next(found))
                    for pair, stem in zip(batch, stems, strict=True)
                ]
                for record in pool.map(lambda task: _drawn(drawing, *task), tasks):
                    self.records.append(record)
                    yield record

            batch: list[tuple[Any, Any]] = []
            for pair in made:
                batch.append(pair)
                if len(batch) == size:
                    yield from of_batch(batch)
                    batch = []
            yield from of_batch(batch)
        self._draw_attention(drawing)
        self._write_index(work, engine)

    def _draw_attention(self, drawing: Drawing) -> None:
        """Of the blocks whose gates were asked for: what one position of them sees."""
        weights = self.classifier.opened_weights
        every = [one for record in self.records for one in record.get("maps", ())]
        gates = (one["layer"] for one in every if METHODS[one["method"]].at == GATE)
        for block in dict.fromkeys(gates):
            assert weights is not None  # noqa: S101 - the request refuses what has none
            drawing.kernel(block, lka_kernel(weights.tensors, block))
            images = np.stack(self._some)
            seen = effective_receptive_field(self.classifier.model, images, block)
            drawing.field(block, seen, len(images))

    def _write_index(self, work: Path, engine: str) -> None:
        """The record of all, with what is needed to repeat it."""
        request, packages = self.request, ("keras", "numpy", "onnxruntime", "pillow")
        record = {
            "van_classification_tensorflow": __version__,
            "engine": engine,
            "versions": {name: version(name) for name in packages},
            "weights": self._weights(),
            "preprocessing": self.classifier.preprocessing.to_dict(),
            "activation": self.classifier.activation,
            "asked": {
                name: getattr(request, name)
                for name in (
                    *("paths", "classes", "methods", "layers", "opacity", "steps", "samples"),
                    *("noise", "seed", "test_size", "batch_size"),
                )
            },
            "files": sorted(self.names.files),
            "pictures": self.records,
        }
        (work / INDEX).write_text(json.dumps(record, indent=1), encoding="utf-8")

    def _weights(self) -> dict[str, Any]:
        """Which weights these are, and what was in their file."""
        weights = self.classifier.opened_weights
        assert weights is not None  # noqa: S101 - the request refuses what has none
        given, digest = os.fspath(self.request.weights), sha256_of(weights.source.path)
        return {"name": self.classifier.name, "given": given, "sha256": digest}


def _drawn(drawing: Drawing, source: Any, made: Any, stem: str, found: Any) -> dict[str, Any]:
    """The record of a picture, drawn; or of why it is not."""
    if not isinstance(made, Exception):
        try:
            return drawing.picture(source, stem, *found)
        except (ImageError, FileNotFoundError) as error:  # it has gone meanwhile
            made = error
    return {"path": name_of(source), "error": reason(made)}


def _report(request: ExplainRequest, job: _Job, console: Console) -> None:
    """A line for each map, where they are few; where the files are; what shows nothing."""
    every = [(record, one) for record in job.records for one in record.get("maps", ())]
    if console.is_terminal and 0 < len(every) <= _IN_TABLE:
        table = Table(box=None, pad_edge=False)
        for name in ("Picture", "Class", "%", "Map", "File"):
            table.add_column(name, overflow="fold", justify="right" if name == "%" else "left")
        for record, one in every:
            cells = (
                printable(Path(record["path"]).name),
                printable(one["class"]["label"]) if one["class"] else "",
                f"{100 * one['probability']:.1f}" if one["class"] else "",
                f"{one['method']} at {one['layer']}",
                one["picture"],
            )
            table.add_row(*map(Text, cells))
        console.print(table)
    count = len(job.names.files)
    files = f"{count + 1:,} files; {INDEX} says what they are" if count else f"only {INDEX}"
    say(console, f"{request.output}: {files}")
    notes = Counter((one["method"], one["layer"], one["note"]) for _, one in every if one["note"])
    for (method, layer, note), count in sorted(notes.items()):
        what = "1 map" if count == 1 else f"{count:,} maps"
        say(console, f"{what} of {method} at {layer} without anything to see: {note}", "yellow")
