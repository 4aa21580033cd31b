"""A graph that is made in memory, run by ONNX Runtime, OpenVINO or LiteRT on every core.

Pictures go through it one at a time, in programs of a fixed size: these are a tenth faster than
programs for any size, and several pictures at once are several threads, each with a picture and a
core of its own, which is faster than one batch on all cores (VAN-B0, 224 x 224, two cores: 8.5 ms
a picture against 10.3). A single picture has a program that shares it among all cores.

Nothing is kept on the disk: graph and program of VAN-B0 are made in a tenth of a second by ONNX
Runtime and in half a second by OpenVINO. LiteRT's take TensorFlow's converter many seconds.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from queue import Empty, LifoQueue, SimpleQueue
from typing import Any

import numpy as np

from ..support.checks import at_least_or_none, check_choice
from ..support.cores import cores
from ..support.extras import missing
from ..support.text import one_line
from .openvino import the_core

RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO", "litert": "LiteRT"}
PRECISIONS = ("float32", "bfloat16", "int8")
OUTPUTS = ("logits", "features")  # in the order that they are given
_KEPT = 4  # programs; each holds a copy of the weights

Graph = Callable[[tuple[int, ...]], Any]


@dataclass(frozen=True)
class Program:
    """A graph that a runtime has compiled.

    Args:
        shapes: Of its outputs for one picture, (1, ...).
        run: One picture (1, H, W, C) -> its outputs; several threads may call it at once.
    """

    shapes: tuple[tuple[int, ...], ...]
    run: Callable[[np.ndarray], Sequence[np.ndarray]]

    def outputs(self, count: int) -> list[np.ndarray]:
        """Room for the answers to so many pictures."""
        return [np.empty((count, *shape[1:]), np.float32) for shape in self.shapes]


class GraphRunner:
    """Runs a graph on pictures of any number and size; threads may call it at once.

    Args:
        graph: The shape of one picture, (height, width, channels), or what else the graph takes
            -> a serialized ONNX model of one input, `images` (1, *shape), float32, and outputs
            (1, ...); for OpenVINO it may be a model of its own, for LiteRT it is the flatbuffer,
            of outputs named as in `OUTPUTS`. Called again for each shape.
        runtime: "onnxruntime", "openvino" or "litert".
        precision: Of the arithmetic: "float32"; "bfloat16" (OpenVINO on processors that have it);
            or "int8", for which `graph` gives one that is quantised.
        threads: CPU threads; by default one for each core of the process.

    Raises:
        ValueError: An argument is not allowed.
        ModuleNotFoundError: The runtime is not installed; says what to install.
    """

    def __init__(
        self,
        graph: Graph,
        runtime: str = "onnxruntime",
        precision: str = "float32",
        threads: int | None = None,
    ):
        check_choice("runtime", runtime, tuple(RUNTIMES))
        check_choice("precision", precision, PRECISIONS)
        if precision == "bfloat16" and runtime != "openvino":
            raise ValueError(
                f"`precision`='bfloat16' needs OpenVINO, on CPUs. Received: runtime={runtime!r}"
            )
        self.graph, self.runtime, self.precision = graph, runtime, precision
        self.threads = at_least_or_none("threads", threads, 1) or cores()
        self._begin()
        _runners.add(self)

    def _begin(self) -> None:
        """Without programs and threads: at first, and in a process that was forked from one."""
        compiler: Any = {"onnxruntime": _OnnxRuntime, "openvino": _OpenVINO, "litert": _LiteRT}
        self._compile = compiler[self.runtime](self.precision)
        self._programs: OrderedDict[tuple[tuple[int, ...], bool], Program] = OrderedDict()
        self._lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None  # its threads end when this object does

    def __call__(self, images: np.ndarray) -> list[np.ndarray]:
        """Runs the graph.

        Args:
            images: (N, H, W, C), float32.

        Returns:
            Of each output an array (N, ...), float32, of the caller's own.

        Raises:
            ValueError: The images have another number of axes or channels than the graph, or the
                runtime cannot make a program of it, or not run it.
        """
        images, together = _checked(images), self.threads > 1 and len(images) > 1
        program = self._program(images.shape[1:], together)
        if not together:
            return self._run(program, images)
        whole = program.outputs(len(images))

        def run(i: int) -> None:
            self._run(program, images[i : i + 1], [output[i : i + 1] for output in whole])

        list(self._threads().map(run, range(len(images))))
        return whole

    def both_ways(self, picture: np.ndarray) -> list[list[np.ndarray]]:
        """Its answers (1, ...) to one picture: alone, and twice together, by another program."""
        both = self(np.concatenate([picture, picture]))
        return [self(picture), [one[:1] for one in both], [one[1:] for one in both]]

    def submit(self, images: np.ndarray, output: int = 0) -> Future[np.ndarray]:
        """One output, computed in one of its threads, for who has more to do meanwhile.

        Args:
            images: (N, H, W, C), float32, which go through it one after the other.
            output: Which one.
        """
        images = _checked(images)
        program = self._program(images.shape[1:], self.threads > 1)
        return self._threads().submit(lambda: self._run(program, images)[output])

    def in_turn(self, images: np.ndarray, output: int = 0) -> np.ndarray:
        """As `submit`, in the caller's own thread, for who has as many threads as this runner."""
        images = _checked(images)
        return self._run(self._program(images.shape[1:], self.threads > 1), images)[output]

    def forget(self) -> None:
        """Lets all programs go, and makes them again when they are needed."""
        with self._lock:
            self._programs.clear()

    def _run(
        self, program: Program, images: np.ndarray, into: list[np.ndarray] | None = None
    ) -> list[np.ndarray]:
        """Picture after picture, in this thread."""
        found = program.outputs(len(images)) if into is None else into
        try:
            for i in range(len(images)):
                outputs = program.run(images[i : i + 1])
                for whole, output in zip(found, outputs, strict=True):
                    if np.shape(output) != (1, *whole.shape[1:]):
                        promised = (1, *whole.shape[1:])
                        raise ValueError(f"it gave {np.shape(output)}; it promised {promised}")
                    whole[i] = output[0]
        except Exception as error:  # each runtime has its own kinds
            raise ValueError(
                f"{RUNTIMES[self.runtime]} does not run the model: {one_line(error)}"
            ) from error
        return found

    def _program(self, shape: tuple[int, ...], together: bool) -> Program:
        """The program of a shape: for several pictures together, a thread each, or one on all."""
        key = shape, together
        with self._lock:
            if key not in self._programs:
                graph = self.graph(shape)
                try:
                    made = self._compile(graph, self.threads, together)
                except Exception as error:  # each runtime has its own kinds
                    raise ValueError(
                        f"{RUNTIMES[self.runtime]} refuses the model: {one_line(error)}"
                    ) from error
                if not all(shape[:1] == (1,) and min(shape) > 0 for shape in made.shapes):
                    raise ValueError(f"the graph must give outputs (1, ...): {made.shapes}")
                self._programs[key] = made
                while len(self._programs) > _KEPT:
                    self._programs.popitem(last=False)
            self._programs.move_to_end(key)
            return self._programs[key]

    def _threads(self) -> ThreadPoolExecutor:
        with self._lock:
            if self._pool is None:
                self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="infer")
            return self._pool


