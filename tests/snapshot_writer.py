"""Trainers to kill: forked from a process without Keras, so that each starts in milliseconds.

`python -m tests.snapshot_writer` reads lines `<command> <arguments as JSON>`. For each it forks a
child that runs the command, and writes the child's process id, what the child says, and "ended".
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time

import numpy as np

from van_classification_tensorflow.train.snapshots import RunLock, Snapshot, Snapshots


def arrays_of(step: int, size: int = 300) -> dict[str, np.ndarray]:
    numbers = np.random.default_rng(step)
    return {
        "kernel": numbers.standard_normal((size, 3)).astype("float32"),
        "iterations": np.int64(step).reshape(()),
        "none": np.zeros((0, 4), "float16"),
        "seed": numbers.integers(0, 9, 7).astype("uint8"),
    }


def state_of(step: int) -> dict:
    return {"epoch": step // 3, "loss": [1 / (1 + s) for s in range(step % 50)] + [float("nan")]}


def digest_of(step: int, size: int = 300) -> str:
    return Snapshot(step, arrays_of(step, size), state_of(step), {}).digest


def say(text: object) -> None:
    os.write(1, f"{text}\n".encode())  # at once and whole, whatever kills us next


def loop(folder: str, size: int) -> None:
    """Trains on and on, one batch between snapshots; now and then the same step twice."""
    runs = Snapshots(folder, keep=2)
    last = runs.load()
    step = last.step if last else 0
    while True:
        step += 1
        for _ in range(1 + (step % 4 == 0)):
            runs.save(step, arrays_of(step, size), state_of(step), {"seconds": time.time()})
            say(step)


def limited(folder: str, step: int, size: int, limit: int) -> None:
    """One save where no file may grow beyond `limit` bytes."""
    runs = Snapshots(folder)
    runs.load()
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    try:
        runs.save(step, arrays_of(step, size), state_of(step))
    except OSError as error:
        say(f"{error.errno} {error}")
    else:
        say("saved")


def lock(folder: str, fork: bool) -> None:
    """Holds the lock until it is killed; with a child of its own that lives on."""
    try:
        with RunLock(folder):
            if fork and not os.fork():
                say("forked")
                time.sleep(3)
                os._exit(0)
            say("locked")
            time.sleep(60)
    except OSError as error:
        say(f"{type(error).__name__} {error}")


def modules() -> None:
    say(sorted({"keras", "tensorflow", "jax", "torch", "rich", "requests"} & set(sys.modules)))


COMMANDS = {"loop": loop, "limited": limited, "lock": lock, "modules": modules}


def main() -> None:
    for request in sys.stdin:
        command, _, arguments = request.partition(" ")
        if not (child := os.fork()):
            # Forked before it says who it is: the first words are the child's number.
            say(os.getpid())
            try:
                COMMANDS[command](*json.loads(arguments))
            except BaseException as error:
                say(f"{type(error).__name__}: {error}")
                os._exit(1)
            os._exit(0)
        os.waitpid(child, 0)
        say("ended")


if __name__ == "__main__":
    main()
