"""Inference in NumPy alone, for the first answer: done before a framework has started.

One picture through VAN-B0 takes some tenths of a second here; importing a framework takes seconds
and hundreds of megabytes. For many pictures a runtime is many times as fast, once it has given the
answer that is computed here: nothing of it is folded, and nothing of it is any runtime's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from ..spec.architecture import Architecture
from ..spec.config import stage_kernel_stride
from ..support.cores import numpy_on_one_thread
from .protocol import FLOAT32

_CHUNK = 1 << 15  # elements; GELU's temporaries then stay in the cache


@dataclass(frozen=True)
class NumpyEngine:
    """The `Engine` of weights without a framework.

    Args:
        tensors: As in `forward`.
        sizes: As in `forward`.
    """

    tensors: Mapping[str, np.ndarray]
    sizes: Architecture
    format: str = "numpy"
    dtype: np.dtype = FLOAT32

    def __call__(self, images: np.ndarray, features: bool = False) -> np.ndarray:
        pooled, logits = forward(self.tensors, self.sizes, images)
        found = pooled if features or logits is None else logits
        return found.astype(np.float32, copy=False)


def forward(
    tensors: Mapping[str, np.ndarray], sizes: Architecture, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    """The whole network.

    Args:
        tensors: {the authors' name: array}, float32.
        sizes: Their architecture.
        images: (N, H, W, C_in), float32, normalised.

    Returns:
        Pooled features (N, C) and logits (N, classes), float32; None for the logits of a
        model without a head.
    """
    with numpy_on_one_thread():
        return _forward(tensors, sizes, images)


def _forward(
    tensors: Mapping[str, np.ndarray], sizes: Architecture, images: np.ndarray
) -> tuple[np.ndarray, np.ndarray | None]:
    def linear(name: str, x: np.ndarray) -> np.ndarray:
        weight = tensors[f"{name}.weight"]
        return x @ weight.reshape(weight.shape[0], -1).T + tensors[f"{name}.bias"]

    def batch_norm(name: str, x: np.ndarray) -> np.ndarray:
        scale = tensors[f"{name}.weight"] / np.sqrt(
            tensors[f"{name}.running_var"] + np.float32(1e-5)
        )
        return x * scale + (tensors[f"{name}.bias"] - tensors[f"{name}.running_mean"] * scale)

    def spatial(name: str, x: np.ndarray, dilation: int = 1) -> np.ndarray:
        return depthwise(x, tensors[f"{name}.weight"], tensors[f"{name}.bias"], dilation)

    x = images
    for i, depth in enumerate(sizes.depths, start=1):
        kernel, stride = stage_kernel_stride(i)
        embed = f"patch_embed{i}.proj"
        x = windows_of(x, kernel, stride)
        weight = tensors[f"{embed}.weight"]
        x = x @ weight.transpose(2, 3, 1, 0).reshape(-1, weight.shape[0]) + tensors[f"{embed}.bias"]
        x = batch_norm(f"patch_embed{i}.norm", x)
        for j in range(depth):
            b = f"block{i}.{j}"
            gating = f"{b}.attn.spatial_gating_unit"
            n = batch_norm(f"{b}.norm1", x)
            u = gelu(linear(f"{b}.attn.proj_1", n))
            attention = spatial(f"{gating}.conv_spatial", spatial(f"{gating}.conv0", u), 3)
            u *= linear(f"{gating}.conv1", attention)
            n += linear(f"{b}.attn.proj_2", u)
            n *= tensors[f"{b}.layer_scale_1"]
            x = x + n
            hidden = linear(f"{b}.mlp.fc1", batch_norm(f"{b}.norm2", x))
            hidden = gelu(spatial(f"{b}.mlp.dwconv.dwconv", hidden))
            hidden = linear(f"{b}.mlp.fc2", hidden)
            hidden *= tensors[f"{b}.layer_scale_2"]
            x += hidden
        x = x - x.mean(axis=-1, keepdims=True)
        x /= np.sqrt(np.square(x).mean(axis=-1, keepdims=True) + np.float32(1e-6))
        x = x * tensors[f"norm{i}.weight"] + tensors[f"norm{i}.bias"]
    features = x.mean(axis=(1, 2))
    return features, None if sizes.num_classes is None else linear("head", features)


def windows_of(x: np.ndarray, kernel: int, stride: int) -> np.ndarray:
    """(N, H, W, C) -> (N, h, w, kernel * kernel * C): what a strided convolution sees."""
    pad = kernel // 2
    x = np.pad(x, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (kernel, kernel), axis=(1, 2))
    windows = windows[:, ::stride, ::stride].transpose(0, 1, 2, 4, 5, 3)
    return windows.reshape(*windows.shape[:3], -1)


def depthwise(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, dilation: int) -> np.ndarray:
    """(N, H, W, C) with (C, 1, k, k): a sum of shifted images, tap by tap."""
    kernel = weight.shape[-1]
    reach = kernel // 2 * dilation
    n, height, width, channels = x.shape
    padded = np.zeros((n, height + 2 * reach, width + 2 * reach, channels), np.float32)
    padded[:, reach : reach + height, reach : reach + width] = x
    taps = np.ascontiguousarray(weight[:, 0].transpose(1, 2, 0))  # (k, k, C)
    out = np.empty_like(x)
    product = np.empty((width, channels), np.float32)
    for image, target in zip(padded, out, strict=True):
        for row in range(height):  # a row of everything stays in the cache
            line = target[row]
            line[:] = bias
            for i in range(kernel):
                source = row + i * dilation
                if not reach <= source < reach + height:
                    continue  # only padding
                for j in range(kernel):
                    start = j * dilation
                    np.multiply(image[source, start : start + width], taps[i, j], out=product)
                    line += product
    return out


# erf(x) = x P(x^2) / Q(x^2) on [-4, 4] to float32's precision, as in Eigen and XLA.
_P: np.ndarray = np.array(
    [
        -2.72614225801306e-10,
        2.77068142495902e-08,
        -2.10102402082508e-06,
        -5.69250639462346e-05,
        -7.34990630326855e-04,
        -2.95459980854025e-03,
        -1.60960333262415e-02,
    ],
    np.float32,
)
_Q: np.ndarray = np.array(
    [
        -1.45660718464996e-05,
        -2.13374055278905e-04,
        -1.68282697438203e-03,
        -7.37332916720468e-03,
        -1.42647390514189e-02,
    ],
    np.float32,
)


def gelu(x: np.ndarray) -> np.ndarray:
    """X (1 + erf(x / sqrt 2)) / 2, in place."""
    flat = x.reshape(-1)
    for start in range(0, flat.size, _CHUNK):
        part = flat[start : start + _CHUNK]
        part *= normal_cdf(part)
    return x


def normal_cdf(x: np.ndarray) -> np.ndarray:
    """(1 + erf(x / sqrt 2)) / 2, float32."""
    z = np.clip(x * np.float32(0.5**0.5), -4, 4)
    square = z * z
    above, below = np.full_like(z, _P[0]), np.full_like(z, _Q[0])
    for coefficient in _P[1:]:
        above *= square
        above += coefficient
    for coefficient in _Q[1:]:
        below *= square
        below += coefficient
    above *= z
    above /= below
    above += 1
    above *= 0.5
    return above
