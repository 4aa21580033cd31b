"""Official tensor names <-> Keras variables, strict both ways.

One explicit table: every tensor of the authors' state dict, the variable that holds it here,
and the change of axes between them.

| official tensor    | shape               | here                                  |
|--------------------|---------------------|---------------------------------------|
| convolution        | (O, I, k, k)        | Conv2D kernel (k, k, I, O)            |
| depthwise          | (C, 1, k, k)        | DepthwiseConv2D kernel (k, k, C, 1)   |
| 1 x 1 convolution  | (O, I, 1, 1)        | PointwiseConv kernel (I, O)           |
| linear             | (O, I)              | Dense kernel (I, O)                   |
| norm weight, bias  | (C,)                | gamma, beta                           |
| running_mean, _var | (C,)                | moving_mean, moving_variance          |
| layer_scale_1, _2  | (C,)                | gamma                                 |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

# Axes of the official array in the order of ours; None: the same array.
_CONV = (2, 3, 1, 0)
_DEPTHWISE = (2, 3, 0, 1)
_LINEAR = (1, 0)


@dataclass(frozen=True)
class _Slot:
    """One official tensor and the variable that holds it."""

    name: str
    variable: Any
    axes: tuple[int, ...] | None = None
    pointwise: bool = False  # official (O, I, 1, 1), here (I, O)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the official tensor."""
        ours = tuple(self.variable.shape)
        if self.axes is not None:
            ours = tuple(ours[self.axes.index(axis)] for axis in range(len(self.axes)))
        return (*ours, 1, 1) if self.pointwise else ours

    def to_ours(self, array: np.ndarray) -> np.ndarray:
        if self.pointwise:
            array = array[:, :, 0, 0]
        return array if self.axes is None else np.transpose(array, self.axes)

    def to_official(self) -> np.ndarray:
        array = keras.ops.convert_to_numpy(self.variable)
        if self.axes is not None:
            array = np.transpose(array, np.argsort(self.axes))
        if self.pointwise:
            array = array[:, :, None, None]
        return np.ascontiguousarray(array)


