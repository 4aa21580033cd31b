"""What a model costs: parameters, multiply-accumulates, and, measured, time and memory.

`benchmark` runs every measurement in a process of its own (`benchmark/worker.py`), since engines
that share one disturb each other, and several times, the contenders taking turns.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console

from ..export.convert import write_safetensors
from ..spec.architecture import Architecture, TensorSpec
from ..spec.config import CONFIGURATIONS, min_image_size
from ..support.console import pictures_bar, say
from ..support.files import file_bytes
from ..support.text import printable
from ..weights.address import address_of
from ..weights.cache import cached_path
from ..weights.hub import local
from .request import ENGINES, BenchmarkRequest

if TYPE_CHECKING:
    import keras

    from ..model.van import VAN

_LAUNCH_SECONDS = 3600  # a process that has not answered by then never will

Setting = tuple[int, tuple[int, int]]
"""Batch size, and height and width in pixels."""


# --- Counted ---


def count_macs(model: VAN, image_size: int | tuple[int, int] = 224) -> int:
    """Multiply-accumulates of every convolution and linear layer for one image.

    The convention of the paper's Table 2 ("FLOPs"): biases, norms, GELU and the elementwise
    products of attention and layer scale are not counted.

    Args:
        model: A VAN.
        image_size: Side, or (height, width), in pixels.
    """
    from ..model.van import VAN

    if not isinstance(model, VAN):
        raise ValueError(f"`model` must be a VAN. Received: {type(model).__name__}")
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    shape = (1, height, width, model.in_chans)
    macs = 0
    for layer in model.layers[1:]:
        if layer.name == "to_channels_last":
            continue
        shape = layer.compute_output_shape(shape)
        # All kernels of one such layer run at its output positions, and every element of a
        # kernel is used once a position: k*k*C_in*C_out, k*k*C depthwise, C_in*C_out.
        elements = sum(
            math.prod(variable.shape)
            for variable in layer.trainable_variables + layer.non_trainable_variables
            if len(variable.shape) >= 2
        )
        macs += elements * math.prod(shape[1:-1])
    return macs


def count_parameters(model: keras.Model) -> tuple[int, int]:
    """(parameters, BatchNorm statistics); frozen or not, a parameter is a parameter."""
    total = model.count_params()
    statistics = sum(
        math.prod(v.shape) for v in model.weights if v.name in ("moving_mean", "moving_variance")
    )
    return total - statistics, statistics


# --- Measured ---


@dataclass(frozen=True)
class Measurement:
    """One contender at one batch size and image size. MB are 10^6 bytes.

    Speed is of the best launch, the one with the lowest median: whatever else the machine does
    can only slow a launch down. So it is with the times to load and to start, of which the
    shortest of all launches counts; of memory it is the largest.

    Args:
        weights: As it was asked for.
        engine: What ran it: "fused tensorflow", "keras jax", "onnx", "openvino", ...
        precision: What it computes in; "?" for a file that does not say.
        batch_size: Images in a call.
        height: Of the images, in pixels.
        width: Of the images, in pixels.
        threads: What the engine was held to; None: its own choice.
        parameters: Of the VAN (without the statistics of its norms), also where they are folded;
            of a file that does not say which VAN it is None, of another Keras model all weights.
        macs: Multiply-accumulates for one image, as in `count_macs`; None where not known.
        file_bytes: Size of what was loaded.
        latency_p50_ms: Half of the calls took less.
        latency_p99_ms: 99 of 100 calls took less; of fewer calls than 100, near the slowest.
        images_per_second: Over all calls.
        peak_mb: The most memory the process had; None where the system does not say.
        above_base_mb: The same less what the interpreter has before any library.
        cold_start_s: From starting the process to the first answer; the file was read before, so
            it is in the memory of the system.
        load_s: From there on where the library is not yet imported to the opened model.
        cores_used: Processor time over wall time; far below the threads, something else had the
            cores, or the engine did not use them.
        spread: The slowest launch's median over the best one's.
        launches: What each launch said; `launches.json` has them.
    """

    weights: str
    engine: str
    precision: str
    batch_size: int
    height: int
    width: int
    threads: int | None
    parameters: int | None
    macs: int | None
    file_bytes: int
    latency_p50_ms: float
    latency_p99_ms: float
    images_per_second: float
    peak_mb: float | None
    above_base_mb: float | None
    cold_start_s: float
    load_s: float
    cores_used: float
    spread: float
    launches: tuple[dict[str, Any], ...]


class UnsteadyError(RuntimeError):
    """Launches of the same thing differ too much to be reported; says which.

    Attributes:
        steady: The measurements of all others, which can be.
    """

    def __init__(self, message: str, steady: Sequence[Measurement] = ()):
        super().__init__(message)
        self.steady = tuple(steady)


@dataclass(frozen=True)
class Contender:
    """A model that is timed in a process of its own."""

    weights: str
    path: Path
    engine: str
    about: dict[str, Any]
    """What the worker says of it."""

    @property
    def architecture(self) -> Architecture | None:
        sizes: Any = self.about["architecture"]
        if sizes is None:
            return None
        fields: dict[str, Any] = {
            k: tuple(v) if isinstance(v, list) else v for k, v in sizes.items()
        }
        return Architecture(**fields)

    @property
    def name(self) -> str:
        return f"{self.weights} ({self.about['engine']})"


def benchmark(
    weights: str | os.PathLike | Sequence[str | os.PathLike],
    *,
    batch_sizes: Sequence[int] = (1,),
    image_sizes: Sequence[int | tuple[int, int] | None] = (None,),
    threads: int | None = None,
    rounds: int = 3,
    seconds: float = 2.0,
    engines: Sequence[str] = ("fused",),
    random_weights: bool = False,
    max_spread: float = 1.25,
    console: Console | None = None,
) -> list[Measurement]:
    """Measures models and exported files beside each other, at every size asked for.

    A file of a fixed batch or image size is measured at that only; the others are skipped.

    Args:
        weights: Names of the catalogue whose weights are here, weight files, `.keras` models and
            exported files; the contenders.
        batch_sizes: Images in a call.
        image_sizes: Sides, or (height, width), in pixels; None: what each was made for.
        threads: What every engine is held to; by default each decides. Keras on JAX and OpenVINO
            is held to as many cores, on Linux only.
        rounds: Launches of each contender at each size, at least two; they take turns.
        seconds: Timed calls in each launch, after a warm-up; ten calls at least.
        engines: How models are run: "fused" (through `fuse` first), "keras" as they are, or as
            `Classifier` runs weights: "numpy", "onnxruntime", "openvino", "litert" or "auto".
            Exported files have one of their own.
        random_weights: Give names of the catalogue random weights, which need not be here:
            the speed does not depend on their values.
        max_spread: Largest ratio of a contender's slowest to its best launch, by their medians.
        console: Where a bar and notes go; None: nowhere.

    Raises:
        UnsteadyError: A ratio is larger than `max_spread`; has the figures of the others.
        ValueError: An argument is not allowed, or there is nothing to run.
        OSError: A file cannot be opened, or a launch crashed.
        ModuleNotFoundError: A runtime is not installed.
    """
    request = BenchmarkRequest(
        weights=_named(weights),
        batch_sizes=tuple(batch_sizes),
        image_sizes=tuple(image_sizes),
        threads=threads,
        rounds=rounds,
        seconds=seconds,
        engines=(engines,) if isinstance(engines, str) else tuple(engines),
        random_weights=random_weights,
        max_spread=max_spread,
    )
    return measure(request, console or Console(quiet=True))


def measure(request: BenchmarkRequest, console: Console) -> list[Measurement]:
    """As `benchmark`, which says what it raises; the output is for whoever calls."""
    named, threads = request.weights, request.threads
    with tempfile.TemporaryDirectory(prefix="van-benchmark-") as folder:
        paths = {name: path_of(name, request.random_weights, Path(folder)) for name in named}
        say(console, f"Looking at {', '.join(map(printable, named))}")
        contenders = [
            Contender(name, path, engine, launch(name, path, engine, threads))
            for name, path in paths.items()
            # What is exported has its own engine; the option is for models.
            for engine in (
                dict.fromkeys(request.engines)
                if address_of(path).kind == "weights"
                else ENGINES[:1]
            )
        ]
        contenders = list({one.name: one for one in contenders}.values())
        return _measure(plan(contenders, request, console), request, console)


def _named(weights: Any) -> tuple[str, ...]:
    several = [weights] if isinstance(weights, (str, os.PathLike)) else list(weights)
    return tuple(
        # A path is no name of the catalogue, whatever it is called.
        text if one is text or address_of(text).is_path else os.path.abspath(one)
        for one in several
        for text in [os.fspath(one)]
    )


def path_of(name: str, random_weights: bool, folder: Path) -> Path:
    """The file to load; of random weights one that is written to `folder`."""
    address = address_of(name)
    if address.is_path:
        if not os.path.exists(name):
            raise FileNotFoundError(f"{printable(name)}: there is no such file")
        return Path(name)
    if random_weights and name in CONFIGURATIONS:
        return _write_random(folder / f"{name}.safetensors", name, 1000)
    if address.kind == "hub":
        return Path(local(name))
    record = address.record()
    if random_weights and record.configuration is not None:
        target = folder / f"{name}.safetensors"
        return _write_random(target, record.configuration, record.num_classes or None)
    found = cached_path(record)
    if found is None:
        raise FileNotFoundError(
            f"{record.name} is not here: van weights download {record.name}, or --random-weights, "
            "as the speed does not depend on the values"
        )
    return found


def _write_random(path: Path, configuration: str, num_classes: int | None) -> Path:
    """Weights that keep the activations near 1: very small numbers would slow a processor down."""
    config = CONFIGURATIONS[configuration]
    sizes = Architecture(
        tuple(config.embed_dims), tuple(config.hidden_dims), tuple(config.depths), 3, num_classes
    )
    generator = np.random.default_rng(0)

    def values(name: str, spec: TensorSpec) -> np.ndarray:
        if spec.kind != "vector":
            scale = np.float32(1 / math.sqrt(math.prod(spec.shape[1:])))
            return scale * generator.standard_normal(spec.shape, dtype=np.float32)
        value = 0.01 if "layer_scale" in name else 0.0 if name.endswith(("bias", "mean")) else 1.0
        return np.full(spec.shape, value, np.float32)

    write_safetensors(path, {name: values(name, s) for name, s in sizes.tensors().items()}, {})
    return path


def plan(
    contenders: Sequence[Contender], request: BenchmarkRequest, console: Console
) -> dict[Setting, list[Contender]]:
    """Who runs at which size; what a contender's fixed size forbids is left out, and said.

    Raises:
        ValueError: A size is too small for a model, or nobody runs at any.
    """
    sizes: Any = request.image_sizes  # the request has made pairs of them
    todo: dict[Setting, list[Contender]] = {}
    left_out: dict[str, list[str]] = {}
    for batch in dict.fromkeys(request.batch_sizes):
        for asked in dict.fromkeys(sizes):
            for one in contenders:
                size = asked or tuple(one.about["usual_size"])
                _check_large_enough(one, size)
                fixed = one.about["batch_size"], one.about["image_size"]
                fits = fixed[0] in (None, batch) and (fixed[1] is None or tuple(fixed[1]) == size)
                if not fits:
                    left_out.setdefault(_only(one), []).append(setting_words((batch, size)))
                elif one not in (there := todo.setdefault((batch, size), [])):
                    there.append(one)
    for only, skipped in left_out.items():
        # Twice where two sizes that were asked for are the same for it.
        text = f"{only}; skipped: {', '.join(dict.fromkeys(skipped))}"
        if not todo:
            raise ValueError(f"nothing to run: {text}")
        say(console, text)
    return todo


def _only(one: Contender) -> str:
    batch, size = one.about["batch_size"], one.about["image_size"]
    fixed = [f"batch {batch}"] if batch else []
    fixed += [f"{size[0]} x {size[1]}"] if size else []
    return f"{one.weights} takes {' at '.join(fixed)} only"


def setting_words(setting: Setting) -> str:
    batch, (height, width) = setting
    return f"batch {batch} at {height} x {width}"


def _check_large_enough(one: Contender, size: tuple[int, int]) -> None:
    if one.architecture is not None:
        least = min_image_size(len(one.architecture.depths))
        if min(size) < least:
            raise ValueError(
                f"`image_sizes` must be at least {least} for {one.weights}. Received: {size}"
            )


def _measure(
    todo: Mapping[Setting, Sequence[Contender]], request: BenchmarkRequest, console: Console
) -> list[Measurement]:
    rounds, threads = request.rounds, request.threads
    found: list[Measurement] = []
    with pictures_bar(console) as bar:
        task = bar.add_task("", total=rounds * sum(map(len, todo.values())), rate="")
        for setting, contenders in todo.items():
            batch, size = setting
            launches: dict[str, list[dict[str, Any]]] = {one.name: [] for one in contenders}
            job = {"batch_size": batch, "image_size": size, "seconds": request.seconds}
            for _ in range(rounds):
                for one in contenders:
                    bar.update(
                        task, description=f"{printable(one.name)}, {setting_words((batch, size))}"
                    )
                    said = launch(one.weights, one.path, one.engine, threads, **job)
                    launches[one.name].append(said)
                    bar.advance(task)
            found += [summarise(one, setting, threads, launches[one.name]) for one in contenders]
    check_steady(found, request.max_spread)
    return found


def launch(
    name: str, path: Path, engine: str, threads: int | None, **measure: Any
) -> dict[str, Any]:
    """One process of `benchmark.worker`, which only looks at the model without `measure`.

    Raises:
        ValueError: The worker refuses the file, which `name` names once.
        ModuleNotFoundError: A runtime is not installed.
        ChildProcessError: It crashed.
    """
    # The package that runs here, wherever it was found; and not what lies in the current folder.
    search = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    environment = {
        "TF_CPP_MIN_LOG_LEVEL": "3",
        **os.environ,
        "PYTHONPATH": os.pathsep.join(filter(None, search)),
    }
    command = [sys.executable, "-P", "-m", f"{__package__}.worker"]
    job = {"path": str(path), "engine": engine, "threads": threads, **measure}
    job["started"] = time.perf_counter()
    try:
        done = subprocess.run(  # noqa: S603 - our own module
            [*command, json.dumps(job)],
            capture_output=True,
            text=True,
            errors="replace",
            env=environment,
            timeout=_LAUNCH_SECONDS,
        )
    except subprocess.TimeoutExpired:
        raise ChildProcessError(f"{name}: no answer in {_LAUNCH_SECONDS} s") from None
    if done.returncode:
        tail = "\n".join(done.stderr.strip().splitlines()[-5:])
        killed = f"killed by signal {-done.returncode}, perhaps for want of memory"
        why = killed if done.returncode < 0 else "failed"
        raise ChildProcessError(f"{printable(name)}: the launch {why}\n{tail}".rstrip())
    result = json.loads(done.stdout)
    if "error" in result:
        kind = ModuleNotFoundError if result["missing"] else ValueError
        shown, why = printable(name), result["error"]
        raise kind(why if why.startswith(shown) else f"{shown}: {why}")
    return result


def summarise(
    one: Contender, setting: Setting, threads: int | None, launches: Sequence[dict[str, Any]]
) -> Measurement:
    """The figures of one contender's launches, as `Measurement` says."""
    batch, (height, width) = setting
    best = min(launches, key=lambda launch: launch["latency_p50_ms"])
    sizes = one.architecture
    parameters, macs = one.about["parameters"], None
    if sizes is not None:
        statistics = (".running_mean", ".running_var")
        tensors = sizes.tensors().items()
        parameters = sum(math.prod(s.shape) for n, s in tensors if not n.endswith(statistics))
        macs = sizes.macs(height, width)
    peak = above = None
    if all(launch["peak_bytes"] is not None for launch in launches):
        peak = max(launch["peak_bytes"] for launch in launches) / 1e6
        above = max(launch["peak_bytes"] - launch["base_bytes"] for launch in launches) / 1e6
    return Measurement(
        weights=one.weights,
        engine=one.about["engine"],
        precision=one.about["precision"],
        batch_size=batch,
        height=height,
        width=width,
        threads=threads,
        parameters=parameters,
        macs=macs,
        file_bytes=file_bytes(one.path),
        latency_p50_ms=best["latency_p50_ms"],
        latency_p99_ms=best["latency_p99_ms"],
        images_per_second=best["images_per_second"],
        peak_mb=peak,
        above_base_mb=above,
        cold_start_s=min(launch["cold_start_s"] for launch in launches),
        load_s=min(launch["load_s"] for launch in launches),
        cores_used=best["cores_used"],
        spread=max(launch["latency_p50_ms"] for launch in launches) / best["latency_p50_ms"],
        launches=tuple(launches),
    )


def check_steady(found: Sequence[Measurement], max_spread: float) -> None:
    """Raises `UnsteadyError` where launches of one contender differ by more than `max_spread`."""
    unsteady = [
        f"  {_name(one)}, {setting_words((one.batch_size, (one.height, one.width)))}: medians of "
        f"{', '.join(format(launch['latency_p50_ms'], '.2f') for launch in one.launches)} ms, "
        f"slowest over best {one.spread:.2f}"
        for one in found
        if one.spread > max_spread
    ]
    if unsteady:
        others = " of these" if len(unsteady) < len(found) else ""
        raise UnsteadyError(
            f"no figures{others}: launches differ by more than {max_spread:g} times\n"
            + "\n".join(unsteady)
            + "\nClose other programs, set --threads to no more than the cores that are free, "
            "measure longer (--seconds), or allow more (--max-spread)",
            [one for one in found if one.spread <= max_spread],
        )


def _name(one: Measurement) -> str:
    return f"{printable(one.weights)} ({one.engine})"
