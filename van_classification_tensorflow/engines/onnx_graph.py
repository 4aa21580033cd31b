"""The folded network as an ONNX graph, written directly: no framework, no converter.

A graph that a converter makes of channels-last code transposes around its products, and exact GELU
becomes operations that ONNX does not have. Here every convolution is ONNX's own, channels-first,
and nothing is transposed but the input. `benchmarks/deployment.py` measures it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..spec.architecture import Architecture
from ..spec.config import stage_kernel_stride
from ..spec.preprocessing import Preprocessing
from ..spec.scores import SIGMOID, SOFTMAX

if TYPE_CHECKING:
    import onnx

# One of 2023, which all runtimes know: the first with Gelu, and with axes as an input of all
# reductions.
OPSET = 20


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
    """
    from onnx import TensorProto, helper

    graph = _Graph(folded)
    x = graph.channels_first("images", normalisation)
    for i, depth in enumerate(sizes.depths, start=1):
        x = graph.stage(i, depth, x)
    output = graph.head(x, sizes.num_classes is not None, activation, pooling)
    batch: int | str = "batch" if batch_size is None else batch_size
    height, width = (
        axis if size is None else size
        for size, axis in zip(image_size, ("height", "width"), strict=True)
    )
    kind = TensorProto.FLOAT if normalisation is None else TensorProto.UINT8
    outputs = sizes.embed_dims[-1] if sizes.num_classes is None else sizes.num_classes
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            name,
            [helper.make_tensor_value_info("images", kind, [batch, height, width, sizes.in_chans])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, outputs])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="van_classification_tensorflow",
    )
    model.ir_version = 9  # of the same year as the opset
    return model


class _Graph:
    """Nodes and constants; each method adds some and gives the name of what it computes."""

    def __init__(self, folded: Mapping[str, np.ndarray]):
        self.folded = folded
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []
        self.channels = self.constant(np.array([1], np.int64), "channels")
        self.epsilon = self.constant(1e-6, "epsilon")

    def constant(self, values: np.ndarray | float, name: str) -> str:
        from onnx import numpy_helper

        array: np.ndarray = np.array(values, order="C")
        if array.dtype != np.int64:
            array = array.astype(np.float32)
        self.constants.append(numpy_helper.from_array(array, name))
        return name

    def op(self, kind: str, *inputs: str, name: str, **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(self, name: str, x: str, stride: int = 1, dilation: int = 1) -> str:
        weight = self.folded[f"{name}.weight"]
        side, groups = weight.shape[2], 1
        if weight.shape[1] == 1 and side > 1 and not name.startswith("patch_embed"):
            groups = weight.shape[0]  # depthwise
        return self.op(
            "Conv",
            x,
            self.constant(weight, f"{name}.weight"),
            self.constant(self.folded[f"{name}.bias"], f"{name}.bias"),
            name=name,
            kernel_shape=[side, side],
            strides=[stride, stride],
            dilations=[dilation, dilation],
            pads=[side // 2 * dilation] * 4,
            group=groups,
        )

    def gelu(self, x: str) -> str:
        # One operator: between the parts of its definition quantisers would put their steps.
        return self.op("Gelu", x, name=f"{x}.gelu")

    def layer_norm(self, name: str, x: str) -> str:
        """Over the channels, written out: an operator for it would want them last."""
        op, weight = self.op, self.folded[f"{name}.weight"]
        mean = op("ReduceMean", x, self.channels, name=f"{name}.mean", keepdims=1)
        centred = op("Sub", x, mean, name=f"{name}.centred")
        square = op("Mul", centred, centred, name=f"{name}.square")
        variance = op("ReduceMean", square, self.channels, name=f"{name}.variance", keepdims=1)
        shifted = op("Add", variance, self.epsilon, name=f"{name}.shifted")
        deviation = op("Sqrt", shifted, name=f"{name}.deviation")
        x = op("Div", centred, deviation, name=f"{name}.normalised")
        scale = self.constant(weight[:, None, None], f"{name}.weight")
        bias = self.constant(self.folded[f"{name}.bias"][:, None, None], f"{name}.bias")
        return op("Add", op("Mul", x, scale, name=f"{name}.scaled"), bias, name=name)

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

    def stage(self, i: int, depth: int, x: str) -> str:
        """Patch embedding, blocks and layer norm of stage `i`, from 1."""
        x = self.conv(f"patch_embed{i}.proj", x, stride=stage_kernel_stride(i)[1])
        for j in range(depth):
            x = self.block(f"block{i}.{j}", x)
        return self.layer_norm(f"norm{i}", x)

    def block(self, name: str, x: str) -> str:
        op, conv = self.op, self.conv
        attn, mlp = f"{name}.attn", f"{name}.mlp"
        gating = f"{attn}.spatial_gating_unit"
        u = self.gelu(conv(f"{attn}.proj_1", x))
        attention = conv(f"{gating}.conv_spatial", conv(f"{gating}.conv0", u), dilation=3)
        u = op("Mul", conv(f"{gating}.conv1", attention), u, name=gating)
        shortcut = self.folded[f"{attn}.shortcut"][:, None, None]
        factor = self.constant(shortcut, f"{attn}.shortcut")
        kept = op("Mul", x, factor, name=f"{attn}.shortcut.product")
        x = op("Add", kept, conv(f"{attn}.proj_2", u), name=attn)
        hidden = self.gelu(conv(f"{mlp}.dwconv.dwconv", conv(f"{mlp}.fc1", x)))
        return op("Add", x, conv(f"{mlp}.fc2", hidden), name=mlp)

    def head(self, x: str, has_head: bool, activation: str | None, pooling: str) -> str:
        """The output: scores, or pooled features."""
        positions = self.constant(np.array([2, 3], np.int64), "positions")
        reduce = "ReduceMean" if has_head or pooling == "avg" else "ReduceMax"
        pooled = "pool" if has_head else "features"
        x = self.op(reduce, x, positions, name=pooled, keepdims=0)
        if not has_head:
            return x
        weight = self.constant(self.folded["head.weight"], "head.weight")
        bias = self.constant(self.folded["head.bias"], "head.bias")
        x = self.op("Gemm", x, weight, bias, name="head" if activation else "logits", transB=1)
        if activation == SOFTMAX:
            x = self.op("Softmax", x, name="probabilities", axis=-1)
        elif activation == SIGMOID:
            x = self.op("Sigmoid", x, name="probabilities")
        return x
