"""The application of `van serve` as a deployment of Ray Serve: what a replica is and does."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..serve.command import application
from ..serve.http import GONE
from ..serve.request import ServeRequest
from ..support.cluster import ClusterOptions
from ..support.cores import use_at_most
from ..support.text import shown
from ..weights.address import address_of

NAME = "van"  # of the application and of its deployment
CPUS = 1  # of a replica
NO_RELOAD = (
    "on a cluster new files are taken over by a new deployment: run `van serve --cluster` again, "
    "or send SIGHUP to the one that runs"
)
# Requests in a replica beside those whose pictures its queue takes in: that refuses with 429
# itself, and health and the page are answered also when it is full.
_OTHERS = 100
_WAITING = 1_000  # requests for which no replica has room; then 503 at once
_MORE = 60.0  # seconds for the work itself, beside the upload and the wait
# A request is answered in milliseconds: autoscaling may look at seconds, and is slow to give back.
SCALING = {
    "target_ongoing_requests": 4,
    "look_back_period_s": 15.0,
    "upscale_delay_s": 10.0,
    "downscale_delay_s": 300.0,
}
_SURGE = 20  # percent of the replicas that a redeploy replaces at a time


class Replica:
    """One process that serves the whole application on `CPUS` cores.

    Args:
        request: As `for_nodes` makes it.

    Raises:
        ValueError: As of `application`.
        OSError: As of `application`.
        ModuleNotFoundError: As of `application`.
    """

    def __init__(self, request: ServeRequest):
        use_at_most(CPUS)
        _stay_on_loopback()
        self._served = application(request, NO_RELOAD)

    def __serve_build_asgi_app__(self) -> Any:
        """Of Ray Serve: what answers requests."""
        return Followed(self._served)

    async def check_health(self) -> None:
        """Of Ray Serve: asks what a readiness probe asks; late or failing, it is replaced.

        Raises:
            RuntimeError: It is not ready.
        """
        status = await _status(self._served, "/v2/health/ready")
        if status != 200:
            raise RuntimeError(f"not ready: {status}")


def _stay_on_loopback() -> None:
    """On a cluster of this machine alone, so does the port for other deployments.

    Serve opens it on all interfaces, and unpickles there what holders of the cluster's token send;
    it has no setting for the address. This runs before it is opened.
    """
    import ray
    from ray.serve._private import replica

    if ip_address(ray._private.worker.global_worker.node.node_ip_address).is_loopback:
        add = replica.add_port_to_grpc_server
        replica.add_port_to_grpc_server = lambda server, _: add(server, "127.0.0.1:0")


class Followed:
    """An ASGI application that learns when its client has gone: Serve cancels the request then."""

    def __init__(self, app: Any):
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answers one request."""
        gone = False
        try:
            await self.app({**scope, GONE: lambda: gone}, receive, send)
        except asyncio.CancelledError:
            gone = True
            raise


async def _status(app: Any, path: str) -> int:
    """What an application answers to a GET of its own machine."""
    found = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            found.append(message["status"])

    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1")],
    }
    await app(scope, receive, send)
    return found[0]


def for_nodes(request: ServeRequest) -> ServeRequest:
    """The same for other machines: whole paths, and the token itself instead of where it is.

    Raises:
        ValueError: The token is none.
        OSError: Its file cannot be read.
    """
    named = request.by_name.items()
    there = (os.path.abspath(w) if address_of(w).is_path else w for _, w in named)
    calibration = request.calibration
    if calibration is not None and str(calibration) != "digits":
        calibration = os.path.abspath(calibration)
    return replace(
        request,
        weights=tuple(f"{name}={w}" for (name, _), w in zip(named, there, strict=True)),
        calibration=calibration,
        token=request.secret,
        token_file=None,
        where=ClusterOptions(),
    )


def seconds(request: ServeRequest) -> float:
    """That a request may take in all; also those in a replica that ends are given so long."""
    return request.upload_seconds + request.timeout + _MORE


def deployment(request: ServeRequest, least: int, most: int, room: int = 0) -> Any:
    """The application that Ray Serve is to run.

    Args:
        request: As `for_nodes` makes it.
        least: Replicas.
        most: Replicas, as many as the requests need; the same as `least` for a fixed number.
        room: CPUs that are free: with enough of them the new replicas of a redeploy are up before
            old ones end, else some old ones end first.

    Returns:
        A `ray.serve.Application`.
    """
    from ray import serve

    many: dict[str, Any] = {"num_replicas": least}
    if most > least:
        many = {"autoscaling_config": {"min_replicas": least, "max_replicas": most, **SCALING}}
    at_a_time = -(-most * _SURGE // 100)
    made = serve.deployment(
        serve.ingress()(Replica),
        name=NAME,
        ray_actor_options={"num_cpus": CPUS},
        max_ongoing_requests=request.queue + _OTHERS,
        max_queued_requests=_WAITING,
        graceful_shutdown_timeout_s=seconds(request),
        graceful_shutdown_wait_loop_s=0.5,
        health_check_period_s=5.0,
        health_check_timeout_s=10.0,  # missed three times in a row, it is replaced
        rolling_update_percentage=_SURGE / 100,
        max_surge_percent=_SURGE if room >= at_a_time * CPUS else 0,
        logging_config={"log_level": "WARNING", "enable_access_log": False},
        **many,
    )
    return made.bind(request)


def van(arguments: dict[str, Any]) -> Any:
    """The application for a configuration of Ray Serve, such as that of a RayService of KubeRay.

        import_path: van_classification_tensorflow.cluster.replica:van
        args: {weights: [/models/van_b0.safetensors]}

    Others can reach it: it needs a token, in `VAN_TOKEN` of the head or `token_file`, or
    `allow_anyone`. How many replicas there are, and where it listens, the configuration says.

    Args:
        arguments: Options of `van serve`, with "_" for "-"; not host, port and those of a cluster.

    Raises:
        ValueError: An option is not known, or not allowed.
    """
    return deployment(for_nodes(_request(arguments)), 1, 1)


def _request(arguments: Mapping[str, Any]) -> ServeRequest:
    allowed = {one.name for one in fields(ServeRequest)} - {"where", "host", "port"}
    unknown = sorted(set(arguments) - allowed)
    if unknown:
        raise ValueError(
            f"`args` takes {', '.join(sorted(allowed))}. Received: {shown(', '.join(unknown))}"
        )
    given = dict(arguments)
    for name in ("weights", "allow_host"):
        if name in given:
            said = given[name]
            given[name] = (said,) if isinstance(said, str) else tuple(said)
    if given.get("token_file") is not None:
        given["token_file"] = Path(given["token_file"])
    return ServeRequest(**given, host="0.0.0.0")  # noqa: S104 - so that it asks for a token
