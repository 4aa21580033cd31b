"""Pictures -> ranked labels or features, from Python: `Classifier`."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from ..engines.numpy_forward import forward
from ..engines.runtimes import Runtime, open_runtime
from ..images.decode import MAX_PIXELS, open_image
from ..images.parallel import decoded, reason
from ..spec.architecture import Architecture
from ..spec.config import min_image_size
from ..spec.labels import Label, assumed_labels, labels_of, texts_of
from ..spec.preprocessing import NOT_SAID, Preprocessing
from ..spec.scores import (
    SOFTMAX,
    UNKNOWN_END,
    activation_of,
    classes_of,
    logits_of,
    of_classes,
    probabilities,
)
from ..support.checks import at_least
from ..support.text import printable
from ..weights.address import format_of
from ..weights.pretrained import Pretrained, open_pretrained

if TYPE_CHECKING:
    import keras

    from .in_memory import InMemory

# Measured on two cores (`benchmarks/cold_start.py`): NumPy needs this many seconds for 10^9
# multiply-accumulates, and this many pass before the Keras model has answered for the first time.
_NUMPY_SECONDS_PER_GMAC = 0.17
_KERAS_START_SECONDS = 4.0

ENGINES = ("auto", "keras", "numpy")


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
        for name, value in (
            ("test_size", 1 if test_size is None else test_size),
            ("batch_size", batch_size),
            ("workers", 1 if workers is None else workers),
            ("max_pixels", max_pixels),
        ):
            at_least(name, value, 1)
        if np.ndim(crops) or isinstance(crops, bool) or crops not in (1, 5):
            raise ValueError(f"`crops` must be 1 or 5. Received: crops={crops!r}")
        if not isinstance(flip, (bool, np.bool_)):
            raise ValueError(f"`flip` must be True or False. Received: flip={flip!r}")
        if not isinstance(engine, str) or engine not in ENGINES:
            raise ValueError(
                f"`engine` must be one of {', '.join(ENGINES)}. Received: engine={engine!r}"
            )
        self.crops, self.flip = int(crops), bool(flip)
        self.batch_size, self.workers, self.max_pixels = batch_size, workers, max_pixels
        self.engine, self.notes = engine, ""
        self.runtime: Runtime | None = None
        self.activation = SOFTMAX
        self._numpy_limit = 0  # pictures; of weights only
        self._in_memory: InMemory | None = None
        preprocessing = Preprocessing.of(preprocessing)
        labels = texts_of(labels)
        known = sys.modules.get("keras")  # where there is a model, it is there
        if known is not None and isinstance(weights, known.Model):
            self._open_model(weights, labels, preprocessing, test_size)
        elif format_of(weights) is None:
            self._open_weights(weights, labels, preprocessing, test_size)
        else:
            self._open_exported(weights, labels, preprocessing, test_size)

    def _open_weights(
        self,
        weights: Any,
        labels: str | Sequence[str] | None,
        preprocessing: Preprocessing | None,
        test_size: int | None,
    ) -> None:
        opened = None if weights is True else open_pretrained(weights, argument="weights")
        if opened is None:
            raise ValueError(f"`weights` must be a name or a path. Received: weights={weights!r}")
        given = {"labels": labels, "preprocessing": preprocessing}
        opened.check([name for name, value in given.items() if value is not None])
        sizes = opened.weights.architecture
        self._opened: Pretrained = opened
        self.name, self._width = opened.name, sizes.embed_dims[-1]
        self.notes = opened.remarks(labels, preprocessing)
        default = Preprocessing().with_channels(sizes.in_chans) or Preprocessing()
        self._prepare(preprocessing or opened.preprocessing or default, test_size, sizes.in_chans)
        _check_side(self.preprocessing.input_size, sizes)
        self.labels: tuple[Label, ...] = ()
        if sizes.num_classes is not None:
            self.labels = labels_of(opened.labels if labels is None else labels, sizes.num_classes)
            self.activation = activation_of(opened.activation, sizes.num_classes, opened.name)
        side = self.preprocessing.input_size
        gmacs = sizes.macs(side, side) * self.crops * (2 if self.flip else 1) / 1e9
        self._numpy_limit = int(_KERAS_START_SECONDS / (_NUMPY_SECONDS_PER_GMAC * gmacs))

    def _open_model(
        self,
        model: keras.Model,
        labels: Sequence[str] | None,
        preprocessing: Preprocessing | None,
        test_size: int | None,
    ) -> None:
        from .in_memory import open_model

        if self.engine == "numpy":
            raise ValueError("`engine` must be 'keras' or 'auto' for a model in memory")
        self._in_memory = opened = open_model(model)
        self.__dict__["model"] = opened.model
        self.name, notes = model.name, [opened.notes]
        if labels is None:
            notes.append(opened.notes_on_labels)
        found = preprocessing or opened.preprocessing
        if preprocessing is None and opened.changed_by:
            raise ValueError(
                f"`preprocessing` must be given for {model.name!r}, whose layer "
                f"{opened.changed_by} may change the pictures before the VAN sees them: what is "
                "to come before that layer"
            )
        if found is None:
            found = Preprocessing().with_channels(opened.channels) or Preprocessing()
            notes.append(NOT_SAID)
        self._prepare(found, test_size, opened.channels)
        side = self.preprocessing.input_size
        if side < opened.least or any(
            fixed not in (None, side, opened.channels) for fixed in model.input_shape[1:]
        ):
            raise ValueError(
                f"`test_size` must be a size that {model.name!r} takes, {model.input_shape}, at "
                f"least {opened.least} pixels. Received: {side}"
            )
        self._width = opened.outputs if opened.features is None else opened.features.output_shape[1]
        self.labels, self.notes = (), " ".join(filter(None, notes))
        if opened.activation is not None:
            self.activation = activation_of(opened.activation, opened.outputs, self.name)
            self.labels = labels_of(opened.labels if labels is None else labels, opened.outputs)

    def _open_exported(
        self,
        path: str | os.PathLike,
        labels: str | Sequence[str] | None,
        preprocessing: Preprocessing | None,
        test_size: int | None,
    ) -> None:
        shown = printable(path)
        if self.engine != "auto":
            raise ValueError(
                f"`engine` is for weights; {shown} is an exported file, which its own runtime "
                f"runs: leave it out. Received: engine={self.engine!r}"
            )
        self.runtime = runtime = open_runtime(path)
        about = runtime.about
        self.name = shown if about is None else f"{about.name} ({about.precision}, {shown})"
        notes = []
        if preprocessing is None and about is not None:
            preprocessing = about.preprocessing
            if "preprocessing" in about.assumed:
                notes.append("How its pictures are prepared was assumed when it was exported.")
        if preprocessing is None:
            raise ValueError(
                f"{shown} does not say how its pictures are prepared, as files that `van export` "
                "writes do: export it with that, or give `preprocessing` (and `labels`)"
            )
        self._prepare(preprocessing, test_size, runtime.channels)
        side = self.preprocessing.input_size
        if runtime.image_size not in (None, (side, side)):
            height, width = runtime.image_size or (0, 0)
            raise ValueError(
                f"`test_size` must be that of {shown}, which was exported for {height} x {width} "
                f"pixels only. Received: {side}"
            )
        if about is not None:
            _check_side(side, about.architecture)
        self.batch_size = runtime.batch_size or self.batch_size
        self._width, self.labels = runtime.outputs, ()
        known: Any = None if about is None else about.labels
        if about is None:
            notes.append(UNKNOWN_END)
            self.activation = activation_of(None, runtime.outputs, self.name)
        elif about.activation is not None:
            self.activation = about.activation
        if about is None or about.activation is not None:
            if labels is None and known is None:
                known, said = assumed_labels(runtime.outputs, about is None)
                notes.append(said)
            elif labels is None and about is not None and "labels" in about.assumed:
                notes.append("The names of its classes were assumed when it was exported.")
            self.labels = labels_of(known if labels is None else labels, runtime.outputs)
        self.notes = " ".join(notes)

    def _prepare(self, preprocessing: Preprocessing, test_size: int | None, channels: int) -> None:
        if test_size is not None:
            preprocessing = replace(preprocessing, input_size=int(test_size))
        if preprocessing.channels != channels:
            raise ValueError(
                f"`preprocessing` makes {preprocessing.channels} channels; the model takes "
                f"{channels}"
            )
        self.preprocessing = preprocessing

    @cached_property
    def model(self) -> keras.Model:
        """The Keras model, logits out; made when it is first needed.

        Raises:
            ValueError: The weights are an exported file.
        """
        if self.runtime is not None:
            raise ValueError(f"{self.name} is an exported file: it holds no Keras model")
        from ..model.van import VAN

        # Logits: probabilities are made of them in float64.
        sizes = self._opened.weights.architecture
        return VAN(
            sizes.configuration,
            include_top=sizes.num_classes is not None,
            pretrained=self._opened,
            classifier_activation=None,
            data_format="channels_last",
            dtype="float32",
        )

    @cached_property
    def _features(self) -> keras.Model:
        import keras

        return keras.Model(self.model.input, self.model.get_layer("pool").output)

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
        return np.stack(found) if found else np.zeros((0, self._width), np.float32)

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
        few = isinstance(images, Sized) and len(images) <= self._numpy_limit
        by_numpy = self.engine == "numpy" or (
            self.engine == "auto" and few and "model" not in self.__dict__
        )
        batch: list[tuple[Any, np.ndarray | Exception]] = []
        views = self.crops * (2 if self.flip else 1)
        size = 1 if by_numpy else max(self.batch_size // views, 1)
        for pair in decoded(images, self._views, self.workers, ahead=2 * max(size, 8)):
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
        if self._in_memory is not None and self._in_memory.features is None:
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

    def _views(self, source: Any) -> np.ndarray:
        image, prepare = open_image(source, self.max_pixels), self.preprocessing.views
        if self.runtime is not None and self.runtime.dtype == np.uint8:
            prepare = self.preprocessing.pixel_views
        return prepare(image, self.crops, self.flip)

    def _run(
        self,
        batch: list,
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
            if self.runtime is not None:
                flat = self._by_runtime(self.runtime, inputs)
            else:
                flat = (self._by_numpy if by_numpy else self._by_keras)(inputs, features)
            outputs = iter(flat.reshape(len(good), -1, flat.shape[-1]).mean(axis=1))
        for source, views in batch:
            if isinstance(views, Exception):
                yield Result(source, None, reason(views))
            else:
                yield Result(source, next(outputs))

    def _by_runtime(self, runtime: Runtime, inputs: np.ndarray) -> np.ndarray:
        found = runtime(inputs)
        if runtime.about is not None and runtime.about.output == "probabilities":
            return logits_of(found, self.activation)
        return found

    def _by_numpy(self, inputs: np.ndarray, features: bool) -> np.ndarray:
        weights = self._opened.weights
        pooled, logits = forward(weights.tensors, weights.architecture, inputs)
        return (pooled if features or logits is None else logits).astype(np.float32, copy=False)

    def _by_keras(self, inputs: np.ndarray, features: bool) -> np.ndarray:
        count = len(inputs)
        # Always the same shape, or each new one would be traced again.
        size = 1 if count == 1 else max(count, self.batch_size)
        if count < size:
            padding = np.zeros((size - count, *inputs.shape[1:]), np.float32)
            inputs = np.concatenate([inputs, padding])
        if self._in_memory is not None:
            return self._in_memory(inputs, features)[:count]
        model = self._features if features else self.model
        return np.asarray(model.predict_on_batch(inputs))[:count]


def _check_side(side: int, sizes: Architecture) -> None:
    least = min_image_size(len(sizes.depths))
    if side < least:
        raise ValueError(
            f"`test_size` is too small: this model needs at least {least} pixels. Received: {side}"
        )


def _is_one(images: Any) -> bool:
    """One picture, not several; a stack (N, H, W) of grey ones is several."""
    if isinstance(images, np.ndarray):
        return images.ndim < 3 or (images.ndim == 3 and images.shape[2] in (1, 3, 4))
    return isinstance(images, (str, os.PathLike, bytes, bytearray, memoryview, Image.Image))
