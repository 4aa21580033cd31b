"""Batch norm and layer scale folded into the convolutions beside them, in NumPy.

In inference both are one factor and one constant per channel, and both neighbours of each are
linear. With batch norm written n = s x + t, where s = weight / sqrt(running_var + 1e-5) and
t = bias - s running_mean, and l1, l2 for the layer scales, a block (paper, Figure 2a) computes

    y = x + l1 (proj_2(u) + n1)        u = LKA(gelu(proj_1(n1)))      n1 = s1 x + t1
    z = y + l2 fc2(gelu(dwconv(fc1(n2))))                             n2 = s2 y + t2

as the attention's own shortcut starts at n1. The same, without the norms and the scales:

    y = (1 + l1 s1) x + proj_2'(u)     u = LKA(gelu(proj_1'(x)))
    z = y + fc2'(gelu(dwconv(fc1'(y))))

Nothing moves across a depthwise convolution, whose zero padding would not move with it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np


def fold(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The tensors of the folded network, or of whole parts of it.

    Args:
        tensors: {the authors' name: array}, in PyTorch's shapes; of each block and of each patch
            embedding all or none.

    Returns:
        The same names and shapes, float32, without `norm` of the patch embeddings and `norm1`,
        `norm2`, `layer_scale_1`, `layer_scale_2` of the blocks; and `blockI.J.attn.shortcut`
        (C,), the factor 1 + l1 s1. The arithmetic is done in float64.
    """
    folded = {name: np.array(array, np.float64) for name, array in tensors.items()}

    def pop_affine(norm: str) -> tuple[np.ndarray, np.ndarray]:
        """(s, t) of a batch norm, which is taken away."""
        folded.pop(f"{norm}.num_batches_tracked", None)
        weight, bias, mean, variance = (
            folded.pop(f"{norm}.{leaf}")
            for leaf in ("weight", "bias", "running_mean", "running_var")
        )
        scale = weight / np.sqrt(variance + 1e-5)
        return scale, bias - scale * mean

    def before(conv: str, scale: np.ndarray, shift: np.ndarray) -> None:
        """conv(scale x + shift) -> conv'(x), for a 1 x 1 convolution."""
        weight = folded[f"{conv}.weight"]
        folded[f"{conv}.bias"] += weight[:, :, 0, 0] @ shift
        folded[f"{conv}.weight"] = weight * scale[:, None, None]

    def after(conv: str, scale: np.ndarray, shift: np.ndarray | float = 0.0) -> None:
        """Scale conv(x) + shift -> conv'(x)."""
        folded[f"{conv}.weight"] *= scale[:, None, None, None]
        folded[f"{conv}.bias"] = folded[f"{conv}.bias"] * scale + shift

    for name in tensors:
        part, _, rest = name.rpartition(".")
        if part.startswith("patch_embed") and part.endswith(".norm") and rest == "weight":
            after(part.replace(".norm", ".proj"), *pop_affine(part))
        elif rest == "layer_scale_1":
            s1, t1 = pop_affine(f"{part}.norm1")
            s2, t2 = pop_affine(f"{part}.norm2")
            l1, l2 = (folded.pop(f"{part}.layer_scale_{k}") for k in (1, 2))
            before(f"{part}.attn.proj_1", s1, t1)
            after(f"{part}.attn.proj_2", l1, l1 * t1)
            before(f"{part}.mlp.fc1", s2, t2)
            after(f"{part}.mlp.fc2", l2)
            folded[f"{part}.attn.shortcut"] = 1.0 + l1 * s1
    return {name: array.astype(np.float32) for name, array in folded.items()}
