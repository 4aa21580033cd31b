"""The command line as a user meets it: in its own process."""

import os
import subprocess
import sys

import pytest
from PIL import Image

from .parity import GOLDEN


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
heavy = {"keras", "tensorflow", "jax", "torch", "numpy", "PIL", "matplotlib", "fastapi", "shtab"}
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
    for words in ("--output", "--seed", "--epochs", "folder for the model"):
        assert words in text


def test_mistakes_are_one_line_without_traceback(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    offline = {"VAN_OFFLINE": "1", "VAN_CACHE": str(tmp_path / "cache")}
    for arguments, says in (
        (["demo", "--epochs", "0", "--output", str(tmp_path / "x")], "--epochs must be at least 1"),
        (["demo", "--epochs", "many"], "many"),
        (["demo", "--output", str(blocked / "inside")], "is no folder; make it first"),
        (["dem"], "did you mean demo?"),
        (["demo", "--eposch", "1"], "--eposch; did you mean --epochs?"),
        (["convert", "no.pth", str(tmp_path / "x.safetensors")], "No such file"),
        (["convert", str(GOLDEN / "micro_seed.h5"), str(tmp_path / "x.doc")], "must end in"),
        (["convert", str(GOLDEN / "micro.npz"), str(tmp_path / "x.pth")], "was refused"),
        (["weights"], "required: COMMAND"),
        (["weights", "path", "van_b5"], "van_b5.in22k"),
        (["weights", "path", "van_b0"], "van weights download van_b0"),
        (["weights", "download", "van_b0"], "VAN_OFFLINE is set"),
    ):
        result = van(*arguments, env={**os.environ, **offline})
        assert result.returncode in (1, 2), arguments
        assert says in result.stderr, arguments
        assert "Traceback" not in result.stderr, arguments


def test_convert_reports_and_writes(tmp_path):
    target = tmp_path / "x.safetensors"
    source = str(GOLDEN / "micro_mmpretrain.pth")
    result = van("convert", source, str(target), "--naming", "huggingface")
    assert result.returncode == 0, result.stderr
    assert "mmpretrain names: 164 tensors" in result.stdout
    assert f"{target}: safetensors, huggingface names" in result.stdout
    assert van("convert", source, str(target)).returncode == 1
    assert van("convert", source, str(target), "--overwrite").returncode == 0


def test_weights_commands_without_a_network(tmp_path):
    environment = {**os.environ, "VAN_OFFLINE": "1", "VAN_CACHE": str(tmp_path)}
    listed = van("weights", "list", env={**environment, "COLUMNS": "80"}).stdout
    for words in ("van_b0.in1k ", "van_b6.in22k_backbone", "21,841", "385941af", "bundled"):
        assert words in listed
    assert "please contact the authors" in " ".join(listed.split())  # folded at any column
    for command in ("path", "download"):
        result = van("weights", command, "digits", env=environment)
        assert result.returncode == 0
        assert result.stdout.strip().endswith("digits.safetensors")
    assert "nothing is cached" in van("weights", "verify", env=environment).stdout
    assert van("weights", "verify", "digits", env=environment).returncode == 0
    missing = van("weights", "verify", "van_b2", env=environment)
    assert (missing.returncode, missing.stdout.split()[0]) == (1, "missing")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_in_training_are_one_line(tmp_path, monkeypatch, capsys):
    """In this process: each would take seconds of its own to start."""
    from van_classification_tensorflow.cli import main

    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("recipe: [imagenet]")
    (tmp_path / "one" / "class").mkdir(parents=True)
    for arguments, message in (
        (["--data", "digits"], "--output must be given"),
        (["--output", "x"], "--data must be given"),
        (["--data", "digits", "--print-config", "--epochs", "abc"], "--epochs must be a whole"),
        (["--data", "digits", "--print-config", "--epochs", "none"], "--epochs must be a whole"),
        (["--data", "digits", "--print-config", "--recipe", str(recipe)], "recipe.yaml: `recipe`"),
        (["--data", str(tmp_path / "no"), "--output", "x"], "no such folder"),
        (["--data", str(tmp_path / "one"), "--output", "x"], "only one, class"),
        (["--resume", str(tmp_path)], "there is no config.yaml"),
        (["--resume", str(tmp_path), "--output", "x"], "leave them out"),
    ):
        with pytest.raises(SystemExit) as stop:
            main(["train", *arguments])
        assert stop.value.code == 1, arguments
        said = capsys.readouterr()
        assert said.err.startswith("van: error: "), said
        assert message in said.err
        assert said.err.count("\n") == 1
    main(["train", "--data", "digits", "--print-config", "--mean", "none", "--std", "none"])
    assert "mean: null" in capsys.readouterr().out


def said(capsys, *arguments):
    """(exit code, error stream) of a command in this process."""
    from van_classification_tensorflow.cli import main

    with pytest.raises(SystemExit) as stop:
        main([str(one) for one in arguments])
    return stop.value.code, capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "meant"),
    [
        ("demo --epoch5 3", "--epochs"),
        ("train --dta x --output y", "--data"),
        ("train --data x --learning-rate 1e-3 --warmup-epoch5 2", "--warmup-epochs"),
        ("predict x --over", "--overwrite"),  # an offered command leaves out whole names only
        ("predict x --btach-size=3", "--batch-size"),
        ("evaluate --dat digits", "--data"),
        ("evaluate --dota digits", "--data"),  # and not only that --data is missing
        ("benchmark --random-weigths", "--random-weights"),
        ("convert a b --overwrit3", "--overwrite"),
        ("export --ouput x.onnx", "--output"),
        ("weights download van_b0 --froce", "--force"),
    ],
)
def test_a_misspelt_option_gets_its_commands_usage_and_the_nearest(arguments, meant, capsys):
    code, errors = said(capsys, *arguments.split())
    assert code == 2
    command = " ".join(arguments.split()[: 2 if arguments.startswith("weights") else 1])
    assert errors.startswith(f"usage: van {command}")
    assert errors.count("did you mean") == 1
    assert meant in errors.partition("did you mean")[2]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ("predict . --weights digits --batch-size 0", "--batch-size must be an integer >= 1. "
         "Received: --batch-size 0"),
        ("predict . --weights digits --top 0 --output x.csv", "--top must be"),
        ("predict . --resume", "--resume and --overwrite are for a run with --output"),
        ("predict . --features --top 3 --output x.npy", "--top is a number of classes, which "
         "--features do without"),
        ("evaluate --data digits --overwrite", "--overwrite is for a run with --output"),
        ("evaluate --data . --subset imagenet-x", "--subset must be imagenet-a or imagenet-r. "
         "Received: --subset 'imagenet-x'"),
        ("benchmark --overwrite", "--overwrite is for a run with --output"),
        ("train --data digits --output x --force", "--force is for a run that goes on, with "
         "--resume"),
        ("predict . --output x.txt", "--output must end in"),
        ("predict . --weights nothing", "--weights: no such weights"),
        ("export --output x.onnx --batch-size 0", "--batch-size must be"),
        ("export --output x.onnx --no-fuse", "--no-fuse: onnx is always fused. "
         "Received: --no-fuse"),
        ("export --output x.onnx --softmax --features", "--softmax does not go with --features"),
        ("export --output x.doc", "or --output end in"),
        ("export --output x.onnx --weights 1", "--weights: no such weights"),
        ("convert a.pth b.doc", "TARGET must end in"),
        ("convert a.pth b.pth --naming none", "--naming must be one of"),
        ("benchmark --batch-size 0", "--batch-size must be"),
        ("benchmark --rounds 1", "--rounds must be"),
        ("train --data digits --output x --batch-size 1.5", "--batch-size must be"),
        ("train --data digits --output x --accumulation-steps 3",
         "--batch-size must be a multiple of --accumulation-steps"),
    ],
)  # fmt: skip
def test_errors_name_flags(arguments, says, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.png").write_bytes(b"")
    code, errors = said(capsys, *arguments.split())
    assert code == 1
    assert errors.startswith("van: error: ")
    assert says in errors
    assert "`" not in errors.replace("`van weights list`", "")


def test_help_says_what_exit_codes_mean():
    for command, finding in (("predict", "picture could not be read"), ("convert", "1 an error;")):
        text = " ".join(van(command, "--help").stdout.split())
        assert finding in text
        assert "130 stopped by Ctrl-C" in text


@pytest.mark.parametrize("when", ["no output", "weights load", "begun"])
def test_after_ctrl_c_it_says_how_to_go_on(when, capsys, monkeypatch, tmp_path):
    """Only a journal of this run can be resumed; else the command itself is what to repeat."""
    from van_classification_tensorflow.inference import predict

    def stopped(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    Image.new("L", (8, 8)).save("my picture.png")
    (tmp_path / "x.csv.partial").write_text("of an earlier run")
    monkeypatch.setattr(
        *((predict.Classifier, "stream") if when == "begun" else (predict, "Classifier")), stopped
    )
    arguments = ["my picture.png", "--weights", "digits"]
    if when != "no output":
        arguments += ["--output", "x.csv", "--overwrite"]
    code, errors = said(capsys, "predict", *arguments)
    assert code == 130
    rest = "'my picture.png' --weights digits --output x.csv"
    hint = {
        "no output": "",
        "weights load": f"; to go on: van predict {rest} --overwrite",
        "begun": f"; to go on: van predict --resume {rest}",
    }
    assert errors.endswith(f"van: stopped{hint[when]}\n")


@pytest.mark.parametrize("begun", [True, False])
def test_a_run_that_is_stopped_at_once_goes_on_too(begun, capsys, monkeypatch, tmp_path):
    from van_classification_tensorflow.train import train

    def stopped(data, output, *_, **__):
        output.mkdir()
        if begun:
            (output / "config.yaml").touch()
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "train", stopped)
    code, errors = said(capsys, "train", "--data", "digits", "--output", tmp_path / "my run")
    assert code == 130
    hint = f"; to go on: van train --resume '{tmp_path / 'my run'}'"
    assert errors == f"van: stopped{hint if begun else ''}\n"


def test_without_docstrings():
    """As Python is run with -OO, which leaves them out."""
    command = [sys.executable, "-OO", "-m", "van_classification_tensorflow", "train", "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "--learning-rate" in done.stdout
