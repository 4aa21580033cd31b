"""`van serve --cluster`: deploys on Ray Serve, watches, redeploys on SIGHUP, and ends it all."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from typing import Any

from ..serve.command import application, bound, say
from ..serve.connections import KEEP_ALIVE
from ..serve.request import ServeRequest
from ..support.cluster import LOCAL
from ..support.console import messages
from ..support.cores import use_at_most
from ..support.extras import missing
from ..support.text import one_line
from . import connect
from .replica import CPUS, NAME, deployment, for_nodes, seconds

EXTRA = "cluster-serve"
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - they are compared with
_OWNER = b"van-serve"  # in the cluster's table of keys: which command has deployed last
_LOOK = 0.5  # seconds between looks at the cluster
_SAME_SIGNAL = 0.1  # seconds in which one may come twice: to the process, and to its group


def run(request: ServeRequest) -> int:
    """Deploys on a Ray cluster and stays until it is told to end, or another takes over; 0.

    Raises:
        ValueError: Weights cannot be served on a node, or Ray Serve listens elsewhere.
        OSError: There is no such cluster, or the address cannot be listened on.
        ModuleNotFoundError: Ray Serve or an engine is not installed.
    """
    cluster = request.where.cluster or ""
    serve = _ray_serve(cluster)
    with connect.connected(cluster, messages(), EXTRA) as ray:
        logging.getLogger("ray.serve").setLevel(logging.CRITICAL)  # what it says, is said here
        least, most = request.where.workers or (connect.cpus(ray), connect.cpus(ray))
        there = for_nodes(request)
        address = Address(ray, serve, there.host, there.port)
        _check_opens(ray, there)
        with Signals() as signals:
            address.listen(there)
            local = cluster == LOCAL
            return Deployed(ray, serve, there, least, most, signals, local).stay(str(address))


def _ray_serve(cluster: str) -> Any:
    connect.import_ray(EXTRA, cluster)
    try:
        from ray import serve
    except ImportError as error:
        raise missing("A cluster", "ray[serve]", EXTRA, error) from error
    return serve


class Address:
    """Where the proxies of Ray Serve listen, of which a cluster has one address only.

    Args:
        ray: Of `connected`.
        serve: `ray.serve`.
        host: As of `ServeRequest`.
        port: As of `ServeRequest`.

    Raises:
        ValueError: It listens elsewhere already, or the port is 0 where the head is no neighbour.
        OSError: The address cannot be listened on.
    """

    def __init__(self, ray: Any, serve: Any, host: str, port: int):
        self._serve = serve
        self.host, self.port = host, port
        heads = (n for n in ray.nodes() if "node:__internal_head__" in n["Resources"])
        self.head = next(heads)["NodeManagerHostname"]
        self.is_here = self.head == socket.gethostname()
        there = _listening(serve)
        self.is_new = there is None
        if there is not None:
            if host != there[0] or port not in (0, there[1]):
                raise ValueError(
                    f"Ray Serve of this cluster listens on {there[0]}, port {there[1]}, and has "
                    "one address: give these, or `serve shutdown` first. Received: "
                    f"host={host!r}, port={port}"
                )
            self.port = there[1]
        elif self.is_here:
            with bound(host, port) as tried:  # said at once; Serve would share it with another
                self.port = tried.getsockname()[1]
        elif port == 0:
            raise ValueError(
                "`port` must be named where the head of the cluster is another machine. Received: "
                "port=0"
            )

    @property
    def location(self) -> str:
        """On which nodes there is a proxy: on all with replicas where the address is of all."""
        return "EveryNode" if self.host in _EVERYWHERE else "HeadOnly"

    def listen(self, request: ServeRequest) -> None:
        """Starts Ray Serve where it is not started.

        Raises:
            OSError: The address cannot be listened on.
        """
        options = {
            "host": self.host,
            "port": self.port,
            "keep_alive_timeout_s": KEEP_ALIVE,
            "request_timeout_s": seconds(request),
        }
        if not self.is_new:
            return
        quiet = {"log_level": "WARNING", "enable_access_log": False}
        try:
            self._serve.start(
                proxy_location=self.location, http_options=options, logging_config=quiet
            )
        except Exception as error:  # Ray has no kind of its own for it
            self._serve.shutdown()
            raise OSError(
                f"cannot listen on {self.host}, port {self.port} of {self.head}: "
                f"{_last_line(error)}"
            ) from None

    def __str__(self) -> str:
        """For people: with the machine where it is not this one."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        text = f"http://{host}:{self.port}"
        if self.location == "EveryNode":
            return f"{text} of every node that has a replica"
        return text if self.is_here else f"{text} of {self.head}"


def _listening(serve: Any) -> tuple[str, int] | None:
    """(host, port) of the cluster's Ray Serve; None where there is none."""
    client = serve.context._get_global_client(raise_if_no_controller_running=False)
    if client is None:
        return None
    options = client.http_config
    return options.host, options.port


def _check_opens(ray: Any, request: ServeRequest) -> None:
    """Opens and proves the models once on each node, beside whatever serves until then.

    Raises:
        ValueError: A node cannot; its files may be missing, or refused.
    """
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as At

    tried = ray.remote(max_calls=1, num_cpus=0, max_retries=0)(_refusal)
    nodes = [n for n in ray.nodes() if n["Alive"] and n["Resources"].get("CPU")]
    asked = [
        tried.options(scheduling_strategy=At(one["NodeID"], soft=False)).remote(request)
        for one in nodes
    ]
    for node, answer in zip(nodes, asked, strict=True):
        try:
            refusal = ray.get(answer)
        except ray.exceptions.RayError as error:  # the node, or the process, is gone
            refusal = _last_line(error)
        if refusal:
            raise ValueError(f"node {node['NodeManagerHostname']} cannot serve it: {refusal}")


