"""A `VANSegmenter` as an ONNX graph of one picture of a fixed size.

The layers of the decoders for `engines.keras_graph`, which knows those of a VAN.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import layers

from ..engines.keras_graph import KerasGraph
from ..engines.keras_layers import batch_norm
from ..engines.keras_products import Write, array, conv, dense, same
from ..engines.keras_values import Untranslatable, Value, Writer
from .hamburger import NMF2D, seeded_bases
from .layers import ChannelDropout, ConvNormAct
from .resize import AdaptiveAveragePooling, ResizeLike, UpsampleTwice

_EPSILON = 1e-6  # of the updates of the factorisation


def graph_of(model: keras.Model) -> KerasGraph:
    """The graphs of a segmenter with the weights that it has now, one for each size.

    Raises:
        Untranslatable: It has a layer that is not translated; names it.
    """
    return KerasGraph(model, KINDS)


def _conv_norm_act(layer: ConvNormAct) -> Write:
    steps = [dense(layer.conv) if layer.kernel_size == 1 else conv(layer.conv)]
    if layer.bn is not None:
        steps.append(batch_norm(layer.bn))
    elif layer.gn is not None:
        steps.append(_group_norm(layer.gn))

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        (x,) = inputs
        for step in steps:
            x = step(writer, name, [x])
        return writer.unary("Relu", x, name) if layer.relu else x

    return write


def _group_norm(layer: layers.GroupNormalization) -> Write:
    gamma, beta, groups = array(layer.gamma), array(layer.beta), layer.groups

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        given, (channels, height, width) = writer.images(inputs[0], "channels_last")
        name = writer.unique(f"{name}.groups")
        size = channels // groups * height * width
        apart = writer.add(
            "Reshape", [given, writer.whole([1, groups, size], f"{name}.apart")], name
        )
        axes = writer.whole([2], f"{name}.axes")
        epsilon = writer.real(layer.epsilon, f"{name}.epsilon")
        made = writer.normalised(name, apart, axes, epsilon)
        together = writer.whole([1, channels, height, width], f"{name}.together")
        made = writer.add("Reshape", [made, together], name)
        shape = channels, height, width
        return writer.affine(writer.of_images(made, shape, "channels_last"), gamma, beta, name)

    return write


# --- Sizes ---


def _to_size(mode: str, size: Callable[[list[Any]], tuple[int, int]]) -> Write:
    """The first input at the size that `size` makes of all of them."""
    how = {"mode": "linear", "coordinate_transformation_mode": "half_pixel"}
    if mode == "nearest":
        how = {
            "mode": "nearest",
            "nearest_mode": "floor",
            "coordinate_transformation_mode": "asymmetric",
        }

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        x, wanted = inputs[0], size(inputs)
        if x.shape[1:3] == wanted:
            return x
        given, (channels, _, _) = writer.images(x, "channels_last")
        target = writer.whole([1, channels, *wanted], f"{name}.sizes")
        made = writer.add("Resize", [given, "", "", target], name, **how)
        return writer.of_images(made, (channels, *wanted), "channels_last")

    return write


def _resize_like(layer: ResizeLike) -> Write:
    return _to_size(layer.interpolation, lambda inputs: inputs[1].shape[1:3])


def _upsample_twice(layer: UpsampleTwice) -> Write:
    return _to_size("bilinear", lambda x: (2 * x[0].shape[1], 2 * x[0].shape[2]))


def _adaptive_pool(layer: AdaptiveAveragePooling) -> Write:
    """As two products with the windows' weights, which are constants here."""
    bins = layer.bins

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        given, (channels, height, width) = writer.images(inputs[0], "channels_last")
        down = writer.real(_windows(height, bins), f"{name}.down")
        across = writer.real(_windows(width, bins).T, f"{name}.across")
        rows = writer.add("MatMul", [down, given], f"{name}.rows")
        made = writer.add("MatMul", [rows, across], name)
        return writer.of_images(made, (channels, bins, bins), "channels_last")

    return write


def _windows(size: int, bins: int) -> np.ndarray:
    """(bins, size): 1 / length of each window at the positions in it, 0 elsewhere."""
    made: np.ndarray = np.zeros((bins, size), np.float32)
    for i in range(bins):
        first, end = i * size // bins, -(-(i + 1) * size // bins)
        made[i, first:end] = 1 / (end - first)
    return made


# --- The factorisation of Light-Ham ---


def _nmf(layer: NMF2D) -> Write:
    if layer.seed is None or layer.bases is not None:
        raise Untranslatable("has bases that are drawn anew, or given: `ham_seed` fixes them")
    groups, rank, steps = layer.groups, layer.rank, layer.eval_steps
    seed = layer.seed

    def write(writer: Writer, name: str, inputs: list[Any]) -> Value:
        maps = writer.plain(inputs[0])
        _, height, width, channels = maps.shape
        positions, each = height * width, channels // groups
        name = writer.unique(name)

        def add(kind: str, *given: str, **how: Any) -> str:
            return writer.add(kind, given, f"{name}.{kind.lower()}", **how)

        def transposed(one: str) -> str:
            return add("Transpose", one, perm=[0, 2, 1])

        epsilon = writer.real(_EPSILON, f"{name}.epsilon")

        def updated(factor: str, products: str, fit: str) -> str:
            return add("Mul", factor, add("Div", products, add("Add", fit, epsilon)))

        shape = writer.whole([positions, groups, each], f"{name}.shape")
        x = add("Transpose", add("Reshape", maps.name, shape), perm=[1, 0, 2])
        x_transposed = transposed(x)
        bases = writer.real(seeded_bases(seed, groups, each, rank), f"{name}.bases")

        def updated_coef(coef: str, bases: str) -> str:
            fit = add("MatMul", coef, add("MatMul", transposed(bases), bases))
            return updated(coef, add("MatMul", x, bases), fit)

        coef = add("Softmax", add("MatMul", x, bases), axis=2)
        for _ in range(steps):
            coef = updated_coef(coef, bases)
            turned = transposed(coef)
            fit = add("MatMul", bases, add("MatMul", turned, coef))
            bases = updated(bases, add("MatMul", x_transposed, coef), fit)
        coef = updated_coef(coef, bases)
        made = add("MatMul", coef, transposed(bases))
        back = writer.whole([1, height, width, channels], f"{name}.back")
        made = add("Reshape", add("Transpose", made, perm=[1, 0, 2]), back)
        return Value(made, (1, height, width, channels))

    return write


KINDS: dict[type, Callable[[Any], Write]] = {
    ConvNormAct: _conv_norm_act,
    ChannelDropout: same,
    ResizeLike: _resize_like,
    UpsampleTwice: _upsample_twice,
    AdaptiveAveragePooling: _adaptive_pool,
    NMF2D: _nmf,
}
