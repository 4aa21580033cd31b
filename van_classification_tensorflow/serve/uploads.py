"""The bodies of requests -> pictures, in memory, within limits that hold while they arrive."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import unquote

from ..support.text import printable, shown
from .http import HttpError, Request
from .limits import Limits, Uploads

_CLOSE = ((b"connection", b"close"),)
_MAX_PART_HEAD = 16_384  # bytes of the headers of a part
_MAX_NAME = 255  # characters
_BOUNDARY = re.compile(r"[ -~]{1,200}")
_BINARY = "application/octet-stream"
_PARAMETER = re.compile(r'\s*;\s*([\w*-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s;"]*))')


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
    if request.header(b"content-encoding") not in ("", "identity"):
        raise HttpError(415, "a compressed body is not taken: leave Content-Encoding out")
    _check_length(request.header(b"content-length"), limits)
    chunks: list[bytes] = []
    held = 0
    try:
        try:
            async with asyncio.timeout(limits.upload_seconds):
                more = True
                while more:
                    message = await request.receive()
                    if message["type"] == "http.disconnect":
                        raise HttpError(400, "the body ended early", reason="client gone")
                    chunk, more = message.get("body", b""), message.get("more_body", False)
                    if held + len(chunk) > limits.bytes:
                        raise _too_large(limits)
                    uploads.take(len(chunk))
                    held += len(chunk)
                    chunks.append(chunk)
        except TimeoutError:
            raise HttpError(
                408,
                f"the body took longer than {limits.upload_seconds:g} s",
                _CLOSE,
                "upload too slow",
            ) from None
        yield chunks[0] if len(chunks) == 1 else b"".join(chunks)
    finally:
        uploads.give_back(held)


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
    kind = content_type.partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        found = []
        for upload in _parts(body, _boundary_of(content_type)):
            found.append(upload)
            if len(found) > most:
                raise HttpError(413, f"a request may have {most} pictures", reason="pictures")
        if not found:
            raise HttpError(400, "the form has no file")
        return found
    if kind and kind != _BINARY and not kind.startswith("image/"):
        raise HttpError(
            415,
            "Content-Type must be image/..., application/octet-stream or multipart/form-data. "
            f"Received: {shown(kind)}",
        )
    if not body:
        raise HttpError(400, "the body is empty: it must be a picture")
    return [Upload(None, body)]


def _parameters(header: str) -> dict[str, str]:
    """Of a header `word; name=value; name="value"`; up to the first that is none."""
    found: dict[str, str] = {}
    at = header.find(";")
    # One after the other, never again from the middle: a stranger's header costs its length.
    while at >= 0 and (one := _PARAMETER.match(header, at)):
        name, quoted, plain = one.groups()
        found[name.lower()] = plain if quoted is None else re.sub(r"\\(.)", r"\1", quoted)
        at = one.end()
    return found


def _boundary_of(content_type: str) -> bytes:
    boundary = _parameters(content_type).get("boundary", "")
    if not _BOUNDARY.fullmatch(boundary):
        raise HttpError(400, "multipart/form-data needs a boundary, 1 to 200 letters of ASCII")
    return boundary.encode("ascii")


def _parts(body: bytes, boundary: bytes) -> Iterator[Upload]:
    """The files of a form (RFC 7578); whatever comes before and after it is passed over."""
    mark, view = b"\r\n--" + boundary, memoryview(body)
    if body.startswith(mark[2:]):
        at = len(mark) - 2
    else:
        start = body.find(mark)
        if start < 0:
            raise HttpError(400, "the form does not begin with its boundary")
        at = start + len(mark)
    while body[at : at + 2] != b"--":
        line = body.find(b"\r\n", at, at + 200)
        if line < 0 or body[at:line].strip(b" \t"):
            raise HttpError(400, "the form is damaged after a boundary")
        end = body.find(mark, line)
        if end < 0:
            raise HttpError(400, "the form ends early: its last boundary is missing")
        head_end = body.find(b"\r\n\r\n", line, min(line + _MAX_PART_HEAD, end + 2))
        if head_end < 0:
            raise HttpError(400, "a part of the form has no headers that end")
        yield _upload(body[line:head_end].decode("utf-8", "replace"), view[head_end + 4 : end])
        at = end + len(mark)


def _upload(head: str, data: memoryview) -> Upload:
    headers = {}
    for line in head.split("\r\n"):
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    said = _parameters(headers.get("content-disposition", ""))
    kind = headers.get("content-type", "").partition(";")[0].strip().lower()
    file = said.get("filename")
    if "filename*" in said:
        file = unquote(said["filename*"].rpartition("'")[2], errors="replace")
    if file is None and kind != _BINARY and not kind.startswith("image/"):
        field = shown(said.get("name", ""))
        raise HttpError(
            400, f"the form has a field {field} that is no file; options are given in the address"
        )
    return Upload(printable(file)[:_MAX_NAME] if file else None, data)
