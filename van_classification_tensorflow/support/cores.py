"""How many cores this process may use, and NumPy on one of them."""

from __future__ import annotations

import math
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_most = sys.maxsize
_LIMIT = Path("/sys/fs/cgroup/cpu.max")  # of a container: microseconds of CPU, and in how many


def cores() -> int:
    """Of the process's affinity and of the limits there are, the container's too; at least 1.

    More threads than the limit has cores would be stopped in turn, each while others wait for it.
    """
    mine = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
    return min(mine or os.cpu_count() or 1, _of_container(), _most)


def use_at_most(count: int) -> None:
    """From now on `cores` counts no more than so many: others on this machine have the rest."""
    global _most
    _most = count


def _of_container() -> int:
    try:
        allowed, period = map(int, _LIMIT.read_text("ascii").split())
        return max(1, math.ceil(allowed / period))
    except (OSError, ValueError, ZeroDivisionError):  # none, or "max"
        return sys.maxsize


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
