"""`van predict`: one record for each picture, written whole, resumable.

Results are kept line by line in a journal beside the output, which replaces it at the end: a run
that is killed loses and repeats nothing when it is resumed.
"""

from __future__ import annotations

import csv
import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from filelock import FileLock, Timeout
from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from ..images.find import LeftOut, expand, no_pictures
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
from ..support.files import check_place_for_file, write_atomically
from ..support.interrupt import Interrupted
from ..support.text import printable
from ..weights.pretrained import state_of_weights
from .classifier import Classifier, Result
from .engines import slow_start
from .request import PredictRequest

_MOST_IN_TABLE = 200  # pictures


def run(
    request: PredictRequest, stdin: TextIO | None = None, console: Console | None = None
) -> int:
    """Classifies every picture that is asked for; returns how many failed.

    Args:
        request: What to do.
        stdin: Read where a path is "-".
        console: Where to report.

    Raises:
        ValueError: Weights and request do not fit together, or there are no pictures.
        OSError: The output cannot be written.
        Interrupted: Ctrl-C; says by what the run goes on.
    """
    console, stdin = console or messages(), stdin or sys.stdin
    if request.output is None:
        return _run(request, inputs_of(request.paths, stdin, console), None, console)
    journal = None
    try:
        with Journal(request.output, request.resume, request.overwrite) as journal:
            inputs = inputs_of(request.paths, stdin, console)
            if journal.finished:
                return _say_finished(request, inputs, console)
            return _run(request, inputs, journal, console)
    except KeyboardInterrupt:
        if journal is not None and journal.begun:
            raise Interrupted(without=("--overwrite", "--resume"), add=("--resume",)) from None
        # Nothing of this run is there: an output or a journal would be of an earlier one.
        raise Interrupted from None


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
        there = list(_READERS[output.suffix](output))
        names = Counter(_utf8(record["path"]) for record in there)
        errors = [str(record["error"]) for record in there if record["error"]]
        good = [record for record in there if not record["error"]]
        # A model with fewer classes names all that it has.
        kinds = {max(top or 0, r["top"]) if r.get("all") else r["top"] for r in good}
    except Exception as error:  # whatever a file of something else may make a reader raise
        raise ValueError(
            f"{printable(output)} is there, and was not written by `van predict`; to replace it: "
            "--overwrite"
        ) from error
    wanted = Counter(_utf8(name_of(source)) for source in inputs)
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


def _run(
    request: PredictRequest,
    inputs: list[str | bytes],
    journal: Journal | None,
    console: Console,
) -> int:
    """Classifies; how many failed."""
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
    to_do = inputs if journal is None else journal.begin(about, inputs)
    done = len(inputs) - len(to_do)
    if done:
        say(console, f"{done:,} of {len(inputs):,} were there; going on")

    started = time.monotonic()
    failed: list[str] = []
    shown: list[dict[str, Any]] = []
    as_table = journal is None and sys.stdout.isatty() and len(inputs) <= _MOST_IN_TABLE
    # On the same screen the lines themselves show the progress.
    lines_on_screen = journal is None and sys.stdout.isatty() and not as_table
    with pictures_bar(Console(quiet=True) if lines_on_screen else console) as bar:
        task = bar.add_task(classifier.name, total=len(inputs), completed=done, rate="")
        for result in classifier.stream(to_do, features=features):
            record = to_record(classifier, result, top, features)
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
        say(console, f"{journal.output}: {len(inputs):,} records")
    if shown:
        results().print(table_of(shown))
    if failed:
        say_failures(console, f"{len(failed):,} of {len(inputs):,} failed", failed)
    return len(failed)


def name_of(source: str | bytes) -> str:
    """What records call a picture: its path, or "-" where it came on the standard input."""
    return "-" if isinstance(source, bytes) else os.fsdecode(source)


def to_record(classifier: Classifier, result: Result, top: int, features: bool) -> dict[str, Any]:
    """What is written for one picture."""
    record: dict[str, Any] = {"path": name_of(result.source), "error": result.error}
    if features:
        record["features"] = None if result.output is None else result.output.tolist()
    else:
        ranked = [] if result.output is None else classifier.ranked(result.output, top)
        record["predictions"] = [
            {"label": p.label, "wnid": p.wnid, "index": p.index, "probability": p.probability}
            for p in ranked
        ]
    return record


