"""`van evaluate --cluster`: the processes of a cluster give logits, this one measures.

The logits come in the order of the pictures, and go through the same sums: every figure is, to the
last bit, that of one process. To score them takes this process some 50 microseconds a picture of
1,000 classes, and 4 kB on the way.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, islice
from typing import Any

import numpy as np
from rich.console import Console

from ..datasets.labelled import Dataset
from ..engines.choice import Chosen
from ..evaluate import evaluate
from ..evaluate.request import EvaluateRequest
from ..inference.classifier import Classifier
from ..inference.flow import Result
from ..support.console import messages
from .actor import Worker
from .classify import Workers, check_seen

_LOOKED_AT = 1000  # of the first pictures some are looked for on every node


def run(
    request: EvaluateRequest, console: Console | None = None, worker: type[Worker] = Worker
) -> int:
    """As `evaluate.evaluate.run`, on the cluster of the request.

    Raises:
        ValueError: As of `evaluate`; or a node does not see the pictures or the weights.
        ModuleNotFoundError: Ray is not installed; says what installs it.
        ConnectionError: There is no such cluster, or no room in it.
    """
    return evaluate.run(request, console, _OnCluster(request, worker))


class _OnCluster(Workers):
    """As `evaluate.evaluate.Doer`."""

    def __init__(self, request: EvaluateRequest, worker: type[Worker]):
        super().__init__(request.classifier, request.where, messages(), worker)

    def begin(self, classifier: Classifier, chosen: Chosen, dataset: Dataset) -> Dataset:
        examples = iter(dataset.examples)
        first = list(islice(examples, _LOOKED_AT))
        sources = [example.source for example in first]
        self.open(classifier, chosen, sources, _outcome, count=dataset.count)
        return replace(dataset, examples=chain(first, examples))

    def stream(self, sources: Iterator[Any]) -> Iterator[Result]:
        for source, (output, error) in self.results(sources, _name):
            check_seen(source, error)
            yield Result(source, output, error)


def _outcome(_: Classifier, result: Result) -> tuple[np.ndarray | None, str | None]:
    return result.output, result.error


def _name(source: Any) -> str:
    return source if isinstance(source, str) else "picture"
