"""A light HTTP/1.1 client for `serving.py`: requests are bytes made before, answers little more.

It shares the cores with the server it loads, so a request costs it some 50 us, and every `Load`
says how much processor time the client took. What became of a request is one of:

- "answered": a whole answer came, of whatever status;
- "refused": no connection was made, nothing was sent;
- "closed": the connection ended before the first byte of an answer;
- "partial": it ended, or the answer stopped being HTTP, within one; or more came than it promised;
- "timeout": no whole answer in time.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import math
import re
import time
from collections import Counter, deque
from collections.abc import Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

TIMEOUT_S = 60.0
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)
_CLOSE = re.compile(rb"\r\nconnection:[ \t]*close[ \t]*\r\n", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding:[ \t]*chunked[ \t]*\r\n", re.IGNORECASE)
_RETRY = re.compile(rb"\r\nretry-after:[ \t]*(\d+)[ \t]*\r\n", re.IGNORECASE)


class Address(NamedTuple):
    """Where a server listens."""

    host: str
    port: int


class Head(NamedTuple):
    """What matters of the head of an answer; `length` None where its end is the connection's."""

    status: int
    size: int
    length: int | None
    chunked: bool
    close: bool
    retry_after: int | None


@dataclass(slots=True)
class Answer:
    """What became of one request.

    Args:
        outcome: One of those above.
        status: Of the answer; 0 where none came.
        start: When it was meant to be sent, by `time.perf_counter`.
        seconds: From `start` to the last byte of the answer, or to its failure.
        request: Which of the requests it was.
        body: Of the answer.
        reused: The connection had answered before.
        retry_after: Of that header.
    """

    outcome: str
    status: int = 0
    start: float = 0.0
    seconds: float = 0.0
    request: int = 0
    body: bytes = b""
    reused: bool = False
    retry_after: int | None = None


def parse_head(data: bytes) -> Head | None:
    """The head at the beginning of an answer; None while it is not whole.

    Raises:
        ValueError: This is no answer of HTTP/1.
    """
    end = data.find(b"\r\n\r\n")
    if end < 0:
        if not data.startswith(b"HTTP/1."[: len(data)]):
            raise ValueError(f"no answer of HTTP/1: {data[:40]!r}")
        return None
    if not data.startswith(b"HTTP/1.") or not data[9:12].isdigit():
        raise ValueError(f"no answer of HTTP/1: {data[:40]!r}")
    head = data[: end + 2]
    length, retry = _LENGTH.search(head), _RETRY.search(head)
    return Head(
        int(data[9:12]),
        end + 4,
        int(length[1]) if length else None,
        bool(_CHUNKED.search(head)),
        bool(_CLOSE.search(head)),
        int(retry[1]) if retry else None,
    )


def unchunked(data: bytes) -> tuple[bytes, int] | None:
    """The body that chunks hold, and how many bytes they take; None while they are not whole."""
    parts, at = [], 0
    while (end := data.find(b"\r\n", at)) >= 0:
        size = int(data[at:end].split(b";")[0], 16)
        at = end + 2
        if len(data) < at + size + 2:
            return None
        if size == 0:
            return b"".join(parts), at + 2
        parts.append(data[at : at + size])
        at += size + 2
    return None


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.open = False
        self.answered = 0  # requests
        self.excess = False  # more came than answers
        self._data = b""
        self._head: Head | None = None
        self._waiting: asyncio.Future[Answer] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport, self.open = transport, True

    def data_received(self, data: bytes) -> None:
        self._data = self._data + data if self._data else data
        try:
            self._read()
        except ValueError:
            self._done(Answer("partial"))
            self.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.open = False
        head = self._head
        if head and head.length is None and not head.chunked and error is None:
            self._finish(head, self._data[head.size :])
        else:
            self._done(Answer("partial" if self._data else "closed"))

    def send(self, request: bytes) -> asyncio.Future[Answer]:
        """Writes a request; the future has its answer, whose times are yet to be filled in."""
        assert self.transport is not None
        self._data, self._head = b"", None
        self._waiting = asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self._waiting

    def half_close(self) -> None:
        """Says that no more will be sent."""
        if self.transport is not None and self.open:
            with contextlib.suppress(OSError):
                self.transport.write_eof()

    def close(self) -> None:
        self.open = False
        if self.transport is not None:
            self.transport.abort()

    def _read(self) -> None:
        head = self._head = self._head or parse_head(self._data)
        while head is not None and head.status == 100:  # "go on": the answer is yet to come
            self._data = self._data[head.size :]
            head = self._head = parse_head(self._data)
        if head is None:
            return
        found: tuple[bytes, int] | None = None
        if head.chunked:
            found = unchunked(self._data[head.size :])
        elif head.length is not None and len(self._data) >= head.size + head.length:
            found = self._data[head.size : head.size + head.length], head.length
        if found:
            self.excess = len(self._data) > head.size + found[1]
            self._finish(head, found[0])

    def _finish(self, head: Head, body: bytes) -> None:
        if head.close:
            self.open = False
        self._done(
            Answer(
                "answered",
                head.status,
                body=body,
                reused=self.answered > 0,
                retry_after=head.retry_after,
            )
        )
        self.answered += 1
        self._data, self._head = b"", None

    def _done(self, answer: Answer) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None and not waiting.done():
            answer.reused = self.answered > 0
            waiting.set_result(answer)


