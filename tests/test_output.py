"""Results reach the standard output, whatever the error stream is; the screens fit a terminal."""

import contextlib
import json
import os
import pty
import sys
import threading

import numpy as np
import pytest
from PIL import Image

from van_classification_tensorflow import benchmark_report
from van_classification_tensorflow.cli import main
from van_classification_tensorflow.digits import load_digits
from van_classification_tensorflow.output import to_json

from .parity import GOLDEN
from .test_benchmark import FOUND
from .tiny_artefacts import about, build, random_weights


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
    monkeypatch.setattr(benchmark_report, "benchmark", lambda *_, **__: FOUND)
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
    monkeypatch.setattr(benchmark_report, "benchmark", lambda *_, **__: FOUND)
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        assert run(*words(command, folder, tmp_path)) == 141
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "rror" not in said


def test_many_records_on_one_terminal_are_not_mixed_with_a_bar(folder, tmp_path, monkeypatch):
    picture = next((folder / "pictures").rglob("*.png"))
    with terminal(monkeypatch) as errors, terminal(monkeypatch, "stdout") as screen:
        assert run("predict", *[picture] * 201, "--weights", "digits", "--top", "1") == 0
    assert len([json.loads(line) for line in screen.decode().splitlines()]) == 201
    assert b"\x1b" not in screen
    assert b"201/201" not in errors


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
