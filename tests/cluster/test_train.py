"""Training on a cluster: workers, nodes and the command itself killed, and the same end.

Three nodes on this machine; the workers are processes of the nodes.
"""

import json
import os
import resource
import signal
from pathlib import Path

import keras
import numpy as np
import pytest

from tests.cluster.commands import Command, workers_of
from tests.train.one_worker import RECIPE
from van_classification_tensorflow import cli
from van_classification_tensorflow.cluster import worker
from van_classification_tensorflow.train.recipe import RECIPES
from van_classification_tensorflow.train.snapshots import Snapshots
from van_classification_tensorflow.train.train import train

tensorflow_only = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the command is what is tested, once"
)
EPOCHS = 2
RECIPE_OF_RUN = RECIPES["digits"].with_(**RECIPE | {"epochs": EPOCHS, "snapshot_seconds": 0})


def arrays_of(folder: Path) -> dict[str, np.ndarray]:
    end = Snapshots(folder / "snapshots").load()
    assert end.step == 10 * EPOCHS
    return end.arrays


def largest(ours, theirs):
    assert set(ours) == set(theirs)
    return max(
        float(
            np.max(np.abs(ours[n].astype(np.float64) - theirs[n]) / np.maximum(1, abs(theirs[n])))
        )
        for n in ours
        if not n.startswith("random/")
    )


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The same run, of this process alone."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    history = train("digits", folder, RECIPE_OF_RUN)
    return arrays_of(folder), history


@tensorflow_only
@pytest.mark.slow
def test_a_killed_worker_and_a_killed_command_lose_nothing(nodes, alone, tmp_path, thorough):
    """The first worker, which is all others' coordinator; then, `--thorough`, it has a full disk,
    and the command itself is killed.

    What comes out is what this process makes of it, and that to the bit what nothing stopped:
    `benchmarks/cluster.py`, as such a run takes as long again.
    """
    folder, (arrays, history) = tmp_path / "run", alone
    command = Command(folder, nodes.address, "2", RECIPE_OF_RUN)
    command.reach(4)
    (first,) = workers_of(folder)[True]
    os.kill(first, signal.SIGKILL)
    if thorough:
        command.reach(max(command.steps()) + 2)
        (first,) = workers_of(folder)[True]
        # Every file of that process; a full disk is met at the same places.
        resource.prlimit(first, resource.RLIMIT_FSIZE, (4096, 4096))
        full, there = command.process.communicate(timeout=120)[0], command.steps()
        assert command.process.returncode == 1
        assert full.splitlines()[-1].startswith("van: error: saving step ")
        assert "snapshots failed (File too large): " in full.splitlines()[-1]
        assert f"the snapshot of step {max(there)} is intact" in full.splitlines()[-1]
        assert "Traceback" not in full
        assert not list((folder / "snapshots").glob(".tmp-*"))
        command = Command(folder, nodes.address, "2")
        command.reach(max(there) + 2)
        command.process.kill()
        begun = full
        said = Command(folder, nodes.address, "2").end()
    else:
        begun = said = command.end()
    assert begun.count("A worker is lost; going on ") == 1
    assert "Devices       │ 2, tensorflow, float32" in begun
    assert largest(arrays_of(folder), arrays) <= 3e-6
    assert f"{EPOCHS}/{EPOCHS}" in said
    assert "Top-1" in said  # the report at the end
    last = Snapshots(folder / "snapshots").load().state["callbacks"]["Records"]["rows"][-1]
    assert last["val_loss"] == pytest.approx(history["val_loss"][-1], abs=1e-5)
    left = {path.name for path in folder.iterdir()}
    assert left >= {"best.keras", "last.keras", "metrics.csv", "augmented.png", "evaluation"}
    assert not [name for name in left if name.startswith((".cluster", ".ray"))]


GIVEN = ["train", "--data", "digits", "--cluster-workers", "2"]


