"""The command line as a user meets it: in its own process."""

import subprocess
import sys


def van(*arguments, **kwargs):
    command = [sys.executable, "-m", "van_classification_tensorflow", *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=120, check=False, **kwargs
    )


def test_help_answers_without_anything_heavy():
    """How fast it is, .ci/run measures; here, that nothing slow is even imported."""
    assert "demo" in van("--help").stdout
    code = """
import atexit, sys
heavy = {"keras", "tensorflow", "jax", "torch", "numpy", "PIL", "matplotlib"}
atexit.register(lambda: print("imported:", sorted(heavy & set(sys.modules))))
from van_classification_tensorflow.cli import main
main(["--help"])
"""
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert result.stdout.rstrip().endswith("imported: []")


def test_help_of_a_command_explains_its_options():
    text = van("demo", "--help").stdout
    for words in ("--output", "--seed", "--epochs", "Folder for the model"):
        assert words in text


def test_mistakes_are_one_line_without_traceback(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    for arguments, says in (
        (["demo", "--epochs", "0", "--output", str(tmp_path / "x")], "`epochs` must be at least 1"),
        (["demo", "--epochs", "many"], "many"),
        (["demo", "--output", str(blocked / "inside")], "Not a directory"),
        (["dem"], "invalid choice"),
        (["demo", "--sed", "1"], "--sed"),
    ):
        result = van(*arguments)
        assert result.returncode in (1, 2), arguments
        assert says in result.stderr, arguments
        assert "Traceback" not in result.stderr, arguments
