"""The ONNX file behind LitServe, as its documentation serves a batched model; run by `serving.py`.

python serving_litserve.py --model W.onnx --port 8000 --workers 1 --threads 2 --batch 8 --fast 0
"""

from __future__ import annotations

import argparse
import io
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import litserve
import numpy as np
from folder_contender import prepared
from serving_onnx import best_of, session_of


def _prepared(data: bytes) -> np.ndarray:
    return np.ascontiguousarray(prepared(io.BytesIO(data), 224).transpose(1, 2, 0))


class Van(litserve.LitAPI):
    """Decode, preprocess, batch, run, name the five best."""

    def __init__(self, onnx: str, threads: int, **batching: Any):
        super().__init__(**batching)
        self.onnx, self.threads = onnx, threads

    def setup(self, device: str) -> None:
        self.session = session_of(self.onnx, self.threads)
        self.input = self.session.get_inputs()[0].name
        self.pool = ThreadPoolExecutor(self.threads)

    def decode_request(self, request):  # LitServe reads a type here, and makes a query of it
        return request["picture"].file.read()

    def batch(self, inputs: list[bytes]) -> np.ndarray:
        return np.stack(list(self.pool.map(_prepared, inputs)))  # LitServe decodes one by one

    def predict(self, images: Any) -> np.ndarray:
        alone = isinstance(images, bytes)
        given = _prepared(images)[None] if alone else images
        (logits,) = self.session.run(None, {self.input: given})
        return logits[0] if alone else logits

    def unbatch(self, output: np.ndarray) -> list[np.ndarray]:
        return list(output)

    def encode_response(self, output: np.ndarray) -> dict[str, Any]:
        return {"predictions": best_of(output)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    for name in ("port", "workers", "threads", "batch", "fast"):
        parser.add_argument(f"--{name}", type=int, required=True)
    args = parser.parse_args()
    batching: dict[str, Any] = (
        {} if args.batch == 1 else {"max_batch_size": args.batch, "batch_timeout": 0.002}
    )
    server = litserve.LitServer(
        Van(args.model, args.threads, **batching),
        accelerator="cpu",
        workers_per_device=args.workers,
        fast_queue=bool(args.fast),
    )
    server.run(host="127.0.0.1", port=args.port, generate_client_file=False, log_level="warning")


if __name__ == "__main__":
    main()
