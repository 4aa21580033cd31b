"""What is written beside its place and then moved there: all of it, or nothing."""

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from van_classification_tensorflow.support.files import (
    folder_beside,
    put_in_place,
    write_atomically,
)


def below(folder):
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file()
    }


def make(work, names, text):
    for name in names:
        (work / name).parent.mkdir(exist_ok=True)
        (work / name).write_text(text)


PLACES = {"a file": ["a"], "two files": ["a", "b"], "a folder": ["f"], "both": ["a", "f"]}
FILES = {"a": ["a"], "b": ["b"], "f": ["f/1", "f/2"]}


@pytest.mark.parametrize("what", PLACES)
@pytest.mark.parametrize("old", [False, True])
def test_all_or_nothing_wherever_it_breaks(what, old, tmp_path, monkeypatch):
    names = PLACES[what]
    files = [file for name in names for file in FILES[name]]
    if old:
        make(tmp_path, [*files, *(f"{name}/0" for name in names if name == "f")], "old")
    before = below(tmp_path)
    moves, real = 0, os.replace
    for at in range(1, 10):
        moves = 0

        def breaks(source, target, at=at):
            nonlocal moves
            moves += 1
            if moves == at:
                raise KeyboardInterrupt
            real(source, target)

        monkeypatch.setattr(os, "replace", breaks)
        try:
            with folder_beside(tmp_path / "a") as work:
                make(work, files, "new")
                put_in_place([(work / name, tmp_path / name) for name in names], work)
        except KeyboardInterrupt:
            assert below(tmp_path) == before
        else:
            break
    assert moves == at - 1 == (1 if what == "a file" else len(names) * (1 + old))
    assert below(tmp_path) == dict.fromkeys(files, "new")  # of an old folder nothing is left
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="asks Linux what a handle is of")
def test_everything_is_on_the_disk_before_it_is_moved(tmp_path, monkeypatch):
    calls, fsync, replace = [], os.fsync, os.replace

    def sync(handle):
        calls.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def move(source, target):
        calls.append(f"-> {Path(target).name}")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", sync)
    monkeypatch.setattr(os, "replace", move)
    with folder_beside(tmp_path / "f") as work:
        make(work, FILES["f"], "new")
        put_in_place([(work / "f", tmp_path / "f")], work)
    assert sorted(calls[:2]) == ["1", "2"]
    assert calls[2:] == ["f", "-> f", tmp_path.name]


def test_several_at_once_do_not_disturb_each_other(tmp_path):
    """Each is whole: one that is being written is not moved by another."""
    path, both = tmp_path / "x.h5", threading.Barrier(2)

    def write(text):
        def halves(new):
            assert new.name.endswith("x.h5")
            new.write_text(text)
            both.wait(10)
            new.write_text(text * 2)

        write_atomically(path, halves, shared=True)

    others = [threading.Thread(target=write, args=(text,)) for text in "ab"]
    for one in others:
        one.start()
    for one in others:
        one.join()
    assert path.read_text() in ("aa", "bb")
    assert os.listdir(tmp_path) == ["x.h5"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such permissions")
def test_permissions_are_those_of_any_new_file(tmp_path):
    (tmp_path / "plain").touch()
    (tmp_path / "plain_folder").mkdir()
    write_atomically(tmp_path / "a", lambda new: new.write_text("x"), shared=True)
    with folder_beside(tmp_path / "f") as work:
        make(work, FILES["f"], "x")
        put_in_place([(work / "f", tmp_path / "f")], work)

    def mode(name):
        return stat.S_IMODE((tmp_path / name).stat().st_mode)

    assert mode("a") == mode("f/1") == mode("plain")
    assert mode("f") == mode("plain_folder")


def test_a_folder_that_cannot_be_waited_for_loses_nothing(tmp_path, monkeypatch):
    """Some file systems refuse it; one may write into a folder that one may not read."""
    fsync = os.fsync

    def refuses(handle):
        if stat.S_ISDIR(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuses)
    write_atomically(tmp_path / "a", lambda path: path.write_text("new"))
    with folder_beside(tmp_path / "f") as work:
        make(work, ["f/1", "f/2"], "new")
        put_in_place([(work / "f", tmp_path / "f")], work)
    assert below(tmp_path) == dict.fromkeys(["a", "f/1", "f/2"], "new")


@pytest.mark.parametrize("name", ["older", "older-", "f"])
def test_any_name_of_a_folder(name, tmp_path):
    for text in ("first", "second"):
        with folder_beside(tmp_path / name) as work:
            make(work, [f"{name}/1"], text)
            put_in_place([(work / name, tmp_path / name)], work)
    assert below(tmp_path) == {f"{name}/1": "second"}


@pytest.mark.parametrize("name", ["n" * 251 + ".pth", "\u754c" * 83 + ".keras"])
@pytest.mark.parametrize("shared", [False, True])
def test_a_name_as_long_as_names_can_be(name, shared, tmp_path):
    made_at = []

    def write(path):
        made_at.append(path.name)
        path.write_text("new")

    write_atomically(tmp_path / name, write, shared=shared)
    assert below(tmp_path) == {name: "new"}
    assert made_at[0].endswith(name[-6:])
