"""A decoder before it has any weights: its layers, and the graph that they make of four stages.

The papers are in `upernet`, `semantic_fpn` and `hamburger`; what is around them (dropout, the
classifier of each pixel) is mmsegmentation's `BaseDecodeHead`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import keras
from keras import layers

from ..model.parts import changed
from ..spec.decoders import LIGHT_HAM, SEMANTIC_FPN, UPERNET, DecoderSizes
from .hamburger import NMF2D, light_ham
from .layers import ChannelDropout, ConvNormAct, classifier
from .semantic_fpn import semantic_fpn
from .upernet import auxiliary, upernet

_GRAPHS: dict[str, Callable[..., Any]] = {
    UPERNET: upernet,
    SEMANTIC_FPN: semantic_fpn,
    LIGHT_HAM: light_ham,
}


@dataclass(frozen=True)
class Decoder:
    """The part of a segmenter behind the backbone.

    Args:
        sizes: Which decoder, and its numbers.
        embed_dims: Channels of the four stages.
        num_classes: Classes that a pixel may have.
        drop_rate: Dropout of whole channels before the logits, in [0, 1).
        ham_seed: Of Light-Ham's bases in inference; None: drawn at every call.
        dtype: Keras dtype policy.
        trainable: Whether the weights are trained.
    """

    sizes: DecoderSizes
    embed_dims: Sequence[int]
    num_classes: int
    drop_rate: float = 0.1
    ham_seed: int | None = 0
    dtype: Any = None
    trainable: bool = True

    def layers(self) -> Iterator[layers.Layer]:
        """Makes the layers that have weights or draw at random."""
        every = self._every()
        for spec in self.sizes.convolutions(self.embed_dims, self.num_classes):
            if spec.layer.endswith("conv_seg"):
                yield classifier(spec.outputs, name=spec.layer, **every)
                dropout = spec.layer.replace("conv_seg", "dropout")
                yield ChannelDropout(self.drop_rate, name=dropout, **every)
            else:
                yield ConvNormAct.of(spec, **every)
        if self.sizes.kind == LIGHT_HAM:
            rank, groups = self.sizes.ham_rank or 1, self.sizes.ham_groups or 1
            yield NMF2D(rank, groups, seed=self.ham_seed, name="ham", **every)

    def __call__(
        self, stages: Sequence, parts: Mapping[str, Mapping[str, Any]] | None = None
    ) -> list:
        """The functional graph: maps of the four stages -> logits, and those of the auxiliary head.

        Args:
            stages: Symbolic, channels-last, strides 4 to 32.
            parts: What was set on single layers, as in `VAN`.
        """
        made = {
            layer.name: changed(layer, (parts or {}).get(layer.name)) for layer in self.layers()
        }
        maps = _GRAPHS[self.sizes.kind](stages, made.__getitem__, **self._every())
        outputs = [made["conv_seg"](made["dropout"](maps))]
        if self.sizes.auxiliary_channels is not None:
            maps = auxiliary(stages, made.__getitem__)
            outputs.append(made["auxiliary_conv_seg"](made["auxiliary_dropout"](maps)))
        return outputs

    def _every(self) -> dict[str, Any]:
        policy = keras.dtype_policies.get(self.dtype or keras.config.dtype_policy())
        return {"dtype": policy, "trainable": self.trainable}
