"""A trained VAN -> the same function without batch norm and layer scale: `fuse`.

What is folded into what, and why it is exact, is said in `fold.py`.
"""

from __future__ import annotations

from functools import partial

import keras
from keras import ops

from .fold import fold
from .layers import PointwiseConv, gelu, register
from .load import variable
from .model import VAN, Attention, Block, Mlp, OverlapPatchEmbed, _Part
from .names import Architecture


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
class FusedBlock(_Part):
    """`Block` for inference: (B, H, W, C), as it came.

    Args:
        dim: Channels C.
        hidden_dim: Channels inside the MLP.
    """

    def __init__(self, dim: int, hidden_dim: int, **kwargs):
        super().__init__(**kwargs)
        self.dim = dim
        self.hidden_dim = hidden_dim
        self.attn = FusedAttention(dim, name="attn", dtype=self.dtype_policy)
        self.mlp = Mlp(dim, hidden_dim, name="mlp", dtype=self.dtype_policy)

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
        """The same for OpenVINO, an inference backend of Keras.

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

    def get_config(self) -> dict:
        return {**super().get_config(), "dim": self.dim, "hidden_dim": self.hidden_dim}


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
        model: A `VAN`, or a model built by Keras's functional API on the layers of one, or with
            one as a layer, such as a backbone with a head of your own. It is left as it is, and
            shares no variable with what is returned.

    Returns:
        A model with the same inputs, outputs, layer names, labels and preprocessing. Logits agree
        to 1e-5 of the largest (float32). It saves, loads and is exported by Keras as any model, and
        refuses to be trained. (`van export` and `Classifier` take the model it was made from.)

    Raises:
        ValueError: `model` holds no VAN that can be fused: another model, one that is fused
            already, or a quantised one.
    """
    if not isinstance(model, keras.Model):
        raise ValueError(f"`model` must be a Keras model. Received: {type(model).__name__}")
    if any(isinstance(layer, FusedBlock) for layer in model._flatten_layers()):
        raise ValueError(f"`model` must not be fused already. Received: {model.name!r}")
    if not _has_blocks(model):
        raise ValueError(
            "`model` must be a VAN, or be made of one by Keras's functional API. "
            f"Received: {type(model).__name__} {model.name!r}"
        )
    for layer in model._flatten_layers():
        if getattr(layer, "quantization_mode", None) is not None:
            raise ValueError(f"`model` must not be quantised. Received: {layer.path} is")
    if isinstance(model, VAN):
        config = {**model.get_config(), "drop_rate": 0.0, "drop_path_rate": 0.0}
        config.pop("frozen_layers", None)
        fused = FusedVAN.from_config(config)
    else:
        fused = keras.models.clone_model(model, clone_function=_fused_layer)
    for layer, twin in zip(model.layers, fused.layers, strict=True):
        if isinstance(layer, (Block, OverlapPatchEmbed)):
            _fold_into(twin, layer)
        elif isinstance(layer, keras.layers.Layer) and not _has_blocks(layer):
            twin.set_weights(layer.get_weights())
            if isinstance(twin, keras.layers.Normalization):
                twin.finalize_state()  # it computes with what it derives from its weights
    return fused


def _has_blocks(layer: keras.layers.Layer) -> bool:
    return isinstance(layer, keras.Model) and any(
        isinstance(one, Block) for one in layer._flatten_layers(include_self=False)
    )


def _fused_layer(layer: keras.layers.Layer) -> keras.layers.Layer:
    if _has_blocks(layer):
        return fuse(layer)
    config = layer.get_config()
    if isinstance(layer, Block):
        for rate in ("drop_rate", "drop_path_rate"):
            del config[rate]
        return FusedBlock.from_config(config)
    if isinstance(layer, OverlapPatchEmbed):
        config["batch_norm"] = False
    return layer.__class__.from_config(config)


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
