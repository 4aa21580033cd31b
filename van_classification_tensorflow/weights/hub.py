"""Folders of a model hub -> the cache: a file under its final name is always verified.

A folder is kept by its commit, so that what is there never changes:
`<cache>/hub/<host>/<USER>--<NAME>/<commit>/`. What the hub said of a commit lies beside it, and
`refs` say which commit a branch was last. What is here is verified without a lock, by many at once
and from a cache that is only for reading; a lock is for downloads.

Nothing here reads weights. Imports neither Keras nor a backend; read over plain HTTPS, as
`huggingface_hub` would bring a cache of links, an accelerator of its own and more packages than
this needs, and compares sizes but not hashes.
"""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ..support.files import folder_beside, write_atomically
from . import cache
from .cache import bar, cache_dir, locked, no_space
from .download import (
    DownloadError,
    Limits,
    NoSpaceError,
    StatusError,
    TransferError,
    discard,
    forget,
    shown,
    transfer,
)
from .hub_listing import MAX_LISTING, Entry, Listing
from .hub_name import HubName, endpoint, is_hub_name, token

if TYPE_CHECKING:
    from rich.console import Console

Choose = Callable[[Listing], list[Entry]]
_READ_ONLY = (errno.EACCES, errno.EPERM, errno.EROFS)
_YOUNG = 24 * 3600  # seconds


@dataclass(frozen=True)
class HubFolder:
    """A folder of a hub that is here.

    Args:
        name: As it was asked for.
        path: Where it is; only what was asked for is in it.
        listing: What the hub says is in it.
        files: Those that are here.
    """

    name: HubName
    path: Path
    listing: Listing
    files: tuple[Entry, ...]

    @property
    def title(self) -> str:
        """What reports call it: with the commit, so that a later one has another name."""
        return f"hf://{self.name.repository}@{self.listing.commit[:7]}"


def local(given: Any) -> Any:
    """`given`, or the local folder that it means where it is the address of one of a hub.

    Raises:
        DownloadError: It cannot be had.
        ValueError: It is no address.
    """
    return fetch_folder(HubName.of(given)).path if is_hub_name(given) else given


def fetch_folder(
    name: HubName,
    choose: Choose = Listing.to_read,
    *,
    console: Console | None = None,
    limits: Limits | None = None,
) -> HubFolder:
    """A verified local copy of a folder, from the cache or downloaded into it.

    What a branch is now is asked of the hub, and of the cache where it cannot be reached; of a
    commit that is here nothing is asked.

    Args:
        name: The folder.
        choose: Which of its files.
        console: Where to draw the progress; the standard error by default.
        limits: How patient to be.

    Raises:
        DownloadError: It is damaged, cannot be had, verified or stored.
        ValueError: An environment variable makes no sense.
    """
    if console is None:
        from ..support.console import messages

        console = messages()
    fetch = _Fetch(name, console, limits or Limits(), place_of(name))
    try:
        return fetch.run(choose)
    except OSError as error:
        if refusal := no_space(str(name), fetch.folder, error):
            raise refusal from error
        if isinstance(error, DownloadError):
            raise
        raise DownloadError(
            f"cannot use the cache folder {fetch.folder} ({error.strerror or error}): set "
            "VAN_CACHE to another one"
        ) from error


def place_of(name: HubName) -> Path:
    """Where the commits of a folder are kept."""
    address = urlsplit(endpoint())
    host = address.netloc.replace(":", "_")
    if (address.scheme, address.path) != ("https", ""):  # another hub, with another's folders
        host += f"+{sha256(endpoint().encode()).hexdigest()[:8]}"
    return cache_dir() / "hub" / host / f"{name.user}--{name.name}"


