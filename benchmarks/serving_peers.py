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
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from serving_bench import Bench, Part
    from serving_server import Server

HERE = Path(__file__).resolve().parent
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
    from serving_client import Address
    from serving_server import HOST, free_port, started

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


def peers(bench: Bench, pythons: dict[str, str]) -> Part:
    """Throughput, latency at one load for all, memory, and what each has installed."""
    from serving_bench import Part, capacity
    from serving_client import Load, multipart, request_bytes

    part, onnx = Part(), export(bench)
    reference: list[Any] = []

    def requests(server: Server, name: str) -> list[bytes]:
        if name == "van serve":
            return bench.singles(server.address)
        bodies = [multipart([one], "picture", bench.files.kind) for one in bench.files.pictures]
        return [request_bytes(server.address, "POST", "/predict", *body) for body in bodies]

    contenders: dict[str, list[Setting | None]] = {"van serve": [None]}
    contenders |= {name: list(SETTINGS[name]) for name in PEERS if name in pythons}
    found: dict[tuple[str, Setting | None], tuple[Load, int]] = {}
    records: list[dict[str, Any]] = []
    for name, settings in contenders.items():
        for setting in settings:
            with _server(bench, name, setting, pythons, onnx) as server:
                asked = requests(server, name)
                require_alike(name, server, asked, reference)
                load, clients = capacity(server, asked, bench.seconds / 2)
                found[name, setting] = load, clients
                record = {"name": name, "setting": str(setting), "clients": clients}
                records.append({**record, "ready_s": server.ready_s, **load.summary()})
    best = {
        name: max(settings, key=lambda s, name=name: found[name, s][0].rate())
        for name, settings in contenders.items()
    }
    rate = min(found[name, setting][0].rate() for name, setting in best.items()) / 2
    for name, setting in best.items():
        _row(bench, part, name, setting, found[name, setting][0], rate, pythons, onnx, requests)
    part.details["settings"] = records
    return part


def _server(
    bench: Bench, name: str, setting: Setting | None, pythons: dict[str, str], onnx: Path
) -> Any:
    if setting is None:
        return replace(bench, python=pythons["van"]).server(onnx)
    return peer_server(name, setting, pythons[name], onnx, bench.folder)


def _row(
    bench: Bench,
    part: Part,
    name: str,
    setting: Setting | None,
    best: Any,
    rate: float,
    pythons: dict[str, str],
    onnx: Path,
    requests: Any,
) -> None:
    """The figures of one contender: its line of the table."""
    from serving_bench import offered, poisson, steady

    with _server(bench, name, setting, pythons, onnx) as server:
        asked = requests(server, name)
        steady(server, asked, 8, min(2.0, bench.seconds))
        starts = poisson(rate, max(bench.seconds, 300 / rate), bench.seed)
        load = offered(server, asked, starts)
        memory = server.memory()
        ready_s = server.ready_s
    size = size_of(pythons["van" if setting is None else name])
    whole = size_of(pythons["whole"]) if setting is None and "whole" in pythons else None
    text = (
        f"{best.rate():.1f} pictures/s; at {rate:.0f}/s p50 {1e3 * load.percentile(0.5):.1f} and "
    )
    text += f"p99 {1e3 * load.percentile(0.99):.1f} ms; {memory / 1e6:.0f} MB of memory; "
    text += f"{size / 1e6:,.0f} MB installed"
    if whole:
        text += f" ({whole / 1e6:,.0f} with Keras and TensorFlow)"
    text += f"; ready after {ready_s:.1f} s"
    part.add(f"{name} ({setting})" if setting else name, "", text)
    part.details[name] = {
        **{"best": best.summary(), "at_rate": load.summary(), "rate": rate, "memory": memory},
        **{"installed": size, "whole": whole, "ready_s": ready_s, "setting": str(setting)},
    }


def require_alike(
    name: str, server: Server, requests: Sequence[bytes], reference: list[Any]
) -> None:
    """Ends where a contender's first answers are not those of the first contender."""
    from serving_bench import alike, told_answer
    from serving_client import Client, run

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
