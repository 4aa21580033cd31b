"""The folded network as an ONNX graph, written directly: no framework, no converter.

A graph that a converter makes of channels-last code transposes around its products, and exact GELU
becomes operations that ONNX does not have. Here every convolution is ONNX's own, channels-first,
and nothing is transposed but the input. `benchmarks/deployment.py` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from ..spec.architecture import Architecture
from ..spec.config import patches, stage_kernel_stride
from ..spec.preprocessing import Preprocessing
from ..spec.scores import SIGMOID, SOFTMAX
from .onnx_nodes import Nodes

if TYPE_CHECKING:
    import onnx


def onnx_model(
    folded: Mapping[str, np.ndarray],
    sizes: Architecture,
    *,
    name: str = "van",
    batch_size: int | None = 1,
    image_size: tuple[int | None, int | None] = (224, 224),
    normalisation: Preprocessing | None = None,
    activation: str | None = None,
    pooling: str = "avg",
    also_features: bool = False,
    up_to: int | None = None,
) -> onnx.ModelProto:
    """The graph: `images` (B, H, W, C) -> `logits`, `probabilities` or `features` (B, K).

    Args:
        folded: As `fold` gives it.
        sizes: Its architecture; without classes the graph ends in pooled features.
        name: Of the graph.
        batch_size: Images at once; None for any number.
        image_size: (height, width) in pixels; None for any.
        normalisation: `images` are uint8, 0 to 255, and (x / 255 - mean) / std comes first; None:
            they are float32, normalised.
        activation: Ends in probabilities, by "softmax" or "sigmoid"; None: in logits.
        pooling: "avg" or "max"; without classes only.
        also_features: With classes: give pooled `features` (B, C) as a second output.
        up_to: Give what the last block of that stage, from 1, gives instead: `map` (B, C, h, w).
    """
    from onnx import TensorProto

    graph = _Graph(folded)
    x = graph.channels_first("images", normalisation)
    batch: int | str = "batch" if batch_size is None else batch_size
    height, width = (
        axis if size is None else size
        for size, axis in zip(image_size, ("height", "width"), strict=True)
    )
    kind = TensorProto.FLOAT if normalisation is None else TensorProto.UINT8
    images = "images", kind, [batch, height, width, sizes.in_chans]
    for i, depth in enumerate(sizes.depths[:up_to], start=1):
        x = graph.blocks(i, depth, x)
        if i == up_to:
            x = graph.op("Identity", x, name="map")
            shape = [batch, sizes.embed_dims[i - 1], *_positions(image_size, i)]
            return graph.model(name, images, {x: shape})
        x = graph.layer_norm(f"norm{i}", x)
    has_head = sizes.num_classes is not None
    also_features &= has_head
    output = graph.head(x, has_head, activation, pooling, "features" if also_features else "pool")
    lengths = {output: sizes.embed_dims[-1] if sizes.num_classes is None else sizes.num_classes}
    if also_features:
        lengths["features"] = sizes.embed_dims[-1]
    outputs = {made: [batch, length] for made, length in lengths.items()}
    return graph.model(name, images, outputs)


def _positions(image_size: tuple[int | None, int | None], stage: int) -> list[int | str]:
    """(h, w) of the maps of a stage; a name where the size is any."""
    found: list[int | str] = []
    for size, axis in zip(image_size, ("rows", "columns"), strict=True):
        for i in range(1, stage + 1):
            size = None if size is None else patches(size, *stage_kernel_stride(i))
        found.append(axis if size is None else size)
    return found


class _Graph(Nodes):
    """The nodes of a whole VAN."""

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        super().__init__(tensors)
        self.channels = self.constant(np.array([1], np.int64), "channels")
        self.epsilon = self.constant(1e-6, "epsilon")

    def layer_norm(self, name: str, x: str) -> str:
        """Over the channels."""
        x = self.normalised(name, x, self.channels, self.epsilon)
        weight, bias = (
            self.tensors[f"{name}.{leaf}"][:, None, None] for leaf in ("weight", "bias")
        )
        scaled = self.op("Mul", x, self.constant(weight, f"{name}.weight"), name=f"{name}.scaled")
        return self.op("Add", scaled, self.constant(bias, f"{name}.bias"), name=name)

    def channels_first(self, x: str, normalisation: Preprocessing | None) -> str:
        """The input as the network takes it."""
        from onnx import TensorProto

        if normalisation is not None:
            mean, std = (
                np.array(values, np.float64)[None, None, None]
                for values in (normalisation.mean, normalisation.std)
            )
            x = self.op("Cast", x, name="images.float", to=TensorProto.FLOAT)
            scale = self.constant(1 / (255 * std), "images.scale")
            x = self.op("Mul", x, scale, name="images.scaled")
            shift = self.constant(-mean / std, "images.shift")
            x = self.op("Add", x, shift, name="images.normalised")
        return self.op("Transpose", x, name="images.channels_first", perm=[0, 3, 1, 2])

    def blocks(self, i: int, depth: int, x: str) -> str:
        """Patch embedding and blocks of stage `i`, from 1."""
        x = self.conv(f"patch_embed{i}.proj", x, stride=stage_kernel_stride(i)[1])
        for j in range(depth):
            x = self.block(f"block{i}.{j}", x)
        return x

    def head(
        self, x: str, has_head: bool, activation: str | None, pooling: str, pooled: str
    ) -> str:
        """The output: scores of the features that are called `pooled`, or these themselves."""
        positions = self.constant(np.array([2, 3], np.int64), "positions")
        reduce = "ReduceMean" if has_head or pooling == "avg" else "ReduceMax"
        x = self.op(reduce, x, positions, name=pooled if has_head else "features", keepdims=0)
        if not has_head:
            return x
        weight = self.constant(self.tensors["head.weight"], "head.weight")
        bias = self.constant(self.tensors["head.bias"], "head.bias")
        x = self.op("Gemm", x, weight, bias, name="head" if activation else "logits", transB=1)
        if activation == SOFTMAX:
            x = self.op("Softmax", x, name="probabilities", axis=-1)
        elif activation == SIGMOID:
            x = self.op("Sigmoid", x, name="probabilities")
        return x
