"""What the server takes in at most: pictures at work, and bytes that are being uploaded."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .http import busy

_KEPT = 0.9  # of the pace, when the next request is done
_FEW = 8  # pictures, among which the time of one says little of that of many

# An upload is slow, and ended where others need its place, that has not had so many bytes for so
# many seconds: 20 kB/s.
_STRETCH, _PATIENCE = 40_000, 2.0


@dataclass(frozen=True)
class Limits:
    """Of a request, and of all of them together.

    Args:
        bytes: Of a body.
        pixels: Of a picture.
        pictures: Of a request.
        upload_seconds: That a body may take.
        timeout: Seconds that a picture may wait.
        queue: Pictures that are taken in at most.
        connections: That are open at most.
    """

    bytes: int
    pixels: int
    pictures: int
    upload_seconds: float
    timeout: float
    queue: int
    connections: int

    @property
    def uploads(self) -> int:
        """Bytes of all bodies that are being held: of a few large ones, or of many small ones."""
        return max(256_000_000, 4 * self.bytes)


class Admission:
    """Counts the pictures that were taken in and are not answered, and refuses one too many.

    It also refuses what would wait longer than a picture may, at the pace of the last ones.

    Args:
        limits: How many, and how long they may wait.

    Attributes:
        count: Pictures taken in now.
        pace: Seconds from one picture to the next, while there are enough of them to tell.
    """

    def __init__(self, limits: Limits):
        self.limits, self.count, self.pace = limits, 0, 0.0

    def check(self, pictures: int = 1) -> None:
        """Refuses what has no place now; costs nothing, so it is asked before a body is read.

        Raises:
            HttpError: 429.
        """
        limits, wait = self.limits, self.count * self.pace
        if self.count + pictures > limits.queue or wait > limits.timeout:
            raise busy("the queue is full: try again", "queue full", seconds=wait / 2)

    @contextmanager
    def enter(self, pictures: int) -> Iterator[None]:
        """Takes in so many pictures, for as long as it is open.

        Raises:
            HttpError: 429.
        """
        self.check(pictures)
        self.count += pictures
        before, began = self.count, time.monotonic()
        try:
            yield
            seconds = (time.monotonic() - began) / before if before > _FEW else 0.0
            self.pace = _KEPT * self.pace + (1 - _KEPT) * seconds
        finally:
            self.count -= pictures


class Arriving:
    """A body that is arriving, until it is whole; its bytes are counted until it is released.

    Args:
        uploads: Where they are counted.
        stop: Called when it is ended, to make room for others.

    Attributes:
        progressed: When the last `_STRETCH` bytes had come, or it began.
        ended: Whether it was ended.
    """

    def __init__(self, uploads: Uploads, stop: Callable[[], None]):
        self._uploads, self._stop = uploads, stop
        self._chunks: list[bytes] = []
        self._stretch = self.held = 0
        self.progressed, self.ended = time.monotonic(), False

    def add(self, chunk: bytes) -> None:
        """Keeps what has come.

        Raises:
            HttpError: 429, there is no room for it.
            TimeoutError: It was ended.
        """
        self._uploads.take(len(chunk))  # which may end this one
        self.held += len(chunk)
        self._chunks.append(chunk)
        self._check()
        self._stretch += len(chunk)
        if self._stretch >= _STRETCH:
            self.progressed, self._stretch = time.monotonic(), 0

    def whole(self) -> bytes:
        """All of it; from now on it is not ended any more.

        Raises:
            TimeoutError: It was ended.
        """
        self._check()
        self._uploads.arriving.discard(self)
        body = b"".join(self._chunks)
        self._chunks.clear()
        return body

    def _check(self) -> None:
        if self.ended:
            raise TimeoutError

    def end(self) -> None:
        """Lets go of its bytes at once, though whoever reads it learns that a little later."""
        self.ended = True
        self.release()
        self._stop()

    def release(self) -> None:
        """Its bytes are not held any more."""
        self._uploads.arriving.discard(self)
        self._chunks.clear()
        self._uploads.give_back(self.held)
        self.held = 0


class Uploads:
    """Counts the bytes of all bodies that are held, and refuses what would be too many.

    Where they are too many, slow uploads are ended before anything is refused.

    Args:
        most: Bytes.
        watch: Called with the number of bytes that have come.

    Attributes:
        held: Bytes now.
        arriving: The bodies that are not whole yet.
    """

    def __init__(self, most: int, watch: Callable[[int], None] = lambda count: None):
        self.most, self.held, self._watch = most, 0, watch
        self.arriving: set[Arriving] = set()

    @contextmanager
    def receive(self, stop: Callable[[], None]) -> Iterator[Arriving]:
        """A body, counted for as long as this is open; `stop` is called when it is ended."""
        one = Arriving(self, stop)
        self.arriving.add(one)
        try:
            yield one
        finally:
            one.release()

    def take(self, count: int) -> None:
        """Notes so many more bytes.

        Raises:
            HttpError: 429; they are not noted then.
        """
        self._watch(count)
        while self.held + count > self.most:
            if not self.end_slow(least=1):
                raise busy("too much is being uploaded: try again", "uploads full")
        self.held += count

    def end_slow(self, least: int = 0) -> bool:
        """Ends the largest of the slow uploads; False where none that has `least` bytes is slow."""
        since = time.monotonic() - _PATIENCE
        slow = (one for one in self.arriving if one.progressed <= since and one.held >= least)
        largest = max(slow, key=lambda one: one.held, default=None)
        if largest is not None:
            largest.end()
        return largest is not None

    def give_back(self, count: int) -> None:
        """They are not held any more."""
        self.held -= count
