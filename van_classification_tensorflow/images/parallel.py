"""Pictures decoded by several threads, in their order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from ..support.cores import cores
from ..support.text import printable
from .decode import ImageError


def decoded(
    sources: Iterable[Any],
    decode: Any,
    workers: int | None = None,
    ahead: int = 64,
) -> Generator[tuple[Any, np.ndarray | Exception]]:
    """(source, what `decode` gives for it or the error it raises), in the order of the sources.

    Pillow decodes and resizes outside Python's lock, so threads use every core.

    Args:
        sources: Read only as far ahead as needed.
        decode: Called with each source.
        workers: Threads; by default one for each core.
        ahead: How many may be decoded and not yet taken.
    """
    waiting: deque[tuple[Any, Future]] = deque()

    def outcome(source: Any, future: Future) -> tuple[Any, Any]:
        try:
            return source, future.result()
        except (ImageError, OSError) as error:
            return source, error
        except (ValueError, MemoryError) as error:  # of what `decode` does with the picture
            why = "too large for the memory" if isinstance(error, MemoryError) else str(error)
            named = isinstance(source, (str, os.PathLike))
            return source, ImageError(f"{printable(source)}: {why}" if named else why)

    pool = ThreadPoolExecutor(workers or cores(), thread_name_prefix="decode")
    try:
        for source in sources:
            waiting.append((source, pool.submit(decode, source)))
            if len(waiting) >= ahead:
                yield outcome(*waiting.popleft())
        while waiting:
            yield outcome(*waiting.popleft())
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
