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
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[onnx.NodeProto] = []
    constants: list[onnx.TensorProto] = []

    def constant(values: np.ndarray | float, name: str) -> str:
        array: np.ndarray = np.array(values, order="C")
        if array.dtype != np.int64:
            array = array.astype(np.float32)
        constants.append(numpy_helper.from_array(array, name))
        return name

    def op(kind: str, *inputs: str, name: str, **attributes) -> str:
        nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def conv(name: str, x: str, stride: int = 1, dilation: int = 1) -> str:
        weight = folded[f"{name}.weight"]
        side, groups = weight.shape[2], 1
        if weight.shape[1] == 1 and side > 1 and not name.startswith("patch_embed"):
            groups = weight.shape[0]  # depthwise
        return op(
            "Conv",
            x,
            constant(weight, f"{name}.weight"),
            constant(folded[f"{name}.bias"], f"{name}.bias"),
            name=name,
            kernel_shape=[side, side],
            strides=[stride, stride],
            dilations=[dilation, dilation],
            pads=[side // 2 * dilation] * 4,
            group=groups,
        )

    def gelu(x: str) -> str:
        # One operator: between the parts of its definition quantisers would put their steps.
        return op("Gelu", x, name=f"{x}.gelu")

    def layer_norm(name: str, x: str) -> str:
        """Over the channels, written out: an operator for it would want them last."""
        mean = op("ReduceMean", x, channels, name=f"{name}.mean", keepdims=1)
        centred = op("Sub", x, mean, name=f"{name}.centred")
        square = op("Mul", centred, centred, name=f"{name}.square")
        variance = op("ReduceMean", square, channels, name=f"{name}.variance", keepdims=1)
        deviation = op(
            "Sqrt", op("Add", variance, epsilon, name=f"{name}.shifted"), name=f"{name}.deviation"
        )
        x = op("Div", centred, deviation, name=f"{name}.normalised")
        weight = constant(folded[f"{name}.weight"][:, None, None], f"{name}.weight")
        bias = constant(folded[f"{name}.bias"][:, None, None], f"{name}.bias")
        return op("Add", op("Mul", x, weight, name=f"{name}.scaled"), bias, name=name)

    channels = constant(np.array([1], np.int64), "channels")
    epsilon = constant(1e-6, "epsilon")

    x = "images"
    if normalisation is not None:
        mean, std = (
            np.array(values, np.float64)[None, None, None]
            for values in (normalisation.mean, normalisation.std)
        )
        x = op("Cast", x, name="images.float", to=TensorProto.FLOAT)
        x = op("Mul", x, constant(1 / (255 * std), "images.scale"), name="images.scaled")
        x = op("Add", x, constant(-mean / std, "images.shift"), name="images.normalised")
    x = op("Transpose", x, name="images.channels_first", perm=[0, 3, 1, 2])
    for i, depth in enumerate(sizes.depths, start=1):
        x = conv(f"patch_embed{i}.proj", x, stride=stage_kernel_stride(i)[1])
        for j in range(depth):
            attn, mlp = f"block{i}.{j}.attn", f"block{i}.{j}.mlp"
            gating = f"{attn}.spatial_gating_unit"
            u = gelu(conv(f"{attn}.proj_1", x))
            attention = conv(f"{gating}.conv_spatial", conv(f"{gating}.conv0", u), dilation=3)
            u = op("Mul", conv(f"{gating}.conv1", attention), u, name=gating)
            factor = constant(folded[f"{attn}.shortcut"][:, None, None], f"{attn}.shortcut")
            shortcut = op("Mul", x, factor, name=f"{attn}.shortcut.product")
            x = op("Add", shortcut, conv(f"{attn}.proj_2", u), name=attn)
            hidden = gelu(conv(f"{mlp}.dwconv.dwconv", conv(f"{mlp}.fc1", x)))
            x = op("Add", x, conv(f"{mlp}.fc2", hidden), name=mlp)
        x = layer_norm(f"norm{i}", x)
    positions = constant(np.array([2, 3], np.int64), "positions")
    has_head = sizes.num_classes is not None
    reduce = "ReduceMean" if has_head or pooling == "avg" else "ReduceMax"
    output = "features"
    x = op(reduce, x, positions, name="pool" if has_head else output, keepdims=0)
    if has_head:
        weight = constant(folded["head.weight"], "head.weight")
        bias = constant(folded["head.bias"], "head.bias")
        x = op("Gemm", x, weight, bias, name="head" if activation else "logits", transB=1)
        output = "logits"
        if activation == SOFTMAX:
            output = op("Softmax", x, name="probabilities", axis=-1)
        elif activation == SIGMOID:
            output = op("Sigmoid", x, name="probabilities")

    batch: int | str = "batch" if batch_size is None else batch_size
    height, width = (
        axis if size is None else size
        for size, axis in zip(image_size, ("height", "width"), strict=True)
    )
    kind = TensorProto.FLOAT if normalisation is None else TensorProto.UINT8
    outputs = sizes.num_classes if has_head else sizes.embed_dims[-1]
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info("images", kind, [batch, height, width, sizes.in_chans])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, [batch, outputs])],
        constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        producer_name="van_classification_tensorflow",
    )
    model.ir_version = 9  # of the same year as the opset
    return model
