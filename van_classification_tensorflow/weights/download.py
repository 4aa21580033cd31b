"""One address -> one complete file: bounded in size, time, speed and redirects; resumable.

The bytes land in a part file; whether they are the right ones is for the caller to judge.
Imports neither Keras nor a backend, and `requests` only for a transfer.
"""

from __future__ import annotations

import json
import queue
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.parse import urljoin, urlsplit

Progress = Callable[[int, int | None], None]  # bytes so far, bytes in all where known

_HTML = (b"<!doctype", b"<html", b"<head", b"<body", b"<?xml", b"<!--")
_SNIFF = 64  # bytes: enough to tell a web page from a checkpoint


class DownloadError(OSError):
    """A file could not be fetched, stored or verified; the message says what to do."""


class TransferError(DownloadError):
    """An address did not give the file; another one may."""


class StatusError(TransferError):
    """A server said no.

    Args:
        text: The message.
        status: Of HTTP.
        reason: What a model hub says of it in one word, such as "GatedRepo"; "" where nothing.
    """

    def __init__(self, text: str, status: int, reason: str = ""):
        super().__init__(text)
        self.status, self.reason = status, reason


class NoSpaceError(DownloadError):
    """The disk cannot hold the file."""


class _PassingError(Exception):
    """What may pass: the same address is asked again."""


class _StaleError(_PassingError):
    """What is there already cannot be gone on with: again from zero."""


@dataclass(frozen=True)
class Limits:
    """How patient a transfer is. Times in seconds.

    Args:
        connect: For the connection to one address.
        read: Between two pieces of the answer.
        answer: For the whole of the answer's headers, name look-up included.
        window: Over this time the speed is judged.
        min_speed: Bytes per second below which a transfer is given up.
        attempts: Requests to one address, redirects not counted.
        backoff: Pause before the second attempt; it doubles with each further one.
        redirects: How many in a row are followed.
        lock: Waiting for another process that fetches the same file.
    """

    connect: float = 10.0
    read: float = 30.0
    answer: float = 60.0
    window: float = 30.0
    min_speed: float = 1024.0
    attempts: int = 5
    backoff: float = 1.0
    redirects: int = 5
    lock: float = 3600.0


def transfer(
    url: str,
    part: Path,
    *,
    max_bytes: int,
    limits: Limits,
    progress: Progress = lambda *_: None,
    token: str = "",
    pages: bool = False,
) -> bool:
    """Fetch `url` into `part`, going on where an earlier attempt at the same address stopped.

    Args:
        url: http or https.
        part: Where the bytes go.
        max_bytes: More are refused.
        limits: How patient to be.
        progress: Called with bytes so far, and bytes in all where known.
        token: Sent to the server of `url`, and to no other that it redirects to.
        pages: Whether a web page may be the file, whose hash is known.

    Returns:
        Whether `part` was put together from several answers.

    Raises:
        TransferError: The address does not give the file. What came so far stays in `part`
            where it may be resumed.
        NoSpaceError: The disk is too small.
        OSError: `part` cannot be written.
    """
    import requests

    if urlsplit(url).scheme not in ("http", "https"):
        raise TransferError(f"{shown(url)} is refused: only http and https addresses are")
    with requests.Session() as session:
        # Redirects are ours alone: `requests` would read a redirect's body, however long.
        session.get_redirect_target = lambda _: None
        for attempt in range(1, limits.attempts + 1):
            try:
                return _attempt(session, url, part, max_bytes, limits, progress, token, pages)
            except _PassingError as error:
                reason = str(error)
                if isinstance(error, _StaleError):
                    discard(part)
            if attempt < limits.attempts:
                time.sleep(limits.backoff * 2 ** (attempt - 1))
    raise TransferError(f"{shown(url)} failed {limits.attempts} times, at last: {reason}")


def discard(part: Path) -> None:
    """Remove a part file and what is remembered about it."""
    forget(part)
    part.unlink(missing_ok=True)


def forget(part: Path) -> None:
    """Remove what is remembered about a part file, as before it gets another name."""
    _memory(part).unlink(missing_ok=True)


def shown(url: str, bare: bool = False) -> str:
    """`url` as it may be printed and stored: without a user's name and password.

    Args:
        url: One, or a text with some.
        bare: It may be without a scheme, as that of a proxy.
    """
    return re.sub(r"(^(?!\w+://)|//)[^/]*@" if bare else r"(//)[^/]*@", r"\1", url)


