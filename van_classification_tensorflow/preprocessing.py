"""How a picture becomes a model's input: a property of each checkpoint, kept beside its weights.

Imports neither Keras nor a backend.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Integral, Real
from typing import Any

INTERPOLATIONS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")  # Pillow's


@dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop and normalisation of one checkpoint.

    The defaults are the ones that the authors' ImageNet-1k weights were evaluated with
    (timm 0.4.12's).

    Args:
        input_size: Side of the square crop in pixels.
        crop_pct: The crop's share of the resized shorter side, above 0 and at most 1.
        interpolation: Pillow's filter: nearest, box, bilinear, hamming, bicubic or lanczos.
        mean: Taken from each channel after scaling to [0, 1]; 1 or 3 channels.
        std: What each channel is then divided by; as many as `mean`.

    Raises:
        ValueError: A value is out of its range, or `mean` and `std` do not fit together.
    """

    input_size: int = 224
    crop_pct: float = 0.9
    interpolation: str = "bicubic"
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)

    def __post_init__(self) -> None:
        size, share = self.input_size, self.crop_pct
        if not isinstance(size, Integral) or isinstance(size, bool) or size < 1:
            raise ValueError(
                f"`input_size` must be a whole number of pixels, at least 1. Received: {size!r}"
            )
        if not isinstance(share, Real) or isinstance(share, bool) or not 0 < share <= 1:
            raise ValueError(
                "`crop_pct` is a share of the shorter side: above 0 and at most 1 (0.9 for 90 %). "
                f"Received: {share!r}"
            )
        if self.interpolation not in INTERPOLATIONS:
            raise ValueError(
                f"`interpolation` must be one of Pillow's: {', '.join(INTERPOLATIONS)}. "
                f"Received: {self.interpolation!r}"
            )
        # Plain numbers, also from NumPy's: the record goes into JSON.
        object.__setattr__(self, "input_size", int(size))
        object.__setattr__(self, "crop_pct", float(share))
        object.__setattr__(self, "mean", _channels("mean", self.mean))
        object.__setattr__(self, "std", _channels("std", self.std))
        if len(self.mean) != len(self.std):
            raise ValueError(
                "`mean` and `std` need one number per channel each, so the same length. "
                f"Received: mean={self.mean}, std={self.std}"
            )
        if min(self.std) <= 0:
            raise ValueError(f"`std` divides: it must be above 0. Received: {self.std}")

    @property
    def resize_to(self) -> int:
        """Length of the shorter side before the crop, in pixels (timm's floor, 248 for 224)."""
        return math.floor(self.input_size / self.crop_pct)

    def to_dict(self) -> dict[str, Any]:
        """The record as JSON can hold it."""
        return asdict(self) | {"mean": list(self.mean), "std": list(self.std)}

    @classmethod
    def from_dict(cls, record: Mapping[str, Any]) -> Preprocessing:
        """The inverse of `to_dict`; what is left out has its default.

        Raises:
            ValueError: A key is unknown, or a value is out of its range.
        """
        known = [field.name for field in fields(cls)]
        if unknown := sorted(set(map(str, record)) - set(known)):
            raise ValueError(
                f"A preprocessing record has the keys {', '.join(known)}. "
                f"Received also: {', '.join(unknown)}; remove or rename them."
            )
        return cls(**record)

    def __str__(self) -> str:
        return (
            f"shorter side to {self.resize_to} ({self.interpolation}), "
            f"centre crop {self.input_size}, mean {self.mean}, std {self.std}"
        )


def _channels(name: str, received: Any) -> tuple[float, ...]:
    """One finite number per channel, 1 or 3 of them, or a ValueError that names the argument."""
    values = tuple(received) if isinstance(received, Iterable) else ()
    numbers = all(isinstance(v, Real) and not isinstance(v, bool) for v in values)
    if len(values) not in (1, 3) or not numbers or not all(map(math.isfinite, values)):
        raise ValueError(
            f"`{name}` must hold one finite number per channel, 1 or 3 of them. "
            f"Received: {received!r}"
        )
    return tuple(float(v) for v in values)
