"""Pictures -> ranked labels or features, from Python: `Classifier`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..engines.keras import KerasEngine
from ..engines.numpy_forward import NumpyEngine
from ..engines.protocol import Engine
from ..images.decode import MAX_PIXELS, open_image
from ..images.parallel import decoded, reason
from ..spec.labels import Label, texts_of
from ..spec.preprocessing import Preprocessing
from ..spec.scores import (
    classes_of,
    logits_of,
    of_classes,
    probabilities,
)
from ..support.checks import at_least
from .opening import Wanted, open_any
from .request import ClassifierOptions

if TYPE_CHECKING:
    import keras

    from .in_memory import InMemory

# Measured on two cores (`benchmarks/cold_start.py`): NumPy needs this many seconds for 10^9
# multiply-accumulates, and this many pass before the Keras model has answered for the first time.
_NUMPY_SECONDS_PER_GMAC = 0.17
_KERAS_START_SECONDS = 4.0


@dataclass(frozen=True)
class Prediction:
    """One class of one picture.

    Args:
        label: Name of the class.
        wnid: WordNet id, of ImageNet's classes.
        index: Position of the class in the model's output.
        probability: In [0, 1]. Of all classes together 1 (softmax), or each by itself (sigmoid).
    """

    label: str
    wnid: str | None
    index: int
    probability: float


@dataclass(frozen=True)
class Result:
    """What became of one input: logits (or features), or the reason why not.

    Args:
        source: What was given.
        output: Logits (outputs,), or features (C,), float32, averaged over the views; None where
            there was an error. Of an exported file that gives probabilities: logits of the same
            probabilities.
        error: Why there is no output.
    """

    source: Any
    output: np.ndarray | None
    error: str | None = None


class Classifier:
    """A VAN with its preprocessing and its labels: pictures in, ranked labels out.

    `Classifier("van_b0")("cat.jpg")[0].label`

    Weights with `classifier_activation="sigmoid"` have classes that do not exclude each other: each
    has a probability of its own. A single output is the probability of a positive class, the
    sigmoid of its logit: with one label that class is named, with two the negative one (label 0)
    beside it.

    Args:
        weights: `"van_b0"` ... for the ImageNet-1k weights, another name of `van weights list`,
            or the path of a weight file of any known format, or of an exported file
            (`van export`): *.onnx, *.xml, *.tflite or a SavedModel's folder. What this package
            writes carries its labels and its preprocessing. Or a Keras model in memory: a `VAN`, a
            fused or quantised one, or any model with a VAN in it that ends with scores or features.
        labels: Names of the classes, or "imagenet1k", "imagenet22k", "digits"; the weights' own
            by default. Of a single output: of the positive class, or of the negative and it.
        preprocessing: The weights' own by default, for files that name none the one of the
            published ImageNet-1k weights. An exported file of others needs one, and its
            outputs are taken for logits: of softmax, a single one of sigmoid.
        test_size: Side of the crop in pixels, where it should not be the preprocessing's.
        crops: 1 for the centre; 5 for the centre and the corners, averaged.
        flip: Average with the mirrored picture.
        batch_size: Pictures that go through the model at once; an exported file with a batch
            of its own keeps to that.
        workers: Threads that decode; by default one for each core.
        max_pixels: Largest height x width of a picture.
        engine: "keras": the Keras model. "numpy": NumPy alone, which has answered before a
            framework could start, and equals the Keras model to about 1e-6. "auto": NumPy
            for as few pictures as it is done sooner with. An exported file is run by the
            runtime of its format, whatever the number of pictures.

    Attributes:
        activation: What makes probabilities of its logits: "softmax" or "sigmoid" (`scores`).
        runtime: Of an exported file; None for weights.
        numpy_limit: For at most so many pictures "auto" takes NumPy.

    Raises:
        ValueError: There are no such weights, or an argument is not allowed.
        OSError: The weights cannot be downloaded, verified or opened.
        ModuleNotFoundError: The runtime of an exported file is not installed.
    """

    def __init__(
        self,
        weights: str | os.PathLike | keras.Model = "van_b0",
        *,
        labels: Any = None,
        preprocessing: Preprocessing | None = None,
        test_size: int | None = None,
        crops: int = 1,
        flip: bool = False,
        batch_size: int = 32,
        workers: int | None = None,
        max_pixels: int = MAX_PIXELS,
        engine: str = "auto",
    ):
        ClassifierOptions(
            weights=weights,
            labels=labels,
            preprocessing=preprocessing,
            test_size=test_size,
            crops=crops,
            flip=flip,
            batch_size=batch_size,
            workers=workers,
            max_pixels=max_pixels,
            engine=engine,
        )  # which checks them
        wanted = Wanted(
            texts_of(labels), Preprocessing.of(preprocessing), test_size, engine, batch_size
        )
        opened = open_any(weights, wanted)
        self._opened, self.engine = opened, engine
        self.name, self.notes = opened.name, opened.notes
        self.labels, self.activation = opened.labels, opened.activation
        self.preprocessing, self.runtime = opened.preprocessing, opened.runtime
        self.crops, self.flip = int(crops), bool(flip)
        self.batch_size = opened.batch_size or batch_size
        self.workers, self.max_pixels = workers, max_pixels
        self.numpy_limit = self._sooner_by_numpy()
        if opened.in_memory is not None:
            self.__dict__["model"] = opened.in_memory.model

    def _sooner_by_numpy(self) -> int:
        """For how many pictures NumPy is done sooner than the Keras model has started."""
        if self._opened.weights is None:
            return 0
        side = self.preprocessing.input_size
        gmacs = self._opened.weights.weights.architecture.macs(side, side) * self._views / 1e9
        return int(_KERAS_START_SECONDS / (_NUMPY_SECONDS_PER_GMAC * gmacs))

    @property
    def _views(self) -> int:
        return self.crops * (2 if self.flip else 1)

    @cached_property
    def model(self) -> keras.Model:
        """The Keras model, logits out; made when it is first needed.

        Raises:
            ValueError: The weights are an exported file.
        """
        if self.runtime is not None:
            raise ValueError(f"{self.name} is an exported file: it holds no Keras model")
        from ..model.build import van_of

        assert self._opened.weights is not None  # noqa: S101 - a model in memory is its own
        return van_of(self._opened.weights)

    @cached_property
    def _keras_engine(self) -> KerasEngine | InMemory:
        return self._opened.in_memory or KerasEngine(self.model, self.batch_size)

    def _by_numpy(self, pictures: Any) -> bool:
        """Whether NumPy runs the model: for as few pictures as it is done sooner with."""
        if self._opened.weights is None:
            return False
        few = isinstance(pictures, Sized) and len(pictures) <= self.numpy_limit
        by_itself = self.engine == "auto" and few and "model" not in self.__dict__
        return self.engine == "numpy" or by_itself

    def _engine(self, by_numpy: bool) -> Engine:
        """What runs the model; only now is a Keras model made."""
        opened = self._opened
        if opened.runtime is not None:
            return opened.runtime
        if by_numpy and opened.weights is not None:
            weights = opened.weights.weights
            return NumpyEngine(weights.tensors, weights.architecture)
        engine = self._keras_engine
        engine.batch_size = self.batch_size  # which may have been set meanwhile
        return engine

    def __call__(self, images: Any, top: int = 5) -> list:
        """Classifies one picture or several.

        Args:
            images: A path, the bytes of a picture file, a PIL image, a uint8 array (H, W, 3),
                (H, W) or (H, W, 4); or an iterable of those.
            top: How many classes to name, best first.

        Returns:
            A list of `Prediction` for one picture; a list of such lists for several.

        Raises:
            ImageError: A picture cannot be read; names it and the reason.
            OSError: A file cannot be opened.
        """
        self.check_top(top)
        one = _is_one(images)
        results = [
            self.ranked(result.output, top)
            for result in self.stream([images] if one else images, reraise=True)
            if result.output is not None
        ]
        return results[0] if one else results

    def features(self, images: Any) -> np.ndarray:
        """Pooled features, (C,) of one picture or (N, C) of several, float32."""
        one = _is_one(images)
        found = [
            result.output
            for result in self.stream([images] if one else images, features=True, reraise=True)
            if result.output is not None
        ]
        if one:
            return found[0]
        return np.stack(found) if found else np.zeros((0, self._opened.width), np.float32)

    def stream(
        self,
        images: Iterable[Any],
        *,
        features: bool = False,
        reraise: bool = False,
        watch: Callable[[np.ndarray, int], None] | None = None,
    ) -> Iterator[Result]:
        """Exactly one `Result` for each picture, in order; decodes ahead in parallel.

        Args:
            images: As in `__call__`, several; may be endless.
            features: Give features instead of logits.
            reraise: Raise what goes wrong with a picture, instead of noting it.
            watch: Called with each batch before the model is: its inputs (N, H, W, C), and how
                many pictures they are, of which each has as many views.
        """
        if features:
            self.check_features()
        by_numpy = self._by_numpy(images)
        size = 1 if by_numpy else max(self.batch_size // self._views, 1)
        batch: list[tuple[Any, np.ndarray | Exception]] = []
        for pair in decoded(images, self._prepared, self.workers, ahead=2 * max(size, 8)):
            if reraise and isinstance(pair[1], Exception):
                raise pair[1]
            batch.append(pair)
            if len(batch) == size:
                yield from self._run(batch, features, by_numpy, watch)
                batch = []
        yield from self._run(batch, features, by_numpy, watch)

    def ranked(self, logits: np.ndarray, top: int = 5) -> list[Prediction]:
        """The `top` classes of (outputs,) logits, best first."""
        self.check_top(top)
        activation = self.activation
        if len(self.labels) == 2:  # perhaps of one output
            logits, activation = of_classes(logits, activation)
        shares = probabilities(logits, activation)
        best = np.argsort(-shares, kind="stable")[:top]
        return [
            Prediction(self.labels[i].name, self.labels[i].wnid, int(i), float(shares[i]))
            for i in best
        ]

    @property
    def classes(self) -> tuple[Label, ...]:
        """What a picture may be of: `labels`, of which a single output has two (`scores`)."""
        return classes_of(self.labels)

    def check_top(self, top: int) -> None:
        """Raises `ValueError` where there is no head, or `top` is no number of classes."""
        if not self.labels:
            raise ValueError(f"{self.name} has no head: it gives features only")
        at_least("top", top, 1)

    def check_features(self) -> None:
        """Raises `ValueError` where an exported file gives something else than features."""
        in_memory = self._opened.in_memory
        if in_memory is not None and in_memory.features is None:
            raise ValueError(
                f"{self.name} has no layer `Dense` whose input would be its features: give the "
                "model that ends there"
            )
        if self.runtime is None:
            return
        gives = "logits" if self.runtime.about is None else self.runtime.about.output
        if gives != "features":
            raise ValueError(
                f"{self.name} gives {gives}, no features: export the weights with `van export "
                "--features`, or give the weights themselves"
            )

    def _prepared(self, source: Any) -> np.ndarray:
        image, prepare = open_image(source, self.max_pixels), self.preprocessing.views
        if self.runtime is not None and self.runtime.dtype == np.uint8:
            prepare = self.preprocessing.pixel_views
        return prepare(image, self.crops, self.flip)

    def _run(
        self,
        batch: list[tuple[Any, np.ndarray | Exception]],
        features: bool,
        by_numpy: bool,
        watch: Callable[[np.ndarray, int], None] | None,
    ) -> Iterator[Result]:
        good = [views for _, views in batch if isinstance(views, np.ndarray)]
        outputs: Iterator[np.ndarray] = iter(())
        if good:
            inputs = np.concatenate(good)
            if watch is not None:
                watch(inputs, len(good))
            flat = self._engine(by_numpy)(inputs, features)
            about = None if self.runtime is None else self.runtime.about
            if about is not None and about.output == "probabilities":
                flat = logits_of(flat, self.activation)
            outputs = iter(flat.reshape(len(good), -1, flat.shape[-1]).mean(axis=1))
        for source, views in batch:
            if isinstance(views, Exception):
                yield Result(source, None, reason(views))
            else:
                yield Result(source, next(outputs))


def _is_one(images: Any) -> bool:
    """One picture, not several; a stack (N, H, W) of grey ones is several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (1, 3, 4))
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))
