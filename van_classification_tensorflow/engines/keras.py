"""A Keras model, whatever its backend is."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np

from .protocol import FLOAT32

if TYPE_CHECKING:
    import keras


@dataclass
class KerasEngine:
    """The `Engine` of a VAN.

    Args:
        model: (B, H, W, C) -> logits (B, classes), or features where it has no head.
        batch_size: Images that go through it at once, at least: a single one goes alone, fewer
            are filled up, or each new number of them would be traced again.
    """

    model: keras.Model
    batch_size: int
    format: str = "keras"
    dtype: np.dtype = FLOAT32

    def __call__(self, images: np.ndarray, features: bool = False) -> np.ndarray:
        model = self._features if features else self.model
        found = np.asarray(model.predict_on_batch(filled(images, self.batch_size)))[: len(images)]
        return found.astype(np.float32, copy=False)

    @cached_property
    def _features(self) -> keras.Model:
        import keras

        return keras.Model(self.model.input, self.model.get_layer("pool").output)


def filled(images: np.ndarray, batch_size: int) -> np.ndarray:
    """`images`, with grey ones behind them up to `batch_size`; a single one stays alone."""
    if not 1 < len(images) < batch_size:
        return images
    padding = np.zeros((batch_size - len(images), *images.shape[1:]), images.dtype)
    return np.concatenate([images, padding])


def on_accelerator() -> bool:
    """Whether Keras, which has started, computes on something else than the CPU."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        return bool(tf.config.list_physical_devices("GPU"))
    if backend == "jax":
        import jax

        return jax.default_backend() != "cpu"
    if backend == "torch":
        import torch

        return torch.cuda.is_available()
    return False
