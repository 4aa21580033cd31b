"""What makes a VAN a segmenter: the decoders that the authors published weights for, as records.

The names of the tensors are mmsegmentation's. Imports neither Keras nor a backend.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, Literal

import numpy as np

from ..support.checks import at_least, check_choice, is_whole
from .architecture import TensorSpec

UPERNET, SEMANTIC_FPN, LIGHT_HAM = "upernet", "semantic_fpn", "light_ham"
DECODERS = (UPERNET, SEMANTIC_FPN, LIGHT_HAM)
POOL_SCALES = (1, 2, 3, 6)  # of the pyramid pooling module (arXiv 1612.01105)
GROUPS = 32  # of group normalisation in Light-Ham
STAGES = 4
# The epsilon of the stages' LayerNorm with which the published weights were trained: the authors'
# segmentation code left it at PyTorch's default, Hamburger's code did not.
NORM_EPSILON = {UPERNET: 1e-5, SEMANTIC_FPN: 1e-5, LIGHT_HAM: 1e-6}

Norm = Literal["bn", "gn"]


@dataclass(frozen=True)
class ConvSpec:
    """One convolution of a decoder, with what follows it.

    Args:
        layer: Name of the Keras layer.
        tensors: What stands before the names of its tensors in mmsegmentation.
        inputs: Channels that go in.
        outputs: Channels that come out.
        kernel_size: 1 or 3.
        norm: "bn": batch normalisation, "gn": group normalisation, and the convolution has no
            bias; None: it has one.
        relu: Whether ReLU comes last.
        glorot: Whether its weights begin as Glorot and Bengio's, and not as He's.
    """

    layer: str
    tensors: str
    inputs: int
    outputs: int
    kernel_size: int = 1
    norm: Norm | None = "bn"
    relu: bool = True
    glorot: bool = False

    def specs(self) -> dict[str, TensorSpec]:
        """{mmsegmentation's name: shape and kind}."""
        # `conv_seg` is a bare convolution, all others are modules that have one.
        conv = self.tensors if self.tensors.endswith("conv_seg") else f"{self.tensors}.conv"
        kind = "pointwise" if self.kernel_size == 1 else "conv"
        shape = (self.outputs, self.inputs, self.kernel_size, self.kernel_size)
        found = {f"{conv}.weight": TensorSpec(shape, kind)}
        vectors = [f"{conv}.bias"] if self.norm is None else []
        if self.norm is not None:
            vectors += [f"{self.tensors}.{self.norm}.{leaf}" for leaf in ("weight", "bias")]
        if self.norm == "bn":
            vectors += [f"{self.tensors}.bn.running_{what}" for what in ("mean", "var")]
        return found | {name: TensorSpec((self.outputs,), "vector") for name in vectors}


@dataclass(frozen=True, kw_only=True)
class DecoderSizes:
    """The numbers that fix a decoder.

    Args:
        kind: "upernet", "semantic_fpn" or "light_ham".
        channels: Of the maps that are classified, at least 1; of Light-Ham a multiple of 32.
        auxiliary_channels: Of UPerNet's auxiliary head; None without one.
        neck_channels: Of Semantic FPN's neck.
        ham_channels: Of the maps that Light-Ham factorises; a multiple of 32.
        ham_rank: Of the factorisation: columns of the bases.
        ham_groups: Parts of the channels that are factorised on their own.

    Raises:
        ValueError: A number is out of its range, or belongs to another decoder.
    """

    kind: str
    channels: int
    auxiliary_channels: int | None = None
    neck_channels: int | None = None
    ham_channels: int | None = None
    ham_rank: int | None = None
    ham_groups: int | None = None

    def __post_init__(self) -> None:
        check_choice("decoder", self.kind, DECODERS)
        at_least("channels", self.channels, 1)
        for name, kind in OF_DECODER.items():
            value = getattr(self, name)
            optional = name == "auxiliary_channels"
            if self.kind != kind:
                if value is not None:
                    raise ValueError(
                        f"`{name}` belongs to decoder={kind!r}. Received: {name}={value!r} with "
                        f"decoder={self.kind!r}"
                    )
            elif not (optional and value is None):
                at_least(name, value, 1)
        if self.kind == LIGHT_HAM:
            for name in ("channels", "ham_channels"):
                if getattr(self, name) % GROUPS:
                    raise ValueError(
                        f"`{name}` must be a multiple of {GROUPS}, the groups of its group "
                        f"normalisation, with decoder='light_ham'. Received: {getattr(self, name)}"
                    )
            if (self.ham_channels or 0) % (self.ham_groups or 1):
                raise ValueError(
                    f"`ham_groups` must divide ham_channels={self.ham_channels}. "
                    f"Received: ham_groups={self.ham_groups}"
                )

    @classmethod
    def of_config(cls, said: Mapping[str, Any]) -> DecoderSizes:
        """Of what `VANSegmenter.get_config` gives, as a file says it.

        Raises:
            ValueError: A number is missing, or none.
        """
        numbers: dict[str, Any] = {name: said.get(name) for name in ("channels", *OF_DECODER)}
        if any(is_whole(value) and value > _LARGEST for value in numbers.values()):
            raise ValueError(f"a decoder of more than {_LARGEST:,} channels")
        return cls(kind=str(said.get("decoder")), **numbers)

    def numbers(self) -> dict[str, int]:
        """{argument of `VANSegmenter`: number} of those that the decoder has."""
        found = {name: getattr(self, name) for name in ("channels", *OF_DECODER)}
        return {name: value for name, value in found.items() if value is not None}

    @property
    def stride(self) -> int:
        """Pixels of the image to one of the logits, along a side."""
        return 8 if self.kind == LIGHT_HAM else 4

    def convolutions(self, embed_dims: Sequence[int], num_classes: int) -> tuple[ConvSpec, ...]:
        """Every convolution, in the order of mmsegmentation's state dict less `conv_seg`.

        Args:
            embed_dims: Channels of the four stages.
            num_classes: Classes that a pixel may have.
        """
        make = {UPERNET: _upernet, SEMANTIC_FPN: _semantic_fpn, LIGHT_HAM: _light_ham}[self.kind]
        return tuple(make(self, tuple(embed_dims), num_classes))

    def tensors(self, embed_dims: Sequence[int], num_classes: int) -> dict[str, TensorSpec]:
        """{mmsegmentation's name: shape and kind} of the decoder."""
        found: dict[str, TensorSpec] = {}
        for conv in self.convolutions(embed_dims, num_classes):
            found |= conv.specs()
        return found

    def parameters(self, embed_dims: Sequence[int], num_classes: int) -> int:
        """Trainable numbers of the decoder."""
        return sum(
            prod(spec.shape)
            for name, spec in self.tensors(embed_dims, num_classes).items()
            if ".running_" not in name
        )


_LARGEST = 1_000_000  # channels, of what a file may say


# Which decoder each number belongs to; `channels` belongs to all.
OF_DECODER = {
    "auxiliary_channels": UPERNET,
    "neck_channels": SEMANTIC_FPN,
    "ham_channels": LIGHT_HAM,
    "ham_rank": LIGHT_HAM,
    "ham_groups": LIGHT_HAM,
}


def published_sizes(kind: str, configuration: str | None = None) -> dict[str, int]:
    """The numbers that the published weights have, without the auxiliary head's.

    Args:
        kind: One of `DECODERS`.
        configuration: The member of the family: of `van_b0` Light-Ham is narrower.

    Raises:
        ValueError: There is no such decoder.
    """
    check_choice("decoder", kind, DECODERS)
    if kind == UPERNET:
        return {"channels": 512}
    if kind == SEMANTIC_FPN:
        return {"channels": 128, "neck_channels": 256}
    ham_channels = 480 if configuration == "van_b0" else 512
    return {"channels": 512, "ham_channels": ham_channels, "ham_rank": 64, "ham_groups": 1}


AUXILIARY_CHANNELS = 256  # published


def _upernet(sizes: DecoderSizes, dims: tuple[int, ...], classes: int):
    """UPerNet (arXiv 1807.10221): mmsegmentation's UPerHead and FCNHead."""
    head, width = "decode_head", sizes.channels
    yield ConvSpec("conv_seg", f"{head}.conv_seg", width, classes, norm=None, relu=False)
    for k in range(len(POOL_SCALES)):
        yield ConvSpec(f"ppm_{k}", f"{head}.psp_modules.{k}.1", dims[-1], width)
    pooled = dims[-1] + len(POOL_SCALES) * width
    yield ConvSpec("psp", f"{head}.bottleneck", pooled, width, 3)
    for k, dim in enumerate(dims[:-1]):
        yield ConvSpec(f"lateral_{k}", f"{head}.lateral_convs.{k}", dim, width)
    for k in range(len(dims) - 1):
        yield ConvSpec(f"fpn_{k}", f"{head}.fpn_convs.{k}", width, width, 3)
    yield ConvSpec("fpn_bottleneck", f"{head}.fpn_bottleneck", len(dims) * width, width, 3)
    if sizes.auxiliary_channels is not None:
        head, width = "auxiliary_head", sizes.auxiliary_channels
        logits = f"{head}.conv_seg"
        yield ConvSpec("auxiliary_conv_seg", logits, width, classes, norm=None, relu=False)
        yield ConvSpec("auxiliary_conv", f"{head}.convs.0", dims[2], width, 3)


def _semantic_fpn(sizes: DecoderSizes, dims: tuple[int, ...], classes: int):
    """Semantic FPN (arXiv 1901.02446): mmsegmentation's FPN and FPNHead."""
    neck, width = sizes.neck_channels or 0, sizes.channels
    plain: dict[str, Any] = {"norm": None, "relu": False}
    of_neck = {**plain, "glorot": True}
    for k, dim in enumerate(dims):
        yield ConvSpec(f"neck_lateral_{k}", f"neck.lateral_convs.{k}", dim, neck, **of_neck)
    for k in range(len(dims)):
        yield ConvSpec(f"neck_{k}", f"neck.fpn_convs.{k}", neck, neck, 3, **of_neck)
    yield ConvSpec("conv_seg", "decode_head.conv_seg", width, classes, **plain)
    for k in range(len(dims)):
        for j in range(max(1, k)):  # an upsampling stands between each two
            tensors = f"decode_head.scale_heads.{k}.{2 * j}"
            yield ConvSpec(f"scale_{k}_{j}", tensors, neck if j == 0 else width, width, 3)


def _light_ham(sizes: DecoderSizes, dims: tuple[int, ...], classes: int):
    """Light-Ham (arXiv 2109.04553): Enjoy-Hamburger's LightHamHead."""
    head, ham, width = "decode_head", sizes.ham_channels or 0, sizes.channels
    plain: dict[str, Any] = {"norm": None, "relu": False}
    yield ConvSpec("conv_seg", f"{head}.conv_seg", width, classes, **plain)
    yield ConvSpec("squeeze", f"{head}.squeeze", sum(dims[1:]), ham, norm="gn")
    yield ConvSpec("ham_in", f"{head}.hamburger.ham_in", ham, ham, **plain)
    yield ConvSpec("ham_out", f"{head}.hamburger.ham_out", ham, ham, norm="gn", relu=False)
    yield ConvSpec("align", f"{head}.align", ham, width, norm="gn")


def layers_as_tensors(decoder: DecoderSizes) -> dict[str, tuple[str, str]]:
    """{what a file of Keras calls a variable: (mmsegmentation's name, kind)} of the decoder."""
    found = {}
    for conv in decoder.convolutions((1,) * STAGES, 1):
        for name, spec in conv.specs().items():
            *module, leaf = name.removeprefix(f"{conv.tensors}.").split(".")
            index = ("weight", "bias", "running_mean", "running_var").index(leaf)
            found["/".join([conv.layer, *module, "vars", str(index)])] = name, spec.kind
    return found


def decoder_of(tensors: Mapping[str, Any]) -> tuple[DecoderSizes, int]:
    """(the decoder whose tensors these are, number of classes).

    What no shape tells is the published value: rank and groups of Light-Ham.

    Args:
        tensors: {mmsegmentation's name: array}; others may be among them.

    Raises:
        ValueError: A tensor that tells a size is missing or has the wrong number of axes, or the
            decoder is one that is not built here.
    """

    def outputs(name: str) -> int:
        if name not in tensors:
            raise ValueError(f"{name} is missing")
        shape = tuple(np.shape(tensors[name]))
        if len(shape) != 4 or 0 in shape:
            raise ValueError(f"{name} has shape {shape}; expected 4 axes, none of them 0")
        return shape[0]

    head = "decode_head"
    classes = outputs(f"{head}.conv_seg.weight") if f"{head}.conv_seg.weight" in tensors else 0
    if not classes:
        raise ValueError(
            f"these are not the weights of a segmenter: {head}.conv_seg.weight is missing"
        )
    if f"{head}.fpn_bottleneck.conv.weight" in tensors:
        auxiliary = None
        if any(str(name).startswith("auxiliary_head.") for name in tensors):
            auxiliary = outputs("auxiliary_head.convs.0.conv.weight")
        channels = outputs(f"{head}.fpn_bottleneck.conv.weight")
        return DecoderSizes(kind=UPERNET, channels=channels, auxiliary_channels=auxiliary), classes
    if f"{head}.scale_heads.0.0.conv.weight" in tensors:
        return DecoderSizes(
            kind=SEMANTIC_FPN,
            channels=outputs(f"{head}.scale_heads.0.0.conv.weight"),
            neck_channels=outputs("neck.lateral_convs.0.conv.weight"),
        ), classes
    if f"{head}.hamburger.ham_in.conv.weight" in tensors:
        ham, width = (outputs(f"{head}.{it}.conv.weight") for it in ("squeeze", "align"))
        return DecoderSizes(
            kind=LIGHT_HAM,
            channels=width,
            ham_channels=ham,
            ham_rank=16 if (ham, width) == (256, 256) else 64,
            ham_groups=1,
        ), classes
    modules = sorted({m[1] for n in tensors if (m := re.match(rf"{head}\.(\w{{1,40}})", str(n)))})
    raise ValueError(
        "its decode_head is none of UPerHead (UPerNet), FPNHead (Semantic FPN) and LightHamHead; "
        f"it has: {', '.join(modules[:8])}"
    )
