"""What a model costs: counted from the built model, not from its name."""

from __future__ import annotations

import math

import keras

from .model import VAN


def count_macs(model: VAN, image_size: int | tuple[int, int] = 224) -> int:
    """Multiply-accumulates of every convolution and linear layer for one image.

    The convention of the paper's Table 2 ("FLOPs"): biases, norms, GELU and the elementwise
    products of attention and layer scale are not counted.

    Args:
        model: A VAN.
        image_size: Side, or (height, width), in pixels.
    """
    if not isinstance(model, VAN):
        raise ValueError(f"`model` must be a VAN. Received: {type(model).__name__}")
    height, width = (image_size,) * 2 if isinstance(image_size, int) else image_size
    shape = (1, height, width, model.in_chans)
    macs = 0
    for layer in model.layers[1:]:
        if layer.name == "to_channels_last":
            continue
        shape = layer.compute_output_shape(shape)
        # All kernels of one such layer run at its output positions, and every element of a
        # kernel is used once a position: k*k*C_in*C_out, k*k*C depthwise, C_in*C_out.
        elements = sum(
            math.prod(variable.shape)
            for variable in layer.trainable_variables + layer.non_trainable_variables
            if len(variable.shape) >= 2
        )
        macs += elements * math.prod(shape[1:-1])
    return macs


def count_parameters(model: keras.Model) -> tuple[int, int]:
    """(parameters, BatchNorm statistics); frozen or not, a parameter is a parameter."""
    total = model.count_params()
    statistics = sum(
        math.prod(v.shape) for v in model.weights if v.name in ("moving_mean", "moving_variance")
    )
    return total - statistics, statistics
