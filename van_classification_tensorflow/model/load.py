"""The authors' tensors <-> the variables of a Keras model, strict both ways.

`weights/namings.py` says what the tensors are called and how their axes differ; here each finds its
variable: `block1.0.attn.proj_1.weight` is `model.get_layer("block1_0").attn.proj_1.kernel`.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import keras
import numpy as np

from ..spec.architecture import Architecture, TensorSpec, architecture_of, check
from ..weights.checkpoint import read_checkpoint
from ..weights.hub import local
from ..weights.namings import translate
from ..weights.sidecars import check_sizes
from .layers import BatchNorm

# What Keras calls the authors' leaves.
LEAVES = {
    "weight": ("kernel", "gamma"),
    "bias": ("bias", "beta"),
    "running_mean": ("moving_mean",),
    "running_var": ("moving_variance",),
    "shortcut": ("shortcut",),  # of a fused model
}


def architecture(model: keras.Model) -> Architecture:
    """The sizes of a VAN, read off its layers.

    Raises:
        ValueError: The model has not the layers of a VAN.
    """
    by_name = _layers(model)
    embed_dims, hidden_dims, depths = [], [], []
    i = 1
    while f"patch_embed{i}" in by_name:
        depth = 0
        while f"block{i}_{depth}" in by_name:
            depth += 1
        embed_dims.append(by_name[f"patch_embed{i}"].dim)
        hidden_dims.append(by_name[f"block{i}_0"].hidden_dim)
        depths.append(depth)
        i += 1
    in_chans = by_name["patch_embed1"].proj.kernel.shape[2]
    classes = by_name["head"].units if "head" in by_name else None
    return Architecture(tuple(embed_dims), tuple(hidden_dims), tuple(depths), in_chans, classes)


def _layers(model: keras.Model) -> dict[str, Any]:
    by_name = {layer.name: layer for layer in model.layers}
    if "patch_embed1" not in by_name or "block1_0" not in by_name:
        raise ValueError(
            "`model` must be a VAN, with layers named patch_embed1, block1_0, ... "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    return by_name


def check_unchanged(model: keras.Model) -> None:
    """Raises `ValueError` where a norm has another epsilon than the authors' tensors are for."""
    for layer in model._flatten_layers():
        if isinstance(layer, BatchNorm) and layer.epsilon != 1e-5:
            raise ValueError(
                f"`model` must have batch norms with epsilon 1e-5. Received: {layer.path} has "
                f"{layer.epsilon}"
            )


def check_not_quantised(model: keras.Model) -> None:
    """Raises `ValueError` where a layer computes with other numbers than its tensors hold."""
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(f"`model` must not be quantised. Received: {layer.path} is")


def official_variables(model: keras.Model) -> dict[str, Any]:
    """The Keras variable behind every official tensor name, in the authors' order."""
    if _layers(model)["patch_embed1"].norm is None:
        raise ValueError(
            f"`model` must not be fused, as the tensors have other values then: {model.name!r}. "
            "Take the model it was made from"
        )
    check_unchanged(model)
    by_name = _layers(model)
    return {name: variable(by_name, name) for name in architecture(model).tensors()}


def variable(by_name: Mapping[str, Any], name: str) -> Any:
    """The Keras variable behind one official tensor name, among {layer's name: layer}."""
    # The authors nest the 3 x 3 convolution in a module of its own, and number blocks by a dot.
    *modules, leaf = name.replace(".mlp.dwconv.dwconv.", ".mlp.dwconv.").split(".")
    if leaf.startswith("layer_scale_"):
        modules, leaf = [*modules, leaf], "weight"
    if modules[0].startswith("block"):
        modules = [f"{modules[0]}_{modules[1]}", *modules[2:]]
    layer = by_name[modules[0]]
    for module in modules[1:]:
        layer = getattr(layer, module)
    return next(getattr(layer, found) for found in LEAVES[leaf] if hasattr(layer, found))


def to_official(model: keras.Model) -> dict[str, np.ndarray]:
    """All weights of `model` under the authors' names, in PyTorch's shapes.

    `load_checkpoint(model, to_official(model))` changes nothing, bit for bit. Of a model with
    LoRA: the kernels it computes with.

    Raises:
        ValueError: The model is fused or quantised, and has other tensors.
    """
    check_not_quantised(model)
    return exported(official_variables(model), architecture(model).tensors())


def exported(
    variables: Mapping[str, Any], specs: Mapping[str, TensorSpec]
) -> dict[str, np.ndarray]:
    """{name: variable} -> {name: array} in PyTorch's shapes."""
    tensors = {}
    for name, found in variables.items():
        array = keras.ops.convert_to_numpy(found)
        array = np.ascontiguousarray(specs[name].from_keras(array))
        tensors[name] = array.reshape(specs[name].shape)
    return tensors


def assign(
    variables: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    arrays: Mapping[str, np.ndarray],
    changes: Sequence[str] = (),
) -> None:
    """Assigns checked arrays in PyTorch's shapes, and warns the caller's caller of `changes`."""
    for name, found in variables.items():
        found.assign(specs[name].to_keras(arrays[name]))
    for change in changes:
        warnings.warn(change, stacklevel=3)


