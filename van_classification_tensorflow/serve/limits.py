"""What the server takes in at most: pictures at work, and bytes that are being uploaded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .http import busy

_KEPT = 0.9  # of the pace, when the next request is done
_FEW = 8  # pictures, among which the time of one says little of that of many


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
    """

    bytes: int
    pixels: int
    pictures: int
    upload_seconds: float
    timeout: float
    queue: int

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


class Uploads:
    """Counts the bytes of all bodies that are held, and refuses what would be too many.

    Args:
        most: Bytes.

    Attributes:
        held: Bytes now.
    """

    def __init__(self, most: int):
        self.most, self.held = most, 0

    def take(self, count: int) -> None:
        """Notes so many more bytes.

        Raises:
            HttpError: 429; they are not noted then.
        """
        if self.held + count > self.most:
            raise busy("too much is being uploaded: try again", "uploads full")
        self.held += count

    def give_back(self, count: int) -> None:
        """They are not held any more."""
        self.held -= count
