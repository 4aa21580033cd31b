"""What a command line names, expanded: every picture once, in order, whatever its name."""

import gzip
import io
import lzma
import os
import stat

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow.images import find as inputs
from van_classification_tensorflow.images.decode import FORMATS, ImageError, open_image
from van_classification_tensorflow.images.find import LeftOut, expand
from van_classification_tensorflow.support.text import printable


def found(*paths, stdin: str = "") -> list[str]:
    return list(expand([os.fspath(path) for path in paths], io.StringIO(stdin)))


def names(folder, *paths) -> list[str]:
    return [os.path.relpath(path, folder) for path in found(*(paths or (folder,)))]


@pytest.fixture
def tree(tmp_path):
    for name in (
        "b.png",
        "a.JPG",
        "notes.txt",
        "z/1.gif",
        "z/deep/er/2.webp",
        "c/3.tiff",
        ".d.bmp",
    ):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / "e.png").mkdir()  # a folder that is called like a picture
    (tmp_path / "e.png" / "4.jpeg").touch()
    return tmp_path


def test_files_are_taken_as_they_are():
    given = ["there/is/none.png", "no-ending", "-x.png", "a b", ""]
    assert found(*given) == given
    assert found("a.png", "a.png") == ["a.png"] * 2
    assert found() == []


def test_folders_at_any_depth_in_a_fixed_order(tree):
    expected = ["a.JPG", "b.png", "c/3.tiff", "e.png/4.jpeg", "z/1.gif"]
    assert names(tree) == [*expected, "z/deep/er/2.webp"]
    assert names(tree, tree / "z", tree / "b.png", tree / "z") == [
        "z/1.gif",
        "z/deep/er/2.webp",
        "b.png",
        "z/1.gif",
        "z/deep/er/2.webp",
    ]
    assert found(f"{tree}/z/") == [f"{tree}/z/1.gif", f"{tree}/z/deep/er/2.webp"]


def test_an_empty_folder_has_no_pictures(tmp_path):
    assert found(tmp_path) == []


def test_the_order_is_that_of_the_bytes(tmp_path):
    given = [b"B.png", b"a.png", b"\xc3\xa9.png", b"\xff.png", b"10.png", b"9.png"]
    for name in given:
        (tmp_path / os.fsdecode(name)).touch()
    assert [os.fsencode(name) for name in names(tmp_path)] == sorted(given)


def test_patterns(tree):
    assert names(tree, tree / "*.png") == ["b.png", "e.png/4.jpeg"]
    assert names(tree, tree / "**" / "*.png") == ["b.png"]
    assert names(tree, tree / "**" / "*.gif") == ["z/1.gif"]
    assert names(tree, tree / "[ab].*") == ["a.JPG", "b.png"]
    assert names(tree, tree / "?.tiff") == ["?.tiff"]  # fits nothing: its record will say so
    assert names(tree, tree / "z" / "**" / "?.*") == ["z/1.gif", "z/deep/er/2.webp"]


def test_a_file_called_like_a_pattern_is_that_file(tmp_path):
    for name in ("[ab].png", "a.png", "x*.png", "xy.png"):
        (tmp_path / name).touch()
    assert names(tmp_path, tmp_path / "[ab].png") == ["[ab].png"]
    assert names(tmp_path, tmp_path / "x*.png") == ["x*.png"]
    (tmp_path / "[link].png").symlink_to(tmp_path / "nowhere")
    assert names(tmp_path, tmp_path / "[link].png") == ["[link].png"]


def test_a_list_on_stdin(tree):
    text = f"b.png\n\n a b \r\n{tree}\n-\n*.png\nlast"
    assert found("-", stdin=text) == ["b.png", " a b ", str(tree), "-", "*.png", "last"]
    assert found("x", "-", "y", stdin="a\n") == ["x", "a", "y"]
    assert found("-") == []
    for path in ("a\0b", "a\0*.png"):
        assert found(path) == [path]


def test_a_list_of_names_that_are_no_text():
    data = b"\xff\xfe.png\nb\r.png\r\n\xc3\xa9.png"
    stdin = io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")
    assert [os.fsencode(path) for path in expand(["-"], stdin)] == [
        b"\xff\xfe.png",
        b"b\r.png",
        b"\xc3\xa9.png",
    ]


def piped(data: bytes, paths=("-",)) -> list[str | bytes]:
    return list(expand(paths, io.TextIOWrapper(io.BytesIO(data), encoding="utf-8")))


