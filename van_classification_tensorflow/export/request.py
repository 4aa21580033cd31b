"""What `van export` is asked for: every argument, checked before any work is done."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..support.checks import is_number, is_whole
from .formats import FORMATS, check_installed, format_for
from .place import check_place
from .samples import check_data

if TYPE_CHECKING:
    import keras


@dataclass(frozen=True)
class ExportRequest:
    """The arguments of `export`, whose defaults these are.

    Raises:
        ValueError: An argument is not allowed, or does not go with another.
        FileExistsError: `path` is there and `overwrite` is not set.
        OSError: There is no place for the file, or no pictures.
        ModuleNotFoundError: What writes the format is not installed; says what to install.
    """

    model: str | os.PathLike | keras.Model
    path: str | os.PathLike
    format: str | None = None
    precision: str = "float32"
    batch_size: int | str = 1
    image_size: int | str | None = None
    uint8: bool = False
    softmax: bool = False
    features: bool = False
    fused: bool = True
    data: str | os.PathLike | None = None
    tolerance: float | None = None
    agreement: float | None = None
    overwrite: bool = False

    def __post_init__(self) -> None:
        kind = self.kind
        for name in ("uint8", "softmax", "features", "fused", "overwrite"):
            if not isinstance(getattr(self, name), bool):
                raise ValueError(
                    f"`{name}` must be True or False. Received: {name}={getattr(self, name)!r}"
                )
        if self.precision not in FORMATS[kind]:
            raise ValueError(
                f"`precision` must be one of {', '.join(FORMATS[kind])} for {kind}. "
                f"Received: precision={self.precision!r}"
            )
        self._check_sizes()
        if self.features and self.agreement is not None:
            raise ValueError("`agreement` does not go with `features`, which have no best class")
        if self.softmax and self.features:
            raise ValueError("`softmax` does not go with `features`, which are no probabilities")
        if not self.fused and kind in ("onnx", "openvino"):
            raise ValueError(f"`fused`: {kind} is always fused. Received: fused={self.fused!r}")
        if self.precision == "int8" and self.data is None:
            raise ValueError(
                "`data` must name real pictures for int8, such as those the model will see: the "
                "ranges of its numbers come from them. Received: data=None"
            )
        for name, most in (("tolerance", math.inf), ("agreement", 1.0)):
            limit: Any = getattr(self, name)
            if limit is not None and not (is_number(limit) and 0 <= limit <= most):
                raise ValueError(f"`{name}` must be from 0 to {most}. Received: {name}={limit!r}")
        check_place(self.target, kind, self.model, self.overwrite)
        check_installed(kind, self.precision)
        check_data(self.data)

    @property
    def target(self) -> Path:
        """The place of the file, or of SavedModel's folder."""
        return Path(self.path)

    @property
    def kind(self) -> str:
        """Its format: `format`, or what `path` ends in."""
        return format_for(self.target, self.format)

    def _check_sizes(self) -> None:
        value: Any
        for name, value, others in (
            ("batch_size", self.batch_size, ("any",)),
            ("image_size", self.image_size, (None, "any")),
        ):
            if (value is None or isinstance(value, str)) and value in others:
                continue
            if not is_whole(value) or not 1 <= int(value) <= 4096:
                raise ValueError(
                    f"`{name}` must be an integer from 1 to 4096, or 'any'. "
                    f"Received: {name}={value!r}"
                )
        if self.kind == "litert" and "any" in (self.batch_size, self.image_size):
            raise ValueError(
                "`batch_size` and `image_size` must be fixed for litert, whose dilated "
                "convolutions would be taken apart: write a file for each size. "
                f"Received: batch_size={self.batch_size!r}, image_size={self.image_size!r}"
            )