@dataclass(frozen=True)
class _Fetch:
    """One folder."""

    name: HubName
    console: Console
    limits: Limits
    folder: Path

    def run(self, choose: Choose) -> HubFolder:
        listing = self._listing()
        try:
            entries = choose(listing)
        except ValueError as error:
            raise DownloadError(f"{self.name}: {error}") from error
        path = self.folder / listing.commit
        if missing := self._missing(path, entries):
            self._get(missing, listing.commit, path)
        return HubFolder(self.name, path, listing, tuple(entries))

    def _missing(self, path: Path, entries: Iterable[Entry]) -> list[Entry]:
        return [one for one in entries if not self._is_here(path / one.name, one)]

    def _get(self, missing: Iterable[Entry], commit: str, path: Path) -> None:
        if is_offline():
            first = next(iter(missing)).name
            raise DownloadError(
                f"VAN_OFFLINE is set and {first} of {self.name} is not in the cache: run "
                f"`van pull {self.name}` where there is a network, or unset VAN_OFFLINE"
            )
        path.mkdir(parents=True, exist_ok=True)
        with locked(self.folder / ".lock", self.console, self.limits.lock):
            # Another process may have fetched them meanwhile.
            missing = self._missing(path, missing)
            for one in missing:
                self._download(commit, path, one)
            self._tidy()
        if missing:
            size = sum(one.size for one in missing)
            files = "1 file" if len(missing) == 1 else f"{len(missing)} files"
            self._say(f"{self.name}: {files}, {size:,} bytes of commit {commit[:7]}, in {path}")

    def _tidy(self) -> None:
        """Removes what runs that were ended have left, the lock being held."""
        for pattern in ("*/.*.part", "*/.*.part.json"):
            for left in self.folder.glob(pattern):
                left.unlink(missing_ok=True)
        # What the hub answers is written without the lock: what is young may be in use.
        young = time.time() - _YOUNG
        for pattern in (".van-*", ".tmp-*", "refs/.tmp-*"):
            for left in self.folder.glob(pattern):
                with suppress(OSError):  # another process may be as tidy
                    if left.lstat().st_mtime > young:
                        continue
                    if left.is_dir() and not left.is_symlink():
                        shutil.rmtree(left)
                    else:
                        left.unlink()

    def _is_here(self, path: Path, entry: Entry) -> bool:
        """Whether a file is in the cache; computes its hash anew."""
        if not os.path.lexists(path):
            return False
        if path.is_symlink() or not path.is_file():
            raise DownloadError(f"{path} is no regular file: remove it")
        if problem := entry.mismatch(path):
            raise DownloadError(f"{path} is damaged: {problem}; delete it and try again")
        return True

    # --- What is there ---

    def _listing(self) -> Listing:
        known = self._known()
        if known is not None and (self.name.is_commit or is_offline()):
            return known
        if is_offline():
            raise DownloadError(
                f"VAN_OFFLINE is set and {self.name} is not in the cache: run `van pull "
                f"{self.name}` where there is a network, or unset VAN_OFFLINE"
            )
        try:
            listing = self._ask()
        except StatusError as error:
            raise DownloadError(self._refusal(error)) from error
        except TransferError as error:
            if known is None:
                raise DownloadError(f"{self.name}: {error}") from error
            self._say(f"{self.name}: {error}; taken from the cache, commit {known.commit[:7]}")
            return known
        if self.name.is_commit and listing.commit != self.name.revision:
            raise DownloadError(f"{self.name}: the hub answers for commit {listing.commit}")
        try:
            _keep(self._said(listing.commit), listing.to_json())
            _keep(self._ref(), listing.commit)
        except OSError as error:
            if error.errno not in _READ_ONLY:
                raise
        return listing

    def _ask(self) -> Listing:
        with self._work() as work:
            part = work / "listing.json"
            transfer(
                self.name.listing_url(),
                part,
                max_bytes=MAX_LISTING,
                limits=self.limits,
                token=token(),
            )
            text = part.read_bytes()
        try:
            return Listing.from_json(text)
        except ValueError as error:
            raise DownloadError(f"{self.name}: {shown(endpoint())}: {error}") from error

    @contextmanager
    def _work(self) -> Iterator[Path]:
        """A folder for an answer: in the cache, but where that is only for reading."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(folder_beside(self.folder / "listing"))
            except OSError as error:
                if error.errno not in _READ_ONLY:
                    raise
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            yield folder

    def _known(self) -> Listing | None:
        """What the hub said when it was last asked."""
        try:
            commit = self.name.revision or ""
            if not self.name.is_commit:
                commit = self._ref().read_text(encoding="ascii").strip()
            listing = Listing.from_json(self._said(commit).read_bytes())
        except (OSError, ValueError):
            return None
        return listing if listing.commit == commit else None

    def _said(self, commit: str) -> Path:
        return self.folder / f"{commit}.json"

    def _ref(self) -> Path:
        return self.folder / "refs" / quote(self.name.revision or "main", safe="")

    def _refusal(self, error: StatusError) -> str:
        """What to do where the hub said no."""
        page = f"{endpoint()}/{self.name.repository}"
        if error.reason == "GatedRepo":
            return (
                f"{self.name} is gated: ask for access at {page}, then set HF_TOKEN to a token of "
                "yours"
            )
        if error.reason == "RevisionNotFound":
            return f"{self.name}: there is no such branch, tag or commit; see {page}"
        if error.status in (401, 403):
            who = "the token was not accepted for it" if token() else "no token was given"
            return (
                f"{self.name} is not there, or private ({error.status}), and {who}: check the "
                "name, or set HF_TOKEN to a token that may read it"
            )
        if error.status == 404:
            return f"{self.name} is not there (404): check the name at {page}"
        return f"{self.name}: {error}"

    # --- Its files ---

    def _download(self, commit: str, path: Path, entry: Entry) -> None:
        """Transfer to a part file, verify it, give it its name: in this order."""
        target, url = path / entry.name, self.name.file_url(commit, entry.name)
        part = target.with_name(f".{entry.name}.part")
        problem = ""
        for _ in range(2):
            try:
                with bar(self.console, entry.name) as progress:
                    resumed = transfer(
                        url,
                        part,
                        max_bytes=entry.size,
                        limits=self.limits,
                        progress=progress,
                        token=token(),
                        pages=True,
                    )
            except StatusError as error:
                raise DownloadError(self._refusal(error)) from error
            except NoSpaceError:
                discard(part)
                raise
            except TransferError as error:
                raise DownloadError(f"{self.name}: {error}") from error
            with part.open("rb") as file:
                os.fsync(file.fileno())
            problem = entry.mismatch(part)
            if not problem:
                forget(part)
                os.replace(part, target)
                return
            discard(part)
            if not resumed:
                break
        raise DownloadError(
            f"{shown(url)} is not what the hub says it is: {problem}; nothing was kept, try again"
        )

    def _say(self, text: str) -> None:
        from ..support.console import say

        say(self.console, text)


def _keep(path: Path, text: str) -> None:
    path.parent.mkdir(exist_ok=True)
    line = f"{text}\n".encode()
    write_atomically(path, lambda new: new.write_bytes(line), shared=True)


def is_offline() -> bool:
    """Whether the network is forbidden, here or by the variable of the hub's own client."""
    return cache.is_offline() or os.environ.get("HF_HUB_OFFLINE", "").upper() in (
        "1",
        "ON",
        "YES",
        "TRUE",
    )