def test_a_list_with_nul_as_find_print0_writes_it():
    assert piped(b"a.png\0line\nbreak.png\0\xff.png\0") == [
        "a.png",
        "line\nbreak.png",
        os.fsdecode(b"\xff.png"),
    ]
    many = [f"folder/{i}.png" for i in range(20_000)]  # more than is read at once
    assert piped("\0".join(many).encode()) == many
    assert piped("\n".join(many).encode()) == many
    assert piped(b"\0\0a\r\0", ["x", "-", "y"]) == ["x", "a\r", "y"]
    assert piped(b"") == []


@pytest.mark.parametrize("kind", FORMATS)
def test_a_picture_on_stdin(kind):
    data = picture(kind) + bytes(20_000)  # more than is read at once
    assert piped(data) == [data]
    assert piped(b"BMW.png\nRIFF.webp\n") == ["BMW.png", "RIFF.webp"]
    heic = b"\0\0\0\x18ftypheic" + bytes(50)  # its record will say what it is
    assert piped(heic) == [heic]


def test_bytes_that_are_neither_picture_nor_list_are_one_input(tmp_path, monkeypatch):
    noise = np.random.default_rng(0).bytes(50_000)
    for data in (gzip.compress(noise), gzip.compress(b""), lzma.compress(noise), b"\1" + noise):
        assert piped(data) == [data]
    # A name may be of any bytes, if there is something of that name.
    monkeypatch.chdir(tmp_path)
    for end in (b"\n", b"\0"):
        (tmp_path / "a\x1b.png").touch()
        assert piped(b"a\x1b.png" + end + b"\2" + end) == ["a\x1b.png", "\2"]


@pytest.mark.parametrize("end", [b"", b"\0"])
def test_a_name_without_an_end_is_refused_early(end):
    class Endless(io.RawIOBase):
        given = 0

        def readable(self):
            return True

        def readinto(self, buffer):
            assert self.given < 1 << 20
            begins = b"a" + end if not self.given else b""
            buffer[:] = begins.ljust(len(buffer), b"x")
            self.given += len(buffer)
            return len(buffer)

    stdin = io.TextIOWrapper(io.BufferedReader(Endless()))
    with pytest.raises(ValueError, match=r"more than 65,536 bytes .* neither a picture nor a list"):
        list(expand(["-"], stdin))


def test_pictures_in_folders_are_known_by_content(tree):
    for kind in FORMATS:
        (tree / "z" / f"of {kind}").write_bytes(picture(kind))
        (tree / "z" / f"of {kind}.x.y").write_bytes(picture(kind)[:70])
    (tree / "z" / "raw.NEF").write_bytes(picture("TIFF"))
    (tree / "z" / "empty").touch()
    (tree / "z" / "gone").symlink_to(tree / "nowhere")
    os.mkfifo(tree / "z" / "pipe")
    (tree / "z" / ".e.txt").touch()
    (tree / "z" / ".git").mkdir()
    (tree / "z" / ".git" / "5.png").touch()
    (tree / "z" / "desktop.ini").touch()
    (tree / "c" / "other.TXT").touch()
    left_out = LeftOut()
    seen = [os.path.basename(path) for path in expand([str(tree)], io.StringIO(), left_out)]
    known = [f"of {kind}{end}" for kind in sorted(FORMATS) for end in ("", ".x.y")]
    assert seen == ["a.JPG", "b.png", "3.tiff", "4.jpeg", "1.gif", *known, "2.webp"]
    assert len(left_out) == 7
    assert str(left_out) == (
        "Left out 7 files that are hidden or no pictures: 3 without an ending (empty), "
        "2 .txt (notes.txt), 1 .nef (raw.NEF), 1 hidden (.d.bmp)."
    )
    assert not LeftOut()


def test_only_files_of_unknown_endings_are_opened(tree, monkeypatch):
    opened = []
    monkeypatch.setattr(inputs, "is_picture", lambda path: opened.append(os.path.basename(path)))
    assert len(names(tree)) == 6
    assert opened == ["notes.txt"]


def test_it_reads_no_further_than_asked():
    def endless():
        while True:
            yield "a.png\n"

    pictures = expand(["-"], endless())
    assert [next(pictures) for _ in range(3)] == ["a.png"] * 3


