"""`van serve` beside LitServe and BentoML, all serving the same ONNX file.

Each peer is tried in the ways that `SETTINGS` names, of which each has its line in the table. All
are sent the same requests.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from serving_bench import (
    TOKEN,
    Bench,
    Part,
    alike,
    capacity,
    offered,
    poisson,
    results_of,
    steady,
    told_answer,
)
from serving_client import Address, Client, Load, multipart, percentile, request_bytes, run
from serving_server import HERE, HOST, Server, free_port, started

PEERS = ("litserve", "bentoml")
INSTALLED = {
    "litserve": ("litserve", "python-multipart", "onnxruntime", "pillow", "numpy"),
    "bentoml": ("bentoml", "onnxruntime", "pillow", "numpy"),
}


class Setting(NamedTuple):
    """How a peer runs: processes, threads of each, largest batch; LitServe's `fast_queue`."""

    workers: int
    threads: int
    batch: int
    fast: int = 0

    def __str__(self) -> str:
        text = f"{self.workers} workers, {self.threads} threads, batch {self.batch}"
        return text + ", fast queue" * self.fast


SETTINGS = {
    "litserve": (Setting(1, 2, 8), Setting(2, 1, 8), Setting(2, 1, 1), Setting(2, 1, 1, 1)),
    "bentoml": (Setting(2, 1, 1), Setting(1, 2, 8), Setting(2, 1, 8)),
}


def environments(folder: Path, whole: bool) -> dict[str, str]:
    """Makes what is missing of the peers' environments, and ours; their interpreters.

    Ours, "van", has what `van serve` needs on ONNX Runtime: neither Keras nor TensorFlow. "whole"
    is what `pip install '.[serve]'` gives.
    """
    packages = {**INSTALLED, "van": tuple(without_keras())}
    if whole:
        packages["whole"] = (f"{HERE.parent}[serve]",)
    found = {}
    for name, wanted in packages.items():
        python, complete = str(folder / name / "bin" / "python"), folder / name / "complete"
        if not complete.exists() or complete.read_text() != " ".join(wanted):
            print(f"installing {' '.join(wanted)}", file=sys.stderr)
            complete.unlink(missing_ok=True)
            venv.create(folder / name, symlinks=True, with_pip=True)
            pip = [python, "-m", "pip", "install", "-q"]
            subprocess.run([*pip, *wanted], check=True)
            if name == "van":
                subprocess.run([*pip, "--no-deps", str(HERE.parent)], check=True)
            complete.write_text(" ".join(wanted))  # not so where it was cut off
        found[name] = python
    return found


def without_keras() -> list[str]:
    """The requirements of the package and of its extra `serve`, without Keras and TensorFlow."""
    project = tomllib.loads((HERE.parent / "pyproject.toml").read_text())["project"]
    needed = project["dependencies"] + project["optional-dependencies"]["serve"]
    return [one for one in needed if not one.startswith(("keras", "tensorflow"))]


def size_of(python: str) -> int:
    """Bytes on the disk of an environment's packages, without the bytecode that Python adds."""
    packages = Path(python).absolute().parents[1] / "lib"
    return sum(
        path.stat().st_blocks * 512
        for path in packages.rglob("*")
        if path.is_file() and not path.is_symlink() and path.suffix != ".pyc"
    )


def export(bench: Bench) -> Path:
    """The ONNX file of the weights, by `van export`."""
    target = bench.folder / f"{bench.files.model}.onnx"
    if not target.exists():
        command = [bench.python, "-m", "van_classification_tensorflow", "export"]
        command += ["--weights", str(bench.files.weights)]
        command += ["--output", str(target), "--batch-size", "any"]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return target


def peer_server(
    name: str, setting: Setting, python: str, onnx: Path, folder: Path
) -> AbstractContextManager[Server]:
    """LitServe or BentoML, ready."""
    address, log = Address(HOST, free_port()), folder / f"{name}.log"
    environment = {
        "VAN_ONNX": str(onnx),
        "VAN_WORKERS": str(setting.workers),
        "VAN_THREADS": str(setting.threads),
        "VAN_BATCH": str(setting.batch),
        "BENTOML_HOME": str(folder / "bentoml"),
        "BENTOML_DO_NOT_TRACK": "True",
        "PYTHONPATH": str(HERE),
        "OMP_NUM_THREADS": str(setting.threads),
    }
    if name == "litserve":
        command = [python, str(HERE / "serving_litserve.py"), "--model", str(onnx)]
        command += ["--port", str(address.port)]
        for key, value in setting._asdict().items():
            command += [f"--{key}", str(value)]
        ready = "/health"
    else:
        command = [python, "-m", "bentoml", "serve", "serving_bentoml:Van"]
        command += ["--host", address.host, "--port", str(address.port)]
        ready = "/readyz"
    return started(command, address, log, ready, HERE, environment)


