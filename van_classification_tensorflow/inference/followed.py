"""A model in memory, which may be trained further: a graph for as long as its weights stay so."""

from __future__ import annotations

import threading
from dataclasses import replace

import keras
import numpy as np

from ..engines.choice import Chosen
from ..engines.protocol import FLOAT32
from .accelerate import Accelerated, accelerated, by_keras
from .in_memory import InMemory

# Making a graph and proving it takes about as long as Keras does for so many pictures (VAN-B0).
_FEW = 64


class Followed:
    """The `Engine` of a model in memory by a graph; by Keras once the weights are others.

    Args:
        in_memory: The model.
        engine: As of `Classifier`.
        side: Of the pictures, in pixels.
        views: Of each picture.
    """

    dtype = FLOAT32

    def __init__(self, in_memory: InMemory, engine: str, side: int, views: int):
        self.in_memory, self.engine = in_memory, engine
        self.side, self.views = side, views
        self.format = "keras"
        self._fast: dict[bool, Accelerated] = {}  # of features or not
        self._weights: list[np.ndarray] = []  # that these were made with
        self._lock = threading.Lock()

    def choose(self, pictures: int | None) -> Chosen:
        """What answers so many pictures, which come now; a new graph where the weights are others.

        Raises:
            ValueError: The engine that was asked for does not prove itself.
        """
        model = self.in_memory.model
        if self.engine == "keras":
            return replace(by_keras(model, "as asked"), engine=self.in_memory)
        few = pictures is not None and pictures * self.views < _FEW
        if self.engine == "auto" and few:
            # Looking whether the weights are still the same takes longer than Keras for a few.
            reason = "a model in memory, and too few pictures for a graph"
            return replace(by_keras(model, reason), engine=self.in_memory)
        with self._lock:
            if not self._is_unchanged():
                self._fast, self._weights = {}, [one.copy() for one in self._now()]
            chosen = self._made(features=False).chosen
        self.format = chosen.name
        return replace(chosen, engine=self.in_memory if chosen.name == "keras" else self)

    def __call__(self, images: np.ndarray, features: bool = False) -> np.ndarray:
        with self._lock:
            fast = self._made(features) if self._is_unchanged() else None
        if fast is None or fast.engine == "keras":
            return self.in_memory(images, features)
        return self.in_memory.answer(fast.predict_on_batch, images, features)

    def _made(self, features: bool) -> Accelerated:
        if features not in self._fast:
            model = self.in_memory.of(features)
            self._fast[features] = accelerated(model, self.engine, side=self.side)
        return self._fast[features]

    def _is_unchanged(self) -> bool:
        """Whether the weights are those of the graph, bit for bit (VAN-B0: 10 to 30 ms)."""
        try:
            now = self._now()
            return len(now) == len(self._weights) and all(map(np.array_equal, now, self._weights))
        except RuntimeError:  # JAX has taken them away, in the middle of training
            return False

    def _now(self) -> list[np.ndarray]:
        """Of all weights the bytes."""
        arrays = map(keras.ops.convert_to_numpy, self.in_memory.model.weights)
        return [np.ascontiguousarray(one).reshape(-1).view(np.uint8) for one in arrays]
