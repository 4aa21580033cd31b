"""The connection to a Ray cluster: to one that is named or made here, and to no other.

Ray is imported here and in the functions of this package only, never when a module is imported.
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from importlib import metadata
from typing import Any

from rich.console import Console

from .. import __version__
from ..support.cluster import LOCAL
from ..support.console import say
from ..support.extras import missing

# What every node must have alike: what decides the numbers, and what is sent between nodes.
_SAME = ("keras", "tensorflow", "jax", "torch", "numpy", "pillow", "onnxruntime", "openvino", "ray")
_WAIT = 5.0  # seconds for a connection; and for all nodes to say what they have, a minute


@contextlib.contextmanager
def connected(address: str, console: Console, extra: str = "cluster") -> Iterator[Any]:
    """Ray, connected to the cluster at `address`; disconnected at the end.

    A local one listens on loopback alone, asks for a token and ends with the `with`. Nothing is
    sent to Ray's makers unless RAY_USAGE_STATS_ENABLED=1 says so.

    Args:
        address: "HOST:PORT", or "local".
        console: Where to say what the cluster is.
        extra: Which extra of this package brings what is needed of Ray.

    Yields:
        The module `ray`.

    Raises:
        ModuleNotFoundError: Ray is not installed; says what installs it.
        ConnectionError: There is no such cluster, or it asks for another token.
        ValueError: Its nodes do not have the packages that this machine has.
    """
    ray = import_ray(extra, address)
    if ray.is_initialized():
        raise ValueError(
            "Ray is connected in this process already: call ray.shutdown() first, since the "
            "command connects to the cluster that it is given"
        )
    if address != LOCAL:
        _check_listens(address)
    if address == LOCAL or address.startswith(("127.0.0.1:", "localhost:", "[::1]:")):
        stay_on_loopback(ray)
    where = {"address": address, "include_dashboard": False if address == LOCAL else None}
    try:
        ray.init(**where, log_to_driver=False, logging_level=logging.ERROR)
    except Exception as error:  # Ray has no kind of its own for any of these
        raise ConnectionError(f"no Ray cluster at {address}: {_first_line(error)}") from None
    try:
        _check_nodes(ray)
        there = ray.cluster_resources()
        say(
            console,
            f"Ray {ray.__version__} at {address}: {_count(ray):,} nodes, "
            f"{there.get('CPU', 0):g} CPUs, {there.get('GPU', 0):g} GPUs",
        )
        yield ray
    finally:
        ray.shutdown()


def import_ray(extra: str = "cluster", address: str = "") -> Any:
    """The module `ray`, which reports to nobody; for a local cluster one that asks for a token.

    Raises:
        ModuleNotFoundError: It is not installed; says what installs it.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")
    if address == LOCAL:  # before it is imported: parts of it, such as `ray.serve`, read it then
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    try:
        import ray
    except ImportError as error:
        raise missing("A cluster", "ray", extra, error) from error
    return ray


def stay_on_loopback(ray: Any) -> None:
    """Makes Ray, here and in the processes that it starts, listen to this machine alone.

    By its own setting for systems whose firewalls ask about every port; without it 127.0.0.1
    becomes the machine's outer address.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    ray._private.ray_constants.ENABLE_RAY_CLUSTER = False  # what was read when it was imported


def cpus(ray: Any) -> int:
    """How many processes of one CPU the cluster has room for; at least one."""
    return max(int(ray.cluster_resources().get("CPU", 1)), 1)


def _check_listens(address: str) -> None:
    """A wrong address is said at once: Ray itself would try for a minute."""
    host, _, port = address.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=_WAIT).close()
    except OSError as error:
        raise ConnectionError(
            f"no Ray cluster at {address}: {error.strerror or error}. `ray start --head` on the "
            "head prints its address"
        ) from None


def versions() -> dict[str, str]:
    """What this machine has of what every node must have alike; nothing of it is imported."""
    import platform

    found = {"van-classification-tensorflow": __version__, "python": platform.python_version()}
    for name in _SAME:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _check_nodes(ray: Any) -> None:
    """Whether all nodes that may get work have the versions of this machine."""
    here = versions()
    for name, there in on_every_node(ray, versions):
        for package, version in here.items():
            if there.get(package) != version:
                raise ValueError(
                    f"all nodes must have the same {package}. Received: "
                    f"{there.get(package, 'none')} on {name}, {version} here"
                )


def on_every_node(ray: Any, function: Callable[..., Any], *arguments: Any) -> list[tuple[str, Any]]:
    """(name of a node, what a function gives there), of each that may get work and is not gone.

    Raises:
        ValueError: A node does not answer, or cannot run this package.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At

    asked = ray.remote(function)
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    waiting = {
        asked.options(num_cpus=0, scheduling_strategy=At(node["NodeID"], soft=False)).remote(
            *arguments
        ): node
        for node in nodes
    }
    done, late = ray.wait(list(waiting), num_returns=len(waiting), timeout=60)
    if late:
        names = ", ".join(waiting[one]["NodeManagerHostname"] for one in late)
        raise ValueError(f"nodes of the cluster do not answer within a minute: {names}")
    answers = []
    for one in done:
        name = waiting[one]["NodeManagerHostname"]
        try:
            answers.append((name, ray.get(one)))
        except (ray.exceptions.TaskUnschedulableError, ray.exceptions.NodeDiedError):
            continue  # it is gone, which a cluster notices after seconds: it will get no work
        except Exception as error:  # whatever a node without the package makes of it
            raise ValueError(
                f"node {name} cannot run this package, which every node needs in the same version "
                f"({__version__}): {_first_line(error)}"
            ) from None
    return answers


def _count(ray: Any) -> int:
    return sum(node["Alive"] for node in ray.nodes())


def _first_line(error: BaseException) -> str:
    """The last of a chain of errors, without its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else repr(error))[:300]
