"""Pictures through the processes of a cluster, results in the order of the pictures."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from itertools import islice
from typing import Any

from rich.console import Console

from ..engines.choice import Chosen
from ..inference.classifier import Classifier
from ..inference.flow import Result
from ..inference.parts import content_of
from ..inference.request import ClassifierOptions
from ..support.cluster import ClusterOptions
from ..support.console import say
from ..support.text import printable
from ..weights.pretrained import files_of_weights
from .actor import Task, Worker, actor_maker, error_of, is_gone, some_files, unseen
from .connect import connected, cpus, on_every_node
from .pool import Pool

_BLOCK = 128  # pictures that are sent at once, about: few enough to be lost with a process


class Workers:
    """The processes of a cluster, for `inference.predict` and `evaluate`; used once, in a `with`.

    Args:
        options: What classifies.
        where: The cluster.
        console: Where to report.
        worker: The class of the processes.

    Raises:
        ValueError: A model in memory, which they do not have.
        ModuleNotFoundError: Ray is not installed; says what installs it.
        ConnectionError: There is no such cluster.
    """

    def __init__(
        self,
        options: ClassifierOptions,
        where: ClusterOptions,
        console: Console,
        worker: type[Worker] = Worker,
    ):
        if not isinstance(options.weights, (str, os.PathLike)):
            raise ValueError(
                "`weights` must be a name or a path on a cluster: a model in memory is in this "
                "process only; save it first"
            )
        self.options, self.where, self.console, self.worker = options, where, console, worker
        assert where.cluster is not None  # noqa: S101 - the command is only then done here
        self._connection: AbstractContextManager[Any] = connected(where.cluster, console)

    def __enter__(self) -> Workers:
        self.ray = self._connection.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._connection.__exit__(*error)

    def open(
        self,
        classifier: Classifier,
        chosen: Chosen,
        inputs: Sequence[Any],
        shape: Callable[[Classifier, Result], Any],
        *,
        count: int,
        features: bool = False,
    ) -> None:
        """Starts them; they have the weights, and see the pictures, when this returns.

        Args:
            classifier: That of this process.
            chosen: What runs it, and is to run it there.
            inputs: Pictures, of which some are looked for on every node.
            shape: Makes of a result what `results` gives; must be found by its name.
            count: How many pictures there will be.
            features: Whether these are asked for.

        Raises:
            ValueError: A node does not see the files, has other weights or cannot run them.
            ConnectionError: There is no room for them.
        """
        ray, options = self.ray, dict(vars(self.options))
        backend = None
        if classifier.runtime is None:
            options["engine"] = chosen.name
        if chosen.name == "keras":
            import keras

            backend = keras.backend.backend()
        weights = files_of_weights(os.fspath(self.options.weights))
        files = some_files(inputs) | some_files(weights)
        folder = os.getcwd()
        for name, problem in on_every_node(ray, unseen, folder, files):
            if problem is not None:
                raise ValueError(f"node {name} {problem}")
        task = Task(
            options,
            shape,
            features,
            count,
            content_of(classifier, self.options.weights),
            chosen.calibration,
            folder,
            files,
            backend,
        )
        # Only Keras has a use for a GPU; without one asked for, Ray hides them.
        gpus = int(ray.cluster_resources().get("GPU", 0)) if chosen.name == "keras" else 0
        least, most = self.where.workers or (1, gpus or cpus(ray))
        batches = -(-count // classifier.pictures_at_once)
        least, most = min(least, batches), min(most, batches)
        if self.where.workers is None:
            least = 1
        elif least > cpus(ray):
            say(
                self.console,
                f"The cluster has {cpus(ray):,} CPUs now, and {least:,} processes are asked for: "
                "waiting for more nodes",
            )
        self.classifier, self.shape, self.count = classifier, shape, count
        self.size = classifier.pictures_at_once  # of a block
        # Whole batches; and some blocks for each process, however few pictures there are.
        share = count // (4 * most * self.size)
        self.size *= max(min(share, _BLOCK // self.size), 1)
        make = actor_maker(ray, self.worker, task, gpus=1 if gpus else 0)
        started = time.monotonic()
        self.pool = Pool(ray, make, least, most)
        self.pool.ready()
        spent = time.monotonic() - started
        of = f"up to {most:,}" if least < most else f"{most:,}"
        say(
            self.console,
            f"Work shared by {of} processes, {spent:.0f} s to start",
        )

    def results(
        self, images: Iterable[Any], name: Callable[[Any], str]
    ) -> Iterator[tuple[Any, Any]]:
        """(picture, what `shape` makes of its result) of each, in order.

        Args:
            images: As of `Classifier.stream`, from the beginning of a batch on.
            name: What errors call a picture.
        """
        for items, results in self.blocks(images):
            for item, result in zip(items, results, strict=True):
                if result is None:
                    result = self.shape(self.classifier, error_of(item, name(item)))
                yield item, result

    def blocks(self, items: Iterable[Any]) -> Iterator[tuple[list[Any], list[Any]]]:
        """(some of the items, what the workers gave for them), in order."""
        rest = iter(items)
        return self.pool.run(iter(lambda: list(islice(rest, self.size)), []))


def check_seen(path: Any, error: str | None) -> None:
    """Raises `ValueError` where a picture that is here was not there when a node looked for it."""
    if is_gone(error) and isinstance(path, str) and os.path.exists(path):
        raise ValueError(
            f"{printable(path)} is here, and a node of the cluster does not see it: pictures must "
            "be on storage that all nodes mount; then go on with --resume"
        )
