"""Times one exported model in this process and prints a JSON line; `deployment.py` starts these.

python benchmarks/deployed.py ov_bf16 --model van_b0 --batch 8
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from contender import (
    HERE,
    MODELS,
    ONNX_DIR,
    WARMUP_STEPS,
    Job,
    Step,
    keras_model,
    onnx_file,
    package_on_path,
    require,
    time_steps,
    versions,
)
from weights import IMAGE_SIZE, NUM_CLASSES, fixed_images, seeded

CHECKED_LOGITS = 100  # of each image: what the contenders must agree on
CALIBRATION_IMAGES = 16  # enough for speed: the weights are random, so accuracy means nothing
PROFILED_STEPS = 20
# Everything outside this package that shapes an exported file.
_EXPORTERS = ("keras", "tensorflow", "onnx", "onnxruntime", "openvino", "nncf", "ai-edge-litert")


class Deployed(NamedTuple):
    """A contender: whose model, run by what, in which precision."""

    engine: str  # "onnx" (ONNX Runtime), "openvino", "litert", or a backend of Keras
    precision: str
    peer: bool = False

    @property
    def libraries(self) -> tuple[str, ...]:
        """Whose versions decide its speed; all must be there."""
        runs = {
            "onnx": ("onnxruntime",),
            "openvino": ("openvino",),
            "litert": ("ai-edge-litert",),
            "keras_tensorflow": ("keras", "tensorflow"),
            "keras_openvino": ("keras", "openvino"),
        }[self.engine]
        if self.peer:
            runs += ("torch", "transformers", "onnx")
        if self.precision == "int8" and self.engine == "openvino":
            runs += ("nncf",)
        return (*runs, "numpy")


DEPLOYED = {
    "peer_ort_f32": Deployed("onnx", "float32", peer=True),
    "peer_ov_f32": Deployed("openvino", "float32", peer=True),
    "peer_ov_bf16": Deployed("openvino", "bfloat16", peer=True),
    "peer_ov_int8": Deployed("openvino", "int8", peer=True),
    "ort_f32": Deployed("onnx", "float32"),
    "ort_int8": Deployed("onnx", "int8"),
    "ov_f32": Deployed("openvino", "float32"),
    "ov_bf16": Deployed("openvino", "bfloat16"),
    "ov_int8": Deployed("openvino", "int8"),
    "litert_f32": Deployed("litert", "float32"),
    "litert_int8": Deployed("litert", "int8"),
    "keras_tf": Deployed("keras_tensorflow", "float32"),
    "keras_openvino": Deployed("keras_openvino", "bfloat16"),  # OpenVINO's choice, not ours
}
_ENDINGS = {"onnx": "onnx", "openvino": "xml", "litert": "tflite"}


# --- Files ---


def _fingerprint() -> str:
    """Of the sources and the libraries that write a file of ours."""
    digest = hashlib.sha256()
    sources = sorted((HERE.parent / "van_classification_tensorflow").rglob("*.py"))
    for source in (*sources, HERE / "weights.py", Path(__file__)):
        digest.update(source.read_bytes())
    for library in _EXPORTERS:
        with contextlib.suppress(metadata.PackageNotFoundError):
            digest.update(f"{library} {metadata.version(library)}".encode())
    return digest.hexdigest()[:12]


def artefact(job: Job) -> Path:
    """The file that a contender runs, written by another process where it is not there yet."""
    what = DEPLOYED[job.name]
    if what.peer and what.precision != "int8":
        return onnx_file(job)
    if what.peer:
        tools = "-".join(f"{lib}{metadata.version(lib)}" for lib in ("nncf", "openvino"))
        key = f"{onnx_file(job).stem}-{tools}"
    else:
        key = _fingerprint()
    # A folder for each: an artefact of two files, too, is moved into place whole.
    folder = job.onnx_dir / f"{job.name}-{job.model}-batch{job.batch}-{key}"
    path = folder / f"{job.model}.{_ENDINGS[what.engine]}"
    if not path.exists():
        command = [sys.executable, __file__, job.name, "--write", str(path)]
        command += ["--model", job.model, "--batch", str(job.batch)]
        command += ["--onnx-dir", str(job.onnx_dir)]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return path


def file_size(path: Path) -> int:
    """In bytes; OpenVINO keeps the weights beside the graph."""
    files = {path, path.with_suffix(".bin")}
    return sum(file.stat().st_size for file in files if file.exists())


def write(job: Job, path: Path) -> None:
    """Writes the artefact of a contender, alone in its folder."""
    job.onnx_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=job.onnx_dir) as scratch:
        folder = Path(scratch) / "artefact"
        folder.mkdir()
        make = _quantise_peer if DEPLOYED[job.name].peer else export_ours
        make(job, folder / path.name)
        folder.rename(path.parent)


def _quantise_peer(job: Job, path: Path) -> None:
    """NNCF as it comes, on the ONNX file of transformers."""
    import nncf
    import openvino as ov

    count = -(-CALIBRATION_IMAGES // job.batch) * job.batch
    images = np.random.default_rng(1).standard_normal(
        (count, 3, IMAGE_SIZE, IMAGE_SIZE), np.float32
    )
    batches = list(images.reshape(-1, job.batch, *images.shape[1:]))
    model = ov.Core().read_model(onnx_file(job))
    ov.save_model(nncf.quantize(model, nncf.Dataset(batches)), path)


def export_ours(job: Job, path: Path) -> None:
    """`export`, from a weight file, as `van export` does it.

    Pictures reach from -1 to 1 and the contenders' noise further, so int8 clips it: more of an
    error than the peer's, which is calibrated on such noise, but the same work.
    """
    package_on_path()
    from PIL import Image
    from safetensors.numpy import save_file

    from van_classification_tensorflow.export.export import export
    from van_classification_tensorflow.spec.architecture import Architecture
    from van_classification_tensorflow.spec.config import CONFIGURATIONS

    config = CONFIGURATIONS[job.model]
    sizes = Architecture(config.embed_dims, config.hidden_dims, config.depths, 3, NUM_CLASSES)
    rng = np.random.default_rng(1)
    with tempfile.TemporaryDirectory() as scratch:
        weights = Path(scratch) / f"{job.model}.safetensors"
        save_file({n: seeded(n, spec.shape) for n, spec in sizes.tensors().items()}, weights)
        pictures = Path(scratch) / "pictures"
        pictures.mkdir()
        for i in range(2 * CALIBRATION_IMAGES):  # the other half is compared on
            pixels = rng.integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), np.uint8)
            Image.fromarray(pixels).save(pictures / f"{i:02}.png")
        what = DEPLOYED[job.name]
        export(
            weights,
            path,
            format=what.engine,
            precision=what.precision,
            batch_size=job.batch,
            image_size=IMAGE_SIZE,
            data=pictures,
            agreement=0.0,  # random weights have no best class; `deployment.py` compares logits
        )


# --- Steps ---


def precision_of(what: Deployed) -> str:
    """What it computes in: float32 where the processor has no bfloat16."""
    if what.precision != "bfloat16":
        return what.precision
    import openvino as ov

    able = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if "BF16" in able else "float32"


def _openvino_request(job: Job, path: Path, **more: Any) -> tuple[Any, list[np.ndarray]]:
    """With the settings of this package's `runtimes`, for the peers and for the profiles."""
    import openvino as ov

    settings: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": job.threads,
    }
    hint = {"float32": "f32", "bfloat16": "bf16"}.get(precision_of(DEPLOYED[job.name]))
    if hint:  # beside int8 OpenVINO chooses what the processor does best
        settings["INFERENCE_PRECISION_HINT"] = hint
    settings |= more
    request = ov.Core().compile_model(path, "CPU", settings).create_infer_request()
    return request, [_images(job)]


