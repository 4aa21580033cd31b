"""How many cores this process may use, and NumPy on one of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def cores() -> int:
    """Of the process's affinity, where the system has such a thing; at least 1."""
    mine = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
    return mine or os.cpu_count() or 1


class _OneThread:
    """Who is inside `numpy_on_one_thread`: the limit is the process's, so the first sets it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.inside = 0
        self.limits: Any = None


_one_thread = _OneThread()


@contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """Inside, NumPy's products take one thread; several threads may be inside at once.

    Its threads wait for each other by spinning: where other work has the cores, a product takes up
    to twenty times as long on two threads as on one, and elsewhere as long.
    """
    from threadpoolctl import threadpool_limits

    state = _one_thread
    with state.lock:
        if not state.inside:
            state.limits = threadpool_limits(1, user_api="blas")
        state.inside += 1
    try:
        yield
    finally:
        with state.lock:
            state.inside -= 1
            if not state.inside:
                state.limits.restore_original_limits()