class Client:
    """Connections to one server, kept open and used again.

    Args:
        address: Where the server listens.
        timeout: Seconds, of one request.
        keep_alive: False: a connection for each request.
    """

    def __init__(self, address: Address, timeout: float = TIMEOUT_S, keep_alive: bool = True):
        self.address, self.timeout, self.keep_alive = address, timeout, keep_alive
        self._idle: deque[Connection] = deque()
        self.connections = 0  # made

    async def connect(self) -> Connection:
        """A connection of one's own. Raises `OSError`."""
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(Connection, *self.address)
        self.connections += 1
        return connection

    async def prepare(self) -> None:
        """Makes a connection that the next request takes. Raises `OSError`."""
        self._idle.append(await self.connect())

    async def take(self) -> Connection:
        """An idle connection, else a new one. Raises `OSError`."""
        while self._idle:
            connection = self._idle.pop()
            if connection.open:
                return connection
        return await self.connect()

    async def ask(self, request: bytes, number: int = 0, start: float | None = None) -> Answer:
        """Sends a request and waits for its answer; `start` is when it was meant to be sent."""
        start = time.perf_counter() if start is None else start
        connection = None
        try:
            async with asyncio.timeout(self.timeout):
                connection = await self.take()
                answer = await connection.send(request)
            if connection.excess:
                answer = Answer("partial")
        except TimeoutError:
            answer = Answer("timeout" if connection else "refused")
        except OSError:
            answer = Answer("refused")
        answer.start, answer.request = start, number
        answer.seconds = time.perf_counter() - start
        if connection is not None:
            if answer.outcome == "answered" and connection.open and self.keep_alive:
                self._idle.append(connection)
            else:
                connection.close()
        return answer

    def close(self) -> None:
        while self._idle:
            self._idle.pop().close()


@dataclass(frozen=True)
class Load:
    """What a load found.

    Args:
        answers: Of all requests.
        seconds: That it took.
        client_cpu, server_cpu: Seconds of processor time of the two.
        others_cores: That all other processes of the machine, and its neighbours, took on average:
            of a figure to believe, next to none.
        details: More for the JSON file.
    """

    answers: list[Answer]
    seconds: float
    client_cpu: float
    server_cpu: float | None = None
    others_cores: float | None = None
    details: dict[str, Any] = field(default_factory=dict)

    def of(self, status: int) -> list[Answer]:
        return [one for one in self.answers if one.status == status]

    def rate(self, status: int = 200) -> float:
        """Answers of a status in a second."""
        return len(self.of(status)) / self.seconds

    def percentile(self, share: float, status: int = 200) -> float:
        """Seconds within which this share of the answers of a status came; nan without any."""
        return percentile([one.seconds for one in self.of(status)], share)

    def counts(self) -> dict[str, int]:
        """How many of each status, and of each outcome that is no answer."""
        kinds = (str(a.status) if a.outcome == "answered" else a.outcome for a in self.answers)
        return dict(sorted(Counter(kinds).items()))

    def summary(self) -> dict[str, Any]:
        """For the JSON file."""
        count = max(len(self.answers), 1)
        return {
            "requests": len(self.answers),
            "seconds": self.seconds,
            "counts": self.counts(),
            "per_second": self.rate(),
            **{f"p{q:g}_ms": 1e3 * self.percentile(q / 100) for q in (50, 90, 99, 99.9)},
            "client_cpu_share": self.client_cpu / self.seconds,
            "client_us_per_request": 1e6 * self.client_cpu / count,
            **self._of_machine(count),
            **self.details,
        }

    def _of_machine(self, count: int) -> dict[str, float]:
        if self.server_cpu is None or self.others_cores is None:
            return {}
        return {
            "server_ms_per_request": 1e3 * self.server_cpu / count,
            "others_cores": self.others_cores,
        }