def _attempt(
    session: Any,
    url: str,
    part: Path,
    max_bytes: int,
    limits: Limits,
    progress: Progress,
    token: str,
    pages: bool,
) -> bool:
    """One request; True where its bytes follow those of an earlier one."""
    validator, total = _recall(part, url)
    start = part.stat().st_size if validator and part.exists() else 0
    if start and start == total:
        return True  # an earlier run was stopped between the last byte and the verification
    headers = {"Accept-Encoding": "identity", "User-Agent": "van-classification-tensorflow"}
    if start:
        headers |= {"Range": f"bytes={start}-", "If-Range": validator}
    response = _answer(session, url, headers, limits, token)
    with response:
        if response.status_code == 206 and start:
            if _range(response) != (start, total) or _validator(response) not in ("", validator):
                raise _StaleError("the server's continuation does not continue what is there")
        else:
            start, total = 0, _length(url, response)
        if total is not None and total > max_bytes:
            discard(part)
            raise TransferError(_too_large(url, f"{total:,}", max_bytes))

        pieces = _pieces(response, limits)
        head = b""
        while len(head) < _SNIFF and (piece := next(pieces, b"")):
            head += piece
        page = response.headers.get("Content-Type", "").startswith("text/html")
        if not pages and not start and (page or head.lstrip().lower().startswith(_HTML)):
            raise TransferError(f"{shown(url)} answered with a web page instead of the file")

        if not start:
            discard(part)
        if total is not None and (free := shutil.disk_usage(part.parent).free) < total - start:
            raise NoSpaceError(f"{total - start:,} bytes are needed and {free:,} are free")
        with part.open("ab") as file:
            # Remembered before the first byte is there: a kill in between costs nothing.
            if not start:
                _remember(part, url, response, total)
            done = start
            while head:
                done += len(head)
                if done > max_bytes or (total is not None and done > total):
                    break
                file.write(head)
                progress(done, total)
                head = next(pieces, b"")
        if done > max_bytes:
            discard(part)
            raise TransferError(_too_large(url, f"more than {max_bytes:,}", max_bytes))
        if total is not None and done != total:
            raise _PassingError(f"{done:,} of {total:,} bytes came")
    return start > 0


def _answer(
    session: Any, url: str, headers: dict[str, str], limits: Limits, token: str = ""
) -> Any:
    """The first answer that is no redirect: 200, or 206 where a range was asked for."""

    def with_token(request: Any) -> Any:
        request.headers["Authorization"] = f"Bearer {token}"
        return request

    here = url
    for _ in range(limits.redirects + 1):
        get = partial(session.get, here, headers=headers, stream=True, allow_redirects=False)
        if token and _origin(here) == _origin(url):
            get = partial(get, auth=with_token)
        with _network():
            response = _within(limits.answer, partial(get, timeout=(limits.connect, limits.read)))
        status = response.status_code
        if status == 200 or (status == 206 and "Range" in headers):
            encoding = response.headers.get("Content-Encoding", "identity")
            if encoding.lower() != "identity":
                response.close()
                raise TransferError(f"{shown(url)} sent Content-Encoding {encoding}: not asked for")
            return response
        response.close()
        if response.is_redirect:
            here = _redirected(here, response.headers["Location"])
        elif status == 416:
            raise _StaleError("the server cannot continue what is there")
        elif status >= 500 or status in (408, 429):
            raise _PassingError(f"status {status}")
        else:
            raise StatusError(
                f"{shown(url)} answered with status {status}",
                status,
                response.headers.get("X-Error-Code", ""),
            )
    raise TransferError(f"{shown(url)} redirects more than {limits.redirects} times")


def _origin(url: str) -> tuple[str, str]:
    """The server of an address: its scheme, and host with port."""
    parts = urlsplit(url)
    return parts.scheme, parts.netloc.rpartition("@")[2].lower()


def _redirected(here: str, location: str) -> str:
    """Where a redirect leads. Not even from http to https: who means https writes https."""
    try:
        there = urljoin(here, location)
        if urlsplit(there).hostname and urlsplit(there).scheme == urlsplit(here).scheme:
            return there
    except ValueError:  # not an address at all
        there = location
    raise TransferError(
        f"{shown(here)} redirects to another scheme or no host at all, which is refused: "
        f"{shown(there)[:100]!r}"
    )


