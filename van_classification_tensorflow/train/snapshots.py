"""The state of a training run on disk: nothing is lost to a kill, a full disk or damaged files.

`folder/step-000001234/` is one snapshot: `arrays.safetensors`, `state.json`, and `manifest.json`
with the SHA-256 of both and of itself. Beside them:

- `latest`: name of the snapshot saved last, for people and scripts. `load` scans the folder and
  reads `latest` only to notice that a newer snapshot has gone;
- `step-*.old0`: what a save of the same step was replacing when it was killed. As good as any;
- `aside-step-*`: a later step than the snapshot that was loaded or saved last: it was damaged, or
  the run went back to an earlier one. Never loaded; removed when the run has saved that step
  again or a later one. `load` itself changes nothing;
- `.tmp-*`: left by a process that was killed; removed by the next save.

A save is committed by one `rename`, when all its bytes are on the disk. Whatever may fail after it
leaves the new snapshot, whatever fails before leaves the earlier ones. One process at a time may
save: `RunLock`. Imports neither Keras nor a backend.
"""

from __future__ import annotations

import hashlib
import json
import operator
import os
import re
import shutil
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any

import ml_dtypes  # noqa: F401  (NumPy finds bfloat16 and the like by name from here on)
import numpy as np

from .. import __version__
from ..support.files import sync, write_atomically