def test_links_to_folders_are_followed_once(tree):
    (tree / "c" / "up").symlink_to(tree)
    (tree / "c" / "self").symlink_to(tree / "c" / "self")
    (tree / "c" / "self.png").symlink_to(tree / "c" / "self.png")
    (tree / "c" / "gone.png").symlink_to(tree / "nowhere")
    (tree / "y").symlink_to(tree / "z")
    assert names(tree) == [
        "a.JPG",
        "b.png",
        "c/3.tiff",
        "c/gone.png",  # its record will say so
        "c/self.png",
        "e.png/4.jpeg",
        "y/1.gif",
        "y/deep/er/2.webp",
    ]


def test_a_deep_folder_is_no_recursion(tmp_path):
    before = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1_200):
            os.mkdir("d")
            os.chdir("d")
        open("a.png", "w").close()
        os.chdir(tmp_path)
        *_, last = found(".")
        assert last.count(os.sep) >= 1_000
    finally:
        os.chdir(before)
        # Too deep for shutil: moved up, one level at a time.
        while (tmp_path / "d" / "d").exists():
            os.rename(tmp_path / "d" / "d", tmp_path / "e")
            os.rmdir(tmp_path / "d")
            os.rename(tmp_path / "e", tmp_path / "d")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="becomes another user in a child")
def test_a_folder_that_may_not_be_read_is_one_entry(tmp_path):
    (tmp_path / "locked").mkdir()
    (tmp_path / "locked" / "a.png").touch()
    (tmp_path / "z.png").touch()
    (tmp_path / "locked").chmod(0)
    for folder in (tmp_path, *tmp_path.parents):  # all: pytest closes its own when it starts again
        mode = stat.S_IMODE(folder.stat().st_mode)
        if os.geteuid() == 0 and mode & 0o005 != 0o005:
            folder.chmod(mode | 0o055)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.geteuid() == 0:
                os.setuid(65_534)
            expected = [str(tmp_path / "z.png"), str(tmp_path / "locked")]
            code = 7 if found(tmp_path) == expected else 8
        finally:
            os._exit(code)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (tmp_path / "locked").chmod(0o700)
    assert code == 7


STEMS = [
    b"line\nbreak",
    b"\xff\xfe not utf-8 \x80",
    b"-rf --help",
    b" spaces  ",
    b"'quotes\"`$(x)",
    b"[bold]markup[x]&<b>",
    "😀 žluťoučký".encode(),
    b"\x1b[31mred\x07",
    b"x" * 230,
    b"*?[a-z]",
    b"a..",
    b"%s {0} \\",
]


def picture(kind: str) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(file, kind)
    return file.getvalue()


def hostile_folder(folder) -> dict[str, str]:
    """2,000 entries with hostile names, most of them no pictures: {path: kind}."""
    good, made = picture("PNG"), {}
    kinds = ("good", "good", "corrupt", "cut", "empty", "pipe", "dangling", "itself")
    for i in range(2_000):
        kind = kinds[i % len(kinds)]
        name = STEMS[i // len(kinds) % len(STEMS)] + b"%d.png" % i
        path = os.path.join(os.fsencode(folder), name)
        if kind == "pipe":
            os.mkfifo(path)
        elif kind == "dangling":
            os.symlink(b"/nowhere/at/all", path)
        elif kind == "itself":
            os.symlink(name, path)
        else:
            data = {"good": good, "corrupt": good[::-1], "cut": good[:50], "empty": b""}[kind]
            with open(path, "wb") as file:
                file.write(data)
        made[os.fsdecode(path)] = kind
    return made


def test_a_folder_of_two_thousand_hostile_entries(tmp_path):
    made = hostile_folder(tmp_path)
    paths = found(tmp_path)
    assert paths == sorted(made, key=os.fsencode)  # each once
    for path in paths:
        kind = made[path]
        if kind == "good":
            assert open_image(path).size == (4, 4)
            continue
        with pytest.raises((ImageError, OSError)) as error:
            open_image(path)
        if kind in ("dangling", "itself"):
            assert isinstance(error.value, OSError)
            assert error.value.filename == path
        else:
            assert str(error.value).startswith(f"{printable(path)}: ")
            assert str(error.value).isprintable()
    # The same as a list, less the names that a list cannot hold.
    lines = [path for path in paths if "\n" not in path]
    assert found("-", stdin="".join(f"{path}\n" for path in lines)) == lines
    # And each by its own name, none taken for a pattern or an option.
    assert [found(path) for path in paths] == [[path] for path in paths]
