"""`van train` killed at any moment: `--resume` ends where the run would have ended."""

import os
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import keras
import pytest

from van_classification_tensorflow.train.snapshots import Snapshots

# Small, with everything that has a state, and with a snapshot after every step.
RUN = [
    *("--data", "digits", "--embed-dims", "4", "8", "--mlp-ratios", "2", "2"),
    *("--depths", "1", "1", "--epochs", "2", "--warmup-epochs", "1"),
    *("--batch-size", "64", "--accumulation-steps", "2", "--clip-norm", "1"),
    *("--drop-rate", "0.1", "--drop-path-rate", "0.2", "--average-decay", "0.9"),
    *("--mixup", "0.8", "--cutmix", "1", "--snapshot-seconds", "0"),
]
STEPS = 2 * 2 * (1437 // 64)

pytestmark = pytest.mark.skipif(
    keras.backend.backend() != "tensorflow", reason="the command is what is tested, once"
)


def van_train(*arguments: object) -> subprocess.Popen:
    command = [sys.executable, "-m", "van_classification_tensorflow", "train", *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def finished(process: subprocess.Popen) -> str:
    said = process.communicate(timeout=600)[0]
    assert process.returncode == 0, said[-3000:]
    return said


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole") / "run"
    finished(van_train(*RUN, "--output", folder))
    end = Snapshots(folder / "snapshots").load()
    assert end.step == STEPS
    return end.digest


def kill_and_go_on(folder: Path, seed: int) -> tuple[str, bool, bool]:
    """The digest at the end, whether the kill fell into a save, and whether into the training."""
    rng = random.Random(seed)  # noqa: S311 - a moment, not a secret
    process = van_train(*RUN, "--output", folder)
    snapshots = folder / "snapshots"
    # Some before the first snapshot, most at a random step, every third in the middle of a save.
    target = rng.randrange(0, STEPS - 4)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        steps = Snapshots(snapshots).steps() if snapshots.is_dir() else []
        if target == 0 or (steps and steps[-1] >= target):
            break
        time.sleep(0.002)
    if seed % 3:
        time.sleep(rng.uniform(0, 0.1) if target else rng.uniform(1, 5))
    else:
        _stop_while_saving(process, snapshots)
    process.kill()
    process.communicate()
    inside = _saving(snapshots)
    within = not snapshots.is_dir() or STEPS not in Snapshots(snapshots).steps()
    arguments = ["--resume", folder] if (folder / "config.yaml").exists() else []
    if not arguments:  # killed before the run had a folder
        arguments = [*RUN, "--output", folder]
    finished(van_train(*arguments))
    return Snapshots(snapshots).load().digest, inside, within


def _stop_while_saving(process: subprocess.Popen, snapshots: Path) -> None:
    """Stopped, not killed: a signal takes its time, in which a save may end."""
    while process.poll() is None:
        if _saving(snapshots):
            process.send_signal(signal.SIGSTOP)
            os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
            if _saving(snapshots):
                return
            process.send_signal(signal.SIGCONT)


def _saving(snapshots: Path) -> bool:
    """Whether a snapshot is being written: it has no final name yet."""
    if not snapshots.is_dir():
        return False
    names = (path.name for path in snapshots.iterdir())
    return any(name.startswith(".tmp-") for name in names)


@pytest.mark.slow
def test_killed_at_any_moment(whole, tmp_path, thorough):
    times = 20 if thorough else 3
    with ThreadPoolExecutor(2) as pool:
        ends = list(pool.map(lambda i: kill_and_go_on(tmp_path / f"run{i}", i), range(times)))
    digests, inside, within = zip(*ends, strict=True)
    same = sum(digest == whole for digest in digests)
    print(
        f"{same} of {times} the same; {sum(inside)} killed inside a save, {sum(within)} in training"
    )
    assert list(digests) == [whole] * times
    assert sum(inside) >= max(1, times // 6)
    assert sum(within) >= times * 2 // 3  # once, most waited for a snapshot that came at the end
