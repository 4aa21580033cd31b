"""The tensors of a VAN, by the authors' names: which there are, their shapes, and their checks."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from .config import CONFIGURATIONS, VANConfig, patches, stage_kernel_stride


@dataclass(frozen=True)
class TensorSpec:
    """Shape of a tensor as the authors store it, and its kind in the table above."""

    shape: tuple[int, ...]
    kind: str

    def to_keras(self, array: np.ndarray) -> np.ndarray:
        """The authors' axes -> this package's."""
        if self.kind == "pointwise":
            array = array[:, :, 0, 0]
        axes = {"conv": (2, 3, 1, 0), "depthwise": (2, 3, 0, 1)}.get(self.kind)
        return array.transpose(axes) if axes or array.ndim == 2 else array

    def from_keras(self, array: np.ndarray, grouped: bool = False) -> np.ndarray:
        """Keras axes -> the authors'; `grouped`: those of the earlier TensorFlow port."""
        if array.ndim == 4:
            hwio = grouped or self.kind != "depthwise"
            return array.transpose((3, 2, 0, 1) if hwio else (2, 3, 0, 1))
        if array.ndim == 2:
            array = array.T
        return array[:, :, None, None] if self.kind == "pointwise" else array


@dataclass(frozen=True)
class Architecture:
    """The numbers that fix every tensor's shape."""

    embed_dims: tuple[int, ...]
    hidden_dims: tuple[int, ...]
    depths: tuple[int, ...]
    in_chans: int
    num_classes: int | None
    """Classes of the head; None: no head."""

    @property
    def config(self) -> VANConfig:
        ratios = []
        for dim, hidden in zip(self.embed_dims, self.hidden_dims, strict=True):
            ratio = hidden / dim
            if int(dim * ratio) != hidden:  # rounded down, a hidden channel would be lost
                ratio = np.nextafter(ratio, np.inf)
            ratios.append(int(ratio) if float(ratio).is_integer() else float(ratio))
        return VANConfig(self.embed_dims, ratios, self.depths)

    @property
    def configuration(self) -> str | None:
        """The member of the family that has these sizes, `"van_b0"` ... `"van_b6"`."""
        for name, known in CONFIGURATIONS.items():
            if (known.embed_dims, known.hidden_dims, known.depths) == (
                self.embed_dims,
                self.hidden_dims,
                self.depths,
            ):
                return name
        return None

    def check_same_sizes(self, config: VANConfig, origin: str) -> None:
        """Raises `ValueError` where a model of `config` has other sizes than `origin`'s weights."""
        asked = (config.embed_dims, config.hidden_dims, config.depths)
        if asked != (self.embed_dims, self.hidden_dims, self.depths):
            raise ValueError(
                f"{origin} holds {self}; the model asked for has embed_dims "
                f"{list(config.embed_dims)}, mlp_ratios {list(config.mlp_ratios)}, depths "
                f"{list(config.depths)}"
            )

    def __str__(self) -> str:
        sizes = self.configuration or (
            f"embed_dims {list(self.embed_dims)}, mlp_ratios {list(self.config.mlp_ratios)}, "
            f"depths {list(self.depths)}"
        )
        head = "no head" if self.num_classes is None else f"{self.num_classes:,} classes"
        return f"{sizes}, {self.in_chans} input channels, {head}"

    def macs(self, height: int, width: int) -> int:
        """Multiply-accumulates of the convolutions and the head for one image."""
        total = 0
        for name, spec in self.tensors().items():
            stage = re.match(r"(?:patch_embed|block)(\d)", name)
            if stage and len(spec.shape) == 4:
                if name.startswith("patch_embed"):
                    kernel, stride = stage_kernel_stride(int(stage[1]))
                    height, width = (patches(n, kernel, stride) for n in (height, width))
                total += prod(spec.shape) * height * width
            elif spec.kind == "linear":
                total += prod(spec.shape)
        return total

    def tensors(self) -> dict[str, TensorSpec]:
        """{the authors' name: shape and kind}, in the order of their state dict."""
        specs: dict[str, TensorSpec] = {}

        def add(name, out, inside=None, kernel=1, kind="vector"):
            if inside is not None:
                shape = (out, inside) if kind == "linear" else (out, inside, kernel, kernel)
                specs[f"{name}.weight"] = TensorSpec(shape, kind)
            else:
                specs[f"{name}.weight"] = TensorSpec((out,), "vector")
            specs[f"{name}.bias"] = TensorSpec((out,), "vector")

        def add_batch_norm(name, channels):
            add(name, channels)
            for statistic in ("running_mean", "running_var"):
                specs[f"{name}.{statistic}"] = TensorSpec((channels,), "vector")

        before = self.in_chans
        sizes = zip(self.embed_dims, self.hidden_dims, self.depths, strict=True)
        for i, (dim, hidden, depth) in enumerate(sizes, start=1):
            kernel, _ = stage_kernel_stride(i)
            add(f"patch_embed{i}.proj", dim, before, kernel, "conv")
            add_batch_norm(f"patch_embed{i}.norm", dim)
            for j in range(depth):
                b = f"block{i}.{j}"
                gating = f"{b}.attn.spatial_gating_unit"
                specs[f"{b}.layer_scale_1"] = TensorSpec((dim,), "vector")
                specs[f"{b}.layer_scale_2"] = TensorSpec((dim,), "vector")
                add_batch_norm(f"{b}.norm1", dim)
                add(f"{b}.attn.proj_1", dim, dim, kind="pointwise")
                add(f"{gating}.conv0", dim, 1, 5, "depthwise")
                add(f"{gating}.conv_spatial", dim, 1, 7, "depthwise")
                add(f"{gating}.conv1", dim, dim, kind="pointwise")
                add(f"{b}.attn.proj_2", dim, dim, kind="pointwise")
                add_batch_norm(f"{b}.norm2", dim)
                add(f"{b}.mlp.fc1", hidden, dim, kind="pointwise")
                add(f"{b}.mlp.dwconv.dwconv", hidden, 1, 3, "depthwise")
                add(f"{b}.mlp.fc2", dim, hidden, kind="pointwise")
            add(f"norm{i}", dim)
            before = dim
        if self.num_classes is not None:
            add("head", self.num_classes, before, kind="linear")
        return specs


