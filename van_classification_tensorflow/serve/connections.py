"""Connections of the server: uvicorn's, with time limits for slow ones, and an end without loss."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import select
import socket
import struct
import sys
from collections import deque
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, cast

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .http import FOLLOWED, GONE

MAX_HEAD = 65_536  # bytes of an address and all headers
HEAD_SECONDS = 10.0
MOST_WAITING = 16  # requests on a connection, behind the one at work
KEEP_ALIVE = 75  # seconds; longer than proxies keep theirs, so that it is they who close
_STUCK = 30.0  # seconds in which a client has to read `_READ` bytes of what waits for it
_READ = 10_000
_QUIET = 0.2  # seconds without a word, before an idle connection may be closed for others


@dataclass(frozen=True)
class Refusal:
    """What is answered without the application.

    Args:
        status: Of HTTP.
        text: One line.
        reason: What the metrics count it as.
    """

    status: int
    text: str
    reason: str

    def answer(self) -> bytes:
        """As it is sent."""
        body = json.dumps({"error": self.text}).encode()
        later = b"retry-after: 1\r\n" if self.status in (429, 503) else b""
        head = (
            b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n%b\r\n"
        )
        return STATUS_LINE[self.status] + head % (len(body), later) + body


_NO_HTTP = Refusal(400, "no HTTP request", "no HTTP")
_LONG_HEAD = Refusal(431, f"address and headers may have {MAX_HEAD:,} bytes", "head too long")
_SLOW_HEAD = Refusal(408, "the head of the request took too long", "head too slow")
_FULL = Refusal(503, "too many connections: try again", "connections full")
_ENDING = Refusal(503, "the server is about to end", "ending")
_LONG_PIPELINE = Refusal(
    429, f"{MOST_WAITING} requests may wait on a connection", "pipeline too long"
)


class Connection(HttpToolsProtocol):
    """A connection of a client, which knows since when it waits for what.

    Attributes:
        stage: What is being received: "new" before the first byte, then "head" and "body" of a
            request, "idle" between requests. Those before it may still be at work: see `busy`.
        since: When that began, or when the last answer was sent, in the loop's time.
    """

    app: Any
    stage: str
    since: float

    def connection_made(self, transport: Any) -> None:
        """Of asyncio."""
        super().connection_made(transport)
        self._enter("new")
        self._head_bytes = self._unfinished = 0
        self._fault = _NO_HTTP  # why the parser stops, if it does
        self._refusal: Refusal | None = None
        self._unread = 0  # bytes that waited for the client at `_stuck_since`
        self._stuck_since: float | None = None
        self._at_work: deque[Any] = deque()  # what answers requests, the oldest first
        if len(self.connections) > self._most and not self._make_room():
            self.refuse(_FULL)

    @property
    def _most(self) -> int:
        most: int = self.app.service.limits.connections
        return most

    def connection_lost(self, error: Exception | None) -> None:
        """Of asyncio."""
        for cycle in self._at_work:  # uvicorn tells the last one only
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(error)

    @property
    def busy(self) -> bool:
        """Whether a request has begun, head and all, that is not answered."""
        # `cycle` is the last one; those before it are answered in their order.
        return self.cycle is not None and not self.cycle.response_complete

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        if self._refusal is not None or (self.stage == "idle" and not data.strip(b"\r\n")):
            return  # an empty line before a request means nothing
        if self.stage == "idle":
            self._enter("head")
        elif self.stage == "new":
            self.stage = "head"  # without a second time limit
        self._unfinished += len(data)
        super().data_received(data)
        if self.stage in ("head", "body") and self._unfinished > MAX_HEAD:
            # httptools keeps a header, and one behind a body, until it is whole, however long.
            self.refuse(_LONG_HEAD)
        if self.cycle is not None and self.parser is not None and self.parser.should_upgrade():
            self.cycle.keep_alive = False  # what follows the request would be no HTTP

    def _enter(self, stage: str) -> None:
        self.stage, self.since = stage, self.loop.time()

    def on_message_begin(self) -> None:
        """Of httptools."""
        if self.stage != "head":
            self._enter("head")
        if self.busy and self.app.ending:
            self._stop_parsing(_ENDING)  # or a client that always asks anew would hold up the end
        if len(self.pipeline) >= MOST_WAITING:
            # All that came in one piece is parsed at once, so that to stop reading is not enough.
            self._stop_parsing(_LONG_PIPELINE)
        super().on_message_begin()
        self._head_bytes = 0
        scope: Any = self.scope
        scope[GONE] = self.transport.is_closing
        scope[FOLLOWED] = lambda: bool(self.pipeline)

    def on_url(self, url: bytes) -> None:
        """Of httptools."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of httptools."""
        if self.stage == "body":
            return  # behind a body, where it would still become one of the request
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._stop_parsing(_LONG_HEAD)

    def _stop_parsing(self, why: Refusal) -> None:
        self._fault = why
        raise ValueError  # which ends in `send_400_response`

    def on_headers_complete(self) -> None:
        """Of httptools."""
        super().on_headers_complete()  # which fails for some addresses
        self._at_work.append(self.cycle)
        self._enter("body")
        self._unfinished = 0

    def on_body(self, body: bytes) -> None:
        """Of httptools."""
        self._unfinished = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Of httptools."""
        super().on_message_complete()
        self._enter("idle")
        self._unfinished = 0

    def on_response_complete(self) -> None:
        """Of uvicorn."""
        self._at_work.popleft()
        if self._refusal is not None and not self.pipeline:
            self._send_refusal(self._refusal)
        if not self.busy and self.stage != "body":
            self.since = self.loop.time()  # a head that has begun has its time from now on
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn: what it sends where there is no request to be understood."""
        self.refuse(self._fault)

    def refuse(self, why: Refusal) -> None:
        """Answers what is being received without the application, and closes.

        Requests before it are answered first; what comes after it is passed over.
        """
        if self.transport.is_closing() or self._refusal is not None:
            return
        self._refusal = why
        self.app.service.metrics.refusals.labels(why.reason).inc()
        if self.stage == "body" and self.pipeline:
            self.pipeline.popleft()  # this request, which will not be whole; others are at work
        elif self.stage == "body" and self.cycle.response_started:
            self.cycle.keep_alive = False  # it has its answer, or a part of it
            if not self.busy:
                self.transport.close()
        elif self.stage == "body" or not self.busy:
            self._send_refusal(why)

    def _send_refusal(self, why: Refusal) -> None:
        if not self.transport.is_closing():
            self.app.service.metrics.requests.labels("connection", str(why.status)).inc()
            self.transport.write(why.answer())
            self.transport.close()

    def sweep(self, now: float) -> None:
        """Closes it where the client is too slow; called every second or so."""
        waited = now - self.since
        unread = self.transport.get_write_buffer_size()
        if unread:  # the client does not read as fast as it asks
            if self._stuck_since is None or unread <= self._unread - _READ:
                self._unread, self._stuck_since = unread, now
            if now - self._stuck_since > _STUCK:
                self.transport.abort()
            return
        self._stuck_since = None
        if self.transport.is_closing() or self.busy:  # for slow bodies: see `body_of`
            return
        if self.stage in ("new", "head") and waited > HEAD_SECONDS:
            self.refuse(_SLOW_HEAD)
        elif self.stage == "body" and waited > self.app.service.limits.upload_seconds + 5:
            self.transport.abort()  # the application has answered long ago

    def close_if_idle(self, now: float) -> None:
        """At the end: closes it unless there is a request, or the beginning of one, on it.

        A head that has begun is waited for as long as ever: `HEAD_SECONDS`. It is dropped where a
        request before it is still at work, whose answer says that it is the last one.
        """
        if self.stage in ("new", "idle") and self._waited(now) >= _QUIET:
            self._close_if_silent()

    def _waited(self, now: float) -> float:
        """Seconds that the client has been waited for; 0 while it is the server's turn."""
        if self.transport.get_write_buffer_size():
            return 0.0 if self._stuck_since is None else now - self._stuck_since
        return 0.0 if self.busy or self.transport.is_closing() else now - self.since

    def _close_if_silent(self) -> bool:
        if _has_data(self.transport.get_extra_info("socket")):
            return False
        if self.stage == "head":
            self.refuse(_SLOW_HEAD)
        self.transport.close()
        return True

    def _make_room(self) -> bool:
        """Closes connections whose clients have been waited for longest, or ends a slow upload.

        One of a hundred, as to look at all of them for each new one would cost too much.
        """
        now, all_of_them = self.loop.time(), cast("set[Connection]", self.connections)
        longest = nlargest(max(1, self._most // 100), all_of_them, lambda one: one._waited(now))
        closed = [one for one in longest if one._waited(now) >= _QUIET and one._leave()]
        all_of_them.difference_update(closed)  # which asyncio tells them a little later only
        return bool(closed or self.app.service.uploads.end_slow())

    def _leave(self) -> bool:
        if not self.transport.get_write_buffer_size():
            return self._close_if_silent()
        self.transport.abort()  # it would keep its place until the client reads
        return True


def _has_data(given: Any) -> bool:
    """Whether something has arrived that the loop has not read yet."""
    try:
        waiting = select.poll()
        waiting.register(given.fileno(), select.POLLIN)
        return bool(waiting.poll(0))
    except (OSError, ValueError):  # closed
        return False


# A program for the system's packet filter: drops what asks for a new connection (SYN without ACK).
_NO_NEW_CONNECTIONS = (
    (0x30, 0, 0, 13),  # the flags of the TCP header
    (0x54, 0, 0, 0x12),  # of them SYN and ACK
    (0x15, 0, 1, 0x02),  # SYN alone?
    (0x06, 0, 0, 0),  # drop it
    (0x06, 0, 0, 0xFFFFFFFF),  # let it pass
)
_SO_ATTACH_FILTER = 26  # of Linux
_HANDSHAKE = 0.05  # seconds that one may take which has begun


def _refuse_new(listener: socket.socket) -> None:
    """Lets nobody begin a connection any more, where the system can do that.

    Whoever tries meanwhile tries again a second later, and finds that nobody listens. Without
    this, a connection that comes just when the socket is closed, perhaps with its request, is lost.
    """
    program = b"".join(struct.pack("HBBI", *one) for one in _NO_NEW_CONNECTIONS)
    kept = ctypes.create_string_buffer(program)
    size = len(_NO_NEW_CONNECTIONS)
    with contextlib.suppress(OSError):
        if sys.platform == "linux":
            filtered = struct.pack("HP", size, ctypes.addressof(kept))
            listener.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, filtered)


async def stop_listening(listener: socket.socket, servers: list[Any]) -> None:
    """Stops taking connections; those that the system has taken already are taken over first."""
    _refuse_new(listener)
    await asyncio.sleep(_HANDSHAKE)
    for _ in range(1_000):
        if not _has_data(listener):
            break
        await asyncio.sleep(0.001)
    for server in servers:
        server.close()
    listener.close()
