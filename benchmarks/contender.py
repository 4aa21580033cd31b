"""Times one contender in this process and prints one JSON line; `speed.py` starts these.

python benchmarks/contender.py keras --model van_b0 --batch 8 --mode inference
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from weights import NUM_CLASSES, fixed_images, fixed_labels, seeded

HERE = Path(__file__).resolve().parent
ONNX_DIR = HERE / "cache"
MODELS = ("van_b0", "van_b1")
MODES = ("inference", "training")
LEARNING_RATE = 0.01
MIN_ITERATIONS = 10
WARMUP_STEPS = 3  # beside the two that make the check

_TORCH = ("torch", "transformers", "numpy")
_TENSORFLOW = ("keras", "tensorflow", "numpy")
_JAX = ("keras", "jax", "jaxlib", "numpy")
# This package: contender -> the libraries whose versions decide its speed.
_OURS: dict[str, tuple[str, ...]] = {
    "keras": _TENSORFLOW,
    "keras_fused": _TENSORFLOW,
    "keras_jit": _TENSORFLOW,
    "keras_jit_fused": _TENSORFLOW,
    "accelerated": ("keras", "tensorflow", "onnxruntime", "openvino", "numpy"),
    "keras_jax": _JAX,
    "keras_jax_fused": _JAX,
}
LIBRARIES = {
    **_OURS,
    "torch_eager": _TORCH,
    "torch_channels_last": _TORCH,
    "torch_compile": _TORCH,
    "onnxruntime": ("onnxruntime", "onnx", *_TORCH),  # the exporter shapes the graph
}
CONTENDERS = tuple(LIBRARIES)
INFERENCE_ONLY = (
    *("keras_fused", "keras_jit", "keras_jit_fused", "accelerated", "keras_jax_fused"),
    "onnxruntime",
)
OURS = tuple(_OURS)  # run in the environment of this package
_EXPORT = "export_onnx"  # not a contender: the child process of one

# One call is one timed step. Inference: logits (B, classes). Training: the loss before the step.
Step = Callable[[], Any]


@dataclass(frozen=True)
class Job:
    """What one process is asked to time."""

    name: str
    model: str
    batch: int
    mode: str
    threads: int
    onnx_dir: Path


def package_on_path() -> None:
    """Imports take the package of this checkout, even where another copy is installed."""
    sys.path.insert(0, str(HERE.parent))


def keras_model(name: str, **options: Any) -> Any:
    """The package's model with the seeded weights, logits at its end, on the backend in force.

    `options` are further arguments of `VAN`.
    """
    package_on_path()
    from van_classification_tensorflow.model.load import load_checkpoint, to_official
    from van_classification_tensorflow.model.van import VAN

    model = VAN(configuration=name, classifier_activation=None, **options)
    load_checkpoint(model, {k: seeded(k, v.shape) for k, v in to_official(model).items()})
    return model


def use_backend(backend: str, threads: int) -> None:
    """Takes a backend of Keras, on so many threads; to be called before anything imports it."""
    os.environ["KERAS_BACKEND"] = backend
    if backend == "jax":
        os.environ["NPROC"] = str(threads)  # how many threads its CPU client starts
        return
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)


def keras_step(job: Job) -> Step:
    """The package on TensorFlow or JAX, called the way a user of Keras calls it."""
    use_backend("jax" if "_jax" in job.name else "tensorflow", job.threads)
    import keras

    model = keras_model(job.model)
    images, labels = fixed_images(job.batch), fixed_labels(job.batch)
    if job.name.endswith("_fused"):
        from van_classification_tensorflow import fuse

        model = fuse(model)
    if "_jit" in job.name:
        model.jit_compile = True
    if job.name == "accelerated":
        from van_classification_tensorflow import accelerate

        model = accelerate(model, threads=job.threads)
    if job.mode == "inference":
        return lambda: model.predict_on_batch(images)
    model.compile(
        optimizer=keras.optimizers.SGD(LEARNING_RATE),
        loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )

    def train() -> Any:
        model.reset_metrics()  # the loss that comes back is a mean since the last reset
        return model.train_on_batch(images, labels)

    return train


def transformers_model(name: str) -> Any:
    """The VAN of transformers with the seeded weights, on the CPU."""
    import torch
    from transformers import VanConfig, VanForImageClassification

    package_on_path()
    from van_classification_tensorflow.spec.config import CONFIGURATIONS
    from van_classification_tensorflow.weights.namings import translate

    config = CONFIGURATIONS[name]
    net = VanForImageClassification(
        VanConfig(
            hidden_sizes=list(config.embed_dims),
            depths=list(config.depths),
            mlp_ratios=list(config.mlp_ratios),
            num_labels=NUM_CLASSES,
            layer_norm_eps=1e-6,
            drop_path_rate=0.0,
            dropout_rate=0.0,
            return_dict=False,
        )
    )
    state = net.state_dict()
    for name, hf in translate({name: name for name in state}).tensors.items():
        state[hf] = torch.from_numpy(np.asarray(seeded(name, tuple(state[hf].shape))))
    net.load_state_dict(state, strict=True)
    return net


def torch_step(job: Job) -> Step:
    """The VAN of transformers: as it comes, in channels-last memory, or compiled."""
    import torch

    torch.set_num_threads(job.threads)
    net = transformers_model(job.model).train(job.mode == "training")
    images = torch.from_numpy(fixed_images(job.batch)).permute(0, 3, 1, 2).contiguous()
    labels = torch.from_numpy(fixed_labels(job.batch))
    if job.name == "torch_channels_last":
        net = net.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    forward = torch.compile(net) if job.name == "torch_compile" else net

    def infer() -> np.ndarray:
        with torch.inference_mode():
            return forward(images)[0].numpy()

    if job.mode == "inference":
        return infer
    optimizer = torch.optim.SGD(net.parameters(), LEARNING_RATE)

    def train() -> float:
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(forward(images)[0], labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return train


def _onnx_path(job: Job) -> Path:
    versions = "-".join(f"{lib}{metadata.version(lib)}" for lib in ("torch", "transformers"))
    return job.onnx_dir / f"{job.model}-batch{job.batch}-{versions}.onnx"


def onnx_file(job: Job) -> Path:
    """The static-batch ONNX file of the VAN of transformers, written where it is not there yet."""
    path = _onnx_path(job)
    if not path.exists():
        # Another process, so that torch's threads never live beside the engine's.
        command = [sys.executable, str(HERE / "contender.py"), _EXPORT]
        command += ["--onnx-dir", str(job.onnx_dir)]
        command += ["--model", job.model, "--batch", str(job.batch)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return path


def export_onnx(job: Job) -> None:
    """Writes that file."""
    import torch

    path = _onnx_path(job)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")  # an interrupted export must not look like a cache hit
    images = torch.from_numpy(fixed_images(job.batch)).permute(0, 3, 1, 2).contiguous()
    net = transformers_model(job.model).eval()
    torch.onnx.export(net, (images,), str(partial), dynamo=False, opset_version=17)
    partial.replace(path)


def onnxruntime_step(job: Job) -> Step:
    """ONNX Runtime on the CPU, with the graph that torch exports."""
    path = onnx_file(job)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    images = np.ascontiguousarray(fixed_images(job.batch).transpose(0, 3, 1, 2))
    feed = {session.get_inputs()[0].name: images}
    return lambda: session.run(None, feed)[0]


def time_steps(step: Step, seconds: float, iterations: int | None) -> dict[str, Any]:
    """Warms up, then times steps for `seconds`, or `iterations` of them."""
    for _ in range(WARMUP_STEPS):
        step()
    times: list[float] = []
    cpu_start, wall_start = time.process_time(), time.perf_counter()
    stop = time.perf_counter() + seconds
    while len(times) < (iterations or MIN_ITERATIONS) or (
        iterations is None and time.perf_counter() < stop
    ):
        start = time.perf_counter()
        step()
        times.append(1e3 * (time.perf_counter() - start))
    cpu, wall = time.process_time() - cpu_start, time.perf_counter() - wall_start
    p10, median, p90 = np.percentile(times, (10, 50, 90))
    return {
        "median_ms": float(median),
        "p10_ms": float(p10),
        "p90_ms": float(p90),
        "iterations": len(times),
        "cores_used": cpu / wall,  # far below the threads: something else had the cores
    }


def versions(libraries: Iterable[str]) -> dict[str, str]:
    """What decides a contender's speed, beside the machine."""
    found = {library: metadata.version(library) for library in libraries}
    return {"python": platform.python_version(), **found}