_ARRAYS, _STATE, _MANIFEST = "arrays.safetensors", "state.json", "manifest.json"
_FORMAT = 1
_NAME = re.compile(r"step-(\d{9,})(|\.old\d+)")
_ASIDE = re.compile(r"aside-step-(\d{9,})(|\.old\d+)")
# What both NumPy and safetensors call a type of their own; others are stored as their bytes.
_NATIVE = {"bool", "bfloat16", "float16", "float32", "float64", "complex64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}


class SnapshotError(ValueError):
    """There are snapshots, and none can be used."""


class RunLockedError(OSError):
    """Another trainer uses the folder."""


@dataclass(frozen=True)
class Snapshot:
    """The state of a run.

    Args:
        step: Training batches done.
        arrays: Every variable, by a name of its own.
        state: What JSON can say and the digest covers: position, history, callbacks' state.
        clock: Wall-clock figures, which differ between equal runs.
        notes: What the reader should be told: newer snapshots that were passed over, and why.
    """

    step: int
    arrays: dict[str, np.ndarray]
    state: dict[str, Any]
    clock: dict[str, Any]
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        """SHA-256 of `arrays` (name, type, shape and bits of each) and `state`.

        The order of names and keys does not matter; NaN equals itself, 0.0 is not -0.0.
        """
        sha = hashlib.sha256()
        for name, array in sorted(self.arrays.items()):
            array = _plain(name, array)
            sha.update(json.dumps([name, array.dtype.name, array.shape]).encode())
            sha.update(_bytes(array).data)
        # There and back first: keys that are numbers become text and sort as text.
        sha.update(json.dumps(json.loads(_json("state", self.state)), sort_keys=True).encode())
        return sha.hexdigest()


class Snapshots:
    """The snapshots of one run.

    Args:
        folder: Where they are; made by the first save.
        keep: How many of the newest stay.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 3):
        if keep < 1:
            raise ValueError(f"`keep` must be at least 1. Received: keep={keep}")
        self.folder = Path(folder)
        self.keep = keep
        self._good: int | None = None  # step last loaded or saved, so known to be intact

    def save(
        self,
        step: int,
        arrays: Mapping[str, Any],
        state: Mapping[str, Any],
        clock: Mapping[str, Any] | None = None,
    ) -> Path:
        """Adds a snapshot, replacing one of the same step, and removes what is no longer needed.

        Args:
            step: Training batches done. Snapshots of later steps are set aside.
            arrays: As in `Snapshot`; of any type of number. They must not change meanwhile.
            state: As in `Snapshot`.
            clock: As in `Snapshot`.

        Returns:
            The folder of the snapshot.

        Raises:
            ValueError: An argument cannot be stored; nothing was touched.
            OSError: The disk is full or does not let us write; the text says what is left.
        """
        step = operator.index(step)
        if step < 0:
            raise ValueError(f"`step` must be at least 0. Received: step={step}")
        plain = {name: _plain(name, array) for name, array in arrays.items()}
        text = f'{{"state": {_json("state", state)},\n"clock": {_json("clock", clock or {})}}}\n'
        try:
            path = self._commit(step, plain, text.encode())
            write_atomically(self.folder / "latest", lambda file: file.write_text(f"{path.name}\n"))
            self._tidy(step)
        except OSError as error:
            needed = sum(array.nbytes for array in plain.values()) / 1e6
            raise OSError(
                error.errno,
                f"saving step {step} into {self.folder} failed ({error.strerror or error}): it "
                f"needs {needed:,.1f} MB, {_free(self.folder)}; {self._what_stays()}",
            ) from error
        return path

    def load(self) -> Snapshot | None:
        """The newest snapshot that verifies; None where none was ever saved.

        Raises:
            SnapshotError: There are some, and none verifies, or a newer version wrote it.
            OSError: The folder cannot be listed.
        """
        found, named = self._found(), self._named()
        if not found and named is None:
            return None
        passed = []
        if named is not None and (not found or found[0][0] < named):
            passed.append(f"the snapshot of step {named} is gone from {self.folder}")
        for step, path in found:
            try:
                snapshot = read_snapshot(path, step)
            except SnapshotError:
                raise
            except Exception as error:  # whatever damaged files may make a reader raise
                passed.append(f"the snapshot {path} is damaged ({error})")
                continue
            self._good = step
            notes = tuple(f"{problem}: that of step {step} is used" for problem in passed)
            return replace(snapshot, notes=notes)
        raise SnapshotError(
            f"there is no intact snapshot: {'; '.join(passed)}. Put back a copy of one, or train "
            "from the beginning in another folder"
        )

    def newest_state(self) -> dict[str, Any] | None:
        """The `state` of what `load` would give, without its arrays; None where that is in doubt.

        Of the arrays nothing is read, so they are not verified.
        """
        found, named = self._found(), self._named()
        if not found or (named is not None and found[0][0] < named):
            return None
        path = found[0][1]
        with suppress(Exception):  # whatever damaged files may make a reader raise
            record, state = _unsealed((path / _MANIFEST).read_bytes()), (path / _STATE).read_bytes()
            verified = hashlib.sha256(state).hexdigest() == record["files"][_STATE]["sha256"]
            if verified and record["format"] == _FORMAT:
                return json.loads(state)["state"]
        return None

    def steps(self) -> list[int]:
        """The steps of which there are snapshots, ascending. None is verified here."""
        return sorted({step for step, _ in self._found()})

    def _commit(self, step: int, arrays: dict[str, np.ndarray], state: bytes) -> Path:
        """Writes the snapshot and gives it its name: from that moment on it counts."""
        if not self.folder.is_dir():
            self.folder.mkdir(parents=True)
            sync(self.folder.parent)
        for left in self.folder.glob(".tmp-step-*"):  # first: it may be what fills the disk
            shutil.rmtree(left)
        self._set_aside()  # what `load` passed over must not be among the newest when all is well
        target = self.folder / f"step-{step:09d}"
        new = self.folder / f".tmp-{target.name}"
        try:
            new.mkdir()
            _write(new, step, arrays, state)
            self._rename(new, target)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        self._good = step
        sync(self.folder)
        return target

    def _rename(self, new: Path, target: Path) -> None:
        """`new` becomes `target`. A folder cannot replace another, so the old one steps back."""
        if not target.exists():
            os.rename(new, target)
            return
        paths = (target.with_name(f"{target.name}.old{number}") for number in count())
        old = next(path for path in paths if not path.exists())
        os.rename(target, old)
        try:
            os.rename(new, target)
        except BaseException:
            os.rename(old, target)
            raise

    def _tidy(self, step: int) -> None:
        """Removes and sets aside what the snapshot of `step` has made superfluous."""
        self._set_aside()
        paths = [path for _, path in self._found()]
        kept = [path for path in paths if _is_plain(path)][: self.keep]
        for path in paths:
            if path not in kept:
                self._remove(path)
        for path in self.folder.iterdir():
            if (match := _ASIDE.fullmatch(path.name)) and int(match[1]) <= step:
                self._remove(path)

    def _set_aside(self) -> None:
        """Sets aside what is newer than the snapshot that was loaded or saved last."""
        for step, path in self._found():
            if self._good is not None and step > self._good:
                aside = self.folder / f"aside-{path.name}"
                self._remove(aside)
                os.rename(path, aside)

    def _remove(self, path: Path) -> None:
        """Removes a snapshot: a reader sees it go at once; deleting is tried again at each save."""
        gone = self.folder / f".tmp-{path.name.removeprefix('aside-')}"
        with suppress(FileNotFoundError):
            os.rename(path, gone)
            shutil.rmtree(gone, ignore_errors=True)

    def _found(self) -> list[tuple[int, Path]]:
        """Step and folder of each snapshot, newest first; what was being replaced comes after."""
        try:
            paths = list(self.folder.iterdir())
        except FileNotFoundError:
            return []
        found = [(int(m[1]), path) for path in paths if (m := _NAME.fullmatch(path.name))]
        return sorted(found, key=lambda item: (item[0], _is_plain(item[1]), item[1]), reverse=True)

    def _named(self) -> int | None:
        """The step that `latest` names; None where it names none or cannot be read."""
        with suppress(OSError, UnicodeDecodeError):
            if match := _NAME.fullmatch(
                (self.folder / "latest").read_text(encoding="utf-8").strip()
            ):
                return int(match[1])
        return None

    def _what_stays(self) -> str:
        step = self._good
        if step is None:
            with suppress(OSError):
                step = max(self.steps(), default=None)
        return (
            "there is no earlier one" if step is None else f"the snapshot of step {step} is intact"
        )


class RunLock:
    """Lets one trainer at a time into a run's folder; the system frees the lock of a dead one.

    Args:
        folder: The run's folder; made where it is not there.
    """

    def __init__(self, folder: str | os.PathLike):
        self.folder = Path(folder)

    def __enter__(self) -> RunLock:
        """Raises RunLockedError, which says who is in, or OSError for a folder of no use."""
        from filelock import FileLock, Timeout

        self.folder.mkdir(parents=True, exist_ok=True)
        self._lock = FileLock(self.folder / ".lock")
        self._holder = self.folder / ".lock.json"
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise RunLockedError(f"{self.folder} is in use by {self._who()}") from None
        about = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        with suppress(OSError):  # the lock holds without it, and a full disk may be put right later
            write_atomically(self._holder, lambda file: file.write_text(json.dumps(about)))
        return self

    def __exit__(self, *error: object) -> None:
        """The lock's own file stays: removing it would let two in."""
        with suppress(OSError):
            self._holder.unlink()
        self._lock.release()

    def _who(self) -> str:
        try:
            about = json.loads(self._holder.read_text(encoding="utf-8"))
            return f"process {about['pid']} on {about['host']} since {about['since']}"
        except (OSError, ValueError, KeyError, TypeError):
            return "another process"


def nonfinite(arrays: Mapping[str, np.ndarray]) -> str | None:
    """The first name whose array holds a NaN or an infinity."""
    for name, array in arrays.items():
        array = np.asarray(array)
        if array.dtype.kind == "V":  # bfloat16 and smaller, of which NumPy's sum is slow
            array = array.astype(np.float32)
        # A sum needs no memory of the array's size. It is finite only if all are; where it is not,
        # finite values may have overflowed.
        with np.errstate(over="ignore", invalid="ignore"):
            suspicious = array.dtype.kind in "fc" and not np.isfinite(array.sum())
        if suspicious and not np.isfinite(array).all():
            return name
    return None


# --- One snapshot ---


def _write(folder: Path, step: int, arrays: dict[str, np.ndarray], state: bytes) -> None:
    """Writes the files of a snapshot; all are on the disk at the end."""
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    stored = {
        _key(index, name): array if array.dtype.name in _NATIVE else _bytes(array)
        for index, (name, array) in enumerate(arrays.items())
    }
    about = [[name, array.dtype.name, array.shape] for name, array in arrays.items()]
    path = folder / _ARRAYS
    (folder / _STATE).write_bytes(state)
    sync(folder / _STATE)
    try:
        save_file(stored, path, metadata={"arrays": json.dumps(about)})
    except SafetensorError as error:
        code = re.search(r"os error (\d+)", str(error))
        raise OSError(int(code[1]) if code else None, str(error)) from error
    shutil.copymode(folder / _STATE, path)  # save_file gives its file to its owner alone
    with ThreadPoolExecutor(1) as pool:  # the disk and the processor work at the same time
        digest = pool.submit(_expected_sha256, path, stored)
        sync(path)
    files = {
        _ARRAYS: {"sha256": digest.result(), "bytes": path.stat().st_size},
        _STATE: {"sha256": hashlib.sha256(state).hexdigest(), "bytes": len(state)},
    }
    record = {"format": _FORMAT, "step": step, "version": __version__, "files": files}
    (folder / _MANIFEST).write_bytes(sealed(record))
    sync(folder / _MANIFEST)
    sync(folder)


def _expected_sha256(path: Path, stored: dict[str, np.ndarray]) -> str:
    """SHA-256 of the file's header followed by the arrays as they are in memory.

    So `load` also finds what went wrong between the memory and the disk.
    """
    with path.open("rb") as file:
        start = file.read(8)
        header = file.read(int.from_bytes(start, "little"))
    places = json.loads(header)
    sha = hashlib.sha256(start + header)
    for key in sorted(stored, key=lambda key: places[key]["data_offsets"]):
        sha.update(_bytes(stored[key]).data)
    return sha.hexdigest()


def read_snapshot(path: Path, step: int) -> Snapshot:
    """The snapshot in `path`, every byte of which is verified; any error means damage."""
    from safetensors import safe_open

    record = _unsealed((path / _MANIFEST).read_bytes())
    if record["format"] != _FORMAT:
        raise SnapshotError(
            f"{path} was written by version {record['version']}, which stores snapshots in another "
            f"way than this one, {__version__}: use that version"
        )
    if record["step"] != step:
        raise ValueError(f"it is of step {record['step']}")
    for name in (_ARRAYS, _STATE):
        expected = record["files"][name]
        with (path / name).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size != expected["bytes"]:
                raise ValueError(f"{name} has {size:,} of {expected['bytes']:,} bytes")
            if hashlib.file_digest(file, "sha256").hexdigest() != expected["sha256"]:
                raise ValueError(f"{name} is not what was written")
    arrays = {}
    with safe_open(path / _ARRAYS, framework="np") as opened:
        for index, (name, dtype, shape) in enumerate(json.loads(opened.metadata()["arrays"])):
            array = opened.get_tensor(_key(index, name))
            arrays[name] = array if dtype in _NATIVE else array.view(dtype).reshape(shape)
    return Snapshot(step, arrays, **json.loads((path / _STATE).read_bytes()))


def _key(index: int, name: str) -> str:
    """What safetensors calls an array: it cannot store `__metadata__` or half a surrogate pair."""
    return f"{index} {name.encode('utf-8', 'backslashreplace').decode()}"


def sealed(record: dict[str, Any]) -> bytes:
    """The manifest's text, in which no bit can change unnoticed."""
    seal = hashlib.sha256(json.dumps(record).encode()).hexdigest()
    return (json.dumps({**record, "seal": seal}, indent=1) + "\n").encode()


def _unsealed(manifest: bytes) -> dict[str, Any]:
    with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):
        record = json.loads(manifest)
        record.pop("seal")
        if sealed(record) == manifest:
            return record
    raise ValueError(f"{_MANIFEST} is not what was written")


def _plain(name: str, array: Any) -> np.ndarray:
    """`array`, in C order and little-endian; itself where it is so."""
    array = np.asarray(array, order="C")
    dtype = array.dtype
    try:
        by_name = np.dtype(dtype.name)
    except TypeError:
        by_name = None
    if dtype.hasobject or by_name != dtype.newbyteorder("="):
        raise ValueError(f"`arrays` must hold numbers. Received: {name!r} of type {dtype}")
    return array.astype(dtype.newbyteorder("<"), copy=False)


def _bytes(array: np.ndarray) -> np.ndarray:
    """The memory of an array in C order, not copied."""
    return array.reshape(-1).view(np.uint8)


def _json(argument: str, value: Mapping[str, Any]) -> str:
    try:
        return json.dumps(value)
    except (TypeError, ValueError, RecursionError) as error:
        raise ValueError(f"`{argument}` must be what JSON can say: {error}") from error


def _is_plain(path: Path) -> bool:
    return not path.suffix


def _free(folder: Path) -> str:
    folder = folder.absolute()
    try:
        place = next(path for path in (folder, *folder.parents) if path.exists())
        return f"{shutil.disk_usage(place).free / 1e6:,.1f} MB are free"
    except OSError:
        return "what is free is not known"
