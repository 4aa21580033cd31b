"""What a cluster costs, and whether it loses anything.

    python benchmarks/cluster.py                     # all of it: a quarter of an hour
    python benchmarks/cluster.py --only kills --kills 10 --seed 1

1. kills: one training run of two workers on three nodes of this machine, into which worker, first
   worker (which is all others' coordinator), node and command are killed in turn, every third in
   the middle of a save. At the end every variable is compared with those of a run that nothing
   stopped: the difference must be 0. Seconds from each kill to the next new snapshot.
2. elastic: a run of two to three workers: two, a node added, three, a node killed, two, a node
   added, three; its end beside that of one process.
3. scaling: prediction of pictures, decoded from files, by one process of one thread, and of twice
   as many by two; and the same by `van predict --shard`.
4. costs: what a step and a snapshot of each model move, from its sizes; and how fast this disk
   takes a snapshot of the smallest and the largest.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

KINDS = ("worker", "first worker", "first worker in a save", "node", "command", "command in a save")
PICTURES = 600  # for each process


def kills(count: int, seed: int) -> dict:
    """Kills in one run, and how far its end is from that of a run without any."""
    from tests.cluster.commands import Command, saves, workers_of
    from tests.cluster.nodes import started
    from tests.cluster.test_train import largest
    from tests.train.one_worker import RECIPE, STEPS
    from van_classification_tensorflow.train.recipe import RECIPES
    from van_classification_tensorflow.train.snapshots import Snapshots

    rng = random.Random(seed)
    epochs = max(4 * count, 8)
    recipe = RECIPES["digits"].with_(**RECIPE | {"epochs": epochs, "snapshot_seconds": 0})
    found, place = [], Path(tempfile.mkdtemp(prefix="van-"))
    with started() as nodes:
        Command(place / "whole", nodes.address, "2", recipe).end(900)
        folder = place / "run"
        command = Command(folder, nodes.address, "2", recipe)
        for number in range(count):
            kind = KINDS[number % len(KINDS)]
            command.reach((number * epochs // count) * STEPS + rng.randrange(1, 2 * STEPS))
            first = kind.startswith("first")
            (victim,) = workers_of(folder)[first]
            in_a_save = kind.endswith("save") and saves(folder)
            before, at = max(command.steps()), time.monotonic()
            group = set(workers_of(folder)[True])
            if kind == "node":
                parent = int(Path(f"/proc/{victim}/stat").read_text().split()[3])
                raylets = [one.all_processes["raylet"][0].process.pid for one in nodes.nodes]
                nodes.kill(raylets.index(parent))
            elif kind.startswith("command"):
                command.process.kill()
                command.process.wait()
                command = Command(folder, nodes.address, "2")
            else:
                os.kill(victim, signal.SIGKILL)
            # Of a new group: the old one may still have ended a step.
            while not (new := workers_of(folder)[True]) or group & set(new):
                time.sleep(0.05)
                assert time.monotonic() - at < 300, "no new group"
            command.reach(max(command.steps()) + 1, 300)
            took = time.monotonic() - at
            if kind == "node":
                nodes.add()
            found.append({"killed": kind, "in_a_save": in_a_save, "step": before, "seconds": took})
            print(f"  {kind}, after step {before}: next step {took:.1f} s later", flush=True)
        command.end(900)
    ends = [Snapshots(place / name / "snapshots").load() for name in ("run", "whole")]
    apart = largest(*(end.arrays for end in ends))
    shutil.rmtree(place)
    return {
        "steps": ends[0].step,
        "kills": found,
        "difference": apart,
        "seconds": statistics.median(one["seconds"] for one in found),
    }


def elastic() -> dict:
    """How far a run of 2, 3, 2 and again 3 workers is from that of one process."""
    from rich.console import Console

    from tests.cluster.commands import Command, workers_of
    from tests.cluster.nodes import started
    from tests.cluster.test_train import largest
    from tests.train.one_worker import RECIPE
    from van_classification_tensorflow.train.recipe import RECIPES
    from van_classification_tensorflow.train.snapshots import Snapshots
    from van_classification_tensorflow.train.train import train

    # Long enough for three groups to start; with a small rate, as rounding grows with the weights.
    recipe = RECIPES["digits"].with_(
        **RECIPE | {"epochs": 40, "snapshot_seconds": 0, "learning_rate": 1e-4}
    )
    place = Path(tempfile.mkdtemp(prefix="van-"))
    train("digits", place / "alone", recipe, console=Console(quiet=True))
    os.environ["VAN_ELASTIC_SECONDS"] = "1"
    os.environ["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"] = "30"
    folder, seen, begin = place / "run", [], time.monotonic()

    def wait_for(count: int) -> None:
        while sum(map(len, workers_of(folder).values())) != count:
            time.sleep(0.1)
            assert command.process.poll() is None, "the run is over"
            assert time.monotonic() - begin < 600
        command.reach(max(command.steps(), default=0) + 2)
        seen.append({"workers": count, "step": max(command.steps())})
        print(f"  {seen[-1]}, {time.monotonic() - begin:.1f} s", flush=True)

    with started(1) as nodes:
        command = Command(folder, nodes.address, "2:3", recipe)
        wait_for(2)
        nodes.add()
        wait_for(3)
        nodes.kill()
        wait_for(2)
        nodes.add()
        wait_for(3)
        command.end(600)
    ends = [Snapshots(place / name / "snapshots").load() for name in ("run", "alone")]
    apart = largest(*(end.arrays for end in ends))
    shutil.rmtree(place)
    return {"seen": seen, "steps": ends[0].step, "difference": apart}


def scaling(rounds: int) -> dict:
    """Pictures a second of one process of one thread, and of two."""
    import numpy as np
    from PIL import Image

    place = Path(tempfile.mkdtemp(prefix="van-"))
    rng = np.random.default_rng(0)
    (place / "p").mkdir()
    for number in range(2 * PICTURES):
        # Smooth, as photographs are, so that a JPEG decoder has its usual work.
        small = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(place / "p" / f"{number:05}.jpg")
    everything = sorted(map(str, (place / "p").iterdir()))
    weights = _weights(place)
    one_core = ["taskset", "-c"]

    def predict(core: int, shard: str, paths: list[str]) -> subprocess.Popen:
        command = [sys.executable, "-m", "van_classification_tensorflow", "predict", "-"]
        command += ["--weights", str(weights), "--output", str(place / "out.csv"), "--overwrite"]
        command += ["--engine", "onnxruntime", *(["--shard", shard] if shard else [])]
        listed = place / f"{shard.replace('/', '-')}.txt"
        listed.write_text("\n".join(paths))
        with listed.open() as file:
            return subprocess.Popen(
                [*one_core, str(core), *command],
                stdin=file,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )

    def timed(processes: list[tuple]) -> float:
        start = time.perf_counter()
        for one in [predict(*arguments) for arguments in processes]:
            assert one.wait() == 0
        return time.perf_counter() - start

    def pace(shards: int) -> float:
        """Seconds for one process's share, without what a start costs."""
        full = everything[: PICTURES * shards]
        some = full[: len(full) // 4]
        names = [f"{i}/{shards}" for i in range(shards)] if shards > 1 else [""]
        return timed([(i, n, full) for i, n in enumerate(names)]) - timed(
            [(i, n, some) for i, n in enumerate(names)]
        )

    found = {1: [], 2: []}
    for _ in range(rounds):
        for shards in found:
            found[shards].append(pace(shards))
    shutil.rmtree(place)
    best = {shards: min(seconds) for shards, seconds in found.items()}
    rates = {shards: 0.75 * PICTURES * shards / best[shards] for shards in best}
    return {"pictures_per_second": rates, "of_ideal": rates[2] / (2 * rates[1])}


def _weights(place: Path) -> Path:
    """Of B0, at random."""
    path = place / "b0.keras"
    program = (
        "import sys; from van_classification_tensorflow import VAN; m = VAN('van_b0');"
        "m.labels = 'imagenet1k'; m.save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", program, str(path)], check=True, capture_output=True)
    return path


