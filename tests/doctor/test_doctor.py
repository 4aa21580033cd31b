"""What `van doctor` says, and what it never says."""

import json
import os
import subprocess
from email.message import Message
from importlib import metadata

import pytest

from van_classification_tensorflow.cli import main
from van_classification_tensorflow.doctor import engines, look, report
from van_classification_tensorflow.doctor.engines import NAMES, Trial, try_all, try_one


def done(code=0, out="", error=""):
    return lambda *_, **__: subprocess.CompletedProcess([], code, out, error)


GOOD = json.dumps({"version": "1.2", "threads": 2, "difference": 1e-7, "devices": ["CPU"]})


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """No engine is started, and the cache is empty."""
    monkeypatch.setenv("VAN_CACHE", str(tmp_path / "cache"))
    trials = {
        name: Trial(name == "numpy", "" if name == "numpy" else "broken", 0.5) for name in NAMES
    }
    monkeypatch.setattr(report, "try_all", lambda: trials)
    return trials


def said(capsys, *arguments):
    code = 0
    try:
        main(["doctor", *arguments])
    except SystemExit as stop:
        code = stop.code
    return code, capsys.readouterr()


def test_a_person_is_told(quick, capsys):
    code, found = said(capsys)
    assert code == 0
    for words in (
        f"package      keras {metadata.version('keras')}",
        "engine       numpy : answers in 0.5 s",
        "engine       openvino: does not run: broken",
        "cache        ",
        "extra        complete: ",
    ):
        assert words in found.out, words


def test_a_program_is_told_the_same(quick, capsys):
    code, found = said(capsys, "--json")
    record = json.loads(found.out)
    assert code == 0
    assert record["packages"]["numpy"] == metadata.version("numpy")
    assert record["engines"]["numpy"] == {"runs": True, "seconds": 0.5}
    assert record["engines"]["keras"]["problem"] == "broken"
    assert record["cpu"]["usable_cores"] >= 1
    assert record["cache"]["files"] == 0
    assert record["cache"]["writable"]
    assert "engines" not in json.loads(said(capsys, "--json", "--quick")[1].out)


def test_where_no_engine_runs_the_exit_code_says_so(quick, capsys, monkeypatch):
    monkeypatch.setattr(report, "try_all", lambda: {"numpy": Trial(False, "broken")})
    assert said(capsys)[0] == 1


