"""How many cores this process may use, and NumPy on one of them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager


def cores() -> int:
    """Of the process's affinity, where the system has such a thing; at least 1."""
    mine = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
    return mine or os.cpu_count() or 1


_turn = threading.Lock()


@contextmanager
def numpy_on_one_thread() -> Iterator[None]:
    """Inside, NumPy's products take one thread; who comes meanwhile waits.

    Its threads wait for each other by spinning: where other work has the cores, a product takes up
    to twenty times as long on two threads as on one, and elsewhere as long. The limit is that of
    the process: of two who set and restore it in turn, the later one would restore the other's.
    """
    from threadpoolctl import threadpool_limits

    with _turn, threadpool_limits(1, user_api="blas"):
        yield
