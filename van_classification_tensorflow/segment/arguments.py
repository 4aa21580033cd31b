"""Checks of what a segmenter is made of: an error names the argument, and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..spec.config import CONFIGURATIONS, VANConfig, resolve
from ..spec.decoders import AUXILIARY_CHANNELS, STAGES, UPERNET, DecoderSizes, published_sizes
from ..support.checks import is_number
from ..support.text import printable
from .checkpoint import SegmenterWeights


def same_channels(asked: int | None, there: int) -> int:
    """The channels of a VAN that is given, of which others must not be asked for."""
    if asked not in (None, there):
        raise ValueError(
            f"`in_chans` must be that of the VAN given as `backbone`, {there}. "
            f"Received: in_chans={asked}"
        )
    return there


def check_backbone(backbone: Any) -> None:
    """Raises `ValueError` where it names no member of the family."""
    if backbone is not None and (not isinstance(backbone, str) or backbone not in CONFIGURATIONS):
        raise ValueError(
            f"`backbone` must be one of {', '.join(CONFIGURATIONS)}, a VAN, or None to give "
            f"`embed_dims`, `mlp_ratios` and `depths`. Received: {backbone!r}"
        )


def backbone_sizes(
    backbone: str | None, lists: tuple, source: SegmenterWeights | None
) -> VANConfig:
    """The sizes of the backbone: named, given as lists, or those of the weights."""
    if backbone is None and source is None and any(one is None for one in lists):
        raise ValueError(
            f"`backbone` must be one of {', '.join(CONFIGURATIONS)} or a VAN; or give "
            "`embed_dims`, `mlp_ratios` and `depths`, or `pretrained`"
        )
    embed_dims, mlp_ratios, depths = lists
    default = None if source is None else source.architecture.config
    config = resolve(backbone, embed_dims, mlp_ratios, depths, default=default)
    if config.num_stages != STAGES:
        raise ValueError(
            f"The decoders take {STAGES} stages: `embed_dims`, `mlp_ratios` and `depths` must have "
            f"as many entries. Received: {config.num_stages}"
        )
    if source is not None:
        source.check_backbone(config)
    return config


def decoder_sizes(
    decoder: str | None,
    backbone: str | None,
    auxiliary: bool,
    asked: Mapping[str, int | None],
    source: SegmenterWeights | None,
) -> DecoderSizes:
    """The numbers of the decoder: those asked for, else those of the weights, else as published.

    Args:
        decoder: As in `VANSegmenter`, as are the others.
        backbone: Name of the backbone's configuration, if it has one.
        auxiliary: Whether there is an auxiliary head.
        asked: {argument: number, or None}.
        source: The weights, if any.
    """
    if source is not None:
        if decoder not in (None, source.decoder.kind):
            raise ValueError(
                f"`pretrained`: {printable(source.name)} has decoder={source.decoder.kind!r}. "
                f"Received: decoder={decoder!r}"
            )
        decoder = source.decoder.kind
    decoder = UPERNET if decoder is None else decoder
    sizes = published_sizes(decoder, backbone)
    if auxiliary:
        if decoder != UPERNET:
            raise ValueError(
                f"`auxiliary` must be False with decoder={decoder!r}, which has no auxiliary head"
            )
        sizes["auxiliary_channels"] = AUXILIARY_CHANNELS
    elif asked["auxiliary_channels"] is not None:
        raise ValueError(
            "`auxiliary_channels` needs auxiliary=True. "
            f"Received: auxiliary_channels={asked['auxiliary_channels']!r}, auxiliary=False"
        )
    known = {} if source is None else source.decoder.numbers()
    if not auxiliary:
        known.pop("auxiliary_channels", None)
    given = {name: number for name, number in asked.items() if number is not None}
    return DecoderSizes(kind=decoder, **{**sizes, **known, **given})


def check_epsilon(norm_epsilon: Any) -> float:
    """It as a float, or an error."""
    if not is_number(norm_epsilon) or not 0 < float(norm_epsilon) < 1:
        raise ValueError(
            "`norm_epsilon` must be a number above 0 and below 1. "
            f"Received: norm_epsilon={norm_epsilon!r}"
        )
    return float(norm_epsilon)
