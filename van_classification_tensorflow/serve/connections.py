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
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from .http import GONE

MAX_HEAD = 65_536  # bytes of an address and all headers
HEAD_SECONDS = 10.0
_LONG_HEAD = 431, f"address and headers may have {MAX_HEAD:,} bytes"
KEEP_ALIVE = 75  # seconds; longer than proxies keep theirs, so that it is they who close
_STUCK = 30.0  # seconds without reading a byte of the answer
_QUIET = 0.2  # seconds since the last answer, before an idle connection is closed at the end


class Connection(HttpToolsProtocol):
    """A connection of a client, which knows since when it waits for what.

    Attributes:
        stage: "head" while the head of a request is awaited, "body", "answer" while the
            application has it, or "idle" between requests.
        since: When that began, in the loop's time.
    """

    most = 4_000  # connections

    app: Any

    def connection_made(self, transport: Any) -> None:
        """Of asyncio."""
        super().connection_made(transport)
        self.stage, self.since = "head", self.loop.time()
        self._head_bytes = self._unfinished = 0
        self._refusal = 400, "no HTTP request"
        self._stuck_since: float | None = None
        if len(self.connections) > self.most:
            self.refuse(503, "too many connections: try again")

    def data_received(self, data: bytes) -> None:
        """Of asyncio."""
        if self.stage == "idle":
            self._enter("head")
        if self.stage == "head":
            self._unfinished += len(data)
        super().data_received(data)
        if self.stage == "head" and self._unfinished > MAX_HEAD:
            # httptools keeps a header until it is whole, however long that is.
            self.refuse(*_LONG_HEAD)
        if self.cycle is not None and self.parser is not None and self.parser.should_upgrade():
            self.cycle.keep_alive = False  # what follows the request would be no HTTP

    def _enter(self, stage: str) -> None:
        self.stage, self.since = stage, self.loop.time()

    def on_message_begin(self) -> None:
        """Of httptools."""
        super().on_message_begin()
        self._head_bytes = 0
        self._enter("head")
        scope: Any = self.scope
        scope[GONE] = self.transport.is_closing

    def on_url(self, url: bytes) -> None:
        """Of httptools."""
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        """Of httptools."""
        self._count(len(name) + len(value) + 4)
        super().on_header(name, value)

    def _count(self, size: int) -> None:
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD:
            self._refusal = _LONG_HEAD
            raise ValueError  # which ends in `send_400_response`

    def on_headers_complete(self) -> None:
        """Of httptools."""
        self._enter("body")
        self._unfinished = 0
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Of httptools."""
        super().on_message_complete()
        done = self.cycle is not None and self.cycle.response_complete
        self._enter("idle" if done else "answer")

    def on_response_complete(self) -> None:
        """Of uvicorn."""
        if self.stage == "answer" and not self.pipeline:
            self._enter("idle")
        super().on_response_complete()

    def send_400_response(self, msg: str) -> None:
        """Of uvicorn: what it sends where there is no request to be understood."""
        self.refuse(*self._refusal)

    def refuse(self, status: int, text: str) -> None:
        """Answers without the application, and closes."""
        if self.transport.is_closing():
            return
        body = json.dumps({"error": text}).encode()
        head = (
            b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n"
            b"retry-after: 1\r\n\r\n" % len(body)
        )
        self.transport.write(STATUS_LINE[status] + head + body)
        self.transport.close()

    def sweep(self, now: float) -> None:
        """Closes it where it is too slow; called every second or so."""
        waited = now - self.since
        if self.transport.get_write_buffer_size():  # the client does not read
            self._stuck_since = self._stuck_since or now
            if now - self._stuck_since > _STUCK:
                self.transport.abort()
            return
        self._stuck_since = None
        if self.transport.is_closing():
            return
        if self.stage == "head" and waited > HEAD_SECONDS:
            self.refuse(408, "the head of the request took too long")
        elif self.stage == "body" and waited > self.app.service.limits.upload_seconds + 5:
            self.transport.abort()  # the application has answered long ago

    def close_if_idle(self, now: float) -> None:
        """At the end: closes it unless there is a request, or the beginning of one, on it."""
        if self.stage in ("body", "answer") or now - self.since < _QUIET:
            return
        if not _has_data(self.transport.get_extra_info("socket")):
            self.transport.close()


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
