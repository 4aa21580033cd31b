"""Results reach the standard output, whatever the error stream is; the screens fit a terminal."""

import contextlib
import io
import json
import os
import pty
import sys
import threading

import numpy as np
import pytest
from PIL import Image
from rich.cells import cell_len
from rich.console import Console

from tests.benchmark.test_measure import FOUND, measured
from tests.parity import GOLDEN
from tests.tiny_artefacts import about, build, random_weights
from van_classification_tensorflow.benchmark import report as benchmark_report
from van_classification_tensorflow.cli import main
from van_classification_tensorflow.datasets.digits import load_digits
from van_classification_tensorflow.inference import predict
from van_classification_tensorflow.support.console import common_folder, shortened, to_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four digits in the folders of their classes, an exported file of them."""
    folder = tmp_path_factory.mktemp("output")
    test = load_digits()[1]
    for i in range(4):
        where = folder / "pictures" / str(test.labels[i])
        where.mkdir(parents=True, exist_ok=True)
        Image.fromarray((test.pixels[i] * 15).astype(np.uint8)).save(where / f"{i}.png")
    labels = [str(i) for i in range(10)]
    build(folder, "onnx", random_weights(32 * 32), about(channels=1, labels=labels), channels=1)
    return folder


@contextlib.contextmanager
def terminal(monkeypatch, name="stderr"):
    """`sys.stderr` (or `sys.stdout`) is a terminal; yields what it was sent, when it is closed."""
    master, slave = pty.openpty()
    got = bytearray()

    def drain():
        with contextlib.suppress(OSError):  # what a closed terminal gives
            while data := os.read(master, 4096):
                got.extend(data)

    reader = threading.Thread(target=drain)
    reader.start()
    monkeypatch.setenv("TERM", "xterm")
    for variable in ("FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE", "NO_COLOR"):
        monkeypatch.delenv(variable, raising=False)
    try:
        with os.fdopen(slave, "w") as stream, monkeypatch.context() as patched:
            patched.setattr(sys, name, stream)
            yield got
    finally:
        reader.join()
        os.close(master)


def run(*arguments):
    """The exit code of `van`."""
    try:
        main([str(one) for one in arguments])
    except SystemExit as stop:
        return stop.code or 0
    return 0


COMMANDS = {
    "predict": "predict {0}/pictures --weights digits",
    "evaluate": "evaluate --data {0}/pictures --weights {0}/m.onnx",
    "export": "export --weights digits --output {1}/x.onnx",
    "convert": "convert {2}/micro_mmpretrain.pth {1}/x.safetensors",
    "benchmark": "benchmark --weights a.onnx",
    "weights list": "weights list",
    "weights path": "weights path digits",
    "weights verify": "weights verify digits",
    "weights download": "weights download digits",
    "train": "train --data digits --print-config",
}
LINES = {
    "predict": 4,
    "evaluate": 9,
    "export": 5,
    "convert": 3,
    "benchmark": 9,
    "weights list": 20,
    "weights path": 1,
    "weights verify": 1,
    "weights download": 1,
    "train": 40,
}


def words(command, folder, tmp_path):
    return [w.format(folder, tmp_path, GOLDEN) for w in COMMANDS[command].split()]


@pytest.mark.parametrize("command", COMMANDS)
def test_results_reach_a_file_beside_a_terminal(command, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark_report, "measure", lambda *_, **__: FOUND)
    with (tmp_path / "out").open("w") as out, terminal(monkeypatch) as screen:
        monkeypatch.setattr(sys, "stdout", out)
        assert run(*words(command, folder, tmp_path)) == 0
    lines = (tmp_path / "out").read_text().splitlines()
    assert len(lines) >= LINES[command], screen
    if command == "predict":
        assert [json.loads(line)["error"] for line in lines] == [None] * 4
    assert b"\x1b" not in (tmp_path / "out").read_bytes()
    if command in ("predict", "evaluate", "export"):
        assert b"4/4" in screen or b"360/360" in screen  # its bar


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"export"}))  # prints as convert
def test_a_pipe_that_was_closed(command, folder, tmp_path, monkeypatch, capsys):
    """As after `van ... | head -1`."""
    monkeypatch.setattr(benchmark_report, "measure", lambda *_, **__: FOUND)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run(*words(command, folder, tmp_path)) == 141
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "rror" not in said


@pytest.mark.parametrize("word", ["--help", "--version", "--print-completion=bash"])
def test_a_pipe_that_was_closed_before_any_command(word, monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run(word) == 141
    assert not capsys.readouterr().err


def test_many_records_on_one_terminal_are_not_mixed_with_a_bar(folder, tmp_path, monkeypatch):
    picture = next((folder / "pictures").rglob("*.png"))
    with terminal(monkeypatch) as errors, terminal(monkeypatch, "stdout") as screen:
        assert run("predict", *[picture] * 201, "--weights", "digits", "--top", "1") == 0
    assert len([json.loads(line) for line in screen.decode().splitlines()]) == 201
    assert b"\x1b" not in screen
    assert b"201/201" not in errors


# --- Screens ---

BASE = "/home/someone/projects/2026/holiday-photos/originals/camera-roll"
CLASSES = ("golden_retriever", "soft-coated_wheaten_terrier", "Chesapeake_Bay_retriever")


def on_screen(thing, width):
    """Lines as a terminal of so many columns shows them."""
    console = Console(file=io.StringIO(), width=width)
    thing(console) if callable(thing) else console.print(thing)
    lines = console.file.getvalue().splitlines()
    assert max(map(cell_len, lines)) <= width
    return lines


@pytest.mark.parametrize("width", [80, 120])
@pytest.mark.parametrize(
    "names", ["IMG_{:04}.JPG", "a{:04}" + 20 * "_long_name" + ".png", "写真{:04}"]
)
def test_predictions_name_every_picture_and_class(width, names):
    predictions = [{"label": label, "probability": 0.3} for label in CLASSES]
    paths = [f"{BASE}/{names.format(i)}" for i in range(3)]
    records = [{"path": path, "error": None, "predictions": predictions} for path in paths]
    records.append({"path": f"{BASE}/x", "error": f"{BASE}/x: damaged", "predictions": []})
    lines = on_screen(predict.table_of(records), width)
    text = "".join(line.split()[0] for line in lines[3:] if line[1:2].strip() and line.split())
    for i in range(3):
        assert names.format(i) in text
    for label in CLASSES:
        assert sum(label in line for line in lines) == 3
    assert f"In {BASE}" in lines[0]
    assert any("damaged" in line and BASE not in line for line in lines)


@pytest.mark.parametrize(
    ("paths", "folder"),
    [
        (["a/b/1", "a/b/2"], "a/b"),
        (["/a/b/1", "/a/c/2"], "/a"),
        (["/a/1"], ""),
        (["1", "2"], ""),
        (["/a/1", "a/1"], ""),
        (["/a/1", "/b/1"], ""),
        (["a/1", "b/1"], ""),
    ],
)
def test_what_paths_have_in_common(paths, folder):
    assert common_folder(paths) == folder


@pytest.mark.parametrize("width", [80, 120])
def test_contenders_can_be_told_from_each_other(width):
    weights = [f"{BASE}/exported/van_b0-flowers.onnx", f"{BASE}/exported/van_b0-flowers-int8.onnx"]
    weights += [f"{BASE}/runs/{name}/best.keras" for name in ("flowers", "birds")]
    found = [measured(name, p50=1234.5) for name in weights]
    found.append(measured(weights[0], "keras jax"))
    lines = on_screen(lambda console: benchmark_report.report(found, console), width)
    start = next(i for i, line in enumerate(lines) if "p50 ms" in line)
    cells = [line.lstrip(" 123456789").split()[0] for line in lines[2 : start - 2]]
    for name in weights:
        assert name in "".join(cells)  # on several lines
    rows = lines[start + 1 :]
    assert [row.split()[0] for row in rows] == ["1", "2", "3", "4", "5"]  # a line each
    if width == 120:
        assert "runs/birds/best.keras" in rows[3]
        assert "keras jax" in rows[4]


@pytest.mark.parametrize("most", range(1, 12))
def test_a_name_is_shortened_in_its_middle(most):
    for text in ("/home/x/photos/1.png", "写真のフォルダ/猫.png", "short"):
        assert cell_len(shortened(text, most)) <= most
    assert shortened("abcdefghij", 7) == "ab…ghij"
    assert shortened("abc", 3) == "abc"


@pytest.mark.parametrize("width", [80, 120])
def test_a_report_is_wrapped_beside_its_words(width, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    source, target = GOLDEN / "micro_mmpretrain.pth", tmp_path / f"{'long' * 20}.pth"
    with terminal(monkeypatch, "stdout") as screen:
        assert run("convert", source, target) == 0
    lines = screen.decode().splitlines()
    assert max(map(cell_len, lines)) <= width
    assert [line[:9] for line in lines if line[0] != " "][:2] == ["read     ", "model    "]
    assert str(target) in "".join(line.strip() for line in lines)


@pytest.mark.parametrize("width", [80, 120])
def test_the_list_of_weights_is_not_cut(width, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", str(width))
    assert run("weights", "list") == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(cell_len, [line for line in lines if not line.startswith("Cache")])) <= width
    assert not any("…" in line for line in lines)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_of_any_bytes_are_printed(encoding, tmp_path, monkeypatch):
    target = tmp_path / os.fsdecode(b"n\xff \xc3\xa4.pth")
    with (tmp_path / "out").open("w", encoding=encoding) as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run("convert", GOLDEN / "micro_mmpretrain.pth", target) == 0
    assert target.exists()
    shown = os.fsencode(target) if encoding == "utf-8" else rb"n\udcff \xe4.pth"
    assert shown in (tmp_path / "out").read_bytes()


# --- JSON ---


@pytest.mark.parametrize("text", ["Schäferhund 狗 🐕", "\udcff", "a\u2028b\x85c\x9b31m", '"\\\n'])
def test_json_is_readable_and_comes_back(text):
    line = to_json({text: [text]})
    assert json.loads(line.encode("utf-8")) == {text: [text]}
    assert len(line.splitlines()) == 1
    assert "Schäferhund 狗 🐕" in to_json("Schäferhund 狗 🐕")
    assert not any("\x7f" <= c <= "\x9f" for c in line)


def test_records_are_utf8_whatever_the_language_of_the_terminal(folder, tmp_path, monkeypatch):
    picture = tmp_path / "größe 狗.png"
    picture.write_bytes(next((folder / "pictures").rglob("*.png")).read_bytes())
    with (tmp_path / "out").open("w", encoding="ascii") as out:
        monkeypatch.setattr(sys, "stdout", out)
        assert run("predict", picture, "--weights", "digits") == 0
    assert "größe 狗.png" in (tmp_path / "out").read_text(encoding="utf-8")
