"""The process that reads hostile files, so that a crash, a hang or a bomb ends only it.

    python -m tests.hostile_reader TASK < JOB      # one of `TASKS`; results, one JSON a line

JOB is JSON, its keys are the arguments of the task's function. What is read is announced before,
so whoever listens knows what a process died of. Linux only.
"""

from __future__ import annotations

import json
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from van_classification_tensorflow.weights.checkpoint import (
    CheckpointError,
    read_checkpoint,
    read_weights,
)
from van_classification_tensorflow.weights.formats.hdf5 import Hdf5File
from van_classification_tensorflow.weights.formats.stored_zip import StoredZip
from van_classification_tensorflow.weights.formats.torch import _LEGACY_START, _Pickle

MEMORY = 1 << 30  # bytes of address space, libraries included
PATIENCE = 10  # seconds for one file, then the process is killed


def limit() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def tell(**result: object) -> None:
    os.write(1, json.dumps(result).encode() + b"\n")


# --- One file after the other, under the interpreter's audit ---


def unpickle(path: str) -> None:
    """What must not happen."""
    with open(path, "rb") as file:
        pickle.load(file)  # noqa: S301 - what it measures is the danger: in a process of its own


def fill(path: str) -> bytearray:
    return bytearray(2 * MEMORY)


def hang(path: str) -> None:
    while True:
        time.sleep(1)


def crash(path: str) -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


READERS = {f.__name__: f for f in (read_checkpoint, read_weights, unpickle, fill, hang, crash)}


def read(good: list[str], files: list[tuple[str, str, str]], patience: int = PATIENCE) -> None:
    """Reads each of `files`; tells what came of it and what Python did meanwhile.

    Args:
        good: Files of every format, read first so that all modules are there.
        files: (name, path, which of `READERS`).
        patience: Seconds for one file, then the process is killed.
    """
    for path in good:
        read_checkpoint(path)
    events: list[str] = []
    watching, allowed = False, ""

    def hook(event: str, arguments: tuple) -> None:
        if not watching or event == "builtins.id":
            return
        # The file itself; then the descriptor that this gave.
        if event == "open" and (type(arguments[0]) is int or os.fspath(arguments[0]) == allowed):
            return
        events.append(f"{event} {arguments!r}"[:200])

    sys.addaudithook(hook)
    limit()
    tell(modules=sorted(sys.modules))
    for name, path, reader in files:
        tell(reading=name)
        events.clear()
        error: BaseException | None = None
        signal.alarm(patience)
        started = time.process_time()
        watching, allowed = True, path
        try:
            READERS[reader](path)
        except BaseException as caught:
            error = caught
        watching = False
        seconds = time.process_time() - started
        signal.alarm(0)
        tell(
            name=name,
            error=type(error).__name__ if error else None,
            message=str(error),
            seconds=seconds,
            events=list(events),
        )


# --- Mutants ---

INTERESTING = [0, 1, 2, 7, 8, 0x7F, 0x80, 0xFF, 0xFFFF, *(1 << n for n in (16, 20, 31, 32, 40, 63))]
INTERESTING += [n - 1 for n in INTERESTING if n > 0xFFFF] + [(1 << 64) - 1, (1 << 64) - 8]


def structure(data: bytes, path: Path) -> list[int]:
    """Places of a file that are not the numbers of tensors, nor padding (but for some of it)."""
    numbers: list[tuple[int, int]] = []
    with open(path, "rb") as file:
        if data.startswith(b"PK"):
            numbers = [
                (member.start, member.size)
                for name, member in StoredZip(file).members.items()
                if "/data/" in name or name.endswith(".h5")
            ]
        elif data.startswith(_LEGACY_START):
            at, storages = len(_LEGACY_START), {}
            for _ in range(4):
                pickle = _Pickle(data, at)
                keys = pickle.load()
                at, storages = pickle.position, pickle.storages or storages
            for key in keys:
                length = storages[key].numel * storages[key].dtype.itemsize
                numbers.append((at + 8, length))
                at += 8 + length
        elif data.startswith(b"\x89HDF"):
            numbers = [(array.address, array.nbytes) for array in Hdf5File(file).arrays.values()]
        else:
            start = 8 + int.from_bytes(data[:8], "little")
            numbers = [(start, len(data) - start)]
    inside = np.zeros(len(data), bool)
    for start, length in numbers:
        inside[start : start + length] = True
    padding = (np.frombuffer(data, np.uint8) == 0) & (np.arange(len(data)) % 16 != 0)
    return np.flatnonzero(~inside & ~padding).tolist()


