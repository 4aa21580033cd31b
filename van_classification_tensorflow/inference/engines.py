"""What runs the model of a `Classifier`, chosen when it is known how many pictures come."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ..datasets.calibration import Calibration
from ..engines.choice import Chosen, version
from ..engines.int8 import choose_int8
from ..engines.keras import KerasEngine
from ..engines.of_weights import Model, choose_engine
from ..engines.protocol import Engine
from ..spec.preprocessing import Preprocessing
from .opening import Opened

if TYPE_CHECKING:
    import keras

    from .followed import Followed

# What runs an exported file of each format.
RUNTIME_OF = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "litert": "litert",
    "saved_model": "tensorflow",
}


class Engines:
    """The engines of what was opened, each made once; threads may ask for one at the same time.

    Args:
        opened: What there is to run.
        engine: As of `Classifier`.
        precision: As of `Classifier`.
        preprocessing: Of the pictures.
        views: Of each picture.
        batch_size: Of Keras.
        calibration: A function that opens the pictures of int8.

    Attributes:
        used: The last one that was asked for; None before the first.
        numpy_limit: For at most so many pictures "auto" takes NumPy.
    """

    def __init__(
        self,
        opened: Opened,
        engine: str,
        precision: str,
        preprocessing: Preprocessing,
        views: int,
        batch_size: int,
        calibration: Callable[[], Calibration] | None = None,
    ):
        self.opened, self.engine, self.precision = opened, engine, precision
        self.batch_size, self._calibration = batch_size, calibration
        self.used: Chosen | None = None
        self.numpy_limit = 0
        self._fast: dict[bool, Chosen] = {}  # for several pictures, or for one at a time
        self._refused: str | None = None
        self._by_numpy = 0
        self._lock = threading.Lock()
        self._model: Model | None = None
        self._side, self._views = preprocessing.input_size, views
        if opened.weights is not None:
            weights = opened.weights.weights
            self._model = Model(weights.tensors, weights.architecture, self._side, views)
            self.numpy_limit = self._model.numpy_limit

    def __getstate__(self) -> dict[str, Any]:
        """For another process, which makes engines of its own."""
        own = ("_lock", "_fast", "used", "model", "_followed")
        return {name: value for name, value in vars(self).items() if name not in own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock, self._fast, self.used, self._refused = threading.Lock(), {}, None, None

    @cached_property
    def model(self) -> keras.Model:
        """The Keras model of weights or in memory; made when it is first needed."""
        if self.opened.in_memory is not None:
            return self.opened.in_memory.model
        from ..model.build import van_of

        assert self.opened.weights is not None  # noqa: S101 - an exported file has none
        dtype = "mixed_bfloat16" if self.precision == "bfloat16" else "float32"
        return van_of(self.opened.weights, dtype)

    @cached_property
    def _followed(self) -> Followed:
        from .followed import Followed

        assert self.opened.in_memory is not None  # noqa: S101 - it is asked for of such only
        return Followed(self.opened.in_memory, self.engine, self._side, self._views)

    def choose(self, pictures: int | None) -> Chosen:
        """The engine for so many pictures; None: nobody knows how many.

        Raises:
            ValueError: The engine that was asked for does not prove itself.
        """
        with self._lock:
            self.used = self._choose(pictures)
            return self.used

    def take(self, pictures: int | None, batch_size: int) -> Engine:
        """The engine for so many pictures, which come now, in batches of that size."""
        chosen = self.choose(pictures)
        if chosen.name == "numpy":  # of one picture after the other it gets only the first few
            self._by_numpy += pictures or 0
        elif chosen.name == "keras":
            chosen.engine.batch_size = batch_size  # which may have been set meanwhile
        return chosen.engine

    def _choose(self, pictures: int | None) -> Chosen:
        opened = self.opened
        if opened.runtime is not None:
            name = RUNTIME_OF[opened.runtime.format]
            about = opened.runtime.about
            precision = "precision not known" if about is None else about.precision
            return Chosen(opened.runtime, name, version(name), precision, reason="of its format")
        if opened.in_memory is not None:
            return self._followed.choose(pictures)
        assert self._model is not None  # noqa: S101 - it is one of the three
        # Each has a program of its own, which has to prove itself; both do of what takes long to
        # convert.
        slow = self.engine == "litert" or self.precision == "int8"
        several = slow or pictures != 1 or self._views > 1
        if self._refused is not None:
            raise ValueError(self._refused)
        if several in self._fast:
            return self._fast[several]
        automatic = (self.engine, self.precision) == ("auto", "float32")
        few = pictures is not None and self._by_numpy + pictures <= self.numpy_limit
        if automatic and few and not self._fast:
            return self._model.numpy("the first to be done with so few pictures")
        self._fast[several] = self._proven(self._model, pictures)
        return self._fast[several]

    def _proven(self, model: Model, pictures: int | None) -> Chosen:
        def keras() -> KerasEngine:
            return KerasEngine(self.model, self.batch_size)

        if self.precision != "int8":
            return choose_engine(model, keras, self.engine, self.precision, pictures)
        assert self._calibration is not None  # noqa: S101 - int8 has its pictures
        calibration = self._calibration()
        try:
            return choose_int8(model, calibration, keras, self.engine, self.opened.activation)
        except ValueError as error:  # the next call would find the same, after minutes
            self._refused = str(error)
            raise


def slow_start(engine: str, precision: str) -> str:
    """What will take its time before the first answer of weights, in words; or nothing."""
    said = []
    if engine == "litert":
        said.append("TensorFlow starts, to convert the weights for LiteRT")
    if precision == "int8":
        said.append("int8 takes its ranges from pictures, which may take minutes")
    return "; ".join(said)
