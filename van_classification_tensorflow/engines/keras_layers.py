"""What each kind of Keras layer computes in inference, written as nodes of a graph.

A layer is translated by its very class, as one made from it may do more. What stands here has to be
right for what users build around a VAN, not complete: a kind that is missing is said, and the model
is run by Keras.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import layers

from ..model.blocks import LKA, Attention, Block, Mlp, OverlapPatchEmbed
from ..model.fused import FusedAttention, FusedBlock
from ..model.layers import (
    BatchNorm,
    DepthwiseConv,
    Dropout,
    DropPath,
    LayerScale,
    PatchConv,
    PointwiseConv,
)
from ..model.load import variable
from ..spec.architecture import Architecture
from ..spec.scores import SIGMOID, SOFTMAX
from ..weights.fold import fold
from ..weights.keras_config import ONLY_IN_TRAINING
from .keras_products import (
    Write,
    activation,
    array,
    clipped,
    conv,
    convolved,
    dense,
    depthwise,
    node,
    over_axis,
    same,
    silu,
    zeros_around,
)
from .keras_values import Untranslatable, Value, Writer

_COMPOSITES = (Block, FusedBlock, OverlapPatchEmbed, LKA, Attention, FusedAttention, Mlp)
_PARTS = (
    *_COMPOSITES,
    BatchNorm,
    DepthwiseConv,
    Dropout,
    DropPath,
    LayerScale,
    PatchConv,
    PointwiseConv,
)
_PARTS_OF_KERAS = (layers.ZeroPadding2D,)
_SAME = tuple(getattr(layers, name) for name in sorted(ONLY_IN_TRAINING))


Kinds = Mapping[type, Callable[[Any], Write]]
"""{class of a layer: what gives, for such a layer, what writes it}"""


def write_of(step: Any, more: Kinds | None = None) -> Write:
    """What writes a layer, or one of `keras.ops`, with the weights that it has now.

    Args:
        step: The layer or operation.
        more: Of layers that are known to the caller.

    Raises:
        Untranslatable: It is none that is known, or computes in another way than it is known to.
    """
    if not isinstance(step, keras.layers.Layer):
        of_keras = type(step).__module__.startswith("keras.src.ops.")
        known = _OPERATIONS.get(type(step).__name__) if of_keras else None
    else:
        _check(step)
        known = (more or {}).get(type(step)) or _LAYERS.get(type(step))
    if known is None:
        raise Untranslatable("is of a kind that is not translated")
    return known(step)


def takes_whole_numbers(step: Any) -> bool:
    """Whether it makes the same of whole numbers as of these as float32."""
    kinds = (layers.Rescaling, layers.Normalization, layers.Permute, *_SAME)
    return type(step) in kinds or type(step).__name__ == "Cast"


def _check(layer: keras.layers.Layer) -> None:
    """Raises `Untranslatable` where something was set on a layer, or on a part of it."""
    composite = type(layer) in _COMPOSITES
    for part in layer._flatten_layers():
        where = "" if part is layer else f"has a part {part.name!r} that "
        if composite and type(part) not in (*_PARTS, *_PARTS_OF_KERAS):
            raise Untranslatable(f"{where}is of a kind that is not translated")
        if "call" in vars(part):
            raise Untranslatable(f"{where}has a `call` of its own")
        if getattr(part, "quantization_mode", None) is not None:
            raise Untranslatable(f"{where}is quantised")
        if part.compute_dtype != "float32":
            raise Untranslatable(f"{where}computes in {part.compute_dtype}, not in float32")
        if not part.built:
            raise Untranslatable(f"{where}has no weights yet")
        if composite and isinstance(part, BatchNorm) and part.epsilon != 1e-5:
            raise Untranslatable(f"{where}has epsilon={part.epsilon}")


# --- Activations ---


def _relu(layer: Any) -> Write:
    if layer.threshold:
        raise Untranslatable(f"has threshold={layer.threshold}")
    if layer.negative_slope:
        if layer.max_value is not None:
            raise Untranslatable("has both max_value and negative_slope")
        return node("LeakyRelu", alpha=float(layer.negative_slope))
    return node("Relu") if layer.max_value is None else clipped(0, float(layer.max_value))


def _softmax(step: Any) -> Write:
    if not isinstance(step.axis, int):
        raise Untranslatable(f"has axis={step.axis}")
    return over_axis("Softmax", step.axis, SOFTMAX)


# --- Parts of a VAN ---


def _tensors(layer: Any) -> dict[str, np.ndarray]:
    """The folded tensors of a block or patch embedding, named as in a VAN of one block."""
    if isinstance(layer, OverlapPatchEmbed):
        name, hidden, folded = "patch_embed1", layer.dim, layer.norm is None
    else:
        name, hidden, folded = "block1_0", layer.hidden_dim, isinstance(layer, FusedBlock)
    specs = Architecture((layer.dim,), (hidden,), (1,), 1, None).tensors()
    gone = (".norm.", ".norm1.", ".norm2.", ".layer_scale_") if folded else ()
    tensors = {
        one: specs[one].from_keras(array(variable({name: layer}, one)))
        for one in specs
        if one.startswith(name.replace("_0", ".0.")) and not any(part in one for part in gone)
    }
    if not folded:
        return fold(tensors)
    if isinstance(layer, FusedBlock):
        tensors["block1.0.attn.shortcut"] = array(layer.attn.shortcut)
    return tensors


def _block(layer: Any) -> Write:
    tensors = {name.removeprefix("block1.0."): one for name, one in _tensors(layer).items()}

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        name = writer.unique(name)
        writer.own.update({f"{name}.{leaf}": one for leaf, one in tensors.items()})
        return Value(writer.block(name, writer.first(x).name), x.shape, True)

    return write


def _patch_embed(layer: OverlapPatchEmbed) -> Write:
    tensors, pad = _tensors(layer), layer.kernel_size // 2
    weight, bias = (tensors[f"patch_embed1.proj.{leaf}"] for leaf in ("weight", "bias"))

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        how = "channels_last", (layer.stride, layer.stride)
        return convolved(writer, name, inputs[0], weight, bias, (pad,) * 4, *how)

    return write


def _lka(layer: LKA) -> Write:
    steps = [depthwise(layer.conv0), depthwise(layer.conv_spatial), dense(layer.conv1)]

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        x = inputs[0]
        for step in steps:
            x = step(writer, name, [x])
        return writer.binary("Mul", x, inputs[0], name)

    return write


def _attention(layer: Attention) -> Write:
    steps = [dense(layer.proj_1), _lka(layer.spatial_gating_unit), dense(layer.proj_2)]
    shortcut = array(getattr(layer, "shortcut", None))  # of a fused one

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        x = inputs[0]
        for step in steps:
            x = step(writer, name, [x])
        return writer.binary("Add", writer.affine(inputs[0], shortcut, None, name), x, name)

    return write


def _mlp(layer: Mlp) -> Write:
    steps = [dense(layer.fc1), depthwise(layer.dwconv), dense(layer.fc2)]

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        for step in steps:
            x = step(writer, name, [x])
        return x

    return write


def _layer_scale(layer: LayerScale) -> Write:
    gamma = array(layer.gamma)
    return lambda writer, name, inputs: writer.affine(inputs[0], gamma, None, name)


# --- Norms ---


def batch_norm(layer: Any) -> Write:
    """A batch normalisation in inference: a scale and a shift for each channel."""
    mean, variance = array(layer.moving_mean), array(layer.moving_variance)
    gamma, beta = array(layer.gamma), array(layer.beta)
    scale = (1.0 if gamma is None else gamma) / np.sqrt(np.float64(variance) + layer.epsilon)
    shift = (0.0 if beta is None else beta) - scale * mean
    (axis,) = [layer.axis] if isinstance(layer.axis, int) else layer.axis

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        where = [1] * len(x.shape)
        where[axis] = -1
        return writer.affine(x, scale.reshape(where), shift.reshape(where), name)

    return write


def _layer_norm(layer: layers.LayerNormalization) -> Write:
    if layer.rms_scaling:
        raise Untranslatable("has rms_scaling=True")
    gamma, beta = array(layer.gamma), array(layer.beta)
    axes = [layer.axis] if isinstance(layer.axis, int) else list(layer.axis)

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        name, rank = writer.unique(name), len(x.shape)
        over = sorted(axis % rank for axis in axes)
        if 0 in over:
            raise Untranslatable("combines pictures with each other")
        where = writer.whole([x.axis(axis) for axis in over], f"{name}.axes")
        epsilon = writer.real(layer.epsilon, f"{name}.epsilon")
        made = writer.normalised(name, x.name, where, epsilon)
        shape = [n if i in over else 1 for i, n in enumerate(x.shape)]
        scale, shift = (None if one is None else one.reshape(shape) for one in (gamma, beta))
        return writer.affine(Value(made, x.shape, x.channels_first), scale, shift, name)

    return write


def _normalization(layer: layers.Normalization) -> Write:
    if layer.invert or layer.mean is None:
        raise Untranslatable("has invert=True" if layer.invert else "has no mean yet")
    mean, variance = array(layer.mean), array(layer.variance)
    deviation = np.maximum(np.sqrt(variance), keras.backend.epsilon())

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        centred = writer.binary("Sub", inputs[0], mean, f"{name}.centred")
        return writer.binary("Div", centred, deviation, name)

    return write


def _rescaling(layer: layers.Rescaling) -> Write:
    scale, shift = np.asarray(layer.scale), np.asarray(layer.offset)
    if max(scale.ndim, shift.ndim) and keras.config.image_data_format() == "channels_first":
        raise Untranslatable("has a scale for each channel, channels first")
    return lambda writer, name, inputs: writer.affine(inputs[0], scale, shift, name)


# --- Positions ---


def _global_pool(kind: str, layer: Any) -> Write:
    axes = [2, 3] if layer.data_format == "channels_first" else [1, 2]

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        return writer.reduced(kind, inputs[0], axes, layer.keepdims, name)

    return write


def _pool(kind: str, layer: Any) -> Write:
    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        given, (channels, *sides) = writer.images(inputs[0], layer.data_format)
        pads = zeros_around(layer, layer.pool_size, (1, 1), *sides)
        sizes = [
            (side + pads[i] + pads[i + 2] - layer.pool_size[i]) // layer.strides[i] + 1
            for i, side in enumerate(sides)
        ]
        how = {"kernel_shape": layer.pool_size, "strides": layer.strides, "pads": pads}
        made = writer.add(kind, [given], name, **how)
        return writer.of_images(made, (channels, sizes[0], sizes[1]), layer.data_format)

    return write


def _resized(layer: Any, size: Callable[[int, int], tuple[int, int]], data_format: str) -> Write:
    """To `size` of (height, width), as TensorFlow does without antialias."""
    how = {
        "nearest": {"mode": "nearest", "nearest_mode": "floor"},
        "bilinear": {"mode": "linear"},
    }.get(layer.interpolation)
    if how is None:
        raise Untranslatable(f"has interpolation={layer.interpolation!r}")
    # Pixels are areas, or, to the nearest of a larger picture the same, points.
    how["coordinate_transformation_mode"] = (
        "half_pixel" if how["mode"] == "linear" else "asymmetric"
    )

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        given, (channels, height, width) = writer.images(inputs[0], data_format)
        shape = (channels, *size(height, width))
        target = writer.whole([1, *shape], f"{name}.sizes")
        made = writer.add("Resize", [given, "", "", target], name, **how)
        return writer.of_images(made, shape, data_format)

    return write


def _upsampling(layer: layers.UpSampling2D) -> Write:
    down, across = layer.size
    return _resized(layer, lambda h, w: (h * down, w * across), layer.data_format)


def _resizing(layer: Any) -> Write:
    for what in ("antialias", "crop_to_aspect_ratio", "pad_to_aspect_ratio"):
        if getattr(layer, what):
            raise Untranslatable(f"has {what}=True")
    if layer.interpolation != "bilinear":
        raise Untranslatable(f"has interpolation={layer.interpolation!r}")
    return _resized(layer, lambda h, w: (layer.height, layer.width), layer.data_format)


def _padding(layer: layers.ZeroPadding2D) -> Write:
    (top, bottom), (left, right) = layer.padding

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        given, (channels, height, width) = writer.images(inputs[0], layer.data_format)
        pads = writer.whole([0, 0, top, left, 0, 0, bottom, right], f"{name}.pads")
        shape = (channels, top + height + bottom, left + width + right)
        made = writer.add("Pad", [given, pads], name)
        return writer.of_images(made, shape, layer.data_format)

    return write


# --- Shapes and several inputs ---


def _permute(layer: layers.Permute) -> Write:
    return lambda writer, name, inputs: writer.permuted(inputs[0], (0, *layer.dims), name)


def _flatten(layer: layers.Flatten) -> Write:
    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        if layer.data_format == "channels_first" and len(x.shape) > 2:
            x = writer.permuted(x, (0, *range(2, len(x.shape)), 1), name)
        return x if len(x.shape) == 2 else writer.reshaped(x, [-1], name)

    return write


def _reshape(layer: layers.Reshape) -> Write:
    return lambda writer, name, inputs: writer.reshaped(inputs[0], layer.target_shape, name)


def _merge(kind: str, step: Any) -> Write:
    """Of two or more values; their mean where the layer is `Average`."""

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        found = inputs[0]
        for one in inputs[1:]:
            found = writer.binary(kind, found, one, name)
        if isinstance(step, layers.Average):
            found = writer.binary("Mul", found, 1 / len(inputs), name)
        return found

    return write


def _concatenate(step: Any) -> Write:
    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        if not all(isinstance(one, Value) for one in inputs):
            raise Untranslatable("joins constants")
        if len({one.channels_first for one in inputs}) > 1:
            inputs = [writer.first(one) for one in inputs]
        shape, axis = list(inputs[0].shape), step.axis % len(inputs[0].shape)
        if axis == 0:
            raise Untranslatable("combines pictures with each other")
        shape[axis] = sum(one.shape[axis] for one in inputs)
        names, where = [one.name for one in inputs], inputs[0].axis(axis)
        layout = inputs[0].channels_first
        return Value(writer.add("Concat", names, name, axis=where), tuple(shape), layout)

    return write


def _mean(kind: str, step: Any) -> Write:
    axes = [step.axis] if isinstance(step.axis, int) else step.axis
    if axes is None or getattr(step, "initial", None) is not None:
        raise Untranslatable("combines pictures with each other")
    return lambda writer, name, inputs: writer.reduced(kind, inputs[0], axes, step.keepdims, name)


def _transpose(step: Any) -> Write:
    axes = step.axes
    if axes is None:
        raise Untranslatable("moves the axis of the pictures")
    return lambda writer, name, inputs: writer.permuted(inputs[0], axes, name)


def _reshape_operation(step: Any) -> Write:
    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        batch, *rest = step.newshape
        if batch not in (-1, 1) or (batch == -1 and -1 in rest):
            raise Untranslatable(f"makes the shape {tuple(step.newshape)}")
        return writer.reshaped(inputs[0], rest, name)

    return write


def _cast(step: Any) -> Write:
    if step.dtype != "float32":
        raise Untranslatable(f"casts to {step.dtype}")
    return same(step)


def _made(write: Write) -> Callable[[Any], Write]:
    return lambda step: write


_LAYERS: dict[Any, Callable[[Any], Write]] = {
    **dict.fromkeys(_SAME, same),
    Dropout: same,
    DropPath: same,
    Block: _block,
    FusedBlock: _block,
    OverlapPatchEmbed: _patch_embed,
    LKA: _lka,
    Attention: _attention,
    FusedAttention: _attention,
    Mlp: _mlp,
    LayerScale: _layer_scale,
    PointwiseConv: dense,
    DepthwiseConv: depthwise,
    BatchNorm: batch_norm,
    layers.BatchNormalization: batch_norm,
    layers.LayerNormalization: _layer_norm,
    layers.Normalization: _normalization,
    layers.Rescaling: _rescaling,
    layers.Dense: dense,
    layers.Conv2D: conv,
    layers.DepthwiseConv2D: conv,
    layers.Activation: activation,
    layers.ReLU: _relu,
    layers.LeakyReLU: lambda layer: node("LeakyRelu", alpha=float(layer.negative_slope)),
    layers.ELU: lambda layer: node("Elu", alpha=float(layer.alpha)),
    layers.Softmax: _softmax,
    layers.GlobalAveragePooling2D: partial(_global_pool, "ReduceMean"),
    layers.GlobalMaxPooling2D: partial(_global_pool, "ReduceMax"),
    layers.AveragePooling2D: partial(_pool, "AveragePool"),
    layers.MaxPooling2D: partial(_pool, "MaxPool"),
    layers.UpSampling2D: _upsampling,
    layers.Resizing: _resizing,
    layers.ZeroPadding2D: _padding,
    layers.Permute: _permute,
    layers.Flatten: _flatten,
    layers.Reshape: _reshape,
    layers.Add: partial(_merge, "Add"),
    layers.Average: partial(_merge, "Add"),
    layers.Maximum: partial(_merge, "Max"),
    layers.Minimum: partial(_merge, "Min"),
    layers.Multiply: partial(_merge, "Mul"),
    layers.Subtract: partial(_merge, "Sub"),
    layers.Concatenate: _concatenate,
}
# By name: Keras exports functions only, which make these.
_OPERATIONS: dict[str, Callable[[Any], Write]] = {
    "Add": partial(_merge, "Add"),
    "Subtract": partial(_merge, "Sub"),
    "Multiply": partial(_merge, "Mul"),
    "Divide": partial(_merge, "Div"),
    "TrueDivide": partial(_merge, "Div"),
    "Maximum": partial(_merge, "Max"),
    "Minimum": partial(_merge, "Min"),
    "Concatenate": _concatenate,
    "Mean": partial(_mean, "ReduceMean"),
    "Max": partial(_mean, "ReduceMax"),
    "Transpose": _transpose,
    "Reshape": _reshape_operation,
    "Cast": _cast,
    "StopGradient": same,
    "Negative": _made(node("Neg")),
    "Relu": _made(node("Relu")),
    "Relu6": _made(clipped(0, 6)),
    "Sigmoid": _made(node("Sigmoid", SIGMOID)),
    "Silu": _made(silu),
    "Tanh": _made(node("Tanh")),
    "Gelu": lambda step: node("Gelu", approximate="tanh" if step.approximate else "none"),
    "Softmax": _softmax,
}
