"""Activations and products of Keras layers, as nodes: what most other layers are made of."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import activations, layers

from ..model.layers import DepthwiseConv, gelu
from ..spec.scores import SIGMOID, SOFTMAX
from .keras_values import Untranslatable, Value, Writer

# (the writer, a name for what is made, the layer's inputs) -> its output. Constants that an
# operation is called with stand among the inputs.
Write = Callable[[Writer, str, list[Any]], Value]


def array(weight: Any) -> Any:
    """A copy of a weight, which training may change; None of None."""
    if weight is None:
        return None
    return np.array(keras.ops.convert_to_numpy(weight), np.float32)


def same(step: Any) -> Write:
    """What does nothing in inference."""
    return lambda writer, name, inputs: inputs[0]


# --- Activations ---


def node(kind: str, scores: str | None = None, **attributes: Any) -> Write:
    """An operator of ONNX that treats every number by itself."""

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        x = writer.unary(kind, inputs[0], name, **attributes)
        return Value(x.name, x.shape, x.channels_first, scores)

    return write


def over_axis(kind: str, axis: int = -1, scores: str | None = None) -> Write:
    """The same, of numbers of one axis."""

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        if axis % len(x.shape) == 0:
            raise Untranslatable("combines pictures with each other")
        last = axis % len(x.shape) == len(x.shape) - 1
        made = writer.add(kind, [x.name], name, axis=x.axis(axis))
        return Value(made, x.shape, x.channels_first, scores if last else None)

    return write


def silu(writer: Writer, name: str, inputs: list[Any]) -> Value:
    """X sigmoid(x), which ONNX has no operator for."""
    (x,) = inputs
    return writer.binary("Mul", x, writer.unary("Sigmoid", x, f"{name}.sigmoid"), name)


def clipped(low: float, high: float) -> Write:
    """Within two bounds."""

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        bounds = [writer.real(one, f"{name}.bound") for one in (low, high)]
        return Value(writer.add("Clip", [x.name, *bounds], name), x.shape, x.channels_first)

    return write


ACTIVATIONS: dict[Any, Write] = {
    activations.linear: same(None),
    activations.relu: node("Relu"),
    activations.relu6: clipped(0, 6),
    activations.leaky_relu: node("LeakyRelu", alpha=0.2),
    activations.elu: node("Elu", alpha=1.0),
    activations.selu: node("Selu"),
    activations.gelu: node("Gelu"),
    gelu: node("Gelu"),
    activations.silu: silu,
    activations.mish: node("Mish"),
    activations.tanh: node("Tanh"),
    activations.exponential: node("Exp"),
    activations.softplus: node("Softplus"),
    activations.softsign: node("Softsign"),
    activations.hard_sigmoid: node("HardSigmoid", alpha=1 / 6, beta=0.5),
    activations.hard_silu: node("HardSwish"),
    activations.sigmoid: node("Sigmoid", SIGMOID),
    activations.softmax: over_axis("Softmax", scores=SOFTMAX),
    activations.log_softmax: over_axis("LogSoftmax"),
}


def activation(layer: Any) -> Write:
    """That of a layer; of none, nothing."""
    found = ACTIVATIONS.get(getattr(layer, "activation", None) or activations.linear)
    if found is None:
        raise Untranslatable(f"has an activation that is not translated: {layer.activation!r}")
    return found


# --- Products ---


def dense(layer: Any) -> Write:
    """`Dense`; of a map (1, H, W, C) a convolution of 1 x 1."""
    kernel, bias, activate = array(layer.kernel), array(layer.bias), activation(layer)

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        units = kernel.shape[1]
        if len(x.shape) == 2:
            weights = [writer.real(one, name) for one in (kernel, bias) if one is not None]
            made = Value(writer.add("Gemm", [x.name, *weights], name), (1, units))
        elif len(x.shape) == 4:
            made = convolved(writer, name, x, kernel.T[:, :, None, None], bias, (0, 0, 0, 0))
        else:
            product = writer.add("MatMul", [x.name, writer.real(kernel, name)], name)
            made = writer.affine(Value(product, (*x.shape[:-1], units)), None, bias, name)
        return activate(writer, name, [made])

    return write


def convolved(
    writer: Writer,
    name: str,
    x: Value,
    weight: np.ndarray,
    bias: np.ndarray | None,
    pads: tuple[int, ...],
    data_format: str = "channels_last",
    strides: tuple[int, int] = (1, 1),
    dilations: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Value:
    """`weight` (outputs, inputs / groups, k, k); `pads` at the top, left, bottom and right."""
    given, (_, height, width) = writer.images(x, data_format)
    kernel = weight.shape[2:]
    sizes = [
        (size + pads[i] + pads[i + 2] - (kernel[i] - 1) * dilations[i] - 1) // strides[i] + 1
        for i, size in enumerate((height, width))
    ]
    made = writer.add(
        "Conv",
        [given, *(writer.real(one, f"{name}.weight") for one in (weight, bias) if one is not None)],
        name,
        kernel_shape=kernel,
        strides=strides,
        dilations=dilations,
        pads=pads,
        group=groups,
    )
    return writer.of_images(made, (len(weight), sizes[0], sizes[1]), data_format)


def zeros_around(
    layer: Any, kernel: Any, dilations: Any, height: int, width: int
) -> tuple[int, ...]:
    """Zeros at the top, left, bottom and right, as TensorFlow's "same" has them."""
    if layer.padding == "valid":
        return (0, 0, 0, 0)
    if layer.padding != "same":
        raise Untranslatable(f"has padding={layer.padding!r}")
    before, after = [], []
    for size, side, stride, dilation in zip(
        (height, width), kernel, layer.strides, dilations, strict=True
    ):
        reach = (-(-size // stride) - 1) * stride + (side - 1) * dilation + 1
        total = max(reach - size, 0)
        before.append(total // 2)
        after.append(total - total // 2)
    return (*before, *after)


def conv(layer: Any) -> Write:
    """`Conv2D` and `DepthwiseConv2D`."""
    kernel, bias, activate = array(layer.kernel), array(layer.bias), activation(layer)
    if isinstance(layer, layers.DepthwiseConv2D):
        channels, multiplier = kernel.shape[2:]
        weight = kernel.transpose(2, 3, 0, 1).reshape(channels * multiplier, 1, *kernel.shape[:2])
        groups = channels
    else:
        weight, groups = kernel.transpose(3, 2, 0, 1), layer.groups

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        sides = x.shape[2:] if layer.data_format == "channels_first" else x.shape[1:3]
        pads = zeros_around(layer, layer.kernel_size, layer.dilation_rate, *sides)
        how = layer.data_format, layer.strides, layer.dilation_rate, groups
        made = convolved(writer, name, x, weight, bias, pads, *how)
        return activate(writer, name, [made])

    return write


def depthwise(layer: DepthwiseConv) -> Write:
    """The depthwise convolution of a VAN."""
    product = conv(layer)
    if not layer.gelu:
        return product
    return lambda writer, name, x: ACTIVATIONS[gelu](writer, name, [product(writer, name, x)])
