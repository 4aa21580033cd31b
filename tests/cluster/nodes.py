"""A Ray cluster of a few nodes on this machine, all of it on loopback."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from tests.train.one_worker import free_ports

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_TRAIN_V2_ENABLED": "1",
    "RAY_enable_metrics_collection": "0",
    "RAY_raylet_start_wait_time_s": "180",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_failure_threshold": "5",
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5",
}

OTHERS = ("RAY_TMPDIR", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER")


def node(**more):
    """Options of a node. With ports for all its agents it does not wait for these."""
    names = (
        "metrics_agent_port",
        "metrics_export_port",
        "dashboard_agent_listen_port",
        "runtime_env_agent_port",
    )
    ports = dict(zip(names, map(int, free_ports(4)), strict=True))
    return {"object_store_memory": 80_000_000, "node_ip_address": "127.0.0.1", **ports, **more}


class Nodes:
    """The cluster: a head without CPUs, and nodes that can be killed and added."""

    def __init__(self, count: int):
        from ray.cluster_utils import Cluster

        head = node(num_cpus=0, include_dashboard=False)
        self.cluster = Cluster(initialize_head=True, head_node_args=head)
        self.address = self.cluster.address
        self.nodes = [self.cluster.add_node(wait=False, **node(num_cpus=2)) for _ in range(count)]
        self.cluster.wait_for_nodes(180)

    def add(self) -> None:
        """One node more."""
        self.nodes.append(self.cluster.add_node(wait=False, **node(num_cpus=2)))
        self.cluster.wait_for_nodes(180)

    def kill(self, index: int = -1) -> None:
        """Takes a node away as a power cut does: none of its processes says goodbye."""
        self.cluster.remove_node(self.nodes.pop(index), allow_graceful=False)


@contextmanager
def started(count: int = 2) -> Iterator[Nodes]:
    """So many nodes of two CPUs each beside the head, and the environment that they need."""
    before = {name: os.environ.get(name) for name in [*ENVIRONMENT, *OTHERS]}
    folder = tempfile.mkdtemp(prefix="r", dir="/tmp")  # paths of sockets must be short
    os.environ.update(ENVIRONMENT, RAY_TMPDIR=folder)
    import ray
    import ray._private.utils

    from van_classification_tensorflow.cluster.connect import stay_on_loopback

    stay_on_loopback(ray)
    # The agents of the nodes do without their modules: so they start at once.
    without = ImportError("not needed in tests")
    ray._private.utils.get_dashboard_dependency_error = lambda: without
    made = Nodes(count)
    try:
        yield made
    finally:
        made.cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})
