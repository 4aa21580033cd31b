"""What shells complete, asked of the shells themselves where they are installed."""

import contextlib
import io
import shutil
import subprocess

import pytest

from van_classification_tensorflow.cli import COMMANDS, main

ASK = """
source "$1"
shift
COMP_WORDS=("$@")
COMP_CWORD=$(($# - 1))
COMPREPLY=()
compopt() { :; }
_shtab_van "${COMP_WORDS[0]}" "${COMP_WORDS[$COMP_CWORD]}" "${COMP_WORDS[$COMP_CWORD-1]}"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.fixture(scope="module")
def scripts(tmp_path_factory):
    """{shell: file of what `van --print-completion` prints for it}."""
    folder, found = tmp_path_factory.mktemp("completion"), {}
    for shell in ("bash", "zsh", "fish"):
        out = io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.suppress(SystemExit):
            main(["--print-completion", shell])
        found[shell] = folder / f"van.{shell}"
        found[shell].write_text(out.getvalue())
    return found


def completed(script, *words):
    """What bash offers for the last word."""
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("no bash here")
    done = subprocess.run(
        [bash, "--norc", "-c", ASK, "bash", script, *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return done.stdout.split()


def test_bash_completes_commands_and_options(scripts):
    script = scripts["bash"]
    assert set(completed(script, "van", "")) >= set(COMMANDS)
    assert set(completed(script, "van", "pre")) == {"predict"}
    assert set(completed(script, "van", "pu")) == {"push", "pull"}
    assert "--engine" in completed(script, "van", "predict", "--en")
    assert set(completed(script, "van", "weights", "d")) == {"download"}
    assert "--metrics" in completed(script, "van", "push", "--m")
    assert completed(script, "van", "predict", "--nothing") == []


def test_bash_completes_files_where_files_are_meant(scripts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.keras").touch()
    for words in (("predict", "--weights"), ("evaluate", "--data"), ("push", "--metrics")):
        assert completed(scripts["bash"], "van", *words, "mi") == ["mine.keras"], words


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_are_of_their_shell(shell, scripts):
    text = scripts[shell].read_text()
    assert "doctor" in text
    assert "against-original" in text
    if program := shutil.which(shell):
        subprocess.run([program, "-n", scripts[shell]], check=True, timeout=20)


def test_another_shell_is_said(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--print-completion", "cmd"])
    assert stop.value.code == 2
    assert "invalid choice: 'cmd'" in capsys.readouterr().err