def _onnx_session(job: Job, path: Path, profile: str | None = None) -> tuple[Any, dict[str, Any]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = job.threads
    if profile:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session, {session.get_inputs()[0].name: _images(job)}


def _images(job: Job) -> np.ndarray:
    """In the layout of the contender's model."""
    images = fixed_images(job.batch)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if DEPLOYED[job.name].peer else images


def peer_step(job: Job, path: Path) -> Step:
    if DEPLOYED[job.name].engine == "onnx":
        session, feed = _onnx_session(job, path)
        return lambda: session.run(None, feed)[0]
    request, inputs = _openvino_request(job, path)

    def infer() -> np.ndarray:
        request.infer(inputs, share_inputs=True)
        return request.get_output_tensor(0).data

    return infer


def artefact_step(job: Job, path: Path) -> Step:
    package_on_path()
    from van_classification_tensorflow.engines.runtimes import open_runtime

    runtime = open_runtime(path, job.threads)
    images = _images(job)
    return lambda: runtime(images)


def keras_step(job: Job) -> Step:
    """The fused model on a backend of Keras, called the way a user of Keras calls it."""
    backend = DEPLOYED[job.name].engine.removeprefix("keras_")
    os.environ["KERAS_BACKEND"] = backend
    if backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(job.threads)
        tf.config.threading.set_inter_op_parallelism_threads(job.threads)
    elif hasattr(os, "sched_setaffinity"):  # Keras hands OpenVINO no number of threads
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.threads])
    model = keras_model(job.model)
    from van_classification_tensorflow.model.fused import fuse

    fused = fuse(model)
    images = fixed_images(job.batch)
    return lambda: fused.predict_on_batch(images)


