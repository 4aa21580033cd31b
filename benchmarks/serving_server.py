"""The servers that `serving.py` loads, as processes, and what they serve and are asked."""

from __future__ import annotations

import contextlib
import functools
import http.client
import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving_client import Address

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

HOST = "127.0.0.1"
READY = "/v2/health/ready"
READY_S = 120.0  # to wait for a server
SAMPLE_S = 0.1  # between looks at the memory during a load
OURS = "van_classification_tensorflow"  # in a command: it may write no traceback
PICTURE = (500, 375)  # width and height, of an ImageNet picture


@dataclass
class Server:
    """A server in a process of its own, with what it started."""

    process: subprocess.Popen
    address: Address
    log: Path
    ready_s: float = 0.0  # from its start to the first "ready"
    told: int = 0  # tracebacks of which a measurement knows

    def processes(self) -> list[int]:
        """The process and all below it."""
        found = [self.process.pid]
        for pid in found:
            for path in Path(f"/proc/{pid}/task").glob("*/children"):
                found += map(int, read_or_empty(path).split())
        return found

    def memory(self) -> int:
        """Bytes of all its processes, a page that several share counted once among them (PSS)."""
        return sum(_pss(pid) for pid in self.processes())

    @contextlib.contextmanager
    def memory_sampled(self) -> Iterator[list[int]]:
        """`memory` at the beginning, again and again while this is open, and at its end."""
        found, over = [self.memory()], threading.Event()

        def sample() -> None:
            while not over.wait(SAMPLE_S):
                found.append(self.memory())

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield found
        finally:
            over.set()
            thread.join()
            found.append(self.memory())

    def cpu(self) -> float:
        """Seconds of processor time of all its processes, with those that have ended."""
        ticks = 0
        for pid in self.processes():
            fields = read_or_empty(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
            ticks += sum(map(int, fields[11:15])) if fields else 0
        return ticks / os.sysconf("SC_CLK_TCK")

    def alive(self) -> bool:
        return self.process.poll() is None

    def get(self, path: str, token: str | None = None) -> tuple[int, bytes]:
        """Status and body of one GET. Raises `OSError` or `http.client.HTTPException`."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        return asked(self.address, "GET", path, headers=headers)

    def is_ready(self, path: str = READY) -> bool:
        try:
            return asked(self.address, "GET", path, timeout=5)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def tracebacks(self) -> int:
        """How many its log holds; who asks tells of them."""
        text = self.log.read_text(errors="replace")
        self.told = text.count("Traceback (most recent call last)")
        return self.told

    def stop(self, patience: float = 30.0) -> int | None:
        """Ends it by SIGTERM, then by force; its exit status, None where force was needed."""
        status: int | None = None
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.send_signal(signal.SIGTERM)
            status = self.process.wait(patience)
        with contextlib.suppress(ProcessLookupError):  # else who is left of those that it started
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()
        return status

    def last_words(self) -> str:
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-15:])


def read_or_empty(path: Path) -> str:
    """Of /proc: a process may end at any time."""
    try:
        return path.read_text()
    except OSError:
        return ""


def busy() -> float:
    """Seconds of processor time that all processes of this machine, and its neighbours, took."""
    user, nice, system, _, _, interrupts, soft, stolen = (
        int(text) for text in read_or_empty(Path("/proc/stat")).split(maxsplit=9)[1:9]
    )
    return (user + nice + system + interrupts + soft + stolen) / os.sysconf("SC_CLK_TCK")


def watched(measure: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Adds `others_cores` to the details: of a measurement whose servers end within it."""

    @functools.wraps(measure)
    def whole(bench: Any) -> Any:
        begun, all_before, mine = time.perf_counter(), busy(), sum(os.times()[:4])
        part = measure(bench)
        others = (busy() - all_before) - (sum(os.times()[:4]) - mine)
        part.details["others_cores"] = max(others, 0.0) / (time.perf_counter() - begun)
        return part

    return whole


def _pss(pid: int) -> int:
    rollup = read_or_empty(Path(f"/proc/{pid}/smaps_rollup"))
    return sum(int(line.split()[1]) * 1024 for line in rollup.splitlines() if line[:4] == "Pss:")


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        return listener.getsockname()[1]


def asked(
    address: Address,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = 60.0,
) -> tuple[int, bytes]:
    """Status and body of one request on a connection of its own."""
    connection = http.client.HTTPConnection(*address, timeout=timeout)
    try:
        connection.request(method, path, body, dict(headers or {}))
        answer = connection.getresponse()
        return answer.status, answer.read()
    finally:
        connection.close()


def wait_ready(server: Server, path: str, begun: float) -> None:
    """Until it answers 200; a server that ends before ends this too, with its last words."""
    while not server.is_ready(path):
        if not server.alive() or time.perf_counter() - begun > READY_S:
            server.stop()
            command = " ".join(map(str, server.process.args))
            raise SystemExit(f"not ready: {command}\n{server.last_words()}")
        time.sleep(0.005)
    server.ready_s = time.perf_counter() - begun


@contextlib.contextmanager
def started(
    command: Sequence[str],
    address: Address,
    log: Path,
    ready: str = READY,
    folder: Path = HERE.parent,
    environment: Mapping[str, str] | None = None,
) -> Iterator[Server]:
    """A server that is ready, with a log of its own; ended when the block is left.

    Of ours, tracebacks in its log that no measurement told of end this too.
    """
    begun = time.perf_counter()
    with log.open("wb") as out:
        process = subprocess.Popen(
            list(command),
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            cwd=folder,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", **(environment or {})},
            start_new_session=True,
        )
    server = Server(process, address, log)
    try:
        wait_ready(server, ready, begun)
        yield server
    finally:
        server.stop()
    told = server.told
    if OURS in command and server.tracebacks() > told:
        raise SystemExit(f"{server.told - told} tracebacks in its log:\n{server.last_words()}")


# --- What is served ---


@dataclass(frozen=True)
class Files:
    """What the servers of one model read and are sent.

    Args:
        model: "digits" or a member of the family.
        weights, other: Two weight files of the same shapes, with other answers.
        pictures: Encoded files, all different.
        kind: Their Content-Type.
    """

    model: str
    weights: Path
    other: Path
    pictures: list[bytes] = field(repr=False)
    kind: str = "image/jpeg"


def prepare(model: str, folder: Path, pictures: int) -> Files:
    """Writes the weights into `folder` and makes the pictures."""
    weights, other = folder / f"{model}.safetensors", folder / f"{model}-other.safetensors"
    if model == "digits":
        write_digits(weights, other)
        return Files(model, weights, other, digit_pictures(pictures), "image/png")
    for seed, path in enumerate((weights, other)):
        write_random(model, path, seed)
    from decoding import make_pictures

    made = folder / "pictures"
    made.mkdir(exist_ok=True)
    paths = make_pictures(made, *PICTURE, pictures)
    return Files(model, weights, other, [Path(one).read_bytes() for one in paths])


def write_random(model: str, path: Path, seed: int) -> None:
    """The seeded weights of `weights.py`, with the labels of ImageNet-1k."""
    from weights import NUM_CLASSES, seeded

    from van_classification_tensorflow.export.convert import write_safetensors
    from van_classification_tensorflow.spec.architecture import Architecture
    from van_classification_tensorflow.spec.config import CONFIGURATIONS

    config = CONFIGURATIONS[model]
    sizes = Architecture(
        tuple(config.embed_dims), tuple(config.hidden_dims), tuple(config.depths), 3, NUM_CLASSES
    )
    tensors = {name: seeded(name, t.shape, seed) for name, t in sizes.tensors().items()}
    write_safetensors(path, tensors, {"labels": "imagenet1k"})


def write_digits(path: Path, other: Path) -> None:
    """The bundled weights, and the same with the classes one further: every answer is another."""
    import numpy as np
    from safetensors import safe_open

    from van_classification_tensorflow.export.convert import write_safetensors
    from van_classification_tensorflow.support.files import asset

    data = asset("digits.safetensors").read_bytes()
    path.write_bytes(data)
    with safe_open(path, "numpy") as file:
        metadata = json.loads(file.metadata()["van"])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
    for name in ("head.weight", "head.bias"):
        tensors[name] = np.roll(tensors[name], 1, axis=0)
    write_safetensors(other, tensors, metadata)


def digit_pictures(count: int) -> list[bytes]:
    """PNGs of the bundled test digits, 32 x 32."""
    import numpy as np
    from PIL import Image

    from van_classification_tensorflow.datasets.digits import load_digits

    made = []
    for pixels in load_digits()[1].pixels[:count]:
        grey = np.rint(np.kron(pixels, np.ones((4, 4))) * (255 / 16)).astype(np.uint8)
        stream = io.BytesIO()
        Image.fromarray(grey).save(stream, "PNG")
        made.append(stream.getvalue())
    return made
