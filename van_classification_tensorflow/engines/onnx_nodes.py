"""Writes an ONNX graph node by node: no framework, no converter; and the block of a folded VAN.

Everything of four axes lies channels-first in it, (B, C, H, W), as ONNX's convolutions want it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import onnx

# One of 2023, which all runtimes know: the first with Gelu, and with axes as an input of all
# reductions.
OPSET = 20

Shape = Sequence[int | str]  # a name stands for any size


class Nodes:
    """Nodes and constants; each method adds some and gives the name of what it computes.

    Args:
        tensors: {name: array} of the folded network, or of parts of it, as `fold` gives them;
            `conv`, `layer_norm` and `block` take theirs by name.
    """

    def __init__(self, tensors: Mapping[str, np.ndarray]):
        self.tensors = tensors
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, values: np.ndarray | float, name: str) -> str:
        """Whole numbers of 64 bits stay so; all else becomes float32."""
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

    def model(
        self, name: str, images: tuple[str, int, Shape], outputs: Mapping[str, Shape]
    ) -> onnx.ModelProto:
        """The whole graph, closed.

        Args:
            name: Of the graph.
            images: (name, type as of `onnx.TensorProto`, shape) of its input.
            outputs: {name: shape}, all float32.
        """
        from onnx import TensorProto, helper

        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info(*images)],
            [
                helper.make_tensor_value_info(output, TensorProto.FLOAT, shape)
                for output, shape in outputs.items()
            ],
            self.constants,
        )
        model = helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid("", OPSET)],
            producer_name="van_classification_tensorflow",
        )
        model.ir_version = 9  # of the same year as the opset
        return model

    def conv(
        self, name: str, x: str, stride: int = 1, dilation: int = 1, depthwise: bool = False
    ) -> str:
        """The convolution of the tensors `name`, zero-padded by half of its kernel."""
        weight = self.tensors[f"{name}.weight"]
        side = weight.shape[2]
        return self.op(
            "Conv",
            x,
            self.constant(weight, f"{name}.weight"),
            self.constant(self.tensors[f"{name}.bias"], f"{name}.bias"),
            name=name,
            kernel_shape=[side, side],
            strides=[stride, stride],
            dilations=[dilation, dilation],
            pads=[side // 2 * dilation] * 4,
            group=weight.shape[0] if depthwise else 1,
        )

    def gelu(self, x: str) -> str:
        # One operator: between the parts of its definition quantisers would put their steps.
        return self.op("Gelu", x, name=f"{x}.gelu")

    def normalised(self, name: str, x: str, axes: str, epsilon: str) -> str:
        """Less its mean and divided by its deviation over `axes`, written out.

        ONNX's own operator for it would want the channels last.

        Args:
            name: Begins the names of what is computed.
            x: What is normalised.
            axes: A constant.
            epsilon: A constant, added to the variance.
        """
        op = self.op
        mean = op("ReduceMean", x, axes, name=f"{name}.mean", keepdims=1)
        centred = op("Sub", x, mean, name=f"{name}.centred")
        square = op("Mul", centred, centred, name=f"{name}.square")
        variance = op("ReduceMean", square, axes, name=f"{name}.variance", keepdims=1)
        shifted = op("Add", variance, epsilon, name=f"{name}.shifted")
        deviation = op("Sqrt", shifted, name=f"{name}.deviation")
        return op("Div", centred, deviation, name=f"{name}.normalised")

    def block(self, name: str, x: str) -> str:
        """One block, of the tensors that begin with `name`."""
        op, conv = self.op, self.conv
        attn, mlp = f"{name}.attn", f"{name}.mlp"
        gating = f"{attn}.spatial_gating_unit"
        u = self.gelu(conv(f"{attn}.proj_1", x))
        attention = conv(f"{gating}.conv0", u, depthwise=True)
        attention = conv(f"{gating}.conv_spatial", attention, dilation=3, depthwise=True)
        u = op("Mul", conv(f"{gating}.conv1", attention), u, name=gating)
        shortcut = self.tensors[f"{attn}.shortcut"][:, None, None]
        factor = self.constant(shortcut, f"{attn}.shortcut")
        kept = op("Mul", x, factor, name=f"{attn}.shortcut.product")
        x = op("Add", kept, conv(f"{attn}.proj_2", u), name=attn)
        hidden = conv(f"{mlp}.dwconv.dwconv", conv(f"{mlp}.fc1", x), depthwise=True)
        return op("Add", x, conv(f"{mlp}.fc2", self.gelu(hidden)), name=mlp)
