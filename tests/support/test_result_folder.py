"""A folder of results is the old one or the new one, whole, whatever happens."""

import os

import pytest

from van_classification_tensorflow.support.result_folder import check_folder, write_folder

FILES = ("a.csv", "b.png")


def _fill(text):
    def fill(folder):
        for name in FILES:
            (folder / name).write_text(text)

    return fill


def _make(output, text, overwrite=False):
    write_folder(output, FILES, "test", overwrite, _fill(text))


def test_it_is_made_and_replaced_whole(tmp_path):
    output = tmp_path / "out"
    _make(output, "old")
    with pytest.raises(FileExistsError, match="to replace it: --overwrite"):
        _make(output, "new")
    assert {path.name: path.read_text() for path in output.iterdir()} == dict.fromkeys(FILES, "old")
    _make(output, "new", overwrite=True)
    assert {path.name: path.read_text() for path in output.iterdir()} == dict.fromkeys(FILES, "new")
    assert os.listdir(tmp_path) == ["out"]


def test_an_empty_folder_is_no_result(tmp_path):
    (tmp_path / "out").mkdir()
    _make(tmp_path / "out", "new")
    assert sorted(os.listdir(tmp_path / "out")) == sorted(FILES)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_what_breaks_leaves_the_old_one(tmp_path, error):
    output = tmp_path / "out"
    _make(output, "old")

    def breaks(folder):
        (folder / "a.csv").write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_folder(output, FILES, "test", True, breaks)
    assert {path.name: path.read_text() for path in output.iterdir()} == dict.fromkeys(FILES, "old")
    assert os.listdir(tmp_path) == ["out"]


def test_a_move_that_fails_puts_the_old_one_back(tmp_path, monkeypatch):
    output = tmp_path / "out"
    _make(output, "old")
    replace, calls = os.replace, []

    def fails_the_second_time(source, target):
        calls.append(target)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fails_the_second_time)
    with pytest.raises(OSError, match="Input/output"):
        _make(output, "new", overwrite=True)
    assert {path.name: path.read_text() for path in output.iterdir()} == dict.fromkeys(FILES, "old")


def test_what_is_in_the_way_is_found_before_the_work(tmp_path, monkeypatch):
    def check(output):
        check_folder(output, FILES, "test", True)

    check(tmp_path / "new")
    assert os.listdir(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="is no folder; make it first"):
        check(tmp_path / "no" / "out")
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError, match="is there and is no folder"):
        check(tmp_path / "file")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(FileExistsError, match="is there and is no folder"):
        check(tmp_path / "link")
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "thesis.tex").touch()
    with pytest.raises(FileExistsError, match=r"holds what no test wrote \(thesis.tex\)"):
        check(tmp_path / "thesis")
    monkeypatch.chdir(tmp_path / "thesis")
    with pytest.raises(FileExistsError, match="is the current folder"):
        check(tmp_path / "thesis")
