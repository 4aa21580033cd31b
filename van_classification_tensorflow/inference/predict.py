"""`van predict`: one record for each picture, written whole, resumable.

Results are kept line by line in a journal beside the output, which replaces it at the end: a run
that is killed loses and repeats nothing when it is resumed.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TextIO

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..engines.choice import Chosen
from ..images.find import LeftOut, expand, name_of, no_pictures
from ..support.console import (
    common_folder,
    messages,
    pictures_bar,
    results,
    say,
    say_failures,
    to_json,
    write_line,
)
from ..support.interrupt import Interrupted
from ..support.text import printable
from ..weights.pretrained import state_of_weights
from .classifier import Classifier
from .engines import slow_start
from .journal import Journal
from .parts import PartJournal, open_part, said_of_shard
from .records import READERS, as_utf8, to_record
from .request import PredictRequest
from .shard import Shard, digest_of

_MOST_IN_TABLE = 200  # pictures


class Doer(AbstractContextManager[Any], Protocol):
    """Who classifies the pictures of a run: this process (`Here`), or others."""

    def journal(self, output: Path) -> Journal:
        """What keeps the records until the output is made of them."""

    def begin(
        self, classifier: Classifier, chosen: Chosen, inputs: list[str | bytes]
    ) -> dict[str, Any]:
        """Called before anything is written; what the journal is to say of it."""

    def records(self, to_do: list[str | bytes], count: int) -> Iterator[dict[str, Any]]:
        """The record of each picture, in order; `count`: of all, those done before included."""


class Here(nullcontext[None]):
    """The process itself classifies."""

    def __init__(self, request: PredictRequest):
        super().__init__()
        self.request = request

    def journal(self, output: Path) -> Journal:
        return journal_of(self.request, output)

    def begin(
        self, classifier: Classifier, chosen: Chosen, inputs: list[str | bytes]
    ) -> dict[str, Any]:
        self.classifier = classifier
        return {}

    def records(self, to_do: list[str | bytes], count: int) -> Iterator[dict[str, Any]]:
        top, features = self.request.classes, self.request.features
        # By the count of all: what is left of them, or a share, is run as all of them are.
        for result in self.classifier.stream(to_do, features=features, count=count):
            yield to_record(self.classifier, result, top, features)


def run(
    request: PredictRequest,
    stdin: TextIO | None = None,
    console: Console | None = None,
    doer: Doer | None = None,
) -> int:
    """Classifies every picture that is asked for; returns how many failed.

    Args:
        request: What to do.
        stdin: Read where a path is "-".
        console: Where to report.
        doer: Who classifies; by default this process.

    Raises:
        ValueError: Weights and request do not fit together, or there are no pictures.
        OSError: The output cannot be written.
        Interrupted: Ctrl-C; says by what the run goes on.
    """
    console, stdin = console or messages(), stdin or sys.stdin
    doer = doer or Here(request)
    if request.output is None:
        return _run(request, _inputs(request, stdin, console), None, console, doer)
    journal = None
    try:
        with doer.journal(request.output) as journal:
            inputs = _inputs(request, stdin, console)
            if isinstance(journal, PartJournal) and journal.finished:
                return _say_part_finished(request, journal, inputs, console)
            if journal.finished:
                return _say_finished(request, inputs, console)
            return _run(request, inputs, journal, console, doer)
    except KeyboardInterrupt:
        if journal is not None and journal.begun:
            raise Interrupted(without=("--overwrite", "--resume"), add=("--resume",)) from None
        # Nothing of this run is there: an output or a journal would be of an earlier one.
        raise Interrupted from None


def _inputs(request: PredictRequest, stdin: TextIO, console: Console) -> list[str | bytes]:
    inputs = inputs_of(request.paths, stdin, console)
    several = "shard" if request.shard else "cluster" if request.where.cluster else None
    if several and any(isinstance(one, bytes) for one in inputs):
        raise ValueError(
            "a picture on the standard input is for one process: give its path, or leave "
            f"`{several}` out"
        )
    return inputs


def journal_of(request: PredictRequest, output: Path) -> Journal:
    """The journal of a run whose output is one file, or a shard's part of it."""
    if request.shard is None:
        return Journal(output, request.resume, request.overwrite)
    return PartJournal(output, Shard.parse(request.shard), request.resume, request.overwrite)


