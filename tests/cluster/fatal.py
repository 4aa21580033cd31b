"""Workers that die of pictures, by name: what a decoder or a runtime of others may do."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from van_classification_tensorflow.cluster.actor import Worker


class DiesOfPoison(Worker):
    """Killed by each picture whose name says poison; leaves its number beside, for the test."""

    def work(self, items, left_out):
        for place, item in enumerate(items):
            if place not in left_out and "poison" in os.path.basename(item):
                Path(f"{item}.{os.getpid()}.{len(items)}.died").touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().work(items, left_out)
