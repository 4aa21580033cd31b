"""One of the workers that train a model together: `workers_train` starts them, and reads them.

    python -m tests.train.one_worker RANK PORT[,PORT...] FOLDER OPTIONS

On TensorFlow a `MultiWorkerMirroredStrategy`, on JAX `jax.distributed`; with one port the worker is
alone. Leaves `rank-N.npz` in the folder's parent: all variables of the run after its last step. The
variables of `test_workers.py` are its only reader.
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


def free_ports(count: int) -> list[str]:
    """Ports of this machine that nobody uses now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [str(one.getsockname()[1]) for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_workers(folder: Path, count: int, **options: Any) -> list[subprocess.Popen]:
    """So many workers that train in `folder` together.

    Args:
        folder: Of the run.
        count: How many.
        options: Of the recipe, and those of `main`.
    """
    ports = ",".join(free_ports(count))
    command = [sys.executable, "-W", "ignore", "-m", "tests.train.one_worker"]
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "TF_CPP_MIN_LOG_LEVEL": "3"}
    return [
        subprocess.Popen(
            [*command, str(rank), ports, str(folder), json.dumps(options)],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def ended(workers: list[subprocess.Popen], seconds: float = 90) -> list[tuple[int, str, str]]:
    """Exit status, output and errors of each, when all have ended."""
    try:
        said = [one.communicate(timeout=seconds) for one in workers]
        return [(one.returncode, *texts) for one, texts in zip(workers, said, strict=True)]
    finally:
        for one in workers:
            one.kill()


def main(rank: int, ports: list[str], folder: Path, options: dict[str, Any]) -> None:
    """Trains.

    Args:
        rank: Of this worker.
        ports: Of all.
        folder: Of the run.
        options: Of the recipe; and `optimizer`: "sgd" instead of AdamW; `data`: what rank 1 has
            instead of the digits; `stop_at`: the step at which rank 1 gets a SIGTERM; `resume`.
    """
    from van_classification_tensorflow.train.workers import join

    strategy = join(rank, [f"127.0.0.1:{port}" for port in ports]) if len(ports) > 1 else None
    import keras
    import numpy as np
    from rich.console import Console

    from van_classification_tensorflow.train import callbacks, run
    from van_classification_tensorflow.train.optim import AdamW
    from van_classification_tensorflow.train.recipe import RECIPES
    from van_classification_tensorflow.train.train import train

    kept = callbacks.KeepSnapshots.save
    optimizer = options.pop("optimizer", "adamw")
    stop_at, resume = options.pop("stop_at", None), options.pop("resume", False)
    data = options.pop("data", None) if rank == 1 else options.pop("data", None) and None

    def save(self) -> None:
        variables = {**self.variables(), **self._metrics()}
        arrays = {name: np.asarray(variable.numpy()) for name, variable in variables.items()}
        np.savez(
            folder.parent / f"{folder.name}-rank-{rank}.npz", step=self.position.step, **arrays
        )
        kept(self)

    def make_optimizer(recipe, model):
        if optimizer == "sgd":
            return keras.optimizers.SGD(0.05, momentum=0.9)
        # A bias before a batch norm has no gradient but rounding errors, which a smaller epsilon
        # would scale up to whole steps.
        return AdamW(1e-3, weight_decay=0.05, epsilon=1e-4)

    callbacks.KeepSnapshots.save = save
    run.make_optimizer = make_optimizer
    if stop_at is not None and rank == 1:
        counted = callbacks.Position.on_train_batch_end

        def count(self, batch, logs=None) -> None:
            counted(self, batch, logs)
            if self.step == stop_at:
                os.kill(os.getpid(), signal.SIGTERM)

        callbacks.Position.on_train_batch_end = count
    recipe = RECIPES["digits"].with_(
        **{
            "embed_dims": (8, 16),
            "mlp_ratios": (4, 2),
            "depths": (1, 1),
            "epochs": 2,
            "warmup_epochs": 0,
            "learning_rate": 1e-3,
            "batch_size": 132,
            "drop_path_rate": 0.3,
            "cutmix": 1.0,
            "mixup": 0.8,
            "erasing": 0.25,
            "average_decay": 0.9,
        }
        | options
    )
    shown = Console(force_terminal=False, width=100)
    history = train(
        data or "digits", folder, recipe, resume=resume, strategy=strategy, console=shown
    )
    print(json.dumps(history))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2].split(","), Path(sys.argv[3]), json.loads(sys.argv[4]))