def mutate(data: bytes, places: list[int], rng: random.Random) -> bytes:
    """A damaged copy of `data`: mostly at `places`, mostly in one or two of them."""
    made = bytearray(data)

    def place() -> int:
        anywhere = rng.randrange(len(made))
        return anywhere if rng.random() < 0.1 else min(rng.choice(places), len(made) - 1)

    for _ in range(rng.choice((1, 1, 1, 2, 2, 4, 16))):
        at, kind = place(), rng.random()
        if kind < 0.25:
            made[at] ^= 1 << rng.randrange(8)
        elif kind < 0.4:
            made[at] = rng.randrange(256)
        elif kind < 0.65:
            width = rng.choice((1, 2, 4, 8))
            value = rng.choice([*INTERESTING, len(made), at, rng.randrange(len(made))])
            value = (value + rng.choice((0, 0, 1, -1))) % (1 << 8 * width)
            made[at : at + width] = value.to_bytes(width, rng.choice(("little", "little", "big")))
        elif kind < 0.9:
            source, width = place(), rng.choice((1, 2, 4, 8, 16, 24, 40, 64, 500))
            made[at : at + width] = made[source : source + width]
        elif kind < 0.94:
            del made[at : at + rng.choice((1, 2, 8, rng.randrange(1, 5000)))]
        elif kind < 0.98:
            made[at:at] = rng.randbytes(rng.choice((1, 2, 8, rng.randrange(1, 5000))))
        else:
            del made[at:]
        if not made:
            break
    return bytes(made)