class Journal:
    """The records of a run, line by line, until the output is made of them in one step.

    Args:
        output: The file to make in the end.
        resume: Accept an unfinished journal.
        overwrite: Begin anew, whatever is there; the old output stays until the new one is whole.

    Attributes:
        finished: With `resume`: the output is there and whole.

    Raises:
        FileExistsError: The output is there, or another run is writing it.
    """

    def __init__(self, output: Path, resume: bool, overwrite: bool = False):
        self.output = output
        self.lock = FileLock(output.with_name(f".{output.name}.lock"))
        try:
            self.lock.acquire(timeout=0)
        except Timeout:
            raise FileExistsError(f"another run is writing {output}") from None
        try:
            self._check(output, resume, overwrite)
        except BaseException:
            self.close()
            raise

    def _check(self, output: Path, resume: bool, overwrite: bool) -> None:
        self.path = output.with_name(f"{output.name}.partial")
        self.resume = resume
        self.errors_before: list[str] = []
        begun = self.path.exists()
        self.finished = resume and output.exists() and not begun
        check_place_for_file(output)
        if self.finished:
            return
        self.overwrite = overwrite
        if overwrite:
            return
        if begun and not resume:
            raise FileExistsError(
                f"{self.path} is of an unfinished run: go on with --resume, or begin anew with "
                "--overwrite"
            )
        if begun:
            return  # what is there it may replace, or has begun to
        for path in [output, rows_beside(output)] if output.suffix == ".npy" else [output]:
            if path.exists():
                raise FileExistsError(f"{path} is already there; to replace it: --overwrite")

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets other runs at the output; the journal stays unless the run was finished."""
        if not self.file.closed:
            self.file.close()
        Path(self.lock.lock_file).unlink(missing_ok=True)
        self.lock.release()

    file: TextIO = io.StringIO()  # until `begin`

    @property
    def begun(self) -> bool:
        """Whether this run writes its records down."""
        return self.file is not Journal.file

    def begin(self, about: dict[str, Any], inputs: list[str | bytes]) -> list[str | bytes]:
        """The inputs that have no record yet."""
        done: Counter[str] = Counter()
        if self.overwrite:
            self.path.unlink(missing_ok=True)
        if self.path.exists():
            with self.path.open("rb+") as file:
                good = 0
                for line in file:
                    record = _parsed(line)
                    if record is None:
                        break  # the line at which the run was killed
                    if good == 0:
                        self._check_same(record, about)
                    else:
                        done[record["path"]] += 1
                        if record["error"]:
                            self.errors_before.append(record["error"])
                    good += len(line)
                file.truncate(good)
        self.file = self.path.open("a", encoding="utf-8")
        if not self.path.stat().st_size:
            self.add(about)
        to_do = []
        for source in inputs:
            if done[name_of(source)]:
                done[name_of(source)] -= 1
            else:
                to_do.append(source)
        if others := +done:
            self.file.close()
            raise ValueError(
                f"{self.path} has records of {others.total():,} pictures that are not among the "
                f"inputs, such as {printable(next(iter(others)))}: resume with the same inputs"
            )
        return to_do

    def _check_same(self, before: Any, now: dict[str, Any]) -> None:
        before = before if isinstance(before, dict) else {}
        before = {"precision": "float32", **before}  # journals did not always say it
        changed = [key for key in now if before.get(key) != now[key]]
        if changed:
            raise ValueError(
                f"{self.path} was begun with other settings: "
                + ", ".join(f"{key}={before.get(key)!r} (now {now[key]!r})" for key in changed)
            )

    def add(self, record: dict[str, Any]) -> None:
        self.file.write(to_json(record) + "\n")
        self.file.flush()

    def finish(self, top: int, features: bool) -> None:
        """Makes the output and removes the journal."""
        self.file.close()

        def write(part: Path) -> None:
            _WRITERS[self.output.suffix](part, self._records, top, features)
            if self.output.suffix == ".npy":
                write_atomically(rows_beside(self.output), self._write_rows)

        write_atomically(self.output, write)
        self.path.unlink()

    def _write_rows(self, path: Path) -> None:
        with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "error"])
            writer.writerows((record["path"], record["error"]) for record in self._records())

    def _records(self) -> Iterator[dict[str, Any]]:
        with self.path.open("rb") as file:
            next(file)
            for line in file:
                yield json.loads(line)


def _parsed(line: bytes) -> dict[str, Any] | None:
    if not line.endswith(b"\n"):
        return None
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _write_csv(path: Path, records: Any, top: int, features: bool) -> None:
    keys = ("label", "wnid", "index", "probability")
    columns = ["path", "error", *(f"{key}_{i}" for i in range(1, top + 1) for key in keys)]
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(columns)
        for record in records():
            cells = [one[key] for one in record["predictions"] for key in keys]
            cells += [None] * (len(columns) - 2 - len(cells))
            writer.writerow([record["path"], record["error"], *cells])


def _write_jsonl(path: Path, records: Any, top: int, features: bool) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.writelines(to_json(record) + "\n" for record in records())


def _write_parquet(path: Path, records: Any, top: int, features: bool) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    classes = pa.struct(
        [
            ("label", pa.string()),
            ("wnid", pa.string()),
            ("index", pa.int32()),
            ("probability", pa.float64()),
        ]
    )
    column = ("features", pa.float32()) if features else ("predictions", classes)
    schema = pa.schema(
        [("path", pa.string()), ("error", pa.string()), (column[0], pa.list_(column[1]))]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for rows in _chunks(records(), 1000):
            for row in rows:
                row["path"] = _utf8(row["path"])
            writer.write_table(pa.Table.from_pylist(rows, schema))


def _write_npy(path: Path, records: Any, top: int, features: bool) -> None:
    """(N, C) float32, a row of NaN for a failure; the paths go into a table beside it."""
    rows = [record["features"] for record in records()]
    channels = next((len(found) for found in rows if found is not None), 0)
    array: np.ndarray = np.full((len(rows), channels), np.nan, np.float32)
    for row, found in zip(array, rows, strict=True):
        if found is not None:
            row[:] = found
    np.save(path, array)


def rows_beside(output: Path) -> Path:
    """The table of paths and errors, row by row, that stands beside an array of features."""
    return output.with_name(f"{output.name}.csv")


def _read_csv(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file, strict=True)
        columns = reader.fieldnames or ()
        if list(columns[:2]) != ["path", "error"]:
            raise ValueError("the columns are others")
        top = sum(name.startswith("label_") for name in columns)
        for row in reader:
            yield {"path": row["path"], "error": row["error"], "top": top}


def _read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            record = json.loads(line)
            yield {**record, **_named(record["predictions"])}


def _read_parquet(path: Path) -> Iterator[dict[str, Any]]:
    from pyarrow import parquet

    file = parquet.ParquetFile(path)
    column = "features" if "features" in file.schema_arrow.names else "predictions"
    for batch in file.iter_batches(columns=["path", "error", column]):
        for record in batch.to_pylist():
            named = {"top": None} if column == "features" else _named(record[column] or ())
            yield {**record, **named}


def _read_npy(path: Path) -> Iterator[dict[str, Any]]:
    rows = np.load(path, mmap_mode="r", allow_pickle=False).shape[0]
    there = list(_read_csv(rows_beside(path)))
    if len(there) != rows:
        raise ValueError(f"{rows_beside(path)} is of another array")
    for row in there:
        yield {**row, "top": None}


def _named(predictions: Sequence[dict[str, Any]]) -> dict[str, Any]:
    indices = {one["index"] for one in predictions}
    return {"top": len(predictions), "all": indices == set(range(len(predictions)))}


# Each record's path and error, and how many classes it names ("all" there are?); None: features.
_READERS = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".npy": _read_npy,
}

_WRITERS = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    ".npy": _write_npy,
}


def _chunks(records: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk = []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def _utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


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