_runners: weakref.WeakSet[GraphRunner] = weakref.WeakSet()


_lost: list[Any] = []  # what waits, when it ends, for threads that are not there


def _begin_anew() -> None:
    """In a forked process there are none of the threads that programs and pools count on."""
    for runner in list(_runners):
        _lost.append((runner._programs, runner._pool, runner._compile))
        runner._begin()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)


def _checked(images: np.ndarray) -> np.ndarray:
    images = np.asarray(images, np.float32, order="C")
    if images.ndim != 4:
        raise ValueError(f"`images` must be (N, H, W, C). Received: {images.shape}")
    return images


class _OnnxRuntime:
    """Compiles with ONNX Runtime, which always computes in the types of the graph."""

    def __init__(self, precision: str):
        try:
            import onnxruntime
        except ImportError as error:
            raise missing("this engine", "onnxruntime", "onnx", error) from error
        self.module = onnxruntime

    def __call__(self, graph: bytes, threads: int, together: bool) -> Program:
        options = self.module.SessionOptions()
        options.intra_op_num_threads = 1 if together else threads
        options.inter_op_num_threads = 1
        # Its threads spin between operators, not after a picture, at the cost of the decoders.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        options.log_severity_level = 4  # what fails is raised as well
        session = self.module.InferenceSession(
            graph, options, providers=["CPUExecutionProvider"], enable_fallback=0
        )
        (given,) = session.get_inputs()

        def run(image: np.ndarray) -> Sequence[np.ndarray]:
            return session.run(None, {given.name: image})

        return Program(tuple(tuple(one.shape) for one in session.get_outputs()), run)