def inputs_of(paths: Sequence[str], stdin: TextIO, console: Console) -> list[str | bytes]:
    """Every picture; there is one at least, and not all of them are missing."""
    left_out = LeftOut()
    inputs = list(expand(paths, stdin, left_out))
    if not inputs:
        raise ValueError(no_pictures(", ".join(map(printable, paths)), left_out))
    if "-" not in paths and not any(map(os.path.lexists, inputs)):  # before weights are fetched
        more = f", nor any of {len(inputs) - 1:,} others" if len(inputs) > 1 else ""
        raise FileNotFoundError(f"{printable(inputs[0])}: no such file{more}")
    if left_out:
        say(console, str(left_out))
    return inputs


def _say_finished(request: PredictRequest, inputs: Sequence[str | bytes], console: Console) -> int:
    """Says that the output of an earlier run is there, and what failed; how many did.

    Raises:
        ValueError: It is not the output for this request and these inputs, or none at all.
    """
    output, top = request.output, None if request.features else request.classes
    assert output is not None  # noqa: S101 - without one nothing is finished
    try:
        there = list(READERS[output.suffix](output))
        names = Counter(as_utf8(record["path"]) for record in there)
        errors = [str(record["error"]) for record in there if record["error"]]
        good = [record for record in there if not record["error"]]
        # A model with fewer classes names all that it has.
        kinds = {max(top or 0, r["top"]) if r.get("all") else r["top"] for r in good}
    except Exception as error:  # whatever a file of something else may make a reader raise
        raise ValueError(
            f"{printable(output)} is there, and was not written by `van predict`; to replace it: "
            "--overwrite"
        ) from error
    wanted = Counter(as_utf8(name_of(source)) for source in inputs)
    for more, what in ((wanted - names, "has no records of"), (names - wanted, "is also of")):
        if more:
            raise ValueError(
                f"{printable(output)} is finished, and {what} {more.total():,} pictures, such as "
                f"{printable(next(iter(more)))}: resume with the same inputs, or make it anew: "
                "--overwrite"
            )
    if kinds and kinds != {top}:
        was = ", ".join("features" if one is None else f"top={one}" for one in kinds)
        raise ValueError(
            f"{printable(output)} is finished, with other settings: {was}; to make it anew: "
            "--overwrite"
        )
    say(
        console,
        f"{printable(output)} is finished: it has all {len(there):,} records (it does not say of "
        "which weights); to make it anew: --overwrite",
    )
    if errors:
        say_failures(console, f"{len(errors):,} of {len(there):,} failed", errors)
    return len(errors)


def _say_part_finished(
    request: PredictRequest,
    journal: PartJournal,
    inputs: Sequence[str | bytes],
    console: Console,
) -> int:
    """As `_say_finished`, of the part of a shard.

    Raises:
        ValueError: It is not the part for this request and these inputs, or damaged.
    """
    part = open_part(journal.whole, journal.shard)
    about, shown = part.about, printable(part.path)
    if about["names"] != digest_of(map(name_of, inputs), journal.shard.count, about["block"]):
        raise ValueError(
            f"{shown} is finished, of other inputs or in another order: resume with the same "
            "inputs, or make it anew: --overwrite"
        )
    if about["top"] != (None if request.features else request.classes):
        was = "features" if about["features"] else f"top={about['top']}"
        raise ValueError(
            f"{shown} is finished, with other settings: {was}; to make it anew: --overwrite"
        )
    errors = [record["error"] for record in part.records()]
    failed = [error for error in errors if error]
    if len(errors) != len(journal.shard.of(inputs, about["block"])):
        raise ValueError(f"{shown} has records of other pictures; {part.anew}")
    say(
        console,
        f"{shown} is finished: it has {len(errors):,} records; to make it anew: --overwrite",
    )
    if failed:
        say_failures(console, f"{len(failed):,} of {len(errors):,} failed", failed)
    return len(failed)