def architecture_of(tensors: Mapping[str, Any]) -> Architecture:
    """Sizes of the model whose tensors (authors' names) these are.

    Raises:
        ValueError: A tensor that tells a size is missing or has the wrong number of axes.
    """

    def shape(name: str, rank: int) -> tuple[int, ...]:
        if name not in tensors:
            there = ", ".join(ascii(str(one)[:80]) for one in list(tensors)[:3])
            raise ValueError(
                f"these are not the weights of a VAN: {name} is missing. It has: {there}"
                + (f" and {len(tensors) - 3:,} more" if len(tensors) > 3 else "")
            )
        found = tuple(np.shape(tensors[name]))
        if len(found) != rank or 0 in found:
            raise ValueError(f"{name} has shape {found}; expected {rank} axes, none of them 0")
        return found

    embed_dims, hidden_dims, depths = [], [], []
    i = 1
    while i == 1 or f"patch_embed{i}.proj.weight" in tensors:
        embed_dims.append(shape(f"patch_embed{i}.proj.weight", 4)[0])
        hidden_dims.append(shape(f"block{i}.0.mlp.fc1.weight", 4)[0])
        depth = 1
        while f"block{i}.{depth}.mlp.fc1.weight" in tensors:
            depth += 1
        depths.append(depth)
        i += 1
    in_chans = shape("patch_embed1.proj.weight", 4)[1]
    classes = shape("head.weight", 2)[0] if "head.weight" in tensors else None
    return Architecture(tuple(embed_dims), tuple(hidden_dims), tuple(depths), in_chans, classes)


def check(
    tensors: Mapping[str, Any],
    specs: Mapping[str, TensorSpec],
    unneeded: Collection[str] = (),
    allow_nonfinite: bool = False,
) -> dict[str, np.ndarray]:
    """`tensors` as arrays in the order of `specs`, half precision widened to float32.

    Args:
        tensors: {authors' name: anything NumPy reads}.
        specs: What there must be: all of it, and nothing else.
        unneeded: Names that may be there as well, and are left out.
        allow_nonfinite: Accept NaN and infinities, which otherwise mark a broken training.

    Raises:
        ValueError: Lists every missing, unused, mis-shaped and unreadable name at once.
    """
    problems: dict[str, list[str]] = {
        "missing": [name for name in specs if name not in tensors],
        "not used by the model": [
            str(name) for name in tensors if name not in specs and name not in unneeded
        ],
        "wrong shape": [],
        "not numbers": [],
        "not readable as an array": [],
        "holding NaN or infinity": [],
    }
    arrays: dict[str, np.ndarray] = {}
    for name, spec in specs.items():
        if name not in tensors:
            continue
        try:
            array = np.asarray(tensors[name])
        except (TypeError, ValueError, RuntimeError) as error:
            problems["not readable as an array"].append(f"{name}: {error}")
            continue
        if array.dtype.name in ("bfloat16", "float16"):
            array = array.astype(np.float32)
        if array.shape != spec.shape:
            text = f"{name}: expected {spec.shape}, received {array.shape}"
            problems["wrong shape"].append(text)
        if array.dtype.kind not in "fiu":
            problems["not numbers"].append(f"{name}: {array.dtype}")
        elif not allow_nonfinite and not np.isfinite(array).all():
            problems["holding NaN or infinity"].append(name)
        arrays[name] = array
    if any(problems.values()):
        raise ValueError(
            "\n".join(
                f"{title} ({len(found)}):\n  " + "\n  ".join(_shortened(found))
                for title, found in problems.items()
                if found
            )
        )
    return arrays


def _shortened(lines: list[str], most: int = 20) -> list[str]:
    rest = [f"... and {len(lines) - most} more"] if len(lines) > most else []
    return lines[:most] + rest
