"""A server on the loopback interface that serves one body, well or in a chosen wrong way."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Fault = Callable[["Handler"], None]


class Handler(BaseHTTPRequestHandler):
    server: FaultServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.close_connection = True
        self.server.asked.append((self.path, self.headers.get("Range")))
        with suppress(ConnectionError):
            self.server.next_fault()(self)

    def head(self, status: int = 200, **headers: object) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), str(value))
        self.send_header("Connection", "close")
        self.end_headers()

    def full(self, **changed: object) -> None:
        """The headers of a good answer, with changes."""
        size = len(self.server.body)
        self.head(**({"Content_Length": size, "ETag": self.server.etag} | changed))

    def log_message(self, *_: object) -> None:
        """Quiet."""


class FaultServer(ThreadingHTTPServer):
    """Use it in a `with` statement.

    Args:
        body: What a good answer holds.
        pause: Seconds between two of the 20 pieces a good answer is sent in.

    Attributes:
        faults: What happens to the next requests, in order; then `always`.
        asked: (path, Range) of each request.
        sent: Bytes that `endless` could send.
    """

    daemon_threads = True
    # Several clients at once, each in its own connection.
    request_queue_size = 64

    def __init__(self, body: bytes, pause: float = 0.0) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.body, self.pause, self.etag = body, pause, '"v1"'
        self.faults: list[Fault] = []
        self.always: Fault = good
        self.asked: list[tuple[str, str | None]] = []
        self.sent = 0
        self.stop = threading.Event()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def next_fault(self) -> Fault:
        return self.faults.pop(0) if self.faults else self.always

    def __enter__(self) -> FaultServer:
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.shutdown()
        self.server_close()

    def handle_error(self, *_: object) -> None:
        """A client that was killed is no news."""


def good(h: Handler) -> None:
    """Ranges and If-Range as RFC 9110 has them."""
    body, wanted = h.server.body, h.headers.get("Range")
    start = 0
    if wanted and h.headers.get("If-Range") == h.server.etag:
        start = int(wanted.removeprefix("bytes=").rstrip("-"))
    if start >= len(body):
        return h.head(416, Content_Length=0)
    if start:
        there = f"bytes {start}-{len(body) - 1}/{len(body)}"
        h.head(206, Content_Length=len(body) - start, Content_Range=there, ETag=h.server.etag)
    else:
        h.full()
    step = max((len(body) - start) // 20, 1)
    for at in range(start, len(body), step):
        h.wfile.write(body[at : at + step])
        if h.server.pause:
            time.sleep(h.server.pause)


def truncated(h: Handler) -> None:
    h.full()
    h.wfile.write(h.server.body[: len(h.server.body) // 2])


def endless(h: Handler) -> None:
    h.head(ETag=h.server.etag)
    for _ in range(64):
        h.wfile.write(bytes(1 << 20))
        h.server.sent += 1 << 20


def too_large(h: Handler) -> None:
    h.full(Content_Length=1 << 40)
    h.wfile.write(h.server.body)


def understated(h: Handler) -> None:
    h.full(Content_Length=len(h.server.body) // 2)
    h.wfile.write(h.server.body)


def overstated(h: Handler) -> None:
    h.full(Content_Length=2 * len(h.server.body))
    h.wfile.write(h.server.body)


def nonsense_length(h: Handler) -> None:
    h.full(Content_Length="many")


def stalled(h: Handler) -> None:
    h.full()
    h.wfile.write(h.server.body[:1000])
    h.server.stop.wait(10)


def silent(h: Handler) -> None:
    h.server.stop.wait(10)


def _drip(h: Handler, data: bytes) -> None:
    for byte in data:
        if h.server.stop.wait(0.01):
            return
        h.wfile.write(bytes([byte]))


def dripping(h: Handler) -> None:
    h.full()
    h.wfile.write(h.server.body[:1000])
    _drip(h, h.server.body[1000:3000])


def dripping_headers(h: Handler) -> None:
    _drip(h, b"HTTP/1.1 200 OK\r\nX-Padding: " + b"x" * 2000)


def dripping_chunk_header(h: Handler) -> None:
    h.head(Transfer_Encoding="chunked")
    _drip(h, b"0" * 2000)


def unavailable(h: Handler) -> None:
    h.head(503, Content_Length=0)


def too_many(h: Handler) -> None:
    h.head(429, Content_Length=0)


def missing(h: Handler) -> None:
    h.head(404, Content_Length=0)


def wrong(h: Handler) -> None:
    """The right size, and one byte that is not."""
    h.full()
    h.wfile.write(h.server.body[:-1] + bytes([h.server.body[-1] ^ 1]))


_PAGE = b"\n <!DOCTYPE html><html><body>Please log in to this network</body></html>"


def page(h: Handler) -> None:
    h.head(Content_Length=len(_PAGE), Content_Type="application/octet-stream")
    h.wfile.write(_PAGE)


def page_by_type(h: Handler) -> None:
    h.full(Content_Type="text/html; charset=utf-8")
    h.wfile.write(h.server.body)


def unasked_part(h: Handler) -> None:
    size = len(h.server.body)
    h.head(206, Content_Length=size, Content_Range=f"bytes 0-{size - 1}/{size}")
    h.wfile.write(h.server.body)


def other_range(h: Handler) -> None:
    """A continuation from the beginning, called one from the middle's neighbour."""
    size = len(h.server.body)
    h.head(206, Content_Length=size // 2, Content_Range=f"bytes 7-{size // 2 + 6}/{size}")
    h.wfile.write(h.server.body[: size // 2])


def other_file(h: Handler) -> None:
    """A 206 of a file that changed, from a server that does not know If-Range."""
    size = len(h.server.body)
    start = int(h.headers["Range"].removeprefix("bytes=").rstrip("-"))
    h.head(
        206,
        Content_Length=size - start,
        Content_Range=f"bytes {start}-{size - 1}/{size}",
        ETag='"v2"',
    )
    h.wfile.write(bytes(size - start))


def short_continuation(h: Handler) -> None:
    """A 206 that calls itself the whole rest and is half of it."""
    size, start = len(h.server.body), len(h.server.body) // 2
    h.head(
        206,
        Content_Length=1000,
        Content_Range=f"bytes {start}-{size - 1}/{size}",
        ETag=h.server.etag,
    )
    h.wfile.write(h.server.body[start : start + 1000])


def encoded(h: Handler) -> None:
    h.full(Content_Encoding="gzip")
    h.wfile.write(h.server.body)


def redirect(to: str) -> Fault:
    def fault(h: Handler) -> None:
        h.head(302, Content_Length=0, Location=to)

    return fault


def redirect_with_endless_body(h: Handler) -> None:
    h.head(302, Location="/model.bin")
    for _ in range(64):
        h.wfile.write(bytes(1 << 20))
    h.server.stop.wait(10)
