"""The ONNX file behind BentoML; run by `serving.py` as `bentoml serve serving_bentoml:Van`.

The settings come by the environment, as BentoML imports this file itself: VAN_ONNX, VAN_WORKERS,
VAN_THREADS, VAN_BATCH (1: each worker runs its own session; more: one service runs batches for
those that decode).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import bentoml
import numpy as np
from folder_contender import prepared
from serving_peers import best_of, session_of

WORKERS = int(os.environ["VAN_WORKERS"])
THREADS = int(os.environ["VAN_THREADS"])
BATCH = int(os.environ["VAN_BATCH"])
QUIET: Any = {"access": {"enabled": False}}


def _prepared(picture: Path) -> np.ndarray:
    return np.ascontiguousarray(prepared(str(picture), 224).transpose(1, 2, 0))


@bentoml.service(workers=1, traffic={"timeout": 60}, logging=QUIET)
class Batches:
    """Runs what several requests ask at once."""

    def __init__(self) -> None:
        self.session = session_of(os.environ["VAN_ONNX"], THREADS)
        self.input = self.session.get_inputs()[0].name

    @bentoml.api(batchable=True, max_batch_size=max(BATCH, 2), max_latency_ms=10_000)
    def logits(self, images: np.ndarray) -> np.ndarray:
        return self.session.run(None, {self.input: images})[0]


if BATCH > 1:

    @bentoml.service(workers=WORKERS, threads=BATCH, traffic={"timeout": 60}, logging=QUIET)
    class Van:
        """Decodes; another service computes."""

        batches = bentoml.depends(Batches)

        @bentoml.api
        def predict(self, picture: Path) -> dict[str, Any]:
            return {"predictions": best_of(self.batches.logits(_prepared(picture)[None])[0])}

else:

    @bentoml.service(workers=WORKERS, traffic={"timeout": 60}, logging=QUIET)
    class Van:
        """Decodes and computes."""

        def __init__(self) -> None:
            self.session = session_of(os.environ["VAN_ONNX"], THREADS)
            self.input = self.session.get_inputs()[0].name

        @bentoml.api
        def predict(self, picture: Path) -> dict[str, Any]:
            (logits,) = self.session.run(None, {self.input: _prepared(picture)[None]})
            return {"predictions": best_of(logits[0])}