def measure(job: Job, seconds: float, iterations: int | None) -> dict[str, Any]:
    """Builds the contender, takes its check, and times it.

    The check is what contenders must agree on: in inference the first four logits of each
    image; in training the loss of the first two steps (the second sees the first's update).
    """
    if job.name in OURS:
        step = keras_step(job)
    elif job.name == "onnxruntime":
        step = onnxruntime_step(job)
    else:
        step = torch_step(job)
    first, second = np.array(step()), np.array(step())  # copies: an engine may reuse its buffer
    check = first[:, :4].ravel() if job.mode == "inference" else np.stack([first, second])
    return {
        "name": job.name,
        **time_steps(step, seconds, iterations),
        "versions": versions(LIBRARIES[job.name]),
        "check": [float(value) for value in check],
    }


def require(parser: argparse.ArgumentParser, name: str, libraries: Iterable[str]) -> None:
    """Ends with one line where a library of the contender is missing."""
    for library in libraries:
        try:
            metadata.version(library)
        except metadata.PackageNotFoundError:
            parser.error(f"{name} needs {library} in {sys.executable}; see the README")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=(*CONTENDERS, _EXPORT))
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--mode", choices=MODES, default="inference")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.5, help="time to fill with steps")
    parser.add_argument("--iterations", type=int, help="number of steps; overrides --seconds")
    parser.add_argument("--onnx-dir", type=Path, default=ONNX_DIR)
    args = parser.parse_args()
    if args.mode == "training" and args.name in INFERENCE_ONLY:
        parser.error(f"{args.name} does not train")
    require(parser, args.name, LIBRARIES.get(args.name, ()))
    job = Job(args.name, args.model, args.batch, args.mode, args.threads, args.onnx_dir)
    os.environ["OMP_NUM_THREADS"] = str(job.threads)  # read when the libraries load
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.redirect_stdout(sys.stderr):  # libraries chat; stdout is the result
        if job.name == _EXPORT:
            return export_onnx(job)
        result = measure(job, args.seconds, args.iterations)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
