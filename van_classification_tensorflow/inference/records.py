"""The record of each picture, and the files that hold records: written, and read again."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..images.find import name_of
from ..support.console import to_json
from ..support.files import write_atomically
from .classifier import Classifier
from .flow import Result


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
                row["path"] = as_utf8(row["path"])
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
    """Of a file, or of a folder of them."""
    for one in sorted(path.glob("*.parquet")) if path.is_dir() else [path]:
        yield from _read_parquet_file(one)


def _read_parquet_file(path: Path) -> Iterator[dict[str, Any]]:
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
READERS = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".parquet": _read_parquet,
    ".npy": _read_npy,
}

WRITERS = {
    ".csv": _write_csv,
    ".jsonl": _write_jsonl,
    ".parquet": _write_parquet,
    ".npy": _write_npy,
}


def write_output(
    output: Path,
    records: Callable[[], Iterable[dict[str, Any]]],
    top: int,
    features: bool,
    *,
    shared: bool = False,
) -> None:
    """Makes or replaces an output, whole or not at all, and what stands beside it.

    Args:
        output: Its ending says how it is written.
        records: Gives the records from the first on, each time that it is called.
        top: How many classes a record names at most.
        features: Whether they hold features instead.
        shared: As of `support.files.write_atomically`.
    """

    def write(new: Path) -> None:
        WRITERS[output.suffix](new, records, top, features)
        if output.suffix == ".npy":
            write_atomically(rows_beside(output), write_rows)

    def write_rows(new: Path) -> None:
        with new.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "error"])
            writer.writerows((record["path"], record["error"]) for record in records())

    write_atomically(output, write, shared=shared)


def _chunks(records: Iterable[Any], size: int) -> Iterator[list[Any]]:
    chunk = []
    for record in records:
        chunk.append(record)
        if len(chunk) == size:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


def as_utf8(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()
