"""UPerNet (Xiao et al., "Unified Perceptual Parsing", arXiv 1807.10221, Section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from keras import layers

from ..spec.decoders import POOL_SCALES
from .resize import AdaptiveAveragePooling, ResizeLike


def upernet(stages: Sequence, part: Any, **every: Any):
    """A feature pyramid on top of pyramid pooling, all levels fused.

    Args:
        stages: Maps of the four stages, strides 4 to 32, (B, H, W, C_i).
        part: Gives the layer of a name, as `DecoderSizes.convolutions` lists them.
        every: Arguments of all layers without weights.

    Returns:
        The fused maps at stride 4, (B, H / 4, W / 4, channels).
    """
    *lower, top = stages
    # Pyramid pooling (PSPNet, arXiv 1612.01105) over the last stage.
    pooled = [top]
    for k, bins in enumerate(POOL_SCALES):
        windows = AdaptiveAveragePooling(bins, name=f"ppm_pool_{k}", **every)(top)
        resize = ResizeLike(name=f"ppm_resize_{k}", **every)
        pooled.append(resize([part(f"ppm_{k}")(windows), top]))
    psp = part("psp")(layers.Concatenate(name="psp_concat", **every)(pooled))
    # From the top down, each sum feeding the next; the 3 x 3 convolutions come after all sums.
    sums = [part(f"lateral_{k}")(maps) for k, maps in enumerate(lower)] + [psp]
    for k in reversed(range(len(lower))):
        above = ResizeLike(name=f"topdown_resize_{k}", **every)([sums[k + 1], sums[k]])
        sums[k] = layers.Add(name=f"topdown_{k}", **every)([sums[k], above])
    levels = [part(f"fpn_{k}")(maps) for k, maps in enumerate(sums[:-1])] + [psp]
    first, *rest = levels
    rest = [
        ResizeLike(name=f"fpn_resize_{k}", **every)([maps, first])
        for k, maps in enumerate(rest, start=1)
    ]
    fused = layers.Concatenate(name="fpn_concat", **every)([first, *rest])
    return part("fpn_bottleneck")(fused)


def auxiliary(stages: Sequence, part: Any):
    """The fully convolutional head on the third stage, for training (mmsegmentation's FCNHead).

    Args:
        stages: As above.
        part: As above.

    Returns:
        Maps at stride 16, (B, H / 16, W / 16, auxiliary_channels).
    """
    return part("auxiliary_conv")(stages[2])
