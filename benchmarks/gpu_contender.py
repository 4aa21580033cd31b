"""One contender of `gpu.py`: a process that builds, checks and times what it is told to.

It reads one JSON command a line and answers each with one JSON line:

    {"do": "build", "batch": 128, "precision": "float32"}   -> {}
    {"do": "check", ...}    -> first results, peak memory; whatever compiles does it here
    {"do": "time", ..., "seconds": 0.5}                     -> as `contender.time_steps`
    {"do": "kernels", ...}  -> where the time goes, kernel by kernel

What fails answers {"error": ...}, and the process goes on with the next command.
"""

from __future__ import annotations

import argparse
import gzip
import json
import os
import re
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
from contender import LEARNING_RATE, Step, keras_model, time_steps, transformers_model, versions
from weights import fixed_images, fixed_labels

# Contender -> the libraries whose versions decide its speed. `keras_*` are this package.
LIBRARIES: dict[str, tuple[str, ...]] = {
    "keras_jax": ("keras", "jax"),
    "keras_jax_fused": ("keras", "jax"),
    "keras_torch": ("keras", "torch"),
    "keras_torch_fused": ("keras", "torch"),
    "keras_torch_compile": ("keras", "torch"),
    "torch_eager": ("torch", "transformers"),
    "torch_channels_last": ("torch", "transformers"),
    "torch_compile": ("torch", "transformers"),
    "torch_compile_channels_last": ("torch", "transformers"),
}
CONTENDERS = tuple(LIBRARIES)
INFERENCE_ONLY = tuple(name for name in CONTENDERS if name.endswith("_fused"))
# float32 is what each framework does if told nothing. tf32 asks PyTorch for its short products in
# matrix products too, where it has them by default in convolutions only.
PRECISIONS = ("float32", "tf32", "bfloat16")
LEAST_STEPS = 3


def keras_step(name: str, model: str, mode: str, batch: int, precision: str) -> Step:
    """Our package, called the way a user of Keras calls it; the images lie on the device."""
    import keras

    # Weights in bfloat16 where nothing trains; in training they stay in float32.
    half = "bfloat16" if mode == "inference" else "mixed_bfloat16"
    net = keras_model(model, dtype=half if precision == "bfloat16" else "float32")
    if name.endswith("_fused"):
        from van_classification_tensorflow.model.fused import fuse

        net = fuse(net)
    net.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=True if name.endswith("_compile") else "auto",
    )
    images = keras.ops.convert_to_tensor(fixed_images(batch))
    labels = keras.ops.convert_to_tensor(fixed_labels(batch).astype("int32"))
    if mode == "inference":
        return lambda: net.predict_on_batch(images)
    return lambda: net.train_on_batch(images, labels)


