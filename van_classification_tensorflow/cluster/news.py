"""What the processes of a cluster tell the command that started them, and it tells them."""

from __future__ import annotations

import io
from typing import Any


class News:
    """Kept on the command's own machine, by an actor of which all processes have a handle."""

    def __init__(self) -> None:
        self._items: list[tuple[str, Any]] = []
        self._stop = False

    def tell(self, kind: str, what: Any) -> None:
        """Adds what the command is to know."""
        self._items.append((kind, what))

    def take(self) -> list[tuple[str, Any]]:
        """What has been told since the last time, in its order."""
        taken, self._items = self._items, []
        return taken

    def ask_to_stop(self) -> None:
        """Makes `stops` true."""
        self._stop = True

    def stops(self) -> bool:
        """Whether the command wants the work to be stopped."""
        return self._stop


def news_here(ray: Any) -> Any:
    """A `News` on the machine of the caller, which takes no CPU of the cluster."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At

    here = At(ray.get_runtime_context().get_node_id(), soft=False)
    return ray.remote(News).options(num_cpus=0, scheduling_strategy=here).remote()


class Told(io.TextIOBase):
    """A text file that goes to a `News`, line by line.

    Args:
        news: Handle of the actor.
        kind: Of what is told.
    """

    def __init__(self, news: Any, kind: str):
        super().__init__()
        self.news, self.kind, self._rest = news, kind, ""

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        lines = (self._rest + text).split("\n")
        self._rest = lines.pop()
        if lines:
            self.news.tell.remote(self.kind, "\n".join(lines))
        return len(text)
