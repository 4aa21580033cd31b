"""What the measurements of `serving.py` share: a server to load, loads, answers, the table."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from serving_client import (
    Address,
    Answer,
    Client,
    Load,
    closed_loop,
    multipart,
    open_loop,
    request_bytes,
    run,
)
from serving_server import HERE, HOST, READY, Files, Server, asked, busy, free_port, started

TOKEN = "benchmark"  # noqa: S105 - of a server on the loopback
CLIENTS = (2, 4, 8, 16, 32)  # among which the best is looked for
QUEUE = 128  # pictures that `van serve` takes in at most, by default
KEPT = 50  # of so many answers under load one is looked into


class Row(NamedTuple):
    """One line of the table; `met` is None where nothing is asked."""

    what: str
    asked: str
    measured: str
    met: bool | None = None


@dataclass
class Part:
    """What one measurement found, for the table and for the JSON file; perhaps a table more."""

    rows: list[Row] = field(default_factory=list)
    table: str = ""
    details: dict[str, Any] = field(default_factory=dict)

    def add(self, what: str, asked: str, measured: str, met: bool | None = None) -> None:
        self.rows.append(Row(what, asked, measured, met))


@dataclass(frozen=True)
class Bench:
    """What all measurements share.

    Args:
        files: What is served and sent.
        folder: For logs and files that are replaced.
        python: The interpreter of the server.
        options: More of `van serve`.
        seconds: Of one load.
        rounds: Launches, where the best of several is taken.
        times: Of what is repeated: SIGTERM, reloads.
        clients: At once, in `clients`.
        slow: Slow clients, in `slow`.
        requests: In `memory`.
        mutants: In `fuzz`.
        seed: Of all that is drawn.
    """

    files: Files
    folder: Path
    python: str = sys.executable
    options: tuple[str, ...] = ()
    seconds: float = 10.0
    rounds: int = 2
    times: int = 20
    clients: int = 1000
    slow: int = 200
    requests: int = 20_000
    mutants: int = 10_000
    seed: int = 0

    @contextmanager
    def server(self, weights: Path | None = None) -> Iterator[Server]:
        """`van serve`, ready, on a free port, and warm."""
        address = Address(HOST, free_port())
        command = [self.python, "-m", "van_classification_tensorflow", "serve"]
        command += ["--weights", str(weights or self.files.weights), "--token", TOKEN]
        command += ["--host", address.host, "--port", str(address.port), *self.options]
        environment = {"PYTHONPATH": str(HERE.parent)}
        log = self.folder / "server.log"
        with started(command, address, log, READY, self.folder, environment) as server:
            yield server

    def singles(self, address: Address) -> list[bytes]:
        """A picture a request."""
        return [self.single(address, one) for one in self.files.pictures]

    def single(self, address: Address, picture: bytes) -> bytes:
        return request_bytes(address, "POST", "/predict", picture, self.files.kind, TOKEN)

    def several(self, address: Address, size: int) -> list[bytes]:
        """So many pictures a request."""
        pictures = self.files.pictures
        groups = [pictures[i : i + size] for i in range(0, len(pictures), size)]
        bodies = [multipart(g, kind=self.files.kind) for g in groups if len(g) == size]
        return [request_bytes(address, "POST", "/predict", *body, TOKEN) for body in bodies]


def milliseconds(seconds: float) -> str:
    return f"{1e3 * seconds:.1f} ms"


def told(counts: dict[str, int]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in counts.items()) or "nothing"


def measured_load(server: Server, work: Any) -> Load:
    """Runs a load, and adds the processor time that the server and others took meanwhile."""
    begun, client = time.perf_counter(), time.process_time()
    ours, all_before = server.cpu(), busy()
    load: Load = run(work)
    took = server.cpu() - ours
    others = busy() - all_before - took - (time.process_time() - client)
    others /= time.perf_counter() - begun
    return replace(load, server_cpu=took, others_cores=max(others, 0.0))


def steady(server: Server, requests: Sequence[bytes], clients: int, seconds: float) -> Load:
    """Clients that always have one request on its way, on connections that stay open."""

    async def work() -> Load:
        client = Client(server.address)
        try:
            return await closed_loop(client, requests, clients, seconds=seconds, keep=KEPT)
        finally:
            client.close()

    return measured_load(server, work())


def offered(server: Server, requests: Sequence[bytes], starts: Sequence[float]) -> Load:
    """Requests at given times, whatever the server does."""

    async def work() -> Load:
        client = Client(server.address)
        try:
            return await open_loop(client, requests, starts)
        finally:
            client.close()

    return measured_load(server, work())


def even(rate: float, seconds: float) -> list[float]:
    return [i / rate for i in range(max(int(rate * seconds), 1))]


def poisson(rate: float, seconds: float, seed: int) -> list[float]:
    """Times of independent clients: exponential distances."""
    draw, at, found = random.Random(seed), 0.0, []
    while (at := at + draw.expovariate(rate)) < seconds:
        found.append(at)
    return found or [0.0]


def capacity(
    server: Server, requests: Sequence[bytes], seconds: float, pictures: int = 1
) -> tuple[Load, int]:
    """The most requests a second that any number of clients gets, and that number.

    Of requests of several pictures, so that not more are at work than with one a request.
    """
    numbers = sorted({max(n // pictures, 1) for n in CLIENTS})
    steady(server, requests, numbers[-1], min(1.0, seconds))  # warm
    loads = [(steady(server, requests, n, seconds), n) for n in numbers]
    return max(loads, key=lambda pair: pair[0].rate())


def lost_of(load: Load) -> int:
    """Requests that were neither answered nor told when to come again."""
    return sum(
        one.status != 200 and not (one.status in (429, 503) and one.retry_after)
        for one in load.answers
    )


def told_answer(answer: Answer) -> str:
    return f"{answer.outcome} {answer.status}: {answer.body[:200]!r}"


Answers = list[dict[int, float]]  # of each picture: classes and their probabilities


def results_of(body: bytes) -> Answers:
    """What `/predict` said of each picture."""
    return [
        {one["index"]: one["probability"] for one in result["predictions"]}
        for result in json.loads(body)["results"]
    ]


def alike(found: dict[int, float], expected: dict[int, float]) -> bool:
    """Whether an answer is the expected one: its three best classes have their probabilities."""
    best = sorted(expected, key=lambda i: -expected[i])[:3]
    return bool(found) and all(
        abs(found.get(i, -1.0) - expected[i]) <= 1e-5 + 0.01 * expected[i] for i in best
    )


def answers_now(bench: Bench, address: Address) -> Answers:
    """Of all pictures, one after the other."""
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": bench.files.kind}
    found: Answers = []
    for picture in bench.files.pictures:
        status, body = asked(address, "POST", "/predict", picture, headers)
        if status != 200:
            raise SystemExit(f"/predict answered {status}: {body[:200]!r}")
        found += results_of(body)
    return found


def costs(load: Load) -> str:
    """What client, server and all others took of the processor."""
    took = load.summary()
    text = f"client {took['client_us_per_request']:.0f} us"
    if "server_ms_per_request" in took:
        text += f" and server {took['server_ms_per_request']:.2f} ms"
    text += f" a request, client {took['client_cpu_share']:.0%} of a core"
    return text + (f", others {took['others_cores']:.0%}" if "others_cores" in took else "")