def measure(job: Job, seconds: float, iterations: int | None) -> dict[str, Any]:
    """Builds the contender, takes its logits, and times it."""
    what = DEPLOYED[job.name]
    path = artefact(job) if what.engine in _ENDINGS else None
    if path is None:
        step = keras_step(job)
    else:
        step = peer_step(job, path) if what.peer else artefact_step(job, path)
    check = np.array(step())[:, :CHECKED_LOGITS]
    return {
        "name": job.name,
        "precision": precision_of(what),
        "bytes": path and file_size(path),
        **time_steps(step, seconds, iterations),
        "versions": versions(what.libraries),
        "check": [float(value) for value in check.ravel()],
    }


# --- Where the time goes ---


class Node(NamedTuple):
    """One operator of a model, run once."""

    name: str
    operator: str
    kernel: str
    ms: float


def profile(job: Job) -> list[dict[str, Any]]:
    """`by_operator` of as many steps as are profiled."""
    path = artefact(job)
    if DEPLOYED[job.name].engine == "openvino":
        return by_operator(_profile_openvino(job, path))
    with tempfile.TemporaryDirectory() as scratch:
        session, feed = _onnx_session(job, path, profile=f"{scratch}/profile")
        for _ in range(WARMUP_STEPS + PROFILED_STEPS):
            session.run(None, feed)
        events = json.loads(Path(session.end_profiling()).read_text())
    return by_operator(onnx_steps(events)[WARMUP_STEPS:])


def _profile_openvino(job: Job, path: Path) -> Iterator[list[Node]]:
    request, inputs = _openvino_request(job, path, PERF_COUNT=True)
    for step in range(WARMUP_STEPS + PROFILED_STEPS):
        request.infer(inputs, share_inputs=True)
        if step >= WARMUP_STEPS:
            yield [
                Node(
                    one.node_name, one.node_type, one.exec_type, 1e3 * one.real_time.total_seconds()
                )
                for one in request.get_profiling_info()
                if one.real_time  # else it was fused into another
            ]


def onnx_steps(events: Iterable[dict[str, Any]]) -> list[list[Node]]:
    """The steps that ONNX Runtime's profiler wrote."""
    steps: list[list[Node]] = []
    # A step's own event starts with its first operator, or before it.
    for event in sorted(events, key=lambda one: (one["ts"], one["name"] != "model_run")):
        if event["name"] == "model_run":
            steps.append([])
        elif event["name"].endswith("_kernel_time"):
            ms = 1e-3 * event["dur"]
            steps[-1].append(Node(event["name"], event["args"]["op_name"], "", ms))
    return steps


def by_operator(steps: Iterable[list[Node]]) -> list[dict[str, Any]]:
    """The step of median length: `operator`, `kernel`, `ms`, `nodes`; the longest first."""
    ordered = sorted(steps, key=lambda step: sum(node.ms for node in step))
    kinds: dict[tuple[str, str], list[Node]] = {}
    for node in ordered[len(ordered) // 2]:
        kinds.setdefault((node.operator, node.kernel), []).append(node)
    rows = [
        {
            "operator": operator,
            "kernel": kernel,
            "ms": sum(n.ms for n in nodes),
            "nodes": len(nodes),
        }
        for (operator, kernel), nodes in kinds.items()
    ]
    return sorted(rows, key=lambda row: -row["ms"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=DEPLOYED)
    parser.add_argument("--model", choices=MODELS, default=MODELS[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--mode", choices=("inference",), default="inference")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=3.0, help="time to fill with steps")
    parser.add_argument("--iterations", type=int, help="number of steps; overrides --seconds")
    parser.add_argument("--onnx-dir", type=Path, default=ONNX_DIR)
    parser.add_argument("--operators", action="store_true", help="time by operator, nothing else")
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)  # the child of one
    args = parser.parse_args()
    require(parser, args.name, DEPLOYED[args.name].libraries)
    if args.operators and DEPLOYED[args.name].engine not in ("onnx", "openvino"):
        parser.error(f"{args.name}: its engine does not tell the time of its operators")
    job = Job(args.name, args.model, args.batch, args.mode, args.threads, args.onnx_dir)
    os.environ["OMP_NUM_THREADS"] = str(job.threads)  # read when the libraries load
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    with contextlib.redirect_stdout(sys.stderr):  # libraries chat; stdout is the result
        if args.write:
            return write(job, args.write)
        result: Any
        result = profile(job) if args.operators else measure(job, args.seconds, args.iterations)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
