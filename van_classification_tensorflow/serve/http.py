"""What all addresses share beside FastAPI: errors, answers of JSON, and JSON of strangers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qsl

from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.types import Scope

from ..support.text import shown

MAX_QUERY = 20  # parameters
# In a scope, functions that tell whether ...
GONE = "van.gone"  # the client has gone
FOLLOWED = "van.followed"  # other requests wait on the same connection


class HttpError(HTTPException):
    """An answer that says what is wrong with a request, or why it is not served.

    Args:
        status: Of HTTP.
        message: One line.
        headers: Of the answer.
        reason: What the metrics count it as; "" for a request that is merely wrong.
    """

    def __init__(
        self, status: int, message: str, headers: Mapping[str, str] | None = None, reason: str = ""
    ):
        super().__init__(status, message, headers)
        self.reason = reason


def busy(message: str, reason: str, status: int = 429, seconds: float = 1) -> HttpError:
    """A refusal that the client may try again after so many seconds."""
    return HttpError(status, message, {"Retry-After": str(max(1, round(seconds)))}, reason)


class Json(JSONResponse):
    """An answer of JSON, in ASCII: a text of a stranger may be no text that UTF-8 has."""

    def render(self, content: Any) -> bytes:
        """Of Starlette."""
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode("ascii")


def is_gone(scope: Scope) -> bool:
    """Whether the client has gone, so that nobody waits for an answer; any thread may ask."""
    asked = scope.get(GONE)
    return asked is not None and asked()


def check_query(text: bytes) -> None:
    """What FastAPI lets pass: parameters that come twice, or are no text.

    Raises:
        HttpError: 400.
    """
    try:
        pairs = parse_qsl(
            text.decode("ascii"), keep_blank_values=True, max_num_fields=MAX_QUERY, errors="strict"
        )
    except ValueError:  # of UnicodeError too
        raise HttpError(400, "the query is no text of name=value&name=value") from None
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise HttpError(400, f"a parameter must be given once only. Received: {shown(name)}")


def parsed_json(text: bytes | memoryview, most: int) -> Any:
    """JSON of a stranger.

    Args:
        text: In UTF-8.
        most: Values that it may hold, with a little room: each takes time, and memory.

    Raises:
        HttpError: It is none, nested too deep, has too many values, or numbers that are none.
    """
    text = bytes(text)
    if sum(text.count(one) for one in (b",", b"[", b"{")) > most:
        raise HttpError(413, f"the JSON may have {most:,} values: send tensors as binary data")
    try:
        return json.loads(text, parse_constant=_no_number)
    except RecursionError:
        raise HttpError(400, "the JSON is nested too deep") from None
    except ValueError as error:  # also of Unicode, and of whole numbers of thousands of digits
        raise HttpError(400, f"the body is no JSON: {_short(error)}") from None


def _short(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text.encode("ascii", "backslashreplace").decode()[:120]


def _no_number(word: str) -> Any:
    raise ValueError(f"{word} is no number")
