"""The bodies of requests -> pictures, in memory, within limits that hold while they arrive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fastapi import Request
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from ..support.text import printable, shown
from .http import HttpError
from .limits import Limits, Uploads

_MAX_NAME = 255  # characters
_BOUNDARY = re.compile(rb"[ -~]{1,200}")
_BINARY = b"application/octet-stream"


@dataclass(frozen=True)
class Upload:
    """A picture as it came.

    Args:
        name: Of its file; None where it has none.
        data: Of the file.
    """

    name: str | None
    data: bytes | memoryview


@asynccontextmanager
async def body_of(request: Request, limits: Limits, uploads: Uploads) -> AsyncIterator[bytes]:
    """The body of a request, counted in `uploads` for as long as this is open.

    Raises:
        HttpError: 400 it ended early; 408 too slow; 413 too large; 415 compressed; 429 too much is
            being uploaded.
    """
    if request.headers.get("content-encoding", "") not in ("", "identity"):
        raise HttpError(415, "a compressed body is not taken: leave Content-Encoding out")
    _check_length(request.headers.get("content-length", ""), limits)
    clock = asyncio.timeout(limits.upload_seconds)
    with uploads.receive(lambda: _expire(clock)) as arriving:
        try:
            async with clock:
                async for chunk in request.stream():
                    if arriving.held + len(chunk) > limits.bytes:
                        raise _too_large(limits)
                    if chunk:
                        arriving.add(chunk)
            body = arriving.whole()
        except ClientDisconnect:
            raise HttpError(400, "the body ended early", reason="client gone") from None
        except TimeoutError:
            text = f"the body took longer than {limits.upload_seconds:g} s"
            if arriving.ended:
                text = "the body came too slowly, and others need its place: try again"
            raise HttpError(408, text, {"Connection": "close"}, "upload too slow") from None
        yield body


def _expire(clock: asyncio.Timeout) -> None:
    if not clock.expired():
        clock.reschedule(0)  # as if the time were over


def _check_length(said: str, limits: Limits) -> None:
    if said.isascii() and said.isdigit() and int(said[:20]) > limits.bytes:
        raise _too_large(limits)


def _too_large(limits: Limits) -> HttpError:
    # Without closing: what the client still sends would meet a closed door, and hide the answer.
    text = f"a request may have {limits.bytes:,} bytes"
    return HttpError(413, text, reason="body too large")


def uploads_of(body: bytes, content_type: str, most: int) -> list[Upload]:
    """The pictures in a body.

    Args:
        body: One picture, or a form of several.
        content_type: Of the body.
        most: How many a request may have.

    Raises:
        HttpError: 400 or 413 it has none, or too many, or is no such form; 415 it is of another
            type.
    """
    kind, options = parse_options_header(content_type)
    if kind == b"multipart/form-data":
        return _Form(body, options.get(b"boundary", b""), most).found
    _check_type(kind)
    if not body:
        raise HttpError(400, "the body is empty: it must be a picture")
    return [Upload(None, body)]


def _check_type(kind: bytes) -> None:
    if kind and not _is_of_picture(kind):
        raise HttpError(
            415,
            "Content-Type must be image/..., application/octet-stream or multipart/form-data. "
            f"Received: {shown(kind.decode('latin-1'))}",
        )


def _is_of_picture(kind: bytes) -> bool:
    return kind == _BINARY or kind.startswith(b"image/")


class _Form:
    """A form (RFC 7578) that is there as a whole; its files are views of it.

    Attributes:
        found: The files.

    Raises:
        HttpError: 400, or 413 where it has too many files.
    """

    def __init__(self, body: bytes, boundary: bytes, most: int):
        if not _BOUNDARY.fullmatch(boundary):
            raise HttpError(400, "multipart/form-data needs a boundary, 1 to 200 letters of ASCII")
        self.found: list[Upload] = []
        self._body, self._most, self._ended = memoryview(body), most, False
        self._check_marks(body, b"\r\n--" + boundary)
        callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_headers_finished": self._headers_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            MultipartParser(boundary, callbacks).write(body)
        except FormParserError as error:
            raise HttpError(400, f"the form is damaged: {error}") from None
        if not self._ended:
            raise HttpError(400, "the form ends early: its last boundary is missing")
        if not self.found:
            raise HttpError(400, "the form has no file")

    def _check_marks(self, body: bytes, mark: bytes) -> None:
        # Behind a boundary the parser goes on byte by byte, which takes seconds for millions.
        if body.count(mark) > body.count(mark + b"\r\n") + body.count(mark + b"--"):
            raise HttpError(400, "the form is damaged after a boundary")

    # What the parser finds; of a file it may give one piece after the other.

    def _begin(self) -> None:
        self._name, self._data, self._start = b"", self._body[:0], -1
        self._headers: dict[bytes, bytes] = {}

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._name = data[start:end].lower()

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._headers[self._name] = data[start:end]

    def _headers_end(self) -> None:
        _, said = parse_options_header(self._headers.get(b"content-disposition"))
        kind, _ = parse_options_header(self._headers.get(b"content-type"))
        file = said.get(b"filename")
        if file is None and not _is_of_picture(kind):
            field = shown(said.get(b"name", b"").decode("utf-8", "replace"))
            raise HttpError(
                400,
                f"the form has a field {field} that is no file; options are given in the address",
            )
        if len(self.found) == self._most:
            raise HttpError(413, f"a request may have {self._most} pictures", reason="pictures")
        self._file = printable(file.decode("utf-8", "replace"))[:_MAX_NAME] if file else None

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._start = start if self._start < 0 else self._start
        self._data = self._body[self._start : end]

    def _part_end(self) -> None:
        self.found.append(Upload(self._file, self._data))

    def _end(self) -> None:
        self._ended = True
