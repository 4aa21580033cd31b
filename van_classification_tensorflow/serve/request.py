"""What `van serve` is asked for, checked before anything is opened."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from ..inference.request import ClassifierOptions
from ..support.checks import at_least, is_number
from ..support.cluster import ClusterOptions
from ..support.extras import is_installed, missing
from ..support.files import open_regular
from ..support.options import option, part
from ..support.text import printable, shown
from ..weights.address import address_of
from ..weights.hub_name import HubName, is_hub_name

TOKEN_VARIABLE = "VAN_TOKEN"  # noqa: S105 - the name of the variable
MAX_TOKEN = 1_000  # characters
_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]{0,99})=(.+)", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class ServeRequest(ClassifierOptions):
    """The options of `van serve`: those of `Classifier`, for each of its models, and its own.

    Args:
        weights: Of each model, perhaps after its name and "=".
        host: Address to listen on. One that others can reach needs a token.
        port: 0 for any free one.
        token: What every caller has to send: `Authorization: Bearer TOKEN`.
        token_file: A file that holds it, and nothing else.
        allow_anyone: Listen on an address that others can reach without a token.
        allow_host: Names in the address of a request that are answered, where only this machine can
            reach the server and no token is needed. Else only its own are: the page of another
            site could have its name lead here, and read the answers.
        max_wait: Milliseconds that a picture may wait for others to go through the model with it.
        queue: Pictures that are taken in at most, waiting or at work.
        timeout: Seconds after which a picture that still waits is given up.
        max_bytes: Of the body of a request.
        max_pictures: Of a request.
        upload_seconds: That the body of a request may take to arrive.
        drain: Seconds after SIGTERM in which new requests are still answered.
        where: On a Ray cluster; its `cluster_workers` are replicas, each on one CPU.

    Raises:
        ValueError: An option is not allowed, or does not go with another.
        OSError: The file of the token cannot be read.
        ModuleNotFoundError: What serves is not installed.
    """

    weights: tuple[str, ...] = option(
        "what `van predict` takes, one or several, each with a name if wanted: NAME=WEIGHTS; the "
        "first is the model of requests that name none (default: {default})",
        ("van_b0",),
    )
    host: str = option("address to listen on (default: {default})", "127.0.0.1")
    port: int = option("port, 0 for any free one (default: {default})", 8000)
    token: str | None = option(
        f"every caller must send it as a bearer token; better in --token-file or {TOKEN_VARIABLE}, "
        "which other users of this machine do not see",
        None,
    )
    token_file: Path | None = option("file that holds the token", None)
    allow_anyone: bool = option("listen where others can reach it, without a token", False)
    allow_host: tuple[str, ...] = option(
        "a name under which a proxy on this machine asks, without a token", ()
    )
    max_wait: float = option(
        "milliseconds that a picture waits for others to fill a batch (default: {default}: what "
        "came while the engine was busy is the next batch)",
        0.0,
    )
    queue: int = option("pictures taken in at most, then 429 (default: {default})", 128)
    timeout: float = option("seconds a picture may wait, then 503 (default: {default})", 10.0)
    max_bytes: int = option("of a request (default: {default})", 20_000_000)
    max_pictures: int = option("of a request (default: {default})", 32)
    upload_seconds: float = option("that a request may take to arrive (default: {default})", 30.0)
    drain: float = option(
        "seconds after SIGTERM in which new requests are still answered (default: {default}; in "
        "Kubernetes the period of the readiness probe)",
        1.0,
    )
    where: ClusterOptions = part(ClusterOptions)

    def __post_init__(self) -> None:
        self._check_numbers()
        if not self.weights:
            raise ValueError("`weights` must name one model at least. Received: none")
        for weights in self.by_name.values():
            ClassifierOptions(**self.options_of(weights))
        if self.token is not None and self.token_file is not None:
            raise ValueError("`token` and `token_file` say the same: leave one of them out")
        token = self.secret
        if token is None and not self.allow_anyone and not is_local(self.host):
            raise ValueError(
                "`host` can be reached by others, who then need a token: give --token-file, or "
                f"--allow-anyone to let everybody in. Received: host={self.host!r}"
            )
        for package in ("fastapi", "python_multipart", "uvicorn", "httptools", "prometheus_client"):
            if not is_installed(package):
                extra = "cluster-serve" if self.where.cluster else "serve"
                raise missing("van serve", package.replace("_", "-"), extra)

    def _check_numbers(self) -> None:
        at_least("port", self.port, 0)
        if self.port > 65_535:
            raise ValueError(f"`port` must be at most 65535. Received: port={self.port}")
        for name in ("queue", "max_bytes", "max_pictures"):
            at_least(name, getattr(self, name), 1)
        for name, least in (("max_wait", 0), ("drain", 0), ("timeout", 0.1), ("upload_seconds", 1)):
            value = getattr(self, name)
            if not is_number(value) or not least <= value <= 86_400:
                raise ValueError(
                    f"`{name}` must be a number from {least} to 86400. Received: {name}={value!r}"
                )
        if self.max_pictures > self.queue:
            raise ValueError(
                "`max_pictures` of a request must fit into the `queue`. Received: "
                f"max_pictures={self.max_pictures}, queue={self.queue}"
            )

    @property
    def hosts(self) -> frozenset[str] | None:
        """Names beside those of this machine that are answered; None: all of them."""
        if self.secret is not None or not is_local(self.host):
            return None
        return frozenset(name.lower() for name in self.allow_host)

    @property
    def by_name(self) -> dict[str, str]:
        """{name in addresses: weights}, the default model first.

        Raises:
            ValueError: Two have the same name.
        """
        found: dict[str, str] = {}
        for said in self.weights:
            named = None if os.path.exists(said) else _NAMED.fullmatch(said)
            name, weights = named.groups() if named else (_name_of(said), said)
            if name in found:
                raise ValueError(
                    f"`weights` has two models of the name {name}: give one another, NAME=WEIGHTS. "
                    f"Received: {shown(said)}"
                )
            found[name] = weights
        return found

    def options_of(self, weights: str) -> dict[str, Any]:
        """The arguments of the `Classifier` of one model."""
        shared = {one.name: getattr(self, one.name) for one in fields(ClassifierOptions)}
        return shared | {"weights": weights}

    @property
    def secret(self) -> str | None:
        """The token that callers must send; None where they need none.

        Raises:
            ValueError: It is no token.
            OSError: Its file cannot be read.
        """
        token, where = self.token, "token"
        if self.token_file is not None:
            where = "token_file"
            with open_regular(self.token_file) as file:
                token = file.read(MAX_TOKEN + 100).decode("utf-8", "replace").strip()
        elif token is None and (token := os.environ.get(TOKEN_VARIABLE)) is not None:
            where = TOKEN_VARIABLE
        if token is not None and not re.fullmatch(rf"[!-~]{{1,{MAX_TOKEN}}}", token):
            raise ValueError(
                f"`{where}` must hold 1 to {MAX_TOKEN} letters, digits and signs of ASCII, without "
                f"a space. Received: {len(token)} characters"
            )
        return token


def is_local(host: str) -> bool:
    """Whether only this machine can reach the address."""
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:  # a name, of whatever address
        return False


def _name_of(weights: str) -> str:
    """What an address calls a model: its name in the catalogue, or that of its file."""
    text = weights
    if is_hub_name(weights):
        text = HubName.of(weights).name
    elif address_of(weights).is_path:
        path = Path(weights)
        text = path.name if path.is_dir() else path.name.split(".")[0] or path.name
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", printable(text)).strip(".-_")
    return name[:100] or "model"
