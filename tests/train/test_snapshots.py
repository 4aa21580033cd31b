"""A run's state survives kills, full disks and damage: the last snapshot or the one before it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from tests.snapshot_writer import arrays_of, digest_of, state_of
from van_classification_tensorflow.support.files import write_atomically
from van_classification_tensorflow.train import snapshots as module
from van_classification_tensorflow.train.snapshots import (
    RunLock,
    RunLockedError,
    Snapshot,
    SnapshotError,
    Snapshots,
    nonfinite,
)

FILES = ["arrays.safetensors", "manifest.json", "state.json"]


def save(folder, *steps, keep=3):
    runs = Snapshots(folder, keep)
    for step in steps:
        runs.save(step, arrays_of(step), state_of(step), {"seconds": step / 2})
    return runs


def path_of(folder, step):
    return folder / f"step-{step:09d}"


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def assert_tidy(folder, *steps):
    """There are whole snapshots of these steps, and nothing else."""
    assert names_in(folder) == ["latest", *(path_of(folder, step).name for step in steps)]
    assert (folder / "latest").read_text() == f"step-{steps[-1]:09d}\n"
    for step in steps:
        assert names_in(path_of(folder, step)) == FILES
        assert module.read_snapshot(path_of(folder, step), step).digest == digest_of(step)


# --- What is saved comes back ---


def test_nothing_is_made_before_the_first_save(tmp_path):
    runs = Snapshots(tmp_path / "run" / "snapshots")
    assert runs.load() is None
    assert runs.steps() == []
    assert names_in(tmp_path) == []


DTYPES = [
    *("bool", "int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"),
    *("float16", "float32", "float64", "complex64", "complex128"),
    *("bfloat16", "float8_e4m3fn", "float8_e5m2", "int4"),
]


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_and_shape_comes_back_to_the_bit(dtype, tmp_path):
    bits = np.random.default_rng(0).integers(0, 256, (2, 3, np.dtype(dtype).itemsize), "uint8")
    full = (bits % 2 if dtype == "bool" else bits % 8 if dtype == "int4" else bits).view(dtype)
    arrays = {
        "full": full.reshape(2, 3),
        "scalar": full[0, 0].reshape(()),
        "empty": np.zeros((2, 0, 3), dtype),
        "transposed": full.reshape(2, 3).T,
        "strided": full.reshape(6)[::-2],
    }
    Snapshots(tmp_path).save(7, arrays, {})
    loaded = Snapshots(tmp_path).load()
    assert list(loaded.arrays) == list(arrays)
    for name, array in arrays.items():
        back = loaded.arrays[name]
        assert (back.dtype, back.shape) == (array.dtype, array.shape), name
        assert back.tobytes() == array.tobytes(), name
        assert back.flags.writeable
    assert loaded.digest == Snapshot(7, arrays, {}, {}).digest


def test_big_endian_and_lists_come_back_as_what_they_mean(tmp_path):
    Snapshots(tmp_path).save(0, {"a": np.array([1.5, 2], ">f4"), "b": [1, 2]}, {})
    arrays = Snapshots(tmp_path).load().arrays
    assert arrays["a"].dtype == np.dtype("<f4")
    assert arrays["a"].tolist() == [1.5, 2]
    assert arrays["b"].tolist() == [1, 2]


def test_any_text_is_a_name(tmp_path):
    names = ["", " ", "0", "0 ", "1 0", "__metadata__", "a/b", "é\n\0", "x" * 5000, "\ud800"]
    arrays = {name: np.full(2, index) for index, name in enumerate(names)}
    Snapshots(tmp_path).save(0, arrays, {})
    loaded = Snapshots(tmp_path).load().arrays
    assert list(loaded) == names
    assert [int(array[1]) for array in loaded.values()] == list(range(len(names)))


def test_the_file_of_arrays_can_be_read_by_anyone(tmp_path):
    """By name, and by whoever may read the other files."""
    path = Snapshots(tmp_path).save(0, {"conv/kernel": np.eye(2), "é": np.zeros(3)}, {})
    arrays = safetensors.numpy.load_file(path / "arrays.safetensors")
    assert {name.partition(" ")[2] for name in arrays} == {"conv/kernel", "é"}
    modes = {stat.S_IMODE((path / name).stat().st_mode) for name in FILES}
    assert modes == {stat.S_IMODE((tmp_path / "latest").stat().st_mode)}


def test_state_clock_and_step_come_back(tmp_path):
    state = {
        "history": {"loss": [0.1, float("nan"), float("inf"), -0.0], "n": [1, 1.0, True, None]},
        "text": "é\ud800",
        "deep": [[{"a": []}]],
    }
    path = Snapshots(tmp_path / "a" / "b").save(np.int64(12), {}, state, {"seconds": 1.5})
    assert path == tmp_path / "a" / "b" / "step-000000012"
    loaded = Snapshots(tmp_path / "a" / "b").load()
    assert repr(loaded) == repr(Snapshot(12, {}, state, {"seconds": 1.5}))
    assert list(loaded.state) == list(state)
    assert type(loaded.step) is int
    Snapshots(tmp_path / "c").save(10**12, {}, {})
    assert Snapshots(tmp_path / "c").load() == Snapshot(10**12, {}, {}, {})


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ({"step": -1}, "`step` must be at least 0. Received: step=-1"),
        ({"state": {"a": np.float32(1)}}, "`state` must be what JSON can say: .*float32"),
        ({"clock": {"a": {1}}}, "`clock` must be what JSON can say"),
        (
            {"arrays": {"ok": np.zeros(1), "a": np.array(["x"])}},
            "must hold numbers.*'a' of type <U1",
        ),
        ({"arrays": {"a": np.array([None])}}, "must hold numbers"),
        ({"arrays": {"a": np.zeros(2, [("x", "f4")])}}, "must hold numbers"),
    ],
)
def test_what_cannot_be_stored_is_refused_before_anything_is_touched(bad, says, tmp_path):
    with pytest.raises(ValueError, match=says):
        Snapshots(tmp_path / "run").save(**{"step": 1, "arrays": {}, "state": {}} | bad)
    assert names_in(tmp_path) == []
    with pytest.raises(ValueError, match=r"`keep` must be at least 1. Received: keep=0"):
        Snapshots(tmp_path, keep=0)


# --- The digest ---


def changed(**parts):
    arrays = {"a": np.arange(6, dtype="float32").reshape(2, 3), "b": np.zeros(4, "int32")}
    state = {"epoch": 1, "history": {"loss": [0.5, float("nan")], "acc": [1.0]}}
    return Snapshot(**{"step": 1, "arrays": arrays, "state": state, "clock": {}} | parts)


def test_the_digest_does_not_depend_on_order_clock_step_or_storage(tmp_path):
    base = changed()
    arrays, state = base.arrays, base.state
    same = [
        changed(arrays=dict(reversed(arrays.items()))),
        changed(state={"history": {"acc": [1.0], "loss": (0.5, float("nan"))}, "epoch": 1}),
        changed(clock={"seconds": 1}, step=2, notes=("damaged",)),
        changed(arrays={"a": np.asfortranarray(arrays["a"]), "b": arrays["b"].astype(">i4")}),
    ]
    assert {snapshot.digest for snapshot in same} == {base.digest}
    Snapshots(tmp_path).save(1, arrays, state)
    assert Snapshots(tmp_path).load().digest == base.digest
    # JSON has no numbers as keys, and "10" comes before "9".
    keyed = changed(state={9: 0, 10: 1})
    Snapshots(tmp_path).save(2, keyed.arrays, keyed.state)
    assert Snapshots(tmp_path).load().digest == keyed.digest
    # The definition, so that digests can be compared between versions.
    covered = [
        b'["a", "float32", [2, 3]]' + arrays["a"].tobytes(),
        b'["b", "int32", [4]]' + bytes(16),
        b'{"epoch": 1, "history": {"acc": [1.0], "loss": [0.5, NaN]}}',
    ]
    assert base.digest == hashlib.sha256(b"".join(covered)).hexdigest()


def test_the_digest_depends_on_everything_else():
    base = changed()
    a, b, state = base.arrays["a"], base.arrays["b"], base.state
    digests = [base.digest]
    for bit in range(a.nbytes * 8):
        flipped = bytearray(a.tobytes())
        flipped[bit // 8] ^= 1 << bit % 8
        other = np.frombuffer(flipped, "float32").reshape(2, 3)
        digests.append(changed(arrays={"a": other, "b": b}).digest)
    for arrays in (
        {"a": a},
        {"A": a, "b": b},
        {"a": b, "b": a},
        {"a": a.reshape(3, 2), "b": b},
        {"a": a.reshape(6), "b": b},
        {"a": a.T, "b": b},
        {"a": a.view("int32"), "b": b},
        {"a": a, "b": b.view("uint32")},
        {"a": a, "b": b.reshape(4, 1)},
        {"a": a, "b": b, "c": np.zeros(0)},
        {"a": a, "b": b, "c": np.zeros((0, 2))},
    ):
        digests.append(changed(arrays=arrays).digest)
    for other in (
        {"epoch": 2, "history": state["history"]},
        {"epoch": 1.0, "history": state["history"]},
        {"epoch": 1},
        {"epoch": 1, "history": {"loss": [0.5, None], "acc": [1.0]}},
        {"epoch": 1, "history": {"loss": [float("nan"), 0.5], "acc": [1.0]}},
        {**state, "more": None},
    ):
        digests.append(changed(state=other).digest)
    assert len(set(digests)) == len(digests) == 1 + 192 + 11 + 6


# --- Which stay ---


def test_the_newest_stay(tmp_path):
    for step in range(1, 8):
        save(tmp_path, step)
        assert_tidy(tmp_path, *range(max(1, step - 2), step + 1))
    assert Snapshots(tmp_path).steps() == [5, 6, 7]
    save(tmp_path, 20, keep=1)
    assert_tidy(tmp_path, 20)


def test_the_same_step_again_replaces(tmp_path):
    runs = save(tmp_path, 1, 2)
    runs.save(2, arrays_of(5), {"epoch": "validated"})
    assert Snapshots(tmp_path).load().state == {"epoch": "validated"}
    save(tmp_path, 2)
    assert_tidy(tmp_path, 1, 2)


def test_other_things_in_the_folder_stay(tmp_path):
    others = ["step-1", "step-00000000x", "step-000000001.bak", "notes.txt", "astep-000000001"]
    for name in others:
        (tmp_path / name).mkdir()
    save(tmp_path, 5, 6, 7, 8)
    assert set(others) < set(names_in(tmp_path))
    assert Snapshots(tmp_path).steps() == [6, 7, 8]


# --- Damage ---


def damage_of(file: Path):
    """Name and deed: truncations, bits flipped all over, growth, deletion."""
    size = file.stat().st_size
    for length in (0, 1, 7, size // 2, size - 1):
        yield f"cut to {length}", lambda n=length: os.truncate(file, n)
    numbers = random.Random(0)  # noqa: S311
    for bit in [0, size * 8 - 1, *(numbers.randrange(size * 8) for _ in range(25))]:

        def flip(bit=bit):
            content = bytearray(file.read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            file.write_bytes(content)

        yield f"bit {bit}", flip
    yield "a byte more", lambda: file.write_bytes(file.read_bytes() + b"\n")
    yield "deleted", file.unlink
    yield "a folder", lambda: (file.unlink(), file.mkdir())
    yield "zeros", lambda: file.write_bytes(bytes(size))
    yield "deep", lambda: file.write_bytes(b"[" * 100_000)


@pytest.mark.parametrize("name", FILES)
def test_damage_to_the_newest_is_noticed_and_the_one_before_used(name, tmp_path):
    save(tmp_path / "good", 1, 2)
    shutil.copytree(tmp_path / "good", tmp_path / "run")
    file = path_of(tmp_path / "run", 2) / name
    content = file.read_bytes()
    for what, deed in damage_of(file):
        deed()
        loaded = Snapshots(tmp_path / "run").load()
        assert (loaded.step, loaded.digest) == (1, digest_of(1)), what
        (note,) = loaded.notes
        assert note.startswith(f"the snapshot {file.parent} is damaged (")
        assert name in note, (what, note)
        if what.startswith("cut") and name != "manifest.json":
            assert f"of {len(content):,} bytes" in note
        assert note.endswith("): that of step 1 is used")
        if file.is_dir():
            file.rmdir()
        file.write_bytes(content)
        assert Snapshots(tmp_path / "run").load().notes == ()


def test_a_whole_snapshot_under_another_step_is_not_believed(tmp_path):
    save(tmp_path, 1, 2)
    os.rename(path_of(tmp_path, 2), path_of(tmp_path, 3))
    loaded = Snapshots(tmp_path).load()
    assert loaded.step == 1
    assert "it is of step 2" in loaded.notes[0]


def test_a_newest_that_is_gone_is_told(tmp_path):
    save(tmp_path, 1, 2)
    shutil.rmtree(path_of(tmp_path, 2))
    loaded = Snapshots(tmp_path).load()
    assert (loaded.step, loaded.digest) == (1, digest_of(1))
    assert loaded.notes == (
        f"the snapshot of step 2 is gone from {tmp_path}: that of step 1 is used",
    )


def test_all_damaged_is_an_error_not_a_new_beginning(tmp_path):
    save(tmp_path, 1, 2)
    for step in (1, 2):
        os.truncate(path_of(tmp_path, step) / "arrays.safetensors", 100)
    before = names_in(tmp_path)
    with pytest.raises(SnapshotError, match=r"no intact snapshot: .*2 is damaged.*1 is damaged"):
        Snapshots(tmp_path).load()
    assert names_in(tmp_path) == before
    for step in (1, 2):
        shutil.rmtree(path_of(tmp_path, step))
    with pytest.raises(SnapshotError, match="no intact snapshot: the snapshot of step 2 is gone"):
        Snapshots(tmp_path).load()


@pytest.mark.parametrize(
    "pointer",
    [None, b"", b"\xff\xfe", b"step-000000001\n", b"nonsense\n", b"../step-000000001", "folder"],
)
def test_the_pointer_is_only_a_hint(pointer, tmp_path):
    save(tmp_path, 1, 2)
    latest = tmp_path / "latest"
    latest.unlink()
    if pointer == "folder":
        latest.mkdir()
    elif pointer is not None:
        latest.write_bytes(pointer)
    loaded = Snapshots(tmp_path).load()
    assert (loaded.step, loaded.notes) == (2, ())
    if pointer != "folder":
        save(tmp_path, 3)
        assert_tidy(tmp_path, 1, 2, 3)


def test_a_pointer_with_a_flipped_bit_loses_nothing(tmp_path):
    save(tmp_path, 1, 2, 3)
    content = (tmp_path / "latest").read_bytes()
    for bit in range(len(content) * 8):
        other = bytearray(content)
        other[bit // 8] ^= 1 << bit % 8
        (tmp_path / "latest").write_bytes(other)
        assert Snapshots(tmp_path).load().step == 3


def test_after_a_fallback_the_damaged_ones_are_out_of_the_way(tmp_path):
    runs = save(tmp_path, 10, 20, 30, 40, keep=4)
    for step in (30, 40):
        os.truncate(path_of(tmp_path, step) / "state.json", 1)
    (tmp_path / "aside-step-000000040" / "of an earlier fallback").mkdir(parents=True)
    loaded = runs.load()
    assert (loaded.step, len(loaded.notes)) == (20, 2)
    assert runs.steps() == [10, 20, 30, 40]  # nothing is touched before something better is there
    save(tmp_path, 25)
    asides = [f"aside-step-{step:09d}" for step in (30, 40)]
    assert names_in(tmp_path)[:2] == asides
    loaded = Snapshots(tmp_path).load()
    assert (loaded.step, loaded.notes) == (25, ())
    assert Snapshots(tmp_path).steps() == [10, 20, 25]
    # Overtaken by the run, the damaged ones are of no interest any more.
    save(tmp_path, 30)
    assert names_in(tmp_path)[:1] == asides[1:]
    save(tmp_path, 41)
    assert_tidy(tmp_path, 25, 30, 41)


def test_a_damaged_one_is_not_among_those_that_stay(tmp_path):
    save(tmp_path, 10, 20, 30)
    os.truncate(path_of(tmp_path, 30) / "state.json", 1)
    runs = Snapshots(tmp_path, keep=2)
    runs.load()
    runs.save(35, arrays_of(35), state_of(35))  # another rhythm: step 30 does not come again
    assert_tidy(tmp_path, 20, 35)


def test_a_damaged_one_is_replaced_by_the_same_step(tmp_path):
    save(tmp_path, 1, 2)
    os.truncate(path_of(tmp_path, 2) / "arrays.safetensors", 9)
    assert Snapshots(tmp_path).load().step == 1
    save(tmp_path, 2)
    assert_tidy(tmp_path, 1, 2)
    # Even if an earlier replacement was killed and what it had made is damaged.
    os.rename(path_of(tmp_path, 2), tmp_path / "step-000000002.old0")
    path_of(tmp_path, 2).mkdir()
    loaded = Snapshots(tmp_path).load()
    assert (loaded.step, loaded.digest, len(loaded.notes)) == (2, digest_of(2), 1)
    save(tmp_path, 2)
    assert_tidy(tmp_path, 1, 2)


def test_a_newer_version_is_not_taken_for_damage(tmp_path):
    save(tmp_path, 1, 2)
    manifest = path_of(tmp_path, 2) / "manifest.json"
    record = json.loads(manifest.read_text())
    del record["seal"]
    manifest.write_bytes(module.sealed({**record, "format": 2, "version": "9.1"}))
    with pytest.raises(SnapshotError, match=r"written by version 9.1, which stores"):
        Snapshots(tmp_path).load()


def test_the_hash_is_of_what_was_to_be_written(tmp_path, monkeypatch):
    """A disk that stores something else is found out, though it did so before the hash was made."""
    real = safetensors.numpy.save_file

    def bad_disk(tensors, path, metadata):
        real(tensors, path, metadata)
        content = bytearray(Path(path).read_bytes())
        content[-1] ^= 1
        Path(path).write_bytes(content)

    save(tmp_path, 1)
    monkeypatch.setattr(safetensors.numpy, "save_file", bad_disk)
    save(tmp_path, 2)
    loaded = Snapshots(tmp_path).load()
    assert loaded.step == 1
    assert "arrays.safetensors is not what was written" in loaded.notes[0]


# --- Trouble while saving ---


@contextmanager
def failing(monkeypatch, at: int):
    """The `at`-th call that asks the disk for something fails; writes have got half-way by then."""
    calls = []

    def wrap(owner, name, half=None):
        real = getattr(owner, name)

        def call(*args, **options):
            calls.append(name)
            if len(calls) != at:
                return real(*args, **options)
            if half:
                half(real, *args, **options)
            if name == "save_file":
                raise safetensors.SafetensorError("I/O error: No space left (os error 28)")
            raise OSError(errno.ENOSPC, "No space left on device")

        patch.setattr(owner, name, call)

    def half_a_file(real, tensors, path, metadata):
        real(tensors, path, metadata)
        os.truncate(path, os.stat(path).st_size // 2)

    with monkeypatch.context() as patch:
        for name in ("mkdir", "rename", "replace", "fsync", "chmod"):
            wrap(os, name)
        wrap(Path, "write_bytes", lambda real, path, data: real(path, data[: len(data) // 2]))
        wrap(Path, "write_text", lambda real, path, text: real(path, text[: len(text) // 2]))
        wrap(safetensors.numpy, "save_file", half_a_file)
        yield calls


@pytest.mark.parametrize("scenario", ["first", "next", "again", "after a fallback"])
def test_a_full_disk_at_any_call_leaves_what_was_there(scenario, tmp_path, monkeypatch):
    good, run = tmp_path / "good", tmp_path / "run"
    steps = {"first": [], "next": [1, 2], "again": [1, 2, 3], "after a fallback": [1, 2, 4]}[
        scenario
    ]
    save(good, *steps, keep=2) if steps else None
    if scenario == "after a fallback":
        os.truncate(path_of(good, 4) / "arrays.safetensors", 50)
    failed = 0
    for at in range(1, 100):
        shutil.rmtree(run, ignore_errors=True)
        if steps:
            shutil.copytree(good, run)
        runs = Snapshots(run, keep=2)
        before = runs.load()
        with failing(monkeypatch, at) as calls:
            error = None
            try:
                runs.save(3, {**arrays_of(3), "new": np.zeros(1_000_000, "int8")}, {"new": True})
            except OSError as caught:
                error = caught
        if error is None:
            break
        failed += 1
        now = Snapshots(run).load()
        committed = now is not None and now.state == {"new": True}
        if not committed:
            assert getattr(now, "digest", None) == getattr(before, "digest", None)
        left = f"the snapshot of step {now.step} is intact" if now else "there is no earlier one"
        assert f"saving step 3 into {run} failed (" in str(error), calls
        assert "No space left" in str(error)
        assert "it needs 1.0 MB, " in str(error)
        assert str(error).endswith(f" MB are free; {left}")
        assert error.errno == errno.ENOSPC
        assert not list(run.glob(".tmp*"))
        assert committed or not list(run.glob("*.old*"))
        save(run, 3, keep=2)  # once there is room again
        if scenario == "first":
            assert_tidy(run, 3)
        elif scenario != "after a fallback":
            assert_tidy(run, 2, 3)
        else:
            assert (run / "aside-step-000000004").is_dir()
            shutil.rmtree(run / "aside-step-000000004")
            assert_tidy(run, 2, 3)
    assert failed == len(calls) > 10  # none was passed over in silence


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux what a handle is of")
def test_everything_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    save(tmp_path, 1)
    calls = []

    def sync(handle, real=os.fsync):
        path = Path(os.readlink(f"/proc/self/fd/{handle}"))
        calls.append(f"fsync {path.relative_to(tmp_path.resolve())}")
        real(handle)

    def rename(old, new, real=os.rename):
        calls.append(f"rename {Path(old).name} {Path(new).name}")
        real(old, new)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "replace", rename)
    save(tmp_path, 2)
    new = ".tmp-step-000000002"
    assert set(calls[:3]) == {f"fsync {new}/{name}" for name in FILES}
    assert calls[3:] == [
        f"fsync {new}",
        f"rename {new} step-000000002",
        "fsync .",
        "fsync .tmp-latest",
        "rename .tmp-latest latest",
        "fsync .",
    ]


def test_a_failed_deletion_is_made_good_later(tmp_path, monkeypatch):
    save(tmp_path, 1, 2, keep=1)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, ignore_errors=False: None)
        save(tmp_path, 3, keep=1)
    assert names_in(tmp_path) == [".tmp-step-000000002", "latest", "step-000000003"]
    assert Snapshots(tmp_path).steps() == [3]
    save(tmp_path, 4, keep=1)
    assert_tidy(tmp_path, 4)


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is read-only for root")
def test_a_read_only_folder_is_a_clear_error(tmp_path):
    save(tmp_path, 1)
    tmp_path.chmod(0o500)
    try:
        assert Snapshots(tmp_path).load().step == 1
        with pytest.raises(PermissionError, match=r"Permission denied.*step 1 is intact"):
            save(tmp_path, 2)
        with pytest.raises(PermissionError), RunLock(tmp_path):
            pass
    finally:
        tmp_path.chmod(0o700)
    assert_tidy(tmp_path, 1)


def test_a_folder_that_cannot_be_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    runs = Snapshots(tmp_path / "file" / "run")
    with pytest.raises(
        NotADirectoryError, match=r"saving step 1 into .*: it needs 0.0 MB, .* are free; there"
    ):
        runs.save(1, {}, {})
    with pytest.raises(NotADirectoryError):
        runs.load()  # not None: nobody knows whether there was one


# --- Kills ---


class Trainers:
    """Processes that save, one after the other; see `snapshot_writer`."""

    def __init__(self):
        command = [sys.executable, "-m", "tests.snapshot_writer"]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(command, cwd=root, **pipes)

    def start(self, command, *arguments):
        """Begins one; returns its process id."""
        print(command, json.dumps(arguments), file=self._process.stdin, flush=True)
        return int(self.line())

    def line(self):
        if not (line := self._process.stdout.readline()):
            raise EOFError("the process that forks trainers has died")
        return line.strip()

    def rest(self):
        """What else it says, to its end."""
        return list(iter(self.line, "ended"))

    def run(self, command, *arguments):
        self.start(command, *arguments)
        return self.rest()

    def close(self):
        self._process.stdin.close()
        self._process.wait(10)
        self._process.stdout.close()


@pytest.fixture(scope="module")
def trainers():
    made = Trainers()
    yield made
    made.close()


def test_no_backend_is_needed(trainers):
    assert trainers.run("modules") == ["[]"]


@pytest.mark.parametrize(
    ("size", "longest", "kills"),
    [
        (100, 0.02, 18),
        pytest.param(100_000, 0.06, 24, marks=pytest.mark.slow),
        pytest.param(400_000, 0.1, 150, marks=pytest.mark.slow),
    ],
)
def test_killed_at_any_moment_the_last_or_the_new_one_is_there(
    size, longest, kills, trainers, tmp_path
):
    numbers = random.Random(size)  # noqa: S311
    done, midway = 0, 0
    for _ in range(kills):
        child = trainers.start("loop", str(tmp_path), size)
        while (line := trainers.line()).isdigit() and numbers.random() < 0.5:
            done = int(line)
        done = int(line)  # a message instead of a number ends the test here
        time.sleep(numbers.uniform(0, longest))
        os.kill(child, signal.SIGKILL)
        done = max([done, *map(int, trainers.rest())])
        midway += bool(list(tmp_path.glob(".tmp*")) + list(tmp_path.glob("*.old*")))
        loaded = Snapshots(tmp_path).load()
        assert loaded.notes == ()
        assert loaded.step in (done, done + 1)
        assert loaded.digest == digest_of(loaded.step, size)
        assert len(Snapshots(tmp_path).steps()) <= 3
    assert midway >= kills // 8  # they did hit something


SCENARIOS = {  # what is there: steps, those damaged; what may be loaded; what is there at the end
    "first": ([], [], [None, 3], [3]),
    "next": ([1, 2], [], [2, 3], [2, 3]),
    "again": ([1, 3], [], [3], [1, 3]),
    "fallback": ([1, 2, 3, 5], [3, 5], [2, 3], [2, 3]),
    "back": ([1, 2, 3, 5], [], [5, 3], [2, 3]),
    "only": ([3], [], [3], [3]),
}


def images_of(folder, to, work):
    """What a kill before each line of the module would leave of `folder`: copies, while `work`s."""
    images, last = [], None

    def trace(frame, event, _):
        nonlocal last
        if frame.f_code.co_filename != module.__file__:
            return None
        now = {
            path: (at.st_ino, at.st_size, at.st_mtime_ns)
            for path in folder.rglob("*")
            for at in [path.stat()]
        }
        if now != last:
            last = now
            images.append((frame.f_lineno, shutil.copytree(folder, to / str(len(images)))))
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return images


@pytest.mark.parametrize("resumed", [True, False], ids=["resumed", "not loaded"])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_killed_before_any_line_the_last_or_the_new_one_is_there(scenario, resumed, tmp_path):
    steps, damaged, allowed, finally_there = SCENARIOS[scenario]
    run = tmp_path / "run"
    run.mkdir()
    for step in steps:
        save(run, step, keep=9)
    for step in damaged:
        os.truncate(path_of(run, step) / "arrays.safetensors", 99)
    asides = [f"aside-{path_of(run, step).name}" for step in steps if step > 3]
    runs = Snapshots(run, keep=2)
    if resumed:
        runs.load()
    saving = lambda: runs.save(3, arrays_of(3), state_of(3))  # noqa: E731
    images = images_of(run, tmp_path / "images", saving)
    results = []
    for line, image in images:
        loaded = Snapshots(image).load()
        step = loaded.step if loaded else None
        assert step in allowed, line
        assert loaded is None or loaded.digest == digest_of(step), line
        if step not in results[-1:]:
            results.append(step)
        save(image, 3, keep=2)
        assert names_in(image)[: len(asides)] == asides, line
        for name in asides:
            shutil.rmtree(image / name)
        assert_tidy(image, *finally_there)
    assert len(images) >= 8
    assert results == allowed  # once the new one is there it stays


def test_no_room_at_any_size(trainers, tmp_path):
    size = 20_000
    save(tmp_path, 1)
    path = Snapshots(tmp_path / "size").save(2, arrays_of(2, size), state_of(2))
    needed = (path / "arrays.safetensors").stat().st_size
    shutil.rmtree(tmp_path / "size")
    saved = 0
    for limit in (0, 1, 50, 100, 200, 1_000, 30_000, needed - 100, needed - 1, needed):
        (said,) = trainers.run("limited", str(tmp_path), 2, size, limit)
        if said == "saved":
            saved += 1
            continue
        assert said.startswith(f"{errno.EFBIG} [Errno {errno.EFBIG}] saving step 2 into {tmp_path}")
        assert "File too large" in said
        assert said.endswith("the snapshot of step 1 is intact")
        assert_tidy(tmp_path, 1)
    assert saved == 1
    assert Snapshots(tmp_path).load().digest == digest_of(2, size)


# --- One trainer at a time ---


def test_a_second_trainer_is_told_who_is_in(trainers, tmp_path):
    run = tmp_path / "new" / "run"
    with RunLock(run):
        (said,) = trainers.run("lock", str(run), False)
        who = f"process {os.getpid()} on {socket.gethostname()} since 20"
        assert said.startswith(f"RunLockedError {run} is in use by {who}")
        with pytest.raises(RunLockedError, match=who), RunLock(run):
            pass
        (run / ".lock.json").write_text("[]")
        with pytest.raises(RunLockedError, match="in use by another process"), RunLock(run):
            pass
    with RunLock(run), RunLock(tmp_path):
        pass
    again = RunLock(run)
    for _ in range(2):
        with again:
            assert (run / ".lock.json").is_file()
        assert not (run / ".lock.json").exists()
    with RunLock(run):  # though `again` is still there
        pass


@pytest.mark.parametrize("fork", [False, True], ids=["alone", "with a child that lives on"])
def test_the_lock_of_a_killed_trainer_is_free(fork, trainers, tmp_path):
    child = trainers.start("lock", str(tmp_path), fork)
    said = {trainers.line() for _ in range(1 + fork)}
    assert said == {"locked"} | ({"forked"} if fork else set())
    with pytest.raises(RunLockedError, match=f"process {child} on"), RunLock(tmp_path):
        pass
    os.kill(child, signal.SIGKILL)
    assert trainers.rest() == []
    assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == child
    with RunLock(tmp_path):
        assert json.loads((tmp_path / ".lock.json").read_text())["pid"] == os.getpid()


def test_the_lock_does_not_need_room_for_its_note(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    another = pytest.raises(RunLockedError, match="in use by another process")
    with RunLock(tmp_path), another, RunLock(tmp_path):
        pass


# --- One file ---


@pytest.mark.parametrize("old", [None, "old"])
def test_a_file_is_the_old_or_the_new_one(old, tmp_path, monkeypatch):
    path = tmp_path / "best.weights.h5"
    seen = []

    def write(new):
        seen.append(new.name)
        new.write_text("something new")

    for at in range(1, 10):
        path.unlink(missing_ok=True)
        if old:
            path.write_text(old)
        with failing(monkeypatch, at) as calls:
            try:
                write_atomically(str(path), write)
            except OSError as error:
                assert error.errno == errno.ENOSPC  # noqa: PT017
            else:
                break
        # Only the wait for the folder comes after the rename.
        content = "something new" if at == 4 else old
        assert names_in(tmp_path) == ([path.name] if content else [])
        assert not content or path.read_text() == content
    assert calls == ["write_text", "fsync", "replace", "fsync"]
    assert path.read_text() == "something new"
    assert names_in(tmp_path) == [path.name]
    assert set(seen) == {".tmp-best.weights.h5"}


def test_whatever_the_writer_raises_the_old_file_stays(tmp_path):
    path = tmp_path / "model.keras"
    path.write_text("old")

    def interrupted(new):
        new.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, interrupted)
    assert (names_in(tmp_path), path.read_text()) == ([path.name], "old")
    # What a killed process left is not what a writer that makes nothing has made.
    (tmp_path / ".tmp-model.keras").write_text("half")
    with pytest.raises(FileNotFoundError):
        write_atomically(path, lambda new: None)
    assert (names_in(tmp_path), path.read_text()) == ([path.name], "old")


def test_what_is_no_file_is_not_replaced(tmp_path):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    (tmp_path / "folder").mkdir()
    for path in (pipe, tmp_path / "folder"):
        with pytest.raises(FileExistsError, match=f"{path} is (a folder|not a regular file); name"):
            write_atomically(path, lambda new: new.write_text("x"))
    assert stat.S_ISFIFO(pipe.stat().st_mode)
    assert names_in(tmp_path) == ["folder", "pipe"]


# --- Numbers that are none ---


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "bfloat16", "complex64"])
def test_the_first_array_with_a_nonfinite_value_is_named(dtype, value):
    arrays = {
        "int": np.full(3, 2**31 - 1),
        "bool": np.array([True]),
        "empty": np.zeros(0, dtype),
        "int4": np.ones(3, ml_dtypes.int4),
        "large": np.full(100, 3e38 if dtype == "bfloat16" else np.finfo(dtype).max, dtype),
        "scalar": np.zeros((), dtype),
        "a": np.zeros((50, 3), dtype),
        "b": np.zeros(2, dtype),
    }
    assert nonfinite(arrays) is None
    arrays["b"][1] = value
    assert nonfinite(arrays) == "b"
    arrays["a"][49, 2] = value
    assert nonfinite(arrays) == "a"
    assert nonfinite({**arrays, "scalar": np.full((), value, dtype)}) == "scalar"


def test_the_newest_state_without_its_arrays(tmp_path):
    """None wherever `load` would pass something over, or refuse."""
    assert Snapshots(tmp_path / "none").newest_state() is None
    runs = save(tmp_path, 1, 2)
    (path_of(tmp_path, 2) / "arrays.safetensors").unlink()  # not looked at
    assert json.dumps(runs.newest_state()) == json.dumps(state_of(2))  # NaN is in it
    for name in ("state.json", "manifest.json"):
        file = path_of(tmp_path, 2) / name
        whole = file.read_bytes()
        for damaged in (whole[:-9], whole.replace(b"\n", b" "), b""):
            file.write_bytes(damaged)
            assert runs.newest_state() is None
        file.write_bytes(whole)
    (tmp_path / "latest").write_text("step-000000003\n")
    assert runs.newest_state() is None
