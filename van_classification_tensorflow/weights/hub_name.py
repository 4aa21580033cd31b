"""`hf://USER/NAME[@REVISION]`: which folder of a model hub that is, and how the hub is asked.

Imports neither Keras nor a backend. The environment is read when it is needed, by the names that
the hub's own client has:

- `HF_ENDPOINT`: address of the hub, by default https://huggingface.co;
- `HF_TOKEN`: who asks; else what `hf auth login` has kept, for https://huggingface.co only.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from ..support.text import printable
from ..support.text import shown as in_message
from .download import shown

SCHEME = "hf://"
HUB = "https://huggingface.co"
_LONGEST = 96  # characters of USER/NAME, as the hub allows
_MAX_TOKEN = 1000
_PART = r"[A-Za-z0-9_](?:[A-Za-z0-9._-]*[A-Za-z0-9_])?"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class HubName:
    """A folder of a hub.

    Args:
        user: A user or an organisation.
        name: Of the folder, which the hub calls a model repository.
        revision: A branch, a tag or a commit; None: the branch "main".
    """

    user: str
    name: str
    revision: str | None = None

    @classmethod
    def of(cls, text: str, argument: str = "weights") -> HubName:
        """What an address means.

        Args:
            text: hf://USER/NAME or hf://USER/NAME@REVISION.
            argument: What the caller calls it, for messages.

        Raises:
            ValueError: It is none.
        """
        repository, at, revision = text.removeprefix(SCHEME).partition("@")
        match = re.fullmatch(rf"({_PART})/({_PART})", repository)
        wrong = not text.startswith(SCHEME) or match is None or len(repository) > _LONGEST
        if wrong or re.search(r"--|\.\.|\.git$", repository):
            raise ValueError(
                f"`{argument}` must be hf://USER/NAME or hf://USER/NAME@REVISION, of letters, "
                f"digits, '-', '_' and '.', at most {_LONGEST} characters. Received: "
                f"{argument}={in_message(text)}"
            )
        good = re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_./-]{0,99}", revision)
        if at and (not good or ".." in revision or "//" in revision or revision.endswith("/")):
            raise ValueError(
                f"`{argument}` must name a branch, a tag or a commit behind the @. Received: "
                f"{argument}={in_message(text)}"
            )
        assert match is not None  # noqa: S101 - else it was wrong
        return cls(match[1], match[2], revision or None)

    @property
    def repository(self) -> str:
        """USER/NAME."""
        return f"{self.user}/{self.name}"

    @property
    def is_commit(self) -> bool:
        """Whether its files can never change."""
        return self.revision is not None and bool(_COMMIT.fullmatch(self.revision))

    def __str__(self) -> str:
        return f"{SCHEME}{self.repository}" + (f"@{self.revision}" if self.revision else "")

    def listing_url(self) -> str:
        """Where the hub says what is in it."""
        revision = quote(self.revision or "main", safe="")
        return f"{endpoint()}/api/models/{self.repository}/revision/{revision}?blobs=true"

    def file_url(self, commit: str, file: str) -> str:
        """Where a file of it is, as of a commit."""
        return f"{endpoint()}/{self.repository}/resolve/{commit}/{quote(file, safe='')}"


def is_hub_name(given: Any) -> bool:
    """Whether it is a text that begins as the address of a folder of a hub."""
    return isinstance(given, str) and given.startswith(SCHEME)


def endpoint() -> str:
    """Address of the hub, without a slash at its end.

    Raises:
        ValueError: `HF_ENDPOINT` is no such address.
    """
    given = os.environ.get("HF_ENDPOINT") or HUB
    try:
        parts = urlsplit(given)
        fine = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        fine = fine and not (parts.username or parts.password or parts.query or parts.fragment)
    except ValueError:  # a port that is no number
        fine = False
    if not fine:
        raise ValueError(
            "`HF_ENDPOINT` must be an http or https address without a user's name or a query, "
            f"such as {HUB}. Received: {shown(given)[:100]!r}"
        )
    return given.rstrip("/")


def token() -> str:
    """What is sent to the hub, and only to it; "" where there is none.

    Never in the clear: over http to this machine only. What `hf auth login` has kept is for
    https://huggingface.co, not for wherever `HF_ENDPOINT` points.

    Raises:
        ValueError: `HF_TOKEN`, or what is kept, cannot be one.
    """
    parts = urlsplit(endpoint())
    if parts.scheme != "https" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
        return ""
    found, place = os.environ.get("HF_TOKEN", "").strip(), "`HF_TOKEN`"
    if not found and endpoint() == HUB and (path := _kept_in()) is not None:
        found, place = _kept(path), f"the token in {printable(path)}"
    if found and not (len(found) <= _MAX_TOKEN and re.fullmatch(r"[!-~]+", found)):
        raise ValueError(  # not what it holds, which is a secret
            f"{place} must be one word in ASCII, of at most {_MAX_TOKEN} characters. Received: "
            f"{len(found)} characters"
        )
    return found


def _kept_in() -> Path | None:
    """Where the hub's own client keeps the token of its user; None of a user without a home."""
    home = os.environ.get("HF_HOME") or os.path.join(
        os.environ.get("XDG_CACHE_HOME") or "~/.cache", "huggingface"
    )
    try:
        return Path(os.environ.get("HF_TOKEN_PATH") or os.path.join(home, "token")).expanduser()
    except RuntimeError:
        return None


def _kept(path: Path) -> str:
    try:
        with path.open(encoding="ascii") as file:
            return file.read(_MAX_TOKEN + 1).strip()
    except (OSError, UnicodeDecodeError):
        return ""
