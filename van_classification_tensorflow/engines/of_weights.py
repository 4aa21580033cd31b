"""Weights -> the engine that answers their pictures soonest, proven on one of them.

Nothing here imports a framework or a runtime before it is asked to run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.architecture import Architecture
from ..spec.config import min_image_size
from ..weights.fold import fold
from .choice import TOLERANCES, Candidate, Chosen, NoEngineError, choose, version
from .graph_runner import Graph, GraphRunner
from .keras import on_accelerator
from .numpy_forward import NumpyEngine, forward
from .protocol import FLOAT32, Engine

if TYPE_CHECKING:
    import onnx

# Measured on two cores (AVX-512, VAN-B0, 224 x 224): seconds until an engine could take its first
# picture, and then for 10^9 multiply-accumulates, decoding ahead and all cores busy.
_COSTS = {
    "numpy": (0.0, 0.17),
    "onnxruntime": (0.2, 0.0100),
    "openvino": (0.6, 0.0099),  # of B0; of larger ones no faster
    "keras": (4.0, 0.031),
}
# LiteRT is never taken by itself: TensorFlow, which converts for it, takes longer to start than all
# of these, and its converter as long again.
AUTOMATIC = ("openvino", "onnxruntime", "keras")
_IN_BFLOAT16 = ("openvino", "keras")
_PROOF_SECONDS = 0.4
ON_GPUS = 1e-2  # there frameworks multiply in TensorFloat-32, of 10 bits, unless told otherwise
_MANY = 64  # pictures, where nobody knows how many come: who answers first matters more than speed


@dataclass(frozen=True)
class GraphEngine:
    """The `Engine` of weights whose graph a runtime runs; threads may call it at once.

    Args:
        runner: Of a graph that gives logits and features, or features alone.
        format: Name of the runtime.
        dtype: Of its images.
    """

    runner: GraphRunner
    format: str
    dtype: np.dtype = FLOAT32

    def __call__(self, images: np.ndarray, features: bool = False) -> np.ndarray:
        return self.runner(images)[-1 if features else 0]

    def submit(self, images: np.ndarray, features: bool = False) -> Future[np.ndarray]:
        """The same in a thread that does nothing else meanwhile."""
        return self.runner.submit(images, -1 if features else 0)

    def in_turn(self, images: np.ndarray) -> np.ndarray:
        """The logits, picture after picture in the caller's thread, which takes one core."""
        return self.runner.in_turn(images)


@dataclass(frozen=True)
class Model:
    """What there is to run.

    Args:
        tensors: By the authors' names.
        sizes: Their architecture.
        side: Of the pictures, in pixels.
        views: Of each picture.
    """

    tensors: Any
    sizes: Architecture
    side: int
    views: int

    @property
    def gmacs(self) -> float:
        """Of one picture, in 10^9."""
        return self.views * self.sizes.macs(self.side, self.side) / 1e9

    def seconds(self, name: str, pictures: int) -> float:
        """Until an engine is done with so many pictures, its proof included."""
        start, rate = _COSTS[name]
        proof = (
            0.0 if name == "numpy" else min(_numpy_seconds(self.sizes, self.side), _PROOF_SECONDS)
        )
        return start + proof + rate * self.gmacs * pictures

    @property
    def numpy_limit(self) -> int:
        """For how many pictures NumPy is done before ONNX Runtime is."""
        faster = (_COSTS["numpy"][1] - _COSTS["onnxruntime"][1]) * self.gmacs
        return int(self.seconds("onnxruntime", 0) / faster)

    def order(self, pictures: int | None, precision: str) -> list[str]:
        """The engines that "auto" tries, the one that is done first before the others."""
        names = {"float32": AUTOMATIC, "bfloat16": _IN_BFLOAT16}[precision]
        many = _MANY if pictures is None else pictures
        return sorted(names, key=lambda name: self.seconds(name, many))

    def numpy(self, reason: str, rejected: Sequence[str] = ()) -> Chosen:
        """NumPy's engine, which is the reference itself."""
        engine = NumpyEngine(self.tensors, self.sizes)
        return Chosen(engine, "numpy", version("numpy"), reason=reason, rejected=tuple(rejected))


