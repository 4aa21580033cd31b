"""`van segment`: for each picture a mask, its areas and an overlay; beside the truth, mIoU."""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from .. import __version__
from ..images.find import name_of
from ..images.masks import mask_image
from ..inference.predict import inputs_of
from ..support.console import (
    common_folder,
    messages,
    results,
    say,
    say_files,
    to_json,
)
from ..support.files import sha256_of
from ..support.recorded_folder import Names, say_errors
from ..support.text import printable, reason
from .request import FOLDER, INDEX, SegmentRequest
from .segmenter import Segmentation, Segmenter
from .truth import SCORES, Agreement, masks_of

AREAS = "areas.csv"
_IN_TABLE = 60  # pictures, on a terminal
_NAMED = 4  # classes of a picture in that table
_QUICK = 3  # compression of PNG: a third of the time of 6, and a seventh more bytes


def run(
    request: SegmentRequest, stdin: TextIO | None = None, console: Console | None = None
) -> int:
    """Segments every picture; how many could not be.

    Args:
        request: What to do.
        stdin: Read where a path is "-".
        console: Where to report.

    Raises:
        ValueError: Weights and request do not fit together, or there are no pictures or masks.
        OSError: The output cannot be written.
    """
    console = console or messages()
    inputs = inputs_of(request.paths, stdin or sys.stdin, console)
    inputs = FOLDER.outside(inputs, request.output)
    masks = None if request.truth is None else masks_of(inputs, request.truth)
    segmenter = Segmenter(**vars(request.segmenter))
    say(console, f"{segmenter.name}: {segmenter.describe()}")
    if segmenter.notes:
        say(console, segmenter.notes)
    agreement = None
    if masks is not None:
        agreement = Agreement(
            masks,
            segmenter.labels,
            request.reduce_zero_label,
            request.ignore,
            request.segmenter.max_pixels,
        )
    job = _Job(request, segmenter, agreement)
    FOLDER.write_records(
        request.output,
        request.overwrite,
        segmenter.name,
        len(inputs),
        partial(job.of_all, inputs),
        console,
    )
    _report(request, job, results())
    return say_errors(console, job.records)


@dataclass
class _Job:
    """A run: what is asked, and what it has written."""

    request: SegmentRequest
    segmenter: Segmenter
    agreement: Agreement | None
    names: Names = field(default_factory=Names)
    records: list[dict[str, Any]] = field(default_factory=list)

    def of_all(self, inputs: Sequence[str | bytes], work: Path) -> Iterator[dict[str, Any]]:
        """A record for each picture, whose files are then in `work`; in the end, that of all."""
        with (work / AREAS).open(
            "w", encoding="utf-8", errors="backslashreplace", newline=""
        ) as file:
            table = csv.writer(file)
            table.writerow(["path", "index", "label", "pixels", "share"])
            for found in self.segmenter.stream(inputs):
                record = self._written(found, work)
                self.records.append(record)
                yield record
                for one in record.get("areas", ()):
                    cells = (one["index"], one["label"], one["pixels"], one["share"])
                    table.writerow([record["path"], *cells])
        self.names.file(AREAS)
        self._write_index(work)

    def _written(self, found: Segmentation, work: Path) -> dict[str, Any]:
        """The record of a picture that is written; or of why it is not."""
        path = name_of(found.source)
        if found.mask is None:
            return {"path": path, "error": found.error}
        drawn, scores = None, dict[str, Any]()
        try:
            # Drawn first: the picture may have gone meanwhile, and then it does not count.
            if self.request.overlay:
                title = Path(path).name if path != "-" else "picture"
                drawn = found.overlay(opacity=self.request.opacity, title=title)
            if self.agreement is not None:
                scores = self.agreement.add(path, found.mask)
        except (OSError, ValueError, MemoryError) as error:  # an `ImageError` is one of them
            return {"path": path, "error": reason(error)}
        stem, written = self.names.stem(path), {}
        image = mask_image(found.mask, self.segmenter.palette)
        for what, one in (("mask", image), ("overlay", drawn)):
            if one is not None:
                name = self.names.file(f"{stem}.{what}.png")
                one.save(work / name, compress_level=_QUICK)
                written[what] = name
        height, width = found.mask.shape
        areas = [
            {"index": a.index, "label": a.label, "pixels": a.pixels, "share": a.share}
            for a in found.areas
        ]
        about = {"path": path, "error": None, "width": width, "height": height}
        return about | written | scores | {"areas": areas}

    def _write_index(self, work: Path) -> None:
        """The record of all, with what is needed to repeat it; of a run with truth its scores."""
        if self.agreement is not None:
            self.agreement.write(work / self.names.file(SCORES))
        segmenter = self.segmenter
        record = {
            "van_classification_tensorflow": __version__,
            "versions": {name: version(name) for name in ("keras", "numpy", "pillow")},
            "weights": self._weights(),
            "way": segmenter.describe(),
            "preprocessing": segmenter.preprocessing.to_dict(),
            "classes": [
                {"index": i, "label": label.name, "colour": f"#{bytes(colour).hex()}"}
                for i, (label, colour) in enumerate(
                    zip(segmenter.labels, segmenter.palette, strict=True)
                )
            ],
            "files": sorted(self.names.files),
            "pictures": self.records,
        }
        (work / INDEX).write_text(to_json(record, indent=1), encoding="utf-8")

    def _weights(self) -> dict[str, Any]:
        """Which weights these are, and what was in their file."""
        given = os.fspath(self.request.segmenter.weights)
        record: dict[str, Any] = {"name": self.segmenter.name, "given": os.fsdecode(given)}
        if self.segmenter.file is not None:
            record["sha256"] = sha256_of(self.segmenter.file)
        return record


def _report(request: SegmentRequest, job: _Job, console: Console) -> None:
    """What the pictures are of, where they are few; the scores; where the files are."""
    good = [one for one in job.records if not one["error"]]
    if console.is_terminal and 0 < len(good) <= _IN_TABLE:
        paths = [printable(one["path"]) for one in good]
        folder = common_folder(paths)
        table = Table(box=SIMPLE_HEAD, pad_edge=False)
        table.add_column("Picture", overflow="fold")
        table.add_column("Largest classes", overflow="fold")
        for path, one in zip(paths, good, strict=True):
            largest = (f"{a['label']} {100 * a['share']:.1f} %" for a in one["areas"][:_NAMED])
            name = os.path.relpath(path, folder) if folder else path
            table.add_row(Text(name), Text(printable(", ".join(largest))))
        console.print(table)
    if job.agreement is not None and job.agreement.confusion.pictures:
        job.agreement.report(console)
        if outside := job.agreement.confusion.outside:
            say(
                console,
                f"{outside:,} pixels of `truth` have a number that is no class and not ignored: "
                "they count as errors. --reduce-zero-label or --ignore may be missing",
                "yellow",
            )
    files = {"*.mask.png": "the class of each pixel, with a palette"} if good else {}
    if request.overlay and good:
        files["*.overlay.png"] = "the classes over the picture, with a legend"
    files[AREAS] = "pixels and share of each class in each picture"
    if job.agreement is not None:
        files[SCORES] = "IoU and more of each class"
    files[INDEX] = "all of it, and what is needed to repeat it"
    say_files(console, printable(request.output), files)