def _pieces(response: Any, limits: Limits) -> Iterator[bytes]:
    """The raw body as it comes in. `read1`, as `read` waits for a full buffer, however long."""
    read = partial(response.raw.read1, 1 << 16, decode_content=False)
    if response.raw.chunked:  # a chunk's own header may drip too, within one read1
        read = partial(_within, limits.answer, read)
    since, received = time.monotonic(), 0
    while True:
        with _network():
            try:
                piece = read()
            except TimeoutError:
                with suppress(RuntimeError, ValueError):
                    response.raw.shutdown()  # or closing waits for the read that goes on
                raise
        if not piece:
            return
        yield piece
        received += len(piece)
        seconds = time.monotonic() - since
        if seconds >= limits.window:
            if received < limits.min_speed * seconds:
                raise _PassingError(
                    f"{received / seconds:,.0f} bytes per second; at least "
                    f"{limits.min_speed:,.0f} are expected"
                )
            since, received = time.monotonic(), 0


@contextmanager
def _network() -> Iterator[None]:
    """What goes wrong on the way becomes `_PassingError`; a bad certificate a `TransferError`."""
    import requests
    import urllib3

    try:
        yield
    except requests.exceptions.SSLError as error:
        raise TransferError(f"no secure connection: {_root(error)}") from error
    except (requests.Timeout, urllib3.exceptions.TimeoutError, TimeoutError) as error:
        raise _PassingError("no answer in time") from error
    except (OSError, urllib3.exceptions.HTTPError, HTTPException) as error:
        raise _PassingError(f"the connection failed: {_root(error)}") from error


def _root(error: BaseException) -> str:
    """The innermost reason, on one line: libraries wrap it in three layers of their own."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return " ".join((getattr(error, "strerror", None) or str(error) or repr(error)).split())


def _within(seconds: float, call: Callable[[], Any]) -> Any:
    """`call()`, given up after `seconds`: name look-up and dripping headers have no time limit."""
    results: queue.SimpleQueue[tuple[Any, Exception | None]] = queue.SimpleQueue()

    def run() -> None:
        try:
            results.put((call(), None))
        except Exception as error:  # handed over, not swallowed
            results.put((None, error))

    threading.Thread(target=run, daemon=True).start()
    try:
        result, error = results.get(timeout=seconds)
    except queue.Empty:
        raise TimeoutError from None
    if error is not None:
        raise error
    return result


def _length(url: str, response: Any) -> int | None:
    text = response.headers.get("Content-Length")
    if text is None:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise TransferError(f"{shown(url)} sent Content-Length {text[:50]!r}: not a size")
    return int(text)


def _range(response: Any) -> tuple[int, int] | None:
    """First byte and total size of a 206 that goes on to the end of the file."""
    match = re.fullmatch(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})",
        response.headers.get("Content-Range", ""),
    )
    first, last, total = map(int, match.groups()) if match else (0, 0, 0)
    return (first, total) if match and last == total - 1 else None


def _validator(response: Any) -> str:
    """What names the exact bytes of an answer: a strong ETag, else Last-Modified, else ""."""
    etag = response.headers.get("ETag", "")
    return etag if etag.startswith('"') else response.headers.get("Last-Modified", "")


def _too_large(url: str, size: str, max_bytes: int) -> str:
    return f"{shown(url)} sends {size} bytes; these weights have at most {max_bytes:,}"


def _memory(part: Path) -> Path:
    return part.with_name(f"{part.name}.json")


def _remember(part: Path, url: str, response: Any, total: int | None) -> None:
    if (validator := _validator(response)) and total is not None:
        record = {"url": shown(url), "validator": validator, "total": total}
        _memory(part).write_text(json.dumps(record), encoding="utf-8")


def _recall(part: Path, url: str) -> tuple[str, int | None]:
    """Validator and size of the answer that `part` began with; "" where it cannot go on."""
    with suppress(OSError, ValueError, KeyError, TypeError):
        record = json.loads(_memory(part).read_text(encoding="utf-8"))
        if record["url"] == shown(url):
            return str(record["validator"]), int(record["total"])
    return "", None
