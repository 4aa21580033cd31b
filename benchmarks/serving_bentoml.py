"""The ONNX file behind BentoML; run by `serving.py` as `bentoml serve serving_bentoml:Van`.

The settings come by the environment, as BentoML imports this file itself: VAN_ONNX, VAN_WORKERS,
VAN_THREADS, VAN_BATCH (1: every request by itself; more: each worker batches its own).

One service does all. With one that decodes and another that computes, BentoML 1.4 answers some
requests 500: its client between the two closes its connections after each 100 requests, with those
that are on their way.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import bentoml
import numpy as np
from folder_contender import prepared
from PIL.Image import Image
from serving_onnx import best_of, session_of

WORKERS = int(os.environ["VAN_WORKERS"])
THREADS = int(os.environ["VAN_THREADS"])
BATCH = int(os.environ["VAN_BATCH"])
HOW: Any = {
    "workers": WORKERS,
    "traffic": {"timeout": 60},
    "logging": {"access": {"enabled": False}},
}


class Model:
    """Decodes and computes."""

    def __init__(self) -> None:
        self.session = session_of(os.environ["VAN_ONNX"], THREADS)
        self.input = self.session.get_inputs()[0].name
        self.pool = ThreadPoolExecutor(THREADS)

    def answers(self, pictures: list[Image]) -> list[dict[str, Any]]:
        images = list(self.pool.map(_prepared, pictures))
        (logits,) = self.session.run(None, {self.input: np.stack(images)})
        return [{"predictions": best_of(one)} for one in logits]


def _prepared(picture: Any) -> np.ndarray:
    """Of a picture that is opened and not decoded: its file is in memory."""
    return np.ascontiguousarray(prepared(picture.fp, 224).transpose(1, 2, 0))


if BATCH > 1:

    @bentoml.service(**HOW)
    class Van(Model):
        """What several requests ask at once is one batch."""

        @bentoml.api(batchable=True, max_batch_size=BATCH, max_latency_ms=10_000)
        def predict(self, picture: list[Image]) -> list[dict[str, Any]]:
            return self.answers(picture)

else:

    @bentoml.service(**HOW)
    class Van(Model):
        """Each request by itself."""

        @bentoml.api
        def predict(self, picture: Image) -> dict[str, Any]:
            return self.answers([picture])[0]