def percentile(values: Iterable[float], share: float) -> float:
    """The smallest of the values that at least this share of them does not exceed."""
    ranked = sorted(values)
    return ranked[max(math.ceil(share * len(ranked)), 1) - 1] if ranked else math.nan


async def closed_loop(
    client: Client,
    requests: Sequence[bytes],
    clients: int,
    *,
    seconds: float = math.inf,
    count: float = math.inf,
    stop: Callable[[], bool] = lambda: False,
    keep: int = 0,
) -> Load:
    """So many clients, each sending its next request when it has the answer to the last.

    A client whose connection is refused ends. It ends after `seconds`, after `count` requests of
    all, or when `stop` says so. Of every `keep`-th request the body is kept (True: of all).
    """
    answers: list[Answer] = []
    numbers, begun = itertools.count(), time.perf_counter()
    cpu, until = time.process_time(), begun + seconds

    async def one() -> None:
        while time.perf_counter() < until and not stop():
            number = next(numbers)
            if number >= count:
                return
            answer = await client.ask(requests[number % len(requests)], number % len(requests))
            if not keep or number % keep:
                answer.body = b""
            answers.append(answer)
            if answer.outcome == "refused":
                return

    await asyncio.gather(*(one() for _ in range(clients)))
    took = time.perf_counter() - begun
    return Load(answers, took, time.process_time() - cpu)


async def open_loop(
    client: Client,
    requests: Sequence[bytes],
    starts: Sequence[float],
) -> Load:
    """Requests at times set before, whether or not the earlier ones are answered.

    `starts` are seconds from the beginning, ascending. Latencies count from these times, so that
    what waits in a late client, or for a connection, is not left out ("coordinated omission").
    `details` has by how much the client itself was late.
    """
    begun, cpu = time.perf_counter(), time.process_time()
    tasks: list[asyncio.Task[Answer]] = []
    late = []
    for number, at in enumerate(starts):
        ahead = begun + at - time.perf_counter()
        if ahead > 0:
            await asyncio.sleep(ahead)
        late.append(time.perf_counter() - begun - at)
        which = number % len(requests)
        tasks.append(asyncio.create_task(client.ask(requests[which], which, begun + at)))
        if number % 16 == 15:
            await asyncio.sleep(0)  # a late client must still read its answers
    answers = list(await asyncio.gather(*tasks))
    for answer in answers:
        answer.body = b""
    # Until the last answer, but not less than the schedule: a rate is of the time it was offered.
    took = max(time.perf_counter() - begun, starts[-1] if starts else 0)
    details = {"client_late_p99_ms": 1e3 * percentile(late, 0.99)}
    return Load(answers, took, time.process_time() - cpu, details=details)


def run(work: Coroutine[Any, Any, Any]) -> Any:
    """Runs it to its end, on uvloop where that is installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(work)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work)


# --- Requests ---


def request_bytes(
    address: Address,
    method: str,
    path: str,
    body: bytes = b"",
    kind: str = "",
    token: str | None = None,
    **headers: str,
) -> bytes:
    """A whole request. `kind` is its Content-Type; names of `headers` have _ for -."""
    lines = [f"{method} {path} HTTP/1.1", f"Host: {address.host}:{address.port}"]
    if kind:
        lines.append(f"Content-Type: {kind}")
    if body or method in ("POST", "PUT"):
        lines.append(f"Content-Length: {len(body)}")
    if token:
        lines.append(f"Authorization: Bearer {token}")
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


def multipart(
    files: Sequence[bytes], field_name: str = "pictures", kind: str = "image/jpeg"
) -> tuple[bytes, str]:
    """The body with these files, and its Content-Type."""
    boundary = b"a-boundary-that-no-picture-has"
    parts = [
        b'--%s\r\nContent-Disposition: form-data; name="%s"; filename="%d.bin"\r\n'
        b"Content-Type: %s\r\n\r\n%s\r\n" % (boundary, field_name.encode(), i, kind.encode(), one)
        for i, one in enumerate(files)
    ]
    body = b"".join(parts) + b"--%s--\r\n" % boundary
    return body, f"multipart/form-data; boundary={boundary.decode()}"
