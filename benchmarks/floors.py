"""Measures what bounds any contender on this machine: matrix product rate, memory bandwidth.

python benchmarks/floors.py --threads 2
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Multiply-accumulates of one 224 x 224 image (arXiv 2202.09741, Table 2: 0.9 G and 2.5 G;
# these digits are counted by the package's tests).
MACS = {"van_b0": 0.864e9, "van_b1": 2.495e9}
# Forward, and as much again for the gradients of the inputs and of the weights.
PASSES = {"inference": 1, "training": 3}


def gemm_floor_ms(model: str, batch: int, mode: str, gflops: float) -> float:
    """Time of the model's operations if all of them ran at the rate of a large GEMM."""
    return 2 * MACS[model] * PASSES[mode] * batch / gflops / 1e6


def _best_seconds(run: Callable[[], Any], repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        best = min(best, time.perf_counter() - start)
    return best


def measure(threads: int, repeats: int = 20) -> dict[str, float]:
    """Best of `repeats`: float32 GEMM in GFLOP/s, copy in GB/s (bytes read plus written)."""
    # The BLAS inside NumPy reads its thread count when it loads.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    import numpy as np

    n = 2048
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
    out = np.empty_like(a)
    gemm = _best_seconds(lambda: np.matmul(a, b, out=out), repeats)

    # 256 MB a thread: beyond any cache. NumPy releases the lock while it copies.
    sources = [np.ones(64 * 2**20, np.float32) for _ in range(threads)]
    targets = [np.zeros_like(source) for source in sources]
    with ThreadPoolExecutor(threads) as pool:
        copy = _best_seconds(lambda: list(pool.map(np.copyto, targets, sources)), repeats)
    moved = 2 * sum(source.nbytes for source in sources)
    return {"gemm_gflops": 2 * n**3 / gemm / 1e9, "copy_gb_per_s": moved / copy / 1e9}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", action="store_true", help="one JSON line, for speed.py")
    args = parser.parse_args()
    floors = measure(args.threads)
    if args.json:
        print(json.dumps(floors))
        return
    print(f"float32 GEMM 2048^3: {floors['gemm_gflops']:.0f} GFLOP/s ({args.threads} threads)")
    print(f"memory copy:         {floors['copy_gb_per_s']:.1f} GB/s read plus written")
    for model, macs in MACS.items():
        ms = gemm_floor_ms(model, 1, "inference", floors["gemm_gflops"])
        print(f"{model}: {macs / 1e9:.3f} G MACs an image, {ms:.1f} ms at the GEMM rate")


if __name__ == "__main__":
    main()
