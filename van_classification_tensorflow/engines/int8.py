"""Weights in 8 bits: ranges come from real pictures, and on these it decides as float32 does."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import numpy as np

from ..datasets.calibration import Calibration
from ..spec.scores import SOFTMAX, best
from .choice import (
    WITHOUT_CLASSES,
    Candidate,
    Chosen,
    NoEngineError,
    choose,
    title,
)
from .graph_runner import GraphRunner
from .of_weights import GraphEngine, Model, as_asked, choose_engine, onnx_of
from .protocol import Engine

AUTOMATIC = ("openvino", "onnxruntime")  # in this order, by `benchmarks/deployment.py`
_AT_ONCE = 16  # pictures of the comparison


def choose_int8(
    model: Model,
    calibration: Calibration,
    keras: Callable[[], Engine],
    engine: str = "auto",
    activation: str = SOFTMAX,
    threads: int | None = None,
) -> Chosen:
    """An engine in 8 bits that decides as one in float32 does on the pictures of the calibration.

    That one proves itself first, as `choose_engine` says.

    Args:
        model: What there is to run.
        calibration: Pictures of the model's size.
        keras: As of `choose_engine`.
        engine: "auto", or the only one that will do: "openvino", "onnxruntime" or "litert".
        activation: Of the classes. Those of "sigmoid", which do not exclude each other, are all
            decisions: the logits must be near those of float32 as well.
        threads: As of `choose_engine`.

    Raises:
        ValueError: None of them agrees; says why.
    """
    crops = calibration.crops
    exact = choose_engine(model, keras, pictures=len(crops), threads=threads)
    few = calibration.prepared(crops[:_AT_ONCE])
    features = exact.engine(few, features=True)

    def make(name: str) -> _Asked:
        # A single picture and several have programs of the same graph, which takes so long.
        graph = lru_cache(1)(partial(_GRAPHS[name], model, calibration))
        runner = GraphRunner(graph, name, "int8", threads)
        made = GraphEngine(runner, name)
        _check_few(made, few, features)
        return _Asked(made, calibration, runner.threads)

    automatic = engine == "auto"
    best_counts = (model.sizes.num_classes or 1) > 1 and activation == SOFTMAX
    allowed = None if best_counts else WITHOUT_CLASSES
    why = "the first of those that are installed" if automatic else as_asked(engine)
    names = AUTOMATIC if automatic else (engine,)
    try:
        chosen = choose(
            [Candidate(name, partial(make, name), lambda: allowed) for name in names],
            _Asked(exact.engine, calibration)(crops),
            crops,
            precision="int8",
            reason=f"{why}; its ranges are those of {calibration}",
            decide=partial(best, are_probabilities=False) if model.sizes.num_classes else None,
        )
    except NoEngineError as error:
        raise ValueError(f"`precision`='int8' was refused on {calibration}: {error}") from None
    return replace(
        chosen,
        engine=chosen.engine.run,
        reference=f"{title(exact.name, exact.version)} in float32 there",
        pictures=len(crops),
        calibration=calibration.digest,
    )


def _check_few(engine: GraphEngine, pictures: np.ndarray, features: np.ndarray) -> None:
    """Raises `ValueError` if features are far from these, or those of one picture from its own."""
    twice = np.concatenate([pictures, pictures[:1]])  # a single one would be asked alone
    together = engine(twice, features=True)[: len(pictures)]
    alone = engine(pictures[:1], features=True)
    for found, right, what in (
        (together, features, "its features differ"),
        (alone, together[:1], "a picture alone differs"),
    ):
        # All together: single features of a good model were seen to differ by 0.33 of the largest.
        difference = np.linalg.norm(found - right) / np.linalg.norm(right)
        if not difference <= WITHOUT_CLASSES:
            raise ValueError(f"{what} by {difference:.0e} of the norm")


@dataclass(frozen=True)
class _Asked:
    """An engine that is asked the pictures of the calibration, a few at a time.

    Args:
        run: The engine.
        calibration: Says how pictures become its input.
        threads: Of the engine.
    """

    run: Engine
    calibration: Calibration
    threads: int | None = None

    def __call__(self, crops: np.ndarray) -> np.ndarray:
        starts = range(0, len(crops), _AT_ONCE)
        batches = (crops[start : start + _AT_ONCE] for start in starts)
        return np.concatenate([self.run(self.calibration.prepared(batch)) for batch in batches])


# --- What makes the graph of each engine, for one picture of that shape ---


def _for_onnxruntime(model: Model, calibration: Calibration, shape: tuple[int, ...]) -> bytes:
    from .quantised import quantised_onnx

    return quantised_onnx(onnx_of(model, shape), calibration.one_by_one).SerializeToString()


def _for_openvino(model: Model, calibration: Calibration, shape: tuple[int, ...]) -> Any:
    from .quantised import openvino_model, quantised_openvino

    graph = openvino_model(onnx_of(model, shape).SerializeToString())
    return quantised_openvino(graph, calibration.one_by_one)


def _for_litert(model: Model, calibration: Calibration, shape: tuple[int, ...]) -> bytes:
    from .flatbuffer import flatbuffer_of_weights

    batches = calibration.one_by_one
    return flatbuffer_of_weights(model.tensors, model.sizes, shape, "int8", batches)


_GRAPHS = {
    "onnxruntime": _for_onnxruntime,
    "openvino": _for_openvino,
    "litert": _for_litert,
}
