"""`van predict --cluster`: the processes of a cluster decode and classify, this one writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from ..engines.choice import Chosen
from ..images.find import name_of
from ..inference import predict
from ..inference.classifier import Classifier
from ..inference.flow import Result
from ..inference.journal import Journal
from ..inference.records import to_record
from ..inference.request import PredictRequest
from ..support.console import messages, say
from .actor import Worker
from .classify import Workers, check_seen
from .parquet_folder import Folder, FolderJournal, into_folder


def run(
    request: PredictRequest,
    stdin: TextIO | None = None,
    console: Console | None = None,
    worker: type[Worker] = Worker,
) -> int:
    """As `inference.predict.run`, on the cluster of the request.

    The paths are in the memory of this process, some 150 bytes each, as they are without a cluster:
    10^8 of them take 15 GB, and are better given as several runs. Of the results there is no more
    than four blocks a process.

    Raises:
        ValueError: As of `run`; or a node does not see the pictures or the weights.
        ModuleNotFoundError: Ray is not installed; says what installs it.
        ConnectionError: There is no such cluster, or no room in it.
    """
    console = console or messages()
    return predict.run(request, stdin, console, _OnCluster(request, console, worker))


class _OnCluster(Workers):
    """As `inference.predict.Here`."""

    def __init__(self, request: PredictRequest, console: Console, worker: type[Worker]):
        super().__init__(request.classifier, request.where, console, worker)
        self.request = request
        self.folder: FolderJournal | None = None

    def journal(self, output: Path) -> Journal:
        request, rows = self.request, self.request.rows_per_file
        if rows is None:
            return predict.journal_of(request, output)
        self.folder = FolderJournal(output, rows, request.resume, request.overwrite)
        return self.folder

    def begin(self, classifier: Classifier, chosen: Chosen, inputs: list[Any]) -> dict[str, Any]:
        request = self.request
        shape = partial(_record, request.classes, request.features)
        count, block = len(inputs), classifier.pictures_at_once
        if self.folder is not None:
            asked = self.folder.rows
            self.folder.rows = block * -(-asked // block)  # whole batches
            if self.folder.rows != asked:
                rows, batches = self.folder.rows, f"batches of {block:,}"
                say(self.console, f"{rows:,} rows a file, not {asked:,}: they are whole {batches}")
            path = str(self.folder.path.absolute())
            self.place = Folder(path, request.classes, request.features)
            self.worker = into_folder(self.worker, self.place)
        self.open(classifier, chosen, inputs, shape, count=count, features=request.features)
        return {"engine": chosen.name, "block": block}

    def records(self, to_do: list[Any], count: int) -> Iterator[dict[str, Any]]:
        if self.folder is not None:
            yield from self._into(self.folder, to_do)
            return
        for path, record in self.results(to_do, name_of):
            check_seen(path, record["error"])
            yield record

    def _into(self, folder: FolderJournal, to_do: list[Any]) -> Iterator[dict[str, Any]]:
        """Path and error of each; the workers write the rest of the records, and the files."""
        self.size = folder.rows
        numbered = ((folder.to_do[at // folder.rows], path) for at, path in enumerate(to_do))
        for items, results in self.blocks(numbered):
            killed = partial(self.place.record_of_killer, self.classifier)
            if any(isinstance(one, dict) for one in results) or len(items) == 1:
                # They went one by one at last, or one is not there: the file is not written yet.
                records = [
                    killed(path) if one is None else one
                    for (_, path), one in zip(items, results, strict=True)
                ]
                for (_, path), record in zip(items, records, strict=True):
                    check_seen(path, record["error"])
                self.place.write(items[0][0], records)
                results = [(one["error"],) for one in records]
            for (_, path), one in zip(items, results, strict=True):
                yield {"path": path, "error": killed(path)["error"] if one is None else one[0]}


def _record(top: int, features: bool, classifier: Classifier, result: Result) -> dict[str, Any]:
    return to_record(classifier, result, top, features)
