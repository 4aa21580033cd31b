"""The cache of published weights: a file under its final name is always verified.

Nothing here reads a checkpoint: whether a file holds the right tensors is what `check` tells.
Imports neither Keras nor a backend. The environment is read when it is needed:

- `VAN_CACHE`: folder of the cache, instead of the user's cache folder;
- `VAN_OFFLINE=1`: nothing is downloaded;
- `VAN_MIRROR`: the only address asked, `<VAN_MIRROR>/<file name>`; the same hashes are demanded.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple
from urllib.parse import urlsplit

from ..support.files import asset, sha256_of, write_atomically
from ..support.text import one_line
from ..support.text import shown as in_message
from .catalogue import Source, Weights
from .download import (
    DownloadError,
    Limits,
    NoSpaceError,
    Progress,
    TransferError,
    discard,
    forget,
    shown,
    transfer,
)

if TYPE_CHECKING:
    from rich.console import Console

Check = Callable[[Path, Weights], None]  # raises where the file does not hold the weights


class Status(NamedTuple):
    """What the cache holds of one checkpoint; `unverified`: only loading it can tell."""

    state: Literal["ok", "damaged", "missing", "unverified"]
    path: Path | None
    detail: str


def cache_dir() -> Path:
    """Folder of the cache, from `VAN_CACHE` or the user's cache folder. It may not exist.

    Raises:
        ValueError: `VAN_CACHE` is in the home of somebody who has none.
    """
    import platformdirs

    if chosen := os.environ.get("VAN_CACHE"):
        try:
            return Path(chosen).expanduser().absolute()
        except RuntimeError:
            raise ValueError(
                "`VAN_CACHE` must be a folder, and there is no such home here. Received: "
                f"VAN_CACHE={in_message(chosen)}"
            ) from None
    return Path(platformdirs.user_cache_dir("van-classification-tensorflow")) / "weights"


def cached_path(weights: Weights) -> Path | None:
    """Path of the file in the cache, or of the bundled one; None where there is none.

    Nothing is verified here: `fetch` and `verify` do.
    """
    if not weights.sources:
        paths = [Path(str(asset(f"{weights.name}.safetensors")))]
    else:
        paths = [cache_dir() / weights.name / source.file for source in weights.sources]
    return next((path for path in paths if path.is_file()), None)


def verify(weights: Weights) -> Status:
    """Read what is cached again and compare it with the published and the pinned SHA-256."""
    path = cached_path(weights)
    if path is None:
        return Status("missing", None, f"{weights.name} is not in the cache")
    if not weights.sources:
        return Status("ok", path, "bundled")
    digest, expected = sha256_of(path), _expected(_source_of(weights, path), path)
    if problem := _mismatch(digest, expected):
        return Status("damaged", path, problem)
    return Status("ok" if expected else "unverified", path, f"SHA-256 {digest}")


def fetch(
    weights: Weights,
    *,
    check: Check | None = None,
    console: Console | None = None,
    force: bool = False,
    limits: Limits | None = None,
) -> Path:
    """A verified local file of `weights`: bundled, from the cache, or downloaded into it.

    Args:
        weights: A record of `CATALOGUE`.
        check: Called with a new file and `weights`; raises where the tensors are not the right
            ones. Without it, only files with a published hash are accepted.
        console: Where to draw the progress; the standard error by default.
        force: Download even what is cached, and accept and pin what comes.
        limits: How patient to be.

    Raises:
        DownloadError: The file is damaged, cannot be had, verified or stored.
        ValueError: An environment variable makes no sense.
    """
    if not weights.sources:
        if (bundled := cached_path(weights)) is None:
            raise DownloadError(
                f"{weights.name} comes with the package and is not there: reinstall it"
            )
        return bundled
    if not force and (path := _from_cache(weights, check)):
        return path
    folder, urls = cache_dir() / weights.name, _urls(weights)
    if is_offline():
        raise DownloadError(
            f"VAN_OFFLINE is set and {weights.name} "
            f"{'cannot be downloaded again' if force else 'is not in the cache'}: get "
            f"{shown(urls[0])}, put it at {folder / weights.sources[0].file}, "
            "or unset VAN_OFFLINE"
        )
    if console is None:
        from ..support.console import messages

        console = messages()
    limits = limits or Limits()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with locked(folder / ".lock", console, limits.lock):
            # Another process may have fetched it meanwhile.
            if not force and (path := _from_cache(weights, check)):
                return path
            return _Fetch(weights, check, console, force, limits, folder).run(urls)
    except DownloadError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise DownloadError(
            f"cannot use the cache folder {folder} ({reason}): set VAN_CACHE to another one"
        ) from error


@dataclass(frozen=True)
class _Fetch:
    """One download into `folder`, whose lock is held."""

    weights: Weights
    check: Check | None
    console: Console
    force: bool
    limits: Limits
    folder: Path

    def run(self, urls: list[str]) -> Path:
        """The first source that answers."""
        name, failures = self.weights.name, []
        for source, url in zip(self.weights.sources, urls, strict=True):
            if not source.sha256 and self.check is None:
                failures.append(f"{shown(url)} has no published hash and there is no `check`")
                continue
            try:
                path = self._from(source, url)
            except TransferError as error:
                failures.append(str(error))
                if source is not self.weights.sources[-1]:
                    _say(self.console, f"{name}: {error}; trying the next source")
                continue
            # Beginnings from other sources, and what a killed process left.
            for pattern in ("*.part", "*.part.json", "*.sha256.*", ".tmp-*"):
                for left in self.folder.glob(pattern):
                    left.unlink(missing_ok=True)
            return path
        raise DownloadError(
            # The console has the others.
            f"{name} could not be downloaded from {len(failures)} address"
            f"{'es' if len(failures) > 1 else ''}: {failures[-1]}. Try again, set VAN_MIRROR, "
            f"or put {self.weights.sources[0].file} into {self.folder} yourself"
        )

    def _from(self, source: Source, url: str) -> Path:
        """Transfer to a part file, verify it, pin it, give it its name: in this order."""
        name, path = self.weights.name, self.folder / source.file
        part = path.with_name(f"{path.name}.part")
        if self.force:
            discard(part)
        try:
            digest = self._transfer(source, url, path, part)
            try:
                _accept(self.weights, part, self.check, f"{shown(url)}; nothing was kept")
            except DownloadError:
                discard(part)
                raise
            size = part.stat().st_size
            # Unlinked before the new pin is written: no moment at which the two do not fit.
            path.unlink(missing_ok=True)
            _write_pin(path, digest)
            forget(part)
            os.replace(part, path)
        except OSError as error:
            about = f"about {self.weights.expected_bytes or 0:,} bytes"
            refusal = no_space(f"{name}, {about},", self.folder, error)
            if refusal is None:
                raise
            discard(part)
            raise refusal from error
        source_and_hash = f"{size:,} bytes from {shown(url)}, SHA-256 {digest}"
        _say(self.console, f"{name}: {source_and_hash}, in {path}")
        return path

    def _transfer(self, source: Source, url: str, path: Path, part: Path) -> str:
        """SHA-256 of `part`, complete, on the disk, and the one that is expected."""
        expected = _expected(source, path, pinned=not self.force)
        for last in (False, True):
            with bar(self.console, self.weights.name) as progress:
                resumed = transfer(
                    url,
                    part,
                    max_bytes=self.weights.max_bytes,
                    limits=self.limits,
                    progress=progress,
                )
            with part.open("rb") as file:
                os.fsync(file.fileno())
            digest = sha256_of(part)
            problem = _mismatch(digest, expected)
            if not problem:
                return digest
            discard(part)
            if last or not resumed:
                break
            text = f"{problem} after a resumed transfer; again from zero"
            _say(self.console, f"{self.weights.name}: {text}")
        # What an earlier download pinned may be given up; what was published may not.
        other = "try again, or set VAN_MIRROR to another address"
        way_out = _way_out(self.weights, path) if "pinned" in problem else other
        raise DownloadError(
            f"{shown(url)} is not {self.weights.name}: {problem}; nothing was kept, {way_out}"
        )


def _from_cache(weights: Weights, check: Check | None) -> Path | None:
    """The cached file, its SHA-256 computed anew; None where there is none."""
    path = cached_path(weights)
    if path is None:
        return None
    expected = _expected(_source_of(weights, path), path)
    digest = sha256_of(path)
    if problem := _mismatch(digest, expected):
        raise DownloadError(f"{path} is damaged: {problem}; {_way_out(weights, path)}")
    if not _pin(path).exists():  # put there by hand
        if check is None and not expected:
            raise DownloadError(
                f"{path} cannot be verified: no hash is published for it and there is no `check`"
            )
        _accept(weights, path, check, str(path))
        with suppress(OSError):  # a cache that is only for reading needs no pin
            _write_pin(path, digest)
    return path


def _accept(weights: Weights, path: Path, check: Check | None, what: str) -> None:
    """Let `check` judge."""
    if check is None:
        return
    try:
        check(path, weights)
    except Exception as error:  # whatever a reader of foreign files may raise
        raise DownloadError(f"{what}: not the weights of {weights.name}: {error}") from error


def _expected(source: Source, path: Path, pinned: bool = True) -> dict[str, str]:
    """Whose word -> the SHA-256, or its first digits, that the file at `path` must have."""
    expected = {"published": source.sha256} if source.sha256 else {}
    if pinned and _pin(path).exists():
        text = _pin(path).read_text(encoding="utf-8", errors="replace")
        match = re.match(r"([0-9a-f]{64}) [ *]", text)
        expected["pinned"] = match[1] if match else f"unreadable in {_pin(path)}"
    return expected


def _mismatch(digest: str, expected: dict[str, str]) -> str:
    """What is wrong with a file of this SHA-256; "" where nothing is."""
    wrong = [f"{who} {value}" for who, value in expected.items() if not digest.startswith(value)]
    return f"expected SHA-256 {' and '.join(wrong)}, found {digest}" if wrong else ""


def _way_out(weights: Weights, path: Path) -> str:
    return (
        f"delete {path} and {_pin(path).name}, or run `van weights download {weights.name} --force`"
    )


def _pin(path: Path) -> Path:
    """Beside the file; `sha256sum -c` reads it."""
    return path.with_name(f"{path.name}.sha256")


def _write_pin(path: Path, digest: str) -> None:
    line = f"{digest}  {path.name}\n".encode()
    write_atomically(_pin(path), lambda new: new.write_bytes(line), shared=True)


def _source_of(weights: Weights, path: Path) -> Source:
    return next(source for source in weights.sources if source.file == path.name)


def _urls(weights: Weights) -> list[str]:
    """The address of each source: its own, or the mirror's."""
    mirror = os.environ.get("VAN_MIRROR", "").rstrip("/")
    if not mirror:
        return [source.url for source in weights.sources]
    if urlsplit(mirror).scheme not in ("http", "https") or not urlsplit(mirror).hostname:
        raise ValueError(
            "`VAN_MIRROR` must be the http or https address of a folder, "
            f"https://mirror.example/van. Received: {shown(mirror)!r}"
        )
    return [f"{mirror}/{source.file}" for source in weights.sources]


