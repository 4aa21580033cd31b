"""Pictures -> ranked labels or features, from Python: `Classifier`."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sized
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ..datasets.calibration import calibration_of
from ..engines.choice import Chosen
from ..engines.of_weights import GraphEngine
from ..images.decode import MAX_PIXELS, is_one, open_image
from ..images.parallel import decoded
from ..spec.card import Card
from ..spec.labels import Label, texts_of
from ..spec.preprocessing import Preprocessing
from ..spec.scores import (
    classes_of,
    logits_of,
    of_classes,
    probabilities,
)
from ..support.checks import at_least
from ..support.cores import cores
from ..support.text import reason
from .engines import Engines
from .flow import Result, flowing, in_batches, raising
from .opening import Wanted, open_any
from .request import ClassifierOptions

if TYPE_CHECKING:
    import keras

    from ..weights.checkpoint import ModelWeights


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


class Classifier:
    """A VAN with its preprocessing and its labels: pictures in, ranked labels out.

    `Classifier("van_b0")("cat.jpg")[0].label`

    Weights with `classifier_activation="sigmoid"` have classes that do not exclude each other: each
    has a probability of its own. A single output is the probability of a positive class, the
    sigmoid of its logit: with one label that class is named, with two the negative one (label 0)
    beside it.

    Args:
        weights: `"van_b0"` ... for the ImageNet-1k weights, another name of `van weights list`,
            the path of a weight file of any known format, a folder of a model hub
            (`hf://USER/NAME[@REVISION]`), or an exported file
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
        engine: What runs weights. "auto": NumPy for as few pictures as it is done first with,
            else the first to be done of "openvino", "onnxruntime" and "keras" that is installed
            and proves itself: it answers one picture as NumPy does, to 1e-4 of the largest logit.
            One by name must prove itself. An exported file is run by the runtime of its format.
            A model in memory is run by Keras, or, 64 pictures or more, as by `accelerate`: by a
            graph that is made anew when its weights have changed.
            "litert" starts TensorFlow to convert the weights, and is never taken by "auto".
        precision: Of the arithmetic of weights: "float32"; "bfloat16" of OpenVINO, where the
            processor has it, and of Keras; "int8" of OpenVINO ("auto", where it is installed),
            ONNX Runtime and LiteRT, which must decide as float32 does on nine of ten pictures of
            the calibration: `engine_used` has the share, and the difference.
        calibration: For int8: real pictures, such as the model will see, which its ranges come
            from (256 of them at most): a folder, or "digits".

    Attributes:
        activation: What makes probabilities of its logits: "softmax" or "sigmoid" (`scores`).
        runtime: Of an exported file; None for weights.
        parameters: How many numbers are trained; None of an exported file that does not say.

    Raises:
        ValueError: There are no such weights, or an argument is not allowed.
        OSError: The weights cannot be downloaded, verified or opened.
        ModuleNotFoundError: The engine, or the runtime of an exported file, is not installed.
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
        precision: str = "float32",
        calibration: str | os.PathLike | None = None,
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
            precision=precision,
            calibration=calibration,
        )  # which checks them
        wanted = Wanted(
            texts_of(labels),
            Preprocessing.of(preprocessing),
            test_size,
            engine,
            precision,
            batch_size,
        )
        opened = open_any(weights, wanted)
        self._opened, self.engine, self.precision = opened, engine, precision
        self.name, self.notes = opened.name, opened.notes
        self.labels, self.activation = opened.labels, opened.activation
        self.parameters = opened.parameters
        self.preprocessing, self.runtime = opened.preprocessing, opened.runtime
        self.crops, self.flip = int(crops), bool(flip)
        self.batch_size = opened.batch_size or batch_size
        self.workers, self.max_pixels = workers, max_pixels
        self._engines = Engines(
            opened,
            engine,
            precision,
            self.preprocessing,
            self._views,
            self.batch_size,
            partial(calibration_of, calibration, self.preprocessing, workers, max_pixels),
        )

    @property
    def _views(self) -> int:
        return self.crops * (2 if self.flip else 1)

    @property
    def pictures_at_once(self) -> int:
        """How many pictures, each with its views, are a batch."""
        return max(self.batch_size // self._views, 1)

    @property
    def model(self) -> keras.Model:
        """The Keras model, logits out; made when it is first needed.

        Raises:
            ValueError: The weights are an exported file.
        """
        if self.runtime is not None:
            raise ValueError(f"{self.name} is an exported file: it holds no Keras model")
        return self._engines.model

    @property
    def opened_weights(self) -> ModelWeights | None:
        """The tensors, by the authors' names, and their sizes; None of an exported file or a model.

        They are not to be changed.
        """
        return None if self._opened.weights is None else self._opened.weights.weights

    @property
    def numpy_limit(self) -> int:
        """For at most so many pictures "auto" takes NumPy; may be set."""
        return self._engines.numpy_limit

    @numpy_limit.setter
    def numpy_limit(self, pictures: int) -> None:
        self._engines.numpy_limit = pictures

    @property
    def engine_used(self) -> Chosen | None:
        """What ran the model last, why, and how far it was from the reference; None before."""
        return self._engines.used

    def choose_engine(self, pictures: int | None = None) -> Chosen:
        """Chooses what will run the model, and makes it; `stream` does it by itself.

        Args:
            pictures: How many will come; None where nobody knows.

        Raises:
            ValueError: The engine that was asked for does not prove itself; says why.
        """
        return self._engines.choose(pictures)

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
        one = is_one(images)
        results = [
            self.ranked(result.output, top)
            for result in self.stream([images] if one else images, reraise=True)
            if result.output is not None
        ]
        return results[0] if one else results

    def features(self, images: Any) -> np.ndarray:
        """Pooled features, (C,) of one picture or (N, C) of several, float32."""
        one = is_one(images)
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
        count: int | None = None,
    ) -> Iterator[Result]:
        """Exactly one `Result` for each picture, in order; decodes ahead in parallel.

        Args:
            images: As in `__call__`, several; may be endless.
            features: Give features instead of logits.
            reraise: Raise what goes wrong with a picture, instead of noting it.
            watch: Called with each batch before the model is: its inputs (N, H, W, C), and how
                many pictures they are, of which each has as many views.
            count: How many there are, where `images` does not say.
        """
        if features:
            self.check_features()
        if count is None and isinstance(images, Sized):
            count = len(images)
        size, few = self.pictures_at_once, max(8, cores())
        batched = self.engine == "keras" or self._opened.weights is None
        ahead = 2 * max(size if batched else few, few)
        made = decoded(images, self._prepared, self.workers, ahead)
        pairs = raising(made) if reraise else made
        for number, (source, views) in enumerate(pairs):
            if isinstance(views, Exception):
                yield Result(source, None, reason(views))
                continue
            # Only now, when there is a picture for it, and while others are decoded.
            engine = self._engines.take(count, self.batch_size)
            every = chain([(source, views)], pairs)
            if isinstance(engine, GraphEngine) and count != 1 and watch is None:
                yield from flowing(engine, every, features)
            else:
                size = 1 if engine.format == "numpy" and watch is None else size
                first = number % size
                yield from in_batches(engine, every, size, features, self.finished, watch, first)

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

    def prepare(self, source: Any) -> tuple[np.ndarray, tuple[int, int]]:
        """A picture as an engine takes it, and its size.

        Args:
            source: As in `__call__`, one.

        Returns:
            Its views (views, input_size, input_size, C), and (width, height) of the upright
            picture in pixels.

        Raises:
            ImageError: It cannot be read; says why.
            OSError: The file cannot be opened.
            ValueError: It cannot be resized.
        """
        image, prepare = open_image(source, self.max_pixels), self.preprocessing.views
        if self.runtime is not None and self.runtime.dtype == np.uint8:
            prepare = self.preprocessing.pixel_views
        return prepare(image, self.crops, self.flip), image.size

    @property
    def card(self) -> Card | None:
        """What is known of the weights; None of a model in memory, or a file of others."""
        if self._opened.weights is not None:
            return self._opened.weights.card
        return None if self.runtime is None else self.runtime.about

    @property
    def classes(self) -> tuple[Label, ...]:
        """What a picture may be of, by `labels`; a single output has two (`scores`)."""
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

    def finished(self, outputs: np.ndarray) -> np.ndarray:
        """Logits or features of what an engine gives: of an exported file perhaps probabilities."""
        about = None if self.runtime is None else self.runtime.about
        is_probabilities = about is not None and about.output == "probabilities"
        return logits_of(outputs, self.activation) if is_probabilities else outputs

    def _prepared(self, source: Any) -> np.ndarray:
        return self.prepare(source)[0]
