"""Semantic FPN (Kirillov et al., "Panoptic Feature Pyramid Networks", arXiv 1901.02446)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers

from .resize import ResizeLike, UpsampleTwice


def feature_pyramid(stages: Sequence, part: Any, **every: Any) -> list:
    """The neck, FPN (arXiv 1612.03144): every stage with what is above it.

    Args:
        stages: Maps of the four stages, strides 4 to 32, (B, H, W, C_i).
        part: Gives the layer of a name, as `DecoderSizes.convolutions` lists them.
        every: Arguments of all layers without weights.

    Returns:
        Four maps of the same strides, each of neck_channels.
    """
    sums = [part(f"neck_lateral_{k}")(maps) for k, maps in enumerate(stages)]
    for k in reversed(range(len(sums) - 1)):
        resize = ResizeLike("nearest", name=f"neck_resize_{k}", **every)
        above = resize([sums[k + 1], sums[k]])
        sums[k] = layers.Add(name=f"neck_topdown_{k}", **every)([sums[k], above])
    return [part(f"neck_{k}")(maps) for k, maps in enumerate(sums)]


def semantic_fpn(stages: Sequence, part: Any, **every: Any):
    """Every level of the pyramid brought up to stride 4, and their sum (paper, Figure 3).

    Args: as above.

    Returns:
        (B, H / 4, W / 4, channels).
    """
    levels: list = []
    for k, x in enumerate(feature_pyramid(stages, part, **every)):
        for j in range(max(1, k)):
            x = part(f"scale_{k}_{j}")(x)
            if k:
                x = UpsampleTwice(name=f"scale_upsample_{k}_{j}", **every)(x)
        # Where a side is no multiple of 32, twice as many positions are too many.
        if k:
            x = ResizeLike(name=f"scale_resize_{k}", **every)([x, levels[0]])
        levels.append(x)
    return layers.Add(name="scale_sum", **every)(levels)
