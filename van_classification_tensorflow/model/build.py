"""Where commands build a VAN that is to be run: channels-last, whatever Keras is set to."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..spec.architecture import Architecture
from ..weights.pretrained import Pretrained
from .load import load_checkpoint
from .van import VAN


def build_van(
    sizes: Architecture,
    tensors: Mapping[str, np.ndarray],
    *,
    classifier_activation: str | None = None,
    allow_nonfinite: bool = False,
    **options: Any,
) -> VAN:
    """A VAN with these weights.

    Args:
        sizes: Of the tensors.
        tensors: {the authors' name: array}, all of them.
        classifier_activation: Of the head, if there is one; by default logits.
        allow_nonfinite: As in `load_checkpoint`.
        options: Further arguments of `VAN`.

    Raises:
        ValueError: The tensors are not those of `sizes`.
    """
    config, has_head = sizes.config, sizes.num_classes is not None
    model = VAN(
        sizes.configuration,
        embed_dims=config.embed_dims,
        mlp_ratios=config.mlp_ratios,
        depths=config.depths,
        in_chans=sizes.in_chans,
        num_classes=sizes.num_classes or 1000,
        include_top=has_head,
        classifier_activation=classifier_activation if has_head else None,
        data_format="channels_last",
        **options,
    )
    return load_checkpoint(model, tensors, allow_nonfinite=allow_nonfinite)


def van_of(opened: Pretrained, dtype: str = "float32") -> VAN:
    """The VAN of weights that have been opened: logits, their labels and preprocessing."""
    sizes = opened.weights.architecture
    return VAN(
        sizes.configuration,
        include_top=sizes.num_classes is not None,
        pretrained=opened,
        classifier_activation=None,
        data_format="channels_last",
        dtype=dtype,
    )
