"""`van predict --cluster`: the processes of a cluster decode and classify, this one writes."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any, TextIO

from rich.console import Console

from ..engines.choice import Chosen
from ..images.find import name_of
from ..inference import predict
from ..inference.classifier import Classifier
from ..inference.flow import Result
from ..inference.records import to_record
from ..inference.request import PredictRequest
from ..support.console import messages
from .actor import Worker
from .classify import Workers, check_seen


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

    def begin(self, classifier: Classifier, chosen: Chosen, inputs: list[Any]) -> dict[str, Any]:
        request = self.request
        shape = partial(_record, request.classes, request.features)
        count = len(inputs)
        self.open(classifier, chosen, inputs, shape, count=count, features=request.features)
        return {"engine": chosen.name, "block": classifier.pictures_at_once}

    def records(self, to_do: list[Any], count: int) -> Iterator[dict[str, Any]]:
        for path, record in self.results(to_do, name_of):
            check_seen(path, record["error"])
            yield record


def _record(top: int, features: bool, classifier: Classifier, result: Result) -> dict[str, Any]:
    return to_record(classifier, result, top, features)