def costs() -> list[dict]:
    """What a step moves between workers, and what a snapshot writes, by the sizes of the models."""
    import numpy as np

    from van_classification_tensorflow.spec.architecture import Architecture
    from van_classification_tensorflow.spec.config import resolve
    from van_classification_tensorflow.train.snapshots import Snapshots

    found = []
    for name in ("van_b0", "van_b2", "van_b6"):
        config = resolve(name)
        hidden = tuple(
            int(d * r) for d, r in zip(config.embed_dims, config.mlp_ratios, strict=True)
        )
        tensors = Architecture(config.embed_dims, hidden, config.depths, 3, 1000).tensors()
        count = sum(int(np.prod(one.shape)) for one in tensors.values())
        norms = sum(int(np.prod(one.shape)) for n, one in tensors.items() if "running_" in n)
        # Weights, two moments and an average, float32.
        snapshot = 4 * (4 * count)
        found.append(
            {
                "model": name,
                "numbers": count,
                "gradient_megabytes": 4 * count / 1e6,
                "statistics_kilobytes": 4 * norms / 1e3,
                "snapshot_megabytes": snapshot / 1e6,
            }
        )
    for row in (found[0], found[-1]):
        place = tempfile.mkdtemp(prefix="van-")
        size = int(row["snapshot_megabytes"] * 1e6 / 4 / 100)
        arrays = {f"{i}": np.zeros(size, np.float32) for i in range(100)}
        store, seconds = Snapshots(place), []
        for step in range(2):
            start = time.perf_counter()
            store.save(step, arrays, {})
            seconds.append(time.perf_counter() - start)
        shutil.rmtree(place)
        row["snapshot_seconds_here"] = min(seconds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", choices=("kills", "elastic", "scaling", "costs"))
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", help="file for the figures")
    asked = parser.parse_args()
    parts = {
        "costs": costs,
        "scaling": lambda: scaling(asked.rounds),
        "elastic": elastic,
        "kills": lambda: kills(asked.kills, asked.seed),
    }
    found = {"machine": f"{platform.machine()}, {os.cpu_count()} cores"}
    for name, part in parts.items():
        if asked.only is None or name in asked.only:
            print(f"== {name}", flush=True)
            found[name] = part()
            print(json.dumps(found[name], indent=1), flush=True)
    if asked.json:
        Path(asked.json).write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
