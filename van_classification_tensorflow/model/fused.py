"""A trained VAN -> the same function without batch norm and layer scale: `fuse`.

What is folded into what, and why it is exact, is said in `weights/fold.py`.
"""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from typing import Any

import keras
import numpy as np
from keras import ops

from ..spec.architecture import Architecture
from ..weights.fold import fold
from .blocks import Attention, Block, Mlp, OverlapPatchEmbed, Part
from .layers import BatchNorm, PointwiseConv, gelu, register
from .load import check_not_quantised, check_unchanged, variable
from .van import VAN


def _check_inference(training: bool | None) -> None:
    if training:
        raise ValueError(
            "a fused model is for inference only, as its normalisation is folded into the "
            "convolutions: train the model it was made from, then `fuse` that. "
            f"Received: training={training}"
        )


@register
class FusedAttention(Attention):
    """shortcut * x + proj_2(LKA(GELU(proj_1(x)))): `Attention` between both its affines."""

    def build(self, input_shape):
        self.shortcut = self.add_weight(name="shortcut", shape=(self.dim,), initializer="ones")
        super().build(input_shape)

    def call(self, x, training=None):
        u = self.spatial_gating_unit(self.proj_1(x))
        return x * ops.cast(self.shortcut, x.dtype) + self.proj_2(u)


