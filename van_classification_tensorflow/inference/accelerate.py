"""A Keras model, run by a faster engine than Keras: `accelerate`."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import keras
import numpy as np

from ..engines.choice import TOLERANCES, Candidate, Chosen, NoEngineError, choose, version
from ..engines.graph_runner import GraphRunner
from ..engines.keras import on_accelerator
from ..engines.keras_graph import KerasGraph, Untranslatable
from ..engines.of_weights import AUTOMATIC, ON_GPUS
from ..spec.scores import SIGMOID, logits_of
from ..support.checks import at_least_or_none, check_choice
from ..support.text import one_line

RUNTIMES = ("onnxruntime", "openvino")  # of those that run the graph; LiteRT has one of its own
ENGINES = ("auto", *RUNTIMES, "keras")
PRECISIONS = ("float32", "bfloat16")  # int8 needs pictures
SIDE = 224  # pixels of the picture that is asked, where the model takes any
_BATCH = 32  # as of Keras's `predict`
_UNSURE = 1e-3  # nearer to 1 the sigmoid of a logit, in float32, says too little of it


def accelerate(
    model: keras.Model, engine: str = "auto", precision: str = "float32", threads: int | None = None
) -> Accelerated:
    """An object that computes what `model` does in inference, on the fastest engine that proves it.

    The model is translated into a graph, its blocks folded as by `fuse`. An engine answers one
    picture, as does Keras; each output must agree to 1e-4 of its largest number (float32; bfloat16:
    0.05), and where it is probabilities, the logits behind them as well. Only then it is taken.

    The weights are those of now: after more training, accelerate again. (`engine` "keras", also
    where "auto" had to take it, always computes with the model's own.)

    Args:
        model: A `VAN`, a fused one, or a functional or `Sequential` model of pictures that is
            made of layers which are known: those of Keras around a VAN mostly are.
        engine: "auto" tries OpenVINO and ONNX Runtime where they are installed, and falls back to
            Keras, also where a layer is not known (one of your own, quantised, half precision);
            `reason` says so. Or "openvino", "onnxruntime" or "keras".
        precision: Of the arithmetic: "float32"; "bfloat16" by OpenVINO, on processors that have it.
        threads: CPU threads; by default one for each core. Not of Keras.

    Raises:
        ValueError: An argument is not allowed, or an engine that was asked for by its name cannot
            run the model or does not agree with Keras; says why.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {type(model).__name__}")
    check_choice("engine", engine, ENGINES)
    check_choice("precision", precision, PRECISIONS)
    at_least_or_none("threads", threads, 1)
    if engine == "keras" and precision != "float32":
        raise ValueError(
            "`precision` must be 'float32' for engine='keras', which computes as the model's dtype "
            f"policy says. Received: precision={precision!r}"
        )
    return accelerated(model, engine, precision, threads)


def accelerated(
    model: keras.Model,
    engine: str,
    precision: str = "float32",
    threads: int | None = None,
    side: int = SIDE,
) -> Accelerated:
    """`accelerate`, its arguments checked; `side` is that of the picture which is asked."""
    automatic = (engine, precision) == ("auto", "float32")
    if engine == "keras":
        return Accelerated(model, by_keras(model, "as asked"))
    if automatic and on_accelerator():
        return Accelerated(model, by_keras(model, "it computes on an accelerator"))
    names, reason = [engine], "as asked"
    if engine == "auto":
        names = [one for one in AUTOMATIC if one in RUNTIMES]
        reason = "the fastest that is installed"
    try:
        return _proven(model, names, precision, threads, side, reason)
    except (Untranslatable, NoEngineError) as error:
        if automatic:
            return Accelerated(model, by_keras(model, str(error)))
        raise ValueError(
            f"`engine` cannot run {model.name!r}: {error}. "
            f"Received: engine={engine!r}, precision={precision!r}"
        ) from error


def by_keras(model: keras.Model, reason: str) -> Chosen:
    """Keras itself, and why."""
    return Chosen(None, "keras", version("keras"), str(model.compute_dtype), reason=reason)


class Accelerated:
    """A model on an engine; made by `accelerate`. Threads may call it at once.

    What it gives are NumPy arrays in the structure of the model's outputs.

    Attributes:
        model: The Keras model. Pictures of a shape that the graph cannot be made for go to it.
        engine: What runs it: "openvino", "onnxruntime" or "keras".
        reason: What that is, and why it is that one, in words.
        difference: How far its answer was from Keras's, in parts of the largest number; None of
            Keras itself.
        chosen: All of that.
    """

    def __init__(self, model: keras.Model, chosen: Chosen, structure: Any = None):
        self.model, self.chosen = model, chosen
        self.engine, self.difference = chosen.name, chosen.difference
        self.reason = chosen.describe().removeprefix("Engine: ")
        self._run: GraphRunner | None = chosen.engine
        self._structure = structure  # of the outputs; what is in it counts nothing
        self._turns = threading.Lock()  # of Keras, whose models are for one thread

    def __getstate__(self) -> Any:
        raise TypeError(
            "an accelerated model cannot be pickled or copied: give its `model` to the other "
            "process, and `accelerate` it there"
        )

    def __repr__(self) -> str:
        return f"Accelerated({self.model.name!r}, engine={self.engine!r}: {self.reason})"

    def __call__(self, inputs: Any, training: bool | None = False) -> Any:
        """The same as `predict_on_batch`.

        Raises:
            ValueError: `training` is True, or as the model's own.
        """
        if training:
            raise ValueError(
                "an accelerated model is for inference only: train the model, then `accelerate` it "
                f"again. Received: training={training}"
            )
        return self.predict_on_batch(inputs)

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs of a batch.

        Args:
            x: (N, H, W, C), or (N, C, H, W) where the model takes that; an array or a tensor of
                any size that the model takes.

        Raises:
            ValueError: What the model raises of such an input.
        """
        images = self._images(x)
        found = None if images is None else self._by_engine(images)
        if found is not None:
            return keras.tree.pack_sequence_as(self._structure, found)
        with self._turns:
            if self._run is None:
                outputs = self.model.predict_on_batch(x)
            else:  # the model refuses it, most likely: a call checks more than `predict`
                outputs = self.model(x, training=False)
        return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)

    def predict(self, x: Any, batch_size: int | None = None, verbose: int = 0) -> Any:
        """The outputs of any number of pictures.

        Args:
            x: As of `predict_on_batch`, any N; or batches: a `tf.data.Dataset`, a generator, a
                `PyDataset`, each of pictures or (pictures, labels, ...).
            batch_size: Of an array: pictures that are converted and run at once, by default 32.
            verbose: 1 for a progress bar.
        """
        at_least_or_none("batch_size", batch_size, 1)
        several = isinstance(x, (list, tuple, dict)) and _only(x) is None
        if several or (self._run is None and _only(x) is not None):
            with self._turns:
                return self.model.predict(x, batch_size=batch_size, verbose=verbose)
        found = []
        batches, count = _batches(x, batch_size or _BATCH)
        bar = keras.utils.Progbar(count) if verbose in (1, "auto") else None
        for i, batch in enumerate(batches, start=1):
            outputs = self.predict_on_batch(batch)
            found.append(keras.tree.flatten(outputs))
            if bar is not None:
                bar.update(i, finalize=i == count)
        if not found:
            raise ValueError("`x` must have one batch of pictures at least. Received: none")
        joined = [np.concatenate(one) for one in zip(*found, strict=True)]
        return keras.tree.pack_sequence_as(outputs, joined)

    def _images(self, x: Any) -> np.ndarray | None:
        """`x` as the graph takes it; None where the model has to say what it thinks of it."""
        if self._run is None or (x := _only(x)) is None:
            return None
        if isinstance(x, keras.KerasTensor):
            raise ValueError("an accelerated model takes arrays: build models of `model` itself")
        images = keras.ops.convert_to_numpy(x)
        (wanted,) = self.model.inputs
        fits = images.ndim == 4 and all(
            size in (None, given) for size, given in zip(wanted.shape, images.shape, strict=True)
        )
        if not fits or images.dtype.kind not in "fiub":
            return None
        return images.astype(wanted.dtype, copy=False).astype(np.float32, copy=False)

    def _by_engine(self, images: np.ndarray) -> list[np.ndarray] | None:
        try:
            return None if self._run is None else self._run(images)
        except _NoGraph:
            return None


class _NoGraph(Exception):  # noqa: N818 - the model decides whether it is one
    """There is no graph for pictures of this shape."""


def _only(x: Any) -> Any:
    """The one array in `x`, a tensor of any backend; None where it is something else."""
    if isinstance(x, dict):
        x = list(x.values())
    if isinstance(x, (list, tuple)) and len(x) == 1:
        (x,) = x
    return x if hasattr(x, "shape") and hasattr(x, "dtype") else None


def _batches(x: Any, batch_size: int) -> tuple[Iterable[Any], int | None]:
    """(batches of pictures, how many they are if that is known)."""
    array = _only(x)
    if array is not None:
        starts = range(0, max(len(array), 1), batch_size)
        return (array[start : start + batch_size] for start in starts), len(starts)
    if isinstance(x, keras.utils.PyDataset):
        count = x.num_batches
        found: Iterator[Any] = (x[i] for i in range(count)) if count is not None else iter(x)
    else:
        found, count = iter(x), None
    return (keras.utils.unpack_x_y_sample_weight(batch)[0] for batch in found), count


# --- Proof ---


def _proven(
    model: keras.Model,
    names: Iterable[str],
    precision: str,
    threads: int | None,
    side: int,
    reason: str,
) -> Accelerated:
    """`model` on the first engine that agrees with Keras on one picture.

    Raises:
        Untranslatable: There is no graph of it.
        NoEngineError: No engine agrees.
    """
    try:
        graph = KerasGraph(model)
        picture = _picture(model, side)
        written = graph(picture.shape[1:])
    except Untranslatable:
        raise
    except Exception as error:  # of layers of others, or of a broken installation
        raise Untranslatable(f"it is not translated: {one_line(error)}") from error
    models = {picture.shape[1:]: written.model}  # until both programs of each engine are made
    try:
        answer = _answer_of_keras(model, picture)
    except Exception as error:  # whatever the model does with such a picture
        raise NoEngineError(
            [f"Keras itself does not answer a picture: {one_line(error)}"]
        ) from error

    def graph_of(shape: tuple[int, ...]) -> bytes:
        try:
            return models.get(shape) or graph(shape).model
        except ValueError as error:
            raise _NoGraph from error

    def make(name: str) -> _Asked:
        return _Asked(GraphRunner(graph_of, name, precision, threads), written.scores)

    allowed = max(ON_GPUS, TOLERANCES[precision]) if on_accelerator() else None
    candidates = [Candidate(name, partial(make, name), lambda: allowed) for name in names]
    right = _with_logits(keras.tree.flatten(answer), written.scores) * 3
    picture = picture.astype(np.float32)
    chosen = choose(candidates, right, picture, precision=precision, reason=reason)
    models.clear()
    chosen = replace(chosen, engine=chosen.engine.runner, reference="Keras")
    return Accelerated(model, chosen, keras.tree.map_structure(lambda one: 0, answer))


class _Asked:
    """A runner that is asked the same picture alone and twice, which takes other programs.

    Args:
        runner: Of the graph.
        scores: As of `Written`.
    """

    def __init__(self, runner: GraphRunner, scores: tuple[str | None, ...]):
        self.runner, self.scores, self.threads = runner, scores, runner.threads

    def __call__(self, picture: np.ndarray) -> list[np.ndarray]:
        answers = self.runner.both_ways(picture)
        return [one for answer in answers for one in _with_logits(answer, self.scores)]


def _picture(model: keras.Model, side: int) -> np.ndarray:
    """A picture of noise, (1, ...), of a size that the model takes."""
    (wanted,) = model.inputs
    shape = tuple(side if size is None else size for size in wanted.shape[1:])
    rng = np.random.default_rng(0)
    if wanted.dtype != "float32":
        return rng.integers(0, 256, (1, *shape)).astype(wanted.dtype)
    return rng.standard_normal((1, *shape), np.float32)


def _answer_of_keras(model: keras.Model, picture: np.ndarray) -> Any:
    # JAX compiles each operation by itself unless it is given all; TensorFlow need not compile.
    together = keras.backend.backend() == "jax"
    x: Any = picture
    if not isinstance(model, keras.Sequential):  # which takes it as it is, and may know no `input`
        x = keras.tree.map_structure(lambda one: picture, model.input)
    outputs = model.predict_on_batch(x) if together else model(x, training=False)
    return keras.tree.map_structure(keras.ops.convert_to_numpy, outputs)


def _with_logits(outputs: list[np.ndarray], scores: tuple[str | None, ...]) -> list[np.ndarray]:
    """`outputs`, and the logits of those that are probabilities, which hide differences."""
    found = list(outputs)
    for output, of in zip(outputs, scores, strict=True):
        if of == SIGMOID:
            output = np.clip(output, _UNSURE, 1 - _UNSURE)
        if of is not None:
            found.append(logits_of(output, of))
    return found
