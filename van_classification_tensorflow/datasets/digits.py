"""The UCI optical digits (CC BY 4.0), bundled: real images for a run without a network.

E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, 1998 (scikit-learn's copy).
"""

from __future__ import annotations

from importlib.resources import as_file
from typing import Any, NamedTuple

import numpy as np

from ..spec.labels import DIGITS
from ..spec.preprocessing import Preprocessing
from ..support.files import asset

CLASSES = DIGITS

# The small member of the family that fits these images; the proof in tests uses the same.
MODEL: dict[str, Any] = {
    "in_chans": 1,
    "num_classes": len(CLASSES),
    "embed_dims": [16, 32, 48, 64],
    "mlp_ratios": [4, 4, 4, 4],
    "depths": [1, 1, 2, 1],
}
# An 8 x 8 scan becomes 32 x 32 as in `load_digits`; a larger picture is averaged down to it.
PREPROCESSING = Preprocessing(32, 1.0, "box", (0.5,), (0.5,))
_TRAIN = 1437


class Split(NamedTuple):
    """Model input (N, 32, 32, 1) in [-1, 1], labels (N,), and the pixels 0-16 (N, 8, 8)."""

    images: np.ndarray
    labels: np.ndarray
    pixels: np.ndarray


def load_digits() -> tuple[Split, Split]:
    """The 1,437 training and 360 test images, in the order of `PCG64(1234)`'s permutation."""
    with as_file(asset("digits.npz")) as path, np.load(path) as data:
        pixels, labels = data["images"], data["labels"].astype(np.int32)
    order = np.random.Generator(np.random.PCG64(1234)).permutation(len(labels))
    pixels, labels = pixels[order], labels[order]
    # Each pixel becomes a 4 x 4 patch: 32 x 32, the total stride of four stages.
    scaled = ((pixels.astype(np.float64) / 16.0 - 0.5) / 0.5).astype(np.float32)
    images = np.kron(scaled, np.ones((4, 4), np.float32))[..., None]
    return (
        Split(images[:_TRAIN], labels[:_TRAIN], pixels[:_TRAIN]),
        Split(images[_TRAIN:], labels[_TRAIN:], pixels[_TRAIN:]),
    )
