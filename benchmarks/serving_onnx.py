"""What LitServe and BentoML compute with: the ONNX file, as lightly and as well as `van serve`."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnxruntime


def session_of(path: str, threads: int) -> onnxruntime.InferenceSession:
    """On so many threads, which stop spinning when a batch is done, as those of `van serve`."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def best_of(logits: np.ndarray) -> list[dict[str, Any]]:
    """The five best classes of (classes,) logits."""
    shares = np.exp(logits - logits.max())
    shares /= shares.sum()
    best = np.argsort(-shares)[:5]
    return [{"index": int(i), "probability": float(shares[i])} for i in best]
