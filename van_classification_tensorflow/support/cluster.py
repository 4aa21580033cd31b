"""Which cluster a command runs on: the options that all of them share."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .options import option
from .text import shown

LOCAL = "local"
_ADDRESS = re.compile(r"(?P<host>[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]):(?P<port>\d{1,5})")


@dataclass(frozen=True, kw_only=True)
class ClusterOptions:
    """Where the work is done; by default in this process, without Ray.

    Args:
        cluster: "HOST:PORT" of the head of a Ray cluster, or "local": one that is made on this
            machine for the command alone, on loopback. Never found by itself: whoever is connected
            to runs code here.
        cluster_workers: "N" processes that share the work, or "MIN:MAX" as the cluster has room;
            None: for the command to say.

    Raises:
        ValueError: An argument is not allowed, or does not go with another.
    """

    cluster: str | None = option(
        "run on a Ray cluster (extra `cluster`): HOST:PORT of its head, or local for one on this "
        "machine",
        None,
        metavar="ADDRESS",
    )
    cluster_workers: str | None = option(
        "processes on the cluster that share the work: N, or MIN:MAX as there is room",
        None,
        metavar="N",
    )

    def __post_init__(self) -> None:
        if self.cluster is None:
            if self.cluster_workers is not None:
                raise ValueError("`cluster_workers` are of a `cluster`, which is not named")
            return
        found = isinstance(self.cluster, str) and _ADDRESS.fullmatch(self.cluster)
        if self.cluster != LOCAL and not (found and 0 < int(found["port"]) < 65536):
            raise ValueError(
                "`cluster` must be HOST:PORT of the head of a Ray cluster (`ray start --head` "
                "prints it; the port is 6379 by default), or 'local'. "
                f"Received: cluster={shown(self.cluster)}"
            )
        _ = self.workers

    @property
    def workers(self) -> tuple[int, int] | None:
        """Least and largest number of processes; None: for the command to say.

        Raises:
            ValueError: `cluster_workers` says neither.
        """
        if self.cluster_workers is None:
            return None
        found = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", str(self.cluster_workers))
        if found:
            least, most = int(found[1]), int(found[2] or found[1])
            if 0 < least <= most:
                return least, most
        raise ValueError(
            "`cluster_workers` must be a number of processes, such as 4, or the least and the "
            f"largest, such as 2:8. Received: cluster_workers={shown(self.cluster_workers)}"
        )
