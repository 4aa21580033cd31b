"""A Keras model as an ONNX graph of one picture: a VAN, a fused one, or what is built around one.

`onnx_graph.py` writes a VAN from its tensors; here the model itself is walked, so that whatever
stands before and behind the VAN comes along. Blocks are folded as `fuse` does. Sizes are fixed:
runtimes are faster that way, and what depends on a size (zeros for "same", a flattened map) becomes
a constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from ..model.arguments import check_images
from ..model.van import VAN
from .keras_layers import Kinds, takes_whole_numbers, write_of
from .keras_products import Write
from .keras_values import Untranslatable, Value, Writer

_KNOWN = ("keras", "van_classification_tensorflow")


@dataclass(frozen=True)
class _Step:
    """A call of a layer: values by their numbers, constants as they are, in the order it takes."""

    name: str
    kind: str
    write: Write
    inputs: tuple[Any, ...]
    output: int


@dataclass(frozen=True)
class _Number:
    """Which value of the model something is; 0 is the picture."""

    of: int


@dataclass(frozen=True)
class Written:
    """A graph.

    Args:
        model: Serialized: `images` (1, ...) -> an output (1, ...) for each of the Keras model, in
            the order of `keras.tree.flatten`, all float32.
        scores: Of each output what it was made with of logits, "softmax" or "sigmoid", if it was.
    """

    model: bytes
    scores: tuple[str | None, ...]


class KerasGraph:
    """The graphs of a model, with the weights that it has now; later ones are not seen.

    Args:
        model: A functional or `Sequential` model of pictures, a `VAN` among them.
        more: Layers that are known beside those of `keras_layers`.

    Raises:
        Untranslatable: It is another model, or has a layer that is not translated; names it.
    """

    def __init__(self, model: keras.Model, more: Kinds | None = None):
        self.name, self._more = model.name, more
        self._steps: list[_Step] = []
        self._count = 1
        inputs = _inputs(model)
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise Untranslatable(
                f"{model.name!r} must take pictures, one tensor of 4 axes: it takes "
                + ", ".join(str(tuple(one.shape)) for one in inputs)
            )
        self._outputs = self._walk(model, [_Number(0)])

    def __call__(self, shape: Sequence[int]) -> Written:
        """The graph for pictures of one shape, (H, W, C) or (C, H, W) as the model takes them.

        Raises:
            Untranslatable: A layer cannot be translated for that shape.
            ValueError: A VAN in it takes no such pictures.
        """
        from onnx import TensorProto

        writer = Writer()
        images = Value(writer.unique("images"), (1, *shape))
        values: dict[_Number, Value] = {_Number(0): images}
        for step in self._steps:
            inputs = [values[one] if isinstance(one, _Number) else one for one in step.inputs]
            try:
                made = step.write(writer, step.name, inputs)
            except Untranslatable as error:
                raise Untranslatable(f"its layer {step.name!r} ({step.kind}) {error}") from None
            values[_Number(step.output)] = made
        outputs, scores = {}, []
        for i, number in enumerate(self._outputs):
            value = writer.plain(values[number])
            outputs[writer.add("Identity", [value.name], f"output_{i}")] = value.shape
            scores.append(value.scores)
        given = (images.name, TensorProto.FLOAT, images.shape)
        return Written(writer.model(self.name, given, outputs).SerializeToString(), tuple(scores))

    def _walk(self, model: Any, inputs: list[_Number]) -> list[_Number]:
        """Adds the steps of a model; gives its outputs."""
        _check_model(model)
        if isinstance(model, VAN):
            self._add(model, lambda writer, name, x: _taken(model, x[0]), (inputs[0],))
        known = {id(tensor): number for tensor, number in zip(model.inputs, inputs, strict=True)}
        waiting = list(reversed(model.outputs))
        while waiting:
            tensor = waiting[-1]
            if id(tensor) in known:
                waiting.pop()
                continue
            step, index, _ = tensor._keras_history
            node = step._inbound_nodes[index]
            missing = [one for one in node.input_tensors if id(one) not in known]
            if missing:
                waiting.extend(reversed(missing))
                continue
            arguments = self._arguments(step, node, known)
            if _is_model(step):
                made = self._walk(step, arguments)
            else:
                made = [self._add(step, self._write(step, node), tuple(arguments))]
            if len(made) != len(node.outputs):
                raise Untranslatable(f"{_named(step)} gives {len(node.outputs)} outputs")
            known.update(zip(map(id, node.outputs), made, strict=True))
        return [known[id(tensor)] for tensor in model.outputs]

    def _add(self, step: Any, write: Write, inputs: tuple[Any, ...]) -> _Number:
        self._steps.append(_Step(step.name, type(step).__name__, write, inputs, self._count))
        self._count += 1
        return _Number(self._count - 1)

    def _write(self, step: Any, node: Any) -> Write:
        whole = [one.dtype for one in node.input_tensors if one.dtype != "float32"]
        try:
            if whole and not takes_whole_numbers(step):
                raise Untranslatable(f"takes {whole[0]}")
            return write_of(step, self._more)
        except Untranslatable as error:
            raise Untranslatable(f"{_named(step)} {error}") from None

    @staticmethod
    def _arguments(step: Any, node: Any, known: dict[int, _Number]) -> list[Any]:
        """What a step is called with: numbers of values, and constants where it is of `ops`."""
        arguments, named = node.arguments.args, dict(node.arguments.kwargs)
        if isinstance(step, keras.layers.Layer):
            named.pop("training", None)  # in inference Keras calls every layer with False
            named = {name: value for name, value in named.items() if value is not None}
        flat = keras.tree.flatten((arguments, list(named.values())))
        found = [known.get(id(one), one) for one in flat]
        tensors = sum(isinstance(one, _Number) for one in found)
        if isinstance(step, keras.layers.Layer) and (named or tensors < len(found)):
            raise Untranslatable(f"{_named(step)} is called with more than its input")
        for one in found:
            if not isinstance(one, _Number) and not _is_constant(one):
                raise Untranslatable(f"{_named(step)} is called with {type(one).__name__}")
        return [one if isinstance(one, _Number) else _constant(one) for one in found]


def _inputs(model: Any) -> list[Any]:
    if not _is_model(model):
        raise Untranslatable(f"{model.name!r} is no functional and no `Sequential` model")
    if not model.built or not model.inputs:
        raise Untranslatable(f"{model.name!r} is not built")
    for tensor in model.inputs:
        if tensor.dtype not in ("float32", "uint8", "int32"):
            raise Untranslatable(f"{model.name!r} takes {tensor.dtype}, not float32")
    return model.inputs


def _is_model(step: Any) -> bool:
    return isinstance(step, (keras.Function, keras.Sequential))


def _check_model(model: Any) -> None:
    """Raises `Untranslatable` where a model does something else than what its graph says."""
    for method in ("__call__", "call", "predict_step"):
        of = next(one for one in type(model).__mro__ if method in vars(one))
        if of.__module__.split(".")[0] not in _KNOWN or method in vars(model):
            raise Untranslatable(f"{_named(model)} has a `{method}` of its own")


def _taken(van: VAN, images: Value) -> Value:
    check_images(images.shape, "inputs", van.in_chans, van.data_format, van.num_stages)
    return images


def _named(step: Any) -> str:
    return f"its layer {step.name!r} ({type(step).__name__})"


def _is_constant(one: Any) -> bool:
    return isinstance(one, (int, float, np.ndarray, np.number)) or hasattr(one, "dtype")


def _constant(one: Any) -> np.ndarray:
    return np.array(keras.ops.convert_to_numpy(one), np.float32)
