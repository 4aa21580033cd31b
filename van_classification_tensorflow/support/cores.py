"""How many cores this process may use."""

from __future__ import annotations

import os


def cores() -> int:
    """Of the process's affinity, where the system has such a thing; at least 1."""
    mine = hasattr(os, "sched_getaffinity") and len(os.sched_getaffinity(0))
    return mine or os.cpu_count() or 1
