"""How Ray Train starts a group of workers: each is told where all of them are.

Imports Ray, and is itself imported only where there is a connection to a cluster.
"""

from __future__ import annotations

import json
import os
import socket
from dataclasses import dataclass, field

import ray
import ray._private.worker
from ray.train.backend import Backend, BackendConfig

ADDRESSES = "VAN_WORKERS"  # JSON: the addresses of all, in the order of their ranks


@dataclass
class GroupConfig(BackendConfig):
    """What the processes of a group need.

    Args:
        environment: Variables of theirs; of the command's own none reach other nodes.
    """

    environment: dict[str, str] = field(default_factory=dict)

    @property
    def backend_cls(self) -> type[Backend]:
        return GroupBackend


class GroupBackend(Backend):
    """Asks each process for an address, then tells them all."""

    def on_start(self, worker_group, backend_config) -> None:
        addresses = worker_group.execute(_free_address)
        told = {**backend_config.environment, ADDRESSES: json.dumps(addresses)}
        worker_group.execute(_set, told)


def _free_address() -> str:
    """Where the others reach this process: its node, and a port that nobody uses."""
    host = ray._private.worker.global_worker.node_ip_address
    with socket.socket() as asked:
        asked.bind((host, 0))
        return f"{host}:{asked.getsockname()[1]}"


def _set(variables: dict[str, str]) -> None:
    os.environ.update(variables)