class _OpenVINO:
    """Compiles with OpenVINO.

    By itself it computes in bfloat16 where the processor can: it is told what to compute in.
    """

    def __init__(self, precision: str):
        self.core = the_core("this engine")
        # Beside int8, OpenVINO knows best what the rest runs in.
        self.hint = {"float32": "f32", "bfloat16": "bf16"}.get(precision)
        able = self.core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        if precision == "bfloat16" and "BF16" not in able:
            raise ValueError("OpenVINO has no bfloat16 on this processor")

    def __call__(self, graph: Any, threads: int, together: bool) -> Program:
        options: dict[str, Any] = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "THROUGHPUT" if together else "LATENCY",
            "NUM_STREAMS": threads if together else 1,
        }
        if self.hint is not None:
            options["INFERENCE_PRECISION_HINT"] = self.hint
        model = self.core.read_model(graph) if isinstance(graph, bytes) else graph
        compiled = self.core.compile_model(model, "CPU", options)
        requests: SimpleQueue[Any] = SimpleQueue()  # each may be used by one thread at a time

        def run(image: np.ndarray) -> Sequence[np.ndarray]:
            try:
                request = requests.get_nowait()
            except Empty:
                request = compiled.create_infer_request()
            request.infer([image], share_inputs=True)
            found = [np.array(one.data) for one in request.output_tensors]
            requests.put(request)  # not where it failed
            return found

        return Program(tuple(tuple(one.shape) for one in compiled.outputs), run)


class _LiteRT:
    """Compiles with LiteRT, whose interpreters answer one picture at a time each."""

    def __init__(self, precision: str):
        try:
            from ai_edge_litert.interpreter import Interpreter
        except ImportError as error:
            raise missing("this engine", "ai-edge-litert", "litert", error) from error
        self.interpreter = Interpreter

    def __call__(self, graph: bytes, threads: int, together: bool) -> Program:
        def made() -> Any:
            interpreter = self.interpreter(
                model_content=graph, num_threads=1 if together else threads
            )
            interpreter.allocate_tensors()
            return interpreter

        first = made()
        (given,) = first.get_input_details()
        named = first.get_signature_runner().get_output_details()
        taken = [named[name] for name in OUTPUTS if name in named]
        # Each holds its own copy of the weights: no more than there are threads, the others made
        # when they are needed. Who finds none waits.
        free: LifoQueue[Any] = LifoQueue()
        for one in (*[None] * (threads - 1 if together else 0), first):
            free.put(one)

        def run(image: np.ndarray) -> Sequence[np.ndarray]:
            interpreter = free.get()
            try:
                interpreter = interpreter or made()
                interpreter.set_tensor(given["index"], image)
                interpreter.invoke()
                return [interpreter.get_tensor(one["index"]) for one in taken]
            finally:
                free.put(interpreter)

        return Program(tuple(tuple(map(int, one["shape"])) for one in taken), run)