def _refusal(request: ServeRequest) -> str:
    """Why this machine cannot serve; "" where it can."""
    use_at_most(CPUS)
    try:
        application(request)
    except Exception as error:  # whatever opening a file of others may raise
        return one_line(error)
    return ""


class Signals:
    """What the process was told since, while it is open; in the main thread only.

    Attributes:
        end: Whether to end. Told twice, the process ends at once.
        again: Whether to deploy once more.
    """

    def __init__(self) -> None:
        self.end = self.again = False
        self._told, self._at = threading.Event(), 0.0

    def wait(self, duration: float) -> None:
        """Until something is told, but for so many seconds at most."""
        self._told.wait(duration)
        self._told.clear()

    def _hear(self, number: int, frame: Any = None) -> None:
        if number == getattr(signal, "SIGHUP", None):
            self.again = True
        elif not self.end:
            self.end, self._at = True, time.monotonic()
            say("Ending: requests at work are finished; a second signal ends at once.")
        elif time.monotonic() - self._at > _SAME_SIGNAL:
            say("Ended at once, as told twice.")
            os._exit(1)
        self._told.set()

    @contextlib.contextmanager
    def _handled(self) -> Iterator[None]:
        names = ("SIGINT", "SIGTERM", "SIGHUP")
        numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
        if threading.current_thread() is not threading.main_thread():
            numbers = []
        before = {number: signal.signal(number, self._hear) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def __enter__(self) -> Signals:
        self._open = self._handled()
        self._open.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._open.__exit__(*error)


class Deployed:
    """The application on Ray Serve, as this process has deployed it.

    Args:
        ray: Of `connected`.
        serve: `ray.serve`.
        request: As `for_nodes` makes it.
        least: As of `deployment`.
        most: As of `deployment`.
        signals: What this process is told.
        local: Whether the cluster ends with this process.
    """

    def __init__(
        self,
        ray: Any,
        serve: Any,
        request: ServeRequest,
        least: int,
        most: int,
        signals: Signals,
        local: bool,
    ):
        self._local = local
        self._ray, self._serve, self._request = ray, serve, request
        self._least, self._most, self._signals = least, most, signals
        self._said, self._mine = "", uuid.uuid4().hex.encode()

    def stay(self, address: str) -> int:
        """Deploys, and says how it is until it is told to end, or another takes over; 0.

        Args:
            address: For people.

        Raises:
            ValueError: No replica could be started.
            ConnectionError: Somebody else has deleted the application.
        """
        serves = self._now() is not None  # an older one, to be replaced replica by replica
        try:
            self._deploy()
            announced = False
            while not self._signals.end:
                now = self._now()
                if not self._is_mine():
                    break
                if now is None:
                    raise ConnectionError("the application was deleted on the cluster")
                if now.status == "DEPLOY_FAILED":
                    raise ValueError(f"it could not be deployed: {_last_line(now.message)}")
                if not announced and now.status == "RUNNING" and set(_states(now)) == {"RUNNING"}:
                    announced = serves = True
                    say(f"Serving at {address}; its API: /docs")
                self._tell(now)
                if self._signals.again:
                    self._signals.again, announced = False, False
                    self._again()
                self._signals.wait(_LOOK)
        except BaseException:
            if not serves:
                self._end()
            raise
        if self._is_mine():
            self._end()
        else:
            say("Another `van serve` has taken over, and serves on.")
        return 0

    def _deploy(self) -> None:
        _table()._internal_kv_put(_OWNER, self._mine, overwrite=True, namespace=_OWNER)
        room = int(self._ray.available_resources().get("CPU", 0))
        made = deployment(self._request, self._least, self._most, room)
        target = self._serve.RunTarget(target=made, name=NAME, route_prefix="/")
        try:
            self._serve.run_many([target], wait_for_applications_running=False)
        except Exception as error:  # another application has the address, or the cluster is gone
            raise ValueError(f"it could not be deployed: {_last_line(error)}") from None

    def _again(self) -> None:
        """On SIGHUP: new replicas, which open the files as they are now."""
        try:
            _check_opens(self._ray, self._request)
        except ValueError as error:
            say(f"Not deployed again, the old replicas serve on: {error}")
            return
        say("Deploying again, replica by replica.")
        self._deploy()

    def _is_mine(self) -> bool:
        table = _table()
        return table._internal_kv_get(_OWNER, namespace=_OWNER) == self._mine

    def _now(self) -> Any:
        return self._serve.status().applications.get(NAME)

    def _tell(self, now: Any) -> None:
        """How many replicas there are in which state, where that is new."""
        states = sorted(_states(now).items())
        counts = ", ".join(f"{count} {state.lower()}" for state, count in states)
        text = f"{now.status.lower().replace('_', ' ')}; replicas: {counts or 'none'}"
        if text != self._said:
            self._said = text
            say(text)

    def _end(self) -> None:
        """Deletes the application, and Ray Serve with it where nothing else is on it."""
        with contextlib.suppress(self._ray.exceptions.RayError):
            self._serve.delete(NAME)
            # A local cluster ends as a whole.
            if not self._local and not self._serve.status().applications:
                self._serve.shutdown()


def _last_line(error: BaseException | str) -> str:
    """The cause that Ray names last, behind its traceback."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _states(now: Any) -> dict[str, int]:
    """How many replicas are in which state, of `serve.status()`; also old ones that end."""
    deployments = now.deployments.values()
    return {
        getattr(state, "value", state): count
        for one in deployments
        for state, count in one.replica_states.items()
    }


def _table() -> Any:
    from ray.experimental import internal_kv

    return internal_kv
