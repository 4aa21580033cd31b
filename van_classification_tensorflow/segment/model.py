"""`VANSegmenter`: a VAN and a decoder as one Keras model, built, saved and loaded like any other.

The backbone is in `model`, the papers of the decoders in `upernet`, `semantic_fpn` and `hamburger`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import keras
from keras import layers

from ..model import shifted
from ..model.arguments import check_images, check_rate, preprocessing_of
from ..model.layers import register
from ..model.load import to_official
from ..model.network import Network
from ..model.parts import changed_parts
from ..model.van import VAN
from ..spec.config import DATA_FORMATS
from ..spec.decoders import NORM_EPSILON, OF_DECODER, STAGES, DecoderSizes
from ..spec.labels import labels_of
from ..spec.palette import colours_of
from ..spec.preprocessing import Preprocessing
from ..support.checks import at_least_or_none, check_choice, check_flag
from .arguments import (
    backbone_sizes,
    check_backbone,
    check_epsilon,
    decoder_sizes,
    same_channels,
)
from .checkpoint import SegmenterWeights, open_segmenter
from .decoders import Decoder
from .load import load_backbone, load_segmenter

# Of the constructor, and attributes as they are saved.
_ARGUMENTS = (
    "backbone",
    "decoder",
    "num_classes",
    "in_chans",
    "channels",
    "auxiliary",
    *OF_DECODER,
    "drop_rate",
    "drop_path_rate",
    "norm_epsilon",
    "ham_seed",
    "data_format",
    "name",
    "trainable",
)


@register
class VANSegmenter(keras.Model):
    """A class for every pixel: a VAN with one of the decoders that the authors published.

    Images (B, H, W, 3) of any size -> logits at the decoder's own size (B, h, w, num_classes):
    a quarter of the images', of Light-Ham an eighth, rounded up. `resize_bilinear` of
    `segment.resize` brings them to the size of the images.

    Built through Keras's functional API: every layer is reachable by name, those of the backbone
    as in `VAN` (`patch_embed1`, `block1_0`, ..., `norm4`), those of the decoder after what the
    papers call them (`psp`, `fpn_0`, `conv_seg`); `pyramid_outputs` holds the stages.

    Args:
        backbone: `"van_b0"` ... `"van_b6"`; a `VAN`, whose sizes and weights are taken (it stays
            as it is, and shares nothing); or None to give the three lists below.
        decoder: "upernet" (UPerNet, the default), "semantic_fpn" (Semantic FPN) or "light_ham"
            (Light-Ham).
        num_classes: Classes that a pixel may have; by default 150 (ADE20K), or what the
            pretrained weights have.
        embed_dims: Channels of each of the four stages.
        mlp_ratios: Hidden channels of each stage's MLP, as a multiple of `embed_dims`.
        depths: Blocks of each stage.
        in_chans: Channels of the images; by default 3, or what the backbone takes.
        channels: Of the maps that are classified; by default as published, 512, 128 and 512.
        auxiliary: UPerNet's second head, on stage 3, for training: the model then gives a list
            [logits, logits at stride 16].
        auxiliary_channels: Of that head; by default 256.
        neck_channels: Of Semantic FPN's neck; by default 256.
        ham_channels: Of the maps that Light-Ham factorises; by default 512, of van_b0 480.
        ham_rank: Columns of its bases; by default 64.
        ham_groups: Parts of its channels that are factorised on their own; by default 1.
        drop_rate: Dropout of whole channels before the logits, in [0, 1).
        drop_path_rate: Stochastic depth of the backbone's last block, in [0, 1).
        norm_epsilon: Of the LayerNorm after each stage; by default what the published weights
            were trained with: 1e-5, of Light-Ham 1e-6.
        ham_seed: Of Light-Ham's bases in inference; None: drawn at every call, as in training they
            always are. 0: that of the pretrained weights, where a file of this package says it.
        data_format: Of images and logits: "channels_last" or "channels_first". None:
            `keras.config.image_data_format()`.
        name: Name of the model.
        dtype: Keras dtype policy; the global one by default.
        trainable: Whether the weights are trained.
        pretrained: Path of a segmentation checkpoint (mmsegmentation's 0.x or 1.x, or a
            `.safetensors` of the same names), or a name of `van weights list`. Without a backbone
            and a decoder, the model takes the weights' sizes; the auxiliary head of a file is
            left out where it is not asked for.
        parts: What was set on single layers, as in `VAN`.

    Attributes that are saved with the model: `labels` (a name for each class), `palette` (a colour
    for each class) and `preprocessing` (a `Preprocessing`); pretrained weights set them.

    Input: float images, normalised.

    Raises:
        ValueError: An argument is not allowed; names it, what is allowed and what came. Or the
            pretrained weights are refused, or of other sizes.
        OSError: The pretrained weights cannot be downloaded, verified or opened.
    """

    def __init__(
        self,
        backbone: str | VAN | None = None,
        decoder: str | None = None,
        num_classes: int | None = None,
        embed_dims: Sequence[int] | None = None,
        mlp_ratios: Sequence[float] | None = None,
        depths: Sequence[int] | None = None,
        in_chans: int | None = None,
        channels: int | None = None,
        auxiliary: bool = False,
        auxiliary_channels: int | None = None,
        neck_channels: int | None = None,
        ham_channels: int | None = None,
        ham_rank: int | None = None,
        ham_groups: int | None = None,
        drop_rate: float = 0.1,
        drop_path_rate: float | None = None,
        norm_epsilon: float | None = None,
        ham_seed: int | None = 0,
        data_format: str | None = None,
        name: str | None = None,
        dtype: Any = None,
        trainable: bool = True,
        pretrained: str | os.PathLike | SegmenterWeights | None = None,
        parts: Mapping[str, Mapping[str, Any]] | None = None,
    ):
        # What can be told at once is told before anything is downloaded.
        num_classes = at_least_or_none("num_classes", num_classes, 1)
        in_chans = at_least_or_none("in_chans", in_chans, 1)
        auxiliary = check_flag("auxiliary", auxiliary)
        trainable = check_flag("trainable", trainable)
        drop_rate = check_rate("drop_rate", drop_rate)
        ham_seed = at_least_or_none("ham_seed", ham_seed, 0)
        data_format = keras.config.image_data_format() if data_format is None else data_format
        data_format = check_choice("data_format", data_format, DATA_FORMATS)
        policy = keras.dtype_policies.get(dtype or keras.config.dtype_policy())
        given = backbone if isinstance(backbone, VAN) else None
        lists = (embed_dims, mlp_ratios, depths)
        if given is not None:
            if lists != (None, None, None):
                raise ValueError(
                    "`embed_dims`, `mlp_ratios` and `depths` must not be given beside a VAN as "
                    "`backbone`, which has its own"
                )
            lists = given.embed_dims, given.mlp_ratios, given.depths
            backbone, in_chans = given.configuration, same_channels(in_chans, given.in_chans)
            drop_path_rate = given.drop_path_rate if drop_path_rate is None else drop_path_rate
        drop_path_rate = check_rate("drop_path_rate", drop_path_rate or 0.0)
        check_backbone(backbone)

        source = open_segmenter(pretrained, backbone)
        config = backbone_sizes(backbone, lists, source)
        epsilon = None
        if source is not None:
            backbone = backbone or source.architecture.configuration
            in_chans = in_chans or source.architecture.in_chans
            num_classes = num_classes or source.num_classes
            epsilon = source.norm_epsilon
            ham_seed = source.ham_seed if ham_seed == 0 else ham_seed
        in_chans, num_classes = in_chans or 3, num_classes or 150
        asked = {
            "channels": channels,
            "auxiliary_channels": auxiliary_channels,
            "neck_channels": neck_channels,
            "ham_channels": ham_channels,
            "ham_rank": ham_rank,
            "ham_groups": ham_groups,
        }
        sizes = decoder_sizes(decoder, backbone, auxiliary, asked, source)
        decoder = sizes.kind
        if norm_epsilon is None:
            norm_epsilon = NORM_EPSILON[decoder] if epsilon is None else epsilon
        norm_epsilon = check_epsilon(norm_epsilon)

        channels_first = data_format == "channels_first"
        shape = (in_chans, None, None) if channels_first else (None, None, in_chans)
        images = keras.Input(shape, name="images", dtype=policy.compute_dtype)
        every: dict[str, Any] = {"dtype": policy, "trainable": trainable}
        network = Network(
            config,
            drop_path_rate=drop_path_rate,
            include_top=False,
            pooling=None,
            norm_epsilon=norm_epsilon,
            **every,
        )
        head = Decoder(sizes, config.embed_dims, num_classes, drop_rate, ham_seed, **every)
        x = images
        if channels_first:
            x = layers.Permute((2, 3, 1), name="to_channels_last", dtype=policy)(x)
        _, pyramid = network(x, parts)
        outputs = head(list(pyramid.values()), parts)
        if channels_first:
            pyramid, outputs = _first(pyramid, policy), [*_first(_named(outputs), policy).values()]
        name = name or f"{backbone or 'van'}_{decoder}"
        super().__init__(images, outputs if auxiliary else outputs[0], name=name)
        self._trainable = trainable  # the property would set every layer, against `parts`

        self.dtype_policy = policy
        self.backbone = backbone
        self.decoder = decoder
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.embed_dims = list(config.embed_dims)
        self.mlp_ratios = list(config.mlp_ratios)
        self.depths = list(config.depths)
        self.channels = sizes.channels
        self.auxiliary = auxiliary
        for number in OF_DECODER:
            setattr(self, number, getattr(sizes, number))
        self.drop_rate = drop_rate
        self.drop_path_rate = drop_path_rate
        self.norm_epsilon = norm_epsilon
        self.ham_seed = ham_seed
        self.data_format = data_format
        self.pyramid_outputs = pyramid
        self._network, self._decoder = network, head
        self._labels: tuple[str, ...] | None = None
        self._palette: tuple[tuple[int, int, int], ...] | None = None
        self._preprocessing: Preprocessing | None = None

        if given is not None:
            load_backbone(self, to_official(given))
            self.preprocessing = given.preprocessing
        if source is not None:
            load_segmenter(self, source.tensors, adapt=True)
            if source.architecture.in_chans == in_chans:
                self.preprocessing = source.preprocessing
            if num_classes == source.num_classes:
                self.labels, self.palette = source.labels, source.palette

    @property
    def labels(self) -> tuple[str, ...] | None:
        """A name for each class, saved with the model; set as of `VAN`.

        Raises:
            ValueError: When set, if their number is not that of the classes.
        """
        return self._labels

    @labels.setter
    def labels(self, labels) -> None:
        if labels is not None:
            labels = tuple(label.text for label in labels_of(labels, self.num_classes))
        self._labels = labels

    @property
    def palette(self) -> tuple[tuple[int, int, int], ...] | None:
        """A colour (red, green, blue), 0 to 255, for each class, saved with the model.

        Raises:
            ValueError: When set, if it is none, or not of `num_classes` colours.
        """
        return self._palette

    @palette.setter
    def palette(self, palette) -> None:
        self._palette = None if palette is None else colours_of(palette, self.num_classes)

    @property
    def preprocessing(self) -> Preprocessing | None:
        """How pictures become the model's input, by mean and standard deviation; saved with it.

        Raises:
            ValueError: When set, if it is none or makes other channels than the model takes.
        """
        return self._preprocessing

    @preprocessing.setter
    def preprocessing(self, preprocessing) -> None:
        self._preprocessing = preprocessing_of(preprocessing, self.in_chans)

    @property
    def sizes(self) -> DecoderSizes:
        """The numbers of the decoder."""
        return self._decoder.sizes

    @property
    def stride(self) -> int:
        """Pixels of the images to one of the logits along a side, 4, or 8 of Light-Ham."""
        return self.sizes.stride

    def __call__(self, inputs, *args, **kwargs):
        shape = getattr(inputs, "shape", None)
        if shape is not None and hasattr(self, "in_chans"):  # not yet while Keras builds it
            check_images(shape, "inputs", self.in_chans, self.data_format, STAGES)
        return super().__call__(inputs, *args, **kwargs)

    def predict_step(self, *args):
        """Keras's."""
        with shifted.inference_by_xla(self.jit_compile):
            return super().predict_step(*args)

    def test_step(self, *args):
        """Keras's."""
        with shifted.inference_by_xla(self.jit_compile):
            return super().test_step(*args)

    def get_config(self) -> dict:
        """The constructor's arguments; labels, palette, preprocessing, `parts` where there are."""
        config = {name: getattr(self, name) for name in _ARGUMENTS}
        config |= {
            "embed_dims": list(self.embed_dims),
            "mlp_ratios": list(self.mlp_ratios),
            "depths": list(self.depths),
            "dtype": keras.dtype_policies.serialize(self.dtype_policy),
        }
        if self.labels is not None:
            config["labels"] = list(self.labels)
        if self.palette is not None:
            config["palette"] = [list(colour) for colour in self.palette]
        if self.preprocessing is not None:
            config["preprocessing"] = self.preprocessing.to_dict()
        changes = {"trainable": self.trainable, "dtype": self.dtype_policy}
        halves = (replace(half, **changes) for half in (self._network, self._decoder))
        parts = changed_parts(self, lambda: [one for half in halves for one in half.layers()])
        return {"parts": parts, **config} if parts else config

    @classmethod
    def from_config(cls, config, custom_objects=None):
        config = dict(config)
        beside = {name: config.pop(name, None) for name in ("labels", "palette", "preprocessing")}
        model = cls(**config)
        for name, value in beside.items():
            setattr(model, name, value)
        return model


def _named(outputs: list) -> dict[str, Any]:
    return dict(zip(("logits", "auxiliary_logits"), outputs, strict=False))


def _first(maps: Mapping[str, Any], policy) -> dict[str, Any]:
    """{name: the maps as (B, C, H, W)}."""
    return {
        name: layers.Permute((3, 1, 2), name=f"{name}_channels_first", dtype=policy)(one)
        for name, one in maps.items()
    }
