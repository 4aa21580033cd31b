"""The command line as a user meets it: in its own process."""

import subprocess
import sys
import time


def van(*arguments, **kwargs):
    command = [sys.executable, "-m", "van_classification_tensorflow", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **kwargs
    )


def test_help_answers_without_keras():
    started = time.perf_counter()
    result = van("--help")
    assert result.returncode == 0
    assert "demo" in result.stdout
    assert time.perf_counter() - started < 5  # seconds, not the start-up of a framework
    code = "import sys, van_classification_tensorflow.cli as c; c.main(['--help'])"
    watch = f"import atexit, sys; atexit.register(lambda: print('keras' in sys.modules)); {code}"
    result = subprocess.run(
        [sys.executable, "-c", watch], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.rstrip().endswith("False")


def test_help_of_a_command_explains_its_options():
    text = van("demo", "--help").stdout
    for words in ("--output", "--seed", "--epochs", "Folder for the model"):
        assert words in text


def test_mistakes_are_one_line_without_traceback(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for arguments, says in (
        (["demo", "--epochs", "0", "--output", str(tmp_path / "x")], "`epochs` must be at least 1"),
        (["demo", "--epochs", "many"], "epochs"),
        (["demo", "--output", str(blocked / "inside")], "file"),
        (["dem"], "demo"),
        (["demo", "--sed", "1"], "sed"),
    ):
        result = van(*arguments)
        assert result.returncode in (1, 2), arguments
        assert says in result.stderr, arguments
        assert "Traceback" not in result.stderr, arguments