class Mutants:
    """The mutants of one file, by seed.

    Args:
        path: A good file.
        member: Ending of the member of a zip archive that is damaged inside, with a checksum
            that fits; by default the file is damaged as it lies.
    """

    def __init__(self, path: Path, member: str | None = None):
        self.path, self.member, self.members = path, member, {}
        self.data = path.read_bytes()
        if member is None:
            self.places = structure(self.data, path)
            return
        with zipfile.ZipFile(path) as archive:
            self.members = {info.filename: archive.read(info) for info in archive.infolist()}
        self.inner = next(name for name in self.members if name.endswith(member))
        if member.endswith(".h5"):
            with tempfile.NamedTemporaryFile() as inner:
                inner.write(self.members[self.inner])
                inner.flush()
                self.places = structure(self.members[self.inner], Path(inner.name))
        else:
            self.places = list(range(len(self.members[self.inner])))

    def write(self, seed: int, target: Path) -> None:
        rng = random.Random(seed)  # noqa: S311 - mutants, not secrets
        if self.member is None:
            target.write_bytes(mutate(self.data, self.places, rng))
            return
        changed = mutate(self.members[self.inner], self.places, rng)
        with zipfile.ZipFile(target, "w") as archive:
            for name, content in {**self.members, self.inner: changed}.items():
                archive.writestr(zipfile.ZipInfo(name), content)


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return found.keys() == expected.keys() and all(
        (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        and found[name].tobytes() == array.tobytes()
        for name, array in expected.items()
    )


def outcome(path: Path, original: dict[str, np.ndarray], checksums: bool) -> str:
    """What comes of reading `path`: refused, read, or else a fault of the reader."""
    try:
        found = read_checkpoint(path)
        if checksums and not same(found.tensors, original):
            return "ACCEPTED, though its numbers are others"
        weights = read_weights(path)
        specs = weights.architecture.tensors()
        if {name: array.shape for name, array in weights.tensors.items()} != {
            name: spec.shape for name, spec in specs.items()
        }:
            return "ACCEPTED, though it is no whole VAN"
        return "read"
    except (CheckpointError, OSError) as error:
        text = str(error)
        if "Traceback" in text or "\x1b" in text or not 20 < len(text) < 20_000:
            return f"REFUSED with an unclear message of {len(text)} characters: {text[:200]!r}"
        return "refused"
    except BaseException as error:
        return f"ESCAPED: {type(error).__name__}: {str(error)[:200]}"


def fuzz(path: str, member: str | None, checksums: bool, first: int, count: int) -> None:
    """Reads the mutants `first` ... `first + count - 1`; tells {outcome: number} and the faults.

    A worker reads them one after the other; when it dies, a new one goes on behind that mutant.
    """
    mutants = Mutants(Path(path), member)
    original = read_checkpoint(path).tensors
    counts: dict[str, int] = {}
    last = first + count
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "mutant"
        while first < last:
            for seed, said in _worker(mutants, target, original, checksums, first, last):
                counts[said] = counts.get(said, 0) + 1
                if said not in ("read", "refused"):
                    tell(fault=said, seed=seed)
                first = seed + 1
    tell(counts=counts)


def _worker(
    mutants: Mutants,
    target: Path,
    original: dict[str, np.ndarray],
    checksums: bool,
    first: int,
    last: int,
) -> Iterator[tuple[int, str]]:
    """(seed, outcome) of the mutants from `first` on, up to the one the worker died of."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        limit()
        for seed in range(first, last):
            mutants.write(seed, target)
            signal.alarm(PATIENCE)
            started = time.process_time()
            said = outcome(target, original, checksums)
            signal.alarm(0)
            if time.process_time() - started > 2:  # two reads
                said = f"SLOW: {said} after {time.process_time() - started:.1f} s"
            os.write(send, f"{seed} {said!a}\n".encode())
        os._exit(0)
    os.close(send)
    seed = first - 1
    with os.fdopen(receive) as lines:
        for line in lines:
            number, _, said = line.partition(" ")
            seed = int(number)
            yield seed, said.strip()[1:-1]
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if seed + 1 < last:
        yield seed + 1, "HANGS" if status == -signal.SIGALRM else f"KILLS its process ({status})"


# --- Into a model ---


def load(sources: list[tuple[str, str | None]], first: int, count: int) -> None:
    """Loads mutants into a model; tells {outcome: number} for each source, and the faults.

    Args:
        sources: (good file, member of it) as `Mutants` takes them, all of the same weights.
        first: The first seed.
        count: How many mutants of each.
    """
    from van_classification_tensorflow import VAN, load_checkpoint
    from van_classification_tensorflow.model.load import to_official

    from .parity import MICRO

    def state() -> dict[str, bytes]:
        return {name: array.tobytes() for name, array in to_official(model).items()}

    model = load_checkpoint(VAN(**MICRO), sources[0][0])
    before = state()
    with open("/proc/self/statm") as statm:
        used = int(statm.read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "mutant"
        for path, member in sources:
            mutants = Mutants(Path(path), member)
            counts = {"read": 0, "refused": 0}
            for seed in range(first, first + count):
                tell(reading=f"{path} {member} {seed}")
                mutants.write(seed, target)
                signal.alarm(PATIENCE)
                try:
                    load_checkpoint(model, target)
                except (ValueError, OSError):
                    counts["refused"] += 1
                    if state() != before:
                        tell(fault="CHANGED by a file that was refused", seed=seed, path=path)
                except BaseException as error:
                    tell(fault=f"ESCAPED: {error!r:.200}", seed=seed, path=path)
                else:
                    counts["read"] += 1
                    said = read_weights(target).tensors
                    if state() != {n: a.astype(np.float32).tobytes() for n, a in said.items()}:
                        tell(fault="OTHER than what the file says", seed=seed, path=path)
                    load_checkpoint(model, path)
                signal.alarm(0)
            tell(counts=counts, path=path)


TASKS = {"read": read, "fuzz": fuzz, "load": load}

if __name__ == "__main__":
    TASKS[sys.argv[1]](**json.load(sys.stdin))