def _run(
    request: PredictRequest,
    inputs: list[str | bytes],
    journal: Journal | None,
    console: Console,
    doer: Doer,
) -> int:
    """Classifies; how many failed."""
    with doer:
        return _run_by(doer, request, inputs, journal, console)


def _run_by(
    doer: Doer,
    request: PredictRequest,
    inputs: list[str | bytes],
    journal: Journal | None,
    console: Console,
) -> int:
    classifier = Classifier(**vars(request.classifier))
    top, features = request.classes, request.features
    if features:
        classifier.check_features()
    else:
        classifier.check_top(top)
    say(console, f"{classifier.name}: {classifier.preprocessing}")
    for note in (classifier.notes, slow_start(classifier.engine, classifier.precision)):
        if note:
            say(console, note)
    chosen = classifier.choose_engine(len(inputs))
    say(console, chosen.describe())
    about = {
        "weights": [classifier.name, *state_of_weights(request.classifier.weights)],
        "preprocessing": classifier.preprocessing.to_dict(),
        "views": [classifier.crops, classifier.flip],
        "features": features,
        "top": None if features else top,
        "precision": classifier.precision,
    }
    if chosen.precision != "float32":  # in others each engine has numbers of its own
        about["engine"] = chosen.name
    if chosen.calibration is not None:
        about["calibration"] = chosen.calibration[:16]
    mine, every = inputs, len(inputs)
    if request.shard is not None:
        shard = Shard.parse(request.shard)
        about |= said_of_shard(shard, inputs, classifier, request.classifier.weights)
        about["engine"] = chosen.name  # which may round otherwise than that of another shard
        mine = shard.of(inputs, classifier.pictures_at_once)
        say(console, f"Shard {shard}: {len(mine):,} of {every:,} pictures")
    about |= doer.begin(classifier, chosen, inputs)
    to_do = mine if journal is None else journal.begin(about, mine)
    done = len(mine) - len(to_do)
    if done:
        say(console, f"{done:,} of {len(mine):,} were there; going on")

    started = time.monotonic()
    failed: list[str] = []
    shown: list[dict[str, Any]] = []
    as_table = journal is None and sys.stdout.isatty() and every <= _MOST_IN_TABLE
    # On the same screen the lines themselves show the progress.
    lines_on_screen = journal is None and sys.stdout.isatty() and not as_table
    with pictures_bar(Console(quiet=True) if lines_on_screen else console) as bar:
        task = bar.add_task(classifier.name, total=len(mine), completed=done, rate="")
        for record in doer.records(to_do, every):
            if record["error"]:
                failed.append(record["error"])
            if journal is not None:
                journal.add(record)
            elif as_table:
                shown.append(record)
            else:
                write_line(to_json(record))
            bar.advance(task)
            finished = bar.tasks[0].completed - done
            rate = finished / max(time.monotonic() - started, 1e-9)
            bar.update(task, rate=f"{rate:.1f} images/s")
    if journal is not None:
        failed += journal.errors_before
        journal.finish(top, features)
        say(console, f"{journal.output}: {len(mine):,} records")
    if shown:
        results().print(table_of(shown))
    if failed:
        say_failures(console, f"{len(failed):,} of {len(mine):,} failed", failed)
    return len(failed)


def table_of(records: list[dict[str, Any]]) -> Group:
    """For a terminal of 80 columns or more: a line for each class, and nothing is cut.

    What all paths have in common stands above them.
    """
    paths = [printable(record["path"]) for record in records]
    folder = common_folder(paths)
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    table.add_column("Picture", overflow="fold")
    table.add_column("%", justify="right", no_wrap=True)
    table.add_column("Best first", overflow="fold")
    for path, record in zip(paths, records, strict=True):
        name = Text(os.path.relpath(path, folder) if folder else path)  # it may look like markup
        if record["error"]:
            table.add_row(name, "", Text(record["error"].removeprefix(f"{path}: "), "red"))
            continue
        found = record["predictions"]
        labels = Text("\n").join(
            Text(one["label"], "" if place else "bold") for place, one in enumerate(found)
        )
        table.add_row(name, "\n".join(f"{100 * one['probability']:.1f}" for one in found), labels)
    return Group(*([Text(f"In {folder}", overflow="fold")] if folder else []), table)