@register
class FusedBlock(Part):
    """`Block` for inference: (B, H, W, C), as it came.

    Args:
        dim: Channels C.
        hidden_dim: Channels inside the MLP.
    """

    arguments = ("dim", "hidden_dim")

    def __init__(self, dim: int, hidden_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.attn = self._part(FusedAttention, dim, name="attn")
        self.mlp = self._part(Mlp, dim, hidden_dim, name="mlp")

    def build(self, input_shape):
        self.attn.build(input_shape)
        self.mlp.build(input_shape)
        self.built = True

    def call(self, x, training=None):
        _check_inference(training)
        if keras.backend.backend() == "openvino":
            return self._channels_first(x)
        x = self.attn(x)
        return x + self.mlp(x)

    def _channels_first(self, x):
        """The forward pass for OpenVINO, an inference backend of Keras.

        Its convolutions are channels-first, and Keras puts a transposition on either side of each.
        Here they stand at the ends of the block only, where those of neighbours cancel.
        """

        def conv(layer, x):
            if isinstance(layer, PointwiseConv):
                x = ops.conv(x, layer.kernel[None, None], data_format="channels_first")
                activation = layer.activation
            else:
                kernel, dilation = layer.kernel, layer.dilation
                x = ops.depthwise_conv(x, kernel, 1, "same", "channels_first", dilation)
                activation = gelu if layer.gelu else keras.activations.linear
            return activation(x + ops.reshape(layer.bias, (1, -1, 1, 1)))

        x = ops.transpose(x, (0, 3, 1, 2))
        attn, mlp = self.attn, self.mlp
        gating = attn.spatial_gating_unit
        u = conv(attn.proj_1, x)
        u = u * conv(gating.conv1, conv(gating.conv_spatial, conv(gating.conv0, u)))
        x = x * ops.reshape(attn.shortcut, (1, -1, 1, 1)) + conv(attn.proj_2, u)
        x = x + conv(mlp.fc2, conv(mlp.dwconv, conv(mlp.fc1, x)))
        return ops.transpose(x, (0, 2, 3, 1))


@register
class FusedVAN(VAN):
    """What `fuse` makes of a `VAN`; the same arguments, of which none may ask for training."""

    _block = staticmethod(lambda dim, hidden, *rates, **kwargs: FusedBlock(dim, hidden, **kwargs))
    _patch_embed = partial(OverlapPatchEmbed, batch_norm=False)

    def fit(self, *args, **kwargs):
        """Refused: see `fuse`."""
        _check_inference(True)


def fuse(model: keras.Model) -> keras.Model:
    """An inference model with no batch norm and no layer scale, equal to `model`'s inference.

    Args:
        model: A `VAN`, or a model that holds one at any depth: built on its layers by Keras's
            functional API, or with it inside other models, wrappers such as `TimeDistributed`, or
            layers and subclassed models that Keras can make again from their `get_config`. It is
            left as it is, and shares no variable with what is returned.

    Returns:
        A model with the same inputs, outputs, layer names, labels and preprocessing. Logits agree
        to 1e-5 of the largest (float32). It saves, loads and is exported by Keras as any model, and
        refuses to be trained. (`van export` takes the model it was made from.)

    Raises:
        ValueError: `model` holds no VAN that can be fused: another model, one that is fused
            already, a quantised one, or one where a VAN cannot be reached; names the layer. With
            a layer of someone's own around it, both are compared on a random input first.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {type(model).__name__}")
    if any(isinstance(layer, FusedBlock) for layer in model._flatten_layers()):
        raise ValueError(f"`model` must not be fused already. Received: {model.name!r}")
    if not _has_blocks(model):
        raise ValueError(
            "`model` must be a VAN, or be made of one. "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    check_unchanged(model)
    check_not_quantised(model)
    pairs: list[tuple[keras.layers.Layer, keras.layers.Layer]] = []
    fused = _twin(model, pairs)
    if model.built and not fused.built:
        fused.build_from_config(model.get_build_config())
    for layer, twin in pairs:
        _fill(twin, layer)
    holders = [
        layer
        for layer, _ in pairs
        if _has_blocks(layer) and not isinstance(layer, (Block, OverlapPatchEmbed))
    ]
    if holders:
        _check_same(model, fused, holders[0])
    for layer in fused._flatten_layers():
        if isinstance(layer, BatchNorm):
            raise ValueError(f"`model` holds a batch norm that cannot be reached: {layer.path}")
    for name in ("labels", "preprocessing"):  # of `VANB0(input_tensor=...)`
        if name in vars(model):
            setattr(fused, name, getattr(model, name))
    return fused


def _has_blocks(layer: keras.Operation) -> bool:
    return isinstance(layer, keras.layers.Layer) and any(
        isinstance(one, (Block, OverlapPatchEmbed)) for one in layer._flatten_layers()
    )


def _twin(layer: keras.layers.Layer, pairs: list) -> keras.layers.Layer:
    """The layer that takes the place of `layer` in the fused model.

    `pairs` is given each layer with its twin, to be filled when all are built.
    """
    twin: Any
    if isinstance(layer, VAN):
        config = {**_for_inference(layer.get_config()), "drop_rate": 0.0, "drop_path_rate": 0.0}
        twin = FusedVAN.from_config(config)
        pairs += zip(layer.layers, twin.layers, strict=True)
        return twin
    if isinstance(layer, Block):
        config = _for_inference(layer.get_config())
        del config["drop_rate"], config["drop_path_rate"]
        twin = FusedBlock.from_config(config)
    elif isinstance(layer, OverlapPatchEmbed):
        config = {**_for_inference(layer.get_config()), "batch_norm": False}
        twin = OverlapPatchEmbed.from_config(config)
    elif not _has_blocks(layer):
        twin = type(layer).from_config(layer.get_config())
    elif isinstance(layer, (keras.Sequential, keras.Function)):
        twin = keras.models.clone_model(layer, clone_function=lambda one: _twin(one, pairs))
        if layer.built and not twin.built:
            twin.build(layer.input_shape)
        return twin
    else:
        twin = _holder(layer, pairs)
    pairs.append((layer, twin))
    return twin


def _for_inference(config: dict[str, Any]) -> dict[str, Any]:
    """`config` without what was set on its parts for training; LoRA is in the kernels."""
    parts = {
        name: {
            key: value
            for key, value in _for_inference(changes).items()
            if key != "trainable"
            and not key.startswith("lora_")
            and not key.endswith(("_regularizer", "_constraint"))
        }
        for name, changes in config.get("parts", {}).items()
    }
    return {**config, "parts": parts} if parts else config


def _holder(layer: keras.layers.Layer, pairs: list) -> keras.layers.Layer:
    """A twin of a layer of any class that holds a VAN, with twins of the layers in it."""
    try:
        twin = type(layer).from_config(layer.get_config())
        children = list(zip(layer._layers, list(twin._layers), strict=True))
    except (NotImplementedError, TypeError, ValueError) as error:
        raise ValueError(
            f"`model` has a layer that holds a VAN and cannot be made again: {layer.path} "
            f"({type(layer).__name__}) needs a `get_config` from which `from_config` makes all its "
            f"layers. {error}"
        ) from error
    for child, made in children:
        if _has_blocks(child):
            _replace(twin, made, _twin(child, pairs))
        else:
            pairs.append((child, made))
    return twin


def _replace(holder: keras.layers.Layer, old: keras.layers.Layer, new: keras.layers.Layer) -> None:
    """Puts `new` where `old` is in `holder`: an attribute, or in containers at any depth.

    What holds `old` in another way, as a function does that was made around it, cannot call it.
    """

    def holds(value: Any) -> bool:
        if isinstance(value, dict):
            value = tuple(value.values())
        return value is old or (isinstance(value, (list, tuple, set)) and any(map(holds, value)))

    def swapped(value: Any) -> Any:
        if isinstance(value, dict):
            items = [(key, swapped(one)) for key, one in value.items()]
            return (OrderedDict if isinstance(value, OrderedDict) else dict)(items)
        if isinstance(value, tuple) and hasattr(value, "_fields"):
            return type(value)(*map(swapped, value))
        for kind in (list, tuple, set):
            if isinstance(value, kind):
                return kind(map(swapped, value))
        return new if value is old else value

    def refuse(*args: Any, **kwargs: Any) -> Any:
        error: Any = ValueError(_unreachable(holder))
        error._keras_call_info_injected = True  # Keras adds pages to what is not marked so
        raise error

    # PyTorch keeps layers among its modules. `_layers` and TensorFlow's `_self_...` follow.
    attributes = {**vars(holder), **vars(holder).get("_modules", {})}
    found = [
        name
        for name, value in attributes.items()
        if name not in ("_layers", "_modules") and not name.startswith("_self_") and holds(value)
    ]
    if not found:
        raise ValueError(_unreachable(holder))
    holder._tracker.unlock()
    for name in found:
        setattr(holder, name, swapped(attributes[name]))
    holder._tracker.untrack(old)
    for layer in old._flatten_layers():
        layer.call = layer.compute_output_spec = refuse


def _unreachable(holder: keras.layers.Layer) -> str:
    return (
        f"`model` has a layer in which a VAN cannot be reached: {holder.path or holder.name} "
        f"({type(holder).__name__}) must hold it, and call it, as an attribute or in lists, tuples "
        "or dictionaries"
    )


def _check_same(model: keras.Model, fused: keras.Model, holder: keras.layers.Layer) -> None:
    """Raises `ValueError` where they differ on a random input: what `holder` does is not known.

    It is left where that input is not taken, or the answer is not the same each time.
    """
    rng = np.random.default_rng(0)

    def example(shape: tuple[int | None, ...]) -> np.ndarray:
        pixels = len(shape) - 3  # the last axes, if they may be of any size
        sizes = [n or (64 if i >= pixels > 0 else 2) for i, n in enumerate(shape)]
        return rng.normal(size=sizes).astype(np.float32)

    def outputs(one: keras.Model) -> list[np.ndarray]:
        found = keras.tree.flatten(one(x, training=False))
        return [keras.ops.convert_to_numpy(part).astype(np.float32) for part in found]

    try:
        if isinstance(model, (keras.Sequential, keras.Function)):
            x = keras.tree.map_structure(lambda one: example(one.shape), model.input)
        else:
            x = example(model.get_build_config()["input_shape"])
        expected = outputs(model)
    except Exception:  # a stranger's code takes what it will
        return
    half = any(
        layer.compute_dtype not in ("float32", "float64") for layer in model._flatten_layers()
    )
    allowed = 0.1 if half else 1e-3
    for i, (ours, theirs) in enumerate(zip(outputs(fused), expected, strict=True)):
        same = np.abs(ours - theirs).max() <= allowed * np.abs(theirs).max()
        if not same and np.array_equal(outputs(model)[i], theirs):
            raise ValueError(_unreachable(holder))


def _fill(twin: keras.layers.Layer, layer: keras.layers.Layer) -> None:
    """Gives `twin` what `layer` holds; not what layers in it hold, where they have twins."""
    if isinstance(layer, (Block, OverlapPatchEmbed)):
        _fold_into(twin, layer)
    elif _has_blocks(layer):
        for name in ("_trainable_variables", "_non_trainable_variables"):
            for theirs, own in zip(getattr(layer, name), getattr(twin, name), strict=True):
                own.assign(theirs)
    elif isinstance(layer, keras.layers.Layer):
        twin.set_weights(layer.get_weights())
        if isinstance(twin, keras.layers.Normalization):
            twin.finalize_state()  # it computes with what it derives from its weights


def _fold_into(twin: keras.layers.Layer, layer: Block | OverlapPatchEmbed) -> None:
    """Gives `twin` the weights of `layer`, folded, whatever the layers are called."""
    if isinstance(layer, Block):
        name, hidden_dim = "block1_0", layer.hidden_dim
    else:
        name, hidden_dim = "patch_embed1", layer.dim
    # As the first block, or the first patch embedding, of a network of one.
    specs = Architecture((layer.dim,), (hidden_dim,), (1,), 1, None).tensors()
    names = [n for n in specs if n.startswith(name.replace("_0", ".0."))]
    tensors = {
        n: specs[n].from_keras(ops.convert_to_numpy(variable({name: layer}, n))) for n in names
    }
    for n, array in fold(tensors).items():
        values = specs[n].to_keras(array) if n in specs else array
        variable({name: twin}, n).assign(values)
