"""Files made to do harm are refused: at once, in little memory, and nothing of them is run."""

from __future__ import annotations

import ctypes
import io
import json
import os
import re
import struct
import subprocess
import sys
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from tests.parity import GOLDEN, MICRO, load_seeded
from tests.weights import hostile
from tests.weights.hostile import FAMILIES, hdf5s, pickles
from tests.weights.hostile.payload import Payload
from tests.weights.hostile.writers import entry, good, in_safetensors, in_zip, saved, sizes
from van_classification_tensorflow import VAN, load_checkpoint
from van_classification_tensorflow.model.load import to_official
from van_classification_tensorflow.weights.checkpoint import CheckpointError, read_checkpoint
from van_classification_tensorflow.weights.formats.hdf5 import Hdf5File
from van_classification_tensorflow.weights.formats.stored_zip import StoredZip

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux's limits and inotify")

ROOT = Path(__file__).parents[2]


@contextmanager
def opened(paths: list[Path]) -> Iterator[list[str]]:
    """Names of those of `paths` that any process opens meanwhile, a C library's calls included."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(os.O_NONBLOCK)
    assert watch >= 0, os.strerror(ctypes.get_errno())
    names = {}
    for path in paths:
        number = libc.inotify_add_watch(watch, os.fsencode(path), 0x20)  # IN_OPEN
        assert number >= 0, os.strerror(ctypes.get_errno())
        names[number] = path.name
    found: list[str] = []
    try:
        yield found
        while True:
            try:
                events = os.read(watch, 1 << 16)
            except BlockingIOError:
                break
            while events:
                number, _, _, length = struct.unpack_from("<iIII", events)
                found.append(names[number])
                events = events[16 + length :]
    finally:
        os.close(watch)


def ask(task: str, **job: Any) -> tuple[list[dict], str]:
    """What `hostile_reader` tells, asked one of its `TASKS`; and what it died of, "" if not."""
    child = subprocess.run(
        [sys.executable, "-m", "tests.hostile_reader", task],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},  # threads take address space
    )
    told = [json.loads(line) for line in child.stdout.splitlines()]
    return told, f"{child.returncode} {child.stderr[-2000:]}" if child.returncode else ""


@pytest.fixture(scope="module")
def around(tmp_path_factory):
    """The folder that payloads point to."""
    folder = tmp_path_factory.mktemp("around")
    hostile.decoys(folder)
    return folder


# Of the instructions without end, which one bound stops; the slow tests have the others.
ENDLESS = [f"{one} without end" for one in ("NONE", "MARK", "MEMOIZE", "tensors", "NEWTRUE")]


def in_the_default_run(family: str, payload: Payload) -> bool:
    endless = family == "bombs" and payload.name.endswith(" without end")
    return not endless or payload.name in ENDLESS


@pytest.fixture(scope="module")
def results(tmp_path_factory, around):
    """As `told_of` has them."""
    return told_of(tmp_path_factory.mktemp("hostile"), around, in_the_default_run)


@pytest.fixture(scope="module")
def others(tmp_path_factory, around):
    """Of those that are not among `results`."""
    folder = tmp_path_factory.mktemp("others")
    return told_of(folder, around, lambda *about: not in_the_default_run(*about))


def told_of(folder: Path, around: Path, wanted: Callable[[str, Payload], bool]):
    """{family: [(payload, path, what the child told of it)]}; modules; which decoys were opened."""
    left: dict[str, tuple[str, Payload, Path]] = {}
    for number, (family, payload) in enumerate(hostile.payloads(around)):
        if not wanted(family, payload):
            continue
        path = folder / str(number)
        payload.make(path)
        left[str(number)] = family, payload, path
    readable = []
    for name, content in good().items():
        readable.append(str(folder / name))
        Path(readable[-1]).write_bytes(content)
    found: dict[str, list[tuple[Payload, Path, dict]]] = {family: [] for family in FAMILIES}
    modules, last = [], ""
    with opened([*around.iterdir()]) as touched:
        while left:
            files = [[key, str(path), payload.reader] for key, (_, payload, path) in left.items()]
            told, died = ask("read", good=readable, files=files)
            assert told, died
            for result in told:
                modules = result.get("modules", modules)
                last = result.get("reading", last)
                if "name" in result:
                    family, *about = left.pop(result["name"])
                    found[family].append((*about, result))
            if died:  # and the rest is read by another one
                family, *about = left.pop(last)
                found[family].append((*about, {"died": died}))
    return found, modules, touched


def fault(payload: Payload, path: Path, result: dict) -> str:
    """What is wrong with how a payload was dealt with; "" if nothing is."""
    if "died" in result:
        return f"the process died: {result['died']}"
    if result["events"]:
        return f"meanwhile: {result['events'][:5]}"
    if result["error"] is None:
        return "accepted"
    message = result["message"]
    if result["error"] != "CheckpointError":
        return f"{result['error']}: {message[:300]}"
    if not message.startswith(str(path)) or not re.search(payload.says, message, re.DOTALL):
        return f"refused for another reason: {message[:300]}"
    clear = message.replace("\n", "").isprintable() and len(message) < 800
    if not clear or "Traceback" in message or "memory" in message:
        return f"an unclear message: {message[:300]!r}"
    return f"{result['seconds']:.1f} s" if result["seconds"] >= 1 else ""


@pytest.mark.parametrize("family", FAMILIES)
def test_every_one_is_refused(results, family):
    _, least = FAMILIES[family]
    check_refused(results[0][family], least - 13 if family == "bombs" else least)


@pytest.mark.slow
def test_the_others_without_end_are_refused(others):
    found, _, touched = others
    assert [family for family in found if found[family]] == ["bombs"]
    check_refused(found["bombs"], 13)
    assert touched == []


def check_refused(found: list[tuple[Payload, Path, dict]], least: int) -> None:
    faults = {payload.name: fault(payload, path, result) for payload, path, result in found}
    assert len(faults) == len(found) >= least, Counter(p.name for p, _, _ in found)
    wrong = [f"{name}: {what}" for name, what in faults.items() if what]
    assert not wrong, "\n".join(wrong)


def test_nothing_else_is_opened_or_made(results, around):
    _, modules, touched = results
    assert touched == []
    assert sorted(path.name for path in around.iterdir()) == ["pipe", "target.h5"]
    # HDF5's library would open files that Python does not hear of.
    assert not {"h5py", "torch", "tensorflow", "keras", "jax"} & set(modules)


# --- Would it be noticed? ---


def test_what_a_payload_does_is_noticed(tmp_path):
    mark = tmp_path / "executed"
    path = tmp_path / "payload"
    path.write_bytes(pickles.code_as_pickle(mark))
    readers = ("unpickle", "fill", "hang", "crash")
    told = []
    for reader in readers:
        result, died = ask("read", good=[], files=[["a", str(path), reader]], patience=1)
        told.append((result[-1], died))
    (unpickled, _), (filled, _), (_, hung), (_, crashed) = told
    assert mark.exists()
    assert any(event.startswith("os.system") for event in unpickled["events"])
    assert any(event.startswith("pickle.find_class") for event in unpickled["events"])
    assert filled["error"] == "MemoryError"
    assert hung.startswith("-14 ")
    assert crashed.startswith("-11 ")


def test_what_a_library_opens_is_noticed(tmp_path):
    hostile.decoys(tmp_path)
    target = tmp_path / "target.h5"
    wanted = "numbers in a file"
    content = next(p.content for p in hdf5s.hdf5s(tmp_path) if p.name == wanted)
    with opened([target]) as touched, h5py.File(io.BytesIO(content)) as file:
        assert touched == []
        assert file["layers/a/vars/2"][()].shape == (4,)
    assert touched == ["target.h5"]


# --- What is good is read ---


def test_the_files_they_are_made_from_are_read(tmp_path):
    for name, content in good().items():
        (tmp_path / "x").write_bytes(content)
        tensors = read_checkpoint(tmp_path / "x").tensors
        if "w" in tensors:
            np.testing.assert_array_equal(tensors["w"], [1, 2, 3, 4], name)
        else:
            np.testing.assert_array_equal(tensors["first/vars/0"], np.arange(6), name)


def test_the_ways_that_torch_names_things_are_read(tmp_path):
    """So what is refused is refused for its name."""
    routes = pickles.routes("torch", "Size", sizes(1, 2))
    unknown = {"STRING", "INST", "OBJ", "NEWOBJ_EX", "PERSID", "BINPERSID"}
    misused = {"key", "BUILD __class__", "BUILD with slots", "type of a storage"}
    assert unknown | misused < routes.keys()
    for route in routes.keys() - unknown - misused:
        (tmp_path / "x").write_bytes(in_zip(saved(routes[route][1])))
        assert read_checkpoint(tmp_path / "x").tensors.keys() == {"w"}, route


def _odd_arrays(path: Path) -> None:
    rng = np.random.default_rng(0)
    with h5py.File(path, "w") as file:
        for i, kind in enumerate(
            ("<f4", ">f4", "<f8", ">f8", "f2", "i1", "u1", ">i2", "<i8", "u4")
        ):
            file[f"layers/a{i}/vars/0"] = rng.integers(0, 99, (2, 3, 1)).astype(kind)
        for i in range(700):  # a tree of several levels
            file[f"optimizer/vars/{i}"] = np.full(i % 5, i, np.float32)
        file["layers/b/vars/0"] = np.float32(3)
        file["layers/b/vars/1"] = np.zeros((0, 4), np.float32)
        for key, name in (("a0", np.bytes_(b"fixed")), ("a1", "n\xe4me"), ("b", "x" * 200)):
            file[f"layers/{key}/vars"].attrs["name"] = name
        for i in range(30):  # a header in several pieces
            file["layers/a2"].attrs[f"other {i}"] = np.arange(1000.0)
        file["layers/a2"].attrs["bytes"] = "y" * 5000


@pytest.mark.parametrize("kind", ["odd", "keras", "port"])
def test_hdf5_is_read_as_its_library_reads_it(tmp_path, kind):
    path = tmp_path / "x.weights.h5"
    if kind == "odd":
        _odd_arrays(path)
    elif kind == "port":
        path = GOLDEN / "micro_seed.h5"
    else:
        model = VAN(**MICRO)
        model.compile("adam", "mse")
        model.optimizer.build(model.trainable_variables)
        model.save_weights(path)
    arrays, names = {}, {}

    def note(name: str, entry: Any) -> None:
        if isinstance(entry, h5py.Dataset):
            arrays[name] = entry[()]
        elif name.endswith("/vars") and "name" in entry.attrs:
            found = entry.attrs["name"]
            names[name] = found.decode() if isinstance(found, bytes) else found

    with h5py.File(path) as file:
        file.visititems(note)
    with open(path, "rb") as raw:
        ours = Hdf5File(raw)
        assert list(ours.arrays) == list(arrays)
        assert ours.layer_names == names
        for name, array in arrays.items():
            found = ours.read(name)
            assert found.dtype == array.dtype.newbyteorder("=")
            np.testing.assert_array_equal(found, array, name, strict=False)
            assert found.shape == array.shape


def test_zip_is_read_as_python_reads_it(tmp_path):
    paths = [GOLDEN / "micro_official.pth.tar", GOLDEN / "micro_hf" / "pytorch_model.bin"]
    paths += [tmp_path / "64.zip", tmp_path / "65535.zip", tmp_path / "\xe4.zip"]
    with (
        zipfile.ZipFile(paths[2], "w") as archive,
        archive.open("a", "w", force_zip64=True) as file,
    ):
        file.write(b"in 64 bits")
    with zipfile.ZipFile(paths[3], "w") as archive:
        for i in range(300):
            archive.writestr(f"folder/{i}", str(i) * i)
        archive.comment = b"a comment"
    with zipfile.ZipFile(paths[4], "w") as archive:
        archive.writestr("\xe4\u65e5", b"a name in UTF-8")
    for path in paths:
        with zipfile.ZipFile(path) as theirs, open(path, "rb") as file:
            ours = StoredZip(file)
            assert list(ours.members) == theirs.namelist()
            for name in ours.members:
                assert ours.read(name) == theirs.read(name), (path, name)


def test_what_a_file_says_of_itself_may_be_anything(tmp_path):
    for said in ("", "{", "[" * 100_000, "null", '["labels"]', '"labels"', "9" * 10_000):
        for key in ("van", "config"):
            header = {"w": entry(), "__metadata__": {key: said}}
            (tmp_path / "x").write_bytes(in_safetensors(header))
            assert read_checkpoint(tmp_path / "x").said == {}


# --- All or nothing ---


def _nearly_good(path: Path) -> Iterator[str]:
    """Makes real weights with one thing wrong at `path`, one after the other."""
    whole = (GOLDEN / "micro_official.pth.tar").read_bytes()
    with zipfile.ZipFile(io.BytesIO(whole)) as archive:
        last = archive.infolist()[-3]
    at = whole.index(last.filename.encode()) + len(last.filename) + 80
    for name, content in {
        "one bit of its numbers": whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :],
        "cut short": whole[:-1],
    }.items():
        path.write_bytes(content)
        yield name
    for file in ("micro_official_legacy.pth.tar", "micro.safetensors"):
        path.write_bytes((GOLDEN / file).read_bytes()[:-1])
        yield f"{file} cut short"
    path.write_bytes((GOLDEN / "micro_seed.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        file["zzz"] = h5py.SoftLink("/head")
    yield "a link"
    path.write_bytes((GOLDEN / "micro_seed.h5").read_bytes())
    with h5py.File(path, "r+") as file:
        del file["norm4/norm4/beta:0"]
    yield "an array missing"


def test_a_model_stays_as_it_is(tmp_path, results):
    model = load_seeded(VAN(**MICRO), seed=3)
    before = {name: array.tobytes() for name, array in to_official(model).items()}

    def refused(path: Path, what: str) -> None:
        with pytest.raises(CheckpointError):
            load_checkpoint(model, path)
        after = {name: array.tobytes() for name, array in to_official(model).items()}
        assert after == before, what

    for found in results[0].values():
        for payload, path, _ in found[:: max(len(found) // 8, 1)]:
            if payload.reader == "read_checkpoint":
                refused(path, payload.name)
    for what in _nearly_good(tmp_path / "x"):
        if what == "an array missing":  # which only the model tells
            with pytest.raises(ValueError, match=r"nothing was loaded.\nmissing \(1\)"):
                load_checkpoint(model, tmp_path / "x")
        else:
            refused(tmp_path / "x", what)
    assert {name: array.tobytes() for name, array in to_official(model).items()} == before