def _slots(model: keras.Model) -> Iterator[_Slot]:
    """Every official tensor of `model`, in the order of the authors' state dict."""

    def kernel_bias(name, layer, axes, pointwise=False):
        yield _Slot(f"{name}.weight", layer.kernel, axes, pointwise)
        yield _Slot(f"{name}.bias", layer.bias)

    def norm(name, layer):
        yield _Slot(f"{name}.weight", layer.gamma)
        yield _Slot(f"{name}.bias", layer.beta)

    def batch_norm(name, layer):
        yield from norm(name, layer)
        yield _Slot(f"{name}.running_mean", layer.moving_mean)
        yield _Slot(f"{name}.running_var", layer.moving_variance)

    by_name = {layer.name: layer for layer in model.layers}
    if "patch_embed1" not in by_name:
        raise ValueError(
            "`model` must be a VAN, with layers named patch_embed1, block1_0, ... "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    i = 1
    while f"patch_embed{i}" in by_name:
        embed = by_name[f"patch_embed{i}"]
        yield from kernel_bias(f"patch_embed{i}.proj", embed.proj, _CONV)
        yield from batch_norm(f"patch_embed{i}.norm", embed.norm)
        j = 0
        while f"block{i}_{j}" in by_name:
            block, b = by_name[f"block{i}_{j}"], f"block{i}.{j}"
            lka = block.attn.spatial_gating_unit
            gating = f"{b}.attn.spatial_gating_unit"
            yield _Slot(f"{b}.layer_scale_1", block.layer_scale_1.gamma)
            yield _Slot(f"{b}.layer_scale_2", block.layer_scale_2.gamma)
            yield from batch_norm(f"{b}.norm1", block.norm1)
            yield from kernel_bias(f"{b}.attn.proj_1", block.attn.proj_1, _LINEAR, True)
            yield from kernel_bias(f"{gating}.conv0", lka.conv0, _DEPTHWISE)
            yield from kernel_bias(f"{gating}.conv_spatial", lka.conv_spatial, _DEPTHWISE)
            yield from kernel_bias(f"{gating}.conv1", lka.conv1, _LINEAR, True)
            yield from kernel_bias(f"{b}.attn.proj_2", block.attn.proj_2, _LINEAR, True)
            yield from batch_norm(f"{b}.norm2", block.norm2)
            yield from kernel_bias(f"{b}.mlp.fc1", block.mlp.fc1, _LINEAR, True)
            yield from kernel_bias(f"{b}.mlp.dwconv.dwconv", block.mlp.dwconv, _DEPTHWISE)
            yield from kernel_bias(f"{b}.mlp.fc2", block.mlp.fc2, _LINEAR, True)
            j += 1
        yield from norm(f"norm{i}", by_name[f"norm{i}"])
        i += 1
    if "head" in by_name:
        yield from kernel_bias("head", by_name["head"], _LINEAR)


def official_variables(model: keras.Model) -> dict[str, Any]:
    """The Keras variable behind every official tensor name, in the authors' order."""
    return {slot.name: slot.variable for slot in _slots(model)}


def to_official(model: keras.Model) -> dict[str, np.ndarray]:
    """All weights of `model` under the authors' names, in PyTorch's shapes.

    `load_checkpoint(model, to_official(model))` changes nothing, bit for bit.
    """
    return {slot.name: slot.to_official() for slot in _slots(model)}


def to_ours(model: keras.Model, source: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Official arrays (weights or gradients) in the shapes of `model`'s variables.

    Raises:
        ValueError: Lists every missing, unused and mis-shaped name at once.
    """
    if not isinstance(source, Mapping):
        raise ValueError(
            "`source` must be a mapping {official tensor name: array}. "
            f"Received: {type(source).__name__}"
        )
    slots = {slot.name: slot for slot in _slots(model)}
    changed = [
        name
        for name, slot in slots.items()
        if not isinstance(slot.variable, keras.Variable) or "float" not in str(slot.variable.dtype)
    ]
    if changed:
        raise ValueError(
            "`model` must hold plain weights, without LoRA or quantisation: load first. "
            f"Changed: {', '.join(changed)}"
        )
    # A headless model takes the backbone of a classifier's checkpoint; torch's step counter
    # of BatchNorm has no counterpart in inference or in training with a fixed momentum.
    ignored = {
        name.replace(".running_mean", ".num_batches_tracked")
        for name in slots
        if name.endswith(".running_mean")
    }
    if "head.weight" not in slots:
        ignored |= {"head.weight", "head.bias"}

    arrays, unreadable = {}, []
    for name in slots:
        if name in source:
            try:
                arrays[name] = np.asarray(source[name])
            except (TypeError, ValueError, RuntimeError) as error:
                unreadable.append(f"{name}: {error}")
    missing = [name for name in slots if name not in source]
    unused = [str(name) for name in source if name not in slots and name not in ignored]
    shapes = [
        f"{name}: expected {slots[name].shape}, received {array.shape}"
        for name, array in arrays.items()
        if array.shape != slots[name].shape
    ]
    dtypes = [
        f"{name}: {array.dtype}"
        for name, array in arrays.items()
        if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16"
    ]
    problems = []
    for title, names in (
        ("missing", missing),
        ("not used by the model", unused),
        ("wrong shape", shapes),
        ("not numbers", dtypes),
        ("not readable as an array", unreadable),
    ):
        if names:
            problems.append(f"{title} ({len(names)}):\n  " + "\n  ".join(names))
    if problems:
        raise ValueError(
            f"`source` does not fit model {model.name!r}; nothing was loaded.\n"
            + "\n".join(problems)
        )
    return {name: slot.to_ours(arrays[name]) for name, slot in slots.items()}


def load_checkpoint(model: keras.Model, source: Mapping[str, Any]) -> keras.Model:
    """Loads weights under the authors' tensor names into `model`: all of them, or nothing.

    Args:
        model: A built VAN; with `include_top=False`, the head of the source is left out.
        source: {official name: array}, arrays in PyTorch's shapes.

    Returns:
        `model`.

    Raises:
        ValueError: Names are missing, unused or mis-shaped; all are listed, none assigned.
    """
    arrays = to_ours(model, source)
    for name, variable in official_variables(model).items():
        variable.assign(arrays[name])
    return model