def test_secrets_are_never_said(quick, capsys, monkeypatch):
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "VAN_SERVE_TOKEN", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "hf_secret")
    for name in ("PRIVATE", "DB_PASS", "PWD", "KEYS", "CRED", "PIN", "COOKIE_JAR"):
        monkeypatch.setenv(f"RAY_{name}", "hf_secret")
    for name in ("TF_VAR_ssh_private_key", "TF_VAR_db_name", "TF_CLI_ARGS", "VANITY"):
        monkeypatch.setenv(name, "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "user:p@hf_secret@proxy:8080")
    monkeypatch.setenv("VAN_MIRROR", "https://user:p@hf_secret@mirror/van")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hf_secret")
    for arguments in ((), ("--json",), ("--quick",)):
        text = "".join(said(capsys, *arguments)[1])
        assert "hf_secret" not in text
        assert "proxy:8080" in text
        assert "AWS" not in text
        assert "TF_VAR" not in text
        assert "VANITY" not in text
    record = json.loads(said(capsys, "--json", "--quick")[1].out)
    assert record["environment"]["HF_TOKEN"] == "(set)"
    assert record["environment"]["VAN_MIRROR"] == "https://mirror/van"


def test_what_matters_is_said():
    names = (
        *("PYTHONPATH", "TF_ENABLE_ONEDNN_OPTS", "KERAS_BACKEND", "JAX_PLATFORMS", "XLA_FLAGS"),
        *("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "HF_HOME", "VAN_OFFLINE", "RAY_SPINNING"),
    )
    assert look.environment(dict.fromkeys(names, "1")) == dict.fromkeys(sorted(names), "1")


def test_what_is_broken_does_not_keep_the_rest_from_being_said(quick, capsys, monkeypatch):
    def broken(*_):
        raise RuntimeError("no such luck")

    parts = ("cpu", "_memory", "backend", "packages", "extras", "cache", "environment")
    for name in parts:
        monkeypatch.setattr(look, name, broken)
    code, found = said(capsys, "--quick")
    assert code == 0
    assert found.out.count("problem      ") == len(parts)
    assert "problem      extras: no such luck" in found.out
    assert json.loads(said(capsys, "--quick", "--json")[1].out)["problems"]["cache"]


def test_a_cache_that_cannot_be_is_said(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("x")
    monkeypatch.setenv("VAN_CACHE", str(tmp_path / "file"))
    found = look.cache()
    assert not found["writable"]
    assert "Not a directory" in found["problem"]
    monkeypatch.setenv("VAN_CACHE", str(tmp_path / "file" / "x"))
    assert not look.cache()["writable"]
    monkeypatch.setenv("VAN_CACHE", "~nobody-of-this-name/x")
    assert "`VAN_CACHE` must be a folder" in look.look()["problems"]["cache"]


@pytest.mark.parametrize("place", ["", "x/y"])
def test_a_cache_that_may_not_be_looked_into(place, monkeypatch, tmp_path):
    shut = tmp_path / "shut"
    (shut / "x").mkdir(parents=True)
    look.cache()  # imports what is imported on first use
    monkeypatch.setenv("VAN_CACHE", str(shut / place))
    user = os.geteuid()
    shut.chmod(0)
    if user == 0:  # who may look into everything
        os.seteuid(65534)
    try:
        found = look.cache()
    finally:
        if user == 0:
            os.seteuid(0)
        shut.chmod(0o700)
    assert not found["writable"]
    assert found["files"] == 0


def test_values_are_one_line():
    found = look.environment({"VAN_CACHE": "a\nb\x1b[31m", "HOME": "x", "KERAS_BACKEND": "jax"})
    assert found == {"KERAS_BACKEND": "jax", "VAN_CACHE": "a\\nb\\x1b[31m"}


def test_extras_say_what_is_missing_and_how_to_get_it(monkeypatch):
    requirements = [
        "numpy>=2",
        "ray>=2 ; extra == 'cluster'",
        "numpy>=999 ; extra == 'new'",
        "nothing-like-this ; extra == 'new'",
        "nothing-like-this>=2 ; extra == 'new'",
        "nothing-like-this ; sys_platform == 'plan9' and extra == 'cluster'",
        "not a requirement !",
        "odd>=1 ; extra == 'cluster'",
    ]
    monkeypatch.setattr(metadata, "requires", lambda _: requirements)
    described = Message()
    for name in ("new", "cluster", "dev"):
        described["Provides-Extra"] = name
    monkeypatch.setattr(metadata, "metadata", lambda _: described)
    versions = {"ray": "2.60.0", "numpy": "2.4.0", "odd": "mine-1"}
    monkeypatch.setattr(look, "version_of", lambda name: versions.get(name, ""))
    found = look.extras()
    assert found["cluster"]["missing"] == []
    assert found["new"]["missing"] == ["numpy>=999 (here: 2.4.0)", "nothing-like-this"]
    assert found["new"]["install"] == "pip install 'van-classification-tensorflow[new]'"
    assert "dev" not in found


def test_a_package_that_was_not_installed_has_no_extras(monkeypatch):
    def none(_):
        raise metadata.PackageNotFoundError

    monkeypatch.setattr(metadata, "requires", none)
    assert look.extras() == {}


def test_the_backend_is_told_without_keras(monkeypatch, tmp_path):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    assert look.backend() == "jax"
    monkeypatch.delenv("KERAS_BACKEND")
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    assert look.backend() == "tensorflow"
    for text, expected in (
        ('{"backend": "torch"}', "torch"),
        ("[]", "tensorflow"),
        ("{", "tensorflow"),
    ):
        (tmp_path / "keras.json").write_text(text)
        assert look.backend() == expected


# --- Engines ---


def test_an_engine_that_answers():
    trial = try_one("numpy", done(out=f"chatter\n{GOOD}\n"))
    assert (trial.runs, trial.version, trial.devices) == (True, "1.2", ("CPU",))
    assert trial.to_dict()["difference"] == 1e-7


@pytest.mark.parametrize(
    ("run", "says"),
    [
        (done(1, error="Traceback\n  x\nImportError: libx.so\n\n"), "ImportError: libx.so"),
        (done(-4), "was ended by SIGILL"),
        (done(3), "exit code 3"),
        (done(0, out="hello"), "something else"),
        (done(0, out="[]"), "something else"),
        (done(0, out='{"no": 1}'), "something else"),
    ],
)
def test_an_engine_that_does_not(run, says):
    trial = try_one("numpy", run)
    assert not trial.runs
    assert says in trial.problem
    assert "\n" not in trial.problem


def test_an_engine_that_hangs_or_is_not_there(monkeypatch):
    def hang(*_, **__):
        raise subprocess.TimeoutExpired("x", 1)

    assert "no answer in" in try_one("numpy", hang).problem
    monkeypatch.setattr(engines, "is_installed", lambda _: False)
    trial = try_one("openvino", hang)
    assert trial.problem == "not installed: pip install 'van-classification-tensorflow[onnx]'"


def test_all_are_tried(monkeypatch):
    monkeypatch.setattr(engines, "is_installed", lambda _: True)
    assert list(try_all(done(out=GOOD))) == list(NAMES)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnxruntime", "keras"])
def test_others_really_run(name):
    trial = try_one(name)
    assert trial.runs, trial.problem
    assert trial.devices


def test_one_really_runs_and_nothing_of_the_current_folder(tmp_path, monkeypatch):
    (tmp_path / "numpy.py").write_text("raise SystemExit(7)")
    monkeypatch.chdir(tmp_path)
    trial = try_one("numpy")
    assert trial.runs, trial.problem
    assert trial.version == metadata.version("numpy").split("-")[0]
