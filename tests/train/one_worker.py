"""One of the workers that train a model together; `test_workers.py` starts them.

    python -m tests.train.one_worker RANK PORT[,PORT...] FOLDER JOBS

With one port the worker is alone. A job is a run of a few steps, in a folder of its name within
FOLDER, beside which each worker leaves `NAME-N.npz`: all variables after its last step. What became
of the jobs is printed, as a line of JSON each.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
STEPS = 10  # of an epoch
RECIPE = {
    "embed_dims": (8, 16),
    "mlp_ratios": (4, 2),
    "depths": (1, 1),
    "epochs": 2,
    "warmup_epochs": 0,
    "learning_rate": 1e-3,
    # A bias before a batch norm has no gradient but rounding errors, which a smaller epsilon would
    # scale up to whole steps.
    "epsilon": 1e-4,
    "batch_size": 132,
    "drop_rate": 0.1,
    "drop_path_rate": 0.3,
    "mixup": 0.8,
    "cutmix": 1.0,
    "erasing": 0.25,
    "average_decay": 0.9,
}


def free_ports(count: int) -> list[str]:
    """Ports of this machine that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def trained(folder: Path, count: int, jobs: list[dict], seconds: float = 240) -> list[list[dict]]:
    """What became of each job, on each of so many workers.

    Raises:
        AssertionError: A worker has failed; says why.
    """
    ports = ",".join(free_ports(count))
    command = [sys.executable, "-W", "ignore", "-m", "tests.train.one_worker"]
    workers = [
        subprocess.Popen(
            [*command, str(rank), ports, str(folder), json.dumps(jobs)],
            cwd=ROOT,
            env=os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]
    try:
        said = [one.communicate(timeout=seconds) for one in workers]
    finally:
        for one in workers:
            one.kill()
    for one, (_, errors) in zip(workers, said, strict=True):
        assert one.returncode == 0, errors[-3000:]
    lines = [[x for x in out.splitlines() if x.startswith("{")] for out, _ in said]
    return [[json.loads(line) for line in of_one] for of_one in lines]


def main(rank: int, ports: list[str], folder: Path, jobs: list[dict[str, Any]]) -> None:
    """Does the jobs one after another.

    A job may have `name`; `optimizer`: "sgd" instead of AdamW; `stop_at`: the step after which the
    last worker gets a SIGTERM; `resume`; `data` of the last worker, instead of the digits; all else
    is of the recipe.
    """
    from van_classification_tensorflow.train.workers import join

    strategy = join(rank, [f"127.0.0.1:{port}" for port in ports]) if len(ports) > 1 else None
    for job in jobs:
        try:
            made = _train(rank, len(ports), strategy, folder, dict(job))
        except (ValueError, OSError) as error:
            made = {"error": str(error)}
        print(json.dumps(made), flush=True)


def _train(rank: int, count: int, strategy: Any, folder: Path, job: dict[str, Any]) -> dict:
    import keras
    import numpy as np

    from van_classification_tensorflow.train import build, run
    from van_classification_tensorflow.train.callbacks import KeepSnapshots, Stopped
    from van_classification_tensorflow.train.recipe import RECIPES
    from van_classification_tensorflow.train.train import train

    name, optimizer = job.pop("name"), job.pop("optimizer", "adamw")
    stop_at, resume = job.pop("stop_at", None), job.pop("resume", False)
    data = job.pop("data", "digits") if rank == count - 1 else "digits"
    job.pop("data", None)

    def make_optimizer(recipe, model):
        if optimizer == "sgd":
            return keras.optimizers.SGD(0.05, momentum=0.9)
        return build.make_optimizer(recipe, model)

    class Sigterm(keras.callbacks.Callback):
        steps = 0

        def on_train_batch_end(self, batch, logs=None):
            self.steps += 1
            if self.steps == stop_at and rank == count - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    class Keep(KeepSnapshots):
        def save(self):
            variables = {**self.variables(), **self._metrics()}
            arrays = {n: np.asarray(v.numpy()) for n, v in variables.items()}
            np.savez(folder / f"{name}-{rank}.npz", **arrays)
            super().save()

    run.make_optimizer, run.KeepSnapshots = make_optimizer, Keep
    recipe = RECIPES["digits"].with_(**RECIPE | job)
    options = {"resume": resume, "strategy": strategy, "callbacks": [Sigterm()]}
    try:
        return train(data, folder / name, recipe, **options)
    except Stopped:
        return {"stopped": True}


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]), json.loads(sys.argv[4]))