def load_checkpoint(
    model: keras.Model,
    source: Mapping[str, Any] | str | os.PathLike,
    *,
    wrapper: str | None = None,
    adapt: bool = False,
    allow_nonfinite: bool = False,
) -> keras.Model:
    """Loads weights of any known format and naming into `model`: all of them, or nothing.

    Args:
        model: A built VAN; with `include_top=False`, the head of the source is left out.
        source: Path of a weight file (`.pth`, `.pth.tar`, `.bin`, `.safetensors`, `.h5`,
            `.weights.h5`, `.keras`, or a Hugging Face folder), the address of a folder of a hub
            (hf://USER/NAME[@REVISION]), or {tensor name: array} in the shapes of the code base
            whose names they are.
        wrapper: Entry of a PyTorch file to read, such as "model_ema".
        adapt: Where the source has another number of classes, keep the head that `model`
            has; where it has other input channels, fit the first convolution to them.
            Either is said in a warning.
        allow_nonfinite: Accept NaN and infinities.

    Returns:
        `model`.

    Raises:
        ValueError: The file is refused, or names are missing, unused or mis-shaped; all are
            listed, none assigned.
        OSError: There is no such file.
    """
    specs = architecture(model).tensors()
    variables = official_variables(model)
    changed = [
        name
        for name, variable in variables.items()
        if not isinstance(variable, keras.Variable) or "float" not in str(variable.dtype)
    ]
    if changed:
        raise ValueError(
            "`model` must hold plain weights, without LoRA or quantisation: load first. "
            f"Changed: {', '.join(changed)}"
        )
    if isinstance(source, (str, os.PathLike)):
        found = read_checkpoint(local(source), wrapper)
        tensors, origin, config = found.tensors, str(source), found.metadata.get("config.json")
    elif isinstance(source, Mapping):
        tensors, origin, config = dict(source), "`source`", None
    else:
        raise ValueError(
            "`source` must be a path, or a mapping {tensor name: array}. "
            f"Received: {type(source).__name__}"
        )
    # A headless model takes the backbone of a classifier's checkpoint.
    unneeded = set() if "head.weight" in specs else {"head.weight", "head.bias"}
    changes: list[str] = []
    try:
        tensors = translate(tensors).tensors
        if config is not None:
            check_sizes(config, architecture_of(tensors))
        if adapt:
            tensors, changes = _adapted(tensors, specs, model)
        arrays = check(tensors, specs, unneeded, allow_nonfinite)
    except ValueError as error:
        raise ValueError(
            f"{origin} does not fit model {model.name!r}; nothing was loaded.\n{error}"
        ) from error
    assign(variables, specs, arrays, changes)
    return model


def _adapted(
    tensors: dict[str, Any], specs: dict[str, TensorSpec], model: keras.Model
) -> tuple[dict[str, Any], list[str]]:
    """`tensors` with the head and the first convolution fitted to `specs`; and what changed."""
    tensors_before, tensors, changes = tensors, dict(tensors), list[str]()
    head, first = "head.weight", "patch_embed1.proj.weight"
    if head in specs and np.shape(tensors.get(head)) != specs[head].shape:
        own = model.get_layer("head")
        tensors[head] = keras.ops.convert_to_numpy(own.kernel).T
        tensors["head.bias"] = keras.ops.convert_to_numpy(own.bias)
        there = "head was left out" if head in tensors_before else "file has no head"
        changes.append(
            f"The weights' {there}: model {model.name!r} has {own.units:,} classes of "
            "its own. Its head is freshly initialised and needs training."
        )
    return tensors, changes + fit_input(tensors, specs, first)


def fit_input(tensors: dict[str, Any], specs: Mapping[str, TensorSpec], first: str) -> list[str]:
    """Fits the first convolution, by its name, to the input channels of `specs`; what changed."""
    if np.ndim(tensors.get(first)) != 4 or first not in specs:
        return []
    channels, wanted = np.shape(tensors[first])[1], specs[first].shape[1]
    if channels == wanted:
        return []
    tensors[first] = with_input_channels(np.asarray(tensors[first], np.float32), wanted)
    how = "summed" if wanted == 1 else "repeated and rescaled"
    return [f"The first convolution was {how} from {channels} to {wanted} input channels."]


def with_input_channels(kernel: np.ndarray, channels: int) -> np.ndarray:
    """A first convolution for another number of input channels, as timm adapts it.

    For one channel the sum: a grey image then gives what its copy in every channel gave. For
    others the channels in turn, scaled so that an image of constant channels gives the same.

    Args:
        kernel: (O, I, k, k).
        channels: At least 1.

    Returns:
        (O, channels, k, k), float32.
    """
    present = kernel.shape[1]
    if channels == 1:
        return kernel.sum(axis=1, keepdims=True)
    repeats = -(-channels // present)
    repeated = np.tile(kernel, (1, repeats, 1, 1))[:, :channels]
    return (repeated * np.float32(present / channels)).astype(np.float32)