def choose_engine(
    model: Model,
    keras: Callable[[], Engine],
    engine: str = "auto",
    precision: str = "float32",
    pictures: int | None = None,
    threads: int | None = None,
) -> Chosen:
    """An engine that has proved itself.

    Args:
        model: What there is to run.
        keras: Makes the `Engine` of the Keras model.
        engine: "auto", or the only one that will do.
        precision: Of the arithmetic.
        pictures: How many will come; None where nobody knows.
        threads: Of all but Keras and NumPy; by default one for each core of the process.

    Raises:
        ValueError: The engine that is asked for does not prove itself; says why.
    """
    if engine == "numpy":
        return model.numpy("as asked")
    automatic = engine == "auto"
    names = model.order(pictures, precision) if automatic else [engine]
    # LiteRT's graph takes longer than the proof of any model: it is made once, for all pictures.
    converted = engine == "litert"
    several = not converted and (pictures != 1 or model.views > 1)
    side = model.side if converted else proof_side(model.sizes, model.side)
    picture = _picture(side, model.sizes.in_chans)
    graph = _flatbuffer(model) if converted else _graph(model)

    def candidate(name: str) -> Candidate:
        if name == "keras":
            on_gpus = max(ON_GPUS, TOLERANCES[precision])
            return Candidate(name, keras, lambda: on_gpus if on_accelerator() else None)
        runner = partial(GraphRunner, graph, name, precision, threads)
        return Candidate(name, (lambda: _BothWays(runner())) if converted else runner)

    def right() -> list[np.ndarray]:
        outputs = [one for one in reversed(answer.result()) if one is not None]
        return outputs * 3 if converted else outputs

    meanwhile = ThreadPoolExecutor(1, "reference")  # the runtime's start takes about as long
    answer = meanwhile.submit(forward, model.tensors, model.sizes, picture)
    try:
        chosen = choose(
            map(candidate, names),
            right,
            np.repeat(picture, 2, axis=0) if several else picture,
            precision=precision,
            reason=_reason(pictures) if automatic else as_asked(engine),
        )
    except NoEngineError as error:
        if automatic and precision == "float32":
            return model.numpy("slow, but no other proves itself", error.rejected)
        raise ValueError(f"`engine`={engine!r} does not prove itself: {error}") from None
    finally:
        meanwhile.shutdown()
    runner = chosen.engine.runner if converted else chosen.engine
    if not isinstance(runner, GraphRunner):
        return chosen
    if side != model.side:
        runner.forget()  # the small picture's program
    return replace(chosen, engine=GraphEngine(runner, chosen.name))


@dataclass(frozen=True)
class _BothWays:
    """A runner that is asked the same picture alone and together, by each of its programs."""

    runner: GraphRunner

    @property
    def threads(self) -> int:
        return self.runner.threads

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        return [one for answer in self.runner.both_ways(picture) for one in answer]


def as_asked(engine: str) -> str:
    """The reason for an engine that was named."""
    return "as asked, converted by TensorFlow" if engine == "litert" else "as asked"


def _reason(pictures: int | None) -> str:
    # Whether Keras could use it takes seconds to find out.
    gpu = " (for CPUs; `keras` may use the GPU)" if Path("/dev/nvidiactl").exists() else ""
    if pictures is None:
        return f"the first to answer of those that are installed{gpu}"
    what = "one picture" if pictures == 1 else f"{pictures:,} pictures"
    return f"the first to be done with {what} of those that are installed{gpu}"


def _graph(model: Model) -> Graph:
    """What makes the model's graph for a size of pictures: logits and features, or these alone."""

    def graph(shape: tuple[int, ...]) -> bytes:
        return onnx_of(model, shape).SerializeToString()

    return graph


def onnx_of(model: Model, shape: tuple[int, ...]) -> onnx.ModelProto:
    """The model's graph for one picture of that shape."""
    from .onnx_graph import onnx_model

    # Folded anew for each of the few sizes: nobody keeps a second copy of the weights.
    folded, size = fold(model.tensors), (shape[0], shape[1])
    return onnx_model(folded, model.sizes, image_size=size, also_features=True)


def _flatbuffer(model: Model) -> Graph:
    """The same for LiteRT."""

    @lru_cache(1)  # a single picture and several have programs of the same one
    def graph(shape: tuple[int, ...]) -> bytes:
        from .flatbuffer import flatbuffer_of_weights

        return flatbuffer_of_weights(model.tensors, model.sizes, shape)

    return graph


def _numpy_seconds(sizes: Architecture, side: int) -> float:
    return _COSTS["numpy"][1] * sizes.macs(side, side) / 1e9


def proof_side(sizes: Architecture, side: int) -> int:
    """Side of the picture that engines prove themselves on.

    The proof costs a pass of NumPy, seconds of a large model. Where it would be more than some
    tenths of a second, a smaller picture does: its graph is made by the same function, of the same
    weights and the same operators. Only what reaches beyond its edges is not seen.
    """
    if _numpy_seconds(sizes, side) <= _PROOF_SECONDS:
        return side
    least = min(max(min_image_size(len(sizes.depths)), 64), side)
    fits = (n for n in range(side - side % 32, least, -32))
    return next((n for n in fits if _numpy_seconds(sizes, n) <= _PROOF_SECONDS), least)


def _picture(side: int, channels: int) -> np.ndarray:
    """(1, side, side, channels): noise, fine on coarse, as large as normalised pictures are."""
    rng = np.random.default_rng(0)
    fine = rng.standard_normal((1, side, side, channels))
    coarse = rng.standard_normal((1, side // 16 + 1, side // 16 + 1, channels))
    coarse = coarse.repeat(16, axis=1).repeat(16, axis=2)[:, :side, :side]
    return (0.5 * fine + coarse).astype(np.float32)