def torch_step(name: str, model: str, mode: str, batch: int, precision: str) -> Step:
    """The VAN of transformers, its images on the device."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    net = transformers_model(model).train(mode == "training").to(device)
    images = torch.from_numpy(fixed_images(batch)).to(device).permute(0, 3, 1, 2)
    channels_last = name.endswith("channels_last")
    layout = torch.channels_last if channels_last else torch.contiguous_format
    net, images = net.to(memory_format=layout), images.contiguous(memory_format=layout)
    half = precision == "bfloat16"
    if half and mode == "inference":
        net, images = net.bfloat16(), images.bfloat16()
    forward = torch.compile(net) if "_compile" in name else net
    if mode == "inference":

        def infer() -> np.ndarray:
            with torch.inference_mode():
                return forward(images)[0].float().cpu().numpy()

        return infer

    labels = torch.from_numpy(fixed_labels(batch)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE)

    def train() -> float:
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=half):
            loss = torch.nn.functional.cross_entropy(forward(images)[0], labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train


def torch_settings(precision: str) -> None:
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    # A new batch size is compiled anew, not for any size, which would be slower.
    torch._dynamo.config.automatic_dynamic_shapes = False
    torch._dynamo.config.recompile_limit = 64


class Worker:
    """Answers the commands for one contender, one model and one mode."""

    def __init__(self, name: str, model: str, mode: str):
        self.name, self.model, self.mode = name, model, mode
        self.backend = "jax" if "_jax" in name else "torch"
        self.steps: dict[tuple[int, str], Step] = {}

    def answer(self, do: str, batch: int, precision: str, **more: Any) -> dict[str, Any]:
        if self.backend == "torch":
            torch_settings(precision)
        if do == "build":
            build = keras_step if self.name.startswith("keras") else torch_step
            step = build(self.name, self.model, self.mode, batch, precision)
            self.steps[batch, precision] = step
            return {}
        return getattr(self, do)(self.steps[batch, precision], **more)

    def check(self, step: Step) -> dict[str, Any]:
        """What contenders must agree on: four logits of each image, or the first two losses."""
        start = time.perf_counter()
        first = np.array(step(), np.float32)
        seconds = time.perf_counter() - start
        second = np.array(step(), np.float32)
        self._reset_memory()
        values = first[:, :4].ravel() if self.mode == "inference" else np.stack([first, second])
        libraries = versions((*LIBRARIES[self.name], "numpy"))
        return {
            "check": [float(value) for value in values],
            "first_seconds": seconds,
            "versions": libraries,
        }

    def time(self, step: Step, seconds: float) -> dict[str, Any]:
        self._reset_memory()
        step()
        start = time.perf_counter()
        step()
        count = round(seconds / (time.perf_counter() - start))
        timed = time_steps(step, 0, max(LEAST_STEPS, count))
        return {**timed, "peak_mb": self._peak_mb()}

    def kernels(self, step: Step, steps: int = 5) -> dict[str, Any]:
        """Time on the device by kernel, in ms a step, beside the time on the clock."""
        for _ in range(3):
            step()
        start = time.perf_counter()
        for _ in range(steps):
            step()
        wall = 1e3 * (time.perf_counter() - start) / steps
        by_name = (torch_kernels if self.backend == "torch" else jax_kernels)(step, steps)
        rows = [
            {"kernel": kernel, "ms": ms / steps, "calls": calls / steps}
            for kernel, (ms, calls) in sorted(by_name.items(), key=lambda item: -item[1][0])
        ]
        return {"wall_ms": wall, "device_ms": sum(row["ms"] for row in rows), "kernels": rows}

    def _reset_memory(self) -> None:
        """Makes room for the others as well, who share the card."""
        if self.backend == "torch":
            import torch

            if torch.cuda.is_available():
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats()

    def _peak_mb(self) -> float | None:
        """Of this process. JAX knows the peak since the start only: build the smallest first."""
        if self.backend == "torch":
            import torch

            peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None
            self._reset_memory()
        else:
            import jax

            peak = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
        return None if peak is None else peak / 1e6


Kernels = dict[str, tuple[float, int]]  # name -> (ms, calls)


def torch_kernels(step: Step, steps: int) -> Kernels:
    import torch
    from torch.profiler import ProfilerActivity, profile

    cuda = torch.cuda.is_available()
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as recorded:
        for _ in range(steps):
            step()
    return {
        row.key: (
            (row.self_device_time_total if cuda else row.self_cpu_time_total) / 1e3,
            row.count,
        )
        for row in recorded.key_averages()
    }


def jax_kernels(step: Step, steps: int) -> Kernels:
    """Only on a GPU: the trace of a CPU has no kernels."""
    import jax

    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # a trace holds a million events at most
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder, profiler_options=options):
            for _ in range(steps):
                step()
        (path,) = Path(folder).rglob("*.trace.json.gz")
        events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    return stream_kernels(events)


def stream_kernels(events: Iterable[dict[str, Any]]) -> Kernels:
    """What ran on the streams of GPUs, of a trace in Chrome's format; numbered ones as one."""
    streams, found = set(), {}
    events = list(events)
    for event in events:
        if event.get("name") == "thread_name" and "Stream" in event["args"]["name"]:
            streams.add((event["pid"], event["tid"]))
    for event in events:
        if event.get("ph") == "X" and (event["pid"], event["tid"]) in streams:
            name = re.sub(r"([._]\d+)+$", "", event["name"])
            ms, calls = found.get(name, (0.0, 0))
            found[name] = (ms + event["dur"] / 1e3, calls + 1)
    return found


def floors() -> dict[str, float]:
    """GFLOP/s of large matrix products and GB/s of a copy, on the GPU or on the CPU."""
    import torch

    cuda = torch.cuda.is_available()
    device, n = ("cuda", 8192) if cuda else ("cpu", 1024)

    def best(run: Callable[[], Any]) -> float:
        times = []
        for _ in range(10):
            if cuda:
                torch.cuda.synchronize()
            start = time.perf_counter()
            run()
            if cuda:
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
        return min(times)

    rates: dict[str, float] = {}
    for precision in PRECISIONS:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
        a, b = (torch.randn(n, n, device=device).to(kind) for _ in range(2))
        rates[f"gemm_{precision}_gflops"] = 2 * n**3 / best(lambda a=a, b=b: a @ b) / 1e9
    source = torch.randn(2**29 if cuda else 2**25, device=device)
    target = torch.empty_like(source)
    rates["copy_gb_per_s"] = 2 * 4 * source.numel() / best(lambda: target.copy_(source)) / 1e9
    return rates


def card() -> str:
    """The name of the GPU, or of no GPU."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"


def serve(worker: Worker, commands: Any, answers: Any) -> None:
    for line in commands:
        try:
            answer = worker.answer(**json.loads(line))
        except Exception as error:  # whatever a compiler or an allocator raises
            traceback.print_exc()
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), file=answers, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=(*CONTENDERS, "floors"))
    parser.add_argument("--model", default="van_b0")
    parser.add_argument("--mode", choices=("inference", "training"), default="inference")
    args = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w")  # libraries chat on stdout
    os.dup2(2, 1)
    if args.name == "floors":
        print(json.dumps({"card": card(), **floors()}), file=answers, flush=True)
        return
    os.environ["KERAS_BACKEND"] = "jax" if "_jax" in args.name else "torch"
    os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"] = "false"  # else JAX takes most of the card
    serve(Worker(args.name, args.model, args.mode), sys.stdin, answers)


if __name__ == "__main__":
    main()
