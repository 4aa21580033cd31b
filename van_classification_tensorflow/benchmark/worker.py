"""One launch of `van benchmark`, in a process of its own: opens a model, times it, says so in JSON.

    python -m van_classification_tensorflow.benchmark.worker JOB

JOB is a JSON object: `path` of a model or exported file; `engine` for models, as `van benchmark`
has it; `threads` or null; `started`, the parent's `time.perf_counter()`, which is one clock for all
processes; and, unless the model is only to be looked at, `batch_size`, `image_size` (height,
width) and `seconds`.
"""

from __future__ import annotations

import json
import os
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import keras
    import numpy as np

WARM_UP_STEPS = 3
MIN_STEPS = 10

# Module of what computes -> its distribution; the versions of those that were imported are kept.
_LIBRARIES = {
    "keras": "keras",
    "tensorflow": "tensorflow",
    "jax": "jax",
    "torch": "torch",
    "onnxruntime": "onnxruntime",
    "openvino": "openvino",
    "ai_edge_litert": "ai-edge-litert",
    "numpy": "numpy",
}


@dataclass(frozen=True)
class Opened:
    """A model that is ready to run.

    Args:
        step: Images as they are described here -> scores or features, as a NumPy array.
        engine: What runs it: "fused tensorflow", "keras jax", "onnx", ...
        precision: What it computes in.
        input: Type of the images, "float32" or "uint8".
        batch_size: The only one it takes; None: any.
        image_size: The only (height, width) it takes; None: any.
        usual_size: (height, width) it was made for.
        channels: Of the images.
        channels_first: Whether the images are (batch, channels, height, width).
        architecture: Fields of `spec.architecture.Architecture`; None where it is not known.
        parameters: Counted in the model, where the architecture is not known.
    """

    step: Callable[[np.ndarray], Any]
    engine: str
    precision: str
    input: str
    batch_size: int | None
    image_size: tuple[int, int] | None
    usual_size: tuple[int, int]
    channels: int
    channels_first: bool = False
    architecture: dict[str, Any] | None = None
    parameters: int | None = None

    def describe(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "step"}


# --- Opening ---


def open_job(path: Path, engine: str, threads: int | None) -> Opened:
    """Opens an exported file, a `.keras` model or a weight file.

    Raises:
        ValueError: It is none of these, or is refused.
        OSError: It cannot be opened.
        ModuleNotFoundError: The runtime it needs is not installed.
    """
    from ..weights.address import address_of

    if threads is not None:  # read when the libraries load
        os.environ["OMP_NUM_THREADS"] = str(threads)
    if address_of(path).kind == "exported":
        return _open_exported(path, threads)
    if engine in ("fused", "keras"):
        return _open_model(path, engine, threads)
    return _open_weights(path, engine, threads)


def _open_exported(path: Path, threads: int | None) -> Opened:
    from ..engines.runtimes import open_runtime

    runtime = open_runtime(path, threads)
    about = runtime.about
    known = about is not None and about.preprocessing
    side = known.input_size if known else 224
    return Opened(
        runtime,
        engine=runtime.format,
        precision="?" if about is None else about.precision,
        input=runtime.dtype.name,
        batch_size=runtime.batch_size,
        image_size=runtime.image_size,
        usual_size=runtime.image_size or (side, side),
        channels=runtime.channels,
        architecture=None if about is None else asdict(about.architecture),
    )


def _open_weights(path: Path, engine: str, threads: int | None) -> Opened:
    """Weights on an engine that has proved itself, as `van predict` would run many pictures."""
    from ..engines.of_weights import Model, choose_engine
    from ..weights.pretrained import open_pretrained

    opened = open_pretrained(path)
    assert opened is not None  # noqa: S101 - a path is given
    sizes, preprocessing = opened.weights.architecture, opened.card.preprocessing
    side = 224 if preprocessing is None else preprocessing.input_size

    def keras() -> Any:
        raise ModuleNotFoundError("no engine but Keras: --engine fused or keras")

    model = Model(opened.weights.tensors, sizes, side, views=1)
    chosen = choose_engine(model, keras, engine, pictures=10_000, threads=threads)
    return Opened(
        chosen.engine,
        engine=chosen.name,
        precision=chosen.precision,
        input="float32",
        batch_size=None,
        image_size=None,
        usual_size=(side, side),
        channels=sizes.in_chans,
        architecture=asdict(sizes),
    )


def _open_model(path: Path, engine: str, threads: int | None) -> Opened:
    backend = _backend(threads)
    from ..model.fused import FusedBlock, fuse
    from ..model.load import architecture
    from ..model.van import VAN

    model = _read_model(path)
    sizes = asdict(architecture(model)) if isinstance(model, VAN) else None
    parameters = model.count_params()
    precision = model.dtype_policy.compute_dtype
    if backend == "openvino":
        precision = _openvino_precision()
    if any(isinstance(layer, FusedBlock) for layer in model._flatten_layers()):
        engine = "fused"
    elif engine == "fused":
        model = fuse(model)
    channels_first = getattr(model, "data_format", "channels_last") == "channels_first"
    shape = model.input_shape
    if not isinstance(shape, tuple) or len(shape) != 4:
        raise ValueError(f"{path} is no model of images: its input is {shape}")
    *size, channels = shape[1:] if not channels_first else (*shape[2:], shape[1])
    fixed = None if None in size else (size[0], size[1])
    side = getattr(getattr(model, "preprocessing", None), "input_size", 224)
    return Opened(
        model.predict_on_batch,
        engine=f"{engine} {backend}",
        precision=precision,
        input="float32",
        batch_size=shape[0],
        image_size=fixed,
        usual_size=fixed or (side, side),
        channels=channels,
        channels_first=channels_first,
        architecture=sizes,
        parameters=parameters,
    )