@tensorflow_only
@pytest.mark.slow
def test_what_a_worker_says_a_user_can_mend_is_said_once(nodes, tmp_path, capsys):
    given = [*GIVEN[:-1], "1", "--output", str(tmp_path / "run"), "--cluster", nodes.address]
    with pytest.raises(SystemExit) as ended:
        cli.main([*given, "--learning-rate", "1e30", "--warmup-epochs", "0"])
    assert ended.value.code == 1
    said = capsys.readouterr().err
    assert "A worker is lost" not in said
    error = said.splitlines()[-1]
    assert error.startswith("van: error: step ")
    assert "There is no snapshot yet; a lower --learning-rate may help" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        ("--clip-norm", "1", "--clip-norm is for one device: Keras clips before gradients are"),
        ("--accumulation-steps", "2", "--accumulation-steps and --steps-per-execution are for one"),
        (
            "--batch-size",
            "61",
            "--batch-size must give each of the 2 workers the same number",
        ),
        ("--batch-size", "66", "Received: --batch-size 66, which 1 can share"),
    ],
)
def test_what_workers_cannot_share(option, value, says, tmp_path, capsys):
    """Before Ray is asked for: here nobody listens."""
    given = [*GIVEN, "--output", str(tmp_path / "run"), "--cluster", "127.0.0.1:1"]
    with pytest.raises(SystemExit):
        cli.main([*given, option, value])
    assert says in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_how_many_share_a_batch():
    mixed = RECIPES["digits"].with_(batch_size=24, mixup=0.8)
    assert [worker.sharing(mixed, n, gpus=4) for n in range(1, 9)] == [1, 2, 3, 3, 3, 6, 6, 6]
    assert [worker.sharing(mixed, n, gpus=3) for n in range(1, 9)] == [1, 2, 2, 4, 4, 4, 4, 4]
    plain = mixed.with_(mixup=0.0, cutmix=0.0)
    assert [worker.sharing(mixed, n) for n in range(1, 9)] == [1, 2, 3, 4, 4, 6, 6, 6]
    assert [worker.sharing(plain, n) for n in range(1, 9)] == [1, 2, 3, 4, 4, 6, 6, 8]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--gpus-per-worker", "1"], "--gpus-per-worker is of a --cluster, which is not named"),
        (["--storage", "x"], "--storage is of a --cluster, which is not named"),
        (["--cluster-workers", "2"], "--cluster-workers are of a --cluster, which is not named"),
        (["--cluster", "auto"], "--cluster must be HOST:PORT"),
    ],
)
def test_options_without_a_cluster(options, says, capsys):
    with pytest.raises(SystemExit):
        cli.main(["train", "--data", "digits", "--output", "x", *options])
    assert says in capsys.readouterr().err


def test_the_environment_of_workers(monkeypatch):
    from van_classification_tensorflow.cluster.train import _environment

    monkeypatch.setenv("KERAS_BACKEND", "jax")
    monkeypatch.setenv("TF_CONFIG", json.dumps({}))
    monkeypatch.setenv("SOMETHING", "else")
    monkeypatch.setenv("VAN_TOKEN", "secret")
    found = _environment()
    assert found["KERAS_BACKEND"] == "jax"
    assert not {"TF_CONFIG", "SOMETHING", "VAN_TOKEN"} & set(found)


def test_what_killed_commands_left_goes_with_the_end_of_the_run(tmp_path):
    from van_classification_tensorflow.cluster.train import _marked

    run, storage = tmp_path / "run", tmp_path / "storage"
    for folder in (run, storage / ".cluster-old", storage / ".cluster-of-another-run"):
        folder.mkdir(parents=True)
    (run / "config.yaml").touch()
    (run / ".cluster-old").touch()

    def left():
        return {path.name for folder in (run, storage) for path in folder.iterdir()}

    def work(mark):
        (storage / mark[0]).mkdir()
        assert (run / mark[0]).read_text() == mark[1]

    before = left()

    def stopped():
        with _marked(run, storage) as mark:
            work(mark)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert left() == before
    with _marked(run, storage) as mark:
        work(mark)
    assert left() == {"config.yaml", ".cluster-of-another-run"}
