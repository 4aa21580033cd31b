"""Requests and answers of the server, over ASGI: as little as each request can do with."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Iterable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from ..support.text import shown

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Headers = tuple[tuple[bytes, bytes], ...]

MAX_QUERY = 20  # parameters
GONE = "van.gone"  # in a scope: a function that tells whether the client has gone


class HttpError(Exception):
    """An answer that says what is wrong with a request, or why it is not served.

    Args:
        status: Of HTTP.
        message: One line.
        headers: Of the answer.
        reason: What the metrics count it as; "" for a request that is merely wrong.
    """

    def __init__(self, status: int, message: str, headers: Headers = (), reason: str = ""):
        super().__init__(message)
        self.status, self.message, self.headers, self.reason = status, message, headers, reason

    @property
    def reply(self) -> Reply:
        """The error as an answer."""
        return json_reply({"error": self.message}, self.status, self.headers)


def busy(message: str, reason: str, status: int = 429, seconds: float = 1) -> HttpError:
    """A refusal that the client may try again after so many seconds."""
    after = str(max(1, round(seconds))).encode()
    return HttpError(status, message, ((b"retry-after", after),), reason)


@dataclass(frozen=True)
class Reply:
    """An answer: its status, its body and its headers besides length and type."""

    status: int
    body: bytes
    kind: bytes = b"application/json"
    headers: Headers = ()


def json_reply(value: Any, status: int = 200, headers: Headers = ()) -> Reply:
    """An answer of JSON, in ASCII."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False)
    return Reply(status, text.encode("ascii"), headers=headers)


@dataclass(slots=True)
class Request:
    """What was asked.

    Args:
        scope: Of ASGI.
        receive: Gives the body, piece by piece.
        path: What the metrics call the address; one of a model stands for all of them.
        wild: What stands in the address for its `{...}`.
    """

    scope: Scope
    receive: Receive
    path: str = ""
    wild: tuple[str, ...] = ()
    _headers: dict[bytes, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._headers = dict(self.scope["headers"])

    def header(self, name: bytes) -> str:
        """A header, named in lower case; "" where it is not there."""
        return self._headers.get(name, b"").decode("latin-1").strip()

    @property
    def gone(self) -> bool:
        """Whether the client has gone, so that nobody waits for an answer."""
        asked = self.scope.get(GONE)
        return asked is not None and asked()

    def query(self, known: Iterable[str]) -> dict[str, str]:
        """The parameters of the address.

        Args:
            known: Those that there are.

        Raises:
            HttpError: One is not known, or comes twice.
        """
        text = self.scope["query_string"]
        if not text:
            return {}
        try:
            pairs = parse_qsl(
                text.decode("ascii"),
                keep_blank_values=True,
                max_num_fields=MAX_QUERY,
                errors="strict",
            )
        except ValueError:  # of UnicodeError too
            raise HttpError(400, "the query is no text of name=value&name=value") from None
        found: dict[str, str] = {}
        for name, value in pairs:
            if name not in known:
                allowed = ", ".join(known) or "none"
                raise HttpError(400, f"parameters allowed here: {allowed}. Received: {shown(name)}")
            if name in found:
                raise HttpError(400, f"`{name}` must be given once only")
            found[name] = value
        return found


async def send_reply(send: Send, reply: Reply, more: Headers = ()) -> None:
    """Sends an answer, with more headers."""
    headers = [
        (b"content-type", reply.kind),
        (b"content-length", str(len(reply.body)).encode()),
        (b"x-content-type-options", b"nosniff"),
        (b"cache-control", b"no-store"),
        *reply.headers,
        *more,
    ]
    await send({"type": "http.response.start", "status": reply.status, "headers": headers})
    await send({"type": "http.response.body", "body": reply.body})


def parsed_json(text: bytes | memoryview) -> Any:
    """JSON of a stranger.

    Raises:
        HttpError: It is none, nested too deep, or has numbers that are none.
    """
    try:
        return json.loads(bytes(text), parse_constant=_no_number)
    except RecursionError:
        raise HttpError(400, "the JSON is nested too deep") from None
    except ValueError as error:  # also of Unicode, and of whole numbers of thousands of digits
        raise HttpError(400, f"the body is no JSON: {_short(error)}") from None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.encode("ascii", "backslashreplace").decode()[:120]


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")


def whole(query: Mapping[str, str], name: str, default: int, most: int) -> int:
    """A whole number from 1 to `most` among the parameters.

    Raises:
        HttpError: It is something else.
    """
    text = query.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit() and len(text) < 10 and 1 <= int(text) <= most):
        raise HttpError(
            400, f"`{name}` must be a whole number from 1 to {most}. Received: {shown(text)}"
        )
    return int(text)