@dataclass(frozen=True)
class Contender:
    """Who serves the model in one way, and what was measured of it.

    Args:
        name: For the table.
        python: Its interpreter, whose environment is measured.
        serve: Starts it; gives a `Server` that is ready.
        how: Its settings.
        best: Of each round, the most that it answered.
        at_rate: Of each round, how it answered at the rate of all.
        memory: Bytes at most under load, of each round.
        ready_s: Of each launch.
    """

    name: str
    python: str
    serve: Callable[[], AbstractContextManager[Server]]
    how: str = ""
    best: list[Load] = field(default_factory=list)
    at_rate: list[Load] = field(default_factory=list)
    memory: list[int] = field(default_factory=list)
    ready_s: list[float] = field(default_factory=list)

    def most(self) -> float:
        """Pictures a second."""
        return max(map(Load.rate, self.best))

    def soonest(self) -> Load:
        """The load at the rate of all whose slowest percent was the fastest."""
        return min(self.at_rate, key=lambda load: load.percentile(0.99))

    def failed(self, loads: Sequence[Load]) -> int:
        """Answers that were not 200."""
        return sum(len(load.answers) - len(load.of(200)) for load in loads)

    def record(self) -> dict[str, Any]:
        """For the JSON file."""
        return {
            "name": self.name,
            "how": self.how,
            "best": [load.summary() for load in self.best],
            "at_rate": [load.summary() for load in self.at_rate],
            "memory": self.memory,
            "installed": size_of(self.python),
            "ready_s": self.ready_s,
        }


def contenders(bench: Bench, pythons: dict[str, str]) -> list[Contender]:
    """`van serve` with the ONNX file and with the weights that it is of, then the peers' ways."""
    onnx = export(bench)
    ours = replace(bench, python=pythons["van"])
    found = [
        Contender("van serve", ours.python, partial(ours.server, onnx)),
        Contender("van serve, of the weights", ours.python, ours.server),
    ]
    for name in PEERS:
        for setting in SETTINGS[name]:
            serve = partial(peer_server, name, setting, pythons[name], onnx, bench.folder)
            found.append(Contender(name, pythons[name], serve, str(setting)))
    return found


def requests_of(bench: Bench, address: Address) -> list[bytes]:
    """The same to all: a picture each, in a form."""
    bodies = [multipart([one], "picture", bench.files.kind) for one in bench.files.pictures]
    return [request_bytes(address, "POST", "/predict", *body, TOKEN) for body in bodies]


def peers(bench: Bench, pythons: dict[str, str]) -> Part:
    """Throughput, latency at one load for all, memory, and what each has installed."""
    part, reference, found = Part(), [], contenders(bench, pythons)
    for _ in range(bench.rounds):  # in turn, so that what disturbs does not meet one alone
        for one in found:
            with one.serve() as server:
                requests = requests_of(bench, server.address)
                require_alike(one, server, requests, reference)
                one.best.append(capacity(server, requests, bench.seconds / 2)[0])
                one.ready_s.append(server.ready_s)
    good = [one for one in found if not one.failed(one.best)]
    names = {one.name for one in good}
    rate = min(max(one.most() for one in good if one.name == name) for name in names) / 2
    for i in range(bench.rounds):
        for one in found:
            at_rate(bench, one, rate, bench.seed + i)
    part.details = {"rate": rate, "contenders": [one.record() for one in found]}
    part.table = table(found, rate)
    if "whole" in pythons:
        whole = size_of(pythons["whole"])
        part.details["whole"] = whole
        part.table += f"\n\nvan serve with Keras and TensorFlow: {whole / 1e6:,.0f} MB installed."
    return part


def at_rate(bench: Bench, one: Contender, rate: float, seed: int) -> None:
    """How soon a contender answers at this many requests a second, and what it takes."""
    with one.serve() as server:
        requests = requests_of(bench, server.address)
        with server.memory_sampled() as memory:  # not meanwhile: looking takes its time
            steady(server, requests, 8, min(2.0, bench.seconds))
        starts = poisson(rate, max(bench.seconds, min(300 / rate, 3 * bench.seconds)), seed)
        one.at_rate.append(offered(server, requests, starts))
        one.memory.append(max(*memory, server.memory()))
        one.ready_s.append(server.ready_s)


def table(found: Sequence[Contender], rate: float) -> str:
    """Markdown: a line a contender, the best of its rounds; answers that were not 200 of all."""
    lines = [
        f"| | pictures/s | not 200 | p50 at {rate:.0f}/s, ms | p99, ms | not 200 | others, cores "
        "| memory, MB | installed, MB | ready, s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        load, name = one.soonest(), f"{one.name} ({one.how})" if one.how else one.name
        others = max(x.summary().get("others_cores", 0.0) for x in one.best + one.at_rate)
        lines.append(
            f"| {name} | {one.most():.1f} | {one.failed(one.best)} "
            f"| {1e3 * load.percentile(0.5):.0f} | {1e3 * load.percentile(0.99):.0f} "
            f"| {one.failed(one.at_rate)} | {others:.2f} | {max(one.memory) / 1e6:.0f} "
            f"| {size_of(one.python) / 1e6:.0f} | {percentile(one.ready_s, 0.5):.1f} |"
        )
    return "\n".join(lines)


def require_alike(
    one: Contender, server: Server, requests: Sequence[bytes], reference: list[dict[int, float]]
) -> None:
    """Ends where a contender's first answers are not those of the first contender."""
    answers: list[dict[int, float]] = []
    for request in requests[:4]:
        answer = run(Client(server.address, keep_alive=False).ask(request))
        if answer.status != 200:
            raise SystemExit(f"{one.name}, {one.how}: {told_answer(answer)}\n{server.last_words()}")
        body = json.loads(answer.body)
        if "results" not in body:
            body = {"results": body if isinstance(body, list) else [body]}
        answers += results_of(json.dumps(body).encode())
    reference = reference or reference.extend(answers) or reference
    if not all(alike(a, b) for a, b in zip(answers, reference, strict=True)):
        raise SystemExit(
            f"{one.name}, {one.how}, answers otherwise: {answers[0]}, not {reference[0]}"
        )
