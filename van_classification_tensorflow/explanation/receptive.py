"""What one position of a map can see: of the large-kernel attention, and of a whole network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import keras

PAPERS = 21  # positions a side, as the paper names the kernel; in fact its parts reach further


def lka_kernel(tensors: Mapping[str, np.ndarray], block: str) -> np.ndarray:
    """How much the gate at one position hears of its neighbours: the decomposed kernel, whole.

    The 5 x 5 convolution followed by the 7 x 7 one of dilation 3 reaches 2 + 9 positions to each
    side: 23 x 23, where the paper (Section 3.1) speaks of 21 x 21.

    Args:
        tensors: {the authors' name: array}.
        block: Name of a block, such as "block4_1".

    Returns:
        (23, 23), float32: mean |d gate / d input| over both their channels.
    """
    gating = f"{block.replace('_', '.')}.attn.spatial_gating_unit"
    near, far, mix = (
        tensors[f"{gating}.{name}.weight"] for name in ("conv0", "conv_spatial", "conv1")
    )
    near, far, mix = near[:, 0], far[:, 0], np.abs(mix).mean(axis=0).reshape(-1, 1, 1)
    kernel, dilation = near.shape[1], 3
    side = kernel + (far.shape[1] - 1) * dilation
    whole = np.zeros((len(near), side, side), np.float32)
    for i in range(far.shape[1]):
        for j in range(far.shape[2]):
            top, left = i * dilation, j * dilation
            whole[:, top : top + kernel, left : left + kernel] += near * far[:, i, j][:, None, None]
    return (mix * np.abs(whole)).mean(axis=0)


def effective_receptive_field(
    model: keras.Model, images: np.ndarray, layer: str | None = None
) -> np.ndarray:
    """What of the pictures one position in the middle of a map comes from (arXiv 1701.04128).

    Args:
        model: As in `explain`.
        images: As in `explain`; more than a few make it smooth.
        layer: As in `explain`.

    Returns:
        (H, W), float32, the largest 1: mean |gradient| of the middle position's channels, summed.

    Raises:
        ValueError: An argument is not allowed.
    """
    from .explain import Explainer

    explainer = Explainer.of(model)
    images = explainer.checked(images)
    name = explainer.default_layers("grad-cam")[0] if layer is None else layer
    run = explainer.differentiated(centre_of=explainer.layer(name))
    gradient = np.abs(run(images, np.zeros(len(images))).gradients[0])
    found = gradient.mean(axis=(0, 1 if explainer.channels_first else 3))
    return found / max(found.max(), np.finfo(np.float32).tiny)
