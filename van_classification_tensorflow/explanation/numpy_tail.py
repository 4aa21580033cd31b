"""The end of the network in NumPy, and back: the gradient of a logit without a framework.

From the map of one of the last stages on, this is done in less time than a framework takes to
start. The formulas are those of `engines/numpy_forward.py`, each with its derivative beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from ..engines.numpy_forward import depthwise, normal_cdf, windows_of
from ..spec.architecture import Architecture
from ..spec.config import stage_kernel_stride

Back = Callable[[np.ndarray], np.ndarray]
Step = tuple[np.ndarray, Back]
"""What a part of the network gives, and gradient of that -> gradient of what it was given."""


@dataclass(frozen=True)
class Tail:
    """All that comes after the last block of a stage, or after its norm.

    Args:
        tensors: {the authors' name: array}, float32.
        sizes: Their architecture, with classes.
        stage: From 1.
    """

    tensors: Mapping[str, np.ndarray]
    sizes: Architecture
    stage: int

    def norm(self, x: np.ndarray) -> Step:
        """The layer norm of the stage, (N, h, w, C)."""
        return self._layer_norm(f"norm{self.stage}", x)

    def after_norm(self, x: np.ndarray) -> tuple[np.ndarray, Back]:
        """Logits (N, K) of (N, h, w, C), and gradient (N, K) -> gradient (N, h, w, C)."""
        backs: list[Back] = []
        for i in range(self.stage + 1, len(self.sizes.depths) + 1):
            x, back = self._patch_embed(i, x)
            backs.append(back)
            for j in range(self.sizes.depths[i - 1]):
                x, back = self._block(f"block{i}.{j}", x)
                backs.append(back)
            x, back = self._layer_norm(f"norm{i}", x)
            backs.append(back)
        shape, weight = x.shape, self.tensors["head.weight"]
        logits = x.mean(axis=(1, 2)) @ weight.T + self.tensors["head.bias"]

        def whole(gradient: np.ndarray) -> np.ndarray:
            pooled = (gradient @ weight)[:, None, None] / np.float32(shape[1] * shape[2])
            gradient = np.broadcast_to(pooled, shape)
            for back in reversed(backs):
                gradient = back(gradient)
            return gradient

        return logits, whole

    def _linear(self, name: str, x: np.ndarray) -> Step:
        weight = self.tensors[f"{name}.weight"]
        weight = weight.reshape(weight.shape[0], -1)
        return x @ weight.T + self.tensors[f"{name}.bias"], lambda g: g @ weight

    def _batch_norm(self, name: str, x: np.ndarray) -> Step:
        weight, bias, mean, variance = (
            self.tensors[f"{name}.{leaf}"]
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + np.float32(1e-5))
        return x * scale + (bias - mean * scale), lambda g: g * scale

    def _layer_norm(self, name: str, x: np.ndarray) -> Step:
        weight, bias = self.tensors[f"{name}.weight"], self.tensors[f"{name}.bias"]
        x = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(1e-6))
        x /= deviation

        def back(g: np.ndarray) -> np.ndarray:
            g = g * weight
            along = (g * x).mean(axis=-1, keepdims=True)
            return (g - g.mean(axis=-1, keepdims=True) - x * along) / deviation

        return x * weight + bias, back

    def _spatial(self, name: str, x: np.ndarray, dilation: int = 1) -> Step:
        weight = self.tensors[f"{name}.weight"]
        none: np.ndarray = np.zeros(len(weight), np.float32)
        turned = weight[:, :, ::-1, ::-1]
        made = depthwise(x, weight, self.tensors[f"{name}.bias"], dilation)
        return made, lambda g: depthwise(g, turned, none, dilation)

    def _patch_embed(self, i: int, x: np.ndarray) -> Step:
        name, (kernel, stride) = f"patch_embed{i}", stage_kernel_stride(i)
        weight, bias = (self.tensors[f"{name}.proj.{leaf}"] for leaf in ("weight", "bias"))
        taps = weight.transpose(2, 3, 1, 0)  # (k, k, C_in, C)
        made = windows_of(x, kernel, stride) @ taps.reshape(-1, taps.shape[-1]) + bias
        made, normed = self._batch_norm(f"{name}.norm", made)
        shape, pad = x.shape, kernel // 2

        def back(g: np.ndarray) -> np.ndarray:
            g = normed(g)
            n, height, width, channels = shape
            padded = np.zeros((n, height + 2 * pad, width + 2 * pad, channels), np.float32)
            below, right = stride * g.shape[1], stride * g.shape[2]
            for a in range(kernel):
                for b in range(kernel):
                    here = padded[:, a : a + below : stride, b : b + right : stride]
                    here += (g @ taps[a, b].T)[:, : here.shape[1], : here.shape[2]]
            return padded[:, pad : pad + height, pad : pad + width]

        return made, back

    def _block(self, name: str, x: np.ndarray) -> Step:
        first, back_first = self._residual(name, "1", self._attention, x)
        made, back_second = self._residual(name, "2", self._mlp, first)
        return made, lambda g: back_first(back_second(g))

    def _residual(
        self, name: str, which: str, branch: Callable[[str, np.ndarray], Step], x: np.ndarray
    ) -> Step:
        """X + layer scale x branch(norm(x))."""
        scale = self.tensors[f"{name}.layer_scale_{which}"]
        n, back_norm = self._batch_norm(f"{name}.norm{which}", x)
        made, back_branch = branch(name, n)
        return x + made * scale, lambda g: g + back_norm(back_branch(g * scale))

    def _attention(self, name: str, n: np.ndarray) -> Step:
        attn, gating = f"{name}.attn", f"{name}.attn.spatial_gating_unit"
        before, back_first = self._linear(f"{attn}.proj_1", n)
        u, back_gelu = _gelu(before)
        near, back_near = self._spatial(f"{gating}.conv0", u)
        far, back_far = self._spatial(f"{gating}.conv_spatial", near, 3)
        gate, back_gate = self._linear(f"{gating}.conv1", far)
        made, back_last = self._linear(f"{attn}.proj_2", gate * u)

        def back(g: np.ndarray) -> np.ndarray:
            product = back_last(g)
            through = product * gate + back_near(back_far(back_gate(product * u)))
            return g + back_first(back_gelu(through))

        return made + n, back

    def _mlp(self, name: str, n: np.ndarray) -> Step:
        hidden, back_first = self._linear(f"{name}.mlp.fc1", n)
        hidden, back_spatial = self._spatial(f"{name}.mlp.dwconv.dwconv", hidden)
        hidden, back_gelu = _gelu(hidden)
        made, back_last = self._linear(f"{name}.mlp.fc2", hidden)
        return made, lambda g: back_first(back_spatial(back_gelu(back_last(g))))


def _gelu(x: np.ndarray) -> Step:
    share = normal_cdf(x)
    density = np.exp(-0.5 * np.square(x)) * np.float32(1 / np.sqrt(2 * np.pi))
    return x * share, lambda g: g * (share + x * density)
