"""The same seeded weights and inputs for every contender, keyed by the authors' tensor names."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Iterable, Sequence

import numpy as np

IMAGE_SIZE = 224
NUM_CLASSES = 1000

# transformers' module names (its spelling) -> the authors'; {i} counts stages from 1.
_STAGE = {
    "embeddings.convolution": "patch_embed{i}.proj",
    "embeddings.normalization": "patch_embed{i}.norm",
    "normalization": "norm{i}",
}
_LAYER = {
    "pre_normomalization": "norm1",
    "attention.pre_projection.conv": "attn.proj_1",
    "attention.attention_layer.attention.depth_wise": "attn.spatial_gating_unit.conv0",
    "attention.attention_layer.attention.depth_wise_dilated": (
        "attn.spatial_gating_unit.conv_spatial"
    ),
    "attention.attention_layer.attention.point_wise": "attn.spatial_gating_unit.conv1",
    "attention.post_projection": "attn.proj_2",
    "post_normalization": "norm2",
    "mlp.in_dense": "mlp.fc1",
    "mlp.depth_wise": "mlp.dwconv.dwconv",
    "mlp.out_dense": "mlp.fc2",
}
_SCALE = {"attention_scaling": "layer_scale_1", "mlp_scaling": "layer_scale_2"}
_HF_NAME = re.compile(r"van\.encoder\.stages\.(\d+)\.(?:layers\.(\d+)\.)?(.+)\.(\w+)")


def official_name(hf_name: str) -> str | None:
    """The authors' name of a tensor of transformers' VAN; None for the one it never uses.

    Raises:
        KeyError: The name is not in the table.
    """
    if hf_name.startswith("van.layernorm."):
        return None  # VanModel builds it, VanForImageClassification never calls it
    if hf_name.startswith("classifier."):
        return hf_name.replace("classifier", "head")
    found = _HF_NAME.fullmatch(hf_name)
    if found is None:
        raise KeyError(f"transformers tensor {hf_name!r} has no official name")
    stage, block, module, leaf = found.groups()
    i = int(stage) + 1
    if block is None:
        return f"{_STAGE[module].format(i=i)}.{leaf}"
    if module in _SCALE:  # a bare parameter in the authors' code
        return f"block{i}.{block}.{_SCALE[module]}"
    return f"block{i}.{block}.{_LAYER[module]}.{leaf}"


def official_names(hf_names: Iterable[str]) -> dict[str, str]:
    """{transformers name: official name} of every tensor that takes part; one to one."""
    pairs = {hf: official_name(hf) for hf in hf_names}
    names = {hf: name for hf, name in pairs.items() if name is not None}
    if len(set(names.values())) != len(names):
        raise ValueError("two transformers tensors map to one official name")
    return names


def seeded(name: str, shape: Sequence[int], seed: int = 0) -> np.ndarray:
    """The tensor of an official name: it depends on nothing but name, shape and seed.

    Ranges keep the activations of a deep model of order one, and every tensor visible in the
    logits: a published initialisation (layer scale 0.01, zero biases) would hide mistakes.
    """
    leaf = name.rsplit(".", 1)[-1]
    rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode()) + seed))
    if leaf == "num_batches_tracked":
        return np.zeros(shape, np.int64)
    if leaf.startswith("layer_scale_"):
        array = rng.uniform(0.01, 0.05, shape)
    elif leaf in ("bias", "running_mean"):
        array = 0.1 * rng.standard_normal(shape)
    elif len(shape) == 1:  # running_var and the weights of norms
        array = rng.uniform(0.5, 1.5, shape)
    else:
        array = rng.standard_normal(shape) / math.sqrt(math.prod(shape[1:]))
    return np.asarray(array, np.float32)


def fixed_images(batch: int) -> np.ndarray:
    """(batch, 224, 224, 3) float32, channels last."""
    rng = np.random.Generator(np.random.PCG64(7))
    return rng.standard_normal((batch, IMAGE_SIZE, IMAGE_SIZE, 3)).astype(np.float32)


def fixed_labels(batch: int) -> np.ndarray:
    """(batch,) int64."""
    return np.random.Generator(np.random.PCG64(8)).integers(NUM_CLASSES, size=batch)
