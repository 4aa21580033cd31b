"""What mmsegmentation's code computes with the seeded weights, and models with these weights.

`seg_*_micro.npz` hold inputs' seeds, every intermediate map, and one step of training;
`seg_*_b0.npz` samples of the logits of `van_b0` with the published sizes. Maps are (B, C, H, W).
"""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

from tests.parity import GOLDEN, MICRO, seeded_images, seeded_tensor
from van_classification_tensorflow import VANSegmenter
from van_classification_tensorflow.segment.load import load_segmenter, specs_of

INPUTS = {"a": (2, 64, 96, 3), "b": (1, 75, 131, 3)}
SEEDS = {"micro": {"a": 1, "b": 2}, "b0": {"a": 7, "b": 8}}
MICRO_SEGMENTERS: dict[str, dict[str, Any]] = {
    "upernet": {
        "decoder": "upernet",
        "channels": 32,
        "auxiliary": True,
        "auxiliary_channels": 16,
    },
    "fpn": {"decoder": "semantic_fpn", "channels": 16, "neck_channels": 32},
    "ham": {"decoder": "light_ham", "channels": 32, "ham_channels": 64, "ham_rank": 8},
}
B0_SEGMENTERS: dict[str, dict[str, Any]] = {
    "upernet": {"decoder": "upernet", "auxiliary": True},
    "fpn": {"decoder": "semantic_fpn"},
    "ham": {"decoder": "light_ham"},
    "ham_d256": {"decoder": "light_ham", "channels": 256, "ham_channels": 256, "ham_rank": 16},
}


def golden(name: str) -> dict[str, np.ndarray]:
    with np.load(GOLDEN / f"seg_{name}.npz") as data:
        return dict(data)


def images(size: str, key: str) -> np.ndarray:
    return seeded_images(SEEDS[size][key], INPUTS[key])


def seeded(model: keras.Model) -> keras.Model:
    """Fills `model` with the seeded weights of its tensors' full names."""
    specs = specs_of(model)
    return load_segmenter(model, {n: seeded_tensor(n, s.shape) for n, s in specs.items()})


def micro(name: str, **options: Any) -> keras.Model:
    sizes = {**MICRO, "num_classes": 7}
    options = {"data_format": "channels_last", **MICRO_SEGMENTERS[name], **options}
    return seeded(VANSegmenter(**sizes, **options))


def channels_first(maps: Any) -> np.ndarray:
    return np.moveaxis(keras.ops.convert_to_numpy(maps), -1, 1)


def relative(ours: Any, expected: np.ndarray) -> float:
    """The largest difference, as a share of the largest value."""
    ours = keras.ops.convert_to_numpy(ours)
    assert ours.shape == expected.shape, (ours.shape, expected.shape)
    return float(np.abs(ours - expected).max() / np.abs(expected).max())
