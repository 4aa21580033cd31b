"""The nodes of a Keras model: each value knows its shape in Keras and how it lies in the graph."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .onnx_nodes import Nodes

_TO_FIRST, _TO_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


class Untranslatable(ValueError):  # noqa: N818 - it says what the model is
    """A model that cannot be written as a graph; names the layer and why."""


@dataclass(frozen=True)
class Value:
    """What a layer gives for one picture.

    Args:
        name: In the graph.
        shape: In Keras, (1, ...).
        channels_first: Its last axis lies before the two others: it is (1, H, W, C) in Keras,
            and (1, C, H, W) in the graph.
        scores: What was just made of logits, "softmax" or "sigmoid".
    """

    name: str
    shape: tuple[int, ...]
    channels_first: bool = False
    scores: str | None = None

    def axis(self, axis: int) -> int:
        """Where an axis of Keras lies in the graph."""
        axis %= len(self.shape)
        return _TO_LAST[axis] if self.channels_first else axis


class Writer(Nodes):
    """Writes what layers compute of one picture."""

    def __init__(self) -> None:
        self.own: dict[str, np.ndarray] = {}
        super().__init__(self.own)
        self._names: set[str] = set()

    def unique(self, name: str) -> str:
        """`name`, or one like it that nothing in the graph has or begins with."""
        found, number = name, 1
        while found in self._names:
            number += 1
            found = f"{name}_{number}"
        self._names.add(found)
        return found

    def add(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """One node of a name like `name`."""
        return self.op(kind, *inputs, name=self.unique(name), **attributes)

    def whole(self, numbers: Sequence[int], name: str) -> str:
        """A constant of whole numbers."""
        return self.constant(np.array(numbers, np.int64), self.unique(name))

    def real(self, numbers: Any, name: str) -> str:
        """A constant of real numbers."""
        return self.constant(np.asarray(numbers, np.float32), self.unique(name))

    # --- Layouts ---

    def plain(self, x: Value) -> Value:
        """`x` as it lies in Keras."""
        if not x.channels_first:
            return x
        name = self.add("Transpose", [x.name], f"{x.name}.last", perm=_TO_LAST)
        return Value(name, x.shape, scores=x.scores)

    def first(self, x: Value) -> Value:
        """`x` with its channels first; other than four axes stay as they are."""
        if x.channels_first or len(x.shape) != 4:
            return x
        name = self.add("Transpose", [x.name], f"{x.name}.first", perm=_TO_FIRST)
        return Value(name, x.shape, True)

    def images(self, x: Value, data_format: str) -> tuple[str, tuple[int, int, int]]:
        """(name, (C, H, W)) of what lies (1, C, H, W) in the graph; `data_format` is Keras's."""
        if data_format == "channels_first":
            _, c, h, w = x.shape
            return self.plain(x).name, (c, h, w)
        _, h, w, c = x.shape
        return self.first(x).name, (c, h, w)

    @staticmethod
    def of_images(name: str, shape: tuple[int, int, int], data_format: str) -> Value:
        """The other way round."""
        c, h, w = shape
        if data_format == "channels_first":
            return Value(name, (1, c, h, w))
        return Value(name, (1, h, w, c), True)

    def permuted(self, x: Value, axes: Sequence[int], name: str) -> Value:
        """Keras's `transpose`; nothing where `x` lies so already."""
        axes = tuple(axis % len(x.shape) for axis in axes)
        shape = tuple(x.shape[axis] for axis in axes)
        if axes == _TO_LAST and not x.channels_first:
            return Value(x.name, shape, True)
        if axes == _TO_FIRST and x.channels_first:
            return Value(x.name, shape)
        if axes[0] != 0:
            raise Untranslatable("moves the axis of the pictures")
        return Value(self.add("Transpose", [self.plain(x).name], name, perm=axes), shape)

    def reshaped(self, x: Value, shape: Sequence[int], name: str) -> Value:
        """(1, ...); one -1 in `shape`, without the pictures' axis, is what is left over."""
        shape, size = list(shape), prod(x.shape)
        if -1 in shape:
            shape[shape.index(-1)] = size // max(-prod(shape), 1)
        if prod(shape) != size:
            raise Untranslatable(f"makes {tuple(shape)} of {x.shape[1:]}")
        target = self.whole([1, *shape], f"{name}.shape")
        return Value(self.add("Reshape", [self.plain(x).name, target], name), (1, *shape))

    # --- Arithmetic ---

    def unary(self, kind: str, x: Value, name: str, **attributes: Any) -> Value:
        """An operator that treats every number by itself."""
        return Value(self.add(kind, [x.name], name, **attributes), x.shape, x.channels_first)

    def binary(self, kind: str, a: Any, b: Any, name: str) -> Value:
        """An operator of two values, or of a value and a constant, with Keras's broadcasting."""
        if isinstance(a, Value) and isinstance(b, Value):
            if len(a.shape) != len(b.shape):
                raise Untranslatable(f"combines {a.shape[1:]} with {b.shape[1:]}")
            if a.channels_first != b.channels_first:
                a, b = self.first(a), self.first(b)
            layout, names = a.channels_first, [a.name, b.name]
        else:
            x = a if isinstance(a, Value) else b
            layout = x.channels_first
            names = [one.name if one is x else self.beside(one, x, name) for one in (a, b)]
        shapes = [one.shape if isinstance(one, Value) else np.shape(one) for one in (a, b)]
        shape = tuple(np.broadcast_shapes(*shapes))
        return Value(self.add(kind, names, name), shape, layout)

    def beside(self, constant: Any, x: Value, name: str) -> str:
        """A constant, to be combined with `x`."""
        array = np.asarray(constant, np.float32)
        rank = len(x.shape)
        if array.ndim > rank or (array.ndim == rank and array.shape[0] != 1):
            raise Untranslatable(f"combines {x.shape[1:]} with a constant {array.shape}")
        if array.ndim and x.channels_first:
            array = array.reshape(*[1] * (rank - array.ndim), *array.shape).transpose(_TO_FIRST)
        return self.real(array, f"{name}.constant")

    def affine(self, x: Value, scale: Any, shift: Any, name: str) -> Value:
        """Scale x + shift; of None nothing."""
        if scale is not None:
            x = self.binary("Mul", x, scale, f"{name}.scaled")
        return x if shift is None else self.binary("Add", x, shift, name)

    def reduced(self, kind: str, x: Value, axes: Sequence[int], keepdims: bool, name: str) -> Value:
        """Over axes of Keras; `kind` is "ReduceMean" or "ReduceMax"."""
        axes = sorted(axis % len(x.shape) for axis in axes)
        if 0 in axes:
            raise Untranslatable("combines pictures with each other")
        rest = [1 if i in axes else n for i, n in enumerate(x.shape) if keepdims or i not in axes]
        if not keepdims and axes != [1, 2]:  # what stays of these two lies in Keras's order
            x = self.plain(x)
        where = self.whole([x.axis(axis) for axis in axes], f"{name}.axes")
        made = self.add(kind, [x.name, where], name, keepdims=int(keepdims))
        return Value(made, tuple(rest), x.channels_first and keepdims)
