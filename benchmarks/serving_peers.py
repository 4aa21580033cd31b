"""`van serve` beside LitServe and BentoML, all serving the same ONNX file.

Each peer is tried in the ways that `SETTINGS` names; the one with the most pictures a second is
what the table shows, with the others in the JSON file.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
import venv
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from serving_bench import Bench, Part, alike, capacity, offered, poisson, steady, told_answer
from serving_client import Address, Client, Load, multipart, request_bytes, run
from serving_server import HERE, HOST, Server, free_port, started

PEERS = ("litserve", "bentoml")
INSTALLED = {
    "litserve": ("litserve", "python-multipart", "onnxruntime", "pillow", "numpy"),
    "bentoml": ("bentoml", "onnxruntime", "pillow", "numpy"),
}


class Setting(NamedTuple):
    """How a peer runs: processes, threads of each session, largest batch."""

    workers: int
    threads: int
    batch: int

    def __str__(self) -> str:
        return f"{self.workers} workers, {self.threads} threads, batch {self.batch}"


SETTINGS = {
    "litserve": (Setting(1, 2, 8), Setting(2, 1, 8), Setting(2, 1, 1)),
    "bentoml": (Setting(2, 1, 1), Setting(2, 2, 8)),
}


def session_of(path: str, threads: int) -> Any:
    """Of ONNX Runtime, on so many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def best_of(logits: Any) -> list[dict[str, float]]:
    """The five best classes of (classes,) logits."""
    import numpy as np

    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:5]
    return [{"index": int(i), "probability": float(shares[i])} for i in best]


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
        python = str(folder / name / "bin" / "python")
        if not Path(python).exists():
            print(f"installing {' '.join(wanted)}", file=sys.stderr)
            venv.create(folder / name, with_pip=True)
            pip = [python, "-m", "pip", "install", "-q"]
            subprocess.run([*pip, *wanted], check=True)
            if name == "van":
                subprocess.run([*pip, "--no-deps", str(HERE.parent)], check=True)
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
        command += [
            "--weights",
            str(bench.files.weights),
            "--output",
            str(target),
            "--batch-size",
            "any",
        ]
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
        subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL)
    return target


@contextmanager
def peer_server(
    name: str, setting: Setting, python: str, onnx: Path, folder: Path
) -> Iterator[Server]:
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
    with started(command, address, log, ready, HERE, environment) as server:
        yield server


@dataclass(frozen=True)
class Contender:
    """Who serves the model in one way.

    Args:
        name: For the table.
        python: Its interpreter, whose environment is measured.
        serve: Starts it; gives a `Server` that is ready.
        requests: One picture a request, as it wants them.
        how: Its settings.
    """

    name: str
    python: str
    serve: Callable[[], AbstractContextManager[Server]]
    requests: Callable[[Address], list[bytes]]
    how: str = ""


def contenders(bench: Bench, pythons: dict[str, str]) -> list[Contender]:
    """`van serve` with the ONNX file and with the weights that it is of, then the peers' ways."""
    onnx = export(bench)
    ours = replace(bench, python=pythons["van"])
    found = [
        Contender("van serve", ours.python, partial(ours.server, onnx), ours.singles),
        Contender("van serve, of the weights", ours.python, ours.server, ours.singles),
    ]

    def requests(address: Address) -> list[bytes]:
        bodies = [multipart([one], "picture", bench.files.kind) for one in bench.files.pictures]
        return [request_bytes(address, "POST", "/predict", *body) for body in bodies]

    for name in PEERS:
        for setting in SETTINGS[name]:
            serve = partial(peer_server, name, setting, pythons[name], onnx, bench.folder)
            found.append(Contender(name, pythons[name], serve, requests, str(setting)))
    return found


def peers(bench: Bench, pythons: dict[str, str]) -> Part:
    """Throughput, latency at one load for all, memory, and what each has installed."""
    part, reference = Part(), []
    best: dict[str, tuple[Load, Contender]] = {}
    tried: list[dict[str, Any]] = []
    for one in contenders(bench, pythons):
        with one.serve() as server:
            requests = one.requests(server.address)
            require_alike(one.name, server, requests, reference)
            load, clients = capacity(server, requests, bench.seconds / 2)
        tried.append({"name": one.name, "how": one.how, "clients": clients, **load.summary()})
        if one.name not in best or load.rate() > best[one.name][0].rate():
            best[one.name] = load, one
    rate = min(load.rate() for load, _ in best.values()) / 2
    found = [at_rate(bench, one, load, rate) for load, one in best.values()]
    part.details = {"tried": tried, "rate": rate, "contenders": found}
    part.table = table(found, rate)
    if "whole" in pythons:
        whole = size_of(pythons["whole"])
        part.details["whole"] = whole
        part.table += f"\n\nvan serve with Keras and TensorFlow: {whole / 1e6:,.0f} MB installed."
    return part


def at_rate(bench: Bench, one: Contender, best: Load, rate: float) -> dict[str, Any]:
    """What a contender takes, and how soon it answers, at this many requests a second."""
    with one.serve() as server:
        requests = one.requests(server.address)
        steady(server, requests, 8, min(2.0, bench.seconds))
        starts = poisson(rate, max(bench.seconds, min(300 / rate, 3 * bench.seconds)), bench.seed)
        load = offered(server, requests, starts)
        memory = server.memory()
    return {
        "name": one.name,
        "how": one.how,
        "best": best.summary(),
        "at_rate": load.summary(),
        "memory": memory,
        "installed": size_of(one.python),
        "ready_s": server.ready_s,
    }


def table(found: Sequence[dict[str, Any]], rate: float) -> str:
    """Markdown: a line a contender."""
    lines = [
        f"| | pictures/s | p50 at {rate:.0f}/s, ms | p99 at {rate:.0f}/s, ms | memory, MB "
        "| installed, MB | ready, s |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for one in found:
        load, name = one["at_rate"], f"{one['name']} ({one['how']})" if one["how"] else one["name"]
        lines.append(
            f"| {name} | {one['best']['per_second']:.1f} | {load['p50_ms']:.0f} "
            f"| {load['p99_ms']:.0f} | {one['memory'] / 1e6:.0f} | {one['installed'] / 1e6:.0f} "
            f"| {one['ready_s']:.1f} |"
        )
    return "\n".join(lines)


def require_alike(
    name: str, server: Server, requests: Sequence[bytes], reference: list[Any]
) -> None:
    """Ends where a contender's first answers are not those of the first contender."""
    answers = []
    for request in requests[:4]:
        answer = run(Client(server.address).ask(request))
        if answer.status != 200:
            raise SystemExit(f"{name}: {told_answer(answer)}")
        body = json.loads(answer.body)
        predictions = (
            body["results"][0]["predictions"] if "results" in body else body["predictions"]
        )
        answers.append({one["index"]: one["probability"] for one in predictions})
    reference = reference or reference.extend(answers) or reference
    if not all(alike(a, b) for a, b in zip(answers, reference, strict=True)):
        raise SystemExit(f"{name} answers otherwise: {answers[0]}, not {reference[0]}")