def _backend(threads: int | None) -> str:
    """The backend of Keras, and "gpu" where it has one; held to `threads` before it starts."""
    import keras

    from ..engines.keras import on_accelerator

    backend = keras.backend.backend()
    if threads is not None and backend == "tensorflow":
        import tensorflow as tf

        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(threads)
    elif threads is not None and backend == "torch":
        import torch

        torch.set_num_threads(threads)
    elif threads is not None and hasattr(os, "sched_setaffinity"):
        # Keras has no such option for JAX and OpenVINO: they take as many threads as the process
        # has cores.
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    return f"{backend} gpu" if on_accelerator() else backend


def _openvino_precision() -> str:
    """What OpenVINO computes in where nobody asks, and Keras does not."""
    from ..engines.openvino import the_core

    able = the_core("the Keras backend openvino").get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return "bfloat16" if "BF16" in able else "float32"


def _read_model(path: Path) -> keras.Model:
    if path.suffix == ".keras":
        import keras

        if not path.is_file() or not zipfile.is_zipfile(path):  # a pipe would never end
            raise ValueError(f"{path} is no .keras file")
        return keras.saving.load_model(path, compile=False)
    from ..model.build import van_of
    from ..weights.pretrained import open_pretrained

    opened = open_pretrained(path)
    assert opened is not None  # noqa: S101 - a path is given
    return van_of(opened)


# --- Measuring ---


def images_for(opened: Opened, batch_size: int, image_size: tuple[int, int]) -> np.ndarray:
    """The same images in every launch, in the type and the axes that the model takes."""
    import numpy as np

    shape = (batch_size, *image_size, opened.channels)
    images: np.ndarray = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    if opened.input != "uint8":
        images = (images / np.float32(127.5) - np.float32(1)).astype(np.float32)
    return np.ascontiguousarray(images.transpose(0, 3, 1, 2)) if opened.channels_first else images


def step_times(
    step: Callable[[], Any], seconds: float, clock: Callable[[], float] = time.perf_counter
) -> list[float]:
    """Seconds of each call, for `seconds` in all and `MIN_STEPS` calls at least."""
    times: list[float] = []
    stop = clock() + seconds
    while len(times) < MIN_STEPS or clock() < stop:
        began = clock()
        step()
        times.append(clock() - began)
    return times


def figures(times: list[float], batch_size: int) -> dict[str, float]:
    """Percentiles (ms, interpolated) of the seconds of each call, and images a second over all."""
    import numpy as np

    return {
        "latency_p50_ms": 1e3 * float(np.percentile(times, 50)),
        "latency_p99_ms": 1e3 * float(np.percentile(times, 99)),
        "images_per_second": batch_size * len(times) / sum(times),
        "steps": len(times),
    }


def peak_bytes() -> int | None:
    """The largest memory this process has had; None on systems that do not say."""
    status = Path("/proc/self/status")
    if status.exists():
        # On Linux `getrusage` also counts what the parent held when it started this process.
        for line in status.read_text(encoding="utf-8").splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    try:
        import resource
    except ModuleNotFoundError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def work(job: Mapping[str, Any]) -> dict[str, Any]:
    """Does what `job` says; the result has `Opened`'s fields, and what was measured."""
    base = peak_bytes()
    began = time.perf_counter()
    opened = open_job(Path(job["path"]), job["engine"], job["threads"])
    load = time.perf_counter() - began
    found = opened.describe()
    if "seconds" not in job:
        return found

    images = images_for(opened, job["batch_size"], tuple(job["image_size"]))
    opened.step(images)
    found |= {"load_s": load, "cold_start_s": time.perf_counter() - job["started"]}

    def step() -> None:
        opened.step(images)

    warm = time.perf_counter() + job["seconds"] / 4
    steps = 0
    while steps < WARM_UP_STEPS or time.perf_counter() < warm:
        step()
        steps += 1
    cpu, wall = time.process_time(), time.perf_counter()
    times = step_times(step, job["seconds"])
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    found |= figures(times, job["batch_size"])
    found |= {
        "seconds": job["seconds"],
        "cores_used": cpu / wall,
        "base_bytes": base,
        "peak_bytes": peak_bytes(),
    }
    found["versions"] = {
        name: metadata.version(name) for module, name in _LIBRARIES.items() if module in sys.modules
    }
    return found


def main(arguments: list[str]) -> None:
    """Prints one JSON object: the result, or `error` for what the user can mend."""
    # Libraries chat on the standard output, C++ ones past Python's: theirs goes to the other.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    result: dict[str, Any]
    try:
        result = work(json.loads(arguments[0]))
    except ModuleNotFoundError as error:
        result = {"error": str(error), "missing": True}
    except (ValueError, OSError) as error:
        result = {"error": str(error), "missing": False}
    with answer:
        json.dump(result, answer)


if __name__ == "__main__":
    main(sys.argv[1:])
