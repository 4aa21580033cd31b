"""The VAN family: the sizes the paper trains, and the checks that every size must pass.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

DATA_FORMATS = ("channels_last", "channels_first")
POOLINGS = ("avg", "max", None)


def entries(value: Any) -> tuple[Any, ...]:
    """The entries of anything that has an order; none of a text and of what has no entries."""
    if isinstance(value, (str, bytes, Mapping, Set)):
        return ()
    try:
        return tuple(value)
    except TypeError:  # also an array of no axes, which claims to be iterable
        return ()


@dataclass(frozen=True)
class VANConfig:
    """The four per-stage lists that make one member of the family.

    Args:
        embed_dims: Channels of each stage.
        mlp_ratios: Hidden channels of each stage's MLP, as a multiple of `embed_dims`.
        depths: Number of blocks in each stage.

    Raises:
        ValueError: A list is empty, the lengths differ, or a value is not positive.
    """

    embed_dims: Sequence[int]
    mlp_ratios: Sequence[float]
    depths: Sequence[int]

    def __post_init__(self) -> None:
        for field, kind in (("embed_dims", Integral), ("mlp_ratios", Real), ("depths", Integral)):
            received = getattr(self, field)
            values = list(entries(received))
            if not values:
                raise ValueError(
                    f"`{field}` must be a list with one entry per stage (at least one stage). "
                    f"Received: {field}={received!r}"
                )
            if not all(
                isinstance(v, kind) and not isinstance(v, bool) and float(v) > 0 for v in values
            ):
                what = "positive integers" if kind is Integral else "positive numbers"
                raise ValueError(f"`{field}` must hold {what}. Received: {field}={values!r}")
            # Plain numbers, also from NumPy's: they go into configuration files.
            plain = (int(v) if isinstance(v, Integral) else float(v) for v in values)
            object.__setattr__(self, field, tuple(plain))
        lengths = {f: len(getattr(self, f)) for f in ("embed_dims", "mlp_ratios", "depths")}
        if len(set(lengths.values())) > 1:
            raise ValueError(
                "`embed_dims`, `mlp_ratios` and `depths` must have one entry per stage, so the "
                f"same length. Received lengths: {lengths}"
            )
        for dim, ratio in zip(self.embed_dims, self.mlp_ratios, strict=True):
            if int(dim * ratio) < 1:
                raise ValueError(
                    "`embed_dims` x `mlp_ratios` must give at least one hidden channel. "
                    f"Received: {dim} x {ratio}"
                )

    @property
    def num_stages(self) -> int:
        return len(self.depths)

    @property
    def hidden_dims(self) -> tuple[int, ...]:
        """Hidden channels of each stage's MLP (rounded down, as the original does)."""
        return tuple(int(d * r) for d, r in zip(self.embed_dims, self.mlp_ratios, strict=True))


def stage_kernel_stride(stage: int) -> tuple[int, int]:
    """Kernel size and stride of the patch embedding of stage 1, 2, ... (paper, Table 2)."""
    return (7, 4) if stage == 1 else (3, 2)


def patches(size: int, kernel_size: int, stride: int) -> int:
    """Output positions along a side of `size`, with kernel_size // 2 zeros on each end."""
    return (size + 2 * (kernel_size // 2) - kernel_size) // stride + 1


def min_image_size(num_stages: int) -> int:
    """Smallest side at which every stage still has at least one whole stride of input."""
    size = 1
    for stage in range(num_stages, 0, -1):
        kernel_size, stride = stage_kernel_stride(stage)
        need = size
        size = stride  # an input shorter than the stride would see mostly padding
        while patches(size, kernel_size, stride) < need:
            size += 1
    return size


# Paper (arXiv 2202.09741) Table 2 for B0-B6; B0's depths from the authors' code.
CONFIGURATIONS: dict[str, VANConfig] = {
    "van_b0": VANConfig((32, 64, 160, 256), (8, 8, 4, 4), (3, 3, 5, 2)),
    "van_b1": VANConfig((64, 128, 320, 512), (8, 8, 4, 4), (2, 2, 4, 2)),
    "van_b2": VANConfig((64, 128, 320, 512), (8, 8, 4, 4), (3, 3, 12, 3)),
    "van_b3": VANConfig((64, 128, 320, 512), (8, 8, 4, 4), (3, 5, 27, 3)),
    "van_b4": VANConfig((64, 128, 320, 512), (8, 8, 4, 4), (3, 6, 40, 3)),
    "van_b5": VANConfig((96, 192, 480, 768), (8, 8, 4, 4), (3, 3, 24, 3)),
    "van_b6": VANConfig((96, 192, 384, 768), (8, 8, 4, 4), (6, 6, 90, 6)),
}

# The authors' constructor defaults, used where no configuration is named.
DEFAULT = VANConfig((64, 128, 256, 512), (4, 4, 4, 4), (3, 4, 6, 3))


def resolve(
    configuration: str | None = None,
    embed_dims: Sequence[int] | None = None,
    mlp_ratios: Sequence[float] | None = None,
    depths: Sequence[int] | None = None,
    num_stages: int | None = None,
    default: VANConfig | None = None,
) -> VANConfig:
    """Named configuration plus overrides -> a checked `VANConfig`.

    Without a name, `default` is overridden; without that, the authors' constructor defaults.

    Raises:
        ValueError: The name is unknown, the lists do not fit together, or `num_stages`
            contradicts them.
    """
    if configuration is None:
        base = default or DEFAULT
    elif isinstance(configuration, str) and configuration in CONFIGURATIONS:
        base = CONFIGURATIONS[configuration]
    else:
        raise ValueError(
            f"`configuration` must be one of {', '.join(CONFIGURATIONS)}, or None to give "
            f"`embed_dims`, `mlp_ratios` and `depths` yourself. Received: {configuration!r}"
        )

    config = VANConfig(
        base.embed_dims if embed_dims is None else embed_dims,
        base.mlp_ratios if mlp_ratios is None else mlp_ratios,
        base.depths if depths is None else depths,
    )
    if num_stages is not None and num_stages != config.num_stages:
        raise ValueError(
            f"`num_stages` must equal the length of `depths`, {config.num_stages}. "
            f"Received: num_stages={num_stages!r}"
        )
    return config