def is_offline() -> bool:
    """Whether `VAN_OFFLINE` forbids the network.

    Raises:
        ValueError: It is neither 1 nor 0.
    """
    value = os.environ.get("VAN_OFFLINE", "")
    if value not in ("", "0", "1"):
        raise ValueError(f"`VAN_OFFLINE` must be 1 or 0. Received: {value!r}")
    return value == "1"


def no_space(what: str, folder: Path, error: OSError) -> DownloadError | None:
    """What to say of a disk that is full; None where `error` is another one."""
    if not isinstance(error, NoSpaceError) and error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return None
    return DownloadError(
        f"no space for {what} in {folder} ({error.strerror or one_line(error)}): free some, or set "
        "VAN_CACHE to a folder on another disk"
    )


def _say(console: Console, text: str) -> None:
    from ..support.console import say  # rich is not needed until something is downloaded

    say(console, text)


@contextmanager
def locked(path: Path, console: Console, seconds: float) -> Iterator[None]:
    """One process at a time; the system frees the lock of one that dies."""
    from filelock import FileLock, Timeout

    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        _say(console, f"{path.parent.name}: waiting for another process that downloads it")
        try:
            lock.acquire(timeout=seconds)
        except Timeout:
            raise DownloadError(
                f"another process holds {path} for more than {seconds:g} s: end it and try again"
            ) from None
    try:
        yield
    finally:
        lock.release()


@contextmanager
def bar(console: Console, name: str) -> Iterator[Progress]:
    """A bar with bytes, speed and time left; nothing where there is no terminal."""
    from rich import progress as rich

    from ..support.console import progress_bar

    columns = (
        rich.TextColumn("[bold]{task.description}"),
        rich.BarColumn(),
        rich.DownloadColumn(),
        rich.TransferSpeedColumn(),
        rich.TimeRemainingColumn(),
    )
    with progress_bar(console, *columns) as bar:
        task = bar.add_task(name, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
