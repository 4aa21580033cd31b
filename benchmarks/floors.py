"""Measures what bounds any contender on this machine: matrix product rate, memory bandwidth.

python benchmarks/floors.py --threads 2 --precisions float32 bfloat16 int8
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

# Multiply-accumulates of one 224 x 224 image (arXiv 2202.09741, Table 2: 0.9 G, 2.5 G and 5.0 G;
# these digits are counted by the package's tests).
MACS = {"van_b0": 0.864e9, "van_b1": 2.495e9, "van_b2": 4.993e9}
PRECISIONS = ("float32", "bfloat16", "int8")
# Forward, and as much again for the gradients of the inputs and of the weights.
PASSES = {"inference": 1, "training": 3}


def gemm_key(precision: str) -> str:
    """What `measure` calls the rate of a precision."""
    return "gemm_gflops" if precision == "float32" else f"gemm_{precision}_gflops"


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


def _openvino_gemm(precision: str, threads: int, repeats: int) -> float:
    """GFLOP/s of the kernels that deployed models run: matrix products, one behind the other.

    A chain, so that casting the input and the output, which a model does once, weighs little.
    """
    import numpy as np
    import openvino as ov
    from openvino import opset13 as opset

    n, length = 2048, 4
    rng = np.random.default_rng(0)
    top = (3 / n) ** 0.5  # keeps the values of order one

    def constant(value: Any) -> Any:
        return opset.constant(np.asarray(value, np.float32))

    def quantised(x: Any, top: float, low: float, levels: int) -> Any:
        ends = constant(low), constant(top)
        return opset.fake_quantize(x, *ends, *ends, levels)

    x = images = opset.parameter([n, n], np.float32)
    for _ in range(length):
        weights = constant(rng.uniform(-top, top, (n, n)))
        if precision == "int8":
            x = quantised(x, 4 * 127 / 128, -4, 256)
            weights = quantised(weights, top, -top, 255)
        x = opset.matmul(x, weights, transpose_a=False, transpose_b=True)
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16",
    }
    compiled = ov.Core().compile_model(ov.Model([x], [images]), "CPU", settings)
    request = compiled.create_infer_request()
    feed = rng.standard_normal((n, n), np.float32)
    seconds = _best_seconds(lambda: request.infer([feed], share_inputs=True), repeats)
    return length * 2 * n**3 / seconds / 1e9


def _copy_gb_per_s(threads: int, repeats: int) -> float:
    import numpy as np

    # 256 MB a thread: beyond any cache. NumPy releases the lock while it copies.
    sources = [np.ones(64 * 2**20, np.float32) for _ in range(threads)]
    targets = [np.zeros_like(source) for source in sources]
    with ThreadPoolExecutor(threads) as pool:
        seconds = _best_seconds(lambda: list(pool.map(np.copyto, targets, sources)), repeats)
    return 2 * sum(source.nbytes for source in sources) / seconds / 1e9


def measure(
    threads: int, repeats: int = 20, precisions: Sequence[str] = ("float32",)
) -> dict[str, float]:
    """Best of `repeats`: GEMM in GFLOP/s, copy in GB/s (bytes read plus written).

    float32 by the BLAS of NumPy, the other precisions by OpenVINO. On a processor without
    instructions for bfloat16 it computes in float32, and the figure says so by being no larger.
    """
    # The BLAS inside NumPy reads its thread count when it loads.
    for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[variable] = str(threads)
    import numpy as np

    rates = {"copy_gb_per_s": _copy_gb_per_s(threads, repeats)}
    for precision in precisions:
        if precision != "float32":
            rates[gemm_key(precision)] = _openvino_gemm(precision, threads, repeats // 2)
    if "float32" in precisions:  # last: the threads of the BLAS spin on for a while
        n = 2048
        rng = np.random.default_rng(0)
        a, b = (rng.standard_normal((n, n), np.float32) for _ in range(2))
        out = np.empty_like(a)
        gemm = _best_seconds(lambda: np.matmul(a, b, out=out), repeats)
        rates["gemm_gflops"] = 2 * n**3 / gemm / 1e9
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=PRECISIONS[:1])
    parser.add_argument("--json", action="store_true", help="one JSON line, for the comparisons")
    args = parser.parse_args()
    floors = measure(args.threads, precisions=args.precisions)
    if args.json:
        print(json.dumps(floors))
        return
    for precision in args.precisions:
        gflops = floors[gemm_key(precision)]
        print(f"{precision} GEMM 2048^3: {gflops:.0f} GFLOP/s ({args.threads} threads)")
        for model, macs in MACS.items():
            ms = gemm_floor_ms(model, 1, "inference", gflops)
            print(f"  {model}: {macs / 1e9:.3f} G MACs an image, {ms:.1f} ms at that rate")
    print(f"memory copy: {floors['copy_gb_per_s']:.1f} GB/s read plus written")


if __name__ == "__main__":
    main()
