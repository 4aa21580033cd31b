"""Decoded pictures through an engine, results in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.of_weights import GraphEngine
from ..engines.protocol import Engine
from ..support.text import reason

Pairs = Iterable[tuple[Any, np.ndarray | Exception]]
"""(source, its views as the model takes them, or why there are none)."""


@dataclass(frozen=True)
class Result:
    """What became of one input: logits (or features), or the reason why not.

    Args:
        source: What was given.
        output: Logits (outputs,), or features (C,), float32, averaged over the views; None where
            there was an error. Of an exported file that gives probabilities: logits of the same
            probabilities.
        error: Why there is no output.
    """

    source: Any
    output: np.ndarray | None
    error: str | None = None


def raising(pairs: Pairs) -> Iterator[tuple[Any, np.ndarray | Exception]]:
    """Raises the first error among them."""
    for source, views in pairs:
        if isinstance(views, Exception):
            raise views
        yield source, views


def flowing(engine: GraphEngine, pairs: Pairs, features: bool) -> Iterator[Result]:
    """Each picture in a thread of the engine's as soon as it is decoded: no core waits."""
    waiting: deque[tuple[Any, Future[np.ndarray] | Exception]] = deque()

    def first() -> Result:
        source, found = waiting.popleft()
        if isinstance(found, Exception):
            return Result(source, None, reason(found))
        return Result(source, found.result().mean(axis=0))

    def is_there() -> bool:
        found = waiting[0][1]
        return isinstance(found, Exception) or found.done()

    try:
        for source, views in pairs:
            if isinstance(views, Exception):
                waiting.append((source, views))
            else:
                waiting.append((source, engine.submit(views, features)))
            while waiting and (is_there() or len(waiting) > 2 * engine.runner.threads):
                yield first()
        while waiting:
            yield first()
    finally:
        for _, found in waiting:
            if isinstance(found, Future):
                found.cancel()


def in_batches(
    engine: Engine,
    pairs: Pairs,
    size: int,
    features: bool,
    finish: Callable[[np.ndarray], np.ndarray],
    watch: Callable[[np.ndarray, int], None] | None,
    before: int = 0,
) -> Iterator[Result]:
    """So many pictures at a time; `finish` is given what the engine gives, `watch` its inputs.

    Of the first batch `before` pictures are done: batches begin at multiples of `size`, so that
    results do not depend on which of the pictures cannot be read, nor on who has which batches.
    """

    def run(batch: list[tuple[Any, np.ndarray | Exception]]) -> Iterator[Result]:
        good = [views for _, views in batch if isinstance(views, np.ndarray)]
        outputs: Iterator[np.ndarray] = iter(())
        if good:
            inputs = np.concatenate(good)
            if watch is not None:
                watch(inputs, len(good))
            flat = finish(engine(inputs, features))
            outputs = iter(flat.reshape(len(good), -1, flat.shape[-1]).mean(axis=1))
        for source, views in batch:
            if isinstance(views, Exception):
                yield Result(source, None, reason(views))
            else:
                yield Result(source, next(outputs))

    batch: list[tuple[Any, np.ndarray | Exception]] = []
    for pair in pairs:
        batch.append(pair)
        if before + len(batch) == size:
            yield from run(batch)
            batch, before = [], 0
    yield from run(batch)
