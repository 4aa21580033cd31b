"""Which engines run here: each answers a picture in a process of its own, which may crash."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..inference.request import ENGINES
from ..support.extras import is_installed
from ..support.text import printable

NAMES = tuple(name for name in ENGINES if name != "auto")
_SECONDS = 180  # a first start of TensorFlow on a cold disk
_TRIAL = """
import json, sys
import numpy as np
from van_classification_tensorflow import Classifier
classifier = Classifier("digits", engine=sys.argv[1])
classifier(np.zeros((32, 32), np.uint8))
used = classifier.engine_used
found = {"version": used.version, "threads": used.threads, "difference": used.difference}
if sys.argv[1] == "keras":
    import keras
    found["backend"] = keras.backend.backend()
    found["devices"] = [str(one) for one in keras.distribution.list_devices()]
    if found["backend"] == "tensorflow":
        import tensorflow as tf
        details = tf.config.experimental.get_device_details
        found["devices"] = [
            f"{one.name} {details(one).get('device_name', '')}".strip()
            for one in tf.config.list_physical_devices()
        ]
elif sys.argv[1] == "openvino":
    import openvino
    core = openvino.Core()
    found["devices"] = [
        f"{one} ({core.get_property(one, 'FULL_DEVICE_NAME').strip()})"
        for one in core.available_devices
    ]
elif sys.argv[1] == "onnxruntime":
    import onnxruntime
    found["devices"] = list(onnxruntime.get_available_providers())
print("\\n" + json.dumps(found))
"""

Run = Callable[..., subprocess.CompletedProcess[str]]


@dataclass(frozen=True)
class Trial:
    """What came of an engine.

    Args:
        runs: Whether it has answered, as NumPy does.
        problem: Why not.
        seconds: From the start of its process to the answer.
        version: Of its package.
        devices: That it knows.
        found: All that it said of itself.
    """

    runs: bool
    problem: str = ""
    seconds: float | None = None
    version: str = ""
    devices: tuple[str, ...] = ()
    found: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it."""
        record: dict[str, Any] = {"runs": self.runs}
        if self.problem:
            record["problem"] = self.problem
        if self.seconds is not None:
            record["seconds"] = round(self.seconds, 1)
        return record | (self.found or {})


def try_all(run: Run = subprocess.run) -> dict[str, Trial]:
    """{engine: what came of it}, two at a time."""
    with ThreadPoolExecutor(2) as pool:
        trials = pool.map(lambda name: try_one(name, run), NAMES)
        return dict(zip(NAMES, trials, strict=True))


def try_one(name: str, run: Run = subprocess.run) -> Trial:
    """Lets an engine answer one picture by the bundled weights."""
    for package, extra in ENGINES[name]:
        if not is_installed(package):
            hint = f"pip install 'van-classification-tensorflow[{extra}]'"
            return Trial(False, f"not installed: {hint}")
    began = time.perf_counter()
    # This package as it is here, and nothing else of the folder one happens to be in.
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {"TF_CPP_MIN_LOG_LEVEL": "3", **os.environ}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    try:
        done = run(
            [sys.executable, "-P", "-c", _TRIAL, name],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_SECONDS,
            env=environment,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return Trial(False, f"no answer in {_SECONDS} s")
    except OSError as error:
        return Trial(False, f"its process did not start: {error}")
    seconds = time.perf_counter() - began
    if done.returncode:
        return Trial(False, _why(done), seconds)
    try:
        found = json.loads(done.stdout.rstrip().rpartition("\n")[2])
        devices = tuple(map(str, found.get("devices", ())))
        return Trial(True, "", seconds, str(found["version"]), devices, found)
    except (ValueError, KeyError, AttributeError, TypeError):
        return Trial(False, "its process has said something else than was asked", seconds)


def _why(done: subprocess.CompletedProcess[str]) -> str:
    """The last line of a traceback, or the signal that ended the process."""
    if done.returncode < 0:
        try:
            name = signal.Signals(-done.returncode).name
        except ValueError:
            name = f"signal {-done.returncode}"
        return f"its process was ended by {name}"
    lines = [line.strip() for line in done.stderr.splitlines() if line.strip()]
    text = printable(lines[-1]) if lines else f"exit code {done.returncode}"
    return text if len(text) <= 300 else f"{text[:300]}..."
