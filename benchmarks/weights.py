"""The same seeded weights and inputs for every contender, keyed by the authors' tensor names."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence

import numpy as np

IMAGE_SIZE = 224
NUM_CLASSES = 1000


def seeded(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The tensor of an official name: it depends on nothing but name, shape and seed.

    Ranges keep the activations of a deep model of order one, and every tensor visible in the
    logits: a published initialisation (layer scale 0.01, zero biases) would hide mistakes.
    """
    leaf = name.rsplit(".", 1)[-1]
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf.startswith("layer_scale_"):
        array = rng.uniform(0.01, 0.05, shape)
    elif leaf in ("bias", "running_mean"):
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:  # running_var and the weights of norms
        array = rng.uniform(0.5, 1.5, shape)
    else:
        array = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return np.asarray(array, np.float32)


def fixed_images(batch: int) -> np.ndarray:
    """(batch, 224, 224, 3) float32, channels last."""
    rng = np.random.Generator(np.random.PCG64(7))
    return rng.standard_normal((batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


def fixed_labels(batch: int) -> np.ndarray:
    """(batch,) int64."""
    return np.random.Generator(np.random.PCG64(8)).integers(NUM_CLASSES, size=batch)
